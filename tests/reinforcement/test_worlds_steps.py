"""NAIT's world against the reader of `data.arithmetic`, closed forms and counting; its decoder's stages."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.core.errors import BadInput
from equipoise.data.arithmetic import SEPARATOR, WAIT, check_steps
from equipoise.reinforcement import nait, prm, worlds_steps
from equipoise.reinforcement.reflection import ContinuedSolution, rule_judge
from equipoise.reinforcement.worlds_steps import (
    POLICIES,
    Chains,
    StepPolicy,
    StepRecipe,
    StepStages,
    StepWorld,
    best_threshold,
    by_rules,
    complete,
    continuation,
    reader,
)
from equipoise.training.loop import TrainerSettings

RESTLESS = StepPolicy(0.4, 0.3)  # so that much happens in few completions


@pytest.fixture(scope="module")
def chains():
    return Chains.write(60, seed=3, use=0, part="train")


@pytest.fixture(scope="module")
def completions(chains):
    return complete(chains, RESTLESS, 5, np.random.default_rng(0))


@pytest.fixture(scope="module")
def world():
    torch.set_num_threads(1)
    return StepWorld.draw(5, train=12, test=8)


def test_the_truth_of_written_chains_is_that_of_the_reader(chains):
    right, first = [], []
    for problem, (text, steps), index in zip(chains.problems, chains.solutions, chains.first_errors, strict=True):
        read = check_steps(problem, SEPARATOR.join(steps))
        right += [step.right for step in read.steps]
        first.append(-1 if read.first_error is None else read.first_error)
        assert text == problem.prompt.strip() and len(steps) == problem.level
        assert index == first[-1] and not any(step.wait for step in read.steps)
        slips = [step for step in read.steps if not step.follows]
        assert all((step.value - int(step.text[0]) - int(step.text[2])) % 10 == 1 for step in slips)
    assert right == chains.right.tolist()
    assert 0.5 < np.mean(right) < 0.95 and {-1, 0} < set(first)
    assert chains.part(20, 25).solutions == chains.solutions[20:25]


def test_slips_come_at_their_rate():
    chains = Chains.write(600, seed=1, use=0, part="train")
    before = np.concatenate([np.zeros((600, 1), int), chains.shifts[:, :-1]], axis=1)
    slips = ((chains.shifts - before) % 10)[chains.steps]
    assert set(slips) == {0, 1} and abs(slips.mean() - worlds_steps.ERROR) < 4 * (0.1 * 0.9 / len(slips)) ** 0.5


def read_on(chains, made, step, sample):
    """The written steps of a completion with its prefix, and how many of them are the prefix."""
    chain, place = (int(each[step]) for each in chains.steps)
    prefix = chains.solutions[chain][1][: place + 1]
    text = SEPARATOR.join([*prefix, *continuation(chains, made, step, sample)])
    return check_steps(chains.problems[chain], text), len(prefix)


def starts(chains, step, steps):
    """What steps start from: the value before, the true one where a "Wait" takes a step up again."""
    problem = chains.problems[chains.steps[0][step]]
    true = [int(right[0]) for right in problem.steps]
    later = [true[after.place] if after.wait else before.value for before, after in pairwise(steps)]
    return [true[0], *later]


def test_completions_are_what_their_texts_say(chains, completions):
    """Success, and R: from the step under test on the value is wrong until a "Wait" changes it."""
    seen = set()
    for step in range(0, len(chains.right), 3):
        for sample in range(5):
            read, given = read_on(chains, completions, step, sample)
            assert read.right == completions.outcomes[step, sample]
            assert read.steps[-1].place == len(read.steps) - 1 - sum(each.wait for each in read.steps)
            assert [int(each.text.removeprefix(WAIT)[0]) for each in read.steps] == starts(chains, step, read.steps)
            reflected, standing = False, read.steps[given - 1]
            while not standing.right and given < len(read.steps):
                new = read.steps[given]
                reflected |= new.wait and new.value != standing.value
                standing, given = new, given + 1
            assert reflected == completions.reflected[step, sample]
            seen.add((bool(chains.right[step]), reflected, read.right))
    assert len(seen) == 6  # all that there is: nothing is reflected after a right step


def chance(policy, right, left):
    """Success of a prefix with `left` steps to come, as the module's docstring has it."""
    e, c = policy.error, policy.correct
    a = (1 - 10 * e / 9) * (1 - c * (1 - e))
    limit = (e / 9 * (1 - c * (1 - e)) + c * (1 - e)) / (1 - a)
    start = 1.0 if right else c * (1 - e)
    return limit + (start - limit) * a**left


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_success_has_the_closed_form(policy):
    chains = Chains.write(50, seed=2, use=0, part="train")
    made = complete(chains, policy, 600, np.random.default_rng(1))
    chain, place = chains.steps
    left = np.array(chains.lengths)[chain] - 1 - place
    expected = np.array([chance(policy, *each) for each in zip(chains.right.tolist(), left, strict=True)])
    deviation = (made.outcomes.mean(axis=1) - expected) / np.sqrt(expected * (1 - expected) / 600 + 1e-12)
    several = (expected > 0) & (expected < 1)
    assert np.abs(deviation[several]).max() < 4.5 and 0.8 < deviation[several].std() < 1.2
    assert made.outcomes[expected == 1].all() and (expected == 1).any()
    assert deviation[several & (left > 3)].mean() == pytest.approx(0, abs=4 / several.sum() ** 0.5)


def test_the_closed_form_by_all_that_can_happen():
    """Sums over what each of two steps and each "Wait" can be, as values off by 0 to 9."""

    def then(policy, shift, left, may_wait):
        if may_wait and shift:
            again = [1 - policy.error] + [policy.error / 9] * 9
            taken = sum(p * then(policy, new, left, False) for new, p in enumerate(again))
            return policy.correct * taken + (1 - policy.correct) * then(policy, shift, left, False)
        if not left:
            return float(shift == 0)
        step = [1 - policy.error] + [policy.error / 9] * 9
        return sum(p * then(policy, (shift + by) % 10, left - 1, True) for by, p in enumerate(step))

    for policy in (*POLICIES.values(), RESTLESS):
        for shift, left in ((0, 2), (3, 0), (3, 2)):
            assert chance(policy, shift == 0, left) == pytest.approx(then(policy, shift, left, True), rel=1e-12)


def test_with_an_exact_judge_a_policy_without_errors_labels_the_truth(chains):
    made = complete(chains, StepPolicy(0.0, 0.5), 8, np.random.default_rng(0))
    outcomes, reflected = torch.from_numpy(made.outcomes), torch.from_numpy(made.reflected)
    uncorrected = nait.label_noise(nait.monte_carlo(outcomes)[1], chains.right)
    assert uncorrected.false_positive_rate > 0.9 and uncorrected.false_negative_rate == 0
    for labels in nait.monte_carlo(nait.correct(outcomes, reflected)):
        assert torch.equal(labels, chains.right.float())


def test_rules_are_those_of_the_rule_judge_on_every_text(chains, completions):
    """Also of texts that are not shown to it: without a "Wait" it finds nothing. A repair further on is missed."""
    found = by_rules(chains, completions)
    for step in range(0, len(chains.right), 4):
        for sample in range(5):
            chain, place = (int(each[step]) for each in chains.steps)
            problem, steps = chains.solutions[chain]
            said = continuation(chains, completions, step, sample)
            (verdict,) = rule_judge([ContinuedSolution(problem, tuple(steps[: place + 1]), said)])
            assert found[step, sample] == (verdict.reflects and completions.outcomes[step, sample])
    chain, place = chains.steps
    at_once = completions.retaken[np.arange(len(place)), :, place] >= 0
    repaired = completions.outcomes & completions.reflected
    assert found[repaired & at_once].mean() > 0.75 and found[repaired & ~at_once].mean() < 0.1


def test_the_faulty_judge_misses_a_fifth_of_what_the_exact_one_finds():
    its = StepWorld.draw(1, train=60, test=1)
    for policy in POLICIES:
        exact, faulty = its.reflected[policy]["exact"], its.reflected[policy]["faulty"]
        found = faulty[exact].double().mean().item()
        assert not faulty[~exact].any()
        assert abs(found - 0.8) < 4 * (0.16 / int(exact.sum())) ** 0.5
        assert not its.reflected[policy]["none"].any()


def test_labels_by_hand(world):
    for policy in POLICIES:
        left = (world.outcomes[policy] & ~world.reflected[policy]["rules"]).sum(-1)
        assert torch.equal(world.labels(policy, "rules", "soft"), left / 8)
        assert torch.equal(world.labels(policy, "rules", "hard"), (left > 0).float())
    assert torch.equal(world.labels("weak", "none", "truth"), world.train.right.float())
    with pytest.raises(BadInput, match="exactly"):
        world.labels("weak", "exactly", "hard")


def test_a_world_comes_back(world, tmp_path):
    world.save(tmp_path)
    again = StepWorld.open(tmp_path, 5, train=12, test=8)
    for name in ("train", "validation", "test"):
        assert getattr(again, name).solutions == getattr(world, name).solutions
    assert all(
        torch.equal(again.labels(policy, judge, "soft"), world.labels(policy, judge, "soft"))
        for policy in POLICIES
        for judge in ("none", "exact", "faulty", "rules")
    )
    asked = [{problem.id for problem in each.problems} for each in (world.train, world.validation, world.test)]
    assert [len(each) for each in asked] == [12, 300, 8] and not set.intersection(*map(set, asked[1:]))
    assert not asked[0] & (asked[1] | asked[2])


def test_a_step_is_a_token(world):
    model = reader(0)
    examples = prm.encode(model, world.train.solutions)
    for example, (problem, steps) in zip(examples, world.train.solutions, strict=True):
        said = model.tokenizer.convert_ids_to_tokens(list(example.input_ids))
        terms = [problem[0], *[problem[at : at + 2] for at in range(1, len(problem), 2)]]
        assert said == [*terms, *[each for step in steps for each in (step, "[PRM]")]]
    assert torch.equal(model.model.lm_head.weight, reader(0).model.lm_head.weight)
    assert not torch.equal(model.model.lm_head.weight, reader(1).model.lm_head.weight)


@pytest.fixture
def scored(world, monkeypatch):
    """Stages that learn nothing, with the scores given in turn to the refreshes."""
    monkeypatch.setattr(worlds_steps, "fit", lambda *_, **__: None)

    def stages(recipe, *scores):
        made, left = StepStages(world, "weak", recipe, 0), iter(scores)
        monkeypatch.setattr(worlds_steps, "score", lambda *_, **__: [torch.full_like(made.labels, next(left))])
        labels = []
        for _ in range(len(scores) + 1):
            made.train(steps=1, batch_size=2, learning_rate=1e-3)
            labels.append(made.labels)
        return made, labels

    return stages


def test_anchors_and_thresholds_of_the_stages(scored, world):
    first = world.labels("weak", "exact", "hard")
    high, back = torch.tensor(0.7), torch.tensor(0.9)
    refreshing = StepRecipe(judge="exact", threshold=0.25)
    made, labels = scored(refreshing, high, back)
    assert torch.equal(labels[0], first)
    assert torch.equal(labels[1], torch.full_like(first, 0.7))
    assert torch.equal(labels[2], torch.where(first == 1, 1.0, back))  # 0.9 is near enough to the first label of 1
    assert (made.positives_kept, made.negatives_kept) == (1.0, 0.0)
    _, current = scored(replace(refreshing, anchor="current"), high, back)
    assert torch.equal(current[2], current[1])  # and to 0.7
    _, kept = scored(StepRecipe(judge="exact"), high, back)
    assert all(torch.equal(each, first) for each in kept)


def test_stages_go_on_from_the_one_before_or_start_anew(world):
    weights = {}
    for restart in (False, True):
        made = StepStages(world, "strong", StepRecipe(labels="truth", restart=restart), 0)
        begun = []
        for _ in range(2):
            made.train(steps=1, batch_size=4, learning_rate=1e-3)
            begun.append(made.language_model.model.model.layers[0].mlp.up_proj.weight.detach().clone())
        weights[restart] = begun
    start = reader(0).model.model.layers[0].mlp.up_proj.weight
    assert torch.equal(weights[False][0], weights[True][0]) and not torch.equal(weights[True][0], start)
    moved = [(weights[restart][1] - start).abs().max().item() for restart in (False, True)]
    assert moved[0] > 1.5 * moved[1]  # Adam's steps add up


def test_each_stage_reads_further_chains(world):
    seen = []
    made = StepStages(world, "strong", StepRecipe(), 0)
    lengths = {example.input_ids: index for index, example in enumerate(made._examples)}
    collated = prm.collate

    def collate(examples, *more):
        seen.append([lengths[example.input_ids] for example in examples])
        return collated(examples, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worlds_steps, "collate", collate)
        tokens = [made.train(steps=2, batch_size=3, learning_rate=1e-3) for _ in range(2)]
    read = [index for batch in seen for index in batch]
    assert sorted(read) == list(range(12))  # one pass in all
    lengths_read = [len(made._examples[index].input_ids) for index in read]
    assert tokens == [sum(lengths_read[:6]), sum(lengths_read[6:])]


def test_the_best_threshold_is_found_on_scores():
    """All wrong steps are below 0.8 and all right ones above, so that none is found at 0.5."""
    generator = torch.Generator().manual_seed(0)
    gold = [-1, 2, 0, 1, -1] * 8
    scores = []
    for first in gold:
        right = torch.arange(4) < (4 if first < 0 else first)
        scores.append(torch.where(right, 0.91, 0.71) + 0.08 * torch.rand(4, generator=generator))
    threshold = best_threshold(scores, gold)
    assert threshold > 0.71 and worlds_steps.first_errors(scores, gold, threshold).f1 == 1
    assert worlds_steps.first_errors(scores, gold).f1 == 0


def test_thresholds_are_49_quantiles_and_the_first_of_equals_is_taken(monkeypatch):
    asked = []

    def found(scores, gold, threshold):
        asked.append(threshold)
        return SimpleNamespace(f1=0.5 if 0.29 < threshold < 0.41 else 0.25)

    monkeypatch.setattr(worlds_steps, "first_errors", found)
    scores = [torch.arange(51) / 50, torch.arange(51, 101) / 50]
    assert best_threshold(scores, []) == pytest.approx(0.32)
    assert asked == pytest.approx([place / 25 for place in range(1, 50)])


def test_how_a_stage_learns(world, monkeypatch):
    asked = []
    monkeypatch.setattr(worlds_steps, "fit", lambda model, loss, draw, settings, **how: asked.append((settings, how)))
    made = StepStages(world, "weak", StepRecipe(), 0)
    for _ in range(2):
        assert made.train(steps=3, batch_size=4, learning_rate=1e-3) == 0  # nothing was read
    for number, (settings, how) in enumerate(asked, 1):
        assert settings == TrainerSettings(steps=3, learning_rate=1e-3, batch_size=4, betas=(0.9, 0.95))
        assert how["title"] == f"Stage {number}"
    assert made.stage == 2 and np.isnan(made.positives_kept)
    config = made.language_model.model.config
    sizes = config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads
    assert sizes == (32, 64, 2, 4) and config.initializer_range == 0.05 and config.max_position_embeddings == 64
    assert made.language_model.source == "A Llama of 0.1 million parameters, a token a step, untaught (seed 0)."


def test_a_mistake_is_any_other_value_and_behind_the_end_there_is_none(chains, completions):
    assert set(np.unique(completions.retaken)) == set(range(-1, 10))
    behind = np.arange(chains.shifts.shape[1]) >= np.array(chains.lengths)[:, None]
    assert behind.any() and not chains.shifts[behind].any()
