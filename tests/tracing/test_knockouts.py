"""Attention knockout of prompts: the call, the mediator, tables and figures, against passes with edited weights."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from interpret.errors import InputError
from interpret.facts.files import Fact
from interpret.figures import knockout_figure
from interpret.tracing import (
    TraceSettings,
    knockout,
    prompt_figure,
    trace,
    trace_facts,
    trace_grids,
    trace_mediators,
    trace_peaks,
)
from interpret.tracing.source_tokens import source_tokens
from reference.kinds import L
from reference.knockouts import knocked_out
from reference.tiny import hooks_on, wide_model
from reference.toy_tokenizers import byte_level

TOKENIZER = byte_level()
PROMPT, SUBJECT = "The Eiffel Tower is in", "Eiffel Tower"
CLOSE = {"rtol": 1e-5, "atol": 1e-9}
WINDOW = 2
WINDOWS = [(0, 1), (0, 2), (1, 3), (2, 4)]
"""The window around each of 4 layers, as in ROME."""
KINDS = ["llama", "gpt2", "gptj", "mistral"]


def expected(model, result, token, sources, window, heads=None):
    """Return the logits of the last token, [V], with attention knocked out in a window of layers."""
    run = model.get_input_embeddings()(torch.tensor([list(result.token_ids)])).detach()
    of_layer = {layer: None if heads is None else heads.get(layer, []) for layer in range(*window)}
    of_layer = {layer: chosen for layer, chosen in of_layer.items() if chosen is None or chosen}
    return knocked_out(model, run, token, sources, of_layer)[0, -1].double()


def positions(result):
    first, stop = result.subject_span
    return {"subject": range(first, stop), "relation": [*range(first), *range(stop, len(result.tokens))]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_by_knockout_is_its_full_passes(kind):
    model, names = wide_model(kind), ["attn_knockout", "attn_knockout:relation", "attn_knockout:itself,0"]
    settings = TraceSettings(samples=2, window=WINDOW)
    found = trace_mediators(model, TOKENIZER, PROMPT, SUBJECT, mediators=[*names, "hidden"], settings=settings)
    hidden, by_subject = found["hidden"], found["attn_knockout"]
    assert (by_subject.low, by_subject.high) == pytest.approx((hidden.low, hidden.high), rel=1e-5)
    assert (by_subject.window, by_subject.acts_on, by_subject.sample_scores.shape[0]) == (WINDOW, "clean", 1)
    sources_of = positions(by_subject)
    for name, result in found.items():
        if name == "hidden":
            continue
        for token, layer in np.random.default_rng(1).choice(list(np.ndindex(result.scores.shape)), 8, replace=False):
            if name.endswith("itself,0"):
                sources = {0, token}
            else:
                sources = set(sources_of[result.mediator.partition(":")[2] or "subject"]) - {token}
            sources = {source for source in sources if source <= token}
            score = expected(model, result, token, sources, WINDOWS[layer]).softmax(-1)[result.answer_id].item()
            np.testing.assert_allclose(result.scores[token, layer], score, **CLOSE)
            np.testing.assert_allclose(result.indirect_effects[token, layer], score - result.high, rtol=1e-3, atol=1e-7)
        assert np.abs(result.indirect_effects[-1] / result.high).max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_a_token_without_anything_to_attend_to_nothing(dtype):
    """Some kernels of matrix products let the NaN of one row reach others, if the inner size is odd."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 450, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": L}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    lengths = set()
    for longer in range(5, 10):
        given = {"mediator": "attn_knockout:itself", "window": WINDOW, "samples": 1, "progress": False}
        exact, found = (
            trace(model.to(number), TOKENIZER, "Paris" + "," * longer, "Paris", [5], **given)
            for number in (torch.float32, dtype)
        )
        lengths.add(len(exact.tokens))
        np.testing.assert_allclose(found.scores[0], exact.scores[0], rtol=0.1)
    assert lengths == {7, 8, 9, 10, 11}


def test_the_call_is_the_last_row_of_the_mediator():
    model = wide_model("llama")
    found = knockout(model, TOKENIZER, PROMPT, SUBJECT, sources=["subject", "itself,0"], window=WINDOW)
    settings = TraceSettings(samples=1, window=WINDOW)
    names = ["attn_knockout", "attn_knockout:itself,0"]
    traced = trace_mediators(model, TOKENIZER, PROMPT, SUBJECT, mediators=names, settings=settings)
    for row, name in zip(found.effects["probability"], names, strict=True):
        np.testing.assert_allclose(row, traced[name].indirect_effects[-1], rtol=1e-3, atol=1e-7)
    relative = found.relative_effects["probability"]
    np.testing.assert_allclose(relative, found.values["probability"] / found.clean["probability"] - 1, atol=1e-9)
    assert hooks_on(model) == 0


def test_every_metric_and_single_heads_are_read_in_one_sweep():
    model, heads = wide_model("mistral"), [(1, 0), (2, 3), (3, 1)]
    kinds = ["probability", "log_probability", "logit", "logit_difference", "rank"]
    answer, foil = [7], [9]
    found = knockout(
        model, TOKENIZER, PROMPT, SUBJECT, answer, foil=foil, heads=heads, window=3, metrics=kinds, reader="-2"
    )
    result = trace(model, TOKENIZER, PROMPT, SUBJECT, answer, samples=1)
    windows = [(0, 2), (0, 3), (1, 4), (2, 4)]
    for number, sources in enumerate(found.source_tokens):
        for layer, window in enumerate(windows):
            of_layer = {at: [head for where, head in heads if where == at] for at in range(L)}
            logits = expected(model, result, found.reader, sources, window, of_layer)
            reference = {
                "probability": logits.softmax(-1)[7],
                "log_probability": logits.log_softmax(-1)[7],
                "logit": logits[7],
                "logit_difference": logits[7] - logits[9],
                "rank": 1 + (logits > logits[7]).sum(),
            }
            for kind in kinds:
                np.testing.assert_allclose(found.values[kind][number, layer], reference[kind], rtol=1e-4, atol=1e-6)
    assert found.reader == len(found.tokens) - 2
    assert list(found.clean) == kinds


def test_sources_are_the_tokens_they_name():
    sources = {"subject": (1, 2, 3), "relation": (0, 4), "itself": (5,), "last": (5,), "0,-2,4": (0, 4), "1:3": (1, 2)}
    for words, places in sources.items():
        assert source_tokens(words, 5, 6, (1, 4)) == places
    assert source_tokens("subject", 2, 6, (1, 4)) == (1,)  # later tokens are not attended to, nor is it itself
    assert source_tokens("last", 2, 6, (1, 4)) == ()
    assert source_tokens("relation, itself", 4, 6, (1, 4)) == (0, 4)


def test_a_prompt_without_a_subject_has_the_other_sources():
    model = wide_model("gpt2")
    found = knockout(model, TOKENIZER, PROMPT, sources=["0", "itself"], window=1)
    with_subject = knockout(model, TOKENIZER, PROMPT, SUBJECT, sources=["0", "itself"], window=1)
    np.testing.assert_array_equal(found.values["probability"], with_subject.values["probability"])


def test_rows_peaks_and_figures_show_the_drops():
    fact = Fact("known_1", PROMPT, SUBJECT, "Paris")
    names = ["attn_knockout", "attn_knockout:relation"]
    settings = TraceSettings(samples=2, window=WINDOW)
    rows = list(trace_facts(wide_model("llama"), TOKENIZER, [fact], settings=settings, mediators=names))
    assert {(row.mediator, row.site, row.window, row.effect_std) for row in rows} == {
        (name, "attention", WINDOW, None) for name in names
    }
    grids = trace_grids(rows)
    for peak in trace_peaks(rows):
        if peak.among == "all":
            grid = next(grid for grid in grids if grid.mediator == peak.mediator)
            assert peak.indirect_effect == grid.effects.min() < 0
    (panel,) = knockout_figure(grids, window=WINDOW).axes
    for line, grid in zip(panel.get_lines(), grids, strict=False):
        np.testing.assert_allclose(line.get_ydata(), 100 * grid.effects[-1] / grid.clean)
    assert [text.get_text() for text in panel.figure.legends[0].get_texts()] == ["subject", "relation"]
    unread = grids[0].effects.copy()
    unread[0] = np.nan
    figure = knockout_figure([replace(grids[0], effects=unread)], window=WINDOW)
    assert "finite" not in figure._suptitle.get_text()  # the first token is not drawn
    unread[-1, 0] = np.nan
    figure = knockout_figure([replace(grids[0], effects=unread)], window=WINDOW)
    assert f"1 of {L} cells" in figure._suptitle.get_text()
    figure.draw_without_rendering()
    title = figure._suptitle.get_window_extent()
    assert title.x0 >= 0
    assert title.x1 <= figure.bbox.width
    drawn = prompt_figure(grids, window=WINDOW)
    np.testing.assert_array_equal(drawn.axes[0].get_images()[0].get_array(), grids[0].effects)
    assert drawn.axes[0].get_title() == "attention to subject\nknocked out, 2 layers"
    with pytest.raises(InputError, match=r"^a figure of attention knockout needs grids of attn_knockout: trace it$"):
        knockout_figure([])


def test_a_result_shows_itself():
    found = knockout(
        wide_model("llama"), TOKENIZER, PROMPT, SUBJECT, metrics=["probability", "rank"], sources=["subject", "0"]
    )
    frame = found.to_frame()
    assert len(frame) == 2 * 2 * L
    last = frame.iloc[-1]
    assert (last["metric"], last["source"], last["source_idxs"], last["layer_idx"]) == ("rank", "0", "[0]", L - 1)
    assert last["effect"] == found.effects["rank"][1, -1] == last["knocked_out"] - last["clean"]
    panels = list(found.view().panels())
    assert [panel.name for panel in panels] == ["probability", "rank"]
    np.testing.assert_array_equal(panels[0].grids[0].bands[0].values, found.effects["probability"])
    for panel, effects in zip(found.figure().axes, found.effects.values(), strict=True):
        np.testing.assert_array_equal(panel.get_lines()[1].get_ydata(), effects[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": ["subjects"]}, "unknown token selector 'subjects'; did you mean 'subject'?"),
        ({"sources": "subject"}, "sources is 'subject'; give a list with one entry per curve, such as"),
        ({"sources": ["40"]}, "token 40 does not exist; there are tokens 0 to"),
        ({"subject": None}, "sources 'subject' need a subject: give the part of the prompt that is the subject"),
        ({"reader": 40}, "token 40 does not exist; there are tokens 0 to"),
        ({"reader": "0:2"}, "reader '0:2' is 2 tokens; give a single one, such as 'last'"),
        ({"window": 0}, "a window of width 0 contains no layer; give a width of at least 1"),
        ({"heads": [(0, 9)]}, "cells[0]: head 9 of layer 0 does not exist; this model has layers 0 to 3, each with"),
        ({"metrics": []}, "no metric is given; give at least one, such as probability"),
        ({"metrics": ["logits"]}, "unknown metric 'logits'; did you mean 'logit'?"),
        ({"metrics": ["logit_difference"]}, "the metric logit_difference needs a foil: give a wrong answer"),
        ({"foil": [9]}, "a foil is read by the metric logit_difference only; add the metric, or leave out the foil"),
        (
            {"metrics": ["logit_difference"], "answer": [7], "foil": [7, 9]},
            "the foil [7, 9] begins with the token of the answer; give another foil",
        ),
        (
            {"metrics": ["logit_difference"], "answer": [7, 8], "foil": [9], "answer_tokens": "whole"},
            "the foil [9] has 1 tokens, the answer 2; give a longer foil",
        ),
        ({"answer_tokens": "second"}, "unknown answer_tokens 'second'"),
    ],
)
def test_an_invalid_knockout_is_refused(options, message):
    asked = {"prompt": PROMPT, "subject": SUBJECT, **options}
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        knockout(wide_model("llama"), TOKENIZER, **asked)


@pytest.mark.parametrize(
    ("mediator", "message"),
    [
        ("attn_knockout:subjects", "mediator 'attn_knockout:subjects': unknown token selector 'subjects'"),
        ("hidden:subject", "mediator 'hidden:subject': only a mediator that knocks out attention has sources; give"),
        ("attn_nockout:subject", "unknown mediator 'attn_nockout:subject'; did you mean"),
    ],
)
def test_an_unknown_knockout_is_refused(mediator, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        trace(wide_model("llama"), TOKENIZER, PROMPT, SUBJECT, mediator=mediator)


@pytest.mark.parametrize("method", ["approximate", "screened"])
def test_a_knockout_is_not_estimated(method):
    with pytest.raises(InputError, match=r"^mediator 'attn_knockout:last' has no first-order estimate: trace it with"):
        trace_mediators(
            wide_model("llama"), TOKENIZER, PROMPT, SUBJECT, mediators=["attn_knockout:last"], method=method
        )
