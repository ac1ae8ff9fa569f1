"""The enriched byte model: its embeddings, its cache, its files."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models
import tiny_tokenizers as tiny
import tiny_training
from crosstill.align.spellings import lowest_ids
from crosstill.errors import CheckpointError, ConfigError, CrosstillError, TrustError
from crosstill.evaluation.bits_per_byte import score_texts
from crosstill.evaluation.sampling import sample
from crosstill.text.encode import text_encoder
from crosstill.transfer.bytelevel import byte_tokenizer
from crosstill.transfer.embeddings import transplant
from crosstill.transfer.enriched import EnrichedModel, enrich, load_enriched
from crosstill.transfer.tables import Tables, read_tables

SOURCE = tiny.byte_level_bpe(specials=tiny.CHAT_SPECIALS, chat_template=tiny.CHATML)
BYTES = byte_tokenizer(SOURCE)
TEXT = "The cat sat on the mat, and the other cats."


def original_tables(model):
    tables = read_tables(model)
    return Tables(tables.input.clone(), None if tables.output is None else tables.output.clone())


def made(make=tiny_models.llama, **options):
    model = make(len(SOURCE), **options)
    original = original_tables(model)
    transplant(model, SOURCE, BYTES)
    return enrich(model, original, SOURCE, BYTES).eval(), original


@pytest.fixture(scope="module")
def enriched():
    return made()


def rows_of(*texts):
    """Left-padded ids and their mask."""
    ids = [BYTES.encode(text, add_special_tokens=False) for text in texts]
    size = max(map(len, ids))
    pad = BYTES.pad_token_id
    return (
        torch.tensor([[pad] * (size - len(row)) + row for row in ids]),
        torch.tensor([[0] * (size - len(row)) + [1] * len(row) for row in ids]),
    )


@pytest.mark.parametrize("make", [tiny_models.llama, tiny_models.gemma2, tiny_models.gpt2])
def test_at_the_end_of_a_token_the_input_is_what_it_was(make):
    model, original = made(make)
    scale = make(len(SOURCE)).get_input_embeddings()(torch.tensor(9)) / original.input[9]
    rows = original.input * scale.mean()  # Gemma 2 scales what it looks up
    encoder, ids = text_encoder(SOURCE), lowest_ids(text_encoder(SOURCE))
    line = torch.tensor([[BYTES.convert_tokens_to_ids("<|im_start|>"), *TEXT.encode()]])
    embedded = model.embed(line)[0]
    special = SOURCE.convert_tokens_to_ids("<|im_start|>")
    torch.testing.assert_close(embedded[0], rows[special])
    for end in range(1, len(TEXT) + 1):
        data = TEXT.encode()[:end]
        longest = next(data[s:] for s in range(end) if data[s:] in ids and end - s <= 16)
        torch.testing.assert_close(embedded[end], rows[ids[longest]])
        assert encoder.bytes.token(ids[longest]) == longest


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_keeps_its_rows(tied):
    model = tiny_models.llama(len(SOURCE), tied=tied)
    original = original_tables(model)
    transplant(model, SOURCE, BYTES)
    head = read_tables(model).head.clone()
    found = enrich(model, original, SOURCE, BYTES)
    assert torch.equal(found.get_output_embeddings().weight, head)
    assert found.get_input_embeddings().weight[:256].abs().sum() == 0
    assert found.config.tie_word_embeddings is False


@pytest.mark.parametrize("make", [tiny_models.llama, tiny_models.gemma2, tiny_models.gpt2])
def test_generation_with_a_cache_equals_that_without(make):
    model, _ = made(make)
    with torch.no_grad():  # so that what was generated has some variety
        model.get_input_embeddings().weight.normal_(std=0.3)
        model.get_output_embeddings().weight.normal_(std=1.0)
    ids, mask = rows_of("The cat sat on", "the", "and the other mats\n")
    options = {"max_new_tokens": 24, "pad_token_id": BYTES.pad_token_id, "eos_token_id": None}
    for more in ({"do_sample": False}, {"num_beams": 3}):
        outputs = [
            model.generate(ids, attention_mask=mask, use_cache=cache, **options, **more)
            for cache in (True, False)
        ]
        assert torch.equal(*outputs)
    assert len(set(outputs[0][0, ids.shape[1] :].tolist())) > 4


def test_a_byte_at_a_time_with_a_cache_of_ones_own(enriched):
    model, _ = enriched
    ids = torch.tensor([list(TEXT.encode())])
    with torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :5], use_cache=True)
        cache, rows = first.past_key_values, [first.logits]
        for at in range(5, ids.shape[1]):
            output = model(
                ids[:, at : at + 1],
                past_key_values=cache,
                context_ids=ids[:, :at],
                use_cache=True,
            )
            rows.append(output.logits)
    torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"cache of \d+ positions and no context_ids"):
        model(ids[:, :1], past_key_values=cache)
    with pytest.raises(ConfigError, match="needs input_ids"):
        model(inputs_embeds=model.embed(ids))


class Whole(torch.nn.Module):
    """Reads all ids anew at each call, and takes no cache."""

    def __init__(self, model):
        super().__init__()
        self.model, self.ids = model, None

    def forward(self, input_ids, past_key_values, use_cache):
        self.ids = input_ids if self.ids is None else torch.cat([self.ids, input_ids], 1)
        return self.model(self.ids, use_cache=False)


def test_texts_are_drawn_with_a_cache_as_without(enriched):
    model, _ = enriched
    stop = text_encoder(BYTES).bytes.special
    openings = [list(b"The cat"), list(b"A dog and the")]
    asked = {"stop": stop, "max_new_tokens": 12, "seed": 3}
    drawn = sample(model, openings, **asked)
    assert drawn == sample(Whole(model), openings, **asked)
    assert any(drawn)


def test_padding_on_the_left_changes_nothing(enriched):
    model, _ = enriched
    ids, mask = rows_of(TEXT, "cat")
    alone, _ = rows_of("cat")
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        found = model(ids, attention_mask=mask, position_ids=positions).logits[1, -3:]
        zeros = ids.masked_fill(mask == 0, ord("a"))  # padding that looks like text
        same = model(zeros, attention_mask=mask, position_ids=positions).logits[1, -3:]
        expected = model(alone).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found, same)


def test_the_gradient_reaches_the_embeddings_of_bytes_alone(enriched):
    model, _ = made()
    ids = torch.tensor([list(TEXT.encode())])
    model.train()
    model(ids, labels=ids).loss.backward()
    assert model.subwords.weight.grad is None
    assert not model.subwords.weight.requires_grad
    gradient = model.get_input_embeddings().weight.grad
    touched = (gradient.abs().sum(1) > 0).nonzero()[:, 0].tolist()
    assert touched == sorted({*TEXT.encode()[:-1]})
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == {f"model.{name}" for name, _ in model.model.named_parameters()}


def test_it_is_scored_and_taught_like_any_model(enriched):
    model, _ = enriched
    found = score_texts(model, BYTES, [TEXT])
    ids = [BYTES.eos_token_id, *TEXT.encode()]
    with torch.no_grad():
        logprob = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    expected = -sum(logprob[i, ids[i + 1]].item() for i in range(len(TEXT)))
    assert found.nats[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_it_is_the_same_bit_for_bit(tmp_path, dtype):
    first, _ = made()
    first.save_pretrained(tmp_path / "first")
    model = load_enriched(tmp_path / "first", dtype=dtype)
    assert model.dtype == model.subwords.weight.dtype == dtype
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    loaded = EnrichedModel.from_pretrained(folder)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    ids = torch.tensor([list(TEXT.encode())])
    with torch.no_grad():
        logits = model(ids).logits
        assert torch.equal(loaded(ids).logits, logits)
        assert dtype != torch.float32 or torch.equal(first(ids).logits, logits)
    assert not loaded.subwords.weight.requires_grad
    assert not list(folder.rglob("*.bin")) + list(folder.rglob("*.py"))
    assert "auto_map" not in (folder / "plain" / "config.json").read_text()


def test_the_plain_model_is_saved_by_itself(tmp_path):
    from transformers import AutoModelForCausalLM

    model, _ = made()
    model.model.save_pretrained(tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert plain.state_dict().keys() == model.model.state_dict().keys()
    model.save_pretrained(tmp_path / "whole")
    with pytest.raises((OSError, ValueError)):  # the whole is never taken for a plain one
        AutoModelForCausalLM.from_pretrained(tmp_path / "whole")


def test_settings_of_generation_are_kept(tmp_path):
    model, _ = made()
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path)
    loaded = load_enriched(tmp_path)
    assert loaded.generation_config.max_new_tokens == 7
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()


class TestFaults:
    @pytest.fixture
    def folder(self, tmp_path):
        made()[0].save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    def test_a_plain_folder(self, folder):
        with pytest.raises(ConfigError, match="holds no enriched byte model"):
            load_enriched(folder / "plain")

    @pytest.mark.parametrize("about", ['{"version": 2}', "[]", "{", '"x"'])
    def test_another_format(self, folder, about):
        (folder / "enriched.json").write_text(about)
        with pytest.raises(CheckpointError, match=r"expected|cannot be read"):
            load_enriched(folder)

    def test_a_config_that_asks_for_code(self, folder):
        file = folder / "plain" / "config.json"
        config = json.loads(file.read_text()) | {"auto_map": {"AutoConfig": "x.Y"}}
        file.write_text(json.dumps(config))
        with pytest.raises(TrustError):
            load_enriched(folder)

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("subwords.weight", lambda t: t[:, 1:], "that fit embeddings"),
            ("subwords.weight", lambda t: t[:9], "outside itself"),
            ("suffixes.following", lambda t: t + 10_000, "outside itself"),
            ("suffixes.following", lambda t: t[1:], "outside itself"),
            ("suffixes.edges", lambda t: t.flip(0), "outside itself"),
            ("suffixes.ends", lambda t: t - 9, "outside itself"),
            ("suffixes.exact", lambda t: t[1:], "for 260 ids"),
            ("suffixes.exact", lambda t: t.float(), "outside itself"),
            ("suffixes.exact", lambda t: None, "lacks suffixes.exact"),
            ("model.lm_head.weight", lambda t: None, "do not fit the configuration"),
            ("more", lambda t: torch.zeros(1), "do not fit the configuration"),
        ],
    )
    def test_numbers_that_do_not_fit(self, folder, name, change, message):
        file = folder / "model.safetensors"
        numbers = load_file(file)
        changed = change(numbers.pop(name, None))
        if changed is not None:
            numbers[name] = changed.contiguous()
        save_file(numbers, file)
        with pytest.raises(CheckpointError, match=message):
            load_enriched(folder)

    def test_damaged_or_missing_files(self, folder):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_enriched(folder)
        file.unlink()
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_enriched(folder)
        shutil.rmtree(folder / "plain")
        with pytest.raises(CrosstillError):
            load_enriched(folder)

    def test_a_model_that_reads_no_bytes(self):
        model = tiny_models.llama(len(SOURCE))
        with pytest.raises(ConfigError, match="transplant the model"):
            enrich(model, original_tables(model), SOURCE, BYTES)
        with pytest.raises(ConfigError, match="expected a byte tokenizer"):
            enrich(model, original_tables(model), SOURCE, SOURCE)


def test_it_learns_from_the_model_it_was(tmp_path):
    teacher = tiny_models.llama(len(SOURCE), seed=3, scale=2.0)
    original = original_tables(teacher)
    student = tiny_models.llama(len(SOURCE), seed=3, scale=2.0)
    transplant(student, SOURCE, BYTES)
    model = enrich(student, original, SOURCE, BYTES)
    frozen = model.subwords.weight.clone()
    trainer = tiny_training.trainer(
        tmp_path,
        model=model,
        teacher_model=teacher,
        processing_class=BYTES,
        teacher_processing_class=SOURCE,
        objectives="prefix_kl",
        embedding_learning_rate=1e-2,
        max_steps=8,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-2:]) < 0.95 * sum(losses[:2])
    assert torch.equal(model.subwords.weight, frozen)
    assert model.get_input_embeddings().weight[:256].abs().sum() > 0


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    def run(folder, resume):
        model, _ = made(scale=2.0)
        trainer = tiny_training.trainer(
            folder,
            model=model,
            teacher_model=tiny_models.llama(len(SOURCE), seed=3),
            processing_class=BYTES,
            teacher_processing_class=SOURCE,
            max_steps=4,
            save_strategy="steps",
            save_steps=2,
        )
        trainer.train(resume_from_checkpoint=resume)
        return model.state_dict()

    whole = run(tmp_path / "whole", None)
    stopped = tmp_path / "stopped"
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", stopped / "checkpoint-2")
    resumed = run(stopped, True)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name
    assert load_enriched(stopped / "checkpoint-4").state_dict().keys() == whole.keys()
