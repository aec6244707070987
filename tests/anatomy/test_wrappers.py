"""Models wrapped by ``torch.compile`` and PEFT give the numbers of the model with its adapters, or are refused."""

import importlib
import inspect
import re

import numpy as np
import pytest
import torch
from torch import nn

from interpret import attach, detach
from interpret.anatomy import unwrapped, unwrapping
from interpret.errors import UnsupportedModelError
from reference.agreement import (
    IDS,
    attributed,
    controlled,
    interpreted,
    lens,
    recorded,
    screened,
    shares,
    traced,
)
from reference.house import PACKAGES, homes_of
from reference.tiny import wide_model
from reference.unlisted import Peft, adapt

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
FIGURES = {
    "attribution": lambda model: np.nan_to_num(np.array(attributed(model).scores, dtype=float)),
    "logit lens": lambda model: lens(model).logit,
    "logit attribution": lambda model: shares(model).logit,
    "trace": lambda model: traced(model).scores,
    "screened trace": lambda model: screened(model)["hidden"].result.scores,
    "interpretation": lambda model: interpreted(model)[1].interpretation_prob,
}
"""Figures that each analysis computes of a model."""


def with_adapters():
    model = wide_model("llama")
    model.config.tie_word_embeddings = False
    return adapt(model, lambda name: name.endswith(("q_proj", "down_proj", "lm_head")))


@pytest.mark.parametrize("analysis", FIGURES)
def test_a_compiled_model_gives_the_figures_of_the_uncompiled_one(analysis):
    figures = FIGURES[analysis]
    np.testing.assert_array_equal(figures(torch.compile(wide_model("llama"))), figures(wide_model("llama")))


@pytest.mark.parametrize("analysis", FIGURES)
def test_a_peft_model_gives_the_figures_of_its_adapter_and_not_those_of_its_base(analysis):
    figures = FIGURES[analysis]
    found = np.array(figures(Peft(with_adapters())))
    np.testing.assert_array_equal(found, figures(with_adapters()))
    base = np.array(figures(wide_model("llama")))
    assert base.shape != found.shape or np.abs(found - base).max() > 0.01 * np.abs(base).max()


@pytest.mark.parametrize("analysis", [recorded, controlled])
@pytest.mark.parametrize("wrap", [torch.compile, Peft, lambda model: torch.compile(Peft(model))])
def test_contexts_take_wrapped_models(analysis, wrap):
    analysis(wrap(wide_model("llama")))


@torch.no_grad()
@pytest.mark.parametrize("wrap", [torch.compile, Peft])
def test_surgery_methods_are_attached_to_the_model_inside_and_reached_through_the_wrapper(wrap):
    model = with_adapters()
    info = [{1: ([0], torch.ones(1, 1, 32))}]
    ids = torch.tensor([IDS])
    expected = attach(model).forward_interpret(ids, insert_info=info).logits
    detach(model)
    wrapped = wrap(model)
    assert attach(wrapped) is wrapped
    assert torch.equal(wrapped.forward_interpret(ids, insert_info=info).logits, expected)
    assert not torch.allclose(expected, model(ids).logits, atol=1e-2)
    detach(wrapped)
    assert "forward_interpret" not in vars(model)


class Elsewhere(Peft):
    """A wrapper whose adapter is not in the model inside it."""

    peft_config = {"default": type("Config", (), {"peft_type": "ELSEWHERE"})}

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output


class Longer(Elsewhere):
    """One that puts a token before the text."""

    def forward(self, input_ids, **kwargs):
        return self.base_model.model(torch.cat([input_ids[:, :1], input_ids], dim=1), **kwargs)


class Failing(Elsewhere):
    """One that needs an argument of its own."""

    def forward(self, *args, task_ids=None, **kwargs):
        raise ValueError("task_ids should not be None.")


class SomeTexts(Elsewhere):
    """One that acts in some texts only."""

    peft_config = {"default": type("Config", (), {"peft_type": "LORA", "alora_invocation_tokens": [5]})}

    def forward(self, *args, **kwargs):
        return self.base_model.model(*args, **kwargs)


class OtherModule(Elsewhere):
    """One with another module between the two."""

    def get_base_model(self):
        return nn.Sequential(self.base_model.model)


@pytest.mark.parametrize("analysis", [attributed, traced, recorded, attach])
@pytest.mark.parametrize(
    ("wrapper", "problem"),
    [
        (Elsewhere, r"Elsewhere \(ELSEWHERE\): its logit is (\S+), where that of the model inside is (\S+)\. "),
        (Longer, r"Longer \(ELSEWHERE\): of a text with 2 tokens it makes one with 3\. "),
        (Failing, r"Failing \(ELSEWHERE\): it cannot read a text by itself \(ValueError: task_ids should not be None"),
        (SomeTexts, r"SomeTexts \(LORA\): it acts only after certain tokens \(alora_invocation_tokens\)\. "),
        (OtherModule, r"OtherModule \(ELSEWHERE\): it runs the model through a Sequential\. "),
    ],
)
def test_an_adapter_that_is_not_in_the_model_is_refused(wrapper, problem, analysis):
    with pytest.raises(UnsupportedModelError, match=f"^{problem}") as caught:
        analysis(wrapper(wide_model("llama")))
    if figures := re.match(problem, str(caught.value)).groups():
        ours, own = map(float, figures)
        assert ours == pytest.approx(2 * own, rel=1e-3)


def test_the_model_inside_is_compared_once_and_again_after_a_change_of_adapters():
    class Counting(Peft):
        passes = 0
        active_adapters = ("one",)

        def forward(self, *args, **kwargs):
            Counting.passes += 1
            return super().forward(*args, **kwargs)

    wrapper = Counting(wide_model("llama"))
    assert unwrapped(wrapper) is unwrapped(wrapper) is wrapper.get_base_model()
    assert Counting.passes == 1
    Counting.active_adapters = ("another",)
    unwrapped(wrapper)
    assert Counting.passes == 2


def test_what_is_not_wrapped_is_returned_as_it_is(llama):
    assert unwrapped(llama) is llama
    assert unwrapped("demo") == "demo"
    layer = nn.Linear(2, 2)
    assert unwrapped(layer) is layer


INNER = {"interpret.anatomy", "interpret.attribution.steps", "interpret.engine", "interpret.slots"}
"""Packages whose functions analyses call with the model inside."""


def models_taken():
    """The public functions and classes that take a model, by their names."""
    for package in set(PACKAGES) - INNER:
        for name, home in homes_of(package).items():
            found = getattr(importlib.import_module(home), name, None)
            called = found.__init__ if inspect.isclass(found) else found
            if inspect.isfunction(called) and "PreTrainedModel" in str(
                getattr(inspect.signature(called).parameters.get("model"), "annotation", "")
            ):
                yield f"{package}.{name}", called


def test_every_public_function_that_takes_a_model_takes_a_wrapped_one():
    taken = dict(models_taken())
    assert len(taken) > 50
    code = unwrapping(recorded).__code__
    assert [name for name, function in taken.items() if function.__code__ is not code] == []
