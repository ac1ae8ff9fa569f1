"""A second teacher, with the student's tokenizer, beside the first."""

import pytest
import torch

import tiny_tokenizers
import tiny_training as tiny
from crosstill.errors import CheckpointError, ConfigError
from crosstill.objectives.views import own_rendering

BOTH = {
    "alm": {"temperature": 5.0},
    "forward_kl": {"teacher": "same", "weight": 0.25},
}


def run_of(folder, **settings):
    given = {"objectives": BOTH, "same_tokenizer_teacher": tiny.student(seed=7), **settings}
    return tiny.trainer(folder, **given)


def expected_kl(run, model, teacher):
    """Mean forward KL over the supervised tokens of the first rows, from whole logits."""
    batch = run.data_collator([run.train_dataset[i] for i in range(len(run.train_dataset))])
    ids, mask = batch["student_input_ids"], batch["student_attention_mask"]
    with torch.no_grad():
        student, other = (
            m(ids, attention_mask=mask).logits[:, :-1, :300].double().log_softmax(-1)
            for m in (model, teacher)
        )
    taught = batch["student_labels"][:, 1:] >= 0
    return float((other.exp() * (other - student)).sum(-1)[taught].mean())


def test_each_objective_reads_its_own_teacher(tmp_path):
    rows = tiny.rows(4)
    run = run_of(tmp_path, train_dataset=rows, max_steps=1)
    expected = expected_kl(run, tiny.student(), tiny.student(seed=7))
    run.train()
    line = run.state.log_history[0]
    alone = tiny.trainer(
        tmp_path / "alone", train_dataset=rows, max_steps=1, objectives={"alm": BOTH["alm"]}
    )
    alone.train()
    assert line["loss/alm"] == pytest.approx(tiny.losses(alone)[0], rel=1e-4)
    assert line["loss/forward_kl"] == pytest.approx(expected, rel=1e-4)
    assert line["loss"] == pytest.approx(
        line["loss/alm"] + 0.25 * line["loss/forward_kl"], rel=1e-5
    )


@pytest.mark.parametrize("weighting", ["gradmag", "pcgrad", "uncertainty"])
def test_two_teachers_can_be_balanced(tmp_path, weighting):
    run = run_of(tmp_path, weighting=weighting, max_steps=2)
    run.train()
    assert len(tiny.losses(run)) == 2


def test_alm_on_the_students_own_tokens_runs_fused(tmp_path):
    same = {"alm": {"teacher": "same"}, "sft": {}}
    runs = [
        run_of(tmp_path / str(fused), objectives=same, fused_head=fused, max_steps=2)
        for fused in (True, False)
    ]
    for run in runs:
        run.train()
    assert tiny.losses(runs[0]) == pytest.approx(tiny.losses(runs[1]), rel=1e-4)
    twin = run_of(tmp_path / "twin", objectives=same, same_tokenizer_teacher=tiny.student())
    assert twin.evaluate(tiny.rows(4))["eval_loss/alm"] == pytest.approx(0.0, abs=1e-6)


def test_the_own_rendering_has_a_chunk_for_every_supervised_token(tmp_path):
    run = run_of(tmp_path)
    batch = run.data_collator([run.train_dataset[i] for i in range(4)])
    view = own_rendering(batch)
    taught = view["student_labels"] >= 0
    assert torch.equal(view["student_chunk"] >= 0, taught)
    for row, mask in zip(view["teacher_chunk"], taught, strict=True):
        assert row[mask].tolist() == list(range(int(mask.sum())))
    assert view["teacher_input_ids"] is batch["student_input_ids"]
    assert "teacher_labels" in view


def test_a_teacher_by_name_and_one_with_another_tokenizer(tmp_path):
    tiny.student(seed=7).save_pretrained(tmp_path / "same")
    tiny.student_tokenizer().save_pretrained(tmp_path / "same")
    run = run_of(tmp_path / "run", same_tokenizer_teacher=str(tmp_path / "same"), max_steps=1)
    run.train()
    tiny.teacher().save_pretrained(tmp_path / "other")
    tiny.teacher_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="does not have the student's tokenizer: token 300"):
        run_of(tmp_path / "run2", same_tokenizer_teacher=str(tmp_path / "other"))
    shifted = tiny_tokenizers.byte_level_bpe(vocab_size=300, specials=tiny_tokenizers.CHAT_SPECIALS)
    with pytest.raises(ConfigError, match=r"does not have the student's tokenizer: token \d"):
        run_of(tmp_path / "run3", same_tokenizer_teacher_processing_class=shifted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"same_tokenizer_teacher": None}, "give same_tokenizer_teacher"),
        ({"objectives": "alm"}, "no objective reads it"),
        ({"objectives": {"sft": {"teacher": "same"}}}, "reads nothing of a teacher"),
        ({"objectives": {"alm": {"teacher": "third"}}}, r"teacher is 'third': main \| same"),
    ],
)
def test_what_cannot_be_is_said(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        run_of(tmp_path, **settings)


def test_it_is_part_of_what_a_run_is_made_of(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    run_of(tmp_path, **settings).train()
    (tmp_path / "checkpoint-4").rename(tmp_path / "gone")
    other = run_of(tmp_path, same_tokenizer_teacher=tiny.student(seed=8), **settings)
    with pytest.raises(CheckpointError, match="same_tokenizer_teacher: "):
        other.train(resume_from_checkpoint=True)
