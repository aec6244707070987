"""Attribution of encoder-decoder translation models: M2M100, NLLB and Marian.

A step's text is the source and then what the decoder has read, so that every method that works on embeddings takes
both at once; scores are taken apart afterwards. Letters: S tokens of the source, T tokens the decoder reads or writes,
G of them attributed, B rows, D width of an embedding, V size of the vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from interpret.anatomy import given_embedding_scales, input_device
from interpret.attribution.functions import FUNCTIONS, step_functions
from interpret.attribution.languages import Languages
from interpret.attribution.methods import METHODS as EVERY_METHOD
from interpret.attribution.plan import Plan
from interpret.attribution.result import Attributed, Floats, side_by_side
from interpret.attribution.steps import Step, array, gathered_details
from interpret.attribution.targets import Inputs, Text, text_of
from interpret.batches import pad
from interpret.errors import InputError

METHODS = ("saliency", "input_x_gradient", "integrated_gradients", "gradient_shap", "occlusion", "lime")
"""Those that work on embeddings alone."""


@dataclass(frozen=True)
class TranslationStep(Step):
    """One attributed token of a translation; ``ids`` are the source's S and then the decoder's."""

    n_source: int = field(kw_only=True)
    """S."""
    flags: frozenset[int] = field(kw_only=True)
    """Tokens that name a language."""

    @cached_property
    def special(self) -> Tensor:
        """[S + T] bool: which tokens are special ones, those that name a language included."""
        special = self.flags | set(self.tokenizer.all_special_ids)
        return torch.tensor([token in special for token in self.ids], device=self.embeddings.device)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the logits of the next token, [B, S + T, D] -> [B, V], float32 at least."""
        of_source, of_target = given_embedding_scales(self.model)
        output = self.model(
            inputs_embeds=embeddings[:, : self.n_source] * of_source,
            decoder_inputs_embeds=embeddings[:, self.n_source :] * of_target,
            use_cache=False,
        )
        logits = output.logits[:, -1]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def check_names(method: str, functions: Sequence[str]) -> None:
    """Refuse what needs the layers of a decoder-only model.

    Args:
        method: a method's name.
        functions: names of step functions that are attributed or reported.

    Raises:
        InputError: naming what there is.
    """
    if method in EVERY_METHOD and method not in METHODS:
        raise InputError(f"method {method!r} is not for encoder-decoder models; these are: {', '.join(METHODS)}")
    for name in step_functions(functions):
        if FUNCTIONS[name].dropout:
            raise InputError(f"{name!r} is not for encoder-decoder models; use 'probability'")


def translations(plan: Plan, inputs: Inputs, languages: Languages) -> Iterator[Attributed]:
    """Yield the attribution of each input, in order; no more than one batch of texts is held at a time.

    Args:
        plan: what is done.
        inputs: sources as prompts, and translations as targets, without their sources; a contrast's are such too.
        languages: what is read and written.

    Raises:
        InputError: for texts that do not fit; where translations are given, before the first is attributed.
    """
    batches = range(0, len(inputs.prompts), plan.batch_size)
    if inputs.targets is not None:
        for first in batches:
            _texts(plan, inputs, languages, first)
    for first in batches:
        yield from (_attributed(plan, languages, *one) for one in _texts(plan, inputs, languages, first))


def _texts(plan: Plan, inputs: Inputs, languages: Languages, first: int) -> list[tuple[Text, int]]:
    """Return one batch of texts, each source and translation in one, with the length of the source."""
    numbers = range(len(inputs.prompts))[first : first + plan.batch_size]
    sources = [languages.source_ids(inputs.prompts[number]) for number in numbers]
    if inputs.targets is None:
        wholes = write_translations(plan.model, sources, languages, plan.max_new_tokens)
    else:
        wholes = [_given(languages, "targets", number, inputs.targets[number]) for number in numbers]
    texts = []
    for number, source, whole in zip(numbers, sources, wholes, strict=True):
        foils = inputs.contrast_targets
        foil = None if foils is None else (*source, *_given(languages, "contrast_targets", number, foils[number]))
        n_prompt = len(source) + len(languages.begin)
        texts.append((text_of(plan, inputs, number, (*source, *whole), n_prompt, foil), len(source)))
    return texts


def _given(languages: Languages, what: str, number: int, text: str) -> tuple[int, ...]:
    ids = languages.target_ids(text)
    if len(ids) == len(languages.begin):
        raise InputError(f"{what}[{number}] {text!r} has no tokens; there is nothing to attribute")
    return ids


@torch.no_grad()
def write_translations(
    model: PreTrainedModel, sources: Sequence[Sequence[int]], languages: Languages, new_tokens: int
) -> list[tuple[int, ...]]:
    """Return what a model translates greedily, without the end-of-text token.

    Args:
        model: the model.
        sources: tokens of the texts to translate.
        languages: what is written.
        new_tokens: at most so many, after what every translation begins with.

    Returns:
        For each source all tokens of the decoder, what every translation begins with included.
    """
    tokenizer, begin = languages.tokenizer, languages.begin
    batch = pad(sources, pad_id=tokenizer.pad_token_id, side="right", device=input_device(model))
    config = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[tokenizer.pad_token_id],  # padding is no text, though Marian begins with it
    )
    start = torch.tensor([begin] * len(sources), device=batch.input_ids.device)
    output = model.generate(
        batch.input_ids, attention_mask=batch.attention_mask, decoder_input_ids=start, generation_config=config
    )
    new = output[:, len(begin) :].tolist()
    end = tokenizer.eos_token_id
    return [(*begin, *(text[: text.index(end)] if end in text else text)) for text in new]


def _attributed(plan: Plan, languages: Languages, text: Text, n_source: int) -> Attributed:
    steps = [
        TranslationStep(
            plan.model,
            plan.tokenizer,
            text.ids[:column],
            text.ids[column],
            foil,
            plan.function,
            plan.batch_size,
            n_source=n_source,
            flags=languages.flags,
        )
        for column, foil in zip(range(text.start, text.stop), text.foils, strict=True)
    ]
    step_scores = _step_scores(plan, steps)
    with torch.enable_grad():
        scores = [array(plan.method.fn(step, **plan.method_options)) for step in steps]  # [S + T_t, ...] each
    source, target = text.ids[:n_source], text.ids[n_source:]
    return Attributed(
        tokens=tuple(plan.tokenizer.convert_ids_to_tokens(list(target))),
        token_ids=target,
        n_prompt=text.n_prompt - n_source,
        start=text.start - n_source,
        stop=text.stop - n_source,
        scores=side_by_side([of_step[n_source:] for of_step in scores], len(target)),
        step_scores=step_scores,
        details=gathered_details(steps),
        source_tokens=tuple(plan.tokenizer.convert_ids_to_tokens(list(source))),
        source_ids=source,
        source_scores=np.stack([of_step[:n_source] for of_step in scores], axis=1),
    )


@torch.no_grad()
def _step_scores(plan: Plan, steps: Sequence[TranslationStep]) -> dict[str, Floats]:
    """Return every function that is reported, [G] each."""
    values: dict[str, list[float]] = {name: [] for name in plan.step_scores}
    for step in steps:
        reading = step.reading(step.logits(step.embeddings), step.embeddings)
        for name, function in plan.step_scores.items():
            values[name].append(function(reading).item())
    return {name: np.array(of_steps) for name, of_steps in values.items()}
