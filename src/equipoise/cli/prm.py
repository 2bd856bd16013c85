"""`equipoise prm`: process reward models, which say of each step of a solution how likely it is right."""

from cyclopts import App

from equipoise.cli.jobs import HELP_FORMAT, command
from equipoise.reinforcement.prm_evaluation_job import evaluate
from equipoise.reinforcement.prm_scoring_job import score
from equipoise.reinforcement.prm_training_job import train

app = App(name="prm", help="Train, use and weigh models that judge the steps of a solution.", help_format=HELP_FORMAT)

app.command(command(train), name="train")
app.command(command(score), name="score")
app.command(command(evaluate), name="evaluate")
