"""What a person sees of an alignment: two rows, one colour a chunk, in a terminal or in a browser.

Whatever comes from a text is made harmless here: control characters, invisible and
direction-changing ones, and bytes that are no full character are shown as escapes, and HTML is
escaped. So a page or a terminal shows the text and never obeys it.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from rich.cells import cell_len, chop_cells
from rich.segment import Segment
from rich.style import Style

from crosstill.align.chunks import Alignment

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from crosstill.text.bytes import TokenBytes

_VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")
_EMPTY = "∅"
_BETWEEN = "│"
_CARRIER = "◌"  # what a mark that combines with nothing before it is shown on


@dataclass(frozen=True)
class Cell:
    """What stands above each other: a chunk, or tokens of one side that are in none.

    Attributes:
        chunk: Its index, -1 for tokens in no chunk.
        student: The student's tokens, readable and harmless.
        teacher: The teacher's.
    """

    chunk: int
    student: tuple[str, ...]
    teacher: tuple[str, ...]


def readable(data: bytes) -> str:
    r"""Bytes as harmless, readable text.

    Spaces, tabs and line ends get signs; bytes that are no full character and characters that
    cannot be seen become escapes.

    Example:
        >>> print(readable("é a\x1b".encode() + b"\xe4\xb8"))
        é␣a\x1b\xe4\xb8
    """
    text = data.decode("utf-8", errors="surrogateescape")
    return _on_carrier("".join(map(_sign, text)))


def _sign(char: str) -> str:
    if char in _VISIBLE:
        return _VISIBLE[char]
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    if unicodedata.category(char) in _HIDDEN:
        code = ord(char)
        return f"\\x{code:02x}" if code < 0x80 else f"\\u{{{code:x}}}"
    return char


def _on_carrier(text: str) -> str:
    return _CARRIER + text if text and unicodedata.category(text[0])[0] == "M" else text


def cells(alignment: Alignment) -> list[Cell]:
    """The alignment as cells from left to right."""
    sides = (
        (alignment.student_ids, alignment.student_spelling, alignment.student_extra),
        (alignment.teacher_ids, alignment.teacher_spelling, alignment.teacher_extra),
    )
    student, teacher = (_tokens(*side) for side in sides)
    out, at = [], (0, 0)
    for k, ((s0, s1), (t0, t1)) in enumerate(alignment.chunks):
        out += _loose(student[at[0] : s0], teacher[at[1] : t0])
        out.append(Cell(k, tuple(student[s0:s1]), tuple(teacher[t0:t1])))
        at = s1, t1
    return out + _loose(student[at[0] :], teacher[at[1] :])


def _loose(student: Sequence[str], teacher: Sequence[str]) -> list[Cell]:
    return [Cell(-1, tuple(student), tuple(teacher))] if student or teacher else []


def _tokens(ids: Sequence[int], spelling: "TokenBytes", extra: int) -> list[str]:
    """Every token as readable text, without the prefix its tokenizer added."""
    out = []
    for id in ids:
        if spelling.special[id]:
            out.append(f"⟨special {id}⟩")
            continue
        data = spelling.token(id)
        skipped = min(extra, len(data))
        extra -= skipped
        out.append(readable(data[skipped:]) or _EMPTY)
    return out


# In a terminal ----------------------------------------------------------------------------------

_CHUNKS = (
    Style(color="black", bgcolor="bright_cyan"),
    Style(color="black", bgcolor="bright_yellow"),
)
_LOOSE = Style(color="bright_red", dim=True)
_NAME = Style(bold=True)


@dataclass(frozen=True)
class TerminalView:
    """Two rows as a `rich` renderable: `Console().print(terminal(alignment))`.

    Attributes:
        cells: What to show.
        names: What to call the rows.
    """

    cells: tuple[Cell, ...]
    names: tuple[str, str]

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        """Wraps the cells at the width of the terminal; every line has both rows."""
        margin = max(map(cell_len, self.names)) + 2
        room = max(options.max_width - margin, 8)
        for line in _wrapped(self.cells, room):
            for name, row in zip(self.names, (1, 2), strict=True):
                yield Segment(name + " " * (margin - cell_len(name)), _NAME)
                for k, *texts in line:
                    yield Segment(texts[row - 1], _CHUNKS[k % 2] if k >= 0 else _LOOSE)
                    yield Segment(" ")
                yield Segment.line()
            yield Segment.line()


def terminal(alignment: Alignment, names: tuple[str, str] = ("student", "teacher")) -> TerminalView:
    """The alignment for a terminal, with colours that alternate by chunk.

    Args:
        alignment: What to show.
        names: What to call the two rows.

    Returns:
        A `rich` renderable, to be printed by a `rich.console.Console`.
    """
    shown = tuple(readable(name.encode("utf-8", "replace")) for name in names)
    return TerminalView(tuple(cells(alignment)), (shown[0], shown[1]))


def _wrapped(all_cells: Sequence[Cell], room: int) -> Iterator[list[tuple[int, str, str]]]:
    """Lines of `(chunk, student's text, teacher's text)`, both texts of one width."""
    line, used = [], 0
    for cell in all_cells:
        for student, teacher in _broken(cell, room):
            width = max(cell_len(student), cell_len(teacher))
            if line and used + width > room:
                yield line
                line, used = [], 0
            line.append((cell.chunk, _padded(student, width), _padded(teacher, width)))
            used += width + 1
    if line:
        yield line


def _broken(cell: Cell, room: int) -> list[tuple[str, str]]:
    """The two texts of a cell, in as many pieces as the room requires."""
    student, teacher = (_BETWEEN.join(tokens) for tokens in (cell.student, cell.teacher))
    pieces = [chop_cells(text, room) if text else [""] for text in (student, teacher)]
    n = max(map(len, pieces))
    first, second = (own + [""] * (n - len(own)) for own in pieces)
    return list(zip(first, second, strict=True))


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


# In a browser -----------------------------------------------------------------------------------

_STYLE = """
.crosstill-align{font:15px/1.5 ui-monospace,Menlo,Consolas,monospace;margin:1rem 0;
--a:#cfeef2;--b:#fdeebd;--ink:#1d1c19;--soft:#6b675e}
.crosstill-align .c{display:inline-grid;margin:0 3px 10px 0;border-radius:4px;padding:1px 4px;
vertical-align:top;color:var(--ink);background:var(--a);max-width:100%;overflow-wrap:anywhere}
.crosstill-align .c.b{background:var(--b)}
.crosstill-align .c.n{background:none;outline:1px dashed #b4541a;color:inherit}
.crosstill-align .t+.t{border-left:1px solid #0006;margin-left:1px;padding-left:1px}
.crosstill-align .t{unicode-bidi:isolate}
.crosstill-align p{font-family:system-ui,sans-serif;margin:0 0 .8rem}
@media(prefers-color-scheme:dark){.crosstill-align{--a:#1f4a52;--b:#574a1a;--ink:#f4f1e8}
.crosstill-align .t+.t{border-color:#fff6}}
"""
_PAGE_STYLE = "body{margin:2rem auto;max-width:70rem;padding:0 1rem;color-scheme:light dark}"


def fragment(alignment: Alignment, names: tuple[str, str] = ("student", "teacher")) -> str:
    """The alignment as a piece of HTML with its own style, to be put into a page.

    Args:
        alignment: What to show.
        names: What to call the two rows.
    """
    coverage = alignment.coverage
    above, below = (escape(readable(name.encode("utf-8", "replace"))) for name in names)
    told = (
        f"Above: {above}, {len(alignment.student_ids)} tokens. "
        f"Below: {below}, {len(alignment.teacher_ids)} tokens. "
        f"{len(alignment.chunks)} chunks hold {coverage.bytes:.1%} of the bytes."
    )
    if alignment.rewritten:
        told += " A tokenizer rewrote this text; chunks are equal under its rewriting."
    body = "".join(_html_cell(cell) for cell in cells(alignment))
    return f'<div class="crosstill-align"><style>{_STYLE}</style><p>{told}</p>{body}</div>'


def html(alignment: Alignment, names: tuple[str, str] = ("student", "teacher")) -> str:
    """The alignment as a page that needs nothing but itself.

    Args:
        alignment: What to show.
        names: What to call the two rows.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Alignment</title><style>{_PAGE_STYLE}</style></head>"
        f"<body>{fragment(alignment, names)}</body></html>"
    )


def _html_cell(cell: Cell) -> str:
    kind = "c n" if cell.chunk < 0 else "c b" if cell.chunk % 2 else "c"
    title = "in no chunk" if cell.chunk < 0 else f"chunk {cell.chunk}"
    rows = "".join(
        "<span>" + "".join(f'<span class="t">{escape(t)}</span>' for t in tokens) + "</span>"
        for tokens in (cell.student, cell.teacher)
    )
    return f'<span class="{kind}" title="{title}">{rows}</span>'
