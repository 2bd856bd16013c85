"""What the rules of combination share: pieces, scratch memory, products and signs, each at its edges."""

import math

import pytest
import torch

from equipoise.core.errors import BadInput
from equipoise.training import gradients
from equipoise.training.gradients import (
    Scratch,
    apply,
    check_lists,
    check_weights,
    conflicts,
    inner_products,
    sign_scale,
    sum_dtype,
    weighted_sum,
    work_dtype,
)


def test_scratch_is_reused_by_name_kind_and_length():
    scratch = Scratch()
    four, ten = scratch("a", torch.zeros(4)), scratch("a", torch.zeros(10))
    assert (len(four), len(ten), four.dtype) == (4, 10, torch.float32)
    assert scratch("a", torch.ones(4)) is four and four.data_ptr() != ten.data_ptr()
    six, ten_again = scratch("a", torch.zeros(6)), scratch("a", torch.ones(10))
    assert len(six) == 6 and six.data_ptr() == ten.data_ptr() and ten_again is ten  # the longest that there is
    other = [scratch("b", torch.zeros(4)), scratch("a", torch.zeros(4, dtype=torch.float64))]
    assert [each.dtype for each in other] == [torch.float32, torch.float64]
    assert len({each.data_ptr() for each in (four, ten, *other)}) == 4


def test_what_sums_are_made_in():
    narrow, wide = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.float64)
    assert work_dtype(narrow, None) == work_dtype(torch.zeros(1)) == work_dtype() == torch.float32
    assert work_dtype(narrow, wide) == work_dtype(wide, None) == torch.float64
    assert [sum_dtype(torch.device(name)) for name in ("cpu", "cuda", "mps")] == [
        torch.float64,
        torch.float64,
        torch.float32,
    ]


def test_weights_and_lists_that_are_none():
    check_weights(forget_weight=0.0, retain_weight=1e300)
    for wrong in (-1e-9, math.nan, math.inf):
        with pytest.raises(BadInput) as caught:
            check_weights(forget_weight=1.0, retain_weight=wrong)
        assert str(caught.value) == f"retain_weight is {wrong}, expected a finite number of at least 0."
    check_lists([torch.ones(2), None, torch.ones(3)], [torch.ones(2), torch.ones(5), None])
    with pytest.raises(BadInput) as caught:
        check_lists([torch.ones(2), torch.ones(2, 3)], [torch.ones(2), torch.ones(3, 2)])
    assert str(caught.value) == "gradient 1 is (2, 3) for forget and (3, 2) for retain."
    with pytest.raises(BadInput) as caught:
        check_lists([None], [])
    assert str(caught.value) == "1 forget gradients and 0 retain gradients: one of each per parameter."


def test_the_size_of_a_piece(monkeypatch):
    cpu = torch.device("cpu")
    assert (gradients.CPU_PIECE, gradients.DEVICE_PIECE) == (131_072, 16_777_216)
    assert gradients._piece(torch.device("cuda"), None) == gradients._piece(torch.device("cuda"), print) == 2**24
    assert gradients._piece(cpu, print) == 2**17
    for threads, size in ((1, 32_768), (2, 131_072), (3, 196_608)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert gradients._piece(cpu, None) == size


def test_a_rule_gets_pieces_of_the_asked_size_and_an_observer_sees_each():
    """Two tensors that share no buffer; what is left over is a piece of its own, a missing one is zeros."""
    forget = [torch.arange(7.0), None, None, torch.arange(3.0)]
    retain = [torch.ones(7), torch.full((2,), 5.0), None, None]
    sizes, seen = [], []

    def rule(f, r, combined, scratch):
        sizes.append(len(f))
        torch.add(f, r, alpha=10, out=combined)

    found = apply(rule, forget, retain, piece=3)
    assert sizes == [3, 3, 1, 2, 3]
    expected = [[10.0 + i for i in range(7)], [50.0, 50.0], None, [0.0, 1.0, 2.0]]
    assert [None if g is None else g.tolist() for g in found] == expected
    apply(
        rule, forget, retain, piece=4, observe=lambda i, f, r, g: seen.append((i, f.tolist(), r.tolist(), g.tolist()))
    )
    assert seen == [
        (0, [0.0, 1.0, 2.0, 3.0], [1.0] * 4, [10.0, 11.0, 12.0, 13.0]),
        (0, [4.0, 5.0, 6.0], [1.0] * 3, [14.0, 15.0, 16.0]),
        (1, [0.0, 0.0], [5.0, 5.0], [50.0, 50.0]),
        (3, [0.0, 1.0, 2.0], [0.0] * 3, [0.0, 1.0, 2.0]),
    ]


def test_neighbours_in_one_buffer_are_one_call_and_others_are_not():
    """All three lists must lie so; a gap, another order, another dtype or another buffer ends the run."""

    def laid(*shapes, gap=0, dtype=torch.float32):
        buffer = torch.zeros(sum(math.prod(shape) + gap for shape in shapes) + 2, dtype=dtype)
        views, begin = [], 1
        for shape in shapes:
            views.append(buffer[begin : begin + math.prod(shape)].view(shape))
            begin += math.prod(shape) + gap
        return views

    def calls(*lists):
        sizes = []
        apply(lambda f, r, combined, scratch: sizes.append(len(f)), lists[0], lists[1], out=lists[2])
        return sizes

    shapes = [(2, 3), (4,), (1, 5)]
    sides = [laid(*shapes) for _ in range(3)]
    assert calls(*sides) == [15]
    assert calls(sides[0], sides[1], laid(*shapes, gap=1)) == calls(laid(*shapes, gap=1), *sides[1:]) == [6, 4, 5]
    assert calls(sides[0], [each.clone() for each in sides[1]], sides[2]) == [6, 4, 5]
    assert calls(sides[0], [sides[1][0], None, sides[1][2]], sides[2]) == [6, 4, 5]
    assert calls(sides[0], sides[1], None) == [6, 4, 5]
    again = laid(*shapes)
    assert calls([*sides[0][:2], again[2]], sides[1], sides[2]) == [10, 5]
    crossed = laid((2, 2), (2, 2))
    across = [crossed[0].T, crossed[1]]
    assert calls(across, laid((2, 2), (2, 2)), laid((2, 2), (2, 2))) == [4, 4]
    assert calls([crossed[0], crossed[1].T], laid((2, 2), (2, 2)), laid((2, 2), (2, 2))) == [4, 4]


def test_results_have_the_wider_dtype_and_the_shape_of_their_gradients():
    narrow, wide = torch.ones(2, 3, dtype=torch.bfloat16), torch.full((2, 3), 2.0, dtype=torch.float64)
    rule = weighted_sum(1.0, 3.0)
    for forget, retain, dtype, value in (
        (narrow, wide, torch.float64, 7.0),
        (wide, narrow, torch.float64, 5.0),
        (narrow, None, torch.bfloat16, 1.0),
        (None, narrow, torch.bfloat16, 3.0),
    ):
        (found,) = apply(rule, [forget], [retain])
        assert torch.equal(found, torch.full((2, 3), value, dtype=dtype)) and found.dtype == dtype


def test_inner_products_of_all_kinds_of_pairs(monkeypatch):
    monkeypatch.setattr(gradients, "CPU_PIECE", 4)
    a, b = torch.arange(6.0).view(2, 3), torch.ones(2, 3)
    narrow = torch.full((300,), 1.0, dtype=torch.bfloat16)
    found = inner_products([(a, b), (None, a), (a, a), (b, None), (narrow, narrow), (None, None), (b, b.double())])
    assert found.dtype == torch.float64
    assert found.tolist() == [15.0, 0.0, 55.0, 0.0, 300.0, 0.0, 6.0]
    assert inner_products([]).tolist() == [] and inner_products([(None, a)]).tolist() == [0.0]


@pytest.mark.parametrize(("forget_weight", "retain_weight"), [(1.0, 1.0), (1.0, 0.5), (0.25, 1.0), (0.25, 3.0), (2, 0)])
@pytest.mark.parametrize("into", ["forget", "retain", "elsewhere"])
def test_a_weighted_sum_wherever_it_is_written(forget_weight, retain_weight, into):
    forget, retain = torch.tensor([1.0, -2.0, 8.0]), torch.tensor([4.0, 16.0, -1.0])
    expected = [forget_weight * f + retain_weight * r for f, r in zip(forget.tolist(), retain.tolist(), strict=True)]
    combined = {"forget": forget, "retain": retain, "elsewhere": torch.full((3,), math.nan)}[into]
    weighted_sum(forget_weight, retain_weight)(forget, retain, combined, Scratch())
    assert combined.tolist() == expected


@pytest.mark.parametrize(
    ("dtype", "tiny", "scale"), [(torch.float32, 1e-37, 2.0**127), (torch.float64, 1e-307, 2.0**1023)]
)
def test_signs_are_those_of_the_exact_product(dtype, tiny, scale):
    assert sign_scale(dtype) == scale
    f = torch.tensor([1.0, 1.0, -1.0, 0.0, tiny, -tiny, math.inf, 3.0], dtype=dtype)
    r = torch.tensor([1.0, -1.0, 1.0, -1.0, -tiny, -tiny, 0.0, -math.inf], dtype=dtype)
    out = torch.full_like(f, math.nan)
    assert conflicts(f, r, out) is out
    assert out.tolist() == [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
