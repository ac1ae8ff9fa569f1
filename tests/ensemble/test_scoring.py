import numpy as np
import pytest
import torch

import tiny_models
import tiny_tokenizers
from crosstill.ensemble import Ensemble, scoring
from crosstill.ensemble.mixing import MIXES
from crosstill.errors import ConfigError, DataError
from crosstill.evaluation import bits_per_byte
from crosstill.evaluation.bits_per_byte import score, score_texts
from crosstill.transfer.bytelevel import byte_tokenizer
from oracle import ensemble as oracle
from tiny_ensembles import (
    metaspace_tokenizer,
    model,
    other_tokenizer,
    pivot_tokenizer,
)

TEXTS = [*tiny_tokenizers.TEXTS, "", "x"]
CHAT = [{"role": "user", "content": "Where is the cat?"}]
MEANS = {
    "probabilities": oracle.mean_of_probabilities,
    "log_probabilities": oracle.mean_of_log_probabilities,
}


@pytest.fixture(scope="module")
def tokenizer():
    return pivot_tokenizer()


@pytest.mark.parametrize("make", [tiny_models.llama, tiny_models.gemma2, tiny_models.gpt2])
@pytest.mark.parametrize("max_length", [2048, 16])
def test_an_ensemble_of_one_scores_as_its_member(tokenizer, make, max_length):
    one = make(len(tokenizer))
    found = Ensemble([one], [tokenizer]).score(TEXTS, max_length=max_length)
    expected = score_texts(one, tokenizer, TEXTS, max_length=max_length)
    np.testing.assert_allclose(found.nats, expected.nats, rtol=1e-6)
    assert found.bytes.tolist() == expected.bytes.tolist()
    assert found.bits_per_byte == pytest.approx(expected.bits_per_byte, rel=1e-6)


def test_an_ensemble_of_one_byte_model_has_the_windows_of_its_member(tokenizer, monkeypatch):
    narrow = byte_tokenizer(tokenizer)
    one = model(narrow, 0)
    for module in (bits_per_byte, scoring):
        monkeypatch.setattr(module, "MAX_LENGTH", 12)
    found = Ensemble([one], [narrow]).score(TEXTS)
    np.testing.assert_allclose(found.nats, score_texts(one, narrow, TEXTS).nats, rtol=1e-6)
    short = score_texts(one, narrow, TEXTS, max_length=12).nats
    assert not np.allclose(found.nats, short, rtol=1e-6)


@pytest.mark.parametrize("prompt", ["Where is t", CHAT])
@pytest.mark.parametrize("max_length", [2048, 24])
def test_responses_of_one_member_too(tokenizer, prompt, max_length):
    one = model(tokenizer, 0)
    pairs = [(prompt, text) for text in TEXTS]
    found = Ensemble([one], [tokenizer]).score(pairs, max_length=max_length)
    expected = score(one, tokenizer, pairs, max_length=max_length)
    np.testing.assert_allclose(found.nats, expected.nats, rtol=1e-5)
    assert found.bytes.tolist() == expected.bytes.tolist()


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("greedy", [False, True])
def test_equals_a_count_by_hand(tokenizer, mix, greedy):
    members, weights = [model(tokenizer, k) for k in range(3)], [0.5, 0.2, 0.3]
    text = "The cat sat.\n"
    ids = [tokenizer.convert_tokens_to_ids("<|end_of_text|>"), *tokenizer.encode(text)]
    with torch.no_grad():
        rows = [one(torch.tensor([ids])).logits[0].double().tolist() for one in members]
    nats = 0.0
    for place in range(1, len(ids)):
        mean = MEANS[mix]([row[place - 1] for row in rows], weights)
        nats -= np.log(mean[ids[place]])
    found = Ensemble(members, [tokenizer] * 3, weights=weights, mix=mix).score(
        [text], greedy=greedy
    )
    assert found.nats[0] == pytest.approx(nats, rel=1e-5)


def test_batches_and_order_change_nothing(tokenizer):
    ensemble = Ensemble([model(tokenizer, k) for k in range(2)], [tokenizer] * 2)
    whole = ensemble.score(TEXTS)
    small = ensemble.score(TEXTS[::-1], tokens_per_batch=1)
    np.testing.assert_allclose(small.nats[::-1], whole.nats, rtol=1e-5)


@pytest.mark.parametrize("vocabulary", ["identical", "shared", "mined"])
def test_a_text_that_greedy_search_wrote_is_greedy(tokenizer, vocabulary):
    other = tokenizer if vocabulary == "identical" else other_tokenizer()
    members = [model(tokenizer, 0), model(other, 1)]
    ensemble = Ensemble(members, [tokenizer, other], vocabulary=vocabulary)
    # some of what it writes is cut otherwise when it is read as text
    for word in ("cat", "mat", "dog", "world", "sum", "day", "é", "a"):
        chat = [{"role": "user", "content": f"Where is the {word}?"}]
        ids = ensemble.encode([chat])
        new = ensemble.generate(**ids, max_new_tokens=2)[0, ids["input_ids"].shape[1] :].tolist()
        text = ensemble.encoders[0].bytes.spell(new).decode(errors="replace")
        if ensemble.encoders[0].encode(text) == new:
            break
    else:
        raise AssertionError("nothing that was written is cut as it was written")
    found = ensemble.score([(chat, text), (chat, "quite another text")], greedy=True)
    assert found.greedy is not None
    assert found.greedy.tolist() == [True, False]


@pytest.mark.parametrize("mix", MIXES)
def test_shared_scores_are_those_of_the_steps_of_generation(tokenizer, mix):
    """Each member reads its own template and the common tokens behind it."""
    other = other_tokenizer()
    ensemble = Ensemble(
        [model(tokenizer, 0), model(other, 1)], [tokenizer, other], vocabulary="shared", mix=mix
    )
    text = "The cat 東京"
    found = ensemble.score([(CHAT, text)])
    inputs = ensemble.encode([CHAT])
    output = ensemble(**inputs, use_cache=True)
    writable = np.flatnonzero(ensemble.common.writable)
    table = {ensemble.encoders[0].bytes.token(v): v for v in writable if v != 2}
    nats, rest = 0.0, text.encode()
    pieces = []
    for id in ensemble.encoders[0].encode(text):
        data = ensemble.encoders[0].bytes.token(id)
        while data:
            size = next(n for n in range(len(data), 0, -1) if data[:n] in table)
            pieces.append(table[data[:size]])
            data = data[size:]
    assert b"".join(ensemble.encoders[0].bytes.token(id) for id in pieces) == rest
    for id in pieces:
        nats -= output.logits[0, -1, id].item()
        output = ensemble(torch.tensor([[id]]), past_key_values=output.past_key_values)
    assert found.nats[0] == pytest.approx(nats, rel=1e-5)
    assert found.bytes[0] == len(text.encode())


@pytest.mark.parametrize("vocabulary", ["shared", "mined"])
def test_other_tokenizers_score_finitely_and_count_all_bytes(tokenizer, vocabulary):
    for make in (other_tokenizer, metaspace_tokenizer):
        other = make()
        for order in (slice(None), slice(None, None, -1)):
            members = [model(tokenizer, 0), model(other, 1)][order]
            ensemble = Ensemble(members, [tokenizer, other][order], vocabulary=vocabulary)
            found = ensemble.score(["The cat 😀", ("Say", " the cat"), (CHAT, "Größe")])
            assert np.isfinite(found.nats).all()
            assert found.bytes.tolist() == [12, 8, 7]


def test_mined_scores_are_those_of_the_whole_text_read_at_once(tokenizer):
    ensemble = Ensemble(
        [model(tokenizer, 0), model(other_tokenizer(), 1)],
        [tokenizer, other_tokenizer()],
        vocabulary="mined",
    )
    text = "The cat sat."
    start = ensemble.encoders[0].roles.eos
    ids = torch.tensor([[start, *ensemble.encoders[0].encode(text)]])
    rows = ensemble(ids).logits[0, :-1].gather(1, ids[0, 1:, None])
    # the other member begins a text with its bos, the pivot with its end of text
    assert ensemble.score([text]).nats[0] == pytest.approx(-rows.sum().item(), rel=0.2)


def test_a_text_without_common_bytes_is_refused(tokenizer):
    narrow = tiny_tokenizers.wordpiece()
    ensemble = Ensemble(
        [model(tokenizer, 0), model(narrow, 1)], [tokenizer, narrow], vocabulary="shared"
    )
    with pytest.raises(DataError):
        ensemble.score(["東京 \x01"])


def test_a_window_of_one_token_is_refused(tokenizer):
    ensemble = Ensemble([model(tokenizer, 0)], [tokenizer])
    with pytest.raises(ConfigError, match="window"):
        ensemble.score(["The cat"], max_length=1)
