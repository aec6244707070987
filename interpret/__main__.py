"""``python -m interpret`` is the command ``interpret``."""

from interpret.cli import main

main()
