"""Episodes in the loop and in the job: what is learnt from, what is measured, and what of it the environment wrote."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.core.files import sha256_file
from equipoise.data.environment import ENVIRONMENTS, open_environment
from equipoise.data.problems import Problem
from equipoise.language.rollouts import score_responses
from equipoise.reinforcement import stages
from equipoise.reinforcement.job import reinforce
from equipoise.reinforcement.playing import Playing, episode_metrics, no_reward, seed_of
from equipoise.reinforcement.recipe import recipe
from equipoise.reinforcement.training import prepare, train
from reinforcement_world import SMALL, model

TALK = ("no", "one two three", "Where was Mulum Kunwick born?")


class Odd:
    """Two or three turns, each worth 0.25 where the model's text has an odd number of characters; won with 0.5 or more."""

    max_turns = 3
    chance = {"success": 0.5}  # noqa: RUF012
    replies = TALK

    def reset(self, seed):
        self.seed, self.turn, self.score = seed, 0, 0.0
        return f"one {TALK[seed % 3]}"

    def step(self, text):
        self.turn += 1
        reward = 0.25 * (len(text) % 2)
        self.score += reward
        done = self.turn == 2 + self.seed % 2
        return self.replies[self.turn % 3], reward, done, {"success": self.score >= 0.5, "valid": len(text) > 3}


HOW = {"method": "grpo", "num_generations": 4, **SMALL}


def played(make=Odd, how=None, penalty=0.0, **settings):
    chosen = recipe(**{**HOW, **settings})
    ready = prepare(model(), chosen)
    playing, seen = Playing(open_environment(make), invalid_penalty=penalty), []
    result = train(
        ready, chosen, playing.problems(range(6)), no_reward, sample=playing, callbacks=[seen.append], **how or {}
    )
    return ready, result, seen


def test_a_step_is_of_episodes():
    _, result, seen = played(penalty=0.125)
    for reached in seen:
        step, metrics = reached.step, reached.metrics
        assert step.rewards.shape == (3, 4) and step.rollouts.owner is not None
        seeds = [seed_of(problem) for problem in step.problems]
        for row, episode in enumerate(step.rollouts.episodes):
            assert episode.seed == seeds[row // 4] and len(episode.turns) == 2 + episode.seed % 2
            gained = sum(0.25 * (len(turn.text) % 2) for turn in episode.turns)
            lost = 0.125 * sum(len(turn.text) <= 3 for turn in episode.turns)
            assert step.rewards[row // 4, row % 4] == pytest.approx(gained - lost)
        assert metrics["generated_tokens"] == int((step.rollouts.owner == 1).sum())
        assert metrics["turns"] == np.mean([len(each.turns) for each in step.rollouts.episodes])
        assert metrics["success"] == np.mean([each.success for each in step.rollouts.episodes])
        assert metrics["length"] == pytest.approx(step.rollouts.mask.sum().item() / 12)
    assert len({reached.metrics["reward"] for reached in seen}) > 1 and result.moved > 0


def test_the_first_ratio_is_1_and_nothing_is_clipped():
    _, _, seen = played()
    for reached in seen:
        found = reached.metrics
        assert (found["clip_fraction_low"], found["clip_fraction_high"], found["approximate_kl"]) == (0, 0, 0)
    first = seen[0].step.rollouts
    scores = score_responses(model().model, first.batch(range(12)))
    assert_close(scores.log_probs.detach(), first.log_probs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"kl_beta": 0.1, "entropy_beta": 0.1}])
def test_the_loss_reads_the_environments_words_as_context_alone(settings):
    """Changing what is written there after the last token of the model, or its place's advantage, changes nothing."""
    settings = {**settings, "aggregate": "token-mean"}
    _, _, seen = played(**settings)
    step = seen[0].step
    chosen = recipe(**{**HOW, **settings})
    mask, present = step.rollouts.mask, step.rollouts.present
    assert (present & ~mask).sum() > 20

    def gradient(step):
        policy, stats = model(), []
        batch = stages.policy_batch(step, range(12), old=None)
        total, count = stages.policy_objective(chosen, stats)(policy.model, batch)
        (total / count).backward()
        return [each.grad for each in policy.model.parameters()], batch, count

    ours, batch, count = gradient(step)
    others = batch["present"] & ~batch["mask"]
    assert count == batch["mask"].sum() and (step.token_advantages[present & ~mask] == 0).all()
    for name in ("advantages", "sampled_log_probs", "reference_log_probs"):
        if name in batch:
            assert (batch[name][others] == 0).all(), name
    # Poison what nobody may read: with other numbers at the environment's places the gradient is the same, bit for bit.
    poisoned = {name: each.clone() for name, each in batch.items()}
    for name in ("advantages", "sampled_log_probs", "reference_log_probs"):
        if name in poisoned:
            poisoned[name][others] = 1e3
    policy, stats = model(), []
    total, count = stages.policy_objective(chosen, stats)(policy.model, poisoned)
    (total / count).backward()
    for expected, each in zip(ours, policy.model.parameters(), strict=True):
        assert torch.equal(expected, each.grad)


def test_token_critics_take_the_models_tokens_as_their_steps():
    _, _, seen = played(method="ppo", num_generations=2, how={"critic": _critic()})
    step = seen[0].step
    mask = step.rollouts.mask
    assert (step.values[~mask] == 0).all() and (step.values[mask] != 0).any()
    assert (step.token_advantages[~mask] == 0).all()


def _critic():
    from equipoise.reinforcement.critic import Critic

    return Critic.of(model(), seed=0)


class Killed(BaseException):
    pass


JOB = {**SMALL, "method": "grpo", "num_generations": 2, "eval_samples": 2, "evaluate_every": 1, "instances": 5}


def test_the_job_plays_and_shows_it(tmp_path):
    result = reinforce(model(), environment=Odd, out=tmp_path / "out", invalid_penalty=0.25, max_turns=2, **JOB)
    assert result.problems == {"to learn from": 5, "to measure on": 64} and result.names["environment"] == "Odd"
    assert set(result.after) == {"greedy_accuracy", "pass@1", "pass@2", "reward", "valid", "finished"}
    assert result.before["finished"].value == result.after["finished"].value == 0.5  # odd seeds take three turns
    assert 0 < result.before["pass@1"].value < 1 and result.chance == {"success": 0.5}
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert {"success", "turns", "valid", "cut", "failed"} <= rows[0].keys()
    assert result.tokens["training"] == sum(row["generated_tokens"] for row in rows)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "without any skill 0.500" in page and "Episodes" in page and "gold answer" not in page
    assert "64 seeds that were not learnt from" in page


def test_what_was_cut_off_in_an_episode_goes_on_to_the_same_bytes(tmp_path):
    whole = reinforce(model(), environment=Odd, out=tmp_path / "whole", save_every=1, **JOB)
    steps = 0

    class Cut(Odd):
        def step(self, text):
            nonlocal steps
            steps += 1
            if steps == cut:
                raise Killed
            return super().step(text)

    Cut.__name__ = "Odd"
    # Before the first step there are 3 episodes of each of 64 seeds, in each of 2 steps 2 of each of 3.
    cut = round(2.5 * 64 * 3) + 2 * round(2.5 * 6)
    with pytest.raises(Killed):
        reinforce(model(), environment=Cut, out=tmp_path / "cut", save_every=1, **JOB)
    again = reinforce(model(), environment=Odd, out=tmp_path / "cut", save_every=1, **JOB)
    for file in ("model.safetensors", "metrics.jsonl"):
        assert sha256_file(tmp_path / "cut" / file) == sha256_file(tmp_path / "whole" / file), file
    assert again.path == whole.path and again.tokens == whole.tokens


class Shut(Odd):
    def step(self, text):
        raise RuntimeError("shut")


def test_an_environment_that_fails_costs_its_episode_and_says_so(tmp_path):
    result = reinforce(model(), environment=Shut, out=tmp_path / "out", **JOB)
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["failed"] for row in rows] == [1, 1] and all(row["missing"] == 6 for row in rows)
    assert any("nothing to be judged by" in note for note in result.notes)
    assert "step of Shut raised RuntimeError: shut" in result.answers[0].before


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "prompts or in an environment: give one of both"),
        ({"environment": Odd, "prompts": [Problem("a", "b", ("c",))]}, "give one of both"),
        ({"environment": Odd, "verifier": "number"}, "verifier are of prompts"),
        ({"environment": "tictactoo"}, "no environment 'tictactoo'"),
        ({"environment": "shop.py:make"}, "no file shop.py"),
        ({"environment": Odd, "replay": 0.5}, "replay is 0.5"),
        ({"environment": Odd, "overlong": 1}, "overlong is 1"),
        ({"environment": int}, "gives a int"),
        (
            {"prompts": [Problem("a", "b", ("c",))], "verifier": "exact", "max_turns": 3},
            "max_turns are of an environment",
        ),
    ],
)
def test_bad_requests(how, said):
    with pytest.raises(BadInput, match=said):
        reinforce(model(), **{**JOB, "instances": None, **how})


SHOP = """class Shop:
    def reset(self, seed):
        return "one"

    def step(self, text):
        return "", 1, True, {}
"""


def test_an_environment_of_a_file(tmp_path):
    file = tmp_path / "shop.py"
    file.write_text(SHOP)
    found = open_environment(f"{file}:Shop")
    assert found.name == "Shop" and found.digest == sha256_file(file) and found.max_turns is None
    assert Playing(found).turns == 8 and Playing(found, 2).turns == 2
    with pytest.raises(BadInput, match=r"has no 'Shp'\. Did you mean 'Shop'"):
        open_environment(f"{file}:Shp")
    file.write_text("1 / 0")
    with pytest.raises(BadInput, match="cannot be loaded: ZeroDivisionError"):
        open_environment(f"{file}:Shop")
    assert all(isinstance(open_environment(name).name, str) for name in ENVIRONMENTS)


def test_metrics_of_composed_episodes():
    from equipoise.language.episodes import Episode, Turn

    def turn(task, done, success):
        return Turn("a", "b", 0.0, {"task": task, "task_done": done, "success": success}, 0, 1, 2)

    one = Episode(
        0, "x", (turn("sums", True, True), turn("chess", False, False), turn("chess", True, False)), 0.5, "done"
    )
    two = Episode(1, "x", (turn("sums", True, False),), 0.0, "turns")
    found = episode_metrics([one, two])
    assert (found["success/sums"], found["success/chess"], found["success"], found["cut"]) == (0.5, 0.0, 0.0, 0.5)


def test_an_advantage_against_the_greedy_answer_plays_it_once_a_problem(monkeypatch):
    asked = []

    def play(self, language_model, problems, *, samples, **how):
        asked.append({"samples": samples, **how})
        episodes = [
            SimpleNamespace(score=k / 4, outcome="failed" if k == 1 else "", turns=[SimpleNamespace(info={})])
            for k in range(len(problems) * samples)
        ]
        return SimpleNamespace(ids=torch.zeros(1), episodes=episodes, lengths=torch.arange(len(episodes)))

    monkeypatch.setattr(Playing, "play", play)
    playing = Playing(open_environment(Odd))
    chosen = recipe(**{**HOW, "method": "remax", "num_generations": 2})
    step = playing(None, chosen, playing.problems(range(3)), [0, 1, 2], no_reward, 5)
    first, greedy = asked
    limits = {"max_new_tokens": chosen.max_new_tokens, "batch_size": chosen.rollout_batch_size}
    assert first == {
        "samples": 2,
        "temperature": chosen.temperature,
        "seed": [chosen.seed, 4],
        "keys": [0, 1, 2],
        **limits,
    }
    assert greedy == {"samples": 1, "temperature": 0.0, "seed": 0, **limits}
    assert step.rewards.tolist() == [[0, 0.25], [0.5, 0.75], [1, 1.25]] and step.index == 5
    assert step.missing.tolist() == [[False, True], [False, False], [False, False]]
    assert step.greedy_rewards.tolist() == [0, 0.25, 0.5] and step.greedy_lengths.tolist() == [0, 1, 2]
