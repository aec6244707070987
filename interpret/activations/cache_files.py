"""Files of an activation cache: one safetensors file per batch, and an index that is written last.

``cache.json`` holds ``format``, ``names``, the ``token_ids`` of each prompt, and ``batches``, the number of files
``batch-00000.safetensors``, ``batch-00001.safetensors`` and so on. A folder without ``cache.json`` is unfinished.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from interpret.errors import RunError

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
        RunError: if the folder holds no finished cache of this format.
    """
    path = Path(folder)
    try:
        index = json.loads((path / INDEX).read_text())
    except (OSError, ValueError):
        raise RunError(f"{path} holds no finished activation cache: its {INDEX} is missing or unreadable") from None
    if index.get("format") != FORMAT:
        raise RunError(f"{path / INDEX}: unknown format {index.get('format')!r}; this version reads format {FORMAT}")
    token_ids = tuple(tuple(row) for row in index["token_ids"])
    n_batches, width = index["batches"], max(len(row) for row in token_ids)

    def read(name: str) -> Tensor:
        return torch.cat([_read(_batch_file(path, batch), name, width) for batch in range(n_batches)])

    return token_ids, tuple(index["names"]), read


def _read(file: Path, name: str, width: int) -> Tensor:
    """Read one tensor of a batch and pad it on the right with zeros: [b, t, ...] -> [b, T, ...]."""
    with safe_open(file, framework="pt") as tensors:
        value: Tensor = tensors.get_tensor(name)
    return pad(value, [0, 0] * (value.dim() - 2) + [0, width - value.shape[1]])


def _batch_file(folder: Path, number: int) -> Path:
    return folder / f"batch-{number:05}.safetensors"
