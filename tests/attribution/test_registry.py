"""A user's attribution method works in the call, on the page of the result, and in the table."""

import re

import pytest
import torch

from interpret.attribution import attribute, list_methods, register_method
from interpret.attribution.methods.registry import METHODS
from interpret.attribution.questions import Question
from interpret.attribution.rows import token_scores
from interpret.errors import InputError
from reference.tiny import wide_model
from reference.toy_tokenizers import byte_level

TOKENIZER = byte_level()
PROMPT = "The Eiffel Tower is in"


def embedding_norm(step, *, power=1):
    """The length of each embedding."""
    return step.embeddings[0].norm(dim=-1) ** power


@pytest.fixture
def own():
    register_method(embedding_norm, "embedding_norm", description="lengths of embeddings", gradients=False)
    yield
    del METHODS["embedding_norm"]


def test_a_users_method_works_in_call_page_and_table(own):
    model = wide_model("llama")
    found = attribute(model, TOKENIZER, PROMPT, method="embedding_norm", max_new_tokens=2, power=2)
    one = found.sequences[0]
    lengths = model.get_input_embeddings()(torch.tensor(one.token_ids)).norm(dim=-1) ** 2
    n = one.n_prompt
    torch.testing.assert_close(torch.tensor(one.scores[:n, 0]), lengths[:n].detach())
    assert found.info.method == "embedding_norm"
    assert "by embedding_norm" in found.to_html()
    rows = list(token_scores(Question("mine", PROMPT, True, None, None), found))
    assert [row.score for row in rows if row.step == 0] == pytest.approx(lengths[:n].tolist(), rel=1e-5)
    assert list_methods()[-1] == "embedding_norm"


@pytest.mark.parametrize(
    ("fn", "options", "message"),
    [
        (embedding_norm, {"identifier": "saliency"}, "method 'saliency' already exists; choose another name"),
        (
            embedding_norm,
            {"identifier": "embedding_norm"},
            "method 'embedding_norm' already exists; choose another name, or give overwrite=True",
        ),
        (lambda: 0, {}, "method 'mine' takes 0 positional arguments; define it as def fn(step)"),
        (
            lambda step: 0,
            {"layers": True},
            "method 'mine' takes 1 positional arguments; define it as def fn(steps, names)",
        ),
        (lambda step, *, n: 0, {}, "method 'mine': the option 'n' has no default; give it one"),
    ],
)
def test_a_method_that_could_not_be_called_is_refused(own, fn, options, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        register_method(fn, **{"identifier": "mine", **options})


def test_a_method_may_be_registered_again(own):
    register_method(lambda step: step.embeddings[0].sum(-1), "embedding_norm", overwrite=True)
    assert METHODS["embedding_norm"].options() == {}
