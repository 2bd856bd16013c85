"""What training notes on its way: points of the curve, states that are stored, what the logs cover, a bar that gets full."""

import contextlib
import math

import numpy as np
import pytest

from equipoise.control import training
from equipoise.control.job import train
from equipoise.core.errors import BadInput

SMALL = {"hidden": (4,), "batch_size": 4}


def arrays(**other):
    generator = np.random.default_rng(0)
    seen = generator.normal(size=(2, 12, 2))
    actions = np.stack([np.linspace(-0.5, 1, 12), np.linspace(0, 0.25, 12)], 1)
    named = {"observations": seen[0], "next_observations": seen[1], "actions": actions, "rewards": -np.ones(12)}
    named |= {"terminated": np.arange(12) % 4 == 3, "truncated": np.arange(12) == 0}
    return named | {"action_low": [-1.0, -1.0], "action_high": [1.0, 1.5]} | other


@pytest.fixture
def noted(monkeypatch):
    """The advances of the bar, and the states that were stored."""
    advances, states = [], []

    class Bar:
        def advance(self, steps):
            advances.append(steps)

    @contextlib.contextmanager
    def progress(what, *, total, unit):
        advances.append(-total)
        yield Bar()

    monkeypatch.setattr(training, "progress", progress)
    stored = training.save_state
    monkeypatch.setattr(
        training,
        "save_state",
        lambda path, state: (states.append(state | {"curve": [*state["curve"]]}), stored(path, state))[1],
    )
    return advances, states


def test_the_curve_and_the_stored_states_have_their_steps(noted, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "POINTS", 3)
    monkeypatch.setattr(training, "SAVE_EVERY", 4)
    advances, states = noted
    nominal = {"nominal_steps": 9, "samples": 3, "nominal": "gaussian"}
    given = {"seed": 3, **SMALL, **nominal}
    done = training.Training.read(arrays(), method="dr-sac", steps=11, seeds=2, given=given).work(tmp_path)
    for place, policy in enumerate(done.policies):
        assert [step for step, _ in policy.curve] == [3, 6, 9] and policy.seed == 3 + place
        assert policy.file == f"policy-{place}.zip" and policy.alpha != done.policies[1 - place].alpha
    # Of each: the nominal model after 4 and 8 of its steps, the agent after 4 and 8.
    found = [(each["place"], each["agent"]["trained"], each["agent"]["steps"]) for each in states]
    assert found == [(place, *each) for place in range(2) for each in ((4, 0), (8, 0), (13, 4), (17, 8))]
    assert [len(each["curve"]) for each in states] == 2 * [0, 0, 1, 2]
    assert advances[0] == -22 and sum(advances[1:]) == 22 and advances[1:7] == [0, 3, 1, 2, 2, 1]
    assert (done.transitions, done.episodes, done.terminated, done.delta) == (12, 4, 3, 0.1)
    assert done.covered == pytest.approx(0.25 / 2.5)


def test_without_the_ball_there_is_nothing_of_it(noted):
    done = train(arrays(), method="sac", steps=2, **SMALL)
    assert math.isnan(done.delta) and math.isnan(done.policies[0].spread) and math.isnan(done.policies[0].few)
    assert [step for step, _ in done.policies[0].curve] == [1, 2]
    assert train.plan(arrays(), method="sac", steps=2).nominal_steps == 0
    plan = train.plan(arrays(), steps=7, seeds=3, nominal_steps=8)
    assert (plan.transitions, plan.episodes, plan.terminated, plan.observations, plan.actions) == (12, 4, 3, 2, 2)
    assert (plan.steps, plan.nominal_steps, plan.seeds, plan.data) == (7, 8, 3, "12 transitions")


def test_the_most_that_a_value_can_be_has_the_entropy_of_the_highest_temperature():
    def most(rewards, terminated, alpha):
        named = arrays(rewards=rewards, terminated=terminated)
        asked = train.plan(named, gamma=0.75, alpha=0.2, **SMALL)
        assert asked.transitions == 12
        request = training.Training.read(
            named, method="sac", steps=1, seeds=1, given={"gamma": 0.75, "alpha": 0.2, **SMALL}
        )
        return request._most(alpha)

    ends, none = np.ones(12), np.zeros(12)
    for alpha in (0.1, 0.2, 0.5):
        entropy = 0.75 * max(alpha, 0.2) * 2 * math.log(2) / 0.25
        assert most(-np.arange(1.0, 13.0), none, alpha) == pytest.approx(-4 + entropy)
        assert most(-np.arange(1.0, 13.0), ends, alpha) == pytest.approx(-1 + entropy)
        assert most(np.zeros(12), ends, alpha) == pytest.approx(entropy)
        assert most(np.full(12, 3.0), ends, alpha) == pytest.approx(12 + entropy)


def test_what_belongs_to_another_word_is_refused_and_taken_with_its_own():
    for own, word in (("latent", "gaussian"), ("vae_loss", "ensemble")):
        with pytest.raises(BadInput, match=f"{own} would be ignored: it belongs to nominal vae"):
            train.plan(arrays(), nominal=word, **{own: {"latent": 3, "vae_loss": "sum"}[own]})
    for own in ("dual_steps", "dual_learning_rate"):
        with pytest.raises(BadInput, match=f"{own} would be ignored: it belongs to dual functional"):
            train.plan(arrays(), **{own: 1})
        train.plan(arrays(), dual="functional", **{own: 1})
    train.plan(arrays(), latent=3, vae_loss="sum")
    with pytest.raises(BadInput, match="samples, nominal_steps would be ignored: sac"):
        train.plan(arrays(), method="sac", samples=3, nominal_steps=1)
