"""Interpretations in batches: groups of prompts, states that fail, batches that do not fit in memory."""

from dataclasses import replace

import pytest
import torch

from interpret.errors import ModelError
from interpret.prompts.prompts import Prompt
from interpret.selfie import readings
from interpret.selfie.rows import interpretations
from interpret.selfie.sources import plan_sources
from reference.memory import only_new_objects, tensor_bytes
from reference.self_interpretation import (
    PROMPTS,
    SCORED,
    SETTINGS,
    rows_of,
    speaking_model,
    templates,
)
from reference.toy_tokenizers import byte_level


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("size", [5, None])
def test_batch_size_changes_no_row(kind, size):
    model, tokenizer = speaking_model(kind), byte_level(chat=True)
    one, five = (
        rows_of(model, tokenizer, settings=replace(SCORED, batch_size=size), layers="1:4:2", tokens="::2")
        for size in (1, size)
    )
    numbers = (
        "interpretation_prob",
        "probability_without_insertion",
        "probability_with_wrong_vector",
        "signed_relevancy",
        "interpretation_weights",
        "gain_over_nothing",
        "gain_over_wrong_vector",
        "probability_with_text",
        "gain_over_text",
    )
    for a, b in zip(one, five, strict=True):
        for name in numbers:
            assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-5)
        assert replace(a, **dict.fromkeys(numbers)) == replace(b, **dict.fromkeys(numbers))


def test_groups_of_prompts_do_not_depend_on_which_are_done():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    prompts = [Prompt(f"c_{n}", f"I love pizza {n}", "c", raw=True) for n in range(5)]
    sources = plan_sources(model, tokenizer, prompts, layers="1", tokens="0,1")
    made, settings = templates(tokenizer), replace(SCORED, batch_size=4)
    whole = list(interpretations(model, tokenizer, sources, made, settings))
    for done in range(6):
        skip = [prompt.name for prompt in prompts[:done]]
        rest = list(interpretations(model, tokenizer, sources, made, settings, skip=skip))
        assert rest == [row for row in whole if row.name not in skip]


def test_a_state_that_is_not_finite_costs_only_its_own_row():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    sound = rows_of(model, tokenizer, PROMPTS[1:], layers="0", tokens="0,1")
    broken = tokenizer(PROMPTS[1].text, add_special_tokens=False).input_ids[1]
    assert broken not in [token for template in templates(tokenizer) for token in template.ids]
    with torch.no_grad():
        model.get_input_embeddings().weight[broken] = float("nan")
    rows = rows_of(model, tokenizer, PROMPTS[1:], replace(SETTINGS, prompt_output_tokens=0), layers="0", tokens="0,1")
    assert [row.kind for row in rows] == ["control", "interpretation", "failed"] * 2
    assert rows[2].interpretation == rows[2].interpretation_prob == []
    assert rows[1].interpretation == sound[1].interpretation


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("no"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_with_a_message(monkeypatch, error):
    model, tokenizer = speaking_model(), byte_level(chat=True)
    calm = rows_of(model, tokenizer, layers="all", tokens="0,1", settings=replace(SETTINGS, batch_size=100))
    sizes, real = [], readings.start_inserted

    def cramped(primed, insertions):
        sizes.append(len(insertions))
        if len(insertions) > 6:
            raise error
        return real(primed, insertions)

    monkeypatch.setattr(readings, "start_inserted", cramped)
    said = []
    sources = plan_sources(model, tokenizer, PROMPTS, layers="all", tokens="0,1")
    settings = replace(SETTINGS, batch_size=100)
    rows = list(interpretations(model, tokenizer, sources, templates(tokenizer), settings, say=said.append))
    assert [row.interpretation for row in rows] == [row.interpretation for row in calm]
    assert max(sizes) == 20
    assert said[:2] == [
        "a batch did not fit in memory; continuing with batches of 10",
        "a batch did not fit in memory; continuing with batches of 5",
    ]


def test_not_even_one_row_fitting_is_an_error(monkeypatch):
    def cramped(primed, insertions):
        raise torch.cuda.OutOfMemoryError("no")

    monkeypatch.setattr(readings, "start_inserted", cramped)
    with pytest.raises(ModelError, match="^not even a single text fits in memory; use a smaller dtype or fewer"):
        rows_of(speaking_model(), byte_level(chat=True), layers="1", tokens="0")


def test_other_runtime_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def broken(primed, insertions):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(readings, "start_inserted", broken)
    with pytest.raises(RuntimeError, match="^shapes do not fit$"):
        rows_of(speaking_model(), byte_level(chat=True), layers="1", tokens="0")


def test_memory_does_not_grow_with_the_number_of_prompts():
    model, tokenizer = speaking_model(), byte_level(chat=True)
    peaks = []
    for count in (3, 24):
        prompts = [Prompt(f"c_{n}", f"I love pizza {n}", "c", raw=True) for n in range(count)]
        sources = plan_sources(model, tokenizer, prompts, layers="1", tokens="all")
        settings = replace(SETTINGS, batch_size=8)
        with only_new_objects():
            rows = interpretations(model, tokenizer, sources, templates(tokenizer), settings)
            peaks.append(max(tensor_bytes() for _ in rows))
    assert 0 < peaks[1] <= 1.1 * peaks[0]
