"""How hidden states are interpreted: the settings of calls and commands, and their defaults. Imports no torch."""

from dataclasses import dataclass
from typing import Final, Literal

from interpret.surgery.words import NORMALIZED

SAME = "same"
RESID_PRE: Final = "resid_pre"
LAYERS, TOKENS = "3:-1:5", "content"
"""Which states are interpreted by default."""
SLOTS = 5
"""How many slots ``{slots}`` stands for by default."""
INTERPRETATION_PROMPTS = ("summarize",)


@dataclass(frozen=True)
class Settings:
    """How hidden states are interpreted."""

    insertion_layer: int | Literal["same"] = 1
    """The layer whose input is edited; 1 means after layer 0, "same" the source's own layer (Patchscopes: Ghandeharioun
    et al. 2024, arXiv 2401.06102)."""
    mode: str = NORMALIZED
    """``replacing_mode`` of the insertion."""
    strength: float = 1.0
    """``overlay_strength`` of the insertion."""
    new_tokens: int = 30
    """Longest interpretation, in tokens."""
    prompt_output_tokens: int = 30
    """Longest continuation of the prompt itself, in tokens; 0 for none."""
    wrong_vector: bool = True
    """Whether each interpretation is also scored under another token's state."""
    seed: int = 0
    """Chooses the wrong states."""
    batch_size: int | None = None
    """Interpretations written side by side; None chooses from memory. Changes no number beyond the last digits."""
