"""Prompts probed into a run folder: one unit a prompt; lens readings, shares in a logit, or what heads look at."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations.cache import activation_cache
from interpret.anatomy import input_device, longest_text
from interpret.errors import InputError
from interpret.probing._logit_attribution import logit_attribution
from interpret.probing._logit_lens import logit_lens
from interpret.probing.heads import attention_patterns, check_looks_back, induction_scores
from interpret.prompts.chat import MODEL_TEMPLATE, read_text
from interpret.prompts.prompts import Prompt
from interpret.prompts.tokens import TokenisedPrompt, continuation, select_tokens, tokenise
from interpret.records import HeadView, LensReading, LogitShare
from interpret.storage.run_folder import Run

NOT_PROBED = "not probed"
MOST_REPEATED = 50
"""How many random tokens induction scores are measured on, where the model reads twice as many."""


@dataclass(frozen=True)
class Probed:
    """A prompt as a model reads it, and where and after what it is asked."""

    name: str
    tokens: TokenisedPrompt
    positions: Sequence[int]
    """Of the tokens at which it is probed."""
    followed: Mapping[str, int]
    """The first tokens of ``target`` and ``foil``, as far as the prompt has them."""


Probe = Callable[[Probed], Sequence[object]]


def probed_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    tokens: str = "last",
    chat_template: str = MODEL_TEMPLATE,
) -> list[Probed]:
    """Tokenise prompts and find the tokens that are meant, all before any work is done.

    Args:
        tokenizer: of the model, a fast one.
        prompts: raw ones stay as they are, the others become a user's message.
        tokens: a selector, see ``spans.select_tokens``.
        chat_template: as in ``chat.wrap``.

    Raises:
        InputError: naming the prompt that does not fit.
    """
    found = []
    for prompt in prompts:
        try:
            text = read_text(tokenizer, prompt, chat_template)
            tokenised = tokenise(tokenizer, text, prompt.subject)
            words = {"target": prompt.target, "foil": prompt.foil}
            followed = {key: continuation(tokenizer, text, said)[0] for key, said in words.items() if said is not None}
            found.append(Probed(prompt.name, tokenised, select_tokens(tokens, tokenised), followed))
        except InputError as error:
            raise InputError(f"prompt {prompt.name}: {error}") from None
    return found


def lens_probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, top: int) -> Probe:
    """Return what reads a prompt by the logit lens: the ``top`` likeliest tokens, and the followed ones."""
    return partial(_lens, model, tokenizer, top)


def _lens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, top: int, asked: Probed) -> list[LensReading]:
    cache = activation_cache(model, None, [asked.tokens.ids], ["resid_pre.0", "resid_post.*"])
    followed = list(asked.followed.values())
    frame = logit_lens(model, cache, followed, top=top, positions=asked.positions)
    names = {asked.followed[name]: name for name in ("foil", "target") if name in asked.followed}
    return [
        LensReading(
            name=asked.name,
            prompt=asked.tokens.text,
            position=row.position,
            token=asked.tokens.pieces[row.position],
            layer=row.layer,
            rank=row.rank,
            said_id=row.token_id,
            said=tokenizer.decode([row.token_id]),
            logit=row.logit,
            probability=row.probability,
            followed=names.get(row.token_id, ""),
        )
        for row in frame.itertuples()
    ]


def logits_probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Probe:
    """Return what parts the logit of a prompt's answer, and of its foil, at the last token of the prompt."""
    return partial(_logits, model, tokenizer)


def _logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Probed) -> list[LogitShare]:
    names = ["resid_*", "attn_out.*", "heads.*", "mlp_out.*", "logits"]
    cache = activation_cache(model, None, [asked.tokens.ids], names)
    answer = asked.followed.get("target", int(cache["logits"][0, -1].argmax()))
    foil = asked.followed.get("foil")
    shares = logit_attribution(model, cache, [answer])
    if foil is None:
        of_foil: list[float | None] = [None] * len(shares)
    else:
        of_foil = logit_attribution(model, cache, [foil])["logit"].tolist()
    return [
        LogitShare(
            name=asked.name,
            prompt=asked.tokens.text,
            answer=tokenizer.decode([answer]),
            answer_id=answer,
            foil="" if foil is None else tokenizer.decode([foil]),
            component=row.component,
            layer=row.layer,
            head=row.head,
            share=row.logit,
            foil_share=foil_share,
        )
        for row, foil_share in zip(shares.itertuples(), of_foil, strict=True)
    ]


def heads_probe(model: PreTrainedModel, top: int) -> Probe:
    """Return what tells, of every head, the ``top`` tokens it looks at."""
    # The tokens that are repeated, and one that opens the text, have to fit.
    n_tokens = min(MOST_REPEATED, (longest_text(model) - 1) // 2)
    return partial(_heads, model, induction_scores(model, n_tokens=n_tokens).tolist(), top)


def _heads(model: PreTrainedModel, induction: list[list[float]], top: int, asked: Probed) -> list[HeadView]:
    check_looks_back(asked.tokens.text, len(asked.tokens.ids))
    ids = torch.tensor([list(asked.tokens.ids)], device=input_device(model))
    found = []
    for layer, pattern in attention_patterns(model, ids).items():
        for head, of_head in enumerate(pattern[0].float()):
            for position in asked.positions:
                most = of_head[position, : position + 1].topk(min(top, position + 1))
                at = most.indices.tolist()
                found.append(
                    HeadView(
                        name=asked.name,
                        prompt=asked.tokens.text,
                        layer=layer,
                        head=head,
                        position=position,
                        token=asked.tokens.pieces[position],
                        attended_positions=at,
                        attended_tokens=[asked.tokens.pieces[one] for one in at],
                        probabilities=most.values.tolist(),
                        induction_score=induction[layer][head],
                    )
                )
    return found


def write_probes(run: Run, probe: Probe, asked: Sequence[Probed]) -> Iterator[str]:
    """Do what is pending in a run, and yield the name of each unit as soon as it is safe.

    A prompt that cannot be probed is dropped with its reason. Each is done by itself, so that its numbers do not hang
    on those that were done before the run was stopped.

    Args:
        run: open, over the names of the prompts and the records of the probe.
        probe: what is done with each.
        asked: all of them.

    Raises:
        RunError: if the disk does not take the results; the units before are safe.
    """
    pending = set(run.pending)
    for one in asked:
        if one.name not in pending:
            continue
        try:
            run.write(one.name, probe(one))
        except InputError as error:
            run.drop(one.name, f"{NOT_PROBED}: {error}")
        yield one.name
