"""What a certification comes to. Loads no torch, so that a page can be drawn again from a stored folder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from equipoise.core.job import Page, table_html
from equipoise.core.options import check_fields, closed

Verdict = Literal["certified", "refuted", "undecided", "wrong"]


@dataclass(frozen=True)
class Faithfulness:
    """How far the network is from its original: nowhere further than rounding allows.

    reference: what the original ran in, None when there was none. points: how many inputs and random points were compared.
    absolute, relative: the largest difference of an output, and of one in units of the largest output at its point.
    allowed: the largest share of the allowed difference that was met, at most 1.
    """

    reference: str | None
    version: str | None = None
    precision: str | None = None
    points: int = 0
    absolute: float | None = None
    relative: float | None = None
    allowed: float | None = None

    def __str__(self) -> str:
        if self.reference is None:
            return "The network was given as it is: there is no original to compare it with."
        return (
            f"The network gives what {self.reference} {self.version} gives for the original in {self.precision} at "
            f"{self.points} points: largest difference {self.absolute:.1e}, {self.relative:.1e} of the outputs."
        )


@dataclass(frozen=True)
class CertifiedRow:
    """One input. margins: certified, one a class other than the label, in order; attacked: the smallest ones found.

    radius: within which they hold; with largest_radius the largest that is certified, 0 when none is, and of a refuted input
    where its counter-example lies. A wrong input (its label is not what the network says) has no margins. undecided:
    neither proved nor refuted.
    """

    index: int
    label: int
    predicted: int
    verdict: Verdict
    radius: float
    margins: tuple[float, ...] = ()
    attacked: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def margin(self) -> float:
        """The smallest certified margin, nan for a wrong input."""
        return min(self.margins, default=math.nan)


@dataclass(frozen=True)
class Certification:
    """All rows in the order of the inputs; folder is None when nothing was written. seconds: of bounding, all attempts.

    shape: of one input. radius: one for all, where there is one. labels: whose they are, in words. accepted: certificates
    that the independent checker has proved again from the disk. faithful: how the network was held beside its original.
    """

    rows: tuple[CertifiedRow, ...]
    network: str
    shape: tuple[int, ...]
    labels: str
    seconds: float
    radius: float | None = None
    largest: bool = False
    accepted: int = 0
    faithful: Faithfulness | None = None
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    @closed
    def count(self, verdict: Verdict) -> int:
        """How many inputs ended so."""
        return sum(row.verdict == verdict for row in self.rows)

    def headline(self) -> str:
        """One sentence: how many, of which labels, within what."""
        within = "up to the largest radius certified"
        if not self.largest:
            within = "within its own radius" if self.radius is None else f"within {self.radius:g} (l2)"
        return (
            f"{self.count('certified')} of {len(self.rows)} inputs keep their class for every point {within}; "
            f"labels: {self.labels}."
        )

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        counts = ", ".join(f"{self.count(name)} {name}" for name in ("certified", "refuted", "undecided", "wrong"))
        return (f"{counts} of {len(self.rows)} inputs", self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.verification.page import page

        return page(self, folder)

    def _repr_html_(self) -> str:
        cells = [(r.index, r.label, r.verdict, f"{r.radius:.4g}", f"{r.margin:.4g}") for r in self.rows]
        return table_html(("input", "label", "verdict", "radius", "smallest margin"), cells, self.network)


@dataclass(frozen=True)
class CertificationPlan:
    """What a run would do: inputs of this shape, how many of them the network gives their label, how many at a time."""

    network: str
    shape: tuple[int, ...]
    inputs: int
    right: int
    labels: str
    batch: int

    def summary(self) -> Sequence[str]:
        return (
            f"{self.network}: {self.inputs} inputs of shape {self.shape}; labels: {self.labels}",
            f"{self.right} have their label and would be bounded, {self.batch} at a time; the others count as wrong",
        )
