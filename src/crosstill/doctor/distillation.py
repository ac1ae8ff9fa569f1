"""The doctor looks at a distillation: what can be wrong before a weight is loaded."""

from pathlib import Path

from crosstill.doctor.cost import Job, examine_cost, judge_length
from crosstill.doctor.finding import Findings
from crosstill.doctor.models import Side, examine_side
from crosstill.doctor.plan import examine_objectives, examine_output
from crosstill.doctor.rows import examine_rows, read_rows
from crosstill.training.recipe import Recipe
from crosstill.training.teaching import check_same_tokenizer


def examine_distillation(recipe: Recipe, *, trust_remote_code: bool = False) -> Findings:
    """Check models, tokenizers, objectives, output folder, data, alignment, memory and time."""
    findings = Findings()
    settings = recipe.training
    student = examine_side(
        "student",
        recipe.student,
        settings.student_revision,
        trust_remote_code,
        findings,
        tokenizer_source=recipe.student_tokenizer,
    )
    teacher = examine_side(
        "teacher", recipe.teacher, settings.teacher_revision, trust_remote_code, findings
    )
    second = None
    if recipe.same_tokenizer_teacher is not None:
        second = _examine_second_teacher(recipe, student, trust_remote_code, findings)
    examine_objectives(settings, findings)
    examine_output(Path(recipe.output_dir), findings)
    rows = read_rows(recipe, findings)
    sample = None
    if rows is not None and student.encoder is not None and teacher.encoder is not None:
        sample = examine_rows(recipe, rows, student.encoder, teacher.encoder, findings)
    for side in (student, teacher):
        judge_length(settings, side, findings)
    if student.parameters is not None and teacher.parameters is not None:
        examine_cost(distillation_job(recipe, student, teacher, second), sample, findings)
    return findings


def distillation_job(
    recipe: Recipe, student: Side, teacher: Side, second: Side | None = None
) -> Job:
    """What a distillation trains and with what beside it; `second` has the student's tokenizer."""
    trained = (student.parameters or 0) if recipe.peft is None else 0
    teachers = (teacher,) if second is None else (teacher, second)
    return Job(recipe.training, recipe.output_dir, student, teachers, trained)


def _examine_second_teacher(
    recipe: Recipe, student: Side, trust_remote_code: bool, findings: Findings
) -> Side:
    """Look at the teacher that has to have the student's tokenizer, and say whether it has."""
    name = str(recipe.same_tokenizer_teacher)
    revision = recipe.training.same_tokenizer_teacher_revision
    where = "second teacher"
    second = examine_side(where, name, revision, trust_remote_code, findings)
    if student.encoder is not None and second.encoder is not None:
        encoders = student.encoder, second.encoder
        findings.attempt(where, lambda: check_same_tokenizer(*encoders))
    return second
