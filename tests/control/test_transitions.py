"""Logs row by row: which row is named, what a box takes, what is counted, and what a digest is of."""

import hashlib

import numpy as np
import pytest

from equipoise.control.transitions import OPTIONAL, Transitions, of_arrays, read
from equipoise.core.errors import BadInput


def arrays(n=6, **other):
    named = {"observations": np.arange(2.0 * n).reshape(n, 2), "actions": np.linspace(-1, 1, n)[:, None]}
    named |= {"next_observations": np.ones((n, 2)), "rewards": np.arange(n), "terminated": np.arange(n) % 2}
    return named | other


def test_arrays_get_a_box_and_no_time_limits_where_none_are_given():
    data = of_arrays(arrays())
    assert (data.action_low.tolist(), data.action_high.tolist()) == ([-1], [1])
    assert data.truncated.tolist() == [False] * 6 and data.terminated.tolist() == [False, True] * 3
    assert data.rewards.dtype == np.float32 and data.observations[5].tolist() == [10, 11]
    both = of_arrays(arrays(truncated=[1, 1, 0, 0, 0, 1]))
    assert both.episodes == 4 and len(both) == 6  # an end that is both is one
    wide = of_arrays(arrays(actions=np.zeros((6, 3))))
    assert (wide.action_low.tolist(), wide.action_high.tolist()) == ([-1] * 3, [1] * 3)
    named = arrays()
    d4rl = {"terminals": named.pop("terminated"), "timeouts": np.ones(6)}
    assert of_arrays(named | d4rl).truncated.all() and of_arrays(named | d4rl).terminated.tolist() == [False, True] * 3
    column = of_arrays(arrays(rewards=np.ones((6, 1)), terminated=np.zeros((6, 1))))
    assert column.rewards.shape == column.terminated.shape == (6,)
    assert len(of_arrays(arrays(1, actions=[[0.0]]))) == 1


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "next_observations"])
def test_the_first_row_that_is_no_number_is_named(name):
    value = np.array(arrays()[name], float)
    value[3].fill(np.inf) if value.ndim > 1 else value.__setitem__(3, np.inf)
    value[-1] = np.nan
    with pytest.raises(BadInput, match=rf"{name} hold nan or an infinity \(first at row 3\)"):
        of_arrays(arrays(**{name: value}))
    with pytest.raises(BadInput, match="row 2 is neither"):
        of_arrays(arrays(terminated=[0, 1, 2, 0, 0, 3]))
    with pytest.raises(BadInput, match="row 0 is neither"):
        of_arrays(arrays(truncated=[-1, 1, 0, 0, 0, 0]))


def test_an_action_may_be_off_by_the_rounding_of_its_box():
    low, high = [0.0, -10.0], [100.0, 10.0]  # of which a hundred thousandth is 0.001, and 0.0002
    middle = np.zeros((6, 2))
    for place, value, taken in (
        (0, -0.0009, True), (0, -0.0011, False), (0, 100.0009, True), (0, 100.0011, False), (1, 10.0001, True),
        (1, 10.0003, False), (1, -10.0001, True), (1, -10.0003, False),
    ):  # fmt: skip
        actions = middle.copy()
        actions[4, place] = value
        given = arrays(actions=actions, action_low=low, action_high=high)
        if taken:
            assert of_arrays(given).actions[4, place] == np.float32(value)
        else:
            with pytest.raises(BadInput, match="row 4 has an action outside the box"):
                of_arrays(given)
    for box in (([0.0, 1.0], [0.0, 2.0]), ([0.0, 1.0], [1.0, 1.0]), ([2.0, 0.0], [1.0, 1.0])):
        with pytest.raises(BadInput, match="box of actions is empty"):
            of_arrays(arrays(actions=middle, action_low=box[0], action_high=box[1]))


def test_what_has_no_rows_or_no_width_is_none():
    for wrong in (
        {"observations": np.zeros((6, 0)), "next_observations": np.zeros((6, 0))}, {"observations": np.zeros((6, 1, 2))},
        {"actions": np.zeros((6, 1, 1)), "action_low": [-1.0], "action_high": [1.0]},
    ):  # fmt: skip
        with pytest.raises(BadInput, match=r"expected \[n, width\]"):
            of_arrays(arrays(**wrong))
    none = {name: np.zeros((0, 1)) for name in ("observations", "actions", "next_observations")}
    with pytest.raises(BadInput, match="one row or more"):
        of_arrays(none | {"rewards": np.zeros(0), "terminated": np.zeros(0)})
    for name in ("actions", "rewards", "next_observations", "terminated"):
        with pytest.raises(BadInput, match=f"{name} have 5 rows, observations 6"):
            of_arrays(arrays(**{name: arrays()[name][:5]}))
    with pytest.raises(BadInput, match=r"next_observations have shape \(6, 3\), observations \(6, 2\)"):
        of_arrays(arrays(next_observations=np.ones((6, 3))))


def test_a_digest_is_of_every_array(tmp_path):
    data = of_arrays(arrays())
    names = ("observations", "actions", "rewards", "next_observations", "terminated", *OPTIONAL)
    whole = hashlib.sha256()
    for name in names:
        value = getattr(data, name)
        whole.update(f"{name} {value.dtype} {value.shape} ".encode() + value.tobytes())
    assert data.digest() == whole.hexdigest()
    changed = [
        of_arrays(arrays(**{name: np.array(getattr(data, name)) * 0}) | {}) for name in ("rewards", "terminated")
    ]
    assert len({data.digest(), *(each.digest() for each in changed)}) == 3
    data.save(tmp_path / "a.npz")
    for source in (data, tmp_path / "a.npz", str(tmp_path / "a.npz"), {name: getattr(data, name) for name in names}):
        assert isinstance(read(source), Transitions) and read(source).digest() == data.digest()
    np.savez(tmp_path / "b.npz", rewards=np.zeros(3))
    with pytest.raises(
        BadInput, match=r"b\.npz: no observations, actions, next_observations, terminated \(found: rewards\)"
    ):
        read(tmp_path / "b.npz")
