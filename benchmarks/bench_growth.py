"""Fit how the time of trace, selfie and attribution grows with their inputs, and compare peak memory of few and many.

python -m benchmarks.bench_growth

Models are random Llamas with the vocabulary of the demo model. One size is varied at a time, over three values that
double; the exponent is the slope of log(seconds) against log(size): 1 is linear, 2 quadratic. Peak memory is that of a
process that works on 4 or on 16 prompts; it must not grow with their number.
"""

import argparse
import os
import platform
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import interpret
from interpret.sweep import Metric, grid, run_sweep

HEAD_WIDTH = 64
FLAT = 1.25
"""Peak memory with 16 prompts may be this many times that with 4: oneDNN keeps a kernel for each shape of a product, up
to 1,024 of them, and the allocator keeps memory that was freed."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model and of a task; each analysis uses some of them."""

    layers: int = 8
    width: int = 256
    tokens: int = 16
    prompts: int = 1
    samples: int = 10
    states: int = 32


def random_model(sizes: Sizes, vocabulary: int) -> PreTrainedModel:
    """Return a Llama with random weights."""
    torch.manual_seed(0)
    heads = sizes.width // HEAD_WIDTH
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=sizes.width,
        intermediate_size=8 * sizes.width // 3,
        num_hidden_layers=sizes.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config).eval()


def token_ids(model: PreTrainedModel, sizes: Sizes, prompt: int) -> list[int]:
    """Return random tokens, other ones for each prompt."""
    generator = torch.Generator().manual_seed(prompt)
    found: list[int] = torch.randint(100, model.config.vocab_size, (sizes.tokens,), generator=generator).tolist()
    return found


def trace(model: PreTrainedModel, tokenizer: Any, sizes: Sizes) -> None:
    """Restore the hidden state at each token and layer of each fact, with noise on the first token."""
    cells = grid("resid_post", n_tokens=sizes.tokens, n_layers=sizes.layers)
    for prompt in range(sizes.prompts):
        ids = torch.tensor([token_ids(model, sizes, prompt)])
        clean = model.get_input_embeddings()(ids).detach()
        noisy = clean.repeat(sizes.samples, 1, 1)
        noisy[:, 0] += 0.1 * torch.randn(noisy[:, 0].shape, generator=torch.Generator().manual_seed(0))
        run_sweep(model, noisy, clean, cells, {"p": Metric("probability", (7,))})


def selfie(model: PreTrainedModel, tokenizer: Any, sizes: Sizes) -> None:
    """Interpret states of each prompt in texts of ``tokens`` tokens."""
    template = interpret.interpretation_prompt(tokenizer, "summarize")
    texts = [f"Prompt {number}: the city of Paris is in France, and so on." for number in range(sizes.prompts)]
    prompts = [interpret.Prompt(f"p_{number}", text, "x", raw=True) for number, text in enumerate(texts)]
    sources = interpret.plan_sources(model, tokenizer, prompts, layers="all", tokens="all")
    sources = [replace(source, pairs=source.pairs[: sizes.states]) for source in sources]
    settings = interpret.selfie.Settings(new_tokens=sizes.tokens, prompt_output_tokens=0)
    deque(interpret.interpretations(model, tokenizer, sources, [template], settings), maxlen=0)


def attribution(model: PreTrainedModel, tokenizer: Any, sizes: Sizes) -> None:
    """Attribute the last token of each prompt to the tokens before it, by gradient times embedding."""
    for prompt in range(sizes.prompts):
        text = tokenizer.decode(token_ids(model, sizes, prompt))
        interpret.attribute(model, tokenizer, text, [[11]], method="input_x_gradient")


ANALYSES: dict[str, Callable[[PreTrainedModel, Any, Sizes], None]] = {
    "trace": trace,
    "selfie": selfie,
    "attribution": attribution,
}
VARIED: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "trace": {
        "layers": (6, 12, 24),
        "tokens": (8, 16, 32),
        "prompts": (1, 2, 4),
        "samples": (5, 10, 20),
        "width": (128, 256, 512),
    },
    "selfie": {"layers": (6, 12, 24), "tokens": (10, 20, 40), "states": (32, 64, 128), "width": (128, 256, 512)},
    "attribution": {
        "layers": (6, 12, 24),
        "tokens": (64, 128, 256),
        "prompts": (1, 2, 4),
        "width": (128, 256, 512),
    },
}
"""Analysis -> size -> the values it is timed with."""


def seconds(name: str, sizes: Sizes, tokenizer: Any, runs: int) -> float:
    """Return the shortest time of an analysis, after one run that is not timed."""
    model = random_model(sizes, len(tokenizer))
    times = []
    for _ in range(1 + runs):
        start = perf_counter()
        ANALYSES[name](model, tokenizer, sizes)
        times.append(perf_counter() - start)
    return min(times[1:])


def peak_memory(name: str, prompts: int) -> float:
    """Return the peak memory of a process that works on some prompts, in MiB."""
    process = subprocess.Popen([sys.executable, __file__, "--only", name, "--prompts", str(prompts)])
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{name} with {prompts} prompts failed"
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Print the exponents of each analysis, and the peak memory of 4 and of 16 prompts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=list(ANALYSES), help="run this analysis once, without timing it")
    parser.add_argument("--prompts", type=int, default=4, help="number of prompts, with --only")
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(interpret.models.demo_model_folder())
    if asked.only:
        sizes = Sizes(prompts=asked.prompts)
        ANALYSES[asked.only](random_model(sizes, len(tokenizer)), tokenizer, sizes)
        return
    print(f"{platform.processor() or 'CPU'}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    # First, because the peak of a process also counts what its parent held when it was started.
    for name in ANALYSES:
        few, many = (peak_memory(name, prompts) for prompts in (4, 16))
        print(f"{name:12} peak memory {few:.0f} MiB with 4 prompts, {many:.0f} MiB with 16: {many / few:.2f} times")
        assert many < FLAT * few, f"the memory of {name} grows with the number of prompts"
    for name, varied in VARIED.items():
        for size, values in varied.items():
            times = [seconds(name, replace(Sizes(), **{size: value}), tokenizer, asked.runs) for value in values]
            exponent = np.polyfit(np.log(values), np.log(times), 1)[0]
            measured = ", ".join(f"{value}: {time:.2f} s" for value, time in zip(values, times, strict=True))
            print(f"{name:12} {size:8} exponent {exponent:5.2f}   ({measured})", flush=True)


if __name__ == "__main__":
    main()
