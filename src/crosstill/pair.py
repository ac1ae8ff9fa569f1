"""A student and a teacher side by side: what objectives may know of them before training."""

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crosstill.align.vocab import VocabularyPair
from crosstill.errors import ConfigError
from crosstill.heads import HeadSplit, split_head, under_adapters
from crosstill.objectives.pair import ModelFacts, Pair
from crosstill.text.encode import TextEncoder, text_encoder

Tokenizer = PreTrainedTokenizerFast | TextEncoder


def model_pair(
    student: nn.Module,
    student_tokenizer: Tokenizer,
    teacher: nn.Module,
    teacher_tokenizer: Tokenizer,
) -> Pair:
    """Describes a pair of models to `Mix.prepare`.

    Args:
        student: The student, with or without an adapter.
        student_tokenizer: Its tokenizer.
        teacher: The teacher.
        teacher_tokenizer: Its tokenizer.

    Returns:
        Sizes, the live matrices at both ends, and the vocabularies. Maps between the vocabularies
        are made when an objective asks for them.

    Raises:
        ConfigError: A model and its tokenizer do not belong together.

    Example:
        >>> mix.prepare(model_pair(student, tokenizer, teacher, other))  # doctest: +SKIP
    """
    encoders = text_encoder(student_tokenizer), text_encoder(teacher_tokenizer)
    return Pair(
        VocabularyPair(*encoders),
        model_facts("student", student, encoders[0]),
        model_facts("teacher", teacher, encoders[1]),
    )


def model_facts(side: str, model: nn.Module, encoder: TextEncoder) -> ModelFacts:
    """Reads a model's sizes and the matrices at its ends.

    Args:
        side: "student" or "teacher", for messages.
        model: A causal language model, with or without an adapter.
        encoder: Its tokenizer.

    Raises:
        ConfigError: Model and tokenizer do not belong together, or the model has no embedding.
    """
    base = under_adapters(model)
    if not isinstance(base, PreTrainedModel):
        raise ConfigError(f"the {side} is a {type(base).__name__}, expected a transformers model")
    embedding = base.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise ConfigError(
            f"the {side}'s input embedding is a {type(embedding).__name__}, expected an Embedding"
        )
    config = base.config.get_text_config()
    weight: Tensor = embedding.weight
    split = split_head(model)
    return ModelFacts(
        vocab_size=known_ids(side, base, encoder),
        hidden_size=weight.shape[1],
        num_layers=config.num_hidden_layers,
        input_embedding=weight,
        head=split.matrix() if isinstance(split, HeadSplit) else None,
    )


def known_ids(side: str, model: PreTrainedModel, encoder: TextEncoder) -> int:
    """Counts the ids that a model and its tokenizer share: the rest gets no probability.

    A head may be padded with surplus rows. A tokenizer may know a few special tokens more than the
    model (of its siblings that see images, say); an ordinary token without a row is an error.

    Raises:
        ConfigError: Model and tokenizer do not belong together.
    """
    embeddings = model.get_input_embeddings()
    if not isinstance(embeddings, nn.Embedding):
        return encoder.vocab_size
    rows = embeddings.num_embeddings
    without_row = encoder.bytes.lengths[rows:]
    if (without_row > 0).any():
        raise ConfigError(
            f"the {side}'s tokenizer has {encoder.vocab_size} ids and its model {rows} embeddings: "
            f"they do not belong together. Give the tokenizer of this model."
        )
    return min(rows, encoder.vocab_size)
