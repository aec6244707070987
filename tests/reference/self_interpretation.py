"""Self-interpretation of toy prompts, and the slow reference: one state at a time, a full forward pass per token."""

from dataclasses import replace

import torch
import transformers

from interpret.prompts.prompts import Prompt
from interpret.selfie.readings import Settings
from interpret.selfie.rows import count_rows, interpretations
from interpret.selfie.sources import plan_sources
from interpret.selfie.templates import InterpretationPrompt
from reference.overlay import reference_forward, reference_greedy
from reference.tiny import longrope_model, resize_vocabulary, tiny_model

PROMPTS = [
    Prompt("taste_1", "I love pizza", "taste"),
    Prompt("fact_1", "The Eiffel Tower is in", "fact", raw=True, subject="Eiffel Tower"),
]
SETTINGS = Settings(new_tokens=5, prompt_output_tokens=4, batch_size=3, wrong_vector=False, text_control=False)
LONGROPE = ["longrope"] if hasattr(transformers, "Phi3Config") else []
SCORED = replace(SETTINGS, wrong_vector=True, text_control=True)


def speaking_model(kind: str = "llama"):
    """A tiny model with an embedding for every token of the toy tokenizers; it rarely generates the end token."""
    if kind == "longrope":
        return longrope_model(vocabulary=420)
    model = tiny_model(kind.removesuffix("_short_sighted"))
    if kind.endswith("_short_sighted"):
        model.config.sliding_window = 6
    torch.manual_seed(0)
    resize_vocabulary(model, 420)
    model.generation_config.eos_token_id = 1
    return model


def templates(tokenizer):
    return [
        InterpretationPrompt(tokenizer, ("Say", 0, 0, "!"), name="say"),
        InterpretationPrompt(tokenizer, ("hello", 0, 0, " repeat:"), name="repeat"),
    ]


def rows_of(model, tokenizer, prompts=PROMPTS, settings=SETTINGS, made=None, **selectors):
    sources = plan_sources(model, tokenizer, prompts, **selectors)
    made = made or templates(tokenizer)
    rows = list(interpretations(model, tokenizer, sources, made, settings))
    assert len(rows) == count_rows(sources, len(made))
    return rows


def reference_reading(model, template, state, settings, layer):
    """Return ids, P_with and P_without, computed only by full forward passes."""
    info = (
        None
        if state is None
        else {
            layer: (list(template.slots), state.expand(1, len(template.slots), -1)),
            "overlay_strength": settings.strength,
            "replacing_mode": settings.mode,
        }
    )
    ids = reference_greedy(model, template.ids, info, settings.new_tokens)
    start = len(template.ids)
    readings = []
    with torch.no_grad():
        for plan in (info, None):
            logits = reference_forward(model, ids, plan, start).logits
            readings.append([logits[i - 1].softmax(-1)[ids[i]].item() for i in range(start, len(ids))])
    new = before_end(ids[start:])
    return new, readings[0][: len(new)], readings[1][: len(new)]


def before_end(ids):
    return ids[: ids.index(1)] if 1 in ids else ids
