"""The model card: its front matter, its figures, and what it keeps to itself."""

import pytest
import yaml

from crosstill.transfer.card import model_card


def summary(**changes):
    stage = {"train": "full", "steps": 1200, "student_tokens": 300_000, "objective": "prefix_kl"}
    return {
        "student": "small on bytes",
        "teacher": "org/small",
        "target": {"to": "bytes", "special_tokens": "keep", "vocabulary": 258, "enriched": False},
        "initialiser": {"name": "fvt", "report": {"copied": 256, "by_role": 2, "mean": 0}},
        "stages": [stage],
        "teacher_divergence_before": 2.0,
        "teacher_divergence_after": 0.5,
        "teacher_divergence_standard_error": 0.0625,
        "teacher_divergence_before_by_kind": {"chat": 3.0},
        "teacher_divergence_after_by_kind": {"chat": 0.75},
        "student_bits_per_byte_before": 4.0,
        "student_bits_per_byte_after": 1.25,
        "teacher_bits_per_byte": 1.125,
        "seed": 7,
        "versions": {"crosstill": "9.8.7"},
        "recipe": {"train": ["/home/me/secret/rows.jsonl", "org/data"], "eval_texts": ["A text."]},
        **changes,
    }


def parts(card):
    _, front, text = card.split("---\n", 2)
    return yaml.safe_load(front), text


def test_a_base_model_of_a_hub_is_named_for_hubs():
    front, text = parts(model_card(summary()))
    assert front["base_model"] == "org/small"
    assert front["pipeline_tag"] == "text-generation"
    assert "org/small, moved to raw bytes (258 in all) with its own special tokens" in text
    assert "crosstill 9.8.7" in text


@pytest.mark.parametrize(("enriched", "library"), [(False, "transformers"), (True, "crosstill")])
def test_it_says_what_loads_it(enriched, library):
    front, text = parts(model_card(summary(target={**summary()["target"], "enriched": enriched})))
    assert front["library_name"] == library
    assert ("AutoModelForCausalLM" in text) is not enriched
    assert ("load_enriched" in text) is enriched


@pytest.mark.parametrize("name", ["/home/me/secret/small", "../small", "small"])
def test_a_folder_is_not(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = model_card(summary(teacher=name))
    assert "base_model" not in parts(card)[0]
    assert "secret" not in card.replace("/home/me/secret/rows.jsonl", "")
    assert "small, moved to raw bytes" in card


def test_every_measure_is_there_before_and_after():
    _, text = parts(model_card(summary()))
    for row in (
        "| divergence from the base model, chat | 3.000 | 0.750 |",
        "| divergence from the base model, all | 2.000 | 0.500 |",
        "| held-out text | 4.000 | 1.250 |",
        "| held-out text, the base model |  | 1.125 |",
    ):
        assert row in text
    assert "0.062" in text
    assert "full, 1,200 steps, 300,000 tokens, by `prefix_kl`" in text
    assert "256 copied, 2 by role)" in text


def test_texts_are_named_without_their_folders_and_counted_where_they_have_no_name(tmp_path):
    file = tmp_path / "secret" / "rows.jsonl"
    file.parent.mkdir()
    file.write_text("")
    recipe = {"train": [str(file)], "eval_texts": ["A text.", "Another."]}
    _, text = parts(model_card(summary(recipe=recipe)))
    assert "Texts: rows.jsonl." in text
    assert "secret" not in text
    assert "Held-out texts: 2 from the recipe." in text


def test_nothing_measured_and_nothing_trained_are_said():
    nothing = dict.fromkeys(
        (key for key in summary() if "divergence" in key or "bits_per_byte" in key), None
    )
    nothing |= {
        "teacher_divergence_before_by_kind": {},
        "teacher_divergence_after_by_kind": {},
        "stages": [],
        "recipe": {"train": None, "eval_texts": []},
    }
    _, text = parts(model_card(summary(**nothing)))
    assert "Nothing was measured" in text
    assert "Nothing was trained" in text


def test_a_target_of_a_hub_by_its_name():
    target = {**summary()["target"], "to": "org/other", "special_tokens": "change"}
    target["vocabulary"] = 1000
    _, text = parts(model_card(summary(target=target)))
    assert "the tokens of org/other (1,000 in all) with the target's special tokens" in text
