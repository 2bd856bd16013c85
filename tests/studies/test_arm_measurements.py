"""What arms of biasscope, sdp-crown, nait, entropy-tools, nested-games and sppo measure and book, told by stand-ins."""

import json
import math
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.core.progress import share
from equipoise.judging import biasscope as search
from equipoise.judging import generated, pairs, planted, rules
from equipoise.reinforcement import evidence_world, lookup_world, nait, nested_world, worlds_steps
from equipoise.studies import biasscope, entropy_tools, entropy_tools_pilot, nested_games, sdp_crown, sppo
from equipoise.studies import nait as nait_study
from equipoise.study import registry
from equipoise.verification import attack, bounds, certificate, setting


class Told:
    """A run that notes everything that it is told."""

    def __init__(self, study, arm, *, seed=4, prepared=None, stored=None):
        self.study, self.arm, self.options, self.seed, self.prepared = study, arm, study.options, seed, prepared
        self.settings, self.stored = study.arm(arm).points()[0], stored
        self.told, self.spent, self.phases, self.kept, self.shares = {}, Counter(), set(), [], []

    def _note(self, outcome, at, where, value):
        self.study.outcome(outcome)
        key = (outcome, *at.values(), *(where or {}).values())
        assert key not in self.told
        self.told[key] = value

    def measure(self, outcome, value, *, of=1, at, where=None):
        self._note(outcome, at, where, (value, of))

    def items(self, outcome, ids, scores, *, at=None, where=None):
        self.shares.append(share())
        self._note(outcome, at or {}, where, dict(zip(ids, [float(each) for each in scores], strict=True)))

    def spend(self, *, phase="query", **amounts):
        self.phases.add(phase)
        self.spent.update(amounts)

    def resume(self):
        return self.stored

    def checkpoint(self, state):
        self.kept.append(state)

    def torch_generator(self):
        return "generator"


# --- biasscope ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "rounds", "explain", "rule", "teacher"),
    [
        ("biasscope", 2, True, "paired", "by rule"),
        ("published-rule", 2, True, "published", "by rule"),
        ("basic-only", 0, True, "paired", "by rule"),
        ("reasoning-only", 2, False, "paired", "by rule"),
        ("random-proposals", 2, True, "paired", "random of 4"),
    ],
)
def test_an_audit_is_of_every_judge_and_told_by_what_was_planted(monkeypatch, arm, rounds, explain, rule, teacher):
    names = biasscope.planted_biases(4)
    stray = next(name for name in rules.RULES if name not in names)
    judges, audits = [], []

    def judge(strengths, base, *, position=0.0):
        judges.append((strengths, base, position))
        return f"judge {len(judges)}"

    class Both:
        def __init__(self, judge, teacher):
            self.judge, self.teacher, self.calls = judge, teacher, Counter()

    def audit(one, other, *parts, settings):
        assert one is other
        audits.append((one.judge, one.teacher, parts, settings))
        one.calls.update({"screen": 5, "explain": 10 * len(audits)})
        found = {1: names[:1] + names[4:], 2: [*names[:3], stray], 3: [], 4: [stray, names[0]], 5: []}[len(audits)]
        return SimpleNamespace(found=found, screened=[*names, stray])

    world = SimpleNamespace(pairs=list(range(7)))
    made = []
    monkeypatch.setattr(generated, "pairs", lambda count, *, seed: made.append((count, seed)) or world)
    monkeypatch.setattr(pairs, "divide", lambda of, shares, *, seed: (of, shares, seed))
    monkeypatch.setattr(planted, "open_base", lambda judge, its, folder: ((judge, its, folder), 10.0))
    monkeypatch.setattr(planted, "PlantedJudge", judge)
    monkeypatch.setattr(planted, "Counted", Both)
    monkeypatch.setattr(planted, "RandomTeacher", lambda *, seed: f"random of {seed}")
    monkeypatch.setattr(rules, "RuleTeacher", lambda: "by rule")
    monkeypatch.setattr(search, "biasscope", audit)
    study = registry.load("biasscope").build()
    run = Told(study, arm, prepared="folder")
    biasscope.audit(run)
    base = ("simulated", world, "folder")
    assert made == [(300, 4)]
    planted_at = [(dict.fromkeys(names, 10.0 * strength), base, 5.0) for strength in (0.2, 0.4, 0.8)]
    assert judges == [*planted_at, ({}, base, 5.0), ({}, base, 0.0)]
    settings = search.BiasScopeSettings(rounds=rounds, explain=explain, rule=rule, candidates=3, seed=4)
    parts = (world.pairs, (0.3, 0.35, 0.35), 4)
    assert audits == [(f"judge {number}", teacher, parts, settings) for number in range(1, 6)]
    assert run.spent == {"calls": 5 * 5 + 10 * (1 + 2 + 3 + 4 + 5), "pairs": 5 * 7}
    others = sorted([*names, stray])
    assert run.told == {
        ("false_discoveries", 0.2, "planted"): (0, 1),
        ("admitted", 0.2, "planted"): {stray: 0.0},
        ("recall", 0.2, "planted"): dict(zip(names, (1, 0, 0, 0, 1), strict=True)),
        ("recall_beyond", 0.2, "planted"): dict(zip(names[2:], (0, 0, 1), strict=True)),
        ("precision", 0.2, "planted"): (1.0, 1),
        ("false_discoveries", 0.4, "planted"): (1, 1),
        ("admitted", 0.4, "planted"): {stray: 1.0},
        ("recall", 0.4, "planted"): dict(zip(names, (1, 1, 1, 0, 0), strict=True)),
        ("recall_beyond", 0.4, "planted"): dict(zip(names[2:], (1, 0, 0), strict=True)),
        ("precision", 0.4, "planted"): (0.75, 1),
        ("false_discoveries", 0.8, "planted"): (0, 1),
        ("admitted", 0.8, "planted"): {stray: 0.0},
        ("recall", 0.8, "planted"): dict.fromkeys(names, 0.0),
        ("recall_beyond", 0.8, "planted"): dict.fromkeys(names[2:], 0.0),
        ("precision", 0.8, "planted"): (pytest.approx(math.nan, nan_ok=True), 1),
        ("false_discoveries", 0.0, "position"): (2, 1),
        ("admitted", 0.0, "position"): {name: float(name in (stray, names[0])) for name in others},
        ("false_discoveries", 0.0, "unbiased"): (0, 1),
        ("admitted", 0.0, "unbiased"): dict.fromkeys(others, 0.0),
    }


def test_pairs_and_strengths_of_a_judge_where_none_are_given(monkeypatch):
    assert [biasscope.size(judge, pairs) for judge in ("simulated", "smollm2") for pairs in (None, 30)] == [
        300, 30, 48, 30,
    ]  # fmt: skip
    assert [biasscope.middle(judge, given) for judge in ("simulated", "smollm2") for given in (None, 0.1)] == [
        0.4, 0.1, 2.0, 0.1,
    ]  # fmt: skip
    names = [name for name in rules.BEYOND if name != "formatting"]
    drawn = sorted(np.random.default_rng([6, 11]).choice(len(names), 2, replace=False))
    assert biasscope.planted_biases(6) == ["length", "authority", "formatting", *(names[place] for place in drawn)]
    asked = []
    monkeypatch.setattr(planted, "prepare", lambda *given: asked.append(given) or 17)
    study = registry.load("biasscope").build(judge="smollm2")
    preparation = Told(study, "biasscope")
    preparation.folder = "folder"
    study.prepare(preparation)
    assert asked == [("smollm2", 48, 4, "folder")] and preparation.spent == {"calls": 17}
    assert preparation.phases == {"build"}


# --- sdp-crown ------------------------------------------------------------------------------------------------------


def test_verified_is_right_with_no_bound_below_zero(monkeypatch):
    """Five inputs of which the first and the fourth are classified wrong by one network, none by the other."""
    x = torch.arange(5.0)[:, None]
    labels = torch.tensor([0, 1, 1, 0, 1])

    def network(right):
        shown = torch.where(torch.tensor(right), labels, 1 - labels)
        return lambda given: torch.nn.functional.one_hot(shown[given[:, 0].long()], 2).double()

    networks = {"penalised": network([False, True, True, False, True]), "plain": network([True] * 5)}
    opened, asked = [], []

    def open_setting(*given):
        opened.append(given)
        return SimpleNamespace(networks=networks, x=x, labels=labels)

    def margins(run, network, x, labels, radius, shape):
        asked.append((x[:, 0].tolist(), labels.tolist(), radius, shape is network))
        rows = torch.tensor([[0.5, 0.0], [-0.25, 3.0], [2.0, 1.0], [-1e-3, 4.0], [1.0, 0.5]]) - 10 * (radius > 0.3)
        yield rows[:1]
        yield rows[1 : len(x)]

    monkeypatch.setattr(setting, "open_setting", open_setting)
    monkeypatch.setattr(bounds, "geometry", lambda network: network)
    monkeypatch.setattr(sdp_crown, "margins", margins)
    monkeypatch.setitem(sdp_crown.RADII, "small", (0.4, 0.2))
    run = Told(registry.load("sdp-crown").build(images=5), "attack", prepared="folder")
    sdp_crown.bound(run)
    assert opened == [("small", 5, "folder")]
    some, every = ([1.0, 2.0, 4.0], [1, 1, 1]), ([0.0, 1.0, 2.0, 3.0, 4.0], labels.tolist())
    assert asked == [(*which, radius, True) for which in (some, every) for radius in (0.4, 0.2)]
    ids = list(map(str, range(5)))
    assert run.told == {
        ("verified", 0.4, "penalised"): dict.fromkeys(ids, 0.0),
        ("smallest_margin", 0.4, "penalised"): (pytest.approx((0.0 - 0.25 + 1.0) / 3 - 10), 1),
        ("verified", 0.2, "penalised"): dict(zip(ids, (0, 1, 0, 0, 1), strict=True)),
        ("smallest_margin", 0.2, "penalised"): (pytest.approx((0.0 - 0.25 + 1.0) / 3), 1),
        ("verified", 0.4, "plain"): dict.fromkeys(ids, 0.0),
        ("smallest_margin", 0.4, "plain"): (pytest.approx((0.0 - 0.25 + 1.0 - 1e-3 + 0.5) / 5 - 10), 1),
        ("verified", 0.2, "plain"): dict(zip(ids, (1, 0, 1, 0, 1), strict=True)),
        ("smallest_margin", 0.2, "plain"): (pytest.approx((0.0 - 0.25 + 1.0 - 1e-3 + 0.5) / 5), 1),
    }
    assert run.shares == [0.25, 0.5, 0.75, 1.0]  # those classified wrong count as done
    released = Told(registry.load("sdp-crown").build(network="mnist_mlp", images=9), "attack", prepared="folder")
    sdp_crown.bound(released)
    assert opened[1] == ("mnist_mlp", 9, None) and [each[2] for each in asked[4:8]] == [1.0, 0.25, 0.5, 1.5]


def test_each_arm_asks_its_method_for_the_margins(monkeypatch):
    network, x, labels = SimpleNamespace(outputs=3), torch.rand(19, 4), torch.arange(19) % 3
    naive, attacked, certified = [], [], []

    def lip_naive(network, x, radii, c, shape):
        naive.append((network, radii, c, shape))
        return "naive"

    def attack_of(network, x, radii, c, *, generator):
        assert len(x) == len(radii) == len(c) and generator == "generator"
        attacked.append((len(x), radii.unique().tolist()))
        return (f"attack {len(attacked)}", "the points")

    def certify(network, x, radii, labels, **how):
        certified.append((len(x), radii.tolist(), labels, how))
        for steps in (3, 4):
            yield SimpleNamespace(relaxation=SimpleNamespace(steps=steps), margins=f"margins {steps}")

    monkeypatch.setattr(bounds, "lip_naive", lip_naive)
    monkeypatch.setattr(attack, "attack", attack_of)
    monkeypatch.setattr(certificate, "certified_margins", certify)
    study = registry.load("sdp-crown").build(iterations=7)
    found, spent = {}, {}
    for arm in study.arms:
        run = Told(study, arm.name)
        found[arm.name] = list(sdp_crown.margins(run, network, x, labels, 0.25, "shape"))
        spent[arm.name] = run.spent
    searched = ("sdp-crown", "sdp-crown-paper", "alpha-crown", "alpha-crown-free")
    assert found == {name: ["margins 3", "margins 4"] for name in searched} | {
        "lip-naive": ["naive"],
        "attack": ["attack 1", "attack 2", "attack 3"],
    }
    assert spent == {name: {"optimizer_steps": 7} if name in searched else {} for name in found}
    ((of, radii, c, shape),) = naive
    assert of is network and radii.tolist() == [0.25] * 19 and radii.dtype == torch.float64 and shape == "shape"
    assert torch.equal(c, certificate.specifications(labels, 3))
    assert attacked == [(8, [0.25]), (8, [0.25]), (3, [0.25])]
    common = {"shape": "shape", "search": bounds.Search(iterations=7)}
    assert [how for *_, how in certified] == [
        {"method": "sdp-crown", "slopes": "free", "offset": "ball-box", **common},
        {"method": "sdp-crown", "slopes": "crown", "offset": "theorem", **common},
        {"method": "alpha-crown", "slopes": "crown", **common},
        {"method": "alpha-crown", "slopes": "free", **common},
    ]
    assert all(each[:3] == (19, [0.25] * 19, labels) for each in certified)


# --- nait -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "stored", "stages"),
    [
        ("nait", None, (1, 2, 3)),
        ("nait", 2, (3,)),
        ("nait", 3, ()),
        ("corrected", 1, (2, 3)),
        ("mce-hard", None, (1, 2, 3)),
        ("nait-exact", None, (1, 2, 3)),
    ],
)
def test_a_stage_of_nait_is_measured_for_both_policies_and_kept(monkeypatch, arm, stored, stages):
    made, opened = [], []

    class Stages:
        def __init__(self, world, policy, recipe, seed):
            assert seed == 4
            made.append(self)
            self.policy, self.recipe, self.labels, self.stage, self.asked = policy, recipe, f"{policy} labels", 0, []
            self.positives_kept, self.negatives_kept = 0.75, 0.25

        def train(self, **how):
            self.asked.append(how)
            return 1000 + len(made)

        def scores(self, chains):
            shown = {"strong": ([0.9, 0.5], [0.2, 0.7]), "weak": ([0.5, 0.1], [0.4, 0.6])}[self.policy]
            return [torch.tensor(each) for each in shown] if chains is world.test else f"{self.policy} validation"

        def restore(self, state):
            self.restored = state

        def state(self):
            return f"{self.policy} state"

    world = SimpleNamespace(
        outcomes={"strong": torch.ones(3, 2), "weak": torch.tensor([[0, 1], [1, 0]])},
        test=SimpleNamespace(right=torch.tensor([1, 1, 0, 0]), first_errors=[-1, 0]),
        train=SimpleNamespace(right="truth"),
        validation=SimpleNamespace(first_errors="of validation"),
    )

    def noise(labels, truth):
        assert truth == "truth"
        return SimpleNamespace(f1=f"{labels} f1", false_positive_rate="fpr", false_negative_rate="fnr")

    def first_errors(shown, gold, threshold=0.5):
        assert gold == [-1, 0]
        return SimpleNamespace(f1=(shown[0][0].item(), threshold), error_accuracy="errors", correct_accuracy="correct")

    def open_world(*given, **named):
        opened.append((given, named))
        return world

    monkeypatch.setattr(worlds_steps, "StepStages", Stages)
    monkeypatch.setattr(worlds_steps.StepWorld, "open", open_world)
    monkeypatch.setattr(worlds_steps, "best_threshold", lambda shown, gold: f"best of {shown} {gold}")
    monkeypatch.setattr(worlds_steps, "first_errors", first_errors)
    monkeypatch.setattr(nait, "label_noise", noise)
    kept = None if stored is None else {"stage": stored, "strong": "s", "weak": "w"}
    run = Told(registry.load("nait").build(steps=6, batch_size=5), arm, prepared="folder", stored=kept)
    nait_study.train(run)
    assert opened == [(("folder", 4), {"train": 3000, "test": 1000})]
    assert [each.policy for each in made] == ["strong", "weak"]
    assert all(each.asked == [{"steps": 6, "batch_size": 5, "learning_rate": 1e-2}] * len(stages) for each in made)
    assert [getattr(each, "restored", None) for each in made] == ([None, None] if kept is None else ["s", "w"])
    judged = (
        {"calls": 6 + 2} if arm.startswith("nait") and kept is None else {}
    )  # those who were judged are paid for once
    steps = {"optimizer_steps": 2 * 6 * len(stages), "trained_tokens": 2 * 1002 * len(stages)} if stages else {}
    assert run.spent == judged | steps and run.phases <= {"build"}
    assert run.kept == [{"stage": stage, "strong": "strong state", "weak": "weak state"} for stage in stages]
    wanted = {}
    for stage in stages:
        for policy, first, area in (("strong", 0.9, 0.75), ("weak", 0.5, 0.25)):
            first = pytest.approx(first)
            measured = {
                "first_error_f1": (first, 0.5),
                "first_error_f1_tuned": (first, f"best of {policy} validation of validation"),
                "error_accuracy": "errors",
                "correct_accuracy": "correct",
                "step_auroc": pytest.approx(area),
                "label_f1": f"{policy} labels f1",
                "label_false_positives": "fpr",
                "label_false_negatives": "fnr",
            }
            if stage > 1 and arm.startswith("nait"):
                measured |= {"positives_kept": 0.75, "negatives_kept": 0.25}
            wanted |= {(name, stage, policy): (value, 1) for name, value in measured.items()}
        # Ranks 4, 2, 1, 3 and 3, 1, 2, 4; the first step alone is right by both, and the third wrong by both, at 0.5.
        wanted[("equal_verdicts", stage)] = (3, 4)
        wanted[("score_correlation", stage)] = (pytest.approx(1 - 6 * (1 + 1 + 1 + 1) / (4 * 15)), 1)
    assert run.told == wanted


# --- entropy-tools --------------------------------------------------------------------------------------------------


def test_an_arm_of_entropy_tools_trains_as_all_do_and_tells_what_it_did(monkeypatch):
    asked, opened = [], []
    found = SimpleNamespace(
        right=[1, 0],
        calls=[3, 5],
        useless=[0, 2],
        reduced={("policy", "useful"): (3, 4), ("policy", "repeat"): (1, 1), ("start", "stray"): (0, 0)},
    )

    def reinforce(run, made, look, **how):
        asked.append((made, how))
        look(SimpleNamespace(at={"optimizer_steps": 20}, so_far=lambda name, right: {"right": [0.5, *right[1:]]}[name]))

    def open_world(*given, **named):
        opened.append((given, named))
        return SimpleNamespace(measure=lambda made: found, names=["a", "b"], reinforce=reinforce)

    monkeypatch.setattr(lookup_world.LookupWorld, "open", open_world)
    run = Told(registry.load("entropy-tools").build(), "count-weak", prepared="folder")
    entropy_tools.train(run)
    ((made, how),) = asked
    assert opened == [((4, "folder"), {"test": 256})]
    assert (made.steps, made.prompts_per_step, made.num_generations, made.seed) == (80, 8, 8, 4)
    assert (made.learning_rate, made.max_new_tokens) == (3e-4, lookup_world.MAX_NEW_TOKENS)
    assert how == {"evaluations": 4, "reward": "count", "weight": 0.02}
    assert run.told == {
        ("accuracy", 20): {"a": 1, "b": 0},
        ("accuracy_so_far", 20): {"a": 0.5, "b": 0},
        ("calls", 20): {"a": 3, "b": 5},
        ("useless_calls", 20): {"a": 0, "b": 2},
        ("reducing", 20, "useful", "policy"): (3, 4),
        ("reducing", 20, "repeat", "policy"): (1, 1),
    }


def test_a_signal_of_the_pilot_costs_both_thoughts_of_each_question(tmp_path):
    drops = {"gold": [1.0, 2.0], "distractor": [0.5, 0.0], "repeat": [0.0, -1.0]}
    copied = {"gold": [0.25, 0.0], "distractor": [0.5, 0.0], "repeat": [1.0, 0.75]}
    found = dict.fromkeys(("entropy", "overlap"), drops) | {"copied": copied}
    (tmp_path / "drops.json").write_text(json.dumps({"ids": ["a", "b"], "found": found}))
    study = registry.load("entropy-tools-pilot").build()
    wanted = {(f"drop_{given}",): dict(zip("ab", values, strict=True)) for given, values in drops.items()}
    shares = {("copied", given): dict(zip("ab", values, strict=True)) for given, values in copied.items()}
    for arm, further in (("entropy-fall", shares), ("word-overlap", {})):
        run = Told(study, arm, prepared=tmp_path)
        entropy_tools_pilot.signal(run)
        assert run.told == wanted | further
        assert run.spent == {"generated_tokens": 2 * evidence_world.THINK * 3 * 2}


# --- nested-games ---------------------------------------------------------------------------------------------------


def test_games_are_told_apart_with_the_smallest_lead_over_chance():
    """Four games and two held out, of unequal numbers of episodes."""
    games = {"sums": (0, 0, 0, 1), "matrix": (1, 1, 0), "tictactoe": (1, 0), "spy": (1, 0, 1, 0, 0)}
    held = {"larger-sums": (0, 1), "mirrored-tictactoe": (1, 1, 1, 0)}
    valid = {"sums": 0.5, "matrix": 1.0, "tictactoe": 0.0, "spy": 0.25, "larger-sums": 0.0, "mirrored-tictactoe": 0.0}
    asked = []

    def evaluate(makers, *, episodes):
        asked.append((makers, episodes))
        wins = held if makers is nested_world.TRANSFER else games
        return {
            name: [SimpleNamespace(seed=place, success=won, valid=valid[name]) for place, won in enumerate(its)]
            for name, its in wins.items()
        }

    run = Told(registry.load("nested-games").build(episodes=6), "base")
    nested_games.judged(run, SimpleNamespace(evaluate=evaluate), {"step": 3}, 6)
    assert asked == [
        ({name: game.make for name, game in nested_world.GAMES.items()}, 6),
        (nested_world.TRANSFER, 6),
    ]
    assert run.told == {
        ("success", 3): {f"{name} {place}": won for name, its in games.items() for place, won in enumerate(its)},
        ("transfer", 3): {f"{name} {place}": won for name, its in held.items() for place, won in enumerate(its)},
        **{(name, 3): (sum(its), len(its)) for name, its in (games | held).items()},
        ("worst_lead", 3): (pytest.approx(2 / 5 - 0.38), 1),  # of the spy: the others lead by 0.15, 0.17, 0.29
        ("valid", 3): (pytest.approx((4 * 0.5 + 3 * 1.0 + 0 + 5 * 0.25) / 14), 1),  # of the games learnt from alone
    }


def test_the_base_of_nested_games_is_asked_once_before_any_step(monkeypatch):
    asked = []
    monkeypatch.setattr(nested_world.NestedWorld, "open", lambda seed, folder: (seed, folder))
    monkeypatch.setattr(nested_games, "judged", lambda run, *given: asked.append(given))
    run = Told(registry.load("nested-games").build(episodes=9), "base", prepared="folder")
    nested_games.train(run)
    assert asked == [((4, "folder"), {"step": 0, "games": 0, "generated_tokens": 0}, 9)] and not run.told


def test_a_look_of_nested_games_leaves_out_a_game_that_was_not_played(monkeypatch):
    looks = []

    class World:
        open = staticmethod(lambda *_: World)
        reinforce = staticmethod(lambda run, made, name, look, **how: looks.append((look, name, how)))

    monkeypatch.setattr(nested_world, "NestedWorld", World)
    monkeypatch.setattr(nested_games, "judged", lambda *_: None)
    run = Told(registry.load("nested-games").build(), "mixed")
    nested_games.train(run)
    ((look, name, how),) = looks
    seen = {"entropy": 0.7, "success/sums": 0.25, "success/spy": 0.0}
    look(SimpleNamespace(at={"step": 2}, gradient_variation=1.5, recent=lambda key: seen.get(key, math.nan)))
    assert (name, how) == ("mixed", {"evaluations": 2})
    assert run.told == {
        ("entropy", 2): (0.7, 1),
        ("gradient_variation", 2): (1.5, 1),
        ("success_in_training", 2, "sums"): (0.25, 1),
        ("success_in_training", 2, "spy"): (0.0, 1),
    }


# --- sppo -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("updates", "evaluations", "looks"), [(5, 2, (0, 2, 4, 5)), (3, 9, (0, 1, 2, 3)), (4, 2, (0, 2, 4))]
)
def test_sppo_is_looked_at_now_and_then_and_at_the_end(monkeypatch, updates, evaluations, looks):
    from equipoise.reinforcement import worlds_sequences

    class Training:
        generated_tokens = 30

        def __init__(self, world, *, seed, **settings):
            assert (world, seed) == ("world of 4", 4)
            self.done, self.estimator = (
                0,
                SimpleNamespace(predictions=lambda: torch.tensor([0.1, 0.2, 0.4]), parameters=17),
            )

        def solve_rates(self):
            return torch.tensor([0.0, 0.3, 0.6]) + 0.1 * self.done**2 / 10

        def update(self):
            self.done += 1
            self.zero_advantages = self.done / 8

        def state(self):
            return {"done": self.done}

        def load(self, state):
            self.done = state["done"]

    monkeypatch.setattr(worlds_sequences, "Training", Training)
    monkeypatch.setattr(worlds_sequences.World, "make", lambda seed: f"world of {seed}")
    run = Told(registry.load("sppo").build(updates=updates, evaluations=evaluations), "sppo")
    kept = []
    run.checkpoint = lambda state: kept.append(json.loads(json.dumps(state)))
    sppo.train(run)
    rates = [0.3 + done**2 / 100 for done in looks]
    wanted = {
        ("solve_rate", done, 30 * done): (pytest.approx(rate), 1) for done, rate in zip(looks, rates, strict=True)
    }
    for before, done in pairwise(looks):
        share = sum(range(before + 1, done + 1)) / 8 / (done - before)
        wanted["zero_advantage_share", done, 30 * done] = (pytest.approx(share), 1)
        wanted["critic_spearman", done, 30 * done] = (pytest.approx(1.0), 1)
        now = np.array([0.0, 0.3, 0.6]) + done**2 / 100
        brier = np.mean((np.array([0.1, 0.2, 0.4]) - now) ** 2 + now * (1 - now))
        wanted["critic_brier", done, 30 * done] = (pytest.approx(brier), 1)
    area = sum((one + other) / 2 for one, other in pairwise(rates)) / (len(looks) - 1)
    wanted["solve_rate_area", updates, 30 * updates] = (pytest.approx(area), 1)
    wanted["critic_parameters", updates, 30 * updates] = (17, 1)
    assert run.told == wanted and run.spent == {"generated_tokens": 30 * updates} and run.phases == {"build"}
    assert [each["training"]["done"] for each in kept] == list(looks)
    again = Told(registry.load("sppo").build(updates=updates, evaluations=evaluations), "sppo", stored=kept[1])
    again.told = {key: value for key, value in run.told.items() if key[1] <= looks[1]}
    sppo.train(again)
    assert again.told == run.told and again.spent == {"generated_tokens": 30 * (updates - looks[1])}
