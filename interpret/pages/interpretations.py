"""The page of a self-interpretation run: tokens across, layers down, each cell what the model said of that state.

Records and manifest go in, the text of one HTML file comes out; it loads nothing from anywhere. The records travel in
it once, as JSON (``_data`` says in which form), and ``interpretations.js`` draws whatever part the reader asks for.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from markupsafe import Markup

from interpret.errors import InputError
from interpret.pages.frame import page_pieces
from interpret.records import Interpretation

SCALE = 10_000
"""Probabilities are kept to four decimals, as whole numbers of this part."""

# Fields the page has a form of its own for; of the others single values go along under their own names.
_KNOWN = {
    *("name", "prompt", "current_token", "token_idx", "interpretation", "prompt_output", "prompt_token_list"),
    *("category", "layer_idx", "interpretation_weights", "interpretation_prob", "repeat_prompt"),
    *("repeat_prompt_name", "interpretation_text", "interpretation_tokens", "probability_without_insertion"),
    *("signed_relevancy", "probability_with_wrong_vector", "kind"),
}
_SCORES = ("interpretation_prob", "signed_relevancy", "probability_with_wrong_vector")
_PARTS = {
    "identity": "What decided the numbers",
    "circumstances": "How they came about",
    "": "The run",
}


def interpretation_page(records: Sequence[Interpretation], manifest: Mapping[str, Any]) -> str:
    """Return a self-contained HTML page on which the interpretations of a run are explored.

    Args:
        records: the rows of a run; those of any kind but ``interpretation`` are shown beside the interpretations of
            the same prompt and interpretation prompt.
        manifest: the run's manifest, shown as provenance; may be empty.

    Returns:
        HTML that encodes as UTF-8; about 1 kB an interpretation of 30 tokens.

    Raises:
        InputError: if there are no records, or one contradicts itself; the message names it.
    """
    if not records:
        raise InputError("the run has no rows yet, so there is nothing to show: let it finish a prompt, then try again")
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
    """Refuse a row that could only be drawn wrong."""
    tokens, index = len(record.prompt_token_list), record.token_idx
    if index is not None and not 0 <= index < tokens:
        raise InputError(f"records[{number}]: token_idx {index}, but prompt {record.name!r} has {tokens} tokens")
    wanted = len(record.interpretation)
    lists = {name: len(getattr(record, name)) for name in ("interpretation_tokens", *_SCORES)}
    if not record.probability_with_wrong_vector:  # none was tried
        del lists["probability_with_wrong_vector"]
    for name, length in lists.items():
        if length != wanted:
            raise InputError(f"records[{number}]: {wanted} tokens in interpretation, but {length} in {name}")


def _data(records: Sequence[Interpretation]) -> dict[str, Any]:
    """Put the records in the form the page reads: each prompt, interpretation prompt and piece of text once.

    A row is the list of its ``columns``; it points into ``prompts``, ``templates`` and, for its pieces, ``pieces``; a
    prompt's tokens do too.
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
    """Return the number of a value, the next one if it is new."""
    return numbers.setdefault(value, len(numbers))


def _scaled(value: float) -> int | None:
    """Write a probability as a short whole number; None for what is no number."""
    return round(value * SCALE) if math.isfinite(value) else None


def _further(record: Interpretation) -> dict[str, Any]:
    """Return the single values of the fields that have no form of their own on the page."""
    others = {field.name: getattr(record, field.name) for field in fields(record) if field.name not in _KNOWN}
    return {name: _short(value) for name, value in others.items() if not isinstance(value, list)}


def _short(value: Any) -> Any:
    """Round a number, and write one that JSON lacks as its name."""
    if not isinstance(value, float):
        return value
    return round(value, 4) if math.isfinite(value) else str(value)


def _script_safe(value: Any) -> str:
    """Write JSON that no text in it can end early: it stands within a script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _title(manifest: Mapping[str, Any]) -> str:
    """Name the page."""
    model = manifest.get("identity", {}).get("model")
    return f"Interpretations of {model}" if model else "Interpretations"


def _summary(records: Sequence[Interpretation], manifest: Mapping[str, Any]) -> str:
    """Say in one line what is on the page."""
    shown = [record for record in records if record.kind == "interpretation"]
    layers = {record.layer_idx for record in shown}
    names = {record.name for record in records}
    parts = [_count(len(shown), "interpretation"), _count(len(names), "prompt"), _count(len(layers), "layer")]
    if manifest.get("status", "complete") != "complete":
        parts.append("the run was not finished when this page was made")
    elif manifest.get("finished"):
        parts.append(f"finished {str(manifest['finished'])[:10]}")
    return " · ".join(parts)


def _count(number: int, noun: str) -> str:
    """Count in words: 1 layer, 2 layers."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _provenance(manifest: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the manifest as titled lists of name and value, what decided the numbers first."""
    known = {key: manifest[key] for key in _PARTS if isinstance(manifest.get(key), Mapping)}
    rest = {key: value for key, value in manifest.items() if key not in known}
    parts = [(_PARTS[key], _leaves(value)) for key, value in {**known, "": rest}.items()]
    return [(title, leaves) for title, leaves in parts if leaves]


def _leaves(value: Any, path: str = "") -> list[tuple[str, str]]:
    """List the values of nested mappings as dotted name and readable value."""
    if isinstance(value, Mapping):
        return [leaf for key, item in value.items() for leaf in _leaves(item, f"{path}.{key}" if path else str(key))]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return [(path, text)]
