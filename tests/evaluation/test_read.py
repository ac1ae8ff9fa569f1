import json

import pytest

from crosstill.errors import ConfigError, DataError
from crosstill.evaluation.read import read_prompts

USER = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Hi"}


def _write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_form_of_a_row(tmp_path):
    path = _write(
        tmp_path / "p.jsonl",
        {"prompt": "Once"},
        {"text": "Twice"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"messages": [USER, ANSWER, USER, ANSWER]},
        {"prompt": None, "text": "Thrice"},
    )
    assert read_prompts(path) == ["Once", "Twice", [USER], [USER, ANSWER, USER], "Thrice"]


def test_a_text_file_has_one_prompt_a_line(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("one\n\ntwo\u2028still two\n", encoding="utf-8")
    assert read_prompts(str(path)) == ["one", "two\u2028still two"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completion": "x"}, "line 2.*got the keys"),
        ({"prompt": 3}, "line 2.*got 3"),
        ({"prompt": [{"role": "user"}]}, "line 2.*expected text"),
        ({"messages": [ANSWER]}, "line 2.*before the answer"),
        ({"prompt": "\ud800"}, "line 2.*lone surrogate"),
        ([1], "line 2"),
        (7, "line 2"),
    ],
)
def test_bad_rows_are_named_by_their_line(tmp_path, row, message):
    path = _write(tmp_path / "p.jsonl", {"prompt": "fine"}, row)
    with pytest.raises(DataError, match=message):
        read_prompts(path)


def test_broken_json_is_named_by_its_line(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "fine"}\n{"prompt": \n')
    with pytest.raises(DataError, match="line 2"):
        read_prompts(path)


@pytest.mark.parametrize(("name", "error"), [("p.jsonl", DataError), ("p.txt", DataError)])
def test_no_prompt_is_an_error(tmp_path, name, error):
    (tmp_path / name).write_text("\n")
    with pytest.raises(error, match="got none"):
        read_prompts(tmp_path / name)


def test_other_sources(tmp_path):
    rows = [{"messages": [USER, ANSWER]}, {"messages": [USER]}]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    assert read_prompts(tmp_path / "p.json") == [[USER], [USER]]
    assert read_prompts(["a", [USER, ANSWER, ANSWER]]) == ["a", [USER]]


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.jsonl"):
        read_prompts(tmp_path / "missing.jsonl")
    (tmp_path / "p.csv").write_text("a")
    with pytest.raises(ConfigError, match=r"got \.csv"):
        read_prompts(tmp_path / "p.csv")
    (tmp_path / "p.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match="UTF-8"):
        read_prompts(tmp_path / "p.txt")


@pytest.mark.parametrize("source", [[], 3, [3], [[]], [[{"role": "user"}]], {"a": 1}])
def test_a_list_of_something_else_is_the_recipes_fault(source):
    with pytest.raises(ConfigError, match=r"prompts\.chat: expected"):
        read_prompts(source, "prompts.chat")
