"""The small parts: finding numbers that are not finite, metrics files, texts, fingerprints."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import TrainerControl, TrainerState

import tiny_training as tiny
from crosstill.errors import ConfigError
from crosstill.training.callbacks import MetricsFile
from crosstill.training.fingerprint import data_fingerprint, tokenizer_fingerprint
from crosstill.training.guard import non_finite
from crosstill.training.meters import Sums, report
from crosstill.training.texts import read_prompts, read_texts, row_text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 500, 999])
def test_one_bad_number_anywhere_is_found(dtype, value, place):
    good = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    bad = torch.ones(1000, dtype=dtype)
    bad[place] = value
    assert non_finite([torch.ones(3, dtype=dtype), bad, bad]) == [1, 2]
    if dtype != torch.float64:  # whose largest numbers do not fit the float32 of the check
        assert non_finite([good]) == []
    assert non_finite([]) == []


def test_metrics_of_steps_that_are_taken_again_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(5)]
    path.write_text("\n".join(lines) + '\n{"step": 4, "lo')
    callback = MetricsFile(tmp_path)
    state = TrainerState(global_step=2, is_world_process_zero=True)
    callback.on_train_begin(None, state, TrainerControl())
    callback.on_log(None, state, TrainerControl(), logs={"loss": torch.tensor(2.0)})
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in found] == [0, 1, 2, 2]
    assert found[-1]["loss"] == 2.0


def test_other_ranks_write_nothing(tmp_path):
    state = TrainerState(is_world_process_zero=False)
    MetricsFile(tmp_path).on_log(None, state, TrainerControl(), logs={"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_sums_divide_what_they_report():
    sums = Sums()
    for value, count in ((2.0, 4.0), (1.0, 2.0)):
        sums.add("value/alm", torch.tensor(value))
        sums.add("count/alm", torch.tensor(count))
        sums.add("value/alm/gap", value)
        sums.add("count/alm/gap", count)
    sums.add("student_bytes", 10)
    sums.add("aligned_bytes", 9)
    line = report(
        sums.total(), {"student_tokens": 7.0, "skipped/empty": 2.0, "skipped/too_long": 0}
    )
    assert line == {
        "loss/alm": 0.5,
        "alm/gap": 0.5,
        "aligned_byte_fraction": 0.9,
        "student_tokens": 7.0,
        "rows_skipped/empty": 2.0,
    }


MESSAGES = [
    {"role": "user", "content": "Hi", "name": None},
    {"role": "assistant", "content": "Hello"},
]


def test_texts_of_every_shape():
    rows = [{"text": "t"}, {"messages": MESSAGES}, {"prompt": "p", "completion": "c"}]
    assert [row_text(row) for row in rows] == ["t", "Hi\nHello", "pc"]


def test_texts_and_prompts_from_files(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read_texts(str(file)) == ["one", "two"]
    chat = [{"role": "user", "content": "Hi"}]
    assert read_prompts({"prose": str(file), "chat": [chat]}) == {
        "prose": ["one", "two"],
        "chat": [chat],
    }
    with pytest.raises(ConfigError, match=r"prompts\.chat"):
        read_prompts({"chat": [3]})


def test_fingerprints_tell_data_apart():
    rows = [{"text": "a"}, {"text": "b"}]
    table = Dataset.from_list(rows)
    assert data_fingerprint(table) == data_fingerprint(Dataset.from_list(rows))
    others = [rows[::-1], rows[:1], [{"text": "a"}, {"text": "c"}]]
    found = {data_fingerprint(Dataset.from_list(other)) for other in others}
    assert len(found | {data_fingerprint(table)}) == 4
    assert data_fingerprint(rows) == data_fingerprint(list(rows))
    assert data_fingerprint(iter(rows)) == "stream"


def test_fingerprints_tell_tokenizers_apart_but_not_how_they_were_called():
    tokenizer = tiny.tiny_tokenizers.byte_level_bpe(vocab_size=300)
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "bb"], padding=False, truncation=True, max_length=1)
    assert tokenizer_fingerprint(tokenizer) == before
    tokenizer.chat_template = "{{ messages }}"
    assert tokenizer_fingerprint(tokenizer) != before
    assert tokenizer_fingerprint(tiny.teacher_tokenizer()) != before
