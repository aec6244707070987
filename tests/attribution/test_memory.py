"""Passes that do not fit in memory are retried with less memory, and give the same scores."""

import copy
import threading
import weakref
from contextlib import contextmanager
from functools import cache, partial

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from interpret.anatomy import anatomy_of, check_logits
from interpret.anatomy.passes import checkpointed
from interpret.attribution._attribute import attribute
from interpret.attribution.methods.gradients import deeplift, saliency
from interpret.attribution.methods.registry import METHODS
from interpret.attribution.steps import derivatives
from interpret.attribution.steps.functions import mc_dropout_mean, probability
from interpret.attribution.steps.step import Room, Step
from interpret.errors import InputError
from interpret.models.quantize import quantize_
from reference.kinds import D, L
from reference.plain_attribution import PROMPT, TARGET, TOKENIZER, ids_of, wide_model
from reference.toy_seq2seq import toy_seq2seq

GRADIENTS = [name for name, method in METHODS.items() if method.gradients]
POINTS = {
    "integrated_gradients": {"n_steps": 8},
    "sequential_integrated_gradients": {"n_steps": 2},
    "gradient_shap": {"n_samples": 8},
    # Later activations of its layer depend on it.
    "layer_integrated_gradients": {"n_steps": 8, "layers": ["attn_out.1"]},
}
"""Options of methods that take several points."""


class Memory:
    """Simulates a small device: counts the bytes autograd saves, except weights, and refuses beyond a limit."""

    def __init__(self, model, limit=None):
        self.limit, self.now, self.peak, self.refusals = limit, 0, 0, 0
        self._weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def _pack(self, tensor):
        class Kept:
            pass

        size = 0 if tensor.untyped_storage().data_ptr() in self._weights else tensor.nbytes
        if self.limit is not None and self.now + size > self.limit:
            self.refusals += 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        kept = Kept()
        kept.tensor = tensor.detach()  # with its graph it would reference itself
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(kept, self._free, size)
        return kept

    def _free(self, n_bytes):
        self.now -= n_bytes

    def __enter__(self):
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error):
        self._hooks.__exit__(*error)


@cache
def hooked_model(kind):
    """A model that only autograd can differentiate, because of a hook; its memory is what ``Memory`` counts."""
    model = copy.deepcopy(wide_model(kind))
    anatomy = anatomy_of(model)
    anatomy.layers[0].get_submodule(anatomy.family.mlp_last).register_forward_hook(lambda *event: None)
    return model


def attributed(model, method, limit=None, **options):
    options |= POINTS.get(method, {})
    with Memory(model, limit) as memory:
        found = attribute(model, TOKENIZER, PROMPT, TARGET, method=method, **options)
    return found.sequences[0], memory


def assert_same(found, expected):
    for key, values in expected.parts().items():
        largest = np.nanmax(np.abs(values))
        np.testing.assert_allclose(found.parts()[key], values, rtol=0, atol=2e-5 * largest, err_msg=str(key))


@pytest.mark.matrix
@pytest.mark.parametrize("method", GRADIENTS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_does_not_fit_is_done_with_less_to_keep(kind, method):
    model = hooked_model(kind)
    expected, plain = attributed(model, method)
    _, single = attributed(model, method, batch_size=1)
    for limit in {plain.peak - 1, single.peak * 2 // 3}:
        found, memory = attributed(model, method, limit)
        assert memory.refusals
        assert memory.peak <= limit
        assert memory.now == 0
        assert_same(found, expected)
    assert not any("forward" in vars(layer) for layer in anatomy_of(model).layers)


def test_rows_are_halved_until_they_fit_and_stay_so():
    model, rows = hooked_model("llama"), []
    _, single = attributed(model, "gradient_shap", batch_size=1)

    def count(module, args, kwargs):
        if kwargs.get("inputs_embeds") is not None:
            rows.append(len(kwargs["inputs_embeds"]))

    handle = model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    check_logits(model)  # its passes are not counted
    rows.clear()
    attributed(model, "gradient_shap", single.peak * 5 // 2, batch_size=8)
    handle.remove()
    # The step scores; one token, when the model's parts are looked for; and the 8 points, which fit two at a time.
    assert rows == [1, 1, 8, 4, 2, 2, 2, 2]


@pytest.mark.parametrize(("most", "refused"), [(8, []), (3, [8, 4]), (0, [8, 4, 2, 1])])
@pytest.mark.parametrize("method", ["integrated_gradients", "gradient_shap"])
def test_points_that_are_taken_back_are_halved_until_they_fit(method, most, refused, monkeypatch):
    """If not even one does, autograd does it, and runs layers again."""
    model, rows = wide_model("llama"), []
    expected, _ = attributed(model, method)
    gradients = derivatives.WayBack.gradients

    def refusing_many(way, steps, points, rule):
        if len(points) > most:
            rows.append(len(points))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return gradients(way, steps, points, rule)

    monkeypatch.setattr(derivatives.WayBack, "gradients", refusing_many)
    found, _ = attributed(model, method)
    assert rows == refused
    assert_same(found, expected)


@pytest.mark.parametrize("kind", ["m2m100", "t5"])
def test_encoder_decoders_are_done_with_less_to_keep(kind):
    toy = toy_seq2seq(kind)

    def scored(limit=None):
        with Memory(toy.model, limit) as memory:
            found = attribute(toy.model, toy.tokenizer, "I love pizza", "hello cheese", **toy.languages)
        return found.sequences[0], memory

    expected, plain = scored()
    found, memory = scored(plain.peak * 2 // 3)
    assert memory.refusals == 1, "the other steps know"
    assert_same(found, expected)


def step_of(model, function=probability, room=None):
    ids = ids_of(TARGET)
    return Step(model, TOKENIZER, tuple(ids[:-1]), ids[-1], None, function, 4, room or Room())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj", "opt", "opt_post_norm", "gpt_neox"])
def test_layers_that_are_run_again_keep_only_what_enters_them(kind):
    model = hooked_model(kind)
    step = step_of(model, room=Room(checkpointing=True))
    with Memory(model) as memory:
        (found,) = saliency([step])
    with Memory(model) as plain:
        (expected,) = saliency([step_of(model)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    entering = L * len(step.ids) * D * 4
    outside = memory.peak - entering
    assert plain.peak - outside > 8 * entering


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_layers_can_be_run_again(bits):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=450, n_embd=64, n_layer=2, n_head=4, n_positions=32, initializer_range=0.1)
    model = quantize_(GPT2LMHeadModel(config).eval(), bits)
    expected, found = (saliency([step_of(model, room=Room(checkpointing=again))])[0] for again in (False, True))
    torch.testing.assert_close(found, expected)


def test_dropout_is_the_same_when_layers_are_run_again():
    dropping = copy.deepcopy(wide_model("gpt2"))
    dropping.transformer.h[1].mlp.dropout.p = 0.3
    dropping.eval()
    function = partial(mc_dropout_mean, n_mcd_steps=3, seed=5)
    expected = saliency([step_of(dropping, function)])[0]
    found = saliency([step_of(dropping, function, Room(checkpointing=True))])[0]
    torch.testing.assert_close(found, expected)
    assert not any(module.training for module in dropping.modules())


def test_layers_are_run_again_with_the_hooks_of_their_pass_in_a_thread_of_autograds(monkeypatch):
    """On a GPU the backward pass runs in another thread, in which hooks of this thread do nothing."""
    expected = deeplift([step_of(hooked_model("llama"))])
    own = torch.autograd.grad

    def elsewhere(*args, **options):
        found = []
        thread = threading.Thread(target=lambda: found.append(own(*args, **options)))
        thread.start()
        thread.join()
        return found[0]

    monkeypatch.setattr(torch.autograd, "grad", elsewhere)
    found = deeplift([step_of(hooked_model("llama"), room=Room(checkpointing=True))])
    torch.testing.assert_close(found, expected)


def test_another_threads_pass_is_left_alone(llama):
    ids, kept = torch.tensor([[5, 6, 7]]), []

    def other():
        with Memory(llama) as memory:
            llama(ids)
        kept.append(memory.peak)

    other()
    with checkpointed(anatomy_of(llama).layers):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        other()
    assert kept[0] == kept[1] > kept[2]


def test_a_forward_of_the_layers_own_is_put_back_after_an_exception(llama):
    first, second = anatomy_of(llama).layers[:2]
    own = first.forward = partial(type(first).forward, first)  # as accelerate does
    changed = checkpointed([first, second, first])
    changed.__enter__()
    assert first.forward is not own
    assert "forward" in vars(second)
    assert not changed.__exit__(ValueError, ValueError(), None)
    assert vars(first)["forward"] is own
    assert "forward" not in vars(second)
    del first.forward


@contextmanager
def refusing(module, too_much):
    """Let a module raise an out-of-memory error for more than some number of tokens."""

    def refuse(module, args):
        tokens = args[0].shape[:-1].numel()
        if tokens > too_much:
            refused.append(tokens)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    refused = []
    handle = module.register_forward_pre_hook(refuse)
    yield refused
    handle.remove()


@pytest.mark.parametrize("method", ["occlusion", "lime"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_masked_texts_are_halved(kind, method):
    model = wide_model(kind)
    expected, _ = attributed(model, method, batch_size=50)
    anatomy = anatomy_of(model)
    activation = anatomy.layers[1].get_submodule(anatomy.family.parts.activation)
    with refusing(activation, 2 * len(ids_of(TARGET))) as refused:
        found, _ = attributed(model, method, batch_size=50)
    assert refused
    assert_same(found, expected)


def test_texts_are_written_in_batches_that_fit():
    model = wide_model("gpt2")
    prompts = [PROMPT, "I love", f"{PROMPT} the"]
    expected = attribute(model, TOKENIZER, prompts, max_new_tokens=2, batch_size=3)
    with refusing(anatomy_of(model).layers[1].mlp, 2 * len(ids_of(PROMPT))) as refused:
        found = attribute(model, TOKENIZER, prompts, max_new_tokens=2, batch_size=3)
    assert refused
    assert [one.token_ids for one in found.sequences] == [one.token_ids for one in expected.sequences]


@pytest.mark.parametrize("method", ["saliency", "layer_gradient_x_activation"])
def test_a_text_that_does_not_fit_at_all_is_an_error(method):
    message = (
        f"^a text of {len(ids_of(TARGET))} tokens does not fit in memory, even one pass at a time: "
        "shorten it, use a smaller dtype, or use another device$"
    )
    with pytest.raises(InputError, match=message):
        attributed(hooked_model("llama"), method, limit=100)
