"""The public surgery calls, as functions and as methods attached to a model.

``forward_interpret``, ``generate_interpret`` and ``greedy_search_interpret`` take the arguments of the stock
call plus ``insert_info`` (see ``plan``). They run the stock code of transformers inside ``applied``, so they
support all its ways of decoding. The patched transformers calls these functions; ``attach`` binds them to a
model object without the patch.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from inspect import BoundArguments, signature
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, MaxLengthCriteria, PreTrainedModel, StoppingCriteriaList
from transformers.utils import ModelOutput

from interpret.activations._record import record
from interpret.anatomy import (
    GenerateSettings,
    anatomy_of,
    base_of,
    cache_of,
    check_cache,
    check_length,
    check_padding,
    check_same_rotation,
    describe_if_unknown,
    generating_by,
    past_length,
    tokens_of,
    uncompiled,
    unwrapped,
    unwrapping,
)
from interpret.errors import SpecError, UnsupportedModelError
from interpret.prompts.batches import ends_in_padding, left_padding_order, position_ids, token_columns, token_counts
from interpret.surgery.hooks import applied
from interpret.surgery.plan import plan_surgery

InsertInfo = Sequence[Mapping[Any, Any] | None]
Model = TypeVar("Model", bound=PreTrainedModel)
# Arguments of generate with one entry per column, besides the ids and the mask.
_ALIGNED = ("inputs_embeds", "token_type_ids", "position_ids")
# Arguments of greedy_search, in order. Those in _SETTINGS are settings of generate, the others are its arguments.
_SETTINGS = (
    "max_length", "pad_token_id", "eos_token_id", "output_attentions", "output_hidden_states", "output_scores",
    "return_dict_in_generate",
)  # fmt: skip
_GREEDY_ARGUMENTS = ("logits_processor", "stopping_criteria", *_SETTINGS, "synced_gpus", "streamer")


@unwrapping
def forward_interpret(
    model: PreTrainedModel,
    *args: Any,
    insert_info: InsertInfo | None = None,
    output_pre_mlp_states: bool = False,
    **kwargs: Any,
) -> Any:
    """Run the model's forward pass with surgery.

    Args:
        model: a causal LM of a supported family, or its base model.
        *args: as for the model's own forward.
        insert_info: one dict (or None) per sample; None runs the stock call. With ``past_key_values``,
            positions still count from the sample's first token, tokens in the cache are not edited again,
            and negative positions and positions of later chunks are refused. Without ``position_ids``, the tokens of
            each sample are numbered from 0, ignoring padding, as ``generate`` does.
        output_pre_mlp_states: also return the MLP's input and the residual stream before each MLP.
        **kwargs: as for the model's own forward. With ``output_hidden_states=True``, ``hidden_states[k]``
            shows the edited input of layer k; the last entry is the state after the final norm. (Mamba, Mamba 2 and
            FalconMamba collect the outputs of layers instead: entry k is the edited input of layer k + 1.)

    Returns:
        The output of the model's own forward. With ``output_pre_mlp_states``, a pair of that output and a list of L+1
        pairs ``(pre_mlp, residual)``, each [B, T, D]. Entry l belongs to layer l-1, with
        ``residual + mlp(pre_mlp) == hidden_states[l]`` for 0 < l < L if layer l itself is not edited; for entry L the
        sum is the state before the final norm; entry 0 is the input of layer 0 twice. Post-norm layers (OPT-350m)
        apply a norm to the sum, and Granite multiplies the output of ``mlp`` by a factor.

    Raises:
        InputError: if a sample has more tokens than the model reads, or needs other rotary embeddings than another.
        SpecError: if ``insert_info`` does not fit the model and the batch.
        UnsupportedModelError: if the model's family is not supported.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=4, n_layer=2, n_head=2))
    >>> info = [{1: ([0], torch.ones(1, 1, 4))}]
    >>> ids = torch.tensor([[3, 1, 4]])
    >>> forward_interpret(model, ids, insert_info=info, output_hidden_states=True).hidden_states[1][0, 0].tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    call = signature(model.forward).bind_partial(*args, **kwargs)
    prompt = _forward_prompt(call.arguments)
    if prompt is not None:
        _check_lengths(model, prompt)
    with ExitStack() as stack:
        if insert_info is not None:
            if prompt is None:
                raise SpecError("insert_info requires tokens to edit; pass input_ids or inputs_embeds")
            _check_mask(prompt, _columns_in_cache(call.arguments))
            stack.enter_context(_operate(model, insert_info, prompt))
            args, kwargs = _with_positions(call, prompt)
        if not output_pre_mlp_states:
            return model(*args, **kwargs)
        n_layers = len(anatomy_of(model).layers)
        names = [f"{site}.{layer}" for layer in range(n_layers) for site in ("mlp_in", "resid_mid")]
        seen = stack.enter_context(record(model, names))
        output = model(*args, **kwargs)
        around = [(seen[f"mlp_in.{layer}"], seen[f"resid_mid.{layer}"]) for layer in range(n_layers)]
        return output, [(seen["resid_pre.0"], seen["resid_pre.0"]), *around]


@unwrapping
def generate_interpret(
    model: PreTrainedModel,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    *args: Any,
    insert_info: InsertInfo | None = None,
    **kwargs: Any,
) -> Any:
    """Run the model's ``generate`` with surgery on the prompt.

    Every decoding mode of the installed transformers is supported: greedy, sampling, beam search, beam sampling and
    assisted generation (the assistant itself is not edited; in 4.34.0 only for prompts without padding), with any kind
    of cache; in 4.34.0 also group beam search, constrained beam search and contrastive search. Right-padded prompts are
    padded on the left for decoding. In the returned sequences they are right-padded as before, but hidden states and
    attentions are those of the left-padded prompts.

    Without edits, the result is that of ``generate`` for prompts padded on the left, also where it deviates from passes
    over the whole text: with a KV cache, transformers 4.34.0 ignores the window of Mistral's attention.
    ``use_cache=False`` heeds it.

    Args:
        model: a causal LM of a supported family.
        inputs: as for ``generate``.
        generation_config: as for ``generate``.
        *args: as for ``generate``.
        insert_info: one dict (or None) per prompt, for any number of beams or returned sequences; negative
            positions count from the prompt's end. None runs the stock call.
        **kwargs: as for ``generate``.

    Returns:
        The output of ``generate``.

    Raises:
        InputError: if a prompt, with ``max_new_tokens`` new tokens, exceeds the model's maximum length, or needs other
            rotary embeddings than another prompt.
        SpecError: if ``insert_info`` does not fit the model and the batch.
        UnsupportedModelError: if the model's family is not supported, or the decoding mode does not support
            surgery, or the model does not continue a text by its cache.
    """
    if insert_info is None:
        return model.generate(inputs, generation_config, *args, **kwargs)
    if inputs is None:
        inputs = kwargs.pop("input_ids", None)
    settings = GenerateSettings(model, generation_config, kwargs)
    prompt = _generate_prompt(inputs, settings, kwargs)
    _check_decoding(prompt, settings, kwargs)
    if settings["use_cache"] is not False:
        check_cache(model, min(token_counts(prompt.attention_mask)))
    _check_lengths(model, prompt, settings["max_new_tokens"] or 0)
    new_tokens = _new_tokens(prompt, settings)
    generation_config, more = uncompiled(model, generation_config)
    kwargs |= more
    if not ends_in_padding(prompt.attention_mask):
        with _operate(model, insert_info, prompt, new_tokens):
            return model.generate(inputs, generation_config, *args, **kwargs)
    moved, aligned = _padded_on_the_left(prompt, kwargs)
    ids = moved.tokens if moved.name == "input_ids" else inputs
    with _operate(model, insert_info, moved, new_tokens):
        output = model.generate(ids, generation_config, *args, **{**kwargs, **aligned})
    return _with_prompt_columns(output, prompt)


@unwrapping
def greedy_search_interpret(
    model: PreTrainedModel, input_ids: Tensor, *args: Any, insert_info: InsertInfo | None = None, **kwargs: Any
) -> Any:
    """Run the model's ``greedy_search`` with surgery on the prompt.

    In releases of transformers without ``greedy_search``, ``generate`` does the same. Right-padded prompts are padded
    on the left for decoding, as in ``generate_interpret``.

    Args:
        model: a causal LM of a supported family.
        input_ids: [B, T], the prompts; without an ``attention_mask``, every column counts as a token, as in
            ``greedy_search``.
        *args: as for ``greedy_search``.
        insert_info: one dict (or None) per prompt; None runs the stock call.
        **kwargs: as for ``greedy_search``.

    Returns:
        The output of ``greedy_search``.

    Raises:
        InputError: if a prompt has more tokens than the model reads, or needs other rotary embeddings than another.
        SpecError: if ``insert_info`` does not fit the model and the batch.
        UnsupportedModelError: if the model's family is not supported.
    """
    if insert_info is None:
        return _searched(model, input_ids, args, kwargs)
    mask = kwargs.get("attention_mask")
    prompt = _Prompt("input_ids", input_ids, torch.ones_like(input_ids) if mask is None else mask)
    _check_lengths(model, prompt)
    if not ends_in_padding(prompt.attention_mask):
        with _operate(model, insert_info, prompt):
            return _searched(model, input_ids, args, kwargs)
    moved, aligned = _padded_on_the_left(prompt, kwargs)
    with _operate(model, insert_info, moved):
        return _with_prompt_columns(_searched(model, moved.tokens, args, {**kwargs, **aligned}), prompt)


def _searched(model: PreTrainedModel, input_ids: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the model's ``greedy_search``, or do the same by ``generate`` where it no longer exists."""
    search = getattr(model, "greedy_search", None)
    if search is not None:
        return search(input_ids, *args, **kwargs)
    return _greedily(model, input_ids, {**dict(zip(_GREEDY_ARGUMENTS, args, strict=False)), **kwargs})


def _greedily(model: PreTrainedModel, input_ids: Tensor, arguments: dict[str, Any]) -> Any:
    """Emulate ``greedy_search`` by ``generate``: of the model's settings, only token ids and output flags apply."""
    criteria = arguments.pop("stopping_criteria", None) or ()
    own = {name: getattr(model.generation_config, name, None) for name in _SETTINGS[1:]}
    given = {name: arguments.pop(name, None) for name in _SETTINGS}
    limits = [one.max_length for one in criteria if isinstance(one, MaxLengthCriteria)]
    longest = min([*limits, *filter(None, [given.pop("max_length")])], default=sys.maxsize)
    settings = own | {name: value for name, value in given.items() if value is not None}
    config = GenerationConfig(max_length=longest, do_sample=False, num_beams=1, disable_compile=True, **settings)
    others = StoppingCriteriaList(one for one in criteria if not isinstance(one, MaxLengthCriteria))
    arguments.setdefault("attention_mask", torch.ones_like(input_ids))
    with generating_by(model, config):
        return model.generate(input_ids, stopping_criteria=others, **arguments)


def decoding_modes() -> list[str]:
    """Return the decoding modes of the installed transformers that support surgery."""
    modes = ["greedy", "sampling", "beam", "beam sampling"]
    if hasattr(GenerationMixin, "greedy_search"):
        return [*modes, "group beam", "constrained beam", "contrastive", "assisted (unpadded)"]
    return [*modes, "assisted", "prompt lookup", "with dynamic and static caches"]


def attach(model: Model) -> Model:
    """Add the surgery methods to one model object, without changing any file.

    Args:
        model: a causal LM of a supported family, or one whose row ``describe`` finds; its base model gets
            ``forward_interpret`` too.

    Returns:
        The same model. Attaching twice has no further effect; ``detach`` undoes it. If it is wrapped by
        ``torch.compile`` or PEFT, the methods are those of the model inside.

    Raises:
        UnsupportedModelError: if the model's family is not supported.
    """
    inside = unwrapped(model)
    refused = describe_if_unknown(inside)
    if refused is not None:
        raise refused
    anatomy_of(inside)
    for owner, methods in _owners(model):
        for method in methods:
            setattr(owner, method.__name__, MethodType(method, owner))
    return model


def detach(model: Model) -> Model:
    """Remove the methods added by ``attach`` and return the model; methods of a patched class remain."""
    for owner, methods in _owners(model):
        for method in methods:
            vars(owner).pop(method.__name__, None)
    return model


def _owners(model: PreTrainedModel) -> list[tuple[nn.Module, tuple[Any, ...]]]:
    """Return the modules to which ``attach`` adds methods, each with its methods."""
    inside = unwrapped(model)
    return [
        (base_of(inside), (forward_interpret,)),
        (inside, (forward_interpret, generate_interpret, greedy_search_interpret)),
    ]


@dataclass(frozen=True)
class _Prompt:
    """The tokens that a call receives, and their mask."""

    name: str
    """The argument that contains them: ``input_ids`` or ``inputs_embeds``."""
    tokens: Tensor
    """[B, T] ids or [B, T, D] embeddings."""
    attention_mask: Tensor
    """[B, T], or longer by the number of columns in the cache."""
    continues_cache: bool = False


def _operate(model: PreTrainedModel, insert_info: InsertInfo, prompt: _Prompt, new_tokens: int = 0) -> Any:
    """Check ``insert_info`` against the prompt and return the context manager that applies it."""
    anatomy = anatomy_of(model)
    mask = prompt.attention_mask
    counts = token_counts(mask)
    check_same_rotation(model, counts, new_tokens)
    check_padding(model, mask)
    plan = plan_surgery(
        insert_info,
        token_counts=counts,
        n_layers=len(anatomy.layers),
        width=anatomy.width,
        allow_negative_positions=not prompt.continues_cache,
    )
    return applied(anatomy, plan, token_columns(mask), model)


def _check_lengths(model: PreTrainedModel, prompt: _Prompt, new_tokens: int = 0) -> None:
    """Refuse samples that, with their new tokens, have more tokens than the model reads."""
    # Masks prepared by the caller, which only the stock call reads, do not show the lengths.
    if isinstance(prompt.attention_mask, Tensor) and prompt.attention_mask.dim() == 2:
        counts = token_counts(prompt.attention_mask)
        longest = max(range(len(counts)), key=counts.__getitem__)
        check_length(model, f"sample {longest}", counts[longest], new_tokens)


def _new_tokens(prompt: _Prompt, settings: GenerateSettings) -> int:
    """Return how many tokens ``generate`` writes at most."""
    given: int | None = settings["max_new_tokens"]
    if given is not None:
        return given
    limit: int = settings["max_length"] or 20  # the default of all releases
    return max(0, limit - (prompt.tokens.shape[1] if prompt.name == "input_ids" else 0))


def _with_positions(call: BoundArguments, prompt: _Prompt) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a forward pass with the positions of its tokens, counted without padding.

    By default, models with absolute positions, such as GPT-2, number the columns of the batch, so that a left-padded
    sample gets other states than alone; OPT derives its positions from the mask.
    """
    numbered = call.arguments.get("position_ids") is not None
    if "position_ids" in call.signature.parameters and not numbered and prompt.attention_mask.eq(0).any():
        call.arguments["position_ids"] = position_ids(prompt.attention_mask)[:, -prompt.tokens.shape[1] :]
    return call.args, call.kwargs


def _forward_prompt(arguments: Mapping[str, Any]) -> _Prompt | None:
    """Return the tokens and the mask of a forward pass from its arguments; None if it is given no tokens."""
    name = "input_ids" if arguments.get("input_ids") is not None else "inputs_embeds"
    tokens = tokens_of(arguments)
    if tokens is None:
        return None
    past = _columns_in_cache(arguments)
    mask = arguments.get("attention_mask")
    if mask is None:
        mask = torch.ones(tokens.shape[0], past + tokens.shape[1], dtype=torch.long)
    return _Prompt(name, tokens, mask, continues_cache=past > 0)


def _columns_in_cache(arguments: Mapping[str, Any]) -> int:
    """Return how many columns the cache of a call holds.

    Raises:
        SpecError: if it cannot be known.
    """
    past = past_length(cache_of(arguments))
    if past is None:
        raise SpecError(
            "insert_info cannot continue from this cache: it holds the states of recurrent layers, which do not tell "
            "how many tokens they have read; run the whole text, without the cache"
        )
    return past


def _check_mask(prompt: _Prompt, past: int) -> None:
    """Check that a mask has a column for every token, also for those in the cache."""
    mask, n_tokens = prompt.attention_mask, prompt.tokens.shape[1]
    if mask.dim() != 2:
        raise SpecError(f"attention_mask has the shape {list(mask.shape)}; surgery needs a mask of the shape [B, T]")
    if mask.shape[1] < past + n_tokens:
        raise SpecError(
            f"attention_mask has {mask.shape[1]} columns; it needs {past + n_tokens}: {past} for the cache and "
            f"{n_tokens} for this pass"
        )


def _generate_prompt(ids: Tensor | None, settings: GenerateSettings, kwargs: Mapping[str, Any]) -> _Prompt:
    """Return the prompts and their mask as ``generate`` will use them."""
    embeddings = kwargs.get("inputs_embeds")
    tokens = ids if embeddings is None else embeddings
    if tokens is None:
        raise SpecError("insert_info requires a prompt to edit; pass inputs, input_ids or inputs_embeds")
    mask = kwargs.get("attention_mask")
    if mask is None:
        mask = _inferred_mask(tokens, settings["pad_token_id"], settings["eos_token_id"])
    name = "input_ids" if embeddings is None else "inputs_embeds"
    return _Prompt(name, tokens, mask, continues_cache=_columns_in_cache(kwargs) > 0)


def _inferred_mask(tokens: Tensor, pad: int | None, eos: int | Sequence[int] | None) -> Tensor:
    """Return the mask that ``generate`` infers: padding ids are masked, unless they also are end-of-text ids."""
    ends = [eos] if isinstance(eos, int) else eos or ()
    if tokens.dim() == 2 and pad is not None and pad not in ends:
        return tokens.ne(pad).long()
    return torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)


def _check_decoding(prompt: _Prompt, settings: GenerateSettings, kwargs: Mapping[str, Any]) -> None:
    """Refuse decoding modes in which the model would run on tokens other than those in the prompt's columns."""
    drops_the_mask = hasattr(settings.model, "assisted_decoding")  # public only in 4.34.0
    if kwargs.get("assistant_model") is not None and drops_the_mask and prompt.attention_mask.eq(0).any():
        raise UnsupportedModelError(
            "assisted generation of transformers 4.34.0 drops the attention mask, so padded prompts cannot "
            "be edited; pass the prompt without padding"
        )
    if settings["guidance_scale"] not in (None, 1):
        raise UnsupportedModelError(
            "guidance_scale also runs the model on a negative prompt, which surgery would edit as if it were the "
            "prompt; leave out guidance_scale"
        )


def _padded_on_the_left(prompt: _Prompt, kwargs: Mapping[str, Any]) -> tuple[_Prompt, dict[str, Tensor]]:
    """Move padding to the left, in the prompt and in every argument with one entry per column."""
    if prompt.continues_cache:
        raise SpecError("right-padded prompts cannot continue from past_key_values; pad them on the left")
    order = left_padding_order(prompt.attention_mask)

    def moved(tensor: Tensor) -> Tensor:
        return tensor.gather(1, order[..., None].expand_as(tensor) if tensor.dim() == 3 else order)

    aligned = {name: moved(kwargs[name]) for name in _ALIGNED if kwargs.get(name) is not None}
    aligned["attention_mask"] = moved(prompt.attention_mask)
    return _Prompt(prompt.name, moved(prompt.tokens), aligned["attention_mask"]), aligned


def _with_prompt_columns(output: Any, prompt: _Prompt) -> Any:
    """Move prompts that were left-padded for decoding back to the caller's columns."""
    if prompt.name != "input_ids":  # the output then does not contain the prompt
        return output
    sequences = output.sequences if isinstance(output, ModelOutput) else output
    copies = len(sequences) // len(prompt.tokens)
    sequences[:, : prompt.tokens.shape[1]] = prompt.tokens.repeat_interleave(copies, dim=0)
    return output
