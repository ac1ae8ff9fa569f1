import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

import tiny_models
import tiny_tokenizers
from crosstill import bits_per_byte
from crosstill.errors import ConfigError, DataError
from crosstill.evaluation import bits_per_byte as module
from crosstill.evaluation.bits_per_byte import score, score_texts
from crosstill.evaluation.scoring import Sequence, sequence_nats, windows
from crosstill.text.encode import text_encoder
from crosstill.transfer.bytelevel import byte_tokenizer

TEXTS = [
    "The cat sat on the mat.",
    "def add(a, b):\n    return a + b\n",
    "Der Größe nach: über, 東京 😀",
    "x",
    "",
]


def nats_by_hand(model, ids, first):
    """-log p of ids[first:] in float64 numpy, one sequence at a time."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double().numpy()
    total = 0.0
    for position in range(first, len(ids)):
        row = logits[position - 1]
        top = row.max()
        total -= row[ids[position]] - top - np.log(np.exp(row - top).sum())
    return total


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizers.byte_level_bpe()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_models.llama(len(tokenizer))


@pytest.mark.parametrize("make", [tiny_models.llama, tiny_models.gpt2, tiny_models.gemma2])
def test_equals_a_count_by_hand(tokenizer, make):
    model = make(len(tokenizer))
    eos = tokenizer.eos_token_id
    expected_nats, expected_bytes = 0.0, 0
    for text in TEXTS:
        ids = [eos, *tokenizer.encode(text, add_special_tokens=False)]
        expected_nats += nats_by_hand(model, ids, 1)
        expected_bytes += len(text.encode())
    expected = expected_nats / np.log(2) / expected_bytes
    assert bits_per_byte(model, tokenizer, TEXTS) == pytest.approx(expected, rel=1e-5)


def test_a_uniform_model_over_bytes_needs_the_bits_of_its_vocabulary():
    tokenizer = tiny_tokenizers.bytes_only()
    model = tiny_models.llama(len(tokenizer), tied=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    expected = np.log2(len(tokenizer))
    assert bits_per_byte(model, tokenizer, TEXTS) == pytest.approx(expected, rel=1e-6)


def test_a_byte_model_equals_a_sum_over_bytes_by_hand():
    """No alignment, no merging: minus the base-2 logarithm of each byte's probability, a byte."""
    tokenizer = byte_tokenizer(tiny_tokenizers.byte_level_bpe())
    model = tiny_models.llama(len(tokenizer))
    expected = 0.0
    for text in TEXTS:
        ids = torch.tensor([[tokenizer.eos_token_id, *text.encode()]])
        with torch.no_grad():
            probabilities = model(input_ids=ids).logits[0].double().softmax(-1).numpy()
        expected -= sum(np.log2(probabilities[i, byte]) for i, byte in enumerate(text.encode()))
    expected /= sum(len(text.encode()) for text in TEXTS)
    assert bits_per_byte(model, tokenizer, TEXTS) == pytest.approx(expected, rel=1e-6)


def test_windows_of_a_byte_model_are_four_times_as_long(monkeypatch):
    monkeypatch.setattr(module, "MAX_LENGTH", 16)
    seen = []

    def nats(*_args, max_length, **_kwargs):
        seen.append(max_length)
        return np.zeros(1)

    monkeypatch.setattr(module, "sequence_nats", nats)
    for tokenizer in (tiny_tokenizers.byte_level_bpe(), tiny_tokenizers.bytes_only()):
        bits_per_byte(tiny_models.llama(len(tokenizer)), tokenizer, ["The cat"])
        score_texts(tiny_models.llama(len(tokenizer)), tokenizer, ["The cat"], max_length=1000)
    assert seen == [16, 512, 64, 512]


def test_bos_opens_a_text_where_the_tokenizer_adds_it():
    tokenizer = tiny_tokenizers.byte_level_bpe(add_bos=True)
    model = tiny_models.llama(len(tokenizer))
    ids = tokenizer.encode("The cat sat")
    assert ids[0] == tokenizer.bos_token_id
    found = score_texts(model, tokenizer, ["The cat sat"])
    assert found.nats[0] == pytest.approx(nats_by_hand(model, ids, 1), rel=1e-5)
    assert found.bytes.tolist() == [11]


def test_without_an_opening_token_the_first_token_counts_nothing():
    tokenizer = tiny_tokenizers.byte_level_bpe(specials={})
    model = tiny_models.llama(len(tokenizer))
    ids = tokenizer.encode("The cat sat")
    skipped = len(tokenizer.decode(ids[:1]).encode())
    found = score_texts(model, tokenizer, ["The cat sat", ""])
    assert found.nats[0] == pytest.approx(nats_by_hand(model, ids, 1), rel=1e-5)
    assert found.bytes.tolist() == [11 - skipped, 0]


def test_surplus_rows_get_no_probability(tokenizer, model):
    padded = tiny_models.llama(len(tokenizer) + 64, tied=False)
    plain = tiny_models.llama(len(tokenizer), tied=False)
    state = {k: v[: len(tokenizer)] if "lm_head" in k or "embed" in k else v
             for k, v in padded.state_dict().items()}  # fmt: skip
    plain.load_state_dict(state)
    with torch.no_grad():
        padded.lm_head.weight[len(tokenizer) :] *= 50
    expected = bits_per_byte(plain, tokenizer, TEXTS)
    assert bits_per_byte(padded, tokenizer, TEXTS) == pytest.approx(expected, rel=1e-6)


def test_nothing_to_score(tokenizer, model):
    assert np.isnan(bits_per_byte(model, tokenizer, []))
    assert np.isnan(bits_per_byte(model, tokenizer, [""]))


def test_the_sum_weighs_texts_by_their_bytes(tokenizer, model):
    found = score_texts(model, tokenizer, TEXTS)
    assert found.bits_per_byte == pytest.approx(
        found.nats.sum() / np.log(2) / sum(len(t.encode()) for t in TEXTS)
    )


def test_batching_changes_nothing(tokenizer, model):
    one = score_texts(model, tokenizer, TEXTS, tokens_per_batch=1)
    many = score_texts(model, tokenizer, TEXTS, tokens_per_batch=10_000)
    np.testing.assert_allclose(one.nats, many.nats, rtol=1e-5)


def test_the_mode_of_the_model_is_put_back(tokenizer, model):
    model.train()
    bits_per_byte(model, tokenizer, ["The cat"])
    assert model.training
    model.eval()
    bits_per_byte(model, tokenizer, ["The cat"])
    assert not model.training


def test_low_precision_weights_are_scored_in_float32(tokenizer, model):
    long = ["The cat sat on the mat. " * 40]
    expected = bits_per_byte(model, tokenizer, long)
    low = tiny_models.llama(len(tokenizer)).to(torch.bfloat16)
    assert bits_per_byte(low, tokenizer, long) == pytest.approx(expected, rel=2e-2)


def test_long_texts_are_read_in_windows(tokenizer, model):
    text = "The cat sat on the mat, and the other cats sat. " * 30
    ids = tokenizer.encode(text, add_special_tokens=False)
    eos, limit = tokenizer.eos_token_id, 64
    found = score_texts(model, tokenizer, [text], max_length=limit)
    expected, scored, start = 0.0, 0, 0
    while scored < len(ids):
        body = ids[start : start + limit - 1]
        expected += nats_by_hand(model, [eos, *body], 1 + scored - start)
        scored = start + len(body)
        start += (limit - 1) // 2
    assert found.nats[0] == pytest.approx(expected, rel=1e-5)
    assert found.bytes[0] == len(text.encode())


def test_the_windows_respect_the_models_own_limit(tokenizer):
    model = tiny_models.gpt2(len(tokenizer))  # 256 positions
    assert np.isfinite(bits_per_byte(model, tokenizer, ["The cat sat on the mat. " * 200]))


@given(
    length=st.integers(0, 60),
    first=st.integers(1, 60),
    lead=st.integers(0, 1),
    limit=st.integers(2, 20),
)
def test_windows_score_each_token_once_with_its_context(length, first, lead, limit):
    sequence = Sequence(list(range(length)), first, lead)
    scored = []
    for window in windows(sequence, limit):
        assert len(window.ids) <= limit
        assert window.ids[:lead] == sequence.ids[:lead]
        body = window.ids[lead:]
        assert body == list(range(body[0], body[0] + len(body)))
        scored += window.ids[window.first :]
        assert window.first >= 1
    assert scored == list(range(first, length))


def test_a_window_of_one_token_is_refused():
    with pytest.raises(ConfigError, match="at least 2 tokens"):
        windows(Sequence([1, 2], 1), 1)


def test_unspellable_text_is_refused():
    tokenizer = tiny_tokenizers.characters(["abc "])
    model = tiny_models.llama(len(tokenizer))
    with pytest.raises(DataError, match="cannot spell the text"):
        bits_per_byte(model, tokenizer, ["abc", "xyz"])


class TestResponses:
    def test_prompt_and_response_add_up_to_the_text(self, tokenizer, model):
        text = "The cat sat on the mat."
        whole = score_texts(model, tokenizer, [text]).nats[0]
        ids = [tokenizer.eos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
        encoder = text_encoder(tokenizer)
        ends = encoder.bytes.ends(ids)
        for cut in range(len(text)):
            first = int(np.searchsorted(ends, cut, side="right"))
            found = score(model, tokenizer, [(text[:cut], text[cut:])])
            assert found.nats[0] == pytest.approx(nats_by_hand(model, ids, max(first, 1)), rel=1e-5)
            assert found.bytes[0] == len(text) - cut
            assert found.nats[0] <= whole * (1 + 1e-6)

    def test_a_straddling_token_counts_whole(self, tokenizer, model):
        (token,) = tokenizer.encode(" the", add_special_tokens=False)
        ids = [tokenizer.eos_token_id, token]
        found = score(model, tokenizer, [(" t", "he")])
        assert found.nats[0] == pytest.approx(nats_by_hand(model, ids, 1), rel=1e-5)
        assert found.bytes[0] == 2

    def test_an_empty_response_costs_nothing(self, tokenizer, model):
        found = score(model, tokenizer, [("The cat", "")])
        assert (found.nats[0], found.bytes[0]) == (0.0, 0)

    def test_messages_go_through_the_models_own_template(self):
        specials = tiny_tokenizers.CHAT_SPECIALS
        tokenizer = tiny_tokenizers.byte_level_bpe(
            specials=specials, chat_template=tiny_tokenizers.CHATML
        )
        model = tiny_models.llama(len(tokenizer))
        messages = [{"role": "user", "content": "Hello!"}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text.endswith("assistant\n")
        ids = tokenizer.encode(text + "The cat", add_special_tokens=False)
        first = len(tokenizer.encode(text, add_special_tokens=False))
        found = score(model, tokenizer, [(messages, "The cat")])
        assert found.nats[0] == pytest.approx(nats_by_hand(model, ids, first), rel=1e-5)
        assert found.bytes[0] == 7

    def test_the_names_of_special_tokens_in_messages(self):
        tokenizer = tiny_tokenizers.byte_level_bpe(
            specials=tiny_tokenizers.CHAT_SPECIALS, chat_template=tiny_tokenizers.CHATML
        )
        model = tiny_models.llama(len(tokenizer))
        messages = [{"role": "user", "content": "Hello!"}]
        plain = score(model, tokenizer, [(messages, "a<|im_end|>b")])
        assert plain.bytes[0] == len("a<|im_end|>b")
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        head = tokenizer.encode(prompt, add_special_tokens=False)
        rest = text_encoder(tokenizer).encode("a<|im_end|>b")
        expected = nats_by_hand(model, [*head, *rest], len(head))
        assert plain.nats[0] == pytest.approx(expected, rel=1e-5)
        with pytest.raises(DataError, match="name of a special token"):
            score(model, tokenizer, [([{"role": "user", "content": "a<|im_end|>b"}], "c")])

    def test_messages_without_a_template(self, tokenizer, model):
        with pytest.raises(ConfigError, match="chat template"):
            score(model, tokenizer, [([{"role": "user", "content": "Hello!"}], "The cat")])

    def test_special_names_in_a_response_are_text(self, tokenizer, model):
        (found,) = score(model, tokenizer, [("a", tokenizer.eos_token)]).nats
        ids = text_encoder(tokenizer).encode("a" + tokenizer.eos_token)
        assert tokenizer.eos_token_id not in ids
        expected = nats_by_hand(model, [tokenizer.eos_token_id, *ids], 2)
        assert found == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("style", ["metaspace", "prepend", "gemma"])
    def test_a_prefix_space_moves_no_seam(self, style):
        tokenizer = tiny_tokenizers.metaspace_bpe_with_byte_fallback(style=style)
        model = tiny_models.llama(len(tokenizer))
        encoder = text_encoder(tokenizer)
        ids = encoder.encode("The cat sat")
        spelled = encoder.bytes.spell(ids)
        cut = spelled.index(b" sat")
        first = int(np.searchsorted(encoder.bytes.ends(ids), cut, side="right"))
        found = score(model, tokenizer, [("The cat", " sat")])
        expected = nats_by_hand(model, [encoder.roles.eos, *ids], 1 + first)
        assert found.nats[0] == pytest.approx(expected, rel=1e-5)
        assert found.bytes[0] == 4

    def test_a_normaliser_that_joins_prompt_and_response(self):
        tokenizer = tiny_tokenizers.byte_level_bpe(normalizer=normalizers.NFC())
        model = tiny_models.llama(len(tokenizer))
        found = score(model, tokenizer, [("The cafe", "\u0301 is open")])
        encoder = text_encoder(tokenizer)
        ids = encoder.encode("The caf\u00e9 is open")
        first = int(np.searchsorted(encoder.bytes.ends(ids), len("The caf"), side="right"))
        expected = nats_by_hand(model, [encoder.roles.eos, *ids], 1 + first)
        assert found.nats[0] == pytest.approx(expected, rel=1e-5)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_text_scores_finite(texts):
    texts = [t.encode(errors="ignore").decode() for t in texts]
    tokenizer = tiny_tokenizers.bytes_only()
    model = tiny_models.llama(len(tokenizer))
    found = score_texts(model, tokenizer, texts)
    assert np.isfinite(found.nats).all()
    assert found.bytes.tolist() == [len(t.encode()) for t in texts]


def test_a_model_whose_head_cannot_be_split(tokenizer, model):
    class Bent(type(model)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * output.logits.abs()
            return output

    bent = Bent(model.config).eval()
    bent.load_state_dict(model.state_dict())
    ids = [tokenizer.eos_token_id, *tokenizer.encode("The cat", add_special_tokens=False)]
    nats = sequence_nats(
        bent, [Sequence(ids, 1)], vocab_size=len(tokenizer), max_length=64, tokens_per_batch=64
    )
    assert nats[0] == pytest.approx(nats_by_hand(bent, ids, 1), rel=1e-5)
