"""A handmade result of every analysis, with texts that would break a page that did not escape them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from interpret.attribution import Comparison
from interpret.display import Shown
from interpret.locating import Locations
from interpret.probing import (
    Attended,
    AttendedTokens,
    HeadViews,
    LensFrame,
    LensReadings,
    LensTrainings,
    LogitShareFrame,
    LogitShares,
    NeuronEffects,
)
from interpret.records import (
    HeadView,
    Interpretation,
    LensReading,
    LensTraining,
    LocationCell,
    LogitShare,
    MethodComparison,
    NeuronEffect,
)
from interpret.selfie import Interpretations, InterpretedStates
from interpret.tracing import Traces
from reference.attributions import made as attribution
from reference.attributions import made_one
from reference.interpretation_records import made as interpretation
from reference.trace_rows import cells

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
N_LAYERS, N_HEADS = 3, 2


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.1, 0.6, shape)


def interpretations(*, name: str = "fact_1") -> list[Interpretation]:
    shared: dict[str, Any] = {"name": name, "prompt_token_list": ["The", HOSTILE, " Tower", "\n"]}
    read = [interpretation(layer_idx=layer, token_idx=token, **shared) for layer in (0, 5) for token in (1, 2)]
    return [interpretation(**shared), *read]


def traces() -> Traces:
    rows = [
        cells(numbers(4, N_LAYERS).tolist(), name=name, mediator=m) for name in "ab" for m in ("hidden", "mlp_window")
    ]
    return Traces(row for of_one in rows for row in of_one)


def locations() -> Locations:
    values = numbers(2, 4, N_LAYERS)
    return Locations(
        LocationCell(
            name="known_1", relation="", prompt="Mount Fuji is in", subject="Fuji", attribute="Japan", foil="Peru",
            answer=" Japan", answer_id=7, attributed_fn="contrast_prob_diff", site=site, layer_idx=layer,
            token_idx=token, token=(" t", HOSTILE)[token == 2], in_subject=token == 1, bucket_rome="", bucket_kt="",
            score=float(values[number, token, layer]), p_true=0.5, p_false=0.0001,
        )
        for number, site in enumerate(("resid_post", "mlp_out"))
        for token in range(4)
        for layer in range(N_LAYERS)
    )  # fmt: skip


def lens(positions: Sequence[int] = (3,)) -> LensReadings:
    return LensReadings(
        LensReading(
            name="a_1", prompt="The Eiffel Tower", token_idx=position, token=" Tower",
            site="resid_post" if layer == N_LAYERS else "resid_pre", layer_idx=min(layer, N_LAYERS - 1),
            rank=rank + 1, prediction_id=rank, prediction=(HOSTILE, " Paris", "\n")[rank], logit=1.0,
            probability=(0.5, 0.25, 0.0)[rank],
            continuation="target" if rank == 1 else "", lens="logit", agrees=layer > 1, kl=float(N_LAYERS - layer),
        )
        for position in positions
        for layer in range(N_LAYERS + 1)
        for rank in range(3)
    )  # fmt: skip


def training() -> LensTrainings:
    return LensTrainings(
        LensTraining(step=step, layer_idx=layer, kl=10.0 / step + layer)
        for step in (10, 20)
        for layer in range(N_LAYERS)
    )


def shares() -> LogitShares:
    places = [("embedding", -1, -1), *(("head", n, h) for n in range(N_LAYERS) for h in range(N_HEADS))]
    places += [("mlp", layer, -1) for layer in range(N_LAYERS)]
    values = numbers(len(places))
    return LogitShares(
        LogitShare(
            name="a_1", prompt=HOSTILE, answer=" Paris", answer_id=3, foil=" London", component=component,
            layer_idx=layer, head=head, share=float(value), foil_share=0.1,
        )
        for (component, layer, head), value in zip(places, values, strict=True)
    )  # fmt: skip


def heads() -> HeadViews:
    return HeadViews(
        HeadView(
            name="a_1", prompt="The Eiffel Tower", layer_idx=layer, head=head, token_idx=2, token=" Tower",
            attended_positions=[1, 0], attended_tokens=[HOSTILE, "The"], probabilities=[0.75, 0.25],
            induction_score=0.5,
        )
        for layer in range(N_LAYERS)
        for head in range(N_HEADS)
    )  # fmt: skip


def neurons() -> NeuronEffects:
    p = np.linspace(0.001, 1, 60)
    return NeuronEffects(NeuronEffect(1, n, 0.5, 0.25, 1.0, (-1) ** n / p[n] ** 0.1, p[n], p[n], 8) for n in range(60))


def comparison() -> Comparison:
    return Comparison(
        MethodComparison(
            name="a_1", prompt="The Eiffel Tower", step=step, step_token=HOSTILE, foil_token="", method=method,
            attributed_fn="probability", insertion_area=0.5, deletion_area=0.25, insertion=[0, 0.25, 1],
            deletion=[1, number / 4, 0],
        )
        for step in range(2)
        for number, method in enumerate(("saliency", "random"))
    )  # fmt: skip


def lens_frame() -> LensFrame:
    rows = [
        (0, 1, layer, token, f" t{token}", 1.0, 0.5, 1.0 + token, layer > 0, 2.0 - layer)
        for layer in range(3)
        for token in range(2)
    ]
    names = ["prompt", "position", "layer", "token_id", "token", "logit", "probability", "rank", "agrees", "kl"]
    frame = LensFrame(rows, columns=names)
    frame.prompts, frame.followed, frame.lens = [["The", HOSTILE]], [1], "tuned"
    return frame


def share_frame() -> LogitShareFrame:
    rows = [(0, 1, 3, "embedding", -1, -1, 0.5), (0, 1, 3, "head", 0, 0, -0.25), (0, 1, 3, "mlp", 0, -1, 0.125)]
    frame = LogitShareFrame(rows, columns=["prompt", "position", "token_id", "component", "layer", "head", "logit"])
    frame.prompts, frame.answers = [["The", HOSTILE]], [" Paris"]
    return frame


def interpreted() -> InterpretedStates:
    return InterpretedStates({"layer": [0, 0, 5, 5], "interpretation": ["a tall tower"] * 4}, interpretations())


RESULTS: dict[str, Shown] = {
    "attribution": attribution(made_one(("The", HOSTILE, " in", " Paris"), 3), made_one()),
    "comparison": comparison(),
    "interpretations": Interpretations(interpretations()),
    "interpreted": interpreted(),
    "traces": traces(),
    "locations": locations(),
    "lens": lens(),
    "lens at tokens": lens((0, 2, 3)),
    "training": training(),
    "shares": shares(),
    "heads": heads(),
    "attended": AttendedTokens([Attended(1, 0, 3, rank, rank, HOSTILE, 0.5 / rank) for rank in (1, 2)]),
    "neurons": neurons(),
    "lens frame": lens_frame(),
    "share frame": share_frame(),
}
"""One result of each kind, by what it is."""
