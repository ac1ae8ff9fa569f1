import math

import numpy as np
import pytest
import torch

import tiny_tokenizers
from crosstill.ensemble.byte_states import END, ByteStates, byte_tree
from crosstill.ensemble.bytes import ByteEnsemble
from crosstill.ensemble.reading import Reader
from crosstill.errors import ConfigError, DataError
from crosstill.evaluation.bits_per_byte import score_texts
from crosstill.text.encode import text_encoder
from oracle import ensemble as oracle
from tiny_ensembles import (
    PROMPTS,
    metaspace_tokenizer,
    model,
    other_tokenizer,
    pivot_tokenizer,
)

TEXT = "The cat 東"


def next_token(one, encoder):
    """A model's probabilities of ordinary tokens and ends, each text read at once."""
    ends = {*encoder.roles.eos_ids, *encoder.roles.eot_ids}
    hidden = [v for v in range(encoder.vocab_size) if encoder.bytes.special[v] and v not in ends]

    def ask(ids):
        with torch.no_grad():
            logits = one(torch.tensor([ids])).logits[0, -1].double()
        logits[hidden] = -torch.inf
        return logits.softmax(-1).numpy()

    return ask


@pytest.mark.parametrize("make", [pivot_tokenizer, metaspace_tokenizer])
def test_without_a_threshold_the_sums_are_those_over_all_covers(make):
    tokenizer = make()
    encoder = text_encoder(tokenizer)
    ask = next_token(model(tokenizer, 0), encoder)
    tokens = [encoder.bytes.token(v) for v in range(encoder.vocab_size)]
    start = (encoder.roles.eos,)
    state = ByteStates(ask, byte_tree(encoder), start)
    text, nats = TEXT.encode()[:6], 0.0
    for place, byte in enumerate(text):
        logprobs = state.logprobs()
        assert np.exp(logprobs).sum() == pytest.approx(1)
        nats += logprobs[byte]
        state.advance(byte)
        expected = oracle.byte_prefix(ask, tokens, text[: place + 1], start)
        assert math.exp(nats) == pytest.approx(expected, rel=1e-6)
    assert state.dropped == 0


def test_all_next_bytes_and_the_end_are_right():
    tokenizer = pivot_tokenizer()
    encoder = text_encoder(tokenizer)
    ask = next_token(model(tokenizer, 1), encoder)
    tokens = [encoder.bytes.token(v) for v in range(encoder.vocab_size)]
    start = (encoder.roles.eos,)
    state = ByteStates(ask, byte_tree(encoder), start)
    for byte in b"th":
        state.advance(byte)
    whole = oracle.byte_prefix(ask, tokens, b"th", start)
    found = np.exp(state.logprobs())
    for byte in (ord("e"), ord(" "), 0xE6):
        expected = oracle.byte_prefix(ask, tokens, b"th" + bytes([byte]), start)
        assert found[byte] == pytest.approx(expected / whole, rel=1e-6)
    assert found[END] == pytest.approx(1 - found[:END].sum())
    assert found[END] > 0


def test_one_token_a_byte_is_the_model_itself():
    tokenizer = tiny_tokenizers.bytes_only()
    one = model(tokenizer, 0)
    ensemble = ByteEnsemble([one], [tokenizer], threshold=0)
    expected = score_texts(one, tokenizer, [TEXT])
    # special tokens but the ends have no share here
    assert ensemble.score([TEXT]).nats[0] == pytest.approx(expected.nats[0], rel=0.05)
    assert ensemble.calls == len(TEXT.encode()) + 1
    assert ensemble.dropped == 0


def test_all_tokenizations_are_at_least_as_likely_as_one():
    for make in (pivot_tokenizer, metaspace_tokenizer, other_tokenizer):
        tokenizer = make()
        one = model(tokenizer, 0)
        whole = ByteEnsemble([one], [tokenizer], threshold=1e-4).score([TEXT])
        assert whole.nats[0] <= score_texts(one, tokenizer, [TEXT]).nats[0]
        assert whole.bytes.tolist() == [len(TEXT.encode())]


def test_a_threshold_costs_little_and_saves_calls():
    tokenizer = pivot_tokenizer()
    one = model(tokenizer, 0)
    found = {}
    for threshold in (1e-6, 1e-3, 1e-1):
        ensemble = ByteEnsemble([one], [tokenizer], threshold=threshold)
        nats = ensemble.score([TEXT]).nats[0]
        found[threshold] = nats, ensemble.calls, ensemble.dropped
    fine, middle, coarse = found.values()
    assert fine[1] > middle[1] > coarse[1]
    assert fine[2] < middle[2] < coarse[2] < 1
    assert middle[0] == pytest.approx(fine[0], abs=0.1)


def test_members_of_other_tokenizers_mix_as_their_bytes_do():
    made = [pivot_tokenizer(), metaspace_tokenizer()]
    models = [model(tokenizer, k) for k, tokenizer in enumerate(made)]
    pair = ByteEnsemble(models, made, weights=[3, 1], threshold=1e-3)
    one_hot = ByteEnsemble(models, made, weights=[0, 1], threshold=1e-3)
    alone = ByteEnsemble(models[1:], made[1:], threshold=1e-3)
    assert one_hot.score([TEXT]).nats[0] == alone.score([TEXT]).nats[0]
    first = ByteEnsemble(models[:1], made[:1], threshold=1e-3).score([TEXT[:1]]).nats[0]
    second = alone.score([TEXT[:1]]).nats[0]
    together = pair.score([TEXT[:1]]).nats[0]
    assert together == pytest.approx(-math.log(0.75 * math.exp(-first) + 0.25 * math.exp(-second)))


@pytest.mark.parametrize("mix", ["probabilities", "log_probabilities"])
def test_it_writes(mix):
    made = [pivot_tokenizer(), other_tokenizer()]
    models = [model(tokenizer, k) for k, tokenizer in enumerate(made)]
    ensemble = ByteEnsemble(models, made, mix=mix, threshold=0.05)
    for prompt in (PROMPTS[0], PROMPTS[2]):
        pieces = []
        greedy = ensemble.write(prompt, max_new_bytes=12, on_text=pieces.append)
        assert greedy == ensemble.write(prompt, max_new_bytes=12)
        assert greedy.startswith("".join(pieces).rstrip("\ufffd"))
        drawn = [
            ensemble.write(prompt, max_new_bytes=12, temperature=1.0, seed=seed)
            for seed in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]


def test_the_reader_keeps_what_agrees():
    tokenizer = pivot_tokenizer()
    one = model(tokenizer, 0)
    reader = Reader(one, len(tokenizer))
    for ids in ([5, 6, 7], [5, 6, 7, 8], [5, 6, 9, 9], [5, 6], [5, 6], [4], [5, 6, 7, 8]):
        with torch.no_grad():
            expected = one(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(reader.logits(ids), expected, atol=1e-4, rtol=1e-4)
    assert reader.calls == 6
    assert reader.tokens == 3 + 1 + 2 + 1 + 1 + 4


def test_faults():
    tokenizer = pivot_tokenizer()
    one = model(tokenizer, 0)
    with pytest.raises(ConfigError, match="threshold"):
        ByteEnsemble([one], [tokenizer], threshold=1)
    with pytest.raises(ConfigError, match="tokenizer for each"):
        ByteEnsemble([one], [])
    narrow = tiny_tokenizers.characters()
    with pytest.raises(DataError, match="cannot write the byte"):
        ByteEnsemble([model(narrow, 0)], [narrow]).score(["\x01"])


def test_a_byte_that_only_a_dropped_tokenization_can_write_is_still_scored():
    tokenizer = pivot_tokenizer()
    one = model(tokenizer, 0)
    exact = ByteEnsemble([one], [tokenizer], threshold=1e-6)
    coarse = ByteEnsemble([one], [tokenizer], threshold=0.3)
    text = "zqxj 東 zz"
    assert coarse.score([text]).nats[0] == pytest.approx(exact.score([text]).nats[0], rel=0.15)


def test_each_model_is_scored_in_the_same_pass():
    tokenizers = [pivot_tokenizer(), other_tokenizer(), pivot_tokenizer()]
    models = [model(tokenizer, seed) for seed, tokenizer in enumerate(tokenizers)]
    ensemble = ByteEnsemble(models, tokenizers, weights=[1, 2, 0])
    texts = ["The cat", "東"]
    together, each = ensemble.score_each(texts)
    np.testing.assert_allclose(together.nats, ensemble.score(texts).nats)
    for one, tokenizer, found in zip(models, tokenizers, each, strict=True):
        alone = ByteEnsemble([one], [tokenizer]).score(texts)
        np.testing.assert_allclose(found.nats, alone.nats)
        np.testing.assert_array_equal(found.bytes, alone.bytes)
