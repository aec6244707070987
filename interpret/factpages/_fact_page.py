"""The page of one fact in Python, without a run folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import unwrapping
from interpret.display.page import framed
from interpret.display.shown import Shown
from interpret.display.view import View
from interpret.factpages.agreement import Agreement, agreements
from interpret.factpages.grids import FactGrids
from interpret.factpages.page import fact_page_html
from interpret.factpages.runs import PARTS, FactPagePlan, kept_details
from interpret.factpages.settings import FactSettings
from interpret.factpages.show import FactCells
from interpret.facts.files import Fact, FactFile
from interpret.facts.filter import FactBatch
from interpret.models.identity import model_circumstances, model_identity
from interpret.records import FactCell
from interpret.storage.parts import UnitParts
from interpret.work.progress import streamed


@dataclass(frozen=True)
class FactPage(Shown):
    """What every method says of one fact; a notebook displays it as a page."""

    cells: Sequence[FactCell]
    """[T * L], one row per token and layer, ordered by token and layer."""
    details: Mapping[str, Any]
    """Everything that is not about a cell, by part: the answer, knockouts, heads, neurons, interpretations."""
    manifest: Mapping[str, Any]
    """How it was made, as in the manifest of a run."""

    @property
    def agreements(self) -> list[Agreement]:
        """How far every two methods agree, from the subject on, then over its tokens alone."""
        return agreements(FactGrids.of(self.cells))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per token and layer, with the columns of the table of a run."""
        return FactCells(self.cells).to_frame()

    def to_html(self) -> str:
        """Return the page: one self-contained HTML file, which loads nothing from elsewhere."""
        return fact_page_html(self.cells, self.details, self.manifest)

    def view(self) -> View:
        """Return the heat maps that a terminal shows: tracing, attribution and logit lens."""
        return FactCells(self.cells).view()

    def _repr_html_(self) -> str:
        return framed(self.to_html(), height="56rem")

    def _pieces(self) -> list[str]:
        return [self.to_html()]

    def __repr__(self) -> str:
        """Return the fact; ``show`` displays the heat maps, ``show(html=...)`` writes the page."""
        return f"FactPage({self.cells[0].prompt!r}, {self.cells[0].attribute!r})"


@unwrapping
def fact_page(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    target: str,
    *,
    foil: str | None = None,
    occurrence: int | None = None,
    settings: FactSettings | None = None,
    progress: bool = True,
) -> FactPage:
    """Explain one fact by every method, on the same tokens and layers, and measure how far the methods agree.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        prompt: the text that the model continues.
        subject: what the prompt is about, a part of it.
        target: the correct continuation; all methods follow its first token.
        foil: a wrong continuation, with which attribution contrasts the target; None: the probability is attributed.
        occurrence: index of the occurrence of the subject, from 0; required if there are several.
        settings: how the numbers are computed; None for the defaults.
        progress: show a progress bar of the parts, in a terminal or a notebook.

    Returns:
        The page, which a notebook displays; ``page.show(html="page.html")`` writes it to a file.

    Raises:
        InputError: if an argument is invalid, or the fact cannot be explained.
        ModelError: if the fact does not fit in memory.
        UnsupportedModelError: if the model is not of a supported family.

    Example:
        >>> interpret.fact_page(  # doctest: +SKIP
        ...     model, tokenizer, "The Eiffel Tower is in the city of", "The Eiffel Tower", "Paris", foil="Rome"
        ... )
    """
    fact = Fact("fact_0", prompt, subject, target, foil=foil, occurrence=occurrence)
    plan = FactPagePlan(FactFile([fact], []), settings=settings or FactSettings())
    analysis = plan.open(model, tokenizer, lambda line: None)
    (answered,) = FactBatch((fact,), plan.rule, plan.chat_template).answers(model, tokenizer)
    steps = analysis.parts(answered, analysis.share(), UnitParts())
    found = dict(streamed("Explaining", steps, len(PARTS), shown=progress))
    manifest = {
        "identity": {**model_identity(model), **plan.identity},
        "circumstances": model_circumstances(model),
    }
    return FactPage(*kept_details(fact, found), manifest)
