"""Probe prompts into a run folder, one unit per prompt: logit lens, direct logit attribution, attention heads.

A prompt takes one forward pass or a few, so no parts of it are stored: an interrupt costs one prompt.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations.cache import activation_cache
from interpret.anatomy import anatomy_of, input_device, longest_text
from interpret.device import TOO_LARGE, unless_too_large
from interpret.errors import InputError, ModelError, unknown
from interpret.finite import MODEL_GIVES_NAN, readable
from interpret.finite import top as top_of
from interpret.models.opening import model_circumstances, model_identity
from interpret.probing._logit_attribution import logit_attribution
from interpret.probing._logit_lens import NO_TOKEN, logit_lens
from interpret.probing.heads import attention_patterns, check_looks_back, induction_scores
from interpret.probing.registry import HEADS, LENS, LOGITS, PROBES, TOP, Probe, Probed, Reader
from interpret.prompts.chat import model_text
from interpret.prompts.prompts import MODEL_TEMPLATE, Prompt
from interpret.prompts.spelling import piece
from interpret.prompts.tokens import following, select_tokens, tokenise
from interpret.records import HeadView, LensReading, LogitShare
from interpret.storage.run import Run
from interpret.storage.run_folder import RunFolder
from interpret.work.inputs import prompt_list
from interpret.work.loop import Work, fill_folder

NOT_PROBED = "not probed"
PROBING = Work("Probing", "probed", "prompts", failures=(NOT_PROBED,))
MOST_REPEATED = 50
"""Number of random tokens for induction scores, if the model can read twice as many."""


def run_probe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probe: str | Probe,
    examples: Path | str | Sequence[Prompt],
    output: Path | str,
    *,
    tokens: str = "last",
    chat_template: str = MODEL_TEMPLATE,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Probe prompts into a run folder, as ``interpret probe`` does; the same call resumes an interrupted run.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        probe: a name of ``PROBES``, or a probe.
        examples: a file of prompts, such as examples/examples.json, or prompts with different names.
        output: the run folder; it gets ``table.csv`` and ``manifest.json``.
        tokens: the tokens at which prompts are probed: ``last``, ``subject_last``, ``0,-1``, ``2:6``, ``content``,
            ``all``; probes with ``at_tokens=False`` do not use it.
        chat_template: for prompts that are not raw: ``model``, or a text that contains ``{prompt}``.
        options: options of the probe by name, as JSON values.
        progress: show a progress bar on stderr.
        identity: further settings that determine the numbers, as JSON values, such as the version of your own probe; a
            run is resumed only if they are equal.
        circumstances: further entries of the manifest; they may change when the run is resumed.

    Returns:
        The run folder, for reading.

    Raises:
        InputError: if an argument or a prompt is invalid. Prompts that cannot be probed are dropped with the reason.
        RunError: if the folder contains another run, or cannot be written.
        UnsupportedModelError: if the model's family is unknown.

    Example:
        >>> run_probe(model, tokenizer, "lens", "examples.json", "runs/lens").to_frame()  # doctest: +SKIP
    """
    probe = probe_of(probe)
    read = probe.read(model, tokenizer, **(options or {}))
    given = prompt_list(examples)
    prompts = probed_prompts(tokenizer, given.prompts, tokens=tokens, chat_template=chat_template)
    asked = {
        "command": f"probe {probe.name}",
        **({"tokens": tokens} if probe.at_tokens else {}),
        "chat_template": chat_template,
        "examples_sha256": given.sha256,
        **probe.options(),
        **(options or {}),
    }
    return fill_folder(
        PROBING,
        output,
        probe.record,
        lambda run: write_probes(run, read, prompts),
        units=[one.name for one in prompts],
        identity={**model_identity(model), **asked, **(identity or {})},
        circumstances={**model_circumstances(model), "examples": given.path, **(circumstances or {})},
        progress=progress,
    )


def run_lens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Path | str | Sequence[Prompt],
    output: Path | str,
    *,
    tokens: str = "last",
    top: int = TOP,
    chat_template: str = MODEL_TEMPLATE,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Apply the logit lens to prompts, as ``interpret probe lens`` does: the most likely tokens after every layer.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        examples: as in ``run_probe``; ``target`` and ``foil`` of a prompt are followed.
        output: the run folder.
        tokens: as in ``run_probe``.
        top: number of most likely tokens to list.
        chat_template: as in ``run_probe``.
        progress: as in ``run_probe``.
        identity: as in ``run_probe``.
        circumstances: as in ``run_probe``.

    Returns:
        The run folder, for reading.

    Raises:
        InputError: as ``run_probe``.
        RunError: as ``run_probe``.
    """
    return run_probe(
        model,
        tokenizer,
        LENS,
        examples,
        output,
        tokens=tokens,
        chat_template=chat_template,
        options={"top": top},
        progress=progress,
        identity=identity,
        circumstances=circumstances,
    )


def run_logits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Path | str | Sequence[Prompt],
    output: Path | str,
    *,
    chat_template: str = MODEL_TEMPLATE,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Decompose the logit of the answers to prompts among heads and MLPs, as ``interpret probe logits`` does.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        examples: as in ``run_probe``. The answer is the first token of ``target``, or the most likely token; the logit
            of a ``foil`` is decomposed as well.
        output: the run folder.
        chat_template: as in ``run_probe``.
        progress: as in ``run_probe``.
        identity: as in ``run_probe``.
        circumstances: as in ``run_probe``.

    Returns:
        The run folder, for reading.

    Raises:
        InputError: as ``run_probe``.
        RunError: as ``run_probe``.
    """
    return run_probe(
        model,
        tokenizer,
        LOGITS,
        examples,
        output,
        chat_template=chat_template,
        progress=progress,
        identity=identity,
        circumstances=circumstances,
    )


def run_heads(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Path | str | Sequence[Prompt],
    output: Path | str,
    *,
    tokens: str = "last",
    top: int = TOP,
    chat_template: str = MODEL_TEMPLATE,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> RunFolder:
    """List the tokens that every head attends to, as ``interpret probe heads`` does.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        examples: as in ``run_probe``.
        output: the run folder.
        tokens: as in ``run_probe``.
        top: number of tokens to list per head.
        chat_template: as in ``run_probe``.
        progress: as in ``run_probe``.
        identity: as in ``run_probe``.
        circumstances: as in ``run_probe``.

    Returns:
        The run folder, for reading.

    Raises:
        InputError: as ``run_probe``.
        RunError: as ``run_probe``.
    """
    return run_probe(
        model,
        tokenizer,
        HEADS,
        examples,
        output,
        tokens=tokens,
        chat_template=chat_template,
        options={"top": top},
        progress=progress,
        identity=identity,
        circumstances=circumstances,
    )


def probe_of(probe: str | Probe) -> Probe:
    """Return a probe by its name.

    Raises:
        InputError: if no probe of this name is registered.
    """
    if isinstance(probe, Probe):
        return probe
    if probe not in PROBES:
        raise InputError(unknown("probe", probe, PROBES))
    return PROBES[probe]


def probed_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    tokens: str = "last",
    chat_template: str = MODEL_TEMPLATE,
) -> list[Probed]:
    """Tokenise prompts and find the selected tokens; all prompts are checked before any work is done.

    Args:
        tokenizer: the model's tokenizer.
        prompts: raw prompts stay unchanged, others become the user's message of a chat.
        tokens: a selector, see ``tokens.select_tokens``.
        chat_template: as in ``chat.wrap``.

    Raises:
        InputError: if a prompt does not fit; the message names it.
    """
    found = []
    for prompt in prompts:
        try:
            text = model_text(tokenizer, prompt, chat_template)
            tokenised = tokenise(tokenizer, text, prompt.subject)
            given = {"target": prompt.target, "foil": prompt.foil}
            followed = {
                key: following(tokenizer, text, one, what=key)[0] for key, one in given.items() if one is not None
            }
            found.append(Probed(prompt.name, tokenised, select_tokens(tokens, tokenised), followed))
        except InputError as error:
            raise InputError(f"prompt {prompt.name}: {error}") from None
    return found


def lens_probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, top: int = TOP) -> Reader:
    """Return the reader of the logit lens: the ``top`` most likely tokens, and the first tokens of target and foil."""
    return partial(_lens, model, tokenizer, top)


def _lens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, top: int, asked: Probed) -> list[LensReading]:
    cache = activation_cache(model, None, [asked.tokens.ids], ["resid_pre.0", "resid_post.*"])
    followed, n_layers = list(asked.followed.values()), len(anatomy_of(model).layers)
    frame = logit_lens(model, cache, followed, top=top, positions=asked.positions)
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
        )
        for row in frame.itertuples()
    ]


def logits_probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Reader:
    """Return the reader of direct logit attribution, for a prompt's answer and foil, at its last token."""
    return partial(_logits, model, tokenizer)


def _logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Probed) -> list[LogitShare]:
    names = ["resid_*", "attn_out.*", "heads.*", "mlp_out.*", "logits"]
    cache = activation_cache(model, None, [asked.tokens.ids], names)
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


def write_probes(run: Run, read: Reader, asked: Sequence[Probed]) -> Iterator[str]:
    """Do the pending units of a run, and yield the name of each unit once it is saved.

    A prompt that cannot be probed is dropped with the reason. Prompts are probed one at a time, so that the numbers do
    not depend on which prompts were done before the run was interrupted.

    Args:
        run: an open run, with the names of the prompts as units and the record of the probe.
        read: returns the rows of a prompt.
        asked: all prompts.

    Raises:
        RunError: if results cannot be written; earlier units stay saved.
    """
    pending = set(run.pending)
    for one in asked:
        if one.name not in pending:
            continue
        try:
            rows = unless_too_large(partial(read, one))
        except (InputError, ModelError) as error:  # ModelError: it does not fit in memory
            run.drop(one.name, f"{NOT_PROBED}: {error}")
        else:
            if rows is None:
                run.drop(one.name, f"{NOT_PROBED}: a prompt of {len(one.tokens.ids)} tokens {TOO_LARGE}")
            else:
                run.write(one.name, rows)
        yield one.name
