"""Insertion and deletion curves of attribution methods, compared with full passes over masked texts."""

import numpy as np
import pytest
import torch

from interpret import InputError
from interpret.attribution import Comparison, compare_methods, register_method
from interpret.attribution.faithfulness import area, ranking
from interpret.attribution.methods.registry import METHODS
from interpret.attribution.runs import run
from interpret.prompts.prompts import Prompt
from interpret.storage.run_folder import read_run
from reference.commands import run as run_command
from reference.plain_attribution import (
    N_PROMPT,
    PROMPT,
    TARGET,
    TOKENIZER,
    embeddings_of,
    ids_of,
    prefixes,
    probability_of,
    wide_model,
)

SCORES = (3.0, -1.0, 5.0, 2.0, 0.0, 4.0)
"""Scores of the tokens of the prompt and one after it."""
ORDER = (2, 5, 0, 3, 4, 1)


@pytest.fixture
def fixed():
    """A method whose scores are known."""
    register_method(lambda step: torch.tensor([*SCORES, -2.0, -3.0][: len(step.ids)]), "fixed", gradients=False)
    yield "fixed"
    del METHODS["fixed"]


def compared(model, methods, targets=TARGET, **options):
    found = compare_methods(model, TOKENIZER, PROMPT, targets, methods=methods, **options)
    return {(row.step, row.method): row for row in found}


def values_of_orders(model, ids, target, order, baseline):
    """The value after the first k tokens of an order are masked, and after they are put in, by full passes."""
    x, empty = embeddings_of(model, ids), embeddings_of(model, [baseline] * len(ids))
    deleted, inserted = x.clone(), empty.clone()
    found = [[], []]
    for place in [None, *order]:
        if place is not None:
            deleted[:, place], inserted[:, place] = empty[:, place], x[:, place]
        with torch.no_grad():
            for values, text in zip(found, (deleted, inserted), strict=True):
                values.append(probability_of(model, text, target).item())
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_curves_are_those_of_full_passes(fixed, kind):
    model = wide_model(kind)
    rows = compared(model, [fixed], baseline=7)
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        order = [place for place in ORDER if place < len(ids)]
        deleted, inserted = values_of_orders(model, ids, target, order, 7)
        row = rows[step, fixed]
        np.testing.assert_allclose(row.deletion, deleted, rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(row.insertion, inserted, rtol=1e-3, atol=1e-7)
        heights = [(one + other) / 2 for one, other in zip(deleted, deleted[1:], strict=False)]
        assert row.deletion_area == pytest.approx(sum(heights) / len(heights), rel=1e-3)


def test_the_whole_answer_has_one_ranking(fixed):
    model = wide_model("llama")
    rows = compared(model, [fixed], attributed_fn="answer_log_probability", baseline=7)
    assert list(rows) == [(0, fixed), (0, "random")]
    answer = ids_of(TARGET)[N_PROMPT:]
    x, empty = embeddings_of(model, ids_of(PROMPT)), embeddings_of(model, [7] * N_PROMPT)
    x[:, ORDER[0]] = empty[:, ORDER[0]]
    text = torch.cat([x, embeddings_of(model, answer)], dim=1)
    with torch.no_grad():
        log_p = model(inputs_embeds=text).logits[0, N_PROMPT - 1 : -1].log_softmax(-1)
    expected = log_p[[0, 1], answer].sum().item()
    assert rows[0, fixed].deletion[1] == pytest.approx(expected, rel=1e-4)
    assert len(rows[0, fixed].deletion) == N_PROMPT + 1


def test_groups_are_ranked_by_the_sum_of_their_scores_and_masked_together(fixed):
    model = wide_model("llama")
    rows = compared(model, [fixed, "occlusion"], groups=["The Eiffel", "Tower", "is in"], baseline=7, end=1)
    (ids, target), *_ = prefixes(TARGET)
    x, empty = embeddings_of(model, ids), embeddings_of(model, [7] * len(ids))
    assert rows[0, fixed].deletion[0] == rows[0, "occlusion"].deletion[0]
    x[:, 2] = empty[:, 2]  # "Tower" has 5; "The Eiffel" 3 - 1, "is in" 2 + 0
    with torch.no_grad():
        first = probability_of(model, x, target).item()
        x[:, :2] = empty[:, :2]  # a tie keeps the order of the text
        second = probability_of(model, x, target).item()
    np.testing.assert_allclose(rows[0, fixed].deletion[1:3], [first, second], rtol=1e-3)


def test_gradients_are_ranked_by_their_norm_and_other_scores_by_their_sum():
    model = wide_model("gpt2")
    for method, own, other in (("saliency", "l2", "sum"), ("input_x_gradient", "sum", "l2")):
        default, same, unlike = (
            compared(model, [method], end=1, **({} if how is None else {"how": how}))[0, method].insertion
            for how in (None, own, other)
        )
        assert default == same != unlike


def test_the_random_row_does_not_depend_on_the_methods():
    model = wide_model("llama")
    one, other = (compared(model, [name], end=1)[0, "random"] for name in ("saliency", "attention"))
    assert one.deletion == pytest.approx(other.deletion, rel=1e-5)
    assert one.deletion[0] == pytest.approx(one.insertion[-1], rel=1e-5)
    assert one.deletion[-1] == pytest.approx(one.insertion[0], rel=1e-5)


def test_what_ranks_by_the_effect_itself_beats_random_orders():
    """Of a value that is a sum over tokens, occlusion and Shapley values find the best order."""
    register_method(lambda step: -torch.arange(len(step.ids)).float(), "backwards", gradients=False)
    try:
        model = wide_model("gpt2")
        rows = compared(model, ["kernel_shap", "backwards"], end=1, attributed_fn="logit")
    finally:
        del METHODS["backwards"]
    gain = {name: row.insertion_area - row.deletion_area for (_, name), row in rows.items()}
    assert gain["kernel_shap"] > gain["random"]
    assert gain["kernel_shap"] > gain["backwards"]


def test_ties_keep_the_order_of_the_text_and_nan_is_last():
    assert ranking(np.array([1.0, np.nan, 2.0, 1.0])).tolist() == [1, 3, 0, 2]
    assert area(np.array([1.0, 0.0, 0.0])) == 0.25


def test_the_result_shows_itself(fixed, tmp_path):
    prompts, targets = [PROMPT, f"{PROMPT} the"], [TARGET, f"{PROMPT} the city of"]
    found = compare_methods(wide_model("llama"), TOKENIZER, prompts, targets, methods=[fixed, "attention"])
    summary = found.summary()
    assert summary["insertion"].is_monotonic_decreasing
    of_fixed = [row for row in found if row.method == fixed]
    by_prompt = [[row.deletion_area for row in of_fixed if row.name == name] for name in ("prompt_1", "prompt_2")]
    expected = np.mean([np.mean(areas) for areas in by_prompt])
    assert summary.set_index("method").deletion[fixed] == pytest.approx(expected)
    assert set(summary["n"]) == {2}
    assert len(found.average_figure().axes) == 2
    assert found.figure(1).axes
    assert found.show(html=tmp_path / "page.html").exists()


# ---------------------------------------------------------------------------------------------------- runs, commands


def test_a_run_has_the_rows_of_the_call(opened, tmp_path):
    model, tokenizer = opened
    prompts = [Prompt(name, PROMPT, raw=True, target=target) for name, target in (("a", "the city"), ("b", "Rome"))]
    options = {"n_samples": 30, "n_steps": 3}
    methods = ["integrated_gradients", "kernel_shap"]
    folder = run(
        model, tokenizer, prompts, tmp_path / "run", compare=methods, steps=":1", options=options, progress=False
    )
    targets = [f"{PROMPT} the city", f"{PROMPT} Rome"]
    found = compare_methods(model, tokenizer, [PROMPT] * 2, targets, methods=methods, end=1, progress=False, **options)
    rows = list(Comparison(folder.records()))
    assert [row.method for row in rows] == [*methods, "random"] * 2
    for one, other in zip(rows, found, strict=True):
        assert one.insertion == pytest.approx(other.insertion, rel=1e-5)
        assert (one.step_token.strip(), one.prompt) == (other.step_token.strip(), other.prompt)
    assert [row.name for row in rows] == ["a"] * 3 + ["b"] * 3


def test_the_command_prints_areas_and_has_page_and_figures(model_folder, tmp_path, capsys):
    folder = tmp_path / "run"
    line = ["attribute", "--model", model_folder, "--device", "cpu", "--prompt", PROMPT, "--target", "Paris"]
    line += ["--compare", "saliency,occlusion", "--steps", "0:1", "--output", folder]
    assert run_command(*line, "--html", tmp_path / "own.html") == 0
    printed = capsys.readouterr()
    assert "insertion area" in printed.out
    assert "random" in printed.out
    assert "on 1 prompt;" in printed.out
    assert " to " not in printed.out, "a single prompt has no interval"
    assert len(list(read_run(folder).records())) == 3
    assert run_command("report", folder, "-o", tmp_path / "page.html") == 0
    assert run_command("figures", folder, "-o", tmp_path / "figures") == 0
    names = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert names == {"average_curves", "prompt_1"}
    assert "insertion" in (tmp_path / "own.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": []}, "methods is []; give a list of names, such as ['saliency', 'occlusion']"),
        ({"methods": "saliency"}, "methods is 'saliency'; give a list of names, such as ['saliency', 'occlusion']"),
        ({"methods": ["lime", "lime"]}, "method 'lime' is compared with itself; give each method once"),
        (
            {"methods": ["layer_deeplift"]},
            "method 'layer_deeplift' scores layers; only methods that score tokens are compared",
        ),
        (
            {"methods": ["occlusion"], "n_step": 3},
            "method 'occlusion': unknown option 'n_step'; Allowed: window, baseline",
        ),
        ({"methods": ["occlusion"], "how": "max"}, "unknown how 'max'; Allowed: sum, l2, mean"),
    ],
)
def test_a_wrong_comparison_is_one_message(options, message):
    with pytest.raises(InputError) as caught:
        compare_methods(wide_model("llama"), TOKENIZER, PROMPT, TARGET, **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "3"], "layers is for a single method; leave it out, or leave out compare"),
        (["--method", "lime"], "method is for a single method; leave it out, or leave out compare"),
        (["--json", "x.json"], "--json holds attributions; a comparison has table.csv and --html"),
    ],
)
def test_options_of_a_single_method_are_refused(model_folder, arguments, message, capsys):
    line = ["attribute", "--model", model_folder, "--prompt", PROMPT, "--compare", "saliency,occlusion"]
    assert run_command(*line, *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
