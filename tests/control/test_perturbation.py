"""Perturbed environments: what each change does, and that noise follows from the seed."""

from types import SimpleNamespace

import numpy as np
import pytest

from equipoise.core.errors import BadInput

gymnasium = pytest.importorskip("gymnasium")

from equipoise.control.perturbation import ALIASES, canonical, check_changes, perturb  # noqa: E402


class Echo(gymnasium.Env):
    """Shows the action that arrived."""

    observation_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)
    action_space = gymnasium.spaces.Box(np.float32([-1, 0]), np.float32([1, 4]))

    def __init__(self):
        self.length, self.gravity, self.steps = 0.5, 10, 3

    @property
    def half(self):
        return self.length / 2

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return action, self.length, False, False, {}


def played(count=400, seed=0, **changes):
    environment = perturb(Echo(), **changes)
    environment.reset(seed=seed)
    asked = np.tile(np.float32([0.25, 1.0]), (count, 1))
    return np.array([environment.step(each)[0] for each in asked])


def test_parameters_are_multiplied():
    environment = perturb(Echo(), length=1.5, gravity=0.5)
    environment.reset(seed=0)
    assert environment.step(np.zeros(2))[1] == 0.75 and environment.unwrapped.gravity == 5


def of_a_simulator(**parameters):
    """An environment with a model as MuJoCo's, and a number of its own that is called as one of the model's arrays."""
    environment = Echo()
    inner = environment.unwrapped
    inner.model = SimpleNamespace(
        body_mass=np.array([1.0, 2.0, 4.0]),
        body_inertia=np.array([[1.0, 3.0], [5.0, 7.0]]),
        dof_damping=np.array([0.5, 0.25]),
        opt=SimpleNamespace(gravity=np.array([0.0, 1.0, -9.0])),
    )
    inner.mass = 2.0
    return perturb(environment, **parameters).unwrapped


def test_arrays_of_a_simulator_are_multiplied_in_place():
    found = of_a_simulator(mass=1.5)
    assert found.model.body_mass.tolist() == [1.5, 3.0, 6.0]
    assert found.model.body_inertia.tolist() == [[1.5, 4.5], [7.5, 10.5]]
    assert found.model.dof_damping.tolist() == [0.5, 0.25] and found.mass == 2.0 and found.gravity == 10
    both = of_a_simulator(damping=3.0, gravity=0.5, length=4.0)
    assert both.model.dof_damping.tolist() == [1.5, 0.75] and both.model.body_mass.tolist() == [1.0, 2.0, 4.0]
    assert both.model.opt.gravity.tolist() == [0.0, 0.5, -4.5] and both.gravity == 10 and both.length == 2.0
    with pytest.raises(BadInput, match=r"no parameter 'dampin'.*damping"):
        of_a_simulator(dampin=2.0)


def test_a_parameter_goes_by_the_names_that_environments_have_for_it():
    assert [canonical(name) for word, names in ALIASES.items() for name in names] == [
        word for word, names in ALIASES.items() for _ in names
    ]
    assert canonical("length") == "length" and canonical("unheard of") == "unheard of"


def test_noise_has_its_size():
    seen = played(observation_noise=0.3)
    np.testing.assert_allclose(seen.mean(0), [0.25, 1.0], atol=0.06)
    np.testing.assert_allclose(seen.std(0), 0.3, atol=0.04)
    seen = played(uniform_noise=0.3)
    assert np.abs(seen - [0.25, 1.0]).max() <= 0.3 + 1e-6 and seen.std() > 0.1
    seen = played(action_noise=0.1)  # shares of half the range: 0.1 of 1 and of 2
    np.testing.assert_allclose(seen.std(0), [0.1, 0.2], rtol=0.15)
    seen = played(random_action=0.25)
    assert 0.15 < np.mean(seen[:, 0] != np.float32(0.25)) < 0.35
    assert seen[:, 1].min() >= 0 and seen[:, 1].max() > 2


def test_a_delay_begins_in_the_middle():
    environment = perturb(Echo(), delay=2)
    environment.reset(seed=0)
    seen = [environment.step(np.float32([0.1 * k, 1.0]))[0] for k in range(4)]
    np.testing.assert_allclose(seen, [[0, 2], [0, 2], [0, 1], [0.1, 1]], atol=1e-6)


def test_the_seed_decides_the_noise():
    np.testing.assert_array_equal(played(5, seed=3, observation_noise=1), played(5, seed=3, observation_noise=1))
    assert not np.array_equal(played(5, seed=3, observation_noise=1), played(5, seed=4, observation_noise=1))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lenght": 1.1}, "'length'"),
        ({"random_action": 1.5}, "chance"),
        ({"delay": 1.5}, "whole"),
        ({"delay": 1e9}, "at most"),
        ({"length": "1.2"}, "no number"),
        ({"length": True}, "no number"),
        ({"length": 1.2, "l": 1.2}, "same parameter"),
        ({"half": 2.0}, "follows from"),
        ({"length": -1.0}, "0 or more"),
        ({"length": float("nan")}, "0 or more"),
    ],
)
def test_what_is_no_change_is_refused(changes, told):
    with pytest.raises(BadInput, match=told):
        perturb(Echo(), **changes)


def test_the_pole_on_a_cart_keeps_its_products():
    from gymnasium.envs.classic_control.cartpole import CartPoleEnv

    from equipoise.control.perturbation import scale_parameter

    environment = CartPoleEnv()
    scale_parameter(environment, "length", 2.0)
    assert environment.length == 1.0 and environment.polemass_length == pytest.approx(environment.masspole)
    scale_parameter(environment, "mass", 3.0)
    assert environment.masspole == pytest.approx(0.3) and environment.total_mass == pytest.approx(1.3)
    assert environment.polemass_length == pytest.approx(0.3)


@pytest.mark.parametrize("name", ["action_noise", "random_action", "delay"])
def test_actions_without_bounds_have_no_middle(name):
    environment = Echo()
    environment.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    with pytest.raises(BadInput, match="no bounds"):
        perturb(environment, **{name: 1.0})
    perturb(environment, observation_noise=0.1)


def test_every_step_is_what_its_changes_and_its_own_stream_make_of_it():
    changes = {"observation_noise": 0.3, "uniform_noise": 0.2, "action_noise": 0.1, "random_action": 0.5, "delay": 2}
    environment = perturb(Echo(), **changes)
    first, _ = environment.reset(seed=6)
    noise = np.random.default_rng(np.random.SeedSequence([6, 1]))

    def blurred(value):
        gaussian = 0.3 * noise.standard_normal(2)
        return np.float32(value) + gaussian + 0.2 * noise.uniform(-1, 1, 2)

    np.testing.assert_allclose(first, blurred([0, 0]), atol=1e-6)
    low, high, waiting = np.array([-1, 0]), np.array([1, 4]), [np.array([0.0, 2.0])] * 2
    for place in range(12):
        asked = np.float32([0.8, 0.1 * place])
        action = noise.uniform(low, high) if noise.random() < 0.5 else asked
        action = action + 0.1 * np.array([1, 2]) * noise.standard_normal(2)
        waiting.append(np.clip(action, low, high))
        seen, *_ = environment.step(asked)
        np.testing.assert_allclose(seen, blurred(waiting.pop(0)), atol=1e-6)
        assert seen.dtype == np.float32


def test_what_is_not_changed_stays_as_it_is():
    environment = perturb(Echo(), length=2.0)
    assert environment.reset(seed=0)[0].tolist() == [0, 0]
    for _ in range(20):
        assert environment.step(np.float32([9.0, 1.0]))[0].tolist() == [1, 1]  # cut to the box, and nothing else
    one = perturb(Echo(), uniform_noise=0.5)  # without a seed the noise is that of seed 0 in numpy
    first, _ = one.reset()
    assert first == pytest.approx(
        (lambda noise: (noise.standard_normal(2), noise.uniform(-1, 1, 2))[1] * 0.5)(np.random.default_rng(0))
    )


def test_numbers_at_the_limits_of_what_a_change_may_be():
    check_changes({"random_action": 1, "delay": 10_000, "length": 0, "mass": np.float32(2)})
    for wrong in ({"random_action": 1.001}, {"delay": 10_001}, {"length": -1e-9}, {"mass": np.inf}, {"delay": 0.5}):
        with pytest.raises(BadInput):
            check_changes(wrong)


def test_one_open_side_is_no_bound_and_a_noise_of_nothing_needs_none():
    for low, high in ((-np.inf, 1), (-1, np.inf)):
        environment = Echo()
        environment.action_space = gymnasium.spaces.Box(low, high, (2,), np.float32)
        with pytest.raises(BadInput, match="random_action has no meaning"):
            perturb(environment, action_noise=0.0, random_action=0.1)
        perturb(environment, action_noise=0.0, delay=0)


def test_flags_and_texts_are_no_parameters():
    environment = Echo()
    environment.fancy, environment.name, environment._hidden = True, "echo", 2.5
    for name in ("fancy", "name"):
        with pytest.raises(BadInput, match=f"no parameter '{name}'"):
            perturb(environment, **{name: 2.0})
    with pytest.raises(BadInput, match="'hiden'") as told:
        perturb(environment, hiden=2.0)
    assert "_hidden" not in str(told.value)
    with pytest.raises(BadInput, match=r"'gravty'.*gravity"):  # a whole number is none that is offered, its word is
        environment.gravity = 9.5
        perturb(environment, gravty=2.0)
    with pytest.raises(BadInput, match="no box"):
        environment.action_space = gymnasium.spaces.Discrete(2)
        perturb(environment)
