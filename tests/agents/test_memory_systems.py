from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.agents.chain_of_memory import organize
from equipoise.agents.memory import Unread
from equipoise.agents.memory_store import Directions, best
from equipoise.agents.memory_systems import build, thinned
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.data.histories import MemoryQuestion, Session, Turn
from memory_worlds import CLINIC, DAY, LATER, WHEN, counts, stream, told

NAMES = (
    "full",
    "recency",
    "bm25",
    "rag-turns",
    "rag-sessions",
    "rag-rerank",
    "chain-of-memory",
    "empty",
    "oracle",
    "thinned",
)


def shorter(question, texts):
    return [-len(text) for text in texts]


def made(name, **options):
    if name == "rag-rerank":
        options = {"reranker": shorter, "pool": 40} | options
    return build(name, **{"reader": Unread(), "embedder": counts, **options})


def ids(answer):
    return [item.id for item in answer.items]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("full", {}, "abcde"),
        ("recency", {"k": 2}, ["s2", "s3"]),
        ("bm25", {"k": 2}, "ac"),
        ("bm25", {"k": 9}, "ac"),  # a turn without a common word is not found, and articles are no words
        ("rag-turns", {"k": 2}, "ac"),
        ("rag-turns", {"k": 2, "order": "rank"}, "ca"),
        ("rag-sessions", {"k": 1}, ["s2"]),  # the moved clinic and fewer words beside it
        ("rag-rerank", {"k": 2}, "de"),  # the reranker's word counts, not the cosine
        ("rag-rerank", {"k": 1, "pool": 2, "order": "rank"}, "a"),  # ... among the nearest only
        ("empty", {}, ""),
        ("oracle", {}, ["s2"]),
        ("thinned", {"share": 1.0, "k": 1}, ["s2"]),
        ("thinned", {"share": 1.0, "k": 1, "embedder": None}, ["s1"]),  # the older of two that are as long
    ],
)
def test_what_is_found(name, options, expected):
    answer = told(made(name, **options)).answer(WHEN, LATER)
    assert ids(answer) == list(expected)
    assert answer.context == "\n".join(item.text for item in answer.items)
    assert answer.read_tokens == len(answer.context.split())


def test_a_turn_is_kept_with_its_moment_its_speaker_and_its_session():
    (item, *_) = told(made("full")).items
    assert (item.text, item.sources, item.session) == ("[2024-05-01 09:00] Li: the clinic opens at 9", ("a",), "s1")
    (item, *_) = told(made("rag-sessions")).items
    assert item.text == "[2024-05-01 09:00] Li: the clinic opens at 9\n[2024-05-01 09:00] Bo: what a cold morning"
    assert (item.id, item.sources) == ("s1", ("a", "b"))


def test_an_item_is_of_the_moment_at_which_it_was_taken_in():
    """The end of a session that has begun before a question is asked is known then, as the whole session is."""
    late = Session("s1", DAY, (Turn("a", "Li", "clinic", DAY + timedelta(hours=3)),))
    system = told(made("rag-turns"), [late])
    assert ids(system.answer(WHEN, LATER, until=DAY + timedelta(hours=1))) == ["a"]
    assert "12:00" in system.items[0].text


def cosines(question):
    turns = counts([item.text for item in told(made("full")).items])
    asked = counts([question.text])[0]
    return turns @ asked / np.linalg.norm(turns, axis=1) / np.linalg.norm(asked)


@pytest.mark.parametrize("evidence", "abcde")
def test_evidence_is_found_from_its_rank_on(evidence):
    rank = 1 + int((cosines(WHEN) > cosines(WHEN)["abcde".index(evidence)]).sum())
    found = [evidence in told(made("rag-turns", k=k)).answer(WHEN, LATER).sources for k in range(1, 6)]
    assert found == [k >= rank for k in range(1, 6)]


def test_ranks_are_told_with_their_scores():
    trace = told(made("rag-turns", k=2)).answer(WHEN, LATER).trace
    first, second = np.argsort(-cosines(WHEN))[:2]
    assert [(row["rank"], row["item"]) for row in trace] == [(1, "abcde"[first]), (2, "abcde"[second])]
    np.testing.assert_allclose([row["cosine"] for row in trace], cosines(WHEN)[[first, second]], atol=1e-6)


# --- budgets and costs ----------------------------------------------------------------------------------------------


def test_of_more_than_the_budget_the_newest_and_the_best_are_printed():
    full = told(made("full", budget=14)).answer(WHEN, LATER)
    assert ids(full) == ["d", "e"]  # 6 and 7 words; c has 8
    assert full.amounts["left_out"] == 3
    ranked = told(made("rag-turns", k=3, budget=16)).answer(WHEN, LATER)
    assert ids(ranked) == ["a", "c"]
    assert ranked.amounts["left_out"] == 1
    assert told(made("full", budget=21)).answer(WHEN, LATER).read_tokens == 21


def test_line_breaks_are_tokens_of_the_budget():
    """Counted in characters: two texts of 36 and 39, and the break between them."""
    system = told(made("full", budget=75, count=len))
    assert ids(system.answer(WHEN, LATER)) == ["e"]
    system = told(made("full", budget=76, count=len))
    answer = system.answer(WHEN, LATER)
    assert (ids(answer), answer.read_tokens) == (["d", "e"], 76)


def test_costs_are_counted_by_the_one_counter():
    said = sum(len(item.text.split()) for item in told(made("full")).items)
    for name in ("full", "recency", "bm25", "oracle"):
        assert sum(made(name).ingest(s, s.time)["written_tokens"] for s in CLINIC[:1]) == 15
    system = made("rag-turns")
    built = [system.ingest(session, session.time) for session in CLINIC]
    assert sum(row["embedded_tokens"] for row in built) == sum(row["written_tokens"] for row in built) == said == 36
    assert system.answer(WHEN, LATER).amounts == {"embedded_tokens": 5, "embedding_calls": 1, "left_out": 0}
    answer = told(made("rag-rerank", k=1, pool=2)).answer(WHEN, LATER)
    assert answer.amounts["reranked_tokens"] == 8 + 8 + 2 * 5
    assert made("empty").ingest(CLINIC[0], DAY) == {"written_tokens": 0}


def test_texts_are_embedded_once_and_only_when_they_come():
    asked = []

    def embedder(texts):
        asked.append(list(texts))
        return counts(texts)

    system = told(made("rag-turns", embedder=embedder))
    assert list(map(len, asked)) == [2, 2, 1]
    for _ in range(2):
        system.answer(WHEN, LATER)
    assert asked[3:] == [[WHEN.text], [WHEN.text]]
    system = told(made("rag-turns", embedder=embedder, dated=True))
    system.answer(WHEN, LATER)
    assert asked[-1] == ["[2024-05-10 09:00] when does the clinic open"]


def test_directions_grow_linearly():
    rows = Directions(lambda texts: np.random.default_rng(len(texts)).normal(size=(len(texts), 8)), len)
    held, base = [], None
    for _ in range(100):
        rows.add(["text"] * 10)
        base = rows.array.base if rows.array.base is not None else rows.array
        held.append(base.nbytes / (len(rows) * 8 * 4))
    assert (len(rows), rows.array.dtype) == (1000, np.float32)
    assert max(held) <= 2
    np.testing.assert_allclose(np.linalg.norm(rows.array, axis=1), 1, rtol=1e-6)


def test_directions_are_changed_and_removed_in_their_places():
    rows = Directions(counts, len)
    rows.add(["cat", "dog", "cow"])
    assert rows.change(1, "owl") == {"embedded_tokens": 3, "embedding_calls": 1}
    rows.remove(0)
    np.testing.assert_array_equal(rows.array, rows.of(["owl", "cow"])[0])
    rows.add(["hen"])
    np.testing.assert_array_equal(rows.array, rows.of(["owl", "cow", "hen"])[0])


def test_equal_scores_stand_in_order():
    assert best(np.array([1.0, 3, 3, 2, 3]), [0, 1, 2, 3], 3) == [1, 2, 3]
    assert best(np.array([1.0]), [], 3) == []


# --- time -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([name for name in NAMES if name != "oracle"]))
def test_a_store_that_only_appends_answers_as_of_a_moment_as_it_did_then(seed, name):
    sessions = stream(seed)
    for how in ({"k": 3}, {"k": 5, "budget": 40}):
        online, offline = made(name, **how), told(made(name, **how), sessions)
        for place, session in enumerate(sessions):
            online.ingest(session, session.time)
            if place + 1 < len(sessions) and sessions[place + 1].time == session.time:
                continue  # more is said at this moment
            asked = MemoryQuestion("q", f"w{place} w1 w2", session.time, evidence=("s0",))
            alone = told(made(name, **how), sessions[: place + 1])
            then, now, built = (
                online.answer(asked, session.time),
                offline.answer(asked, session.time, until=session.time),
                alone.answer(asked, session.time),
            )
            assert then == now == built


def test_nothing_younger_is_found():
    for name in NAMES:
        answer = told(made(name, k=9)).answer(replace(WHEN, evidence=("a", "s3")), LATER, until=DAY)
        assert answer.sources <= {"a", "b"}
        assert bool(answer.items) == (name != "empty")
        assert told(made(name)).answer(WHEN, LATER, until=DAY - timedelta(1)).items == ()


@pytest.mark.parametrize("name", NAMES)
def test_reading_does_not_write(name):
    system = made(name)
    seen = {system.snapshot()}
    for session in CLINIC:
        system.ingest(session, session.time)
        before = system.snapshot()
        first = system.answer(WHEN, LATER)
        assert system.answer(WHEN, LATER) == first
        assert system.snapshot() == before
        seen.add(before)
    assert len(seen) == (1 if name == "empty" else 4)
    assert told(made(name)).snapshot() == system.snapshot()


def test_sessions_come_once_and_in_order():
    system = told(made("full"))
    with pytest.raises(BadInput, match="'s3' was taken in before"):
        system.ingest(CLINIC[2], CLINIC[2].time)
    with pytest.raises(BadInput, match="'s4' is of 2024-05-01 09:00:00, and 2024-05-03"):
        system.ingest(replace(CLINIC[0], id="s4"), DAY)
    assert len(system.items) == 5


# --- thinned text ---------------------------------------------------------------------------------------------------


def test_thinning_keeps_a_share_of_the_words_and_a_smaller_one_keeps_some_of_these():
    text = " ".join(f"word{i}" for i in range(4000))
    kept = [thinned(text, share, "t1").split() for share in (0.35, 0.62)]
    assert abs(len(kept[0]) / 4000 - 0.35) < 0.03
    assert abs(len(kept[1]) / 4000 - 0.62) < 0.03
    assert set(kept[0]) < set(kept[1])
    assert kept[1] == sorted(kept[1], key=lambda word: int(word[4:]))
    assert thinned(text, 0.62, "t2") != thinned(text, 0.62, "t1")
    assert thinned(text, 1.0, "t1") == text


def test_thinned_text_keeps_moments_and_speakers_and_costs_less():
    whole, thin = made("rag-sessions"), made("thinned", share=0.5)
    written = [sum(each.ingest(s, s.time)["written_tokens"] for s in CLINIC) for each in (whole, thin)]
    assert written[1] < written[0]
    assert all(line.startswith("[2024-05-0") and ": " in line for item in thin.items for line in item.text.split("\n"))
    assert [item.sources for item in thin.items] == [item.sources for item in whole.items]


# --- chains ---------------------------------------------------------------------------------------------------------


def test_chains_are_organized_of_what_is_old_enough():
    system = told(made("chain-of-memory", k=4, beta=0.3, anchors=2))
    answer = system.answer(WHEN, LATER, until=CLINIC[1].time)
    old = system.items[:4]
    expected = organize(old, counts([item.text for item in old]), counts([WHEN.text])[0], k=4, beta=0.3, anchors=2)
    assert (ids(answer), answer.context) == ([item.id for item in expected.items], expected.context)
    assert answer.context.startswith("=== Evidence Chain 1 ===")
    assert [row["decision"] for row in answer.trace] == [row["decision"] for row in expected.trace]
    assert answer.amounts == {**expected.amounts, "embedded_tokens": 5, "embedding_calls": 1}
    few = told(made("chain-of-memory", k=4, beta=0.3, anchors=2, budget=13)).answer(WHEN, LATER, until=CLINIC[1].time)
    assert (len(few.items), few.read_tokens) == (1, 13)


def test_joined_texts_and_chosen_sessions_are_embedded_and_counted():
    chosen = made("chain-of-memory", sessions=1, context="concatenated", beta=0.0, anchors=1)
    assert chosen.ingest(CLINIC[0], DAY)["embedded_tokens"] == 15 + 15
    chosen.ingest(CLINIC[1], CLINIC[1].time)
    answer = chosen.answer(WHEN, LATER)
    assert ids(answer) == ["c", "d"]
    assert answer.amounts["embedding_calls"] == 2
    assert answer.amounts["embedded_tokens"] == 5 + 8
    with pytest.raises(BadInput, match=r"has no option 'betta'. Did you mean 'beta'"):
        made("chain-of-memory", betta=1)
    with pytest.raises(BadInput, match="anchors is 0"):
        made("chain-of-memory", anchors=0)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: made("rag-turn"), "rag-turns"),
        (lambda: made("bm25", share=0.5), r"memory bm25 has no option 'share'. Known: dated, order, unit"),
        (lambda: made("recency", unit="turn"), "memory recency has no option 'unit'. None are known"),
        (lambda: made("rag-turns", orders="rank"), "Did you mean 'order'"),
        (lambda: made("rag-turns", order="ranked"), "'ranked'"),
        (lambda: made("full", unit="word"), "'word'"),
        (lambda: made("rag-turns", embedder=None), "memory rag-turns needs embedder="),
        (lambda: build("rag-rerank", reader=Unread(), embedder=counts), "memory rag-rerank needs reranker="),
        (lambda: made("rag-turns", reranker=shorter), "no use for the reranker"),
        (lambda: made("rag-rerank", pool=3, k=4), "3 items are ranked anew, and 4 of them are read"),
        (lambda: made("full", k=0), "k is 0"),
        (lambda: made("full", budget=0), "budget is 0 tokens"),
        (lambda: made("thinned", share=0.0), "share of words that is kept is 0.0"),
        (lambda: made("thinned", share=1.5), "share of words that is kept is 1.5"),
    ],
)  # fmt: skip
def test_what_a_system_does_not_have_is_named(make, named):
    with pytest.raises(BadInput, match=named):
        make()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"embedder": lambda texts: np.zeros((len(texts), 3))}, r"Li: the clinic.*no direction"),
        ({"embedder": lambda texts: np.ones((1, 3))}, r"shape \[1, 3\], expected \[2, width\]"),
        ({"embedder": lambda texts: np.ones((len(texts), len(texts)))}, "gave 1 numbers a text, and 2 before"),
        ({"reranker": lambda question, texts: [1.0]}, "reranker gave 1 scores, expected 5"),
        ({"reranker": lambda question, texts: [np.nan] * len(texts)}, "expected 5 finite numbers"),
    ],
)  # fmt: skip
def test_an_embedder_or_a_reranker_that_fails_is_named(options, named):
    with pytest.raises(WorkFailed, match=named):
        told(made("rag-rerank" if "reranker" in options else "rag-turns", **options)).answer(WHEN, LATER)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("chain-of-memory", {"anchors": 2.5}, "anchors is 2.5"),
        ("chain-of-memory", {"beta": "adaptive", "z": float("nan")}, "z is nan"),
        ("chain-of-memory", {"seed": -1}, "seed is -1"),
        ("full", {"budget": float("nan")}, "budget is nan"),
        ("rag-turns", {"k": 2.5}, "k is 2.5"),
    ],
)
def test_a_value_that_no_question_could_be_answered_with_is_refused_before_anything_is_taken_in(name, options, said):
    with pytest.raises(BadInput, match=said):
        made(name, **options)
