"""Put a user's message into a chat template, and keep track of where the message is in the resulting text.

``apply_chat_template`` of transformers 4.34.0 ignores ``add_generation_prompt``, so this module renders the model's
template itself, in the same kind of sandbox.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from interpret.errors import InputError, brief, one_line
from interpret.prompts.encoding import token_ids
from interpret.prompts.prompts import FIELD, MODEL_TEMPLATE, Prompt, check_template

_MARK = "\ue000"  # a private-use character that no template contains; marks the place of the message
_MOST_REPETITIONS = 100_000
"""Maximum number of repetitions of all loops of a chat template together."""
_LEFT = "repetitions_left"
"""Name of the variable of a template that counts them."""


@dataclass(frozen=True)
class ChatText:
    """The text of a prompt as the model reads it."""

    text: str
    content: tuple[int, int]
    """Start and end of the user's message in ``text``, in characters."""
    add_special_tokens: bool
    """Whether the tokenizer has to add special tokens such as <s>; a model's chat template already contains them."""


def as_it_is(text: str) -> ChatText:
    """Return a raw prompt, whose text stays unchanged, as the text a model reads."""
    return ChatText(text, (0, len(text)), add_special_tokens=True)


def framed(tokenizer: PreTrainedTokenizerBase, prompt: str, template: str | None) -> ChatText:
    """Return the text a model reads for a prompt: unchanged without a template, else as in ``wrap``.

    Raises:
        InputError: if the template is invalid.
    """
    return as_it_is(prompt) if template is None else wrap(tokenizer, prompt, template)


def model_text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, template: str = MODEL_TEMPLATE) -> ChatText:
    """Return the text a model reads for a prompt: a raw prompt unchanged, any other as the user's turn of a chat.

    Args:
        tokenizer: has the model's chat template.
        prompt: the prompt, such as one of a prompt file.
        template: as in ``wrap``; not used for raw prompts.

    Raises:
        InputError: if the template is invalid.
    """
    return as_it_is(prompt.text) if prompt.raw else wrap(tokenizer, prompt.text, template)


def wrap(tokenizer: PreTrainedTokenizerBase, message: str, template: str = MODEL_TEMPLATE) -> ChatText:
    """Format ``message`` as the user's turn of a chat, up to the start of the assistant's answer.

    Args:
        tokenizer: has the model's chat template.
        message: the user's message.
        template: ``"model"`` for the model's own template, or a text that contains ``{prompt}`` once, such as
            ``"[INST] {prompt} [/INST]"``. If the model has no template, the message stays unchanged.

    Raises:
        InputError: if the template is invalid.
    """
    if template != MODEL_TEMPLATE:
        check_template(template)
        before, after = template.split(FIELD)
        return _between(before, message, after, add_special_tokens=True)
    if not has_template(tokenizer):
        return as_it_is(message)
    words = message.strip()
    # Whitespace around the message is left to the template: some templates keep it, some strip it.
    before, mark, after = _render(tokenizer, message.replace(words, _MARK, 1)).partition(_MARK)
    if not mark or _MARK in after:
        raise InputError(
            "the model's chat template does not contain the user's message exactly once; give a template of your own"
        )
    if _render(tokenizer, message) != before + words + after:
        raise InputError(
            f"the model's chat template changes the user's message {brief(words)}, or depends on what it says; give a "
            "template of your own"
        )
    return _between(before, words, after, add_special_tokens=False)


def chat_text(tokenizer: PreTrainedTokenizerBase, message: str, *, template: str = MODEL_TEMPLATE) -> str:
    """Return the text a chat model reads for a user's message, up to the start of the assistant's answer.

    For functions that take plain text, such as ``attribute`` and ``trace``: the tokenizer turns the result into the
    right tokens, without a second ``<s>``. (``apply_chat_template`` of transformers 4.34.0 omits the start of the
    answer.)

    Args:
        tokenizer: has the model's chat template.
        message: the user's message.
        template: as in ``wrap``.

    Raises:
        InputError: if the template is invalid, or contains special tokens that the tokenizer would add again.
    """
    return as_read(tokenizer, wrap(tokenizer, message, template))


def as_read(tokenizer: PreTrainedTokenizerBase, chat: ChatText) -> str:
    """Return a text that gives the tokens of ``chat`` when the tokenizer adds its special tokens.

    Raises:
        InputError: if there is no such text.
    """
    wanted = token_ids(tokenizer, chat.text, add_special_tokens=chat.add_special_tokens)
    for candidate in (chat.text.removeprefix(tokenizer.bos_token or ""), chat.text):
        if token_ids(tokenizer, candidate) == wanted:
            return candidate
    raise InputError(
        f"the tokenizer puts special tokens before {chat.text!r}, which the chat template does not have; give a "
        "template of your own, or make the prompt raw"
    )


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the tokenizer has a chat template."""
    return getattr(tokenizer, "chat_template", None) is not None


def _between(before: str, message: str, after: str, *, add_special_tokens: bool) -> ChatText:
    return ChatText(before + message + after, (len(before), len(before) + len(message)), add_special_tokens)


def _render(tokenizer: PreTrainedTokenizerBase, message: str) -> str:
    template = _template(tokenizer)
    try:
        return _compiled(template).render(
            messages=[{"role": "user", "content": message}],
            add_generation_prompt=True,
            tools=None,
            documents=None,
            **{_LEFT: iter(range(_MOST_REPETITIONS))},
            **_special_tokens(tokenizer),
        )
    except Exception as error:  # a template may compute anything
        problem = error if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        raise InputError(
            f"the model's chat template cannot be rendered: {one_line(problem)}; give a template of your own"
        ) from error


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the chat template of a tokenizer; of several, the one that is named "default"."""
    given = tokenizer.chat_template
    if isinstance(given, str):
        return given
    named = given if isinstance(given, Mapping) else {one["name"]: one["template"] for one in given}
    if "default" not in named:
        raise InputError(
            f"the model has the chat templates {', '.join(named)}, but none named 'default'; give a template of your "
            "own"
        )
    return str(named["default"])


class _Generation(Extension):
    """The block ``{% generation %}``, with which templates mark the assistant's words; its contents are kept."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the contents of the block."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    def refuse(reason: str) -> None:
        raise TemplateError(reason)

    extensions = ["jinja2.ext.loopcontrols", _Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.globals["raise_exception"] = refuse
    environment.filters["counted"] = _counted
    tree = environment.parse(template)
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
    tree.set_environment(environment)
    return environment.from_string(tree)


@pass_context
def _counted(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    """Iterate for a loop of a template, and end templates whose loops together would run for hours."""
    left = context[_LEFT]
    for item in items:
        if next(left, None) is None:
            raise TemplateError(f"its loops repeat more than {_MOST_REPETITIONS:,} times")
        yield item


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the special tokens that templates use; ``special_tokens_map`` warns about those that are not set."""
    ids = {name: getattr(tokenizer, f"{name}_id") for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return {name: tokenizer.convert_ids_to_tokens(token) for name, token in ids.items() if token is not None}
