"""ActGuide's world by its numbers: which seeds are whose, what is taught and tuned on, what is counted, when is looked."""

from collections import Counter
from dataclasses import asdict, fields
from types import SimpleNamespace

import pytest
import torch

from equipoise.data.corridor import Corridor
from equipoise.data.problems import Problem
from equipoise.language import tiny
from equipoise.reinforcement import actguide_world
from equipoise.reinforcement.actguide_world import GuideWorld, Tally, Written, lessons
from equipoise.training.loop import TrainerSettings
from reinforcement_world import Books

NAN = float("nan")


def problem(seed):
    return Problem(f"c-{seed}", f"text {seed}", (), columns={"seed": seed})


def test_which_corridors_are_trained_and_tested_on(monkeypatch):
    asked = []

    def different(playing, seeds, count, without):
        asked.append((seeds, count, without))
        return [problem(seed) for seed in seeds[:count]]

    monkeypatch.setattr(actguide_world, "_different", different)
    made = GuideWorld.of(2, None, train=2, test=3)
    tested = {"text 3000001", "text 3000003", "text 3000005"}
    assert asked == [
        (range(3_000_001, 3_500_000, 2), 3, set()),
        (range(3_500_001, 4_000_000, 2), 2, tested),
        (range(3_000_000, 4_000_000, 2), 2, set()),
    ]
    assert [each.columns["seed"] for each in made.train] == [3_000_000, 3_500_001, 3_000_002, 3_500_003]
    assert {each.prompt for each in made.test} == tested and made.playing.turns == 14


def test_of_equal_pictures_the_first_seed_is_taken_and_no_more_are_drawn_than_it_takes():
    drawn = []

    def problems(seeds):
        drawn.extend(seeds)
        return [Problem(f"c-{seed}", f"text {seed // 2}", ()) for seed in seeds]

    found = actguide_world._different(SimpleNamespace(problems=problems), range(20), 2, {"text 1"})
    assert [each.id for each in found] == ["c-0", "c-4"] and drawn == [0, 1, 2, 3, 4]


def test_a_tally_counts_each_step():
    tally, recipe = Tally(), SimpleNamespace(updates=2)
    rewards = torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    notes = {
        "hard": [1.0, 0.0, NAN, 1.0],
        "rescued": [1.0, NAN, NAN, 0.0],
        "guided": [1.0, 0.0, 1.0, 1.0],
        "hint_length": [4.0, NAN, 6.0, 1.0],
        "hint_share": [0.5, NAN, 1.0, 0.25],
    }
    notes = {name: torch.tensor(values) for name, values in notes.items()}
    state = SimpleNamespace(step=SimpleNamespace(rewards=rewards, notes=notes), metrics={"generated_tokens": 30.0})
    assert tally.add(state, recipe) == {"generated_tokens": 30, "optimizer_steps": 2}
    tally.add(state, recipe)
    state.step.notes = {}
    tally.add(state, recipe)
    assert asdict(tally) == {
        "tokens": 90, "updates": 6, "groups": 12, "effective": 6, "judged": 6, "hard": 4, "rescued": 2, "guided": 6,
        "hints": 22.0, "shares": 3.5,
    }  # fmt: skip
    assert tally.at == {"optimizer_steps": 6, "generated_tokens": 90}
    assert all(getattr(Tally(), each.name) == 0 for each in fields(Tally))


def test_lists_of_lessons_are_prefixes_of_plans_or_any_actions():
    corridor = Corridor(actguide_world.EASY, cells=9, slack=actguide_world.LIST, rules=False)
    known = {corridor.reset(number): number for number in range(1000)}
    count, own, others = 700, Counter(), Counter()
    for lesson in lessons(count, seed=3):
        shown, first = lesson.prompt[:-12], lesson.prompt[-11:]
        if lesson.prompt == first:
            continue
        hint = list(shown[1::2])
        plan = [each["name"][0] for each in corridor.plan(known[first])]
        (own if hint == plan[: len(hint)] else others)[len(hint)] += 1
    listed = own.total() + others.total()
    assert abs(listed / count - 0.5) < 0.04 and set(own) == {1, 2, 3, 4} and set(others) == set(range(1, 13))
    # Of random lists one in seventy-odd begins as the plan does by chance.
    assert abs(own.total() / listed - 0.312) < 0.05
    assert abs(sum(others[length] for length in range(7, 13)) / others.total() - 0.51) < 0.06


@pytest.fixture
def fitted(monkeypatch):
    """What a fit was asked for."""
    found = []
    monkeypatch.setattr(actguide_world, "fit", lambda *given, **how: found.append((given, how)))
    return found


def test_batches_of_fine_tuning_are_of_about_one_length(fitted):
    count = 34
    lengths = torch.arange(count).flip(0) + 1
    present = torch.arange(count + 1) < lengths[:, None]
    episodes = SimpleNamespace(present=present, mask=present, batch=list)
    told = SimpleNamespace(model="model")
    learnt = actguide_world.fine_tune(told, episodes, steps=60, learning_rate=0.01, seed=4, save_every=7)
    ((model, _, draw, settings), how) = fitted[0]
    assert model == "model" and how["save_every"] == 7 and how["collate"]([2, 1]) == [2, 1]
    assert settings == TrainerSettings(steps=60, learning_rate=0.01, batch_size=32, betas=(0.9, 0.95), seed=4)
    drawn = [draw(step) for step in range(60)]
    shortest_first = list(range(count))[::-1]
    begins = [shortest_first.index(rows[0]) for rows in drawn]
    assert [shortest_first[begin : begin + 32] for begin in begins] == drawn
    assert set(begins) == {0, 1, 2} and {len(rows) for rows in drawn} == {32}
    assert learnt == sum(sum(range(begin + 1, begin + 33)) for begin in begins)


def test_few_episodes_are_one_batch(fitted):
    present = torch.ones(3, 2, dtype=torch.bool)
    episodes = SimpleNamespace(present=present, mask=present, batch=list)
    assert actguide_world.fine_tune(SimpleNamespace(model=0), episodes, steps=2, learning_rate=0.1, seed=0) == 12
    (_, _, draw, settings), _ = fitted[0]
    assert draw(0) == draw(1) == [0, 1, 2] and settings.batch_size == 3


@pytest.mark.parametrize(("count", "steps"), [(3, 10), (32, 10), (40, 13)])
def test_the_plans_are_learnt_ten_times(monkeypatch, count, steps):
    easy_and_hard = [problem(seed) for seed in range(2 * count)]
    world = SimpleNamespace(
        train=easy_and_hard, seed=8, language_model="model",
        plans=lambda given, wrong: {each.id: [each.id, wrong] for each in given[1::2]},
    )  # fmt: skip
    monkeypatch.setattr(actguide_world, "planned", lambda seeds, lists: list(zip(seeds, lists, strict=True)))
    monkeypatch.setattr(actguide_world, "as_rollouts", lambda model, episodes: episodes)
    asked = []
    monkeypatch.setattr(actguide_world, "fine_tune", lambda *given, **how: asked.append((given, how)) or 77)
    assert GuideWorld.fine_tune(world, wrong=0.25) == 77
    episodes = [(seed, [f"c-{seed}", 0.25]) for seed in range(1, 2 * count, 2)]
    assert asked == [(("model", episodes), {"steps": steps, "learning_rate": 1e-3, "seed": 8})]


def test_the_log_ratio_is_probed_on_the_first_hard_problems(monkeypatch):
    asked, scored = [], []

    def play(problems, **how):
        asked.append((problems, how))
        solved = [each % 3 == 0 for each in range(len(problems) * how["samples"])]
        return SimpleNamespace(
            episodes=[SimpleNamespace(success=each) for each in solved], log_probs="old", mask="mask"
        )

    def ratios(new, old, advantages, mask):
        scored.append((new, old, advantages, mask))
        return {"hint_log_ratio": torch.ones(16)}

    monkeypatch.setattr(actguide_world, "encode_prompts", lambda model, prompts: (prompts, None))
    monkeypatch.setattr(actguide_world, "rebuild", lambda rolled, plain: plain)
    monkeypatch.setattr(actguide_world, "score_rollouts", lambda model, rolled: SimpleNamespace(log_probs=rolled))
    monkeypatch.setattr(actguide_world, "log_ratios", ratios)
    world = SimpleNamespace(
        train=[problem(seed) for seed in range(40)], play=play, language_model=SimpleNamespace(model=None)
    )
    names, found = GuideWorld.hint_weights(world, 0.5, samples=2)
    assert names == [f"c-{seed}" for seed in range(1, 33, 2)] and found["hint_log_ratio"].tolist() == [1.0] * 16
    assert asked[0][1] == {"samples": 2, "share": 0.5}
    ((new, old, advantages, mask),) = scored
    assert (new, old, mask) == ([f"text {seed}" for seed in range(1, 33, 2)], "old", "mask")
    # Solved are 0, 3, 6 ...: one or none of two.
    assert advantages[:4].tolist() == [[0.5, -0.5], [-0.5, 0.5], [0.0, 0.0], [0.5, -0.5]]


@pytest.fixture
def steps_of_ten(monkeypatch):
    """A training whose steps each write ten tokens."""
    asked = []

    def train(model, recipe, problems, reward, *, callbacks, save, **how):
        asked.append(how)
        step = SimpleNamespace(rewards=torch.zeros(1, 2), notes={})
        for done in range(1, 100):
            over = callbacks[0](SimpleNamespace(done=done, step=step, metrics={"generated_tokens": 10.0}))
            save({"step": done})
            if over:
                break

    monkeypatch.setattr(actguide_world, "train", train)
    monkeypatch.setattr(actguide_world, "prepare", lambda model, recipe: model)
    return asked


def looked(books, *, world, **how):
    found = []
    look = lambda tally: found.append(tally.tokens)  # noqa: E731
    GuideWorld.reinforce(world, books, SimpleNamespace(updates=1), look, **how)
    return found


def test_looks_are_spread_over_the_tokens(steps_of_ten):
    world = SimpleNamespace(playing="playing", train=[], language_model=None, fine_tune=lambda wrong: 1000 * wrong)
    books = Books()
    assert looked(books, world=world, tokens=100, evaluations=4) == [0, 30, 50, 80, 100]
    assert len(books.states) == len(books.spent) == 10 and books.states[-1]["tally"]["tokens"] == 100
    assert steps_of_ten == [{"sample": "playing", "save_every": 5, "state": None}]
    assert looked(Books(), world=world, tokens=95, evaluations=1) == [0, 100]
    half = {"training": {"step": 6}, "tally": {"tokens": 60}}
    assert looked(Books(half), world=world, tokens=100, evaluations=4) == [80, 100]
    assert steps_of_ten[-1]["state"] == {"step": 6}
    whole = {"training": {"step": 10}, "tally": {"tokens": 100}}
    calls = len(steps_of_ten)
    assert looked(Books(whole), world=world, tokens=100, evaluations=4) == [] and len(steps_of_ten) == calls
    books = Books()
    assert looked(books, world=world, tokens=10, evaluations=1, start="sft", wrong=0.5) == [0, 10]
    assert books.spent[0] == {"trained_tokens": 500}
    books = Books(half)
    looked(books, world=world, tokens=70, evaluations=1, start="sft")
    assert books.spent == [{"generated_tokens": 10, "optimizer_steps": 1}]


def test_episodes_of_a_look_are_drawn_alike(monkeypatch):
    asked = []
    playing = SimpleNamespace(play=lambda *given, **how: asked.append((given, how)))
    world = SimpleNamespace(playing=playing, language_model="model", seed=9)
    monkeypatch.setattr(actguide_world, "hinted", lambda prompt, actions, template: (prompt, len(actions)))
    problems = [problem(3), problem(5)]
    lengths = [len(actguide_world.Corridors().plan(seed)) for seed in (3, 5)]
    GuideWorld.play(world, problems, samples=3, share=0.3)
    prompts = [(f"text {seed}", round(0.3 * length)) for seed, length in zip((3, 5), lengths, strict=True)]
    how = {
        "samples": 3,
        "max_new_tokens": 1,
        "temperature": 1.0,
        "seed": [9, 41],
        "prompts": prompts,
        "batch_size": 256,
    }
    assert asked == [(("model", problems), how)]
    world.test, world.play = problems, lambda given, samples, share: (given, samples, share)
    monkeypatch.setattr(actguide_world, "_solved", lambda played: torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0]).numpy())
    assert GuideWorld.success(world, samples=3).tolist() == pytest.approx([1 / 3, 2 / 3])


def test_each_written_episode_has_ended(monkeypatch):
    made = tiny.tiny
    monkeypatch.setattr(
        tiny, "tiny", lambda *texts, **more: made(*texts, **{**more, "width": 16, "layers": 1, "heads": 2})
    )
    written = [Written("@..*", (("r", ".@.*"),)), Written("@..*", (("r", ".@.*"), ("r", "..@*"), ("r", "")))]
    found = actguide_world.as_rollouts(actguide_world.untaught(0), written)
    assert found.ended.tolist() == [True, True] and found.mask.sum(dim=-1).tolist() == [1, 3]
