"""Open a Hugging Face language model, operate on its hidden states, and close it unchanged.

The public names; everything else may change between versions. docs/architecture.md shows how they fit together.
"""

import warnings

with warnings.catch_warnings():
    # transformers 4.34.0 registers its outputs through a name torch has since renamed; nothing a user could mend.
    warnings.filterwarnings("ignore", message=".*_register_pytree_node.*")
    warnings.filterwarnings("ignore", message="IProgress not found")  # its progress bars, in a notebook
    from interpret.activations._record import record
    from interpret.activations.cache import ActivationCache, activation_cache
    from interpret.anatomy import Family, Parts, register_family
    from interpret.attribution._attribute import attribute
    from interpret.attribution.methods.registry import list_methods
    from interpret.attribution.result.attribution import Attribution
    from interpret.attribution.result.scores import Attributed, AttributionInfo
    from interpret.attribution.steps.functions import StepReading, list_step_functions, register_step_function
    from interpret.bench.experiment import Experiment
    from interpret.bench.hypothesis import HypothesisTest, hypothesis_test
    from interpret.bench.log import LoggedRun
    from interpret.bench.profiling import Profiled, profile
    from interpret.control._preservation import accuracy, preservation
    from interpret.control.training import read_answer, reinforcement_control, supervised_control, word_scorer
    from interpret.engine.greedy import answers
    from interpret.errors import InputError, InterpretError, ModelError, RunError, SpecError, UnsupportedModelError
    from interpret.facts.buckets import average_buckets, bucket_means, token_buckets
    from interpret.facts.files import BadFact, Fact, FactFile, load_facts
    from interpret.facts.filter import Answered, FilterCounts, known
    from interpret.figures.activations import (
        attention_figure,
        induction_figure,
        neuron_figure,
        norm_figure,
        query_key_figure,
        residual_figure,
        trajectory_figure,
    )
    from interpret.figures.traces import average_figure, prompt_figure
    from interpret.locating.facts import locate_facts
    from interpret.locating.tables import LocationGrid, location_averages, location_grids, location_summary
    from interpret.models.opening import load
    from interpret.probing._logit_attribution import logit_attribution
    from interpret.probing._logit_lens import logit_lens
    from interpret.probing.composition import (
        RelationalSubspaces,
        composition_scores,
        head_weights,
        relational_subspaces,
        strongest_compositions,
    )
    from interpret.probing.head_edits import ablated_heads, merged_heads, patched_heads
    from interpret.probing.head_flow import information_flow, reading_heads, writing_heads
    from interpret.probing.heads import attention_patterns, induction_scores, top_attended
    from interpret.probing.knowledge_prober import KnowledgeProber
    from interpret.probing.layer_edits import deleted_layers, permuted_layers, replaced_layers
    from interpret.probing.residual_stream import residual_decomposition, residual_movement
    from interpret.probing.top_inputs import TopActivation, top_activating
    from interpret.prompts.chat import chat_text
    from interpret.prompts.prompts import Prompt, load_examples
    from interpret.records import (
        HeadView,
        Interpretation,
        LensReading,
        LocationAverage,
        LocationCell,
        LogitShare,
        NeuronEffect,
        Preservation,
        TokenScore,
        TraceAverage,
        TraceCell,
        TracePeak,
    )
    from interpret.selfie.readings import Settings
    from interpret.selfie.rows import interpretations
    from interpret.selfie.sources import plan_sources
    from interpret.selfie.templates import InterpretationPrompt, interpretation_prompt
    from interpret.selfie.upstream import interpret, interpret_vectors
    from interpret.stats import average, rank_correlation
    from interpret.storage.run_folder import read_table
    from interpret.surgery.generation import (
        attach,
        detach,
        forward_interpret,
        generate_interpret,
        greedy_search_interpret,
    )
    from interpret.tracing.approximate import Screening, approximate_trace, screen
    from interpret.tracing.config import TraceConfig, load_config
    from interpret.tracing.exact import trace, trace_mediators
    from interpret.tracing.facts import trace_facts
    from interpret.tracing.inputs import TraceSettings
    from interpret.tracing.knowledge_tracing import HookNames, check_module_names
    from interpret.tracing.result import TraceResult
    from interpret.tracing.tables import TraceGrid, trace_grids, trace_peaks

__all__ = [
    "ActivationCache",
    "Answered",
    "Attributed",
    "Attribution",
    "AttributionInfo",
    "BadFact",
    "Experiment",
    "Fact",
    "FactFile",
    "Family",
    "FilterCounts",
    "HeadView",
    "HookNames",
    "HypothesisTest",
    "InputError",
    "InterpretError",
    "Interpretation",
    "InterpretationPrompt",
    "KnowledgeProber",
    "LensReading",
    "LocationAverage",
    "LocationCell",
    "LocationGrid",
    "LoggedRun",
    "LogitShare",
    "ModelError",
    "NeuronEffect",
    "Parts",
    "Preservation",
    "Profiled",
    "Prompt",
    "RelationalSubspaces",
    "RunError",
    "Screening",
    "Settings",
    "SpecError",
    "StepReading",
    "TokenScore",
    "TopActivation",
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
    "attention_figure",
    "attention_patterns",
    "attribute",
    "average",
    "average_buckets",
    "average_figure",
    "bucket_means",
    "chat_text",
    "check_module_names",
    "composition_scores",
    "deleted_layers",
    "detach",
    "forward_interpret",
    "generate_interpret",
    "greedy_search_interpret",
    "head_weights",
    "hypothesis_test",
    "induction_figure",
    "induction_scores",
    "information_flow",
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
    "merged_heads",
    "neuron_figure",
    "norm_figure",
    "patched_heads",
    "permuted_layers",
    "plan_sources",
    "preservation",
    "profile",
    "prompt_figure",
    "query_key_figure",
    "rank_correlation",
    "read_answer",
    "read_table",
    "reading_heads",
    "record",
    "register_family",
    "register_step_function",
    "reinforcement_control",
    "relational_subspaces",
    "replaced_layers",
    "residual_decomposition",
    "residual_figure",
    "residual_movement",
    "screen",
    "strongest_compositions",
    "supervised_control",
    "token_buckets",
    "top_activating",
    "top_attended",
    "trace",
    "trace_facts",
    "trace_grids",
    "trace_mediators",
    "trace_peaks",
    "trajectory_figure",
    "word_scorer",
    "writing_heads",
]
