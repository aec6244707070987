"""Handmade rows of traces."""

from collections.abc import Sequence

from interpret.records import TraceCell


def cells(
    effects: Sequence[Sequence[float]],
    *,
    name: str = "known_1",
    mediator: str = "hidden",
    metric: str = "probability",
    span: tuple[int, int] = (1, 3),
    std: float = 0.25,
    low: float = 0.1,
    high: float = 0.7,
) -> list[TraceCell]:
    """Return the rows of a trace with the given indirect effects, [T, L]."""
    return [
        TraceCell(
            name=name,
            relation="P17",
            prompt="Mount Fuji is in",
            subject="Fuji",
            attribute="Japan",
            answer=" Japan",
            answer_id=7,
            mediator=mediator,
            metric=metric,
            method="exact",
            site="resid_post",
            layer_idx=layer,
            window=None,
            token_idx=token,
            token=f" t{token}",
            in_subject=span[0] <= token < span[1],
            bucket_rome="",
            bucket_kt="",
            clean=high,
            corrupted=low,
            restored=low + effect,
            indirect_effect=effect,
            effect_std=std,
            total_effect=high - low,
        )
        for token, of_token in enumerate(effects)
        for layer, effect in enumerate(of_token)
    ]
