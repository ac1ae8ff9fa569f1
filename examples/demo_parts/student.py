"""The student's tokenizer: a small byte-level BPE of English prose."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


def train_tokenizer(
    texts: list[str], teacher_tokenizer: PreTrainedTokenizerFast, *, size: int
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, with the special tokens and the chat template of the teacher.

    Args:
        texts: what it learns its merges from.
        teacher_tokenizer: whose special tokens the student keeps, so that it ends its texts and
            turns as before.
        size: tokens, with the 256 bytes and the special tokens; fewer if the texts are few.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys(teacher_tokenizer.all_special_tokens))
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True) for token in special],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=teacher_tokenizer.bos_token,
        eos_token=teacher_tokenizer.eos_token,
        pad_token=teacher_tokenizer.pad_token,
        model_max_length=teacher_tokenizer.model_max_length,
    )
    found.chat_template = teacher_tokenizer.chat_template
    return found
