"""What an adapter begins with, map by map: how much of what must be kept lies where it starts. Loads no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from equipoise.core import page as parts

SHOWN = 40  # maps that a page lists, those with the largest leakage first
LEAKS = 0.5  # a start with more of what is kept than of what is forgotten is no start in the forget set's directions


@dataclass(frozen=True)
class MapSpectrum:
    """Of one adapted linear map, `width` outputs wide; shares are of summed squares in [0, 1], nan where none were held out.

    positive: eigenvalues of (1 - beta) C_F - beta C_R above 0, None for starts without them. forget: the share of the forget
    outputs that lies where the adapter begins; leakage: that of retain outputs that nothing was computed from. directions:
    how many of the retain set it is kept out of, 0 for none; covered: the share of held-out retain outputs in these.
    """

    name: str
    width: int
    positive: int | None = None
    forget: float = math.nan
    leakage: float = math.nan
    directions: int = 0
    covered: float = math.nan


def notes(spectra: Sequence[MapSpectrum]) -> tuple[str, ...]:
    """What has to be known before the start is trusted: maps in which it holds more of what is kept than of the rest."""
    leaking = [each for each in spectra if each.leakage > LEAKS and each.leakage >= each.forget]
    if not leaking:
        return ()
    worst = max(leaking, key=lambda each: each.leakage)
    return (
        f"In {len(leaking)} of {len(spectra)} maps the adapter begins where the retain set shows as much as the forget set "
        f"({worst.name}: {worst.leakage:.2f} of held-out retain outputs): this start hardly tells the two apart there. "
        "Use a higher guidance, a lower lora_rank or more retain records.",
    )


def section(spectra: Sequence[MapSpectrum]) -> parts.Section:
    """The table of a page."""
    order = sorted(spectra, key=lambda each: -math.inf if math.isnan(each.leakage) else each.leakage, reverse=True)
    more = f", the {SHOWN} of {len(order)} maps with the largest leakage" if len(order) > SHOWN else ""
    columns = ("map", "width", "positive", "forget", "leakage", "kept out of", "covered")
    rows = tuple(
        (
            each.name,
            each.width,
            each.positive,
            _known(each.forget),
            _known(each.leakage),
            each.directions or None,
            _known(each.covered),
        )
        for each in order[:SHOWN]
    )
    lead = parts.Text(
        "positive: directions in which forget outputs outweigh retain outputs. forget: share of the forget outputs where "
        "the adapter begins; leakage: the same of held-out retain outputs, better low. kept out of: main directions of the "
        "retain outputs; covered: share of held-out retain outputs in them."
    )
    table = parts.Table(
        f"By map{more}", tuple(parts.Column(name, index > 0) for index, name in enumerate(columns)), rows
    )
    return parts.Section("Where the adapter begins", (lead, table))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
