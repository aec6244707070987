"""What the cases run on: a fact to trace, states to interpret, and a text to attribute, of random words."""

from dataclasses import replace

import interpret
from benchmarks.bench_tracing import Fact, prepare
from benchmarks.gpu.comparing import Bench
from benchmarks.gpu.shapes import words
from interpret.attribution.steps.functions import probability
from interpret.attribution.steps.step import Step
from interpret.selfie.sources import Source
from interpret.selfie.templates import InterpretationPrompt

SAMPLES = 10
"""Noise samples of a trace."""
LAYER = 1
"""The layer whose input is edited when states are interpreted."""


def fact_of(bench: Bench, n_tokens: int) -> Fact:
    """Return a fact of a number of tokens; its subject is the second and third."""
    prompt = words(bench.shape.vocabulary, n_tokens, seed=1)
    return prepare(bench.model, bench.tokenizer, " ".join(prompt), " ".join(prompt[1:3]), SAMPLES)


def source_of(bench: Bench, n_states: int) -> Source:
    """Return the source of some states, spread evenly over all layers and tokens of a prompt."""
    text = " ".join(words(bench.shape.vocabulary, 12, seed=2))
    prompt = interpret.Prompt("prompt", text, "words", raw=True)
    (source,) = interpret.plan_sources(bench.model, bench.tokenizer, [prompt], layers="all", tokens="all")
    last = len(source.pairs) - 1
    return replace(source, pairs=[source.pairs[round(n * last / (n_states - 1))] for n in range(n_states)])


def template_of(bench: Bench) -> InterpretationPrompt:
    """Return an interpretation prompt of 20 tokens, with 5 slots after the first ten."""
    slot, *own = words(bench.shape.vocabulary, 16, seed=3)
    before, after = " ".join(own[:10]), " ".join(own[10:])
    return InterpretationPrompt(
        bench.tokenizer, (before, 0, 0, 0, 0, 0, f" {after}"), placeholder=f" {slot}", name="words"
    )


def steps_of(bench: Bench, n_prompt: int, n_steps: int) -> list[Step]:
    """Return the steps of a text of random words after a prompt of some tokens, whose probabilities are attributed."""
    ids = tuple(int(word[1:]) for word in words(bench.shape.vocabulary, n_prompt + n_steps, seed=4))
    ends = range(n_prompt, n_prompt + n_steps)
    return [Step(bench.model, bench.tokenizer, ids[:end], ids[end], None, probability, batch_size=8) for end in ends]
