import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from interpret.errors import InputError
from interpret.records import TraceCell
from interpret.storage import read_run
from interpret.tracing.knowledge_tracing import HookNames, check_module_names
from reference.commands import FACT_PROMPTS, answering, fact_rows, json_file, run, saved_model
from reference.kinds import KINDS
from reference.tiny import tiny_model

LLAMA = HookNames(
    clean_replace="model.layers.[LAYER_NUM]",
    attn_sever="model.layers.[LAYER_NUM].self_attn",
    mlp_sever="model.layers.[LAYER_NUM].mlp",
    corrupt="model.embed_tokens",
    clean_save=("model.layers.[LAYER_NUM]", "model.layers.3.mlp.up_proj", "lm_head"),
    corrupted_save=("model.layers.[LAYER_NUM].mlp",),
)


def at(layers, attention, mlp, embedding):
    layer = f"{layers}.[LAYER_NUM]"
    return HookNames(layer, f"{layer}.{attention}", f"{layer}.{mlp}", embedding)


OPT = at("model.decoder.layers", "self_attn", "fc2", "model.decoder.embed_tokens")
NEOX = at("gpt_neox.layers", "attention", "mlp", "gpt_neox.embed_in")
AFTER = at("model.layers", "post_attention_layernorm", "post_feedforward_layernorm", "model.embed_tokens")
NAMES = {
    **dict.fromkeys(
        ("llama", "llama3", "mistral", "qwen2", "qwen3", "granite", "cohere", "cohere_normed_heads"), LLAMA
    ),
    "phi3": at("model.layers", "self_attn", "mlp", "model.embed_tokens"),
    # In these, attention and MLP outputs pass a norm before they are added to the residual stream.
    **dict.fromkeys(("gemma2", "gemma3", "olmo2"), AFTER),
    "gpt2": at("transformer.h", "attn", "mlp", "transformer.wte"),
    "gptj": at("transformer.h", "attn", "mlp", "transformer.wte"),
    "gpt_neox": NEOX,
    "gpt_neox_sequential": NEOX,
    "opt": OPT,
    "opt_post_norm": OPT,
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_names_of_each_familys_modules_are_accepted(kind):
    check_module_names(tiny_model(kind), NAMES[kind])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"clean_replace": "model.layer.[LAYER_NUM]"},
            "hook_layer.clean_replace: 'model.layer.[LAYER_NUM]' is not a module of LlamaForCausalLM; similar names: "
            "'model.layers.[LAYER_NUM]', 'model.layers.[LAYER_NUM].mlp', 'model.layers.[LAYER_NUM].self_attn'",
        ),
        (
            {"corrupted_save": ("lm_head", "head")},
            "hook_layer.corrupted_save[1]: 'head' is not a module of LlamaForCausalLM; similar names: 'lm_head'",
        ),
        (
            {"clean_save": ("0123456789",)},
            "hook_layer.clean_save[0]: '0123456789' is not a module of LlamaForCausalLM; "
            "print(model) lists its modules",
        ),
        (
            {"clean_replace": "model.layers.[LAYER_NUM].mlp"},
            "hook_layer.clean_replace: 'model.layers.[LAYER_NUM].mlp' does not name each layer; "
            "expected 'model.layers.[LAYER_NUM]'",
        ),
        (
            {"clean_replace": "model.layers.0"},
            "hook_layer.clean_replace: 'model.layers.0' does not name each layer; expected 'model.layers.[LAYER_NUM]'",
        ),
        (
            {"attn_sever": "model.layers.[LAYER_NUM].self_attn.o_proj"},
            "hook_layer.attn_sever: 'model.layers.[LAYER_NUM].self_attn.o_proj' does not name the module that "
            "outputs the attention of each layer; expected 'model.layers.[LAYER_NUM].self_attn'",
        ),
        (
            {"mlp_sever": "model.layers.[LAYER_NUM].mlp.down_proj"},
            "hook_layer.mlp_sever: 'model.layers.[LAYER_NUM].mlp.down_proj' does not name the module that "
            "outputs the MLP of each layer; expected 'model.layers.[LAYER_NUM].mlp'",
        ),
        (
            {"corrupt": "model.norm"},
            "hook_layer.corrupt: 'model.norm' does not name the input embedding; expected 'model.embed_tokens'",
        ),
    ],
)
def test_a_wrong_name_is_an_error_with_the_expected_name(wrong, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        check_module_names(tiny_model("llama"), replace(LLAMA, **wrong))


def test_an_index_beyond_the_last_layer_is_refused():
    names = replace(LLAMA, clean_save=("model.layers.4.mlp",))
    with pytest.raises(InputError, match=re.escape("'model.layers.4.mlp' is not a module of LlamaForCausalLM")):
        check_module_names(tiny_model("llama"), names)


def test_names_of_another_family_are_refused():
    message = (
        "'model.layers.[LAYER_NUM]' is not a module of GPT2LMHeadModel; similar names: 'transformer.h.[LAYER_NUM]'"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        check_module_names(tiny_model("gpt2"), LLAMA)


PUBLISHED = """
model:
  pth: "{model}"
  name: "llama-tiny"
generation_args: {{max_generate_length: 1, do_sample: false, output_scores: true, return_dict_in_generate: true}}
hook_layer:
  clean_save: ['model.layers.[LAYER_NUM]', 'model.layers.[LAYER_NUM].self_attn', 'model.layers.[LAYER_NUM].mlp']
  corrupt: 'model.embed_tokens'
  corrupted_save: ['model.layers.[LAYER_NUM].self_attn', 'model.layers.[LAYER_NUM].mlp']
  clean_replace: 'model.layers.[LAYER_NUM]'
  attn_sever: 'model.layers.[LAYER_NUM].self_attn'
  mlp_sever: 'model.layers.[LAYER_NUM].mlp'
result_pth: {{base_pth: './results/'}}
"""


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder as that of Knowledge-Tracing: a configuration, and data/known_1000.json with one fact that is known."""
    answering(saved_model(tmp_path / "model"), FACT_PROMPTS[0][0], " Paris")
    (tmp_path / "data").mkdir()
    json_file(tmp_path / "data" / "known_1000.json", fact_rows(4))
    (tmp_path / "llama.yaml").write_text(PUBLISHED.format(model=tmp_path / "model"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_command_writes_the_files_that_the_configuration_names(clone, capsys):
    assert run("trace", "--config", "llama.yaml") == 0
    files = {path.name: torch.load(path) for path in (clone / "results").glob("*.pt")}
    wanted = ("te", "valid_index", "ie_wo_sever", "ie_w_attn_sever", "ie_w_mlp_sever")
    assert files.keys() == {f"llama-tiny-{name}.pt" for name in wanted}
    assert "llama-tiny-*.pt: 5 files in the format of Knowledge-Tracing" in capsys.readouterr().err.replace("\n", "")
    assert files["llama-tiny-valid_index.pt"] == [0], "the other facts are not known"
    table = read_run(clone / "results" / "llama-tiny", TraceCell).to_frame()
    effects = table[table["mediator"] == "mlp_severed"].pivot_table(
        values="indirect_effect", index="layer_idx", columns="token_idx"
    )
    np.testing.assert_allclose(files["llama-tiny-ie_w_mlp_sever.pt"][0], effects.to_numpy()[:-1], rtol=1e-6)
    assert torch.stack(files["llama-tiny-te.pt"]).tolist() == pytest.approx([table["total_effect"].iloc[0], 0, 0, 0])


def test_files_that_are_exported_later_have_the_name_of_the_model(clone):
    assert run("trace", "--config", "llama.yaml", "--output", clone / "elsewhere" / "run", "--mediator", "hidden") == 0
    assert {path.name for path in (clone / "elsewhere").iterdir()} == {
        "run", "llama-tiny-te.pt", "llama-tiny-valid_index.pt", "llama-tiny-ie_wo_sever.pt"
    }  # fmt: skip
    again = ("export", clone / "elsewhere" / "run", "--facts", "data/known_1000.json", "-o", "exported")
    assert run(*again) == 0
    assert run(*again, "--name", "mine") == 0
    for name in ("te", "valid_index", "ie_wo_sever"):
        expected = (clone / "elsewhere" / f"llama-tiny-{name}.pt").read_bytes()
        assert (clone / "exported" / f"llama-tiny-{name}.pt").read_bytes() == expected
        assert (clone / "exported" / f"mine-{name}.pt").exists()


def test_another_model_on_the_command_line_names_the_files(clone):
    assert run("trace", "--config", "llama.yaml", "--model", clone / "model", "--mediator", "hidden") == 0
    assert (clone / "results" / "model-te.pt").exists()


def test_other_configurations_write_no_such_files(clone):
    (clone / "ours.yaml").write_text(f"model: {{pth: '{clone / 'model'}'}}\nmediators: [hidden]\nsamples: 1\n")
    facts = ("--facts", "data/known_1000.json", "--output", clone / "ours" / "run")
    assert run("trace", "--config", "ours.yaml", *facts) == 0
    assert [path.name for path in (clone / "ours").iterdir()] == ["run"]
    assert run("export", clone / "ours" / "run", "--facts", "data/known_1000.json", "-o", "exported") == 0
    assert (clone / "exported" / "model-te.pt").exists(), "the last part of model.pth"
