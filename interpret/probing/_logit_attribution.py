"""Direct logit attribution: decompose a logit into the contributions of heads and MLPs (Elhage et al., 2021).

Families that are described without their parts are decomposed into what each layer adds: attention (or what a layer has
in its place) and MLP.

A logit is a linear function of what the layers write to the residual stream, except for the norms in between. These are
linearised at the given run, with their scale fixed: for a residual stream x that is the sum of parts p,

    LayerNorm(x)      = weight * (x - mean(x)) / s + bias,  s = sqrt(variance(x) + eps)
    contribution of p = weight * (p - mean(p)) / s,         with the s of x

and similarly for RMSNorm, without the mean and with s = sqrt(mean(x ** 2) + eps). The decomposition is complete: the
contributions sum to the logit. The direction in the residual stream that a logit reads is propagated back from the
unembedding through the final norm; where norms follow each sum (OPT-350m) or each attention and MLP output (Gemma 2
and 3, OLMo 2), also through those. Gemma 2 caps its logits with tanh; there, the logit before the cap is decomposed.
Computed in float64, except for the direction that an unembedding with an adapter reads.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations.cache import ActivationCache
from interpret.activations.lookup import check_holds, columns_of, token_id
from interpret.anatomy import (
    Anatomy,
    anatomy_of,
    centres,
    check_head,
    check_insides,
    final_modules,
    logit_factor,
    norm_epsilon,
    norm_weight,
    residual_factor,
    unembedding_size,
    unwrapping,
)
from interpret.anatomy.passes import foreign_changes, grad_mode
from interpret.errors import InputError, UnsupportedModelError
from interpret.finite import left_out, warn
from interpret.probing._logit_lens import token_texts
from interpret.probing.show import LogitShareFrame
from interpret.prompts.spelling import piece

Share = tuple[str, int, int, Tensor]
"""Component, layer and head (-1 if there is none), and the contribution to the logits, [P]."""
_COMPONENTS = {"attn_out": "attention", "mixer_out": "mixer", "mlp_out": "mlp"}
"""The component that adds each site to the residual stream."""
LayerShares = Generator[Share, None, Tensor]


@unwrapping
def logit_attribution(
    model: PreTrainedModel,
    cache: ActivationCache,
    tokens: Sequence[int | str],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    positions: Sequence[int] | None = (-1,),
) -> LogitShareFrame:
    """Decompose the logit of one token per prompt into the contributions of all components of the model.

    Args:
        model: the causal LM that computed the cache; its unembedding may have an adapter, but not be quantised.
        cache: contains ``resid_pre.0``, ``heads.*``, ``mlp_out.*`` and the last ``resid_post``; if norms follow each
            sum (OPT-350m), also ``resid_pre.*``, ``attn_out.*`` and ``resid_mid.*``. Without parts, ``attn_out.*`` and
            ``mixer_out.*`` instead of ``heads.*``.
        tokens: one per prompt, the token whose logit is decomposed: an id, or the text of a single token.
        tokenizer: the model's tokenizer; needed if tokens are texts.
        positions: positions of each prompt at which to decompose, -1 for the last; None for all.

    Returns:
        One row per prompt, position and component, with the columns ``prompt``, ``position``, ``token_id``,
        ``component``, ``layer``, ``head`` (-1 if there is none) and ``logit``. Components are ``embedding`` (token and
        position), ``head``, ``attention_bias``, ``mlp`` (with its bias), ``norm_bias`` and ``output_bias``; without
        parts, ``attention`` or ``mixer`` (what a layer has in its place) instead of heads and their bias. The column
        ``logit`` sums to the model's logit for each prompt and position; summed by ``layer``, it gives the contribution
        of each layer. Contributions that are not finite are counted in a warning.

    Raises:
        InputError: if the cache lacks an activation, or tokens or positions do not fit.
        UnsupportedModelError: if a module between the last layer and the unembedding is not a norm or linear layer, a
            layer adds something that is not recorded, or the contributions do not sum to the logit; the message then
            gives both figures.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from interpret.activations.cache import activation_cache
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2))
    >>> cache = activation_cache(model, None, [[3, 1, 4]])
    >>> shares = logit_attribution(model, cache, [7])
    >>> bool(abs(shares.logit.sum() - cache["logits"][0, -1, 7].item()) < 1e-4)
    True
    """
    anatomy = anatomy_of(model)
    check_head(model)
    check_insides(model)
    if anatomy.block == "post_norm":
        _ = anatomy.parts  # the norms after the sums
    anatomy.check_added()
    check_holds(cache, *_needed(anatomy))
    if len(tokens) != len(cache.token_ids) or isinstance(tokens, str):
        raise InputError(f"tokens: give one for each of the {len(cache.token_ids)} prompts, not {len(tokens)}")
    head = model.get_output_embeddings()
    ids = [token_id(token, tokenizer, unembedding_size(model)[0]) for token in tokens]
    columns = [columns_of(cache, prompt, positions) for prompt in range(len(ids))]
    rows: list[dict[str, Any]] = []
    for prompt, (token, at) in enumerate(zip(ids, columns, strict=True)):
        # Read once for all layers: a cache in a folder reads from disk at every access.
        held = {name: cache[name][prompt, at] for name in _needed(anatomy)[0]}
        with grad_mode(False):
            shares = list(_shares(anatomy, head, logit_factor(model), token, held))
            _check_sum(model, shares, held[f"resid_post.{len(anatomy.layers) - 1}"], token)
        for component, layer, number, logits in shares:
            place = {"prompt": prompt, "token_id": token, "component": component, "layer": layer, "head": number}
            values = zip(at, logits.tolist(), strict=True)
            rows += [place | {"position": position, "logit": logit} for position, logit in values]
    frame = pd.DataFrame(rows)[["prompt", "position", "token_id", "component", "layer", "head", "logit"]]
    warn(left_out(frame["logit"], "contributions", "sums that ignore NaN"))
    found = LogitShareFrame(
        frame.sort_values(["prompt", "position", "layer", "head"], kind="stable", ignore_index=True)
    )
    found.prompts = token_texts(cache, tokenizer)
    found.answers = [str(token) if tokenizer is None else piece(tokenizer, token) for token in ids]
    return found


def needed_activations(model: PreTrainedModel) -> list[str]:
    """Return the names of the activations that ``logit_attribution`` needs in its cache.

    Raises:
        UnsupportedModelError: if the model's family is not supported.
    """
    return _needed(anatomy_of(model))[0]


def _needed(anatomy: Anatomy) -> tuple[list[str], list[str]]:
    """Return the names of the activations that are needed, and patterns that cover them."""
    last = len(anatomy.layers) - 1
    if anatomy.family.parts is None:
        sites = list(dict.fromkeys(site for layer in range(last + 1) for site in anatomy.added(layer)))
    else:
        more = ["resid_pre", "attn_out", "resid_mid"] if anatomy.block == "post_norm" else []
        sites = ["heads", "mlp_out", *more]
    names = [f"{site}.{layer}" for site in sites for layer in range(last + 1) if anatomy.has(layer, site)]
    return [*dict.fromkeys(["resid_pre.0", f"resid_post.{last}", *names])], [
        *(f"{site}.*" for site in sites),
        *([] if "resid_pre" in sites else ["resid_pre.0"]),
        f"resid_post.{last}",
    ]


def _shares(anatomy: Anatomy, head: Any, factor: float, token: int, held: dict[str, Tensor]) -> Iterator[Share]:
    """Yield all contributions to the logits of one token at P positions of a prompt, from the unembedding backwards."""
    stream = held[f"resid_post.{len(anatomy.layers) - 1}"]  # [P, D]
    passed = []
    for module in final_modules(anatomy):
        passed.append((module, stream))
        stream = _run(module, stream)
    reads, constant = _read_by(head, stream, token)
    reads = factor * reads.expand(stream.shape)  # [P, width]
    if constant is not None:
        yield "output_bias", -1, -1, factor * constant.expand(len(stream))
    for module, before in reversed(passed):
        reads, constant = _pulled_back(module, before, reads)
        yield "norm_bias", -1, -1, constant
    for layer in reversed(range(len(anatomy.layers))):
        if anatomy.family.parts is None:
            for site in reversed(anatomy.added(layer)):
                yield _COMPONENTS[site], layer, -1, (held[f"{site}.{layer}"].double() * reads).sum(-1)
        else:
            reads = yield from _layer_shares(anatomy, layer, held, reads)
    yield "embedding", -1, -1, (held["resid_pre.0"].double() * reads).sum(-1)


def _layer_shares(anatomy: Anatomy, layer: int, held: dict[str, Tensor], reads: Tensor) -> LayerShares:
    """Yield the contributions of one layer for a direction in its output, [P, D]; return the one in its input."""
    block, family = anatomy.layers[layer], anatomy.family
    post_norm = anatomy.block == "post_norm"
    mlp = held[f"mlp_out.{layer}"]
    if post_norm:
        before = held[f"resid_mid.{layer}"] + mlp
        reads, constant = _pulled_back(block.get_submodule(family.mlp_norm), before, reads)
        yield "norm_bias", layer, -1, constant
    yield "mlp", layer, -1, (mlp.double() * reads).sum(-1)
    if post_norm:
        before = held[f"resid_pre.{layer}"] + held[f"attn_out.{layer}"]
        reads, constant = _pulled_back(block.get_submodule(anatomy.parts.attention_norm), before, reads)
        yield "norm_bias", layer, -1, constant
    writes, bias = head_writes(block.get_submodule(anatomy.parts.attention_out), held[f"heads.{layer}"])
    by_heads = reads * residual_factor(anatomy)
    if anatomy.parts.attention_after:
        after, whole = block.get_submodule(anatomy.parts.attention_after), writes.sum(dim=1) + bias
        by_heads, _ = _pulled_back(after, whole, by_heads)
    yield "attention_bias", layer, -1, (bias.double() * by_heads).sum(-1)
    for number, write in enumerate(writes.double().unbind(dim=1)):
        yield "head", layer, number, (write * by_heads).sum(-1)
    return reads


def _run(module: nn.Module, states: Tensor) -> Tensor:
    """Return a module's output for states on the CPU, also on the CPU."""
    device = next((parameter.device for parameter in module.parameters()), states.device)
    output: Tensor = module(states.to(device))
    return output.cpu()


def _read_by(head: Any, stream: Tensor, token: int) -> tuple[Tensor, Tensor | None]:
    """Return the direction in the input of the unembedding that a token's logit reads, [width], and its bias, []."""
    if type(head) is nn.Linear and not foreign_changes(head):
        bias: Tensor | None = getattr(head, "bias", None)
        return head.weight[token].detach().cpu().double(), None if bias is None else bias[token].detach().cpu().double()
    # With an adapter or a hook, the unembedding is more than its weight; its derivative includes everything.
    device = next((parameter.device for parameter in head.parameters()), stream.device)
    with torch.inference_mode(False), torch.enable_grad():
        zero = torch.zeros(1, stream.shape[-1], dtype=stream.dtype, device=device, requires_grad=True)
        logit = head(zero)[0, token]
        (reads,) = torch.autograd.grad(logit, zero)
    return reads[0].cpu().double(), logit.detach().cpu().double()


def _check_sum(model: PreTrainedModel, shares: Sequence[Share], last: Tensor, token: int) -> None:
    """Check that the contributions to the logits of a token at P positions sum to the logits of the last states.

    Args:
        model: the model.
        shares: all contributions, [P] each.
        last: the last layer's output at these positions, [P, D].
        token: id of the token.

    Raises:
        UnsupportedModelError: if they do not.
    """
    for module in final_modules(anatomy_of(model)):
        last = _run(module, last)
    own = _run(model.get_output_embeddings(), last)[:, token].double() * logit_factor(model)  # [P]
    parts = torch.stack([share for *_, share in shares])  # [components, P]
    # Parts of half-precision states are rounded, and may be much larger than their sum.
    tolerance = 1e-3 if last.dtype in (torch.float32, torch.float64) else 0.05
    apart = (parts.sum(dim=0) - own).abs()
    if (apart > tolerance * parts.abs().sum(dim=0)).any():
        most = int(apart.argmax())
        raise UnsupportedModelError(
            f"{type(model).__name__}: the contributions to the logit of token {token} sum to "
            f"{parts[:, most].sum():.4g}, where the logit is {own[most]:.4g}: either the cache was computed while "
            "states were edited, or the model has a part that is not a component of this decomposition"
        )


def head_writes(project: nn.Module, heads: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each head writes to the residual stream, [P, H, D], and the bias of the projection, [D].

    Args:
        project: the output projection of the attention, of any type: it is called, its weights are not read.
        heads: the outputs of the heads, [P, H, W].
    """
    n_heads = heads.shape[1]
    # Not 0 * heads: a head that is not finite must not make the others NaN.
    others = ~torch.eye(n_heads, dtype=torch.bool)
    alone = heads[:, None].masked_fill(others[:, :, None], 0)  # [P, H, H, W]
    inputs = torch.cat([alone.flatten(0, 1).flatten(1), heads.new_zeros(1, heads[0].numel())])
    *writes, bias = project(inputs.to(next(project.parameters()).device)).cpu()
    return torch.stack(writes).unflatten(0, (-1, n_heads)) - bias, bias


def _pulled_back(module: Any, x: Tensor, reads: Tensor) -> tuple[Tensor, Tensor]:
    """Propagate a direction back through a norm or linear layer.

    Args:
        module: LayerNorm, RMSNorm or Linear.
        x: its input in the run, [P, D].
        reads: a direction in its output at each position, [P, width].

    Returns:
        The direction in its input, [P, D], and the contribution of its bias, [P].
    """
    bias: Tensor | None = getattr(module, "bias", None)
    constant = reads.new_zeros(len(reads)) if bias is None else reads @ bias.detach().cpu().double()
    if isinstance(module, nn.Linear):
        return reads @ module.weight.detach().cpu().double(), constant
    centred = centres(module)
    epsilon = norm_epsilon(module)
    if epsilon is None or not (centred or type(module).__name__.endswith("RMSNorm")):
        raise UnsupportedModelError(
            f"{type(module).__name__} before the unembedding is not a LayerNorm, RMSNorm or Linear"
        )
    weight = norm_weight(module, x)
    x = x.double()
    spread = x - x.mean(-1, keepdim=True) if centred else x
    reads = reads * weight / (spread.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()
    return reads - reads.mean(-1, keepdim=True) if centred else reads, constant
