"""Find the example files, in an installed package as well as in a clone.

The repository keeps them in ``examples/`` and ``scripts/``, where readers look for them; setup.py copies them beside
this module when it builds a wheel.
"""

import shutil
from pathlib import Path

from interpret.errors import InputError, RunError, named, unknown

_HERE = Path(__file__).resolve().parent
_CODE = (".py", ".pyi", "")


def example(name: str) -> Path:
    """Return the path of an example file.

    Args:
        name: the file's name without its ending: ``"examples"`` (prompts), ``"facts"``, ``"pairs"`` (true and false
            sentences), ``"trace"`` (settings), ``"interpretation_demo"`` (the notebook).

    Raises:
        InputError: if there is no example of this name.

    >>> example("facts").name
    'facts.json'
    """
    files = _files()
    if name not in files:
        raise InputError(unknown("example", name, sorted(files)))
    return files[name]


def copy_examples(folder: Path | str) -> list[Path]:
    """Copy all example files into a folder, which is created if it does not exist.

    Returns:
        The paths of the copies. A file that is there already is left as it is.

    Raises:
        InputError: if a file of the same name is there with other contents; nothing is copied then.
        RunError: if a file cannot be written.
    """
    copies = {source: Path(folder) / source.name for _, source in sorted(_files().items())}
    try:
        for source, copy in copies.items():
            if copy.exists() and copy.read_bytes() != source.read_bytes():
                raise InputError(f"{named(copy)} is there already and differs from the example; give another folder")
        Path(folder).mkdir(parents=True, exist_ok=True)
        for source, copy in copies.items():
            if not copy.exists():
                shutil.copyfile(source, copy)
    except OSError as error:
        raise RunError(f"{named(folder)}: the examples cannot be written: {error.strerror}") from error
    return [*copies.values()]


def _files() -> dict[str, Path]:
    """Return name -> file. An installed package has the files here, a clone at its top."""
    installed = [path for path in _HERE.iterdir() if path.suffix not in _CODE]
    top = _HERE.parents[1]
    return {path.stem: path for path in installed or [*top.glob("examples/*"), *top.glob("scripts/*.ipynb")]}
