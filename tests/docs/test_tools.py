"""The scripts that make the documentation."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import tiny_tokenizers
from crosstill.text.bytes import token_bytes

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_picture_has_a_box_for_every_token(tmp_path):
    text = "Grüße <b>aus</b> 東京 & \x1b"
    made = {
        "student": tiny_tokenizers.byte_level_bpe(),
        "teacher": tiny_tokenizers.bytes_only(),
    }
    for role, tokenizer in made.items():
        tokenizer.save_pretrained(tmp_path / role)
    output = tmp_path / "out.svg"
    tool = str(ROOT / "tools" / "draw_alignment.py")
    command = [sys.executable, tool, "student", "teacher", str(output), "--text", text]
    subprocess.run(command, check=True, cwd=tmp_path)
    boxes = ElementTree.parse(output).getroot().findall(f"{SVG}rect")  # noqa: S314
    student = made["student"].encode(text, add_special_tokens=False)
    assert len(boxes) == len(student) + len(text.encode())
    assert token_bytes(made["student"]).spell(student) == text.encode()


def test_a_missing_tokenizer_is_one_line(tmp_path):
    tool = str(ROOT / "tools" / "draw_alignment.py")
    done = subprocess.run(
        [sys.executable, tool, "/no/such/folder", "/no/such/folder", "out.svg"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "/no/such/folder does not exist" in done.stderr


def test_the_stored_picture_is_small_and_whole():
    file = ROOT / "docs" / "assets" / "alignment.svg"
    assert file.stat().st_size < 20_000
    assert ElementTree.parse(file).getroot().tag == f"{SVG}svg"  # noqa: S314


def test_docstrings_as_the_pages_show_them():
    pytest.importorskip("griffe")
    rewritten = script("griffe_docstrings").rewritten
    found = rewritten(
        "Add :math:`a + b`.\n\n.. math:: \\sum_k a_k\n          + b\n\nText.\n\n"
        "Example:\n    >>> 1\n"
    )
    assert found == ("Add `a + b`.\n\n    \\sum_k a_k\n    + b\n\nText.\n\nExamples:\n    >>> 1\n")
