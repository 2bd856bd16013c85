"""`equipoise audit`: what is wrong with what others rely on: a judge, an agent's calls of tools, a model's forgetting."""

from cyclopts import App

from equipoise.cli.jobs import HELP_FORMAT, command
from equipoise.judging.job import audit_judge
from equipoise.reinforcement.tool_audit_job import audit_tools
from equipoise.unlearning.audit_job import audit_forgetting

app = App(name="audit", help="Find out what is wrong with a model that others rely on.", help_format=HELP_FORMAT)

for name, job in {"judge": audit_judge, "tools": audit_tools, "forgetting": audit_forgetting}.items():
    app.command(command(job), name=name)
