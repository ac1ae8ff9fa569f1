import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

import tiny_models
import tiny_tokenizers
from crosstill.blocks import states_after, transformer_blocks
from crosstill.data.collate import PairCollator
from crosstill.errors import ConfigError, DataError
from crosstill.functional.hidden import hidden_loss
from crosstill.functional.rows import chunk_rows
from crosstill.text.encode import text_encoder
from crosstill.transfer.embeddings import transplant
from crosstill.transfer.initial import Source, parse_initialiser
from crosstill.transfer.initial.fvt import Fvt
from crosstill.transfer.initial.spell import Spell, _lexicon
from crosstill.transfer.tables import write_tables

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A model reads these words in its own tokens and in others.",
    "numbers 1 22 333 and naïve café ☕",
]
QUICK = {"epochs": 1, "spelled": 3_000, "max_length": 64, "block_rate": 3e-3}


def asked(source, target, texts=TEXTS, seed=0, dtype=torch.float32):
    model = tiny_models.llama(len(source)).to(dtype)
    return Source(model, text_encoder(source), text_encoder(target), texts, seed)


@pytest.fixture
def to_bytes():
    return asked(tiny_tokenizers.byte_level_bpe(), tiny_tokenizers.bytes_only())


def distance(source, student):
    """Between the first block's states of the model and of a student, on the texts."""
    collator = PairCollator(source.target, source.source, max_length=256, loss_on="all")
    batch = collator([{"text": text} for text in TEXTS])
    rows = chunk_rows(batch["student_chunk"], batch["teacher_chunk"])
    states = [
        states_after(model, transformer_blocks(model)[0],
                     batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"])
        for model, side in ((student, "student"), (source.model, "teacher"))
    ]  # fmt: skip
    with torch.no_grad():
        loss = hidden_loss(
            states[0][rows.batch, rows.student_end],
            states[1][rows.batch, rows.teacher_end],
            distance="normalised_mse",
        )
    return float(loss.total / loss.count)


def test_the_first_block_reads_words_as_the_model_did(to_bytes):
    averaged, spelled = copy.deepcopy(to_bytes.model), copy.deepcopy(to_bytes.model)
    write_tables(averaged, Fvt().tables(to_bytes)[0])
    transplant(spelled, to_bytes.source, to_bytes.target, initial=Spell(**QUICK), texts=TEXTS)
    assert distance(to_bytes, spelled) < 0.7 * distance(to_bytes, averaged)


def test_an_autocast_around_it_keeps_no_weights_of_earlier_steps(to_bytes):
    # autocast keeps its copies of trained weights until it is left: here that is the whole start
    plain, within = copy.deepcopy(to_bytes.model), copy.deepcopy(to_bytes.model)
    pair = to_bytes.source, to_bytes.target
    transplant(plain, *pair, initial=Spell(**QUICK), texts=TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        transplant(within, *pair, initial=Spell(**QUICK), texts=TEXTS)
    assert distance(to_bytes, within) < 1.1 * distance(to_bytes, plain)


def test_only_the_first_blocks_and_the_tables_change(to_bytes):
    start = Spell(**QUICK).start(to_bytes)
    first = {n for n, _ in to_bytes.model.named_parameters() if n.startswith("model.layers.0.")}
    assert set(start.body) == first  # half of two blocks
    moved = copy.deepcopy(to_bytes.model)
    transplant(moved, to_bytes.source, to_bytes.target, initial=Spell(**QUICK), texts=TEXTS)
    ends = {"model.embed_tokens.weight", "lm_head.weight"}
    for name, weight in moved.named_parameters():
        if name in first:
            assert torch.equal(weight, start.body[name]), name
            assert not torch.equal(weight, to_bytes.model.get_parameter(name)), name
        elif name not in ends:
            assert torch.equal(weight, to_bytes.model.get_parameter(name)), name


def test_the_model_stays_as_it_was(to_bytes):
    model = to_bytes.model.train()
    before = {name: part.clone() for name, part in model.state_dict().items()}
    Spell(**QUICK).start(to_bytes)
    assert model.training
    for _, part in model.named_parameters():
        assert part.requires_grad
        assert part.grad is None
    for name, part in model.state_dict().items():
        assert torch.equal(part, before[name]), name


def test_a_model_that_keeps_its_tokenizer_keeps_its_blocks():
    tokenizer = tiny_tokenizers.byte_level_bpe()
    source = asked(tokenizer, tokenizer)
    start = Spell(**QUICK).start(source)
    for name, weight in start.body.items():
        torch.testing.assert_close(weight, source.model.get_parameter(name), atol=1e-5, rtol=0)


def test_equal_seeds_give_equal_starts(to_bytes):
    first, second = (Spell(**QUICK).start(to_bytes) for _ in range(2))
    assert torch.equal(first.tables.head, second.tables.head)
    assert all(torch.equal(first.body[name], second.body[name]) for name in first.body)
    other = Source(to_bytes.model, to_bytes.source, to_bytes.target, TEXTS, seed=1)
    third = Spell(**QUICK).start(other)
    assert not torch.equal(first.tables.input, third.tables.input)


def test_weights_of_sixteen_bits_are_trained_in_more_and_given_back_in_sixteen():
    names = tiny_tokenizers.byte_level_bpe(), tiny_tokenizers.bytes_only()
    source = asked(*names, dtype=torch.bfloat16)
    start = Spell(**QUICK).start(source)
    assert {weight.dtype for weight in start.body.values()} == {torch.bfloat16}
    assert start.tables.input.dtype == start.tables.head.dtype == torch.bfloat16


def test_tokens_are_drawn_from_the_whole_vocabulary(to_bytes):
    chances, spellings = _lexicon(to_bytes, [{"text": text} for text in TEXTS], 0.5)
    special = to_bytes.source.bytes.special
    assert len(spellings) == len(chances) <= (~special).sum()
    assert chances.sum() == pytest.approx(1.0)
    assert chances.min() >= 0.5 / len(chances)
    chance = dict(zip(spellings, chances, strict=True))
    common = to_bytes.source.encode(TEXTS[0])[0]
    assert chance[to_bytes.source.bytes.spell([common]).decode()] > np.median(chances)


@pytest.mark.parametrize("make", [tiny_models.llama, tiny_models.gemma2, tiny_models.gpt2])
def test_states_are_those_of_the_whole_pass_and_the_rest_does_not_run(make):
    model = make(100).eval()
    ids = torch.randint(0, 100, (2, 7))
    mask = torch.ones_like(ids)
    blocks = transformer_blocks(model)
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        expected = whole.hidden_states[1]
        ran = []
        blocks[1].register_forward_hook(lambda *args: ran.append(1))
        found = states_after(model, blocks[0], ids, mask)
    assert torch.equal(found, expected)
    assert not ran


def test_texts_that_nobody_can_read_are_named(to_bytes):
    none = Source(to_bytes.model, to_bytes.source, to_bytes.target, ["", ""])
    with pytest.raises(DataError, match="texts"):
        Spell(drawn=0.0).start(none)


@pytest.mark.parametrize(
    "options",
    [{"blocks": 0}, {"spelled": 0}, {"drawn": 1.5}, {"uniform": -0.1}, {"block_rate": 0.0}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=f"spell.{next(iter(options))}"):
        parse_initialiser({"spell": options})


@pytest.mark.slow  # inductor takes a while
def test_compiled_blocks_learn_the_same(to_bytes):
    options = {**QUICK, "spelled": 300}
    plain = Spell(**options).start(to_bytes)
    before = sum(counters["frames"].values())
    fast = Spell(**options).start(dataclasses.replace(to_bytes, compile_blocks=True))
    assert sum(counters["frames"].values()) > before
    torch.testing.assert_close(fast.tables.input, plain.tables.input, atol=1e-4, rtol=0)
    for name, weight in fast.body.items():
        torch.testing.assert_close(weight, plain.body[name], atol=1e-4, rtol=0)


def test_blocks_are_compiled_where_it_is_asked_for(to_bytes, monkeypatch):
    monkeypatch.setattr("crosstill.blocks.shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler"):
        transplant(
            to_bytes.model,
            to_bytes.source,
            to_bytes.target,
            initial=Spell(**QUICK),
            texts=TEXTS,
            compile_blocks=True,
        )
