"""`equipoise audit`: what is wrong with what others rely on: a judge and its biases, an agent's calls of tools."""

from cyclopts import App

from equipoise.cli.jobs import HELP_FORMAT, command
from equipoise.judging.job import audit_judge
from equipoise.reinforcement.tool_audit_job import audit_tools

app = App(name="audit", help="Find out what is wrong with a model that others rely on.", help_format=HELP_FORMAT)

for name, job in {"judge": audit_judge, "tools": audit_tools}.items():
    app.command(command(job), name=name)
