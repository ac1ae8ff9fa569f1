"""The law of bytes on the tokenizers of real models, over odd text and over 43 languages."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from transformers import PreTrainedTokenizerFast

from crosstill.text.encode import TextEncoder, text_encoder
from odd_text import ODD, odd_texts
from real.tokenizers import NAMES

Load = Callable[[str], PreTrainedTokenizerFast]
PREFIXED = {"llama2"}


def check(encoder: TextEncoder, text: str) -> None:
    ids = encoder.encode(text)
    rules = encoder.normalization
    assert encoder.bytes.spell(ids) == rules.prefix_of(text) + rules.spelled(text)
    assert not encoder.bytes.special[ids].any()
    assert rules.changes(text) == (rules.spelled(text) != text.encode())
    pieces = rules.pieces(text)
    assert pieces[:, 1].max(initial=0) == len(text.encode())
    assert pieces[:, 3].max(initial=0) == len(rules.spelled(text))


@pytest.mark.parametrize("name", NAMES)
def test_law_on_odd_text(name: str, real_tokenizer: Load) -> None:
    tokenizer = real_tokenizer(name)
    encoder = text_encoder(tokenizer)
    added = [token.content for token in tokenizer.added_tokens_decoder.values()][-40:]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(odd_texts(*added))
    @example("".join(ODD))
    @example("".join(added))
    @example(" leading")
    def holds(text: str) -> None:
        check(encoder, text)

    holds()


@pytest.mark.parametrize("name", NAMES)
def test_law_on_43_languages(name: str, real_tokenizer: Load, data_folder: Path) -> None:
    encoder = text_encoder(real_tokenizer(name))
    files = sorted((data_folder / "udhr").rglob("*.txt"))
    assert len(files) >= 40
    for file in files:
        text = file.read_bytes().decode()[:4000]
        check(encoder, text)
        if not encoder.normalization.rules or encoder.normalization.rules == ("Replace",):
            assert encoder.normalization.changes(text) == ("\u2581" in text), file


@pytest.mark.parametrize("name", NAMES)
def test_what_is_known_of_each(name: str, real_tokenizer: Load) -> None:
    tokenizer = real_tokenizer(name)
    table = text_encoder(tokenizer).bytes
    assert table.unknown_id is None
    assert table.missing == b""
    assert len(table) == max(tokenizer.get_vocab().values()) + 1
    assert (text_encoder(tokenizer).normalization.prefix == b" ") == (name in PREFIXED)
    singles = {table.token(int(id)) for id in np.flatnonzero(table.lengths == 1)}
    in_utf8 = {bytes([byte]) for byte in [*range(0xC0), *range(0xC2, 0xF5)]}
    assert in_utf8 <= singles
    assert table.special[tokenizer.all_special_ids].all()


def test_runs_of_whitespace_of_gemma(real_tokenizer: Load) -> None:
    tokenizer = real_tokenizer("gemma3")
    table = text_encoder(tokenizer).bytes
    for char, written, longest in (("\n", "\n", 31), (" ", "\u2581", 31), ("\t", "\t", 31)):
        for size in range(2, longest + 1):
            id = tokenizer.convert_tokens_to_ids(written * size)
            assert id != tokenizer.unk_token_id
            assert table.token(id) == char.encode() * size
            assert text_encoder(tokenizer).encode(char * size) == [id]
    assert table.token(tokenizer.convert_tokens_to_ids("</table>")) == b"</table>"
    assert table.token(tokenizer.convert_tokens_to_ids("<unused7>")) == b""


@pytest.mark.parametrize(
    ("name", "literal"),
    [("deepseek_v3", "<\uff5cUser\uff5c>"), ("qwen3", "<think>"), ("qwen3", "<|im_end|>")],
)
def test_control_tokens_never_come_from_text(name: str, literal: str, real_tokenizer: Load) -> None:
    tokenizer = real_tokenizer(name)
    encoder = text_encoder(tokenizer)
    id = tokenizer.convert_tokens_to_ids(literal)
    assert tokenizer.encode(literal, add_special_tokens=False) == [id]
    assert id not in encoder.encode(f"a {literal} b")
    assert encoder.bytes.token(id) == b""


@pytest.mark.parametrize("name", NAMES)
def test_content_is_cut_as_the_model_cuts_it(name: str, real_tokenizer: Load) -> None:
    tokenizer = real_tokenizer(name)
    text = "Hello  world!\n\n\tx = 1\n<table> \u6771\u4eac e\u0301"
    own = tokenizer.encode(text, add_special_tokens=False)
    assert text_encoder(tokenizer).encode(text) == own


def test_a_large_encoder_pickles(real_tokenizer: Load) -> None:
    encoder = text_encoder(real_tokenizer("llama2"))
    copy = pickle.loads(pickle.dumps(encoder))  # noqa: S301
    assert copy.encode("Hello world") == encoder.encode("Hello world")
