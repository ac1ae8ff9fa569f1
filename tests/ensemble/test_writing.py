import pytest
import torch

from crosstill.ensemble import Ensemble
from crosstill.ensemble.writing import Draw
from crosstill.errors import ConfigError, DataError
from tiny_ensembles import PROMPTS, model, other_tokenizer, pivot_tokenizer


@pytest.fixture(scope="module")
def ensemble():
    tokenizer, other = pivot_tokenizer(), other_tokenizer()
    return Ensemble([model(tokenizer, 0), model(other, 5)], [tokenizer, other], vocabulary="shared")


def test_what_is_streamed_is_what_is_written(ensemble):
    pieces = [[] for _ in PROMPTS]
    for options in ({}, {"stop": ["e"]}, {"temperature": 1.0, "seed": 4}):
        for one in pieces:
            one.clear()
        written = ensemble.write(
            PROMPTS,
            max_new_tokens=20,
            batch_size=3,
            on_text=lambda row, text: pieces[row].append(text),
            **options,
        )
        assert ["".join(one) for one in pieces] == written
        assert max(map(len, pieces)) > 3


def test_a_stop_ends_a_text_wherever_it_falls(ensemble):
    whole = ensemble.write(PROMPTS[:1], max_new_tokens=24)[0]
    for start in range(2, len(whole) - 2, 5):
        stop = whole[start : start + 2]
        if "\ufffd" in stop:
            continue
        found = ensemble.write(PROMPTS[:1], max_new_tokens=24, stop=["never said", stop])
        assert found[0] == whole[: whole.index(stop)]


def test_the_end_of_a_turn_ends_a_text_and_is_no_part_of_it():
    tokenizer = pivot_tokenizer()
    sure = model(tokenizer, 0)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ensemble = Ensemble([sure], [tokenizer])
    with torch.no_grad():  # tied: the row is made to win from the second token on
        sure.lm_head.weight[end] += 40 * sure.model.norm.weight / 32
    texts = ensemble.write(PROMPTS, max_new_tokens=30)
    assert all("<|im_end|>" not in text for text in texts)


def test_seeds_repeat_and_differ(ensemble):
    options = {"max_new_tokens": 12, "temperature": 1.0}
    first = ensemble.write(PROMPTS, seed=1, **options)
    assert first == ensemble.write(PROMPTS, seed=1, **options)
    assert first != ensemble.write(PROMPTS, seed=2, **options)
    assert first == ensemble.write(PROMPTS, seed=[1, 2, 3, 4], **options)
    same = ensemble.write([PROMPTS[0]] * 2, seed=[7, 7], **options)
    assert same[0] == same[1]


def test_the_draws_follow_the_distribution():
    probabilities = torch.tensor([[0.5, 0.0, 0.3, 0.2, 0.0]])
    draw = Draw([0])
    counts = torch.zeros(5)
    for _ in range(3000):
        counts += draw(torch.zeros(1, 1), probabilities.log())[0].exp()
    # five standard deviations
    assert (counts / 3000 - probabilities[0]).abs().max() < 5 * 0.5 / 3000**0.5
    assert counts[1] == counts[4] == 0


def test_top_p_and_top_k_keep_the_likeliest(ensemble):
    greedy = ensemble.write(PROMPTS, max_new_tokens=8)
    for options in ({"top_k": 1}, {"top_p": 1e-6}):
        assert ensemble.write(PROMPTS, max_new_tokens=8, temperature=1.0, **options) == greedy


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"stop": [""]}, "stop"),
        ({"stop": "word"}, "stop"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": [1, 2]}, "seed"),
    ],
)
def test_settings_out_of_range_are_refused(ensemble, options, part):
    with pytest.raises(ConfigError, match=part):
        ensemble.write(PROMPTS[:1], **options)


def test_prompts_that_cannot_be_read_are_refused(ensemble):
    with pytest.raises(ConfigError, match="at least one prompt"):
        ensemble.encode([])
    with pytest.raises(DataError, match="special token"):
        ensemble.write([[{"role": "user", "content": "<|im_end|>"}]])
