"""Compare attribution methods on a model: how fast each finds the tokens on which the attributed value depends."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import check_decoder_only, unwrapping
from interpret.anatomy.passes import grad_mode
from interpret.attribution._attribute import of_texts, steps_of
from interpret.attribution.faithfulness import Curves, curves, mean_curves, ranking
from interpret.attribution.groups import Groups, check_groups
from interpret.attribution.methods.masking import free_features
from interpret.attribution.methods.registry import METHODS, How
from interpret.attribution.parts import TextParts, reduced, scores_of
from interpret.attribution.plan import Plan, plan_attribution
from interpret.attribution.result.aggregation import HOWS
from interpret.attribution.result.comparison import RANDOM, Comparison
from interpret.attribution.steps.functions import Contrast
from interpret.attribution.steps.step import Baseline, Step
from interpret.attribution.targets import Alignment, Inputs, Target, Text, one_for_each
from interpret.errors import InputError, unknown
from interpret.prompts.spelling import join_pieces, pieces
from interpret.records import MethodComparison
from interpret.stats import Floats
from interpret.work.progress import showing

BASELINE: Baseline = "eos"
"""What masked tokens are in the curves by default: real tokens, as in LIME."""
N_RANDOM = 10
"""How many random orders the row ``random`` averages."""


@dataclass(frozen=True)
class ComparisonPlan:
    """The plans of the compared methods, and how their scores are judged."""

    methods: Sequence[Plan]
    """They differ in the method and its options."""
    baseline: Baseline
    """What masked tokens are in the curves."""
    how: How | None
    """How the embedding dimension of scores is reduced before they are ranked."""

    @property
    def first(self) -> Plan:
        """One of the plans, for what all have in common."""
        return self.methods[0]


@unwrapping
def compare_methods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: str | Sequence[str],
    targets: str | Sequence[Target] | None = None,
    *,
    methods: Sequence[str],
    attributed_fn: str | Callable[..., torch.Tensor] = "probability",
    contrast_targets: str | Sequence[Target] | None = None,
    contrast: Contrast | None = None,
    alignment: Sequence[Alignment] | None = None,
    groups: Groups | None = None,
    start: int | None = None,
    end: int | None = None,
    how: How | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 20,
    progress: bool = True,
    **options: Any,
) -> Comparison:
    """Compare attribution methods by insertion and deletion curves, on your own model and prompts.

    Each method ranks the tokens before an attributed token by its scores. Deletion masks them one after the other, the
    highest score first; insertion starts with all masked, and puts them back in the same order. A method that knows on
    which tokens the value depends has a small area under the deletion curve, and a large one under the insertion curve.
    The row ``random`` has the mean of 10 random orders: a method that is not better knows nothing. Special tokens, and
    with ``groups`` all tokens outside of them, are never masked.

    Args:
        model: a causal LM, as in ``attribute``.
        tokenizer: the model's tokenizer.
        prompts: as in ``attribute``, as are the arguments that are not named here.
        targets: as in ``attribute``.
        methods: names of methods that score tokens.
        attributed_fn: as in ``attribute``.
        contrast_targets: as in ``attribute``.
        contrast: as in ``attribute``.
        alignment: as in ``attribute``.
        groups: as in ``attribute``; a group has the sum of the scores of its tokens where a method does not mask.
        start: as in ``attribute``.
        end: as in ``attribute``.
        how: how the embedding dimension of scores is reduced before they are ranked: ``sum``, ``mean`` or ``l2``; by
            default as each method does, see ``Attribution.aggregate``.
        batch_size: as in ``attribute``.
        max_new_tokens: as in ``attribute``.
        progress: show a progress bar while it runs, in a terminal or a notebook.
        **options: of the methods and the functions; each method gets those that it has. ``baseline`` is also what
            masked tokens are in the curves, see ``Step.baseline``; by default ``eos``.

    Returns:
        One row per prompt, attributed token and method; ``summary()`` has the mean areas with intervals.

    Raises:
        InputError: as ``attribute`` raises, and for a method of layers.
        UnsupportedModelError: as ``attribute`` raises, and for an encoder-decoder model.

    Example:
        >>> found = compare_methods(model, tokenizer, prompts, methods=["saliency", "occlusion"])  # doctest: +SKIP
        >>> found.summary()  # doctest: +SKIP
    """

    def plan_of(method: str, own: Mapping[str, Any]) -> Plan:
        return plan_attribution(
            model,
            tokenizer,
            method=method,
            attributed_fn=attributed_fn,
            contrast=contrast,
            with_foils=contrast_targets is not None,
            step_scores=(),
            layers=None,
            start=start,
            end=end,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            options=own,
            arguments=signature(compare_methods).parameters,
        )

    plan = plan_comparison(methods, plan_of, groups=groups, how=how, options=options)
    inputs = one_for_each(prompts, targets, contrast_targets, alignment)
    with showing("Comparing", shown=progress):
        return Comparison(comparisons(plan, inputs, [f"prompt_{n + 1}" for n in range(len(inputs.prompts))]))


def plan_comparison(
    methods: Sequence[str],
    plan_of: Callable[[str, Mapping[str, Any]], Plan],
    *,
    groups: Groups | None,
    how: How | None,
    options: Mapping[str, Any],
) -> ComparisonPlan:
    """Check all arguments that do not depend on an input, and return the plan.

    Args:
        methods: names of methods.
        plan_of: returns the plan of a method, without groups, given its name and options.
        groups: as in ``attribute``, for all methods.
        how: as in ``compare_methods``.
        options: of the methods and the functions; each method gets those that it has.

    Raises:
        InputError: as ``plan_attribution`` and ``check_methods`` raise.
        UnsupportedModelError: as ``plan_attribution`` raises, and for an encoder-decoder model.
    """
    check_methods(methods)
    if groups is not None:
        check_groups(groups)
    if how is not None and how not in HOWS:
        raise InputError(unknown("how", how, HOWS))
    shared = shared_options(methods, options)
    plans = []
    for name in methods:
        own = {key: value for key, value in options.items() if key in METHODS[name].options()}
        plans.append(replace(plan_of(name, own | shared), groups=groups))
    check_decoder_only(plans[0].model)
    return ComparisonPlan(plans, options.get("baseline", BASELINE), how)


def check_methods(methods: Sequence[str]) -> None:
    """Check the names of methods to be compared.

    Raises:
        InputError: if one is unknown, given twice, or scores layers; or if there is none.
    """
    if isinstance(methods, str) or not methods:
        raise InputError(f"methods is {methods!r}; give a list of names, such as ['saliency', 'occlusion']")
    for number, name in enumerate(methods):
        if name not in METHODS:
            raise InputError(unknown("method", name, METHODS))
        if METHODS[name].layers:
            raise InputError(f"method {name!r} scores layers; only methods that score tokens are compared")
        if name in methods[:number]:
            raise InputError(f"method {name!r} is compared with itself; give each method once")


def shared_options(methods: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are of none of the methods: those of functions, or unknown ones."""
    of_methods = {"baseline"}.union(*(METHODS[name].options() for name in methods))
    return {key: value for key, value in options.items() if key not in of_methods}


def comparisons(plan: ComparisonPlan, inputs: Inputs, names: Sequence[str]) -> Iterator[MethodComparison]:
    """Yield the rows of each input, in order.

    Args:
        plan: of the comparison.
        inputs: the inputs.
        names: their names.

    Raises:
        InputError: as ``attributions`` raises.
    """
    for name, of_text in zip(names, of_texts(plan.first, inputs, partial(_compared, plan)), strict=True):
        yield from (replace(row, name=name) for row in of_text)


def _compared(plan: ComparisonPlan, text: Text) -> list[MethodComparison]:
    """Return the rows of one text: each attributed token, or the whole answer, by each method and in random order."""
    steps = steps_of(plan.first, text, TextParts())
    parts = [steps] if plan.first.whole else [[step] for step in steps]
    with grad_mode(True):
        scores = {one.info.method: _scores(one, steps, plan.how or one.method.reduction) for one in plan.methods}
    rows = []
    for number, part in enumerate(parts):
        last = part[-1]
        free = free_features(last, "masking in the order of scores")
        of_tokens = last.features[free].double().numpy()  # [F, T]
        rankings = [ranking(of_tokens @ of_parts[number]) for of_parts in scores.values()]
        random = np.random.default_rng(number)
        rankings += [random.permutation(len(free)).astype(np.float64) for _ in range(N_RANDOM)]
        found = curves(part, free, rankings, plan.baseline)
        named = dict(zip(scores, found, strict=False)) | {RANDOM: mean_curves(found[len(scores) :])}
        rows += [_row(plan.first, text, number, part, method, one) for method, one in named.items()]
    return rows


def _scores(plan: Plan, steps: Sequence[Step], how: How) -> list[Floats]:
    """Return the scores of the tokens before each step, or before the whole answer, [T] each."""
    found = scores_of(plan.method, steps, (), plan.method_options, TextParts())[""]
    if plan.whole:
        shortest = len(steps[0].ids)  # no method scores the answer
        padded = np.zeros((len(steps[-1].ids), *found[0].shape[1:]))
        padded[:shortest] = np.sum([one[:shortest] for one in found], axis=0)
        found = [padded]
    return [reduced(one, how).astype(np.float64) for one in found]


def _row(plan: Plan, text: Text, number: int, steps: Sequence[Step], method: str, found: Curves) -> MethodComparison:
    first, n_prompt = steps[0], text.n_prompt
    foils = [step.foil.id for step in steps if step.foil is not None]
    return MethodComparison(
        name="",
        prompt=join_pieces(text.pieces[:n_prompt]),
        step=number,
        step_token=join_pieces(text.pieces[len(first.ids) : len(steps[-1].ids) + 1]),
        foil_token=join_pieces(pieces(plan.tokenizer, foils)),
        attributed_fn=plan.info.attributed_fn,
        method=method,
        insertion_area=found.insertion_area,
        deletion_area=found.deletion_area,
        insertion=found.insertion.tolist(),
        deletion=found.deletion.tolist(),
    )
