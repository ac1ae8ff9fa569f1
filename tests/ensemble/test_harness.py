"""The adapter to lm-eval; where that is not installed, on a stand-in with its base class alone."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from crosstill.ensemble import Ensemble
from crosstill.ensemble.harness import harness_model
from crosstill.errors import ConfigError
from tiny_ensembles import PROMPTS, model, other_tokenizer, pivot_tokenizer

INSTALLED = importlib.util.find_spec("lm_eval") is not None


@pytest.fixture
def base(monkeypatch):
    """lm-eval's `LM`."""
    if not INSTALLED:
        parts = {name: ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model")}
        parts["lm_eval.api.model"].LM = type("LM", (), {})  # type: ignore[attr-defined]
        for name, module in parts.items():
            monkeypatch.setitem(sys.modules, name, module)
    return sys.modules["lm_eval.api.model"].LM if not INSTALLED else _real_base()


def _real_base():
    from lm_eval.api.model import LM

    return LM


@pytest.fixture(scope="module")
def ensemble():
    tokenizer, other = pivot_tokenizer(), other_tokenizer()
    return Ensemble([model(tokenizer, 0), model(other, 5)], [tokenizer, other], vocabulary="shared")


def requests(*args):
    return [SimpleNamespace(args=one) for one in args]


def test_log_likelihoods_are_those_of_scores(base, ensemble):
    wrapped = harness_model(ensemble)
    assert isinstance(wrapped, base)
    found = wrapped.loglikelihood(requests(("The cat ", "sat"), ("", "on the mat")))
    expected = ensemble.score([("The cat", " sat"), ("", "on the mat")])
    np.testing.assert_allclose([one for one, _ in found], -expected.nats)
    assert all(isinstance(greedy, bool) for _, greedy in found)
    rolling = wrapped.loglikelihood_rolling(requests(("A whole text.",)))
    assert rolling == pytest.approx((-ensemble.score(["A whole text."]).nats).tolist())


def test_each_member_renders_a_chat_by_itself(base, ensemble):
    wrapped = harness_model(ensemble)
    context = wrapped.apply_chat_template(PROMPTS[2])
    found = wrapped.loglikelihood(requests((context, "On the mat.")))
    expected = ensemble.score([(PROMPTS[2], "On the mat.")])
    assert found[0][0] == pytest.approx(-expected.nats[0])
    options = {"max_gen_toks": 8, "until": ["e"]}
    assert wrapped.generate_until(requests((context, options))) == ensemble.write(
        [PROMPTS[2]], max_new_tokens=8, stop=["e"]
    )
    with pytest.raises(ConfigError, match="gen_prefix"):
        wrapped.apply_chat_template(PROMPTS[2], add_generation_prompt=False)


def test_requests_keep_their_order_and_options(base, ensemble):
    wrapped = harness_model(ensemble)
    asked = requests(
        ("The cat", {"max_gen_toks": 3, "until": "."}),
        ("Hello", {"max_gen_toks": 6, "until": []}),
        ("def", {"max_gen_toks": 3, "until": "."}),
    )
    found = wrapped.generate_until(asked)
    assert found[1] == ensemble.write(["Hello"], max_new_tokens=6)[0]
    assert [found[0], found[2]] == ensemble.write(["The cat", "def"], max_new_tokens=3, stop=["."])


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_the_harness_the_way_there_is_told(ensemble):
    with pytest.raises(ConfigError, match="pip install lm-eval"):
        harness_model(ensemble)
