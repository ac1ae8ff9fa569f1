"""The folder where crosstill keeps what is costly to make or to fetch, and arrays in it."""

import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The folder that the environment's CROSSTILL_CACHE names, `~/.cache/crosstill` by default."""
    chosen = os.environ.get("CROSSTILL_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "crosstill"


def cached_ids(name: str, size: int, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An int64 array [size] from the cache; made, and written whole or not at all, if it is absent.

    A file that is damaged or of another size is made again, with a warning. Where the folder cannot
    be written, the array is made each time, with a warning too.

    Args:
        name: What the file is called, below `maps`; holds a hash of all that the array depends on.
        size: How long the array is.
        make: Makes it.
    """
    path = cache_folder() / "maps" / f"{name}.npy"
    if path.is_file():
        try:
            return _read(path, size)
        except (OSError, ValueError, EOFError) as error:
            logger.warning("%s is damaged (%s); it is made again", path, error)
    made = make()
    try:
        _write(path, made)
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s), so it is made each time; let CROSSTILL_CACHE name a folder "
            "that can",
            path,
            error,
        )
    return made


def _read(path: Path, size: int) -> np.ndarray:
    kept = np.load(path, allow_pickle=False)
    if kept.dtype != np.int64 or kept.shape != (size + 1,):
        raise ValueError(f"expected int64 [{size + 1}], got {kept.dtype} {list(kept.shape)}")
    ids, check = kept[:-1], int(kept[-1])
    if zlib.crc32(ids.tobytes()) != check:
        raise ValueError("its checksum does not fit")
    return ids


def _write(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    checked = np.append(ids, zlib.crc32(ids.tobytes()))
    with NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as draft:
        try:
            np.save(draft, checked, allow_pickle=False)
            draft.close()
            Path(draft.name).replace(path)
        except BaseException:
            Path(draft.name).unlink(missing_ok=True)
            raise
