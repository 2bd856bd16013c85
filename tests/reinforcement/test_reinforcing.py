"""What the job does around the loop: what a plan times, who starts where, what is rehearsed, kept, compared and shown."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.data.problems import Problem
from equipoise.reinforcement import reinforcing
from equipoise.reinforcement.critic import Critic
from equipoise.reinforcement.job import reinforce
from equipoise.reinforcement.measures import Solved
from equipoise.reinforcement.recipe import recipe
from equipoise.reinforcement.reinforcing import Reinforcing
from reinforcement_world import PROBLEMS, SMALL, model


def odd(completions, **_):
    return [float(len(each) % 2) for each in completions]


HOW = {**SMALL, "eval_samples": 2, "evaluate_every": 1, "reward": odd, "method": "grpo", "num_generations": 2}


def test_what_a_plan_times_and_shows(monkeypatch):
    """Eight prompts and at most 16 tokens are timed; training takes half as long again as writing."""
    timed = []
    monkeypatch.setattr(
        reinforcing, "tokens_per_second", lambda lm, asked, most, temperature: timed.append((asked, most)) or 4.0
    )
    pool = [Problem(f"p{n}", f"yes {n}", (f"{n}", "b")) for n in range(12)]
    plan = reinforce.plan(model(), prompts=pool, eval_prompts=PROBLEMS, **{**HOW, "max_new_tokens": 20})
    assert timed == [([each.prompt for each in pool[:8]], 16)]
    assert plan.seconds == 1.5 * plan.generated_tokens / 4 and plan.critic_parameters == 0
    assert plan.first == tuple({"prompt": f"yes {n}", "gold": [f"{n}", "b"]} for n in range(3))
    assert plan.problems == {"to learn from": 12, "to measure on": 5} and "yes 0" in plan.shown
    parameters = sum(each.numel() for each in model().model.parameters())
    assert plan.trained_parameters == parameters
    with_critic = reinforce.plan(
        model(), prompts=pool, **{**HOW, "method": "sppo", "num_generations": None, "max_new_tokens": 3}
    )
    expected = sum(each.numel() for each in Critic.of(model(), seed=0).parameters())
    assert with_critic.critic_parameters == expected and timed[-1][1] == 3


def test_what_is_rehearsed_and_kept_of_before(tmp_path, monkeypatch):
    """Once, before the first step; a run that goes on has been rehearsed, and has its measurement from before."""
    rehearsed, kept, save = [], [], reinforcing.save_state
    monkeypatch.setattr(reinforcing, "rehearse", lambda model, *, writes: rehearsed.append(writes))
    monkeypatch.setattr(reinforcing, "save_state", lambda path, state: kept.append(path.name) or save(path, state))
    how = {**HOW, "save_every": 1}
    alone = reinforce(model(), prompts=PROBLEMS, **how)
    assert rehearsed == ["nothing"] and kept == [] and math.isnan(alone.gap)
    assert alone.names["model"] == model().name
    written = reinforcing.write_checked

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(reinforcing, "write_checked", killed)
    with pytest.raises(KeyboardInterrupt):
        reinforce(model(), prompts=PROBLEMS, out=tmp_path / "out", **how)
    assert rehearsed == ["nothing", "model"] and kept[0] == "before.safetensors"
    assert set(kept[1:]) == {"state.safetensors"}
    kept.clear()
    monkeypatch.setattr(reinforcing, "write_checked", written)
    again = reinforce(model(), prompts=PROBLEMS, out=tmp_path / "out", **how)
    assert rehearsed == ["nothing", "model"] and "before.safetensors" not in kept
    assert again.path == alone.path and again.tokens == alone.tokens and again.alike == alone.alike


@pytest.mark.parametrize(("kind", "starts"), [("model", True), ("critic", False)])
def test_a_critic_that_is_one_starts_where_it_is(kind, starts, tmp_path, monkeypatch):
    """Another model's body with a new head is told the mean reward; a critic that was trained knows more."""
    if kind == "model":
        model(5).save(tmp_path / "c")
    else:
        Critic.of(model(5), seed=0).save(tmp_path / "c", model().tokenizer)
    began = []
    monkeypatch.setattr(Critic, "start_at", lambda self, mean: began.append(mean))
    monkeypatch.setattr(reinforcing, "rehearse", lambda *_, **__: None)
    result = reinforce(
        model(),
        prompts=PROBLEMS,
        critic=tmp_path / "c",
        **{**HOW, "method": "sppo", "num_generations": None, "steps": 1},
    )
    assert began == ([pytest.approx(result.before["pass@1"].value)] if starts else [])


def solved(texts, greedy, rewards, lengths, missing=0):
    return Solved(
        np.array(rewards), np.array(lengths, float), np.array(greedy), np.arange(len(texts)), tuple(texts), missing, 7
    )


def request(**changes):
    problems = tuple(Problem(f"p{n}", f"q{n}", (f"{n}", "b")) for n in range(6))
    given = dict.fromkeys(Reinforcing.__dataclass_fields__) | {
        "recipe": recipe("grpo", max_new_tokens=64), "tasks": SimpleNamespace(measured=problems),
    }  # fmt: skip
    return Reinforcing(**{**given, **changes})


def test_answers_that_changed_are_shown_first():
    before = solved("abcdef", [0.0, 0.25, 0, 0, 0, 1], [[0.0, 1.0]] * 6, [[1, 2]] * 6)
    after = solved("abCDef", [0.5, 0.75, 0, 1, 0, 1], [[0.0, 1.0]] * 6, [[1, 2]] * 6)
    found = request()._answers(before, after)
    assert [(each.prompt, each.gold, each.before, each.after) for each in found] == [
        ("q2", "2 | b", "c", "C"), ("q3", "3 | b", "d", "D"), ("q0", "0 | b", "a", "a"), ("q1", "1 | b", "b", "b")
    ]  # fmt: skip
    assert [(each.reward_before, each.reward_after) for each in found] == [(0, 0), (0, 1), (0, 0.5), (0.25, 0.75)]


def test_lengths_values_and_what_is_missing():
    some = solved("ab", [1.0, 0.0], [[1.0, 0.0], [1.0, 0.5]], [[2, 30], [4, 50]], missing=1)
    assert reinforcing._lengths(some) == {"right": 3.0, "wrong": 40.0}
    assert reinforcing._values(some) == pytest.approx(
        {"greedy_accuracy": 0.5, "pass@1": 0.5, "pass@2": 1.0, "reward": 0.625}
    )
    right = solved("a", [1.0], [[1.0, 1.0]], [[2, 4]])
    wrong = solved("a", [0.0], [[0.0, 0.0]], [[2, 4]])
    assert reinforcing._lengths(right)["right"] == reinforcing._lengths(wrong)["wrong"] == 3
    assert math.isnan(reinforcing._lengths(right)["wrong"]) and math.isnan(reinforcing._lengths(wrong)["right"])
    assert reinforcing._missing(some, right) == [
        "1 of 4 responses before had nothing to be judged by, and count as wrong."
    ]


def test_what_the_written_model_is_compared_on(monkeypatch):
    """Its own likeliest answers to 16 prompts at most, cut at 32 tokens; only what it wrote is compared."""
    asked = []

    def roll_out(language_model, prompts, **how):
        asked.append((len(prompts), how))
        ids = torch.tensor([[5, 6, 0]] * len(prompts))
        return SimpleNamespace(prompts=[(1, 2)] * len(prompts), ids=ids, mask=ids > 0)

    monkeypatch.setattr(reinforcing, "roll_out", roll_out)
    many = SimpleNamespace(measured=tuple(PROBLEMS) * 4)
    found = request(tasks=many)._compared(None, None)  # type: ignore[arg-type]
    assert asked == [(16, {"samples": 1, "max_new_tokens": 32, "temperature": 0.0, "seed": 0})] and len(found) == 16
    assert {(each.input_ids, each.labels) for each in found} == {((1, 2, 5, 6), (-100, -100, 5, 6))}


@pytest.mark.parametrize(("environment", "held_out", "met", "said"), [
    (False, False, 5, ["on the prompts that were learnt from: give --eval-prompts"]), (False, False, 0, []),
    (False, False, 4, ["4 of the 5 prompts that before and after are compared on were learnt from, too."]),
    (False, True, 0, ["5 of the prompts were held out"]),
    (True, False, 5, ["on 5 episodes that were learnt from: there are too few"]), (True, True, 0, ["on 5 seeds that"]),
    (True, True, 2, ["on 5 seeds that were not", "2 of these 5 begin with a text that was learnt from"]),
])  # fmt: skip
def test_what_is_said_of_the_comparison(environment, held_out, met, said):
    tasks = SimpleNamespace(notes=("A note.",), measured=PROBLEMS, met=met, environment=environment, held_out=held_out)
    notes = request(tasks=tasks)._notes()
    assert notes[0] == "A note." and len(notes) == 1 + len(said)
    assert all(part in note for part, note in zip(said, notes[1:], strict=True))
    rated = SimpleNamespace(rates=SimpleNamespace(left_out=3))
    more = request(tasks=tasks, source=rated)._notes()
    assert more == (*notes, "3 rates are of prompts that are not learnt from, and were left out.")
    for source in (SimpleNamespace(rates=None), SimpleNamespace(rates=SimpleNamespace(left_out=0))):
        assert request(tasks=tasks, source=source)._notes() == notes
