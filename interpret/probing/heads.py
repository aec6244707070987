"""Attention heads: what they attend to, their outputs, and their induction scores.

Attention probabilities are those of the model's own attention, with its masks, rotary embeddings and scales. Induction
scores follow Olsson et al. (2022), "In-context Learning and Induction Heads". Shapes: B batch rows, T tokens, L layers,
H heads, W width of a head.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations.edits import check_index
from interpret.anatomy import (
    anatomy_of,
    check_decoder_only,
    check_insides,
    check_length,
    check_padding,
    check_same_rotation,
    input_device,
    layer_input,
    longest_text,
    reporting_attention,
    text_config,
    unwrapping,
)
from interpret.anatomy.changes import Changes
from interpret.anatomy.passes import evaluating
from interpret.errors import InputError, UnsupportedModelError
from interpret.finite import left_out, top, warn
from interpret.probing.show import Attended, AttendedTokens
from interpret.prompts.batches import position_ids, token_counts
from interpret.prompts.encoding import encode
from interpret.prompts.selectors import indices

Head = tuple[int, int]
"""Layer and index of a (query) head."""
Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


@unwrapping
def attention_patterns(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    layers: str | int | Sequence[int] | None = None,
) -> dict[int, Tensor]:
    """Return the attention probabilities of each head: layer -> [B, H, T, T] on the CPU, ``[b, h, q, k]`` from q to k.

    Rows of tokens sum to 1, rows of padding are 0. q and k are columns, with padding: ``batches.token_columns`` maps
    the tokens of a prompt to columns. Only the chosen layers are kept in memory.

    Args:
        model: a causal LM of a supported family; dropout is off.
        input_ids: [B, T].
        attention_mask: [B, T], 0 at padding, on either side; position ids count from the first token of a row.
        layers: the layers: an index, a list, or a selector such as ``"0:20:5"`` or ``"all"``; all if None.

    Raises:
        InputError: for a layer outside the model, or if ``input_ids`` is not a tensor [B, T].
        UnsupportedModelError: if the attention does not return its probabilities, such as flash attention, or a layer
            has no attention.
    """
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2:
        raise InputError("input_ids: give a tensor [B, T], such as tokenizer(text, return_tensors='pt').input_ids")
    n_layers = len(anatomy_of(model).layers)
    chosen = indices("layer", layers, n_layers)
    patterns: dict[int, Tensor] = {}

    def keep(layer: int) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            # Without a KV cache, the only tensor besides the attention output is that of the probabilities.
            held = [part for part in output[1:] if isinstance(part, Tensor)]
            if not held:
                raise UnsupportedModelError(
                    f"{type(module).__name__} does not return its probabilities: open the model with eager attention"
                )
            patterns[layer] = held[0].detach().cpu()

        return hook

    def ask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "output_attentions": True}

    anatomy = anatomy_of(model)
    for layer in chosen:
        check_index("layer", layer, len(anatomy.layers))
    modules = {layer: anatomy.module(layer, "attn_in") for layer in chosen}
    _run(model, input_ids, attention_mask, modules, keep, ask)
    if attention_mask is not None:
        padding = attention_mask.cpu()[:, None, :, None] == 0
        patterns = {layer: pattern.masked_fill(padding, 0) for layer, pattern in patterns.items()}
    return patterns


@unwrapping
def top_attended(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    heads: Sequence[Head],
    *,
    position: int = -1,
    k: int = 5,
) -> AttendedTokens:
    """Return the k tokens that each given head attends to most, from one token of a text.

    Args:
        model: a causal LM of a supported family.
        tokenizer: the model's tokenizer.
        text: the text.
        heads: (layer, head) pairs.
        position: position of the token that attends; positions count from 0, special tokens included, or from -1
            backwards.
        k: number of tokens per head; all it can attend to, if there are fewer.

    Returns:
        Head by head in the given order, the highest probability first; those that are not finite last. The list shows
        itself.

    Raises:
        InputError: for a layer or head outside the model, a position outside the text, a text of one token, or k below
            1.
    """
    check_heads(model, heads)
    encoding = encode(tokenizer, text)
    ids, pieces = encoding.ids, encoding.pieces()
    if k < 1:
        raise InputError(f"k is {k}: ask for at least one token")
    if not -len(ids) <= position < len(ids):
        raise InputError(f"{text!r} has no token {position}: it is {len(ids)} token{'s'[: len(ids) != 1]} long")
    check_looks_back(text, len(ids))
    position %= len(ids)
    patterns = attention_patterns(model, torch.tensor([ids]), layers=sorted({layer for layer, _ in heads}))
    found = AttendedTokens()
    for layer, head in heads:
        values, places = top(patterns[layer][0, head, position, : position + 1].float(), min(k, position + 1))
        for rank, (value, at) in enumerate(zip(values.tolist(), places.tolist(), strict=True), start=1):
            found.append(Attended(layer, head, position, rank, at, pieces[at], value))
    warn(left_out([one.probability for one in found], "attention probabilities", "the ranks"))
    return found


def check_looks_back(text: str, n_tokens: int) -> None:
    """Check that a text has several tokens, so that a token can attend to another.

    Raises:
        InputError: if it is a single token.
    """
    if n_tokens == 1:
        raise InputError(f"{text!r} is a single token, which can attend only to itself: give a longer text")


def head_outputs(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None = None, *, layers: Sequence[int]
) -> dict[int, Tensor]:
    """Return the outputs of the heads before the output projection: layer -> [B, T, H, W].

    Raises:
        InputError: for a layer outside the model.
    """
    check_insides(model)
    outputs: dict[int, Tensor] = {}
    n_heads = text_config(model).num_attention_heads

    def keep(layer: int) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            outputs[layer] = layer_input(args, kwargs).detach().unflatten(-1, (n_heads, -1))

        return hook

    anatomy = anatomy_of(model)
    for layer in layers:
        check_index("layer", layer, len(anatomy.layers))
    modules = {layer: anatomy.layers[layer].get_submodule(anatomy.parts.attention_out) for layer in layers}
    _run(model, input_ids, attention_mask, modules, keep)
    return outputs


@unwrapping
def induction_scores(model: PreTrainedModel, *, n_tokens: int = 50, n_sequences: int = 4, seed: int = 0) -> Tensor:
    """Return the induction score of each head, [L, H] float32.

    This is the prefix matching score of Olsson et al. (2022): a sequence of ``n_tokens`` different random tokens is
    repeated once. The score is the mean attention probability from the tokens of the repetition to the token that
    follows the first occurrence of the same token. A perfect induction head scores 1. If the model has a
    beginning-of-text token, it precedes the sequence.

    Args:
        model: a causal LM of a supported family.
        n_tokens: number of tokens in the repeated sequence.
        n_sequences: number of random sequences to average over.
        seed: random seed of the tokens.

    Raises:
        InputError: if there are fewer than 2 tokens or no sequences, or more tokens than the vocabulary has or the
            model reads.
    """
    check_decoder_only(model)
    config = text_config(model)
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
        raise InputError(
            f"n_tokens is {n_tokens}: the repeated sequence has {ids.shape[1]} tokens; this model reads at most {limit}"
        )
    at = torch.arange(first + n_tokens, ids.shape[1])
    scores = []
    for row in ids:  # one sequence at a time, to save memory
        patterns = torch.cat(list(attention_patterns(model, row[None]).values()))  # [L, H, T, T]
        scores.append(patterns[:, :, at, at - n_tokens + 1].float().mean(dim=2))
    found = torch.stack(scores).mean(dim=0)
    warn(left_out(found, "induction scores", "rankings of heads"))
    return found


def check_heads(model: PreTrainedModel, heads: Sequence[Head]) -> dict[int, list[int]]:
    """Check that heads exist, and return them by layer.

    Raises:
        InputError: for a layer or head outside the model, or if there are no heads.
        UnsupportedModelError: if a layer has no attention.
    """
    if not heads:
        raise InputError("heads is empty: name at least one, as (layer, head)")
    by_layer: dict[int, list[int]] = {}
    anatomy = anatomy_of(model)
    for layer, head in heads:
        check_index("layer", layer, len(anatomy.layers))
        _ = anatomy.module(layer, "attn_in")
        check_index("head", head, text_config(model).num_attention_heads)
        by_layer.setdefault(layer, []).append(head)
    return by_layer


def _run(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    modules: Mapping[int, nn.Module],
    keep: Callable[[int], Hook],
    before: Callable[..., Any] | None = None,
) -> None:
    """Run the model without its unembedding, with a hook after (and one before) a module of some layers."""
    anatomy, device = anatomy_of(model), input_device(model)
    counts = [input_ids.shape[1]] * len(input_ids) if attention_mask is None else token_counts(attention_mask)
    check_length(model, "input_ids", max(counts, default=0))
    check_same_rotation(model, counts)
    inputs = {"input_ids": input_ids.to(device)}
    if attention_mask is not None:
        check_padding(model, attention_mask)
        inputs["attention_mask"] = attention_mask.to(device)
        if "position_ids" in signature(anatomy.trunk.forward).parameters:  # other models derive them from the mask
            inputs["position_ids"] = position_ids(inputs["attention_mask"])
    with ExitStack() as stack, torch.no_grad(), evaluating(model), Changes() as change, change:
        if before is not None:
            stack.enter_context(reporting_attention(model))
        for layer, module in modules.items():
            if before is not None:
                change.before(module, before)
            change.after(module, keep(layer), with_kwargs=True)
        anatomy.trunk(**inputs, use_cache=False)
