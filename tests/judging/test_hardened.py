"""Construction of a harder set: the filter by hand, files read back."""

import json
import math

import numpy as np
import pytest

from equipoise.core.agreement import fleiss_kappa, krippendorff_alpha
from equipoise.core.errors import BadInput
from equipoise.judging import hardened
from equipoise.judging.hardened import Variant, harden
from equipoise.judging.pairs import Pair, read_pairs

NAN = math.nan


def variants_of(originals=2, biases=("length", "Authority bias")):
    """Every original with every bias; rejected answers of 20 characters become 22 and 26."""
    return [
        Variant(
            Pair(f"p{i}", f"question {i}", "right", "r" * 20, domain=f"d{i % 2}", group=f"g{i}"),
            bias,
            "r" * (22 + 4 * number),
        )
        for i in range(originals)
        for number, bias in enumerate(biases)
    ]


FOOLED, RIGHT, TURNED, UNREAD = [0, 0], [1, 1], [1, 0], [NAN, 0]


def test_a_variant_is_kept_when_enough_judges_are_fooled_in_both_orders():
    right = [
        [FOOLED, FOOLED, FOOLED, RIGHT],
        [FOOLED, FOOLED, TURNED, RIGHT],
        [FOOLED, RIGHT, UNREAD, RIGHT],
    ]
    found = harden(variants_of(), right)
    assert found.fooled.tolist() == [3, 2, 1, 0]
    assert [(v.original.id, v.bias) for v in found.kept] == [("p0", "length"), ("p0", "Authority bias")]
    assert (found.answer_changed, found.too_few_votes, found.over_limit) == (0, 2, 0)
    assert found.by_bias == {"Authority bias": (1, 2), "length": (1, 2)}
    assert found.by_domain == {"d0": (2, 2), "d1": (0, 2)}
    assert found.longer == pytest.approx(20)  # 10 % and 30 %
    assert len(harden(variants_of(), right, votes=3).kept) == 1
    assert len(harden(variants_of(), right, votes=1).kept) == 3


@pytest.mark.parametrize(("judges", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (6, 4)])
def test_two_thirds_of_the_judges_rounded_up(judges, needed):
    for fooled in range(judges + 1):
        right = np.array([[FOOLED if judge < fooled else RIGHT] for judge in range(judges)])
        assert bool(harden(variants_of(1, ("length",)), right).kept) == (fooled >= needed)


def test_a_rewrite_that_changes_the_answer_is_left_out_whoever_is_fooled():
    pair = Pair("p", "q", "The answer is 4.", "The answer is 5.")
    variants = [Variant(pair, "length", text) for text in ("Surely the answer is 5!", "The answer is 4.", "No answer.")]
    found = harden(variants, np.zeros((1, 3, 2)))
    assert [v.rejected for v in found.kept] == ["Surely the answer is 5!"] and found.answer_changed == 2


def test_at_most_so_many_variants_of_one_original():
    biases = tuple("abcd")
    right = np.ones((3, 8, 2))
    right[:, 2] = right[:2, 0] = right[:2, 1] = right[:2, 5] = 0  # three judges, two, two; two
    found = harden(variants_of(2, biases), right, most=2)
    kept = [(v.original.id, v.bias) for v in found.kept]
    assert ("p0", "c") in kept and ("p1", "b") in kept and len(kept) == 3 and found.over_limit == 1
    drawn = {harden(variants_of(2, biases), right, most=2, seed=seed).kept[0].bias for seed in range(12)}
    assert drawn == {"a", "b"}  # equals are drawn, not taken by place (kept[0] is p0's a or b)


def test_nothing_to_filter_and_impossible_votes():
    found = harden([], np.empty((3, 0, 2)))
    assert found.kept == () and math.isnan(found.longer) and math.isnan(found.kappa) and math.isnan(found.alpha)
    with pytest.raises(BadInput, match="4 votes of 3 filter judges"):
        harden([], np.empty((3, 0, 2)), votes=4)
    with pytest.raises(BadInput, match="0 votes of 0 filter judges"):
        harden([], np.empty((0, 0, 2)))
    with pytest.raises(ValueError, match=r"\[judges, 4, 2\]"):
        harden(variants_of(), np.ones((3, 4)))


def test_verdicts_are_the_ratings():
    """Two judges, two variants, both orders: they agree on three of the four verdicts 00 11 / 00 01."""
    found = harden(variants_of(1), [[[0, 0], [1, 1]], [[0, 0], [0, 1]]])
    expected = [[0, 0], [0, 0], [1, 0], [1, 1]]
    assert found.kappa == pytest.approx(fleiss_kappa(expected)) and found.kappa == pytest.approx(7 / 15)
    assert found.alpha == pytest.approx(krippendorff_alpha(expected)) != found.kappa


# --- files ----------------------------------------------------------------------------------------------------------


def test_judgebench_rows_come_back_as_the_same_pairs(tmp_path):
    variants = variants_of(3, ("length", "Authority bias", "sentiment"))
    rows = hardened.judgebench_rows(variants, source="somewhere")
    hardened.write_rows(tmp_path / "hard.jsonl", rows)
    pairs = read_pairs(tmp_path / "hard.jsonl")
    assert [(p.id, p.question, p.chosen, p.rejected, p.domain, p.group, p.bias) for p in pairs] == [
        (v.pair.id, v.original.question, "right", v.rejected, v.original.domain, v.original.group, v.bias)
        for v in variants
    ]
    assert pairs[1].id == "p0:authority" and rows[1]["original_id"] == "p0" and rows[1]["source"] == "somewhere"
    assert {"pair_id", "original_id", "source", "question", "response_model", "response_A", "response_B"} < rows[
        0
    ].keys()


def test_the_better_answer_stands_first_in_half_of_the_rows():
    for count in (7, 8):
        rows = hardened.judgebench_rows(variants_of(count, ("length",)))
        first = [row["label"] == "A>B" for row in rows]
        assert sum(first) == 4 and first != sorted(first, reverse=True)
        assert all((row["response_A"] == "right") == its for row, its in zip(rows, first, strict=True))
        assert rows == hardened.judgebench_rows(variants_of(count, ("length",)))
    labels = {tuple(row["label"] for row in hardened.judgebench_rows(variants_of(8), seed=s)) for s in range(5)}
    assert len(labels) == 5


def test_preference_rows_rewrite_the_share_that_was_asked_for(tmp_path):
    variants = variants_of(10)
    pairs = [variant.original for variant in variants[::2]]
    rows = hardened.preference_rows(pairs, variants)
    assert [list(row) for row in rows] == [["prompt", "chosen", "rejected"]] * 10
    assert [row["prompt"] for row in rows] == [pair.question for pair in pairs]
    lengths = [len(row["rejected"]) for row in rows]
    assert sorted(lengths) == [20] * 5 + [22] * 3 + [26] * 2  # biases in turn
    assert rows == hardened.preference_rows(pairs, variants) != hardened.preference_rows(pairs, variants, seed=1)
    assert hardened.preference_rows(pairs, variants, share=0)[3]["rejected"] == "r" * 20
    assert sum(len(row["rejected"]) > 20 for row in hardened.preference_rows(pairs, variants[:4])) == 2
    hardened.write_rows(tmp_path / "dpo.jsonl", rows)
    assert [json.loads(line) for line in (tmp_path / "dpo.jsonl").read_text().splitlines()] == rows
    with pytest.raises(BadInput, match=r"share of rewritten answers is 1\.5"):
        hardened.preference_rows(pairs, variants, share=1.5)


def test_preference_rows_take_no_rewrite_that_repairs_the_answer():
    pair = Pair("p", "q", "The answer is 4.", "The answer is 5.")
    repaired = Variant(pair, "length", "The answer is 4.")
    assert hardened.preference_rows([pair], [repaired], share=1)[0]["rejected"] == "The answer is 5."


def test_draws_are_those_of_seed_42_unless_told_otherwise():
    variants = variants_of(12, tuple("abcd"))
    right = np.zeros((1, len(variants), 2))
    kept = [[v.bias for v in harden(variants, right, most=1, **how).kept] for how in ({}, {"seed": 42}, {"seed": 43})]
    assert kept[0] == kept[1] != kept[2] and len(kept[0]) == 12
    rows = [hardened.judgebench_rows(variants, **how) for how in ({}, {"seed": 42}, {"seed": 43})]
    assert rows[0] == rows[1] != rows[2]
    pairs = [variant.original for variant in variants[::4]]
    rows = [hardened.preference_rows(pairs, variants, **how) for how in ({}, {"seed": 42, "share": 0.5}, {"seed": 43})]
    assert rows[0] == rows[1] != rows[2]


def test_a_row_of_judgebench_field_by_field():
    (variant,) = variants_of(1, ("Authority bias",))
    for seed in range(9):
        (row,) = hardened.judgebench_rows([variant], seed=seed)
        assert row == {
            "pair_id": "p0:authority",
            "original_id": "p0",
            "source": "",
            "question": "question 0",
            "response_model": "",
            "response_A": "right",
            "response_B": "r" * 22,
            "label": "A>B",
            "domain": "d0",
            "bias": "Authority bias",
            "group": "g0",
        }
    (turned,) = [row for row in hardened.judgebench_rows([variant] * 2) if row["label"] == "B>A"]
    assert (turned["response_A"], turned["response_B"]) == ("r" * 22, "right")
    spaced = Variant(variant.original, "A long_Name bias", "x")
    assert (spaced.pair.id, spaced.pair.bias, spaced.pair.rejected) == ("p0:a-long-name", "A long_Name bias", "x")
    assert spaced.longer == -95 and Variant(variant.original, "b", "\ud83d").rejected == "\ufffd"


def test_without_a_limit_all_variants_that_pass_are_kept():
    variants = variants_of(2, tuple("abc"))
    right = np.zeros((1, 6, 2))
    assert len(harden(variants, right).kept) == 6 and harden(variants, right).over_limit == 0
    for most in (1, 2, 3, 4):
        found = harden(variants, right, most=most)
        assert len(found.kept) == 2 * min(most, 3) and found.over_limit == 6 - 2 * min(most, 3)
    nothing = hardened.Hardened((), np.zeros(0), 0, 0, 0)
    assert nothing.by_bias == nothing.by_domain == {}
    assert all(math.isnan(each) for each in (nothing.longer, nothing.kappa, nothing.alpha))


def test_preferences_take_the_bias_that_was_taken_least():
    pairs = [Pair(f"p{n}", f"q{n}", "right", "wrong") for n in range(9)]
    variants = [Variant(pair, bias, f"{bias}{pair.id}") for pair in pairs for bias in "abc"]
    rows = hardened.preference_rows(pairs, variants, share=1)
    assert sorted(row["rejected"][0] for row in rows) == list("aaabbbccc")
    assert [row["rejected"][1:] for row in rows] == [pair.id for pair in pairs]
    assert [row["chosen"] for row in rows] == ["right"] * 9
    for share, count in ((0.0, 0), (0.05, 0), (0.06, 1), (0.5, 4), (0.61, 5), (1.0, 9)):
        rows = hardened.preference_rows(pairs, variants, share=share)
        assert sum(row["rejected"] != "wrong" for row in rows) == count
    for share in (-0.01, 1.01):
        with pytest.raises(BadInput, match="expected 0 to 1"):
            hardened.preference_rows(pairs, variants, share=share)


def test_rows_are_written_as_they_are(tmp_path):
    hardened.write_rows(str(tmp_path / "rows.jsonl"), [{"a": "ü"}, {"a": 1}])
    assert (tmp_path / "rows.jsonl").read_text(encoding="utf-8") == '{"a": "ü"}\n{"a": 1}\n'
