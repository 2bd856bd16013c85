"""One training loop, on Accelerate: micro-batches, clipping, schedules, callbacks that stop, exact resume.

    for each step: window = draw(step), split over processes and micro-batches
                   step(model, window) puts the gradient of the whole window into .grad
                   clip, AdamW, schedule, log, callbacks, save

A loss is (sum, weight): the gradient is that of sum / (weight of the whole window over all processes), so every split into
micro-batches and processes gives the same trajectory. The order of the data is a pure function of the step.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from accelerate import Accelerator
from pydantic import BaseModel, Field
from torch import Tensor, nn

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.progress import progress

Batch = Any
Loss = tuple[Tensor, Tensor | float]  # a sum with its graph, and the weight (tokens, rows) that it must be divided by
LossFunction = Callable[[nn.Module, Batch], Loss]


class Settings(BaseModel, frozen=True, extra="forbid"):
    """Settings of AdamW and its schedule; rate is the peak, warm-up a fraction of the steps."""

    steps: int = Field(ge=1)
    rate: float = Field(gt=0)
    batch_size: int = Field(32, ge=1)
    micro_batch: int | None = Field(None, ge=1)
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    clip: float | None = Field(1.0, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    epsilon: float = Field(1e-8, gt=0)
    seed: int = Field(0, ge=0)

    def rate_at(self, step: int) -> float:
        """Learning rate of step 0 .. steps - 1; warm-up rises to the peak, then constant, or down to (near) zero."""
        warm = math.ceil(self.warmup * self.steps)
        if step < warm:
            return self.rate * (step + 1) / warm
        left = (self.steps - step) / max(self.steps - warm, 1)
        if self.schedule == "linear":
            return self.rate * left
        return self.rate * (1.0 if self.schedule == "constant" else 0.5 * (1 - math.cos(math.pi * left)))


class Step(Protocol):
    """Puts the gradient of the whole window into .grad; returns numbers to log (tensors stay on their device)."""

    def __call__(
        self, model: nn.Module, window: Sequence[Batch], accelerator: Accelerator
    ) -> dict[str, float | Tensor]: ...


@dataclass(frozen=True)
class Moment:
    """Where the training is: after optimizer step `step` (counted from 1), with what was logged of it."""

    step: int
    model: nn.Module
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Fitted:
    """steps: optimizer steps made in all attempts that led here. stopped: a callback ended it. metrics: of the last step."""

    steps: int
    stopped: bool
    metrics: Mapping[str, float]


class OneLoss:
    """The step of one loss: accumulates the gradient of its weighted mean over the window and all processes."""

    def __init__(self, loss: LossFunction) -> None:
        self.loss = loss

    def __call__(
        self, model: nn.Module, window: Sequence[Batch], accelerator: Accelerator
    ) -> dict[str, float | Tensor]:
        total, weight = accumulate(self.loss, model, window, accelerator)
        for parameter in model.parameters():
            if not parameter.requires_grad:
                continue
            if accelerator.num_processes > 1:  # a process may have seen nothing that reaches this parameter
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = accelerator.reduce(own, "sum")  # type: ignore[assignment]
            if parameter.grad is not None:
                parameter.grad.div_(weight)
        return {"loss": total / weight}


def accumulate(
    loss: LossFunction, model: nn.Module, window: Sequence[Batch], accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    """Adds the gradient of the summed loss of this process's window to .grad; the sum and weight over all processes."""
    total = torch.zeros((), device=accelerator.device, dtype=torch.float64 if _exact(accelerator.device) else None)
    weight = torch.zeros_like(total)
    for batch in window:
        part, part_weight = loss(model, batch)
        accelerator.backward(part)
        total += part.detach()
        weight += part_weight
    if accelerator.num_processes > 1:
        total, weight = accelerator.reduce(total, "sum"), accelerator.reduce(weight, "sum")  # type: ignore[assignment]
    return total, weight


def fit(
    model: nn.Module,
    step: Step,
    draw: Callable[[int], Sequence[Any]],
    settings: Settings,
    *,
    collate: Callable[[Sequence[Any]], Batch],
    accelerator: Accelerator | None = None,
    callbacks: Sequence[Callable[[Moment], bool | None]] = (),
    log: Path | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
    save_every: int | None = None,
    state: Mapping[str, Any] | None = None,
    title: str = "Training",
) -> Fitted:
    """Train the parameters of `model` that require gradients, in place.

    draw: step (from 0) -> the examples of the whole optimizer step, a pure function. collate: examples -> batch on the
    model's device. callbacks see every step; one that returns True ends the training. save is called with a nested dict of
    JSON values and tensors every `save_every` steps and at the end; `state` takes it back and goes on from there, bit by
    bit as if never interrupted. log: a JSON line per step, cut back to the state's step on resume.
    Raises WorkFailed when a loss or gradient is no number (nothing is applied, the last save stands) or memory runs out.
    """
    accelerator = accelerator or Accelerator()
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise BadInput("the model has no parameter that requires a gradient: nothing would be trained.")
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=settings.rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        foreach=True,
    )
    begin = 0
    if state is not None:
        begin = _restore(state, parameters, optimizer)
        if state["stopped"] or begin >= settings.steps:
            return Fitted(begin, state["stopped"], {})
    else:
        torch.manual_seed(settings.seed)  # dropout; the state carries it on
    writer = None if log is None or not accelerator.is_main_process else _Log(log, begin)
    was_training = model.training
    model.train()
    metrics: dict[str, float | Tensor] = {}
    done, stopped = begin, False
    try:
        with progress(title, total=settings.steps, unit="steps") as bar:
            bar.advance(begin)
            for index in range(begin, settings.steps):
                window = _window(draw(index), settings, accelerator, collate)
                try:
                    metrics = dict(step(model, window, accelerator))
                except RuntimeError as error:
                    raise _out_of_memory(error, window, settings) from error
                norm = _clip(parameters.values(), settings.clip)
                metrics["gradient_norm"] = norm
                numbers = _numbers(metrics)
                bad = [
                    name for name in ("loss", "forget_loss", "retain_loss", "gradient_norm") if _broken(numbers, name)
                ]
                if bad:
                    raise WorkFailed(
                        f"{bad[0]} is {numbers[bad[0]]} at step {index + 1}: nothing of this step was applied, and the last "
                        "checkpoint stands. Try a smaller rate, or a bounded objective such as npo."
                    )
                rate = settings.rate_at(index)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                done = index + 1
                if writer is not None:
                    writer.add({"step": done, "rate": rate, **numbers})
                moment = Moment(done, model, numbers)
                wishes = [callback(moment) for callback in callbacks]  # every one sees every step
                stopped = any(wishes)
                model.train()
                if save is not None and (stopped or done == settings.steps or (save_every and done % save_every == 0)):
                    save(_state(parameters, optimizer, done, stopped))
                shown = next((name for name in ("loss", "forget_loss") if name in numbers), "gradient_norm")
                bar.advance(1, **{shown: f"{numbers[shown]:.3g}"})
                if stopped:
                    break
    finally:
        model.train(was_training)
        optimizer.zero_grad(set_to_none=True)
        if writer is not None:
            writer.close()
    return Fitted(done, stopped, _numbers(metrics))


def _window(
    examples: Sequence[Any], settings: Settings, accelerator: Accelerator, collate: Callable[[Sequence[Any]], Batch]
) -> list[Batch]:
    """This process's share of the step, as micro-batches; processes take turns, so that shares differ by one at most."""
    own = examples[accelerator.process_index :: accelerator.num_processes]
    size = settings.micro_batch or max(len(own), 1)
    return [collate(own[begin : begin + size]) for begin in range(0, len(own), size)]


def _clip(parameters: Any, largest: float | None) -> Tensor:
    """The norm of the whole gradient before it was scaled down to `largest`."""
    return nn.utils.clip_grad_norm_(list(parameters), math.inf if largest is None else largest)


def _numbers(metrics: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Everything as Python numbers, with one transfer from the device."""
    tensors = {name: value for name, value in metrics.items() if isinstance(value, Tensor)}
    moved = torch.stack([value.detach().double() for value in tensors.values()]).tolist() if tensors else []
    return {**{k: float(v) for k, v in metrics.items() if k not in tensors}, **dict(zip(tensors, moved, strict=True))}


def _broken(numbers: Mapping[str, float], name: str) -> bool:
    return name in numbers and not math.isfinite(numbers[name])


def _exact(device: torch.device) -> bool:
    return device.type != "mps"  # which has no float64


def _out_of_memory(error: RuntimeError, window: Sequence[Batch], settings: Settings) -> Exception:
    """The sentence for a device or a host without memory; any other error as it is."""
    if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
        return error
    size = settings.micro_batch or math.ceil(settings.batch_size / max(len(window), 1))
    remedy = f"use --micro-batch {size // 2}" if size > 1 else "use shorter records (--max-length) or a smaller model"
    return WorkFailed(f"Out of memory with {size} records at once: {remedy}. The result is the same, only slower.")


def _state(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, done: int, stopped: bool
) -> dict[str, Any]:
    names = {id(parameter): name for name, parameter in parameters.items()}
    moments = {
        names[id(parameter)]: {key: torch.as_tensor(value).detach() for key, value in moment.items()}
        for parameter, moment in optimizer.state.items()
    }
    cuda = {str(i): s for i, s in enumerate(torch.cuda.get_rng_state_all())} if torch.cuda.is_available() else {}
    return {
        "step": done,
        "stopped": stopped,
        "parameters": {name: parameter.detach() for name, parameter in parameters.items()},
        "moments": moments,
        "random": {"cpu": torch.get_rng_state(), **cuda},
    }


def _restore(state: Mapping[str, Any], parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    stored = state["parameters"]
    if stored.keys() != parameters.keys():
        different = sorted(stored.keys() ^ parameters.keys())
        raise BadInput(f"the stored training is of other parameters ({different[0]} and {len(different) - 1} more).")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])
            moment = state["moments"].get(name)
            if moment is not None:
                # AdamW keeps its step counter on the CPU, the moments beside the parameter.
                optimizer.state[parameter] = {
                    key: value.clone() if key == "step" else value.to(parameter.device, parameter.dtype, copy=True)
                    for key, value in moment.items()
                }
    torch.set_rng_state(state["random"]["cpu"])
    for key, value in state["random"].items():
        if key != "cpu" and torch.cuda.is_available() and int(key) < torch.cuda.device_count():
            torch.cuda.set_rng_state(value, int(key))
    return int(state["step"])


class _Log:
    """A JSON line per step, flushed; begins by cutting off what was logged after the resumed step."""

    def __init__(self, path: Path, begin: int) -> None:
        lines = path.read_text(encoding="utf-8").splitlines() if begin and path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= begin]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def add(self, row: Mapping[str, Any]) -> None:
        finite = {key: value if math.isfinite(value) else None for key, value in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
