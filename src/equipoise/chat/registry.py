"""What Inspect AI finds through the entry point "equipoise": the provider `equipoise/NAME` and the tasks.

Imported by every `inspect` command, so it takes no torch: the provider is imported when a model is made.
"""

from importlib import import_module

from inspect_ai.model import ModelAPI, modelapi


@modelapi(name="equipoise")
def equipoise() -> type[ModelAPI]:
    """The provider `equipoise/NAME`."""
    from equipoise.chat.provider import EquipoiseAPI

    return EquipoiseAPI


# The tasks stand on this layer, and register themselves on import; Inspect takes one entry point per package.
import_module("equipoise.tasks.judging")
