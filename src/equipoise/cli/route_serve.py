"""`equipoise route serve`: an OpenAI-compatible address in front of a local model and a strong one."""

from typing import Annotated

from cyclopts import Parameter

from equipoise.routing.serve_settings import ServeSettings


def serve(
    *,
    settings: Annotated[ServeSettings, Parameter(name="*", negative=())],
    dry_run: Annotated[
        bool, Parameter(negative=(), help="Check everything, the model included; do not listen.")
    ] = False,
) -> int:
    """Answer easy prompts with a local model and forward the others, within a budget of calls.

    Any client of OpenAI's API works against http://HOST:PORT/v1; every answer says in its headers where it
    came from and why. The budget holds at every moment, whatever the order of the prompts. Ends in order on SIGTERM and
    SIGINT.

    Example: equipoise route serve --router router --model smollm2 --upstream https://api.openai.com/v1 --budget 0.3
    """
    from equipoise.routing.serving_command import serve as run

    run(settings, dry_run=dry_run)
    return 0
