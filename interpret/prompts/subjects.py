"""Tokenise prompts and find the tokens of their subject."""

from transformers import PreTrainedTokenizerBase

from interpret.errors import InputError
from interpret.prompts.chat import ChatText, framed
from interpret.prompts.lookalikes import not_a_part
from interpret.prompts.tokens import TokenisedPrompt, tokenise


def tokenised(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    occurrence: int | None,
    chat_template: str | None = None,
) -> TokenisedPrompt:
    """Tokenise a prompt and find the chosen occurrence of its subject.

    Args:
        tokenizer: the tokenizer of the model.
        prompt: the prompt.
        subject: a part of the prompt.
        occurrence: index of its occurrence; None if there is only one.
        chat_template: as in ``chat.framed``; the content of the result is the chosen occurrence.

    Raises:
        InputError: if the prompt or the subject is not a string, the subject does not occur in the prompt, it occurs
            more than once and ``occurrence`` is None, or the template is invalid.
    """
    for what, text in (("prompt", prompt), ("subject", subject)):
        if not isinstance(text, str):
            raise InputError(f"{what} is {text!r}; give a single string")
    start = _choose(prompt, subject, occurrence)
    whole = framed(tokenizer, prompt, chat_template)
    # A chat template may strip the prompt.
    first, end = whole.content
    start += first - prompt.index(whole.text[first:end])
    # The content is only the chosen occurrence, so the subject is found in it exactly once.
    chosen = ChatText(whole.text, (start, start + len(subject)), whole.add_special_tokens)
    return tokenise(tokenizer, chosen, subject)


def _choose(prompt: str, subject: str, occurrence: int | None) -> int:
    """Return the index of the character at which the chosen occurrence of the subject starts."""
    if not subject.strip():
        raise InputError("the subject is empty; give the part of the prompt to corrupt")
    starts = [start for start in range(len(prompt)) if prompt.startswith(subject, start)]
    if not starts:
        raise InputError(not_a_part("subject", subject, prompt))
    if occurrence is None:
        if len(starts) > 1:
            raise InputError(
                f"subject {subject!r} occurs {len(starts)} times in the prompt {prompt!r}; "
                f"choose with occurrence=0 to {len(starts) - 1}"
            )
        return starts[0]
    if not 0 <= occurrence < len(starts):
        raise InputError(f"occurrence {occurrence} of subject {subject!r} does not exist; there are {len(starts)}")
    return starts[occurrence]


def subject_span(tokens: TokenisedPrompt) -> tuple[int, int]:
    """Return the position of the first token of the subject, and the position after its last token.

    Raises:
        InputError: if the subject has no tokens.
    """
    if not tokens.subject:
        raise InputError(f"the subject has no tokens in the prompt {tokens.text!r}")
    return tokens.subject[0], tokens.subject[-1] + 1
