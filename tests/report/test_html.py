import json
from html.parser import HTMLParser

import pytest

from crosstill.errors import DataError
from crosstill.report.html import render, write_report
from crosstill.report.page import kinds

SUMMARY = {
    "student": "models/small",
    "teacher": "models/large",
    "teacher_divergence_before": 1.25,
    "teacher_divergence_after": 0.5,
    "gap_closed": 0.6,
    "teacher_bits_per_byte": 1.0,
    "student_bits_per_byte_before": 2.0,
    "student_bits_per_byte_after": 1.5,
    "steps": 3000,
    "student_tokens": 1234567,
    "seconds": 605.0,
    "aligned_byte_fraction": 0.9931,
    "rows_skipped": {"unknown_token": 3},
    "objective": "alm",
    "seed": 7,
    "versions": {"torch": "2.13.0"},
    "recipe": {"training": {"learning_rate": 0.0001}},
}
LINES = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_divergence": 0.5}]


class _Page(HTMLParser):
    """Visible text, elements, and everything that would make a browser ask the network."""

    def __init__(self):
        super().__init__()
        self.text, self.tags, self.outside = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.outside += [v for k, v in attrs if k in ("src", "href", "srcset", "action")]

    def handle_data(self, data):
        self.text.append(data)


def _parsed(html):
    page = _Page()
    page.feed(html)
    return " ".join(" ".join(page.text).split()), page


def _run_folder(folder, summary=SUMMARY, lines=LINES):
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_page_shows_the_numbers_of_the_run(tmp_path):
    path = write_report(_run_folder(tmp_path))
    assert path == tmp_path / "report.html"
    text, page = _parsed(path.read_text())
    shown = (
        "60%",
        "1.250 → 0.500",
        "2.000 → 1.500",
        "99.3%",
        "3,000",
        "10 min",
        "1,234,567",
        "rows skipped: unknown token 3",
        "training.learning_rate 0.0001",
        "torch 2.13.0",
    )
    for number in shown:
        assert number in text, number
    assert page.tags.count("svg") == 3


def test_curves_end_with_what_was_measured_after_the_run():
    html = render({**SUMMARY, "steps": 4}, [{"step": 0, "eval_divergence": 1.25}])
    assert "<title>0: 1.25</title>" in html
    assert "<title>4: 0.5</title>" in html


def test_the_page_needs_nothing_but_itself():
    html = render(SUMMARY, LINES)
    _, page = _parsed(html)
    assert page.outside == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "url(" not in html
    assert "@import" not in html


def test_text_from_models_and_files_cannot_become_markup():
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    html = render(
        {
            **SUMMARY,
            "student": evil.replace("/", ""),
            "objective": evil,
            "rows_skipped": {evil: 1},
            "recipe": {evil: evil},
            "versions": {evil: evil},
            "completions": [{"prompt": evil, "before": evil, "after": evil, "teacher": evil}],
            "teacher_divergence_before_by_kind": {evil: 1.0},
            "teacher_divergence_after_by_kind": {evil: 0.5},
        },
        [
            {"step": 1, f"loss/{evil}": 1.0, "loss/b": 2.0},
            {"step": 2, f"eval_divergence/{evil}": 1, "eval_divergence/b": 1},
        ],
    )
    _, page = _parsed(html)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert html.count("&lt;img") >= 10


def test_an_empty_summary_makes_a_page():
    text, _ = _parsed(render({}, []))
    assert "student" in text


def test_numbers_that_are_missing_leave_their_place_out():
    text, _ = _parsed(render({"teacher_divergence_after": 0.5, "gap_closed": None}, []))
    assert "0.500" in text
    assert "→" not in text
    assert "of the gap" not in text


def test_kinds_without_a_before_have_no_share():
    (row,) = kinds({}, {"chat": 0.5})
    assert row["before"] == row["closed"] == "–"
    (row,) = kinds({"chat": 0.0}, {"chat": 0.0})
    assert row["closed"] == "–"
    assert row["after_width"] == 0


def test_a_student_that_got_worse_is_shown_so():
    (row,) = kinds({"chat": 0.5}, {"chat": 1.0})
    assert row["closed"] == "-100%"
    assert row["after_width"] == 100
    assert row["before_width"] == 50


def test_a_half_written_last_line_is_left_out(tmp_path):
    _run_folder(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", None, "summary.json is missing"),
        ("summary.json", "{", "not valid JSON"),
        ("summary.json", "[]", "expected a JSON object"),
        ("metrics.jsonl", "{}\n{\n{}\n", "line 2"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    _run_folder(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
