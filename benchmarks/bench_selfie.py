"""Compare the time of self-interpretation with that of two other implementations, on the demo model.

python -m benchmarks.bench_selfie

The plain implementation calls ``generate`` on batches of 8 with the states inserted. It then runs two full forward
passes over interpretation prompt and generated text, one with the insertion and one without, for the probabilities.
SelfIE's own loop (Chen, Vondrick & Mao 2024) does the same, and asks both passes for all hidden states and attention
weights. Ours is ``interpret.interpretations`` without the controls with a wrong state and with the prompt's own text,
which the others do not have. All run alternately in one process; texts must be identical and probabilities must agree
to 1e-4. The states are spread evenly over all layers and all tokens of one chat prompt. At the end, the script prints
where our time goes, and what the control with the prompt's own text adds to it.
"""

import argparse
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

import interpret
from interpret.selfie.decoding import prime, score_after, score_plain, start_inserted, write
from interpret.selfie.readings import insertion, read_nothing
from interpret.selfie.sources import Source, states_of
from interpret.selfie.templates import InterpretationPrompt

Row = tuple[list[int], list[float], list[float]]
T = TypeVar("T")
BATCH, TARGET = 8, 5.0


@torch.no_grad()
def in_eights(
    model: PreTrainedModel, source: Source, template: InterpretationPrompt, new: int, keep_all: bool
) -> list[Row]:
    """Return token ids, probabilities with and without insertion for each (layer, token) pair of the source.

    Args:
        model: the model.
        source: the prompt and the pairs.
        template: the interpretation prompt.
        new: number of new tokens.
        keep_all: whether both passes return all hidden states and attention weights, as in SelfIE's own loop.
    """
    ids = torch.tensor([source.tokenised.ids], device=model.device)
    hidden = model(ids, output_hidden_states=True).hidden_states
    end = model.generation_config.eos_token_id
    kept = {"output_hidden_states": keep_all, "output_attentions": keep_all}
    rows: list[Row] = []
    for start in range(0, len(source.pairs), BATCH):
        states = [hidden[layer][:, token : token + 1] for layer, token in source.pairs[start : start + BATCH]]
        info = [{1: (list(template.slots), state.expand(1, len(template.slots), -1))} for state in states]
        prompt = torch.tensor([template.ids] * len(states), device=model.device)
        decoding: dict[str, Any] = {"do_sample": False, "max_new_tokens": new, "pad_token_id": 0}
        mask = torch.ones_like(prompt)
        out = interpret.generate_interpret(model, prompt, attention_mask=mask, insert_info=info, **decoding)
        with_ = interpret.forward_interpret(model, out, insert_info=info, **kept).logits.float().softmax(-1)
        without = model(out, **kept).logits.float().softmax(-1)
        length = len(template.ids)
        for row, text in enumerate(out[:, length:].tolist()):
            text = text[: text.index(end)] if end in text else text
            at = range(length - 1, length - 1 + len(text))
            chances = [[float(run[row, i, one]) for i, one in zip(at, text, strict=True)] for run in (with_, without)]
            rows.append((text, chances[0], chances[1]))
    return rows


def our_way(
    model: PreTrainedModel, tokenizer: Any, source: Source, template: InterpretationPrompt, new: int
) -> list[Row]:
    """Return the same values as ``in_eights``, computed by ``interpret.interpretations``."""
    settings = interpret.selfie.Settings(new_tokens=new, prompt_output_tokens=0, wrong_vector=False, text_control=False)
    rows = list(interpret.interpretations(model, tokenizer, [source], [template], settings))[1:]
    return [(row.interpretation, row.interpretation_prob, row.probability_without_insertion) for row in rows]


def agree(plain: Sequence[Row], ours: Sequence[Row]) -> float:
    """Assert that both results agree, and return the largest difference between probabilities."""
    worst = 0.0
    assert len(plain) == len(ours)
    for one, other in zip(plain, ours, strict=True):
        assert one[0] == other[0], "the texts differ"
        for part in (1, 2):
            worst = max([worst, *(abs(p - q) for p, q in zip(one[part], other[part], strict=True))])
    assert worst < 1e-4, f"probabilities differ by {worst}"
    return worst


def stages(
    model: PreTrainedModel, tokenizer: Any, source: Source, template: InterpretationPrompt, new: int
) -> dict[str, float]:
    """Return the seconds of each part of ``our_way``, and of the control with the text, for one batch of all states."""
    settings, seconds = interpret.selfie.Settings(new_tokens=new, prompt_output_tokens=0), dict[str, float]()

    def timed(name: str, work: Callable[[], T]) -> T:
        start = perf_counter()
        result = work()
        seconds[name] = perf_counter() - start
        return result

    primed = timed("interpretation prompt", lambda: prime(model, template, new))
    timed("control", lambda: read_nothing(primed, settings))
    states = timed("states of the prompt", lambda: states_of(model, source))
    entries = [insertion(template, layer, states[layer][token], settings) for layer, token in source.pairs]
    start = timed("pass with inserted states", lambda: start_inserted(primed, entries))
    written = timed("generation", lambda: write(start, range(len(entries)), new))
    timed("probabilities without insertion", lambda: score_plain(primed, [one.ids for one in written]))
    read = [source.text_until(token) for _, token in source.pairs]
    texts = [one.ids for one, words in zip(written, read, strict=True) if words]
    timed(
        f"control with the prompt's text ({len(texts)} states)",
        lambda: score_after(primed, [template.with_text(tokenizer, words) for words in read if words], texts),
    )
    return seconds


def report(model: PreTrainedModel, tokenizer: Any, source: Source, asked: argparse.Namespace) -> None:
    """Time all implementations for the states of a source, and print the times and their ratios."""
    template = interpret.interpretation_prompt(tokenizer, "summarize")
    ways: dict[str, Callable[[], list[Row]]] = {
        "ours": lambda: our_way(model, tokenizer, source, template, asked.new_tokens),
        "plain": lambda: in_eights(model, source, template, asked.new_tokens, keep_all=False),
        "SelfIE's loop": lambda: in_eights(model, source, template, asked.new_tokens, keep_all=True),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    worst = 0.0
    for turn in range(asked.runs):
        results: dict[str, list[Row]] = {}
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            start = perf_counter()
            results[name] = ways[name]()
            times[name].append(perf_counter() - start)
        worst = max([worst, *(agree(results[name], results["ours"]) for name in ways)])
    print(f"{len(source.pairs)} states of a prompt of {len(source.tokenised.ids)} tokens,", end=" ")
    print(f"interpretation prompt of {len(template.ids)} tokens, {asked.new_tokens} new tokens, {asked.runs} runs each")
    for name, found in times.items():
        ratio = median(found) / median(times["ours"])
        print(f"  {name:14} {median(found):6.1f} s ({min(found):.1f} to {max(found):.1f})", end="")
        print("" if name == "ours" else f"   {ratio:.2f} times ours, target {TARGET:g}")
    print(f"  largest difference between probabilities {worst:.1e}")
    parts = stages(model, tokenizer, source, template, asked.new_tokens)
    print("  " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items()), flush=True)


def main() -> None:
    """Print the times for each number of states."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[48, 128], help="numbers of states")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=30)
    asked = parser.parse_args()
    start = perf_counter()
    model, tokenizer = interpret.load("demo", device="cpu")
    opening = perf_counter() - start
    print(f"{platform.processor() or 'CPU'}, {torch.get_num_threads()} threads, torch {torch.__version__};", end=" ")
    print(f"demo model, opened in {opening:.1f} s", flush=True)
    prompt = interpret.Prompt("fact_1", "What is the capital city of Japan?", "fact")
    (source,) = interpret.plan_sources(model, tokenizer, [prompt], layers="all", tokens="all")
    last = len(source.pairs) - 1
    for rows in asked.rows:
        chosen = [source.pairs[round(i * last / (rows - 1))] for i in range(rows)]
        report(model, tokenizer, replace(source, pairs=chosen), asked)


if __name__ == "__main__":
    main()
