"""Attribution of encoder-decoder translation models: M2M100, NLLB and Marian.

The text of a step is the source followed by the tokens the decoder has read, so that methods on embeddings score both
at once; the scores are split afterwards. Shapes: S source tokens, T decoder tokens, G of them attributed, B rows, D
hidden width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from interpret.anatomy import (
    decode_translation,
    generating_by,
    input_device,
    last_attention_only,
    reporting_attention,
)
from interpret.anatomy.passes import grad_mode
from interpret.attribution.languages import Languages
from interpret.attribution.parts import TextParts, scores_of
from interpret.attribution.plan import Plan
from interpret.attribution.result.aggregation import whole_answer
from interpret.attribution.result.scores import Attributed, ScoreArray, side_by_side
from interpret.attribution.steps.step import Room, Step, foil_tokens, gathered_details
from interpret.attribution.targets import (
    Inputs,
    Target,
    Text,
    check_finite,
    check_length,
    check_text,
    prompt_tokens,
    text_of,
)
from interpret.device import in_batches
from interpret.engine.greedy import greedy_continuation, sound_steps
from interpret.errors import InputError
from interpret.prompts.batches import pad
from interpret.prompts.encoding import given_ids
from interpret.prompts.spelling import pieces, words
from interpret.prompts.vocabulary import special_ids


@dataclass(frozen=True)
class TranslationStep(Step):
    """One attributed token of a translation; ``ids`` are the S source tokens, then those the decoder has read."""

    n_source: int = field(kw_only=True)
    """S, the number of source tokens."""
    flags: frozenset[int] = field(kw_only=True)
    """Ids of all language tokens."""
    one_trunk: ClassVar[bool] = False

    @cached_property
    def special(self) -> Tensor:
        """[S + T] bool: which tokens are special tokens, including language tokens."""
        special = self.flags | special_ids(self.tokenizer, self.ids)
        return torch.tensor([token in special for token in self.ids], device=self.embeddings.device)

    def layers(self) -> list[nn.Module]:
        """Return the layers of encoder and decoder."""
        return [*self.model.get_encoder().layers, *self.model.get_decoder().layers]

    def states(self, embeddings: Tensor) -> Tensor:
        """Return the final hidden state at each token of the decoder, [B, S + T, D] -> [B, T, D]."""
        states: Tensor = self._decoded(embeddings)[0]
        return states

    @torch.no_grad()
    def attentions(self) -> list[Tensor]:
        """Return what the decoder's last token attends to, in the source and in the decoder, [H, S + T] per layer.

        The weights of each head sum to 1 over the source, and to 1 over the tokens the decoder has read.
        """
        with reporting_attention(self.model), last_attention_only(self.model):
            output = self._decoded(self.embeddings, output_attentions=True)
        sides = zip(output.cross_attentions, output.attentions, strict=True)
        return [torch.cat([cross[0, :, -1], own[0, :, -1]], dim=1) for cross, own in sides]

    def _decoded(self, embeddings: Tensor, **options: bool) -> Any:
        """Run encoder and decoder; return the output of the decoder."""
        return decode_translation(self.model, embeddings[:, : self.n_source], embeddings[:, self.n_source :], **options)


def translated_texts(plan: Plan, inputs: Inputs, first: int) -> list[Text]:
    """Return one batch of texts, each a source and its translation; the model translates if no targets are given.

    Args:
        plan: of the attribution of a translation model.
        inputs: all inputs: prompts are sources; targets and contrast targets are translations without the source.
        first: index of the first input of the batch.

    Raises:
        InputError: for an invalid text.
    """
    languages = plan.languages
    assert languages is not None
    numbers = range(len(inputs.prompts))[first : first + plan.batch_size]
    sources = [_source(plan, languages, number, inputs.prompts[number]) for number in numbers]
    if inputs.targets is None:
        check_length(plan, "the beginning of a translation", len(languages.begin), plan.max_new_tokens)
        writing = partial(write_translations, plan.model, languages=languages, new_tokens=plan.max_new_tokens)
        written = list(in_batches(sources, len(sources), writing, lambda _: None))
        check_finite({number: one is not None for number, one in zip(numbers, written, strict=True)})
        wholes = [one for one in written if one is not None]
    else:
        wholes = [_given(plan, languages, "targets", number, inputs.targets[number]) for number in numbers]
    texts = []
    for number, source, whole in zip(numbers, sources, wholes, strict=True):
        foils = inputs.contrast_targets
        foil = None if foils is None else (*source, *_given(plan, languages, "contrast_targets", number, foils[number]))
        text = text_of(plan, inputs, number, (*source, *whole), len(source) + len(languages.begin), foil)
        texts.append(replace(text, n_source=len(source), groups=prompt_tokens(plan, text.n_prompt)))
    return texts


def _source(plan: Plan, languages: Languages, number: int, text: str) -> tuple[int, ...]:
    check_text(f"prompts[{number}]", text)
    ids = languages.source_ids(text)
    check_length(plan, f"prompts[{number}]", len(ids))
    return ids


def _given(plan: Plan, languages: Languages, what: str, number: int, target: Target) -> tuple[int, ...]:
    if isinstance(target, str):
        ids = languages.target_ids(target)
    else:
        ids = (*languages.begin, *given_ids(plan.tokenizer, target, f"{what}[{number}]"))
    if len(ids) == len(languages.begin):
        raise InputError(f"{what}[{number}] {target!r} has no tokens; there is nothing to attribute")
    check_length(plan, f"{what}[{number}]", len(ids))
    return ids


@torch.no_grad()
def write_translations(
    model: PreTrainedModel, sources: Sequence[Sequence[int]], languages: Languages, new_tokens: int
) -> list[tuple[int, ...] | None]:
    """Translate greedily; return the tokens without the end-of-text token.

    Args:
        model: the model.
        sources: tokens of the texts to translate.
        languages: source and target language.
        new_tokens: maximum number of tokens to generate after ``languages.begin``.

    Returns:
        For each source all tokens of the decoder, including ``languages.begin``; None if there is no translation,
        because a logit is NaN or infinite.
    """
    tokenizer, begin = languages.tokenizer, languages.begin
    batch = pad(sources, pad_id=tokenizer.pad_token_id, side="right", device=input_device(model))
    config = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        decoder_start_token_id=begin[0],
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[tokenizer.pad_token_id],  # never generated, although Marian begins with it
        output_scores=True,
        return_dict_in_generate=True,
    )
    start = torch.tensor([begin] * len(sources), device=batch.input_ids.device)
    with generating_by(model, config):  # Marian's own config would force an end-of-text token
        output = model.generate(
            batch.input_ids, attention_mask=batch.attention_mask, decoder_input_ids=start, generation_config=config
        )
    new = output.sequences[:, len(begin) :].tolist()
    sound, ends = sound_steps(output.scores), [tokenizer.eos_token_id]
    written = [greedy_continuation(text, ends, n_sound) for text, n_sound in zip(new, sound, strict=True)]
    return [(*begin, *one.ids) if one.finite else None for one in written]


def attributed_translation(plan: Plan, text: Text, parts: TextParts) -> Attributed:
    """Attribute one translation."""
    assert plan.languages is not None
    n_source, room = text.n_source, Room()
    steps = [
        TranslationStep(
            plan.model,
            plan.tokenizer,
            text.ids[:column],
            text.ids[column],
            foil,
            plan.function,
            plan.batch_size,
            room,
            parts.stored,
            text.groups,
            n_source=n_source,
            flags=plan.languages.flags,
        )
        for column, foil in zip(range(text.start, text.stop), text.foils, strict=True)
    ]
    step_scores = _step_scores(plan, steps)
    with grad_mode(True):
        scores = scores_of(plan.method, steps, (), plan.method_options, parts)[""]  # [S + T_t, ...] each
    source, target = text.ids[:n_source], text.ids[n_source:]
    found = Attributed(
        tokens=tuple(pieces(plan.tokenizer, target)),
        token_ids=target,
        words=tuple(words(plan.tokenizer, target)),
        n_prompt=text.n_prompt - n_source,
        start=text.start - n_source,
        stop=text.stop - n_source,
        scores=side_by_side([of_step[n_source:] for of_step in scores], len(target)),
        step_scores=step_scores,
        details=gathered_details(steps),
        foil_tokens=foil_tokens(steps),
        source_tokens=tuple(pieces(plan.tokenizer, source)),
        source_ids=source,
        source_words=tuple(words(plan.tokenizer, source)),
        source_scores=np.stack([of_step[:n_source] for of_step in scores], axis=1),
    )
    return whole_answer(found, plan.info.step_aggregates) if plan.whole else found


@torch.no_grad()
def _step_scores(plan: Plan, steps: Sequence[TranslationStep]) -> dict[str, ScoreArray]:
    """Return the values of all reported functions, [G] each."""
    values: dict[str, list[float]] = {name: [] for name in plan.step_scores}
    for step in steps:
        reading = step.reading(step.logits(step.embeddings), step.embeddings)
        for name, function in plan.step_scores.items():
            values[name].append(function(reading).item())
    return {name: np.array(of_steps) for name, of_steps in values.items()}
