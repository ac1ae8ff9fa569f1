"""Compiled blocks: the same training, in place, or one line that says what is missing."""

import math

import pytest
import torch
from torch._dynamo.utils import counters

import tiny_training as tiny
from crosstill.blocks import (
    LONG,
    compile_blocks,
    compiled_blocks,
    states_after,
    transformer_blocks,
)
from crosstill.errors import ConfigError
from crosstill.evaluation.bits_per_byte import bits_per_byte
from crosstill.evaluation.sampling import sample

compiles = pytest.mark.slow  # inductor takes half a minute for a block and each of its uses


def trained(folder, **settings):
    settings = {"objectives": {"prefix_kl": {}}, "max_steps": 3, **settings}
    trainer = tiny.trainer(folder, **settings)
    trainer.train()
    return trainer


@compiles
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"objectives": {"prefix_kl": {}, "alm": {}}, "weighting": "gradmag"},
        {"max_length": 1024},
    ],
)
def test_compiled_blocks_train_as_the_others_do(tmp_path, settings):
    plain = trained(tmp_path / "plain", **settings)
    fast = trained(tmp_path / "fast", compile_blocks=True, **settings)
    for model in (fast.model, fast.teacher.model):
        assert all(block._compiled_call_impl is not None for block in transformer_blocks(model))
        short = settings.get("max_length", 0) <= LONG
        assert (model.config._attn_implementation == "eager") == short
    for one, other in zip(tiny.losses(plain), tiny.losses(fast), strict=True):
        assert math.isclose(one, other, rel_tol=1e-5)
    weights = dict(plain.model.named_parameters())
    for name, weight in fast.model.named_parameters():
        torch.testing.assert_close(weight, weights[name], atol=2e-5, rtol=0)


def gradients(model, twice):
    """Of a block's weights, after the same backward pass has been gone through before, or not."""
    weights = list(transformer_blocks(model)[-1].parameters())
    total = model(input_ids=torch.arange(1, 24)[None]).logits.square().mean()
    if twice:
        torch.autograd.grad(3 * total, weights, retain_graph=True)
    return torch.autograd.grad(total, weights)


@compiles
def test_a_backward_pass_may_be_gone_through_twice():
    expected = gradients(tiny.student(), twice=True)
    careless = tiny.student()  # as others would: what it leaves on disk must not be taken
    careless.set_attn_implementation("eager")
    for block in transformer_blocks(careless):
        block.compile(dynamic=True)
    by_default = torch._functorch.config.patch(donated_buffer=True)
    with by_default, torch.compiler.config.patch(cache_key_tag=""):
        gradients(careless, twice=False)
    torch._dynamo.reset()
    model = tiny.student()
    compile_blocks(model, torch.device("cpu"))
    for one, other in zip(gradients(model, twice=True), expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


@compiles
def test_nothing_is_compiled_anew_to_measure_or_to_write(tmp_path):
    fast = trained(tmp_path, compile_blocks=True)
    before = sum(counters["frames"].values())
    assert before > 0
    model, encoder = fast.model, fast.student_encoder
    bits_per_byte(model, encoder, ["The cat sat on the mat.", "Hello"])
    for seed in range(2):
        sample(model, [[1, 2, 3], [4]], stop=encoder.bytes.special, max_new_tokens=5, seed=seed)
    assert sum(counters["frames"].values()) == before


def test_without_being_asked_for_nothing_is_compiled(tmp_path):
    trainer = tiny.trainer(tmp_path)
    for model in (trainer.model, trainer.teacher.model):
        assert all(block._compiled_call_impl is None for block in transformer_blocks(model))


def test_without_a_compiler_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("crosstill.blocks.shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler.*compile_blocks: false"):
        tiny.trainer(tmp_path, compile_blocks=True)


def test_without_the_headers_of_python_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("crosstill.blocks.sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(ConfigError, match="headers of Python are missing"):
        compile_blocks(tiny.student(), torch.device("cpu"))


def test_what_has_no_blocks_is_refused():
    model = tiny.student()
    model.model.layers = torch.nn.ModuleList(list(model.model.layers)[:1])
    with pytest.raises(ConfigError, match="no list of blocks was found in LlamaForCausalLM"):
        compile_blocks(model, torch.device("cpu"))


def test_a_model_is_compiled_once(tmp_path):
    with pytest.raises(ConfigError, match="set one of them"):
        tiny.config(tmp_path, compile_blocks=True, torch_compile=True)


@compiles
def test_blocks_are_compiled_as_long_as_it_is_asked_for():
    model = tiny.student()
    blocks, implementation = transformer_blocks(model), model.config._attn_implementation
    ids = torch.arange(1, 24)[None]
    expected = states_after(model, blocks[0], ids, torch.ones_like(ids))
    assert implementation != "eager"
    before = sum(counters["frames"].values())
    with compiled_blocks([model], torch.device("cpu")):
        assert model.config._attn_implementation == "eager"
        found = states_after(model, blocks[0], ids, torch.ones_like(ids))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    compiled = sum(counters["frames"].values())
    assert compiled > before
    assert model.config._attn_implementation == implementation
    assert torch.equal(states_after(model, blocks[0], ids, torch.ones_like(ids)), expected)
    assert sum(counters["frames"].values()) == compiled


@pytest.mark.parametrize(("longest", "attention"), [(512, "eager"), (513, "sdpa")])
def test_long_rows_keep_the_attention_that_keeps_little(longest, attention):
    model, device = tiny.student(), torch.device("cpu")
    model.set_attn_implementation("sdpa")
    with compiled_blocks([model], device, longest=longest):
        assert model.config._attn_implementation == attention
    compile_blocks(model, device, longest=longest)
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize(("longest", "attention"), [(128, "eager"), (1024, "sdpa")])
def test_the_longest_row_is_that_of_the_recipe(tmp_path, longest, attention):
    trainer = tiny.trainer(tmp_path, compile_blocks=True, max_length=longest)
    for model in (trainer.model, trainer.teacher.model):
        assert model.config._attn_implementation == attention


def test_where_it_cannot_be_no_model_is_left_changed():
    model, other = tiny.student(), tiny.student()
    implementation = model.config._attn_implementation
    other.model.layers = torch.nn.ModuleList(list(other.model.layers)[:1])
    with (
        pytest.raises(ConfigError, match="no list of blocks"),
        compiled_blocks([model, other], torch.device("cpu")),
    ):
        pass
    assert model.config._attn_implementation == implementation
    assert all("forward" not in vars(block) for block in transformer_blocks(model))
