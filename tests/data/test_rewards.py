import asyncio
import hashlib
import logging
import math
import threading

import pytest

from equipoise.core.errors import BadInput
from equipoise.data import rewards
from equipoise.data.problems import Problem
from equipoise.data.records import Message
from equipoise.data.verify import VerifierScore, open_verifier

PLAIN = [
    Problem("a", "1+1?", ("2",), columns={"answer": "2", "level": 1}),
    Problem("b", "2+2?", ("4",), columns={"answer": "4"}),
]
CHAT = [Problem("c", "u", ("2",), (Message("system", "s"), Message("user", "u")), columns={"answer": "2"})]


def scores(reward, problems=PLAIN, answers=("2", "5"), **given):
    with open_verifier(reward=reward) as verifier:
        return verifier(problems, answers, **given)


def test_a_function_gets_what_trl_gives_it():
    seen = {}

    def reward(prompts, completions, answer, completion_ids, **others):
        seen.update(others, prompts=prompts, completions=completions, ids=completion_ids)
        others["log_metric"]("accuracy", 0.5)
        others["log_extra"]("answer", answer)
        return [float(completion == each) for completion, each in zip(completions, answer, strict=True)]

    found = scores(reward, completion_ids=[[5, 6], [7]], step=3)
    assert found == [VerifierScore(1.0, ""), VerifierScore(0.0, "rewarded with 0")]
    assert (seen["prompts"], seen["completions"], seen["ids"]) == (["1+1?", "2+2?"], ["2", "5"], [[5, 6], [7]])
    assert seen["level"] == [1, None] and seen["trainer_state"].global_step == 3
    with pytest.raises(BadInput, match="reward takes completion_ids"):
        scores(reward)


def test_a_function_that_needs_columns_which_are_not_there_is_refused_before_the_first_answer():
    def reward(prompts, completions, solution, completion_ids, weight=1.0, **_):
        return [weight] * len(solution)

    with open_verifier(reward=reward) as verifier:
        with pytest.raises(BadInput, match=r"reward takes solution, which problem 'b' has not \(found: answer\)"):
            verifier.check([Problem("a", "?", (), columns={"solution": "1"}), PLAIN[1]])
        verifier.check([Problem("a", "?", (), columns={"solution": "1"})])


def test_completions_of_conversations_are_messages():
    def reward(prompts, completions):
        assert prompts == [[{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]]
        assert completions == [[{"role": "assistant", "content": "2"}]]
        return [0.25]

    assert [score.value for score in scores(reward, CHAT, ["2"])] == [0.25]


def test_none_is_missing_and_what_is_no_number_is_a_crash_of_its_row(caplog):
    problems = [Problem(str(index), "?", ()) for index in range(6)]
    with caplog.at_level(logging.WARNING):
        found = scores(lambda completions, **_: [None, math.nan, -math.inf, "x", -2.5, 3], problems, list("abcdef"))
    assert [score.value for score in found] == [0, 0, 0, 0, -2.5, 3]
    assert [score.missing for score in found] == [True] + [False] * 5
    assert [score.crashed for score in found] == [False, True, True, True, False, False]
    assert found[1].reason == "crashed: ValueError: the reward is nan"
    assert "on problem 2 crashed" in caplog.text and "on problem 0" not in caplog.text


def test_one_answer_that_a_function_fails_on_does_not_spoil_the_others():
    def reward(completions, **_):
        return [1 / len(completion) for completion in completions]

    problems = [Problem(str(index), "?", ()) for index in range(3)]
    found = scores(reward, problems, ["ab", "", "abcd"])
    assert [score.value for score in found] == [0.5, 0, 0.25] and found[1].reason.startswith("crashed: ZeroDivision")
    found = scores(lambda completions: [1.0], problems, ["", "", ""])
    assert [score.value for score in found] == [1, 1, 1]  # as many as it is asked for, one by one
    assert all(score.crashed for score in scores(lambda completions: [1.0, 1.0], problems, ["", "", ""]))
    assert scores(lambda completions: exit(3), problems[:1], [""])[0].reason == "crashed: RuntimeError: SystemExit: 3"


def test_async_functions_share_one_loop_that_ends_with_the_verifier():
    loops = []

    async def reward(completions, **_):
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())
        return [float(len(completion)) for completion in completions]

    before = set(threading.enumerate())
    with open_verifier(reward=reward) as verifier:
        assert [score.value for score in verifier(PLAIN, ["ab", ""])] == [2, 0]
        assert verifier([], []) == []
        verifier(PLAIN, ["ab", ""])
    assert len(set(loops)) == 1 and loops[0].is_closed() and set(threading.enumerate()) <= before
    assert (verifier.name, verifier.binary, verifier.digest) == ("reward", False, "")


class Rubric:
    """As verifiers.Rubric 0.3.1 for its caller: rewards and metrics are put into the states of a group."""

    def __init__(self, function):
        self.function, self.groups, self.torn_down = function, [], False

    async def score_group(self, states):
        self.groups.append([state["completion"][-1]["content"] for state in states])
        for state in states:
            state["reward"] = await self.function(
                prompt=state["prompt"],
                completion=state["completion"],
                answer=state.get("answer", ""),
                info=state.get("info", {}),
                state=state,
            )
            state["metrics"] = {}
            for turn in state["trajectory"]:
                turn["reward"] = state["reward"]

    async def teardown(self):
        self.torn_down = True


def test_a_rubric_scores_the_answers_to_one_problem_together():
    async def function(prompt, completion, answer, info, state):
        assert prompt[-1] == {"role": "user", "content": state["input"]["prompt"][-1]["content"]}
        return 2.0 if completion[-1]["content"] == answer else info.get("else", -1.0)

    first, second = PLAIN[0], Problem("d", "u", ("7",), CHAT[0].messages, columns={"info": {"else": 0.5}})
    rubric = Rubric(function)
    found = scores(rubric, [first, second, first, second], ["2", "2", "3", "7"])
    assert [score.value for score in found] == [2, 0.5, -1, 2]
    assert rubric.groups == [["2", "3"], ["2", "7"]] and rubric.torn_down


def test_a_function_from_a_file(tmp_path):
    (tmp_path / "neighbour_of_rewards.py").write_text("WORTH = 0.5\n")
    path = tmp_path / "rewards.py"
    code = "def reward(completions, **_):\n    return [WORTH] * len(completions)\n"
    path.write_text(f"from neighbour_of_rewards import WORTH\nlimit = 3\n{code}")
    with open_verifier(reward=f"{path}:reward") as verifier:
        assert [score.value for score in verifier(PLAIN, ["", ""])] == [0.5, 0.5]
    assert (verifier.name, verifier.digest) == ("reward", hashlib.sha256(path.read_bytes()).hexdigest())
    (tmp_path / "broken.py").write_text("def f(:\n")
    for named, message in {
        "reward": "expected FILE:FUNCTION",
        f"{path}:": "expected FILE:FUNCTION",
        f"{tmp_path}/none.py:f": "there is no file .*none.py with a reward function f",
        f"{path}:rewards": r"rewards.py has no 'rewards'. Did you mean 'reward'",
        f"{path}:limit": "rewards.py:limit is no reward function",
        f"{tmp_path}/broken.py:f": "broken.py cannot be loaded: SyntaxError",
    }.items():
        with pytest.raises(BadInput, match=message):
            open_verifier(reward=named)
    with pytest.raises(BadInput, match="is no reward function"):
        open_verifier(reward=Rubric)


def test_only_a_rubric_is_torn_down():
    torn = []

    def reward(prompts, completions):
        return [1.0] * len(prompts)

    async def teardown():
        torn.append(1)

    reward.teardown = teardown
    assert scores(reward)[0].value == 1.0 and torn == []


def test_a_rubric_that_cannot_be_torn_down_is_told_and_its_loop_ends(caplog):
    class Clumsy(Rubric):
        async def teardown(self):
            raise RuntimeError("still open")

    loaded = rewards.Rewarder(rewards.LoadedReward(Clumsy(None), "clumsy"))
    with caplog.at_level(logging.WARNING):
        loaded.close()
    assert [record.getMessage() for record in caplog.records] == [
        "the rubric clumsy could not be torn down: still open"
    ]
    assert loaded._loop is None
