"""Rows in one shape, and what of them is taught."""

import pickle

import pytest

from crosstill.errors import ConfigError, DataError
from crosstill.text.rows import Message, RowFault, check_loss_on, parse_row

SYSTEM, USER, ASSISTANT = (
    {"role": role, "content": f"{role} says"} for role in ("system", "user", "assistant")
)
CHAT = {"messages": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]}
ENDS_WITH_USER = {"messages": [USER, ASSISTANT, USER]}
PAIR = {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}
LONG_PAIR = {"prompt": [USER], "completion": [ASSISTANT, USER, ASSISTANT]}
STRINGS = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    ("row", "completion", "assistant", "everything"),
    [
        (CHAT, {4}, {2, 4}, {0, 1, 2, 3, 4}),
        (ENDS_WITH_USER, {1}, {1}, {0, 1, 2}),
        ({"messages": [USER]}, set(), set(), {0}),
        (PAIR, {3}, {1, 3}, {0, 1, 2, 3}),
        (LONG_PAIR, {1, 3}, {1, 3}, {0, 1, 2, 3}),
        (STRINGS, {1}, {1}, {0, 1}),
        ({"text": "a"}, {0}, {0}, {0}),
    ],
)
def test_what_is_taught(row, completion, assistant, everything):
    conversation = parse_row(row)
    assert conversation.supervised("completion") == completion
    assert conversation.supervised("assistant") == assistant
    assert conversation.supervised("all") == everything


def test_content_may_be_a_list_of_texts():
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]
    conversation = parse_row({"messages": [{"role": "user", "content": content}]})
    assert conversation.messages == (Message("user", "a b"),)


def test_empty_contents_beside_others_are_fine():
    row = {"messages": [{"role": "system", "content": ""}, USER]}
    assert parse_row(row).messages[0].content == ""
    assert parse_row({"prompt": "", "completion": "a"}).plain
    assert parse_row({"prompt": "a", "completion": ""}).supervised("completion") == {1}


def test_none_is_absent():
    row = {"text": None, "prompt": None, "messages": [{**USER, "tool_calls": None}], "tools": None}
    conversation = parse_row(row)
    assert conversation.messages[0].extra == {}
    assert conversation.tools is None


def test_tools_as_a_list_or_as_json():
    tools = [{"function": {"name": "f"}}]
    for given in (tools, '[{"function": {"name": "f"}}]'):
        assert parse_row({"messages": [USER], "tools": given}).tools == tuple(tools)


@pytest.mark.parametrize(
    ("row", "reason", "said"),
    [
        ({}, "malformed", "got the keys []"),
        ("text", "malformed", "str 'text'"),
        ({"prompt": "a"}, "malformed", "prompt"),
        ({"text": b"a"}, "malformed", "bytes"),
        ({"messages": {"role": "user"}}, "malformed", "dict"),
        ({"messages": ["hello"]}, "malformed", "messages[0]"),
        ({"messages": [USER, {"role": 3, "content": "a"}]}, "malformed", "messages[1]"),
        ({"messages": [{"role": "user"}]}, "malformed", "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "malformed", "int 5"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "malformed", "content[0]"),
        ({"messages": [USER], "tools": "{"}, "malformed", "JSON"),
        ({"messages": [USER], "tools": {"a": 1}}, "malformed", "list"),
        ({"messages": [USER], "chat_template_kwargs": [1]}, "malformed", "mapping"),
        ({"prompt": "a", "completion": [USER]}, "malformed", "str and list"),
        ({"text": ""}, "empty", "text"),
        ({"prompt": "", "completion": ""}, "empty", "text"),
        ({"messages": [{"role": "user", "content": ""}]}, "empty", "text"),
        ({"text": "ok \ud83d"}, "bad_unicode", "'\\ud83d' at character 3"),
        ({"prompt": "a", "completion": "\udc00"}, "bad_unicode", "completion"),
    ],
)
def test_faults_name_the_field_and_what_came(row, reason, said):
    with pytest.raises(RowFault) as caught:
        parse_row(row)
    assert caught.value.reason == reason
    assert said in str(caught.value)
    assert str(caught.value).isascii()


def test_a_fault_survives_the_way_back_from_a_worker():
    fault = pickle.loads(pickle.dumps(RowFault("empty", "nothing")))  # noqa: S301
    assert (fault.reason, str(fault), fault.exit_code) == ("empty", "nothing", 3)
    assert isinstance(fault, DataError)


def test_loss_on_is_one_of_three_words():
    with pytest.raises(ConfigError, match="'prompt'"):
        check_loss_on("prompt")
