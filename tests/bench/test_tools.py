"""Tools by name: what a function receives, what its caller sees, and every wrong request."""

import inspect
import re

import pytest
import torch

from interpret.activations import activation_cache
from interpret.bench.experiment import Experiment
from interpret.bench.tools import TOOLS
from interpret.errors import InputError
from interpret.probing import KnowledgeProber, logit_lens
from reference.toy_tokenizers import byte_level

TEXT = "The Eiffel Tower"


@pytest.fixture
def exp(gpt2, tmp_path):
    """An experiment whose tokenizer gives tokens the tiny model has."""
    return Experiment(gpt2, SmallTokenizer(), folder=tmp_path / "experiments")


class SmallTokenizer:
    """The byte-level tokenizer, its ids folded into the vocabulary of tiny models."""

    all_special_ids = ()

    def __len__(self):
        return 97

    def __call__(self, text, **options):
        ids = byte_level()(text, **options)
        return type(ids)({key: [token % 97 for token in value] for key, value in ids.items()})

    def convert_ids_to_tokens(self, ids):
        return byte_level().convert_ids_to_tokens(ids)

    def decode(self, ids, **options):
        return byte_level().decode(ids, **options)


def test_a_function_receives_the_tools_it_requests(exp):
    @exp.use_tools("cache", "logit_lens", "k_prober")
    def read(prompt, *, cache, logit_lens, k_prober):
        """Read the end of a prompt."""
        return logit_lens(cache([prompt]), [7], top=0), k_prober

    frame, prober = read(TEXT)
    kept = activation_cache(exp.model, exp.tokenizer, [TEXT])
    assert frame.equals(logit_lens(exp.model, kept, [7], tokenizer=exp.tokenizer, top=0))
    assert isinstance(prober, KnowledgeProber)
    assert prober.model is exp.model


def test_the_caller_sees_only_the_other_arguments(exp):
    @exp.use_tools("cache", "residual")
    def measure(cache, prompt: str, residual, layer: int = 3, *more, deep=False):
        """Say what it measures."""
        return prompt, layer, more, deep, callable(cache)

    assert str(inspect.signature(measure)) == "(prompt: str, layer: int = 3, *more, deep=False)"
    assert (measure.__name__, measure.__doc__) == ("measure", "Say what it measures.")
    assert measure(TEXT) == (TEXT, 3, (), False, True)
    assert measure(TEXT, layer=1, deep=True) == (TEXT, 1, (), True, True)


def test_tools_go_into_keyword_arguments(exp):
    @exp.use_tools("cache", "logit_lens")
    def every(prompt, **tools):
        return sorted(tools)

    assert every(TEXT, note=1) == ["cache", "logit_lens", "note"]


def test_every_tool_can_be_made_and_tells_what_it_does(exp):
    @exp.use_tools(*TOOLS)
    def all_of_them(**tools):
        return tools

    made = all_of_them()
    assert list(made) == list(TOOLS) == list(exp.tools())
    assert all(exp.tools().values())


def test_tools_of_several_functions_have_the_model_bound(exp):
    @exp.use_tools("heads", "residual", "cache", "composition", "profile", "record", "structure")
    def use(heads, residual, cache, composition, profile, record, structure):
        ids = torch.tensor([[5, 6, 7]])
        with record(["resid_post.1"]) as seen, heads.ablated_heads([(0, 1)]):
            exp.model(ids)
        with structure.deleted_layers([2]):
            assert len(exp.model.transformer.h) == 3
        return (
            heads.attention_patterns(ids)[0].shape,
            len(heads.writing_heads(cache([[5, 6, 7]]))),
            len(residual.residual_movement(cache([[5, 6, 7]]))),
            composition.head_weights(0).queries.dim(),
            profile([[5, 6, 7]], repeats=1).ms.sum() > 0,
            seen["resid_post.1"].shape,
        )

    assert use() == ((1, 4, 3, 3), 16, 4, 3, True, (1, 3, 32))


def test_a_tool_is_made_once_and_only_when_it_is_needed(exp):
    made = []

    def maker(model, tokenizer):
        """Make a list."""
        made.append((model, tokenizer))
        return made

    exp.add_tool("list", make=maker)

    @exp.use_tools("list")
    def first(list):  # noqa: A002
        return list

    assert made == []
    assert first() is first() is made
    assert made == [(exp.model, exp.tokenizer)]
    assert exp.tools()["list"] == "Make a list."


def test_a_custom_tool_is_passed_unchanged(exp):
    def double(number):
        return 2 * number

    exp.add_tool("double", double, about="twice a number")
    exp.add_tool("nothing", None)

    @exp.use_tools("double", "nothing")
    def use(number, double, nothing):
        return double(number), nothing

    assert use(4) == (8, None)
    assert exp.tools()["double"] == "twice a number"


def test_experiments_do_not_share_tools(exp, gpt2):
    exp.add_tool("mine", 1)
    assert "mine" not in Experiment(gpt2, None).tools()
    assert "mine" not in TOOLS


def takes_all(**tools):
    return tools


def takes_prompt(prompt):
    return prompt


def takes_cache_first(cache, /):
    return cache


WRONG = [
    (["logit_lense"], takes_all, "unknown tool 'logit_lense'; did you mean 'logit_lens'? Allowed: attribute, cache"),
    (["cache", "cache"], takes_all, "tool 'cache' is requested twice: name each tool once"),
    ([], takes_all, 'use_tools expects names of tools, as in @exp.use_tools("cache", "logit_lens")'),
    (["cache"], takes_prompt, "takes_prompt(prompt) has no argument 'cache': add it, or do not request the tool"),
    (["cache"], takes_cache_first, "takes_cache_first(cache, /) cannot receive 'cache' by keyword: make it a regular"),
]


@pytest.mark.parametrize(("names", "function", "message"), WRONG, ids=[str(names) for names, _, _ in WRONG])
def test_wrong_requests_are_refused_before_anything_runs(exp, names, function, message):
    with pytest.raises(InputError, match=re.escape(message)):
        exp.use_tools(*names)(function)


def test_forgetting_the_names_is_an_error(exp):
    with pytest.raises(InputError, match="use_tools expects names of tools"):
        exp.use_tools(takes_all)


def takes_cache(cache):
    return cache


@pytest.mark.parametrize("function", [takes_all, takes_cache])
def test_an_argument_of_a_tools_name_is_refused(exp, function):
    message = (
        f"{function.__name__}() receives the tool 'cache' from its experiment: call it without cache=, or rename the "
        "argument"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        exp.use_tools("cache")(function)(cache="mine")


def test_a_missing_argument_is_pythons_own_error(exp):
    @exp.use_tools("cache")
    def read(prompt, cache):
        return prompt

    with pytest.raises(TypeError, match="missing a required argument: 'prompt'"):
        read()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cache", 1), "tool 'cache' already exists (cache(prompts, names): activations by name): choose another"),
        (("a b", 1), "tool name 'a b' is not a valid argument name"),
        (("new",), "tool 'new': give either the tool, or make=, a function that makes it from model and tokenizer"),
    ],
)
def test_wrong_tools_are_refused(exp, arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        exp.add_tool(*arguments)
    assert list(exp.tools()) == list(TOOLS)
