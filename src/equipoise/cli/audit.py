"""`equipoise audit`: what is wrong with a model that others rely on. So far: a judge and its biases."""

from cyclopts import App

from equipoise.cli.jobs import HELP_FORMAT, command
from equipoise.judging.job import audit_judge

app = App(name="audit", help="Find out what is wrong with a model that others rely on.", help_format=HELP_FORMAT)
app.command(command(audit_judge), name="judge")
