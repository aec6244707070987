"""The combinations that the ordinary suite runs of a test of many."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.combinations import covering

pytest_plugins = ["pytester"]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_every_value_is_chosen_and_no_choice_is_idle(sizes: list[int]) -> None:
    named = [[(number, value) for value in range(size)] for number, size in enumerate(sizes)]
    combinations = [frozenset(one) for one in itertools.product(*named)]
    chosen = [combinations[index] for index in covering(combinations)]
    assert frozenset().union(*chosen) == frozenset().union(*combinations)
    assert max(sizes) <= len(chosen) <= sum(sizes) - len(sizes) + 1


def test_two_parameters_go_along_the_diagonal() -> None:
    assert covering([frozenset({("a", i), ("b", j)}) for i in range(3) for j in range(3)]) == [0, 4, 8]


@pytest.mark.parametrize(("option", "passed", "deselected"), [((), 3, 6), (("--all-combinations",), 9, 0)])
def test_the_suite_counts_what_it_leaves_out(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...], passed: int, deselected: int
) -> None:
    pytester.makeini("[pytest]\nmarkers = matrix")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.matrix
        @pytest.mark.parametrize("first", range(3))
        @pytest.mark.parametrize("second", range(3))
        def test_product(first, second):
            assert True
        """
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    found = pytester.runpytest_subprocess("-p", "reference.combinations", *option)
    found.assert_outcomes(passed=passed, deselected=deselected)
