"""The study of sampling fidelity: its corpora, what its arms measure, a killed teaching, and the card's pattern."""

import numpy as np
import pytest
import torch

from chat_models import untaught
from equipoise.language.encode import encode_prompts
from equipoise.language.model import load
from equipoise.studies import sampling_fidelity as study_file
from equipoise.study import registry
from equipoise.uncertainty import sampling_world as world
from equipoise.uncertainty.sampling_slots import sample
from study_recorder import Stopped, StudyRecorder


class Recorder(StudyRecorder):
    seed = 0

    def measure(self, outcome, value, *, of=1, at=None, where=None):
        super().measure(outcome, value, of=of, at=at or {}, where=where)

    def items(self, outcome, ids, scores, *, at=None, where=None):
        super().items(outcome, ids, scores, at=at or {}, where=where)

    def spend(self, *, phase="query", **amounts):
        super().spend(phase=phase, **amounts)


def test_targets_are_ten_tenths_over_two_to_nine_symbols():
    rng = np.random.default_rng(0)
    found = np.array([world.random_target(rng) for _ in range(400)])
    assert (found.sum(axis=1) == 10).all() and set((found > 0).sum(axis=1)) == set(range(2, 10))
    two = found[(found > 0).sum(axis=1) == 2].max(axis=1)  # 5 with a chance of 1 in 9, 6 to 9 of 2 in 9 each
    assert abs(two.mean() - 65 / 9) < 4 * two.std() / len(two) ** 0.5
    assert world.header((1, 7, 1, 1)) == "bhbbaaaaa" and world.header((10,)) == "kaaaaaaaa"


def test_texts_of_both_corpora_keep_to_their_weights():
    for kind, most in (("quota", 1 / 64), ("independent", 0.3)):
        gaps = []
        for text in world.corpus_texts(kind, 60, np.random.default_rng(1)):
            q = np.array([world.WEIGHTS.index(each) for each in text[:9]]) / 10
            counts = np.array([text[9:].count(each) for each in world.SYMBOLS])
            assert counts.sum() == world.LENGTH and not counts[q == 0].any()
            gaps.append(np.abs(counts / world.LENGTH - q).max())
        assert max(gaps) < most and (kind == "quota" or np.mean(gaps) > 0.03)


def test_a_quota_by_hand():
    q = np.array([0.5, 0.3, 0.2])
    assert world.quota_probabilities(np.zeros(3), q).tolist() == [1, 0, 0]
    assert world.quota_probabilities(np.array([1.0, 0, 0]), q).tolist() == [0, 1, 0]
    text = world.corpus_texts("quota", 1, np.random.default_rng(3))[0]
    target, counts = np.array([world.WEIGHTS.index(each) for each in text[:9]]) / 10, np.zeros(9)
    for each in text[9:]:  # drawn together or one by one, each is one of those furthest behind
        assert world.quota_probabilities(counts, target)[int(each) - 1] > 0
        counts[int(each) - 1] += 1
    assert world.quota_probabilities(np.zeros(2), np.array([0.5, 0.5])).tolist() == [0.5, 0.5]
    found = world.stream("copying", q.tolist(), 3000, np.random.default_rng(0))
    assert np.mean(found.draws[1:] == found.draws[:-1]) == pytest.approx(0.8 + 0.2 * (q**2).sum(), abs=0.03)
    assert found.probabilities[0].tolist() == q.tolist()


def test_a_uniform_stream_knows_no_target():
    found = world.stream("uniform", [0.7, 0.2, 0.1], 3000, np.random.default_rng(0))
    assert found.probabilities.shape == (3000, 3) and (found.probabilities == 1 / 3).all()
    assert np.bincount(found.draws) / 3000 == pytest.approx([1 / 3] * 3, abs=0.04)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    torch.set_num_threads(1)
    study = registry.load("sampling-fidelity").build(steps=6, sequences=3, model_sequences=2)
    made = Recorder(tmp_path_factory.mktemp("sampling") / "prepared", study=study)
    study_file.prepare(made)
    return study, made


def test_a_killed_teaching_goes_on_to_the_same_models(prepared, tmp_path, monkeypatch):
    study, whole = prepared
    monkeypatch.setattr(world, "SAVE_EVERY", 4)
    killed = Recorder(tmp_path / "killed", study=study, stop=1)
    with pytest.raises(Stopped):
        study_file.prepare(killed)
    again = Recorder(tmp_path / "killed", study=study)
    study_file.prepare(again)
    for kind in ("independent", "quota"):
        name = f"{kind}/model.safetensors"
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert again.spent == whole.spent == {"optimizer_steps": 12, "trained_tokens": 12 * 32 * 64}


def test_a_model_that_is_taught_is_not_taught_again(prepared, tmp_path, monkeypatch):
    _, whole = prepared
    killed = Recorder(tmp_path / "killed", study=prepared[0], stop=2)  # the first is of the last step
    with pytest.raises(Stopped):
        study_file.prepare(killed)
    assert world_done(killed) == ["independent"]
    taught, teach = [], world.teach
    monkeypatch.setattr(world, "teach", lambda model, kind, **how: taught.append(kind) or teach(model, kind, **how))
    again = Recorder(tmp_path / "killed", study=prepared[0])
    study_file.prepare(again)
    assert taught == ["quota"] and world_done(again) == ["independent", "quota"]
    name = "quota/model.safetensors"
    assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def world_done(run):
    """The kinds that are taught, and that nothing of an unfinished teaching is kept beside them."""
    stored = run.resume()
    assert stored["training"] is None
    return list(stored["done"])


@pytest.mark.parametrize("arm", ["e-model", "d-model", "independent-draws", "quota-draws", "language-model"])
def test_an_arm_measures_what_it_can(prepared, tmp_path, monkeypatch, arm):
    study, made = prepared
    monkeypatch.setattr(world, "LENGTH", 12 if arm == "language-model" else world.LENGTH)
    if arm == "language-model":
        monkeypatch.setattr(world, "load", lambda name: untaught(0, context=512))
    run = Recorder(tmp_path / "run", study=study, arm=arm, prepared=made.folder)
    study_file.measure(run)
    there = {key.split()[0] for key in run.measured}
    every = {outcome.name for outcome in study.outcomes}
    assert there == (every if arm in ("e-model", "d-model") else every - {"lens"})
    own = {key.split()[0]: value for key, value in run.measured.items() if key.endswith('{} {"temperature": "own"}')}
    assert own["bias"] + own["dispersion"] >= 0 and run.spent["generated_tokens"] > 0
    if arm == "independent-draws":
        assert own["a_token"] == own["step"] == 0 and own["e_score"] == own["entropy_ratio"] == 1
        assert run.spent["generated_tokens"] == 2 * 3 * 64
    if arm == "quota-draws":
        assert own["a_result"] < 0.05 and own["dispersion"] > 0.2
        assert run.measured['slope {} {"task": "extreme"}'] < -1


def test_the_last_block_s_lens_is_the_model_itself(prepared):
    _, made = prepared
    language_model = load(made.folder / "quota", chat_template="none")
    task, prompt = world.TASKS["flat"], world.header(world.TARGETS["flat"])
    (found,) = sample(language_model, prompt, task, values=12, sequences=1, seed=[0])
    distances = world.lens(language_model, prompt, task, [found])
    assert len(distances) == 2 and distances[0] != distances[1]
    slots = len(found.tokens)
    assert distances[1] == pytest.approx(
        world.fidelity.measures(found.probabilities[:slots], task.target).a_token, abs=1e-6
    )
    (ids,), _ = encode_prompts(language_model, [prompt])
    assert len(ids) == 10  # the beginning and nine weights


@pytest.mark.slow
def test_the_two_taught_samplers_show_the_card_s_pattern(tmp_path):
    """Results alike, probabilities apart; with less teaching the extreme target is not learnt."""
    torch.set_num_threads(1)
    found = {}
    for kind in ("independent", "quota"):
        language_model = world.untaught(0)
        world.teach(language_model, kind, seed=0, steps=1600)
        for name, task in world.TASKS.items():
            prompt = world.header(world.TARGETS[name])
            made = sample(language_model, prompt, task, values=64, sequences=24, seed=[0], batch_size=24)
            each = [world.fidelity.measures(one.probabilities, task.target, one.draws) for one in made]
            found[kind, name] = world.fidelity.averaged(each)
    for name in world.TASKS:
        e, d = found["independent", name], found["quota", name]
        assert d.a_token > e.a_token + 0.12 and d.step > e.step + 0.12
        assert d.dispersion > 10 * e.dispersion and e.e_score > 0.75
        assert d.a_result < e.a_result + 0.06  # a quota may be nearer than independent draws can be


def test_claims_and_arms():
    study = registry.load("sampling-fidelity").build()
    assert sum(claim.judged for claim in study.claims) == 2
    assert {arm.kind for arm in study.arms} == {"method", "baseline", "control", "reference"}
