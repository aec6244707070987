"""Single forward passes with surgery, compared with formulas and the slow reference."""

import copy
import threading
import weakref

import pytest
import torch
from accelerate import cpu_offload
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from interpret.anatomy import Anatomy, anatomy_of
from interpret.errors import SpecError
from interpret.prompts.batches import pad
from interpret.surgery.generation import forward_interpret
from interpret.surgery.hooks import applied, bind, overlay
from interpret.surgery.plan import plan_surgery
from reference.devices import DEVICES, needs_a_gpu
from reference.kinds import KINDS, D, L, V
from reference.overlay import reference_forward
from reference.tiny import hooks_on, tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9], [20, 30, 40, 50, 60]])
CLOSE = {"rtol": 0, "atol": 1e-4}


def vectors(n_positions, seed=1, dtype=torch.float32):
    return torch.randn(1, n_positions, D, generator=torch.Generator().manual_seed(seed)).to(dtype)


def model_inputs(model, batch):
    """The batch as this model takes it; OPT computes positions from the mask itself."""
    inputs = batch.model_inputs()
    if model.config.model_type == "opt":
        del inputs["position_ids"]
    return inputs


@pytest.mark.matrix
@pytest.mark.parametrize("layer", range(L))
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_normalized_mixes_vector_and_state(family_model, layer, strength):
    vector = vectors(2)
    info = [{layer: ([1, 3], vector), "overlay_strength": strength, "replacing_mode": "normalized"}, None]
    plain = family_model(IDS, output_hidden_states=True).hidden_states[layer]
    edited = forward_interpret(family_model, IDS, insert_info=info, output_hidden_states=True).hidden_states[layer]
    expected = plain.clone()
    expected[0, [1, 3]] = strength * vector[0] + (1 - strength) * plain[0, [1, 3]]
    torch.testing.assert_close(edited, expected, rtol=0, atol=1e-6)
    untouched = torch.ones(2, 5, dtype=torch.bool)
    untouched[0, [1, 3]] = False
    assert torch.equal(edited[untouched], plain[untouched])


@pytest.mark.matrix
@pytest.mark.parametrize("layer", range(L))
@pytest.mark.parametrize("strength", [0.3, 2.5, -1.0])
def test_addition_adds_the_scaled_vector(family_model, layer, strength):
    vector = vectors(2)
    info = {layer: ([0, -1], vector), "overlay_strength": strength, "replacing_mode": "addition"}
    plain = family_model(IDS, output_hidden_states=True).hidden_states[layer]
    edited = forward_interpret(
        family_model, IDS, insert_info=[None, {**info, "allow_negative_strength": True}], output_hidden_states=True
    ).hidden_states[layer]
    expected = plain.clone()
    expected[1, [0, 4]] += strength * vector[0]
    torch.testing.assert_close(edited, expected, rtol=0, atol=1e-6)


def test_each_row_of_a_batch_is_as_if_run_alone(family_model):
    infos = [
        {0: ([2], vectors(1)), 3: ([0, 1], vectors(2)), "overlay_strength": 0.5},
        None,
        {1: ([-1], vectors(1), {"replacing_mode": "addition"}), 2: ([0], vectors(1, seed=2))},
        {},
    ]
    ids = torch.cat([IDS, IDS + 1])
    together = forward_interpret(family_model, ids, insert_info=infos).logits
    for row, info in enumerate(infos):
        alone = forward_interpret(family_model, ids[row : row + 1], insert_info=[info]).logits[0]
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(alone, reference_forward(family_model, ids[row].tolist(), info).logits, **CLOSE)


def test_layers_may_differ_in_mode_and_strength(family_model):
    info = {
        0: ([1, 2], vectors(2), {"overlay_strength": 0.25}),
        1: ([1], vectors(1, seed=2), {"replacing_mode": "addition", "overlay_strength": 2.0}),
        3: ([4, 1], vectors(2, seed=3)),
        "overlay_strength": 0.75,
    }
    edited = forward_interpret(family_model, IDS[:1], insert_info=[info], output_hidden_states=True)
    expected = reference_forward(family_model, IDS[0].tolist(), info)
    torch.testing.assert_close(edited.logits[0], expected.logits, **CLOSE)
    for layer in range(L):
        torch.testing.assert_close(edited.hidden_states[layer][0], expected.layer_inputs[layer], **CLOSE)


def test_padding_on_either_side_changes_nothing(family_model):
    rows = [[5, 6, 7, 8, 9], [20, 30], [40, 41, 42]]
    infos = [{1: ([0, 3], vectors(2))}, {1: ([0], vectors(1, 2)), 2: ([-1], vectors(1, 3))}, None]
    for side in ("left", "right"):
        batch = pad(rows, 0, side=side)
        logits = forward_interpret(family_model, **model_inputs(family_model, batch), insert_info=infos).logits
        for row, (ids, info) in enumerate(zip(rows, infos, strict=True)):
            expected = reference_forward(family_model, ids, info).logits
            torch.testing.assert_close(logits[row, batch.attention_mask[row].bool()], expected, **CLOSE)


def test_a_prompt_of_one_token_is_edited(family_model):
    info = [{2: ([0], vectors(1))}]
    edited = forward_interpret(family_model, IDS[:1, :1], insert_info=info).logits
    torch.testing.assert_close(edited[0], reference_forward(family_model, [5], info[0]).logits, **CLOSE)
    assert not torch.allclose(edited, family_model(IDS[:1, :1]).logits, atol=1e-2)


@pytest.mark.matrix
@pytest.mark.parametrize("cuts", [[1], [2], [3], [4], [1, 2, 3, 4], [2, 4]])
def test_a_prompt_in_chunks_is_edited_as_in_one_pass(family_model, cuts):
    infos = [{0: ([2], vectors(1)), 1: ([0, 4], vectors(2))}, {2: ([1, 2, 3], vectors(3))}]
    whole = forward_interpret(family_model, IDS, insert_info=infos, use_cache=True)
    cache, logits = None, []
    for start, stop in zip([0, *cuts], [*cuts, 5], strict=True):
        # Positions of later chunks are refused: give each call only those up to its end.
        seen = [_up_to(info, stop) for info in infos]
        part = forward_interpret(
            family_model,
            input_ids=IDS[:, start:stop],
            attention_mask=torch.ones(2, stop, dtype=torch.long),
            past_key_values=cache,
            insert_info=seen,
            use_cache=True,
        )
        cache, logits = part.past_key_values, [*logits, part.logits]
    torch.testing.assert_close(torch.cat(logits, dim=1), whole.logits, **CLOSE)
    for ours, theirs in zip(cache, whole.past_key_values, strict=True):
        torch.testing.assert_close(ours[0], theirs[0], **CLOSE)
        torch.testing.assert_close(ours[1], theirs[1], **CLOSE)


def _up_to(info, stop):
    kept = {layer: [i for i, p in enumerate(positions) if p < stop] for layer, (positions, _) in info.items()}
    return {layer: ([info[layer][0][i] for i in rows], info[layer][1][:, rows]) for layer, rows in kept.items()}


def test_tokens_in_the_cache_are_not_edited_again(family_model):
    infos = [{1: ([0], vectors(1))}, {2: ([2], vectors(1))}]
    with torch.no_grad():
        cache = family_model(IDS[:, :3], use_cache=True).past_key_values
    mask = torch.ones(2, 5, dtype=torch.long)
    # A cache that is an object grows with each pass that reads it.
    plain = family_model(IDS[:, 3:], past_key_values=copy.deepcopy(cache), attention_mask=mask).logits
    edited = forward_interpret(
        family_model, IDS[:, 3:], past_key_values=cache, attention_mask=mask, insert_info=infos
    ).logits
    assert torch.equal(edited, plain)


def test_gradients_of_the_vectors_are_those_of_the_reference(family_model):
    first, second = vectors(2).requires_grad_(), vectors(1, seed=2).requires_grad_()
    infos = [{1: ([0, 3], first), 3: ([3], second), "overlay_strength": 0.5}, {2: ([1], second)}]
    weight = torch.randn(2, 5, V, generator=torch.Generator().manual_seed(3))
    ours = torch.autograd.grad(
        (forward_interpret(family_model, IDS, insert_info=infos).logits * weight).sum(), (first, second)
    )
    reference = [
        reference_forward(family_model, row.tolist(), info).logits for row, info in zip(IDS, infos, strict=True)
    ]
    theirs = torch.autograd.grad((torch.stack(reference) * weight).sum(), (first, second))
    for our, their in zip(ours, theirs, strict=True):
        assert our.abs().min() > 0
        torch.testing.assert_close(our, their, rtol=1e-3, atol=1e-3)


def test_gradients_agree_with_finite_differences_in_float64(gpt2):
    gpt2.double()
    vector = vectors(1, dtype=torch.float64).requires_grad_()

    def loss(vector, mode):
        return forward_interpret(
            gpt2, IDS[:1], insert_info=[{1: ([2], vector), "overlay_strength": 0.5, "replacing_mode": mode}]
        ).logits.sum()

    for mode in ("normalized", "addition"):
        assert torch.autograd.gradcheck(loss, (vector, mode))


@pytest.mark.matrix
@pytest.mark.gpu
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vector_dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_half_precision_is_mixed_in_float32_and_rounded_once(family_model, vector_dtype, strength, device):
    family_model.to(device, torch.bfloat16)
    ids = IDS.to(device)
    vector = vectors(1, dtype=vector_dtype)
    info = [{1: ([2], vector), "overlay_strength": strength}, None]
    plain = family_model(ids, output_hidden_states=True)
    output = forward_interpret(family_model, ids, insert_info=info, output_hidden_states=True)
    expected = strength * vector[0, 0].float() + (1 - strength) * plain.hidden_states[1][0, 2].cpu().float()
    assert [state.dtype for state in output.hidden_states] == [state.dtype for state in plain.hidden_states]
    assert output.logits.dtype == plain.logits.dtype
    assert output.hidden_states[1].dtype == torch.bfloat16
    assert torch.equal(output.hidden_states[1][0, 2].cpu(), expected.bfloat16())
    family_model.cpu()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_a_model_whose_weights_are_brought_in_by_accelerate_is_edited_alike(kind):
    infos = [{0: ([1], vectors(1)), 2: ([3], vectors(1))}, None]
    plain, offloaded = tiny_model(kind), cpu_offload(tiny_model(kind), execution_device=torch.device("cpu"))
    assert {p.device.type for p in offloaded.parameters()} == {"meta"}
    with torch.no_grad():
        expected = forward_interpret(plain, IDS, insert_info=infos, output_hidden_states=True)
        ours = forward_interpret(offloaded, IDS, insert_info=infos, output_hidden_states=True)
    assert torch.equal(ours.logits, expected.logits)
    assert all(torch.equal(a, b) for a, b in zip(ours.hidden_states, expected.hidden_states, strict=True))


@pytest.mark.gpu
@needs_a_gpu
def test_vectors_follow_the_model_to_its_device(family_model):
    infos = [{0: ([1], vectors(1)), 2: ([3], vectors(1).cuda())}, None]
    expected = forward_interpret(family_model, IDS, insert_info=infos).logits
    ours = forward_interpret(family_model.cuda(), IDS.cuda(), insert_info=infos).logits
    torch.testing.assert_close(ours.cpu(), expected, **CLOSE)
    family_model.cpu()


def test_states_are_held_no_longer_than_the_pass_that_edits_them(llama):
    held = []
    watch = llama.model.layers[1].register_forward_hook(lambda _, args, output: held.append(weakref.ref(output[0])))
    anatomy = anatomy_of(llama)
    plan = plan_surgery([{2: ([0], vectors(1))}, None], token_counts=[5, 5], n_layers=L, width=D)
    with torch.no_grad(), applied(anatomy, plan, torch.arange(5).repeat(2, 1)):
        llama(IDS)
        assert [reference() for reference in held] == [None]
    watch.remove()


def test_caller_data_is_left_as_it_is(family_model):
    embeds = torch.randn(2, 5, family_model.get_input_embeddings().embedding_dim)
    mask, vector, positions = torch.ones(2, 5, dtype=torch.long), vectors(2), [1, -1]
    info = [{0: (positions, vector), 2: (positions, vector)}, None]
    before = [tensor.clone() for tensor in (embeds, mask, vector)]
    forward_interpret(family_model, inputs_embeds=embeds, attention_mask=mask, insert_info=info)
    assert all(torch.equal(was, now) for was, now in zip(before, (embeds, mask, vector), strict=True))
    assert positions == [1, -1]
    assert list(info[0]) == [0, 2]


def test_hooks_are_gone_and_checkpointing_back_when_a_layer_raises(family_model):
    family_model.gradient_checkpointing_enable()
    layer = anatomy_of(family_model).layers[2]
    seen = []

    def fail(*_):
        seen.append(hooks_on(family_model))
        raise RuntimeError("half-way")

    handle = layer.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="half-way"):
        forward_interpret(family_model, IDS, insert_info=[{1: ([0], vectors(1))}, None], output_pre_mlp_states=True)
    handle.remove()
    assert seen[0] > 1
    assert hooks_on(family_model) == 0
    assert anatomy_of(family_model).trunk.gradient_checkpointing


def test_other_threads_run_the_plain_model_meanwhile(llama):
    plain = llama(IDS).logits
    edited = forward_interpret(llama, IDS, insert_info=[{1: ([0], vectors(1))}, None]).logits
    inside, done, there = threading.Event(), threading.Event(), {}

    def pause(*_):
        if threading.current_thread() is caller:
            inside.set()
            assert done.wait(timeout=600)

    def call():
        with torch.no_grad():
            there["edited"] = forward_interpret(llama, IDS, insert_info=[{1: ([0], vectors(1))}, None]).logits

    handle = llama.model.layers[2].register_forward_pre_hook(pause)
    caller = threading.Thread(target=call)
    caller.start()
    assert inside.wait(timeout=600)
    meanwhile = llama(IDS).logits
    done.set()
    caller.join()
    handle.remove()
    assert torch.equal(meanwhile, plain)
    assert torch.equal(there["edited"], edited)
    assert not torch.equal(edited, plain)


def test_a_pass_whose_rows_cannot_be_shared_out_is_refused(llama):
    anatomy = anatomy_of(llama)
    plan = plan_surgery([{0: ([0], vectors(1))}, None], token_counts=[5, 5], n_layers=L, width=D)
    message = "insert_info has 2 samples, but the model is run on 3 rows"
    with pytest.raises(SpecError, match=f"^{message}"), applied(anatomy, plan, torch.arange(5).repeat(2, 1)):
        llama(torch.cat([IDS, IDS[:1]]))


def test_a_cache_that_forgets_columns_does_not_move_the_edit():
    class Trunk(nn.Module):
        """Stands in for a model whose sliding window keeps 2 columns of keys, like Mistral with flash attention."""

        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Identity()])

        def forward(self, hidden, attention_mask=None, past_key_values=None):
            return self.layers[0](hidden)

    trunk = Trunk()
    plan = plan_surgery([{0: ([2], torch.ones(1, 1, 3))}], token_counts=[5], n_layers=1, width=3)
    window = ((torch.zeros(1, 1, 2, 3),) * 2,)
    with applied(Anatomy(None, trunk, trunk.layers, 3, "sequential"), plan, torch.arange(5)[None]):
        assert trunk(torch.zeros(1, 5, 3), torch.ones(1, 5))[0, :, 0].tolist() == [0, 0, 1, 0, 0]
        assert trunk(torch.zeros(1, 1, 3), torch.ones(1, 6), window).eq(0).all()


@st.composite
def operations(draw):
    """A kind of model, the rows of a batch, their edits, and the side of the padding."""
    rows = draw(st.lists(st.lists(st.integers(1, V - 1), min_size=1, max_size=6), min_size=1, max_size=3))
    infos = [draw(st.none() | _sample_info(len(row))) for row in rows]
    return draw(st.sampled_from(list(KINDS))), rows, infos, draw(st.sampled_from(["left", "right"]))


@st.composite
def _sample_info(draw, n_tokens):
    def options():
        mode = draw(st.sampled_from(["normalized", "addition"]))
        return {"replacing_mode": mode, "overlay_strength": draw(st.sampled_from([0.25, 0.5, 1.0]))}

    info = options()
    for layer in draw(st.sets(st.integers(0, L - 1))):
        chosen = draw(st.sets(st.integers(0, n_tokens - 1)))
        positions = [p - n_tokens if draw(st.booleans()) else p for p in chosen]
        entry = (positions, vectors(len(positions), seed=draw(st.integers(0, 99))))
        info[layer] = (*entry, options()) if draw(st.booleans()) else entry
    return info


@given(operations())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_plan_on_any_batch_computes_what_the_reference_does(operation):
    kind, rows, infos, side = operation
    model, batch = tiny_model(kind), pad(rows, 0, side=side)
    with torch.no_grad():
        edited = forward_interpret(model, **model_inputs(model, batch), insert_info=infos, output_hidden_states=True)
        for row, (ids, info) in enumerate(zip(rows, infos, strict=True)):
            expected, tokens = reference_forward(model, ids, info), batch.attention_mask[row].bool()
            torch.testing.assert_close(edited.logits[row, tokens], expected.logits, rtol=1e-4, atol=1e-3)
            for layer in range(L):
                state = edited.hidden_states[layer][row, tokens]
                torch.testing.assert_close(state, expected.layer_inputs[layer], rtol=1e-4, atol=1e-3)
    assert hooks_on(model) == 0


def test_copies_of_a_sample_are_neighbouring_rows():
    """Three rows a sample, as beams are: each gets the vector of its own sample, at that sample's columns."""
    info = [{1: ([0, 2], torch.full((1, 2, D), 5.0))}, None, {1: ([-3], torch.full((1, 1, D), 7.0))}]
    edit = plan_surgery(info, token_counts=[4, 4, 3], n_layers=L, width=D).edits[1]
    columns = torch.arange(4).expand(3, -1) + torch.tensor([[0], [0], [1]])
    hidden = torch.zeros(9, 5, D)
    expected = hidden.clone()
    expected[:3, [0, 2]] = 5
    expected[6:, 1] = 7
    assert torch.equal(overlay(hidden, bind(edit, columns), 0, copies=3), expected)
    assert torch.equal(overlay(hidden[:, 1:], bind(edit, columns), 1, copies=3), expected[:, 1:])
