"""What a teacher wrote, as rows to train on."""

import pytest
import torch

import tiny_models
import tiny_tokenizers
from crosstill.data.collate import PairCollator
from crosstill.evaluation.divergence import sample_teacher
from crosstill.evaluation.samples import Sample, Samples
from crosstill.text.encode import text_encoder


def test_plain_prompts_and_conversations_become_rows():
    asked = [{"role": "user", "content": "Where?"}]
    items = (
        Sample("prose", 0, "Once", " upon a time", 3.0),
        Sample("chat", 1, asked, "There.", 2.0),
        Sample("chat", 2, asked, "", 0.0),
    )
    assert Samples({}, items).rows() == [
        {"prompt": "Once", "completion": " upon a time"},
        {"messages": [*asked, {"role": "assistant", "content": "There."}]},
    ]
    assert asked == [{"role": "user", "content": "Where?"}]


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_what_the_teacher_wrote_is_what_the_student_is_taught(kind, tmp_path):
    chat = {"specials": tiny_tokenizers.CHAT_SPECIALS, "chat_template": tiny_tokenizers.CHATML}
    own, other = (tiny_tokenizers.byte_level_bpe(vocab_size=size, **chat) for size in (300, 420))
    prompt = "The cat" if kind == "plain" else [{"role": "user", "content": "The cat?"}]
    samples = sample_teacher(
        tiny_models.llama(len(other)), other, {"train": [prompt] * 3},
        max_new_tokens=12, seed=0, path=tmp_path / "samples.jsonl",
    )  # fmt: skip
    rows = samples.rows()
    assert rows
    encoder = text_encoder(own)
    batch = PairCollator(encoder, text_encoder(other), max_length=128)(rows)
    for row, sample in enumerate(s for s in samples.items if s.response):
        ids = batch["student_input_ids"][row][batch["student_labels"][row] != -100]
        ids = ids[~torch.from_numpy(encoder.bytes.special)[ids]].tolist()
        assert encoder.bytes.spell(ids).decode().strip() == sample.response.strip()
