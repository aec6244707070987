"""Models that are not of a family of the table, or not quite: other causal LMs, adapters and wrappers."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

V, D, L = 450, 32, 2
_PLAIN = {
    "vocab_size": V,
    "hidden_size": D,
    "num_hidden_layers": L,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_BART = {
    "vocab_size": V,
    "d_model": D,
    "decoder_layers": L,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "scale_embedding": True,
    "max_position_embeddings": 64,
}
_XGLM = {"vocab_size": V, "d_model": D, "num_layers": L, "attention_heads": 4, "ffn_dim": 48}
_MUP = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3, "logits_scaling": 8.0}
_CAP = {"final_logit_softcapping": 8.0, "num_key_value_heads": 2, "head_dim": 8}
CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "BioGptForCausalLM": ("BioGptConfig", _PLAIN),
    "XGLMForCausalLM": ("XGLMConfig", _XGLM),
    "BartForCausalLM": ("BartConfig", _BART),
    "PegasusForCausalLM": ("PegasusConfig", _BART),
    "MarianForCausalLM": ("MarianConfig", _BART),
    "BloomForCausalLM": ("BloomConfig", {"vocab_size": V, "hidden_size": D, "n_layer": L, "n_head": 4}),
    "CTRLLMHeadModel": ("CTRLConfig", {"vocab_size": V, "n_embd": D, "n_layer": L, "n_head": 4, "dff": 48}),
    "Llama4ForCausalLM": (
        "Llama4TextConfig",
        _PLAIN | {"head_dim": 8, "num_key_value_heads": 4, "intermediate_size_mlp": 48, "moe_layers": []},
    ),
    "MptForCausalLM": ("MptConfig", {"vocab_size": V, "d_model": D, "n_layers": L, "n_heads": 4, "max_seq_len": 64}),
    "GraniteMoeForCausalLM": ("GraniteMoeConfig", _PLAIN | _MUP),
    "Cohere2ForCausalLM": ("Cohere2Config", _PLAIN),
    "VaultGemmaForCausalLM": ("VaultGemmaConfig", _PLAIN | _CAP),
}
"""Causal LMs without a row whose logits can be computed from their states, in some release of transformers."""
CAUSAL = {name: row for name, row in CAUSAL.items() if hasattr(transformers, name)}


def built(model: str, config: str, shape: dict[str, Any]) -> PreTrainedModel:
    """Build a model with random weights."""
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "decoder_start_token_id": 0}
    return randomised(getattr(transformers, model)(getattr(transformers, config)(**tokens, **shape)))


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    """Give a model random weights, around 1 for norms."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                parameter.normal_(std=0.2, generator=generator)
                if "Norm" in type(module).__name__ and name == "weight":
                    parameter.add_(1.0)
    return model.eval()


def bert(*, is_decoder: bool) -> PreTrainedModel:
    """A BERT with a language-model head, which has a layer between its last state and the unembedding."""
    return built("BertLMHeadModel", "BertConfig", _PLAIN | {"is_decoder": is_decoder})


class DividedLogits(LlamaForCausalLM):
    """A Llama whose logits are divided by a setting that the row of its family does not name."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Divide the logits."""
        output = super().forward(*args, **kwargs)
        output.logits = output.logits / self.config.logits_scaling
        return output


class Lora(nn.Module):
    """A low-rank adapter around a linear layer or an embedding, as in PEFT."""

    def __init__(self, base: nn.Module, rank: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        weight = base.weight
        self.base_layer = base
        self.looks_up = isinstance(base, nn.Embedding)
        # GPT-2's Conv1D stores its weight transposed.
        into, out = weight.shape if self.looks_up or type(base).__name__ == "Conv1D" else weight.shape[::-1]
        self.down = nn.Parameter(0.3 * torch.randn(into, rank, generator=generator))
        self.up = nn.Parameter(0.3 * torch.randn(rank, out, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Add the adapter's output."""
        return self.base_layer(x) + (self.down[x] if self.looks_up else x @ self.down) @ self.up


def adapt(model: PreTrainedModel, chosen: Callable[[str], bool]) -> PreTrainedModel:
    """Put adapters around all linear layers whose name is chosen."""
    names = [name for name, module in model.named_modules() if hasattr(module, "weight") and chosen(name)]
    for name in names:
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, child, Lora(getattr(owner, child)))
    return model.eval()


class Peft(nn.Module):
    """A wrapper like those of PEFT: it passes attributes on to the model inside."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model

    def get_base_model(self) -> PreTrainedModel:
        """Return the model, which includes the adapter."""
        return self.base_model.model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model.model, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self.base_model.model(*args, **kwargs)
