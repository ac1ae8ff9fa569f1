"""Times TRL's GOLD loss, one JSON line a question. Runs in the peer's own environment.

Question: sizes, a seed and settings. Answer: processor seconds of forward and of backward, the
value, and where the gradient was written as a numpy array.
"""

import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import torch
from gold_inputs import inputs, vocabularies
from trl.experimental.gold.gold_trainer import ULDLoss


class Vocabulary:
    """Stands in for a tokenizer: equal names for shared tokens."""

    def __init__(self, names: dict[str, int]):
        self.names = names

    def get_vocab(self) -> dict[str, int]:
        """Token -> id."""
        return self.names


def answer(question: dict) -> dict:
    """One step of the peer."""
    given = inputs(question["tokens"], question["sizes"], question["seed"])
    settings = {
        "uld_crossentropy_weight": 0.0,
        "uld_distillation_weight": 1.0,
        "uld_student_temperature": 1.0,
        "uld_teacher_temperature": 1.0,
        "uld_skip_student_eos": False,
        "uld_skip_teacher_eos": False,
        "use_extended_uld": True,
        "uld_token_merge_strategy": "observed",
        "uld_use_hybrid_loss": question["hybrid"],
        "uld_hybrid_matched_weight": None,
        "uld_hybrid_unmatched_weight": None,
        "beta": 0.5,
    }
    loss_function = ULDLoss(
        SimpleNamespace(**settings), *map(Vocabulary, vocabularies(question["sizes"]))
    )
    student, teacher = given
    logits = student.logits.requires_grad_()
    start = time.thread_time()
    value = loss_function(
        logits,
        teacher.logits,
        student.labels,
        teacher.labels,
        student.ids,
        teacher.ids,
        student_byte_offsets=student.offsets,
        teacher_byte_offsets=teacher.offsets,
    )
    middle = time.thread_time()
    value.backward()
    end = time.thread_time()
    # A sample of the gradient: the whole would take longer to write than the step.
    sample = logits.grad[0, :, :: question["stride"]].numpy()
    np.save(question["gradient"], sample)
    return {"forward": middle - start, "backward": end - middle, "value": value.item()}


torch.set_num_threads(1)
for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
