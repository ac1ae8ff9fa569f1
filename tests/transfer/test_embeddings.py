import pytest
import torch
from tokenizers import pre_tokenizers

import tiny_models
import tiny_tokenizers
from crosstill.align.spellings import unwritten_ids
from crosstill.errors import ConfigError
from crosstill.text.bytes import token_bytes
from crosstill.text.encode import text_encoder
from crosstill.transfer.embeddings import transplant

PAIRS = {
    "byte-level to byte-level": (
        lambda: tiny_tokenizers.byte_level_bpe(vocab_size=330),
        lambda: tiny_tokenizers.byte_level_bpe(vocab_size=420),
    ),
    "metaspace to byte-level": (
        tiny_tokenizers.metaspace_bpe_with_byte_fallback,
        tiny_tokenizers.byte_level_bpe,
    ),
    "byte-level to metaspace": (
        tiny_tokenizers.byte_level_bpe,
        tiny_tokenizers.metaspace_bpe_with_byte_fallback,
    ),
    "to bytes": (tiny_tokenizers.byte_level_bpe, tiny_tokenizers.bytes_only),
    "from bytes": (tiny_tokenizers.bytes_only, tiny_tokenizers.byte_level_bpe),
}


@pytest.fixture(params=PAIRS, ids=list(PAIRS))
def pair(request):
    source, target = PAIRS[request.param]
    return source(), target()


@pytest.mark.parametrize("tied", [True, False])
def test_every_row_is_made_from_tokens_that_spell_it(pair, tied):
    source, target = pair
    old_bytes, new_bytes = token_bytes(source), token_bytes(target)
    model = tiny_models.llama(len(source), tied=tied)
    # rows that tell which tokens they were made from: one coordinate counts bytes
    before = {}
    with torch.no_grad():
        for name, table in (("in", model.get_input_embeddings()), ("out", model.lm_head)):
            table.weight[:, 0] = torch.from_numpy(old_bytes.lengths).float()
            before[name] = table.weight.detach().clone()
    report = transplant(model, source, target)
    assert (report.copied + report.averaged + report.by_role + report.mean) == len(target)
    spelled = {old_bytes.token(id): id for id in range(len(source)) if old_bytes.lengths[id]}
    never = set(unwritten_ids(text_encoder(target)))
    tables = {"in": model.get_input_embeddings(), "out": model.lm_head}
    copied = 0
    for name, table in tables.items():
        assert table.weight.shape == (len(target), 32)
        for id in range(len(target)):
            raw = new_bytes.token(id)
            if id in never:
                torch.testing.assert_close(table.weight[id], before[name].mean(0))
            elif raw and raw in spelled:
                same = [i for i in range(len(source)) if old_bytes.token(i) == raw]
                assert any(torch.equal(table.weight[id], before[name][i]) for i in same)
                copied += 1
            elif raw:
                # the mean number of bytes of the spelling tokens, which add up to the token
                pieces = len(raw) / table.weight[id, 0].item()
                assert pieces == pytest.approx(round(pieces), abs=1e-4)
                assert round(pieces) >= 2
    assert copied == 2 * report.copied
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


def test_special_tokens_go_by_role():
    source = tiny_tokenizers.byte_level_bpe(
        specials=tiny_tokenizers.CHAT_SPECIALS, chat_template=tiny_tokenizers.CHATML
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "eot_token": "<end_of_turn>"}
    target = tiny_tokenizers.byte_level_bpe(specials=names)
    model = tiny_models.llama(len(source))
    before = model.get_input_embeddings().weight.detach().clone()
    report = transplant(model, source, target)
    after = model.get_input_embeddings().weight
    old, new = text_encoder(source).roles, text_encoder(target).roles
    for role in ("bos", "eos", "eot"):
        assert torch.equal(after[getattr(new, role)], before[getattr(old, role)]), role
    assert report.by_role == 3
    assert report.mean == 0


def test_special_tokens_of_the_same_name_come_first():
    names = {"bos_token": "<s>", "eos_token": "</s>", "extra": "<tool>"}
    source = tiny_tokenizers.byte_level_bpe(specials=names)
    target = tiny_tokenizers.byte_level_bpe(
        vocab_size=350, specials=dict(list(names.items())[::-1])
    )
    model = tiny_models.llama(len(source))
    before = model.get_input_embeddings().weight.detach().clone()
    transplant(model, source, target)
    assert source.eos_token_id != target.convert_tokens_to_ids("<s>")
    for name in names.values():
        new, old = target.convert_tokens_to_ids(name), source.convert_tokens_to_ids(name)
        assert torch.equal(model.get_input_embeddings().weight[new], before[old])


def test_a_special_token_without_a_partner_gets_the_mean():
    source = tiny_tokenizers.byte_level_bpe()
    target = tiny_tokenizers.byte_level_bpe(specials={"extra": "<tool>"})
    model = tiny_models.llama(len(source))
    before = model.get_input_embeddings().weight.detach().clone()
    report = transplant(model, source, target)
    new = target.convert_tokens_to_ids("<tool>")
    torch.testing.assert_close(model.get_input_embeddings().weight[new], before.mean(0))
    assert report.mean == 1


def test_ids_in_the_configurations():
    source, target = PAIRS["metaspace to byte-level"]
    source, target = source(), target()
    model = tiny_models.llama(len(source))
    transplant(model, source, target)
    assert model.config.vocab_size == len(target)
    assert model.config.bos_token_id == target.bos_token_id
    assert model.config.eos_token_id == target.eos_token_id
    assert model.config.pad_token_id == target.pad_token_id
    assert target.eos_token_id in model.generation_config.eos_token_id
    ids = torch.tensor([target.encode("The cat")])
    assert model(input_ids=ids, labels=ids).loss.isfinite()


def test_the_same_tokenizer_changes_nothing():
    tokenizer = tiny_tokenizers.byte_level_bpe()
    model = tiny_models.llama(len(tokenizer), tied=False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = transplant(model, tokenizer, tokenizer)
    assert report.averaged == report.mean == 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_surplus_rows_are_left_behind():
    source, target = tiny_tokenizers.byte_level_bpe(), tiny_tokenizers.bytes_only()
    model = tiny_models.llama(len(source) + 100)
    with torch.no_grad():
        model.get_input_embeddings().weight[len(source) :] = float("nan")
    transplant(model, source, target)
    assert model.get_input_embeddings().weight.isfinite().all()


def test_low_precision():
    source, target = tiny_tokenizers.byte_level_bpe(), tiny_tokenizers.byte_level_bpe()
    model = tiny_models.llama(len(source)).to(torch.bfloat16)
    transplant(model, source, target)
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


def test_a_head_with_a_bias_moves_with_it():
    source, target = tiny_tokenizers.byte_level_bpe(), tiny_tokenizers.bytes_only()
    model = tiny_models.llama(len(source), tied=False)
    model.lm_head.bias = torch.nn.Parameter(torch.arange(len(source)).float())
    transplant(model, source, target)
    old, new = token_bytes(source), token_bytes(target)
    spelled = {old.token(id): id for id in range(len(source))}
    for id in range(256):
        assert model.lm_head.bias[id] == spelled[new.token(id)]


def test_a_tokenizer_of_another_model():
    source = tiny_tokenizers.byte_level_bpe()
    model = tiny_models.llama(len(source) - 10)
    with pytest.raises(ConfigError, match="belongs to another model"):
        transplant(model, source, source)


def test_a_byte_that_the_source_cannot_spell_gets_the_mean():
    without = [c for c in pre_tokenizers.ByteLevel.alphabet() if c != "\u0104"]  # the byte 0x04
    source = tiny_tokenizers.byte_level_bpe(alphabet=without)
    target = tiny_tokenizers.byte_level_bpe()
    spelled = token_bytes(target)
    missing = next(id for id in range(len(target)) if spelled.token(id) == b"\x04")
    model = tiny_models.llama(len(source))
    before = model.get_input_embeddings().weight.detach().clone()
    transplant(model, source, target)
    found = model.get_input_embeddings().weight[missing]
    torch.testing.assert_close(found, before.mean(0))
