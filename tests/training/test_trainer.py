"""The trainer on tiny models: what it changes, what it never changes, what it says."""

import json
import logging
import warnings

import pytest
import torch
import transformers as hf

import tiny_models
import tiny_tokenizers
import tiny_training as tiny
from crosstill.errors import ConfigError, DataError, NumericsError


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_teacher_never_changes_and_the_student_does(tmp_path):
    teacher, student = tiny.teacher(attention_dropout=0.5).train(), tiny.student()
    before, untrained = weights(teacher), weights(student)
    run = tiny.trainer(tmp_path, teacher_model=teacher, model=student)
    run.train()
    assert same(before, weights(teacher))
    assert not same(untrained, weights(student))
    assert not teacher.training
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


def test_surplus_rows_of_the_students_head_get_no_gradient(tmp_path):
    student = tiny.student()
    before = student.lm_head.weight[-3:].clone()
    tiny.trainer(tmp_path, model=student).train()
    assert torch.equal(student.lm_head.weight[-3:], before)


def test_a_log_line_says_what_the_step_was(tmp_path):
    run = tiny.trainer(tmp_path, objectives={"alm": {"weight": 2.0}, "sft": {"weight": 0.5}})
    run.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    for line in lines[:4]:
        assert line["loss"] == pytest.approx(
            2.0 * line["loss/alm"] + 0.5 * line["loss/sft"], rel=1e-5
        )
        assert line["alm/gap"] > 0
        assert 0.5 < line["aligned_byte_fraction"] <= 1.0
        assert 1.0 < line["bits_per_byte"] < 20.0
        assert line["grad_norm"] > 0
    assert lines[3]["student_tokens"] > lines[0]["student_tokens"] > 0


@pytest.mark.parametrize("fused", [True, False])
def test_bits_per_byte_are_those_of_the_supervised_bytes(tmp_path, fused):
    run = tiny.trainer(
        tmp_path,
        max_steps=1,
        objectives="sft",
        fused_head=fused,
        # Without an end of text every supervised token spells bytes.
        train_dataset=[{"prompt": "Count: ", "completion": "one two three"}] * 4,
    )
    run.train()
    line = run.state.log_history[0]
    batch = run.data_collator([run.train_dataset[0]])
    labels = batch["student_labels"][0]
    taught = labels[labels >= 0]
    spelled = run.student_encoder.bytes
    content = [i for i in taught.tolist() if not spelled.special[i]]
    with torch.no_grad():
        logits = tiny.student()(batch["student_input_ids"]).logits[0, :-1, :300].log_softmax(-1)
    kept = (labels[1:] >= 0) & torch.tensor(~spelled.special)[labels[1:].clamp(min=0)]
    nats = -logits[kept].gather(1, labels[1:][kept][:, None]).sum()
    size = len(spelled.spell(content))
    assert line["bits_per_byte"] == pytest.approx(float(nats) / 0.6931472 / size, rel=1e-5)


def test_skipped_rows_are_counted_by_reason(tmp_path):
    rows = [*tiny.rows(3), {"text": ""}] * 2
    run = tiny.trainer(tmp_path, train_dataset=rows, max_steps=2)
    run.train()
    lines = [line for line in run.state.log_history if "loss" in line]
    assert lines[-1]["rows_skipped/empty"] == 2


def test_a_step_without_any_chunk_is_taken_and_changes_nothing(tmp_path):
    student = tiny.student()
    before = weights(student)
    run = tiny.trainer(tmp_path, model=student, train_dataset=[{"text": ""}] * 4, max_steps=1)
    run.train()
    assert tiny.losses(run) == [0.0]
    assert same(before, weights(student))


def test_non_finite_loss_stops_before_a_weight_changes(tmp_path):
    student = tiny.student()
    keep = weights(student)
    run = tiny.trainer(tmp_path, model=student, objectives="sft", logging_steps=10)

    class Poison(hf.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                keep.update(weights(student))
                student.lm_head.register_forward_pre_hook(lambda _, x: (x[0] * float("nan"),))

    run.add_callback(Poison())
    with pytest.raises(NumericsError, match=r"loss is nan at step 3 in rows \[.*objective sft"):
        run.train()
    assert same(keep, weights(student))
    note = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (note["step"], note["objectives"]) == (3, ["sft"])
    assert len(note["rows"]) == len(note["student_input_ids"]) == 4


@pytest.mark.parametrize(("clip", "where"), [(1.0, "up_proj"), (0.0, "every parameter")])
def test_non_finite_gradient_stops_before_a_weight_changes(tmp_path, clip, where):
    student = tiny.student()
    keep = weights(student)
    run = tiny.trainer(tmp_path, model=student, max_grad_norm=clip)
    weight = student.model.layers[0].mlp.up_proj.weight
    weight.register_hook(lambda grad: grad.index_fill(0, torch.tensor([0]), float("inf")))
    with pytest.raises(NumericsError, match=r"not finite at step 1 in rows \[\d.*" + where):
        run.train()
    assert same(keep, weights(student))


def test_gemma2_with_a_soft_cap(tmp_path):
    def steps(fused):
        student = tiny_models.gemma2(len(tiny.student_tokenizer()), seed=3)
        run = tiny.trainer(tmp_path / str(fused), model=student, fused_head=fused)
        run.train()
        return run, tiny.losses(run)

    run, fused = steps(True)
    assert run.head is not None
    assert run.head.softcap == 2.0
    assert fused == pytest.approx(steps(False)[1], rel=1e-4)


def test_a_teacher_with_a_soft_cap_scores_as_its_own_logits(tmp_path):
    teacher = tiny_models.gemma2(len(tiny.teacher_tokenizer()), seed=4)
    run = tiny.trainer(tmp_path, teacher_model=teacher)
    run.train()
    assert run.teacher.plain_reason is None


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_trains_the_adapter_alone(tmp_path, checkpointing):
    peft = pytest.importorskip("peft")
    student = tiny.student()
    before = weights(student)
    run = tiny.trainer(
        tmp_path,
        model=student,
        peft_config=peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"]),
        activation_checkpointing=checkpointing,
        save_strategy="steps",
        save_steps=2,
        learning_rate=1e-2,
    )
    assert run.head is not None
    run.train()
    after = {n.replace("base_layer.", ""): v for n, v in student.state_dict().items()}
    assert same(before, after)
    moved = [v for n, v in run.model.named_parameters() if "lora_B" in n]
    assert all(v.abs().max() > 0 for v in moved)
    assert (tmp_path / "checkpoint-4" / "adapter_model.safetensors").exists()


def test_lora_resumes_where_it_was(tmp_path):
    peft = pytest.importorskip("peft")

    def run_of(folder):
        config = peft.LoraConfig(r=4, target_modules=["q_proj"])
        return tiny.trainer(folder, peft_config=config, save_strategy="steps", save_steps=2)

    whole = run_of(tmp_path)
    whole.train()
    (tmp_path / "checkpoint-4").rename(tmp_path / "gone")
    resumed = run_of(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(whole.model), weights(resumed.model))


def test_activation_checkpointing_gives_the_same_losses(tmp_path):
    runs = []
    for number, checkpointing in enumerate((False, True)):
        run = tiny.trainer(tmp_path / str(number), activation_checkpointing=checkpointing)
        run.train()
        runs.append(tiny.losses(run))
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)


def test_bfloat16_comes_close(tmp_path):
    runs = []
    for bf16 in (False, True):
        run = tiny.trainer(
            tmp_path / str(bf16),
            bf16=bf16,
            teacher_model=tiny.teacher().to(torch.bfloat16 if bf16 else torch.float32),
            objectives={"alm": {"temperature": 1.0}, "sft": {}},
        )
        run.train()
        assert run.head is not None
        runs.append(tiny.losses(run))
    assert runs[0] != runs[1]
    assert runs[0] == pytest.approx(runs[1], rel=0.05)


def test_one_tokenizer_for_both(tmp_path):
    teacher = tiny.student(seed=9)
    run = tiny.trainer(
        tmp_path,
        teacher_model=teacher,
        teacher_processing_class=tiny.student_tokenizer(),
        train_dataset=[{"text": text} for text in tiny.SENTENCES],
    )
    run.train()
    line = run.state.log_history[0]
    assert 0.95 < line["aligned_byte_fraction"] < 1.0  # nothing predicts the first token
    twin = tiny.trainer(
        tmp_path / "twin",
        model=tiny.student(seed=9),
        teacher_model=teacher,
        teacher_processing_class=tiny.student_tokenizer(),
        max_steps=1,
    )
    twin.train()
    assert tiny.losses(twin)[0] == pytest.approx(0.0, abs=1e-6)


def test_padding_that_is_also_the_end_of_text_masks_no_end(tmp_path):
    specials = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    tokenizer = tiny_tokenizers.byte_level_bpe(vocab_size=300, specials=specials)
    tokenizer.pad_token = tokenizer.eos_token
    rows = [{"text": "Hi."}, {"prompt": "Count: ", "completion": "one two three four"}]
    run = tiny.trainer(tmp_path, processing_class=tokenizer, train_dataset=rows)
    batch = run.data_collator([run.train_dataset[i] for i in range(2)])
    ends = (batch["student_labels"] == tokenizer.eos_token_id).sum(1)
    assert ends.tolist() == [1, 1]


def test_workers_change_nothing(tmp_path):
    runs = []
    for workers in (0, 2):
        run = tiny.trainer(tmp_path / str(workers), dataloader_num_workers=workers, max_steps=3)
        run.train()
        runs.append(tiny.losses(run))
    assert runs[0] == runs[1]


def test_nothing_is_said_of_memory_that_only_an_accelerator_pins(tmp_path):
    trainer = tiny.trainer(tmp_path, use_cpu=False)
    if trainer.args.device.type != "cpu":
        pytest.skip("there is an accelerator")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(iter(trainer.get_train_dataloader()))


def test_two_runs_are_bit_equal(tmp_path):
    runs = []
    for number in range(2):
        run = tiny.trainer(tmp_path / str(number), model=tiny.student(attention_dropout=0.3))
        run.train()
        runs.append((tiny.losses(run), weights(run.model)))
    assert runs[0][0] == runs[1][0]
    assert same(runs[0][1], runs[1][1])


def test_evaluation_sums_before_it_divides(tmp_path):
    found = []
    for size in (1, 3, 8):
        run = tiny.trainer(
            tmp_path / str(size),
            eval_dataset=tiny.rows(8),
            per_device_eval_batch_size=size,
            objectives={"alm": {"weight": 2.0}, "sft": {}},
        )
        found.append(run.evaluate())
    for metrics in found:
        assert metrics["eval_loss"] == pytest.approx(found[0]["eval_loss"], rel=1e-5)
        assert metrics["eval_loss"] == pytest.approx(
            2 * metrics["eval_loss/alm"] + metrics["eval_loss/sft"]
        )
        assert metrics["eval_supervised_bits_per_byte"] == pytest.approx(
            found[0]["eval_supervised_bits_per_byte"], rel=1e-5
        )


def test_evaluation_during_training_changes_no_step(tmp_path):
    plain = tiny.trainer(tmp_path / "a", model=tiny.student(attention_dropout=0.3))
    plain.train()
    sets = {"one": tiny.rows(4), "two": tiny.CHATS[:0] + tiny.rows(3)}
    measured = tiny.trainer(
        tmp_path / "b",
        model=tiny.student(attention_dropout=0.3),
        eval_dataset=sets,
        eval_strategy="steps",
        eval_steps=1,
    )
    measured.train()
    assert tiny.losses(plain) == tiny.losses(measured)
    assert sum("eval_two_loss" in line for line in measured.state.log_history) == 4


def test_the_saved_model_is_the_trained_one(tmp_path):
    run = tiny.trainer(tmp_path, save_strategy="steps", save_steps=4)
    run.train()
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    assert same(weights(run.model), weights(loaded))
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "checkpoint-4")
    assert tokenizer("Hello").input_ids == tiny.student_tokenizer()("Hello").input_ids


def test_why_the_plain_form_is_used_is_said_once(tmp_path, caplog):
    class Shifted(hf.LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits + torch.arange(out.logits.shape[-1])
            return out

    model = Shifted(tiny.student().config)
    with caplog.at_level(logging.WARNING, "crosstill"):
        run = tiny.trainer(tmp_path, model=model, max_steps=2)
        run.train()
    assert run.head is None
    assert sum("post-processes" in r.getMessage() for r in caplog.records) == 1
    with pytest.raises(ConfigError, match="fused_head is true, but"):
        tiny.trainer(tmp_path / "b", model=model, fused_head=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"processing_class": None}, "processing_class"),
        ({"teacher_processing_class": None}, "teacher_processing_class"),
        ({"model": "no/such/folder"}, "folder"),
    ],
)
def test_what_cannot_start_is_said(tmp_path, given, message):
    with pytest.raises(ConfigError, match=message):
        tiny.trainer(tmp_path, **given)


def test_student_and_teacher_must_be_two(tmp_path):
    model = tiny.student()
    with pytest.raises(ConfigError, match="one object"):
        tiny.trainer(
            tmp_path,
            model=model,
            teacher_model=model,
            teacher_processing_class=tiny.student_tokenizer(),
        )


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="do not belong together"):
        tiny.trainer(tmp_path, processing_class=tiny.teacher_tokenizer())


def test_no_rows_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no row"):
        tiny.trainer(tmp_path, train_dataset=[])
    frozen = tiny.student().requires_grad_(False)
    with pytest.raises(ConfigError, match="frozen"):
        tiny.trainer(tmp_path, model=frozen)


def test_by_name(tmp_path):
    for name, model, tokenizer in (
        ("student", tiny.student(), tiny.student_tokenizer()),
        ("teacher", tiny.teacher(), tiny.teacher_tokenizer()),
    ):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    run = tiny.trainer(
        tmp_path / "run",
        model=str(tmp_path / "student"),
        teacher_model=str(tmp_path / "teacher"),
        processing_class=None,
        teacher_processing_class=None,
        teacher_dtype="bfloat16",
    )
    run.train()
    assert run.teacher.model.dtype == torch.bfloat16
    assert len(tiny.losses(run)) == 4
