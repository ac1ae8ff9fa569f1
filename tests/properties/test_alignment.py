"""Properties of the alignment of texts, with tiny tokenizers of every family and a plain oracle."""

import unicodedata
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

import tiny_tokenizers as tiny
from crosstill.align.chunks import align
from crosstill.text.encode import text_encoder
from oracle.alignment import boundaries_of_original, common_boundaries

PLAIN = {
    "bytes": tiny.bytes_only(),
    "byte-level": tiny.byte_level_bpe(),
    "byte-level, other merges": tiny.byte_level_bpe(tiny.TEXTS[2:], 330, use_regex=False),
    "byte-level, prefix space": tiny.byte_level_bpe(add_prefix_space=True),
    "metaspace": tiny.metaspace_bpe_with_byte_fallback(),
    "llama2": tiny.metaspace_bpe_with_byte_fallback(style="prepend"),
    "gemma": tiny.metaspace_bpe_with_byte_fallback(style="gemma", content_tokens=("\n\n", "▁▁")),
    "unigram": tiny.unigram(),
}
REWRITING = {
    "NFC": (normalizers.NFC(), lambda text: unicodedata.normalize("NFC", text)),
    "NFD": (normalizers.NFD(), lambda text: unicodedata.normalize("NFD", text)),
    "NFKC": (normalizers.NFKC(), lambda text: unicodedata.normalize("NFKC", text)),
    "lower case": (normalizers.Lowercase(), str.lower),
}
REWRITERS = {
    **{name: tiny.byte_level_bpe(normalizer=n) for name, (n, _) in REWRITING.items()},
    **{f"{name}, bytes": tiny.bytes_only(normalizer=n) for name, (n, _) in REWRITING.items()},
}
ALL = PLAIN | REWRITERS

ODD = st.sampled_from(
    ["e\u0301", "\u1112\u1161\u11ab", "ﬁ", "½", "Å", "İ", "  ", "\n\n", "▁", "<0x41>", "👩‍👧", "🇩🇪"]
)
# Unassigned and brand-new characters are left out: two Unicode tables may differ on them.
ORDINARY = st.text(
    st.characters(codec="utf-8", categories=["L", "M", "N", "P", "S", "Z"], max_codepoint=0xFFFD),
    max_size=6,
)
WORDS = st.sampled_from([" the", " cats", "Hello", " world", "def ", "東京", "über", "1234"])
TEXTS = st.lists(st.one_of(ODD, ORDINARY, WORDS), max_size=8).map("".join)
NAMES = st.sampled_from(sorted(ALL))
PLAIN_NAMES = st.sampled_from(sorted(PLAIN))


def pieces(ids, encoder, extra):
    """The bytes of each token, without what the tokenizer put before the text."""
    out = []
    for piece in map(encoder.bytes.token, ids):
        out.append(piece[extra:])
        extra = max(extra - len(piece), 0)
    return out


def sides(alignment):
    n = len(alignment.chunks)
    return (
        [alignment.student_bytes(k) for k in range(n)],
        [alignment.teacher_bytes(k) for k in range(n)],
    )


@settings(max_examples=150)
@given(TEXTS, NAMES, NAMES)
def test_chunks_tile_both_sides_in_order(text, student, teacher):
    a = align(text, ALL[student], ALL[teacher])
    for side, ids in ((0, a.student_ids), (1, a.teacher_ids)):
        ranges = [chunk[side] for chunk in a.chunks]
        assert [k for start, end in ranges for k in range(start, end)] == list(range(len(ids)))
        assert all(start < end for start, end in ranges)


@settings(max_examples=150)
@given(TEXTS, PLAIN_NAMES, PLAIN_NAMES)
def test_equal_bytes_and_finest(text, student, teacher):
    a = align(text, PLAIN[student], PLAIN[teacher])
    if a.rewritten:  # a metaspace reads its own mark as a space
        assert "▁" in text or "<0x" in text
        return
    own, other = sides(a)
    assert own == other
    encoders = text_encoder(PLAIN[student]), text_encoder(PLAIN[teacher])
    expected = common_boundaries(
        pieces(a.student_ids, encoders[0], a.student_extra),
        pieces(a.teacher_ids, encoders[1], a.teacher_extra),
    )
    assert [0, *accumulate(map(len, own))] == expected


@settings(max_examples=150)
@given(TEXTS, NAMES, NAMES)
def test_symmetric(text, student, teacher):
    forth, back = (
        align(text, ALL[student], ALL[teacher]),
        align(text, ALL[teacher], ALL[student]),
    )
    assert forth.chunks == [(s, t) for t, s in back.chunks]
    assert sides(forth) == sides(back)[::-1]
    assert forth.rewritten == back.rewritten


@settings(max_examples=100)
@given(TEXTS, NAMES)
def test_a_tokenizer_against_itself_gives_a_chunk_a_token(text, name):
    a = align(text, ALL[name], ALL[name])
    assert sides(a)[0] == sides(a)[1]
    lone = int(a.student_extra > 0 and a.student_spelling.lengths[a.student_ids[0]] == 1)
    assert len(a.chunks) == len(a.student_ids) - lone


@settings(max_examples=200)
@given(TEXTS, st.sampled_from(sorted(REWRITERS)), NAMES)
def test_every_boundary_of_the_original_is_found_under_rewriting(text, student, teacher):
    """By brute force over all prefixes of the text, with the normaliser and nothing else."""
    a = align(text, ALL[student], ALL[teacher])
    encoders = text_encoder(ALL[student]), text_encoder(ALL[teacher])
    own, other = sides(a)
    found = set(
        zip([0, *accumulate(map(len, own))], [0, *accumulate(map(len, other))], strict=True)
    )
    expected = None
    for encoder, ids, extra in (
        (encoders[0], a.student_ids, a.student_extra),
        (encoders[1], a.teacher_ids, a.teacher_extra),
    ):
        ends = accumulate(map(len, pieces(ids, encoder, extra)))
        places = boundaries_of_original(text, encoder.normalization.spelled, list(ends))
        expected = places if expected is None else expected & places
    prefixes = [text[:k] for k in range(len(text) + 1) if len(text[:k].encode()) in expected]
    for prefix in prefixes:
        ends = tuple(len(encoder.normalization.spelled(prefix)) for encoder in encoders)
        assert ends in found, prefix


def equal_under(normalize, own, other):
    """Whether two byte strings are one under a normaliser, but for the same broken end."""
    heads = [data.decode("utf-8", "ignore") for data in (own, other)]
    tails = [data[len(head.encode()) :] for data, head in zip((own, other), heads, strict=True)]
    return tails[0] == tails[1] and normalize(heads[0]) == normalize(heads[1])


@settings(max_examples=200)
@given(TEXTS, st.sampled_from(sorted(REWRITING)), PLAIN_NAMES, st.booleans())
def test_chunks_are_equal_under_the_normaliser(text, rule, teacher, as_bytes):
    student = REWRITERS[f"{rule}, bytes" if as_bytes else rule]
    a = align(text.replace("▁", "_").replace("<0x", "<0y"), student, PLAIN[teacher])
    own, other = sides(a)
    normalize = REWRITING[rule][1]
    for k in range(len(own) + 1):
        assert equal_under(normalize, b"".join(own[:k]), b"".join(other[:k]))
    assert a.rewritten == (b"".join(own) != b"".join(other))


@settings(max_examples=100)
@given(TEXTS, PLAIN_NAMES)
def test_metamorphic_against_bytes_the_chunks_are_the_other_side_s_tokens(text, name):
    a = align(text, PLAIN[name], PLAIN["bytes"])
    if not a.rewritten:
        encoder = text_encoder(PLAIN[name])
        tokens = [p for p in pieces(a.student_ids, encoder, a.student_extra) if p]
        assert sides(a) == (tokens, tokens)


@settings(max_examples=100)
@given(TEXTS, PLAIN_NAMES, PLAIN_NAMES, PLAIN_NAMES)
def test_metamorphic_shared_boundaries_of_two_pairs_are_shared_by_the_third(text, one, two, three):
    """Boundaries of (one, two) and of (one, three) are boundaries of (two, three) if in both."""

    def boundaries(student, teacher):
        own, _ = sides(align(text, PLAIN[student], PLAIN[teacher]))
        return set(accumulate(map(len, own)))

    if "▁" in text or "<0x" in text:
        return
    assert boundaries(one, two) & boundaries(one, three) <= boundaries(two, three)


@pytest.mark.parametrize("name", sorted(ALL))
def test_the_law_of_bytes_holds_for_the_tokenizers_used_here(name):
    """The tiny tokenizers are what their names say; the properties above rest on it."""
    encoder = text_encoder(ALL[name])
    text = "The cats é"
    ids = encoder.encode(text)
    assert encoder.bytes.spell(ids).endswith(encoder.normalization.spelled(text))
