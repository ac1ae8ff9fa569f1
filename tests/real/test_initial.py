"""First embeddings between real tokenizers, on rows that tell which tokens they were made from."""

import numpy as np
import pytest
import torch

import tiny_models
from crosstill.align.spellings import pieces
from crosstill.text.encode import text_encoder
from crosstill.transfer.initial import Source, initialisers, parse_initialiser

pytestmark = pytest.mark.slow

PAIRS = [("qwen3", "llama2"), ("llama2", "qwen3"), ("llama3", "gemma3")]
QUICK = ("fvt", "mean", "random", "suffix")


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def source(request, real_tokenizer):
    encoders = [text_encoder(real_tokenizer(name)) for name in request.param]
    lengths = torch.from_numpy(encoders[0].bytes.lengths)
    model = tiny_models.llama(len(lengths), tied=False, hidden_size=8)
    for table in (model.get_input_embeddings(), model.lm_head):
        table.weight.data[:, 0] = lengths
    return Source(model, *encoders)


@pytest.mark.parametrize("name", QUICK)
def test_equal_bytes_keep_their_rows(source, name):
    tables, report = parse_initialiser(name).tables(source)
    ids = np.flatnonzero(source.exact >= 0)
    old, new = pieces(source.source.bytes), pieces(source.target.bytes)
    assert all(old[source.exact[id]] == new[id] for id in ids[::97])
    assert torch.equal(tables.input[ids], source.tables.input[source.exact[ids]])
    assert torch.equal(tables.output[ids], source.tables.output[source.exact[ids]])
    assert report.copied == len(ids) > 10_000
    assert tables.input.isfinite().all()
    assert tables.output.isfinite().all()


def test_averaged_tokens_are_spelled_by_what_they_are_made_from(source):
    tables, report = parse_initialiser("fvt").tables(source)
    open_ = np.flatnonzero((source.kept < 0) & (source.target.bytes.lengths > 0))
    # the mean number of bytes of the tokens that spell it, which add up to its own
    count = source.target.bytes.lengths[open_] / tables.input[open_, 0].double().numpy()
    np.testing.assert_allclose(count, count.round(), rtol=1e-4)
    assert count.min() > 1.5
    assert report.averaged == len(open_)


def test_pooled_tokens_end_and_begin_with_what_they_are_made_from(source):
    tables, _ = parse_initialiser("suffix").tables(source)
    old, new = pieces(source.source.bytes), pieces(source.target.bytes)
    open_ = np.flatnonzero((source.kept < 0) & (source.target.bytes.lengths > 0))
    ordinary = [data for data in dict.fromkeys(old) if data]
    pooled = 0
    for id in np.random.default_rng(0).choice(open_, 60, replace=False):
        for table, fits in ((tables.input, bytes.endswith), (tables.output, bytes.startswith)):
            lengths = [len(data) for data in ordinary if fits(data, new[id])]
            pooled += bool(lengths)
            if lengths:
                assert float(table[id, 0]) == pytest.approx(np.mean(lengths), rel=1e-4)
            else:
                assert float(table[id, 0]) < len(new[id])
    assert pooled > 0


def test_the_pursuit_makes_most_tokens_of_like_ones(real_tokenizer):
    encoders = [text_encoder(real_tokenizer(name)) for name in ("qwen3", "llama2")]
    model = tiny_models.llama(encoders[0].vocab_size, hidden_size=8)
    source = Source(model, *encoders)
    tables, report = initialisers()["omp"]().tables(source)
    open_ = np.flatnonzero((source.kept < 0) & (source.target.bytes.lengths > 0))
    assert report.combined > 0.9 * len(open_)
    assert tables.input.isfinite().all()
    # sums of a few rows stay of the size that rows have
    spread = (source.tables.input - source.tables.input.mean(0)).norm(dim=1)
    found = (tables.input[open_] - source.tables.input.mean(0)).norm(dim=1)
    assert found.median() < 2 * spread.median()
    assert found.max() < 5 * spread.max()
