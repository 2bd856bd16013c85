"""Selection and replay inside the loop: what they leave as it was, what comes again, what is counted, how it resumes."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.core.state import load_state
from equipoise.core.streams import torch_stream
from equipoise.data.problems import Problem
from equipoise.language.rollouts import score_responses
from equipoise.reinforcement import dots, selection, stages
from equipoise.reinforcement.dots import DifficultySampler, EmbeddingPredictor
from equipoise.reinforcement.rates import GroupCounts, SamplerStatistics, Selected
from equipoise.reinforcement.recipe import recipe
from equipoise.reinforcement.selection import KEY, sampler_of
from ports import free_port
from reinforcement_world import SMALL, copied, equal, model, odd, reinforced, weights

WORDS = ["yes", "Where was Mulum Kunwick born?", "one two three four", "no", "Norway? Oslo"]
POOL = [Problem(f"p{index}", f"{WORDS[index % 5]} {index}", ("a",)) for index in range(20)]
EMBEDDINGS = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
DOTS = {"select": "dots", "reference_questions": 8, "num_generations": 2, "prompts_per_step": 4}
NEW = {"fresh_groups", "effective_share", "reference_tokens"}


class Reader:
    """Predicts the first number of an embedding."""

    def predict(self, embeddings, reference_embeddings, reference_difficulty):
        return embeddings[:, 0]


def run(method="grpo", *, how=None, predictor=None, embeddings=EMBEDDINGS, trusted=False, problems=POOL, **settings):
    given = {name: settings.pop(name) for name in ("reward", "language_model") if name in settings}
    chosen = recipe(method, **{**SMALL, **settings})
    how = dict(how or {})
    if chosen.select == "dots":
        sampler = sampler_of(chosen, embeddings, predictor or EmbeddingPredictor())
        if trusted:
            sampler.min_correlation = -2.0
        how.setdefault("sampler", sampler)
    return reinforced(method, problems=problems, how=how, **given, **settings)


def by_problem(problems, texts):
    """Prompts with an even number are sometimes solved, the others never."""
    return [
        float(len(text) % 2 and int(problem.id[1:]) % 2 == 0) for problem, text in zip(problems, texts, strict=True)
    ]


def test_without_a_temperature_and_replay_it_is_grpo_bit_for_bit():
    """Weights, and whatever a plain run logs; nothing is measured."""
    settings = {"steps": 4, "num_generations": 2, "prompts_per_step": 4}
    plain, found = run(**settings), run(**{**DOTS, **settings, "select_temperature": math.inf})
    assert equal(found.weights, plain.weights)
    for one, two in zip(found.metrics, plain.metrics, strict=True):
        assert {name: one[name] for name in two} == two and one.keys() - two.keys() == NEW
        assert one["reference_tokens"] == 0.0
    assert plain.result.selected is None and found.result.selected.statistics.blocks == 0
    assert found.result.generated_tokens == plain.result.generated_tokens


def test_what_is_measured_is_counted_and_chosen_from():
    """A block of two steps of what is nearest to the target; references are generated tokens, too."""
    found = run(**DOTS, steps=4, trusted=True, predictor=Reader(), difficulty_target=1.0)
    nearest = (EMBEDDINGS[:, 0] - 1).abs().argsort()[:8].tolist()
    for first in (0, 2):
        chosen = [problem.id for step in found.steps[first : first + 2] for problem in step.problems]
        assert sorted(chosen) == sorted(POOL[place].id for place in nearest)
    written = [int(step.rollouts.mask.sum()) for step in found.steps]
    measured = [int(metrics["reference_tokens"]) for metrics in found.metrics]
    assert min(measured[0], measured[2]) > 16 and measured[1] == measured[3] == 0
    assert [metrics["generated_tokens"] for metrics in found.metrics] == [
        a + b for a, b in zip(written, measured, strict=True)
    ]
    assert found.result.generated_tokens == sum(written) + sum(measured)
    assert [("correlation" in metrics) for metrics in found.metrics] == [True, False, True, False]
    selected = found.result.selected
    assert selected.measured_tokens == sum(measured) and selected.fresh == selected.statistics.trained
    assert (selected.fresh.groups, selected.statistics.references.rollouts) == (16, 2 * 8 * 2)
    shares = [metrics["effective_share"] for metrics in found.metrics]
    assert sum(shares) * 4 == selected.fresh.effective > 0
    keys = [key for step in found.steps for key in step.keys]
    assert len(set(keys)) == 16 and not set(keys) & set(range(8))  # the first were the references' draws


def test_an_oracle_by_rollouts_and_by_what_it_is_told():
    """All prompts before every block, counted apart; told, it asks nobody."""
    asked = Counter()

    def reward(problems, texts):
        asked.update(problem.id for problem in problems)
        return by_problem(problems, texts)

    how = {**DOTS, "select": "oracle", "steps": 4, "reward": reward}
    del how["reference_questions"]
    found = run(**how)
    assert all(asked[problem.id] >= 4 for problem in POOL)
    tokens = [metrics["oracle_tokens"] for metrics in found.metrics]
    assert tokens[0] > 40 < tokens[2] and tokens[1] == tokens[3] == 0.0 and "reference_tokens" not in found.metrics[0]
    written = sum(int(step.rollouts.mask.sum()) for step in found.steps)
    assert found.result.generated_tokens == written and found.result.selected.measured_tokens == sum(tokens)
    assert math.isnan(found.result.selected.rollouts_saved)
    asked.clear()
    seen = []
    near = torch.tensor([0.5 if index in (1, 3, 4, 9, 11, 12, 17, 18) else 0.9 for index in range(20)])
    told = run(**how, how={"difficulty": lambda language_model: seen.append(weights(language_model.model)) or near})
    chosen = [{problem.id for step in told.steps[first : first + 2] for problem in step.problems} for first in (0, 2)]
    assert chosen == [{"p1", "p3", "p4", "p9", "p11", "p12", "p17", "p18"}] * 2 and asked.total() == 4 * 4 * 2
    assert len(seen) == 2 and not equal(*seen) and told.result.selected.measured_tokens == 0


REPLAY = {"num_generations": 2, "prompts_per_step": 4, "replay": 0.5}


def test_groups_come_again_as_they_were_written(monkeypatch):
    """The first block is fresh; then two of four: their tokens, rewards and log-probabilities are those of that time."""
    written, again, streams = {}, 0, []
    monkeypatch.setattr(selection, "torch_stream", lambda *key: streams.append(key) or torch_stream(*key))
    found = run(**REPLAY, steps=8, learning_rate=1e-2)
    for number, step in enumerate(found.steps):
        replayed = [False] * 4 if step.off_policy is None else step.off_policy.tolist()
        assert sum(replayed) == (0 if number < 2 else 2) == found.metrics[number]["replayed_groups"]
        for place, (problem, was) in enumerate(zip(step.problems, replayed, strict=True)):
            rows = slice(2 * place, 2 * place + 2)
            rolled, mask = step.rollouts, step.rollouts.mask[rows]
            texts = rolled.texts[rows]
            own = (rolled.ids[rows][mask].tolist(), rolled.log_probs[rows][mask].tolist(), step.rewards[place].tolist())
            own += (texts, rolled.ended[rows].tolist(), rolled.prompts[place])
            if was:
                assert own == written[problem.id] and step.keys[place] == KEY
                assert rolled.entropies[rows][mask].isnan().all() and len(set(own[2])) == 2
                again += 1
            elif len(set(own[2])) == 2:
                written[problem.id] = own
    fresh = [metrics["fresh_groups"] for metrics in found.metrics]
    assert fresh == [4, 4, *[2] * 6] and again == found.result.selected.replayed == 12
    tokens = [
        sum(
            int(step.rollouts.mask[row].sum())
            for row in range(8)
            if step.off_policy is None or not step.off_policy[row // 2]
        )
        for step in found.steps
    ]
    assert [metrics["generated_tokens"] for metrics in found.metrics] == tokens
    places = [step.off_policy.nonzero().flatten().tolist() for step in found.steps[2:]]
    assert len({tuple(each) for each in places}) > 2  # in no fixed place of a batch
    assert streams == [(found.recipe.seed, 9, step) for step in range(2, 8)]  # 0 and 3 to 8 are others'


@pytest.mark.parametrize("batch_size", [8, 3])
def test_an_unchanged_policy_is_its_own_past(batch_size):
    """A learning rate that moves nothing: replayed tokens have a ratio of 1 and no staleness, in both windows."""
    for window in ("behavior", "current"):
        found = run(**REPLAY, steps=4, learning_rate=1e-30, batch_size=batch_size, clip_window=window)
        assert found.result.moved == 0.0
        for metrics in found.metrics[2:]:
            assert metrics["ratio"] == pytest.approx(1, abs=1e-5) and abs(metrics["staleness"]) < 1e-6
            assert metrics["clip_fraction_low"] == metrics["clip_fraction_high"] == 0.0


@pytest.fixture
def losses(monkeypatch):
    """What the loss of each pass read, with what the model says now."""
    found = []

    def noting(model, batch, **asked):
        scores = score_responses(model, batch, **asked)
        if "advantages" in batch:
            found.append({**batch, "log_probs": scores.log_probs.detach()})
        return scores

    monkeypatch.setattr(stages, "score_responses", noting)
    return found


def test_both_windows_are_one_until_something_comes_again(losses):
    """Bit for bit that of a run without replay; afterwards they differ, since the policy has moved far."""
    settings = {**REPLAY, "learning_rate": 0.05, "batch_size": 4}
    ends = {}
    for steps in (2, 4):
        for window in ("behavior", "current"):
            ends[steps, window] = run(**settings, steps=steps, clip_window=window).weights
    plain = run(**{**settings, "replay": 0.0}, steps=2)
    assert equal(ends[2, "behavior"], ends[2, "current"]) and equal(ends[2, "behavior"], plain.weights)
    assert not equal(ends[4, "behavior"], ends[4, "current"])
    assert len([batch for batch in losses if "off_policy" in batch]) == 2 * 2 * 2


@pytest.mark.parametrize(("window", "batch_size"), [("behavior", 8), ("behavior", 3), ("current", 8), ("current", 3)])
def test_statistics_of_a_batch_by_hand(window, batch_size, losses):
    """Ratios are to the writer where it was another; staleness is over what came again, the gap over what is new."""
    found = run(**REPLAY, steps=3, learning_rate=1e-2, clip_window=window, batch_size=batch_size)
    step, metrics = found.steps[2], found.metrics[2]
    batches = [batch for batch in losses if "off_policy" in batch]
    assert len(batches) == found.recipe.updates and sum(len(batch["mask"]) for batch in batches) == 8
    sums = Counter()
    for batch in batches:
        mask, again = batch["mask"], batch["mask"] & batch["off_policy"]
        fresh = batch["mask"] & ~batch["off_policy"]
        now, sampled, old = (
            batch.get(name, batch["log_probs"]) for name in ("log_probs", "sampled_log_probs", "old_log_probs")
        )
        behavior = torch.where(batch["off_policy"], sampled, old)
        ratio = (now - behavior).exp()
        present = now if window == "behavior" else old
        stale = (present - behavior)[again]
        sums += Counter({"ratio": ratio[mask].sum().item(), "tokens": mask.sum().item()})
        sums += Counter({"stale": (stale.expm1() - stale).sum().item(), "again": again.sum().item()})
        sums += Counter({"gap": (sampled - old)[fresh].abs().sum().item(), "fresh": fresh.sum().item()})
    assert metrics["ratio"] == pytest.approx(sums["ratio"] / sums["tokens"], rel=1e-5)
    assert metrics["staleness"] == pytest.approx(sums["stale"] / sums["again"], rel=1e-3) and sums["stale"] > 1e-4
    assert (
        metrics["sampler_gap"] == pytest.approx(sums["gap"] / sums["fresh"], rel=1e-3, abs=1e-7) and sums["gap"] < 1e-3
    )
    assert (step.old_log_probs is not None) is (window == "current" and batch_size == 3)
    if step.old_log_probs is not None:  # of the policy at the start of the step, not of the writer
        again = step.rollouts.mask & step.off_policy.repeat_interleave(2).unsqueeze(-1)
        assert (step.old_log_probs - step.rollouts.log_probs)[again].abs().max() > 1e-3
        assert_close(
            step.old_log_probs[step.rollouts.mask & ~again], step.rollouts.log_probs[step.rollouts.mask & ~again]
        )


def test_half_precision_keeps_the_trainers_own_numbers():
    """What the ratios of replayed tokens will be to is what the trainer said, not what the sampler did."""
    found = run(**REPLAY, steps=3, language_model=model(dtype=torch.bfloat16))
    stored = {}
    for step in found.steps[:2]:
        assert step.old_log_probs is not None
        for place, problem in enumerate(step.problems):
            rows = slice(2 * place, 2 * place + 2)
            stored[problem.id] = step.old_log_probs[rows][step.rollouts.mask[rows]].tolist()
    last = found.steps[2]
    for place in last.off_policy.nonzero().flatten().tolist():
        rows = slice(2 * place, 2 * place + 2)
        assert last.rollouts.log_probs[rows][last.rollouts.mask[rows]].tolist() == stored[last.problems[place].id]


def test_what_is_never_solved_is_drawn_uniformly_and_never_comes_again():
    """No reference tells anything and no group is kept: the order of GRPO, all of it fresh."""
    nothing = {"reward": lambda problems, texts: [0.0] * len(texts), "steps": 4}
    found = run(**{**DOTS, "replay": 0.5}, **nothing, trusted=True)
    plain = run(num_generations=2, prompts_per_step=4, **nothing)
    assert [step.problems for step in found.steps] == [step.problems for step in plain.steps]
    assert [metrics["replayed_groups"] for metrics in found.metrics] == [0.0] * 4
    assert [metrics.get("uniform_block") for metrics in found.metrics] == [1.0, None, 1.0, None]
    assert math.isnan(found.metrics[0]["correlation"]) and math.isnan(found.result.selected.rollouts_saved)
    assert found.result.selected.fresh == GroupCounts(16, 0, 32)


class Killed(BaseException):
    pass


MIDDLE = {**DOTS, "replay": 0.5, "steps": 6, "batch_size": 5, "prediction_worth": 4.0, "learning_rate": 1e-2}


@pytest.mark.parametrize("select", ["dots", "oracle", "uniform"])
def test_resumed_in_the_middle_of_a_block_is_undisturbed(select, tmp_path):
    """Saved after step 3 of blocks of 2, killed in step 4: the same weights, log and selection."""
    settings = {**MIDDLE, "select": select, "predictor": Reader(), "trusted": True}
    whole = run(**settings, how={"log": tmp_path / "whole.jsonl"})
    saved, done = [], []

    def reward(problems, texts):
        if len(done) == 3:
            raise Killed
        return odd(problems, texts)

    how = {"log": tmp_path / "cut.jsonl", "save_every": 3, "save": lambda state: saved.append(copied(state, tmp_path))}
    with pytest.raises(Killed):
        run(**settings, reward=reward, how={**how, "callbacks": [lambda state: done.append(state.done)]})
    state = saved[0]["selection"]
    assert len(saved) == 1 and len(state["buffer"]["groups"]) > 1 and state["again"] == 2
    assert select == "uniform" or len(state["sampler"]["queue"]) == 2
    resumed = run(**settings, how={**how, "state": saved[0]})
    assert equal(resumed.weights, whole.weights) and resumed.result == whole.result
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "cut.jsonl").read_text().splitlines()]
    assert [row["replayed_groups"] for row in rows] == [0, 0, 2, 2, 2, 2]
    with pytest.raises(BadInput, match=r"the stored training has replay=0\.5, this one replay=0\.25"):
        run(**{**settings, "replay": 0.25}, how={"state": saved[0]})


IN_PROCESSES = """
import sys
from pathlib import Path
from accelerate import Accelerator
from equipoise.core.state import save_state
from test_selection import shared

accelerator = Accelerator(cpu=True)
folder = Path(sys.argv[1])
found = shared({"accelerator": accelerator, "log": folder / "two.jsonl"})
save_state(folder / f"{accelerator.process_index}", {"weights": found.weights, "ids": [s.keys for s in found.steps]})
"""


def shared(how):
    """A run with what is measured, selected and replayed, of an odd number of prompts a step."""
    settings = {
        **MIDDLE,
        "prompts_per_step": 5,
        "steps": 4,
        "predictor": Reader(),
        "trusted": True,
        "learning_rate": 1e-3,
    }
    return run(**settings, language_model=model(dtype=torch.float64), how=how)


@pytest.mark.slow
def test_two_processes_select_and_replay_as_one(tmp_path):
    """Each writes its share of references and prompts; both train on the same ones."""
    (tmp_path / "script.py").write_text(IN_PROCESSES)
    root = Path(__file__).parents[2]
    paths = f"{root / 'src'}:{root / 'tests'}:{root / 'tests' / 'reinforcement'}"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    done = subprocess.run(
        [*launch, str(tmp_path / "script.py"), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = shared({})
    for process in ("0", "1"):
        two = load_state(tmp_path / process)
        assert two["ids"] == [step.keys for step in one.steps]
        for name, expected in one.weights.items():
            assert (two["weights"][name] - expected).abs().mean() < 1e-6, name
    rows = [json.loads(line) for line in (tmp_path / "two.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and any(metrics["replayed_groups"] for metrics in one.metrics)
    for row, metrics in zip(rows, one.metrics, strict=True):
        assert {name: row[name] for name in metrics} == pytest.approx(metrics, rel=1e-4, abs=1e-6)


def test_a_state_of_before_there_was_selection_goes_on(tmp_path):
    saved = []
    settings = {"num_generations": 2, "steps": 2, "prompts_per_step": 4}
    run(**settings, how={"save_every": 1, "save": lambda state: saved.append(copied(state, tmp_path))})
    old = saved[0]
    del old["selection"]
    old["recipe"] = {name: each for name, each in old["recipe"].items() if name not in ("select", "replay")}
    assert equal(run(**settings, how={"state": old}).weights, run(**settings).weights)
    with pytest.raises(BadInput, match="the stored training has select=uniform, this one select=dots"):
        run(**{**settings, **DOTS}, how={"state": old})


def test_what_does_not_fit_is_refused_before_the_first_step():
    asked = []

    def reward(problems, texts):
        asked.append(problems)
        return [2.0] * len(texts)

    settings = {**SMALL, "num_generations": 2, "prompts_per_step": 4}
    chosen = recipe("grpo", **{**settings, **DOTS})
    other = DifficultySampler(EMBEDDINGS[:19], EmbeddingPredictor(), seed=0, references=8)
    longer = DifficultySampler(EMBEDDINGS, EmbeddingPredictor(), seed=0, references=8, block=3)
    for how, changed, said in (
        ({}, {"problems": POOL[:7], "embeddings": EMBEDDINGS[:7]}, "reference_questions is 8, and there are 7 prompts"),
        ({}, {"prompts_per_step": 11}, "a block of 2 steps takes 22 different prompts, and there are 20"),
        ({"sampler": None}, {}, "select is 'dots', which needs a sampler: give sampler=sampler_of"),
        (
            {"sampler": sampler_of(chosen, EMBEDDINGS, Reader())},
            {"select": "uniform"},
            "'uniform', which takes no sampler",
        ),
        ({"sampler": other}, {}, "the sampler is of 19 prompts and blocks of 2 steps, expected 20 and 2"),
        ({"sampler": longer}, {}, "the sampler is of 20 prompts and blocks of 3 steps, expected 20 and 2"),
        (
            {"difficulty": lambda model: EMBEDDINGS[:, 0]},
            {},
            "select is 'dots', and difficulty is what an oracle knows",
        ),
        (
            {"difficulty": lambda model: torch.zeros(3)},
            {"select": "oracle"},
            r"difficulty gave \[3\], expected a number",
        ),
        ({"difficulty": lambda model: torch.full((20,), 2.0)}, {"select": "oracle"}, r"difficulty\[0\] is 2"),
    ):
        with pytest.raises(BadInput, match=said):
            run(**{**DOTS, **changed}, reward=reward, how=how)
    assert not asked
    with pytest.raises(BadInput, match=r"select is 'dots', which takes rewards in \[0, 1\], and one is 2: scale them"):
        run(**DOTS, reward=reward)


def test_a_stage_that_asks_otherwise_cannot_be_replayed():
    def sample(language_model, recipe, problems, *given):
        return stages.sample(
            language_model, recipe, [replace(each, prompt=f"{each.prompt}!") for each in problems], *given
        )

    with pytest.raises(BadInput, match=r"the stage `sample` asked 'p\d+' otherwise: use replay=0"):
        run(**REPLAY, how={"sample": sample})


def test_sentences_by_hand():
    references = GroupCounts(16, 4, 128)
    statistics = SamplerStatistics(GroupCounts(40, 30, 320), references, 4, 1, ((0, 0.5),))
    selected = Selected("dots", GroupCounts(40, 30, 320), 10, 999, statistics)
    assert selected.rollouts_saved == 320 * 0.75 / 0.25 - 320 - 128 and selected.replayed_share == 0.2
    assert selected.sentences() == (
        "Of 320 responses written to learn from, 240 (75%) taught something, since others to the same prompt had another "
        "reward; 80 were wasted.",
        "128 more measured difficulty; 25% of these would have taught something.",
        "Both together are 512 fewer than uniform draws take for as many that teach.",
        "In 1 of 4 blocks predictions did not agree with measurements, and prompts were drawn uniformly.",
        "10 groups came again from earlier steps: 20% of what was learnt from.",
    )
    worse = Selected(
        "dots", selected.fresh, 0, 0, SamplerStatistics(selected.fresh, GroupCounts(16, 12, 128), 4, 0, ())
    )
    assert worse.sentences()[2] == "Both together are 128 more than uniform draws take for as many that teach."
    oracle = Selected("oracle", selected.fresh, 0, 999, statistics)
    assert len(oracle.sentences()) == 3 and "Those of an oracle are a control" in oracle.sentences()[1]
    none = Selected("uniform", GroupCounts(), 0, 0, None)
    assert none.sentences()[0].startswith("Of 0 responses written to learn from, 0 taught") and math.isnan(
        none.replayed_share
    )


def test_an_oracle_is_a_sampler_without_a_predictor():
    each = DifficultySampler(torch.empty(12, 0), None, seed=0, references=3)
    assert each.references().tolist() == list(range(12))
    each.know(range(5), torch.linspace(0, 1, 12)[:5])
    assert each.references().tolist() == list(range(5, 12))
    each.observe(range(5, 12), torch.tensor([[1.0, 0.0]] * 7), reference=True)
    assert set(each.next(3).tolist() + each.next(3).tolist()) <= set(range(5, 12))
    assert each.statistics().references.groups == 7 and each.statistics().uniform_blocks == 0
    assert math.isnan(each.statistics().correlations[0][1])
    asked = each.references()
    for wrong, said in (
        (torch.zeros(3), r"difficulty is \[3\], expected a number for each of 12"),
        (asked * 0.5, "difficulty"),
    ):
        with pytest.raises(BadInput, match=said):
            each.know(asked, wrong)
    assert dots.LEAST_REFERENCES == 8
