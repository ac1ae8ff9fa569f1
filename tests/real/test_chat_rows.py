"""Rows through the real chat templates, and between the real tokenizers."""

import json

import pytest

from crosstill.data.collate import PairCollator
from crosstill.text.encode import text_encoder
from crosstill.text.render import render
from crosstill.text.roles import special_roles

ROLES = {
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", None),
    "gemma3": ("<bos>", "<eos>", "<end_of_turn>", "<pad>"),
    "qwen3": (None, "<|endoftext|>", "<|im_end|>", "<|endoftext|>"),
    "gpt4o": ("<|endoftext|>", "<|endoftext|>", "<|endoftext|>", None),
    "deepseek_v3": (
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
    ),
    "llama2": ("<s>", "</s>", "</s>", None),
    "gptoss": ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|endoftext|>"),
}
HEADERS = {
    "llama3": (["<|start_header_id|>"], ["<|end_header_id|>"]),
    "gemma3": (["<start_of_turn>"], []),
    "qwen3": (["<|im_start|>"], []),
    "deepseek_v3": (["<｜Assistant｜>", "<｜User｜>"], []),
    "gptoss": (["<|start|>"], ["<|message|>"]),
}
WITH_TEMPLATE = ("llama3", "gemma3", "qwen3", "deepseek_v3")
THINKING = "<think>\nTwo and two.\n</think>\n\nFour."
CHATS = {
    "plain": [("user", "What is 2+2?"), ("assistant", "It is four.")],
    "many turns": [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "See")],
    "system": [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")],
    "spaces": [("user", "  Hi \n\n\n"), ("assistant", "\n\n Hello\t\n")],
    "template words": [
        ("user", "user"),
        ("assistant", "\n"),
        ("user", "model"),
        ("assistant", "a"),
    ],
    "scripts": [("user", "東京 \U0001f600 e\u0301 \u0e19\u0e49\u0e33"), ("assistant", "‏שלום 한국")],
    "thinking": [("user", "2+2?"), ("assistant", THINKING)],
    "earlier thinking": [
        ("user", "2?"),
        ("assistant", THINKING),
        ("user", "?"),
        ("assistant", "4"),
    ],
}


def row_of(turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize("name", ROLES)
def test_roles(real_tokenizer, name):
    tokenizer = real_tokenizer(name)
    roles = special_roles(tokenizer)
    literal = {id: str(token) for id, token in tokenizer.added_tokens_decoder.items()}
    found = (roles.bos, roles.eos, roles.eot, roles.pad)
    assert tuple(literal.get(id) for id in found) == ROLES[name]
    headers = (roles.start_header_ids, roles.end_header_ids)
    assert tuple([literal[id] for id in ids] for ids in headers) == HEADERS.get(name, ([], []))
    assert roles.role_of(roles.eos) == "eos"


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", WITH_TEMPLATE)
def test_the_model_sees_its_own_template(real_tokenizer, name, chat):
    tokenizer, row = real_tokenizer(name), row_of(CHATS[chat])
    rendered = render(row, text_encoder(tokenizer), loss_on="assistant")
    assert rendered.ids == tokenizer.apply_chat_template(row["messages"], return_dict=False)
    stream = rendered.encoder.bytes.spell(rendered.ids)
    for part in rendered.parts:
        if part.kind == "content":
            spelled = stream[part.start : part.end]
            assert spelled == rendered.encoder.normalization.spelled(part.text)
            said = CHATS[chat][part.message][1]
            assert said[part.offset : part.offset + len(part.text)] == part.text
    answers = {i for i, (role, _) in enumerate(CHATS[chat]) if role == "assistant"}
    taught = {(p.role, p.message) for p in rendered.parts if p.supervised}
    assert {message for _, message in taught} == answers
    assert {("eot", i) for i in answers} <= taught


@pytest.mark.parametrize("name", WITH_TEMPLATE)
def test_names_of_special_tokens_in_contents_are_spelled_out(real_tokenizer, name):
    tokenizer = real_tokenizer(name)
    encoder = text_encoder(tokenizer)
    names = [str(token) for token in tokenizer.added_tokens_decoder.values()][:40]
    names += [literal for literal in ROLES[name] if literal]
    answer = "".join(name for name in names if "think" not in name)  # Qwen3 drops thinking
    hostile = row_of([("user", " ".join(names)), ("assistant", answer)])
    plain = row_of([("user", "a"), ("assistant", "b")])
    found, expected = (render(row, encoder) for row in (hostile, plain))
    special = encoder.bytes.special
    assert [i for i in found.ids if special[i]] == [i for i in expected.ids if special[i]]
    stream = encoder.bytes.spell(found.ids)
    texts = [stream[p.start : p.end].decode() for p in found.parts if p.kind == "content"]
    assert texts == [m["content"] for m in hostile["messages"]]


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("qwen3", "llama3"),
        ("llama3", "gemma3"),
        ("gemma3", "deepseek_v3"),
        ("deepseek_v3", "qwen3"),
    ],
)
def test_grade_school_answers_align_byte_for_byte(real_tokenizer, data_folder, student, teacher):
    lines = (data_folder / "gsm8k" / "train.jsonl").read_text().splitlines()[:40]
    said = [json.loads(line) for line in lines]
    rows = [row_of([("user", r["question"]), ("assistant", r["answer"])]) for r in said]
    ours, theirs = text_encoder(real_tokenizer(student)), text_encoder(real_tokenizer(teacher))
    batch = PairCollator(ours, theirs, max_length=512)(rows)
    assert batch["skipped"].sum() == 0
    assert batch["aligned_bytes"].tolist() == [len(r["answer"].encode()) for r in said]
    for i, row in enumerate(said):
        taught = [id for id in batch["student_labels"][i].tolist() if id != -100]
        assert ours.bytes.spell(taught).decode() == row["answer"]
        assert taught[-1] == ours.roles.eot
        for chunk in range(int(batch["student_chunk"][i].max()) + 1):
            spelled = {
                encoder.bytes.spell(
                    batch[f"{side}_input_ids"][i][batch[f"{side}_chunk"][i] == chunk]
                )
                for side, encoder in (("student", ours), ("teacher", theirs))
            }
            assert len(spelled) == 1
