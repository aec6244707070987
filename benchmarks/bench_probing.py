"""Measure the peak memory of polysemantic scores of a wide layer, and the time of a scan of all neurons.

python -m benchmarks.bench_probing

Memory: the scores of 32,000 gated neurons of width 4096, in a Llama layer with random weights. The script prints the
peak memory of the process, which includes 2 GiB for the model, and compares some scores with their definition,
computed in float64.

Time: a scan that compares the activations of all neurons of all layers between 100 true and 100 false texts, against
the plain forward passes over the same batches of 8 texts that it needs. Both run alternately in one process. The
script prints the median times and the ratio of the medians, and compares the mean activations of one neuron with those
read by a plain hook.
"""

import argparse
import platform
import resource
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import interpret
from interpret.anatomy import anatomy_of
from interpret.prompts.batches import pad

WIDTH, NEURONS, NEIGHBOURS = 4096, 32_000, 50
MOST_GIB, MOST_RATIO, AGREEMENT = 4.0, 1.3, 1e-4
N_PAIRS, BATCH = 100, 8


def sentences() -> list[tuple[str, str]]:
    """Return pairs of one true and one false sentence."""
    sums = [(a, b) for a in range(10) for b in range(10)][:N_PAIRS]
    return [(f"If you add {a} and {b} you get {a + b}", f"If you add {a} and {b} you get {a + b + 3}") for a, b in sums]


def plain_score(unit: Tensor, neuron: int) -> float:
    """Return the score of one neuron, computed from its definition in float64."""
    similarity = unit @ unit[neuron]
    similarity[neuron] = -torch.inf
    neighbours = unit[similarity.topk(NEIGHBOURS).indices].double()
    centre = neighbours.mean(dim=0)
    return (centre.norm() / (neighbours - centre).norm(dim=1).mean()).item()


def measure_memory() -> None:
    """Compute the scores of a wide layer, and print the time and the peak memory."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": NEURONS, "num_attention_heads": 32}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=1, **sizes))
    prober = interpret.probing.KnowledgeProber(model, None)
    seconds, scores = timed(lambda: prober.polysemantic_score(0, NEIGHBOURS))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    mlp = model.model.layers[0].mlp
    unit = torch.cat([nn.functional.normalize(part.weight.detach(), dim=1) for part in (mlp.up_proj, mlp.gate_proj)], 1)
    for neuron in (0, NEURONS // 2, NEURONS - 1):
        assert abs(plain_score(unit * 0.5**0.5, neuron) / scores[neuron].item() - 1) <= AGREEMENT, neuron
    print(f"polysemantic scores of {NEURONS} neurons, width {WIDTH}: {seconds:.0f} s, {peak:.2f} GiB peak memory "
          f"(target at most {MOST_GIB:g}: {'reached' if peak <= MOST_GIB else 'NOT REACHED'})")  # fmt: skip


def passes(model: PreTrainedModel, rows: list[list[int]]) -> None:
    """Run the decoder layers over the texts, batch by batch, and discard the outputs."""
    trunk = anatomy_of(model).trunk
    with torch.no_grad():
        for first in range(0, len(rows), BATCH):
            batch = pad(rows[first : first + BATCH], 0, side="right", device=model.device)
            trunk(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


def plain_means(model: PreTrainedModel, rows: list[list[int]], layer: int, neuron: int) -> tuple[float, float]:
    """Return a neuron's mean activation at the last token of the true and of the false texts, read by a hook."""
    activations: list[float] = []

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        activations.append(args[0][0, -1, neuron].item())

    anatomy = anatomy_of(model)
    down = anatomy.layers[layer].get_submodule(anatomy.parts.down)
    hook = down.register_forward_pre_hook(keep)
    try:
        with torch.no_grad():
            for row in rows:
                anatomy.trunk(input_ids=torch.tensor([row], device=model.device), use_cache=False)
    finally:
        hook.remove()
    half = len(rows) // 2
    return sum(activations[:half]) / half, sum(activations[half:]) / half


def measure_scan(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rounds: int) -> None:
    """Run the scan and the plain passes alternately, and print the ratio of their times."""
    pairs, prober = sentences(), interpret.probing.KnowledgeProber(model, tokenizer)
    rows = [tokenizer(text).input_ids for side in zip(*pairs, strict=True) for text in side]
    layers = range(len(anatomy_of(model).layers))
    times: dict[str, list[float]] = {"passes": [], "scan": []}
    for round_number in range(rounds + 1):
        plain, _ = timed(lambda: passes(model, rows))
        ours, effects = timed(lambda: prober.scan(pairs, layers, batch_size=BATCH))
        if round_number:  # the first round warms up
            times["passes"].append(plain)
            times["scan"].append(ours)
    best = effects[0]
    for found, wanted in zip(
        (best.true_mean, best.false_mean), plain_means(model, rows, best.layer, best.neuron), strict=True
    ):
        assert abs(found - wanted) <= AGREEMENT * max(1, abs(wanted)), "the scan and the hook disagree"
    medians = {name: median(seconds) for name, seconds in times.items()}
    ratio = medians["scan"] / medians["passes"]
    ratios = [scan / plain for scan, plain in zip(times["scan"], times["passes"], strict=True)]
    print(f"{len(effects)} neurons, {len(rows)} texts: {-(-len(rows) // BATCH)} passes {medians['passes']:.2f} s, "
          f"scan {medians['scan']:.2f} s")  # fmt: skip
    print(f"{ratio:.2f} times as long as the passes, {min(ratios):.2f} to {max(ratios):.2f} "
          f"(target at most {MOST_RATIO:g}: {'reached' if ratio <= MOST_RATIO else 'NOT REACHED'})")  # fmt: skip


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Run ``work``; return its time in seconds and its result."""
    start = perf_counter()
    found = work()
    return perf_counter() - start, found


def main() -> None:
    """Measure both and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"transformers {transformers.__version__}")  # fmt: skip
    measure_memory()
    measure_scan(*interpret.load(arguments.model, device=arguments.device), arguments.rounds)


if __name__ == "__main__":
    main()
