"""Three jobs: fit a private treatment rule, measure one on held-out records, plan a guarantee before a record is read."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from equipoise.core.job import Request, job
from equipoise.core.options import Setting
from equipoise.privacy.result import RuleEvaluation, RuleFit, RulePlan

if TYPE_CHECKING:
    TableRows = str | Path | Iterable[Mapping[str, Any]]
    PublicBounds = str | Path | Mapping[str, Any]
else:  # what a command line can give
    TableRows = PublicBounds = Path

Positive = Annotated[float, Field(ge=1e-12, le=1e9)]
Epsilon = Annotated[float, Field(ge=1e-6, le=1e6)]
Share = Annotated[float, Field(ge=0, lt=1)]
Propensity = Annotated[float, Field(ge=1e-9, le=1)]
WeightRidge = Annotated[float, Field(ge=1e-9, le=1e9)]
Weights = Literal["ipw", "entropy", "mmd", "known", "uniform"]
Noise = Literal["objective", "laplace", "gamma", "gaussian"]
Seed = Annotated[int, Field(ge=0)]


@job("rule fit", RuleFit)
def fit(
    table: Annotated[TableRows, Setting(alias=("--dataset",), objects=True)],
    *,
    treatment: str,
    outcome: str,
    bounds: Annotated[PublicBounds, Setting(objects=True)],
    epsilon: Epsilon,
    weights: Weights = "ipw",
    perturbation: Noise = "objective",
    delta: Share = 0.0,
    ridge: Positive = 0.01,
    kappa: Propensity = 0.2,
    weight_ridge: WeightRidge = 1.0,
    radius: Annotated[float, Field(gt=0, le=20)] = 1.0,
    largest_weight: Annotated[float, Field(ge=1, le=1e9)] = 5.0,
    bandwidth: Annotated[float, Field(ge=0.01, le=1e9)] = 0.4,
    tightening: Share = 0.0,
    propensity: str | None = None,
    person: str | None = None,
    seed: Seed | None = None,
) -> Request:
    """Fit a rule for whom to treat that says no more about any one record than epsilon allows, from weights to rule.

    Example that runs: `equipoise rule fit --table examples/rule.csv --treatment treated --outcome score --epsilon 1 --bounds
    examples/rule-bounds.json`

    The folder gets rule.json (rule, guarantee and ledger: made to be released), private.json (balance of the weights, counts
    of clipped values: not to be released) and a report that shows nothing of the latter, but a seed if there is one. The
    other files have digests of the records: they stay, too. A damaged folder is mended from the rule that was drawn.

    Parameters
    ----------
    table
        CSV, JSONL or Parquet, one row a person; in Python also rows.
    treatment
        The column of the arm.
    outcome
        The column of the outcome; high is good.
    bounds
        JSON with public ranges: {"source": "the protocol", "features": {"age": [18, 90]}, "outcome": [0, 100], "arms": [0,
        1]}. Its features are the rule's. In Python also a mapping.
    epsilon
        The loss of privacy, of everything together.
    weights
        ipw, entropy or mmd balance the arms by what the table holds; known takes a trial's propensities; uniform does not
        weigh.
    perturbation
        objective: noise in what is minimized; laplace, gamma, gaussian: on the minimum. Laplace and gaussian are
        floating-point safe.
    delta
        Of gaussian noise and of tightening: far below one over the number of records.
    ridge
        Of the rule, a record; fixed before the records are seen (rule plan helps).
    kappa
        The least propensity, known in advance: ipw clips there, known weights must be above it.
    weight_ridge
        Of the weights: a larger one lessens the noise and balances less.
    radius
        Entropy weights lie between exp(-radius) and exp(radius); of the propensity model where tightening is used.
    largest_weight
        Of mmd weights.
    bandwidth
        Of mmd's Gaussian kernel, of scaled features.
    tightening
        The share of epsilon that buys a private bound of how far ipw weights really can move.
    propensity
        Of known weights: a number, or the column with each record's propensity of treatment.
    person
        The column that names people, to check that each has one row.
    seed
        For tests: noise that can be repeated. Who learns the seed learns the records. Without one nobody can repeat it.
    """
    from equipoise.privacy.ruling import RuleFitting

    return RuleFitting.read(
        table,
        treatment=treatment,
        outcome=outcome,
        bounds=bounds,
        propensity=propensity,
        person=person,
        settings={
            "epsilon": epsilon, "weights": weights, "perturbation": perturbation, "delta": delta, "ridge": ridge,
            "kappa": kappa, "weight_ridge": weight_ridge, "radius": radius, "largest_weight": largest_weight,
            "bandwidth": bandwidth, "tightening": tightening, "random_state": seed,
        },
    )  # fmt: skip


@job("rule evaluate", RuleEvaluation)
def evaluate(
    rule: Path,
    *,
    table: Annotated[TableRows, Setting(alias=("--dataset",), objects=True)],
    treatment: str,
    outcome: str,
    propensity: str | None = None,
    kappa: Propensity = 0.05,
    person: str | None = None,
) -> Request:
    """Measure a rule on records that it was not fitted on: its value with an interval, beside treating all alike.

    Example that runs: `equipoise rule evaluate equipoise-out/rule-fit --table examples/rule-held-out.csv --treatment
    treated --outcome score`

    The numbers are of these records and not private: hold out records that may be shown, or keep the report.

    Parameters
    ----------
    rule
        A folder that rule fit wrote, or its rule.json.
    table
        CSV, JSONL or Parquet, one row a person; in Python also rows.
    treatment
        The column of the arm.
    outcome
        The column of the outcome; high is good.
    propensity
        A number, or the column with each record's propensity of treatment; estimated when not given.
    kappa
        The least propensity that an estimate may have.
    person
        The column that names people, to check that each has one row.
    """
    from equipoise.privacy.ruling import RuleEvaluating

    return RuleEvaluating.read(
        rule, table, treatment=treatment, outcome=outcome, propensity=propensity, kappa=kappa, person=person
    )


@job("rule plan", RulePlan)
def plan(
    *,
    n: Annotated[int, Field(ge=2, le=10**9)],
    epsilon: Epsilon,
    features: Annotated[int, Field(ge=1, le=10**5)],
    weights: Weights = "ipw",
    perturbation: Noise = "objective",
    delta: Share = 0.0,
    ridge: Positive = 0.01,
    kappa: Propensity = 0.2,
    weight_ridge: WeightRidge = 1.0,
    radius: Annotated[float, Field(gt=0, le=20)] = 1.0,
    largest_weight: Annotated[float, Field(ge=1, le=1e9)] = 5.0,
) -> Request:
    """Say what a guarantee will cost, by numbers that are public: noise, ridge and expected loss; reads no record.

    Example that runs: `equipoise rule plan --n 2000 --epsilon 1 --features 8`

    Settings that this compares may be chosen by it, since no record has a say.

    Parameters
    ----------
    n
        Records.
    epsilon
        The loss of privacy, of everything together.
    features
        Features of the rule.
    weights
        As in rule fit.
    perturbation
        As in rule fit.
    delta
        As in rule fit.
    ridge
        Of the rule, a record.
    kappa
        The least propensity.
    weight_ridge
        Of the weights.
    radius
        Of entropy weights.
    largest_weight
        Of mmd weights.
    """
    from equipoise.privacy.ruling import RulePlanning

    constants = {"kappa": kappa, "weight_ridge": weight_ridge, "radius": radius, "largest_weight": largest_weight}
    return RulePlanning.read(
        n, epsilon, features, weights=weights, perturbation=perturbation, delta=delta, ridge=ridge, constants=constants
    )
