"""Reading rows: kinds of files, kinds of rows, and what is left out."""

import json
import sys
import types

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstill.data.jsonrows import strict_json
from crosstill.data.read import READ_REASONS, read_dataset, read_source, split_text
from crosstill.errors import ConfigError, DataError
from crosstill.text.rows import RowFault, parse_row

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def write_lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def without_none(row):
    return {k: v for k, v in row.items() if v is not None}


def test_jsonl_holds_every_kind_of_row(tmp_path):
    rows = [
        {"text": "one"},
        {"messages": CHAT},
        {"prompt": "2+2=", "completion": "4"},
    ]
    data = read_dataset(write_lines(tmp_path / "a.jsonl", rows))
    read = [without_none(row) for row in data]
    assert [row.pop("row_index") for row in read] == [0, 1, 2]
    assert read == rows
    assert [len(parse_row(row).messages) for row in data] == [1, 2, 2]


def test_prompt_and_completion_may_be_messages(tmp_path):
    row = {"prompt": CHAT[:1], "completion": CHAT[1:]}
    data = read_dataset(write_lines(tmp_path / "a.jsonl", [row]))
    conversation = parse_row(data[0])
    assert (conversation.plain, conversation.completion_from) == (False, 1)
    assert conversation.supervised("completion") == {1}


def test_unused_columns_are_left_out_and_named(tmp_path):
    rows = [{"text": "one", "id": 7}, {"text": "two", "source": "x"}]
    report = read_source(write_lines(tmp_path / "a.jsonl", rows))
    assert report.ignored_columns == ("id", "source")
    assert report.dataset.column_names == ["text", "row_index"]


def test_messages_go_before_text(tmp_path):
    report = read_source(write_lines(tmp_path / "a.jsonl", [{"messages": CHAT, "text": "flat"}]))
    assert report.ignored_columns == ("text",)
    assert report.dataset[0]["messages"] == CHAT


def test_tools_and_tool_calls_come_back_as_they_were(tmp_path):
    tools = [
        {"type": "function", "function": {"name": "add", "parameters": {"a": {"type": "integer"}}}},
        {"type": "function", "function": {"name": "now", "parameters": {}}},
    ]
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    rows = [
        {"messages": CHAT},
        {
            "messages": [CHAT[0], {"role": "assistant", "tool_calls": [call]}, CHAT[1]],
            "tools": tools,
            "chat_template_kwargs": {"enable_thinking": False},
        },
    ]
    data = read_dataset(write_lines(tmp_path / "a.jsonl", rows))
    plain, called = (parse_row(row) for row in data)
    assert plain.tools is None
    assert not plain.template_kwargs
    assert list(called.tools) == tools
    assert called.template_kwargs == {"enable_thinking": False}
    assert called.messages[1].content is None
    assert called.messages[1].extra == {"tool_calls": [call]}
    assert called.messages[2].extra == {}


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_only_a_newline_byte_ends_a_row(tmp_path, separator):
    path = tmp_path / "a.jsonl"
    text = json.dumps({"text": f"a{separator}b"}, ensure_ascii=separator < " ")
    path.write_bytes(f"{text}\n{text}\n".encode())
    assert read_dataset(path)["text"][:] == [f"a{separator}b"] * 2


def test_blank_lines_windows_line_ends_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}')
    assert read_dataset(path)["text"][:] == ["a", "b"]


def test_json_list_and_json_lines_in_a_json_file(tmp_path):
    as_list, as_lines = tmp_path / "list.json", tmp_path / "lines.json"
    as_list.write_text('\n [{"text": "a"},\n {"text": "b"}]')
    as_lines.write_text('{"text": "a"}\n{"text": "b"}')
    assert read_dataset(as_list)["text"][:] == read_dataset(as_lines)["text"][:] == ["a", "b"]


def test_parquet_and_arrow(tmp_path):
    table = Dataset.from_dict({"prompt": ["p", "q"], "completion": ["1", "2"], "id": [1, 2]})
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    for path in (tmp_path / "a.parquet", arrow):
        report = read_source(path)
        assert report.dataset["completion"][:] == ["1", "2"]
        assert report.ignored_columns == ("id",)


def test_a_folder_is_its_files_in_order_of_name(tmp_path):
    for name in ("b", "a"):
        write_lines(tmp_path / f"{name}.jsonl", [{"text": name}])
    (tmp_path / "README.md").write_text("not data")
    assert read_dataset(tmp_path)["text"][:] == ["a", "b"]
    files = [tmp_path / "b.jsonl", tmp_path / "a.jsonl"]
    assert read_dataset(files)["text"][:] == ["b", "a"]
    (tmp_path / "c.txt").write_text("c")
    with pytest.raises(ConfigError, match="one kind"):
        read_dataset(tmp_path)


def test_text_file_is_cut_into_rows_that_join_to_it_again(tmp_path):
    path = tmp_path / "a.txt"
    text = "A title\n\nFirst paragraph, a longer one.\n\nSecond.\r\nlast\ufeff"
    path.write_bytes(text.encode())
    rows = read_dataset(path, text_characters=30)["text"][:]
    assert "".join(rows) == text
    assert rows[0] == "A title\n\n"


@given(st.text(alphabet="ab \n\r\u00e9", max_size=200), st.integers(1, 40))
def test_split_text_tiles_within_the_limit(text, limit):
    pieces = list(split_text(text, limit))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= limit for piece in pieces)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_strict_json_reads_what_json_writes(value):
    for ascii_only in (True, False):
        try:
            raw = json.dumps(value, ensure_ascii=ascii_only).encode()
        except UnicodeEncodeError:
            continue
        assert strict_json(raw) == value


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_row_or_a_fault_with_a_reason(raw):
    reason = None
    try:
        parse_row(strict_json(raw))
    except RowFault as fault:
        reason = fault.reason
    assert reason is None or reason in READ_REASONS


def test_local_files_have_one_split(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "a"}])
    assert len(read_dataset(path, "train")) == 1
    with pytest.raises(ConfigError, match="validation"):
        read_dataset(path, "validation")


def test_hub_names_go_through_the_hub_module(monkeypatch):
    asked = []

    def load_dataset(name, *, split=None):
        asked.append((name, split))
        table = Dataset.from_dict({"text": ["a", "b"], "meta": [1, 2]})
        return table if split else DatasetDict({"train": table, "test": table.select([0])})

    hub = types.ModuleType("crosstill.hub")
    hub.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "crosstill.hub", hub)
    assert read_source("someone/some-set", "test").ignored_columns == ("meta",)
    assert len(read_dataset("someone/some-set")) == 2
    assert asked == [("someone/some-set", "test"), ("someone/some-set", None)]


@pytest.mark.parametrize("name", ["tran.jsonl", "missing/train.jsonl", "./train", "a/b/c"])
def test_missing_file_is_never_taken_for_a_hub_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "train.jsonl", [{"text": "a"}])
    with pytest.raises(ConfigError) as caught:
        read_dataset(name)
    if name == "tran.jsonl":
        assert "Did you mean train.jsonl?" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "expected"),
    [([], "got \\[\\]"), ({"a": 1}, "dict"), (3, "int")],
)
def test_other_sources_are_refused(source, expected):
    with pytest.raises(ConfigError, match=expected):
        read_dataset(source)


def test_unknown_suffix_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(ConfigError, match=r"\.csv"):
        read_dataset(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "arguments", [{"on_bad_row": "ignore"}, {"max_bad_rows": 2.0}, {"text_characters": 0}]
)
def test_wrong_arguments_are_refused(tmp_path, arguments):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        read_dataset(path, **arguments)


def test_columns_of_two_types_are_one_clear_error(tmp_path):
    rows = [{"prompt": "p", "completion": "c"}, {"prompt": CHAT[:1], "completion": CHAT[1:]}]
    with pytest.raises(DataError, match="one type in every row"):
        read_dataset(write_lines(tmp_path / "a.jsonl", rows))
