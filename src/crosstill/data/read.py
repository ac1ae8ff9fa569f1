"""Rows from files, folders or a hub, checked before a step is taken.

Supported: `.jsonl` (and `.ndjson`), `.json` (a list of rows, or JSON lines), `.parquet`, `.arrow`,
`.txt`, a folder of files of one of these kinds, a list of such paths, or the name of a data set on
the hub. Rows are described in `crosstill.text.rows`; other columns are left out, and named in the
report.

A bad row stops the reading with its file, line, byte and first bytes, unless bad rows are to be
skipped: then they are counted by reason, and too many of them are an error all the same.
"""

import difflib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from crosstill.data.jsonrows import JsonError, Place, json_lines, row_of, strict_json
from crosstill.errors import ConfigError, DataError
from crosstill.text.rows import ROW_COLUMNS, RowFault

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

READ_REASONS = (
    "bad_json",
    "bad_unicode",
    "duplicate_key",
    "not_a_number",
    "malformed",
    "empty",
)
"""Why a row was skipped in reading."""

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".txt")
TEXT_CHARACTERS = 2000
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")

Source = str | Path | Sequence[str | Path]
OnBadRow = Literal["raise", "skip"]


@dataclass(frozen=True)
class ReadReport:
    """A data set, and what was left out of it.

    Attributes:
        dataset: The rows, with a `row_index` column that counts them from 0.
        skipped: Rows left out, by reason (`READ_REASONS`).
        ignored_columns: Columns or keys that no row format uses.
        source: The files read, or the name on the hub.
    """

    dataset: "Dataset"
    skipped: dict[str, int]
    ignored_columns: tuple[str, ...]
    source: tuple[str, ...]


def read_dataset(
    source: Source,
    split: str | None = None,
    *,
    on_bad_row: OnBadRow = "raise",
    max_bad_rows: float = 0.001,
    text_characters: int = TEXT_CHARACTERS,
) -> "Dataset":
    """The data set alone; see `read_source`, which also reports what was left out."""
    return read_source(
        source,
        split,
        on_bad_row=on_bad_row,
        max_bad_rows=max_bad_rows,
        text_characters=text_characters,
    ).dataset


def read_source(
    source: Source,
    split: str | None = None,
    *,
    on_bad_row: OnBadRow = "raise",
    max_bad_rows: float = 0.001,
    text_characters: int = TEXT_CHARACTERS,
) -> ReadReport:
    """Every row of a source, checked.

    Args:
        source: A path, a folder, a list of paths, or a name on the hub.
        split: For the hub; files have one split, `train`.
        on_bad_row: `raise` or `skip`.
        max_bad_rows: Share of rows that may be skipped before that is an error too.
        text_characters: The most characters of a `.txt` file that make one row. Rows follow each
            other without a gap and are cut, in this order of preference, at a blank line, at a
            line's end, at a space.

    Raises:
        ConfigError: No such file, an unknown kind of file, or wrong arguments.
        DataError: A bad row, too many bad rows, or no rows at all.
    """
    _check_arguments(on_bad_row, max_bad_rows, text_characters)
    files = _files(source)
    rows = _Rows(on_bad_row)
    if files is None:
        rows.add_table(_from_hub(str(source), split), str(source))
    elif split not in (None, "train"):
        raise ConfigError(
            f"split: expected 'train' or nothing for local files, got {split!r}: give each split "
            "its own file."
        )
    for file in files or ():
        _read_file(file, rows, text_characters)
    names = tuple(str(file) for file in files) if files is not None else (str(source),)
    rows.check(max_bad_rows, names)
    if rows.skipped:
        log.warning("%s: skipped %s", ", ".join(names), dict(rows.skipped))
    return ReadReport(rows.dataset(), dict(rows.skipped), tuple(sorted(rows.ignored)), names)


def _check_arguments(on_bad_row: str, max_bad_rows: float, text_characters: int) -> None:
    if on_bad_row not in ("raise", "skip"):
        raise ConfigError(f"on_bad_row: expected 'raise' or 'skip', got {on_bad_row!r}.")
    if not 0.0 <= max_bad_rows <= 1.0:
        raise ConfigError(f"max_bad_rows: expected a share from 0 to 1, got {max_bad_rows}.")
    if text_characters < 1:
        raise ConfigError(f"text_characters: expected at least 1, got {text_characters}.")


@dataclass
class _Rows:
    """Rows gathered so far, and what was left out."""

    on_bad_row: str
    kept: list[dict[str, Any]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    ignored: set[str] = field(default_factory=set)
    first_bad: str = ""

    def add(self, value: Any, place: Place) -> None:
        """Take a row in, or deal with it as a bad one."""
        try:
            row, ignored = row_of(value)
        except RowFault as fault:
            self.bad(fault, place)
        else:
            self.kept.append(row)
            self.ignored.update(ignored)

    def bad(self, fault: RowFault, place: Place, column: int = 0) -> None:
        """Raise for a bad row, or count it."""
        error = place.error(fault, column)
        if self.on_bad_row == "raise":
            raise error from fault
        self.skipped[fault.reason] += 1
        self.first_bad = self.first_bad or str(error)

    def add_table(self, table: "Dataset", name: str) -> None:
        """Take the rows of a table in."""
        used = [column for column in table.column_names if column in ROW_COLUMNS]
        if not used:
            raise DataError(
                f'{name}: expected columns "messages", "prompt" and "completion", or "text", got '
                f"{table.column_names}: rename the columns."
            )
        self.ignored.update(set(table.column_names) - set(used))
        rows = cast(Iterable[dict[str, Any]], table.select_columns(used))
        for number, row in enumerate(rows, 1):
            present = {key: value for key, value in row.items() if value is not None}
            self.add(present, Place(name, number))

    def check(self, max_bad_rows: float, names: Sequence[str]) -> None:
        """Raise if nothing is left, or too much was left out."""
        where, bad = ", ".join(names)[:400], sum(self.skipped.values())
        total = bad + len(self.kept)
        if bad > max_bad_rows * total:
            raise DataError(
                f"{where}: expected at most {max_bad_rows:.3%} bad rows, got {bad} of {total} "
                f"({dict(self.skipped)}). The first: {self.first_bad}"
            )
        if total == 0:
            raise DataError(f"{where}: expected rows, got none: the data set is empty.")
        if not self.kept:
            raise DataError(f"{where}: expected rows, got bad ones only ({dict(self.skipped)}).")

    def dataset(self) -> "Dataset":
        """The rows as a table."""
        import pyarrow
        from datasets import Dataset

        columns = [c for c in ROW_COLUMNS if any(c in row for row in self.kept)]
        table: dict[str, list[Any]] = {c: [row.get(c) for row in self.kept] for c in columns}
        table["row_index"] = list(range(len(self.kept)))
        try:
            return Dataset.from_dict(table)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            raise DataError(
                "expected each column (and each key of a message) to have one type in every row, "
                f"got {str(error)[:200]}: make them the same, or use several files."
            ) from error


def _read_file(file: Path, rows: _Rows, text_characters: int) -> None:
    suffix = file.suffix.lower()
    if file.stat().st_size == 0:
        raise DataError(f"{file}: expected rows, got a file of 0 bytes.")
    if suffix == ".json" and _is_list(file):
        _read_json(file, rows)
    elif suffix in (".jsonl", ".ndjson", ".json"):
        _read_lines(file, rows)
    elif suffix == ".txt":
        _read_text(file, rows, text_characters)
    else:
        rows.add_table(_table(file), str(file))


def _read_lines(file: Path, rows: _Rows) -> None:
    for place, raw in json_lines(file):
        try:
            value = strict_json(raw)
        except JsonError as fault:
            rows.bad(fault, place, fault.column)
        else:
            rows.add(value, place)


def _is_list(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _read_json(file: Path, rows: _Rows) -> None:
    raw = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        value = strict_json(raw)
    except JsonError as fault:  # nothing after the fault can be trusted: there is no row to skip
        line = raw.count(b"\n", 0, fault.column) + 1
        raise DataError(
            f"{file}, line {line}, byte {fault.column}: {fault} Mend the file."
        ) from fault
    for number, item in enumerate(value, 1):
        rows.add(item, Place(str(file), number, start=json.dumps(item).encode()[:80]))


def _read_text(file: Path, rows: _Rows, limit: int) -> None:
    raw = file.read_bytes()
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        fault = RowFault(
            "bad_unicode",
            f"expected UTF-8, got the byte 0x{raw[error.start]:02x} ({error.reason}).",
        )
        rows.bad(fault, Place(str(file), line, error.start))
        return
    for number, piece in enumerate(split_text(text, limit), 1):
        rows.add({"text": piece}, Place(str(file), number))


def split_text(text: str, limit: int) -> Iterator[str]:
    r"""The text in consecutive pieces of at most `limit` characters that join to it again.

    Example:
        >>> list(split_text("One two.\n\nThree four.", 12))
        ['One two.\n\n', 'Three four.']
    """
    at = 0
    while len(text) - at > limit:
        window = text[at : at + limit]
        ends = [match.end() for match in _PARAGRAPH.finditer(window)]
        cut = (ends[-1] if ends else 0) or window.rfind("\n") + 1 or window.rfind(" ") + 1 or limit
        yield window[:cut]
        at += cut
    if at < len(text):
        yield text[at:]


def _table(file: Path) -> "Dataset":
    import pyarrow
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        if file.suffix.lower() == ".parquet":
            table = Dataset.from_parquet(str(file))
        else:
            table = Dataset.from_file(str(file))
    except (DatasetGenerationError, pyarrow.ArrowInvalid, OSError) as error:
        cause = str(error.__cause__ or error).splitlines()[0][:200]
        raise DataError(
            f"{file}: expected a {file.suffix[1:]} file, got one that cannot be read: {cause}"
        ) from error
    if not isinstance(table, Dataset):
        raise DataError(f"{file}: expected one table, got {type(table).__name__}.")
    return table


def _from_hub(name: str, split: str | None) -> "Dataset":
    from datasets import Dataset, DatasetDict

    from crosstill.hub import load_dataset

    loaded: Any = load_dataset(name, split=split)
    if isinstance(loaded, DatasetDict):
        if "train" not in loaded and len(loaded) != 1:
            raise ConfigError(
                f"{name}: expected a split, got none: choose one of {sorted(loaded)}."
            )
        loaded = loaded["train"] if "train" in loaded else next(iter(loaded.values()))
    if not isinstance(loaded, Dataset):
        raise DataError(f"{name}: expected a table of rows, got {type(loaded).__name__}.")
    return loaded


def _files(source: Source) -> list[Path] | None:
    """The files meant, or None for a name on the hub."""
    if isinstance(source, Mapping) or not isinstance(source, str | Path | Sequence):
        raise ConfigError(
            f"data: expected a path, a list of paths or a hub name, got {type(source).__name__}."
        )
    if not isinstance(source, str | Path):
        if not source:
            raise ConfigError("data: expected a path, a list of paths or a hub name, got [].")
        return [file for item in source for file in _files_of(Path(item).expanduser())]
    path = Path(source).expanduser()
    name = str(source)
    if not path.exists() and _is_hub_name(name):
        return None
    return _files_of(path)


def _is_hub_name(name: str) -> bool:
    plain = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name) is not None
    return plain and not name.lower().endswith(SUFFIXES)


def _files_of(path: Path) -> list[Path]:
    if not path.exists():
        raise ConfigError(f"{path}: expected a file or a folder, got none there.{_nearest(path)}")
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise ConfigError(
                f"{path}: expected one of {', '.join(SUFFIXES)}, got {path.suffix or 'no suffix'}."
            )
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) != 1:
        raise ConfigError(
            f"{path}: expected a folder with files of one kind ({', '.join(SUFFIXES)}), got "
            f"{kinds or 'none'}: name the files."
        )
    return files


def _nearest(path: Path) -> str:
    """A sentence with the nearest name that exists, if any is near."""
    folder = path.parent
    while not folder.is_dir():
        path, folder = folder, folder.parent
    names: Iterable[str] = (entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(path.name, list(names), n=1, cutoff=0.6)
    if near:
        return f" Did you mean {folder / near[0]}?"
    return f" {folder} has no {path.name!r}."
