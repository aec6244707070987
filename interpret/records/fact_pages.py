"""The record of fact pages: what every method says of one layer's output at one token."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FactCell:
    """One token and layer of one fact: the effects of the layer's output by tracing, attribution and logit lens.

    Effects of tracing are differences of the probability of the answer, in [-1, 1], means over the noise samples.
    """

    name: str
    """The fact's name, the same in all its rows."""
    relation: str
    """Id of its relation, such as ``P17``; empty if its file gives none."""
    prompt: str
    """The fact's prompt, without a chat template."""
    subject: str
    """The part of the prompt whose embeddings were corrupted."""
    attribute: str
    """The correct continuation of the prompt."""
    foil: str
    """The continuation that is contrasted with it; empty if the fact has none."""
    answer: str
    """Text of the token that all methods follow: the first token of the attribute."""
    answer_id: int
    """Its id."""
    token_idx: int
    """Position in the text that the model reads, from 0."""
    token: str
    """The token, decoded."""
    in_subject: bool
    """Whether the token belongs to the subject."""
    bucket_rome: str
    """The token's bucket among ROME's six kinds of token positions; empty before the subject."""
    site: str
    """``resid_post``: all numbers of the row are about the output of the layer."""
    layer_idx: int
    """The decoder layer, from 0."""
    hidden: float
    """Indirect effect of restoring the layer's output, see ``TraceCell``."""
    hidden_method: str
    """``exact``, computed by forward passes, or how it was estimated, see ``TraceCell``."""
    attn_severed: float
    """The same with the token's attention held at its corrupted values in all later layers."""
    attn_severed_method: str
    """As ``hidden_method``."""
    mlp_severed: float
    """The same with the token's MLPs held at their corrupted values in all later layers."""
    mlp_severed_method: str
    """As ``hidden_method``."""
    attribution: float
    """Activation times gradient of the layer's output, see ``LocationCell``."""
    attributed_fn: str
    """The attributed function: ``contrast_prob_diff``, or ``probability`` if the fact has no foil."""
    lens_rank: int | None
    """Rank of the answer by the logit lens after the layer, 1 for the likeliest; None if its logit is not finite."""
    lens_probability: float
    """Probability of the answer by the logit lens after the layer."""
    lens_token_id: int
    """Id of the likeliest token by the logit lens; -1 if no logit is finite."""
    lens_token: str
    """Its text."""
    lens_token_probability: float
    """Its probability."""
    clean: float
    """Probability of the answer in the clean run."""
    corrupted: float
    """Probability of the answer in the corrupted runs."""
