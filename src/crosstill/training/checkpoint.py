"""Checkpoints that are whole or do not count.

A checkpoint is written beside its final place, its `manifest.json` last, and then renamed: a
process killed at any instant leaves either a whole checkpoint or none. The manifest holds the size
and the SHA-256 of every file, and what the run was made of; whoever resumes verifies both.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crosstill.errors import CheckpointError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = ".unfinished-checkpoint-"
_TRASH = ".trash-"
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt", ".npy"}

_MADE_OF = (
    "data",
    "student_tokenizer",
    "teacher_tokenizer",
    "teacher",
    "same_tokenizer_teacher",
    "world_size",
)


@dataclass(frozen=True)
class Origin:
    """What a run is made of: two runs with the same origin take the same steps.

    Attributes:
        config: The settings that change a step, resolved.
        data: Fingerprint of the training rows.
        student_tokenizer: Fingerprint of the student's tokenizer.
        teacher_tokenizer: Fingerprint of the teacher's tokenizer.
        teacher: Fingerprint of the teacher's configuration and weights.
        same_tokenizer_teacher: Fingerprint of the second teacher, or nothing.
        world_size: Number of processes that train together.
    """

    config: dict[str, Any]
    data: str
    student_tokenizer: str
    teacher_tokenizer: str
    teacher: str
    world_size: int = 1
    same_tokenizer_teacher: str = ""

    def differences(self, other: "Origin") -> list[str]:
        """Names what differs, one line each: `name: mine -> other's`."""
        mine, theirs = ({key: getattr(o, key) for key in _MADE_OF} for o in (self, other))
        return [*differences(self.config, other.config), *differences(mine, theirs)]


@dataclass(frozen=True)
class Manifest:
    """The last file of a checkpoint.

    Attributes:
        step: Optimizer steps taken.
        files: For each file its size in bytes and its SHA-256.
        origin: What the run is made of.
        versions: Versions of crosstill, torch and transformers that wrote it.
        format_version: Version of this format.
    """

    step: int
    files: dict[str, dict[str, Any]]
    origin: Origin
    versions: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


def unfinished_folder(output_dir: Path, step: int) -> Path:
    """The folder a checkpoint is written to before it counts."""
    return output_dir / f"{_UNFINISHED}{step}"


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """The folder a whole checkpoint has."""
    return output_dir / f"checkpoint-{step}"


def commit(
    folder: Path, output_dir: Path, step: int, origin: Origin, versions: dict[str, str]
) -> Path:
    """Makes a written folder a checkpoint: manifest last, then one rename.

    Every file and folder is flushed to disk first. A folder already at the final place (one that
    was refused on resume) is renamed aside, never deleted.

    Returns:
        The checkpoint's folder.
    """
    for path in _files(folder):
        _flush(path)
    manifest = asdict(Manifest(step, described(folder), origin, versions))
    text = json.dumps(manifest, indent=1, sort_keys=True)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    _flush(folder / MANIFEST)
    _flush(folder)
    final = checkpoint_folder(output_dir, step)
    if final.exists():
        final.rename(output_dir / f"refused-checkpoint-{step}-{uuid.uuid4().hex[:8]}")
    folder.rename(final)
    _flush(output_dir)
    return final


def verify(folder: Path) -> Manifest:
    """Reads a checkpoint's manifest and compares every file with it.

    Raises:
        CheckpointError: The manifest is missing or of a newer format, or a file is missing, extra,
            of another size or of another content; the message names it.
    """
    manifest = _read_manifest(folder)
    check_files(folder, manifest.files, besides={MANIFEST})
    return manifest


def described(folder: Path) -> dict[str, dict[str, Any]]:
    """The size in bytes and the SHA-256 of every file of a folder, by its path there."""
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in _files(folder)
    }


def check_files(folder: Path, files: Mapping[str, Any], besides: Set[str] = frozenset()) -> None:
    """Compares the files of a folder with what `described` said of them.

    Args:
        folder: The folder.
        files: What is expected there.
        besides: Files that may be there, whatever they hold.

    Raises:
        CheckpointError: A file is missing, extra, of another size or of another content.
    """
    present = {path.relative_to(folder).as_posix() for path in _files(folder)} - besides
    for name in sorted(files.keys() | present):
        path = folder / name
        if path.suffix in _PICKLES:
            raise CheckpointError(f"{path} may be a pickle, which can hold code: it is not read")
        if name not in present:
            raise CheckpointError(f"{path} is missing; the manifest lists it")
        if name not in files:
            raise CheckpointError(f"{path} is not in the manifest: remove it")
        expected = files[name]
        size = path.stat().st_size
        if size != expected["size"]:
            raise CheckpointError(f"{path} has {size} bytes, its manifest says {expected['size']}")
        if sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path} does not have the SHA-256 of its manifest: damaged")


def newest_complete(output_dir: Path) -> tuple[Path | None, list[str]]:
    """Finds the whole checkpoint with the most steps, and says why later ones do not count.

    The order is by step, never by time.

    Returns:
        The folder or None, and one line for each checkpoint that was refused.
    """
    refused = [f"{path.name}: never finished" for path in leftovers(output_dir)]
    for _, folder in sorted(_checkpoints(output_dir), reverse=True):
        try:
            verify(folder)
        except CheckpointError as error:
            refused.append(f"{folder.name}: {error}")
            continue
        return folder, refused
    return None, refused


def leftovers(output_dir: Path) -> list[Path]:
    """Folders that a killed process left: checkpoints never finished or half deleted."""
    if not output_dir.is_dir():
        return []
    names = (_UNFINISHED, _TRASH)
    return sorted(path for path in output_dir.iterdir() if path.name.startswith(names))


def clean(output_dir: Path) -> list[str]:
    """Deletes the leftovers of a killed process and returns their names."""
    removed = leftovers(output_dir)
    for path in removed:
        shutil.rmtree(path)
    return [path.name for path in removed]


def rotate(output_dir: Path, keep: int | None, protected: Path | None = None) -> list[str]:
    """Deletes the oldest checkpoints (by step) until `keep` are left, and returns their names.

    Each is renamed out of the way before its files go, so that a killed process never leaves half
    a checkpoint under its own name. The newest and the protected one stay.
    """
    if keep is None or keep <= 0:
        return []
    folders = [folder for _, folder in sorted(_checkpoints(output_dir))]
    kept = {folders[-1], protected} if folders else set()
    old = [folder for folder in folders if folder not in kept]
    removed = []
    for folder in old[: max(0, len(folders) - keep)]:
        trash = output_dir / f"{_TRASH}{folder.name}-{uuid.uuid4().hex[:8]}"
        folder.rename(trash)
        shutil.rmtree(trash)
        removed.append(folder.name)
    return removed


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names the values that differ, one line each: `name: before -> now`.

    Example:
        >>> differences({"seed": 1, "steps": 5}, {"seed": 2, "steps": 5})
        ['seed: 1 -> 2']
    """
    keys = sorted(before.keys() | now.keys())
    pairs = [(key, before.get(key), now.get(key)) for key in keys]
    return [f"{key}: {mine!r} -> {theirs!r}" for key, mine, theirs in pairs if mine != theirs]


def check_origin(manifest: Manifest, now: Origin) -> None:
    """Refuses to continue a run that was made of other things.

    Raises:
        CheckpointError: Lists each difference.
    """
    found = manifest.origin.differences(now)
    if found:
        lines = "\n  ".join(found)
        raise CheckpointError(
            f"the checkpoint of step {manifest.step} belongs to another run; in the checkpoint -> "
            f"now:\n  {lines}\nSet these back to resume, or start a new run in another folder."
        )


def sha256(path: Path) -> str:
    """Computes the SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {MANIFEST}: it was never finished")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields["format_version"]
        if version > FORMAT_VERSION:
            writer = fields.get("versions", {}).get("crosstill", "a newer version")
            raise CheckpointError(
                f"{path} has format {version}, written by crosstill {writer}; this version reads "
                f"up to {FORMAT_VERSION}. Update crosstill."
            )
        return Manifest(**{**fields, "origin": Origin(**fields["origin"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a manifest: {error!r}") from error


def _checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    if not output_dir.is_dir():
        return []
    found = ((_NAME.fullmatch(path.name), path) for path in output_dir.iterdir())
    return [(int(match[1]), path) for match, path in found if match and path.is_dir()]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _flush(path: Path) -> None:
    """Waits until a file or a folder's entries are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
