"""The batch size changes no number: each analysis in batches of 1 and of 16, for every dtype, 8 and 4 bits, longrope.

In float32 numbers agree within 1e-5. In half precision, a matrix product of one row may be rounded otherwise than that
of several: there, results may differ by as much as states, neurons and probabilities of the stock model do between
the same texts that it reads and writes one by one and together.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import interpret
from interpret.engine.greedy import answers
from interpret.models.quantize import quantize_
from interpret.probing.neurons import neuron_values
from interpret.prompts.batches import pad
from reference.tiny import LONGROPE_LIMIT, longrope_model
from reference.toy_tokenizers import byte_level

TOKENIZER = byte_level()
LONG = "The Eiffel Tower is in the city of Paris. I love eating pizza in the city of Paris"
TEXTS = [LONG, "I love", "Anna's apples are", "We", "I love"]
TEMPLATE = interpret.InterpretationPrompt(TOKENIZER, ("Say", 0, " is ", 0, ":"), name="say")
NEW = 4
_SHAPE = {"vocab_size": 420, "initializer_range": 0.15, "bos_token_id": 1, "eos_token_id": 2}


def llama(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**_SHAPE, **sizes, num_hidden_layers=2, max_position_embeddings=64)).eval()


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**_SHAPE, n_embd=64, n_layer=2, n_head=4, n_positions=64)).eval()


def with_outliers(model: PreTrainedModel) -> PreTrainedModel:
    """Make one feature of one token's embedding large, as in large models: LLM.int8() then leaves it unrounded."""
    token = TOKENIZER(TEXTS[0]).input_ids[3]
    with torch.no_grad():
        model.get_input_embeddings().weight[token, 5] = 40.0
    return model


def relative(states: Tensor) -> Tensor:
    """Return states in units of their norms."""
    return torch.nn.functional.normalize(states.float(), dim=-1)


def cached(model: PreTrainedModel, size: int) -> list[Tensor]:
    cache = interpret.activations.activation_cache(model, TOKENIZER, TEXTS, ["resid_post.*", "logits"], batch_size=size)
    return [cache["logits"].softmax(-1), *(relative(cache[name]) for name in cache.names)]


def neurons(model: PreTrainedModel, size: int) -> list[Tensor]:
    found = neuron_values(model, TOKENIZER, TEXTS, [0, 1], token="mean", batch_size=size)
    return [relative(value) for value in found.values()]


def interpretations(model: PreTrainedModel, size: int) -> list[interpret.records.Interpretation]:
    prompts = [interpret.Prompt(f"p_{n}", text, "x", raw=True) for n, text in enumerate(TEXTS[1:])]
    sources = interpret.plan_sources(model, TOKENIZER, prompts, layers="0,1", tokens="last")
    settings = interpret.selfie.Settings(new_tokens=NEW, prompt_output_tokens=3, batch_size=size)
    return list(interpret.interpretations(model, TOKENIZER, sources, [TEMPLATE], settings))


def interpreted(model: PreTrainedModel, size: int) -> list[Tensor]:
    """Return the texts of all interpretations, and all probabilities of their tokens."""
    rows = interpretations(model, size)
    return [torch.tensor(row.interpretation) for row in rows] + [
        torch.tensor([*row.interpretation_prob, *row.probability_without_insertion, *row.probability_with_wrong_vector])
        for row in rows
    ]


def written(model: PreTrainedModel, size: int) -> list[Tensor]:
    return [torch.tensor([ord(mark) for text in answers(model, TOKENIZER, TEXTS, batch_size=size) for mark in text])]


def attributed(model: PreTrainedModel, size: int, method: str, **options: Any) -> list[Tensor]:
    found = interpret.attribute(model, TOKENIZER, "The Eiffel Tower", LONG, method=method, batch_size=size, **options)
    return [torch.tensor(found.to_frame()["score"].to_numpy(dtype=float))]


ANALYSES: dict[str, Callable[[PreTrainedModel, int], list[Tensor]]] = {
    "activation_cache": cached,
    "neuron_values": neurons,
    "interpretations": interpreted,
    "answers": written,
    "occlusion": partial(attributed, method="occlusion"),
    "integrated_gradients": partial(attributed, method="integrated_gradients", n_steps=5),
}
LOW = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def stored(model: PreTrainedModel, dtype: torch.dtype, bits: int) -> PreTrainedModel:
    """Convert a model to a dtype, and its weights to 8 or 4 bits if asked."""
    model = with_outliers(model).to(dtype)
    return model if bits == 16 else quantize_(model, 8 if bits == 8 else 4)


@cache
def model_of(make: Callable[[], PreTrainedModel], dtype: torch.dtype, bits: int) -> PreTrainedModel:
    return stored(make(), dtype, bits)


@pytest.mark.matrix
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("name", ANALYSES)
def test_in_float32_the_batch_size_changes_no_number(name: str, make: Callable[[], PreTrainedModel], bits: int) -> None:
    model = model_of(make, torch.float32, bits)
    for one, several in zip(ANALYSES[name](model, 1), ANALYSES[name](model, 16), strict=True):
        torch.testing.assert_close(several, one, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def stock_read(model: PreTrainedModel, size: int) -> Tensor:
    """Return the probabilities, logits and layers' outputs of the stock model, [tokens of all texts, ...]."""
    rows = [TOKENIZER(text).input_ids for text in TEXTS]
    found, last = [], []
    handle = model.model.norm.register_forward_pre_hook(lambda module, args: last.append(args[0]))
    for start in range(0, len(rows), size):
        batch = pad(rows[start : start + size], 0, side="right")
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        output = model(**inputs, output_hidden_states=True)
        states = [*output.hidden_states[1:-1], last.pop(), output.logits]
        read = [output.logits.float().softmax(-1), *map(relative, states)]
        found.append(torch.cat(read, dim=-1)[batch.attention_mask.bool()])
    handle.remove()
    return torch.cat(found)


@torch.no_grad()
def stock_neurons(model: PreTrainedModel, size: int) -> Tensor:
    """Return the mean neurons of each text in passes of the stock model, relative to their norm, [2 * texts, F]."""
    found: list[Tensor] = []

    def keep(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        found.extend(relative(value[:n].float().mean(0)) for value, n in zip(args[0], lengths, strict=True))

    handles = [layer.mlp.down_proj.register_forward_pre_hook(keep) for layer in model.model.layers]
    rows = [TOKENIZER(text).input_ids for text in TEXTS]
    for start in range(0, len(rows), size):
        lengths = [len(row) for row in rows[start : start + size]]
        batch = pad(rows[start : start + size], 0, side="right")
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    for handle in handles:
        handle.remove()
    # One row per text and layer: by texts first if they are read one by one, by layers first if they are together.
    by_text = torch.stack(found).unflatten(0, (-1, 2) if size == 1 else (2, -1))
    return by_text if size == 1 else by_text.transpose(0, 1)


Texts = list[tuple[list[int], list[float], list[float]]]
"""Texts: token ids, their probabilities, and those with the state of another row inserted; empty if there is none."""


@contextmanager
def inserting(model: PreTrainedModel, states: list[tuple[int, Tensor]]) -> Iterator[None]:
    """Insert a state, at its layer, into the slots of each row of passes that read the interpretation prompt."""

    def hook(number: int, module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].clone()
        for row, (layer, state) in enumerate(states):
            if layer == number and x.shape[1] >= len(TEMPLATE.ids):
                x[row, list(TEMPLATE.slots)] = state
        return x, *args[1:]

    handles = [
        layer.register_forward_pre_hook(partial(hook, number)) for number, layer in enumerate(model.model.layers)
    ]
    yield
    for handle in handles:
        handle.remove()


@torch.no_grad()
def stock_interpretations(model: PreTrainedModel, size: int) -> Texts:
    """Let the stock model write after the prompt of ``interpretations``, with the same states inserted, in batches."""
    states = []
    for text in TEXTS[1:]:
        output = model(torch.tensor([TOKENIZER(text).input_ids]), output_hidden_states=True)
        states += [(layer, output.hidden_states[layer][0, -1]) for layer in (0, 1)]
    found: Texts = []
    for start in range(0, len(states), size):
        ids = torch.tensor([TEMPLATE.ids] * len(states[start : start + size]))
        past, token, written, p = None, ids, [], []
        with inserting(model, states[start : start + size]):
            for _ in range(NEW):
                output = model(token, past_key_values=past, use_cache=True)
                past, (most, at) = output.past_key_values, output.logits[:, -1].float().softmax(-1).max(-1)
                token = at[:, None]
                written.append(at)
                p.append(most)
        texts = torch.stack(written, dim=1)
        with inserting(model, [states[row - 1] for row in range(start, start + len(ids))]):
            after = model(torch.cat([ids, texts], dim=1)).logits[:, len(TEMPLATE.ids) - 1 : -1].float().softmax(-1)
        wrong = after.gather(2, texts[..., None])[..., 0]
        found += zip(texts.tolist(), torch.stack(p, dim=1).tolist(), wrong.tolist(), strict=True)
    return found


def own_interpretations(model: PreTrainedModel, size: int) -> Texts:
    rows = interpretations(model, size)
    return [(row.interpretation, row.interpretation_prob, row.probability_with_wrong_vector) for row in rows]


def of_texts(alone: Texts, beside: Texts) -> float:
    """Return the largest difference of two probabilities that have the same tokens before them."""
    largest = 0.0
    for (one, p, p_wrong), (other, q, q_wrong) in zip(alone, beside, strict=True):
        # Of two tokens that are equally likely but for rounding, either may be chosen; then the texts are different.
        same = next((n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), NEW)
        pairs = [*zip(p[: same + 1], q[: same + 1], strict=True)]
        pairs += zip(p_wrong[:same], q_wrong[:same], strict=True)
        largest = max([largest, *(abs(a - b) for a, b in pairs)])
    return largest


def of_tensors(alone: list[Tensor], beside: list[Tensor]) -> float:
    return max((one.float() - other.float()).abs().max().item() for one, other in zip(alone, beside, strict=True))


@pytest.mark.matrix
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("dtype", LOW)
def test_in_half_precision_rows_differ_no_more_than_those_of_the_stock_model(dtype: str, bits: int) -> None:
    differences = []
    for seed in range(3):
        model = stored(llama(seed), LOW[dtype], bits)
        differences.append(
            [
                of_tensors(cached(model, 1), cached(model, 16)),
                of_tensors(neurons(model, 1), neurons(model, 16)),
                of_texts(own_interpretations(model, 1), own_interpretations(model, 16)),
                of_tensors([stock_read(model, 1)], [stock_read(model, 16)]),
                of_tensors([stock_neurons(model, 1)], [stock_neurons(model, 16)]),
                of_texts(stock_interpretations(model, 1), stock_interpretations(model, 16)),
            ]
        )
    own, stock = torch.tensor(differences).amax(0).split(3)
    # Scores, means and probabilities are computed in float32, whose sums have another order in other batches.
    assert (own <= stock + 1e-5).all(), (own, stock)


needs_longrope = pytest.mark.skipif(not hasattr(transformers, "Phi3Config"), reason="this release has no longrope")


@needs_longrope
@pytest.mark.parametrize("name", ["activation_cache", "neuron_values", "answers", "occlusion"])
@pytest.mark.parametrize("family", ["Phi3", "Llama"])
def test_texts_on_both_sides_of_a_longrope_limit_do_not_change_each_other(family: str, name: str) -> None:
    model = longrope_model(family, vocabulary=420)
    lengths = [len(TOKENIZER(text).input_ids) for text in TEXTS]
    assert min(lengths) < LONGROPE_LIMIT < max(lengths)
    for one, several in zip(ANALYSES[name](model, 1), ANALYSES[name](model, 16), strict=True):
        torch.testing.assert_close(several, one, atol=1e-5, rtol=1e-5)


@needs_longrope
def test_each_step_of_an_attribution_has_the_rotary_embeddings_of_its_own_text() -> None:
    model, prompt = longrope_model(vocabulary=420), "The Eiffel Tower"
    ids = TOKENIZER(LONG).input_ids
    assert len(TOKENIZER(prompt).input_ids) < LONGROPE_LIMIT < len(ids) - 1
    table = interpret.attribute(model, TOKENIZER, prompt, LONG, method="occlusion").to_frame()
    embed = model.get_input_embeddings()
    for column, of_step in table.groupby("step_position"):
        with torch.no_grad():
            texts = embed(torch.tensor([ids[:column]] * (column + 1))).clone()
            for position in range(column):
                texts[position, position] = 0
            p = model(inputs_embeds=texts, use_cache=False).logits[:, -1].softmax(-1)[:, ids[column]]
        assert of_step["score"].tolist() == pytest.approx((p[-1] - p[:-1]).tolist(), abs=1e-5)
