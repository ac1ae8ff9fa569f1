"""Every pair of real tokenizers, both ways, on every language, code and odd Unicode.

The bytes of a token are read here from its name by the rules of its family, and the normaliser is
Python's: nothing of what is tested is used to test it.
"""

import sysconfig
import unicodedata
from collections import Counter
from functools import cache
from itertools import accumulate
from pathlib import Path

import pytest
from transformers.convert_slow_tokenizer import bytes_to_unicode

import tiny_tokenizers as tiny
from crosstill.align.chunks import align, align_ids
from crosstill.text.encode import text_encoder
from oracle.alignment import boundaries_of_original, common_boundaries
from real.tokenizers import NAMES, real_tokenizer

ALL = (*NAMES, "bytes")
COMPOSING = {"qwen3"}  # by NFC
METASPACE = {"gemma3", "llama2"}
PREFIXED = {"llama2"}
BYTE_OF = {char: byte for byte, char in bytes_to_unicode().items()}

ODD = [
    "",
    " ",
    "\n",
    "\r\n\t \x0b\x0c\x00\x1b[0m",
    "  two  three   four    \n\n\n\n    five",
    "e\u0301 A\u030a \u1112\u1161\u11ab o\u0302\u0323 o\u0323\u0302",
    "\u0344 \u0958 \u2126 \u212b \ufb1d",
    "é Å 한 ộ",
    "\u0301 alone and \u0301\u0301\u0301 stacked q\u0323\u0307",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 👍🏽 ☺️ 1️⃣",
    "ﬁ ½ ² Ⅷ ㎏ ﷺ ＡＢＣ ｶﾞ ſ ẞ",
    "مَرْحَبًا שָׁלוֹם \u202eabc\u202c \u2066x\u2069",
    "नमस्ते क्षत्रिय ภาษาไทย မြန်မာ ខ្មែរ བོད་ཡིག",
    "\ufeffbom \ufffd \ufffe \U0010ffff \ue000 \U000f0000",
    "𝒜𝓁𝑔𝑒𝒷𝓇𝒶 𐍈𐌰 𠮷野家 \U0002f81a",
    "a\u00a0b\u2003c\u3000d\u200be\u2028f\u2029g\u00adh",
    "Ġword Ċ ĉ Ã© ▁▁ ▁a â\x96\x81",
    "<|endoftext|> <s> </s> <bos> <|im_start|>user\n <think> <0x0G> <unk> [INST]",
    "x" * 300,
    " " * 130 + "!" * 70,
    "1234567890 3.14159 1,000,000 0x7fff 1e-9",
    "ZALGO: H̸̡̪̯ͨ͊̽̅̾̎Ȩ̬̩̾͛ͪ̈́̀́͘ ̶̧̨̱̹̭̯ͧ̾ͬC̷̙̲̝͖ͭ̏ͥͮ͟Oͮ͏̮̪̝͍M",
]
"""Strings that break decoders, offsets and hand-made byte tables."""


@cache
def tokenizer(name):
    return tiny.bytes_only() if name == "bytes" else real_tokenizer(name)


@cache
def encoder(name):
    return text_encoder(tokenizer(name))


def plain_bytes(name, token):
    """What a token spells, from its name."""
    if name in METASPACE:
        if len(token) == 6 and token.startswith("<0x"):
            return bytes([int(token[3:5], 16)])
        return token.replace("▁", " ").encode()
    return bytes(BYTE_OF[char] for char in token)


@cache
def encoded(name, text):
    """Ids of a text, and the bytes of each token without the prefix space."""
    ids = encoder(name).encode(text)
    pieces = [plain_bytes(name, token) for token in tokenizer(name).convert_ids_to_tokens(ids)]
    if name in PREFIXED and pieces:
        assert pieces[0][:1] == b" "
        pieces[0] = pieces[0][1:]
    return ids, pieces


def rewritten(name, text):
    """What a side makes of a text: NFC, or a space of every sign that stands for one."""
    if name in COMPOSING:
        return unicodedata.normalize("NFC", text)
    return text.replace("▁", " ") if name in METASPACE else text


def common_form(data):
    """Bytes under every normaliser there is here."""
    text = data.decode("utf-8", "surrogateescape").replace("▁", " ")
    return unicodedata.normalize("NFC", text)


@cache
def places(name, text):
    """Original byte positions where a side has an edge, and its own byte position there.

    By brute force line by line: nothing composes with, or moves over, the end of a line.
    """
    ends = {0, *accumulate(map(len, encoded(name, text)[1]))}
    if rewritten(name, text) == text:
        return {end: end for end in ends}

    def spelled(part):
        return rewritten(name, part).encode()

    found, old, new = {}, 0, 0
    for line in text.split("\n"):
        line += "\n"
        for place in boundaries_of_original(line, spelled, {end - new for end in ends}):
            own = new + len(spelled(line.encode()[:place].decode()))
            if own in ends:
                found[old + place] = own
        old, new = old + len(line.encode()), new + len(spelled(line))
    return found


def check(text, student, teacher, told):
    """One text, one pair: every law, and what is to be counted."""
    (student_ids, student_pieces), (teacher_ids, teacher_pieces) = (
        encoded(name, text) for name in (student, teacher)
    )
    a = align_ids(text, student_ids, teacher_ids, encoder(student), encoder(teacher))
    n = len(a.chunks)
    own = [b"".join(student_pieces[s0:s1]) for (s0, s1), _ in a.chunks]
    other = [b"".join(teacher_pieces[t0:t1]) for _, (t0, t1) in a.chunks]
    for k in {0, n // 3, n - 1} & set(range(n)):
        assert (a.student_bytes(k), a.teacher_bytes(k)) == (own[k], other[k])
    assert b"".join(own) == b"".join(student_pieces)
    assert b"".join(other) == b"".join(teacher_pieces)
    ends = [[0, *accumulate(map(len, side))] for side in (own, other)]
    changed = {name for name in (student, teacher) if rewritten(name, text) != text}
    assert a.rewritten == bool(changed)
    if not changed or student == teacher:
        assert own == other
        assert ends[0] == common_boundaries(student_pieces, teacher_pieces)
    else:
        for one, two in zip(own, other, strict=True):
            assert common_form(one) == common_form(two)
        found = set(zip(*ends, strict=True))
        own_places, other_places = places(student, text), places(teacher, text)
        for place in own_places.keys() & other_places.keys():
            assert (own_places[place], other_places[place]) in found, place
    told["texts"] += 1
    told["rewritten"] += bool(changed)
    told["chunks"] += n
    told["bytes"] += len(text.encode())


def languages(folder):
    texts = {
        path.stem: path.read_text(encoding="utf-8")
        for path in sorted((folder / "udhr").glob("*.txt"))
    }
    assert len(texts) == 43
    return texts


def code():
    library = Path(sysconfig.get_paths()["stdlib"])
    names = ("argparse.py", "difflib.py", "encodings/cp1252.py", "token.py", "this.py")
    return {name: (library / name).read_text(encoding="utf-8") for name in names}


def sample(text):
    """Two stretches of a text, one of them from the middle."""
    middle = len(text) // 2
    return text[:160], text[middle : middle + 160]


@pytest.mark.parametrize("student", ALL)
def test_odd_unicode_and_code(student):
    told = Counter()
    for teacher in ALL:
        for text in [*ODD, *(part for whole in code().values() for part in sample(whole))]:
            check(text, student, teacher, told)
    assert told["texts"] == len(ALL) * (len(ODD) + 2 * len(code()))
    assert told["rewritten"] > 0


@pytest.mark.parametrize("student", ALL)
def test_a_sample_of_every_language(student, data_folder):
    told = Counter()
    for teacher in ALL:
        for text in languages(data_folder).values():
            for part in sample(text):
                check(part, student, teacher, told)
    assert told["texts"] == len(ALL) * 2 * 43


@pytest.mark.slow
@pytest.mark.parametrize("student", ALL)
def test_everything(student, data_folder, record_property):
    told = Counter()
    for teacher in ALL:
        for text in [*languages(data_folder).values(), *code().values(), *ODD]:
            check(text, student, teacher, told)
    for name, value in told.items():
        record_property(name, value)
    print(student, dict(told))


@pytest.mark.parametrize("student", ALL)
@pytest.mark.parametrize("teacher", ALL)
def test_the_public_function_says_the_same(student, teacher):
    text = "Größe <|eot_id|> 東京 e\u0301\n"
    a = align(text, tokenizer(student), tokenizer(teacher))
    assert (a.student_ids, a.teacher_ids) == (encoded(student, text)[0], encoded(teacher, text)[0])
    b = align_ids(text, a.student_ids, a.teacher_ids, encoder(student), encoder(teacher))
    assert a.chunks == b.chunks
    assert a.coverage.bytes == a.coverage.student_tokens == a.coverage.teacher_tokens == 1.0
