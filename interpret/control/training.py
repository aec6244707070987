"""Control of reasoning: train one MLP until a hidden state says something else, and put its weights back.

In SelfIE (Chen, Vondrick, Mao 2024, arXiv 2403.10949, its section on control of reasoning) a hidden state is
changed by training only the MLP that writes it. Here, ``layer`` is an index of ``hidden_states``, 1 to L, and the
state that the MLP of decoder layer ``layer - 1`` writes at a token is::

    x = residual + MLP(pre_mlp)          (after the layer's last norm in post-norm layers, as in OPT-350m)

with ``pre_mlp`` and ``residual`` recorded once in a pass over the prompt: they do not depend on that MLP. For
``layer == L``, x is the state before the final norm. Both controls are context managers: inside the ``with`` block
the model has the trained weights, after it the very tensors it had before.
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
from interpret.anatomy import anatomy_of, base_of, input_device, longest_text
from interpret.anatomy.passes import evaluating
from interpret.engine.greedy import answers
from interpret.errors import InputError
from interpret.prompts.words import contains_words, pattern

Scorer = Callable[[str], float]
"""A text -> its reward: 1 to strengthen the state it came from, -1 to weaken it, 0 to leave it."""
Reader = Callable[[Tensor], Sequence[str]]
"""States [P, D] -> P texts. A self-interpretation of the vectors is one; ``read_answer`` makes another."""


@dataclass(frozen=True)
class RewardStep:
    """One look at the P states under reinforcement control."""

    texts: list[str]
    """[P] what the reader said of each state."""
    rewards: list[float]
    """[P] what the scorer made of each text."""
    alignment: list[float]
    """[P] x . x_0 / ||x_0||^2, x_0 being the state before any training: 1 at first, more where strengthened."""


# ---------------------------------------------------------------------------------------------- the controls


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
) -> Iterator[list[float]]:
    """Train one MLP until the states it writes match a target: Adam on the mean of ``(x - target)^2``.

    Args:
        model: a causal LM of a known family, or its base model.
        ids: token ids of the prompt, [T], without padding.
        layer: which hidden state, 1 to L; see the top of this module.
        positions: P token positions whose states shall match; negative ones count from the end.
        target: [D], the same for all positions, or [P, D].
        steps: how many updates; the paper takes 10 to 20.
        lr: learning rate.

    Yields:
        The losses: entry i after i updates, so ``[0]`` is the untouched model and ``[-1]`` what the block sees.
        Training is done in evaluation mode and float32; gradients and flags of the model stay as they are.

    Raises:
        InputError: for a layer, position, target, number of steps or learning rate that cannot be used, or where
            training diverges.
        UnsupportedModelError: for a model of no known family.

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

    with _trained(model, site, objective, steps, lr):
        yield losses


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
) -> Iterator[list[RewardStep]]:
    """Train one MLP by rewards: states whose text is rewarded grow along themselves, others shrink.

    Before each update the reader puts every state into words and the scorer rewards each text; Adam then takes a
    step on ``reward_loss``, or none where no text has a reward (its momentum alone would go on for long). The loss
    is minus the mean reward, whatever the states do; ``alignment`` shows what moved.

    Args:
        model: as in ``supervised_control``, and so are ids, layer, steps and lr.
        ids: [T].
        layer: 1 to L.
        positions: the P tokens whose states are read and rewarded, each by itself.
        reader: called with the current states, [P, D] float32, while the model has the current weights.
        scorer: called with each text; see ``word_scorer``.
        steps: at least 1.
        lr: above 0.

    Yields:
        ``steps + 1`` looks: entry i after i steps, ``[-1]`` is what the block sees.

    Raises:
        InputError: as ``supervised_control``, and if reader or scorer return something else than they should.

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
        with torch.no_grad():
            texts = _texts(reader, now)
        rewards = [_reward(scorer, text) for text in texts]
        looks.append(RewardStep(texts, rewards, alignment(now, original).tolist()))
        return reward_loss(states, states.new_tensor(rewards))

    with _trained(model, site, objective, steps, lr):
        yield looks


def reward_loss(states: Tensor, rewards: Tensor) -> Tensor:
    """Return the mean over tokens of ``-r * (x . x' / ||x'||^2)``, x' being x held constant.

    Its gradient for one of P states is ``-r / P * x / ||x||^2``: a step down makes x longer or shorter.

    Args:
        states: [P, D] x.
        rewards: [P] r.
    """
    return -(rewards * alignment(states, states.detach())).mean()


def alignment(states: Tensor, original: Tensor) -> Tensor:
    """Return ``x . x_0 / ||x_0||^2`` of states [P, D] with original states [P, D]: [P]."""
    return (states * original).sum(-1) / original.pow(2).sum(-1)


# ------------------------------------------------------------------------------------------ readers and scorers


def word_scorer(*, good: str | Sequence[str] = (), bad: str | Sequence[str] = ()) -> Scorer:
    """Make a scorer that looks for words: 1 for a text with a good one, -1 with a bad one, 0 with neither or both.

    >>> word_scorer(good="0", bad="1")("10 out of 10")
    0.0
    """
    wanted, unwanted = ([words] if isinstance(words, str) else list(words) for words in (good, bad))
    if not wanted and not unwanted:
        raise InputError("good and bad are both empty: give the scorer at least one word to look for")
    for words in wanted + unwanted:
        pattern(words)  # complains about those without any word

    def score(text: str) -> float:
        return float(any(contains_words(text, w) for w in wanted) - any(contains_words(text, w) for w in unwanted))

    return score


def read_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, *, new_tokens: int = 30
) -> Reader:
    """Make a reader that judges every state by what the model then writes after a prompt, greedily."""
    return lambda states: answers(model, tokenizer, [prompt], new_tokens=new_tokens) * len(states)


# ---------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class _Site:
    """An MLP and what it reads and adds to at P tokens, in float32 at least."""

    mlp: nn.Module
    norm: nn.Module | None
    """Of post-norm layers: what the sum goes through."""
    after: nn.Module | None
    """Of some families: what the MLP's output goes through before the sum."""
    pre_mlp: Tensor
    """[P, D]."""
    residual: Tensor
    """[P, D]."""

    def write(self, weights: dict[str, Tensor]) -> Tensor:
        """Return x, [P, D], with these weights in place of the MLP's own."""
        written = functional_call(self.mlp, weights, (self.pre_mlp,))
        if self.after is not None:
            written = functional_call(self.after, _copies(self.after), (written,))
        states = self.residual + written
        return states if self.norm is None else functional_call(self.norm, _copies(self.norm), (states,))


def _find(model: PreTrainedModel, ids: Sequence[int] | Tensor, layer: int, positions: Sequence[int]) -> _Site:
    """Check where to train, and record what the MLP there reads."""
    anatomy = anatomy_of(model)
    n_layers = len(anatomy.layers)
    if layer == 0:
        raise InputError(f"layer 0 holds the embeddings, which no MLP writes: give a layer from 1 to {n_layers}")
    if not isinstance(layer, int) or layer not in range(1, n_layers + 1):
        raise InputError(f"layer {layer!r} does not exist: give one from 1 to {n_layers}, an index of hidden_states")
    row = _checked_ids(model, ids)  # [1, T]
    chosen = _checked_positions(positions, row.shape[1])
    block, family = anatomy.layers[layer - 1], anatomy.family
    mlp = block.get_submodule(family.mlp_first)
    after = family.parts.mlp_after if family.parts is not None else ""
    if family.mlp_last not in (family.mlp_first, after):
        mlp = nn.Sequential(mlp, block.get_submodule(anatomy.parts.activation), block.get_submodule(family.mlp_last))
    _check_trainable(mlp, layer)
    names = [f"mlp_in.{layer - 1}", f"resid_mid.{layer - 1}"]
    with torch.inference_mode(False), torch.no_grad(), evaluating(model), record(model, names) as seen:
        base_of(model)(row, attention_mask=torch.ones_like(row), use_cache=False)
        pre_mlp, residual = (_float(seen[name][0, chosen]) for name in names)
    norm = block.get_submodule(family.mlp_norm) if anatomy.block == "post_norm" else None
    return _Site(mlp, norm, block.get_submodule(after) if after else None, pre_mlp, residual)


@contextmanager
def _trained(
    model: PreTrainedModel, site: _Site, objective: Callable[[Tensor], Tensor], steps: int, lr: float
) -> Iterator[None]:
    """Lower ``objective(x)`` by ``steps`` updates of the MLP, for the time of a ``with`` block."""
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps is {steps!r}: give a whole number of at least 1")
    if not (math.isfinite(lr) and lr > 0):
        raise InputError(f"lr is {lr!r}: give a learning rate above 0, such as 3e-4")
    with _own_weights(site.mlp):
        with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
            _descend(site, objective, steps, lr)
        yield


def _descend(site: _Site, objective: Callable[[Tensor], Tensor], steps: int, lr: float) -> None:
    # Float32 copies are trained, and rounded into the model: Adam in half precision divides by squares that round
    # to zero. The model's own parameters are in no graph, so their gradients and flags are never touched.
    weights = _copies(site.mlp)
    optimizer = torch.optim.Adam([copy.requires_grad_() for copy in weights.values()], lr=lr)
    for step in range(steps + 1):
        loss = objective(site.write(weights))
        if not loss.isfinite():
            raise InputError(f"after {step} steps the loss is {loss.item()}: give a smaller lr than {lr}")
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            if any(copy.grad is not None and copy.grad.any() for copy in weights.values()):
                optimizer.step()
            for name, parameter in site.mlp.named_parameters():
                parameter.data.copy_(weights[name].detach())


@contextmanager
def _own_weights(module: nn.Module) -> Iterator[None]:
    """Let parameters hold copies of their data for the time of a ``with`` block, then the data itself again."""
    kept = [(parameter, parameter.data) for parameter in module.parameters()]
    try:
        for parameter, data in kept:
            parameter.data = data.clone()
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data.to(parameter.device, parameter.dtype)  # the block may have moved the model


def _copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: _float(parameter.detach()).clone() for name, parameter in module.named_parameters()}


def _float(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# ---------------------------------------------------------------------------------------------------- checking


def _checked_ids(model: PreTrainedModel, ids: Sequence[int] | Tensor) -> Tensor:
    """Return the prompt as a model takes it, [1, T]."""
    row = torch.as_tensor(ids)
    row = row if row.dim() == 2 else row[None]
    if row.dim() != 2 or len(row) != 1 or not row.numel() or row.is_floating_point():
        raise InputError(f"ids have the shape {list(row.shape)}: give the token ids of one prompt, at least one")
    size, longest = model.config.vocab_size, longest_text(model)
    for token in row[0].tolist():
        if not 0 <= token < size:
            raise InputError(f"ids hold {token}; this model has tokens 0 to {size - 1}")
    if row.shape[1] > longest:
        raise InputError(f"ids hold {row.shape[1]} tokens; this model reads {longest}")
    return row.to(input_device(model))


def _checked_positions(positions: Sequence[int], count: int) -> list[int]:
    for position in positions:
        if position not in range(-count, count):
            raise InputError(f"position {position!r} does not exist: this prompt has tokens 0 to {count - 1}")
    chosen = [int(position) % count for position in positions]
    if len(set(chosen)) != len(chosen) or not chosen:
        raise InputError(f"positions are {chosen}: give at least one token position, each once")
    return chosen


def _checked_target(target: Tensor, site: _Site) -> Tensor:
    """Return the target as the states it is compared with: [P, D]."""
    both = list(site.residual.shape)
    with torch.inference_mode(False):
        target = target.detach().clone()  # a tensor of inference mode takes part in no graph
    if list(target.shape) not in (both, both[1:]):
        raise InputError(f"target has the shape {list(target.shape)}: give {both[1:]}, or {both} for the positions")
    if not target.isfinite().all():
        raise InputError("target holds numbers that are not finite (NaN or infinity)")
    return target.to(site.residual).expand(both)


def _check_trainable(mlp: nn.Module, layer: int) -> None:
    for name, parameter in mlp.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            state = "offloaded" if parameter.is_meta else f"quantised ({parameter.dtype})"
            raise InputError(
                f"{name!r} of the MLP that writes layer {layer} is {state}, so it cannot be trained: "
                "open the model with its full weights in memory"
            )


def _texts(reader: Reader, states: Tensor) -> list[str]:
    texts = reader(states)
    if isinstance(texts, str) or len(texts) != len(states):
        raise InputError(f"the reader returned {texts!r}: it has to return {len(states)} texts, one a state")
    return list(texts)


def _reward(scorer: Scorer, text: str) -> float:
    reward = scorer(text)
    if not isinstance(reward, (int, float)) or not math.isfinite(reward):
        raise InputError(f"the scorer gave {text!r} the reward {reward!r}: it has to return a finite number")
    return float(reward)
