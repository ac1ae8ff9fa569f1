"""A recipe: the YAML file that says who learns what from whom, on which data.

```yaml
student: models/small
teacher: models/large
train: data/chats.jsonl
output_dir: runs/first
eval_texts: data/held_out.txt        # bits per byte on real text, before and after
prompts:                             # the teacher's own texts, for the teacher divergence
  chat: data/prompts_chat.jsonl
training:
  objectives: {alm: {temperature: 100}}
  max_steps: 1000
```
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crosstill.errors import ConfigError
from crosstill.objectives.views import SAME
from crosstill.training.asked import parse_objectives
from crosstill.training.config import DistillConfig
from crosstill.training.recipe_file import (
    Keys,
    merged,
    read_file,
    settings_of,
    shown,
    wrong_keys,
)
from crosstill.training.rewording import wrong_share


@dataclass(frozen=True)
class Recipe:
    """Everything a run is made of.

    Attributes:
        student: Folder or hub name of the model that learns.
        teacher: Folder or hub name of the model it learns from.
        train: Training rows: a .jsonl, .json, .parquet or .txt file, a list of them, or a hub
            data set.
        output_dir: Where the run writes; must be empty or not exist.
        train_split: Split of a hub data set.
        same_tokenizer_teacher: Folder or hub name of a second teacher, one that has the student's
            tokenizer; objectives with `teacher: same` read it.
        student_tokenizer: Another tokenizer for the student, or "bytes": it is transplanted to it
            first.
        eval_texts: Held-out real texts for bits per byte: a file as `train`, or a list.
        prompts: For each kind of text, prompts for the teacher: a file, or a list of texts or of
            message lists. From them the teacher divergence is measured.
        reword: Share of the words of the training rows that the teacher replaces by others that it
            expects there too and that the student's tokenizer has no token for. See
            `crosstill.teachers.reword`.
        peft: Settings of `peft.LoraConfig`; none: all weights are trained.
        on_bad_row: "raise", or "skip" and count.
        max_bad_rows: Share of rows that may be skipped, 0 to 1.
        training: Settings of the run.
    """

    student: str
    teacher: str
    train: str | list[str]
    output_dir: str
    training: DistillConfig
    train_split: str | None = None
    same_tokenizer_teacher: str | None = None
    student_tokenizer: str | None = None
    eval_texts: str | list[str] = field(default_factory=list)
    prompts: dict[str, Any] = field(default_factory=dict)
    reword: float = 0.0
    peft: dict[str, Any] | None = None
    on_bad_row: str = "raise"
    max_bad_rows: float = 0.001

    def plain(self) -> dict[str, Any]:
        """The recipe as JSON values: of the settings, ours and those that are not the default."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**fields, "training": shown(self.training)}


_KEYS = Keys(
    types={
        "student": (str,),
        "teacher": (str,),
        "train": (str, list),
        "output_dir": (str,),
        "training": (dict,),
        "train_split": (str, type(None)),
        "same_tokenizer_teacher": (str, type(None)),
        "student_tokenizer": (str, type(None)),
        "eval_texts": (str, list),
        "prompts": (dict,),
        "reword": (int, float),
        "peft": (dict, type(None)),
        "on_bad_row": (str,),
        "max_bad_rows": (int, float),
    },
    required=("student", "teacher", "train", "output_dir"),
    choices={"on_bad_row": ("raise", "skip")},
)


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a recipe file.

    Args:
        path: A YAML file.
        overrides: Values that replace those of the file: keys of the recipe (`student`), of its
            training settings (`learning_rate` or `training.learning_rate`), or a path into either
            (`training.objectives.alm.temperature`).

    Raises:
        ConfigError: The file is missing or no YAML mapping; or keys are unknown, given twice,
            missing, or of a wrong type. All problems are named at once.
        TrustError: The recipe asks for trust: only the command line can give it.
    """
    return parse_recipe(read_file(path), overrides)


def parse_recipe(values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Makes a recipe of plain values; see `load_recipe`.

    Raises:
        ConfigError: Names every problem.
        TrustError: A key asks for trust.
    """
    given = merged(values, overrides or {}, _KEYS)
    problems = wrong_keys(given, _KEYS) + wrong_share(given.get("reword"))
    training = settings_of(
        given.pop("training", None) or {}, str(given.get("output_dir")), problems
    )
    if training is not None:
        problems += _wrong_teachers(training, given.get("same_tokenizer_teacher"))
    if problems:
        raise ConfigError("; ".join(problems))
    given = {key: value for key, value in given.items() if value is not None}
    return Recipe(**given, training=training)  # type: ignore[arg-type]


def _wrong_teachers(training: DistillConfig, same: str | None) -> list[str]:
    """Says where objectives name a teacher that is not there, or one is there for nobody."""
    asked = [
        name
        for name, options in parse_objectives(training.objectives).items()
        if options.get("teacher") == SAME
    ]
    if asked and same is None:
        return [
            f"objectives {', '.join(asked)} have `teacher: same`, and the recipe has no "
            "same_tokenizer_teacher: name a model that has the student's tokenizer"
        ]
    if same is not None and not asked:
        return [
            "same_tokenizer_teacher is given and no objective reads it: set `teacher: same` in "
            "one of them, such as forward_kl"
        ]
    return []
