"""Compare the time of attributions that share forward and backward passes with that of plain implementations.

python -m benchmarks.bench_attribution

Layers: gradient x activation at the output of every layer. For each layer, the plain implementation hooks the layer's
output, runs a forward pass, and backpropagates from the probability of the answer to that output. Ours takes one
forward and one backward pass for all layers.

Occlusion: the effect of every token on each token that the model has generated. For each generated token, the plain
implementation runs the text before it once per masked token, in batches of 8. Ours runs each masked text once for all
generated tokens, starting at the masked token.

Both run alternately in one process on the same text, and their results must agree. The script prints the median time
of each and the ratio of the medians.

Gradients: the gradient methods of Inseq 0.7.1 and ours, see ``inseq_comparison.py``; only with the option ``--inseq``,
because Inseq needs an environment of its own:

python -m venv inseq-env
inseq-env/bin/python -m pip install inseq==0.7.1 torch==2.13.0
python -m benchmarks.bench_attribution --inseq inseq-env/bin/python
"""

import argparse
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import interpret
from benchmarks.inseq_comparison import compare_with_inseq
from interpret.anatomy import anatomy_of
from interpret.attribution.methods.layer_gradients import layer_gradient_x_activation
from interpret.attribution.methods.masking import occlusion
from interpret.attribution.steps.functions import probability
from interpret.attribution.steps.step import Step

PROMPT = "The Eiffel Tower is in the city of"
WRITTEN = 20
SIDE_BY_SIDE = 8


@dataclass(frozen=True)
class Task:
    """One computation, in a plain and in our implementation."""

    name: str
    plain: Callable[[], list[Tensor]]
    ours: Callable[[], list[Tensor]]
    target: float
    """Required ratio of the plain time to ours."""
    agreement: float
    """Largest difference allowed, relative to the largest absolute score of the layer or step."""


def plain_layers(step: Step) -> list[Tensor]:
    """Return the scores of each layer, [T, D], with one forward and one backward pass per layer."""
    return [_plain_layer(step, layer) for layer in anatomy_of(step.model).layers]


def _plain_layer(step: Step, layer: nn.Module) -> Tensor:
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        # Layers of transformers 4.34.0 return a tuple.
        seen.append((output[0] if isinstance(output, tuple) else output).detach().requires_grad_())
        return (seen[0], *output[1:]) if isinstance(output, tuple) else seen[0]

    hook = layer.register_forward_hook(keep)
    try:
        ids = torch.tensor([list(step.ids)], device=step.model.device)
        logits = step.model(ids, use_cache=False).logits[0, -1].float()
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad(logits.softmax(-1)[step.target], seen[0])
    return (seen[0].detach() * gradient)[0]


def our_layers(step: Step) -> list[Tensor]:
    """Return the scores of each layer, [T, D], with one forward and one backward pass for all."""
    names = [f"resid_post.{layer}" for layer in range(len(anatomy_of(step.model).layers))]
    (found,) = layer_gradient_x_activation([step], names)
    return list(found.values())


@torch.no_grad()
def plain_occlusion(steps: Sequence[Step]) -> list[Tensor]:
    """Return for each step, [T], the drop in probability when each token is masked, from full forward passes."""
    return [_plain_step(step) for step in steps]


def _plain_step(step: Step) -> Tensor:
    texts = step.embeddings.repeat(len(step.ids) + 1, 1, 1)
    texts[range(1, len(texts)), range(len(step.ids))] = 0
    logits = torch.cat(
        [step.model(inputs_embeds=some, use_cache=False).logits[:, -1] for some in texts.split(SIDE_BY_SIDE)]
    )
    values = logits.float().softmax(-1)[:, step.target].double()
    return values[0] - values[1:]


def tasks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Task]:
    """Return the tasks to measure."""
    (written,) = interpret.attribute(model, tokenizer, PROMPT, max_new_tokens=WRITTEN).sequences
    steps = [
        Step(model, tokenizer, written.token_ids[:end], written.token_ids[end], None, probability, SIDE_BY_SIDE)
        for end in range(written.start, written.stop)
    ]
    n_layers, n_prompt = len(anatomy_of(model).layers), written.n_prompt
    return [
        Task(
            f"gradient x activation, {n_layers} layers, {n_prompt} tokens",
            lambda: plain_layers(steps[0]),
            lambda: our_layers(steps[0]),
            target=20.0,
            agreement=1e-4,  # in float32, each of the two is up to 6e-5 from the float64 result
        ),
        Task(
            f"occlusion, {len(steps)} written tokens after {n_prompt}",
            lambda: plain_occlusion(steps),
            lambda: [scores.cpu() for scores in occlusion(steps)],
            target=15.0,
            agreement=1e-4,  # the two use different matrix kernels
        ),
    ]


def timed(work: Callable[[], list[Tensor]]) -> tuple[float, list[Tensor]]:
    """Run ``work``; return its time in seconds and its result."""
    start = perf_counter()
    found = work()
    return perf_counter() - start, found


def measure(task: Task, rounds: int) -> None:
    """Run both implementations alternately and print the median times."""
    times: list[tuple[float, float]] = []
    for round_number in range(rounds + 1):
        plain, expected = timed(task.plain)
        ours, found = timed(task.ours)
        if round_number:  # the first round warms up
            times.append((plain, ours))
        for one, other in zip(expected, found, strict=True):
            assert (one.cpu() - other.cpu()).abs().max() <= task.agreement * one.abs().max(), (
                "the plain implementation and ours disagree"
            )
    plain, ours = (median(of_one) for of_one in zip(*times, strict=True))
    ratio = plain / ours
    print(f"{task.name}: {plain:.3f} s plain, {ours:.3f} s ours, {ratio:.1f} times as fast "
          f"(target at least {task.target:g}: {'reached' if ratio >= task.target else 'NOT REACHED'})")  # fmt: skip


def main() -> None:
    """Measure all tasks and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--inseq", metavar="PYTHON", help="compare with Inseq instead, in the environment of this Python"
    )
    parser.add_argument("--points", type=int, default=50, help="points of integrated gradients")
    parser.add_argument("--methods", nargs="+", help="compare only these with Inseq")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"transformers {version('transformers')}, {arguments.rounds} rounds")  # fmt: skip
    if arguments.inseq is not None:
        compare_with_inseq(arguments.inseq, arguments.rounds, arguments.points, arguments.methods)
        return
    model, tokenizer = interpret.load(arguments.model, device=arguments.device)
    for task in tasks(model, tokenizer):
        measure(task, arguments.rounds)


if __name__ == "__main__":
    main()
