"""The texts of the benchmark: what is trained on, and what is measured on. Never both.

Data folder (`CROSSTILL_DATA`): GSM8K, HumanEval, the user-oriented instructions of Self-Instruct,
the State of the Union addresses and the Universal Declaration of Human Rights. Trained on: GSM8K's
training part, the addresses but the last six, and the documentation of this Python. Held out: the
rest.
"""

import ast
import json
import os
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from demo_parts.prose import read_prose

from crosstill.errors import DataError

HELD_OUT_ADDRESSES = 6
CHARACTERS = 700
"""Of a training text, at most."""

SHORT = 300
"""Of the declaration in each language."""

PROMPTS = 32
"""Held-out prompts of each kind: chat, code and prose."""


def data_folder() -> Path:
    """Where the data sets are.

    Raises:
        DataError: the environment does not say, or there is nothing.
    """
    folder = Path(os.environ.get("CROSSTILL_DATA", ""))
    if not (folder / "gsm8k" / "train.jsonl").exists():
        raise DataError(
            f"CROSSTILL_DATA is {str(folder)!r}, expected a folder with gsm8k/train.jsonl, "
            "human_eval, self_instruct, state_union and udhr: set it"
        )
    return folder


def shuffled(values: list[Any], seed: int) -> list[Any]:
    """The values in another order, the same for a seed."""
    found = list(values)
    random.Random(seed).shuffle(found)
    return found


def paragraphs(text: str) -> Iterator[str]:
    """Cut a text at line ends into pieces of at most `CHARACTERS`."""
    piece = ""
    for line in text.split("\n"):
        if piece and len(piece) + len(line) > CHARACTERS:
            yield piece.strip()
            piece = ""
        piece += line[:CHARACTERS] + "\n"
    if len(piece) > CHARACTERS // 4:
        yield piece.strip()


def addresses() -> tuple[list[str], list[str]]:
    """Pieces of the addresses to train on, and of the held-out ones."""
    files = sorted((data_folder() / "state_union").glob("*.txt"))
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    training, held_out = texts[:-HELD_OUT_ADDRESSES], texts[-HELD_OUT_ADDRESSES:]
    return (
        [piece for text in training for piece in paragraphs(text)],
        [piece for text in held_out for piece in paragraphs(text)],
    )


def problems(part: str) -> list[str]:
    """Questions of GSM8K with their answers, as plain text."""
    lines = (data_folder() / "gsm8k" / f"{part}.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    return [f"{row['question']}\n{row['answer']}" for row in rows]


def prose() -> list[str]:
    """The documentation of this Python, but what is held out."""
    return read_prose().training


def real_texts() -> list[str]:
    """Training texts that people wrote, mixed: a third of each source while it lasts."""
    sources = [problems("train"), addresses()[0], prose()]
    mixed = zip(*(shuffled(source, 0) for source in sources), strict=False)
    return [text[:CHARACTERS] for texts in mixed for text in texts]


def functions() -> list[str]:
    """Heads of documented functions of this Python's library: signature and docstring."""
    found = []
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (SyntaxError, ValueError, OSError):
            continue
        lines = source.split("\n")
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
                head = "\n".join(lines[node.lineno - 1 : node.body[0].end_lineno])
                if 80 <= len(head) <= CHARACTERS:
                    found.append(head + "\n")
    return found


def held_out_prompts() -> dict[str, list[Any]]:
    """Prompts for the teacher, of kinds and texts that are never trained on."""
    folder = data_folder()
    lines = (folder / "self_instruct" / "user_oriented_instructions.jsonl").read_text("utf-8")
    chat = [_asked(json.loads(line)) for line in lines.split("\n") if line]
    lines = (folder / "human_eval" / "HumanEval.jsonl").read_text("utf-8")
    code = [json.loads(line)["prompt"].rstrip() for line in lines.split("\n") if line]
    essays = [*_openings(addresses()[1]), *_openings(read_prose().held_out)]
    short = [one for one in chat if len(one[0]["content"]) <= CHARACTERS]
    return {
        "chat": shuffled(short, 0)[:PROMPTS],
        "code": shuffled([one for one in code if len(one) <= CHARACTERS], 0)[:PROMPTS],
        "prose": shuffled(essays, 0)[:PROMPTS],
    }


def held_out_texts() -> dict[str, list[str]]:
    """Real texts for bits per byte: like the training texts, unlike them, and by language."""
    udhr = sorted((data_folder() / "udhr").glob("*.txt"))
    languages = {f"udhr/{f.stem}": [f.read_text(encoding="utf-8")[:SHORT]] for f in udhr}
    return {
        "gsm8k": problems("test")[:64],
        "addresses": shuffled(addresses()[1], 0)[:48],
        **languages,
    }


def _asked(row: dict[str, Any]) -> list[dict[str, str]]:
    given = row["instances"][0]["input"]
    content = f"{row['instruction']}\n\n{given}" if given else row["instruction"]
    return [{"role": "user", "content": content}]


def _openings(texts: list[str]) -> list[str]:
    """The first 30 words of each text that goes on after them."""
    words = (text.split(" ") for text in texts)
    return [" ".join(found[:30]) for found in words if len(found) > 60]
