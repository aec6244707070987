"""What tokens spell: the text of each, the characters of a text that each covers, and the words they form.

Byte-level BPE and SentencePiece tokenizers define the bytes of every token. This module reads them from the tokens, so
that it knows exactly which part of a text a token is, even if it is a part of a character, and also for slow
tokenizers. Of other tokenizers, the offsets that they report are used. This module does not import transformers, so
that stored tokens can be joined without it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Literal

from interpret.prompts.scripts import combines, in_word, without_spaces
from interpret.prompts.vocabulary import added_tokens, special_ids, written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
Kind = Literal["byte_level", "sentence_piece", "other"]
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # how SentencePiece writes a space
_WHITESPACE = re.compile(rb"(?:\s|\xc2\xa0|\xe3\x80\x80)+")  # ASCII, no-break and ideographic space, in UTF-8


def pieces(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    text: str | None = None,
    reported: Sequence[Span] | None = None,
) -> list[str]:
    """Return the text of each of some neighbouring tokens, for people to read.

    Joined, the pieces are the text, except that a character that several tokens share is named in each of them, as
    ``東 1/3``, ``東 2/3`` and ``東 3/3`` (see ``join_pieces``), and bytes that are no character as ``<0xE6>``.

    Args:
        tokenizer: the tokenizer.
        ids: token ids, [T].
        text: the text they were made from, without special tokens that the tokenizer added; None if unknown. If it is
            given, a space that the tokenizer put before the text is left out.
        reported: the characters of the text that each token covers, as the tokenizer reports them, if it does. They are
            used for tokenizers whose tokens do not tell their spaces.

    Returns:
        [T] texts.
    """
    spelled = _spelled(tokenizer, ids)
    if spelled is None:
        own = [decoded(tokenizer, [token]) for token in ids]
        return own if text is None or reported is None else _with_spaces(own, text, reported)
    parts = spelled.parts
    if text is not None:
        data = text.encode("utf-8", "surrogatepass")
        ranges = _aligned(spelled, data)
        # A token that is only the added space keeps it: an empty text could not be seen.
        parts = parts if ranges is None else [cut or own for cut, own in zip(_slices(data, ranges), parts, strict=True)]
    return _readable(parts)


def _with_spaces(parts: Sequence[str], text: str, spans: Sequence[Span]) -> list[str]:
    """Put the whitespace of a text that no token covers before the token that follows it."""
    ends = [0, *accumulate((end for _, end in spans), max)]
    gaps = [text[before:start] for before, (start, _) in zip(ends, spans, strict=False)]
    return [(gap if gap.isspace() else "") + part for gap, part in zip(gaps, parts, strict=True)]


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of tokens as the tokenizer decodes it, special tokens included.

    Ids that the tokenizer does not have are left out: embeddings are often padded to more tokens.
    """
    known = [token for token in ids if written(tokenizer, token) is not None]
    return tokenizer.decode(known, clean_up_tokenization_spaces=False)


def piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return the text of a single token, for people to read, including a space at its beginning."""
    return pieces(tokenizer, [token])[0]


def join_pieces(parts: Sequence[str]) -> str:
    """Join pieces to a text; a character that several of them share is written once.

    >>> join_pieces(["The", " 東 1/2", "東 2/2京"])
    'The 東京'
    """
    joined = "".join(parts)
    for n in (2, 3, 4):
        joined = re.sub(rf"(.) 1/{n}" + "".join(rf"\1 {k}/{n}" for k in range(2, n + 1)), r"\1", joined)
    return joined


def words(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """Number the words that tokens form: tokens of the same word have the same number, [T].

    A word begins with the whitespace before it. Special tokens are words of their own; so is, in scripts without
    spaces, every token that ends at the end of a character. Punctuation belongs to the word beside it. For a tokenizer
    whose tokens do not tell their bytes, every token counts as a word.
    """
    spelled = _spelled(tokenizer, ids)
    if spelled is None:
        return list(range(len(ids)))
    chars = _characters(b"".join(spelled.parts))
    before, after = {char.end: char.text for char in chars}, {char.start: char.text for char in chars}
    numbers: list[int] = []
    at, blank = 0, True  # position in bytes; whether the word so far is only whitespace
    for index, part in enumerate(spelled.parts):
        apart = index > 0 and (spelled.special[index] or spelled.special[index - 1])
        if at in after and at in before and not blank:
            apart = apart or _begins_word(before[at], after[at])
        numbers.append(numbers[-1] + apart if numbers else 0)
        blank = (blank or apart) and not part.strip()
        at += len(part)
    return numbers


def _begins_word(before: str, after: str) -> bool:
    """Tell whether a word begins between two characters, of which the second begins a token."""
    if len(before) > 1 or len(after) > 1:  # a byte that is not part of a character
        return False
    if before.isspace() or after.isspace():
        return True
    unspaced, inside = ([test(char) for char in (before, after)] for test in (without_spaces, in_word))
    return not combines(after) and (all(unspaced) or (any(unspaced) and all(inside)))


def aligned_spans(tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int]) -> list[Span] | None:
    """Return the characters of a text that each of its tokens covers, by comparing the text with what they spell.

    Args:
        tokenizer: the tokenizer.
        text: the text.
        ids: its tokens, [T], without special tokens that the tokenizer added.

    Returns:
        [T] (start, end) in characters, empty for a token that covers none; a token that covers a part of a character
        gets the whole. None if the tokens do not spell the text, as after normalisation.
    """
    spelled, data = _spelled(tokenizer, ids), text.encode("utf-8", "surrogatepass")
    ranges = None if spelled is None else _aligned(spelled, data)
    if ranges is None:
        return None
    # The character of each byte, and one more entry for the end of the text.
    numbers = [number for number, char in enumerate(text) for _ in char.encode("utf-8", "surrogatepass")]
    numbers.append(len(text))
    return [
        (numbers[first], numbers[end - 1] + 1) if first < end else (numbers[first], numbers[first])
        for first, end in ranges
    ]


def is_word_piece(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer is of the WordPiece kind (BERT), which does not keep the spaces of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    name = "" if backend is None else type(backend.model).__name__
    return name == "WordPiece" or hasattr(tokenizer, "wordpiece_tokenizer")


@dataclass(frozen=True)
class _Spelled:
    """The bytes of some tokens."""

    parts: list[bytes]
    special: list[bool]
    """Which are special tokens, whose bytes are their name."""


@dataclass(frozen=True)
class _Character:
    text: str
    start: int
    """Its first byte."""
    end: int
    """One past its last byte."""


def _spelled(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> _Spelled | None:
    """Return the bytes of tokens; None if the tokenizer does not define them, as for ``<unk>``."""
    kind = _kind(tokenizer)
    if kind == "other":
        return None
    special, added = special_ids(tokenizer, ids), added_tokens(tokenizer, ids)
    flags = [token in special for token in ids]
    parts: list[bytes] = []
    for token, is_special in zip(ids, flags, strict=True):
        name = written(tokenizer, token)
        if name is None:  # embeddings are often padded to more tokens than the tokenizer has
            parts.append(f"<{token}>".encode())
        elif is_special:
            parts.append(name.encode())
        elif kind == "sentence_piece":
            byte = _BYTE.fullmatch(name)
            parts.append(bytes([int(byte[1], 16)]) if byte else name.replace(_SPACE, " ").encode())
        else:
            parts.append(name.encode() if token in added else _from_byte_level(name))
    return _Spelled(parts, flags)


def _kind(tokenizer: PreTrainedTokenizerBase) -> Kind:
    """Return how a tokenizer writes bytes and spaces in its tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        if hasattr(tokenizer, "byte_decoder"):
            return "byte_level"
        # Marian's tokenizer has two models.
        return "sentence_piece" if hasattr(tokenizer, "sp_model") or hasattr(tokenizer, "spm_source") else "other"
    decoder = "" if backend.decoder is None else backend.decoder.__getstate__().decode()  # JSON
    if "ByteLevel" in decoder:
        return "byte_level"
    return "sentence_piece" if _SPACE in decoder or "Metaspace" in decoder else "other"


@cache
def _byte_of() -> dict[str, int]:
    """Return the byte that each character of byte-level BPE stands for.

    Printable bytes of Latin-1 stand for themselves; the others are numbered from U+0100 (Radford et al. 2019, GPT-2).
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + number): byte for number, byte in enumerate(others)}


def _from_byte_level(name: str) -> bytes:
    table = _byte_of()
    return bytes(table[char] for char in name) if all(char in table for char in name) else name.encode()


def _aligned(spelled: _Spelled, data: bytes) -> list[Span] | None:
    """Return the bytes of a text that each token covers; None if the tokens do not spell the text.

    Many tokenizers put a space before the text, and some after a special token, which the text does not have.
    """
    ranges: list[Span] = []
    at = 0
    for _, group in groupby(zip(spelled.special, spelled.parts, strict=True), key=lambda pair: pair[0]):
        parts = [part for _, part in group]
        found = _matched(parts, data, at)
        if found is None and parts[0].startswith(b" "):
            found = _matched([parts[0][1:], *parts[1:]], data, at)
        if found is None:
            return None
        ranges += found
        at = ranges[-1][1]
    return ranges if not data[at:].strip() else None


def _matched(parts: Sequence[bytes], data: bytes, at: int) -> list[Span] | None:
    """Match tokens with a text from byte ``at`` on; None if they do not match.

    Whitespace of the text may be missing in the tokens, or be a single space in them: slow tokenizers merge it, and
    some special tokens take the whitespace beside them.
    """
    ranges: list[Span] = []
    for part in parts:
        start = at
        if not data.startswith(part, at):
            blank = _WHITESPACE.match(data, at)
            if blank is None:
                return None
            at, takes_space = blank.end(), part.startswith(b" ")
            start, part = (start, part[1:]) if takes_space else (at, part)
            if not data.startswith(part, at):
                return None
        at += len(part)
        ranges.append((start, at))
    return ranges


def _slices(data: bytes, ranges: Sequence[Span]) -> list[bytes]:
    """Cut a text into the parts of tokens: each begins where the one before it ends, so that nothing is left out."""
    ends = [end for _, end in ranges[:-1]] + [len(data)] if ranges else []
    return [data[first:end] for first, end in zip([0, *ends], ends, strict=False)]


def _characters(data: bytes) -> list[_Character]:
    """Return the characters of UTF-8 bytes; a byte that is not part of one becomes ``<0xE6>``."""
    found: list[_Character] = []
    at = 0
    while at < len(data):
        size = next((n for n in (1, 2, 3, 4) if _is_character(data[at : at + n])), 0)
        text = data[at : at + size].decode() if size else f"<0x{data[at]:02X}>"
        found.append(_Character(text, at, at + max(size, 1)))
        at = found[-1].end
    return found


def _is_character(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


def _readable(parts: Sequence[bytes]) -> list[str]:
    """Return the text of each part of some bytes; shared characters are named."""
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + len(part))
    spans = list(zip(ends, ends[1:], strict=False))
    texts: list[list[str]] = [[] for _ in parts]
    index = 0
    for char in _characters(b"".join(parts)):
        while spans[index][1] <= char.start:
            index += 1
        last = index
        while spans[last][1] < char.end:
            last += 1
        sharing = [one for one in range(index, last + 1) if spans[one][0] < spans[one][1]]
        for number, one in enumerate(sharing, start=1):
            texts[one].append(char.text if len(sharing) == 1 else f"{char.text} {number}/{len(sharing)}")
    return ["".join(text) for text in texts]
