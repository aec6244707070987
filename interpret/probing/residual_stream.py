"""Measure how layers, and their attention and MLP, change the residual stream."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from interpret.activations.cache import ActivationCache
from interpret.activations.lookup import check_holds, columns_of
from interpret.anatomy import anatomy_of, unwrapping

_PARTS = ("resid_pre", "attn_out", "mixer_out", "mlp_out")


@unwrapping
def residual_decomposition(
    model: PreTrainedModel, cache: ActivationCache, *, positions: Sequence[int] | None = (-1,)
) -> pd.DataFrame:
    """Decompose the output of each layer into its input and what it adds: by attention, or in its place, and MLP.

    Args:
        model: the model that computed the cache.
        cache: contains ``resid_pre.*``, ``attn_out.*``, ``mixer_out.*``, ``mlp_out.*`` and ``resid_post.*``, those that
            the layers have.
        positions: positions of each prompt at which to read, -1 for the last; None for all.

    Returns:
        One row per prompt, position, layer and part, with the columns ``prompt``, ``position``, ``layer``, ``part``,
        ``norm`` (L2 norm of the part), ``cosine`` (with the layer's output) and ``share`` (projection of the part on
        the output, divided by the output's norm: the shares of a layer sum to 1). Parts are ``resid_pre``,
        ``attn_out`` or ``mixer_out``, ``mlp_out`` and ``rest``, the change made by norms after the sums (OPT-350m) and
        by MLPs that no single module writes; in other models, ``rest`` is 0 up to rounding.

    Raises:
        InputError: if the cache lacks an activation, or a position does not exist.
    """
    rows = []
    for place, held in _places(model, cache, (*_PARTS, "resid_post"), positions):
        after = held["resid_post"]
        parts = {name: held[name] for name in _PARTS if name in held}
        parts["rest"] = after - sum(parts.values())
        for name, part in parts.items():
            share = (part @ after / (after @ after)).item()
            size = {"norm": part.norm().item(), "cosine": _cosine(part, after), "share": share}
            rows.append(place | {"part": name} | size)
    return pd.DataFrame(rows)


@unwrapping
def residual_movement(
    model: PreTrainedModel, cache: ActivationCache, *, positions: Sequence[int] | None = (-1,)
) -> pd.DataFrame:
    """Measure how far each layer moves the residual stream.

    Args:
        model: the model that computed the cache.
        cache: contains ``resid_pre.*`` and ``resid_post.*``.
        positions: positions of each prompt at which to read, -1 for the last; None for all.

    Returns:
        One row per prompt, position and layer, with the columns ``prompt``, ``position``, ``layer``, ``before`` and
        ``after`` (L2 norms of the stream), ``moved`` (norm of the difference, divided by ``before``) and ``cosine``
        (between the stream before and after).

    Raises:
        InputError: if the cache lacks an activation, or a position does not exist.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from interpret.activations.cache import activation_cache
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2))
    >>> cache = activation_cache(model, None, [[3, 1, 4]])
    >>> residual_movement(model, cache).columns.tolist()
    ['prompt', 'position', 'layer', 'before', 'after', 'moved', 'cosine']
    """
    rows = []
    for place, held in _places(model, cache, ("resid_pre", "resid_post"), positions):
        before, after = held["resid_pre"], held["resid_post"]
        moved = ((after - before).norm() / before.norm()).item()
        sizes = {"before": before.norm().item(), "after": after.norm().item(), "moved": moved}
        rows.append(place | sizes | {"cosine": _cosine(before, after)})
    return pd.DataFrame(rows)


def _places(
    model: PreTrainedModel, cache: ActivationCache, sites: Sequence[str], positions: Sequence[int] | None
) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Yield each prompt, position and layer, in this order, with its activations [D] in float64."""
    anatomy = anatomy_of(model)
    n_layers = len(anatomy.layers)
    of_layer = [[site for site in sites if anatomy.has(layer, site)] for layer in range(n_layers)]
    names = [f"{site}.{layer}" for layer, some in enumerate(of_layer) for site in some]
    check_holds(cache, names, [f"{site}.*" for site in sites if any(site in some for some in of_layer)])
    columns = [columns_of(cache, prompt, positions) for prompt in range(len(cache.token_ids))]
    held = {name: cache[name] for name in names}
    for prompt, at in enumerate(columns):
        for position in at:
            for layer in range(n_layers):
                place = {"prompt": prompt, "position": position, "layer": layer}
                yield place, {site: held[f"{site}.{layer}"][prompt, position].double() for site in of_layer[layer]}


def _cosine(a: Tensor, b: Tensor) -> float:
    return cosine_similarity(a, b, dim=0).item()
