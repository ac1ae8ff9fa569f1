"""Models, tokenizers and data sets from a folder or a hub: the one door, and the trust policy.

No other module calls `from_pretrained` or `load_dataset`. A name is first turned into a local
folder (a hub name is downloaded, and only files on a short list are), the folder is checked, and
only then does `transformers` read it, without the network. What is checked and why is in
SECURITY.md.
"""

import difflib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosstill.errors import CheckpointError, ConfigError, DataError, TokenizerError, TrustError
from crosstill.trust import check_json_files, check_loading_info, check_weights, first_line

if TYPE_CHECKING:
    import datasets
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

log = logging.getLogger(__name__)

_CONFIG_FILES = ("config.json", "generation_config.json")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "*.model",
)
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")


def load_model(
    name_or_path: str | Path,
    *,
    dtype: "torch.dtype | str" = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    device_map: str | dict[str, Any] | None = None,
) -> "PreTrainedModel":
    """Load a causal language model from safetensors, every tensor accounted for.

    Unlike plain `from_pretrained` this never fills a missing tensor with random numbers, never
    reads a pickle and never asks a service to convert one.

    Args:
        name_or_path: a folder, a `.gguf` file or folder with one, or a name on the hub.
        dtype: the type of the weights in memory, "auto" for the one they are stored in.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run the Python files of the model. Only a person at the command line
            may say so; for a hub name the full commit hash is needed as well.
        device_map: as in `transformers`.

    Raises:
        ConfigError: the folder or the name does not exist, or the hub cannot be reached.
        TrustError: the model asks for code, or has no weights in safetensors.
        CheckpointError: a tensor is missing, unexpected, or of another shape, or a file is damaged.
    """
    from transformers import AutoModelForCausalLM

    gguf = _gguf_file(name_or_path)
    if gguf is not None:
        return _load_gguf_model(gguf, dtype)
    patterns = (*_CONFIG_FILES, *_WEIGHT_FILES)
    folder = _checked_folder(name_or_path, patterns, revision, trust_remote_code)
    check_weights(folder, name_or_path)
    loader: Any = AutoModelForCausalLM
    try:
        model, info = loader.from_pretrained(
            str(folder),
            dtype=dtype,
            device_map=device_map,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and then refused with their names
        )
    except Exception as error:
        # transformers raises many types here; all of them mean that the folder is not usable.
        raise CheckpointError(
            f"the model in {name_or_path} cannot be loaded: {first_line(error)}. "
            f"Check that the folder holds a causal language model and that its files are whole."
        ) from error
    check_loading_info(info, name_or_path)
    model.config._name_or_path = str(name_or_path)
    return model


def load_tokenizer(
    name_or_path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedTokenizerFast":
    """Load a fast tokenizer from a folder, a `tokenizer.json`, a `.gguf` file or the hub.

    Where the folder names no class of a model family, its `tokenizer.json` decides alone. (By
    itself `AutoTokenizer` builds some of these anew, going by the model's type: Qwen 2.)

    A `tokenizer.json` alone names no special token as the end of a text or the like; where its
    folder has a `tokenizer_config.json`, that is read as well.

    Raises:
        ConfigError: the folder or the name does not exist, or the hub cannot be reached.
        TrustError: the tokenizer asks for code.
        TokenizerError: there is no tokenizer, or only a slow one.
    """
    return _tokenizer(name_or_path, revision, trust_remote_code, stated=False)


def load_stated_tokenizer(
    name_or_path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedTokenizerFast":
    """Load a `tokenizer.json` as it states itself, with the roles that its folder names.

    As `load_tokenizer`, whatever class the folder names: some classes build a tokenizer anew from
    its vocabulary, with splitting rules of their own, and cut text otherwise than the file says.
    """
    return _tokenizer(name_or_path, revision, trust_remote_code, stated=True)


def rebuilds_tokenizer(folder: str | Path, texts: Sequence[str]) -> bool:
    """Whether `AutoTokenizer` by itself reads some text otherwise than `load_tokenizer`."""
    from transformers import AutoTokenizer

    alone = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    plain = load_tokenizer(folder)
    return any(alone.encode(text) != plain.encode(text) for text in texts)


def _tokenizer(
    name_or_path: str | Path, revision: str | None, trust: bool, *, stated: bool
) -> "PreTrainedTokenizerFast":
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = Path(name_or_path).expanduser()
    if path.suffix == ".json" and path.is_file():
        if path.name != "tokenizer.json" or not (path.parent / "tokenizer_config.json").is_file():
            return _tokenizer_of_file(path)
        name_or_path = path.parent
    gguf = _gguf_file(name_or_path)
    if gguf is not None:
        folder, more = gguf.parent, {"gguf_file": gguf.name}
    else:
        patterns = (*_CONFIG_FILES, *_TOKENIZER_FILES)
        folder = _checked_folder(name_or_path, patterns, revision, trust)
        more = {}
    stated = stated and gguf is None and (folder / "tokenizer.json").is_file()
    exact: Any = PreTrainedTokenizerFast
    try:
        if stated:
            return exact.from_pretrained(str(folder), local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=trust, **more
        )
        if tokenizer.is_fast and type(tokenizer) is not exact and _plain(folder):
            return exact.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        raise TokenizerError(
            f"no tokenizer can be loaded from {name_or_path}: {first_line(error)}. "
            f"A tokenizer.json and a tokenizer_config.json are expected there."
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(
            f"{name_or_path} has only a slow tokenizer ({type(tokenizer).__name__}); the bytes of "
            f"its tokens cannot be read. Use a model with a tokenizer.json, or convert it once "
            f"with transformers and save it."
        )
    return tokenizer


def _plain(folder: Path) -> bool:
    """Whether the folder has a `tokenizer.json` and names it one of no model family."""
    file = folder / "tokenizer_config.json"
    if not file.is_file() or not (folder / "tokenizer.json").is_file():
        return False
    named = json.loads(file.read_bytes())  # check_json_files has looked at it
    plain = ("TokenizersBackend", "PreTrainedTokenizerFast")
    return named.get("tokenizer_class") in plain and "auto_map" not in named


def _tokenizer_of_file(file: Path) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(file))
    except Exception as error:
        # the tokenizers library raises a bare Exception for what it cannot parse
        raise TokenizerError(
            f"{file} is not a tokenizer of the tokenizers library: {first_line(error)}"
        ) from error


def load_config(
    name_or_path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> "PretrainedConfig":
    """Load a model's configuration, checked as `load_model` checks it, without its weights."""
    from transformers import AutoConfig

    gguf = _gguf_file(name_or_path)
    if gguf is not None:
        config = AutoConfig.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        return _without_quantization(config)
    folder = _checked_folder(name_or_path, _CONFIG_FILES, revision, trust_remote_code)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{name_or_path} has no config.json: it is not a model folder")
    try:
        return AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"the config.json of {name_or_path} cannot be used: {first_line(error)}"
        ) from error


def load_gguf(
    path: str | Path, *, dtype: "torch.dtype | str" = "float32"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    """Load model and tokenizer from a GGUF file (or a folder with one), dequantised.

    The model comes without quantisation settings, so that `save_pretrained` writes an ordinary
    folder. The numbers are those of the quantised file: nothing lost in it comes back.

    Raises:
        ConfigError: no such file, or more than one in the folder.
        CheckpointError: the file cannot be read.
    """
    file = _gguf_file(path)
    if file is None:
        raise ConfigError(f"{path} is neither a .gguf file nor a folder with exactly one")
    return _load_gguf_model(file, dtype), load_tokenizer(file)


def load_dataset(
    name: str,
    *,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> "datasets.Dataset | datasets.DatasetDict":
    """Load a data set from the hub. Local files are read by `crosstill.data.read`.

    Raises:
        ConfigError: no such data set, configuration or split, or the hub cannot be reached.
        TrustError: the data set is a script.
        DataError: its files cannot be read.
    """
    import datasets
    from datasets.exceptions import DatasetGenerationError

    loader: Any = datasets.load_dataset
    try:
        return loader(name, config, split=split, revision=revision)
    except (FileNotFoundError, ConnectionError, ValueError) as error:
        raise ConfigError(
            f"the data set {name!r} cannot be loaded: {first_line(error)}. Check the name, the "
            f"split and the connection to the hub, or give a local .jsonl, .parquet or .txt file."
        ) from error
    except RuntimeError as error:
        if "script" not in str(error):
            raise
        raise TrustError(
            f"the data set {name!r} is a Python script, and scripts are not run. Use its parquet "
            f"files, or a local file."
        ) from error
    except DatasetGenerationError as error:
        raise DataError(f"the files of data set {name!r} are damaged: {first_line(error)}") from (
            error
        )


# --- from a name to a folder ---------------------------------------------------------------------


def _checked_folder(
    name_or_path: str | Path, patterns: tuple[str, ...], revision: str | None, trust: bool
) -> Path:
    """Return the local folder of a model, after the checks that need no weights."""
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        check_json_files(path, name_or_path, trust)
        return path
    name = str(name_or_path)
    if path.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name[0] in "./~":
        raise ConfigError(_missing_path_message(path, name))
    if trust and not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise TrustError(
            f"to run the code of {name!r}, give the full commit hash you have read as its "
            f"revision (40 hexadecimal digits); got {revision!r}"
        )
    # The small files first: a model that is refused costs no download of weights.
    small = tuple(p for p in patterns if p not in _WEIGHT_FILES)
    folder = _download(name, revision, (*small, "*.py") if trust else small)
    check_json_files(folder, name_or_path, trust)
    if small != patterns:
        folder = _download(name, folder.name, patterns)
    if trust:
        files = sorted(f.name for f in folder.glob("*.py"))
        log.warning("running code of %s at commit %s: %s", name, folder.name, ", ".join(files))
    return folder


def _download(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """Fetch the allowed files of a hub repository; the folder is named after the commit."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(patterns)
        )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ConfigError(
            f"the hub has no model {name!r}{f' at revision {revision}' if revision else ''}, or "
            f"it is private and you are not logged in.{_hint(name)}"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        raise ConfigError(
            f"{name!r} is not a folder here, and as a hub name it is neither in the local cache "
            f"nor can the hub be reached ({type(error).__name__}). Give a folder, or go online "
            f"(HF_HUB_OFFLINE unset) once.{_hint(name)}"
        ) from error
    return Path(folder)


def _missing_path_message(path: Path, name: str) -> str:
    """Say that a path is missing or is no folder, and which name nearby was perhaps meant."""
    if path.exists():
        return f"{name} is a file; the folder of a model (or a .gguf file) is expected"
    return f"the folder {name} does not exist.{_hint(name)}"


def _hint(name: str) -> str:
    """Name the first part of a path that is missing, and the nearest name that exists there."""
    path = Path(name).expanduser()
    while not path.parent.exists():
        path = path.parent
    near = difflib.get_close_matches(path.name, [e.name for e in path.parent.iterdir()], n=1)
    if near:
        return f" Did you mean the folder {path.parent / near[0]}?"
    return f" As a folder: {path.parent.absolute()} has no {path.name!r}."


def _gguf_file(name_or_path: str | Path) -> Path | None:
    """The GGUF file that is meant: the file itself, or the only one of a folder without others."""
    path = Path(name_or_path).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError(_missing_path_message(path, str(name_or_path)))
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(f.name for f in files)
        raise ConfigError(f"{path} has several GGUF files; name one of them: {names}")
    return files[0] if files else None


def _load_gguf_model(file: Path, dtype: "torch.dtype | str") -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    try:
        model, info = loader.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            dtype="float32" if dtype == "auto" else dtype,
            local_files_only=True,
            output_loading_info=True,
        )
    except ImportError as error:
        raise ConfigError(f"{file}: GGUF needs the extra: pip install 'crosstill[gguf]'") from error
    except Exception as error:
        raise CheckpointError(f"{file} cannot be loaded: {first_line(error)}") from error
    check_loading_info(info, file)
    _without_quantization(model.config)
    # transformers keeps the loader as a quantiser, and then refuses to save the plain weights.
    model.hf_quantizer = None
    return model


def _without_quantization(config: "PretrainedConfig") -> "PretrainedConfig":
    vars(config).pop("quantization_config", None)
    return config
