"""``interpret fact``: a page per fact with what every method says of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from interpret.cli.console import tell
from interpret.cli.options import Loading, Model, WorkerOptions
from interpret.cli.sources import ContrastedFacts
from interpret.cli.work import tell_counts
from interpret.factpages.settings import CELLS, FactSettings


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """How the numbers of pages are computed."""

    method: Annotated[
        str,
        typer.Option(
            help="How effects are traced. screened: those of layers are estimated, and the tenth of the cells from the "
            "subject on with the largest estimates is run; approximate, relp: all of them are estimated; with these "
            "three, 20 heads and 20 neurons are run, those with the largest estimates. exact: every restoration is "
            "run, every head, and 100 neurons."
        ),
    ] = FactSettings.method
    cell: Annotated[
        list[str] | None,
        typer.Option(
            help="A cell to interpret besides the peaks of the methods, as TOKEN,LAYER: two selectors, such as 3,12 or "
            f"last,::4; may be given several times. [default: {' and '.join(CELLS)}]",
            show_default=False,
        ),
    ] = None
    noise: Annotated[str, typer.Option(help="Noise on the embeddings of the subject, as for 'interpret trace'.")] = str(
        FactSettings.noise
    )
    samples: Annotated[int, typer.Option(min=1, help="Number of noise samples.")] = FactSettings.samples
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the noise.")] = FactSettings.seed
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Only this many facts, from the start of the file; the same command with a higher limit resumes the "
            "run.",
        ),
    ] = None
    rule: Annotated[
        str,
        typer.Option(
            help="When a fact counts as known. words: the model's continuation starts with the answer; first_token: "
            "its next token is the whole answer. Facts that are not known get a page, too."
        ),
    ] = "words"

    def settings(self, chat_template: str | None) -> FactSettings:
        """Return the settings of the run.

        Raises:
            InputError: if an option is invalid.
        """
        from interpret.cli.console import choice
        from interpret.records import TRACE_METHODS

        method = choice("method", self.method, TRACE_METHODS)
        cells = tuple(self.cell) if self.cell else CELLS
        return FactSettings(method, self.noise, self.samples, self.seed, cells, chat_template)


def fact_command(
    *,
    fact: ContrastedFacts,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="HTML file to write; with --facts, a folder of pages with an index. [default: the name of the run "
            "folder]",
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            help="Run folder for table.csv, facts/ and manifest.json, from which 'interpret report' draws the pages "
            "again. The same command resumes a stopped run. [default: runs/facts; for --prompt, runs/facts- and its "
            "words]",
            show_default=False,
        ),
    ] = None,
    model: Model = "demo",
    chosen: PageOptions,
    loading: Loading,
    workers: WorkerOptions,
) -> None:
    """Show what every method says of a fact, on one page: lens, tracing, attribution, heads, interpretations.

    interpret fact --prompt "The Eiffel Tower is in the city of" --subject "The Eiffel Tower" --target Paris --foil Rome

    All methods explain the same tokens and layers, and the page says how far they agree. It is one HTML file that works
    without network access. With --facts, there is a page per fact, and an index with averages.

    A run can be stopped at any time; the same command resumes it. Exit code 3: finished, but some facts, or some parts
    of their pages, could not be computed.
    """
    from interpret.factpages import runs
    from interpret.factpages.files import write_pages
    from interpret.facts.runs import rule_of

    # Check everything that can be checked without the model first.
    settings = chosen.settings(fact.chat_template)
    rule = rule_of(chosen.rule)
    plan = runs.FactPagePlan(fact.read(), chosen.limit, rule=rule, settings=settings)
    opened = loading.open(model, workers.asked(loading.imports))
    found = runs.run(
        opened.model,
        opened.tokenizer,
        plan.facts,
        fact.folder("runs/facts", run, model, settings, rule, loading),
        settings=settings,
        limit=chosen.limit,
        rule=rule,
        **opened.recorded,
    )
    if found.manifest["counts"]["kept"]:
        written = write_pages(found.folder, output)
        more = f", and {len(written) - 1} pages beside it" if len(written) > 1 else ""
        tell(f"{written[0]}: open it in a browser{more}")
    tell_counts(runs.EXPLAINING, found)
