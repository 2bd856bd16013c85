"""Labels: what is read of rows, how prompts are divided, which scores and labels they hold, at every end."""

import hashlib
import json
import math

import pytest

from equipoise.core.errors import BadInput
from equipoise.routing.labels import Labels, divide, read_labels, scores_of, solved_of
from equipoise.routing.labels import tested as only_tested


def rows(*changes):
    """One row for each, of prompts of their own."""
    return [{"id": f"r{n}", "prompt": f"p{n}", "weak": 0.0, "strong": 1.0, **each} for n, each in enumerate(changes)]


def without(row, *names):
    return {name: value for name, value in row.items() if name not in names}


@pytest.mark.parametrize(
    ("weak", "strong", "said"),
    [
        ((0.0, 1.0), (1.0, 0.0), ""),
        ((-0.25, 1.0), (1.0, 0.0), "Qualities go from -0.25 to 1."),
        ((0.0, 1.0), (1.25, 0.0), "Qualities go from 0 to 1.25."),
        ((0.5, 7.0), (-2.0, 0.5), "Qualities go from -2 to 7."),
    ],
)
def test_a_scale_beyond_zero_to_one_is_noted(weak, strong, said):
    labels = read_labels(rows(*({"weak": w, "strong": s} for w, s in zip(weak, strong, strict=True))))
    notes = labels.notes()
    assert len(notes) == bool(said) and all(each.startswith(said) for each in notes)


def test_what_is_read_and_what_is_left_out(tmp_path):
    some = rows({}, {"weak": None}, {"strong": None}, {"weak": "0.5", "strong": True}, {"weak": 1, "domain": ""})
    read = read_labels(some)
    assert [each.id for each in read.problems] == ["r0", "r3", "r4"] and read.unjudged == 2 and not read.assumed
    assert (read.weak, read.strong, read.domains) == ((0.0, 0.5, 1.0), (1.0, 1.0, 1.0), ("all",) * 3)
    assert (read.name, read.digest) == ("5 labels", "")
    assert read.notes() == ["2 prompts have an answer without a judgement, and were left out."]
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in some))
    stored = read_labels(path, limit=4)
    assert stored.name == str(path) and stored.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(stored.problems) == 2 and stored.unjudged == 2
    with pytest.raises(BadInput, match="no row has a quality"):
        read_labels(some[1:3])
    for wrong in (math.inf, math.nan, "good", []):
        with pytest.raises(BadInput, match="expected a number"):
            read_labels(rows({"weak": wrong}))


def test_without_strong_answers_the_scale_ends_at_one():
    assumed = read_labels([without(row, "strong") for row in rows({"weak": 0.0}, {"weak": 1.0})])
    assert assumed.assumed and assumed.strong == (1.0, 1.0) and len(assumed.notes()) == 1
    for weak in (-0.01, 1.01):
        with pytest.raises(BadInput, match="no row has a field 'strong'"):
            read_labels([without(row, "strong") for row in rows({}, {"weak": weak})])
    assert read_labels(rows({"weak": 1.01})).weak == (1.01,)


@pytest.mark.parametrize(
    ("n", "counts"), [(60, (30, 15, 15)), (61, (30, 16, 15)), (63, (32, 15, 16)), (200, (100, 50, 50))]
)
def test_groups_are_divided_in_the_order_of_their_digests(n, counts):
    """A half, a quarter, a quarter of the names, ends rounded, as SHA-256 of seed and name orders them."""
    names = [f"g{place}" for place in range(n)]
    order = sorted(names, key=lambda name: hashlib.sha256(f"7 {name}".encode()).digest())
    first, second = counts[0], counts[0] + counts[1]
    wanted = {name: "fit" if at < first else "choose" if at < second else "test" for at, name in enumerate(order)}
    assert divide(names, 7) == [wanted[name] for name in names]
    assert [divide(names, 7).count(part) for part in ("fit", "choose", "test")] == list(counts)
    with pytest.raises(BadInput, match="59 prompts"):
        divide([*names[:59], *names[:59]], 7)


def test_the_rows_that_a_fit_tested_are_taken_whole():
    some = rows(
        *({"part": part, "weak": at / 10, "domain": at} for at, part in enumerate(("fit", "test", "choose", "test")))
    )
    some.append({**rows({})[0], "id": "x", "part": "test", "weak": None})
    kept = only_tested(read_labels(some))
    assert [each.id for each in kept.problems] == ["r1", "r3"] and kept.weak == (0.1, 0.3) and kept.strong == (1.0, 1.0)
    assert kept.domains == ("1", "3") and len(kept.groups) == 2 and kept.unjudged == 1
    whole = read_labels(rows({}, {}))
    assert only_tested(whole) is whole
    for parts in (("fit", "fit"), ("choose", "choose"), ("fit", None)):
        with pytest.raises(BadInput, match="those to test"):
            only_tested(read_labels(rows(*({"part": part} for part in parts))))


def test_scores_are_those_that_every_row_holds():
    assert scores_of(read_labels(rows({}, {}))) == {}
    table = scores_of(read_labels(rows({"scores": {"b": 1, "a": 0.5}}, {"scores": {"a": 2, "b": -3.0}})))
    assert list(table) == ["a", "b"] and table["a"].tolist() == [0.5, 2.0] and table["b"].tolist() == [1.0, -3.0]
    for second, said in (
        ({"scores": {"a": 1.0, "b": 2.0}}, "'r0' has no score 'b'"),
        ({"scores": {}}, "'r1' has no score 'a'"),
        ({"scores": {"a": math.nan}}, "the score 'a' of 'r1' is not finite"),
        ({"scores": {"a": "1"}}, "'r1' has the scores"),
        ({"scores": [1.0]}, "'r1' has the scores"),
        ({}, "'r1' has the scores None"),
    ):
        with pytest.raises(BadInput, match=said):
            scores_of(read_labels(rows({"scores": {"a": 1.0}}, second)))


def test_labels_of_their_own_are_zero_or_one():
    assert solved_of(read_labels(rows({"weak": 1.0}, {"weak": 0.0}, {"weak": 2.0}))).tolist() == [1, 0, 1]
    assert solved_of(read_labels(rows({"solved": 0, "weak": 1.0}, {"solved": 1.0}))).tolist() == [0, 1]
    for wrong in (0.5, -1, 2, None):
        with pytest.raises(BadInput, match="'r1' has the solved"):
            solved_of(read_labels(rows({"solved": 1}, {"solved": wrong})))
    assert isinstance(read_labels(rows({})), Labels)
