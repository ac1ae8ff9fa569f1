"""The rows of a run are made once, and made anew where anything that decides them has changed."""

import pytest
from datasets import Dataset

import tiny_tokenizers
import tiny_training as tiny
from crosstill.teachers.local import LocalTeacher
from crosstill.teachers.reword import Rewording
from crosstill.text.encode import text_encoder
from crosstill.training.rewording import reworded

TEXTS = ["The cat sat on the mat, and the other cats sat.", "Hello world! How are you today?"]


def made(folder, *, share=0.5, texts=TEXTS, teacher_seed=1, small=False, **settings):
    teacher = LocalTeacher(tiny.teacher(teacher_seed), tiny.teacher_tokenizer())
    target = tiny.student_tokenizer() if small else tiny_tokenizers.bytes_only()
    stages = [tiny.config(folder, **{"max_steps": -1, **settings})]
    rows = Dataset.from_list([{"text": text} for text in texts])
    return reworded(rows, teacher, text_encoder(target), share, stages, folder)["text"]


def test_they_are_made_once(tmp_path, monkeypatch):
    first = made(tmp_path)
    assert first != TEXTS
    monkeypatch.setattr(Rewording, "rows", None)  # it is not made again
    assert made(tmp_path) == first


@pytest.mark.parametrize(
    "change",
    [
        {"share": 1.0},
        {"texts": [TEXTS[0], TEXTS[1] * 2]},
        {"teacher_seed": 2},
        {"small": True},
        {"seed": 7},
        {"max_length": 4},
    ],
)
def test_what_has_changed_is_made_anew(tmp_path, change):
    made(tmp_path)
    assert made(tmp_path, **change) == made(tmp_path / "alone", **change)


def test_without_a_share_they_are_the_rows_themselves(tmp_path):
    assert made(tmp_path, share=0) == TEXTS
    assert not list(tmp_path.iterdir())


def test_no_more_rows_are_made_than_are_read(tmp_path):
    found = made(tmp_path, texts=TEXTS * 20, max_steps=3, per_device_train_batch_size=2)
    assert len(found) == 6
