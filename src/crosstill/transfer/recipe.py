"""The recipe of a transfer: which model gets which tokenizer, and how it is taught to read it.

```yaml
model: models/mine
to: models/other                     # a folder, a tokenizer.json, a hub name, or: bytes
train: data/texts.jsonl
output_dir: runs/mine_to_other
prompts:                             # the model's own texts, for the teacher divergence
  chat: data/prompts_chat.jsonl
stages:                              # left out: one stage of `mode`
  - {train: embeddings, max_steps: 100}
  - {train: full, max_steps: 400}
```
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crosstill.errors import ConfigError
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
from crosstill.training.values import is_number
from crosstill.transfer.initial import DEFAULT, parse_initialiser
from crosstill.transfer.modes import MODES, shares_body
from crosstill.transfer.record import STAGES

WITH_TEXTS = "fit"
"""How the embeddings begin where nothing is said and there are texts to read."""

WITH_BODY = "spell"
"""The same where a stage trains the body; not towards bytes (docs/decisions/0013)."""

REWORD = 0.2
"""Share of the words of a row that are replaced where nothing is said; towards bytes none is."""

EMBEDDING_FACTOR = 3.0  # new embeddings have further to go than the rest

DEFAULTS: Mapping[str, Any] = {
    "objectives": {"prefix_kl": {}},
    "learning_rate": 2e-4,
    "loss_on": "all",
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "adam_beta2": 0.95,
}
"""Settings of a transfer that are other than those of a distillation."""


@dataclass(frozen=True)
class Stage:
    """A part of the training: what is trained, and how.

    Attributes:
        name: Of its folder: its number and what is trained.
        train: One of `MODES`.
        given: The settings that the recipe gives for this stage.
        settings: All settings, those of the recipe with these on top.
    """

    name: str
    train: str
    given: dict[str, Any]
    settings: DistillConfig


@dataclass(frozen=True)
class TransferRecipe:
    """Everything a transfer is made of.

    Attributes:
        model: Folder or hub name of the model.
        to: The tokenizer it shall have: "bytes", a folder, a tokenizer.json or a hub name.
        output_dir: Where the run writes; must be empty or not exist.
        training: The settings that all stages share.
        stages: What is trained one after another; empty: the embeddings are initialised, no more.
        train: Training rows: a .jsonl, .json, .parquet or .txt file, a list of them, or a hub
            data set. None: nothing is trained.
        train_split: Split of a hub data set.
        revision: Commit or branch of the model on the hub.
        to_revision: Commit or branch of the tokenizer on the hub.
        special_tokens: "keep" the model's own special tokens and chat template, or "change" to
            those of the other tokenizer.
        initial: How the embeddings begin: a name, or `{name: {option: value}}`. Where a recipe says
            nothing: "spell" if a stage trains the body, "fit" towards bytes and if there are texts
            alone, else "fvt".
        initial_texts: Texts for initialisers that read some: a file as `train`, or a list; empty:
            the first training rows.
        enriched: Towards bytes: the embedding of each byte also gets the original one of the
            longest subword that ends there, frozen; see `crosstill.transfer.enriched`.
        reword: Share of the words of the training rows that the model itself replaces by others
            that it expects there too and that the new tokenizer has no token for; 0: rows as they
            are. Towards bytes 0 if nothing is said: they spell each word. See
            `crosstill.teachers.reword`.
        mode: What a stage trains that does not say it.
        eval_texts: Held-out real texts for bits per byte: a file as `train`, or a list.
        prompts: For each kind of text, prompts for the model as it was: a file, or a list of texts
            or of message lists. From them the teacher divergence is measured.
        peft: Settings of `peft.LoraConfig` for stages that train an adapter.
        on_bad_row: "raise", or "skip" and count.
        max_bad_rows: Share of rows that may be skipped, 0 to 1.
    """

    model: str
    to: str
    output_dir: str
    training: DistillConfig
    stages: tuple[Stage, ...] = ()
    train: str | list[str] | None = None
    train_split: str | None = None
    revision: str | None = None
    to_revision: str | None = None
    special_tokens: str = "keep"
    initial: str | dict[str, Any] = DEFAULT
    initial_texts: str | list[str] = field(default_factory=list)
    enriched: bool = False
    reword: float = REWORD
    mode: str = "full"
    eval_texts: str | list[str] = field(default_factory=list)
    prompts: dict[str, Any] = field(default_factory=dict)
    peft: dict[str, Any] | None = None
    on_bad_row: str = "raise"
    max_bad_rows: float = 0.001

    def plain(self) -> dict[str, Any]:
        """The recipe as JSON values: of the settings, ours and those that are not the default."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        stages = [{"train": stage.train, **stage.given} for stage in self.stages]
        return {**fields, "stages": stages, "training": shown(self.training)}

    @property
    def one_body(self) -> bool:
        """Whether the teacher has the student's body: nothing trains it, nor merges into it."""
        modes = [stage.train for stage in self.stages]
        kept = all(shares_body(mode) for mode in modes) and "lora" not in modes[:-1]
        return kept and not parse_initialiser(self.initial).changes_body

    def beginning(self) -> dict[str, Any]:
        """What decides the model that training begins with."""
        names = ("model", "revision", "to", "to_revision", "special_tokens", "initial")
        texts = self.initial_texts or self.train
        enriched = {"enriched": True} if self.enriched else {}
        return {name: getattr(self, name) for name in names} | {
            "initial_texts": texts,
            "seed": self.training.seed,
            "student_dtype": self.training.student_dtype,
            **enriched,
        }


_KEYS = Keys(
    types={
        "model": (str,),
        "to": (str,),
        "output_dir": (str,),
        "training": (dict,),
        "stages": (list,),
        "train": (str, list, type(None)),
        "train_split": (str, type(None)),
        "revision": (str, type(None)),
        "to_revision": (str, type(None)),
        "special_tokens": (str,),
        "initial": (str, dict),
        "initial_texts": (str, list),
        "enriched": (bool,),
        "reword": (int, float),
        "mode": (str,),
        "eval_texts": (str, list),
        "prompts": (dict,),
        "peft": (dict, type(None)),
        "on_bad_row": (str,),
        "max_bad_rows": (int, float),
    },
    required=("model", "to"),
    choices={
        "special_tokens": ("keep", "change"),
        "mode": tuple(MODES),
        "on_bad_row": ("raise", "skip"),
    },
)
_ELSEWHERE = {
    "student_revision": "set revision at the top of the recipe",
    "teacher_revision": "set revision at the top of the recipe: the model teaches itself",
    "same_tokenizer_teacher_revision": "a transfer has no second teacher",
}
_WHOLE_RUN = (
    "student_dtype",
    "teacher_dtype",
    "divergence_samples",
    "divergence_tokens",
    "use_cpu",
)


def load_transfer(path: str | Path, overrides: Mapping[str, Any] | None = None) -> TransferRecipe:
    """Reads the recipe of a transfer.

    Args:
        path: A YAML file.
        overrides: Values that replace those of the file, as in `load_recipe`.

    Raises:
        ConfigError: The file is missing or no YAML mapping; or keys are unknown, given twice,
            missing, or of a wrong type. All problems are named at once.
        TrustError: The recipe asks for trust: only the command line can give it.
    """
    return parse_transfer(read_file(path), overrides)


def parse_transfer(
    values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> TransferRecipe:
    """Makes a recipe of plain values; see `load_transfer`.

    Where no output folder is given, it is `runs/MODEL_to_TOKENIZER`.

    Raises:
        ConfigError: Names every problem.
        TrustError: A key asks for trust.

    Example:
        >>> recipe = parse_transfer(
        ...     {"model": "models/mine", "to": "bytes", "train": "rows.jsonl"}, {"use_cpu": True}
        ... )
        >>> recipe.output_dir, recipe.stages[0].name
        ('runs/mine_to_bytes', '1-full')
        >>> recipe.stages[0].settings.learning_rate
        0.0002
    """
    given = merged(values, overrides or {}, _KEYS)
    given = {key: value for key, value in given.items() if value is not None}
    problems = wrong_keys(given, _KEYS)
    if not problems:
        names = short_name(given["model"]), short_name(given["to"])
        given.setdefault("output_dir", "runs/" + "_to_".join(names))
    problems += _wrong_initial(given.get("initial", DEFAULT))
    problems += wrong_share(
        given.setdefault("reword", 0.0 if given.get("to") == "bytes" else REWORD)
    )
    if given.get("enriched") is True and given.get("to") != "bytes":
        problems.append(
            f"enriched is true and to is {given.get('to')!r}: only byte models are enriched, so "
            "set to: bytes, or enriched: false"
        )
    output_dir = str(given.get("output_dir"))
    shared, stages = given.pop("training", {}), given.pop("stages", [{}])
    if not isinstance(shared, Mapping) or not isinstance(stages, list):
        raise ConfigError("; ".join(problems))
    problems += [f"training.{key}: {why}" for key, why in _ELSEWHERE.items() if key in shared]
    mode = str(given.get("mode", "full"))
    mode = mode if mode in MODES else "full"  # a wrong one is named already
    training = settings_of(_completed(shared, {}, mode), output_dir, problems)
    made: list[Stage] = []
    if given.get("train") is not None:
        # what is wrong in shared settings is named once, not once more by each stage
        beneath = {} if training is None else shared
        made = _stages(stages, beneath, mode, output_dir, problems)
    elif stages and stages != [{}]:
        problems.append("stages are given and nothing to train on: give train")
    if problems:
        raise ConfigError("; ".join(problems))
    given.setdefault("initial", _beginning(given, made))
    return TransferRecipe(**given, training=training, stages=tuple(made))  # type: ignore[arg-type]


def _beginning(given: Mapping[str, Any], stages: list[Stage]) -> str:
    """How the embeddings begin where nothing is said."""
    trains_body = not all(shares_body(stage.train) for stage in stages)
    if trains_body and given.get("to") != "bytes":
        return WITH_BODY
    has_texts = given.get("train") is not None or bool(given.get("initial_texts"))
    return WITH_TEXTS if has_texts else DEFAULT


def _wrong_initial(initial: Any) -> list[str]:
    if not isinstance(initial, str | Mapping):
        return []  # that is named already
    try:
        parse_initialiser(initial)
    except ConfigError as error:
        return [f"initial: {error}"]
    return []


def short_name(name: str) -> str:
    """The last part of a path or a hub name; of a tokenizer.json the folder's.

    Example:
        >>> short_name("org/model-1"), short_name("models/mine/tokenizer.json"), short_name("bytes")
        ('model-1', 'mine', 'bytes')
    """
    path = Path(name)
    if path.suffix == ".json":
        path = path.parent if path.name == "tokenizer.json" else path.with_suffix("")
    return path.name or path.resolve().name


def _stages(
    wanted: list[Any], shared: Mapping[str, Any], mode: str, output_dir: str, problems: list[str]
) -> list[Stage]:
    """Makes the stages; one that takes no step is left out."""
    made = []
    for number, values in enumerate(wanted, 1):
        where = f"stages.{number}"
        if not isinstance(values, Mapping):
            problems.append(f"{where} is {values!r}, expected a mapping of settings")
            continue
        train, given = values.get("train", mode), dict(values)
        given.pop("train", None)
        if train not in MODES:
            problems.append(f"{where}.train is {train!r}: {' | '.join(MODES)}")
            continue
        name = f"{number}-{train}"
        wrong = [
            f"{key} holds for all stages: put it under training"
            for key in _WHOLE_RUN
            if key in given
        ]
        folder = str(Path(output_dir) / STAGES / name)
        settings = settings_of(_completed(shared, given, train), folder, wrong, where)
        problems += [f"{where}: {line}" for line in wrong]
        if settings is not None and settings.max_steps != 0:
            made.append(Stage(name, train, given, settings))
    return made


def _completed(shared: Mapping[str, Any], stage: Mapping[str, Any], train: str) -> dict[str, Any]:
    """The settings of a stage: what is given there, else in the recipe, else the defaults.

    Where only embeddings are trained, a rate that the stage gives is theirs.
    """
    found = {**DEFAULTS, **shared, **stage}
    name, rate = "embedding_learning_rate", found["learning_rate"]
    alone = train == "embeddings"
    if not is_number(rate):  # what is wrong is said by who checks it
        return found
    if name not in stage and "learning_rate" in stage:
        found[name] = rate if alone else EMBEDDING_FACTOR * rate
    found.setdefault(name, EMBEDDING_FACTOR * rate)
    if alone and found[name] is not None:
        found["learning_rate"] = found[name]
    return found
