"""How a run was made, from its manifest, for the pages of runs."""

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


def model_name(manifest: Mapping[str, Any]) -> str:
    """Return the name of the model of a run: its hub name, or the last part of its path; "" if there is none.

    >>> model_name({"identity": {"model": "/data/models/tiny-llama"}})
    'tiny-llama'
    """
    name = str(manifest.get("identity", {}).get("model") or "")
    return PurePath(name).name if PurePath(name).is_absolute() else name


def leaves(value: Any, path: str = "") -> list[tuple[str, str]]:
    """List the values of nested mappings, as pairs of dotted name and readable value.

    >>> leaves({"model": "demo", "noise": {"size": 3}})
    [('model', 'demo'), ('noise.size', '3')]
    """
    if isinstance(value, Mapping):
        return [leaf for key, item in value.items() for leaf in leaves(item, f"{path}.{key}" if path else str(key))]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return [(path, text)]
