"""Linear probes on a model's states of a prompt, [n, L, d]: will it answer well? scikit-learn estimators.

    ProbeMean      sigmoid(w . mean_l z_l + b)
    ProbeLayer     sigmoid(w . z_layer + b), the last layer when not said otherwise
    ProbeMax       sigmoid(w . max_l z_l + b), the maximum taken in each component
    ProbeSoftmax   sigmoid(w . sum_l softmax(a)_l z_l + b), a learnt with w

`routing.probe_dirichlet` adds noise to the last. All are trained alike (arXiv:2602.11877 and its code): BCE, Adam, a fifth
of the prompts held out; the rate is halved after 5 epochs without a lower held-out loss, training stops after 8 such epochs
past the tenth, and the parameters of the lowest held-out loss are kept. No scaling. The learning rate is 1e-3 where the code
has 1e-4: with hundreds of prompts in place of 12,000 that ends before anything is learnt (a parameter moves about one rate a
step).

n prompts, L layers, d width, K layers that training still sees (L, or 1 where they were joined before). An array [n, d] is
read as one layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from torch import Tensor

from equipoise.core.calibration import Calibration
from equipoise.core.errors import BadInput, MissingExtra
from equipoise.core.options import closed
from equipoise.routing.router import Kind, Reads, Router

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise MissingExtra("Probes are scikit-learn estimators: pip install 'equipoise[routing]'.") from error

Array = NDArray[np.float64]
FEWEST = 10  # prompts of which a fifth can be held out; below, the loss on all of them is watched
HALVED, STOPPED, BEGUN = 5, 8, 10  # epochs: without gain until the rate is halved, until the end; before it may end
AT_ONCE = 256  # prompts in memory in float32


class Probe(ClassifierMixin, BaseEstimator):
    """What all probes share. learning_rate, batch_size, epochs: of Adam. validation_fraction: held out of `fit` to stop by.

    After fit: classes_ (the second counts as answered well), coef_ [d], intercept_, a_ [L] (log-weights of layers, -inf for
    one that takes no part), g_, n_layers_, width_, validation_loss_, epochs_. `calibrate` fits predict_proba on others.
    """

    kind: ClassVar[Kind]

    def __init__(
        self,
        *,
        learning_rate: float = 1e-3,
        batch_size: int = 32,
        epochs: int = 50,
        validation_fraction: float = 0.2,
        random_state: Any = 42,
    ) -> None:
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, features: ArrayLike, y: ArrayLike) -> Probe:
        """features: [n, L, d] of any float type, a map of a file too; y: [n], two classes.

        Raises BadInput for settings out of range and for one class only; what is no such array as scikit-learn does.
        """
        self._check_settings()
        given: Any = features, y  # what scikit-learn's types say of these two is another matter
        z, y = validate_data(self, *given, allow_nd=True, dtype="numeric", ensure_min_samples=2)
        z = self._layered(np.asarray(z))
        check_classification_targets(y)
        self.classes_, target = np.unique(y, return_inverse=True)
        if len(self.classes_) > 2:
            raise BadInput(
                "Only binary classification is supported: a prompt was answered well or not; the labels have "
                f"{len(self.classes_)} classes."
            )
        if len(self.classes_) < 2:
            raise BadInput(
                f"The labels have one class, {self.classes_[0]!r}: a probe learns from prompts that were answered well "
                "and prompts that were not."
            )
        self.n_layers_, self.width_ = z.shape[1:]
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        kept = self._join(z)
        fitted = train(
            kept,
            target,
            weighs=self._weighs(),
            noise=self._noise(),
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            epochs=self.epochs,
            validation_fraction=self.validation_fraction,
            generator=torch.Generator().manual_seed(seed),
        )
        self.coef_, self.intercept_ = fitted["w"], float(fitted["b"])
        self.a_, self.g_ = self._log_weights(fitted["a"]), self._concentration(fitted)
        self.validation_loss_, self.epochs_ = fitted["loss"], fitted["epochs"]
        self.calibration_ = Calibration(1.0, 0.0)
        return self

    def decision_function(self, features: ArrayLike) -> Array:
        """The logits, [n], before calibration."""
        check_is_fitted(self)
        given: Any = features
        z = self._layered(np.asarray(validate_data(self, given, reset=False, allow_nd=True, dtype="numeric")))
        if z.shape[1:] != (self.n_layers_, self.width_):
            raise BadInput(
                f"the features are {list(z.shape)}, and the probe was fitted on [n, {self.n_layers_}, {self.width_}]."
            )
        alpha = self._alpha()
        found = []
        for first in range(0, len(z), AT_ONCE):
            joined = self._join(z[first : first + AT_ONCE]).astype(float)
            found.append((joined @ self.coef_.astype(float)) @ alpha + self.intercept_)
        return np.concatenate([np.empty(0), *found])

    def score_prompts(self, features: ArrayLike) -> Array:
        """The router's score, [n] in [0, 1]: high keeps a prompt local."""
        return expit(self.decision_function(features))

    def predict_proba(self, features: ArrayLike) -> Array:
        """[n, 2]: P of each class, calibrated where `calibrate` was called."""
        check_is_fitted(self)
        p = self.calibration_(self.decision_function(features))
        return np.stack([1 - p, p], axis=1)

    def predict(self, features: ArrayLike) -> NDArray[Any]:
        """The likelier class, before calibration."""
        check_is_fitted(self)
        return self.classes_[(self.decision_function(features) > 0).astype(int)]

    def calibrate(self, features: ArrayLike, y: ArrayLike) -> Probe:
        """Platt's two numbers from prompts that were not fitted on; scores and their order stay as they are."""
        check_is_fitted(self)
        target = (np.asarray(y) == self.classes_[1]).astype(float)
        self.calibration_ = Calibration.of(self.decision_function(features), target)
        return self

    @closed
    def router(
        self, threshold: float, *, reads: Reads, model: str = "", fingerprint: str = "", chosen: Any = None
    ) -> Router:
        """What is saved and served. kind "last" where a ProbeLayer is of the last one."""
        check_is_fitted(self)
        return Router(
            kind=self.kind,
            threshold=threshold,
            reads=reads,
            layers=self.n_layers_,
            width=self.width_,
            w=self.coef_,
            b=self.intercept_,
            a=self.a_.astype(np.float32),
            g=self.g_,
            slope=self.calibration_.slope,
            intercept=self.calibration_.intercept,
            model=model,
            fingerprint=fingerprint,
            chosen=chosen or {},
        )

    def _check_settings(self) -> None:
        wrong = {
            "learning_rate": not self.learning_rate > 0,
            "batch_size": self.batch_size < 1,
            "epochs": self.epochs < 1,
            "validation_fraction": not 0 < self.validation_fraction < 1,
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise BadInput(f"{name} is {getattr(self, name)}, out of its range.")

    def _layered(self, z: NDArray[Any]) -> NDArray[Any]:
        if z.ndim == 2:
            return z[:, None]
        if z.ndim != 3 or not z.size:
            raise BadInput(f"the features are {list(z.shape)}: give [prompts, layers, width].")
        return z

    def _join(self, z: NDArray[Any]) -> NDArray[Any]:
        """[n, L, d] -> [n, K, d]."""
        raise NotImplementedError

    def _weighs(self) -> bool:
        return False

    def _noise(self) -> Callable[[Tensor, Tensor, int, torch.Generator], Tensor] | None:
        return None

    def _log_weights(self, a: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.zeros(self.n_layers_, np.float32)

    def _concentration(self, fitted: dict[str, Any]) -> float:
        return math.nan

    def _alpha(self) -> Array:
        return np.ones(1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.three_d_array = True
        return tags


def _in_parts(z: NDArray[Any], join: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[np.float32]:
    """join of [n, L, d] in float32, a few prompts at a time: [n, 1, d]."""
    parts = [join(z[i : i + AT_ONCE].astype(np.float32)) for i in range(0, len(z), AT_ONCE)]
    return np.concatenate(parts)[:, None]


class ProbeMean(Probe):
    """Every layer weighs the same."""

    kind = "mean"

    def _join(self, z: NDArray[Any]) -> NDArray[Any]:
        return _in_parts(z, lambda part: part.mean(axis=1))


class ProbeMax(Probe):
    """The maximum over layers, in each component of the width."""

    kind = "max"

    def _join(self, z: NDArray[Any]) -> NDArray[Any]:
        return _in_parts(z, lambda part: part.max(axis=1))


class ProbeLayer(Probe):
    """One layer alone. layer: counted from 0, the embeddings, or from -1, the last states."""

    def __init__(
        self,
        layer: int = -1,
        *,
        learning_rate: float = 1e-3,
        batch_size: int = 32,
        epochs: int = 50,
        validation_fraction: float = 0.2,
        random_state: Any = 42,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            batch_size=batch_size,
            epochs=epochs,
            validation_fraction=validation_fraction,
            random_state=random_state,
        )
        self.layer = layer

    @property
    def kind(self) -> Kind:  # pyright: ignore[reportIncompatibleVariableOverride]
        """last, or layer for any other."""
        return "last" if self.layer == -1 else "layer"

    def _join(self, z: NDArray[Any]) -> NDArray[Any]:
        if not -z.shape[1] <= self.layer < z.shape[1]:
            raise BadInput(f"layer is {self.layer}, and there are {z.shape[1]}, counted from 0 or backwards from -1.")
        return _in_parts(z, lambda part: part[:, self.layer])

    def _log_weights(self, a: NDArray[np.float32]) -> NDArray[np.float32]:
        alone = np.full(self.n_layers_, -np.inf, np.float32)
        alone[self.layer] = 0
        return alone


class ProbeSoftmax(Probe):
    """The layers' weights are learnt, the same for every prompt ("dynamic softmax")."""

    kind = "softmax"

    def _join(self, z: NDArray[Any]) -> NDArray[Any]:
        return z

    def _weighs(self) -> bool:
        return True

    def _log_weights(self, a: NDArray[np.float32]) -> NDArray[np.float32]:
        return a

    def _alpha(self) -> Array:
        weights = np.exp(self.a_.astype(float) - self.a_.max())
        return weights / weights.sum()


# --- training -----------------------------------------------------------------------------------------------------------


def fused(z: Tensor, w: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """w . sum_l alpha_l z_l + b. z: [n, K, d], w: [d], alpha: [K] of all, or [n, K] of each -> logits [n]."""
    return ((z @ w) * alpha).sum(dim=-1) + b


def train(
    z: NDArray[Any],
    target: ArrayLike,
    *,
    weighs: bool,
    noise: Callable[[Tensor, Tensor, int, torch.Generator], Tensor] | None,
    learning_rate: float,
    batch_size: int,
    epochs: int,
    validation_fraction: float,
    generator: torch.Generator,
) -> dict[str, Any]:
    """w [d], b, a [K], g of the lowest held-out loss, that loss, and the epochs trained.

    z: [n, K, d]; target: [n] of 0 and 1. weighs: whether a is learnt. noise(a, g, n, generator) -> [n, K]: the weights of
    layers that are drawn in training; none: softmax(a).
    """
    n, count, width = z.shape
    y = torch.as_tensor(np.asarray(target), dtype=torch.float32)
    order = torch.randperm(n, generator=generator)
    held = min(n - 1, max(1, round(n * validation_fraction))) if n >= FEWEST else 0
    fitted_on, watched = (order[held:], order[:held]) if held else (order, order)
    parameters = {"w": torch.zeros(width), "b": torch.zeros(()), "a": torch.ones(count), "g": torch.ones(())}
    learnt = [parameters[name].requires_grad_() for name in ("w", "b", *("a",) * weighs, *("g",) * (noise is not None))]
    optimizer = torch.optim.Adam(learnt, lr=learning_rate)
    best: dict[str, Any] = {"loss": math.inf}
    since = epoch = 0
    for epoch in range(1, epochs + 1):
        for rows in fitted_on[torch.randperm(len(fitted_on), generator=generator)].split(batch_size):
            a, g = parameters["a"], parameters["g"]
            alpha = a.softmax(dim=0) if noise is None else noise(a, g, len(rows), generator)
            logits = fused(_rows(z, rows), parameters["w"], parameters["b"], alpha)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss = _loss(z, y, watched, parameters)
        since += 1
        if loss < best["loss"]:
            since = 0
            best = {"loss": loss} | {name: value.detach().numpy().copy() for name, value in parameters.items()}
        elif not math.isfinite(loss):
            break
        if since and since % HALVED == 0:
            for group in optimizer.param_groups:
                group["lr"] /= 2
        if since >= STOPPED and epoch > BEGUN:
            break
    if "w" not in best:
        raise BadInput(
            "the loss is not a number from the first epoch: the features are too large; lower learning_rate."
        )
    return best | {"epochs": epoch}


def _rows(z: NDArray[Any], rows: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(z[rows.numpy()], dtype=np.float32))


@torch.no_grad()
def _loss(z: NDArray[Any], y: Tensor, rows: Tensor, parameters: dict[str, Tensor]) -> float:
    alpha = parameters["a"].softmax(dim=0)
    parts: Sequence[Tensor] = rows.split(AT_ONCE)
    logits = torch.cat([fused(_rows(z, part), parameters["w"], parameters["b"], alpha) for part in parts])
    return float(torch.nn.functional.binary_cross_entropy_with_logits(logits, y[rows]))
