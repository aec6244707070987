"""Attention heads: what they look at, and what a model does when a head is silenced or speaks of another text.

The probabilities are those the model's own attention computes, with its masks, rotations and scales. Induction scores
follow Olsson et al. (2022), "In-context Learning and Induction Heads". Shapes: B rows, T tokens, L layers, H heads, W
width of a head.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations.edits import check_index
from interpret.anatomy import anatomy_of, input_device, layer_input, longest_text, reporting_attention
from interpret.anatomy.passes import evaluating, only_in_this_thread
from interpret.errors import InputError, UnsupportedModelError
from interpret.prompts.batches import position_ids

Head = tuple[int, int]
"""Layer and number of a (query) head."""
Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


@dataclass(frozen=True)
class Attended:
    """A token that a head looks at."""

    layer: int
    head: int
    position: int
    """Of the token that looks."""
    rank: int
    """1 for the token looked at most."""
    attended_position: int
    attended_token: str
    probability: float


def attention_patterns(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    layers: Sequence[int] | None = None,
) -> dict[int, Tensor]:
    """Return whom each head looks at: layer -> probabilities [B, H, T, T] on the CPU, ``[b, h, q, k]`` of q for k.

    Rows sum to 1; those of padding are 0. q and k are columns, padding included: ``batches.token_columns`` tells in
    which a token of a prompt stands. Nothing is kept of layers that are not named.

    Args:
        model: a causal LM of a known family; it is run without dropout.
        input_ids: [B, T].
        attention_mask: [B, T], 0 at padding, on either side: positions count from a row's first token.
        layers: which layers; all if None.

    Raises:
        InputError: for a layer outside the model, or ids that are no tensor of rows.
        UnsupportedModelError: for attention that never holds its probabilities, such as flash attention.
    """
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2:
        raise InputError("input_ids: give a tensor [B, T], such as tokenizer(text, return_tensors='pt').input_ids")
    n_layers = len(anatomy_of(model).layers)
    chosen = range(n_layers) if layers is None else layers
    patterns: dict[int, Tensor] = {}

    def keep(layer: int) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            # Without a cache there is no other tensor beside the output.
            held = [part for part in output[1:] if isinstance(part, Tensor)]
            if not held:
                raise UnsupportedModelError(
                    f"{type(module).__name__} does not give its probabilities: open the model with eager attention"
                )
            patterns[layer] = held[0].detach().cpu()

        return hook

    def ask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "output_attentions": True}

    _run(model, input_ids, attention_mask, anatomy_of(model).family.attention, {k: keep(k) for k in chosen}, ask)
    if attention_mask is not None:
        padding = attention_mask.cpu()[:, None, :, None] == 0
        patterns = {layer: pattern.masked_fill(padding, 0) for layer, pattern in patterns.items()}
    return patterns


def top_attended(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    heads: Sequence[Head],
    *,
    position: int = -1,
    k: int = 5,
) -> list[Attended]:
    """Return the k tokens that some heads look at most, head by head, at one token of a text.

    Args:
        model: a causal LM of a known family.
        tokenizer: its own.
        text: what is read.
        heads: layer and number of each.
        position: of the token that looks, from 0 as the tokenizer gives them or from -1 backwards.
        k: how many; all it sees, where they are fewer.

    Raises:
        InputError: for a layer or head outside the model, a token the text has not, a text of one token, or k below 1.
    """
    check_heads(model, heads)
    ids = tokenizer(text)["input_ids"]
    if k < 1:
        raise InputError(f"k is {k}: ask for at least one token")
    if not -len(ids) <= position < len(ids):
        raise InputError(f"{text!r} has no token {position}: it is {len(ids)} token{'s'[: len(ids) != 1]} long")
    check_looks_back(text, len(ids))
    position %= len(ids)
    patterns = attention_patterns(model, torch.tensor([ids]), layers=sorted({layer for layer, _ in heads}))
    found = []
    for layer, head in heads:
        top = patterns[layer][0, head, position, : position + 1].float().topk(min(k, position + 1))
        for rank, (value, at) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True), start=1):
            found.append(Attended(layer, head, position, rank, at, tokenizer.decode([ids[at]]), value))
    return found


def check_looks_back(text: str, n_tokens: int) -> None:
    """Refuse a text in which no token has another to look at.

    Raises:
        InputError: for a single token.
    """
    if n_tokens == 1:
        raise InputError(f"{text!r} is a single token, which can look at itself alone: give a longer text")


def head_outputs(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None = None, *, layers: Sequence[int]
) -> dict[int, Tensor]:
    """Return what the heads say, before the output projection: layer -> [B, T, H, W].

    Raises:
        InputError: for a layer outside the model.
    """
    outputs: dict[int, Tensor] = {}
    n_heads = model.config.num_attention_heads

    def keep(layer: int) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            outputs[layer] = layer_input(args, kwargs).detach().unflatten(-1, (n_heads, -1))

        return hook

    _run(model, input_ids, attention_mask, anatomy_of(model).parts.attention_out, {k: keep(k) for k in layers})
    return outputs


def induction_scores(model: PreTrainedModel, *, n_tokens: int = 50, n_sequences: int = 4, seed: int = 0) -> Tensor:
    """Return how much each head looks for what came after the present token before, [L, H] float32.

    The prefix matching score of Olsson et al. (2022): ``n_tokens`` random tokens, all different, are repeated once; the
    score is the mean probability a head gives, at the tokens of the repetition, to the token after the present one's
    first occurrence. 1 is a perfect induction head. A beginning-of-text token stands before, where the model has one.

    Args:
        model: a causal LM of a known family.
        n_tokens: tokens that are repeated.
        n_sequences: how many random sequences are averaged.
        seed: of the tokens.

    Raises:
        InputError: if fewer than two tokens or one sequence are asked for, or more tokens than the model knows.
    """
    config = model.config
    special = {config.bos_token_id, config.eos_token_id, config.pad_token_id} - {None}
    allowed = torch.tensor([token for token in range(config.vocab_size) if token not in special])
    if not 2 <= n_tokens <= len(allowed) or n_sequences < 1:
        raise InputError(
            f"{n_sequences} sequences of {n_tokens} tokens: give at least 1 sequence, and 2 to {len(allowed)} tokens"
        )
    generator = torch.Generator().manual_seed(seed)
    rows = [allowed[torch.randperm(len(allowed), generator=generator)[:n_tokens]] for _ in range(n_sequences)]
    ids = torch.stack(rows).repeat(1, 2)  # [B, 2 * n_tokens]
    first = 0 if config.bos_token_id is None else 1
    ids = torch.cat([torch.full((n_sequences, first), config.bos_token_id or 0), ids], dim=1)
    limit = longest_text(model)
    if ids.shape[1] > limit:
        raise InputError(f"n_tokens is {n_tokens}: twice that, and what opens a text, is above the model's {limit}")
    at = torch.arange(first + n_tokens, ids.shape[1])
    scores = []
    for row in ids:  # all layers of one sequence at a time: that is little to hold
        patterns = torch.cat(list(attention_patterns(model, row[None]).values()))  # [L, H, T, T]
        scores.append(patterns[:, :, at, at - n_tokens + 1].float().mean(dim=2))
    return torch.stack(scores).mean(dim=0)


def check_heads(model: PreTrainedModel, heads: Sequence[Head]) -> dict[int, list[int]]:
    """Return the heads of each layer that is named.

    Raises:
        InputError: for a layer or head outside the model, or none at all.
    """
    if not heads:
        raise InputError("heads is empty: name at least one, as (layer, head)")
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        check_index("layer", layer, len(anatomy_of(model).layers))
        check_index("head", head, model.config.num_attention_heads)
        by_layer.setdefault(layer, []).append(head)
    return by_layer


def _run(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    path: str,
    hooks: Mapping[int, Hook],
    before: Callable[..., Any] | None = None,
) -> None:
    """Run the model without its head, with hooks after (and one before) a module of some layers."""
    anatomy, device = anatomy_of(model), input_device(model)
    for layer in hooks:
        check_index("layer", layer, len(anatomy.layers))
    inputs = {"input_ids": input_ids.to(device)}
    if attention_mask is not None:
        inputs["attention_mask"] = attention_mask.to(device)
        if "position_ids" in signature(anatomy.trunk.forward).parameters:  # others find positions by the mask
            inputs["position_ids"] = position_ids(inputs["attention_mask"])
    with ExitStack() as stack, torch.no_grad(), evaluating(model):
        if before is not None:
            stack.enter_context(reporting_attention(model))
        for layer, hook in hooks.items():
            module = anatomy.layers[layer].get_submodule(path)
            if before is not None:
                stack.callback(module.register_forward_pre_hook(only_in_this_thread(before), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(only_in_this_thread(hook), with_kwargs=True).remove)
        anatomy.trunk(**inputs, use_cache=False)
