"""The study's own code: its networks are what it says, and a run of a few images keeps the order that must hold."""

import json

import pytest
import torch

from equipoise.core.errors import BadInput
from equipoise.core.progress import share, watch
from equipoise.studies.sdp_crown import RADII
from equipoise.study import registry
from equipoise.verification import setting as setting_module
from equipoise.verification.bounds import geometry
from equipoise.verification.setting import open_setting, prepare


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Networks trained for a tenth of the steps: what bounds must hold of has not to be a good network."""
    folder, whole = tmp_path_factory.mktemp("prepared"), setting_module._train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setting_module, "_train", lambda *given, **words: whole(*given, **words | {"steps": 40}))
        prepare(3, folder)
    return folder


@pytest.mark.slow
def test_the_small_networks_are_right_and_only_one_is_nearly_one_lipschitz(tmp_path):
    assert prepare(3, tmp_path) == 800
    setting = open_setting("small", 100, tmp_path)
    for kind, network in setting.networks.items():
        assert (network(setting.x).argmax(1) == setting.labels).float().mean() > 0.85
        norms = list(geometry(network).norms.values())
        assert max(norms) < 1.1 if kind == "penalised" else min(norms) > 1.5
    assert setting.x.min() >= 0 and setting.x.max() <= 1


class Recorder:
    """What a run of the study engine takes, kept in memory."""

    def __init__(self, settings, prepared):
        self.settings, self.prepared = settings, prepared
        self.options = {"network": "small", "images": 8, "iterations": 2}
        self.found, self.steps, self.shares = {}, 0, []

    def items(self, outcome, ids, scores, *, at, where):
        self.shares.append(share())
        self.found[outcome, at["radius"], where["network"]] = torch.tensor(scores)

    def measure(self, outcome, value, *, at, where):
        self.found[outcome, at["radius"], where["network"]] = value

    def spend(self, optimizer_steps):
        self.steps += optimizer_steps

    def torch_generator(self):
        return torch.Generator().manual_seed(0)


def test_no_arm_verifies_what_the_attack_breaks(prepared, monkeypatch):
    monkeypatch.setitem(RADII, "small", (0.4, 0.1))
    study = registry.load("sdp-crown").build()
    found = {}
    for arm in study.arms:
        recorder = Recorder(arm.settings, prepared)
        study.run(recorder)
        found[arm.name] = recorder.found
        assert (recorder.steps > 0) == (arm.name not in ("lip-naive", "attack"))
        assert recorder.shares == [0.25, 0.5, 0.75, 1.0]
    for name in found:
        assert found[name].keys() == found["attack"].keys() and len(found[name]) == 2 * 2 * 2
        for key, value in found[name].items():
            assert (torch.as_tensor(value) <= torch.as_tensor(found["attack"][key]) + 1e-6).all()


def test_a_search_gives_a_sign_of_life_a_step(prepared, monkeypatch):
    monkeypatch.setitem(RADII, "small", (0.4,))
    recorder, beats = Recorder({"method": "alpha-crown"}, prepared), []
    recorder.options["iterations"] = 7
    with watch(lambda: beats.append(recorder.steps)):
        registry.load("sdp-crown").build().run(recorder)
    assert recorder.steps == 14 and beats.count(0) >= 7  # before the first batch is booked


def test_released_networks_need_their_data(monkeypatch):
    monkeypatch.delenv("EQUIPOISE_DATA", raising=False)
    with pytest.raises(BadInput, match="needs the set sdp-crown"):
        open_setting("mnist_mlp", 5, None)
    study = registry.load("sdp-crown").build(network="mnist_mlp")
    assert study.seeds == 1 and study.prepare is None
    assert json.dumps(study.options)
