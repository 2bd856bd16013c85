"""Chain-of-Memory (arXiv:2601.14287): the turns that were found, arranged into a few chains that stop when the gate drops.

    pool      the k turns nearest to the question, s_i = cos(e_i, q)
    anchors   the L turns of highest s begin a chain each (or are drawn with p proportional to max(s, 0))
    link      b = argmax over the pool's rest of g_i = s_i cos(e_i, c), c the context of the chain so far; prev = g of the
              turn before (s of the anchor at first); the chain stops where g_b < beta prev, else takes b
    print     chains in order of their anchors, each under a header, its turns in the order of the chain

A larger beta makes shorter chains. No chain leaves the pool: what is printed holds no evidence that the k nearest do not
hold. What differs from the released code, and the word that brings it back:

- Cosines below 0 count as 0 in the product, where two of them would open the gate; a chain whose gate is not above 0 stops
  (negative="keep": neither; then an anchor of negative score turns its own test round, and takes what is worse).
- A turn is printed once (repeat=True: in every chain that holds it, up to L k turns).
- The context is the mean of the chain's directions, which needs no further embedding. context="concatenated" embeds the
  joined texts at every step, up to L (k - 1) calls; an embedder with a short window sees their beginning only. Where texts
  have vectors of one length that add up, both are the same.
- Sessions are not chosen first (sessions=10: only turns of the ten sessions nearest to the question).

beta is in effect a cosine of the embedder: an anchor's first link needs cos >= beta s_a / s_b, and later ratios are near
1. One beta keeps 3 turns with one embedder and all with another. beta="adaptive" stops instead where the cosine with the
context is below what z spreads above the median of random pairs is for this embedder and these texts.
"""

from __future__ import annotations

import bisect
import itertools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.agents.memory import MemoryItem, TokenCount, words
from equipoise.core.errors import BadInput
from equipoise.core.options import check_fields, closed
from equipoise.data.retrieve import directions

Gate = Literal["product", "query", "context", "weighted"]
Context = Literal["mean", "last", "concatenated"]
Negative = Literal["clip", "keep"]
Stop = Literal["blocked", "floor", "unrelated", "length", "exhausted"]
TextEmbedder = Callable[[Sequence[str]], ArrayLike]
Floats = NDArray[np.float64]

UNDATED = datetime.max  # of an item without a date: it stands behind those that have one, where scores are equal
DIGITS = 12  # cosines that agree in these are equal: products of one matrix differ in their last bits by place
HEADER = "=== Evidence Chain {} ==="
SPENT: tuple[str, ...] = ("embedded_tokens", "cut_contexts")  # on contexts that were embedded
JOINED = "\n\n"  # between the texts of a chain that are embedded together


@dataclass(frozen=True, slots=True)
class Link:
    """One decision: the best turn of what was left, and whether the chain took it.

    chain: its place among the chains. step: 1 for the first after the anchor. place: of the turn in the pool. least: what
    the gate had to come to, beta times the gate before.
    """

    chain: int
    step: int
    place: int
    score: float
    cosine: float
    gate: float
    least: float
    taken: bool


@dataclass(frozen=True, slots=True)
class Chains:
    """order: a tuple of places in the pool for each chain, anchor first. stops: why each ended. links: every decision.

    Reasons: "blocked" (below beta times the gate before), "floor" (too far from the context), "unrelated" (no gate above 0),
    "length" (as long as was allowed), "exhausted" (nothing left). cosines: of contexts with turns. contexts: embedded anew.
    """

    order: tuple[tuple[int, ...], ...]
    stops: tuple[Stop, ...]
    links: tuple[Link, ...] = ()
    cosines: int = 0
    contexts: int = 0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True)
class CosineFloor:
    """Cosines of random pairs of texts: their median, their spread (1.4826 times the median distance from it), and
    value = median + z spread, within [-1, 1]. pairs: how many were compared.
    """

    median: float
    spread: float
    value: float
    pairs: int


@dataclass(frozen=True)
class Organized:
    """What is printed, and how it came about.

    blocks: chains as they are printed, the empty ones left out. items: the same in one row, repetitions too. context: the
    print. read_tokens: of the context. pool: the k nearest, best first, with their scores; `chains` counts places in it.
    trace: a mapping a decision, plain values only. amounts: printed, unique, pruned (k L - printed), decisions, cosines,
    embedding_calls and embedded_tokens of contexts, cut_contexts.
    """

    blocks: tuple[tuple[MemoryItem, ...], ...]
    items: tuple[MemoryItem, ...]
    context: str
    read_tokens: int
    chains: Chains
    pool: tuple[MemoryItem, ...]
    scores: tuple[float, ...]
    trace: tuple[Mapping[str, object], ...]
    amounts: Mapping[str, float]

    def notes(self) -> list[str]:
        """What a reader must know: a sentence each, none if all is well."""
        said = []
        if self.chains.order and all(stop == "exhausted" for stop in self.chains.stops) and len(self.pool) > 1:
            said.append(
                "No chain stopped before the pool was used up: with this embedder beta chooses nothing, only the order."
            )
        if cut := int(self.amounts["cut_contexts"]):
            said.append(
                f"{cut} of {self.amounts['embedding_calls']:.0f} joined texts were longer than the embedder's window: "
                "it saw the beginning of those chains only. context='mean' has no such limit."
            )
        return said


@closed
def chains(
    vectors: ArrayLike,
    scores: ArrayLike,
    *,
    anchors: int = 3,
    beta: float = 0.5,
    gate: Gate = "product",
    context: Context = "mean",
    weight: float = 0.5,
    negative: Negative = "clip",
    floor: float | None = None,
    max_length: int | None = None,
    embed: Callable[[tuple[int, ...]], ArrayLike] | None = None,
    draw: np.random.Generator | None = None,
) -> Chains:
    """The chains of a pool. vectors: [K, d], of any length but zero. scores: [K], cosines with the question.

    gate: the product, the score alone, the cosine alone, or weight times the score plus (1 - weight) times the cosine.
    context: mean of the chain's directions, the last one, or what `embed` makes of a chain's places. floor: a link's least
    cosine with the context. max_length: turns of a chain. draw: anchors are drawn with it, without replacement, and the
    ranking fills up where fewer than `anchors` scores are above 0. Equal gates go to the higher score, then the lower place.
    No turn, no chain. Raises BadInput for other numbers of scores than of vectors, one that is not finite, a zero vector, a
    setting out of its range, and `embed` where it is not needed or missing. Source: arXiv:2601.14287, as released.
    """
    given = np.asarray(scores, np.float64)
    _check(anchors=anchors, beta=beta, weight=weight, floor=floor, max_length=max_length)
    if (embed is None) == (context == "concatenated"):
        raise BadInput("embed is for context='concatenated', which needs it: a function from places to their vector.")
    if given.ndim != 1 or not np.isfinite(given).all():
        raise BadInput("The scores are one finite number for each vector.")
    if not len(given):
        return Chains((), ())
    ranked = np.argsort(-given, kind="stable")
    units, s = directions(vectors, len(given))[ranked], given[ranked]
    walk = _Walk(
        units=units,
        scores=s,
        between=np.round(units @ units.T, DIGITS),
        beta=beta,
        gate=gate,
        context=context,
        weight=weight,
        clip=negative == "clip",
        floor=floor,
        most=len(s) if max_length is None else max_length,
        embed=None if embed is None else lambda chain: embed(tuple(int(ranked[place]) for place in chain)),
    )
    ended = [walk.chain(number, anchor) for number, anchor in enumerate(_anchors(s, anchors, draw))]
    places = ranked.tolist()
    return Chains(
        tuple(tuple(places[place] for place in order) for order, _ in ended),
        tuple(stop for _, stop in ended),
        tuple(
            Link(chain, step, places[place], float(s[place]), cosine, gate, least, taken)
            for chain, step, place, cosine, gate, least, taken in walk.links
        ),
        walk.cosines,
        walk.contexts,
    )


class _Walk:
    """The steps of all chains of one pool, whose turns stand in order of their scores: the first of equals is the one."""

    def __init__(
        self,
        *,
        units: Floats,
        scores: Floats,
        between: Floats,
        beta: float,
        gate: Gate,
        context: Context,
        weight: float,
        clip: bool,
        floor: float | None,
        most: int,
        embed: Callable[[Sequence[int]], ArrayLike] | None,
    ) -> None:
        self.units, self.scores, self.between, self.beta, self.gate = units, scores, between, beta, gate
        self.context, self.weight, self.clip, self.floor, self.most, self.embed = (
            context,
            weight,
            clip,
            floor,
            most,
            embed,
        )
        self.above = np.maximum(scores, 0.0) if clip else scores
        self.links: list[tuple[int, int, int, float, float, float, bool]] = []
        self.cosines = self.contexts = 0

    def chain(self, number: int, anchor: int) -> tuple[list[int], Stop]:
        chain, previous = [anchor], float(self.scores[anchor])
        # Products of the summed directions of the chain: with every turn, and with themselves.
        total, square = self.between[anchor].copy(), float(self.between[anchor, anchor])
        left = len(self.scores) - 1
        barred = np.zeros(len(self.scores))
        barred[anchor] = -math.inf
        while left:
            if len(chain) >= self.most:
                return chain, "length"
            if self.clip and previous <= 0:
                return chain, "unrelated"
            near = self._near(chain, total, square)
            gates = self._gates(near) + barred
            best = int(gates.argmax())
            gate, cosine, least = float(gates[best]), float(near[best]), self.beta * previous
            self.cosines += left
            stop = self._stop(gate, cosine, least)
            self.links.append((number, len(chain), best, cosine, gate, least, stop is None))
            if stop is not None:
                return chain, stop
            chain.append(best)
            square += 2 * float(total[best]) + float(self.between[best, best])
            total += self.between[best]
            barred[best] = -math.inf
            previous, left = gate, left - 1
        return chain, "exhausted"

    def _near(self, chain: list[int], total: Floats, square: float) -> Floats:
        """Cosines of every turn with the context."""
        if self.context == "last":
            return self.between[chain[-1]]
        if self.context == "mean":
            # Directions that cancel leave no context: nothing is near it.
            return total / math.sqrt(square) if square > 10.0**-DIGITS * len(chain) else np.zeros_like(total)
        assert self.embed is not None
        self.contexts += 1
        made = np.asarray(self.embed(chain), np.float64)
        return np.round(self.units @ directions(made.reshape(1, -1), 1)[0], DIGITS)

    def _gates(self, near: Floats) -> Floats:
        if self.gate == "query":
            return self.scores
        if self.gate == "context":
            return near
        if self.gate == "weighted":
            return self.weight * self.scores + (1 - self.weight) * near
        return self.above * (np.maximum(near, 0.0) if self.clip else near)

    def _stop(self, gate: float, cosine: float, least: float) -> Stop | None:
        if self.clip and gate <= 0:
            return "unrelated"
        if self.floor is not None and cosine < self.floor - 10.0**-DIGITS:
            return "floor"
        return "blocked" if gate < least - 10.0**-DIGITS * abs(least) else None


def cosine_floor(vectors: ArrayLike, *, z: float = 2.0, pairs: int = 2000, seed: int = 0) -> CosineFloor:
    """A least cosine for links, from how near random texts are to each other for this embedder. vectors: [n, d]

    All pairs where there are no more than `pairs`, else so many drawn by `seed`. Raises BadInput for fewer than 2 vectors.
    """
    rows = np.asarray(vectors, np.float64)
    n = len(rows)
    if n < 2 or pairs < 1 or not math.isfinite(z):
        raise BadInput(f"A floor needs 2 vectors, 1 pair and a finite z; there are {n}, {pairs} and z = {z}.")
    units = directions(rows, n)
    if n * (n - 1) // 2 <= pairs:
        first, second = np.triu_indices(n, 1)
    else:
        generator = np.random.default_rng(seed)
        first = generator.integers(n, size=pairs)
        second = (first + generator.integers(1, n, size=pairs)) % n
    cosines = (units[first] * units[second]).sum(axis=1)
    median = float(np.median(cosines))
    spread = 1.4826 * float(np.median(np.abs(cosines - median)))
    return CosineFloor(median, spread, min(max(median + z * spread, -1.0), 1.0), len(cosines))


@closed
def organize(
    items: Sequence[MemoryItem],
    vectors: ArrayLike,
    query_vector: ArrayLike,
    *,
    k: int = 20,
    anchors: int = 3,
    beta: float | Literal["adaptive"] = 0.5,
    gate: Gate = "product",
    context: Context = "mean",
    weight: float = 0.5,
    negative: Negative = "clip",
    floor: float | None = None,
    z: float = 2.0,
    max_length: int | None = None,
    seed: int | None = None,
    sessions: int | None = None,
    session_vectors: Mapping[str, ArrayLike] | None = None,
    embedder: TextEmbedder | None = None,
    window: int | None = None,
    repeat: bool = False,
    headers: bool = True,
    budget: int | None = None,
    count: TokenCount = words,
) -> Organized:
    """Items of a memory, arranged for one question. vectors: [n, d], one for each item. query_vector: [d]

    beta: "adaptive" for the floor of these vectors and z (a floor of your own: floor=, with beta=0). seed: draws anchors.
    sessions: only items of the so many nearest of `session_vectors`. embedder: of joined texts, for context="concatenated";
    window: tokens that it reads, for a note. repeat: turns once in every chain that holds them. budget: tokens of the whole
    print; the first turn that does not fit ends it. Else as `chains`. Items of equal score stand in order of date, then of
    id. Without items, an empty print. Raises BadInput for ids that are not unique, dates that cannot be compared, a vector
    that is no direction or does not fit, and a setting out of its range. Source: arXiv:2601.14287, as released.
    """
    _check(k=k, sessions=sessions, budget=budget, window=window, seed=seed, z=z)
    ids = [item.id for item in items]
    if len(set(ids)) != len(ids):
        twice = next(name for place, name in enumerate(ids) if name in ids[:place])
        raise BadInput(f"Two items have the id {twice!r}: give each its own.")
    try:
        dated = sorted(range(len(items)), key=lambda place: (items[place].time, items[place].id))
    except TypeError as error:
        raise BadInput(f"The dates of the items cannot be compared, some have a time zone: {error}.") from error
    if not items:
        return _organized([], [], Chains((), ()), [], dict.fromkeys(SPENT, 0.0), headers, None, count)
    units = directions(vectors, len(items))[dated]
    query = directions(np.asarray(query_vector, np.float64).reshape(1, -1), 1)[0]
    if len(query) != units.shape[1]:
        raise BadInput(f"The vector of the question has {len(query)} numbers, those of the items {units.shape[1]}.")
    if beta == "adaptive":
        if floor is not None:
            raise BadInput("beta='adaptive' makes a floor of its own: leave floor out, or use beta=0 beside it.")
        floor = cosine_floor(units, z=z).value if len(units) > 1 else None
    ratio = 0.0 if beta == "adaptive" else beta
    scores = np.round(units @ query, DIGITS)
    kept = _of_sessions([items[place].session for place in dated], query, sessions, session_vectors)
    best = kept[np.argsort(-scores[kept], kind="stable")][:k]
    pool = [items[dated[place]] for place in best]
    spent = dict.fromkeys(SPENT, 0.0)

    def embed(places: tuple[int, ...]) -> ArrayLike:
        assert embedder is not None
        text = JOINED.join(pool[place].text for place in places)
        tokens = count(text)
        spent["embedded_tokens"] += tokens
        spent["cut_contexts"] += window is not None and tokens > window
        return np.asarray(embedder([text]), np.float64).reshape(-1)

    made = chains(
        units[best],
        scores[best],
        anchors=anchors,
        beta=ratio,
        gate=gate,
        context=context,
        weight=weight,
        negative=negative,
        floor=floor,
        max_length=max_length,
        embed=None if embedder is None else embed,
        draw=None if seed is None else np.random.default_rng(seed),
    )
    blocks: list[list[MemoryItem]] = []
    seen: set[str] = set()
    for order in made.order:
        block = [pool[place] for place in order if repeat or pool[place].id not in seen]
        seen.update(item.id for item in block)
        blocks.append(block)
    return _organized(blocks, pool, made, scores[best].tolist(), spent, headers, budget, count)


def print_blocks(
    blocks: Sequence[Sequence[MemoryItem]],
    *,
    headers: bool = True,
    budget: int | None = None,
    count: TokenCount = words,
) -> tuple[list[list[MemoryItem]], str]:
    """What of the blocks is printed within a budget of tokens, headers among them, and the print.

    The first item that does not fit ends it; a block without items has no header. Raises BadInput for a budget below 1.
    """
    _check(budget=budget)
    filled = [list(block) for block in blocks if block]
    total = sum(map(len, filled))
    if budget is not None:
        total = (
            bisect.bisect_right(range(total + 1), budget, key=lambda n: count(_text(_first(filled, n), headers))) - 1
        )
    kept = _first(filled, total)
    return kept, _text(kept, headers)


def read_date(value: object, owner: str) -> datetime:
    """The date of a document of another library: a datetime or ISO 8601 text; UNDATED for None or "".

    With a time zone, the same moment in UTC and without one. owner: how the document is called in an error. Raises BadInput
    for anything else.
    """
    if value is None or value == "":
        return UNDATED
    try:
        made = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError as error:
        raise BadInput(
            f"{owner} has the date {value!r}: use ISO 8601 such as 2024-05-07T09:30, or date_field=None for none."
        ) from error
    return made if made.tzinfo is None else made.astimezone(UTC).replace(tzinfo=None)


def _first(blocks: list[list[MemoryItem]], total: int) -> list[list[MemoryItem]]:
    kept = []
    for block in blocks:
        if total <= 0:
            break
        kept.append(block[:total])
        total -= len(block)
    return kept


def _text(blocks: list[list[MemoryItem]], headers: bool) -> str:
    return "\n\n".join(
        "\n".join([*([HEADER.format(number)] if headers else []), *(item.text for item in block)])
        for number, block in enumerate(blocks, 1)
    )


def _organized(
    blocks: list[list[MemoryItem]],
    pool: list[MemoryItem],
    made: Chains,
    scores: list[float],
    spent: Mapping[str, float],
    headers: bool,
    budget: int | None,
    count: TokenCount,
) -> Organized:
    kept, text = print_blocks(blocks, headers=headers, budget=budget, count=count)
    items = tuple(itertools.chain.from_iterable(kept))
    wanted = sum(map(len, blocks))
    trace = _trace(made, pool, scores)
    trace += [{"decision": "budget", "left_out": wanted - len(items)}] if wanted > len(items) else []
    amounts = {
        "printed": len(items),
        "unique": len({item.id for item in items}),
        "pruned": len(pool) * len(made.order) - len(items),
        "decisions": len(made.links),
        "cosines": made.cosines,
        "embedding_calls": made.contexts,
        **spent,
    }
    return Organized(
        tuple(map(tuple, kept)), items, text, count(text), made, tuple(pool), tuple(scores), tuple(trace), amounts
    )


def _trace(made: Chains, pool: list[MemoryItem], scores: list[float]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    links = {number: [link for link in made.links if link.chain == number] for number in range(len(made.order))}
    for number, (order, stop) in enumerate(zip(made.order, made.stops, strict=True)):
        name = number + 1
        rows.append({"decision": "anchor", "chain": name, "item": pool[order[0]].id, "score": scores[order[0]]})
        rows += [
            {
                "decision": "link" if link.taken else "refused",
                "chain": name,
                "step": link.step,
                "item": pool[link.place].id,
                "score": link.score,
                "cosine": link.cosine,
                "gate": link.gate,
                "least": link.least,
            }
            for link in links[number]
        ]
        rows.append({"decision": "stop", "chain": name, "reason": stop, "length": len(order)})
    return rows


def _of_sessions(
    names: list[str], query: Floats, most: int | None, vectors: Mapping[str, ArrayLike] | None
) -> NDArray[np.intp]:
    """Places of the items of the nearest sessions, all where none are chosen."""
    if most is None:
        return np.arange(len(names))
    known, given = sorted(set(names)), vectors or {}
    if missing := [name for name in known if name not in given]:
        raise BadInput(
            f"Session {missing[0]!r} has no vector: where sessions= chooses among them, session_vectors= has one for each "
            "session of the items."
        )
    units = directions([np.asarray(given[name], np.float64).reshape(-1) for name in known], len(known))
    scores = np.round(units @ query, DIGITS)
    chosen = {known[place] for place in np.argsort(-scores, kind="stable")[:most]}
    return np.asarray([place for place, name in enumerate(names) if name in chosen], np.intp)


def _anchors(scores: Floats, most: int, draw: np.random.Generator | None) -> list[int]:
    """Places of the anchors. scores: from the highest down."""
    size = min(most, len(scores))
    if draw is None:
        return list(range(size))
    chances = np.maximum(scores, 0.0)
    drawn = set()
    if some := min(size, int((chances > 0).sum())):
        drawn = set(draw.choice(len(scores), some, replace=False, p=chances / chances.sum()).tolist())
    rest = (place for place in range(len(scores)) if place not in drawn)
    return sorted([*drawn, *itertools.islice(rest, size - len(drawn))])


def _check(
    *,
    k: int = 1,
    anchors: int = 1,
    beta: float = 0.0,
    weight: float = 0.0,
    floor: float | None = None,
    max_length: int | None = None,
    sessions: int | None = None,
    budget: int | None = None,
    window: int | None = None,
    seed: int | None = None,
    z: float = 0.0,
) -> None:
    counts = {
        "k": k,
        "anchors": anchors,
        "max_length": max_length,
        "sessions": sessions,
        "budget": budget,
        "window": window,
    }
    for name, value in counts.items():
        if value is not None and not isinstance(value, numbers.Integral):
            raise BadInput(f"{name} is {value!r}: use a whole number of at least 1.")
        if value is not None and value < 1:
            raise BadInput(f"{name} is {value}: use at least 1.")
    if seed is not None and (not isinstance(seed, numbers.Integral) or seed < 0):
        raise BadInput(f"seed is {seed!r}: use a whole number of 0 or more.")
    if not math.isfinite(z):
        raise BadInput(f"z is {z}: use a finite number of spreads.")
    if not 0 <= beta < math.inf:
        raise BadInput(f"beta is {beta}: use a number of 0 or more; a larger one makes shorter chains.")
    if not 0 <= weight <= 1:
        raise BadInput(f"weight is {weight}: it is the score's share, from 0 to 1.")
    if floor is not None and not -1 <= floor <= 1:
        raise BadInput(f"floor is {floor}: it is a cosine, from -1 to 1.")
