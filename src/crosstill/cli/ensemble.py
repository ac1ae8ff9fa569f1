"""`crosstill ensemble`: several models write and score together."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosstill.cli.options import (
    Debug,
    Json,
    TrustRemoteCode,
    print_json,
    print_table,
    quiet_libraries,
)
from crosstill.errors import ConfigError

if TYPE_CHECKING:
    from crosstill.ensemble.run import Together


Models = Annotated[
    list[str], typer.Argument(help="Model folders, .gguf files or hub names; ids of the first.")
]
Prompts = Annotated[list[str] | None, typer.Option(help="A text to continue; repeatable.")]
File = Annotated[
    Path | None, typer.Option(help="Prompts to continue (.jsonl or .txt): text or messages.")
]
Score = Annotated[
    Path | None, typer.Option(help="Text or rows to score: bits per byte, together and alone.")
]
Chat = Annotated[bool, typer.Option("--chat", help="Take --prompt as what a user says.")]
Weights = Annotated[
    str | None, typer.Option(help="Shares of the vote, such as 2,1,1; equal ones by default.")
]
Vocabulary = Annotated[
    str, typer.Option(help="What is voted on: identical, shared or mined tokens, or bytes.")
]
Stop = Annotated[list[str] | None, typer.Option(help="A text that ends a continuation.")]


def ensemble(
    models: Models,
    prompt: Prompts = None,
    file: File = None,
    score: Score = None,
    chat: Chat = False,
    weights: Weights = None,
    mix: Annotated[str, typer.Option(help="probabilities or log_probabilities.")] = "probabilities",
    vocabulary: Vocabulary = "identical",
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation; or bytes.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens to this mass.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep so many tokens; 0 keeps all.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    stop: Stop = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print text as it comes.")] = False,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write and score with several models at once."""
    if not prompt and file is None and score is None:
        raise ConfigError("nothing to do: give --prompt, --file or --score")
    if stream and as_json:
        raise ConfigError("--stream and --json exclude each other: give one")
    shares = _numbers(weights)

    from crosstill.ensemble.run import load_ensemble, together
    from crosstill.report.inspection import read_texts

    quiet_libraries()
    texts = read_texts(score) if score is not None else []
    found = together(
        load_ensemble(
            models,
            weights=shares,
            mix=mix,
            vocabulary=vocabulary,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        ),
        _prompts(prompt or [], file, chat=chat),
        texts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=stop or (),
        on_text=_print_piece if stream else None,
    )
    if as_json:
        print_json(found.plain())
    else:
        _show(found, models, streamed=stream)


def _prompts(given: list[str], file: Path | None, *, chat: bool) -> list[Any]:
    """The prompts of the command line, and then those of a file."""
    from crosstill.evaluation.read import read_prompts

    said: list[Any] = [[{"role": "user", "content": one}] if chat else one for one in given]
    return said + (read_prompts(file) if file is not None else [])


def _numbers(weights: str | None) -> list[float] | None:
    """The numbers of `2,1,1`."""
    if weights is None:
        return None
    try:
        return [float(part) for part in weights.split(",")]
    except ValueError as error:
        raise ConfigError(f"--weights: expected numbers such as 2,1,1, got {weights!r}") from error


def _print_piece(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _show(found: "Together", models: list[str], *, streamed: bool) -> None:
    if streamed:
        sys.stdout.write("\n")
    else:
        for one in found.written:
            sys.stdout.write(one.text + "\n")
    if found.bits_per_byte is not None:
        rows = [("together", f"{found.bits_per_byte:.4f}")]
        for model, value in zip(models, found.members, strict=True):
            rows.append((model, f"{value:.4f}"))
        print_table(("bits per byte", ""), rows, numbers=True)
