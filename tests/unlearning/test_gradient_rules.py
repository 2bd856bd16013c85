"""SAGO, PCGrad, BLUR and the sum against coordinate loops, closed forms, limits and invariances."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.training import gradients
from equipoise.unlearning import blur, gradient_sum, pcgrad, sago

RULES = {
    "sum": gradient_sum.combine,
    "pcgrad": pcgrad.combine,
    "pcgrad-global": pcgrad.combine_global,
    "pcgrad-symmetric": pcgrad.combine_symmetric,
    "sago": sago.combine,
    "sago-prefer-retain": sago.combine_prefer_retain,
    "blur": blur.combine,
}
every_rule = pytest.mark.parametrize("combine", RULES.values(), ids=RULES.keys())
SHAPES = [(3, 4), (5,), (1,), (2, 3, 2), ()]


def draw(seed, dtype=torch.float64, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes] for _ in range(2)
    ]


def dot(first, second):
    return sum((a * b).sum().item() for a, b in zip(first, second, strict=True))


def cosine(first, second):
    return dot(first, second) / math.sqrt(dot(first, first) * dot(second, second))


def by_hand(rule, forget, retain, gamma, alpha):
    """The card's equations in Python floats, coordinate by coordinate."""
    lists = [([f.flatten().tolist(), r.flatten().tolist()]) for f, r in zip(forget, retain, strict=True)]
    fr = [sum(x * y for x, y in zip(f, r, strict=True)) for f, r in lists]
    ff = [sum(x * x for x in f) for f, _ in lists]
    rr = [sum(y * y for y in r) for _, r in lists]
    combined = []
    for k, (f, r) in enumerate(lists):
        d, square = (fr[k], rr[k]) if rule == "pcgrad" else (sum(fr), sum(rr))
        c = d / (square + 1e-10) if rule.startswith("pcgrad") and d < 0 else 0.0
        b = sum(fr) / (sum(ff) + 1e-10)
        s = b if d < 0 else 0.0
        row = []
        for x, y in zip(f, r, strict=True):
            if rule == "sago":
                row.append(alpha * y if x * y < 0 else gamma * x)
            elif rule == "sago-prefer-retain":
                row.append(alpha * y if x * y < 0 else gamma * x + alpha * y)
            elif rule == "blur":
                row.append(gamma * x + alpha * (y - b * x))
            elif rule == "pcgrad-symmetric":
                row.append(gamma * (x - c * y) + alpha * (y - s * x))
            else:
                row.append(gamma * (x - c * y) + alpha * y)
        combined.append(torch.tensor(row, dtype=torch.float64).view(forget[k].shape))
    return combined


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("gamma", "alpha"), [(1.0, 1.0), (0.3, 1.0), (1.0, 0.1), (2.0, 0.7), (0.0, 1.0), (1.0, 0.0)])
def test_equations_of_the_card(rule, gamma, alpha):
    for seed in range(5):
        forget, retain = draw(seed)
        forget[0][0, 0] = 0.0
        retain[0][0, 1] = 0.0
        forget[1].copy_(-retain[1])
        combined = RULES[rule](forget, retain, forget_weight=gamma, retain_weight=alpha)
        assert_close(combined, by_hand(rule, forget, retain, gamma, alpha), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("piece", [1, 2, 7])
def test_pieces_change_nothing(rule, piece, monkeypatch):
    forget, retain = draw(1)
    whole = RULES[rule](forget, retain, forget_weight=0.6, retain_weight=1.1)
    monkeypatch.setattr(gradients, "CPU_PIECE", piece)
    monkeypatch.setattr(gradients, "_piece", lambda device, observe: piece)
    assert_close(RULES[rule](forget, retain, forget_weight=0.6, retain_weight=1.1), whole, rtol=1e-13, atol=0)


@settings(max_examples=150, deadline=None, database=None)
@given(
    st.lists(
        st.tuples(*[st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)] * 2), min_size=1, max_size=40
    ),
    st.sampled_from([0.0, 0.1, 1.0, 3.0]),
    st.sampled_from([0.0, 0.1, 1.0, 3.0]),
)
def test_sago_never_opposes_retention(pairs, gamma, alpha):
    """Check 1 of the card, in exact arithmetic, for numbers whose float32 product under- or overflows."""
    forget, retain = torch.tensor(pairs, dtype=torch.float32).T.contiguous()
    for combine in (sago.combine, sago.combine_prefer_retain):
        (g,) = combine([forget], [retain], forget_weight=gamma, retain_weight=alpha)
        assert (g.double() * retain.double() >= 0).all()
    conflict = forget.double() * retain.double() < 0
    (g,) = sago.combine([forget], [retain], forget_weight=gamma, retain_weight=alpha)
    assert torch.equal(g, torch.where(conflict, alpha * retain, gamma * forget))
    from_forget, from_retain = g.masked_fill(conflict, 0), g.masked_fill(~conflict, 0)
    assert (from_forget * from_retain == 0).all()


def test_signs_of_extreme_numbers():
    """Zeros of both signs, products far below the smallest float32, sums beyond the largest."""
    values = [0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 1e38, -1e38, 2e-38, -2e-38, 1e-42, -1e-42]
    forget, retain = (torch.tensor(side) for side in zip(*itertools.product(values, values), strict=True))
    conflict = forget.double() * retain.double() < 0
    # Two subnormal numbers are the stated exception.
    ordinary = (forget.abs() > 1.2e-38) | (retain.abs() > 1.2e-38) | ~conflict
    (g,) = sago.combine([forget], [retain])
    assert torch.equal(g[ordinary], torch.where(conflict, retain, forget)[ordinary])
    tiny = torch.tensor([1e-200, -1e-200, 1e-200], dtype=torch.float64)
    (g,) = sago.combine([tiny], [torch.tensor([-1e-200, -3e-200, 1e-300], dtype=torch.float64)])
    assert torch.equal(g, torch.tensor([-1e-200, -1e-200, 1e-200], dtype=torch.float64))


@every_rule
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("other", [1.0, -1.0])
def test_what_is_not_finite_is_not_hidden(combine, broken, side, other):
    sides = [torch.tensor([broken, 1.0]), torch.tensor([other, 1.0])]
    (g,) = combine([sides[side]], [sides[1 - side]])
    assert not g[0].isfinite()


def test_diagonal_preconditioning():
    """Check 2: <D g, r> >= 0 for every positive diagonal D with SAGO; PCGrad often violates it."""
    generator = torch.Generator().manual_seed(0)
    violations = 0
    for _ in range(300):
        f, r, noise = torch.randn(3, 8, generator=generator, dtype=torch.float64)
        f, diagonal = 5 * f, noise.mul(2).exp()
        for combine in (sago.combine, sago.combine_prefer_retain):
            assert (diagonal * combine([f], [r])[0]).dot(r) >= 0
        violations += bool((diagonal * pcgrad.combine([f], [r])[0]).dot(r) < 0)
    assert violations > 60


def test_pcgrad_closed_form():
    """Check 3: <f', r> = 0 and cos(g, r) = (1 + ||f'||^2 / ||r||^2)^(-1/2), per tensor and over all."""
    seen = 0
    for seed in range(40):
        forget, retain = draw(seed)
        if dot(forget, retain) < 0:
            seen += 1
            projected = pcgrad.combine_global(forget, retain, retain_weight=0.0)
            assert abs(dot(projected, retain)) < 1e-8
            expected = (1 + dot(projected, projected) / dot(retain, retain)) ** -0.5
            assert cosine(pcgrad.combine_global(forget, retain), retain) == pytest.approx(expected, rel=1e-8)
        for f, r in zip(forget, retain, strict=True):
            (alone,) = pcgrad.combine([f], [r], retain_weight=0.0)
            expected = f if (f * r).sum() >= 0 else f - (f * r).sum() / ((r * r).sum() + 1e-10) * r
            assert_close(alone, expected)
    assert seen > 10


@pytest.mark.parametrize(("gamma", "alpha"), [(1.0, 1.0), (0.3, 0.8)])
def test_limits(gamma, alpha):
    """Check 4 of the card."""
    weights = {"forget_weight": gamma, "retain_weight": alpha}
    (_, retain), zeros = draw(3), [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]

    def scaled(factor):
        return [factor * r for r in retain]

    assert_close(sago.combine(scaled(2.5), retain, **weights), scaled(2.5 * gamma))
    assert_close(sago.combine(scaled(-2.5), retain, **weights), scaled(alpha))
    assert_close(sago.combine(retain, zeros, **weights), scaled(gamma))
    assert_close(sago.combine(zeros, retain, **weights), zeros)
    for combine in (
        sago.combine_prefer_retain,
        pcgrad.combine,
        pcgrad.combine_global,
        pcgrad.combine_symmetric,
        gradient_sum.combine,
        blur.combine,
    ):
        assert_close(combine(zeros, retain, **weights), scaled(alpha))
        assert_close(combine(retain, zeros, **weights), scaled(gamma))


def test_one_coordinate():
    """Check 5: on a single scalar in conflict PCGrad per tensor gives alpha r, as SAGO does."""
    f, r = torch.tensor([-3.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    for combine in (pcgrad.combine, sago.combine):
        assert_close(combine([f], [r], forget_weight=0.7, retain_weight=0.4)[0], 0.4 * r, rtol=1e-9, atol=0)


def test_alignment_is_no_theorem():
    """Check 6: the card's counterexample, and the regime ||f|| >= ||r|| in which SAGO does win."""
    retain = [torch.ones(100, dtype=torch.float64)]
    forget = [torch.full((100,), 1e-6, dtype=torch.float64)]
    forget[0][0] = -1.0
    assert cosine(pcgrad.combine_global(forget, retain), retain) == pytest.approx(0.995, abs=5e-4)
    assert cosine(sago.combine(forget, retain), retain) == pytest.approx(0.100, abs=5e-4)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        f, r = torch.randn(2, 2000, generator=generator, dtype=torch.float64)
        f = 2 * f - 0.5 * r
        assert f.dot(r) < 0 and f.norm() >= r.norm()
        assert cosine(sago.combine([f], [r]), [r]) > cosine(pcgrad.combine([f], [r]), [r])


def test_combining_the_mean_is_not_the_mean_of_combinations():
    """Check 9, the half that is about the rule."""
    first, second = draw(5), draw(6)
    mean = [[(a + b) / 2 for a, b in zip(x, y, strict=True)] for x, y in zip(first, second, strict=True)]
    per_batch = [sago.combine(*each) for each in (first, second)]
    wrong = [(a + b) / 2 for a, b in zip(*per_batch, strict=True)]
    assert max((a - b).abs().max() for a, b in zip(sago.combine(*mean), wrong, strict=True)) > 0.1


@every_rule
def test_nothing_is_recorded_for_a_backward_pass(combine):
    forget, retain = ([t.requires_grad_() for t in side] for side in draw(12))
    assert not any(g.requires_grad for g in combine(forget, retain))
    assert not gradients.inner_products([(forget[0], retain[0])]).requires_grad


@every_rule
def test_weights_are_one_unless_given(combine):
    forget, retain = draw(11)
    given_weights = combine(forget, retain, forget_weight=1.0, retain_weight=1.0)
    assert_close(combine(forget, retain), given_weights, rtol=0, atol=0)


@every_rule
def test_missing_gradients_are_zeros(combine):
    forget, retain = draw(7)
    forget[1], retain[3] = None, None
    zeros = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]
    filled = combine(
        [z if f is None else f for f, z in zip(forget, zeros, strict=True)],
        [z if r is None else r for r, z in zip(retain, zeros, strict=True)],
        forget_weight=0.5,
        retain_weight=1.5,
    )
    assert_close(combine(forget, retain, forget_weight=0.5, retain_weight=1.5), filled, rtol=0, atol=0)
    both = combine([None, forget[0]], [None, retain[0]])
    assert both[0] is None and both[1] is not None
    assert combine([], []) == []
    assert combine([None], [None]) == [None]


def in_one_buffer(tensors, order=None, gap=0):
    """The same values as views of one buffer, laid out in `order` with `gap` elements between them."""
    order = range(len(tensors)) if order is None else order
    buffer = torch.full((sum(t.numel() + gap for t in tensors),), math.nan, dtype=tensors[0].dtype)
    views, begin = {}, 0
    for index in order:
        views[index] = buffer[begin : begin + tensors[index].numel()].view(tensors[index].shape)
        views[index].copy_(tensors[index])
        begin += tensors[index].numel() + gap
    return [views[index] for index in range(len(tensors))]


@every_rule
@pytest.mark.parametrize("layout", [{}, {"gap": 3}, {"order": [4, 2, 0, 1, 3]}])
def test_views_of_one_buffer(combine, layout):
    forget, retain = draw(5)
    expected = combine(forget, retain, retain_weight=0.5)
    for laid_out in ({"forget": layout}, {"forget": layout, "retain": layout}):
        f = in_one_buffer(forget, **laid_out["forget"])
        r = in_one_buffer(retain, **laid_out.get("retain", {}))
        out = in_one_buffer(forget)
        found = combine(f, r, retain_weight=0.5, out=out)
        assert [id(t) for t in found] == [id(t) for t in out]
        assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert_close(combine(f, r, retain_weight=0.5), expected, rtol=1e-12, atol=1e-12)
        assert_close(combine(f, r, retain_weight=0.5, out=f), expected, rtol=1e-12, atol=1e-12)


@every_rule
@pytest.mark.parametrize("place", ["forget", "retain", "elsewhere"])
def test_writing_in_place_and_being_observed(combine, place):
    forget, retain = draw(8)
    forget[2] = None
    expected = combine(forget, retain, forget_weight=0.5, retain_weight=0.25)
    seen = {}

    def observe(index, f, r, g):
        seen[index] = [each.clone() for each in (f, r, g)]

    for watching in (None, observe):
        f = [None if each is None else each.clone() for each in forget]
        r = [each.clone() for each in retain]
        own = [None if each is None else torch.full_like(each, math.nan) for each in expected]
        out = {"forget": f, "retain": r, "elsewhere": own}[place]
        combined = combine(f, r, forget_weight=0.5, retain_weight=0.25, out=out, observe=watching)
        assert_close(combined, expected, rtol=0, atol=0)
        assert all(c is o for c, o in zip(combined, out, strict=True) if o is not None)
    for index, (f, r, g) in seen.items():  # as they were before anything was written over them
        assert_close(f, (torch.zeros_like(retain[index]) if forget[index] is None else forget[index]).flatten())
        assert_close((r, g), (retain[index].flatten(), expected[index].flatten()))
    assert sorted(seen) == list(range(len(SHAPES)))


@every_rule
def test_lower_precision_is_combined_in_float32(combine):
    """As if in float32 and rounded once; the inner products of 4096 equal terms would come to a standstill in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    forget, retain = torch.randn(2, 4096, generator=generator).to(torch.bfloat16)
    wide = combine([forget.float()], [retain.float()], forget_weight=0.3, retain_weight=1.7)
    (g,) = combine([forget], [retain], forget_weight=0.3, retain_weight=1.7)
    assert g.dtype == torch.bfloat16
    assert torch.equal(g, wide[0].to(torch.bfloat16))


@every_rule
def test_layout_is_kept(combine):
    forget, retain = draw(9, shapes=[(4, 6)])
    expected = combine(forget, retain)
    transposed = [forget[0].T.contiguous().T]
    assert not transposed[0].is_contiguous()
    assert_close(combine(transposed, retain), expected)
    assert_close(combine(transposed, retain, out=transposed), expected)
    assert_close(transposed, expected)


@pytest.mark.parametrize(
    "combine", [pcgrad.combine, pcgrad.combine_global, pcgrad.combine_symmetric, blur.combine, sago.combine]
)
def test_shards_with_reduced_products_equal_the_whole(combine):
    """Each of two processes holds half of every tensor; `reduce` adds the scalars of both."""
    forget, retain = draw(10, shapes=[(6,), (8,), (2,)])
    expected = combine(forget, retain)
    halves = [[[t.chunk(2)[k] for t in side] for side in (forget, retain)] for k in range(2)]
    sent = []
    for half in halves:  # what each process would send
        combine(*half, reduce=lambda products: sent.append(products) or products)
    total = sum(sent) if sent else None
    parts = [combine(*half, reduce=lambda _: total) for half in halves]
    assert_close([torch.cat(pair) for pair in zip(*parts, strict=True)], expected)


@every_rule
def test_wrong_requests(combine):
    with pytest.raises(BadInput, match="2 forget gradients and 1 retain"):
        combine([torch.ones(1), torch.ones(1)], [torch.ones(1)])
    with pytest.raises(BadInput, match=r"gradient 0 is \(2,\) for forget and \(3,\) for retain"):
        combine([torch.ones(2)], [torch.ones(3)])
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(BadInput, match="retain_weight is"):
            combine([torch.ones(1)], [torch.ones(1)], retain_weight=bad)


@pytest.mark.parametrize("combine", [sago.combine, sago.combine_prefer_retain])
def test_without_a_compiler_it_is_eager(combine, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    sago._kernel.cache_clear()
    forget, retain = torch.randn(2, gradients.CPU_PIECE + 1, generator=torch.Generator().manual_seed(0))
    assert_close(combine([forget], [retain], compiled=True), combine([forget], [retain]), rtol=0, atol=0)
    sago._kernel.cache_clear()


@pytest.mark.parametrize("combine", [sago.combine, sago.combine_prefer_retain])
@pytest.mark.parametrize(("dtype", "tiny"), [(torch.float32, 1e-30), (torch.float64, 1e-200)])
def test_the_fused_kernel_says_what_the_pieces_say(combine, dtype, tiny, monkeypatch):
    """Its lines as they stand, without the compiler: signs of products that underflow, weights, what is not finite."""
    calls = []

    def build(kernel, *, dynamic):  # one kernel for tensors of all sizes
        assert dynamic is True
        return lambda *each: calls.append(len(each[0])) or kernel(*each)

    monkeypatch.setattr(torch, "compile", build)
    sago._kernel.cache_clear()
    forget, retain = torch.randn(2, gradients.CPU_PIECE + 7, generator=torch.Generator().manual_seed(0), dtype=dtype)
    forget[:6] = torch.tensor([0.0, tiny, -tiny, tiny, -1.0, 1.0], dtype=dtype)
    retain[:6] = torch.tensor([-1.0, -tiny, -tiny, 1.0, tiny, 0.0], dtype=dtype)
    for weights in ({}, {"forget_weight": 0.5, "retain_weight": 0.1}, {"forget_weight": 3.0, "retain_weight": 0.7}):
        eager = combine([forget], [retain], **weights)
        assert_close(combine([forget], [retain], compiled=True, **weights), eager, rtol=1e-6, atol=0)
    assert calls == [gradients.CPU_PIECE] + 3 * [forget.numel()]  # tried out once, then whole tensors
    small = [forget[:9]], [retain[:9]]
    assert_close(combine(*small, compiled=True), combine(*small), rtol=0, atol=0)
    assert len(calls) == 4
    retain[7], forget[8] = math.nan, -math.inf
    (g,) = combine([forget], [retain], compiled=True)
    assert not g[7].isfinite() and not g[8].isfinite()
    sago._kernel.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("combine", [sago.combine, sago.combine_prefer_retain])
def test_compiled_equals_eager(combine):
    generator = torch.Generator().manual_seed(0)
    forget, retain = torch.randn(2, gradients.CPU_PIECE + 5, generator=generator)
    forget[:3] = torch.tensor([0.0, 1e-30, -1e-30])
    retain[:3] = torch.tensor([-1.0, -1e-30, -1e-30])
    for weights in ({}, {"forget_weight": 0.5, "retain_weight": 0.1}):
        eager = combine([forget], [retain], **weights)
        assert_close(combine([forget], [retain], compiled=True, **weights), eager, rtol=1e-6, atol=1e-30)
        own = forget.clone()
        assert_close(combine([own], [retain], compiled=True, out=[own], **weights), eager, rtol=1e-6, atol=1e-30)
    retain[7], forget[8] = math.nan, -math.inf
    (g,) = combine([forget], [retain], compiled=True)
    assert not g[7].isfinite() and not g[8].isfinite()


@pytest.mark.parametrize("forget_weight", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("retain_weight", [0.0, 0.5, 1.0, 2.0])
def test_weights_below_at_and_above_one_count(forget_weight, retain_weight):
    f = torch.tensor([1.0, -2.0, 3.0, 0.0, 0.25], dtype=torch.float64)
    r = torch.tensor([0.5, 4.0, -0.5, 1.0, 0.5], dtype=torch.float64)
    how = {"forget_weight": forget_weight, "retain_weight": retain_weight}
    opposed = torch.tensor([False, True, True, False, False])
    (found,) = sago.combine([f], [r], **how)
    assert_close(found, torch.where(opposed, retain_weight * r, forget_weight * f))
    (found,) = sago.combine_prefer_retain([f], [r], **how)
    assert_close(found, retain_weight * r + torch.where(opposed, 0.0, forget_weight * f))
    # <f, r> = -8.875, |r|^2 = 17.75, |f|^2 = 14.0625
    (found,) = pcgrad.combine([f], [r], **how)
    assert_close(found, forget_weight * (f + 0.5 * r) + retain_weight * r)
    (found,) = pcgrad.combine_symmetric([f], [r], **how)
    assert_close(found, forget_weight * (f + 0.5 * r) + retain_weight * (r + 8.875 / 14.0625 * f))


@pytest.mark.parametrize(("dot", "taken"), [(0.5, 0.0), (0.0, 0.0), (-0.5, -0.25)])
def test_what_agrees_a_little_is_left_and_what_opposes_a_little_is_taken(dot, taken):
    assert pcgrad._coefficient(dot, 2.0) == pytest.approx(taken) and pcgrad._coefficient(-1e-10, 0.0) == -1
