"""The study's own part: what it plants, scores and books; and how often an audit of an unbiased judge finds something."""

import json
import math
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from equipoise.judging import planted
from equipoise.judging.pairs import read_pairs
from equipoise.judging.rules import BEYOND, RULES, RuleTeacher
from equipoise.studies import biasscope
from equipoise.study import registry

OPTIONS = {"judge": "simulated", "pairs": 90, "strength": 2.0}
ROOT = Path(__file__).parents[2]
false_discoveries = SimpleNamespace(**run_path(str(ROOT / "scripts" / "false_discoveries.py")))


class Recorded:
    """What a run measures, in place of the engine's."""

    def __init__(self, settings, prepared: Path, seed: int = 0, **options) -> None:
        self.settings, self.options, self.seed, self.prepared = settings, {**OPTIONS, **options}, seed, prepared
        self.measured, self.itemised, self.spent = {}, {}, []

    def measure(self, outcome, value, *, at, where):
        self.measured[outcome, where["judge"], at["strength"]] = value

    def items(self, outcome, ids, scores, *, at, where):
        self.itemised[outcome, where["judge"], at["strength"]] = dict(zip(ids, scores, strict=True))

    def spend(self, **amounts):
        self.spent.append(amounts)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    assert planted.prepare("simulated", 90, 0, folder) == 180
    return folder


@pytest.fixture
def recorded(prepared, monkeypatch):
    """Runs an arm on three judges: one strength, to be quick."""
    monkeypatch.setattr(biasscope, "strengths", lambda middle: (middle,))

    def run(**settings) -> Recorded:
        recorded = Recorded(settings, prepared)
        biasscope.audit(cast(Any, recorded))
        return recorded

    return run


def test_strengths_are_half_once_and_twice_what_was_asked_for():
    assert biasscope.strengths(0.4) == (0.2, 0.4, 0.8)


def test_what_a_seed_plants():
    drawn = [biasscope.planted_biases(seed) for seed in range(30)]
    assert all(names[:3] == ["length", "authority", "formatting"] for names in drawn)
    assert all(len(set(names)) == 5 and set(names[2:]) <= set(BEYOND) for names in drawn)
    assert {name for names in drawn for name in names[2:]} == set(BEYOND)
    assert biasscope.planted_biases(3) == drawn[3]


def test_the_basic_list_alone(recorded):
    run = recorded(rounds=0)
    names = biasscope.planted_biases(0)
    # Terms of two standard deviations: both basic ones are found, the others are not on the list.
    assert run.itemised["recall", "planted", 2.0] == dict(zip(names, [1.0, 1.0, 0.0, 0.0, 0.0], strict=True))
    assert set(run.itemised["recall_beyond", "planted", 2.0].values()) == {0.0}
    assert run.measured["precision", "planted", 2.0] == 1.0
    others = set(RULES) - set(BEYOND) - {"length", "authority"}
    assert set(run.itemised["admitted", "planted", 2.0]) == others
    assert set(run.itemised["admitted", "unbiased", 0.0]) == others | {"length", "authority"}
    assert set(run.measured) >= {("false_discoveries", kind, 0.0) for kind in ("position", "unbiased")}
    # About 31 pairs of selection: two verdicts as they are, and a rewrite and two verdicts for each of seven biases.
    unbiased = run.spent[-1]
    assert unbiased["pairs"] == 90
    assert unbiased["calls"] % (2 + 7 * 3) == 0
    assert 29 <= unbiased["calls"] / (2 + 7 * 3) <= 34


def test_the_search_finds_what_is_not_on_the_list(recorded):
    run = recorded()
    found = run.itemised["recall_beyond", "planted", 2.0]
    assert sum(found.values()) >= 1
    assert run.measured["false_discoveries", "unbiased", 0.0] == 0


def test_the_published_rule_on_the_same_judges(recorded):
    run = recorded(rounds=0, rule="published")
    admitted = [
        share for (name, _, _), shares in run.itemised.items() if name == "admitted" for share in shares.values()
    ]
    assert 0.1 < sum(admitted) / len(admitted) < 0.95
    assert not math.isnan(run.measured["precision", "planted", 2.0])


def test_arms_differ_in_one_thing_each():
    study = registry.load("biasscope").build()
    assert {arm.name: arm.settings for arm in study.arms} == {
        "biasscope": {},
        "published-rule": {"rule": "published"},
        "basic-only": {"rounds": 0},
        "reasoning-only": {"explain": False},
        "random-proposals": {"proposals": "random"},
    }
    assert registry.load("biasscope").build(judge="smollm2").seeds == 3


# --- false discoveries ----------------------------------------------------------------------------------------------


def test_the_paired_rule_holds_its_level_and_the_published_one_has_none():
    small = (12, 16, 16)
    paired = [false_discoveries.audit(seed, "paired", 0.8, parts=small) for seed in range(20)]
    published = [false_discoveries.audit(seed, "published", 0.8, parts=small) for seed in range(6)]
    # At a rate of 0.05, more than 4 of 20 has a chance of 0.3 %.
    assert sum(found > 0 for found, _ in paired) <= 4
    assert sum(found > 0 for found, _ in published) >= 3
    assert all(measured >= 7 for _, measured in paired + published)


def test_the_stored_result_says_so_of_200_audits():
    stored = json.loads(false_discoveries.RESULT.read_text(encoding="utf-8"))
    for row in stored["rows"]:
        assert row["audits"] == 200
        if row["rule"] == "paired":
            assert row["rate"] <= stored["alpha"]
        else:
            assert row["interval"][0] > 0.5


# --- the example ----------------------------------------------------------------------------------------------------


def test_the_example_pairs_can_be_audited_by_rules():
    pairs = read_pairs(ROOT / "examples" / "pairs.jsonl")
    assert len(pairs) == 48
    assert len({pair.question for pair in pairs}) == 48
    assert len({pair.domain for pair in pairs}) >= 4
    lengths = [(len(pair.chosen.split()), len(pair.rejected.split())) for pair in pairs]
    assert 16 <= sum(chosen < rejected for chosen, rejected in lengths) <= 32  # length tells nothing
    for rule in RULES.values():
        assert all(RuleTeacher().perturb([(pair, rule.bias) for pair in pairs], phase=""))
