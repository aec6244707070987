"""Analyses that compare a model with itself before they run, and rows of families that do not fit their models."""

import copy

import torch

from interpret import attribute, interpretation_prompt, interpretations, plan_sources, record, trace
from interpret.activations import activation_cache
from interpret.attribution import compare_methods
from interpret.control import supervised_control
from interpret.probing import logit_attribution, logit_lens
from interpret.prompts.prompts import Prompt
from interpret.selfie import Settings
from interpret.tracing import TraceSettings, knockout, screen, trace_units
from reference.plain_attribution import PROMPT, TARGET, TOKENIZER, ids_of
from reference.tiny import wide_model
from reference.unlisted import DividedLogits

IDS = ids_of(PROMPT)
NUMBER = r"-?[\d.e+]+"
"""A figure in a message, as a regular expression."""


def attributed(model):
    return attribute(model, TOKENIZER, PROMPT, TARGET, step_scores=["probability", "logit"]).sequences[0]


def lens(model):
    return logit_lens(model, activation_cache(model, None, [IDS], ["resid_pre.0", "resid_post.*"]), [5], top=0)


def shares(model):
    return logit_attribution(model, activation_cache(model, None, [IDS]), [5])


def interpreted(model):
    sources = plan_sources(model, TOKENIZER, [Prompt("one", PROMPT, raw=True)], layers="1", tokens="2")
    template = interpretation_prompt(TOKENIZER, "hello{slots} city")
    return list(interpretations(model, TOKENIZER, sources, [template], Settings(new_tokens=3)))


def traced(model, mediator="hidden"):
    return trace(model, TOKENIZER, PROMPT, "Eiffel Tower", " the", samples=2, mediator=mediator)


def screened(model):
    return screen(model, TOKENIZER, PROMPT, "Eiffel Tower", " the", settings=TraceSettings(samples=2))


def knocked_out(model):
    return knockout(model, TOKENIZER, PROMPT, "Eiffel Tower", " the", window=2)


def units(model, site):
    settings = TraceSettings(samples=2)
    return trace_units(model, TOKENIZER, PROMPT, "Eiffel Tower", " the", site=site, tokens="last", settings=settings)


def compared(model):
    return compare_methods(model, TOKENIZER, [PROMPT], [TARGET], methods=["saliency", "occlusion"])


def recorded(model):
    with record(model, ["attn_out.0"]):
        pass


def controlled(model):
    with supervised_control(model, IDS, layer=1, positions=[-1], target=torch.ones(32), steps=1):
        pass


LOGITS = [attributed, lens, shares, interpreted, traced, screened]
"""Analyses that turn states into logits."""
PARTS = [shares, traced, screened, recorded, controlled]
"""Analyses that use what attention and MLP add to the residual stream."""


def divided() -> DividedLogits:
    config = copy.deepcopy(wide_model("llama").config)
    config.logits_scaling = 8.0
    model = DividedLogits(config).eval()
    model.load_state_dict(wide_model("llama").state_dict())
    return model
