"""`equipoise think`: let a reasoning model answer prompts while its thinking is steered."""

from cyclopts import App

from equipoise.cli.jobs import HELP_FORMAT, command
from equipoise.decoding.job import think

app = App(name="think", help_format=HELP_FORMAT)
app.default(command(think))
