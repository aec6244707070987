"""Compare the time of self-interpretation with that of a plain implementation, on the demo model.

python benchmarks/bench_selfie.py

The plain implementation calls ``generate`` on batches of 8 with the states inserted. It then runs two full forward
passes over interpretation prompt and generated text, one with the insertion and one without, for the probabilities.
Ours is ``interpret.interpretations`` without the wrong-state control, which the plain implementation does not have.
Both run alternately in one process; texts must be identical and probabilities must agree to 1e-4. The states are
spread evenly over all layers and all tokens of one chat prompt.
"""

import argparse
import platform
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedModel

import interpret
from interpret.selfie.sources import Source
from interpret.selfie.templates import InterpretationPrompt

Row = tuple[list[int], list[float], list[float]]
PLAIN_BATCH, TARGET = 8, 4.0


@torch.no_grad()
def plain_way(model: PreTrainedModel, source: Source, template: InterpretationPrompt, new: int) -> list[Row]:
    """Return token ids, probabilities with and without insertion for each (layer, token) pair of the source."""
    ids = torch.tensor([source.tokenised.ids], device=model.device)
    hidden = model(ids, output_hidden_states=True).hidden_states
    end = model.generation_config.eos_token_id
    rows: list[Row] = []
    for start in range(0, len(source.pairs), PLAIN_BATCH):
        states = [hidden[layer][:, token : token + 1] for layer, token in source.pairs[start : start + PLAIN_BATCH]]
        info = [{1: (list(template.slots), state.expand(1, len(template.slots), -1))} for state in states]
        prompt = torch.tensor([template.ids] * len(states), device=model.device)
        decoding: dict[str, Any] = {"do_sample": False, "max_new_tokens": new, "pad_token_id": 0}
        mask = torch.ones_like(prompt)
        out = interpret.generate_interpret(model, prompt, attention_mask=mask, insert_info=info, **decoding)
        with_ = interpret.forward_interpret(model, out, insert_info=info).logits.float().softmax(-1)
        without = model(out).logits.float().softmax(-1)
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
    """Return the same values as ``plain_way``, computed by ``interpret.interpretations``."""
    settings = interpret.selfie.Settings(new_tokens=new, prompt_output_tokens=0, wrong_vector=False)
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


def main() -> None:
    """Run both implementations and print their times and ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, default=128, help="number of states, spread evenly over layers and tokens; 0 for all"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=30)
    asked = parser.parse_args()
    model, tokenizer = interpret.load("demo", device="cpu")
    prompt = interpret.Prompt("fact_1", "What is the capital city of Japan?", "fact")
    (source,) = interpret.plan_sources(model, tokenizer, [prompt], layers="all", tokens="all")
    every = len(source.pairs)
    if asked.rows:
        chosen = [source.pairs[round(i * (every - 1) / (asked.rows - 1))] for i in range(asked.rows)]
        source = replace(source, pairs=chosen)
    template = interpret.interpretation_prompt(tokenizer, "summarize")
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    worst = 0.0
    for turn in range(asked.runs):
        results: dict[str, list[Row]] = {}
        for name in ("plain", "ours") if turn % 2 else ("ours", "plain"):
            start = perf_counter()
            if name == "plain":
                results[name] = plain_way(model, source, template, asked.new_tokens)
            else:
                results[name] = our_way(model, tokenizer, source, template, asked.new_tokens)
            times[name].append(perf_counter() - start)
        worst = max(worst, agree(results["plain"], results["ours"]))
    ratios = sorted(plain / ours for plain, ours in zip(times["plain"], times["ours"], strict=True))
    print(f"{platform.processor() or 'CPU'}, {torch.get_num_threads()} threads, torch {torch.__version__}; demo,")
    print(f"{len(source.pairs)} of the {every} states of a prompt of {len(source.tokenised.ids)} tokens,", end=" ")
    print(f"interpretation prompt of {len(template.ids)} tokens, {asked.new_tokens} new tokens, {asked.runs} runs each")
    print(f"plain {median(times['plain']):.1f} s   ours {median(times['ours']):.1f} s   ", end="")
    print(f"{median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f}, target {TARGET:g})   ", end="")
    print(f"largest difference between probabilities {worst:.1e}")


if __name__ == "__main__":
    main()
