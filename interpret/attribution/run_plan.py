"""From the options of a run, as they are written on the command line, to the plan of its attribution."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import anatomy_of, decoder_layers
from interpret.attribution.comparison import check_methods, shared_options
from interpret.attribution.groups import UNITS, Groups, check_groups, is_template
from interpret.attribution.methods.registry import METHODS
from interpret.attribution.plan import (
    Plan,
    check_method_options,
    check_takes_groups,
    check_takes_layers,
    plan_attribution,
)
from interpret.attribution.result.aggregation import HOWS
from interpret.attribution.run_options import RunOptions
from interpret.attribution.seq2seq_texts import seq2seq_texts_of
from interpret.attribution.steps.functions import CONTRASTS, FUNCTIONS, Contrast, attributed_function, step_functions
from interpret.attribution.targets import Alignment
from interpret.errors import InputError, unknown
from interpret.prompts import selectors
from interpret.prompts.prompts import Prompt
from interpret.work.inputs import read_options

CONTRAST, PLAIN = "contrast_prob_diff", "probability"
"""The default attributed functions: if every prompt has a foil, and otherwise."""


def default_function(prompts: Sequence[Prompt]) -> str:
    """Return the function that is attributed by default."""
    return CONTRAST if all(one.foil is not None for one in prompts) else PLAIN


def check_options(words: RunOptions, prompts: Sequence[Prompt]) -> None:
    """Check the options that can be checked without a model.

    Raises:
        InputError: if an option is wrong; the message names it.
    """
    function = attributed_function(words.attributed_fn or default_function(prompts))
    reported = step_functions(words.step_scores or [])
    for kind, name, allowed in (
        ("contrast", words.contrast, CONTRASTS),
        ("method", words.method, METHODS),
        ("aggregate", "sum" if words.aggregate is None else words.aggregate, HOWS),
    ):
        if name not in allowed:
            raise InputError(unknown(kind, name, allowed))
    _slice(words.steps)
    read_pairs(words.align)
    options, groups = read_options(words.options or ()), read_groups(words.groups)
    functions = [FUNCTIONS[name] for name in (function, *reported)]
    if words.compare is not None:
        _check_comparison(words, words.compare)
        check_method_options(words.compare[0], functions, shared_options(words.compare, options))
        if groups is not None:
            check_groups(groups)
        return
    if words.layers is not None:
        check_takes_layers(words.method)
    check_takes_groups(words.method, groups)
    check_method_options(words.method, functions, options)


def _check_comparison(words: RunOptions, methods: Sequence[str]) -> None:
    """Check the methods to be compared, and that there are no options that only a single method has."""
    check_methods(methods)
    for name in ("method", "layers", "step_scores", "normalize", "subwords", "versus"):
        if getattr(words, name) != getattr(RunOptions, name):
            raise InputError(f"{name} is for a single method; leave it out, or leave out compare")


def plan_run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    words: RunOptions,
    prompts: Sequence[Prompt],
    options: Mapping[str, Any],
    batch_size: int,
    foil_asked: bool,
) -> Plan:
    """Return the plan of a run.

    Args:
        model: as in ``run``.
        tokenizer: its tokenizer.
        words: the options, checked.
        prompts: all prompts.
        options: options of the method and the functions.
        batch_size: as in ``run``.
        foil_asked: whether there is a single prompt with a foil; it is then an error if no function uses the foil.
    """
    function = attributed_function(words.attributed_fn or default_function(prompts))
    reported = step_functions(words.step_scores or [])
    needs_foil = any(FUNCTIONS[name].contrast for name in (function, *reported))
    start, end = _slice(words.steps)
    return plan_attribution(
        model,
        tokenizer,
        method=words.method,
        attributed_fn=function,
        contrast=cast(Contrast, words.contrast) if needs_foil else None,
        with_foils=needs_foil or foil_asked,
        step_scores=reported,
        layers=_layers(words.layers, model),
        groups=read_groups(words.groups),
        start=start,
        end=end,
        batch_size=batch_size,
        max_new_tokens=words.new_tokens,
        options=options,
        seq2seq=seq2seq_texts_of(model, tokenizer, words.source_language, words.target_language),
    )


def read_pairs(words: str | None) -> Alignment | None:
    """Read '0:0,2:1'."""
    if words is None:
        return None
    try:
        pairs = [tuple(int(number) for number in pair.split(":")) for pair in words.split(",")]
        return [(step, of_foil) for step, of_foil in pairs]
    except ValueError:
        raise InputError(f"align {words!r} is not understood; give pairs of numbers, such as 0:0,2:1") from None


def read_groups(words: Sequence[str] | None) -> Groups | None:
    """Read groups of tokens: a single unit or template is one, anything else is a list of parts of the prompt."""
    if words is not None and len(words) == 1 and (words[0] in UNITS or is_template(words[0])):
        return words[0]
    return words


def _slice(words: str) -> tuple[int | None, int | None]:
    """Read 'first:end'."""
    try:
        first, end = (int(bound) if bound.strip() else None for bound in words.split(":"))
    except ValueError:
        raise InputError(f"steps {words!r} is not understood; give first:end, such as 0:1") from None
    return first, end


def _layers(words: str | None, model: PreTrainedModel) -> list[int | str] | None:
    """Read '0:20:5,-1' into numbers; names of activations stay as they are."""
    if words is None:
        return None
    n_layers = len(decoder_layers(model) if model.config.is_encoder_decoder else anatomy_of(model).layers)
    found: list[int | str] = []
    for part in (part.strip() for part in words.split(",")):
        found += [part] if part[:1].isalpha() and part != "all" else selectors.select("layer", part, n_layers)
    return found
