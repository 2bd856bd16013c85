"""`equipoise unlearn`: make a causal language model forget a file."""

from cyclopts import App

from equipoise.cli.jobs import command
from equipoise.unlearning.job import unlearn

app = App(name="unlearn")
app.default(command(unlearn))
