"""How the benchmarks that compare methods train: one place, so that their figures compare."""

from typing import Any

from demo import fast_bfloat16

AT_A_TIME = 4
"""Rows of one forward pass, at most."""


def training(
    *,
    rows_per_step: int,
    max_length: int,
    learning_rate: float,
    embedding_rate: float | None,
    seed: int,
    beta2: float = 0.95,
) -> dict[str, Any]:
    """Settings of a `DistillConfig`: AdamW (0.9, `beta2`), a tenth as warm-up, linearly to zero."""
    at_a_time = min(AT_A_TIME, rows_per_step)
    return {
        "loss_on": "all",
        "max_length": max_length,
        "pad_to_multiple_of": 32,
        "per_device_train_batch_size": at_a_time,
        "gradient_accumulation_steps": rows_per_step // at_a_time,
        "learning_rate": learning_rate,
        "embedding_learning_rate": embedding_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,
        "adam_beta2": beta2,
        "bf16": fast_bfloat16(),
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_to": "none",
        "seed": seed,
    }
