"""Gradient methods on activations inside the model: outputs of layers, of their attention and of their MLP.

All sites of all layers come from one forward pass of a text if the method allows it. Only activations of the text's
own pass are attributed: a foil that is predicted from its own text is a constant once the two texts differ.
Names are those of ``activations``; shapes are those of ``steps``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.activations._record import Site
from interpret.anatomy import Anatomy, anatomy_of, check_parts
from interpret.anatomy.changes import Changes
from interpret.attribution.methods.gradients import check_count, derivatives, quadrature, rescaled
from interpret.attribution.steps.fitting import at_once, in_parts
from interpret.attribution.steps.step import Baseline, Step, head, hidden_states
from interpret.errors import InputError, unknown
from interpret.prompts.selectors import select

LAYER_SITES: tuple[Site, ...] = ("resid_post", "attn_out", "mlp_out")
Write = Callable[[Tensor], Tensor]
"""Takes an activation, [B, T, D], and returns the value the model continues with."""


def layer_names(model: PreTrainedModel, layers: Sequence[int | str] | str | int | None) -> list[str]:
    """Return the names of the selected activations.

    Args:
        model: a causal LM of a supported family.
        layers: names such as ``"mlp_out.3"``; a site without a layer, such as ``"mlp_out"``, selects all layers, and a
            number all sites of that layer; negative numbers count from the last layer. A text may also be a list or a
            selector, as for the command: ``"mlp_out,3"``, ``"0:20:5"``. None and ``"all"`` select everything.

    Raises:
        InputError: for an activation or layer that does not exist, or a module of the model.
    """
    n_layers = len(anatomy_of(model).layers)
    every = [f"{site}.{layer}" for layer in range(n_layers) for site in LAYER_SITES]
    if layers is None:
        return every
    chosen: list[str] = []
    for one in _listed(model, layers):
        wanted = str(one % n_layers if isinstance(one, int) and -n_layers <= one < 0 else one)
        found = [name for name in every if wanted in (name, *name.split("."))]
        site, _, layer = wanted.rpartition(".")
        if not found and layer.removeprefix("-").isdigit() and site in ("", *LAYER_SITES):
            raise InputError(f"layer {layer} does not exist; this model has layers 0 to {n_layers - 1}")
        if not found:
            raise InputError(
                f"{unknown('activation', one, LAYER_SITES)}, each for all layers, "
                f"or with a layer, as '{LAYER_SITES[0]}.{n_layers - 1}'"
            )
        chosen += found
    if not chosen:
        raise InputError("layers is empty; leave it out for all layers")
    return list(dict.fromkeys(chosen))


def _listed(model: PreTrainedModel, layers: Sequence[int | str] | str | int) -> list[int | str]:
    """Return the entries of a choice of layers; selectors are replaced by the numbers they select."""
    entries: list[Any] = list(layers) if isinstance(layers, (list, tuple, range)) else [layers]
    found: list[int | str] = []
    for entry in entries:
        if not isinstance(entry, (str, int)):
            raise InputError(f"layers: a {type(entry).__name__} is not a layer; {_name_of(model, entry)}")
        for part in entry.split(",") if isinstance(entry, str) else [entry]:
            word = part.strip() if isinstance(part, str) else ""
            if word == "all" or ":" in word or word.startswith("-"):
                found += select("layer", word, len(anatomy_of(model).layers))
            else:
                found.append(word or part)
    return found


def _name_of(model: PreTrainedModel, module: object) -> str:
    """Return the advice to name an activation, with the name of a module's output if it has one."""
    anatomy = anatomy_of(model)
    for layer in range(len(anatomy.layers)):
        for site in LAYER_SITES:
            if _module(anatomy, f"{site}.{layer}") is module:
                return f"the output of this module has the name '{site}.{layer}'"
    return f"give numbers, or names of activations such as '{LAYER_SITES[0]}.0': {', '.join(LAYER_SITES)}"


def layer_gradient_x_activation(steps: Sequence[Step], names: Sequence[str]) -> list[dict[str, Tensor]]:
    """Return activation times gradient; all activations of a step come from one backward pass.

    Shrikumar et al. 2016 (arXiv:1605.01713), at hidden layers. The steps of a text share one forward pass, because a
    token does not attend to later ones.

    Args:
        steps: steps of one text, in order; the tokens of each step begin with those of the step before.
        names: activation names.

    Returns:
        For each step a dict: activation name -> scores, [T, D].
    """
    return at_once(steps[-1], lambda: _activations_and_gradients(steps, names))


def _activations_and_gradients(steps: Sequence[Step], names: Sequence[str]) -> list[dict[str, Tensor]]:
    model, embeddings = steps[-1].model, steps[-1].embeddings.clone().requires_grad_()
    with recording(model, names, 1) as seen:
        states = hidden_states(model, embeddings)
    found = []
    for step in steps:
        n_tokens = len(step.ids)
        value = step.read(head(model, states[:, n_tokens - 1]), embeddings[:, :n_tokens])
        at = derivatives(value.sum(), [seen[name] for name in names], again=step is not steps[-1])
        pairs = zip(names, at, strict=True)
        found.append({name: (seen[name].detach() * one)[0, :n_tokens] for name, one in pairs})
    return found


def layer_integrated_gradients(
    steps: Sequence[Step], names: Sequence[str], *, n_steps: int = 50, baseline: Baseline = "zero"
) -> list[dict[str, Tensor]]:
    """Return integrated gradients of activations, from their value on a baseline text to their value on the text.

    Sundararajan et al. 2017 (arXiv:1703.01365), equation 1, with an activation as the input, by Gauss-Legendre
    quadrature. All other activations are computed from that activation and the text.

    Args:
        steps: steps of one text.
        names: activation names; each needs separate passes.
        n_steps: number of points on the path.
        baseline: the text at the start of the path, see ``Step.baseline``.

    Returns:
        For each step a dict: activation name -> scores, [T, D].

    Raises:
        InputError: for ``n_steps`` below 1, or an unknown baseline.
    """
    check_count("n_steps", n_steps)
    return [_integrated(step, names, n_steps, step.baseline(baseline)) for step in steps]


def _integrated(step: Step, names: Sequence[str], n_steps: int, baseline: Tensor) -> dict[str, Tensor]:
    with torch.no_grad(), recording(step.model, names, 2) as seen:
        step.logits(torch.cat([step.embeddings, baseline]))
    found = {}
    for name in names:
        x, start = seen[name]
        total: Tensor | float = 0.0
        for shares, weights in quadrature(n_steps, step.batch_size, x):
            points = (start + shares * (x - start)).to(x)
            total += (weights * in_parts(step, points, partial(_gradient_at, step, name))).sum(0)
        found[name] = (x - start) * total
    return found


def _gradient_at(step: Step, name: str, points: Tensor) -> Tensor:
    """Return the derivative of a step's value with respect to an activation, at given values of it, [B, T, D]."""
    points, embeddings = points.detach().requires_grad_(), step.embeddings.expand(len(points), -1, -1)
    tap: dict[str, Write] = {name: lambda _: points}
    with tapping(step.model, tap, len(points)):
        logits = step.logits(embeddings)
    value = step.read(logits, embeddings).sum()
    with tapping(step.model, tap, len(points)):  # for layers that checkpointing runs again
        return derivatives(value, [points])[0]


def layer_deeplift(
    steps: Sequence[Step], names: Sequence[str], *, baseline: Baseline = "zero"
) -> list[dict[str, Tensor]]:
    """Return DeepLIFT's contributions of activations, all of a step from one pass; see ``gradients.deeplift``.

    Args:
        steps: steps of one text.
        names: activation names.
        baseline: the reference with which the text is compared, see ``Step.baseline``.

    Returns:
        For each step a dict: activation name -> scores, [T, D].

    Raises:
        InputError: for an unknown baseline.
    """
    return [at_once(step, partial(_deeplifted, step, names, step.baseline(baseline))) for step in steps]


def _deeplifted(step: Step, names: Sequence[str], baseline: Tensor) -> dict[str, Tensor]:
    both = torch.cat([step.embeddings, baseline]).requires_grad_()  # [2, T, D]
    with rescaled(step.model):
        with recording(step.model, names, 2) as seen:
            logits = step.logits(both)
        at = derivatives(step.read(logits, both)[0], [seen[name] for name in names])
    pairs = zip(names, at, strict=True)
    return {name: (seen[name][0] - seen[name][1]).detach() * one[0] for name, one in pairs}


@contextmanager
def recording(model: PreTrainedModel, names: Sequence[str], n_rows: int) -> Iterator[dict[str, Tensor]]:
    """Record activations, [B, T, D], with their graph, in the pass this thread runs inside the ``with`` block."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Write:
        return lambda value: seen.setdefault(name, value)

    with tapping(model, {name: keep(name) for name in names}, n_rows):
        yield seen


@contextmanager
def tapping(model: PreTrainedModel, taps: Mapping[str, Write], n_rows: int) -> Iterator[None]:
    """Let functions read and replace activations in the passes this thread runs inside the ``with`` block.

    An activation of ``activations.record`` may be a view outside the graph (OPT's MLP works on [B * T, D]). Here the
    model continues with the tensor the function returns, so that its derivative exists.
    """
    anatomy = anatomy_of(model)
    if any(not name.startswith("resid_post") for name in taps):
        check_parts(model)
    with Changes() as change, change:
        for name, tap in taps.items():
            change.after(_module(anatomy, name), _hook(tap, n_rows))
        yield


def _module(anatomy: Anatomy, name: str) -> nn.Module:
    """Return the module whose output an activation is."""
    site, _, layer = name.partition(".")
    block, family = anatomy.layers[int(layer)], anatomy.family
    paths = {"resid_post": "", "attn_out": family.attention_output, "mlp_out": family.mlp_last}
    return block.get_submodule(paths[site])


def _hook(tap: Write, n_rows: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        new = tap(value.view(n_rows, -1, value.shape[-1])).view(value.shape)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return hook
