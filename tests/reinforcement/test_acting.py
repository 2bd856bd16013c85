"""The job with several environments, recorded actions and rewards for calls: what it reads, refuses and does."""

import json

import pytest
import torch

from chat_models import untaught
from equipoise.core.errors import BadInput
from equipoise.core.files import sha256_file
from equipoise.data.environment import open_environment
from equipoise.reinforcement import reinforcing
from equipoise.reinforcement.acting import Acting, refuse_rewards, seeds_of
from equipoise.reinforcement.guiding import Guided
from equipoise.reinforcement.job import reinforce
from equipoise.reinforcement.nested_games import Even, Rotating, Spread
from equipoise.reinforcement.recipe import recipe
from reinforcement_world import SMALL, model

TALK = ("no", "one two three", "yes")


class Short:
    """One turn, solved by a text of an odd number of characters."""

    max_turns = 1
    chance = {"success": 0.5}  # noqa: RUF012

    def reset(self, seed):
        return f"one {TALK[seed % 3]}"

    def step(self, text):
        odd = len(text) % 2
        return "", float(odd), True, {"success": bool(odd)}


class Long(Short):
    """Two turns; the second decides, and each calls a tool."""

    max_turns = 2

    def reset(self, seed):
        self.turn = 0
        return f"two {TALK[seed % 3]}"

    def step(self, text):
        self.turn += 1
        odd = len(text) % 2
        info = {
            "success": bool(odd),
            "owner": "tool",
            "actions": [{"name": "look", "arguments": {}}],
            "call_at": len(text) // 2,
        }
        return TALK[self.turn], float(odd) * (self.turn == 2), self.turn == 2, info


class Never(Long):
    """Two turns that nobody solves."""

    def step(self, text):
        reply, _, done, info = super().step(text)
        return reply, 0.0, done, info | {"success": False}


JOB = {**SMALL, "method": "grpo", "num_generations": 2, "eval_samples": 2, "evaluate_every": 1, "instances": 5}


GROUPS = {"method": "grpo", "num_generations": 2}


def roomy():
    """A model with room for a plan beside the prompt, that seldom ends a turn by itself."""
    return untaught(4, context=512)


def log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("compose", "turns", "name"),
    [("nested", 3, "Short+Long"), ("mixed", None, "Short|Long"), ("rotate", None, "Short|Long")],
)
def test_several_environments(tmp_path, compose, turns, name):
    result = reinforce(model(), environment=[Short, Long], compose=compose, out=tmp_path / "out", **JOB)
    assert result.names["environment"] == name and result.problems == {"to learn from": 5, "to measure on": 64}
    assert {"success/Short", "success/Long"} <= result.after.keys()
    assert result.chance == {"success/Short": 0.5, "success/Long": 0.5}
    rows = log(tmp_path / "out")
    if turns is not None:
        assert all(row["turns"] == turns for row in rows)
    if compose == "rotate":
        assert [row["turns"] for row in rows] == [1, 2]
    if compose == "mixed":  # 3 prompts of a step: the tasks 0, 1, 0, then 1, 0, 1
        assert [row["turns"] for row in rows] == pytest.approx([4 / 3, 5 / 3])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "success/Long" in page and "of its own ends, solved; without any skill 0.500" in page


def test_recorded_actions_guide_what_failed(tmp_path):
    actions = tmp_path / "actions.jsonl"
    rows = [{"id": f"Never-{seed}", "actions": [{"name": "look", "arguments": {"at": "one"}}] * 3} for seed in range(3)]
    rows += [
        {"prompt": "two no", "actions": [{"name": "look", "arguments": {}}]},
        {"id": "x", "error": "lost", "actions": []},
    ]
    actions.write_text("\n".join(map(json.dumps, rows)))
    result = reinforce(roomy(), environment=Never, actions=actions, out=tmp_path / "out", **JOB)
    steps = log(tmp_path / "out")
    assert all(row["hard"] > 0 and row["rescued"] == 0 and row["hint_share"] == 1 for row in steps if row["guided"])
    assert any(row["guided"] > 0 for row in steps)
    assert all(row["generated_tokens"] > row["length"] * 6 for row in steps)  # probes count
    assert result.tokens["training"] == sum(row["generated_tokens"] for row in steps)
    assert any("4 of 5 tasks have recorded actions" in note for note in result.notes)
    assert any("1 rows say that they failed" in note for note in result.notes)
    assert result.names["actions"] == str(actions)
    planned = reinforce.plan(roomy(), environment=Never, actions=actions, **JOB).generated_tokens
    prompt = 2 + 2 + 2 * 2  # the group, it again, and two probes of two lengths of the list of 3
    assert result.resolved["clip_window"] == "behavior"  # it counts where another policy wrote
    assert planned == (2 * 3 * prompt + 64 * (3 * 2 + 2)) * 5 * 2  # tokens of a turn, turns


@pytest.mark.parametrize("kind", ["outcome", "process"])
def test_calls_that_help_are_paid_for(tmp_path, kind):
    how, found = {**JOB, "max_new_tokens": 16, "num_generations": 4}, []
    for name, more in (("one", {}), ("two", {"tool_reward": kind})):
        reinforce(roomy(), environment=Long, out=tmp_path / name, **how, **more)
        found.append(sha256_file(tmp_path / name / "model.safetensors"))
    assert found[0] != found[1]
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert 0 < one[0]["success"] == two[0]["success"]  # it is the same play
    assert (two[0]["reward"] < one[0]["reward"]) == (kind == "outcome")


def acting(**changes):
    how = {
        **dict.fromkeys(["max_turns", "compose", "compose_reward", "keep_widest", "actions", "tool_reward", "no_call"]),
        "environment": Long,
        "chosen": recipe(**{**SMALL, "method": "grpo", "num_generations": 2}),
        "instances": 4,
        "invalid_penalty": 0.0,
        **changes,
    }
    return Acting.read(how.pop("environment"), how.pop("chosen"), **how)


def test_the_stages_are_those_that_were_asked_for(tmp_path):
    chosen = recipe(**{**SMALL, "method": "grpo", "num_generations": 2})
    both = [Short, Long]
    sample, weigh = acting(environment=both, compose="mixed", keep_widest=0.5).stages(model(), chosen)
    assert isinstance(sample, Even) and isinstance(weigh, Spread) and weigh.keep == 0.5
    read = acting(environment=both, compose="rotate")
    assert isinstance(read.stages(model(), chosen)[0], Rotating)
    assert [problem.columns["seed"] for problem in read.problems] == [0, 2, 4, 6]
    assert [problem.columns["seed"] for problem in read.measured] == list(range(8, 72))
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"id": "Long-2", "actions": [{"name": "look", "arguments": {}}]}))
    sample, _ = acting(actions=file).stages(model(), chosen)
    assert isinstance(sample, Guided) and set(sample.actions) == {"Long-2"}
    assert torch.is_tensor(
        acting().stages(model(), chosen)[0](model(), chosen, acting().problems[:1], [0], None, 0).rewards
    )


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"compose": "nested"}, "are of several environments"),
        ({"compose_reward": "min"}, "are of several environments"),
        ({"environment": [Short, Long], "compose": "mixed", "compose_reward": "min"}, "compose is 'mixed'"),
        ({"environment": [Short, Short]}, "two tasks are called 'Short'"),
        ({"no_call": "zero"}, "tool_reward is None"),
        ({"tool_reward": "process", "chosen": recipe("sppo", **SMALL)}, "has a critic"),
        ({"keep_widest": 0.5, "chosen": recipe("sppo", **SMALL)}, "num_generations=2"),
        ({"environment": [Short, Long], "compose": "rotate", "actions": "a.jsonl"}, "use nested"),
        ({"tool_reward": "outcome", "actions": "a.jsonl"}, "use one of them"),
        *(
            ({"environment": [Short, Long], "compose": compose, "chosen": recipe(**{**SMALL, **GROUPS, **more})}, said)
            for compose in ("mixed", "rotate")
            for more, said in (
                ({"select": "dots", "reference_questions": 8}, "another game when it comes again"),
                ({"select": "oracle"}, "another game when it comes again"),
                ({"advantage": "running-mean"}, "running-mean remembers"),
            )
        ),
        *(
            ({"environment": "tictactoe", "chosen": recipe(**{**SMALL, **more})}, said)
            for more, said in (
                (
                    {"method": "sppo"},
                    r"sppo takes rewards in \[0, 1\], and an episode can come to -0.5: use --method grpo",
                ),
                ({"method": "ppo-bce"}, "use --method grpo"),
                ({"method": "grpo", "select": "dots", "reference_questions": 8}, "'dots', which takes rewards"),
            )
        ),
        ({"environment": ["corridor", "spy"], "chosen": recipe("sppo", **SMALL)}, "can come to -0.3"),
        (
            {"invalid_penalty": 0.5, "chosen": recipe("sppo", **SMALL)},
            r"\(with invalid_penalty\) -0.5: use --method grpo",
        ),
        ({"invalid_penalty": 0.5, "chosen": recipe(**{**SMALL, **GROUPS, "select": "oracle"})}, "leave it out"),
    ],
)
def test_what_does_not_go_together(how, said):
    with pytest.raises(BadInput, match=said):
        acting(**how)


def test_actions_of_other_episodes_are_named(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"id": "elsewhere-1", "actions": [{"name": "look", "arguments": {}}]}))
    with pytest.raises(BadInput, match=r"lists of 1 tasks, and none is of an episode that is played.*'Long-0'"):
        acting(actions=file)


class Counted(Short):
    """So many different episodes: a number, which is all that a seed decides."""

    instances = 100

    def reset(self, seed):
        return f"number {seed % self.instances}"


@pytest.mark.parametrize(
    ("count", "instances", "learnt", "measured"),
    [
        (512, 100, 90, 10),
        (512, 30, 30, 30),
        (10, 30, 10, 20),
        (20, 300, 20, 64),
        (512, 1000, 512, 64),
        (900, 1000, 900, 64),
    ],
)
def test_episodes_that_are_counted_are_held_out(count, instances, learnt, measured):
    """No number that is measured is learnt from, wherever one is left."""
    several = type("Several", (Counted,), {"instances": instances})
    read = acting(environment=several, instances=count)
    texts = [{problem.prompt for problem in each} for each in (read.problems, read.measured)]
    assert (len(read.problems), len(read.measured)) == tuple(map(len, texts)) == (learnt, measured)
    assert read.held_out == (not texts[0] & texts[1]) == (learnt < instances)
    assert read.met == (0 if read.held_out else measured)
    assert read.notes == (f"Several has {instances} different episodes: {learnt} are learnt from.",)


def test_of_a_hundred_episodes_the_held_out_are_spread_over_all():
    assert [each.columns["seed"] for each in acting(environment=Counted, instances=512).measured] == list(
        range(0, 100, 10)
    )


@pytest.mark.parametrize("compose", ["nested", "mixed", "rotate"])
def test_composed_environments_say_what_is_met_again(compose):
    class Uncounted(Counted):
        instances = None

        def reset(self, seed):
            return f"other {seed % 50}"

    read = acting(environment=[Counted, Uncounted], compose=compose, instances=200)
    assert read.held_out and "Counted has 100 different episodes: before and after" in read.notes[0]
    assert read.met == 64  # of mixed ones both kinds of first texts


def test_the_job_says_on_which_episodes_it_compares():
    for instances, said in (
        (None, ["on 64 seeds that were not learnt from", "64 of these 64 begin with a text that was learnt from"]),
        (30, ["on 30 episodes that were learnt from: there are too few"]),
        (100, ["on 10 seeds that were not learnt from"]),
    ):
        several = type(
            "Several", (Counted,), {"instances": instances, "reset": lambda _, seed, n=instances or 7: f"{seed % n}"}
        )
        notes = reinforce.plan(model(), environment=several, **{**JOB, "instances": 90}).notes
        assert all(each in " ".join(notes) for each in said), notes
        assert ("begin with a text" in " ".join(notes)) == (instances is None)


@pytest.mark.parametrize("instances", [0, 2.5, True, "many"])
def test_a_number_of_episodes_that_is_none_is_refused(instances):
    with pytest.raises(BadInput, match="expected how many different episodes"):
        acting(environment=type("Several", (Counted,), {"instances": instances}))


@pytest.mark.parametrize("reached", [3, (1,), (1, 0), ("a", "b"), (float("nan"), 1)])
def test_a_range_that_is_none_is_refused(reached):
    with pytest.raises(BadInput, match="expected the least and the most that an episode comes to"):
        acting(environment=type("Ranged", (Short,), {"score_range": reached}))


def test_what_takes_such_rewards_is_not_refused():
    groups = recipe(**{**SMALL, **GROUPS})
    assert acting(environment="tictactoe", invalid_penalty=0.5, chosen=groups).problems
    assert acting(environment="corridor", chosen=recipe("sppo", **SMALL)).problems
    dots = recipe(**{**SMALL, **GROUPS, "select": "dots", "reference_questions": 8})
    assert acting(environment=[Short, Long], compose="nested", chosen=dots).problems


@pytest.mark.parametrize("name", ["tictactoe", "matrix-games", "spy", "spy-bits"])
def test_the_least_that_an_episode_comes_to_is_what_it_says(name):
    """Played by one who never says anything that counts."""
    opened = open_environment(name)
    found = []
    for seed in range(40):
        environment, total, done = opened.make(), 0.0, False
        environment.reset(seed)
        while not done:
            _, reward, done, _ = environment.step("")
            total += reward
        found.append(total)
    assert opened.score_range == (pytest.approx(min(found)), 1.0)


def test_rewards_that_only_playing_shows_are_refused_before_the_first_step(monkeypatch):
    class Costly(Short):
        def step(self, text):
            return "", -0.25, True, {"success": False}

    monkeypatch.setattr(reinforcing, "train", lambda *_, **__: pytest.fail("it was trained"))
    how = {**JOB, "method": "sppo", "num_generations": None}
    with pytest.raises(BadInput, match=r"a reward of the first model is -0.25: use --method grpo"):
        reinforce(model(), environment=Costly, **how)


@pytest.mark.parametrize(
    ("count", "instances", "learnt", "measured"),
    [
        (3, None, range(3), range(3, 67)),
        (36, 100, range(36), range(36, 100)),
        (37, 100, 37, [place * 100 // 63 for place in range(63)]),
        (95, 100, 90, range(0, 100, 10)),
        (50, 40, 36, [0, 10, 20, 30]),
        (50, 39, range(39), range(39)),
        (50, 70, 50, [place * 70 // 20 for place in range(20)]),
        (90, 80, 72, range(0, 80, 10)),
        (39, 40, 36, [0, 10, 20, 30]),
        (38, 39, 38, [0]),
    ],
)
def test_which_seeds_are_learnt_from_and_which_are_measured(count, instances, learnt, measured):
    found, apart = map(list, seeds_of(count, instances))
    expected = (
        [seed for seed in range(instances or 0) if seed not in set(measured)][:learnt]
        if isinstance(learnt, int)
        else list(learnt)
    )
    assert found == expected and apart == list(measured)


@pytest.mark.parametrize("most", [2.0, 1.5])
def test_rewards_above_one_are_refused_where_they_must_not_be(most):
    with pytest.raises(
        BadInput, match=rf"sppo takes rewards in \[0, 1\], and it can come to {most:g}: use --method grpo"
    ):
        refuse_rewards(recipe("sppo", **SMALL), 0.0, most, "it can come to")
    refuse_rewards(recipe("sppo", **SMALL), 0.0, 1.0, "it can come to")
    refuse_rewards(recipe(**{**SMALL, **GROUPS}), -1.0, most, "it can come to")


def test_an_environment_of_a_file_is_among_the_inputs(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "class Own:\n    max_turns = 1\n    def reset(self, seed):\n        return f'one {seed}'\n"
        "    def step(self, text):\n        return '', 0.0, True, {}\n"
    )
    assert acting(environment=f"{file}:Own").inputs == {"environment": sha256_file(file)}
    assert acting().inputs == {}
