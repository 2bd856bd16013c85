"""What a paper states, written as a test that stored measurements could fail; written before any result exists.

`better`, `not_worse`, `equal`, `cheaper`, `between`, `statistic`, `matched` and `both` build the tests; `Claim` ties
one to its sentence and source. `study.judging` decides them. Declarations only: nothing heavy is imported.

Signs: whatever the direction of an outcome, a positive effect favours `arm`, and every margin is in the unit of its
outcome (of an outcome declared with `log=True`: in natural logarithms, so that 0.05 is about 5 %).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from equipoise.core.errors import BadInput
from equipoise.core.options import check_fields, closed

Rule = Literal["better", "not_worse", "equal"]
Unit = Literal["seed", "item"]
At = Literal["last"] | Mapping[str, Any]
BOTH_UNITS: tuple[Unit, ...] = ("seed", "item")
KNOWN_IN_ADVANCE = "card, known in advance"


@dataclass(frozen=True, slots=True)
class References:
    """The names a test relies on, for the study to check that they exist."""

    arms: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    costs: tuple[str, ...] = ()

    def __or__(self, other: "References") -> "References":
        def merged(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(dict.fromkeys(a + b))

        return References(
            merged(self.arms, other.arms), merged(self.outcomes, other.outcomes), merged(self.costs, other.costs)
        )


def _check_margin(margin: float, reason: str, rule: Rule) -> None:
    if not isinstance(margin, int | float) or not math.isfinite(margin) or margin < 0:
        raise BadInput(f"A margin is a finite number >= 0 in the unit of the outcome; got {margin!r}.")
    if margin == 0 and rule != "better":
        raise BadInput(f"{rule}() needs a margin > 0: without one, no amount of data could support it.")
    if margin > 0 and not reason.strip():
        raise BadInput(
            f"The margin {margin:g} needs its reason: add reason='why a smaller difference would not matter'."
        )


def _check_units(units: tuple[Unit, ...]) -> None:
    if not units or len(set(units)) != len(units):
        raise BadInput(f"The units of a test are ('seed',), ('item',) or ('seed', 'item'); got {units!r}.")


def _check_pair(arm: str, rival: str) -> None:
    if arm == rival:
        raise BadInput(f"A test compares two different arms; both are {arm!r}.")


def _check_at(at: At) -> None:
    if not at or (at != "last" and not isinstance(at, Mapping)):
        raise BadInput(f"A test's at is 'last' or a place on the path such as {{'step': 40}}; got {at!r}.")


def _check_level(level: Any) -> None:
    if level != "weakest" and (
        isinstance(level, bool) or not isinstance(level, int | float) or not math.isfinite(level)
    ):
        raise BadInput(f"level is a finite number or 'weakest'; got {level!r}.")


def _level_words(level: float | str) -> str:
    return "the strongest level both reach" if isinstance(level, str) else f"{level:g}"


def _place(at: At) -> str:
    return "at the end of the path" if at == "last" else "at " + ", ".join(f"{k} {v}" for k, v in dict(at).items())


def _conditions(where: Mapping[str, Any] | None) -> str:
    return "" if not where else " (" + ", ".join(f"{key} {value}" for key, value in where.items()) + ")"


def _sentence(subject: str, rule: Rule, margin: float) -> str:
    if rule == "better":
        return f"{subject}: better" + (f" by more than {margin:g}" if margin else "")
    return f"{subject}: not worse by {margin:g}" if rule == "not_worse" else f"{subject}: equal within {margin:g}"


@dataclass(frozen=True, slots=True)
class ClaimComparison:
    """One outcome of two arms at one place: `better`, `not_worse` or `equal`."""

    rule: Rule
    outcome: str
    arm: str
    rival: str
    margin: float = 0.0
    reason: str = ""
    at: At = "last"
    where: Mapping[str, Any] | None = None
    units: tuple[Unit, ...] = BOTH_UNITS

    def __post_init__(self) -> None:
        check_fields(self)
        _check_pair(self.arm, self.rival)
        _check_margin(self.margin, self.reason, self.rule)
        _check_at(self.at)
        _check_units(self.units)

    def references(self) -> References:
        return References(arms=(self.arm, self.rival), outcomes=(self.outcome,))

    def describe(self) -> str:
        subject = f"{self.outcome}{_conditions(self.where)} of {self.arm} against {self.rival} {_place(self.at)}"
        return _sentence(subject, self.rule, self.margin)


@dataclass(frozen=True, slots=True)
class Cheaper:
    """A cost of two arms: the rival spends more than `by` times as much. Judged on log ratios, paired by seed.

    In all or in one phase; with `outcome`, until that (under `where`) comes to `level`, as `Matched` finds it. What was
    spent by then is read from the place of each evaluation: at={"step": 40, "generated_tokens": 81_000}.
    """

    cost: str
    arm: str
    rival: str
    by: float
    phase: str | None = None
    reason: str = ""
    outcome: str | None = None
    level: float | Literal["weakest"] = "weakest"
    where: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        _check_pair(self.arm, self.rival)
        _check_level(self.level)
        if not isinstance(self.by, int | float) or not math.isfinite(self.by) or self.by < 1:
            raise BadInput(f"by is the factor by which the arm is cheaper, >= 1 (1: cheaper at all); got {self.by!r}.")
        if self.by > 1 and not self.reason.strip():
            raise BadInput(f"The factor {self.by:g} needs its reason: add reason='why a smaller one would not matter'.")

    def references(self) -> References:
        outcomes = () if self.outcome is None else (self.outcome,)
        return References(arms=(self.arm, self.rival), outcomes=outcomes, costs=(self.cost,))

    def describe(self) -> str:
        phase = f" in phase {self.phase}" if self.phase else ""
        until = f" until {self.outcome}{_conditions(self.where)} = {_level_words(self.level)}" if self.outcome else ""
        factor = f"more than {self.by:g} times cheaper" if self.by > 1 else "cheaper"
        return f"{self.cost}{phase} of {self.arm} against {self.rival}{until}: {factor}"


@dataclass(frozen=True, slots=True)
class Between:
    """One outcome of one arm under two conditions; a positive effect favours `where_a`."""

    outcome: str
    arm: str
    where_a: Mapping[str, Any]
    where_b: Mapping[str, Any]
    margin: float = 0.0
    reason: str = ""
    rule: Rule = "better"
    at: At = "last"
    units: tuple[Unit, ...] = BOTH_UNITS

    def __post_init__(self) -> None:
        check_fields(self)
        if dict(self.where_a) == dict(self.where_b):
            raise BadInput(f"between() compares two different conditions; both are {dict(self.where_a)}.")
        _check_margin(self.margin, self.reason, self.rule)
        _check_at(self.at)
        _check_units(self.units)

    def references(self) -> References:
        return References(arms=(self.arm,), outcomes=(self.outcome,))

    def describe(self) -> str:
        a, b = _conditions(self.where_a).strip(" ()"), _conditions(self.where_b).strip(" ()")
        return _sentence(
            f"{self.outcome} of {self.arm} under {a} against {b} {_place(self.at)}", self.rule, self.margin
        )


@dataclass(frozen=True, slots=True)
class Statistic:
    """A statistic that is no mean over items (AUROC, Kendall's tau), computed per run.

    `function` takes one array per outcome, aligned by item (`over="items"`) or by place on the path (`over="path"`,
    values are means over items), and returns a float; nan where undefined. With a rival its difference is compared
    with `margin`; without one the statistic itself is, and `margin` is the threshold to pass.
    """

    function: Callable[..., float]
    arm: str
    rival: str | None
    outcomes: tuple[str, ...]
    margin: float = 0.0
    reason: str = ""
    better: Literal["higher", "lower"] = "higher"
    over: Literal["items", "path"] = "items"
    at: At = "last"
    where: Mapping[str, Any] | None = None
    units: tuple[Unit, ...] = BOTH_UNITS
    name: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        if not callable(self.function):
            raise BadInput(f"statistic() needs a function of one array per outcome; got {self.function!r}.")
        if self.rival is not None:
            _check_pair(self.arm, self.rival)
        if isinstance(self.outcomes, str) or not self.outcomes:
            raise BadInput(f"statistic() needs outcomes=('name', ...), one per argument; got {self.outcomes!r}.")
        _check_margin(self.margin, self.reason, "better")
        _check_at(self.at)
        if self.over == "path" and self.at != "last":
            raise BadInput(f"statistic(over='path') is made from all places of the path; leave out at={dict(self.at)}.")
        _check_units(self.units)

    @property
    def label(self) -> str:
        return self.name or getattr(self.function, "__name__", "statistic")

    def references(self) -> References:
        rival = () if self.rival is None else (self.rival,)
        return References(arms=(self.arm, *rival), outcomes=tuple(self.outcomes))

    def describe(self) -> str:
        of = f"{self.label} of {', '.join(self.outcomes)}{_conditions(self.where)} of {self.arm}"
        if self.rival is None:
            return f"{of}: {'above' if self.better == 'higher' else 'below'} {self.margin:g}"
        return _sentence(f"{of} against {self.rival}", "better", self.margin)


@dataclass(frozen=True, slots=True)
class Matched:
    """`judge` of two arms where their paths cross the same level of `outcome`.

    The crossing is found per run on validation items, the judgement made on test items. `level` is a number, or
    "weakest": the strongest level that both arms reached in all seeds, with 5 % of the weakest path to spare.
    """

    outcome: str
    arm: str
    rival: str
    judge: str
    margin: float = 0.0
    reason: str = ""
    level: float | Literal["weakest"] = "weakest"
    rule: Rule = "better"
    where: Mapping[str, Any] | None = None
    units: tuple[Unit, ...] = BOTH_UNITS

    def __post_init__(self) -> None:
        check_fields(self)
        _check_pair(self.arm, self.rival)
        if self.outcome == self.judge:
            raise BadInput(f"matched() holds one outcome equal and compares another; both are {self.outcome!r}.")
        _check_level(self.level)
        _check_margin(self.margin, self.reason, self.rule)
        _check_units(self.units)

    def references(self) -> References:
        return References(arms=(self.arm, self.rival), outcomes=(self.outcome, self.judge))

    def describe(self) -> str:
        place = f"at {self.outcome} = {_level_words(self.level)}"
        subject = f"{self.judge}{_conditions(self.where)} of {self.arm} against {self.rival} {place}"
        return _sentence(subject, self.rule, self.margin)


@dataclass(frozen=True, slots=True)
class Both:
    """All of several tests: supported when each is, refuted when one is refuted.

    Each part keeps the full level: to be wrong, every false part must be wrong (intersection-union test).
    """

    tests: tuple["Test", ...]

    def __post_init__(self) -> None:
        if len(self.tests) < 2:
            raise BadInput(f"both() joins at least two tests; got {len(self.tests)}.")
        for test in self.tests:
            _check_test(test)

    def references(self) -> References:
        merged = References()
        for test in self.tests:
            merged |= test.references()
        return merged

    def describe(self) -> str:
        return "; and ".join(test.describe() for test in self.tests)


Test = ClaimComparison | Cheaper | Between | Statistic | Matched | Both


def _check_test(test: object) -> None:
    if not isinstance(test, ClaimComparison | Cheaper | Between | Statistic | Matched | Both):
        raise BadInput(f"A test is made by better(), not_worse(), equal(), cheaper(), ...; got {test!r}.")


@closed
def better(
    outcome: str,
    *,
    arm: str,
    rival: str,
    margin: float = 0.0,
    reason: str = "",
    at: At = "last",
    where: Mapping[str, Any] | None = None,
    units: tuple[Unit, ...] = BOTH_UNITS,
) -> ClaimComparison:
    """The arm beats the rival by more than `margin`; refuted when an advantage as large as that is excluded."""
    return ClaimComparison("better", outcome, arm, rival, margin, reason, at, where, tuple(units))


@closed
def not_worse(
    outcome: str,
    *,
    arm: str,
    rival: str,
    margin: float,
    reason: str,
    at: At = "last",
    where: Mapping[str, Any] | None = None,
    units: tuple[Unit, ...] = BOTH_UNITS,
) -> ClaimComparison:
    """The arm loses less than `margin` against the rival."""
    return ClaimComparison("not_worse", outcome, arm, rival, margin, reason, at, where, tuple(units))


@closed
def equal(
    outcome: str,
    *,
    arm: str,
    rival: str,
    margin: float,
    reason: str,
    at: At = "last",
    where: Mapping[str, Any] | None = None,
    units: tuple[Unit, ...] = BOTH_UNITS,
) -> ClaimComparison:
    """The two arms differ by less than `margin` in either direction."""
    return ClaimComparison("equal", outcome, arm, rival, margin, reason, at, where, tuple(units))


def cheaper(cost: str, *, arm: str, rival: str, by: float = 1.0, phase: str | None = None, reason: str = "") -> Cheaper:
    """The rival spends more than `by` times the arm's `cost`, over all phases or in one."""
    return Cheaper(cost, arm, rival, by, phase, reason)


@closed
def between(
    outcome: str,
    *,
    arm: str,
    where_a: Mapping[str, Any],
    where_b: Mapping[str, Any],
    margin: float = 0.0,
    reason: str = "",
    rule: Rule = "better",
    at: At = "last",
    units: tuple[Unit, ...] = BOTH_UNITS,
) -> Between:
    """One arm under two conditions: it does better under `where_a` than under `where_b`, by more than `margin`."""
    return Between(outcome, arm, where_a, where_b, margin, reason, rule, at, tuple(units))


@closed
def statistic(
    function: Callable[..., float],
    *,
    arm: str,
    rival: str | None = None,
    outcomes: tuple[str, ...],
    margin: float = 0.0,
    reason: str = "",
    better: Literal["higher", "lower"] = "higher",
    over: Literal["items", "path"] = "items",
    at: At = "last",
    where: Mapping[str, Any] | None = None,
    units: tuple[Unit, ...] = BOTH_UNITS,
    name: str = "",
) -> Statistic:
    """A statistic that is no mean, `function(*arrays of outcomes) -> float` per run, by pigeonhole bootstrap."""
    outcomes = outcomes if isinstance(outcomes, str) else tuple(outcomes)
    return Statistic(function, arm, rival, outcomes, margin, reason, better, over, at, where, tuple(units), name)


@closed
def matched(
    outcome: str,
    *,
    arm: str,
    rival: str,
    judge: str,
    margin: float = 0.0,
    by: float | None = None,
    reason: str = "",
    level: float | Literal["weakest"] = "weakest",
    rule: Rule = "better",
    where: Mapping[str, Any] | None = None,
    units: tuple[Unit, ...] = BOTH_UNITS,
) -> Matched | Cheaper:
    """At an equal `outcome` the arm is better in `judge` by more than `margin`.

    With `by`, `judge` is a cost: the rival spends more than `by` times as much of it to come to that level.
    """
    if by is None:
        return Matched(outcome, arm, rival, judge, margin, reason, level, rule, where, tuple(units))
    if margin or rule != "better" or "seed" not in units:
        raise BadInput(
            f"matched(judge={judge!r}, by={by!r}) compares a cost, seed by seed, by a factor: leave out margin=, rule= and "
            "units=, or leave out by= for an outcome."
        )
    return Cheaper(judge, arm, rival, by, None, reason, outcome, level, where)


def both(*tests: Test) -> Both:
    """All of these at once."""
    return Both(tuple(tests))


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement, where it was made, and the test that could fail it (or the reason why it cannot be tested here).

    `source="card, known in advance"` marks what was known before the study was declared: never primary. A claim that is
    not primary is exploratory: shown apart, without verdict. At most three claims of a study are primary.
    """

    text: str
    source: str = field(kw_only=True)
    test: Test | None = field(default=None, kw_only=True)
    untested: str = field(default="", kw_only=True)
    primary: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise BadInput("A claim needs its text: the statement in one sentence.")
        if not self.source.strip():
            raise BadInput(f"The claim {self.text!r} needs its source, such as source='abstract'.")
        if self.test is None and not self.untested.strip():
            raise BadInput(f"The claim {self.text!r} needs a test, or untested='why it cannot be tested here'.")
        if self.test is not None and self.untested.strip():
            raise BadInput(f"The claim {self.text!r} has both a test and a reason why it is untested; keep one.")
        if self.test is not None:
            _check_test(self.test)
        if self.source == KNOWN_IN_ADVANCE:
            object.__setattr__(self, "primary", False)

    @property
    def judged(self) -> bool:
        """Whether this claim gets a verdict and takes its share of the error rate."""
        return self.test is not None and self.primary

    def references(self) -> References:
        """The names its test relies on; none where it is untested."""
        return References() if self.test is None else self.test.references()
