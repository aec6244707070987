"""Exactness on a device: results of ours, and the same from whole forward passes with plain hooks.

Each function takes a model and returns the results of ours with the function that computes them in a plain way.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import interpret
from benchmarks.bench_attribution import our_layers, plain_layers
from benchmarks.bench_tracing import Plain
from benchmarks.gpu.comparing import Bench, Exactness
from benchmarks.gpu.inputs import LAYER, fact_of, source_of, steps_of, template_of
from interpret.attribution.methods.gradients import saliency
from interpret.attribution.methods.masked_texts import masked_values
from interpret.attribution.steps.step import Step
from interpret.sweep import Cell, Metric, run_sweep
from interpret.tracing.mediators import MEDIATORS

N_STATES, N_NEW = 6, 8


@contextmanager
def edited(model: PreTrainedModel, layer: int, edit: Callable[[Tensor], None]) -> Iterator[None]:
    """Let a plain hook change the input of a layer, [B, T, D], in place, inside the ``with`` block."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        edit(args[0] if args else kwargs["hidden_states"])

    handle = model.model.layers[layer].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def surgery(bench: Bench) -> Exactness:
    """Logits of a pass with edits at five tokens of each of four samples."""
    device, slots = bench.model.device, [2, 3, 4, 5, 8]
    chance = torch.Generator().manual_seed(5)
    ids = torch.randint(10, bench.shape.vocabulary, (4, 12), generator=chance).to(device)
    vectors = torch.randn(4, 1, bench.shape.width, generator=chance).to(bench.model.dtype)

    @torch.no_grad()
    def plain(model: PreTrainedModel) -> Tensor:
        def edit(hidden: Tensor) -> None:
            hidden[:, slots] = vectors.to(hidden)

        with edited(model, LAYER, edit):
            return model(ids, use_cache=False).logits

    info = [{LAYER: (slots, vector.expand(1, len(slots), -1))} for vector in vectors]
    ours = interpret.forward_interpret(bench.model, ids, insert_info=info, use_cache=False, return_dict=True).logits
    return Exactness(ours, plain)


@torch.no_grad()
def trace(bench: Bench) -> Exactness:
    """Log-probabilities of the answer in restored runs of every mediator, at a token of the subject and at the last."""
    fact = fact_of(bench, n_tokens=9)
    restoring = [one for one in MEDIATORS.values() if one.acts_on == "corrupted" and one.name != "mixer_out"]
    of_each = [mediator.cells(fact.n_tokens, bench.shape.layers, 3) for mediator in restoring]
    cells = [cell for some in of_each for cell in _few([cell for cell in some if cell.token in (2, 8)], 8)]
    found = run_sweep(bench.model, fact.corrupted, fact.clean, cells, {"p": Metric("probability", (fact.answer,))})

    @torch.no_grad()
    def plain(model: PreTrainedModel) -> Tensor:
        runs = Plain(model, replace(fact, clean=fact.clean.to(model.dtype), corrupted=fact.corrupted.to(model.dtype)))
        return torch.tensor([runs.cell(cell) for cell in cells]).log()

    return Exactness(found.values["p"].mean(dim=1).log(), plain)


def _few(cells: Sequence[Cell], count: int) -> list[Cell]:
    """Return some cells, spread evenly."""
    return [cells[number * (len(cells) - 1) // (count - 1)] for number in range(count)]


@torch.no_grad()
def interpretation(bench: Bench) -> Exactness:
    """Probabilities of the tokens of interpretations, with and without the state; each token is the most likely one."""
    source, template = source_of(bench, N_STATES), template_of(bench)
    settings = interpret.selfie.Settings(
        new_tokens=N_NEW, prompt_output_tokens=0, wrong_vector=False, text_control=False
    )
    rows = list(interpret.interpretations(bench.model, bench.tokenizer, [source], [template], settings))[1:]
    texts = [row.interpretation for row in rows]
    own, without = (
        torch.tensor(part)
        for part in ([r.interpretation_prob for r in rows], [r.probability_without_insertion for r in rows])
    )

    @torch.no_grad()
    def plain(model: PreTrainedModel) -> Tensor:
        states = model(
            torch.tensor([source.tokenised.ids], device=model.device), output_hidden_states=True
        ).hidden_states
        found = []
        for (layer, token), text in zip(source.pairs, texts, strict=True):
            ids = torch.tensor([[*template.ids, *text]], device=model.device)
            after = slice(len(template.ids) - 1, -1)

            def edit(hidden: Tensor, state: Tensor = states[layer][0, token]) -> None:
                hidden[:, list(template.slots)] = state

            with edited(model, LAYER, edit):
                inserted = model(ids, use_cache=False).logits[0, after].float().softmax(-1)
            nothing = model(ids, use_cache=False).logits[0, after].float().softmax(-1)
            chosen = ids[0, len(template.ids) :, None]
            p, p_without = inserted.gather(1, chosen)[:, 0], nothing.gather(1, chosen)[:, 0]
            found.append(torch.stack([p, p_without, inserted.amax(-1)]))
        return torch.stack(found)

    return Exactness(torch.stack([own, without, own], dim=1), plain)


def layers(bench: Bench) -> Exactness:
    """Activation times gradient at the output of every layer, by a backward pass for each."""
    (step,) = steps_of(bench, n_prompt=9, n_steps=1)
    return Exactness(
        torch.stack(our_layers(step)), lambda model: torch.stack(plain_layers(_on(step, model))), allowed=1e-3
    )


def gradients(bench: Bench) -> Exactness:
    """Gradients of the probabilities of three tokens with respect to the embeddings of the text."""
    steps = steps_of(bench, n_prompt=9, n_steps=3)

    def plain(model: PreTrainedModel) -> Tensor:
        found = []
        for step in steps:
            x = model.get_input_embeddings()(torch.tensor([list(step.ids)], device=model.device)).requires_grad_()
            p = model(inputs_embeds=x, use_cache=False).logits[0, -1].float().softmax(-1)[step.target]
            found.append(torch.autograd.grad(p, x)[0][0])
        return torch.cat(found)

    return Exactness(torch.cat(saliency(steps)), plain, allowed=1e-3)


@torch.no_grad()
def masked(bench: Bench) -> Exactness:
    """Log-probabilities of four tokens in texts in which one token is masked, and in the unmasked text."""
    steps = steps_of(bench, n_prompt=8, n_steps=4)
    last = steps[-1]
    masks = torch.cat([torch.zeros(1, len(last.ids), dtype=torch.bool), torch.eye(len(last.ids), dtype=torch.bool)])
    values = masked_values(steps, masks, last.baseline("zero")).log()  # [texts, steps]

    @torch.no_grad()
    def plain(model: PreTrainedModel) -> Tensor:
        found = []
        for step in steps:
            texts = _on(step, model).embeddings.repeat(1 + len(step.ids), 1, 1)
            texts[masks[: len(texts), : len(step.ids)]] = 0
            logits = model(inputs_embeds=texts, use_cache=False).logits[:, -1].float()
            found.append(logits.log_softmax(-1)[:, step.target])
        return torch.cat(found)

    return Exactness(torch.cat([values[: 1 + len(step.ids), number] for number, step in enumerate(steps)]), plain)


def _on(step: Step, model: PreTrainedModel) -> Step:
    """Return a step of another model with the same weights."""
    return replace(step, model=model)
