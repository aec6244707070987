"""The table of what models need: its formulas against models, against measurements, and against the document."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
DOCUMENT = (BENCHMARKS / "README.md").read_text()
MEMORY, TIME = 0.25, 0.4
"""Largest relative difference between measured and computed."""
SECONDS = 8
"""A difference between times that does not count: a command of a single pass is mostly its start."""


@pytest.fixture(scope="module")
def needs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("needs", BENCHMARKS / "needs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["needs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_table_in_the_document_is_the_computed_one(needs: ModuleType) -> None:
    assert needs.table(needs.Machine()) in DOCUMENT


@pytest.mark.parametrize("number", range(4))
def test_weights_are_those_of_a_model_of_this_shape(number: int, needs: ModuleType) -> None:
    shape = needs.SHAPES[number]
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.inner,
        num_hidden_layers=1, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        model.tie_weights()
    of_layer = sum(parameter.numel() for parameter in model.model.layers.parameters())
    total = sum(parameter.numel() for parameter in model.parameters()) + (shape.layers - 1) * of_layer
    assert shape.weights == pytest.approx(total, rel=1e-3)


def test_what_was_measured_is_what_is_computed(needs: ModuleType) -> None:
    shapes = {shape.name: shape for shape in needs.SHAPES}
    number = r" ([\d.]*) ?\|"
    rows = re.findall(rf"^\| (\S+) \| ([^|]+) \|{number * 4}$", DOCUMENT.partition("## needs.py")[2], re.MULTILINE)
    assert {(row[0], row[1]) for row in rows} == {
        (shape.name, command) for shape in needs.SHAPES[:2] for command in needs.works(shape)
    }
    for name, command, size, shown_size, elapsed, shown_time in rows:
        work = needs.works(shapes[name])[command]
        memory, seconds = needs.memory(shapes[name], work) / 1e9, needs.seconds(shapes[name], work, needs.Machine())
        assert float(shown_size) == pytest.approx(memory, abs=0.005)
        assert float(shown_time) == pytest.approx(seconds, abs=0.05)
        assert not size or memory == pytest.approx(float(size), rel=MEMORY), (name, command)
        assert float(elapsed) == pytest.approx(seconds, rel=TIME, abs=SECONDS), (name, command)


def test_the_times_of_traces_in_another_benchmark_are_the_computed_ones(needs: ModuleType) -> None:
    shape, machine = needs.SHAPES[0], needs.Machine()
    traces = re.findall(r"^\| hidden \| (\d+) \((\d+)\) \|[^|]*\|[^|]*\| ([\d.]+) s", DOCUMENT, re.MULTILINE)
    assert len(traces) == 3
    for tokens, first, measured in traces:
        traced = needs.traced(shape, int(tokens), int(first), 10)
        computed = needs.seconds(shape, traced, machine) - needs.STARTING
        assert computed == pytest.approx(float(measured), rel=TIME)
