"""Layers replaced, deleted and reordered, compared with models that are built that way."""

import re
from copy import deepcopy

import pytest
import torch
from torch import nn

from interpret.activations._record import record
from interpret.activations.cache import activation_cache
from interpret.anatomy import anatomy_of
from interpret.errors import InputError
from interpret.probing.head_edits import ablated_heads
from interpret.probing.layer_edits import deleted_layers, permuted_layers, replaced_layers
from reference.kinds import KINDS, PAD, D, L, V
from reference.tiny import eager, hooks_on, tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9], [20, 30, 40, 50, 60]])
CONTEXTS = {
    "replaced": lambda model: replaced_layers(model, {1: 3}),
    "deleted": lambda model: deleted_layers(model, [0, 2]),
    "permuted": lambda model: permuted_layers(model, [2, 0, 3, 1]),
}


def logits(model, **arguments):
    with torch.no_grad():
        return model(IDS, **arguments).logits


def written(model, n_tokens=6, **arguments):
    return model.generate(IDS, max_new_tokens=n_tokens, do_sample=False, pad_token_id=PAD, **arguments)


def rebuilt(model, order):
    """Return a new model whose layers are copies of these layers of another."""
    config = deepcopy(model.config)
    config.num_hidden_layers = len(order)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[layer] for layer in order]
    new = type(model)(config).eval()
    path = next(name for name, module in model.named_modules() if module is anatomy_of(model).layers)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(f"{path}.")}
    for place, layer in enumerate(order):
        own = anatomy_of(model).layers[layer].state_dict()
        state |= {f"{path}.{place}.{name}": value for name, value in own.items()}
    new.load_state_dict(state)
    assert len(anatomy_of(new).layers) == len(order)
    return new


def layer_numbers(model):
    return [module.layer_idx for module in model.modules() if hasattr(module, "layer_idx")]


def scaled_by_layer():
    """Return a GPT-2 whose attention depends on the layer index; SDPA ignores that option in transformers 4.57."""
    plain = eager(tiny_model("gpt2"))
    plain.config.scale_attn_by_inverse_layer_idx = True
    model = eager(rebuilt(plain, range(L)))
    assert not torch.allclose(logits(model), logits(plain), atol=1e-2)
    assert layer_numbers(model) == list(range(L))
    return model


ORDERS = {
    "replaced": [0, 3, 2, 3],
    "deleted": [1, 3],
    "permuted": [2, 0, 3, 1],
}


@pytest.mark.matrix
@pytest.mark.parametrize("change", CONTEXTS)
def test_inside_it_is_the_model_built_that_way(family_model, change):
    expected = rebuilt(family_model, ORDERS[change])
    stock = logits(family_model)
    with CONTEXTS[change](family_model):
        assert torch.equal(logits(family_model), logits(expected))
        assert not torch.allclose(logits(family_model), stock, atol=1e-2)
        assert family_model.config.num_hidden_layers == len(ORDERS[change]) == len(anatomy_of(family_model).layers)
    assert torch.equal(logits(family_model), stock)


@pytest.mark.matrix
@pytest.mark.parametrize("change", CONTEXTS)
def test_generating_inside_goes_through_the_cache(family_model, change):
    expected = written(rebuilt(family_model, ORDERS[change]))
    stock = written(family_model)
    with CONTEXTS[change](family_model):
        assert torch.equal(written(family_model), expected)
        assert torch.equal(written(family_model, use_cache=False), expected)
        with torch.no_grad():
            assert len(family_model(IDS, use_cache=True).past_key_values) == len(ORDERS[change])
            assert len(family_model(IDS, output_hidden_states=True).hidden_states) == len(ORDERS[change]) + 1
    assert torch.equal(written(family_model), stock)


@pytest.mark.parametrize("change", CONTEXTS)
def test_layers_that_know_their_number_are_told_their_place(change):
    model = scaled_by_layer()
    expected, stock = eager(rebuilt(model, ORDERS[change])), logits(model)
    for place, layer in enumerate(ORDERS[change]):
        own = getattr(model.transformer.h[layer].attn, "scaling", None)
        if own is not None:  # from transformers 5 on a layer keeps the scale it was built with
            expected.transformer.h[place].attn.scaling = own
    with CONTEXTS[change](model):
        assert layer_numbers(model) == list(range(len(ORDERS[change])))
        assert torch.equal(logits(model), logits(expected))
    assert layer_numbers(model) == list(range(L))
    assert torch.equal(logits(model), stock)


def state_of(model):
    anatomy = anatomy_of(model)
    modules = [(name, id(module)) for name, module in model.named_modules()]
    return id(anatomy.layers), modules, list(model.state_dict()), model.config.to_dict(), layer_numbers(model)


@pytest.mark.matrix
@pytest.mark.parametrize("change", CONTEXTS)
def test_everything_is_the_very_same_afterwards(family_model, change):
    before = state_of(family_model)
    with CONTEXTS[change](family_model):
        assert state_of(family_model) != before
        assert id(anatomy_of(family_model).layers) == before[0]
    assert state_of(family_model) == before


def test_everything_is_restored_after_an_exception(family_model):
    before, stock = state_of(family_model), logits(family_model)

    def fail(context):
        with context(family_model), ablated_heads(family_model, [(0, 1)]):
            family_model(torch.tensor([[V]]))

    for context in CONTEXTS.values():
        with pytest.raises(IndexError):
            fail(context)
        assert state_of(family_model) == before
    assert torch.equal(logits(family_model), stock)
    assert hooks_on(family_model) == 0


def test_blocks_may_stand_in_each_other(family_model):
    before, expected = state_of(family_model), logits(rebuilt(family_model, [3, 2, 3]))
    with deleted_layers(family_model, [1]):
        outer = state_of(family_model)
        with permuted_layers(family_model, [2, 1, 0]), replaced_layers(family_model, {2: 0}):
            assert torch.equal(logits(family_model), expected)
        assert state_of(family_model) == outer
    assert state_of(family_model) == before


def test_the_models_own_order_and_layers_change_nothing(family_model):
    stock = logits(family_model)
    with permuted_layers(family_model, range(L)):
        assert torch.equal(logits(family_model), stock)
    with replaced_layers(family_model, {layer: layer for layer in range(L)}):
        assert torch.equal(logits(family_model), stock)


def test_a_layer_of_another_model_stands_in(family_model):
    others = [tiny_model(kind, seed=1) for kind in KINDS]
    other = next(other for other in others if other.config.to_dict() == family_model.config.to_dict())
    new = anatomy_of(other).layers[2]
    numbers = layer_numbers(other)
    expected = rebuilt(family_model, [0, 2, 2, 3])  # with the window of a layer 2
    anatomy_of(expected).layers[1].load_state_dict(new.state_dict())
    with replaced_layers(family_model, {1: new}):
        assert anatomy_of(family_model).layers[1] is new
        assert torch.equal(logits(family_model), logits(expected))
    assert layer_numbers(other) == numbers


def test_one_layer_in_two_places_is_hooked_in_each_for_itself(family_model):
    handle = anatomy_of(family_model).layers[3].register_forward_hook(lambda *_: None)
    with replaced_layers(family_model, {1: 3, 0: 3}):
        layers = list(anatomy_of(family_model).layers)
        assert len({id(layer) for layer in layers}) == L
        assert hooks_on(family_model) == 1
        for place in (0, 1):
            names = [name for name, _ in layers[3].named_parameters()]
            assert all(layers[place].get_parameter(name) is layers[3].get_parameter(name) for name in names)
        with record(family_model, ["resid_post.1", "resid_post.3"]) as seen, torch.no_grad():
            states = family_model(IDS, output_hidden_states=True).hidden_states
        assert torch.equal(seen["resid_post.1"], states[2])
        assert not torch.equal(seen["resid_post.3"], states[2])
    handle.remove()


def test_the_other_tools_read_what_is_there(llama):
    with deleted_layers(llama, [1, 2]):
        cache = activation_cache(llama, None, IDS.tolist())
        assert [name for name in cache if name.startswith("heads")] == ["heads.0", "heads.1"]
        torch.testing.assert_close(cache["logits"], logits(llama))


def test_one_layer_may_be_left(gpt2):
    expected = logits(rebuilt(gpt2, [2]))
    with deleted_layers(gpt2, [0, 1, 3]):
        assert torch.equal(logits(gpt2), expected)


def test_a_base_model_will_do(gpt2):
    expected = logits(rebuilt(gpt2, [1, 2, 3]))
    with deleted_layers(gpt2.transformer, [0]):
        assert torch.equal(logits(gpt2), expected)


NO_LAYER = "layer 4 does not exist; this model has layers 0 to 3"
NONE = "layers is empty: name at least one layer"


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (lambda m: replaced_layers(m, {4: 0}), NO_LAYER),
        (lambda m: replaced_layers(m, {0: 4}), NO_LAYER),
        (lambda m: replaced_layers(m, {0: -1}), "layer -1 does not exist; this model has layers 0 to 3"),
        (lambda m: replaced_layers(m, {}), NONE),
        (
            lambda m: replaced_layers(m, {2: "mlp"}),
            "layer 2: give the index of another layer, or a module, not 'mlp'",
        ),
        (lambda m: deleted_layers(m, [1, 4]), NO_LAYER),
        (lambda m: deleted_layers(m, []), NONE),
        (lambda m: deleted_layers(m, [1, 2, 1]), "layer 1 is named 2 times: name each once"),
        (lambda m: deleted_layers(m, range(L)), "all 4 layers are named: a model needs at least one"),
        (lambda m: permuted_layers(m, [0, 1, 2]), "order is [0, 1, 2]: name each of the layers 0 to 3 once"),
        (lambda m: permuted_layers(m, [0, 1, 2, 2]), "order is [0, 1, 2, 2]: name each of the layers 0 to 3 once"),
        (lambda m: permuted_layers(m, [1, 2, 3, 4]), "order is [1, 2, 3, 4]: name each of the layers 0 to 3 once"),
    ],
)
def test_bad_input_is_refused_before_anything_changes(gpt2, context, message):
    before = state_of(gpt2)
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"), context(gpt2):
        pytest.fail("the block was entered")
    assert state_of(gpt2) == before


def test_a_module_that_fails_leaves_the_model_as_it_was(gpt2):
    before = state_of(gpt2)
    with pytest.raises(TypeError, match="unexpected keyword argument"), replaced_layers(gpt2, {1: nn.Linear(D, D)}):
        logits(gpt2)
    assert state_of(gpt2) == before
