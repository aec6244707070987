"""Attributions on disk: one JSON file each, which any program can read and which reads back exactly.

The JSON is strict: an array is ``{"dtype", "shape", "values"}`` with its values in one flat list, in which NaN is
``null`` and infinities are the strings ``"inf"`` and ``"-inf"``. Floats are written so that they come back bit for bit.
"""

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from interpret.attribution.result.scores import Attributed, AttributionInfo, AttributionScores, ScoreArray
from interpret.errors import InputError
from interpret.storage.disk import replacing

FORMAT, VERSION = "interpret.attribution", 1
_DTYPES = ("float16", "float32", "float64")
_NO_NUMBERS = {None: math.nan, "inf": math.inf, "-inf": -math.inf}
_GZIP_MAGIC = b"\x1f\x8b"


def save(attribution: AttributionScores, path: str | Path, *, overwrite: bool = False, compress: bool = False) -> Path:
    """Write an attribution to a file, whole or not at all.

    Args:
        attribution: what is written; shapes, NaN and every bit of the scores are kept.
        path: of the file; its folder exists.
        overwrite: replace a file that is there.
        compress: write gzip; a path without ``.gz`` gets it.

    Returns:
        The path written.

    Raises:
        InputError: if the file is there and may not be replaced, if the path says compressed and the call does not,
            or if an option in the info is nothing JSON has; nothing is written then.
        RunError: if the disk does not take it.
    """
    path = Path(path)
    if compress and path.suffix != ".gz":
        path = path.with_name(path.name + ".gz")
    if not compress and path.suffix == ".gz":
        raise InputError(f"{path} is named as a compressed file; give compress=True, or another name")
    if path.exists() and not overwrite:
        raise InputError(f"{path} is there already; give overwrite=True to replace it, or another name")
    with replacing(path) as file:
        # Without a name and a time of writing, so that equal attributions are equal files.
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) if compress else nullcontext(file) as target:
            for text in _written(attribution):
                target.write(text.encode())
    return path


def load(path: str | Path) -> tuple[list[Attributed], AttributionInfo]:
    """Read an attribution that ``save`` wrote, compressed or not.

    Raises:
        InputError: if there is no such file, or it holds no attribution of a version this one reads.
    """
    path = Path(path)
    content = _content(path)
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise InputError(f"{path} holds no attribution: its format is {found!r}, not {FORMAT!r}")
    if content.get("version") != VERSION:
        raise InputError(f"{path} is of version {content.get('version')!r} of the format; this program reads {VERSION}")
    try:
        info, sequences = content["info"], content["sequences"]
        info = _checked(AttributionInfo, info | {"aggregation": tuple(info["aggregation"])})
        return [_checked(Attributed, _decoded(one)) for one in sequences], info
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error}") from None


def _written(attribution: AttributionScores) -> Iterator[str]:
    """Yield the file in pieces, so that no more than one input is held of an attribution that is read from a disk."""
    head = {"format": FORMAT, "version": VERSION, "info": _values(attribution.info)}
    yield f'{_json(head)[:-1]}, "sequences": ['
    for number, one in enumerate(attribution.sequences):
        yield ", " if number else ""
        yield _json({name: _encoded(value) for name, value in _values(one).items()})
    yield "]}"


def _json(content: Mapping[str, Any]) -> str:
    try:
        return json.dumps(content, ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the info holds what cannot be saved as JSON: {error}") from None


def _values(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, uncopied."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _encoded(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _array(value)
    return {name: _array(one) for name, one in value.items()} if isinstance(value, Mapping) else value


def _array(array: ScoreArray) -> dict[str, Any]:
    if array.dtype.name not in _DTYPES:
        raise InputError(f"scores of dtype {array.dtype} cannot be saved; allowed: {', '.join(_DTYPES)}")
    values: list[Any] = array.ravel().tolist()
    for place in np.flatnonzero(~np.isfinite(array)).tolist():
        values[place] = None if math.isnan(values[place]) else str(values[place])
    return {"dtype": array.dtype.name, "shape": list(array.shape), "values": values}


def _content(path: Path) -> Any:
    """Read the JSON of a file; whether it is compressed is told by its first bytes."""
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if data.startswith(_GZIP_MAGIC) else data)
    except OSError as error:
        # gzip words a file that was cut off or changed as one of the operating system's errors.
        problem = error.strerror or f"damaged: {error}"
        raise InputError(f"{path} cannot be read: {problem}") from None
    except (EOFError, zlib.error, ValueError) as error:
        raise InputError(f"{path} cannot be read: it is not whole JSON ({error})") from None


def _decoded(fields_of_one: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(value) for name, value in fields_of_one.items()}


def _value(value: Any) -> Any:
    """Tell by its form what a value of the file was: an array, arrays under names, a tuple, or what it is."""
    if isinstance(value, dict):
        is_array = isinstance(value.get("dtype"), str)
        return _from_array(value) if is_array else {name: _from_array(one) for name, one in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _from_array(content: Mapping[str, Any]) -> ScoreArray:
    if content["dtype"] not in _DTYPES:
        raise ValueError(f"dtype {content['dtype']!r} is none of {', '.join(_DTYPES)}")
    values = [_NO_NUMBERS[one] if one is None or isinstance(one, str) else one for one in content["values"]]
    return np.array(values, dtype=content["dtype"]).reshape(content["shape"])


def _checked(kind: Any, values: Mapping[str, Any]) -> Any:
    """Make a dataclass of all its fields, no more and no fewer."""
    wanted = {field.name for field in fields(kind)}
    if wanted != values.keys():
        raise ValueError(f"fields missing or unknown: {', '.join(sorted(wanted ^ values.keys()))}")
    return kind(**values)
