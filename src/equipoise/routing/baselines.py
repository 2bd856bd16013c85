"""What a router has to beat: scores of a prompt from what its model says of itself, and classifiers of sentence vectors.

All scores: [n], high keeps a prompt local. z [n, L, d]: states of `routing.prompt_states`; vectors [n, e]: `language.embed`.

    LogitScore          of the next token's logits (`routing.logit_scores`): MaxLogit, Margin, Entropy ...
    ChainOfEmbedding    how far and by what angle the mean state moves from layer to layer (arXiv:2410.13640)
    Length, Random      minus the number of tokens; a draw for each prompt
    EmbeddingKNN, EmbeddingLogistic, EmbeddingMLP    P(solved) by scikit-learn, from z-scored vectors
    prompt_likelihood   mean log-probability of a prompt's own tokens: minus the logarithm of its perplexity
    verbalised          what the model answers when it is asked how surely it will solve the prompt
    semantic_agreement  exp(-H) of sampled answers, H their semantic entropy

Differs from RouterXBench's code, which reads logits from the embeddings, ranks by sigmoids that saturate, and forgets the
z-scores of its MLP at test time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from equipoise.core.calibration import Calibration
from equipoise.core.errors import BadInput, MissingExtra
from equipoise.core.options import closed
from equipoise.language import confidence
from equipoise.language.encode import IGNORE, Example
from equipoise.language.generate import generate
from equipoise.language.model import evaluating, memory_advice
from equipoise.language.rollouts import padded, roll_out
from equipoise.language.score import head_reads, log_likelihoods, wide
from equipoise.routing.labels import VERBALISED
from equipoise.routing.logit_scores import LOGIT_SCORES, logit_scores

if TYPE_CHECKING:
    from equipoise.data.records import Message
    from equipoise.language.model import LanguageModel

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
except ImportError as error:
    raise MissingExtra("Baselines are scikit-learn estimators: pip install 'equipoise[routing]'.") from error

Array = NDArray[np.float64]
Chain = Literal["routerxbench", "real", "complex"]
AT_ONCE = 256  # prompts in memory in float64
UNREAD = 0.5  # the score of a reply without a number
SAMPLES, SAMPLING_TEMPERATURE, NUCLEUS = 5, 0.7, 0.9
STATED_TOKENS = 10  # of a stated confidence


class FixedScore(ClassifierMixin, BaseEstimator):
    """A score that learns nothing of what counts; `fit` only makes probabilities of it (Platt), in whichever direction."""

    def fit(self, features: ArrayLike, y: ArrayLike) -> FixedScore:
        """y: [n], two classes; the second counts as answered well. Raises BadInput for another number of classes."""
        self.classes_, target = np.unique(np.asarray(y), return_inverse=True)
        if len(self.classes_) != 2:
            raise BadInput(f"The labels have {len(self.classes_)} classes: a prompt was answered well or not.")
        self.calibration_ = Calibration.of(self.score_prompts(features), target, rising=False)
        return self

    def score_prompts(self, features: ArrayLike) -> Array:
        """[n]: high keeps a prompt local."""
        raise NotImplementedError

    def predict_proba(self, features: ArrayLike) -> Array:
        """[n, 2], after `fit`."""
        p = self.calibration_(self.score_prompts(features))
        return np.stack([1 - p, p], axis=1)

    def predict(self, features: ArrayLike) -> NDArray[Any]:
        """The likelier class, after `fit`."""
        return self.classes_[(self.predict_proba(features)[:, 1] > 0.5).astype(int)]


class LogitScore(FixedScore):
    """features: next-token logits [n, V]. name: of `routing.logit_scores`."""

    name: ClassVar[str]

    def score_prompts(self, features: ArrayLike) -> Array:
        """The score of the legend of `routing.logit_scores`."""
        return logit_scores(torch.as_tensor(np.asarray(features)))[self.name].double().numpy()


class MaxLogit(LogitScore):
    """The largest logit."""

    name = "max-logit"


class Margin(LogitScore):
    """p1 - p2."""

    name = "margin"


class LogitMargin(LogitScore):
    """l1 - l2."""

    name = "logit-margin"


class Entropy(LogitScore):
    """1 - H / log V."""

    name = "entropy"


class Top10Variance(FixedScore):
    """The variance of the ten largest logits: reversed, high is sure; else, as RouterXBench has it, low."""

    def __init__(self, *, reversed: bool = False) -> None:
        self.reversed = reversed

    def score_prompts(self, features: ArrayLike) -> Array:
        """The variance, or minus it. features: [n, V]."""
        name = "top10-variance-reversed" if self.reversed else "top10-variance"
        return logit_scores(torch.as_tensor(np.asarray(features)))[name].double().numpy()


class ChainOfEmbedding(FixedScore):
    """features: [n, L, d]. form: as RouterXBench has it, or the original's CoE-R (real) or CoE-C (complex)."""

    @closed
    def __init__(self, form: Chain = "routerxbench") -> None:
        self.form = form

    def score_prompts(self, features: ArrayLike) -> Array:
        """routerxbench: the mean of all |z_l| + |z_l+1| and cos(z_l, z_l+1). With M the distance and A the angle of two
        layers, real: mean of M / M(0, L) - A / A(0, L); complex: the modulus of the mean of M exp(iA).
        """
        z = _states(features)
        parts = [self._score(z[first : first + AT_ONCE].astype(float)) for first in range(0, len(z), AT_ONCE)]
        return np.concatenate([np.empty(0), *parts])

    def _score(self, z: Array) -> Array:
        size, distance, angle, cosine = _moves(z)
        if self.form == "routerxbench":
            return np.concatenate([size[:, :-1] + size[:, 1:], cosine], axis=1).mean(axis=1)
        if self.form == "complex":
            return np.abs((distance * np.exp(1j * angle)).mean(axis=1))
        _, whole, turned, _ = _moves(z[:, [0, -1]])
        with np.errstate(divide="ignore", invalid="ignore"):
            return (distance / whole - angle / turned).mean(axis=1)


def chain_features(features: ArrayLike) -> Array:
    """2 (L - 1) numbers a prompt, all |z_l| + |z_l+1| and all cosines, for a classifier: [n, L, d] -> [n, 2 (L - 1)]."""
    size, _, _, cosine = _moves(_states(features).astype(float))
    return np.concatenate([size[:, :-1] + size[:, 1:], cosine], axis=1)


def _states(features: ArrayLike) -> NDArray[Any]:
    z = np.asarray(features)
    if z.ndim != 3 or z.shape[1] < 2:
        raise BadInput(f"the features are {list(z.shape)}: a chain is of [n, L, d] with at least two layers.")
    return z


def _moves(z: Array) -> tuple[Array, Array, Array, Array]:
    """Lengths [n, L]; distances, angles and cosines of neighbours [n, L - 1]."""
    size = np.linalg.norm(z, axis=2)
    distance = np.linalg.norm(np.diff(z, axis=1), axis=2)
    with np.errstate(invalid="ignore"):
        cosine = (z[:, :-1] * z[:, 1:]).sum(axis=2) / (size[:, :-1] * size[:, 1:])
    cosine = np.clip(np.nan_to_num(cosine), -1, 1)
    return size, distance, np.arccos(cosine), cosine


class Length(FixedScore):
    """features: the numbers of tokens, [n]."""

    def score_prompts(self, features: ArrayLike) -> Array:
        """Minus the length: short prompts stay."""
        return -np.asarray(features, float).reshape(len(np.asarray(features)))


class Random(FixedScore):
    """A number for each prompt, whatever it holds. features: anything of n rows."""

    def __init__(self, *, random_state: int = 42) -> None:
        self.random_state = random_state

    def score_prompts(self, features: ArrayLike) -> Array:
        """[n] in [0, 1), the same for the same seed and n."""
        return np.random.default_rng(self.random_state).random(len(np.asarray(features)))


class _Classified(ClassifierMixin, BaseEstimator):
    """A pipeline of scikit-learn, of which the probability of the second class is the score."""

    def fit(self, features: ArrayLike, y: ArrayLike) -> _Classified:
        """features: [n, e]; y: [n]. The z-scores are those of these features, also when others are scored."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the number of passes is meant
            self.pipeline_ = self._pipeline(len(np.asarray(y))).fit(np.asarray(features, float), np.asarray(y))
        self.classes_ = self.pipeline_.classes_
        return self

    def _pipeline(self, n: int) -> Any:
        raise NotImplementedError

    def predict_proba(self, features: ArrayLike) -> Array:
        """[n, classes]."""
        return self.pipeline_.predict_proba(np.asarray(features, float))

    def predict(self, features: ArrayLike) -> NDArray[Any]:
        """The likelier class."""
        return self.pipeline_.predict(np.asarray(features, float))

    def score_prompts(self, features: ArrayLike) -> Array:
        """[n] in [0, 1]: high keeps a prompt local."""
        return self.predict_proba(features)[:, 1]


class EmbeddingKNN(_Classified):
    """The share of solved prompts among the nearest, by cosine; vectors are not z-scored."""

    def __init__(self, neighbors: int = 20) -> None:
        self.neighbors = neighbors

    def _pipeline(self, n: int) -> Any:
        return make_pipeline(KNeighborsClassifier(min(self.neighbors, n), metric="cosine", algorithm="brute"))


class EmbeddingLogistic(_Classified):
    """Logistic regression. C: as of scikit-learn, the weight of the data against the penalty."""

    def __init__(self, *, C: float = 0.1) -> None:
        self.C = C

    def _pipeline(self, n: int) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=self.C, max_iter=2000))


class EmbeddingMLP(_Classified):
    """256 and 64 units, ReLU, Adam 1e-4, 50 passes, as RouterXBench's, with a penalty in place of its dropout."""

    def __init__(
        self, *, learning_rate: float = 1e-4, epochs: int = 50, alpha: float = 1e-3, random_state: int = 42
    ) -> None:
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.alpha = alpha
        self.random_state = random_state

    def _pipeline(self, n: int) -> Any:
        return make_pipeline(
            StandardScaler(),
            MLPClassifier(
                (256, 64),
                alpha=self.alpha,
                batch_size=min(32, n),  # pyright: ignore[reportArgumentType]
                learning_rate_init=self.learning_rate,
                max_iter=self.epochs,
                n_iter_no_change=self.epochs,
                random_state=self.random_state,
            ),
        )


# --- asking the model -----------------------------------------------------------------------------------------------------


def next_token_scores(
    language_model: LanguageModel, rows: Sequence[Sequence[int]], *, batch_size: int = 16
) -> dict[str, Array]:
    """Every score of `routing.logit_scores` for each prompt (tokens, as of `prompt_states.encode`), [n] by name."""
    found = {name: np.full(len(rows), math.nan) for name in LOGIT_SCORES}
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    model = language_model.model
    with evaluating(model), memory_advice(batch_size):
        for first in range(0, len(order), batch_size):
            some = order[first : first + batch_size]
            ids, mask = padded([list(rows[index]) for index in some], language_model.pad_id, language_model.device)
            last = mask.bool() & (mask.cumsum(dim=1) == mask.sum(dim=1, keepdim=True))
            with head_reads(model, last):
                logits = wide(model(input_ids=ids, use_cache=False).logits)[0]
            for name, values in logit_scores(logits).items():
                found[name][some] = values.cpu().double().numpy()  # mps has no float64
    return found


def prompt_likelihood(language_model: LanguageModel, rows: Sequence[Sequence[int]], *, batch_size: int = 16) -> Array:
    """Mean log-probability of a prompt's tokens but the first, [n]: -log of its perplexity. nan for single tokens."""
    several = [index for index, row in enumerate(rows) if len(row) > 1]
    examples = [Example(tuple(rows[index]), (IGNORE, *rows[index][1:])) for index in several]
    found = np.full(len(rows), math.nan)
    if examples:
        sums, counts = log_likelihoods(language_model, examples, batch_size=batch_size)
        found[several] = (sums / counts).numpy()
    return found


@dataclass(frozen=True, eq=False)
class Asked:
    """score: [n]. unread: how many replies held no number (their score is 0.5). tokens: written, at most."""

    score: Array
    unread: int
    tokens: int


def verbalised(
    language_model: LanguageModel, prompts: Sequence[str], *, max_new_tokens: int = STATED_TOKENS, batch_size: int = 32
) -> Asked:
    """The confidence in [0, 1] that the model states before it answers, greedily, in `max_new_tokens` tokens."""
    replies = generate(
        language_model,
        [VERBALISED.format(question=prompt) for prompt in prompts],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    stated = np.array([confidence.verbalized(reply) for reply in replies])
    unread = np.isnan(stated)
    return Asked(np.where(unread, UNREAD, stated), int(unread.sum()), max_new_tokens * len(prompts))


def semantic_agreement(
    language_model: LanguageModel,
    prompts: Sequence[str | Sequence[Message]],
    *,
    samples: int = SAMPLES,
    temperature: float = SAMPLING_TEMPERATURE,
    top_p: float = NUCLEUS,
    max_new_tokens: int = 24,
    threshold: float = 0.7,
    seed: int = 0,
    keys: Sequence[int] | None = None,
    batch_size: int = 64,
) -> Asked:
    """exp(-H) of the groups of like answers (`confidence.clusters` by text), in [1 / samples, 1]: 1 where all are alike.

    keys: a number for each prompt that names its draws, in place of its place among the prompts.
    """

    def nucleus(logits: Tensor, states: Tensor, rows: Sequence[int], step: int) -> Tensor:
        share, order = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
        beyond = share.cumsum(dim=-1) - share >= top_p  # never the first
        return logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)

    rolled = roll_out(
        language_model,
        prompts,
        samples=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=[seed, 13],
        hook=nucleus if top_p < 1 else None,
        keys=keys,
        batch_size=batch_size,
    )
    answers = [rolled.texts[first : first + samples] for first in range(0, len(rolled.texts), samples)]
    entropies = [
        float(confidence.semantic_entropy(confidence.clusters(each, by="text", threshold=threshold)))
        for each in answers
    ]
    return Asked(np.exp(-np.array(entropies)), 0, int(rolled.mask.sum()))
