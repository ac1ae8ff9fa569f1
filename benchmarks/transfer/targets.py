"""How well prefix KL's targets alone foretell what the teacher writes, by kind of chunk.

For texts that the teacher wrote, logits are fitted to the targets until they say what a student
would say that had learnt nothing else and all of it. Where a kind of chunk is less likely than to
the teacher, its targets are wrong, and no training would mend it. Below 0 are chunks with rows that
learn the text itself. No model is trained; a text takes a minute or two for 262,000 tokens.

    CROSSTILL_DATA=... python benchmarks/transfer/targets.py gemma3 --texts 4 --out runs/transfer
"""

import argparse
import math
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from inputs import REAL_TOKENIZERS, Inputs
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from crosstill.align.vocab import VocabularyPair
from crosstill.cli.options import quiet_libraries
from crosstill.data.collate import PairCollator
from crosstill.functional.prefix_blocks import PrefixTables
from crosstill.functional.prefix_kl import prefix_kl_loss
from crosstill.objectives.prefix_tables import pair_tables
from crosstill.text.encode import TextEncoder, text_encoder

STEPS = 80
RATE = 0.3
TOKENS = 112
SHOWN = 12


@dataclass(frozen=True)
class Chunk:
    """What a student of the targets and the teacher say of one chunk, in nats."""

    student: list[bytes]
    teacher: list[bytes]
    excess: float

    @property
    def kind(self) -> str:
        """What it is, and n:m tokens of student and teacher; 3 for more."""
        text = b"".join(self.student)
        name = "line end" if b"\n" in text else "word" if text.strip() else "white space"
        return f"{name} {min(len(self.student), 3)}:{min(len(self.teacher), 3)}"


def main() -> None:
    """Measure one tokenizer, and print a table and the worst chunks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("target", choices=["bpe8k", *REAL_TOKENIZERS])
    parser.add_argument("--texts", type=int, default=4, help="of what the teacher wrote")
    parser.add_argument("--skip", type=int, default=0, help="so many texts before the first")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    options = parser.parse_args()
    quiet_libraries()
    inputs = Inputs(options.out)
    encoders = text_encoder(inputs.target(options.target)), text_encoder(inputs.tokenizer)
    tables, teacher = pair_tables(VocabularyPair(*encoders)), inputs.teacher()
    rows = inputs.rows("own")[options.skip : options.skip + options.texts]
    found = [
        chunk for row in tqdm(rows, unit="text") for chunk in chunks(row, encoders, tables, teacher)
    ]
    report(found)


def chunks(
    row: dict[str, Any],
    encoders: tuple[TextEncoder, TextEncoder],
    tables: PrefixTables,
    teacher: PreTrainedModel,
) -> list[Chunk]:
    """The chunks of a text, and how much less likely each is than to the teacher."""
    batch = PairCollator(*encoders, max_length=(TOKENS, TOKENS), loss_on="all")([row])
    with torch.no_grad():
        logits = teacher(input_ids=batch["teacher_input_ids"]).logits.float()
    ideal = fitted(batch, logits, len(encoders[0].bytes), tables)
    sides = []
    for name, said, encoder in (
        ("student", ideal, encoders[0]),
        ("teacher", logits, encoders[1]),
    ):
        ids, chunk = batch[f"{name}_input_ids"][0], batch[f"{name}_chunk"][0]
        nats = -said[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        tokens: dict[int, list[tuple[bytes, float]]] = defaultdict(list)
        for place in (chunk[1:] >= 0).nonzero()[:, 0].tolist():
            told = encoder.bytes.token(int(ids[place + 1])), nats[place].item()
            tokens[int(chunk[place + 1])].append(told)
        sides.append(tokens)
    student, taught = sides
    return [
        Chunk(
            [token for token, _ in student[k]],
            [token for token, _ in taught[k]],
            sum(n for _, n in student[k]) - sum(n for _, n in taught[k]),
        )
        for k in sorted(student.keys() & taught.keys())
    ]


def fitted(
    batch: dict[str, torch.Tensor], teacher: torch.Tensor, size: int, tables: PrefixTables
) -> torch.Tensor:
    """Logits [1, Ts, Vs] of a student that has learnt the targets and nothing else."""
    ids = batch["student_input_ids"]
    logits = torch.zeros(1, ids.shape[1], size, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=RATE, betas=(0.8, 0.95), fused=True)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1.0 - step / STEPS)
        loss = prefix_kl_loss(
            logits,
            teacher,
            ids,
            batch["teacher_input_ids"],
            batch["student_chunk"],
            batch["teacher_chunk"],
            tables,
        )
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    return logits.detach()


def report(found: list[Chunk]) -> None:
    """Print what each kind of chunk loses, and the chunks that lose most."""
    kinds: dict[str, list[Chunk]] = defaultdict(list)
    for chunk in found:
        kinds[chunk.kind].append(chunk)
    size = sum(len(token) for chunk in found for token in chunk.student)
    total = sum(chunk.excess for chunk in found)
    print(f"{total / math.log(2) / size:.3f} bits per byte beyond the teacher, {len(found)} chunks")
    for name, part in sorted(kinds.items(), key=lambda item: -sum(c.excess for c in item[1])):
        excess = sum(chunk.excess for chunk in part)
        print(f"{name:16} {len(part):5} chunks {excess:8.1f} nats, {excess / len(part):6.2f} each")
    for chunk in sorted(found, key=lambda chunk: -chunk.excess)[:SHOWN]:
        print(f"{chunk.excess:7.2f}  {chunk.student}  {chunk.teacher}")


if __name__ == "__main__":
    sys.exit(main())
