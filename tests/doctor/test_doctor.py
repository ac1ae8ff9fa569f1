import json

import pytest

import tiny_models
import tiny_tokenizers
from crosstill.doctor import examine
from crosstill.doctor.cost import estimate_memory
from crosstill.doctor.finding import Findings
from crosstill.doctor.models import examine_side
from crosstill.errors import ConfigError, DataError
from crosstill.training.recipe import load_recipe
from crosstill.transfer.bytelevel import byte_tokenizer
from tiny_run import make_run


def _raise(error):
    raise error


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("pair"))


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
    memory = estimate_memory(recipe, *sides)
    assert memory.student + memory.optimizer == 16 * sides[0].parameters
    assert memory.teacher == 4 * sides[1].parameters
    longer = estimate_memory(load_recipe(pair, {"max_length": 128}), *sides)
    assert longer.activations == 2 * memory.activations
    adapter = estimate_memory(load_recipe(pair, {"peft": {"r": 2}}), *sides)
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
    one = estimate_memory(load_recipe(pair), *sides)
    two = estimate_memory(load_recipe(pair), *sides, sides[0])
    assert two.teacher - one.teacher == sides[0].parameters * 4
    mixed = load_recipe(pair, {"objectives": "alm+sft", "weighting": "pcgrad"})
    assert estimate_memory(mixed, *sides).student - one.student == 2 * sides[0].parameters * 4


def test_a_byte_student_has_rows_four_times_as_long_and_fewer_rows_of_embeddings(pair, tmp_path):
    byte_tokenizer(tiny_tokenizers.byte_level_bpe()).save_pretrained(tmp_path)
    values = {"student_tokenizer": str(tmp_path), "max_length": 200}
    recipe, findings = load_recipe(pair, values), Findings()
    folder = str(pair.parent / "student")
    usual = examine_side("student", folder, None, False, findings)
    side = examine_side("student", folder, None, False, findings, tokenizer_source=str(tmp_path))
    assert usual.parameters - side.parameters == 32 * (320 - side.encoder.vocab_size)
    longer, shorter = (estimate_memory(recipe, s, usual).activations for s in (side, usual))
    assert longer == 4 * shorter
    found = examine(recipe)
    (warning,) = [item for item in _named(found, "student model") if item.level == "warning"]
    assert "rows have 800 bytes, and the model is made for 512" in warning.what
    assert not [item for item in _named(found, "teacher model") if item.level == "warning"]
    (memory,) = _named(found, "memory")
    assert "batch x 800 tokens" in memory.what
