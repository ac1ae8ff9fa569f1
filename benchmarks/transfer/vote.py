"""Let models that `run.py --keep` made vote, with each other and with the model they came from.

On held-out real text: bits per byte of each alone, of the students together (one vocabulary), and
of all with the original, on bytes, on the tokens they share, and on mined ones.

    CROSSTILL_DATA=... python benchmarks/transfer/run.py default sft-real --keep
    CROSSTILL_DATA=... python benchmarks/transfer/vote.py default-0 sft-real-0
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from inputs import Inputs
from texts import held_out_texts

from crosstill.cli.options import quiet_libraries
from crosstill.ensemble import Ensemble
from crosstill.ensemble.bytes import ByteEnsemble
from crosstill.evaluation.bits_per_byte import Scores, score_texts
from crosstill.hub import load_model, load_tokenizer
from crosstill.text.encode import text_encoder

Member = tuple[Any, Any]
KINDS = ("gsm8k", "addresses")
DRAWS = 2000
"""Of texts with replacement, for the standard error of a difference."""


def main() -> None:
    """Score, keep and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("students", nargs="+", help="of OUT/models, one vocabulary")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--texts", type=int, default=16, help="of each kind")
    parser.add_argument(
        "--characters",
        type=int,
        default=400,
        help="of a text, at most: a vote on bytes makes one forward pass after another",
    )
    parser.add_argument(
        "--vocabularies", nargs="+", default=["bytes", "shared", "mined"], help="with the original"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    arguments = parser.parse_args()
    quiet_libraries()
    inputs = Inputs(arguments.out)
    folders = [arguments.out / "models" / name for name in arguments.students]
    names = ["original", *arguments.students]
    members: list[Member] = [(inputs.model(), inputs.tokenizer)]
    members += [(load_model(one, dtype="float32"), load_tokenizer(one)) for one in folders]
    cut = {
        kind: [text[: arguments.characters] for text in held_out_texts()[kind][: arguments.texts]]
        for kind in arguments.kinds
    }
    found = {
        kind: looked_at(names, members, texts, arguments.vocabularies)
        for kind, texts in cut.items()
    }
    path = arguments.out / "results" / "votes" / f"{'+'.join(arguments.students)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1))
    for kind, rows in found.items():
        print(f"{kind}: {rows['texts']} texts, {rows['bytes']} bytes")
        for name, row in rows["bits_per_byte"].items():
            print(f"  {name:60} {row['value']:.4f} {row['against_best']:+.4f} ± {row['error']:.4f}")


def looked_at(
    names: Sequence[str],
    members: Sequence[Member],
    texts: Sequence[str],
    vocabularies: Sequence[str],
) -> dict[str, Any]:
    """All scores of some texts, each against the best single model in its own tokens."""
    alone = {
        f"{name}, own tokens": score_texts(model, text_encoder(tokenizer), texts)
        for name, (model, tokenizer) in zip(names, members, strict=True)
    }
    votes: dict[str, Scores] = {}
    seconds: dict[str, float] = {}

    def timed(name: str, work: Any) -> Any:
        started = time.monotonic()
        done = work()
        seconds[name] = round(time.monotonic() - started, 1)
        print(f"{name}: {seconds[name]} s", flush=True)
        return done

    students = members[1:]
    if len(students) > 1:
        votes["students, identical"] = timed(
            "students, identical", lambda: Ensemble(*zip(*students, strict=True)).score(texts)
        )
    for kind in vocabularies:
        label = f"all, {kind}"
        if kind == "bytes":
            by_bytes = ByteEnsemble(*zip(*members, strict=True))
            votes[label], each = timed(label, lambda one=by_bytes: one.score_each(texts))
            alone |= {f"{name}, bytes": one for name, one in zip(names, each, strict=True)}
            continue
        order = members if kind == "mined" else [*students, members[0]]
        ensemble = Ensemble(*zip(*order, strict=True), vocabulary=kind)
        votes[label] = timed(label, lambda one=ensemble: one.score(texts))
    best = min(alone.values(), key=lambda one: one.bits_per_byte)
    return {
        "texts": len(texts),
        "bytes": int(best.bytes.sum()),
        "seconds": seconds,
        "bits_per_byte": {
            name: {"value": one.bits_per_byte, **against(one, best)}
            for name, one in itertools.chain(alone.items(), votes.items())
        },
    }


def against(one: Scores, best: Scores) -> dict[str, float]:
    """The difference in bits per byte, and its standard error by drawing texts again."""
    more = (one.nats - best.nats) / np.log(2)
    draws = np.random.default_rng(0).integers(0, len(more), (DRAWS, len(more)))
    drawn = more[draws].sum(1) / best.bytes[draws].sum(1)
    return {
        "against_best": float(more.sum() / best.bytes.sum()),
        "error": float(drawn.std()),
    }


if __name__ == "__main__":
    main()
