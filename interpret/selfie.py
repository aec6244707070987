"""Self-interpretation: a model says in words what one of its hidden states holds.

A hidden state of a prompt is inserted into the slots of an interpretation prompt, and what the model then
writes is its interpretation (SelfIE: Chen, Vondrick, Mao 2024, arXiv 2403.10949). Next to each written token
stand its probability with the insertion and without it; their difference tells how much it owes to the state.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from interpret.anatomy import anatomy_of, input_device, shared_past
from interpret.chat import MODEL_TEMPLATE, as_it_is, wrap
from interpret.errors import InputError
from interpret.facts import Prompt
from interpret.generation import forward_interpret, generate_interpret
from interpret.interpretation_prompt import InterpretationPrompt
from interpret.records import Interpretation
from interpret.selectors import select
from interpret.spans import TokenisedPrompt, select_tokens, tokenise
from interpret.spec import MODE, NORMALIZED, STRENGTH, plan_surgery


@dataclass(frozen=True)
class Settings:
    """How hidden states are interpreted."""

    insertion_layer: int = 1
    """The layer whose input is edited; 1 means after layer 0."""
    mode: str = NORMALIZED
    """``replacing_mode`` of the insertion."""
    strength: float = 1.0
    """``overlay_strength`` of the insertion."""
    new_tokens: int = 30
    """Longest interpretation, in tokens."""
    prompt_output_tokens: int = 30
    """Longest continuation of the prompt itself, in tokens; 0 for none."""
    batch_size: int = 64
    """Interpretations written side by side; changes no number."""


@dataclass(frozen=True)
class Source:
    """A prompt, and which of its hidden states are to be interpreted."""

    prompt: Prompt
    tokenised: TokenisedPrompt
    layers: Sequence[int]
    """Indices of ``hidden_states``: l is the input of layer l, L the state after the final norm."""
    tokens: Sequence[int]
    """Positions in the prompt."""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(layer, token) of every state, layer by layer."""
        return [(layer, token) for layer in self.layers for token in self.tokens]


@dataclass(frozen=True)
class Reading:
    """What the model wrote for one state, without the end-of-text token and what follows it."""

    ids: list[int]
    p_with: list[float]
    """Probability of each token in the run that wrote it."""
    p_without: list[float]
    """Probability of each token after the same ones, where nothing is inserted."""


def plan_sources(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    layers: str = "3:-1:5",
    tokens: str = "content",
    chat_template: str = MODEL_TEMPLATE,
) -> list[Source]:
    """Tokenise prompts and resolve the selectors, all before any work is done.

    Raises:
        InputError: naming the prompt, if a selector does not fit it.
    """
    n_states = len(anatomy_of(model).layers) + 1
    chosen = select("layer", layers, n_states)
    sources = []
    for prompt in prompts:
        try:
            chat_text = as_it_is(prompt.text) if prompt.raw else wrap(tokenizer, prompt.text, chat_template)
            tokenised = tokenise(tokenizer, chat_text, prompt.subject)
            sources.append(Source(prompt, tokenised, chosen, select_tokens(tokens, tokenised)))
        except InputError as error:
            raise InputError(f"prompt {prompt.name}: {error}") from None
    return sources


def interpretations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Source],
    templates: Sequence[InterpretationPrompt],
    settings: Settings = Settings(),  # noqa: B008 - frozen
) -> Iterator[Interpretation]:
    """Interpret every chosen hidden state of every prompt with every template.

    For each prompt and template comes first a control row, what the model writes where nothing is inserted, then
    a row for each state, layer by layer.

    Args:
        model: a causal LM of a known family.
        tokenizer: its tokenizer.
        sources: from ``plan_sources``.
        templates: interpretation prompts.
        settings: see ``Settings``.

    Raises:
        InterpretError: as ``check_request``.
    """
    check_request(model, sources, templates, settings)
    primed = [_prime(model, template) for template in templates]
    controls = [_read(model, one, None, settings)[0] for one in primed]
    for source in sources:
        states = _hidden_states(model, source)  # [N, D]
        output = _continue(model, source.tokenised.ids, settings.prompt_output_tokens)
        for one, control in zip(primed, controls, strict=True):
            row = _RowWriter(tokenizer, source, one.template, tokenizer.decode(output))
            yield row.write(control, "control")
            for start in range(0, len(states), settings.batch_size):
                batch = slice(start, start + settings.batch_size)
                readings = _read(model, one, states[batch], settings)
                for (layer, token), reading in zip(source.pairs[batch], readings, strict=True):
                    yield row.write(reading, "interpretation", layer, token)


def check_request(
    model: PreTrainedModel,
    sources: Sequence[Source],
    templates: Sequence[InterpretationPrompt],
    settings: Settings,
) -> None:
    """Refuse what ``interpretations`` could not carry out, before anything runs.

    Raises:
        InputError: if a prompt or a template with what follows it is longer than the model's context, which some
            families answer with nonsense.
        SpecError: if the insertion does not fit the model.
        UnsupportedModelError: if the model is of no known family.
    """
    longest = model.config.max_position_embeddings
    wanted = [(f"prompt {s.prompt.name}", len(s.tokenised.ids), settings.prompt_output_tokens) for s in sources]
    wanted += [(f"interpretation prompt {t.name!r}", len(t.ids), settings.new_tokens) for t in templates]
    for what, length, new in wanted:
        if length + new > longest:
            raise InputError(f"{what} has {length} tokens; with {new} new ones it exceeds the model's {longest}")
    anatomy = anatomy_of(model)
    for template in templates:
        plan_surgery(
            [_insertion(template, torch.zeros(anatomy.width), settings)],
            token_counts=[len(template.ids)],
            n_layers=len(anatomy.layers),
            width=anatomy.width,
        )


def count_rows(sources: Sequence[Source], n_templates: int) -> int:
    """Return how many records ``interpretations`` will yield."""
    return n_templates * sum(1 + len(source.pairs) for source in sources)


@dataclass(frozen=True)
class _RowWriter:
    """What the rows of one prompt and one template have in common."""

    tokenizer: PreTrainedTokenizerBase
    source: Source
    template: InterpretationPrompt
    prompt_output: str

    def write(self, reading: Reading, kind: str, layer: int | None = None, token: int | None = None) -> Interpretation:
        signed = [with_ - without for with_, without in zip(reading.p_with, reading.p_without, strict=True)]
        tokenised = self.source.tokenised
        return Interpretation(
            name=self.source.prompt.name,
            prompt=tokenised.text,
            current_token="" if token is None else tokenised.pieces[token],
            token_idx=token,
            interpretation=reading.ids,
            prompt_output=self.prompt_output,
            prompt_token_list=list(tokenised.pieces),
            category=self.source.prompt.category,
            layer_idx=layer,
            interpretation_weights=[abs(difference) for difference in signed],
            interpretation_prob=reading.p_with,
            repeat_prompt=self.template.text,
            repeat_prompt_name=self.template.name,
            interpretation_text=self.tokenizer.decode(reading.ids, clean_up_tokenization_spaces=False),
            probability_without_insertion=reading.p_without,
            signed_relevancy=signed,
            kind=kind,
        )


@torch.no_grad()
def _hidden_states(model: PreTrainedModel, source: Source) -> Tensor:
    """Return the states of ``source.pairs`` in one pass over the prompt: [N, D]."""
    ids = torch.tensor([source.tokenised.ids], device=input_device(model))  # [1, T]
    output = model.base_model(ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
    return torch.stack([output.hidden_states[layer][0, token] for layer, token in source.pairs])


def _continue(model: PreTrainedModel, ids: Sequence[int], new_tokens: int) -> list[int]:
    """Return what the model writes after a prompt, greedily, without the end-of-text token."""
    if not new_tokens:
        return []
    prompt = torch.tensor([ids], device=input_device(model))
    config = _greedy(model, new_tokens)
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    return _until_end(output[0, len(ids) :].tolist(), config.eos_token_id)


@dataclass(frozen=True)
class _Primed:
    """A template the model has read once with nothing inserted: what all its interpretations share."""

    template: InterpretationPrompt
    past: Any
    """Keys and values of its T columns, one row."""
    first: Tensor
    """[V] probabilities of the token after it."""


@torch.no_grad()
def _prime(model: PreTrainedModel, template: InterpretationPrompt) -> _Primed:
    ids = torch.tensor([template.ids], device=input_device(model))  # [1, T]
    output = model(ids, attention_mask=torch.ones_like(ids), use_cache=True)
    return _Primed(template, output.past_key_values, _softmax(output.logits[0, -1]))


def _read(model: PreTrainedModel, primed: _Primed, states: Tensor | None, settings: Settings) -> list[Reading]:
    """Let the model write what states [N, D] say, greedily; for None, one reading with nothing inserted.

    The columns before the first slot come from the primed template; those up to the last are read here, so that
    stock decoding, which goes on from a cache by one token only, starts at the last.
    """
    template, rows = primed.template, 1 if states is None else len(states)
    prompt = torch.tensor([template.ids] * rows, device=input_device(model))  # [N, T]
    mask = torch.ones_like(prompt)
    info = None if states is None else [_insertion(template, state, settings) for state in states]
    start, last = min(template.slots[0], len(template.ids) - 1), len(template.ids) - 1
    past = shared_past(primed.past, start, rows)
    if start < last:
        with torch.no_grad():
            past = forward_interpret(
                model.base_model,
                prompt[:, start:last],
                attention_mask=mask[:, :last],
                past_key_values=past,
                use_cache=True,
                insert_info=info,
            ).past_key_values
    config = _greedy(model, settings.new_tokens)
    kept = _KeepProbabilities()
    written = generate_interpret(
        model,
        prompt,
        attention_mask=mask,
        past_key_values=past,
        generation_config=config,
        logits_processor=LogitsProcessorList([kept]),
        insert_info=info,
    )[:, len(template.ids) :]  # [N, new]
    p_with = torch.stack(kept.steps, dim=1)  # [N, new]
    p_without = p_with if states is None else _without_insertion(model, primed, written)
    readings = []
    for row, with_, without in zip(written.tolist(), p_with.tolist(), p_without.tolist(), strict=True):
        ids = _until_end(row, config.eos_token_id)
        readings.append(Reading(ids, with_[: len(ids)], without[: len(ids)]))
    return readings


def _insertion(template: InterpretationPrompt, state: Tensor, settings: Settings) -> dict[int | str, object]:
    """Return the ``insert_info`` entry that puts one state [D] into every slot."""
    vectors = state.expand(1, len(template.slots), -1)  # [1, P, D]
    return {
        settings.insertion_layer: (template.slots, vectors),
        MODE: settings.mode,
        STRENGTH: settings.strength,
    }


def _greedy(model: PreTrainedModel, new_tokens: int) -> GenerationConfig:
    """Return a plain greedy search: what a checkpoint's own configuration adds would change the probabilities."""
    own = model.generation_config
    end = own.eos_token_id if own.eos_token_id is not None else model.config.eos_token_id
    pad = own.pad_token_id if own.pad_token_id is not None else (end[0] if isinstance(end, list) else end)
    return GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=end, pad_token_id=pad)


class _KeepProbabilities(LogitsProcessor):
    """Keeps the probability of the token greedy search takes at each step, and changes nothing."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(_softmax(scores).amax(-1))  # [N, V] -> [N]
        return scores


@torch.no_grad()
def _without_insertion(model: PreTrainedModel, primed: _Primed, written: Tensor) -> Tensor:
    """Return the probability of each written token, [N, new], where the template has nothing inserted."""
    rows, new = written.shape
    length = len(primed.template.ids)
    first = primed.first[written[:, 0]].unsqueeze(1)  # [N, 1]
    if new == 1:
        return first
    states = model.base_model(
        written[:, :-1],
        attention_mask=written.new_ones(rows, length + new - 1),
        past_key_values=shared_past(primed.past, length, rows),
    )[0]  # [N, new - 1, D]
    rest = _softmax(model.get_output_embeddings()(states)).gather(-1, written[:, 1:, None])
    return torch.cat([first, rest.squeeze(-1)], dim=1)


def _softmax(logits: Tensor) -> Tensor:
    """Return probabilities over the last dimension, computed in float32 at least."""
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _until_end(ids: list[int], end: int | list[int] | None) -> list[int]:
    """Cut ``ids`` before the first end-of-text token."""
    ends = end if isinstance(end, list) else [end]
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]
