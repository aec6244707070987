"""The command line: options, printed results and exit codes.

Exit codes: 0: success; 2: invalid input, and one message says what to fix; 3: finished, but some facts or prompts could
not be processed (they are dropped, and the reasons are printed); 130: interrupted.
"""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
