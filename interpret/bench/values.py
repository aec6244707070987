"""Lossless conversion of Python values to JSON and back: containers, tensors, arrays, DataFrames and dataclasses.

Numbers, strings, lists and dicts with string keys are stored as plain JSON; every other value is a dict whose key ``$``
holds its kind. Tensors and arrays of more than ``INLINE`` numbers are stored in safetensors files, named after the
hash of their bytes, so that equal tensors share a file.
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load, save
from torch import Tensor

from interpret.display import Shown
from interpret.errors import InputError, RunError
from interpret.storage.disk import replace_whole

INLINE = 1000
KIND = "$"


@dataclass(frozen=True)
class Unkept:
    """Placeholder for a value of a type that cannot be stored."""

    type: str
    """Name of the value's class."""
    text: str
    """Its ``repr``, truncated to 1000 characters."""


class Unstorable(InputError):
    """A value has a type that cannot be stored; the message names the place of the value."""


class Encoder:
    """Encodes values as JSON, and writes large tensors to files in a folder.

    Args:
        folder: folder of the files; created when the first file is written.
        keep_text: store an ``Unkept`` in place of a value that cannot be stored; otherwise such a value is an error.
    """

    def __init__(self, folder: Path, *, keep_text: bool = False) -> None:
        self._folder = folder
        self._keep_text = keep_text

    def encode(self, value: Any, where: str) -> Any:
        """Return the JSON form of a value.

        Args:
            value: the value to store.
            where: name of the value in error messages.

        Raises:
            Unstorable: if the value, or a part of it, has a type that cannot be stored.
            RunError: if a tensor file cannot be written.
        """
        encode = self._encoder(value)
        if encode is not None:
            return encode(value, where)
        if self._keep_text:
            return {KIND: "unkept", "type": type(value).__qualname__, "text": repr(value)[:1000]}
        raise Unstorable(f"{where} has the type {type(value).__qualname__}, which cannot be stored")

    def _encoder(self, value: Any) -> Callable[[Any, str], Any] | None:
        """Return the method that encodes a value; None if it cannot be stored."""
        if value is None or type(value) in (bool, int, str):
            return lambda value, where: value
        if type(value) in _ENCODERS:
            return _ENCODERS[type(value)].__get__(self)
        if isinstance(value, Shown) and isinstance(value, list | dict):  # a result, which is a list or a dict as well
            return self._list if isinstance(value, list) else self._dict
        if isinstance(value, Tensor):
            storable = value.layout == torch.strided and not value.is_quantized and value.device.type != "meta"
            return self._tensor if storable else None
        if isinstance(value, np.ndarray | np.generic):
            return self._array if value.dtype.kind in "biuf" and value.dtype.isnative else None
        if isinstance(value, PurePath):
            return lambda value, where: {KIND: "path", "value": str(value)}
        if isinstance(value, pd.DataFrame):
            return self._frame if _is_plain(value) else None
        if is_dataclass(value) and not isinstance(value, type) and "<locals>" not in type(value).__qualname__:
            return self._dataclass
        return None

    def _float(self, value: float, where: str) -> Any:
        return value if math.isfinite(value) else {KIND: "float", "value": str(value)}

    def _list(self, value: list[Any], where: str) -> Any:
        return [self.encode(item, f"{where}[{index}]") for index, item in enumerate(value)]

    def _tuple(self, value: tuple[Any, ...], where: str) -> Any:
        return {KIND: "tuple", "items": self._list(list(value), where)}

    def _set(self, value: set[Any] | frozenset[Any], where: str) -> Any:
        items = [self.encode(item, f"an item of {where}") for item in value]
        return {KIND: type(value).__name__, "items": sorted(items, key=lambda item: json.dumps(item, sort_keys=True))}

    def _dict(self, value: dict[Any, Any], where: str) -> Any:
        if all(type(key) is str for key in value) and KIND not in value:
            return {key: self.encode(item, f"{where}[{key!r}]") for key, item in value.items()}
        items = [
            [self.encode(key, f"a key of {where}"), self.encode(item, f"{where}[{key!r}]")]
            for key, item in value.items()
        ]
        return {KIND: "dict", "items": items}

    def _tensor(self, value: Tensor, where: str, kind: str = "tensor") -> Any:
        value = value.detach().cpu().contiguous()
        whole = {KIND: kind, "dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
        if value.numel() <= INLINE and not value.is_complex() and bool(value.double().isfinite().all()):
            return whole | {"values": value.flatten().tolist()}
        data = save({"value": value})
        name = f"{hashlib.sha256(data).hexdigest()[:32]}.safetensors"
        if not (self._folder / name).exists():
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RunError(f"{self._folder} cannot be created: {error.strerror}") from error
            replace_whole(self._folder / name, data)
        return whole | {"file": name}

    def _array(self, value: np.ndarray | np.generic, where: str) -> Any:
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return self._tensor(torch.from_numpy(np.array(value, order="C")), where, kind)

    def _frame(self, value: pd.DataFrame, where: str) -> Any:
        columns = [
            self._column(value.iloc[:, number], f"{where}[{name!r}]") for number, name in enumerate(value.columns)
        ]
        names = self._column(value.columns, f"the columns of {where}")
        return {KIND: "frame", "names": names, "columns": columns, "index": self._index(value.index, where)}

    def _index(self, index: pd.Index, where: str) -> Any:
        if type(index) is pd.RangeIndex:
            return {"range": [index.start, index.stop, index.step], "name": self.encode(index.name, where)}
        return self._column(index, f"the index of {where}")

    def _column(self, column: pd.Series | pd.Index, where: str) -> Any:
        """Encode the dtype, name and values of a column or an index."""
        numeric = isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf"
        values = column.to_numpy() if numeric else column.tolist()
        return {
            "dtype": str(column.dtype),
            "name": self.encode(column.name, f"the name of {where}"),
            "values": self.encode(values, where),
        }

    def _dataclass(self, value: Any, where: str) -> Any:
        kind = type(value)
        held = {field.name: self.encode(getattr(value, field.name), f"{where}.{field.name}") for field in fields(value)}
        return {KIND: "dataclass", "type": f"{kind.__module__}:{kind.__qualname__}", "fields": held}


# Looked up by exact type: a subclass, such as a namedtuple, would not be restored as its own type.
_ENCODERS: dict[type, Any] = {
    float: Encoder._float,
    list: Encoder._list,
    tuple: Encoder._tuple,
    set: Encoder._set,
    frozenset: Encoder._set,
    dict: Encoder._dict,
}


def _is_plain(frame: pd.DataFrame) -> bool:
    """Tell whether a frame has no MultiIndex, and only numbers, booleans, strings or Python objects."""
    axes = (frame.index, frame.columns)
    if any(isinstance(axis, pd.MultiIndex) for axis in axes):
        return False
    dtypes = [*frame.dtypes, *(axis.dtype for axis in axes)]
    return all(str(dtype) in ("object", "str") or getattr(dtype, "kind", "") in "biuf" for dtype in dtypes) and all(
        isinstance(dtype, np.dtype) or str(dtype) == "str" for dtype in dtypes
    )


def decode(stored: Any, folder: Path) -> Any:
    """Restore an encoded value.

    Args:
        stored: the JSON form, as ``Encoder.encode`` returns it.
        folder: folder of the tensor files.

    Raises:
        RunError: if a file is missing or was changed, or the module of a dataclass has not been imported.
    """
    if isinstance(stored, list):
        return [decode(item, folder) for item in stored]
    if not isinstance(stored, dict):
        return stored
    if KIND not in stored:
        return {key: decode(item, folder) for key, item in stored.items()}
    try:
        return _DECODERS[stored[KIND]](stored, folder)
    except KeyError as error:
        raise RunError(f"a stored value of kind {stored[KIND]!r} cannot be read: unknown key or kind {error}") from None


def _read_float(stored: dict[str, Any], folder: Path) -> float:
    return float(stored["value"])


def _read_items(kind: Callable[[Any], Any]) -> Callable[[dict[str, Any], Path], Any]:
    return lambda stored, folder: kind(decode(stored["items"], folder))


def _read_tensor(stored: dict[str, Any], folder: Path) -> Tensor:
    if "values" in stored:
        return torch.tensor(stored["values"], dtype=getattr(torch, stored["dtype"])).view(stored["shape"])
    path = folder / stored["file"]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    if not path.name.startswith(hashlib.sha256(data).hexdigest()[:32]):
        raise RunError(f"{path} was changed after it was written: its hash differs from its name")
    value: Tensor = load(data)["value"]
    return value


def _read_array(stored: dict[str, Any], folder: Path) -> np.ndarray:
    value: np.ndarray = _read_tensor(stored, folder).numpy()
    return value


def _read_frame(stored: dict[str, Any], folder: Path) -> pd.DataFrame:
    index = _read_index(stored["index"], folder)
    columns = [pd.Series(_values(column, folder), index=index) for column in stored["columns"]]
    frame = pd.concat(columns, axis=1) if columns else pd.DataFrame(index=index)
    frame.columns = _read_index(stored["names"], folder)
    return frame


def _read_index(stored: dict[str, Any], folder: Path) -> pd.Index:
    name = decode(stored["name"], folder)
    if "range" in stored:
        return pd.RangeIndex(*stored["range"], name=name)
    return pd.Index(_values(stored, folder), name=name)


def _values(stored: dict[str, Any], folder: Path) -> Any:
    """Return the values of a column in its dtype."""
    return pd.array(decode(stored["values"], folder), dtype=stored["dtype"])


def _read_dataclass(stored: dict[str, Any], folder: Path) -> Any:
    module, _, name = stored["type"].partition(":")
    kind: Any = sys.modules.get(module)  # reading a file must not import modules
    for part in name.split("."):
        kind = getattr(kind, part, None)
    if not isinstance(kind, type) or not is_dataclass(kind):
        raise RunError(f"a stored value is a {name} of {module}: import that module before reading the log")
    held = {key: decode(value, folder) for key, value in stored["fields"].items()}
    if held.keys() != {field.name for field in fields(kind)}:
        raise RunError(
            f"a stored {name} has the fields {', '.join(held)}, which differ from the current fields of {name}"
        )
    value = object.__new__(kind)  # restore the fields without running __init__ or __post_init__
    for key, item in held.items():
        object.__setattr__(value, key, item)
    return value


_DECODERS: dict[str, Callable[[dict[str, Any], Path], Any]] = {
    "float": _read_float,
    "tuple": _read_items(tuple),
    "set": _read_items(set),
    "frozenset": _read_items(frozenset),
    "dict": _read_items(dict),
    "path": lambda stored, folder: Path(stored["value"]),
    "tensor": _read_tensor,
    "array": _read_array,
    "scalar": lambda stored, folder: _read_array(stored, folder)[()],
    "frame": _read_frame,
    "dataclass": _read_dataclass,
    "unkept": lambda stored, folder: Unkept(stored["type"], stored["text"]),
}
