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
MEMORY, TIME = 0.25, 0.35
"""Largest relative difference between computed and measured."""


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


def test_the_memory_that_was_measured_is_the_computed_one(needs: ModuleType) -> None:
    shapes = {shape.name: shape for shape in needs.SHAPES}
    rows = re.findall(r"^\| (\S+) \| ([^|]+) \| ([\d.]+) \| ([\d.]+) \|$", DOCUMENT, re.MULTILINE)
    rows = [row for row in rows if row[0] in shapes]
    assert {row[0] for row in rows} >= {"SmolLM2-135M", "Qwen2.5-1.5B"}
    for name, command, measured, shown in rows:
        computed = needs.memory(shapes[name], needs.works(shapes[name])[command]) / 1e9
        assert float(shown) == pytest.approx(computed, abs=0.005)
        assert computed == pytest.approx(float(measured), rel=MEMORY), (name, command)


def test_the_times_of_the_other_benchmarks_are_the_computed_ones(needs: ModuleType) -> None:
    shape, machine = needs.SHAPES[0], needs.Machine()
    traces = re.findall(r"^\| hidden \| (\d+) \((\d+)\) \|[^|]*\|[^|]*\| ([\d.]+) s", DOCUMENT, re.MULTILINE)
    assert len(traces) == 3
    for tokens, first, measured in traces:
        computed = needs.seconds(shape, needs.traced(shape, int(tokens), int(first), 10), machine)
        assert computed == pytest.approx(float(measured), rel=TIME)
    ((states, measured),) = re.findall(r"fp32 \| (\d+) \| [\d.]+ s \| ([\d.]+) s", DOCUMENT)
    selfie = needs.works(shape, states=int(states))["selfie"]
    assert needs.seconds(shape, selfie, machine) == pytest.approx(float(measured), rel=TIME)
