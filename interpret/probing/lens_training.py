"""Train a tuned lens: batches of a text, the gradient of the KL divergence in closed form, and steps of Adam.

The frozen model reads each batch once, for all layers. The loss of layer l is KL(final || lens) of its states, averaged
over the N tokens of a batch (Belrose et al. 2023). Its derivative with respect to the logits of the lens is
``(q - p) / N``, with q the distribution of the lens and p that of the model, so the graph begins at the logits and ends
at the maps: no parameter of the model gets a gradient. Logits of many tokens are computed piece by piece.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations._record import record
from interpret.anatomy import anatomy_of, base_of, check_evaluating, check_head, check_length, input_device
from interpret.anatomy.passes import grad_mode
from interpret.device import reuse_freed_memory
from interpret.engine.trunk import Exit, exit_of
from interpret.errors import InputError
from interpret.probing.lens_maps import TunedLens, untrained
from interpret.probing.lenses import divergence
from interpret.prompts.encoding import encode

MOST_LOGITS = 2**22
"""Maximum number of logits in a tensor: 16 MiB in float32, which glibc keeps for the next one."""


@dataclass(frozen=True)
class LensSettings:
    """How a tuned lens is trained."""

    steps: int = 250
    """Number of updates of the maps."""
    batch_size: int = 2
    """Number of pieces of the text in each update."""
    length: int = 64
    """Number of tokens of a piece, without opening tokens such as <s>."""
    lr: float = 1e-3
    """Learning rate of Adam at the first step; it decreases linearly to 0."""
    seed: int = 0
    """Random seed of the order of the pieces."""

    def check(self) -> None:
        """Check the numbers.

        Raises:
            InputError: if one is not above 0.
        """
        for name in ("steps", "batch_size", "length", "lr"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; give a number above 0")


def pieces_of(tokenizer: PreTrainedTokenizerBase, text: str, what: str, settings: LensSettings) -> list[list[int]]:
    """Cut a text into pieces of equal length, each after the opening tokens that the model expects.

    Args:
        tokenizer: the model's tokenizer.
        text: the text; what is left over at its end is not used.
        what: the text, as messages name it.
        settings: how long pieces are, and how many a batch has.

    Raises:
        InputError: if the text is empty, or shorter than a batch.
    """
    if not text.strip():
        raise InputError(f"{what} is empty; give a text to train the lens on")
    encoding = encode(tokenizer, text)
    opening, ids = list(encoding.ids[: encoding.n_opening]), encoding.ids[encoding.n_opening :]
    n_pieces = len(ids) // settings.length
    if n_pieces < settings.batch_size:
        raise InputError(
            f"{what} has {len(ids)} tokens, fewer than a batch of {settings.batch_size} pieces of {settings.length} "
            "tokens; give a longer text, or a smaller batch size or length"
        )
    return [[*opening, *ids[n * settings.length : (n + 1) * settings.length]] for n in range(n_pieces)]


def batch_at(pieces: Sequence[Sequence[int]], step: int, settings: LensSettings) -> list[Sequence[int]]:
    """Return the batch of a step; all pieces are read, in a random order, before one is read again."""
    epoch, number = divmod(step, len(pieces) // settings.batch_size)
    order = list(range(len(pieces)))
    random.Random(f"{settings.seed} {epoch}").shuffle(order)
    first = number * settings.batch_size
    return [pieces[at] for at in order[first : first + settings.batch_size]]


class LensTrainer:
    """The maps of a lens in training, with the state of the optimiser."""

    def __init__(self, model: PreTrainedModel, settings: LensSettings, longest: int) -> None:
        """Check that the model's states can be read, and begin with the logit lens.

        Args:
            model: a causal LM of a supported family, in evaluation mode.
            settings: how the lens is trained.
            longest: number of tokens of the longest piece.

        Raises:
            InputError: if the model is in training mode, or cannot read a piece.
            UnsupportedModelError: if final norm and unembedding cannot be run apart from the model.
        """
        check_evaluating(model)
        check_head(model)
        check_length(model, "a piece of the text", longest)
        anatomy = anatomy_of(model)
        reuse_freed_memory()
        self.model, self.settings, self.step = model, settings, 0
        self.end: Exit = exit_of(model)
        self.n_layers = len(anatomy.layers)
        self.lens = untrained(self.n_layers, anatomy.width, self.end.device)
        self._optimiser = torch.optim.Adam([self.lens.weight, self.lens.bias], lr=settings.lr)

    def update(self, batch: Sequence[Sequence[int]]) -> list[float]:
        """Make one step of the optimiser, and return the KL of each layer before it, [L], in nats per token.

        Raises:
            InputError: if a loss is not finite: the training diverges, or the model gives NaN.
        """
        kl, at_weight, at_bias = divergences(self.end, self.lens, self.streams(batch))
        found: list[float] = kl.tolist()
        for layer, loss in enumerate(found):
            if not isfinite(loss):
                raise InputError(
                    f"the loss of layer {layer} is not finite at step {self.step + 1}; lower the learning rate "
                    f"{self.settings.lr}, or open the model in float32"
                )
        self.lens.weight.grad, self.lens.bias.grad = at_weight, at_bias
        for group in self._optimiser.param_groups:
            group["lr"] = self.settings.lr * (1 - self.step / self.settings.steps)
        self._optimiser.step()
        self.step += 1
        return found

    def streams(self, batch: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the states before each layer and after the last, L + 1 tensors [N, D], from one pass."""
        names = [f"resid_pre.{layer}" for layer in range(self.n_layers)] + [f"resid_post.{self.n_layers - 1}"]
        ids = torch.tensor([list(piece) for piece in batch], device=input_device(self.model))  # [B, T]
        with grad_mode(False), record(self.model, names) as seen:
            base_of(self.model)(ids, attention_mask=torch.ones_like(ids), use_cache=False)
        return [seen[name].flatten(0, 1).to(self.end.device) for name in names]

    def state(self) -> dict[str, Tensor]:
        """Return everything that later steps depend on: maps, moments of Adam and the number of steps."""
        found = {"step": torch.tensor(self.step), "weight": self.lens.weight, "bias": self.lens.bias}
        for name, value in (("weight", self.lens.weight), ("bias", self.lens.bias)):
            for part, moment in self._optimiser.state[value].items():
                found[f"{name}.{part}"] = moment
        return {name: value.detach().cpu().contiguous() for name, value in found.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a state that ``state`` has returned."""
        self.step = int(state["step"])
        for name, value in (("weight", self.lens.weight), ("bias", self.lens.bias)):
            value.copy_(state[name])
            parts = {key.partition(".")[2]: one for key, one in state.items() if key.startswith(f"{name}.")}
            # Adam keeps the number of steps on the CPU.
            self._optimiser.state[value] = {
                part: one if part == "step" else one.to(value.device) for part, one in parts.items()
            }


def divergences(end: Exit, lens: TunedLens, streams: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean KL(final || lens) of each layer, and its derivatives at the maps.

    Args:
        end: final norm and unembedding of the model.
        lens: the maps.
        streams: L + 1 tensors [N, D]: the states before each layer, and after the last.

    Returns:
        The KL, [L], in nats per token, its derivative at each A, [L, D, D], and at each b, [L, D].
    """
    n_tokens, size = len(streams[0]), max(1, MOST_LOGITS // end.n_logits)
    kl = torch.zeros(len(streams) - 1, device=end.device)
    at_weight, at_bias = torch.zeros_like(lens.weight), torch.zeros_like(lens.bias)
    for first in range(0, n_tokens, size):
        some = [stream[first : first + size] for stream in streams]
        with grad_mode(False):
            log_p = end.logits(some[-1]).log_softmax(-1)  # [n, V]
            p = log_p.exp()
        for layer, states in enumerate(some[:-1]):
            loss, *slopes = _one_layer(end, lens, layer, states, p, log_p)
            kl[layer] += loss / n_tokens
            at_weight[layer] += slopes[0] / n_tokens
            at_bias[layer] += slopes[1] / n_tokens
    return kl, at_weight, at_bias


def _one_layer(
    end: Exit, lens: TunedLens, layer: int, states: Tensor, p: Tensor, log_p: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum over n states of KL(final || lens), and its derivatives at the map of their layer.

    Args:
        end: final norm and unembedding.
        lens: the maps.
        layer: the layer whose input the states are.
        states: [n, D].
        p: [n, V], the model's own probabilities.
        log_p: [n, V], their logarithms.
    """
    weight, bias = (value[layer].detach()[None].requires_grad_() for value in (lens.weight, lens.bias))
    with grad_mode(True):
        logits = end.logits(TunedLens(weight, bias).translated(0, states))  # [n, V]
    with grad_mode(False):
        log_q = logits.log_softmax(-1)
        loss = divergence(p, log_p, log_q).sum()
        at_logits = log_q.exp_().sub_(p)
    at_weight, at_bias = torch.autograd.grad(logits, (weight, bias), at_logits)
    return loss, at_weight[0], at_bias[0]
