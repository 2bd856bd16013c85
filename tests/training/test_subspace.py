"""Directions against numpy on states with masks, offsets and unequal batches; projection against its definition."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.training import subspace


def made(rows, width, seed=0, offset=3.0):
    """States whose variance falls along random directions, far from zero."""
    generator = torch.Generator().manual_seed(seed)
    turned, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    spread = 2.0 ** -torch.arange(width, dtype=torch.float64)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64) * spread @ turned + offset


@pytest.mark.parametrize("centred", [False, True])
def test_streamed_moments_are_numpys(centred):
    states = made(60, 7)
    counted = torch.rand(60, generator=torch.Generator().manual_seed(1)) < 0.6
    moments = subspace.Moments(7)
    for first, last in ((0, 13), (13, 14), (14, 60)):
        moments.add(states[None, first:last], counted[None, first:last].long())
    kept = states[counted].numpy()
    assert moments.count == len(kept) < 60
    assert_close(moments.mean.numpy(), kept.mean(0))
    second = np.cov(kept.T, bias=True) if centred else kept.T @ kept / len(kept)
    variances, vectors = np.linalg.eigh(second)
    found = moments.directions(3, centred=centred)
    assert_close((found.numpy() @ vectors[:, ::-1][:, :3]).__abs__(), np.eye(3), atol=1e-9, rtol=0)
    assert_close(moments.variances(found, centred=centred).numpy(), variances[::-1][:3].copy())
    assert (found.gather(-1, found.abs().argmax(-1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("rows", [9, 40])
def test_the_thin_path_agrees(rows, centred):
    states = made(rows, 12)
    moments = subspace.Moments(12)
    moments.add(states)
    assert_close(subspace.directions(states, 4, centred=centred), moments.directions(4, centred=centred))


def test_float32_states_are_summed_in_float64():
    """A variance of 1 at an offset of 1e4: in float32 the sum of squares has lost it."""
    states = (made(4000, 3, offset=0.0) + 1e4).float()
    moments = subspace.Moments(3)
    for part in states.split(500):
        moments.add(part)
    assert_close(moments.second(centred=True).diagonal(), states.double().var(0, correction=0), rtol=1e-5, atol=0)


def test_what_cannot_be_told_is_refused():
    flat = torch.zeros(8, 5).double()
    flat[:, 1] = torch.arange(8.0)
    moments = subspace.Moments(5)
    moments.add(flat)
    with pytest.raises(BadInput, match="vary in 1 directions and 2"):
        moments.directions(2, centred=True)
    with pytest.raises(BadInput, match="4 states cannot tell so many directions: 5"):
        subspace.directions(made(4, 9), 4, centred=True)
    with pytest.raises(BadInput, match="not finite"):
        moments.add(torch.tensor([[0.0, torch.inf, 0, 0, 0]]))
    moments.add(torch.full((1, 5), torch.nan), torch.zeros(1))  # a masked row counts for nothing
    assert moments.count == 8
    with pytest.raises(BadInput, match="6 wide, the moments 5"):
        moments.add(torch.zeros(1, 6))


@pytest.mark.parametrize("seed", range(3))
def test_what_rounding_leaves_is_no_direction(seed):
    """64 numbers in three directions, none along an axis: what is left of the others is several times the last bit."""
    flat = made(200, 3, seed=seed) @ made(3, 64, seed=9 + seed)
    moments = subspace.Moments(64)
    moments.add(flat)
    left = moments.spectrum(centred=False)[1][3] / moments.spectrum(centred=False)[1][0]
    assert left > torch.finfo(torch.float64).eps / 64  # so that a floor without the size would take it for one
    for find in (moments.directions, partial(subspace.directions, flat)):
        with pytest.raises(BadInput, match="vary in 3 directions and 4"):
            find(4, centred=False)


@pytest.mark.parametrize("size", [1.0, 1e-6])
@pytest.mark.parametrize("rows", [64, 7])
def test_far_from_zero_the_same_directions_are_found_and_no_others(rows, size):
    """Two directions about an offset, which squared is 1e8 and more times as large as they are."""
    near = made(rows, 2, offset=0.0) @ made(2, 8, seed=5, offset=0.0) * size
    mean = near.mean(0)
    variances, vectors = np.linalg.eigh(np.cov(near.numpy().T, bias=True))
    for offset in (1e4, -3e6 if size == 1 else 40.0):
        far = near + offset
        moments = subspace.Moments(8)
        for part in far.split([2, rows - 5, 3]):
            moments.add(part)
        assert_close(moments.mean, mean + offset)
        assert_close(moments.second(centred=False), far.T @ far / rows)
        for find in (moments.directions, partial(subspace.directions, far)):
            found = find(2, centred=True)
            cosines = (found.numpy() @ vectors[:, ::-1][:, :2]).__abs__()
            assert_close(cosines, np.eye(2), atol=max(1e-9, 1e-13 * abs(offset) / size), rtol=0)
            with pytest.raises(BadInput, match="vary in 2 directions and 4"):
                find(4, centred=True)
        assert len(subspace.directions(far, 4, centred=True, fewer=True)) == 2
        assert_close(moments.variances(found, centred=True).numpy(), variances[::-1][:2].copy(), rtol=1e-4, atol=0)
        flat = torch.full_like(far, offset / 3)
        assert len(subspace.directions(flat, 4, centred=True, fewer=True)) == 0


def test_projection():
    """Linear, idempotent, symmetric; in float32 as in float64; gradients have no part along what was removed."""
    vectors = made(3, 6, seed=2)
    basis = subspace.orthonormal(vectors)
    assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64))
    assert_close(basis[0], vectors[0] / vectors[0].norm())
    matrix = torch.eye(6, dtype=torch.float64) - basis.T @ basis
    states = made(10, 6, seed=3).view(2, 5, 6).requires_grad_()
    assert_close(subspace.project_out(states, basis), states @ matrix)
    (gradient,) = torch.autograd.grad(subspace.project_out(states, basis).square().sum(), states)
    assert_close(gradient @ basis.T, torch.zeros(2, 5, 3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert subspace.project_out(states.float(), basis).dtype == torch.float32
    assert torch.equal(subspace.project_out(states, basis[:0]), states)
    with pytest.raises(BadInput, match="span fewer"):
        subspace.orthonormal(torch.stack([vectors[0], vectors[1], vectors[0] + vectors[1]]))


def test_a_spectrum_by_hand():
    """Rows (3, 0), (-3, 0), (0, 1), (0, -1) about (5, -2): variances of 9/2 and 1/2 along the axes."""
    rows = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    moments = subspace.Moments(2)
    for part in rows.split(1):
        moments.add(part + torch.tensor([5.0, -2.0]))
    assert moments.width == 2 and moments.mean.tolist() == pytest.approx([5.0, -2.0])
    vectors, variances = moments.spectrum(centred=True)
    assert_close(variances, torch.tensor([4.5, 0.5], dtype=torch.float64))
    assert_close(vectors.abs(), torch.eye(2, dtype=torch.float64))
    assert_close(moments.second(centred=False), torch.tensor([[29.5, -10.0], [-10.0, 4.5]], dtype=torch.float64))
    along = torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    found = moments.variances(along, centred=True)
    assert_close(found, torch.tensor([0.36 * 4.5 + 0.64 * 0.5, 0.5], dtype=torch.float64))


def test_as_many_states_as_directions_are_needed_and_one_more_for_a_mean():
    empty = subspace.Moments(3)
    assert empty.mean.isnan().all() and empty.mean.shape == (3,)
    with pytest.raises(BadInput, match="0 states cannot tell so many directions: 1 are needed"):
        empty.second(centred=False)
    states = made(3, 6)
    moments = subspace.Moments(6)
    moments.add(states, torch.zeros(3))  # nothing of a first batch counts: the next one's mean is taken
    moments.add(states)
    assert_close(moments.mean, states.mean(0))
    for find in (moments.directions, partial(subspace.directions, states)):
        assert len(find(3, centred=False)) == 3 and len(find(2, centred=True)) == 2
        with pytest.raises(BadInput, match="3 states cannot tell so many directions: 4 are needed"):
            find(3, centred=True)
        with pytest.raises(BadInput, match="3 states cannot tell so many directions: 4 are needed"):
            find(4, centred=False)
    assert len(subspace.directions(states, 5, centred=True, fewer=True)) == 2
    assert len(subspace.directions(states[:1], 5, centred=False, fewer=True)) == 1
    with pytest.raises(BadInput, match="0 states cannot tell so many directions: 1 are needed"):
        subspace.directions(states[:0], 2, centred=False, fewer=True)


@pytest.mark.parametrize(("rows", "squared"), [(5, True), (4, False)])
def test_fewer_states_than_numbers_are_decomposed_themselves(rows, squared, monkeypatch):
    svd, called = torch.linalg.svd, []
    monkeypatch.setattr(torch.linalg, "svd", lambda *given, **how: called.append(1) or svd(*given, **how))
    subspace.directions(made(rows, 5), 2, centred=True)
    assert bool(called) is not squared


EPS = torch.finfo(torch.float64).eps


def test_how_near_a_span_a_vector_counts_as_in_it():
    """Of 100 numbers: within 100 last bits of its length; in the singular values of unit vectors a root of two less."""
    first, second = torch.eye(100, dtype=torch.float64)[:2]
    for size in (1.0, 1e-8, 1e8):
        for share, kept in ((0.9, False), (1.1, True)):
            pair = size * torch.stack([first, first + share * 100 * EPS * second])
            if kept:
                assert_close(subspace.orthonormal(pair)[1].abs(), second, atol=0.2, rtol=0)
            else:
                with pytest.raises(BadInput, match="these 2 directions span fewer"):
                    subspace.orthonormal(pair)
            pair[1] = size * (first + share * 100 * EPS * 2**0.5 * second)
            assert len(subspace.span(pair)) == (2 if kept else 1)


def test_a_span_forgets_lengths_and_a_basis_keeps_signs():
    vectors = torch.tensor([[0.0, 0.0, 0.0], [-2e-30, 0.0, 0.0], [1e20, 1e20, 0.0]], dtype=torch.float64)
    basis = subspace.span(vectors)
    assert_close(basis.T @ basis, torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)))
    kept = subspace.orthonormal(vectors[1:])
    assert_close(kept, torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64))
    whole = subspace.orthonormal(torch.tensor([[0.0, -3.0], [1.0, -1.0]]))
    assert_close(whole, torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64))
    with pytest.raises(BadInput, match="these 3 directions span fewer"):
        subspace.orthonormal(torch.tensor([[0.0, -3.0], [1.0, -1.0], [1.0, 1.0]]))


def test_what_rounding_can_make_is_counted_from_the_mean_and_the_shift():
    mean, shift = torch.tensor([3.0, -4.0], dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert subspace._lost(mean).item() == pytest.approx((5 * EPS) ** 2, rel=1e-12)
    assert subspace._lost(mean, shift).item() == pytest.approx((5 * EPS) ** 2 + 5 * EPS, rel=1e-12)


def test_a_direction_has_more_variance_than_rounding_makes():
    """Four of them: four times the largest's last bit and what was lost."""
    vectors = -torch.eye(4, dtype=torch.float64)
    for largest, lost in ((1.0, 0.0), (1e-20, 0.0), (2.0, 1e-3)):
        floor = 4 * (largest * EPS + lost)
        for share, varied in ((1.01, 3), (0.99, 2)):
            variances = torch.tensor([largest, largest / 2, share * floor, floor / 10], dtype=torch.float64)
            told = vectors, variances
            assert len(subspace._chosen(*told, 4, torch.tensor(lost), fewer=True)) == varied
            assert subspace._chosen(*told, 2, torch.tensor(lost)).tolist() == torch.eye(4)[:2].tolist()
            with pytest.raises(
                BadInput, match=f"the states vary in {varied} directions and {varied + 1} were asked for"
            ):
                subspace._chosen(*told, varied + 1, torch.tensor(lost))
            assert len(subspace._chosen(*told, varied, torch.tensor(lost))) == varied
    below = torch.tensor([-1e-9, -1.0, -2.0, -3.0], dtype=torch.float64)
    assert len(subspace._chosen(vectors, below, 1, torch.tensor(0.0), fewer=True)) == 0


def test_no_graph_hangs_on_directions_or_moments():
    states = made(9, 4).requires_grad_()
    moments = subspace.Moments(4)
    moments.add(states)
    assert not moments.mean.requires_grad and not subspace.directions(states, 2, centred=True).requires_grad


@pytest.mark.parametrize("centred", [False, True])
def test_a_shift_from_the_first_batch_is_taken_from_the_squares_of_a_covariance_alone(centred, monkeypatch):
    """Two rows about 0 and four about 6: the mean is 4, and so far from where the squares were counted from."""
    asked, lost = [], subspace._lost
    monkeypatch.setattr(subspace, "_lost", lambda *given: asked.append(given) or lost(*given))
    moments = subspace.Moments(2)
    moments.add(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    moments.add(torch.tensor([[6.0, 1.0], [6.0, -1.0], [6.0, 2.0], [6.0, -2.0]]))
    moments.directions(1, centred=centred)
    ((mean, shift),) = asked
    assert mean.tolist() == [4.0, 0.0] and (shift.tolist() == [4.0, 0.0] if centred else shift is None)
