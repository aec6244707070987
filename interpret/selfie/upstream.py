"""The functions ``interpret`` and ``interpret_vectors``, with the arguments and results of the SelfIE package.

SelfIE: Chen, Vondrick & Mao 2024, arXiv 2403.10949.
"""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import anatomy_of, unwrapping
from interpret.errors import InputError
from interpret.prompts.prompts import Prompt
from interpret.prompts.spelling import decoded
from interpret.selfie.decoding import automatic_batch_size, prime
from interpret.selfie.readings import KeptReadings, Settings, State, are_finite, read
from interpret.selfie.rows import check_request, interpretations
from interpret.selfie.show import InterpretedStates
from interpret.selfie.sources import RESID_PRE, source_of_pairs
from interpret.selfie.templates import InterpretationPrompt
from interpret.storage.parts import StoredParts
from interpret.work.progress import streamed


@unwrapping
def interpret(
    original_prompt: str | Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    interpretation_prompt: InterpretationPrompt | Sequence[InterpretationPrompt],
    model: PreTrainedModel,
    tokens_to_interpret: Sequence[tuple[int, int]],
    bs: int | None = None,
    max_new_tokens: int = 30,
    k: int | Literal["same"] = 1,
    *,
    site: str = RESID_PRE,
    progress: bool = True,
) -> InterpretedStates:
    """Interpret states of one or several prompts with one or several interpretation prompts, and return a table.

    Args:
        original_prompt: one or several prompts, read without a chat template.
        tokenizer: the model's tokenizer.
        interpretation_prompt: one or several prompts into which the states are inserted.
        model: a causal LM of a supported family.
        tokens_to_interpret: (layer, token) pairs, the same for each prompt; negative numbers count from the end.
            Layers are indices of ``hidden_states``; for the other sites, layers.
        bs: number of interpretations generated together; None to choose it from the device's memory.
        max_new_tokens: maximum length of an interpretation, in tokens.
        k: the layer whose input is edited, or ``"same"`` for the layer that each state comes from.
        site: where the states are taken from: ``"resid_pre"``, ``"attn_out"``, ``"mixer_out"`` or ``"mlp_out"``.
        progress: show a progress bar while it runs, in a terminal or a notebook.

    Returns:
        Columns of equal length, suitable for ``pandas.DataFrame``, with one row per prompt, interpretation prompt and
        pair: ``prompt``, ``interpretation`` (text), ``layer``, ``token``, ``token_decoded``, ``relevancy_score``
        ([G] ``|P_with - P_without|`` of each generated token); and ``interpretation_prompt`` (text), ``probability``
        and ``probability_without_insertion`` ([G] each), ``signed_relevancy`` ([G] P_with - P_without),
        ``gain_over_nothing`` (nats per token) and ``control`` (the text generated with nothing inserted). The dict
        shows itself as a page to explore.

    Raises:
        InputError: if a prompt, layer or token does not exist.
    """
    prompts = [original_prompt] if isinstance(original_prompt, str) else original_prompt
    if isinstance(interpretation_prompt, InterpretationPrompt):
        interpretation_prompt = [interpretation_prompt]
    sources = [
        source_of_pairs(model, tokenizer, Prompt(f"prompt_{number}", text, "", raw=True), tokens_to_interpret, site)
        for number, text in enumerate(prompts)
    ]
    settings = Settings(
        k, new_tokens=max_new_tokens, prompt_output_tokens=0, wrong_vector=False, text_control=False, batch_size=bs
    )
    table: dict[str, list[Any]] = {}
    control = ""
    rows = list(interpretations(model, tokenizer, sources, interpretation_prompt, settings, progress=progress))
    for row in rows:
        if row.kind == "control":
            control = row.interpretation_text
            continue
        cells = {
            "prompt": row.prompt,
            "interpretation": row.interpretation_text,
            "layer": row.layer_idx,
            "token": row.token_idx,
            "token_decoded": row.current_token,
            "relevancy_score": row.interpretation_weights,
            "interpretation_prompt": row.repeat_prompt,
            "probability": row.interpretation_prob,
            "probability_without_insertion": row.probability_without_insertion,
            "signed_relevancy": row.signed_relevancy,
            "gain_over_nothing": row.gain_over_nothing,
            "control": control,
        }
        for name, cell in cells.items():
            table.setdefault(name, []).append(cell)
    return InterpretedStates(table, rows)


@unwrapping
def interpret_vectors(
    vecs: Tensor | Sequence[Tensor],
    model: PreTrainedModel,
    interpretation_prompt: InterpretationPrompt,
    tokenizer: PreTrainedTokenizerBase,
    bs: int | None = None,
    k: int = 1,
    max_new_tokens: int = 30,
    *,
    progress: bool = True,
) -> list[str]:
    """Interpret arbitrary vectors, and return the generated texts.

    Args:
        vecs: the vectors, [N, D], or N tensors [D].
        model: a causal LM of a supported family.
        interpretation_prompt: the prompt into which the vectors are inserted.
        tokenizer: the model's tokenizer.
        bs: number of interpretations generated together; None to choose it from the device's memory.
        k: the layer whose input is edited.
        max_new_tokens: maximum length of an interpretation, in tokens.
        progress: as in ``interpret``.

    Returns:
        N texts, one per vector.

    Raises:
        InputError: if a vector has the wrong width or is not finite; the message names its index.
    """
    width = anatomy_of(model).width
    for index, vector in enumerate(vecs):
        if tuple(vector.shape) != (width,):
            raise InputError(f"vecs[{index}] has shape {list(vector.shape)}; the model's hidden width is {width}")
    for index, finite in enumerate(are_finite(list(vecs))):
        if not finite:
            raise InputError(f"vecs[{index}] contains NaN or infinity; give finite vectors")
    settings = Settings(k, new_tokens=max_new_tokens, wrong_vector=False, text_control=False)
    check_request(model, tokenizer, [], [interpretation_prompt], settings)
    primed = prime(model, interpretation_prompt, max_new_tokens)
    states = [State("", k, index, vector) for index, vector in enumerate(vecs)]
    size = bs or automatic_batch_size(primed, max_new_tokens)
    readings = read(primed, states, settings, size, lambda line: None, KeptReadings(StoredParts(), 0))
    shown = streamed("Interpreting", readings, len(states), shown=progress)
    texts = [[] if isinstance(reading, str) else reading.written.ids for reading in shown]
    return [decoded(tokenizer, ids) for ids in texts]
