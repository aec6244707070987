"""What a causal trace costs: the plain ways against the sweep engine, on facts the demo model knows.

python benchmarks/bench_tracing.py

The plain way is a full batch of forward passes, one clean and one for each noise sample, with hooks, for every cell
of the grid (Meng et al. 2022, ``causal_trace.py``). Both run in turns in one process on the same noise, and must
agree (both round in float32, thirty layers deep); printed are the medians of the paired ratios, the tokens each sends
through a decoder layer, and the rate of matrix arithmetic as a share of a large matrix product's in the same run.
Another plain way, ``generate`` with one prompt and one draw of noise a cell, is timed beside the three mediators.
"""

import argparse
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import interpret
from interpret.engine.linear import quick
from interpret.prompts.chat import as_it_is
from interpret.prompts.tokens import tokenise
from interpret.sweep import Cell, Metric, SweepResult, grid, sweep
from interpret.tracing.mediators import MEDIATORS, Mediator
from interpret.tracing.noise import corrupt, noise_of

FACTS = [
    ("The Eiffel Tower is in the city of", "Eiffel Tower"),
    ("The headquarters of the company Microsoft is located in the city of", "Microsoft"),
    ("Beats Music is owned by the company", "Beats Music"),
]
ALL: tuple[Mediator, ...] = ("hidden", "attn_severed", "mlp_severed")
TARGETS = {"hidden": 6.0, "three": 5.5}
GENERATE_TARGET = 12.0
AGREEMENT = 1e-4


@dataclass(frozen=True)
class Fact:
    """A prompt, ready to be traced both ways."""

    prompt: str
    clean: Tensor
    """[1, T, D] embeddings."""
    corrupted: Tensor
    """[S, T, D]."""
    first: int
    """The subject's first token."""
    answer: int

    @property
    def n_tokens(self) -> int:
        """T."""
        return self.clean.shape[1]


def prepare(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, subject: str, samples: int
) -> Fact:
    """Corrupt a fact's subject by noise of three standard deviations."""
    tokens = tokenise(tokenizer, as_it_is(prompt), subject)
    assert tokens.subject is not None
    span = tokens.subject[0], tokens.subject[-1] + 1
    ids = torch.tensor([list(tokens.ids)])
    clean = model.get_input_embeddings()(ids)
    shape = (samples, span[1] - span[0], clean.shape[-1])
    noise = noise_of("s3", shape, model, tokenizer, subject)
    answer = int(model(input_ids=ids).logits[0, -1].argmax())
    return Fact(prompt, clean, corrupt(clean, span, noise), span[0], answer)


def cells_of(fact: Fact, n_layers: int, mediators: Sequence[Mediator]) -> list[Cell]:
    """Return the whole grid of some mediators."""
    return [
        cell
        for name in mediators
        for cell in grid("resid_post", n_tokens=fact.n_tokens, n_layers=n_layers, pins=MEDIATORS[name].pins)
    ]


class Plain:
    """A full batch of forward passes a cell, row 0 clean and the others corrupted, with hooks."""

    def __init__(self, model: PreTrainedModel, fact: Fact) -> None:
        self.model, self.answer = model, fact.answer
        self.batch = torch.cat([fact.clean, fact.corrupted])
        self.layers = range(len(model.model.layers))
        self.recorded = self.record()

    def record(self) -> dict[tuple[int, str], Tensor]:
        """Keep what every site gives in all rows, once for all cells: {(layer, site): [1 + S, T, D]}."""
        names = {"resid_post": "resid_post", "attn_out": "attn_out", "mlp_out": "mlp_out"}
        wanted = [f"{name}.{layer}" for name in names.values() for layer in self.layers]
        with interpret.record(self.model, wanted) as seen:
            self.model(inputs_embeds=self.batch, use_cache=False)
        return {(layer, site): seen[f"{name}.{layer}"] for site, name in names.items() for layer in self.layers}

    def cell(self, cell: Cell) -> float:
        """Return the score of one cell."""
        with self.patched(cell, corrupted=slice(1, None)):
            logits = self.model(inputs_embeds=self.batch, use_cache=False).logits
        return float(logits[1:, -1].softmax(dim=-1)[:, self.answer].mean())

    @contextmanager
    def patched(self, cell: Cell, corrupted: slice, rows: slice | None = None) -> Iterator[None]:
        """Put a cell's hooks on the model, which write into the corrupted rows; these are ``rows`` of a pass."""

        def writing(values: Tensor) -> Callable[..., None]:
            def hook(module: Any, args: Any, output: Any) -> None:
                hidden = output[0] if isinstance(output, tuple) else output
                hidden[rows or corrupted, cell.token] = values[:, cell.token]

            return hook

        hooks = {(layer, cell.site): self.recorded[layer, cell.site][:1] for layer in range(cell.start, cell.stop)}
        for pin in cell.pins:
            held = [layer for layer in self.layers if cell.holds(pin.site, layer)]
            hooks |= {(layer, pin.site): self.recorded[layer, pin.site][corrupted] for layer in held}
        with ExitStack() as stack:
            for (layer, site), values in hooks.items():
                stack.callback(self.module(layer, site).register_forward_hook(writing(values)).remove)
            yield

    def module(self, layer: int, site: str) -> torch.nn.Module:
        """Return what gives a site's output."""
        block = self.model.model.layers[layer]
        return {"resid_post": block, "attn_out": block.self_attn, "mlp_out": block.mlp}[site]


def matmul_rate(size: int = 1024, times: int = 6) -> float:
    """Return the operations a second of a large matrix product, by the fastest kernel there is."""
    product, right = quick(torch.nn.Linear(size, size, bias=False)), torch.rand(size, size)
    product(right)
    start = perf_counter()
    for _ in range(times):
        product(right)
    return 2 * size**3 * times / (perf_counter() - start)


@dataclass
class Timing:
    """One fact's paired times."""

    plain: list[float]
    """Seconds for the whole grid."""
    ours: list[float]
    matmul: list[float]
    """Operations a second."""
    worst: float = 0.0
    """Largest relative difference of a score."""


def compare(
    model: PreTrainedModel, fact: Fact, cells: list[Cell], asked: argparse.Namespace
) -> tuple[Timing, SweepResult]:
    """Time both ways in turns; the plain one on some cells at a time, each costing the same."""
    plain = Plain(model, fact)
    metric = {"p": Metric("probability", (fact.answer,))}
    timing = Timing([], [], [])
    chance = np.random.default_rng(0)
    some = len(cells) if asked.all else min(asked.cells, len(cells))

    def run_plain() -> tuple[Any, list[float]]:
        chosen = chance.choice(len(cells), some, replace=False)
        return chosen, [plain.cell(cells[index]) for index in chosen]

    plain.cell(cells[0])
    for turn in range(asked.runs):
        timing.matmul.append(matmul_rate())
        for way in ("plain", "ours") if turn % 2 else ("ours", "plain"):
            start = perf_counter()
            if way == "plain":
                chosen, scores = run_plain()
                timing.plain.append((perf_counter() - start) * len(cells) / some)
            else:
                found = sweep(model, fact.corrupted, fact.clean, cells, metric)
                timing.ours.append(perf_counter() - start)
        ours = found.values["p"].mean(dim=1).numpy()[chosen]
        timing.worst = max(timing.worst, float(np.abs(ours / np.array(scores) - 1).max()))
    assert timing.worst < AGREEMENT, f"the two ways differ by {timing.worst:.1e}"
    return timing, found


def operations(model: PreTrainedModel, found: SweepResult, n_samples: int) -> float:
    """Return the multiplications and additions of a sweep's matrix products."""
    layer = sum(weight.numel() for weight in model.model.layers[0].parameters() if weight.dim() == 2)
    head = model.get_output_embeddings().weight.numel()
    runs = sum(cell.start < len(model.model.layers) - 1 for cell in found.cells) * n_samples
    return 2.0 * (layer * found.layer_tokens + head * runs)


def report(model: PreTrainedModel, fact: Fact, name: str, cells: list[Cell], asked: argparse.Namespace) -> list[float]:
    """Print a line for one fact, and return the ratios of its paired times."""
    timing, found = compare(model, fact, cells, asked)
    ratios = [plain / ours for plain, ours in zip(timing.plain, timing.ours, strict=True)]
    plain_tokens = len(cells) * len(model.model.layers) * (asked.samples + 1) * fact.n_tokens
    rate = median(
        operations(model, found, asked.samples) / ours / matmul
        for ours, matmul in zip(timing.ours, timing.matmul, strict=True)
    )
    print(
        f"{name:8} T={fact.n_tokens:2} from {fact.first}  {len(cells):4} cells  plain {median(timing.plain):6.1f} s  "
        f"ours {median(timing.ours):6.2f} s  ratio {median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})  "
        f"layer tokens {plain_tokens:8} / {found.layer_tokens:7} = {plain_tokens / found.layer_tokens:5.2f}  "
        f"rate {rate:4.0%}  differ by {timing.worst:.0e}",
        flush=True,
    )
    return ratios


def report_generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, fact: Fact, cells: list[Cell], asked: argparse.Namespace
) -> list[float]:
    """Time a ``generate`` of one token for each cell, as Knowledge-Tracing does, and return the ratios to ours.

    It has one draw of noise, so ours has one too (and all of them beside it); it severs nothing after the last
    layer, and makes two runs that restore nothing.
    """
    n_layers = len(model.model.layers)
    calls = fact.n_tokens * (3 * n_layers - 2) + 2
    plain = Plain(model, fact)
    ids = tokenizer(fact.prompt, return_tensors="pt")
    stock = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
    ratios: dict[int, list[float]] = {1: [], asked.samples: []}
    for _ in range(asked.runs):
        start = perf_counter()
        for index in range(asked.cells):
            with plain.patched(cells[index * len(cells) // asked.cells], slice(1, 2), rows=slice(0, 1)):
                model.generate(**ids, **stock)
        each = (perf_counter() - start) / asked.cells
        for samples, found in ratios.items():
            start = perf_counter()
            sweep(model, fact.corrupted[:samples], fact.clean, cells, {"p": Metric("probability", (fact.answer,))})
            found.append(each * calls / (perf_counter() - start))
    medians = ", ".join(f"{median(found):.2f} with {samples}" for samples, found in ratios.items())
    print(f"generate T={fact.n_tokens:2}  {calls} calls with one draw of noise; ratio to ours {medians}", flush=True)
    return ratios[1]


def report_growth(model: PreTrainedModel, facts: Sequence[Fact]) -> None:
    """Print how the time of a hidden-state grid grows with layers, tokens and facts."""
    whole, fact = model.model.layers, facts[0]

    def seconds(fact: Fact, n_tokens: int) -> float:
        cells = grid("resid_post", n_tokens=n_tokens, n_layers=len(model.model.layers))
        start = perf_counter()
        base, donor = fact.corrupted[:, :n_tokens], fact.clean[:, :n_tokens]
        sweep(model, base, donor, cells, {"p": Metric("probability", (fact.answer,))})
        return perf_counter() - start

    try:
        for n_layers in (10, 20, 30):
            model.model.layers = whole[:n_layers]
            print(f"growth   {n_layers} layers, {fact.n_tokens:2} tokens: {seconds(fact, fact.n_tokens):6.2f} s")
    finally:
        model.model.layers = whole
    for n_tokens in range(fact.first + 2, fact.n_tokens + 1, 2):
        print(f"growth   {len(whole)} layers, {n_tokens:2} tokens: {seconds(fact, n_tokens):6.2f} s")
    for n_facts in range(1, len(facts) + 1):
        print(f"growth   {n_facts} facts: {sum(seconds(fact, fact.n_tokens) for fact in facts[:n_facts]):6.2f} s")


@torch.no_grad()
def main() -> None:
    """Print a line for each fact and set of mediators."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cells", type=int, default=12, help="cells the plain way runs in each turn")
    parser.add_argument("--all", action="store_true", help="the plain way runs every cell")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--facts", type=int, default=len(FACTS))
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    model, tokenizer = interpret.load("demo", dtype="float32", device="cpu")
    print(f"{platform.processor() or 'CPU'}, {torch.get_num_threads()} threads, torch {torch.__version__},", end=" ")
    print(f"transformers {transformers.__version__}; demo model, {asked.samples} noise samples, {asked.runs} runs")
    if not asked.all:
        print(f"The plain way's time is that of {asked.cells} random cells a run, times cells: each costs the same.")
    n_layers = len(model.model.layers)
    facts = [prepare(model, tokenizer, *fact, asked.samples) for fact in FACTS[: asked.facts]]
    for name, mediators in (("hidden", ("hidden",)), ("three", ALL)):
        ratios = [report(model, fact, name, cells_of(fact, n_layers, mediators), asked) for fact in facts]
        middle = median(ratio for some in ratios for ratio in some)
        print(f"{name:8} median ratio {middle:.2f}, target {TARGETS[name]}")
    ratios = [report_generate(model, tokenizer, fact, cells_of(fact, n_layers, ALL), asked) for fact in facts]
    print(f"generate median ratio {median(ratio for some in ratios for ratio in some):.2f}, target {GENERATE_TARGET}")
    report_growth(model, facts)


if __name__ == "__main__":
    main()
