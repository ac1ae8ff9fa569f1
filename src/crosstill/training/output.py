"""The output folder: claimed by one process at a time, and never deleted."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from crosstill.errors import ConfigError

LOCK = ".crosstill.lock"
_HOLDER = ".crosstill.holder.json"
_OURS = {LOCK, _HOLDER}


@contextmanager
def claimed(output_dir: Path, *, resume: bool, overwrite: bool) -> Iterator[Path | None]:
    """Makes the output folder ready and holds it; touches nothing that is not ours.

    A folder with files in it is refused, unless the run resumes there or `overwrite` is set; then
    the old folder is renamed aside, not deleted. The lock goes when the process does.

    Args:
        output_dir: Where the run writes.
        resume: Go on with the run that is there.
        overwrite: Begin anew; what is there gets another name.

    Yields:
        The new name of what was there, or None.

    Raises:
        ConfigError: The folder holds files, is no folder, cannot be written to, or is in use.
    """
    if resume and overwrite:
        raise ConfigError("resume and overwrite exclude each other: go on, or begin anew?")
    _check_place(output_dir)
    with locked(output_dir):
        aside = _make_room(output_dir, resume, overwrite)
        if aside is None:
            yield None
            return
    with locked(output_dir):  # the first lock went with the renamed folder
        yield aside


@contextmanager
def locked(output_dir: Path) -> Iterator[None]:
    """Holds the output folder for this process; the lock goes when the process does.

    Raises:
        ConfigError: Another process holds it; the message says which and since when.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    # One object for each path: whoever holds the folder may take the lock a second time.
    lock = FileLock(output_dir / LOCK, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"output_dir {output_dir} is in use by {_holder(output_dir)}. Wait for it, end it, or "
            f"name another folder."
        ) from None
    try:
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
        (output_dir / _HOLDER).write_text(json.dumps(note), encoding="utf-8")
        yield
    finally:
        if lock.lock_counter == 1:
            (output_dir / _HOLDER).unlink(missing_ok=True)
        lock.release()


def _make_room(output_dir: Path, resume: bool, overwrite: bool) -> Path | None:
    entries = sorted(path.name for path in output_dir.iterdir() if path.name not in _OURS)
    if not entries or resume:
        return None
    if not overwrite:
        raise ConfigError(
            f"output_dir {output_dir} is not empty ({', '.join(entries[:3])} ...). Resume that run "
            f"(--resume), begin anew (--overwrite: the old folder is renamed, not deleted), or "
            f"name another folder."
        )
    if output_dir.is_symlink():
        raise ConfigError(f"output_dir {output_dir} is a link and is not renamed: name its target")
    _refuse_foreign(output_dir)
    aside = free_name(output_dir)
    output_dir.rename(aside)
    return aside


def _refuse_foreign(output_dir: Path) -> None:
    """Renames nothing that no run of ours has made."""
    ours = ("summary.json", "metrics.jsonl", "recipe.json")
    names = {path.name for path in output_dir.iterdir()}
    if not names & set(ours) and not any(name.startswith("checkpoint-") for name in names):
        raise ConfigError(
            f"output_dir {output_dir} holds files, none of them from a run ({', '.join(ours)} or "
            f"checkpoint-N expected), so it is not renamed. Name another folder."
        )


def free_name(path: Path) -> Path:
    """A name beside a path, for what stands there, that nothing has yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    number = 0
    while True:
        tail = f"-{number}" if number else ""
        candidate = path.with_name(f"{path.name}.replaced-{stamp}{tail}")
        if not candidate.exists():
            return candidate
        number += 1


def _check_place(output_dir: Path) -> None:
    if output_dir.exists() and not output_dir.is_dir():
        raise ConfigError(f"output_dir {output_dir} is a file: name a folder")
    probe = output_dir / ".crosstill.probe"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"output_dir {output_dir} cannot be written to ({error.strerror}): name another folder "
            f"or change its permissions"
        ) from error


def _holder(output_dir: Path) -> str:
    try:
        note = json.loads((output_dir / _HOLDER).read_text(encoding="utf-8"))
        return f"process {note['pid']} on {note['host']} since {note['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
