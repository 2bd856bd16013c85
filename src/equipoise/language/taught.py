"""A model that a job teaches on the spot, kept in its folder."""

from collections.abc import Callable
from pathlib import Path

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
