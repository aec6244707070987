"""Traces of one prompt, compared with whole forward passes for each cell."""

import dataclasses
import re
from dataclasses import fields

import numpy as np
import pytest
import torch

from interpret.errors import InputError, UnsupportedModelError
from interpret.facts.files import Fact
from interpret.sweep import run_sweep
from interpret.tracing import exact
from interpret.tracing.calls import trace, trace_by_metric, trace_mediators
from interpret.tracing.facts import trace_cells
from interpret.tracing.inputs import TraceSettings
from interpret.tracing.mediators import MEDIATORS, UNIT_MEDIATORS
from interpret.tracing.tables import TraceGrid, normalised, trace_grids
from reference.kinds import ATTENDING, FURTHER, FURTHER_WHOLE, KINDS, NO_MLP, L
from reference.tiny import hooks_on
from reference.toy_tokenizers import sentence_piece
from reference.traced import (
    CLOSE,
    MODELS,
    PROMPT,
    SAMPLES,
    SUBJECT,
    TOKENIZER,
    corrupted_embeddings,
    embedded,
    probabilities,
    ready_noise,
    traced,
)
from reference.tracing import patched, recorded, run

METRICS = ["probability", "log_probability", "logit", "logit_difference", "rank"]
RESTORING = [name for name, row in MEDIATORS.items() if row.acts_on == "corrupted"]


# ------------------------------------------------------------------------------------- against forward passes


def restored_by(mediator, layer, window):
    """Return what a mediator's cell restores and severs, defined as in ROME and not by the engine."""
    around = [j for j in range(L) if layer - window // 2 <= j < layer + -(-window // 2)]
    later = range(layer + 1, L)
    return {
        "hidden": ("resid_post", [layer], {}),
        "attn_severed": ("resid_post", [layer], {"attn_out": later}),
        "mlp_severed": ("resid_post", [layer], {"mlp_out": later}),
        "attn_window": ("attn_out", around, {}),
        "mlp_window": ("mlp_out", around, {}),
        "attn_out": ("attn_out", [layer], {}),
        "mlp_out": ("mlp_out", [layer], {}),
        "mixer_out": ("mixer_out", [layer], {}),
    }[mediator]


def needed_by(mediator):
    """What a mediator needs in every layer."""
    return {"attn": {"attention"}, "mlp_": {"MLP"}, "mixe": {"mixer"}}.get(mediator[:4], set())


def had_by(kind):
    """What every layer of a kind has."""
    return {"mixer" if kind in ATTENDING else "attention"} | ({"MLP"} if kind not in NO_MLP else set())


@pytest.mark.matrix
@pytest.mark.parametrize("mediator", RESTORING)
@pytest.mark.parametrize("kind", [*KINDS, *FURTHER, *FURTHER_WHOLE])
@pytest.mark.filterwarnings("ignore:the family .* is described without its parts")
def test_a_trace_equals_romes_forward_passes(kind, mediator):
    model, window = MODELS[kind], 3
    # Large logits: in float32, probabilities of this Gemma are exact to about 1e-5.
    close = CLOSE | ({"rtol": 3e-5} if kind in ("gemma", "recurrent_gemma", "zamba2") else {})
    first = traced(kind)
    if refused := needed_by(mediator) - had_by(kind):
        said = r"^cells\[\d+\]: (layer \d of .* has (no attention: in its place is|attention, whose)|.* is described "
        said += "without|.* adds the)"
        with pytest.raises(UnsupportedModelError, match=said):
            traced(kind, mediator=mediator)
        assert refused
        return
    noise = ready_noise(model, first.subject_span[1] - first.subject_span[0])
    result = traced(kind, mediator=mediator, noise=noise, window=window)
    clean, corrupted = corrupted_embeddings(model, result, noise)
    answer = int(run(model, clean, {})[0, -1].argmax())
    assert result.answer_id == answer
    np.testing.assert_allclose(result.high, probabilities(run(model, clean, {}), answer)[0], **close)
    lows = probabilities(run(model, corrupted, {}), answer)
    np.testing.assert_allclose(result.low, lows.mean(), **close)
    np.testing.assert_allclose(result.sample_lows, lows, **close)
    n_tokens = len(result.tokens)
    assert result.scores.shape == (n_tokens, L)
    assert result.sample_scores.shape == (SAMPLES, n_tokens, L)
    for token, layer in np.random.default_rng(0).choice(list(np.ndindex(n_tokens, L)), 8, replace=False):
        site, layers, pins = restored_by(mediator, layer, window)
        logits = patched(model, corrupted, clean, site=site, token=token, layers=layers, pins=pins)
        expected = probabilities(logits, answer)
        np.testing.assert_allclose(result.sample_scores[:, token, layer], expected, **close)
        np.testing.assert_allclose(result.scores[token, layer], expected.mean(), **close)


@pytest.mark.parametrize("mediator", ["hidden", "attn_severed", "mlp_severed", "attn_out", "mlp_out"])
def test_a_prompt_of_one_token_is_traced_like_any_other(mediator):
    model, noise = MODELS["llama"], ready_noise(MODELS["llama"], 1)
    result = trace(model, TOKENIZER, "T", "T", mediator=mediator, noise=noise)
    assert len(result.tokens) == 1
    clean, corrupted = corrupted_embeddings(model, result, noise)
    for layer in range(L):
        site, layers, pins = restored_by(mediator, layer, 1)
        expected = probabilities(
            patched(model, corrupted, clean, site=site, token=0, layers=layers, pins=pins), result.answer_id
        )
        np.testing.assert_allclose(result.sample_scores[:, 0, layer], expected, **CLOSE)


def test_mediators_traced_together_equal_single_traces():
    settings = TraceSettings(samples=SAMPLES, window=2)
    names = [name for name in MEDIATORS if name != "mixer_out"]
    together = trace_mediators(MODELS["gptj"], TOKENIZER, PROMPT, SUBJECT, mediators=names, settings=settings)
    assert list(together) == names
    for name, result in together.items():
        alone = traced("gptj", mediator=name, window=2)
        np.testing.assert_allclose(result.scores, alone.scores, **CLOSE)
        assert (result.low, result.high, result.mediator) == (alone.low, alone.high, name)
    scores = [result.scores for result in together.values()]
    assert not any(np.allclose(scores[i], scores[j], rtol=1e-3) for i in range(len(scores)) for j in range(i))


def measured(metric, logits, answer, foil):
    last = logits[:, -1].double()
    return {
        "probability": last.softmax(-1)[:, answer],
        "log_probability": last.log_softmax(-1)[:, answer],
        "logit": last[:, answer],
        "logit_difference": last[:, answer] - last[:, foil],
        "rank": 1 + (last > last[:, [answer]]).sum(-1).double(),
    }[metric].numpy()


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_that_of_the_forward_passes(metric):
    model, answer, foil = MODELS["llama"], 7, 9
    given = {"answer": [answer], "metric": metric} | ({"foil": [foil]} if metric == "logit_difference" else {})
    noise = ready_noise(model, traced().subject_span[1] - traced().subject_span[0])
    result = traced(noise=noise, **given)
    clean, corrupted = corrupted_embeddings(model, result, noise)
    close = {"rtol": 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(result.high, measured(metric, run(model, clean, {}), answer, foil)[0], **close)
    lows = measured(metric, run(model, corrupted, {}), answer, foil)
    np.testing.assert_allclose(result.sample_lows, lows, **close)
    for token, layer in [(2, 0), (4, 2), (len(result.tokens) - 1, 3)]:
        logits = patched(model, corrupted, clean, site="resid_post", token=token, layers=[layer])
        expected = measured(metric, logits, answer, foil)
        np.testing.assert_allclose(result.sample_scores[:, token, layer], expected, **close)
        effect = (expected.mean() - lows.mean()) / (result.high - lows.mean())
        np.testing.assert_allclose(result.normalised_effects[token, layer], effect, rtol=1e-3, atol=1e-5)
    (grid,) = normalised([result.grid()])
    np.testing.assert_allclose(grid.effects, result.normalised_effects)
    assert (grid.share, {row.metric for row in result.rows()}) == (True, {metric})


def test_several_metrics_are_read_off_the_same_runs(monkeypatch):
    model, asked = MODELS["llama"], []

    def counting(*args, **options):
        asked.append(len(args[3]))
        return run_sweep(*args, **options)

    monkeypatch.setattr(exact, "run_sweep", counting)
    given = {"mediators": ["hidden", "attn_knockout"], "foil": [9]}
    found = trace_by_metric(model, TOKENIZER, PROMPT, SUBJECT, [5], metrics=METRICS, **given)
    assert list(found) == list(METRICS)
    n_runs, asked[:] = asked.copy(), []
    for metric, results in found.items():
        settings = TraceSettings(metric=metric)
        one = given if metric == "logit_difference" else given | {"foil": None}
        alone = trace_mediators(model, TOKENIZER, PROMPT, SUBJECT, [5], settings=settings, **one)
        for name, expected in alone.items():
            assert (results[name].metric, results[name].method) == (metric, "exact")
            np.testing.assert_allclose(results[name].sample_scores, expected.sample_scores, rtol=1e-12)
            np.testing.assert_allclose(results[name].sample_lows, expected.sample_lows, rtol=1e-12)
            assert results[name].high == pytest.approx(expected.high, rel=1e-12)
    assert asked == n_runs * len(METRICS)  # all metrics together take the runs of one


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([], "no metric is given; give at least one, such as probability"),
        (["logit", "rank", "logit"], "the metric logit is given twice; give each metric once"),
        (["rank", "logits"], "unknown metric 'logits'; did you mean 'logit'?"),
    ],
)
def test_metrics_that_cannot_be_read_are_refused(metrics, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        trace_by_metric(MODELS["llama"], TOKENIZER, PROMPT, SUBJECT, metrics=metrics)


def test_estimates_are_those_of_the_metric():
    model = MODELS["llama"]
    noise = ready_noise(model, traced().subject_span[1] - traced().subject_span[0])
    settings = TraceSettings(noise, metric="logit_difference")
    given = {"foil": [9], "mediators": ["hidden"], "method": "approximate"}
    found = trace_mediators(model, TOKENIZER, PROMPT, SUBJECT, [7], settings=settings, **given)["hidden"]
    clean, corrupted = (
        recorded(model, embeddings, ["resid_post"])[L - 1, "resid_post"][:, -1]
        for embeddings in corrupted_embeddings(model, found, noise)
    )
    logits = model.lm_head(model.model.norm(corrupted.requires_grad_()))
    (slope,) = torch.autograd.grad((logits[:, 7] - logits[:, 9]).sum(), corrupted)
    expected = ((clean - corrupted) * slope).sum(-1).mean().item()
    np.testing.assert_allclose(found.indirect_effects[-1, -1], expected, rtol=1e-4)


def test_a_rank_is_not_estimated():
    settings = TraceSettings(metric="rank")
    with pytest.raises(InputError, match=r"^a rank has no derivative, so it has no first-order estimate: trace it"):
        trace_mediators(MODELS["llama"], TOKENIZER, PROMPT, SUBJECT, settings=settings, method="screened")


def test_the_repr_of_a_trace_is_short():
    assert "array" not in repr(traced())


def test_windows_have_ten_layers_by_default():
    whole = traced(mediator="mlp_window")
    np.testing.assert_allclose(whole.scores, traced(mediator="mlp_window", window=10).scores)
    assert (whole.scores == whole.scores[:, :1]).all()  # every window covers all 4 layers
    assert not np.allclose(whole.scores, traced(mediator="mlp_window", window=1).scores, rtol=1e-3)


def test_a_counterfactual_prompt_takes_the_place_of_noise():
    model = MODELS["gpt2"]
    other = "The Eiffel Tower of in"
    result = trace(model, TOKENIZER, PROMPT, SUBJECT, counterfactual=other)
    ids = TOKENIZER(other)["input_ids"]
    base, clean = embedded(model, ids), embedded(model, result.token_ids)
    np.testing.assert_allclose(result.low, probabilities(run(model, base, {}), result.answer_id)[0], **CLOSE)
    changed = [i for i, (a, b) in enumerate(zip(ids, result.token_ids, strict=True)) if a != b]
    logits = patched(model, base, clean, site="resid_post", token=changed[0], layers=[1])
    expected = probabilities(logits, result.answer_id)[0]
    np.testing.assert_allclose(result.scores[changed[0], 1], expected, **CLOSE)
    assert result.sample_scores.shape[0] == 1
    assert np.isnan(result.spread).all()


# ------------------------------------------------------------------------------------- prompt, subject, answer


@pytest.mark.parametrize("samples", [1, 3])
def test_the_grid_of_a_trace_equals_that_of_its_rows(samples):
    found = traced(samples=samples)
    (expected,) = trace_grids(trace_cells(Fact("trace", PROMPT, SUBJECT, found.answer), found))
    grid = found.grid()
    for field in fields(TraceGrid):
        ours, theirs = getattr(grid, field.name), getattr(expected, field.name)
        assert np.array_equal(ours, theirs, equal_nan=True) if isinstance(theirs, np.ndarray) else ours == theirs
    assert found.grid("mine").name == "mine"


def test_tokens_and_subject_are_found_by_characters():
    result = traced()
    assert "".join(result.tokens) == PROMPT
    assert "".join(result.tokens[slice(*result.subject_span)]).strip() == SUBJECT
    assert TOKENIZER.decode(list(result.token_ids)) == PROMPT


def test_another_tokenizer_opens_with_its_special_token():
    result = trace(MODELS["llama"], sentence_piece(), PROMPT, SUBJECT, samples=1)
    assert result.token_ids[0] == sentence_piece().bos_token_id
    assert "".join(result.tokens[slice(*result.subject_span)]) == " Eiffel Tower"


@pytest.mark.parametrize("occurrence", [0, 1])
def test_one_of_several_occurrences_of_the_subject_is_chosen(occurrence):
    prompt = "Paris is in Paris of"
    result = trace(MODELS["llama"], TOKENIZER, prompt, "Paris", samples=1, occurrence=occurrence)
    before = "".join(result.tokens[: result.subject_span[0]])
    assert before.strip() == ["", "Paris is in"][occurrence]
    assert "".join(result.tokens[slice(*result.subject_span)]).strip() == "Paris"


def test_the_answers_first_token_is_read_or_all_of_it():
    model = MODELS["llama"]
    ids = TOKENIZER(" Tokyo")["input_ids"]
    assert len(ids) > 1
    first = traced(answer="Tokyo")
    assert (first.answer_id, first.answer_ids) == (ids[0], (ids[0],))
    assert traced(answer=" Tokyo").answer_ids == first.answer_ids
    whole = traced(answer="Tokyo", answer_tokens="whole")
    assert (whole.answer_ids, whole.answer) == (tuple(ids), " Tokyo")
    assert whole.tokens == first.tokens
    clean = embedded(model, [*whole.token_ids, *ids[:-1]])
    logs = run(model, clean, {})[0, -len(ids) :].double().log_softmax(-1)
    expected = sum(logs[step, token] for step, token in enumerate(ids)).exp()
    assert whole.high == pytest.approx(float(expected), rel=1e-5)
    likeliest = int(run(model, embedded(model, first.token_ids), {})[0, -1].argmax())
    assert traced().answer_id == likeliest != ids[0]


# ---------------------------------------------------------------------------------------------------- effects


def test_effects_are_differences_to_the_corrupted_run():
    result = dataclasses.replace(
        traced(),
        high=0.9,
        low=0.2,
        scores=np.array([[0.2, 0.5], [0.1, 0.9]]),
        sample_lows=np.array([0.1, 0.3]),
        sample_scores=np.array([[[0.1, 0.3], [0.0, 0.9]], [[0.3, 0.7], [0.2, 0.9]]]),
    )
    assert result.total_effect == pytest.approx(0.7)
    np.testing.assert_allclose(result.indirect_effects, [[0.0, 0.3], [-0.1, 0.7]], atol=1e-12)
    np.testing.assert_allclose(result.spread, [[0.0, 0.2 / 2**0.5], [0.0, 0.2 / 2**0.5]], atol=1e-12)


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("prompt", "subject", "options", "message"),
    [
        (PROMPT, "Rome", {}, "subject 'Rome' is not a part of the prompt 'The Eiffel Tower is in'"),
        (PROMPT, " ", {}, "the subject is empty; give the part of the prompt to corrupt"),
        (
            "Paris is in Paris",
            "Paris",
            {},
            "subject 'Paris' occurs 2 times in the prompt 'Paris is in Paris'; choose with occurrence=0 to 1",
        ),
        ("aaa is", "aa", {}, "subject 'aa' occurs 2 times in the prompt 'aaa is'; choose with occurrence=0 to 1"),
        (
            "Paris is in Paris",
            "Paris",
            {"occurrence": 2},
            "occurrence 2 of subject 'Paris' does not exist; there are 2",
        ),
        (PROMPT, SUBJECT, {"answer": ""}, "answer '' has no tokens; leave it out to take the most likely next token"),
        (PROMPT, SUBJECT, {"noise": 0}, "noise 0 does not change the subject; give more than 0"),
        (PROMPT, SUBJECT, {"noise": "s0"}, "noise 's0' does not change the subject; give more than 0"),
        (
            PROMPT,
            SUBJECT,
            {"noise": "3s"},
            "noise '3s' is not understood; "
            "give 's3' (3 standard deviations of the embeddings), 0.1, 'u0.5', 'm' or 't3'",
        ),
        (PROMPT, SUBJECT, {"noise": "t2"}, "noise 't2' has no covariance; give more than 2 degrees of freedom"),
        (PROMPT, SUBJECT, {"samples": 0}, "samples is 0; give at least 1"),
        (PROMPT, SUBJECT, {"window": 0}, "window is 0; give at least 1 layer"),
        (
            PROMPT,
            SUBJECT,
            {"mediator": "attn_sever"},
            "unknown mediator 'attn_sever'; did you mean 'attn_severed'? Allowed: "
            f"{', '.join([*MEDIATORS, *UNIT_MEDIATORS])}",
        ),
        ([PROMPT], SUBJECT, {}, f"prompt is [{PROMPT!r}]; give a single string"),
        (PROMPT, None, {}, "subject is None; give a single string"),
        (PROMPT, SUBJECT, {"answer_tokens": "last"}, "unknown answer_tokens 'last'; Allowed: first, whole"),
        (PROMPT, SUBJECT, {"reference_texts": [""]}, "the texts that set the size of the noise have no tokens"),
    ],
)
def test_invalid_arguments_are_refused_with_a_reason(prompt, subject, options, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        trace(MODELS["llama"], TOKENIZER, prompt, subject, **options)


def test_a_counterfactual_of_another_length_is_refused():
    n = len(traced().tokens)
    message = (
        f"the counterfactual 'The is' has 2 tokens, the prompt {PROMPT!r} {n}: "
        "values are restored token by token, so both need the same length"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        traced(counterfactual="The is")


def test_an_answer_that_changes_the_prompts_tokens_is_refused():
    message = (
        "answer 'Tower' merges with the last token of the prompt 'The Eiffel '; "
        "end the prompt with a whole word, without a space after it, or give token ids"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        trace(MODELS["llama"], TOKENIZER, "The Eiffel ", "Eiffel", "Tower")


def test_nothing_is_left_on_a_traced_model():
    weights = {name: tensor.clone() for name, tensor in MODELS["gpt_neox"].state_dict().items()}
    traced("gpt_neox", mediator="mlp_severed")
    assert hooks_on(MODELS["gpt_neox"]) == 0
    assert all(torch.equal(tensor, weights[name]) for name, tensor in MODELS["gpt_neox"].state_dict().items())


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TraceSettings().samples = 2
