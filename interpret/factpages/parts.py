"""The parts of a fact page: what each method says of one fact, as JSON values that a run folder stores.

Every part is a call of the package of its method, with the numbers of that call. The parts of a fact share its tokens,
the states of its clean run, and the clean and corrupted runs that sweeps patch (``FactRuns``); all facts share the size
of the noise and the run of the interpretation prompt. Shapes: T tokens, L layers. All cells are about the outputs of
layers.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations.cache import ActivationCache, activation_cache
from interpret.anatomy import anatomy_of, unembedding_size
from interpret.attribution._attribute import attributions
from interpret.attribution.plan import Plan, plan_attribution
from interpret.attribution.targets import one_for_each
from interpret.device import TOO_LARGE, unless_too_large
from interpret.errors import InputError, ModelError, UnsupportedModelError
from interpret.factpages.grids import AMONG, COMPARED, TRACED, FactGrids, peak
from interpret.factpages.settings import FactSettings, split_cell
from interpret.facts.buckets import token_buckets
from interpret.facts.files import Fact
from interpret.facts.filter import Answered
from interpret.finite import NOTHING_FINITE, counted_once
from interpret.locating.facts import CONTRAST, locate_fact, location_plan
from interpret.probing._logit_lens import NO_TOKEN, logit_lens
from interpret.prompts.chat import framed
from interpret.prompts.prompts import Prompt
from interpret.prompts.scripts import joined
from interpret.prompts.selectors import select
from interpret.prompts.spelling import piece
from interpret.prompts.tokens import TokenisedPrompt, following, select_tokens, tokenise
from interpret.records import EXACT, FactCell
from interpret.selfie.rows import Interpreter, check_request
from interpret.selfie.sources import Source
from interpret.storage.parts import StoredParts
from interpret.sweep.kept_runs import KeptRuns
from interpret.tracing.calls import trace_mediators
from interpret.tracing.inputs import TraceInputs, TraceSettings, trace_inputs
from interpret.tracing.knockouts import knockout
from interpret.tracing.units import UnitSite, trace_units, unit_cells

Json = dict[str, Any]
NEXT_TOKENS = 5
"""Number of likeliest next tokens that are stored."""
UNITS = 20
"""Number of heads and of neurons that a method with estimates runs, those with the largest estimates. A page shows ten
of each; on four facts, the ten with the largest effects were among the twelve with the largest estimates (demo model).
"""
RESID_POST = "resid_post"
"""The site of all cells: the output of a layer."""
EXPLAINED_BY = "probability"
"""The attributed function of a fact without a foil."""


@dataclass(frozen=True)
class FactRuns:
    """One fact on one model, with what its parts share."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    answered: Answered
    """The fact, with the model's answer."""
    settings: FactSettings
    tracing: TraceSettings
    """The settings of the traces, with the size of the noise."""
    interpreter: Interpreter
    """Interprets states; shared by all facts."""
    batch_size: int
    """Number of interpretations generated together."""
    stored: StoredParts
    """Stores each batch of interpretations."""
    kept: KeptRuns = field(default_factory=KeptRuns)
    """The clean and the corrupted runs, which tracing, knockouts, heads and neurons share."""

    @property
    def fact(self) -> Fact:
        """The fact."""
        return self.answered.fact

    @cached_property
    def inputs(self) -> TraceInputs:
        """The tokens of the prompt and of the answer."""
        return trace_inputs(
            self.model,
            self.tokenizer,
            self.fact.prompt,
            self.fact.subject,
            self.fact.attribute,
            settings=self.tracing,
            occurrence=self.fact.occurrence,
            counterfactual=None,
        )

    @cached_property
    def prompt(self) -> TokenisedPrompt:
        """The tokens of the prompt, with the chosen occurrence of the subject; the message is the whole prompt."""
        text = framed(self.tokenizer, self.fact.prompt, self.settings.chat_template)
        return replace(tokenise(self.tokenizer, text), subject=self.inputs.tokens.subject)

    @cached_property
    def states(self) -> ActivationCache:
        """The residual stream before the first and after every layer of the clean run."""
        names = ["resid_pre.0", f"{RESID_POST}.*"]
        return activation_cache(self.model, None, [self.inputs.tokens.ids], names)

    @property
    def attributed_fn(self) -> str:
        """The function that is attributed: a contrast if the fact has a foil."""
        return EXPLAINED_BY if self.fact.foil is None else CONTRAST


def answer_part(runs: FactRuns, earlier: Mapping[str, Json]) -> Json:
    """Return what the model answers, and the logit lens of every token and layer."""
    inputs = runs.inputs
    answer, foil = inputs.answer_ids[0], _foil_id(runs)
    followed = [answer] if foil is None else [answer, foil]
    frame = logit_lens(runs.model, runs.states, followed, top=NEXT_TOKENS, positions=None)
    own = frame[frame["token_id"] == answer].drop_duplicates(["position", "layer"])
    likeliest = frame.drop_duplicates(["position", "layer"])
    n_tokens = len(inputs.tokens.ids)
    grids = {
        "rank": own["rank"],
        "probability": own["probability"],
        "token_id": likeliest["token_id"],
        "token_probability": likeliest["probability"],
    }
    lens = {name: column.to_numpy().reshape(n_tokens, -1)[:, 1:].tolist() for name, column in grids.items()}
    said = frame[(frame["layer"] == frame["layer"].max()) & (frame["position"] == n_tokens - 1)]
    return {
        "lens": lens | {"token": [[_piece(runs, one) for one in row] for row in lens["token_id"]]},
        "next": [
            {"token": _piece(runs, row.token_id), "id": row.token_id, "probability": row.probability, "rank": row.rank}
            for row in said.itertuples()
        ],
        "answer_id": answer,
        "foil_id": foil,
        "continuation": runs.answered.answer_text,
        "known": runs.answered.correct,
        "reason": runs.answered.reason,
    }


def _foil_id(runs: FactRuns) -> int | None:
    """Return the first token of the foil."""
    if runs.fact.foil is None:
        return None
    text = framed(runs.tokenizer, runs.fact.prompt, runs.settings.chat_template)
    return following(runs.tokenizer, text, runs.fact.foil, "foil")[0]


def _piece(runs: FactRuns, token: int) -> str:
    return "" if token == NO_TOKEN else piece(runs.tokenizer, token)


def trace_part(runs: FactRuns, earlier: Mapping[str, Json]) -> Json:
    """Return the effects of restoring each layer's output at each token, and of the same with parts severed."""
    found = trace_mediators(
        runs.model,
        runs.tokenizer,
        runs.fact.prompt,
        runs.fact.subject,
        runs.fact.attribute,
        mediators=TRACED,
        settings=runs.tracing,
        occurrence=runs.fact.occurrence,
        method=runs.settings.method,
        progress=False,
    )
    if not any(np.isfinite(result.indirect_effects).any() for result in found.values()):
        raise InputError(f"probabilities of the answer {NOTHING_FINITE}")
    first = found[TRACED[0]]
    return {
        "tokens": list(first.tokens),
        "span": list(first.subject_span),
        "answer": first.answer,
        "clean": first.high,
        "corrupted": first.low,
        "noise": float(runs.tracing.noise) if isinstance(runs.tracing.noise, (int, float)) else runs.tracing.noise,
        "estimate": first.estimate,
        "effects": {name: result.indirect_effects.tolist() for name, result in found.items()},
        "exact": {name: result.exact.tolist() for name, result in found.items()},
    }


def knockout_part(runs: FactRuns, earlier: Mapping[str, Json]) -> Json:
    """Return the answer's probability if the last token cannot attend to the subject, to other tokens or itself."""
    found = knockout(
        runs.model,
        runs.tokenizer,
        runs.fact.prompt,
        runs.fact.subject,
        runs.fact.attribute,
        occurrence=runs.fact.occurrence,
        chat_template=runs.settings.chat_template,
        memory=runs.tracing.memory,
        progress=False,
    )
    return {
        "sources": list(found.sources),
        "source_tokens": [list(places) for places in found.source_tokens],
        "window": found.window,
        "clean": found.clean["probability"],
        "probability": found.values["probability"].tolist(),
    }


def attribution_part(runs: FactRuns, earlier: Mapping[str, Json]) -> Json:
    """Return how much each token, and each layer's output at each token, contributes to the answer."""
    located = locate_fact(
        location_plan(runs.model, runs.tokenizer, runs.attributed_fn), runs.fact, runs.settings.chat_template
    )
    return {
        "attributed_fn": runs.attributed_fn,
        "layers": located.scores[RESID_POST].tolist(),
        "tokens": _token_scores(runs),
    }


def _token_scores(runs: FactRuns) -> list[float]:
    """Return input times gradient of each token, [T]."""
    fact, text = runs.fact, framed(runs.tokenizer, runs.fact.prompt, runs.settings.chat_template)
    contrastive = fact.foil is not None
    foil = joined(text.text, fact.foil) if fact.foil is not None else None
    inputs = one_for_each(
        text.text,
        joined(text.text, fact.attribute),
        foil,
        [[(0, 0)]] if contrastive else None,  # contrast the first tokens only
        add_special_tokens=text.add_special_tokens,
    )
    (found,) = attributions(_token_plan(runs, contrastive), inputs)
    assert found.scores is not None
    scores: list[float] = found.scores[: found.n_prompt, 0].sum(-1).tolist()
    return scores


def _token_plan(runs: FactRuns, contrastive: bool) -> Plan:
    return plan_attribution(
        runs.model,
        runs.tokenizer,
        method="input_x_gradient",
        attributed_fn=runs.attributed_fn,
        contrast="same_context" if contrastive else None,
        with_foils=contrastive,
        step_scores=(),
        layers=None,
        start=0,
        end=1,
        batch_size=1,
        max_new_tokens=1,
        options={},
    )


def heads_part(runs: FactRuns, earlier: Mapping[str, Json]) -> Json:
    """Return the effects of restoring single attention heads."""
    return _units(runs, "heads")


def neurons_part(runs: FactRuns, earlier: Mapping[str, Json]) -> Json:
    """Return the effects of restoring single MLP neurons."""
    return _units(runs, "neurons")


def _units(runs: FactRuns, site: UnitSite) -> Json:
    top = None if runs.settings.method == EXACT else UNITS
    found = trace_units(
        runs.model,
        runs.tokenizer,
        runs.fact.prompt,
        runs.fact.subject,
        runs.fact.attribute,
        site=site,
        top=top,
        settings=runs.tracing,
        occurrence=runs.fact.occurrence,
        progress=False,
    )
    names = ("layer_idx", "unit", "token_idx", "indirect_effect")
    cells = sorted(unit_cells(runs.fact, found), key=lambda cell: -abs(np.nan_to_num(cell.indirect_effect)))
    return {"top": top, "rows": [{name: getattr(cell, name) for name in names} for cell in cells]}


def interpretation_part(runs: FactRuns, earlier: Mapping[str, Json]) -> Json:
    """Return the interpretations of the states at the peaks of the other methods and at the chosen cells."""
    runs.kept.clear()  # nothing after this is traced, and interpretations need the memory
    prompt = Prompt(runs.fact.name, runs.fact.prompt, raw=runs.settings.chat_template is None)
    # The output of layer l is the input of layer l + 1; that of the last layer is read after the final norm.
    pairs = [(layer + 1, token) for token, layer in interpreted_cells(runs, earlier)]
    source, interpreter = Source(prompt, runs.prompt, pairs), runs.interpreter
    check_request(runs.model, runs.tokenizer, [source], interpreter.templates, interpreter.settings)
    rows = interpreter.read([source], runs.batch_size, (), _ignore, runs.stored, None, _ignore)
    return {"rows": [{key: value for key, value in asdict(row).items() if key != "prompt_token_list"} for row in rows]}


def _ignore(*_: str) -> None:
    """Take messages that a row of the kind ``failed`` says too."""


def interpreted_cells(runs: FactRuns, earlier: Mapping[str, Json]) -> list[tuple[int, int]]:
    """Return the cells to interpret, as (token, layer): the peaks, then the chosen ones, ordered by token and layer.

    Raises:
        InputError: if a chosen cell does not exist.
    """
    n_layers = len(anatomy_of(runs.model).layers)
    grids = FactGrids.of(fact_cells(runs.fact, earlier))
    peaks = (peak(grids, method, among) for method in COMPARED for among in AMONG)
    found = [(one.token, one.layer) for one in peaks if one is not None]
    if unembedding_size(runs.model)[1] != anatomy_of(runs.model).width:  # as in OPT-350m
        found = [(token, layer) for token, layer in found if layer < n_layers - 1]
    for cell in runs.settings.cells:
        tokens, layers = split_cell(cell)
        chosen = select("layer", layers, n_layers)
        found += [(token, layer) for token in select_tokens(tokens, runs.prompt) for layer in chosen]
    return sorted(set(found))


@dataclass(frozen=True)
class Part:
    """One part of a fact page."""

    name: str
    find: Callable[[FactRuns, Mapping[str, Json]], Json]
    """Returns the part of a fact, given the earlier parts."""
    needed: bool = True
    """Whether a fact without it is dropped; the page of a fact without another part says why it is missing."""


PARTS = (
    Part("answer", answer_part),
    Part("trace", trace_part),
    Part("attribution", attribution_part),
    Part("knockout", knockout_part, needed=False),
    Part("heads", heads_part, needed=False),
    Part("neurons", neurons_part, needed=False),
    Part("interpretations", interpretation_part, needed=False),
)
"""The parts in the order in which they are computed."""


def found_part(part: Part, runs: FactRuns, earlier: Mapping[str, Json]) -> Json:
    """Return a part, or ``{"missing": reason}`` if a part that is not needed cannot be computed.

    Raises:
        InputError: if a part that is needed cannot be computed.
        UnsupportedModelError: likewise.
    """
    try:
        with counted_once(), runs.kept.shared():
            found = unless_too_large(partial(part.find, runs, earlier))
        if found is None:
            raise ModelError(f"the fact {TOO_LARGE}")
    except (InputError, ModelError, UnsupportedModelError) as error:
        if part.needed:
            raise
        return {"missing": str(error)}
    return found


def fact_cells(fact: Fact, parts: Mapping[str, Json]) -> list[FactCell]:
    """Return the T * L rows of a fact, ordered by token and layer."""
    answer, trace, attribution = parts["answer"], parts["trace"], parts["attribution"]
    tokens, (start, end), lens = trace["tokens"], trace["span"], answer["lens"]
    buckets = token_buckets(len(tokens), (start, end))
    return [
        FactCell(
            name=fact.name,
            relation=fact.relation,
            prompt=fact.prompt,
            subject=fact.subject,
            attribute=fact.attribute,
            foil=fact.foil or "",
            answer=trace["answer"],
            answer_id=answer["answer_id"],
            token_idx=token,
            token=tokens[token],
            in_subject=start <= token < end,
            bucket_rome=buckets[token] or "",
            site=RESID_POST,
            layer_idx=layer,
            attribution=score,
            attributed_fn=attribution["attributed_fn"],
            lens_rank=None if math.isnan(rank := lens["rank"][token][layer]) else int(rank),
            lens_probability=lens["probability"][token][layer],
            lens_token_id=lens["token_id"][token][layer],
            lens_token=lens["token"][token][layer],
            lens_token_probability=lens["token_probability"][token][layer],
            clean=trace["clean"],
            corrupted=trace["corrupted"],
            **_traced(trace, token, layer),
        )
        for token, scores in enumerate(attribution["layers"])
        for layer, score in enumerate(scores)
    ]


def _traced(trace: Json, token: int, layer: int) -> Json:
    effects = {name: grid[token][layer] for name, grid in trace["effects"].items()}
    exact = {name: grid[token][layer] for name, grid in trace["exact"].items()}
    return effects | {f"{name}_method": EXACT if exact[name] else trace["estimate"] for name in exact}
