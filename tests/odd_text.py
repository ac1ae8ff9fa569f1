"""Text as odd as it comes, for property tests: every hazard that breaks naive byte arithmetic."""

from hypothesis import strategies as st

ODD = (
    *("\x00", "\ufeff", "\u200b", "\u2028", "\u2029", "\r\n", "\r", "\n", "\n\n", "\n\n\n"),
    *(" ", "  ", "     ", "\t", "\t\t", " \t\n", "\xa0", "\u3000", "\u2009", "\x85", "\x1c"),
    *("\x7f"),
    *("a", "Z", "\u00e9", "e\u0301", "\u0301", "o\u0323\u0302", "o\u0302\u0323"),
    *("\u1e9b\u0323", "\u212b", "\u0130", "\u01c5"),
    *("\uac00", "\u1100\u1161", "\u1100\u1161\u11a8", "\u1161", "\u304b\u3099"),
    *("\uff76\uff9e", "\u6f22\u5b57", "\U00020000"),
    *("\u05e9\u05dc\u05d5\u05dd", "\u202eabc\u202c", "\u0645\u064e\u0651"),
    *("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e17\u0e33", "\u0f73"),
    *("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd"),
    *("\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "\U0001f600"),
    *("\u0378", "\ue000", "\U000e0041", "\U0003ffff", "\U0010ffff", "\ufffd", "\U0001d400"),
    *("\u00ad"),
    *("\u2581", "\u2581\u2581", " \u2581", "\u2581 ", "\ufb01", "\u00bd", "\u2460", "\u00df"),
    *("\u03a3", "``", "''"),
    *("##ing", "<0x41>", "<0xE4>", "</w>", "\u0120", "\u010a", "\u00c3\u00a9"),
    *("<|bos|>", "<|eos|>", "<|im_start|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "[UNK]"),
    *("[CLS]"),
    *("<think>", "</table>", "<\uff5cUser\uff5c>", "hello", " world", "def f(x):", "123"),
    *("don't"),
)  # fmt: skip
"""Pieces of odd text; literals of special tokens are among them."""


def odd_texts(*more: str, max_size: int = 12) -> st.SearchStrategy[str]:
    """Texts of odd pieces, of `more`, and of any code points but surrogates."""
    piece = st.one_of(
        st.sampled_from([*ODD, *more]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
        st.text(st.characters(categories=["Mn", "Mc", "Me", "Lo"]), max_size=4),
    )
    return st.lists(piece, max_size=max_size).map("".join)
