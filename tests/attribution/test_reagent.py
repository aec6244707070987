"""ReAGent, compared with its algorithm in plain loops over full passes, and with what its draws promise."""

import numpy as np
import pytest
import torch

from interpret import InputError
from interpret.attribution.methods.masked_texts import replaced_values
from interpret.attribution.methods.reagent import Draws, alternatives, reagent
from interpret.attribution.steps.functions import probability
from interpret.attribution.steps.step import Step
from reference.masking import IDS, step_of
from reference.plain_attribution import TARGET, TOKENIZER, attributed, last_logits, prefixes, wide_model
from reference.toy_tokenizers import sentence_piece


def by_full_passes(model, ids, target, free, shares, *, n_probes, max_rounds, replaced, kept, top_k, seed):
    """Algorithm 1 for each probe, with the draws of the method; returns importances and which probes stopped."""
    draws = Draws(torch.tensor(ids), free, shares, torch.Generator().manual_seed(seed))
    scores = torch.rand(n_probes, len(free), generator=draws.generator, dtype=torch.float64).numpy()
    p = last_logits(model, list(ids)).softmax(-1)[target].item()
    going = list(range(n_probes))
    n_kept, size = int(np.ceil(kept * len(free))), 1
    while max_rounds > 0 and going:
        n = min(size, max_rounds)
        chosen = torch.rand(n, len(going), len(free), generator=draws.generator) < replaced
        texts = draws.texts(chosen.flatten(0, 1)).view(n, len(going), -1).tolist()
        path = np.zeros((n, len(going), len(free)))
        for row, probe in enumerate(going):
            own = scores[probe].copy()
            for turn in range(n):
                delta = p - last_logits(model, texts[turn][row]).softmax(-1)[target].item()
                for place, was in enumerate(chosen[turn, row].tolist()):
                    share = 0.5 + 0.5 * (delta if was else -delta)
                    own[place] += np.log(share / (1 - share))
                path[turn, row] = own
        others = torch.ones(n, len(going), len(free), dtype=torch.bool)
        for turn, row in np.ndindex(n, len(going)):
            others[turn, row, np.argsort(-path[turn, row])[:n_kept].copy()] = False
        texts = draws.texts(others.flatten(0, 1)).view(n, len(going), -1).tolist()
        left = []
        for row, probe in enumerate(going):
            best = [last_logits(model, texts[turn][row]).topk(top_k).indices.tolist() for turn in range(n)]
            hits = [turn for turn in range(n) if target in best[turn]]
            scores[probe] = path[hits[0] if hits else n - 1, row]
            left += [] if hits else [probe]
        going, max_rounds, size = left, max_rounds - n, 2 * size
    importance = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return importance.mean(0), 1 - len(going) / n_probes


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_scores_are_those_of_the_algorithm_by_full_passes(kind):
    model = wide_model(kind)
    options = {"n_probes": 3, "max_rounds": 4, "replaced": 0.4, "kept": 0.5, "top_k": 20, "seed": 5}
    for ids, target in prefixes(TARGET):
        step = Step(model, TOKENIZER, tuple(ids), target, None, probability, 8)
        found = reagent(step, **options)
        free = torch.arange(len(ids))
        expected, stopped = by_full_passes(model, ids, target, free, alternatives(step, free), **options)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3)
        assert step.details["stopped"] == pytest.approx(stopped)
        assert found.sum().item() == pytest.approx(1)


def test_probes_stop_as_soon_as_the_token_is_among_the_best(llama):
    step = step_of(llama, function=probability)
    reagent(step, top_k=llama.config.vocab_size, max_rounds=1)
    assert step.details["stopped"] == 1
    target = int(last_logits(llama, list(IDS)).argmin())
    never = step_of(llama, target=target, function=probability)
    reagent(never, top_k=1, max_rounds=2)
    assert never.details["stopped"] < 1


class OnlyThird(Step):
    """A step whose token is predicted by the third token of the text alone."""

    def states(self, embeddings):
        return embeddings[:, 2:3].expand(-1, embeddings.shape[1], -1)

    def head(self, states):
        return super().head(states) * 500  # a prediction that is certain


def test_the_token_that_decides_has_the_highest_score(llama):
    hook = llama.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output * 2)  # run whole
    try:
        ids = (5, 9, 12, 40, 33, 8)
        target = int(llama.lm_head(llama.get_input_embeddings()(torch.tensor(12))).argmax())
        step = OnlyThird(llama, sentence_piece(), ids, target, None, probability, 8)
        scores = reagent(step, max_rounds=40, top_k=1, n_probes=4)
    finally:
        hook.remove()
    assert scores.argmax() == 2


def test_other_tokens_are_drawn_by_the_model_and_never_the_same_or_special(llama):
    step = step_of(llama, function=probability)
    free = (~step.special).nonzero()[:, 0]
    shares = alternatives(step, free)
    draws = Draws(torch.tensor(IDS), free, shares, torch.Generator().manual_seed(0))
    chosen = torch.rand(4000, len(free), generator=torch.Generator().manual_seed(1)) < 0.5
    texts = draws.texts(chosen)
    assert ((texts != torch.tensor(IDS))[:, free] == chosen).all()
    assert (texts[:, step.special] == torch.tensor(IDS)[step.special]).all()
    assert not set(texts[:, free].unique().tolist()) & set(sentence_piece().all_special_ids)
    column = int(free[2])
    p = last_logits(llama, list(IDS[:column])).softmax(-1)
    p[[IDS[column], *sentence_piece().all_special_ids]] = 0
    p[max(sentence_piece().get_vocab().values()) + 1 :] = 0
    drawn = texts[chosen[:, 2], column].bincount(minlength=len(p)).double()
    best = int(p.argmax())
    expected = (p / p.sum())[best].item()
    assert drawn[best].item() / drawn.sum().item() == pytest.approx(expected, abs=0.03)


def test_values_of_texts_with_other_tokens_are_those_of_full_passes(llama):
    step = step_of(llama, function=probability, batch_size=3)
    texts = torch.tensor(IDS).repeat(5, 1)
    texts[1, 0], texts[2, 7], texts[3, 3:5] = 44, 17, torch.tensor([3, 4])
    found = replaced_values(step, texts)
    expected = [last_logits(llama, text).softmax(-1)[step.target].item() for text in texts.tolist()]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)
    assert found[0] == found[4]


def test_the_one_call_scores_each_step():
    found = attributed(method="reagent", n_probes=2, max_rounds=3)
    np.testing.assert_allclose(np.nansum(found.scores, axis=0), 1, rtol=1e-6)
    assert list(found.details) == ["stopped"]
    again = attributed(method="reagent", n_probes=2, max_rounds=3)
    np.testing.assert_array_equal(found.scores, again.scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_probes": 0}, "n_probes is 0; give at least 1"),
        ({"replaced": 1.0}, "replaced is 1.0; it must be above 0 and below 1"),
        ({"kept": 0}, "kept is 0; it must be above 0 and below 1"),
    ],
)
def test_an_option_out_of_its_range_is_refused(options, message):
    with pytest.raises(InputError) as caught:
        attributed(method="reagent", **options)
    assert str(caught.value) == message


def test_a_text_of_special_tokens_alone_is_refused(llama):
    with pytest.raises(InputError, match="has only special tokens, which ReAGent never replaces"):
        reagent(step_of(llama, ids=(1, 2)))
