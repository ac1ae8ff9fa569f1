"""Writes tests/golden/trl_gold.json: values and gradients of TRL 1.16.0's own loss on small inputs.

Run it in an environment that has trl==1.16.0 (the one that benchmarks/alignment.py makes):

    ~/.cache/crosstill/trl-1.16.0/bin/python tools/record_trl_gold.py
"""

import json
from importlib.metadata import version
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import torch
from trl.experimental.gold.gold_trainer import ULDLoss

OUT = Path(__file__).parents[1] / "tests" / "golden" / "trl_gold.json"
SHARED = [[0, 2], [3, 1], [4, 4], [6, 0]]
SIZES = {"student": 8, "teacher": 7}
LENGTHS = {"student": [1, 2, 3, 1], "teacher": [2, 1, 2, 1]}
PROMPT = 2


class Vocabulary:
    """Stands in for a tokenizer: names for ids, the shared ones with equal names."""

    def __init__(self, side: str):
        column = 0 if side == "student" else 1
        names = {pair[column]: f"shared {k}" for k, pair in enumerate(SHARED)}
        self.names = {names.get(v, f"{side} {v}"): v for v in range(SIZES[side])}

    def get_vocab(self) -> dict[str, int]:
        """Token -> id."""
        return self.names


def inputs(generator: torch.Generator) -> dict[str, dict[str, torch.Tensor]]:
    """Logits, ids, labels and byte offsets of both sides; chunk k ends at byte 6 (k + 1)."""
    sides = {}
    for side, lengths in LENGTHS.items():
        tokens = sum(lengths)
        ids = torch.randint(0, SIZES[side], (1, PROMPT + tokens), generator=generator)
        labels = ids.clone()
        labels[:, :PROMPT] = -100
        ends = [6 * k + (6 * (i + 1)) // n for k, n in enumerate(lengths) for i in range(n)]
        offsets = [[0, 0]] * PROMPT + list(zip([0, *ends[:-1]], ends, strict=True))
        shape = (1, PROMPT + tokens, SIZES[side])
        logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        sides[side] = {
            "logits": logits,
            "ids": ids,
            "labels": labels,
            "offsets": torch.tensor([offsets]),
        }
    return sides


def record(sides: dict[str, dict[str, torch.Tensor]], **config: object) -> dict[str, object]:
    """TRL's value and its gradient on the student's logits."""
    settings = {
        "uld_crossentropy_weight": 0.0,
        "uld_distillation_weight": 1.0,
        "uld_skip_student_eos": False,
        "uld_skip_teacher_eos": False,
        "use_extended_uld": True,
        "uld_hybrid_matched_weight": None,
        "uld_hybrid_unmatched_weight": None,
        **config,
    }
    vocabularies = Vocabulary("student"), Vocabulary("teacher")
    loss_function = ULDLoss(SimpleNamespace(**settings), *vocabularies)
    logits = sides["student"]["logits"].clone().requires_grad_()
    teacher = sides["teacher"]
    value = loss_function(
        logits,
        teacher["logits"],
        sides["student"]["labels"],
        teacher["labels"],
        sides["student"]["ids"],
        teacher["ids"],
        student_byte_offsets=sides["student"]["offsets"],
        teacher_byte_offsets=teacher["offsets"],
    )
    (gradient,) = torch.autograd.grad(value, logits)
    return {"config": config, "value": value.item(), "gradient": gradient[0].tolist()}


def main() -> None:
    """Records every combination."""
    sides = inputs(torch.Generator().manual_seed(0))
    records = [
        record(
            sides,
            uld_token_merge_strategy=merge,
            uld_use_hybrid_loss=hybrid,
            beta=beta,
            uld_student_temperature=temperature,
            uld_teacher_temperature=temperature,
        )
        for merge, hybrid in product(("observed", "bayesian"), (False, True))
        for beta in ((0.0, 0.5, 1.0) if hybrid else (0.5,))
        for temperature in (1.0, 2.0)
    ]
    fixed = {"uld_hybrid_matched_weight": 0.3, "uld_hybrid_unmatched_weight": 2.0}
    options = {"uld_token_merge_strategy": "observed", "uld_use_hybrid_loss": True, "beta": 0.5}
    temperatures = {"uld_student_temperature": 1.0, "uld_teacher_temperature": 1.0}
    records.append(record(sides, **options, **temperatures, **fixed))
    found = {
        "trl": version("trl"),
        "torch": version("torch"),
        "command": "python tools/record_trl_gold.py",
        "shared": SHARED,
        "lengths": LENGTHS,
        "prompt": PROMPT,
        "sides": {
            side: {"logits": x["logits"][0].tolist(), "ids": x["ids"][0].tolist()}
            for side, x in sides.items()
        },
        "records": records,
    }
    OUT.write_text(json.dumps(found) + "\n")
    print(f"{len(records)} records in {OUT}")


if __name__ == "__main__":
    main()
