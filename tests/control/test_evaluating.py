"""What an evaluation makes of returns that are known: levels, gains, what is chosen, what is played from which start."""

from types import SimpleNamespace

import numpy as np
import pytest

from equipoise.control import environments, evaluating
from equipoise.control.evaluating import APART, Evaluating, _mean
from equipoise.control.returns import iqm_interval, unpaired_interval
from equipoise.core.errors import WorkFailed


class OneStep:
    """Pays a number of the start, of the change, and of who acts; what is seen is that start."""

    def __init__(self, changes):
        self.changes, self.closed = changes, 0

    def reset(self, *, seed):
        self.seed = seed
        return np.array([seed, -1.0]), {}

    def step(self, action):
        if self.changes.get("mass") == 13:
            return np.zeros(2), np.nan, True, False, {}
        shift = sum(10 * level for name, level in self.changes.items() if name != "force")
        reward = float(action[0]) * (1 + self.seed % 10) ** 2 - shift
        return np.array([self.seed + 100 + shift, 0.0]), reward, True, False, {}

    def close(self):
        self.closed += 1


def agents(*factors):
    def predicting(factor):
        return SimpleNamespace(predict=lambda observation, deterministic: (np.array([factor]), None))

    return tuple((f"policy-{place}.zip", predicting(factor)) for place, factor in enumerate(factors))


@pytest.fixture
def opened(monkeypatch):
    made = []

    def open_environment(name, changes=None):
        made.append(OneStep(changes or {}))
        return made[-1]

    for module in (evaluating, environments):
        monkeypatch.setattr(module, "open_environment", open_environment)
    return made


def returns(factors, shift, starts):
    return np.array([[factor * (1 + start % 10) ** 2 - shift for start in starts] for factor in factors])


def test_levels_gains_and_choice_are_those_of_the_returns(opened, monkeypatch):
    monkeypatch.setattr(evaluating, "DRAWS", 60)
    policies = {"one": agents(1.0, 4.0), "two": agents(2.0, 3.0), "three": agents(1.0, 2.0, 5.0)}
    levels, validation = (
        (("length", 2.0), ("length", 0.5), ("force", 3.0), ("delay", 1.0)),
        (("mass", 2.0), ("mass", 3.0)),
    )
    asked = Evaluating(policies, "OneStep-v0", levels, validation, 4, 5, {}, {})
    assert asked.plan().episodes == 4 * 9 * 7 and asked.plan().policies == {"one": 2, "two": 2, "three": 3}
    assert asked.plan().levels[-2:] == ("mass=2", "mass=3") and len(asked.plan().levels) == 9
    done = asked.work(None)
    shifts = {
        ("length", 0.5): 5, ("length", 1.0): 0, ("length", 2.0): 20, ("force", 1.0): 0, ("force", 3.0): 0,
        ("delay", 0.0): 0, ("delay", 1.0): 10,
    }  # fmt: skip
    starts, factors = range(5, 9), {"one": (1, 4), "two": (2, 3), "three": (1, 2, 5)}
    for run, own in factors.items():
        assert [(each.name, each.level) for each in done.levels[run]] == list(shifts)
        for level in done.levels[run]:
            scores = returns(own, shifts[level.name, level.level], starts)
            assert level.mean.value == pytest.approx(scores.mean())
            assert (level.lowest, level.highest) == pytest.approx(tuple(np.quantile(scores, [0.1, 0.9])))
            middle = np.sort(scores.ravel())[len(scores.ravel()) // 4 :][: -(len(scores.ravel()) // 4)]
            assert level.iqm.value == pytest.approx(middle.mean())
            generator = np.random.default_rng(np.random.SeedSequence([5, 31]))
            assert (level.iqm.lower, level.iqm.upper) == pytest.approx(iqm_interval(scores, generator, draws=60))
    assert list(done.gains) == ["two", "three"]
    for place, (name, level) in enumerate(shifts):
        one, two, three = (returns(factors[run], shifts[name, level], starts) for run in ("one", "two", "three"))
        for run, wanted in (("two", _mean(one - two)), ("three", unpaired_interval(one, three))):
            found = done.gains[run][place]
            wanted = wanted if isinstance(wanted, tuple) else (wanted.value, wanted.lower, wanted.upper)
            assert found[:2] == (name, level)
            assert (found[2].value, found[2].lower, found[2].upper) == pytest.approx(wanted)
    apart = range(1_000_005, 1_000_009)
    mean = {run: np.mean([returns(own, shift, apart).mean() for shift in (20, 30)]) for run, own in factors.items()}
    assert APART == 1_000_000 and done.validated == pytest.approx(mean) and done.chosen == max(mean, key=mean.get)
    assert done.validation == ("mass=2", "mass=3") and done.unmoved == ("force=3",)
    assert done.policies == {"one": 2, "two": 2, "three": 3} and done.episodes == 4
    assert done.trajectories["two, as it is"] == (5, 105) and done.trajectories["three, delay=1"] == (5, 115)
    assert len(done.trajectories) == 6 and sum(each.closed for each in opened) == 7 * 9
    alone = Evaluating({"one": agents(1.0)}, "OneStep-v0", (("length", 2.0),), (), 3, 0, {}, {}).work(None)
    assert (alone.chosen, alone.validated, alone.gains, alone.unmoved) == ("", {}, {}, ())
    assert alone.levels["one"][0].mean.value == pytest.approx(14 / 3)


def test_an_interval_of_one_policy_is_over_its_starts_and_of_several_over_both():
    from scipy import stats

    one = np.array([[1.0, 2.0, 6.0]])
    low, high = stats.t.interval(0.95, 2, 3.0, stats.sem(one[0]))
    assert (_mean(one).value, _mean(one).lower, _mean(one).upper) == pytest.approx((3, low, high))
    both = _mean(np.array([[1.0, 2.0, 6.0], [2.0, 3.0, 7.0]]))
    assert both.value == 3.5 and both.upper - both.lower != pytest.approx(high - low)


def test_a_return_that_is_no_number_ends_the_work_and_the_environment_is_closed(opened):
    asked = Evaluating({"one": agents(1.0)}, "OneStep-v0", (("mass", 13.0),), (), 2, 0, {}, {})
    with pytest.raises(WorkFailed, match=r"fails under mass=13: a return is no number"):
        asked.work(None)
    assert all(each.closed == 1 for each in opened)
