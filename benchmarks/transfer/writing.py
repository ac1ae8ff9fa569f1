"""Training texts that the teacher writes: chats, code and prose, drawn from its own distribution.

Chats need no prompts: shown its template up to the place where a user speaks, the teacher writes
what a user would ask (Magpie, arXiv 2406.08464), and then answers it.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from texts import functions, prose, real_texts, shuffled
from transformers import PreTrainedModel

from crosstill.evaluation.divergence import whole_text
from crosstill.evaluation.sampling import sample
from crosstill.text.encode import TextEncoder

ASKED, ANSWERED, CONTINUED = 48, 112, 112
"""Tokens of a question, an answer, and a continuation, at most."""

OPENING = 20
"""Words of a real text that the teacher goes on from."""

SHORT_OPENING = 4
"""The same where as much as possible is to be the teacher's."""

ROWS_AT_A_TIME = 96

VERBS = (
    "Write", "Create", "Make", "List", "Give", "Explain", "Describe", "Convert", "Translate",
    "Summarize", "Rewrite", "Compare", "Classify", "Generate", "Plan", "Edit", "Suggest", "Find",
    "Design", "Choose", "Correct", "Answer", "Name", "Identify", "Provide", "Turn",
)  # fmt: skip
"""What a task may begin with. By itself the model mostly asks whether it can be helped."""

WORDS = (
    "What", "How", "Why", "Which", "When", "Who", "Is", "Are", "Does", "Can you", "I", "I am",
    "I have", "My", "We", "You", "The", "The following", "This", "In", "If", "For", "Given",
    "Given a", "Here is", "Below", "Using", "Suppose", "Consider", "Let", "Please", "A", "Tell",
    "Calculate", "Extract", "Fill", "Draft", "Write a", "Write an email", "Make a list of",
)  # fmt: skip
"""What else a question may begin with."""

BEGINNINGS = (
    "def ", "def is_", "def get_", "def find_", "def count_", "def make_", "def remove_",
    "def add_", "def check_", "def sort_", "def to_", "def max_", "def sum_", "def split_",
    "def has_",
    "class ", "import ", "import math\n", "import re\n", "import random\n", "from typing import ",
    "from collections import ", "# ", "async def ", "if __name__ == ", "@",
)  # fmt: skip
"""What a program may begin with."""

PARTS = {"tasks": 0.45, "functions": 0.2, "signatures": 0.2, "prose": 0.15}
"""Shares of the kinds among further rows."""

FREE_PARTS = {"questions": 0.45, "programs": 0.4, "sentences": 0.15}
"""Shares of the kinds among rows that are the teacher's own but for a word."""

PROGRAM = 192
"""Tokens of a program, at most."""


def chats(
    model: PreTrainedModel,
    encoder: TextEncoder,
    count: int,
    seed: int,
    begin: Sequence[str] = ("",),
) -> list[Any]:
    """Let the teacher ask, from these words in turn, and answer."""
    marker = "\u2042"
    empty = encoder.tokenizer.apply_chat_template(
        [{"role": "user", "content": marker}], tokenize=False, add_generation_prompt=True
    )
    opening = str(empty).split(marker)[0]
    words = [begin[number % len(begin)] for number in range(count)]
    ids = [encoder.tokenizer(opening + word, add_special_tokens=False).input_ids for word in words]
    asked = _texts(model, encoder, [list(one) for one in ids], ASKED, seed)
    texts = [(word + text).strip() for word, text in zip(words, asked, strict=True)]
    questions = [[{"role": "user", "content": text}] for text in texts if text]
    prompts = [_chat_ids(encoder, one) for one in questions]
    answers = _texts(model, encoder, prompts, ANSWERED, seed + 1)
    return [
        {"messages": [*question, {"role": "assistant", "content": answer.strip()}]}
        for question, answer in zip(questions, answers, strict=True)
        if answer.strip()
    ]


def continued(
    model: PreTrainedModel,
    encoder: TextEncoder,
    prompts: list[str],
    seed: int,
    longest: int = CONTINUED,
) -> list[Any]:
    """Let the teacher go on from these openings."""
    begin = [] if encoder.roles.bos is None else [encoder.roles.bos]
    ids = [[*begin, *encoder.encode(prompt)] for prompt in prompts]
    texts = _texts(model, encoder, ids, longest, seed)
    return [{"text": prompt + text} for prompt, text in zip(prompts, texts, strict=True)]


def write_more(
    model: PreTrainedModel, encoder: TextEncoder, path: Path, rows: int, used: int, seed: int
) -> None:
    """Write further rows, of more kinds: tasks, other functions, signatures, and other prose.

    Args:
        model: the teacher.
        encoder: its tokenizer.
        path: of the rows; what is there already is kept.
        rows: how many.
        used: functions and openings of prose that `write` has used.
        seed: of `write` as well.
    """
    heads = shuffled(functions(), seed)
    count = {name: round(share * rows) for name, share in PARTS.items()}
    signed = [_signature(head) for head in heads if _signature(head)]
    openings = _prose(used + count["prose"], seed)[used:]
    parts = {
        "tasks": lambda: chats(model, encoder, count["tasks"], seed + 4, VERBS),
        "functions": lambda: continued(
            model, encoder, heads[used : used + count["functions"]], seed + 6
        ),
        "signatures": lambda: continued(model, encoder, signed[-count["signatures"] :], seed + 7),
        "prose": lambda: continued(model, encoder, openings, seed + 8),
    }
    _write_parts(path, parts, rows, seed)


def write_free(
    model: PreTrainedModel, encoder: TextEncoder, path: Path, rows: int, used: int, seed: int
) -> None:
    """Write rows that are the teacher's own but for a word or a few that they begin with.

    It takes what `write_more` takes; `used` are openings of prose alone.
    """
    count = {name: round(share * rows) for name, share in FREE_PARTS.items()}
    programs = [BEGINNINGS[number % len(BEGINNINGS)] for number in range(count["programs"])]
    openings = [
        " ".join(text.split(" ")[:SHORT_OPENING])
        for text in _prose(used + count["sentences"], seed)[used:]
    ]
    parts = {
        "questions": lambda: chats(model, encoder, count["questions"], seed + 9, WORDS),
        "programs": lambda: continued(model, encoder, programs, seed + 11, PROGRAM),
        "sentences": lambda: continued(model, encoder, openings, seed + 12),
    }
    _write_parts(path, parts, rows, seed)


def _signature(head: str) -> str:
    """The head of a function up to where its docstring begins; "" where that is not found."""
    signature, quotes, _ = head.partition('"""')
    return signature + quotes if quotes and len(signature) < 200 else ""


def write(model: PreTrainedModel, encoder: TextEncoder, path: Path, rows: int, seed: int) -> None:
    """Write rows, a third of each kind, mixed; what is there already is kept."""
    each = -(-rows // 3)
    heads = shuffled(functions(), seed)[:each]
    parts = {
        "chat": lambda: chats(model, encoder, each, seed),
        "code": lambda: continued(model, encoder, heads, seed + 2),
        "prose": lambda: continued(model, encoder, _prose(each, seed), seed + 3),
    }
    _write_parts(path, parts, rows, seed)


def _write_parts(
    path: Path, parts: Mapping[str, Callable[[], list[Any]]], rows: int, seed: int
) -> None:
    found: list[Any] = []
    for name, make in parts.items():
        part = path.with_name(f"{path.stem}-{name}.jsonl")
        if not part.exists():
            print(f"the teacher writes: {name}", file=sys.stderr, flush=True)
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in make()]
            part.write_text("".join(lines), encoding="utf-8")
        found += [line + "\n" for line in part.read_text(encoding="utf-8").split("\n") if line]
    path.write_text("".join(shuffled(found, seed)[:rows]), encoding="utf-8")


def _prose(count: int, seed: int) -> list[str]:
    texts = shuffled([*real_texts(), *prose()], seed)
    words = [text.split(" ") for text in texts]
    return [" ".join(found[:OPENING]) for found in words if len(found) > 2 * OPENING][:count]


def _chat_ids(encoder: TextEncoder, messages: list[dict[str, str]]) -> list[int]:
    text = encoder.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    return list(encoder.tokenizer(str(text), add_special_tokens=False).input_ids)


def _texts(
    model: PreTrainedModel, encoder: TextEncoder, ids: list[list[int]], longest: int, seed: int
) -> list[str]:
    drawn = sample(
        model,
        ids,
        stop=encoder.bytes.special,
        max_new_tokens=longest,
        seed=seed,
        rows_per_batch=ROWS_AT_A_TIME,
    )
    return [whole_text(encoder.bytes.spell(one)) for one in drawn]
