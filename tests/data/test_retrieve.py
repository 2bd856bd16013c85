import math
import random

import numpy as np
import pytest

from equipoise.core.errors import BadInput
from equipoise.data.answers import normalize
from equipoise.data.retrieve import TextIndex, fuse

CLINIC = ["the clinic opens at 9", "the clinic moved to 11", "the doctor is Li", "the clinic is far from the clinic"]


def lucene(texts, query, k1=1.5, b=0.75):
    """Robertson's weights with Lucene's idf, a text at a time."""
    words = [normalize(text).split() for text in texts]
    mean = sum(map(len, words)) / len(words)
    scores = []
    for text in words:
        score = 0.0
        for word in normalize(query).split():
            holding = sum(word in other for other in words)
            idf = math.log(1 + (len(words) - holding + 0.5) / (holding + 0.5))
            count = text.count(word)
            score += idf * count / (count + k1 * (1 - b + b * len(text) / mean))
        scores.append(score)
    return np.asarray(scores)


def test_words_score_as_robertson_and_lucene_say():
    hits = TextIndex(CLINIC).search("Clinic, doctor? 11", 9)
    expected = lucene(CLINIC, "clinic doctor 11")
    assert hits.places.tolist() == np.argsort(-expected, kind="stable").tolist()
    np.testing.assert_allclose(hits.scores, expected[hits.places], rtol=1e-6)


def test_texts_without_a_common_word_are_not_found():
    assert TextIndex(CLINIC).search("doctor", 9).places.tolist() == [2]
    assert TextIndex(CLINIC).search("zebra", 9).places.tolist() == []
    assert TextIndex([]).search("zebra", 9).places.tolist() == []
    assert TextIndex(["", "..."]).search("zebra", 9).places.tolist() == []


def test_a_search_as_of_a_moment_is_the_search_of_the_index_of_that_moment():
    draw = random.Random(0)
    words = [f"w{index}" for index in range(12)]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(60)]
    times = [draw.randrange(20) for _ in texts]
    vectors = np.random.default_rng(0).normal(size=(60, 5))
    index = TextIndex(texts, vectors, times)
    for until in (19, 3, 11, 0, -1):
        older = [place for place, time in enumerate(times) if time <= until]
        alone = TextIndex([texts[p] for p in older], vectors[older].reshape(-1, 5), [times[p] for p in older])
        for query, vector in (("w1 w2 w2", None), ("", vectors[0]), ("w3", vectors[1])):
            seen, expected = (
                index.search(query, 7, vector=vector, until=until),
                alone.search(query, 7, vector=vector),
            )
            assert seen.places.tolist() == [older[place] for place in expected.places]
            assert seen.scores.tolist() == expected.scores.tolist()


def test_an_index_that_grew_is_the_index_of_all():
    draw = random.Random(1)
    texts = [" ".join(draw.choices(["w1", "w2", "w3", "w4"], k=draw.randint(0, 5))) for _ in range(30)]
    times = [draw.randrange(9) for _ in texts]
    vectors = np.random.default_rng(1).normal(size=(30, 4))
    grown, whole = TextIndex([], np.empty((0, 4)), []), TextIndex(texts, vectors, times)
    for first, last in ((0, 7), (7, 7), (7, 30)):
        grown.add(texts[first:last], vectors[first:last], times[first:last])
        grown.search("w1", 3, vector=vectors[0])  # what was searched for before leaves nothing behind
    for until in (None, 4, 8):
        for query, vector in (("w1 w3", None), ("", vectors[2]), ("w4", vectors[3])):
            seen, expected = (index.search(query, 9, vector=vector, until=until) for index in (grown, whole))
            assert (seen.places.tolist(), seen.scores.tolist()) == (expected.places.tolist(), expected.scores.tolist())


def test_what_cannot_be_added_leaves_the_index_as_it_was():
    index = TextIndex(["cat"], [[1.0, 0]], [1])
    for wrong, named in (
        ((["dog"],), "of all of its texts or of none"),
        ((["dog"], [[1.0]], [2]), "have 1 numbers, those of the texts before 2"),
        ((["dog"], [[0.0, 1]], []), "0 times for 1 texts"),
        ((["dog"], [[0.0, 1]], ["x"]), "cannot be compared"),
    ):
        with pytest.raises(BadInput, match=named):
            index.add(*wrong)
    assert len(index) == 1
    assert index.search("cat dog", 5, vector=[1, 1], until=1).places.tolist() == [0]


def test_cosines_do_not_see_the_length_of_a_vector():
    vectors = [[1.0, 0], [0, 2], [3, 3], [-5, 0]]
    hits = TextIndex(["a", "b", "c", "d"], vectors).search("", 4, vector=[10, 1])
    assert hits.places.tolist() == [0, 2, 1, 3]
    np.testing.assert_allclose(hits.scores, np.array([10, 11 / math.sqrt(2), 1, -10]) / math.sqrt(101))


def test_reciprocal_ranks_are_summed():
    hits = fuse([[4, 2, 7], [2, 9]])
    assert hits.places.tolist() == [2, 4, 9, 7]
    np.testing.assert_allclose(hits.scores, [1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63])
    assert fuse([]).places.tolist() == []
    assert fuse([[5], [3]]).places.tolist() == [3, 5]
    both = TextIndex(["cat", "dog"], [[1.0, 0], [0, 1]]).search("dog", 2, vector=[1, 0])
    np.testing.assert_allclose(both.scores, [1 / 61 + 1 / 62, 1 / 61])
    assert both.places.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: TextIndex(["a"], [[1.0], [2.0]]), r"shape \[2, 1\], expected \[1, width\]"),
        (lambda: TextIndex(["a"], [[0.0, 0.0]]), "Vector 0 is no direction"),
        (lambda: TextIndex(["a"], [[math.nan, 0.0]]), "Vector 0 is no direction"),
        (lambda: TextIndex(["a"], times=[1, 2]), "2 times for 1 texts"),
        (lambda: TextIndex(["a", "b"], times=[1, "x"]), "cannot be compared"),
        (lambda: TextIndex(["a"]).search("a", 0), "k is 0"),
        (lambda: TextIndex(["a"]).search("  ", 1), "query is empty"),
        (lambda: TextIndex(["a"]).search("a", 1, until=3), "no times"),
        (lambda: TextIndex(["a"], times=[1]).search("a", 1, until="x"), "cannot be compared"),
        (lambda: TextIndex(["a"]).search("", 1, vector=[1.0]), "no vectors"),
        (lambda: TextIndex(["a"], [[1.0, 0]]).search("", 1, vector=[1.0]), "has 1 numbers, those of the texts 2"),
        (lambda: fuse([[1, 1]]), "holds a place twice"),
        (lambda: fuse([[1]], constant=-1), "constant of a fusion is -1"),
    ],
)
def test_what_cannot_be_searched_is_named(make, named):
    with pytest.raises(BadInput, match=named):
        make()


def test_a_time_that_is_none_is_refused_since_nothing_would_be_older_than_it():
    with pytest.raises(BadInput, match="Time 1 is nan"):
        TextIndex(CLINIC[:3], times=[3, math.nan, 1])
    with pytest.raises(BadInput, match="Time 0 is NaT"):
        TextIndex(CLINIC[:1], times=np.array(["NaT"], "datetime64[s]"))
    with pytest.raises(BadInput, match="until is nan"):
        TextIndex(CLINIC[:3], times=[3, 2, 1]).search("clinic", 3, until=math.nan)


def test_texts_of_one_vector_stand_in_order_wherever_they_are_in_the_matrix():
    draw = np.random.default_rng(0)
    for size, width in zip(draw.integers(2, 40, 60).tolist(), draw.integers(2, 80, 60).tolist(), strict=True):
        which = draw.integers(0, 3, size)
        index = TextIndex(["same"] * size, vectors=draw.normal(size=(3, width))[which])
        places = index.search("", size, vector=draw.normal(size=width)).places.tolist()
        for one in range(3):
            mine = [place for place in places if which[place] == one]
            assert mine == sorted(mine)


def test_an_index_says_nothing_and_takes_no_half_of_what_the_others_have(capfd):
    pytest.importorskip("bm25s")
    index = TextIndex(CLINIC)
    assert len(index.search("clinic", 9).places) == 3
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    both = TextIndex(["a"], vectors=[[1.0]], times=[1])
    for more in ({}, {"vectors": [[1.0]]}, {"times": [2]}):
        with pytest.raises(BadInput, match="of all of its texts or of none"):
            both.add(["b"], **more)
    both.add(["b"], vectors=[[2.0]], times=[2])
    for more in ({"vectors": [[1.0]]}, {"times": [2]}):
        with pytest.raises(BadInput, match="of all of its texts or of none"):
            TextIndex(["a"]).add(["b"], **more)
