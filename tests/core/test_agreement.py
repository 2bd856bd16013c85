"""Agreement and shares: kappas and alpha against published examples and by hand, intervals against their formulas."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from equipoise.core.agreement import (
    Z,
    cohen_kappa,
    corrected,
    correlation,
    effective_size,
    fleiss_kappa,
    krippendorff_alpha,
    share,
)
from equipoise.core.shares import Share
from equipoise.core.statistics import wilson

NAN = math.nan


def table(counts) -> tuple[list[int], list[int]]:
    pairs = [(i, j) for i, row in enumerate(counts) for j, often in enumerate(row) for _ in range(often)]
    return [i for i, _ in pairs], [j for _, j in pairs]


@pytest.mark.parametrize(
    "counts", [[[20, 5], [10, 15]], [[30, 4], [2, 4]]]
)  # by chance 0.5 of the first, 0.71 of the other
def test_kappa_is_that_of_the_textbook_with_its_large_sample_interval(counts):
    counts = np.array(counts)
    a, b = table(counts)
    size = len(a)
    found = cohen_kappa(a, b, [str(i) for i in range(size)], 2, ordered=False)
    p = counts / size
    rows, columns, o = p.sum(1), p.sum(0), np.trace(p)
    e = rows @ columns
    assert found.value == pytest.approx((o - e) / (1 - e))
    # Fleiss, Cohen and Everitt (1969), eq. 13, term by term.
    own = sum(p[i, i] * ((1 - e) - (rows[i] + columns[i]) * (1 - o)) ** 2 for i in range(2))
    cross = sum(p[i, j] * (columns[i] + rows[j]) ** 2 for i in range(2) for j in range(2) if i != j)
    variance = (own + (1 - o) ** 2 * cross - (o * e - 2 * e + o) ** 2) / (size * (1 - e) ** 4)
    half = stats.t.ppf(0.975, size - 1) * math.sqrt(variance * size / (size - 1))
    assert (found.lower, found.upper) == pytest.approx((found.value - half, found.value + half))


def test_kappa_of_scores_weighs_by_the_square_of_the_distance():
    a, b = table([[4, 2, 0], [1, 3, 2], [1, 0, 5]])
    off = np.mean([(i - j) ** 2 for i, j in zip(a, b, strict=True)])
    by_chance = np.mean([(i - j) ** 2 for i in a for j in b])
    groups = [str(i) for i in range(18)]
    assert cohen_kappa(a, b, groups, 3, ordered=True).value == pytest.approx(1 - off / by_chance)
    assert cohen_kappa(a, b, groups, 3, ordered=False).value != pytest.approx(1 - off / by_chance, abs=0.05)


def test_agreement_that_cannot_be_otherwise_has_no_number():
    groups = [str(i) for i in range(6)]
    assert math.isnan(cohen_kappa([1] * 6, [1] * 6, groups, 2, ordered=False).value)
    perfect = cohen_kappa([0, 1] * 3, [0, 1] * 3, groups, 2, ordered=False)
    assert perfect.value == 1 and math.isnan(perfect.lower) and math.isnan(perfect.upper)
    assert math.isnan(cohen_kappa([], [], [], 2, ordered=False).value)


def test_copies_of_an_answer_make_nothing_surer():
    generator = np.random.default_rng(3)
    a, b, x = generator.integers(2, size=40), generator.integers(2, size=40), generator.normal(size=40)
    groups = [str(i) for i in range(40)]
    thrice = [np.repeat(each, 3) for each in (a, b, x, groups)]
    one, three = (
        cohen_kappa(a, b, groups, 2, ordered=False),
        cohen_kappa(*thrice[:2], list(thrice[3]), 2, ordered=False),
    )
    assert (three.value, three.lower, three.upper) == pytest.approx((one.value, one.lower, one.upper))
    one, three = correlation(a, x, groups), correlation(thrice[0], thrice[2], list(thrice[3]))
    assert (three.value, three.lower, three.upper) == pytest.approx((one.value, one.lower, one.upper))
    # As many independent ones as there are clusters, less one for the mean, and t for z.
    assert effective_size(thrice[0], list(thrice[3])) == pytest.approx(39 * (Z / stats.t.ppf(0.975, 39)) ** 2)
    assert effective_size([1.0] * 9, list("aaabbbccc")) == 3 and effective_size([1, 0], ["a", "a"]) == 0
    assert effective_size([NAN, NAN], ["a", "a"]) == 0  # credits that nobody knows tell nothing


def test_a_share_says_what_is_missing_and_what_that_could_change():
    found = share([1, 1, 0], list("abc"), missing=2)
    assert (found.rate, found.least, found.most) == (2 / 3, 2 / 5, 4 / 5)
    assert (found.lower, found.upper) == wilson(2, 3)
    nothing = share([], [], missing=1)
    assert math.isnan(nothing.rate) and math.isnan(nothing.lower) and (nothing.least, nothing.most) == (0, 1)
    # Credits between 0 and 1 vary less than right and wrong, and are surer for that, but not surer than all of them.
    half = share([0.5] * 4 + [1.0] * 4, list("abcdefgh"))
    assert half.rate == 0.75 and half.upper - half.lower == pytest.approx(np.diff(wilson(6, 8))[0])


def test_correlation_is_pearsons_whatever_the_unit():
    x, y = np.array([0, 1, 1, 0, 1.0]), np.array([3, 5, 9, 2, 4.0])
    found = correlation(x, y, list("abcde"))
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1]) and -1 <= found.lower < found.value < found.upper <= 1
    same = correlation(x, 1e9 * y + 1e3, list("abcde"))
    assert (same.value, same.lower) == pytest.approx((found.value, found.lower))
    other = correlation(y, x, list("abcde"))
    assert (other.value, other.lower) == pytest.approx((found.value, found.lower))
    # As many as three, and neither of them all the same.
    for one, two in (([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [1, 1, 1]), ([1, 2], [2, 4])):
        assert math.isnan(correlation(one, two, list("abc")[: len(one)]).value)
    # An interval ends where the values of a correlation do.
    for sign in (1, -1):
        steep = correlation([0, 1, 2, 3], sign * np.array([0, 1, 2, 2.5]), list("abcd"))
        assert abs(steep.value) > 0.98 and (steep.upper if sign == 1 else steep.lower) == sign
    straight = correlation([1, 2, 4], [2, 4, 8], list("abc"))
    assert straight.value == pytest.approx(1) and math.isnan(straight.lower)


def errors(count: int, of: int) -> Share:
    return Share(count, of, 0, of, *wilson(count, of))


def test_errors_of_a_grader_are_taken_out_of_its_share():
    found = corrected(errors(100, 200), errors(5, 50), errors(10, 50))
    assert found.value == pytest.approx((0.5 + 0.8 - 1) / (0.9 + 0.8 - 1))
    # Lang and Reiczigel (2014), written out.
    z = 1.959963984540054
    n, q, se, sp = 200 + z**2, (100 + z**2 / 2) / (200 + z**2), 46 / 52, 41 / 52
    p = (q + sp - 1) / (se + sp - 1)
    shift = 2 * z**2 * (p * se * (1 - se) / 52 - (1 - p) * sp * (1 - sp) / 52)
    variance = q * (1 - q) / n + p**2 * se * (1 - se) / 52 + (1 - p) ** 2 * sp * (1 - sp) / 52
    half = z * math.sqrt(variance) / (se + sp - 1)
    assert (found.lower, found.upper) == pytest.approx((p + shift - half, p + shift + half))
    # Of clusters, no more is known than as many independent answers would tell.
    few = [replace(errors(*counts), size=10) for counts in ((100, 200), (5, 50), (10, 50))]
    alone = corrected(errors(5, 10), errors(1, 10), errors(2, 10))
    assert corrected(*few) == alone and alone.upper - alone.lower > 2 * (found.upper - found.lower)
    # Known from so few that chance might do as well: the share may be anything.
    for accepted, value in ((90, 0.5), (80, 0.0), (100, 1.0)):
        vague = corrected(errors(accepted, 100), errors(0, 1), errors(16, 20))
        assert (vague.value, vague.lower, vague.upper) == (pytest.approx(value), 0, 1)
    for accepted, value in ((90, 1), (10, 0)):
        vague = corrected(errors(accepted, 100), errors(2, 5), errors(29, 50))
        assert (vague.value, vague.lower, vague.upper) == (value, 0, 1)
    # A perfect grader that is known to be perfect leaves the share as it is, with the interval of Agresti and Coull.
    sure = corrected(errors(30, 100), errors(0, 10**6), errors(0, 10**6))
    n, q = 100 + z**2, (30 + z**2 / 2) / (100 + z**2)
    assert sure.value == pytest.approx(0.3)
    assert (sure.lower, sure.upper) == pytest.approx(
        (q - z * math.sqrt(q * (1 - q) / n), q + z * math.sqrt(q * (1 - q) / n)), abs=1e-4
    )
    # The share of a perfect grader may be all of them or none, and no more or less than that.
    for count in (0, 100):
        sure = corrected(errors(count, 100), errors(0, 10**6), errors(0, 10**6))
        assert (sure.value, sure.lower if count == 0 else sure.upper) == (count / 100, count / 100)
    # Plants that, with a success and a failure added to either, are accepted as often as they should be and not: 3 / 4 each.
    even = corrected(errors(50, 100), errors(0, 2), Share(3.5, 4, 0, 4, NAN, NAN))
    assert (even.value, even.lower, even.upper) == (0, 0, 1)
    assert math.isnan(corrected(errors(50, 100), errors(3, 10), errors(7, 10)).value)
    assert math.isnan(corrected(errors(50, 100), errors(0, 0), errors(0, 10)).value)


def test_the_corrected_interval_holds_what_it_promises():
    generator, right, held = np.random.default_rng(1), 0.3, 0
    for _ in range(400):
        accepted = errors(generator.binomial(150, right * 0.85 + (1 - right) * 0.1), 150)
        found = corrected(accepted, errors(generator.binomial(40, 0.15), 40), errors(generator.binomial(40, 0.1), 40))
        held += found.lower <= right <= found.upper
    assert 0.93 <= held / 400 <= 0.99


# --- many raters ---------------------------------------------------------------------------------------------------


def test_kappa_of_the_published_example():
    """14 raters, 10 subjects, 5 categories, kappa 0.210: the worked example of Fleiss' kappa in Wikipedia."""
    table = """0 0 0 0 14|0 2 6 4 2|0 0 3 5 6|0 3 9 2 0|2 2 8 1 1|7 7 0 0 0|3 2 6 3 0|2 5 3 2 2|6 5 2 1 0|0 2 2 3 7"""
    counts = [list(map(int, row.split())) for row in table.split("|")]
    ratings = [[category for category, count in enumerate(row) for _ in range(count)] for row in counts]
    assert fleiss_kappa(ratings) == pytest.approx(0.20993, abs=1e-5)


def test_alpha_of_the_published_example():
    """Krippendorff (2011), Computing Krippendorff's Alpha-Reliability, C: four observers, missing data, nominal 0.743."""
    observers = """1 2 3 3 2 1 4 1 2 . . .|1 2 3 3 2 2 4 1 2 5 . 3|. 3 3 3 2 3 4 2 2 5 1 .|1 2 3 3 2 4 4 1 2 5 1 ."""
    ratings = [[NAN if each == "." else float(each) for each in row.split()] for row in observers.split("|")]
    assert krippendorff_alpha(np.array(ratings).T) == pytest.approx(0.743, abs=5e-4)


def test_agreement_that_cannot_be_told():
    assert fleiss_kappa([[1, 1], [0, 0]]) == krippendorff_alpha([[1, 1], [0, 0]]) == 1
    for ratings in (np.empty((0, 3)), [[1, 1], [1, 1]], [[1], [0]], [[1, NAN], [NAN, 0]]):
        assert math.isnan(fleiss_kappa(ratings)) and math.isnan(krippendorff_alpha(ratings))
    # Two raters, one of four items disagreed on: Pe = (5/8)^2 + (3/8)^2 = 17/32, (3/4 - 17/32) / (15/32) = 7/15.
    assert fleiss_kappa([[1, 1], [1, 1], [0, 0], [1, 0], [NAN, 1]]) == pytest.approx(7 / 15)


def test_agreement_of_three_raters_and_of_categories_that_are_no_verdicts():
    ratings = [[1, 1, 2], [2, 2, 2], [1, 3, 2], [1, 1, 1]]
    # Agreeing couples of three by item: 1, 3, 0, 3 of 3; shares of the categories 5, 1 and 6 of 12.
    chance = (5 / 12) ** 2 + (1 / 12) ** 2 + (6 / 12) ** 2
    assert fleiss_kappa(ratings) == pytest.approx((7 / 12 - chance) / (1 - chance))
    # Of 12 x 11 ordered couples of ratings 12^2 - (25 + 1 + 36) differ.
    assert krippendorff_alpha(ratings) == pytest.approx(1 - (5 / 12) / ((144 - 62) / 132))
    # Unequal numbers of ratings: an item with one takes no part, others weigh by theirs less one.
    some = [[1, 2, NAN], [1, 1, 1], [2, NAN, NAN], [2, 2, NAN]]
    # Differing couples: 2 of the first / 1; values 4 x 1, 3 x 2: 49 - 25 = 24 of 42.
    assert krippendorff_alpha(some) == pytest.approx(1 - 2 / (24 / 6))
