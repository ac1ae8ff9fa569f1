"""Batches: shapes, padding, counts of skipped rows, and workers."""

import logging
import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from crosstill.data.collate import REASONS, PairCollator
from crosstill.data.pairs import pair_row
from crosstill.errors import ConfigError
from crosstill.text.encode import text_encoder
from text.chat import family_tokenizer
from tiny_tokenizers import byte_level_bpe

STUDENT = text_encoder(family_tokenizer("qwen", vocab_size=330))
TEACHER = text_encoder(family_tokenizer("llama3-instruct", vocab_size=450))
CHAT = {
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The cat"}]
}
ROWS = [{"text": "The cat sat on the mat"}, CHAT, {"prompt": "Hello", "completion": " world"}]
BAD = {
    "malformed": {"question": "a"},
    "bad_unicode": {"text": "\ud800"},
    "empty": {"text": ""},
    "template": {"messages": [{"role": "user", "content": "boom"}]},
    "unsupervised": {"messages": [{"role": "user", "content": "Hi"}]},
    "too_long": {"prompt": "The cat " * 50, "completion": "sat"},
}


def collator(**options):
    return PairCollator(STUDENT, TEACHER, **{"max_length": 64, **options})


def test_keys_types_and_shapes():
    batch = collator()(ROWS)
    student, teacher = batch["student_input_ids"].shape, batch["teacher_input_ids"].shape
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "student_input_ids": (student, torch.int64),
        "student_attention_mask": (student, torch.int64),
        "student_labels": (student, torch.int64),
        "student_chunk": (student, torch.int64),
        "teacher_input_ids": (teacher, torch.int64),
        "teacher_attention_mask": (teacher, torch.int64),
        "teacher_labels": (teacher, torch.int64),
        "teacher_chunk": (teacher, torch.int64),
        "row_index": ((3,), torch.int64),
        "student_bytes": ((3,), torch.int64),
        "aligned_bytes": ((3,), torch.int64),
        "cut_bytes": ((3,), torch.int64),
        "skipped": ((len(REASONS),), torch.int64),
    }
    assert student[0] == teacher[0] == 3


@pytest.mark.parametrize("loss_on", ["completion", "assistant", "all"])
def test_a_batch_is_its_rows_and_padding_on_the_right(loss_on):
    batch = collator(loss_on=loss_on)(ROWS)
    for i, row in enumerate(ROWS):
        alone = pair_row(row, STUDENT, TEACHER, max_length=64, loss_on=loss_on)
        for side in ("student", "teacher"):
            ids = getattr(alone, f"{side}_ids")
            padding = batch[f"{side}_input_ids"].shape[1] - len(ids)
            assert batch[f"{side}_attention_mask"][i].tolist() == [1] * len(ids) + [0] * padding
            assert batch[f"{side}_input_ids"][i, : len(ids)].tolist() == ids.tolist()
            chunk = getattr(alone, f"{side}_chunk").tolist()
            assert batch[f"{side}_chunk"][i].tolist() == chunk + [-1] * padding
        labels = batch["student_labels"][i].tolist()
        assert labels[: len(alone.student_ids)] == alone.student_labels.tolist()
        assert set(labels[len(alone.student_ids) :]) <= {-100}
        assert batch["student_bytes"][i] == alone.student_bytes
        assert batch["aligned_bytes"][i] == alone.aligned_bytes
    assert batch["skipped"].sum() == 0


def test_padding_of_a_pad_token_that_is_the_eos_hides_no_eos():
    tokenizer = byte_level_bpe(specials={"eos_token": "</s>"})
    tokenizer.pad_token = "</s>"
    encoder = text_encoder(tokenizer)
    batch = PairCollator(encoder, TEACHER, max_length=64)([{"text": "a cat"}, {"text": "a " * 20}])
    ends = batch["student_attention_mask"].sum(1) - 1
    for i, end in enumerate(ends):
        assert batch["student_labels"][i, end] == encoder.roles.eos
        assert batch["student_chunk"][i, end] == batch["student_chunk"][i].max()
        assert (batch["student_labels"][i, end + 1 :] == -100).all()


def test_row_index_is_kept():
    rows = [{**row, "row_index": 10 + i} for i, row in enumerate(ROWS)]
    assert collator()(rows)["row_index"].tolist() == [10, 11, 12]
    assert collator()(ROWS)["row_index"].tolist() == [-1, -1, -1]


def refusing(tokenizer_name):
    tokenizer = family_tokenizer(tokenizer_name, vocab_size=330)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content == 'boom' %}{{ raise_exception('no') }}{% endif %}"
        + tokenizer.chat_template.removeprefix("{% for m in messages %}")
    )
    return text_encoder(tokenizer)


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_is_an_empty_one_and_counted(reason, caplog):
    collate = PairCollator(refusing("qwen"), TEACHER, max_length=32)
    with caplog.at_level(logging.WARNING):
        batch = collate([ROWS[0], {**BAD[reason], "row_index": 5}, ROWS[2], BAD[reason]])
    counts = dict(zip(REASONS, batch["skipped"].tolist(), strict=True))
    assert {name: n for name, n in counts.items() if n} == {reason: 2}
    for side in ("student", "teacher"):
        assert batch[f"{side}_attention_mask"].sum(1)[[1, 3]].tolist() == [1, 1]
        assert (batch[f"{side}_chunk"][[1, 3]] == -1).all()
    assert (batch["student_labels"][[1, 3]] == -100).all()
    assert batch["student_bytes"].tolist()[1] == batch["aligned_bytes"].tolist()[1] == 0
    assert batch["row_index"].tolist() == [-1, 5, -1, -1]
    good = collate([ROWS[0], ROWS[2]])
    width = good["student_input_ids"].shape[1]
    assert torch.equal(batch["student_chunk"][[0, 2], :width], good["student_chunk"])
    assert caplog.text.count("skipped a row") == 1  # once a reason; the rest is in the counts
    assert reason in caplog.text


def test_a_batch_of_bad_rows_only():
    batch = collator()([BAD["empty"], BAD["malformed"]])
    assert batch["student_input_ids"].shape == (2, 1)
    assert batch["skipped"].sum() == 2


def test_no_chat_template_stops_the_run():
    base = text_encoder(byte_level_bpe())
    with pytest.raises(ConfigError, match="chat template"):
        PairCollator(base, TEACHER, max_length=64)([CHAT])


@pytest.mark.parametrize(
    "options", [{"max_length": 1}, {"loss_on": "prompt"}, {"pad_to_multiple_of": 0}]
)
def test_wrong_settings_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        collator(**options)


def test_template_arguments_of_the_student_serve_the_teacher_unless_it_has_its_own():
    kwargs = {"add_generation_prompt": True}
    both = collator(chat_template_kwargs=kwargs)([CHAT])
    own = collator(chat_template_kwargs=kwargs, teacher_chat_template_kwargs={})([CHAT])
    assert both["teacher_input_ids"].shape[1] > own["teacher_input_ids"].shape[1]


def test_pickled_collator_makes_the_same_batch():
    collate = collator(chat_template_kwargs={"a": 1})
    again = pickle.loads(pickle.dumps(collate))  # noqa: S301
    first, second = collate(ROWS), again(ROWS)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_data_loader_workers_see_every_row_once():
    rows = [{"text": f"The cat number {i}", "row_index": i} for i in range(7)]
    loader = DataLoader(Dataset.from_list(rows), batch_size=2, num_workers=1, collate_fn=collator())
    batches = list(loader)
    assert np.concatenate([batch["row_index"] for batch in batches]).tolist() == list(range(7))


def test_bytes_of_a_cut_row_add_up():
    row = {"text": "The cat sat on the mat. " * 10}
    batch = collator(max_length=20)([row])
    assert batch["student_bytes"] + batch["cut_bytes"] == len(row["text"])
    assert batch["cut_bytes"] > 0
    assert batch["student_attention_mask"].sum() <= 20


@pytest.mark.parametrize("multiple", [1, 8, 32])
def test_padding_to_a_multiple_adds_nothing_but_padding(multiple):
    plain, padded = collator()(ROWS), collator(pad_to_multiple_of=multiple)(ROWS)
    for side in ("student", "teacher"):
        length = plain[f"{side}_input_ids"].shape[1]
        width = padded[f"{side}_input_ids"].shape[1]
        assert width % multiple == 0
        assert length <= width < length + multiple
        assert not padded[f"{side}_attention_mask"][:, length:].any()
        assert (padded[f"{side}_chunk"][:, length:] == -1).all()
    assert (padded["student_labels"][:, plain["student_labels"].shape[1] :] == -100).all()
    for key, value in plain.items():
        found = padded[key]
        assert torch.equal(found if value.ndim < 2 else found[:, : value.shape[1]], value)
