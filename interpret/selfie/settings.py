"""Settings of self-interpretation for calls and commands, with their defaults. Does not import torch."""

from dataclasses import dataclass
from typing import Final, Literal

from interpret.surgery.words import NORMALIZED

SAME = "same"
RESID_PRE: Final = "resid_pre"
LAYERS, TOKENS = "3:-1:5", "content"
"""Default selectors of the states to interpret."""
GENERATED = "generated"
"""Selector of the first token that the model generates after the prompt."""
SLOTS = 5
"""Default number of slots that replace ``{slots}``."""
INTERPRETATION_PROMPTS = ("summarize",)


@dataclass(frozen=True)
class Settings:
    """Settings of self-interpretation."""

    insertion_layer: int | Literal["same"] = 1
    """The layer whose input is edited; 1 edits the output of layer 0, "same" the layer that the state comes from
    (Patchscopes: Ghandeharioun et al. 2024, arXiv 2401.06102)."""
    mode: str = NORMALIZED
    """``replacing_mode`` of the insertion."""
    strength: float = 1.0
    """``overlay_strength`` of the insertion."""
    new_tokens: int = 30
    """Maximum length of an interpretation, in tokens."""
    prompt_output_tokens: int = 30
    """Maximum length of the continuation of the prompt itself, in tokens; 0 for none."""
    wrong_vector: bool = True
    """Whether each interpretation is also scored with another token's state inserted."""
    text_control: bool = True
    """Whether each interpretation is also scored with the prompt's own text in place of the slots, up to the
    interpreted token, and no state inserted."""
    seed: int = 0
    """Random seed of the choice of wrong states."""
    batch_size: int | None = None
    """Number of interpretations generated together; None to choose it from the device's memory. The numbers are the
    same for every size up to rounding: 1e-5 in float32, in half precision as much as the model's own passes over one
    and over several texts differ."""
