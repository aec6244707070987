"""Discretized integrated gradients, compared with plain loops and autograd, and with closed forms."""

import numpy as np
import pytest
import torch

from interpret import InputError, attribute
from interpret.attribution.methods.discretized import AnchorSearch
from reference.discretized import discretized_gradients, path_of
from reference.plain_attribution import PROMPT, TARGET, TOKENIZER, prefixes, probability_of, wide_model
from reference.tiny import hooks_on

METHOD = "discretized_integrated_gradients"


def attributed(model, **options):
    (one,) = attribute(model, TOKENIZER, PROMPT, TARGET, method=METHOD, **options).sequences
    return one


def table_of(model):
    return model.get_input_embeddings().weight.detach().double().numpy()


def baseline_of(model, choice):
    table = model.get_input_embeddings().weight.detach()
    return (table.mean(0) if choice == "mean" else table[choice]).double().numpy()


@pytest.mark.parametrize(
    ("kind", "strategy", "baseline"),
    [("llama", "greedy", "mean"), ("gpt2", "greedy", 7), ("llama", "maxcount", 7), ("opt", "maxcount", "mean")],
)
def test_scores_are_those_of_plain_loops(kind, strategy, baseline):
    model, m, k = wide_model(kind), 6, 20
    found = attributed(model, n_steps=m, n_neighbors=k, strategy=strategy, baseline=baseline, batch_size=4)
    table, end = table_of(model), baseline_of(model, baseline)
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        points = np.stack([path_of(table, word, end, m, strategy, k) for word in ids], axis=1)
        expected = discretized_gradients(lambda x, of=target: probability_of(model, x, of), points)
        scores = found.scores[: len(ids), step]
        np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    assert hooks_on(model) == 0


def test_one_step_is_the_gradient_at_the_baseline():
    model = wide_model("gpt2")
    (ids, target), *_ = prefixes(TARGET)
    found = attributed(model, n_steps=1, baseline=7, end=1)
    table = model.get_input_embeddings().weight.detach()
    start = table[[7] * len(ids)][None].requires_grad_()
    (slope,) = torch.autograd.grad(probability_of(model, start, target).sum(), start)
    expected = (slope * (table[ids] - start))[0].detach().numpy()
    np.testing.assert_allclose(found.scores[: len(ids), 0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_error_is_the_distance_from_completeness():
    model = wide_model("llama")
    found = attributed(model, n_steps=5, baseline=7)
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        both = torch.tensor(table_of(model)[np.array([ids, [7] * len(ids)])], dtype=torch.float32)
        end, begin = probability_of(model, both, target).tolist()
        total = np.nansum(found.scores[:, step], dtype=np.float64)
        assert found.details["delta"][step] == pytest.approx(total - (end - begin), abs=1e-5)


def search(strategy="greedy", n_words=40, n_steps=8, n_neighbors=10, end=None, width=6):
    table = torch.randn(n_words, width, generator=torch.Generator().manual_seed(3))
    return AnchorSearch(table, table.mean(0) if end is None else table[end], n_steps, strategy, n_neighbors)


@pytest.mark.parametrize("strategy", ["greedy", "maxcount"])
@pytest.mark.parametrize("end", [None, 5])
def test_every_dimension_leads_from_baseline_to_word_without_turning(strategy, end):
    found = search(strategy, end=end)
    points = found.paths(torch.arange(40))
    assert points.shape == (9, 40, 6)
    torch.testing.assert_close(points[0], found.end.expand(40, 6), rtol=0, atol=0)
    torch.testing.assert_close(points[-1], found.table, rtol=0, atol=0)
    way = (points[-1] - points[0]).sign()
    assert (points.diff(dim=0) * way >= -1e-6).all()


@pytest.mark.parametrize("strategy", ["greedy", "maxcount"])
def test_a_token_that_is_the_baseline_stays_there(strategy):
    found = search(strategy, end=5)
    assert (found.paths(torch.tensor([5])) == found.end).all()


def test_a_word_whose_neighbours_are_all_passed_is_followed_by_the_baseline():
    found = search(n_words=3, n_neighbors=2, end=2)
    points = found.paths(torch.tensor([0]))  # its only neighbour that is not the baseline is word 1
    plain = path_of(found.table.double().numpy(), 0, found.end.double().numpy(), 8, "greedy", 2)
    np.testing.assert_allclose(points[:, 0], plain, atol=1e-6)
    assert (points[:-2] == found.end).all()
    assert not (points[-2] == found.end).all()


def test_searches_in_parts_find_the_same_paths(monkeypatch):
    expected = search().paths(torch.arange(40))
    monkeypatch.setattr("interpret.attribution.methods.discretized._MOST_NUMBERS", 200)
    torch.testing.assert_close(search().paths(torch.arange(40)), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": 0}, "n_steps is 0; give at least 1"),
        ({"n_neighbors": 0}, "n_neighbors is 0; give at least 1"),
        ({"strategy": "gready"}, "unknown strategy 'gready'; did you mean 'greedy'? Allowed: greedy, maxcount"),
        ({"baseline": "unl"}, "unknown baseline 'unl'; did you mean 'unk'? Allowed: zero, mean, pad, unk, bos, eos"),
    ],
)
def test_a_wrong_option_is_an_error(options, message):
    with pytest.raises(InputError) as caught:
        attributed(wide_model("llama"), **options)
    assert str(caught.value) == message
