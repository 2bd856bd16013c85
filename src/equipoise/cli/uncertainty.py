"""`equipoise uncertainty`: how sure a model is of what it says, and how to make it as sure as it is right."""

from cyclopts import App

from equipoise.cli.jobs import HELP_FORMAT, command
from equipoise.uncertainty.bayes_job import bayesianize, distill
from equipoise.uncertainty.job import score, select

app = App(
    name="uncertainty",
    help="Say how sure a model is of what it says, and make it as sure as it is right.",
    help_format=HELP_FORMAT,
)

for name, job in {"score": score, "select": select, "bayesianize": bayesianize, "distill": distill}.items():
    app.command(command(job), name=name)
