"""The seven real tokenizers as targets of a real model, and bytes beside each of them."""

import os
from functools import cache

import pytest
from hypothesis import HealthCheck, example, given, settings
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from crosstill.align.chunks import align_ids
from crosstill.hub import load_tokenizer
from crosstill.text.encode import text_encoder
from crosstill.text.parts import TORTURE
from crosstill.transfer.target import target_tokenizer
from odd_text import ODD, odd_texts
from real.tokenizers import NAMES, cache_folder, real_tokenizer

QUICK = ("llama2",)  # the others have vocabularies four to eight times as large
SOME = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
CHAT = [
    {"role": "user", "content": "Hello  there <|im_end|>!"},
    {"role": "assistant", "content": "Gr\u00fc\u00dfe, \u6771\u4eac \U0001f600\n\n\t1234567"},
    {"role": "user", "content": "?"},
]
TEXTS = (*ODD, *TORTURE, "".join(ODD), " " * 70 + "x", "1234567890 3.14", "<|im_start|>a</s><eos>")


@cache
def source() -> PreTrainedTokenizerFast:
    """The tokenizer of SmolLM2-135M-Instruct."""
    folder = cache_folder() / "SmolLM2-135M-Instruct"
    if not (folder / "tokenizer.json").is_file():
        reason = f"{folder} does not hold the real model: run `make teacher`"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return load_tokenizer(folder)


def specials(tokenizer, ids):
    table = text_encoder(tokenizer).bytes
    return [tokenizer.convert_ids_to_tokens(id) for id in ids if table.special[id]]


def check_alike(made, target):
    """The same tokens for every text, whatever their ids, and the same text from them."""
    own, theirs = text_encoder(made), text_encoder(target)
    assert own.bytes.missing == b""
    assert own.bytes.unknown_id is None
    for text in TEXTS:
        ids, others = own.encode(text), theirs.encode(text)
        assert made.convert_ids_to_tokens(ids) == target.convert_ids_to_tokens(others)
        assert own.bytes.spell(ids) == theirs.bytes.spell(others)
        assert made.decode(ids) == target.decode(others)
        if not own.normalization.changes(text) and not own.normalization.prefix_of(text):
            assert made.decode(ids) == text


def check_loads(made, folder):
    made.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded.get_vocab() == made.get_vocab()
    for text in TEXTS:
        assert loaded.encode(text) == made.encode(text)
    if made.chat_template:
        rendered = [t.apply_chat_template(CHAT)["input_ids"] for t in (loaded, made)]
        assert rendered[0] == rendered[1]


@pytest.mark.parametrize("name", SOME)
def test_keep(name, tmp_path):
    target = real_tokenizer(name)
    folder = cache_folder() / "tokenizers" / name
    made = target_tokenizer(folder, source())
    assert type(made) is PreTrainedTokenizerFast
    assert sorted(made.get_vocab().values()) == list(range(len(made)))
    size = len(made) - 17  # SmolLM2's special tokens
    assert specials(made, range(len(made))) == specials(source(), range(17))
    assert not text_encoder(made).bytes.special[:size].any()
    assert made.special_tokens_map == source().special_tokens_map
    check_alike(made, target)
    for more in ({}, {"add_generation_prompt": True}):
        texts = [t.apply_chat_template(CHAT, tokenize=False, **more) for t in (made, source())]
        ids = [t.apply_chat_template(CHAT, **more)["input_ids"] for t in (made, source())]
        assert texts[0] == texts[1]
        assert specials(made, ids[0]) == specials(source(), ids[1])
        assert specials(made, ids[0][:1]) == ["<|im_start|>"]
    check_loads(made, tmp_path)


@pytest.mark.parametrize("name", SOME)
def test_change(name, tmp_path):
    target = real_tokenizer(name)
    folder = cache_folder() / "tokenizers" / name
    made = target_tokenizer(folder, source(), special_tokens="change")
    assert sorted(made.get_vocab().values()) == list(range(len(target)))
    if name != "gpt4o":  # it has holes between its ids, which are closed
        assert made.get_vocab() == target.get_vocab()
    assert made.special_tokens_map == target.special_tokens_map
    assert made.chat_template == target.chat_template
    check_alike(made, target)
    if made.chat_template:
        ids = [t.apply_chat_template(CHAT)["input_ids"] for t in (made, target)]
        assert made.convert_ids_to_tokens(ids[0]) == target.convert_ids_to_tokens(ids[1])
    check_loads(made, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_have_one_chunk_for_each_end_of_a_token(name):
    """Whatever a token spells, its bytes end where it ends: so each end ends a chunk."""
    student = text_encoder(_bytes())
    teacher = text_encoder(real_tokenizer(name))

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(odd_texts())
    @example("".join(ODD))
    @example(" leading")
    def holds(text):
        ids = student.encode(text), teacher.encode(text)
        a = align_ids(text, *ids, student, teacher)
        if a.rewritten:
            return
        prefix = len(teacher.normalization.prefix_of(text))
        ends = sorted({int(end) - prefix for end in teacher.bytes.ends(ids[1])} - {0 - prefix, 0})
        assert [chunk[0][1] for chunk in a.chunks] == ends
        assert [chunk[0][0] for chunk in a.chunks] == [0, *ends][: len(ends)]
        assert a.coverage.bytes == a.coverage.student_tokens == 1.0

    holds()


@cache
def _bytes():
    return target_tokenizer("bytes", source())


def test_bytes_for_the_real_model():
    made = _bytes()
    assert len(made) == 256 + 17
    text = source().apply_chat_template(CHAT[1:], tokenize=False, add_generation_prompt=True)
    ids = made.apply_chat_template(CHAT[1:], add_generation_prompt=True)["input_ids"]
    assert made.decode(ids) == text
    assert text_encoder(made).encode("<|im_start|>user") == list(b"<|im_start|>user")
