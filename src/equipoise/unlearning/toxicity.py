"""How toxic what a model writes is, without a model that has to be fetched: by character n-grams, and by listed words.

    p(toxic | text) = sigma(b + w . x(text))       x: tf-idf of character n-grams, n = 2, 3, 4, within words
    min_{w, b}  |w|^2 / 2 + C sum of log(1 + exp(-y (b + w . x)))

taught on unwanted texts (y = 1) and wanted ones (y = -1) from which listed words were taken, so that it is no list in
disguise. x is as scikit-learn's char_wb has it: words between blanks, counts times smooth inverse document frequency, length
1. Such a scorer knows the style of its own data set; insults without a marked word, hate in plain words and threats pass it.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.scores import auroc
from equipoise.language.encode import Example, collate
from equipoise.language.model import LanguageModel, evaluating, memory_advice
from equipoise.language.score import labelled_logits, wide

SIZES = (2, 3, 4)
PIECE = 3  # letters: shorter tokens say nothing of a word


@dataclass(frozen=True, eq=False)
class ToxicityScorer:
    """vocabulary: n-gram -> column; idf, weights: [columns]; words: those that are taken out of a text before."""

    vocabulary: dict[str, int]
    idf: NDArray[np.float64]
    weights: NDArray[np.float64]
    bias: float
    words: tuple[str, ...] = ()

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """p(toxic) of each text, [N] in [0, 1]; nan for a text of which nothing is left to score."""
        bare = [without_words(text, self.words) for text in texts]
        matrix = _matrix(bare, self.vocabulary, self.idf)
        logits = matrix @ self.weights + self.bias
        found = np.exp(-np.logaddexp(0.0, -logits))
        found[[not text.strip() for text in bare]] = np.nan
        return found


def teach_scorer(
    toxic: Sequence[str], neutral: Sequence[str], *, words: Sequence[str] = (), strength: float = 1.0, rarest: int = 2
) -> ToxicityScorer:
    """The scorer that tells these texts apart. words: taken out first. strength: C; rarest: texts an n-gram must stand in.

    Raises BadInput where a side has no text, and where no n-gram stands in so many.
    """
    from scipy.optimize import minimize

    if not toxic or not neutral:
        raise BadInput("a scorer needs texts of both sides to be taught on.")
    texts = [without_words(text, words) for text in (*toxic, *neutral)]
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(set(_grams(text)))
    grams = sorted(gram for gram, count in counts.items() if count >= rarest)
    if not grams:
        raise BadInput(f"no run of letters stands in {rarest} of the {len(texts)} texts: give more pairs.")
    vocabulary = {gram: column for column, gram in enumerate(grams)}
    idf = np.log((1 + len(texts)) / (1 + np.array([counts[gram] for gram in grams], float))) + 1
    matrix = _matrix(texts, vocabulary, idf)
    signs = np.repeat([1.0, -1.0], [len(toxic), len(neutral)])

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, bias = values[:-1], values[-1]
        margins = signs * (matrix @ weights + bias)
        slopes = -strength * signs * np.exp(-np.logaddexp(0.0, margins))
        value = weights @ weights / 2 + strength * np.logaddexp(0.0, -margins).sum()
        return float(value), np.append(weights + matrix.T @ slopes, slopes.sum())

    found = minimize(loss, np.zeros(len(grams) + 1), jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return ToxicityScorer(vocabulary, idf, found.x[:-1], float(found.x[-1]), tuple(words))


def scorer_auroc(scorer: ToxicityScorer, toxic: Sequence[str], neutral: Sequence[str]) -> float:
    """How often a text of the first side scores above one of the second; 0.5 is chance, nan where a side has none."""
    scores = scorer([*toxic, *neutral])
    labels = np.repeat([True, False], [len(toxic), len(neutral)])
    known = ~np.isnan(scores)
    return float(auroc(scores[known], labels[known]))


def without_words(text: str, words: Sequence[str]) -> str:
    """The text without these words and phrases, as whole words, whatever their case."""
    if not words:
        return text
    return _pattern(tuple(words)).sub(" ", text)


_patterns: dict[tuple[str, ...], re.Pattern[str]] = {}


def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    if words not in _patterns:
        longest_first = sorted(words, key=len, reverse=True)
        _patterns[words] = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)
    return _patterns[words]


def _grams(text: str) -> list[str]:
    found = []
    for word in text.casefold().split():
        padded = f" {word} "
        for size in SIZES:
            found += [padded[start : start + size] for start in range(max(len(padded) - size, 0) + 1)]
            if len(padded) <= size:  # a short word is one n-gram, once
                break
    return found


def _matrix(texts: Sequence[str], vocabulary: dict[str, int], idf: NDArray[np.float64]) -> Any:
    from scipy.sparse import csr_matrix

    columns: list[int] = []
    values: list[float] = []
    starts = [0]
    for text in texts:
        counts = Counter(vocabulary[gram] for gram in _grams(text) if gram in vocabulary)
        row = np.array(sorted(counts), dtype=int)
        weights = np.array([counts[column] for column in row], float) * idf[row]
        length = math.sqrt(float(weights @ weights)) or 1.0
        columns += row.tolist()
        values += (weights / length).tolist()
        starts.append(len(columns))
    return csr_matrix((values, columns, starts), shape=(len(texts), len(vocabulary)))


def listed_tokens(language_model: LanguageModel, words: Sequence[str]) -> tuple[Tensor, float]:
    """Which tokens are a listed word, or the first piece of one and at least half of it, [V] bool; and the words' coverage.

    Compared without the mark of a blank and in lower case; tokens of fewer than 3 letters never count. coverage: the share
    of the words that have such a token, nan for no word.
    """
    tokenizer: Any = language_model.tokenizer
    size = language_model.vocabulary
    listed = torch.zeros(size, dtype=torch.bool)
    wanted = {word.casefold() for word in words}
    texts = tokenizer.batch_decode([[token] for token in range(min(size, len(tokenizer)))])
    reached = set()
    for token, text in enumerate(texts):
        bare = text.strip().casefold()
        if len(bare) >= PIECE and bare in wanted:
            listed[token] = True
            reached.add(bare)
    for word in wanted:
        for spelled in (f" {word}", word):
            first = next(iter(tokenizer(spelled, add_special_tokens=False, verbose=False).input_ids), None)
            if first is None or first >= size:
                continue
            piece = texts[first].strip().casefold()
            if len(piece) >= max(PIECE, len(word) / 2) and word.startswith(piece):
                listed[first] = True
                reached.add(word)
    return listed, len(reached) / len(wanted) if wanted else math.nan


@torch.no_grad()
def listed_mass(
    language_model: LanguageModel, examples: Sequence[Example], listed: Tensor, *, batch_size: int = 16
) -> Tensor:
    """The probability that the next token is listed, mean over the labelled places of each example: [N] in [0, 1].

    The texts are fixed, so that nothing hangs on what the model would have written.
    """
    found = torch.zeros(len(examples), dtype=torch.float64)
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].input_ids), reverse=True)
    columns = listed.nonzero().flatten().to(language_model.device)
    with evaluating(language_model.model), memory_advice(batch_size):
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            batch = collate([examples[index] for index in chosen], language_model.pad_id, language_model.device)
            logits, _, rows = labelled_logits(language_model.model, batch)
            logits = wide(logits)
            mass = (logits[:, columns].logsumexp(-1) - logits.logsumexp(-1)).exp().double().cpu()
            sums = torch.zeros(len(chosen), dtype=torch.float64).index_add_(0, rows.cpu(), mass)
            found[chosen] = sums / torch.bincount(rows.cpu(), minlength=len(chosen))
    return found


def first_half(text: str) -> str:
    """The first half of a text's words, at least one: what a model is given to go on from."""
    words = text.split()
    return " ".join(words[: max(len(words) // 2, 1)])
