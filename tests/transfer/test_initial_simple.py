import numpy as np
import pytest
import torch

import tiny_models
import tiny_tokenizers
from crosstill.align.spellings import pieces
from crosstill.errors import ConfigError
from crosstill.text.encode import text_encoder
from crosstill.transfer.initial import Source, parse_initialiser

SOURCE = tiny_tokenizers.byte_level_bpe(vocab_size=420)
TARGETS = {
    "words": tiny_tokenizers.byte_level_bpe(
        ["Another text, with other words: walking, talking, thinking."] * 3, vocab_size=300
    ),
    "bytes": tiny_tokenizers.bytes_only(specials={"eos_token": "<|eos|>", "extra": "<tool>"}),
}


def given(target="words", *, tied=False, texts=(), seed=0):
    encoders = text_encoder(SOURCE), text_encoder(TARGETS[target])
    return Source(tiny_models.llama(len(SOURCE), tied=tied), *encoders, texts, seed)


def tables_of(name, source):
    return parse_initialiser(name).tables(source)


def open_ids(source):
    return np.flatnonzero(source.kept < 0)


def test_mean_is_the_mean_of_all_rows():
    source = given()
    tables, report = tables_of("mean", source)
    for side in ("input", "head"):
        expected = getattr(source.tables, side).double().numpy().mean(0)
        found = getattr(tables, side)[open_ids(source)].numpy()
        np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-7)
    assert report.mean == len(open_ids(source)) > 5


def test_random_rows_have_the_mean_and_the_spread_of_the_old():
    source = given()
    rows = torch.randn(len(SOURCE), 32) * torch.linspace(0.1, 3, 32) + torch.linspace(-2, 2, 32)
    source.model.get_input_embeddings().weight.data = rows
    drawn = torch.cat(
        [
            tables_of("random", Source(source.model, source.source, source.target, (), seed))[
                0
            ].input[open_ids(source)]
            for seed in range(40)
        ]
    )
    error = rows.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - rows.mean(0)).abs() < 5 * error).all()
    torch.testing.assert_close(drawn.std(0), rows.std(0), rtol=0.2, atol=0)


def test_another_seed_draws_other_rows():
    one, two = (tables_of("random", given(seed=seed)) for seed in (0, 1))
    ids = open_ids(given())
    assert not torch.equal(one[0].input[ids], two[0].input[ids])
    assert one[1].drawn == len(ids)


def test_input_and_output_are_drawn_apart():
    source = given()
    source.model.lm_head.weight.data = source.model.get_input_embeddings().weight.detach().clone()
    tables, _ = tables_of("random", source)
    ids = open_ids(source)
    assert not torch.equal(tables.input[ids], tables.output[ids])


def pooled(source, data, side, weights=None):
    """The mean of rows of ordinary tokens that end or begin with some bytes, in float64."""
    rows = (source.tables.input if side == "input" else source.tables.head).double().numpy()
    fits = bytes.endswith if side == "input" else bytes.startswith
    ids = [
        id for id, token in enumerate(pieces(source.source.bytes)) if token and fits(token, data)
    ]
    own = np.ones(len(ids)) if weights is None else weights[ids]
    return (own[:, None] * rows[ids]).sum(0) / own.sum() if ids else None


@pytest.mark.parametrize("tied", [True, False])
def test_a_byte_is_the_mean_of_what_ends_with_it_and_of_what_begins_with_it(tied):
    source = given("bytes", tied=tied)
    tables, report = tables_of({"suffix": {"untie": True}}, source)
    for byte in range(256):
        for side, table in (("input", tables.input), ("output", tables.output)):
            expected = pooled(source, bytes([byte]), side)
            np.testing.assert_allclose(table[byte].numpy(), expected, atol=1e-6)
    assert (report.averaged, report.copied) == (256, 0)


def test_a_tied_table_has_the_rows_of_the_input():
    tables, _ = tables_of("suffix", given("bytes", tied=True))
    assert tables.output is None
    apart, _ = tables_of({"suffix": {"untie": True}}, given("bytes", tied=True))
    assert torch.equal(tables.input, apart.input)
    assert not torch.equal(apart.input, apart.output)


def test_a_byte_may_keep_its_row():
    source = given("bytes")
    tables, report = tables_of({"suffix": {"exact": "copy"}}, source)
    assert torch.equal(tables.input[:256], source.tables.input[source.exact[:256]])
    assert report.copied == 256


def test_tokens_that_nothing_ends_with_have_the_last_part_of_their_spelling():
    source = given("words")
    tables, _ = tables_of("suffix", source)
    tokens, known = pieces(source.target.bytes), pieces(source.source.bytes)
    seen = {"pooled": 0, "last": 0}
    for id in open_ids(source).tolist():
        for side, table in (("input", tables.input), ("output", tables.output)):
            expected = pooled(source, tokens[id], side)
            if expected is None:
                seen["last"] += 1
                old = source.tables.input if side == "input" else source.tables.head
                same = [row for row in range(len(old)) if torch.equal(old[row], table[id])]
                fits = bytes.endswith if side == "input" else bytes.startswith
                assert any(fits(tokens[id], known[row]) for row in same)
            else:
                seen["pooled"] += 1
                np.testing.assert_allclose(table[id].numpy(), expected, atol=1e-6)
    assert min(seen.values()) > 0


def test_tokens_may_count_as_often_as_they_occur():
    rows = [*tiny_tokenizers.TEXTS, {"messages": [{"role": "user", "content": "The cats"}]}]
    source = given("bytes", texts=rows)
    tables, _ = tables_of({"suffix": {"by_count": True}}, source)
    texts = [*tiny_tokenizers.TEXTS, "The cats"]
    ids = [id for text in texts for id in source.source.encode(text)]
    weights = 1.0 + np.bincount(ids, minlength=len(SOURCE))
    for byte in range(256):
        expected = pooled(source, bytes([byte]), "input", weights)
        np.testing.assert_allclose(tables.input[byte].numpy(), expected, atol=1e-5)


def test_counts_need_texts():
    with pytest.raises(ConfigError, match="counts tokens in texts; none were given"):
        tables_of({"suffix": {"by_count": True}}, given())


@pytest.mark.parametrize("name", ["fvt", "mean", "omp", "suffix"])
def test_a_byte_token_that_is_never_written_has_no_row_of_another(name):
    target = text_encoder(tiny_tokenizers.metaspace_bpe_with_byte_fallback(style="gemma"))
    source = Source(tiny_models.llama(len(SOURCE)), text_encoder(SOURCE), target)
    tables, _ = tables_of(name, source)
    never, letter, rare = target.tokenizer.convert_tokens_to_ids(["<0x61>", "a", "<0xF5>"])
    for side in ("input", "head"):
        rows, old = getattr(tables, side), getattr(source.tables, side)
        torch.testing.assert_close(rows[never], old.mean(0))
        assert not torch.allclose(rows[letter], old.mean(0))
        assert torch.equal(rows[rare], old[source.exact[rare]])
