"""`equipoise route`: send to a strong model what a local one will get wrong."""

from cyclopts import App

from equipoise.cli.jobs import HELP_FORMAT
from equipoise.cli.route_serve import serve

app = App(
    name="route",
    help="Send to a strong model what a local one will get wrong, and no more than a budget allows.",
    help_format=HELP_FORMAT,
)

app.command(serve)
