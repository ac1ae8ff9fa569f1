"""A tiny student and a tiny teacher with two tokenizers, and rows for them."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as hf

import tiny_models
import tiny_tokenizers
from crosstill.training.config import DistillConfig
from crosstill.training.trainer import DistillTrainer

SENTENCES = (
    "The cat sat on the mat, and the other cats sat on the other mats.",
    "Hello world! How are you today?  I am fine, thank you.\n\nGoodbye.",
    "def add(a, b):\n    return a + b\n",
    "Der Größe nach: über, ähnlich, schön.",
    "One, two, three, four, five, six, seven, eight, nine, ten.",
    "東京は日本の首都です。",
)


@cache
def student_tokenizer() -> hf.PreTrainedTokenizerFast:
    return tiny_tokenizers.byte_level_bpe(vocab_size=300)


@cache
def teacher_tokenizer() -> hf.PreTrainedTokenizerFast:
    return tiny_tokenizers.byte_level_bpe(vocab_size=420)


def student(seed: int = 0, **changes: Any) -> hf.LlamaForCausalLM:
    """Untied, and with three rows in its head that no token uses."""
    changes = {"tied": False, "scale": 2.0, **changes}
    return tiny_models.llama(len(student_tokenizer()) + 3, seed=seed, **changes)


def teacher(seed: int = 1, **changes: Any) -> hf.LlamaForCausalLM:
    """Likewise, with other weights and another vocabulary."""
    changes = {"tied": False, "scale": 2.0, **changes}
    return tiny_models.llama(len(teacher_tokenizer()) + 5, seed=seed, **changes)


def rows(count: int = 24) -> list[dict[str, Any]]:
    """Texts, and prompts with completions, of unequal lengths."""
    found: list[dict[str, Any]] = []
    for i in range(count):
        text = " ".join(SENTENCES[(i + k) % len(SENTENCES)] for k in range(1 + i % 3))
        cut = 5 + i % 7
        found.append({"text": text} if i % 2 else {"prompt": text[:cut], "completion": text[cut:]})
    return found


def config(folder: Path, **settings: Any) -> DistillConfig:
    fixed: dict[str, Any] = {
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "max_length": 96,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return DistillConfig(output_dir=str(folder), **{**fixed, **settings})


def trainer(folder: Path, **settings: Any) -> DistillTrainer:
    """A trainer; `model`, `teacher_model`, `train_dataset` and others may be given."""
    given = {
        name: settings.pop(name)
        for name in (
            "model",
            "teacher_model",
            "train_dataset",
            "eval_dataset",
            "processing_class",
            "teacher_processing_class",
            "peft_config",
            "callbacks",
            "optimizers",
            "same_tokenizer_teacher",
            "same_tokenizer_teacher_processing_class",
        )
        if name in settings
    }
    made = {
        "model": student,
        "teacher_model": teacher,
        "train_dataset": rows,
        "processing_class": student_tokenizer,
        "teacher_processing_class": teacher_tokenizer,
    }
    given |= {name: make() for name, make in made.items() if name not in given}
    return DistillTrainer(args=config(folder, **settings), **given)


CHATS = [
    {
        "messages": [
            {"role": "user", "content": SENTENCES[i % 6]},
            {"role": "assistant", "content": " ".join(SENTENCES[(i + k) % 6] for k in range(n))},
        ]
    }
    for i, n in enumerate((1, 3, 2, 1, 2, 3, 1, 2))
]
"""Eight chats whose answers have unequal lengths."""


@cache
def chat_tokenizers() -> dict[str, hf.PreTrainedTokenizerFast]:
    """Student's and teacher's tokenizer, both with a chat template."""
    chat = {"specials": tiny_tokenizers.CHAT_SPECIALS, "chat_template": tiny_tokenizers.CHATML}
    return {
        "processing_class": tiny_tokenizers.byte_level_bpe(vocab_size=300, **chat),
        "teacher_processing_class": tiny_tokenizers.byte_level_bpe(vocab_size=420, **chat),
    }


class Gradients(hf.TrainerCallback):
    """Keeps the gradient of the last step, as one vector."""

    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        self.vector = torch.cat(grads).clone()


class Seen(hf.TrainerCallback):
    """Keeps the rows of every step."""

    def __init__(self) -> None:
        self.steps: list[list[int]] = []
        self.run: DistillTrainer | None = None

    def on_step_end(self, args, state, control, **kwargs):
        assert self.run is not None
        self.steps.append(list(self.run._step_rows.rows))


def losses(run: DistillTrainer) -> list[float]:
    return [line["loss"] for line in run.state.log_history if "loss" in line]
