"""What a run will take: memory, disk and time, by formulas that are stated with the numbers."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from crosstill.doctor.finding import Findings
from crosstill.doctor.models import Side
from crosstill.doctor.rows import Sample
from crosstill.training.asked import parse_objectives
from crosstill.training.config import DistillConfig

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Korthikanti et al. 2022, "Reducing Activation Recomputation", eq. 2 without the attention matrix:
# bytes for each token, layer and hidden number in 16-bit arithmetic.
_ACTIVATION_BYTES = 34


@dataclass(frozen=True)
class Job:
    """Some training, as far as its cost goes.

    Attributes:
        settings: of the training.
        output_dir: where it writes.
        student: whose parameters are counted as they are in training.
        teachers: what stands beside it in memory.
        trained: how many parameters have gradients; those of adapters weigh next to nothing.
        name: of the part of the run that this is, where there are several.
        shared: how many of the teachers' parameters are the student's as well, and stand in memory
            once.
    """

    settings: DistillConfig
    output_dir: str
    student: Side
    teachers: tuple[Side, ...]
    trained: int
    name: str = ""
    shared: int = 0

    def where(self, what: str) -> str:
        """What is looked at, as findings name it."""
        return f"{what}, {self.name}" if self.name else what


@dataclass(frozen=True)
class Memory:
    """Bytes in memory at the peak of a step, by what they are for."""

    student: int
    optimizer: int
    teacher: int
    activations: int

    @property
    def total(self) -> int:
        """All of them together."""
        return self.student + self.optimizer + self.teacher + self.activations


def examine_cost(job: Job, sample: Sample | None, findings: Findings) -> None:
    """Estimate memory, disk space and time, and say where they do not suffice."""
    memory = estimate_memory(job)
    _judge_memory(memory, job, findings)
    _judge_disk(job, findings)
    if sample is not None:
        _estimate_time(job, sample, findings)


def estimate_memory(job: Job) -> Memory:
    """Estimate the memory of a step, for models whose configurations could be read."""
    student, settings = job.student, job.settings
    assert student.config is not None  # noqa: S101 - parameters are counted from it
    assert student.parameters is not None  # noqa: S101 - as its caller has seen
    text = student.config.get_text_config()
    width = _BYTES.get(settings.student_dtype, 4)
    gradients = job.trained * _gradients(settings)
    per_token = text.num_hidden_layers * text.hidden_size * _ACTIVATION_BYTES
    compute = 2 if settings.bf16 else width
    rows = settings.per_device_train_batch_size
    return Memory(
        student=(student.parameters + gradients) * width,
        optimizer=job.trained * 2 * width,
        teacher=sum(
            ((side.parameters or 0) - job.shared) * _teacher_width(settings.teacher_dtype, side)
            for side in job.teachers
        ),
        activations=rows * _longest_row(settings, student) * per_token * compute // 2,
    )


def _longest_row(settings: DistillConfig, side: Side) -> int:
    """The longest row that a side may get, in its own tokens."""
    length = settings.max_length
    return length if side.encoder is None else side.encoder.budget(length)


def _gradients(settings: DistillConfig) -> int:
    """How many gradients of the student stand in memory at once: pcgrad keeps one an objective."""
    if settings.weighting != "pcgrad":
        return 1
    return len(parse_objectives(settings.objectives)) + 1


def _teacher_width(dtype: str, teacher: Side) -> int:
    stored = str(teacher.config.dtype).removeprefix("torch.") if teacher.config else ""
    return _BYTES.get(stored if dtype == "auto" else dtype, 4)


def _judge_memory(memory: Memory, job: Job, findings: Findings) -> None:
    place, free = _free_memory(job.settings.use_cpu)
    fits, longest = memory.total < free, _longest_row(job.settings, job.student)
    findings.add(
        "ok" if fits else "warning",
        job.where("memory"),
        f"about {size(memory.total)} of {size(free)} free on the {place}: student and gradients "
        f"{size(memory.student)}, AdamW {size(memory.optimizer)}, teacher {size(memory.teacher)}, "
        f"activations {size(memory.activations)} (batch x {longest:,} tokens x layers x hidden x "
        f"{_ACTIVATION_BYTES} bytes at 16 bits)"
        + (
            ""
            if fits
            else ". Lower per_device_train_batch_size (and raise gradient_accumulation_steps as "
            "much), lower max_length, or use teacher_dtype: bfloat16"
        ),
    )


def judge_length(settings: DistillConfig, side: Side, findings: Findings) -> None:
    """Say where rows may be longer than what a model was made for."""
    if side.config is None:
        return
    longest = _longest_row(settings, side)
    limit = getattr(side.config.get_text_config(), "max_position_embeddings", None) or longest
    if longest > limit:
        what = "bytes" if side.encoder is not None and side.encoder.bytewise else "tokens"
        findings.add(
            "warning",
            f"{side.name} model",
            f"max_length lets rows have {longest:,} {what}, and the model is made for {limit:,}: "
            f"lower max_length",
        )


def _free_memory(use_cpu: bool) -> tuple[str, int]:
    import psutil
    import torch

    if torch.cuda.is_available() and not use_cpu:
        return "GPU", torch.cuda.mem_get_info()[0]
    return "CPU", psutil.virtual_memory().available


def _judge_disk(job: Job, findings: Findings) -> None:
    # A checkpoint is written beside the ones that are kept.
    kept = (job.settings.save_total_limit or 10) + 1
    needed = kept * job.trained * 12 + (job.student.parameters or 0) * 4
    free = shutil.disk_usage(existing_folder(Path(job.output_dir))).free
    findings.add(
        "ok" if needed < free else "warning",
        job.where("disk"),
        f"about {size(needed)} for {kept} checkpoints (weights and two moments, 12 bytes a "
        f"parameter) and the model, of {size(free)} free",
    )


def size(count: float) -> str:
    """Bytes as a person says them.

    >>> size(3_400_000_000), size(52_000_000), size(900)
    ('3.4 GB', '52 MB', '1 kB')
    """
    for unit, name, digits in ((1e9, "GB", 1), (1e6, "MB", 0)):
        if count >= unit:
            return f"{count / unit:.{digits}f} {name}"
    return f"{count / 1e3:.0f} kB"


def existing_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = path.expanduser().absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _estimate_time(job: Job, sample: Sample, findings: Findings) -> None:
    from crosstill.report.page import duration

    settings = job.settings
    rows = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    steps = settings.max_steps
    if steps <= 0:
        steps = max(1, round(settings.num_train_epochs * sample.rows / rows))
    student = (job.student.parameters or 0) * sample.student_tokens
    teacher = (job.teachers[0].parameters or 0) * sample.teacher_tokens
    operations = rows * (6 * student + 2 * teacher)
    speed = _measured_speed(settings.use_cpu, bool(settings.bf16))
    findings.add(
        "note",
        job.where("time"),
        f"{steps:,} steps of {rows} rows: at least {duration(steps * operations / speed)} (6 x "
        f"student + 2 x teacher parameters for each token, at the {speed / 1e12:.2f} TFLOP/s of a "
        f"matrix product here; small models reach a third of it)",
    )


def _measured_speed(use_cpu: bool, bf16: bool, size: int = 1024) -> float:
    """Floating-point operations per second of a square matrix product on the device of the run."""
    import torch

    cuda = torch.cuda.is_available() and not use_cpu
    size = size * 4 if cuda else size
    kind = torch.bfloat16 if bf16 else torch.float32
    matrix = torch.ones(size, size, device="cuda" if cuda else "cpu", dtype=kind)
    best = float("inf")
    for _ in range(4):  # the first one warms up
        start = time.perf_counter()
        (matrix @ matrix).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
