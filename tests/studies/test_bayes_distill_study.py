"""The study on a small model: upper blocks as the whole model, what a preparation shares, arms that measure alike."""

import gzip
import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from bayes_world import WORDS, bare
from equipoise.language import adapters
from equipoise.studies import bayes_distill as study_file
from equipoise.study import registry
from equipoise.uncertainty import bayes_world as world_file
from equipoise.uncertainty.bayes_distill import distill
from equipoise.uncertainty.class_logits import class_logits, read_prompts
from equipoise.uncertainty.laplace_lora import laplace
from equipoise.uncertainty.temperature_scaling import temperature
from study_recorder import Stopped, StudyRecorder

CLASSES = (" one", " two", " three", " Paris", " Oslo", " river")
SMALL = {"train": 24, "blocks": 1, "steps": 4, "learning_rate": 5e-3}


class Recorder(StudyRecorder):
    seed = 0

    def items(self, outcome, ids, scores, *, at=None, where=None):
        super().items(outcome, ids, scores, at=at or {}, where=where)

    def spend(self, *, phase="query", **amounts):
        super().spend(phase=phase, **amounts)


def write_questions(folder):
    generator = np.random.default_rng(0)
    (folder / "trec").mkdir(parents=True)
    for name, count in (("train", 160), ("test", 30)):
        rows = []
        for number in range(count):
            text = " ".join([*generator.choice(WORDS, 2), name])
            rows.append({"label": world_file.KINDS[number % 6], "fine": "x", "text": text})
        if name == "train":
            rows[0]["text"] = "both"
        else:
            rows[5]["text"] = "both"
        with gzip.open(folder / "trec" / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bayes-distill")
    write_questions(folder / "data")
    study = registry.load("bayes-distill").build(**SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUIPOISE_DATA", str(folder / "data"))
        patch.setattr(world_file, "load", lambda *_, **__: bare())
        patch.setattr(world_file, "CLASSES", CLASSES)
        patch.setattr(world_file, "DRAWS", 2)
        whole = Recorder(folder / "whole", study=study)
        study_file.prepare(whole)
        yield study, whole


def test_the_upper_blocks_say_what_the_whole_model_says():
    texts = ["Paris no maybe", "river", "Oslo bends no no maybe"]
    lm = bare()
    prompts = read_prompts(lm, texts, CLASSES)
    whole = class_logits(lm, prompts)
    states = world_file.lower_states(lm, prompts, 1)
    assert [len(each) for each in states] == [len(row) for row in prompts.rows]
    upper = world_file.upper_model(lm, 1, prompts.class_ids)
    assert_close(class_logits(upper, world_file.UpperInputs(states)), whole, atol=1e-5, rtol=1e-5)


def test_questions_are_of_a_seed_and_tested_ones_of_all(prepared):
    one, two = (world_file.questions(seed, 24) for seed in (0, 1))
    assert one == world_file.questions(0, 24) and one["train"] != two["train"] and one["test"] == two["test"]
    assert [len(one[side]) for side in ("train", "held-out", "test")] == [24, 100, 30]
    assert "both" not in {each.text for side in ("train", "held-out") for each in one[side]}
    assert not {each.id for each in one["train"]} & {each.id for each in one["held-out"]}


@pytest.mark.slow
def test_a_preparation_that_was_stopped_ends_in_the_same(prepared, tmp_path):
    study, whole = prepared
    again = Recorder(tmp_path / "again", study=study, stop=2)
    with pytest.raises(Stopped):
        study_file.prepare(again)
    again.stop = None
    study_file.prepare(again)
    one, two = (world_file.load_state(each.folder / "shared.safetensors") for each in (whole, again))
    assert one["sigma"] == two["sigma"] and len(one["members"]) == 2
    assert all(torch.equal(one["omega"][name], two["omega"][name]) for name in one["omega"])
    assert all(
        torch.equal(a, b) for name in one["mle"] for a, b in zip(one["mle"][name], two["mle"][name], strict=True)
    )
    assert not any(torch.equal(one["mle"][name][1], one["members"][0][name][1]) for name in one["mle"])


def probabilities(world, shared, arm):
    """What an arm says of the test questions by the parts of its method, [30, 6]."""
    inputs = world.inputs
    if arm == "label-smoothing":
        student = world.fresh(world_file.STUDENT)
        soft = 0.9 * torch.eye(6).double()[world.labels("train")] + 0.1 / 6
        distill(student, inputs["train"], soft, world.settings(world_file.STUDENT))
        return class_logits(student, inputs["test"]).softmax(-1)
    adapted = world.with_factors(shared["mle"])
    if arm == "laplace":
        made = laplace(adapted, inputs["train"], range(6), seed=world._seed(0))
        return made.on(adapted, inputs["test"])(range(30)).double().softmax(-1).mean(0)
    found = [class_logits(adapted, inputs["test"])]
    if arm == "temperature":
        found[0] /= temperature(class_logits(adapted, inputs["held-out"]), world.labels("held-out"))
    adapters.detach(adapted)
    for member in shared["members"] if arm == "ensemble" else ():
        adapted = world.with_factors(member)
        found.append(class_logits(adapted, inputs["test"]))
        adapters.detach(adapted)
    return torch.stack(found).softmax(-1).mean(0)


@pytest.mark.parametrize("arm", ["adapter", "temperature", "ensemble", "laplace", "label-smoothing"])
def test_an_arm_measures_what_its_method_says(prepared, tmp_path, arm):
    study, whole = prepared
    run = Recorder(tmp_path / "run", study=study, arm=arm, prepared=whole.folder)
    study_file.predict(run)
    shared = world_file.load_state(whole.folder / "shared.safetensors")
    world = world_file.World.made({**SMALL, "model": "small"}, 0, whole.folder)
    p, labels, taught = probabilities(world, shared, arm), world.labels("test"), world.labels("train")
    own = shared["targets"]["adapter"]
    target = own if arm in ("adapter", "temperature") else shared["targets"].get(arm)
    if arm == "temperature":
        hotter = world.with_factors(shared["mle"])
        scale = temperature(class_logits(hotter, world.inputs["held-out"]), world.labels("held-out"))
        assert abs(scale - 1) > 0.01
        target = (class_logits(hotter, world.inputs["train"]) / scale).softmax(-1)
    if arm == "label-smoothing":
        target = 0.9 * torch.eye(6).double()[taught] + 0.1 / 6
    confidence, correct = p.max(-1).values, (p.argmax(-1) == labels).double()
    place = (confidence * 15).ceil()  # of the bins ((m - 1) / 15, m / 15]
    gaps = [((confidence - correct)[place == each]).sum().abs().item() for each in place.unique()]
    due = {
        "nll": -p[torch.arange(30), labels].log().mean(),
        "brier": (p - torch.eye(6)[labels]).square().sum(-1).mean(),
        "accuracy": correct.mean(),
        "ece": sum(gaps) / 30,
        "confidence": confidence.mean(),
        "target_confidence": target.max(-1).values.mean(),
        "target_nll": -target[torch.arange(24), taught].log().mean(),
        "target_distance": (target * (target / own).log()).sum(-1).mean(),
    }
    assert run.measured == pytest.approx({f'{name} {{"step": 4}} {{}}': float(due[name]) for name in due}, abs=1e-5)
    assert run.spent == {
        "optimizer_steps": 4 * (arm == "label-smoothing"),
        "passes": 30 * (3 if arm == "ensemble" else 1),
    }


@pytest.mark.slow
def test_every_arm_measures_every_outcome(prepared, tmp_path):
    study, whole = prepared
    found = {}
    for arm in study.arms:
        run = Recorder(tmp_path / arm.name, study=study, arm=arm.name, prepared=whole.folder)
        study_file.predict(run)
        found[arm.name] = run
        assert {key.split()[0] for key in run.measured} == {outcome.name for outcome in study.outcomes}
    assert found["temperature"].last("accuracy") == found["adapter"].last("accuracy")
    assert found["tfb"].spent["passes"] == 2 * 30 and found["tfb-student"].spent["passes"] == 30
    assert found["ensemble"].spent["passes"] == 3 * 30
    assert found["label-smoothing"].last("target_confidence") == pytest.approx(0.9 + 0.1 / 6)
    assert found["blob"].last("nll") != found["blob-mean"].last("nll")
    # What shows whether the study's premise holds: how sure the adapter is of what it was taught, and who differs from it.
    for same in ("adapter", "self-distilled"):
        assert found[same].last("target_distance") == pytest.approx(0, abs=1e-12)
    assert min(found[other].last("target_distance") for other in ("blob", "label-smoothing")) > 1e-6
    assert found["label-smoothing"].last("target_nll") == pytest.approx(-np.log(0.9 + 0.1 / 6))
    assert whole.spent["passes"] == 24 * (1 + 2 + 2 + 2 + 1 + 1 + 3 + 2)  # the adapter's, then each teacher's
    # A teacher of the study is that of the method, over the adapter that was shared.
    world = world_file.World.made({**SMALL, "model": "small"}, 0, whole.folder)
    shared = world_file.load_state(whole.folder / "shared.safetensors")
    adapted = world.with_factors(shared["mle"])
    p = class_logits(adapted, world.inputs["test"]).softmax(-1)
    nll = -p[torch.arange(30), world.labels("test")].log().mean().item()
    assert found["adapter"].last("nll") == pytest.approx(nll)
    adapters.detach(adapted)


def test_claims_name_what_is_measured():
    study = registry.load("bayes-distill").build()
    primary = [claim for claim in study.claims if claim.primary and not claim.untested]
    assert {claim.test.outcome for claim in primary} == {"nll", "brier"} and len(primary) == 3
    assert {claim.test.rival for claim in primary} == {"adapter", "tfb"}
