"""`equipoise route`: keep a prompt with a small model, or send it to a large one."""

from cyclopts import App

from equipoise.cli.jobs import HELP_FORMAT, command
from equipoise.cli.route_serve import serve
from equipoise.routing.job import evaluate, fit, label

app = App(
    name="route",
    help="Keep prompts with a small model where it answers well, and send the others to a large one.",
    help_format=HELP_FORMAT,
)

for name, job in {"label": label, "fit": fit, "evaluate": evaluate}.items():
    app.command(command(job), name=name)
app.command(serve)
