"""Aggregation and tables, compared with closed forms on scores small enough to add up by hand."""

from dataclasses import replace

import numpy as np
import pytest

from interpret import InputError, attribute
from interpret.attribution import Attributed, Attribution, AttributionInfo
from reference.attributions import word_numbers
from reference.plain_attribution import PROMPT, TOKENIZER, wide_model

INFO = AttributionInfo(
    method="input_x_gradient",
    attributed_fn="probability",
    unit="probability",
    contrast=None,
    step_units={"probability": "probability", "entropy": "nats", "odd": ""},
    step_aggregates={"probability": "product", "entropy": "sum", "odd": "mean"},
    model="m",
    tokenizer="t",
)
NAN = np.nan
SCORES = np.array([[1.0, 2], [-3, 4], [5, -6], [NAN, 7], [NAN, NAN]])  # [T, G]: 3 tokens of prompt, 2 steps
WIDE = np.stack([SCORES, -3 * SCORES], axis=2)  # [T, G, D]: sum -2, mean -1, norm 10 ** 0.5 times SCORES


def one(scores=SCORES, tokens=(" the", " big", " the", " Par", "is"), **more):
    steps = {"probability": np.array([0.5, 0.2]), "entropy": np.array([1.0, 2.0]), "odd": np.array([1.0, 2.0])}
    if "source_tokens" in more:
        more = {"source_words": word_numbers(more["source_tokens"]), **more}
    return Attributed(
        **{
            "tokens": tokens,
            "token_ids": (5, 6, 5, 7, 8),
            "words": word_numbers(tokens),
            "n_prompt": 3,
            "start": 3,
            "stop": 5,
            "scores": scores,
            "step_scores": steps,
            **more,
        }
    )


def attribution(*sequences):
    return Attribution(list(sequences), INFO)


def scores_of(found):
    return found.sequences[0].scores


@pytest.mark.parametrize(("how", "factor"), [("sum", -2), ("mean", -1)])
def test_width_is_reduced_with_its_sign(how, factor):
    np.testing.assert_allclose(scores_of(attribution(one(WIDE)).aggregate(how)), factor * SCORES)


def test_a_plain_gradient_is_reduced_to_its_norm_by_default():
    gradients = Attribution([one(WIDE)], replace(INFO, method="saliency"))
    np.testing.assert_allclose(scores_of(gradients.aggregate()), 10**0.5 * np.abs(SCORES))
    assert gradients.aggregate().info.aggregation == ("l2",)
    np.testing.assert_allclose(gradients.to_frame().score, gradients.aggregate().to_frame().score)
    np.testing.assert_allclose(scores_of(gradients.aggregate("sum")), -2 * SCORES)


def test_the_sum_of_a_gradient_says_nothing_about_a_model_that_begins_with_a_layer_norm():
    found = attribute(wide_model("gpt2"), TOKENIZER, PROMPT, method="saliency", end=1, max_new_tokens=1)
    norms = found.aggregate().to_frame().score
    assert (np.abs(found.aggregate("sum").to_frame().score) < 1e-4 * norms.max()).all()
    assert len(set(norms.round(9))) == len(norms)


def test_the_signed_sum_is_the_default():
    np.testing.assert_allclose(scores_of(attribution(one(WIDE)).aggregate()), -2 * SCORES)


def test_the_norm_has_no_sign():
    np.testing.assert_allclose(scores_of(attribution(one(WIDE)).aggregate("l2")), 10**0.5 * np.abs(SCORES))


def test_scores_without_a_width_stay_as_they_are():
    np.testing.assert_array_equal(scores_of(attribution(one()).aggregate("l2")), SCORES)


def test_layers_are_reduced_as_inputs_are():
    found = attribution(one(None, layer_scores={"mlp_out.0": WIDE})).aggregate().sequences[0]
    np.testing.assert_allclose(found.layer_scores["mlp_out.0"], -2 * SCORES)
    assert found.scores is None


def test_normalised_steps_keep_their_signs_and_add_up_to_one_in_size():
    found = scores_of(attribution(one()).aggregate(normalize=True))
    np.testing.assert_allclose(found[:, 0], [1 / 9, -3 / 9, 5 / 9, NAN, NAN])
    np.testing.assert_allclose(np.nansum(np.abs(found), axis=0), 1)


def test_source_and_target_share_one_size_and_each_activation_has_its_own():
    source = np.array([[3.0, 1.0], [-8.0, 0.0]])
    extra = {"source_tokens": (" a", "b"), "source_ids": (1, 2), "source_scores": source}
    found = attribution(one(layer_scores={"mlp_out.0": 4 * SCORES}, **extra)).aggregate(normalize=True).sequences[0]
    np.testing.assert_allclose(found.source_scores[:, 0], [3 / 20, -8 / 20])
    np.testing.assert_allclose(found.scores[:3, 0], np.array([1, -3, 5]) / 20)
    np.testing.assert_allclose(found.layer_scores["mlp_out.0"][:3, 0], np.array([1, -3, 5]) / 9)


def test_a_step_of_zeros_stays_one():
    assert not np.nan_to_num(scores_of(attribution(one(0 * SCORES)).aggregate(normalize=True))).any()


def test_spans_of_the_prompt_are_added():
    found = attribution(one()).aggregate(spans=[[(1, 3)]]).sequences[0]
    np.testing.assert_array_equal(found.scores, [[1, 2], [2, -2], [NAN, 7], [NAN, NAN]])
    assert found.tokens == (" the", " big the", " Par", "is")
    assert found.token_ids == (5, -1, 7, 8)
    assert (found.n_prompt, found.start, found.stop) == (2, 2, 4)


def test_merged_steps_are_added_and_their_functions_merged_in_their_own_way():
    found = attribution(one()).aggregate(subwords=True).sequences[0]
    assert found.tokens == (" the", " big", " the", " Paris")
    np.testing.assert_array_equal(found.scores, [[3], [1], [-1], [NAN]])
    assert {name: values.tolist() for name, values in found.step_scores.items()} == {
        "probability": [0.1], "entropy": [3.0], "odd": [1.5]
    }  # fmt: skip


def test_tokens_of_one_word_are_merged_whatever_their_text_looks_like():
    found = attribution(one(words=(0, 1, 1, 2, 3))).aggregate(subwords=True).sequences[0]
    assert found.tokens == (" the", " big the", " Par", "is")
    assert found.words == (0, 1, 2, 3)


def test_a_word_does_not_reach_over_the_end_of_the_prompt():
    tokens, words = ("<s>", "Ei", "ffel", "Par", "is"), (0, 1, 1, 1, 1)
    found = attribution(one(tokens=tokens, words=words)).aggregate(subwords=True).sequences[0]
    assert found.tokens == ("<s>", "Eiffel", "Paris")


def test_a_character_that_several_tokens_share_is_written_once_in_a_merged_token():
    tokens = (" M", "ü 1/2", "ü 2/2", " Par", "is")
    found = attribution(one(tokens=tokens)).aggregate(subwords=True).sequences[0]
    assert found.tokens == (" Mü", " Paris")


def test_foils_are_merged_with_their_steps():
    found = attribution(one(foil_tokens=(" Ro", "me"))).aggregate(subwords=True).sequences[0]
    assert (found.tokens[found.start :], found.foil_tokens) == ((" Paris",), (" Rome",))
    assert attribution(one()).aggregate(subwords=True).sequences[0].foil_tokens is None


def test_words_of_the_source_are_merged_too():
    extra = {"source_tokens": (" a", "b", " c"), "source_ids": (1, 2, 3), "source_scores": np.ones((3, 2))}
    found = attribution(one(**extra)).aggregate(subwords=True).sequences[0]
    assert found.source_tokens == (" ab", " c")
    assert found.source_ids == (-1, 3)
    np.testing.assert_array_equal(found.source_scores, [[4], [2]])


def test_pairs_are_subtracted_after_the_width():
    found = attribution(one(WIDE)).aggregate(minus=attribution(one(np.stack([SCORES, SCORES], 2))))
    np.testing.assert_allclose(scores_of(found), -4 * SCORES)
    assert found.sequences[0].step_scores["entropy"].tolist() == [0, 0]
    assert found.info.aggregation == ("sum", "minus")


def test_nothing_is_shared_and_nothing_is_changed():
    made = attribution(one(), one(WIDE))
    kept = [each.scores.copy() for each in made.sequences]
    first = made.aggregate("l2", normalize=True, subwords=True)
    plain = made.aggregate()
    plain.sequences[0].scores[:] = 99
    plain.sequences[0].step_scores["entropy"] = None
    for each, before in zip(made.sequences, kept, strict=True):
        np.testing.assert_array_equal(each.scores, before)
    assert made.info.aggregation == ()
    assert made.sequences[0].step_scores["entropy"] is not None
    np.testing.assert_allclose(scores_of(made.aggregate("l2", normalize=True, subwords=True)), scores_of(first))


def test_repeated_tokens_have_a_row_each():
    frame = attribution(one()).to_frame()
    assert list(frame.columns) == [
        "input", "side", "activation", "step", "step_position", "step_token", "position", "token", "score"
    ]  # fmt: skip
    assert len(frame) == 7  # 3 tokens before the first step, 4 before the second
    twice = frame[(frame.token == " the") & (frame.step == 0)]
    assert list(zip(twice.position, twice.score, strict=True)) == [(0, 1.0), (2, 5.0)]
    assert set(frame.step_token) == {" Par", "is"}


def test_a_score_that_is_no_number_has_a_row():
    scores = SCORES.copy()
    scores[1, 0] = np.nan
    frame = attribution(one(scores)).to_frame()
    assert len(frame) == 7
    assert frame[frame.score.isna()][["step", "position"]].to_numpy().tolist() == [[0, 1]]


def test_what_is_printed_is_short():
    found = attribution(one(), one(None, layer_scores={"mlp_out.0": WIDE}))
    assert repr(found) == f"Attribution(2 inputs, {INFO!r})"
    assert "layer_scores" not in repr(found.sequences[1])


def test_the_table_has_layers_and_sources_and_sums_the_width():
    extra = {"source_tokens": (" a", "b"), "source_ids": (1, 2), "source_scores": np.ones((2, 2))}
    frame = attribution(one(), one(None, layer_scores={"mlp_out.0": WIDE}, **extra)).to_frame()
    rows = frame.groupby(["input", "side", "activation"]).size().to_dict()
    assert rows == {(0, "target", ""): 7, (1, "target", "mlp_out.0"): 7, (1, "source", ""): 4}
    assert frame[frame.activation == "mlp_out.0"].score.iloc[0] == -2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"how": "sums"}, "unknown how 'sums'; did you mean 'sum'? Allowed: sum, l2, mean"),
        (
            {"spans": [[(0, 1)]], "subwords": True},
            "spans and subwords both select tokens to merge; give only one of them",
        ),
        ({"spans": []}, "spans has 0 entries for 1 inputs; give one list for each"),
        ({"spans": [(0, 2)]}, "spans[0] is (0, 2); give a list of ranges for each input, such as [[(0, 2)]] for one"),
        ({"spans": [[(0, 2), (1, 3)]]}, "spans[0]: (1, 3) overlaps another or is not inside the 5 tokens"),
        ({"spans": [[(4, 6)]]}, "spans[0]: (4, 6) overlaps another or is not inside the 5 tokens"),
        ({"spans": [[(2, 4)]]}, "spans[0]: (2, 4) crosses the end of the prompt or of the attributed steps"),
        ({"minus": attribution()}, "minus has 0 inputs, this attribution 1"),
        (
            {"minus": attribution(replace(one(), tokens=("a", "b", "c", "d", "e")))},
            "minus has other tokens, steps or activations at input 0; both must have the same, unless align=True "
            "merges the tokens that differ",
        ),
    ],
)
def test_what_does_not_fit_is_an_error(options, message):
    with pytest.raises(InputError) as error:
        attribution(one()).aggregate(**options)
    assert str(error.value) == message


def test_a_real_attribution_goes_through_all_of_it():
    found = attribute(wide_model("gpt2"), TOKENIZER, PROMPT, max_new_tokens=3)
    whole = found.aggregate(subwords=True)
    np.testing.assert_allclose(
        np.nansum(found.aggregate().sequences[0].scores[: found.sequences[0].n_prompt]),
        np.nansum(whole.sequences[0].scores[: whole.sequences[0].n_prompt]),
        rtol=1e-5,
    )
