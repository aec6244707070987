"""What the README's table of families shows: its rows, its columns, and the tests behind them.

    python tests/reference/families.py

writes it into the README.
"""

import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
sys.path.insert(0, str(Path(__file__).parents[1]))

from reference.tiny import ALL_KINDS, part_of  # noqa: E402

RELEASES = ("4.34.0", "4.57.6", "5.23.0")
"""The default, and the current ones the tests were run on."""
# What works -> the test of tests/test_families.py that shows it for each kind the installed transformers has.
COLUMNS = {
    "surgery": "test_surgery_on_a_pass_is_the_reference_and_shown_in_hidden_states",
    "generation": "test_surgery_on_generation_is_the_reference",
    "recording": "test_recorded_halves_add_up",
    "part by part": "test_layers_run_part_by_part_are_the_model",
    "exact sweeps": "test_sweeps_are_exact",
}
NAMES = {
    "llama": "Llama 1, 2",
    "llama3": "Llama 3 to 3.x, with its scaled rotations",
    "mistral": "Mistral",
    "qwen2": "Qwen2, 2.5",
    "qwen3": "Qwen3",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3 (text)",
    "phi3": "Phi-3",
    "olmo2": "OLMo 2",
    "gpt2": "GPT-2",
    "gptj": "GPT-J",
    "gpt_neox": "GPT-NeoX, Pythia",
    "gpt_neox_sequential": "GPT-NeoX, sequential layers",
    "opt": "OPT",
    "opt_post_norm": "OPT-350m, norms after each sum",
}


def table() -> str:
    """Return the table, in Markdown."""
    header = ["family", "`model_type`", *RELEASES]
    rows = [
        [NAMES[name], f"`{kind.family}`", *(_works(part_of(kind, release)) for release in RELEASES)]
        for name, kind in ALL_KINDS.items()
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def _works(tested: bool) -> str:
    """Say what a kind's tests show: they are parametrised alike, so all columns or none."""
    return f"all {len(COLUMNS)}" if tested else "not part of it"


BEGIN, END = "<!-- families -->\n", "\n<!-- /families -->"


def with_table(text: str) -> str:
    """Return the README with the table as it is now."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
