"""What an audit of tools comes to. Loads no torch, so that a page can be drawn again from a stored folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from equipoise.core.columns import duration
from equipoise.core.job import Page, table_html
from equipoise.core.shares import Bounded, Share

ALL = "all tools"
FEW_MEASURED = 0.5  # share of the steps that are decided: with fewer the headline says so first
# What a step came to, and why nothing is known of the others.
LOWERED, NOT_LOWERED = "lowered", "not lowered"
OVERLAP, SHORT, NO_LOG_PROBS, NOTHING_AFTER, INTERRUPTED, TOO_LONG = (
    "bounds overlap",
    "too few words",
    "no log-probabilities",
    "nothing after it",
    "others spoke in between",
    "beyond the context",
)
REASONS: Mapping[str, str] = {
    OVERLAP: "the bounds of the entropies before and after overlap (log more alternatives a token, or give --model)",
    SHORT: "the model wrote fewer than 5 tokens before the call or after its reply (or at first, with --against first)",
    NO_LOG_PROBS: "no alternatives are logged for the text before or after",
    NOTHING_AFTER: "the trace ends with the call",
    INTERRUPTED: "somebody else spoke between the reply and the next text",
    TOO_LONG: "the trace is longer than the model's context",
}
SAME, ALIKE = "same", "alike"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How a tool was used. Intervals are clustered by what was asked; nan where there is nothing to tell.

    steps: with a call of it, calls at once being one. lowered: of the decided steps those after which entropy was lower;
    missing are those that are not decided. change: mean of the entropy's change in nats a token, over all steps for which it
    is known within bounds, these counted in its interval. duplicate: of the calls those that an earlier one of the trace
    equals. copied: mean share of what was written after it that repeats replies. anyway: calls that lowered nothing in
    traces that were right. needless: calls in right traces that lowered nothing or repeat a call with the same reply.
    tokens, seconds, price: of all calls, with the turns that made them; needless_...: of the needless; nan: not logged.
    """

    tool: str
    calls: int
    steps: int
    lowered: Share
    change: Bounded
    duplicate: Share
    copied: float
    unanswered: int
    right: int
    anyway: int
    needless: int
    tokens: float
    needless_tokens: float
    seconds: float
    needless_seconds: float
    price: float
    needless_price: float


@dataclass(frozen=True, slots=True)
class ChangeAt:
    """The mean change of entropy by the steps of a tool that are the number-th of their trace, from 1; of: how many."""

    tool: str
    number: int
    change: Bounded
    of: int


@dataclass(frozen=True, slots=True)
class UselessCall:
    """A call that repeats another or lowered nothing. number: of its step in the trace, from 1. change: its bounds.

    right: of its trace, None where that is not known. duplicate: same, alike or "". tokens: with the turn that made it.
    """

    trace: str
    number: int
    tool: str
    arguments: str
    outcome: str
    change: Bounded
    duplicate: str
    right: bool | None
    tokens: float


@dataclass(frozen=True)
class ToolAudit:
    """Which calls of tools were of use, from logs; folder is None without one.

    source: where the entropies are from. counts: traces, right, wrong and ungraded ones, those without a call, calls, steps,
    calls without a reply, messages of tools without a call, calls that cannot be read, texts shown plainly to a model whose
    chat template hides them. undecided: reason -> steps. width: mean width of the bounds of a change, in nats; nan of none.
    calibration: AUROC of the fall of entropy, steps of right traces against those of wrong ones; calibrated: how many of
    each. estimated: whether tokens that were not logged are taken to have 4 characters.
    """

    names: Mapping[str, str]
    source: str
    against: str
    margin: float
    counts: Mapping[str, int]
    overall: ToolUse
    tools: tuple[ToolUse, ...]
    path: tuple[ChangeAt, ...]
    undecided: Mapping[str, int]
    width: float
    calibration: Bounded
    calibrated: Mapping[str, int]
    useless: tuple[UselessCall, ...]
    useless_count: int
    estimated: bool
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers: little is decided, nothing is graded, or entropy misleads."""
        found = []
        if self.overall.lowered.of < FEW_MEASURED * self.counts["steps"]:
            most = max(self.undecided, key=self.undecided.__getitem__)
            found.append(
                f"Only {self.overall.lowered.of:,} of {several(self.counts['steps'], 'step')} are decided, the others "
                f"mostly not since {REASONS[most]}."
            )
        if not self.counts["right"] + self.counts["wrong"]:
            found.append(
                "No trace says how it ended: without success, score, reward or gold nobody can tell needless calls from "
                "needed ones."
            )
        elif self.calibration.upper < 0.5:
            found.append(
                f"Entropy fell more in wrong traces than in right ones (AUROC {self.calibration.value:.3f}): here a call "
                "after which the model is surer is no better call."
            )
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        use = self.overall
        said = f"{several(use.calls, 'call')} in {several(self.counts['traces'], 'trace')}"
        if use.lowered.of:
            said += f"; {use.lowered.rate:.0%} of the decided steps lowered uncertainty"
        again = round(use.duplicate.count)
        said += f"; {several(again, 'call')} {'repeats' if again == 1 else 'repeat'} an earlier one"
        if use.right:
            count = "counts" if use.needless == 1 else "count"
            said += f"; {use.needless:,} of {use.right:,} in right traces {count} as needless ({needless_cost(use)})"
        return " ".join((*self.warnings(), f"{said}."))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: each tool, calibration, the headline."""
        lines = [
            f"{each.tool}: {several(each.calls, 'call')}, lowered uncertainty {percent(each.lowered)}, "
            f"repeats {percent(each.duplicate)}, needless {each.needless:,}"
            for each in self.tools[:12]
        ]
        if len(self.tools) > 12:
            lines.append(f"and {len(self.tools) - 12:,} more tools")
        if not math.isnan(self.calibration.value):
            lines.append(f"AUROC of the fall of entropy for right against wrong traces: {between(self.calibration)}")
        return (*lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.reinforcement.tool_audit_page import audit_page

        return audit_page(self)

    def _repr_html_(self) -> str:
        rows = [(each.tool, each.calls, percent(each.lowered), percent(each.duplicate)) for each in self.tools]
        return table_html(("tool", "calls", "lowered uncertainty", "repeats"), rows, caption=self.headline())


@dataclass(frozen=True)
class ToolAuditPlan:
    """What an audit would do. seconds: of reading the traces with the model, nan without one."""

    source: str
    traces: int
    calls: int
    tools: int
    recorded: int
    tokens: int
    seconds: float

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        lines = [self.source, f"{self.traces:,} traces, {self.calls:,} calls of {self.tools:,} tools"]
        if math.isnan(self.seconds):
            return (*lines, f"{self.recorded:,} texts with the log-probabilities of alternatives")
        return (*lines, f"one pass a trace, {self.tokens:,} tokens: {duration(self.seconds)}")


def percent(share: Share) -> str:
    """A share with its interval, where there is one."""
    if not share.of:
        return "–"
    if math.isnan(share.lower):
        return f"{share.rate:.0%}"
    return f"{share.rate:.0%} [{share.lower:.0%}, {share.upper:.0%}]"


def between(value: Bounded, places: int = 3, *, signed: bool = False) -> str:
    """A number with its interval, where there is one; a dash for nothing."""
    if math.isnan(value.value):
        return "–"
    form = f"{'+' if signed else ''}.{places}f"
    if math.isnan(value.lower) or math.isnan(value.upper):
        return f"{value.value:{form}}"
    return f"{value.value:{form}} [{value.lower:{form}}, {value.upper:{form}}]"


def needless_cost(use: ToolUse) -> str:
    """What the needless calls cost, in words, as far as it is logged."""
    told = [several(round(use.needless_tokens), "token")]
    if not math.isnan(use.needless_seconds):
        told.append(duration(use.needless_seconds))
    if not math.isnan(use.needless_price):
        told.append(f"a logged price of {use.needless_price:,.4g}")
    return ", ".join(told)


def several(count: int, what: str) -> str:
    """1 call, 2 calls."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
