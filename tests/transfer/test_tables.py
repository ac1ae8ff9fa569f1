import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import tiny_models
import tiny_tokenizers
from crosstill.errors import ConfigError
from crosstill.transfer.export import export
from crosstill.transfer.tables import Tables, read_tables, write_tables

LOGITS = """
import json, sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    logits = model(torch.arange(3, 43)[None]).logits
print(json.dumps([logits.double().flatten().tolist(), model.config.tie_word_embeddings]))
"""


def fresh(rows, *, width=32, seed=1, tied=False, bias=False):
    generator = torch.Generator().manual_seed(seed)
    return Tables(
        torch.randn(rows, width, generator=generator),
        None if tied else torch.randn(rows, width, generator=generator),
        torch.randn(rows, generator=generator) if bias else None,
    )


def logits_of(model):
    with torch.no_grad():
        return model(torch.arange(3, 43)[None]).logits


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_read_is_what_the_model_has(tied):
    model = tiny_models.llama(100, tied=tied)
    tables = read_tables(model)
    assert torch.equal(tables.input, model.model.embed_tokens.weight)
    assert (tables.output is None) == tied
    assert torch.equal(tables.head, model.lm_head.weight)
    assert tables.bias is None
    assert not tables.input.requires_grad


@pytest.mark.parametrize("rows", [50, 100, 150])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_what_was_written_is_read_again(rows, before, after):
    model, tables = tiny_models.llama(100, tied=before), fresh(rows, tied=after)
    write_tables(model, tables)
    found = read_tables(model)
    assert torch.equal(found.input, tables.input)
    assert (found.output is None) == after
    assert torch.equal(found.head, tables.head)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == after
    assert model.config.vocab_size == rows
    assert model.config.tie_word_embeddings == after
    assert model.lm_head.out_features == rows
    assert logits_of(model).shape[-1] == rows


def test_what_was_read_before_stays():
    model = tiny_models.llama(100)
    before = read_tables(model)
    kept = before.input.clone()
    write_tables(model, fresh(100, tied=True))
    assert torch.equal(before.input, kept)
    assert not torch.equal(read_tables(model).input, kept)


def test_the_model_does_not_share_memory_with_what_was_given():
    model, tables = tiny_models.llama(100), fresh(100)
    write_tables(model, tables)
    tables.input.zero_()
    tables.output.zero_()
    assert read_tables(model).input.abs().sum() > 0
    assert read_tables(model).head.abs().sum() > 0


def test_a_bias_is_read_and_written():
    model = tiny_models.llama(100, tied=False)
    model.lm_head.bias = nn.Parameter(torch.arange(100.0))
    assert torch.equal(read_tables(model).bias, torch.arange(100.0))
    tables = fresh(60, bias=True)
    write_tables(model, tables)
    assert torch.equal(read_tables(model).bias, tables.bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_of_the_model_stays(dtype):
    model = tiny_models.llama(100).to(dtype)
    write_tables(model, fresh(70))
    assert {read_tables(model).input.dtype, read_tables(model).head.dtype} == {dtype}


@pytest.mark.parametrize("trained", [True, False])
def test_frozen_weights_stay_frozen(trained):
    model = tiny_models.llama(100).requires_grad_(trained)
    write_tables(model, fresh(70))
    assert model.lm_head.weight.requires_grad == trained
    assert model.model.embed_tokens.weight.requires_grad == trained


def test_the_body_stays_as_it_was():
    model = tiny_models.llama(100)
    before = {name: value.clone() for name, value in model.model.layers.state_dict().items()}
    write_tables(model, fresh(70))
    after = model.model.layers.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_untied_tables_are_trained_apart():
    model = tiny_models.llama(100)
    write_tables(model, fresh(100))
    ids = torch.arange(3, 43)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    assert embedding.grad[90].abs().sum() == 0  # an id that was not read
    assert head.grad[90].abs().sum() > 0


def test_the_row_of_a_former_padding_id_gets_a_gradient():
    model = tiny_models.llama(100, pad_token_id=7)
    assert model.model.embed_tokens.padding_idx == 7
    write_tables(model, fresh(70))
    model(torch.arange(3, 43)[None]).logits.square().sum().backward()
    assert model.model.embed_tokens.weight.grad[7].abs().sum() > 0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_a_later_resize_keeps_tables_tied_or_not(tied, before):
    model = tiny_models.llama(100, tied=before)
    write_tables(model, fresh(80, tied=tied))
    model.resize_token_embeddings(90, mean_resizing=False)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_plain_transformers_loads_the_same_model(tmp_path, before, after):
    tokenizer = tiny_tokenizers.byte_level_bpe()
    model = tiny_models.llama(100, tied=before)
    write_tables(model, fresh(len(tokenizer), tied=after))
    folder = export(model, tokenizer, tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", LOGITS, str(folder)], capture_output=True, text=True, check=True
    )
    found, tied = json.loads(done.stdout)
    assert tied == after
    assert found == logits_of(model).double().flatten().tolist()


@pytest.mark.parametrize("make", [tiny_models.gpt2, tiny_models.gemma2])
@pytest.mark.parametrize("tied", [True, False])
def test_other_families_are_written_and_loaded_again(tmp_path, make, tied):
    from transformers import AutoModelForCausalLM

    model = make(100)
    write_tables(model, fresh(60, tied=tied))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits_of(again), logits_of(model))
    assert (read_tables(again).output is None) == tied


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        (Tables(torch.zeros(5, 31)), "input"),
        (Tables(torch.zeros(5, 32), torch.zeros(6, 32)), "output"),
        (Tables(torch.zeros(5, 32), None, torch.zeros(5)), "bias"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tables, named):
    model = tiny_models.llama(100)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=f"do not fit the model: {named}: expected"):
        write_tables(model, tables)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_bias_is_not_forgotten():
    model = tiny_models.llama(100, tied=False)
    model.lm_head.bias = nn.Parameter(torch.zeros(100))
    with pytest.raises(ConfigError, match="bias: expected \\(5,\\), got None"):
        write_tables(model, Tables(torch.zeros(5, 32), torch.zeros(5, 32)))


def test_a_model_without_a_plain_table():
    model = tiny_models.llama(100)
    model.set_input_embeddings(nn.Linear(3, 3))
    with pytest.raises(ConfigError, match="a plain table and a plain linear layer are expected"):
        read_tables(model)
