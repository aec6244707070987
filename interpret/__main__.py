"""``python -m interpret`` runs the command ``interpret``."""

from interpret.cli import main

main()
