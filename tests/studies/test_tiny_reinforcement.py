"""The studies of SPPO, APO and R2PO on a tiny decoder: that arms run on one budget, what they measure, that they resume."""

import copy
import dataclasses
import json
import math
from itertools import product

import numpy as np
import pytest
import torch

from equipoise.core.state import load_state, save_state
from equipoise.data.arithmetic import CHARACTERS, OPERATORS, problems, solution
from equipoise.language import tiny
from equipoise.language.rollouts import Rollouts
from equipoise.language.warm_start import WORLDS, ArithmeticModel, WarmStart
from equipoise.reinforcement.recipe import recipe
from equipoise.reinforcement.tiny_world import Look, TinyWorld, critic_bytes, freezing_output, shallow_critic
from equipoise.studies import apo_tiny, r2po_tiny, sppo_tiny
from equipoise.study import registry

OPTIONS = {
    "sppo-tiny": {"steps": 2, "evaluations": 2},
    "apo-tiny": {"steps": 2, "evaluations": 2},
    "r2po-tiny": {"rounds": 2, "head_steps": 1, "policy_steps": 1, "evaluations": 2},
}
SEED = 1007


class Stopped(Exception):
    """The process is killed here."""


class Recorder:
    """What a run gives and takes, with `stop` as the number of the checkpoint after which it dies."""

    prepared = None

    def __init__(self, study, arm, folder, stop=None):
        self.settings, self.options, self.seed = study.arm(arm).points()[0], study.options, SEED
        self.measured, self.spent, self.stop = {}, {}, stop
        self._names, self._path = {each.name for each in study.outcomes}, folder / f"{study.name}-{arm}"

    def resume(self):
        if not self._path.exists():
            return None
        stored = load_state(self._path)
        self.measured, self.spent = stored["measured"], stored["spent"]
        return stored["state"]

    def checkpoint(self, state):
        save_state(self._path, {"state": state, "measured": self.measured, "spent": self.spent})
        if self.stop is not None:
            self.stop -= 1
            if not self.stop:
                raise Stopped

    def trained(self):
        """The weights at the last checkpoint."""
        return load_state(self._path)["state"]["training"]["optimizations"]

    def measure(self, outcome, value, *, of=1, at):
        assert outcome in self._names
        self.measured[f"{outcome} {json.dumps(at)}"] = float(value) / of if of else math.nan

    def items(self, outcome, ids, scores, *, at):
        assert len(set(ids)) == len(scores)
        self.measure(outcome, np.asarray(scores, float).mean(), at=at)

    def spend(self, *, phase, **amounts):
        for name, amount in amounts.items():
            self.spent[name] = self.spent.get(name, 0) + amount

    def of(self, outcome):
        return [value for key, value in self.measured.items() if key.startswith(f"{outcome} ")]


@pytest.fixture(scope="module")
def untaught():
    torch.set_num_threads(1)
    made = tiny.tiny([CHARACTERS], seed=0, tokens="characters", width=16, heads=2)
    return dataclasses.replace(made, chat_template="none")


@pytest.fixture
def small(untaught, monkeypatch):
    """Short texts of an untaught model, of which a third count as right; everything else as it is."""

    def opened(cls, world, seed, folder, *, train, test):
        start = dataclasses.replace(WORLDS[world], max_new_tokens=5)
        asked = [
            problems(n, seed=0, kind=start.kind, levels=start.levels, part=p) for n, p in ((9, "train"), (4, "test"))
        ]
        return TinyWorld(ArithmeticModel(start, copy.deepcopy(untaught), *asked, {}, 0, 0), seed)

    monkeypatch.setattr(TinyWorld, "open", classmethod(opened))
    monkeypatch.setattr(WarmStart, "solved", lambda self, problem, text: sum(map(ord, problem.id + text)) % 3 == 0)
    for module in (sppo_tiny, apo_tiny, r2po_tiny):
        monkeypatch.setattr(module, "RESPONSES", 16)
    return opened


def built(name):
    return registry.load(name).build(**OPTIONS[name])


@pytest.mark.parametrize(
    ("name", "arm"),
    [
        ("sppo-tiny", "sppo-quarter"),
        ("sppo-tiny", "ppo-bce"),
        ("sppo-tiny", "running-mean"),
        ("apo-tiny", "kl-on-wrong"),
        ("r2po-tiny", "random-head"),
        ("r2po-tiny", "staging-alone"),
    ],
)
def test_an_arm_runs_on_the_budget_and_measures_everything(name, arm, small, tmp_path):
    study = built(name)
    run = Recorder(study, arm, tmp_path)
    study.run(run)
    places = [json.loads(key.partition(" ")[2]) for key in run.measured]
    steps = 4 if name == "r2po-tiny" else 2
    updates = 2 * steps if name == "apo-tiny" else steps
    assert run.spent == {
        "generated_tokens": max(each["generated_tokens"] for each in places),
        "optimizer_steps": updates,
    }
    assert 16 * steps <= run.spent["generated_tokens"] <= 16 * steps * 5
    missing = {outcome.name for outcome in study.outcomes} - {key.partition(" ")[0] for key in run.measured}
    assert missing == ({"critic_spearman", "critic_brier"} if arm in ("ppo-bce", "running-mean") else set())


@pytest.mark.parametrize(("name", "arm"), [("sppo-tiny", "sppo"), ("apo-tiny", "apo"), ("r2po-tiny", "r2po-rarity")])
def test_a_stopped_run_comes_to_the_same_bytes(name, arm, small, tmp_path):
    study = built(name)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    undisturbed = Recorder(study, arm, whole)
    study.run(undisturbed)
    with pytest.raises(Stopped):
        study.run(Recorder(study, arm, cut, stop=1))
    resumed = Recorder(study, arm, cut)
    study.run(resumed)
    assert resumed.spent == undisturbed.spent
    assert resumed.measured == pytest.approx(undisturbed.measured, rel=0, abs=0, nan_ok=True)
    assert_same(resumed.trained(), undisturbed.trained())


def assert_same(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    else:
        assert one == other


@pytest.mark.parametrize("name", OPTIONS)
def test_every_arm_spends_64_responses_a_step_and_differs_as_it_is_called(name, small, tmp_path, monkeypatch):
    made = {}
    monkeypatch.undo()
    monkeypatch.setattr(TinyWorld, "open", classmethod(small))
    monkeypatch.setattr(
        TinyWorld, "reinforce", lambda self, run, its, look, **more: made.update({run.arm: (its, more)})
    )
    study = registry.load(name).build()
    for arm in study.arms:
        run = Recorder(study, arm.name, tmp_path)
        run.arm = arm.name
        study.run(run)
    assert {its.responses for its, _ in made.values()} == {64} and len({its.steps for its, _ in made.values()}) == 1
    assert {its.aggregate for its, _ in made.values()} == {
        "seq-mean-token-mean" if name == "r2po-tiny" else "token-mean"
    }
    assert len({json.dumps([its.model_dump(), *map(str, more)]) + arm[:9] for arm, (its, more) in made.items()}) == len(
        made
    )
    if name == "sppo-tiny":
        assert {arm for arm, (its, _) in made.items() if its.samples == 8} == {"grpo", "rloo"}
        critics = {arm: critic_bytes(more["critic"]) for arm, (_, more) in made.items()}
        assert 0.2 < critics["sppo-quarter"] / critics["sppo"] < 0.35 and critics["sppo"] == critics["ppo-gae"] > 0
        assert {arm for arm, size in critics.items() if not size} == set(made) - {
            "sppo",
            "sppo-quarter",
            "ppo-gae",
            "ppo-bce",
        }
    if name == "r2po-tiny":
        assert made["r2po-task"][0].stage(0) == "head" and made["grpo"][0].stage(0) == "policy"
        assert [arm for arm, (_, more) in made.items() if "sample" in more] == ["staging-alone"]


@pytest.mark.parametrize("name", OPTIONS)
def test_seeds_that_were_looked_at_are_no_test_seeds(name):
    assert max(registry.load(name).build().test_seeds()) < 1000


def test_the_probability_of_a_solution_is_the_product_over_its_tokens(untaught, small):
    for world, form in (("routes", "plain"), ("format", "strict")):
        its = small(None, world, 0, None, train=1, test=1)
        found = its.solution_probabilities()
        tokenizer, model = untaught.tokenizer, untaught.model
        for problem, probabilities in zip(its.test, found, strict=True):
            expected = []
            for route in problem.routes:
                text = solution(problem, route=route, form=form).text
                said = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
                ids = [tokenizer.bos_token_id, *tokenizer(problem.prompt, add_special_tokens=False).input_ids]
                probability = 1.0
                for token in said:
                    with torch.no_grad():
                        probability *= model(torch.tensor([ids])).logits[0, -1].softmax(-1)[token].item()
                    ids.append(token)
                expected.append(probability)
            assert probabilities == pytest.approx(expected, rel=1e-4) and len(expected) == len(problem.routes)
        assert its.solve_rates() == pytest.approx([each.sum() for each in found])


def test_every_solution_that_counts_is_among_them():
    """Of all operators between the numbers, sound or not, those that solve are the problem's routes."""
    world = WORLDS["routes"]
    for problem in problems(20, seed=3, kind="routes", levels=(2, 3), part="test"):
        every = map("".join, product(OPERATORS, repeat=problem.level))
        solving = [route for route in every if world.solved(problem, solution(problem, route=route).text)]
        assert solving == list(problem.routes)


def test_coverage_is_the_mass_on_the_start_s_likeliest(untaught, small):
    its = small(None, "routes", 0, None, train=1, test=1)
    written = its.write(samples=2, temperature=1.0)
    with torch.no_grad():
        its.language_model.model.lm_head.weight.mul_(3)  # tied: the model is another one now
    batch = written.batch([0, 2, 4, 6])
    mass = []
    for row, wanted in enumerate(batch["predicts"]):
        with torch.no_grad():
            before, now = (
                m(batch["input_ids"][row : row + 1]).logits[0, wanted].softmax(-1)
                for m in (untaught.model, its.language_model.model)
            )
        mass += now.gather(-1, before.topk(3, dim=-1).indices).sum(-1).tolist()
    assert its.coverage(untaught.model, written, anchors=3) == pytest.approx(np.mean(mass), rel=1e-4)
    assert its.coverage(its.language_model.model, written, anchors=3) != pytest.approx(np.mean(mass), rel=1e-2)


def test_a_shallow_critic_has_the_policy_s_first_layers(untaught):
    whole, quarter = shallow_critic(untaught, 1.0, seed=0), shallow_critic(untaught, 0.25, seed=0)
    assert [len(each.body.layers) for each in (whole, quarter)] == [4, 1]
    assert torch.equal(quarter.body.layers[0].mlp.up_proj.weight, untaught.model.model.layers[0].mlp.up_proj.weight)
    assert untaught.model.config.num_hidden_layers == len(untaught.model.model.layers) == 4
    assert critic_bytes(quarter) == 16 * sum(each.numel() for each in quarter.parameters()) and critic_bytes(None) == 0


def test_the_output_matrix_stays_in_frozen_steps_alone(small, tmp_path):
    its = small(None, "format", 0, None, train=1, test=1)
    weight, layer = its.language_model.model.lm_head.weight, its.language_model.model.model.layers[0].mlp.up_proj.weight
    seen = []
    frozen = freezing_output(its.language_model, lambda step: step == 1)
    frozen["callbacks"].append(lambda state: seen.append((weight.detach().clone(), layer.detach().clone())))
    made = recipe("grpo", steps=3, prompts_per_step=2, max_new_tokens=4, learning_rate=1e-2)
    run = Recorder(built("r2po-tiny"), "staging-alone", tmp_path)
    its.reinforce(run, made, lambda now: None, evaluations=1, reward=lambda problem, text: float(len(text)), **frozen)
    (first, a), (second, b), (third, c) = seen
    assert torch.equal(first, second) and not torch.equal(second, third)
    assert not torch.equal(a, b) and not torch.equal(b, c)


@pytest.fixture
def one_look(small, monkeypatch):
    """study, arm, texts -> what its look measures of greedy answers with these texts, and of the looks after it."""

    def measured(name, arm, folder, *written, logged=()):
        looks = iter(written)
        monkeypatch.setattr(TinyWorld, "write", lambda self, **_: next(looks))

        def reinforce(self, run, made, look, **more):
            notes = {}
            for place in range(len(written)):
                look(Look(place, place, 100 * place, place == len(written) - 1, logged, notes))

        monkeypatch.setattr(TinyWorld, "reinforce", reinforce)
        study = built(name)
        run = Recorder(study, arm, folder)
        study.run(run)
        return run

    return measured


def answers(texts, lengths=None, samples=1):
    lengths = torch.tensor(lengths or [1] * len(texts))
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(-1)
    empty = torch.zeros(mask.shape)
    return Rollouts(
        tuple((1, 5) for _ in texts[::samples]),
        samples,
        0,
        empty.long(),
        mask,
        empty,
        empty,
        mask,
        mask[:, 0],
        tuple(texts),
    )


def test_accuracy_so_far_is_the_mean_of_the_path_by_trapezoids(one_look, tmp_path, monkeypatch):
    monkeypatch.setattr(WarmStart, "solved", lambda self, problem, text: text == "yes")
    paths = [answers(["yes" if place < n else "no" for place in range(4)]) for n in (0, 2, 4)]
    run = one_look("sppo-tiny", "grpo", tmp_path, *paths, logged=[{"zero_advantage": 0.25}, {"zero_advantage": 0.75}])
    assert run.of("greedy_accuracy") == [0, 0.5, 1]
    assert run.of("accuracy_so_far") == [0, 0.25, 0.5]
    assert run.of("zero_advantage_share") == [0.5, 0.5] and run.of("critic_bytes") == [0]


def test_form_and_length_of_greedy_answers(one_look, small, tmp_path, monkeypatch):
    monkeypatch.setattr(WarmStart, "solved", lambda self, problem, text: text.endswith("#2"))
    logged = [{"zero_advantage": 0.25, "distinct_rewards": 3.0}, {"zero_advantage": 0.75, "distinct_rewards": 4.0}]
    written = answers(["1#2", "1#2", "1:2", "1#3"], [3, 5, 9, 6])
    run = one_look("r2po-tiny", "grpo", tmp_path, written, logged=logged)
    assert run.of("zero_advantage_share") == [0.5] and run.of("distinct_rewards") == [3.5]
    assert run.of("greedy_accuracy") == [0.5] and run.of("greedy_format_error") == [0.25]
    assert run.of("length_gap") == [3.5]  # levels 2, 3, 2, 3: (9 - 3) and (6 - 5)


def test_pass_at_k_and_branches_that_return(one_look, tmp_path, monkeypatch):
    monkeypatch.setattr(WarmStart, "solved", lambda self, problem, text: text == "yes")
    monkeypatch.setattr(TinyWorld, "coverage", lambda self, start, written, anchors: 0.5)
    branches = iter(
        [
            [[0.5, 1e-4], [1e-4], [0.2], [1e-4]],
            [[0.5, 1e-2], [1e-5], [1e-5], [2e-3]],
            [[1e-5, 1e-2], [0.5], [1e-5], [0.5]],
        ]
    )
    monkeypatch.setattr(TinyWorld, "solution_probabilities", lambda self: [np.array(each) for each in next(branches)])
    texts = [("yes" if sample < n else "no") for n in (0, 1, 16, 32) for sample in range(32)]
    run = one_look("apo-tiny", "grpo", tmp_path, *[answers(texts, samples=32)] * 3)
    assert run.of("pass_at_1")[0] == pytest.approx((1 + 16 + 32) / 32 / 4) and run.of("pass_at_32")[0] == 0.75
    assert run.of("pass_at_2")[0] == pytest.approx((2 / 32 + (1 - 16 * 15 / (32 * 31)) + 1) / 4)
    assert run.of("dead_problems") == [0.5, 0.75, 0.25] and run.of("branches") == [2 / 5, 3 / 5, 3 / 5]
    assert run.of("returned") == [2 / 3, 3 / 4]  # of 1, 2, 4 below; of those and 3
