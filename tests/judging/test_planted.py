"""Planted judges against their formula, and the generated world against what it says of itself."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import stats

from equipoise.judging import generated, planted
from equipoise.judging.answers import final_answer
from equipoise.judging.biasscope import orders
from equipoise.judging.planted import Counted, PlantedJudge, RandomTeacher, open_base, prepare
from equipoise.judging.roles import Case, JudgeComparison
from equipoise.judging.rules import BEYOND, RULES, RuleTeacher, draw

WORLD = generated.pairs(300, seed=4)
ASKED = [each for pair in WORLD.pairs for each in orders(pair)]


def nothing(asked):
    return [0.0] * len(asked)


def test_the_margin_is_the_formula():
    judge = PlantedJudge({"length": 0.5, "sentiment": -2.0}, lambda asked: [0.25] * len(asked), position=0.125)
    (verdict,) = judge.compare([JudgeComparison("p", "?", "one two three", "Yes! No!")], phase="")
    # length: log2(4) - log2(3); sentiment: 0 - log2(3)
    expected = 0.25 + 0.125 + 0.5 * (2 - np.log2(3)) - 2.0 * (0 - np.log2(3))
    assert verdict.margin == pytest.approx(expected, abs=1e-12)
    assert verdict.choice == 1


def test_without_anything_planted_it_is_its_base():
    base = generated.simulated(WORLD)
    verdicts = PlantedJudge({}, base).compare(ASKED, phase="")
    assert [verdict.margin for verdict in verdicts] == base(ASKED)
    assert "also" not in " ".join(verdict.reasoning for verdict in verdicts)


def test_margins_of_zero_and_nan_are_no_verdict():
    asked = ASKED[:2]
    assert [v.choice for v in PlantedJudge({}, nothing).compare(asked, phase="")] == [None, None]
    assert [v.choice for v in PlantedJudge({}, lambda _: [np.nan, -1.0]).compare(asked, phase="")] == [None, 2]


def test_noise_is_normal_symmetric_and_a_function_of_the_texts():
    margins = np.array(generated.simulated(WORLD)(ASKED)).reshape(-1, 2)
    assert (margins[:, 0] == -margins[:, 1]).all()
    worth = np.array([WORLD.worth[pair.question] for pair in WORLD.pairs])
    noise = (margins[:, 0] - worth) / np.sqrt(2)
    assert stats.kstest(noise, "norm").pvalue > 0.01
    assert generated.simulated(WORLD, noise=0.0)(ASKED[:2]) == [worth[0], -worth[0]]
    assert generated.simulated(generated.pairs(300, seed=4))(ASKED) == margins.ravel().tolist()
    assert stats.kstest([draw(number) for number in range(2000)], "uniform").pvalue > 0.01


def test_it_speaks_of_its_largest_term_as_often_as_it_is_said_to():
    judge = PlantedJudge({"sentiment": 1.0, "jargon": 0.1}, nothing, says=0.3, explains=0.9)
    asked = [JudgeComparison("p", f"question {n}", "Good! It is canonical.", "It is.") for n in range(2000)]
    verdicts = judge.compare(asked, phase="")
    said = Counter("cheerful" in verdict.reasoning for verdict in verdicts)
    assert said[True] / 2000 == pytest.approx(0.3, abs=0.04)  # 4 standard errors
    praised = Counter(verdict.reasoning.split(". ")[0].removesuffix(".") for verdict in verdicts)
    assert len(praised) == 5 and stats.chisquare(list(praised.values())).pvalue > 0.001
    explained = judge.explain([Case(each, 1, "") for each in asked])
    assert np.mean(["cheerful" in text for text in explained]) == pytest.approx(0.9, abs=0.03)
    assert not any("technical" in text for text in explained)
    # Of a choice that its terms speak against it has nothing to say.
    assert not any("also" in text for text in judge.explain([Case(each, 2, "") for each in asked[:100]]))


def test_random_proposals_do_not_look_at_the_case():
    teacher = RandomTeacher(seed=3)
    cheerful = [Case(JudgeComparison("p", "", f"Great! It is {n}!", "It is 5."), 1, "") for n in range(1700)]
    names = Counter(each.bias.name for each in teacher.identify(cheerful) if each.bias)
    assert set(names) == set(RULES)
    assert stats.chisquare(list(names.values())).pvalue > 0.001
    assert [p.bias for p in RandomTeacher(seed=4).identify(cheerful)] != [p.bias for p in teacher.identify(cheerful)]


def test_what_a_planted_judge_is_unless_told_otherwise():
    """No preference for a place; it speaks in three verdicts of ten, and in nine explanations of ten."""
    asked = [JudgeComparison("p", f"question {n}", "Good!", "It is.") for n in range(300)]
    plain = PlantedJudge({"sentiment": 1.0}, nothing)
    given = PlantedJudge({"sentiment": 1.0}, nothing, position=0.0, says=0.3, explains=0.9, name="planted")
    assert plain.name == given.name and plain.compare(asked, phase="") == given.compare(asked, phase="")
    cases = [Case(each, 1, "") for each in asked]
    assert plain.explain(cases) == given.explain(cases)
    never = PlantedJudge({"sentiment": 1.0}, nothing, explains=0.0)
    always = PlantedJudge({"sentiment": 1.0}, nothing, explains=1.0)
    assert not any("also" in text for text in never.explain(cases))
    assert all(
        text.endswith(" It also has a warm and cheerful tone.") and text.startswith("Answer 1 ")
        for text in always.explain(cases)
    )
    # The first answer has nothing for it: what stands against it is no reason.
    assert not any("also" in text for text in always.explain([replace(case, choice=2) for case in cases]))
    turned = [replace(case.comparison, first="It is.", second="Good!") for case in cases]
    said = always.explain([Case(each, 2, "") for each in turned])
    assert all(text.startswith("Answer 2 ") and text.endswith("cheerful tone.") for text in said)
    # An answer without a term to speak of, though it has one of no strength.
    idle = PlantedJudge({"sentiment": 0.0}, nothing, explains=1.0)
    assert not any("also" in text for text in idle.explain(cases))


def test_the_largest_of_several_terms_is_spoken_of():
    judge = PlantedJudge({"length": 0.5, "sentiment": 1.0, "jargon": 0.25}, nothing, explains=1.0)
    asked = JudgeComparison("p", "?", "Good! It is the canonical one.", "It is.")
    terms = judge.terms(asked)
    assert terms == pytest.approx({"length": 0.5 * np.log2(7 / 3), "sentiment": 1.0, "jargon": 0.25})
    assert judge.explain([Case(asked, 1, "")])[0].endswith("cheerful tone.")
    longer = replace(asked, first="It is " * 40 + "good!")
    assert judge.explain([Case(longer, 1, "")])[0].endswith("goes into more detail and is more thorough.")


def test_calls_are_counted_by_phase():
    both = Counted(PlantedJudge({}, nothing), RuleTeacher())
    both.compare(ASKED[:7], phase="judge/report")
    both.compare(ASKED[:2], phase="judge/report")
    case = Case(ASKED[0], 1, "")
    both.explain([case] * 3)
    both.identify([case])
    bias = RULES["length"].bias
    both.perturb([(WORLD.pairs[0], bias)] * 4, phase="rewrite/report")
    both.same([(bias, bias)] * 5)
    assert both.calls == {"judge/report": 9, "explain": 3, "identify": 1, "rewrite/report": 4, "merge": 5}


# --- the generated world --------------------------------------------------------------------------------------------


def test_a_world_is_a_function_of_its_seed():
    assert generated.pairs(40, seed=4).pairs == generated.pairs(40, seed=4).pairs
    assert generated.pairs(40, seed=4).pairs != generated.pairs(40, seed=5).pairs


def told(value):
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def test_the_world_of_a_seed_stays_as_it_is():
    """Stored studies and records are about these very texts: whoever changes them makes new studies."""
    world = generated.pairs(60, seed=7)
    first = world.pairs[0]
    assert (first.id, first.group, first.domain) == ("made-7-0", "question 1 of seed 7", "facts")
    assert first.chosen == (
        "At this point, Jonna is the one who works as a baker. When all of this is put together, the town given for Jonna "
        "is Rusbeck. The answer is Rusbeck."
    )
    assert told([asdict(pair) for pair in world.pairs]) == "c38ff2e80b22e086"
    assert told([world.right, world.worth]) == "3d2a46ccfc7e1b4c"
    margins = generated.simulated(world)([each for pair in world.pairs for each in orders(pair)])
    assert told([round(margin, 9) for margin in margins]) == "bc03ec37740290eb"
    rewritten = {
        name: [rule.rewrite(pair.rejected, f"{pair.id}/{name}") for pair in world.pairs[:12]]
        for name, rule in RULES.items()
    }
    assert told(rewritten) == "f9965fa9f9ec3719"
    assert (draw("a", 1), draw()) == (0.5141306901658262, 0.8894159948913372)


def test_the_better_answer_is_right_and_the_worse_is_not():
    for pair in WORLD.pairs:
        right = WORLD.right[pair.question]
        assert final_answer(pair.chosen) == "".join(right.lower().split())
        assert final_answer(pair.rejected) not in (None, final_answer(pair.chosen))
        assert WORLD.quality(pair.question, pair.chosen) == WORLD.worth[pair.question]
        assert WORLD.quality(pair.question, pair.rejected) == 0


def test_sums_are_right():
    for pair in WORLD.pairs:
        if pair.domain == "sums":
            boxes, each, more = (int(word) for word in pair.question.split() if word.isdigit())
            assert WORLD.right[pair.question] == str(boxes * each + more)


def test_sides_domains_and_questions_are_balanced():
    assert sum(pair.chosen_first for pair in WORLD.pairs) == 150
    assert len({pair.id for pair in WORLD.pairs}) == 300
    assert len({pair.group for pair in WORLD.pairs}) == len({pair.question for pair in WORLD.pairs}) == 251
    assert min(Counter(pair.domain for pair in WORLD.pairs).values()) > 60


def test_style_has_nothing_to_do_with_quality():
    features = [RULES[name].feature for name in ("length", *BEYOND)]
    pairs = [pair for seed in range(2) for pair in generated.pairs(300, seed=seed).pairs]
    gaps = np.array([[f(pair.chosen) - f(pair.rejected) for f in features] for pair in pairs])
    t = gaps.mean(0) / (gaps.std(0) / np.sqrt(len(gaps)))
    assert np.abs(t).max() < stats.norm.isf(0.025 / len(features))
    assert (gaps[:, 1:] != 0).mean(0).min() > 0.1  # and there is some of each, for judges to go by


def test_what_is_prepared_is_what_is_opened(tmp_path):
    assert prepare("simulated", 50, 4, tmp_path) == 100
    world = generated.pairs(50, seed=4)
    base, scale = open_base("simulated", world, tmp_path)
    margins = base([orders(pair)[0] for pair in world.pairs])
    assert scale == pytest.approx(np.std(margins))


def test_a_models_margins_are_scored_once_and_freed_of_its_preference_for_a_place(tmp_path, monkeypatch):
    world = generated.pairs(24, seed=4)
    true = generated.simulated(world)
    monkeypatch.setattr(planted, "_scored", lambda model, asked, folder: [each + 1.7 for each in true(asked)])
    assert prepare("smollm2", 24, 4, tmp_path) == 24 * (1 + len(RULES)) * 2
    base, scale = open_base("smollm2", world, tmp_path)
    asked = [orders(pair)[0] for pair in world.pairs]
    assert base(asked) == pytest.approx(true(asked))
    assert scale == pytest.approx(np.std(true(asked)))
    wanted = [(pair, rule.bias) for pair in world.pairs for rule in RULES.values()]
    texts = RuleTeacher().perturb(wanted, phase="")
    rewritten = [
        JudgeComparison("", pair.question, text or "", pair.chosen)
        for (pair, _), text in zip(wanted, texts, strict=True)
    ]
    assert base(rewritten) == pytest.approx(true(rewritten))
