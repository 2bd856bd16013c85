"""`equipoise reinforce`: train a causal language model on answers that can be checked."""

from cyclopts import App

from equipoise.cli.jobs import HELP_FORMAT, command
from equipoise.reinforcement.job import reinforce

app = App(name="reinforce", help_format=HELP_FORMAT)
app.default(command(reinforce))
