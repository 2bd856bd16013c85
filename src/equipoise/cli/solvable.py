"""`equipoise solvable`: a scorer that says, of a prompt alone, how likely a model is to solve it."""

from cyclopts import App

from equipoise.cli.jobs import HELP_FORMAT, command
from equipoise.reinforcement.solvable_job import fit, score

app = App(
    name="solvable", help="Say which prompts a model will solve, before it answers them.", help_format=HELP_FORMAT
)


app.command(command(fit), name="fit")
app.command(command(score, positional=["scorer"]), name="score")
