"""For the documentation: docstrings as the pages show them.

The docstring reader knows the heading `Examples:` only, and would lay `Example:` out as a quote.
Formulas in the notation of Sphinx are shown as they are written, as code: the pages load no script
from another host to typeset them.
"""

import re
from typing import Any

from griffe import Extension, Object

_REWRITES = (
    (re.compile(r"^(\s*)Example:$", re.MULTILINE), r"\1Examples:"),
    (re.compile(r":math:`([^`]*)`"), r"`\1`"),
)
_FORMULA = re.compile(r"^\.\. math:: (.*(?:\n +\S.*)*)", re.MULTILINE)


def rewritten(docstring: str) -> str:
    """Rewrite what the reader would show badly."""
    for pattern, replacement in _REWRITES:
        docstring = pattern.sub(replacement, docstring)
    return _FORMULA.sub(_as_code, docstring)


def _as_code(found: re.Match[str]) -> str:
    return "\n".join("    " + line.strip() for line in found[1].splitlines())


class Docstrings(Extension):
    """Rewrites the docstring of every object."""

    def on_object(self, *, obj: Object, **_kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)
