"""The recipe of a transfer: defaults, stages, and what is refused."""

import pytest

from crosstill.errors import ConfigError, TrustError
from crosstill.transfer.recipe import load_transfer, parse_transfer

GOOD = {"model": "models/mine", "to": "models/other", "train": "rows.jsonl", "output_dir": "out"}
CPU = {"use_cpu": True}


def recipe(**changes):
    return parse_transfer({**GOOD, **changes}, CPU)


def rates(stage):
    return stage.settings.learning_rate, stage.settings.embedding_learning_rate


def test_a_recipe_without_more_trains_everything_by_prefix_kl():
    made = recipe()
    (stage,) = made.stages
    assert (stage.name, stage.train) == ("1-full", "full")
    assert stage.settings.objectives == {"prefix_kl": {"weight": 1.0}}
    assert rates(stage) == pytest.approx((2e-4, 6e-4))
    assert str(stage.settings.folder) == "out/stages/1-full"
    assert (made.special_tokens, made.initial, made.training.loss_on) == ("keep", "spell", "all")


def test_first_blocks_are_changed_where_all_are_trained_and_the_head_is_fitted_where_it_can_be():
    assert recipe(train=None).initial == "fvt"
    assert recipe(train=None, initial_texts="texts.txt").initial == "fit"
    assert recipe(initial="mean").initial == "mean"
    embeddings, full = {"train": "embeddings", "max_steps": 2}, {"train": "full", "max_steps": 2}
    assert recipe(mode="embeddings").initial == recipe(mode="lora").initial == "fit"
    assert recipe(stages=[embeddings, full]).initial == recipe(mode="body").initial == "spell"
    assert recipe(stages=[embeddings, {**full, "max_steps": 0}]).initial == "fit"
    assert recipe(to="bytes").initial == "fit"  # where the other way began farther away


def test_words_are_put_in_but_where_each_is_spelled_anyway():
    assert recipe().reword == 0.2
    assert recipe(to="bytes").reword == 0.0
    assert recipe(to="bytes", reword=0.1).reword == 0.1
    assert recipe(reword=0).reword == 0


def test_a_file_and_what_replaces_it(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: a\nto: bytes\ntrain: t\ntraining: {objectives: {alm: {weight: 2}}}\n")
    made = load_transfer(path, {**CPU, "to": "b", "training.objectives.alm.temperature": 7})
    assert made.to == "b"
    assert made.training.objectives == {"alm": {"weight": 2, "temperature": 7}}
    assert made.output_dir == "runs/a_to_b"


def test_stages_have_settings_of_their_own_over_shared_ones():
    made = recipe(
        training={"max_steps": 9, "objectives": "alm", "learning_rate": 1e-4},
        stages=[
            {"train": "embeddings", "max_steps": 4},
            {"train": "embeddings", "learning_rate": 1e-3},
            {"learning_rate": 2e-4, "objectives": "sft"},
            {"train": "body", "embedding_learning_rate": 5e-4},
        ],
        mode="lora",
    )
    assert [s.name for s in made.stages] == ["1-embeddings", "2-embeddings", "3-lora", "4-body"]
    assert [s.settings.max_steps for s in made.stages] == [4, 9, 9, 9]
    assert [list(s.settings.objectives) for s in made.stages] == [
        ["alm"],
        ["alm"],
        ["sft"],
        ["alm"],
    ]
    wanted = [(3e-4, 3e-4), (1e-3, 1e-3), (2e-4, 6e-4), (1e-4, 5e-4)]
    assert [rates(s) for s in made.stages] == [pytest.approx(pair) for pair in wanted]
    assert made.plain()["stages"][2] == {
        "train": "lora",
        "learning_rate": 2e-4,
        "objectives": "sft",
    }


@pytest.mark.parametrize(
    "changes", [{"train": None}, {"training": {"max_steps": 0}}, {"stages": []}]
)
def test_nothing_to_train_is_initialising_alone(changes):
    assert recipe(**changes).stages == ()


def test_all_problems_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_transfer(
            {
                "too": "x",
                "train": "rows.jsonl",
                "train_split": 3,
                "mode": "fulll",
                "special_tokens": "lose",
                "initial": "fvtt",
                "training": {"lern": 1, "student_revision": "main"},
                "stages": [{"train": "heads"}, {"max_stepps": 3}, 5],
            },
            CPU,
        )
    for part in (
        "did you mean to?",
        "model is missing",
        "to is missing",
        "train_split is 3",
        "mode is 'fulll': embeddings",
        "special_tokens is 'lose': keep | change",
        "training.lern",
        "training.student_revision: set revision",
        "stages.1.train is 'heads'",
        "stages.2: ",
        "did you mean max_steps?",
        "stages.3 is 5",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initial": "fvtt"}, "initial: .*fvt"),
        ({"train": None, "stages": [{"max_steps": 2}]}, "nothing to train on"),
        ({"training": {"output_dir": "x"}}, "at the top"),
        ({"stages": [{"output_dir": "x"}]}, "at the top"),
        ({"stages": [{"steps": 3}]}, "max_steps"),
        ({"stages": [{"student_dtype": "bfloat16"}]}, "stages.1: student_dtype holds for all"),
        ({"stages": 3}, "stages is 3, expected list"),
        ({"training": 3}, "training is 3"),
        ({"initial": 3}, "initial is 3, expected str or dict"),
        ({"reword": 1.5}, "reword is 1.5: a share of the words, from 0 to 1"),
        ({"reword": "much"}, "reword is 'much', expected int or float"),
        ({"enriched": True}, "only byte models are enriched"),
        ({"enriched": "yes", "to": "bytes"}, "enriched is 'yes', expected bool"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        recipe(**changes)


@pytest.mark.parametrize("place", [{}, {"stages": [{"trust_remote_code": True}]}])
def test_a_file_cannot_give_trust(place):
    more = {} if place else {"trust_remote_code": True}
    with pytest.raises(TrustError, match="trust_remote_code"):
        recipe(**place, **more)
