"""What a study file says: arms, outcomes, how settings are chosen, claims. Everything is checked at declaration.

A study is a function whose parameters are its options and whose value is a `Study`. Arms hold JSON values only, so that
a worker rebuilds the study from its name and options and finds its arm by name: nothing is pickled.
"""

import inspect
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from equipoise.core.cost import UNITS
from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.options import Options, check_fields, choice
from equipoise.study.claims import Claim

if TYPE_CHECKING:
    from equipoise.study.run import Preparation, Run

Json = Any  # None, bool, int, float, str, and lists and dicts of these
Kind = Literal["method", "baseline", "control", "reference"]
Direction = Literal["lower", "higher"]

PRIMARY_CLAIMS = 3
FIRST_TUNING_SEED = 1_000_000  # test seeds count from 0: the two never meet
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True, init=False)
class Arm:
    """One method with its settings; `grid` names the settings that are tuned and the values tried for each.

    `kind`: `method`, `baseline`, `control`, or `reference` (a ceiling or floor that is no rival). `fixed` is the reason
    why an arm has one grid point where the others have several (nothing to tune). Settings are JSON values.
    """

    name: str
    kind: Kind
    settings: dict[str, Json]
    grid: dict[str, tuple[Json, ...]]
    fixed: str

    def __init__(
        self,
        name: str,
        *,
        kind: Kind = "method",
        grid: Mapping[str, Sequence[Json]] | None = None,
        fixed: str = "",
        **settings: Json,
    ) -> None:
        choice(f"The kind of arm {name!r}", kind, Kind)
        _check_name("an arm", name)
        grid = {key: tuple(values) for key, values in (grid or {}).items()}
        for key, values in grid.items():
            if not values:
                raise BadInput(f"Arm {name!r}: the grid of {key!r} is empty; give at least one value.")
            if key in settings:
                raise BadInput(f"Arm {name!r}: {key!r} is both a setting and in the grid; keep one.")
        for key, value in [*settings.items(), *((key, value) for key, values in grid.items() for value in values)]:
            _check_json(f"Arm {name!r}: setting {key!r}", value)
        for key, value in (("name", name), ("kind", kind), ("settings", settings), ("grid", grid), ("fixed", fixed)):
            object.__setattr__(self, key, value)

    def points(self) -> tuple[dict[str, Json], ...]:
        """Settings of every grid point, in the order of the grid; the position is the point's index."""
        combinations = itertools.product(*self.grid.values())
        return tuple({**self.settings, **dict(zip(self.grid, values, strict=True))} for values in combinations)


@dataclass(frozen=True)
class Outcome:
    """A measured quantity: its direction, its chance level where one exists, its unit ("" for a proportion or a ratio).

    `log` asks for a logarithmic axis and for differences of logarithms (perplexity, costs).
    """

    name: str
    better: Direction = field(kw_only=True)
    chance: float | None = field(default=None, kw_only=True)
    unit: str = field(default="", kw_only=True)
    description: str = field(default="", kw_only=True)
    log: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        choice(f"The better side of outcome {self.name!r}", self.better, Direction)
        _check_name("an outcome", self.name)


@dataclass(frozen=True)
class Select:
    """Chooses one grid point per arm on tuning seeds: the best `outcome` at the end of the path.

    With `matched`, the best `outcome` at the crossing of outcome `matched` with `level` (a number, or "weakest": the
    strongest level that every tuned arm reaches in all tuning seeds). A point that misses the level ranks below all
    that reach it. `outcome` may then be a cost: the point that spends least to come to the level.
    """

    outcome: str
    split: str = field(default="validation", kw_only=True)
    seeds: int = field(default=2, kw_only=True)
    matched: str | None = field(default=None, kw_only=True)
    level: float | Literal["weakest"] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.seeds < 1:
            raise BadInput(f"Select({self.outcome!r}): seeds is {self.seeds}; at least one tuning seed is needed.")
        if (self.matched is None) != (self.level is None):
            raise BadInput(
                f"Select({self.outcome!r}): matched={self.matched!r} and level={self.level!r} come together."
            )


@dataclass(frozen=True, kw_only=True)
class Study:
    """A declared comparison.

    `seeds`: how many test seeds, from `first_seed` on, which a study that is designed anew raises: what was seen before is
    used up. `budget`: the cost that all arms share. `prepare` runs once per seed before its arms. `scale`: one sentence on
    model, data and size, printed beside every verdict. `without_control`: the reason, where a baseline or a control is
    missing. `dial`: the key of `at` that is the path's x; the name of a cost compares runs where they have spent the same of
    it, between their evaluations. `name`, `paper`, `trades`, `options`, `summary` and `source` are filled in by the
    decorator. Raises BadInput for anything inconsistent, naming it.
    """

    arms: Sequence[Arm]
    outcomes: Sequence[Outcome]
    claims: Sequence[Claim]
    run: Callable[["Run"], None]
    seeds: int = 10
    first_seed: int = 0
    budget: str
    prepare: Callable[["Preparation"], None] | None = None
    select: Select | None = None
    scale: str = ""
    without_control: str = ""
    dial: str = "step"
    name: str = ""
    paper: str = ""
    trades: str = ""
    summary: str = ""
    options: dict[str, Json] = field(default_factory=dict)
    source: Path | None = None

    def __post_init__(self) -> None:
        for key in ("arms", "outcomes", "claims"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        if self.dial is None:
            object.__setattr__(self, "dial", "step")
        _no_duplicates("arm", [arm.name for arm in self.arms])
        _no_duplicates("outcome", [outcome.name for outcome in self.outcomes])
        if not self.arms or not self.outcomes:
            raise BadInput("A study needs at least one arm and one outcome.")
        if self.seeds < 1 or self.first_seed < 0 or self.first_seed + self.seeds > FIRST_TUNING_SEED:
            raise BadInput(
                f"A study needs at least 1 seed, all from 0 to {FIRST_TUNING_SEED - 1}; not {self.seeds} from "
                f"{self.first_seed}."
            )
        missing = sorted({"baseline", "control"} - {arm.kind for arm in self.arms})
        if missing and not self.without_control:
            raise BadInput(
                f"The study has no {' and no '.join(missing)} arm; add one, or say why in without_control='...'."
            )
        self._check_grids()
        self._check_claims()

    def test_seeds(self, count: int | None = None) -> range:
        """The first test seeds; `count` None for as many as the study wants."""
        return range(self.first_seed, self.first_seed + (self.seeds if count is None else count))

    def arm(self, name: str) -> Arm:
        """The arm of that name. Raises BadInput naming the nearest."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise BadInput(f"The study has no arm {name!r}. {did_you_mean(name, [arm.name for arm in self.arms])}")

    def outcome(self, name: str) -> Outcome:
        """The outcome of that name. Raises BadInput naming the nearest."""
        for outcome in self.outcomes:
            if outcome.name == name:
                return outcome
        known = [outcome.name for outcome in self.outcomes]
        raise BadInput(f"The study has no outcome {name!r}. {did_you_mean(name, known)}")

    @property
    def dial_is_cost(self) -> bool:
        """Whether the path's x is what was spent, of which no two runs need have an evaluation at the same place."""
        return self.dial == self.budget or self.dial in UNITS

    def is_cost(self, name: str) -> bool:
        """Whether a name stands for a cost: one that any run may book, or this study's own, and no outcome."""
        return name in self._costs and name not in {outcome.name for outcome in self.outcomes}

    @property
    def _costs(self) -> set[str]:
        return {*UNITS, self.budget, *([self.dial] if self.dial_is_cost else [])}

    def _check_grids(self) -> None:
        counts = {arm.name: len(arm.points()) for arm in self.arms}
        most = max(counts.values())
        for arm in self.arms:
            if counts[arm.name] != most and not (counts[arm.name] == 1 and arm.fixed):
                raise BadInput(
                    f"Every arm must try the same number of settings: {arm.name!r} has {counts[arm.name]}, another has "
                    f"{most}. An arm with nothing to tune has one and says why: Arm({arm.name!r}, fixed='...')."
                )
        if most > 1 and self.select is None:
            raise BadInput(
                "The arms have grids, so the study must say how a point is chosen: select=Select('outcome')."
            )
        if self.select is not None:
            if not (self.select.matched and self.is_cost(self.select.outcome)):
                self.outcome(self.select.outcome)
            if self.select.matched:
                self.outcome(self.select.matched)

    def _check_claims(self) -> None:
        for claim in self.claims:
            names = claim.references()
            try:
                for arm in names.arms:
                    self.arm(arm)
                for outcome in names.outcomes:
                    if self.is_cost(outcome):
                        raise BadInput(
                            f"{outcome} is a cost: compare it by a factor, matched(..., by=1.25) or cheaper()."
                        )
                    self.outcome(outcome)
                for cost in set(names.costs) & {outcome.name for outcome in self.outcomes} - self._costs:
                    raise BadInput(f"{cost} is an outcome, and by= is for costs: compare it with margin=.")
            except BadInput as error:
                raise BadInput(f"Claim {claim.text!r}: {error}") from None
        judged = [claim for claim in self.claims if claim.judged]
        if len(judged) > PRIMARY_CLAIMS:
            raise BadInput(
                f"The study has {len(judged)} primary claims; at most {PRIMARY_CLAIMS} get a verdict, so mark "
                "the others primary=False."
            )


@dataclass(frozen=True)
class Declaration:
    """A study by name, not yet built: calling it with options gives the `Study`.

    system: the name of the system that it is of, which is that of the system's first study.
    """

    name: str
    paper: str
    trades: str
    system: str
    function: Callable[..., Study]

    @property
    def source(self) -> Path:
        """The file that declares it."""
        return Path(inspect.getfile(self.function))

    @property
    def summary(self) -> str:
        """The first line of its function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @cached_property
    def parameters(self) -> Options:
        """The options that the study takes, as its function declares them."""
        return Options(self.function, owner=f"Study {self.name!r}: ")

    def options(self, given: Mapping[str, Json] | None = None, *, text: bool = False) -> dict[str, Json]:
        """All options as JSON values, `given` over the defaults; `text`: strings as typed on a command line.

        Raises BadInput: an unknown option with the nearest names, a value outside its range with what was expected.
        """
        return self.parameters.to_json(self.parameters.read(given or {}, text=text))

    def build(self, **given: Json) -> Study:
        """The study for these options; raises BadInput as `options` does, and for an inconsistent declaration."""
        values = self.parameters.read(given)
        try:
            built = self.function(**values)
        except BadInput as error:
            raise BadInput(f"Study {self.name!r}: {error}") from error
        if not isinstance(built, Study):
            raise BadInput(f"Study {self.name!r}: {self.source.name} must return a Study, not {type(built).__name__}.")
        return replace(
            built,
            name=self.name,
            paper=self.paper,
            trades=self.trades,
            summary=self.summary,
            options=self.parameters.to_json(values),
            source=self.source,
        )

    __call__ = build


def study(
    name: str, *, paper: str, trades: str, system: str | None = None
) -> Callable[[Callable[..., Study]], Declaration]:
    """Declare a study; the decorated function's parameters are its options, each typed and with a default.

    `paper`: where the claims come from. `trades`: "this for that". `system`: of a further study of one system the name of
    the first, on whose page and in whose row of the tables it appears. Raises BadInput for a parameter without type or
    default.
    """
    for each in (name, system or name):
        _check_name("a study", each)

    def declare(function: Callable[..., Study]) -> Declaration:
        declared = Declaration(name, paper, trades, system or name, function)
        for option, parameter in declared.parameters.parameters.items():
            if parameter.default is parameter.empty:
                raise BadInput(f"Study {name!r}: option {option!r} needs a default.")
        return declared

    return declare


def _check_name(what: str, name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadInput(f"{name!r} is no name for {what}: use letters, digits and - _ . + (it names folders and flags).")


def _check_json(what: str, value: Json) -> None:
    if isinstance(value, (list, tuple)):
        for each in value:
            _check_json(what, each)
    elif isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                raise BadInput(f"{what} has the key {key!r}; keys must be strings.")
            _check_json(what, each)
    elif not (
        value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
    ):
        raise BadInput(
            f"{what} is {value!r}; settings are JSON values (text, finite numbers, true/false, lists, objects)."
        )


def _no_duplicates(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"Two {what}s are called {name!r}; names must differ.")
