"""Tiny tokenizers of every family, trained in milliseconds, as Hugging Face fast tokenizers.

Every function takes the texts to train on and returns a `PreTrainedTokenizerFast`. Special tokens
get the role that their place in `specials` names.
"""

import json
from collections.abc import Mapping, Sequence

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

MARK = "\u2581"
"""What SentencePiece writes for a space."""

SPECIALS: Mapping[str, str] = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
CHAT_SPECIALS: Mapping[str, str] = {
    "bos_token": "<|begin|>",
    "eos_token": "<|end_of_text|>",
    "eot_token": "<|im_end|>",
    "start_token": "<|im_start|>",
    "pad_token": "<|pad|>",
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template in the ChatML style, for tokenizers made with `CHAT_SPECIALS`."""

TEXTS = (
    "The cat sat on the mat, and the other cats sat on the other mats.",
    "Hello world! How are you today?  I am fine, thank you.\n\nGoodbye, world.\n",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 22))\n",
    "Der Größe nach: über, ähnlich, schön. L'été à Noël, garçon.",
    "東京は日本の首都です。 مرحبا بالعالم 😀🚀",
)
"""What the tiny tokenizers are trained on unless told otherwise."""


def byte_level_bpe(
    texts: Sequence[str] = TEXTS,
    vocab_size: int = 400,
    *,
    normalizer: normalizers.Normalizer | None = None,
    specials: Mapping[str, str] = SPECIALS,
    chat_template: str | None = None,
    add_prefix_space: bool = False,
    ignore_merges: bool = False,
    alphabet: Sequence[str] | None = None,
    use_regex: bool = True,
    add_bos: bool = False,
) -> PreTrainedTokenizerFast:
    """GPT-2's family: byte-level BPE. `alphabet` replaces the full one of 256 bytes."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=add_prefix_space, use_regex=use_regex
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=list(alphabet or pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(specials.values()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return wrap(backend, specials, chat_template=chat_template, add_bos=add_bos)


def metaspace_bpe_with_byte_fallback(
    texts: Sequence[str] = TEXTS,
    vocab_size: int = 400,
    *,
    normalizer: normalizers.Normalizer | None = None,
    specials: Mapping[str, str] = SPECIALS,
    chat_template: str | None = None,
    prepend_scheme: str = "first",
    content_tokens: Sequence[str] = (),
    style: str = "metaspace",
    add_bos: bool = False,
) -> PreTrainedTokenizerFast:
    """SentencePiece-style BPE with byte fallback.

    Args:
        texts: What to train on.
        vocab_size: Tokens, besides the 256 bytes.
        normalizer: Put before everything else; for `style="metaspace"` only.
        specials: Special tokens by role.
        chat_template: A jinja template.
        prepend_scheme: The metaspace's: "first", "always" or "never".
        content_tokens: Added tokens that are text (runs of spaces, newlines).
        style: "metaspace" (Llama-2 today: a Metaspace pre-tokenizer), "prepend" (Llama-2 as it
            was: Prepend and Replace normalisers) or "gemma" (Replace only, and a Split).
        add_bos: Whether the post-processor puts bos in front.
    """
    metaspace = pre_tokenizers.Metaspace(MARK, prepend_scheme=prepend_scheme, split=False)
    marked = [metaspace.pre_tokenize_str(word)[0][0] for text in texts for word in _words(text)]
    learner = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, initial_alphabet=[MARK]
    )
    learner.train_from_iterator(marked, trainer)
    merges = [tuple(pair) for pair in _merges(learner)]
    names = ["<unk>", *specials.values(), *(f"<0x{byte:02X}>" for byte in range(256))]
    learned = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    vocab = {name: index for index, name in enumerate([*names, *(token for token, _ in learned)])}
    backend = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    strip = [decoders.Strip(" ", 1, 0)] if style != "gemma" else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    if style == "metaspace":
        backend.pre_tokenizer = metaspace
        if normalizer is not None:
            backend.normalizer = normalizer
    elif style == "prepend":
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)]
        )
    else:
        backend.normalizer = normalizers.Replace(" ", MARK)
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.add_special_tokens(["<unk>"])
    backend.add_tokens([AddedToken(token, normalized=False) for token in content_tokens])
    return wrap(backend, specials, chat_template=chat_template, add_bos=add_bos, unk_token="<unk>")


def unigram(
    texts: Sequence[str] = TEXTS,
    vocab_size: int = 300,
    *,
    normalizer: normalizers.Normalizer | None = None,
    specials: Mapping[str, str] = SPECIALS,
    chat_template: str | None = None,
    byte_fallback: bool = True,
    split_whitespace: bool = False,
    prepend_scheme: str = "always",
) -> PreTrainedTokenizerFast:
    """T5's and XLM-R's family. `split_whitespace` puts WhitespaceSplit before the metaspace."""
    metaspace = pre_tokenizers.Metaspace(MARK, prepend_scheme=prepend_scheme)
    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = metaspace
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    learned = [(token, score) for token, score in _unigram_vocab(learner) if token != "<unk>"]
    bytes_ = [(f"<0x{byte:02X}>", 0.0) for byte in range(256)] if byte_fallback else []
    named = [(token, 0.0) for token in ("<unk>", *specials.values())]
    backend = Tokenizer(
        models.Unigram([*named, *bytes_, *learned], unk_id=0, byte_fallback=byte_fallback)
    )
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
        if split_whitespace
        else metaspace
    )
    backend.decoder = decoders.Metaspace(MARK, prepend_scheme=prepend_scheme)
    backend.add_special_tokens(["<unk>"])
    return wrap(backend, specials, chat_template=chat_template, unk_token="<unk>")


def wordpiece(
    texts: Sequence[str] = TEXTS,
    vocab_size: int = 300,
    *,
    normalizer: normalizers.Normalizer | None = None,
    lowercase: bool = True,
) -> PreTrainedTokenizerFast:
    """BERT's family: BertNormalizer unless told otherwise, BertPreTokenizer, WordPiece."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizer or normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    specials = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    specials |= {"sep_token": "[SEP]", "mask_token": "[MASK]"}
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(specials.values()), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return wrap(backend, specials)


def bytes_only(
    *,
    normalizer: normalizers.Normalizer | None = None,
    specials: Mapping[str, str] = SPECIALS,
    chat_template: str | None = None,
) -> PreTrainedTokenizerFast:
    """One token a byte: ids are byte values, special tokens come after them."""
    alphabet = _byte_alphabet()
    backend = Tokenizer(models.BPE({char: byte for byte, char in enumerate(alphabet)}, []))
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return wrap(backend, specials, chat_template=chat_template)


def characters(
    texts: Sequence[str] = TEXTS,
    *,
    normalizer: normalizers.Normalizer | None = None,
    specials: Mapping[str, str] = SPECIALS,
) -> PreTrainedTokenizerFast:
    """One token a character that the texts use; every other one is `<unk>`."""
    chars = ["<unk>", *specials.values(), *sorted(set("".join(texts)))]
    backend = Tokenizer(
        models.WordLevel({char: index for index, char in enumerate(chars)}, unk_token="<unk>")
    )
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["<unk>"])
    return wrap(backend, specials, unk_token="<unk>")


def wrap(
    backend: Tokenizer,
    specials: Mapping[str, str],
    *,
    chat_template: str | None = None,
    add_bos: bool = False,
    unk_token: str | None = None,
) -> PreTrainedTokenizerFast:
    """A transformers tokenizer round `backend`, with the special tokens in their roles."""
    backend.add_special_tokens([token for token in specials.values()])
    if add_bos:
        bos = specials["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    known = {"bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token"}
    roles = {role: token for role, token in specials.items() if role in known | {"mask_token"}}
    if unk_token is not None:
        roles["unk_token"] = unk_token
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
    tokenizer.chat_template = chat_template
    return tokenizer


def _words(text: str) -> list[str]:
    return [word for word in text.replace("\n", " \n ").split(" ") if word]


def _merges(backend: Tokenizer) -> list[list[str]]:
    return json.loads(backend.to_str())["model"]["merges"]


def _unigram_vocab(backend: Tokenizer) -> list[tuple[str, float]]:
    return [tuple(item) for item in json.loads(backend.to_str())["model"]["vocab"]]


def _byte_alphabet() -> list[str]:
    """The byte alphabet in byte order: printable Latin-1 stands for itself, the rest moves up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(moved)) for byte in range(256)]
