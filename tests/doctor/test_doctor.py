import json

import pytest

import tiny_models
import tiny_tokenizers
from crosstill.doctor import examine
from crosstill.doctor.cost import estimate_memory
from crosstill.doctor.distillation import distillation_job
from crosstill.doctor.finding import Findings
from crosstill.doctor.models import examine_side, with_tokenizer
from crosstill.doctor.transfer import transfer_jobs
from crosstill.errors import ConfigError, DataError
from crosstill.text.encode import text_encoder
from crosstill.training.recipe import load_recipe
from crosstill.transfer.bytelevel import byte_tokenizer
from crosstill.transfer.recipe import load_transfer
from crosstill.transfer.target import target_tokenizer
from tiny_run import make_run, make_transfer


def _raise(error):
    raise error


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("pair"))


def memory_of(recipe, *sides):
    return estimate_memory(distillation_job(recipe, *sides))


def _named(findings, where):
    return [item for item in findings.items if item.where == where]


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([], 0),
        ([DataError("x")], 3),
        ([ConfigError("x")], 2),
        ([DataError("x"), ConfigError("x")], 2),
    ],
)
def test_the_exit_code_says_whether_only_data_is_wrong(errors, code):
    findings = Findings()
    findings.add("warning", "somewhere", "odd")
    for error in errors:
        assert findings.attempt("somewhere", lambda error=error: _raise(error)) is None
    assert findings.exit_code == code


def test_an_error_of_our_own_making_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        Findings().attempt("somewhere", lambda: 1 / 0)


def test_parameters_are_counted_without_loading_weights(pair):
    folder = pair.parent / "student"
    findings = Findings()
    side = examine_side("student", str(folder), None, False, findings)
    real = tiny_models.llama(side.encoder.vocab_size, seed=1)
    assert side.parameters == sum(p.numel() for p in real.parameters())
    (weights,) = folder.glob("*.safetensors")
    hidden = weights.rename(folder / "hidden")
    weights.write_bytes(b"not read")
    try:
        again = examine_side("student", str(folder), None, False, Findings())
    finally:
        hidden.rename(weights)
    assert again.parameters == side.parameters


def test_a_padded_vocabulary_is_noted_and_a_small_one_refused(tmp_path):
    tokenizer = tiny_tokenizers.byte_level_bpe(vocab_size=320)
    tokenizer.save_pretrained(tmp_path)
    for rows, level in ((len(tokenizer) + 64, "note"), (len(tokenizer) - 1, "error")):
        tiny_models.llama(rows).save_pretrained(tmp_path)
        findings = Findings()
        examine_side("teacher", str(tmp_path), None, False, findings)
        (found,) = _named(findings, "teacher vocabulary")
        assert found.level == level


def test_a_tokenizer_that_hides_bytes_is_a_warning(tmp_path):
    tokenizer = tiny_tokenizers.characters()
    tokenizer.save_pretrained(tmp_path)
    tiny_models.llama(len(tokenizer)).save_pretrained(tmp_path)
    findings = Findings()
    examine_side("teacher", str(tmp_path), None, False, findings)
    warnings = [item.what for item in _named(findings, "teacher tokenizer") if item.level != "ok"]
    assert any("unknown token" in what for what in warnings)


def test_memory_of_full_training_is_sixteen_bytes_a_parameter(pair):
    recipe = load_recipe(pair)
    findings = Findings()
    sides = [
        examine_side(name, str(pair.parent / name), None, False, findings)
        for name in ("student", "teacher")
    ]
    memory = memory_of(recipe, *sides)
    assert memory.student + memory.optimizer == 16 * sides[0].parameters
    assert memory.teacher == 4 * sides[1].parameters
    longer = memory_of(load_recipe(pair, {"max_length": 128}), *sides)
    assert longer.activations == 2 * memory.activations
    adapter = memory_of(load_recipe(pair, {"peft": {"r": 2}}), *sides)
    assert adapter.student + adapter.optimizer == 4 * sides[0].parameters


def test_a_whole_look_writes_nothing(pair):
    before = sorted(pair.parent.rglob("*"))
    findings = examine(load_recipe(pair))
    assert findings.exit_code == 0
    assert sorted(pair.parent.rglob("*")) == before
    (aligned,) = _named(findings, "alignment")
    assert aligned.level == "ok"
    (estimate,) = _named(findings, "time")
    assert "2 steps of 2 rows" in estimate.what


def test_chat_rows_without_a_chat_template_are_an_error(pair, tmp_path):
    rows = [{"text": "fine, this one"}, {"messages": [{"role": "user", "content": "Hello"}]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    findings = examine(load_recipe(pair, {"train": str(path), "max_length": 4}))
    assert findings.exit_code in (2, 3)  # a chat row, and no chat template
    (chat,) = [item for item in _named(findings, "data") if item.level == "error"]
    assert "chat template" in chat.what


def test_what_max_length_cuts_away_is_said(pair):
    findings = examine(load_recipe(pair, {"max_length": 12}))
    assert any(item.level == "note" and "cuts" in item.what for item in findings.items)


def test_a_second_teacher_is_looked_at_and_counted(pair):
    values = {
        "objectives": {"alm": {}, "forward_kl": {"teacher": "same"}},
        "weighting": "pcgrad",
        "same_tokenizer_teacher": str(pair.parent / "student"),
    }
    findings = examine(load_recipe(pair, values))
    assert findings.exit_code == 0
    assert _named(findings, "second teacher model")
    (cost,) = _named(findings, "weighting")
    assert "pcgrad costs a backward pass" in cost.what
    values["same_tokenizer_teacher"] = str(pair.parent / "teacher")
    wrong = examine(load_recipe(pair, values))
    (error,) = [item for item in wrong.items if item.level == "error"]
    assert error.where == "second teacher"
    assert "does not have the student's tokenizer" in error.what


def test_a_second_teacher_and_a_gradient_for_each_objective_take_memory(pair):
    sides = [
        examine_side(name, str(pair.parent / name), None, False, Findings())
        for name in ("student", "teacher")
    ]
    one = memory_of(load_recipe(pair), *sides)
    two = memory_of(load_recipe(pair), *sides, sides[0])
    assert two.teacher - one.teacher == sides[0].parameters * 4
    mixed = load_recipe(pair, {"objectives": "alm+sft", "weighting": "pcgrad"})
    assert memory_of(mixed, *sides).student - one.student == 2 * sides[0].parameters * 4


@pytest.mark.parametrize("named", [True, False])
def test_a_byte_student_has_rows_four_times_as_long_and_fewer_rows_of_embeddings(
    pair, tmp_path, named
):
    byte_tokenizer(tiny_tokenizers.byte_level_bpe()).save_pretrained(tmp_path)
    target = "bytes" if named else str(tmp_path)
    values = {"student_tokenizer": target, "max_length": 200}
    recipe, findings = load_recipe(pair, values), Findings()
    folder = str(pair.parent / "student")
    usual = examine_side("student", folder, None, False, findings)
    side = examine_side("student", folder, None, False, findings, tokenizer_source=target)
    assert usual.parameters - side.parameters == 32 * (320 - side.encoder.vocab_size)
    longer, shorter = (memory_of(recipe, s, usual).activations for s in (side, usual))
    assert longer == 4 * shorter
    found = examine(recipe)
    (warning,) = [item for item in _named(found, "student model") if item.level == "warning"]
    assert "rows have 800 bytes, and the model is made for 512" in warning.what
    assert not [item for item in _named(found, "teacher model") if item.level == "warning"]
    (memory,) = _named(found, "memory")
    assert "batch x 800 tokens" in memory.what


def test_a_transfer_is_looked_at_whole_and_nothing_is_written(pair, tmp_path):
    stages = [{"train": "embeddings", "max_steps": 1}, {"train": "full", "max_steps": 2}]
    recipe = load_transfer(make_transfer(tmp_path, pair.parent, stages=stages))
    before = sorted(tmp_path.rglob("*"))
    findings = examine(recipe)
    assert findings.exit_code == 0, [item for item in findings.items if item.level == "error"]
    assert sorted(tmp_path.rglob("*")) == before
    (first,) = _named(findings, "first embeddings")
    assert first.what == "fvt; 320 of 433 tokens are the model's own"
    names = [f"{what}, stage {stage}" for stage in ("1-embeddings", "2-full")
             for what in ("memory", "disk", "time")]  # fmt: skip
    assert [item.where for item in findings.items][-6:] == names
    (aligned,) = _named(findings, "alignment")
    assert aligned.level == "ok"


@pytest.mark.parametrize(
    ("mode", "tables_trained", "body_trained", "body_twice"),
    [("embeddings", 1, 0, 0), ("lora", 1, 0, 0), ("body", 0, 1, 1), ("full", 1, 1, 1)],
)
def test_the_memory_of_a_transfer_is_that_of_its_mode(
    pair, tmp_path, mode, tables_trained, body_trained, body_twice
):
    recipe = load_transfer(make_transfer(tmp_path, pair.parent, mode=mode))
    source = examine_side("model", recipe.model, None, False, Findings())
    body = source.parameters - source.in_tables
    student = with_tokenizer_of(recipe, source)
    tables = source.in_tables // 320 * student.encoder.vocab_size
    (job,) = transfer_jobs(recipe, student, source)
    assert job.trained == tables_trained * tables + body_trained * body
    memory = estimate_memory(job)
    assert memory.teacher == 4 * (source.in_tables + body_twice * body)
    assert memory.student == 4 * (body + tables + job.trained)


def with_tokenizer_of(recipe, source):
    target = text_encoder(target_tokenizer(recipe.to, source.encoder))
    return with_tokenizer(source, target, untied=False)


def test_a_fitted_head_is_counted_as_a_table_of_its_own(pair, tmp_path):
    recipe = load_transfer(make_transfer(tmp_path, pair.parent, initial="fit"))
    findings = examine(recipe)
    (first,) = _named(findings, "first embeddings")
    assert "keeps the states of 50,000 tokens" in first.what
    source = examine_side("model", recipe.model, None, False, findings)
    tied = with_tokenizer_of(recipe, source)
    untied = with_tokenizer(source, tied.encoder, untied=True)
    assert source.config.tie_word_embeddings
    assert untied.in_tables == 2 * tied.in_tables


@pytest.mark.parametrize("mode", ["embeddings", "full"])
def test_the_subwords_of_an_enriched_model_stand_in_memory_and_are_not_trained(
    pair, tmp_path, mode
):
    jobs = []
    for enriched in (False, True):
        changes = {"to": "bytes", "enriched": enriched, "mode": mode}
        recipe = load_transfer(make_transfer(tmp_path, pair.parent, **changes))
        source = examine_side("model", recipe.model, None, False, Findings())
        jobs += transfer_jobs(recipe, with_tokenizer_of(recipe, source), source)
    plain, enriched = (estimate_memory(job) for job in jobs)
    assert jobs[0].trained == jobs[1].trained
    assert enriched.student - plain.student == 4 * source.in_tables  # tied: one table
    assert (enriched.teacher, enriched.optimizer) == (plain.teacher, plain.optimizer)


def test_a_transfer_with_nothing_to_train_on_or_a_target_that_is_not_there(pair, tmp_path):
    recipe = load_transfer(make_transfer(tmp_path, pair.parent, train=None, to=str(tmp_path)))
    findings = examine(recipe)
    assert findings.exit_code == 2
    (error,) = [item for item in findings.items if item.level == "error"]
    assert error.where == "new tokenizer"
    (data,) = _named(findings, "data")
    assert "no more" in data.what


def test_bytes_have_rows_four_times_as_long_in_a_transfer_too(pair, tmp_path):
    recipe = load_transfer(
        make_transfer(tmp_path, pair.parent, to="bytes"), {"max_length": 200, "max_steps": 2}
    )
    findings = examine(recipe)
    assert findings.exit_code == 0
    (warning,) = [item for item in _named(findings, "new model") if item.level == "warning"]
    assert "rows have 800 bytes, and the model is made for 512" in warning.what
