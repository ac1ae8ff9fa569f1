"""What a person sees: complete, harmless, of the right width."""

import re
from html.parser import HTMLParser
from io import StringIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

import tiny_tokenizers as tiny
from crosstill.align.chunks import Alignment, align
from crosstill.align.view import cells, fragment, html, readable, terminal
from crosstill.text.encode import text_encoder

LEVEL, BYTES = tiny.byte_level_bpe(), tiny.bytes_only()
LLAMA2 = tiny.metaspace_bpe_with_byte_fallback(style="prepend")
HOSTILE = "<script>alert('x')</script>&amp;\"\x1b[31m\x07\u202eevil\u2066\u200b\r\n\t</style></div>"


def shown(alignment, width, color=False):
    out = StringIO()
    Console(
        file=out, width=width, force_terminal=color, color_system="truecolor" if color else None
    ).print(terminal(alignment))
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"abc", "abc"),
        (b" a\tb\n\r", "␣a⇥b⏎␍"),
        ("é東".encode(), "é東"),
        ("東".encode()[:2], r"\xe6\x9d"),
        ("東".encode()[1:], r"\x9d\xb1"),
        (b"\x00\x1b\x7f", r"\x00\x1b\x7f"),
        ("\u202e\u200b\ufeff".encode(), r"\u{202e}\u{200b}\u{feff}"),
        ("\u00a0\u2028".encode(), r"\u{a0}\u{2028}"),
        ("\u0301".encode(), "◌\u0301"),
        (b"", ""),
    ],
)
def test_readable(data, expected):
    assert readable(data) == expected


@given(st.binary(max_size=20))
def test_readable_is_always_harmless(data):
    text = readable(data)
    assert text.isprintable()
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in text)
    text.encode()


def test_cells_hold_every_token_once():
    a = align("The cats: 東京\n", LEVEL, BYTES)
    found = cells(a)
    assert [cell.chunk for cell in found] == list(range(len(a.chunks)))
    assert sum(len(cell.student) for cell in found) == len(a.student_ids)
    assert sum(len(cell.teacher) for cell in found) == len(a.teacher_ids)


def test_a_prefix_space_is_not_shown_as_text():
    a = align("The cats", LLAMA2, BYTES)
    assert (
        "".join(token for cell in cells(a) for token in cell.student).replace("∅", "") == "The␣cats"
    )


def test_tokens_in_no_chunk_and_special_tokens_are_marked():
    encoder = text_encoder(LEVEL)
    bos = encoder.roles.bos
    ids = [bos, *encoder.encode("cat")]
    chunk = np.array([-1] + [0] * (len(ids) - 1), np.int32)
    other = np.zeros(len(ids) - 1, np.int32)
    a = Alignment(ids, ids[1:], chunk, other, False, encoder.bytes, encoder.bytes)
    assert [cell.chunk for cell in cells(a)] == [-1, 0]
    assert cells(a)[0].student == (f"⟨special {bos}⟩",)
    assert f"⟨special {bos}⟩" in shown(a, 80)
    assert 'class="c n"' in html(a)


@pytest.mark.parametrize("width", [24, 40, 100])
def test_the_terminal_wraps_at_its_width(width):
    text = "The cats sat on the mat. 東京は日本の首都です。 " + "x" * 120
    out = shown(align(text, LEVEL, BYTES), width)
    lines = out.splitlines()
    assert max(map(cell_len, lines)) <= width
    rows = [line for line in lines if line.strip()]
    assert len(rows) % 2 == 0
    assert all(line.startswith("student") for line in rows[::2])
    assert all(line.startswith("teacher") for line in rows[1::2])
    for row in (rows[::2], rows[1::2]):
        told = "".join(line[9:] for line in row)
        assert re.sub("[ │]", "", told).count("x") >= 120


def test_chunks_alternate_in_colour():
    out = shown(align("The cats", BYTES, BYTES), 80, color=True)
    assert "\x1b[30;106m" in out
    assert "\x1b[30;103m" in out


def test_a_terminal_obeys_nothing_in_the_text():
    a = align(HOSTILE, LEVEL, BYTES)
    out = shown(a, 60)
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "\u202e" not in out
    assert "\r" not in out


class Reader(HTMLParser):
    """Collects tags and text."""

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.text, self.attributes = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] != "style":
            self.text.append(data)


@pytest.mark.parametrize("student", [LEVEL, LLAMA2])
def test_html_escapes_everything(student):
    page = html(align(HOSTILE, student, BYTES), names=("<b>one", "two\x1b"))
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    assert set(reader.tags) == {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "div",
        "p",
        "span",
    }
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert "\x1b" not in page
    assert "\u202e" not in page
    told = "".join(reader.text)
    assert told.count("<") == 2 * HOSTILE.count("<") + 1
    assert "<b>one" in told


def test_html_needs_nothing_but_itself():
    page = html(align("The cats", LEVEL, BYTES))
    assert "http" not in page
    assert "src=" not in page
    assert page.startswith("<!doctype html>")
    assert fragment(align("The cats", LEVEL, BYTES)) in page


def test_a_rewritten_text_is_told():
    from tokenizers import normalizers

    composing = tiny.byte_level_bpe(normalizer=normalizers.NFC())
    assert "rewrote" in fragment(align("e\u0301", composing, BYTES))
    assert "rewrote" not in fragment(align("e", composing, BYTES))


def test_an_empty_text_is_fine():
    a = align("", LEVEL, BYTES)
    assert cells(a) == []
    assert shown(a, 40).strip() == ""
    assert "0 chunks" in html(a)
