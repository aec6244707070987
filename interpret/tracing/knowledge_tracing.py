"""Check the module names of a Knowledge-Tracing configuration, and convert traces to that project's result lists.

Knowledge-Tracing registers hooks by names such as ``model.layers.[LAYER_NUM].mlp`` and silently skips a name that
matches no module; the run then measures nothing. Here the parts of a model are known from its family, so the names are
only checked: each must be a module, and those that determine what is traced must be the expected module.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from interpret.anatomy import Anatomy, anatomy_of, unwrapping
from interpret.errors import InputError, brief
from interpret.facts.files import FactFile
from interpret.facts.grids import by_part
from interpret.storage import disk
from interpret.tracing.mediators import MEDIATORS
from interpret.tracing.tables import TraceGrid, with_metric

LAYER = "[LAYER_NUM]"
"""Placeholder for the index of each layer."""


@dataclass(frozen=True)
class HookNames:
    """The section ``hook_layer``: names of modules, with ``[LAYER_NUM]`` in place of a layer's index."""

    clean_replace: str
    """The restored module, whose output is the residual stream: each layer."""
    attn_sever: str | None = None
    """The module held at its corrupted values: the attention of each layer."""
    mlp_sever: str | None = None
    """The module held at its corrupted values: the MLP of each layer."""
    corrupt: str | None = None
    """The module whose output gets the noise: the input embeddings."""
    clean_save: tuple[str, ...] = ()
    """The modules whose outputs the clean run stores; any modules, because the needed values are stored anyway."""
    corrupted_save: tuple[str, ...] = ()
    """The modules whose outputs the corrupted run stores, likewise."""

    def all(self) -> Iterator[tuple[str, str]]:
        """Yield the key and the name of every module."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                yield from ((f"{field.name}[{index}]", name) for index, name in enumerate(value))
            elif value is not None:
                yield field.name, value


@unwrapping
def check_module_names(model: PreTrainedModel, names: HookNames) -> None:
    """Check that every name is a module of the model, and the expected one where its key requires one.

    Raises:
        InputError: if not; the message gives the key, the name, and the expected or similar names.
        UnsupportedModelError: if the model is not of a supported family.
    """
    anatomy = anatomy_of(model)
    modules = dict(model.named_modules())
    templates = _templates(anatomy, modules)
    for key, name in names.all():
        found = [modules.get(name.replace(LAYER, str(layer))) for layer in range(len(anatomy.layers))]
        if None in found:
            near = get_close_matches(name, templates.values(), n=3)
            hint = f"similar names: {', '.join(map(repr, near))}" if near else "print(model) lists its modules"
            raise InputError(f"hook_layer.{key}: {brief(name)} is not a module of {type(model).__name__}; {hint}")
        words, part = _part(model, anatomy, key)
        if part and found != part:
            raise InputError(f"hook_layer.{key}: {brief(name)} does not name {words}; expected {templates[part[0]]!r}")


def _part(model: PreTrainedModel, anatomy: Anatomy, key: str) -> tuple[str, list[nn.Module]]:
    """Return a description of the module that a key requires, and the module of each layer; empty if any is allowed."""
    layers = list(anatomy.layers)
    if key == "clean_replace":
        return "each layer", layers
    if key == "attn_sever":
        attentions = [anatomy.module(layer, "attn_out") for layer in range(len(layers))]
        return "the module that outputs the attention of each layer", attentions
    if key == "mlp_sever":
        mlps = [anatomy.module(layer, "mlp_out") for layer in range(len(layers))]
        return "the module that outputs the MLP of each layer", mlps
    if key == "corrupt":
        return "the input embedding", [model.get_input_embeddings()] * len(layers)
    return "", []


def _templates(anatomy: Anatomy, modules: Mapping[str, nn.Module]) -> dict[nn.Module, str]:
    """Return the names of all modules, with those of the first layer generalised to every layer by ``[LAYER_NUM]``."""
    layers = next(name for name, module in modules.items() if module is anatomy.layers)
    first, numbered = f"{layers}.0", re.compile(re.escape(layers) + r"\.[1-9]")
    return {
        module: f"{layers}.{LAYER}{name.removeprefix(first)}" if name.startswith(first) else name
        for name, module in modules.items()
        if name and not numbered.match(name)
    }


def row_names(file: FactFile) -> list[str]:
    """Return the name of each row's fact, in file order; "" for an unreadable row."""
    names = [fact.name for fact in file.facts]
    for bad in file.bad:  # in ascending order, so that each is inserted at its own row
        names.insert(bad.index, "")
    return names


def write_lists(grids: Sequence[TraceGrid], rows: list[str], folder: Path, name: str) -> int:
    """Write the result files of traces, such as ``{name}-te.pt``, and return their number.

    If there are several metrics, each has its own files, such as ``{name}-te-logit.pt``.

    Args:
        grids: of each traced fact, mediator and metric.
        rows: the name of each row's fact, see ``row_names``.
        folder: an existing folder.
        name: the name of the model.

    Raises:
        RunError: if a file cannot be written.
    """
    by_metric = by_part(grids, "metric")
    contents = {
        with_metric(file, metric, by_metric): values
        for metric, of_one in by_metric.items()
        for file, values in result_lists({(grid.name, grid.mediator): grid for grid in of_one}, rows).items()
    }
    for file, values in contents.items():
        written = io.BytesIO()
        torch.save(values, written)
        disk.replace_whole(folder / f"{name}-{file}.pt", written.getvalue())
    return len(contents)


def result_lists(grids: dict[tuple[str, str], TraceGrid], rows: list[str]) -> dict[str, list[Any]]:
    """Return the content of each result file of one metric.

    It is one tensor per row; 0 or an empty one for a row that was not traced.
    """
    by_fact = {name: grid for (name, _), grid in grids.items()}
    contents: dict[str, list[Any]] = {
        "te": [torch.tensor(by_fact[name].total_effect if name in by_fact else 0.0) for name in rows],
        "valid_index": [index for index, name in enumerate(rows) if name in by_fact],
    }
    n_layers = next(iter(grids.values())).effects.shape[1]
    files = {name: file for name, row in MEDIATORS.items() if (file := row.knowledge_tracing_file)}
    for mediator, file in files.items():
        if any(one == mediator for _, one in grids):
            # After the last layer there is nothing to sever, so Knowledge-Tracing leaves this layer out.
            layers = n_layers - 1 if MEDIATORS[mediator].pins else n_layers
            empty = torch.zeros(layers, 0)
            contents[file] = [
                torch.tensor(grids[name, mediator].effects.T[:layers].copy()) if (name, mediator) in grids else empty
                for name in rows
            ]
    return contents
