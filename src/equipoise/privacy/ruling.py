"""The work of `rule fit`, `rule evaluate` and `rule plan`."""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from equipoise.core.errors import BadInput
from equipoise.core.files import read_regular, seal, sha256_file, unseal, write_atomic
from equipoise.core.folder import INPUTS
from equipoise.core.job import REPORT, RESULT, Request
from equipoise.core.serialize import deserialize
from equipoise.core.shares import Bounded
from equipoise.core.statistics import item_interval
from equipoise.data.records import read_rows
from equipoise.privacy.dp_2erm import Bounds, DPTreatmentRule, noise_plan
from equipoise.privacy.noise import opendp
from equipoise.privacy.result import ALL, LEARNT, NONE, RULE, NoisePlan, RuleEvaluation, RuleFit, RulePlan
from equipoise.privacy.weights import TOLERANCE, check_constants, effective_sample_size, logistic, minimize

RULE_FILE, PRIVATE_FILE = "rule.json", "private.json"
RECORDS = "records"  # the digest among a folder's inputs
SETTINGS = ("weights", "perturbation", "kappa", "weight_ridge", "radius", "largest_weight", "bandwidth", "ridge")
FORM = "equipoise treatment rule 1"
RIDGES = tuple(10.0**place for place in np.arange(-4, 0.51, 0.25))
SIZES = (0.5, 1.0, 2.0, 4.0, 8.0)  # times n
FEW_VALUES = 10  # of a feature: a scale with no more has ends that everybody knows
SOURCE = "source of the ranges"
DRAWN = ("theta", "coef", "intercept", "guarantee", "ledger")  # what a draw of noise decides or says
FEW_RECORDS = 10  # that carry a policy: no interval is told of fewer
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Table:
    """Records of a table as numbers: X [n, d], treatment [n] as the arms are written in the bounds, outcome [n].

    digest: of all that was given; records: of these numbers, in whatever file they are.
    """

    name: str
    digest: str
    records: str
    X: Array
    treatment: NDArray[Any]
    outcome: Array
    propensity: Array | None
    given: str

    def __len__(self) -> int:
        return len(self.outcome)


def read_table(
    source: Any, bounds: Bounds, *, treatment: str, outcome: str, propensity: str | None, person: str | None
) -> Table:
    """The columns that a rule needs. Raises BadInput for a missing one, a cell that is no number, a person with two rows."""
    if treatment in bounds.features or outcome in bounds.features or treatment == outcome:
        raise BadInput("treatment and outcome are no features, and not the same: name three kinds of columns.")
    own, column = _number_or_column(propensity)
    wanted = [*bounds.features, outcome, *([] if column is None else [column])]
    values: list[list[float]] = []
    arms: list[Any] = []
    people: set[str] = set()
    named = {str(arm): arm for arm in bounds.arms}
    for place, row in _rows(source):
        for name in (*wanted, treatment, *([] if person is None else [person])):
            if name not in row:
                raise BadInput(f"{place} has no column {name!r} (found: {', '.join(map(str, row))}).")
        values.append([_number(place, name, row[name]) for name in wanted])
        arms.append(_arm(row[treatment], named))
        if person is not None:
            who = _same(row[person])
            if who in people:
                raise BadInput(
                    f"{place}: a person has a second row. The guarantee is of a row: keep one row a person, or join a "
                    "person's rows into one."
                )
            people.add(who)
    if not values:
        raise BadInput(f"{_name(source)} has no rows.")
    numbers = np.array(values, float)
    width = len(bounds.features)
    given = np.full(len(numbers), own) if own is not None else numbers[:, -1] if column is not None else None
    if given is not None and not ((given > 0) & (given < 1)).all():
        raise BadInput(
            f"a propensity of {_name(source)} lies outside (0, 1): there every record could have had either arm."
        )
    told = "estimated" if propensity is None else f"{own:g}" if own is not None else f"column {column}"
    # Of rows, too: a rule that was drawn from others must not be taken for theirs.
    whole = sha256_file(Path(source)) if isinstance(source, str | Path) else _digest(numbers, arms)
    records = _digest(numbers[:, : width + 1], arms)
    return Table(
        _name(source), whole, records, numbers[:, :width], np.array(arms, object), numbers[:, width], given, told
    )


def _digest(numbers: Array, arms: Sequence[Any]) -> str:
    return hashlib.sha256(numbers.tobytes() + json.dumps(list(map(str, arms))).encode()).hexdigest()


def _rows(source: Any) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if isinstance(source, str | Path):
        return ((place, row) for place, _, row in read_rows(Path(source)))
    return ((f"row {place}", row) for place, row in enumerate(source, 1))


def _name(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else "the rows"


def _number(place: str, name: str, cell: Any) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise BadInput(
            f"{place}: {name!r} is {cell!r:.40}, which is no number: fill it in, code it, or leave the row out."
        )
    return value


def _arm(cell: Any, named: Mapping[str, Any]) -> Any:
    """The bounds' own spelling of an arm: 1, 1.0, "1" and true are one."""
    text = str(cell)
    if text in named:
        return named[text]
    try:
        number = float(cell)
    except (TypeError, ValueError):
        return text
    return next((arm for arm in named.values() if isinstance(arm, int | float) and arm == number), text)


def _same(cell: Any) -> str:
    """What names a person: 7, 7.0, "7", "7.0" and " 7" are one, and a letter with its accent in one sign or in two."""
    return re.sub(r"(?<=\d)\.0*$", "", unicodedata.normalize("NFC", str(cell)).strip())


def _number_or_column(propensity: str | None) -> tuple[float | None, str | None]:
    if propensity is None:
        return None, None
    try:
        return float(propensity), None
    except ValueError:
        return None, propensity


def read_bounds(given: Any) -> tuple[Bounds, str, str]:
    """Public ranges, where they are from, and a digest of both. Raises BadInput where they say that they are the data's."""
    if isinstance(given, str | Path):
        path = Path(given)
        if not path.is_file():
            raise BadInput(f"{path}: no such file of public ranges.")
        try:
            given = json.loads(read_regular(path), object_pairs_hook=partial(_once, path))
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path} is no JSON: {error}") from None
    if not isinstance(given, Mapping):
        raise BadInput("bounds are an object with source, features, outcome and arms.")
    source = given.get("source")
    if not isinstance(source, str) or not source.strip():
        raise BadInput(
            "the bounds do not say where they are from: add a source, such as 'the protocol' or 'range of the scale'."
        )
    if source.strip().lower() in ("data", "the data", "table", "the table", "records", "the records", "computed"):
        raise BadInput(
            f"the bounds' source is {source!r}: ranges taken from the records tell the largest and the smallest. "
            "Take them from a protocol or an instrument."
        )
    bounds = Bounds.read(given)
    said = [list(bounds.features.items()), bounds.outcome, bounds.arms, source.strip()]
    return bounds, source.strip(), hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"{path} has {twice[0]!r} twice: which range holds?")
    return dict(pairs)


def refuse_taken_bounds(bounds: Bounds, table: Table) -> None:
    """Raises BadInput where ranges end exactly where the records do: all of measured quantities, or one in odd numbers."""
    ranges = {**bounds.features, "the outcome": bounds.outcome}
    columns = [*table.X.T, table.outcome]
    measured = {
        name: pair == (x.min(), x.max())
        for (name, pair), x in zip(ranges.items(), columns, strict=True)
        if len(np.unique(x)) > FEW_VALUES
    }
    taken = [name for name, ends in measured.items() if ends]
    odd = [name for name in taken if not all(end.is_integer() for end in ranges[name])]
    if odd or (taken and len(taken) == len(measured)):
        which = f"the range of {odd[0]}" if odd else "every range of the bounds"
        raise BadInput(
            f"{which} ends exactly where the records do: such bounds were taken from the records, and tell the largest and "
            "the smallest. Take them from a protocol or an instrument, in round numbers."
        )


# --- fit ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RuleFitting(Request):
    """A request to fit a rule, read and found right."""

    table: Table
    bounds: Bounds
    source: str
    rule: DPTreatmentRule
    names: Mapping[str, str]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        table: Any,
        *,
        treatment: str,
        outcome: str,
        bounds: Any,
        propensity: str | None,
        person: str | None,
        settings: dict[str, Any],
    ) -> RuleFitting:
        """Raises BadInput for a wrong request; draws no noise."""
        ranges, source, digest = read_bounds(bounds)
        known = settings["weights"] == "known"
        if known is (propensity is None):
            raise BadInput(
                "known weights need --propensity, a number or a column."
                if known
                else f"weights {settings['weights']} take no propensity: use --weights known with the one you have."
            )
        found = read_table(table, ranges, treatment=treatment, outcome=outcome, propensity=propensity, person=person)
        rule = DPTreatmentRule(bounds=ranges, **settings)
        rule.check(found.X, found.treatment, found.outcome, propensity=found.propensity)
        refuse_taken_bounds(ranges, found)
        if settings["random_state"] is None and (settings["perturbation"] != "gamma" or settings["tightening"]):
            opendp()
        inputs = {"table": found.digest, RECORDS: found.records, "bounds": digest}
        return cls(
            found,
            ranges,
            source,
            rule,
            {"table": found.name, "treatment": treatment, "outcome": outcome, "bounds": source},
            inputs,
            {},
        )

    def plan(self) -> NoisePlan:
        """Before anything is released: with `tightening`, without what it will gain."""
        return self._planned(0.0)

    def _planned(self, curvature: float) -> NoisePlan:
        rule = self.rule
        constants = {name: getattr(rule, name) for name in ("kappa", "weight_ridge", "radius", "largest_weight")}
        return noise_plan(
            len(self.table), rule.epsilon * (1 - rule.tightening), len(self.bounds.features), weights=rule.weights,
            perturbation=rule.perturbation, ridge=rule.ridge, delta=rule.output_delta, curvature=curvature,
            **constants,
        )  # fmt: skip

    def work(self, folder: Path | None) -> RuleFit:
        done = None if folder is None else self._drawn(folder)
        if done is None:
            rule = self._fitted()
            ledger = {**rule.ledger_, "public": {**rule.ledger_["public"], SOURCE: self.source}}
            done = self._result(rule.theta_.tolist(), rule.coef_.tolist(), rule.intercept_, rule.guarantee_, ledger)
            private = rule.private_
        else:
            private = self.rule.diagnose(*self._records, propensity=self.table.propensity, ledger=done.ledger)
        if folder is not None:
            save(done, self.bounds, folder / RULE_FILE)
            write_atomic(folder / PRIVATE_FILE, json.dumps({"not to be released": private}, indent=2) + "\n")
        return done

    def _result(
        self,
        theta: Sequence[float],
        coef: Sequence[float],
        intercept: float,
        guarantee: Mapping[str, Any],
        ledger: Mapping[str, Any],
    ) -> RuleFit:
        return RuleFit(
            names=self.names,
            features=tuple(self.bounds.features),
            theta=tuple(theta),
            coef=tuple(coef),
            intercept=intercept,
            guarantee=guarantee,
            ledger=ledger,
            plan=self._planned(ledger["released"]["curvature"] or 0.0),
            notes=(
                "rule.json is made to be released. private.json, inputs.json and manifest.json (digests of what was not "
                "made private) are not."
                if self.rule.random_state is None
                else "rule.json is made to be released. This report and run.json show the seed, and private.json, "
                "inputs.json and manifest.json what was not made private: they are not.",
                "Each further fit on these records spends its epsilon again: epsilons add up.",
                "The guarantee is of a row, and assumes that a person has one.",
            ),
        )

    def _drawn(self, folder: Path) -> RuleFit | None:
        """The rule that was drawn in this folder; None where none was, or where a seed draws the same again.

        Another draw would tell as much again of the records as the first. Raises BadInput where one was drawn and cannot be
        read.
        """
        if self.rule.random_state is not None:
            return None
        found = _stored_rule(folder / RULE_FILE) or _stored_result(folder / RESULT)
        if found is None:
            traces = (RULE_FILE, RESULT, REPORT, PRIVATE_FILE, "damaged")
            if any((folder / name).exists() for name in traces):
                raise BadInput(
                    f"{folder}: the rule that was drawn here is missing or altered, and another draw spends epsilon once "
                    f"more. Put a copy of its {RULE_FILE} there, or give --fresh to spend it."
                )
            return None
        known = {**self.rule.public(self.bounds, len(self.table)), SOURCE: self.source}
        promised = {name: found["guarantee"][name] for name in ("epsilon", "delta", "seeded")}
        spent = self.rule.epsilon * self.rule.tightening
        wanted = {"epsilon": self.rule.epsilon, "delta": self.rule.whole_delta, "seeded": False}
        if promised != wanted or found["ledger"]["public"] != known or found["ledger"]["spent"]["curvature"] != spent:
            raise BadInput(f"{folder} holds a rule of other settings or of another table: give another --out.")
        return self._result(**found)

    def _fitted(self) -> DPTreatmentRule:
        return self.rule.fit(*self._records, propensity=self.table.propensity)

    @property
    def _records(self) -> tuple[Array, NDArray[Any], Array]:
        return self.table.X, self.table.treatment, self.table.outcome


def save(rule: RuleFit, bounds: Bounds, path: Path) -> None:
    """A rule with its guarantee and ledger, as JSON with a digest of itself."""
    about = {
        "form": FORM,
        "treat_if": "intercept + sum(coef * clip(x, low, high)) > 0",
        "features": {name: list(pair) for name, pair in bounds.features.items()},
        "coef": list(rule.coef),
        "intercept": rule.intercept,
        "theta": list(rule.theta),
        "outcome": list(bounds.outcome),
        "arms": list(bounds.arms),
        "guarantee": dict(rule.guarantee),
        "ledger": dict(rule.ledger),
    }
    write_atomic(path, seal(about, indent=2))


def _stored_rule(path: Path) -> dict[str, Any] | None:
    """What a rule's file says of it; None where there is no whole one."""
    try:
        about, whole = unseal(read_regular(path))
    except (OSError, ValueError):
        return None
    return {name: about[name] for name in DRAWN} if whole and about.get("form") == FORM else None


def _fitted_records(folder: Path) -> str:
    """The digest of the records that a folder's rule was fitted on; empty where the folder does not say."""
    try:
        told = json.loads(read_regular(folder / INPUTS))
    except (OSError, ValueError, RecursionError):
        return ""
    return str(told.get(RECORDS, "")) if isinstance(told, dict) else ""


def _stored_result(path: Path) -> dict[str, Any] | None:
    """The same of a result's file, which the folder's manifest has found whole."""
    try:
        told = deserialize(RuleFit, json.loads(read_regular(path)))
    except (OSError, ValueError, RecursionError):
        return None
    return {name: getattr(told, name) for name in DRAWN}


def load(path: str | Path) -> DPTreatmentRule:
    """A rule that `rule fit` wrote, to predict with. Raises BadInput for a file that is none, or was changed."""
    path = Path(path)
    path = path / RULE_FILE if path.is_dir() else path
    if not path.is_file():
        raise BadInput(f"{path}: no such rule. `equipoise rule fit` writes one.")
    try:
        about, whole = unseal(read_regular(path))
    except ValueError as error:
        raise BadInput(f"{path} is no rule: {error}") from None
    if not whole or about.get("form") != FORM:
        raise BadInput(f"{path} was changed since it was written, or is no rule: fit it again.")
    bounds = Bounds.read({name: about[name] for name in ("features", "outcome", "arms")})
    promised, public = about["guarantee"], about["ledger"]["public"]
    settings = {name: public[name] for name in SETTINGS}
    rule = DPTreatmentRule(
        epsilon=float(promised["epsilon"]), bounds=bounds, delta=promised["delta"],
        tightening=about["ledger"]["spent"]["curvature"] / promised["epsilon"], **settings,
    )  # fmt: skip
    rule.theta_ = np.array(about["theta"], float)
    rule.coef_, rule.intercept_ = np.array(about["coef"], float), about["intercept"]
    rule.guarantee_, rule.ledger_ = promised, about["ledger"]
    return rule


# --- evaluate -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EvaluationPlan:
    """What measuring would read."""

    rule: str
    records: int
    propensity: str
    learnt: bool

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        return (
            *([LEARNT] if self.learnt else []),
            f"The rule of {self.rule} on {self.records:,} records; propensity: {self.propensity}.",
        )


@dataclass(frozen=True, eq=False)
class RuleEvaluating(Request):
    """A request to measure a rule, read and found right."""

    rule: DPTreatmentRule
    table: Table
    signs: Array
    kappa: float
    learnt: bool
    names: Mapping[str, str]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        rule: Path,
        table: Any,
        *,
        treatment: str,
        outcome: str,
        propensity: str | None,
        kappa: float,
        person: str | None,
    ) -> RuleEvaluating:
        """Raises BadInput for a wrong request."""
        loaded = load(rule)
        found = read_table(
            table, loaded.bounds, treatment=treatment, outcome=outcome, propensity=propensity, person=person
        )
        signs = loaded.bounds.signs(found.treatment, len(found))
        path = Path(rule) / RULE_FILE if Path(rule).is_dir() else Path(rule)
        learnt = _fitted_records(path.parent) == found.records
        inputs = {"rule": sha256_file(path), "table": found.digest}
        names = {"rule": str(rule), "table": found.name, "treatment": treatment, "outcome": outcome}
        return cls(loaded, found, signs, kappa, learnt, names, inputs, {})

    def plan(self) -> EvaluationPlan:
        return EvaluationPlan(self.names["rule"], len(self.table), self.table.given, self.learnt)

    def work(self, folder: Path | None) -> RuleEvaluation:
        own, raised = self._propensities()
        advised = np.where(self.rule.decision_function(self.table.X) > 0, 1.0, -1.0)
        y, weight = self.table.outcome, 1 / own
        everybody = np.ones(len(y))
        carried = {
            name: weight * (self.signs == policy)
            for name, policy in {RULE: advised, ALL: everybody, NONE: -everybody}.items()
        }
        parts = {name: influence(y, each) for name, each in carried.items()}
        few = {name: effective_sample_size(each) < FEW_RECORDS for name, each in carried.items()}
        return RuleEvaluation(
            names=self.names,
            n=len(y),
            propensity=self.table.given,
            values={name: _bounded(each, few[name]) for name, each in parts.items()},
            gains={name: _bounded(parts[RULE] - parts[name], few[RULE] or few[name]) for name in (ALL, NONE)},
            treated=float((advised > 0).mean()),
            agreed=float((advised == self.signs).mean()),
            learnt=self.learnt,
            guarantee=self.rule.guarantee_,
            notes=(
                "These numbers are of the records of this table and not private.",
                "Values are weighted means of the outcome of those whose own arm is the one that the policy gives (Hajek).",
                *(
                    (
                        "Propensities were estimated from the rule's features: what else decided who was treated biases the "
                        "values, and the intervals do not know of it.",
                        f"Of {raised:,} records that of their own arm was below kappa, {self.kappa:g}, and counts as that.",
                    )
                    if self.table.propensity is None
                    else ()
                ),
            ),
        )

    def _propensities(self) -> tuple[Array, int]:
        """Of each record's own arm, and how many were raised to kappa."""
        if self.table.propensity is not None:
            return np.where(self.signs > 0, self.table.propensity, 1 - self.table.propensity), 0
        treated = estimated_propensity(self.rule.bounds.scaled(self.table.X)[0][:, 1:], self.signs)
        own = np.where(self.signs > 0, treated, 1 - treated)
        return np.maximum(own, self.kappa), int((own < self.kappa).sum())


def estimated_propensity(x: Array, a: Array) -> Array:
    """Chance of treatment by a logistic model. x: [n, d], a: [n] in {-1, 1} -> [n]

    Of features in units of the records, which are not hidden here, with a ridge of one record in all and a free constant:
    wide public ranges would let the ridge decide.
    """
    x = np.column_stack([np.ones(len(x)), (x - x.mean(0)) / np.maximum(x.std(0), 1e-12)])
    ridge = np.diag([0.0] + [1.0] * (x.shape[1] - 1))
    return expit(x @ minimize(logistic(x, a, ridge), x.shape[1], TOLERANCE))


def influence(y: Array, weight: Array) -> Array:
    """Numbers whose mean is the weighted mean of y and whose variance is that of its linear part; nan without any weight."""
    total = weight.sum()
    if not total > 0:
        return np.full(len(y), math.nan)
    value = (weight @ y) / total
    return value + weight / (total / len(y)) * (y - value)


def _bounded(values: Array, few: bool) -> Bounded:
    """few: so few records carry it that their spread says little."""
    if few:
        return Bounded(float(values.mean()), math.nan, math.nan)
    return Bounded.of(item_interval(values))


# --- plan -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RulePlanning(Request):
    """A request to plan, read and found right."""

    make: partial[NoisePlan]
    n: int
    asked: Mapping[str, Any]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        n: int,
        epsilon: float,
        features: int,
        *,
        weights: str,
        perturbation: str,
        delta: float,
        ridge: float,
        constants: Mapping[str, float],
    ) -> RulePlanning:
        """Raises BadInput for settings that give no guarantee."""
        check_constants(n, **constants)
        make: Any = partial(noise_plan, epsilon=epsilon, d=features, delta=delta, **constants)
        asked = {"weights": weights, "perturbation": perturbation, "ridge": ridge}
        make(n, **asked)
        return cls(make, n, asked, {}, {})

    def plan(self) -> NoisePlan:
        return self.make(self.n, **self.asked)

    def work(self, folder: Path | None) -> RulePlan:
        asked = self.plan()
        ridges = self._ridges()
        others = []
        for name, words in {"weights": ("known", "ipw", "entropy", "mmd", "uniform"), "perturbation": KINDS}.items():
            for word in words:
                if word != self.asked[name]:
                    try:
                        others.append(self.make(self.n, **{**self.asked, name: word}))
                    except BadInput:  # mmd above its size, Gaussian noise without a delta
                        continue
        sizes = []
        for times in SIZES:
            try:
                sizes.append(self.make(max(round(self.n * times), 2), **self.asked))
            except BadInput:
                break
        best = min(ridges, key=lambda each: each.loss)
        return RulePlan(
            asked,
            ridges,
            tuple(others),
            tuple(sizes),
            best.ridge,
            notes=(
                "No record was read: settings chosen by these numbers cost no privacy.",
                "The loss is a bound: of the weighted logistic loss, above that of the best rule of norm 1.",
                "known and uniform weights cost less noise and do not balance what the table has not balanced.",
            ),
        )

    def _ridges(self) -> tuple[NoisePlan, ...]:
        return tuple(self.make(self.n, **{**self.asked, "ridge": ridge}) for ridge in RIDGES)


KINDS = ("objective", "laplace", "gamma", "gaussian")
