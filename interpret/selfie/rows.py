"""Self-interpretation: a model describes its own hidden states in words.

A hidden state of a prompt is inserted into the slots of an interpretation prompt; the text that the model generates
after it is the interpretation (SelfIE: Chen, Vondrick & Mao 2024, arXiv 2403.10949). Each generated token is stored
with its probability with this state inserted, with nothing inserted, with a wrong state inserted, and with the prompt's
own text in place of the state; the differences measure how much the token depends on the state.
"""

import random
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, islice
from math import isfinite
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import (
    anatomy_of,
    check_evaluating,
    check_keeps_rotation,
    check_length,
    check_logits,
    longrope_limit,
    unembedding_size,
    unwrapping,
)
from interpret.device import TOO_LARGE, unless_too_large
from interpret.engine.greedy import Continuation, write_after
from interpret.errors import InputError, ModelError, SpecError
from interpret.finite import MODEL_GIVES_NAN
from interpret.prompts.spelling import decoded, pieces
from interpret.prompts.tokens import TokenisedPrompt
from interpret.records import Interpretation
from interpret.records.states import FINAL_NORM
from interpret.selfie.readings import (
    SAME,
    KeptReadings,
    Reading,
    Settings,
    State,
    Unread,
    insertion,
    log_gain,
    read,
    read_nothing,
)
from interpret.selfie.silence import says_nothing
from interpret.selfie.sources import RESID_PRE, Source, states_of, with_generated
from interpret.selfie.templates import InterpretationPrompt
from interpret.slots.decoding import Primed, automatic_batch_size, prime
from interpret.slots.whole_passes import WholePrimed
from interpret.slots.written import Written
from interpret.storage.parts import StoredParts
from interpret.surgery.plan import plan_surgery
from interpret.work.progress import streamed


@unwrapping
def interpretations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Source],
    templates: Sequence[InterpretationPrompt],
    settings: Settings = Settings(),  # noqa: B008 - frozen
    *,
    skip: Collection[str] = (),
    say: Callable[[str], None] = lambda line: None,
    parts: StoredParts | None = None,
    drop: Callable[[str, str], None] | None = None,
    drop_part: Callable[[str, str, str], None] | None = None,
    progress: bool = True,
) -> Iterator[Interpretation]:
    """Interpret every chosen state of every prompt with every template.

    For each prompt and template, the first row is the control, the text generated with nothing inserted; then follows
    one row per state. A state that is not finite, whose text has probabilities that are not, or that does not fit in
    memory alone gets an empty row of the kind ``failed``. Prompts are grouped into batches, so memory does not grow
    with their number.

    Args:
        model: a causal LM of a supported family.
        tokenizer: the model's tokenizer.
        sources: prompts and states, from ``plan_sources``.
        templates: interpretation prompts.
        settings: see ``Settings``.
        skip: names of prompts to leave out, because a resumed run already has their rows.
        say: receives a message when the batch size is reduced.
        parts: stores each batch of interpretations, and holds those of an interrupted run; None to store nothing.
        drop: called with the name of a prompt that does not fit in memory, or after which the model generates no token
            although one is to be interpreted, and the reason, instead of yielding its rows; None to raise an error.
        drop_part: called with the name of a prompt, the name of an interpretation that does not fit in memory alone,
            and the reason, before its row; None to raise an error.
        progress: show a progress bar while rows are taken, in a terminal or a notebook.

    Yields:
        One ``Interpretation`` per row, as soon as its batch is done.

    Raises:
        InterpretError: as ``check_request`` raises.
        ModelError: if a prompt is dropped and ``drop`` is None, or an interpretation and ``drop_part``.
    """
    check_request(model, tokenizer, sources, templates, settings)
    interpreter = Interpreter(model, tokenizer, templates, settings)
    stored, size = StoredParts() if parts is None else parts, interpreter.batch_size
    rows = chain.from_iterable(
        interpreter.read(group, size, skip, say, stored, drop, drop_part)
        for group in prompt_groups(sources, size)
        if any(source.prompt.name not in skip for source in group)
    )
    total = count_rows([source for source in sources if source.prompt.name not in skip], len(templates))
    yield from streamed("Interpreting", rows, total, shown=progress)


@dataclass(frozen=True)
class Interpreter:
    """A model with its interpretation prompts; the arguments are those of ``interpretations``, checked."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    templates: Sequence[InterpretationPrompt]
    settings: Settings

    @cached_property
    def _primed(self) -> list[Primed | WholePrimed]:
        return [prime(self.model, template, self.settings.new_tokens) for template in self.templates]

    @cached_property
    def _controls(self) -> list[Reading]:
        return [read_nothing(one, self.settings) for one in self._primed]

    @property
    def batch_size(self) -> int:
        """Number of interpretations generated together, as set or chosen from the memory of the device."""
        new_tokens = self.settings.new_tokens
        return self.settings.batch_size or min(automatic_batch_size(one, new_tokens) for one in self._primed)

    def read(
        self,
        group: Sequence[Source],
        size: int,
        skip: Collection[str],
        say: Callable[[str], None],
        parts: StoredParts,
        drop: Callable[[str, str], None] | None,
        drop_part: Callable[[str, str, str], None] | None,
    ) -> Iterator[Interpretation]:
        """Interpret the states of one of the ``prompt_groups``, in batches of ``size``."""
        model, settings = self.model, self.settings
        n_layers, controls = len(anatomy_of(model).layers), self._controls
        written = _continued(model, group, settings.prompt_output_tokens)
        outputs = [None if one is None else one.ids[: settings.prompt_output_tokens] for one in written]
        group = [with_generated(self.tokenizer, source, one) for source, one in zip(group, written, strict=True)]
        states = [
            None if source.lacks_generated else unless_too_large(partial(_states, model, source, settings))
            for source in group
        ]
        fitting = [
            state for output, own in zip(outputs, states, strict=True) if output is not None for state in own or ()
        ]
        kept = [KeptReadings(parts, number) for number in range(len(self.templates))]
        asked = [self._with_texts(fitting, template) for template in self.templates]
        readings = [
            read(primed, own, settings, size, say, known, drop_too_large=drop_part is not None)
            for primed, own, known in zip(self._primed, asked, kept, strict=True)
        ]
        for source, output, own in zip(group, outputs, states, strict=True):
            if output is None or own is None:
                if source.prompt.name not in skip:
                    _drop(source, drop, too_large=output is None or not source.lacks_generated)
                continue
            for template, control, texts in zip(self.templates, controls, readings, strict=True):
                text = decoded(self.tokenizer, output)
                row = _RowWriter(self.tokenizer, source, template, settings, text, control, n_layers)
                if source.prompt.name in skip:
                    deque(islice(texts, len(own)), maxlen=0)
                    continue
                yield row.write(control, "control")
                for pair, reading in zip(source.pairs, islice(texts, len(own)), strict=True):
                    if reading == "too large" and drop_part is not None:
                        drop_part(source.prompt.name, *_too_large(template, pair, settings))
                    yield row.write(reading, "failed" if isinstance(reading, str) else "interpretation", *pair)

    def _with_texts(self, states: Sequence[State], template: InterpretationPrompt) -> list[State]:
        """Return states with the ids of an interpretation prompt that has their texts in place of its slots."""
        ids = {text: template.with_text(self.tokenizer, text) for text in {state.text for state in states} if text}
        return [state if state.text is None else replace(state, with_text=ids[state.text]) for state in states]


def _continued(model: PreTrainedModel, group: Sequence[Source], new_tokens: int) -> list[Continuation | None]:
    """Return the continuation of each prompt, generated in one batch; None for a prompt that does not fit in memory."""
    prompts = [source.tokenised.ids for source in group]
    needed = max(new_tokens, *(source.lacks_generated for source in group))
    written = unless_too_large(partial(write_after, model, prompts, needed))
    if written is not None:
        return list(written)
    return [None] if len(group) == 1 else [_continued(model, [source], new_tokens)[0] for source in group]


def _drop(source: Source, drop: Callable[[str, str], None] | None, *, too_large: bool) -> None:
    """Drop a prompt that does not fit in memory, or after which no token can be generated, or raise an error."""
    reason = f"a prompt of {len(source.tokenised.ids)} tokens {TOO_LARGE}"
    if not too_large:
        reason = f"the model generates no token after the prompt; {MODEL_GIVES_NAN}"
    if drop is None:
        raise ModelError(f"prompt {source.prompt.name}: {reason}")
    drop(source.prompt.name, reason)


def _too_large(template: InterpretationPrompt, pair: tuple[int, int], settings: Settings) -> tuple[str, str]:
    """Return the name of an interpretation that does not fit in memory, and the reason why it is dropped."""
    layer, token = pair
    length = f"{len(template.ids)} tokens and up to {settings.new_tokens} new ones"
    return f"{template.name}, layer {layer}, token {token}", f"an interpretation of {length} {TOO_LARGE}"


def check_request(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Source],
    templates: Sequence[InterpretationPrompt],
    settings: Settings,
) -> None:
    """Check the arguments of ``interpretations`` before anything runs.

    Raises:
        InputError: if the model is in training mode; if a prompt or template with its new tokens exceeds the model's
            context, where some families would silently generate nonsense; or if a state does not fit the insertion
            layer.
        SpecError: if the insertion does not fit the model.
        UnsupportedModelError: if the model is not of a supported family, or logits from its states are not its own.
    """
    check_evaluating(model)
    check_logits(model)
    n_layers = len(anatomy_of(model).layers)
    wanted = [
        (f"prompt {s.prompt.name}", len(s.tokenised.ids), max(settings.prompt_output_tokens, s.lacks_generated))
        for s in sources
    ]
    of_templates = [(f"interpretation prompt {t.name!r}", len(t.ids), settings.new_tokens) for t in templates]
    for what, length, new in wanted + of_templates:
        check_length(model, what, length, new)
    for what, length, new in of_templates:
        check_keeps_rotation(model, what, length, new)
    if settings.text_control:
        for template in templates:
            for source in sources:
                _check_with_text(model, tokenizer, source, template, settings.new_tokens)
    width, last_width = anatomy_of(model).width, unembedding_size(model)[1]
    for source in sources:
        what = f"prompt {source.prompt.name}: state {n_layers} (after the final norm) "
        if not any(layer == n_layers for layer, _ in source.pairs):
            continue
        if settings.insertion_layer == SAME:
            raise InputError(
                f"{what}is not the input of a layer; with insertion layer 'same', choose layers 0 to {n_layers - 1}"
            )
        if last_width != width:  # as in OPT-350m
            raise InputError(
                f"{what}has width {last_width}, but layers have width {width}; choose layers 0 to {n_layers - 1}"
            )
    probe = torch.zeros(width)
    for template in templates:
        _check_insertion(model, template, insertion(template, 0, probe, settings))


def _check_with_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    template: InterpretationPrompt,
    new_tokens: int,
) -> None:
    """Check that the model can read an interpretation prompt with the text of a prompt, and what it writes after it."""
    text = source.text_until(min(max(token for _, token in source.pairs), len(source.tokenised.ends) - 1))
    if text is None:
        return
    # The generated token is not known yet; each place of the text gets it.
    length = len(template.with_text(tokenizer, text)) + source.lacks_generated * template.n_places
    what = f"interpretation prompt {template.name!r} with the text of prompt {source.prompt.name}"
    remedy = "shorten the prompt, or leave out this control: text_control=False, or --no-text-control"
    try:
        check_length(model, what, length, new_tokens)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from None
    limit = longrope_limit(model)
    if limit is not None and length + new_tokens > limit:
        raise InputError(
            f"{what} has {length} tokens; with {new_tokens} new tokens it exceeds {limit}, beyond which this model has "
            f"other rotary embeddings (longrope); {remedy}"
        )


def _check_insertion(model: PreTrainedModel, template: InterpretationPrompt, info: dict[Any, Any]) -> None:
    anatomy = anatomy_of(model)
    counts, n_layers = [len(template.ids)], len(anatomy.layers)
    try:
        plan_surgery([info], token_counts=counts, n_layers=n_layers, width=anatomy.width)
    except SpecError as error:
        raise SpecError(str(error).replace("insert_info[0]", "insertion")) from None


def count_rows(sources: Sequence[Source], n_templates: int) -> int:
    """Return the number of records that ``interpretations`` yields."""
    return n_templates * sum(1 + len(source.pairs) for source in sources)


def prompt_groups(sources: Sequence[Source], size: int) -> Iterator[list[Source]]:
    """Group neighbouring prompts into batches; the groups do not depend on which prompts are already done."""
    group: list[Source] = []
    for source in sources:
        group.append(source)
        if sum(len(one.pairs) for one in group) >= size:
            yield group
            group = []
    if group:
        yield group


def _states(model: PreTrainedModel, source: Source, settings: Settings) -> list[State]:
    """Return the states of ``source.pairs``, from one forward pass over the prompt."""
    wrong = _wrong_tokens(source, settings) if settings.wrong_vector else [None] * len(source.pairs)
    sites = states_of(model, source)  # layer -> [T, D]
    return [
        State(
            prompt=source.prompt.name,
            layer=layer,
            token=token,
            vector=sites[layer][token],
            wrong=None if other is None else sites[layer][other],
            wrong_token=other,
            text=source.text_until(token) if settings.text_control else None,
        )
        for (layer, token), other in zip(source.pairs, wrong, strict=True)
    ]


def _wrong_tokens(source: Source, settings: Settings) -> list[int | None]:
    """Choose, for each state, another token of the same prompt; its state at the same layer is the wrong state.

    The token is one of the requested tokens if there are several, so that most wrong states are in the batch anyway;
    otherwise one of the user's message, if it has another one: the chat template says nothing of its own. The random
    choice depends only on the seed, the prompt's name and the layer.
    """
    chosen: list[int | None] = []
    for layer, token in source.pairs:
        asked = list(dict.fromkeys(other for of, other in source.pairs if of == layer))
        others = asked if len(asked) > 1 else [token, *_others(source.tokenised, token)]
        chance = random.Random(f"{settings.seed} {source.prompt.name} {layer}")
        step = chance.randrange(1, len(others)) if len(others) > 1 else 0
        chosen.append(others[(others.index(token) + step) % len(others)] if step else None)
    return chosen


def _others(prompt: TokenisedPrompt, token: int) -> list[int]:
    """Return the other tokens of the user's message, or if there are none, of the whole prompt."""
    in_message = [other for other in prompt.content if other != token]
    return in_message or [other for other in range(len(prompt.ids)) if other != token]


@dataclass(frozen=True)
class _RowWriter:
    """Writes the rows of one prompt and one template."""

    tokenizer: PreTrainedTokenizerBase
    source: Source
    template: InterpretationPrompt
    settings: Settings
    prompt_output: str
    control: Reading
    n_layers: int

    def _site(self, layer: int | None) -> str:
        """Return where the state was taken from; the last of ``hidden_states`` is after the final norm."""
        return FINAL_NORM if self.source.site == RESID_PRE and layer == self.n_layers else self.source.site

    def write(
        self, reading: Reading | Unread, kind: str, layer: int | None = None, token: int | None = None
    ) -> Interpretation:
        if isinstance(reading, str):
            reading = Reading(Written([], []), [], [], None, [])
        written, tokenised = reading.written, self.source.tokenised
        signed = [own - other for own, other in zip(written.probabilities, reading.p_without, strict=True)]
        gain = None if layer is None else log_gain(written.probabilities, reading.p_without)
        wrong_gain = log_gain(written.probabilities, reading.p_wrong) if reading.p_wrong else None
        text_gain = log_gain(written.probabilities, reading.p_text) if reading.p_text else None
        gains = [one for one in (gain, wrong_gain, text_gain) if one is not None]
        text = decoded(self.tokenizer, written.ids)
        empty = None if kind == "failed" else says_nothing(text)
        where = self.settings.insertion_layer
        return Interpretation(
            name=self.source.prompt.name,
            prompt=tokenised.text,
            current_token="" if token is None else tokenised.pieces[token],
            token_idx=token,
            interpretation=written.ids,
            prompt_output=self.prompt_output,
            prompt_token_list=list(tokenised.pieces),
            category=self.source.prompt.category,
            layer_idx=layer,
            interpretation_weights=[abs(difference) for difference in signed],
            interpretation_prob=written.probabilities,
            repeat_prompt=self.template.text,
            repeat_prompt_name=self.template.name,
            interpretation_text=text,
            interpretation_tokens=pieces(self.tokenizer, written.ids),
            probability_without_insertion=reading.p_without,
            signed_relevancy=signed,
            wrong_token_idx=reading.wrong_token,
            probability_with_wrong_vector=reading.p_wrong,
            probability_with_text=reading.p_text,
            gain_over_nothing=gain,
            gain_over_wrong_vector=wrong_gain,
            gain_over_text=text_gain,
            says_nothing=empty,
            says_more_than_controls=min(gains) > 0 and not empty if gains and all(map(isfinite, gains)) else None,
            overlap_with_control=None if layer is None else _overlap(written.ids, self.control.written.ids),
            site=self._site(layer),
            insertion_layer=None if layer is None else layer if isinstance(where, str) else where,
            kind=kind,
        )


def _overlap(ids: Sequence[int], others: Sequence[int]) -> float | None:
    """Return the share of tokens that also occur in another text, each of whose tokens matches once; None if empty."""
    return (Counter(ids) & Counter(others)).total() / len(ids) if ids else None
