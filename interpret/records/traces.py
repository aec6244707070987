"""Records of causal tracing: the rows of its tables."""

from dataclasses import dataclass
from typing import Literal, get_args

TraceMethod = Literal["exact", "approximate", "relp", "screened"]
"""Name of a tracing method."""
TRACE_METHODS: tuple[TraceMethod, ...] = get_args(TraceMethod)
"""Exact: every cell by forward passes. Approximate: every cell estimated from gradients. Relp: from relevance in place
of gradients. Screened: estimated, then the largest estimates computed by forward passes."""
EstimateMethod = Literal["approximate", "relp"]
"""Name of a method that estimates every cell."""
EXACT: Literal["exact"] = "exact"
"""The method that runs every cell."""
APPROXIMATE: Literal["approximate"] = "approximate"
"""The method that estimates every cell from gradients."""
RELP: Literal["relp"] = "relp"
"""The method that estimates every cell from relevance."""
SCREENED: Literal["screened"] = "screened"
"""The method that estimates every cell, then runs those with the largest estimates."""


@dataclass(frozen=True, kw_only=True)
class TraceCell:
    """One cell of a causal trace: the state of one token and layer, restored in the corrupted runs of one fact.

    Mediators may change the clean run instead: ``attn_knockout`` hides tokens from the attention of this token.

    Values are those of the metric, by default the probability of the answer, in [0, 1]; those of corrupted and restored
    runs are means over the noise samples. Effects are differences of values.
    """

    name: str
    """The fact's name, the same in all its rows."""
    relation: str
    """Id of its relation, such as ``P17``; empty if its file gives none."""
    prompt: str
    """The text the model read."""
    subject: str
    """The part of the prompt whose embeddings were corrupted."""
    attribute: str
    """The correct continuation of the prompt."""
    answer: str
    """Text of the tokens that are measured: the first token of the attribute, or all of them."""
    answer_id: int
    """Id of the first of those tokens."""
    mediator: str
    """What was restored: ``hidden``, ``attn_severed``, ``mlp_severed``, ``attn_window``, ``mlp_window``, or a
    user-defined mediator; or knocked out: ``attn_knockout``, attention to the subject, or to the tokens after a colon,
    as in ``attn_knockout:relation``."""
    metric: str
    """What is measured: ``probability``, ``log_probability``, ``logit``, ``logit_difference`` or ``rank``."""
    method: str
    """``exact``, computed by forward passes; or ``approximate``, estimated from gradients, or ``relp``, from
    relevance."""
    site: str
    """Which activation of the layer was restored: ``resid_post``, its output; ``attn_out`` or ``mlp_out``; or
    ``attention``, if it was knocked out."""
    layer_idx: int
    """The decoder layer, from 0; for a window, its middle layer."""
    window: int | None
    """Number of layers changed together, fewer near the first and the last layer; None for a single layer."""
    token_idx: int
    """Position in the prompt, from 0 without padding."""
    token: str
    """The token, decoded."""
    in_subject: bool
    """Whether the token belongs to the subject."""
    bucket_rome: str
    """The token's bucket among ROME's six kinds of token positions; empty before the subject."""
    bucket_kt: str
    """The token's bucket among the four of Knowledge-Tracing; empty if it is in none."""
    clean: float
    """Value in the clean run."""
    corrupted: float
    """Value in the corrupted runs."""
    restored: float
    """Value in the corrupted runs with this one state restored, or in the changed clean run."""
    indirect_effect: float
    """IE, ``restored - corrupted``; negative if restoring the state makes the answer even less likely. For
    mediators that change the clean run, ``restored - clean``."""
    effect_std: float | None
    """Standard deviation of the indirect effect over the noise samples; None for a single sample or without noise."""
    total_effect: float
    """TE, ``clean - corrupted``."""


@dataclass(frozen=True, kw_only=True)
class UnitCell:
    """One attention head or MLP neuron, restored alone in the corrupted runs of one fact, by forward passes."""

    name: str
    """The fact's name, the same in all its rows."""
    prompt: str
    """The text the model read."""
    answer: str
    """As in ``TraceCell``."""
    metric: str
    """As in ``TraceCell``."""
    mediator: str
    """``heads`` or ``neurons``."""
    layer_idx: int
    """The decoder layer, from 0."""
    unit: int
    """The head or neuron of the layer, from 0; the neurons of a mixture of experts are numbered expert by expert."""
    expert: str = ""
    """The expert that the neuron is in, from 0; ``shared`` for shared experts, which come last; "" without experts."""
    token_idx: int
    """Position in the prompt, from 0 without padding."""
    token: str
    """The token, decoded."""
    bucket_rome: str
    """As in ``TraceCell``; ``last_subject`` or ``last``."""
    clean: float
    """Value in the clean run."""
    corrupted: float
    """Value in the corrupted runs."""
    indirect_effect: float
    """IE, the value with this unit restored minus ``corrupted``."""
    total_effect: float
    """TE, ``clean - corrupted``."""


@dataclass(frozen=True, kw_only=True)
class TraceAverage:
    """Average indirect effect (AIE) of one kind of token at one layer, for one mediator and metric."""

    mediator: str
    """As in ``TraceCell``."""
    metric: str
    """As in ``TraceCell``."""
    bucket: str
    """The kind of token: its bucket."""
    layer_idx: int
    """As in ``TraceCell``."""
    average_indirect_effect: float
    """Mean over prompts; for each prompt, the mean over its tokens of this kind. A difference of values."""
    low: float
    """Lower end of the 95% bootstrap interval of the mean; NaN for one prompt."""
    high: float
    """Upper end of the interval."""
    n: int
    """Number of prompts with such a token."""


@dataclass(frozen=True, kw_only=True)
class TracePeak:
    """The cell with the largest indirect effect of one fact, for one mediator and metric.

    The average may peak elsewhere. Restoring the last layers of the last token restores the answer trivially, so the
    subject's tokens have their own peak.
    """

    name: str
    """The fact's name."""
    mediator: str
    """As in ``TraceCell``."""
    metric: str
    """As in ``TraceCell``."""
    among: str
    """The tokens that are searched: ``all`` or ``subject``."""
    method: str
    """Method of that cell, as in ``TraceCell``."""
    layer_idx: int
    """The layer of the peak."""
    token_idx: int
    """Position of its token."""
    token: str
    """The token, decoded."""
    bucket_rome: str
    """Its bucket, as in ``TraceCell``."""
    indirect_effect: float
    """IE at the peak."""
    total_effect: float
    """TE, ``clean - corrupted``, the same for all cells of the fact."""
