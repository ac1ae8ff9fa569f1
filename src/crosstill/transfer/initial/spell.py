"""The first blocks learn to read words in the new spelling; then a head is fitted.

Axes: B sequences, T tokens, N chunks, V ids, D hidden.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from crosstill.blocks import compiled_blocks, states_after, transformer_blocks
from crosstill.errors import ConfigError
from crosstill.evaluation.scoring import device_of, eval_mode
from crosstill.functional.hidden import hidden_loss
from crosstill.functional.rows import chunk_rows
from crosstill.text.encode import TextEncoder, budgets
from crosstill.transfer.initial.base import Source, Start, TransplantReport
from crosstill.transfer.initial.fit import BETAS, FUSED, Fit, as_row
from crosstill.transfer.initial.fvt import Fvt
from crosstill.transfer.self_teacher import body_view
from crosstill.transfer.tables import Tables, write_tables

WARM_UP = 0.1
"""Of the training, in which the rates rise from 0; afterwards they fall to 0 in a line."""
CLIP = 1.0
DRAWN_TOKENS = 100
"""Of the source, in a row that is drawn at random."""
COUNTED = 500
"""Texts in which tokens are counted."""


@dataclass(frozen=True)
class Spell(Fit):
    """As `fit`, but first the lower blocks learn to read words as they are spelled now.

    What a model knows of a word begins where its first blocks make a state of its tokens. In
    another vocabulary the same word is other tokens, often more. Here the input embeddings (from
    the averages of `fvt`) and the first blocks are trained until their state at the end of each
    chunk is the one that the model's own first blocks have there. It takes no head, no block above
    and no label, so a token costs a fraction of what it costs in training. Two thirds of the rows
    are no text: tokens of the old vocabulary in random order, so that rare ones are met as well.

    Afterwards the head is fitted to the states of this body (`fit`). The blocks above stay as they
    are. As the body changes, a teacher cannot share it: stages that would otherwise share one keep
    a second copy.

    Attributes:
        blocks: how many blocks learn; at most half of the model's.
        spelled: tokens of the target that they learn from.
        drawn: share of the rows whose tokens are drawn at random.
        uniform: share of these tokens that are drawn with equal chances; the others come as often
            as in the texts.
        block_rate: of AdamW, for the blocks.
        embedding_rate: of AdamW, for the input embeddings.
        rows_per_update: rows that one step of the blocks is taken on.

    Source: this project; measured in docs/decisions/0013-first-blocks.md. The distance is that of
    `crosstill.functional.hidden_loss`, divided by the teacher's mean square.
    """

    name: ClassVar[str] = "spell"
    changes_body: ClassVar[bool] = True

    blocks: int = 8
    spelled: int = 400_000
    drawn: float = 0.65
    uniform: float = 0.5
    block_rate: float = 3e-4
    embedding_rate: float = 1.2e-3
    rows_per_update: int = 8

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: an option is out of its range.
        """
        super().__post_init__()
        for name in ("blocks", "spelled", "rows_per_update"):
            if getattr(self, name) < 1:
                raise ConfigError(f"spell.{name} must be at least 1; got {getattr(self, name)}")
        for name in ("drawn", "uniform"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"spell.{name} must be from 0 to 1; got {getattr(self, name)}")
        for name in ("block_rate", "embedding_rate"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ConfigError(
                    f"spell.{name} must be above 0 and finite; got {getattr(self, name)}"
                )

    def tables(self, source: Source) -> tuple[Tables, TransplantReport]:
        """The tables alone, which belong to the body that `start` gives; see there."""
        start = self.start(source)
        return start.tables, start.report

    def start(self, source: Source) -> Start:
        """Teach the first blocks, and fit a head to what they make of texts.

        Raises:
            ConfigError: the model's blocks or its head cannot be found.
            DataError: no text can be read in both tokenizers.
        """
        first, report = Fvt().tables(source)
        student = body_view(source.model).eval()
        write_tables(student, replace(first, output=first.head.clone()))
        lower, names = _own_blocks(student, self.blocks)
        table: Any = student.get_input_embeddings()
        _wide(table)
        models = (source.model, student) if source.compile_blocks else ()
        longest = max(budgets(source.target, source.source, self.max_length))
        with compiled_blocks(models, device_of(source.model), longest=longest):
            self._learn(source, student, lower, table)
        dtype = first.input.dtype
        body = {
            f"{path}.{name}": weight.detach().to(dtype)
            for path, block in zip(names, lower, strict=True)
            for name, weight in block.named_parameters()
        }
        for part in (*lower, table):
            part.to(dtype).requires_grad_(False)
        learnt = replace(first, input=table.weight.detach().clone(), output=first.head)
        tables = self.with_head(source, student, learnt)
        return Start(tables, report, body)

    def _learn(
        self, source: Source, student: PreTrainedModel, lower: list[nn.Module], table: nn.Module
    ) -> None:
        """Train blocks and input embeddings, in float32 at least."""
        own = transformer_blocks(source.model)
        assert own is not None  # noqa: S101 - the student has them
        block = own[len(lower) - 1]
        weights = [weight for one in lower for weight in one.parameters()]
        groups = [
            {"params": weights, "lr": self.block_rate},
            {"params": list(table.parameters()), "lr": self.embedding_rate},
        ]
        fused = weights[0].device.type in FUSED
        optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0, fused=fused)
        peaks, read = [group["lr"] for group in optimizer.param_groups], 0
        bar = tqdm(total=self.spelled, desc="spell: first blocks", unit="tok", delay=2)
        with eval_mode(source.model), bar, torch.enable_grad():
            for batch in self._spelled(source):
                factor = _factor(read / self.spelled)
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = factor * peak
                loss = _distance(source.model, block, student, lower[-1], batch)
                loss.backward()
                nn.utils.clip_grad_norm_([*weights, *table.parameters()], CLIP)
                optimizer.step()
                optimizer.zero_grad()
                torch.clear_autocast_cache()  # an autocast around all this keeps what it has cast
                tokens = int(batch["student_attention_mask"].sum())
                read += tokens
                bar.update(tokens)
                bar.set_postfix(distance=f"{float(loss.detach()):.3f}", refresh=False)
                if read >= self.spelled:
                    break

    def _spelled(self, source: Source) -> Iterator[dict[str, Tensor]]:
        """Yield batches of texts and of drawn tokens, without end."""
        collator = self.collator(source)
        device, draws = device_of(source.model), np.random.default_rng(source.seed)
        texts = [as_row(text) for text in source.texts]
        texts = [texts[place] for place in draws.permutation(len(texts))]
        written = cycle(texts)
        chances, spellings = _lexicon(source, texts[:COUNTED], self.uniform)
        useless = 0
        while useless < len(texts) + 1:
            rows: list[Mapping[str, Any]] = []
            for drawn in draws.random(self.rows_per_update) < self.drawn:
                if drawn:
                    ids = draws.choice(len(spellings), DRAWN_TOKENS, p=chances)
                    rows.append({"text": "".join(spellings[id] for id in ids)})
                else:
                    rows.append(next(written))
            batch = collator(rows)
            batch.pop("skipped")
            if (batch["student_chunk"] >= 0).any():
                yield {name: part.to(device) for name, part in batch.items()}
                useless = 0
            useless += 1


def _own_blocks(student: PreTrainedModel, count: int) -> tuple[list[nn.Module], list[str]]:
    """The first blocks of a body view, with weights of their own in float32, and their names."""
    blocks = transformer_blocks(student)
    if blocks is None:
        raise ConfigError(
            f"the initialiser spell trains the first blocks, and no list of blocks was found in "
            f"{type(student).__name__}. Set initial: fit"
        )
    path = next(name for name, module in student.named_modules() if module is blocks)
    lower = list(blocks)[: max(1, min(count, len(blocks) // 2))]
    for block in lower:
        _wide(block)
    return lower, [f"{path}.{place}" for place in range(len(lower))]


def _wide(module: nn.Module) -> nn.Module:
    """Give a module weights of its own, trainable, in float32 at least."""
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            dtype = torch.promote_types(weight.dtype, torch.float32)
            own = nn.Parameter(weight.detach().to(dtype, copy=True))
            part.register_parameter(name, own)
    return module


def _distance(
    teacher: PreTrainedModel,
    block: nn.Module,
    student: PreTrainedModel,
    last: nn.Module,
    batch: Mapping[str, Tensor],
) -> Float[Tensor, ""]:
    """The mean distance of both models' states at the ends of chunks."""
    with torch.no_grad():
        wanted = states_after(
            teacher, block, batch["teacher_input_ids"], batch["teacher_attention_mask"]
        )
    found = states_after(student, last, batch["student_input_ids"], batch["student_attention_mask"])
    rows = chunk_rows(batch["student_chunk"], batch["teacher_chunk"])
    loss = hidden_loss(
        found[rows.batch, rows.student_end],
        wanted[rows.batch, rows.teacher_end],
        distance="normalised_mse",
    )
    return loss.total / loss.count.clamp(min=1)


def _factor(done: float) -> float:
    """What the rates are multiplied by, after a share of the training.

    Example:
        >>> [round(_factor(done), 2) for done in (0.0, 0.05, 0.1, 0.55, 1.0)]
        [0.01, 0.5, 1.0, 0.5, 0.0]
    """
    if done < WARM_UP:
        return max(done / WARM_UP, 0.01)
    return max(1.0 - done, 0.0) / (1.0 - WARM_UP)


def _lexicon(
    source: Source, texts: list[Mapping[str, Any]], uniform: float
) -> tuple[Float[np.ndarray, " N"], list[str]]:
    """The old tokens that are text by themselves, and the chance of each."""
    spelled = {id: text for id, text in _spellings(source.source) if text}
    ids = np.array(list(spelled), np.int64)
    counts = np.ones(source.source.vocab_size)
    for text in texts:
        found: Int64[np.ndarray, " T"] = np.array(source.source.encode(_plain(text)), np.int64)
        np.add.at(counts, found, 1)
    common = counts[ids] / counts[ids].sum()
    return uniform / len(ids) + (1.0 - uniform) * common, list(spelled.values())


def _spellings(encoder: TextEncoder) -> Iterator[tuple[int, str]]:
    for id in np.flatnonzero(~encoder.bytes.special).tolist():
        yield id, encoder.bytes.spell([id]).decode("utf-8", errors="ignore")


def _plain(row: Mapping[str, Any]) -> str:
    """What a row says, without roles."""
    said = [message["content"] for message in row.get("messages") or ()]
    parts = [row.get("text"), row.get("prompt"), row.get("completion"), *said]
    return "\n".join(part for part in parts if isinstance(part, str))
