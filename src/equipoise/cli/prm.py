"""`equipoise prm`: process reward models, from the labels of steps on."""

from cyclopts import App

from equipoise.cli.jobs import HELP_FORMAT, command
from equipoise.reinforcement.prm_label_job import label

app = App(name="prm", help="Label the steps of solutions for a process reward model.", help_format=HELP_FORMAT)

JOBS = {"label": label}
for name, job in JOBS.items():
    app.command(command(job), name=name)
