"""Names that are used in file names."""

import unicodedata


def file_key(name: str) -> str:
    """Return a key that is equal for names which some file systems do not distinguish.

    macOS and Windows ignore the case of letters, and macOS how accents are encoded.

    >>> file_key("Known_A") == file_key("known_a")
    True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
