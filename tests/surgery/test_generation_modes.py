"""Every decoding mode of transformers with surgery, compared with stock decoding of a model with plain edits."""

import re
import warnings

import pytest
import torch
import transformers
from transformers import GenerationConfig

from interpret.errors import SpecError, UnsupportedModelError
from interpret.prompts.batches import pad
from interpret.surgery.generation import generate_interpret
from reference.kinds import PAD, D, L
from reference.overlay import edited_model, reference_greedy
from reference.tiny import hooks_on, sibling

IDS = torch.tensor([[5, 6, 7, 8, 9], [20, 30, 40, 50, 60]])
ROWS = [[5, 6, 7, 8, 9], [20, 30], [40]]
N_NEW = 6

# Beam scores divide by the length of prompt and answer to this power; 0 makes them comparable between calls
# that count the prompt, its padding, or neither.
_BEAMS = {"num_beams": 3, "length_penalty": 0.0}
MODES = {
    "greedy": {},
    "greedy, no cache": {"use_cache": False},
    "sampling": {"do_sample": True},
    "sampling three": {"do_sample": True, "top_k": 0, "num_return_sequences": 3},
    "beams": _BEAMS | {"num_return_sequences": 2},
    "beams, no cache": _BEAMS | {"use_cache": False},
    "beam sampling": _BEAMS | {"do_sample": True, "num_return_sequences": 2},
}
# Modes of transformers 4.34.0 that later releases fetch from the hub, and modes of later releases only.
_OLD_MODES = {
    "group beams": _BEAMS | {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constrained beams": _BEAMS | {"force_words_ids": [[11, 12]]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
}
_NEW_MODES = {
    "static cache": {"cache_implementation": "static"},
    "beams, static cache": _BEAMS | {"cache_implementation": "static"},
}
CURRENT = hasattr(transformers, "Cache")
MODES |= _NEW_MODES if CURRENT else _OLD_MODES
only_new = pytest.mark.skipif(not CURRENT, reason="transformers 4.34.0 has no such cache or argument")
only_old = pytest.mark.skipif(CURRENT, reason="only transformers 4.34.0 has this mode or behaviour")
# Modes whose result for a row does not depend on the other rows, nor on padding (contrastive search compares
# tokens with the states of padding, too).
ROW_BY_ROW = [name for name in MODES if "sampl" not in name and name != "contrastive"]


def vectors(n_positions, seed=1):
    return 3 * torch.randn(1, n_positions, D, generator=torch.Generator().manual_seed(seed))


INFOS = [
    {0: ([1], vectors(1)), 2: ([0, -1], vectors(2, 2)), "overlay_strength": 0.75},
    {1: ([0, -1], vectors(2, 3)), 3: ([1], vectors(1, 4)), "replacing_mode": "addition"},
]
PADDED_INFOS = [*INFOS, {1: ([0], vectors(1, 5)), 2: ([-1], vectors(1, 6)), "overlay_strength": 0.5}]


def seeded(function, *args, **kwargs):
    torch.manual_seed(7)
    return function(*args, max_new_tokens=N_NEW, **kwargs)


@pytest.mark.matrix
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_decodes_the_edited_model(family_model, mode):
    with edited_model(family_model, INFOS, IDS.shape[1]):
        expected = seeded(family_model.generate, IDS, **MODES[mode])
    ours = seeded(generate_interpret, family_model, IDS, insert_info=INFOS, **MODES[mode])
    assert torch.equal(ours, expected)
    assert not torch.equal(ours, seeded(family_model.generate, IDS, **MODES[mode]))


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_without_surgery_is_the_stock_one(llama, mode):
    everything = {"return_dict_in_generate": True, "output_scores": True}
    stock = seeded(llama.generate, IDS, **MODES[mode], **everything)
    for nothing in (None, [None, {}]):
        ours = seeded(generate_interpret, llama, IDS, insert_info=nothing, **MODES[mode], **everything)
        assert type(ours) is type(stock)
        assert torch.equal(ours.sequences, stock.sequences)
        assert all(torch.equal(a, b) for a, b in zip(ours.scores, stock.scores, strict=True))


@pytest.mark.parametrize("mode", [mode for mode in MODES if "no cache" not in mode])
def test_editing_layer_0_decodes_like_edited_input_embeddings(llama, mode):
    """Stock decoding from embeddings returns the new tokens, in some releases after a start token."""
    infos = [{0: ([1, -1], vectors(2))}, {0: ([0], vectors(1)), "replacing_mode": "addition"}]
    embeds = llama.get_input_embeddings()(IDS).detach()
    edited = embeds.clone()
    edited[0, [1, 4]] = vectors(2)[0]
    edited[1, 0] += vectors(1)[0, 0]
    expected = seeded(llama.generate, inputs_embeds=edited, **MODES[mode])
    ours = seeded(generate_interpret, llama, IDS, insert_info=infos, **MODES[mode])
    assert torch.equal(ours[:, IDS.shape[1] :], expected[:, -N_NEW:])
    from_embeds = seeded(generate_interpret, llama, inputs_embeds=embeds, insert_info=infos, **MODES[mode])
    assert torch.equal(from_embeds, expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_decoding_of_a_padded_batch_is_the_reference_loop_on_each_row(family_model, side):
    batch = pad(ROWS, PAD, side=side)
    ours = generate_interpret(
        family_model,
        batch.input_ids,
        attention_mask=batch.attention_mask,
        insert_info=PADDED_INFOS,
        max_new_tokens=N_NEW,
    )
    assert torch.equal(ours[:, :5], batch.input_ids)
    for row, (ids, info) in enumerate(zip(ROWS, PADDED_INFOS, strict=True)):
        assert ours[row, 5:].tolist() == reference_greedy(family_model, ids, info, N_NEW)[len(ids) :]


@pytest.mark.matrix
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mode", ROW_BY_ROW)
def test_padding_on_either_side_changes_no_token(family_model, mode, side):
    batch = pad(ROWS, PAD, side=side)
    together = seeded(
        generate_interpret,
        family_model,
        batch.input_ids,
        attention_mask=batch.attention_mask,
        insert_info=PADDED_INFOS,
        **MODES[mode],
    )
    copies = MODES[mode].get("num_return_sequences", 1)
    assert torch.equal(together[:, :5], batch.input_ids.repeat_interleave(copies, dim=0))
    for row, (ids, info) in enumerate(zip(ROWS, PADDED_INFOS, strict=True)):
        alone = seeded(generate_interpret, family_model, torch.tensor([ids]), insert_info=[info], **MODES[mode])
        assert torch.equal(together[row * copies : (row + 1) * copies, 5:], alone[:, len(ids) :])


def test_an_edit_lives_on_through_the_cache(family_model):
    cached, uncached = (
        generate_interpret(family_model, IDS, insert_info=INFOS, max_new_tokens=N_NEW, use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert torch.equal(cached, uncached)


@pytest.mark.parametrize("mode", ["sampling three", "beam sampling", pytest.param("contrastive", marks=only_old)])
def test_right_padded_prompts_decode_as_left_padded_ones(llama, mode):
    outputs = {}
    for side in ("left", "right"):
        batch = pad(ROWS, PAD, side=side)
        outputs[side] = seeded(
            generate_interpret,
            llama,
            batch.input_ids,
            attention_mask=batch.attention_mask,
            insert_info=PADDED_INFOS,
            return_dict_in_generate=True,
            **MODES[mode],
        ).sequences
        copies = MODES[mode].get("num_return_sequences", 1)
        assert torch.equal(outputs[side][:, :5], batch.input_ids.repeat_interleave(copies, dim=0))
    assert torch.equal(outputs["left"][:, 5:], outputs["right"][:, 5:])


@only_new
@pytest.mark.parametrize("extra", [{"prefill_chunk_size": 2}, {"cache_implementation": "static"}])
def test_a_prompt_in_chunks_and_a_static_cache_change_no_token(family_model, extra):
    expected = generate_interpret(family_model, IDS, insert_info=INFOS, max_new_tokens=N_NEW)
    ours = generate_interpret(family_model, IDS, insert_info=INFOS, max_new_tokens=N_NEW, **extra)
    assert torch.equal(ours, expected)


@only_new
@pytest.mark.parametrize("insert_info", [INFOS[:1], INFOS[1:]])
def test_candidates_looked_up_in_the_prompt_carry_surgery(family_model, insert_info):
    ids = torch.tensor([[5, 6, 7, 5, 6]])
    ours = generate_interpret(family_model, ids, insert_info=insert_info, max_new_tokens=N_NEW,
                              prompt_lookup_num_tokens=2, eos_token_id=96)  # fmt: skip
    # Prompt lookup requires an end-of-text id, and the text may end early.
    expected = reference_greedy(family_model, ids[0].tolist(), insert_info[0], N_NEW)
    assert ours.shape[1] > ids.shape[1]
    assert ours[0].tolist() == expected[: ours.shape[1]]


@only_new
def test_assisted_decoding_of_a_padded_prompt_carries_surgery(family_model):
    ids, mask = torch.tensor([[PAD, PAD, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1]])
    ours = generate_interpret(family_model, ids, attention_mask=mask, insert_info=INFOS[:1], max_new_tokens=N_NEW,
                              assistant_model=sibling(family_model, seed=1))  # fmt: skip
    assert ours[0, 5:].tolist() == reference_greedy(family_model, [5, 6, 7], INFOS[0], N_NEW)[3:]


@only_old
def test_contrastive_search_one_candidate_at_a_time_carries_surgery(llama):
    arguments = MODES["contrastive"] | {"insert_info": INFOS[:1], "max_new_tokens": N_NEW}
    sequential = generate_interpret(llama, IDS[:1], low_memory=True, **arguments)
    assert torch.equal(sequential, generate_interpret(llama, IDS[:1], **arguments))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tokens", ["embeddings", "embeddings and ids"])
def test_padded_embeddings_decode_like_padded_ids(llama, side, tokens):
    batch = pad(ROWS, PAD, side=side)
    arguments = {"attention_mask": batch.attention_mask, "insert_info": PADDED_INFOS, "max_new_tokens": N_NEW}
    expected = generate_interpret(llama, batch.input_ids, **arguments)
    embeds = llama.get_input_embeddings()(batch.input_ids).detach()
    if tokens == "embeddings":
        ours = generate_interpret(llama, inputs_embeds=embeds, **arguments)
        assert torch.equal(ours[:, -N_NEW:], expected[:, 5:])
    else:
        ours = generate_interpret(llama, batch.input_ids, inputs_embeds=embeds, **arguments)
        assert torch.equal(ours, expected)


def test_token_types_move_with_right_padded_prompts(gpt2):
    types = {"left": [[1, 2, 3, 4, 5], [0, 0, 0, 6, 7]], "right": [[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]]}
    outputs = []
    for side in ("left", "right"):
        batch = pad(ROWS[:2], PAD, side=side)
        outputs.append(
            generate_interpret(
                gpt2,
                batch.input_ids,
                attention_mask=batch.attention_mask,
                token_type_ids=torch.tensor(types[side]),
                insert_info=INFOS,
                max_new_tokens=N_NEW,
            )[:, 5:]
        )
    assert torch.equal(*outputs)


@pytest.mark.parametrize("where", ["keyword", "config", "config by position", "model"])
def test_without_a_mask_padding_is_what_generate_takes_for_it(llama, where):
    """With equal pad and eos ids every column is a token, wherever the ids are set; positions must count them all."""
    batch = pad([[5, 6, 7, 8, 9], [20, 30, 40]], PAD)
    info = [None, {1: ([0], vectors(1)), "replacing_mode": "addition"}]
    config = GenerationConfig(max_new_tokens=N_NEW, pad_token_id=PAD, eos_token_id=PAD)
    if where == "model":
        llama.generation_config = config
    args, kwargs = {
        "keyword": ((), {"pad_token_id": PAD, "eos_token_id": PAD, "max_new_tokens": N_NEW}),
        "config": ((), {"generation_config": config}),
        "config by position": ((config,), {}),
        "model": ((), {}),
    }[where]
    ours = generate_interpret(llama, batch.input_ids, *args, insert_info=info, **kwargs)
    mask = torch.ones_like(batch.input_ids)
    expected = generate_interpret(llama, batch.input_ids, *args, insert_info=info, attention_mask=mask, **kwargs)
    assert torch.equal(ours, expected)
    inferred = generate_interpret(llama, batch.input_ids, insert_info=info, max_new_tokens=N_NEW, pad_token_id=PAD,
                                  eos_token_id=96)  # fmt: skip
    assert not torch.equal(ours, inferred)


@only_old
# Stock generate warns that settings in a model's configuration still apply, but are deprecated.
@pytest.mark.filterwarnings("ignore:You have modified the pretrained model configuration:UserWarning")
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_pad_id_set_on_the_model_after_loading_is_seen(llama, side):
    batch = pad([[5, 6, 7, 8, 9], [20, 30, 40]], PAD, side=side)
    arguments = {"insert_info": INFOS, "max_new_tokens": N_NEW}
    expected = generate_interpret(llama, batch.input_ids, attention_mask=batch.attention_mask, **arguments)
    llama.config.pad_token_id = None
    llama.generation_config = GenerationConfig.from_model_config(llama.config)
    llama.config.pad_token_id = PAD
    assert torch.equal(generate_interpret(llama, batch.input_ids, **arguments), expected)


def test_a_mask_is_inferred_from_padding_ids_as_generate_does(llama):
    batch = pad([[5, 6, 7, 8, 9], [20, 30, 40]], PAD)
    ours = generate_interpret(llama, batch.input_ids, insert_info=INFOS, max_new_tokens=N_NEW)
    mask = batch.attention_mask
    expected = generate_interpret(llama, batch.input_ids, attention_mask=mask, insert_info=INFOS, max_new_tokens=N_NEW)
    assert torch.equal(ours, expected)


def test_decoding_stops_at_the_end_token_and_pads(llama):
    free = generate_interpret(llama, IDS, insert_info=INFOS, max_new_tokens=N_NEW)
    end = int(free[0, 7])
    stopped = generate_interpret(llama, IDS, insert_info=INFOS, max_new_tokens=N_NEW, eos_token_id=end)
    stop = free[0, 5:].tolist().index(end) + 6
    assert torch.equal(stopped[0, :stop], free[0, :stop])
    assert stopped[0, stop:].eq(PAD).all()


def test_hidden_states_of_the_prompt_pass_show_the_edit(family_model):
    output = generate_interpret(
        family_model,
        IDS,
        insert_info=[{2: ([3], vectors(1))}, None],
        max_new_tokens=3,
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    assert len(output.hidden_states) == 3
    assert len(output.hidden_states[0]) == L + 1
    assert torch.equal(output.hidden_states[0][2][0, 3], vectors(1)[0, 0])


@pytest.mark.parametrize("prompt", [[5, 6, 7, 8], [5]])
def test_assisted_decoding_is_greedy_decoding_under_surgery(family_model, prompt):
    assistant = sibling(family_model, seed=1)
    info = [{0: ([0], vectors(1)), 2: ([-1], vectors(1, 2)), "replacing_mode": "addition"}]
    ours = generate_interpret(
        family_model, torch.tensor([prompt]), insert_info=info, assistant_model=assistant, max_new_tokens=N_NEW
    )
    assert ours[0].tolist() == reference_greedy(family_model, prompt, info[0], N_NEW)
    assert ours[0].tolist() != reference_greedy(family_model, prompt, None, N_NEW)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            {"assistant_model": "itself", "attention_mask": torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])},
            "assisted generation of transformers 4.34.0 drops the attention mask, so padded prompts cannot "
            "be edited; pass the prompt without padding",
            marks=only_old,
        ),
        (
            {"guidance_scale": 1.5},
            "guidance_scale also runs the model on a negative prompt, which surgery would edit as if it were the "
            "prompt; leave out guidance_scale",
        ),
        (
            {"generation_config": GenerationConfig(guidance_scale=1.5)},
            "guidance_scale also runs the model on a negative prompt, which surgery would edit as if it were the "
            "prompt; leave out guidance_scale",
        ),
    ],
)
def test_a_mode_that_cannot_carry_surgery_is_refused(llama, arguments, message):
    if "assistant_model" in arguments:
        arguments = arguments | {"assistant_model": llama}
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(message)}$"):
        generate_interpret(llama, IDS, insert_info=INFOS, **arguments)
    assert hooks_on(llama) == 0


@pytest.mark.parametrize("insert_info", [None, INFOS])
def test_an_unknown_argument_is_refused_as_by_generate(llama, insert_info):
    with pytest.raises(ValueError, match=re.escape("not used by the model: ['insertinfo']")):
        generate_interpret(llama, IDS, insert_info=insert_info, insertinfo=[1])
    with pytest.raises(ValueError, match="were passed alongside input_ids which is not allowed"):
        generate_interpret(llama, IDS, insert_info=insert_info, input_ids=IDS)
    assert hooks_on(llama) == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_spec_is_refused_in_every_mode_before_anything_runs(llama, mode):
    llama.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(SpecError, match=r"^insert_info\[1\]: layer 4 does not exist; this model has layers 0 to 3$"):
        generate_interpret(llama, IDS, insert_info=[None, {4: ([0], vectors(1))}], **MODES[mode])
    llama._forward_pre_hooks.clear()


@pytest.mark.parametrize("mode", MODES)
def test_hooks_are_gone_when_decoding_breaks_off(llama, mode):
    calls = []

    def break_off(*_):
        calls.append(hooks_on(llama))
        if len(calls) == 3:
            raise RuntimeError("half-way")

    handle = llama.register_forward_pre_hook(break_off)
    with pytest.raises(RuntimeError, match="half-way"):
        generate_interpret(llama, IDS, insert_info=INFOS, max_new_tokens=N_NEW, **MODES[mode])
    handle.remove()
    assert calls[2] > 1
    assert hooks_on(llama) == 0


def test_decoding_gives_no_warning_of_its_own(llama):
    with warnings.catch_warnings(record=True) as raised:
        generate_interpret(llama, IDS, insert_info=INFOS, max_new_tokens=2)
    assert raised == []
