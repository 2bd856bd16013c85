"""`equipoise unlearn`: make a causal language model forget a file."""

from cyclopts import App

from equipoise.cli.jobs import HELP_FORMAT, command
from equipoise.unlearning.job import unlearn

app = App(name="unlearn", help_format=HELP_FORMAT)
app.default(command(unlearn))
