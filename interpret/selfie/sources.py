"""Resolve prompts and selectors to the states to interpret, and compute these states."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations._record import Site, record
from interpret.anatomy import anatomy_of, base_of, input_device, unwrapping
from interpret.engine.greedy import Continuation
from interpret.errors import InputError, unknown
from interpret.prompts.chat import MODEL_TEMPLATE, model_text
from interpret.prompts.prompts import Prompt
from interpret.prompts.scripts import joined
from interpret.prompts.selectors import select, selector_words
from interpret.prompts.spelling import decoded, pieces
from interpret.prompts.tokens import TokenisedPrompt, select_tokens, tokenise
from interpret.prompts.vocabulary import special_ids
from interpret.selfie.settings import GENERATED, LAYERS, RESID_PRE, TOKENS

SOURCE_SITES: tuple[Site, ...] = (RESID_PRE, "attn_out", "mixer_out", "mlp_out")
"""Sites from which states can be taken."""


@dataclass(frozen=True)
class Source:
    """A prompt, and the N of its states to interpret."""

    prompt: Prompt
    tokenised: TokenisedPrompt
    pairs: Sequence[tuple[int, int]]
    """[N], (layer, token) of each state. For the site ``resid_pre``, the layer is an index of ``hidden_states``: l for
    the input of layer l, L for the state after the final norm. For the other sites, it is the layer itself."""
    site: str = RESID_PRE
    """One of ``SOURCE_SITES``."""
    generated: str = ""
    """The text of the generated token that ``tokenised`` ends with, if it is interpreted; empty if it has none: it is
    a special token or a part of a character."""

    def text_until(self, token: int) -> str | None:
        """Return the text that the state of a token can be about: the user's message up to and including the token.

        The generated token follows the message. None if the model has read nothing of the message at the token.
        """
        ends = self.tokenised.ends
        text = self.tokenised.message_until(min(token, len(ends) - 1))
        text = joined(text, self.generated) if token == len(ends) else text
        return text if text.strip() else None

    @property
    def lacks_generated(self) -> bool:
        """Whether a pair names the first token that the model generates, which ``tokenised`` does not have yet."""
        return any(token == len(self.tokenised.ids) for _, token in self.pairs)


@unwrapping
def plan_sources(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    layers: str | Sequence[int] = LAYERS,
    tokens: str | Sequence[int] = TOKENS,
    site: str = RESID_PRE,
    chat_template: str = MODEL_TEMPLATE,
) -> list[Source]:
    """Tokenise prompts and resolve the selectors, before any forward pass.

    Args:
        model: a causal LM of a supported family.
        tokenizer: the model's tokenizer.
        prompts: prompts, from a file by ``load_examples``, or such as ``[Prompt("mine_1", "Dogs bark", raw=True)]``.
            For a prompt that has ``states``, these take the place of the layers and tokens selected here.
        layers: for the site ``resid_pre``, indices of ``hidden_states``: 0 for the embeddings, the last one for the
            state after the final norm. For the other sites, layers from 0. A list, or a selector such as ``"3,7"``,
            ``"0:20:5"``, ``"-1"``, ``"all"``.
        tokens: positions in the text the model reads, chat template included, from 0, or from the end with -1 as the
            last. A list, or a selector as for ``layers``; also ``content``, ``last``, ``subject``, ``subject_last`` and
            ``generated``, the first token that the model generates after the prompt, even if it is the end of the text.
        site: ``resid_pre``, the residual stream; ``attn_out``, ``mixer_out`` or ``mlp_out``, the output of attention,
            of what a layer has in its place, or of the MLP.
        chat_template: template for prompts that are not raw: ``model`` for the model's own, or a text such as
            ``"[INST] {prompt} [/INST]"``.

    Returns:
        One source per prompt, for ``interpretations``.

    Raises:
        InputError: if the site is unknown, a selector is invalid or does not fit a prompt (the message names the
            prompt), or a prompt is a plain string.
    """
    if site not in SOURCE_SITES:
        raise InputError(unknown("site", site, SOURCE_SITES))
    count = len(anatomy_of(model).layers) + (site == RESID_PRE)
    chosen = select("layer", selector_words(layers), count)
    sources = []
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            raise InputError(
                f"prompts[{index}] is the string {prompt!r}; expected a Prompt(name, text), "
                "with raw=True to read it without a chat template"
            )
        try:
            chat_text = model_text(tokenizer, prompt, chat_template)
            tokenised = tokenise(tokenizer, chat_text, prompt.subject)
            if prompt.states is not None:
                pairs = _own_pairs(prompt.states, count, len(tokenised.ids))
            else:
                positions = select_tokens(selector_words(tokens), tokenised, {GENERATED: [len(tokenised.ids)]})
                pairs = [(layer, token) for layer in chosen for token in positions]
        except InputError as error:
            raise InputError(f"prompt {prompt.name}: {error}") from None
        sources.append(Source(prompt, tokenised, pairs, site))
    return sources


def _own_pairs(states: Sequence[tuple[int, int]], n_layers: int, n_tokens: int) -> list[tuple[int, int]]:
    """Return the (layer, token) pairs that a prompt names itself, without those it names twice; -1 is the last."""
    layers = [select("layer", str(layer), n_layers)[0] for layer, _ in states]
    tokens = [select("token", str(token), n_tokens)[0] for _, token in states]
    return list(dict.fromkeys(zip(layers, tokens, strict=True)))


def source_of_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    pairs: Sequence[tuple[int, int]],
    site: str,
) -> Source:
    """Return the source of some (layer, token) pairs; negative numbers count from the end."""
    if not pairs:
        raise InputError("there are no states to interpret; give at least one (layer, token) pair")
    layers, tokens = (",".join(str(pair[part]) for pair in pairs) for part in (0, 1))
    (all_of,) = plan_sources(model, tokenizer, [prompt], layers=layers, tokens=tokens, site=site)
    n_layers = len(anatomy_of(model).layers) + (site == RESID_PRE)
    n_tokens = len(all_of.tokenised.ids)
    return replace(all_of, pairs=[(layer % n_layers, token % n_tokens) for layer, token in pairs])


def with_generated(tokenizer: PreTrainedTokenizerBase, source: Source, continuation: Continuation | None) -> Source:
    """Return a source with the first generated token after its prompt, if it lacks it and the model generated one."""
    if not source.lacks_generated or continuation is None or continuation.first is None:
        return source
    ids = [*source.tokenised.ids, continuation.first]
    shown = [*source.tokenised.pieces, pieces(tokenizer, ids)[-1]]
    unreadable = special_ids(tokenizer, ids[-1:]) or "\ufffd" in decoded(tokenizer, ids[-1:])
    tokenised = replace(source.tokenised, ids=ids, pieces=shown)
    return replace(source, tokenised=tokenised, generated="" if unreadable else shown[-1])


@torch.no_grad()
def states_of(model: PreTrainedModel, source: Source) -> dict[int, Tensor]:
    """Return the states of the requested layers at all tokens of the prompt, [T, D] each."""
    layers, n_layers = {layer for layer, _ in source.pairs}, len(anatomy_of(model).layers)
    names = {layer: f"{source.site}.{layer}" for layer in layers if layer < n_layers}
    ids = torch.tensor([source.tokenised.ids], device=input_device(model))  # [1, T]
    with record(model, list(names.values())) as seen:
        output = base_of(model)(ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return {layer: seen[names[layer]][0] if layer in names else output[0][0] for layer in layers}
