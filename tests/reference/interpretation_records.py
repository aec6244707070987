"""Handmade interpretation records, and the conversion of a page back to its records."""

import json
from collections.abc import Sequence
from dataclasses import make_dataclass
from html.parser import HTMLParser
from typing import Any

from interpret.records import Interpretation

TOKENS = ["The", " E", "iffel", " Tower"]


def made(pieces: Sequence[str] = (" a", " tall", " tower"), *, record: type = Interpretation, **values: Any) -> Any:
    """Return a record whose signed relevancies rise from -0.5 to 0.5 in steps of 0.1, then start again.

    ``values`` replace the default values of its columns.
    """
    signed = values.pop("signed_relevancy", [round(0.1 * (i % 11) - 0.5, 4) for i in range(len(pieces))])
    given = [round(0.5 + one / 2, 4) for one in signed]
    row = {
        "name": "fact_1",
        "prompt": "The Eiffel Tower",
        "current_token": "",
        "token_idx": None,
        "interpretation": list(range(100, 100 + len(pieces))),
        "prompt_output": " is in Paris.",
        "prompt_token_list": TOKENS,
        "category": "fact",
        "layer_idx": None,
        "interpretation_weights": [abs(one) for one in signed],
        "interpretation_prob": given,
        "repeat_prompt": "[INST] _ _ [/INST] It says:",
        "repeat_prompt_name": "summarize",
        "interpretation_text": "".join(pieces),
        "interpretation_tokens": list(pieces),
        "probability_without_insertion": [round(one - two, 4) for one, two in zip(given, signed, strict=True)],
        "signed_relevancy": signed,
        "wrong_token_idx": None,
        "probability_with_wrong_vector": [],
        "probability_with_text": [],
        "gain_over_nothing": None,
        "gain_over_wrong_vector": None,
        "gain_over_text": None,
        "says_nothing": False,
        "says_more_than_controls": None,
        "overlap_with_control": None,
        "site": "resid_pre",
        "insertion_layer": None,
        "kind": "control" if values.get("layer_idx") is None else "interpretation",
    }
    row |= values
    if row["token_idx"] is not None:
        row["current_token"] = row["prompt_token_list"][row["token_idx"]]
    return record(**row)


def with_columns(*extra: tuple[str, type]) -> type:
    """Return a subclass of Interpretation with extra columns."""
    return make_dataclass("More", extra, bases=(Interpretation,), frozen=True, kw_only=True)


class Outline(HTMLParser):
    """The elements of an HTML page, its visible texts, and the contents of its scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        """The visible texts, in order."""
        self.raw: list[tuple[str, str]] = []
        """(id or tag, content) of each script and style."""
        self._inside: str | None = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = dict(attrs).get("id") or tag
            self.raw.append((self._inside, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.texts.append(data)
        else:
            self.raw[-1] = (self._inside, self.raw[-1][1] + data)


def read_back(page: str) -> list[dict[str, Any]]:
    """Return the fields of every record of a page, read from the page's JSON, where scores have four decimals."""
    data = json.loads(dict(Outline(page).raw)["data"])
    found = []
    for cells in data["rows"]:
        row = dict(zip(data["columns"], cells, strict=True))
        prompt, template = data["prompts"][row["prompt"]], data["templates"][row["template"]]
        tokens = [data["pieces"][index] for index in prompt["tokens"]]
        scores = ("with", "signed", "wrong", "own_text")
        given, signed, wrong, own_text = ([one / data["scale"] for one in row[name]] for name in scores)
        record = {
            "name": prompt["name"],
            "prompt": prompt["text"],
            "current_token": "" if row["token"] is None else tokens[row["token"]],
            "token_idx": row["token"],
            "interpretation": row["ids"],
            "prompt_output": prompt["output"],
            "prompt_token_list": tokens,
            "category": prompt["category"],
            "layer_idx": row["layer"],
            "interpretation_weights": [abs(one) for one in signed],
            "interpretation_prob": given,
            "repeat_prompt": template["text"],
            "repeat_prompt_name": template["name"],
            "interpretation_text": row["text"],
            "probability_without_insertion": [round(one - two, 4) for one, two in zip(given, signed, strict=True)],
            "interpretation_tokens": [data["pieces"][index] for index in row["pieces"]],
            "signed_relevancy": signed,
            "probability_with_wrong_vector": wrong,
            "probability_with_text": own_text,
            "kind": row["kind"],
            **{name: row[name] for name in data["further"]},
        }
        found.append(record)
    return found
