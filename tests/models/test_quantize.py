"""Weights in 8 and 4 bits: how much results change, and what must not change."""

import copy
import logging
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from interpret.activations.cache import activation_cache
from interpret.engine.greedy import write_after
from interpret.errors import ModelError
from interpret.models.identity import model_identity
from interpret.models.quantize import quantize_, unrounded_
from interpret.prompts.batches import pad
from reference.devices import needs_a_gpu

Linear8bitLt = pytest.importorskip("bitsandbytes.nn").Linear8bitLt
EightBitLinear = pytest.importorskip("interpret.models.eight_bit").EightBitLinear

IDS = torch.arange(18).reshape(2, 9)  # [B, T]
BOUND = {8: 0.05, 4: 0.3}
"""Relative error of the logits of tiny random models; 8 bits give 0.01-0.02, 4 bits give 0.11-0.23."""


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=48, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=48, n_embd=64, n_layer=2, n_head=4, n_positions=32, initializer_range=0.1)
    model = GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zeros in a new model, so that a lost bias would not be noticed
            nn.init.normal_(parameter, std=0.5)
    return model


MODELS: list[Callable[[], PreTrainedModel]] = [llama, gpt2]


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


def input_gradient(model: PreTrainedModel) -> Tensor:
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()  # [B, T, D]
    model(inputs_embeds=embedded).logits[:, -1, 7].sum().backward()
    assert embedded.grad is not None
    return embedded.grad


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("bits", [8, 4])
def test_logits_stay_near_those_of_full_precision(make: Callable[[], PreTrainedModel], bits: int) -> None:
    model = quantize_(make(), bits)
    error = relative_error(logits(model), logits(make()))
    assert 0 < error < BOUND[bits]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize(("bits", "cosine"), [(8, 0.99), (4, 0.9)])
def test_gradients_reach_the_input(make: Callable[[], PreTrainedModel], bits: int, cosine: float) -> None:
    model = quantize_(make(), bits)
    got, wanted = input_gradient(model), input_gradient(make())
    assert torch.cosine_similarity(got.flatten(), wanted.flatten(), dim=0) > cosine


@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_are_the_same_after_a_pass_without_them(bits: int) -> None:
    """bitsandbytes repacks 4-bit weights on such a pass, on CPUs with AVX512-BF16, and loses later gradients."""
    fresh, used = quantize_(llama(), bits), quantize_(llama(), bits)
    before = logits(used)
    assert torch.equal(input_gradient(used), input_gradient(fresh))
    assert torch.equal(logits(used), before)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_number_format_can_be_quantised(bits: int, dtype: torch.dtype) -> None:
    model = quantize_(llama().to(dtype), bits)
    assert model.dtype == dtype
    assert relative_error(logits(model), logits(llama())) < BOUND[bits] + 0.02


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("bits", [8, 4])
def test_all_linear_layers_but_the_head_are_replaced(make: Callable[[], PreTrainedModel], bits: int) -> None:
    plain, model = make(), quantize_(make(), bits)
    replaced = {name for name, module in plain.named_modules() if type(module) is not type(model.get_submodule(name))}
    per_layer = 7 if make is llama else 4
    assert len(replaced) == 2 * per_layer
    head = model.get_output_embeddings()
    assert type(head) is nn.Linear
    assert torch.equal(head.weight, plain.get_output_embeddings().weight)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(("bits", "share"), [(8, 0.25), (4, 0.15)])
def test_weights_take_a_fraction_of_the_memory(bits: int, share: float) -> None:
    plain, model = llama(), quantize_(llama(), bits)
    name = "model.layers.0.mlp.up_proj"
    before, after = plain.get_submodule(name).weight, model.get_submodule(name).weight
    assert after.nelement() * after.element_size() <= share * before.nelement() * before.element_size()


@pytest.mark.parametrize("bits", [8, 4])
def test_quantising_draws_no_random_numbers(bits: int) -> None:
    model = llama()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    quantize_(model, bits)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_model_can_be_copied_and_moved(bits: int) -> None:
    model = quantize_(llama(), bits)
    wanted = logits(model)
    assert torch.equal(logits(copy.deepcopy(model)), wanted)
    assert torch.equal(logits(model.to("cpu")), wanted)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_layer_under_two_names_stays_one_layer(bits: int) -> None:
    model = llama()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    quantize_(model, bits)
    assert model.model.layers[1].mlp.up_proj is model.model.layers[0].mlp.up_proj


# ------------------------------------------------------------------------- texts do not change each other


def with_outliers(model: PreTrainedModel) -> PreTrainedModel:
    """Give one token a state with a large value, as in large models, which LLM.int8() does not round."""
    with torch.no_grad():
        model.get_input_embeddings().weight[20, 5] = 40.0
    return model


def as_transformers_opens_it(model: PreTrainedModel) -> PreTrainedModel:
    """Turn the 8-bit layers into those of bitsandbytes, with the threshold that transformers sets."""
    for module in quantize_(model, 8).modules():
        if isinstance(module, EightBitLinear):
            module.__class__ = Linear8bitLt
            module.state.threshold = 6.0
    return model


ROWS = [[3, 4, 5, 6, 7], [8, 9], [10, 20, 11, 12]]


def most_apart(model: PreTrainedModel) -> float:
    """Return the largest difference of logits between a batch and its rows alone, relative to the largest logit."""
    batch = pad(ROWS, 0, side="right")
    with torch.no_grad():
        together = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        alone = [model(torch.tensor([row])).logits[0] for row in ROWS]
    gaps = [(got[: len(one)] - one).abs().max() for got, one in zip(together, alone, strict=True)]
    return float(max(gaps) / together.abs().max())


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_is_in_a_batch_what_it_is_alone(make: Callable[[], PreTrainedModel], bits: int) -> None:
    assert most_apart(quantize_(with_outliers(make()), bits)) < 1e-5


def test_a_token_does_not_depend_on_later_tokens() -> None:
    model = quantize_(with_outliers(llama()), 8)
    with torch.no_grad():
        whole, begin = model(torch.tensor([[3, 4, 20]])).logits, model(torch.tensor([[3, 4]])).logits
    torch.testing.assert_close(whole[:, :2], begin, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", MODELS)
def test_eight_bit_layers_are_the_product_with_their_weights(make: Callable[[], PreTrainedModel]) -> None:
    plain, model = make(), quantize_(make(), 8)
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)) * 10
    for name, layer in model.named_modules():
        if isinstance(layer, EightBitLinear) and layer.in_features == 64:
            linear = plain.get_submodule(name)
            weight = linear.weight.detach() if isinstance(linear, nn.Linear) else linear.weight.detach().T
            bias = 0 if linear.bias is None else linear.bias.detach()
            got, found = layer(x), layer.dequantised(torch.float32)
            # Weights are whole numbers of steps, about half a step from the plain weights at most.
            step = found.abs().amax(1, keepdim=True) / 127
            torch.testing.assert_close(found / step, (found / step).round(), atol=1e-3, rtol=0)
            assert ((found - weight).abs() / step).max() <= 0.6
            torch.testing.assert_close(got, x @ found.T + bias, atol=1e-4, rtol=1e-5)


def test_texts_of_a_model_that_rounds_by_batch_are_run_one_by_one() -> None:
    model = as_transformers_opens_it(with_outliers(llama()))
    assert most_apart(model) > 1e-3  # so the test can fail
    one, several = (activation_cache(model, None, ROWS, "logits", batch_size=size)["logits"] for size in (1, 3))
    assert torch.equal(one, several)
    assert write_after(model, ROWS, 5) == [write_after(model, [row], 5)[0] for row in ROWS]


def test_an_opened_model_with_eight_bit_layers_stops_rounding_states() -> None:
    model = as_transformers_opens_it(with_outliers(llama()))
    unrounded_(model)
    assert most_apart(model) < 1e-5
    assert torch.equal(logits(model), logits(quantize_(with_outliers(llama()), 8)))
    assert model_identity(model)["load_in_8bit"]


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("there_before", [False, True])
def test_quantised_model_runs_on_a_gpu(make: Callable[[], PreTrainedModel], bits: int, there_before: bool) -> None:
    model = make().to("cuda") if there_before else make()
    model = quantize_(model, bits, device="cuda").to("cuda")
    with torch.no_grad():
        got = model(IDS.to("cuda")).logits.cpu()
    assert relative_error(got, logits(make())) < BOUND[bits]


# ------------------------------------------------------------------------------------------- errors and noise


def test_other_numbers_of_bits_are_refused() -> None:
    with pytest.raises(ModelError, match="to 8 or 4 bits, not to 2"):
        quantize_(llama(), 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [80, 96, 200])
def test_four_bits_refuse_widths_that_bitsandbytes_misreads(width: int) -> None:
    model = LlamaForCausalLM(LlamaConfig(**{**llama().config.to_dict(), "intermediate_size": width})).eval()
    with pytest.raises(ModelError, match=rf"model\.layers\.0\.mlp\.down_proj has input width {width}: .* in 8 bits"):
        quantize_(model, 4)
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
    plain = logits(model)
    assert relative_error(logits(quantize_(model, 8)), plain) < BOUND[8]


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_model_is_not_quantised_again(bits: int) -> None:
    model = quantize_(llama(), bits)
    with pytest.raises(ModelError, match="no linear layer to quantise in this LlamaForCausalLM"):
        quantize_(model, 8)


def test_offloaded_weights_are_refused_and_the_model_left_alone() -> None:
    model = llama()
    model.model.layers[1].mlp.up_proj.to("meta")
    with pytest.raises(ModelError, match=r"weights of model\.layers\.1\.mlp\.up_proj are offloaded"):
        quantize_(model, 8)
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear


def test_without_bitsandbytes_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    needs = r"^opening a model in 8 or 4 bits \(.*\) needs bitsandbytes"
    with pytest.raises(ModelError, match=rf'{needs}: pip install "llm-interpret\[(patch|bitsandbytes)\]"$'):
        quantize_(llama(), 8)


def test_bitsandbytes_prints_nothing() -> None:
    """In a separate process, since bitsandbytes prints messages when first imported."""
    script = (
        "import logging; logging.basicConfig()\n"
        "import torch\n"
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "from interpret.models.quantize import quantize_\n"
        "for bits in (8, 4):\n"
        "    model = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=1, n_head=4))\n"
        "    quantize_(model.eval(), bits)(torch.tensor([[3, 4]]))\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore::FutureWarning", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_other_log_messages_of_bitsandbytes_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    quantize_(llama(), 8)
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    logger.warning("something else")
    assert caplog.messages == ["something else"]
    assert logging.getLogger("bitsandbytes").propagate
