import re

import pytest

from interpret.errors import InputError
from interpret.prompts.chat import as_it_is, chat_text, wrap
from reference.toy_tokenizers import byte_level, sentence_piece


def with_template(template: str):
    tokenizer = byte_level(chat=True)
    copy = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    copy.chat_template = template
    return copy


def test_the_models_template_waits_for_the_answer():
    chat = wrap(byte_level(chat=True), "Hello there")
    assert chat.text == "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n"
    assert chat.text[slice(*chat.content)] == "Hello there"
    assert not chat.add_special_tokens


def test_the_users_own_template_takes_the_place_of_the_models():
    chat = wrap(byte_level(chat=True), "Hello", "[INST] {prompt} [/INST]")
    assert chat.text == "[INST] Hello [/INST]"
    assert chat.text[slice(*chat.content)] == "Hello"
    assert chat.add_special_tokens


def test_a_message_may_look_like_a_template():
    assert wrap(sentence_piece(), "{prompt} {{ 1 }}", "a {prompt} b").text == "a {prompt} {{ 1 }} b"
    assert "{{ 1 }}<|im_end|>" in wrap(byte_level(chat=True), "{{ 1 }}").text


def test_without_any_template_the_message_is_taken_as_it_is():
    assert wrap(sentence_piece(), "Hello") == as_it_is("Hello")


def test_a_chat_as_text_becomes_the_templates_tokens(monkeypatch):
    tokenizer = byte_level(chat=True)
    assert chat_text(tokenizer, "Hello") == wrap(tokenizer, "Hello").text
    opening = sentence_piece()  # puts <s> before every text, as its template does
    monkeypatch.setattr(opening, "chat_template", "{{ bos_token }}user: {{ messages[0]['content'] }} answer:")
    text = chat_text(opening, "Hello")
    assert text == "user: Hello answer:"
    whole = wrap(opening, "Hello")
    assert opening(text).input_ids == opening(whole.text, add_special_tokens=False).input_ids
    assert chat_text(opening, "Hello", template="[{prompt}]") == "[Hello]"


@pytest.mark.parametrize(("template", "kept"), [("{{ m }}", True), ("{{ m.strip() }}", False)])
def test_the_template_decides_about_space_around_the_message(template, kept):
    tokenizer = with_template("<{% set m = messages[0]['content'] %}" + template + ">")
    chat = wrap(tokenizer, " Hi \n")
    assert chat.text == ("< Hi \n>" if kept else "<Hi>")
    assert chat.text[slice(*chat.content)] == "Hi"


def test_content_is_found_where_the_template_says_the_same_words():
    chat = wrap(with_template("user says user: {{ messages[0]['content'] }}"), "user")
    assert (chat.content, chat.text) == ((16, 20), "user says user: user")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "[INST] [/INST]",
            "chat template '[INST] [/INST]' must contain {prompt} exactly once, where the prompt goes",
        ),
        (
            "{prompt}{prompt}",
            "chat template '{prompt}{prompt}' must contain {prompt} exactly once, where the prompt goes",
        ),
    ],
)
def test_a_template_needs_one_place_for_the_prompt(template, message):
    with pytest.raises(InputError, match=re.escape(message)):
        wrap(sentence_piece(), "Hello", template)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only system messages') }}", "cannot be rendered: only system messages"),
        ("{% if %}", "cannot be rendered: "),
        ("{{ 1 / 0 }}", "cannot be rendered: ZeroDivisionError: division by zero"),
        ("{{ messages + 1 }}", "cannot be rendered: TypeError: "),
        ("{{ messages.__class__.__mro__ }}", "cannot be rendered: access to attribute '__class__' of"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "cannot be rendered: RecursionError: "),
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}"
            "{% endfor %}",
            "cannot be rendered: its loops repeat more than 100,000 times",
        ),
        ("silent", "does not contain the user's message exactly once; give a template of your own"),
        ("{{ messages[0]['content'] * 2 }}", "does not contain the user's message exactly once"),
        (
            "{{ 1 // 0 }}",
            "cannot be rendered: ZeroDivisionError: integer division or modulo by zero",
        ),
        ("{{ 1 + messages[0]['content'] }}", "cannot be rendered: TypeError: unsupported operand"),
        (
            {"rag": "{{ messages[0]['content'] }}"},
            "the model has the chat templates rag, but none named 'default'; give",
        ),
    ],
)
def test_a_broken_model_template_is_an_error(template, message):
    with pytest.raises(InputError, match=re.escape(message)):
        wrap(with_template(template), "Hello")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0]['content'] | upper }}",
        "{{ messages[0]['content'][:2] }}",
        "{{ messages[0]['content'].replace('l', 'r') }}",
        "{% if 'Hello' in messages[0]['content'] %}greeting: {% endif %}{{ messages[0]['content'] }}",
        "{{ messages[0] | tojson }} {{ messages[0]['content'] }}",
    ],
)
def test_a_model_template_that_changes_the_message_is_an_error(template):
    message = (
        "^the model's chat template changes the user's message 'Hello', or depends on what it says; give a template"
    )
    with pytest.raises(InputError, match=message):
        wrap(with_template(template), "Hello")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for m in messages %}<{{ m['content'] }}>{% break %}{% endfor %}", "<Hello>"),
        ("{% generation %}<{{ messages[0]['content'] }}>{% endgeneration %}", "<Hello>"),
        ("{% if tools is not none or documents is not none %}tools {% endif %}{{ messages[0]['content'] }}", "Hello"),
        ({"tool_use": "no", "default": "<{{ messages[0]['content'] }}>"}, "<Hello>"),
        ([{"name": "default", "template": "<{{ messages[0]['content'] }}>"}], "<Hello>"),
    ],
)
def test_templates_may_use_what_transformers_offers_them(template, text):
    assert wrap(with_template(template), "Hello").text == text
