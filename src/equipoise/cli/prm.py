"""`equipoise prm`: process reward models, which say of each step of a solution how likely it is right."""

from cyclopts import App

from equipoise.cli.jobs import HELP_FORMAT, command
from equipoise.reinforcement.prm_evaluation_job import evaluate
from equipoise.reinforcement.prm_label_job import label
from equipoise.reinforcement.prm_scoring_job import score
from equipoise.reinforcement.prm_training_job import train

app = App(name="prm", help="Make, use and weigh models that judge each step of a solution.", help_format=HELP_FORMAT)

for name, job in {"label": label, "train": train, "score": score, "evaluate": evaluate}.items():
    app.command(command(job), name=name)
