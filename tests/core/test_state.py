import math
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.state import load_state, save_state, stored_state


def test_json_arrays_and_structure_survive(tmp_path):
    generator = np.random.default_rng(3)
    generator.random(5)
    state = {
        "step": 7,
        "nothing": None,
        "rate": 0.1,
        "nan": math.nan,
        "pair": (1, [2, "zwei"]),
        "by index": {0: "a", 1: {"$odd": True}},
        "array": np.arange(6, dtype=np.int16).reshape(2, 3)[:, ::-1],
        "scalar": np.array(2.5),
        "empty": np.empty((0, 3)),
        "count": np.int64(5),
        "generator": generator.bit_generator.state,
    }
    save_state(tmp_path / "s", state)
    back = load_state(tmp_path / "s")
    assert math.isnan(back.pop("nan")) and math.isnan(state.pop("nan"))
    for key in ("array", "scalar", "empty"):
        got, expected = back.pop(key), state.pop(key)
        assert got.dtype == expected.dtype and got.shape == expected.shape
        np.testing.assert_array_equal(got, expected)
    assert back == state
    assert isinstance(back["pair"], tuple)
    again = np.random.default_rng(0)
    again.bit_generator.state = back["generator"]
    assert again.random() == generator.random()


def test_tensors_of_every_kind(tmp_path):
    torch = pytest.importorskip("torch")
    weight = torch.arange(6.0).reshape(2, 3)
    state = {
        "weight": weight,
        "tied": weight,
        "view": weight[:, 1:],
        "row": weight[1],
        "transposed": weight.T,
        "half": weight.to(torch.bfloat16),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.empty(0, 2),
        "optimizer": {"state": {0: {"step": torch.tensor(4.0), "m": np.ones(2)}}},
        "generator": torch.Generator().manual_seed(1).get_state(),
    }
    save_state(tmp_path / "s", state)
    back = load_state(tmp_path / "s")
    for key in ("weight", "tied", "view", "row", "transposed", "half", "scalar", "empty", "generator"):
        assert back[key].dtype == state[key].dtype
        assert torch.equal(back[key], state[key])
    assert isinstance(back["optimizer"]["state"][0]["m"], np.ndarray)
    assert (tmp_path / "s").stat().st_size < 12_000  # the generator's 5 kB and little else: nothing stored twice
    assert back["tied"] is back["weight"]


def test_what_is_no_state_is_refused_by_its_place(tmp_path):
    with pytest.raises(BadInput, match=r"state\.model\[1\] is a set"):
        save_state(tmp_path / "s", {"model": [1, {2}]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, keep):
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": np.arange(100), "b": 1})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WorkFailed, match=r"state\.safetensors"):
        load_state(path)


def test_states_without_tensors_need_no_torch(tmp_path):
    code = (
        "import sys, numpy; from pathlib import Path; from equipoise.core.state import *; p = Path(sys.argv[1]);"
        "save_state(p, {'a': numpy.ones(2)}); load_state(p); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_no_flipped_bit_makes_another_state(tmp_path, kind):
    array = np.arange(40, dtype=">f4").reshape(5, 8)
    state = {
        "step": 7,
        "rate": 0.1,
        "pair": (1, "zwei"),
        "array": array,
        "none": np.empty((0, 2)),
        "one": np.array(True),
    }
    if kind == "torch":
        torch = pytest.importorskip("torch")
        half = torch.arange(64).to(torch.bfloat16)
        state |= {"half": half, "tied": half, "truth": torch.tensor([True, False]), "scalar": torch.tensor(2.5)}
    path = tmp_path / "state.safetensors"
    save_state(path, state)
    whole = path.read_bytes()

    def content():
        return {name: each.tolist() if hasattr(each, "tolist") else each for name, each in load_state(path).items()}

    expected = content()
    chance = random.Random(7)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        try:
            assert content() == expected
        except WorkFailed as error:
            assert "state.safetensors" in str(error)
            refused += 1
    assert refused > 300


def test_a_state_without_a_digest_is_still_read(tmp_path):
    """As version 0.1 wrote it."""
    from safetensors.numpy import save_file

    save_file({"0": np.arange(3)}, tmp_path / "s", {"equipoise_state": '{"a": {"$array": "0"}, "b": 1}'})
    back = load_state(tmp_path / "s")
    assert back["a"].tolist() == [0, 1, 2]
    assert back["b"] == 1


def test_a_state_that_is_there_missing_and_damaged(tmp_path):
    file = tmp_path / "state.safetensors"
    assert stored_state(file) == ({}, [])
    save_state(file, {"path": [{"step": 3}], "tensor": torch.arange(3)})
    stored, told = stored_state(file)
    assert told == [] and stored["path"] == [{"step": 3}] and stored["tensor"].tolist() == [0, 1, 2]
    for number in (1, 2, 3):
        file.write_bytes(b"damaged")
        stored, (told,) = stored_state(file)
        assert stored == {} and not file.exists()
        assert told.endswith(
            f" It is kept as state.safetensors.damaged-{number}, and the training was done again from its start."
        )
        assert (tmp_path / f"state.safetensors.damaged-{number}").read_bytes() == b"damaged"


def test_equal_states_are_equal_bytes(tmp_path):
    """The library writes its two metadata in an order of chance: one of twenty would be another file."""
    state = {"\u00e9": np.arange(3.0), "b": [1, None, "x"], "a": np.ones((2, 2), np.float32)}
    written = set()
    for place in range(20):
        save_state(tmp_path / f"{place}", state)
        written.add((tmp_path / f"{place}").read_bytes())
    assert len(written) == 1
    again = load_state(tmp_path / "0")
    assert again["b"] == [1, None, "x"] and again["\u00e9"].tolist() == [0, 1, 2]
