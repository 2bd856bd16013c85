"""One training loop, on Accelerate: micro-batches, clipping, schedules, callbacks that stop, exact resume.

    for each step: window = draw(step), split over processes and micro-batches
                   step(model, window) gives the gradient of the whole window
                   clip, AdamW (or SGD), schedule, log, callbacks, save

Weights of 16 bits are moved in float32 and then rounded (`training.precision`): else small updates would be lost, every one.

A loss is (sum, weight): the gradient is that of sum / (weight of the whole window over all processes), so every split into
micro-batches and processes gives the same trajectory. Whatever is random in a step (the order of the data, dropout) is a
pure function of the seed and the step, so resuming is exact without a stored random state.

Of several processes (torchrun, `accelerate launch`) each holds the whole model, and gradients are summed over processes once
a window, which is all the communication that two gradients of one step allow, and needs no wrapper around the model; or the
model is sharded (`training.sharding`), and FSDP2 sums them as it goes.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from pydantic import BaseModel, Field
from torch import Tensor, nn

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.progress import progress
from equipoise.core.streams import torch_seed
from equipoise.training.gradients import sum_dtype
from equipoise.training.memory import memory_advice
from equipoise.training.precision import NARROW, Sample, masters, round_into
from equipoise.training.sharding import from_local, from_whole, is_sharded, local, whole
from equipoise.training.team import accelerator_for

Batch = Any
Loss = tuple[Tensor, Tensor | float]  # a sum with its graph, and the weight (tokens, rows) that it must be divided by
LossFunction = Callable[[nn.Module, Batch], Loss]

_FOR_THE_OPTIMIZER = ("for the optimizer's moments", "train fewer parameters, an adapter for example")


class TrainerSettings(BaseModel, frozen=True, extra="forbid"):
    """Settings of the optimizer and its schedule."""

    steps: int = Field(ge=1, description="Optimizer steps.")
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="sgd: without momentum.")
    learning_rate: float = Field(gt=0, description="Peak learning rate.")
    batch_size: int = Field(default=32, ge=1, description="Examples of an optimizer step, over all processes.")
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="Examples in memory at once; None: all of a process."
    )
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup_ratio: float = Field(default=0.1, ge=0, le=1, description="Share of the steps in which the rate rises.")
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float | None = Field(
        default=1.0, gt=0, description="Largest norm of the gradient; None: no clipping."
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    epsilon: float = Field(default=1e-8, gt=0)
    seed: int = Field(default=0, ge=0)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step 0 .. steps - 1; warm-up rises to the peak, then constant, or down to (near) zero."""
        # transformers' schedules are one step behind: their first step has rate 0 and changes nothing.
        warm = math.ceil(self.warmup_ratio * self.steps)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        left = (self.steps - step) / (self.steps - warm)
        if self.schedule == "linear":
            return self.learning_rate * left
        return self.learning_rate * (1.0 if self.schedule == "constant" else 0.5 * (1 - math.cos(math.pi * left)))


Gradients = list[Tensor | None]  # one for each parameter that requires one, as `mean_gradient` returns them


class Step(Protocol):
    """Returns the gradient of the whole window, and numbers to log (tensors stay on their device).

    window: the micro-batches of this process. index: the optimizer step, from 0. A number whose name ends in "loss" must be
    finite, or the training ends.
    """

    def __call__(
        self, model: nn.Module, window: Sequence[Batch], accelerator: Accelerator, index: int
    ) -> tuple[Gradients, dict[str, float | Tensor]]: ...


@dataclass(frozen=True)
class TrainerState:
    """Where the training is: after optimizer step `step` (counted from 1), with what was logged of it."""

    step: int
    model: nn.Module
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrainResult:
    """steps: optimizer steps made in all attempts that led here. stopped: a callback ended it. metrics: of the last step.

    moved: the share of the trained weights, in [0, 1], that is another number than before the first step, in the precision
    that the model has (of more than 2^20 weights as many are drawn at random). 0 means that nothing was learnt.
    """

    steps: int
    stopped: bool
    metrics: Mapping[str, float]
    moved: float


class OneLoss:
    """The step of one loss: its weighted mean over the window and all processes."""

    def __init__(self, loss: LossFunction) -> None:
        self.loss = loss

    def __call__(
        self, model: nn.Module, window: Sequence[Batch], accelerator: Accelerator, index: int
    ) -> tuple[Gradients, dict[str, float | Tensor]]:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        mean, gradients = mean_gradient(self.loss, model, parameters, window, accelerator)
        return gradients, {"loss": mean}


def mean_gradient(
    loss: LossFunction,
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batches: Sequence[Batch],
    accelerator: Accelerator,
) -> tuple[Tensor, Gradients]:
    """Weighted mean of the loss over the batches of all processes, and its gradient; leaves every .grad None.

    A gradient is None where the loss reaches the parameter in no process; of a sharded model it is this process's part.
    Parameters of 16 bits are accumulated in float32, others where autograd accumulates them, without a copy.
    """
    wide: dict[int, Tensor] = {}

    def widen(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if id(parameter) in wide:
            wide[id(parameter)].add_(gradient)  # type: ignore[arg-type]
        else:
            wide[id(parameter)] = gradient.float()  # type: ignore[union-attr]

    alone = accelerator.num_processes == 1 and len(batches) == 1
    summing = [] if alone else [p for p in parameters if p.dtype in NARROW]
    hooks = [parameter.register_post_accumulate_grad_hook(widen) for parameter in summing]
    device = parameters[0].device
    dtype = sum_dtype(device)
    totals = torch.zeros(2, dtype=dtype, device=device)
    try:
        for batch in batches:
            with accelerator.autocast():
                part, weight = loss(model, batch)
            # One micro-batch is its own window: divided before the backward pass, that saves a pass over the gradients.
            accelerator.backward(part / weight if alone else part)
            totals += torch.stack([part.detach().to(dtype), torch.as_tensor(weight, dtype=dtype, device=part.device)])
    finally:
        for hook in hooks:
            hook.remove()
    gradients = [wide.get(id(parameter), parameter.grad) for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    if any(hasattr(parameter, "placements") for parameter in parameters):
        torch.distributed.all_reduce(totals)  # the gradients were summed in the backward passes
        gradients = [None if gradient is None else local(gradient) for gradient in gradients]
    elif accelerator.num_processes > 1:
        _sum_over_processes(totals, gradients, parameters)
    total, weight = totals.unbind()
    if not alone:
        for gradient in gradients:
            if gradient is not None:
                gradient.div_(weight)
    return total / weight, gradients


def _put_gradients(moved: Iterable[Tensor], gradients: Gradients) -> None:
    """Make these, as `mean_gradient` returned them, the .grad of what the optimizer moves; the list is emptied."""
    for index, tensor in enumerate(moved):
        gradient, gradients[index] = gradients[index], None  # so that only one is held twice while it is widened
        tensor.grad = None if gradient is None else from_local(gradient.to(tensor.dtype), tensor)


def _sum_over_processes(totals: Tensor, gradients: list[Tensor | None], parameters: Sequence[nn.Parameter]) -> None:
    """Sums both in place; a process that has nothing for a parameter that others reach takes part with zeros."""
    from torch import distributed

    present = torch.tensor([float(gradient is not None) for gradient in gradients], device=totals.device)
    distributed.all_reduce(present)
    distributed.all_reduce(totals)
    pending = []
    for index, anywhere in enumerate(present.tolist()):
        if not anywhere:
            continue
        parameter, gradient = parameters[index], gradients[index]
        if gradient is None:
            dtype = torch.float32 if parameter.dtype in NARROW else parameter.dtype
            gradient = gradients[index] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        pending.append(distributed.all_reduce(gradient, async_op=True))
    for each in pending:
        each.wait()


class Optimization:
    """What moves of a model, and what moves it: its parameters that require gradients, AdamW over them, the schedule.

    `fit` makes one; who trains two models in turn, each by a rate of its own, makes two.
    """

    def __init__(self, model: nn.Module, settings: TrainerSettings, accelerator: Accelerator | None = None) -> None:
        """Of several processes, all get the first's weights. Raises BadInput when nothing requires a gradient."""
        self.model, self.settings = model, settings
        self.parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
        if not self.parameters:
            raise BadInput("the model has no parameter that requires a gradient: nothing would be trained.")
        self.sharded = is_sharded(model)
        self.device = next(iter(self.parameters.values())).device
        self.accelerator = accelerator or accelerator_for(self.device)
        if self.accelerator.mixed_precision == "fp16":
            raise BadInput("fp16 needs loss scaling, which two gradients of one step do not share: use bf16.")
        if self.accelerator.num_processes > 1 and not self.sharded:
            # Adapters drawn by each process for itself would drift apart for ever.
            for parameter in self.parameters.values():
                torch.distributed.broadcast(parameter.data, src=0)
        self.done, self.stopped = 0, False
        self._sample = Sample(list(self.parameters.values()))
        with memory_advice(*_FOR_THE_OPTIMIZER):
            self._moved = masters(self.parameters)
        self._optimizer = _optimizer(list(self._moved.values()), settings)

    def update(self, step: Step, drawn: Sequence[Any], collate: Callable[[Sequence[Any]], Batch]) -> dict[str, float]:
        """One optimizer step on the examples drawn for it by all processes; what was logged of it.

        Whatever the step draws at random follows from the seed and the step's number. Raises WorkFailed, with nothing
        applied, when a loss or the gradient is no number or memory runs out.
        """
        self.model.train()
        _draw_from(_seed(self.settings.seed, self.done, self.accelerator.process_index), self.device)
        own = _share(drawn, self.accelerator, equal=self.sharded)
        size = self.settings.micro_batch_size or max(len(own), 1)
        with memory_advice(f"with {min(size, len(own))} examples at once", _smaller(min(size, len(own)))):
            window = [
                send_to_device(collate(own[first : first + size]), self.device) for first in range(0, len(own), size)
            ]
            gradients, metrics = step(self.model, window, self.accelerator, self.done)
            _put_gradients(self._moved.values(), gradients)
        norm = whole(nn.utils.clip_grad_norm_(self._moved.values(), self.settings.max_grad_norm or math.inf))
        # The only transfer of a step: what is not finite has to be known before it is applied.
        numbers = _numbers({**metrics, "gradient_norm": norm})
        _refuse_not_finite(numbers, self.done)
        rate = self.settings.learning_rate_at(self.done)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with memory_advice(*_FOR_THE_OPTIMIZER):
            self._optimizer.step()
        self._optimizer.zero_grad()
        round_into(self.parameters.values(), self._moved.values())
        self.done += 1
        return {**numbers, "learning_rate": rate}

    def moved(self) -> float:
        """The share of the trained weights, in [0, 1], that is another number than before the first step."""
        return self._sample.moved()

    def state(self, *, keep: bool = True) -> dict[str, Any]:
        """What `restore` takes back: JSON values and living tensors, to be written or copied at once.

        Of a sharded model every process takes part, and those that do not keep it get None for its tensors.
        """
        return _state(self.settings, self._moved, self._optimizer, self.done, self.stopped, keep=keep)

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on as what returned the state would have. Raises BadInput when it is of other parameters or settings."""
        if state is not None:
            self.done = _restore(state, self.settings, self._moved, self._optimizer)
            self.stopped = state["stopped"]
        round_into(self.parameters.values(), self._moved.values())

    def release(self) -> None:
        """Leaves no gradient behind, also after a step that failed."""
        self._optimizer.zero_grad()


def _optimizer(moved: list[Tensor], settings: TrainerSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(moved, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(
        moved,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )


class Carried(Protocol):
    """What a step remembers of earlier ones beside the weights: stored and put back with the training."""

    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


def fit(
    model: nn.Module,
    step: Step,
    draw: Callable[[int], Sequence[Any]],
    settings: TrainerSettings,
    *,
    collate: Callable[[Sequence[Any]], Batch],
    accelerator: Accelerator | None = None,
    callbacks: Sequence[Callable[[TrainerState], bool | None]] = (),
    log: Path | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
    save_every: int | None = None,
    state: Mapping[str, Any] | None = None,
    carried: Carried | None = None,
    title: str = "Training",
) -> TrainResult:
    """Train the parameters of `model` that require gradients, in place.

    draw: step (from 0) -> the examples of the whole optimizer step, a pure function. collate: examples -> batch. callbacks
    see every step, in every process; one that returns True ends the training. save (given in every process) is called in the
    main one with a nested dict of JSON values and tensors every `save_every` steps and at the end; they are the living ones,
    written or copied at once. `state` takes it back into a model that is otherwise as it was before the training, and goes
    on, bit by bit as if never interrupted. carried: goes with the state. log: a JSON line per step, cut back to the state's
    step on resume.
    Raises WorkFailed when a loss or gradient is no number (nothing is applied, the last save stands) or memory runs out,
    BadInput when there is nothing to train, and for a state that belongs to another training.
    """
    optimization = Optimization(model, settings, accelerator)
    accelerator = optimization.accelerator
    optimization.restore(state)
    begin = optimization.done
    if carried is not None and state is not None:
        carried.restore(state["carried"])
    if optimization.stopped or begin >= settings.steps:
        return TrainResult(begin, optimization.stopped, {}, optimization.moved())
    was_training = model.training
    numbers: dict[str, float] = {}
    with (
        random_state_kept(optimization.device),
        step_log(log if accelerator.is_main_process else None, begin) as write,
        progress(title, total=settings.steps, unit="steps", done=begin) as bar,
    ):
        try:
            for index in range(begin, settings.steps):
                numbers = optimization.update(step, draw(index), collate)
                done = optimization.done
                write({"step": done, **numbers})
                reached = TrainerState(done, model, numbers)
                wishes = [callback(reached) for callback in callbacks]  # every one sees every step
                optimization.stopped = anywhere(any(wishes), accelerator)
                last = optimization.stopped or done == settings.steps
                main = accelerator.is_main_process
                if (
                    save is not None
                    and (main or optimization.sharded)
                    and (last or (save_every and not done % save_every))
                ):
                    stored = optimization.state(keep=main) | ({"carried": carried.state()} if carried else {})
                    if main:
                        save(stored)
                shown = next((name for name in numbers if name.endswith("loss")), "gradient_norm")
                bar.advance(1, **{shown: f"{numbers[shown]:.3g}"})
                if optimization.stopped:
                    break
        finally:
            model.train(was_training)
            optimization.release()
    return TrainResult(optimization.done, optimization.stopped, numbers, optimization.moved())


def _share(drawn: Sequence[Any], accelerator: Accelerator, *, equal: bool) -> Sequence[Any]:
    """This process' examples of a step. equal: as many as the others' (each makes as many passes), else BadInput."""
    if equal and len(drawn) % accelerator.num_processes:
        raise BadInput(
            f"batch_size {len(drawn)} cannot be split equally over {accelerator.num_processes} processes, as "
            "sharded training needs it: choose a multiple."
        )
    return drawn[accelerator.process_index :: accelerator.num_processes]


def anywhere(wish: bool, accelerator: Accelerator) -> bool:
    """Whether any process wishes so: one that stopped alone would leave the others waiting for ever."""
    if accelerator.num_processes == 1:
        return wish
    wishes = torch.tensor(float(wish), device=accelerator.device)
    torch.distributed.all_reduce(wishes)
    return bool(wishes.item())


def _seed(*entropy: int) -> int:
    # 3 keeps these draws apart from those of training.order.
    first, *rest = entropy
    return torch_seed(first, 3, *rest)


def _draw_from(seed: int, device: torch.device) -> None:
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)  # torch.manual_seed also writes a stack trace for every GPU to come
    else:
        torch.manual_seed(seed)


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """The caller's global random state is the same after as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _numbers(metrics: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Everything as Python numbers, with one transfer from the device."""
    tensors = [value.detach() for value in metrics.values() if isinstance(value, Tensor)]
    moved = iter(torch.stack([each.to(sum_dtype(each.device)) for each in tensors]).tolist() if tensors else ())
    return {name: next(moved) if isinstance(value, Tensor) else float(value) for name, value in metrics.items()}


def _refuse_not_finite(numbers: Mapping[str, float], index: int) -> None:
    for name, value in numbers.items():
        if not math.isfinite(value) and (name.endswith("loss") or name == "gradient_norm"):
            raise WorkFailed(
                f"the {name.replace('_', ' ')} is {value} at step {index + 1}: nothing of this step was applied, and the "
                "last save stands. Use a smaller learning rate, or a loss that is bounded; a loss of nan at step 1 mostly "
                "means a batch without a token to learn from."
            )


def _smaller(size: int) -> str:
    if size <= 1:
        return "use shorter examples (a smaller max_length) or a smaller model"
    return f"use micro_batch_size={size // 2} (--micro-batch-size {size // 2}); the result is the same"


def _state(
    settings: TrainerSettings,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    done: int,
    stopped: bool,
    *,
    keep: bool,
) -> dict[str, Any]:
    """What resuming needs, parameters as the optimizer moves them.

    Sharded tensors are put together on the CPU, by all processes, for the one that keeps them.
    """

    def gathered(tensor: Tensor) -> Tensor | None:
        if not hasattr(tensor, "placements"):
            return tensor
        put_together = whole(tensor)
        return put_together.cpu() if keep else None

    moments = optimizer.state_dict()["state"]
    return {
        "step": done,
        "stopped": stopped,
        "settings": settings.model_dump(mode="json"),
        "parameters": {name: gathered(parameter.detach()) for name, parameter in parameters.items()},
        "moments": {
            name: {key: gathered(value) for key, value in moments[index].items()}
            for index, name in enumerate(parameters)
            if index in moments
        },
    }


def _restore(
    state: Mapping[str, Any],
    settings: TrainerSettings,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> int:
    """Puts a state back and returns its step. Raises BadInput when it is of other parameters or settings."""
    now = settings.model_dump(mode="json")
    for name, stored in state["settings"].items():
        # Of the settings only the size of the micro-batch may change: it does not change the result.
        if name != "micro_batch_size" and stored != now[name]:
            raise BadInput(f"the stored training has {name}={stored}, this one {name}={now[name]}: start it anew.")
    different = sorted(state["parameters"].keys() ^ parameters.keys())
    different += [
        n for n, p in parameters.items() if n in state["parameters"] and state["parameters"][n].shape != p.shape
    ]
    if different:
        raise BadInput(f"the stored training is of other parameters ({different[0]} and {len(different) - 1} more).")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(from_whole(state["parameters"][name], parameter))
    moments = {
        index: {
            key: from_whole(value, parameter).clone() if value.shape == parameter.shape else value.clone()
            for key, value in state["moments"][name].items()
        }
        for index, (name, parameter) in enumerate(parameters.items())
        if name in state["moments"]
    }
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(state["step"])


@contextmanager
def step_log(path: Path | None, begin: int) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Yields what writes a row as a JSON line, flushed; first cuts off what was logged after step `begin`."""
    if path is None:
        yield lambda row: None
        return
    with path.open("a+b") as file:
        file.seek(0)
        kept = 0
        for line in file:
            try:
                if json.loads(line)["step"] > begin:
                    break
            except (ValueError, KeyError, TypeError):  # cut short in the middle of a line
                break
            if not line.endswith(b"\n"):
                break
            kept += len(line)
        file.truncate(kept if begin else 0)

        def write(row: Mapping[str, float]) -> None:
            # JSON has no nan: a cosine with a zero gradient is null.
            finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
            file.write(json.dumps(finite).encode() + b"\n")
            file.flush()

        yield write
