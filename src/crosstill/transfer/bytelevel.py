"""The tokenizer of a byte model: one token a byte, and the special tokens of the source."""

from typing import TYPE_CHECKING, Any

from crosstill.text.bytes import byte_alphabet
from crosstill.text.encode import TextEncoder, text_encoder
from crosstill.transfer.specials import kept_specials, with_specials

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def byte_tokenizer(
    source_tokenizer: "PreTrainedTokenizerFast | TextEncoder",
) -> "PreTrainedTokenizerFast":
    r"""A tokenizer of 256 bytes and the special tokens of the source, nothing else.

    The id of a byte is its value, so the ids of a text are its UTF-8 bytes. The special tokens come
    after them, with the source's roles, post-processor and chat template. Nothing is normalised and
    nothing is merged. It is a plain byte-level BPE without merges: `AutoTokenizer` loads it with no
    code of ours.

    Args:
        source_tokenizer: the tokenizer of the model that shall read bytes.

    Raises:
        TokenizerError: the source cannot be read, or its post-processor adds ordinary tokens.

    Source: Minixhofer et al. 2025, "Universal Cross-Tokenizer Distillation via Approximate
    Likelihood Matching", section 4.1: bytes and special tokens make up the vocabulary.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
        >>> source = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
        >>> tokenizer = byte_tokenizer(source)
        >>> tokenizer.encode("\u00e9\n"), tokenizer.eos_token_id, len(tokenizer)
        ([195, 169, 10], 256, 257)
    """
    source = text_encoder(source_tokenizer)
    state = _bytes_alone()
    return with_specials(state, state["model"]["vocab"], kept_specials(source), source)


def _bytes_alone() -> dict[str, Any]:
    """The JSON of a byte-level BPE without merges and without special tokens."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": False},
        "post_processor": None,
        "decoder": {**level, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {char: byte for byte, char in enumerate(byte_alphabet())},
            "merges": [],
        },
    }
