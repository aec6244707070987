"""One prompt, traced exactly, by estimates and by screening, with the same settings."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from interpret.tracing.approximate import Screening
from interpret.tracing.calls import screen, trace_mediators
from interpret.tracing.inputs import TraceSettings
from interpret.tracing.mediators import MEDIATORS
from interpret.tracing.result import TraceResult
from reference.tiny import wide_model
from reference.toy_tokenizers import byte_level

PROMPT, SUBJECT = "The Eiffel Tower is in", "Eiffel Tower"
ALL = [name for name, row in MEDIATORS.items() if row.site not in ("attention", "mixer_out")]
"""The mediators that can be estimated."""
SETTINGS = TraceSettings(samples=2, window=3, seed=3)
TOKENIZER = byte_level()
MODELS = {kind: wide_model(kind) for kind in ("llama", "gptj")}
"""One model per kind; tests must not change them."""


def approximated(
    model: PreTrainedModel = MODELS["llama"], settings: TraceSettings = SETTINGS, **options: Any
) -> Mapping[str, TraceResult]:
    """Return the estimates of all cells."""
    return traced(model, settings, **({"method": "approximate"} | options))


def screened(
    model: PreTrainedModel = MODELS["llama"], settings: TraceSettings = SETTINGS, **options: Any
) -> dict[str, Screening]:
    """Return the estimates, with exact values in the cells with the largest ones."""
    return screen(model, TOKENIZER, PROMPT, SUBJECT, **({"mediators": ALL, "settings": settings} | options))


def traced(model: PreTrainedModel, settings: TraceSettings = SETTINGS, **options: Any) -> Mapping[str, TraceResult]:
    """Return the exact trace, or what the options ask for."""
    return trace_mediators(model, TOKENIZER, PROMPT, SUBJECT, **({"mediators": ALL, "settings": settings} | options))


def assert_same_scores(
    found: Mapping[str, TraceResult], expected: Mapping[str, TraceResult], rtol: float = 1e-4
) -> None:
    """Check that two traces have the same scores up to ``rtol`` of the largest effect of each mediator."""
    for name, result in expected.items():
        scale = np.abs(result.indirect_effects).max()
        np.testing.assert_allclose(found[name].sample_scores, result.sample_scores, rtol=0, atol=rtol * scale)
