"""Rows of attribution."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LocationCell:
    """What one activation at one token does to the answer of a fact, held against its foil: one cell of an attribution.

    Scores are activation times gradient, summed over the width with its sign: to the first order, how much less the
    attributed function would be with this activation at zero.
    """

    name: str
    """The fact's name, the same in all its rows."""
    relation: str
    """Its relation's id, such as ``P17``; empty where its file tells none."""
    prompt: str
    """The text the model read."""
    subject: str
    """The part of the prompt that the fact is about."""
    attribute: str
    """How the prompt should go on."""
    foil: str
    """The wrong answer it is held against; empty where none was read."""
    answer: str
    """The text of the token whose probability is ``p_true``: the attribute's first."""
    answer_id: int
    """That token."""
    attributed_fn: str
    """What is attributed: ``contrast_prob_diff``, ``p_true - p_false``, or another step function."""
    site: str
    """``resid_post``, the output of a layer; ``attn_out`` or ``mlp_out``, what its attention or MLP adds."""
    layer_idx: int
    """The decoder layer, from 0."""
    token_idx: int
    """Position in the prompt, from 0 without padding."""
    token: str
    """The token, decoded."""
    in_subject: bool
    """Whether it is one of the subject's."""
    bucket_rome: str
    """Where in the prompt it stands, of the six buckets of ROME; empty before the subject."""
    bucket_kt: str
    """Of the four buckets of Knowledge-Tracing; empty where it is in none."""
    score: float
    """In the unit of the attributed function; positive where the activation speaks for the answer."""
    p_true: float
    """Probability of the answer's first token, in [0, 1]."""
    p_false: float | None
    """Of the foil's first token, after the same prompt; None where no foil was read."""


@dataclass(frozen=True, kw_only=True)
class LocationAverage:
    """The mean score of one kind of token at one site and layer."""

    site: str
    """As in ``LocationCell``, like the next two."""
    bucket: str
    """The kind of token: where in the prompt it stands."""
    layer_idx: int
    """The decoder layer."""
    mean_score: float
    """Mean over prompts, of each the mean over its tokens of the kind."""
    low: float
    """Lower end of its 95% bootstrap interval."""
    high: float
    """Upper end."""
    n: int
    """Prompts that have such a token."""


@dataclass(frozen=True, kw_only=True)
class TokenScore:
    """What one token, or one activation at it, does to one token that follows it."""

    name: str
    """``{category}_{n}``, or ``prompt``: the prompt's name, the same in all its rows."""
    prompt: str
    """The text the model read."""
    step: int
    """Which of the tokens after the prompt is attributed, from 0; of merged tokens, which group."""
    step_position: int
    """Its position in the whole text, from 0; of a translation model, in what the decoder reads."""
    step_token: str
    """The attributed token, as the tokenizer writes it; joined where tokens were merged."""
    foil_token: str
    """The token it is held against, written likewise; empty without a foil."""
    value: float
    """The attributed function at this step."""
    activation: str
    """Such as ``mlp_out.3``, of layer methods; empty where embeddings or tokens are scored."""
    position: int
    """Position of the token the score is of; of a translation model, in the source or in what the decoder reads."""
    token: str
    """That token, written likewise."""
    in_prompt: bool
    """Whether it is the prompt's, or was written before this step; of a translation model, whether the source's."""
    score: float
    """What it does to ``value``: as the method defines it, summed over the width as was asked."""
    step_score_names: list[str]
    """Functions that were reported beside the attributed one."""
    step_scores: list[float]
    """Their values at this step."""
