"""The parts of the study that are code: its controls, and a run of a few steps that is killed and resumed."""

import torch
from torch.testing import assert_close

from equipoise.studies.sago import coin, retain_only
from equipoise.study import registry
from equipoise.unlearning import sago

GENERATOR = torch.Generator().manual_seed(0)
FORGET = [torch.randn(300, 40, generator=GENERATOR), None, torch.randn(7, generator=GENERATOR)]
RETAIN = [torch.randn(300, 40, generator=GENERATOR), torch.randn(5, generator=GENERATOR), None]


def test_the_coin_drops_as_many_coordinates_as_sago_but_not_the_same():
    flipped = coin(0, 0)(FORGET, RETAIN)[0]
    by_sign = sago.combine(FORGET, RETAIN)[0]
    share = ((FORGET[0] * RETAIN[0]) < 0).float().mean().item()
    assert abs((flipped == RETAIN[0]).float().mean().item() - share) < 0.02  # 4 standard errors of 12,000 coins
    assert ((flipped == FORGET[0]) | (flipped == RETAIN[0])).all()
    assert abs((flipped == by_sign).float().mean().item() - 0.5) < 0.03


def test_the_coin_counts_what_one_of_both_losses_moves():
    """Half of the coordinates are of one loss alone and in no conflict: of the others half as many are dropped."""
    apart = torch.ones(12_000)
    forget, retain = [FORGET[0], None, apart[:6000]], [-FORGET[0], apart[:6000], None]
    combined = coin(0, 0)(forget, retain, forget_weight=2.0, retain_weight=3.0)
    heads = (combined[0] == 3 * retain[0]).float().mean().item()
    assert abs(heads - 0.5) < 0.02 and ((combined[0] == 2 * forget[0]) | (combined[0] == 3 * retain[0])).all()
    assert ((combined[1] == 3) | (combined[1] == 0)).all() and ((combined[2] == 2) | (combined[2] == 0)).all()


def test_the_coin_is_thrown_anew_each_step_and_again_alike_on_resume():
    uninterrupted = coin(3, 0)
    steps = [uninterrupted(FORGET, RETAIN)[0].clone() for _ in range(3)]
    assert not torch.equal(steps[0], steps[1])
    assert_close(coin(3, 2)(FORGET, RETAIN)[0], steps[2], rtol=0, atol=0)
    assert not torch.equal(coin(4, 0)(FORGET, RETAIN)[0], steps[0])


def test_retain_only_has_no_forgetting_in_it():
    combined = retain_only(0, 0)(FORGET, RETAIN, retain_weight=0.5)
    assert_close(combined[0], 0.5 * RETAIN[0])
    assert_close(combined[1], 0.5 * RETAIN[1])
    assert (combined[2] == 0).all()
    assert_close(retain_only(0, 0)(FORGET, RETAIN)[0], RETAIN[0])


def test_every_combination_sees_the_published_weights():
    study = registry.load("sago").build()
    weights = {arm.settings["objective"]: arm.settings["retain_weight"] for arm in study.arms}
    assert weights == {"simnpo": 0.1, "ga": 1.0, "rmu": 1.0}
    assert {arm.kind for arm in study.arms} == {"method", "baseline", "control"}
    assert len({tuple(arm.grid["learning_rate"]) for arm in study.arms}) == 1
