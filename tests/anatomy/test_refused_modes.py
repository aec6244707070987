"""Foreign wrappers, compiled parts, modules in training mode, and texts beyond a longrope limit are refused by name."""

import re

import pytest
import torch
from torch import nn

from interpret import attach, interpretation_prompt, interpretations, plan_sources
from interpret.anatomy import check_evaluating
from interpret.errors import InputError, UnsupportedModelError
from interpret.prompts.prompts import Prompt
from interpret.selfie import Settings
from reference.agreement import LOGITS, attributed, controlled, interpreted, recorded, screened, traced
from reference.kinds import ALL_KINDS, KINDS
from reference.plain_attribution import TOKENIZER
from reference.tiny import wide_model
from reference.unlisted import built


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("analysis", [*LOGITS, recorded, controlled, attach])
def test_a_wrapper_is_refused_and_the_message_says_what_to_pass(analysis):
    message = "DataParallel is a wrapper around a model; pass the model itself: model.module"
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(message)}"):
        analysis(nn.DataParallel(wide_model("llama")))


def in_place(layer):
    layer.compile(backend="eager")


def by_its_forward(layer):
    layer.forward = torch.compile(layer.forward, backend="eager")


def of_its_attention(layer):
    layer.self_attn = torch.compile(layer.self_attn, backend="eager")


@pytest.mark.parametrize("compiled", [in_place, by_its_forward, of_its_attention])
@pytest.mark.parametrize("analysis", [attributed, recorded, attach])
def test_compiled_parts_are_refused(analysis, compiled):
    model = wide_model("llama")
    compiled(model.model.layers[1])
    with pytest.raises(UnsupportedModelError, match=r"^LlamaForCausalLM: it, or a part of it, was compiled in place"):
        analysis(model)


@pytest.mark.parametrize("analysis", [attributed, interpreted, traced, screened])
def test_one_module_in_training_mode_is_named(analysis):
    model = wide_model("gpt2")
    model.transformer.h[1].attn.resid_dropout = nn.Dropout(0.5)
    message = "the module 'transformer.h.1.attn.resid_dropout' is in training mode, in which dropout makes every run"
    with pytest.raises(InputError, match=f"^{message}"):
        analysis(model)
    model.eval()
    analysis(model)


def test_a_module_in_training_mode_without_dropout_is_no_problem(llama):
    llama.model.embed_tokens.train()
    check_evaluating(llama)
    llama.eval()


def test_longrope_is_named_where_the_text_grows_past_its_limit():
    if "phi3" not in KINDS:
        pytest.skip("not part of this release of transformers")
    kind = ALL_KINDS["phi3"]
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10000.0}
    shape = kind.shape | {"vocab_size": 450, "original_max_position_embeddings": 8, "rope_scaling": factors}
    model = built(kind.model, kind.config, shape | {"sliding_window": None})
    template = interpretation_prompt(TOKENIZER, "hello{slots} city")
    sources = plan_sources(model, TOKENIZER, [Prompt("one", "a b", raw=True)], layers="1", tokens="0")
    grows = 9 - len(template.ids)
    list(interpretations(model, TOKENIZER, sources, [template], Settings(new_tokens=grows - 1, prompt_output_tokens=1)))
    with pytest.raises(
        InputError, match=r"has \d+ tokens; with \d+ new tokens it grows beyond 8, where .* \(longrope\)"
    ):
        list(interpretations(model, TOKENIZER, sources, [template], Settings(new_tokens=grows, prompt_output_tokens=1)))
