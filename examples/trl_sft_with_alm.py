"""TRL's SFTTrainer with a teacher that has another tokenizer.

    python examples/trl_sft_with_alm.py STUDENT TEACHER ROWS.jsonl OUTPUT

TRL keeps the loop, the optimizer, the logging and the checkpoints. What changes: batches hold both
models' tokens, and the loss is a mix of crosstill's objectives, plain training among them.
"""

import sys

import torch
from trl import SFTConfig, SFTTrainer

from crosstill.data.collate import PairCollator
from crosstill.data.read import read_dataset
from crosstill.hub import load_model, load_tokenizer
from crosstill.objectives import create_mix
from crosstill.pair import model_pair
from crosstill.teachers.local import LocalTeacher
from crosstill.text.encode import text_encoder

OBJECTIVES = {"alm": {"temperature": 5.0}, "sft": {"weight": 0.1}}


class DistillingSFTTrainer(SFTTrainer):
    """An SFTTrainer whose loss is a mix of objectives that need no hidden states.

    Args:
        model: the student.
        teacher: a model that is only read.
        teacher_tokenizer: its tokenizer.
        objectives: as in a recipe.
        args: the settings; rows are read as they are, so TRL must not prepare them.
        processing_class: the student's tokenizer.
        others: as for SFTTrainer.
    """

    def __init__(
        self, model, teacher, teacher_tokenizer, objectives, *, args, processing_class, **others
    ):
        encoders = text_encoder(processing_class), text_encoder(teacher_tokenizer)
        self.teacher = LocalTeacher(teacher, encoders[1])
        self.mix = create_mix(
            objectives,
            boundary_mask=torch.from_numpy(encoders[0].bytes.boundary()),
            vocab_size=encoders[0].vocab_size,
        )
        self.mix.prepare(model_pair(model, encoders[0], teacher, encoders[1]))
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            data_collator=PairCollator(*encoders, max_length=args.max_length),
            **others,
        )
        self.teacher.to(self.args.device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mix in place of the cross-entropy: one forward pass of the student."""
        outputs = model(
            input_ids=inputs["student_input_ids"], attention_mask=inputs["student_attention_mask"]
        )
        signal = self.teacher(inputs)
        counts = self.mix.counts(inputs, signal)
        loss = self.mix.from_logits(outputs.logits, inputs, signal, counts).total
        return (loss, outputs) if return_outputs else loss


def main(student: str, teacher: str, rows: str, output: str, **settings) -> DistillingSFTTrainer:
    """Train and save; `settings` are SFTConfig's."""
    args = SFTConfig(
        output_dir=output,
        max_length=256,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        **settings,
    )
    trainer = DistillingSFTTrainer(
        load_model(student, dtype="float32"),
        load_model(teacher),
        load_tokenizer(teacher),
        OBJECTIVES,
        args=args,
        processing_class=load_tokenizer(student),
        train_dataset=read_dataset(rows),
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:5])
