"""Contextual dynamic mapping: distributions compared on the tokens likely to both models."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosstill.align.candidates import CandidateMap
from crosstill.align.groups import ROWS
from crosstill.align.symbols import byte_strings, character_strings, symbol_table, with_specials
from crosstill.errors import ConfigError
from crosstill.functional.cdm import compare_pairs
from crosstill.functional.embedspace import shared_space
from crosstill.functional.losses import LossSum, supervised_tokens
from crosstill.functional.numerics import accumulation_dtype
from crosstill.functional.rows import chunk_rows
from crosstill.objectives.base import Objective, PairBatch, Signal, StudentScores
from crosstill.objectives.cdm_groups import RowGroups, Spelling, chunked, responses, warped
from crosstill.objectives.cdm_rows import (
    Logits,
    MappedGroups,
    Mapper,
    group_facts,
    grouped_columns,
    held_parts,
    row_facts,
    teacher_facts,
)
from crosstill.objectives.pair import Pair

ALIGNMENTS = ("dtw", "bytes")
DISTANCES = ("edit", "bytes", "embedding")


@dataclass(frozen=True)
class CdmOptions:
    """Options of `cdm`; k and theta are the paper's.

    Raises:
        ConfigError: a value is outside its range.
    """

    k: int = field(default=100, metadata={"help": "likeliest tokens of each side that are mapped"})
    theta: float = field(
        default=0.3, metadata={"help": "tokens are paired below this normalised distance"}
    )
    temperature: float = field(default=1.0, metadata={"help": "of both sides' distributions"})
    alignment: str = field(
        default="dtw",
        metadata={"help": "dtw: entropy-weighted time warping, as published; bytes: exact chunks"},
    )
    rows: str = field(
        default="mean",
        metadata={"help": "a group's logits: mean of its rows (published), or first of each side"},
    )
    mapping_distance: str = field(
        default="edit",
        metadata={"help": "edit (over characters), bytes, or embedding (for scripts that differ)"},
    )
    integer: bool = field(
        default=False, metadata={"help": "cut the entropy weights to 3, 4, 5 as the released code"}
    )
    band: int = field(
        default=0,
        metadata={"help": "time warping within so many tokens of the byte diagonal; 0 is exact"},
    )
    drop_spaces: bool = field(
        default=False,
        metadata={"help": "compare tokens without their spaces, as the released code"},
    )

    def __post_init__(self) -> None:
        for name, value, known in (
            ("alignment", self.alignment, ALIGNMENTS),
            ("mapping_distance", self.mapping_distance, DISTANCES),
            ("rows", self.rows, ROWS),
        ):
            if value not in known:
                raise ConfigError(f"cdm.{name} must be one of {', '.join(known)}; got {value!r}")
        if self.k < 1 or self.band < 0:
            raise ConfigError(
                f"cdm.k must be at least 1 and cdm.band at least 0; got {self.k} and {self.band}"
            )
        if not 0.0 < self.theta <= 1.0:
            raise ConfigError(f"cdm.theta must be above 0 and at most 1; got {self.theta}")
        if not 0.0 < self.temperature < float("inf"):
            raise ConfigError(f"cdm.temperature must be above 0 and finite; got {self.temperature}")


@dataclass(frozen=True, eq=False)
class _Prepared:
    """What was laid out before training."""

    mapper: Mapper
    spelling: Spelling


class Cdm(Objective):
    """Match the likeliest tokens of both models, paired anew for every group of positions."""

    name = "cdm"
    paper = "Chen et al. 2025, arXiv:2502.11104"
    needs = frozenset({"logits"})
    options_type = CdmOptions
    cost = "one pass over both models' logits for the top tokens and the entropies"
    choose = "vocabularies that share many tokens; beside sft, and best with alignment bytes"

    options: CdmOptions
    _made: _Prepared | None = None

    def prepare(self, pair: Pair) -> None:
        """Lay out the strings of both vocabularies, and the embeddings if they are compared."""
        options, vocabulary = self.options, pair.vocabulary
        tables = vocabulary.student_bytes, vocabulary.teacher_bytes
        student, teacher = (
            [table.token(id) for id in range(len(table.lengths))]
            + [b""] * (facts.vocab_size - len(table.lengths))
            for table, facts in zip(tables, (pair.student, pair.teacher), strict=True)
        )
        shared, drop = vocabulary.shared(), options.drop_spaces
        make = character_strings if options.mapping_distance == "edit" else byte_strings
        maps = CandidateMap(
            make(student, drop_spaces=drop),
            make(teacher, drop_spaces=drop),
            shared,
            options.theta,
        )
        space = None
        if options.mapping_distance == "embedding":
            embeddings = pair.student.input_embedding, pair.teacher.input_embedding
            space = shared_space(*embeddings, torch.tensor(shared))
        spelled = with_specials(
            byte_strings(student, drop_spaces=drop),
            byte_strings(teacher, drop_spaces=drop),
            tables[0].special,
            tables[1].special,
            shared,
        )
        spelling = Spelling(*spelled, symbol_table(*spelled))
        self._made = _Prepared(Mapper(maps, options.k, space), spelling)

    def count(self, batch: PairBatch, signal: Signal) -> Float[Tensor, ""]:
        """Count the chunks, or with `dtw` the student's supervised tokens.

        The groups of `dtw` depend on the student's entropies, which are not known yet. So each
        sequence weighs as much as the student has tokens there, shared equally by its groups.
        """
        if self.options.alignment == "bytes":
            chunks = chunk_rows(batch["student_chunk"], batch["teacher_chunk"])
            return torch.ones_like(chunks.batch).sum().float()
        taught = supervised_tokens(batch["student_labels"]).sum(1)
        both = supervised_tokens(batch["teacher_labels"]).any(1)
        return (taught * both).sum().float()

    def reads(self, batch: PairBatch) -> Bool[Tensor, "B Ts"]:
        """Read the supervised tokens, or with `bytes` the tokens that are in a chunk."""
        if self.options.alignment == "bytes":
            return batch["student_chunk"] >= 0
        return supervised_tokens(batch["student_labels"])

    def loss(self, student: StudentScores, batch: PairBatch, signal: Signal) -> LossSum:
        """Sum the divergence over the groups.

        `sums` holds, over the groups: `alignment_rate`, those whose sides spell the same bytes;
        `mapping_coverage`, the share of the top tokens that have a pair; `unmapped_student` and
        `unmapped_teacher`, the probability outside the pairs; `alignment_gap`, what a band's path
        costs too much at the most, as a share.
        """
        if self._made is None:
            raise ConfigError(
                "cdm does not know the vocabularies yet; call prepare(pair), or Mix.prepare, first"
            )
        with torch.no_grad():
            make = self._chunked if self.options.alignment == "bytes" else self._warped
            parts = make(self._made, student.logits.detach(), batch, signal)
        found = _compared(student.logits, parts, self.options.temperature)
        return LossSum(found.total, self.count(batch, signal).to(found.total.dtype), found.sums)

    def _chunked(
        self, made: _Prepared, logits: Tensor, batch: PairBatch, signal: Signal
    ) -> list[MappedGroups]:
        """Map the tokens of each chunk."""
        student, k, parts = Logits(logits), self.options.k, []
        for part, held in held_parts(signal, chunked(batch, rows=self.options.rows), logits.device):
            facts = row_facts(student, part.student, k), row_facts(held, part.teacher, k)
            parts.append(made.mapper(held, part, facts))
        return parts

    def _warped(
        self, made: _Prepared, logits: Tensor, batch: PairBatch, signal: Signal
    ) -> list[MappedGroups]:
        """Align each sequence by dynamic time warping, then map the tokens of its groups."""
        options, student, k, parts = self.options, Logits(logits), self.options.k, []
        for own, other in responses(batch):
            of_student = row_facts(student, own.entries(), k)
            of_teacher, held = teacher_facts(signal, other.entries(), k, logits.device)
            both = torch.cat([of_student.entropy, of_teacher.entropy]).double().cpu().numpy()
            groups = warped(
                own,
                other,
                (both[: len(own.ids)], both[len(own.ids) :]),
                made.spelling,
                integer=options.integer,
                band=options.band,
                rows=options.rows,
            )
            for part, rows in held_parts(signal, groups, logits.device, held):
                facts = (
                    group_facts(student, part.student, k, of_student, own.position),
                    group_facts(rows, part.teacher, k, of_teacher, other.position),
                )
                parts.append(made.mapper(rows, part, facts))
        return parts


def _compared(logits: Tensor, parts: list[MappedGroups], temperature: float) -> LossSum:
    """Compare the pairs of all groups; the student's logits are taken out once, with the graph."""
    if not parts:
        nothing = logits.flatten()[:0].sum()
        return LossSum(nothing.to(accumulation_dtype(nothing)), nothing.detach())
    widest = max(part.mapped.shape[1] for part in parts)
    parts = [part.widened(widest) for part in parts]
    groups = RowGroups.joined([part.groups for part in parts])
    ids = torch.cat([part.student_ids for part in parts])
    values = grouped_columns(Logits(logits), groups.student, ids)
    weight = torch.from_numpy(groups.weight).to(values.dtype).to(values.device)
    norms = [torch.cat([part.norms[side] for part in parts]) for side in (0, 1)]
    found = compare_pairs(
        values,
        torch.cat([part.teacher for part in parts]),
        torch.cat([part.mapped for part in parts]),
        (norms[0], norms[1]),
        temperature=temperature,
        weight=weight,
    )
    coverage = torch.cat([part.coverage for part in parts]).to(weight.dtype)
    sums = {
        "alignment_rate": weight[torch.from_numpy(groups.matched).to(weight.device)].sum(),
        "alignment_gap": weight.new_tensor(float((groups.weight * groups.gap).sum())),
        "mapping_coverage": (weight * coverage).sum(),
    }
    return LossSum(found.total, found.count, {**found.sums, **sums})
