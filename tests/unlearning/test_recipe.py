"""Presets say what they are, and words of the last release say what they have become."""

import pytest
import torch

from equipoise.core.errors import BadInput
from equipoise.unlearning import blur, pcgrad
from equipoise.unlearning.recipe import METHODS, RENAMED, Recipe, recipe


def test_presets_fill_the_words():
    core = recipe("gru-core")
    assert (core.objective, core.combine) == ("npo", "pcgrad-global")
    assert recipe("sago", objective="npo") == Recipe(objective="npo", combine="sago")
    assert all(recipe(method) for method in METHODS)
    assert not set(RENAMED) & {*METHODS, *Recipe.model_fields}


def test_blur_is_the_released_step_and_gru_its_core_only():
    """BLUR-NPO: r + (1 - <r, f> / ||f||^2) f, over all tensors, in conflict or not."""
    words = recipe("blur")
    assert (words.objective, words.combine) == ("npo", "blur")
    assert (words.forget_weight, words.resolved_retain_weight) == (1.0, 1.0)
    generator = torch.Generator().manual_seed(0)
    forget, retain = ([torch.randn(n, generator=generator, dtype=torch.float64) for n in (5, 3)] for _ in range(2))
    f, r = torch.cat(forget), torch.cat(retain)
    for sign in (1.0, -1.0):
        step = torch.cat(blur.combine([sign * each for each in forget], retain))
        torch.testing.assert_close(step, r + (1 - sign * (r @ f) / (f @ f)) * sign * f)
    conflict = f if f @ r < 0 else -f
    step = torch.cat(pcgrad.combine_global([conflict[:5], conflict[5:]], retain, retain_weight=0.0))
    torch.testing.assert_close(step, conflict - (conflict @ r) / (r @ r) * r)  # GRU's update of one step


@pytest.mark.parametrize(
    ("method", "words", "message"),
    [
        ("gru", {}, "the preset 'gru' is now 'gru-core'"),
        (None, {"delta": 0.1}, r"delta is now gamma.*gamma = beta \* delta"),
        ("blurr", {}, "Did you mean 'blur'"),
        (None, {"rate": 0.1}, "rate is now learning_rate"),
        (None, {"gama": 0.1}, "Did you mean 'gamma'"),
        (None, {"combine": "blurr"}, "'combine' is 'blurr'. Did you mean 'blur'"),
        (None, {"objective": "sinmpo"}, "'objective' is 'sinmpo'. Did you mean 'simnpo'"),
    ],
)
def test_a_name_of_the_last_release_says_what_it_is_now(method, words, message):
    with pytest.raises(BadInput, match=message):
        recipe(method, **words)


def test_the_margin_is_stored_only_where_it_counts():
    assert Recipe(objective="simnpo", gamma=0.2).resolved(10)["gamma"] == 0.2
    assert "gamma" not in Recipe(objective="npo", gamma=0.2).resolved(10)
