"""docs/architecture.md says what is there: its picture, its files, its table of packages."""

import json
import re

import pytest

from reference.house import LEVELS, PACKAGE, TOP, room_imports

DOCUMENT = (TOP / "docs" / "architecture.md").read_text()
PICTURE = (TOP / "docs" / "pictures" / "architecture.svg").read_text()


def test_the_picture_is_of_the_imports_there_are():
    (description,) = re.findall(r"<dc:description>(.*?)</dc:description>", PICTURE, re.DOTALL)
    imports = {room: sorted(others) for room, others in room_imports().items()}
    assert json.loads(description) == imports, "run `python docs/draw_architecture.py`"


def test_the_picture_names_every_package_twice():
    shown = re.findall(r">([a-z_]+)</text>", PICTURE)
    drawn = set().union(*LEVELS) - {"__init__", "__main__", "lazy"}
    assert {name: shown.count(name) for name in drawn} == dict.fromkeys(drawn, 2)


def test_the_table_of_packages_has_each_with_its_level():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| .+ \|$", DOCUMENT, re.MULTILINE)
    assert [(int(level), name) for level, name in rows] == [
        (height, name) for height, names in enumerate(LEVELS) for name in sorted(names) if not name.startswith("__")
    ]


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:interpret|tests|docs|scripts|examples)/[\w./]+)`", DOCUMENT)))
)
def test_every_file_that_is_named_is_there(path):
    assert (TOP / path).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:\w+/)+\w+\.(?:py|js|html))`", DOCUMENT))))
def test_every_module_that_is_named_is_there(path):
    assert (TOP / path).exists() or (PACKAGE / path).exists()
