"""Stored policies, of whichever class wrote them."""

import json
import zipfile
from pathlib import Path

from equipoise.control.dr_sac import DRSAC
from equipoise.control.sac import ABOUT, SAC
from equipoise.core.errors import BadInput

CLASSES: dict[str, type[SAC]] = {"SAC": SAC, "DRSAC": DRSAC}


def load_policy(path: Path) -> SAC:
    """The agent in a file that `save` wrote, without anything to learn from. Raises BadInput for another file."""
    try:
        with zipfile.ZipFile(path) as archive:
            kind = json.loads(archive.read(ABOUT))["class"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path} is no policy that `equipoise control train` wrote ({error}).") from error
    if kind not in CLASSES:
        raise BadInput(f"{path} holds a {kind}, which this version does not have.")
    return CLASSES[kind].load(path)
