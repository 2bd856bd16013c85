"""Every setting at the least and the most that it may be, and beside them."""

import math

import pytest
from pydantic import TypeAdapter, ValidationError

from equipoise.control import job, settings

# setting -> (kind, values that it may have, values that it may not)
LIMITS = {
    "gamma": ("SAC", (0, 0.999), (-0.001, 1)),
    "tau": ("SAC", (1e-9, 1), (0, 1.001)),
    "batch_size": ("SAC", (1, 1_000_000), (0, 1_000_001)),
    "learning_rate": ("SAC", (1e-9, 1), (0, 1.001)),
    "weight_decay": ("SAC", (0, 1), (-0.001, 1.001)),
    "hidden": ("SAC", ((1,), (8192, 8192, 8192)), ((), (0,), (8193,), (4, 0))),
    "critics": ("SAC", (1, 100), (0, 101)),
    "seed": ("SAC", (0, 2**62), (-1, 2**62 + 1)),
    "alpha": ("SAC", (1e-9, 1e9), (0, math.inf, math.nan)),
    "target_entropy": ("SAC", (None, -1e9, 1e9), (math.inf,)),
    "behavior_weight": ("SAC", (0, 1), (-0.001, 1.001)),
    "learning_starts": ("SAC", (1, 10**9), (0,)),
    "buffer_size": ("SAC", (1, 10**9), (0,)),
    "actor_through": ("SAC", ("slow", "critics"), ("fast",)),
    "delta": ("DRSAC", (0, 1e9), (-0.001, math.inf)),
    "samples": ("DRSAC", (2, 100_000), (1, 100_001)),
    "dual": ("DRSAC", ("exact", "functional"), ("primal",)),
    "nominal": ("DRSAC", ("vae", "gaussian", "ensemble"), ("gauss",)),
    "nominal_steps": ("DRSAC", (0, 10**9), (-1,)),
    "nominal_learning_rate": ("DRSAC", (1e-9, 1), (0, 1.001)),
    "latent": ("DRSAC", (1, 1000), (0, 1001, None)),
    "vae_loss": ("DRSAC", ("mean", "sum"), ("median",)),
    "dual_steps": ("DRSAC", (1, 1000), (0, 1001)),
    "dual_learning_rate": ("DRSAC", (1e-9, 1), (0, 1.001)),
    "perturbation": ("FQI", (0, 1), (-0.001, 1.001)),
    "target_actions": ("FQI", (1, 10_000), (0, 10_001)),
    "acting_actions": ("FQI", (1, 10_000), (0, 10_001)),
    "rho": ("RFQI", (1e-9, 1), (0, 1.001)),
}
OTHERS = (("latent", "FQI", (None, 1, 1000), (0, 1001)), ("dual_steps", "RFQI", (1, 100_000), (0, 100_001)))
OTHERS += (("dual_learning_rate", "RFQI", (1e-9, 1), (0, 1.001)), ("robust", "DRSAC", (True, False), ("perhaps",)))


@pytest.mark.parametrize(
    ("name", "kind", "may", "may_not"), [*((name, *each) for name, each in LIMITS.items()), *OTHERS]
)
def test_a_setting_has_limits(name, kind, may, may_not):
    made = getattr(settings, f"{kind}Settings")
    for value in may:
        assert getattr(made(**{name: value}), name) == value
    for value in may_not:
        with pytest.raises(ValidationError):
            made(**{name: value})


def test_every_setting_of_an_agent_is_among_them():
    for kind in ("SAC", "DRSAC", "FQI", "RFQI"):
        made = getattr(settings, f"{kind}Settings")
        assert made.model_fields.keys() <= {*LIMITS, "robust", "learn_alpha"}
        with pytest.raises(ValidationError):
            made(unheard_of=1)


@pytest.mark.parametrize(
    ("kind", "may", "may_not"),
    [
        (job.Count, (1, 10**9), (0,)),
        (job.Seeds, (1, 100), (0, 101)),
        (job.Share, (0, 1), (-0.001, 1.001)),
        (job.Seed, (0, 10**9), (-1,)),
    ],
)
def test_options_of_the_jobs_have_limits(kind, may, may_not):
    read = TypeAdapter(kind).validate_python
    assert [read(value) for value in may] == [*may]
    for value in may_not:
        with pytest.raises(ValidationError):
            read(value)
