"""From rows to ids: the model's own template, located contents, and what is taught."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from crosstill.errors import ConfigError
from crosstill.text.encode import text_encoder
from crosstill.text.render import render
from crosstill.text.rows import RowFault
from text.chat import FAMILIES, LLAMA2, THINKING, family_tokenizer
from tiny_tokenizers import (
    CHAT_SPECIALS,
    CHATML,
    byte_level_bpe,
    characters,
    metaspace_bpe_with_byte_fallback,
    unigram,
)

CHAT_FAMILIES = [name for name, family in FAMILIES.items() if family.template]
ENCODERS = {name: text_encoder(family_tokenizer(name)) for name in FAMILIES}
LITERALS = sorted({t for f in FAMILIES.values() for t in (*f.named.values(), *f.others)})
TORTURE = ["\0", "\ufeff", "\u200b", "\u2028", "\r\n", "שלום", "👩‍👩‍👧", "\u1112\u1161\u11ab",
           "\U0001f600", "\U000e0fff", "e\u0301", "\u00e9"]  # fmt: skip
WORDS = st.sampled_from(["Hello", " world", "\n", " ", "The cat", "user", "12", *TORTURE])
CONTENT = st.lists(WORDS, max_size=5).map("".join)
HOSTILE = st.lists(WORDS | st.sampled_from(LITERALS), max_size=5).map("".join)


def chat(*contents):
    roles = ("user", "assistant") * len(contents)
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return {"messages": messages}


def names(rendered):
    return rendered.encoder.tokenizer.convert_ids_to_tokens(rendered.ids)


def contents(rendered):
    return [part for part in rendered.parts if part.kind == "content"]


def specials(rendered, *roles):
    return [
        (part.role, part.message, names(rendered)[part.start], part.supervised)
        for part in rendered.parts
        if part.kind == "special" and (not roles or part.role in roles)
    ]


def check_invariants(rendered):
    """What holds of every rendering by a tokenizer without a normaliser or a prefix."""
    spelling = rendered.encoder.bytes
    stream = b"".join(spelling.token(id) for id in rendered.ids)
    assert (
        rendered.byte_ends.tolist()
        == np.cumsum([len(spelling.token(id)) for id in rendered.ids], dtype=np.int64).tolist()
    )
    for part in rendered.parts:
        if part.kind == "content":
            assert stream[part.start : part.end].decode() == part.text
        else:
            assert part.end == part.start + 1
            assert rendered.encoder.roles.role_of(rendered.ids[part.start]) is not None


@pytest.mark.parametrize("name", CHAT_FAMILIES)
@settings(max_examples=20)
@given(texts=st.lists(CONTENT, min_size=1, max_size=4).filter(any))
def test_a_model_sees_what_its_own_template_makes(name, texts):
    encoder, row = ENCODERS[name], chat(*texts)
    rendered = render(row, encoder)
    plain = encoder.tokenizer.apply_chat_template(row["messages"], return_dict=False)
    assert rendered.ids == plain
    check_invariants(rendered)
    assert [part.message for part in contents(rendered)] == list(range(len(texts)))


@pytest.mark.parametrize("name", CHAT_FAMILIES)
@settings(max_examples=20)
@given(texts=st.lists(HOSTILE, min_size=2, max_size=2).filter(any))
def test_t06_names_of_special_tokens_in_a_content_are_spelled_out(name, texts):
    encoder = ENCODERS[name]
    rendered, harmless = render(chat(*texts), encoder), render(chat("a", "b"), encoder)
    is_special = encoder.bytes.special
    own = [id for id in rendered.ids if is_special[id]]
    assert own == [id for id in harmless.ids if is_special[id]]
    check_invariants(rendered)
    assert specials(rendered) == specials(harmless)
    for part, text in zip(contents(rendered), texts, strict=True):
        assert part.text.strip() == text.strip()


@settings(max_examples=20)
@given(text=HOSTILE.filter(bool))
@pytest.mark.parametrize("name", FAMILIES)
def test_plain_text_is_the_text_and_an_end(name, text):
    encoder = ENCODERS[name]
    rendered = render({"text": text}, encoder)
    check_invariants(rendered)
    (content,) = contents(rendered)
    assert (content.role, content.text, content.supervised) == ("text", text, True)
    assert rendered.ids[:-1] == encoder.encode(text)
    assert rendered.ids[-1] == encoder.roles.eos
    assert [(r, m, s) for r, m, _, s in specials(rendered)] == [("eos", 0, True)]


def test_plain_text_begins_with_bos_where_the_tokenizer_puts_one():
    specials_ = {"bos_token": "<s>", "eos_token": "</s>"}
    with_bos = text_encoder(byte_level_bpe(specials=specials_, add_bos=True))
    without = text_encoder(byte_level_bpe(specials=specials_))
    rendered = render({"text": "The cat"}, with_bos)
    assert specials(rendered) == [("bos", -1, "<s>", False), ("eos", 0, "</s>", True)]
    assert [part.role for part in rendered.parts] == ["bos", "text", "eos"]
    assert rendered.ids[1:] == render({"text": "The cat"}, without).ids


def test_no_end_of_text_where_there_is_none():
    rendered = render({"text": "The cat"}, text_encoder(byte_level_bpe(specials={})))
    assert [part.kind for part in rendered.parts] == ["content"]


@given(CONTENT, CONTENT)
def test_strings_of_prompt_and_completion_are_one_text(prompt, completion):
    if not prompt + completion:
        return
    rendered = render({"prompt": prompt, "completion": completion}, ENCODERS["qwen"])
    assert rendered.ids[:-1] == ENCODERS["qwen"].encode(prompt + completion)
    check_invariants(rendered)
    first, second = contents(rendered)
    assert (first.text, first.supervised) == (prompt, False)
    assert (second.text, second.supervised) == (completion, True)
    assert specials(rendered) == [("eos", 1, "<|endoftext|>", True)]


def test_seam_tokens_are_the_models_own():
    """ " world" is one token across the seam; cut in two, the model would read other ids."""
    encoder = ENCODERS["qwen"]
    rendered = render({"prompt": "The cats ", "completion": "sat on"}, encoder)
    apart = encoder.encode("The cats ") + encoder.encode("sat on")
    assert rendered.ids[:-1] == encoder.encode("The cats sat on") != apart


CONVERSATION = chat("One", "Two", "Three", "Four")


@pytest.mark.parametrize(
    ("loss_on", "taught"),
    [("completion", {3}), ("assistant", {1, 3}), ("all", {0, 1, 2, 3})],
)
@pytest.mark.parametrize("name", CHAT_FAMILIES)
def test_a_taught_turn_is_taught_with_its_end(name, loss_on, taught):
    rendered = render(CONVERSATION, ENCODERS[name], loss_on=loss_on)
    assert {part.message for part in contents(rendered) if part.supervised} == taught
    ends = specials(rendered, "eot", "eos")
    assert {message for _, message, _, on in ends if on} <= taught
    assert {message for _, message, _, on in ends} >= {1, 3}
    assert all(on == (message in taught) for _, message, _, on in ends)
    headers = specials(rendered, "start_header", "end_header")
    assert all(on == (loss_on == "all") for _, _, _, on in headers)
    assert not any(on for _, _, _, on in specials(rendered, "bos"))


def test_each_special_token_belongs_to_its_message():
    rendered = render(chat("Hi", "Hello"), ENCODERS["llama3-instruct"])
    assert specials(rendered) == [
        ("bos", -1, "<|begin_of_text|>", False),
        ("start_header", 0, "<|start_header_id|>", False),
        ("end_header", 0, "<|end_header_id|>", False),
        ("eot", 0, "<|eot_id|>", False),
        ("start_header", 1, "<|start_header_id|>", False),
        ("end_header", 1, "<|end_header_id|>", False),
        ("eot", 1, "<|eot_id|>", True),
    ]


def test_a_system_turn_that_only_the_template_has_is_scaffold():
    rendered = render(chat("Hi", "Hello"), ENCODERS["smollm2"])
    assert names(rendered).count("<|im_start|>") == 3
    assert [m for _, m, _, _ in specials(rendered, "start_header")] == [0, 1]
    assert [m for _, m, _, _ in specials(rendered, "eot")] == [0, 1]
    assert specials(rendered, "bos") == []


def test_an_open_turn_at_the_end_is_scaffold():
    rendered = render(
        chat("Hi", "Hello"),
        ENCODERS["llama3-instruct"],
        chat_template_kwargs={"add_generation_prompt": True},
    )
    assert names(rendered).count("<|start_header_id|>") == 3
    assert [m for _, m, _, _ in specials(rendered, "start_header")] == [0, 1]


def test_turns_that_end_in_two_ways():
    rendered = render(CONVERSATION, ENCODERS["gpt-oss"])
    assert [name for _, _, name, _ in specials(rendered, "eot")] == [*["<|end|>"] * 3, "<|return|>"]


def test_one_token_for_end_of_turn_and_end_of_text():
    encoder = ENCODERS["llama2"]
    assert specials(render(chat("Hi", "Hello"), encoder), "eot", "eos") == [
        ("eot", 1, "</s>", True)
    ]
    assert specials(render({"text": "Hi"}, encoder), "eot", "eos") == [("eos", 0, "</s>", True)]


def test_end_of_turn_and_end_of_text_after_each_other():
    specials_ = {"eos_token": "<|endoftext|>", "eot": "<|im_end|>"}
    template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}<|endoftext|>"
    encoder = text_encoder(byte_level_bpe(specials=specials_, chat_template=template))
    assert specials(render(chat("Hi", "Hello"), encoder)) == [
        ("eot", 0, "<|im_end|>", False),
        ("eot", 1, "<|im_end|>", True),
        ("eos", 1, "<|endoftext|>", True),
    ]


def test_pad_equal_to_eos_is_still_taught():
    tokenizer = family_tokenizer("llama2")
    tokenizer.pad_token = tokenizer.eos_token
    encoder = text_encoder(tokenizer)
    assert specials(render({"text": "Hi"}, encoder)) == [("eos", 0, "</s>", True)]
    assert specials(render(chat("Hi", "Hello"), encoder), "eot") == [("eot", 1, "</s>", True)]


def test_stripped_and_empty_contents():
    rendered = render(chat("  Hi \n", ""), ENCODERS["llama3-instruct"])
    first, second = contents(rendered)
    assert (first.text, first.offset) == ("Hi", 2)
    assert (second.text, second.start) == ("", second.end)
    assert specials(rendered, "eot")[-1][1:] == (1, "<|eot_id|>", True)


def test_thinking_and_answer_are_parts_of_one_message():
    tokenizer = family_tokenizer("qwen")
    tokenizer.chat_template = THINKING
    content = "<think>\nTwo and two.\n</think>\n\nFour."
    rendered = render(chat("2+2?", content), text_encoder(tokenizer))
    check_invariants(rendered)
    assert [(p.message, p.text, p.supervised) for p in contents(rendered)] == [
        (0, "2+2?", False),
        (1, "Two and two.", True),
        (1, "Four.", True),
    ]
    assert specials(rendered, "eot") == [
        ("eot", 0, "<|im_end|>", False),
        ("eot", 1, "<|im_end|>", True),
    ]


def test_prompt_and_completion_of_messages():
    messages = CONVERSATION["messages"]
    row = {"prompt": messages[:3], "completion": messages[3:]}
    encoder = ENCODERS["gemma"]
    assert render(row, encoder).ids == render(CONVERSATION, encoder).ids
    assert [p.supervised for p in contents(render(row, encoder))] == [False] * 3 + [True]


def test_a_special_token_that_swallows_spaces():
    """`<|assistant|>` takes the newline and the spaces behind it, so no part may claim them."""
    tokenizer = byte_level_bpe(
        specials={"eos_token": "<|end|>"},
        chat_template=(
            "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}"
            "{% endfor %}"
        ),
    )
    swallowing = [AddedToken(f"<|{r}|>", rstrip=True, special=True) for r in ("user", "assistant")]
    tokenizer.add_tokens(swallowing, special_tokens=True)
    for answer in ("  Yes", "  Yes <|end|>"):
        rendered = render(chat("Hi", answer), text_encoder(tokenizer))
        check_invariants(rendered)
        part = contents(rendered)[1]
        assert (part.text, part.offset) == (answer.strip(), 2)


METASPACES = {
    "first": metaspace_bpe_with_byte_fallback(prepend_scheme="first"),
    "always": metaspace_bpe_with_byte_fallback(prepend_scheme="always"),
    "prepend": metaspace_bpe_with_byte_fallback(style="prepend"),
    "gemma": metaspace_bpe_with_byte_fallback(style="gemma"),
    "unigram": unigram(),
    "gpt2 with prefix": byte_level_bpe(add_prefix_space=True),
}


@pytest.mark.parametrize("name", METASPACES)
def test_a_prefix_space_of_the_tokenizer_is_not_counted(name):
    tokenizer = METASPACES[name]
    tokenizer.chat_template = LLAMA2.replace("</s>", "<|eos|>")
    encoder = text_encoder(tokenizer)
    assert encoder.normalization.prefix == (b"" if name == "gemma" else b" ")
    for row in ({"text": "The cat sat"}, {"text": " The cat"}, chat("The cat", "sat on the mat")):
        rendered = render(row, encoder)
        assert np.all(np.diff(rendered.byte_ends, prepend=0) >= 0)
        for part in contents(rendered):
            ends = rendered.byte_ends.tolist()
            inside = [i for i, end in enumerate(ends) if part.start < end <= part.end]
            spelled = encoder.bytes.spell([rendered.ids[i] for i in inside])
            assert spelled.endswith(part.text.strip().encode())
            assert part.end - part.start == len(part.text.encode())
    text = render({"text": "The cat sat"}, encoder)
    assert text.byte_ends[-1] == len("The cat sat")


NFC = {
    "nfc": byte_level_bpe(
        normalizer=normalizers.NFC(), specials=CHAT_SPECIALS, chat_template=CHATML
    ),
    "nfkc": byte_level_bpe(
        normalizer=normalizers.NFKC(), specials=CHAT_SPECIALS, chat_template=CHATML
    ),
    "lowercase": byte_level_bpe(
        normalizer=normalizers.Lowercase(), specials=CHAT_SPECIALS, chat_template=CHATML
    ),
}


@pytest.mark.parametrize("name", NFC)
def test_rewritten_contents_keep_their_own_text_and_the_spelled_range(name):
    encoder = text_encoder(NFC[name])
    texts = ("Cafe\u0301 \ufb01ne \u0130", "nai\u0308ve Voil\u00e0")
    rendered = render(chat(*texts), encoder)
    stream = encoder.bytes.spell(rendered.ids)
    for part, text in zip(contents(rendered), texts, strict=True):
        assert part.text == text
        assert stream[part.start : part.end] == encoder.normalization.spelled(text)
        assert stream[part.start : part.end] != text.encode()
        assert part.rewritten
    beside = render(chat(texts[0], "naive"), encoder)
    assert [part.rewritten for part in contents(beside)] == [True, False]


def test_a_normaliser_that_joins_prompt_and_completion_is_a_fault():
    with pytest.raises(RowFault, match="joins") as caught:
        render({"prompt": "cafe", "completion": "\u0301 noir"}, text_encoder(NFC["nfc"]))
    assert caught.value.reason == "unspellable"


def test_unknown_characters_are_a_fault():
    with pytest.raises(RowFault) as caught:
        render({"text": "The \u03a9"}, text_encoder(characters()))
    assert caught.value.reason == "unknown_token"


def test_a_chat_row_without_a_template_says_what_to_do():
    with pytest.raises(ConfigError, match="chat template"):
        render(chat("Hi", "Hello"), ENCODERS["gpt2"])
    with pytest.raises(ConfigError, match="loss_on"):
        render({"text": "a"}, ENCODERS["gpt2"], loss_on="prompt")
