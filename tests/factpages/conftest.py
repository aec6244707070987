"""A tiny model that knows one fact, and a run of fact pages on it, computed once for all tests."""

from pathlib import Path

import pytest

import interpret
from interpret.factpages.runs import run
from interpret.storage.run_folder import RunFolder
from reference.commands import answering, saved_model
from reference.fact_pages import FACTS, PROMPT, SETTINGS


@pytest.fixture(scope="package")
def model_folder_knowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny model that continues the first prompt with Paris."""
    return answering(saved_model(tmp_path_factory.mktemp("facts") / "model"), PROMPT, " Paris")


@pytest.fixture(scope="package")
def opened_knowing(model_folder_knowing):
    """The model and its tokenizer."""
    return interpret.load(model_folder_knowing, device="cpu")


@pytest.fixture(scope="package")
def finished(opened_knowing, tmp_path_factory) -> RunFolder:
    """A run over ``FACTS``; tests must not change its folder."""
    return run(*opened_knowing, FACTS, tmp_path_factory.mktemp("runs") / "facts", settings=SETTINGS, progress=False)
