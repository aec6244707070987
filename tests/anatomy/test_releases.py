"""Which releases of transformers are supported, refused, or allowed with a warning."""

import warnings
from dataclasses import replace

import pytest

import interpret
from interpret.anatomy import FAMILIES, anatomy_of, check_release, releases
from interpret.anatomy.releases import NEWEST_TESTED
from interpret.errors import UnsupportedModelError
from reference.commands import run
from reference.house import TOP


@pytest.fixture
def released(monkeypatch):
    """Pretend that another release of transformers is installed."""

    def pretend(version: str) -> None:
        check_release.cache_clear()
        monkeypatch.setattr(releases.transformers, "__version__", version)  # transformers 5 replaces its own module

    yield pretend
    check_release.cache_clear()


BETWEEN = ["4.33.3", "4.34.1", "4.35.0", "4.46.3", "4.56.2", "4.57.0.dev0"]


@pytest.mark.parametrize("version", BETWEEN)
def test_a_release_that_is_not_supported_is_refused_by_name(version, released, llama, tmp_path):
    released(version)
    message = (
        f"transformers {version} is not supported: use 4.34.0, or 4.57 or newer (pip install --upgrade transformers)"
    )
    for call in (lambda: interpret.load(tmp_path), lambda: interpret.attach(llama), lambda: interpret.load("demo")):
        with pytest.raises(UnsupportedModelError) as caught:
            call()
        assert str(caught.value) == message


def test_a_command_refuses_it_in_one_line(released, model_folder, capsys):
    released("4.46.3")
    assert run("check", model_folder, "--device", "cpu") == 2
    assert capsys.readouterr().err.startswith("error: transformers 4.46.3 is not supported: use 4.34.0, or 4.57 or")


@pytest.mark.parametrize("version", ["4.34.0", "4.57.0", "4.57.6", "5.0.0", "5.23.0", "5.24.0"])
def test_a_supported_release_is_used_without_a_word(version, released):
    released(version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_release()


@pytest.mark.parametrize("version", ["4.57.6", "5.0.0"])
def test_a_family_that_a_release_computes_wrongly_is_refused_by_name(version, released, llama, monkeypatch):
    """As RecurrentGemma before transformers 5."""
    monkeypatch.setitem(FAMILIES, "llama", replace(FAMILIES["llama"], since="5.0"))
    released(version)
    if version == "5.0.0":
        assert anatomy_of(llama).family.name == "llama"
        return
    message = rf"^LlamaForCausalLM \(model_type 'llama'\) needs transformers 5.0 or newer, and {version} is installed"
    with pytest.raises(UnsupportedModelError, match=message):
        interpret.attach(llama)


@pytest.mark.parametrize("version", ["5.24.1", "5.25.0", "6.0.0", "5.25.0.dev0"])
def test_a_newer_release_is_allowed_and_said_once(version, released, llama):
    released(version)
    with pytest.warns(UserWarning, match=f"^transformers {version} is newer than 5.24.0, the newest release that"):
        interpret.attach(llama)
    interpret.detach(llama)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_release()


def test_the_newest_tested_release_is_the_one_that_the_tests_install():
    assert f"transformers=={NEWEST_TESTED}\n" in (TOP / "Makefile").read_text(encoding="utf-8")
