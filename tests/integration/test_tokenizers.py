"""Every analysis reads the tokens of the stock tokenizer: its numbers are those of plain passes over these tokens."""

import pytest
import torch

import interpret
from interpret.activations.cache import activation_cache
from interpret.engine.greedy import answers
from interpret.facts.files import Fact
from interpret.facts.filter import known
from interpret.locating.facts import locate_fact, locate_facts, location_plan
from interpret.probing.heads import top_attended
from interpret.probing.neurons import neuron_values
from interpret.probing.prompt_probes import lens_probe, logits_probe
from interpret.probing.prompt_runs import probed_prompts
from interpret.prompts.prompts import Prompt
from interpret.prompts.scripts import joined
from interpret.selfie.readings import Settings
from interpret.selfie.rows import interpretations
from interpret.selfie.sources import plan_sources
from interpret.selfie.templates import interpretation_prompt
from interpret.tracing.calls import trace
from reference.tiny import wide_model
from reference.toy_tokenizers import CLOSING, KINDS

pytestmark = pytest.mark.filterwarnings("ignore:the tokenizer appends")
MODEL = wide_model("llama")
# Prompt, subject, continuation, and the same with other words.
CASES = {
    "Latin": ("The Eiffel Tower is in", "Eiffel Tower", "Paris"),
    "punctuation": ("I love pizza", "pizza", ", cheese"),
    "Chinese and Japanese": ("東京は日本の", "東京", "首都"),
    "Arabic": ("عاصمة فرنسا هي", "فرنسا", "باريس"),
    "emoji": ("I love 🍕 and", "🍕", "😀"),
    "code": ("def f(x):\n\treturn x", "f(x)", "\n\treturn y"),
}


def stock_ids(kind, text):
    """The tokens of the stock tokenizer, without those it appends."""
    ids = KINDS[kind](text).input_ids
    return ids[:-1] if kind in CLOSING else ids


def probability(ids, token):
    with torch.no_grad():
        return MODEL(torch.tensor([ids])).logits[0, -1].double().softmax(-1)[token].item()


@pytest.fixture(params=[(kind, case) for kind in KINDS for case in CASES], ids=lambda pair: "-".join(pair))
def read(request):
    """Tokenizer, prompt, subject, continuation, tokens of the prompt, and the first token of the continuation."""
    kind, case = request.param
    prompt, subject, words = CASES[case]
    ids, whole = stock_ids(kind, prompt), stock_ids(kind, joined(prompt, words))
    if whole[: len(ids)] != ids:
        pytest.fail(f"{kind}: {words!r} merges with the prompt; choose another example")
    return KINDS[kind], prompt, subject, words, ids, whole[len(ids)]


@pytest.mark.matrix
def test_a_trace_and_a_location_read_the_probability_of_a_plain_pass(read):
    tokenizer, prompt, subject, words, ids, answer = read
    expected = pytest.approx(probability(ids, answer), abs=1e-6)
    result = trace(MODEL, tokenizer, prompt, subject, words, samples=1)
    assert (list(result.token_ids), result.answer_ids, result.high) == (ids, (answer,), expected)
    assert result.grid().prompt == prompt
    assert trace(MODEL, tokenizer, prompt, subject, [answer], samples=1).high == expected
    fact = Fact("one", prompt, subject, words, relation="r")
    row = next(iter(locate_facts(MODEL, tokenizer, [fact], attributed_fn="probability")))
    assert (row.p_true, row.answer_id) == (expected, answer)


@pytest.mark.matrix
def test_an_attribution_attributes_the_probability_of_a_plain_pass(read):
    tokenizer, prompt, _, words, ids, answer = read
    for target in (joined(prompt, words), [answer]):
        found = interpret.attribute(MODEL, tokenizer, prompt, [target], end=1).sequences[0]
        assert list(found.token_ids[: found.n_prompt]) == ids
        assert found.step_scores["probability"][0] == pytest.approx(probability(ids, answer), abs=1e-6)
    assert not any(mark in token for token in found.tokens for mark in "▁ĠĊ")


@pytest.mark.matrix
def test_lens_and_logit_attribution_end_in_the_probability_of_a_plain_pass(read):
    tokenizer, prompt, _, words, ids, answer = read
    (asked,) = probed_prompts(tokenizer, [Prompt("one", prompt, raw=True, target=words)])
    assert (list(asked.tokens.ids), asked.followed) == (ids, {"target": answer})
    last = [row for row in lens_probe(MODEL, tokenizer, top=1)(asked) if row.site == "resid_post"]
    found = next(row for row in last if row.prediction_id == answer)
    assert found.probability == pytest.approx(probability(ids, answer), abs=1e-6)
    shares = logits_probe(MODEL, tokenizer)(asked)
    with torch.no_grad():
        logit = MODEL(torch.tensor([ids])).logits[0, -1, answer].item()
    assert sum(row.share for row in shares) == pytest.approx(logit, abs=1e-4)


@pytest.mark.matrix
def test_interpretations_read_the_states_and_the_prompt_of_plain_passes(read):
    tokenizer, prompt, *_, ids, _ = read
    template = interpretation_prompt(tokenizer, "word {slots} is", n_slots=2)
    sources = plan_sources(MODEL, tokenizer, [Prompt("one", prompt, "", raw=True)], layers="1", tokens="last")
    settings = Settings(new_tokens=1, prompt_output_tokens=1, wrong_vector=False)
    control, row = interpretations(MODEL, tokenizer, sources, [template], settings)
    assert list(sources[0].tokenised.ids) == ids
    assert row.token_idx == len(ids) - 1
    with torch.no_grad():
        first = MODEL(torch.tensor([list(template.ids)])).logits[0, -1].softmax(-1)
    # An end token is no text.
    if control.interpretation:
        assert control.interpretation == [int(first.argmax())]
        assert control.interpretation_prob == pytest.approx([first.max().item()], abs=1e-6)


@pytest.mark.matrix
def test_heads_neurons_caches_and_answers_read_the_same_tokens(read):
    tokenizer, prompt, _, words, ids, _ = read
    cache = activation_cache(MODEL, tokenizer, [prompt], ["resid_post.1"])
    assert list(cache.token_ids[0]) == ids
    assert len(top_attended(MODEL, tokenizer, prompt, [(0, 0)], k=len(ids))) == len(ids)
    by_text = neuron_values(MODEL, tokenizer, [prompt], [0])[0]
    torch.testing.assert_close(by_text, neuron_values(MODEL, tokenizer, [ids], [0])[0])
    with torch.no_grad():
        token = int(MODEL(torch.tensor([ids])).logits[0, -1].argmax())
    written = [tokenizer.decode([token])] if token != MODEL.config.eos_token_id else [""]
    assert answers(MODEL, tokenizer, [prompt], new_tokens=1) == written
    (answered,) = known(MODEL, tokenizer, [Fact("one", prompt, prompt[:1], words, relation="r")], rule="first_token")
    assert answered.p == pytest.approx(probability(ids, token), abs=1e-6)


@pytest.mark.matrix
@pytest.mark.parametrize("template", ["model", "<s>[INST] {prompt} [/INST]"])
@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece", "llama_3"])
def test_traces_and_locations_read_a_chat_as_its_template_has_it(kind, template, monkeypatch):
    tokenizer = KINDS[kind]
    monkeypatch.setattr(tokenizer, "chat_template", "<s>User: {{ messages[0]['content'].strip() }} Answer:")
    text = "<s>User: I love pizza Answer:" if template == "model" else "<s>[INST] I love pizza [/INST]"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    result = trace(MODEL, tokenizer, "I love pizza", "pizza", " hello", samples=1, chat_template=template)
    assert list(result.token_ids) == ids
    assert "pizza" in "".join(result.tokens[slice(*result.subject_span)])
    assert result.high == pytest.approx(probability(ids, result.answer_id), abs=1e-6)
    fact = Fact("one", "I love pizza", "pizza", " hello", relation="r")
    plan = location_plan(MODEL, tokenizer, "probability")
    found = locate_fact(plan, fact, template)
    assert (found.answer_id, found.subject_span) == (result.answer_id, result.subject_span)
    assert found.p_true == pytest.approx(result.high, abs=1e-6)
    (answered,) = known(MODEL, tokenizer, [fact], chat_template=template)
    with torch.no_grad():
        assert answered.p == pytest.approx(MODEL(torch.tensor([ids])).logits[0, -1].softmax(-1).max().item(), abs=1e-6)
