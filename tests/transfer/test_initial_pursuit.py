import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstill.transfer.initial import pursuit
from crosstill.transfer.initial.features import spelling_features
from crosstill.transfer.initial.pursuit import sparse_sums
from oracle import omp

WORDS = [b" walk", b" walking", b"Walking", b"walk", b"talking", b" house", b"", b"a"]
WORDS += [b"aaaa", b"\xff\x00"]


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain(ids, weights):
    """{atom: weight} of each vector, without those of weight 0."""
    return [
        {i: w for i, w in zip(row, own, strict=True) if w}
        for row, own in zip(ids.tolist(), weights.tolist(), strict=True)
    ]


@pytest.mark.parametrize("candidates", [0, 40, 1000])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_pursuit_is_that_of_a_plain_loop(k, candidates):
    vectors, atoms = drawn(30, 24), drawn(40, 24, seed=1) * drawn(40, 1, seed=2)
    ids, weights = sparse_sums(vectors, atoms, k, candidates)
    for row, own, vector in zip(ids, weights, vectors, strict=True):
        expected, scale = omp.pursued(vector, atoms, k)
        assert row.tolist() == expected
        np.testing.assert_allclose(own.numpy(), scale, rtol=1e-8)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(2, 12), st.integers(2, 12))
def test_weights_are_least_squares_on_what_was_chosen(seed, k, count, width):
    vectors, atoms = drawn(3, width, seed=seed), drawn(count, width, seed=seed + 1)
    for own, vector in zip(plain(*sparse_sums(vectors, atoms, k)), vectors, strict=True):
        chosen = atoms[list(own)].numpy()
        assert len(own) <= min(k, count)
        best = np.linalg.lstsq(chosen.T, vector.numpy(), rcond=None)[0]
        np.testing.assert_allclose(list(own.values()), best, rtol=1e-5, atol=1e-7)


def test_a_sum_of_k_atoms_is_found_again():
    atoms = torch.linalg.qr(drawn(64, 64)).Q[:50] * (1 + drawn(50, 1).abs())
    true = torch.zeros(20, 50, dtype=torch.float64)
    for row in range(20):
        true[row, torch.randperm(50, generator=torch.Generator().manual_seed(row))[:3]] = 1 + row
    ids, weights = sparse_sums(true @ atoms, atoms, 3)
    found = torch.zeros_like(true).scatter(1, ids, weights)
    torch.testing.assert_close(found, true)


def test_equal_atoms_are_not_taken_twice():
    atoms = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 1e-3, 0], [0, 0, 1.0]])
    ids, weights = sparse_sums(torch.tensor([[2.0, 0.5, -1.0]]), atoms, 4)
    assert plain(ids, weights) == [{0: 2.0, 3: -1.0}] or weights.abs().max() < 3


def test_nothing_is_taken_for_a_vector_of_zeros_and_from_atoms_of_zeros():
    atoms = torch.cat([torch.zeros(2, 8), torch.eye(8)])
    _, weights = sparse_sums(torch.zeros(3, 8), atoms, 4)
    assert not weights.any()
    ids, weights = sparse_sums(torch.eye(8)[:3], atoms, 4)
    assert plain(ids, weights) == [{2: 1.0}, {3: 1.0}, {4: 1.0}]


@pytest.mark.parametrize("candidates", [0, 30])
def test_batches_change_nothing(monkeypatch, candidates):
    vectors, atoms = drawn(23, 16), drawn(60, 16, seed=1)
    whole = sparse_sums(vectors, atoms, 4, candidates)
    monkeypatch.setattr(pursuit, "_NUMBERS", 5 * 60 * 16)
    parts = sparse_sums(vectors, atoms, 4, candidates)
    assert torch.equal(whole[0], parts[0])
    torch.testing.assert_close(whole[1], parts[1])


def test_candidates_hold_what_matters():
    atoms = drawn(500, 512, dtype=torch.float32)  # wider than the projection
    vectors = 3 * atoms[:40] + 2 * atoms[40:80] + 0.1 * drawn(40, 512, seed=3).float()
    found = plain(*sparse_sums(vectors, atoms, 2, 50))
    assert all({row, row + 40} == set(own) for row, own in enumerate(found))


@pytest.mark.parametrize("shape", [(0, 5), (3, 5)])
def test_few_atoms_and_no_vectors(shape):
    ids, weights = sparse_sums(drawn(*shape), drawn(2, 5), 8)
    assert ids.shape == weights.shape == (shape[0], 2)


def test_features_are_those_of_plain_sets():
    found = spelling_features(WORDS, 4096)
    for i, one in enumerate(WORDS):
        for j, other in enumerate(WORDS):
            expected = omp.shared_pieces(one, other, WORDS)
            assert float(found[i] @ found[j]) == pytest.approx(expected, abs=0.08)


def test_wider_features_are_nearer_to_plain_sets():
    def error(width):
        found = spelling_features(WORDS, width)
        expected = [[omp.shared_pieces(a, b, WORDS) for b in WORDS] for a in WORDS]
        return (found @ found.T - torch.tensor(expected)).abs().mean()

    assert error(8192) < error(512) / 2 < error(32) / 4


def test_features_of_nothing():
    assert spelling_features([]).shape == (0, 512)
    assert not spelling_features([b"", b"x"]).any()
