"""What an adapter begins with, map by map: how much of what must be kept lies where it starts. Loads no torch."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from equipoise.core import page as parts

SHOWN = 40  # maps that a page lists, those with the largest leakage first
# Last names of linear maps that hold several: queries, keys and values, a gate and what it gates, or projections of a mixer.
FUSED = re.compile(r"c_attn|.*qkv.*|query_key_value|W_pack|gate_up_proj|kv_[ab]_proj.*|in_proj.*", re.IGNORECASE)
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
    found = fused([each.name for each in spectra])
    if spectra and all(math.isnan(each.leakage) for each in spectra) and any(not math.isnan(e.forget) for e in spectra):
        found += (
            "No retain record could be held out, since there are fewer than five: what of the retain set lies where the "
            "adapter begins is not known.",
        )
    leaking = [each for each in spectra if each.leakage > LEAKS and each.leakage >= each.forget]
    if not leaking:
        return found
    worst = max(leaking, key=lambda each: each.leakage)
    return (
        *found,
        f"In {len(leaking)} of {len(spectra)} maps the adapter begins where the retain set shows as much as the forget set "
        f"({worst.name}: {worst.leakage:.2f} of held-out retain outputs): this start hardly tells the two apart there. "
        "Use a higher guidance, a lower lora_rank or more retain records.",
    )


def fused(names: Sequence[str]) -> tuple[str, ...]:
    """What has to be known of maps that hold several in one, by their names; () where there are none."""
    several = [name for name in names if FUSED.fullmatch(name.rpartition(".")[2])]
    if not several:
        return ()
    return (
        f"{len(several)} of {len(names)} maps hold several in one ({several[0]} and others like it): rank, start and the "
        "directions that the adapter is kept out of are shared by their parts, as the adapter is.",
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
