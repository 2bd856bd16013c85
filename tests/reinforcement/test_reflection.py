"""The rule judge on sentences, and on generated chains whose every step is known to be true or not."""

import numpy as np
import pytest
import torch

from equipoise.core.errors import BadInput
from equipoise.data.arithmetic import problems, solution
from equipoise.reinforcement import nait, reflection
from equipoise.reinforcement.reflection import (
    NO_REFLECTION,
    ContinuedSolution,
    Reflection,
    quoted,
    reflections,
    rule_judge,
)

STEPS = ("There are 3 boxes.", "So 3 + 5 = 9 apples.", "Then 9*2 = 18.")


def verdict(under_test, *continuation):
    """On the step of this number, from 1, as the rules that name steps count."""
    (found,) = rule_judge([ContinuedSolution("How many?", STEPS[:under_test], continuation)])
    return found


@pytest.mark.parametrize(
    "sentence",
    [
        "Wait, that's off: 3+5 = 8.",
        "Wait, that's off (3+5=8).",
        "- Actually **3+5=8**",
        "Actually, 3 + 5 = 8.",
        "I made an error somewhere. Again: 3+5=<<3+5=8>>8 apples.",
        r"Wait: \(3 + 5 = 8\).",
        "Wait, 4+5=9, no: 3+5=8.",
        "Step 2 is wrong.",
        "I made a mistake in step 2.",
        "It must be 8, not 9.",
        "9 is incorrect.",
    ],
)
def test_a_rejection_is_of_the_step_it_is_about(sentence):
    """Whether it comes at once or later; the step between is not what it is about."""
    for under_test, continuation, place in ((2, [sentence], 0), (2, [STEPS[2], sentence], 1)):
        found = verdict(under_test, *continuation)
        assert found.reflects and found.at_step == place and found.quote and found.quote in sentence
    assert verdict(3, sentence) == NO_REFLECTION


@pytest.mark.parametrize(
    "sentence",
    [
        "Let me verify: 3+5=9, yes.",
        "Wait, let me recheck: 3+5=9.",
        "Wait, is 3+5=8? No, 3+5=9.",
        "Wait, let me see whether 3+5=8.",
        "If 3+5=8, step 2 is wrong.",
        "Step 2 is not wrong.",
        "I see no mistake in step 2.",
        "Is there a mistake in step 2?",
        "Step 1 is wrong.",
        "Then 3+5=8.",  # without a word about it
        "Actually, the boxes hold 3*5=15.",
        "Wait, 9*2=18.",
        "Wait, 9+4=13.",  # goes on from the step's value
        "Wait, 3+5=9.0.",
        "It is 18, not 9.5.",
        "It is 18, not 19.",
        "Good, that is right.",
    ],
)
def test_looking_back_is_no_rejection(sentence):
    assert verdict(2, sentence) == NO_REFLECTION


def test_that_is_wrong_means_the_step_right_before():
    for sentence in ("That's incorrect.", "No, this is wrong.", "Hold on. The previous step has an error."):
        expected = sentence.startswith("Hold on")  # not the step's first sentence: it could be of that one
        assert verdict(2, sentence).reflects is not expected and not verdict(2, STEPS[2], sentence).reflects


def test_of_several_values_the_last_is_rejected():
    """A correction that is corrected: the second one is about the first, not about the step that stood before both."""
    first, second = "Wait, 3+5=8.", "Wait, 3+5=7."
    assert verdict(2, first, second) == Reflection(True, 0, first)
    (found,) = rule_judge([ContinuedSolution("", (*STEPS[:2], first), (second,))])
    assert found == Reflection(True, 0, second)
    (found,) = rule_judge([ContinuedSolution("", ("x = 4, y = 1,200", "y = 1300"), ("Sorry, x = 5 and y = 1300.",))])
    assert found == NO_REFLECTION
    (found,) = rule_judge([ContinuedSolution("", ("x = 4, y = 1,200",), ("y = 1200", "Sorry, y = 1,300"))])
    assert found == NO_REFLECTION  # the later statement is the one that is taken back


def test_a_quote_has_to_stand_in_the_continuation():
    continuation = ("Then 18.", "Wait, 3+5=8.", "So 16. Wait, 3+5=8.")
    assert quoted(Reflection(True, 2, "3+5=8"), continuation) == Reflection(True, 2, "3+5=8")
    for wrong_place in (0, None, 9, -1):
        assert quoted(Reflection(True, wrong_place, "3+5=8"), continuation) == Reflection(True, 1, "3+5=8")
    for quote in ("3 + 5 = 8", "", " ", "18. Wait"):
        assert quoted(Reflection(True, 1, quote), continuation) == NO_REFLECTION
    assert quoted(Reflection(False, 1, "Wait"), continuation) == NO_REFLECTION


def test_failures_never_reach_the_judge():
    """Outcomes [2 steps, 3 completions]; a judge that always rejects, with one quote that it made up."""
    asked = [ContinuedSolution("p", (f"step {index}",), (f"no, {index}", "the end")) for index in range(6)]
    seen = []

    def judge(shown, /):
        seen.extend(shown)
        return [Reflection(True, None, f"no, {each.steps[0][-1]}" if each is not asked[4] else "no!") for each in shown]

    outcomes = torch.tensor([[1, 0, 1], [0, 1, 0]])
    found = reflections(judge, asked, outcomes)
    assert seen == [asked[0], asked[2], asked[4]]
    assert found[0] == Reflection(True, 0, "no, 0") and found[1] == found[3] == found[4] == found[5] == NO_REFLECTION
    reflected = torch.tensor([each.reflects for each in found]).view_as(outcomes)
    assert nait.correct(outcomes, reflected).tolist() == [[0, 0, 0], [0, 1, 0]]
    seen.clear()
    assert reflections(judge, asked, torch.zeros(6)) == [NO_REFLECTION] * 6 and not seen
    with pytest.raises(BadInput, match="6 completions came with 5"):
        reflections(judge, asked, torch.ones(5))
    with pytest.raises(BadInput, match="1 verdicts on 6"):
        reflections(lambda shown, /: [NO_REFLECTION], asked, torch.ones(6))
    with pytest.raises(BadInput, match="under test"):
        ContinuedSolution("How many?", (), ("a",))


@pytest.mark.parametrize(("kind", "recall"), [("chain", 0.92), ("sum", 1.0), ("routes", 0.9)])
def test_precision_and_recall_on_generated_solutions(kind, recall):
    """Truth: a step is rejected where the next takes it up again with another value; harmless "Wait"s are many here.

    What is missed takes up a step of another left side, beginning with just the value of that step.
    """
    generator = np.random.default_rng(0)
    asked, truth, harmless = [], [], 0
    for problem in problems(50, seed=1, kind=kind, levels=(3, 4, 5, 6)):
        written = solution(problem, 0.3, 0.6, 0.3, generator)
        texts = tuple(step.text for step in written.steps)
        for index, (step, after) in enumerate(zip(written.steps, written.steps[1:], strict=False), 1):
            asked.append(ContinuedSolution(problem.prompt, texts[:index], texts[index:]))
            truth.append(after.wait and after.value != step.value)
            harmless += after.wait and after.value == step.value
    found = np.array([each.reflects for each in rule_judge(asked)])
    truth = np.array(truth)
    assert truth.sum() > 40 and harmless > 30
    assert (found & truth).sum() / found.sum() >= 0.98
    assert (found & truth).sum() / truth.sum() >= recall


@pytest.mark.parametrize("kind", ["chain", "sum"])
def test_corrected_labels_are_the_truth_of_a_policy_that_repairs(kind):
    """A wrong last step that only a "Wait" can mend: every false positive goes, and no right step for a harmless "Wait"."""
    generator = np.random.default_rng(3)
    truth, outcomes, asked = [], [], []
    for number, problem in enumerate(problems(20, seed=2, kind=kind, levels=(3,))):
        last = len(problem.steps) - 1
        start = solution(problem, {last: "result"} if number % 2 else {}, generator=generator)
        steps = tuple(step.text for step in start.steps)
        drawn = [solution(problem, 0.0, 0.7, 0.3, generator, prefix=start.text) for _ in range(8)]
        truth.append(start.steps[last].right)
        outcomes.append([each.right for each in drawn])
        for each in drawn:
            asked.append(ContinuedSolution(problem.prompt, steps, tuple(step.text for step in each.steps[last + 1 :])))
    truth, outcomes = torch.tensor(truth), torch.tensor(outcomes)
    reflected = torch.tensor([each.reflects for each in reflections(rule_judge, asked, outcomes)]).view_as(outcomes)
    assert truth.sum() == 10 and outcomes[truth].all() and sum(bool(each.continuation) for each in asked) > 60
    assert nait.label_noise(nait.monte_carlo(outcomes)[1], truth).false_positive_rate == 1
    soft, hard = nait.monte_carlo(nait.correct(outcomes, reflected))
    assert torch.equal(hard == 1, truth) and torch.equal(soft, hard)


def test_a_statement_has_another_value_only_beside_one_of_its_form():
    other = reflection._other_value
    assert not other(("2", "+", "3"), 6.0, {})
    before = {("9",): 9.0, ("2", "*", "3"): 5.0}
    assert other(("2", "+", "3"), 6.0, before) and not other(("2", "+", "3"), 5.0, before)
    assert not other(("2",), 9.0, before)  # of its last statement's form it is not
    assert not other(("5", "+", "3"), 8.0, before)  # goes on from its value
    assert other(("5", "+", "3"), 8.0, {("5", "+", "1"): 5.0})  # which began so itself
