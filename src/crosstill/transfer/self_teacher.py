"""A model as its own teacher, with one body in memory.

A model that moves to another tokenizer is taught by what it was. Where only its tables (input
embedding, head) and an adapter are trained, its body never changes: one copy of the body serves
both, and only the original tables are kept beside the new ones.
"""

import copy
from collections.abc import Iterable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crosstill.errors import ConfigError
from crosstill.heads import under_adapters
from crosstill.objectives.base import PairBatch
from crosstill.teachers.local import LocalTeacher
from crosstill.teachers.signal import LogitSignal, StateSignal
from crosstill.text.encode import TextEncoder
from crosstill.training.fingerprint import model_fingerprint
from crosstill.transfer.modes import shares_body

Tokenizer = PreTrainedTokenizerFast | TextEncoder


def self_teacher(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    modes: Iterable[str],
    *,
    autocast: torch.dtype | None = None,
) -> LocalTeacher:
    """Makes the teacher of a model that is about to get another tokenizer.

    Call it before the model is changed. In modes that leave the body as it is, teacher and student
    share it; else the teacher is a whole second copy.

    Args:
        model: The model as it is, with its own tokenizer's embeddings and without an adapter.
        tokenizer: Its own tokenizer.
        modes: Of all stages of the run, as `prepare_mode` takes them.
        autocast: Type of the teacher's arithmetic where it shares the body; see
            `SharedBodyTeacher`. A second copy is brought to the type that is wanted instead.

    Raises:
        ConfigError: A mode is unknown, or model and tokenizer do not belong together.

    Example:
        ```python
        teacher = self_teacher(model, tokenizer, ["lora"])  # first: the model as it is
        transplant(model, tokenizer, target)
        student = prepare_mode(model, "lora")
        trainer = DistillTrainer(student, teacher, args, rows, processing_class=target)
        ```
    """
    if all([shares_body(mode) for mode in modes]):  # a list: every name is looked at
        return SharedBodyTeacher(model, tokenizer, autocast=autocast)
    return LocalTeacher(copy.deepcopy(model), tokenizer)


class SharedBodyTeacher(LocalTeacher):
    """A teacher whose body is its student's: the same weights, apart from the tables.

    `model` is a model of the same class with modules of its own round the shared weights. So what
    is done to the student's modules (an adapter, dropout, training mode, gradient checkpointing,
    a wrapper) does not reach the teacher, and nothing has to be switched on and off. It has the
    source's configuration, and a copy of its tables.

    The shared weights are frozen here. A step that changes them changes the teacher: do not train
    them, and merge an adapter only when the teacher is no longer asked. `check` finds out.

    Args:
        model: The model before it gets its new tables and its adapter.
        tokenizer: Its own tokenizer.
        autocast: Type of the teacher's arithmetic; None: that of the weights. The student's
            autocast does not reach the teacher's pass.

    Raises:
        ConfigError: The model has an adapter already, or the tokenizer is not its own.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Tokenizer, *, autocast: torch.dtype | None = None
    ) -> None:
        if under_adapters(model) is not model:
            raise ConfigError(
                "the model has an adapter already: make its teacher first, then the adapter"
            )
        super().__init__(body_view(model), tokenizer)
        self._autocast = autocast
        self._source = model_fingerprint(self.model)

    def __call__(self, batch: PairBatch, layers: tuple[int, ...] = ()) -> StateSignal | LogitSignal:
        """Computes the teacher's signal for a batch, as `LocalTeacher` does."""
        device, dtype = self.model.device.type, self._autocast
        with torch.autocast(device, dtype, enabled=dtype is not None):
            return super().__call__(batch, layers)

    def check(self) -> None:
        """Compares the weights with what they were: the first numbers of each.

        Raises:
            ConfigError: The shared body has changed, and so has the teacher.
        """
        if model_fingerprint(self.model) != self._source:
            raise ConfigError(
                "the body that student and teacher share has changed since the teacher was made "
                "(an adapter was merged, or its weights were trained): load the source model "
                "again, or train in mode full, which keeps a second copy"
            )


def body_view(model: PreTrainedModel) -> PreTrainedModel:
    """Makes a second model round the same body: shared weights, tables and modules of its own.

    Tied tables stay tied. Buffers are copied: they are small, and some are caches.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    own = {id(weight) for end in ends if end is not None for weight in end.parameters()}
    # What stands in the memo is taken for copied already.
    shared = {id(weight): weight for weight in model.parameters() if id(weight) not in own}
    return copy.deepcopy(model, shared)
