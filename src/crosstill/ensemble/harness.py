"""An ensemble under lm-eval, the evaluation harness; needs `pip install lm-eval`.

lm-eval's own `HFLM(pretrained=ensemble, tokenizer=...)` works too, as for any model of
`transformers`, where the vocabularies are identical and all members read the same text. This
adapter also serves `shared` and `mined`, and renders chats by each member's own template.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from crosstill.errors import ConfigError
from crosstill.evaluation.prompts import Prompt

if TYPE_CHECKING:
    from crosstill.ensemble.model import Ensemble

_CHAT = "\x02crosstill chat\x02"
"""Stands before the messages of a chat, which lm-eval hands round as one string."""

_MOST_NEW_TOKENS = 256  # where a task names no number, as in lm-eval's own adapters


def harness_model(ensemble: "Ensemble", *, batch_size: int = 8) -> Any:
    """Wrap an ensemble as an `LM` of lm-eval.

    Args:
        ensemble: who answers.
        batch_size: prompts that are continued at a time.

    Returns:
        An object for `lm_eval.simple_evaluate(model=...)`.

    Raises:
        ConfigError: lm-eval is not installed.

    Example:
        >>> import lm_eval  # doctest: +SKIP
        >>> lm_eval.simple_evaluate(harness_model(ensemble), tasks=["piqa"])  # doctest: +SKIP
    """
    try:
        from lm_eval.api.model import LM  # type: ignore[import-not-found]
    except ImportError as error:
        raise ConfigError("lm-eval is not installed: pip install lm-eval") from error

    class EnsembleLM(LM):
        """An ensemble as lm-eval asks it."""

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            """Nats of continuations, and whether greedy search writes them."""
            pairs = [_seam(*request.args) for request in requests]
            found = ensemble.score(pairs, greedy=True)
            greedy = [] if found.greedy is None else found.greedy.tolist()
            return list(zip((-found.nats).tolist(), greedy, strict=True))

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            """Nats of whole texts."""
            return (-ensemble.score([request.args[0] for request in requests]).nats).tolist()

        def generate_until(self, requests: list[Any]) -> list[str]:
            """Continuations up to a stop."""
            groups: dict[str, list[int]] = {}
            for k, request in enumerate(requests):
                groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(k)
            found = [""] * len(requests)
            for options, places in groups.items():
                prompts = [_prompt(requests[k].args[0]) for k in places]
                written = ensemble.write(
                    prompts, batch_size=batch_size, **_options(json.loads(options))
                )
                for k, text in zip(places, written, strict=True):
                    found[k] = text
            return found

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            """The messages as one string, which each member's template renders later."""
            if not add_generation_prompt:
                raise ConfigError(
                    "the answers of this task begin with given words (gen_prefix), which an "
                    "ensemble cannot put behind several templates: run it without a chat template"
                )
            return _CHAT + json.dumps(chat_history)

        @property
        def tokenizer_name(self) -> str:
            """Names the tokenizers in lm-eval's caches."""
            return "+".join(e.tokenizer.name_or_path or "?" for e in ensemble.encoders)

        def chat_template(self, chat_template: bool | str = False) -> str:
            """All templates, for lm-eval's records."""
            return "\n".join(str(e.tokenizer.chat_template) for e in ensemble.encoders)

    return EnsembleLM()


def _seam(context: str, continuation: str) -> tuple[Prompt, str]:
    """Spaces at the end of a context belong to the word that follows."""
    prompt = _prompt(context)
    if isinstance(prompt, list):
        return prompt, continuation
    kept = prompt.rstrip()
    # All of a context may be spaces: then there is nothing to keep.
    return kept, prompt[len(kept) :] + continuation


def _prompt(context: str) -> Prompt:
    """A context, or the messages that it stands for."""
    if not context.startswith(_CHAT):
        return context
    messages = json.loads(context.removeprefix(_CHAT))
    return [{key: message[key] for key in ("role", "content")} for message in messages]


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """Options of `Ensemble.write` from those of a task."""
    until = given.get("until") or []
    sampled = given.get("do_sample", bool(given.get("temperature")))
    stops: Sequence[str] = [until] if isinstance(until, str) else until
    return {
        "stop": [stop for stop in stops if stop],
        "max_new_tokens": int(
            given.get("max_gen_toks") or given.get("max_new_tokens") or _MOST_NEW_TOKENS
        ),
        "temperature": float(given.get("temperature") or 1.0) if sampled else 0.0,
        "top_p": float(given.get("top_p") or 1.0),
        "top_k": int(given.get("top_k") or 0),
    }
