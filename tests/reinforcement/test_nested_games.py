"""Composed environments: what a nested episode is, who plays what in a batch, whose score a token answers for."""

import itertools
import math
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.data.environment import open_environment
from equipoise.language.episodes import Turn, play
from equipoise.reinforcement import stages
from equipoise.reinforcement.group_baselines import grpo
from equipoise.reinforcement.nested_games import (
    Even,
    Mixed,
    Nested,
    Rotating,
    Spread,
    mixed,
    nested,
    segment_advantages,
    task_normalized,
    task_scores,
    task_seed,
    token_tasks,
    widest,
)
from equipoise.reinforcement.playing import Playing, episode_metrics, no_reward, of_tasks
from equipoise.reinforcement.recipe import recipe
from reinforcement_world import equal, model, reinforced


class Guess:
    """Two tries: right 1, a draw 0.5, anything else wrong; what is no number costs 0.1 and a try."""

    max_turns, tries = 2, 2
    chance = MappingProxyType({"success": 0.25})

    def reset(self, seed):
        self.right, self.left = seed % 7, self.tries
        return f"Guess {seed}."

    def step(self, text):
        self.left -= 1
        if text == "draw":
            return "A draw.", 0.5, True, {"success": False}
        if not text.isdigit():
            return "A number, please.", -0.1, not self.left, {"success": False, "valid": False}
        right = int(text) == self.right
        return ("Yes." if right else "No."), float(right), right or not self.left, {"success": right}


class Long(Guess):
    max_turns = tries = 3


class Endless:
    """Never ends, and pays a quarter a turn."""

    max_turns = 3

    def reset(self, seed):
        return f"On and on {seed}."

    def step(self, text):
        return "Go on.", 0.25, False, {"success": True, "owner": "tool"}


def said(environment, seed, actions):
    """The first text, and what each action is told until the end."""
    told = [environment.reset(seed)]
    for action in actions:
        told.append(environment.step(action))
        if told[-1][2]:
            break
    return told


def scored(environment, seed, policy):
    """The score of a policy: text -> action."""
    text, done, score = environment.reset(seed), False, 0.0
    while not done:
        text, reward, done, _ = environment.step(policy(text))
        score += reward
    return score


def oracle(text):
    return str(int(text.split()[-1][:-1]) % 7) if text.startswith("Guess") else "8"


@pytest.mark.parametrize("reward", ["mean", "min", "product"])
@pytest.mark.parametrize("seed", [0, 12])
def test_one_task_is_that_environment(seed, reward):
    for actions in itertools.product(["5", "0", "draw", "eh"], repeat=2):
        plain, composed = (said(made, seed, actions) for made in (Guess(), Nested([Guess], reward)))
        assert composed[0] == plain[0] and len(composed) == len(plain)
        for one, other in zip(composed[1:], plain[1:], strict=True):
            assert one[:3] == other[:3] and {**one[3], **other[3]} == one[3]
        assert said(Mixed([Guess]), seed, actions)[0] == plain[0]


def test_one_task_gives_the_same_tokens():
    how = {"samples": 2, "max_turns": 2, "max_new_tokens": 5, "temperature": 1.0, "seed": 7}
    found, plain = (play(model(), make, [3, 0, 8], **how) for make in (nested([Guess]).make, Guess))
    for name in ("ids", "mask", "log_probs", "owner", "turn"):
        assert torch.equal(getattr(found, name), getattr(plain, name)), name
    assert [each.score for each in found.episodes] == [each.score for each in plain.episodes]


def test_scores_are_combined():
    tasks = {"one": Guess, "two": Long, "three": Guess}
    always, never, half = oracle, lambda text: "9", lambda text: "draw"
    for reward in ("mean", "min", "product", "all"):
        assert scored(Nested(tasks, reward), 5, always) == 1
        assert scored(Nested(tasks, reward), 5, never) == 0
    firsts = [Nested({name: tasks[name]}).reset(task_seed(5, place)) for place, name in enumerate(tasks)]

    def some(chosen, other=never):
        return lambda text: (always if text in [firsts[place] for place in chosen] else other)(text)

    for chosen in ((0,), (1,), (0, 2)):
        assert scored(Nested(tasks), 5, some(chosen)) == len(chosen) / 3
        assert scored(Nested(tasks, "min"), 5, some(chosen)) == scored(Nested(tasks, "all"), 5, some(chosen)) == 0
    assert scored(Nested(tasks), 5, some((0, 1), half)) == pytest.approx(2.5 / 3)
    assert scored(Nested(tasks, "min"), 5, some((0,), half)) == 0.5
    assert scored(Nested(tasks, "product"), 5, some((0,), half)) == 0.25
    assert scored(Nested(tasks, "all"), 5, some((0, 1), half)) == 0


@pytest.mark.parametrize("reward", ["mean", "min", "product", "all"])
def test_the_order_of_tasks_changes_no_score_of_scripted_policies(reward):
    """One task is solved, one is drawn after an illegal try, in one the tries are used up."""
    kinds = {"solved": ["1"], "drawn": ["eh", "draw"], "lost": ["9", "9", "9"]}

    def make(name):
        class Told(Long):
            def reset(self, seed):
                super().reset(1)
                return name

        return Told

    found = set()
    for order in itertools.permutations(kinds):
        environment = Nested({name: make(name) for name in order}, reward)
        actions = [action for name in order for action in kinds[name]]
        told = said(environment, 3, actions)
        assert len(told) == 7 and told[-1][2]
        found.add(round(sum(each[1] for each in told[1:]), 12))
    assert found == {{"mean": 0.4, "min": -0.1, "product": -0.1, "all": -0.1}[reward]}


def test_where_a_task_ends_nothing_is_told_or_carried_over():
    tasks = {"one": Guess, "two": Long}
    second = Long().reset(task_seed(5, 1))
    right, wrong = said(Nested(tasks), 5, ["5"]), said(Nested(tasks), 5, ["9", "9"])
    assert right[1][0] == wrong[2][0] == second and right[1][1:3] == wrong[2][1:3] == (0.0, False)
    # An answer with more in it than the task wanted is read by that task alone.
    environment = Nested(tasks)
    environment.reset(5)
    environment.step("9")
    assert environment.step("9 || 1")[0] == second
    told = [environment.step("9") for _ in range(3)]
    assert [each[2] for each in told] == [False, False, True]


def test_what_is_told_of_each_task():
    told = said(Nested({"one": Guess, "two": Long}), 5, ["eh", "5", "9", "eh", "draw"])
    infos = [each[3] for each in told[1:]]
    assert [each["task"] for each in infos] == ["one", "one", "two", "two", "two"]
    assert [each["task_done"] for each in infos] == [False, True, False, False, True]
    assert [each.get("valid", True) for each in infos] == [False, True, True, False, True]
    assert (infos[1]["success"], infos[4]["success"]) == (True, False)
    assert (infos[1]["task_score"], infos[4]["task_score"]) == (0.9, 0.4)
    assert [each[1] for each in told[1:]] == [-0.1, 0, 0, -0.1, 0.75]


def test_seeds_of_tasks_follow_from_the_seed_and_lie_apart():
    three = nested({"a": Guess, "b": Guess, "c": Guess})
    for seed in (0, 7):
        one, other = (said(three.make(), seed, ["9"] * 6) for _ in range(2))
        assert one == other and len({told[0] for told in (one[:1], *one[1:]) if told[0].startswith("Guess")}) == 3
    seeds = [task_seed(seed, place) for seed in range(200) for place in range(4)]
    assert len(set(seeds)) == len(seeds) and seeds[::4] == list(range(200))
    rolled = play(model(), three.make, [4, 9], samples=3, max_turns=1, max_new_tokens=2, temperature=1.0, seed=0)
    assert [each.first for each in rolled.episodes] == ["Guess 4."] * 3 + ["Guess 9."] * 3


def test_the_cap_is_the_sum_and_each_task_has_its_own():
    opened = nested({"endless": Endless, "guess": Guess, "again": Endless})
    assert opened.max_turns == Nested({"endless": Endless, "guess": Guess, "again": Endless}).max_turns == 8
    told = said(opened.make(), 0, ["9"] * 8)
    assert len(told) == 9 and [each[3]["task"] for each in told[1:]] == ["endless"] * 3 + ["guess"] * 2 + ["again"] * 3
    assert told[-1][1:3] == (0.5, True)  # of 0.75, 0, 0.75
    assert told[3][3]["success"] is False and told[3][3]["owner"] == "environment" and told[2][3]["owner"] == "tool"
    assert mixed({"endless": Endless, "guess": Guess}).max_turns == 3


def test_mixed_seeds_are_the_tasks_of_a_nested_episode():
    tasks = {"one": Guess, "two": Long, "three": Guess}
    for seed in (0, 5):
        firsts = [Mixed(tasks).reset(3 * seed + place) for place in range(3)]
        told = said(Nested(tasks), seed, ["9"] * 7)
        assert firsts == [told[0], told[2][0], told[5][0]]
    environment = Mixed(tasks)
    told = said(environment, 16, ["eh", "8"])
    assert [each[1:3] for each in told[1:]] == [(-0.1, False), (0.0, False)]
    assert told[-1][3]["task"] == "two" and environment.step("draw")[3]["task_score"] == 0.4


def test_what_is_composed_is_opened_once():
    made = []

    def shop():
        made.append(1)
        return Guess()

    opened = nested([shop, Long], "all")
    assert (opened.name, opened.digest) == ("shop+Long", "") and mixed([shop, Long]).name == "shop|Long"
    assert opened.chance == {"success/shop": 0.25, "success/Long": 0.25}
    before = len(made)
    opened.make()
    assert len(made) == before + 1
    inner = open_environment(lambda: Nested([Guess, Long]))
    assert inner.max_turns == 5 and inner.chance == {"success/Guess": 0.25, "success/Long": 0.25}
    told = said(Nested({"pair": inner, "guess": Guess}), 5, ["5", "9", "9", "9", "eh", "eh"])
    assert [each[3]["task"] for each in told[1:]] == ["pair"] * 4 + ["guess"] * 2


def test_the_file_of_a_task_counts(tmp_path):
    digests = []
    for said in ("Hi.", "Hello."):
        (tmp_path / "shop.py").write_text(
            f"class Shop:\n    def reset(self, seed):\n        return {said!r}\n"
            "    def step(self, text):\n        return '', 1.0, True, {'success': True}\n"
        )
        digests.append(nested([f"{tmp_path / 'shop.py'}:Shop", Long]).digest)
    assert len(set(digests)) == 2 and all(len(each) == 64 for each in digests)


def test_what_does_not_compose_is_refused():
    with pytest.raises(BadInput, match="nothing to compose"):
        Nested([])
    with pytest.raises(BadInput, match="two tasks are called 'Guess'"):
        nested([Guess, Guess])
    with pytest.raises(BadInput, match="'sum'"):
        Nested([Guess], "sum")

    class Owing(Guess):
        def step(self, text):
            return "Pay.", -1.0, True, {}

    assert said(Nested({"a": Owing, "b": Owing}, "min"), 0, ["1", "1"])[-1][1] == -1
    environment = Nested({"a": Owing, "b": Owing}, "product")
    environment.reset(0)
    environment.step("1")
    with pytest.raises(BadInput, match="product"):
        environment.step("1")
    with pytest.raises(BadInput, match=r"give Playing\(mixed"):
        Even(Playing(nested([Guess])))
    for steps in (0, (1, 2), (1, 2, 0)):
        with pytest.raises(BadInput, match="or 3, one for each task"):
            Rotating(Playing(mixed({"a": Guess, "b": Long, "c": Guess})), steps)
    with pytest.raises(BadInput, match="keep is 0"):
        Spread(0)


# episodes of a model that writes anything


def is_odd(text):
    return sum(map(ord, text)) % 2 == 1


class Odd:
    """Ends after so many turns; each whose text is odd is worth `worth`, and the last decides on success."""

    turns, worth = 1, 1.0

    def reset(self, seed):
        self.turn = 0
        return f"one two {seed % 100}"

    def step(self, text):
        self.turn += 1
        odd = is_odd(text)
        return "no", self.worth * odd, self.turn == self.turns, {"success": odd}


class Twice(Odd):
    turns, worth = 2, 0.5


TASKS = {"odd": Odd, "twice": Twice, "last": Odd}


def played(opened, seeds=(4, 9), samples=4):
    return play(
        model(), opened.make, seeds, samples=samples, max_turns=6, max_new_tokens=5, temperature=1.0, seed=3
    )  # fmt: skip


@pytest.fixture(scope="module")
def rolled():
    return played(nested(TASKS))


def test_the_mask_is_the_models_tokens_and_grpo_is_one_number_a_trajectory(rolled):
    assert [len(each.turns) for each in rolled.episodes] == [4] * 8
    for row, episode in enumerate(rolled.episodes):
        written = {place for turn in episode.turns for place in range(turn.begin, turn.end)}
        assert set(rolled.mask[row].nonzero().flatten().tolist()) == written
    rewards = torch.tensor([each.score for each in rolled.episodes]).view(2, 4)
    wide = _step(rolled, rewards, grpo(rewards)).token_advantages
    for row in range(8):
        assert (wide[row][rolled.mask[row]] == grpo(rewards).flatten()[row]).all()
        assert (wide[row][~rolled.mask[row]] == 0).all()


def _step(rollouts, rewards, advantages=None):
    return stages.Step(
        0, "policy", tuple("ab"), (0, 1), rollouts, rewards, torch.zeros_like(rewards, dtype=torch.bool),
        advantages=advantages,
    )  # fmt: skip


def test_a_token_answers_for_its_own_task(rolled):
    found = segment_advantages(rolled)
    names = ["odd", "twice", "twice", "last"]
    scores = {name: [] for name in TASKS}
    for episode in rolled.episodes:
        odd = [is_odd(turn.text) for turn in episode.turns]
        scores["odd"].append(odd[0])
        scores["twice"].append((odd[1] + odd[2]) / 2)
        scores["last"].append(odd[3])
        assert task_scores(episode) == {name: each[-1] for name, each in scores.items()}
    checked = set()
    for name, values in scores.items():
        for begin in (0, 4):
            group = torch.tensor(values[begin : begin + 4], dtype=torch.float64)
            expected = (group - group.mean()) / (group.std() + 1e-6)
            for row in range(begin, begin + 4):
                for number, turn in enumerate(rolled.episodes[row].turns):
                    if names[number] == name:
                        assert_close(
                            found[row, turn.begin : turn.end].double(),
                            expected[row - begin].expand(turn.end - turn.begin),
                            rtol=1e-5, atol=1e-5,
                        )  # fmt: skip
            checked.add(float(group.std()) > 0)
    assert True in checked and (found[~rolled.mask] == 0).all()
    names, of_tokens = token_tasks(rolled)
    assert names == list(TASKS) and torch.equal(of_tokens >= 0, rolled.mask)


def test_credit_of_one_task_is_grpo():
    rolled = played(nested([Twice]))
    rewards = torch.tensor([each.score for each in rolled.episodes]).view(2, 4)
    wide = grpo(rewards).reshape(-1, 1).expand(rolled.mask.shape).where(rolled.mask, 0)
    assert torch.equal(segment_advantages(rolled), wide) and wide.abs().sum() > 0


@pytest.mark.parametrize("made", [Nested, Mixed])
def test_a_task_that_was_cut_short_has_the_rewards_until_then(made):
    """A quarter a turn, whether it is paid at once or at the end; what is not understood costs a tenth."""

    class Deaf(Endless):
        def step(self, text):
            return super().step(text) if text else ("What?", -0.1, False, {"valid": False})

    for said_so, earned in ((["a"], 0.25), (["a", "b"], 0.5), (["", "b"], 0.15), (["a", "b", "c"], 0.75)):
        environment = made({"first": Deaf, "second": Deaf})
        environment.reset(0)
        told = [environment.step(text) for text in said_so]
        turns = [SimpleNamespace(info=info, reward=reward) for _, reward, _, info in told]
        assert task_scores(SimpleNamespace(turns=turns)) == {"first": pytest.approx(earned)}


def test_tasks_that_some_did_not_come_to(rolled):
    """Row 0 is cut in its second task, row 1 fails in it; the third task of both is missing, and not a score of 0."""
    episodes = list(rolled.episodes)
    first = episodes[0]
    episodes[0] = replace(first, turns=first.turns[:2], outcome="room")
    failed = Turn("x", "", 0.0, {}, *(getattr(episodes[1].turns[1], name) for name in ("begin", "end", "stop")))
    episodes[1] = replace(
        episodes[1], turns=(episodes[1].turns[0], failed), outcome="failed", score=0.0, reason="It broke."
    )
    cut = torch.tensor([first.turns[1].end, failed.end] + [10**6] * 6)
    mask = rolled.mask & (torch.arange(rolled.mask.shape[1]) < cut.unsqueeze(-1))
    changed = replace(rolled, episodes=tuple(episodes), mask=mask)
    assert task_scores(episodes[0])["twice"] == is_odd(first.turns[1].text) / 2  # earned, and not yet paid
    assert "last" not in task_scores(episodes[0])
    found, whole = segment_advantages(changed), segment_advantages(rolled)
    turn = failed
    assert (found[1, turn.begin : turn.end] == 0).all()  # it answers for no task
    group = torch.tensor([[task_scores(episodes[row])["last"] for row in (2, 3)]])
    for place, row in enumerate((2, 3)):
        turn = episodes[row].turns[3]
        assert_close(found[row, turn.begin : turn.end], grpo(group)[0, place].expand(turn.end - turn.begin))
    assert torch.equal(found[4:], whole[4:]) and (found[~mask] == 0).all()


def test_each_task_is_whitened_by_itself():
    rolled = played(mixed({"odd": Odd, "twice": Twice}), seeds=(4, 5, 7, 2), samples=4)
    rewards = torch.tensor([each.score for each in rolled.episodes], dtype=torch.float64).view(4, 4)
    found = task_normalized(rewards, rolled)
    plain = (rewards - rewards.mean(1, keepdim=True)).flatten()
    for rows in ([0, 1, 2, 3, 12, 13, 14, 15], list(range(4, 12))):
        values = torch.cat([plain[row].expand(int(rolled.mask[row].sum())) for row in rows])
        expected = (values - values.mean()) / values.std()
        assert values.std() > 0
        assert_close(torch.cat([found[row][rolled.mask[row]] for row in rows]), expected, rtol=1e-6, atol=1e-6)
    assert (found[~rolled.mask] == 0).all()


def test_without_episodes_there_are_no_tasks(rolled):
    with pytest.raises(BadInput, match="no episodes"):
        segment_advantages(replace(rolled, episodes=()))


# stages of the loop


def trained(sample, seeds, weigh=stages.weigh, method="grpo", **settings):
    settings = {"num_generations": 2, "prompts_per_step": 3, "steps": 4, **settings}
    problems = sample.problems(seeds) if isinstance(sample, Playing) else sample.playing.problems(seeds)
    return reinforced(method, problems=problems, reward=no_reward, how={"sample": sample, "weigh": weigh}, **settings)


def tasks_in(step):
    return [episode.turns[0].info["task"] for episode in step.rollouts.episodes[:: step.rollouts.samples]]


def test_batches_are_split_evenly():
    sample = Even(Playing(mixed(TASKS)))
    found = trained(sample, range(0, 36, 3))
    seeds = [problem.columns["seed"] for step in found.steps for problem in step.problems]
    assert all(tasks_in(step) == list(TASKS) for step in found.steps)
    assert sorted(seed // 3 for seed in seeds) == list(range(12)) and [seed % 3 for seed in seeds] == [0, 1, 2] * 4
    uneven = trained(sample, range(0, 36, 3), prompts_per_step=2, steps=3)
    assert [name for step in uneven.steps for name in tasks_in(step)] == list(TASKS) * 2
    by_chance = trained(Playing(mixed(TASKS)), range(12))
    assert not all(sorted(tasks_in(step)) == sorted(TASKS) for step in by_chance.steps)
    assert {"success/odd", "success/twice", "success/last"} <= set(found.metrics[0])


@pytest.mark.parametrize(("steps", "order"), [(1, "abcabcab"), (2, "aabbccaa"), ((2, 1, 3), "aabcccaa")])
def test_tasks_take_turns(steps, order):
    sample = Rotating(Playing(mixed({"a": Odd, "b": Twice, "c": Odd})), steps)
    assert "".join("abc"[sample.task(index)] for index in range(8)) == order


def test_a_step_of_a_rotation_is_of_one_task():
    found = trained(Rotating(Playing(mixed(TASKS), invalid_penalty=0.5)), range(0, 36, 3))
    assert [set(tasks_in(step)) for step in found.steps] == [{"odd"}, {"twice"}, {"last"}, {"odd"}]
    assert found.metrics[1]["turns"] == 2 and found.metrics[0]["turns"] == 1


def test_nested_episodes_are_learnt_from_by_segment():
    runs = [trained(Playing(nested(TASKS)), range(6), method="starpo", steps=1, advantage=each, num_generations=4)
            for each in ("grpo", "segments")]  # fmt: skip
    assert not equal(*(run.weights for run in runs))
    step = runs[1].steps[0]
    assert torch.equal(step.advantages, segment_advantages(step.rollouts))
    assert_close(
        runs[0].metrics[0]["reward"],
        sum(each.score for each in runs[0].steps[0].rollouts.episodes) / 12,
        rtol=1e-6,
        atol=0,
    )
    names = of_tasks(step.rollouts.episodes)
    assert {name: len(each) for name, each in names.items()} == dict.fromkeys(TASKS, 12)
    metrics = episode_metrics(step.rollouts.episodes)
    assert metrics["success/twice"] == sum(names["twice"]) / 12


# the filter


def test_the_widest_groups_of_raw_rewards():
    rewards = torch.tensor([
        [1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0], [0.5, 0.5, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 1.0], [0.1, 0.1, 0.1, 0.1], [1.0, 0.0, 0.0, 1.0], [0.0, 0.1, 0.0, 0.1],
    ])  # fmt: skip
    assert widest(rewards, 0.25) == [1, 6] and widest(rewards, 0.5) == [1, 2, 4, 6] and widest(rewards, 0.01) == [1]
    assert (
        widest(rewards, 1.0) == widest(rewards, 0.75) == [1, 2, 4, 6, 7]
    )  # equal rewards: never while there are others
    assert widest(rewards[[0, 3, 5]], 0.7) == [0, 1]
    # In float32 the mean of sixteen times 0.1 is not 0.1, and the standard deviation of these groups is not 0.
    constant = torch.full((3, 9), 0.1) / 3
    assert widest(torch.cat([constant, torch.tensor([[0.0] * 8 + [1e-6]])]), 0.75) == [3]


def test_spread_of_normalized_rewards_is_noise():
    """One group at 64 scales: by rewards the order is exact, by what they are normalized to it is rounding's.

    In exact numbers sigma / (sigma + 1e-6) would have the same order, but its differences are below what float32 can show.
    """
    generator = torch.Generator().manual_seed(0)
    group = torch.rand(16, generator=generator)
    rewards = group * (1 + torch.arange(64) / 1000).unsqueeze(-1)
    exact = widest(rewards, 0.25)
    assert exact == list(range(48, 64))
    spread = grpo(rewards).std(-1)
    assert_close(spread, torch.ones(64), rtol=1e-5, atol=0)
    chosen = spread.argsort(descending=True, stable=True)[:16].tolist()
    assert spread.unique().numel() < 16 and len(set(chosen) & set(exact)) < 12
    in_double = grpo(rewards.double()).std(-1).argsort(descending=True, stable=True)[:16].tolist()
    assert set(in_double) == set(exact)


def test_only_the_kept_groups_are_learnt_from():
    sample = Playing(nested(TASKS))
    settings = {"method": "grpo", "steps": 1, "prompts_per_step": 6, "num_generations": 4, "kl_beta": 0.1}
    found = trained(sample, range(6), Spread(0.5), **settings)
    (step,) = found.steps
    whole = trained(sample, range(6), Spread(1.0), **settings).steps[0]
    kept = widest(whole.rewards, 0.5)
    assert len(kept) == 3 and [each.id for each in step.problems] == [whole.problems[place].id for place in kept]
    rows = [4 * place + sample for place in kept for sample in range(4)]
    assert torch.equal(step.rollouts.ids, whole.rollouts.ids[rows]) and torch.equal(step.rewards, whole.rewards[kept])
    assert torch.equal(step.reference_log_probs, whole.reference_log_probs[rows])
    assert torch.equal(step.advantages, grpo(whole.rewards)[kept])
    assert found.metrics[0]["generated_tokens"] == int(whole.rollouts.mask.sum()) > int(step.rollouts.mask.sum())

    # What it learnt is the loss over these groups alone.
    start, chosen = model(), recipe("grpo", **{k: v for k, v in settings.items() if k != "method"}, max_new_tokens=5)
    batch = stages.policy_batch(step, range(12), old=None)
    loss, count = stages.policy_objective(chosen, [])(start.model, batch)
    (loss / count).backward()
    norm = math.sqrt(sum(float(each.grad.square().sum()) for each in start.model.parameters() if each.grad is not None))
    assert found.metrics[0]["gradient_norm"] == pytest.approx(norm, rel=1e-4)
