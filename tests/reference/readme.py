"""The code of README.md, and what it prints: ``python tests/reference/readme.py`` writes the latter into the file."""

import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[str, str | None]]:
    """Return each block of Python, and the block of text after it, which it prints; None if there is none."""
    return [(code, printed) for code, printed in _BLOCK.findall(text)]


def printed(codes: list[str]) -> Iterator[str]:
    """Run blocks of Python one after another, with the same names, and yield what each prints."""
    names: dict[str, object] = {}
    for code in codes:
        out = io.StringIO()
        with redirect_stdout(out):
            exec(compile(code, "README.md", "exec"), names)
        yield re.sub(r" +$", "", out.getvalue(), flags=re.MULTILINE)


def with_outputs(text: str) -> str:
    """Return the README's text with what its code prints."""
    outputs = printed([code for code, _ in blocks(text)])

    def block(match: re.Match[str]) -> str:
        out = next(outputs)
        return f"```python\n{match[1]}```\n" + (f"\n```text\n{out}```\n" if out else "")

    return _BLOCK.sub(block, text)


if __name__ == "__main__":
    README.write_text(with_outputs(README.read_text(encoding="utf-8")), encoding="utf-8")
