"""What every initialiser owes, whoever wrote it: it passes here as soon as it is registered."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import tiny_models
import tiny_tokenizers
from crosstill.errors import ConfigError
from crosstill.text.encode import text_encoder
from crosstill.transfer.embeddings import transplant
from crosstill.transfer.initial import (
    Initialiser,
    Source,
    base,
    initialisers,
    parse_initialiser,
    register,
)

NAMES = list(initialisers())
CHAT = {"specials": tiny_tokenizers.CHAT_SPECIALS, "chat_template": tiny_tokenizers.CHATML}
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "eot_token": "<end_of_turn>", "extra": "<tool>"}

every = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def pair():
    return (
        tiny_tokenizers.byte_level_bpe(vocab_size=420, **CHAT),
        tiny_tokenizers.metaspace_bpe_with_byte_fallback(specials=ROLES),
    )


def given(pair, *, tied=False, bias=False, surplus=7, dtype=torch.float32, seed=0):
    source, target = map(text_encoder, pair)
    model = tiny_models.llama(source.vocab_size + surplus, tied=tied).to(dtype)
    if bias:
        model.lm_head.bias = nn.Parameter(torch.randn(len(model.lm_head.weight)).to(dtype))
    with torch.no_grad():
        model.get_input_embeddings().weight[source.vocab_size :] = 1e3  # what no tokenizer reads
    return Source(model, source, target, tiny_tokenizers.TEXTS, seed)


SHORT = {"spell": {"spelled": 2_000, "epochs": 1}}


def quick(name):
    return parse_initialiser({name: SHORT.get(name, {})})


def made(name, source):
    return quick(name).tables(source)


def all_of(tables):
    return [part for part in (tables.input, tables.output, tables.bias) if part is not None]


@every
@pytest.mark.parametrize("tied", [True, False])
def test_tokens_that_both_have_keep_their_rows_bit_for_bit(name, pair, tied):
    source = given(pair, tied=tied)
    tables, report = made(name, source)
    ids = np.flatnonzero(source.exact >= 0)
    assert len(ids) > 250
    if not initialisers()[name].keeps_exact:
        pytest.skip(f"{name} says that it changes them")
    assert report.copied == len(ids)
    assert torch.equal(tables.input[ids], source.tables.input[source.exact[ids]])
    assert torch.equal(tables.head[ids], source.tables.head[source.exact[ids]])


@every
def test_special_tokens_go_by_role(name, pair):
    source = given(pair)
    tables, report = made(name, source)
    old, new = source.source.roles, source.target.roles
    for role in () if initialisers()[name].changes_body else ("eos", "eot"):
        row = source.tables.input[getattr(old, role)]
        assert torch.equal(tables.input[getattr(new, role)], row), role
    assert report.by_role >= 3


@every
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_every_row_is_there_and_finite(name, pair, tied, bias):
    if tied and bias:
        pytest.skip("no family has both")
    source = given(pair, tied=tied, bias=bias)
    tables, report = made(name, source)
    assert tables.input.shape == (source.target.vocab_size, 32)
    assert tables.head.shape == tables.input.shape
    assert (tables.bias is not None) == bias
    assert all(part.abs().max() < 100 for part in all_of(tables))  # and finite
    assert sum(dataclasses.astuple(report)) == source.target.vocab_size


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_is_kept(name, pair, dtype):
    tables, _ = made(name, given(pair, dtype=dtype))
    assert {part.dtype for part in all_of(tables)} == {dtype}


@every
def test_the_same_seed_gives_the_same_tables(name, pair):
    one, two = (made(name, given(pair, seed=3))[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(all_of(one), all_of(two), strict=True))


@every
def test_what_is_drawn_elsewhere_changes_nothing(name, pair):
    one, _ = made(name, given(pair, seed=3))
    source = given(pair, seed=3)
    torch.manual_seed(1234)
    assert torch.equal(made(name, source)[0].input, one.input)


@every
@pytest.mark.parametrize("tied", [True, False])
def test_the_model_stays_as_it_is(name, pair, tied):
    source = given(pair, tied=tied)
    before = {key: value.clone() for key, value in source.model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in source.model.parameters()]
    config = source.model.config.to_dict()
    tables, _ = made(name, source)
    for part in all_of(tables):
        part.zero_()
    after = source.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert [parameter.requires_grad for parameter in source.model.parameters()] == flags
    assert source.model.config.to_dict() == config
    assert (source.model.lm_head.weight is source.model.model.embed_tokens.weight) == tied


@every
@pytest.mark.parametrize("tied", [True, False])
def test_a_transplanted_model_reads_the_new_tokens(name, pair, tied):
    model = given(pair, tied=tied, surplus=0).model
    body = {key: value.clone() for key, value in model.model.layers.state_dict().items()}
    transplant(model, *pair, initial=quick(name), texts=tiny_tokenizers.TEXTS)
    ids = torch.tensor([pair[1].encode("The cat sat")])
    assert model(input_ids=ids, labels=ids).loss.isfinite()
    after = model.model.layers.state_dict()
    kept = [key for key in body if not (initialisers()[name].changes_body and key[0] == "0")]
    assert all(torch.equal(body[key], after[key]) for key in kept)


@every
def test_an_unknown_option_is_refused(name):
    with pytest.raises(ConfigError, match=f"no option of {name} called 'sead'"):
        parse_initialiser({name: {"sead": 1}})


@every
def test_options_have_defaults_and_a_line_of_help(name):
    made = parse_initialiser(name)
    described = "".join(kind.__doc__ or "" for kind in type(made).__mro__)
    for option in dataclasses.fields(made):
        assert f"        {option.name}: " in described, option.name
    assert "Source: " in described or name in ("random",)


@pytest.mark.parametrize(
    "value", ['{"omp": {"k": 3}}', {"omp": {"k": 3}}, parse_initialiser({"omp": {"k": 3}})]
)
def test_all_ways_to_name_one(value):
    assert parse_initialiser(value) == initialisers()["omp"](k=3)


def test_no_options():
    assert parse_initialiser({"omp": None}) == parse_initialiser("omp")
    assert parse_initialiser().name == base.DEFAULT


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("opm", "no initialiser called 'opm'; did you mean 'omp'"),
        ({"omp": {"kk": 1}}, "no option of omp called 'kk'; did you mean 'k'"),
        ({"omp": {"k": "many"}}, "initial.omp.k is 'many', expected a whole number"),
        ({"omp": {"k": -1}}, "initial.omp.k is -1, expected 0 or more"),
        ({"omp": {"donor": 3}}, "initial.omp.donor is 3, expected a folder"),
        ({"omp": [1]}, r"initial.omp is \[1\], expected a mapping"),
        ({"omp": {}, "fvt": {}}, "initial names 2 initialisers, expected one"),
        ({}, "initial names 0 initialisers"),
        ("{omp", "initial is '{omp', expected a mapping or JSON"),
        ({"suffix": {"exact": "all"}}, "expected one of auto, copy, pool"),
        ({"suffix": {"untie": 1}}, "initial.suffix.untie is 1, expected true or false"),
    ],
)
def test_what_is_wrong_is_said(value, message):
    with pytest.raises(ConfigError, match=message):
        parse_initialiser(value)


def test_texts_that_are_needed(pair):
    @dataclass(frozen=True)
    class Reads(Initialiser):
        name: ClassVar[str] = "reads"
        needs_texts: ClassVar[bool] = True

        def tables(self, source):
            raise AssertionError("called without texts")

    model = given(pair, surplus=0).model
    with pytest.raises(ConfigError, match="'reads' reads texts, and none were given"):
        transplant(model, *pair, initial=Reads())


def test_a_name_that_is_taken_and_an_option_without_default(monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    with pytest.raises(ConfigError, match="'fvt' is already registered by Fvt"):
        register(initialisers()["fvt"])

    @dataclass(frozen=True)
    class Bare(Initialiser):
        size: int
        name: ClassVar[str] = "bare"

        def tables(self, source):
            raise AssertionError

    with pytest.raises(ConfigError, match="option 'size' of 'bare' needs a default"):
        register(Bare)


def test_a_tokenizer_with_special_tokens_that_the_model_lacks(pair):
    source, target = map(text_encoder, pair)
    tokenizer = tiny_tokenizers.byte_level_bpe(vocab_size=420, **CHAT)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>", "<image>"]})
    model = tiny_models.llama(source.vocab_size)
    report = transplant(model, tokenizer, target)  # "<tool>" has no row: nothing to take
    assert report.mean >= 1
    assert model.get_input_embeddings().weight.isfinite().all()


def test_many_special_tokens_cost_one_look_at_the_vocabulary(monkeypatch):
    tokenizer = tiny_tokenizers.byte_level_bpe(vocab_size=420, **CHAT)
    other = tiny_tokenizers.byte_level_bpe(
        specials={f"extra{k}": f"<unused{k}>" for k in range(300)}
    )
    source, target = text_encoder(tokenizer), text_encoder(other)
    looks = []
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: looks.append(1) or {})
    found = Source(tiny_models.llama(source.vocab_size), source, target).by_role
    assert (found < 0).all()
    assert len(looks) <= 1
