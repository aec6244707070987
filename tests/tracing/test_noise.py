"""Noise on the subject: its size, its distribution, its seed, and what it replaces."""

import re

import numpy as np
import pytest
import torch

from interpret.errors import InputError
from interpret.tracing.noise import corrupt, draw, embedding_rows, embedding_sigma, noise_of, parse_noise
from reference.kinds import D, L
from reference.toy_tokenizers import sentence_piece
from reference.traced import (
    CLOSE,
    MODELS,
    SAMPLES,
    TOKENIZER,
    corrupted_embeddings,
    embedded,
    probabilities,
    ready_noise,
    traced,
)
from reference.tracing import run


def test_the_standard_deviation_is_that_of_the_collected_rows():
    model, texts = MODELS["llama"], ["Eiffel Tower", "Paris", "cheese"]
    rows = [row for text in texts for row in embedded(model, TOKENIZER(text)["input_ids"])[0].numpy()]
    sigma = embedding_sigma(model, TOKENIZER, texts)
    assert sigma == pytest.approx(np.std(np.array(rows, dtype=np.float64), ddof=1), rel=1e-9)
    noise = noise_of("s3", (2, 2, D), model, TOKENIZER, "Paris", texts=texts, seed=1)
    np.testing.assert_allclose(noise, np.random.RandomState(1).randn(2, 2, D) * 3 * sigma, rtol=1e-12)


def test_special_tokens_do_not_affect_the_size_of_the_noise():
    model = MODELS["llama"]
    assert sentence_piece()("Paris")["input_ids"][0] == sentence_piece().bos_token_id
    rows = embedding_rows(model, sentence_piece(), ["Paris"])
    assert len(rows) == len(sentence_piece()("Paris")["input_ids"]) - 1


def test_without_texts_the_size_is_that_of_the_subject():
    own = noise_of("s1", (1, 2, D), MODELS["llama"], TOKENIZER, "Paris")
    given = noise_of("s1", (1, 2, D), MODELS["llama"], TOKENIZER, "other", texts=["Paris"])
    assert np.array_equal(own, given)


@pytest.mark.parametrize("size", [1, 1.0, "1", "1.0"])
def test_a_number_is_an_absolute_standard_deviation(size):
    noise = noise_of(size, (2, 3, D), MODELS["llama"], TOKENIZER, "Paris", seed=7)
    np.testing.assert_array_equal(noise, np.random.RandomState(7).randn(2, 3, D))


def test_uniform_noise_lies_between_its_bounds():
    noise = draw(parse_noise("u0.5"), (100, 3, 8), torch.zeros(2, 8), 0)
    assert noise.min() > -0.5
    assert noise.max() < 0.5
    assert noise.std() == pytest.approx(0.5 / 3**0.5, rel=0.05)


def correlated_rows(n=400):
    chance = np.random.default_rng(0)
    return torch.from_numpy(chance.normal(size=(n, 4)) @ chance.normal(size=(4, 4)) + [1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize(("spec", "samples", "tolerance"), [("m", 20_000, 0.1), ("t8", 60_000, 0.2)])
def test_gaussian_and_students_noise_have_the_covariance_of_the_rows(spec, samples, tolerance):
    rows = correlated_rows()
    noise = draw(parse_noise(spec), (samples, 1, 4), rows, 0)[:, 0]
    if spec == "m":
        np.testing.assert_allclose(noise.mean(axis=0), rows.mean(dim=0), atol=0.1)
    noise = noise - noise.mean(axis=0)
    expected = np.cov(rows.numpy().T)
    np.testing.assert_allclose(np.cov(noise.T), expected, atol=tolerance * np.abs(expected).max() + 0.5 * (spec != "m"))


def test_students_noise_has_heavier_tails_and_new_factors_for_each_token():
    rows = correlated_rows()
    rows = rows - rows.mean(dim=0)

    def kurtosis(spec):
        noise = draw(parse_noise(spec), (5000, 1, 4), rows, 3)[:, 0, 0]
        return ((noise - noise.mean()) ** 4).mean() / noise.var() ** 2

    assert kurtosis("m") == pytest.approx(3, abs=0.3)
    assert kurtosis("t5") > 4
    ratios = draw(parse_noise("t5"), (3, 2, 4), rows, 3) / draw(parse_noise("m"), (3, 2, 4), rows, 3)
    np.testing.assert_allclose(ratios, ratios[..., :1].repeat(4, axis=-1))  # one factor per token
    assert len(np.unique(ratios[..., 0].round(6))) == 6


@pytest.mark.parametrize("spec", ["m", "t5"])
def test_the_covariance_of_three_rows_is_divided_by_two(spec):
    """The noise is a linear function of normal draws; its square is the covariance, whatever root is taken."""
    rows = torch.tensor([[1.0, 4.0], [3.0, -2.0], [8.0, 1.0]], dtype=torch.float64)
    expected = np.cov(rows.numpy().T, ddof=1)
    random, size = np.random.RandomState(6), (500, 2, 2)
    normal = random.randn(*size).reshape(-1, 2)
    noise = draw(parse_noise(spec), size, rows, 6).reshape(-1, 2)
    if spec == "t5":
        noise = noise / np.sqrt(3 / random.chisquare(5, size[:2])).reshape(-1, 1)
    root = np.linalg.lstsq(normal, noise - rows.numpy().mean(axis=0), rcond=None)[0]
    np.testing.assert_allclose(root.T @ root, expected, rtol=1e-9)


def test_one_row_has_no_covariance():
    with pytest.raises(InputError, match=r"^noise 'm' or 't' needs the embeddings of at least 2 tokens; give longer"):
        draw(parse_noise("m"), (2, 1, 4), torch.ones(1, 4).double(), 0)


@pytest.mark.parametrize(("spec", "code", "size"), [("s", "s", 1), ("s2.5", "s", 2.5), ("m", "m", 1), ("t7", "t", 7)])
def test_a_specification_has_a_code_and_a_size(spec, code, size):
    assert (parse_noise(spec).code, parse_noise(spec).size) == (code, size)


def test_s_alone_is_one_standard_deviation_of_n_minus_1():
    rows = torch.tensor([[1.0, 4.0], [3.0, -2.0], [8.0, 1.0]], dtype=torch.float64)
    expected = np.random.RandomState(3).randn(2, 1, 2) * rows.numpy().std(ddof=1)
    for spec, factor in (("s", 1), ("s3", 3)):
        np.testing.assert_allclose(draw(parse_noise(spec), (2, 1, 2), rows, 3), expected * factor, rtol=1e-12)


def test_vocabulary_sets_gaussian_noise_where_no_texts_are_given():
    model = MODELS["llama"]
    noise = noise_of("m", (4000, 1, D), model, TOKENIZER, "Paris")
    weight = model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_allclose(noise[:, 0].std(axis=0), weight.std(axis=0), rtol=0.1)


def test_the_same_seed_gives_the_same_trace_to_the_byte():
    first, again, other = traced(seed=5), traced(seed=5), traced(seed=6)
    assert first.sample_scores.tobytes() == again.sample_scores.tobytes()
    assert first.low == again.low
    assert first.low != other.low


def test_baseline_and_every_cell_see_the_same_noise():
    """If the restored state cannot reach the last position, each sample's score is its own ``sample_lows`` value."""
    result = traced()
    for token in range(len(result.tokens) - 1):
        np.testing.assert_array_equal(result.sample_scores[:, token, L - 1], result.sample_lows)
    assert len(np.unique(result.sample_lows)) == SAMPLES
    np.testing.assert_allclose(result.sample_scores[:, -1, L - 1], result.high, rtol=1e-6)


def test_noise_stays_on_the_subject_and_may_replace_it():
    embeddings = torch.randn(1, 5, 4)
    noise = np.random.default_rng(0).normal(size=(2, 2, 4))
    added, replaced = (corrupt(embeddings, (1, 3), noise, replace=replace) for replace in (False, True))
    torch.testing.assert_close(added[:, 1:3], embeddings[:, 1:3] + torch.from_numpy(noise).float())
    torch.testing.assert_close(replaced[:, 1:3], torch.from_numpy(noise).float())
    for run_ in (added, replaced):
        assert torch.equal(run_[:, [0, 3, 4]], embeddings[:, [0, 3, 4]].expand(2, -1, -1))


def test_corrupted_probabilities_use_replaced_embeddings():
    model = MODELS["opt"]
    first = traced("opt")
    noise = ready_noise(model, first.subject_span[1] - first.subject_span[0])
    result = traced("opt", noise=noise, replace=True)
    _, corrupted = corrupted_embeddings(model, result, noise, replace=True)
    lows = probabilities(run(model, corrupted, {}), result.answer_id)
    np.testing.assert_allclose(result.sample_lows, lows, **CLOSE)
    assert result.low != pytest.approx(traced("opt", noise=noise).low, rel=1e-3)


def test_noise_given_as_an_array_sets_the_number_of_samples():
    span = traced().subject_span
    noise = torch.from_numpy(ready_noise(MODELS["llama"], span[1] - span[0], samples=2))
    assert len(traced(noise=noise, samples=10).sample_lows) == 2


@pytest.mark.parametrize("noise", ["", "x3", "-1", -1.0, "s-1", "s3x", "mm", float("nan"), float("inf")])
def test_invalid_noise_is_refused(noise):
    with pytest.raises(InputError, match=r"^noise .* is not understood; give "):
        parse_noise(noise)


def test_a_noise_array_that_does_not_fit_is_refused():
    first, stop = traced().subject_span
    n = stop - first
    message = f"noise has shape (2, {n + 1}, {D}); this prompt needs [samples, {n} subject tokens, {D}]"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        traced(noise=np.ones((2, n + 1, D)))
    with pytest.raises(InputError, match=r"^noise is 0 everywhere and does not change the subject$"):
        traced(noise=np.zeros((2, n, D)))
    with pytest.raises(InputError, match=r"^noise contains NaN or infinity$"):
        traced(noise=np.full((2, n, D), np.nan))
