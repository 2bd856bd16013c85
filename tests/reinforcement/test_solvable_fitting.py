"""What `solvable fit` does around its optimizer steps, by hand: sampling, looks, measures on which problems, words."""

import contextlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.rows import Rows
from equipoise.data.problems import Problem
from equipoise.data.records import Message
from equipoise.reinforcement import solvable
from equipoise.reinforcement import solvable_fitting as fitting
from equipoise.reinforcement.solvable_fitting import Fitting, Sampled
from equipoise.reinforcement.solvable_job import FitSettings, fit
from reinforcement_world import model

PROBLEMS = [Problem(f"p{i}", f"yes {i}", ("yes", "no")) for i in range(60)]
PARTS = tuple(solvable.divide([each.id for each in PROBLEMS], 0))


def request(**changes):
    given = dict.fromkeys(Fitting.__dataclass_fields__) | {
        "problems": tuple(PROBLEMS), "groups": tuple(each.id for each in PROBLEMS), "parts": PARTS, "names": {"model": "m"},
        "settings": FitSettings(epochs=3, batch_size=10, samples=2), "save_every": 1,
    }  # fmt: skip
    return Fitting(**{**given, **changes})


class Critic:
    """As much of one as the fitting asks for."""

    def __init__(self):
        self.began, self.loaded = [], []
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.start_at = self.began.append
        self.load_state_dict = self.loaded.append

    def parameters(self):
        return [self.weight]

    def state_dict(self):
        return {"weight": self.weight}


def test_the_settings_of_the_critic():
    """24 problems, ten at a time: three steps a pass."""
    found = request()._training(Critic(), 24)
    assert (found.steps, found.batch_size, found.learning_rate, found.seed) == (9, 10, 5e-4, 0)
    assert request(settings=FitSettings(epochs=1, batch_size=99))._training(Critic(), 24).batch_size == 24
    own = request(settings=FitSettings(learning_rate=0.123456789, batch_size=12, epochs=2))
    assert own._training(Critic(), 24).steps == 4
    assert own._resolved(Critic())["learning_rate"] == 0.123457 and own._resolved(Critic())["batch_size"] == 12


@pytest.mark.parametrize(("losses", "kept", "steps"), [
    ([0.5, 0.4, 0.6, 0.3, 0.7, 0.8, 0.1], 9, 15),  # the best look is the third; two behind it are no better
    ([0.5, 0.5, 0.5], 0, 6), ([0.5, 0.1, 0.2, 0.1], 3, 9),
])  # fmt: skip
def test_a_look_a_pass_at_the_problems_for_stopping(losses, kept, steps, monkeypatch):
    asked = request(settings=FitSettings(epochs=6, batch_size=10, patience=2))
    values, seen, critic = iter(losses), [], Critic()
    watched = [i for i, part in enumerate(PARTS) if part == "stopping"]
    rates = np.linspace(0, 1, 60)

    def said(critic, own, rows, at_once):
        assert rows == [[place] for place in watched] and at_once == 64
        return np.zeros(len(rows))

    def log_losses(p, its):
        assert (its == rates[watched]).all() and (p == 0.5).all()
        return np.array([next(values)])

    def run(critic, step, draw, settings, *, collate, callbacks, title, **others):
        first = [place for number in range(3) for place in draw(number)][:24]
        assert sorted(first) == chosen and settings.steps == 18
        batch = collate([chosen[0], chosen[2]])
        assert batch["input_ids"].tolist() == [[chosen[0]], [chosen[2]]]
        assert batch["rewards"].tolist() == pytest.approx(rates[[chosen[0], chosen[2]]].tolist())
        for number in range(1, settings.steps + 1):
            critic.weight.data.fill_(number)
            seen.append(number)
            if callbacks[0](SimpleNamespace(step=number)):
                break
        return SimpleNamespace(steps=number)

    chosen = [i for i, part in enumerate(PARTS) if part == "fit"]
    monkeypatch.setattr(fitting, "logits", said)
    monkeypatch.setattr(solvable, "log_losses", log_losses)
    monkeypatch.setattr(fitting, "fit", run)
    own = SimpleNamespace(pad_id=0, device="cpu")
    learnt, notes = asked._learn(critic, own, [[place] for place in range(60)], rates, None)  # type: ignore[arg-type]
    assert critic.began == [pytest.approx(rates[chosen].mean())] and notes == []
    assert (learnt.kept_step, learnt.steps, seen[-1]) == (kept, steps, steps)
    looks = steps // 3
    assert learnt.path == [{"step": 3.0 * n, "loss": losses[n]} for n in range(looks + 1)]
    assert [each["weight"].tolist() for each in critic.loaded] == [[float(kept)] * 3]


def test_what_is_measured_on_which_problems(monkeypatch, tmp_path):
    """The calibration is of its own part, the mean rate and the length of all but the test problems."""
    said, lengths = np.linspace(-2, 2, 60), [1 + i % 7 for i in range(60)]
    rewards = np.array([[float(i % 3 > 0), float(i > 20)] for i in range(60)])
    rates = rewards.mean(1)
    monkeypatch.setattr(fitting, "logits", lambda critic, own, rows, at_once: said)
    sampled = Sampled(rewards, 0, 7, tuple(f"r{i}" for i in range(60)))
    learnt = fitting.Learnt([{"step": 0.0, "loss": 1.0}], 3, {}, 6)
    seen = []
    measures = solvable.measures
    monkeypatch.setattr(solvable, "measures", lambda p, *more: seen.append(p) or measures(p, *more))
    scorer, found = request()._measured(None, None, [[0] * n for n in lengths], sampled, learnt, tmp_path)  # type: ignore
    part = {name: [i for i, each in enumerate(PARTS) if each == name] for name in solvable.SHARES}
    before, test = sorted([*part["fit"], *part["stopping"], *part["calibration"]]), part["test"]
    calibration = fitting.Calibration.of(said[part["calibration"]], rates[part["calibration"]])
    p = calibration(said)
    by_length = fitting.Calibration.of(np.log(lengths)[before], rates[before], rising=False)(np.log(lengths)[test])
    for one, other in zip(
        seen, (p[test], 1 / (1 + np.exp(-said[test])), by_length, np.full(len(test), rates[before].mean())), strict=True
    ):
        assert one == pytest.approx(other)
    assert found["spread"] == scorer.spread == (p[test].min(), p[test].max())
    assert (found["slope"], found["intercept"]) == (calibration.slope, calibration.intercept)
    assert (found["kept_step"], found["steps"], found["path"]) == (3, 6, ({"step": 0.0, "loss": 1.0},))
    assert found["solved"].value == pytest.approx(rates[test].mean())
    worst = sorted(test, key=lambda i: -abs(p[i] - rates[i]))[:6]
    assert [each.id for each in found["surprises"]] == [f"p{i}" for i in worst]
    first = found["surprises"][0]
    assert (first.gold, first.response) == ("yes | no", f"r{worst[0]}")
    assert (first.predicted, first.rate) == (pytest.approx(p[worst[0]]), rates[worst[0]])
    assert len((tmp_path / "outcomes.jsonl").read_text().splitlines()) == 60


@pytest.mark.parametrize(("away", "fine"), [(0.0, True), (0.9e-3, True), (1.1e-3, False), (math.nan, False)])
def test_the_written_scorer_must_say_the_same(away, fine, monkeypatch, tmp_path):
    rewards = np.array([[0.0, 1.0], [1.0, 1.0]] * 30)
    scores, few = iter([0.5 + away, 0.5]), []
    scorer = SimpleNamespace(
        save=lambda folder: None, of_tokens=lambda rows: few.append(len(rows)) or np.full(len(rows), next(scores))
    )
    asked = request(problems=tuple(PROBLEMS), opened=contextlib.nullcontext)
    monkeypatch.setattr(Fitting, "_critic", lambda self, lm: (Critic(), SimpleNamespace(device="cpu")))
    monkeypatch.setattr(Fitting, "_answering", lambda self, folder: contextlib.nullcontext(
        (SimpleNamespace(source="here"), None, None)))  # fmt: skip
    monkeypatch.setattr(Fitting, "_encode", lambda self, *given: [[1]] * 70)
    monkeypatch.setattr(fitting, "rewarding", lambda verifier: None)
    monkeypatch.setattr(fitting, "sample", lambda *given: Sampled(rewards, 3, 11, ("r",) * 60))
    monkeypatch.setattr(Fitting, "_learn", lambda self, *given: (None, []))
    monkeypatch.setattr(Fitting, "_measured", lambda self, *given: (scorer, {}))
    monkeypatch.setattr(fitting, "Solvable", SimpleNamespace)
    monkeypatch.setattr(fitting.Scorer, "read", lambda folder, device: scorer)
    if fine:
        found = asked.work(tmp_path)
        assert (found.tokens, found.calls, found.critic_parameters, found.source) == (11, 0, 3, "here")
        assert found.problems == {"fit": 24, "stopping": 6, "calibration": 12, "test": 18}
        assert found.notes[0] == "3 of 120 responses had nothing to be judged by, and count as wrong."
    else:
        with pytest.raises(WorkFailed, match="the written scorer says something else"):
            asked.work(tmp_path)
    assert few == [64, 64]


def test_notes_of_few_and_many():
    none = Sampled(np.zeros((60, 2)), 0, 0, ())
    assert request()._notes(none)[0].startswith("Under 50 test problems (or groups of them) ECE, AUROC")
    assert request(parts=("test",) * 50 + ("fit",) * 10)._notes(none) == []
    assert len(request(parts=("test",) * 49 + ("fit",) * 11)._notes(none)) == 1


def test_rates_that_are_all_alike_of_those_to_learn_from():
    chosen = [i for i, part in enumerate(PARTS) if part == "fit"]
    rewards = np.random.default_rng(0).integers(0, 2, size=(60, 2)).astype(float)
    rewards[chosen] = [1.0, 0.0]
    sampled = Sampled(rewards, 0, 0, tuple(f"r{i}" for i in range(60)))
    with pytest.raises(
        WorkFailed, match=rf"All 24 problems so far are solved in the same share, 0\.5: .*'r{chosen[0]}'"
    ):
        request()._refuse_alike(sampled)
    rewards[chosen[-1]] = 1.0
    request()._refuse_alike(sampled)


def test_what_is_said_where_all_are_alike():
    sampled = Sampled(np.array([[0.0], [0.5]]), 0, 0, ("", " a\n" + "b" * 80))
    assert fitting.alike(Problem("a", "q", ()), sampled, 0, 2).endswith("understands the answers, such as ''.")
    said = fitting.alike(Problem("a", "q", ("g" * 90, "h")), sampled, 1, 2)
    assert said.startswith("All 2 problems so far are solved in the same share, 0.5: use prompts nearer")
    assert said.endswith(f"such as '...{'b' * 80}' (gold: '{'g' * 79}).")
    shorter = Sampled(sampled.rewards, 0, 0, ("", "b" * 80))
    assert f"such as '{'b' * 80}' (gold: 'g | h')." in fitting.alike(Problem("a", "q", ("g", "h")), shorter, 1, 2)


def sampled_by(rows, at_once=4, reward=None, monkeypatch=None):
    asked = []

    def generate(prompts, samples, temperature, seed, keys):
        asked.append((list(prompts), samples, temperature, seed, list(keys)))
        return [f"{prompt}/{n}" for prompt in prompts for n in range(samples)], [[1, 2]] * (len(prompts) * samples)

    settings = FitSettings(samples=3, temperature=0.5, seed=7)
    rewarded = reward or (
        lambda problems, texts: [math.nan if t.endswith("yes 1/2") else float(t[-1] == "0") for t in texts]
    )
    return fitting.sample(PROBLEMS[:6], generate, rewarded, settings, rows, at_once), asked


def test_problems_are_asked_a_few_at_a_time_and_once():
    rows = Rows(None)
    found, asked = sampled_by(rows)
    assert asked == [
        ([f"yes {i}" for i in range(4)], 3, 0.5, 7, [0, 1, 2, 3]), (["yes 4", "yes 5"], 3, 0.5, 7, [4, 5])
    ]  # fmt: skip
    assert found.rewards.tolist() == [[1.0, 0.0, 0.0]] * 6 and (found.missing, found.tokens) == (1, 36)
    assert found.responses == tuple(f"yes {i}/0" for i in range(6))
    assert [row["first"] for row in rows] == [0, 4] and [row["tokens"] for row in rows] == [24, 12]
    again, asked = sampled_by(rows)
    assert asked == [] and again.rewards.tolist() == found.rewards.tolist()
    other = Rows(None)
    for row in rows:
        other.add({**row, "ids": ["x"]} if row["first"] == 4 else row)
    _, asked = sampled_by(other)
    assert [keys for *_, keys in asked] == [[4, 5]]  # another problem stands there now


def test_only_the_first_rewards_are_told_of(monkeypatch):
    said = []
    monkeypatch.setattr(fitting, "say", said.append)
    sampled_by(Rows(None), reward=lambda problems, texts: [0.25] * len(texts))
    assert len(said) == 1 and said[0].startswith("All 4 problems so far are solved in the same share, 0.25")
    sampled_by(Rows(None), reward=lambda problems, texts: [float("yes 5" not in t) for t in texts])
    assert len(said) == 2
    sampled_by(Rows(None), reward=lambda problems, texts: [float(t.endswith("0")) for t in texts])
    assert len(said) == 2
    monkeypatch.setattr(fitting.progress, "is_quiet", lambda: True)
    sampled_by(Rows(None), reward=lambda problems, texts: [0.25] * len(texts))
    assert len(said) == 2


def test_the_first_reward_outside_is_named():
    fitting.refuse_outside(PROBLEMS[:2], torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    for rewards, told in (
        ([[0.0, 1.0], [0.5, 1.01], [2.0, 0.0]], "'p1' is 1.01"), ([[0.0, -0.01], [2.0, 2.0]], "'p0' is -0.01")
    ):  # fmt: skip
        with pytest.raises(BadInput, match=f"problem {told}, expected"):
            fitting.refuse_outside(PROBLEMS, torch.tensor(rewards))


def test_calls_of_a_server():
    pytest.importorskip("inspect_ai")
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    found = fitting.served_calls(["q", turns], 2, 9, 0.5)
    assert [(each.messages, each.sample) for each in found] == [
        ((Message("user", "q"),), 0), ((Message("user", "q"),), 1), (turns, 0), (turns, 1)
    ]  # fmt: skip
    assert {(each.phase, each.max_tokens, each.temperature) for each in found} == {("sample", 9, 0.5)}


def test_the_plan_of_a_fit(monkeypatch):
    timed = []
    monkeypatch.setattr(
        fitting,
        "tokens_per_second",
        lambda lm, asked, most, temperature: timed.append((asked, most, temperature)) or 8.0,
    )
    plan = fit.plan(
        model(),
        prompts=PROBLEMS,
        reward=lambda prompts, **_: [0.0] * len(prompts),
        samples=4,
        max_new_tokens=20,
        epochs=2,
    )
    assert timed == [([each.prompt for each in PROBLEMS[:8]], 16, 1.0)]
    assert plan.estimate == "4,800 generated tokens, 10:00, and the critic"
    assert plan.first == tuple({"prompt": f"yes {i}", "gold": ["yes", "no"]} for i in range(3))
    assert "yes 0" in plan.shown and plan.problems == {"fit": 24, "stopping": 6, "calibration": 12, "test": 18}
    assert plan.critic_parameters > 0 and plan.settings["batch_size"] == 24


def test_prompts_without_room_for_an_answer_are_refused():
    long = [*PROBLEMS[:59], Problem("long", "one " * 300, ("yes",))]
    with pytest.raises(BadInput, match="'long'"):
        fit.plan(model(), prompts=long, reward=lambda prompts, **_: [0.0] * len(prompts))
