"""Target tokenizers: another's tokens with the source's special tokens, or the target's own."""

import json
import logging
from typing import Any

import pytest
from hypothesis import example, given
from tokenizers import AddedToken
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

import tiny_tokenizers as tiny
from crosstill.errors import ConfigError, TokenizerError
from crosstill.hub import load_tokenizer, rebuilds_tokenizer
from crosstill.text.encode import text_encoder
from crosstill.text.parts import TORTURE
from crosstill.transfer.card import LOADING
from crosstill.transfer.export import export
from crosstill.transfer.target import target_tokenizer
from odd_text import ODD, odd_texts

CHAT = [
    {"role": "user", "content": "Hello  there"},
    {"role": "assistant", "content": "Gr\u00fc\u00dfe"},
]
_OTHER = {"bos_token": "<s>", "eos_token": "</s>", "eot_token": "<end_of_turn>"}
_RUNS = ("\n\n", "\t", "\u2581\u2581", "\u2581\u2581\u2581", "</table>")
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}<end_of_turn>{% endfor %}"
TARGETS = {
    "byte-level": lambda: tiny.byte_level_bpe(vocab_size=350, specials=_OTHER),
    "byte-level, whole words": lambda: tiny.byte_level_bpe(ignore_merges=True, specials=_OTHER),
    "prefix space": lambda: tiny.byte_level_bpe(add_prefix_space=True, specials=_OTHER),
    "metaspace": lambda: tiny.metaspace_bpe_with_byte_fallback(
        specials=_OTHER, content_tokens=_RUNS, add_bos=True
    ),
    "gemma": lambda: tiny.metaspace_bpe_with_byte_fallback(
        style="gemma", specials=_OTHER, content_tokens=_RUNS, chat_template=TEMPLATE
    ),
    "legacy": lambda: tiny.metaspace_bpe_with_byte_fallback(style="prepend", specials=_OTHER),
    "unigram": lambda: tiny.unigram(specials=_OTHER),
    "same names": lambda: tiny.byte_level_bpe(vocab_size=350, specials=tiny.CHAT_SPECIALS),
}
TEXTS = (*ODD, *TORTURE, *tiny.TEXTS, "".join(ODD), "<|im_end|> and </s>")


@pytest.fixture(scope="module")
def source():
    return tiny.byte_level_bpe(specials=tiny.CHAT_SPECIALS, chat_template=tiny.CHATML, add_bos=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("targets")
    for name, make in TARGETS.items():
        make().save_pretrained(folder / name)
    return folder


def loaded_target(folder):
    return PreTrainedTokenizerFast.from_pretrained(folder)


def named(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("name", TARGETS)
def test_keep_has_the_target_s_tokens_and_the_source_s_specials(name, folders, source):
    made = target_tokenizer(folders / name, source)
    target = loaded_target(folders / name)
    own, theirs = text_encoder(target), text_encoder(made)
    size = int((own.bytes.special == 0).sum())
    kept = [str(source.convert_ids_to_tokens(i)) for i in text_encoder(source).roles.special_ids]
    assert sorted(made.get_vocab().values()) == list(range(len(made)))
    assert theirs.bytes.special[:size].sum() == 0
    assert theirs.bytes.special[size:].all()
    extra = {"<unk>"} if name == "unigram" else set()
    assert set(named(made, list(range(size, len(made))))) == {*kept} | extra
    order = [t for t in named(made, list(range(size)))]
    ordinary = [i for i in range(len(target)) if not own.bytes.special[i]]
    assert order == named(target, ordinary)
    assert made.special_tokens_map == source.special_tokens_map
    for text in TEXTS:
        assert named(made, theirs.encode(text)) == named(target, own.encode(text)), text


@pytest.mark.parametrize("name", TARGETS)
def test_keep_renders_and_begins_as_the_source(name, folders, source):
    made = target_tokenizer(folders / name, source)
    text = source.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert made.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == text
    ids = made.apply_chat_template(CHAT)["input_ids"]
    theirs = source.apply_chat_template(CHAT)["input_ids"]
    special = [text_encoder(t).bytes.special for t in (made, source)]
    assert named(made, [i for i in ids if special[0][i]]) == named(
        source, [i for i in theirs if special[1][i]]
    )
    assert named(made, ids[:1]) == ["<|im_start|>"]
    assert named(made, made.encode("The cat")[:1]) == ["<|begin|>"]
    assert text_encoder(made).adds_bos
    assert made.eos_token == "<|end_of_text|>"


@pytest.mark.parametrize("how", ["keep", "change"])
@pytest.mark.parametrize("name", TARGETS)
def test_saved_and_loaded_it_gives_the_same_ids(name, how, folders, source, tmp_path):
    made = target_tokenizer(folders / name, source, special_tokens=how)
    assert type(made) is PreTrainedTokenizerFast
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == made.get_vocab()
    assert loaded.chat_template == made.chat_template
    for text in TEXTS:
        assert loaded.encode(text) == made.encode(text)
        assert loaded.decode(loaded.encode(text)) == made.decode(made.encode(text))


@pytest.mark.parametrize("name", TARGETS)
@given(text=odd_texts())
@example(text=" leading")
def test_keep_decodes_what_it_encoded(name, text, folders, source):
    made, target = _tokenizers(folders / name, source)
    encoder, own = text_encoder(made), text_encoder(target)
    written = encoder.normalization.spelled(text)
    ids = encoder.encode(text)
    assert encoder.bytes.spell(ids) == encoder.normalization.prefix_of(text) + written
    assert made.decode(ids) == target.decode(own.encode(text))
    if name in ("byte-level", "byte-level, whole words", "same names"):
        assert made.decode(ids) == text


_MADE = {}


def _tokenizers(folder, source):
    if folder not in _MADE:
        _MADE[folder] = target_tokenizer(folder, source), loaded_target(folder)
    return _MADE[folder]


@pytest.mark.parametrize("name", TARGETS)
def test_change_is_the_target_itself(name, folders, source):
    made = target_tokenizer(folders / name, source, special_tokens="change")
    target = loaded_target(folders / name)
    assert made.get_vocab() == target.get_vocab()
    assert made.special_tokens_map == target.special_tokens_map
    assert made.chat_template == target.chat_template
    for text in TEXTS:
        assert made.encode(text) == target.encode(text)


def test_change_closes_holes(source, tmp_path):
    tiny.byte_level_bpe(vocab_size=300, specials=_OTHER, add_bos=True).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    state = json.loads(file.read_text())
    shift = {token: id + 7 * (id > 100) for token, id in state["model"]["vocab"].items()}
    state["model"]["vocab"] = shift
    for token in state["added_tokens"]:
        token["id"] = shift[token["content"]]
    for token, entry in state["post_processor"]["special_tokens"].items():
        entry["ids"] = [shift[token]]
    file.write_text(json.dumps(state))
    before = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert max(before.get_vocab().values()) == len(before) + 6
    made = target_tokenizer(tmp_path, source, special_tokens="change")
    assert sorted(made.get_vocab().values()) == list(range(len(before)))
    for text in TEXTS:
        assert named(made, made.encode(text)) == named(before, before.encode(text))
    kept = target_tokenizer(tmp_path, source)
    assert sorted(kept.get_vocab().values()) == list(range(len(kept)))


def test_change_without_a_template_is_told(folders, source, caplog):
    with caplog.at_level(logging.WARNING):
        target_tokenizer(folders / "byte-level", source, special_tokens="change")
    assert "has no chat template" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        target_tokenizer(folders / "gemma", source, special_tokens="change")
    assert caplog.text == ""


def test_an_ordinary_token_gives_way_to_a_special_one(tmp_path):
    texts = ["<s> <s> <s> <s>x </s>"] * 5
    target = tiny.byte_level_bpe(texts, vocab_size=300, use_regex=False)
    assert "<s>" in target.get_vocab()
    target.save_pretrained(tmp_path)
    source = tiny.byte_level_bpe(specials=_OTHER)
    made = target_tokenizer(tmp_path, source)
    assert made.bos_token_id == made.get_vocab()["<s>"] >= len(made) - 3
    ids = text_encoder(made).encode("a <s> b")
    assert made.bos_token_id not in ids
    assert text_encoder(made).bytes.spell(ids) == b"a <s> b"


def test_placeholders_stay_behind(tmp_path, caplog):
    extra = {"x": "<|reserved_special_token_0|>", "y": "<unused7>", "z": "<|reserved_tool|>"}
    specials = {**tiny.CHAT_SPECIALS, **extra, "call": "<tool_call>"}
    template = tiny.CHATML + "<|reserved_tool|>"
    source = tiny.byte_level_bpe(specials=specials, chat_template=template)
    with caplog.at_level(logging.INFO):
        vocab = target_tokenizer("bytes", source).get_vocab()
    assert "left behind 2 placeholders" in caplog.text
    assert {"<|reserved_tool|>", "<tool_call>", *tiny.CHAT_SPECIALS.values()} <= vocab.keys()
    assert len(vocab) == 256 + len(specials) - 2


def test_markers_of_the_source_are_kept_whatever_their_flag(source):
    source = tiny.byte_level_bpe(specials=tiny.CHAT_SPECIALS, chat_template=tiny.CHATML)
    source.add_tokens([AddedToken("<think>", special=False), AddedToken("    ", special=False)])
    made = target_tokenizer("bytes", source)
    assert made.encode("<think>", add_special_tokens=False) == [len(made) - 1]
    assert made.encode("    ") == [32] * 4


def test_named_tokens_of_a_model_family_stay_named(tmp_path):
    source = tiny.byte_level_bpe(specials=_OTHER)
    tiny.byte_level_bpe(specials=_OTHER).save_pretrained(tmp_path / "source")
    source = PreTrainedTokenizerFast.from_pretrained(
        tmp_path / "source",
        extra_special_tokens={"image_token": "<end_of_turn>"},
        padding_side="left",
        model_max_length=77,
    )
    made = target_tokenizer("bytes", source)
    made.save_pretrained(tmp_path / "made")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "made")
    for tokenizer in (made, loaded):
        assert tokenizer.image_token == "<end_of_turn>"
        assert (tokenizer.padding_side, tokenizer.model_max_length) == ("left", 77)


def test_a_file_alone_is_a_target(folders, source, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_bytes((folders / "gemma" / "tokenizer.json").read_bytes())
    made = target_tokenizer(file, source)
    assert made.get_vocab() == target_tokenizer(folders / "gemma", source).get_vocab()


def test_faults(folders, source, tmp_path):
    with pytest.raises(ConfigError, match="expected 'keep'"):
        target_tokenizer("bytes", source, special_tokens="mine")
    with pytest.raises(ConfigError, match="bytes have no special tokens"):
        target_tokenizer("bytes", source, special_tokens="change")
    with pytest.raises(ConfigError, match="does not exist"):
        target_tokenizer(tmp_path / "nothing", source)
    for make in (tiny.wordpiece, tiny.characters, lambda: tiny.unigram(byte_fallback=False)):
        make().save_pretrained(tmp_path / "no bytes")
        with pytest.raises(TokenizerError, match="spells every byte"):
            target_tokenizer(tmp_path / "no bytes", source)
        made = target_tokenizer(tmp_path / "no bytes", source, special_tokens="change")
        assert text_encoder(made).bytes.unknown_id is not None


def test_a_post_processor_with_ordinary_tokens_is_refused():
    from tokenizers import processors

    source = tiny.byte_level_bpe()
    a = source.get_vocab()["a"]
    source.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="a $A", special_tokens=[("a", a)]
    )
    with pytest.raises(TokenizerError, match="which is not special"):
        target_tokenizer("bytes", source)


@pytest.mark.parametrize("how", ["keep", "change"])
def test_of_a_model_whose_tokenizers_transformers_builds_anew(how, folders, source, tmp_path):
    """Qwen 2: `AutoTokenizer` goes by the model's type, whatever the folder says."""
    made = target_tokenizer(folders / "gemma", source, special_tokens=how)
    made.save_pretrained(tmp_path)
    for kind, rebuilt in (("qwen2", True), ("qwen3", False), ("llama", False)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        loaded = load_tokenizer(tmp_path)
        assert all(loaded.encode(text) == made.encode(text) for text in TEXTS)
        assert rebuilds_tokenizer(tmp_path, TEXTS) == rebuilt


def test_an_export_that_transformers_misreads_is_told(folders, source, tmp_path, caplog):
    made = target_tokenizer(folders / "gemma", source)
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(made)}
    for kind, told in ((Qwen2ForCausalLM, True), (Qwen3ForCausalLM, False)):
        caplog.clear()
        export(kind(kind.config_class(**size, **heads)), made, tmp_path / kind.__name__)
        assert ("builds the tokenizer of a qwen2 model anew" in caplog.text) == told
        code = LOADING.split("```python\n")[1].split("```")[0]
        names: dict[str, Any] = {}
        exec(code.replace("path/to/this/folder", str(tmp_path / kind.__name__)), names)  # noqa: S102
        assert all(names["tokenizer"].encode(text) == made.encode(text) for text in TEXTS)
