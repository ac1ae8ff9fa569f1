import numpy as np
import pytest
import torch
from transformers import TextIteratorStreamer

import tiny_models
from crosstill import bits_per_byte
from crosstill.ensemble import Ensemble
from crosstill.ensemble.mixing import MIXES
from crosstill.errors import ConfigError
from oracle import ensemble as oracle
from tiny_ensembles import (
    PROMPTS,
    metaspace_tokenizer,
    model,
    other_tokenizer,
    pivot_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer():
    return pivot_tokenizer()


@pytest.fixture(scope="module")
def three(tokenizer):
    return [model(tokenizer, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def alike(three, tokenizer):
    return Ensemble(three, [tokenizer] * 3)


@pytest.fixture(scope="module")
def different(three, tokenizer):
    """A function that makes an ensemble over a vocabulary of two kinds of tokens."""
    other = other_tokenizer()
    second = model(other, 7)

    def make(vocabulary, **more):
        return Ensemble([three[0], second], [tokenizer, other], vocabulary=vocabulary, **more)

    return make


def ids_of(tokenizer, text):
    return torch.tensor([tokenizer.encode(text, add_special_tokens=False)])


def logits(one, ids):
    with torch.no_grad():
        return one(input_ids=ids).logits[0].double().numpy()


@pytest.mark.parametrize("mix", MIXES)
def test_logits_are_the_logarithms_of_the_mixture(three, tokenizer, mix):
    ids, weights = ids_of(tokenizer, "The cat sat on it."), [0.5, 0.3, 0.2]
    found = Ensemble(three, [tokenizer] * 3, weights=[5, 3, 2], mix=mix)(ids).logits[0]
    rows = [logits(one, ids) for one in three]
    mean = {
        "probabilities": oracle.mean_of_probabilities,
        "log_probabilities": oracle.mean_of_log_probabilities,
    }[mix]
    for place in range(ids.shape[1]):
        expected = mean([row[place].tolist() for row in rows], weights)
        np.testing.assert_allclose(found[place].exp(), expected, atol=1e-5)


@pytest.mark.parametrize("mix", MIXES)
def test_all_weight_on_one_member_is_that_member(three, tokenizer, mix):
    ids = ids_of(tokenizer, "Hello world")
    found = Ensemble(three, [tokenizer] * 3, weights=[0, 1, 0], mix=mix)
    assert torch.equal(found(ids).logits, three[1](ids).logits.log_softmax(-1))
    own = three[1].generate(ids, max_new_tokens=10, do_sample=False, pad_token_id=0)
    assert torch.equal(found.generate(ids, max_new_tokens=10)[:, : own.shape[1]], own)


def test_surplus_rows_of_a_head_get_nothing(tokenizer, three):
    padded = tiny_models.llama(len(tokenizer) + 24, seed=9)
    found = Ensemble([padded, three[0]], [tokenizer] * 2)(ids_of(tokenizer, "The")).logits
    assert found.shape[-1] == len(tokenizer)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(found.shape[:-1]))


def test_it_is_a_model_of_transformers(alike, tokenizer, three):
    assert alike.device == three[0].device
    assert alike.dtype == torch.float32
    assert alike.eval() is alike
    assert alike.config.vocab_size == len(tokenizer)
    assert not any(one.training for one in three)
    alike.tie_weights()
    texts = ["The cat sat on the mat.", "Größe", ""]
    assert bits_per_byte(alike, tokenizer, texts) == pytest.approx(
        alike.score(texts).bits_per_byte, rel=1e-6
    )


@pytest.mark.parametrize("vocabulary", ["shared", "mined"])
@pytest.mark.parametrize("mix", MIXES)
def test_what_is_written_is_in_common_and_sums_to_one(different, vocabulary, mix):
    ensemble = different(vocabulary, mix=mix)
    found = ensemble(**ensemble.encode(PROMPTS), use_cache=True).logits[:, -1]
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(len(PROMPTS)))
    writable = torch.from_numpy(ensemble.common.writable)
    assert (found[:, ~writable] == -torch.inf).all()
    assert found[:, writable].isfinite().all()


def test_shared_tokens_are_those_of_equal_bytes_and_one_end(different, tokenizer, three):
    ensemble = different("shared")
    pivot, other = ensemble.encoders
    prompt = PROMPTS[0]
    inputs = ensemble.encode([prompt])
    found = ensemble(**inputs, use_cache=True).logits[0, -1].exp().double().numpy()
    ids = [v for v in range(pivot.vocab_size) if ensemble.common.writable[v]]
    parts = []
    for one, encoder, row in zip(ensemble.models, (pivot, other), inputs["prompt_ids"][0],
                                 strict=True):  # fmt: skip
        mask = inputs["prompt_mask"][0][len(parts)].bool()
        p = oracle.softmax(logits(one, row[mask][None])[-1].tolist())
        same = {encoder.bytes.token(v): v for v in reversed(range(encoder.vocab_size))}
        ends = {*encoder.roles.eos_ids, *encoder.roles.eot_ids}
        masses = [
            sum(p[e] for e in ends) if v == pivot.roles.eot else p[same[pivot.bytes.token(v)]]
            for v in ids
        ]
        parts.append([mass / sum(masses) for mass in masses])
    np.testing.assert_allclose(found[ids], (np.array(parts[0]) + parts[1]) / 2, atol=1e-6)
    assert found.sum() == pytest.approx(1)


@pytest.mark.parametrize("vocabulary", ["shared", "mined"])
def test_members_read_their_own_template(different, vocabulary):
    ensemble = different(vocabulary)
    inputs = ensemble.encode([PROMPTS[2]])
    texts = [
        encoder.tokenizer.decode(ids[mask.bool()])
        for encoder, ids, mask in zip(
            ensemble.encoders, inputs["prompt_ids"][0], inputs["prompt_mask"][0], strict=True
        )
    ]
    assert texts[0] == "<|im_start|>user\nWhere is the cat?<|im_end|>\n<|im_start|>assistant\n"
    assert texts[1].endswith("<<assistant speaks to you now>>")
    lengths = inputs["prompt_mask"][0].sum(1).tolist()
    assert lengths[0] != lengths[1]


@pytest.mark.parametrize(
    ("vocabulary", "mix"),
    [
        ("identical", "probabilities"),
        ("shared", "log_probabilities"),
        ("mined", "probabilities"),
    ],
)
def test_a_batch_writes_what_each_prompt_writes_alone(alike, different, vocabulary, mix):
    ensemble = alike if vocabulary == "identical" else different(vocabulary, mix=mix)
    for options in ({}, {"temperature": 1.3, "top_p": 0.9, "top_k": 50, "seed": 3}):
        together = ensemble.write(PROMPTS, max_new_tokens=10, **options)
        seed = options.pop("seed", 0)
        alone = [
            ensemble.write([prompt], max_new_tokens=10, seed=seed + k, **options)[0]
            for k, prompt in enumerate(PROMPTS)
        ]
        assert together == alone
        assert len(set(together)) > 1


def test_a_batch_has_the_ids_that_each_prompt_has_alone(alike):
    together = alike.generate(**alike.encode(PROMPTS), max_new_tokens=10)
    for row, prompt in zip(together, PROMPTS, strict=True):
        inputs = alike.encode([prompt])
        alone = alike.generate(**inputs, max_new_tokens=10)[0, inputs["input_ids"].shape[1] :]
        new = row[-10:]
        assert torch.equal(new[: len(alone)], alone)


def test_the_cache_changes_nothing(alike, different):
    ids = alike.encode(PROMPTS[:2])
    plain = {name: ids[name] for name in ("input_ids", "attention_mask")}
    kept = alike.generate(**plain, max_new_tokens=12)
    assert torch.equal(kept, alike.generate(**plain, max_new_tokens=12, use_cache=False))
    mined = different("mined")
    text = mined.encode(PROMPTS[:1])["input_ids"]
    kept = mined.generate(text, max_new_tokens=8)
    assert torch.equal(kept, mined.generate(text, max_new_tokens=8, use_cache=False))


def test_lock_step_with_prompts_of_their_own_equals_reading_all_again(different):
    ensemble = different("shared")
    inputs = ensemble.encode([PROMPTS[2]])
    written = ensemble.generate(**inputs, max_new_tokens=10)[0, inputs["input_ids"].shape[1] :]
    for place in range(1, len(written)):
        rows = []
        for k, one in enumerate(ensemble.members):
            own = inputs["prompt_ids"][0, k][inputs["prompt_mask"][0, k].bool()]
            ids = torch.cat([own, one.own_ids(written[:place])])
            with torch.no_grad():
                rows.append(one.columns(one.model(ids[None]).logits[0, -1]).log_softmax(-1))
        expected = torch.stack(rows).exp().mean(0).argmax()
        assert written[place] == expected


def test_the_generation_of_transformers_works(alike):
    inputs = alike.encode(PROMPTS[:2])
    beams = alike.generate(**inputs, max_new_tokens=6, num_beams=3)
    assert beams.shape[0] == 2
    torch.manual_seed(0)
    many = alike.generate(**inputs, max_new_tokens=4, do_sample=True, num_return_sequences=3)
    assert many.shape[0] == 6
    streamer = TextIteratorStreamer(alike.encoders[0].tokenizer, skip_prompt=True)
    one = alike.encode(PROMPTS[:1])
    ids = alike.generate(**one, max_new_tokens=6, streamer=streamer)
    text = alike.encoders[0].tokenizer.decode(ids[0, one["input_ids"].shape[1] :])
    assert "".join(streamer) == text


def test_beams_find_what_a_search_over_all_would_prefer(alike):
    """Caches follow the beams: the best of many beams is at least as likely as greedy search."""
    inputs = alike.encode(PROMPTS[:1])
    start = inputs["input_ids"].shape[1]

    def likelihood(ids):
        rows = alike(ids).logits[0, start - 1 : -1]
        return rows.gather(1, ids[0, start:, None]).sum().item()

    greedy = alike.generate(**inputs, max_new_tokens=4, eos_token_id=None, pad_token_id=0)
    beam = alike.generate(
        **inputs, max_new_tokens=4, eos_token_id=None, pad_token_id=0, num_beams=8
    )
    assert likelihood(beam) >= likelihood(greedy) - 1e-4


def test_other_vocabularies_are_refused_with_the_tokens_and_the_way_out(three, tokenizer):
    other = metaspace_tokenizer()
    second = model(other, 1)
    with pytest.raises(ConfigError) as told:
        Ensemble([three[0], second], [tokenizer, other])
    for part in ("ids differ", "'<|begin|>'", "spell the same bytes", "crosstill transfer",
                 "'shared'", "'mined'"):  # fmt: skip
        assert part in str(told.value)


def test_faults(three, tokenizer, different):
    with pytest.raises(ConfigError, match="at least one model"):
        Ensemble([], [])
    with pytest.raises(ConfigError, match="one tokenizer for each"):
        Ensemble(three, [tokenizer])
    with pytest.raises(ConfigError, match="weight"):
        Ensemble(three, [tokenizer] * 3, weights=[1, 1])
    with pytest.raises(ConfigError, match="mix"):
        Ensemble(three, [tokenizer] * 3, mix="vote")
    with pytest.raises(ConfigError, match="vocabulary"):
        Ensemble(three, [tokenizer] * 3, vocabulary="union")
    with pytest.raises(ConfigError, match="members one by one"):
        Ensemble(three, [tokenizer] * 3).save_pretrained("nowhere")
    shared = different("shared")
    missing = int(np.flatnonzero(~shared.common.writable & (shared.common.members[1].reading < 0)
                                 & (shared.encoders[0].bytes.lengths > 0))[0])  # fmt: skip
    with pytest.raises(ConfigError, match="model 2 has no token for"):
        shared(torch.tensor([[missing]]))
    with pytest.raises(ConfigError, match="expected ids from 0"):
        shared(torch.tensor([[10**6]]))
    mined = different("mined")
    inputs = mined.encode(PROMPTS[:1])
    with pytest.raises(ConfigError, match="beam search"):
        mined.generate(**inputs, max_new_tokens=3, num_beams=2)
