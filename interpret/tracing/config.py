"""Read the settings of a causal tracing run from a YAML file.

Configuration files of Knowledge-Tracing are read unchanged. Settings that it does not have are keys of our own at the
top level. All keys are optional::

    model: {pth: demo, name: smollm2}       # a folder, a hub id or demo; name of the model in the results
    data: examples/facts.json               # fact file, see facts.files
    output: runs/trace                      # run folder; default: result_pth.base_pth / name
    mediators: [hidden, attn_severed]       # see mediators; default: those in hook_layer, or hidden and both severed
    noise: s3                               # see noise; also samples, seed, replace
    window: 10                              # number of layers of attn_window and mlp_window
    answer_tokens: first                    # or whole: which tokens of the answer are read
    metric: probability                     # or log_probability, logit, logit_difference, rank; or a list of several
    method: exact                           # or approximate, relp or screened, see approximate
    chat_template: model                    # or a text with {prompt}; default: prompts are read as they are
    rule: words                             # or first_token: which facts count as known, see facts.filter
    buckets: rome                           # or kt, see facts.buckets
    dtype: float32                          # default: as stored; also device
    memory: 4000000000                      # bytes that a sweep may use
    workers: 8                              # processes that share the facts; also cluster, gpus_per_worker and
                                            # start_timeout, see workers.settings

A file with ``hook_layer`` is a Knowledge-Tracing configuration. Its missing settings have the defaults of that project:
data ``data/known_1000.json``, noise 0.1, rule ``first_token`` and buckets ``kt``. Its module names are checked by
``check_module_names`` once the model is open.

Tracing reads one greedily chosen token, so other values in ``generation_args`` are refused. ``output_scores`` and
``return_dict_in_generate`` are accepted and ignored; Knowledge-Tracing needs them to obtain the logits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interpret.errors import InputError, brief, named, unknown
from interpret.facts.buckets import SCHEMES, Scheme
from interpret.facts.filter import RULES, Rule
from interpret.models.arguments import DTYPES
from interpret.reading import is_unicode, read_yaml
from interpret.records import TRACE_METHODS, TraceMethod
from interpret.sweep.metrics import KINDS, Kind
from interpret.tracing.inputs import ANSWER_TOKENS, TraceSettings
from interpret.tracing.knowledge_tracing import HookNames
from interpret.tracing.mediators import DEFAULT_MEDIATORS, UNIT_MEDIATORS, check_mediators
from interpret.tracing.metrics import check_trace_metrics
from interpret.tracing.noise import parse_noise

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "model": ("pth", "name"),
    "generation_args": ("max_generate_length", "do_sample", "output_scores", "return_dict_in_generate"),
    "hook_layer": ("clean_save", "corrupt", "corrupted_save", "clean_replace", "attn_sever", "mlp_sever"),
    "result_pth": ("base_pth",),
}
"""The sections and keys of Knowledge-Tracing's configuration."""
CHOICES: Mapping[str, Sequence[str]] = {
    "answer_tokens": ANSWER_TOKENS,
    "metric": KINDS,
    "method": TRACE_METHODS,
    "rule": RULES,
    "buckets": tuple(SCHEMES),
    "dtype": tuple(DTYPES),
}
KNOWLEDGE_TRACING = {"data": "data/known_1000.json", "noise": 0.1, "rule": "first_token", "buckets": "kt"}
"""Values of our own keys where a configuration of Knowledge-Tracing does not have them: what that project does."""
TEXTS = ("data", "output", "device", "chat_template", "cluster")
NUMBERS = {"samples": 1, "seed": 0, "window": 1, "memory": 1, "workers": 1}
"""Keys with integer values, and their minimum."""
MOST = 2**63 - 1
"""Maximum of these values: the largest 64-bit integer."""
DECIMALS = ("gpus_per_worker", "start_timeout")
"""Keys with values that may have decimals."""
KEYS = (*SECTIONS, "mediators", "noise", "replace", *TEXTS, *CHOICES, *NUMBERS, *DECIMALS)
SETTINGS = ("noise", "samples", "seed", "replace", "window", "answer_tokens", "metric", "chat_template", "memory")
"""The keys that are fields of ``TraceSettings``."""
OF_WORKERS = ("workers", "cluster", "gpus_per_worker", "start_timeout")
"""The keys about workers."""


@dataclass(frozen=True)
class TraceConfig:
    """What to trace, on which model, and where the results go."""

    model: str = "demo"
    """A folder, a hub id, or ``demo``."""
    name: str = "demo"
    """Name of the model in the results; in a file, by default the last part of ``model``."""
    data: str | None = None
    """Path of the fact file."""
    output: str | None = None
    """The run folder."""
    mediators: tuple[str, ...] = DEFAULT_MEDIATORS
    """Names of the mediators, see ``trace``."""
    settings: TraceSettings = field(default_factory=TraceSettings)
    """How prompts are corrupted and what is read."""
    method: TraceMethod = "exact"
    """``exact``, ``approximate``, ``relp`` or ``screened``, see ``trace_mediators``."""
    metrics: tuple[Kind, ...] | None = None
    """What is read, if the file has a list of metrics; None for the metric of the settings."""
    rule: Rule = "words"
    """Which facts count as known, see ``known``."""
    buckets: Scheme = "rome"
    """The bucket scheme of averages, see ``token_buckets``."""
    dtype: str | None = None
    """Name of a dtype; None for the dtype of the stored weights."""
    device: str | None = None
    """The device; None for the GPU if there is one, else the CPU."""
    hook_layer: HookNames | None = None
    """The module names of a Knowledge-Tracing configuration, to check with ``check_module_names``."""
    workers: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The keys of ``OF_WORKERS`` that the file has."""


def load_config(path: str | Path) -> TraceConfig:
    """Read a YAML file; the module docstring lists its keys.

    Raises:
        InputError: if the file is missing or is not YAML, or a key or value is invalid; the message names file and key.

    >>> load_config("examples/trace.yaml").settings.noise
    's3'
    """
    document = read_yaml(path, like="examples/trace.yaml")
    try:
        return _config(document)
    except InputError as error:
        raise InputError(f"{named(path)}: {error}") from None


def _config(document: object) -> TraceConfig:
    top = _mapping("the file", document, KEYS, "key")
    sections = {key: _mapping(key, top[key], SECTIONS[key], f"key of {key}") for key in SECTIONS if key in top}
    _check_generation(sections.get("generation_args", {}))
    hooks = _hook_names(sections["hook_layer"]) if "hook_layer" in sections else None
    values: dict[str, Any] = {key: _value(key, top[key]) for key in top if key not in SECTIONS}
    if hooks is not None:
        values = {**KNOWLEDGE_TRACING, "mediators": _mediators_of(hooks)} | values
    if isinstance(values.get("metric"), tuple):
        values["metrics"] = values.pop("metric")
    settings = TraceSettings(**{key: values.pop(key) for key in SETTINGS if key in values})
    workers = {key: values.pop(key) for key in OF_WORKERS if key in values}
    model = {key: _text(f"model.{key}", value) for key, value in sections.get("model", {}).items()}
    path = model.get("pth", TraceConfig.model)
    name = model.get("name") or Path(path).name
    if "base_pth" in sections.get("result_pth", {}):
        base = _text("result_pth.base_pth", sections["result_pth"]["base_pth"])
        values.setdefault("output", str(Path(base) / name))
    return TraceConfig(model=path, name=name, settings=settings, hook_layer=hooks, workers=workers, **values)


def _mapping(where: str, value: object, allowed: Sequence[str], kind: str) -> dict[str, Any]:
    """Check the keys of a mapping, and return it without keys that have no value."""
    if not isinstance(value, dict):
        raise InputError(f"{where} is {brief(value)}; expected keys and values: {', '.join(allowed)}")
    for key in value:
        if key not in allowed:
            raise InputError(unknown(kind, key, allowed))
    return {key: entry for key, entry in value.items() if entry is not None}


def _check_generation(args: Mapping[str, Any]) -> None:
    """Refuse settings that would generate another answer than the one traced."""
    length = args.get("max_generate_length", 1)
    if type(length) is not int or length != 1:
        raise InputError(
            f"generation_args.max_generate_length is {brief(length)}; tracing reads the token after the prompt: "
            "give 1, and answer_tokens: whole to read all tokens of an answer"
        )
    for key in ("do_sample", "output_scores", "return_dict_in_generate"):
        if not isinstance(args.get(key, False), bool):
            raise InputError(f"generation_args.{key} is {brief(args[key])}; expected true or false")
    if args.get("do_sample", False):
        raise InputError(
            "generation_args.do_sample is true; tracing reads the greedy answer, not a sampled token: give false"
        )


def _hook_names(section: Mapping[str, Any]) -> HookNames:
    if "clean_replace" not in section:
        raise InputError("hook_layer.clean_replace is missing; give the layer, as in model.layers.[LAYER_NUM]")
    lists = ("clean_save", "corrupted_save")
    read: dict[str, Any] = {
        key: _texts(f"hook_layer.{key}", value) if key in lists else _text(f"hook_layer.{key}", value)
        for key, value in section.items()
    }
    return HookNames(**read)


def _mediators_of(hooks: HookNames) -> tuple[str, ...]:
    """Return the mediators that a Knowledge-Tracing configuration traces."""
    severed = (("attn_severed", hooks.attn_sever), ("mlp_severed", hooks.mlp_sever))
    return ("hidden", *(mediator for mediator, name in severed if name is not None))


def _value(key: str, value: Any) -> Any:
    """Check the value of one of our own keys, and return it in the form of ``TraceConfig``."""
    if key == "metric" and isinstance(value, list):
        metrics = _texts(key, value)
        check_trace_metrics(metrics)
        return metrics
    if key in CHOICES:
        return _choice(key, value, CHOICES[key])
    if key in NUMBERS:
        return _number(key, value, NUMBERS[key])
    if key in TEXTS:
        return _text(key, value)
    if key in DECIMALS:
        return _decimal(key, value)
    if key == "mediators":
        names = _texts(key, value)
        check_mediators([name for name in names if name not in UNIT_MEDIATORS])
        return names
    if key == "replace":
        if not isinstance(value, bool):
            raise InputError(f"replace is {brief(value)}; expected true or false")
        return value
    if isinstance(value, bool):
        raise InputError(f"noise is {brief(value)}; give a specification such as s3, or a number")
    parse_noise(value)
    return value


def _choice(key: str, value: Any, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise InputError(unknown(key, value, allowed))
    return value


def _number(key: str, value: Any, least: int) -> int:
    if type(value) is not int or value < least:
        raise InputError(f"{key} is {brief(value)}; expected an integer of at least {least}")
    if value > MOST:
        raise InputError(f"{key} is {brief(value)}; expected an integer of at most {MOST}")
    return value


def _decimal(key: str, value: Any) -> float:
    if type(value) not in (int, float):
        raise InputError(f"{key} is {brief(value)}; expected a number")
    return float(value)


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{key} is {brief(value)}; expected a non-empty string")
    if "\0" in value or not is_unicode(value):
        raise InputError(f"{key} is {brief(value)}; expected a text without NUL and halves of surrogate pairs")
    return value


def _texts(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{key} is {brief(value)}; expected a non-empty list of strings")
    return tuple(_text(f"{key}[{index}]", entry) for index, entry in enumerate(value))
