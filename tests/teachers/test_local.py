"""A local teacher says what its own logits say, and stays what it is."""

import pytest
import torch

import tiny_models
import tiny_training as tiny
from crosstill.errors import ConfigError
from crosstill.pair import known_ids
from crosstill.teachers.local import LocalTeacher
from crosstill.text.encode import text_encoder

TEXTS = ("Hello world! How are you?", "One, two", "Der Größe nach")


def batch_of(tokenizer) -> dict[str, torch.Tensor]:
    rows = [tokenizer(text).input_ids for text in TEXTS]
    longest = max(map(len, rows))
    return {
        "teacher_input_ids": torch.tensor([ids + [0] * (longest - len(ids)) for ids in rows]),
        "teacher_attention_mask": torch.tensor(
            [[1] * len(ids) + [0] * (longest - len(ids)) for ids in rows]
        ),
    }


def from_logits(model, encoder, batch):
    """The same numbers from whole logits, in float64; rows beyond the tokenizer get nothing."""
    ids, mask = batch["teacher_input_ids"], batch["teacher_attention_mask"]
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits.double()
    logp = logits[..., : encoder.vocab_size].log_softmax(-1)
    token = torch.zeros(ids.shape, dtype=torch.double)
    token[:, 1:] = logp[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    starts = torch.from_numpy(encoder.bytes.boundary())
    return token, logp.masked_fill(~starts, -torch.inf).logsumexp(-1), mask.bool()


MODELS = {
    "llama": lambda rows: tiny_models.llama(rows, tied=False, scale=2.0),
    "gemma2": tiny_models.gemma2,
    "gpt2": tiny_models.gpt2,
}


@pytest.mark.parametrize("surplus", [0, 7])
@pytest.mark.parametrize("name", MODELS)
def test_signal_is_that_of_the_logits(name, surplus):
    tokenizer = tiny.teacher_tokenizer()
    encoder = text_encoder(tokenizer)
    model = MODELS[name](encoder.vocab_size + surplus)
    teacher = LocalTeacher(model, tokenizer)
    assert teacher.plain_reason is None
    batch = batch_of(tokenizer)
    token, boundary, read = from_logits(model, encoder, batch)
    split = teacher(batch)
    teacher.head = None
    for signal in (split, teacher(batch)):
        torch.testing.assert_close(signal.logprob[read].double(), token[read], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            signal.boundary[read].double(), boundary[read], atol=1e-5, rtol=1e-5
        )
        assert (signal.logprob[:, 0] == 0).all()
        assert signal.logprob.dtype == torch.float32
        assert not signal.logprob.requires_grad


def test_padding_changes_nothing():
    tokenizer = tiny.teacher_tokenizer()
    teacher = LocalTeacher(tiny.teacher(), tokenizer)
    batch = batch_of(tokenizer)
    longer = {name: torch.nn.functional.pad(value, (0, 9)) for name, value in batch.items()}
    read = batch["teacher_attention_mask"].bool()
    one, other = teacher(batch), teacher(longer)
    width = read.shape[1]
    torch.testing.assert_close(one.logprob[read], other.logprob[:, :width][read])
    torch.testing.assert_close(one.boundary[read], other.boundary[:, :width][read])


def test_it_is_frozen_and_stays_in_evaluation_mode():
    model = tiny.teacher(attention_dropout=0.9).train()
    teacher = LocalTeacher(model, tiny.teacher_tokenizer())
    batch = batch_of(tiny.teacher_tokenizer())
    first = teacher(batch)
    model.train()  # as someone may who trains the student through a shared wrapper
    torch.testing.assert_close(teacher(batch).logprob, first.logprob)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_bfloat16_comes_close():
    tokenizer = tiny.teacher_tokenizer()
    batch = batch_of(tokenizer)
    exact = LocalTeacher(tiny.teacher(), tokenizer)(batch)
    rounded = LocalTeacher(tiny.teacher().to(torch.bfloat16), tokenizer)(batch)
    read = batch["teacher_attention_mask"].bool()
    assert rounded.logprob.dtype == torch.float32
    assert (exact.logprob - rounded.logprob)[read].abs().mean() < 0.1


def test_ids_without_a_row():
    """Ordinary tokens without a row are an error; special ones are left out."""
    encoder = text_encoder(tiny.teacher_tokenizer())
    with pytest.raises(ConfigError, match="do not belong together"):
        LocalTeacher(tiny_models.llama(encoder.vocab_size - 1), encoder)
    special_last = tiny.tiny_tokenizers.byte_level_bpe(vocab_size=300)
    special_last.add_special_tokens({"additional_special_tokens": ["<image>"]})
    rows = len(special_last) - 1
    assert known_ids("teacher", tiny_models.llama(rows), text_encoder(special_last)) == rows
