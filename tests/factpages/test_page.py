"""What a fact page says of its fact, from stored numbers alone."""

import pytest

from interpret.factpages.page import HEADING, _heading

LONG = "Once upon a time there was a tower of iron. " * 10


@pytest.mark.parametrize(
    ("prompt", "occurrence", "expected"),
    [
        ("The Tower is in", None, ("The ", "Tower", " is in")),
        ("Tower by Tower is in", 1, ("Tower by ", "Tower", " is in")),
        ("Tower", None, ("", "Tower", "")),
    ],
)
def test_the_heading_is_the_prompt_around_its_subject(prompt, occurrence, expected):
    assert _heading({"prompt": prompt, "subject": "Tower", "occurrence": occurrence}) == expected


def test_the_heading_of_a_long_prompt_has_whole_words_around_the_subject():
    before, subject, after = _heading({"prompt": f"{LONG}Tower, {LONG}", "subject": "Tower", "occurrence": None})
    assert subject == "Tower"
    for text, end in ((before.removeprefix("… "), before), (after.removesuffix(" …"), after)):
        assert text != end, "what is left out is marked"
        assert HEADING / 2 < len(text) <= HEADING
    assert (LONG + "Tower").endswith(" " + before.removeprefix("… ") + subject)
    assert (", " + LONG).startswith(after.removesuffix(" …") + " ")


def test_a_long_text_without_spaces_is_cut_anywhere():
    before, _, after = _heading({"prompt": "塔" * 300 + "Tower" + "城" * 300, "subject": "Tower", "occurrence": None})
    assert (before, after) == ("… " + "塔" * HEADING, "城" * HEADING + " …")
