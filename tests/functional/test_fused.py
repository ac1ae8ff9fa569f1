"""The fused head equals the plain form, in value and in gradient, whatever the block size."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import linear

from crosstill import functional as F
from crosstill.errors import ConfigError
from crosstill.functional.plan import plan_blocks
from functional.cases import random_case

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scaled": {"logit_scale": 0.25},
    "softcap": {"softcap": 3.0},
    "all": {"bias": True, "logit_scale": 1.5, "softcap": 2.0},
}


def make(seed=0, head="plain", dtype=torch.float64, **shape):
    """A case with its head; what wants a gradient is a leaf."""
    case = random_case(seed, dtype=dtype, **shape)
    options = dict(HEADS[head])
    bias = None
    if options.pop("bias", False):
        bias = torch.linspace(-1, 1, len(case.weight), dtype=dtype).requires_grad_()
    case.hidden.requires_grad_()
    case.weight.requires_grad_()
    return case, F.HeadMatrix(case.weight, bias, **options)


def options_of(**changes):
    known = {"temperature": 5.0, "divergence": "kl", "merge_threshold": 0.1, "debias": True}
    return SimpleNamespace(**{**known, **changes})


def plain(case, head, options, scales=(0.7, 0.3), vocab_size=None):
    logits = linear(case.hidden, head.weight, head.bias) * head.logit_scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logprob = F.token_logprobs(logits, case.student_ids, vocab_size=vocab_size)
    mass = F.boundary_logmass(logits, case.mask, vocab_size)
    alm = F.alm_loss(
        logprob,
        case.teacher_logprob,
        case.student_chunk,
        case.teacher_chunk,
        student_boundary=mass if options.debias else None,
        teacher_boundary=case.teacher_boundary,
        temperature=options.temperature,
        divergence=options.divergence,
        merge_threshold=options.merge_threshold,
    )
    sft = F.sft_loss(logprob, case.labels)
    return alm.total * scales[0] + sft.total * scales[1], alm, sft


def fused(case, head, options, scales=(0.7, 0.3), **rest):
    teacher = F.teacher_chunks(
        case.teacher_logprob,
        case.student_chunk,
        case.teacher_chunk,
        case.teacher_boundary,
        merge_threshold=options.merge_threshold,
        debias=options.debias,
    )
    terms = [
        F.ChunkTerm(
            teacher,
            torch.tensor(scales[0], dtype=torch.float64),
            options.temperature,
            options.divergence,
            options.debias,
        ),
        F.LabelTerm(case.labels, torch.tensor(scales[1], dtype=torch.float64)),
    ]
    kept = [term for term, scale in zip(terms, scales, strict=True) if scale]
    return F.fused_head(case.hidden, head, case.student_ids, *kept, boundary_mask=case.mask, **rest)


def gradients(total, case, head):
    inputs = [x for x in (case.hidden, head.weight, head.bias) if x is not None]
    return torch.autograd.grad(total, [x for x in inputs if x.requires_grad])


def assert_equal(case, head, options, tolerance, scales=(0.7, 0.3), vocab_size=None, **rest):
    expected, alm, sft = plain(case, head, options, scales, vocab_size)
    got = fused(case, head, options, scales, vocab_size=vocab_size, **rest)
    close = {"rtol": tolerance, "atol": tolerance}
    assert torch.allclose(got.total, expected, **close)
    for ours, theirs in zip(
        gradients(got.total, case, head), gradients(expected, case, head), strict=True
    ):
        assert torch.allclose(ours, theirs, **close)
    for kind, part in got.parts.items():
        reference = {F.ChunkTerm: alm, F.LabelTerm: sft}[kind]
        assert torch.allclose(part.total, reference.total, **close)
        assert part.count == reference.count
        assert not part.total.requires_grad
    if F.ChunkTerm in got.parts:
        assert torch.allclose(got.parts[F.ChunkTerm].sums["gap"], alm.sums["gap"], **close)


@pytest.mark.parametrize("block", [1, 2, 5, 8, 1000])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
def test_equals_the_plain_form(dtype, tolerance, head, block):
    for seed in range(3):
        case, parts = make(seed, head, dtype)
        assert_equal(case, parts, options_of(), tolerance, block=block)


@pytest.mark.parametrize("temperature", [1.0, 100.0, math.inf])
@pytest.mark.parametrize("divergence", F.DIVERGENCES)
@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("merge_threshold", [0.0, 0.6])
def test_equals_the_plain_form_for_every_option(temperature, divergence, debias, merge_threshold):
    options = options_of(
        temperature=temperature,
        divergence=divergence,
        debias=debias,
        merge_threshold=merge_threshold,
    )
    case, head = make(11, "all")
    assert_equal(case, head, options, 1e-12, block=4)


@pytest.mark.parametrize("scales", [(1.0, 0.0), (0.0, 1.0)], ids=["alm", "sft"])
@pytest.mark.parametrize(("rows", "student", "teacher"), [(1, 1, 1), (1, 30, 12), (5, 4, 9)])
def test_each_term_alone_and_other_shapes(scales, rows, student, teacher):
    case, head = make(2, rows=rows, student=student, teacher=teacher)
    assert_equal(case, head, options_of(), 1e-12, scales, block=3)


def test_surplus_rows_of_the_matrix_get_no_probability_and_no_gradient():
    case, head = make(3, vocab=23)
    case.student_ids %= 19
    assert_equal(case, head, options_of(), 1e-12, vocab_size=19)
    weight = gradients(fused(case, head, options_of(), vocab_size=19).total, case, head)[1]
    assert not weight[19:].any()
    assert weight[:19].any()


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen):
    case, head = make(4, "bias")
    getattr(case, frozen).requires_grad_(requires_grad=False)
    assert_equal(case, head, options_of(), 1e-12)
    fused(case, head, options_of()).total.backward()
    assert getattr(case, frozen).grad is None


def test_without_gradients_nothing_but_the_value_is_made():
    case, head = make(5)
    with torch.no_grad():
        got = fused(case, head, options_of()).total
    assert not got.requires_grad
    assert torch.allclose(got, plain(case, head, options_of())[0])


def test_the_incoming_gradient_multiplies():
    case, head = make(6)
    once = gradients(fused(case, head, options_of()).total, case, head)
    thrice = gradients(3 * fused(case, head, options_of()).total, case, head)
    for one, three in zip(once, thrice, strict=True):
        assert torch.allclose(3 * one, three)


def test_a_second_backward_is_refused():
    case, head = make(7)
    total = fused(case, head, options_of()).total
    gradients_once = torch.autograd.grad(total, [case.weight], retain_graph=True)
    assert gradients_once[0].isfinite().all()
    with pytest.raises(RuntimeError, match="one backward pass"):
        total.backward()


def test_gradients_equal_central_differences():
    # `gradcheck` itself goes backward twice, which the fused head refuses.
    case, head = make(8, "all", rows=2, student=6, teacher=6, hidden=3, vocab=7)
    made = gradients(fused(case, head, options_of(), block=3).total, case, head)
    for leaf, gradient in zip((case.hidden, head.weight, head.bias), made, strict=True):
        for index in range(leaf.numel()):
            values = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    leaf.view(-1)[index] += step
                    values.append(fused(case, head, options_of(), block=3).total)
                    leaf.view(-1)[index] -= step
            numeric = (values[0] - values[1]).item() / 2e-6
            assert gradient.flatten()[index].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8)


def test_bfloat16_stays_close_and_sums_in_float32():
    case, head = make(9, "softcap", torch.float32, hidden=32, vocab=64)
    expected, *_ = plain(case, head, options_of())
    reference = gradients(expected, case, head)
    case.hidden, case.weight = (
        x.detach().bfloat16().requires_grad_() for x in (case.hidden, case.weight)
    )
    low = F.HeadMatrix(case.weight, None, head.logit_scale, head.softcap)
    got = fused(case, low, options_of(), block=4)
    assert got.total.dtype == torch.float32
    assert got.total.item() == pytest.approx(expected.item(), rel=2e-2)
    for ours, theirs in zip(gradients(got.total, case, low), reference, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - theirs).norm() <= 3e-2 * theirs.norm()


def test_autocast_runs_the_products_in_its_dtype():
    case, head = make(10, dtype=torch.float32, hidden=32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = fused(case, head, options_of())
    expected, *_ = plain(case, head, options_of())
    assert got.total.item() != expected.item()
    assert got.total.item() == pytest.approx(expected.item(), rel=2e-2)
    assert gradients(got.total, case, head)[1].dtype == torch.float32


@pytest.mark.parametrize("inside", [[], [0], [0, 1]], ids=["none", "one", "two"])
def test_a_boundary_mass_that_underflows_is_exact(inside):
    case, head = make(12, dtype=torch.float32)
    case.mask[:] = False
    case.mask[inside] = True
    bias = torch.zeros(len(case.weight))
    bias[inside] = -300.0
    head = F.HeadMatrix(case.weight, bias.requires_grad_())
    assert_equal(case, head, options_of(divergence="total_variation"), 1e-5, block=4)


def test_nothing_supervised_gives_zero_and_zero_gradients():
    case, head = make(13, "bias")
    case.labels[:] = -100
    case.student_chunk[:] = -1
    got = fused(case, head, options_of())
    assert got.total == 0
    assert all(part.count == 0 for part in got.parts.values())
    for gradient in gradients(got.total, case, head):
        assert not gradient.any()


def test_rows_that_nothing_reads_are_not_looked_at():
    case, head = make(14)
    supervised = (case.labels != -100) | (case.student_chunk >= 0)
    read = torch.zeros_like(supervised)
    read[:, :-1] = supervised[:, 1:]
    read |= case.student_chunk >= 0
    with torch.no_grad():
        case.hidden[~read] = torch.nan
    got = fused(case, head, options_of())
    hidden, weight = gradients(got.total, case, head)
    assert got.total.isfinite()
    assert weight.isfinite().all()
    assert not hidden[~read].any()


def test_a_merged_chunk_with_a_gap_stays_whole():
    case, head = make(15, rows=1, student=8, teacher=8)
    case.student_chunk = torch.tensor([[-1, 0, -1, -1, 1, 2, -1, 3]])
    case.teacher_chunk = torch.tensor([[-1, 0, 1, 1, 2, 3, 3, -1]])
    case.teacher_boundary = torch.tensor([[0.5, 0.01, 0.01, 0.02, 0.9, 0.1, 0.5, 0.5]]).log()
    case.labels = case.student_ids.clone()
    for block in (1, 2, 3, 4):
        assert_equal(case, head, options_of(), 1e-6, block=block)
    term = F.ChunkTerm(
        F.teacher_chunks(case.teacher_logprob, case.student_chunk, case.teacher_chunk,
                         case.teacher_boundary.double(), merge_threshold=0.1),
        torch.tensor(1.0),
    )  # fmt: skip
    label = F.LabelTerm(case.labels, torch.tensor(1.0))
    blocks = plan_blocks((1, 8), term, label, 1)
    # Tokens 1..5 are one merged chunk, with unaligned tokens inside; 6 and 7 stand alone.
    assert [block.token.tolist() for block in blocks] == [[1, 2, 3, 4, 5], [6], [7]]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_blocks_tile_the_scored_tokens_and_cut_no_chunk(size):
    case, _ = make(16, rows=4, student=40, teacher=30)
    teacher = F.teacher_chunks(
        case.teacher_logprob,
        case.student_chunk,
        case.teacher_chunk,
        case.teacher_boundary,
        merge_threshold=0.3,
    )
    term = F.ChunkTerm(teacher, torch.tensor(1.0))
    blocks = plan_blocks((4, 40), term, F.LabelTerm(case.labels, torch.tensor(1.0)), size)
    tokens = torch.cat([block.token for block in blocks])
    assert torch.equal(tokens, tokens.sort().values.unique())
    keys = torch.cat([block.key for block in blocks])
    assert len(keys) == len(keys.unique()) == teacher.counted.sum()
    for block in blocks:
        assert torch.equal(block.rows[block.token_slot], block.token - 1)
        # A block is longer only where one chunk leaves it no choice.
        assert len(block.token) <= size or len(block.key) == 1


@pytest.mark.parametrize("terms", [0, 2])
def test_the_number_of_terms_is_checked(terms):
    case, head = make(17)
    label = F.LabelTerm(case.labels, torch.tensor(1.0))
    with pytest.raises(ConfigError, match="one LabelTerm"):
        F.fused_head(case.hidden, head, case.student_ids, *[label] * terms)


def test_debiasing_needs_the_mask():
    case, head = make(18)
    teacher = F.teacher_chunks(
        case.teacher_logprob, case.student_chunk, case.teacher_chunk, case.teacher_boundary
    )
    with pytest.raises(ConfigError, match="boundary_mask"):
        F.fused_head(case.hidden, head, case.student_ids, F.ChunkTerm(teacher, torch.tensor(1.0)))


@pytest.mark.parametrize("block", [1, 4, None])
@pytest.mark.parametrize("head", HEADS)
def test_head_logprobs_equal_the_plain_form(head, block):
    case, parts = make(19, head)
    logits = linear(case.hidden, parts.weight, parts.bias) * parts.logit_scale
    if parts.softcap is not None:
        logits = parts.softcap * torch.tanh(logits / parts.softcap)
    got = F.head_logprobs(
        case.hidden,
        parts.weight,
        case.student_ids % 17,
        case.mask,
        bias=parts.bias,
        logit_scale=parts.logit_scale,
        softcap=parts.softcap,
        vocab_size=17,
        block=block,
    )
    expected = (
        F.token_logprobs(logits, case.student_ids % 17, vocab_size=17),
        F.boundary_logmass(logits, case.mask, 17),
    )
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
        assert not ours.requires_grad


def test_head_logprobs_skips_rows_that_are_not_needed():
    case, _ = make(20, dtype=torch.float32)
    needed = torch.rand(case.student_ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    whole = F.head_logprobs(case.hidden, case.weight, case.student_ids, case.mask)
    with torch.no_grad():
        case.hidden[~needed] = torch.nan
    part = F.head_logprobs(
        case.hidden, case.weight, case.student_ids, case.mask, needed=needed, block=3
    )
    assert torch.equal(part[1] != 0, needed)
    assert torch.allclose(part[1][needed], whole[1][needed], atol=1e-6)
    assert torch.allclose(
        part[0][:, 1:][needed[:, :-1]], whole[0][:, 1:][needed[:, :-1]], atol=1e-6
    )
    assert not part[0][:, 1:][~needed[:, :-1]].any()


def test_head_logprobs_of_nothing():
    empty = torch.zeros(2, 0, 3)
    ids = torch.zeros(2, 0, dtype=torch.long)
    logprob, mass = F.head_logprobs(empty, torch.zeros(4, 3), ids, torch.ones(4).bool())
    assert logprob.shape == mass.shape == (2, 0)
