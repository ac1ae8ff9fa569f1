"""The doctor looks at a transfer: the model, its new tokenizer, the texts and every stage."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from crosstill.align.vocab import VocabularyPair
from crosstill.doctor.cost import Job, examine_cost, judge_length, size
from crosstill.doctor.finding import Findings
from crosstill.doctor.models import Side, examine_side, examine_tokenizer, with_tokenizer
from crosstill.doctor.plan import examine_objectives, examine_output
from crosstill.doctor.rows import examine_rows, read_rows
from crosstill.text.encode import TextEncoder
from crosstill.transfer.initial import Initialiser, parse_initialiser
from crosstill.transfer.initial.fit import Fit
from crosstill.transfer.recipe import TransferRecipe
from crosstill.transfer.target import target_tokenizer


def examine_transfer(recipe: TransferRecipe, *, trust_remote_code: bool = False) -> Findings:
    """Check model, target, embeddings, objectives, output folder, data, and each stage's cost."""
    findings = Findings()
    source = examine_side("old", recipe.model, recipe.revision, trust_remote_code, findings)
    target = None
    if source.encoder is not None:
        target = _examine_target(recipe, source.encoder, trust_remote_code, findings)
    asked = [stage.settings for stage in recipe.stages]
    for settings in {repr((one.objectives, one.weighting)): one for one in asked}.values():
        examine_objectives(settings, findings)
    examine_output(Path(recipe.output_dir), findings)
    rows = read_rows(recipe, findings)
    if source.encoder is None or target is None:
        return findings
    sample = None
    if rows is not None:
        sample = examine_rows(recipe, rows, target, source.encoder, findings)
    initial = parse_initialiser(recipe.initial)
    student = replace(with_tokenizer(source, target, untied=isinstance(initial, Fit)), name="new")
    _examine_initial(initial, student, source, findings)
    for side in (source, student):
        judge_length(recipe.training, side, findings)
    if student.parameters is not None:
        for job in transfer_jobs(recipe, student, source):
            examine_cost(job, sample, findings)
    return findings


def _examine_target(
    recipe: TransferRecipe, source: TextEncoder, trust_remote_code: bool, findings: Findings
) -> TextEncoder | None:
    made = findings.attempt(
        "new tokenizer",
        lambda: target_tokenizer(
            recipe.to,
            source,
            special_tokens=cast(Any, recipe.special_tokens),
            revision=recipe.to_revision,
            trust_remote_code=trust_remote_code,
        ),
    )
    return None if made is None else examine_tokenizer("new", made, findings)


def _examine_initial(initial: Initialiser, student: Side, source: Side, findings: Findings) -> None:
    """Say how many tokens keep a row, and what the initialiser keeps in memory."""
    assert student.encoder is not None  # noqa: S101 - as its caller has seen
    assert source.encoder is not None  # noqa: S101 - likewise
    own = len(VocabularyPair(student.encoder, source.encoder).shared())
    what = f"{initial.name}; {own:,} of {student.encoder.vocab_size:,} tokens are the model's own"
    if isinstance(initial, Fit) and student.config is not None:
        width = student.config.get_text_config().hidden_size
        what += (
            f"; it keeps the states of {initial.tokens:,} tokens in both readings, about "
            f"{size(2 * initial.tokens * width * 4)}, and unties the head"
        )
    findings.add("ok", "first embeddings", what)


def transfer_jobs(recipe: TransferRecipe, student: Side, source: Side) -> list[Job]:
    """What each stage trains, and what of the model as it was stands beside it in memory."""
    tables, everything = student.in_tables, student.parameters or 0
    shared = (source.parameters or 0) - source.in_tables if recipe.one_body else 0
    several = len(recipe.stages) > 1
    if recipe.enriched and source.config is not None:  # the subwords stand beside, frozen
        old = source.config.get_text_config()
        student = replace(student, parameters=everything + old.vocab_size * old.hidden_size)
    return [
        Job(
            stage.settings,
            recipe.output_dir,
            student,
            (source,),
            {"full": everything, "body": everything - tables}.get(stage.train, tables),
            f"stage {stage.name}" if several else "",
            shared,
        )
        for stage in recipe.stages
    ]
