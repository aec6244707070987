"""Save and load attributions: one JSON file each, readable by any program, without loss.

The JSON is strict: an array is ``{"dtype", "shape", "values"}`` with its values in one flat list, in which NaN is
``null`` and infinities are the strings ``"inf"`` and ``"-inf"``. Floats are read back bit for bit.
"""

import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO, Union, get_args, get_origin, get_type_hints

import numpy as np

from interpret.attribution.result.scores import Attributed, AttributionInfo, AttributionScores, ScoreArray
from interpret.errors import InputError, brief, named, one_line
from interpret.reading import parse_json, read_bytes
from interpret.storage.disk import replacing

FORMAT, VERSION = "interpret.attribution", 2
_DTYPES = ("float16", "float32", "float64")
_NOT_FINITE = {None: math.nan, "inf": math.inf, "-inf": -math.inf}
_GZIP_MAGIC = b"\x1f\x8b"
_LARGEST = 2**32
"""Maximum size of a file in bytes, after decompression: a small compressed file may expand to any size."""


def save(attribution: AttributionScores, path: str | Path, *, overwrite: bool = False, compress: bool = False) -> Path:
    """Write an attribution to a file, completely or not at all.

    Args:
        attribution: the attribution; shapes, NaN and every bit of the scores are kept.
        path: the file to write; its folder must exist.
        overwrite: replace an existing file.
        compress: compress with gzip; ``.gz`` is appended to a path without it.

    Returns:
        The path of the written file.

    Raises:
        InputError: if the file exists and ``overwrite`` is false, if the path ends in ``.gz`` and ``compress`` is
            false, or if the scores or an option in the info cannot be written as JSON; nothing is written then.
        RunError: if the file cannot be written.
    """
    path = Path(path)
    if compress and path.suffix != ".gz":
        path = path.with_name(path.name + ".gz")
    if not compress and path.suffix == ".gz":
        raise InputError(f"{path} ends in .gz; give compress=True, or choose another name")
    if path.exists() and not overwrite:
        raise InputError(f"{path} already exists; give overwrite=True to replace it, or choose another name")
    with replacing(path) as file, _gzip(file) if compress else nullcontext(file) as target:
        for text in _written(attribution):
            target.write(text.encode())
    return path


def compressed(attribution: AttributionScores) -> bytes:
    """Return the contents of the compressed file that ``save`` writes; equal attributions give equal bytes.

    Raises:
        InputError: as ``save`` raises.
    """
    file = io.BytesIO()
    with _gzip(file) as target:
        for text in _written(attribution):
            target.write(text.encode())
    return file.getvalue()


def _gzip(file: BinaryIO) -> gzip.GzipFile:
    """Return a compressing file without a file name and a modification time."""
    return gzip.GzipFile("", "wb", fileobj=file, mtime=0)


def load(path: str | Path) -> tuple[list[Attributed], AttributionInfo]:
    """Read an attribution that ``save`` wrote, compressed or not.

    Raises:
        InputError: if the file cannot be read, or is not an attribution of a supported format version.
    """
    path = Path(path)
    content = _content(path)
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise InputError(f"{named(path)} is not an attribution file: its format is {brief(found)}, not {FORMAT!r}")
    if content.get("version") != VERSION:
        version = brief(content.get("version"))
        raise InputError(f"{named(path)} has format version {version}; this program reads version {VERSION}")
    try:
        info, sequences = content["info"], content["sequences"]
        info = _checked(AttributionInfo, info | {"aggregation": _value(info["aggregation"])})
        return [_checked(Attributed, _decoded(one)) for one in sequences], info
    except KeyError as error:
        raise InputError(f"{named(path)} is damaged: {brief(error.args[0])}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{named(path)} is damaged: {one_line(error)}") from None


def _written(attribution: AttributionScores) -> Iterator[str]:
    """Yield the file in pieces; of an attribution that is read from disk, one input at a time is held in memory."""
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
        raise InputError(f"the info cannot be saved as JSON: {error}") from None


def _values(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, without copying."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _encoded(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return array_to_json(value)
    return {name: array_to_json(one) for name, one in value.items()} if isinstance(value, Mapping) else value


def array_to_json(array: ScoreArray) -> dict[str, Any]:
    """Return an array as strict JSON, see above.

    Raises:
        InputError: for a dtype that cannot be saved.
    """
    if array.dtype.name not in _DTYPES:
        raise InputError(f"scores of dtype {array.dtype} cannot be saved; allowed: {', '.join(_DTYPES)}")
    values: list[Any] = array.ravel().tolist()
    for place in np.flatnonzero(~np.isfinite(array)).tolist():
        values[place] = None if math.isnan(values[place]) else str(values[place])
    return {"dtype": array.dtype.name, "shape": list(array.shape), "values": values}


def _content(path: Path) -> Any:
    """Read the JSON of a file; its first bytes show whether it is compressed."""
    data = read_bytes(path)
    try:
        if data.startswith(_GZIP_MAGIC):
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise InputError(f"has more than {_LARGEST} bytes; save fewer inputs per file")
        return parse_json(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{named(path)} cannot be read: damaged: {one_line(error)}") from None
    except InputError as error:
        raise InputError(f"{named(path)} cannot be read: it {error}") from None


def _decoded(fields_of_one: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(value) for name, value in fields_of_one.items()}


def _value(value: Any) -> Any:
    """Decode a value of the file by its form: an array, a dict of arrays, a tuple, or a plain value."""
    if isinstance(value, dict):
        is_array = isinstance(value.get("dtype"), str)
        return array_from_json(value) if is_array else {name: array_from_json(one) for name, one in value.items()}
    return tuple(value) if isinstance(value, list) else value


def array_from_json(content: Mapping[str, Any]) -> ScoreArray:
    """Return the array that ``array_to_json`` was given.

    Raises:
        ValueError, KeyError, TypeError, ArithmeticError: if the content is something else.
    """
    if content["dtype"] not in _DTYPES:
        raise ValueError(f"dtype {brief(content['dtype'])} is not one of {', '.join(_DTYPES)}")
    values = [_NOT_FINITE[one] if one is None or isinstance(one, str) else one for one in content["values"]]
    with np.errstate(over="raise"):  # a number that does not fit the dtype was not written by ``save``
        return np.array(values, dtype=content["dtype"]).reshape(content["shape"])


def _checked(kind: Any, values: Mapping[str, Any]) -> Any:
    """Build a dataclass; the values must be exactly its fields, with their types."""
    hints = get_type_hints(kind)
    if hints.keys() != values.keys():
        names = ", ".join(sorted(hints.keys() ^ values.keys())[:10])
        raise ValueError(f"fields missing or unknown: {one_line(names)}")
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{name} is {brief(value)}")
    return kind(**values)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value has the type of a field; the elements of tuples and dicts are checked, too."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is tuple:
        return isinstance(value, tuple) and set(map(type, value)) <= {parts[0]}
    if kind is dict:
        return isinstance(value, dict) and all(_fits(item, parts[1]) for item in value.values())
    if kind is np.ndarray:
        return isinstance(value, np.ndarray)
    return hint is Any or type(value) is hint
