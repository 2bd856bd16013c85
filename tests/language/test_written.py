import math
from types import SimpleNamespace

import pytest
import torch

from equipoise.core.errors import WorkFailed
from equipoise.language import written


class Given:
    """A model that notes what is done with it; what it gives back is another one."""

    def __init__(self, dtype=torch.float32):
        self.model, self.done = SimpleNamespace(dtype=dtype), []

    def save(self, folder):
        self.done.append(f"saved {folder.name}")

    def reload(self, folder):
        self.done.append(f"reloaded {folder.name}")
        return "reloaded"


@pytest.fixture
def scored(monkeypatch):
    """Sums of two models over examples of 4, 1 and 2 tokens: the gaps are 0.25, 0.5 and 0."""
    sums = {"given": [-4.0, -6.0, -9.0], "reloaded": [-5.0, -5.5, -9.0]}

    def log_likelihoods(its, examples):
        assert examples == ["a", "b", "c"]
        return torch.tensor(sums[its if its == "reloaded" else "given"], dtype=torch.float64), torch.tensor([4, 1, 2])

    monkeypatch.setattr(written, "log_likelihoods", log_likelihoods)
    return sums


def test_the_gap_is_the_largest_one_per_token(scored, monkeypatch, tmp_path):
    monkeypatch.setitem(written.TOLERANCE, torch.float32, 0.5)
    model = Given()
    assert written.write_checked(model, tmp_path, ["a", "b", "c"], adapter=False, kept=tmp_path / "kept") == 0.5
    assert model.done == [f"saved {tmp_path.name}", f"reloaded {tmp_path.name}"]


def test_an_adapter_is_exported(scored, monkeypatch, tmp_path):
    scored["reloaded"] = scored["given"]
    model, done = Given(), []
    monkeypatch.setattr(written.adapters, "export", lambda *given: done.append(given))
    assert written.write_checked(model, tmp_path, ["a", "b", "c"], adapter=True, kept=tmp_path) == 0.0
    assert done == [(model, tmp_path)] and model.done == [f"reloaded {tmp_path.name}"]


@pytest.mark.parametrize(
    ("dtype", "allowed"), [(torch.float32, 1e-3), (torch.float64, 1e-6), (torch.bfloat16, 0.05), (torch.float16, 0.05)]
)
def test_a_written_model_may_differ_by_so_much(scored, tmp_path, dtype, allowed):
    kept = tmp_path / "state.safetensors"
    for gap, fails in ((allowed * 0.99, False), (allowed * 1.01, True), (math.nan, True)):
        scored["reloaded"] = [-4.0, -6.0 + gap, -9.0]
        write = (Given(dtype), tmp_path, ["a", "b", "c"])
        if not fails:
            assert written.write_checked(*write, adapter=False, kept=kept) == pytest.approx(gap)
            continue
        with pytest.raises(WorkFailed) as error:
            written.write_checked(*write, adapter=False, kept=kept)
        assert str(error.value) == (
            f"the written model differs from the trained one by {gap:.2g} nats per token (allowed: {allowed:g}), so it "
            f"was not given its name; the trained weights are in {kept}."
        )
