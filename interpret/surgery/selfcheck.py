"""Check that an opened model behaves like the stock model, and prove which analyses work on it."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformers import GenerationMixin, LlamaForCausalLM, LlamaModel, PreTrainedModel

from interpret.activations._record import sites_of
from interpret.anatomy import (
    anatomy_of,
    cache_difference,
    cache_tensors,
    can_be_patched,
    check_insides,
    check_logits,
    check_parts,
    check_scores,
    decoder_layers,
    encoder_decoder_of,
    input_device,
    neuron_numbers,
    padding_difference,
    reads_padding,
    reporting_attention,
    stacked_layers,
    text_config,
)
from interpret.device import in_float64
from interpret.engine.recording import record_run
from interpret.engine.trunk import check_trunk, trunk_of
from interpret.errors import UnsupportedModelError
from interpret.prompts.batches import pad, position_ids
from interpret.surgery.generation import decoding_modes, forward_interpret, generate_interpret


@dataclass(frozen=True)
class StockComparison:
    """Two runs that must give the same result."""

    what: str
    difference: float
    """Largest absolute difference over every tensor of the two outputs; 0 is expected."""


def patch_state() -> str:
    """Return how a model gets the surgery methods: from patched transformers, or from ``attach``."""
    if not can_be_patched():
        return f"not available for transformers {transformers.__version__}; use interpret.attach(model)"
    patched = {
        "forward_interpret": (LlamaModel, LlamaForCausalLM),
        "generate_interpret": (GenerationMixin,),
        "greedy_search_interpret": (GenerationMixin,),
    }
    present = [hasattr(owner, name) for name, owners in patched.items() for owner in owners]
    if all(present):
        return "installed"
    return "half installed; run install_patch.py" if any(present) else "not installed; use interpret.attach(model)"


def features(model: PreTrainedModel) -> dict[str, str]:
    """Return a model's family, size, dtype and device, and what can be read and edited.

    Raises:
        UnsupportedModelError: if the model's family is not supported.
    """
    if model.config.is_encoder_decoder:
        n_layers, n_decoding = len(stacked_layers(model)), len(decoder_layers(model))
        return {
            "family": f"{encoder_decoder_of(model).models}: an encoder and a decoder",
            "size": f"{n_layers - n_decoding} and {n_decoding} layers, hidden width {model.config.hidden_size}",
            "runs as": _runs_as(model),
        }
    anatomy = anatomy_of(model)
    return {
        "family": f"{anatomy.family.name}, {anatomy.block.replace('_', '-')} layers",
        "size": f"{len(anatomy.layers)} layers, hidden width {anatomy.width}",
        "runs as": _runs_as(model),
        "activations": ", ".join(sites_of(anatomy)),
        "decoding": ", ".join(decoding_modes()),
    }


def _runs_as(model: PreTrainedModel) -> str:
    return f"{str(model.dtype).removeprefix('torch.')} on {model.device}"


@dataclass(frozen=True)
class Proof:
    """Whether some analyses work on a model."""

    analyses: str
    result: Literal["works", "not available", "fails"]
    """not available: the family has no such parts. fails: the model does not compute what its family's row says."""
    reason: str
    """What was compared, or why the analyses do not work."""


def certificate(model: PreTrainedModel) -> Iterator[Proof]:
    """Prove on a model which analyses work, each by a comparison with what the model itself computes.

    Raises:
        UnsupportedModelError: if the model's family is not supported.
    """
    for analyses, missing, prove in _PROOFS_WITH_ENCODER if model.config.is_encoder_decoder else _PROOFS:
        if (reason := missing(model)) is not None:
            yield Proof(analyses, "not available", reason)
            continue
        try:
            yield Proof(analyses, "works", prove(model))
        except UnsupportedModelError as error:
            yield Proof(analyses, "fails", str(error))


def _nothing(model: PreTrainedModel) -> str | None:
    return None


def _without_sums(model: PreTrainedModel) -> str | None:
    """Return why what the layers add to the residual stream cannot be read, if it cannot."""
    try:
        anatomy_of(model).check_added()
    except UnsupportedModelError as error:
        return str(error)
    return None


def _reading_padding(model: PreTrainedModel) -> str | None:
    """Return how padding on the left changes a row, if it does."""
    problem = padding_difference(model)
    return problem and (
        f"padding on the left changes a text ({problem}): texts of unequal length are run apart, and left-padded "
        "batches are refused"
    )


def _without_parts(model: PreTrainedModel) -> str | None:
    """Return why a model has no parts, if it has none."""
    if anatomy_of(model).family.parts is None:
        return "the family is described without its parts; exact traces take whole forward passes"
    return None


def _without_neurons(model: PreTrainedModel) -> str | None:
    """Return why the neurons of a model cannot be read, if they cannot."""
    anatomy = anatomy_of(model)
    try:
        for layer in range(len(anatomy.layers)):
            neuron_numbers(anatomy, layer)
    except UnsupportedModelError as error:
        return str(error)
    return None


def _own_logits(model: PreTrainedModel) -> str:
    check_logits(model)
    return "logits computed from states are the model's own"


def _residual_stream(model: PreTrainedModel) -> str:
    check_parts(model)
    anatomy = anatomy_of(model)
    without = [layer for layer in range(len(anatomy.layers)) if not anatomy.has(layer, "attn_out")]
    if _without_sums(model):
        return "hidden states are the residual stream; what layers add to it is not known"
    if without:
        layers = ", ".join(map(str, without)) if len(without) < len(anatomy.layers) else "no layer has it"
        return f"what layers add makes the residual stream; without attention: {layers}"
    return "attention and MLP add up to the residual stream in every layer"


def _adding_up(model: PreTrainedModel) -> str:
    check_insides(model)
    return "what layers add makes the residual stream, and the norms after it are known"


def _padding(model: PreTrainedModel) -> str:
    return "a text that is padded on the left has the logits that it has alone"


def _heads(model: PreTrainedModel) -> str:
    check_scores(model)
    return "heads attend as computed from their queries and keys"


def _neurons(model: PreTrainedModel) -> str:
    check_insides(model)
    return "neurons and their weights give the MLP's output"


@torch.no_grad()
def _part_by_part(model: PreTrainedModel) -> str:
    inputs = _inputs(model)["input_ids"][-1:]
    trunk = trunk_of(model, inputs.shape[1])
    embeddings = trunk.embed(inputs)
    last = record_run(trunk.layers, trunk.enter(embeddings), ()).states[-1]
    check_trunk(model, trunk, embeddings, last)
    difference = (trunk.logits(last) - model(inputs).logits.to(trunk.device)).abs().max()
    return f"layers run part by part give the model's logits to within {difference:.2g}"


def _texts(model: PreTrainedModel) -> str:
    return _by_own_cache(model) if _without_parts(model) else _part_by_part(model)


def _by_own_cache(model: PreTrainedModel) -> str:
    if cache_difference(model, _inputs(model)["input_ids"].shape[1]) is not None:
        return "texts are continued by passes over the whole text, because generate with a cache gives others"
    return "texts that the model continues by its cache have the logits of whole passes"


_Missing = Callable[[PreTrainedModel], str | None]
_Prove = Callable[[PreTrainedModel], str]
_PROOFS: tuple[tuple[str, _Missing, _Prove], ...] = (
    ("logit lens, attribution", _nothing, _own_logits),
    ("recording, exact traces", _nothing, _residual_stream),
    ("interpretations", _nothing, _texts),
    ("logit attribution", _without_sums, _adding_up),
    ("approximate traces", _without_parts, _part_by_part),
    ("heads", _without_parts, _heads),
    ("neurons", _without_neurons, _neurons),
    ("left-padded batches", _reading_padding, _padding),
)
"""Analyses, what they need that a family may not have, and how they are proved."""
_PROOFS_WITH_ENCODER: tuple[tuple[str, _Missing, _Prove], ...] = (
    ("attribution to tokens", _nothing, _own_logits),
    ("all other analyses, surgery", lambda model: "they take decoder-only models", _own_logits),
)
"""The same for encoder-decoder models."""


@torch.no_grad()
def comparisons(model: PreTrainedModel) -> Iterator[StockComparison]:
    """Compare stock calls with surgery calls that change nothing, on a padded batch of random tokens.

    An encoder-decoder model has no surgery, and therefore no comparisons.

    Raises:
        UnsupportedModelError: if the model's family is not supported.
    """
    if model.config.is_encoder_decoder:
        return
    inputs = _inputs(model)
    plans = {"no edit": None, "an identity edit": _identity_edit(model, len(inputs["input_ids"]))}
    passes: dict[str, dict[str, Any]] = {"hidden states": {}, "attentions": {"output_attentions": True}}
    for extra in passes.values():
        extra |= {**inputs, **_positions(model, inputs), "output_hidden_states": True, "use_cache": True}
    decoding: dict[str, dict[str, Any]] = {
        "greedy": {},
        "3 beams": {"num_beams": 3},
        "no cache": {"use_cache": False},
    }
    for extra in decoding.values():
        extra |= {**inputs, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        extra |= {"return_dict_in_generate": True, "output_scores": True}
    for asked, plan in plans.items():
        for name, call in passes.items():
            with reporting_attention(model) if name == "attentions" else nullcontext():
                stock, surgery = model(**call), forward_interpret(model, **call, insert_info=plan)
            yield StockComparison(f"forward_interpret, {name}, {asked}", _difference(stock, surgery))
        for name, call in decoding.items():
            surgery = generate_interpret(model, **call, insert_info=plan)
            yield StockComparison(f"generate_interpret, {name}, {asked}", _difference(model.generate(**call), surgery))


def _inputs(model: PreTrainedModel) -> dict[str, Any]:
    """Return rows of 5, 9 and 12 random tokens, padded on the left; of 12 tokens, where layers read padding."""
    chance = torch.Generator().manual_seed(0)
    lengths = (12, 12, 12) if reads_padding(model) else (5, 9, 12)
    rows = [torch.randint(text_config(model).vocab_size, (n,), generator=chance).tolist() for n in lengths]
    batch = pad(rows, pad_id=0, device=input_device(model))
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def _positions(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Return the positions that an edited forward pass counts, for models that can be given positions."""
    accepts = "position_ids" in signature(model.forward).parameters
    return {"position_ids": position_ids(inputs["attention_mask"])} if accepts else {}


def _identity_edit(model: PreTrainedModel, n_samples: int) -> list[dict[Any, Any]]:
    """Return edits of strength 0 at the first and last token of every sample in every layer."""
    anatomy = anatomy_of(model)
    vectors = torch.ones(1, 2, anatomy.width)
    entry: dict[Any, Any] = {layer: ([0, -1], vectors) for layer in range(len(anatomy.layers))}
    return [{**entry, "overlay_strength": 0.0}] * n_samples


def _difference(one: Any, other: Any) -> float:
    """Return the largest absolute difference between two outputs with the same structure."""
    if isinstance(one, Tensor):
        if one.shape != other.shape:
            return float("inf")
        one, other = in_float64(one), in_float64(other)
        # Scores of excluded tokens are -inf in both outputs, and -inf - -inf is NaN.
        apart = (one - other).abs().masked_fill(one == other, 0.0)
        return float(apart.max()) if apart.numel() else 0.0
    if hasattr(one, "get_seq_length"):
        return _difference(cache_tensors(one), cache_tensors(other))
    if hasattr(one, "items"):
        return max((_difference(one[name], other[name]) for name in one), default=0.0)
    if isinstance(one, (tuple, list)):
        return max((_difference(*pair) for pair in zip(one, other, strict=True)), default=0.0)
    return 0.0 if one == other else float("inf")
