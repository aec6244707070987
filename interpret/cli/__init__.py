"""The commands: arguments, progress, exit codes. The only package that prints.

Exit codes: 0 all that was asked for is done; 2 something the user can mend, said in one message; 3 done, but some facts
or prompts could not be (they are dropped, and the reasons reported); 130 interrupted.
"""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
