"""Memory and time that each command needs, for models of four sizes: computed, and measured for a model that is given.

python -m benchmarks.needs                        # the table of benchmarks/README.md
python -m benchmarks.needs --measure demo         # memory and time of each command, in a process of its own

Memory is the sum of the libraries, the weights, and the largest set of values that is held at once: logits, keys and
values, and for gradients the values inside the layers. Time is the sum of a constant, of arithmetic at the rate of
large matrix products, of reading all weights once per pass at the rate of memory, and of a constant for each neuron
that is scored. Opening the model is not included. Attention scores are left out: they are small for prompts of some
ten tokens.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

FLOAT32 = 4
"""Bytes per value."""
LIBRARIES = 0.6e9
"""Bytes of Python with torch and transformers."""
STARTING = 1.5
"""Seconds that a command takes for what it imports once the model is opened, and for its files."""
PER_NEURON = 0.12e-3
"""Seconds for the p-values of a neuron, and for writing and reading its row of the table."""
EXAMPLES = Path(__file__).parents[1] / "examples"


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama or Qwen2 model, as in its ``config.json``."""

    name: str
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    @property
    def kv_width(self) -> int:
        """Width of the keys of a token in a layer, and of its values."""
        return self.width * self.kv_heads // self.heads

    @property
    def layer_weights(self) -> int:
        """Weights of the matrices of one layer: queries and output, keys and values, and three of the MLP."""
        return 2 * self.width**2 + 2 * self.width * self.kv_width + 3 * self.width * self.inner

    @property
    def unembedding(self) -> int:
        """Weights of the unembedding."""
        return self.vocabulary * self.width

    @property
    def weights(self) -> int:
        """Weights of all matrices; norms and biases are less than 0.1% of them."""
        return self.layers * self.layer_weights + self.unembedding * (1 if self.tied else 2)


SHAPES = [
    Shape("SmolLM2-135M", 30, 576, 1536, 9, 3, 49152, True),
    Shape("Qwen2.5-1.5B", 28, 1536, 8960, 12, 2, 151936, True),
    Shape("Qwen2.5-7B", 28, 3584, 18944, 28, 4, 152064, False),
    Shape("Llama-3.1-70B", 80, 8192, 28672, 64, 8, 128256, False),
]


@dataclass(frozen=True)
class Machine:
    """Rates of a machine, such as that of the benchmarks: two cores of an AMD EPYC, in float32."""

    flops: float = 175e9
    """Operations per second of large matrix products: a stock forward pass of bench_surgery.py."""
    bandwidth: float = 12e9
    """Bytes per second at which weights are read."""


@dataclass(frozen=True)
class Work:
    """What one unit of a command (a prompt, a fact, or 32 pairs of texts) computes and holds."""

    layer_tokens: float
    """Number of (token, layer) pairs that are computed; a backward pass counts like a forward pass."""
    logits: float
    """Number of tokens whose logits are computed."""
    passes: float
    """Number of passes over all weights."""
    held_logits: float
    """Largest number of rows of logits that are held at once, each with its probabilities."""
    held_tokens: float = 0.0
    """Largest number of tokens whose keys and values are held."""
    graph_tokens: float = 0.0
    """Number of tokens whose values inside the layers are held for a backward pass."""
    neurons: float = 0.0
    """Number of neurons that are scored."""


def works(shape: Shape, tokens: int = 10, noise: int = 10, new: int = 30, states: int = 54) -> dict[str, Work]:
    """Return the work of one unit of each command, with its default settings where none is named.

    Args:
        shape: the model.
        tokens: tokens of a prompt; the subject begins at the second.
        noise: noise samples of a trace.
        new: tokens of an interpretation.
        states: interpreted states of a prompt.
    """
    whole = tokens * shape.layers
    return {
        # Every state is decoded, and its text scored without the state, and by the controls.
        "selfie": Work(
            4 * states * new * shape.layers, 3 * states * new, 4 * new, states, held_tokens=2 * states * new
        ),
        # A cell at token t and layer l computes the tokens from t on in the layers after l, for every noise sample.
        "trace (hidden)": traced(shape, tokens, 1, noise),
        "locate": Work(3 * whole, 3, 3, 3, graph_tokens=tokens),  # the filter, then forward and backward
        "attribute (1 token)": Work(3 * whole, 3, 3, 3, graph_tokens=tokens),  # written, then forward and backward
        "probe lens": Work(whole, shape.layers + 1, 1, 2 * (shape.layers + 1)),
        "probe neurons (32 pairs)": Work(64 * whole, 0, 8, 2, neurons=shape.layers * shape.inner),
    }


def traced(shape: Shape, tokens: int, first: int, noise: int) -> Work:
    """Return the work of a trace of the hidden states of all tokens from the subject on, at all layers."""
    later = sum(tokens - token for token in range(first, tokens))
    cells = later * noise * shape.layers * (shape.layers - 1) / 2
    read = (tokens - first) * shape.layers * noise
    return Work(cells, read, tokens, shape.layers * noise, held_tokens=shape.layers * noise * (tokens - first))


def seconds(shape: Shape, work: Work, machine: Machine, bytes_per_weight: float = FLOAT32) -> float:
    """Return the time of a command for one unit."""
    flops = 2 * (work.layer_tokens * shape.layer_weights + work.logits * shape.unembedding)
    read = work.passes * shape.weights * bytes_per_weight
    return STARTING + flops / machine.flops + read / machine.bandwidth + work.neurons * PER_NEURON


def memory(shape: Shape, work: Work, bytes_per_weight: float = FLOAT32) -> float:
    """Return the peak memory of the process in bytes, with values in float32."""
    of_layers = shape.layers * (8 * shape.width + 4 * shape.inner)
    held = (
        2 * work.held_logits * shape.vocabulary
        + work.held_tokens * 2 * shape.layers * shape.kv_width
        + work.graph_tokens * of_layers
    )
    return LIBRARIES + shape.weights * bytes_per_weight + held * FLOAT32


def shown_time(value: float) -> str:
    """Return a time as text.

    >>> [shown_time(value) for value in (0.04, 5.3, 300, 7200)]
    ['0.04 s', '5 s', '5 min', '2 h']
    """
    if value < 1:
        return f"{value:.1g} s"
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.0f} h"


def table(machine: Machine) -> str:
    """Return the table of the documentation: memory in float32, and time per unit."""
    lines = ["| command | " + " | ".join(shape.name for shape in SHAPES) + " |", "|---" * (1 + len(SHAPES)) + "|"]
    for command in works(SHAPES[0]):
        cells = []
        for shape in SHAPES:
            work = works(shape)[command]
            gigabytes = memory(shape, work) / 1e9
            cells.append(f"{gigabytes:.{1 if gigabytes < 10 else 0}f} GB, {shown_time(seconds(shape, work, machine))}")
        lines.append(f"| {command} | {' | '.join(cells)} |")
    return "\n".join(lines)


def commands(folder: Path) -> dict[str, list[object]]:
    """Return a command line for one unit of each command."""
    one = folder / "prompt.json"
    one.write_text('{"examples": [{"category": "fact", "prompt": "The Eiffel Tower is in the city of", "raw": true}]}')
    facts = ["--facts", EXAMPLES / "facts.json", "--limit", 1, "--no-filter"]
    return {
        "selfie": ["selfie", "--examples", one, "--layers", "0:30:5"],
        "trace (hidden)": ["trace", *facts, "--mediator", "hidden"],
        "locate": ["locate", *facts],
        "attribute (1 token)": ["attribute", "--prompt", "The Eiffel Tower is in the city of", "--new-tokens", 1],
        "probe lens": ["probe", "lens", "--examples", one],
        "probe neurons (32 pairs)": ["probe", "neurons", "--pairs", EXAMPLES / "pairs.json"],
    }


def used(words: Sequence[object]) -> tuple[float, float]:
    """Run Python with some arguments; return the peak memory of its process in bytes, and the time in seconds.

    Mapped pages of weights are part of the memory.
    """
    start = perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    told = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(told)
    return usage.ru_maxrss * 1024.0, perf_counter() - start


def measure(model: str, shape: Shape, only: str | None) -> None:
    """Print a line for each command: its memory and time for a model, beside the computed ones.

    Args:
        model: 'demo' or a model folder.
        shape: the model's sizes.
        only: measure only this command.
    """
    _, opening = used(["-c", f"import interpret; interpret.load({model!r}, device='cpu', dtype='float32')"])
    print(f"{shape.name} is opened in {opening:.1f} s", flush=True)
    for command, work in works(shape).items():
        if only not in (None, command):
            continue
        with TemporaryDirectory() as folder:
            words = ["-m", "interpret", *commands(Path(folder))[command], "--output", Path(folder, "run")]
            size, elapsed = used([*words, "--model", model, "--device", "cpu", "--dtype", "float32"])
        computed = memory(shape, work) / 1e9, seconds(shape, work, Machine())
        found = size / 1e9, elapsed - opening
        of_memory = f"{found[0]:.2f} | {computed[0]:.2f}"
        of_time = f"{found[1]:.1f} | {computed[1]:.1f}"
        print(f"| {shape.name} | {command} | {of_memory} | {of_time} |", flush=True)


def main() -> None:
    """Print the table, or what is measured of a model beside what is computed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", help="'demo' or a model folder, opened in float32 on the CPU")
    parser.add_argument("--shape", default=SHAPES[0].name, choices=[shape.name for shape in SHAPES])
    parser.add_argument("--only", help="measure only this command")
    given = parser.parse_args()
    if given.measure is None:
        print(table(Machine()))
        return
    measure(given.measure, next(shape for shape in SHAPES if shape.name == given.shape), given.only)


if __name__ == "__main__":
    main()
