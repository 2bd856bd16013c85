"""`equipoise rule`: rules for whom to treat that keep their records private."""

from cyclopts import App

from equipoise.cli.jobs import HELP_FORMAT, command
from equipoise.privacy.job import evaluate, fit, plan

app = App(
    name="rule",
    help="Learn whom to treat from records of people, and say no more about any one of them than was agreed.",
    help_format=HELP_FORMAT,
)

app.command(command(fit), name="fit")
app.command(command(evaluate, positional=("rule",)), name="evaluate")
app.command(command(plan), name="plan")
