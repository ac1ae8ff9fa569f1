"""The law: a text's tokens spell its prefix and then the text as normalised, to the byte."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from crosstill.text.encode import TextEncoder, text_encoder
from odd_text import odd_texts
from text.families import NORMALIZERS, PAIRS, tokenizer_of

RELAXED = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


def check_law(encoder: TextEncoder, text: str) -> None:
    """The law and what follows from it, for one text."""
    table, normalization = encoder.bytes, encoder.normalization
    ids = encoder.encode(text)
    spelled = normalization.spelled(text)
    prefix = normalization.prefix_of(text)
    assert normalization.changes(text) == (spelled != text.encode())
    assert prefix in (b"", normalization.prefix)
    check_tiling(normalization.pieces(text), text.encode(), spelled)
    if table.unknown_id in ids:
        return
    assert not table.special[ids].any()
    if not spelled:  # nothing but dropped characters: a prefix may stand alone
        assert table.spell(ids) in (b"", normalization.prefix)
        return
    assert table.spell(ids) == prefix + spelled
    ends = table.ends(ids)
    assert ends.dtype == np.int64
    assert ends.tolist() == np.cumsum([len(table.token(id)) for id in ids]).tolist()
    assert b"".join(table.token(id) for id in ids) == table.spell(ids)


def check_tiling(pieces: np.ndarray, old: bytes, new: bytes) -> None:
    """Pieces tile both texts in order, and no two unchanged ones are neighbours."""
    assert pieces.dtype == np.int64
    assert pieces.shape == (len(pieces), 4)
    corners = pieces.tolist()
    assert ([corners[0][0], corners[0][2]] if corners else [0, 0]) == [0, 0]
    assert [len(old), len(new)] == ([corners[-1][1], corners[-1][3]] if corners else [0, 0])
    same = [old[o0:o1] == new[n0:n1] for o0, o1, n0, n1 in corners]
    assert all(o0 <= o1 and n0 <= n1 and (o0, n0) != (o1, n1) for o0, o1, n0, n1 in corners)
    for before, after in itertools.pairwise(corners):
        assert (before[1], before[3]) == (after[0], after[2])
    assert not any(a and b for a, b in itertools.pairwise(same))


@pytest.mark.parametrize(("family", "normalizer"), PAIRS)
def test_law_on_odd_text(family: str, normalizer: str) -> None:
    encoder = text_encoder(tokenizer_of(family, normalizer))

    @RELAXED
    @given(odd_texts())
    @example("")
    @example(" ")
    @example(" a")
    @example("\u2581a")
    @example("  a  b  ")
    @example("a\n\n b\n\nc</table>d")
    @example("\n\n\n\na")
    @example("cafe\u0301 \u2581\u2581\u2581")
    def holds(text: str) -> None:
        check_law(encoder, text)

    holds()


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_spelled_is_what_the_normaliser_writes(normalizer: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of("bytes", normalizer)
    text = data.draw(odd_texts())
    own = tokenizer.backend_tokenizer.normalizer
    expected = text if own is None else own.normalize_str(text)
    assert text_encoder(tokenizer).normalization.spelled(text) == expected.encode()


@pytest.mark.parametrize(
    "normalizer", ["nfc", "nfd", "nfkc", "nfkd", "lowercase", "nfd, no accents", "nmt", "quotes"]
)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_piece_is_the_image_of_its_own_text(normalizer: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of("bytes", normalizer)
    text = data.draw(odd_texts())
    normalization = text_encoder(tokenizer).normalization
    old, new = text.encode(), normalization.spelled(text)
    rewrite = tokenizer.backend_tokenizer.normalizer.normalize_str
    for o0, o1, n0, n1 in normalization.pieces(text).tolist():
        assert rewrite(old[o0:o1].decode()).encode() == new[n0:n1]
