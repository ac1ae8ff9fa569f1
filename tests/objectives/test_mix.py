"""The registry and the weighted mix."""

from dataclasses import dataclass, field

import pytest
import torch

from crosstill.errors import ConfigError
from crosstill.functional import HeadMatrix
from crosstill.objectives import Mix, create, create_mix, methods, register
from crosstill.objectives.sft import Sft
from objectives.batches import whole


def both(case, alm=1.0, sft=0.5, **rest):
    return create_mix(
        {"alm": {"weight": alm, "temperature": 5}, "sft": {"weight": sft}},
        boundary_mask=case.mask,
        **rest,
    )


@pytest.mark.parametrize("vocab_size", [None, 17])
def test_a_mix_is_the_weighted_sum_of_means_in_both_forms(vocab_size):
    case, batch, signal = whole(1, dtype=torch.float64)
    batch["student_input_ids"] = batch["student_input_ids"] % 17
    mix = both(case, vocab_size=vocab_size)
    counts = mix.counts(batch, signal)
    hidden, weight = case.hidden.requires_grad_(), case.weight.requires_grad_()
    plain = mix.from_logits(hidden @ weight.t(), batch, signal, counts)
    fused = mix.from_hidden(hidden, HeadMatrix(weight), batch, signal, counts)
    expected = sum(
        scale * plain.parts[name].total / counts[name] for name, scale in [("alm", 1), ("sft", 0.5)]
    )
    assert torch.allclose(plain.total, expected)
    assert torch.allclose(plain.total, fused.total, rtol=1e-12)
    for one, two in zip(
        torch.autograd.grad(plain.total, [hidden, weight]),
        torch.autograd.grad(fused.total, [hidden, weight]),
        strict=True,
    ):
        assert torch.allclose(one, two, atol=1e-12)
    assert list(plain.metrics()) == ["alm", "alm/gap", "sft"]


def test_two_of_a_kind_cannot_be_fused_but_can_be_mixed():
    case, batch, signal = whole(2)
    mix = Mix(
        {"cold": (create("alm", temperature=1.0), 1.0), "hot": (create("alm"), 2.0)},
        boundary_mask=case.mask,
    )
    assert not mix.can_fuse
    counts = mix.counts(batch, signal)
    assert set(mix.from_logits(case.logits, batch, signal, counts).parts) == {"cold", "hot"}
    with pytest.raises(ConfigError, match="from_logits"):
        mix.from_hidden(case.hidden, HeadMatrix(case.weight), batch, signal, counts)


def test_needs():
    case, _, _ = whole(3)
    assert both(case).needs == {"token_logprob", "boundary"}
    assert both(case).can_fuse
    assert create_mix({"sft": {}}).needs == frozenset()


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({}, "at least one"),
        ({"alm": {}}, "boundary_mask="),
        ({"amm": {}}, "did you mean 'alm'"),
        ({"sft": {"wieght": 1.0}}, "option of sft called 'wieght'"),
        ({"alm": {"temprature": 1.0}}, "did you mean 'temperature'"),
        ({"alm": {"temperature": "hot"}}, "alm.temperature must be a float"),
        ({"alm": {"debias": 1}}, "alm.debias must be a bool"),
        ({"sft": {"weight": 0.0}}, "above 0"),
        ({"sft": {"weight": float("inf")}}, "finite"),
        ({"sft": {"weight": True}}, "sft.weight must be a float"),
    ],
)
def test_mistakes_are_named(recipe, words):
    with pytest.raises(ConfigError, match=words):
        create_mix(recipe)


def test_a_whole_number_may_stand_for_a_float():
    assert create("alm", temperature=5).options.temperature == 5.0


def test_a_name_is_registered_once():
    class Another(Sft):
        """The same name again."""

    with pytest.raises(ConfigError, match="already registered by Sft"):
        register(Another)


def test_an_option_without_help_is_refused():
    @dataclass(frozen=True)
    class Silent:
        rank: int = field(default=1)

    class Quiet(Sft):
        """A new name, an option without help."""

        name = "quiet"
        options_type = Silent

    with pytest.raises(ConfigError, match=r"metadata\['help'\]"):
        register(Quiet)
    assert "quiet" not in [method.name for method in methods()]


def test_an_objective_without_a_fused_form_says_so():
    class Plain(Sft):
        """Not fusable."""

        name = "plain"
        fusable = False

    mix = Mix({"plain": (Plain(Sft.options_type()), 1.0)})
    assert not mix.can_fuse


def test_methods_list_options_with_defaults_and_help():
    alm = next(method for method in methods() if method.name == "alm")
    assert [(option.name, option.default) for option in alm.options] == [
        ("temperature", 100.0),
        ("divergence", "kl"),
        ("merge_threshold", 0.1),
        ("debias", True),
    ]
