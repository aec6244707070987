"""Compare estimates of causal traces with exact ones, on the demo model: how well they agree, and what they cost.

python -m benchmarks.estimates --output runs/estimates

The prompts are the facts of examples/facts.json, whose subjects get noise, and sentences made here, in which one of two
names is the indirect object and the corrupted prompt has the other name as the one who gives. The metric is the
difference of the logits of answer and foil; hidden states, attention outputs and MLP outputs of single layers are
restored. One file per prompt holds the effects and times of all methods, so the same command resumes a stopped run. The
table is printed and written to ``table.md``; its intervals are those of ``interpret.stats.average``, over prompts.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import interpret
from interpret.facts.files import Fact
from interpret.records import APPROXIMATE, EXACT, RELP, TraceMethod
from interpret.stats import Floats, average, rank_correlation
from interpret.tracing import TraceSettings, trace_mediators

SITES = ("hidden", "attn_out", "mlp_out")
METHODS: tuple[TraceMethod, ...] = (EXACT, APPROXIMATE, RELP)
SETTINGS = TraceSettings(samples=1, metric="logit_difference")
TOP = 0.1
"""Share of the cells whose recall is measured: those that a screened trace runs."""
N_SENTENCES = 80
NAMES = ("Mary", "John", "Anna", "Paul", "Sarah", "David", "Emma", "Peter", "Laura", "Mark")
TEMPLATES = (
    "When {a} met {b}, {c} gave a book to",
    "After {a} saw {b}, {c} sent a letter to",
    "Then {a} sat by {b}, and {c} told a story to",
    "While {a} helped {b}, {c} handed the keys to",
)


@dataclass(frozen=True)
class Prompt:
    """One prompt, and how it is corrupted."""

    kind: str
    """``facts`` or ``sentences``."""
    fact: Fact
    """The prompt with its answer and foil."""
    counterfactual: str | None
    """The corrupted prompt; None for noise on the subject."""


def sentence(number: int) -> Prompt:
    """Return a sentence that ends before its indirect object."""
    step, place = divmod(number, len(NAMES))
    a, b = NAMES[place], NAMES[(place + step + 1) % len(NAMES)]
    template = TEMPLATES[number % len(TEMPLATES)]
    fact = Fact(name=f"sentence_{number}", prompt=template.format(a=a, b=b, c=b), subject=a, attribute=a, foil=b)
    return Prompt("sentences", fact, template.format(a=a, b=b, c=a))


def prompts() -> list[Prompt]:
    """Return all prompts: the facts that have a foil, and the sentences."""
    facts = [fact for fact in interpret.load_facts("examples/facts.json").facts if fact.foil is not None]
    return [*(Prompt("facts", fact, None) for fact in facts), *map(sentence, range(N_SENTENCES))]


def traced(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> dict[str, Any]:
    """Return the effects of each method and site, [T, L], and the seconds of each method, by name."""
    found: dict[str, Any] = {}
    for method in METHODS:
        start = perf_counter()
        results = trace_mediators(
            model,
            tokenizer,
            prompt.fact.prompt,
            prompt.fact.subject,
            prompt.fact.attribute,
            mediators=SITES,
            settings=SETTINGS,
            occurrence=prompt.fact.occurrence,
            counterfactual=prompt.counterfactual,
            foil=prompt.fact.foil,
            method=method,
            progress=False,
        )
        found[f"{method} seconds"] = np.array(perf_counter() - start)
        found |= {f"{method} {site}": results[site].indirect_effects for site in SITES}
    return found


def agreement(exact: Floats, estimate: Floats) -> tuple[float, float, float]:
    """Return the correlation of the effects of two grids, [T, L], that of their ranks, and the recall of the top cells.

    >>> grid = np.array([[1.0, 2.0], [3.0, -5.0]])
    >>> agreement(grid, grid)
    (1.0, 1.0, 1.0)
    """
    count = max(1, round(TOP * exact.size))
    largest, found = (set(np.argsort(-np.abs(grid.ravel()))[:count].tolist()) for grid in (exact, estimate))
    pearson = float(np.corrcoef(exact.ravel(), estimate.ravel())[0, 1].round(12))
    return pearson, rank_correlation(exact, estimate), len(largest & found) / count


def lines(found: Sequence[tuple[str, Mapping[str, Floats]]]) -> Iterator[str]:
    """Yield the table of results, each with the kind of its prompt: one row per kind, site and method."""
    yield "| prompts | n | site | method | Pearson | rank correlation | recall of the top tenth | time / exact |"
    yield "|---|---|---|---|---|---|---|---|"
    for kind in dict.fromkeys(kind for kind, _ in found):
        of_kind = [effects for one, effects in found if one == kind]
        for site in SITES:
            for method in METHODS[1:]:
                values = [
                    (*agreement(one[f"{EXACT} {site}"], one[f"{method} {site}"]), _time_ratio(one, method))
                    for one in of_kind
                ]
                yield f"| {kind} | {len(of_kind)} | {site} | {method} | {' | '.join(_intervals(values))} |"


def _time_ratio(one: Mapping[str, Floats], method: str) -> float:
    return float(one[f"{method} seconds"] / one[f"{EXACT} seconds"])


def _intervals(values: Sequence[Sequence[float]]) -> list[str]:
    means = average(values)
    return [
        f"{mean:.2f} ({low:.2f} to {high:.2f})" if n > 1 else f"{mean:.2f}"
        for mean, low, high, n in zip(means.mean, means.low, means.high, means.n, strict=True)
    ]


def main() -> None:
    """Trace the prompts that have no file yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/estimates"), help="Folder of the results.")
    folder: Path = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = interpret.load("demo")
    found = []
    for prompt in prompts():
        path = folder / f"{prompt.fact.name}.npz"
        if not path.exists():
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, **traced(model, tokenizer, prompt))
            partial.replace(path)  # whole or not at all
        found.append((prompt.kind, np.load(path)))
    table = "\n".join(lines(found))
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
