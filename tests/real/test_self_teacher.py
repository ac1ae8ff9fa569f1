"""The real model as its own teacher: bit for bit what an untouched copy says, with one body."""

import copy
import os
import pydoc_data.topics
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from demo_parts import student as demo_student
from demo_parts import teacher as demo_teacher

from crosstill import DistillConfig, DistillTrainer
from crosstill.hub import load_model, load_tokenizer
from crosstill.teachers.local import LocalTeacher
from crosstill.training.fingerprint import model_fingerprint
from crosstill.transfer.embeddings import transplant
from crosstill.transfer.modes import prepare_mode
from crosstill.transfer.self_teacher import self_teacher

pytestmark = pytest.mark.slow
PROSE = sorted(pydoc_data.topics.topics.values(), key=len)[-40:]


@pytest.fixture(scope="module")
def source():
    """The real model in float32 and its tokenizer; skipped where it is not in the cache."""
    folder = demo_teacher.cache_folder() / "SmolLM2-135M-Instruct"
    if not (folder / "config.json").is_file():
        reason = f"{folder} does not hold the real teacher: run `make teacher`"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return load_model(folder, dtype="float32"), load_tokenizer(folder)


def test_the_real_model_teaches_itself(source, tmp_path):
    pytest.importorskip("peft")
    model, tokenizer = copy.deepcopy(source[0]), source[1]
    target = demo_student.train_tokenizer(PROSE, tokenizer, size=2_000)
    teacher = self_teacher(model, tokenizer, ["lora"])
    transplant(model, tokenizer, target)
    student = prepare_mode(model, "lora", peft={"lora_dropout": 0.2})
    run = DistillTrainer(
        student,
        teacher,
        DistillConfig(
            output_dir=str(tmp_path),
            objectives="prefix_kl",
            per_device_train_batch_size=2,
            max_length=128,
            max_steps=3,
            learning_rate=1e-3,
            gradient_checkpointing=True,
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        [{"text": text[:400]} for text in PROSE[:6]],
        processing_class=target,
    )
    run.train()
    losses = [line["loss"] for line in run.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]
    batch = run.data_collator([{"text": text[400:1000]} for text in PROSE[:2]])
    mine, theirs = teacher(batch, (0, 15, 30)), LocalTeacher(*source)(batch, (0, 15, 30))
    assert torch.equal(mine.hidden, theirs.hidden)
    assert torch.equal(mine.logprob, theirs.logprob)
    assert torch.equal(mine.boundary, theirs.boundary)
    assert all(torch.equal(mine.layers[i], theirs.layers[i]) for i in (0, 15, 30))
    assert model_fingerprint(teacher.model) == model_fingerprint(source[0])
    # 30 blocks of weights are there once; the teacher has but its table for itself
    own = {w.data_ptr() for w in student.parameters()}
    alone = [n for n, w in teacher.model.named_parameters() if w.data_ptr() not in own]
    assert alone == ["model.embed_tokens.weight"]
