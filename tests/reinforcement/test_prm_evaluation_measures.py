"""What is measured of step scores, against a loop, `nait`, and scikit-learn; controls; thresholds of the other half."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from equipoise.data.steps import StepwiseSolution
from equipoise.reinforcement import nait
from equipoise.reinforcement import prm_evaluation_measures as measures
from equipoise.reinforcement.prm_evaluation_result import ALL, ALWAYS, MEAN, MODEL, OTHER_HALF, POSITION, of_split
from equipoise.reinforcement.prm_evaluation_result import rule as rule_in_words


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(measures, "DRAWS", 25)


def solution(number, labels, **more):
    first = next((i for i, y in enumerate(labels) if y is not None and y < 0.5), -1)
    steps = tuple(f"step {i}" for i in range(len(labels)))
    given = {"group": f"problem {number}", "first_error": first, "format": "processbench", **more}
    return StepwiseSolution(f"s{number}", "p", steps, f"row {number}", labels=tuple(labels), **given)


def drawn(count=120, seed=0, **more):
    """Solutions of 1 to 6 steps with their first error, and scores that know a little of it; a few steps were not read."""
    rng = np.random.default_rng(seed)
    solutions, scores = [], []
    for number in range(count):
        steps = int(rng.integers(1, 7))
        first = int(rng.integers(0, steps)) if rng.random() < 0.6 else -1
        labels = [1.0] * steps if first < 0 else [1.0] * first + [0.0] + [None] * (steps - first - 1)
        split = ("gsm8k", "math")[number % 2]
        solutions.append(solution(number, labels, group=f"problem {number // 2}", split=split, **more))
        r = np.round(np.clip(rng.normal([0.65 if y is None or y else 0.45 for y in labels], 0.2), 0, 1), 2)
        r[rng.random(steps) < 0.03] = math.nan
        scores.append(r)
    half = measures.halves([each.group for each in solutions], 0)
    return measures.Judged(solutions, scores, half, 0)


def predicted(judged, at):
    return [nait.first_error(torch.from_numpy(r), at) for r in judged.scores]


def test_windows_are_the_thresholds_that_name_the_first_error():
    judged = drawn()
    gold = [each.first_error for each in judged.solutions]
    windows = [measures.window(r, e) for r, e in zip(judged.scores, gold, strict=True)]
    assert any(low >= high for low, high in windows)
    for at in (0.0, 0.31, 0.5, 0.52, 0.7, 1.0):
        expected = [guess == e for guess, e in zip(predicted(judged, at), gold, strict=True)]
        assert [low < at <= high for low, high in windows] == expected


def rows(found, predictor, rule=""):
    return [each for each in found if (each.predictor, each.rule) == (predictor, rule)]


def test_first_errors_are_counted_as_processbench_counts_them():
    judged = drawn()
    found = measures.first_errors("processbench", judged, 0.55)
    gsm8k, math_, mean = rows(found, MODEL)
    splits = [[i for i, each in enumerate(judged.solutions) if each.split == name] for name in ("gsm8k", "math")]
    guesses = predicted(judged, 0.55)
    for row, places in zip((gsm8k, math_), splits, strict=True):
        peer = nait.first_error_f1([guesses[i] for i in places], [judged.solutions[i].first_error for i in places])
        assert (row.error_accuracy, row.correct_accuracy) == (peer.error_accuracy, peer.correct_accuracy)
        assert (row.errors, row.corrects) == (peer.errors, peer.corrects)
        assert row.f1.value == pytest.approx(peer.f1) and row.f1.lower < peer.f1 < row.f1.upper
    assert mean.split == MEAN and mean.f1.value == pytest.approx((gsm8k.f1.value + math_.f1.value) / 2)
    assert mean.thresholds == (0.55,) and mean.errors == gsm8k.errors + math_.errors
    assert all(each.f1.value == each.error_accuracy == 0 and each.correct_accuracy == 1 for each in rows(found, ALWAYS))


def test_each_half_is_judged_at_the_best_threshold_of_the_other():
    """Brute force over a grid that is finer than the scores, which are hundredths."""
    judged = drawn(60)
    row = rows(measures.first_errors("processbench", judged, 0.5), MODEL, OTHER_HALF)[-1]
    gold = [each.first_error for each in judged.solutions]

    def mean_f1(guesses, side):
        found = []
        for name in ("gsm8k", "math"):
            places = [i for i, each in enumerate(judged.solutions) if each.split == name and judged.half[i] in side]
            found.append(nait.first_error_f1([guesses[i] for i in places], [gold[i] for i in places]).f1)
        return sum(found) / 2

    grid = [at / 200 for at in range(41, 160, 2)]
    for side, at in enumerate(row.thresholds):
        best = max(mean_f1(predicted(judged, each), (1 - side,)) for each in grid)
        assert mean_f1(predicted(judged, at), (1 - side,)) == pytest.approx(best)
    at_each = [predicted(judged, at) for at in row.thresholds]
    guesses = [at_each[side][i] for i, side in enumerate(judged.half)]
    assert row.f1.value == pytest.approx(mean_f1(guesses, (0, 1)))
    assert row.thresholds[0] != row.thresholds[1]


def test_a_split_without_wrong_or_right_solutions_has_no_say():
    """Thresholds and the mean are those of the other splits: brute force, and the same data without that split."""
    judged = drawn()
    lone = [solution(f"lone {i}", [1.0, 1.0], split="lone") for i in range(10)]
    added = measures.Judged(
        [*judged.solutions, *lone],
        [*judged.scores, *[np.array([0.95, 0.9])] * 10],
        np.concatenate([judged.half, np.arange(10) % 2]),
        0,
    )
    for rule in ("", OTHER_HALF):
        found = rows(measures.first_errors("processbench", added, 0.5), MODEL, rule)
        expected = rows(measures.first_errors("processbench", judged, 0.5), MODEL, rule)
        assert [each.split for each in found] == ["gsm8k", "math", "lone", MEAN]
        assert found[-1].thresholds == expected[-1].thresholds
        assert found[-1].f1 == expected[-1].f1 and math.isfinite(found[-1].f1.value)
        assert (found[-1].left_out, expected[-1].left_out) == (("lone",), ()) and math.isnan(found[2].f1.value)
        assert (found[-1].errors, found[-1].corrects) == (expected[-1].errors, expected[-1].corrects)
        assert of_split(found[-1]) == "mean without lone" and of_split(found[0]) == "gsm8k"


def test_where_nothing_tells_a_threshold_none_is_said_to_be_chosen():
    solutions = [solution(i, [1.0, 0.0] if i < 6 else [1.0, 1.0]) for i in range(12)]
    scores = [np.array([0.9, 0.7 if i < 6 else 0.8]) for i in range(12)]
    half = np.array([0] * 6 + [1] * 6)  # all wrong ones in one half, all right ones in the other
    judged = measures.Judged(solutions, scores, half, 0)
    (row,) = rows(measures.first_errors("processbench", judged, 0.5), MODEL, OTHER_HALF)
    assert np.isnan(row.thresholds).all() and (row.error_accuracy, row.correct_accuracy) == (0, 1)  # as at 0.5
    said = "best of the other half (0.500, none could be chosen and 0.500, none could be chosen)"
    assert rule_in_words(row, 0.75) == said
    mixed = replace(judged, half=np.arange(12) % 2)
    (row,) = rows(measures.first_errors("processbench", mixed, 0.5), MODEL, OTHER_HALF)
    assert row.thresholds == pytest.approx((0.75, 0.75)) and row.f1.value == 1
    right = [solution(i, [1.0], format="prmbench", split="circular") for i in range(4)]
    bench_ = measures.Judged(right, [np.array([0.9])] * 4, np.arange(4) % 2, 0)
    assert np.isnan(rows(measures.error_classes(bench_, 0.5), MODEL, OTHER_HALF)[0].thresholds).all()


def test_halves_keep_a_problem_together():
    groups = [f"p{i // 3}" for i in range(33)]
    half = measures.halves(groups, 4)
    assert all(len({half[i] for i, g in enumerate(groups) if g == name}) == 1 for name in groups)
    assert abs(2 * half[::3].sum() - 11) == 1 and (measures.halves(groups[::-1], 4) == half[::-1]).all()
    assert (measures.halves(groups, 5) != half).any()


def test_the_position_control_knows_the_other_half_alone():
    judged = drawn()
    found = measures.position_scores(judged.solutions, judged.half)
    for place in (0, 1, 5):
        side = 1 - judged.half[place]
        for t, r in enumerate(found[place]):
            others = [
                each.labels[t]
                for each, h in zip(judged.solutions, judged.half, strict=True)
                if h == side and t < len(each.labels) and each.labels[t] is not None
            ]
            assert r == pytest.approx((sum(others) + 1) / (len(others) + 2))
    long = measures.position_scores([solution(0, [1.0] * 40), solution(1, [0.0] * 40)], np.array([0, 1]))
    assert long[0][15] == long[0][39] == pytest.approx(1 / 27) and long[0][14] == pytest.approx(1 / 3)


def bench(seed=1):
    rng = np.random.default_rng(seed)
    solutions, scores = [], []
    for number in range(90):
        kind = ("circular", "deception", measures.ONE_SOLUTION)[number % 3]
        wrong = rng.random(int(rng.integers(2, 8))) < (0 if kind == measures.ONE_SOLUTION else 0.3)
        solutions.append(solution(number, (1.0 - wrong).tolist(), format="prmbench", split=kind))
        scores.append(np.clip(rng.normal(np.where(wrong, 0.5, 0.6), 0.2), 0, 1))
    return measures.Judged(solutions, scores, measures.halves([s.group for s in solutions], 0), 0)


def test_classes_are_scored_as_prmbench_scores_them():
    judged = bench()
    found = rows(measures.error_classes(judged, 0.5), MODEL)
    assert [each.name for each in found] == ["circular", "deception", measures.ONE_SOLUTION, ALL]
    for row in found:
        places = [i for i, each in enumerate(judged.solutions) if row.name in (ALL, each.split)]
        y = np.concatenate([judged.solutions[i].labels for i in places])
        called = np.concatenate([judged.scores[i] for i in places]) >= 0.5
        assert row.f1 == pytest.approx(f1_score(y, called)) and (row.right, row.wrong) == (y.sum(), (1 - y).sum())
        if row.name == measures.ONE_SOLUTION:
            assert math.isnan(row.negative_f1) and row.score.value == row.f1
        else:
            assert row.negative_f1 == pytest.approx(f1_score(y, called, pos_label=0))
            assert row.score.value == pytest.approx((row.f1 + row.negative_f1) / 2)
    assert found[-1].score.lower < found[-1].score.value < found[-1].score.upper
    assert [each.negative_f1 for each in rows(measures.error_classes(judged, 0.5), ALWAYS)[:2]] == [0, 0]


def test_the_threshold_for_prmbench_is_the_best_of_the_other_half():
    judged = bench()
    row = rows(measures.error_classes(judged, 0.5), MODEL, OTHER_HALF)[-1]

    def score(at, side):
        places = np.flatnonzero(judged.half == side)
        y = np.concatenate([judged.solutions[i].labels for i in places])
        called = np.concatenate([judged.scores[i] for i in places]) >= at
        agreed = np.array([y.astype(bool) & called, (1 - y).astype(bool) & ~called]).sum(1)
        return (2 * agreed / np.array([y.sum() + called.sum(), (1 - y).sum() + (~called).sum()])).mean()

    for side, at in enumerate(row.thresholds):
        best = max(score(each, 1 - side) for each in np.linspace(0.2, 0.8, 121))
        assert score(at, 1 - side) >= best - 0.01


def test_a_step_that_was_not_read_counts_as_misjudged():
    labels = [1.0, 1.0, 0.0, 0.0]
    judged = measures.Judged(
        [solution(0, labels, format="prmbench", split="circular")],
        [np.array([0.9, math.nan, 0.1, math.nan])],
        np.array([0]),
        0,
    )
    row = rows(measures.error_classes(judged, 0.5), MODEL)[0]
    assert row.f1 == row.negative_f1 == 0.5 and (row.right, row.wrong) == (2, 2)


def test_auroc_of_the_steps_that_are_known_and_read():
    judged = drawn(260)
    found = {each.split: each for each in measures.discrimination("processbench", judged)}
    position = measures.position_scores(judged.solutions, judged.half)
    assert list(found) == ["gsm8k", "math", ALL]
    for split, row in found.items():
        y, r, p = [], [], []
        for each, scores, prior in zip(judged.solutions, judged.scores, position, strict=True):
            for t, label in enumerate(each.labels):
                if split in (ALL, each.split) and label is not None and not math.isnan(scores[t]):
                    y.append(label), r.append(scores[t]), p.append(prior[t])
        assert row.model.value == pytest.approx(roc_auc_score(y, r)) and row.right == sum(y)
        assert row.position.value == pytest.approx(roc_auc_score(y, p)) and row.wrong == len(y) - sum(y)
        assert row.gain.value == pytest.approx(row.model.value - row.position.value)
        assert row.gain.lower < row.gain.value < row.gain.upper and row.model.lower > 0.5
    assert found[ALL].unread == sum(
        label is not None and math.isnan(r)
        for each, scores in zip(judged.solutions, judged.scores, strict=True)
        for label, r in zip(each.labels, scores, strict=True)
    )
    few = measures.discrimination("processbench", drawn(40))[-1]
    assert math.isnan(few.model.lower) and few.model.value > 0.5


def test_nothing_to_tell_apart_is_undefined():
    judged = measures.Judged([solution(0, [1.0, None])], [np.array([0.4, 0.9])], np.array([0]), 0)
    (row,) = measures.discrimination("processbench", judged)
    assert math.isnan(row.model.value) and row.wrong == 0
    assert all(math.isnan(each.f1.value) for each in measures.first_errors("processbench", judged, 0.5))
    assert np.isnan(rows(measures.first_errors("processbench", judged, 0.5), MODEL, OTHER_HALF)[0].thresholds).all()


def test_best_of_n_and_its_controls():
    """Two problems that the choice decides, one that it does not, one with a solution that nobody judged, one alone."""
    table = [
        ("a", True, [0.9, 0.2]), ("a", False, [0.5, 0.5]),
        ("b", False, [0.8]), ("b", True, [0.9, 0.7, 0.9]),
        ("c", False, [0.1]), ("c", False, [0.2]),
        ("d", True, [0.9]), ("d", None, [0.1]),
        ("e", True, [0.9]),
    ]  # fmt: skip
    solutions = [solution(i, [1.0] * len(r), group=g, correct=c) for i, (g, c, r) in enumerate(table)]
    judged = measures.Judged(solutions, [np.array(r) for *_, r in table], np.zeros(9, int), 0)
    found, counts = measures.best_of(judged)
    assert counts == {"problems": 3, "solutions": 6, "decided": 2}
    solved = {each.how: each.solved.value for each in found}
    expected = {"mean": 2, "min": 0, "max": 2, "product": 0, "geometric-mean": 1, "sum": 2}
    assert {how: solved[how] * 3 for how in expected} == pytest.approx(expected)
    assert solved["one at random"] == pytest.approx(1 / 3) and solved["the first"] == pytest.approx(1 / 3)
    assert solved["any right one (oracle)"] == pytest.approx(2 / 3)
    assert measures.best_of(judged.of(np.array([6, 7, 8]))) == ([], {})
    alike = measures.Judged(judged.solutions[:4], [np.full(2, 0.5)] * 4, np.zeros(4, int), 0)
    assert {each.solved.value for each in measures.best_of(alike)[0] if each.how in expected} == {0.5}


def test_the_worst_misjudgements():
    judged = measures.Judged(
        [solution(0, [1.0, 0.0, None]), solution(1, [1.0, 0.0])],
        [np.array([0.2, 0.9, 0.0]), np.array([math.nan, 0.3])],
        np.zeros(2, int),
        0,
    )
    found = measures.misjudged(judged, 4)
    assert [(each.id, each.at, each.right, each.probability) for each in found] == [
        ("s0", 1, False, 0.9),
        ("s1", 1, False, 0.3),
        ("s0", 0, True, 0.2),
    ]
    assert measures.misjudged(judged.judged_by(POSITION), 2)[0].right is False
