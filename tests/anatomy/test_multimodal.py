"""Multimodal models: their text part gives the numbers of a text-only model with the same weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from interpret import attach, load
from interpret.anatomy import base_of, check_logits, reporting_attention, text_config, text_configs
from interpret.errors import UnsupportedModelError
from interpret.models import model_identity
from interpret.probing import ablated_heads, attention_patterns, deleted_layers, induction_scores
from interpret.surgery.generation import generate_interpret
from reference.agreement import (
    IDS,
    attributed,
    compared,
    controlled,
    interpreted,
    knocked_out,
    lens,
    screened,
    shares,
    traced,
    units,
)
from reference.kinds import MORE_KINDS
from reference.tiny import hooks_on, tiny_model, wide_model
from reference.toy_tokenizers import save_words

KIND = "gemma3_multimodal"
pytestmark = pytest.mark.skipif(KIND not in MORE_KINDS, reason="not part of this release of transformers")
MULTIMODAL = [kind for kind, row in MORE_KINDS.items() if "text_config" in row.shape]


def text_only(model: Any) -> Any:
    """A Gemma 3 that reads only text, with the weights of a multimodal one."""
    alone = transformers.Gemma3ForCausalLM(model.config.text_config)
    alone.model.load_state_dict(model.model.language_model.state_dict())
    alone.lm_head.load_state_dict(model.lm_head.state_dict())
    return alone.eval()


FIGURES: dict[str, Callable[[Any], Any]] = {
    "attribution": lambda model: np.nan_to_num(np.array(attributed(model).scores, dtype=float)),
    "logit lens": lambda model: lens(model).logit,
    "logit attribution": lambda model: shares(model).logit,
    "trace": lambda model: traced(model).scores,
    "screened trace": lambda model: screened(model)["mlp_severed"].result.scores,
    "knockout": lambda model: knocked_out(model).effects["probability"],
    "heads": lambda model: units(model, "heads").effects,
    "neurons": lambda model: units(model, "neurons").effects,
    "comparison of methods": lambda model: compared(model).to_frame().select_dtypes("number").to_numpy(),
    "interpretation": lambda model: interpreted(model)[1].interpretation_prob,
    "attention": lambda model: attention_patterns(model, torch.tensor([IDS]))[2],
    "induction": lambda model: induction_scores(model, n_sequences=2, n_tokens=5),
}


@pytest.mark.parametrize("analysis", FIGURES)
def test_figures_are_those_of_the_text_only_model(analysis: str) -> None:
    model, figures = wide_model(KIND), FIGURES[analysis]
    np.testing.assert_allclose(figures(model), figures(text_only(model)), rtol=1e-5, atol=1e-8)


@torch.no_grad()
@pytest.mark.parametrize(("edit", "what"), [(ablated_heads, [(1, 0)]), (deleted_layers, [1])])
def test_edits_are_those_of_the_text_only_model(edit: Callable[..., Any], what: Any) -> None:
    model, ids = tiny_model(KIND), torch.tensor([[5, 6, 7]])
    alone, plain = text_only(model), model(ids).logits
    with edit(model, what), edit(alone, what):
        torch.testing.assert_close(model(ids).logits, alone(ids).logits)
        assert not torch.allclose(model(ids).logits, plain, atol=1e-2)
        found = model.generate(ids, max_new_tokens=4, do_sample=False)
        assert torch.equal(found, alone.generate(ids, max_new_tokens=4, do_sample=False))
    assert torch.equal(model(ids).logits, plain)
    assert hooks_on(model) == 0


def test_attention_is_reported_by_the_text_part_alone() -> None:
    model = tiny_model(KIND)
    configs = (model.config, model.config.text_config, model.config.vision_config, text_config(model))
    before = [config._attn_implementation for config in configs]
    with reporting_attention(model):
        assert text_config(model)._attn_implementation == "eager"
        assert model.config.vision_config._attn_implementation == before[2]
    assert [config._attn_implementation for config in configs] == before


def test_control_trains_the_text_part() -> None:
    controlled(wide_model(KIND))


@pytest.mark.parametrize("kind", MULTIMODAL)
def test_the_text_part_is_found(kind: str) -> None:
    model = tiny_model(kind)
    assert text_config(model) is base_of(model).config
    kinds = {config.model_type for config in text_configs(model)}
    assert kinds == {model.config.model_type, text_config(model).model_type}
    assert base_of(base_of(model)) is base_of(model)
    check_logits(model)


@torch.no_grad()
def test_a_prompt_of_surgery_may_have_an_image() -> None:
    model = attach(tiny_model(KIND))
    image = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[5, 95, 94, 94, 94, 94, 96, 7]])
    prompt = {"input_ids": ids, "pixel_values": image, "token_type_ids": (ids == 94).long()}
    info = [{2: ([-1], torch.ones(1, 1, 32))}]
    plain, edited = (model.forward_interpret(**prompt, insert_info=edit) for edit in (None, info))
    assert not torch.allclose(plain.logits[0, -1], edited.logits[0, -1], atol=1e-2)
    torch.testing.assert_close(plain.logits[0, :-1], edited.logits[0, :-1])
    written = generate_interpret(
        model, **prompt, attention_mask=torch.ones_like(ids), insert_info=info, max_new_tokens=1, do_sample=False
    )
    assert written[0, -1] == edited.logits[0, -1].argmax()


def test_a_setting_that_the_text_part_ignores_is_refused() -> None:
    model = tiny_model(KIND)
    model.config.text_config.final_logit_softcapping = 0.5  # Gemma 3 has none
    with pytest.raises(UnsupportedModelError, match=r"'gemma3_text'\): .* has final_logit_softcapping=0.5"):
        check_logits(model)


@pytest.mark.parametrize("kind", MULTIMODAL)
def test_a_folder_opens_with_all_its_parts(kind: str, tmp_path: Path) -> None:
    wanted = tiny_model(kind)
    wanted.save_pretrained(tmp_path)
    save_words(tmp_path, eos_token="<end>")
    model, _ = load(tmp_path, device="cpu")
    assert type(model) is type(wanted)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(model(ids).logits, wanted(ids).logits)
    assert model_identity(model)["model"] == str(tmp_path)
