"""The whole path on a real model, SmolLM2-135M-Instruct, which `make teacher` fetches."""

import copy
import math
import os
import pydoc_data.topics
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from demo_parts import student as demo_student
from demo_parts import teacher as demo_teacher

from crosstill.data.collate import PairCollator
from crosstill.evaluation.bits_per_byte import bits_per_byte
from crosstill.evaluation.divergence import sample_teacher, teacher_divergence
from crosstill.heads import HeadSplit, split_head
from crosstill.hub import load_model, load_tokenizer
from crosstill.objectives import create_mix
from crosstill.teachers.local import LocalTeacher
from crosstill.text.encode import text_encoder
from crosstill.transfer.embeddings import transplant

PROSE = sorted(pydoc_data.topics.topics.values(), key=len)[-40:]


@pytest.fixture(scope="module")
def teacher():
    """The real model in float32 and its tokenizer; skipped where it is not in the cache."""
    folder = demo_teacher.cache_folder() / "SmolLM2-135M-Instruct"
    if not (folder / "config.json").is_file():
        reason = f"{folder} does not hold the real teacher: run `make teacher`"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return load_model(folder, dtype="float32"), load_tokenizer(folder)


@pytest.fixture(scope="module")
def student(teacher):
    """The teacher's network with a small vocabulary of its own."""
    model, tokenizer = teacher
    target = demo_student.train_tokenizer(PROSE, tokenizer, size=2_000)
    model = copy.deepcopy(model).requires_grad_(True)  # the teacher may be frozen already
    report = transplant(model, tokenizer, target)
    assert report.averaged > 0
    return model, target


def loss_and_gradient(student, teacher, rows, *, fused: bool):
    """ALM and SFT together on real rows: the loss, and the gradients of three weights."""
    (model, tokenizer), (teacher_model, teacher_tokenizer) = student, teacher
    encoders = text_encoder(tokenizer), text_encoder(teacher_tokenizer)
    batch = PairCollator(*encoders, max_length=256)(rows)
    mix = create_mix(
        {"alm": {"weight": 1.0, "temperature": 5.0}, "sft": {"weight": 0.1}},
        boundary_mask=torch.from_numpy(encoders[0].bytes.boundary()),
        vocab_size=encoders[0].vocab_size,
    )
    signal = LocalTeacher(teacher_model, encoders[1])(batch)
    counts = mix.counts(batch, signal)
    model.zero_grad()
    ids, mask = batch["student_input_ids"], batch["student_attention_mask"]
    if fused:
        head = split_head(model)
        assert isinstance(head, HeadSplit)
        loss = mix.from_hidden(head.hidden(model, ids, mask), head, batch, signal, counts)
    else:
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = mix.from_logits(logits, batch, signal, counts)
    loss.total.backward()
    layers = model.model.layers
    weights = (
        model.get_input_embeddings().weight,
        layers[0].self_attn.q_proj.weight,
        layers[-1].mlp.down_proj.weight,
    )
    return loss, [weight.grad.clone() for weight in weights]


def test_bits_per_byte_is_a_direct_computation(teacher):
    model, tokenizer = teacher
    encoder, text = text_encoder(tokenizer), PROSE[0][:1_500]
    ids = torch.tensor([[encoder.roles.eos, *encoder.encode(text)]])
    with torch.no_grad():
        logprob = model(input_ids=ids).logits.double().log_softmax(-1)
    chosen = logprob[0, :-1].gather(1, ids[0, 1:, None])
    direct = -chosen.sum().item() / math.log(2) / len(text.encode())
    assert bits_per_byte(model, tokenizer, [text]) == pytest.approx(direct, rel=1e-5)
    assert 0.3 < direct < 2.0  # a model that reads English


def test_a_teacher_is_at_no_distance_from_itself(teacher, student, tmp_path):
    prompts = {"prose": ["The easiest way to learn is", "In the morning the old man"]}
    samples = sample_teacher(
        *teacher,
        prompts,
        max_new_tokens=24,
        samples_per_prompt=1,
        seed=0,
        path=tmp_path / "samples.jsonl",
    )
    itself = teacher_divergence(*teacher, *teacher, samples)
    assert itself.overall.divergence == pytest.approx(0.0, abs=1e-5)
    assert teacher_divergence(*student, *teacher, samples).overall.divergence > 0.05


def test_a_teacher_has_nothing_to_teach_itself(teacher):
    rows = [{"text": PROSE[1][:400]}]
    twin = copy.deepcopy(teacher[0]).requires_grad_(True), teacher[1]
    loss, gradients = loss_and_gradient(twin, teacher, rows, fused=True)
    assert loss.parts["alm"].count > 20
    assert loss.parts["alm"].total / loss.parts["alm"].count < 1e-6
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_the_fused_head_is_the_plain_one_on_a_real_student(teacher, student):
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": PROSE[2][:300]}]
    rows = [{"text": PROSE[3][:400]}, {"messages": chat}]
    plain, expected = loss_and_gradient(student, teacher, rows, fused=False)
    fused, found = loss_and_gradient(student, teacher, rows, fused=True)
    assert plain.parts["alm"].total > 0.1
    assert fused.total.item() == pytest.approx(plain.total.item(), rel=1e-5)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
