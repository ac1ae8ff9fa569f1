"""Two vocabularies side by side: what is shared, what is one, what stands for what."""

from itertools import permutations

import numpy as np
import pytest

import tiny_tokenizers as tiny
from crosstill.align.spellings import lowest_ids, pieces
from crosstill.align.vocab import VocabularyPair, special_targets
from crosstill.text.encode import TextEncoder, text_encoder
from oracle import edits

CHAT = tiny.byte_level_bpe(specials=tiny.CHAT_SPECIALS, chat_template=tiny.CHATML)
TOKENIZERS = {
    "level": tiny.byte_level_bpe(),
    "gemma": tiny.metaspace_bpe_with_byte_fallback(style="gemma"),
    "unigram": tiny.unigram(),
    "bytes": tiny.bytes_only(),
    "chat": CHAT,
    "wordpiece": tiny.wordpiece(),
}
ENCODERS = {name: text_encoder(tokenizer) for name, tokenizer in TOKENIZERS.items()}
PAIRS = list(permutations(ENCODERS, 2))


def pair_of(student, teacher):
    return VocabularyPair(ENCODERS[student], ENCODERS[teacher])


@pytest.mark.parametrize("names", PAIRS, ids=" and ".join)
def test_shared_tokens_spell_the_same_and_are_all_there_once(names):
    pair = pair_of(*names)
    shared = pair.shared()
    assert shared.dtype == np.int64
    assert (np.diff(shared[:, 0]) > 0).all()
    assert len(set(shared[:, 1].tolist())) == len(shared)
    spelled = set()
    for own, other in shared.tolist():
        assert pair.student_bytes.token(own) == pair.teacher_bytes.token(other)
        assert pair.student_bytes.special[own] == pair.teacher_bytes.special[other]
        spelled.add(pair.student_bytes.token(own))
    both = set(pieces(pair.student_bytes)) & set(pieces(pair.teacher_bytes))
    assert spelled - {b""} == both - {b""}


@pytest.mark.parametrize("names", PAIRS, ids=" and ".join)
def test_the_mirror_shares_the_same(names):
    mirrored = pair_of(*reversed(names)).shared()[:, ::-1]
    assert sorted(map(tuple, mirrored)) == list(map(tuple, pair_of(*names).shared()))


def test_special_tokens_are_shared_by_role():
    pair = pair_of("level", "chat")
    level, chat = ENCODERS["level"].roles, ENCODERS["chat"].roles
    special = [(s, t) for s, t in pair.shared().tolist() if pair.student_bytes.special[s]]
    assert special == sorted([(level.bos, chat.bos), (level.eos, chat.eos)])


def test_two_ends_may_go_to_one():
    level, chat = ENCODERS["level"], ENCODERS["chat"]
    found = special_targets(chat, level)
    assert found[chat.roles.eot] == level.roles.eos
    assert found[chat.roles.eos] == level.roles.eos
    assert chat.roles.start_header_ids[0] not in found
    assert chat.roles.pad not in found
    assert special_targets(level, chat)[level.roles.eos] == chat.roles.eos


def test_one_name_with_one_role_goes_before_the_chief():
    specials = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "other_token": "</s>"}
    one = text_encoder(tiny.byte_level_bpe(specials=specials))
    other = text_encoder(tiny.bytes_only(specials={"eos_token": "</s>"}))
    assert one.roles.eos_ids == tuple(
        one.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "</s>"])
    )
    found = special_targets(one, other)
    assert found[one.roles.eos] == found[one.roles.eos_ids[1]] == other.roles.eos
    assert special_targets(other, one) == {other.roles.eos: one.roles.eos_ids[1]}


def test_names_decide_where_no_role_does():
    specials = {"eos_token": "<|eos|>", "other": "<|fim_prefix|>"}
    one = text_encoder(tiny.byte_level_bpe(specials=specials))
    other = text_encoder(tiny.bytes_only(specials=specials))
    fim = [e.tokenizer.convert_tokens_to_ids("<|fim_prefix|>") for e in (one, other)]
    assert special_targets(one, other)[fim[0]] == fim[1]
    assert fim in VocabularyPair(one, other).shared().tolist()


def test_spellings_know_the_roles():
    pair = pair_of("level", "chat")
    offsets, ids = pair.teacher_spelled()
    chat, level = ENCODERS["chat"].roles, ENCODERS["level"].roles
    for role, target in ((chat.eos, level.eos), (chat.eot, level.eos), (chat.bos, level.bos)):
        assert ids[offsets[role] : offsets[role + 1]].tolist() == [target]
    assert offsets[chat.pad] == offsets[chat.pad + 1]
    offsets, ids = pair.student_spelled()
    assert ids[offsets[level.eos] : offsets[level.eos + 1]].tolist() == [chat.eos]


def test_a_byte_beside_a_token_of_the_same_bytes_is_never_written():
    gemma = ENCODERS["gemma"]
    never = VocabularyPair(gemma, ENCODERS["level"]).student_unwritten().tolist()
    names = gemma.tokenizer.convert_ids_to_tokens(never)
    assert {"<0x20>", "<0x61>", "<0x65>"} <= set(names)
    assert "<0xF5>" not in names
    assert all(name.startswith("<0x") for name in names)
    written = {id for text in tiny.TEXTS for id in gemma.encode(text)}
    assert not written & set(never)
    assert not len(VocabularyPair(ENCODERS["level"], gemma).student_unwritten())


def test_one_vocabulary_is_one():
    again = TextEncoder(tiny.byte_level_bpe())
    assert VocabularyPair(ENCODERS["level"], again).identical
    shared = VocabularyPair(ENCODERS["level"], again).shared()
    assert (shared[:, 0] == shared[:, 1]).all()
    assert len(shared) == len(again.bytes)


@pytest.mark.parametrize(
    "other",
    [
        tiny.byte_level_bpe(vocab_size=399),
        tiny.byte_level_bpe(tiny.TEXTS[:3]),
        tiny.byte_level_bpe(specials={"eos_token": "<|bos|>", "bos_token": "<|eos|>"}),
        tiny.bytes_only(),
    ],
    ids=["one less", "other merges", "other roles", "bytes"],
)
def test_what_differs_is_not_one(other):
    assert not VocabularyPair(ENCODERS["level"], text_encoder(other)).identical


def test_maps_are_made_once_and_cannot_be_changed():
    pair = pair_of("level", "gemma")
    assert pair.shared() is pair.shared()
    assert pair.teacher_spelled() is pair.teacher_spelled()
    for array in (pair.shared(), *pair.teacher_spelled(), *pair.student_spelled()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize("names", PAIRS, ids=" <- ".join)
def test_the_mined_map_is_the_plain_one(names, tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSTILL_CACHE", str(tmp_path))
    pair = pair_of(*names)
    mined = pair.mined()
    assert mined.shape == (len(pair.teacher_bytes),)
    table = lowest_ids(ENCODERS[names[0]])
    roles = special_targets(ENCODERS[names[1]], ENCODERS[names[0]])
    for v, data in enumerate(pieces(pair.teacher_bytes)):
        if not data:
            assert mined[v] == roles.get(v, -1)
        elif v % 5 == 0 or data in table:
            assert mined[v] == table.get(data, edits.nearest(data, table))


def test_the_mined_map_is_kept_by_the_content_of_both(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSTILL_CACHE", str(tmp_path))
    mined = pair_of("level", "gemma").mined()
    monkeypatch.setattr("crosstill.align.vocab.nearest", None)
    twin = text_encoder(tiny.metaspace_bpe_with_byte_fallback(style="gemma"))
    assert np.array_equal(VocabularyPair(ENCODERS["level"], twin).mined(), mined)
    for other in (pair_of("gemma", "level"), pair_of("unigram", "gemma")):
        with pytest.raises(TypeError, match="NoneType"):
            other.mined()


def test_the_mined_map_depends_on_the_roles(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSTILL_CACHE", str(tmp_path))
    turned = {"eos_token": "<|bos|>", "bos_token": "<|eos|>"}
    maps = [
        VocabularyPair(ENCODERS["level"], text_encoder(tiny.bytes_only(specials=specials))).mined()
        for specials in (tiny.SPECIALS, turned)
    ]
    assert len(list((tmp_path / "maps").iterdir())) == 2
    assert not np.array_equal(*maps)
