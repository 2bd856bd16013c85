"""The job: what it holds out, says at once, resumes and draws."""

import importlib
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import sha256_file
from equipoise.core.shares import Bounded
from equipoise.data.problems import Problem
from equipoise.reinforcement import reinforcing, training
from equipoise.reinforcement.attempts import held_out
from equipoise.reinforcement.job import reinforce
from equipoise.reinforcement.recipe import recipe
from equipoise.reinforcement.reinforcing import Reinforcing
from equipoise.reinforcement.result import shown
from reinforcement_world import ENDS, PROBLEMS, SMALL, model


def odd(completions, **_):
    return [float(len(each) % 2) for each in completions]


HOW = {**SMALL, "eval_samples": 2, "evaluate_every": 1, "reward": odd, "method": "grpo", "num_generations": 2}


def problems(count, **more):
    return [Problem(f"p{index}", f"What is {index}?", (str(index),), **more) for index in range(count)]


def test_a_tenth_is_held_out_where_there_are_enough():
    training_ones, measured = held_out(tuple(problems(45)))
    assert [each.id for each in measured] == ["p0", "p10", "p20", "p30", "p40"] and len(training_ones) == 40
    assert not {each.id for each in measured} & {each.id for each in training_ones}
    few, same = held_out(tuple(problems(39)))
    assert few == same and len(few) == 39


def test_groups_and_equal_prompts_are_held_out_whole():
    grouped = [replace(each, group=f"g{place // 7}") for place, each in enumerate(problems(700))]
    twice = [replace(each, prompt=f"What is {place % 60}?") for place, each in enumerate(problems(120))]
    uneven = [replace(each, group=f"g{0 if place < 500 else place}") for place, each in enumerate(problems(600))]
    for given, most in ((grouped, 70), (twice, 12), (uneven, 60)):
        training_ones, measured = held_out(tuple(given))
        assert most - 7 < len(measured) <= most and len(training_ones) + len(measured) == len(given)
        for same in ("group", "prompt"):
            parts = [{getattr(each, same) for each in part} - {""} for part in (training_ones, measured)]
            assert not parts[0] & parts[1], same
    assert held_out(tuple(grouped[:210]))[0] == tuple(grouped[:210])  # 30 groups are too few


def test_prompts_that_are_measured_and_learnt_from_are_told():
    learnt = problems(20)
    others = [
        replace(each, id=f"other {each.id}", prompt=f"{each.prompt}{'' if n < 3 else '?'}")
        for n, each in enumerate(learnt)
    ]
    for asked, said in (
        (others, "3 of the 20 prompts that before and after are compared on were learnt from, too."),
        (others[3:], None),
        (others[:3], "compared on the prompts that were learnt from"),
    ):
        notes = reinforce.plan(model(), prompts=learnt, eval_prompts=asked, **HOW).notes
        assert notes == () if said is None else said in notes[0]


@pytest.mark.parametrize("method", ["grpo", "sppo"])
def test_rewards_that_are_all_alike_are_said_at_once_and_first_in_the_result(method, capsys):
    settings = {**HOW, "method": method, "reward": lambda completions, **_: [0.0] * len(completions)}
    result = reinforce(model(), prompts=PROBLEMS, **(settings | {"num_generations": None if method == "sppo" else 2}))
    assert result.alike == 1
    said = f"All responses{' to a prompt' if method == 'grpo' else ''} had the same reward, from which {method} learns"
    assert result.warnings()[0].startswith(said) and "num_generations" in result.headline()
    assert capsys.readouterr().err.count(said) == 1


@pytest.mark.parametrize(("method", "alike"), [("grpo", 1), ("remax", 1), ("reinforce++", 0)])
def test_prompts_that_are_always_right_or_always_wrong_teach_groups_nothing(tmp_path, method, alike):
    """No weight moves, and the remedy is no larger learning rate; what compares with the batch learns from them."""

    def reward(prompts, **_):
        return [float("o" in each) for each in prompts]

    how = {**HOW, "prompts_per_step": len(PROBLEMS)}  # a batch has prompts of both kinds
    result = reinforce(model(), prompts=PROBLEMS, out=tmp_path / "out", **{**how, "method": method, "reward": reward})
    assert result.alike == alike and (result.moved == 0) == (alike == 1)
    first = result.headline().startswith(
        f"All responses to a prompt had the same reward, from which {method} learns nothing"
    )
    assert first == (alike == 1)
    shown = f"steps whose responses {'all' if method == 'reinforce++' else 'to each prompt'} had one reward"
    assert shown in (tmp_path / "out" / "report.html").read_text()


def test_what_teaches_nothing():
    same, each, mixed = (torch.tensor(rows) for rows in ([[1.0, 1], [1, 1]], [[1.0, 1], [0, 0]], [[1.0, 0], [0, 0]]))
    for method, expected in (("grpo", [True, True, False]), ("sppo", [True, False, False])):
        assert [
            reinforcing.teaches_nothing(recipe(method), rewards, 1.0) for rewards in (same, each, mixed)
        ] == expected
    # an episode's tasks are told apart by their own scores
    assert not reinforcing.teaches_nothing(recipe("grpo", advantage="segments"), same, 0.5)


def test_a_reward_outside_0_and_1_is_refused_by_sppo(tmp_path):
    settings = {**HOW, "method": "sppo", "reward": lambda completions, **_: [2.0] * len(completions)}
    with pytest.raises(BadInput, match=r"rewards.*\[0, 1\]"):
        reinforce(model(), prompts=PROBLEMS, out=tmp_path / "out", **{**settings, "num_generations": None})


def test_the_result_adds_up_with_the_log_and_the_page_shows_it(tmp_path):
    asked = [replace(each, prompt=f"<script>alert({place})</script>") for place, each in enumerate(PROBLEMS)]
    result = reinforce(model(), prompts=asked, out=tmp_path / "out", **HOW)
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert result.tokens["training"] == sum(row["generated_tokens"] for row in rows)
    assert [point["step"] for point in result.path] == [0, 1, 2]
    assert result.path[0]["pass@1"] == result.before["pass@1"].value
    assert result.path[-1]["greedy_accuracy"] == result.after["greedy_accuracy"].value
    assert any("compared on the prompts that were learnt from" in note for note in result.notes)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert(" not in page and "&lt;script&gt;alert(" in page
    for title in ("Reward", "Length", "Entropy", "Solved along the way"):
        assert title in page
    assert "Divergence from the starting model" not in page  # no KL in this recipe


def test_a_reward_function_sees_token_ids_and_the_step_as_trl_gives_them():
    seen = []

    def reward(completions, completion_ids, trainer_state, **_):
        seen.append((completions, completion_ids, trainer_state.global_step))
        return [float(len(ids) % 2) for ids in completion_ids]

    result = reinforce(model(), prompts=PROBLEMS, **{**HOW, "reward": reward})
    assert {step for _, _, step in seen} == {0, 1}
    assert all(len(completions) == len(ids) for completions, ids, _ in seen)
    assert sum(len(ids) for _, batch, _ in seen for ids in batch) == sum(
        result.tokens.values()
    )  # the look between, too
    ends = [ids[-1] in ENDS for _, batch, _ in seen for ids in batch if len(ids) < SMALL["max_new_tokens"]]
    assert ends and all(ends)  # no padding among them


@pytest.mark.parametrize(
    ("steps", "settings"),
    [
        (1, {}),
        (4, {"evaluate_every": 2}),
        (4, {"evaluate_every": 3, "eval_samples": 3}),
        (2, {"method": "remax"}),
        (2, {"method": "remax", "mixed_only": True}),
        (2, {"method": "dapo", "reward": lambda completions, **_: [float("q" in each) for each in completions]}),
        (5, {"select": "dots", "reference_questions": 8, "prompts_per_step": 2}),
        (5, {"select": "oracle", "prompts_per_step": 2}),
    ],
)
def test_the_plan_counts_each_response_that_may_be_written(monkeypatch, steps, settings):
    """Of the rows that are rolled out none is beyond it, and without a prompt that is drawn in vain it is all of them."""
    written, asked = (
        [],
        [replace(PROBLEMS[n % 5], id=f"p{n}", prompt=f"{PROBLEMS[n % 5].prompt} {n}") for n in range(10)],
    )
    for module in ("stages", "measures"):
        real = importlib.import_module(f"equipoise.reinforcement.{module}").roll_out

        def counted(*given, real=real, **how):
            rolled = real(*given, **how)
            written.append(len(rolled.ids))
            return rolled

        monkeypatch.setattr(f"equipoise.reinforcement.{module}.roll_out", counted)
    how = {**HOW, "steps": steps, **settings}
    planned = reinforce.plan(model(), prompts=asked, eval_prompts=PROBLEMS, **how).generated_tokens
    written.clear()
    try:
        reinforce(model(), prompts=asked, eval_prompts=PROBLEMS, **how)
    except WorkFailed:
        assert how["method"] == "dapo"  # all in vain, after ten batches of the first step
    count, most = sum(written), planned / SMALL["max_new_tokens"]
    if how["method"] == "dapo" or how.get("mixed_only"):
        assert count <= most and how["steps"] * 3 * 2 < count
    else:
        assert count == most


@pytest.mark.parametrize(("method", "starts"), [("sppo", True), ("ppo", False)])
def test_a_new_critic_of_chances_begins_at_the_mean_reward(monkeypatch, method, starts):
    began = []
    real = reinforcing.train

    def train(*given, critic, **named):
        began.append(critic.head.bias.item())
        return real(*given, critic=critic, **named)

    monkeypatch.setattr(reinforcing, "train", train)
    result = reinforce(
        model(), prompts=PROBLEMS, **{**HOW, "method": method, "num_generations": None, "eval_samples": 8}
    )
    rate = result.before["pass@1"].value
    assert 0 < rate < 1
    assert began == [pytest.approx(math.log(rate / (1 - rate)) if starts else 0.0, abs=1e-6)]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("where", ["rollout", "update"])
def test_what_was_cut_off_goes_on_to_the_same_bytes(tmp_path, monkeypatch, where):
    settings = {**HOW, "method": "sppo", "num_generations": None, "steps": 4, "save_every": 1}
    whole = reinforce(model(), prompts=PROBLEMS, out=tmp_path / "whole", **settings)
    calls = 0
    name = "_sampled" if where == "rollout" else "_learn"
    real = getattr(training._Loop, name)

    def killed(self, *given):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Killed
        return real(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(training._Loop, name, killed)
        with pytest.raises(Killed):
            reinforce(model(), prompts=PROBLEMS, out=tmp_path / "cut", **settings)
    measured = []
    solve = Reinforcing._solve
    monkeypatch.setattr(Reinforcing, "_solve", lambda *given, **how: measured.append(how) or solve(*given, **how))
    again = reinforce(model(), prompts=PROBLEMS, out=tmp_path / "cut", **settings)
    assert measured.count({}) == 1  # after; before is kept
    for file in ("model.safetensors", "critic/model.safetensors", "critic/critic_head.safetensors", "metrics.jsonl"):
        assert sha256_file(tmp_path / "cut" / file) == sha256_file(tmp_path / "whole" / file), file
    assert again.path == whole.path and again.tokens == whole.tokens


def test_what_fell_is_one_warning_that_names_all():
    result = reinforce(model(), prompts=PROBLEMS, **HOW)
    down, up = Bounded(-0.2, -0.3, -0.1), Bounded(0.2, 0.1, 0.3)
    of = {"greedy_accuracy": Bounded(0.5, 0.4, 0.6), "pass@1": Bounded(0.4, 0.3, 0.5), "pass@2": Bounded(0.6, 0.5, 0.7)}
    to = {name: Bounded(each.value - 0.2, 0, 1) for name, each in of.items()}
    seen = replace(
        result,
        moved=1.0,
        alike=0.0,
        before=of,
        after=to,
        changes={"greedy_accuracy": down, "pass@1": up, "pass@2": down},
    )
    assert seen.warnings() == (
        "Fallen by more than chance explains: greedy_accuracy from 0.500 to 0.300, pass@2 from 0.600 to 0.400.",
    )


def test_an_interval_that_nobody_knows_is_not_shown():
    none, alone = Bounded(math.nan, math.nan, math.nan), Bounded(0.5, math.nan, math.nan)
    assert [shown(each) for each in (none, alone, Bounded(0.5, 0.25, 1))] == ["none", "0.500", "0.500 [0.250, 1.000]"]


def test_a_loss_that_is_no_number_ends_the_run_with_what_to_change(monkeypatch):
    real = training.stages.policy_objective

    def spoilt(recipe, stats):
        loss = real(recipe, stats)
        return lambda model, batch: tuple(each * float("nan") for each in loss(model, batch))

    monkeypatch.setattr(training.stages, "policy_objective", spoilt)
    with pytest.raises(WorkFailed, match=r"loss is nan at step 1: .* Use a smaller learning rate"):
        reinforce(model(), prompts=PROBLEMS, **HOW)


def test_a_request_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(Reinforcing, "_opened", lambda *_, **__: pytest.fail("a model was loaded"))
    for given, word in (
        ({"model": "http://localhost/v1"}, "server"),
        ({"prompts": problems(2)[:0]}, "empty"),
        ({"prompts": [Problem("x", "?", ())], "reward": None, "verifier": "number"}, "no gold answer"),
    ):
        with pytest.raises(BadInput, match=word):
            reinforce(**{"model": "model", "prompts": PROBLEMS, **HOW, **given})


def test_a_model_or_a_critic_that_was_written_anew_is_another(tmp_path):
    for name, seed in (("model", 4), ("critic", 4)):
        model(seed).save(tmp_path / name)
    given = {
        **HOW,
        "method": "sppo",
        "num_generations": None,
        "steps": 1,
        "model": str(tmp_path / "model"),
        "critic": tmp_path / "critic",
        "prompts": PROBLEMS,
        "device": "cpu",
    }
    first = reinforce(**given, out=tmp_path / "out")
    assert reinforce(**given, out=tmp_path / "out").path == first.path  # the same folders: what is done
    for name in ("model", "critic"):
        model(5).save(tmp_path / name)
        for call in (reinforce, reinforce.plan):
            with pytest.raises(BadInput, match=f"begun with another content of {name}"):
                call(**given, out=tmp_path / "out")
        model(4).save(tmp_path / name)
    assert reinforce(**given, out=tmp_path / "out").path == first.path


def test_a_tiny_model_is_taught_but_for_a_plan(monkeypatch, tmp_path):
    asked = []

    def taught_once(folder, processes, teach):
        asked.append((folder, processes))
        return teach()

    monkeypatch.setattr(reinforcing, "taught_once", taught_once)
    small = reinforcing.tiny_model(None, 3, "processes", taught=False)
    assert asked == [] and small.chat_template == "none"
    count = sum(parameter.numel() for parameter in small.model.parameters())
    monkeypatch.setattr(
        "equipoise.language.warm_start.arithmetic_model",
        lambda *world: SimpleNamespace(language_model=asked.append(world) or replace(small, chat_template="auto")),
    )
    made = reinforcing.tiny_model(tmp_path, 3, "processes")
    assert asked == [(tmp_path, "processes"), ("levels", 3)] and made.model is small.model
    assert (made.name, made.origin, made.chat_template) == ("tiny", None, "none")
    assert f"of {count / 1e6:.1f} million parameters" in made.source
