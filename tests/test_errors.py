import pytest

from interpret import errors
from interpret.errors import unknown


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
