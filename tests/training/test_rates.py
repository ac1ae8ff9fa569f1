"""A learning rate of their own for embeddings."""

import pytest
import torch

import tiny_training as tiny
from crosstill.errors import ConfigError
from crosstill.training.rates import embedding_weights, set_embedding_rate

ONE_STEP = {"max_steps": 1, "warmup_steps": 0, "lr_scheduler_type": "constant"}


def moved(tmp_path, **settings):
    """How far each parameter went in one step of Adam: its rate, for all but tiny gradients."""
    trainer = tiny.trainer(tmp_path, **{**ONE_STEP, **settings})
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    ends = {id(parameter) for parameter in embedding_weights(trainer.model)}
    steps = {name: (after[name] - before[name]).abs().max().item() for name in before}
    inside = [step for name, step in steps.items() if id(after[name]) in ends]
    return inside, [step for name, step in steps.items() if id(after[name]) not in ends]


def test_embeddings_go_at_their_rate_and_the_rest_at_the_runs(tmp_path):
    ends, body = moved(tmp_path, learning_rate=1e-4, embedding_learning_rate=3e-3)
    assert max(ends) == pytest.approx(3e-3, rel=1e-2)
    assert max(body) == pytest.approx(1e-4, rel=1e-2)


def test_without_it_all_go_at_one_rate(tmp_path):
    ends, body = moved(tmp_path, learning_rate=1e-4)
    assert max(ends) == pytest.approx(max(body), rel=1e-2)


def test_a_run_resumes_with_it(tmp_path):
    settings = {"embedding_learning_rate": 3e-3, "save_strategy": "steps", "save_steps": 1}
    whole = tiny.trainer(tmp_path / "whole", **{**settings, "max_steps": 2})
    whole.train()
    part = tiny.trainer(tmp_path / "part", **{**settings, "max_steps": 2})
    part.args.max_steps = 2
    part.train()
    again = tiny.trainer(tmp_path / "part", **{**settings, "max_steps": 2})
    again.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-1"))
    for one, two in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_parameter_is_in_one_group_and_twice_is_the_same(tmp_path):
    trainer = tiny.trainer(tmp_path, embedding_learning_rate=3e-3)
    optimizer = trainer.create_optimizer()
    set_embedding_rate(optimizer, trainer.model, 3e-3)
    every = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(every) == len(set(every)) == len(list(trainer.model.parameters()))
    rates = {group["lr"] for group in optimizer.param_groups if group.get("embedding")}
    assert rates == {3e-3}


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_that_cannot_work_is_refused(tmp_path, rate):
    with pytest.raises(ConfigError, match="embedding_learning_rate"):
        tiny.trainer(tmp_path, embedding_learning_rate=rate)
