"""Figures of what ``interpret.probing`` reads off a model: attention, neurons, the residual stream, norms, induction.

Each function returns a figure of matplotlib and, where ``to`` names a file, writes it as PNG or PDF. Layers stand in
the order in which the model runs them, the first at the top or on the left. Numbers with a sign are white at 0, purple
above it and green below; sizes are white at 0, and purple. Shapes: B prompts, T tokens, L layers, H heads.
"""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations.cache import ActivationCache
from interpret.activations.edits import check_index
from interpret.activations.lookup import check_holds, columns_of
from interpret.anatomy import anatomy_of
from interpret.drawing.canvas import LINES, To, canvas, heatmap, layer_axis, line_canvas, thin_ticks, written
from interpret.drawing.panels import STYLE, shown
from interpret.errors import InputError, UnsupportedModelError, unknown
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
    """Draw whom a head looks at: a row for each token that looks, a column for each it sees; rows add up to 1.

    ::

        ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
        patterns = interpret.attention_patterns(model, ids, layers=[3])
        figure = interpret.attention_figure(patterns, 3, 0, ids, tokenizer, to="head.png")

    Args:
        patterns: what ``attention_patterns`` returned.
        layer: of the head.
        head: its number.
        input_ids: [B, T], what the patterns are of.
        tokenizer: the model's own, for the labels; without it they are token ids.
        prompt: row of ``input_ids``.
        to: a file to write, ending in ``.png`` or ``.pdf``.

    Raises:
        InputError: for a layer that was not read, a head or prompt that does not exist, or another ending.
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
    """Draw the products of a head's queries and keys, before positions, scale and softmax: what it looks for as such.

    ::

        cache = interpret.activation_cache(model, tokenizer, ["The capital of France is"], ["q.3", "k.3"])
        figure = interpret.query_key_figure(cache, 3, 0, tokenizer, to="products.png")

    Args:
        cache: holds ``q`` and ``k`` of the layer.
        layer: of the head.
        head: its number; heads that share keys each meet them with queries of their own.
        tokenizer: the model's own, for the labels; without it they are token ids.
        prompt: of the cache.
        to: a file to write, ending in ``.png`` or ``.pdf``.

    Raises:
        InputError: for a cache that lacks what is needed, a head or prompt that does not exist, or another ending.
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
    """Draw what MLP neurons of a layer say at each token of a prompt: a row a token, a column a neuron.

    ::

        cache = interpret.activation_cache(model, tokenizer, ["The capital of France is"], ["neurons.12"])
        figure = interpret.neuron_figure(cache, 12, [5, 77, 1024], tokenizer, to="neurons.png")

    Args:
        cache: holds ``neurons`` of the layer.
        layer: the layer.
        neurons: which; or how many, of those that say most at any token, the loudest first.
        tokenizer: the model's own, for the labels; without it they are token ids.
        prompt: of the cache.
        to: a file to write, ending in ``.png`` or ``.pdf``.

    Raises:
        InputError: for a cache that lacks what is needed, a neuron or prompt that does not exist, or another ending.
        RunError: if the file cannot be written.
    """
    check_holds(cache, [f"neurons.{layer}"], [f"neurons.{layer}"])
    said = cache.of(f"neurons.{layer}", prompt).double()  # [T, F]
    chosen = _chosen(said, neurons, layer)
    rows, columns = _token_labels(cache.token_ids[prompt], tokenizer), [str(neuron) for neuron in chosen]
    with matplotlib.rc_context(STYLE):
        figure, panel = canvas(rows, columns)
        heatmap(figure, panel, said[:, chosen].numpy(), "activation", rows, columns)
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
    """Draw how features go from layer to layer at one token, a line a feature.

    Feature i of the residual stream is the same in every layer; neuron i is another neuron in each.

    ::

        cache = interpret.activation_cache(model, tokenizer, ["The capital of France is"], "resid_post.*")
        figure = interpret.trajectory_figure(cache, [12, 300], tokenizer, to="trajectories.png")

    Args:
        cache: holds the site at some layers.
        features: numbers of up to 6 features: the last dimension of the site.
        tokenizer: the model's own, for the title; without it the token's id stands there.
        site: ``resid_post``, ``neurons`` or another whose activations are [B, T, width].
        position: of the token, -1 the last.
        prompt: of the cache.
        to: a file to write, ending in ``.png`` or ``.pdf``.

    Raises:
        InputError: for a cache that lacks what is needed, a feature, position or prompt that does not exist, none or
            too many features, or another ending.
        RunError: if the file cannot be written.
    """
    layers = _layers_of(cache, site)
    (column,) = columns_of(cache, prompt, [position])
    states = torch.stack([cache.of(f"{site}.{layer}", prompt)[column].double() for layer in layers])  # [L, width]
    if states.dim() != 2:
        raise InputError(f"{site} has heads: draw a site whose activations are [B, T, width], such as resid_post")
    if not 0 < len(features) <= len(LINES):
        raise InputError(f"{len(features)} features: give 1 to {len(LINES)}, which can be told apart")
    with matplotlib.rc_context(STYLE):
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
    """Draw how long the residual stream is after each layer at each token (L2 norm), on a logarithmic scale.

    ::

        cache = interpret.activation_cache(model, tokenizer, ["The capital of France is"], "resid_post.*")
        figure = interpret.residual_figure(cache, tokenizer, to="stream.png")

    Args:
        cache: holds ``resid_post`` of some layers.
        tokenizer: the model's own, for the labels; without it they are token ids.
        prompt: of the cache.
        to: a file to write, ending in ``.png`` or ``.pdf``.

    Raises:
        InputError: for a cache that lacks what is needed, a prompt that does not exist, or another ending.
        RunError: if the file cannot be written.
    """
    layers = _layers_of(cache, "resid_post")
    norms = torch.stack([cache.of(f"resid_post.{layer}", prompt).double().norm(dim=-1) for layer in layers], dim=1)
    rows, columns = _token_labels(cache.token_ids[prompt], tokenizer), list(map(str, layers))
    with matplotlib.rc_context(STYLE):
        figure, panel = canvas(rows, columns)
        heatmap(figure, panel, norms.numpy(), "L2 norm, logarithmic", rows, columns, logarithmic=True)
        thin_ticks(panel, columns)
        panel.set_xlabel("layer")
        panel.set_title("Residual stream after each layer")
        return written(figure, to)


def norm_figure(model: PreTrainedModel, cache: ActivationCache, *, prompt: int = 0, to: To = None) -> Figure:
    """Draw what the two norms of each layer do to the length (L2) of what passes: medians over tokens, and ranges.

    ::

        names = ["resid_*", "attn_in.*", "attn_out.*", "mlp_in.*", "mlp_out.*"]
        cache = interpret.activation_cache(model, tokenizer, ["The capital of France is"], names)
        figure = interpret.norm_figure(model, cache, to="norms.png")

    Args:
        model: what the cache is of.
        cache: holds ``resid_pre``, ``attn_in``, ``resid_mid`` and ``mlp_in`` of every layer; where norms stand after
            each sum (OPT-350m) ``resid_pre``, ``attn_out``, ``resid_mid``, ``mlp_out`` and ``resid_post``.
        prompt: of the cache.
        to: a file to write, ending in ``.png`` or ``.pdf``.

    Raises:
        InputError: for a cache that lacks what is needed, a prompt that does not exist, or another ending.
        RunError: if the file cannot be written.
        UnsupportedModelError: for a model whose norms stand behind attention and MLP, before each sum (OLMo 2).
    """
    anatomy = anatomy_of(model)
    if anatomy.block == "sequential" and not anatomy.family.mlp_norm:
        raise UnsupportedModelError(
            f"{anatomy.family.name} has no norms before attention and MLP, only of what they give before it joins the "
            "residual stream; what enters those is no site of a cache, so norm_figure cannot draw them"
        )
    layers = list(range(len(anatomy.layers)))
    # Title, the sites whose sum enters the norm, and the site it gives.
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

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.0), layout="constrained")
        panels: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
        for panel, (part, before, after) in zip(panels, norms, strict=True):
            for label, values, (colour, dashes) in zip(
                ("enters the norm", "leaves it"), (lengths(before), lengths([after])), LINES, strict=False
            ):
                panel.plot(layers, np.median(values, axis=1), color=colour, linestyle=dashes, label=label)
                panel.fill_between(
                    layers, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.15, linewidth=0
                )
            panel.set_title(f"Norm {place} the {part}")
            panel.set_yscale("log")
            layer_axis(panel, layers)
        panels[0].set_ylabel("L2 norm")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        figure.suptitle("Median over tokens; shaded: all tokens", fontsize=8)
        return written(figure, to)


def induction_figure(scores: Tensor, *, marked: int = 5, to: To = None) -> Figure:
    """Draw how much each head looks for what came after the present token before, layers down and heads across.

    ::

        scores = interpret.induction_scores(model)
        figure = interpret.induction_figure(scores, to="induction.png")

    Args:
        scores: [L, H], what ``induction_scores`` returned.
        marked: how many of the highest to write in as numbers.
        to: a file to write, ending in ``.png`` or ``.pdf``.

    Raises:
        InputError: for scores of another shape, or another ending.
        RunError: if the file cannot be written.
    """
    if scores.dim() != 2:
        raise InputError(f"scores have the shape {tuple(scores.shape)}: give [layers, heads], as induction_scores does")
    values = scores.double().cpu().numpy()
    rows, columns = ([str(number) for number in range(size)] for size in values.shape)
    with matplotlib.rc_context(STYLE):
        figure, panel = canvas(rows, columns, cell=0.26)
        heatmap(figure, panel, values, "prefix matching score", rows, columns, reach=1.0)
        for flat in values.argsort(axis=None)[::-1][:marked]:
            layer, head = divmod(int(flat), values.shape[1])
            colour = "white" if values[layer, head] > 0.6 else "black"
            text = f"{values[layer, head]:.2f}".removeprefix("0")
            panel.text(head, layer, text, ha="center", va="center", fontsize=6, color=colour)
        panel.set_xlabel("head")
        panel.set_ylabel("layer")
        panel.set_title("Induction heads")
        return written(figure, to)


def _chosen(said: Tensor, neurons: Sequence[int] | int, layer: int) -> list[int]:
    """Return the neurons that are named, or so many of those that say most, of [T, F]."""
    n_neurons = said.shape[1]
    if isinstance(neurons, int):
        if not 1 <= neurons <= n_neurons:
            raise InputError(f"neurons is {neurons}: give how many, 1 to {n_neurons}, or a list of which")
        return said.abs().amax(dim=0).topk(neurons).indices.tolist()
    if not neurons:
        raise InputError("neurons is empty: name at least one, or say how many")
    for neuron in neurons:
        check_index("neuron", neuron, n_neurons, f"layer {layer}")
    return list(neurons)


def _layers_of(cache: ActivationCache, site: str) -> list[int]:
    """Return the layers of a site that a cache holds, 2 before 10."""
    layers = sorted(int(name.partition(".")[2]) for name in cache if name.startswith(f"{site}."))
    if not layers:
        raise InputError(f'the cache holds no {site}: make it with names=["{site}.*"], or more')
    return layers


def _seen_only(square: Tensor) -> Floats:
    """Return [T, T] with no number where a token does not see another."""
    hidden = torch.ones_like(square, dtype=torch.bool).triu(1)
    return square.double().masked_fill(hidden, torch.nan).numpy()


def _token_labels(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """Return tokens as figures can show them."""
    return [str(token) if tokenizer is None else shown(tokenizer.decode([token])) for token in ids]


def _token_square(values: Floats, labels: Sequence[str], unit: str, title: str, to: To) -> Figure:
    """Draw [T, T], the tokens that look down, those they see across."""
    with matplotlib.rc_context(STYLE):
        figure, panel = canvas(labels, labels)
        figure.set_figheight(figure.get_figheight() + 0.07 * max(map(len, labels)))
        heatmap(figure, panel, values, unit, labels, labels)
        panel.tick_params(axis="x", rotation=90)
        panel.set_xlabel("token that is seen")
        panel.set_ylabel("token that looks")
        panel.set_title(title)
        return written(figure, to)
