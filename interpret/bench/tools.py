"""The built-in tools of an experiment: public functions of this package, with model and tokenizer already bound.

A tool takes the remaining arguments of its public function. Tools that group several functions (``residual``,
``heads``, ``composition``, ``control``, ``structure``) have them as attributes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations._record import record
from interpret.activations.cache import activation_cache
from interpret.attribution._attribute import attribute
from interpret.bench.profiling import profile
from interpret.control._preservation import preservation
from interpret.control.training import reinforcement_control, supervised_control
from interpret.probing._logit_attribution import logit_attribution
from interpret.probing._logit_lens import logit_lens
from interpret.probing.composition import composition_scores, head_weights, relational_subspaces
from interpret.probing.head_edits import ablated_heads, merged_heads, patched_heads
from interpret.probing.head_flow import information_flow, reading_heads, writing_heads
from interpret.probing.heads import attention_patterns, induction_scores, top_attended
from interpret.probing.knowledge_prober import KnowledgeProber
from interpret.probing.layer_edits import deleted_layers, permuted_layers, replaced_layers
from interpret.probing.residual_stream import residual_decomposition, residual_movement
from interpret.probing.top_inputs import top_activating
from interpret.selfie.templates import InterpretationPrompt
from interpret.selfie.upstream import interpret
from interpret.tracing.calls import trace, trace_mediators

Make = Callable[[PreTrainedModel, PreTrainedTokenizerBase], Any]


@dataclass(frozen=True)
class Tool:
    """A tool that an experiment can provide."""

    about: str
    """Its call and what it does, in one line."""
    make: Make
    """Makes the tool for a model and its tokenizer."""


def _with_both(function: Callable[..., Any]) -> Make:
    """Bind the model and the tokenizer as the first two arguments of a function."""
    return lambda model, tokenizer: partial(function, model, tokenizer)


def _with_tokenizer(function: Callable[..., Any]) -> Make:
    """Bind the model as the first argument of a function, and the tokenizer by keyword."""
    return lambda model, tokenizer: partial(function, model, tokenizer=tokenizer)


def _with_model(*functions: Callable[..., Any]) -> Make:
    """Bind the model as the first argument of several functions; they become attributes of one tool."""
    return lambda model, tokenizer: SimpleNamespace(**{each.__name__: partial(each, model) for each in functions})


def _heads(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> SimpleNamespace:
    heads = _with_model(
        attention_patterns,
        ablated_heads,
        patched_heads,
        merged_heads,
        induction_scores,
        writing_heads,
        reading_heads,
    )(model, tokenizer)
    heads.top_attended = partial(top_attended, model, tokenizer)
    heads.information_flow = partial(information_flow, model, tokenizer)
    return heads


def _interpret(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Callable[..., dict[str, list[Any]]]:
    def interpret_states(
        original_prompt: str, interpretation_prompt: InterpretationPrompt, tokens: Any, **options: Any
    ) -> dict[str, list[Any]]:
        return interpret(original_prompt, tokenizer, interpretation_prompt, model, tokens, **options)

    return interpret_states


TOOLS: Mapping[str, Tool] = MappingProxyType(
    {
        "attribute": Tool(
            "attribute(prompts, targets): how much each token contributes to the output", _with_both(attribute)
        ),
        "cache": Tool("cache(prompts, names): activations by name", _with_both(activation_cache)),
        "composition": Tool(
            "composition.composition_scores(kind), .head_weights(layer), .relational_subspaces(layer): weights "
            "of heads and how they compose",
            _with_model(composition_scores, head_weights, relational_subspaces),
        ),
        "control": Tool(
            "control.supervised_control(...), .reinforcement_control(...): train an MLP inside a with block",
            _with_model(supervised_control, reinforcement_control),
        ),
        "heads": Tool(
            "heads.attention_patterns(ids), .top_attended(text, heads), .induction_scores(), .writing_heads(cache), "
            ".reading_heads(cache, kind), .information_flow(prompt, source, destination), .ablated_heads(heads), "
            ".patched_heads(heads, ids), .merged_heads(merges): read and edit attention heads",
            _heads,
        ),
        "interpret": Tool(
            "interpret(prompt, interpretation_prompt, [(layer, token)]): hidden states described by the model",
            _interpret,
        ),
        "k_prober": Tool(
            "k_prober.scan(pairs, layers), ...: neurons that differ between true and false texts", KnowledgeProber
        ),
        "logit_attribution": Tool(
            "logit_attribution(cache, tokens): direct logit attribution", _with_tokenizer(logit_attribution)
        ),
        "logit_lens": Tool("logit_lens(cache, tokens): the logit lens", _with_tokenizer(logit_lens)),
        "preservation": Tool(
            "preservation(facts, before=...): answers to facts before and after a change", _with_both(preservation)
        ),
        "profile": Tool("profile(prompts): milliseconds and bytes, layer by layer", _with_both(profile)),
        "record": Tool(
            "record(names): activations of any pass inside a with block",
            lambda model, tokenizer: partial(record, model),
        ),
        "residual": Tool(
            "residual.residual_decomposition(cache), .residual_movement(cache): the residual stream, layer by layer",
            _with_model(residual_decomposition, residual_movement),
        ),
        "structure": Tool(
            "structure.deleted_layers(layers), .replaced_layers(replacements), .permuted_layers(order): edit the "
            "layers of the model inside a with block",
            _with_model(deleted_layers, replaced_layers, permuted_layers),
        ),
        "top_activating": Tool(
            "top_activating(prompts, neurons): the tokens that activate neurons most", _with_both(top_activating)
        ),
        "trace": Tool("trace(prompt, subject, answer): causal tracing of a fact", _with_both(trace)),
        "trace_mediators": Tool(
            "trace_mediators(prompt, subject, answer): causal tracing by several mediators",
            _with_both(trace_mediators),
        ),
    }
)
