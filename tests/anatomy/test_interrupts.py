"""Interrupted at any line that changes a model, a call leaves the model as it was.

``assert_interruptible`` runs a call again and again, and each time raises a ``KeyboardInterrupt`` at another line of
the modules that change models, or at the beginning or end of a ``with`` block of another module. A line is interrupted
the first and the last time it runs, in the first call that runs it. At other lines, an interrupt is an exception like
any other.
"""

import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import utils as hub
from transformers import GPT2Config, GPT2LMHeadModel

import interpret
from interpret.activations._record import record
from interpret.activations.cache import activation_cache
from interpret.anatomy import anatomy_of
from interpret.anatomy.passes import checkpointed
from interpret.attribution import attribute
from interpret.bench.profiling import profile
from interpret.control.training import reinforcement_control, supervised_control, word_scorer
from interpret.models.quiet import quiet
from interpret.models.safety import tensors_only
from interpret.probing import (
    ablated_heads,
    attention_patterns,
    deleted_layers,
    logit_lens,
    merged_heads,
    patched_heads,
    permuted_layers,
    replaced_layers,
)
from interpret.probing.neurons import neuron_values, scaled_neuron
from interpret.prompts.prompts import Prompt
from interpret.selfie.rows import interpretations
from interpret.selfie.settings import Settings
from interpret.selfie.sources import plan_sources
from interpret.selfie.templates import InterpretationPrompt
from interpret.surgery.generation import forward_interpret, generate_interpret, greedy_search_interpret
from interpret.sweep.cells import Cell
from interpret.sweep.metrics import Metric
from interpret.sweep.whole_passes import whole_passes
from interpret.tracing.calls import trace_mediators
from interpret.tracing.inputs import TraceSettings
from reference.toy_tokenizers import byte_level

HERE = str(Path(interpret.__file__).parent) + "/"
D, V = 8, 420
IDS = torch.tensor([[3, 1, 4, 1]])
INFO = [{1: ([1], torch.ones(1, 1, D)), "replacing_mode": "addition", "overlay_strength": 5.0}]
TOKENIZER = byte_level()


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    """A model with all that a call could change: a module in training mode, checkpointing, and torch's attention."""
    torch.manual_seed(0)
    sizes = {"vocab_size": V, "n_embd": D, "n_layer": 2, "n_head": 2, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(**sizes, embd_pdrop=0.0, bos_token_id=0, eos_token_id=1, pad_token_id=0)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    model.transformer.drop.train()
    model.gradient_checkpointing_enable()
    return model


@pytest.fixture(scope="module")
def done() -> set[tuple[str, int]]:
    """The lines that have been interrupted by the tests before."""
    return set()


def state_of(model: Any) -> dict[str, Any]:
    """Everything about a model that a call may change for a while."""
    modules = dict(model.named_modules())
    tables = [
        table
        for part in modules.values()
        for name, table in vars(part).items()
        if name.startswith("_forward") and isinstance(table, dict)
    ]
    # Transformers 5 collects attention with hooks that stay.
    stay = {at for table in tables for at, hook in table.items() if "transformers." in getattr(hook, "__module__", "")}
    return {
        "weights": {name: weight.clone() for name, weight in model.state_dict().items()},
        "storage": [weight.data_ptr() for weight in model.parameters()],
        "modules": {name: id(part) for name, part in modules.items()},
        "modes": {name: part.training for name, part in modules.items()},
        "checkpointing": {name: getattr(part, "gradient_checkpointing", None) for name, part in modules.items()},
        "numbers": {name: getattr(part, "layer_idx", None) for name, part in modules.items()},
        "forwards": [name for name, part in modules.items() if "forward" in vars(part)],
        "hooks": [table.keys() - stay for table in tables],
        "config": model.config.to_dict(),
        "attention": getattr(model.config, "_attn_implementation", None),
        "generation": (id(model.generation_config), model.generation_config.to_dict()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "process": _process(),
    }


def _process() -> tuple[Any, ...]:
    """Settings of the process that a call may change for a while."""
    messages = transformers.utils.logging
    loggers = [logging.root, logging.getLogger("bitsandbytes")]
    return (
        {name: value for name, value in os.environ.items() if name.startswith("TORCH_FORCE")},
        (messages.get_verbosity(), messages.is_progress_bar_enabled(), hub.are_progress_bars_disabled()),
        [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers],
        [*warnings.filters],
    )


def assert_as_before(model: Any, before: dict[str, Any], moment: object) -> None:
    after = state_of(model)
    for key, had in before.items():
        same = _same(had, after[key])
        assert same, f"interrupted at {moment}, the call changed: {key}"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and any(isinstance(value, torch.Tensor) for value in one.values()):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    return bool(one == other)


Moment = tuple[str, int]
"""File and line of the package."""


@contextmanager
def watching(visit: Callable[[Moment], None], inside: str = "") -> Iterator[None]:
    """Call ``visit`` before every line of the package, or of one file in it; what it raises is raised there."""

    def line(frame: Any, event: str, argument: Any) -> Any:
        if event == "line":
            visit((frame.f_code.co_filename.removeprefix(HERE), frame.f_lineno))
        return line

    def call(frame: Any, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        return line if (name == HERE + inside if inside else name.startswith(HERE)) else None

    usual, ignore = sys.gettrace(), sys.unraisablehook
    sys.unraisablehook = lambda raised: None  # of an interrupt while a generator is being closed
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(usual)
        sys.unraisablehook = ignore


@cache
def lines_of(name: str) -> list[str]:
    return Path(HERE + name).read_text(encoding="utf-8").splitlines()


@cache
def changes_models(name: str) -> bool:
    text = "\n".join(lines_of(name))
    return "import Changes" in text or "class Changes" in text


def chosen(moment: Moment) -> bool:
    """Whether a line is of a module that changes models, or begins or ends a ``with`` block."""
    name, number = moment
    return changes_models(name) or lines_of(name)[number - 1].lstrip().startswith("with ")


def moments_of(call: Callable[[], object]) -> dict[Moment, int]:
    """How often a call runs each chosen line."""
    counts: Counter[Moment] = Counter()
    with watching(lambda moment: counts.update([moment])):
        call()
    return {moment: count for moment, count in counts.items() if chosen(moment)}


def interrupt(call: Callable[[], object], at: Moment, time: int) -> bool:
    """Raise a ``KeyboardInterrupt`` when the call runs a line for the n-th time; return whether it was raised."""
    seen = 0

    def visit(moment: Moment) -> None:
        nonlocal seen
        seen += moment == at
        if moment == at and seen == time:
            raise KeyboardInterrupt

    # Watching other files, too, would take most of the time.
    with watching(visit, inside=at[0]), suppress(KeyboardInterrupt):
        call()
    return seen >= time


def assert_interruptible(model: Any, call: Callable[[], object], done: set[Moment]) -> None:
    before, output = state_of(model), model(IDS).logits
    call()  # what is computed once is computed
    assert_as_before(model, before, "no line")
    moments = {at: count for at, count in moments_of(call).items() if at not in done}
    for at, count in moments.items():
        for time in {1, count}:
            assert interrupt(call, at, time), at
            assert_as_before(model, before, f"{at[0]}:{at[1]}, time {time} of {count}")
    assert torch.equal(model(IDS).logits, output)
    done |= moments.keys()


# ------------------------------------------------------------------------------------------------------ the calls


def _forward(model: Any) -> object:
    return forward_interpret(model, IDS, insert_info=INFO, output_pre_mlp_states=True)


def _generate(model: Any) -> object:
    mask = torch.tensor([[1, 1, 1, 0]])  # right padding, which is moved
    return generate_interpret(model, IDS, insert_info=INFO, attention_mask=mask, max_new_tokens=2, pad_token_id=0)


def _greedy(model: Any) -> object:
    limit = transformers.StoppingCriteriaList([transformers.MaxLengthCriteria(6)])
    return greedy_search_interpret(model, IDS, insert_info=INFO, stopping_criteria=limit, pad_token_id=0)


def _within(change: Callable[[Any], Any]) -> Callable[[Any], object]:
    def call(model: Any) -> object:
        with change(model):
            return model(IDS)

    return call


def _record(model: Any) -> object:
    names = ["q.0", "heads.1", "resid_mid.0", "mlp_in.1", "neurons.0", "mlp_out.0", "attn_out.1", "resid_post.1"]
    with record(model, names) as seen:
        model(IDS)
    return seen


def _checkpointed(model: Any) -> object:
    with torch.enable_grad(), checkpointed(anatomy_of(model).layers):
        model(IDS).logits.sum().backward()
    model.zero_grad()
    return None


def _trace(**options: Any) -> Callable[[Any], object]:
    settings = TraceSettings(samples=2, noise=0.5)
    return lambda model: trace_mediators(model, TOKENIZER, "The Eiffel", "Eiffel", settings=settings, **options)


def _whole_passes(model: Any) -> object:
    runs = model.get_input_embeddings()(IDS).detach()
    cells = [Cell("resid_post", 1, 0, 1), Cell("mlp_out", 2, 0, 2), Cell("resid_post", 0, -1, 0)]
    return whole_passes(model, runs, runs * 2, cells, [Metric("probability", (5,))], 1)


def _attribute(**options: Any) -> Callable[[Any], object]:
    return lambda model: attribute(model, TOKENIZER, "The Eiffel", "The Eiffel Tower", **options)


def _lens(model: Any) -> object:
    cache = activation_cache(model, None, [[3, 1, 4]], ["resid_pre.0", "resid_post.*", "logits"])
    return logit_lens(model, cache, [5])


def _supervised(model: Any) -> object:
    where = {"layer": 1, "positions": [1], "target": torch.ones(D), "steps": 2}
    with supervised_control(model, IDS, **where):
        return model(IDS)


def _reinforced(model: Any) -> object:
    where: dict[str, Any] = {"layer": 2, "positions": [1], "steps": 1, "scorer": word_scorer(good="yes")}
    with reinforcement_control(model, IDS, reader=lambda states: ["yes"] * len(states), **where):
        return model(IDS)


def _selfie(model: Any) -> object:
    prompts = [Prompt("one", "The Eiffel", raw=True)]
    sources = plan_sources(model, TOKENIZER, prompts, layers="0,2", tokens="-2:")
    template = InterpretationPrompt(TOKENIZER, ("Say", 0, "!"), name="say")
    settings = Settings(new_tokens=2, prompt_output_tokens=2, batch_size=2, wrong_vector=True)
    return list(interpretations(model, TOKENIZER, sources, [template], settings))


def _opening(model: Any) -> None:
    with quiet(), tensors_only():
        pass


CALLS: dict[str, Callable[[Any], object]] = {
    "forward": _forward,
    "generate": _generate,
    "greedy search": _greedy,
    "record": _record,
    "checkpointed": _checkpointed,
    "ablated heads": _within(lambda model: ablated_heads(model, [(0, 1), (1, 0)], mean_of=IDS)),
    "patched heads": _within(lambda model: patched_heads(model, [(1, 1)], IDS)),
    "merged heads": _within(lambda model: merged_heads(model, {(1, 0): (1, 0.5)})),
    "scaled neuron": _within(lambda model: scaled_neuron(model, (1, 3), 0.0)),
    "replaced layers": _within(lambda model: replaced_layers(model, {0: 1})),
    "deleted layers": _within(lambda model: deleted_layers(model, [0])),
    "permuted layers": _within(lambda model: permuted_layers(model, [1, 0])),
    "attention patterns": lambda model: attention_patterns(model, IDS),
    "neurons": lambda model: neuron_values(model, TOKENIZER, ["The Eiffel"], [0, 1]),
    "logit lens": _lens,
    "exact trace": _trace(mediators=["hidden", "mlp_severed"]),
    "approximate trace": _trace(mediators=["hidden", "mlp_severed"], method="approximate"),
    "whole passes": _whole_passes,
    "gradients": _attribute(method="input_x_gradient", step_scores=["mc_dropout_mean"]),
    "deeplift": _attribute(method="deeplift"),
    "layer deeplift": _attribute(method="layer_deeplift", layers=[1]),
    "attention": _attribute(method="attention"),
    "occlusion": _attribute(method="occlusion"),
    "supervised control": _supervised,
    "reinforcement control": _reinforced,
    "selfie": _selfie,
    "opening": _opening,
    "profile": lambda model: profile(model, None, IDS.tolist(), repeats=1),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "generate" else pytest.mark.further) for name in CALLS]
)
def test_interrupted_at_any_line_a_call_leaves_the_model_as_it_was(model: Any, done: set[Moment], name: str) -> None:
    assert_interruptible(model, lambda: CALLS[name](model), done)
