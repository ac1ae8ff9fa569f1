"""A split head gives the model's own logits; a head that cannot be split says why."""

import pytest
import torch
import transformers as hf
from torch import nn

from crosstill.heads import HeadSplit, split_head

TINY = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}

CONFIGS = {
    "llama": hf.LlamaConfig(**TINY),
    "smollm_tied": hf.LlamaConfig(**TINY, tie_word_embeddings=True),
    "qwen2": hf.Qwen2Config(**TINY),
    "qwen3": hf.Qwen3Config(**TINY),
    "mistral": hf.MistralConfig(**TINY),
    "gemma": hf.GemmaConfig(**TINY),
    "gemma2": hf.Gemma2Config(**TINY, final_logit_softcapping=0.05),
    "gemma3": hf.Gemma3TextConfig(**TINY, final_logit_softcapping=0.05),
    "cohere": hf.CohereConfig(**TINY, logit_scale=0.25),
    "granite": hf.GraniteConfig(**TINY, logits_scaling=4.0),
    "olmo2": hf.Olmo2Config(**TINY),
    "phi": hf.PhiConfig(**TINY),
    "neox": hf.GPTNeoXConfig(**TINY),
    "gpt2": hf.GPT2Config(**GPT, bos_token_id=1, eos_token_id=2),
}


def tiny(name: str, **changes) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIGS[name].__class__(**{**CONFIGS[name].to_dict(), **changes})
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.get_output_embeddings().parameters():
        nn.init.normal_(parameter, std=0.5)  # large enough for a soft cap to bite
    return model.eval()


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.arange(2, 26).reshape(2, 12)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", CONFIGS)
def test_split_equals_plain(name):
    model = tiny(name)
    split = split_head(model)
    assert isinstance(split, HeadSplit), split
    plain = model(**inputs()).logits
    torch.testing.assert_close(
        split.logits(split.hidden(model, **inputs())), plain, atol=1e-6, rtol=1e-5
    )


def test_a_frozen_head_is_not_copied_for_each_sequence():
    """A strided slice makes torch expand a matrix that needs no gradient."""
    model = tiny("llama").requires_grad_(False)
    split = split_head(model)
    entered = []
    model.lm_head.register_forward_hook(lambda _module, args, _out: entered.append(args[0]))
    split.hidden(model, **inputs())
    assert entered[0].shape == (2, 1, 16)
    assert entered[0].is_contiguous()


def test_softcap_and_scales_are_read():
    assert split_head(tiny("gemma2")).softcap == 0.05
    assert split_head(tiny("cohere")).logit_scale == 0.25
    assert split_head(tiny("granite")).logit_scale == 0.25
    assert split_head(tiny("phi")).bias is not None


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_gradients_through_the_split_equal_plain(name):
    model = tiny(name)
    split = split_head(model)
    grads = []
    for logits in (
        lambda: model(**inputs()).logits,
        lambda: split.logits(split.hidden(model, **inputs())),
    ):
        model.zero_grad()
        logits().float().log_softmax(-1)[..., 3].sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_no_hook_stays_behind():
    model = tiny("llama")
    split = split_head(model)
    split.hidden(model, **inputs())
    assert not split.linear._forward_pre_hooks
    assert model(**inputs()).logits.shape[:2] == (2, 12)


def test_the_mode_of_the_model_is_left_as_it_was():
    model = tiny("llama").train()
    split_head(model)
    assert model.training


def test_through_adapters():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    split = split_head(model)
    assert isinstance(split, HeadSplit), split
    torch.testing.assert_close(
        split.logits(split.hidden(model, **inputs())), model(**inputs()).logits
    )


def test_an_adapter_on_the_head_is_refused():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny("llama"), peft.LoraConfig(target_modules=["lm_head"]))
    reason = split_head(model)
    assert isinstance(reason, str)
    assert "not a plain linear layer" in reason


def test_unknown_post_processing_is_refused():
    class Shifted(hf.LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits + torch.arange(out.logits.shape[-1])
            return out

    reason = split_head(Shifted(CONFIGS["llama"]))
    assert isinstance(reason, str)
    assert "post-processes" in reason


def test_a_plain_module_is_refused():
    assert "not a transformers model" in str(split_head(nn.Linear(2, 2)))


def test_bfloat16_is_split():
    assert isinstance(split_head(tiny("gemma2").to(torch.bfloat16)), HeadSplit)
