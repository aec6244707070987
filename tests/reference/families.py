"""The tables of model families: their rows, their columns, and the tests that verify them.

    python tests/reference/families.py

writes the tables into docs/guide/models.md.
"""

import sys
from pathlib import Path

from packaging.version import Version

DOCUMENT = Path(__file__).parents[2] / "docs" / "guide" / "models.md"
sys.path.insert(0, str(Path(__file__).parents[1]))

from interpret.anatomy import ENCODER_DECODERS, FAMILIES  # noqa: E402
from reference.kinds import ALL_KINDS, WHOLE, Kind, part_of  # noqa: E402

RELEASES = ("4.34.0", "4.57.6", "5.24.0")
"""The default release, and the current releases on which the tests were run."""
# What is tested -> its test in tests/anatomy/test_families.py, which runs for every kind in the installed release.
COLUMNS = {
    "surgery": "test_surgery_on_a_pass_is_the_reference_and_shown_in_hidden_states",
    "generation": "test_surgery_on_generation_is_the_reference",
    "recording": "test_recorded_halves_add_up",
    "part by part": "test_layers_run_part_by_part_are_the_model",
    "exact sweeps": "test_sweeps_are_exact",
}
NAMES = {
    "llama": "Llama 1, 2",
    "llama3": "Llama 3 to 3.x (scaled rotary embeddings)",
    "mistral": "Mistral",
    "qwen2": "Qwen2, 2.5",
    "qwen3": "Qwen3",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3 (text)",
    "phi3": "Phi-3",
    "olmo2": "OLMo 2",
    "granite": "Granite 3 (dense)",
    "cohere": "Command R",
    "cohere_normed_heads": "Command R+ (normed queries and keys)",
    "gpt2": "GPT-2",
    "gptj": "GPT-J",
    "gpt_neox": "GPT-NeoX, Pythia",
    "gpt_neox_sequential": "GPT-NeoX (sequential residual)",
    "opt": "OPT",
    "opt_post_norm": "OPT-350m (post-norm)",
    "gemma": "Gemma 1",
    "vaultgemma": "VaultGemma",
    "ministral": "Ministral",
    "ministral3": "Ministral 3 (text)",
    "olmo": "OLMo 1",
    "olmo3": "OLMo 3",
    "smollm3": "SmolLM3",
    "seed_oss": "Seed-OSS",
    "cwm": "Code World Model",
    "helium": "Helium",
    "ernie4_5": "ERNIE 4.5",
    "exaone4": "EXAONE 4",
    "glm": "GLM-4",
    "glm4": "GLM-4-0414",
    "arcee": "Arcee",
    "jais2": "Jais 2",
    "nemotron": "Nemotron, Minitron",
    "apertus": "Apertus",
    "starcoder2": "StarCoder2",
    "hunyuan": "HunYuan (dense)",
    "hyperclovax": "HyperCLOVA X",
    "cohere2": "Command R7B, Command A",
    "phi": "Phi-1, 1.5, 2",
    "phi_normed_heads": "Phi (normed queries and keys)",
    "stablelm": "StableLM",
    "stablelm_parallel": "StableLM (parallel residual)",
    "codegen": "CodeGen",
    "falcon": "Falcon-7B",
    "falcon_grouped": "Falcon-40B, 180B",
    "falcon_alibi": "Falcon-RW (linear position biases)",
    "gpt_bigcode": "StarCoder, SantaCoder",
    "gpt_neo": "GPT-Neo",
    "xglm": "XGLM",
    "biogpt": "BioGPT",
    "persimmon": "Persimmon",
    "bloom": "Bloom",
    "mpt": "MPT",
    "nanochat": "nanochat",
    "bitnet": "BitNet",
    "diffllama": "DiffLlama",
    "youtu": "Youtu-LLM",
    "mixtral": "Mixtral",
    "qwen2_moe": "Qwen1.5-MoE, Qwen2-MoE",
    "qwen3_moe": "Qwen3-MoE",
    "olmoe": "OLMoE",
    "flex_olmo": "FlexOlmo",
    "gpt_oss": "gpt-oss",
    "granitemoe": "Granite 3 (mixture of experts)",
    "phimoe": "Phi-3.5-MoE",
    "ernie4_5_moe": "ERNIE 4.5 (mixture of experts)",
    "glm4_moe": "GLM-4.5 to 4.7",
    "dots1": "dots.llm1",
    "minimax_m2": "MiniMax-M2",
    "solar_open": "Solar Open",
    "mellum": "Mellum 2",
    "hunyuan_moe": "HunYuan (mixture of experts)",
    "llama4": "Llama 4 (text)",
    "gemma3_multimodal": "Gemma 3 (multimodal)",
    "mistral3": "Mistral Small 3.1, 3.2 (multimodal)",
    "llama4_multimodal": "Llama 4 (multimodal)",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL (mixture of experts)",
    "deepseek_v2": "DeepSeek-V2",
    "deepseek_v3": "DeepSeek-V3, R1",
    "mamba": "Mamba",
    "mamba2": "Mamba 2",
    "falcon_mamba": "FalconMamba",
    "zamba2": "Zamba2",
    "jamba": "Jamba",
    "bamba": "Bamba",
    "lfm2": "LFM2",
    "lfm2_moe": "LFM2 (mixture of experts)",
    "qwen3_next": "Qwen3-Next",
    "granitemoehybrid": "Granite 4 (hybrid, dense)",
    "granitemoehybrid_experts": "Granite 4 (hybrid, mixture of experts)",
    "recurrent_gemma": "RecurrentGemma",
}


WITHOUT_CACHE = {("zamba2", "4.57.6")}
"""Kinds and releases whose own ``generate`` with a cache continues other texts, so that surgery refuses the cache."""


def table() -> str:
    """Return the table in Markdown."""
    header = ["family", "`model_type`", *RELEASES]
    rows = [
        [NAMES[name], f"`{kind.family}`", *(_works(name, kind, release) for release in RELEASES)]
        for name, kind in ALL_KINDS.items()
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def refused_by(kind: Kind, release: str) -> bool:
    """Return whether a release includes the models of a kind, but computes them wrongly, so that they are refused."""
    since = FAMILIES[kind.family].since
    return bool(since) and Version("4.40.0") <= Version(release) < Version(since)


def _works(name: str, kind: Kind, release: str) -> str:
    """Return the cell of a kind and release: its tests cover all columns or, if the release lacks it, none."""
    if refused_by(kind, release):
        return f"refused: needs {FAMILIES[kind.family].since}"
    if release in kind.fails_in:
        return "fails in transformers itself"
    if not part_of(kind, release):
        return "not included"
    if (name, release) in WITHOUT_CACHE:
        return "whole passes, no cache"
    return "whole passes" if name in WHOLE else f"all {len(COLUMNS)}"


_LANGUAGES = {"none": "none", "tokens": "source and target", "flags": "target, if there are several"}


def table_of_encoder_decoders() -> str:
    """Return the table of the families that only attribution supports; its kinds are in ``reference.toy_seq2seq``."""
    rows = [[row.models, f"`{name}`", _LANGUAGES[row.languages]] for name, row in sorted(ENCODER_DECODERS.items())]
    header = ["family", "`model_type`", "languages to give"]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def with_tables(text: str) -> str:
    """Return the document's text with the current tables."""
    for name, content in (("families", table()), ("encoder-decoders", table_of_encoder_decoders())):
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        text = f"{before}<!-- {name} -->\n{content}\n<!-- /{name} -->{rest.partition(f'<!-- /{name} -->')[2]}"
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text()))
