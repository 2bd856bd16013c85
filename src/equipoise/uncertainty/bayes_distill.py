"""The averaged prediction of a Bayesian adapter in one deterministic one: calibrated by one pass (arXiv:2505.11731, v2).

N draws, B inputs, C classes. A teacher (`tfb`, `blob`, `laplace_lora`, `ensemble`, `mc_dropout`) predicts

    p_T = mean_n softmax(f(x; theta_n)),   theta_n ~ q

once for each training input, whose label is not used; a fresh LoRA adapter of the same base then learns

    mean_i KL(p_T || softmax f_S(x_i))       with the gradient (p_S - p_T) / B at its logits

Which direction the paper's divergence has is not to be found. Forward is the cross entropy with soft labels, as distillation
mostly has it; reverse and js (Jensen-Shannon) are here beside it. Version 3 under the paper's number is another method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.core.progress import progress
from equipoise.core.rows import Rows
from equipoise.training.loop import OneLoss, TrainerSettings, TrainResult, fit
from equipoise.training.order import without_replacement
from equipoise.uncertainty.class_logits import in_batches
from equipoise.uncertainty.tfb import tfb_noise

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel
    from equipoise.uncertainty.class_logits import Classified
    from equipoise.uncertainty.teachers import Teacher

__all__ = ["Divergence", "averaged", "distill", "divergence", "one_hot", "targets", "tfb_noise"]

Divergence = Literal["forward", "reverse", "js"]
AT_ONCE = 64  # inputs of a stored row


def averaged(logits: Tensor) -> Tensor:
    """The mean of the softmax over draws, [..., C]. logits: [N, ..., C].

    Never the softmax of the mean: averaged logits forget how far the draws lie apart. Raises BadInput without a draw.
    """
    if logits.dim() < 2 or not logits.shape[0]:
        raise BadInput(f"Logits {list(logits.shape)} have no draws to average over: need [N, ..., C].")
    return logits.softmax(-1).mean(0)


@closed
def divergence(logits: Tensor, target: Tensor, kind: Divergence = "forward") -> Tensor:
    """How far softmax(logits) is from the target distributions, of each input, [...], in nats, never below 0.

    logits, target: [..., C]. forward: KL(target || p). reverse: KL(p || target), infinite where the target is 0 and
    p is not. js: half of both to their middle, at most log 2.
    """
    return _apart(logits.log_softmax(-1), target.log(), kind)


def _apart(log_p: Tensor, log_t: Tensor, kind: Divergence) -> Tensor:
    if kind == "forward":
        return _kl(log_t, log_p)
    if kind == "reverse":
        return _kl(log_p, log_t)
    middle = torch.logaddexp(log_p, log_t) - math.log(2)
    return (_kl(log_p, middle) + _kl(log_t, middle)) / 2


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum p (log p - log q); 0 log 0 is 0, with a gradient of 0."""
    p = log_p.exp()
    there = p > 0
    difference = torch.where(there, log_p, 0.0) - torch.where(there, log_q, 0.0)
    return (p * difference).sum(-1)


def one_hot(labels: Sequence[int] | Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """Targets from labels, [n, C] in float64: 1 - smoothing on the label, and smoothing / C on every class.

    Forward divergence to them is the cross entropy with smoothed labels (arXiv:1512.00567), but for a constant.
    """
    if not 0 <= smoothing < 1:
        raise BadInput(f"The share of label smoothing is {smoothing:g}: give one from 0 to below 1.")
    gold = torch.as_tensor(labels, dtype=torch.long)
    return (1 - smoothing) * nn.functional.one_hot(gold, classes).double() + smoothing / classes


def targets(
    teacher: Teacher,
    language_model: LanguageModel,
    inputs: Classified,
    *,
    names: Sequence[str],
    rows: Rows | None = None,
    batch_size: int = 32,
) -> Tensor:
    """What the teacher predicts of every input, [n, C] in float64.

    names: of the inputs, unique. rows: where each few are stored as soon as they are known, and taken from; a row of other
    inputs is done again.
    """
    stored = Rows(None) if rows is None else rows
    known = {row["first"]: row for row in stored}
    found: list[list[float]] = []

    drawn = teacher.on(language_model, inputs)
    with progress("Teacher", total=len(inputs), unit="inputs") as bar:
        for first in range(0, len(inputs), AT_ONCE):
            places = range(first, min(first + AT_ONCE, len(inputs)))
            own = [names[place] for place in places]
            if first not in known or known[first]["ids"] != own:
                predicted = averaged(in_batches(language_model, inputs, drawn, batch_size, places))
                known[first] = {"first": first, "ids": own, "targets": predicted.tolist()}
                stored.add(known[first])
            found += known[first]["targets"]
            bar.advance(len(own))
    return torch.tensor(found, dtype=torch.float64)


@closed
def distill(
    language_model: LanguageModel,
    inputs: Classified,
    target: Tensor,
    settings: TrainerSettings,
    *,
    kind: Divergence = "forward",
    labels: Sequence[int] | None = None,
    label_weight: float = 0.0,
    log: Path | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
    save_every: int | None = None,
    state: Mapping[str, Any] | None = None,
    accelerator: Any = None,
) -> TrainResult:
    """Train what requires a gradient, in place, towards the targets [n, C]: a teacher's, or `one_hot` labels for plain LoRA.

    label_weight: of the cross entropy with the labels, added where it is above 0. log, save, save_every, state,
    accelerator: of `training.fit`. Raises BadInput for targets that are no distributions, and for a weight without labels.
    """
    if target.shape[0] != len(inputs) or not bool((target >= 0).all()):
        raise BadInput(f"Targets {list(target.shape)} of {len(inputs)} inputs: give one of probabilities for each.")
    apart = (target.sum(-1) - 1).abs()
    if not bool((apart <= 1e-6).all()):
        raise BadInput(f"The targets of input {int(apart.argmax())} sum to {target[apart.argmax()].sum():g}, not to 1.")
    if label_weight < 0 or (label_weight > 0 and labels is None):
        raise BadInput(f"label_weight is {label_weight:g}: give labels with a weight above 0, and none below.")
    gold = None if labels is None else torch.as_tensor(labels)
    device, logs = language_model.device, target.double().log()  # so that no small probability becomes 0 in float32

    def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        own = dict(batch)
        wanted, label = own.pop("target"), own.pop("gold", None)
        logits = inputs.logits(model, own)
        total = _apart(logits.log_softmax(-1), wanted.to(logits.dtype), kind).sum()
        if label is not None:
            total = total + label_weight * nn.functional.cross_entropy(logits, label, reduction="sum")
        return total, len(wanted)

    def collate(chosen: Sequence[int]) -> dict[str, Tensor]:
        batch = inputs.batch(chosen, device) | {"target": logs[list(chosen)].to(device, torch.float32)}
        if gold is not None and label_weight > 0:
            batch["gold"] = gold[list(chosen)].to(device)
        return batch

    return fit(
        language_model.model,
        OneLoss(loss),
        without_replacement(len(inputs), settings.batch_size, settings.seed),
        settings,
        collate=collate,
        log=log,
        save=save,
        save_every=save_every,
        state=state,
        accelerator=accelerator,
        title="Distilling",
    )
