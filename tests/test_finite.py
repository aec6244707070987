"""Numbers that are not finite: marked, left out of statistics, sorted last and counted, in every analysis."""

import dataclasses
import io
import math
import re

import numpy as np
import pytest
import torch
from rich.console import Console

import interpret
from interpret.activations.cache import activation_cache
from interpret.attribution.questions import Question
from interpret.attribution.rows import token_scores
from interpret.display.terminal import Tables
from interpret.engine.greedy import answers, greedy_continuation, sound_steps, write_after
from interpret.errors import InputError
from interpret.facts.buckets import average_buckets, bucket_means
from interpret.facts.files import Fact
from interpret.facts.filter import known
from interpret.facts.grids import bucket_averages, bucket_peaks, not_finite
from interpret.figures import traces
from interpret.finite import counted_once, descending, left_out, order, readable, top, warn
from interpret.locating.facts import locate_facts
from interpret.probing._logit_attribution import head_writes, logit_attribution
from interpret.probing._logit_lens import logit_lens
from interpret.probing.composition import strongest_compositions
from interpret.probing.effects import effect_sizes, permutation_p_values, q_values
from interpret.probing.head_flow import writing_heads
from interpret.probing.heads import top_attended
from interpret.probing.knowledge_prober import KnowledgeProber, ranked_effects
from interpret.probing.neurons import neuron_values
from interpret.probing.top_inputs import top_activating
from interpret.records import TraceCell
from interpret.selfie.readings import KeptReadings, State, log_gain, read, read_nothing
from interpret.selfie.settings import Settings
from interpret.selfie.templates import InterpretationPrompt
from interpret.slots import decoding
from interpret.slots.decoding import prime
from interpret.stats import average, finite_mean, largest, rank_correlation
from interpret.storage import run_folder
from interpret.storage.parts import StoredParts
from interpret.tracing.approximate import _largest
from interpret.tracing.calls import trace
from interpret.tracing.compare import peak_of
from interpret.tracing.facts import trace_cells
from interpret.tracing.show import prompt_figure
from interpret.tracing.tables import trace_grids, trace_peaks
from reference.commands import fact_rows, json_file, run, saved_model
from reference.tiny import tiny_model, wide_model
from reference.toy_tokenizers import byte_level, word_tokenizer
from reference.trace_rows import cells

NAN, INF = math.nan, math.inf
WORDS, BYTES = word_tokenizer(), byte_level()
PROMPT, SUBJECT = "The Eiffel Tower is in", "Eiffel Tower"
PAIRS = [("w5 w6 w7", "w5 w8"), ("w20", "w21 w22"), ("w30 w31", "w32 w33"), ("w40 w41 w42 w43", "w44")]
COUNTED = r"not finite \(NaN or infinity\) and left out of"
bad = pytest.mark.parametrize("value", [NAN, INF, -INF])


# ------------------------------------------------------------------------------------------------------- the rule


def test_numbers_that_are_not_finite_come_last_in_either_order():
    numbers = [NAN, 2.0, INF, -1.0, -INF, 3.0]
    assert sorted(numbers, key=order)[:3] == [-1, 2, 3]
    assert sorted(numbers, key=descending)[:3] == [3, 2, -1]


def test_only_logits_that_can_be_read_are_chosen():
    logits = torch.tensor([NAN, 1.0, INF, -INF, 2.0])
    assert readable(logits).tolist() == [-INF, 1, -INF, -INF, 2]
    values, at = top(logits, 4)
    assert at.tolist()[:2] == [4, 1]
    assert values.tolist()[:2] == [2, 1]
    assert not values[2:].isfinite().any()


def test_a_message_counts_them():
    assert left_out([1.0, 2.0], "cells", "the averages") == ""
    assert left_out([1.0, NAN, INF], "cells", "x") == "2 of 3 cells are not finite (NaN or infinity) and left out of x"
    assert left_out(torch.tensor([[1.0, NAN]]), "cells", "x").startswith("1 of 2 cells is not finite")
    assert left_out([NAN, NAN], "cells", "x").startswith("none of 2 cells is finite: the model gives NaN here")


def test_a_run_silences_the_warnings_that_it_counts_itself():
    with counted_once():
        warn("a message")
    warn("")
    with pytest.warns(RuntimeWarning, match="^a message$"):
        warn("a message")


# ----------------------------------------------------------------------------------------------------- statistics


@bad
def test_averages_are_those_of_the_finite_prompts(value):
    with_bad = average([[0.1, 0.5], [0.3, value], [0.2, 0.7]])
    np.testing.assert_allclose(with_bad.mean, [0.2, 0.6])
    np.testing.assert_array_equal(with_bad.n, [3, 2])
    assert np.isfinite([with_bad.low, with_bad.high]).all()
    assert 0.5 <= with_bad.low[1] <= with_bad.high[1] <= 0.7
    assert average([value, value]).n == 0


@bad
def test_ranks_peaks_and_means_leave_them_out(value):
    assert rank_correlation([0.1, 0.2, value, 0.9], [3, 5, 9, 4]) == rank_correlation([0.1, 0.2, 0.9], [3, 5, 4])
    assert rank_correlation([3, 5, 9, 4], [0.1, 0.2, value, 0.9]) == rank_correlation([3, 5, 4], [0.1, 0.2, 0.9])
    assert math.isnan(rank_correlation([0.1, value], [1.0, 2.0]))
    assert largest([[value, 1.0], [3.0, 2.0]]) == peak_of(np.array([[value, 1.0], [3.0, 2.0]])) == 2
    np.testing.assert_array_equal(finite_mean(np.array([[1.0, value], [2.0, value]])), [1.5, NAN])


@bad
def test_buckets_average_the_finite_tokens(value):
    effects = np.array([[0.1], [0.4], [value], [0.2], [0.5]])
    assert bucket_means(effects, (0, 1), scheme="kt")[2] == pytest.approx(0.3)
    found = average_buckets([effects, np.array([[value], [0.6]])], [(0, 1), (0, 1)], scheme="kt")
    assert found.n[:, 0].tolist() == [0, 1, 1, 2]
    assert found.mean[1, 0] == pytest.approx(0.1)


@bad
def test_the_cells_that_are_run_exactly_have_finite_estimates(value):
    mask = _largest(np.array([[value, -3.0], [1.0, 2.0]]), 2)
    assert mask.tolist() == [[False, True], [False, True]]
    assert _largest(np.array([[value, -3.0]]), 2).all()


# -------------------------------------------------------------------------------------------------------- neurons


@bad
def test_a_neuron_that_is_not_finite_comes_last_and_leaves_the_others_as_without_it(value):
    chance = torch.Generator().manual_seed(0)
    values = torch.randn(16, 5, generator=chance)
    values[:8, 3] += 2
    broken = torch.cat([values[:, :2], torch.full((16, 1), 0.5), values[:, 2:]], dim=1)
    broken[3, 2] = value
    found = ranked_effects([(1, broken)], n_permutations=500, seed=0)
    assert (found[-1].neuron, found[-1].n_pairs) == (2, 8)
    assert all(math.isnan(x) for x in (found[-1].p_value, found[-1].q_value, found[-1].hedges_g, found[-1].cohens_d))
    alone = ranked_effects([(1, values)], n_permutations=500, seed=0)
    renumbered = [dataclasses.replace(one, neuron=one.neuron + (one.neuron >= 2)) for one in alone]
    assert found[:-1] == renumbered


def test_effects_p_and_q_are_nan_for_a_feature_that_is_not_finite():
    left = torch.tensor([[1.0, 1.0, INF], [2.0, NAN, 2.0], [4.0, 3.0, 3.0]])
    right = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.0, 1.0, 1.0]])
    for values in (*effect_sizes(left, right), permutation_p_values(left - right, n_permutations=8, seed=0)):
        assert values.isfinite().tolist() == [True, False, False]
    q = q_values(torch.tensor([0.01, NAN, 0.04, 0.03], dtype=torch.float64))
    np.testing.assert_allclose(q, [0.03, NAN, 0.04, 0.04])


def broken_neuron(model, layer, neuron, value=NAN):
    with torch.no_grad():
        anatomy = interpret.anatomy.anatomy_of(model)
        anatomy.layers[layer].get_submodule(anatomy.parts.up).weight[neuron] = value
    return model


def test_a_scan_warns_and_ranks_the_broken_neuron_last():
    model = broken_neuron(tiny_model("llama"), 3, 7)
    with pytest.warns(RuntimeWarning, match=rf"^1 of 48 neurons is {COUNTED} the tests$"):
        found = KnowledgeProber(model, WORDS).scan(PAIRS, 3)
    whole = KnowledgeProber(tiny_model("llama"), WORDS).scan(PAIRS, 3)
    assert found[-1].neuron == 7
    same = [one for one in whole if one.neuron != 7]
    assert [one.neuron for one in found[:-1]] == [one.neuron for one in same]
    assert [one.p_value for one in found[:-1]] == [one.p_value for one in same]


@bad
@pytest.mark.parametrize(("token", "expected"), [("last", 3.0), (1, 2.0)])
def test_a_token_that_is_not_read_does_not_matter(monkeypatch, value, token, expected):
    values = torch.tensor([value, 2.0, 3.0]).expand(1, 1, 3).transpose(1, 2)  # [B, T, F]
    monkeypatch.setattr("interpret.probing.neurons.run_neurons", lambda model, rows, layers, read: read(0, values))
    assert neuron_values(tiny_model("gpt2"), WORDS, ["w5 w6 w7"], [0], token=token)[0].item() == expected


def test_a_broken_neuron_is_nobodys_neighbour():
    with pytest.warns(RuntimeWarning, match=rf"^1 of 48 neurons is {COUNTED} the neighbours of others$"):
        scores = KnowledgeProber(broken_neuron(tiny_model("llama"), 1, 5), WORDS).polysemantic_score(1, 4)
    assert scores.isfinite().sum() == 47
    assert math.isnan(scores[5])


def test_top_inputs_list_finite_activations_only():
    model, neurons = broken_neuron(tiny_model("llama"), 3, 7), [(3, 7), (3, 8)]
    prompts = ["w5 w6", "w7 w8 w9"]
    with pytest.warns(RuntimeWarning, match=rf"^5 of 10 activations are {COUNTED} the ranking$"):
        found = top_activating(model, WORDS, prompts, neurons, per_prompt="all")
    assert found == top_activating(tiny_model("llama"), WORDS, prompts, [(3, 8)], per_prompt="all")


# --------------------------------------------------------------------------------------- lens, logits and heads


def broken_logit(model, token=5, value=NAN):
    with torch.no_grad():
        model.get_output_embeddings().weight[token] = value
    return model


def broken_layer(model, layer=2):
    with torch.no_grad():
        model.model.layers[layer].mlp.down_proj.weight[0, 0] = NAN
    return model


def test_the_lens_never_lists_a_logit_that_is_not_finite_among_the_likely():
    rows = [[5, 6, 7]]
    model = broken_logit(tiny_model("llama"))
    with pytest.warns(RuntimeWarning, match=r"^none of 20 probabilities is finite"):
        lens = logit_lens(model, activation_cache(model, None, rows), [5], top=3)
    whole = logit_lens(tiny_model("llama"), activation_cache(tiny_model("llama"), None, rows), top=97)
    for layer, here in lens.groupby("layer"):
        expected = [token for token in whole[whole.layer == layer].token_id if token != 5][:3]
        assert here.token_id.tolist() == [*expected, 5]
        assert here["rank"].isna().tolist() == [False, False, False, True]
        assert here["rank"].tolist()[:3] == [1, 2, 3]
        assert here.probability.isna().all()


def test_the_lens_of_a_broken_layer_is_marked_and_the_earlier_ones_unchanged():
    rows, model = [[5, 6, 7]], broken_layer(tiny_model("llama"))
    with pytest.warns(RuntimeWarning, match=rf"^4 of 13 probabilities are {COUNTED} the ranks$"):
        lens = logit_lens(model, activation_cache(model, None, rows), [7], tokenizer=WORDS, top=2)
    whole = logit_lens(tiny_model("llama"), activation_cache(tiny_model("llama"), None, rows), [7], top=2)
    of_end = ["agrees", "kl"]  # comparisons with the model's own distribution, which the broken layer changes
    before, same = (each[each.layer <= 2].drop(columns=["token", *of_end]).to_numpy() for each in (lens, whole))
    assert np.array_equal(before, same)
    assert lens[of_end].isna().all(axis=None)
    after = lens[lens.layer > 2]
    assert after.token_id.tolist() == [-1, 7, -1, 7]
    assert after.token.tolist()[0] == ""
    assert after[["logit", "probability", "rank"]].isna().all(axis=None)


def test_a_broken_head_leaves_the_shares_of_the_others():
    project = torch.nn.Linear(12, 5)
    heads = torch.randn(2, 3, 4)
    with torch.no_grad():
        whole, bias = head_writes(project, heads)
        heads[:, 1] = NAN
        writes, same_bias = head_writes(project, heads)
    assert torch.equal(writes[:, [0, 2]], whole[:, [0, 2]])
    assert writes[:, 1].isnan().all()
    assert torch.equal(bias, same_bias)


def test_logit_shares_are_counted():
    model = broken_layer(tiny_model("llama"), 3)
    with pytest.warns(RuntimeWarning, match=r"contributions are not finite"):
        shares = logit_attribution(model, activation_cache(model, None, [[5, 6, 7]]), [7])
    assert shares.logit.isna().any()


def test_attention_that_is_not_finite_is_last(monkeypatch):
    patterns = {0: torch.tensor([[[[1.0, 0, 0], [0.5, 0.5, 0], [NAN, 0.2, 0.4]]] * 4])}
    monkeypatch.setattr("interpret.probing.heads.attention_patterns", lambda *args, **options: patterns)
    with pytest.warns(RuntimeWarning, match=rf"^1 of 3 attention probabilities is {COUNTED} the ranks$"):
        found = top_attended(tiny_model("llama"), WORDS, "w5 w6 w7", [(0, 1)])
    assert [one.attended_position for one in found] == [2, 1, 0]
    assert math.isnan(found[-1].probability)
    assert [one.rank for one in found] == [1, 2, 3]


def test_heads_that_are_not_finite_have_no_rank():
    model = broken_layer(tiny_model("llama"), 2)
    cache = activation_cache(model, None, [[5, 6, 7]])
    with pytest.warns(RuntimeWarning, match=rf"^4 of 16 scores of heads are {COUNTED} the ranking$"):
        found = writing_heads(model, cache)
    assert found["rank"].isna().tolist() == [False] * 12 + [True] * 4
    assert found["layer"].tolist()[12:] == [3] * 4
    assert found["score"][:12].is_monotonic_decreasing


def test_compositions_that_are_not_finite_are_not_the_strongest():
    scores = torch.full((2, 2, 2, 2), NAN)
    scores[0, 0, 1, 0], scores[0, 1, 1, 0], scores[0, 0, 1, 1] = 0.2, INF, 0.3
    assert [one.score for one in strongest_compositions(scores, "query")] == pytest.approx([0.3, 0.2])


# -------------------------------------------------------------------------------------------------- continuations


def test_a_continuation_ends_where_no_token_is_the_most_likely():
    steps = [torch.tensor([[1.0, -INF], [1.0, NAN]]), torch.tensor([[INF, 0.0], [0.0, 0.0]])]
    assert sound_steps(steps) == [1, 0]
    assert greedy_continuation([4, 5, 9, 0], [9], 3).finite
    assert greedy_continuation([4, 5, 9, 0], [9], 2).finite is False
    cut = greedy_continuation([4, 5, 6], [9], 1)
    assert (cut.ids, cut.finite) == ([4], False)


def test_a_model_that_gives_nan_has_no_answer():
    model = broken_logit(tiny_model("llama"))
    (written,) = write_after(model, [[5, 6, 7]], 3)
    assert (written.ids, written.finite) == ([], False)
    assert math.isnan(written.p_first)
    with pytest.raises(InputError, match=r"^prompt 0 has no greedy continuation: the model gives NaN here"):
        answers(model, WORDS, ["w5 w6"])
    with pytest.raises(InputError, match=r"^prompts\[0\]: the model has no greedy continuation; give targets, or: "):
        interpret.attribute(model, WORDS, "w5 w6", max_new_tokens=2)
    with pytest.raises(InputError, match=r"has no most likely next token: the model gives NaN here"):
        trace(broken_logit(wide_model("llama")), BYTES, PROMPT, SUBJECT)
    (answered,) = known(broken_logit(wide_model("llama")), BYTES, [Fact("a", PROMPT, SUBJECT, "Paris")])
    assert (answered.correct, answered.reason) == (False, "not finite")


# --------------------------------------------------------------------------------------------------------- traces


def grids_with_nan():
    result = trace(wide_model("llama"), BYTES, PROMPT, SUBJECT, "Paris", samples=2)
    scores = result.sample_scores.copy()
    place = np.unravel_index(result.indirect_effects.argmax(), result.scores.shape)
    scores[0][place] = NAN
    broken = dataclasses.replace(result, sample_scores=scores, scores=scores.mean(axis=0))
    return result, broken, place


def test_a_cell_that_is_not_finite_is_marked_and_never_the_peak():
    result, broken, place = grids_with_nan()
    fact = Fact("a", PROMPT, SUBJECT, "Paris")
    rows, whole = trace_cells(fact, broken), trace_cells(fact, result)
    marked = [row for row in rows if math.isnan(row.indirect_effect)]
    assert [(row.token_idx, row.layer_idx) for row in marked] == [tuple(place)]
    assert math.isnan(marked[0].effect_std)
    rest = [row for row in whole if (row.token_idx, row.layer_idx) != tuple(place)]
    assert trace_peaks(rows)[0] == trace_peaks(rest)[0]
    (grid,) = trace_grids(rows)
    assert not_finite([grid]) == "1 of 20 cells is not finite (NaN or infinity) and left out of averages and peaks"
    assert not_finite(trace_grids(whole)) == ""
    assert all(np.isfinite(peak.mean) for peak in bucket_peaks(bucket_averages([grid])))


@bad
def test_a_peak_is_finite_wherever_the_others_stand(value):
    rows = cells([[value, 0.1], [0.3, 0.2]])
    assert [peak.indirect_effect for peak in trace_peaks(rows)][0] == 0.3
    assert trace_peaks(cells([[value, value]])) == []


def test_figures_mark_cells_and_say_how_many():
    _, broken, place = grids_with_nan()
    figure = prompt_figure([broken.grid()])
    (image,) = figure.axes[0].images
    assert np.argwhere(np.ma.getmaskarray(image.get_array())).tolist() == [list(place)]
    assert figure.axes[0].patch.get_hatch()
    assert "1 of 20 cells is not finite" in figure.get_suptitle()
    traces.average_figure([broken.grid()])
    infinite = dataclasses.replace(broken.grid(), scores=np.where(broken.scores > 0, broken.scores, INF))
    (image,) = prompt_figure([infinite]).axes[0].images
    assert np.argwhere(np.ma.getmaskarray(image.get_array())).tolist() == [list(place)]
    everything = dataclasses.replace(broken.grid(), effects=np.full((5, 4), NAN), scores=np.full((5, 4), INF))
    prompt_figure([everything])
    traces.average_figure([everything])


def test_a_trace_of_nan_weights_is_nan_and_says_so():
    model = wide_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(NAN)
    with pytest.warns(
        RuntimeWarning, match=r"^none of 20 cells is finite: the model gives NaN here; open it in float32"
    ):
        result = trace(model, BYTES, PROMPT, SUBJECT, "Paris", samples=2)
    assert np.isnan(result.scores).all()
    with pytest.warns(RuntimeWarning, match=r"^none of 5 scores is finite: the model gives NaN"):
        found = interpret.attribute(model, BYTES, PROMPT, f"{PROMPT} Paris")
    with pytest.raises(InputError, match=r"^scores are not finite; open the model in float32.*: it gives NaN$"):
        token_scores(Question("a", PROMPT, True, None, None), found.aggregate())
    with pytest.raises(InputError, match=r"^fact 'a': scores are not finite; open the model .*: it gives NaN"):
        list(locate_facts(model, BYTES, [Fact("a", PROMPT, SUBJECT, "Paris", foil="Rome")]))


# --------------------------------------------------------------------------------------------------- attributions


def attribution_with_nan():
    found = interpret.attribute(wide_model("llama"), BYTES, PROMPT, f"{PROMPT} Paris now").aggregate()
    found.sequences[0].scores[1, 0] = NAN
    return found


def test_a_score_that_is_not_finite_stays_marked_through_all_aggregations():
    found = attribution_with_nan()
    one = found.sequences[0]
    shares = found.aggregate(normalize=True).sequences[0].scores
    own = np.delete(one.scores[: one.start, 0], 1)
    np.testing.assert_allclose(np.delete(shares[: one.start, 0], 1), own / np.abs(own).sum())
    merged = found.aggregate(spans=[[(1, 3)]]).sequences[0].scores
    assert math.isnan(merged[1, 0])
    assert np.isfinite(merged[[0, 2, 3], 0]).all()
    n_scores = sum(range(one.start, one.stop))
    assert one.tally().left_out("scores", "x") == left_out([NAN, *range(n_scores - 1)], "scores", "x")


def test_the_terminal_and_the_page_write_nan_and_leave_cells_without_a_score_empty():
    found = attribution_with_nan()
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(Tables(found.view()))
    text, page = console.export_text(), found.to_html()
    assert text.count("NaN") == 2  # the cell, and the message
    assert page.count(">NaN</td>") == 1
    one = found.sequences[0]
    assert page.count('class="missing"') == one.unscored()[: one.stop - 1].sum()
    for shown in (text, page):
        assert re.search(rf"1 of \d+ scores is {COUNTED} colour scales and normalisation", " ".join(shown.split()))


# ---------------------------------------------------------------------------------------------------------- selfie


def test_a_text_without_a_most_likely_token_ends_there(monkeypatch):
    model = wide_model("llama")
    template = InterpretationPrompt(BYTES, ("The", 0, "is in"), name="t")
    primed = prime(model, template, 4)
    whole = read_nothing(primed, Settings(new_tokens=4)).written
    plain, calls = decoding.most_likely, []

    def third_is_nan(logits):
        calls.append(logits)
        return plain(logits.where(torch.arange(len(logits[0])) > 0, NAN) if len(calls) == 3 else logits)

    monkeypatch.setattr(decoding, "most_likely", third_is_nan)
    (written,) = decoding.write(decoding.start_plain(primed), [0], 4)
    assert written.ids[:2] == whole.ids[:2]
    assert written.probabilities[:2] == whole.probabilities[:2]
    assert len(written.ids) == len(written.probabilities) == 3
    assert math.isnan(written.probabilities[2])
    calls.clear()
    with pytest.raises(
        InputError, match=r"^probabilities after the interpretation prompt 't' are not finite; open the"
    ):
        read_nothing(primed, Settings(new_tokens=4))
    calls.clear()
    state = State("a", 1, 0, torch.randn(32))
    assert list(read(primed, [state], Settings(new_tokens=4), 8, print, KeptReadings(StoredParts(), 0))) == [
        "not finite"
    ]


def test_gains_of_probabilities_that_are_not_finite_are_nan():
    assert math.isnan(log_gain([0.5, NAN], [0.5, 0.5]))
    assert math.isnan(log_gain([0.5, 0.5], [0.5, NAN]))


# -------------------------------------------------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def broken_folder(tmp_path_factory):
    """A model whose last layer overflows at one token of some prompts only."""
    folder = saved_model(tmp_path_factory.mktemp("broken"), "llama")
    model, tokenizer = interpret.load(str(folder), device="cpu")
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer(" pizza").input_ids[-1]] = NAN
    model.save_pretrained(folder)
    return folder


def test_a_run_counts_its_rows(broken_folder, tmp_path, capsys):
    rows = [{"prompt": f"I love {what}", "category": "a", "raw": True, "target": "it"} for what in ("apples", "pizza")]
    examples = json_file(tmp_path / "examples.json", {"examples": rows})
    argv = ["--model", broken_folder, "--device", "cpu", "--examples", examples]
    assert run("probe", "lens", *argv, "--output", tmp_path / "lens") == 0
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(r"\d+ of \d+ rows have numbers that are not finite \(NaN or infinity\); they are left out", error)
    assert run("probe", "logits", *argv, "--output", tmp_path / "logits") == 3
    assert "a_2: not probed: no logit is finite: the model gives NaN here" in " ".join(capsys.readouterr().err.split())
    assert run("probe", "heads", *argv, "--output", tmp_path / "heads") == 0
    assert "not finite" in capsys.readouterr().err


@pytest.mark.parametrize("filtered", [[], ["--no-filter"]])
def test_a_fact_for_which_the_model_gives_nan_is_dropped_with_that_reason(broken_folder, tmp_path, capsys, filtered):
    facts = json_file(tmp_path / "facts.json", [{**fact_rows(1)[0], "prompt": "I love pizza in", "subject": "pizza"}])
    argv = ["--model", broken_folder, "--device", "cpu", "--facts", facts, "--output", tmp_path / "run", *filtered]
    assert run("trace", *argv, "--samples", "2") == 3
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(r"not traced: .*(gives NaN)", error)
    assert not run_folder.read_table(tmp_path / "run", TraceCell)
