"""The worlds of Chain-of-Memory's study, and its arms: what is printed of a pool, at how many tokens, and what it holds.

two-hop   a made-up store in 64 dimensions: the first hop lies near the question, the second near the first; forty turns that
          are as near to the question, a hundred that are not, and, in one condition, ten turns of chatter near the first hop
locomo    the 1,536 scored questions of LoCoMo that have evidence; vectors are made of word counts, by three embedders:
          tfidf (words alone), lsa (128 directions of them), offset (lsa and one constant direction, so that all cosines
          are high, as those of neural sentence vectors are)

An embedder is fitted on two thirds of a conversation's turns, which a seed draws: seeds are embedders, items are questions,
clusters are conversations. All arms of a seed see the same vectors. Tokens are words. Stored of LoCoMo are ids and numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

from equipoise.agents.chain_of_memory import HEADER, Chains, chains, cosine_floor
from equipoise.agents.memory import turn_text, words
from equipoise.core.state import load_state, save_state
from equipoise.data.answers import normalize
from equipoise.data.histories import History, MemoryQuestion
from equipoise.data.lifelogs import read_histories
from equipoise.data.public import folder
from equipoise.data.retrieve import directions

Floats = NDArray[np.float64]
K, ANCHORS, BETA, Z = 20, 3, 0.5, 2.0
ALLOWED = (60, 120, 240, 480, 960, 1920)  # tokens of a print; nearly every print ends before the last
RANKED = 80  # turns of a ranking that are kept: as many as the longest print has, and its headers' tokens
HEADER_TOKENS = words(HEADER.format(1))
DIRECTIONS, OFFSET = 128, 1.2  # of lsa; the length of the constant direction, which puts random pairs near 0.6
EMBEDDERS = ("tfidf", "lsa", "offset")
WIDTH, LIKE, UNLIKE, CHATTER = 64, 40, 100, 10  # of the two-hop store
HOPS = ({"rho": 0.6, "chatter": 0}, {"rho": 0.3, "chatter": 0}, {"rho": 0.6, "chatter": CHATTER})
WORLD = "world"  # the file of a preparation


@dataclass(frozen=True)
class Case:
    """One question, and what is near to it.

    Turns are counted by their place in the ranking: tokens [R], times [R] (any order that grows), scores [k] and vectors
    [k, d], not scaled, of the k nearest. evidence: places; -1 for a turn that is not ranked so far. embed: of joined turns.
    floor: a least cosine of this store. asked: tokens of the question; store: of all turns, ranked or not.
    """

    id: str
    cluster: str
    tokens: NDArray[np.int64]
    times: NDArray[np.int64]
    scores: Floats
    vectors: Floats
    evidence: frozenset[int]
    embed: Callable[[tuple[int, ...]], Floats]
    floor: float
    asked: int
    store: int


@dataclass(frozen=True)
class Arranged:
    """Blocks of places as an arm would print them, and how many contexts and tokens of contexts were embedded for that."""

    blocks: list[list[int]]
    headers: bool = True
    made: Chains | None = None
    contexts: int = 0
    embedded: int = 0


@dataclass(frozen=True)
class Printed:
    """Places in the order of the print, and its tokens."""

    places: tuple[int, ...]
    tokens: int

    def holds(self, evidence: frozenset[int]) -> float:
        """1 where all of the evidence is printed, else 0."""
        return float(evidence <= set(self.places))


def arrange(arm: str, case: Case, draw: np.random.Generator) -> Arranged:
    """What an arm of the study makes of a case."""
    size = len(case.scores)
    if arm == "rank":
        return Arranged([list(range(size))], headers=False)
    if arm == "rank-repeated":
        return Arranged([list(range(size))] * ANCHORS, headers=False)
    shown = arm if arm in ("published", "adaptive", "last", "query", "context", "weighted") else "mean"
    shown = "published" if arm == "shuffled" else shown
    made, contexts, embedded = _chained(shown, case)
    if shown == "published":
        blocks = [list(order) for order in made.order]
    else:
        seen: set[int] = set()
        blocks = []
        for order in made.order:
            blocks.append([place for place in order if place not in seen])
            seen.update(order)
    union = sorted({place for block in blocks for place in block})
    if arm == "union-ranked":
        blocks = [union]
    elif arm == "union-by-time":
        blocks = [sorted(union, key=lambda place: (case.times[place], place))]
    elif arm == "union-size":
        blocks = [list(range(len(union)))]
    elif arm == "shuffled":
        order = [place for block in blocks for place in block]
        blocks = [[order[place] for place in draw.permutation(len(order))]]
    headers = arm in ("mean", "published", "adaptive", "last", "query", "context", "weighted")
    return Arranged(blocks, headers, made, contexts, embedded)


def _chained(shown: str, case: Case) -> tuple[Chains, int, int]:
    spent = [0, 0]

    def embed(places: tuple[int, ...]) -> Floats:
        spent[0] += 1
        spent[1] += int(case.tokens[list(places)].sum())
        return case.embed(places)

    own: dict[str, Any] = {"anchors": ANCHORS, "beta": BETA}
    if shown == "published":
        own |= {"context": "concatenated", "negative": "keep", "embed": embed}
    elif shown == "adaptive":
        own |= {"beta": 0.0, "floor": case.floor}
    elif shown == "last":
        own["context"] = "last"
    elif shown != "mean":
        own["gate"] = shown
    return chains(case.vectors, case.scores, **own), spent[0], spent[1]


def printed(arranged: Arranged, tokens: NDArray[np.int64], allowed: int) -> Printed:
    """What fits into so many tokens, as `chain_of_memory.print_blocks` does it: the first turn that does not ends it."""
    places: list[int] = []
    spent = 0
    for block in arranged.blocks:
        for number, place in enumerate(block):
            more = int(tokens[place]) + (HEADER_TOKENS if arranged.headers and number == 0 else 0)
            if spent + more > allowed:
                return Printed(tuple(places), spent)
            places.append(place)
            spent += more
    return Printed(tuple(places), spent)


def by_rank(case: Case, tokens: int) -> float:
    """Whether as many tokens of the ranking hold all of the evidence: 1, 0, or the share of the turn that is cut there.

    A ranking is cut between two turns. To print as much on average, the longer of the two prints is taken with the
    probability of the part of its last turn that fits; what is returned is the mean over that draw.
    """
    ends = np.cumsum(case.tokens)
    whole = int(np.searchsorted(ends, tokens, side="right"))
    if -1 in case.evidence:
        return 0.0
    last = max(case.evidence)
    if last < whole:
        return 1.0
    if last > whole or whole >= len(ends):
        return 0.0
    before = int(ends[whole - 1]) if whole else 0
    return (tokens - before) / int(case.tokens[whole])


# --- the two-hop store -----------------------------------------------------------------------------------------------


def two_hop(rho: float, chatter: int, seed: int, number: int) -> Case:
    """One question of the made-up store, drawn by the seed and its number."""
    draw = np.random.default_rng([seed, number, round(100 * rho), chatter])

    def around(center: Floats, cosines: Any, count: int) -> Floats:
        """Directions at these cosines from the center."""
        noise = draw.standard_normal((count, WIDTH))
        noise -= np.outer(noise @ center, center)
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        near = np.broadcast_to(np.asarray(cosines, np.float64), count)[:, None]
        return near * center + np.sqrt(1 - near**2) * noise

    query = directions(draw.standard_normal((1, WIDTH)), 1)[0]
    first = around(query, 0.7, 1)
    noise = directions(draw.standard_normal((1, WIDTH)), 1)
    second = directions(rho * first + 0.25 * query + 0.6 * noise, 1)
    like = around(query, draw.uniform(0.3, 0.75, LIKE), LIKE)
    unlike = around(query, draw.uniform(-0.2, 0.2, UNLIKE), UNLIKE)
    near = around(first[0], 0.92, chatter)  # nearly the same words: more like the first hop than the second is
    vectors = np.concatenate([first, second, like, unlike, near])
    tokens, times = draw.integers(8, 33, len(vectors)), draw.permutation(len(vectors))
    scores = vectors @ query
    ranking = np.argsort(-scores, kind="stable")[:RANKED]
    pool = vectors[ranking[:K]]
    places = {int(place): rank for rank, place in enumerate(ranking)}
    return Case(
        id=f"{seed}-{number}",
        cluster="",
        tokens=tokens[ranking],
        times=times[ranking],
        scores=scores[ranking[:K]],
        vectors=pool,
        evidence=frozenset(places.get(hop, -1) for hop in (0, 1)),
        embed=lambda places: pool[list(places)].sum(axis=0),
        floor=cosine_floor(vectors, z=Z, seed=seed).value,
        asked=8,
        store=int(tokens.sum()),
    )


# --- LoCoMo ----------------------------------------------------------------------------------------------------------


def prepare_locomo(target: Path, draw: np.random.Generator) -> None:
    """Reads LoCoMo, fits the embedders on two thirds of the turns, ranks the turns for every question, and stores that.

    Raises BadInput where EQUIPOISE_DATA has no folder locomo.
    """
    histories = conversations()
    spoken, conversation, turns = [], [], {}
    for number, history in enumerate(histories):
        for session in history.sessions:
            for turn in session.turns:
                turns[history.name, turn.id] = len(turns)
                spoken.append(f"{turn.speaker} {turn.text}")
                conversation.append(number)
    texts, asked = printed_turns(histories), asked_of(histories)
    vocabulary: dict[str, int] = {}
    counts = _counts(spoken, vocabulary, grow=True)
    questions, width = _counts([question.text for _, question in asked], vocabulary, grow=False), len(vocabulary)
    of, rarity = np.asarray(conversation), np.zeros((len(histories), width))
    tokens = np.asarray([words(text) for text in texts], np.int64)
    state: dict[str, Any] = {
        "questions": [question.id for _, question in asked],
        "clusters": [histories[number].name for number, _ in asked],
        "evidence": [[turns[histories[number].name, name] for name in question.evidence] for number, question in asked],
        "asked": [words(question.text) for _, question in asked],
        "stores": [int(tokens[of == number].sum()) for number, _ in asked],
        "tokens": tokens,
        "conversation": of,
        "counts": {"data": counts.data, "indices": counts.indices, "indptr": counts.indptr},
        "rarity": rarity,
        "lsa": np.zeros((len(texts), DIRECTIONS)),
        "ranking": {},
        "scores": {},
        "floors": {},
    }
    for name in EMBEDDERS:
        state["ranking"][name] = np.zeros((len(asked), RANKED), np.int64)
        state["scores"][name], state["floors"][name] = np.zeros((len(asked), RANKED)), [0.0] * len(asked)
    for number in range(len(histories)):
        rows = np.flatnonzero(of == number)
        own = [place for place, (where, _) in enumerate(asked) if where == number]
        sample = np.sort(draw.choice(rows, 2 * len(rows) // 3, replace=False))
        seen = np.asarray((counts[sample] > 0).sum(axis=0)).ravel()
        rarity[number] = np.log((1 + len(sample)) / (1 + seen)) + 1
        tfidf, queries = (_of(each, rarity[number]) for each in (counts[rows], questions[own]))
        begun = draw.standard_normal(min(len(sample), width))
        found: Any = svds(_of_length_1(_of(counts[sample], rarity[number])), k=DIRECTIONS, v0=begun)[2]
        state["lsa"][rows] = tfidf @ found.T
        for name in EMBEDDERS:
            if name == "tfidf":
                units, wanted = _of_length_1(tfidf).toarray(), _of_length_1(queries).toarray()
            else:
                units, wanted = _offset(state["lsa"][rows], name), _offset(queries @ found.T, name)
            near = wanted @ units.T
            order = np.argsort(-near, axis=1, kind="stable")[:, :RANKED]
            state["ranking"][name][own] = rows[order]
            state["scores"][name][own] = np.take_along_axis(near, order, axis=1)
            floor = cosine_floor(units[np.linalg.norm(units, axis=1) > 0], z=Z).value
            for place in own:
                state["floors"][name][place] = floor
    save_state(target / WORLD, state)


def locomo(state: Mapping[str, Any], embedder: str) -> Iterator[Case]:
    """The questions as an embedder sees them. state: of a preparation."""
    lsa, tokens, rarity, of = state["lsa"], state["tokens"], state["rarity"], state["conversation"]
    sparse = state["counts"]
    counts = csr_matrix((sparse["data"], sparse["indices"], sparse["indptr"]), shape=(len(tokens), rarity.shape[1]))
    for number, name in enumerate(state["questions"]):
        ranking, scores = state["ranking"][embedder][number], state["scores"][embedder][number]
        pool = ranking[:K]
        if embedder == "tfidf":
            rows = _of(counts[pool], rarity[of[pool[0]]])
            raw = rows[:, np.unique(rows.indices)].toarray()
        else:
            raw = lsa[pool]
        lone = np.linalg.norm(raw, axis=1) == 0  # words that the embedder has not seen: nothing is near them
        pool, raw = pool[~lone], raw[~lone]
        places = {int(turn): rank for rank, turn in enumerate(ranking)}
        yield Case(
            id=name,
            cluster=state["clusters"][number],
            tokens=tokens[ranking],
            times=ranking,  # turns are numbered in the order in which they were said
            scores=scores[: len(pool)],
            vectors=_offset(raw, embedder),
            evidence=frozenset(places.get(turn, -1) for turn in state["evidence"][number]),
            embed=lambda places, raw=raw: _offset(raw[list(places)].sum(axis=0)[None], embedder)[0],
            floor=state["floors"][embedder][number],
            asked=state["asked"][number],
            store=state["stores"][number],
        )


def conversations() -> list[History]:
    """The ten conversations. Raises BadInput where EQUIPOISE_DATA has no folder locomo."""
    return read_histories(folder("locomo") / "locomo10.json.gz")


def printed_turns(histories: Sequence[History]) -> list[str]:
    """All turns as they are printed, in the order in which the study numbers them."""
    return [
        turn_text(turn, session.time) for history in histories for session in history.sessions for turn in session.turns
    ]


def asked_of(histories: Sequence[History]) -> list[tuple[int, MemoryQuestion]]:
    """The scored questions that have evidence, each with the place of its conversation."""
    return [
        (number, question)
        for number, history in enumerate(histories)
        for question in history.questions
        if question.evidence and question.kind != "adversarial"
    ]


def _counts(texts: Sequence[str], vocabulary: dict[str, int], *, grow: bool) -> csr_matrix:
    rows, columns = [], []
    for number, text in enumerate(texts):
        for word in normalize(text).split():
            if grow:
                vocabulary.setdefault(word, len(vocabulary))
            if word in vocabulary:
                rows.append(number)
                columns.append(vocabulary[word])
    return csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(texts), len(vocabulary)))


def _of(counts: csr_matrix, rarity: Floats) -> csr_matrix:
    return counts.multiply(rarity).tocsr()


def _of_length_1(rows: csr_matrix) -> csr_matrix:
    """Rows without any word stay as they are."""
    sizes = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    return rows.multiply(1 / np.where(sizes > 0, sizes, 1)[:, None]).tocsr()


def _offset(rows: Floats, embedder: str) -> Floats:
    """Rows of length 1, zeros left as they are; for the third embedder with a constant direction added to each."""
    if embedder == "tfidf":
        return rows
    sizes = np.linalg.norm(rows, axis=1, keepdims=True)
    units = rows / np.where(sizes > 0, sizes, 1)
    if embedder == "lsa":
        return units
    moved = np.concatenate([units, np.full((len(units), 1), OFFSET)], axis=1)
    return np.where(sizes > 0, moved / np.sqrt(1 + OFFSET**2), 0.0)


# --- measuring -------------------------------------------------------------------------------------------------------


def conditions(run: Any, *, trials: int, with_locomo: bool) -> Iterator[tuple[dict[str, Any], list[Case]]]:
    """(what is said of the world, its cases) for a run and seed."""
    for how in HOPS:
        yield {"world": "two-hop", **how}, [two_hop(how["rho"], how["chatter"], run.seed, n) for n in range(trials)]
    if with_locomo:
        state = load_state(run.prepared / WORLD)
        for embedder in EMBEDDERS:
            yield {"world": "locomo", "embedder": embedder}, list(locomo(state, embedder))


def measure(run: Any, *, arm: str, against: str = "", trials: int, with_locomo: bool) -> None:
    """Every condition of one arm and seed. against: of the arm "same-tokens", whose tokens it is given, by rank."""
    for number, (where, cases) in enumerate(conditions(run, trials=trials, with_locomo=with_locomo)):
        stores = {case.cluster or case.id: case.store for case in cases}
        run.spend(phase="build", prompt_tokens=sum(stores.values()))  # each is embedded once, for all of its questions
        draws = [np.random.default_rng([run.seed, number, place]) for place in range(len(cases))]
        with run.phase("query"):
            arranged = [arrange(against or arm, case, draw) for case, draw in zip(cases, draws, strict=True)]
        _measure_prints(run, where, cases, arranged, ranked=arm == "same-tokens")
        if arranged[0].made is not None and arm != "same-tokens":
            _measure_chains(run, where, cases, [each.made for each in arranged if each.made is not None])


def _measure_prints(
    run: Any, where: Mapping[str, Any], cases: list[Case], arranged: list[Arranged], *, ranked: bool
) -> None:
    ids, clusters = [case.id for case in cases], [case.cluster for case in cases]
    for allowed in ALLOWED:
        prints = [printed(each, case.tokens, allowed) for each, case in zip(arranged, cases, strict=True)]
        equal = [by_rank(case, each.tokens) for each, case in zip(prints, cases, strict=True)]
        held = equal if ranked else [each.holds(case.evidence) for each, case in zip(prints, cases, strict=True)]
        read = float(np.mean([each.tokens for each in prints]))
        at = {"allowed_tokens": allowed, "prompt_tokens": read}
        for outcome, scores in (
            ("evidence_recall", held),
            ("gain", [own - other for own, other in zip(held, equal, strict=True)]),
        ):
            run.items(outcome, ids, scores, at=at, where=where, clusters=clusters)
        run.measure("printed_tokens", read, at=at, where=where)
        if allowed == ALLOWED[-1]:
            unique = float(np.mean([len(set(each.places)) for each in prints]))
            run.measure("unique_turns", unique, at=at, where=where)
            own = [each.embedded for each in arranged] if not ranked else [0]
            run.spend(
                phase="embed",
                calls=len(cases) + (0 if ranked else sum(each.contexts for each in arranged)),
                prompt_tokens=sum(case.asked for case in cases) + sum(own),
            )
            run.spend(phase="query", prompt_tokens=sum(each.tokens for each in prints))


def _measure_chains(run: Any, where: Mapping[str, Any], cases: list[Case], made: list[Chains]) -> None:
    """How many chains are of one turn, and how many of the whole pool."""
    lengths = [(len(order), len(case.scores)) for case, each in zip(cases, made, strict=True) for order in each.order]
    at = {"allowed_tokens": ALLOWED[-1]}
    run.measure("single_chains", sum(own == 1 for own, _ in lengths), of=len(lengths), at=at, where=where)
    run.measure("full_chains", sum(own == size for own, size in lengths), of=len(lengths), at=at, where=where)


def measure_everything(run: Any, *, trials: int, with_locomo: bool) -> None:
    """The reference that prints the whole store: all of the evidence, and what that costs."""
    for where, cases in conditions(run, trials=trials, with_locomo=with_locomo):
        read = float(np.mean([case.store for case in cases]))
        at = {"allowed_tokens": round(read), "prompt_tokens": read}
        ids, clusters = [case.id for case in cases], [case.cluster for case in cases]
        run.items("evidence_recall", ids, [1.0] * len(cases), at=at, where=where, clusters=clusters)
        run.measure("printed_tokens", read, at=at, where=where)
        run.spend(phase="query", prompt_tokens=sum(case.store for case in cases))
