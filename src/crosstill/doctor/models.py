"""The doctor looks at one model: its files, its tokenizer, its vocabulary, its special tokens."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from crosstill.doctor.finding import Findings
from crosstill.hub import load_config, load_tokenizer
from crosstill.text.encode import TextEncoder, text_encoder
from crosstill.transfer.target import whole_tokenizer
from crosstill.trust import check_weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Side:
    """One model as far as it could be read; None where it could not.

    Attributes:
        name: what findings call it: student, teacher; old and new in a transfer.
        config: the model's configuration.
        encoder: its tokenizer.
        parameters: how many numbers the model has, and
        in_tables: how many of them are in its embedding and its head.
    """

    name: str
    config: "PretrainedConfig | None"
    encoder: TextEncoder | None
    parameters: int | None
    in_tables: int = 0


def examine_side(
    name: str,
    source: str,
    revision: str | None,
    trust_remote_code: bool,
    findings: Findings,
    *,
    tokenizer_source: str | None = None,
) -> Side:
    """Look at one model without loading its weights.

    With a `tokenizer_source` the model is transplanted to that tokenizer before the run, so the
    rows of its head need not fit.
    """
    config = findings.attempt(
        f"{name} model",
        lambda: load_config(source, revision=revision, trust_remote_code=trust_remote_code),
    )
    if config is not None and Path(source).is_dir() and not any(Path(source).glob("*.gguf")):
        findings.attempt(f"{name} weights", lambda: check_weights(Path(source), source))

    def read_tokenizer() -> "PreTrainedTokenizerFast":
        loading = {"trust_remote_code": trust_remote_code}
        own = load_tokenizer(source, revision=revision, **loading)
        return (
            own if tokenizer_source is None else whole_tokenizer(tokenizer_source, own, **loading)
        )

    tokenizer = findings.attempt(f"{name} tokenizer", read_tokenizer)
    encoder = None if tokenizer is None else examine_tokenizer(name, tokenizer, findings)
    parameters, in_tables = None, 0
    if config is not None:
        rows = None if tokenizer_source is None or encoder is None else encoder.vocab_size
        parameters, in_tables = _parameters(config, rows)
        findings.add(
            "ok",
            f"{name} model",
            f"{config.model_type}, {_count(parameters)} parameters",
        )
    if config is not None and encoder is not None and tokenizer_source is None:
        _compare_vocabulary(name, config, encoder, findings)
    return Side(name, config, encoder, parameters, in_tables)


def examine_tokenizer(
    name: str, tokenizer: "PreTrainedTokenizerFast", findings: Findings
) -> TextEncoder | None:
    """Look at a tokenizer: its bytes, its special tokens, its template."""
    encoder = findings.attempt(f"{name} tokenizer", lambda: text_encoder(tokenizer))
    if encoder is not None:
        _describe_tokenizer(name, encoder, findings)
        _describe_roles(name, encoder, findings)
    return encoder


def with_tokenizer(side: Side, encoder: TextEncoder, *, untied: bool) -> Side:
    """A model as it is once it reads another tokenizer, with two tables where they are untied."""
    if side.config is None:
        return replace(side, encoder=encoder)
    parameters, in_tables = _parameters(side.config, encoder.vocab_size, untied=untied)
    return replace(side, encoder=encoder, parameters=parameters, in_tables=in_tables)


def _describe_tokenizer(name: str, encoder: TextEncoder, findings: Findings) -> None:
    torture = "caf\u00e9 cafe\u0301 \ufb01ne \u6771\u4eac \U0001f600  two  spaces\n\ttab"
    rewrites = encoder.normalization.changes(torture)
    what = f"{encoder.bytes.kind}, {encoder.vocab_size:,} tokens, every one spelled in bytes"
    if rewrites:
        what += "; it rewrites some text before cutting it (rows where it does are counted)"
    findings.add("ok", f"{name} tokenizer", what)
    if encoder.bytes.unknown_id is not None:
        findings.add(
            "warning",
            f"{name} tokenizer",
            "it has an unknown token that hides bytes: rows that need it are skipped and counted",
        )


def _describe_roles(name: str, encoder: TextEncoder, findings: Findings) -> None:
    roles = encoder.roles

    def shown(ids: tuple[int, ...]) -> str:
        return " ".join(encoder.tokenizer.convert_ids_to_tokens(list(ids))) or "none"

    findings.add(
        "ok" if roles.eos_ids else "warning",
        f"{name} special tokens",
        f"end of text {shown(roles.eos_ids)}, end of turn {shown(roles.eot_ids)}"
        + ("" if roles.eos_ids else "; without an end of text it cannot learn to stop"),
    )
    template = "has a chat template" if encoder.tokenizer.chat_template else "has no chat template"
    findings.add("ok", f"{name} chat", f"the tokenizer {template}")


def _compare_vocabulary(
    name: str, config: "PretrainedConfig", encoder: TextEncoder, findings: Findings
) -> None:
    rows = config.get_text_config().vocab_size
    if rows < encoder.vocab_size:
        findings.add(
            "error",
            f"{name} vocabulary",
            f"the tokenizer has ids up to {encoder.vocab_size - 1:,}, the model rows for "
            f"{rows:,}: they do not belong together. Use the model's own tokenizer.",
        )
    elif rows > encoder.vocab_size:
        findings.add(
            "note",
            f"{name} vocabulary",
            f"{rows - encoder.vocab_size:,} of {rows:,} rows belong to no token (padding): they "
            f"get no probability in any loss",
        )


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:,.0f} million" if parameters >= 2e6 else f"{parameters:,}"


def _parameters(
    config: "PretrainedConfig", rows: int | None, *, untied: bool = False
) -> tuple[int, int]:
    """Count the parameters on the meta device: shapes without numbers, tied ones once.

    With `rows`, as the model is when its embeddings have so many.

    Returns:
        All of them, and those of the embedding and the head.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if rows is not None or untied:
        config = copy.deepcopy(config)
        text = config.get_text_config()
        text.vocab_size = text.vocab_size if rows is None else rows
        for part in (config, text):
            part.tie_word_embeddings = part.tie_word_embeddings and not untied
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = {id(weight): weight for end in ends if end is not None for weight in end.parameters()}
    return (
        sum(parameter.numel() for parameter in model.parameters()),
        sum(weight.numel() for weight in tables.values()),
    )
