"""A teacher that shares its student's body says what the untouched source model says."""

import copy

import pytest
import torch

import tiny_models
import tiny_training as tiny
from crosstill.data.collate import PairCollator
from crosstill.errors import ConfigError
from crosstill.evaluation.divergence import sample_teacher
from crosstill.heads import under_adapters
from crosstill.teachers.local import LocalTeacher
from crosstill.teachers.signal import LogitSignal, StateSignal
from crosstill.text.encode import text_encoder
from crosstill.training.fingerprint import model_fingerprint
from crosstill.transfer.embeddings import transplant
from crosstill.transfer.modes import prepare_mode
from crosstill.transfer.self_teacher import SharedBodyTeacher, self_teacher

SOURCE, TARGET = tiny.teacher_tokenizer(), tiny.student_tokenizer()
LORA = {"r": 4, "lora_alpha": 4, "lora_dropout": 0.5, "init_lora_weights": False}
MODELS = {
    "tied": lambda: tiny_models.llama(len(SOURCE) + 5, tied=True, scale=2.0),
    "untied": lambda: tiny_models.llama(len(SOURCE) + 5, tied=False, scale=2.0),
    "gemma2": lambda: tiny_models.gemma2(len(SOURCE) + 5),
    "gpt2": lambda: tiny_models.gpt2(len(SOURCE) + 5),
}


def pair(model, mode="lora", **peft):
    """A student on the other tokenizer, its teacher, and a teacher of an untouched copy."""
    if mode == "lora":
        pytest.importorskip("peft")
    untouched = LocalTeacher(copy.deepcopy(model), SOURCE)
    teacher = self_teacher(model, SOURCE, [mode])
    transplant(model, SOURCE, TARGET)
    settings = {**LORA, **peft} if mode == "lora" else None
    return prepare_mode(model, mode, peft=settings), teacher, untouched


def run_of(folder, student, teacher, **settings):
    return tiny.trainer(
        folder,
        model=student,
        teacher_model=teacher,
        processing_class=TARGET,
        teacher_processing_class=None,
        **{"learning_rate": 1e-2, **settings},
    )


def batch():
    encoders = text_encoder(TARGET), text_encoder(SOURCE)
    return PairCollator(*encoders, max_length=96)(tiny.rows(5))


def assert_same(one, other):
    assert type(one) is type(other)
    assert torch.equal(one.logprob, other.logprob)
    assert torch.equal(one.boundary, other.boundary)
    row, position = torch.tensor([0, 2, 4]), torch.tensor([1, 5, 3])
    assert torch.equal(one.rows(row, position), other.rows(row, position))
    assert one.layers.keys() == other.layers.keys()
    for index in one.layers:
        assert torch.equal(one.layers[index], other.layers[index])
    if isinstance(one, StateSignal):
        assert torch.equal(one.hidden, other.hidden)


@pytest.mark.parametrize("mode", ["lora", "embeddings", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_its_signal_is_that_of_the_source_bit_by_bit(tmp_path, name, mode):
    """After training, with dropout, an adapter that is not zero, and checkpointing."""
    student, teacher, untouched = pair(MODELS[name](), mode)
    run_of(tmp_path, student, teacher, activation_checkpointing=True, max_steps=2).train()
    found = batch()
    assert_same(teacher(found, (0, 1, 2)), untouched(found, (0, 1, 2)))
    assert model_fingerprint(teacher.model) == model_fingerprint(untouched.model)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_whole_logits_too(name):
    _, teacher, untouched = pair(MODELS[name]())
    teacher.head = untouched.head = None
    one, other = teacher(batch(), (1,)), untouched(batch(), (1,))
    assert isinstance(one, LogitSignal)
    assert_same(one, other)


@pytest.mark.parametrize("mode", ["lora", "embeddings"])
def test_one_body_in_memory(mode):
    student, teacher, _ = pair(MODELS["tied"](), mode)
    theirs = {weight.data_ptr() for weight in teacher.model.parameters()}
    body = under_adapters(student).model.layers
    base = [w for name, w in body.named_parameters() if "lora_" not in name]
    assert base
    assert all(weight.data_ptr() in theirs for weight in base)
    mine = {weight.data_ptr() for weight in student.parameters()}
    alone = [n for n, w in teacher.model.named_parameters() if w.data_ptr() not in mine]
    assert alone == ["model.embed_tokens.weight"]


def test_a_full_student_has_a_body_of_its_own():
    student, teacher, _ = pair(MODELS["tied"](), "full")
    mine = {weight.data_ptr() for weight in student.parameters()}
    assert not any(weight.data_ptr() in mine for weight in teacher.model.parameters())
    assert all(weight.requires_grad for weight in student.parameters())


def test_the_students_mode_stays_what_it_was():
    student, teacher, _ = pair(MODELS["tied"]())
    for training in (True, False):
        student.train(training)
        teacher(batch())
        assert all(module.training is training for module in student.modules())
        assert not teacher.model.training


def test_the_student_is_what_it_would_be_with_a_second_copy(tmp_path):
    """Losses and weights: sharing changes nothing on the student's side either."""
    runs = []
    for shared in (True, False):
        student, teacher, untouched = pair(MODELS["untied"](), lora_dropout=0.1)
        given = teacher if shared else untouched
        settings = {"objectives": "prefix_kl+hidden", "activation_checkpointing": True}
        run = run_of(tmp_path / str(shared), student, given, **settings)
        run.train()
        runs.append((tiny.losses(run), run.model.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert runs[0][0][0] > runs[0][0][-1]
    assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())


def test_it_writes_texts_and_is_asked_in_evaluation(tmp_path):
    student, teacher, untouched = pair(MODELS["tied"]())
    prompts = {"prose": ["Hello", "One, two,"]}
    settings = {"max_new_tokens": 8, "seed": 3}
    written = [
        sample_teacher(t.model, SOURCE, prompts, path=tmp_path / f"{i}.jsonl", **settings)
        for i, t in enumerate((teacher, untouched))
    ]
    assert written[0] == written[1]
    found = []
    for i, given in enumerate((teacher, untouched)):
        run = run_of(tmp_path / str(i), student, given, eval_dataset=tiny.rows(6))
        student.train()
        found.append(run.evaluate())
        assert student.training
    assert found[0]["eval_loss"] == found[1]["eval_loss"] > 0


def test_a_shared_weight_must_not_be_trained(tmp_path):
    student, teacher, untouched = pair(MODELS["tied"](), "embeddings")
    student.model.norm.weight.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"trains model\.norm\.weight"):
        run_of(tmp_path, student, teacher)
    run_of(tmp_path, student, untouched)


def test_a_merged_adapter_is_found_out(tmp_path):
    student, teacher, _ = pair(MODELS["tied"]())
    teacher.check()
    merged = student.merge_and_unload().requires_grad_(False)
    merged.get_input_embeddings().requires_grad_(True)
    with pytest.raises(ConfigError, match="has changed"):
        run_of(tmp_path, merged, teacher)


def test_it_has_its_tokenizer_already(tmp_path):
    student, teacher, _ = pair(MODELS["tied"]())
    with pytest.raises(ConfigError, match="leave it out"):
        tiny.trainer(
            tmp_path,
            model=student,
            teacher_model=teacher,
            processing_class=TARGET,
            teacher_processing_class=TARGET,
        )


def test_it_is_made_before_the_adapter():
    student, _, _ = pair(MODELS["tied"]())
    with pytest.raises(ConfigError, match="first"):
        SharedBodyTeacher(student, TARGET)


def test_which_runs_share():
    for modes, shared in ((["embeddings", "lora"], True), (["embeddings", "full"], False)):
        teacher = self_teacher(MODELS["tied"](), SOURCE, modes)
        assert isinstance(teacher, SharedBodyTeacher) is shared
    with pytest.raises(ConfigError, match="Did you mean 'lora'"):
        self_teacher(MODELS["tied"](), SOURCE, ["lorra"])


def test_arithmetic_of_its_own():
    model = MODELS["tied"]()
    exact = SharedBodyTeacher(model, SOURCE)(batch())
    rounded = SharedBodyTeacher(model, SOURCE, autocast=torch.bfloat16)(batch())
    with torch.autocast("cpu", torch.bfloat16):  # that of the student's pass
        inside = SharedBodyTeacher(model, SOURCE)(batch())
    assert torch.equal(exact.hidden, inside.hidden)
    difference = (exact.hidden - rounded.hidden.float()).abs().max()
    assert 0 < difference < 0.1 * exact.hidden.abs().max()
