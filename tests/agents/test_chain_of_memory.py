"""Chain-of-Memory: the card's worked example by hand, chains against plain loops, what must not change, what is counted."""

import itertools
import math
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.agents import chain_of_memory as com
from equipoise.agents.chain_of_memory import chains, cosine_floor, organize, print_blocks
from equipoise.agents.memory import MemoryItem, words
from equipoise.core.errors import BadInput

NINE = datetime(2024, 5, 7, 9, 0)
QUERY = np.array([1.0, 0.0, 0.0])
FOUR = np.array([[4, 3, 0], [3, 4, 0], [3, 0, 4], [0, 3, 4]]) / 5
SCORES = FOUR @ QUERY
A, B, C, D = range(4)


def item(name, text="", minutes=0, session="s"):
    return MemoryItem(name, text or f"words of {name}", NINE + timedelta(minutes=minutes), (f"turn {name}",), session)


ITEMS = [item(name, minutes=place) for place, name in enumerate("abcd")]


def plain(vectors, scores, *, anchors=3, beta=0.5, gate="product", context="mean", clip=True, weight=0.5, ranked=None):
    """The card's steps in loops over lists, chain by chain, from an order of the pool that breaks ties."""
    rows = [[value / math.sqrt(sum(x * x for x in row)) for value in row] for row in np.asarray(vectors).tolist()]
    ranked = ranked or sorted(range(len(rows)), key=lambda i: (-scores[i], i))

    def cosine(one, two):
        size = math.sqrt(sum(x * x for x in one) * sum(x * x for x in two))
        return sum(x * y for x, y in zip(one, two, strict=True)) / size if size > 1e-9 else 0.0

    found = []
    for anchor in ranked[:anchors]:
        chain, previous, rest = [anchor], scores[anchor], [i for i in ranked if i != anchor]
        while rest and (previous > 0 or not clip):
            mean = [sum(rows[i][axis] for i in chain) / len(chain) for axis in range(len(rows[0]))]
            center = rows[chain[-1]] if context == "last" else mean
            near = {i: cosine(rows[i], center) for i in rest}
            gates = {
                "product": lambda i: max(scores[i], 0) * max(near[i], 0) if clip else scores[i] * near[i],  # noqa: B023
                "query": lambda i: scores[i],
                "context": lambda i: near[i],  # noqa: B023
                "weighted": lambda i: weight * scores[i] + (1 - weight) * near[i],  # noqa: B023
            }[gate]
            best = max(rest, key=gates)  # the first of equals
            if gates(best) < beta * previous or (clip and gates(best) <= 0):
                break
            chain.append(best)
            previous = gates(best)
            rest.remove(best)
        found.append(tuple(chain))
    return tuple(found)


def drawn(seed, size=12, width=5, low=-1.0):
    generator = np.random.default_rng(seed)
    vectors = generator.uniform(low, 1.0, (size, width))
    query = generator.uniform(low, 1.0, width)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, units @ query / np.linalg.norm(query)


# Check 1: the worked example, for the mean and for the last.


def test_worked_example_with_the_mean():
    made = chains(FOUR, SCORES)
    assert made.order == ((A, B), (B, A), (C, A, B))
    assert made.stops == ("blocked", "blocked", "unrelated")
    seen = [(link.chain, link.place, link.gate, link.least, link.taken) for link in made.links]
    root = math.sqrt(2)
    expected = [
        (0, B, 0.576, 0.4, True), (0, C, 0.18 * root, 0.288, False),
        (1, A, 0.768, 0.3, True), (1, C, 0.18 * root, 0.384, False),
        (2, A, 0.384, 0.3, True), (2, B, 3.96 / math.sqrt(74), 0.192, True), (2, D, 0.0, 1.98 / math.sqrt(74), False),
    ]  # fmt: skip
    for got, wanted in zip(seen, expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-11)
    assert 3.96 / math.sqrt(74) == pytest.approx(0.460341, abs=1e-6) and 0.18 * root == pytest.approx(
        0.254558, abs=1e-6
    )
    assert made.cosines == 3 + 2 + 3 + 2 + 3 + 2 + 1


def test_worked_example_with_the_last():
    made = chains(FOUR, SCORES, context="last")
    assert made.order == ((A, B), (B, A), (C, A, B))
    gates = {(link.chain, link.step, link.place): link.gate for link in made.links}
    assert gates[0, 2, C] == pytest.approx(0.216) and gates[2, 2, B] == pytest.approx(0.576)


def test_worked_example_is_printed_seven_times_three_turns_five_pruned():
    made = organize(ITEMS, FOUR, QUERY, repeat=True)
    assert made.amounts["printed"] == 7 and made.amounts["unique"] == 3 and made.amounts["pruned"] == 5
    assert [[item.id for item in block] for block in made.blocks] == [["a", "b"], ["b", "a"], ["c", "a", "b"]]
    assert made.context == (
        "=== Evidence Chain 1 ===\nwords of a\nwords of b\n\n=== Evidence Chain 2 ===\nwords of b\nwords of a\n\n"
        "=== Evidence Chain 3 ===\nwords of c\nwords of a\nwords of b"
    )
    assert made.read_tokens == 3 * 5 + 7 * 3
    once = organize(ITEMS, FOUR, QUERY)
    assert [[item.id for item in block] for block in once.blocks] == [["a", "b"], ["c"]]  # the second is all printed
    assert once.amounts["printed"] == 3 and once.amounts["pruned"] == 9 and "Chain 3" not in once.context


# Check 2: limits of beta and of the gates.


def test_without_a_block_every_chain_is_a_permutation_of_the_pool():
    vectors, scores = drawn(0, low=0.05)
    made = chains(vectors, scores, beta=0.0)
    assert all(sorted(order) == list(range(12)) for order in made.order) and made.stops == ("exhausted",) * 3
    assert len(set(made.order)) > 1
    ranking = tuple(sorted(range(12), key=lambda i: -scores[i]))
    assert chains(vectors, scores, beta=0.0, gate="query").order[0] == ranking
    singles = chains(vectors, scores, beta=50.0)
    assert singles.order == tuple((place,) for place in ranking[:3]) and singles.stops == ("blocked",) * 3


# Check 3: the counters.


@pytest.mark.parametrize("context", ["mean", "last", "concatenated"])
def test_57_decisions_and_570_cosines_where_nothing_stops(context):
    vectors, scores = drawn(1, 20, 6, low=0.05)
    calls = []

    def embed(places):
        calls.append(len(places))
        return vectors[list(places)].sum(axis=0)

    made = chains(vectors, scores, beta=0.0, context=context, embed=embed if context == "concatenated" else None)
    assert (len(made.links), made.cosines) == (57, 570)
    assert made.contexts == len(calls) == (57 if context == "concatenated" else 0)
    assert calls == ([*range(1, 20)] * 3 if calls else [])  # of growing length


# Chains against the loops.


@pytest.mark.parametrize("gate", ["product", "query", "context", "weighted"])
@pytest.mark.parametrize("context", ["mean", "last"])
@pytest.mark.parametrize("clip", [True, False])
def test_chains_are_those_of_the_plain_loops(gate, context, clip):
    lengths = set()
    for seed, beta in itertools.product(range(6), (0.0, 0.3, 0.8, 1.0)):
        vectors, scores = drawn(seed)
        own = {"beta": beta, "gate": gate, "context": context, "anchors": 4, "weight": 0.3}
        made = chains(vectors, scores, negative="clip" if clip else "keep", **own)
        assert made.order == plain(vectors, scores, clip=clip, **own)
        lengths |= {len(order) for order in made.order}
    assert len(lengths) > 2


def test_joined_texts_of_vectors_that_add_up_and_are_of_one_length_are_the_mean():
    """Count vectors of four words each: the embedding of joined texts is their sum."""
    generator = np.random.default_rng(3)
    counts = np.array([generator.permutation([1, 1, 1, 1, 0, 0]) for _ in range(15)], float)
    counts += np.linspace(0, 1e-3, 15)[:, None] * generator.random((15, 6))  # no ties
    counts /= np.linalg.norm(counts, axis=1, keepdims=True)
    scores = counts @ counts[0]
    joined = chains(
        counts, scores, context="concatenated", beta=0.7, embed=lambda places: counts[list(places)].sum(axis=0)
    )
    assert joined.order == chains(counts, scores, beta=0.7).order and 1 < len(joined.order[1]) < 15
    longer = counts * np.linspace(1, 9, 15)[:, None]  # of other lengths, a longer text weighs more
    apart = chains(
        longer, scores, context="concatenated", beta=0.0, embed=lambda places: longer[list(places)].sum(axis=0)
    )
    assert apart.order != chains(longer, scores, beta=0.0).order


# Check 4: what changes nothing.


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 25), beta=st.sampled_from([0.0, 0.4, 0.9]))
def test_scales_and_order_of_the_pool_change_nothing(seed, size, beta):
    vectors, scores = drawn(seed, size)
    made = chains(vectors, scores, beta=beta)
    generator = np.random.default_rng(seed + 1)
    scaled = vectors * 10.0 ** generator.uniform(-9, 9, (size, 1))
    assert chains(scaled, scores, beta=beta).order == made.order
    order = generator.permutation(size)
    moved = chains(vectors[order], scores[order], beta=beta)
    assert tuple(tuple(int(order[place]) for place in chain) for chain in moved.order) == made.order
    assert moved.stops == made.stops


@pytest.mark.parametrize("repeat", [False, True])
def test_ties_go_to_the_score_then_the_date_then_the_id(repeat):
    late, early = item("a", minutes=9), item("b", minutes=1)
    pair = [late, early, replace(early, id="aa"), item("q", minutes=5)]
    vectors = np.array([[3.0, 4, 0], [3, 4, 0], [3, 4, 0], [1, 0, 0]])
    expected = ["q", "aa", "b", "a"]
    for order in itertools.permutations(range(4)):
        made = organize([pair[i] for i in order], vectors[list(order)], QUERY, anchors=1, beta=0.3, repeat=repeat)
        assert [item.id for item in made.items] == expected
    # Of two turns that open the gate equally wide, the one of higher score: weighted, s + cos is 1.4 for both.
    equal = np.array([[1.0, 0, 0], [0.8, 0.6, 0], [0.6, 0.8, 0]])
    assert chains(equal, [0.9, 0.6, 0.8], gate="weighted", anchors=1, beta=0.0).order == ((0, 2, 1),)


# Check 5: edges.


def test_edges_of_the_pool():
    assert chains(np.empty((0, 3)), []) == com.Chains((), ())
    none = organize([], np.empty((0, 3)), QUERY)
    assert (none.blocks, none.context, none.read_tokens, none.trace, none.notes()) == ((), "", 0, (), [])
    one = chains(FOUR[:1], SCORES[:1])
    assert one.order == ((0,),) and one.stops == ("exhausted",) and one.cosines == 0
    assert len(chains(FOUR[:2], SCORES[:2], anchors=3).order) == 2
    two = organize(ITEMS[:2], FOUR[:2], QUERY, anchors=3, repeat=True)
    assert two.amounts["pruned"] == 2 * 2 - 4
    assert [len(organize(ITEMS, FOUR, QUERY, k=k).pool) for k in (1, 3, 9)] == [1, 3, 4]


def test_turns_of_one_text_are_two_turns_and_a_missing_date_stands_last():
    twins = [item("x", "the same", 3), item("y", "the same", 1), replace(item("z", "the same"), time=com.UNDATED)]
    made = organize(twins, FOUR[[A, A, A]], QUERY)
    assert [item.id for item in made.items] == ["y", "x", "z"]
    with pytest.raises(BadInput, match="Two items have the id 'x'"):
        organize([twins[0], twins[0]], FOUR[:2], QUERY)
    zoned = replace(twins[1], time=datetime.fromisoformat("2024-05-07T09:00+02:00"))
    with pytest.raises(BadInput, match="cannot be compared, some have a time zone"):
        organize([twins[0], zoned], FOUR[:2], QUERY)


def test_negative_cosines_do_not_open_the_product():
    vectors = np.array([[1.0, 0.0], [-1.0, 0.1], [0.5, 1.0]])
    scores = np.array([-0.2, -0.9, -0.95])
    assert chains(vectors, scores, anchors=1).order == ((0,),) and chains(vectors, scores, anchors=1).stops == (
        "unrelated",
    )
    kept = chains(vectors, scores, anchors=1, negative="keep")
    assert kept.links[0].gate == pytest.approx(0.9 / math.sqrt(1.01)) and kept.order == ((0, 1),)
    # An anchor below 0 turns the published test round: a turn of -0.3 is refused when it is near, and taken when it is far.
    near, far = (np.array([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]]) for cosine in (0.5, 0.1))
    assert chains(near, [-0.1, -0.3], anchors=1, negative="keep").order == ((0,),)
    assert chains(far, [-0.1, -0.3], anchors=1, negative="keep").order == ((0, 1),)
    assert chains(near, [0.3, -0.2], anchors=1, gate="query").stops == ("unrelated",)


def test_directions_that_cancel_leave_no_context():
    vectors = np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    cancelled = chains(vectors, [0.9, 0.8, 0.1], gate="query", beta=0.0, anchors=1)
    assert cancelled.order == ((0, 1, 2),) and cancelled.links[1].cosine == 0.0


def test_what_is_wrong_is_named():
    zero = FOUR.copy()
    zero[2] = 0
    for call, said in (
        (lambda: chains(zero, SCORES), "Vector 2 is no direction"),
        (lambda: organize(ITEMS, zero, QUERY), "Vector 2 is no direction"),
        (lambda: organize(ITEMS, FOUR, QUERY * 0), "Vector 0 is no direction"),
        (lambda: organize(ITEMS, FOUR, [1.0, 0.0]), "has 2 numbers, those of the items 3"),
        (lambda: chains(FOUR, SCORES[:3]), "shape"),
        (lambda: chains(FOUR, [1, 2, 3, math.nan]), "one finite number"),
        (lambda: chains(FOUR, SCORES, anchors=0), "anchors is 0"),
        (lambda: chains(FOUR, SCORES, beta=-0.1), "beta is -0.1"),
        (lambda: chains(FOUR, SCORES, beta=math.nan), "beta is nan"),
        (lambda: chains(FOUR, SCORES, weight=1.5), "weight is 1.5"),
        (lambda: chains(FOUR, SCORES, floor=2.0), "floor is 2.0"),
        (lambda: chains(FOUR, SCORES, max_length=0), "max_length is 0"),
        (lambda: chains(FOUR, SCORES, context="concatenated"), "embed is for"),
        (lambda: chains(FOUR, SCORES, embed=lambda places: QUERY), "embed is for"),
        (lambda: chains(FOUR, SCORES, gate="both"), "product"),
        (lambda: organize(ITEMS, FOUR, QUERY, context="concatenated"), "embed is for"),
        (lambda: organize(ITEMS, FOUR, QUERY, k=0), "k is 0"),
        (lambda: organize(ITEMS, FOUR, QUERY, budget=0), "budget is 0"),
        (lambda: organize(ITEMS, FOUR, QUERY, sessions=1), "Session 's' has no vector"),
        (lambda: organize(ITEMS, FOUR, QUERY, beta="adaptive", floor=0.1), "floor of its own"),
        (lambda: cosine_floor(FOUR[:1]), "needs 2 vectors"),
        (lambda: organize(ITEMS, FOUR, QUERY, seed=-1), "seed is -1: use a whole number of 0"),
        (lambda: organize(ITEMS, FOUR, QUERY, seed=1.5), "seed is 1.5"),
        (lambda: organize(ITEMS, FOUR, QUERY, k=2.5), "k is 2.5: use a whole number"),
        (lambda: organize(ITEMS, FOUR, QUERY, budget=math.nan), "budget is nan: use a whole number"),
        (lambda: chains(FOUR, SCORES, anchors=2.5), "anchors is 2.5: use a whole number"),
    ):
        with pytest.raises(BadInput, match=said):
            call()


# Check 6: nothing is found that the pool does not hold.


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 40),
    k=st.integers(1, 25),
    gate=st.sampled_from(["product", "query", "context", "weighted"]),
    beta=st.sampled_from([0.0, 0.5, 1.0, "adaptive"]),
    repeat=st.booleans(),
)
def test_recall_is_at_most_that_of_the_k_nearest(seed, size, k, gate, beta, repeat):
    vectors, scores = drawn(seed, size)
    generator = np.random.default_rng(seed)
    items = [item(f"{place:02}", minutes=int(generator.integers(5))) for place in range(size)]
    query = np.linalg.lstsq(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), scores, rcond=None)[0]
    if not np.linalg.norm(query) > 0:
        return
    made = organize(items, vectors, query, k=k, gate=gate, beta=beta, repeat=repeat)
    cosines = np.round(vectors / np.linalg.norm(vectors, axis=1, keepdims=True) @ query / np.linalg.norm(query), 12)
    nearest = sorted(range(size), key=lambda place: (-cosines[place], items[place].time, items[place].id))[:k]
    evidence = set(generator.choice(size, min(size, 3), replace=False).tolist())
    printed = {int(item.id) for item in made.items}
    assert printed <= set(nearest) and [int(item.id) for item in made.pool] == nearest
    assert len(evidence & printed) <= len(evidence & set(nearest))
    assert len(made.items) == made.amounts["printed"] <= len(made.chains.order) * len(nearest)
    assert repeat or made.amounts["printed"] == made.amounts["unique"]


# Anchors, lengths, floors.


def test_anchors_are_drawn_in_proportion_to_positive_scores():
    vectors = np.eye(5)
    scores = np.array([0.6, 0.3, 0.1, -0.5, 0.0])
    draw = np.random.default_rng(0)
    first = [chains(vectors, scores, anchors=1, draw=draw).order[0][0] for _ in range(1500)]
    assert np.bincount(first, minlength=5) / 1500 == pytest.approx([0.6, 0.3, 0.1, 0, 0], abs=0.03)
    pairs = [tuple(order[0] for order in chains(vectors, scores, anchors=2, draw=draw).order) for _ in range(1500)]
    assert set(pairs) == {(0, 1), (0, 2), (1, 2)}  # without replacement, the higher score first
    # P(1 and 2) = .3 * .1/.7 + .1 * .3/.9
    assert pairs.count((1, 2)) / 1500 == pytest.approx(0.3 / 7 + 0.1 / 3, abs=0.025)
    assert [order[0] for order in chains(vectors, scores, anchors=4, draw=draw).order] == [0, 1, 2, 4]
    one, two = (organize(ITEMS, FOUR, QUERY, anchors=1, seed=seed).chains for seed in (0, 0))
    assert one == two
    assert len({organize(ITEMS, FOUR, QUERY, anchors=1, seed=seed).chains.order[0][0] for seed in range(20)}) == 3


def test_a_chain_ends_at_its_length_and_at_its_floor():
    made = chains(FOUR, SCORES, max_length=2)
    assert made.order == ((A, B), (B, A), (C, A)) and made.stops[2] == "length"
    floor = chains(FOUR, SCORES, beta=0.0, floor=0.5)
    assert floor.order == ((A, B), (B, A), (C,)) and floor.stops[2] == "floor"  # a is at .48 from c
    assert chains(FOUR, SCORES, beta=0.0, floor=0.48).order[2][:2] == (C, A)


def test_the_floor_is_of_the_embedder():
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((60, 40))
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    every = (units @ units.T)[np.triu_indices(60, 1)]
    made = cosine_floor(vectors, z=3.0)
    spread = 1.4826 * np.median(np.abs(every - np.median(every)))
    assert (
        made.pairs == 1770 and made.median == pytest.approx(np.median(every)) and made.spread == pytest.approx(spread)
    )
    assert made.value == pytest.approx(np.median(every) + 3 * spread) and spread == pytest.approx(
        1 / math.sqrt(40), rel=0.1
    )
    some = cosine_floor(vectors, z=3.0, pairs=1500)
    assert some.pairs == 1500 and some != made and some.value == pytest.approx(made.value, abs=0.05)
    # A constant added to every vector moves all cosines up, and the floor with them.
    moved = cosine_floor(vectors + 10, z=3.0)
    assert moved.median > 0.9 and moved.value > 0.95 and cosine_floor(FOUR, z=50.0).value == 1.0


def test_an_adaptive_beta_stops_where_a_fixed_one_takes_all():
    """Five groups of four turns, seen through an embedder whose cosines are all high."""
    generator = np.random.default_rng(0)
    vectors = np.repeat(6 * np.eye(6)[:5], 4, axis=0) + 0.1 * generator.standard_normal((20, 6))
    vectors[:, 5] += 40
    items, query = [item(f"{place:02}") for place in range(20)], [8.0, 0, 0, 0, 0, 40]
    fixed = organize(items, vectors, query)
    assert fixed.chains.stops == ("exhausted",) * 3 and "only the order" in fixed.notes()[0]
    adaptive = organize(items, vectors, query, beta="adaptive")
    assert {item.id for item in adaptive.items} == {"00", "01", "02", "03"} and adaptive.chains.stops == ("floor",) * 3
    assert adaptive.notes() == []


# The print, its budget, its costs and its trace.


def test_sessions_are_chosen_first_where_that_is_asked_for():
    items = [replace(item, session=name) for item, name in zip(ITEMS, "uvvu", strict=True)]
    near = {"u": [0.0, 1, 0], "v": [1.0, 1, 0]}
    assert [item.id for item in organize(items, FOUR, QUERY, sessions=1, session_vectors=near).pool] == ["b", "c"]
    assert len(organize(items, FOUR, QUERY, sessions=2, session_vectors=near).pool) == 4
    assert len(organize(items, FOUR, QUERY).pool) == 4


@settings(max_examples=30, deadline=None)
@given(budget=st.integers(1, 60), repeat=st.booleans(), headers=st.booleans())
def test_a_budget_is_of_the_whole_print_and_ends_with_the_first_that_does_not_fit(budget, repeat, headers):
    own = {"repeat": repeat, "headers": headers}
    free = organize(ITEMS, FOUR, QUERY, **own)
    cut = organize(ITEMS, FOUR, QUERY, budget=budget, **own)
    assert cut.read_tokens == words(cut.context) <= budget and free.items[: len(cut.items)] == cut.items
    if len(cut.items) < len(free.items):
        more, text = print_blocks(free.blocks, headers=headers, budget=10**6), ""
        for total in range(len(free.items) + 1):
            kept, text = print_blocks(com._first([list(block) for block in free.blocks], total), headers=headers)
            if words(text) > budget:
                break
        assert sum(map(len, kept)) == len(cut.items) + 1 and more[1] == free.context
        assert cut.trace[-1] == {"decision": "budget", "left_out": len(free.items) - len(cut.items)}
    assert ("===" in cut.context) == (headers and len(cut.items) > 0)


def test_every_decision_is_in_the_trace():
    made = organize(ITEMS, FOUR, QUERY)
    rows = [{key: row[key] for key in ("decision", "chain", "item", "reason") if key in row} for row in made.trace]
    assert rows[:4] == [
        {"decision": "anchor", "chain": 1, "item": "a"},
        {"decision": "link", "chain": 1, "item": "b"},
        {"decision": "refused", "chain": 1, "item": "c"},
        {"decision": "stop", "chain": 1, "reason": "blocked"},
    ]
    link = made.trace[1]
    assert (link["score"], link["cosine"], link["gate"], link["least"]) == pytest.approx((0.6, 0.96, 0.576, 0.4))
    assert sum(row["decision"] in ("link", "refused") for row in rows) == made.amounts["decisions"] == 7
    assert [row["length"] for row in made.trace if row["decision"] == "stop"] == [2, 2, 3]


def test_joined_texts_are_embedded_counted_and_too_long_ones_named():
    counts = {f"words of {name}": row for name, row in zip("abcd", FOUR, strict=True)}
    seen = []

    def embedder(texts):
        seen.extend(texts)
        return [sum(counts[part] for part in text.split("\n\n")) for text in texts]

    made = organize(ITEMS, FOUR, QUERY, context="concatenated", embedder=embedder, window=6)
    assert made.chains.order == chains(FOUR, SCORES).order
    assert seen[:2] == ["words of a", "words of a\n\nwords of b"]
    assert made.amounts["embedding_calls"] == len(seen) == 7
    assert made.amounts["embedded_tokens"] == sum(map(words, seen)) == 3 * (3 + 6) + 9
    assert made.amounts["cut_contexts"] == 1 and made.notes() == [
        "1 of 7 joined texts were longer than the embedder's window: it saw the beginning of those chains only. "
        "context='mean' has no such limit."
    ]


def test_anchors_of_a_seed_are_those_of_its_generator():
    scores = np.array([0.6, 0.3, 0.1, 0.0, -0.5])
    for seed in range(8):
        chances = np.array([0.6, 0.3, 0.1, 0, 0])
        drawn = np.random.default_rng(seed).choice(5, 2, replace=False, p=chances / chances.sum())
        made = chains(np.eye(5), scores, anchors=2, draw=np.random.default_rng(seed))
        assert [order[0] for order in made.order] == sorted(drawn.tolist())
    for several, places in ((3, [0, 1, 2]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])):
        made = chains(np.eye(5), scores, anchors=several, draw=np.random.default_rng(1))
        assert [order[0] for order in made.order] == places
    none = chains(np.eye(3), np.array([0.0, -0.1, -0.2]), anchors=2, draw=np.random.default_rng(1))
    assert [order[0] for order in none.order] == [0, 1]


def test_pairs_of_a_floor_are_all_or_those_of_its_seed():
    vectors = np.random.default_rng(3).standard_normal((6, 4))
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert cosine_floor(vectors, pairs=15).pairs == 15 == cosine_floor(vectors, pairs=16).pairs
    every = (units @ units.T)[np.triu_indices(6, 1)]
    assert cosine_floor(vectors, pairs=15).median == pytest.approx(np.median(every))
    generator = np.random.default_rng(4)
    first = generator.integers(6, size=14)
    second = (first + generator.integers(1, 6, size=14)) % 6
    assert (first != second).all()
    some = (units[first] * units[second]).sum(axis=1)
    made = cosine_floor(vectors, pairs=14, seed=4)
    spread = 1.4826 * np.median(abs(some - np.median(some)))
    assert (made.pairs, made.median, made.spread) == (14, pytest.approx(np.median(some)), pytest.approx(spread))
    assert made.value == pytest.approx(np.median(some) + 2 * spread)
    assert cosine_floor(vectors, z=-99.0).value == -1.0 and cosine_floor(vectors[:2], pairs=1).pairs == 1
    adaptive = organize(ITEMS, FOUR, QUERY, beta="adaptive")
    assert adaptive.chains == organize(ITEMS, FOUR, QUERY, beta=0.0, floor=cosine_floor(FOUR).value).chains
    assert organize(ITEMS[:1], FOUR[:1], QUERY, beta="adaptive").chains.stops == ("exhausted",)


def test_settings_may_be_at_their_ends_and_not_beyond():
    for name, most in (("floor", 1), ("weight", 1), ("beta", None)):
        least = -1 if name == "floor" else 0
        chains(FOUR, SCORES, **{name: float(least)})
        with pytest.raises(BadInput, match=f"{name} is"):
            chains(FOUR, SCORES, **{name: least - 0.01})
        if most is not None:
            chains(FOUR, SCORES, **{name: 1.0})
            with pytest.raises(BadInput, match=f"{name} is"):
                chains(FOUR, SCORES, **{name: 1.01})
    for name in ("k", "anchors", "max_length", "budget"):
        organize(ITEMS, FOUR, QUERY, **{name: 1})
        with pytest.raises(BadInput, match=f"{name} is 0: use at least 1"):
            organize(ITEMS, FOUR, QUERY, **{name: 0})
    organize(ITEMS, FOUR, QUERY, seed=0)
    with pytest.raises(BadInput, match="seed is -1"):
        organize(ITEMS, FOUR, QUERY, seed=-1)
    with pytest.raises(BadInput, match="2 vectors"):
        cosine_floor(FOUR[:1])
    with pytest.raises(BadInput, match="0 and z"):
        cosine_floor(FOUR, pairs=0)


def test_that_nothing_stopped_is_said_of_two_and_not_of_one():
    assert [len(organize(ITEMS[:n], FOUR[:n], QUERY, beta=0.0).notes()) for n in (1, 2)] == [0, 1]


def test_hundreds_of_items_have_ids_of_their_own():
    many = [item(f"{place:03}") for place in range(300)]
    vectors = np.random.default_rng(0).standard_normal((300, 3))
    assert len(organize(many, vectors, QUERY, k=2).pool) == 2
    with pytest.raises(BadInput, match="Two items have the id '007'"):
        organize([*many[:8], many[7]], vectors[:9], QUERY)


def test_directions_that_nearly_cancel_leave_a_context_above_the_rounding_alone():
    gram = np.full((3, 3), -0.5) + 1.5 * np.eye(3)
    walk = com._Walk(
        units=np.eye(3), scores=np.ones(3), between=gram, beta=0.5, gate="product", context="mean", weight=0.5,
        clip=True, floor=None, most=5, embed=None,
    )  # fmt: skip
    total = np.array([1.0, 2.0, 3.0])
    for square, known in ((2e-12, False), (3e-12, False), (4e-12, True), (2e-13, False), (0.25, True)):
        near = walk._near([0, 1, 2], total, square)
        np.testing.assert_allclose(near, total / math.sqrt(square) if known else np.zeros(3))
