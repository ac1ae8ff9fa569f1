"""What a model's files may ask for: the checks that `crosstill.hub` makes on them.

Nothing here runs or imports what it reads.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crosstill.errors import CheckpointError, TrustError

# Keys that begin with "_" have started downloads of code (CVE-2026-4372); these few are plain
# notes that `save_pretrained` of some versions writes.
_PRIVATE_KEYS_ALLOWED = {
    "_name_or_path",
    "_model_name_or_path",
    "_commit_hash",
    "_attn_implementation_autoset",
    "_sliding_window_pattern",
}
# A value with a "/" in one of these names a kernel on a hub, which is code.
_KERNEL_KEYS = ("attn_implementation", "experts_implementation")


def check_json_files(folder: Path, name: str | Path, trust: bool) -> None:
    """Refuse configurations that ask for code, before transformers reads them."""
    for file in ("config.json", "tokenizer_config.json", "generation_config.json"):
        if not (folder / file).is_file():
            continue
        for key, value in _walk(_read_json(folder / file)):
            where = f"{name}: {file} has the key {key!r}"
            if key == "auto_map" and value and not trust:
                raise TrustError(
                    f"{where}: the model wants to run its own Python code. If you have read it "
                    f"and trust it, pass --trust-remote-code (with --revision for a hub model)."
                )
            if key == "trust_remote_code":
                raise TrustError(f"{where}: a file never decides on trust. Remove the key.")
            if key in _KERNEL_KEYS and "/" in json.dumps(value) and not trust:
                raise TrustError(f"{where}, which names code on a hub: {value!r}. Remove it.")
            if file == "config.json" and key.startswith("_") and key not in _PRIVATE_KEYS_ALLOWED:
                raise TrustError(
                    f"{where}: private keys can switch on code and are refused (allowed: "
                    f"{', '.join(sorted(_PRIVATE_KEYS_ALLOWED))}). Remove it from the file."
                )


def check_weights(folder: Path, name: str | Path) -> None:
    """Require safetensors, and shards that lie inside the folder."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{name}: {index.name} has no weight_map")
        shards = sorted({str(shard) for shard in weight_map.values()})
    else:
        shards = sorted(f.name for f in folder.glob("*.safetensors"))
    if not shards:
        pickles = [f.name for f in folder.glob("*.bin")] + [f.name for f in folder.glob("*.pt*")]
        found = f"only {', '.join(pickles)}, which can hold code" if pickles else "no weights"
        raise TrustError(
            f"{name} has {found}; weights in safetensors (model.safetensors) are expected. "
            f"Convert the model yourself where you trust it, with "
            f"save_pretrained(..., safe_serialization=True)."
        )
    # A hub cache keeps the files in ../../blobs and links to them: that is inside, too.
    inside = (folder.resolve(), folder.resolve().parent.parent / "blobs")
    for shard in shards:
        file = folder / shard
        if Path(shard).name != shard or not any(r in file.resolve().parents for r in inside):
            raise TrustError(f"{name}: the weights file {shard!r} lies outside the model's folder")
        if not file.is_file():
            raise CheckpointError(f"{name}: the weights file {shard} is missing")


def check_loading_info(info: dict[str, Any], name: str | Path) -> None:
    """Raise unless every tensor of the model came from the files, and every one was used."""
    for kind, remedy in (
        ("missing_keys", "the model would run with random numbers there"),
        ("unexpected_keys", "the files belong to another architecture or carry extra parts"),
        ("mismatched_keys", "the files belong to a model of other sizes"),
        ("error_msgs", "the files cannot be read"),
    ):
        found = sorted(str(entry) for entry in info.get(kind) or ())
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise CheckpointError(
                f"{name}: {len(found)} {kind.replace('_', ' ')} ({', '.join(found[:3])}{more}); "
                f"{remedy}. Get the model's files again, or use the architecture they belong to."
            )


def _read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; a key given twice is an error, since two readers may disagree on it."""

    def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            twin = next(key for key in keys if keys.count(key) > 1)
            raise CheckpointError(f"{file}: the key {twin!r} is given twice")
        return dict(pairs)

    try:
        value = json.loads(file.read_bytes(), object_pairs_hook=no_twins)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: a JSON object is expected, got {type(value).__name__}")
    return value


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """All (key, value) pairs of nested JSON objects."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)


def first_line(error: BaseException) -> str:
    """Name an exception and give the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
