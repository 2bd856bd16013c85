"""What an evaluation of routers says, from numbers alone: order, warnings, lines, tables."""

import dataclasses
import math

import pytest

from equipoise.core.shares import Bounded, shown
from equipoise.routing.measured import Card, HeldOut, Threshold
from equipoise.routing.result import EvaluationPlan, RouteEvaluation, cards_html, lines_of, told

NOTHING = Bounded(math.nan, math.nan, math.nan)


def about(value):
    return Bounded(value, value - 0.05, value + 0.05)


def card(auroc, weak=0.5, strong=0.9):
    return Card(100, 100, about(weak), about(strong), about(auroc), about(0.3), about(0.2), NOTHING, (), "")


def evaluated(**other):
    cards = {
        "sums": {"mean": card(0.8), "length": card(0.6), "own": card(0.75)},
        "history": {"mean": card(0.7), "length": card(0.65)},
        "law": {"mean": card(0.9), "length": card(0.4)},
    }
    given = {
        "cards": cards,
        "scenarios": {"auroc": ("mean", "length")},
        "held_out": HeldOut(0, NOTHING, NOTHING, "none"),
    }
    given |= {"prompts": 1300, "router": "", "threshold": math.nan, "aim": "", "target": math.nan}
    return RouteEvaluation(names={}, outcomes={}, unread=0, **(given | other))


def test_the_best_score_is_told_with_its_mean_over_domains():
    made = evaluated()
    assert made.warnings() == ()
    assert made.headline() == "1,300 prompts of 3 domains: mean ranks best (0.800), by the mean AUROC over domains."
    one = evaluated(scenarios={"auroc": ("own",)})  # of one domain alone: with its interval
    assert "own ranks best (0.750 [0.700, 0.800])" in one.headline()
    assert "no score can be ranked" in evaluated(scenarios={"auroc": ()}).headline()


def test_a_summary_has_each_domain_with_a_line_for_each_score():
    lines = evaluated(prompts=7).summary()
    assert [line for line in lines if not line.startswith("  ")][:-1] == ["sums:", "history:", "law:"]
    assert lines[1] == (
        "  mean    AUROC 0.800 [0.750, 0.850]  LPM 0.300 [0.250, 0.350]  MPM 0.200 [0.150, 0.250]  HCR undefined"
    )
    assert lines[2].startswith("  length  AUROC 0.600") and lines[3].startswith("  own     AUROC 0.750")
    assert len(lines) == 3 + 7 + 1 and lines[-1].startswith("7 prompts")
    assert lines_of({}) == []


@pytest.mark.parametrize(("weak", "strong", "warned"), [(0.5, 0.5, True), (0.6, 0.5, True), (0.5, 0.51, False)])
def test_a_strong_model_that_is_no_better_is_told_by_domain(weak, strong, warned):
    made = evaluated()
    made = dataclasses.replace(made, cards={**made.cards, "law": {"mean": card(0.9, weak, strong)}})
    assert len(made.warnings()) == warned and all("In law strong" in each for each in made.warnings())
    assert made.summary()[: len(made.warnings())] == made.warnings()


@pytest.mark.parametrize(("verdict", "words"), [("refuted", "does not hold"), ("drifted", "has drifted"), ("met", "")])
def test_a_router_is_warned_of_by_what_its_threshold_comes_to(verdict, words):
    held = HeldOut(60, about(0.45), about(0.75), verdict)
    made = evaluated(router="mean", threshold=0.5, aim="calls", target=0.3, held_out=held)
    assert len(made.warnings()) == bool(words) and words in made.headline()
    if words:
        assert "calls 0.3" in made.headline() and shown(about(0.45)) in made.headline()
    assert evaluated(held_out=held).warnings() == ()  # without a router there is nothing to hold


def test_notebooks_show_a_table_a_domain():
    html = evaluated()._repr_html_()
    assert html.count("<table>") == 3 and html.count("<tr>") == 3 + 7 and "<p>history</p>" in html
    assert "<th>score</th><th>AUROC</th><th>LPM</th><th>MPM</th><th>HCR</th>" in html
    assert "<td>own</td><td>0.750 [0.700, 0.800]</td><td>0.300 [0.250, 0.350]</td>" in html
    assert cards_html({"a": card(0.5)}).startswith("<table>")


def test_a_threshold_in_words():
    def words(value):
        return told(Threshold(value, "calls", 0.3, 0.95, 60, about(0.25), NOTHING))

    assert words(-math.inf) == "nothing is sent" and words(math.inf) == "everything is sent"
    assert words(0.123456) == (
        "prompts whose score is below 0.1235 are sent: 0.250 [0.200, 0.300] of the prompts that it was chosen on, for calls "
        "0.3 with a confidence of 0.95"
    )


def test_a_plan_counts_prompts_by_domain():
    lines = EvaluationPlan(1300, {"sums": 1200, "law": 100}, ("mean", "own"), "a model", 45_000).summary()
    assert lines == (
        "1,300 prompts: 1,200 sums, 100 law",
        "scores: mean, own",
        "read by: a model; 45,000 tokens",
    )
