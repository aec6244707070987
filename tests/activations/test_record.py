import re
from threading import Thread

import pytest
import torch
from torch import nn

from interpret.activations._record import record
from interpret.anatomy import anatomy_of
from interpret.errors import InputError, UnsupportedModelError
from interpret.surgery.generation import forward_interpret
from reference.kinds import D, L
from reference.overlay import reference_forward
from reference.tiny import hooks_on, residual_scale

IDS = torch.tensor([[5, 6, 7, 8, 9], [20, 30, 40, 50, 60]])
# Sites whose tensors are part of the graph, not views; tests/activations/test_cache.py tests the others.
STREAM = ("resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
ALL = [f"{site}.{layer}" for site in STREAM for layer in range(L)]
CLOSE = {"rtol": 0, "atol": 1e-5}


def recorded(model, names=ALL):
    with record(model, names) as seen:
        output = model(IDS, output_hidden_states=True)
    return seen, output.hidden_states


def test_every_site_of_every_layer_is_recorded_in_full(family_model):
    seen, _ = recorded(family_model)
    assert set(seen) == set(ALL)
    assert all(tensor.shape == (*IDS.shape, D) for tensor in seen.values())


def test_residual_stream_enters_and_leaves_as_the_model_says(family_model):
    seen, hidden_states = recorded(family_model)
    for layer in range(L):
        assert torch.equal(seen[f"resid_pre.{layer}"], hidden_states[layer])
    for layer in range(L - 1):
        assert torch.equal(seen[f"resid_post.{layer}"], hidden_states[layer + 1])
    last = torch.stack([reference_forward(family_model, row.tolist(), None).last_output for row in IDS])
    torch.testing.assert_close(seen[f"resid_post.{L - 1}"], last, **CLOSE)


def test_mlp_output_added_to_the_middle_is_the_layers_output(family_model):
    seen, _ = recorded(family_model)
    post_norm = anatomy_of(family_model).block == "post_norm"
    for layer, block in enumerate(anatomy_of(family_model).layers):
        total = seen[f"resid_mid.{layer}"] + seen[f"mlp_out.{layer}"]
        if post_norm:
            total = block.final_layer_norm(total)
        torch.testing.assert_close(seen[f"resid_post.{layer}"], total, **CLOSE)


def test_attention_output_added_to_the_input_is_the_middle(family_model):
    seen, _ = recorded(family_model)
    post_norm = anatomy_of(family_model).block == "post_norm"
    for layer, block in enumerate(anatomy_of(family_model).layers):
        total = seen[f"resid_pre.{layer}"] + seen[f"attn_out.{layer}"]
        if post_norm:
            total = block.self_attn_layer_norm(total)
        torch.testing.assert_close(seen[f"resid_mid.{layer}"], total, **CLOSE)


def test_mlp_run_on_its_recorded_input_gives_its_recorded_output(family_model):
    seen, _ = recorded(family_model)
    for layer, block in enumerate(anatomy_of(family_model).layers):
        if family_model.config.model_type == "opt":
            again = block.fc2(block.activation_fn(block.fc1(seen[f"mlp_in.{layer}"])))
        else:
            again = block.mlp(seen[f"mlp_in.{layer}"])
            again = getattr(block, "post_feedforward_layernorm", nn.Identity())(again)
        torch.testing.assert_close(seen[f"mlp_out.{layer}"], again * residual_scale(family_model), **CLOSE)


@pytest.mark.parametrize("name", ALL)
def test_a_site_recorded_alone_is_the_same_as_among_all(llama, name):
    alone, _ = recorded(llama, [name])
    assert set(alone) <= {name, f"resid_pre.{name[-1]}"}
    assert torch.equal(alone[name], recorded(llama)[0][name])


def test_the_base_model_is_recorded_too(family_model):
    seen, _ = recorded(family_model)
    with record(family_model.base_model, ALL) as below:
        family_model.base_model(IDS)
    assert all(torch.equal(seen[name], below[name]) for name in ALL)


def test_recorded_tensors_are_the_ones_the_models_output_depends_on(family_model):
    seen, hidden_states = recorded(family_model)
    # Sums, multiples and views that are computed for the record only: the output does not depend on them.
    aside = {"resid_mid", "mlp_in", "mlp_out"} if family_model.config.model_type == "opt" else set()
    if anatomy_of(family_model).block == "parallel":
        aside.add("resid_mid")
    if residual_scale(family_model) != 1:
        aside |= {"attn_out", "mlp_out"}
    for name in set(ALL) - {f"{site}.{layer}" for site in aside for layer in range(L)}:
        assert torch.autograd.grad(hidden_states[-1].sum(), seen[name], retain_graph=True)[0].abs().sum() > 0


def test_recording_sees_edited_inputs_whichever_came_first(family_model):
    vector = torch.randn(1, 1, D, generator=torch.Generator().manual_seed(1))
    with record(family_model, ["resid_pre.2", "resid_post.1"]) as seen:
        plain = family_model(IDS, output_hidden_states=True).hidden_states[2]
        forward_interpret(family_model, IDS, insert_info=[{2: ([3], vector)}, None])
    assert torch.equal(seen["resid_pre.2"][0, 3], vector[0, 0])
    assert torch.equal(seen["resid_post.1"], plain)


def test_passes_of_other_threads_are_not_recorded(family_model):
    expected, _ = recorded(family_model)
    with record(family_model, ALL) as seen:
        family_model(IDS)
        other = Thread(target=family_model, args=(IDS + 1,))
        other.start()
        other.join()
    assert all(torch.equal(seen[name], expected[name]) for name in ALL)


def test_checkpointing_does_not_cut_recorded_tensors_from_the_graph(llama):
    llama.gradient_checkpointing_enable()
    llama.train()
    with record(llama, ["mlp_in.1"]) as seen:
        loss = llama(IDS, labels=IDS).loss
    assert torch.autograd.grad(loss, seen["mlp_in.1"])[0].abs().sum() > 0
    assert llama.model.gradient_checkpointing


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mlp_output.1",
            "unknown activation 'mlp_output'; did you mean 'mlp_out'? "
            "Allowed: resid_pre, attn_in, q, k, v, heads, attn_out, mixer_out, resid_mid, mlp_in, neurons, mlp_out, "
            "resid_post",
        ),
        ("mlp_out", "activation 'mlp_out': give a layer from 0 to 3, as in 'mlp_out.0'"),
        ("mlp_out.4", "activation 'mlp_out.4': give a layer from 0 to 3, as in 'mlp_out.0'"),
        ("mlp_out.-1", "activation 'mlp_out.-1': give a layer from 0 to 3, as in 'mlp_out.0'"),
        ("mlp_out.1.2", "activation 'mlp_out.1.2': give a layer from 0 to 3, as in 'mlp_out.0'"),
        ("mlp_out.01", "activation 'mlp_out.01': give a layer from 0 to 3, as in 'mlp_out.0'"),
    ],
)
def test_an_unknown_name_is_refused_before_any_hook_is_set(llama, name, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"), record(llama, ["resid_pre.0", name]):
        pass
    assert hooks_on(llama) == 0


def test_a_model_of_no_known_family_is_refused():
    with (
        pytest.raises(UnsupportedModelError, match=r"^Linear \(model_type None\) is not of a supported family"),
        record(nn.Linear(2, 2), []),
    ):
        pass


def test_hooks_are_gone_after_the_block_also_when_it_raises(family_model):
    with record(family_model, ALL):
        assert hooks_on(family_model) > 0
    assert hooks_on(family_model) == 0
    with pytest.raises(IndexError), record(family_model, ALL):
        family_model(IDS + 1000)
    assert hooks_on(family_model) == 0
