import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.data.answers import common_subsequence, contains, matches, normalize, rouge_l_recall, rouge_tokens

words = st.lists(
    st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "12", "running", "Ünal", "o'clock", "é", "-"]), max_size=14
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(reference=words, answer=words)
def test_rouge_is_that_of_rouge_score(reference, answer):
    from rouge_score.rouge_scorer import RougeScorer

    reference, answer = " ".join(reference), " ".join(answer)
    recall = rouge_l_recall(reference, answer)
    if math.isnan(recall):  # no word that rouge-score knows: it says 0
        assert not any("a" <= letter <= "z" or letter.isdigit() for letter in reference.lower())
        return
    assert recall == RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].recall


@pytest.mark.slow
def test_stemming_is_that_of_rouge_score():
    nltk = pytest.importorskip("nltk.stem.porter")
    from rouge_score.rouge_scorer import RougeScorer

    pair = ("He was running quickly to the meetings", "she runs quick to a meeting")
    expected = RougeScorer(["rougeL"], use_stemmer=True).score(*pair)["rougeL"].recall
    assert rouge_l_recall(*pair, stem=nltk.PorterStemmer().stem) == expected == 3 / 7
    assert rouge_l_recall(*pair) == 1 / 7


def test_recall_counts_the_words_of_the_reference_in_order():
    assert rouge_l_recall("the Cat sat, on a mat", "a cat: on the mat!") == 3 / 6  # cat on mat
    assert rouge_l_recall("12% of Ünal", "12 nal of") == 2 / 3  # rouge-score knows neither % nor Ü
    assert rouge_l_recall("runs runs", "runs", stem=lambda word: word[:3]) == 0.5
    assert rouge_l_recall("a b", "") == 0 and math.isnan(rouge_l_recall("?", "a"))


def table(first, second):
    row = [0] * (len(second) + 1)
    for a in first:
        before, row = row, [0]
        for j, b in enumerate(second):
            row.append(before[j] + 1 if a == b else max(before[j + 1], row[j]))
    return row[-1]


@given(first=st.lists(st.integers(0, 3), max_size=90), second=st.lists(st.integers(0, 3), max_size=90))
def test_common_subsequence_is_that_of_the_table(first, second):
    first, second = [str(x) for x in first], [str(x) for x in second]
    assert common_subsequence(first, second) == table(first, second)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The   Cat, sat!! ", "cat sat"),
        ("An apple a day", "apple day"),
        ("Don’t", "dont"),
        ("1,234,567.50 kg", "1234567.50 kg"),
        ("yes,no", "yes no"),
        ("2, 3", "2 3"),
        ("-5 or 3-5", "-5 or 3 5"),
        ("\u22125", "-5"),
        ("End.", "end"),
        ("ＡＢＣ１２", "abc12"),
        ("Bel\u200bgrun\u00ad", "belgrun"),
        ("٤٢", "42"),
        ("2\ufe0f\u20e3", "2"),
        ("cafe\u0301", "caf\u00e9"),
        ("STRASSE", "strasse"),
        ("straße", "strasse"),
        ("**Belgrun**", "belgrun"),
        ("हिन्दी", "हिन्दी"),
        ("A", "a"),
        ("", ""),
        ("?!", ""),
        ("1.5 a.b .5 5. 1:30 x:y :3 3:", "1.5 b 5 5 1:30 x y 3 3"),
        ("x-5 )-5 --5 (-5 -x 5-", "x 5 5 5 -5 x 5"),
        ("1,23 1,2345 12,345 1,234,56", "1 23 1 2345 12345 1234 56"),
        ("rock'n'roll 'tis it's’", "rocknroll tis its"),
        ("$5 a+b ☺ § ¶ “q” a_b", "$5 a+b ☺ q b"),
        ("The the", "the the"),
        ("a the an x", "x"),
        ("½ Ⅷ", "1⁄2 viii"),
    ],
)
def test_normalize(text, expected):
    assert normalize(text) == expected


@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing_more_than_once(text):
    once = normalize(text)
    assert once == once.strip() and "  " not in once


def test_words_as_rouge_score_cuts_them():
    assert rouge_tokens("The 3 cats' CAFÉ-bar_x") == ["the", "3", "cats", "caf", "bar", "x"]
    assert rouge_tokens("cats run abcd abc", stem=lambda word: word[:2]) == ["ca", "run", "ab", "abc"]
    assert rouge_tokens("") == [] and rouge_l_recall("a b c d", "d a b") == 0.5


def test_matching_takes_any_of_the_references():
    assert matches("b", ("a", "B.")) and not matches("b", ()) and not matches("b", ("a", "c"))
    assert not matches("", ["", "x"]) and not matches("?", "!")
    assert contains("x y", iter(["z", "Y"])) and not contains("x y", ["", "?"]) and not contains("x y", [])
    assert contains("x", "x") and not contains("xy", "x") and not contains("", "x")


def test_matching():
    assert matches("The answer!", "answer") and matches("B", ["A", "b"])
    assert not matches("", "") and not matches("answers", "answer")
    assert contains("It was in Belgrun, I think.", "belgrun") and contains("new york city", ["New York"])
    assert not contains("Belgruner", "Belgrun") and not contains("york new", "new york") and not contains("x", "")
