"""A pytest plugin: of the tests marked ``matrix``, run as few combinations as hold every value of each parameter.

Of the combinations marked ``further``, only a few of each test are drawn; the seed is the test's name. The option
``--all-combinations`` runs them all.
"""

from collections.abc import Hashable, Sequence
from random import Random
from typing import Any

import pytest

SAMPLE = 3
"""How many of a test's combinations that are marked ``further`` are run."""


def covering(combinations: Sequence[frozenset[Hashable]]) -> list[int]:
    """Return the indices of combinations that hold every value, chosen greedily, in their order.

    Args:
        combinations: the values of each combination; a value of one parameter differs from those of the others.
    """
    missing = frozenset[Hashable]().union(*combinations)
    chosen = []
    while missing:
        best = max(range(len(combinations)), key=lambda index: len(combinations[index] & missing))
        chosen.append(best)
        missing -= combinations[best]
    return sorted(chosen)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that runs all combinations."""
    parser.addoption("--all-combinations", action="store_true", help="run all combinations of the tests marked matrix")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the combinations that are not needed; pytest counts them in its last line."""
    if config.getoption("all_combinations"):
        return
    out = _not_drawn(items)
    drawn = set(out)
    out += _left_out([item for item in items if item not in drawn])
    config.hook.pytest_deselected(items=out)
    unwanted = set(out)
    items[:] = [item for item in items if item not in unwanted]


def _not_drawn(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    further: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("further"):
            further.setdefault(item.nodeid.partition("[")[0], []).append(item)
    out: list[pytest.Item] = []
    for test, of_one in further.items():
        kept = Random(test).sample(of_one, min(SAMPLE, len(of_one)))
        out += [item for item in of_one if item not in kept]
    return out


def _left_out(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    tests: dict[str, list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("matrix"):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    out: list[pytest.Item] = []
    for of_one in tests.values():
        kept = covering([_values(item) for item in of_one])
        out += [item for index, item in enumerate(of_one) if index not in kept]
    return out


def _values(item: pytest.Function) -> frozenset[Hashable]:
    """Return the values of a test's parameters by name; a pair is two parameters."""
    values: list[Hashable] = []
    for name, value in item.callspec.params.items():
        parts: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
        values += [(name, number, str(part)) for number, part in enumerate(parts)]
    return frozenset(values)
