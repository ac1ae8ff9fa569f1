"""A plain PyTorch loop that borrows objectives: python examples/plain_loop.py STUDENT TEACHER."""

import sys

import torch

from crosstill.data.collate import PairCollator
from crosstill.hub import load_model, load_tokenizer
from crosstill.objectives import StudentStates, create_mix
from crosstill.pair import model_pair
from crosstill.teachers.local import LocalTeacher
from crosstill.text.encode import text_encoder


def train(student_name, teacher_name, rows, objectives, *, steps, learning_rate=1e-3):
    """Train a student without a trainer; return it and the loss of every step."""
    student, teacher = load_model(student_name, dtype="float32"), load_model(teacher_name)
    encoders = [text_encoder(load_tokenizer(name)) for name in (student_name, teacher_name)]
    collate, ask = PairCollator(*encoders, max_length=256), LocalTeacher(teacher, encoders[1])
    boundary = torch.from_numpy(encoders[0].bytes.boundary())
    mix = create_mix(objectives, boundary_mask=boundary, vocab_size=encoders[0].vocab_size)
    mix.prepare(model_pair(student, encoders[0], teacher, encoders[1]))
    learned = [*student.parameters(), *mix.parts.parameters()]
    optimizer, losses, batch = torch.optim.AdamW(learned, lr=learning_rate), [], collate(rows)
    ids, mask = batch["student_input_ids"], batch["student_attention_mask"]
    for _ in range(steps):
        signal = ask(batch, mix.teacher_layers())
        out = student(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        states = StudentStates(out.hidden_states[-1], dict(enumerate(out.hidden_states)))
        loss = mix.from_logits(out.logits, batch, signal, mix.counts(batch, signal), states=states)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.total.item())
    return student, losses


if __name__ == "__main__":
    rows = [{"text": "The cat sat on the mat."}, {"text": "def add(a, b):\n    return a + b\n"}]
    print(train(*sys.argv[1:3], rows, {"alm": {}, "sft": {"weight": 0.1}}, steps=3)[1])
