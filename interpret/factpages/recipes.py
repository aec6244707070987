"""The commands and the Python lines that give the numbers of a fact page."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interpret.factpages.grids import TRACED
from interpret.prompts.scripts import joined


@dataclass(frozen=True)
class Recipe:
    """How to get some numbers."""

    title: str
    command: str
    """A command line; for interpretations without the options of the cell."""
    python: str
    """Lines for ``model`` and ``tokenizer``."""


def recipes(details: Mapping[str, Any], identity: Mapping[str, Any]) -> list[Recipe]:
    """Return the recipes of a fact.

    Args:
        details: what a run stored of the fact.
        identity: the identity of the run.
    """
    fact, noise = details["fact"], details["trace"]["noise"]
    model = str(identity.get("model") or "demo")
    prompt = ["--model", model, "--prompt", fact["prompt"]]
    target = [*prompt, "--target", fact["attribute"]]
    about = [*target, "--subject", fact["subject"], "--no-filter"]
    if fact["occurrence"] is not None:
        about = ["--facts", "FILE", "--no-filter"]  # only a file says which occurrence of the subject is meant
    own = {"noise": noise, "samples": identity.get("samples", 10), "seed": identity.get("seed", 0)}
    corrupting = [word for name, value in own.items() for word in (f"--{name}", str(value))]
    tracing = [*about, *corrupting]
    foil = [] if fact["foil"] is None else ["--foil", fact["foil"]]
    function = details["attribution"]["attributed_fn"]
    method = str(identity.get("method", "exact"))
    settings = f"interpret.tracing.TraceSettings({', '.join(f'{name}={value!r}' for name, value in own.items())})"
    texts = ", ".join(repr(fact[name]) for name in ("prompt", "subject", "attribute"))
    words = f"model, tokenizer, {texts}"
    if fact["occurrence"] is not None:
        words += f", occurrence={fact['occurrence']}"
    fact_line = f"interpret.Fact('fact', {texts}, foil={fact['foil']!r}, occurrence={fact['occurrence']!r})"
    return [
        Recipe(
            "Causal tracing",
            _command("trace", *tracing, "--method", method, *_each("--mediator", TRACED)),
            f"settings = {settings}\ninterpret.tracing.trace_mediators({words}, settings=settings, method={method!r})",
        ),
        Recipe(
            "Attribution of layers",
            _command("locate", *about, *foil, "--attributed-fn", function),
            f"fact = {fact_line}\n"
            f"interpret.locating.locate_facts(model, tokenizer, [fact], attributed_fn={function!r})",
        ),
        Recipe(
            "Attribution of tokens",
            _command("attribute", *target, *foil, "--attributed-fn", function, "--steps", "0:1"),
            _attribute_lines(fact, function),
        ),
        Recipe(
            "Logit lens",
            _command("probe", "lens", *target, *foil, "--tokens", "all"),
            f"cache = interpret.activations.activation_cache(model, tokenizer, [{fact['prompt']!r}], "
            "['resid_pre.0', 'resid_post.*'])\n"
            f"interpret.probing.logit_lens(model, cache, [{details['answer']['answer_id']}], tokenizer=tokenizer, "
            "positions=None)",
        ),
        Recipe(
            "Knockout",
            _command("trace", *about, "--mediator", "attn_knockout", "--window", "9"),
            f"interpret.tracing.knockout({words})",
        ),
        Recipe(
            "Heads and neurons",
            _command("trace", *tracing, "--mediator", "heads", "--mediator", "neurons"),
            f"settings = {settings}\ninterpret.tracing.trace_units({words}, site='heads', settings=settings)",
        ),
        Recipe(
            "Interpretations",
            _command("selfie", *prompt, "--raw"),
            f"prompt = interpret.Prompt('fact', {fact['prompt']!r}, raw=True)\n"
            "sources = interpret.plan_sources(model, tokenizer, [prompt], layers='{layer}', tokens='{token}')\n"
            "words = interpret.interpretation_prompt(tokenizer, 'summarize')\n"
            "list(interpret.interpretations(model, tokenizer, sources, [words]))",
        ),
    ]


def _attribute_lines(fact: Mapping[str, Any], function: str) -> str:
    whole, contrast = joined(fact["prompt"], fact["attribute"]), ""
    if fact["foil"] is not None:
        foil = joined(fact["prompt"], fact["foil"])
        contrast = f"contrast_targets={foil!r}, contrast='same_context', "
    return (
        f"interpret.attribute(model, tokenizer, {fact['prompt']!r}, {whole!r}, {contrast}"
        f"attributed_fn={function!r}, end=1)"
    )


def _each(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _command(*words: str) -> str:
    """Return a command line, quoted for a POSIX shell."""
    return shlex.join(["interpret", *words])
