"""GGUF files, converted once: the dequantised model is kept in the cache as a folder that opens in seconds.

Dequantising a model of 1.5 billion weights takes a minute. The folder is named by the file's sha256 and by the release
of transformers that converted it, so that it holds the weights to the bit that a new conversion would give.
"""

import errno
import os
import shutil
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError

from interpret.errors import RunError, named
from interpret.storage.cache import cache_folder, remembered_sha256
from interpret.storage.disk import waiting_lock
from interpret.storage.made_folders import defect, make_folder

Say = Callable[[str], None]

RECIPE = 1
"""Version of what is written. Folders made by another version are made again."""
_BESIDES_WEIGHTS = 100_000_000
"""Room for tokenizer, configuration and manifest, in bytes."""


def converted_folder(file: Path, convert: Callable[[Path, Path], None], say: Say | None = None) -> Path | None:
    """Return the folder in the cache that holds the model of a GGUF file; convert the file if there is none.

    Several processes may call it at once: one converts, the others wait. A folder with a changed, truncated or missing
    file is made again.

    Args:
        file: the GGUF file.
        convert: is called with the file and an empty folder, into which it writes model and tokenizer.
        say: is called with one line before each slow step, and with the place and size of what is kept.

    Returns:
        The folder; None if the conversion cannot be kept, for example because the disk is full. The file then has to
        be opened itself, and ``say`` was called with the reason.
    """
    say = say or (lambda line: None)
    try:
        made_from: dict[str, object] = {
            "gguf_sha256": remembered_sha256(file),
            "recipe": RECIPE,
            "transformers": version("transformers"),
            "gguf": version("gguf"),
        }
        name = f"{made_from['gguf_sha256']}-transformers-{made_from['transformers']}"
        folder = cache_folder() / "gguf" / name
        if defect(folder, made_from) is None:  # without the lock, so that a read-only cache works, too
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        waiting = partial(say, f"another process is converting {named(file)}: waiting for it")
        with waiting_lock(folder.with_name(f"{name}.lock"), waiting):
            found = defect(folder, made_from)  # again: another process may have just made it
            if found is not None:
                if folder.exists():
                    say(f"the conversion in {folder} has to be made again: {found}")
                say(f"converting {named(file)} (once)")
                make_folder(folder, made_from, partial(convert, file))
                say(f"kept the converted weights in {folder} ({_size(folder) / 1e9:.1f} GB), to open them from there")
    except (OSError, SafetensorError, RunError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        say(f"the conversion of {named(file)} is not kept in {cache_folder()}: {reason}")
        return None
    return folder


def check_room(file: Path, folder: Path) -> None:
    """Raise an error if the weights of a GGUF file, as float32, do not fit on the disk of a folder.

    Asked before a conversion, because a conversion that fails when it is written has taken its minutes already.

    Raises:
        OSError: if they do not fit.
    """
    from gguf import GGUFReader  # here, since only a conversion needs it

    needed = sum(4 * int(tensor.n_elements) for tensor in GGUFReader(file).tensors) + _BESIDES_WEIGHTS
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({needed / 1e9:.1f} GB needed)")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
