"""Retrieval over texts, given vectors, or both, as of a moment: BM25, cosines, and the fusion of rankings. Knows no model.

    index = TextIndex(["the clinic opens at 9", "the clinic moved to 11"], times=[1, 2])
    index.search("clinic opens", 5, until=1).places      array([0])

A search with `until` is the search of an index that was built of the older texts alone: document frequencies, lengths and
ties too know nothing of what came later. BM25 is that of Lucene, by bm25s (pip install 'equipoise[retrieval]').
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.core.errors import BadInput, MissingExtra
from equipoise.data.answers import normalize

DIGITS = 12  # cosines that agree in these are equal: products of one matrix differ in their last bits by place
RANK_CONSTANT = 60  # of reciprocal-rank fusion (Cormack et al. 2009)


@dataclass(frozen=True, eq=False)
class Hits:
    """What was found, best first. places: in the list of texts. scores: of BM25, cosines, or of the fusion of both."""

    places: NDArray[np.intp]
    scores: NDArray[np.float64]


class TextIndex:
    """Texts that can be searched by their words, and by vectors where these are given.

    texts: n of them, in any order. vectors: [n, d], of any length but zero. times: n moments that can be compared (numbers,
    dates), for `until`. Raises BadInput for other numbers of vectors or times than of texts, a vector that is no direction,
    times of kinds that have no order, and one that is nan.
    """

    def __init__(
        self, texts: Sequence[str], vectors: ArrayLike | None = None, times: Sequence[Any] | None = None
    ) -> None:
        self._texts: list[str] = []
        self._vectors = None if vectors is None else np.empty((0, 0))
        self._moments: list[Any] | None = None if times is None else []
        self._words: list[list[str]] = []
        self.add(texts, vectors, times)

    def add(self, texts: Sequence[str], vectors: ArrayLike | None = None, times: Sequence[Any] | None = None) -> None:
        """Take further texts in, whose places are behind those of the others. vectors, times: where the index has them.

        Raises BadInput as the making of an index does, and then takes nothing in.
        """
        every = [*self._texts, *texts]
        if (vectors is None) is not (self._vectors is None) or (times is None) is not (self._moments is None):
            raise BadInput(
                "An index knows vectors and times of all of its texts or of none: give what the others have."
            )
        rows, moments = self._vectors, self._moments
        if vectors is not None:
            rows = _joined(self._vectors, directions(vectors, len(texts)))
        if times is not None:
            if len(times) != len(texts):
                raise BadInput(f"There are {len(times)} times for {len(texts)} texts: give one for each.")
            if strange := [place for place, time in enumerate(times) if time != time]:
                raise BadInput(
                    f"Time {strange[0]} is {times[strange[0]]}, which is before and after nothing: give a moment."
                )
            moments = [*(self._moments or ()), *times]
        try:
            # stable: texts of one moment keep their order, so that an older index is the beginning of a younger one
            order = sorted(range(len(every)), key=int if moments is None else moments.__getitem__)
        except TypeError as error:
            raise BadInput(f"The times of the texts cannot be compared: {error}.") from error
        self._texts, self._vectors, self._moments, self._order = every, rows, moments, order
        self._times = None if moments is None else [moments[place] for place in order]
        self._scorer: tuple[int, Any] = (0, None)

    def __len__(self) -> int:
        return len(self._texts)

    def search(self, query: str, k: int, *, vector: ArrayLike | None = None, until: Any = None) -> Hits:
        """The k best of the texts that are not younger than `until`; fewer where there are fewer.

        By words where `vector` is None: texts that share none with the query are not found. By cosines where the query is
        "": all texts count. Else both rankings, fused. Texts of equal score stand in order of their time, then of their
        place. Raises BadInput for k below 1, a query without anything, `until` without times, and a vector that does not
        fit; MissingExtra without bm25s, where words are searched.
        """
        if k < 1:
            raise BadInput(f"k is {k}: ask for at least 1 text.")
        if vector is None and not query.strip():
            raise BadInput("The query is empty: give words, a vector, or both.")
        size = self._size(until)
        if vector is None:
            found = self._by_words(query, size)
        elif not query.strip():
            found = self._by_vector(vector, size)
        else:
            found = fuse([self._by_words(query, size).places, self._by_vector(vector, size).places])
        return Hits(np.asarray(self._order, np.intp)[found.places[:k]], found.scores[:k])

    def _size(self, until: Any) -> int:
        """How many of the ordered texts are not younger."""
        if until is None:
            return len(self._order)
        if self._times is None:
            raise BadInput("The index has no times, so that nothing is known to be older: give times=.")
        if until != until:
            raise BadInput(f"until is {until}, which is before and after nothing: give a moment.")
        try:
            return sum(time <= until for time in self._times)
        except TypeError as error:
            raise BadInput(f"{until!r} cannot be compared with the times of the texts: {error}.") from error

    def _by_words(self, query: str, size: int) -> Hits:
        words = normalize(query).split()
        if self._scorer[0] != size:
            self._words += [normalize(text).split() for text in self._texts[len(self._words) :]]
            held = [self._words[place] for place in self._order[:size]]
            self._scorer = (size, _scorer(held) if any(held) else None)
        if self._scorer[1] is None or not words:
            return Hits(np.empty(0, np.intp), np.empty(0))
        return _best(np.asarray(self._scorer[1].get_scores(words), np.float64), above=0.0)

    def _by_vector(self, vector: ArrayLike, size: int) -> Hits:
        if self._vectors is None:
            raise BadInput("The index has no vectors to compare with: give vectors=, or search without vector=.")
        direction = directions(np.atleast_2d(np.asarray(vector, np.float64)), 1)[0]
        if direction.shape != self._vectors.shape[1:]:
            raise BadInput(
                f"The vector of the query has {len(direction)} numbers, those of the texts {self._vectors.shape[1]}."
            )
        return _best(np.round(self._vectors[self._order[:size]] @ direction, DIGITS))


def fuse(rankings: Sequence[Sequence[int] | NDArray[np.intp]], *, constant: float = RANK_CONSTANT) -> Hits:
    """Reciprocal-rank fusion: a place scores the sum of 1 / (constant + rank) over the rankings that hold it, rank from 1.

    Equal scores stand in order of place. Raises BadInput for a place that stands twice in one ranking, and a constant below
    0. Source: Cormack, Clarke and Buettcher 2009.
    """
    if not constant >= 0:
        raise BadInput(f"The constant of a fusion is {constant}: use 0 or more (60 is usual).")
    scores: dict[int, float] = {}
    for ranking in rankings:
        if len(set(map(int, ranking))) != len(ranking):
            raise BadInput("A ranking holds a place twice: each stands once, at its rank.")
        for rank, place in enumerate(map(int, ranking), start=1):
            scores[place] = scores.get(place, 0.0) + 1 / (constant + rank)
    places = sorted(scores, key=lambda place: (-scores[place], place))
    return Hits(np.asarray(places, np.intp), np.asarray([scores[place] for place in places], np.float64))


def _best(scores: NDArray[np.float64], above: float | None = None) -> Hits:
    order = np.argsort(-scores, kind="stable")
    order = order if above is None else order[scores[order] > above]
    return Hits(order, scores[order])


def _scorer(words: list[list[str]]) -> Any:
    try:
        bm25s = importlib.import_module("bm25s")
    except ImportError as error:
        raise MissingExtra("Search by words needs bm25s: pip install 'equipoise[retrieval]'.") from error
    scorer = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    scorer.index(words, create_empty_token=False, show_progress=False)
    return scorer


def _joined(older: NDArray[np.float64] | None, younger: NDArray[np.float64]) -> NDArray[np.float64]:
    if older is None or not len(older):
        return younger
    if older.shape[1] != younger.shape[1]:
        raise BadInput(f"The vectors have {younger.shape[1]} numbers, those of the texts before {older.shape[1]}.")
    return np.concatenate([older, younger])


def directions(vectors: ArrayLike, of: int) -> NDArray[np.float64]:
    """Vectors of length 1 in place of vectors of any length but zero. vectors: [of, width]

    Raises BadInput for another shape, and for a vector that is no direction, with its place.
    """
    rows = np.asarray(vectors, np.float64)
    if rows.ndim != 2 or len(rows) != of:
        raise BadInput(f"The vectors are of shape {list(rows.shape)}, expected [{of}, width].")
    sizes = np.linalg.norm(rows, axis=1, keepdims=True)
    wrong = np.flatnonzero(~(np.isfinite(sizes) & (sizes > 0)))
    if len(wrong):
        raise BadInput(f"Vector {wrong[0]} is no direction: its length is {sizes[wrong[0], 0]}.")
    return rows / sizes
