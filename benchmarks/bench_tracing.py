"""Compare the time of causal tracing with the sweep engine with that of plain implementations, on the demo model.

python -m benchmarks.bench_tracing

For every cell of the grid, the plain implementation runs a full forward pass with hooks over a batch of one clean row
and one row per noise sample (Meng et al. 2022, ``causal_trace.py``). Both run alternately in one process on the same
noise, and their results must agree within the rounding error of float32 over thirty layers. The script prints the
medians of the paired ratios; the ratio of the numbers of tokens that pass through a decoder layer; and the rate of
matrix arithmetic, as a share of the rate of one large matrix product in the same run. For the three mediators it also
times a second plain implementation: ``generate`` with one prompt and one noise sample for each cell. Estimates are
compared with a backward pass of the stock model through all layers, of the fact alone and behind a long text.
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
from interpret.sweep import Cell, Metric, SweepResult, first_order, grid, run_sweep
from interpret.tracing.mediators import DEFAULT_MEDIATORS, MEDIATORS
from interpret.tracing.noise import corrupt, noise_of

FACTS = [
    ("The Eiffel Tower is in the city of", "Eiffel Tower"),
    ("The headquarters of the company Microsoft is located in the city of", "Microsoft"),
    ("Beats Music is owned by the company", "Beats Music"),
]
TEXT = "Many towns have a tower, and every tower has a story that the people of the town like to tell. "
TIMES = (0, 4, 8)
"""How often the text stands before a fact when estimates are timed."""
ALL = DEFAULT_MEDIATORS
TARGETS = {"hidden": 6.0, "three": 5.5}
GENERATE_TARGET = 12.0
AGREEMENT = 1e-4


@dataclass(frozen=True)
class Fact:
    """The embeddings of a prompt and its answer, for both implementations."""

    prompt: str
    clean: Tensor
    """[1, T, D], embeddings of the clean run."""
    corrupted: Tensor
    """[S, T, D], embeddings of the corrupted runs, one per noise sample."""
    first: int
    """Position of the subject's first token."""
    answer: int
    """Token id of the answer."""

    @property
    def n_tokens(self) -> int:
        """T, the number of tokens of the prompt."""
        return self.clean.shape[1]


def prepare(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, subject: str, samples: int
) -> Fact:
    """Return a fact whose subject is corrupted by noise of three standard deviations."""
    tokens = tokenise(tokenizer, as_it_is(prompt), subject)
    assert tokens.subject is not None
    span = tokens.subject[0], tokens.subject[-1] + 1
    ids = torch.tensor([list(tokens.ids)], device=model.device)
    clean = model.get_input_embeddings()(ids)
    shape = (samples, span[1] - span[0], clean.shape[-1])
    noise = noise_of("s3", shape, model, tokenizer, subject)
    answer = int(model(input_ids=ids).logits[0, -1].argmax())
    return Fact(prompt, clean, corrupt(clean, span, noise), span[0], answer)


def cells_of(fact: Fact, n_layers: int, mediators: Sequence[str]) -> list[Cell]:
    """Return the cells of some mediators at all tokens and layers."""
    return [cell for name in mediators for cell in MEDIATORS[name].cells(fact.n_tokens, n_layers, window=1)]


class Plain:
    """One full forward pass with hooks per cell; row 0 of the batch is clean, the others are corrupted."""

    def __init__(self, model: PreTrainedModel, fact: Fact) -> None:
        self.model, self.answer = model, fact.answer
        self.batch = torch.cat([fact.clean, fact.corrupted])
        self.layers = range(len(model.model.layers))
        self.recorded = self.record()

    def record(self) -> dict[tuple[int, str], Tensor]:
        """Record the output of every site in all rows, once for all cells: {(layer, site): [1 + S, T, D]}."""
        places = [(layer, site) for site in ("resid_post", "attn_out", "mlp_out") for layer in self.layers]
        with interpret.record(self.model, [f"{site}.{layer}" for layer, site in places]) as seen:
            self.model(inputs_embeds=self.batch, use_cache=False)
        return {(layer, site): seen[f"{site}.{layer}"] for layer, site in places}

    def cell(self, cell: Cell) -> float:
        """Return the score of one cell."""
        with self.patched(cell, corrupted=slice(1, None)):
            logits = self.model(inputs_embeds=self.batch, use_cache=False).logits
        return float(logits[1:, -1].float().softmax(dim=-1)[:, self.answer].mean())

    @contextmanager
    def patched(self, cell: Cell, corrupted: slice, rows: slice | None = None) -> Iterator[None]:
        """Register hooks that write a cell's values into the corrupted rows.

        Args:
            cell: which activation is restored, and which are held.
            corrupted: the corrupted rows of the recorded batch from which held values are taken.
            rows: the rows of the forward pass to write into; by default ``corrupted``.
        """

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
        """Return the module whose output is the site."""
        block = self.model.model.layers[layer]
        return {"resid_post": block, "attn_out": block.self_attn, "mlp_out": block.mlp}[site]


def matmul_rate(size: int = 1024, times: int = 6) -> float:
    """Return the operations per second of a large matrix product with the fastest available kernel."""
    product, right = quick(torch.nn.Linear(size, size, bias=False)), torch.rand(size, size)
    product(right)
    start = perf_counter()
    for _ in range(times):
        product(right)
    return 2 * size**3 * times / (perf_counter() - start)


@dataclass
class Timing:
    """Paired times of one fact."""

    plain: list[float]
    """Seconds for the whole grid."""
    ours: list[float]
    matmul: list[float]
    """Operations per second of a large matrix product."""
    worst: float = 0.0
    """Largest relative difference between scores."""


def compare(
    model: PreTrainedModel, fact: Fact, cells: list[Cell], asked: argparse.Namespace
) -> tuple[Timing, SweepResult]:
    """Time both implementations alternately; the plain one on a few random cells, since all cells cost the same."""
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
                found = run_sweep(model, fact.corrupted, fact.clean, cells, metric)
                timing.ours.append(perf_counter() - start)
        ours = found.values["p"].mean(dim=1).numpy()[chosen]
        timing.worst = max(timing.worst, float(np.abs(ours / np.array(scores) - 1).max()))
    assert timing.worst < AGREEMENT, f"the plain implementation and ours differ by {timing.worst:.1e}"
    return timing, found


def operations(model: PreTrainedModel, found: SweepResult, n_samples: int) -> float:
    """Return the number of multiplications and additions in a sweep's matrix products."""
    layer = sum(weight.numel() for weight in model.model.layers[0].parameters() if weight.dim() == 2)
    head = model.get_output_embeddings().weight.numel()
    runs = sum(cell.start < len(model.model.layers) - 1 for cell in found.cells) * n_samples
    return 2.0 * (layer * found.layer_tokens + head * runs)


def report(model: PreTrainedModel, fact: Fact, name: str, cells: list[Cell], asked: argparse.Namespace) -> list[float]:
    """Time one fact, print a line, and return the ratios of its paired times."""
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
    """Time one call of ``generate`` per cell, as Knowledge-Tracing does, and return the ratios of its time to ours.

    ``generate`` has one noise sample, so ours is timed with one noise sample, and also with all of them. The number of
    calls is that of Knowledge-Tracing: severed cells after the last layer are left out, since they would hold nothing,
    and there are two runs without restoration.
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
            run_sweep(model, fact.corrupted[:samples], fact.clean, cells, {"p": Metric("probability", (fact.answer,))})
            found.append(each * calls / (perf_counter() - start))
    medians = ", ".join(f"{median(found):.2f} with {samples}" for samples, found in ratios.items())
    print(
        f"generate T={fact.n_tokens:2}  {calls} calls with one noise sample; ratio to ours {medians} noise samples",
        flush=True,
    )
    return ratios[1]


def report_growth(model: PreTrainedModel, facts: Sequence[Fact]) -> None:
    """Print how the time of a hidden-state grid depends on the numbers of layers, tokens and facts."""
    whole, fact = model.model.layers, facts[0]

    def seconds(fact: Fact, n_tokens: int) -> float:
        cells = grid("resid_post", n_tokens=n_tokens, n_layers=len(model.model.layers))
        start = perf_counter()
        base, donor = fact.corrupted[:, :n_tokens], fact.clean[:, :n_tokens]
        run_sweep(model, base, donor, cells, {"p": Metric("probability", (fact.answer,))})
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


def estimated_plainly(model: PreTrainedModel, fact: Fact) -> Tensor:
    """Estimate the effect of each hidden state, [T, L, S], from one backward pass of the stock model."""
    seen: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda *call: seen.append(call[-1][0])) for layer in model.model.layers]
    try:
        with torch.enable_grad():
            logits = model(inputs_embeds=fact.corrupted.detach().requires_grad_()).logits[:, -1]
            log_p = logits.double().log_softmax(-1)[:, fact.answer]
            here = seen.copy()
            slopes = torch.autograd.grad(log_p.sum(), here)
        seen.clear()
        model(inputs_embeds=fact.clean)
    finally:
        for hook in hooks:
            hook.remove()
    effects = [((there - own) * slope).double().sum(-1) for there, own, slope in zip(seen, here, slopes, strict=True)]
    return torch.stack(effects, dim=-1).permute(1, 2, 0) * log_p.detach().exp()


def report_estimates(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, fact: tuple[str, str], asked: argparse.Namespace
) -> None:
    """Time the estimates of a fact's hidden states behind a text of growing length, and those of the stock model."""
    for times in TIMES:
        own = prepare(model, tokenizer, TEXT * times + fact[0], fact[1], asked.samples)
        cells = cells_of(own, len(model.model.layers), ("hidden",))
        plain, ours = list[float](), list[float]()
        for _ in range(asked.runs):
            start = perf_counter()
            expected = estimated_plainly(model, own).flatten(0, 1)
            plain.append(perf_counter() - start)
            start = perf_counter()
            found = first_order(model, own.corrupted, own.clean, cells, Metric("probability", (own.answer,))).effects
            ours.append(perf_counter() - start)
            worst = float((found - expected).abs().max() / expected.abs().max())
            assert worst < AGREEMENT, f"estimates differ by {worst:.0e} of the largest"
        ratios = [one / other for one, other in zip(plain, ours, strict=True)]
        print(
            f"estimate T={own.n_tokens:3} from {own.first:3}  plain {median(plain):6.2f} s  "
            f"ours {median(ours):6.2f} s  ratio {median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})  "
            f"differ by {worst:.0e}",
            flush=True,
        )


@torch.no_grad()
def main() -> None:
    """Print one line per fact and set of mediators."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cells", type=int, default=12, help="number of cells per run of the plain implementation")
    parser.add_argument("--all", action="store_true", help="run every cell with the plain implementation")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--facts", type=int, default=len(FACTS))
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    model, tokenizer = interpret.load("demo", dtype="float32", device="cpu")
    print(f"{platform.processor() or 'CPU'}, {torch.get_num_threads()} threads, torch {torch.__version__},", end=" ")
    print(f"transformers {transformers.__version__}; demo model, {asked.samples} noise samples, {asked.runs} runs")
    if not asked.all:
        print(f"The plain time is extrapolated from {asked.cells} random cells per run: all cells cost the same.")
    n_layers = len(model.model.layers)
    facts = [prepare(model, tokenizer, *fact, asked.samples) for fact in FACTS[: asked.facts]]
    for name, mediators in (("hidden", ("hidden",)), ("three", ALL)):
        ratios = [report(model, fact, name, cells_of(fact, n_layers, mediators), asked) for fact in facts]
        middle = median(ratio for some in ratios for ratio in some)
        print(f"{name:8} median ratio {middle:.2f}, target {TARGETS[name]}")
    ratios = [report_generate(model, tokenizer, fact, cells_of(fact, n_layers, ALL), asked) for fact in facts]
    print(f"generate median ratio {median(ratio for some in ratios for ratio in some):.2f}, target {GENERATE_TARGET}")
    report_growth(model, facts)
    report_estimates(model, tokenizer, FACTS[0], asked)


if __name__ == "__main__":
    main()
