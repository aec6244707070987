import pytest

from interpret import errors
from interpret.errors import brief, closest, misspelt, named, one_line, unknown
from reference.messages import at_most_calls, check_message


def test_unknown_names_the_nearest_and_all_allowed():
    assert unknown("replacing_mode", "adddition", ["normalized", "addition"]) == (
        "unknown replacing_mode 'adddition'; did you mean 'addition'? Allowed: normalized, addition"
    )


def test_unknown_guesses_nothing_where_nothing_is_near():
    assert unknown("option", "xyz", ["left", "right"]) == "unknown option 'xyz'; Allowed: left, right"


def test_unknown_tells_the_first_of_very_many():
    names = [f"neurons.{layer}" for layer in range(90)]
    told = unknown("activation", "neuron.7", names)
    assert told.startswith("unknown activation 'neuron.7'; did you mean 'neurons.7'? Allowed: neurons.0, neurons.1, ")
    assert told.endswith(", neurons.19, ... (90 in all)")


def test_unknown_takes_names_of_any_kind_and_allowed_from_any_iterable():
    assert unknown("option", 7, iter(("left", "right"))) == "unknown option 7; Allowed: left, right"
    assert unknown("option", None, {"left": 1}) == "unknown option None; Allowed: left"


@pytest.mark.parametrize("name", ["SpecError", "InputError", "UnsupportedModelError", "ModelError", "RunError"])
def test_every_error_is_an_interpret_error_drawn_in_the_tree(name):
    assert issubclass(getattr(errors, name), errors.InterpretError)
    assert f"+-- {name}" in errors.__doc__


@pytest.mark.parametrize("name", ["SpecError", "InputError"])
def test_errors_of_wrong_values_are_value_errors(name):
    assert issubclass(getattr(errors, name), ValueError)


# ------------------------------------------------------------------------------------------------ parts of messages


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -3, 2.5, "it's", "a\nb", "\ud800", [], (), {}, [1, "a", None], (1,), (1, 2), {"a": [1], 2: {}}],
    ids=repr,
)
def test_a_short_value_is_shown_as_python_writes_it(value):
    assert brief(value) == repr(value)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def bomb(levels):
    """Return a list of a few objects that stands for 9 ** levels of them."""
    value = ["h"]
    for _ in range(levels):
        value = [value] * 9
    return value


CIRCLE = []
CIRCLE.append(CIRCLE)
LARGE = {
    "long text": "x" * 10**6, "long list": list(range(10**6)), "deep list": nested(100_000), "bomb": bomb(20),
    "circle": CIRCLE, "keys": {f"k{n}": n for n in range(20_000)}, "long key": {"x" * 10**6: 1}, "lines": "\n" * 1000,
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_a_large_value_is_shown_in_part_with_little_work(name):
    with at_most_calls(10_000):
        text = brief(LARGE[name], most=50)
    assert len(text) == 53
    assert text.endswith("...")
    assert "\n" not in text
    with at_most_calls(40_000):
        check_message(errors.InputError(unknown("key", LARGE[name], ["a"])))


def test_a_long_number_is_described():
    assert brief(10**5000) == "a number of about 4984 digits"
    assert brief([10**5000, 1]) == "[a number of about 4984 digits, 1]"
    check_message(errors.InputError(unknown("key", 10**5000, ["a"])))


def test_a_message_is_short_and_printable_and_keeps_its_end():
    message = str(errors.RunError(f"{'x' * 10**6}\ud800 \x1b[31m; give another folder"))
    assert len(message) <= 1000
    assert message.endswith("\\ud800 \\x1b[31m; give another folder")
    assert str(errors.InputError("a\nb")) == "a\nb"


def test_paths_and_texts_are_on_one_line():
    assert named("runs/a b") == "runs/a b"
    assert named("a\nb\0") == repr("a\nb\0")
    assert len(named("x" * 10**6)) < 300
    assert one_line("  a\n\n  b\t\0") == "a b \\x00"
    assert len(one_line("x" * 10**6)) < 400


def test_names_are_compared_with_bounded_work():
    names = [f"name {number}" for number in range(10**5)]
    with at_most_calls(200_000):
        assert closest("name 77", names) == "name 77"
        assert closest("x" * 10**6, names) is None
        assert closest([1], names) is None
        assert misspelt((f"prom{number}" for number in range(10**5)), ["prompt"]) is None
    assert misspelt(["prompts"], ["prompt"]) == ("prompts", "prompt")
    assert misspelt(["prompt", 3, "mine"], ["prompt"]) is None
