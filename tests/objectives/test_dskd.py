"""The `dskd` objective: its three forms against the oracle, and what each of them trains."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from crosstill.errors import ConfigError
from crosstill.functional import dskd as functional
from crosstill.objectives import Mix, StudentStates, create
from objectives.batches import padded, rows_of, student_of, toy_pair, whole, wider
from oracle import dskd as oracle

FORMS = ["same", "cma", "eta"]


def prepared(form, case, **options):
    """(objective, pair), prepared for the toy pair that fits the form."""
    objective = create("dskd", form=form, **options)
    pair = toy_pair(case, same=form == "same")
    objective.prepare(pair)
    return objective, pair


def setting(form, seed, dtype=torch.float64, **shape):
    """(mix, case, student, batch, signal)."""
    case, batch, signal = whole(seed, dtype, same=form == "same", **shape)
    objective, _ = prepared(form, case)
    return Mix({"dskd": (objective, 1.0)}), case, student_of(case), batch, signal


def run(mix, student, batch, signal, counts=None):
    """(loss, gradients of the logits, the hidden states and the learned parts)."""
    student = student.changed(lambda values: values.detach().clone().requires_grad_())
    counts = counts or mix.counts(batch, signal)
    loss = mix.from_logits(student.logits, batch, signal, counts, states=student.kept())
    learned = [student.logits, student.states[None], *mix.parts.parameters()]
    return loss, torch.autograd.grad(loss.total, learned)


def numbers(form, objective, pair, student, batch, signal):
    """What the oracle says: (target term, student's space, rows that agree, teacher's space)."""
    weights = pair.student.head.weight.numpy(), pair.teacher.head.weight.numpy()
    teacher_logits = signal.hidden.numpy() @ signal.weight.numpy().T
    hidden, ids = student.states[None].numpy(), batch["student_input_ids"].numpy()
    if form == "cma":
        return by_attention(objective, pair, student, batch, signal, weights, teacher_logits)
    shared = pair.vocabulary.shared()
    down = objective.parts["teacher_to_student"]
    rows = oracle.single_pairs(batch["student_chunk"].numpy(), batch["teacher_chunk"].numpy())
    columns = {name: [] for name in ("down", "up", "student", "teacher", "target")}
    for b, s, t in rows:
        state = signal.hidden[b, t - 1].numpy()
        if form == "eta":
            of_student, of_teacher = weights[0][shared[:, 0]], weights[1][shared[:, 1]]
            columns["down"].append(state @ of_teacher.T @ np.linalg.pinv(of_student.T))
            columns["up"].append(hidden[b, s - 1] @ of_student.T @ np.linalg.pinv(of_teacher.T))
            best = int(teacher_logits[b, t - 1].argmax())
            columns["target"].append({x: y for y, x in shared.tolist()}.get(best, -1))
        else:
            columns["down"].append(oracle.linear(layer(down), state))
            up = layer(objective.parts["student_to_teacher"])
            columns["up"].append(oracle.linear(up, hidden[b, s - 1]))
            columns["target"].append(int(ids[b, s]))
        columns["student"].append(student.logits[b, s - 1].numpy())
        columns["teacher"].append(teacher_logits[b, t - 1])
    terms = oracle.dskd(
        columns["down"], columns["up"], columns["student"], columns["teacher"],
        columns["target"], *weights, agreement=form == "eta",
    )  # fmt: skip
    return *terms, len(rows)


def by_attention(objective, pair, student, batch, signal, weights, teacher_logits):
    parts = [objective.parts[n] for n in ("query", "teacher_to_student", "student_to_teacher")]
    tables = pair.student.input_embedding.numpy(), pair.teacher.input_embedding.numpy()
    states = student.states[None].numpy(), signal.hidden.numpy()
    ids = batch["student_input_ids"].numpy(), batch["teacher_input_ids"].numpy()
    labels = batch["student_labels"].numpy(), batch["teacher_labels"].numpy()
    total, count = np.zeros(4), 0
    for b in range(len(ids[0])):
        rows = [[t for t in range(len(side[b]) - 1) if side[b][t + 1] != -100] for side in labels]
        if not rows[0] or not rows[1]:
            continue
        sides = [
            [(table[i[b][t]], table[i[b][t + 1]], state[b][t]) for t in where]
            for table, i, state, where in zip(tables, ids, states, rows, strict=True)
        ]
        down, up = oracle.attended(*sides, *(layer(part) for part in parts))
        total += oracle.dskd(
            down, up, student.logits[b, rows[0]].numpy(), teacher_logits[b, rows[1]],
            [int(ids[0][b][t + 1]) for t in rows[0]], *weights, agreement=True,
        )  # fmt: skip
        count += len(rows[0])
    return *total, count


def layer(part):
    return part.weight.detach().numpy(), part.bias.detach().numpy()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_oracle(form, seed):
    case, batch, signal = whole(seed, torch.float64, same=form == "same")
    objective, pair = prepared(form, case)
    student = student_of(case)
    mix = Mix({"dskd": (objective, 1.0)})
    loss, _ = run(mix, student, batch, signal)
    ce, kd, agreeing, back, count = numbers(form, objective, pair, student, batch, signal)
    part = loss.parts["dskd"]
    assert part.count == count > 0
    assert part.total.item() == pytest.approx(ce + kd + back, rel=1e-9)
    assert part.sums["agreement"] == agreeing
    assert part.sums["student_space"].item() == pytest.approx(kd, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_more_padding_changes_nothing(form):
    mix, _, student, batch, signal = setting(form, 2)
    loss, gradients = run(mix, student, batch, signal)
    again, others = run(mix, student.changed(wider(5)), *padded(batch, signal, 5))
    assert torch.allclose(loss.total, again.total, rtol=1e-12)
    assert loss.parts["dskd"].count == again.parts["dskd"].count
    for one, two in zip(gradients[:2], others[:2], strict=True):
        assert torch.allclose(one, two[:, :-5], atol=1e-12)
        assert not two[:, -5:].any()
    for one, two in zip(gradients[2:], others[2:], strict=True):
        assert torch.allclose(one, two, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_accumulation_gives_the_gradient_of_the_whole(form):
    mix, _, student, batch, signal = setting(form, 3, rows=4)
    counts = mix.counts(batch, signal)
    loss, expected = run(mix, student, batch, signal, counts)
    total, found = 0.0, []
    for rows in (torch.tensor([2]), torch.tensor([0, 3]), torch.tensor([1])):
        part, gradients = run(
            mix,
            student.changed(lambda values, rows=rows: values[rows]),
            *rows_of(batch, signal, rows),
            counts,
        )
        total += part.total.item()
        found.append(gradients[2:])
    assert total == pytest.approx(loss.total.item(), rel=1e-12)
    for whole_gradient, parts in zip(expected[2:], zip(*found, strict=True), strict=True):
        assert torch.allclose(sum(parts), whole_gradient, atol=1e-12)


@pytest.mark.parametrize("value", [-torch.inf, torch.nan], ids=["minus infinity", "nan"])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_supervised_has_no_effect(form, value):
    mix, _, student, batch, signal = setting(form, 4)
    kept = [torch.zeros_like(batch[f"{side}_labels"], dtype=torch.bool)
            for side in ("student", "teacher")]  # fmt: skip
    for rows, side in zip(kept, ("student", "teacher"), strict=True):
        taught = (batch[f"{side}_labels"] != -100) | (batch[f"{side}_chunk"] >= 0)
        rows[:, :-1] = taught[:, 1:]
    loss, gradients = run(mix, student, batch, signal)
    dirty = student.changed(lambda x: x.masked_fill(~kept[0].unsqueeze(-1), value))
    hidden = signal.hidden.masked_fill(~kept[1].unsqueeze(-1), value)
    again, others = run(mix, dirty, batch, replace(signal, hidden=hidden))
    assert torch.equal(loss.total, again.total)
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("form", FORMS)
def test_nothing_supervised_is_zero_with_a_graph(form, length):
    mix, _, student, batch, signal = setting(form, 5, student=length, teacher=length)
    for side in ("student", "teacher"):
        batch[f"{side}_labels"] = torch.full_like(batch[f"{side}_labels"], -100)
        batch[f"{side}_chunk"] = torch.full_like(batch[f"{side}_chunk"], -1)
    loss, gradients = run(mix, student, batch, signal)
    assert loss.total == loss.parts["dskd"].count == mix.counts(batch, signal)["dskd"] == 0
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_of_the_student(form):
    case, batch, signal = whole(6, torch.float64, same=form == "same", rows=2, student=7, teacher=6)
    objective, _ = prepared(form, case, agreement="never")
    mix, student = Mix({"dskd": (objective, 1.0)}), student_of(case)
    counts = mix.counts(batch, signal)

    def total(logits, hidden):
        return mix.from_logits(logits, batch, signal, counts, states=StudentStates(hidden)).total

    inputs = [student.logits.requires_grad_(), student.states[None].requires_grad_()]
    assert torch.autograd.gradcheck(total, inputs)


def only(monkeypatch, term):
    """Leave one of the three terms."""
    student_space, teacher_space = functional.student_space, functional.teacher_space
    index = ("target", "student_space", "teacher_space").index(term)

    def in_student_space(*args):
        return tuple(one * (i == index) for i, one in enumerate(student_space(*args)))

    monkeypatch.setattr(functional, "student_space", in_student_space)
    monkeypatch.setattr(
        functional, "teacher_space", lambda *args: teacher_space(*args) * (index == 2)
    )


@pytest.mark.parametrize(
    ("term", "trained"),
    [
        ("target", {"teacher_to_student", "query"}),
        ("student_space", {"logits"}),
        ("teacher_space", {"hidden", "student_to_teacher", "query"}),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_each_term_trains_what_the_paper_says(form, term, trained, monkeypatch):
    _, case, student, batch, signal = setting(form, 7)
    objective, _ = prepared(form, case, agreement="never", targets="gold")
    only(monkeypatch, term)
    mix = Mix({"dskd": (objective, 1.0)})
    _, gradients = run(mix, student, batch, signal)
    names = ["logits", "hidden", *(n.split(".")[0] for n, _ in objective.parts.named_parameters())]
    found = {name for name, one in zip(names, gradients, strict=True) if one.any()}
    assert found == trained & set(names)


def test_the_projections_are_the_same_in_every_process_and_leave_the_generator_alone():
    case, _, _ = whole(0)
    state = torch.get_rng_state()
    one, two = (prepared("cma", case)[0].parts.state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(one) == {
        f"{name}.{kind}"
        for name in ("teacher_to_student", "student_to_teacher", "query")
        for kind in ("weight", "bias")
    }


def test_with_the_map_of_logits_the_projected_teacher_says_what_the_teacher_says():
    case, _, _ = whole(1, torch.float64)
    objective, pair = prepared("eta", case)
    shared = pair.vocabulary.shared()
    states = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    down = objective.parts["teacher_to_student"](states) @ pair.student.head.weight.t()
    own = states @ pair.teacher.head.weight.t()
    gap = (down[:, shared[:, 0]] - own[:, shared[:, 1]]).square().sum()
    fitted = np.linalg.lstsq(
        pair.student.head.weight[shared[:, 0]].numpy(),
        (states @ pair.teacher.head.weight[shared[:, 1]].t()).numpy().T,
        rcond=None,
    )
    assert gap.item() == pytest.approx(fitted[1].sum(), rel=1e-9)
    assert objective.parts["teacher_to_student"].bias is None


def test_the_way_back_follows_the_students_head():
    """Its map is made again each step; the teacher's is made once."""
    mix, _, student, batch, signal = setting("eta", 8)
    objective, _ = mix.objectives["dskd"]
    before, _ = run(mix, student, batch, signal)
    with torch.no_grad():
        objective._spaces.heads[0].weight.mul_(2.0)
    after, _ = run(mix, student, batch, signal)
    back = [loss.parts["dskd"].sums["teacher_space"] for loss in (before, after)]
    assert back[0] != back[1]


def test_training_on_it_brings_the_spaces_together():
    mix, _, student, batch, signal = setting("cma", 9)
    student = student.changed(lambda values: values.requires_grad_())
    optimizer = torch.optim.Adam([*student.tensors(), *mix.parts.parameters()], lr=0.05)
    losses = []
    for _ in range(60):
        loss = mix.from_logits(
            student.logits, batch, signal, mix.counts(batch, signal), states=student.kept()
        )
        losses.append(loss.total.item())
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("same", [True, False])
def test_auto_takes_the_form_that_fits(same):
    case, _, _ = whole(2)
    objective = create("dskd")
    objective.prepare(toy_pair(case, same=same))
    assert objective._spaces.options.form == ("same" if same else "eta")
    wide, _, _ = whole(2, hidden=40)  # more dimensions than shared tokens
    objective.prepare(toy_pair(wide, same=same))
    assert objective._spaces.options.form == ("same" if same else "cma")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "v2"}, "eta"),
        ({"targets": "student"}, "gold"),
        ({"agreement": "yes"}, "always"),
        ({"initialisation": "xavier"}, "logits"),
        ({"temperature": -1.0}, "above 0"),
        ({"divergence": "k1"}, "reverse_kl"),
    ],
)
def test_values_out_of_range_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        create("dskd", **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "same"}, "vocabularies differ"),
        ({"form": "cma", "targets": "teacher"}, "must be gold"),
        ({"form": "cma", "initialisation": "logits"}, "must be random"),
    ],
)
def test_what_cannot_work_for_a_pair_is_refused(options, words):
    case, _, _ = whole(3)
    with pytest.raises(ConfigError, match=words):
        create("dskd", **options).prepare(toy_pair(case))


def test_pairs_that_lack_something_are_refused():
    case, batch, signal = whole(4)
    pair = toy_pair(case)
    with pytest.raises(ConfigError, match="student's cannot be told apart"):
        create("dskd").prepare(replace(pair, student=replace(pair.student, head=None)))
    apart = replace(pair.vocabulary, teacher=[b"x", b"y"])
    with pytest.raises(ConfigError, match="share no token"):
        create("dskd", form="eta").prepare(replace(pair, vocabulary=apart))
    narrow = replace(pair.teacher, input_embedding=pair.teacher.input_embedding[:, :2])
    with pytest.raises(ConfigError, match="sizes differ"):
        create("dskd", form="cma").prepare(replace(pair, teacher=narrow))
    with pytest.raises(ConfigError, match="prepare"):
        create("dskd").count(batch, signal)


def test_ids_without_a_row_in_a_model_are_not_shared():
    case, _, _ = whole(5)
    pair = toy_pair(case)
    assert pair.vocabulary.shared()[:, 0].max() >= 9
    objective = create("dskd", form="eta")
    objective.prepare(replace(pair, student=replace(pair.student, vocab_size=9)))
    assert objective._spaces.shared[:, 0].max() < 9
    assert objective._spaces.student_id.max() < 9
