"""The longest token that ends at each byte, against looking at every token at every byte."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from crosstill.transfer.suffixes import LONGEST, Suffixes

SPECIALS = [900, -1]
LETTERS = st.sampled_from([*b"ab ", 0, 255, 256, 257, -1])
TOKENS = st.lists(st.binary(min_size=1, max_size=3) | st.text("ab ", min_size=1).map(str.encode))


def brute(tokens, line):
    """Every token at every position; special ids and padding are never part of one."""
    found = []
    for end, id in enumerate(line, 1):
        if id >= 256:
            found.append(SPECIALS[id - 256])
            continue
        fitting = [
            token
            for token in tokens
            if len(token) <= LONGEST
            and len(token) <= end
            and [*token] == line[end - len(token) : end]
        ]
        found.append(tokens[max(fitting, key=len)] if fitting else -1)
    return found


def numbered(tokens):
    return {token: 3 * row for row, token in enumerate(dict.fromkeys(tokens))}


@given(TOKENS, st.lists(st.lists(LETTERS, min_size=9, max_size=9), min_size=1, max_size=3))
@example([], [[97, 98, 97, 98, 97, 98, 97, 98, 256]])
@example([b"a" * 16, b"a" * 17], [[97] * 9])
def test_equals_looking_everywhere(tokens, lines):
    tokens = numbered(tokens)
    finder = Suffixes.of(tokens, [-1] * 256 + SPECIALS)
    assert finder(torch.tensor(lines)).tolist() == [brute(tokens, line) for line in lines]


@given(TOKENS, st.lists(LETTERS, min_size=1, max_size=40), st.data())
def test_in_pieces_equals_at_once(tokens, line, data):
    finder = Suffixes.of(numbered(tokens), [-1] * 256 + SPECIALS)
    whole = finder(torch.tensor([line]))
    cut = data.draw(st.integers(0, len(line)))
    context = torch.tensor([line[max(cut - LONGEST + 1, 0) : cut]], dtype=torch.int64)
    rest = finder(torch.tensor([line[cut:]], dtype=torch.int64), context)
    assert rest.tolist() == [whole[0, cut:].tolist()]
    single = [
        finder(torch.tensor([[id]]), torch.tensor([line[:at]], dtype=torch.int64)).item()
        for at, id in enumerate(line)
    ]
    assert single == whole[0].tolist()


@pytest.mark.parametrize("size", [15, 16, 17])
def test_tokens_of_sixteen_bytes_are_the_longest(size):
    token = bytes(range(65, 65 + size))
    finder = Suffixes.of({token: 5, token[-1:]: 1}, [-1] * 256)
    assert finder(torch.tensor([[*token]]))[0, -1] == (5 if size <= 16 else 1)
