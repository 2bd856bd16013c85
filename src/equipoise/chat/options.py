"""Options that every job with chat models has, so that the same words mean the same everywhere.

    def ask(
        reader: str, *, reader_args: ModelArguments = None, reader_url: str | None = None,
        prices: ModelPrices = None, budget: CallBudget = None, replay: Replay = None, max_connections: Connections = None,
    ) -> Request: ...

`roles.Roles.read` takes them from there. Loads no model, so that a command's help is quick.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from equipoise.core.options import Setting

if TYPE_CHECKING:
    from equipoise.core.budget import Budget

    Limits = str | Budget
else:  # what a command line can give
    Limits = str

# Of a provider's arguments, those that can name neither code nor an address.
HARMLESS = {
    *("engine", "chat_template", "context", "date", "device", "dtype", "revision"),
    *("batch_size", "threads", "parallel"),
}


def can_run_code(arguments: Any) -> bool:
    """Whether arguments of a provider are others than those that can name neither code nor an address."""
    return bool(arguments) and not arguments.keys() <= HARMLESS


Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ModelArguments = Annotated[dict[str, Any] | None, Setting(typed=can_run_code)]
ModelPrices = dict[str, tuple[Price, Price] | tuple[Price, Price, Price]] | None
CallBudget = Annotated[Limits | None, Setting(stored=False, objects=True)]
Connections = Annotated[Annotated[int, Field(ge=1)] | None, Setting(stored=False)]
Replay = Path | None
