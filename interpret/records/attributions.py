"""Records of attribution: the rows of its tables."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LocationCell:
    """Attribution score of one activation at one token, for the answer of a fact contrasted with its foil.

    The score is activation times gradient, summed with sign over the hidden dimension: a first-order estimate of how
    much the attributed function decreases if this activation is set to zero.
    """

    name: str
    """The fact's name, the same in all its rows."""
    relation: str
    """Id of its relation, such as ``P17``; empty if its file gives none."""
    prompt: str
    """The text the model read."""
    subject: str
    """The part of the prompt that the fact is about."""
    attribute: str
    """The correct continuation of the prompt."""
    foil: str
    """The wrong answer with which the attribute is contrasted; empty if none was used."""
    answer: str
    """Text of the token whose probability is ``p_true``: the first token of the attribute."""
    answer_id: int
    """Id of that token."""
    attributed_fn: str
    """The attributed function: ``contrast_prob_diff``, which is ``p_true - p_false``, or another step function."""
    site: str
    """``resid_post``, the output of a layer; ``attn_out`` or ``mlp_out``, what its attention or MLP adds."""
    layer_idx: int
    """The decoder layer, from 0."""
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
    score: float
    """In the unit of the attributed function; positive if the activation supports the answer."""
    p_true: float
    """Probability of the answer's first token, in [0, 1]."""
    p_false: float | None
    """Probability of the foil's first token after the same prompt; None if there was no foil."""


@dataclass(frozen=True, kw_only=True)
class LocationAverage:
    """Mean score of one kind of token at one site and layer."""

    site: str
    """As in ``LocationCell``."""
    bucket: str
    """The kind of token: its bucket."""
    layer_idx: int
    """The decoder layer, from 0."""
    mean_score: float
    """Mean over prompts; for each prompt, the mean over its tokens of this kind."""
    low: float
    """Lower end of the 95% bootstrap interval of the mean; NaN for one prompt."""
    high: float
    """Upper end of the interval."""
    n: int
    """Number of prompts with such a token."""


@dataclass(frozen=True, kw_only=True)
class MethodComparison:
    """How one attribution method ranks the tokens before an attributed token: its insertion and deletion curves."""

    name: str
    """As in ``TokenScore``."""
    prompt: str
    """As in ``TokenScore``, as are the next three."""
    step: int
    step_token: str
    foil_token: str
    attributed_fn: str
    """The attributed function; areas and curves are in its unit."""
    method: str
    """The method, or ``random``: the mean of random orders of the tokens."""
    insertion_area: float
    """Mean height of the insertion curve: the higher, the better."""
    deletion_area: float
    """Mean height of the deletion curve: the lower, the better."""
    insertion: list[float]
    """Value after the first 0, 1, ... tokens of the ranking are put into the text in which all are masked."""
    deletion: list[float]
    """Value after the first 0, 1, ... tokens of the ranking are masked."""


@dataclass(frozen=True, kw_only=True)
class TokenScore:
    """Attribution score of one input token, or of one activation at it, for one later token."""

    name: str
    """``{category}_{n}``, or ``prompt``: the prompt's name, the same in all its rows."""
    prompt: str
    """The text the model read."""
    step: int
    """Index of the attributed token after the prompt, from 0; if tokens were merged, index of the group."""
    step_position: int
    """Its position in the whole text, from 0; in an encoder-decoder model, in the decoder input."""
    step_token: str
    """The attributed token, as the tokenizer spells it; joined if tokens were merged."""
    foil_token: str
    """The token with which it is contrasted, spelled likewise; empty without a foil."""
    value: float
    """Value of the attributed function at this step."""
    activation: str
    """The scored activation, such as ``mlp_out.3``, for layer methods; empty if embeddings or tokens are scored."""
    position: int
    """Position of the scored token; in an encoder-decoder model, in the source or in the decoder input."""
    token: str
    """The scored token, spelled likewise."""
    in_prompt: bool
    """True if the scored token belongs to the prompt, False if it was generated; in an encoder-decoder model, whether
    it belongs to the source."""
    score: float
    """Its contribution to ``value`` as the method defines it, with the embedding dimension reduced as requested."""
    step_score_names: list[str]
    """Names of the functions that are reported besides the attributed one."""
    step_scores: list[float]
    """Their values at this step."""
