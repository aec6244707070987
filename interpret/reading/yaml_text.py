"""Read YAML files of settings: plain values only, with bounds on depth, number of values and aliases.

PyYAML builds objects of several types (dates, sets, binary data), follows nesting until Python's stack is full, and
uses the last of two equal keys. An alias repeats a whole value, so that a short file may stand for billions of them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from interpret.errors import InputError, brief, named, one_line
from interpret.reading.text import read_text

DEEPEST = 20
"""Maximum depth of nested lists and mappings."""
MOST_VALUES = 5000
"""Maximum number of keys and values, with each alias counted as the value it repeats."""
LARGEST = 1_000_000
"""Maximum size of the file in bytes: PyYAML reads about a megabyte per second."""
LONGEST_NUMBER = 100
"""Maximum number of characters of a number."""


def read_yaml(path: str | Path, *, like: str) -> Any:
    """Return the content of a YAML file: mappings, lists, strings, numbers, booleans and None. Dates are strings.

    Args:
        path: the file.
        like: a valid file of the same kind, which the message names if ``path`` does not exist.

    Raises:
        InputError: if the file is missing, cannot be read, is not YAML, is too deep or too large, has a key twice in
            one mapping, or a value that does not fit its tag.
    """
    text = read_text(path, like=like, most=LARGEST)
    try:
        return yaml.load(text, Loader=_Loader)
    except InputError as error:
        raise InputError(f"{named(path)}: {error}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: an escape of no character
        raise InputError(f"{named(path)} is not YAML: {one_line(error)}") from None


class _Loader(yaml.SafeLoader):
    """Loads plain values within the bounds of this module."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._count = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node within the bounds; an alias counts as many values as the node it repeats."""
        line = self.peek_event().start_mark.line + 1
        is_alias, before = self.check_event(yaml.AliasEvent), self._count
        if self._depth >= DEEPEST:
            raise InputError(f"line {line} is nested deeper than {DEEPEST} levels; expected a few")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and id(node) not in self._sizes:
            raise InputError(f"line {line}: an alias repeats the value that contains it; write the value out")
        self._count += self._sizes[id(node)] if is_alias else 1
        if self._count > MOST_VALUES:
            raise InputError(f"line {line}: more than {MOST_VALUES} keys and values; expected the settings of one run")
        self._sizes[id(node)] = self._count - before
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node, without duplicate keys."""
        seen = set()
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        for key, _ in pairs:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in seen:
                raise InputError(f"key {brief(self.construct_object(key))} occurs twice; keep one")
            seen.add(name)
        return super().construct_mapping(node, deep)


def _checked(construct: Callable[[Any, Any], Any], kind: str) -> Callable[[Any, Any], Any]:
    """Return a constructor of scalars whose errors are messages."""

    def constructed(loader: Any, node: Any) -> Any:
        try:
            if len(node.value) <= LONGEST_NUMBER:
                return construct(loader, node)
        except (ValueError, KeyError, IndexError, OverflowError):
            pass
        raise InputError(f"line {node.start_mark.line + 1}: {brief(node.value)} is not {kind}")

    return constructed


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_constructors = {
    f"{_TAG}null": yaml.SafeLoader.construct_yaml_null,
    f"{_TAG}bool": _checked(yaml.SafeLoader.construct_yaml_bool, "true or false"),
    f"{_TAG}int": _checked(yaml.SafeLoader.construct_yaml_int, "an integer"),
    f"{_TAG}float": _checked(yaml.SafeLoader.construct_yaml_float, "a number"),
    f"{_TAG}str": yaml.SafeLoader.construct_yaml_str,
    f"{_TAG}seq": yaml.SafeLoader.construct_yaml_seq,
    f"{_TAG}map": yaml.SafeLoader.construct_yaml_map,
    None: yaml.SafeLoader.construct_undefined,
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
"""A value such as 2024-01-31 is the string that was written, as in YAML 1.2, not a date."""
