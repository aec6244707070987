"""The option names of ``insert_info`` and the allowed modes. Imports no other module of the package."""

from typing import Final

NORMALIZED: Final = "normalized"
ADDITION: Final = "addition"
MODES = (NORMALIZED, ADDITION)
STRENGTH, MODE, ALLOW_NEGATIVE = "overlay_strength", "replacing_mode", "allow_negative_strength"
OPTION_KEYS = (STRENGTH, MODE, ALLOW_NEGATIVE)
