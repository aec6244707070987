"""Compare the time of gradient attributions with Inseq's, for ``bench_attribution.py --inseq``.

Both attribute the same tokens of the same text with the same model, settings and number of threads, alternately, Inseq
in a process of its own; the time is that of one call. The scores must agree. Inseq's DeepLIFT (Captum's) does not know
SiLU, the activation function of the demo model, and takes its derivative: there the scores must be the gradient times
the difference from the baseline, and only the times are compared. Inseq's saliency is the absolute value of ours. Its
integrated gradients of layers are zeros: it runs the text also where Captum asks for the baseline's activations.
Near the baseline of integrated gradients, float32 leaves more of a difference between any two implementations than
elsewhere. Scores that differ by more than ``AGREEMENT`` are therefore compared with those in float64, to which ours
have to be as close as Inseq's.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from subprocess import PIPE, Popen
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import interpret
from interpret.attribution.result.scores import Attributed, ScoreArray
from interpret.models.demo import demo_model_folder

PROMPT = "The Eiffel Tower is in the city of Paris,"
TEXT = f"{PROMPT} and it was built by the engineer Gustave Eiffel for the World's Fair"
TARGET = 2.0
"""Required ratio of Inseq's time to ours."""
AGREEMENT = 1e-4
"""Largest difference allowed, in units of the attributed value, a probability."""
LAYER = 15
N_SAMPLES = 20


@dataclass(frozen=True)
class Task:
    """One method with equal settings in both."""

    method: str
    ours: dict[str, Any] = field(default_factory=dict)
    inseqs: dict[str, Any] = field(default_factory=dict)
    at_layer: bool = False


def tasks(n_steps: int) -> list[Task]:
    """Return the tasks; the baseline is the unknown token, as always in Inseq."""
    unknown, steps, layer = {"baseline": "unk"}, {"n_steps": n_steps}, {"layers": [f"mlp_out.{LAYER}"]}
    return [
        Task("saliency"),
        Task("input_x_gradient"),
        Task("deeplift", unknown),
        Task("integrated_gradients", unknown | steps, steps),
        Task("gradient_shap", unknown | {"n_samples": N_SAMPLES}, {"n_samples": N_SAMPLES, "stdevs": 0.0}),
        Task("layer_gradient_x_activation", layer, at_layer=True),
        Task("layer_integrated_gradients", unknown | steps | layer, steps, at_layer=True),
    ]


@dataclass(frozen=True)
class Inseq:
    """A process that attributes with Inseq."""

    process: Popen[str]
    file: Path
    versions: str

    def attribute(self, task: Task) -> tuple[float, ScoreArray]:
        """Return the time in seconds and the scores, [T, G, D]."""
        places = torch.rand(N_SAMPLES, generator=torch.Generator().manual_seed(0))  # as ours draws them
        request = {
            "method": task.method,
            "prompt": PROMPT,
            "text": TEXT,
            "options": task.inseqs,
            "module": f"model.layers.{LAYER}.mlp" if task.at_layer else None,
            "places": places.tolist(),
            "file": str(self.file),
        }
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        seconds: float = json.loads(_line(self.process))
        return seconds, np.load(self.file)


def _line(process: Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit("the process of Inseq has ended; its messages are above")
    return line


@contextmanager
def inseq_process(python: str, folder: Path) -> Iterator[Inseq]:
    """Run Inseq in its environment inside the ``with`` block."""
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    environment.pop("PYTHONPATH", None)
    command = [python, str(Path(__file__).with_name("inseq_worker.py")), str(folder)]
    with TemporaryDirectory() as made, Popen(command, stdin=PIPE, stdout=PIPE, text=True, env=environment) as process:
        inseqs, torchs, n_threads = json.loads(_line(process))
        yield Inseq(process, Path(made) / "scores.npy", f"Inseq {inseqs}, its torch {torchs}, {n_threads} threads")
        process.stdin.close()  # type: ignore[union-attr]


def ours(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, method: str, **options: Any
) -> tuple[float, Attributed]:
    """Return the time in seconds and the attribution."""
    start = perf_counter()
    (found,) = interpret.attribute(model, tokenizer, PROMPT, TEXT, method=method, **options).sequences
    return perf_counter() - start, found


def expected(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, found: Attributed) -> ScoreArray:
    """Return the scores that Inseq's are compared with."""
    if task.method == "deeplift":
        _, slopes = ours(model, tokenizer, "saliency")
        embed = model.get_input_embeddings()
        ids = torch.tensor(found.token_ids)
        with torch.no_grad():
            difference = embed(ids) - embed(torch.full_like(ids, tokenizer.unk_token_id))
        assert slopes.scores is not None
        return slopes.scores * difference[:, None].numpy()
    if task.method == "layer_integrated_gradients":
        return np.zeros_like(found.layer_scores[f"mlp_out.{LAYER}"])
    scores = found.layer_scores[f"mlp_out.{LAYER}"] if task.at_layer else found.scores
    assert scores is not None
    return np.abs(scores) if task.method == "saliency" else scores


def check(found: ScoreArray, theirs: ScoreArray, precise: Callable[[], ScoreArray]) -> float:
    """Return the largest difference, relative to the largest score.

    Args:
        found: our scores.
        theirs: Inseq's; NaN where it has none, for tokens that follow.
        precise: computes the scores in float64; called only if the others differ by more than ``AGREEMENT``.
    """
    known = ~np.isnan(theirs)

    def largest(of: ScoreArray) -> float:
        return float(np.abs(of).max(where=known, initial=0))

    apart, size = largest(found - theirs), largest(found)
    if apart > AGREEMENT:
        exact = precise()
        own, other = largest(found - exact), largest(theirs - exact)
        print(f"  the scores differ by {apart:.1e}; from those in float64, ours by {own:.1e}, Inseq's by {other:.1e}")
        assert own <= max(other, AGREEMENT), f"ours are further from those in float64; the largest score is {size:.1e}"
    return apart / size if size else 0.0


def measure(inseq: Inseq, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, rounds: int) -> None:
    """Run both alternately and print the median times."""

    def scores_by(model: PreTrainedModel) -> ScoreArray:
        _, found = ours(model, tokenizer, task.method, **task.ours)
        return expected(model, tokenizer, task, found)

    times, apart = [], 0.0
    for _ in range(rounds):
        theirs, scores = inseq.attribute(task)
        own, found = ours(model, tokenizer, task.method, **task.ours)
        times.append((theirs, own))
        compared = expected(model, tokenizer, task, found)
        apart = max(apart, check(compared, scores, lambda: scores_by(deepcopy(model).double())))
    theirs, own = (median(of_one) for of_one in zip(*times, strict=True))
    ratio = theirs / own
    print(f"{task.method}: {theirs:.2f} s Inseq, {own:.2f} s ours, {ratio:.1f} times as fast "
          f"(target at least {TARGET:g}: {'reached' if ratio >= TARGET else 'NOT REACHED'}); "
          f"largest difference {apart:.0e}", flush=True)  # fmt: skip


def compare_with_inseq(python: str, rounds: int, n_points: int, methods: Sequence[str] | None) -> None:
    """Measure the methods and print the results.

    Args:
        python: the Python of Inseq's environment.
        rounds: number of measurements of each method.
        n_points: points of integrated gradients.
        methods: only these; None for all.
    """
    model, tokenizer = interpret.load("demo")
    with inseq_process(python, demo_model_folder()) as inseq:
        print(inseq.versions)
        ours(model, tokenizer, "saliency")  # what is checked once per model
        inseq.attribute(Task("saliency"))
        for task in tasks(n_points):
            if methods is None or task.method in methods:
                measure(inseq, model, tokenizer, task, rounds)
