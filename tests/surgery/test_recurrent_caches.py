"""Surgery on models whose caches hold recurrent states, which count no columns, and which may read padding."""

import pytest
import torch
import transformers

from interpret.activations.edits import editing
from interpret.anatomy import batches, cache_difference, check_padding, reads_padding
from interpret.engine.greedy import write_after
from interpret.errors import InputError, SpecError, UnsupportedModelError
from interpret.surgery.generation import forward_interpret, generate_interpret
from reference.families import WITHOUT_CACHE
from reference.kinds import ATTENDING, MORE_KINDS, READ_PADDING, D
from reference.overlay import edited_model, reference_greedy
from reference.tiny import tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9], [20, 30, 40, 50, 60]])
MODES = {
    "greedy": {},
    "greedy, no cache": {"use_cache": False},
    "sampling three": {"do_sample": True, "top_k": 0, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "beam sampling": {"num_beams": 3, "do_sample": True},
}
INFOS = [
    {0: ([0, 1], torch.full((1, 2, D), 2.0)), 2: ([-1], torch.full((1, 1, D), -1.0)), "overlay_strength": 0.75},
    {1: ([0, -1], torch.full((1, 2, D), 1.5)), "replacing_mode": "addition"},
]
BUILT = [kind for kind in ATTENDING if kind in MORE_KINDS]
SOME = [kind for kind in ("mamba", "mamba2", "jamba", "lfm2") if kind in MORE_KINDS]
SHORT_TEXTS_LOST = {"recurrent_gemma": [True, False]}
if transformers.__version__.startswith("4."):
    SHORT_TEXTS_LOST = {"mamba": [True, True], "falcon_mamba": [True, True], "lfm2": [True, False]}
"""Whether generating by a cache loses texts of one token, and of two; other kinds lose neither."""
READING = [kind for kind in READ_PADDING if kind in MORE_KINDS]


def seeded(function, *args, **options):
    torch.manual_seed(7)
    return function(*args, max_new_tokens=6, **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", SOME)
def test_each_mode_decodes_the_edited_model(kind, mode):
    model = tiny_model(kind)
    with edited_model(model, INFOS, IDS.shape[1]):
        expected = seeded(model.generate, IDS, **MODES[mode])
    ours = seeded(generate_interpret, model, IDS, insert_info=INFOS, **MODES[mode])
    assert torch.equal(ours, expected)
    assert not torch.equal(ours, seeded(model.generate, IDS, **MODES[mode]))


@pytest.mark.parametrize("kind", [kind for kind in ("mamba", "falcon_mamba") if kind in MORE_KINDS])
@torch.no_grad()
def test_a_text_cannot_be_edited_from_the_middle_of_a_cache_that_does_not_count(kind):
    model = tiny_model(kind)
    cache = model(IDS[:, :3], use_cache=True).cache_params
    with pytest.raises(SpecError, match="it holds the states of recurrent layers, which do not tell how many tokens"):
        forward_interpret(model, IDS[:, 3:], cache_params=cache, insert_info=INFOS)


@pytest.mark.parametrize("kind", [kind for kind in ("jamba", "lfm2") if kind in MORE_KINDS])
@torch.no_grad()
def test_a_text_is_edited_from_the_middle_of_a_cache_that_counts(kind):
    model = tiny_model(kind)
    info = [{1: ([3], torch.full((1, 1, D), 2.0))}, None]
    whole = forward_interpret(model, IDS, insert_info=info).logits
    cache = model(IDS[:, :3], use_cache=True).past_key_values
    rest = forward_interpret(model, IDS[:, 3:4], past_key_values=cache, insert_info=info).logits
    torch.testing.assert_close(rest, whole[:, 3:4], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in ("jamba", "lfm2_moe") if kind in MORE_KINDS])
@torch.no_grad()
def test_edits_of_neurons_know_the_columns_of_passes_after_the_first(kind):
    model, starts = tiny_model(kind), []

    def note(value, start):
        starts.append((start, value.shape[1]))
        return value.clone()

    with editing(model, {(0, "neurons"): note}):
        model.generate(IDS, max_new_tokens=3, do_sample=False)
    assert starts == [(0, 5), (5, 1), (6, 1)]


@pytest.mark.parametrize("kind", BUILT)
def test_caches_continue_texts_as_whole_passes_do(kind):
    model = tiny_model(kind)
    if (kind, transformers.__version__) in WITHOUT_CACHE:
        assert cache_difference(model, 4) is not None
        return
    assert cache_difference(model, 4) is None
    lost = [cache_difference(model, n_tokens) is not None for n_tokens in (1, 2)]
    assert lost == SHORT_TEXTS_LOST.get(kind, [False, False])


@pytest.mark.parametrize("kind", BUILT)
@torch.no_grad()
def test_a_text_is_written_in_a_batch_as_alone(kind):
    model, rows = tiny_model(kind), [[5, 6, 7], [20, 30, 40, 50, 60], [9], [11, 12, 13]]
    together = [one.ids for one in write_after(model, rows, 4)]
    assert together == [reference_greedy(model, row, None, 4)[len(row) :] for row in rows]
    assert (reads_padding(model) is not None) == (kind in READ_PADDING)


@pytest.mark.parametrize("kind", READING)
def test_texts_of_unequal_length_are_apart_where_layers_read_padding(kind):
    model = tiny_model(kind)
    assert list(batches(model, [3, 3, 5, 3], 8, new_tokens=2)) == [slice(0, 2), slice(2, 3), slice(3, 4)]
    assert list(batches(model, [3, 3, 5, 3], 8)) == [slice(0, 4)]  # padded on the right
    check_padding(model, torch.tensor([[1, 1, 0], [1, 1, 1]]))
    for mask in ([[1, 1, 1], [0, 1, 1]], [[1, 1, 1], [1, 0, 1]]):
        with pytest.raises(InputError, match=r"^sample 1 is padded on the left, which changes what \w+ computes"):
            check_padding(model, torch.tensor(mask))


@pytest.mark.parametrize("kind", [kind for kind in ("mamba",) if kind in MORE_KINDS])
def test_a_cache_that_is_lost_is_found_and_refused(kind, monkeypatch):
    """As with RWKV in transformers 5, whose state ``generate`` drops."""
    model = tiny_model(kind)
    prepare = type(model).prepare_inputs_for_generation

    def without_cache(self, input_ids, attention_mask=None, **options):
        prepared = prepare(self, input_ids, attention_mask=attention_mask, **options)
        # Its name is `cache` since transformers 5.24.
        return {name: None if name in ("cache", "cache_params") else value for name, value in prepared.items()}

    monkeypatch.setattr(type(model), "prepare_inputs_for_generation", without_cache)
    with pytest.raises(
        UnsupportedModelError, match=r"^MambaForCausalLM: generate with a cache does not continue texts"
    ):
        generate_interpret(model, IDS, insert_info=INFOS, max_new_tokens=2)
    (one,) = write_after(model, [[5, 6, 7]], 4)
    assert one.ids == reference_greedy(model, [5, 6, 7], None, 4)[3:]
