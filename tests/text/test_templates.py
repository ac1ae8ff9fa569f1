"""Rendering chat templates within bounds, and locating contents in what they write."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosstill.errors import ConfigError
from crosstill.text.rows import RowFault, parse_row
from crosstill.text.templates import locate, render_chat
from text.chat import (
    CHATML,
    DEFAULT_SYSTEM,
    GEMMA,
    GPT_OSS,
    LLAMA2,
    LLAMA3,
    THINKING,
    family_tokenizer,
)

TEMPLATES = {
    "llama3": LLAMA3,
    "chatml": CHATML,
    "system": DEFAULT_SYSTEM,
    "gemma": GEMMA,
    "thinking": THINKING,
    "llama2": LLAMA2,
    "gpt-oss": GPT_OSS,
}
USER = {"role": "user", "content": "Hi"}
TOKENIZER = family_tokenizer("llama3-instruct")


def with_template(template):
    TOKENIZER.chat_template = template
    return TOKENIZER


def chat(*contents, first="user"):
    roles = ["user", "assistant"] if first == "user" else ["system", "user", "assistant"]
    rest = ["user", "assistant"] * len(contents)
    names = roles + rest
    return parse_row(
        {"messages": [{"role": r, "content": c} for r, c in zip(names, contents, strict=False)]}
    )


@pytest.mark.parametrize("name", TEMPLATES)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=5).filter(any))
def test_what_is_located_is_what_the_row_says_and_the_template_wrote(name, contents):
    tokenizer, conversation = with_template(TEMPLATES[name]), chat(*contents)
    text, places = locate(tokenizer, conversation)
    plain = tokenizer.apply_chat_template(
        [m.as_dict() for m in conversation.messages], tokenize=False
    )
    assert text == plain
    for place in places:
        said = contents[place.message][place.offset :][: place.end - place.start]
        assert text[place.start : place.end] == said
        assert said.strip() == contents[place.message].strip()
    assert [place.message for place in places] == list(range(len(contents)))
    assert all(a.end <= b.start for a, b in pairwise(places))


def test_contents_equal_to_template_words_are_found_where_they_stand():
    text, places = locate(with_template(CHATML), chat("user", "assistant", "\n", "user"))
    assert [p.start for p in places] == [
        text.index("user\nuser") + 5,
        text.index("assistant\nassistant") + 10,
        text.index("user\n\n") + 5,
        text.rindex("user"),
    ]


def test_a_system_turn_folded_into_the_first_user_turn():
    text, places = locate(with_template(GEMMA), chat("Be brief.", "Hi", "Hello", first="system"))
    assert [text[p.start : p.end] for p in places] == ["Be brief.", "Hi", "Hello"]
    assert text.count("<start_of_turn>") == 2


def test_stripped_contents_say_what_was_stripped_in_front():
    text, places = locate(with_template(LLAMA3), chat("  Hi\n", "\n\nYes "))
    assert [(p.offset, text[p.start : p.end]) for p in places] == [(2, "Hi"), (2, "Yes")]


def test_a_content_left_out_has_no_place():
    template = (
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.content }}"
        "{% endif %}{% endfor %}"
    )
    _, places = locate(with_template(template), chat("Secret", "Hi", "Hello", first="system"))
    assert [p.message for p in places] == [1, 2]


def test_thinking_is_located_apart_from_the_answer():
    content = "<think>\nTwo and two.\n</think>\n\nFour."
    text, places = locate(with_template(THINKING), chat("2+2?", content))
    assert [(p.message, p.offset, text[p.start : p.end]) for p in places] == [
        (0, 0, "2+2?"),
        (1, content.index("Two"), "Two and two."),
        (1, content.index("Four"), "Four."),
    ]


def test_thinking_that_the_template_drops_has_no_place():
    content = "<think>Two and two.</think>Four."
    text, places = locate(with_template(THINKING), chat("2+2?", content, "Sure?", "Yes."))
    assert [text[p.start : p.end] for p in places] == ["2+2?", "Four.", "Sure?", "Yes."]
    assert "Two" not in text


def test_thinking_of_a_user_is_ordinary_content():
    content = "What does <think> a </think> do?"
    text, places = locate(with_template(THINKING), chat(content, "<think>b</think>It thinks."))
    assert text[places[0].start : places[0].end] == content


def test_thinking_stays_whole_where_the_template_leaves_it():
    content = "<think>Two and two.</think>Four."
    text, places = locate(with_template(CHATML), chat("2+2?", content))
    assert text[places[1].start : places[1].end] == content


def test_a_template_that_looks_at_contents_is_searched():
    """Markers change its course here, so that contents are found by search, once each."""
    template = (
        "{% for m in messages %}{% if 'x' in m.content %}[long]{% else %}[short]{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    _, places = locate(with_template(template), chat("good day", "bye bye"))
    assert [p.end - p.start for p in places] == [8, 7]
    with pytest.raises(RowFault) as caught:
        locate(with_template(template), chat("o", "no"))
    assert caught.value.reason == "template"


def test_a_template_that_rewrites_contents_is_a_fault():
    template = "{% for m in messages %}<|im_start|>{{ m.content | upper }}{% endfor %}"
    with pytest.raises(RowFault, match="rewrites contents") as caught:
        locate(with_template(template), chat("Hi", "there"))
    assert caught.value.reason == "template"


def test_the_mark_itself_may_stand_in_a_row():
    mark = "crosstill9markx0x"
    text, places = locate(with_template(CHATML), chat(mark, "crosstill9mark9x1x"))
    assert text[places[0].start : places[0].end] == mark
    assert text[places[1].start : places[1].end] == "crosstill9mark9x1x"


def test_tool_calls_without_content_stand_as_scaffold():
    template = (
        "{% for m in messages %}<|im_start|>{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}{% endfor %}"
        "{{ tools | tojson }}"
    )
    row = {
        "messages": [
            {"role": "user", "content": "What is it?"},
            {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]},
        ],
        "tools": [{"name": "look"}],
    }
    text, places = locate(with_template(template), parse_row(row))
    assert text.endswith('<|im_start|>{"name": "look"}[{"name": "look"}]')
    assert [p.message for p in places] == [0]


def test_arguments_of_the_row_go_before_those_of_the_run():
    template = "{{ mood }}:{% for m in messages %}{{ m.content }}{% endfor %}"
    row = {"messages": [{"role": "user", "content": "Hi"}]}
    tokenizer = with_template(template)
    assert render_chat(tokenizer, parse_row(row), {"mood": "glad"}) == "glad:Hi"
    row["chat_template_kwargs"] = {"mood": "sad"}
    assert render_chat(tokenizer, parse_row(row), {"mood": "glad"}) == "sad:Hi"
    with pytest.raises(ConfigError, match="tokenize"):
        render_chat(tokenizer, parse_row(row), {"tokenize": True})


def test_a_conversation_the_template_refuses_is_a_fault():
    with pytest.raises(RowFault, match="roles must alternate") as caught:
        locate(
            with_template(GEMMA), parse_row({"messages": [{"role": "user", "content": "a"}] * 2})
        )
    assert caught.value.reason == "template"


def test_no_template_is_an_error_that_says_what_to_do():
    with pytest.raises(ConfigError, match=r"instruction-tuned.*tokenizer\.chat_template"):
        locate(with_template(None), chat("Hi", "Hello"))


HOSTILE = {
    "attribute escape": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "function globals": "{{ cycler.__init__.__globals__.os.system('true') }}",
    "nested loops": "{% for a in range(9**5) %}{% for b in range(9**5) %}{% endfor %}{% endfor %}",
    "huge repeat": "{{ 'a' * (2 * 10 ** 7) }}",
    "syntax": "{% for m in messages %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_s06_hostile_template_is_a_fault_and_no_hang(name):
    started = time.monotonic()
    with pytest.raises(RowFault) as caught:
        render_chat(with_template(HOSTILE[name]), chat("Hi", "Hello"))
    assert caught.value.reason == "template"
    assert time.monotonic() - started < 20  # 2 s, on a machine with nothing else to do
