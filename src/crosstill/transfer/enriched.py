"""A byte model whose input embeddings know the subwords of the tokenizer it once had.

To the embedding of each byte is added the model's original embedding of the longest subword that
ends there. These are frozen. So the body sees, where a word ends, what it was trained to see there,
and the bytes in between are told apart by what they already spell.

It is a class of its own and no plain model of transformers: it needs this package to run. What is
saved is safetensors and JSON, and nothing in the folder names code to run. See `load_enriched`.

Axes: B sequences, T bytes, V ids of the byte model, Vs of the source, D hidden.
"""

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)

from crosstill import hub
from crosstill.align.spellings import lowest_ids
from crosstill.errors import CheckpointError, ConfigError
from crosstill.plain_json import write_json
from crosstill.text.encode import TextEncoder, text_encoder
from crosstill.transfer.suffixes import LONGEST, Suffixes
from crosstill.transfer.tables import Tables, read_tables, write_tables
from crosstill.trust import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
    from transformers.modeling_outputs import CausalLMOutputWithPast

    Tokenizer = PreTrainedTokenizerFast | TextEncoder

_FORMAT = {"format": "crosstill enriched byte model", "version": 1, "longest": LONGEST}
# The numbers have the name by which a trainer finds them when it resumes.
_CONFIGS, _NUMBERS, _ABOUT = "plain", "model.safetensors", "enriched.json"
_SUBWORDS = "subwords.weight"
_TREE = tuple(f"suffixes.{name}" for name in ("edges", "following", "ends", "exact"))


class EnrichedModel(PreTrainedModel, GenerationMixin):
    """A byte model and the original embeddings of the subwords that its bytes end.

    Used like the model inside: `forward`, `generate` with a cache or without, an adapter of PEFT,
    `DistillTrainer`. Its head and its trainable embeddings are those of the model inside. With a
    cache of your own, `forward` needs `context_ids`: see there.

    Attributes:
        model: The plain byte model. Without this class it runs as well, without the subwords.
        subwords: The original embeddings [Vs, D]; frozen.
        suffixes: Finds the subword that ends at each byte.
        context_length: Ids before those it reads that it needs where it goes on with a cache.

    Source: Minixhofer et al. 2025, arXiv:2503.20083, appendix C.
    """

    model: PreTrainedModel
    subwords: nn.Embedding
    suffixes: Suffixes
    context_length = LONGEST - 1

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, model: PreTrainedModel, subwords: nn.Embedding, suffixes: Suffixes) -> None:
        super().__init__(model.config)
        self.model = model
        self.subwords = subwords.requires_grad_(False)
        self.suffixes = suffixes
        self.generation_config = model.generation_config
        self.all_tied_weights_keys = {}
        self.train(model.training)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        *,
        context_ids: Int[Tensor, "B C"] | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> "CausalLMOutputWithPast":
        """Runs the model inside on enriched embeddings.

        Args:
            input_ids: Ids of bytes and special tokens.
            attention_mask: As for the model inside.
            context_ids: The ids before `input_ids`, -1 for padding. Needed where `past_key_values`
                holds some: a subword may begin there. The last 15 are enough; `generate` gives
                them by itself.
            past_key_values: The cache of the model inside.
            kwargs: Whatever else the model inside takes, but `inputs_embeds`.

        Raises:
            ConfigError: No ids, or a cache with something in it and no `context_ids`.
        """
        # an adapter gives inputs_embeds by name, as None
        if input_ids is None or kwargs.pop("inputs_embeds", None) is not None:
            raise ConfigError("an enriched model needs input_ids: subwords are found by their ids")
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        if seen and context_ids is None:
            raise ConfigError(
                f"an enriched model was given a cache of {seen} positions and no context_ids: give "
                f"the ids before input_ids, of which the last {self.context_length} are enough"
            )
        return self.model(
            inputs_embeds=self.embed(_marked(input_ids, attention_mask), context_ids),
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )

    def embed(
        self, ids: Int[Tensor, "B T"], context: Int[Tensor, "B C"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Computes the input embeddings: of the ids, plus of the subword that ends at each."""
        rows = self.suffixes(ids, context)
        enriched = self.subwords(rows.clamp(min=0)).masked_fill((rows < 0)[..., None], 0.0)
        return self.get_input_embeddings()(ids.clamp(min=0)) + enriched

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As the model inside, with the ids that stand before those it shall read."""
        prepare: Any = self.model.prepare_inputs_for_generation
        inputs = prepare(input_ids, *args, attention_mask=attention_mask, **kwargs)
        if inputs.get("input_ids") is not None:
            before = input_ids.shape[1] - inputs["input_ids"].shape[1]
            marked = _marked(input_ids, attention_mask)
            inputs["context_ids"] = marked[:, max(before - self.context_length, 0) : before]
        return inputs

    def get_input_embeddings(self) -> Any:
        """The trainable embeddings of bytes and special tokens."""
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The head of the model inside."""
        return self.model.get_output_embeddings()

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, *, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Writes safetensors and JSON that `load_enriched` reads.

        The folder gets no `config.json`: nobody shall take it for a plain model of transformers.
        The plain model alone is saved by `enriched.model.save_pretrained`.

        Args:
            save_directory: The folder; files of these names in it are replaced.
            state_dict: The weights, where they are not the model's own.
        """
        folder = Path(save_directory)
        (folder / _CONFIGS).mkdir(parents=True, exist_ok=True)
        self.model.config.save_pretrained(folder / _CONFIGS)
        if self.generation_config is not None:
            self.generation_config.save_pretrained(folder / _CONFIGS)
        numbers = self.state_dict() if state_dict is None else state_dict
        numbers = {name: value.detach().cpu().contiguous() for name, value in numbers.items()}
        save_file(numbers, folder / _NUMBERS, metadata={"format": "pt"})
        write_json(folder / _ABOUT, _FORMAT)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: Any = "auto") -> "EnrichedModel":  # type: ignore[override]
        """What `load_enriched` does."""
        return load_enriched(folder, dtype=dtype)


def enrich(
    model: PreTrainedModel,
    original: Tables,
    source_tokenizer: "Tokenizer",
    target_tokenizer: "Tokenizer",
) -> EnrichedModel:
    """Enriches a byte model with the embeddings that it had before it read bytes.

    The model's own input rows begin at zero where an original one is added, so that the input at
    the end of a word is, bit for bit, what it was before the transfer. Tied embeddings are untied
    for that: the head keeps its rows.

    Args:
        model: The byte model, after `transplant`; changed in place and put inside.
        original: `read_tables` of the model before `transplant`, of which the input is used.
        source_tokenizer: The tokenizer the model had.
        target_tokenizer: Its byte tokenizer, from `byte_tokenizer`.

    Raises:
        ConfigError: The target is no byte tokenizer whose ids are the bytes, or model, tables and
            tokenizers do not belong together.
    """
    source, target = text_encoder(source_tokenizer), text_encoder(target_tokenizer)
    _check_bytes(target)
    own = read_tables(model)
    rows, width = original.input.shape
    if len(own.input) != target.vocab_size or width != own.input.shape[1]:
        raise ConfigError(
            f"the model has embeddings of the shape {tuple(own.input.shape)}, its tokenizer "
            f"{target.vocab_size} tokens and the original embeddings {width} columns: transplant "
            f"the model to the byte tokenizer first"
        )
    tokens = {data: id for data, id in lowest_ids(source).items() if id < rows}
    suffixes = Suffixes.of(tokens, _same_names(source, target, rows))
    alone = suffixes(torch.arange(target.vocab_size)[:, None])[:, 0]
    begin = own.input.clone()
    begin[(alone >= 0).to(begin.device)] = 0.0
    write_tables(model, Tables(begin, own.head.clone(), own.bias))
    embedding: Any = model.get_input_embeddings()
    return EnrichedModel(model, _table_like(embedding, original.input), suffixes)


def plain_of(model: Any) -> Any:
    """The byte model inside an enriched one; any other model as it is."""
    return model.model if isinstance(model, EnrichedModel) else model


def _check_bytes(target: TextEncoder) -> None:
    """Raise unless the ids of the tokenizer are the bytes, with special tokens behind them."""
    table = target.bytes
    bytes_first = table.spell(range(256)) == bytes(range(256)) if len(table) >= 256 else False
    if not bytes_first or not table.special[256:].all():
        raise ConfigError(
            "expected a byte tokenizer, the ids 0 to 255 for the bytes and special tokens behind "
            "them, got another: make it with byte_tokenizer"
        )


def _same_names(source: TextEncoder, target: TextEncoder, rows: int) -> list[int]:
    """For each id of the byte tokenizer the special token of the source with its name, or -1."""
    names = target.tokenizer.convert_ids_to_tokens(list(range(target.vocab_size)))
    known = source.tokenizer.get_vocab()
    ids = [known.get(name, -1) if id >= 256 else -1 for id, name in enumerate(names)]
    return [id if id < rows else -1 for id in ids]


def _table_like(embedding: nn.Embedding, weight: Tensor) -> nn.Embedding:
    """An embedding of the same class (some families scale what they look up) with other rows."""
    table = copy.deepcopy(embedding)
    own = embedding.weight
    table.weight = nn.Parameter(weight.detach().to(own.device, own.dtype, copy=True))
    table.num_embeddings, table.padding_idx = len(weight), None
    return table


def _marked(ids: Tensor, mask: Tensor | None) -> Tensor:
    """The ids with -1 where a plain mask says that there is padding."""
    if mask is None or mask.ndim != 2:
        return ids
    return ids.masked_fill(mask[:, -ids.shape[1] :] == 0, -1)


def load_enriched(folder: str | Path, *, dtype: "torch.dtype | str" = "auto") -> EnrichedModel:
    """Loads what `EnrichedModel.save_pretrained` wrote.

    Only this function makes an `EnrichedModel` of files. It reads safetensors and JSON, and the
    configuration of the plain model goes through the same checks as every other (`crosstill.hub`).
    No file of the folder can name code: `trust_remote_code` is neither needed nor taken. Every
    tensor of the model comes from the file, and every one there is used.

    Args:
        folder: The folder.
        dtype: Type of the weights in memory, "auto" for the one they are stored in.

    Raises:
        ConfigError: There is no such folder, or no enriched model in it.
        TrustError: The configuration asks for code.
        CheckpointError: A file is damaged, or the parts do not fit each other.
    """
    folder = Path(folder).expanduser()
    numbers = _numbers(folder)
    config = hub.load_config(folder / _CONFIGS)
    kind = numbers[_SUBWORDS].dtype if dtype == "auto" else dtype
    maker: Any = AutoModelForCausalLM
    try:
        model = maker.from_config(config, dtype=kind)
        subwords = _table_like(model.get_input_embeddings(), numbers[_SUBWORDS])
        made = EnrichedModel(model, subwords, Suffixes(*(numbers[name] for name in _TREE)))
        made.load_state_dict(numbers)
    except (RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: the numbers do not fit the configuration: {first_line(error)}"
        ) from error
    own, subwords = made.get_input_embeddings().weight, made.subwords.weight
    if len(made.suffixes.exact) != len(own) or subwords.shape[1:] != own.shape[1:]:
        raise CheckpointError(
            f"{folder / _NUMBERS}: expected subwords that fit embeddings of the shape "
            f"{tuple(own.shape)}, got some of the shape {tuple(subwords.shape)} for "
            f"{len(made.suffixes.exact)} ids"
        )
    file = folder / _CONFIGS / "generation_config.json"
    if file.is_file():  # hub.load_config has looked at it
        made.generation_config = GenerationConfig.from_dict(json.loads(file.read_bytes()))
        made.model.generation_config = made.generation_config
    return made.eval()


def load_either(folder: str | Path, *, dtype: "torch.dtype | str" = "auto") -> PreTrainedModel:
    """Loads an enriched model where a folder holds one, else a plain one (`hub.load_model`)."""
    if (Path(folder).expanduser() / _ABOUT).is_file():
        return load_enriched(folder, dtype=dtype)
    return hub.load_model(folder, dtype=dtype)


def _numbers(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder that says it holds an enriched model."""
    if not (folder / _ABOUT).is_file():
        raise ConfigError(
            f"{folder} holds no enriched byte model ({_ABOUT} is missing): load a plain model with "
            f"crosstill.hub.load_model"
        )
    try:
        about = json.loads((folder / _ABOUT).read_bytes())
        numbers = load_file(folder / _NUMBERS)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read: {first_line(error)}") from error
    if about != _FORMAT:
        raise CheckpointError(f"{folder / _ABOUT}: expected {_FORMAT}, got {str(about)[:200]}")
    missing = sorted({_SUBWORDS, *_TREE} - numbers.keys())
    if missing:
        raise CheckpointError(f"{folder / _NUMBERS} lacks {', '.join(missing)}")
    if not _whole([numbers[name] for name in _TREE], len(numbers[_SUBWORDS])):
        raise CheckpointError(
            f"{folder / _NUMBERS}: the tree of subwords points outside itself; get the files again"
        )
    return numbers


def _whole(tree: list[Tensor], rows: int) -> bool:
    """Whether every index of a tree of subwords hits something."""
    if any(part.dtype != torch.int64 or part.ndim != 1 or not len(part) for part in tree):
        return False
    edges, following, ends, exact = tree
    limits = ((following, 0, len(ends)), (ends, -1, rows), (exact, -1, rows))
    inside = all(part.min() >= low and part.max() < high for part, low, high in limits)
    return inside and len(edges) == len(following) and bool((edges.diff() > 0).all())
