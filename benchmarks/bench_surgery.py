"""Measure the overhead of surgery: stock calls against the same calls with edits, on the demo model.

python -m benchmarks.bench_surgery

The stock calls and those with edits run alternately in one process; the script prints the medians of the paired
ratios. Before timing, it asserts that edits of strength 0 give bit-identical results to the stock calls, and that the
timed edits are visible in the hidden states.
"""

import argparse
import platform
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

import interpret

LAYER, SLOTS, NEW_TOKENS, TARGET = 1, [4, 5, 6, 7, 8], 16, 1.05


def plan(width: int, samples: int, strength: float) -> list[dict[Any, Any]]:
    """Return edits that insert one random vector per sample at five of its tokens, after layer 0."""
    vectors = torch.randn(samples, 1, 1, width, generator=torch.Generator().manual_seed(0))
    return [{LAYER: (SLOTS, v.expand(1, len(SLOTS), -1)), "overlay_strength": strength} for v in vectors]


def check(model: PreTrainedModel, inputs: dict[str, Any], neutral: list[Any], real: list[Any]) -> None:
    """Assert that edits of strength 0 change nothing and that the timed edits are applied."""
    stock = model(**inputs, output_hidden_states=True)
    same = interpret.forward_interpret(model, **inputs, insert_info=neutral, output_hidden_states=True)
    assert torch.equal(stock.logits, same.logits)
    edited = interpret.forward_interpret(model, **inputs, insert_info=real, output_hidden_states=True)
    inserted = torch.cat([info[LAYER][1] for info in real])
    assert torch.equal(edited.hidden_states[LAYER][:, SLOTS], inserted.to(model.device))
    assert not torch.equal(stock.logits, edited.logits)
    decoding: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 2}
    plain = model.generate(**inputs, **decoding)
    assert torch.equal(plain, interpret.generate_interpret(model, **inputs, **decoding, insert_info=neutral))


def paired(plain: Callable[[], Any], ours: Callable[[], Any], runs: int, device: torch.device) -> str:
    """Time both calls alternately, after one untimed run of each; return a line of results."""
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for turn in range(runs + 1):
        pair = [("plain", plain), ("ours", ours)]
        for name, call in pair if turn % 2 else reversed(pair):
            start = perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                times[name].append(perf_counter() - start)
    ratios = sorted(ours / plain for plain, ours in zip(times["plain"], times["ours"], strict=True))
    return (
        f"{median(times['plain']):8.3f} s {median(times['ours']):8.3f} s   ratio {median(ratios):.3f} "
        f"(middle half {ratios[len(ratios) // 4]:.3f} to {ratios[-len(ratios) // 4]:.3f}, target at most {TARGET})"
    )


@torch.no_grad()
def main() -> None:
    """Print a header with the machine, then one line per call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=40, help="length of each sample")
    parser.add_argument("--runs", type=int, default=9)
    asked = parser.parse_args()
    model, _ = interpret.load(asked.model, device=asked.device)
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 1000, (asked.samples, asked.tokens), generator=chance).to(model.device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    neutral, real = (plan(model.config.hidden_size, asked.samples, strength) for strength in (0.0, 1.0))
    check(model, inputs, neutral, real)
    decoding: dict[str, Any] = {
        "do_sample": False,
        "min_new_tokens": NEW_TOKENS,
        "max_new_tokens": NEW_TOKENS,
        "pad_token_id": 2,
    }
    where = torch.cuda.get_device_name() if model.device.type == "cuda" else platform.processor() or "CPU"
    print(f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}, transformers", end=" ")
    print(f"{transformers.__version__}; {asked.model}, {asked.samples} samples of {asked.tokens} tokens")
    print(f"{'':24}   stock    with surgery")
    line = paired(
        lambda: model(**inputs),
        lambda: interpret.forward_interpret(model, **inputs, insert_info=real),
        asked.runs,
        model.device,
    )
    print(f"{'forward':24}{line}")
    line = paired(
        lambda: model.generate(**inputs, **decoding),
        lambda: interpret.generate_interpret(model, **inputs, **decoding, insert_info=real),
        asked.runs,
        model.device,
    )
    print(f"{f'generate, {NEW_TOKENS} new tokens':24}{line}")


if __name__ == "__main__":
    main()
