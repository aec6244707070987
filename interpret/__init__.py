"""Open a Hugging Face language model, operate on its hidden states, and close it unchanged.

The public names; everything else may change between versions. docs/architecture.md shows how they fit together.
"""

import warnings

with warnings.catch_warnings():
    # transformers 4.34.0 registers its outputs through a name torch has since renamed; nothing a user could mend.
    warnings.filterwarnings("ignore", message=".*_register_pytree_node.*")
    warnings.filterwarnings("ignore", message="IProgress not found")  # its progress bars, in a notebook
    from interpret.activations import record
    from interpret.anatomy import Family, Parts, register_family
    from interpret.approximation import Screening, approximate_trace, rank_correlation, screen
    from interpret.attribution.attribute import attribute
    from interpret.attribution.functions import Reading, list_step_functions, register_step_function
    from interpret.attribution.methods import list_methods
    from interpret.attribution.result import Attributed, Attribution, AttributionInfo
    from interpret.averaging import average
    from interpret.buckets import average_buckets, bucket_means, token_buckets
    from interpret.configs import TraceConfig, load_config
    from interpret.control import read_answer, reinforcement_control, supervised_control, word_scorer
    from interpret.errors import (
        InputError,
        InterpretError,
        ModelError,
        RunError,
        SpecError,
        UnsupportedModelError,
    )
    from interpret.fact_files import BadFact, Fact, FactFile, load_facts
    from interpret.fact_traces import trace_facts
    from interpret.facts import Prompt, load_examples
    from interpret.generation import (
        attach,
        detach,
        forward_interpret,
        generate_interpret,
        greedy_search_interpret,
    )
    from interpret.hook_names import HookNames, check_module_names
    from interpret.interpretation_prompt import InterpretationPrompt, interpretation_prompt
    from interpret.knowledge import Answered, FilterCounts, known
    from interpret.location_tables import LocationGrid, location_averages, location_grids, location_summary
    from interpret.locations import locate_facts
    from interpret.models import load
    from interpret.preservation import accuracy, answers, preservation
    from interpret.probing.cache import ActivationCache, activation_cache
    from interpret.probing.composition import composition_scores, head_weights, strongest_compositions
    from interpret.probing.heads import ablated_heads, attention_patterns, induction_scores, patched_heads, top_attended
    from interpret.probing.knowledge import KnowledgeProber, NeuronEffect
    from interpret.probing.lenses import logit_lens
    from interpret.probing.logit_attribution import logit_attribution
    from interpret.probing.stream import residual_decomposition, residual_movement
    from interpret.readings import Settings
    from interpret.records import (
        Interpretation,
        LocationAverage,
        LocationCell,
        Preservation,
        TokenScore,
        TraceAverage,
        TraceCell,
        TracePeak,
    )
    from interpret.runs import read_table
    from interpret.selfie import interpret, interpret_vectors, interpretations
    from interpret.sources import plan_sources
    from interpret.trace_inputs import TraceSettings
    from interpret.trace_tables import TraceGrid, trace_grids, trace_peaks
    from interpret.tracing import TraceResult, trace, trace_mediators

__all__ = [
    "ActivationCache",
    "Answered",
    "Attributed",
    "Attribution",
    "AttributionInfo",
    "BadFact",
    "Fact",
    "FactFile",
    "Family",
    "FilterCounts",
    "HookNames",
    "InputError",
    "InterpretError",
    "Interpretation",
    "InterpretationPrompt",
    "KnowledgeProber",
    "LocationAverage",
    "LocationCell",
    "LocationGrid",
    "ModelError",
    "NeuronEffect",
    "Parts",
    "Preservation",
    "Prompt",
    "Reading",
    "RunError",
    "Screening",
    "Settings",
    "SpecError",
    "TokenScore",
    "TraceAverage",
    "TraceCell",
    "TraceConfig",
    "TraceGrid",
    "TracePeak",
    "TraceResult",
    "TraceSettings",
    "UnsupportedModelError",
    "ablated_heads",
    "accuracy",
    "activation_cache",
    "answers",
    "approximate_trace",
    "attach",
    "attention_patterns",
    "attribute",
    "average",
    "average_buckets",
    "bucket_means",
    "check_module_names",
    "composition_scores",
    "detach",
    "forward_interpret",
    "generate_interpret",
    "greedy_search_interpret",
    "head_weights",
    "induction_scores",
    "interpret",
    "interpret_vectors",
    "interpretation_prompt",
    "interpretations",
    "known",
    "list_methods",
    "list_step_functions",
    "load",
    "load_config",
    "load_examples",
    "load_facts",
    "locate_facts",
    "location_averages",
    "location_grids",
    "location_summary",
    "logit_attribution",
    "logit_lens",
    "patched_heads",
    "plan_sources",
    "preservation",
    "rank_correlation",
    "read_answer",
    "read_table",
    "record",
    "register_family",
    "register_step_function",
    "reinforcement_control",
    "residual_decomposition",
    "residual_movement",
    "screen",
    "strongest_compositions",
    "supervised_control",
    "token_buckets",
    "top_attended",
    "trace",
    "trace_facts",
    "trace_grids",
    "trace_mediators",
    "trace_peaks",
    "word_scorer",
]
