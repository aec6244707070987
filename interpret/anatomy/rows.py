"""Which texts may share a batch, so that each gives the numbers that it gives alone.

Usually any may: a text attends neither to padding nor to other texts. There are three exceptions. The rotary embeddings
of some models (longrope, as in Phi-3) are chosen once per pass, by its longest text. The 8-bit layers of bitsandbytes
choose the columns that they do not round over all tokens of a batch; those of ``models.load`` do not. And some
recurrent layers (RecurrentGemma) read padding on the left as if it were text, see ``measured``.
"""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel

from interpret.anatomy.anatomy import text_config
from interpret.anatomy.attention import forgets_window
from interpret.anatomy.measured import loses_its_cache, reads_padding
from interpret.errors import InputError

_LONGROPE = ("longrope", "su")
"""Names of these rotary embeddings; "su" is the older one."""


def batches(model: PreTrainedModel, lengths: Sequence[int], size: int, new_tokens: int = 0) -> Iterator[slice]:
    """Divide texts into batches, in their order, in which every text gives the numbers that it gives alone.

    Args:
        model: the model that reads them.
        lengths: number of tokens of each text.
        size: maximum number of texts in a batch.
        new_tokens: how many tokens the model writes after each text; for this, texts are padded on the left.

    Yields:
        The texts of each batch: slices that together cover all texts.
    """
    if len(lengths) == 1:
        yield slice(0, 1)
        return
    alone = _rounds_by_batch(model)
    kinds = [_rotation_kind(model, length, new_tokens) for length in lengths]
    if new_tokens and len(set(lengths)) > 1 and reads_padding(model) is not None:
        kinds = list(lengths)
    start = 0
    while start < len(kinds):
        end = start + 1
        while end < min(start + size, len(kinds)) and kinds[end] == kinds[start] and not alone:
            end += 1
        yield slice(start, end)
        start = end


def check_same_rotation(model: PreTrainedModel, lengths: Sequence[int], new_tokens: int = 0) -> None:
    """Check that the rotary embeddings of a batch are those of each of its texts alone.

    Args:
        model: the model that reads the batch.
        lengths: number of tokens of each text.
        new_tokens: how many tokens the model writes after each text.

    Raises:
        InputError: if texts of the batch need different rotary embeddings.
    """
    limit = longrope_limit(model)
    if len({_rotation_kind(model, length, new_tokens) for length in lengths}) > 1:
        written = f" and {new_tokens} new tokens" if new_tokens else ""
        raise InputError(
            f"the samples have {min(lengths)} to {max(lengths)} tokens{written}, but this model has other rotary "
            f"embeddings (longrope) for texts of more than {limit} tokens, and one set for a whole batch: "
            "run the samples one by one"
        )


def check_keeps_rotation(model: PreTrainedModel, what: str, n_tokens: int, new_tokens: int) -> None:
    """Check that a text does not grow into the range of other rotary embeddings while the model continues it.

    The cached keys of the text would be wrong there.

    Args:
        model: the model that continues the text.
        what: the text, as messages name it.
        n_tokens: number of its tokens.
        new_tokens: how many tokens the model writes after it.

    Raises:
        InputError: if the rotary embeddings change.
    """
    limit = longrope_limit(model)
    if limit is not None and changes_rotation(model, n_tokens, new_tokens):
        raise InputError(
            f"{what} has {n_tokens} tokens; with {new_tokens} new tokens it grows beyond {limit}, where this model has "
            f"other rotary embeddings (longrope): ask for at most {limit - n_tokens} new tokens"
        )


def changes_rotation(model: PreTrainedModel, n_tokens: int, new_tokens: int) -> bool:
    """Return whether the rotary embeddings of a text change while the model continues it."""
    limit = longrope_limit(model)
    return limit is not None and n_tokens <= limit < n_tokens + new_tokens


def needs_whole_passes(model: PreTrainedModel, n_tokens: int, new_tokens: int) -> bool:
    """Return whether ``generate`` with a KV cache deviates from passes over the whole text, so that it needs these."""
    if forgets_window(model, n_tokens + new_tokens) or changes_rotation(model, n_tokens, new_tokens):
        return True
    return new_tokens > 1 and loses_its_cache(model, n_tokens) is not None


def longrope_limit(model: PreTrainedModel) -> int | None:
    """Return the length of text beyond which a model has other rotary embeddings (longrope); None without these."""
    config = text_config(model)
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # One dict, or one for each type of layer.
    for one in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        if one.get("rope_type", one.get("type")) in _LONGROPE:
            known = one.get("original_max_position_embeddings")
            limit: int = known or getattr(config, "original_max_position_embeddings", config.max_position_embeddings)
            return limit
    return None


def _rotation_kind(model: PreTrainedModel, n_tokens: int, new_tokens: int) -> int:
    """Return a number that is the same for texts with the same rotary embeddings in all passes of a continuation."""
    limit = longrope_limit(model)
    if limit is None:
        return 0
    # Texts of different lengths change their rotary embeddings in different passes.
    return n_tokens if changes_rotation(model, n_tokens, new_tokens) else -1 if n_tokens > limit else 0


def _rounds_by_batch(model: PreTrainedModel) -> bool:
    """Return whether a model has layers whose rounding of a token depends on the other tokens of the batch."""
    # By its name, because bitsandbytes is optional.
    layers = (module for module in model.modules() if type(module).__name__ == "Linear8bitLt")
    return any(getattr(getattr(layer, "state", None), "threshold", 0) for layer in layers)
