"""What an audit of a judge comes to. Loads no numpy, so that a page can be drawn again from a stored folder."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.core.job import Page, table_html
from equipoise.core.terminal import shown
from equipoise.judging.measured import BiasEffect, PositionBias, Rate, Round
from equipoise.judging.notes import headline_of, warnings_of


@dataclass(frozen=True)
class JudgedExample:
    """A pair, with its worse answer rewritten. fooled: the places ("first", "second") of the better answer in which the
    verdict was right before and is wrong after."""

    pair: str
    question: str
    chosen: str
    rejected: str
    rewritten: str
    fooled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rewrites:
    """What became of the pairs of one bias. changed: rewrites with another final answer, left out; unchanged: word for word
    what they were made from; distinct: different texts; unasked: pairs that could not be put to the judge, and why."""

    pairs: int
    made: int
    changed: int
    unchanged: int
    distinct: int
    unasked: int = 0
    why: str = ""


@dataclass(frozen=True)
class FoundBias:
    """A bias that was measured. effect: on the report part where it was measured there, else on the selection part.

    round: 0 for the library it began with. support: cases it was proposed for. passed: the screening. cut: where asked for,
    the effect with rewrites no longer than the answers they were made from. domains: the effect within each, of one that
    holds. examples: verdicts that turned, of one that holds; else a rewrite.
    """

    name: str
    definition: str
    round: int
    support: int
    passed: bool
    holds: bool
    selection: BiasEffect
    report: BiasEffect | None
    rewrites: Rewrites
    cut: BiasEffect | None = None
    domains: Mapping[str, BiasEffect] = field(default_factory=dict)
    examples: tuple[JudgedExample, ...] = ()

    @property
    def effect(self) -> BiasEffect:
        """The effect on the report part where it was measured there, else on the selection part."""
        return self.report or self.selection

    @property
    def state(self) -> str:
        """What became of it, in words."""
        if not self.selection.pairs:
            return "not readable" if self.rewrites.made else "not rewritten"
        if self.holds:
            return "holds"
        if self.report is not None:
            return "not confirmed"
        return "to confirm" if self.passed else "screened out"


@dataclass(frozen=True)
class Harder:
    """The harder test set: `kept` of so many rewritten pairs; `too_few` fooled too few of the judges.

    longer: mean change in length of the kept worse answers, percent. kappa, alpha: agreement of the judges.
    """

    kept: int
    of: int
    too_few: int
    judges: int
    longer: float
    kappa: float
    alpha: float


@dataclass(frozen=True)
class JudgeAudit:
    """What an audit came to. biases: every one that was measured, those that hold first, by their effect.

    pairs: where those that it was measured on come from. position: what the judge makes of places, over the test pairs that
    were judged as they are; as_is: its verdicts on the selection part. sizes: pairs for discovery, selection and report.
    verdicts: of all pairs, as they are and rewritten, no_verdict of them not readable or, `ties` of these, ties; unasked:
    how often a pair could not be put to the judge, and why. detectable: the increase that would have been found four times
    in five, about, with the pairs that could be compared. placebo: what rewriting alone does, where a bias holds and the
    teacher can rewrite neutrally. alike: biases whose rewrites are mostly the same texts. left_out: pairs of the file that
    took no part.
    """

    judge: str
    teacher: str
    pairs: str
    rule: str
    biases: tuple[FoundBias, ...]
    position: PositionBias
    as_is: Rate
    sizes: tuple[int, int, int]
    verdicts: int
    no_verdict: int
    unasked: int
    why: str
    calls: int
    complete: bool
    ties: int = 0
    detectable: float = math.nan
    placebo: BiasEffect | None = None
    alike: tuple[tuple[str, str], ...] = ()
    rounds: tuple[Round, ...] = ()
    harder: Harder | None = None
    preferences: int = 0
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def holding(self) -> tuple[FoundBias, ...]:
        """The biases that hold."""
        return tuple(each for each in self.biases if each.holds)

    @property
    def measured(self) -> tuple[FoundBias, ...]:
        """Those of which at least one pair could be compared."""
        return tuple(each for each in self.biases if each.selection.pairs)

    @property
    def unread(self) -> int:
        """How many verdicts could not be read."""
        return self.no_verdict - self.ties

    @property
    def hardened(self) -> int:
        """How many pairs the harder test set has."""
        return self.harder.kept if self.harder else 0

    def headline(self) -> str:
        """Which biases hold, by whose verdicts and labels on how many pairs, what could not be read, what to beware of."""
        return headline_of(self)

    def warnings(self) -> Iterator[tuple[str, str]]:
        """What else could explain the effects, or hide them: titles and sentences."""
        return warnings_of(self)

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: a bias each, warnings, the headline."""
        lines = []
        for bias in self.biases:
            effect, outcome = bias.effect, bias.rewrites.why or "the teacher gave no rewrite that could be compared"
            if effect.pairs:
                outcome = f"{100 * effect.increase:+.1f} points [{100 * effect.lower:+.1f}, {100 * effect.upper:+.1f}]"
                outcome += f", {effect.pairs} pairs"
            lines.append(f"{bias.name:<28} {bias.state:<14} {outcome}")
        lines += [f"{title}: {text}" for title, text in self.warnings()]
        return [shown(line) for line in (*lines, f"{self.headline()} Chat calls: {self.calls:,}.")]

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.judging.page import page

        return page(self, folder)

    def _repr_html_(self) -> str:
        rows = [
            (e.name, e.state, f"{e.effect.increase:+.3f}", f"{e.effect.lower:+.3f} to {e.effect.upper:+.3f}")
            for e in self.biases
        ]
        return table_html(("bias", "", "increase of the error", "interval"), rows, self.headline())


@dataclass(frozen=True)
class AuditPlan:
    """What an audit would ask. calls: role -> (when nothing is found, when everything is). first: three pairs as read.

    tokens, usd: of all calls, in the same two cases, about four characters a token; usd is None without a price of either.
    """

    sizes: tuple[int, int, int]
    left_out: tuple[str, ...]
    calls: Mapping[str, tuple[int, int]]
    tokens: tuple[int, int]
    usd: tuple[float, float] | None
    first: tuple[Mapping[str, Any], ...]

    @property
    def cost(self) -> str:
        if self.usd is None:
            return ", cost unknown without --prices of every model"
        return ", {:.2f} to {:.2f} usd".format(*self.usd) if self.usd[1] else ", free"

    def announced(self) -> str:
        """The line before an audit starts; "" where there is nothing to pay."""
        least, most = (sum(counts[case] for counts in self.calls.values()) for case in (0, 1))
        amount = f"{least:,} calls when nothing is found, up to {most:,}{self.cost}"
        return f"{amount}; --budget sets a limit, what is recorded costs nothing." if most else ""

    def summary(self) -> Sequence[str]:
        lines = ["{} pairs to discover, {} to select, {} to report; the first:".format(*self.sizes)]
        for pair in self.first:
            lines.append(f"  {json.dumps({name: _short(value) for name, value in pair.items()}, ensure_ascii=False)}")
        lines += [f"left out: {left_out}" for left_out in self.left_out[:3]]
        lines += [
            f"{role}: {least:,} calls when nothing is found, up to {most:,}"
            for role, (least, most) in self.calls.items()
        ]
        lines.append(f"about {self.tokens[0] / 1e6:.2g} to {self.tokens[1] / 1e6:.2g} million tokens{self.cost}")
        return [shown(line) for line in lines]


def _short(value: Any) -> Any:
    return value[:80] + "..." if isinstance(value, str) and len(value) > 80 else value
