"""`equipoise memory`: what is remembered of conversations, and what that is worth."""

from cyclopts import App

from equipoise.agents.compose_job import compose
from equipoise.agents.job import ask, compare
from equipoise.cli.jobs import HELP_FORMAT, command

app = App(
    name="memory",
    help="Ask a memory of conversations, and compare memory systems so that no answer sees the future.",
    help_format=HELP_FORMAT,
)

for name, job in {"ask": ask, "compare": compare, "compose": compose}.items():
    app.command(command(job), name=name)
