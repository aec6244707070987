"""Files of an activation cache: one safetensors file per batch, and an index that is written last.

``cache.json`` holds ``format``, ``names``, the ``token_ids`` of each prompt, and ``batches``, the number of files
``batch-00000.safetensors``, ``batch-00001.safetensors`` and so on. A folder without ``cache.json`` is unfinished.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from interpret.errors import RunError, brief, named, one_line
from interpret.reading import parse_json, read_bytes

FORMAT = 1
INDEX = "cache.json"
Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Folder:
    """A cache folder that is being written, batch by batch."""

    path: Path
    token_ids: Rows
    names: tuple[str, ...]
    _files: list[Path] = field(default_factory=list)

    def write(self, batch: dict[str, Tensor]) -> None:
        """Write the tensors [b, t, ...] of the next b prompts."""
        self._files.append(_batch_file(self.path, len(self._files)))
        save_file({name: value.contiguous() for name, value in batch.items()}, self._files[-1])

    def finish(self) -> Callable[[str], Tensor]:
        """Write the index and return a function that reads a tensor by its name."""
        index = {"format": FORMAT, "names": self.names, "batches": len(self._files), "token_ids": self.token_ids}
        draft = self.path / f"{INDEX}.part"
        draft.write_text(json.dumps(index))
        draft.replace(self.path / INDEX)
        return load(self.path)[2]


def start(folder: str | Path, token_ids: Rows, names: Sequence[str]) -> Folder:
    """Create the folder of a cache.

    Raises:
        RunError: if the path is a file, or a folder that is not empty.
    """
    path = Path(folder)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise RunError(f"{path} is not an empty folder: give a new or an empty folder for the cache")
    path.mkdir(parents=True, exist_ok=True)
    return Folder(path, token_ids, tuple(names))


def load(folder: str | Path) -> tuple[Rows, tuple[str, ...], Callable[[str], Tensor]]:
    """Return the token ids and names of a cache, and a function that reads a tensor, [B, T, ...], by its name.

    Raises:
        RunError: if the folder holds no finished cache of this format, or its index is damaged. The returned function
            raises it if a file of the cache is missing or damaged.
    """
    path = Path(folder)
    index = _index(path)
    token_ids, names, n_batches = index["token_ids"], index["names"], index["batches"]
    if not (_are_rows(token_ids) and _are(str, names) and type(n_batches) is int and 0 < n_batches <= len(token_ids)):
        raise RunError(f"{named(path / INDEX)} is damaged: its token ids, names or number of batches cannot be read")
    width = max(len(row) for row in token_ids)

    def read(name: str) -> Tensor:
        return torch.cat([_read(_batch_file(path, batch), name, width) for batch in range(n_batches)])

    return tuple(tuple(row) for row in token_ids), tuple(names), read


def _index(path: Path) -> dict[str, Any]:
    """Return the index of a cache folder, with the keys of this format."""
    try:
        index = parse_json(read_bytes(path / INDEX))
    except ValueError:
        raise RunError(
            f"{named(path)} holds no finished activation cache: its {INDEX} is missing or unreadable"
        ) from None
    version = index.get("format") if isinstance(index, dict) else None
    if version != FORMAT:
        raise RunError(f"{named(path / INDEX)}: unknown format {brief(version)}; this version reads format {FORMAT}")
    if missing := {"token_ids", "names", "batches"} - index.keys():
        raise RunError(f"{named(path / INDEX)} is damaged: {sorted(missing)[0]!r} is missing")
    return dict(index)


def _are_rows(rows: Any) -> bool:
    """Return whether a value is a list of rows of token ids, at least one."""
    return _are(list, rows) and bool(rows) and all(_are(int, row) for row in rows)


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _read(file: Path, name: str, width: int) -> Tensor:
    """Read one tensor of a batch and pad it on the right with zeros: [b, t, ...] -> [b, T, ...]."""
    try:
        with safe_open(file, framework="pt") as tensors:
            value: Tensor = tensors.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{named(file)} cannot be read: {one_line(error)}; record the cache again") from None
    if value.dim() < 2 or value.shape[1] > width:
        raise RunError(f"{named(file)} is damaged: {name} has the shape {list(value.shape)}; record the cache again")
    return pad(value, [0, 0] * (value.dim() - 2) + [0, width - value.shape[1]])


def _batch_file(folder: Path, number: int) -> Path:
    return folder / f"batch-{number:05}.safetensors"
