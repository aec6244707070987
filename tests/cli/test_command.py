"""Functions as commands: options in groups, and messages of the library worded by the options that were typed."""

import re
import shlex
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from interpret.cli import COMMANDS, PROBES, make_app
from interpret.cli.command import LIBRARY, add_command, in_options
from interpret.cli.work import NotAllError
from interpret.errors import InputError
from reference.commands import json_file, run, saved_model
from reference.damage import OUT_OF_MEMORY

OPTIONS = {
    "source_language": "--source-language",
    "device": "--device",
    "device_map": "--device-map",
    "layers": "--layers",
    "new_tokens": "--new-tokens",
    "foil": "--foil",
    "permutations": "--permutations",
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """A group of options."""

    width: Annotated[int, typer.Option(min=1, help="How wide.")]
    new_height: Annotated[int, typer.Option("--height", help="How high.")] = 2


def app_of(command):
    made = typer.Typer(rich_markup_mode=None)
    add_command(made, "one", command)
    return made


def area(name: Annotated[str, typer.Argument()] = "it", *, size: Size, deep: bool = False) -> None:
    """Tell an area."""
    if size.new_height < -1:
        raise InputError("another run:\n  height: 2 there")
    if size.new_height < 0:
        raise InputError(f"new_height is {size.new_height}: of {name!r} 'new_height' is at least 0")
    if size.new_height == 0:
        raise NotAllError({"new_height": "new_height is 0", "width": "1"}, "and 3 more in new_height")
    typer.echo(f"{name} {size.width * size.new_height} {deep}")


def typed(*words):
    found = CliRunner().invoke(app_of(area), list(words))
    return found.exit_code, found.stdout


@pytest.mark.parametrize("too_large", OUT_OF_MEMORY)
def test_memory_that_runs_out_outside_a_unit_is_one_message(too_large):
    def one() -> None:
        """Do it."""
        too_large()

    found = CliRunner().invoke(app_of(one), [])
    assert found.exit_code == 2
    assert found.stderr == "error: memory ran out; use a smaller dtype, a smaller batch size, or another device\n"


def test_a_group_stands_for_its_options():
    assert typed("--width", "3") == (0, "it 6 False\n")
    assert typed("this", "--height", "4", "--width", "3", "--deep") == (0, "this 12 True\n")
    assert typed("--width", "0")[0] == typed("--height", "3")[0] == 2, "the group's limits hold, and its defaults"


def test_a_mistake_is_said_of_the_option_with_exit_code_2(capsys):
    with pytest.raises(SystemExit) as exit_:
        app_of(area)(["new_height", "--width", "1", "--height", "-1"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: --height is -1: of 'new_height' 'new_height' is at least 0\n"


def test_a_mistake_is_said_of_the_option_by_its_own_name_too(capsys):
    with pytest.raises(SystemExit):
        app_of(area)(["--width", "1", "--height", "-2"])
    assert capsys.readouterr().err == "error: another run:\n  --height: 2 there\n"


def test_brackets_in_a_message_are_no_markup(capsys):
    with pytest.raises(SystemExit):
        app_of(area)(["[/red]", "--width", "1", "--height", "-1"])
    assert "of '[/red]' 'new_height'" in capsys.readouterr().err


def test_an_option_without_a_default_is_asked_for(capsys):
    with pytest.raises(SystemExit) as exit_:
        app_of(area)([])
    assert exit_.value.code == 2
    assert "Missing option '--width'" in capsys.readouterr().err


def test_units_that_were_not_done_are_said_with_exit_code_3(capsys):
    with pytest.raises(SystemExit) as exit_:
        app_of(area)(["--width", "1", "--height", "0"])
    assert exit_.value.code == 3
    assert capsys.readouterr().err == "new_height: --height is 0\nwidth: 1\nand 3 more in new_height\n"


@pytest.mark.parametrize(
    ("message", "worded"),
    [
        ("source_language is missing; give en", "--source-language is missing; give en"),
        ("unknown source_language 'e'; did you mean 'en'?", "unknown --source-language 'e'; did you mean 'en'?"),
        (
            "device and device_map exclude each other: give device for one, device_map for several",
            "--device and --device-map exclude each other: give --device for one, --device-map for several",
        ),
        ("device_map cannot spread it: give device", "--device-map cannot spread it: give --device"),
        ("n_permutations is 0: draw at least one", "--permutations is 0: draw at least one"),
        ("'a' needs contrast_targets", "'a' needs --foil"),
        ("max_new_tokens is 0: give at least 1", "--new-tokens is 0: give at least 1"),
        (
            "another run:\n  layers: 1 there\n  new_tokens: 2 there",
            "another run:\n  --layers: 1 there\n  --new-tokens: 2 there",
        ),
        ("layer 9 does not exist; there are layers 0 to 4", "layer 9 does not exist; there are layers 0 to 4"),
        ("the device 'x' is no device, and layers are", "the device 'x' is no device, and layers are"),
        ("the model's new_tokens, it's \"new_tokens\"", "the model's --new-tokens, it's \"new_tokens\""),
        ("runs/new_tokens/new_tokens.csv of new_tokens_b", "runs/new_tokens/new_tokens.csv of new_tokens_b"),
        ("x-new_tokens, a.new_tokens and runs/new_tokens", "x-new_tokens, a.new_tokens and runs/new_tokens"),
        ("new_tokens.csv, new_tokens/1 and new_tokens-1", "new_tokens.csv, new_tokens/1 and new_tokens-1"),
        ("of new_tokens.", "of --new-tokens."),
        ("give layers that exist", "give layers that exist"),
        ("batch_size is no option of this command", "batch_size is no option of this command"),
    ],
)
def test_messages_name_options(message, worded):
    assert in_options(message, OPTIONS) == worded


def test_a_command_without_options_changes_no_message():
    assert in_options("device and device_map", {}) == "device and device_map"


def commands():
    found = get_command(make_app()).commands
    probes = found["probe"].commands
    return [(name, found[name]) for name in COMMANDS] + [(f"probe {name}", probes[name]) for name in PROBES]


def test_the_librarys_names_are_those_of_options():
    assert set(LIBRARY.values()) <= {one.name for _, one_of in commands() for one in one_of.params}


@pytest.mark.parametrize(("name", "one"), commands(), ids=[name for name, _ in commands()])
def test_every_help_teaches_by_an_example(name, one):
    (example,) = re.findall(rf"^interpret {name}(?: .+)?$", one.help, re.MULTILINE)
    words = shlex.split(example)[1 + len(name.split()) :]
    context = one.make_context(name, words)
    assert context.params, "it can be typed as it stands"


def test_the_list_of_commands_tells_each_in_a_clause_that_is_not_cut_short(capsys):
    assert run("--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "selfie Let a model describe its hidden states in words trace Find the tokens and layers that store facts by"
        in shown
    )
    assert "..." not in shown.partition("Commands:")[2]


def test_numbers_between_colons_are_no_pictures(tmp_path, capsys):
    examples = json_file(tmp_path / "examples.json", {"examples": [{"prompt": "I love", "category": "c"}]})
    argv = ["selfie", "--examples", examples, "--model", saved_model(tmp_path / "model"), "--device", "cpu"]
    assert run(*argv, "--layers", "1:-1:0") == 2
    assert "1:-1:0" in capsys.readouterr().err
