"""What probing costs: polysemantic scores of a wide layer in memory, a scan of all neurons in forward passes.

python benchmarks/bench_probing.py

Memory: the scores of 32,000 gated neurons, 4096 wide, of a random Llama layer; printed is the most memory the process
ever had, the model's 2 GiB included, and some scores are compared with the definition in float64. Time: what all
neurons of all layers say about 200 texts, compared between true and false ones, against the plain forward passes over
the same batches of 8 texts that this needs. Both run in turns in one process; printed are the medians and their ratio.
What the scan finds in one neuron is compared with a hook's own reading.
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
    """Return pairs of a true and a false sentence."""
    sums = [(a, b) for a in range(10) for b in range(10)][:N_PAIRS]
    return [(f"If you add {a} and {b} you get {a + b}", f"If you add {a} and {b} you get {a + b + 3}") for a, b in sums]


def plain_score(unit: Tensor, neuron: int) -> float:
    """Return the score of one neuron by its definition, in float64."""
    similarity = unit @ unit[neuron]
    similarity[neuron] = -torch.inf
    neighbours = unit[similarity.topk(NEIGHBOURS).indices].double()
    centre = neighbours.mean(dim=0)
    return (centre.norm() / (neighbours - centre).norm(dim=1).mean()).item()


def measure_memory() -> None:
    """Score a wide layer, and tell the time and the memory it took."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": NEURONS, "num_attention_heads": 32}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=1, **sizes))
    prober = interpret.KnowledgeProber(model, None)
    seconds, scores = timed(lambda: prober.polysemantic_score(0, NEIGHBOURS))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    mlp = model.model.layers[0].mlp
    unit = torch.cat([nn.functional.normalize(part.weight.detach(), dim=1) for part in (mlp.up_proj, mlp.gate_proj)], 1)
    for neuron in (0, NEURONS // 2, NEURONS - 1):
        assert abs(plain_score(unit * 0.5**0.5, neuron) / scores[neuron].item() - 1) <= AGREEMENT, neuron
    print(f"polysemantic scores of {NEURONS} neurons, {WIDTH} wide: {seconds:.0f} s, {peak:.2f} GiB at most in all "
          f"(at most {MOST_GIB:g}: {'yes' if peak <= MOST_GIB else 'NO'})")  # fmt: skip


def passes(model: PreTrainedModel, rows: list[list[int]]) -> None:
    """Run the layers over the texts, batch by batch, and keep nothing."""
    trunk = anatomy_of(model).trunk
    with torch.no_grad():
        for first in range(0, len(rows), BATCH):
            batch = pad(rows[first : first + BATCH], 0, side="right", device=model.device)
            trunk(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


def plain_means(model: PreTrainedModel, rows: list[list[int]], layer: int, neuron: int) -> tuple[float, float]:
    """Return the means of what a neuron says at the last tokens of the true and of the false texts, by a hook."""
    said: list[float] = []

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        said.append(args[0][0, -1, neuron].item())

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
    return sum(said[:half]) / half, sum(said[half:]) / half


def measure_scan(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rounds: int) -> None:
    """Scan all neurons and run the passes in turns, and tell the ratio."""
    pairs, prober = sentences(), interpret.KnowledgeProber(model, tokenizer)
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
        assert abs(found - wanted) <= AGREEMENT * max(1, abs(wanted)), "the two ways disagree"
    medians = {name: median(seconds) for name, seconds in times.items()}
    ratio = medians["scan"] / medians["passes"]
    ratios = [scan / plain for scan, plain in zip(times["scan"], times["passes"], strict=True)]
    print(f"{len(effects)} neurons, {len(rows)} texts: {-(-len(rows) // BATCH)} passes {medians['passes']:.2f} s, "
          f"scan {medians['scan']:.2f} s")  # fmt: skip
    print(f"{ratio:.2f} times the passes, {min(ratios):.2f} to {max(ratios):.2f} "
          f"(at most {MOST_RATIO:g}: {'yes' if ratio <= MOST_RATIO else 'NO'})")  # fmt: skip


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return how many seconds work takes, and its result."""
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
