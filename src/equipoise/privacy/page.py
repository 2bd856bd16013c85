"""What a person sees of a private rule, of its value on held-out records, and of a plan."""

import math
from typing import TYPE_CHECKING

from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.job import Page
from equipoise.core.numbers import number
from equipoise.privacy.result import promised

if TYPE_CHECKING:
    from collections.abc import Sequence

    from equipoise.core.shares import Bounded
    from equipoise.privacy.result import NoisePlan, RuleEvaluation, RuleFit, RulePlan

WHERE = "Look here first"


def fit_page(result: "RuleFit") -> Page:
    """The rule, what it promises, what that assumes; nothing that is not private."""
    ledger = result.ledger
    rows = tuple(
        (name, value, theta, f"{number(low)} to {number(high)}")
        for name, value, theta, (low, high) in zip(
            result.features, result.coef, result.theta[1:], ledger["public"]["features"].values(), strict=True
        )
    )
    rule = parts.Table(
        f"Treat where the sum of coefficient times feature is above {number(-result.intercept)}",
        (
            parts.Column("feature"),
            parts.Column("coefficient", True),
            parts.Column("on the scaled range", True),
            parts.Column("public range"),
        ),
        rows,
        note="A feature outside its range counts as the range's end. The third column compares features with each other.",
    )
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    sections += [
        parts.Section("The rule", (rule,)),
        parts.Section(
            "What is promised",
            (parts.SettingsTable(dict(result.guarantee)), parts.SettingsTable(dict(ledger["spent"]))),
        ),
        parts.Section("Taken as public", (parts.SettingsTable(dict(ledger["public"])),)),
        parts.Section("Assumed", (parts.Bullets(tuple(ledger["assumed"])),)),
        parts.Section("Not to be released", (parts.Bullets(tuple(ledger["not to be released"])),)),
        parts.Section("Noise", (_plans("As it was drawn", [result.plan]),)),
    ]
    return Page(
        "A private rule for whom to treat",
        result.headline(),
        sections,
        facts=(
            ("guarantee", promised(result.guarantee)),
            ("records", f"{result.plan.n:,}"),
            ("weights", result.plan.weights),
            ("sensitivity", number(result.plan.sensitivity)),
        ),
    )


def evaluation_page(result: "RuleEvaluation") -> Page:
    """Values of the policies, and by how much the rule is above the others."""
    table = parts.Table(
        f"Mean outcome under each policy, {result.n:,} records; 95 % intervals",
        (parts.Column("policy"), parts.Column("value", True)),
        tuple((name, _cell(value)) for name, value in result.values.items()),
    )
    rows = [plots.ChartRow(name, each.value, each.lower, each.upper) for name, each in result.gains.items()]
    figure = plots.intervals(
        "Gain of the rule over treating all alike",
        [row for row in rows if not math.isnan(row.lower)],
        x=plots.Axis("difference of mean outcomes, on the same records"),
        uprights=[plots.Upright("no better", 0.0)],
        sides=("all alike is better", "the rule is better"),
    )
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    sections.append(parts.Section("Is it better than treating all alike?", (table, parts.Figure(figure))))
    return Page(
        f"A rule on records that it was {'' if result.learnt else 'not '}fitted on",
        result.headline(),
        sections,
        facts=(
            ("rule", f"{result.names['rule']}, {promised(result.guarantee)}"),
            ("treats", f"{result.treated:.1%}"),
            ("records whose own arm it gives", f"{result.agreed:.1%}"),
            ("propensity", result.propensity),
        ),
    )


def plan_page(result: "RulePlan") -> Page:
    """The noise as asked, by ridge, by what else could be chosen, and by the number of records."""
    line = plots.lines(
        "The most that the mean loss exceeds the best rule's, in expectation",
        {"bound": [(math.log10(each.ridge), each.loss) for each in result.ridges]},
        x=plots.Axis("log10 of the ridge, a record"),
        y=plots.Axis("loss", better="lower"),
        note="A small ridge leaves the noise much room, a large one the records little.",
    )
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    sections += [
        parts.Section("As asked", (_plans("Noise and its cost", [result.asked]),)),
        parts.Section("Which ridge?", (parts.Figure(line),)),
        parts.Section("What else could be chosen?", (_plans("One setting changed", result.others),)),
        parts.Section("How many records?", (_plans("The same guarantee with fewer and more", result.sizes),)),
    ]
    return Page(
        "A private rule, planned",
        result.headline(),
        sections,
        facts=(
            ("epsilon", f"{result.asked.epsilon:g}"),
            ("records", f"{result.asked.n:,}"),
            ("features", str(result.asked.d)),
            ("sensitivity", number(result.asked.sensitivity)),
        ),
    )


def _cell(value: "Bounded") -> parts.Cell:
    between = "" if math.isnan(value.lower) else f"{number(value.lower)} to {number(value.upper)}"
    return parts.Cell(number(value.value), between)


def _plans(title: str, plans: "Sequence[NoisePlan]") -> parts.Table:
    names = ("records", "movement", "sensitivity", "ridge", "noise", "in records", "loss at most")
    return parts.Table(
        title,
        (parts.Column("weights"), parts.Column("noise on"), *(parts.Column(name, True) for name in names)),
        tuple(
            (
                each.weights, each.perturbation, f"{each.n:,}", number(each.movement), number(each.sensitivity),
                number(each.ridge), number(each.noise), number(each.pull), number(each.loss),
            )
            for each in plans
        ),
        note="Movement: of all weights together when one record is replaced. In records: so many, all alike, pull as the "
        "noise does. Loss: of the mean weighted loss, above the best rule's of norm 1.",
    )  # fmt: skip
