"""The public calls, except for the decoding modes: outputs, refused inputs, attaching and detaching."""

import copy
import re

import pytest
import torch
from transformers import LogitsProcessorList, MaxLengthCriteria, MinLengthLogitsProcessor, StoppingCriteriaList

from interpret.activations._record import record
from interpret.anatomy import anatomy_of, base_of
from interpret.errors import SpecError, UnsupportedModelError
from interpret.prompts.batches import pad
from interpret.surgery.generation import attach, detach, forward_interpret, generate_interpret, greedy_search_interpret
from reference.kinds import D, L
from reference.overlay import decoder_layers, reference_forward
from reference.tiny import eager, hooks_on, parts_of_cache, residual_scale, tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9], [20, 30, 40, 50, 60]])
EVERYTHING = {"labels": IDS, "use_cache": True, "output_attentions": True, "output_hidden_states": True}
CLOSE = {"rtol": 0, "atol": 1e-5}


def vectors(n_positions, seed=1):
    return torch.randn(1, n_positions, D, generator=torch.Generator().manual_seed(seed))


INFO = [{0: ([0], vectors(1)), 2: ([1, -1], vectors(2)), "overlay_strength": 0.5}, {1: ([2], vectors(1, 2))}]


def tensors_in(value):
    """List the tensors of a nested output, in order."""
    if torch.is_tensor(value):
        return [value]
    if hasattr(value, "get_seq_length"):
        return parts_of_cache(value)
    values = value.values() if isinstance(value, dict) else value
    return [tensor for part in values for tensor in tensors_in(part)]


def assert_same_output(ours, theirs, n_tensors=1 + 1 + 2 * L + (L + 1) + L):
    """Loss, logits, keys and values, hidden states, attentions: all equal to the bit."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
    pairs = list(zip(tensors_in(ours), tensors_in(theirs), strict=True))
    assert len(pairs) == n_tensors
    assert all(torch.equal(our, their) for our, their in pairs)


@pytest.mark.matrix
@pytest.mark.parametrize("return_dict", [True, False])
@pytest.mark.parametrize("nothing", [None, [None, None], [{}, {"note": 1}]])
def test_a_forward_pass_with_nothing_to_do_is_the_stock_one_to_the_bit(family_model, nothing, return_dict):
    stock = eager(family_model)(IDS, return_dict=return_dict, **EVERYTHING)
    ours = forward_interpret(family_model, IDS, insert_info=nothing, return_dict=return_dict, **EVERYTHING)
    assert_same_output(ours, stock)


def test_an_edited_tuple_holds_what_the_edited_dict_holds(family_model):
    as_dict = forward_interpret(eager(family_model), IDS, insert_info=INFO, **EVERYTHING)
    as_tuple = forward_interpret(family_model, IDS, insert_info=INFO, return_dict=False, **EVERYTHING)
    assert isinstance(as_tuple, tuple)
    assert_same_output(as_tuple, as_dict.to_tuple())
    assert not torch.equal(as_tuple[1], family_model(IDS).logits)


def test_the_base_model_returns_edited_states_too(family_model):
    whole = forward_interpret(family_model, IDS, insert_info=INFO, output_hidden_states=True).hidden_states
    below = forward_interpret(base_of(family_model), IDS, insert_info=INFO, output_hidden_states=True)
    assert_same_output(below.hidden_states, whole, n_tensors=L + 1)
    assert torch.equal(below.last_hidden_state, whole[-1])


def test_loss_is_that_of_the_edited_logits(family_model):
    output = forward_interpret(family_model, IDS, insert_info=INFO, labels=IDS)
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)


def test_editing_layer_0_is_running_edited_input_embeddings(family_model):
    """This holds only if layer 0 reads the embeddings unchanged, without learnt positions or projections."""
    if family_model.config.model_type in ("gpt2", "opt"):
        pytest.skip("layer 0 reads embeddings plus positions")
    if family_model.config.model_type in ("gemma2", "granite"):
        pytest.skip("layer 0 reads scaled embeddings, in Gemma 2 since transformers 4.57")
    info = [
        {0: ([1, 3], vectors(2)), "overlay_strength": 0.5},
        {0: ([-1], vectors(1)), "replacing_mode": "addition"},
    ]
    embeds = family_model.get_input_embeddings()(IDS)
    edited = embeds.detach().clone()
    edited[0, [1, 3]] = 0.5 * vectors(2)[0] + 0.5 * embeds[0, [1, 3]]
    edited[1, 4] += vectors(1)[0, 0]
    expected = family_model(inputs_embeds=edited).logits
    for tokens in ({"input_ids": IDS}, {"inputs_embeds": embeds}):
        torch.testing.assert_close(
            forward_interpret(family_model, **tokens, insert_info=info).logits, expected, **CLOSE
        )


def test_adding_at_layer_0_is_adding_to_input_embeddings(gpt2):
    info = [{0: ([1, 3], vectors(2)), "replacing_mode": "addition"}, None]
    edited = gpt2.get_input_embeddings()(IDS).detach()
    edited[0, [1, 3]] += vectors(2)[0]
    expected = gpt2(inputs_embeds=edited).logits
    torch.testing.assert_close(forward_interpret(gpt2, IDS, insert_info=info).logits, expected, **CLOSE)


def test_hidden_states_are_the_inputs_of_the_layers_and_then_the_normed_output(family_model):
    with record(family_model, [f"resid_post.{L - 1}"]) as seen:
        output = forward_interpret(family_model, IDS, insert_info=INFO, output_hidden_states=True)
    assert len(output.hidden_states) == L + 1
    for row, info in enumerate(INFO):
        expected = reference_forward(family_model, IDS[row].tolist(), info)
        for layer in range(L):
            torch.testing.assert_close(output.hidden_states[layer][row], expected.layer_inputs[layer], **CLOSE)
        torch.testing.assert_close(seen[f"resid_post.{L - 1}"][row], expected.last_output, **CLOSE)
    normed = _final_norm(family_model)(seen[f"resid_post.{L - 1}"])
    torch.testing.assert_close(output.hidden_states[L], normed, rtol=0, atol=1e-6)


def _final_norm(model):
    if model.config.model_type in ("gpt2", "gptj"):
        return model.transformer.ln_f
    if model.config.model_type == "gpt_neox":
        return model.gpt_neox.final_layer_norm
    if model.config.model_type == "opt":
        return model.model.decoder.final_layer_norm or model.model.decoder.project_out
    return model.model.norm


@pytest.mark.parametrize("info", [None, INFO])
def test_states_around_each_mlp_add_up_to_the_next_layers_input(family_model, info):
    # On its own, and in a tuple.
    _, alone = forward_interpret(family_model, IDS, insert_info=info, output_pre_mlp_states=True)
    output, states = forward_interpret(
        family_model,
        IDS,
        insert_info=info,
        output_pre_mlp_states=True,
        output_hidden_states=True,
        return_dict=False,
    )
    assert all(torch.equal(a, b) for a, b in zip(tensors_in(alone), tensors_in(states), strict=True))
    hidden_states, post_norm = output[-1], anatomy_of(family_model).block == "post_norm"
    assert len(states) == L + 1
    assert torch.equal(states[0][0], hidden_states[0])
    assert torch.equal(states[0][1], hidden_states[0])
    for layer, block in enumerate(decoder_layers(family_model), start=1):
        pre_mlp, residual = states[layer]
        assert pre_mlp.shape == residual.shape == (2, 5, D)
        total = residual + _mlp(family_model, block, pre_mlp) * residual_scale(family_model)
        total = block.final_layer_norm(total) if post_norm else total
        if layer == L:
            torch.testing.assert_close(_final_norm(family_model)(total), hidden_states[L], **CLOSE)
            continue
        rows = torch.ones(2, 5, dtype=torch.bool)
        for sample, entry in enumerate(info or []):
            rows[sample, entry.get(layer, ([],))[0]] = False  # edited after the MLP
        torch.testing.assert_close(total[rows], hidden_states[layer][rows], **CLOSE)


def _mlp(model, block, pre_mlp):
    if model.config.model_type == "opt":
        return block.fc2(block.activation_fn(block.fc1(pre_mlp)))
    after = getattr(block, "post_feedforward_layernorm", torch.nn.Identity())
    return after(block.mlp(pre_mlp))


def test_a_training_step_with_checkpointing_has_the_gradients_of_one_without(family_model):
    family_model.train()

    def gradients():
        family_model.zero_grad()
        vector = vectors(2).requires_grad_()
        info = [{1: ([0, 3], vector), "overlay_strength": 0.5}, None]
        forward_interpret(family_model, IDS, insert_info=info, labels=IDS).loss.backward()
        return [vector.grad, *(p.grad for p in family_model.parameters() if p.grad is not None)]

    without = gradients()
    family_model.gradient_checkpointing_enable()
    with_checkpointing = gradients()
    assert any(getattr(module, "gradient_checkpointing", False) for module in family_model.modules())
    assert len(without) > 20
    assert without[0].abs().min() > 0
    for one, other in zip(without, with_checkpointing, strict=True):
        torch.testing.assert_close(one, other)


def test_states_around_the_mlp_have_gradients_under_checkpointing(llama):
    llama.train()
    llama.gradient_checkpointing_enable()
    _, states = forward_interpret(llama, IDS, output_pre_mlp_states=True)
    (states[2][0].sum() + states[2][1].sum()).backward()
    assert llama.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda model: forward_interpret(model, insert_info=INFO),
            "insert_info requires tokens to edit; pass input_ids or inputs_embeds",
        ),
        (
            lambda model: generate_interpret(model, insert_info=INFO),
            "insert_info requires a prompt to edit; pass inputs, input_ids or inputs_embeds",
        ),
        (
            lambda model: forward_interpret(model, IDS, insert_info=INFO[:1]),
            "insert_info has 1 entries for a batch of 2 samples; give one dict (or None) per sample",
        ),
        (
            lambda model: forward_interpret(
                model, IDS[:, 3:], past_key_values=model(IDS[:, :3]).past_key_values, insert_info=INFO
            ),
            "insert_info[0]: layer 2: position -1 counts from the end, which moves with past_key_values; count from 0",
        ),
        (
            lambda model: forward_interpret(
                model,
                IDS[:, 3:],
                attention_mask=torch.ones(2, 2),
                past_key_values=model(IDS[:, :3]).past_key_values,
                insert_info=[None, None],
            ),
            "attention_mask has 2 columns; it needs 5: 3 for the cache and 2 for this pass",
        ),
        (
            lambda model: generate_interpret(
                model,
                IDS,
                attention_mask=torch.tensor([[1, 1, 1, 1, 0]] * 2),
                past_key_values=model(IDS[:, :3]).past_key_values,
                insert_info=[None, None],
            ),
            "right-padded prompts cannot continue from past_key_values; pad them on the left",
        ),
    ],
    ids=["no tokens", "no prompt", "other batch", "end that moves", "short mask", "right padding on a cache"],
)
def test_a_call_that_gives_surgery_nothing_to_work_on_is_refused(llama, call, message):
    with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
        call(llama)


def test_the_last_token_of_a_cached_prompt_counts_positions_from_the_prompts_start(llama):
    info = [{1: ([4], vectors(1))}, {2: ([4], vectors(1))}]
    cache = llama(IDS[:, :4], use_cache=True).past_key_values
    ours = generate_interpret(llama, IDS, insert_info=info, past_key_values=cache, max_new_tokens=5)
    assert torch.equal(ours, generate_interpret(llama, IDS, insert_info=info, max_new_tokens=5))


@pytest.mark.parametrize("insert_info", [None, INFO])
def test_greedy_search_takes_the_stock_arguments(family_model, insert_info):
    batch = pad([[5, 6, 7, 8, 9], [20, 30, 40]], 0)
    arguments = {
        "logits_processor": LogitsProcessorList([MinLengthLogitsProcessor(8, eos_token_id=11)]),
        "stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(max_length=9)]),
        "pad_token_id": 0,
        "eos_token_id": 11,
        "output_scores": True,
        "return_dict_in_generate": True,
        "attention_mask": batch.attention_mask,
    }
    if insert_info is None and hasattr(family_model, "greedy_search"):
        stock = family_model.greedy_search(batch.input_ids, **arguments)
    elif insert_info is None:
        stock = family_model.generate(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            max_length=9,
            min_length=8,
            eos_token_id=11,
            output_scores=True,
            return_dict_in_generate=True,
        )
    else:
        stock = family_model.generate(
            batch.input_ids, max_length=9, eos_token_id=11, attention_mask=batch.attention_mask
        )
    ours = greedy_search_interpret(family_model, batch.input_ids, insert_info=insert_info, **arguments)
    if insert_info is None:
        assert torch.equal(ours.sequences, stock.sequences)
        assert all(torch.equal(a, b) for a, b in zip(ours.scores, stock.scores, strict=True))
        return
    expected = generate_interpret(
        family_model,
        batch.input_ids,
        insert_info=insert_info,
        attention_mask=batch.attention_mask,
        max_length=9,
        eos_token_id=11,
        min_length=8,
    )
    assert torch.equal(ours.sequences, expected)
    assert not torch.equal(expected, stock)


def test_greedy_search_without_a_mask_takes_every_column_for_a_token(llama):
    arguments = {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(max_length=8)]), "pad_token_id": 0}
    ids = IDS.clone()
    ids[0, 0] = 0  # the padding id, yet a token
    ours = greedy_search_interpret(llama, ids, insert_info=INFO, **arguments)
    mask = torch.ones_like(ids)
    assert torch.equal(ours, greedy_search_interpret(llama, ids, insert_info=INFO, attention_mask=mask, **arguments))


METHODS = ("forward_interpret", "generate_interpret", "greedy_search_interpret")


def test_attach_gives_the_methods_and_detach_takes_them(family_model):
    calls = [
        lambda model: model.forward_interpret(IDS, insert_info=INFO).logits,
        lambda model: model.generate_interpret(IDS, insert_info=INFO, max_new_tokens=3),
        lambda model: model.greedy_search_interpret(
            IDS, insert_info=INFO, stopping_criteria=StoppingCriteriaList([MaxLengthCriteria(8)]), pad_token_id=0
        ),
    ]
    functions = [
        lambda model: forward_interpret(model, IDS, insert_info=INFO).logits,
        lambda model: generate_interpret(model, IDS, insert_info=INFO, max_new_tokens=3),
        lambda model: generate_interpret(model, IDS, insert_info=INFO, max_length=8),
    ]
    before = set(vars(family_model)), set(vars(base_of(family_model)))
    assert attach(attach(family_model)) is family_model
    for call, function in zip(calls, functions, strict=True):
        assert torch.equal(call(family_model), function(family_model))
    below = base_of(family_model).forward_interpret(IDS, insert_info=INFO).last_hidden_state
    assert torch.equal(below, forward_interpret(base_of(family_model), IDS, insert_info=INFO)[0])
    assert detach(detach(family_model)) is family_model
    assert (set(vars(family_model)), set(vars(base_of(family_model)))) == before
    assert not any(name in vars(owner) for owner in (family_model, base_of(family_model)) for name in METHODS)


def test_a_copy_of_an_attached_model_operates_on_itself(llama):
    copied = copy.deepcopy(attach(llama))
    with torch.no_grad():
        copied.lm_head.weight.zero_()
    assert copied.forward_interpret(IDS, insert_info=INFO).logits.eq(0).all()
    assert llama.forward_interpret(IDS, insert_info=INFO).logits.ne(0).any()


def test_attaching_to_one_model_leaves_others_alone(llama):
    attach(llama)
    assert not any(name in vars(tiny_model("llama")) for name in METHODS)


def test_attach_refuses_a_model_of_no_known_family():
    with pytest.raises(UnsupportedModelError, match=r"^Linear \(model_type None\) is not of a supported family"):
        attach(torch.nn.Linear(2, 2))


def test_no_hook_is_left_when_the_call_is_wrong(llama):
    both = {"inputs_embeds": torch.zeros(2, 5, D)}
    with pytest.raises(ValueError, match=r"specify .* input_ids .* inputs_embeds"):
        forward_interpret(llama, IDS, insert_info=INFO, **both)
    with pytest.raises(ValueError, match=r"specify .* input_ids .* inputs_embeds"):
        forward_interpret(llama, IDS, output_pre_mlp_states=True, **both)
    assert hooks_on(llama) == 0
