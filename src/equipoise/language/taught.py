"""The model that a job begins with: loaded, as it was given, or taught on the spot and kept in the job's folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from equipoise.core.job import Processes
from equipoise.language.model import LanguageModel, load

TAUGHT = "taught"


def taught_once(folder: Path | None, processes: Processes, teach: Callable[[], LanguageModel]) -> LanguageModel:
    """What `teach` makes; with a folder also stored there, so that a resumed job starts from the same model.

    Of several processes the main one teaches, and the others load what it stored.
    """
    if folder is None:
        return teach()
    if not processes.main:
        processes.wait()
    if (folder / TAUGHT / "config.json").exists():
        made = load(folder / TAUGHT, device="cpu")
    else:
        made = teach()
        made.save(folder / "teaching")
        (folder / "teaching").rename(folder / TAUGHT)
    if processes.main:
        processes.wait()
    return made


def opened(
    model: str | Path | LanguageModel,
    loading: Mapping[str, Any],
    tiny: Callable[[], LanguageModel],
    attention: str | None = None,
) -> LanguageModel:
    """The model as given, what `tiny` makes where it is called that, else what is loaded; with this attention."""
    if isinstance(model, LanguageModel):
        language_model = model
    elif str(model) == "tiny":
        language_model = tiny()
    else:
        language_model = load(model, **loading)
    if attention is not None:
        language_model.use_attention(attention)
    return language_model
