"""Figures of activations and scores: attention, neurons, the residual stream, norms, and induction heads.

Each function returns a matplotlib figure and, if ``to`` is given, writes it as PNG or PDF. Layers are in the order of
the model, the first at the top or on the left. Signed values are white at 0, blue above and orange below; non-negative
values run from white to blue. Shapes: B prompts, T tokens, L layers, H heads.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations.cache import ActivationCache
from interpret.activations.edits import check_index
from interpret.activations.lookup import check_holds, columns_of
from interpret.anatomy import anatomy_of, unwrapping
from interpret.drawing.canvases import To, canvas, heatmap, layer_axis, line_canvas, thin_ticks, written
from interpret.drawing.palette import LINES
from interpret.drawing.panels import Sheet, shown, styled
from interpret.errors import InputError, UnsupportedModelError, unknown
from interpret.finite import descending, top
from interpret.prompts.spelling import piece
from interpret.stats import Floats


def attention_figure(
    patterns: Mapping[int, Tensor],
    layer: int,
    head: int,
    input_ids: Tensor,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    prompt: int = 0,
    to: To = None,
) -> Figure:
    """Draw what a head attends to: one row per query token, one column per key token; each row sums to 1.

    ::

        ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
        patterns = interpret.probing.attention_patterns(model, ids, layers=[3])
        figure = interpret.probing.attention_figure(patterns, 3, 0, ids, tokenizer, to="head.png")

    Args:
        patterns: attention probabilities by layer, as ``attention_patterns`` returns them.
        layer: layer of the head.
        head: index of the head.
        input_ids: [B, T], the token ids given to ``attention_patterns``.
        tokenizer: the model's tokenizer, for the labels; without it, labels are token ids.
        prompt: row of ``input_ids``.
        to: file to write, with the suffix ``.png`` or ``.pdf``.

    Raises:
        InputError: for a layer missing in ``patterns``, a head or prompt that does not exist, or an invalid suffix.
        RunError: if the file cannot be written.
    """
    if layer not in patterns:
        raise InputError(unknown("layer", layer, map(str, sorted(patterns))))
    check_index("prompt", prompt, len(input_ids))
    check_index("head", head, patterns[layer].shape[1])
    values = _seen_only(patterns[layer][prompt, head])
    labels = _token_labels(input_ids[prompt].tolist(), tokenizer)
    return _token_square(values, labels, "attention probability", f"Attention of layer {layer}, head {head}", to)


def query_key_figure(
    cache: ActivationCache,
    layer: int,
    head: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    prompt: int = 0,
    to: To = None,
) -> Figure:
    """Draw the dot products of a head's queries and keys, before rotary embedding, scaling and softmax.

    ::

        cache = interpret.activations.activation_cache(model, tokenizer, ["The capital of France is"], ["q.3", "k.3"])
        figure = interpret.probing.query_key_figure(cache, 3, 0, tokenizer, to="products.png")

    Args:
        cache: holds ``q`` and ``k`` of the layer.
        layer: layer of the head.
        head: index of the query head; with grouped-query attention, its keys are those of its group.
        tokenizer: the model's tokenizer, for the labels; without it, labels are token ids.
        prompt: index of the prompt in the cache.
        to: file to write, with the suffix ``.png`` or ``.pdf``.

    Raises:
        InputError: for a missing site in the cache, a head or prompt that does not exist, or an invalid file suffix.
        RunError: if the file cannot be written.
    """
    check_holds(cache, [f"q.{layer}", f"k.{layer}"], [f"q.{layer}", f"k.{layer}"])
    queries, keys = cache.of(f"q.{layer}", prompt).double(), cache.of(f"k.{layer}", prompt).double()  # [T, H or G, W]
    check_index("head", head, queries.shape[1])
    shared = queries.shape[1] // keys.shape[1]
    values = _seen_only(queries[:, head] @ keys[:, head // shared].T)
    labels = _token_labels(cache.token_ids[prompt], tokenizer)
    title = f"Queries times keys of layer {layer}, head {head}"
    return _token_square(values, labels, "q . k, as projected", title, to)


def neuron_figure(
    cache: ActivationCache,
    layer: int,
    neurons: Sequence[int] | int = 20,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    prompt: int = 0,
    to: To = None,
) -> Figure:
    """Draw the activations of MLP neurons of a layer: one row per token, one column per neuron.

    ::

        cache = interpret.activations.activation_cache(model, tokenizer, ["The capital of France is"], ["neurons.12"])
        figure = interpret.probing.neuron_figure(cache, 12, [5, 77, 1024], tokenizer, to="neurons.png")

    Args:
        cache: holds ``neurons`` of the layer.
        layer: the layer.
        neurons: indices of neurons; or a number n, for the n neurons with the largest absolute activation at any
            token, in descending order.
        tokenizer: the model's tokenizer, for the labels; without it, labels are token ids.
        prompt: index of the prompt in the cache.
        to: file to write, with the suffix ``.png`` or ``.pdf``.

    Raises:
        InputError: for a missing site in the cache, a neuron or prompt that does not exist, or an invalid file suffix.
        RunError: if the file cannot be written.
    """
    check_holds(cache, [f"neurons.{layer}"], [f"neurons.{layer}"])
    activations = cache.of(f"neurons.{layer}", prompt).double()  # [T, F]
    chosen = _chosen(activations, neurons, layer)
    rows, columns = _token_labels(cache.token_ids[prompt], tokenizer), [str(neuron) for neuron in chosen]
    with styled():
        figure, panel = canvas(rows, columns)
        heatmap(figure, panel, activations[:, chosen].numpy(), "activation", rows, columns)
        panel.set_xlabel("neuron")
        panel.set_title(f"MLP neurons of layer {layer}")
        return written(figure, to)


def trajectory_figure(
    cache: ActivationCache,
    features: Sequence[int],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    site: str = "resid_post",
    position: int = -1,
    prompt: int = 0,
    to: To = None,
) -> Figure:
    """Draw features over layers at one token, one line per feature.

    Feature i of the residual stream is the same dimension in every layer; neuron i is a different neuron in each.

    ::

        cache = interpret.activations.activation_cache(model, tokenizer, ["The capital of France is"], "resid_post.*")
        figure = interpret.probing.trajectory_figure(cache, [12, 300], tokenizer, to="trajectories.png")

    Args:
        cache: holds the site at some layers.
        features: up to 6 indices into the last dimension of the site.
        tokenizer: the model's tokenizer, for the title; without it, the title shows the token id.
        site: ``resid_post``, ``neurons`` or another site whose activations are [B, T, width].
        position: position of the token; -1 is the last.
        prompt: index of the prompt in the cache.
        to: file to write, with the suffix ``.png`` or ``.pdf``.

    Raises:
        InputError: for a missing site in the cache, a feature, position or prompt that does not exist, none or
            too many features, or an invalid file suffix.
        RunError: if the file cannot be written.
    """
    layers = _layers_of(cache, site)
    (column,) = columns_of(cache, prompt, [position])
    states = torch.stack([cache.of(f"{site}.{layer}", prompt)[column].double() for layer in layers])  # [L, width]
    if states.dim() != 2:
        raise InputError(
            f"{site} has a head dimension: give a site whose activations are [B, T, width], such as resid_post"
        )
    if not 0 < len(features) <= len(LINES):
        raise InputError(f"{len(features)} features: give 1 to {len(LINES)}, so that the lines can be distinguished")
    with styled():
        figure, panel = line_canvas(layers)
        for feature, (colour, dashes) in zip(features, LINES, strict=False):
            check_index("feature", feature, states.shape[1], site)
            panel.plot(layers, states[:, feature], color=colour, linestyle=dashes, linewidth=1.3, label=str(feature))
        panel.axhline(0, color="black", linewidth=0.5)
        panel.set_ylabel("activation")
        token = _token_labels(cache.token_ids[prompt], tokenizer)[column]
        panel.set_title(f'Features of {site} at token {column}, "{token.strip()}"')
        figure.legend(title="feature", loc="outside right center", frameon=False)
        return written(figure, to)


def residual_figure(
    cache: ActivationCache, tokenizer: PreTrainedTokenizerBase | None = None, *, prompt: int = 0, to: To = None
) -> Figure:
    """Draw the L2 norm of the residual stream after each layer at each token, on a logarithmic scale.

    ::

        cache = interpret.activations.activation_cache(model, tokenizer, ["The capital of France is"], "resid_post.*")
        figure = interpret.probing.residual_figure(cache, tokenizer, to="stream.png")

    Args:
        cache: holds ``resid_post`` of some layers.
        tokenizer: the model's tokenizer, for the labels; without it, labels are token ids.
        prompt: index of the prompt in the cache.
        to: file to write, with the suffix ``.png`` or ``.pdf``.

    Raises:
        InputError: for a missing site in the cache, a prompt that does not exist, or an invalid file suffix.
        RunError: if the file cannot be written.
    """
    layers = _layers_of(cache, "resid_post")
    norms = torch.stack([cache.of(f"resid_post.{layer}", prompt).double().norm(dim=-1) for layer in layers], dim=1)
    rows, columns = _token_labels(cache.token_ids[prompt], tokenizer), list(map(str, layers))
    with styled():
        figure, panel = canvas(rows, columns)
        heatmap(figure, panel, norms.numpy(), "L2 norm, logarithmic", rows, columns, logarithmic=True)
        thin_ticks(panel, columns)
        panel.set_xlabel("layer")
        panel.set_title("Residual stream after each layer")
        return written(figure, to)


@unwrapping
def norm_figure(model: PreTrainedModel, cache: ActivationCache, *, prompt: int = 0, to: To = None) -> Figure:
    """Draw the L2 norm of the input and output of both norms of each layer: median and range over tokens.

    ::

        names = ["resid_*", "attn_in.*", "attn_out.*", "mlp_in.*", "mlp_out.*"]
        cache = interpret.activations.activation_cache(model, tokenizer, ["The capital of France is"], names)
        figure = interpret.probing.norm_figure(model, cache, to="norms.png")

    Args:
        model: the model of the cache.
        cache: holds ``resid_pre``, ``attn_in``, ``resid_mid`` and ``mlp_in`` of every layer; for post-norm models
            (OPT-350m) ``resid_pre``, ``attn_out``, ``resid_mid``, ``mlp_out`` and ``resid_post``.
        prompt: index of the prompt in the cache.
        to: file to write, with the suffix ``.png`` or ``.pdf``.

    Raises:
        InputError: for a missing site in the cache, a prompt that does not exist, or an invalid file suffix.
        RunError: if the file cannot be written.
        UnsupportedModelError: for a model that normalises the outputs of attention and MLP before each sum (OLMo 2).
    """
    anatomy = anatomy_of(model)
    if anatomy.block == "sequential" and not anatomy.family.mlp_norm:
        raise UnsupportedModelError(
            f"norm_figure does not support {anatomy.family.name}: its norms apply to the outputs of attention and MLP, "
            "and the inputs of these norms are not sites of a cache"
        )
    layers = list(range(len(anatomy.layers)))
    # For each norm: title, the sites whose sum is its input, and the site of its output.
    norms = {
        "sequential": [("attention", ["resid_pre"], "attn_in"), ("MLP", ["resid_mid"], "mlp_in")],
        "parallel": [("attention", ["resid_pre"], "attn_in"), ("MLP", ["resid_pre"], "mlp_in")],
        "post_norm": [
            ("attention", ["resid_pre", "attn_out"], "resid_mid"),
            ("MLP", ["resid_mid", "mlp_out"], "resid_post"),
        ],
    }[anatomy.block]
    place = "after" if anatomy.block == "post_norm" else "before"
    sites = [site for _, before, after in norms for site in (*before, after)]
    check_holds(cache, [f"{site}.{layer}" for site in sites for layer in layers], [f"{site}.*" for site in sites])

    def lengths(sites: Sequence[str]) -> Floats:
        of_layers = [sum(cache.of(f"{site}.{layer}", prompt).double() for site in sites) for layer in layers]
        return torch.stack([torch.as_tensor(states).norm(dim=-1) for states in of_layers]).numpy()  # [L, T]

    with styled():
        figure = Sheet(figsize=(6.4, 3.0), layout="constrained")
        panels: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
        for panel, (part, before, after) in zip(panels, norms, strict=True):
            for label, values, (colour, dashes) in zip(
                ("input of the norm", "output of the norm"), (lengths(before), lengths([after])), LINES, strict=False
            ):
                known = [of_layer[np.isfinite(of_layer)] for of_layer in values]
                low, middle, high = (
                    [float(np.percentile(of_layer, share)) if of_layer.size else np.nan for of_layer in known]
                    for share in (0, 50, 100)
                )
                panel.plot(layers, middle, color=colour, linestyle=dashes, label=label)
                panel.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
            panel.set_title(f"Norm {place} the {part}")
            panel.set_yscale("log")
            layer_axis(panel, layers)
        panels[0].set_ylabel("L2 norm")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        figure.suptitle("Median over tokens; shaded: all tokens", fontsize=8)
        return written(figure, to)


def induction_figure(scores: Tensor, *, marked: int = 5, to: To = None) -> Figure:
    """Draw the prefix matching score of each head (induction heads), layers down and heads across.

    ::

        scores = interpret.probing.induction_scores(model)
        figure = interpret.probing.induction_figure(scores, to="induction.png")

    Args:
        scores: [L, H], as ``induction_scores`` returns them.
        marked: number of the highest scores to show as numbers.
        to: file to write, with the suffix ``.png`` or ``.pdf``.

    Raises:
        InputError: for scores of another shape, or an invalid file suffix.
        RunError: if the file cannot be written.
    """
    if scores.dim() != 2:
        raise InputError(f"scores have the shape {tuple(scores.shape)}: give [layers, heads], as induction_scores does")
    values = scores.double().cpu().numpy()
    rows, columns = ([str(number) for number in range(size)] for size in values.shape)
    with styled():
        figure, panel = canvas(rows, columns, cell=0.26)
        heatmap(figure, panel, values, "prefix matching score", rows, columns, reach=1.0)
        for flat in sorted(range(values.size), key=lambda flat: descending(float(values.flat[flat])))[:marked]:
            layer, head = divmod(int(flat), values.shape[1])
            colour = "white" if values[layer, head] > 0.6 else "black"
            text = f"{values[layer, head]:.2f}".removeprefix("0")
            panel.text(head, layer, text, ha="center", va="center", fontsize=6, color=colour)
        panel.set_xlabel("head")
        panel.set_ylabel("layer")
        panel.set_title("Induction heads")
        return written(figure, to)


def _chosen(activations: Tensor, neurons: Sequence[int] | int, layer: int) -> list[int]:
    """Return the given neurons, or the given number of neurons with the largest absolute activation, of [T, F]."""
    n_neurons = activations.shape[1]
    if isinstance(neurons, int):
        if not 1 <= neurons <= n_neurons:
            raise InputError(f"neurons is {neurons}: give a number from 1 to {n_neurons}, or a list of neurons")
        return top(activations.abs().amax(dim=0), neurons)[1].tolist()
    if not neurons:
        raise InputError("neurons is empty: give at least one neuron, or a number of neurons")
    for neuron in neurons:
        check_index("neuron", neuron, n_neurons, f"layer {layer}")
    return list(neurons)


def _layers_of(cache: ActivationCache, site: str) -> list[int]:
    """Return the layers of a site that a cache holds, in numeric order."""
    layers = sorted(int(name.partition(".")[2]) for name in cache if name.startswith(f"{site}."))
    if not layers:
        raise InputError(f'the cache holds no {site}: make it with names=["{site}.*"], or more')
    return layers


def _seen_only(square: Tensor) -> Floats:
    """Return [T, T] with NaN above the diagonal, where causal attention masks the keys."""
    hidden = torch.ones_like(square, dtype=torch.bool).triu(1)
    return square.double().masked_fill(hidden, torch.nan).numpy()


def _token_labels(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """Return labels of tokens: their texts, or their ids without a tokenizer."""
    return [str(token) if tokenizer is None else shown(piece(tokenizer, token)) for token in ids]


def _token_square(values: Floats, labels: Sequence[str], unit: str, title: str, to: To) -> Figure:
    """Draw [T, T] as a heatmap, query tokens down and key tokens across."""
    with styled():
        figure, panel = canvas(labels, labels)
        figure.set_figheight(figure.get_figheight() + 0.07 * max(map(len, labels)))
        heatmap(figure, panel, values, unit, labels, labels)
        panel.tick_params(axis="x", rotation=90)
        panel.set_xlabel("key token (attended to)")
        panel.set_ylabel("query token (attends)")
        panel.set_title(title)
        return written(figure, to)
