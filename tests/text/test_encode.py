"""Encoding as content: no special tokens, no surrogates, and encoders that travel."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tiny_tokenizers as tiny
from crosstill.errors import DataError
from crosstill.text.bytes import byte_alphabet, token_bytes
from crosstill.text.encode import budgets, text_encoder
from crosstill.text.normalize import normalization
from crosstill.text.spec import is_control
from odd_text import odd_texts

MAKERS = {
    "byte-level": tiny.byte_level_bpe,
    "whole words": lambda: tiny.byte_level_bpe(ignore_merges=True),
    "metaspace": tiny.metaspace_bpe_with_byte_fallback,
    "unigram": tiny.unigram,
    "wordpiece": tiny.wordpiece,
    "characters": tiny.characters,
}


@pytest.mark.parametrize("maker", MAKERS)
def test_special_strings_in_user_text_are_spelled_out(maker: str) -> None:
    tokenizer = MAKERS[maker]()
    encoder = text_encoder(tokenizer)
    specials = set(tokenizer.all_special_ids) - {encoder.bytes.unknown_id}
    for token in tokenizer.all_special_tokens:
        for text in (token, f"a{token}b", f"hello {token} {token}", token * 3):
            assert specials.isdisjoint(encoder.encode(text))
    # The tokenizer itself, asked the usual way, does make them: the test can fail.
    assert not specials.isdisjoint(tokenizer.encode("".join(tokenizer.all_special_tokens)))


@settings(max_examples=50, deadline=None)
@given(odd_texts("<|bos|>", "<|eos|>", "</s>"))
def test_unigram_pieces_of_specials_never_come_from_text(text: str) -> None:
    encoder = text_encoder(UNIGRAM)
    assert not encoder.bytes.special[encoder.encode(text)].any()


UNIGRAM = tiny.unigram(specials={"bos_token": "<|bos|>", "eos_token": "</s>"})


def test_a_merge_that_makes_a_special_token_is_taken_out() -> None:
    texts = ["<eos> <eos> <eos>"] * 50
    tokenizer = tiny.byte_level_bpe(texts, 300, specials={}, use_regex=False)
    name = next(t for t in tokenizer.get_vocab() if t == "<eos>")
    tokenizer.add_special_tokens({"eos_token": name})
    assert tokenizer.eos_token_id in tokenizer.encode("<eos>", split_special_tokens=True)
    encoder = text_encoder(tokenizer)
    ids = encoder.encode("a<eos>b <eos>")
    assert tokenizer.eos_token_id not in ids
    assert encoder.bytes.spell(ids) == b"a<eos>b <eos>"


@pytest.mark.parametrize(
    ("literal", "expected"),
    [
        ("<think>", True),
        ("</tool_call>", True),
        ("<\uff5cUser\uff5c>", True),
        ("<unused17>", True),
        ("[multimodal]", True),
        ("<|fim_prefix|>", True),
        ("\n\n", False),
        ("\u2581\u2581\u2581", False),
        ("        ", False),
        ("</table>", False),
        ("<h1>", False),
        ("<s>", False),
        ("hello", False),
        ("0x", False),
    ],
)
def test_what_steers_the_model_is_control_whatever_its_flag(literal: str, expected: bool) -> None:
    assert is_control(AddedToken(literal, special=False)) is expected
    assert is_control(AddedToken(literal, special=True))


def test_control_tokens_without_the_special_flag_are_spelled_out_too() -> None:
    tokenizer = tiny.byte_level_bpe()
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("zebra")])
    encoder = text_encoder(tokenizer)
    think, zebra = tokenizer.convert_tokens_to_ids(["<think>", "zebra"])
    ids = encoder.encode("<think>zebra")
    assert think not in ids
    assert zebra in ids
    assert encoder.bytes.spell(ids) == b"<think>zebra"
    assert encoder.bytes.special[think]
    assert not encoder.bytes.special[zebra]


@pytest.mark.parametrize("text", ["\ud800", "ab\udfffcd", "\ud83d \ude00"])
def test_lone_surrogates_are_data_errors(text: str) -> None:
    encoder = text_encoder(tiny.byte_level_bpe())
    for ask in (encoder.encode, encoder.normalization.spelled, encoder.normalization.pieces):
        with pytest.raises(DataError, match=r"lone surrogate U\+D"):
            ask(text)
    with pytest.raises(DataError, match="lone surrogate"):
        encoder.encode_batch(["fine", text])


def test_bytes_that_the_vocabulary_lacks_are_refused_row_by_row() -> None:
    lacking = {0x04, 0xF1}
    alphabet = [char for byte, char in enumerate(byte_alphabet()) if byte not in lacking]
    backend = Tokenizer(models.BPE({char: id for id, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder = text_encoder(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert encoder.bytes.missing == b"\x04\xf1"
    assert encoder.bytes.spell(encoder.encode("fine \u6771\u4eac")) == "fine \u6771\u4eac".encode()
    for text in ("a\x04b", "\x04", "\U00040000"):
        with pytest.raises(DataError, match="has no token"):
            encoder.encode(text)
    assert encoder.encode("") == []


@pytest.mark.parametrize("maker", MAKERS)
def test_encoders_pickle(maker: str) -> None:
    encoder = text_encoder(MAKERS[maker]())
    copy = pickle.loads(pickle.dumps(encoder))  # noqa: S301
    text = "Hello  world \u6771\u4eac <|eos|>\n\n"
    assert copy.encode(text) == encoder.encode(text)
    assert np.array_equal(copy.bytes.lengths, encoder.bytes.lengths)
    assert copy.roles == encoder.roles


def test_one_encoder_for_each_tokenizer() -> None:
    tokenizer = tiny.byte_level_bpe()
    encoder = text_encoder(tokenizer)
    assert text_encoder(tokenizer) is encoder
    assert text_encoder(encoder) is encoder
    assert token_bytes(tokenizer) is encoder.bytes
    assert normalization(tokenizer) is encoder.normalization
    tokenizer.add_tokens(["brandnew"])
    assert len(text_encoder(tokenizer).encode("brandnew")) == 1
    assert text_encoder(tokenizer).vocab_size == encoder.vocab_size + 1


def test_the_tokenizer_itself_is_left_as_it_was() -> None:
    tokenizer = tiny.unigram()
    before = tokenizer.backend_tokenizer.to_str()
    encoder = text_encoder(tokenizer)
    encoder.encode("<|eos|> hello")
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer.eos_token_id in tokenizer.encode("<|eos|>")


def test_batches_are_rows() -> None:
    encoder = text_encoder(tiny.byte_level_bpe())
    texts = ["", "a", " hello\n", "\u6771\u4eac" * 5]
    assert encoder.encode_batch(texts) == [encoder.encode(text) for text in texts]
    assert encoder.encode_batch([]) == []


@pytest.mark.parametrize("add_bos", [True, False])
def test_what_the_post_processor_adds_is_known_and_not_in_the_content(add_bos: bool) -> None:
    tokenizer = tiny.byte_level_bpe(add_bos=add_bos)
    encoder = text_encoder(tokenizer)
    assert encoder.adds_bos is add_bos
    assert encoder.adds_eos is False
    assert encoder.encode("hello") == tokenizer.encode("hello", add_special_tokens=False)


def test_adds_eos() -> None:
    from tokenizers import processors

    tokenizer = tiny.unigram()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|eos|>", special_tokens=[("<|eos|>", tokenizer.eos_token_id)]
    )
    encoder = text_encoder(tokenizer)
    assert (encoder.adds_bos, encoder.adds_eos) == (False, True)


def test_a_byte_tokenizer_may_have_four_times_the_tokens() -> None:
    encoders = [text_encoder(make()) for make in (tiny.bytes_only, tiny.byte_level_bpe)]
    assert [encoder.bytewise for encoder in encoders] == [True, False]
    assert budgets(*encoders, 100) == (400, 100)
