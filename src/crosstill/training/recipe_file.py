"""What all recipe files share: plain YAML, overrides from a command line, one check of the keys."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from crosstill.errors import ConfigError, TrustError
from crosstill.training.config import DistillConfig, own_settings
from crosstill.training.values import unknown_key

MAX_BYTES = 1 << 20
_MAX_DEPTH = 20
_ALWAYS_SHOWN = (
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "seed",
)


@dataclass(frozen=True)
class Keys:
    """The keys of a kind of recipe.

    Attributes:
        types: For each key the types of its value.
        required: Keys that must be there.
        choices: For some keys the words they may be.
    """

    types: Mapping[str, tuple[type, ...]]
    required: tuple[str, ...]
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_file(path: str | Path) -> dict[str, Any]:
    """Reads a recipe file as plain values.

    Raises:
        ConfigError: The file is missing, too large, or no YAML mapping.
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
    return parse_yaml(text, str(path))


def merged(values: Mapping[str, Any], overrides: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    """Puts overrides into the values of a recipe; what is given stays as it is.

    Args:
        values: Of the recipe.
        overrides: By key, by setting (`learning_rate` stands under `training`), or by a path into
            either (`training.objectives.alm.weight`).
        keys: Of the recipe.

    Raises:
        ConfigError: A path leads through something that is no mapping.
        TrustError: A key asks for trust: only the command line can give it.
    """
    settings = _settings()
    found = _copied(values)
    for key, value in overrides.items():
        first = key.split(".")[0]
        short = first in settings and first not in keys.types
        *way, last = (f"training.{key}" if short else key).split(".")
        place = found
        for step in way:
            inner = place.get(step)
            if inner is None:
                inner = place[step] = {}
            if not isinstance(inner, dict):
                raise ConfigError(f"--{key}: {step} is {inner!r}, which has no {last}")
            place = inner
        place[last] = value
    _refuse_trust(found)
    return found


def wrong_keys(values: Mapping[str, Any], keys: Keys) -> list[str]:
    """Says which keys are unknown, missing, or of a wrong type or word."""
    problems = [_unknown(key, keys) for key in values if key not in keys.types]
    problems += [f"{key} is missing" for key in keys.required if values.get(key) is None]
    for key, value in values.items():
        types = keys.types.get(key)
        switch = isinstance(value, bool) and bool not in (types or ())  # Python takes it for 1 or 0
        if types and value is not None and (switch or not isinstance(value, types)):
            names = " or ".join(t.__name__ for t in types if t is not type(None))
            problems.append(f"{key} is {value!r}, expected {names}")
        elif key in keys.choices and value is not None and value not in keys.choices[key]:
            problems.append(f"{key} is {value!r}: {' | '.join(keys.choices[key])}")
    return problems


def _unknown(key: str, keys: Keys) -> str:
    """Says that a key is unknown; the nearest may be a setting, which stands elsewhere."""
    settings = _settings()
    if key in settings:
        return f"{key} is a setting: put it under training"
    near = get_close_matches(key, keys.types, n=1) or get_close_matches(key, settings, n=1)
    return unknown_key("", key, near or keys.types)


def _settings() -> set[str]:
    return {f.name for f in dataclasses.fields(DistillConfig) if f.init}


def settings_of(
    training: Any, output_dir: str, problems: list[str], where: str = "training"
) -> DistillConfig | None:
    """Makes the settings of a run from plain values, or adds to the problems why it cannot.

    Args:
        training: The values; anything but a mapping is a problem that `wrong_keys` names.
        output_dir: Where the run writes.
        problems: What is wrong so far; more is appended.
        where: How the recipe calls these values.
    """
    if not isinstance(training, Mapping):
        return None
    if "output_dir" in training:
        problems.append(f"{where}.output_dir: set output_dir at the top of the recipe")
        return None
    # YAML reads `save_strategy: no` as false; everyone who writes it means the word.
    given = {
        key: "no" if value is False and key.endswith("_strategy") else value
        for key, value in training.items()
    }
    try:
        return DistillConfig.from_dict({**given, "output_dir": output_dir})
    except ConfigError as error:
        problems.append(str(error))
        return None


def shown(settings: DistillConfig) -> dict[str, Any]:
    """Settings as JSON values: ours, and those of transformers that are not the default."""
    resolved = settings.resolved()
    default = DistillConfig(output_dir=settings.output_dir, use_cpu=settings.use_cpu).resolved()
    found = {name: value for name, value in resolved.items() if value != default[name]}
    return found | {name: getattr(settings, name) for name in (*own_settings(), *_ALWAYS_SHOWN)}


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
