import numpy as np
import pytest
import torch

import tiny_models
import tiny_tokenizers
from crosstill.align.spellings import pieces
from crosstill.errors import ConfigError
from crosstill.text.encode import text_encoder
from crosstill.transfer.initial import Source, parse_initialiser
from crosstill.transfer.initial.features import spelling_features
from oracle import omp

SOURCE = tiny_tokenizers.byte_level_bpe(vocab_size=420)
TARGET = tiny_tokenizers.byte_level_bpe(
    ["The mats, the hats, the bats. Adding, printing, walking, talking."] * 3,
    vocab_size=330,
    specials={"eos_token": "<|eos|>", "extra": "<tool>"},
)
WIDE = 10_000


def given(*, tied=False, model=None):
    model = model or tiny_models.llama(len(SOURCE), tied=tied, hidden_size=64).double()
    return Source(model, text_encoder(SOURCE), text_encoder(TARGET))


def places(source):
    """Target ids that both have, and ordinary target ids that the target alone has."""
    shared = np.flatnonzero(source.exact >= 0)
    return shared, np.flatnonzero((source.kept < 0) & (source.target.bytes.lengths > 0))


def expected_rows(space, source, rows, k):
    """By loops: the sum in `space` on differences from the mean of rows that both have."""
    shared, open_ = places(source)
    old = rows[source.exact[shared]].numpy()
    found = []
    for id in open_:
        ids, weights = omp.pursued(space[id], space[shared], k)
        found.append(old.mean(0) + weights @ (old - old.mean(0))[ids])
    return np.stack(found)


@pytest.fixture
def donor(tmp_path):
    def save(tied=False):
        model = tiny_models.llama(len(TARGET) + 5, seed=3, tied=tied, hidden_size=48).double()
        model.save_pretrained(tmp_path)
        TARGET.save_pretrained(tmp_path)
        return str(tmp_path), model

    return save


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("donor_tied", [True, False])
def test_sums_in_a_donors_space_are_those_of_a_loop(donor, tied, donor_tied):
    (folder, other), source = donor(donor_tied), given(tied=tied)
    tables, report = parse_initialiser(
        {"omp": {"donor": folder, "k": 3, "candidates": WIDE}}
    ).tables(source)
    shared, open_ = places(source)
    spaces = {
        "input": other.get_input_embeddings().weight.detach(),
        "head": other.lm_head.weight.detach(),
    }
    for side, space in spaces.items():
        if tied or donor_tied:
            space = spaces["input"]
        space = (space - space[torch.from_numpy(shared)].mean(0)).numpy()
        expected = expected_rows(space, source, getattr(source.tables, side), 3)
        np.testing.assert_allclose(getattr(tables, side)[open_].numpy(), expected, rtol=1e-6)
    assert report.combined == len(open_) > 10
    assert (report.averaged, report.mean) == (0, 1)


def test_sums_in_the_space_of_spellings_are_those_of_a_loop():
    source = given()
    tables, report = parse_initialiser({"omp": {"k": 2, "candidates": WIDE}}).tables(source)
    shared, open_ = places(source)
    ids = [*shared, *np.flatnonzero(source.kept < 0)]
    tokens = pieces(source.target.bytes)
    space = np.zeros((len(TARGET), 512))
    space[ids] = spelling_features([tokens[id] for id in ids]).double().numpy()
    usable = np.abs(space).sum(1) > 0
    space[~usable] = np.eye(512)[0] * 1e-9  # never the largest
    expected = expected_rows(space, source, source.tables.input, 2)
    near = [row for row, id in enumerate(open_) if np.abs(space[shared] @ space[id]).max() > 0.05]
    assert len(near) > 10
    found = tables.input[open_].numpy()
    same = [np.allclose(found[row], expected[row], atol=1e-4) for row in near]
    assert np.mean(same) > 0.8  # ties between equal correlations may fall otherwise
    assert report.combined >= len(near)


def test_a_donor_of_the_same_shape_gives_its_geometry_back(donor):
    """Where the source is a turned and shifted donor, every row comes out as if it were known."""
    folder, other = donor()
    theirs = other.get_input_embeddings().weight.detach()
    turn = torch.linalg.qr(torch.randn(64, 48, dtype=torch.float64)).Q
    source = given(tied=True)
    shared, open_ = places(source)
    rows = source.model.get_input_embeddings().weight.data
    rows[torch.from_numpy(source.exact[shared])] = theirs[torch.from_numpy(shared)] @ turn.T + 7.0
    asked = {"omp": {"donor": folder, "k": 48, "candidates": WIDE}}
    tables, _ = parse_initialiser(asked).tables(source)
    true = theirs[open_] @ turn.T + 7.0
    error = (tables.input[open_] - true).norm(dim=1) / (true - 7.0).norm(dim=1)
    assert error.median() < 0.2


def test_like_spellings_make_a_word():
    source = Source(
        tiny_models.llama(len(SOURCE)),
        text_encoder(SOURCE),
        text_encoder(tiny_tokenizers.byte_level_bpe([" Hello"] * 9, vocab_size=320)),
    )
    tokens = pieces(source.target.bytes)
    assert b" Hello" in tokens
    known = pieces(source.source.bytes)
    tables, _ = parse_initialiser({"omp": {"k": 1}}).tables(source)
    id = tokens.index(b" Hello")
    own = tables.input[id] - tables.input[source.exact >= 0].mean(0)
    old = source.tables.input - tables.input[source.exact >= 0].mean(0)
    best = known[int(torch.cosine_similarity(old, own[None]).argmax())]
    assert best.strip().lower() in b"hello"
    assert len(best) >= 2


def test_a_donor_with_another_tokenizer_is_refused(tmp_path):
    tokenizer = tiny_tokenizers.characters()
    tiny_models.llama(len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has \d+ of the target tokenizer's \d+ tokens"):
        parse_initialiser({"omp": {"donor": str(tmp_path)}}).tables(given())


def test_a_donor_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        parse_initialiser({"omp": {"donor": str(tmp_path / "none")}}).tables(given())
