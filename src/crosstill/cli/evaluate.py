"""`crosstill evaluate`: bits per byte, and the distance from a teacher."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    from crosstill.evaluation.measure import Measures


def evaluate(
    model: Annotated[str, typer.Argument(help="A model folder, a .gguf file or a hub name.")],
    teacher: Annotated[
        str | None, typer.Option(help="The model it should be like; with --prompts or --texts.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Real text nobody trained on: rows, or plain text.")
    ] = None,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(help="Prompts the teacher writes from (.jsonl, .txt), a file a kind."),
    ] = None,
    samples: Annotated[
        Path, typer.Option(help="Keeps what the teacher wrote; read again where it exists.")
    ] = Path("teacher_samples.jsonl"),
    max_new_tokens: Annotated[int, typer.Option(help="Longest text of the teacher.")] = 128,
    seed: Annotated[int, typer.Option(help="Of what the teacher writes.")] = 1,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Commit of the model.")] = None,
    teacher_revision: Annotated[str | None, typer.Option(help="Commit of the teacher.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure bits per byte, and the divergence from a teacher."""
    if texts is None and not prompts:
        raise ConfigError("nothing to measure: give --texts, or --teacher and --prompts")
    if prompts and teacher is None:
        raise ConfigError("--prompts are for a teacher to write from: give --teacher too")

    from crosstill.evaluation.measure import Source, measure
    from crosstill.evaluation.read import read_prompts
    from crosstill.report.inspection import read_texts

    quiet_libraries()
    found = measure(
        Source(model, dtype, revision, trust_remote_code),
        None if teacher is None else Source(teacher, dtype, teacher_revision, trust_remote_code),
        texts=read_texts(texts) if texts is not None else [],
        prompts={path.stem: read_prompts(path) for path in prompts or []},
        samples=samples,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    if as_json:
        print_json(found.plain())
    else:
        _show(found)


def _show(found: "Measures") -> None:
    rows = []
    if found.bits_per_byte is not None:
        rows.append(("on real text", f"{found.bits_per_byte:.4f}"))
    if found.teacher_bits_per_byte is not None:
        rows.append(("the teacher on real text", f"{found.teacher_bits_per_byte:.4f}"))
    if rows:
        print_table(("bits per byte", ""), rows, numbers=True)
    if found.divergence is not None:
        gaps = {"everything": found.divergence.overall} | found.divergence.kinds
        print_table(
            ("teacher divergence, bits per byte", "", "standard error", "bytes"),
            [
                (name, f"{gap.divergence:.4f}", f"{gap.standard_error:.4f}", f"{gap.bytes:,}")
                for name, gap in gaps.items()
            ],
            numbers=True,
        )
