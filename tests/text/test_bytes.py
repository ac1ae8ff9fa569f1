"""Token tables: what single ids spell, and which tokenizers are refused."""

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

import tiny_tokenizers as tiny
from crosstill.errors import TokenizerError
from crosstill.text.bytes import byte_alphabet, token_bytes


def wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_byte_alphabet_is_that_of_the_library() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet) == sorted(pre_tokenizers.ByteLevel.alphabet())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    for text in ("\x00\t\n !\x7f", "\u00e9\u07ff\uffff", "\U0010ffff"):
        assert split(text)[0][0] == "".join(alphabet[byte] for byte in text.encode())


def test_pure_byte_tokenizer_spells_its_ids() -> None:
    table = token_bytes(tiny.bytes_only())
    assert [table.token(byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert table.spell(list(b"a\xff\n")) == b"a\xff\n"
    assert table.special.tolist() == [False] * 256 + [True, True]
    assert table.lengths.dtype == np.int32
    assert table.lengths.tolist() == [1] * 256 + [0, 0]
    assert table.first_byte.dtype == np.int16
    assert table.first_byte.tolist() == [*range(256), -1, -1]
    assert np.flatnonzero(table.boundary()).tolist() == [*b"\t\n ", 256, 257]
    assert table.kind == "byte-level"
    assert table.unknown_id is None


def test_nothing_spells_nothing() -> None:
    table = token_bytes(tiny.bytes_only())
    assert table.spell([]) == b""
    assert table.ends([]).shape == (0,)
    assert table.spell([256, 257]) == b""
    assert table.ends([97, 256, 98]).tolist() == [1, 1, 2]


@pytest.mark.parametrize("ids", [[-100], [258], [0, -1], [10**6]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    table = token_bytes(tiny.bytes_only())
    for ask in (table.spell, table.ends, lambda rows: table.token(rows[-1])):
        with pytest.raises(TokenizerError, match="expected token ids from 0 to 257"):
            ask(ids)


def test_added_tokens_are_stored_raw_not_in_the_byte_alphabet() -> None:
    tokenizer = tiny.byte_level_bpe()
    # In the byte alphabet "\u0120" would be a space and "\u00e9" the byte E9.
    tokenizer.add_tokens([AddedToken("\u0120\u00e9", normalized=False), AddedToken(" caf\u00e9 ")])
    table = token_bytes(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(["\u0120\u00e9", " caf\u00e9 "])
    assert [table.token(id) for id in ids] == ["\u0120\u00e9".encode(), " caf\u00e9 ".encode()]


def test_metaspace_marks_and_byte_tokens() -> None:
    tokenizer = tiny.metaspace_bpe_with_byte_fallback(content_tokens=["\n\n", "\u2581\u2581"])
    table = token_bytes(tokenizer)
    of = tokenizer.convert_tokens_to_ids
    assert table.token(of("\u2581the")) == b" the"
    assert table.token(of("<0xE4>")) == b"\xe4"
    assert table.token(of("\u2581\u2581")) == b"  "
    assert table.token(of("\n\n")) == b"\n\n"
    assert table.token(of("<unk>")) == b""
    assert table.kind == "metaspace"
    assert table.unknown_id is None  # with all 256 bytes there is nothing to hide


def test_wordpiece_prefixes_spell_nothing() -> None:
    tokenizer = tiny.wordpiece()
    table = token_bytes(tokenizer)
    continuing = [t for t in tokenizer.get_vocab() if t.startswith("##")]
    assert continuing
    for token in continuing:
        assert table.token(tokenizer.convert_tokens_to_ids(token)) == token[2:].encode()
    assert table.unknown_id == tokenizer.unk_token_id
    assert (table.kind, token_bytes(tiny.characters()).kind) == ("wordpiece", "character")


def test_end_of_word_suffix_spells_nothing() -> None:
    vocab = {char + end: 0 for char in "abc" for end in ("", "</w>")} | {"ab</w>": 0, "[UNK]": 0}
    vocab = {token: id for id, token in enumerate(vocab)}
    model = models.BPE(vocab, [("a", "b</w>")], unk_token="[UNK]", end_of_word_suffix="</w>")
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    table = token_bytes(wrap(backend))
    assert table.token(vocab["ab</w>"]) == b"ab"
    assert table.token(vocab["a"]) == b"a"


def test_one_table_for_each_tokenizer_and_a_new_one_when_it_gains_tokens() -> None:
    tokenizer = tiny.byte_level_bpe()
    table = token_bytes(tokenizer)
    assert token_bytes(tokenizer) is table
    tokenizer.add_tokens(["brandnew"])
    grown = token_bytes(tokenizer)
    assert len(grown) == len(table) + 1
    assert grown.token(len(table)) == b"brandnew"


def test_slow_tokenizer_is_refused_with_advice() -> None:
    class Slow(PreTrainedTokenizer):
        @property
        def vocab_size(self) -> int:
            return 0

        def get_vocab(self) -> dict[str, int]:
            return {}

    with pytest.raises(TokenizerError, match=r"got the slow Slow.*use_fast=True"):
        token_bytes(Slow())  # type: ignore[arg-type]


def test_bare_backend_is_refused_with_advice() -> None:
    with pytest.raises(TokenizerError, match=r"got Tokenizer: wrap a tokenizers\.Tokenizer"):
        token_bytes(tiny.bytes_only().backend_tokenizer)  # type: ignore[arg-type]


def test_vocabulary_that_drops_ordinary_bytes_is_refused() -> None:
    alphabet = [char for byte, char in enumerate(byte_alphabet()) if byte < 0x80]
    vocab = {char: id for id, char in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert backend.encode("a\u00e9b").tokens == ["a", "b"]  # two bytes gone without an error
    with pytest.raises(TokenizerError, match="no token for bytes 0x80, 0x81"):
        token_bytes(wrap(backend))


def test_vocabulary_of_characters_without_unknown_token_is_refused() -> None:
    with pytest.raises(TokenizerError, match="characters outside its vocabulary"):
        token_bytes(wrap(Tokenizer(models.BPE({"a": 0, "b": 1}, []))))


def test_rewriting_crosstill_does_not_know_is_refused_with_a_counterexample() -> None:
    tokenizer = tiny.byte_level_bpe()
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{P}"), "removed"), backend.pre_tokenizer]
    )
    with pytest.raises(TokenizerError, match=r"The quick brown fox, 12345 times\."):
        token_bytes(wrap(backend))


def test_words_marked_only_at_the_start_lose_their_spaces_and_are_refused() -> None:
    tokenizer = tiny.unigram(split_whitespace=True, prepend_scheme="first")
    with pytest.raises(TokenizerError, match="changes or drops text"):
        token_bytes(tokenizer)


def test_content_token_that_swallows_whitespace_is_refused() -> None:
    tokenizer = tiny.byte_level_bpe()
    tokenizer.add_tokens([AddedToken("greedy", lstrip=True)])
    with pytest.raises(TokenizerError, match="'greedy' with lstrip or rstrip"):
        token_bytes(tokenizer)


def test_every_part_of_a_normaliser_counts() -> None:
    rules = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer = tiny.byte_level_bpe(normalizer=rules)
    tokenizer.add_tokens([AddedToken("CAFE\u0301", normalized=True)])
    table = token_bytes(tokenizer)
    assert table.token(len(table) - 1) == "caf\u00e9".encode()
