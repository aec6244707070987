"""Masked texts with a shared KV cache give the values of full passes, and so does occlusion."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interpret.anatomy import check_logits
from interpret.attribution._attribute import attribute
from interpret.attribution.methods import masked_texts as masked_texts
from interpret.attribution.methods import masking
from interpret.attribution.methods.masked_texts import masked_values
from interpret.attribution.steps.functions import contrast_prob_diff, logit, probability
from interpret.attribution.steps.step import Foil, Step
from interpret.errors import InputError
from interpret.prompts.spelling import piece
from reference.kinds import FURTHER_WHOLE
from reference.masking import BASELINES, IDS, lime, occluded, occlusion, step_of, steps_of, whole_pass
from reference.plain_attribution import PROMPT, TARGET, TOKENIZER, ids_of, prefixes, wide_model
from reference.tiny import tiny_model
from reference.toy_tokenizers import byte_level


@pytest.mark.matrix
@pytest.mark.parametrize("baseline", BASELINES)
def test_occlusion_is_what_whole_passes_lose(family_model, baseline):
    step = step_of(family_model)
    found = occlusion(step, baseline=baseline)
    torch.testing.assert_close(found.float(), occluded(step, 1, baseline), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", FURTHER_WHOLE)
def test_occlusion_is_what_whole_passes_lose_where_layers_cannot_be_run_one_by_one(kind):
    step = step_of(tiny_model(kind))
    torch.testing.assert_close(occlusion(step).float(), occluded(step, 1, "zero"), rtol=1e-5, atol=1e-5)


def test_occlusion_keeps_its_sign(llama):
    signs = torch.cat([occlusion(step_of(llama, target=target)) for target in (11, 12, 13)]).sign()
    assert {-1, 1} <= set(signs.tolist())


@pytest.mark.parametrize("window", range(1, len(IDS) + 1))
@pytest.mark.parametrize("batch_size", [1, 100])
def test_occlusion_takes_any_window(llama, window, batch_size):
    step = step_of(llama, batch_size=batch_size)
    found = occlusion(step, window=window, baseline="mean")
    torch.testing.assert_close(found.float(), occluded(step, window, "mean"), rtol=1e-5, atol=1e-5)


def test_long_texts_are_packed_apart(gpt2):
    step = step_of(gpt2, ids=tuple(range(3, 53)), batch_size=100)  # 50 tokens: 1275 to compute, in packs of 256
    torch.testing.assert_close(occlusion(step).float(), occluded(step, 1, "zero"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2])
def test_no_pass_holds_more_tokens_than_a_pack(llama, factor):
    """A Llama does not double the MLP's output, so the texts of this model are run in full passes."""
    tokens, mlp = [], llama.model.layers[1].mlp
    counted = mlp.act_fn.register_forward_hook(lambda module, args, output: tokens.append(output.shape[:-1].numel()))
    changed = mlp.register_forward_hook(lambda module, args, output: output * factor)
    step = step_of(llama, ids=tuple(range(3, 53)), batch_size=100)
    found = occlusion(step)
    counted.remove()
    torch.testing.assert_close(found.float(), occluded(step, 1, "zero"), rtol=1e-5, atol=1e-5)
    changed.remove()
    assert masked_texts.LARGEST_TREE / 2 < max(tokens) <= masked_texts.LARGEST_TREE


def test_packs_are_as_full_as_the_batch_size_allows(llama):
    """51 different texts take 13 passes of at most 4 rows, after the unmasked text's pass and its check."""
    passes = []
    check_logits(llama)  # its pass is not counted
    hook = llama.model.layers[0].mlp.act_fn.register_forward_hook(lambda *event: passes.append(1))
    occlusion(step_of(llama, ids=tuple(range(3, 53)), batch_size=4))
    hook.remove()
    assert len(passes) == 2 + 13


def test_a_text_of_one_token_can_be_masked(llama):
    step = step_of(llama, ids=(5,))
    torch.testing.assert_close(occlusion(step).float(), occluded(step, 1, "zero"), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=1, max_size=12),
    kind=st.sampled_from(["llama", "mistral", "gpt2", "gpt_neox", "opt"]),
    batch_size=st.integers(1, 5),
)
def test_any_masks_give_what_whole_passes_give(rows, kind, batch_size):
    step = step_of(MODELS[kind], batch_size=batch_size)
    masked, replacement = torch.tensor(rows), step.baseline("mean")
    with torch.no_grad():
        texts = torch.where(masked[:, :, None], replacement, step.embeddings)
        expected = torch.stack([whole_pass(step, one[None]) for one in texts])
    torch.testing.assert_close(masked_values([step], masked, replacement)[:, 0].float(), expected, rtol=1e-5, atol=1e-5)


class _Lent(dict):
    """Models by kind, built on first use."""

    def __missing__(self, kind):
        from reference.tiny import tiny_model

        self[kind] = tiny_model(kind)
        if kind == "mistral":
            self[kind].config.sliding_window = 3
            for layer in self[kind].model.layers:
                layer.self_attn.sliding_window = 3
        return self[kind]


MODELS = _Lent()


def columns_of_layers(llama, work):
    """Number of tokens that go through each layer."""
    columns = []
    check_logits(llama)  # its passes are not counted
    handle = llama.model.layers[0].mlp.act_fn.register_forward_hook(
        lambda module, args, output: columns.append(output.shape[:-1].numel())
    )
    work()
    handle.remove()
    return sum(columns)


def test_only_what_follows_the_first_masked_token_is_computed(llama):
    """The unmasked text's pass and its check, then its suffix (one token) and those of the masked texts."""
    columns = columns_of_layers(llama, lambda: occlusion(step_of(llama, batch_size=100)))
    T = len(IDS)
    rests = sum(range(1, T + 1)) + 1
    assert columns == 2 * T + rests


def test_equal_masks_are_computed_once(llama):
    seen = []
    step = step_of(llama, function=lambda reading: seen.append(len(reading.logits)) or logit(reading), batch_size=100)
    masked = torch.zeros(40, len(IDS), dtype=torch.bool)
    masked[1::2, 3] = True
    values = masked_values([step], masked, step.baseline("zero"))[:, 0]
    assert seen == [2]
    assert values[::2].unique().numel() == values[1::2].unique().numel() == 1
    assert values[0] != values[1]


def test_a_model_whose_layers_do_something_else_runs_whole(llama):
    """Hooks of other libraries, such as adapters, take effect."""
    handle = llama.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output * 2)
    try:
        step = step_of(llama)
        torch.testing.assert_close(occlusion(step).float(), occluded(step, 1, "zero"), rtol=1e-5, atol=1e-5)
    finally:
        handle.remove()


@pytest.mark.parametrize("prefix", [None, (1, 5, 9, 5, 71, 3)])
def test_a_contrast_is_followed_into_the_foils_text(llama, prefix):
    step = step_of(llama, function=contrast_prob_diff, foil=Foil(3, prefix))
    found = occlusion(step)
    with torch.no_grad():
        for token in range(len(IDS)):
            embeddings = step.embeddings.clone()
            embeddings[:, token] = 0
            expected = step.value(step.embeddings) - step.value(embeddings)
            torch.testing.assert_close(found[token].float(), expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.matrix
@pytest.mark.parametrize("prefix", [None, (1, 5, 9, 71, 3)])
@pytest.mark.parametrize("window", [1, 3])
def test_steps_together_are_what_each_is_alone(family_model, window, prefix):
    """Windows that reach beyond the end of a step's text are not used for that step."""
    options = {"function": contrast_prob_diff, "foil": Foil(3, prefix), "batch_size": 100}
    found = masking.occlusion(steps_of(family_model, (3, 4, 7, 8), **options), window=window)
    for scores, step in zip(found, steps_of(family_model, (3, 4, 7, 8), **options), strict=True):
        torch.testing.assert_close(scores, occlusion(step, window=window), rtol=1e-5, atol=1e-6)


def test_a_step_that_runs_the_model_again_runs_its_own_text(llama):
    function = lambda reading: reading.with_dropout(1, 0)[0][:, reading.target]  # noqa: E731 (this model has none)
    found = masking.occlusion(steps_of(llama, (3, 8), function=function))
    for scores, step in zip(found, steps_of(llama, (3, 8)), strict=True):
        torch.testing.assert_close(scores, occlusion(step), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=1, max_size=12),
    lengths=st.sets(st.integers(1, 8), min_size=1).map(sorted),
    kind=st.sampled_from(["llama", "mistral", "gpt2"]),
    batch_size=st.integers(1, 5),
)
def test_any_masks_give_all_steps_what_whole_passes_give(rows, lengths, kind, batch_size):
    steps = steps_of(MODELS[kind], lengths, batch_size=batch_size)
    masked = torch.tensor(rows)[:, : lengths[-1]]
    found = masked_values(steps, masked, steps[-1].baseline("mean"))
    assert found.shape == (len(rows), len(lengths))
    for number, step in enumerate(steps):
        own, replacement = masked[:, : len(step.ids)], step.baseline("mean")
        with torch.no_grad():
            texts = torch.where(own[:, :, None], replacement, step.embeddings)
            expected = torch.stack([whole_pass(step, one[None]) for one in texts])
        torch.testing.assert_close(found[:, number].float(), expected, rtol=1e-5, atol=1e-5)


def test_a_masked_text_is_read_once_for_all_steps(llama):
    rows = []
    check_logits(llama)  # its passes are not counted
    hook = llama.lm_head.register_forward_hook(lambda module, args, output: rows.append(output[..., 0].numel()))
    columns = columns_of_layers(llama, lambda: masking.occlusion(steps_of(llama, (4, 6, 8), batch_size=100)))
    hook.remove()
    # The text's own pass and its check; the rest of the text itself from the first step's end, and those of 8 masks.
    assert columns == 2 * 8 + 5 + sum(range(1, 9))
    # A mask counts for the steps that come after it; the text itself for all.
    assert sum(rows) == (4 + 6 + 8) + 3


def test_many_steps_go_through_the_head_in_parts(llama, monkeypatch):
    expected = masking.occlusion(steps_of(llama, range(1, 9)))
    monkeypatch.setattr(masked_texts, "HEAD_ROWS", 5)
    rows = []
    hook = llama.lm_head.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    found = masking.occlusion(steps_of(llama, range(1, 9)))
    hook.remove()
    assert max(rows) <= 5
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [0, 9, -1])
def test_a_window_that_does_not_fit_is_refused(llama, window):
    step = step_of(llama)
    name = piece(step.tokenizer, 11)
    message = f"window is {window}; the text before token {name!r} allows 1 to 8 tokens"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        occlusion(step, window=window)


@pytest.mark.parametrize("method", [occlusion, lime])
def test_a_baseline_the_tokenizer_lacks_is_refused(llama, method):
    step = Step(llama, byte_level(), IDS, 11, None, logit, 4)
    message = "baseline 'unk': this tokenizer has no such token; use 'zero', 'mean' or a token id"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        method(step, baseline="unk")


@pytest.mark.parametrize("method", ["occlusion", "lime"])
def test_the_one_call_masks_each_step(method):
    model, T = wide_model("gpt2"), len(ids_of(TARGET))
    options = {"n_samples": 30} if method == "lime" else {}
    with torch.inference_mode():  # no gradient is needed
        found = attribute(model, TOKENIZER, PROMPT, TARGET, method=method, baseline="eos", **options)
    (one,) = found.sequences
    assert one.scores.shape == (T, 2)
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        plain = Step(model, TOKENIZER, tuple(ids), target, None, probability, 8)
        run = lime if method == "lime" else occlusion
        expected = run(plain, baseline="eos", **options)
        assert one.scores[: len(ids), step] == pytest.approx(expected.numpy(), abs=1e-6)
        assert one.details == {} or one.details["r2"][step] == pytest.approx(plain.details["r2"], abs=1e-5)
        if method == "occlusion":
            assert one.scores[: len(ids), step] == pytest.approx(occluded(plain, 1, "eos").numpy(), abs=1e-5)
    assert list(one.details) == (["r2"] if method == "lime" else [])
