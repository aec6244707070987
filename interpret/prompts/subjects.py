"""Prompts with a subject -> token ids, and which of them are the subject's."""

from transformers import PreTrainedTokenizerBase

from interpret.errors import InputError
from interpret.prompts.chat import ChatText
from interpret.prompts.tokens import TokenisedPrompt, tokenise


def tokenised(tokenizer: PreTrainedTokenizerBase, prompt: str, subject: str, occurrence: int | None) -> TokenisedPrompt:
    """Tokenise a prompt and find the chosen occurrence of its subject.

    Raises:
        InputError: if one is no text, or the subject is not there, or there more than once and none is chosen.
    """
    for what, text in (("prompt", prompt), ("subject", subject)):
        if not isinstance(text, str):
            raise InputError(f"{what} is {text!r}; give one text")
    start = _choose(prompt, subject, occurrence)
    # The span of the "message" is the chosen occurrence alone, in which the subject is found once.
    chosen = ChatText(prompt, (start, start + len(subject)), add_special_tokens=True)
    tokens = tokenise(tokenizer, chosen, subject)
    if len(tokens.ids) < 2:
        raise InputError(f"prompt {prompt!r} is a single token; tracing needs the subject and what is said of it")
    return tokens


def _choose(prompt: str, subject: str, occurrence: int | None) -> int:
    """Return where in the prompt the chosen occurrence of the subject starts."""
    if not subject.strip():
        raise InputError("the subject is empty; give the part of the prompt to corrupt")
    starts = [start for start in range(len(prompt)) if prompt.startswith(subject, start)]
    if not starts:
        raise InputError(f"subject {subject!r} is not a part of the prompt {prompt!r}")
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
    """Return the first and one past the last token of the subject.

    Raises:
        InputError: if no token of the prompt shows it.
    """
    if not tokens.subject:
        raise InputError(f"the subject has no tokens in the prompt {tokens.text!r}")
    return tokens.subject[0], tokens.subject[-1] + 1
