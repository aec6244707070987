"""The settings ``generate`` goes by, which releases of transformers look up in different places.

Told apart by what the older ones have, so that a release still to come is taken for one like the newest.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

_STANDS_ALONE = hasattr(GenerationMixin, "greedy_search")
"""Whether the model's configuration does not fill what one that is given leaves open, as in transformers 4.34.0."""


@dataclass(frozen=True)
class GenerateSettings:
    """What a call of ``generate`` goes by."""

    model: PreTrainedModel
    config: GenerationConfig | None
    """As given."""
    arguments: Mapping[str, Any]
    """As given, by name."""

    def __getitem__(self, name: str) -> Any:
        """Return a setting: an argument outdoes the configuration, and that the model's."""
        if name in self.arguments:
            return self.arguments[name]
        if self.config is None:
            return getattr(_default_config(self.model), name, None)
        value = getattr(self.config, name, None)
        return value if value is not None or _STANDS_ALONE else getattr(self.model.generation_config, name, None)


def _default_config(model: PreTrainedModel) -> GenerationConfig:
    """Return the configuration ``generate`` falls back on.

    Before transformers 5, one made from the model's own, and not changed since, follows it: setting
    ``model.config.pad_token_id`` after loading is common.
    """
    config = model.generation_config
    changed_since_4_34 = getattr(model.config, "_get_non_default_generation_parameters", None)
    follows = _STANDS_ALONE if changed_since_4_34 is None else changed_since_4_34()
    if follows and config._from_model_config and config._original_object_hash == hash(config):
        return GenerationConfig.from_model_config(model.config)
    return config


@contextmanager
def generating_by(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Let a model generate by a configuration alone for the time of a ``with`` block.

    Later releases than 4.34.0 take what a configuration leaves open from the model's own, even where one is given.
    """
    kept, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = kept


Given = tuple[GenerationConfig | None, dict[str, Any]]
"""The configuration to give to ``generate``, and settings to give beside it."""


def uncompiled(model: PreTrainedModel, config: GenerationConfig | None) -> Given:
    """Keep ``generate`` from compiling the model: what is compiled goes without our hooks.

    It compiles on accelerators only, for static caches; releases that never compile know no such setting.

    Where a configuration is given, it goes into a copy of that: current releases deprecate settings beside one.
    """
    if model.device.type == "cpu" or not hasattr(GenerationConfig(), "disable_compile"):
        return config, {}
    if config is None:
        return None, {"disable_compile": True}
    config = deepcopy(config)
    config.disable_compile = True
    return config, {}
