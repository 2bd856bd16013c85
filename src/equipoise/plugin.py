"""What other frameworks find through entry points. Inspect AI: the provider `equipoise/NAME` and the tasks.

It stands above the layers, so that none of them imports upwards. Imported by every `inspect` command, so it takes no
torch: the provider is imported when a model is made.
"""

from inspect_ai.model import ModelAPI, modelapi

from equipoise.tasks import judging as judging  # tasks register themselves on import
from equipoise.tasks import memory as memory
from equipoise.tasks import routerxbench as routerxbench


@modelapi(name="equipoise")
def equipoise() -> type[ModelAPI]:
    """The provider `equipoise/NAME`."""
    from equipoise.chat.provider import EquipoiseAPI

    return EquipoiseAPI
