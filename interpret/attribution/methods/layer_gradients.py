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
from interpret.anatomy.passes import grad_mode
from interpret.attribution.methods.gradients import check_count, quadrature, rescale_rule
from interpret.attribution.steps.derivatives import PLAIN, Rule, WayBack, derivatives, groups, sides
from interpret.attribution.steps.fitting import at_once, summed
from interpret.attribution.steps.step import Baseline, Step
from interpret.engine.pullback import DifferentiableRun, run_layers
from interpret.errors import InputError, unknown
from interpret.prompts.selectors import select

LAYER_SITES: tuple[Site, ...] = ("resid_post", "attn_out", "mixer_out", "mlp_out")
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
        UnsupportedModelError: for an activation that a layer does not have, as attention in Mamba.
    """
    anatomy = anatomy_of(model)
    n_layers = len(anatomy.layers)
    every = [f"{site}.{layer}" for layer in range(n_layers) for site in LAYER_SITES if anatomy.has(layer, site)]
    if layers is None:
        return every
    chosen: list[str] = []
    for one in _listed(model, layers):
        wanted = str(one % n_layers if isinstance(one, int) and -n_layers <= one < 0 else one)
        found = [name for name in every if wanted in (name, *name.split("."))]
        site, _, layer = wanted.rpartition(".")
        if not found and layer.removeprefix("-").isdigit() and site in ("", *LAYER_SITES):
            if site and int(layer) in range(n_layers):
                anatomy.module(int(layer), site)
            raise InputError(f"layer {layer} does not exist; this model has layers 0 to {n_layers - 1}")
        if not found and wanted in LAYER_SITES:
            anatomy.module(0, wanted)
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
            if anatomy.has(layer, site) and _module(anatomy, f"{site}.{layer}") is module:
                return f"the output of this module has the name '{site}.{layer}'"
    return f"give numbers, or names of activations such as '{LAYER_SITES[0]}.0': {', '.join(LAYER_SITES)}"


def layer_gradient_x_activation(steps: Sequence[Step], names: Sequence[str]) -> list[dict[str, Tensor]]:
    """Return activation times gradient; all activations of a step come from one pass back through the layers.

    Shrikumar et al. 2016 (arXiv:1605.01713), at hidden layers. The steps of a text share one forward pass, because a
    token does not attend to later ones.

    Args:
        steps: steps of one text, in order; the tokens of each step begin with those of the step before.
        names: activation names.

    Returns:
        For each step a dict: activation name -> scores, [T, D].
    """
    found: list[dict[str, Tensor]] = []
    for some in sides(steps):
        found += _products(some, names, some[-1].embeddings, PLAIN, lambda value: value)
    return found


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
    found: list[dict[str, Tensor]] = []
    for some in sides(steps):
        both = torch.cat([some[-1].embeddings, some[-1].baseline(baseline)])
        found += _products(some, names, both, rescale_rule(some[-1].model), lambda value: value[:1] - value[1:])
    return found


def _products(
    steps: Sequence[Step], names: Sequence[str], rows: Tensor, rule: Rule, factor: Callable[[Tensor], Tensor]
) -> list[dict[str, Tensor]]:
    """Return the gradients of the first row's activations times a factor, a function of the activations of all rows."""
    way = WayBack.of(steps[-1])
    work = partial(_products_by_autograd, steps, names, rows, rule, factor)
    if way is None:
        return at_once(steps[-1], work)
    taken_back = partial(_products_taken_back, way, steps, names, rows, rule, factor)
    return at_once(steps[-1], lambda: work() if steps[-1].room.checkpointing else taken_back())


def _products_by_autograd(
    steps: Sequence[Step], names: Sequence[str], rows: Tensor, rule: Rule, factor: Callable[[Tensor], Tensor]
) -> list[dict[str, Tensor]]:
    last, embeddings = steps[-1], rows.clone().requires_grad_()
    found = []
    with rule.hooks():
        with recording(last.model, names, len(rows)) as seen:
            states = last.states(embeddings)
        for step in steps:
            T = len(step.ids)
            value = step.read(step.head(states[:, T - 1]), embeddings[:, :T])[: rule.n_rows]
            at = derivatives(value.sum(), [seen[name] for name in names], again=step is not last)
            pairs = zip(names, at, strict=True)
            found.append({name: (factor(seen[name].detach()) * one[:1])[0, :T] for name, one in pairs})
    return found


def _products_taken_back(
    way: WayBack,
    steps: Sequence[Step],
    names: Sequence[str],
    rows: Tensor,
    rule: Rule,
    factor: Callable[[Tensor], Tensor],
) -> list[dict[str, Tensor]]:
    run = way.run(rows, rule)
    factors = {name: factor(_value(run, name))[0] for name in names}
    found = []
    for some in groups(steps, len(rows)):
        at_last, _ = way.at_last(run, some, rows, rule)
        at = {name: one[:, 0] for name, one in run.derivatives(at_last) if name in factors}  # [G, N, D]
        for place, step in enumerate(some):
            T = len(step.ids)
            found.append({name: factors[name][:T] * at[name][place, :T] for name in names})
    return found


def _value(run: DifferentiableRun, name: str) -> Tensor:
    """Return a recorded activation, [B, T, D]; what is added to the residual stream includes the residual factor."""
    site, _, layer = name.partition(".")
    ran = run.layers[int(layer)]
    return ran.output if site == "resid_post" else ran.added[site]


def layer_integrated_gradients(
    steps: Sequence[Step], names: Sequence[str], *, n_steps: int = 50, baseline: Baseline = "zero"
) -> list[dict[str, Tensor]]:
    """Return integrated gradients of activations, from their value on a baseline text to their value on the text.

    Sundararajan et al. 2017 (arXiv:1703.01365), equation 1, with an activation as the input, by Gauss-Legendre
    quadrature. All other activations are computed from that activation and the text.

    Args:
        steps: steps of one text; all read the same points on the path.
        names: activation names; each needs separate passes, through its layer and those after it.
        n_steps: number of points on the path.
        baseline: the text at the start of the path, see ``Step.baseline``.

    Returns:
        For each step a dict: activation name -> scores, [T, D].

    Raises:
        InputError: for ``n_steps`` below 1, or an unknown baseline.
    """
    check_count("n_steps", n_steps)
    return [scores for some in sides(steps) for scores in _integrated(some, names, n_steps, baseline)]


def _integrated(
    steps: Sequence[Step], names: Sequence[str], n_steps: int, baseline: Baseline
) -> list[dict[str, Tensor]]:
    last = steps[-1]
    both, way = torch.cat([last.embeddings, last.baseline(baseline)]), WayBack.of(last)
    run = None if way is None else way.run(both)
    ends = _recorded(last, names, both) if run is None else {name: _value(run, name) for name in names}
    found: list[dict[str, Tensor]] = [{} for _ in steps]
    for name in names:
        back = None if way is None or run is None else partial(_at_points_taken_back, way, run, steps, name)
        for scores, of_step in zip(found, _integral(steps, name, ends[name], n_steps, back), strict=True):
            scores[name] = of_step
    return found


def _integral(
    steps: Sequence[Step], name: str, ends: Tensor, n_steps: int, back: Callable[[Tensor], Iterator[Tensor]] | None
) -> list[Tensor]:
    """Return the scores of one activation, [T, D] for each step.

    Args:
        steps: the steps.
        name: its name.
        ends: [2, T, D], its value in the text and in the baseline text.
        n_steps: number of points on the path.
        back: returns the derivatives at points on the path; None if only autograd can.
    """
    x, start = ends
    shares, weights = quadrature(n_steps, x)

    def work(some: slice) -> list[Tensor]:
        points = (start + shares[some] * (x - start)).to(x)
        if back is None or steps[-1].room.checkpointing:
            each = _at_points_by_autograd(steps, name, points)
        else:
            each = back(points)
        return [(weights[some] * slope).sum(0) for slope in each]

    return [(x - start)[: len(slope)] * slope for slope in summed(steps[-1], n_steps, work)]


def _recorded(step: Step, names: Sequence[str], rows: Tensor) -> dict[str, Tensor]:
    with grad_mode(False), recording(step.model, names, len(rows)) as seen:
        step.states(rows)
    return seen


def _at_points_by_autograd(steps: Sequence[Step], name: str, points: Tensor) -> Iterator[Tensor]:
    """Yield the derivatives of each step's value at given values of an activation, [B, T, D], from one graph."""
    last, points = steps[-1], points.detach().requires_grad_()
    embeddings = last.embeddings.expand(len(points), -1, -1)
    tap: dict[str, Write] = {name: lambda _: points}
    with tapping(last.model, tap, len(points)):
        states = last.states(embeddings)
    for step in steps:
        T = len(step.ids)
        value = step.read(step.head(states[:, T - 1]), embeddings[:, :T]).sum()
        with tapping(last.model, tap, len(points)):  # for layers that checkpointing runs again
            (slope,) = derivatives(value, [points], again=step is not last)
        yield slope[:, :T]


def _at_points_taken_back(
    way: WayBack, run: DifferentiableRun, steps: Sequence[Step], name: str, points: Tensor
) -> Iterator[Tensor]:
    """Yield the derivatives of each step's value at given values of an activation, [B, T, D]."""
    site, _, number = name.partition(".")
    layer, text = int(number), steps[-1].embeddings
    if site == "resid_post":
        above, name = run_layers(way.trunk, points, first=layer + 1), f"resid_pre.{layer + 1}"
    else:
        above = run_layers(way.trunk, run.input(layer)[:1], first=layer, given={site: points})
    for some in groups(steps, len(points)):
        at_last, _ = way.at_last(above, some, text)
        at = next(one for called, one in above.derivatives(at_last) if called == name)
        for place, step in enumerate(some):
            yield at[place, :, : len(step.ids)].to(points.device)


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
    return anatomy.layers[int(layer)] if site == "resid_post" else anatomy.module(int(layer), site)


def _hook(tap: Write, n_rows: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        new = tap(value.view(n_rows, -1, value.shape[-1])).view(value.shape)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return hook
