"""The study of nested games: its world, equal numbers of games, what arms are, what they measure, that they resume."""

import dataclasses
import json
import math
import re
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.core.state import load_state
from equipoise.language import tiny
from equipoise.language.encode import IGNORE
from equipoise.reinforcement import nested_world
from equipoise.reinforcement.nested_games import Even, Nested, Rotating
from equipoise.reinforcement.nested_world import GAMES, TRANSFER, UNSEEN, Look, ModularSums, NestedWorld
from equipoise.reinforcement.playing import Playing
from equipoise.reinforcement.recipe import recipe
from equipoise.studies import nested_games
from equipoise.study import registry
from study_recorder import Stopped, StudyRecorder

SEED = 1007
MAKERS = {name: game.make for name, game in GAMES.items()}


class Recorder(StudyRecorder):
    seed = SEED


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untaught model, as the preparation stores one."""
    torch.set_num_threads(1)
    made = tiny.tiny([nested_world.CHARACTERS], seed=0, tokens="characters", width=16, layers=1, heads=2, context=256)
    path = tmp_path_factory.mktemp("prepared")
    dataclasses.replace(made, chat_template="none").save(path / "model")
    return path


@pytest.fixture
def study(monkeypatch, folder):
    monkeypatch.setattr(nested_games, "PROMPTS", 1)
    monkeypatch.setattr(nested_games, "GROUP", 2)
    monkeypatch.setattr(Recorder, "prepared", folder)
    monkeypatch.setattr(nested_world, "SEEDS", 8)
    return registry.load("nested-games").build(steps=4, evaluations=1, episodes=2)


@pytest.mark.parametrize("arm", ["nested-segments", "mixed", "rotation", "only-spy"])
def test_an_arm_plays_as_many_games_and_measures_everything(arm, study, tmp_path):
    run = Recorder(tmp_path, study=study, arm=arm)
    study.run(run)
    each = 2 * 4  # games of a kind: two samples in four steps
    assert run.spent["games"] == (each if arm == "only-spy" else 4 * each) and run.spent["optimizer_steps"] == 4
    at = [json.loads(re.findall(r"\{.*?\}", key)[0]) for key in run.measured]
    assert {place["step"] for place in at} == {4} and run.checkpoints == 1
    assert max(place["games"] for place in at) == run.spent["games"]
    assert max(place["generated_tokens"] for place in at) == run.spent["generated_tokens"]
    assert {outcome.name for outcome in study.outcomes} == {key.partition(" ")[0] for key in run.measured}
    rates = {game: run.last(game) for game in GAMES}
    assert run.last("success") == pytest.approx(np.mean(list(rates.values())))
    assert run.last("worst_lead") == pytest.approx(min(rates[game] - nested_games.CHANCE[game] for game in GAMES))
    games = {json.loads(key.split("} ")[1])["game"] for key in run.measured if key.startswith("success_in_training")}
    assert games == ({"spy"} if arm in ("only-spy", "rotation") else set(GAMES))  # the last quarter is one step here


def test_the_base_is_as_it_was_taught(study, tmp_path):
    run = Recorder(tmp_path, study=study, arm="base")
    study.run(run)
    assert not run.spent and not run.checkpoints
    assert {key.partition(" ")[0] for key in run.measured} >= {"success", "transfer", "worst_lead", *GAMES, *TRANSFER}


def test_a_stopped_run_comes_to_the_same_bytes(study, tmp_path):
    study = registry.load("nested-games").build(steps=2, evaluations=2, episodes=2)
    folders = [tmp_path / name for name in ("whole", "cut")]
    for each in folders:
        each.mkdir()
    whole = Recorder(folders[0], study=study, arm="nested-mean")
    study.run(whole)
    with pytest.raises(Stopped):
        study.run(Recorder(folders[1], study=study, arm="nested-mean", stop=1))
    resumed = Recorder(folders[1], study=study, arm="nested-mean")
    study.run(resumed)
    at = [json.loads(re.findall(r"\{.*?\}", key)[0])["step"] for key in whole.measured]
    assert set(at) == {1, 2}  # two looks, evenly
    assert resumed.spent == whole.spent and resumed.measured == pytest.approx(whole.measured, rel=0, abs=0, nan_ok=True)
    one, other = (load_state(each / "state")["state"]["training"]["optimizations"]["policy"] for each in folders)
    tensors = [value for value in _leaves(one) if isinstance(value, torch.Tensor)]
    assert tensors and all(map(torch.equal, tensors, [v for v in _leaves(other) if isinstance(v, torch.Tensor)]))


def _leaves(value):
    if isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _leaves(each)
    else:
        yield value


def test_what_the_arms_are(monkeypatch):
    monkeypatch.setattr(nested_world, "SEEDS", 8)
    world = NestedWorld(None, SEED)
    made = recipe("starpo", prompts_per_step=2, num_generations=16)
    assert (made.kl_beta, made.clip_low, made.clip_high, made.entropy_beta) == (0, 0.2, 0.28, 0.001)
    names = [arm.name for arm in registry.load("nested-games").build().arms if arm.name != "base"]
    found = {name: world._composed(made, name) for name in names}
    for name in ("mean", "min", "product", "all", "segments"):
        chosen, problems, sample = found[f"nested-{name}"]
        assert isinstance(sample, Playing) and chosen.prompts_per_step == 2 and sample.turns == 10
        assert chosen.advantage == ("segments" if name == "segments" else "grpo")
        assert sample.environment.make()._reward == ("mean" if name == "segments" else name)
        assert [problem.columns["seed"] for problem in problems] == list(range(nested_world.SEEDS))
    for name, kind in (("mixed", Even), ("rotation", Rotating)):
        chosen, problems, sample = found[name]
        assert isinstance(sample, kind) and chosen.prompts_per_step == 8 and chosen.advantage == "grpo"
    firsts = [Nested(MAKERS)._tasks[place].reset(task) for place, task in enumerate(_tasks_of(5))]
    for place, game in enumerate(GAMES):
        chosen, problems, sample = found[f"only-{game}"]
        assert chosen.prompts_per_step == 2 and len(problems) == nested_world.SEEDS
        assert problems[5].prompt == firsts[place]  # the very games of the nested episode


def _tasks_of(seed):
    return [seed, *(int(np.random.SeedSequence([seed, place]).generate_state(1)[0]) for place in (1, 2, 3))]


def test_chance_stands_beside_each_score():
    levels = nested_world.chance_levels()
    stated = nested_games.CHANCE | nested_games.CHANCE_TRANSFER
    assert levels == pytest.approx(stated, abs=6e-5) and list(nested_games.CHANCE) == list(GAMES)
    outcomes = {outcome.name: outcome.chance for outcome in registry.load("nested-games").build().outcomes}
    assert {name: outcomes[name] for name in stated} == stated
    random = Random(0)
    won = 0
    for seed in range(3000):  # a random number below the modulus, against the level that is stated
        environment = ModularSums()
        modulus = int(environment.reset(seed)[1:3])
        won += environment.step(str(random.randrange(modulus)))[3]["success"]
    assert abs(won / 3000 - levels["sums"]) < 4 * math.sqrt(levels["sums"] / 3000)


def test_sums():
    environment = ModularSums()
    for seed in range(40):
        text = environment.reset(seed)
        modulus, one, other = map(int, re.fullmatch(r"%(\d\d) (\d\d)\+(\d\d)=", text).groups())
        assert 10 <= modulus <= 11 and max(one, other) < modulus and environment.reset(seed) == text
        answers = [number for number in range(30) if environment.step(f"Answer: {number:02}.")[1] == 1]
        assert answers == [(one + other) % modulus]
        assert environment.step("no idea")[1:] == (-0.1, True, {"success": False, "valid": False})
    moduli = {int(TRANSFER["larger-sums"]().reset(seed)[1:3]) for seed in range(50)}
    assert moduli == {12, 13}


def test_lessons_are_episodes_in_the_tokens_of_play():
    language_model = nested_world.untaught(0)
    lessons = [nested_world.lesson(number) for number in range(40)]
    tokenizer = language_model.tokenizer
    for told, example in zip(lessons, nested_world.encoded(language_model, lessons), strict=True):
        text = "".join(f"{given}{move}{tokenizer.eos_token}" for given, move in told)
        assert list(example.input_ids) == tokenizer(text).input_ids and tokenizer.unk_token_id not in example.input_ids
        labelled = "".join(tokenizer.convert_ids_to_tokens(token) for token in example.labels if token != IGNORE)
        assert labelled == "".join(f"{move}{tokenizer.eos_token}" for _, move in told)
    alone, nested = lessons[::2], lessons[1::2]
    assert all(told[0][0].startswith("%") and len(told) >= 6 for told in nested)
    assert {told[0][0][0] in "%" for told in alone} == {True, False}
    longest = max(len(move) for told in lessons for _, move in told)
    assert longest + 1 <= nested_world.MAX_NEW_TOKENS


def test_players_are_right_when_they_should_be():
    def solved(right):
        found = {name: [] for name in GAMES}
        for number in range(400):
            name, random = list(GAMES)[number % 4], Random(9000 + number)
            game, environment = GAMES[name], MAKERS[name]()
            texts, done = [environment.reset(number)], False
            while not done:
                move = game.player(game.make, number, texts, right, random)
                text, _, done, info = environment.step(move)
                assert info.get("valid", True), (name, texts, move)
                texts.append(text)
            found[name].append(info["success"])
        return {name: np.mean(each) for name, each in found.items()}

    well, badly = solved(True), solved(False)
    assert well["sums"] == well["matrix"] == 1 and well["tictactoe"] > 0.5 and well["spy"] > 0.6
    for name, chance in nested_games.CHANCE.items():
        assert abs(badly[name] - chance) < 4 * math.sqrt(chance * (1 - chance) / 100), name


def test_no_nested_episode_is_too_long():
    """The longest that there can be: every turn is used, and none has an end token of its own."""
    most = 0
    for seed in range(40):
        environment = Nested(MAKERS)
        length, done = 1 + len(environment.reset(seed)), False
        while not done:
            text, _, done, _ = environment.step("zzzz")
            length += nested_world.MAX_NEW_TOKENS + 1 + (0 if done else len(text))
        most = max(most, length)
    assert most < nested_world.CONTEXT


def test_held_out_seeds_and_boards():
    assert len(GAMES) * nested_world.SEEDS < UNSEEN  # derived seeds are 32-bit words: by chance alone
    plain, mirrored = MAKERS["tictactoe"](), TRANSFER["mirrored-tictactoe"]()
    for seed in range(UNSEEN, UNSEEN + 5):
        one, other = plain.reset(seed).strip(), mirrored.reset(seed).strip()
        rows = [one[2:][first : first + 3][::-1] for first in (0, 3, 6)]
        assert other == one[:2] + "".join(rows)


def test_what_a_look_says_of_the_steps():
    logged = [{"entropy": value, "gradient_norm": 1 + value % 2} for value in range(8)]
    look = Look(8, 10, 20, logged)
    assert Look(2, 0, 0, logged[:2]).recent("entropy") == 1
    assert look.recent("entropy") == 6.5 and math.isnan(look.recent("success/spy"))
    assert look.gradient_variation == pytest.approx(0.5 / 1.5)


def test_a_preparation_that_was_killed_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(nested_world, "CHECKPOINT", 1)
    monkeypatch.setattr(nested_world, "BATCH_SIZE", 2)
    monkeypatch.setattr(
        nested_world, "untaught",
        lambda seed: dataclasses.replace(
            tiny.tiny([nested_world.CHARACTERS], seed=seed, tokens="characters", width=16, layers=1, heads=2, context=256),
            chat_template="none",
        ),
    )  # fmt: skip
    study = registry.load("nested-games").build(warm_up=3)
    whole, cut = (tmp_path / name for name in ("whole", "cut"))
    for each in (whole, cut):
        each.mkdir()
    undisturbed, resumed = Recorder(whole, study=study), Recorder(cut, study=study)
    nested_games.teach(undisturbed)
    with pytest.raises(Stopped):
        nested_games.teach(Recorder(cut, study=study, stop=2))
    nested_games.teach(resumed)
    assert undisturbed.checkpoints == 3
    assert resumed.spent == undisturbed.spent and undisturbed.spent["trained_tokens"] > 0
    name = "model/model.safetensors"
    assert (whole / name).read_bytes() == (cut / name).read_bytes()
    assert NestedWorld.open(SEED, cut).language_model.context == 256


def test_seeds_that_were_looked_at_are_no_test_seeds():
    study = registry.load("nested-games").build()
    assert max(study.test_seeds()) < 1000 and sum(claim.judged for claim in study.claims) == 3


def test_what_a_look_tells_of_the_games_played():
    """Of each game four episodes: the first of seven games wins none, the next one, two, three and four, then again."""
    measured, listed = {}, {}

    def evaluate(makers, *, episodes):
        assert episodes == 4
        return {
            name: [
                SimpleNamespace(seed=seed, success=float(seed < place % 5), valid=float(seed > 0)) for seed in range(4)
            ]
            for place, name in enumerate(makers)
        }

    run = SimpleNamespace(
        measure=lambda name, value, *, of=1, at: measured.update({name: (value, of, at)}),
        items=lambda name, ids, scores, *, at: listed.update({name: (ids, scores)}),
    )
    nested_games.judged(run, SimpleNamespace(evaluate=evaluate), {"step": 3}, 4)
    for makers, outcome in ((MAKERS, "success"), (TRANSFER, "transfer")):
        for place, name in enumerate(makers):
            assert measured.pop(name) == (place % 5, 4, {"step": 3})
        assert listed[outcome] == (
            [f"{name} {seed}" for name in makers for seed in range(4)],
            [float(seed < place % 5) for place in range(len(makers)) for seed in range(4)],
        )
    leads = [place % 5 / 4 - nested_games.CHANCE[name] for place, name in enumerate(MAKERS)]
    assert measured == {"worst_lead": (pytest.approx(min(leads)), 1, {"step": 3}), "valid": (0.75, 1, {"step": 3})}
