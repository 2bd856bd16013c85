"""A router as it is served: what it reads of a prompt, its score, the threshold, and the few numbers that it consists of.

score(features) >= threshold keeps the prompt local; what is below goes to the strong model. The artefact is a folder of
router.json and router.safetensors: d + L + 2 numbers for a probe (its direction, its layers, bias and concentration).

    dirichlet, softmax, mean, last, layer    sigmoid(w . sum_l alpha_l z_l + b), alpha: weights of the layers that sum to 1
    max                                      sigmoid(w . max_l z_l + b), the maximum taken in each of the d components
    max-logit, margin, ...                   of the next token's logits (`routing.logit_scores`)
    length                                   minus the number of tokens of the prompt
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax

from equipoise.core.errors import BadInput
from equipoise.core.files import read_regular, seal, unseal, write_atomic
from equipoise.core.options import check_fields

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel
    from equipoise.routing.prompt_states import Prefill

Kind = Literal[
    "dirichlet",
    "softmax",
    "mean",
    "last",
    "layer",
    "max",
    "max-logit",
    "margin",
    "logit-margin",
    "entropy",
    "top10-variance",
    "top10-variance-reversed",
    "length",
]
Reads = Literal["chat", "raw"]
Needs = Literal["states", "logits", "length"]
PROBES = ("dirichlet", "softmax", "mean", "last", "layer", "max")
ABOUT, NUMBERS = "router.json", "router.safetensors"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Router:
    """What `load` gives. layers, width: L and d of the model; w: [d], alpha: [L], b; none of them for what is no probe.

    threshold: in the units of the score; minus infinity never calls. reads: chat, the prompt in the model's template, or
    raw, the bare instruction. slope, intercept: of `probability`. model, fingerprint: whose states it was fitted on. chosen:
    how the threshold came about, for a reader. a, g: the parameters of the layers' Dirichlet distribution.
    """

    kind: Kind
    threshold: float
    reads: Reads
    layers: int
    width: int
    w: NDArray[np.float32] | None = None
    b: float = 0.0
    a: NDArray[np.float32] | None = None
    g: float = math.nan
    slope: float = 1.0
    intercept: float = 0.0
    model: str = ""
    fingerprint: str = ""
    chosen: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        probe = self.kind in PROBES
        shapes = (None if self.w is None else self.w.shape, None if self.a is None else self.a.shape)
        if probe and shapes != ((self.width,), (self.layers,)):
            raise BadInput(
                f"a {self.kind} router of {self.layers} layers of width {self.width} needs w [{self.width}] and "
                f"a [{self.layers}], and got {shapes[0]} and {shapes[1]}: fit it anew."
            )
        if math.isnan(self.threshold):
            raise BadInput("the threshold of a router is not a number: choose one with routing.threshold.")

    @property
    def needs(self) -> Needs:
        """What of a prompt the score is made from."""
        return "states" if self.kind in PROBES else "length" if self.kind == "length" else "logits"

    @property
    def alpha(self) -> NDArray[np.float64]:
        """The weight of each layer, [L], summing to 1: softmax(a); a is -inf where a layer takes no part."""
        if self.a is None or self.kind == "max":
            raise BadInput(f"a {self.kind} router weighs no layers.")
        return softmax(self.a.astype(float))

    def score(self, features: ArrayLike) -> NDArray[np.float64]:
        """High keeps the prompt local, in [0, 1]: [n, L, d] -> [n]. Raises BadInput for other shapes, or another kind."""
        if self.needs != "states":
            raise BadInput(f"a {self.kind} router scores {self.needs}, not states: use score_prefill.")
        z = np.asarray(features)
        if z.ndim != 3 or z.shape[1:] != (self.layers, self.width):
            raise BadInput(
                f"the features are {list(z.shape)}, and the router was fitted on [n, {self.layers}, {self.width}]."
            )
        return expit(np.concatenate([np.empty(0), *(self._logits(z[i : i + 256]) for i in range(0, len(z), 256))]))

    def score_logits(self, logits: Any) -> NDArray[np.float64]:
        """The same from next-token logits [n, V] (a tensor or an array), for the kinds that read these."""
        if self.needs != "logits":
            raise BadInput(f"a {self.kind} router scores {self.needs}, not logits: use score_prefill.")
        import torch

        from equipoise.routing.logit_scores import logit_scores

        return logit_scores(torch.as_tensor(logits))[self.kind].cpu().double().numpy()  # mps has no float64

    def score_prefill(self, prefill: Prefill) -> float:
        """The score of the one prompt that was read, whatever the kind."""
        if self.needs == "states":
            return float(self.score(prefill.states.cpu().numpy()[None])[0])
        return -float(prefill.tokens) if self.needs == "length" else float(self.score_logits(prefill.logits[None])[0])

    def keeps(self, score: ArrayLike) -> Any:
        """Whether prompts of these scores stay local."""
        return np.asarray(score, float) >= self.threshold

    def probability(self, score: ArrayLike) -> NDArray[np.float64]:
        """P(the local answer is right) that a score stands for, as calibrated on held-out prompts.

        sigmoid(slope * s + intercept) with s the score's logit for probes (cut to [-500, 500]) and the score for others.
        """
        s = logits_of(score) if self.needs == "states" else np.asarray(score, float)
        return expit(self.slope * s + self.intercept)

    def check(self, language_model: LanguageModel) -> list[str]:
        """Sentences of doubt about this model; none where it is the one that the router was fitted on.

        Raises BadInput where its layers or width are others, and where prompts are read in a chat template that it has not.
        """
        from equipoise.routing.prompt_states import fingerprint, layers

        depth, width = len(layers(language_model.model)), language_model.model.config.get_text_config().hidden_size
        if self.needs == "states" and (depth, width) != (self.layers, self.width):
            raise BadInput(
                f"{language_model.name} has {depth} layers of width {width}, and the router was fitted on {self.layers} of "
                f"{self.width} ({self.model}): give that model, or fit a router for this one."
            )
        if self.reads == "chat" and not language_model.uses_chat_template:
            raise BadInput(
                f"the router reads prompts in a chat template, and {language_model.name} has none in use: give the model "
                "with its template, or fit with --reads raw."
            )
        if self.fingerprint and self.needs != "length" and fingerprint(language_model.model) != self.fingerprint:
            return [
                f"The weights of {language_model.name} are not those of {self.model}, on which the router was fitted: its "
                "scores and threshold may mean nothing for them. Fit it anew."
            ]
        return []

    def save(self, folder: str | Path) -> None:
        """Writes router.safetensors, then router.json, which names its digest, into the folder, made where there is none."""
        from safetensors.numpy import save as safetensors

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        numbers = {"b": np.array(self.b, np.float32), "g": np.array(self.g, np.float32)}
        if self.w is not None and self.a is not None:
            numbers |= {"w": self.w.astype(np.float32), "a": self.a.astype(np.float32)}
        data = safetensors(numbers)
        write_atomic(folder / NUMBERS, data)
        about = {
            "router": _VERSION,
            "kind": self.kind,
            "threshold": self.threshold,
            "reads": self.reads,
            "layers": self.layers,
            "width": self.width,
            "slope": self.slope,
            "intercept": self.intercept,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "chosen": dict(self.chosen),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        write_atomic(folder / ABOUT, seal(about, indent=1))

    def _logits(self, z: NDArray[Any]) -> NDArray[np.float64]:
        assert self.w is not None
        w = self.w.astype(float)
        if self.kind == "max":
            return z.max(axis=1).astype(float) @ w + self.b
        return (z.astype(float) @ w) @ self.alpha + self.b


def logits_of(score: ArrayLike) -> NDArray[np.float64]:
    """The logits of scores in [0, 1], cut to [-500, 500]: a score may round to 0 or 1."""
    s = np.asarray(score, float)
    with np.errstate(divide="ignore"):
        return np.clip(np.log(s) - np.log1p(-s), -500, 500)


def load(folder: str | Path) -> Router:
    """The router that `save` (or `route fit`) wrote. Raises BadInput for a folder without one, and for an altered one."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as safetensors

    folder = Path(folder)
    try:
        about, sealed = unseal(read_regular(folder / ABOUT))
        if not sealed or about.pop("router") != _VERSION:
            raise ValueError(f"{ABOUT} is of another version, or was altered")
        data = read_regular(folder / NUMBERS)
        if hashlib.sha256(data).hexdigest() != about.pop("sha256"):
            raise ValueError(f"{NUMBERS} is not the one that {ABOUT} was written for")
        numbers = safetensors(data)
        stored: dict[str, Any] = {**about, "b": float(numbers["b"]), "g": float(numbers["g"])}
        return Router(**stored, w=numbers.get("w"), a=numbers.get("a"))
    except BadInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, json.JSONDecodeError) as error:
        raise BadInput(f"{folder} holds no router ({error}): give a folder that route fit wrote.") from error
