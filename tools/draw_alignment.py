"""Draws the alignment of a text under two tokenizers as an SVG picture.

Two rows of tokens, the student's above, one colour a chunk. Usage:

    python tools/draw_alignment.py STUDENT TEACHER OUTPUT.svg --text "..." --names Student Teacher

STUDENT and TEACHER are tokenizer folders. The picture in docs/assets was made with the tokenizers
of Llama 2 and Qwen 3, which `make tokenizers` fetches.
"""

import argparse
import sys
import unicodedata
from pathlib import Path
from xml.sax.saxutils import escape

from crosstill import align
from crosstill.align.view import Cell, cells
from crosstill.errors import CrosstillError
from crosstill.hub import load_tokenizer

# Light and dark enough for black text on a white page and on a dark one.
COLOURS = ("#a6cee3", "#fdbf6f", "#b2df8a", "#cab2d6", "#fb9a99", "#ffff99")
CHARACTER, PADDING, GAP, ROW, NAME = 9, 6, 4, 30, 80


def draw(found: list[Cell], names: tuple[str, str]) -> str:
    """Make the picture of an alignment's cells."""
    boxes, x = [], NAME
    for cell in found:
        width = max(_width(cell.student), _width(cell.teacher))
        colour = COLOURS[cell.chunk % len(COLOURS)] if cell.chunk >= 0 else "#dddddd"
        boxes += _row(cell.student, x, width, 8, colour)
        boxes += _row(cell.teacher, x, width, 8 + ROW + GAP, colour)
        x += width + GAP
    height = 2 * ROW + GAP + 16
    middle = ROW * 0.66
    labels = [
        f'<text x="0" y="{8 + middle + row * (ROW + GAP):.0f}" fill="#888">{escape(name)}</text>'
        for row, name in enumerate(names)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {x} {height}" width="{x}" '
            f'height="{height}" font-family="monospace" font-size="15" role="img">',
            f"<title>Tokens of {escape(names[0])} above those of {escape(names[1])}; tokens of one "
            f"colour spell the same bytes</title>",
            *labels,
            *boxes,
            "</svg>\n",
        ]
    )


def _row(tokens: tuple[str, ...], x: int, width: int, y: int, colour: str) -> list[str]:
    """One side of a chunk: its tokens next to each other, stretched to the chunk's width."""
    if not tokens:
        return []
    spare = (width - _width(tokens)) / len(tokens)
    boxes, left = [], float(x)
    for token in tokens:
        own = _token_width(token) + spare
        boxes.append(
            f'<rect x="{left:.1f}" y="{y}" width="{own:.1f}" height="{ROW}" rx="4" '
            f'fill="{colour}" stroke="#555"/>'
        )
        boxes.append(
            f'<text x="{left + own / 2:.1f}" y="{y + ROW * 0.66:.0f}" text-anchor="middle" '
            f'fill="#000">{escape(token)}</text>'
        )
        left += own
    return boxes


def _width(tokens: tuple[str, ...]) -> int:
    return sum(map(_token_width, tokens))


def _token_width(token: str) -> int:
    columns = sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in token)
    return columns * CHARACTER + 2 * PADDING


def main() -> int:
    """Draw from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("student")
    parser.add_argument("teacher")
    parser.add_argument("output", type=Path)
    parser.add_argument("--text", default="Unbelievable: Grüße aus 東京, 2026!")
    parser.add_argument("--names", nargs=2, default=("student", "teacher"))
    arguments = parser.parse_args()
    try:
        student, teacher = load_tokenizer(arguments.student), load_tokenizer(arguments.teacher)
        picture = draw(cells(align(arguments.text, student, teacher)), tuple(arguments.names))
    except CrosstillError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    arguments.output.write_text(picture, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
