"""The jobs of private rules: what is released, what is not, and numbers that can be checked by hand."""

import dataclasses
import html
import json
import math

import numpy as np
import pytest

from equipoise.cli import main
from equipoise.core.errors import BadInput
from equipoise.core.numbers import number
from equipoise.core.shares import Bounded
from equipoise.privacy import evaluate, fit, load, noise_plan, plan
from equipoise.privacy.result import ALL, NONE, RULE, RuleEvaluation
from equipoise.privacy.ruling import influence
from equipoise.privacy.weights import MOST_MMD
from small_jobs import RULE_BOUNDS, rule_rows

NAMES = {"treatment": "treated", "outcome": "score"}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    out = tmp_path_factory.mktemp("rule") / "fit"
    rows = rule_rows(2000)
    for place in range(11):
        rows[place]["score"] = 1e9
    done = fit(
        rows, **NAMES, bounds=RULE_BOUNDS, epsilon=8.0, weights="known", propensity="0.5", kappa=0.5, seed=0, out=out
    )
    return done, rows


def test_what_is_private_stays_in_its_own_file(fitted):
    done, _ = fitted
    private = json.loads((done.folder / "private.json").read_text())["not to be released"]
    assert private["clipped_outcomes"] >= 11
    for name in ("rule.json", "result.json", "report.html"):
        text = (done.folder / name).read_text()
        assert "clipped_outcomes" not in text and str(private["imbalance_after"]) not in text
    assert json.loads((done.folder / "rule.json").read_text())["ledger"]["public"]["source of the ranges"] == "made up"


def test_a_stored_rule_decides_as_it_is_written(fitted):
    done, rows = fitted
    X = np.array([[row["age"], row["sex"]] for row in rows], float)
    about = json.loads((done.folder / "rule.json").read_text())
    low, high = np.array(list(about["features"].values())).T
    by_hand = np.clip(X, low, high) @ about["coef"] + about["intercept"] > 0
    assert (load(done.folder).predict(X) == by_hand).all()
    assert (by_hand == (X[:, 0] > 50)).mean() > 0.9


def test_the_same_seed_gives_the_same_bytes(fitted, tmp_path):
    done, rows = fitted
    again = fit(
        rows, **NAMES, bounds=RULE_BOUNDS, epsilon=8.0, weights="known", propensity="0.5", kappa=0.5, seed=0,
        out=tmp_path / "again",
    )  # fmt: skip
    assert (again.folder / "rule.json").read_bytes() == (done.folder / "rule.json").read_bytes()


@pytest.mark.parametrize("lost", ["private.json", "rule.json", "result.json"])
def test_a_folder_that_is_mended_holds_the_rule_that_was_drawn(tmp_path, lost):
    """Noise that nobody can repeat: a second draw from the same records would spend epsilon a second time, unsaid."""

    def again():
        rows = rule_rows(60)
        return fit(rows, **NAMES, bounds=RULE_BOUNDS, epsilon=1.0, perturbation="gamma", out=tmp_path / "rule")

    first = again()
    kept = {name: (first.folder / name).read_bytes() for name in ("rule.json", "private.json")}
    (first.folder / lost).unlink()
    assert again().theta == first.theta
    assert {name: (first.folder / name).read_bytes() for name in kept} == kept


def test_a_rule_that_is_lost_is_not_drawn_again_unasked(tmp_path):
    def again(**how):
        rows = rule_rows(60)
        return fit(rows, **NAMES, bounds=RULE_BOUNDS, epsilon=1.0, out=tmp_path / "rule", **how)

    first = again(perturbation="gamma")
    copy = (first.folder / "rule.json").read_bytes()
    for name in ("rule.json", "result.json"):
        (first.folder / name).write_text("{}")
    for _ in range(2):
        with pytest.raises(BadInput, match="spends epsilon once more"):
            again(perturbation="gamma")
    there = tmp_path / "rule.partial" / "rule.json"
    other = fit(rule_rows(60), **NAMES, bounds=RULE_BOUNDS, epsilon=2.0, perturbation="gamma", out=tmp_path / "other")
    there.write_bytes((other.folder / "rule.json").read_bytes())
    with pytest.raises(BadInput, match="of other settings or of another table"):
        again(perturbation="gamma")
    there.write_bytes(copy)
    assert again(perturbation="gamma").theta == first.theta
    assert again(perturbation="gamma", fresh=True).theta != first.theta


def test_a_kill_after_the_rule_was_written_draws_no_other(tmp_path, monkeypatch):
    from equipoise.privacy import ruling

    asked = {**NAMES, "bounds": RULE_BOUNDS, "epsilon": 1.0, "perturbation": "gamma", "out": tmp_path / "rule"}
    whole = ruling.write_atomic

    def cut(path, content):
        if path.name == "private.json":
            raise KeyboardInterrupt
        whole(path, content)

    monkeypatch.setattr(ruling, "write_atomic", cut)
    with pytest.raises(KeyboardInterrupt):
        fit(rule_rows(60), **asked)
    monkeypatch.undo()
    seen = load(tmp_path / "rule.partial").theta_
    assert fit(rule_rows(60), **asked).theta == pytest.approx(seen, abs=0)


def test_a_rule_is_not_that_of_other_rows_in_the_same_number(tmp_path):
    asked = {**NAMES, "bounds": RULE_BOUNDS, "epsilon": 1.0, "perturbation": "gamma", "out": tmp_path / "rule"}
    first = fit(rule_rows(60), **asked)
    with pytest.raises(BadInput, match="another content of table"):
        fit(rule_rows(60, seed=1), **asked)
    assert evaluate(first.folder, table=rule_rows(60), **NAMES).learnt


def test_a_changed_rule_is_refused(fitted, tmp_path):
    done, _ = fitted
    text = (done.folder / "rule.json").read_text()
    (tmp_path / "rule.json").write_text(text.replace('"epsilon": 8.0', '"epsilon": 1.0', 1))
    with pytest.raises(BadInput, match="changed"):
        load(tmp_path)


def test_values_are_the_weighted_means(fitted):
    done, _ = fitted
    rows = rule_rows(500, seed=5)
    found = evaluate(done.folder, table=rows, **NAMES, propensity="0.5")
    X = np.array([[row["age"], row["sex"]] for row in rows], float)
    arm, score = np.array([row["treated"] for row in rows]), np.array([row["score"] for row in rows])
    own = load(done.folder).predict(X) == arm
    assert found.values[RULE].value == pytest.approx(score[own].mean())
    assert found.values[ALL].value == pytest.approx(score[arm == 1].mean())
    assert found.gains[NONE].value == pytest.approx(score[own].mean() - score[arm == 0].mean())
    assert found.gains[NONE].lower > 0 and found.agreed == pytest.approx(own.mean())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps({**RULE_BOUNDS, "Arms": [1, 0]}), "no 'Arms'"),
        (json.dumps(RULE_BOUNDS).replace('"sex"', '"age": [0, 1], "sex"'), "'age' twice"),
    ],
)
def test_bounds_that_are_not_read_whole_are_refused(tmp_path, text, said):
    """A misspelt `arms` in silence would turn the rule round."""
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(BadInput, match=said):
        fit(rule_rows(20), **NAMES, bounds=tmp_path / "b.json", epsilon=1.0, seed=0)


def test_a_page_that_shows_a_seed_says_so(fitted, tmp_path):
    done, _ = fitted
    page, rule = ((done.folder / name).read_text() for name in ("report.html", "rule.json"))
    assert "This page shows the seed" in page and "show the seed" in done.notes[0]
    assert "--seed 0" in page and '"seed"' not in rule
    told = fit(rule_rows(60), **NAMES, bounds=RULE_BOUNDS, epsilon=1.0, perturbation="gamma", out=tmp_path / "own")
    assert "shows the seed" not in (told.folder / "report.html").read_text()


def test_a_rule_on_its_own_records_is_not_called_held_out(tmp_path):
    for name, seed in {"own": 0, "held": 1}.items():
        rows = "".join(json.dumps(row) + "\n" for row in rule_rows(60, seed=seed))
        (tmp_path / f"{name}.jsonl").write_text(rows)
    asked = {**NAMES, "bounds": RULE_BOUNDS, "epsilon": 1.0, "perturbation": "gamma"}
    rule = fit(tmp_path / "own.jsonl", **asked, out=tmp_path / "rule").folder
    own, held = (evaluate(rule, table=tmp_path / f"{name}.jsonl", **NAMES) for name in ("own", "held"))
    assert "fitted on" in own.warnings()[0] and "of its own records" in own.headline()
    assert not held.learnt and "held-out records" in held.headline()
    assert "fitted on" in evaluate.plan(rule / "rule.json", table=tmp_path / "own.jsonl", **NAMES).summary()[0]


def test_safe_noise_of_a_tightened_bound_is_asked_for_before_the_work(monkeypatch):
    from equipoise.core.errors import MissingExtra
    from equipoise.privacy import ruling

    def missing():
        raise MissingExtra("OpenDP")

    monkeypatch.setattr(ruling, "opendp", missing)
    asked = {**NAMES, "bounds": RULE_BOUNDS, "epsilon": 1.0, "perturbation": "gamma", "delta": 1e-6}
    fit.plan(rule_rows(20), **asked)
    with pytest.raises(MissingExtra):
        fit.plan(rule_rows(20), **asked, tightening=0.1)


def test_a_range_in_odd_numbers_that_the_records_reach_was_taken_from_them():
    """Whole numbers may be an instrument's; nothing of a protocol is the records' own 23.417."""
    rows = rule_rows(60)
    asked = {**NAMES, "epsilon": 1.0, "seed": 0}
    scores, ages = ([row[name] for row in rows] for name in ("score", "age"))
    taken = {**RULE_BOUNDS, "outcome": [min(scores), max(scores)]}
    with pytest.raises(BadInput, match="the range of the outcome ends exactly where the records do"):
        fit.plan(rows, **asked, bounds=taken)
    fit.plan(rows, **asked, bounds={**RULE_BOUNDS, "features": {"age": [min(ages), max(ages)], "sex": [0, 1]}})
    fit.plan(rows, **asked, bounds={**taken, "outcome": [min(scores) - 0.01, max(scores)]})


@pytest.mark.parametrize("again", [7.0, "7", " 7", "7.0", "e\u0301"])
def test_a_person_is_one_however_the_name_is_written(again):
    rows = [{**row, "who": place} for place, row in enumerate(rule_rows(20))]
    rows[3]["who"] = "\u00e9"
    asked = {**NAMES, "bounds": RULE_BOUNDS, "epsilon": 1.0, "seed": 0, "person": "who"}
    fit.plan(rows, **asked)
    with pytest.raises(BadInput, match="second row"):
        fit.plan([*rows, {**rows[0], "who": again}], **asked)


def test_other_bounds_are_another_rule(tmp_path):
    asked = {**NAMES, "epsilon": 1.0, "perturbation": "gamma", "out": tmp_path / "rule"}
    fit(rule_rows(60), bounds=RULE_BOUNDS, **asked)
    for changed in ({"arms": [1, 0]}, {"outcome": [0, 1000]}, {"features": {"age": [0, 120], "sex": [0, 1]}}):
        with pytest.raises(BadInput, match=r"another content of bounds|holds other settings: bounds"):
            fit(rule_rows(60), bounds=RULE_BOUNDS | changed, **asked)


def test_a_rule_of_other_settings_is_not_the_one_that_was_drawn(tmp_path):
    asked = {**NAMES, "bounds": RULE_BOUNDS, "epsilon": 2.0, "perturbation": "gamma"}
    other = fit(rule_rows(60), **asked, delta=0.01, tightening=0.5, seed=0, out=tmp_path / "other").folder
    own = fit(rule_rows(60), **asked, out=tmp_path / "own").folder
    for name in ("rule.json", "result.json"):
        (own / name).write_text("{}")
    with pytest.raises(BadInput, match="missing or altered"):
        fit(rule_rows(60), **asked, out=own)
    (tmp_path / "own.partial" / "rule.json").write_bytes((other / "rule.json").read_bytes())
    with pytest.raises(BadInput, match="a rule of other settings"):
        fit(rule_rows(60), **asked, out=own)


def test_a_tightened_rule_shows_the_noise_that_it_got():
    told = fit(
        rule_rows(1000), **NAMES, bounds=RULE_BOUNDS, epsilon=4.0, perturbation="gamma", weight_ridge=0.01,
        tightening=0.2, delta=1e-5, seed=0,
    )  # fmt: skip
    assert told.plan.movement == pytest.approx(told.ledger["sensitivity"]["movement"]) and told.plan.movement < 700
    assert noise_plan(1000, 3.2, 2, perturbation="gamma", weight_ridge=0.01).movement == pytest.approx(800, rel=1e-3)


def test_a_rule_that_is_read_again_has_its_settings(tmp_path):
    asked = {
        "epsilon": 2.0,
        "weights": "ipw",
        "perturbation": "gamma",
        "delta": 1e-5,
        "tightening": 0.25,
        "ridge": 0.02,
    }
    folder = fit(rule_rows(60), **NAMES, bounds=RULE_BOUNDS, **asked, kappa=0.3, seed=0, out=tmp_path / "rule").folder
    found = load(folder).get_params()
    assert {name: found[name] for name in (*asked, "kappa")} == {**asked, "kappa": 0.3}


def confounded(n, seed=0):
    """Pressure decides who is treated and what follows; nobody gains or loses by treatment: every policy is worth 50."""
    draw = np.random.default_rng(seed)
    pressure = draw.normal(130, 15, n)
    arms = draw.random(n) < 1 / (1 + np.exp(-(pressure - 130) / 15))
    scores = 50 + 0.8 * (pressure - 130) + draw.normal(0, 3, n)
    return [
        dict(zip(("bp", "treated", "score"), row, strict=True)) for row in zip(pressure, arms * 1, scores, strict=True)
    ]


def test_estimated_propensities_know_no_public_range(tmp_path):
    found = []
    for place, high in enumerate((300, 3000)):
        bounds = {"source": "made up", "features": {"bp": [0, high]}, "outcome": [-100, 200]}
        rule = fit(confounded(200), **NAMES, bounds=bounds, epsilon=50.0, seed=0, out=tmp_path / str(place)).folder
        found.append(evaluate(rule, table=confounded(3000, 1), **NAMES))
    for name in (ALL, NONE):
        value = found[0].values[name]
        assert found[1].values[name].value == pytest.approx(value.value, abs=1e-6)
        assert value.value == pytest.approx(50, abs=1.0) and value.lower < 50 < value.upper


def test_too_few_records_give_no_interval(tmp_path):
    rows = [{**row, "treated": int(place > 0)} for place, row in enumerate(rule_rows(40))]
    rule = fit(rule_rows(60), **NAMES, bounds=RULE_BOUNDS, epsilon=5.0, seed=0, out=tmp_path / "rule").folder
    found = evaluate(rule, table=rows, **NAMES, propensity="0.5")
    assert found.values[NONE].value == pytest.approx(rows[0]["score"]) and math.isnan(found.values[NONE].lower)
    assert math.isnan(found.gains[NONE].upper) and not math.isnan(found.values[ALL].lower)
    assert any("Too few records are as under 'nobody treated'" in line for line in found.warnings())
    assert any("not shown to be better" in line for line in found.warnings())


def test_own_records_are_known_in_another_file_and_without_propensities(tmp_path):
    rows = rule_rows(60)
    how = {"bounds": RULE_BOUNDS, "epsilon": 1.0, "weights": "known", "propensity": "share", "kappa": 0.5, "seed": 0}
    rule = fit(rows, **NAMES, **how, out=tmp_path / "rule").folder
    table = "".join(json.dumps({name: row[name] for name in ("age", "sex", *NAMES.values())}) + "\n" for row in rows)
    (tmp_path / "t.jsonl").write_text(table)
    found = evaluate(rule, table=tmp_path / "t.jsonl", **NAMES, out=tmp_path / "own")
    assert found.learnt and "A rule on records that it was fitted on" in (found.folder / "report.html").read_text()
    assert not evaluate(rule, table=rule_rows(60, seed=1), **NAMES).learnt


def test_a_guarantee_that_promises_little_is_told():
    assert any("one in 2,000" in line for line in warned(perturbation="gaussian", delta=1e-3))
    assert not any("one in" in line for line in warned(perturbation="gaussian", delta=1e-6))
    assert any("hardly anything" in line for line in warned(epsilon=50.0))
    told = fit(
        rule_rows(200),
        **NAMES,
        bounds=RULE_BOUNDS,
        epsilon=12.0,
        tightening=0.5,
        delta=0.1,
        perturbation="gamma",
        seed=0,
    )
    assert "Delta 0.1" in " ".join(told.warnings()) and "Epsilon 12" in " ".join(told.warnings())


def warned(**how):
    return plan(**{"n": 2000, "epsilon": 1.0, "features": 8} | how).warnings()


def test_intervals_of_a_weighted_mean_cover_it():
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        x = draw.random(300)
        own = draw.random(300) < 0.2 + 0.6 * x
        y = 2 * x + draw.normal(size=300)
        values = influence(y, own / (0.2 + 0.6 * x))
        half = 1.96 * values.std(ddof=1) / math.sqrt(300)
        hits += abs(values.mean() - 1.0) <= half
    assert 0.91 <= hits / 400 <= 0.98
    assert np.isnan(influence(y, np.zeros(300))).all()


def test_a_plan_reads_no_record_and_finds_the_best_ridge():
    found = plan(n=2000, epsilon=1.0, features=8)
    assert found.asked == noise_plan(2000, 1.0, 8)
    assert min(found.ridges, key=lambda each: each.loss).ridge == found.best
    assert found.ridges[0].loss > min(each.loss for each in found.ridges) < found.ridges[-1].loss
    pulls = {each.n: each.pull for each in found.sizes}
    assert pulls[16000] == pytest.approx(pulls[8000], rel=0.1)  # the noise does not grow with n
    known = next(each for each in found.others if each.weights == "known")
    assert known.sensitivity == 10 and known.pull < found.asked.pull


def test_a_plan_stops_at_the_sizes_that_its_weights_can_be_of():
    found = plan(n=3000, epsilon=1.0, features=2, weights="mmd")
    assert MOST_MMD == 5000 and [each.n for each in found.sizes] == [1500, 3000]
    assert [each.n for each in plan(n=3, epsilon=1.0, features=2).sizes] == [2, 3, 6, 12, 24]
    # Of other weights and kinds of noise those that could be, each by itself: no Gaussian noise without a delta.
    assert {each.weights for each in found.others if each.perturbation == "objective"} == {
        "known", "ipw", "entropy", "uniform",
    }  # fmt: skip
    assert {each.perturbation for each in found.others} == {"objective", "laplace", "gamma"}
    many = plan(n=6000, epsilon=1.0, features=2, delta=1e-6)
    assert "mmd" not in {each.weights for each in many.others}
    assert "gaussian" in {each.perturbation for each in many.others}


def test_a_rule_shows_its_coefficients_largest_pull_first(fitted):
    done, _ = fitted
    names = tuple(f"f{place}" for place in range(10))
    theta = (9.0, 0.1, -0.9, 0.0, 0.3, -0.2, 0.8, 0.7, -0.6, 0.5, 0.4)
    coef = tuple(-100.0 * value for value in theta[1:])
    made = dataclasses.replace(done, features=names, theta=theta, coef=coef)
    lines = made.summary()[len(made.warnings()) : -1]
    assert [line.partition(":")[0] for line in lines] == ["f1", "f5", "f6", "f7", "f8", "f9", "f3", "f4"]
    assert lines[0] == f"f1: {number(90.0, signed=True)}" and made.summary()[-1] == made.headline()
    shown = made._repr_html_()
    assert shown.startswith(f"<p>{html.escape(made.headline())}</p>") and shown.count("<tr>") == 11
    assert f"<td>f4</td><td>{number(20.0, signed=True)}</td>" in shown
    flat = dataclasses.replace(made, theta=(9.0, *[0.0] * 10))
    assert flat.summary() == (*flat.warnings(), flat.headline())
    planned = plan(n=2000, epsilon=1.0, features=8)
    cells = planned._repr_html_()
    assert cells.count("<tr>") == 1 + len(planned.ridges) and planned.summary()[-1] == planned.headline()
    first = planned.ridges[0]
    assert f"<td>{number(first.ridge)}</td><td>{number(first.pull)}</td><td>{number(first.loss)}</td>" in cells


def test_an_evaluation_warns_at_its_limits_and_tells_every_policy():
    def value(v, half):
        return Bounded(v, v - half, v + half)

    def made(**how):
        values = {RULE: value(5.0, 1.0), ALL: value(3.0, 1.0), NONE: value(2.0, 1.0)}
        gains = {ALL: value(2.0, 1.5), NONE: value(3.0, 1.5)}
        given = {"values": values, "gains": gains, "treated": 0.4, "agreed": 0.5}
        return RuleEvaluation(**({"names": {}, "n": 1200, "propensity": "0.5", "guarantee": {}} | given | how))

    sound = made()
    assert sound.warnings() == ()
    assert sound.headline() == (
        f"Value of the rule {number(5.0)} ({number(4.0)} to {number(6.0)}) on 1,200 held-out records; everybody treated "
        f"{number(3.0)} ({number(2.0)} to {number(4.0)}), nobody {number(2.0)} ({number(1.0)} to {number(3.0)})."
    )
    assert sound.summary()[3] == f"gain over everybody treated: {number(2.0)} ({number(0.5)} to {number(3.5)})"
    assert len(sound.summary()) == 6 and sound.summary()[-1] == sound.headline()
    assert "of its own records" in made(learnt=True).headline() and len(made(learnt=True).warnings()) == 1
    for gain, warned in ((Bounded(1.0, 0.0, 2.0), True), (Bounded(1.0, 1e-9, 2.0), False)):
        assert len(made(gains={ALL: value(2.0, 1.0), NONE: gain}).warnings()) == warned
    for share, warned in ((0.0, True), (1.0, True), (0.001, False), (0.999, False)):
        assert any("same arm" in each for each in made(treated=share).warnings()) is warned
    few = made(values={**sound.values, NONE: Bounded(2.0, math.nan, math.nan)})
    assert few.warnings()[0].startswith("Too few records are as under 'nobody treated':")
    assert few.headline().endswith(f"nobody {number(2.0)}.")


def test_the_command_line(tmp_path, capsys):
    assert main(["rule", "plan", "--n", "2000", "--epsilon", "1", "--features", "8", "--out", str(tmp_path / "p")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "p")
    assert main(["rule", "plan", "--n", "2000", "--epsilon", "0", "--features", "8", "--out", str(tmp_path / "q")]) == 2
    assert "epsilon" in capsys.readouterr().err
    table = tmp_path / "t.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rule_rows(50)))
    (tmp_path / "b.json").write_text(json.dumps(RULE_BOUNDS))
    asked = ["rule", "fit", "--table", str(table), "--treatment", "treated", "--outcome", "score"]
    asked += ["--bounds", str(tmp_path / "b.json"), "--epsilon", "1"]
    assert main([*asked, "--ridge", "cv"]) == 2
    assert "ridge" in capsys.readouterr().err
    assert main([*asked, "--dry-run"]) == 0
    assert "sensitivity" in capsys.readouterr().out


HUGE, NEXT_TO_ONE = math.nextafter(1e9, math.inf), math.nextafter(1.0, 2.0)
ENDS = {  # what is taken, what is not
    "epsilon": ((1e-6, 1e6), (0.99e-6, math.nextafter(1e6, math.inf))),
    "delta": ((0, math.nextafter(1.0, 0.0)), (-1e-300, 1)),
    "ridge": ((1e-12, 1e9), (0.99e-12, HUGE)),
    "kappa": ((1e-9, 1), (0.99e-9, NEXT_TO_ONE)),
    "weight_ridge": ((1e-9, 1e9), (0.99e-9, HUGE)),
    "radius": ((1e-300, 20), (0, math.nextafter(20.0, 21.0))),
    "largest_weight": ((1, 1e9), (math.nextafter(1.0, 0.0), HUGE)),
    "bandwidth": ((0.01, 1e9), (0.0099, HUGE)),
    "tightening": ((0, math.nextafter(1.0, 0.0)), (-1e-300, 1)),
    "seed": ((0, 2**80), (-1,)),
    "n": ((2, 10**9), (1, 10**9 + 1)),
    "features": ((1, 10**5), (0, 10**5 + 1)),
}


@pytest.mark.parametrize("name", ENDS)
def test_numbers_of_a_guarantee_are_taken_up_to_their_ends(name):
    taken, refused = ENDS[name]
    read = 0
    for options, given in (
        (fit.options, {"table": [{}], "treatment": "t", "outcome": "y", "bounds": {}, "epsilon": 1.0}),
        (plan.options, {"n": 9, "epsilon": 1.0, "features": 2}),
        (evaluate.options, {"rule": "r", "table": [{}], "treatment": "t", "outcome": "y"}),
    ):
        if name not in options.hints:
            continue
        read += 1
        for value in taken:
            assert options.read(given | {name: value})[name] == value
        for value in refused:
            with pytest.raises(BadInput, match=f"option '{name}' should be"):
                options.read(given | {name: value})
    assert read == {"bandwidth": 1, "tightening": 1, "seed": 1, "n": 1, "features": 1, "kappa": 3}.get(name, 2)
