"""RouterXBench's study on a small model: one pool for all seeds, arms that measure what they may, claims that name them."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chat_models import untaught
from equipoise.routing import routing_world
from equipoise.routing.logit_scores import LOGIT_SCORES
from equipoise.routing.routerxbench import Bands
from equipoise.routing.scoring import CLASSIFIERS, PROBES
from equipoise.studies import routerxbench as study_file
from equipoise.study import registry
from study_recorder import StudyRecorder

pytest.importorskip("sklearn")
SMALL = {"prompts": 40, "asked": 4, "proxy": 0}


class Recorder(StudyRecorder):
    seed = 0

    def measure(self, outcome, value, *, of=1, at=None, where=None):
        super().measure(outcome, value, of=of, at=at or {}, where=where)

    def items(self, outcome, ids, scores, *, at=None, where=None):
        super().items(outcome, ids, scores, at=at or {}, where=where)

    def spend(self, *, phase="query", **amounts):
        super().spend(phase=phase, **amounts)

    def beat(self):
        pass


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two seeds prepared with a model that knows nothing; an answer counts as right by its prompt, for half of them."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("routerxbench")
    study = registry.load("routerxbench").build(**SMALL)

    def again(*args, **how):
        raise AssertionError("this was made by the first seed")

    def right(domain, answer, gold):
        return hashlib.sha256(f"{domain} {gold}".encode()).digest()[0] % 2 == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUIPOISE_CACHE", str(folder / "cache"))
        patch.setattr(routing_world, "load", lambda name: untaught(0, context=512))
        patch.setattr(routing_world, "right", right)
        first, second = (Recorder(folder / name, study=study) for name in ("first", "second"))
        study_file.prepare(first)
        for name in ("generate", "given_scores", "verbalised"):
            patch.setattr(routing_world, name, again)
        study_file.prepare(second)
    return study, first, second


def test_seeds_share_one_pool_and_cost_the_same(prepared):
    _, first, second = prepared
    assert first.spent == second.spent and first.spent["prompts"] == 5 * 40 + 20
    for name in ("pool.json", "values.npy"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


@pytest.mark.parametrize(
    "arm",
    ["dirichlet", "mean", "best-logit", "perplexity", "semantic-entropy", "embedding-logistic", "length", "random"],
)
def test_an_arm_measures_what_it_can(prepared, tmp_path, arm):
    study, first, _ = prepared
    run = Recorder(tmp_path / "run", study=study, arm=arm, prepared=first.folder)
    study_file.rank(run)
    there = {key.split()[0] for key in run.measured}
    everything = {outcome.name for outcome in study.outcomes} - {"auroc_proxy"}
    if arm == "semantic-entropy":
        assert there == {"auroc_asked"} and run.spent["generated_tokens"] > 0
    else:
        assert there == everything - ({"solve_rate"} if arm != "random" else set())
        assert 0 < run.last("hcr") < 1 or np.isnan(run.last("hcr"))
        assert 0 <= run.last("useful_calls") <= 1 and run.last("sent_tokens") > 0
        by_domain = [value for key, value in run.measured.items() if key.startswith("auroc ") and "domain" in key]
        assert run.measured["auroc {} {}"] == pytest.approx(np.mean(by_domain))
    if arm == "length":  # the longest go first
        assert run.last("sent_tokens") > 0.3


def test_arms_and_bands_are_those_of_the_job():
    study = registry.load("routerxbench").build()
    assert str(Bands()) == study_file.BANDS and set(study_file.LOGITS) == set(LOGIT_SCORES)
    names = {arm.name for arm in study.arms}
    assert names >= {*PROBES, *LOGIT_SCORES, *CLASSIFIERS, "length", "random"}
    assert sum(claim.judged for claim in study.claims) == 2


def test_costs_at_thirty_percent_are_of_the_three_in_ten_with_the_lowest_scores(tmp_path):
    draw = np.random.default_rng(5)
    test = draw.permutation(30)[:20]
    world = SimpleNamespace(solved=(draw.random(30) < 0.5).astype(float), tokens=draw.integers(1, 90, 30).astype(float))
    scores = draw.permutation(20) / 7
    run = Recorder(tmp_path, study=registry.load("routerxbench").build(**SMALL))
    routing_world._scenarios(run, world, scores, test)
    sent = test[np.argsort(scores)[:6]]
    assert run.last("useful_calls") == pytest.approx(np.mean(1 - world.solved[sent]))
    assert run.last("sent_tokens") == pytest.approx(world.tokens[sent].sum() / world.tokens[test].sum())
