"""English prose that every Python carries, in a training part and a held-out part.

Two sources: the help topics of the language reference (`pydoc_data.topics`) and the docstrings of
the standard library. Nothing is imported for its docstrings: the files are parsed.
"""

import ast
import hashlib
import importlib
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crosstill.errors import DataError

SHORTEST = 160
"""Characters of a paragraph that is worth reading."""

_LETTERS = 0.85  # of a paragraph's characters: below this it is a table or code
_SENTENCE = 60  # a sentence this long in both parts would be a leak
_HELD_OUT_OF = 8  # one document in so many is held out
_NO_PROSE = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data"}


@dataclass(frozen=True)
class Prose:
    """Paragraphs to train on, and paragraphs of other documents."""

    training: list[str]
    held_out: list[str]


def read_prose() -> Prose:
    """Read the prose of this Python, split by document.

    Raises:
        DataError: this Python came without its sources and help texts.
    """
    prose = split({**help_topics(), **docstrings(Path(sysconfig.get_path("stdlib")))})
    size = sum(map(len, prose.training))
    if size < 200_000 or len(prose.held_out) < 100:
        raise DataError(
            f"the standard library of this Python holds {size} characters of prose, expected at "
            f"least 200,000: its sources or its help texts are not installed. Use a Python that "
            f"has them, such as one from python.org."
        )
    return prose


def split(documents: dict[str, str]) -> Prose:
    """Split documents into training and held-out paragraphs without a leak.

    A document is held out by a hash of its name, so that the split is the same everywhere. The
    help topics repeat each other: a training paragraph that shares a long sentence with a held-out
    one is left out.

    Example:
        >>> text = "All " + "words are letters and spaces " * 8
        >>> found = split({str(n): f"{text} {'abcdefghij'[n]}." for n in range(10)})
        >>> len(found.training) + len(found.held_out)
        10
    """
    training: dict[str, None] = {}
    held_out: dict[str, None] = {}
    for name, text in documents.items():
        chosen = held_out if _is_held_out(name) else training
        chosen.update(dict.fromkeys(paragraphs(text)))
    known = {sentence for paragraph in held_out for sentence in long_sentences(paragraph)}
    clean = [p for p in training if p not in held_out and known.isdisjoint(long_sentences(p))]
    return Prose(clean, list(held_out))


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs that are prose, each on one line."""
    for block in re.split(r"\n\s*\n", text):
        if ">>>" in block or "::=" in block:
            continue
        line = " ".join(block.split())
        letters = sum(c.isalpha() or c == " " for c in line)
        if len(line) >= SHORTEST and line[0].isupper() and letters >= _LETTERS * len(line):
            yield line


def long_sentences(paragraph: str) -> set[str]:
    """Find the sentences of a paragraph that are too long to stand in two texts by chance."""
    return {s for s in re.split(r"(?<=[.;:])\s+", paragraph) if len(s) >= _SENTENCE}


def help_topics() -> dict[str, str]:
    """Read the help topics, or nothing where this Python has none."""
    try:
        found = importlib.import_module("pydoc_data.topics").topics
    except (ImportError, AttributeError):
        return {}
    return {f"topic:{name}": text for name, text in found.items() if isinstance(text, str)}


def docstrings(folder: Path) -> dict[str, str]:
    """Read the docstrings of all modules below a folder, one document a module."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if _NO_PROSE.isdisjoint(name.parts):
            found[name.as_posix()] = "\n\n".join(_docstrings_of(path))
    return found


def _docstrings_of(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return []  # templates and files of another Python
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for node in nodes if (text := ast.get_docstring(node))]


def _is_held_out(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % _HELD_OUT_OF == 0
