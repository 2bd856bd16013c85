"""What a person sees of logs, of trained policies, and of policies in a changed environment."""

import math
from typing import TYPE_CHECKING

from equipoise.control.result import shown
from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.job import Page
from equipoise.core.marks import marks

if TYPE_CHECKING:
    from equipoise.control.result import ControlEvaluation, ControlLogs, ControlTraining

WHERE = "Look here first"


def logs_page(result: "ControlLogs") -> Page:
    """What was logged."""
    table = parts.Table(
        "The logs",
        (parts.Column("what"), parts.Column("count", True)),
        (
            ("transitions", result.transitions),
            ("whole episodes", result.episodes),
            ("terminal states", result.terminated),
            ("time limits", result.truncated),
            ("cut at the end of the logs", result.cut),
        ),
        note="A time limit ends an episode and is no terminal state: what would follow it still counts.",
    )
    sections: list[parts.Part] = [parts.Note(each, WHERE) for each in result.warnings()]
    facts = (("environment", result.environment), ("least share of an action's range", f"{result.covered:.0%}"))
    return Page("Logs of an environment", result.headline(), [*sections, parts.Section("Logs", (table,))], facts=facts)


def training_page(result: "ControlTraining") -> Page:
    """What the values did, and how wide the nominal model's samples are."""
    sections: list[parts.Part] = [parts.Note(each, WHERE) for each in result.warnings()]
    table = parts.Table(
        "Policies",
        (
            parts.Column("file"),
            parts.Column("seed", True),
            parts.Column("value", True),
            parts.Column("temperature", True),
            parts.Column("spread", True),
            parts.Column("few samples", True),
        ),
        tuple(
            (each.file, each.seed, each.value, each.alpha, _known(each.spread), _known(each.few))
            for each in result.policies
        ),
        note=(
            "value: mean target of the critics in the last step. spread: of the nominal model's samples over the error of "
            "their mean; 1 where it knows how wrong it is, 0 where the ball is around a point. few samples: share of "
            "pairs, of every eighth step, whose worst mean rested on fewer than five."
        ),
    )
    figure = plots.lines(
        "Values in training",
        {each.file: [(float(step), value) for step, value in each.curve] for each in result.policies},
        x=plots.Axis("step"),
        y=plots.Axis("mean target of the critics"),
        note=f"No value can exceed {result.most:.4g}, of the largest reward in the logs and of entropy.",
    )
    sections += [parts.Section("Policies", (table,)), parts.Section("Values", (parts.Figure(figure),))]
    return Page(
        f"Policies trained by {result.method}",
        result.headline(),
        sections,
        facts=(
            ("logs", f"{result.transitions:,} transitions of {result.data}"),
            ("ends of episodes", f"{result.episodes:,}, of which {result.terminated:,} terminal"),
            ("radius of the ball", "none" if math.isnan(result.delta) else f"{result.delta:g} nats"),
            ("least share of an action's range", f"{result.covered:.0%}"),
        ),
    )


def evaluation_page(result: "ControlEvaluation") -> Page:
    """Robustness curves, tables of every level, gains at the same starts, trajectories."""
    sections: list[parts.Part] = [parts.Note(each, WHERE) for each in result.warnings()]
    names = list(dict.fromkeys(each.name for levels in result.levels.values() for each in levels))
    own = marks(list(result.levels))
    for name in names:
        points = [
            plots.Point(run, each.level, each.mean.value, y_interval=(each.mean.lower, each.mean.upper))
            for run, levels in result.levels.items()
            for each in levels
            if each.name == name
        ]
        curve = plots.paths(
            f"Return against {name}",
            own,
            points,
            x=plots.Axis(name),
            y=plots.Axis("mean return", better="higher"),
            note="Bands: 95 % intervals over policies and starts, of one policy over its starts.",
        )
        rows = tuple(
            (run, each.level, shown(each.mean), shown(each.iqm), each.lowest, each.highest)
            for run, levels in result.levels.items()
            for each in levels
            if each.name == name
        )
        columns = ("policies", "level", "mean", "interquartile mean", "10 %", "90 %")
        table = parts.Table(
            "Every level",
            tuple(parts.Column(each, place > 0) for place, each in enumerate(columns)),
            rows,
            note="The last two: quantiles of all episodes.",
        )
        sections.append(parts.Section(name, (parts.Figure(curve), table, *_gains(result, name))))
    if result.validated:
        chosen = parts.Table(
            f"Mean return under {', '.join(result.validation)}",
            (parts.Column("policies"), parts.Column("mean return", True)),
            tuple(result.validated.items()),
            note="None of these perturbations is among those that are tested.",
        )
        sections.append(parts.Section("Which is chosen", (chosen,)))
    drawn = plots.lines(
        "One episode of a policy of each folder",
        {name: [(float(step), value) for step, value in enumerate(path)] for name, path in result.trajectories.items()},
        x=plots.Axis("step"),
        y=plots.Axis("first component of what is seen"),
    )
    sections.append(parts.Section("Trajectories", (parts.Figure(drawn),)))
    counts = ", ".join(f"{count} of {name}" for name, count in result.policies.items())
    facts = (("environment", result.environment), ("policies", counts), ("starts a level", f"{result.episodes}"))
    return Page("Policies in a changed environment", result.headline(), sections, facts=facts)


def _gains(result: "ControlEvaluation", name: str) -> tuple[parts.Table, ...]:
    rows = tuple(
        (run, level, shown(gain)) for run, gains in result.gains.items() for own, level, gain in gains if own == name
    )
    if not rows:
        return ()
    columns = (parts.Column("over"), parts.Column("level", True), parts.Column("gain", True))
    return (parts.Table("What the first folder gets more, from the same starts", columns, rows),)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
