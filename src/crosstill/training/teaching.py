"""The teachers of a run by name, and what they say about a batch."""

import numpy as np
import torch
from torch import nn

from crosstill.align.vocab import VocabularyPair
from crosstill.errors import ConfigError
from crosstill.objectives import Mix, Pair, PairBatch, Signal
from crosstill.objectives.views import MAIN, SAME, seen
from crosstill.pair import model_facts
from crosstill.teachers.local import LocalTeacher
from crosstill.teachers.signal import TokenSignal
from crosstill.text.encode import TextEncoder
from crosstill.training.fingerprint import model_fingerprint


class Teachers:
    """The teachers that a run's objectives read.

    Args:
        teachers: Each teacher by the name that objectives give under `teacher`.
        mix: The objectives.

    Raises:
        ConfigError: An objective names a teacher that is not there, or nothing reads one that is.
    """

    def __init__(self, teachers: dict[str, LocalTeacher], mix: Mix) -> None:
        self.by_name, self._mix = teachers, mix
        for name, teacher in mix.teachers.items():
            if teacher not in self.by_name:
                raise ConfigError(
                    f"objective {name} reads the teacher {teacher!r}, but only "
                    f"{', '.join(self.by_name)} is there: give same_tokenizer_teacher, or remove "
                    f"`teacher: {teacher}`"
                )
        if SAME in self.by_name and not mix.readers(SAME):
            raise ConfigError(
                "same_tokenizer_teacher is given and no objective reads it: set `teacher: same` "
                "in one of them, such as forward_kl, or leave it out"
            )

    def signals(self, batch: PairBatch) -> dict[str, Signal]:
        """Asks every teacher about a batch; one whom no objective reads is not run."""
        return {name: self._signal(name, teacher, batch) for name, teacher in self.by_name.items()}

    def _signal(self, name: str, teacher: LocalTeacher, batch: PairBatch) -> Signal:
        if self._mix.needs_of(name):
            return teacher(seen(name, batch), self._mix.teacher_layers(name))
        ids = batch["teacher_input_ids"]
        nothing = torch.zeros(ids.shape, device=ids.device)
        return TokenSignal(nothing, nothing)

    def pairs(self, student: nn.Module, encoder: TextEncoder) -> dict[str, Pair]:
        """Describes the student beside each teacher, for objectives that prepare."""
        facts = model_facts("student", student, encoder)
        return {
            name: Pair(
                VocabularyPair(encoder, teacher.encoder),
                facts,
                model_facts(_side(name), teacher.model, teacher.encoder),
            )
            for name, teacher in self.by_name.items()
        }

    def fingerprint(self, name: str) -> str:
        """Hashes a teacher's weights; nothing where there is no teacher of this name."""
        return model_fingerprint(self.by_name[name].model) if name in self.by_name else ""

    def to(self, device: torch.device) -> None:
        """Moves the models to a device."""
        for teacher in self.by_name.values():
            teacher.to(device)


def check_same_tokenizer(student: TextEncoder, teacher: TextEncoder) -> None:
    """Refuses a teacher whose ids mean something else than the student's.

    Ids that one side has beyond the other's must be special tokens: no text is spelled by them.

    Raises:
        ConfigError: The tokenizers differ; names the first id at which they do.
    """
    one, other = student.bytes, teacher.bytes
    shared = min(student.vocab_size, teacher.vocab_size)
    differ = np.zeros(max(student.vocab_size, teacher.vocab_size), bool)
    for longer in (one, other):
        differ[shared : len(longer.lengths)] |= longer.lengths[shared:] > 0
    differ[:shared] = (one.special[:shared] != other.special[:shared]) | [
        one.token(i) != other.token(i) for i in range(shared)
    ]
    if not differ.any():
        return
    first = int(differ.argmax())
    raise ConfigError(
        "same_tokenizer_teacher does not have the student's tokenizer: token "
        f"{first} is {_shown(teacher, first)} to it and {_shown(student, first)} to the student. "
        "A teacher with another tokenizer is what `teacher` is for"
    )


def _shown(encoder: TextEncoder, token: int) -> str:
    return repr(encoder.bytes.token(token)) if token < encoder.vocab_size else "unknown"


def _side(name: str) -> str:
    return "teacher" if name == MAIN else f"teacher {name!r}"
