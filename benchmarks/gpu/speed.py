"""Speed on a device: the same results from ours and from plain implementations, which run alternately.

Each function takes a model and returns both implementations and the target. The plain ones are those of the
benchmarks beside this folder.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import interpret
from benchmarks import bench_surgery
from benchmarks.bench_attribution import our_layers, plain_layers
from benchmarks.bench_selfie import Row, in_eights, our_way
from benchmarks.bench_tracing import Plain, cells_of
from benchmarks.gpu.comparing import Bench, Speed, apart
from benchmarks.gpu.inputs import fact_of, source_of, steps_of, template_of
from interpret.sweep import Metric, run_sweep

N_NEW = 16
N_PLAIN_CELLS = 6


def trace(bench: Bench) -> Speed:
    """Hidden states of all tokens and layers, against a whole pass over a batch of 11 rows for each cell.

    All cells cost the plain implementation the same, so that it runs only a few.
    """
    fact = fact_of(bench, n_tokens=12)
    cells = cells_of(fact, bench.shape.layers, ("hidden",))
    chosen = torch.randperm(len(cells), generator=torch.Generator().manual_seed(0))[:N_PLAIN_CELLS]
    with torch.no_grad():
        runs = Plain(bench.model, fact)

    @torch.no_grad()
    def plain() -> Tensor:
        return torch.tensor([runs.cell(cells[index]) for index in chosen.tolist()])

    def ours() -> Tensor:
        metric = {"p": Metric("probability", (fact.answer,))}
        return run_sweep(bench.model, fact.corrupted, fact.clean, cells, metric).values["p"].mean(dim=1)

    return Speed(
        plain, ours, target=25.0, scale=len(cells) / len(chosen), difference=lambda own, few: apart(own[chosen], few)
    )


def interpretation(bench: Bench) -> Speed:
    """Interpretations with probabilities, against ``generate`` for 8 states at a time and two passes over the texts."""
    source, template = source_of(bench, bench.shape.states), template_of(bench)

    def numbers(rows: Sequence[Row]) -> Tensor:
        """Return the tokens and their probabilities with and without the state, [states, 3, N_NEW]."""
        return torch.tensor([[ids, p, q] for ids, p, q in rows], dtype=torch.float64)

    return Speed(
        lambda: numbers(in_eights(bench.model, source, template, N_NEW, keep_all=False)),
        lambda: numbers(our_way(bench.model, bench.tokenizer, source, template, N_NEW)),
        target=5.0,
        difference=texts_apart,
    )


def texts_apart(ours: Tensor, plain: Tensor) -> float:
    """Return the largest difference of probabilities, up to the first token of each text that differs.

    Of two tokens that are equally likely but for rounding, either may be chosen: their own probabilities with the state
    are compared, the rest of the text is not.
    """
    same = (ours[:, 0] == plain[:, 0]).long()  # [states, N_NEW]
    alike = same.cumprod(dim=1)
    first = torch.cat([torch.ones_like(alike[:, :1]), alike[:, :-1]], dim=1)  # up to the first that differs, and there
    inserted, nothing = (ours - plain).abs()[:, 1:].unbind(1)
    return max((inserted * first).max().item(), (nothing * alike).max().item())


def layers(bench: Bench) -> Speed:
    """Activation times gradient at all layers, against a forward and a backward pass for each layer."""
    (step,) = steps_of(bench, n_prompt=12, n_steps=1)
    return Speed(
        lambda: torch.stack(plain_layers(step)),
        lambda: torch.stack(our_layers(step)),
        target=25.0 * bench.shape.layers / 32,  # 25 for 32 layers: at most one pass per layer can be saved
        allowed=1e-3,
    )


def surgery_forward(bench: Bench) -> Speed:
    """A pass with edits at five tokens of each of 32 samples, against the stock call."""
    return _surgery(bench, lambda **inputs: bench.model(**inputs).logits, _edited_pass)


def surgery_generate(bench: Bench) -> Speed:
    """The same with ``generate``, 16 new tokens."""
    decoding: dict[str, Any] = {"do_sample": False, "min_new_tokens": N_NEW, "max_new_tokens": N_NEW, "pad_token_id": 0}

    def ours(model: Any, **inputs: Any) -> Tensor:
        return interpret.generate_interpret(model, **inputs, **decoding)

    return _surgery(bench, lambda **inputs: bench.model.generate(**inputs, **decoding), ours)


def _edited_pass(model: Any, **inputs: Any) -> Tensor:
    logits: Tensor = interpret.forward_interpret(model, **inputs, return_dict=True).logits
    return logits


def _surgery(bench: Bench, stock: Callable[..., Tensor], ours: Callable[..., Tensor]) -> Speed:
    """Compare a stock call with one that edits; the edits have strength 0, so that both give the same."""
    samples, n_tokens = 32, 40
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(10, bench.shape.vocabulary, (samples, n_tokens), generator=chance).to(bench.model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    info = bench_surgery.plan(bench.shape.width, samples, strength=0.0)

    @torch.no_grad()
    def plain() -> Tensor:
        return stock(**inputs)

    @torch.no_grad()
    def edited() -> Tensor:
        return ours(bench.model, **inputs, insert_info=info)

    return Speed(plain, edited, target=bench_surgery.TARGET, at_most=True)
