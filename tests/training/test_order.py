"""The order of examples: passes without a repeat, across batches and over their borders."""

import numpy as np
import pytest

from equipoise.training.order import pairs, without_replacement


@pytest.mark.parametrize(("count", "size"), [(5, 3), (4, 2), (3, 7), (6, 1)])
def test_an_order_is_the_permutations_one_after_the_other(count, size):
    passes = [np.random.default_rng(np.random.SeedSequence([9, 0, epoch])).permutation(count) for epoch in range(8)]
    flat = [int(index) for each in passes for index in each]
    draw = without_replacement(count, size, 9)
    for step in (2, 0, 1):
        assert draw(step) == flat[step * size : (step + 1) * size]


def test_a_pass_is_drawn_once_however_many_steps_it_has(monkeypatch):
    made, drawn = np.random.default_rng, []
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed.entropy) or made(seed))
    draw = without_replacement(10, 4, 1)
    for step in range(5):
        draw(step)
    assert drawn == [[1, 0, 0], [1, 0, 1]]


def test_partners_are_drawn_anew_at_every_step():
    partners = [np.random.default_rng(np.random.SeedSequence([9, 1, step])).integers(50, size=3) for step in range(4)]
    draw, order = pairs(5, 50, 3, 9), without_replacement(5, 3, 9)
    assert [draw(step) for step in range(4)] == [
        list(zip(order(step), own.tolist(), strict=True)) for step, own in enumerate(partners)
    ]
