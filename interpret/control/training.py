"""Control of reasoning: train one MLP to change a hidden state, and restore its weights afterwards.

SelfIE (Chen, Vondrick, Mao 2024, arXiv 2403.10949, section on control of reasoning) changes a hidden state by training
only the MLP that writes it. Here, ``layer`` is an index of ``hidden_states``, 1 to L, and the state that the MLP of
decoder layer ``layer - 1`` writes at a token is::

    x = residual + MLP(pre_mlp)          (followed by the layer's last norm in post-norm layers, as in OPT-350m)

``pre_mlp`` and ``residual`` do not depend on that MLP; they are recorded once, in one pass over the prompt. For
``layer == L``, x is the state before the final norm. Both controls are context managers: the model has the trained
weights inside the ``with`` block, and its original tensors after it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations._record import record
from interpret.anatomy import (
    Anatomy,
    anatomy_of,
    base_of,
    check_length,
    input_device,
    residual_factor,
    text_config,
    unwrapping,
)
from interpret.anatomy.changes import Changes
from interpret.anatomy.passes import evaluating, grad_mode
from interpret.engine.greedy import answers
from interpret.errors import InputError, UnsupportedModelError
from interpret.prompts.words import contains_words, pattern
from interpret.work.progress import counted, showing

Scorer = Callable[[str], float]
"""Maps a text to its reward: 1 to strengthen the state the text describes, -1 to weaken it, 0 for no change."""
Reader = Callable[[Tensor], Sequence[str]]
"""Maps states, [P, D], to P texts: for example a self-interpretation of each state, or ``read_answer``."""


@dataclass(frozen=True)
class RewardStep:
    """The P states at one training step of reinforcement control."""

    texts: list[str]
    """[P] the reader's text for each state."""
    rewards: list[float]
    """[P] the scorer's reward of each text."""
    alignment: list[float]
    """[P] x . x_0 / ||x_0||^2 with x_0 the state before training: 1 at the start, above 1 if strengthened."""


# ---------------------------------------------------------------------------------------------- the controls


@unwrapping
@contextmanager
def supervised_control(
    model: PreTrainedModel,
    ids: Sequence[int] | Tensor,
    *,
    layer: int,
    positions: Sequence[int],
    target: Tensor,
    steps: int = 10,
    lr: float = 3e-4,
    progress: bool = True,
) -> Iterator[list[float]]:
    """Train one MLP so that the states it writes match a target: Adam on the mean of ``(x - target)^2``.

    Args:
        model: a causal LM of a supported family, or its base model.
        ids: token ids of the prompt, [T], without padding.
        layer: index of the hidden state, 1 to L; see the module docstring.
        positions: P token positions whose states are trained; negative positions count from the end.
        target: [D], shared by all positions, or [P, D].
        steps: number of updates; the paper uses 10 to 20.
        lr: learning rate.
        progress: show a progress bar of the updates, in a terminal or a notebook.

    Yields:
        ``steps + 1`` losses: entry i is the loss after i updates, so ``[0]`` belongs to the original model and
        ``[-1]`` to the model inside the block. Training runs in evaluation mode and float32; gradients and flags of
        the model's parameters do not change.

    Raises:
        InputError: for an invalid layer, position, target, number of steps or learning rate, or if training
            diverges.
        UnsupportedModelError: for a model that is not of a supported family.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2))
    >>> with supervised_control(model, [3, 1, 4], layer=1, positions=[-1], target=torch.ones(8)) as losses:
    ...     losses[-1] < losses[0]
    True
    """
    site = _find(model, ids, layer, positions)
    goal = _checked_target(target, site)
    losses: list[float] = []

    def objective(states: Tensor) -> Tensor:
        loss = mse_loss(states, goal)
        losses.append(loss.item())
        return loss

    with _trained(model, site, objective, steps, lr, progress):
        yield losses


@unwrapping
@contextmanager
def reinforcement_control(
    model: PreTrainedModel,
    ids: Sequence[int] | Tensor,
    *,
    layer: int,
    positions: Sequence[int],
    reader: Reader,
    scorer: Scorer,
    steps: int = 10,
    lr: float = 3e-4,
    progress: bool = True,
) -> Iterator[list[RewardStep]]:
    """Train one MLP by rewards: a positive reward lengthens a state, a negative reward shortens it.

    Before each update, the reader describes every state in a text and the scorer rewards each text; then Adam takes a
    step on ``reward_loss``. The step is skipped if all rewards are 0, as Adam's momentum alone would keep changing the
    weights. The value of the loss is always minus the mean reward; ``alignment`` shows how the states change.

    Args:
        model: a causal LM of a supported family, or its base model.
        ids: token ids of the prompt, [T], without padding.
        layer: index of the hidden state, 1 to L; see the module docstring.
        positions: P token positions whose states are read and rewarded separately; negative positions count from the
            end.
        reader: called with the current states, [P, D] float32, while the model has the current weights.
        scorer: called with each text; see ``word_scorer``.
        steps: number of updates, at least 1.
        lr: learning rate, above 0.
        progress: as in ``supervised_control``.

    Yields:
        ``steps + 1`` records: entry i describes the states after i updates, ``[-1]`` those inside the block.

    Raises:
        InputError: as ``supervised_control`` raises, and if the reader or the scorer returns an invalid value.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2))
    >>> def reader(states):
    ...     return ["petrol and matches"] * len(states)
    >>> scorer = word_scorer(bad="matches")
    >>> where = {"layer": 1, "positions": [1, 2]}
    >>> with reinforcement_control(model, [3, 1, 4], **where, reader=reader, scorer=scorer) as looks:
    ...     looks[-1].rewards, max(looks[-1].alignment) < 1
    ([-1.0, -1.0], True)
    """
    site = _find(model, ids, layer, positions)
    looks: list[RewardStep] = []
    original = site.write(_copies(site.mlp))

    def objective(states: Tensor) -> Tensor:
        now = states.detach()
        with grad_mode(False):
            texts = _texts(reader, now)
        rewards = [_reward(scorer, text) for text in texts]
        looks.append(RewardStep(texts, rewards, alignment(now, original).tolist()))
        return reward_loss(states, states.new_tensor(rewards))

    with _trained(model, site, objective, steps, lr, progress):
        yield looks


def reward_loss(states: Tensor, rewards: Tensor) -> Tensor:
    """Return the mean over positions of ``-r * (x . x' / ||x'||^2)``, where x' is x detached from the graph.

    The gradient with respect to one of P states is ``-r / P * x / ||x||^2``, so gradient descent lengthens x for
    r > 0 and shortens it for r < 0.

    Args:
        states: x, [P, D].
        rewards: r, [P].
    """
    return -(rewards * alignment(states, states.detach())).mean()


def alignment(states: Tensor, original: Tensor) -> Tensor:
    """Return ``x . x_0 / ||x_0||^2``, [P], for states x and original states x_0, each [P, D]."""
    return (states * original).sum(-1) / original.pow(2).sum(-1)


# ------------------------------------------------------------------------------------------ readers and scorers


def word_scorer(*, good: str | Sequence[str] = (), bad: str | Sequence[str] = ()) -> Scorer:
    """Make a scorer that searches for words: 1 for a text with a good word, -1 with a bad one, 0 with neither or both.

    >>> word_scorer(good="0", bad="1")("10 out of 10")
    0.0
    """
    wanted, unwanted = ([words] if isinstance(words, str) else list(words) for words in (good, bad))
    if not wanted and not unwanted:
        raise InputError("good and bad are both empty: give the scorer at least one word to look for")
    for words in wanted + unwanted:
        pattern(words)  # raises InputError if there is no word to look for

    def score(text: str) -> float:
        return float(any(contains_words(text, w) for w in wanted) - any(contains_words(text, w) for w in unwanted))

    return score


@unwrapping
def read_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, *, new_tokens: int = 30
) -> Reader:
    """Make a reader that returns, for every state, the controlled model's greedy continuation of a prompt."""
    return lambda states: answers(model, tokenizer, [prompt], new_tokens=new_tokens) * len(states)


# ---------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class _Site:
    """An MLP, and its input and residual at P tokens, at least in float32."""

    mlp: nn.Module
    norm: nn.Module | None
    """Norm of the sum, in post-norm layers."""
    after: nn.Module | None
    """Module applied to the MLP's output before the sum, in some families."""
    factor: float
    """The factor on that output, in some families."""
    pre_mlp: Tensor
    """[P, D], input of the MLP."""
    residual: Tensor
    """[P, D], the term that the MLP's output is added to."""

    def write(self, weights: dict[str, Tensor]) -> Tensor:
        """Return the states x, [P, D], computed with these weights of the MLP."""
        written = functional_call(self.mlp, weights, (self.pre_mlp,))
        if self.after is not None:
            written = functional_call(self.after, _copies(self.after), (written,))
        states = self.residual + written * self.factor
        return states if self.norm is None else functional_call(self.norm, _copies(self.norm), (states,))


def _find(model: PreTrainedModel, ids: Sequence[int] | Tensor, layer: int, positions: Sequence[int]) -> _Site:
    """Check layer and positions, and record the MLP's input and residual there."""
    anatomy = anatomy_of(model)
    n_layers = len(anatomy.layers)
    if layer == 0:
        raise InputError(f"layer 0 is the embedding, which no MLP writes: give a layer from 1 to {n_layers}")
    if not isinstance(layer, int) or layer not in range(1, n_layers + 1):
        raise InputError(f"layer {layer!r} does not exist: give an index of hidden_states from 1 to {n_layers}")
    row = _checked_ids(model, ids)  # [1, T]
    chosen = _checked_positions(positions, row.shape[1])
    block, family = anatomy.layers[layer - 1], anatomy.family
    after = family.parts.mlp_after if family.parts is not None else ""
    mlp = _mlp_of(anatomy, block, after)
    _check_trainable(mlp, layer)
    names = [f"mlp_in.{layer - 1}", f"resid_mid.{layer - 1}"]
    with torch.inference_mode(False), torch.no_grad(), evaluating(model), record(model, names) as seen:
        base_of(model)(row, attention_mask=torch.ones_like(row), use_cache=False)
        pre_mlp, residual = (_float(seen[name][0, chosen]) for name in names)
    norm = block.get_submodule(family.mlp_norm) if anatomy.block == "post_norm" else None
    last = block.get_submodule(after) if after else None
    return _Site(mlp, norm, last, residual_factor(anatomy), pre_mlp, residual)


def _mlp_of(anatomy: Anatomy, block: nn.Module, after: str) -> nn.Module:
    """Return the MLP of a layer: one module, or those that follow each other in families without such a module."""
    first, last = anatomy.family.mlp_first, anatomy.family.mlp_last
    if last in (first, after) or last.startswith(f"{first}."):
        return block.get_submodule(first)
    if first.startswith(f"{last}."):
        return block.get_submodule(last)
    paths = (first, anatomy.neuron_parts.activation, last)
    return nn.Sequential(*(block.get_submodule(path) for path in paths))


@contextmanager
def _trained(
    model: PreTrainedModel, site: _Site, objective: Callable[[Tensor], Tensor], steps: int, lr: float, progress: bool
) -> Iterator[None]:
    """Minimise ``objective(x)`` by ``steps`` updates of the MLP; the trained weights hold inside the ``with`` block."""
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps is {steps!r}: give a whole number of at least 1")
    if not (math.isfinite(lr) and lr > 0):
        raise InputError(f"lr is {lr!r}: give a learning rate above 0, such as 3e-4")
    with _own_weights(site.mlp):
        shown = showing("Training", shown=progress)
        with shown, torch.inference_mode(False), torch.enable_grad(), evaluating(model):
            _descend(site, objective, steps, lr)
        yield


def _descend(site: _Site, objective: Callable[[Tensor], Tensor], steps: int, lr: float) -> None:
    # Train float32 copies and round them into the model: in half precision, Adam's squared gradients round to zero.
    # The model's own parameters are not part of the graph, so their gradients and flags do not change.
    weights = _copies(site.mlp)
    optimizer = torch.optim.Adam([copy.requires_grad_() for copy in weights.values()], lr=lr)
    for step in counted(range(steps + 1)):
        loss = objective(site.write(weights))
        if not loss.isfinite():
            raise InputError(
                f"training diverges: after {step} steps the loss is {loss.item()}; give a smaller lr than {lr}"
            )
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            if any(copy.grad is not None and copy.grad.any() for copy in weights.values()):
                optimizer.step()
            for name, parameter in site.mlp.named_parameters():
                parameter.data.copy_(weights[name].detach())


@contextmanager
def _own_weights(module: nn.Module) -> Iterator[None]:
    """Replace the data of parameters by copies inside the ``with`` block, and restore the original tensors after it."""
    kept = [(parameter, parameter.data) for parameter in module.parameters()]

    def put_back() -> None:
        for parameter, data in kept:
            parameter.data = data.to(parameter.device, parameter.dtype)  # the body may have moved the model

    with Changes() as change, change:
        change.undo(put_back)
        for parameter, data in kept:
            parameter.data = data.clone()
        yield


def _copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: _float(parameter.detach()).clone() for name, parameter in module.named_parameters()}


def _float(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# ---------------------------------------------------------------------------------------------------- checking


def _checked_ids(model: PreTrainedModel, ids: Sequence[int] | Tensor) -> Tensor:
    """Return the prompt as a batch of one row, [1, T], on the model's input device."""
    row = torch.as_tensor(ids)
    row = row if row.dim() == 2 else row[None]
    if row.dim() != 2 or len(row) != 1 or not row.numel() or row.is_floating_point():
        raise InputError(
            f"ids has the shape {list(row.shape)} and dtype {row.dtype}: give the token ids of one prompt, at least one"
        )
    size = text_config(model).vocab_size
    for token in row[0].tolist():
        if not 0 <= token < size:
            raise InputError(f"ids contains {token}; this model has token ids 0 to {size - 1}")
    check_length(model, "ids", row.shape[1])
    return row.to(input_device(model))


def _checked_positions(positions: Sequence[int], count: int) -> list[int]:
    for position in positions:
        if position not in range(-count, count):
            raise InputError(f"position {position!r} does not exist: this prompt has tokens 0 to {count - 1}")
    chosen = [int(position) % count for position in positions]
    if len(set(chosen)) != len(chosen) or not chosen:
        raise InputError(f"positions resolve to {chosen}: give at least one token position, without repeats")
    return chosen


def _checked_target(target: Tensor, site: _Site) -> Tensor:
    """Return the target with the shape, dtype and device of the states: [P, D]."""
    both = list(site.residual.shape)
    with torch.inference_mode(False):
        target = target.detach().clone()  # tensors created in inference mode cannot be part of a graph
    if list(target.shape) not in (both, both[1:]):
        raise InputError(
            f"target has the shape {list(target.shape)}: give {both[1:]}, or {both} with one row per position"
        )
    if not target.isfinite().all():
        raise InputError("target contains values that are not finite (NaN or infinity)")
    return target.to(site.residual).expand(both)


def _check_trainable(mlp: nn.Module, layer: int) -> None:
    if any("expert" in name for name, _ in mlp.named_modules()):
        raise UnsupportedModelError(
            f"the MLP that writes layer {layer} is a mixture of experts, which runs other weights for other tokens; "
            "control trains MLPs whose weights all tokens share"
        )
    for name, parameter in mlp.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            state = "offloaded" if parameter.is_meta else f"quantised ({parameter.dtype})"
            raise InputError(
                f"{name!r} of the MLP that writes layer {layer} is {state}, so it cannot be trained: "
                "load the model unquantised and without offloading"
            )


def _texts(reader: Reader, states: Tensor) -> list[str]:
    texts = reader(states)
    if isinstance(texts, str) or len(texts) != len(states):
        raise InputError(f"the reader returned {texts!r}: it has to return {len(states)} texts, one per state")
    return list(texts)


def _reward(scorer: Scorer, text: str) -> float:
    reward = scorer(text)
    if not isinstance(reward, (int, float)) or not math.isfinite(reward):
        raise InputError(f"the scorer returned {reward!r} for {text!r}: it has to return a finite number")
    return float(reward)
