"""The byte tokenizer: ids are bytes, nothing else but the source's special tokens."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import tiny_tokenizers as tiny
from crosstill.text.encode import text_encoder
from crosstill.transfer.bytelevel import byte_tokenizer
from odd_text import ODD, odd_texts

CHAT = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "user system assistant"},
    {"role": "assistant", "content": "Gr\u00fc\u00dfe \U0001f600"},
]


def sources():
    chat = {"specials": tiny.CHAT_SPECIALS, "chat_template": tiny.CHATML}
    return {
        "byte-level": tiny.byte_level_bpe(**chat),
        "with bos": tiny.byte_level_bpe(add_bos=True, **chat),
        "metaspace": tiny.metaspace_bpe_with_byte_fallback(add_bos=True, **chat),
        "unigram": tiny.unigram(**chat),
        "characters": tiny.characters(),
        "wordpiece": tiny.wordpiece(),
    }


SOURCES = sources()


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(SOURCES["byte-level"])


@given(odd_texts())
@example("".join(text for text in ODD if not text.startswith("<|")))
def test_ids_are_the_bytes_of_the_text(text):
    tokenizer = byte_tokenizer_of("byte-level")
    ids = text_encoder(tokenizer).encode(text)
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert text_encoder(tokenizer).bytes.ends(ids).tolist() == list(range(1, len(ids) + 1))
    if not any(str(token) in text for token in tokenizer.added_tokens_decoder.values()):
        assert tokenizer.encode(text) == ids


@given(st.binary(max_size=40))
def test_any_bytes_are_spelled(raw):
    table = text_encoder(byte_tokenizer_of("byte-level")).bytes
    assert table.spell(list(raw)) == raw
    assert table.missing == b""
    assert table.unknown_id is None


_MADE = {}


def byte_tokenizer_of(name):
    if name not in _MADE:
        _MADE[name] = byte_tokenizer(SOURCES[name])
    return _MADE[name]


@pytest.mark.parametrize("name", SOURCES)
def test_bytes_and_special_tokens_and_nothing_else(name):
    source, tokenizer = SOURCES[name], byte_tokenizer_of(name)
    encoder, own = text_encoder(tokenizer), text_encoder(source)
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert [encoder.bytes.token(id) for id in range(256)] == [bytes([b]) for b in range(256)]
    kept = [str(source.convert_ids_to_tokens(id)) for id in sorted(own.roles.special_ids)]
    assert tokenizer.convert_ids_to_tokens(list(range(256, len(tokenizer)))) == kept
    assert encoder.bytes.special[256:].all()
    assert encoder.bytes.lengths[256:].sum() == 0
    for word in ("system", "user", "assistant", "\u6771", "  "):
        assert word not in tokenizer.get_vocab()
        assert encoder.encode(word) == list(word.encode())


@pytest.mark.parametrize("name", SOURCES)
def test_roles_and_what_stands_round_a_text_are_the_source_s(name):
    source, tokenizer = SOURCES[name], byte_tokenizer_of(name)
    assert tokenizer.special_tokens_map == source.special_tokens_map
    own, theirs = text_encoder(tokenizer), text_encoder(source)
    for role in ("bos", "eos", "eot", "pad", "unk"):
        ids = getattr(own.roles, role), getattr(theirs.roles, role)
        names = [None if i is None else t.convert_ids_to_tokens(i)
                 for i, t in zip(ids, (tokenizer, source), strict=True)]  # fmt: skip
        assert names[0] == names[1], role
    assert own.adds_bos == theirs.adds_bos
    special = [
        [t.convert_ids_to_tokens(i) for i in t.encode(*texts) if text_encoder(t).bytes.special[i]]
        for t in (tokenizer, source)
        for texts in (("The cat",), ("The cat", "sat"))
    ]
    assert special[:2] == special[2:]


def test_the_template_renders_as_the_source_s(tokenizer):
    source = SOURCES["byte-level"]
    text = source.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text.encode()) - sum(
        text.count(name) * (len(name) - 1) for name in ("<|im_start|>", "<|im_end|>")
    )


@pytest.mark.parametrize("name", SOURCES)
def test_plain_transformers_loads_it(name, tmp_path):
    tokenizer = byte_tokenizer_of(name)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*ODD, "".join(ODD), "<|im_start|>user\nHi<|im_end|>"):
        assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.chat_template == tokenizer.chat_template


def test_a_long_text_is_cut_in_a_moment(tokenizer):
    text = "".join(map(chr, range(0x20, 0xD7FF))) * 2
    assert tokenizer.encode(text) == list(text.encode())
