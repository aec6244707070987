"""The settings that ``generate`` uses, which releases of transformers look up in different places.

Releases are recognised by attributes of the older ones, so a future release is treated like the newest.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from interpret.anatomy.changes import Changes

_STANDS_ALONE = hasattr(GenerationMixin, "greedy_search")
"""Whether a configuration passed to ``generate`` is used alone, as in transformers 4.34.0; later releases take the
values it does not set from the model's configuration."""


@dataclass(frozen=True)
class GenerateSettings:
    """The settings that a call of ``generate`` uses."""

    model: PreTrainedModel
    config: GenerationConfig | None
    """As passed to ``generate``."""
    arguments: Mapping[str, Any]
    """Keyword arguments, as passed to ``generate``."""

    def __getitem__(self, name: str) -> Any:
        """Return a setting: from the arguments, else from the configuration, else from the model's configuration."""
        if name in self.arguments:
            return self.arguments[name]
        if self.config is None:
            return getattr(_default_config(self.model), name, None)
        value = getattr(self.config, name, None)
        return value if value is not None or _STANDS_ALONE else getattr(self.model.generation_config, name, None)


def _default_config(model: PreTrainedModel) -> GenerationConfig:
    """Return the configuration that ``generate`` uses if none is passed.

    Before transformers 5, a generation configuration that was made from ``model.config`` and not changed since follows
    later changes of ``model.config``. This matters: setting ``model.config.pad_token_id`` after loading is common.
    """
    config = model.generation_config
    changed_since_4_34 = getattr(model.config, "_get_non_default_generation_parameters", None)
    follows = _STANDS_ALONE if changed_since_4_34 is None else changed_since_4_34()
    if follows and config._from_model_config and config._original_object_hash == hash(config):
        return GenerationConfig.from_model_config(model.config)
    return config


@contextmanager
def generating_by(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Make a model generate with this configuration alone inside the ``with`` block.

    Releases after 4.34.0 take the values that a passed configuration does not set from the model's configuration.
    """
    with Changes() as change, change:
        change.set(model, "generation_config", config)
        yield


Given = tuple[GenerationConfig | None, dict[str, Any]]
"""The configuration to pass to ``generate``, and keyword arguments to pass with it."""


def uncompiled(model: PreTrainedModel, config: GenerationConfig | None) -> Given:
    """Return settings that keep ``generate`` from compiling the model, since compiled code ignores our hooks.

    ``generate`` compiles only on accelerators, for static caches; releases that never compile lack the setting.

    If a configuration is given, the setting goes into a copy of it: current releases deprecate keyword arguments next
    to a configuration.
    """
    if model.device.type == "cpu" or not hasattr(GenerationConfig(), "disable_compile"):
        return config, {}
    if config is None:
        return None, {"disable_compile": True}
    config = deepcopy(config)
    config.disable_compile = True
    return config, {}
