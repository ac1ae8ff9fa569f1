"""How two tokenizers meet, as values and as a page: what `crosstill inspect` shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from crosstill.align.chunks import Alignment, align
from crosstill.align.coverage import Coverage, VocabularyOverlap, by_script, vocabulary_overlap
from crosstill.align.view import fragment
from crosstill.data.read import read_dataset
from crosstill.errors import ConfigError, DataError
from crosstill.report.html import environment, style
from crosstill.text.encode import text_encoder
from crosstill.training.texts import row_text

# A person reads a screen, not a file; the numbers are over everything.
SHOWN_CHARACTERS = 600
_MAX_ROWS = 2000
_TABLES = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow")


@dataclass(frozen=True)
class Inspection:
    """How two tokenizers meet.

    Attributes:
        alignment: of the beginning of the first text.
        coverage: over all texts, by script and category.
        vocabulary: which tokens spell the same bytes.
    """

    alignment: Alignment
    coverage: Coverage
    vocabulary: VocabularyOverlap


def inspect_pair(
    student_tokenizer: Any, teacher_tokenizer: Any, texts: Sequence[str]
) -> Inspection:
    """Compute how two tokenizers meet on texts.

    Raises:
        TokenizerError: a tokenizer cannot be read as bytes.
        DataError: no text, or the first one holds a lone surrogate.
        AlignmentError: the first text cannot be aligned.
    """
    if not any(texts):
        raise DataError("expected a text to look at, got nothing: give one with --text or --string")
    student, teacher = text_encoder(student_tokenizer), text_encoder(teacher_tokenizer)
    first = next(text for text in texts if text)
    return Inspection(
        alignment=align(_beginning(first), student, teacher),
        coverage=by_script(texts, student, teacher),
        vocabulary=vocabulary_overlap(student, teacher),
    )


def read_texts(path: Path | None) -> list[str]:
    """The texts of a file: rows of a table or of JSON, else the file as it is; or the sample.

    Raises:
        ConfigError: no such file.
        DataError: the file is not UTF-8, or a row is bad.
    """
    if path is None:
        sample = resources.files("crosstill.report") / "sample.txt"
        return [sample.read_text(encoding="utf-8")]
    if path.suffix.lower() in _TABLES:
        rows = read_dataset(path)
        return [row_text(row) for row in rows.select(range(min(len(rows), _MAX_ROWS))).to_list()]
    try:
        return [path.read_text(encoding="utf-8")]
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8, got other bytes at {error.start}") from error


def write_inspection(path: Path, found: Inspection, names: tuple[str, str]) -> None:
    """Write the page to a file."""
    path.write_text(render_inspection(found, names), encoding="utf-8")


def render_inspection(found: Inspection, names: tuple[str, str]) -> str:
    """A page with the alignment, coverage and vocabularies that needs nothing but itself."""
    page = (resources.files("crosstill.report") / "inspection.html").read_text(encoding="utf-8")
    student, teacher = map(short_name, names)
    return (
        environment()
        .from_string(page)
        .render(
            student=student,
            teacher=teacher,
            style=style(),
            found=found,
            alignment=Markup(fragment(found.alignment, (student, teacher))),  # noqa: S704 - escaped
        )
    )


def short_name(name: str) -> str:
    """What to call a tokenizer: the last part of its name, for a file the folder's.

    >>> short_name("Qwen/Qwen3-0.6B"), short_name("models/small/tokenizer.json")
    ('Qwen3-0.6B', 'small')
    """
    path = Path(name)
    return (path.parent.name or path.stem) if path.suffix == ".json" else path.name


def _beginning(text: str) -> str:
    """At most `SHOWN_CHARACTERS`, cut at a space where there is one."""
    if len(text) <= SHOWN_CHARACTERS:
        return text
    cut = text.rfind(" ", SHOWN_CHARACTERS // 2, SHOWN_CHARACTERS)
    return text[: cut if cut > 0 else SHOWN_CHARACTERS]
