"""Attention scores equal ``output_attentions`` of the selected layers and heads."""

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from interpret.anatomy import base_of, last_attention_only, reporting_attention
from interpret.attribution._attribute import attribute
from interpret.attribution.methods.attention import attention
from interpret.attribution.steps.functions import probability
from interpret.attribution.steps.step import Step
from interpret.errors import InputError
from reference.kinds import L
from reference.plain_attribution import N_PROMPT, PROMPT, TARGET, TOKENIZER, ids_of, wide_model
from reference.tiny import eager
from reference.toy_tokenizers import sentence_piece

IDS = (1, 5, 9, 5, 70, 33)
H = 4


def step_of(model):
    return Step(model, sentence_piece(), IDS, 11, None, probability, 4)


@torch.no_grad()
def patterns(model):
    """[L, H, T], what the last token attends to."""
    found = eager(model)(input_ids=torch.tensor([IDS]), output_attentions=True).attentions
    stacked = torch.cat(found)[:, :, -1]
    assert stacked.shape == (L, H, len(IDS))
    return stacked


def test_the_default_is_the_mean_head_of_the_last_layer(family_model):
    found = attention(step_of(family_model))
    torch.testing.assert_close(found, patterns(family_model)[-1].mean(0))
    assert found.sum().item() == pytest.approx(1)


def test_no_full_attention_pattern_is_kept(family_model):
    kept = []
    base = base_of(family_model)
    handle = base.register_forward_hook(lambda module, args, output: kept.extend(output.attentions))
    attention(step_of(family_model), layers=None)
    handle.remove()
    assert [pattern.shape for pattern in kept] == [(1, H, 1, len(IDS))] * L
    assert {pattern.untyped_storage().nbytes() for pattern in kept} == {H * len(IDS) * 4}, "a view keeps the whole"


def test_a_pass_in_another_thread_has_full_attention_patterns(llama):
    def n_rows():
        output = llama(torch.tensor([IDS]), output_attentions=True, use_cache=False)
        return [pattern.shape[2] for pattern in output.attentions]

    with reporting_attention(llama), last_attention_only(llama), ThreadPoolExecutor(1) as pool:
        assert pool.submit(n_rows).result() == [len(IDS)] * L
        assert n_rows() == [1] * L


def test_all_layers_and_heads_are_the_plain_mean_of_output_attentions(family_model):
    torch.testing.assert_close(attention(step_of(family_model), layers=None), patterns(family_model).mean((0, 1)))


@pytest.mark.parametrize(
    ("selection", "rows"),
    [(2, [2]), (-2, [2]), ((1, 3), [1, 2]), ((-3, 4), [1, 2, 3]), ([3, 0], [3, 0]), ([-1], [3]), (None, range(4))],
)
def test_layers_and_heads_are_chosen_by_number_span_or_list(llama, selection, rows):
    whole, step = patterns(llama), step_of(llama)
    torch.testing.assert_close(attention(step, layers=selection), whole[list(rows)].mean((0, 1)))
    torch.testing.assert_close(attention(step, layers=None, heads=selection), whole[:, list(rows)].mean((0, 1)))


@pytest.mark.parametrize(("how", "reduce"), [("mean", torch.mean), ("max", torch.amax), ("min", torch.amin)])
def test_heads_then_layers_are_aggregated(llama, how, reduce):
    whole, step = patterns(llama)[1:], step_of(llama)
    torch.testing.assert_close(attention(step, layers=(1, 4), aggregate_heads=how), reduce(whole, 1).mean(0))
    torch.testing.assert_close(attention(step, layers=(1, 4), aggregate_layers=how), reduce(whole.mean(1), 0))


def test_single_takes_one_as_it_is(llama):
    found = attention(step_of(llama), layers=1, heads=3, aggregate_layers="single", aggregate_heads="single")
    torch.testing.assert_close(found, patterns(llama)[1, 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 4}, "layers is 4, but 4 does not exist; there are 0 to 3"),
        ({"heads": [0, -5]}, "heads is [0, -5], but -5 does not exist; there are 0 to 3"),
        ({"layers": (2, 6)}, "layers is (2, 6), but 4 does not exist; there are 0 to 3"),
        ({"layers": (2, 2)}, "layers is (2, 2), which selects none; give a number, a span (first, end) or a list"),
        ({"heads": []}, "heads is [], which selects none; give a number, a span (first, end) or a list"),
        (
            {"layers": (0, 1, 2)},
            "layers is (0, 1, 2); a span is (first, one past the last); for single indices give a list",
        ),
        ({"heads": 1.5}, "heads is 1.5; give a number, a span (first, end), a list of numbers or None"),
        ({"heads": "some"}, "unknown head selector 'some'; Allowed: all, an index, a slice such as 0:10:2"),
        (
            {"layers": torch.nn.Identity()},
            "layers is a Identity; give a number, a span (first, end), a list of numbers or None",
        ),
        ({"heads": True}, "heads is True; give a number, a span (first, end), a list of numbers or None"),
        ({"heads": [0.5]}, "heads is [0.5]; its entries must be integers"),
        (
            {"aggregate_heads": "average"},
            "unknown aggregate_heads 'average'; Allowed: mean, max, min, single",
        ),
        ({"aggregate_heads": "single"}, "aggregate_heads is 'single', but 4 are selected; select one, or use 'mean'"),
        (
            {"layers": None, "aggregate_layers": "single"},
            "aggregate_layers is 'single', but 4 are selected; select one, or use 'mean'",
        ),
    ],
)
def test_a_choice_that_does_not_fit_is_refused(llama, options, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        attention(step_of(llama), **options)


def test_attribute_takes_layers_and_heads():
    model = wide_model("llama")
    options = {"method": "attention", "layers": (1, 3), "heads": [0, 2]}
    found = attribute(model, TOKENIZER, PROMPT, TARGET, **options)
    (one,) = found.sequences
    assert found.info.options["layers"] == "(1, 3)"  # as a list it would be the two layers 1 and 3
    ids = ids_of(TARGET)
    with torch.no_grad():
        whole = eager(model)(input_ids=torch.tensor([ids]), output_attentions=True).attentions
    expected = torch.cat(whole)[1:3, [0, 2]].mean((0, 1)).numpy()  # [T, T]
    assert one.scores.shape == (len(ids), 2)
    for step in range(2):
        before = N_PROMPT + step
        assert one.scores[:before, step] == pytest.approx(expected[before - 1, :before], abs=1e-6)
        assert np.isnan(one.scores[before:, step]).all()


def test_no_gradient_is_needed():
    with torch.inference_mode():
        found = attribute(wide_model("llama"), TOKENIZER, PROMPT, TARGET, method="attention")
    assert found.sequences[0].scores.shape[1] == 2
