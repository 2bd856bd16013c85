"""What the rule jobs read, refuse and compute, each at its limits; numbers by hand."""

import json
import math

import numpy as np
import pytest
from scipy.optimize import minimize as scipy_minimize

from equipoise.core.errors import BadInput
from equipoise.core.files import seal, unseal
from equipoise.core.shares import Bounded
from equipoise.core.statistics import item_interval
from equipoise.privacy import evaluate, fit, noise_plan, plan, ruling
from equipoise.privacy.dp_2erm import Bounds
from equipoise.privacy.result import ALL, NONE, RULE, RuleFit, plan_warnings, promised
from small_jobs import RULE_BOUNDS, rule_rows

NAMES = {"treatment": "treated", "outcome": "score"}
BOUNDS = Bounds.read(RULE_BOUNDS)


def rows_of(*cells):
    return [dict(zip(("age", "sex", "treated", "score", "share"), each, strict=True)) for each in cells]


def read(rows, bounds=BOUNDS, *, treatment="treated", outcome="score", propensity=None, person=None):
    return ruling.read_table(rows, bounds, treatment=treatment, outcome=outcome, propensity=propensity, person=person)


def test_a_table_is_read_into_its_numbers():
    rows = rows_of(
        (30, 1, 1.0, 7.5, 0.25), ("41", 0, "0", "8", 0.75), (52, 1, True, -3, 0.5), (60.5, 0, " 0.0", 4, 0.1)
    )
    table = read(rows, propensity="share")
    assert table.X.tolist() == [[30, 1], [41, 0], [52, 1], [60.5, 0]] and table.outcome.tolist() == [7.5, 8, -3, 4]
    assert table.treatment.tolist() == [1, 0, 1, 0] and all(type(arm) is int for arm in table.treatment)
    assert table.propensity.tolist() == [0.25, 0.75, 0.5, 0.1] and table.given == "column share" and len(table) == 4
    fixed, free = read(rows, propensity="0.25"), read(rows)
    assert fixed.propensity.tolist() == [0.25] * 4 and fixed.given == "0.25"
    assert free.propensity is None and free.given == "estimated" and free.name == "the rows"
    assert fixed.records == free.records == table.records and table.digest != free.digest == fixed.digest
    for place, name in ((1, "age"), (2, "sex"), (0, "score")):
        other = [
            {**row, name: row[name] if number != place else 1 - float(row[name])} for number, row in enumerate(rows)
        ]
        assert read(other).records != free.records
    assert read([{**row, "treated": 1 - int(float(row["treated"]))} for row in rows]).records != free.records


def test_arms_are_spelt_as_the_bounds_spell_them():
    named = {"1": 1, "2.5": 2.5}
    assert [ruling._arm(cell, named) for cell in (1, "1.0", True, "2.50", 2.5, "x", None, 3)] == [
        1, 1, 1, 2.5, 2.5, "x", "None", "3",
    ]  # fmt: skip
    assert ruling._arm("1.0", {"1": "1", "0": "0"}) == "1.0"  # words are no numbers


def test_what_a_table_lacks_is_named_by_row():
    rows = rows_of((30, 1, 1, 7.5, 0.25), (41, 0, 0, 8, 0.75))
    for changed, said in (
        ({"age": "old"}, r"row 2: 'age' is 'old', which is no number"),
        ({"sex": None}, r"row 2: 'sex' is None"),
        ({"score": "inf"}, r"row 2: 'score' is 'inf'"),
        ({"share": math.nan}, r"row 2: 'share' is nan"),
    ):
        with pytest.raises(BadInput, match=said):
            read([rows[0], rows[1] | changed], propensity="share")
    for name in ("age", "treated", "score", "share", "who"):
        lacking = [{**row, "who": place} for place, row in enumerate(rows)]
        del lacking[1][name]
        with pytest.raises(BadInput, match=f"row 2 has no column '{name}'"):
            read(lacking, propensity="share", person="who")
    with pytest.raises(BadInput, match="the rows has no rows"):
        read([])
    for names in ({"treatment": "sex"}, {"outcome": "age"}, {"outcome": "treated"}):
        with pytest.raises(BadInput, match="three kinds of columns"):
            read(rows, **names)
    for share in ("0", "1", "-0.5", "1.5"):
        with pytest.raises(BadInput, match=r"lies outside \(0, 1\)"):
            read(rows, propensity=share)
    for share in (0, 1):
        with pytest.raises(BadInput, match=r"lies outside \(0, 1\)"):
            read([rows[0], rows[1] | {"share": share}], propensity="share")


@pytest.mark.parametrize("source", ["The Data", " records ", "computed", "table"])
def test_ranges_that_say_they_are_the_datas_are_refused(source):
    with pytest.raises(BadInput, match="the bounds' source is"):
        ruling.read_bounds({**RULE_BOUNDS, "source": source})


def test_bounds_have_a_source_and_a_digest_of_all_that_they_say(tmp_path):
    whole = ruling.read_bounds({**RULE_BOUNDS, "source": " the protocol "})
    assert whole[0] == BOUNDS and whole[1] == "the protocol"
    path = tmp_path / "b.json"
    path.write_text(json.dumps({**RULE_BOUNDS, "source": "the protocol"}))
    assert ruling.read_bounds(path) == ruling.read_bounds(str(path)) == whole
    others = [
        {"source": "another"}, {"outcome": [0, 101]}, {"arms": [1, 0]}, {"features": {"sex": [0, 1], "age": [18, 90]}},
    ]  # fmt: skip
    digests = [ruling.read_bounds({**RULE_BOUNDS, "source": "the protocol", **other})[2] for other in others]
    assert len({whole[2], *digests}) == 5
    for given in ("", 7, None):
        with pytest.raises(BadInput, match="do not say where they are from"):
            ruling.read_bounds({**RULE_BOUNDS, "source": given})
    with pytest.raises(BadInput, match="no such file"):
        ruling.read_bounds(tmp_path / "c.json")
    for text, said in (("[1]", "are an object"), ("{", "is no JSON"), ("[" * 100_000, "is no JSON")):
        path.write_text(text)
        with pytest.raises(BadInput, match=said):
            ruling.read_bounds(path)


def bounded_as_the_records(ages, scores, age, score):
    """Whether ranges are refused as taken from records with these ages and scores."""
    bounds = Bounds.read({"features": {"age": age, "sex": [0, 1]}, "outcome": score})
    rows = [(a, place % 2, place % 2, s, 0) for place, (a, s) in enumerate(zip(ages, scores, strict=True))]
    try:
        ruling.refuse_taken_bounds(bounds, read(rows_of(*rows), bounds))
    except BadInput as error:
        return str(error).partition(" ends exactly")[0]
    return None


def test_ranges_that_end_where_the_records_do_are_refused_of_measured_quantities():
    ages, scores = range(20, 31), [place + 0.25 for place in range(11)]  # eleven values each
    apart, odd = [0.0, 20.0], [0.25, 10.25]
    assert bounded_as_the_records(ages, scores, [20, 30], odd) == "the range of the outcome"
    assert bounded_as_the_records(ages, scores, [18, 90], odd) == "the range of the outcome"
    halves = [age + 0.5 for age in ages]
    assert bounded_as_the_records(halves, scores, [20.5, 30.5], odd) == "the range of age"  # the first of two
    assert bounded_as_the_records(ages, scores, [20, 30], apart) is None  # whole numbers, and not of all
    assert bounded_as_the_records(ages, range(11), [20, 30], [0, 10]) == "every range of the bounds"
    assert bounded_as_the_records(ages, range(11), [20, 30], [0, 11]) is None
    few = [place % 10 + 0.25 for place in range(11)]  # ten values: a scale
    assert bounded_as_the_records(ages, few, [18, 90], [0.25, 9.25]) is None
    assert bounded_as_the_records(ages, few, [20, 30], [0.25, 9.25]) == "every range of the bounds"
    assert bounded_as_the_records([20 + place % 2 for place in range(11)], few, [20, 21], [0.25, 9.25]) is None


def test_what_a_fit_plans_is_the_noise_plan_of_its_settings():
    rows = rule_rows(60)
    how = {"delta": 1e-3, "ridge": 0.02, "kappa": 0.3, "weight_ridge": 0.5, "radius": 0.7, "largest_weight": 3.0}
    for weights, perturbation, tightening in (
        ("ipw", "gaussian", 0.0), ("ipw", "gaussian", 0.25), ("mmd", "gamma", 0.0), ("entropy", "laplace", 0.0),
    ):  # fmt: skip
        made = fit.plan(
            rows, **NAMES, bounds=RULE_BOUNDS, epsilon=2.0, weights=weights, perturbation=perturbation, **how,
            tightening=tightening, seed=0,
        )  # fmt: skip
        delta = (5e-4 if tightening else 1e-3) if perturbation == "gaussian" else 0.0
        kept = {name: how[name] for name in how if name != "delta"}
        assert made == noise_plan(
            60, 2.0 * (1 - tightening), 2, weights=weights, perturbation=perturbation, delta=delta, **kept
        )
    with pytest.raises(BadInput, match="need --propensity"):
        fit.plan(rows, **NAMES, bounds=RULE_BOUNDS, epsilon=2.0, weights="known", seed=0)
    with pytest.raises(BadInput, match="weights uniform take no propensity"):
        fit.plan(rows, **NAMES, bounds=RULE_BOUNDS, epsilon=2.0, weights="uniform", propensity="0.5", seed=0)


@pytest.mark.parametrize(("perturbation", "tightening", "asked"), [
    ("gamma", 0.0, False), ("gamma", 0.25, True), ("objective", 0.0, True), ("laplace", 0.0, True),
])  # fmt: skip
def test_safe_noise_is_asked_for_where_it_will_be_drawn(perturbation, tightening, asked, monkeypatch):
    calls = []
    monkeypatch.setattr(ruling, "opendp", lambda: calls.append(1))
    how = {**NAMES, "bounds": RULE_BOUNDS, "epsilon": 2.0, "perturbation": perturbation, "delta": 1e-3}
    fit.plan(rule_rows(20), **how, tightening=tightening)
    assert bool(calls) is asked
    fit.plan(rule_rows(20), **how, tightening=tightening, seed=0)
    assert len(calls) == asked  # a seed draws its own


def test_a_propensity_is_that_of_a_penalized_logistic_model():
    """Standardized features, a ridge of one on each but the constant; a feature without spread has no say."""
    draw = np.random.default_rng(1)
    x = np.column_stack([draw.normal(5, 30, 50), np.full(50, 3.0), draw.uniform(0, 0.01, 50)])
    a = np.where(draw.random(50) < 0.7, 1.0, -1.0)
    z = np.column_stack(
        [np.ones(50), (x[:, 0] - x[:, 0].mean()) / x[:, 0].std(), (x[:, 2] - x[:, 2].mean()) / x[:, 2].std()]
    )

    def loss(t):
        return np.logaddexp(0, -a * (z @ t)).sum() + (t[1:] @ t[1:]) / 2

    best = scipy_minimize(loss, np.zeros(3), method="BFGS", tol=1e-10).x
    assert ruling.estimated_propensity(x, a) == pytest.approx(1 / (1 + np.exp(-z @ best)), abs=1e-6)


def test_influence_by_hand():
    """Weights 1, 3 and 0 of 2, 6 and 9: a mean of 5; 5 + 3 / 4 of w (y - 5)."""
    found = ruling.influence(np.array([2.0, 6.0, 9.0]), np.array([1.0, 3.0, 0.0]))
    assert found == pytest.approx([5 - 2.25, 5 + 2.25, 5.0])
    assert (
        np.isnan(ruling.influence(np.ones(3), np.zeros(3))).all()
        and len(ruling.influence(np.ones(3), np.zeros(3))) == 3
    )
    small = ruling.influence(np.array([2.0, 6.0]), np.array([1e-3, 3e-3]))
    assert small.mean() == pytest.approx(5.0)


def test_an_interval_is_told_of_ten_records_and_not_of_fewer():
    values = np.array([1.0, 2.0, 6.0])
    assert ruling._bounded(values, False) == Bounded.of(item_interval(values))
    few = ruling._bounded(values, True)
    assert few.value == 3.0 and math.isnan(few.lower) and math.isnan(few.upper)


@pytest.fixture(scope="module")
def by_age(tmp_path_factory):
    """A rule that was told by hand: treat those above 54 (theta is of the scaled features)."""
    folder = tmp_path_factory.mktemp("rule")
    done = fit(rule_rows(60), **NAMES, bounds=RULE_BOUNDS, epsilon=5.0, seed=0, out=folder / "fit")
    told = RuleFit(
        done.names, done.features, (0.0, 1.0, 0.0), (1 / 36 / math.sqrt(3), 0.0), -1.5 / math.sqrt(3), done.guarantee,
        done.ledger, done.plan,
    )  # fmt: skip
    ruling.save(told, BOUNDS, folder / "rule.json")
    return folder / "rule.json"


def test_an_evaluation_by_hand(by_age):
    """Four groups by age and arm: who is above 54 gains by treatment; own propensities of 0.8 above and 0.4 below."""
    cells = []
    for age, arm, count, score, share in (
        (60, 1, 12, 80, 0.8),
        (60, 0, 3, 40, 0.8),
        (40, 1, 8, 10, 0.4),
        (40, 0, 9, 30, 0.4),
    ):
        cells += [(age, place % 2, arm, score + place, share) for place in range(count)]
    found = evaluate(by_age, table=rows_of(*cells), **NAMES, propensity="share")
    age, _, arm, score, share = np.array(cells, float).T
    own = np.where(arm == 1, share, 1 - share)
    advised = age > 54
    assert (found.n, found.treated, found.agreed) == (32, pytest.approx(15 / 32), pytest.approx(21 / 32))
    assert found.propensity == "column share" and not found.learnt
    parts = {}
    for name, policy in ((RULE, advised == (arm == 1)), (ALL, arm == 1), (NONE, arm == 0)):
        w = policy / own
        value = (w * score).sum() / w.sum()
        parts[name] = value + w / w.mean() * (score - value)
        assert found.values[name].value == pytest.approx(value)
    for name in (RULE, ALL):
        due = Bounded.of(item_interval(parts[name]))
        assert (found.values[name].lower, found.values[name].upper) == pytest.approx((due.lower, due.upper))
    due = Bounded.of(item_interval(parts[RULE] - parts[ALL]))
    told = found.gains[ALL]
    assert (told.value, told.lower, told.upper) == pytest.approx((due.value, due.lower, due.upper))
    # Of the untreated three and nine carry weights of 5 and 5/3: an effective number of 90^2 / (3 * 25 + 9 * 25/9) / 9 = 9.
    assert math.isnan(found.values[NONE].lower) and math.isnan(found.gains[NONE].lower)
    assert found.gains[NONE].value == pytest.approx(parts[RULE].mean() - parts[NONE].mean())
    assert len(found.notes) == 2


def test_ten_equal_records_carry_a_policy(by_age):
    for count, told in ((10, True), (9, False)):
        cells = [(40, 0, 0, place, 0.5) for place in range(count)] + [(60, 1, 1, place, 0.5) for place in range(30)]
        found = evaluate(by_age, table=rows_of(*cells), **NAMES, propensity="0.5")
        assert math.isnan(found.values[NONE].lower) is not told and math.isnan(found.gains[NONE].lower) is not told
    cells = [(40, 0, 1, place, 0.5) for place in range(30)] + [(60, 1, 0, place, 0.5) for place in range(30)]
    found = evaluate(by_age, table=rows_of(*cells, (60, 1, 1, 5, 0.5)), **NAMES, propensity="0.5")
    assert math.isnan(found.values[RULE].lower) and not math.isnan(found.values[ALL].lower)
    assert math.isnan(found.gains[ALL].lower) and math.isnan(found.gains[NONE].lower)  # one record is as the rule would


def test_estimated_propensities_are_held_above_kappa_and_counted(by_age):
    rows = rule_rows(80, seed=3)
    for row in rows:
        row["treated"] = int(row["age"] > 45) if row["age"] % 7 else row["treated"]
    table = read(rows)
    signs = np.where(table.treatment == 1, 1.0, -1.0)
    x = BOUNDS.scaled(table.X)[0][:, 1:]
    chance = ruling.estimated_propensity(x, signs)
    own = np.where(signs > 0, chance, 1 - chance)
    kappa = 0.3
    raised = int((own < kappa).sum())
    assert 0 < raised < 40
    found = evaluate(by_age, table=rows, **NAMES, kappa=kappa)
    assert f"Of {raised} records that of their own arm was below kappa, 0.3, and counts as that." in found.notes
    assert len(found.notes) == 4 and found.propensity == "estimated"
    w = (table.treatment == 1) / np.maximum(own, kappa)
    assert found.values[ALL].value == pytest.approx((w * table.outcome).sum() / w.sum())


def test_a_plan_compares_ridges_sizes_and_rivals():
    asked = {"weights": "entropy", "perturbation": "laplace"}
    found = plan(n=400, epsilon=2.0, features=3, **asked, delta=1e-5, radius=0.5)
    how = {**asked, "delta": 1e-5, "radius": 0.5}
    ridges = [10 ** (place / 4) for place in range(-16, 3)]
    assert [each.ridge for each in found.ridges] == pytest.approx(ridges)
    assert found.ridges[3] == noise_plan(400, 2.0, 3, **how, ridge=found.ridges[3].ridge)
    assert found.sizes == tuple(noise_plan(n, 2.0, 3, **how) for n in (200, 400, 800, 1600, 3200))
    assert [(each.weights, each.perturbation) for each in found.others] == [
        ("known", "laplace"), ("ipw", "laplace"), ("mmd", "laplace"), ("uniform", "laplace"),
        ("entropy", "objective"), ("entropy", "gamma"), ("entropy", "gaussian"),
    ]  # fmt: skip
    assert found.others[4] == noise_plan(400, 2.0, 3, **how | {"perturbation": "objective", "delta": 1e-5})
    assert found.others[6] == noise_plan(400, 2.0, 3, **how | {"perturbation": "gaussian"})
    with pytest.raises(BadInput, match="kappa is 2"):
        ruling.RulePlanning.read(
            9, 1.0, 2, weights="ipw", perturbation="gamma", delta=0.0, ridge=0.1,
            constants={"kappa": 2.0, "weight_ridge": 1.0, "radius": 1.0, "largest_weight": 5.0},
        )  # fmt: skip


def test_warnings_of_a_plan_begin_beyond_their_limits():
    from dataclasses import replace

    quiet = replace(noise_plan(1000, 10.0, 2, weights="uniform", ridge=1.0), delta=1e-3, pull=100.0)
    assert not quiet.raised and plan_warnings(quiet) == ()  # epsilon 10, delta 1 / n, a pull of a tenth
    assert plan_warnings(replace(quiet, delta=0.9e-3, epsilon=9.0, pull=99.0)) == ()
    for changed, said in (
        ({"delta": 1.001e-3}, "Delta 0.001001 is above one in 1,000 records"), ({"epsilon": 10.01}, "Epsilon 10.01"),
        ({"pull": 100.01}, "The noise pulls like"), ({"raised": True}, "raised the ridge to 1 a record"),
    ):  # fmt: skip
        (line,) = plan_warnings(replace(quiet, **changed))
        assert said in line
    assert len(plan_warnings(quiet, epsilon=11.0, delta=0.5)) == 2
    assert (
        plan_warnings(replace(quiet, epsilon=11.0, delta=0.5), epsilon=0.0, delta=0.0) == ()
    )  # of everything together
    lines = replace(
        quiet, movement=3.0, largest=2.0, sensitivity=7.0, ridge=0.5, noise=4.0, shift=0.25, raised=True
    ).summary()
    assert lines[1:] == (
        "sensitivity: 3 of all weights together + 2 · 2 = 7", "ridge: 0.500 a record, raised by the guarantee",
        "noise: expected norm 4; it pulls like 100 records and moves the rule by 0.250 at most in expectation",
    )  # fmt: skip
    told = {"epsilon": 2.0, "floating_point": "exact"}
    assert promised({**told, "delta": 0.0}) == "private with epsilon 2 (exact)"
    assert promised({**told, "delta": 1e-6}) == "private with epsilon 2 and delta 1e-06 (exact)"


def test_only_a_whole_file_of_a_rule_is_read_as_one(by_age, tmp_path):
    about, whole = unseal(by_age.read_bytes())
    assert whole and ruling._stored_rule(by_age) == {name: about[name] for name in ruling.DRAWN}
    path = tmp_path / "rule.json"
    path.write_bytes(seal(about | {"form": "another"}))  # whole, and of something else
    assert ruling._stored_rule(path) is None
    with pytest.raises(BadInput, match="was changed since it was written, or is no rule"):
        ruling.load(path)
    path.write_text(by_age.read_text().replace('"arms"', '"armz"'))
    assert ruling._stored_rule(path) is None
    with pytest.raises(BadInput, match="is no rule: it was altered since it was written"):
        ruling.load(tmp_path)
    path.write_text(json.dumps(about))  # of a rule, and without what would show a change
    assert ruling._stored_rule(path) is None
    with pytest.raises(BadInput, match="was changed since it was written, or is no rule"):
        ruling.load(tmp_path)
    for text in ("{", "[1]"):
        path.write_text(text)
        assert ruling._stored_rule(path) is None and ruling._stored_result(path) is None
        with pytest.raises(BadInput, match="is no rule"):
            ruling.load(path)
    with pytest.raises(BadInput, match="no such rule"):
        ruling.load(tmp_path / "gone.json")
    assert ruling._stored_rule(tmp_path / "gone.json") is None and ruling._stored_result(tmp_path / "gone.json") is None


def test_the_records_of_a_rule_are_those_its_folder_names(tmp_path):
    assert ruling._fitted_records(tmp_path) == ""
    for text, told in (('{"records": "abc", "table": "t"}', "abc"), ('{"table": "t"}', ""), ("[1]", ""), ("{", "")):
        (tmp_path / "inputs.json").write_text(text)
        assert ruling._fitted_records(tmp_path) == told
