"""`equipoise control`: policies from logs, and what they are worth where the system has changed."""

from cyclopts import App

from equipoise.cli.jobs import HELP_FORMAT, command
from equipoise.control.job import collect, evaluate, train

app = App(
    name="control",
    help="Train policies from logs, robust against a change of the system, and measure how robust they are.",
    help_format=HELP_FORMAT,
)

app.command(command(collect), name="collect")
app.command(command(train), name="train")
app.command(command(evaluate, positional=("run",)), name="evaluate")
