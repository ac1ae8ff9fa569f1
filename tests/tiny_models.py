"""Tiny random models: real architectures, a few thousand parameters, no download."""

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)


def llama(vocab_size: int, *, seed: int = 0, tied: bool = True, scale: float = 1.0, **more):
    """A Llama with random weights; `scale` (at most 10) makes its predictions more certain."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        initializer_range=0.1 * scale,
        bos_token_id=None,
        eos_token_id=None,
        **{"hidden_size": 32, "max_position_embeddings": 512, **more},
    )
    return LlamaForCausalLM(config).eval()


def gpt2(vocab_size: int, *, seed: int = 0):
    """A GPT-2: learned positions, tied head."""
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=vocab_size, n_positions=256, n_embd=32, n_layer=2, n_head=4)
    return GPT2LMHeadModel(config).eval()


def gemma2(vocab_size: int, *, seed: int = 0):
    """A Gemma 2: soft-capped logits, scaled embeddings."""
    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=2.0,
        initializer_range=0.3,
    )
    return Gemma2ForCausalLM(config).eval()
