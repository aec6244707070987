"""Rows of probing."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LensReading:
    """How likely one token is after one layer, read by the model's own end: one line of a logit lens."""

    name: str
    """``{category}_{n}``: the prompt's name, the same in all its rows."""
    prompt: str
    """The text the model read."""
    position: int
    """Where in the prompt the stream is read, from 0 without padding."""
    token: str
    """The token there, decoded."""
    layer: int
    """How many layers the stream has gone through: 0 the embeddings, the last the model's own answer."""
    rank: int
    """Of the token that is said, 1 for the likeliest."""
    said_id: int
    """That token."""
    said: str
    """Its text."""
    logit: float
    """Its logit."""
    probability: float
    """Its probability, in [0, 1]."""
    followed: str
    """``target`` or ``foil``, where it is the first token of the prompt's; else empty."""


@dataclass(frozen=True, kw_only=True)
class LogitShare:
    """What one part of the model adds to the logit of an answer: direct logit attribution."""

    name: str
    """``{category}_{n}``: the prompt's name, the same in all its rows."""
    prompt: str
    """The text the model read; its last token is where the answer is read."""
    answer: str
    """Text of the answer's token: the target's first, or the likeliest."""
    answer_id: int
    """That token."""
    foil: str
    """Text of the foil's first token; empty where the prompt has none."""
    component: str
    """``embedding``, ``head``, ``attention_bias``, ``mlp``, ``norm_bias`` or ``output_bias``."""
    layer: int
    """The decoder layer, from 0; -1 where the part is in none."""
    head: int
    """The head, from 0; -1 where it is none."""
    share: float
    """What it adds to the answer's logit; the shares of a prompt add up to the logit."""
    foil_share: float | None
    """What it adds to the foil's."""


@dataclass(frozen=True, kw_only=True)
class HeadView:
    """Whom one head looks at from one token."""

    name: str
    """``{category}_{n}``: the prompt's name, the same in all its rows."""
    prompt: str
    """The text the model read."""
    layer: int
    """The decoder layer, from 0."""
    head: int
    """The query head, from 0."""
    position: int
    """Of the token that looks, from 0 without padding."""
    token: str
    """That token, decoded."""
    attended_positions: list[int]
    """The tokens it looks at most, the first one most."""
    attended_tokens: list[str]
    """Their texts."""
    probabilities: list[float]
    """How much each is looked at; over all tokens they add up to 1."""
    induction_score: float
    """How much the head looks for what came after the present token before, on random tokens: the same in all rows."""


@dataclass(frozen=True)
class NeuronEffect:
    """How far what a neuron says differs between true and false texts."""

    layer: int
    """The decoder layer, from 0."""
    neuron: int
    """Its number in the layer's MLP, from 0."""
    true_mean: float
    """Mean over the true texts of what the neuron says."""
    false_mean: float
    """The same over the false ones."""
    cohens_d: float
    """Difference of the means by the pooled standard deviation; above 0 where the neuron says more about true texts."""
    hedges_g: float
    """Cohen's d without its bias in small sets."""
    p_value: float
    """Two-sided, of the mean difference within pairs, by permuting which text of a pair is the true one."""
    q_value: float
    """p_value adjusted for all neurons tested in the same call (Benjamini and Hochberg); p_value itself for one."""
    n_pairs: int
    """How many pairs of texts."""
