"""A user's message -> the text a chat model expects, and where in it the message stands.

transformers 4.34.0 drops ``add_generation_prompt`` in ``apply_chat_template``, so the model's own template is
rendered here, in the same kind of sandbox.
"""

from dataclasses import dataclass

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from interpret.errors import InputError
from interpret.prompts.prompts import Prompt

MODEL_TEMPLATE = "model"
"""Stands for the template that comes with the tokenizer."""
FIELD = "{prompt}"
_MARK = "\ue000"  # a private-use character, so in no template: shows where the message lands


@dataclass(frozen=True)
class ChatText:
    """What a model reads."""

    text: str
    content: tuple[int, int]
    """Start and end of the user's message in ``text``, in characters."""
    add_special_tokens: bool
    """Whether the tokenizer still has to add its own, such as <s>; a model's template writes them itself."""


def as_it_is(text: str) -> ChatText:
    """Take a raw prompt."""
    return ChatText(text, (0, len(text)), add_special_tokens=True)


def read_text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, template: str = MODEL_TEMPLATE) -> ChatText:
    """Return what a model reads of a prompt: a raw one as it is, another as the user's turn of a chat.

    Args:
        tokenizer: brings the model's template.
        prompt: of a prompt file.
        template: as in ``wrap``; raw prompts do not use it.

    Raises:
        InputError: if the template is wrong.
    """
    return as_it_is(prompt.text) if prompt.raw else wrap(tokenizer, prompt.text, template)


def wrap(tokenizer: PreTrainedTokenizerBase, message: str, template: str = MODEL_TEMPLATE) -> ChatText:
    """Make ``message`` the user's turn of a chat that waits for the answer.

    Args:
        tokenizer: brings the model's template.
        message: what the user says.
        template: ``"model"``, or a text with ``{prompt}`` in it, such as ``"[INST] {prompt} [/INST]"``. A model
            without a template gets the message as it is.

    Raises:
        InputError: if the template is wrong.
    """
    if template != MODEL_TEMPLATE:
        if template.count(FIELD) != 1:
            raise InputError(f"chat template {template!r} has no single {FIELD}; write it once, where the prompt goes")
        before, after = template.split(FIELD)
        return _between(before, message, after, add_special_tokens=True)
    if not has_template(tokenizer):
        return as_it_is(message)
    words = message.strip()
    # The space around the words is left to the template: some keep it, some take it away.
    before, mark, after = _render(tokenizer, message.replace(words, _MARK, 1)).partition(_MARK)
    if not mark or _MARK in after:
        raise InputError("the model's chat template does not show the user's message once; give a template of your own")
    return _between(before, words, after, add_special_tokens=False)


def chat_text(tokenizer: PreTrainedTokenizerBase, message: str, *, template: str = MODEL_TEMPLATE) -> str:
    """Return a user's message as the text a chat model reads, waiting for the answer.

    For calls that take texts as they are, such as ``attribute`` and ``trace``: the tokenizer makes the right tokens of
    it, without a second ``<s>``. (``apply_chat_template`` of transformers 4.34.0 leaves out the opening of the answer.)

    Args:
        tokenizer: brings the model's template.
        message: what the user says.
        template: as in ``wrap``.

    Raises:
        InputError: if the template is wrong, or writes special tokens that the tokenizer would write again.
    """
    return as_read(tokenizer, wrap(tokenizer, message, template))


def as_read(tokenizer: PreTrainedTokenizerBase, chat: ChatText) -> str:
    """Return the text that becomes the right tokens when the tokenizer adds its own special ones.

    Raises:
        InputError: if there is none.
    """
    wanted = tokenizer(chat.text, add_special_tokens=chat.add_special_tokens).input_ids
    for candidate in (chat.text, chat.text.removeprefix(tokenizer.bos_token or "")):
        if tokenizer(candidate).input_ids == wanted:
            return candidate
    raise InputError(
        f"the chat template and the tokenizer both write special tokens into {chat.text!r}; give a template of your "
        "own, or make the prompt raw"
    )


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the tokenizer brings a chat template."""
    return getattr(tokenizer, "chat_template", None) is not None


def _between(before: str, message: str, after: str, *, add_special_tokens: bool) -> ChatText:
    return ChatText(before + message + after, (len(before), len(before) + len(message)), add_special_tokens)


def _render(tokenizer: PreTrainedTokenizerBase, message: str) -> str:
    def refuse(reason: str) -> None:
        raise TemplateError(reason)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(tokenizer.chat_template).render(
            messages=[{"role": "user", "content": message}],
            add_generation_prompt=True,
            **_special_tokens(tokenizer),
        )
    except TemplateError as error:
        raise InputError(f"the model's chat template cannot be rendered: {error}") from None


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the special tokens templates speak of; ``special_tokens_map`` complains about those not set."""
    ids = {name: getattr(tokenizer, f"{name}_id") for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return {name: tokenizer.convert_ids_to_tokens(token) for name, token in ids.items() if token is not None}
