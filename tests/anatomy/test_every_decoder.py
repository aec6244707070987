"""All decoders that transformers has: what no row describes either works, to 1e-5, or is refused in one line.

Tiny models are made from configuration classes alone, and rows of unknown families by ``describe``. Each model that is
attached is compared with plain passes and autograd: surgery on a pass and in ``generate``, an exact trace of a hidden
state, the logit lens and an attribution.
"""

from contextlib import contextmanager

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING

from interpret import attach, attribute
from interpret.activations.cache import activation_cache
from interpret.anatomy import FAMILIES, anatomy_of
from interpret.errors import UnsupportedModelError
from interpret.probing._logit_lens import logit_lens
from interpret.sweep import Cell, Metric, run_sweep
from reference.every_decoder import every_decoder, tiny_decoder
from reference.plain_attribution import PROMPT, TARGET, TOKENIZER, embeddings_of
from reference.tiny import first

pytestmark = [
    pytest.mark.skipif("qwen3_next" not in CONFIG_MAPPING, reason="the settings are those of transformers 5"),
    pytest.mark.filterwarnings("ignore:the family .* (has no row|is described without its parts)"),
    pytest.mark.filterwarnings("ignore:If you want to use"),
]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [20, 30, 40, 50, 60, 70]])
REFUSED = {
    **dict.fromkeys(
        ("bert", "big_bird", "camembert", "data2vec-text", "ernie", "megatron-bert", "modernbert-decoder", "roberta"),
        "unembedding its last state gives a logit",
    ),
    **dict.fromkeys(
        ("roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl", "roc_bert"),
        "unembedding its last state gives a logit",
    ),
    **dict.fromkeys(
        ("electra", "rembert", "deepseek_v4", "hy_v4", "inkling2_text"), "its logits cannot be computed from"
    ),
    **dict.fromkeys(("xlm", "xlnet"), "tokens attend to later tokens"),
    "openai-gpt": "were not called with tensors",
    **dict.fromkeys(("cpmant", "prophetnet"), "layer 0 reads a state of shape"),
    "hrm_text": "its logits cannot be computed from",
    "gemma3n_text": "layer 0 reads a state of shape",
}
"""Decoders that ``attach`` refuses, and a part of the reason that it gives."""
NOT_BUILT = {
    # Models of images or sound around a decoder that is in this list itself.
    *("blt", "dots3_note", "emu3", "fuyu", "gemma3", "gemma3n", "gemma4", "gemma4_assistant", "gemma4_unified"),
    *("gemma4_unified_assistant", "git", "got_ocr2", "llama4", "mllama", "moss_transcribe_diarize", "musicgen"),
    *("musicgen_melody", "phi4_multimodal", "qwen3_5", "qwen3_5_moe", "qwen4_exp"),
    # Settings that have to agree with each other in ways of their own.
    *("cohere_compass_text", "dots3_note_text", "kimi_linear", "longcat_flash", "qwen4_exp_text", "reformer", "xmod"),
    *("zamba", "xlstm"),
}
"""Decoders that these settings do not make small, or that cannot run then."""
NO_CACHE = ("rwkv",)
"""Decoders whose ``generate`` loses the cache, which is refused."""


BY_IDS = ("gemma4_text",)
"""Decoders whose layers also read the ids of tokens, so that what needs other embeddings than theirs is refused."""


@contextmanager
def rows_restored():
    known = dict(FAMILIES)
    try:
        yield
    finally:
        FAMILIES.clear()
        FAMILIES.update(known)


@contextmanager
def rewritten(module, rewrite, *, before=False):
    """Let a function rewrite what a layer reads, or writes, in passes over more than one token."""

    def on_input(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[1] == 1:
            return None
        hidden = rewrite(hidden.clone())
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def on_output(module, args, output):
        hidden = rewrite(first(output).clone())
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    if before:
        handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()


def assert_near(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(name, marks=pytest.mark.further) for name in every_decoder() if name not in NOT_BUILT],
)
def test_a_decoder_works_or_is_refused(model_type):
    with rows_restored():
        model = tiny_decoder(model_type)
        if model_type in REFUSED:
            with pytest.raises(UnsupportedModelError, match=REFUSED[model_type]) as error:
                attach(model)
            assert "\n" not in str(error.value)
            assert "shows how to write the row yourself" in str(error.value)
            return
        attach(model)
        layer = len(anatomy_of(model).layers) // 2
        check_surgery(model, layer)
        check_lens(model)
        if model_type in BY_IDS:
            for check in (check_trace, check_attribution):
                with pytest.raises(UnsupportedModelError, match="its logits cannot be computed from word embeddings"):
                    check(model, layer)
            return
        check_trace(model, layer)
        check_attribution(model, layer)


@torch.no_grad()
def check_surgery(model, layer):
    vector = torch.randn(1, 1, anatomy_of(model).width, generator=torch.Generator().manual_seed(1))
    block, info = anatomy_of(model).layers[layer], [{layer: ([1], vector)}, None]

    def put(hidden):
        hidden[0, 1] = vector[0, 0]
        return hidden

    writing = {"max_new_tokens": 4, "do_sample": False}
    with rewritten(block, put, before=True):
        expected = model(IDS, use_cache=False).logits
        written = model.generate(IDS, use_cache=False, **writing)
    assert_near(model.forward_interpret(IDS, insert_info=info).logits, expected)
    assert torch.equal(model.generate_interpret(IDS, insert_info=info, use_cache=False, **writing), written)
    if model.config.model_type in NO_CACHE:
        with pytest.raises(UnsupportedModelError, match="generate with a cache does not continue texts of 6 tokens"):
            model.generate_interpret(IDS, insert_info=info, **writing)
        return
    assert torch.equal(model.generate_interpret(IDS, insert_info=info, **writing), written)


@torch.no_grad()
def check_trace(model, layer):
    donor, block, kept = embeddings_of(model, IDS[0].tolist()), anatomy_of(model).layers[layer], []
    base = donor + 0.5 * torch.randn(donor.shape, generator=torch.Generator().manual_seed(2))
    cell = Cell("resid_post", 2, layer, layer + 1)
    found = run_sweep(model, base, donor, [cell], {"p": Metric("probability", (5,))}).values["p"][0]

    def keep(hidden):
        kept.append(hidden)
        return hidden

    def restore(hidden):
        hidden[:, 2] = kept[0][:, 2]
        return hidden

    with rewritten(block, keep):
        model(inputs_embeds=donor.clone(), use_cache=False)
    with rewritten(block, restore):
        expected = model(inputs_embeds=base.clone(), use_cache=False).logits[:, -1].double().softmax(-1)[:, 5]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def check_lens(model):
    lens = logit_lens(model, activation_cache(model, None, IDS.tolist()), [3, 7, 50], top=0)
    last = lens[lens.layer == lens.layer.max()].set_index(["prompt", "token_id"]).logit
    with torch.no_grad():
        logits = model(IDS, use_cache=False).logits[:, -1].float()
    for (prompt, token), logit in last.items():
        assert logit == pytest.approx(logits[prompt, token].item(), abs=1e-5 * float(logits.abs().max()))


def check_attribution(model, layer):
    (one,) = attribute(model, TOKENIZER, PROMPT, TARGET, method="saliency").sequences
    x = embeddings_of(model, one.token_ids[: one.start]).requires_grad_()
    value = model(inputs_embeds=x.clone(), use_cache=False).logits[0, -1].softmax(-1)[one.token_ids[one.start]]
    (expected,) = torch.autograd.grad(value, x)
    # Zamba2 reads the embeddings again in later layers: in float32, its derivatives are exact to about 1.5e-5.
    tolerance = 3e-5 if model.config.model_type == "zamba2" else 1e-5
    assert_near(torch.tensor(one.scores[: one.start, 0]), expected[0], tolerance)


def test_the_list_is_that_of_the_release():
    assert {*REFUSED, *NOT_BUILT, *NO_CACHE} <= set(every_decoder()) or transformers.__version__ != "5.24.0"
