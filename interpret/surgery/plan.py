"""Check ``insert_info`` and convert it to a ``SurgeryPlan``, before the model runs.

``insert_info`` is a list with one dict (or None) for each sample of the batch::

    {3: ([5, -1], vectors), "overlay_strength": 1.0, "replacing_mode": "normalized", "note": "mine"}

Integer keys are layers: key k edits the *input* of decoder layer k, the residual stream after layer k-1.
Their value is ``(positions, vectors[1, len(positions), hidden])`` or, with options for this layer alone,
``(positions, vectors, {"overlay_strength": 0.5})``. "normalized" writes ``a * v + (1 - a) * h``, "addition"
writes ``h + a * v`` (h the hidden state, v the vector, a the strength). Other string keys are ignored (metadata).

This module does not need the model, only the token counts, the number of layers and the hidden width.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from interpret.errors import SpecError, brief, closest, one_line, unknown
from interpret.surgery.words import ADDITION, ALLOW_NEGATIVE, MODE, MODES, NORMALIZED, OPTION_KEYS, STRENGTH


@dataclass(frozen=True)
class LayerEdit:
    """All edits to the input of one decoder layer, over the whole batch: N tokens in total."""

    samples: Tensor
    """[N] int64, CPU: index of the sample in the batch."""
    positions: Tensor
    """[N] int64, CPU: index of the token in its sample, from 0, not counting padding."""
    vectors: Tensor
    """[N, D] floating point: the vectors to write; gradients flow through them."""
    keep: Tensor
    """[N, 1] float64: factor on the hidden state of the token."""
    add: Tensor
    """[N, 1] float64: factor on the vector."""


@dataclass(frozen=True)
class SurgeryPlan:
    """A checked ``insert_info``: one vectorised edit per edited layer."""

    edits: Mapping[int, LayerEdit]
    """Keyed by layer, in ascending order; empty when no sample is edited."""


@dataclass(frozen=True)
class _Overlay:
    """How a vector is combined with a hidden state; the field defaults apply to every entry."""

    mode: str = NORMALIZED
    strength: float = 1.0
    allow_negative: bool = False

    @property
    def keep(self) -> float:
        return 1.0 - self.strength if self.mode == NORMALIZED else 1.0


@dataclass(frozen=True)
class _Entry:
    """One sample's checked edits of one layer."""

    layer: int
    sample: int
    positions: list[int]
    vectors: Tensor  # [P, D]
    overlay: _Overlay


def plan_surgery(
    insert_info: Sequence[Mapping[Any, Any] | None],
    *,
    token_counts: Sequence[int],
    n_layers: int,
    width: int,
    allow_negative_positions: bool = True,
) -> SurgeryPlan:
    """Check ``insert_info`` and convert it to a plan.

    Args:
        insert_info: one dict (or None) per sample, such as ``{3: ([5, -1], vectors), "overlay_strength": 0.5}``:
            integer keys are layers, whose inputs are edited; docs/guide/surgery.md has the whole format.
        token_counts: number of tokens in each sample, without padding, B integers.
        n_layers: number of decoder layers; keys 0 to ``n_layers - 1`` exist.
        width: size D of a hidden state.
        allow_negative_positions: whether -1 may denote a sample's last token; False if the end of the sample moves
            between calls.

    Returns:
        The edits of every layer.

    Raises:
        SpecError: if anything cannot be carried out exactly as written; the message names the sample and the key.

    >>> plan = plan_surgery([{2: ([-1], torch.ones(1, 1, 4))}], token_counts=[3], n_layers=6, width=4)
    >>> plan.edits[2].positions.tolist()
    [2]
    """
    if not isinstance(insert_info, Sequence) or isinstance(insert_info, str):
        raise SpecError(
            f"insert_info is a {type(insert_info).__name__}; give a list with one dict (or None) per sample"
        )
    if len(insert_info) != len(token_counts):
        raise SpecError(
            f"insert_info has {len(insert_info)} entries for a batch of {len(token_counts)} samples; "
            "give one dict (or None) per sample"
        )
    entries: list[_Entry] = []
    for sample, (info, count) in enumerate(zip(insert_info, token_counts, strict=True)):
        try:
            entries += _sample_entries(info, sample, count, n_layers, width, allow_negative_positions)
        except SpecError as error:
            raise SpecError(f"insert_info[{sample}]: {error}") from None
    entries = [entry for entry in entries if entry.positions]
    layers = sorted({entry.layer for entry in entries})
    return SurgeryPlan({layer: _merge([e for e in entries if e.layer == layer]) for layer in layers})


def _merge(entries: list[_Entry]) -> LayerEdit:
    """Combine the entries of one layer into tensors over all their tokens."""
    counts = torch.tensor([len(entry.positions) for entry in entries])

    def each_token(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).repeat_interleave(counts).unsqueeze(1)  # [N, 1]

    device = entries[0].vectors.device
    return LayerEdit(
        samples=torch.tensor([entry.sample for entry in entries]).repeat_interleave(counts),
        positions=torch.tensor([p for entry in entries for p in entry.positions], dtype=torch.long),
        vectors=torch.cat([entry.vectors.to(device) for entry in entries]),  # [N, D]
        keep=each_token([entry.overlay.keep for entry in entries]),
        add=each_token([entry.overlay.strength for entry in entries]),
    )


def _sample_entries(
    info: Mapping[Any, Any] | None, sample: int, count: int, n_layers: int, width: int, negative: bool
) -> Iterator[_Entry]:
    """Yield the checked entries of one sample's dict; its errors do not name the sample yet."""
    if info is None:
        return
    if not isinstance(info, Mapping):
        raise SpecError(f"expected a dict or None, got a {type(info).__name__}")
    overlay = _overlay({key: value for key, value in info.items() if isinstance(key, str)}, _Overlay())
    for key, value in info.items():
        if isinstance(key, str):
            continue
        layer = _layer(key, n_layers)
        try:
            positions, vectors, options = _layer_value(value)
            yield _Entry(
                layer,
                sample,
                _positions(positions, count, negative),
                _vectors(vectors, len(positions), width),
                _overlay(options, overlay),
            )
        except SpecError as error:
            raise SpecError(f"layer {layer}: {error}") from None


def _layer(key: object, n_layers: int) -> int:
    if not isinstance(key, Integral) or isinstance(key, bool):
        raise SpecError(f"key {key!r} is a {type(key).__name__}; layers are integers, all other keys are strings")
    if not 0 <= int(key) < n_layers:
        raise SpecError(f"layer {key} does not exist; this model has layers 0 to {n_layers - 1}")
    return int(key)


def _layer_value(value: object) -> tuple[list[Any], object, Mapping[Any, Any]]:
    """Split a layer's value into positions, vectors and options."""
    if not isinstance(value, (tuple, list)) or len(value) not in (2, 3):
        raise SpecError("expected (positions, vectors) or (positions, vectors, options)")
    positions = value[0].tolist() if hasattr(value[0], "tolist") else value[0]
    if not isinstance(positions, Sequence) or isinstance(positions, str):
        raise SpecError(f"positions have type {type(positions).__name__}; give a list of token positions")
    options = value[2] if len(value) == 3 else {}
    if not isinstance(options, Mapping):
        raise SpecError(f"options have type {type(options).__name__}; give a dict of {', '.join(OPTION_KEYS)}")
    for key in options:
        if key not in OPTION_KEYS:
            raise SpecError(unknown("option", key, OPTION_KEYS))
    return list(positions), value[1], options


def _positions(positions: list[Any], count: int, allow_negative: bool) -> list[int]:
    resolved = [_position(position, count, allow_negative) for position in positions]
    twice = [position for position, times in Counter(resolved).items() if times > 1]
    if twice:
        raise SpecError(f"position {twice[0]} is given twice; give each position once per layer")
    return resolved


def _position(position: object, count: int, allow_negative: bool) -> int:
    if not isinstance(position, Integral) or isinstance(position, bool):
        raise SpecError(f"position {position!r} is a {type(position).__name__}; positions are integers")
    index = int(position)
    if index < 0 and not allow_negative:
        raise SpecError(f"position {position} counts from the end, which moves with past_key_values; count from 0")
    if not -count <= index < count:
        raise SpecError(
            f"position {position} does not exist; the sample has {count} tokens, "
            f"positions 0 to {count - 1} or -{count} to -1"
        )
    return index % count


def _vectors(vectors: object, n_positions: int, width: int) -> Tensor:
    """Check the vectors of one entry: [1, P, D] -> [P, D]."""
    if not isinstance(vectors, Tensor):
        raise SpecError(f"vectors have type {type(vectors).__name__}; give a torch tensor")
    if not vectors.is_floating_point():
        raise SpecError(f"vectors have dtype {vectors.dtype}; give a floating-point tensor")
    expected = (1, n_positions, width)
    if tuple(vectors.shape) != expected:
        raise SpecError(
            f"vectors have shape {list(vectors.shape)}; expected {list(expected)}: "
            f"{n_positions} positions, hidden width {width}"
        )
    return vectors[0]


def _overlay(options: Mapping[str, Any], default: _Overlay) -> _Overlay:
    """Read the options among the string keys; other keys are ignored, unless they look like a misspelt option."""
    for key in options:
        _check_note(key)
    overlay = replace(
        default,
        mode=options.get(MODE, default.mode),
        strength=options.get(STRENGTH, default.strength),
        allow_negative=options.get(ALLOW_NEGATIVE, default.allow_negative),
    )
    if overlay.mode not in MODES:
        raise SpecError(unknown(MODE, overlay.mode, MODES))
    if not isinstance(overlay.allow_negative, bool):
        raise SpecError(f"{ALLOW_NEGATIVE} is {overlay.allow_negative!r}; give True or False")
    _check_strength(overlay)
    return overlay


def _check_note(key: str) -> None:
    """Refuse a string key that is probably a mistyped layer or option."""
    if key in OPTION_KEYS:
        return
    if key.removeprefix("-").isdecimal():
        raise SpecError(f"key {brief(key)} is a string; layers are integers: use {one_line(key, 20)}")
    if near := closest(key, OPTION_KEYS, cutoff=0.8):
        raise SpecError(f"key {key!r} looks like {near!r}; correct it, or use another name for your own key")


def check_strength(mode: str, strength: float) -> None:
    """Check a strength with its mode, before there is a model.

    Raises:
        SpecError: if the strength is not a number in the range of the mode.
    """
    _check_strength(_Overlay(mode=mode, strength=strength))


def _check_strength(overlay: _Overlay) -> None:
    strength = overlay.strength
    if not isinstance(strength, Real) or isinstance(strength, bool) or not isfinite(strength):
        raise SpecError(f"{STRENGTH} is {strength!r}; give a finite number")
    if overlay.mode == NORMALIZED and not 0 <= strength <= 1:
        raise SpecError(f"{STRENGTH} {strength} is outside 0 to 1, the range for mode {NORMALIZED!r}")
    if overlay.mode == ADDITION and strength <= 0 and not overlay.allow_negative:
        raise SpecError(
            f"{STRENGTH} {strength} is not above 0; to add nothing or to subtract, set {ALLOW_NEGATIVE!r}: True"
        )
