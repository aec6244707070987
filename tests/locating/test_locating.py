"""Facts located by contrastive attribution: scores, runs, averages and figures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from interpret import storage
from interpret.errors import InputError
from interpret.facts.buckets import token_buckets
from interpret.facts.files import Fact, load_facts
from interpret.facts.grids import bucket_peaks
from interpret.figures import locations
from interpret.locating import facts, runs
from interpret.locating.facts import locate_facts
from interpret.locating.tables import location_averages, location_grids, location_summary
from interpret.records import LocationAverage, LocationCell, from_csv
from interpret.storage import run_folder
from reference.commands import FACT_PROMPTS, fact_rows, json_file, run, run_killed
from reference.damage import OUT_OF_MEMORY

TOP = Path(__file__).parents[2]
SCRIPT = TOP / "scripts" / "locate_facts_by_attribution.py"
PROMPT, SUBJECT = FACT_PROMPTS[0]
SITES = ("resid_post", "attn_out", "mlp_out")
FACT = Fact("known_0", PROMPT, SUBJECT, "Paris", foil="Rome")


def rows_of(count=4, **changes):
    return fact_rows(count, foil="Rome", **changes)


def file_of(folder, rows):
    return json_file(folder / "facts.json", rows)


def arguments(model_folder, facts, output, *more):
    paths = ["--model", str(model_folder), "--facts", str(facts), "--output", str(output)]
    return ["locate", *paths, "--device", "cpu", "--no-filter", *(str(argument) for argument in more)]


def table_of(folder):
    return run_folder.read_table(folder, LocationCell)


# ------------------------------------------------------------------------------------------------ the numbers


def plain_scores(model, ids, value_of):
    """Activation x gradient by plain autograd, [T, L] per site, and the probabilities after the text."""
    seen, hooks = {}, []
    for number, layer in enumerate(model.model.layers):
        for site, module in zip(SITES, (layer, layer.self_attn, layer.mlp), strict=True):

            def keep(module, args, output, place=(site, number)):
                seen[place] = output[0] if isinstance(output, tuple) else output
                seen[place].retain_grad()

            hooks.append(module.register_forward_hook(keep))
    p = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
    for hook in hooks:
        hook.remove()
    value_of(p).backward()
    model.zero_grad()
    n_layers = len(model.model.layers)
    scores = {
        site: torch.stack([(seen[site, layer] * seen[site, layer].grad)[0].sum(-1) for layer in range(n_layers)], 1)
        for site in SITES
    }
    return {site: of_site.detach().numpy() for site, of_site in scores.items()}, p.detach()


@pytest.mark.parametrize("attributed_fn", ["contrast_prob_diff", "probability"])
def test_scores_are_those_of_plain_autograd(opened, attributed_fn):
    model, tokenizer = opened
    ids = tokenizer(FACT.prompt).input_ids
    true, false = (tokenizer(f"{FACT.prompt} {words}").input_ids[len(ids)] for words in ("Paris", "Rome"))
    assert true != false
    contrast = attributed_fn == "contrast_prob_diff"
    expected, p = plain_scores(model, ids, lambda p: p[true] - p[false] if contrast else p[true])
    rows = list(locate_facts(model, tokenizer, [FACT], attributed_fn=attributed_fn))
    grids = {grid.site: grid.effects for grid in location_grids(rows)}
    assert list(grids) == list(SITES)
    for site in SITES:
        assert np.abs(expected[site]).max() > 1e-6
        np.testing.assert_allclose(grids[site], expected[site], rtol=1e-4, atol=1e-9)
    (p_true,), (p_false,) = {row.p_true for row in rows}, {row.p_false for row in rows}
    assert p_true == pytest.approx(p[true].item(), rel=1e-5)
    assert p_false == (pytest.approx(p[false].item(), rel=1e-5) if contrast else None)
    assert {row.foil for row in rows} == {"Rome" if contrast else ""}
    assert {row.answer_id for row in rows} == {true}


def test_a_fact_takes_one_forward_and_one_backward_pass(opened, monkeypatch):
    model, tokenizer = opened
    passes, backwards = [], []
    hook = model.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **how: backwards.append(1) or real(*args, **how))
    list(locate_facts(model, tokenizer, [FACT]))
    hook.remove()
    assert (len(passes), len(backwards)) == (1, 1)


def test_nothing_is_left_on_the_model(opened):
    model, tokenizer = opened
    list(locate_facts(model, tokenizer, [FACT]))
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_there_is_one_row_per_site_token_and_layer_in_that_order(opened):
    model, tokenizer = opened
    rows = list(locate_facts(model, tokenizer, [FACT]))
    n_tokens, n_layers = len(tokenizer(FACT.prompt).input_ids), model.config.num_hidden_layers
    places = [(row.site, row.token_idx, row.layer_idx) for row in rows]
    assert places == [(site, t, layer) for site in SITES for t in range(n_tokens) for layer in range(n_layers)]
    tokens = rows[: n_tokens * n_layers : n_layers]
    assert "".join(row.token for row in tokens) == FACT.prompt
    assert "".join(row.token for row in tokens if row.in_subject).strip() == FACT.subject
    assert (rows[-1].bucket_rome, rows[-1].bucket_kt) == ("last", "last")


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        (
            Fact("a", PROMPT, SUBJECT, "Paris"),
            "fact 'a': the fact has no foil; add one, or choose another attributed function than",
        ),
        (
            Fact("a", PROMPT, SUBJECT, "Paris", foil="Paris"),
            "answer 'Paris' and foil 'Paris' begin with the same token",
        ),
        (
            Fact("a", "The Eiffel Tower is in ", "Eiffel", "Paris", foil="Rome"),
            "does not continue the tokens of its prompt",
        ),
        (Fact("a", "The Eiffel Tower is in", "Louvre", "Paris", foil="Rome"), "subject 'Louvre' is not a part"),
    ],
)
def test_a_fact_that_cannot_be_located_is_named_with_the_reason(opened, fact, message):
    with pytest.raises(InputError, match=message):
        list(locate_facts(*opened, [fact]))


def test_scores_that_are_not_finite_are_refused(opened):
    model, tokenizer = opened
    weight = model.get_output_embeddings().weight
    kept = weight.data.clone()
    weight.data[3] = torch.nan
    try:
        with pytest.raises(InputError, match=r"^fact 'known_0': scores are not finite; open the model in float32"):
            list(locate_facts(model, tokenizer, [FACT]))
    finally:
        weight.data.copy_(kept)


# ------------------------------------------------------------------------------------------------ the run


def test_the_table_read_again_is_what_the_library_yields(model_folder, opened, tmp_path):
    facts = file_of(tmp_path, rows_of())
    assert run(*arguments(model_folder, facts, tmp_path / "run")) == 0
    assert table_of(tmp_path / "run") == list(locate_facts(*opened, load_facts(facts).facts))
    identity = storage.read_manifest(tmp_path / "run")["identity"]
    assert len(identity.pop("facts_sha256")) == 64
    assert identity.pop("weights").startswith("sha256 ")
    assert identity == {
        "command": "locate",
        "model": str(model_folder),
        "dtype": "float32",
        "attributed_fn": "contrast_prob_diff",
        "filter": False,
        "rule": "words",
        "load_in_8bit": False,
        "load_in_4bit": False,
    }


def test_facts_that_cannot_be_located_are_dropped_and_reported(model_folder, tmp_path, capsys):
    rows = rows_of(3)
    del rows[1]["foil"]
    rows.append({"subject": "Anna", "attribute": "x", "prompt": "nobody is here"})
    argv = arguments(model_folder, file_of(tmp_path, rows), tmp_path / "run")
    for _ in range(2):  # the second time, the reasons come from the run
        assert run(*argv) == 3
        captured = capsys.readouterr()
        assert "4 facts: 2 located, 2 dropped (1 bad row, 1 not located)" in captured.out
        assert "known_1: not located: the fact has no foil; add one, or choose another attributed" in captured.err
        assert "row_3: bad row: " in captured.err
    assert {row.name for row in table_of(tmp_path / "run")} == {"known_0", "known_2"}


def test_a_run_with_another_chat_template_is_another_run(model_folder, tmp_path, capsys):
    argv = arguments(model_folder, file_of(tmp_path, rows_of(1)), tmp_path / "run")
    assert run(*argv) == 0
    before = (tmp_path / "run" / "table.csv").read_bytes()
    assert run(*argv, "--chat-template", "[INST] {prompt} [/INST]") == 2
    assert "--chat-template: not set in the folder" in capsys.readouterr().err
    assert (tmp_path / "run" / "table.csv").read_bytes() == before


def test_facts_without_any_foil_are_refused_before_the_model_is_opened(tmp_path, capsys):
    rows = [{key: value for key, value in row.items() if key != "foil"} for row in rows_of(2)]
    assert run(*arguments("no/such/model", file_of(tmp_path, rows), tmp_path / "run")) == 2
    assert "contrast_prob_diff contrasts the answer with a foil, and no fact has one" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_foils_the_answers_own_probability_is_attributed(model_folder, tmp_path):
    facts = file_of(tmp_path, [{key: value for key, value in row.items() if key != "foil"} for row in rows_of(2)])
    assert run(*arguments(model_folder, facts, tmp_path / "run", "--attributed-fn", "probability")) == 0
    assert {(row.attributed_fn, row.p_false, row.foil) for row in table_of(tmp_path / "run")} == {
        ("probability", None, "")
    }


def test_facts_the_model_does_not_know_are_dropped(model_folder, tmp_path, capsys):
    argv = arguments(model_folder, file_of(tmp_path, rows_of(2, attribute="zebra")), tmp_path / "run", "--filter")
    assert run(*argv) == 0
    assert "2 facts: 0 located, 2 dropped (2 not known)" in capsys.readouterr().out
    assert table_of(tmp_path / "run") == []


def test_a_resumed_run_equals_an_uninterrupted_run(model_folder, tmp_path):
    facts = file_of(tmp_path, rows_of(6))
    argv = arguments(model_folder, facts, tmp_path / "killed")
    run_killed(SCRIPT, *argv[1:])
    assert {row.name for row in table_of(tmp_path / "killed")} == {"known_0", "known_1", "known_2"}
    assert run(*argv) == 0
    assert run(*arguments(model_folder, facts, tmp_path / "whole")) == 0
    assert (tmp_path / "killed" / "table.csv").read_bytes() == (tmp_path / "whole" / "table.csv").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--attributed-fn", "logits"], "error: unknown step function 'logits'; did you mean 'logit'?"),
        (["--attributed-fn", "mc_dropout_mean"], "error: 'mc_dropout_mean' needs several passes"),
        (["--rule", "word"], "error: unknown rule 'word'; did you mean 'words'?"),
        (["--facts", "none.json"], "error: none.json does not exist; give a JSON file like examples/facts.json"),
        (["--limit", "0"], "Invalid value for '--limit'"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(model_folder, tmp_path, capsys, change, message):
    assert run(*arguments(model_folder, file_of(tmp_path, rows_of(1)), tmp_path / "run", *change)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ averages, pictures


def cells(name, site, effects, *, span, buckets=("", "")):
    """Rows of one fact and site with the given scores, [T, L]."""
    return [
        LocationCell(
            name=name,
            relation="",
            prompt="",
            subject="",
            attribute="Japan",
            foil="Peru",
            answer=" Japan",
            answer_id=7,
            attributed_fn="contrast_prob_diff",
            site=site,
            layer_idx=layer,
            token_idx=token,
            token=f" t{token}",
            in_subject=span[0] <= token < span[1],
            bucket_rome=buckets[0],
            bucket_kt=buckets[1],
            score=score,
            p_true=0.7,
            p_false=0.1,
        )
        for token, of_token in enumerate(effects.tolist())
        for layer, score in enumerate(of_token)
    ]


def planted(layers=8):
    """Rows of four facts of different lengths: high MLP scores at the last subject token in layer 5, else noise."""
    rows, random = [], np.random.default_rng(0)
    for n in range(4):
        span = (1, 3 + n % 2)
        for site in SITES:
            effects = random.normal(0, 0.02, (6 + n, layers))
            if site == "mlp_out":
                effects[span[1] - 1, 5] += 0.5
            rows += cells(f"known_{n}", site, effects, span=span)
    return rows


def test_a_planted_peak_is_recovered():
    averages = location_averages(location_grids(planted()))
    assert list(averages) == list(SITES)
    peaks = [(site, peak) for site, found in averages.items() for peak in bucket_peaks(found)]
    site, peak = max(peaks, key=lambda pair: pair[1].mean)
    assert (site, peak.bucket, peak.layer_idx, peak.n) == ("mlp_out", "last_subject", 5, 4)
    assert peak.mean == pytest.approx(0.5, abs=0.05)
    assert peak.low < peak.mean < peak.high


def test_prompts_count_once_whatever_their_length():
    short, long = np.full((4, 2), 1.0), np.full((12, 2), 0.0)
    rows = cells("a", "mlp_out", short, span=(0, 1)) + cells("b", "mlp_out", long, span=(0, 1))
    assert location_grids(rows)[0].tokens == (" t0", " t1", " t2", " t3")
    averages = location_averages(location_grids(rows), scheme="kt")["mlp_out"]
    np.testing.assert_array_equal(averages.mean[2], [0.5, 0.5])  # further: 2 tokens of one, 10 of the other


def test_the_table_of_averages_is_each_prompts_mean_first():
    found = location_summary(location_grids(planted()))
    scores: dict = {}
    for cell in planted():
        n = int(cell.name[-1])
        bucket = token_buckets(6 + n, (1, 3 + n % 2))[cell.token_idx]
        if bucket is not None:
            scores.setdefault((cell.site, bucket, cell.layer_idx), {}).setdefault(cell.name, []).append(cell.score)
    assert {(row.site, row.bucket, row.layer_idx) for row in found} == set(scores)
    for row in found:
        of_prompts = [np.mean(own) for own in scores[row.site, row.bucket, row.layer_idx].values()]
        assert (row.mean_score, row.n) == (pytest.approx(np.mean(of_prompts)), len(of_prompts))
        assert row.low <= row.mean_score <= row.high
    assert {row.n for row in found} == {2, 4}, "every second subject has a middle"


@pytest.fixture
def finished_run(tmp_path):
    folder = tmp_path / "run"
    units = [f"known_{n}" for n in range(4)]
    with storage.open_run(
        folder, LocationCell, identity={"command": "locate"}, circumstances={}, units=units
    ) as opened_run:
        for unit in units:
            opened_run.write(unit, [row for row in planted() if row.name == unit])
    return folder


def test_the_figure_shows_the_averages_one_panel_per_site(tmp_path):
    grids = location_grids(planted())
    figure = locations.location_figure(grids)
    panels = [panel for panel in figure.axes if panel.get_images()]
    assert [panel.get_title() for panel in panels] == ["layer output", "attention", "MLP"]
    for panel, found in zip(panels, location_averages(grids).values(), strict=True):
        np.testing.assert_array_equal(np.asarray(panel.get_images()[0].get_array()), found.mean)
    assert figure.axes[-1].get_ylabel() == "score (P(answer) − P(foil))"
    lines = {line.get_label(): line.get_ydata() for line in locations.location_lines(grids).axes[2].get_lines()}
    assert lines["last subject token (n=4)"].argmax() == 5


def test_figures_know_such_a_run_by_its_manifest(finished_run, tmp_path, capsys):
    assert run("figures", finished_run, "-o", tmp_path / "figures", "--fact", "known_2") == 0
    names = {"average_heatmap", "average_lines", "fact_known_2"}
    files = {f"{name}.{ending}" for name in names for ending in ("png", "pdf")} | {"averages.csv"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == files
    averages = from_csv(LocationAverage, (tmp_path / "figures" / "averages.csv").read_bytes())
    assert averages == location_summary(location_grids(planted()))
    assert "3 figures, each as PNG and PDF; the averages in averages.csv" in capsys.readouterr().err


def test_a_fact_the_run_does_not_have_is_refused(finished_run, tmp_path, capsys):
    assert run("figures", finished_run, "-o", tmp_path / "figures", "--fact", "known_9") == 2
    assert "error: the run has no fact or prompt 'known_9'; did you mean 'known_" in capsys.readouterr().err


def test_the_plan_is_checked_once_for_all_facts(opened, monkeypatch):
    model, tokenizer = opened
    calls = []
    real = facts.plan_attribution
    monkeypatch.setattr(facts, "plan_attribution", lambda *args, **how: calls.append(1) or real(*args, **how))
    list(locate_facts(model, tokenizer, [FACT] * 3))
    assert len(calls) == 1


@pytest.mark.parametrize("too_large", OUT_OF_MEMORY)
def test_a_fact_that_does_not_fit_in_memory_is_dropped_and_the_run_goes_on(
    model_folder, tmp_path, capsys, monkeypatch, too_large
):
    real = runs.locate_fact

    def refusing(plan, fact, template):
        return too_large() if fact.name == "known_1" else real(plan, fact, template)

    monkeypatch.setattr(runs, "locate_fact", refusing)
    assert run(*arguments(model_folder, file_of(tmp_path, rows_of(3)), tmp_path / "run")) == 3
    assert {row.name for row in table_of(tmp_path / "run")} == {"known_0", "known_2"}
    assert "known_1: not located: the fact does not fit in memory" in capsys.readouterr().err
