"""Compare the time of a fact page with that of the single commands that give its numbers, on the demo model.

python -m benchmarks.bench_fact

The page is ``interpret fact --method screened``. Its five analyses are the logit lens, tracing (causal tracing with the
page's mediators, and knockouts), attribution (of tokens and of layers), heads and neurons, and interpretations of the
page's cells; the commands are those that the page shows for them. No command line asks for the page's cells alone, nor
for twenty heads, so interpretations, heads and neurons are computed by the Python calls in a program of their own.
Every command runs in a new process, which opens the model. Page and commands alternate; the numbers of both must be
equal to 1e-6.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from interpret.factpages.recipes import recipes
from interpret.factpages.stored import StoredFact, stored_facts
from interpret.records import LensReading, LocationCell, TokenScore, TraceCell
from interpret.storage.run_folder import read_run, read_table

FACT = ["--prompt", "The Eiffel Tower is in the city of", "--subject", "The Eiffel Tower", "--target", "Paris"]
FOIL = ["--foil", "Rome"]
TRACING, LAYERS, TOKENS, LENS, KNOCKOUT = SHOWN = (
    "Causal tracing",
    "Attribution of layers",
    "Attribution of tokens",
    "Logit lens",
    "Knockout",
)
"""Titles of the commands that a page shows whole."""
INTERPRETATIONS, UNITS = "Interpretations", "Heads and neurons"
TARGET, SECONDS, CLOSE = 2.0, 30.0, 1e-6

INTERPRETING = """
import json, sys
from dataclasses import asdict
import interpret
from interpret.prompts.prompts import Prompt
from interpret.selfie.sources import source_of_pairs
asked = json.load(sys.stdin)
model, tokenizer = interpret.load("demo")
prompt = Prompt(asked["name"], asked["prompt"], raw=True)
source = source_of_pairs(model, tokenizer, prompt, [tuple(pair) for pair in asked["pairs"]], "resid_pre")
words = interpret.interpretation_prompt(tokenizer, "summarize")
settings = interpret.selfie.Settings(prompt_output_tokens=0)
rows = interpret.interpretations(model, tokenizer, [source], [words], settings, progress=False)
print(json.dumps([asdict(row) for row in rows]))
"""
RESTORING = """
import json, sys
import interpret
asked = json.load(sys.stdin)
model, tokenizer = interpret.load("demo")
settings = interpret.tracing.TraceSettings(asked["noise"])
found = {}
for site, top in asked["top"].items():
    one = interpret.tracing.trace_units(
        model, tokenizer, *asked["fact"], site=site, top=top, settings=settings, progress=False
    )
    names = ["layer_idx", "unit", "token_idx", "indirect_effect"]
    found[site] = one.top(len(one.effects.ravel()))[names].to_dict("records")
print(json.dumps(found))
"""


def interpret(*words: str) -> float:
    """Run a command in a new process, and return its seconds."""
    start = perf_counter()
    subprocess.run([sys.executable, "-m", "interpret", *words, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - start


def printed(program: str, asked: Any) -> tuple[float, Any]:
    """Run a program in a new process, and return its seconds and the JSON value that it prints."""
    start = perf_counter()
    said = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    return perf_counter() - start, json.loads(said.stdout)


def page(folder: Path) -> float:
    """Make the page in a new process, and return its seconds."""
    return interpret("fact", *FACT, *FOIL, "--method", "screened", "--run", f"{folder}", "-o", f"{folder}.html")


def commands(folder: Path, stored: StoredFact, identity: dict[str, Any]) -> dict[str, float]:
    """Run all commands into folders, check their numbers against those of a page, and return the seconds of each."""
    details, seconds = stored.details, dict[str, float]()
    shown = {one.title: shlex.split(one.command)[1:] for one in recipes(details, identity)}
    for title in SHOWN:
        seconds[title] = interpret(*shown[title], "--output", f"{folder / title}")
    fact = details["fact"]
    rows = details["interpretations"]["rows"]
    pairs = [(row["layer_idx"], row["token_idx"]) for row in rows if row["kind"] == "interpretation"]
    asked = {"name": fact["name"], "prompt": fact["prompt"], "pairs": pairs}
    seconds[INTERPRETATIONS], interpreted = printed(INTERPRETING, asked)
    units = {
        "noise": details["trace"]["noise"],
        "fact": [fact["prompt"], fact["subject"], fact["attribute"]],
        "top": {site: details[site]["top"] for site in ("heads", "neurons")},
    }
    seconds[UNITS], restored = printed(RESTORING, units)
    check(stored, folder, interpreted, restored)
    return seconds


def check(
    stored: StoredFact, folder: Path, interpreted: Sequence[dict[str, Any]], restored: dict[str, list[dict[str, Any]]]
) -> None:
    """Check that the numbers of the commands are those of the page."""
    cells, details = stored.cells, stored.details
    traced = read_table(folder / TRACING, TraceCell)
    for name in ("hidden", "attn_severed", "mlp_severed"):
        own = [row.indirect_effect for row in traced if row.mediator == name]
        same(name, [getattr(cell, name) for cell in cells], own)
    located = [row.score for row in read_table(folder / LAYERS, LocationCell) if row.site == "resid_post"]
    same("layers", [cell.attribution for cell in cells], located)
    same("tokens", details["attribution"]["tokens"], [row.score for row in read_table(folder / TOKENS, TokenScore)])
    lens = {
        # The output of a layer is the input of the next; that of the last layer has the site resid_post.
        (row.token_idx, row.layer_idx - (row.site == "resid_pre")): (row.rank, row.probability)
        for row in read_table(folder / LENS, LensReading)
        if row.continuation == "target"
    }
    own_lens = [(cell.lens_rank, cell.lens_probability) for cell in cells]
    same("lens", own_lens, [lens[cell.token_idx, cell.layer_idx] for cell in cells])
    last = cells[-1].token_idx
    cut = [row.restored for row in read_table(folder / KNOCKOUT, TraceCell) if row.token_idx == last]
    same("knockout", details["knockout"]["probability"][0], cut)
    rows = details["interpretations"]["rows"]
    assert [row["interpretation_text"] for row in rows] == [row["interpretation_text"] for row in interpreted]
    for name in [name for name in rows[-1] if name.startswith("gain_over_")]:
        same(name, [row[name] for row in rows[1:]], [row[name] for row in interpreted[1:]])
    for site, of_site in restored.items():
        effects = {(row["layer_idx"], row["unit"], row["token_idx"]): row["indirect_effect"] for row in of_site}
        own_units = details[site]["rows"]
        places = [(row["layer_idx"], row["unit"], row["token_idx"]) for row in own_units]
        assert set(places) == set(effects), site
        same(site, [row["indirect_effect"] for row in own_units], [effects[place] for place in places])


def same(what: str, ours: Sequence[Any], own: Sequence[Any]) -> None:
    """Check that numbers are equal to 1e-6."""
    np.testing.assert_allclose(np.array(ours, float), np.array(own, float), rtol=0, atol=CLOSE, err_msg=what)


def main() -> None:
    """Print the seconds of page and commands, and the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times that page and commands run, alternating")
    rounds = parser.parse_args().rounds
    pages: list[float] = []
    single: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first"
        page(first)  # reads the files from the disk
        run = read_run(first)
        (stored,) = stored_facts(run)
        for turn in range(rounds):
            pages.append(page(Path(folder) / f"page_{turn}"))
            single.append(commands(Path(folder) / f"commands_{turn}", stored, run.manifest["identity"]))
            print(f"page {pages[-1]:.1f} s, commands", {name: round(one, 1) for name, one in single[-1].items()})
    print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores")
    print(f"page: {median(pages):.1f} s; target: below {SECONDS:.0f} s")
    whole = median(sum(one.values()) for one in single)
    print(f"commands of its five analyses: {whole:.1f} s, {whole / median(pages):.2f} times as long; target: {TARGET}")


if __name__ == "__main__":
    main()
