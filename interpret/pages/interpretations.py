"""The HTML page of a self-interpretation run: a grid of layers by tokens with the interpretation of each hidden state.

The page is one self-contained HTML file made from the records and the manifest of a run. It holds the records once, as
JSON (see ``_data`` for the format); ``interpretations.js`` draws the part that the reader selects.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from markupsafe import Markup

from interpret.errors import InputError
from interpret.pages.frame import page_pieces
from interpret.pages.provenance import leaves, model_name
from interpret.records import Interpretation

SCALE = 10_000
"""Probabilities are rounded to four decimals and stored as integers, in units of 1 / SCALE."""

# Fields with their own representation on the page; scalar values of other fields are stored under their own names.
_KNOWN = {
    *("name", "prompt", "current_token", "token_idx", "interpretation", "prompt_output", "prompt_token_list"),
    *("category", "layer_idx", "interpretation_weights", "interpretation_prob", "repeat_prompt"),
    *("repeat_prompt_name", "interpretation_text", "interpretation_tokens", "probability_without_insertion"),
    *("signed_relevancy", "probability_with_wrong_vector", "probability_with_text", "kind"),
}
_SCORES = ("interpretation_prob", "signed_relevancy")
_CONTROL_SCORES = ("probability_with_wrong_vector", "probability_with_text")
"""Scores that are empty without this control."""
_PARTS = {
    "identity": "Settings that determine the results",
    "circumstances": "Circumstances of the run",
    "": "Run",
}


def interpretation_page(records: Sequence[Interpretation], manifest: Mapping[str, Any]) -> str:
    """Return a self-contained HTML page for exploring the interpretations of a run.

    Args:
        records: the rows of a run. Rows of the kinds ``interpretation`` and ``failed`` are cells of the grid; rows of
            other kinds, such as controls, are shown beside the cells of the same prompt and interpretation prompt.
        manifest: the manifest of the run, shown as provenance; may be empty.

    Returns:
        HTML that can be encoded as UTF-8; about 1 kB per interpretation of 30 tokens.

    Raises:
        InputError: if there are no records, or a record is inconsistent; the message names it.
    """
    if not records:
        raise InputError("the run has no rows to show: wait until it has finished a prompt, then try again")
    for number, record in enumerate(records):
        _check(number, record)
    return "".join(
        page_pieces(
            __package__,
            "interpretations",
            title=_title(manifest),
            summary=_summary(records, manifest),
            provenance=_provenance(manifest),
            data=Markup(_script_safe(_data(records))),
        )
    )


def _check(number: int, record: Interpretation) -> None:
    """Refuse an inconsistent record: a position outside the prompt, or lists of different lengths."""
    tokens, index = len(record.prompt_token_list), record.token_idx
    if index is not None and not 0 <= index < tokens:
        raise InputError(f"records[{number}]: token_idx {index}, but prompt {record.name!r} has {tokens} tokens")
    wanted = len(record.interpretation)
    controls = [name for name in _CONTROL_SCORES if getattr(record, name)]
    lists = {name: len(getattr(record, name)) for name in ("interpretation_tokens", *_SCORES, *controls)}
    for name, length in lists.items():
        if length != wanted:
            raise InputError(f"records[{number}]: {wanted} tokens in interpretation, but {length} in {name}")


def _data(records: Sequence[Interpretation]) -> dict[str, Any]:
    """Return the records in the format of the page, with each prompt, interpretation prompt and token text stored once.

    A row is a list with one value per entry of ``columns``. It refers to ``prompts``, ``templates`` and ``pieces`` by
    index, and so do the tokens of a prompt to ``pieces``.
    """
    prompts: dict[tuple[Any, ...], int] = {}
    templates: dict[tuple[str, str], int] = {}
    pieces: dict[str, int] = {}
    rows = []
    for record in records:
        tokens = tuple(_number(pieces, piece) for piece in record.prompt_token_list)
        prompt = (record.name, record.prompt, record.category, record.prompt_output, tokens)
        row = {
            "prompt": _number(prompts, prompt),
            "template": _number(templates, (record.repeat_prompt_name, record.repeat_prompt)),
            "kind": record.kind,
            "layer": record.layer_idx,
            "token": record.token_idx,
            "text": record.interpretation_text,
            "ids": record.interpretation,
            "pieces": [_number(pieces, piece) for piece in record.interpretation_tokens],
            "with": [_scaled(value) for value in record.interpretation_prob],
            "signed": [_scaled(value) for value in record.signed_relevancy],
            "wrong": [_scaled(value) for value in record.probability_with_wrong_vector],
            "own_text": [_scaled(value) for value in record.probability_with_text],
        }
        rows.append(row | _further(record))
    return {
        "scale": SCALE,
        "prompts": [dict(zip(("name", "text", "category", "output", "tokens"), one, strict=True)) for one in prompts],
        "templates": [dict(zip(("name", "text"), one, strict=True)) for one in templates],
        "pieces": list(pieces),
        "further": list(_further(records[0])),
        "columns": list(rows[0]),
        "rows": [list(row.values()) for row in rows],
    }


def _number(numbers: dict[Any, int], value: Any) -> int:
    """Return the index of a value; a new value gets the next index."""
    return numbers.setdefault(value, len(numbers))


def _scaled(value: float) -> int | None:
    """Return a probability as an integer in units of 1 / SCALE; None if it is not finite."""
    return round(value * SCALE) if math.isfinite(value) else None


def _further(record: Interpretation) -> dict[str, Any]:
    """Return the scalar fields without their own representation on the page."""
    others = {field.name: getattr(record, field.name) for field in fields(record) if field.name not in _KNOWN}
    return {name: _short(value) for name, value in others.items() if not isinstance(value, list)}


def _short(value: Any) -> Any:
    """Round a float to four decimals; return a non-finite one as a string, as JSON has no such numbers."""
    if not isinstance(value, float):
        return value
    return round(value, 4) if math.isfinite(value) else str(value)


def _script_safe(value: Any) -> str:
    """Encode a value as JSON that is safe inside a script element: no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _title(manifest: Mapping[str, Any]) -> str:
    """Return the title of the page."""
    model = model_name(manifest)
    return f"Interpretations of {model}" if model else "Interpretations"


def _summary(records: Sequence[Interpretation], manifest: Mapping[str, Any]) -> str:
    """Return one line that summarises the page."""
    shown = [record for record in records if record.kind == "interpretation"]
    layers = {record.layer_idx for record in shown}
    names = {record.name for record in records}
    parts = [_count(len(shown), "interpretation"), _count(len(names), "prompt"), _count(len(layers), "layer")]
    if manifest.get("status", "complete") != "complete":
        parts.append("the run was unfinished when this page was created")
    elif manifest.get("finished"):
        parts.append(f"finished {str(manifest['finished'])[:10]}")
    return " · ".join(parts)


def _count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 layer, 2 layers."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _provenance(manifest: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the manifest as titled lists of names and values, with the identity first."""
    known = {key: manifest[key] for key in _PARTS if isinstance(manifest.get(key), Mapping)}
    rest = {key: value for key, value in manifest.items() if key not in known}
    parts = [(_PARTS[key], leaves(value)) for key, value in {**known, "": rest}.items()]
    return [(title, values) for title, values in parts if values]
