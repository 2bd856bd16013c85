"""The checks of ReGLU, FILA, VILA and IHL on matrices: against closed forms, finite differences and plain loops."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.unlearning import fila, map_spectra, objectives, reglu
from equipoise.unlearning.map_spectra import MapSpectrum

D = torch.float64


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def sides(width, forget=20, retain=30):
    """Outputs that vary in different directions, to different extents, with an offset."""
    return drawn(forget, width, seed=1) * torch.linspace(3, 0.1, width, dtype=D) + 0.5, drawn(
        retain, width, seed=2
    ) * 1.5


def delta(forget, retain, beta):
    return (1 - beta) * forget.T @ forget / len(forget) - beta * retain.T @ retain / len(retain)


def test_the_start_keeps_the_function_in_float32_and_for_weights_of_16_bits():
    forget, retain = sides(12)
    weight, x = drawn(12, 9, seed=3), drawn(9, 5, seed=4)
    for kept, given, tolerance in (
        (D, weight, 1e-12),
        (torch.float32, weight.float(), 1e-5),
        (torch.float32, weight.bfloat16(), 1e-5),
        (torch.float32, weight.half(), 1e-5),
    ):
        a, b, base = reglu.initialize(forget, retain, given, rank=3, scale=2.0)
        assert a.dtype == b.dtype == base.dtype == kept and (a.shape, b.shape) == ((3, 9), (12, 3))
        after = base.to(D) @ x + 2.0 * b.to(D) @ (a.to(D) @ x)
        assert_close(after, given.to(D) @ x, atol=tolerance, rtol=0)
    a, b, base = reglu.initialize(forget, retain, weight, rank=3, scale=2.0)
    assert_close(a, b.T @ weight)
    # With alpha = 2 r the base is a reflection of the weight: as long as it was.
    assert_close(base.T @ base, weight.T @ weight)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.7])
def test_q_has_the_largest_trace_of_all_orthonormal_columns(beta):
    forget, retain = sides(10)
    found = reglu.directions(forget, retain, 4, beta=beta)
    q, c = found.vectors, delta(forget, retain, beta)
    assert_close(q.T @ q, torch.eye(4, dtype=D))
    values = torch.linalg.eigvalsh(c).flip(0)
    assert_close(found.eigenvalues, values[:4])
    assert_close((q.T @ c @ q).trace(), values[:4].sum())
    assert found.positive == int((values > 0).sum())
    for seed in range(20):
        other = torch.linalg.qr(drawn(10, 4, seed=100 + seed)).Q
        assert (other.T @ c @ other).trace() < values[:4].sum()
    assert (q.gather(0, q.abs().argmax(0, keepdim=True)) > 0).all()


def test_a_multiple_of_the_identity_changes_no_direction_and_beta_ends_at_the_principal_directions_of_one_side():
    forget, retain = sides(8)
    q = reglu.directions(forget, retain, 3, beta=0.7).vectors
    shifted = torch.linalg.eigh(delta(forget, retain, 0.7) + (1 - 2 * 0.7) * 1e-4 * torch.eye(8, dtype=D)).eigenvectors
    assert_close(q @ q.T, shifted[:, -3:] @ shifted[:, -3:].T)
    principal = torch.linalg.svd(forget).Vh[:3].T
    q = reglu.directions(forget, retain, 3, beta=0.0).vectors
    assert_close(q @ q.T, principal @ principal.T)
    least = torch.linalg.svd(retain).Vh[-3:].T
    q = reglu.directions(forget, retain, 3, beta=1.0).vectors
    assert_close(q @ q.T, least @ least.T)
    centred = reglu.directions(forget, retain, 3, beta=0.0, centred=True).vectors
    principal = torch.linalg.svd(forget - forget.mean(0)).Vh[:3].T
    assert_close(centred @ centred.T, principal @ principal.T)


def test_the_thin_path_agrees_with_the_dense_one_and_counts_as_many_positive_values_as_forget_rows():
    forget, retain = sides(60, forget=7, retain=11)
    dense, thin = (reglu.directions(forget, retain, 5, way=way) for way in ("dense", "thin"))
    assert_close(thin.vectors, dense.vectors)
    assert_close(thin.eigenvalues, dense.eigenvalues)
    assert dense.positive == thin.positive == 7  # and 11 negative ones, and 42 that are zero
    for way in ("dense", "thin", "auto"):
        with pytest.raises(BadInput, match=r"in 7 directions .* lora_rank of at most 7"):
            reglu.directions(forget, retain, 8, way=way)
    assert reglu.directions(forget, retain, 7, way="thin").eigenvalues.min() > 0  # all seven
    for way in ("dense", "thin"):  # of outputs that are zero no eigenvalue is above 0
        with pytest.raises(BadInput, match="in 0 directions"):
            reglu.directions(0 * forget, 0 * retain, 1, way=way)
    with pytest.raises(BadInput, match="way is 'thick'"):
        reglu.directions(forget, retain, 2, way="thick")
    # A repeated record adds no direction.
    with pytest.raises(BadInput, match="in 1 directions"):
        reglu.directions(forget[:1].repeat(4, 1), retain, 2)


@pytest.mark.parametrize(
    ("way", "width", "thin"), [("auto", 31, True), ("auto", 30, False), ("thin", 5, True), ("dense", 31, False)]
)
def test_the_cheaper_way_is_taken(monkeypatch, way, width, thin):
    """Of 30 rows: over a matrix as wide as the outputs unless these are more."""
    made, qr = [], torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda matrix: made.append(matrix.shape) or qr(matrix))
    reglu.directions(*sides(width, 10, 20), 2, way=way)
    assert made == [(width, 30)] * thin


def test_the_penalty_is_zero_only_for_columns_that_are_orthogonal_and_its_gradient_is_2_p_pt_b():
    forget, retain = sides(9)
    p = reglu.retain_basis(retain, 3)
    b = drawn(9, 4, seed=5).requires_grad_()
    value = reglu.penalty(b, p)
    assert_close(value, sum((b[:, i] @ p[:, j]) ** 2 for i in range(4) for j in range(3)))
    (gradient,) = torch.autograd.grad(value, b)
    assert_close(gradient, 2 * p @ p.T @ b)
    assert gradcheck(reglu.penalty, (b, p))
    outside = b.detach() - p @ p.T @ b.detach()
    assert reglu.penalty(outside, p) < 1e-28 < reglu.penalty(outside + 1e-6 * p[:, :1], p)
    q = reglu.directions(forget, retain, 5).vectors
    assert 0 <= reglu.penalty(q, p) <= 3 + 1e-12
    assert reglu.penalty(b.detach().bfloat16(), p).dtype == torch.float32


def test_the_retain_basis_is_of_the_main_directions_that_there_are():
    _, retain = sides(16)
    p = reglu.retain_basis(retain)
    assert p.shape == (16, 4)  # a quarter of a narrow map
    main = torch.linalg.svd(retain).Vh[:4].T
    assert_close(p @ p.T, main @ main.T)
    assert reglu.retain_basis(drawn(300, 600)).shape == (600, 128)
    assert reglu.retain_basis(drawn(300, 3)).shape == (3, 1)
    assert reglu.retain_basis(retain[:2], 5).shape == (
        16,
        2,
    )  # two records forbid two directions, and no arbitrary ones
    assert reglu.retain_basis(retain, 15).shape == (16, 15)
    for count in (16, 17, 0):
        with pytest.raises(BadInput, match="use 1 to 15"):
            reglu.retain_basis(retain, count)


def test_the_adapter_of_twice_the_rank_is_the_trained_map_on_the_weight_as_it_was():
    forget, retain = sides(12)
    weight = drawn(12, 9, seed=3)
    a0, b0, base = reglu.initialize(forget, retain, weight, rank=3, scale=1.5)
    a, b = a0 + 0.3 * drawn(3, 9, seed=7), b0 + 0.3 * drawn(12, 3, seed=8)
    whole_a, whole_b = reglu.to_original_base(a, b, a0, b0, scale=1.5)
    assert (whole_a.shape, whole_b.shape) == ((6, 9), (12, 6))
    trained = base + 1.5 * b @ a
    assert_close(weight + whole_b @ whole_a, trained, atol=1e-12, rtol=0)
    plain = weight + 1.5 * b @ a
    assert (plain - trained).norm() / trained.norm() > 0.3


def test_pooling_leaves_padding_out_and_the_range_of_16_bits_is_no_limit():
    outputs, mask = drawn(3, 4, 2).half(), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])
    outputs[1, 2:] = torch.inf
    rows = [outputs[0].to(D), outputs[1, :2].to(D), outputs[2, 2:].to(D)]
    assert_close(reglu.pool(outputs, mask), torch.stack([row.sum(0) for row in rows]))
    assert_close(reglu.pool(outputs, mask, "mean"), torch.stack([row.mean(0) for row in rows]))
    assert_close(reglu.pool(outputs, mask, "last"), torch.stack([row[-1] for row in rows]))
    large = torch.full((1, 300, 1), 60000.0, dtype=torch.float16)
    assert reglu.pool(large, torch.ones(1, 300)).item() == 300 * large[0, 0, 0].item()
    with pytest.raises(BadInput, match="not finite"):
        reglu.pool(outputs, torch.ones(3, 4))
    with pytest.raises(BadInput, match="pooling is 'max'"):
        reglu.pool(outputs, mask, "max")


def test_what_cannot_be_a_start_is_refused():
    forget, retain = sides(6)
    for call, why in (
        (lambda: reglu.directions(forget, retain, 7), "use a rank from 1 to 6"),
        (lambda: reglu.directions(forget, retain[:, :5], 2), "of one width"),
        (lambda: reglu.directions(forget, retain, 0), "rank 0 .* use a rank from 1 to 6"),
        (lambda: reglu.directions(forget[:0], retain, 2), "at least one row"),
        (lambda: reglu.directions(forget, retain[:0], 2), "at least one row"),
        (lambda: reglu.directions(forget, retain, 2, beta=1.5), "beta is 1.5"),
        (lambda: reglu.directions(forget, retain, 2, beta=-0.5), "beta is -0.5"),
        (lambda: reglu.initialize(forget, retain, drawn(5, 4), rank=2, scale=2.0), "5 outputs"),
    ):
        with pytest.raises(BadInput, match=why):
            call()
    assert reglu.directions(forget, retain, 6, beta=0.0).vectors.shape == (6, 6)


def test_shares_and_what_is_said_of_them():
    outputs = torch.tensor([[3.0, 0.0, 4.0], [0.0, 5.0, 0.0]])
    assert reglu.share_in(outputs, torch.eye(3, dtype=D)[:, :1]) == pytest.approx(9 / 50)
    assert np.isnan(reglu.share_in(outputs[:0], torch.eye(3, dtype=D)[:, :1]))
    bad, good = MapSpectrum("up", 4, forget=0.6, leakage=0.7), MapSpectrum("down", 4, forget=0.8, leakage=0.6)
    assert map_spectra.notes([good, MapSpectrum("q", 4)]) == ()
    (note,) = map_spectra.notes([bad, good])
    assert note.startswith("In 1 of 2 maps") and "(up: 0.70 of" in note
    table = map_spectra.section([good, MapSpectrum("q", 4, 2, directions=1), bad]).parts[1]
    assert [row[0] for row in table.rows] == ["up", "down", "q"] and table.rows[2][1:] == (4, 2, None, None, 1, None)


@pytest.mark.parametrize(
    ("forget", "leakage", "warned"),
    [(0.4, 0.5, False), (0.6, 0.6, True), (0.7, 0.6, False), (0.4, 0.51, True), (0.1, 0.3, False)],
)
def test_a_start_leaks_that_holds_more_of_what_is_kept(forget, leakage, warned):
    found = map_spectra.notes([MapSpectrum("up", 4, forget=forget, leakage=leakage)])
    assert [note[:30] for note in found] == ["In 1 of 1 maps the adapter beg"] * warned


def test_where_nothing_was_held_out_that_is_said_of_starts_alone():
    unknown, plain = MapSpectrum("up", 4, forget=0.5), MapSpectrum("q", 4, directions=2)
    (note,) = map_spectra.notes([unknown, plain])
    assert "fewer than five" in note and map_spectra.notes([plain]) == map_spectra.notes([]) == ()
    assert map_spectra.notes([unknown, MapSpectrum("k", 4, forget=0.5, leakage=0.1)]) == ()


def test_a_page_lists_forty_maps():
    spectra = [MapSpectrum(f"m{n}", 4, leakage=n / 100) for n in range(41)]
    table = map_spectra.section(spectra).parts[1]
    assert table.caption == "By map, the 40 of 41 maps with the largest leakage"
    assert [row[0] for row in table.rows] == [f"m{n}" for n in range(40, 0, -1)]
    table = map_spectra.section(spectra[:40]).parts[1]
    assert table.caption == "By map" and len(table.rows) == 40
    assert [column.numeric for column in table.columns] == [False] + [True] * 6


# FILA and VILA.


@pytest.mark.parametrize("shape", [(8, 5), (5, 8)])
def test_equal_importance_is_the_truncated_svd(shape):
    weight, ones = drawn(*shape, seed=3), torch.ones(shape)
    a, b, base = fila.initialize(weight, ones, ones, rank=2, scale=2.0)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    assert_close(2.0 * b @ a, u[:, :2] * s[:2] @ v[:2], rtol=1e-4, atol=1e-4)
    assert_close(base + 2.0 * b @ a, weight)
    rows = (shape[1] / (1 + 1e-5)) ** 0.5  # each row's weight, which the singular values carry
    assert_close((a @ a.T).diagonal(), rows * s[:2] / 2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_a_start_by_unequal_importance_is_the_formula_in_numpy(shape):
    drawn_by = np.random.default_rng(2)
    weight, forget, retain = (drawn_by.normal(size=shape), drawn_by.random(shape) * 1e-3, drawn_by.random(shape) * 1e-4)
    rows = np.sqrt((forget / (1e-5 + retain)).sum(1))
    u, s, v = np.linalg.svd(rows[:, None] * weight, full_matrices=False)
    root = np.sqrt(s[:4] / 3)
    product = (u[:, :4] * root / (rows + 1e-5)[:, None]) @ (root[:, None] * v[:4])
    a, b, base = fila.initialize(*map(torch.from_numpy, (weight, forget, retain)), rank=4, scale=3.0)
    assert (a.shape, b.shape) == ((4, shape[1]), (shape[0], 4))
    assert_close((b @ a).numpy(), product, rtol=0, atol=1e-12)
    assert_close(base.numpy(), weight - 3 * product, rtol=0, atol=1e-12)
    assert_close(a.abs().numpy(), np.abs(root[:, None] * v[:4]), rtol=0, atol=1e-12)


def test_rows_that_matter_to_the_forget_set_are_the_ones_taken():
    weight, forget, retain = drawn(6, 4, seed=3), torch.full((6, 4), 1e-4), torch.full((6, 4), 1e-4)
    forget[2] = 100.0
    rows = fila.row_weights(forget, retain)
    assert_close(rows[2], torch.tensor((4 * 100 / (1e-5 + 1e-4)) ** 0.5, dtype=D))
    a, b, base = fila.initialize(weight, forget, retain, rank=1, scale=2.0)
    assert_close((2 * b @ a)[2], weight[2], rtol=1e-3, atol=1e-3)
    assert base[2].norm() < 1e-3 * weight[2].norm()
    for rank in (0, 5):
        with pytest.raises(BadInput, match="use a rank from 1 to 4"):
            fila.initialize(weight, forget, retain, rank=rank, scale=2.0)
    a, b, base = fila.initialize(weight, forget, retain, rank=4, scale=2.0)  # all of it
    assert_close(2 * b @ a, weight, rtol=1e-2, atol=1e-2)
    with pytest.raises(BadInput, match="no weight matters"):
        fila.initialize(weight, torch.inf * forget, retain, rank=1, scale=2.0)
    with pytest.raises(BadInput, match="no weight matters"):
        fila.initialize(weight, 0 * forget, retain, rank=1, scale=2.0)


def test_moments_of_gradients_are_weighed_by_tokens():
    gradients, tokens = drawn(3, 2, 4, seed=6), [1, 2, 5]
    moments = fila.GradientMoments(torch.zeros(2, 4, dtype=D), centred=True)
    plain = fila.GradientMoments(torch.zeros(2, 4, dtype=D), centred=False)
    for gradient, count in zip(gradients, tokens, strict=True):
        moments.add(gradient, count)
        plain.add(gradient, count)
    plain.add(None, 8)
    each = torch.cat([g.repeat(count, 1, 1) for g, count in zip(gradients, tokens, strict=True)])
    assert_close(moments.square, each.square().mean(0))
    assert_close(moments.variance, each.var(0, correction=0))
    assert_close(plain.square, each.square().mean(0) / 2)
    alike = fila.GradientMoments(torch.zeros(1000, dtype=D), centred=True)  # a gradient that never changes
    for _ in range(3):
        alike.add(drawn(1000, seed=7), 1)
    assert alike.variance.min() == 0 and alike.variance.max() < 1e-14  # rounding makes none below
    with pytest.raises(BadInput, match="not centred"):
        _ = plain.variance
    assert_close(
        fila.product_importance(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])),
        torch.tensor([[3.0, 6], [4, 8]]),
    )


# IHL.


def test_the_inverted_hinge_of_certain_and_of_even_tokens_and_against_a_loop():
    certain = torch.tensor([[80.0, 0, 0], [80.0, 0, 0], [0.0, 0, 0]], dtype=D)
    assert_close(objectives.ihl(certain, torch.tensor([0, 1, 2])), torch.tensor([2.0, 0.0, 1.0], dtype=D))
    logits, labels = drawn(7, 5, seed=9), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    expected = []
    for row, label in zip(logits.softmax(-1).tolist(), labels.tolist(), strict=True):
        own = row.pop(label)
        expected.append(max(1 + own - max(row), 0.0))
    assert_close(objectives.ihl(logits, labels), torch.tensor(expected, dtype=D))
    assert gradcheck(objectives.ihl, (logits.clone().requires_grad_(), labels))
    assert objectives.ihl(logits.half(), labels).dtype == torch.float32
