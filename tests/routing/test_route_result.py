"""What an evaluation of routers says, from numbers alone: order, warnings, lines, tables."""

import dataclasses
import math

import pytest

from equipoise.core.shares import Bounded, shown
from equipoise.routing.measured import Card, HeldOut, Outcomes, Threshold
from equipoise.routing.result import (
    DomainLabels,
    EvaluationPlan,
    FitPlan,
    LabelPlan,
    RouteEvaluation,
    RouteFit,
    RouteLabels,
    cards_html,
    lines_of,
    told,
)

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


def labelled(domains, **other):
    table = Outcomes(40, about(0.4), about(0.3), about(0.2), about(0.1), 0.0, {})
    found = {name: DomainLabels(1200, about(weak), about(strong), table) for name, (weak, strong) in domains.items()}
    given = {"names": {}, "source": "m", "prompts": 2400, "domains": found, "unread": {}, "unjudged": 0, "right": 0.5}
    return RouteLabels(**(given | {"tokens": 0, "calls": 0} | other))


@pytest.mark.parametrize(
    ("weak", "strong", "little", "useless"),
    [(0.2, 0.21, 0, 0), (0.8, 0.81, 0, 0), (0.19, 0.9, 1, 0), (0.81, 0.9, 1, 0), (0.5, 0.5, 0, 1), (0.9, 0.8, 1, 1)],
)
def test_labels_that_leave_little_to_route_are_told(weak, strong, little, useless):
    made = labelled({"sums": (0.5, 0.9), "law": (weak, strong)})
    said = made.warnings()
    assert sum(f"In law the weak model's mean quality is {weak:.2f}" in each for each in said) == little
    assert sum("In law the strong model is no better" in each for each in said) == useless
    assert len(said) == little + useless and made.headline().startswith(
        said[0] if said else "2,400 prompts are labelled"
    )


def test_labels_in_lines():
    made = labelled({"sums": (0.5, 0.9)}, unjudged=3)
    warning = "3 of 2400 prompts have an answer that was not judged: no label."
    told_so = f"{warning} 2,400 prompts are labelled. Mean quality by domain: sums: weak 0.50, strong 0.90."
    assert made.summary() == (
        warning,
        "sums: 1,200 prompts; weak 0.500 [0.450, 0.550], strong 0.900 [0.850, 0.950]; both right 0.40, only strong 0.30, "
        "only weak 0.20, neither 0.10",
        told_so,
    )
    assert made.headline() == told_so
    assert "<td>sums</td><td>1200</td><td>0.500 [0.450, 0.550]</td>" in made._repr_html_()


def test_plans_in_lines():
    plan = LabelPlan("w", "s", "number", 1300, {"sums": 1200, "law": 100}, ({"prompt": "é"},), 2600, 130_000)
    assert plan.summary() == (
        "weak: w",
        "strong: s",
        "judged by: number",
        "1,300 prompts: 1,200 sums, 100 law",
        "the first:",
        '  {"prompt": "é"}',
        "at most: 130,000 tokens written here, 2,600 calls of servers",
    )
    fit = FitPlan(
        "m", {"fit": 1200, "test": 600}, {"a": 1800}, 0.125, "say", 31, 576, 45_000, 5 * 2**20 + 2**19, {"seed": 1}
    )
    assert fit.summary() == (
        "model: m, 31 layers of width 576",
        "prompts: 1,200 to fit, 600 to test",
        "domains: 1,800 a",
        "answered well by the weak model: 12.5%",
        "the first as the model reads it: 'say'",
        "settings: seed=1",
        "45,000 tokens to read; 5.5 MB of states, kept until the end",
    )


def router_of(gains=None, auroc=0.8, verdict="met", note="", kind="mean"):
    gains = gains or {"mean": Bounded(0.2, 0.1, 0.3), "last": Bounded(0.1, -0.1, 0.3)}
    threshold = Threshold(0.25, "calls", 0.3, 0.95, 60, about(0.25), NOTHING, note)
    none = {name: {} for name in ("names", "settings", "prompts", "chosen_on", "domains", "cross", "alpha")}
    return RouteFit(
        **none, source="m", kind=kind, threshold=threshold, held_out=HeldOut(60, about(0.45), about(0.75), verdict),
        cards={"mean": card(auroc), "length": card(0.6)}, gains=gains, brier=NOTHING, g=1.0, slope=1.0, intercept=0.0,
        outcomes=Outcomes(60, *[NOTHING] * 4, 0.0, {}), layers=3, width=32, bytes=9,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, []),
        (
            {"gains": {"mean": Bounded(0.2, 0.0, 0.3), "last": Bounded(0.2, 0.1, 0.3)}},
            ["The saved router, mean, is not"],
        ),
        ({"gains": {"mean": Bounded(0.2, 0.0, 0.3), "last": Bounded(0.2, -0.1, 0.3)}}, ["No score is shown to rank"]),
        ({"gains": {"last": Bounded(0.2, 0.1, 0.3)}}, []),
        ({"auroc": 0.5}, ["The saved router ranks the test prompts no better than chance."]),
        ({"auroc": 0.51}, []),
        (
            {"verdict": "refuted"},
            ["The threshold does not hold on the test prompts: aimed at calls 0.3, calls 0.450 ["],
        ),
        ({"verdict": "drifted"}, ["The share of calls on the test prompts, 0.450 [0.400, 0.500], is not that of"]),
        ({"verdict": "not refuted"}, []),
        ({"note": "Few prompts.", "auroc": 0.4}, ["The saved router ranks", "Few prompts."]),
    ],
)
def test_a_fit_warns_of_what_does_not_hold(given, said):
    made = router_of(**given)
    found = made.warnings()
    assert len(found) == len(said) and all(one.startswith(other) for one, other in zip(found, said, strict=True))
    assert made.summary()[: len(said)] == found
    assert made.headline() == " ".join((*found, made.headline()[made.headline().index("Router mean: AUROC") :]))


def test_a_fit_in_lines():
    made = router_of()
    assert made.headline() == (
        "Router mean: AUROC 0.800 [0.750, 0.850] on 100 new prompts (length 0.600 [0.550, 0.650]); at its threshold 45.0% "
        "go to the strong model, with a mean quality of 0.750 [0.700, 0.800] (weak alone 0.500, strong alone 0.900)."
    )
    lines = made.summary()
    assert lines[0].startswith("mean    AUROC 0.800") and lines[1].startswith("length  AUROC 0.600")
    assert lines[2].startswith("threshold: prompts whose score is below 0.25 are sent") and lines[3] == made.headline()
    assert made._repr_html_() == cards_html(made.cards)
