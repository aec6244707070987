"""Processes of their own that tests start."""

import interpret

WITHOUT_PACKAGE = f"""
import sys, types
package = types.ModuleType("interpret")
package.__path__ = {list(interpret.__path__)!r}
sys.modules["interpret"] = package
"""
"""Lets a script load single modules of the package without its heavy imports: torch, transformers."""
