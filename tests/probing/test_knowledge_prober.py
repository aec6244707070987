"""Probes of neurons, compared with plain matrix products, plain loops and all permutations."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from interpret.activations._record import record
from interpret.anatomy import anatomy_of, check_logits
from interpret.errors import InputError, UnsupportedModelError
from interpret.probing.effects import effect_sizes, permutation_p_values, q_values
from interpret.probing.knowledge_prober import KnowledgeProber, NeuronEffect
from interpret.probing.neurons import count_neurons, neuron_values, reading_weights, scaled_neuron
from interpret.records import csv_header, from_csv, to_csv
from reference.kinds import L, V
from reference.tiny import hooks_on
from reference.toy_tokenizers import word_tokenizer

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
PAIRS = [("w5 w6 w7", "w5 w8"), ("w20", "w21 w22 w23 w24"), ("w30 w31", "w32 w33"), ("w40 w41 w42 w43", "w44")]


TOKENIZER = word_tokenizer()


def weight_of(module):
    """Return the weight as [out, in]."""
    return module.weight.t() if isinstance(module, Conv1D) else module.weight


def plain_neurons(model, text, layer, tokenizer=TOKENIZER):
    """Return the neuron activations of a layer at each token of a text, [T, F], by plain products."""
    block, parts = anatomy_of(model).layers[layer], anatomy_of(model).parts
    with record(model, [f"mlp_in.{layer}"]) as seen, torch.no_grad():
        model(torch.tensor([tokenizer(text).input_ids]))
    x = seen[f"mlp_in.{layer}"][0]

    def product(path):
        module = block.get_submodule(path)
        return x @ weight_of(module).t() + (0 if module.bias is None else module.bias)

    activation = block
    for name in parts.activation.split("."):
        activation = getattr(activation, name)
    with torch.no_grad():
        if parts.gate == parts.up:  # phi3: both in one projection, the gate first
            gate, up = product(parts.up).chunk(2, dim=-1)
            return activation(gate) * up
        if parts.gate:
            return activation(product(parts.gate)) * product(parts.up)
        return activation(product(parts.up))


READ = {"last": lambda v: v[-1], "mean": lambda v: v.mean(0), "max": lambda v: v.amax(0), 0: lambda v: v[0]}


@pytest.mark.matrix
@pytest.mark.parametrize("token", READ)
def test_activations_are_those_of_plain_products(family_model, token):
    texts = [text for pair in PAIRS for text in pair]
    values = neuron_values(family_model, TOKENIZER, texts, [0, 3], token=token, batch_size=3)
    for layer in (0, 3):
        expected = torch.stack([READ[token](plain_neurons(family_model, text, layer)) for text in texts])
        torch.testing.assert_close(values[layer], expected, **CLOSE)
    assert hooks_on(family_model) == 0


def test_positions_count_from_the_end_too(gpt2):
    values = neuron_values(gpt2, TOKENIZER, ["w5 w6 w7"], [1], token=-2)[1]
    torch.testing.assert_close(values[0], plain_neurons(gpt2, "w5 w6 w7", 1)[1], **CLOSE)


@pytest.mark.parametrize("token", ["mean", "max"])
def test_tokens_the_tokenizer_adds_are_read_but_not_counted(llama, token):
    opening = word_tokenizer(opens=True)
    values = neuron_values(llama, opening, ["w5 w6 w7"], [2], token=token)[2]
    said = plain_neurons(llama, "w5 w6 w7", 2, opening)
    assert len(said) == 4
    torch.testing.assert_close(values[0], READ[token](said[1:]), **CLOSE)


def plain_scores(model, layer, k):
    """Compute the score by its definition, neuron by neuron."""
    block, parts = anatomy_of(model).layers[layer], anatomy_of(model).parts
    rows = []
    weights = [weight_of(block.get_submodule(path)).detach().double() for path in (parts.up, parts.gate) if path]
    if parts.gate == parts.up:  # phi3: both in one projection
        weights = weights[0].chunk(2)
    for weight in weights:
        rows.append(weight / weight.norm(dim=1, keepdim=True))
    unit = torch.cat(rows, dim=1) / math.sqrt(len(rows))
    scores = []
    for i, own in enumerate(unit):
        near = sorted((j for j in range(len(unit)) if j != i), key=lambda j: -float(own @ unit[j]))[:k]
        centre = sum(unit[j] for j in near) / k
        scores.append(centre.norm() / (sum((unit[j] - centre).norm() for j in near) / k))
    return torch.stack(scores)


@pytest.mark.parametrize("chunk", [1, 1 << 28])
def test_polysemantic_scores_are_those_of_plain_loops(family_model, chunk, monkeypatch):
    monkeypatch.setattr("interpret.probing.knowledge_prober._CHUNK_BYTES", chunk)
    scores = KnowledgeProber(family_model, TOKENIZER).polysemantic_score(1, k_neighbors=5)
    assert scores.shape == (count_neurons(family_model, 1),)
    torch.testing.assert_close(scores.double(), plain_scores(family_model, 1, 5), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_block_of_equal_neurons_ranks_top(kind, request):
    model = request.getfixturevalue(kind)
    parts = anatomy_of(model).parts
    planted = [3, 10, 11, 20, 30, 40]
    modules = [anatomy_of(model).layers[2].get_submodule(path) for path in (parts.up, parts.gate) if path]
    before = [module.weight.detach().clone() for module in modules]
    with torch.no_grad():
        for module in modules:
            weight_of(module)[planted] = weight_of(module)[3].clone()
    top = KnowledgeProber(model, TOKENIZER).polysemantic_score(2, k_neighbors=5).topk(len(planted)).indices
    for module, weight in zip(modules, before, strict=True):
        module.weight.data.copy_(weight)
    assert sorted(top.tolist()) == planted


def hand_probe(model, layer, neuron):
    """Return means, d, g and the exact p-value, by NumPy and all sign patterns."""
    true, false = (
        np.array([float(plain_neurons(model, pair[side], layer)[-1, neuron]) for pair in PAIRS]) for side in (0, 1)
    )
    n = len(PAIRS)
    pooled = math.sqrt(((n - 1) * true.var(ddof=1) + (n - 1) * false.var(ddof=1)) / (2 * n - 2))
    d = (true.mean() - false.mean()) / pooled
    differences = true - false
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product([1, -1], repeat=n)]
    p = np.mean([total >= abs(differences.sum()) - 1e-5 for total in sums])
    return true.mean(), false.mean(), d, d * (1 - 3 / (4 * (n + n) - 9)), p


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_probe_is_what_hand_statistics_say(kind, request):
    model = request.getfixturevalue(kind)
    for neuron in (0, 7, 40):
        effect = KnowledgeProber(model, TOKENIZER).knowledge_probe(PAIRS, (2, neuron))
        got = (effect.true_mean, effect.false_mean, effect.cohens_d, effect.hedges_g, effect.p_value)
        assert got == pytest.approx(hand_probe(model, 2, neuron), rel=1e-3)
        assert (effect.layer_idx, effect.neuron, effect.n_pairs, effect.q_value) == (2, neuron, 4, effect.p_value)


def test_a_scan_holds_every_neuron_once_as_its_probe_says(llama):
    prober = KnowledgeProber(llama, TOKENIZER)
    effects = prober.scan(PAIRS, [0, 2], token="mean")
    assert sorted((e.layer_idx, e.neuron) for e in effects) == [(k, n) for k in (0, 2) for n in range(48)]
    order = [(e.p_value, -abs(e.hedges_g)) for e in effects]
    assert order == sorted(order)
    for effect in effects[::17]:
        alone = prober.knowledge_probe(PAIRS, (effect.layer_idx, effect.neuron), token="mean")
        assert effect.hedges_g == pytest.approx(alone.hedges_g, rel=1e-4)
        assert effect.p_value == alone.p_value
    assert from_csv(NeuronEffect, csv_header(NeuronEffect) + to_csv(effects)) == effects


def test_q_values_of_a_scan_count_the_neurons_of_all_its_layers(llama):
    effects = KnowledgeProber(llama, TOKENIZER).scan(PAIRS, [0, 2])
    raised = [effect.p_value * len(effects) / rank for rank, effect in enumerate(effects, 1)]
    assert [effect.q_value for effect in effects] == pytest.approx([min(raised[at:]) for at in range(len(raised))])


def test_a_scan_of_several_layers_is_one_pass(llama):
    passes = []
    handle = llama.model.register_forward_hook(lambda *_: passes.append(1))
    check_logits(llama)  # its passes are not counted
    passes.clear()
    KnowledgeProber(llama, TOKENIZER).scan(PAIRS, range(L), batch_size=3)
    handle.remove()
    assert len(passes) == 3  # 8 texts


def test_a_planted_neuron_ranks_first(llama):
    """Neuron 9 of layer 0 is active at words 60 and above, which end the true texts."""
    pairs = [(f"w{i} w{60 + i}", f"w{i} w{20 + i}") for i in range(2, 16)]
    mlp, embedding = llama.model.layers[0].mlp, llama.model.embed_tokens
    before = [tensor.detach().clone() for tensor in (mlp.gate_proj.weight, mlp.up_proj.weight, embedding.weight)]
    with torch.no_grad():
        embedding.weight[60:, 0] += 30
        mlp.gate_proj.weight[9] = 0
        mlp.up_proj.weight[9] = 0
        mlp.gate_proj.weight[9, 0] = mlp.up_proj.weight[9, 0] = 1
    first = KnowledgeProber(llama, TOKENIZER).scan(pairs, 0)[0]
    unseen = KnowledgeProber(llama, TOKENIZER).knowledge_probe(pairs, (0, 9), token=0)
    for tensor, value in zip((mlp.gate_proj.weight, mlp.up_proj.weight, embedding.weight), before, strict=True):
        tensor.data.copy_(value)
    assert first.q_value < 0.05
    assert abs(first.hedges_g) > 3
    # At the first token the texts of a pair are the same.
    assert (unseen.cohens_d, unseen.p_value) == (0, 1)


def test_drawn_permutations_come_near_the_exact_ones_and_repeat():
    differences = torch.randn(12, 30, generator=torch.Generator().manual_seed(0)) + 0.3
    exact = permutation_p_values(differences, n_permutations=4096, seed=0)
    drawn = permutation_p_values(differences, n_permutations=4000, seed=0)
    assert (exact - drawn).abs().max() < 0.04
    assert torch.equal(drawn, permutation_p_values(differences, n_permutations=4000, seed=0))
    assert not torch.equal(drawn, permutation_p_values(differences, n_permutations=4000, seed=1))
    assert (exact * 4096 % 2 == 0).all()


def test_no_drawn_p_value_is_zero():
    assert permutation_p_values(torch.ones(40, 1), n_permutations=99, seed=0).item() == 0.01


def test_p_values_are_even_where_there_is_nothing():
    differences = torch.randn(20, 2000, generator=torch.Generator().manual_seed(0))
    p = permutation_p_values(differences, n_permutations=999, seed=0)
    for level in (0.05, 0.2, 0.5):
        assert (p <= level).double().mean().item() == pytest.approx(level, abs=0.03)


def test_permutations_in_chunks_are_the_same(monkeypatch):
    differences = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    whole = permutation_p_values(differences, n_permutations=500, seed=0)
    monkeypatch.setattr("interpret.probing.effects._CHUNK", 1500)
    assert torch.equal(permutation_p_values(differences, n_permutations=500, seed=0), whole)


def test_effects_without_spread_are_zero_or_infinite():
    left, right = torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert [size.tolist() for size in effect_sizes(left, right)] == [[0, math.inf]] * 2


def test_q_values_are_those_of_the_paper():
    # Benjamini and Hochberg (1995), section 3: 15 tests, of which the first four are discoveries at 0.05.
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.3240,
        0.4262,
        0.5719,
        0.6528,
        0.7590,
        1,
    ]
    shuffled = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    q = q_values(torch.tensor(p, dtype=torch.float64)[shuffled])
    expected = [min(p[j] * 15 / (j + 1) for j in range(i, 15)) for i in range(15)]
    assert q[shuffled.argsort()].tolist() == pytest.approx(expected)
    assert (q <= 0.05).sum() == 4


def neurons_in(model, layer, ids, **arguments):
    """Return the input of the MLP's down projection in a plain pass, [B, T, F]."""
    seen = []
    module = anatomy_of(model).layers[layer].get_submodule(anatomy_of(model).parts.down)
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    with torch.no_grad():
        output = model(ids, **arguments)
    handle.remove()
    return seen[0].view(*ids.shape, -1), output


def loudest(values):
    """Return a neuron that is active in every row of [B, F]: most neurons of OPT are 0."""
    return int(values.abs().amin(dim=0).argmax())


@pytest.mark.parametrize("column", [None, 1])
def test_an_intervention_changes_one_neuron_at_the_columns_named(family_model, column):
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    stock, output = neurons_in(family_model, 1, ids)
    neuron = loudest(stock[:, 1])
    with scaled_neuron(family_model, (1, neuron), -2.5, column):
        edited, changed = neurons_in(family_model, 1, ids)
    expected = stock.clone()
    expected[:, slice(None) if column is None else column, neuron] *= -2.5
    assert torch.equal(edited, expected)
    assert not torch.equal(changed.logits, output.logits)
    assert torch.equal(neurons_in(family_model, 1, ids)[1].logits, output.logits)
    assert hooks_on(family_model) == 0


@pytest.mark.matrix
@pytest.mark.parametrize("column", [0, 2, 3])
def test_an_intervention_counts_columns_through_the_cache(family_model, column):
    ids = torch.tensor([[5, 6, 7, 8]])
    neuron = loudest(neurons_in(family_model, 1, ids)[0][:, column])
    with scaled_neuron(family_model, (1, neuron), -9.0, column), torch.no_grad():
        whole = family_model(ids).logits[:, -1]
        start = family_model(ids[:, :2], use_cache=True)
        for at in (2, 3):
            start = family_model(ids[:, at : at + 1], past_key_values=start.past_key_values, use_cache=True)
    torch.testing.assert_close(start.logits[:, -1], whole, **CLOSE)
    assert not torch.allclose(family_model(ids).logits[:, -1], whole, atol=1e-3)


class Outside:
    """A tokenizer whose only token the model does not have."""

    all_special_ids = ()

    def __call__(self, text, **_):
        return {"input_ids": [V]}


def test_nothing_is_left_after_an_exception(gpt2):
    def fail():
        with KnowledgeProber(gpt2, TOKENIZER).intervene((0, 1)):
            assert hooks_on(gpt2) == 2
            gpt2(torch.tensor([[V]]))

    with pytest.raises(IndexError):
        fail()
    assert hooks_on(gpt2) == 0
    with pytest.raises(IndexError):
        neuron_values(gpt2, Outside(), ["x"], [0])
    assert hooks_on(gpt2) == 0


def test_a_model_in_training_mode_is_read_without_dropout_and_stays_so(gpt2):
    expected = neuron_values(gpt2, TOKENIZER, ["w5 w6"], [0])[0]
    gpt2.transformer.drop.p = 0.5
    gpt2.train()
    assert torch.equal(neuron_values(gpt2, TOKENIZER, ["w5 w6"], [0])[0], expected)
    assert gpt2.training


def test_a_single_pair_gives_its_two_activations(llama):
    (true, false), layer, neuron = PAIRS[0], 2, 7
    effect = KnowledgeProber(llama, TOKENIZER).knowledge_probe([(true, false)], (layer, neuron))
    plain = [float(plain_neurons(llama, text, layer)[-1, neuron]) for text in (true, false)]
    assert [effect.true_mean, effect.false_mean] == pytest.approx(plain, rel=1e-4)
    assert (effect.n_pairs, effect.p_value) == (1, 1), "both signs of one difference are equally extreme"
    assert math.isnan(effect.cohens_d)
    assert math.isnan(effect.hedges_g)


@pytest.mark.parametrize("form", [list, torch.as_tensor, np.array, lambda ids: torch.as_tensor(ids)[None]])
def test_texts_may_be_token_ids_in_any_form(llama, form):
    prober = KnowledgeProber(llama, TOKENIZER)
    ids = [tuple(form(TOKENIZER(text).input_ids) for text in pair) for pair in PAIRS]
    assert prober.knowledge_probe(ids, (2, 7)) == prober.knowledge_probe(PAIRS, (2, 7))


ONE = [("w5", "w6"), ("w7", "w8")]
ERRORS = [
    (lambda p: p.polysemantic_score(4), "layer 4 does not exist; this model has layers 0 to 3"),
    (lambda p: p.polysemantic_score(-1), "layer -1 does not exist; this model has layers 0 to 3"),
    (lambda p: p.polysemantic_score(1, 48), "k_neighbors is 48; layer 1 has 48 neurons, so give 2 to 47"),
    (lambda p: p.polysemantic_score(1), "k_neighbors is 50; layer 1 has 48 neurons, so give 2 to 47"),
    (lambda p: p.polysemantic_score(1, 1), "k_neighbors is 1; layer 1 has 48 neurons, so give 2 to 47"),
    (lambda p: p.knowledge_probe(PAIRS, (4, 0)), "layer 4 does not exist; this model has layers 0 to 3"),
    (lambda p: p.knowledge_probe(PAIRS, (3, 48)), "neuron 48 does not exist; layer 3 has neurons 0 to 47"),
    (lambda p: p.scan(PAIRS, [0, 9]), "layer 9 does not exist; this model has layers 0 to 3"),
    (lambda p: p.scan(PAIRS, []), "layers is empty: name at least one layer"),
    (
        lambda p: p.knowledge_probe([], (0, 0)),
        "true_false_pairs has 0 pairs: give at least 1, a true and a false text",
    ),
    (
        lambda p: p.scan([], 0),
        "true_false_pairs has 0 pairs: give at least 2, to estimate the variance of the true and of the false texts",
    ),
    (
        lambda p: p.scan(PAIRS[:1], 0),
        "true_false_pairs has 1 pair: give at least 2, to estimate the variance of the true and of the false texts",
    ),
    (lambda p: p.scan(ONE, 0, token=1), "'w5' has no token 1: it is 1 token long"),
    (lambda p: p.scan([("w5 w6", "w6 w7"), ("w7 w8", "")], 0), "'' has no token of its own: it is 0 tokens long"),
    (
        lambda p: p.scan(ONE, 0, token="lats"),
        "unknown token 'lats'; did you mean 'last'? Allowed: last, mean, max, a position such as 0 or -1",
    ),
    (lambda p: p.scan(ONE, 0, batch_size=0), "batch_size is 0: give at least 1"),
    (lambda p: p.scan(ONE, 0, n_permutations=0), "n_permutations is 0: draw at least one"),
    (lambda p: p.intervene((0, 48)).__enter__(), "neuron 48 does not exist; layer 0 has neurons 0 to 47"),
    (
        lambda p: p.knowledge_probe([(torch.ones(2, 5, dtype=torch.int64), "w5")], (0, 0)),
        "a text has the token id [1, 1, 1, 1, 1]; this tokenizer has ids 0 to 96",
    ),
    (
        lambda p: p.intervene((0, 1), column=-1).__enter__(),
        "column -1: give a column of the padded batch, counted from 0",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_bad_input_is_refused(llama, call, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        call(KnowledgeProber(llama, TOKENIZER))
    assert hooks_on(llama) == 0


def test_weights_that_are_not_plain_are_refused(llama):
    class Adapted(nn.Linear):
        pass

    plain = llama.model.layers[1].mlp.up_proj
    llama.model.layers[1].mlp.up_proj = Adapted(32, 48, bias=False)
    message = (
        "layer 1: mlp.up_proj is of type Adapted, not a plain linear layer: load the model unquantised, "
        "and merge or remove adapters"
    )
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(message)}$"):
        KnowledgeProber(llama, TOKENIZER).polysemantic_score(1, 5)
    llama.model.layers[1].mlp.up_proj = plain


def test_neurons_are_compared_by_directions_of_unit_length(family_model):
    unit = reading_weights(family_model, 2)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(len(unit)))


def test_a_token_the_tokenizer_puts_last_is_not_the_last(gpt2):
    expected = neuron_values(gpt2, TOKENIZER, ["w5 w6"], [1])[1]
    with pytest.warns(UserWarning, match="^the tokenizer appends w1 to every text; it is left out"):
        found = neuron_values(gpt2, word_tokenizer(closes=True), ["w5 w6"], [1])[1]
    torch.testing.assert_close(found, expected, **CLOSE)


def test_hooks_that_were_there_before_read_the_changed_neuron(gpt2):
    seen = []
    check_logits(gpt2)  # its pass is not recorded
    handle = gpt2.transformer.h[1].mlp.c_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with scaled_neuron(gpt2, (1, 4), 0.0):
        gpt2(torch.tensor([[5, 6, 7]]))
    handle.remove()
    assert not seen[0][..., 4].any()
    assert seen[0][..., 5].all()


def test_equal_sums_count_as_equal_and_others_do_not():
    """All 1024 sign patterns in float64; tenths have many equal sums, which float32 rounds differently."""
    chance = np.random.default_rng(0)
    tenths, normal = chance.integers(-3, 4, (10, 25)) / 10, chance.normal(size=(10, 25))
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    counts = []
    for differences, unit in ((tenths, 0.1), (normal, None)):
        sums = signs @ differences
        observed = differences.sum(axis=0)
        if unit:
            sums, observed = np.round(sums / unit), np.round(observed / unit)
        counts.append((np.abs(sums) >= np.abs(observed) * (1 - 1e-12)).mean(axis=0))
    found = permutation_p_values(torch.from_numpy(np.hstack([tenths, normal])), n_permutations=1024, seed=0)
    np.testing.assert_array_equal(found, np.hstack(counts))


def test_effects_of_large_values_that_hardly_vary_are_those_of_float64():
    generator = torch.Generator().manual_seed(0)
    left, right = (1000 + 0.01 * torch.randn(12, 40, generator=generator) + shift for shift in (0.005, 0))
    a, b = left.double().numpy(), right.double().numpy()
    pooled = np.sqrt((a.var(axis=0, ddof=1) + b.var(axis=0, ddof=1)) / 2)
    expected = (a.mean(axis=0) - b.mean(axis=0)) / pooled
    d, g = effect_sizes(left, right)
    np.testing.assert_allclose(d, expected, rtol=1e-9)
    np.testing.assert_allclose(g, expected * (1 - 3 / (4 * 24 - 9)), rtol=1e-9)
