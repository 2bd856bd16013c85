"""Stored policies, of whichever class wrote them."""

from pathlib import Path

from equipoise.control.agent import Agent, read_model
from equipoise.control.dr_sac import DRSAC
from equipoise.control.fqi import FQI, RFQI
from equipoise.control.sac import SAC
from equipoise.core.errors import BadInput, WorkFailed

CLASSES: dict[str, type[Agent]] = {each.__name__: each for each in (SAC, DRSAC, FQI, RFQI)}


def load_policy(path: Path) -> Agent:
    """The agent in a file that `save` wrote, without anything to learn from. Raises BadInput for another file."""
    try:
        kind = read_model(path)[0].kind
        if kind not in CLASSES:
            raise BadInput(f"{path} holds a {kind}, which this version does not have.")
        return CLASSES[kind].load(path)
    except WorkFailed as error:
        raise BadInput(f"{path} is no policy that `equipoise control train` wrote: {error}") from error
