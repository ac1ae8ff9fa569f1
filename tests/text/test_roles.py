"""Special tokens by role: what the families' tokenizers must come to."""

import pytest

from crosstill.text.roles import special_roles
from text.chat import CHATML, FAMILIES, family_tokenizer
from tiny_tokenizers import byte_level_bpe, unigram, wordpiece

NAMES = ("bos", "eos", "eot", "pad", "unk")


def literals(tokenizer, ids):
    return tuple(tokenizer.convert_ids_to_tokens(list(ids)))


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name):
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    roles = special_roles(tokenizer)
    got = {
        role: None if (id := getattr(roles, role)) is None else tokenizer.convert_ids_to_tokens(id)
        for role in NAMES
        if role in family.roles
    }
    assert got == family.roles
    assert literals(tokenizer, roles.start_header_ids) == family.headers[0]
    assert literals(tokenizer, roles.end_header_ids) == family.headers[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_role_of_agrees_with_the_ids(name):
    tokenizer = family_tokenizer(name)
    roles = special_roles(tokenizer)
    assert roles.eos == roles.eos_ids[0]
    assert roles.eot == roles.eot_ids[0]
    assert all(roles.role_of(id) == "eos" for id in roles.eos_ids)
    assert all(roles.role_of(id) in ("eos", "eot") for id in roles.eot_ids)
    assert all(roles.role_of(id) == "start_header" for id in roles.start_header_ids)
    assert all(roles.role_of(id) is not None for id in roles.special_ids)
    ordinary = tokenizer.encode("word", add_special_tokens=False)
    assert [roles.role_of(id) for id in ordinary] == [None] * len(ordinary)


def test_every_end_of_turn_is_known_where_turns_end_in_two_ways():
    tokenizer = family_tokenizer("gpt-oss")
    roles = special_roles(tokenizer)
    assert literals(tokenizer, roles.eot_ids) == ("<|return|>", "<|end|>")
    assert roles.role_of(tokenizer.convert_tokens_to_ids("<|channel|>")) == "other"


def test_pad_equal_to_eos_does_not_hide_it():
    tokenizer = byte_level_bpe(specials={"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer.pad_token = "</s>"
    roles = special_roles(tokenizer)
    assert roles.pad == roles.eos
    assert roles.role_of(roles.pad) == "eos"


def test_the_template_goes_before_the_table():
    """A turn that ends with a token nobody knows, beside a known literal that is not used."""
    specials = {"eos_token": "<eos>", "a": "<stop>", "b": "<|im_end|>"}
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<stop>{% endfor %}"
    tokenizer = byte_level_bpe(specials=specials, chat_template=template)
    roles = special_roles(tokenizer)
    assert literals(tokenizer, roles.eot_ids) == ("<stop>", "<|im_end|>")
    assert literals(tokenizer, roles.eos_ids) == ("<eos>",)


def test_named_eos_that_only_ends_turns_and_no_other_known():
    specials = {"eos_token": "<stop>"}
    template = "{% for m in messages %}{{ m.content }}<stop>{% endfor %}"
    roles = special_roles(byte_level_bpe(specials=specials, chat_template=template))
    assert roles.eos == roles.eot


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ messages[0].nothing.at }}", ""]
)
def test_a_template_that_fails_leaves_the_table(template):
    specials = {"eos_token": "<|im_end|>", "a": "<|im_start|>", "b": "<|endoftext|>"}
    tokenizer = byte_level_bpe(specials=specials, chat_template=template)
    roles = special_roles(tokenizer)
    assert literals(tokenizer, (roles.eos, roles.eot)) == ("<|endoftext|>", "<|im_end|>")
    assert literals(tokenizer, roles.start_header_ids) == ("<|im_start|>",)


def test_a_known_literal_that_is_ordinary_text_has_no_role():
    tokenizer = byte_level_bpe(specials={"eos_token": "<|im_end|>"}, chat_template=CHATML)
    roles = special_roles(tokenizer)
    assert roles.start_header_ids == ()
    assert roles.eos == roles.eot


def test_no_special_tokens_at_all():
    roles = special_roles(byte_level_bpe(specials={}))
    assert [getattr(roles, name) for name in NAMES] == [None] * 5
    assert (roles.eos_ids, roles.eot_ids) == ((), ())


def test_other_families():
    assert special_roles(wordpiece()).pad is not None
    tokenizer = unigram(specials={"eos_token": "</s>", "pad_token": "<pad>"})
    roles = special_roles(tokenizer)
    assert literals(tokenizer, (roles.eos, roles.pad, roles.unk)) == ("</s>", "<pad>", "<unk>")
