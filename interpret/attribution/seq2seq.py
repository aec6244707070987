"""Attribution of encoder-decoder models: the text of a step, and the targets that a model writes.

The text of a step is the source followed by the tokens the decoder has read, so that methods on embeddings score both
at once; the scores are split afterwards. Shapes: S source tokens, T decoder tokens, G of them attributed, B rows, D
hidden width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from interpret.anatomy import (
    decode,
    decoder_layers,
    generating_by,
    input_device,
    last_attention_only,
    reporting_attention,
    stacked_layers,
)
from interpret.attribution.plan import Plan
from interpret.attribution.seq2seq_texts import Seq2SeqTexts
from interpret.attribution.steps.step import Step
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
from interpret.prompts.spelling import pieces
from interpret.prompts.vocabulary import special_ids


@dataclass(frozen=True)
class Seq2SeqStep(Step):
    """One attributed token of a target; ``ids`` are the S source tokens, then those the decoder has read."""

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
        return stacked_layers(self.model)

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
        return decode(self.model, embeddings[:, : self.n_source], embeddings[:, self.n_source :], **options)


def texts_with_sources(plan: Plan, inputs: Inputs, first: int) -> list[Text]:
    """Return one batch of texts, each a source and its target; the model writes the targets if none are given.

    Args:
        plan: of the attribution of an encoder-decoder model.
        inputs: all inputs: prompts are sources; targets and contrast targets do not repeat the source.
        first: index of the first input of the batch.

    Raises:
        InputError: for an invalid text.
    """
    reader = plan.seq2seq
    assert reader is not None
    numbers = range(len(inputs.prompts))[first : first + plan.batch_size]
    sources = [_source(plan, reader, number, inputs.prompts[number]) for number in numbers]
    if inputs.targets is None:
        check_length(plan, "the beginning of a target", len(reader.begin), plan.max_new_tokens)
        writing = partial(write_targets, plan.model, reader=reader, new_tokens=plan.max_new_tokens)
        written = list(in_batches(sources, len(sources), writing, lambda _: None))
        check_finite({number: one is not None for number, one in zip(numbers, written, strict=True)})
        wholes = [one for one in written if one is not None]
    else:
        wholes = [_given(plan, reader, "targets", number, inputs.targets[number]) for number in numbers]
    texts = []
    for number, source, whole in zip(numbers, sources, wholes, strict=True):
        foils = inputs.contrast_targets
        foil = None if foils is None else (*source, *_given(plan, reader, "contrast_targets", number, foils[number]))
        text = text_of(plan, inputs, number, (*source, *whole), len(source) + len(reader.begin), foil)
        groups = prompt_tokens(plan, text.n_prompt)
        texts.append(replace(text, pieces=_pieces(plan, source, whole), n_source=len(source), groups=groups))
    return texts


def _pieces(plan: Plan, source: Sequence[int], whole: Sequence[int]) -> tuple[str, ...]:
    return (*pieces(plan.tokenizer, source), *pieces(plan.tokenizer, whole))


def _source(plan: Plan, reader: Seq2SeqTexts, number: int, text: str) -> tuple[int, ...]:
    check_text(f"prompts[{number}]", text)
    ids = reader.source_ids(text)
    if not ids:
        raise InputError(f"prompts[{number}] {text!r} has no tokens; it needs at least one")
    check_length(plan, f"prompts[{number}]", len(ids))
    return ids


def _given(plan: Plan, reader: Seq2SeqTexts, what: str, number: int, target: Target) -> tuple[int, ...]:
    if isinstance(target, str):
        ids = reader.target_ids(target)
    else:
        ids = (*reader.begin, *given_ids(plan.tokenizer, target, f"{what}[{number}]"))
    if len(ids) == len(reader.begin):
        raise InputError(f"{what}[{number}] {target!r} has no tokens; there is nothing to attribute")
    check_length(plan, f"{what}[{number}]", len(ids))
    return ids


@torch.no_grad()
def write_targets(
    model: PreTrainedModel, sources: Sequence[Sequence[int]], reader: Seq2SeqTexts, new_tokens: int
) -> list[tuple[int, ...] | None]:
    """Write targets greedily; return the tokens without the end-of-text token.

    Generation settings of the checkpoint, such as a number of beams or a minimal length, are not applied.

    Args:
        model: the model.
        sources: tokens of the sources.
        reader: how its texts become tokens.
        new_tokens: maximum number of tokens to generate after ``reader.begin``.

    Returns:
        For each source all tokens of the decoder, including ``reader.begin``; None if there is no target,
        because a logit is NaN or infinite.
    """
    tokenizer, begin = reader.tokenizer, reader.begin
    batch = pad(sources, pad_id=tokenizer.pad_token_id, side="right", device=input_device(model))
    config = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        # transformers 5 makes T5's cache with as many layers as the encoder has.
        use_cache=len(decoder_layers(model)) <= model.config.num_hidden_layers,
        decoder_start_token_id=begin[0],
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[tokenizer.pad_token_id],  # never written, although many models begin with it
        output_scores=True,
        return_dict_in_generate=True,
    )
    start = torch.tensor([begin] * len(sources), device=batch.input_ids.device)
    with generating_by(model, config):  # most configurations would force an end-of-text token
        output = model.generate(
            batch.input_ids, attention_mask=batch.attention_mask, decoder_input_ids=start, generation_config=config
        )
    new = output.sequences[:, len(begin) :].tolist()
    sound, ends = sound_steps(output.scores), [tokenizer.eos_token_id]
    written = [greedy_continuation(text, ends, n_sound) for text, n_sound in zip(new, sound, strict=True)]
    return [(*begin, *one.ids) if one.finite else None for one in written]
