"""Facts for pages, on a tiny model that knows the first one; the last one has texts that no page may run."""

from typing import Any

import numpy as np

from interpret.factpages import FactSettings
from interpret.facts.files import Fact
from interpret.records import FactCell
from reference.commands import FACT_PROMPTS

HOSTILE = "<img src=x onerror=go()>"
PROMPT, SUBJECT = FACT_PROMPTS[0]
KNOWN = Fact("known_0", PROMPT, SUBJECT, "Paris")
FACTS = [
    KNOWN,
    Fact("fact_1", *FACT_PROMPTS[1], "Paris", relation="P17", foil="Rome"),
    Fact("fact_2", f"{HOSTILE} is", HOSTILE, "<b>", foil="Rome"),
]
SETTINGS = FactSettings(samples=3, cells=("subject_last,::2", "last,1"))


def made_cells(**grids: Any) -> list[FactCell]:
    """Return the rows of a made-up fact of T tokens, whose second and third are the subject.

    Args:
        **grids: name of a column -> its values, [T, L]; other columns have some value.
    """
    n_tokens, n_layers = np.shape(next(iter(grids.values())))
    return [
        FactCell(
            **{
                "name": "fact_0",
                "relation": "",
                "prompt": "".join(f" t{at}" for at in range(n_tokens)),
                "subject": " t1 t2",
                "attribute": "Paris",
                "foil": "",
                "answer": " Paris",
                "answer_id": 5,
                "token_idx": token,
                "token": f" t{token}",
                "in_subject": token in (1, 2),
                "bucket_rome": "",
                "site": "resid_post",
                "layer_idx": layer,
                "hidden": 0.1,
                "hidden_method": "exact",
                "attn_severed": 0.1,
                "attn_severed_method": "exact",
                "mlp_severed": 0.1,
                "mlp_severed_method": "approximate",
                "attribution": 0.1,
                "attributed_fn": "probability",
                "lens_rank": 1,
                "lens_probability": 0.1,
                "lens_token_id": 5,
                "lens_token": " Paris",
                "lens_token_probability": 0.1,
                "clean": 0.9,
                "corrupted": 0.1,
            }
            | {name: np.asarray(grid)[token][layer].item() for name, grid in grids.items()}
        )
        for token in range(n_tokens)
        for layer in range(n_layers)
    ]
