"""`equipoise uncertainty`: how sure a model is of what it says."""

from cyclopts import App

from equipoise.cli.jobs import HELP_FORMAT, command
from equipoise.uncertainty.job import score, select

app = App(
    name="uncertainty",
    help="Say how sure a model is of each token of an answer, and choose among answers by it.",
    help_format=HELP_FORMAT,
)

for name, job in {"score": score, "select": select}.items():
    app.command(command(job), name=name)
