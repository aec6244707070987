"""The probes of prompts: what lenses, direct logit attribution and attention heads read of one prompt.

``registry`` lists them, ``prompt_runs`` writes their records into run folders.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations.cache import activation_cache
from interpret.anatomy import anatomy_of, input_device, longest_text
from interpret.errors import InputError
from interpret.finite import MODEL_GIVES_NAN, readable
from interpret.finite import top as top_of
from interpret.probing._logit_attribution import logit_attribution, needed_activations
from interpret.probing._logit_lens import NO_TOKEN, read_by
from interpret.probing.heads import attention_patterns, check_looks_back, induction_scores
from interpret.probing.lens_maps import load_tuned_lens
from interpret.probing.lenses import Lens, check_lenses, lenses_of
from interpret.probing.registry import LOGIT, TOP, Probed, Reader
from interpret.prompts.spelling import piece
from interpret.records import HeadView, LensReading, LogitShare

MOST_REPEATED = 50
"""Number of random tokens for induction scores, if the model can read twice as many."""


def lens_probe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    top: int = TOP,
    lenses: Sequence[str] = (LOGIT,),
    tuned: str | None = None,
) -> Reader:
    """Return the reader of lenses: the ``top`` most likely tokens, and the first tokens of target and foil.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        top: number of most likely tokens to list.
        lenses: names of lenses, see ``lenses``.
        tuned: the folder of the trained maps, for the lens ``tuned``.

    Raises:
        InputError: for an unknown lens, or maps that do not belong to the model.
        UnsupportedModelError: if the model cannot be read by one of the lenses.
    """
    check_lenses(lenses, tuned=tuned)
    maps = None if tuned is None else load_tuned_lens(model, tuned)
    return partial(_lens, model, tokenizer, top, lenses_of(model, tokenizer, lenses, maps))


def _lens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    top: int,
    lenses: Mapping[str, Lens],
    asked: Probed,
) -> list[LensReading]:
    cache = activation_cache(model, None, [asked.tokens.ids], ["resid_pre.0", "resid_post.*"])
    followed, n_layers = list(asked.followed.values()), len(anatomy_of(model).layers)
    names = {asked.followed[name]: name for name in ("foil", "target") if name in asked.followed}
    return [
        LensReading(
            name=asked.name,
            prompt=asked.tokens.text,
            token_idx=row.position,
            token=asked.tokens.pieces[row.position],
            site="resid_pre" if row.layer < n_layers else "resid_post",
            layer_idx=min(row.layer, n_layers - 1),
            rank=None if math.isnan(row.rank) else int(row.rank),
            prediction_id=row.token_id,
            prediction="" if row.token_id == NO_TOKEN else piece(tokenizer, row.token_id),
            logit=row.logit,
            probability=row.probability,
            continuation=names.get(row.token_id, ""),
            lens=name,
            agrees=row.agrees,
            kl=row.kl,
        )
        for name, lens in lenses.items()
        for row in read_by(
            model, cache, name, lens, followed, tokenizer=None, top=top, positions=asked.positions
        ).itertuples()
    ]


def logits_probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Reader:
    """Return the reader of direct logit attribution, for a prompt's answer and foil, at its last token."""
    return partial(_logits, model, tokenizer)


def _logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Probed) -> list[LogitShare]:
    cache = activation_cache(model, None, [asked.tokens.ids], [*needed_activations(model), "logits"])
    logits = cache["logits"][0, -1]
    if not (logits < torch.inf).any():
        raise InputError(f"no logit is finite: {MODEL_GIVES_NAN}")
    answer = asked.followed.get("target", int(readable(logits).argmax()))
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
            answer=piece(tokenizer, answer),
            answer_id=answer,
            foil="" if foil is None else piece(tokenizer, foil),
            component=row.component,
            layer_idx=row.layer,
            head=row.head,
            share=row.logit,
            foil_share=foil_share,
        )
        for row, foil_share in zip(shares.itertuples(), of_foil, strict=True)
    ]


def heads_probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, top: int = TOP) -> Reader:
    """Return the reader of attention heads: the ``top`` tokens that every head attends to."""
    # The repeated sequence and a beginning-of-text token have to fit.
    n_tokens = min(MOST_REPEATED, (longest_text(model) - 1) // 2)
    return partial(_heads, model, induction_scores(model, n_tokens=n_tokens).tolist(), top)


def _heads(model: PreTrainedModel, induction: list[list[float]], top: int, asked: Probed) -> list[HeadView]:
    check_looks_back(asked.tokens.text, len(asked.tokens.ids))
    ids = torch.tensor([list(asked.tokens.ids)], device=input_device(model))
    found = []
    for layer, pattern in attention_patterns(model, ids).items():
        for head, of_head in enumerate(pattern[0].float()):
            for position in asked.positions:
                probabilities, places = top_of(of_head[position, : position + 1], min(top, position + 1))
                at = places.tolist()
                found.append(
                    HeadView(
                        name=asked.name,
                        prompt=asked.tokens.text,
                        layer_idx=layer,
                        head=head,
                        token_idx=position,
                        token=asked.tokens.pieces[position],
                        attended_positions=at,
                        attended_tokens=[asked.tokens.pieces[one] for one in at],
                        probabilities=probabilities.tolist(),
                        induction_score=induction[layer][head],
                    )
                )
    return found
