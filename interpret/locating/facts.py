"""Locate facts by contrastive attribution: the contribution of each activation to P(answer) - P(foil).

The scores are activation times gradient (Shrikumar et al. 2016, arXiv:1605.01713) of the contrastive function after
the prompt (Yin and Neubig 2022, arXiv:2202.10419). One forward and one backward pass per fact give the scores of all
sites and layers. Causal tracing measures which activations restore the answer in a corrupted run; these scores
estimate, to first order, which activations the answer depends on in the clean run. ``runs`` writes the rows to a run
folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations._record import Site
from interpret.anatomy import anatomy_of, unwrapping
from interpret.anatomy.passes import grad_mode
from interpret.attribution.methods.layer_gradients import LAYER_SITES, layer_gradient_x_activation
from interpret.attribution.plan import Plan, plan_attribution
from interpret.attribution.steps.functions import FUNCTIONS, StepReading, attributed_function
from interpret.attribution.steps.step import Step
from interpret.attribution.targets import one_for_each, texts_of
from interpret.errors import InputError
from interpret.facts.buckets import token_buckets
from interpret.facts.files import Fact
from interpret.finite import NOTHING_FINITE, left_out, warn
from interpret.locating.show import CONTRAST, Locations
from interpret.prompts.chat import ChatText, framed
from interpret.prompts.scripts import joined
from interpret.prompts.spelling import piece
from interpret.prompts.subjects import subject_span, tokenised
from interpret.records import LocationCell
from interpret.work.progress import counted, showing


@dataclass(frozen=True)
class Location:
    """The attribution scores of one fact: T tokens of its prompt, L layers."""

    tokens: tuple[str, ...]
    """[T] texts of the tokens."""
    subject_span: tuple[int, int]
    """First and one past the last token of the subject."""
    answer: str
    """The text of the answer's first token."""
    answer_id: int
    """The id of that token."""
    p_true: float
    """The probability of that token after the prompt."""
    p_false: float | None
    """The probability of the foil's first token; None if no foil was used."""
    scores: Mapping[str, Tensor]
    """[T, L] per site, float32, on the CPU."""


@unwrapping
def locate_facts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    attributed_fn: str = CONTRAST,
    progress: bool = True,
) -> Locations:
    """Attribute the answers of facts, and return one row per fact, site, token and layer, in that order.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        facts: facts the model knows, as filtered by ``known``. The attribute of a fact is the answer, the foil the
            contrasted answer; only the first token of each is used.
        attributed_fn: ``contrast_prob_diff``, or a function that needs no foil, such as ``probability``.
        progress: show a progress bar while it runs, in a terminal or a notebook.

    Returns:
        The rows of all facts, which show themselves.

    Raises:
        InputError: if an argument is invalid, or a fact cannot be attributed; the message names the fact.
        UnsupportedModelError: if the model is not of a supported family.

    Example:
        >>> interpret.locating.locate_facts(model, tokenizer, facts).show()  # doctest: +SKIP
    """
    plan = location_plan(model, tokenizer, attributed_fn)
    rows = Locations()
    with showing("Locating", shown=progress):
        for fact in counted(facts):
            try:
                found = locate_fact(plan, fact)
            except InputError as error:
                raise InputError(f"fact {fact.name!r}: {error}") from None
            warn(left_out(torch.stack(list(found.scores.values())), "scores", "averages"))
            rows += location_cells(fact, found, attributed_fn=plan.info.attributed_fn)
    return rows


def location_plan(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, attributed_fn: str) -> Plan:
    """Check the arguments that do not depend on a fact, and return the plan of the attribution.

    Raises:
        InputError: for an unknown function, a function that runs the model again, or a model without gradients.
    """
    contrastive = FUNCTIONS[attributed_function(attributed_fn)].contrast
    return plan_attribution(
        model,
        tokenizer,
        method=layer_gradient_x_activation.__name__,
        attributed_fn=attributed_fn,
        # The first tokens of answer and foil follow the same text, so both settings of contrast give the same here.
        contrast="same_context" if contrastive else None,
        with_foils=contrastive,
        step_scores=(),
        layers=_sites(model),
        start=0,
        end=1,
        batch_size=1,
        max_new_tokens=1,
        options={},
    )


def locate_fact(plan: Plan, fact: Fact, chat_template: str | None = None) -> Location:
    """Attribute the answer of one fact by one forward and one backward pass.

    Args:
        plan: the plan returned by ``location_plan``.
        fact: the fact; its foil is ignored if the attributed function needs none.
        chat_template: as in ``interpret.locating.run``.

    Raises:
        InputError: if the subject is not found, the answer or foil merges with the prompt's last token, a required
            foil is missing, answer and foil begin with the same token, or the probabilities or all
            scores are not finite.
    """
    tokens = tokenised(plan.tokenizer, fact.prompt, fact.subject, fact.occurrence, chat_template)
    step, readings = _step(plan, fact, framed(plan.tokenizer, fact.prompt, chat_template))
    with grad_mode(True):
        (found,) = layer_gradient_x_activation([step], plan.layers)
    logits = readings[0].logits.detach()[0]  # [V]
    p = logits.softmax(-1)
    scores: dict[str, Tensor] = {site: _summed(found, site) for site in _sites(plan.model)}
    if not p.isfinite().all() or not any(of_site.isfinite().any() for of_site in scores.values()):
        raise InputError(f"scores {NOTHING_FINITE}")
    return Location(
        tokens=tuple(tokens.pieces),
        subject_span=subject_span(tokens),
        answer=piece(plan.tokenizer, step.target),
        answer_id=step.target,
        p_true=p[step.target].item(),
        p_false=None if step.foil is None else p[step.foil.id].item(),
        scores=scores,
    )


def _sites(model: PreTrainedModel) -> list[Site]:
    """Return the sites that every layer of a model has, so that each makes a grid of tokens and layers."""
    anatomy = anatomy_of(model)
    return [site for site in LAYER_SITES if all(anatomy.has(layer, site) for layer in range(len(anatomy.layers)))]


def _step(plan: Plan, fact: Fact, prompt: ChatText) -> tuple[Step, list[StepReading]]:
    """Return the generation step after the prompt, and a list that will hold the readings at this step."""
    foils = None
    if plan.contrast is not None:
        if fact.foil is None:
            raise InputError(f"the fact has no foil; add one, or choose another attributed function than {CONTRAST!r}")
        foils = joined(prompt.text, fact.foil)
    alignment = None if foils is None else [[(0, 0)]]  # contrast the first tokens only
    whole = joined(prompt.text, fact.attribute)
    inputs = one_for_each(prompt.text, whole, foils, alignment, add_special_tokens=prompt.add_special_tokens)
    (text,) = texts_of(plan, inputs, 0)
    (foil,), target = text.foils, text.ids[text.start]
    if foil is not None and foil.id == target:
        raise InputError(
            f"answer {fact.attribute!r} and foil {fact.foil!r} begin with the same token; give another foil"
        )
    readings: list[StepReading] = []

    def function(reading: StepReading) -> Tensor:
        readings.append(reading)
        return plan.function(reading)

    return Step(plan.model, plan.tokenizer, text.ids[: text.start], target, foil, function, plan.batch_size), readings


def _summed(found: Mapping[str, Tensor], site: str) -> Tensor:
    """Return the scores of a site summed over the hidden dimension, [T, L]."""
    of_layers = [scores for name, scores in found.items() if name.partition(".")[0] == site]  # L tensors [T, D]
    return torch.stack([scores.float().sum(-1).cpu() for scores in of_layers], dim=1)


def location_cells(fact: Fact, found: Location, *, attributed_fn: str) -> list[LocationCell]:
    """Return the rows of one fact, [sites * T * L], ordered by site, token and layer."""
    n_tokens, (start, end) = len(found.tokens), found.subject_span
    rome, kt = (token_buckets(n_tokens, found.subject_span, scheme=scheme) for scheme in ("rome", "kt"))
    return [
        LocationCell(
            name=fact.name,
            relation=fact.relation,
            prompt=fact.prompt,
            subject=fact.subject,
            attribute=fact.attribute,
            foil="" if found.p_false is None else fact.foil or "",
            answer=found.answer,
            answer_id=found.answer_id,
            attributed_fn=attributed_fn,
            site=site,
            layer_idx=layer,
            token_idx=token,
            token=found.tokens[token],
            in_subject=start <= token < end,
            bucket_rome=rome[token] or "",
            bucket_kt=kt[token] or "",
            score=score,
            p_true=found.p_true,
            p_false=found.p_false,
        )
        for site, scores in found.scores.items()
        for token, of_token in enumerate(scores.tolist())
        for layer, score in enumerate(of_token)
    ]
