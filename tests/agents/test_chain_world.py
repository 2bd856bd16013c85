"""LoCoMo as Chain-of-Memory's study sees and reads it, on two short conversations, beside dense matrices and texts."""

import gzip
import json
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from equipoise.agents import chain_reading
from equipoise.agents import chain_world as world
from equipoise.agents.chain_of_memory import cosine_floor
from equipoise.agents.memory import words
from equipoise.core.state import load_state
from equipoise.data import locomo
from equipoise.data.histories import History, MemoryQuestion, Session, Turn

READ = world.conversations
START = datetime(2024, 5, 7, 10)
SAID = (
    [["I run by the lake lake", "The lake was cold", "We swim on Monday", "A red bowl broke", "My bowl was red"],
     ["You run on Monday", "The cat sleeps", "Cold soup again", "The cat broke it", "Soup on Monday"]],
    [["Trains are late", "I like late trains trains", "Bread and jam", "Jam for two", "Two trains came", "qqq zzz"],
     ["Bread is late", "The jam is red", "I bake bread", "Two loaves"],
     ["We like jam", "Jam again", "Trains again", "The bread is gone", "Nobody came"]],
)  # fmt: skip
ASKED = (
    [("What broke?", "the red bowl", (4, 9), "multi-hop"), ("When do they swim?", "Monday", (3,), "temporal"),
     ("Who sings?", "", (3,), "adversarial"), ("Where does Ana run?", "by the lake", (1,), "single-hop")],
    [("What is late?", "trains", (1, 7, 13), "multi-hop"), ("Who came?", "nobody", (15,), "single-hop"),
     ("What is baked?", "bread", (), "single-hop"), ("What is red?", "the jam", (8,), "single-hop"),
     ("Unheard of?", "x", (6,), "single-hop")],
)  # fmt: skip


def histories():
    made = []
    for name, sessions, questions in zip(("conv-1", "conv-2"), SAID, ASKED, strict=True):
        count = 0
        taken = []
        for number, texts in enumerate(sessions):
            turns = []
            for text in texts:
                count += 1
                turns.append(Turn(f"D:{count}", ("Ana", "Ben")[count % 2], text))
            taken.append(Session(f"s{number}", START + timedelta(days=number), tuple(turns)))
        asked = tuple(
            MemoryQuestion(
                f"{name}/{number}", text, gold=(gold,) if gold else (), kind=kind,
                evidence=tuple(f"D:{place}" for place in evidence),
            )
            for number, (text, gold, evidence, kind) in enumerate(questions)
        )  # fmt: skip
        made.append(History(name, tuple(taken), asked))
    return made


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"DIRECTIONS": 3, "RANKED": 7, "K": 4}.items():
            patch.setattr(world, name, value)
        for module in (world, chain_reading):
            patch.setattr(module, "conversations", histories)
        yield


@pytest.fixture(scope="module")
def prepared(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("locomo")
    world.prepare_locomo(folder, np.random.default_rng(4))
    return folder


@pytest.fixture(scope="module")
def state(prepared):
    return load_state(prepared / world.WORLD)


def dense():
    """Counts of the words of all turns and of the asked questions, and where each of these stands."""
    turns = [(number, f"{turn.speaker} {turn.text}") for number, each in enumerate(histories())
             for session in each.sessions for turn in session.turns]  # fmt: skip
    asked = world.asked_of(histories())
    split = [world.normalize(text).split() for _, text in turns]
    vocabulary = list(dict.fromkeys(word for text in split for word in text))
    counts = np.array([[text.count(word) for word in vocabulary] for text in split], float)
    wanted = [world.normalize(question.text).split() for _, question in asked]
    questions = np.array([[text.count(word) for word in vocabulary] for text in wanted], float)
    return counts, questions, np.array([number for number, _ in turns]), np.array([number for number, _ in asked])


def units(rows):
    sizes = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, sizes, out=np.zeros_like(rows), where=sizes > 0)


def moved(rows):
    """With the constant direction, at length 1."""
    there = np.linalg.norm(rows, axis=1, keepdims=True) > 0
    return np.where(there, np.column_stack([units(rows), np.full(len(rows), 1.2)]) / np.hypot(1, 1.2), 0)


SEEN = {"tfidf": units, "lsa": units, "offset": moved}


def expected(state):
    """embedder -> the raw rows of all turns, and of a conversation's questions beside them, by dense matrices."""
    counts, questions, of, asked = dense()
    draw = np.random.default_rng(4)
    raw = {name: [] for name in world.EMBEDDERS}
    rarities = []
    for number in (0, 1):
        rows = np.flatnonzero(of == number)
        sample = np.sort(draw.choice(rows, (6, 10)[number], replace=False))
        draw.standard_normal(min(len(sample), counts.shape[1]))
        rarity = np.log((1 + len(sample)) / (1 + (counts[sample] > 0).sum(axis=0))) + 1
        rarities.append(rarity)
        tfidf, wanted = counts[rows] * rarity, questions[asked == number] * rarity
        to = np.linalg.svd(units(counts[sample] * rarity))[2][:3]
        raw["tfidf"].append((tfidf, wanted))
        raw["lsa"].append((tfidf @ to.T, wanted @ to.T))
        raw["offset"].append((tfidf @ to.T, wanted @ to.T))
    return raw, rarities


def test_a_preparation_holds_the_numbers_of_both_conversations(state):
    of = [0] * 10 + [1] * 15
    assert state["questions"] == [f"conv-1/{n}" for n in (0, 1, 3)] + [f"conv-2/{n}" for n in (0, 1, 3, 4)]
    assert state["clusters"] == ["conv-1"] * 3 + ["conv-2"] * 4
    assert state["evidence"] == [[3, 8], [2], [0], [10, 16, 22], [24], [17], [15]]
    assert state["asked"] == [2, 4, 4, 3, 2, 3, 2] and state["conversation"].tolist() == of
    printed = world.printed_turns(histories())
    assert state["tokens"].tolist() == [words(text) for text in printed]
    whole = [sum(words(text) for text, place in zip(printed, of, strict=True) if place == number) for number in (0, 1)]
    assert state["stores"] == [whole[0]] * 3 + [whole[1]] * 4


@pytest.mark.parametrize("embedder", world.EMBEDDERS)
def test_turns_are_ranked_by_cosines_of_what_two_thirds_of_them_teach(state, embedder):
    raw, rarities = expected(state)
    assert_allclose(state["rarity"], rarities)
    place = 0
    for number, start in ((0, 0), (1, 10)):
        rows, wanted = (SEEN[embedder](each) for each in raw[embedder][number])
        near = wanted @ rows.T
        floor = cosine_floor(rows[np.linalg.norm(rows, axis=1) > 0], z=2.0).value
        for own in near:
            order = state["ranking"][embedder][place]
            assert len(set(order.tolist())) == len(order) == 7
            assert_allclose(state["scores"][embedder][place], np.sort(own)[::-1][:7], atol=1e-12)
            assert_allclose(own[order - start], state["scores"][embedder][place], atol=1e-12)
            assert state["floors"][embedder][place] == pytest.approx(floor)
            place += 1
    assert place == 7


@pytest.mark.parametrize("embedder", world.EMBEDDERS)
def test_a_case_holds_what_is_near_its_question(small, state, embedder):
    raw, _ = expected(state)
    rows = np.concatenate([each for each, _ in raw[embedder]])
    for number, case in enumerate(world.locomo(state, embedder)):
        ranking = state["ranking"][embedder][number]
        pool = ranking[:4]
        assert (case.id, case.cluster) == (state["questions"][number], state["clusters"][number])
        assert case.times.tolist() == ranking.tolist() and case.tokens.tolist() == state["tokens"][ranking].tolist()
        assert_allclose(case.scores, state["scores"][embedder][number][:4])
        found = units(case.vectors) if embedder == "tfidf" else case.vectors
        wanted = SEEN[embedder](rows[pool])
        assert_allclose(found @ found.T, wanted @ wanted.T, atol=1e-12)
        joined = SEEN[embedder](rows[pool[[0, 2]]].sum(axis=0)[None])[0]
        mixed = case.embed((0, 2))
        mixed = mixed / np.linalg.norm(mixed) if embedder == "tfidf" else mixed
        assert_allclose(found @ mixed, wanted @ joined, atol=1e-12)
        order = ranking.tolist()
        assert case.evidence == {order.index(turn) if turn in order else -1 for turn in state["evidence"][number]}
        assert (case.floor, case.asked) == (state["floors"][embedder][number], state["asked"][number])
        assert case.store == state["stores"][number]
    assert number == 6


def test_a_turn_without_a_direction_is_near_nothing(small, state):
    before = next(world.locomo(state, "lsa"))
    last = state["ranking"]["lsa"][0][3]
    lsa = state["lsa"].copy()
    lsa[last] = 0
    case = next(world.locomo({**state, "lsa": lsa}, "lsa"))
    assert_allclose(case.vectors, before.vectors[:3])
    assert_allclose(case.scores, before.scores[:3])
    assert len(case.tokens) == 7


def test_every_world_has_its_cases(small, prepared):
    run = SimpleNamespace(seed=3, prepared=prepared)
    found = [(told, len(cases)) for told, cases in world.conditions(run, trials=2, with_locomo=True)]
    assert found == [({"world": "two-hop", **how}, 2) for how in world.HOPS] + [
        ({"world": "locomo", "embedder": name}, 7) for name in ("tfidf", "lsa", "offset")
    ]
    assert len(list(world.conditions(run, trials=2, with_locomo=False))) == 3


def test_the_conversations_are_read_from_the_folder_of_data_sets(tmp_path, monkeypatch):
    turns = [{"speaker": "Ana", "dia_id": "D1:1", "text": "I bought a red car."}]
    qa = [{"question": "What did Ana buy?", "answer": "a car", "category": 4, "evidence": ["D1:1"]}]
    said = {"session_1_date_time": "1:56 pm on 8 May, 2023", "session_1": turns}
    (tmp_path / "locomo").mkdir()
    rows = json.dumps([{"sample_id": "conv-9", "conversation": said, "qa": qa}])
    (tmp_path / "locomo" / "locomo10.json.gz").write_bytes(gzip.compress(rows.encode()))
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    (found,) = READ()
    assert found.name == "conv-9" and len(world.asked_of([found])) == 1


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def reading(small, prepared, monkeypatch):
    """What is read for an arm, as (id, text, held) by question."""
    for name, value in {"QUESTIONS": 3, "ALLOWED": 45}.items():
        monkeypatch.setattr(chain_reading, name, value)

    def read(arm, against="", seed=3):
        run = SimpleNamespace(seed=seed, prepared=prepared)
        return [(case.id, text, held) for case, _, text, held in chain_reading.reading(run, arm=arm, against=against)]

    return read


def test_each_seed_reads_questions_of_its_own(reading, state):
    order = np.random.default_rng(3).permutation(7).tolist()
    for seed, first in ((0, 0), (1, 3), (2, 2), (3, 1)):
        chosen = sorted(order[first : first + 3])
        assert [each[0] for each in reading("nothing", seed=seed)] == [state["questions"][place] for place in chosen]


def test_the_evidence_alone_and_nothing_are_the_two_ends(reading, state):
    turns = world.printed_turns(histories())
    for seed in (0, 2):
        for name, text, held in reading("oracle", seed=seed):
            assert text == "\n".join(turns[turn] for turn in state["evidence"][state["questions"].index(name)]) and held
        assert [(text, held) for _, text, held in reading("nothing", seed=seed)] == [("", False)] * 3


@pytest.mark.parametrize("arm", ["rank", "mean", "shuffled"])
def test_prints_fit_and_say_whether_all_evidence_is_in_them(reading, state, arm):
    turns = world.printed_turns(histories())
    told = set()
    for seed in range(4):
        for name, text, held in reading(arm, seed=seed):
            number = state["questions"].index(name)
            assert 0 < words(text) <= 45 and ("Evidence Chain" in text) == (arm == "mean")
            assert held == all(turns[turn] in text for turn in state["evidence"][number])
            told.add(held)
    assert told == {True, False}
    assert reading(arm) == reading(arm)


def test_the_same_tokens_are_of_the_ranking(reading, state):
    turns = world.printed_turns(histories())
    for (name, text, _), (_, other, _) in zip(reading("same-tokens", "mean"), reading("mean"), strict=True):
        ranking = state["ranking"]["lsa"][state["questions"].index(name)]
        whole, allowed = [], words(other)
        for turn in ranking:
            if sum(map(words, whole)) + words(turns[turn]) > allowed:
                break
            whole.append(turns[turn])
        assert [line for line in text.splitlines() if line] == whole and "Evidence Chain" not in text


def test_answers_are_scored_by_their_first_line_and_best_gold(monkeypatch):
    items, spent, prompts = {}, [], []
    run = SimpleNamespace(
        phase=nullcontext,
        spend=lambda **amounts: spent.append(amounts),
        items=lambda outcome, *given, **named: items.setdefault(outcome, (*given, named)),
    )

    def shown(run, *, arm, against):
        assert (arm, against) == ("same-tokens", "mean")
        for number, (kind, gold, held) in enumerate(
            ((4, ("the lake", "a red bowl"), True), (1, ("red car, bowl",), False), (3, ("yes; he said",), True))
        ):
            case = SimpleNamespace(id=f"q{number}", cluster=f"c{number // 2}")
            yield (
                case,
                MemoryQuestion(f"q{number}", "Q?", gold=gold, kind=locomo.CATEGORIES[kind]),
                f"text {number}",
                held,
            )

    def said(reader, asked):
        assert reader == "smollm2"
        prompts.extend(asked)
        return [" red bowl\nthe lake", "car", "\nyes\nno"]

    monkeypatch.setattr(chain_reading, "reading", shown)
    monkeypatch.setattr(chain_reading, "answers", said)
    chain_reading.measure(run, arm="same-tokens", against="mean", reader="smollm2")
    named = {"at": {"allowed_tokens": 120}, "clusters": ["c0", "c0", "c1"]}
    ids, scores, rest = items["answer_f1"]
    assert ids == ["q0", "q1", "q2"] and rest == named and scores == pytest.approx([1.0, (2 / 3 + 0) / 2, 1.0])
    assert items["evidence_recall"] == (ids, [1.0, 0.0, 1.0], named)
    assert spent == [{"phase": "read", "calls": 3}] and prompts[1].endswith("below.\n\ntext 1\n\nQuestion: Q?")


def test_a_reader_answers_with_few_tokens(monkeypatch):
    from equipoise import language
    from equipoise.language import generate

    asked = []
    monkeypatch.setattr(language, "load", lambda name: f"loaded {name}")
    monkeypatch.setattr(generate, "generate", lambda *given, **named: asked.append((given, named)) or ["said"])
    assert chain_reading.answers("smollm2", ("one", "two")) == ["said"]
    assert asked == [(("loaded smollm2", ["one", "two"]), {"max_new_tokens": 24, "batch_size": 8})]


# --- prints and arms -------------------------------------------------------------------------------------------------


def hand_case(evidence=(0, 1), **more):
    given = {
        "id": "q", "cluster": "", "tokens": np.array([5, 3, 4]), "times": np.array([2, 0, 1]),
        "scores": np.array([0.9, 0.8, 0.7]), "vectors": np.eye(3), "evidence": frozenset(evidence),
        "embed": lambda places: np.eye(3)[list(places)].sum(axis=0), "floor": 0.2, "asked": 2, "store": 30,
    }  # fmt: skip
    return world.Case(**{**given, **more})


@pytest.mark.parametrize(
    ("evidence", "tokens", "held"),
    [
        ((0, 1), 8, 1.0),
        ((0, 1), 7, 2 / 3),
        ((0, 1), 5, 0.0),
        ((0, 1), 4, 0.0),
        ((0,), 4, 4 / 5),
        ((0,), 0, 0.0),
        ((0,), 5, 1.0),
        ((2,), 11, 3 / 4),
        ((2,), 12, 1.0),
        ((2,), 99, 1.0),
        ((1, -1), 99, 0.0),
    ],
)
def test_a_ranking_that_is_cut_within_a_turn_holds_its_part_of_it(evidence, tokens, held):
    assert world.by_rank(hand_case(evidence), tokens) == pytest.approx(held)


def test_what_is_printed_ends_at_the_first_turn_that_does_not_fit():
    tokens, header = np.array([5, 3, 4]), world.HEADER_TOKENS
    assert header == words(world.HEADER.format(1)) > 0
    plain, headed = (world.Arranged([[0, 2], [1]], headers=headers) for headers in (False, True))
    fitting = ((4, (), 0), (5, (0,), 5), (8, (0,), 5), (9, (0, 2), 9), (11, (0, 2), 9), (12, (0, 2, 1), 12))
    for allowed, places, spent in fitting:
        assert world.printed(plain, tokens, allowed) == world.Printed(places, spent)
        more = header * (1 if places else 0) + header * (len(places) == 3)
        room = allowed + header * (2 if len(places) == 3 else 1)
        assert world.printed(headed, tokens, room) == world.Printed(places, spent + more)
    assert world.printed(headed, tokens, 12 + 2 * header - 1).places == (0, 2)
    assert world.Printed((0, 2), 9).holds(frozenset({2})) == 1 and world.Printed((0, 2), 9).holds(frozenset({1})) == 0


@pytest.fixture
def whole_pools(monkeypatch):
    monkeypatch.setattr(world, "K", 20)
    monkeypatch.setattr(world, "RANKED", 80)


def test_each_arm_arranges_the_chains_that_it_is_named_after(whole_pools):
    case = world.two_hop(0.6, 0, 0, 7)
    joined = []

    def embed(places):
        joined.append(places)
        return case.embed(places)

    own = {
        "mean": {},
        "published": {"context": "concatenated", "negative": "keep", "embed": embed},
        "adaptive": {"beta": 0.0, "floor": case.floor},
        "last": {"context": "last"},
        **{gate: {"gate": gate} for gate in ("query", "context", "weighted")},
    }
    found = {}
    for arm, more in own.items():
        orders = world.chains(case.vectors, case.scores, **{"anchors": 3, "beta": 0.5, **more}).order
        seen, blocks = set(), []
        for order in orders:
            blocks.append([place for place in order if arm == "published" or place not in seen])
            seen |= set(order)
        found[arm] = blocks
        made = world.arrange(arm, case, np.random.default_rng(0))
        assert made.blocks == blocks and made.headers and made.made.order == orders
        tokens = sum(int(case.tokens[list(each)].sum()) for each in joined)
        spent = (len(joined), tokens) if arm == "published" else (0, 0)
        assert (made.contexts, made.embedded) == spent
    assert len({repr(blocks) for blocks in found.values()}) == len(found) and len(joined) > 3
    union = sorted({place for block in found["mean"] for place in block})
    by_time = sorted(union, key=lambda place: case.times[place])
    size = list(range(20))
    order = [place for block in found["published"] for place in block]
    shuffled = [order[place] for place in np.random.default_rng(7).permutation(len(order))]
    for arm, blocks in {
        "rank": [size], "rank-repeated": [size] * 3, "union-ranked": [union], "union-by-time": [by_time],
        "union-size": [size[: len(union)]], "shuffled": [shuffled],
    }.items():  # fmt: skip
        made = world.arrange(arm, case, np.random.default_rng(7))
        assert made.blocks == blocks and not made.headers, arm
        assert (made.made is None) == arm.startswith("rank") and (made.contexts > 0) == (arm == "shuffled")


def test_of_turns_that_no_chain_takes_up_none_is_printed():
    vectors = np.eye(5)
    vectors[4] = [1, 0, 0, 0, 0.01]
    scores, times = np.array([0.9, 0.88, 0.87, 0.86, 0.85]), np.array([3, 4, 0, 1, 2])
    case = hand_case(vectors=vectors, scores=scores, times=times, tokens=np.ones(5, int))
    found = {arm: world.arrange(arm, case, np.random.default_rng(0)).blocks for arm in (
        "mean", "union-ranked", "union-by-time", "union-size", "rank",
    )}  # fmt: skip
    assert sorted(place for block in found["mean"] for place in block) == [0, 1, 2, 4]
    assert found["union-ranked"] == [[0, 1, 2, 4]] and found["union-by-time"] == [[2, 4, 0, 1]]
    assert found["union-size"] == [[0, 1, 2, 3]] and found["rank"] == [[0, 1, 2, 3, 4]]


def test_the_two_hop_store_is_made_as_it_says(whole_pools):
    case = world.two_hop(0.3, 10, 1, 2)
    draw = np.random.default_rng([1, 2, 30, 10])

    def around(center, cosines, count):
        noise = draw.standard_normal((count, 64))
        noise -= (noise @ center)[:, None] * center
        noise /= np.sqrt((noise**2).sum(axis=1, keepdims=True))
        cosines = np.broadcast_to(cosines, count)[:, None]
        return cosines * center + np.sqrt(1 - cosines * cosines) * noise

    query = units(draw.standard_normal((1, 64)))[0]
    first = around(query, 0.7, 1)
    second = units(0.3 * first + query / 4 + 0.6 * units(draw.standard_normal((1, 64))))
    like, unlike = around(query, draw.uniform(0.3, 0.75, 40), 40), around(query, draw.uniform(-0.2, 0.2, 100), 100)
    near = around(first[0], 0.92, 10)
    vectors = np.concatenate([first, second, like, unlike, near])
    tokens, times = draw.integers(8, 33, 152), draw.permutation(152)
    order = np.argsort(-(vectors @ query), kind="stable")[:80]
    assert_allclose(case.vectors, vectors[order[:20]])
    assert_allclose(case.scores, (vectors @ query)[order[:20]])
    assert_allclose(case.embed((1, 3)), vectors[order[1]] + vectors[order[3]])
    assert case.tokens.tolist() == tokens[order].tolist() and case.times.tolist() == times[order].tolist()
    ranked = order.tolist()
    assert case.evidence == {ranked.index(hop) if hop in ranked else -1 for hop in (0, 1)}
    assert (case.id, case.cluster, case.asked, case.store) == ("1-2", "", 8, tokens.sum())
    assert case.floor == cosine_floor(vectors, z=2.0, seed=1).value
    assert -1 in world.two_hop(0.0, 0, 0, 3).evidence or all(place >= 0 for place in case.evidence)


class Noted:
    """A run that notes what it is told."""

    seed, prepared = 3, None

    def __init__(self):
        self.told, self.measured, self.spent = {}, {}, []

    def items(self, outcome, ids, scores, *, at, where, clusters):
        assert ids == ["a", "b"] and clusters == ["x", "x"] and where == {"world": "hand"}
        self.told[outcome, at["allowed_tokens"]] = ([float(each) for each in scores], at["prompt_tokens"])

    def measure(self, outcome, value, *, at, where, of=None):
        self.measured[outcome, at["allowed_tokens"]] = value if of is None else (value, of)

    def spend(self, *, phase, **amounts):
        self.spent.append((phase, amounts))

    def phase(self, name):
        assert name == "query"
        return nullcontext()


@pytest.fixture
def by_hand(monkeypatch):
    cases = [hand_case((0, 1), id="a", cluster="x", asked=4), hand_case((2,), id="b", cluster="x")]
    monkeypatch.setattr(world, "conditions", lambda run, **given: iter([({"world": "hand"}, cases)]))
    monkeypatch.setattr(world, "ALLOWED", (8, 11, 60))
    return cases


def test_prints_are_measured_and_paid_for(by_hand):
    run = Noted()
    world.measure(run, arm="rank", trials=1, with_locomo=False)
    assert run.told == {
        ("evidence_recall", 8): ([1, 0], 8), ("gain", 8): ([0, 0], 8), ("evidence_recall", 11): ([1, 0], 8),
        ("gain", 11): ([0, 0], 8), ("evidence_recall", 60): ([1, 1], 12), ("gain", 60): ([0, 0], 12),
    }  # fmt: skip
    prints = {("printed_tokens", 8): 8, ("printed_tokens", 11): 8, ("printed_tokens", 60): 12}
    assert run.measured == {**prints, ("unique_turns", 60): 3}
    assert run.spent == [
        ("build", {"prompt_tokens": 30}), ("embed", {"calls": 2, "prompt_tokens": 6}), ("query", {"prompt_tokens": 24}),
    ]  # fmt: skip


def test_chains_are_counted_and_what_they_embed_is_paid_for(by_hand):
    run = Noted()
    world.measure(run, arm="published", trials=1, with_locomo=False)
    made = [world.arrange("published", case, np.random.default_rng(0)) for case in by_hand]
    orders = [order for each in made for order in each.made.order]
    assert run.measured["single_chains", 60] == (sum(len(order) == 1 for order in orders), len(orders))
    assert run.measured["full_chains", 60] == (sum(len(order) == 3 for order in orders), len(orders))
    contexts, embedded = (sum(getattr(each, name) for each in made) for name in ("contexts", "embedded"))
    assert run.spent[1] == ("embed", {"calls": 2 + contexts, "prompt_tokens": 6 + embedded}) and contexts > 0
    ranked = Noted()
    world.measure(ranked, arm="same-tokens", against="published", trials=1, with_locomo=False)
    assert ranked.spent[1] == ("embed", {"calls": 2, "prompt_tokens": 6})
    assert set(ranked.measured) == {*(("printed_tokens", n) for n in (8, 11, 60)), ("unique_turns", 60)}
    for allowed in (8, 11, 60):
        prints = [world.printed(each, case.tokens, allowed) for each, case in zip(made, by_hand, strict=True)]
        equal = [world.by_rank(case, each.tokens) for each, case in zip(prints, by_hand, strict=True)]
        held = [each.holds(case.evidence) for each, case in zip(prints, by_hand, strict=True)]
        read = (prints[0].tokens + prints[1].tokens) / 2
        assert ranked.told["evidence_recall", allowed] == (equal, read) and ranked.told["gain", allowed] == (
            [0, 0],
            read,
        )
        assert run.told["evidence_recall", allowed] == (held, read)
        assert run.told["gain", allowed] == ([held[0] - equal[0], held[1] - equal[1]], read)


def test_the_whole_store_holds_everything(by_hand):
    run = Noted()
    by_hand[1] = replace(by_hand[1], store=41)
    world.measure_everything(run, trials=1, with_locomo=False)
    assert run.told == {("evidence_recall", 36): ([1, 1], 35.5)} and run.measured == {("printed_tokens", 36): 35.5}
    assert run.spent == [("query", {"prompt_tokens": 71})]
