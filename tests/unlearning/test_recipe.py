"""Presets say what they are, and words of the last release say what they have become."""

import math

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


def test_every_default():
    assert Recipe().model_dump() == {
        "objective": "simnpo",
        "retain_objective": "gd",
        "combine": "sago",
        "weigh": "uniform",
        "temperature": 2.0,
        "floor": 0.0,
        "variant": "plain",
        "parameters": "full",
        "forget_weight": 1.0,
        "retain_weight": None,
        "beta": None,
        "beta1": 5.0,
        "beta2": 1.0,
        "gamma": 0.0,
        "steering": 2.0,
        "first_block": None,
        "last_block": None,
        "project": "none",
        "components": 8,
        "mean_mode": "direction",
        "basis": "orthonormal",
        "gradient_filter": "none",
        "cir_activations": None,
        "cir_gradients": None,
        "cir_every": None,
        "robust": "none",
        "rho": 0.01,
        "update": "adamw",
        "update_length": None,
        "retain_learning_rate": 3e-4,
        "loss_budget": None,
        "learning_rate": None,
        "steps": 100,
        "batch_size": 16,
        "micro_batch_size": None,
        "max_length": 512,
        "train_blocks": None,
        "lora_rank": 16,
        "start": "default",
        "guidance": 0.7,
        "pooling": "sum",
        "orthogonality": 0.0,
        "retain_directions": None,
        "seed": 0,
    }


LORA = {"objective": "ihl", "combine": "sum", "parameters": "lora", "lora_rank": 32, "learning_rate": 1e-4}
BROKEN = {
    "objective": "mlp-breaking",
    "parameters": "mlp",
    "gradient_filter": "cir",
    "update": "fixed-length",
    "loss_budget": 0.05,
}


def test_every_preset():
    assert {name: METHODS[name] for name in METHODS} == {
        "blur": {"objective": "npo", "combine": "blur", "retain_weight": 1.0},
        "pcgrad": {"objective": "simnpo", "combine": "pcgrad"},
        "guard": {"objective": "ga", "combine": "sum", "weigh": "guard"},
        "gru-core": {"objective": "npo", "combine": "pcgrad-global"},
        "sago": {"objective": "simnpo", "combine": "sago"},
        "npo-sam": {"objective": "npo", "combine": "sum", "robust": "sam"},
        "npo-smoothing": {"objective": "npo", "combine": "sum", "robust": "smoothing"},
        "mlp-breaking": BROKEN,
        "mcu": BROKEN | {"project": "mcu"},
        "rmu-mcu": BROKEN | {"project": "mcu", "objective": "rmu", "steering": 1.0},
        "ihl": {"objective": "ihl", "combine": "sum"},
        "dpo": {"objective": "dpo", "combine": "sum"},
        "undial": {"objective": "undial", "combine": "sum"},
        "wga": {"objective": "wga", "combine": "sum"},
        "satimp": {"objective": "satimp", "combine": "sum", "forget_weight": 0.1},
        "ce-u": {"objective": "ce-u", "combine": "sum"},
        "reglu": LORA | {"start": "reglu", "orthogonality": 0.5},
        "fila": LORA | {"start": "fila"},
        "vila": LORA | {"start": "vila"},
        "graddiff": {"objective": "ga", "combine": "sum"},
        "npo": {"objective": "npo", "combine": "sum"},
        "simnpo": {"objective": "simnpo", "combine": "sum"},
        "rmu": {"objective": "rmu", "combine": "sum"},
    }


@pytest.mark.parametrize(
    ("objective", "beta", "retain_weight"),
    [
        *(("ga", math.nan, 1.0), ("npo", 0.1, 0.1), ("simnpo", 2.5, 0.1), ("rmu", math.nan, 1.0)),
        *(
            ("dpo", 0.1, 1.0),
            ("undial", 10.0, 1.0),
            ("wga", 1.0, 1.0),
            ("satimp", math.nan, 1.0),
            ("ce-u", math.nan, 1.0),
        ),
    ],
)
def test_what_an_objective_fills_in(objective, beta, retain_weight):
    words = Recipe(objective=objective)
    assert words.resolved_beta == pytest.approx(beta, nan_ok=True, abs=0)
    assert words.resolved_retain_weight == retain_weight
    given = Recipe(objective=objective, beta=0.5, retain_weight=0.0)
    assert (given.resolved_beta, given.resolved_retain_weight) == (0.5, 0.0)


COMMON = {
    *("combine", "parameters", "forget_weight", "retain_weight", "learning_rate", "steps", "batch_size"),
    *("micro_batch_size", "max_length", "seed", "objective", "weigh", "loss_budget"),
}


@pytest.mark.parametrize(
    ("words", "own"),
    [
        ({"objective": "ga"}, {"retain_objective", "train_blocks"}),
        ({"objective": "npo"}, {"retain_objective", "train_blocks", "beta"}),
        ({"objective": "simnpo"}, {"retain_objective", "train_blocks", "beta", "gamma"}),
        ({"objective": "rmu"}, {"steering"}),
        ({"objective": "rmu", "parameters": "mlp"}, {"train_blocks", "steering"}),
        ({"objective": "dpo"}, {"retain_objective", "train_blocks", "beta"}),
        ({"objective": "undial"}, {"retain_objective", "train_blocks", "beta"}),
        ({"objective": "wga"}, {"retain_objective", "train_blocks", "beta"}),
        ({"objective": "satimp"}, {"retain_objective", "train_blocks", "beta1", "beta2"}),
        ({"objective": "ce-u"}, {"retain_objective", "train_blocks"}),
        ({"objective": "rmu", "weigh": "guard"}, {"steering", "temperature", "floor", "variant"}),
        ({"objective": "npo", "parameters": "lora"}, {"retain_objective", "lora_rank", "beta"}),
        ({"objective": "ihl", "start": "reglu"}, {"retain_objective", "train_blocks"}),
        (
            {"objective": "ihl", "parameters": "lora", "start": "reglu"},
            {"retain_objective", "lora_rank", "start", "guidance", "pooling"},
        ),
        ({"objective": "ihl", "parameters": "lora", "start": "fila"}, {"retain_objective", "lora_rank", "start"}),
    ],
)
def test_the_settings_that_count(words, own):
    chosen = Recipe(**words)
    assert chosen.used() == COMMON | own
    # What is not given and has no value of its own is left out.
    assert set(chosen.resolved(10)) == (COMMON | own) - {"micro_batch_size", "train_blocks", "loss_budget"}


def test_blocks_of_an_objective_that_trains_its_own_are_refused():
    with pytest.raises(
        BadInput, match=r"^rmu trains a few matrices of its own: leave train_blocks out, or use parameters"
    ):
        recipe("rmu", train_blocks=1)
    assert recipe("rmu", train_blocks=1, parameters="mlp").train_blocks == 1
    assert recipe("npo", train_blocks=1).train_blocks == 1


@pytest.mark.parametrize(
    ("method", "given", "idle"),
    [
        ("mcu", {"retain_weight": 5.0, "forget_weight": 0.0, "combine": "blur", "learning_rate": 1.0, "steps": 3}, 4),
        ("mcu", {"combine": "sago", "update_length": 0.1}, 0),  # a default says nothing
        ("mcu", {"update": "adamw", "learning_rate": 1.0, "retain_learning_rate": 0.1}, 1),
        ("rmu", {"retain_objective": "kl", "beta": 1.0, "steering": 3.0}, 2),
        ("guard", {"weigh": "uniform", "temperature": 3.0}, 1),
        ("npo", {"components": 3, "rho": 0.1, "lora_rank": 4, "beta": 0.2}, 3),
    ],
)
def test_settings_that_were_given_for_nothing(method, given, idle):
    chosen = recipe(method, **given)
    found = chosen.without_effect(given)
    assert len(found) == idle and not chosen.used() & set(found)
    assert recipe(method, **{name: value for name, value in given.items() if name not in found}).resolved(
        10
    ) == chosen.resolved(10)


@pytest.mark.parametrize("method", list(METHODS))
def test_all_that_a_preset_sets_counts(method):
    assert set(METHODS[method]) <= recipe(method).used() and not recipe(method).without_effect(METHODS[method])


def test_the_settings_with_their_values():
    assert Recipe(objective="npo", train_blocks=3, micro_batch_size=2).resolved(10) == {
        "objective": "npo",
        "retain_objective": "gd",
        "combine": "sago",
        "weigh": "uniform",
        "parameters": "full",
        "forget_weight": 1.0,
        "retain_weight": 0.1,
        "beta": 0.1,
        "learning_rate": 1e-3,
        "steps": 100,
        "batch_size": 16,
        "micro_batch_size": 2,
        "max_length": 512,
        "train_blocks": 3,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("words", "trained", "rate"),
    [
        ({}, 50_000_000, 1e-3),
        ({}, 50_000_001, 5e-5),
        ({}, 1_000_000_000, 5e-5),
        ({}, 1_000_000_001, 1e-5),
        ({"parameters": "lora"}, 1_000_000_001, 2e-4),
        ({"parameters": "lora", "learning_rate": 0.5}, 7, 0.5),
    ],
)
def test_the_learning_rate_goes_by_what_is_trained(words, trained, rate):
    assert Recipe(**words).resolved_learning_rate(trained) == rate


@pytest.mark.parametrize(
    ("name", "least", "below"),
    [
        ("forget_weight", 0.0, -1e-9),
        ("retain_weight", 0.0, -1e-9),
        ("beta", 1e-9, 0.0),
        ("beta1", 0.0, -1e-9),
        ("beta2", 0.0, -1e-9),
        ("steering", 1e-9, 0.0),
        ("learning_rate", 1e-9, 0.0),
        ("steps", 1, 0),
        ("batch_size", 1, 0),
        ("micro_batch_size", 1, 0),
        ("max_length", 2, 1),
        ("train_blocks", 1, 0),
        ("lora_rank", 1, 0),
        ("temperature", 1e-9, 0.0),
        ("floor", 0.0, -1e-9),
        ("guidance", 0.0, -1e-9),
        ("orthogonality", 0.0, -1e-9),
        ("retain_directions", 1, 0),
        ("seed", 0, -1),
    ],
)
def test_the_limits_of_every_setting(name, least, below):
    assert getattr(recipe(**{name: least}), name) == least
    with pytest.raises(BadInput, match=f"'{name}' should be"):
        recipe(**{name: below})


def test_every_name_that_registers_itself_and_what_it_stands_for():
    from equipoise.unlearning import gradient_sum, sago
    from equipoise.unlearning.recipe import COMBINE, OBJECTIVES

    assert dict(COMBINE) == {
        "blur": blur.combine,
        "sum": gradient_sum.combine,
        "pcgrad": pcgrad.combine,
        "pcgrad-global": pcgrad.combine_global,
        "pcgrad-symmetric": pcgrad.combine_symmetric,
        "sago": sago.combine,
        "sago-prefer-retain": sago.combine_prefer_retain,
    }
    assert {name: OBJECTIVES[name].settings for name in OBJECTIVES} == {
        "mlp-breaking": ("first_block", "last_block"),
        "ga": (),
        "ihl": (),
        "dpo": ("beta",),
        "undial": ("beta",),
        "wga": ("beta",),
        "satimp": ("beta1", "beta2"),
        "ce-u": (),
        "npo": ("beta",),
        "simnpo": ("beta", "gamma"),
        "rmu": ("steering",),
    }
