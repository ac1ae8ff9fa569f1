"""Times the peer's alignment, one JSON line a question. Runs in the peer's own environment.

Question: paths of two `tokenizer.json` files, a text, how long to measure. Answer: seconds for the
byte offsets of both sides (without tokenising) and the walk over them, or the peer's refusal.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import lru_cache

from tokenizers import Tokenizer
from trl.experimental import utils
from trl.experimental.gold.gold_trainer import ULDLoss


@lru_cache
def backend(path: str) -> Tokenizer:
    """The tokenizer of a file."""
    return Tokenizer.from_file(path)


class Encoded:
    """Stands in for a backend whose texts are tokenised already, so that only the rest is timed."""

    def __init__(self, real: Tokenizer, text: str):
        self.pre_tokenizer, self.decoder = real.pre_tokenizer, real.decoder
        self.found = real.encode_batch([text], add_special_tokens=False)

    def encode_batch(self, texts: list[str], add_special_tokens: bool = False) -> list:
        """What was found before."""
        return self.found


def answer(question: dict) -> dict:
    """The measurement, or why there is none."""
    text = question["text"]
    sides = [Encoded(backend(question[side]), text) for side in ("student", "teacher")]
    try:
        offsets = [utils.encode_with_byte_offsets(side, [text])[0][1] for side in sides]
        byte_offsets = seconds(
            lambda: [utils.encode_with_byte_offsets(side, [text]) for side in sides],
            question["burst"],
        )
        walk = seconds(lambda: ULDLoss._align_by_byte_offsets(*offsets), question["burst"])
    except (NotImplementedError, ValueError) as error:
        return {"error": f"refused ({type(error).__name__})"}
    return {"seconds": byte_offsets + walk, "walk_seconds": walk}


def seconds(function: Callable[[], object], burst: float) -> float:
    """Mean time of this thread for one call in a burst; other processes do not count."""
    calls, start = 0, time.thread_time()
    while (spent := time.thread_time() - start) < burst:
        for _ in range(5):
            function()
        calls += 5
    return spent / calls


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
