"""Training texts that the teacher writes: chats, code and prose, drawn from its own distribution.

Chats need no prompts: shown its template up to the place where a user speaks, the teacher writes
what a user would ask (Magpie, arXiv 2406.08464), and then answers it.
"""

import json
import sys
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

ROWS_AT_A_TIME = 96


def chats(model: PreTrainedModel, encoder: TextEncoder, count: int, seed: int) -> list[Any]:
    """Let the teacher ask and answer."""
    marker = "\u2042"
    empty = encoder.tokenizer.apply_chat_template(
        [{"role": "user", "content": marker}], tokenize=False, add_generation_prompt=True
    )
    opening = encoder.tokenizer(str(empty).split(marker)[0], add_special_tokens=False).input_ids
    asked = _texts(model, encoder, [list(opening)] * count, ASKED, seed)
    questions = [[{"role": "user", "content": text.strip()}] for text in asked if text.strip()]
    prompts = [_chat_ids(encoder, one) for one in questions]
    answers = _texts(model, encoder, prompts, ANSWERED, seed + 1)
    return [
        {"messages": [*question, {"role": "assistant", "content": answer.strip()}]}
        for question, answer in zip(questions, answers, strict=True)
        if answer.strip()
    ]


def continued(
    model: PreTrainedModel, encoder: TextEncoder, prompts: list[str], seed: int
) -> list[Any]:
    """Let the teacher go on from real openings."""
    begin = [] if encoder.roles.bos is None else [encoder.roles.bos]
    ids = [[*begin, *encoder.encode(prompt)] for prompt in prompts]
    texts = _texts(model, encoder, ids, CONTINUED, seed)
    return [{"text": prompt + text} for prompt, text in zip(prompts, texts, strict=True)]


def write(model: PreTrainedModel, encoder: TextEncoder, path: Path, rows: int, seed: int) -> None:
    """Write rows, a third of each kind, mixed; what is there already is kept."""
    parts = [
        ("chat", lambda n: chats(model, encoder, n, seed)),
        ("code", lambda n: continued(model, encoder, shuffled(functions(), seed)[:n], seed + 2)),
        ("prose", lambda n: continued(model, encoder, _prose(n, seed), seed + 3)),
    ]
    found: list[Any] = []
    for name, make in parts:
        part = path.with_name(f"{path.stem}-{name}.jsonl")
        if not part.exists():
            print(f"the teacher writes: {name}", file=sys.stderr, flush=True)
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in make(-(-rows // 3))]
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
