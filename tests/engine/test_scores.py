"""Attention in half precision: scores are rounded where the model's own attention rounds them, and only there."""

import pytest
import torch

from interpret.anatomy.agreement import check_scores
from interpret.engine.recording import record_run
from interpret.engine.trunk import trunk_of
from reference.kinds import KINDS
from reference.tiny import tiny_model

pytestmark = pytest.mark.skipif("qwen2" not in KINDS, reason="this release has no Qwen 2")
HALF = [torch.bfloat16, torch.float16]
IMPLEMENTATIONS = ["eager", "sdpa"]


def with_large_scores(implementation):
    """Return a Qwen 2 whose biases make scores large and nearly the same for all tokens, as in Qwen 2.5."""
    model = tiny_model("qwen2")
    if implementation != getattr(model.config, "_attn_implementation", "eager"):
        model.set_attn_implementation(implementation)
    width = model.config.hidden_size // model.config.num_attention_heads
    slowest = width // 2 - 1  # the feature that turns least from token to token
    with torch.no_grad():
        for block in model.model.layers:
            for projection, size in ((block.self_attn.q_proj, 20), (block.self_attn.k_proj, 200)):
                projection.bias.view(-1, width)[:, slowest] += size
    return model


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_large_scores_are_rounded_as_the_model_rounds_them(implementation, dtype):
    model = with_large_scores(implementation).to(dtype)
    check_scores(model)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    trunk, embeddings = trunk_of(model, ids.shape[1]), model.get_input_embeddings()(ids)
    last = record_run(trunk.layers, trunk.enter(embeddings), ()).states[-1]
    ours, own = (logits.float().flatten(0, -2) for logits in (trunk.logits(last), model(ids).logits))
    assert (ours - own).norm() < 0.02 * (own - own.mean()).norm()
