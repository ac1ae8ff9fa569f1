import copy

import pytest
import torch

import tiny_models
import tiny_tokenizers
from crosstill.data.collate import PairCollator
from crosstill.errors import ConfigError, DataError
from crosstill.objectives import create_mix
from crosstill.pair import model_pair
from crosstill.teachers.local import LocalTeacher
from crosstill.text.encode import text_encoder
from crosstill.transfer.embeddings import transplant
from crosstill.transfer.initial import Source, parse_initialiser
from crosstill.transfer.initial.fit import Fit
from crosstill.transfer.initial.fvt import Fvt
from crosstill.transfer.tables import Tables, write_tables

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A model reads these words in its own tokens and in others.",
    "numbers 1 22 333 and naïve café ☕",
]


def asked(source, target, *, tied=True, texts=TEXTS, seed=0):
    model = tiny_models.llama(len(source), tied=tied).double()
    with torch.no_grad():  # predictions that are not flat
        model.lm_head.weight.mul_(8.0)
    return Source(model, text_encoder(source), text_encoder(target), texts, seed)


@pytest.fixture
def to_bytes():
    return asked(tiny_tokenizers.byte_level_bpe(), tiny_tokenizers.bytes_only())


def loss_of(source: Source, tables: Tables) -> float:
    """Mean prefix KL of the model on the texts, once it really has these tables."""
    student = copy.deepcopy(source.model)
    write_tables(student, tables)
    collator = PairCollator(source.target, source.source, max_length=64, loss_on="all")
    batch = collator([{"text": text} for text in source.texts])
    signal = LocalTeacher(copy.deepcopy(source.model), source.source)(batch)
    mix = create_mix({"prefix_kl": {}}, vocab_size=source.target.vocab_size)
    mix.prepare(model_pair(student, source.target, source.model, source.source))
    with torch.no_grad():
        logits = student(batch["student_input_ids"], batch["student_attention_mask"]).logits
        return float(mix.from_logits(logits, batch, signal, mix.counts(batch, signal)).total)


def test_a_head_is_fitted_to_what_the_model_says(to_bytes):
    few = Source(to_bytes.model, to_bytes.source, to_bytes.target, ["The quick brown"])
    start = loss_of(few, Fvt().tables(few)[0])
    # fewer positions than dimensions: the optimum is exact
    fitted, _ = Fit(epochs=60, learning_rate=1e-1).tables(few)
    assert loss_of(few, fitted) < 0.1 * start


def test_a_model_that_keeps_its_tokenizer_keeps_its_head():
    tokenizer = tiny_tokenizers.byte_level_bpe()
    source = asked(tokenizer, tokenizer, tied=False)
    fitted, _ = Fit(epochs=2, learning_rate=1e-3).tables(source)
    text = torch.tensor([source.source.encode(TEXTS[1])])
    with torch.no_grad():
        hidden = source.model.model(text).last_hidden_state
    before = (hidden @ source.tables.head.T).softmax(-1)
    after = (hidden @ fitted.head.T).softmax(-1)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)


def test_the_input_is_that_of_averages_and_the_tables_are_two(to_bytes):
    fitted, report = Fit(epochs=1).tables(to_bytes)
    averaged, expected = Fvt().tables(to_bytes)
    assert torch.equal(fitted.input, averaged.input)
    assert fitted.output is not None
    assert not torch.equal(fitted.output, averaged.head)
    assert report == expected


def test_the_model_stays_as_it_was(to_bytes):
    model = to_bytes.model.train()
    before = {name: part.clone() for name, part in model.state_dict().items()}
    Fit(epochs=1).tables(to_bytes)
    assert model.training
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for _, part in model.named_parameters():
        assert part.requires_grad
        assert part.grad is None
    for name, part in model.state_dict().items():
        assert torch.equal(part, before[name]), name


def test_equal_seeds_give_equal_tables(to_bytes):
    first, second = (Fit(epochs=2, rows_per_step=1).tables(to_bytes)[0] for _ in range(2))
    assert torch.equal(first.head, second.head)


def test_no_more_is_read_than_asked_for(to_bytes):
    few = Source(to_bytes.model, to_bytes.source, to_bytes.target, TEXTS[:1])
    capped = Fit(epochs=1, tokens=5, rows_per_step=1)
    assert torch.equal(capped.tables(to_bytes)[0].head, capped.tables(few)[0].head)


def test_a_side_that_reads_bytes_may_read_more(to_bytes):
    few = Source(to_bytes.model, to_bytes.source, to_bytes.target, TEXTS[:1])
    fits = len(to_bytes.source.encode(TEXTS[0])) + 1  # with what stands before a text
    assert fits < len(TEXTS[0]) <= 4 * fits
    tight, roomy = (Fit(epochs=1, max_length=n).tables(few)[0].head for n in (fits, 64))
    assert torch.equal(tight, roomy)


def test_rows_with_messages_are_rendered_by_the_template():
    names = {"specials": tiny_tokenizers.CHAT_SPECIALS, "chat_template": tiny_tokenizers.CHATML}
    rows = [{"messages": [{"role": "user", "content": t}]} for t in TEXTS]
    tokenizers = tiny_tokenizers.byte_level_bpe(**names), tiny_tokenizers.bytes_only(**names)
    source = asked(*tokenizers, texts=rows)
    plain = asked(*tokenizers)
    assert not torch.equal(*(Fit(epochs=1).tables(one)[0].head for one in (source, plain)))


def test_texts_that_nobody_can_read_are_named(to_bytes):
    none = Source(to_bytes.model, to_bytes.source, to_bytes.target, ["", ""])
    with pytest.raises(DataError, match="none of 2 texts"):
        Fit().tables(none)


def test_no_texts_at_all_is_said_before_anything_is_read(to_bytes):
    with pytest.raises(ConfigError, match="reads texts"):
        transplant(copy.deepcopy(to_bytes.model), to_bytes.source, to_bytes.target, initial="fit")


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"tokens": 0}, {"rows_per_step": 0}, {"learning_rate": 0.0}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=f"fit.{next(iter(options))}"):
        parse_initialiser({"fit": options})


def test_a_head_that_cannot_be_told_apart_is_refused(to_bytes, monkeypatch):
    monkeypatch.setattr("crosstill.transfer.initial.fit.split_head", lambda model: "it is odd")
    with pytest.raises(ConfigError, match="it is odd"):
        Fit().tables(to_bytes)
