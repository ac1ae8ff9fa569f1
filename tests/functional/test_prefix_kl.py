"""Prefix KL against brute force, and what must hold of it."""

import numpy as np
import pytest
import torch

from crosstill.functional import class_mass, prefix_kl_loss, prefixes
from crosstill.functional.prefix_plan import plan_prefixes
from crosstill.functional.prefix_rows import prefix_rows_loss, start_targets
from crosstill.functional.prefixes import TeacherMass
from crosstill.objectives.prefix_tables import pair_tables
from objectives.batches import STUDENT_TOKENS, TEACHER_TOKENS, ToyVocabularies, _spell
from oracle.prefix_kl import PrefixKl

PAIRS = {
    "student shorter": (STUDENT_TOKENS, TEACHER_TOKENS),
    "student longer": (TEACHER_TOKENS, STUDENT_TOKENS),
    "one vocabulary": (STUDENT_TOKENS, STUDENT_TOKENS),
    "bytes": (STUDENT_TOKENS[:5], TEACHER_TOKENS),
    "teacher of bytes": (TEACHER_TOKENS, STUDENT_TOKENS[:5]),
    "tokens written twice": ([*STUDENT_TOKENS, b"a", b" "], TEACHER_TOKENS),
    "other before a word": (STUDENT_TOKENS, TEACHER_TOKENS),
}
BEFORE_WORD = {
    b"cc": [b"c", b"c"],
    b" ab": [b" a", b"b"],
    b" a": [b" ", b"a"],
    b"abc": [b"ab", b"c"],
}
"""Student tokens that the teacher spells otherwise there; some are tokens of its own."""


def case(pair, seed, length=24, dtype=torch.float64, **options):
    """One random text in both vocabularies: tables, tensors and an oracle."""
    student, teacher = PAIRS[pair]
    unwritten = tuple(id for id, token in enumerate(student) if student.index(token) != id)
    before_word = {}
    if pair == "other before a word":
        for token, parts in BEFORE_WORD.items():
            before_word[student.index(token)] = [teacher.index(part) for part in parts]
    vocabulary = ToyVocabularies(student, teacher, unwritten, before_word)
    rng = np.random.default_rng(seed)
    text = bytes(rng.choice([97, 98, 99, 32], length).tolist())
    ids = [[0, *_spell(text, tokens)] for tokens in (student, teacher)]
    ends = [np.cumsum([len(tokens[i]) for i in side])
            for side, tokens in zip(ids, (student, teacher), strict=True)]  # fmt: skip
    common = sorted(set(ends[0][1:]) & set(ends[1][1:]))
    chunk = [np.searchsorted(common, side) for side in ends]
    for side in chunk:
        side[0] = -1
    skipped = rng.integers(0, len(common))  # a gap in what is supervised
    chunk = [np.where(side == skipped, -1, side - (side > skipped)) for side in chunk]
    logits = [torch.tensor(rng.normal(0, 2, (len(side), len(tokens))), dtype=dtype)
              for side, tokens in zip(ids, (student, teacher), strict=True)]  # fmt: skip
    spelled = [[tuple(_spell(token, other)) for token in own]
               for own, other in ((teacher, student), (student, teacher))]  # fmt: skip
    known = {"unwritten": unwritten, "before_word": before_word}
    oracle = PrefixKl(*spelled, student, teacher, **known, **options)
    return pair_tables(vocabulary), ids, chunk, logits, oracle


def loss_of(tables, ids, chunk, logits, chunks=3, **options):
    ids = [torch.tensor([side]) for side in ids]
    chunk = [torch.tensor(side)[None].long() for side in chunk]
    plan = plan_prefixes(*ids, torch.ones_like(ids[1]), *chunk, tables)
    parts = [
        prefix_rows_loss(
            logits[0][block.student[1]], logits[1][block.teacher[1]], block, tables, **options
        )
        for block in plan.blocks(chunks)
    ]
    return sum(part.total for part in parts), sum(part.count for part in parts), len(plan)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("pair", PAIRS)
def test_equal_to_brute_force(pair, seed):
    tables, ids, chunk, logits, oracle = case(pair, seed)
    total, count, planned = loss_of(tables, ids, chunk, logits)
    expected, rows = oracle.run(*(side.numpy() for side in logits), *ids, *chunk)
    assert total.item() == pytest.approx(expected, rel=1e-9)
    assert count == planned == rows


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("top_k", [1, 4])
def test_equal_to_brute_force_from_few_tokens_at_a_temperature(pair, seed, top_k):
    tables, ids, chunk, logits, oracle = case(pair, seed, top_k=top_k, tau=2.5)
    total, count, _ = loss_of(tables, ids, chunk, logits, top_k=top_k, temperature=2.5)
    expected, rows = oracle.run(*(side.numpy() for side in logits), *ids, *chunk)
    assert total.item() == pytest.approx(expected, rel=1e-9)
    assert count == rows


@pytest.mark.parametrize("pair", PAIRS)
def test_float32_is_close(pair):
    tables, ids, chunk, logits, oracle = case(pair, 3)
    total, _, _ = loss_of(tables, ids, chunk, [side.float() for side in logits])
    expected, _ = oracle.run(*(side.float().numpy() for side in logits), *ids, *chunk)
    assert total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("pair", PAIRS)
def test_the_gradient_in_float32_is_close(pair, compiled, monkeypatch):
    if not compiled:
        for kernel in (class_mass.kernel, prefixes.kernel):
            monkeypatch.setattr(kernel, "available", lambda: False)
    tables, ids, chunk, logits, _ = case(pair, 3)
    found = []
    for dtype in (torch.float64, torch.float32):
        student = logits[0].to(dtype).requires_grad_()
        total = loss_of(tables, ids, chunk, [student, logits[1].to(dtype)])[0]
        found += torch.autograd.grad(total, student)
    assert torch.allclose(found[1].double(), found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_gradient_is_that_of_the_value(pair):
    tables, ids, chunk, logits, _ = case(pair, 5, length=10)

    def value(student):
        return loss_of(tables, ids, chunk, [student, logits[1]])[0]

    torch.autograd.gradcheck(value, logits[0].requires_grad_())


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_the_size_of_blocks_changes_nothing(size):
    tables, ids, chunk, logits, _ = case("student shorter", 8)
    expected = loss_of(tables, ids, chunk, logits, chunks=3)[0]
    assert torch.allclose(loss_of(tables, ids, chunk, logits, chunks=size)[0], expected)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_constant_on_all_logits_changes_nothing(pair):
    tables, ids, chunk, logits, _ = case(pair, 9)
    expected = loss_of(tables, ids, chunk, logits)[0]
    moved = loss_of(tables, ids, chunk, [logits[0] + 3.0, logits[1] - 5.0])[0]
    assert torch.allclose(moved, expected)


@pytest.mark.parametrize("seed", range(3))
def test_zero_for_equal_models_with_one_vocabulary(seed):
    tables, ids, chunk, logits, _ = case("one vocabulary", seed)
    assert loss_of(tables, ids, chunk, [logits[1], logits[1]])[0].abs() < 1e-12
    assert loss_of(tables, ids, chunk, logits)[0] > 1.0


@pytest.mark.parametrize("pair", PAIRS)
def test_never_below_zero(pair):
    for seed in range(20, 30):
        tables, ids, chunk, logits, _ = case(pair, seed)
        assert loss_of(tables, ids, chunk, logits)[0] > 0


def test_without_end_tokens_of_the_text_nothing_is_read_past_it():
    tables, ids, chunk, logits, _ = case("student longer", 11)
    longer = [[*side, 0, 0] for side in ids]
    wide = [np.append(side, [-1, -1]) for side in chunk]
    padded = [torch.nn.functional.pad(side, (0, 0, 0, 2), value=torch.nan) for side in logits]
    mask = torch.tensor([[1] * len(ids[1]) + [0, 0]])
    sides = [torch.tensor([side]) for side in longer]
    chunks = [torch.tensor(side)[None].long() for side in wide]
    plan = plan_prefixes(*sides, mask, *chunks, tables)
    parts = [
        prefix_rows_loss(
            padded[0][block.student[1]], padded[1][block.teacher[1]], block, tables
        ).total
        for block in plan.blocks(4)
    ]
    assert torch.allclose(sum(parts), loss_of(tables, ids, chunk, logits)[0])


def test_a_batch_is_the_sum_of_its_rows():
    tables, ids, chunk, logits, _ = case("student shorter", 4)
    batch = [torch.tensor([side, side]) for side in ids]
    chunks = [torch.tensor(side)[None].long().repeat(2, 1) for side in chunk]
    both = [torch.stack([side, side + 0.1 * side.square()]) for side in logits]
    found = prefix_kl_loss(*both, *batch, *chunks, tables)
    parts = [
        loss_of(tables, ids, chunk, [side[row] for side in both], chunks=9)[0] for row in (0, 1)
    ]
    assert torch.allclose(found.total, parts[0] + parts[1])
    assert torch.allclose(found.total, sum(found.sums.values()))


def test_no_chunk_gives_zero_with_a_graph():
    tables, ids, _, logits, _ = case("student shorter", 4)
    batch = [torch.tensor([side]) for side in ids]
    none = [torch.full_like(side, -1) for side in batch]
    student = logits[0][None].requires_grad_()
    found = prefix_kl_loss(student, logits[1][None], *batch, *none, tables)
    (gradient,) = torch.autograd.grad(found.total, student)
    assert found.total == found.count == 0
    assert not gradient.any()


def test_a_byte_student_is_taught_the_exact_next_byte():
    """The target after a token that may go on, against a sum over all pairs of tokens."""
    student = [b"", b"a", b"b", b"c"]
    teacher = [b"", b"a", b"b", b"c", b"ab", b"abc", b"ac", b"ca"]
    tables = pair_tables(ToyVocabularies(student, teacher))
    first, second = np.random.default_rng(7).dirichlet(np.ones(7), 2)
    rows = np.array([[0, *first], [0, *second], [0, *second]])  # no end of text
    logits = torch.from_numpy(rows).log()
    ids = torch.tensor([[0, 1, 3]])  # the text is "ac", cut in two by both
    chunk = torch.tensor([[-1, 0, 1]])
    (block,) = plan_prefixes(ids, ids, torch.ones_like(ids), chunk, chunk, tables).blocks(10)
    mass = TeacherMass(logits[block.teacher[1]], tables.starts)
    classes, _ = start_targets(mass, block, tables)
    target = torch.zeros(len(classes), len(student), dtype=classes.dtype)
    begin, end = tables.starts.child[:2]
    target[:, tables.starts.token[begin:end]] = classes[:, :-1]
    expected = np.zeros(4)
    for v, start in enumerate(teacher):
        for w, end in enumerate(teacher):
            text = start + end
            if text.startswith(b"a"):
                expected[student.index(text[1:2])] += rows[0, v] * rows[1, w]
    assert target[1].numpy() == pytest.approx(expected / expected.sum(), rel=1e-12)


CUTS = {b"Unso": [b"U", b"ns", b"o"]}
"""Texts that the student cuts otherwise than by the longest tokens."""

SURE = 12.0
"""A logit that leaves nothing for the others."""


@pytest.mark.parametrize(
    ("student", "teacher", "text"),
    [
        # ")" and "\n" are one token for the student, "\n " one for the teacher
        (
            [b")", b"\n", b" ", b")\n", b"x"],
            [b")", b"\n", b" ", b"\n ", b"x"],
            [b")", b"\n ", b"x"],
        ),
        # the last space of an indentation goes with the word, or with the spaces
        ([b"\n", b" ", b"  ", b"x"], [b"\n", b" ", b"\n ", b" x", b"x"], [b"\n ", b" x"]),
        # the same, and the spaces are a token that the teacher could have gone on with
        ([b"\n", b" ", b"  ", b"x"], [b"\n", b" ", b"\n ", b"\n  ", b" x", b"x"], [b"\n ", b" x"]),
        # the student has one token for what the teacher begins with a space and half a character
        (
            [b" ", b"5", b"\xd0", b"\xb4", b" \xd0\xb4"],
            [b" ", b"5", b" \xd0", b"\xd0", b"\xb4"],
            [b" ", b"5"],
        ),
        # the same where the teacher has a token that the student has not
        (
            [b" ", b"5", b"\xd0", b"\xb4", b" \xd0\xb4"],
            [b" ", b"5", b" \xd0", b"\xd0", b"\xb4"],
            [b" \xd0", b"\xb4", b"5"],
        ),
        # the student's tokens are not those of the teacher's token by itself, and of no other's
        (
            [b"U", b"n", b"s", b"o", b"Un", b"ns"],
            [b"Un", b"so", b"U", b"n", b"s", b"o"],
            [b"Un", b"so"],
        ),
        # the student's token has the beginning of the teacher's second, which it has whole as well
        (
            [b"-", b"f", b"s", b"fs", b"-f"],
            [b"-", b"fs", b"f", b"s"],
            [b"-", b"fs"],
        ),
        # two line breaks are one token by themselves, and two of the teacher's before a word
        ([b"\n", b"\n\n", b"x"], [b"\n", b"\n\n", b"x", b"xx"], [b"\n", b"\n", b"x"]),
        ([b"\n", b"\n\n", b"x"], [b"\n", b"\n\n", b"x", b"xx"], [b"\n\n", b"x"]),
        ([b"\n", b"\n\n", b"x"], [b"\n", b"\n\n", b"x", b"xx"], [b"\n", b"x"]),
        # the student's last token spells the same as another, and is never written
        ([b"(", b"x", b"("], [b"(", b"x", b"(x"], [b"(", b"x"]),
    ],
)
def test_what_the_teacher_writes_is_not_taught_away(student, teacher, text):
    student, teacher = [b"", *student], [b"", *teacher]
    unwritten = [id for id, token in enumerate(student) if student.index(token) != id]
    before_word = {student.index(b"\n\n"): [1, 1]} if b"\n\n" in student else {}
    tables = pair_tables(ToyVocabularies(student, teacher, tuple(unwritten), before_word))
    teacher_ids = [0, *(teacher.index(piece) for piece in text)]
    cut = CUTS.get(b"".join(text), _spell(b"".join(text), student))
    student_ids = [0, *(student.index(part) if isinstance(part, bytes) else part for part in cut)]
    ends = [set(np.cumsum([len(tokens[i]) for i in side]))
            for side, tokens in ((student_ids, student), (teacher_ids, teacher))]  # fmt: skip
    common = sorted((ends[0] & ends[1]) - {0})
    chunk = [np.searchsorted(common, np.cumsum([len(tokens[i]) for i in side]))
             for side, tokens in ((student_ids, student), (teacher_ids, teacher))]  # fmt: skip
    for side in chunk:
        side[0] = -1
    sure = torch.zeros(len(teacher_ids), len(teacher), dtype=torch.float64)
    for row, token in enumerate(teacher_ids[1:]):
        sure[row, token] = SURE
    logits = torch.zeros(len(student_ids), len(student), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        total = loss_of(tables, [student_ids, teacher_ids], chunk, [logits, sure])[0]
        total.backward()
        optimizer.step()
    chosen = logits.softmax(-1)[:-1].gather(1, torch.tensor(student_ids[1:])[:, None])
    assert chosen.min() > 0.9
