import json

import numpy as np
import pytest
import torch

import tiny_models
import tiny_tokenizers
from crosstill.errors import ConfigError, DataError
from crosstill.evaluation import divergence as module
from crosstill.evaluation.bits_per_byte import score
from crosstill.evaluation.divergence import sample_teacher, teacher_divergence, whole_text
from crosstill.evaluation.samples import Sample, Samples, read_samples, write_samples
from crosstill.evaluation.sampling import sample

PROMPTS = {
    "chat": [[{"role": "user", "content": "Hello!"}], [{"role": "user", "content": "Who?"}]],
    "prose": ["The cat", "The other cats", ""],
}
SETTINGS = {"max_new_tokens": 12, "samples_per_prompt": 3, "seed": 5}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizers.byte_level_bpe(
        specials=tiny_tokenizers.CHAT_SPECIALS, chat_template=tiny_tokenizers.CHATML
    )


@pytest.fixture(scope="module")
def teacher(tokenizer):
    return tiny_models.llama(len(tokenizer), scale=4.0)


@pytest.fixture(scope="module")
def samples(teacher, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("samples") / "teacher.jsonl"
    return sample_teacher(teacher, tokenizer, PROMPTS, path=path, **SETTINGS)


def test_equal_models_have_no_divergence(teacher, tokenizer, samples):
    found = teacher_divergence(teacher, tokenizer, teacher, tokenizer, samples)
    for gap in (found.overall, *found.kinds.values()):
        assert gap.divergence == pytest.approx(0.0, abs=1e-6)
        assert gap.standard_error == pytest.approx(0.0, abs=1e-6)
        assert gap.student_bits_per_byte == pytest.approx(gap.teacher_bits_per_byte)


def test_another_student_is_worse_by_what_the_scores_say(tokenizer, teacher, samples):
    other = tiny_tokenizers.metaspace_bpe_with_byte_fallback(
        specials=tiny_tokenizers.CHAT_SPECIALS, chat_template=tiny_tokenizers.CHATML
    )
    student = tiny_models.llama(len(other), seed=3)
    found = teacher_divergence(student, other, teacher, tokenizer, samples)
    items = [s for s in samples.items if s.response]
    scores = score(student, other, [(s.prompt, s.response) for s in items])
    size = sum(len(s.response.encode()) for s in items)
    expected = (scores.nats.sum() - sum(s.teacher_nats for s in items)) / np.log(2) / size
    assert found.overall.divergence == pytest.approx(expected, rel=1e-6)
    assert found.overall.bytes == size
    assert list(found.kinds) == ["chat", "prose"]
    assert sum(gap.bytes for gap in found.kinds.values()) == size
    assert sum(gap.samples for gap in found.kinds.values()) == len(items)


def test_an_unlike_student_is_far_away(tmp_path):
    # bytes have one tokenization, so nothing but the models tells the two apart
    tokenizer = tiny_tokenizers.bytes_only()
    teacher = tiny_models.llama(len(tokenizer), scale=4.0)
    student = tiny_models.llama(len(tokenizer), scale=4.0, seed=1)
    prompts = {"prose": [f"The cat {i}" for i in range(10)]}
    samples = sample_teacher(
        teacher, tokenizer, prompts, max_new_tokens=30, seed=0, path=tmp_path / "x"
    )
    found = teacher_divergence(student, tokenizer, teacher, tokenizer, samples).overall
    assert found.divergence > 3 * found.standard_error > 0


def test_the_teacher_need_not_be_there(teacher, tokenizer, samples):
    student = tiny_models.llama(len(tokenizer), seed=3)
    assert teacher_divergence(student, tokenizer, None, None, samples) == teacher_divergence(
        student, tokenizer, teacher, tokenizer, samples
    )


def test_the_error_counts_prompts_not_responses():
    student = np.array([10.0, 10.0, 30.0, 30.0])
    teacher = np.zeros(4)
    num_bytes = np.array([10, 10, 10, 10])
    alone = module._gap(student[::2], teacher[::2], num_bytes[::2], np.array([0, 1]))
    twice = module._gap(student, teacher, num_bytes, np.array([0, 0, 1, 1]))
    # two prompts with ratios 1 and 3 nats a byte: mean 2, standard error 1
    assert alone.divergence == pytest.approx(2 / np.log(2))
    assert alone.standard_error == pytest.approx(1 / np.log(2))
    assert twice.standard_error == pytest.approx(alone.standard_error)
    assert np.isnan(module._gap(student, teacher, num_bytes, np.zeros(4)).standard_error)


def test_a_file_is_written_once(teacher, tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "deep" / "teacher.jsonl"
    first = sample_teacher(teacher, tokenizer, PROMPTS, path=path, **SETTINGS)
    monkeypatch.setattr(module, "sample", lambda *_a, **_k: pytest.fail("drawn again"))
    monkeypatch.setattr(module, "score", lambda *_a, **_k: pytest.fail("scored again"))
    assert sample_teacher(teacher, tokenizer, PROMPTS, path=path, **SETTINGS) == first
    assert [p.name for p in path.parent.iterdir()] == ["teacher.jsonl"]


def test_draws_repeat(teacher, tokenizer, samples, tmp_path):
    again = sample_teacher(teacher, tokenizer, PROMPTS, path=tmp_path / "x", **SETTINGS)
    assert again == samples
    other = {**SETTINGS, "seed": 6}
    different = sample_teacher(teacher, tokenizer, PROMPTS, path=tmp_path / "y", **other)
    assert [s.response for s in different.items] != [s.response for s in samples.items]


def test_a_file_of_something_else_is_refused(teacher, tokenizer, tmp_path):
    path = tmp_path / "teacher.jsonl"
    sample_teacher(teacher, tokenizer, PROMPTS, path=path, **SETTINGS)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="another seed"):
        sample_teacher(teacher, tokenizer, PROMPTS, path=path, **{**SETTINGS, "seed": 6})
    with pytest.raises(ConfigError, match="another prompts"):
        sample_teacher(teacher, tokenizer, {"prose": ["A"]}, path=path, **SETTINGS)
    other = tiny_models.llama(len(tokenizer), seed=9)
    with pytest.raises(ConfigError, match="another teacher"):
        sample_teacher(other, tokenizer, PROMPTS, path=path, **SETTINGS)
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match="of another teacher"):
        teacher_divergence(other, tokenizer, other, tokenizer, read_samples(path))


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "no-header"])
def test_a_damaged_file(samples, tmp_path, damage):
    path = tmp_path / "teacher.jsonl"
    write_samples(path, samples)
    whole = path.read_bytes()
    lines = whole.split(b"\n")
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "empty": b"",
            "text": b"hello",
            "no-header": b"\n".join(lines[1:]),
        }[damage]
    )
    with pytest.raises(DataError, match=r"teacher\.jsonl is not a whole samples file"):
        read_samples(path)


def test_samples_survive_the_file(tmp_path):
    items = (
        Sample("prose", 0, "a\u2028b", "é\n\x00 \u2028", 0.1 + 0.2),
        Sample("chat", 1, [{"role": "user", "content": "x"}], "", 0.0),
    )
    samples = Samples({"seed": 1}, items)
    assert read_samples(write_and_path(tmp_path, samples)) == samples
    assert read_samples(tmp_path / "none") is None


def write_and_path(folder, samples):
    path = folder / "s.jsonl"
    write_samples(path, samples)
    assert json.loads(path.read_bytes().split(b"\n")[0])["count"] == len(samples.items)
    return path


def test_no_prompt_and_no_response(teacher, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="no prompt"):
        sample_teacher(teacher, tokenizer, {}, path=tmp_path / "x", **SETTINGS)
    empty = Samples({}, (Sample("prose", 0, "a", "", 0.0),))
    with pytest.raises(ConfigError, match="empty responses"):
        teacher_divergence(teacher, tokenizer, None, None, empty)


def test_an_empty_prompt_needs_an_opening_token(tmp_path):
    tokenizer = tiny_tokenizers.byte_level_bpe(specials={})
    model = tiny_models.llama(len(tokenizer))
    with pytest.raises(ConfigError, match="no token for this teacher"):
        sample_teacher(model, tokenizer, {"prose": [""]}, path=tmp_path / "x", **SETTINGS)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"abc", "abc"),
        ("a😀".encode()[:-1], "a"),
        (b"a\xffb", "a"),
        (b"\x80", ""),
        (b"", ""),
    ],
)
def test_bytes_that_are_no_text_are_cut(raw, text):
    assert whole_text(raw) == text


class TestSampling:
    """The draws follow the model's own distribution, whatever the batch looks like."""

    def test_frequencies_are_the_models_probabilities(self):
        model = tiny_models.llama(12, scale=6.0)
        prompt = [3, 5, 1]
        stop = np.zeros(12, dtype=bool)
        drawn = sample(
            model, [prompt] * 1500, stop=stop, max_new_tokens=2, seed=1, rows_per_batch=750
        )
        with torch.no_grad():
            first = model(torch.tensor([prompt])).logits[0, -1].softmax(-1).numpy()
            token = int(first.argmax())
            second = model(torch.tensor([[*prompt, token]])).logits[0, -1].softmax(-1).numpy()
        counts = np.bincount([ids[0] for ids in drawn], minlength=12) / len(drawn)
        after = [ids[1] for ids in drawn if ids[0] == token]
        counts_after = np.bincount(after, minlength=12) / len(after)
        np.testing.assert_allclose(counts, first, atol=5 * np.sqrt(0.25 / len(drawn)))
        np.testing.assert_allclose(counts_after, second, atol=5 * np.sqrt(0.25 / len(after)))
        assert 0.02 < first.max() < 0.98, "else the test sees nothing"

    def test_prompts_of_other_lengths_in_the_batch_change_nothing(self):
        # a model that is all but certain draws the same token, alone or in company
        model = tiny_models.llama(50, tied=False)
        with torch.no_grad():
            model.lm_head.weight *= 3000
        prompts = [[1], [4, 9, 2, 7], [8, 8], [3] * 45]

        def greedy(prompt):
            ids = list(prompt)
            with torch.no_grad():
                for _ in range(6):
                    logits = model(torch.tensor([ids])).logits[0, -1]
                    top = logits.topk(2).values
                    assert top[0] - top[1] > 15, "not certain enough to test with"
                    ids.append(int(logits.argmax()))
            return ids[len(prompt) :]

        drawn = sample(model, prompts, stop=np.zeros(50, dtype=bool), max_new_tokens=6, seed=0)
        assert drawn == [greedy(prompt) for prompt in prompts]

    def test_a_stopping_token_ends_a_text_and_is_no_part_of_it(self):
        model = tiny_models.llama(8)
        stop = np.zeros(8, dtype=bool)
        stop[[2, 5]] = True
        drawn = sample(model, [[1], [1, 1]] * 40, stop=stop, max_new_tokens=10, seed=0)
        assert not {2, 5} & {id for ids in drawn for id in ids}
        assert {len(ids) for ids in drawn} > {0, 1, 2}
        assert max(len(ids) for ids in drawn) <= 10

    def test_surplus_rows_are_never_drawn(self):
        model = tiny_models.llama(64, tied=False)
        with torch.no_grad():
            model.lm_head.weight[8:] *= 100
        drawn = sample(model, [[1]] * 50, stop=np.zeros(8, bool), max_new_tokens=5, seed=0)
        assert max(id for ids in drawn for id in ids) < 8

    def test_the_settings_that_come_with_a_model_are_ignored(self):
        model = tiny_models.llama(8)
        free = sample(model, [[1]] * 9, stop=np.zeros(8, bool), max_new_tokens=5, seed=0)
        model.generation_config.top_k = 1
        model.generation_config.repetition_penalty = 9.0
        again = sample(model, [[1]] * 9, stop=np.zeros(8, bool), max_new_tokens=5, seed=0)
        assert free == again
