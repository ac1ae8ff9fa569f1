"""The verb `ensemble`: what it writes, and what a person sees when something is wrong."""

import json

import pytest

from crosstill import bits_per_byte
from crosstill.ensemble.bytes import ByteEnsemble
from crosstill.hub import load_model, load_tokenizer
from tiny_ensembles import model, other_tokenizer, pivot_tokenizer
from tiny_run import crosstill


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models of one tokenizer and one of another."""
    folder = tmp_path_factory.mktemp("ensemble")
    made = {"one": pivot_tokenizer(), "two": pivot_tokenizer(), "other": other_tokenizer()}
    for seed, (name, tokenizer) in enumerate(made.items()):
        model(tokenizer, seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def test_it_writes_and_scores(folders, tmp_path):
    texts = tmp_path / "held_out.txt"
    texts.write_text("A text that nobody has trained on.")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Once"}\n{"messages": [{"role": "user", "content": "Hi"}]}\n')
    pair = (folders / "one", folders / "two")
    outcome = crosstill(
        "ensemble", *pair, "--prompt", "The cat", "--file", prompts, "--score", texts,
        "--weights", "3,1", "--max-new-tokens", 6, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert [one["prompt"] for one in found["written"]][:2] == ["The cat", "Once"]
    assert found["weights"] == [0.75, 0.25]
    alone = [
        bits_per_byte(load_model(one), load_tokenizer(one), [texts.read_text()]) for one in pair
    ]
    assert found["members"] == pytest.approx(alone)
    assert 0 < found["bits_per_byte"] < max(alone)


def test_one_model_alone_is_that_model(folders, tmp_path):
    texts = tmp_path / "held_out.txt"
    texts.write_text("Some text.")
    found = json.loads(crosstill("ensemble", folders / "one", "--score", texts, "--json").out)
    assert found["bits_per_byte"] == pytest.approx(found["members"][0], rel=1e-6)


def test_models_of_any_tokenizers_vote_on_bytes(folders, tmp_path):
    texts = tmp_path / "held_out.txt"
    texts.write_text("Some text.")
    pair = folders / "one", folders / "other"
    outcome = crosstill(
        "ensemble", *pair, "--vocabulary", "bytes", "--score", texts, "--prompt", "The cat",
        "--max-new-tokens", 3, "--weights", "2,1", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    both = ByteEnsemble(
        [load_model(one) for one in pair], [load_tokenizer(one) for one in pair], weights=[2, 1]
    )
    assert found["bits_per_byte"] == pytest.approx(both.score([texts.read_text()]).bits_per_byte)
    assert found["written"][0]["text"] == both.write("The cat", max_new_bytes=3)
    alone = [
        ByteEnsemble([load_model(one)], [load_tokenizer(one)]).score([texts.read_text()])
        for one in pair
    ]
    assert found["members"] == pytest.approx([one.bits_per_byte for one in alone])


@pytest.mark.parametrize("vocabulary", ["shared", "mined", "bytes"])
def test_a_stream_says_what_is_written(folders, vocabulary):
    args = ("ensemble", folders / "one", folders / "other", "--vocabulary", vocabulary,
            "--prompt", "Where?", "--chat", "--max-new-tokens", 8)  # fmt: skip
    plain, streamed = crosstill(*args), crosstill(*args, "--stream")
    assert plain.code == streamed.code == 0, plain.err + streamed.err
    assert plain.out == streamed.out
    assert len(plain.out) > 1


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ((), ("nothing to do", "--prompt", "--score")),
        (("--prompt", "a", "--weights", "1,x"), ("--weights", "2,1,1")),
        (("--prompt", "a", "--weights", "1"), ("one weight for each of 2 models",)),
        (("--prompt", "a", "--weights", "1,-1"), ("at least 0",)),
        (("--prompt", "a", "--mix", "max"), ("expected a mix", "log_probabilities")),
        (("--prompt", "a", "--vocabulary", "all"), ("expected a vocabulary", "shared", "bytes")),
        (("--prompt", "a"), ("ids differ", "crosstill transfer", "'shared'")),
        (("--prompt", "a", "--vocabulary", "shared", "--top-p", "0"), ("top_p",)),
        (("--prompt", "a", "--vocabulary", "bytes", "--top-k", "3"), ("bytes knows no top_k",)),
        (("--prompt", "a", "--stream", "--json"), ("--stream and --json",)),
    ],
)
def test_faults_are_one_clear_line(folders, more, parts):
    outcome = crosstill("ensemble", folders / "one", folders / "other", *more)
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith("crosstill: ")
    assert all(part in line for part in parts), line
    assert outcome.out == ""


def test_a_missing_model_names_the_nearest(folders):
    outcome = crosstill("ensemble", folders / "one", folders / "twoo", "--prompt", "a")
    assert outcome.code == 2
    assert "two?" in outcome.err
