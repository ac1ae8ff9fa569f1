"""What of a transfer is done: the models that its parts left, whole or not at all.

`stages.json` holds an entry for each part that is finished: the initial model, and each stage. A
part writes its model to `stages/NAME/model`, and its entry afterwards: a process killed at any
instant leaves entries of whole models alone.
"""

import json
from pathlib import Path
from typing import Any

from crosstill.errors import CheckpointError
from crosstill.plain_json import write_json
from crosstill.training.checkpoint import check_files, described, differences

FORMAT_VERSION = 1
RECORD, STAGES, MODEL = "stages.json", "stages", "model"


class Record:
    """The finished parts of a run, in order.

    Args:
        folder: The run's folder.

    Raises:
        CheckpointError: The record is damaged or of a newer format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, dict[str, Any]] = _read(folder / RECORD)

    def model_folder(self, name: str) -> Path:
        """Where a part leaves its model."""
        return self.folder / STAGES / name / MODEL

    def entry(self, name: str, made_of: dict[str, Any]) -> dict[str, Any] | None:
        """The entry of a part; None where it is not finished.

        Raises:
            CheckpointError: It was made of other things, which are named.
        """
        found = self.entries.get(name)
        if found is None:
            return None
        now = json.loads(json.dumps(made_of, default=str))
        if lines := differences(found["made_of"], now):
            text = "\n  ".join(lines)
            raise CheckpointError(
                f"{self.folder / STAGES / name} belongs to another run; there -> now:\n  {text}\n"
                f"Set these back to resume, or start a new run in another folder."
            )
        return found

    def only(self, *names: str) -> None:
        """Refuses a record of parts that the recipe does not have.

        Raises:
            CheckpointError: Names them.
        """
        if others := [name for name in self.entries if name not in names]:
            raise CheckpointError(
                f"{self.folder} has finished {', '.join(others)}, and the recipe has the stages "
                f"{', '.join(names[1:]) or 'none'}: set them back to resume, or start a new run in "
                f"another folder"
            )

    def check(self, name: str) -> Path:
        """Compares a part's model with its entry, and returns its folder.

        Raises:
            CheckpointError: A file is missing, extra or changed.
        """
        folder = self.model_folder(name)
        check_files(folder, self.entries[name]["files"])
        return folder

    def add(self, name: str, made_of: dict[str, Any], facts: dict[str, Any]) -> None:
        """Enters a part whose model is in its folder."""
        files = described(self.model_folder(name))
        self.entries[name] = {"made_of": made_of, **facts, "files": files}
        content = {"format_version": FORMAT_VERSION, "parts": self.entries}
        write_json(self.folder / RECORD, content)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
        version, parts = content["format_version"], dict(content["parts"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is not the record of a transfer ({error!r}): begin anew with --overwrite"
        ) from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {version}; this version reads up to {FORMAT_VERSION}. Update "
            f"crosstill."
        )
    return parts
