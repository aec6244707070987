"""Records of self-interpretation, and of the facts that a control of a model preserves."""

from dataclasses import dataclass

from interpret.records.table import column


@dataclass(frozen=True, kw_only=True)
class Interpretation:
    """Interpretation of one hidden state by the model itself, or the control: the same prompt with nothing inserted.

    The first 13 columns are those of the published SelfIE scripts. G is the number of tokens that are scored: the
    generated tokens before the end token.
    """

    name: str
    """``{category}_{n}``, with n from 1: the prompt's name, the same in all its rows."""
    prompt: str
    """The text the model read: the example's text, inside the chat template if there is one."""
    current_token: str = column("current token")
    """The token whose state is interpreted, decoded; empty in a control row."""
    token_idx: int | None
    """Its position in the prompt, from 0 without padding; None in a control row."""
    interpretation: list[int]
    """[G] ids of the generated tokens."""
    prompt_output: str
    """The model's continuation of the prompt, decoded."""
    prompt_token_list: list[str]
    """[T] text of each token of the prompt, then of the generated token if it is interpreted;
    ``prompt_token_list[token_idx]`` is the current token."""
    category: str
    """The category of the example."""
    layer_idx: int | None
    """Index of the state in ``hidden_states``: 0 for the embeddings, k for the input of layer k, L for the state after
    the final norm; for other sites, the layer; None in a control row."""
    interpretation_weights: list[float]
    """[G] relevancy ``|P_with - P_without|`` of each generated token, a difference of probabilities in [0, 1]."""
    interpretation_prob: list[float]
    """[G] P_with: probability of each generated token with the state inserted."""
    repeat_prompt: str
    """The interpretation prompt as text, including its placeholders."""
    repeat_prompt_name: str
    """The name of the interpretation prompt."""
    interpretation_text: str
    """The interpretation, decoded."""
    interpretation_tokens: list[str]
    """[G] the interpretation, decoded token by token."""
    probability_without_insertion: list[float]
    """[G] P_without: probability of the same tokens at the same positions with nothing inserted."""
    signed_relevancy: list[float]
    """[G] P_with - P_without: positive if the inserted state made the token more likely."""
    wrong_token_idx: int | None
    """Position of the token whose state, of the same layer, was inserted for comparison; None if none was."""
    probability_with_wrong_vector: list[float]
    """[G] probability of the same tokens with that wrong state inserted; empty if there was none."""
    probability_with_text: list[float]
    """[G] probability of the same tokens with nothing inserted and the prompt's own text in place of the slots, up to
    and including the interpreted token; empty if this control was left out, or the token precedes the text."""
    gain_over_nothing: float | None
    """Mean of ln(P_with / P_without) over the G tokens, in nats per token; None in a control row or if G is 0."""
    gain_over_wrong_vector: float | None
    """Mean of ln(P_with / P with the wrong state) over the G tokens, likewise."""
    gain_over_text: float | None
    """Mean of ln(P_with / P with the prompt's own text) over the G tokens, likewise."""
    says_nothing: bool | None
    """Whether the interpretation holds no words, or only one word or phrase, three times or more, perhaps after a short
    beginning; None for a failed row."""
    says_more_than_controls: bool | None
    """Whether the text says something and all gains are above 0: it is more likely with its own state inserted than
    under each control."""
    overlap_with_control: float | None
    """Share of the G tokens that also occur in the control's text, each token of which matches once; None as for the
    gains."""
    site: str
    """The kind of state: ``resid_pre``, the input of the layer; ``final_norm``, the state after the final norm;
    ``attn_out`` or ``mlp_out``, what the attention or the MLP of the layer adds."""
    insertion_layer: int | None
    """The layer whose input was edited; None in a control row."""
    kind: str
    """``interpretation``; ``control``, the text generated from the interpretation prompt with nothing inserted; or
    ``failed``, for a state that is not finite or whose interpretation does not fit in memory."""


@dataclass(frozen=True, kw_only=True)
class Preservation:
    """One fact before and after a control: a row of the before/after table."""

    prompt: str
    """The text the model continues."""
    attribute: str
    """The correct continuation."""
    before: str
    """The model's continuation without the control."""
    after: str
    """The model's continuation under the control."""
    correct_before: bool
    """Whether ``before`` starts with the attribute's words."""
    correct_after: bool
    """Whether ``after`` starts with the attribute's words."""
