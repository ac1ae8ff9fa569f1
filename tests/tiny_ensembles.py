"""Tiny models whose tokenizers share part of a vocabulary, for ensembles."""

import tiny_models
import tiny_tokenizers

PROMPTS = [
    "The cat",
    "Hello world! How are you today?",
    [{"role": "user", "content": "Where is the cat?"}],
    "def add(a, b):\n",
]
ENGLISH = ("The cat sat on the mat, and the other cats sat.", "Hello world! How are you?") * 2

LONG_TEMPLATE = (
    "{% for m in messages %}<<{{ m['role'] }} speaks to you now>>{{ m['content'] }}<end>"
    "{% endfor %}{% if add_generation_prompt %}<<assistant speaks to you now>>{% endif %}"
)
OTHER_SPECIALS = {"bos_token": "<bos>", "eos_token": "<end>"}


def pivot_tokenizer():
    """Byte-level, with separate ends of turn and of text, in the ChatML style."""
    return tiny_tokenizers.byte_level_bpe(
        specials=tiny_tokenizers.CHAT_SPECIALS, chat_template=tiny_tokenizers.CHATML
    )


def other_tokenizer():
    """Byte-level, trained on other text; one end for all, a longer template, a bos by itself."""
    return tiny_tokenizers.byte_level_bpe(
        ENGLISH, 330, specials=OTHER_SPECIALS, chat_template=LONG_TEMPLATE, add_bos=True
    )


def metaspace_tokenizer():
    """SentencePiece's kind, with byte fallback."""
    return tiny_tokenizers.metaspace_bpe_with_byte_fallback(
        specials=tiny_tokenizers.CHAT_SPECIALS, chat_template=tiny_tokenizers.CHATML
    )


def model(tokenizer, seed):
    """A tiny model that is rather certain of what it says."""
    return tiny_models.llama(len(tokenizer), seed=seed, scale=3)
