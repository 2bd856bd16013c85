"""`equipoise audit`: what is wrong with what others rely on: a judge, calls of tools, forgetting, a sampler."""

from cyclopts import App

from equipoise.cli.jobs import HELP_FORMAT, command
from equipoise.judging.job import audit_judge
from equipoise.reinforcement.tool_audit_job import audit_tools
from equipoise.uncertainty.sampling_job import audit_sampling
from equipoise.unlearning.audit_job import audit_forgetting

app = App(name="audit", help="Find out what is wrong with a model that others rely on.", help_format=HELP_FORMAT)

JOBS = {"judge": audit_judge, "tools": audit_tools, "forgetting": audit_forgetting, "sampling": audit_sampling}
for name, job in JOBS.items():
    app.command(command(job), name=name)
