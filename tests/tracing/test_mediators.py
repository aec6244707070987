"""Every mediator is complete; a user's own mediator works in calls, tables and figures."""

import re
from dataclasses import replace

import numpy as np
import pytest

from interpret.errors import InputError
from interpret.facts.files import Fact
from interpret.figures import average_figure
from interpret.figures.traces import severed_figure, severed_grids
from interpret.tracing import (
    MEDIATORS,
    Mediator,
    Pin,
    TraceSettings,
    prompt_figure,
    register_mediator,
    screen,
    trace_facts,
    trace_grids,
    trace_mediators,
)
from interpret.tracing.inputs import trace_inputs
from interpret.tracing.mediators import DEFAULT_MEDIATORS, GREY, mediator_of
from reference.kinds import L
from reference.tiny import wide_model
from reference.toy_tokenizers import byte_level
from reference.tracing import patched

TOKENIZER = byte_level()
PROMPT, SUBJECT = "The Eiffel Tower is in", "Eiffel Tower"
SETTINGS = TraceSettings(samples=3, window=2)
BOTH = Mediator(
    "both_severed",
    "a layer's output, with attention and MLPs severed",
    "resid_post",
    pins=(Pin("attn_out"), Pin("mlp_out")),
    label="both severed",
)
CUT = Mediator("attn_cut", "attention outputs, replaced by corrupted ones", "attn_out", acts_on="clean")


@pytest.fixture
def own():
    for mediator in (BOTH, CUT):
        register_mediator(mediator)
    yield
    for mediator in (BOTH, CUT):
        del MEDIATORS[mediator.name]


def traced(model, **options):
    return trace_mediators(model, TOKENIZER, PROMPT, SUBJECT, settings=SETTINGS, **options)


def test_every_mediator_is_complete():
    assert set(DEFAULT_MEDIATORS) <= set(MEDIATORS)
    labels = [row.label for row in MEDIATORS.values()]
    assert all(labels)
    assert len(set(labels)) == len(labels)
    for name, row in MEDIATORS.items():
        assert row.name == name
        assert len(row.description) > len("a layer's outpu")
        assert row.colour != GREY
        assert ("{window}" in row.label) == row.windowed


def test_a_users_mediator_is_exact(own):
    model = wide_model("llama")
    result = traced(model, mediators=["both_severed"])["both_severed"]
    inputs = trace_inputs(
        model, TOKENIZER, PROMPT, SUBJECT, None, settings=SETTINGS, occurrence=None, counterfactual=None
    )
    for token, layer in [(2, 0), (3, 1), (4, 2)]:
        later = list(range(layer + 1, L))
        logits = patched(
            model,
            inputs.corrupted,
            inputs.clean,
            site="resid_post",
            token=token,
            layers=[layer],
            pins={"attn_out": later, "mlp_out": later},
        )
        expected = logits[:, -1].double().softmax(-1)[:, result.answer_id]
        np.testing.assert_allclose(result.sample_scores[:, token, layer], expected, rtol=1e-5, atol=1e-9)


def test_a_mediator_that_cuts_patches_the_clean_run_with_corrupted_values(own):
    model = wide_model("llama")
    found = traced(model, mediators=["attn_cut", "hidden"])
    result = found["attn_cut"]
    inputs = trace_inputs(
        model, TOKENIZER, PROMPT, SUBJECT, None, settings=SETTINGS, occurrence=None, counterfactual=None
    )
    clean = inputs.clean.expand(len(inputs.corrupted), -1, -1)
    for token, layer in [(2, 0), (3, 1), (4, 2)]:
        logits = patched(model, clean, inputs.corrupted, site="attn_out", token=token, layers=[layer])
        expected = logits[:, -1].double().softmax(-1)[:, result.answer_id]
        np.testing.assert_allclose(result.sample_scores[:, token, layer], expected, rtol=1e-5, atol=1e-9)
        effect = (expected - result.high).mean()
        np.testing.assert_allclose(result.indirect_effects[token, layer], effect, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(result.spread, result.sample_scores.std(axis=0, ddof=1), rtol=1e-6)
    assert (found["hidden"].high, found["hidden"].low) == pytest.approx((result.high, result.low), rel=1e-5)
    assert (list(found), result.acts_on, found["hidden"].acts_on) == (["attn_cut", "hidden"], "clean", "corrupted")


@pytest.mark.parametrize("name", ["both_severed", "attn_cut"])
def test_a_users_mediator_is_estimated_and_screened(own, name):
    model = wide_model("llama")
    if name == "both_severed":
        estimate = traced(model, mediators=[name], method="approximate")[name]
        assert (estimate.method, estimate.scores.shape) == ("approximate", (len(estimate.tokens), L))
    screening = screen(model, TOKENIZER, PROMPT, SUBJECT, share=1.0, mediators=[name], settings=SETTINGS)[name]
    exact = traced(model, mediators=[name])[name]
    np.testing.assert_allclose(screening.result.scores, exact.scores, atol=1e-6)


def test_a_users_mediator_is_in_tables_and_figures(own):
    fact = Fact("known_1", PROMPT, SUBJECT, "Paris")
    rows = list(
        trace_facts(wide_model("llama"), TOKENIZER, [fact], settings=SETTINGS, mediators=["both_severed", "mlp_window"])
    )
    assert {(row.mediator, row.site, row.window) for row in rows} == {
        ("both_severed", "resid_post", None),
        ("mlp_window", "mlp_out", 2),
    }
    grids = trace_grids(rows)
    for figure in (prompt_figure(grids, window=2), average_figure(grids, window=2)):
        assert [panel.get_title() for panel in figure.axes[:2]] == ["both severed", "MLP, 2 layers"]


def test_a_severed_mediator_of_the_users_has_its_bars(own):
    fact = Fact("known_1", PROMPT, SUBJECT, "Paris")
    mediators = ["hidden", "both_severed", "mlp_window"]
    rows = list(trace_facts(wide_model("llama"), TOKENIZER, [fact], settings=SETTINGS, mediators=mediators))
    grids = trace_grids(rows)
    assert [grid.mediator for grid in severed_grids(grids)] == ["hidden", "both_severed"]
    (legend,) = severed_figure(grids).legends
    assert [text.get_text() for text in legend.get_texts()] == ["hidden state", "both severed"]
    without = [grid for grid in grids if grid.mediator != "hidden"]
    assert severed_grids(without) == []
    with pytest.raises(InputError, match=r"^a figure of severed effects needs grids of the mediator hidden and of"):
        severed_figure(without)


def test_a_mediator_that_is_not_registered_here_is_drawn_by_its_name():
    assert (mediator_of("their_own").title(3), mediator_of("their_own").colour) == ("their_own", GREY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "hidden"}, "mediator 'hidden' already exists; give another name"),
        ({"name": "two words"}, "mediator 'two words': a name is one word of letters, digits and underscores"),
        (
            {"site": "heads"},
            "mediator 'mine': unknown site 'heads'; Allowed: resid_post, attn_out, mixer_out, mlp_out, attention",
        ),
        (
            {"pins": (Pin("attention"),)},
            "mediator 'mine': unknown site of a pin 'attention'; Allowed: attn_out, mlp_out",
        ),
        ({"acts_on": "both"}, "mediator 'mine': unknown acts_on 'both'; Allowed: corrupted, clean"),
        ({"sources": "subject"}, "mediator 'mine': sources are those of the site attention; leave them out"),
        (
            {"site": "attention", "pins": (), "sources": "subject"},
            "mediator 'mine': attention is knocked out of the clean run; give acts_on='clean'",
        ),
        (
            {"site": "attention", "pins": (), "acts_on": "clean", "sources": "subjects"},
            "mediator 'mine': unknown token selector 'subjects'; did you mean 'subject'? Allowed: all, subject, "
            "relation, itself, last, an index, a slice such as 0:10:2",
        ),
        ({"columns": ("source",)}, "mediator 'mine': unknown column 'source'; Allowed: window"),
    ],
)
def test_an_invalid_mediator_is_refused(change, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        register_mediator(replace(BOTH, **{"name": "mine", **change}))
    assert "mine" not in MEDIATORS
