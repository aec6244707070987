"""Mixtures of experts as wide MLPs: how their neurons are numbered, what their values are, and what they write.

A router picks a few of E experts for each token, and weighs what they write. With F neurons in each expert, this is an
MLP with E * F neurons. The value of a neuron is

    (routing weight of its expert at the token) * (its activation), and exactly 0 if its expert was not picked;

the MLP adds the values of all neurons, each times the output weights of the neuron, and the experts' biases, if there
are any, times their routing weights. Shared experts, which read every token, come last, weighed by their gate if they
have one. Llama 4 weighs what an expert reads instead of what it writes. A layer of the same model may have an MLP
without experts; its values are its activations, as in other models.

Values are computed from what the stock modules were called with, and new values are written as a difference in the
output of the stock MLP: a pass in which no value is changed is the model's own to the bit.
Shapes: N tokens of all texts, D hidden width, E experts, F neurons of each, K experts picked for a token, U neurons.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interpret.anatomy.calls import layer_input
from interpret.anatomy.changes import Changes
from interpret.anatomy.families import Experts
from interpret.errors import InputError, UnsupportedModelError

See = Callable[[Tensor], Tensor | None]
"""Takes the values of neurons, [..., U]; returns new ones, in a new tensor, or None to keep them."""
SHARED = "shared"
"""The name of all shared experts together."""


@dataclass(frozen=True)
class NeuronNumbers:
    """How the neurons of a layer are numbered: expert by expert, then those that read every token."""

    experts: int
    """E; 0 in an MLP without experts."""
    each: int
    """F, neurons of each expert."""
    others: int
    """Neurons that read every token: of shared experts, or of an MLP without experts."""

    @property
    def count(self) -> int:
        """U, the number of neurons of the layer."""
        return self.experts * self.each + self.others

    def place(self, number: int) -> tuple[str, int]:
        """Return the expert of a neuron, and its index in it.

        The expert is its number as a text, or ``shared``; "" in an MLP without experts.

        >>> NeuronNumbers(experts=4, each=10, others=20).place(13), NeuronNumbers(4, 10, 20).place(43)
        (('1', 3), ('shared', 3))
        """
        first = self.experts * self.each
        if number < first:
            return str(number // self.each), number % self.each
        return SHARED if self.experts else "", number - first

    def number(self, expert: int | str, neuron: int) -> int:
        """Return the number of a neuron of an expert: the reverse of ``place``.

        Raises:
            InputError: if there is no such expert, or no such neuron in it.

        >>> NeuronNumbers(experts=4, each=10, others=20).number(1, 3)
        13
        """
        names = [str(index) for index in range(self.experts)] + [SHARED if self.experts else ""][: self.others]
        if str(expert) not in names:
            raise InputError(f"expert {expert!r} does not exist; this layer has {_list(names)}")
        first = names.index(str(expert)) * self.each
        size = self.each if str(expert).isdigit() else self.others
        if not 0 <= neuron < size:
            raise InputError(f"neuron {neuron} does not exist; this expert has neurons 0 to {size - 1}")
        return first + neuron


def _list(names: list[str]) -> str:
    return f"the experts {', '.join(names)}" if any(names) else "no experts"


@dataclass
class _Pass:
    """What the modules of an MLP were called with, or returned, in its latest pass."""

    routed: tuple[Tensor, ...] = ()
    """The experts' arguments: states, [N, D], picked experts, [N, K], and their weights, [N, K]."""
    activations: Tensor | None = None
    """Of the neurons that read every token, [N, U]."""
    gate: Tensor | None = None
    """What the gate of shared experts returned, [N, 1]."""


@dataclass(frozen=True)
class Mixture:
    """The MLP of one layer of a model with experts."""

    mlp: nn.Module
    experts: Any
    """The module that holds the weights of all experts; None in an MLP without experts."""
    down: nn.Module | None
    """The output projection of the neurons that read every token."""
    shared_gate: nn.Module | None
    names: Experts
    numbers: NeuronNumbers

    def hook(self, change: Changes, see: See, *, first: bool = False) -> None:
        """Call ``see`` with the values of the neurons, [..., U], in each pass, and write those that it returns.

        Args:
            change: the changes that the hooks belong to.
            see: is called with the values. With gradients, they are part of the graph of the MLP's output.
            first: do this before other hooks on the MLP, so that these see the new values.
        """
        latest = self._watched(change)

        def written(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            own = output[0] if isinstance(output, tuple) else output
            # Another hook of this kind may have written values; tensors carry them from hook to hook.
            carried: Tensor | None = getattr(own, "_neurons", None)
            tokens = layer_input(args, kwargs).shape[:-1]
            old = self.values(latest).view(*tokens, -1) if carried is None else carried
            new = see(old)
            if new is None and not (torch.is_grad_enabled() and old.requires_grad):
                return None
            new = old if new is None else new
            after, before = (self.written(values.flatten(0, -2), latest) for values in (new, old))
            difference = after - before.detach()
            result = own.detach() + difference.view(own.shape).to(own)
            result._neurons = new
            return (result, *output[1:]) if isinstance(output, tuple) else result

        change.after(self.mlp, written, prepend=first, with_kwargs=True)

    def compare(self, change: Changes, keep: Callable[[Tensor, Tensor], None]) -> None:
        """Call ``keep`` with what the neurons write by their values, and with the MLP's own output, [N, D] each."""
        latest = self._watched(change)

        def compared(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            own = output[0] if isinstance(output, tuple) else output
            keep(self.written(self.values(latest), latest), own.reshape(-1, own.shape[-1]))

        change.after(self.mlp, compared, prepend=True)

    def _watched(self, change: Changes) -> _Pass:
        """Register hooks that keep what is needed; return what they fill."""
        latest = _Pass()

        def keep_routed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            latest.routed = (*args, *kwargs.values())

        def keep_activations(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            latest.activations = args[0].reshape(-1, args[0].shape[-1])

        def keep_gate(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            latest.gate = output.reshape(-1, 1)

        if self.experts is not None:
            change.before(self.experts, keep_routed)
        if self.down is not None:
            change.before(self.down, keep_activations)
        if self.shared_gate is not None:
            change.after(self.shared_gate, keep_gate)
        return latest

    def values(self, latest: _Pass) -> Tensor:
        """Return the values of the neurons in a pass, [N, U]."""
        parts = []
        if self.experts is not None:
            parts.append(_values_of_experts(self.experts, *latest.routed))
        if latest.activations is not None:
            weight = 1 if latest.gate is None else latest.gate.sigmoid()
            parts.append(latest.activations * weight)
        return torch.cat(parts, dim=-1)

    def written(self, values: Tensor, latest: _Pass) -> Tensor:
        """Return what neurons with given values, [N, U], write in a pass, [N, D]."""
        by_experts = self.numbers.count - self.numbers.others
        total = values.new_zeros(())
        if self.experts is not None:
            of_experts = values[:, :by_experts].unflatten(-1, (self.numbers.experts, -1))  # [N, E, F]
            total = total + _written_by_experts(self.experts, of_experts, *latest.routed[1:])
        if self.down is not None:
            # Not called, because it is hooked: this is no pass of the model.
            total = total + type(self.down).forward(self.down, values[:, by_experts:])
        return total

    def input_weights(self, plain: Callable[[nn.Module, str], Tensor]) -> list[Tensor]:
        """Return the two input weights of each neuron, [U, D]: those of the gate last.

        Args:
            plain: returns the weight of a module with a path, [out, in], or refuses the module.
        """
        gates: list[Tensor] = []
        ups: list[Tensor] = []
        if self.experts is not None:
            packed = self.experts.gate_up_proj if _reads_rows(self.experts) else self.experts.gate_up_proj.mT
            interleaved = not getattr(self.experts, "is_concatenated", True)  # [E, 2 F, D]
            halves = (packed[:, ::2], packed[:, 1::2]) if interleaved else packed.chunk(2, dim=1)
            for found, half in zip((gates, ups), halves, strict=True):
                found.append(half.detach().flatten(0, 1))
        if self.down is not None:
            dense = self.mlp if self.experts is None else _first(self.mlp, self.names.shared)
            assert dense is not None
            for found, name in ((gates, self.names.gate), (ups, self.names.up)):
                found.append(plain(dense.get_submodule(name), name))
        return [torch.cat(ups), torch.cat(gates)]


def mixture_of(mlp: nn.Module, names: Experts, where: str) -> Mixture:
    """Return the parts of an MLP of a model with experts.

    Args:
        mlp: the MLP.
        names: the names of its modules.
        where: how messages call the MLP.

    Raises:
        UnsupportedModelError: if the values of its neurons cannot be computed from the calls of its modules.
    """
    experts: Any = _first(mlp, names.experts)
    dense = mlp if experts is None else _first(mlp, names.shared)
    whole = "its neurons cannot be read or edited, but what it adds to the residual stream can (mlp_out)"
    if experts is not None and not _readable(experts):
        raise UnsupportedModelError(
            f"{where} is a mixture of experts whose weights are not held as those of transformers 5 "
            f"({type(experts).__name__}): {whole}"
        )
    if any(parameter.device.type == "meta" for parameter in mlp.parameters()):
        raise UnsupportedModelError(f"{where} is a mixture of experts with offloaded weights: {whole}")
    down: Any = None if dense is None else _first(dense, names.down)
    if dense is not None and not hasattr(down, "in_features"):
        raise UnsupportedModelError(f"{where} has no linear layer {names.down!r}: {whole}")
    n_experts, each = (0, 0) if experts is None else _sizes(experts)
    others = 0 if down is None else int(down.in_features)
    gate = None if experts is None else _first(mlp, names.shared_gate)
    return Mixture(mlp, experts, down, gate, names, NeuronNumbers(n_experts, each, others))


def _first(module: nn.Module, paths: str) -> nn.Module | None:
    """Return the first submodule of some alternatives that a module has; None if it has none."""
    for path in paths.split("|"):
        if any(name == path for name, _ in module.named_modules()):
            return module.get_submodule(path)
    return None


def _readable(experts: Any) -> bool:
    """Return whether the weights of all experts are tensors of one module, whose call is known."""
    weights = [getattr(experts, name, None) for name in ("gate_up_proj", "down_proj")]
    # Weights of 8 or 4 bits have scales beside them.
    held = all(isinstance(weight, nn.Parameter) and weight.dtype.itemsize > 1 for weight in weights)
    plain = not getattr(experts, "has_post_expert_norm", False) and not getattr(experts, "_is_expert_parallel", False)
    return held and plain and (hasattr(experts, "_apply_gate") or _weighs_inputs(experts))


def _weighs_inputs(experts: Any) -> bool:
    """Return whether the router weighs what experts read: they are then called with [E * N, D], all for every token."""
    return type(experts).__name__ == "Llama4TextExperts"


def _reads_rows(experts: Any) -> bool:
    """Return whether weights are stored as those of ``nn.Linear``, [out, in]; otherwise they are transposed."""
    return not (_weighs_inputs(experts) or experts.is_transposed)


def _sizes(experts: Any) -> tuple[int, int]:
    """Return E and F."""
    down: Tensor = experts.down_proj  # [E, D, F] or [E, F, D]
    return down.shape[0], down.shape[2 if _reads_rows(experts) else 1]


def _values_of_experts(experts: Any, states: Tensor, *routing: Tensor) -> Tensor:
    """Return the values of the experts' neurons, [N, E * F]."""
    n_experts, n_neurons = _sizes(experts)
    if not routing:  # the states, [E * N, D], are weighed: 0 for experts that were not picked
        gate, up = torch.bmm(states.view(n_experts, -1, states.shape[-1]), experts.gate_up_proj).chunk(2, dim=-1)
        return (up * experts.act_fn(gate)).transpose(0, 1).flatten(1)
    picked, weights = routing
    values = states.new_zeros(len(states), n_experts, n_neurons)
    for expert in picked.unique().tolist():
        token, rank = torch.where(picked == expert)
        weight = experts.gate_up_proj[expert]
        packed = states[token] @ (weight.mT if _reads_rows(experts) else weight)
        if experts.has_bias:
            packed = packed + experts.gate_up_proj_bias[expert]
        values[token, expert] = (experts._apply_gate(packed) * weights[token, rank, None]).to(values)
    return values.flatten(1)


def _written_by_experts(experts: Any, values: Tensor, *routing: Tensor) -> Tensor:
    """Return what experts write, [N, D], for the values of their neurons, [N, E, F]."""
    down = experts.down_proj.mT if _reads_rows(experts) else experts.down_proj  # [E, F, D]
    total = torch.bmm(values.transpose(0, 1), down).sum(dim=0)
    if routing and experts.has_bias:
        picked, weights = routing
        total = total + (weights[..., None] * experts.down_proj_bias[picked]).sum(dim=1).to(total)
    return total
