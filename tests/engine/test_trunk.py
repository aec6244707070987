"""The parts of a model: the input of its layers at any column, and the logits after them."""

import pytest
import torch

from interpret.anatomy import anatomy_of, layer_input
from interpret.engine.recording import record_run
from interpret.engine.trunk import check_trunk, trunk_of
from interpret.errors import UnsupportedModelError
from reference.kinds import KINDS
from reference.tiny import hooks_on, tiny_model

IDS = torch.tensor([[5, 3, 9, 7, 2], [1, 1, 4, 6, 8]])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_enters_layer_0_is_what_a_full_pass_sends_there(kind):
    model, seen = tiny_model(kind), []
    hook = (
        anatomy_of(model)
        .layers[0]
        .register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(layer_input(args, kwargs)), with_kwargs=True
        )
    )
    model(IDS)
    hook.remove()
    trunk = trunk_of(model, 5)
    assert torch.equal(trunk.enter(trunk.embed(IDS)), seen[0])
    assert torch.allclose(trunk.enter(trunk.embed(IDS[:, 3:]), 3), seen[0][:, 3:])
    assert hooks_on(model) == 0


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_layers_run_part_by_part_give_the_models_logits(kind):
    model = tiny_model(kind)
    trunk = trunk_of(model, 5)
    embeddings = trunk.embed(IDS)
    last = record_run(trunk.layers, trunk.enter(embeddings), ()).states[-1]
    assert torch.allclose(trunk.logits(last), model(IDS).logits, atol=1e-4)
    assert trunk.n_logits == model.config.vocab_size
    check_trunk(model, trunk, embeddings, last)
    with pytest.raises(UnsupportedModelError, match="does not compute what other"):
        check_trunk(model, trunk, embeddings, last + 0.1 * last.roll(1, -1))


@torch.no_grad()
def test_half_precision_logits_are_float32():
    trunk = trunk_of(tiny_model("llama").to(torch.bfloat16), 5)
    assert trunk.logits(torch.ones(1, 32, dtype=torch.bfloat16)).dtype == torch.float32
