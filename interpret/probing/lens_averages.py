"""How well lenses read the states before each layer: agreement and KL, averaged over prompts with intervals."""

from collections.abc import Sequence
from statistics import fmean

from interpret.errors import InputError
from interpret.records import LensAverage, LensReading
from interpret.stats import Average, average


def lens_averages(rows: Sequence[LensReading]) -> list[LensAverage]:
    """Average the agreement and the KL of lenses with the model over prompts, for each lens and layer.

    Of a prompt that is read at several tokens, the mean over these tokens is one value. States with a logit that is not
    finite are left out.

    Args:
        rows: rows of one model, such as those of a run of ``run_lens``.

    Returns:
        One row per lens and state, in the order of the layers.

    Raises:
        InputError: if there are no rows.
    """
    if not rows:
        raise InputError("there are no readings to average")
    states: dict[tuple[str, int, bool], dict[str, dict[int, LensReading]]] = {}
    for row in rows:
        of_prompts = states.setdefault((row.lens, row.layer_idx, row.site == "resid_post"), {})
        of_prompts.setdefault(row.name, {})[row.token_idx] = row  # what is averaged is the same in all rows of a state
    lenses = list(dict.fromkeys(row.lens for row in rows))
    order = sorted(states, key=lambda state: (lenses.index(state[0]), *state[1:]))
    return [_average_of(state, list(states[state].values())) for state in order]


def _average_of(state: tuple[str, int, bool], prompts: Sequence[dict[int, LensReading]]) -> LensAverage:
    """Return the row of a lens and a state, given the readings of each prompt by position."""
    agreement, kl = _mean(prompts, "agrees"), _mean(prompts, "kl")
    lens, layer, after = state
    return LensAverage(
        lens=lens,
        site="resid_post" if after else "resid_pre",
        layer_idx=layer,
        agreement=float(agreement.mean),
        agreement_low=float(agreement.low),
        agreement_high=float(agreement.high),
        kl=float(kl.mean),
        kl_low=float(kl.low),
        kl_high=float(kl.high),
        n=len(prompts),
    )


def _mean(prompts: Sequence[dict[int, LensReading]], name: str) -> Average:
    """Return the mean over prompts of the mean over tokens of a field."""
    values = [[getattr(row, name) for row in tokens.values()] for tokens in prompts]
    return average([fmean(float("nan") if one is None else float(one) for one in some) for some in values])
