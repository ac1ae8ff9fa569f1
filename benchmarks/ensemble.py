"""Measure what voting costs beyond the members' own forward passes.

A teacher three times over stands for three members: what they compute is not shared. In turn over
several rounds: one token by an ensemble with its cache, against one token by each member with its
own; a text scored by the ensemble, against the members' plain forward passes over it; and, for
models of other tokenizers, the forward passes that the vocabulary `mined` and the byte-level
ensemble need.

    make teacher && python benchmarks/ensemble.py --out ensemble.json
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from training_step import cache_folder, load_model, load_tokenizer, teacher_from_package
from training_step import texts as documentation
from transformers import DynamicCache

from crosstill.ensemble import Ensemble
from crosstill.ensemble.bytes import ByteEnsemble
from crosstill.ensemble.cache import EnsembleCache

MIXES = ("probabilities", "log_probabilities")


def seconds(work: Callable[[], Any]) -> float:
    """Process time of one call: other processes on the machine do not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def medians(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Each work once a round, in turn; the first round is thrown away."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


@torch.no_grad()
def one_token(models: list[Any], tokenizer: Any, context: int, rounds: int) -> dict[str, float]:
    """A step with a cache of `context` tokens, the members' and the ensemble's."""
    ids = torch.randint(1000, 20000, (1, context))
    caches = [DynamicCache() for _ in models]
    for model, cache in zip(models, caches, strict=True):
        model(input_ids=ids, past_key_values=cache)
    step = ids[:, -1:]

    def members() -> None:
        for model, cache in zip(models, caches, strict=True):
            model(input_ids=step, past_key_values=cache, logits_to_keep=1)

    works: dict[str, Callable[[], Any]] = {"members": members}
    for mix in MIXES:
        ensemble = Ensemble(models, [tokenizer] * len(models), mix=mix)
        cache = EnsembleCache(len(models))
        ensemble(ids, past_key_values=cache)

        def together(ensemble: Ensemble = ensemble, cache: EnsembleCache = cache) -> None:
            ensemble(step, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)

        works[mix] = together
    return medians(works, rounds)


@torch.no_grad()
def scoring(models: list[Any], tokenizer: Any, tokens: int, rounds: int) -> dict[str, float]:
    """A text of about `tokens` tokens: the members' forward passes, and the ensemble's score."""
    ids = tokenizer.encode(documentation(1, 8 * tokens)[0])[:tokens]
    text = tokenizer.decode(ids)
    batch = torch.tensor([[tokenizer.eos_token_id, *tokenizer.encode(text)]])

    def members() -> None:
        for model in models:
            model(input_ids=batch, use_cache=False)

    works: dict[str, Callable[[], Any]] = {"members": members}
    for mix in MIXES:
        ensemble = Ensemble(models, [tokenizer] * len(models), mix=mix)
        works[mix] = lambda ensemble=ensemble: ensemble.score([text])
    return medians(works, rounds)


def by_bytes(model: Any, tokenizer: Any, size: int) -> list[dict[str, float]]:
    """What exact sums over tokenizations cost, and what the dropped ones change."""
    text = documentation(1, size)[0][:size]
    plain = Ensemble([model], [tokenizer]).score([text])
    found = [{"tokens": len(tokenizer.encode(text)), "bytes": size, "nats": float(plain.nats[0])}]
    for threshold in (1e-2, 1e-3, 1e-4):
        ensemble = ByteEnsemble([model], [tokenizer], threshold=threshold)
        start = time.process_time()
        nats = float(ensemble.score([text]).nats[0])
        found.append(
            {
                "threshold": threshold,
                "nats": nats,
                "calls_per_byte": ensemble.calls / size,
                "dropped_per_byte": ensemble.dropped,
                "seconds_per_byte": (time.process_time() - start) / size,
            }
        )
    return found


def main() -> None:
    """Run everything and report it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--bytes", type=int, default=96)
    parser.add_argument("--teacher", type=Path, help="a model folder; else the packaged one")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    options = parser.parse_args()
    folder = options.teacher or teacher_from_package(cache_folder())
    tokenizer = load_tokenizer(folder)
    models = [load_model(folder, dtype=torch.float32).eval() for _ in range(3)]
    steps = one_token(models, tokenizer, 128, options.rounds)
    scores = scoring(models, tokenizer, options.tokens, max(options.rounds // 5, 3))
    print(
        "| | members | probabilities | over | log_probabilities | over |\n|---|---|---|---|---|---|"
    )
    for name, times in (("one token", steps), (f"{options.tokens} tokens scored", scores)):
        own = times["members"]
        cells = [f"{times[mix] * 1e3:.1f} ms | {times[mix] / own - 1:+.1%}" for mix in MIXES]
        print(f"| {name} | {own * 1e3:.1f} ms | {' | '.join(cells)} |")
    sums = by_bytes(models[0], tokenizer, options.bytes)
    print(
        "\n| threshold | nats | calls a byte | dropped a byte | s a byte |\n|---|---|---|---|---|"
    )
    whole = sums[0]
    print(f"| one cut | {whole['nats']:.3f} | {whole['tokens'] / options.bytes:.2f} | | |")
    for row in sums[1:]:
        print(
            f"| {row['threshold']:.0e} | {row['nats']:.3f} | {row['calls_per_byte']:.2f} | "
            f"{row['dropped_per_byte']:.1e} | {row['seconds_per_byte']:.3f} |"
        )
    if options.out:
        note = {
            "machine": {"cpu": platform.processor(), "threads": torch.get_num_threads()},
            "one_token_seconds": steps,
            "scoring_seconds": scores,
            "bytes": sums,
        }
        options.out.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
