"""A head fitted to what the model says in its own tokens: convex, and minutes on a CPU.

Axes: B sequences, T tokens (Ts of the target, Tt of the source), V rows, D hidden.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from crosstill.data.collate import REASONS, PairCollator
from crosstill.errors import ConfigError, DataError
from crosstill.evaluation.scoring import device_of, evaluating
from crosstill.functional.head import HeadMatrix
from crosstill.heads import HeadSplit, split_head
from crosstill.objectives import Mix, create
from crosstill.objectives.base import PairBatch
from crosstill.pair import model_pair
from crosstill.teachers.signal import StateSignal
from crosstill.text.encode import budgets
from crosstill.transfer.initial.base import Initialiser, Source, TransplantReport
from crosstill.transfer.initial.fvt import Fvt
from crosstill.transfer.self_teacher import body_view
from crosstill.transfer.tables import Tables, write_tables

OBJECTIVE = "prefix_kl"
BETAS = (0.9, 0.95)
FUSED = ("cpu", "cuda")
"""Devices with an Adam in one kernel."""
MULTIPLE = 32
"""Batches are padded to a multiple of so many tokens: few shapes."""


@dataclass(frozen=True)
class Seen:
    """A batch, and what enters both heads when the model reads it in either tokenizer.

    Attributes:
        batch: for both tokenizers; the target is the student's side.
        source: [B, Tt, D], the model's states with its own embeddings.
        target: [B, Ts, D], its states with the first embeddings of the target.
    """

    batch: PairBatch
    source: Float[Tensor, "B Tt D"]
    target: Float[Tensor, "B Ts D"]


@dataclass(frozen=True)
class Fit(Initialiser):
    """The averages of `fvt` as input; as output a matrix fitted to the model's own predictions.

    The model reads some texts twice: in its own tokens, and in the target's with averaged
    embeddings. At each place of the second reading there is a state; what shall follow there, in
    the target's tokens, is known from the first (`prefix_kl`). The output matrix is fitted to that
    by gradient descent. The states are kept and the body is not run again: the problem is convex in
    the matrix, and a pass over the texts costs one product with the vocabulary.

    A model with tied embeddings becomes one with two tables: a token's row as an output is then
    another one than as an input, for what follows depends on how the vocabulary cuts words.

    Attributes:
        tokens: of the target that are read, at most; texts beyond them are left.
        epochs: passes over them.
        learning_rate: of Adam, for numbers as they are in the matrix; falls to 0 in a line.
        rows_per_step: texts that one step is taken on.
        max_length: tokens of a text that are read, in either tokenizer; four times as many where
            they are bytes.

    Source: this project; the target distribution is described in docs/methods/prefix_kl.md.
    """

    name: ClassVar[str] = "fit"
    needs_texts: ClassVar[bool] = True
    keeps_exact: ClassVar[bool] = False

    tokens: int = 50_000
    epochs: int = 3
    learning_rate: float = 2e-3
    rows_per_step: int = 4
    max_length: int = 256

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: an option is out of its range.
        """
        for name in ("tokens", "epochs", "rows_per_step"):
            if getattr(self, name) < 1:
                raise ConfigError(f"fit.{name} must be at least 1; got {getattr(self, name)}")
        if not 0.0 < self.learning_rate < float("inf"):
            raise ConfigError(
                f"fit.learning_rate must be above 0 and finite; got {self.learning_rate}"
            )

    def tables(self, source: Source) -> tuple[Tables, TransplantReport]:
        """Make the new tables; see `Initialiser.tables`.

        Raises:
            ConfigError: the model's head cannot be told apart from its body.
            DataError: no text can be read in both tokenizers.
        """
        first, report = Fvt().tables(source)
        return self.with_head(source, body_view(source.model), first), report

    def with_head(self, source: Source, student: PreTrainedModel, first: Tables) -> Tables:
        """Fit a head to the states of a model that reads with these tables.

        Args:
            source: whose predictions it is fitted to.
            student: the body that reads; its tables are replaced.
            first: its input, and the head that the fit begins with.
        """
        first = replace(first, output=first.head.clone())
        write_tables(student, first)
        heads = _head(source.model), _head(student)
        seen = self._read(source, student, heads)
        mix = Mix({OBJECTIVE: (create(OBJECTIVE), 1.0)}, vocab_size=source.target.vocab_size)
        mix.prepare(model_pair(student, source.target, source.model, source.source))
        teacher = heads[0].matrix(len(source.tables.input))
        weight = self._fitted(heads[1].matrix(), _losses(mix, teacher, source), seen, source.seed)
        return replace(first, output=weight.to(first.input.dtype))

    # --- reading --------------------------------------------------------------------------------

    def _read(
        self, source: Source, student: PreTrainedModel, heads: tuple[HeadSplit, HeadSplit]
    ) -> list[Seen]:
        """Read texts with both embeddings until there are enough, and keep the states."""
        seen: list[Seen] = []
        with tqdm(total=self.tokens, desc="fit: reading", unit="tok", delay=2) as bar:
            for batch in self._batches(source):
                device = device_of(source.model)
                batch = {name: part.to(device) for name, part in batch.items()}
                found = []
                for model, head, side in (
                    (source.model, heads[0], "teacher"),
                    (student, heads[1], "student"),
                ):
                    ids, mask = batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"]
                    with evaluating(model):
                        found.append(head.hidden(model, ids, mask).cpu())
                kept = {name: part.cpu() for name, part in batch.items()}
                seen.append(Seen(kept, found[0], found[1]))  # type: ignore[arg-type]
                bar.update(int(batch["student_attention_mask"].sum()))
                if bar.n >= self.tokens:
                    break
        return seen

    def collator(self, source: Source) -> PairCollator:
        """What makes batches of rows for both tokenizers."""
        return PairCollator(
            source.target,
            source.source,
            max_length=budgets(source.target, source.source, self.max_length),
            pad_to_multiple_of=MULTIPLE,
            loss_on="all",
        )

    def _batches(self, source: Source) -> Iterator[dict[str, Tensor]]:
        """Yield batches of texts that both tokenizers can read.

        Raises:
            DataError: there is none.
        """
        collator = self.collator(source)
        rows = [as_row(text) for text in source.texts]
        skipped, read = torch.zeros(len(REASONS), dtype=torch.long), 0
        for start in range(0, len(rows), self.rows_per_step):
            part = rows[start : start + self.rows_per_step]
            batch = collator(part)
            skipped += batch.pop("skipped")
            read += len(part)
            if (batch["student_chunk"] >= 0).any():
                yield batch
        if read == int(skipped.sum()):
            reasons = {name: n for name, n in zip(REASONS, skipped.tolist(), strict=True) if n}
            raise DataError(
                f"fit: none of {read} texts can be read by both tokenizers ({reasons}): give "
                f"others, or another initialiser"
            )

    # --- fitting --------------------------------------------------------------------------------

    def _fitted(
        self,
        head: HeadMatrix,
        loss: Callable[[Seen, HeadMatrix], Tensor],
        seen: Sequence[Seen],
        seed: int,
    ) -> Float[Tensor, "V D"]:
        """Fit the head's matrix, in float32 at least, to all that was seen."""
        dtype = torch.promote_types(head.weight.dtype, torch.float32)
        weight = nn.Parameter(head.weight.detach().to(dtype, copy=True))
        moving = replace(head, weight=weight)
        fused = weight.device.type in FUSED  # a pass over the matrix in place of ten
        optimizer = torch.optim.Adam([weight], lr=self.learning_rate, betas=BETAS, fused=fused)
        steps = self.epochs * len(seen)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / steps)
        draws = torch.Generator().manual_seed(seed)
        bar = tqdm(total=steps, desc="fit: output matrix", unit="step", delay=2)
        with bar, torch.enable_grad():
            for _ in range(self.epochs):
                total = torch.zeros((), device=weight.device)
                for at in torch.randperm(len(seen), generator=draws).tolist():
                    value = loss(seen[at], moving)
                    value.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    schedule.step()
                    total += value.detach()
                    bar.update()
                bar.set_postfix(nats=f"{float(total) / len(seen):.3f}")
        return weight.detach()


def _losses(mix: Mix, teacher: HeadMatrix, source: Source) -> Callable[[Seen, HeadMatrix], Tensor]:
    """The mean divergence of a batch, as a function of the head."""
    boundary = torch.from_numpy(source.source.bytes.boundary())[: len(teacher.weight)]
    device = teacher.weight.device
    boundary = boundary.to(device)

    def loss(seen: Seen, head: HeadMatrix) -> Tensor:
        batch: Any = {name: part.to(device) for name, part in seen.batch.items()}  # type: ignore[attr-defined]
        mask = batch["teacher_attention_mask"].bool()
        ids = batch["teacher_input_ids"]
        signal = StateSignal(seen.source.to(device), teacher, ids, mask, boundary)
        counts = mix.counts(batch, signal)
        return mix.from_hidden(seen.target.to(device), head, batch, signal, counts).total

    return loss


def _head(model: PreTrainedModel) -> HeadSplit:
    split = split_head(model)
    if isinstance(split, HeadSplit):
        return split
    raise ConfigError(
        f"the initialiser fit needs a head that stands apart, but {split}. Set initial: fvt"
    )


def as_row(text: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """A row as a trainer reads it; a text alone is one."""
    return {"text": text} if isinstance(text, str) else text
