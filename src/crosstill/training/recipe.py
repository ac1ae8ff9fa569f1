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
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from crosstill.errors import ConfigError, TrustError
from crosstill.objectives.views import SAME
from crosstill.training.asked import parse_objectives
from crosstill.training.config import DistillConfig, own_settings
from crosstill.training.values import unknown_key

MAX_BYTES = 1 << 20
_MAX_DEPTH = 20


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
        student_tokenizer: Another tokenizer for the student: it is transplanted to it first.
        eval_texts: Held-out real texts for bits per byte: a file as `train`, or a list.
        prompts: For each kind of text, prompts for the teacher: a file, or a list of texts or of
            message lists. From them the teacher divergence is measured.
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
    peft: dict[str, Any] | None = None
    on_bad_row: str = "raise"
    max_bad_rows: float = 0.001

    def plain(self) -> dict[str, Any]:
        """The recipe as JSON values: of the settings, ours and those that are not the default."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        resolved = self.training.resolved()
        default = DistillConfig(
            output_dir=self.output_dir, use_cpu=self.training.use_cpu
        ).resolved()
        shown = {name: value for name, value in resolved.items() if value != default[name]}
        shown |= {name: getattr(self.training, name) for name in (*own_settings(), *_ALWAYS_SHOWN)}
        return {**fields, "training": shown}


_EXPECTED = {
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
    "peft": (dict, type(None)),
    "on_bad_row": (str,),
    "max_bad_rows": (int, float),
}
_ALWAYS_SHOWN = (
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "seed",
)
_REQUIRED = ("student", "teacher", "train", "output_dir")


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
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{path} has {size} bytes; a recipe has at most {MAX_BYTES}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the recipe {path} is not UTF-8: {error}") from error
    return parse_recipe(parse_yaml(text, str(path)), overrides)


def parse_recipe(values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Makes a recipe of plain values; see `load_recipe`.

    Raises:
        ConfigError: Names every problem.
        TrustError: A key asks for trust.
    """
    merged = _merge(values, overrides or {})
    _refuse_trust(merged)
    problems = [unknown_key("", key, _EXPECTED) for key in merged if key not in _EXPECTED]
    problems += [f"{key} is missing" for key in _REQUIRED if merged.get(key) is None]
    for key, value in merged.items():
        types = _EXPECTED.get(key)
        if types and value is not None and (not isinstance(value, types) or value is True):
            names = " or ".join(t.__name__ for t in types if t is not type(None))
            problems.append(f"{key} is {value!r}, expected {names}")
    if merged.get("on_bad_row", "raise") not in ("raise", "skip"):
        problems.append(f"on_bad_row is {merged['on_bad_row']!r}: raise | skip")
    training = merged.pop("training", None) or {}
    if isinstance(training, dict) and "output_dir" in training:
        problems.append("training.output_dir: set output_dir at the top of the recipe")
    elif isinstance(training, dict):
        try:
            training = DistillConfig.from_dict(
                {**training, "output_dir": str(merged.get("output_dir"))}
            )
        except ConfigError as error:
            problems.append(str(error))
    if isinstance(training, DistillConfig):
        problems += _wrong_teachers(training, merged.get("same_tokenizer_teacher"))
    if problems:
        raise ConfigError("; ".join(problems))
    given = {key: value for key, value in merged.items() if value is not None}
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


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """Reads YAML as plain values: no tags, no aliases, no key twice; 1e-4 is a number.

    Raises:
        ConfigError: Says where.
    """
    try:
        values = _Loader(text).get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name} is not a plain YAML file: {reason}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{name} holds {type(values).__name__}, expected a mapping of settings")
    return values


class _Loader(yaml.SafeLoader):
    """A safe loader that also refuses aliases, deep nesting and repeated keys."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()
            raise yaml.YAMLError(f"aliases (*{event.anchor}) are not allowed {event.start_mark}")
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {_MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError(f"the key {key!r} is not text{key_node.start_mark}")
            if key in seen:
                raise yaml.YAMLError(f"the key {key!r} is given twice{key_node.start_mark}")
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-4 as text; everyone who writes it means a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$|^[-+]?\.?\d[\d_]*\.\d*([eE][-+]?\d+)?$"),
    list("-+.0123456789"),
)


def _merge(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    settings = {f.name for f in dataclasses.fields(DistillConfig) if f.init}
    merged = _copied(values)
    for key, value in overrides.items():
        first = key.split(".")[0]
        short = first in settings and first not in _EXPECTED
        *way, last = (f"training.{key}" if short else key).split(".")
        place = merged
        for step in way:
            inner = place.get(step)
            if inner is None:
                inner = place[step] = {}
            if not isinstance(inner, dict):
                raise ConfigError(f"--{key}: {step} is {inner!r}, which has no {last}")
            place = inner
        place[last] = value
    return merged


def _copied(value: Any) -> Any:
    return {k: _copied(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _refuse_trust(value: Any, where: str = "") -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "trust_remote_code":
                raise TrustError(
                    f"{where}trust_remote_code stands in the recipe; a file cannot give trust. "
                    f"Remove it, and pass --trust-remote-code if you have read the model's code."
                )
            _refuse_trust(inner, f"{where}{key}.")
    elif isinstance(value, list):
        for inner in value:
            _refuse_trust(inner, where)
