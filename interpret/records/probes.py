"""Records of probing: the rows of its tables."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LensReading:
    """One token's probability when a lens reads a state; the logit lens applies final norm and unembedding to it."""

    name: str
    """``{category}_{n}``: the prompt's name, the same in all its rows."""
    prompt: str
    """The text the model read."""
    token_idx: int
    """Position in the prompt at which the residual stream is read, from 0 without padding."""
    token: str
    """The token there, decoded."""
    site: str
    """The state: ``resid_pre``, the input of the layer, or ``resid_post``, the output of the last layer."""
    layer_idx: int
    """The decoder layer, from 0; ``resid_pre`` of layer 0 is the embedding."""
    rank: int | None
    """Rank of the predicted token; 1 for the most likely; None if its logit is not finite."""
    prediction_id: int
    """Id of the predicted token; -1 if no logit is finite, so that there is none."""
    prediction: str
    """Its text."""
    logit: float
    """Its logit."""
    probability: float
    """Its probability, in [0, 1]; NaN if a logit of the vocabulary is not finite."""
    continuation: str
    """``target`` or ``foil`` if the token is the first one of the prompt's target or foil; else empty."""
    lens: str
    """The lens with which the state is read: ``logit``, ``tuned`` or ``identity``."""
    agrees: bool | None
    """Whether the most likely token in this state is the most likely one of the model itself; the same in all rows of
    the state; None if one of the two has no finite logit."""
    kl: float
    """KL(model || lens) in nats: how much the distribution in this state misses of the model's own; the same in all
    rows of the state, 0 at the last one; NaN if a logit is not finite."""


@dataclass(frozen=True, kw_only=True)
class LensAverage:
    """How well a lens reads the states before one layer, averaged over prompts."""

    lens: str
    """As in ``LensReading``."""
    site: str
    """As in ``LensReading``."""
    layer_idx: int
    """As in ``LensReading``."""
    agreement: float
    """Share of prompts, 0 to 1, in which ``agrees`` holds; of a prompt that is read at several tokens, their share."""
    agreement_low: float
    """Lower end of the 95% bootstrap interval of the agreement, over prompts; NaN for one prompt."""
    agreement_high: float
    """Upper end of the interval."""
    kl: float
    """Mean of ``kl`` in nats; for each prompt, the mean over its tokens."""
    kl_low: float
    """Lower end of its 95% bootstrap interval."""
    kl_high: float
    """Upper end of the interval."""
    n: int
    """Number of prompts."""


@dataclass(frozen=True, kw_only=True)
class LensTraining:
    """Training of a tuned lens: the loss of one layer over some steps."""

    step: int
    """Number of steps that are done."""
    layer_idx: int
    """The decoder layer whose input the map translates, from 0."""
    kl: float
    """KL(model || lens) in nats per token of the training text, averaged over the steps since the row before."""


@dataclass(frozen=True, kw_only=True)
class LogitShare:
    """Direct logit attribution: what one component of the model adds to the logit of an answer."""

    name: str
    """``{category}_{n}``: the prompt's name, the same in all its rows."""
    prompt: str
    """The text the model read; the logits are those at its last token."""
    answer: str
    """Text of the answer: the first token of the target, or the most likely token if there is no target."""
    answer_id: int
    """Id of that token."""
    foil: str
    """Text of the foil's first token; empty if the prompt has no foil."""
    component: str
    """``embedding``, ``head``, ``attention_bias``, ``attention``, ``mixer``, ``mlp``, ``norm_bias`` or
    ``output_bias``."""
    layer_idx: int
    """The decoder layer, from 0; -1 if the component is in no layer."""
    head: int
    """The attention head, from 0; -1 if the component is not a head."""
    share: float
    """What the component adds to the answer's logit; the shares of a prompt sum to the logit."""
    foil_share: float | None
    """What it adds to the foil's logit; None if the prompt has no foil."""


@dataclass(frozen=True, kw_only=True)
class HeadView:
    """The tokens that one head attends to most from one query token."""

    name: str
    """``{category}_{n}``: the prompt's name, the same in all its rows."""
    prompt: str
    """The text the model read."""
    layer_idx: int
    """The decoder layer, from 0."""
    head: int
    """The query head, from 0."""
    token_idx: int
    """Position of the query token, from 0 without padding."""
    token: str
    """The query token, decoded."""
    attended_positions: list[int]
    """Positions of the tokens it attends to most, in descending order of probability."""
    attended_tokens: list[str]
    """Their texts."""
    probabilities: list[float]
    """Their attention probabilities; over all tokens they sum to 1."""
    induction_score: float
    """Prefix matching score on repeated random tokens, 1 for a perfect induction head; the same in all its rows."""


@dataclass(frozen=True)
class NeuronEffect:
    """Difference of a neuron's activation between true and false texts."""

    layer_idx: int
    """The decoder layer, from 0."""
    neuron: int
    """Index of the neuron in the layer's MLP, from 0."""
    true_mean: float
    """Mean activation over the true texts."""
    false_mean: float
    """Mean activation over the false texts."""
    cohens_d: float
    """Difference of means / pooled standard deviation; positive if the activation is larger on true texts."""
    hedges_g: float
    """Cohen's d, corrected for its bias in small samples."""
    p_value: float
    """Two-sided, for the mean difference within pairs; permutations exchange the true and the false text of a pair."""
    q_value: float
    """``p_value`` adjusted for all neurons tested in the same call (Benjamini-Hochberg); equal to it for one neuron.

    This and the values before it are NaN if an activation of the neuron is not finite; it is not counted as tested."""
    n_pairs: int
    """Number of pairs of texts."""
