"""The `hidden` objective: which states it reads, its projections and its options."""

from dataclasses import replace

import pytest
import torch

from crosstill.errors import ConfigError
from crosstill.objectives import Mix, StudentStates, create
from objectives.batches import alone, student_of, toy_pair, whole
from oracle import hidden as oracle


def loss_of(mix, student, batch, signal):
    name = next(iter(mix.objectives))
    counts = mix.counts(batch, signal)
    loss = mix.from_logits(student.logits, batch, signal, counts, states=student.kept())
    return loss.parts[name]


@pytest.mark.parametrize("distance", ["mse", "cosine", "normalised_mse"])
@pytest.mark.parametrize(
    ("layers", "pairs"),
    [("last", [(None, None)]), ("2:1", [(2, 1)]), ("1:2,2:2", [(1, 2), (2, 2)]),
     ("even", [(1, 1), (2, 2)])],
)  # fmt: skip
def test_equals_the_oracle(layers, pairs, distance):
    case, batch, signal = whole(1, torch.float64)
    student = student_of(case)
    part = loss_of(alone("hidden", case, layers=layers, distance=distance), student, batch, signal)
    rows = oracle.chunk_ends(batch["student_chunk"].numpy(), batch["teacher_chunk"].numpy())
    total = 0.0
    for mine, theirs in pairs:
        taught = signal.hidden if theirs is None else signal.layers[theirs]
        states = [student.states[mine][b, s].tolist() for b, s, _ in rows]
        total += oracle.hidden(states, [taught[b, t].tolist() for b, _, t in rows], distance)[0]
    assert part.total.item() == pytest.approx(total / len(pairs), rel=1e-9)
    assert part.count == len(rows) > 0


def test_even_layers_spread_over_a_deeper_teacher():
    case, _, _ = whole(0)
    pair = toy_pair(case)
    objective = create("hidden", layers="even")
    objective.prepare(replace(pair, teacher=replace(pair.teacher, num_layers=6)))
    assert objective.layers() == ((1, 2), (3, 6))


def test_the_last_states_ask_for_no_layer():
    case, _, _ = whole(0)
    mix = alone("hidden", case)
    assert mix.student_layers == mix.teacher_layers() == ()
    assert len(mix.parts) == 0  # equal sizes need no projection


def wide_pair(case, size):
    """A pair whose teacher's states have another size."""
    pair = toy_pair(case)
    return replace(pair, teacher=replace(pair.teacher, hidden_size=size))


def test_sizes_that_differ_get_a_projection_that_is_trained():
    case, batch, signal = whole(2, torch.float64)
    objective = create("hidden", distance="mse")
    objective.prepare(wide_pair(case, 9))
    wide = torch.randn(*signal.hidden.shape[:2], 9, dtype=torch.float64)
    signal = replace(signal, hidden=wide)
    student = student_of(case)
    hidden = student.states[None].requires_grad_()
    mix = Mix({"hidden": (objective, 1.0)})
    loss = mix.from_logits(
        student.logits, batch, signal, mix.counts(batch, signal), states=StudentStates(hidden)
    )
    projection = objective.parts[0]
    rows = oracle.chunk_ends(batch["student_chunk"].numpy(), batch["teacher_chunk"].numpy())
    states = [projection(hidden[b, s]).tolist() for b, s, _ in rows]
    total, _ = oracle.hidden(states, [wide[b, t].tolist() for b, _, t in rows], "mse")
    assert loss.parts["hidden"].total.item() == pytest.approx(total, rel=1e-9)
    loss.total.backward()
    assert projection.weight.grad.any()
    assert hidden.grad.any()


def test_a_projection_can_be_asked_for_and_is_the_same_every_time():
    case, _, _ = whole(3)
    mixes = [alone("hidden", case, projection="linear", layers="1:1,2:2") for _ in range(2)]
    one, two = (mix.parts.state_dict() for mix in mixes)
    assert len(one) == 4
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["hidden.0.weight"], one["hidden.1.weight"])


def test_zero_where_the_student_has_its_teachers_states():
    case, batch, signal = whole(4)
    batch["teacher_chunk"] = batch["student_chunk"]
    student = student_of(case)
    signal = replace(signal, hidden=student.states[None])
    part = loss_of(alone("hidden", case), student, batch, signal)
    assert part.total == 0
    assert part.count > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": "6-12"}, "6:12,12:24"),
        ({"layers": "1:"}, "pairs"),
        ({"distance": "l1"}, "cosine"),
        ({"projection": "mlp"}, "linear"),
    ],
)
def test_values_out_of_range_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        create("hidden", **options)


def test_what_cannot_work_for_a_pair_is_refused():
    case, _, _ = whole(5)
    with pytest.raises(ConfigError, match=r"6 student, 9 teacher.*auto or linear"):
        create("hidden", projection="none").prepare(wide_pair(case, 9))
    with pytest.raises(ConfigError, match="pair 3:1"):
        create("hidden", layers="3:1").prepare(toy_pair(case))
