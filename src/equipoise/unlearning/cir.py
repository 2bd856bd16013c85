"""CIR (arXiv:2509.11816): forget gradients of linear maps without the main components of what makes them.

For a trained linear map W, a_t is its input at token t and g_t the loss's gradient at its output. Back-propagation gives

    dW = sum_t g_t a_t'      and CIR   dW = sum_t P_g(g_t) P_a(a_t)'

with P_a, P_g as in `unlearning.mcu`: the mean and the principal directions of a and of g over the forget set are taken out.
Each text's first and last token are left out, as padding is. Only W's own gradient changes, not what flows on below it.

The released code collects a and g along an epoch in which it first does not move at all; here they are collected at every
refresh by a pass of its own over the forget set (or over so many texts as hold ROWS tokens), at one state of the
weights: the same at the first refresh, and no state but the components has to be kept for resuming.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.core.progress import beat
from equipoise.training import subspace
from equipoise.training.gradients import sum_dtype, work_dtype
from equipoise.training.loop import Batch, LossFunction, mean_gradient
from equipoise.training.two_gradients import GradientFunction
from equipoise.unlearning.mcu import Basis, project_out

ACTIVATIONS, GRADIENTS = 24, 36  # components of Llama-3.1-8B in the code of arXiv:2605.11685
NARROW = 1536  # below this width so many are too large a part: all 24 of 128 leave a step that forgets nothing
LEFT = 1e-5  # of the norm of a or g; less is rounding
ROWS = 4096  # tokens from which components are computed, at least where the forget set has them


def linear_maps(module: nn.Module) -> dict[str, nn.Module]:
    """The linear maps within a module by name: GPT-2's, which keep their weight transposed, as others."""
    return {name: each for name, each in module.named_modules() if isinstance(each, nn.Linear | Conv1D)}


def inner_tokens(mask: Tensor) -> Tensor:
    """[B, T] bool: the tokens of each text but its first and its last, and no padding."""
    counted = mask.bool()
    place = counted.cumsum(-1)
    return counted & (place > 1) & (place < counted.sum(-1, keepdim=True))


def published(count: int, width: int) -> int:
    """As many components as the released code takes out, in proportion where vectors are narrower than `NARROW`."""
    return min(count, max(round(count * width / NARROW), 1))


class Cir:
    """Filters the forget gradient of every trained linear map; other parameters keep theirs."""

    @closed
    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[], Iterable[Batch]],
        *,
        activations: int | None = None,
        gradients: int | None = None,
        every: int,
        basis: Basis = "orthonormal",
    ) -> None:
        """batches: the forget set, shuffled. every: steps between refreshes.

        activations, gradients: components of each; when not given, `published` for the width of the vectors.
        Raises BadInput when no linear map is trained.
        """
        self.batches, self.activations, self.gradients = batches, activations, gradients
        self.every = every
        self.basis: Basis = basis
        maps = {name: each for name, each in linear_maps(model).items() if each.weight.requires_grad}  # type: ignore[union-attr]
        if not maps:
            raise BadInput("cir filters the gradients of linear maps, and none is trained: use parameters mlp or full.")
        self.layers = {name: _Layer(each) for name, each in maps.items()}
        self._refreshed: int | None = None
        self._first = True  # the first refresh of a run, also of one that was killed since, refuses what leaves nothing

    def __call__(self, index: int) -> GradientFunction:
        """The gradient of an optimizer step; what it takes out is computed anew before it where the step is due."""

        def gradient(
            loss: LossFunction,
            model: nn.Module,
            parameters: Sequence[nn.Parameter],
            batches: Sequence[Batch],
            accelerator: Accelerator,
        ) -> tuple[Tensor, list[Tensor | None]]:
            if index % self.every == 0 and self._refreshed != index:
                self.refresh(loss, model)
                self._refreshed = index
            with self._watching():
                return mean_gradient(self._telling(loss), model, parameters, batches, accelerator)

        return gradient

    def refresh(self, loss: LossFunction, model: nn.Module) -> None:
        """Components of every layer from a pass over the forget set at the present weights."""
        for layer in self.layers.values():
            layer.rows = []
        with self._watching():
            for batch in self.batches():
                # The sum, since a mean would be another in other batches, and gradients are compared over all of them.
                self._telling(loss)(model, batch)[0].backward()
                beat()
        for parameter in model.parameters():
            parameter.grad = None
        anything = False  # a loss that has come down to 0 has no gradients of which something could be taken out
        for layer in self.layers.values():
            rows, layer.rows = layer.rows or [], None
            if rows:
                inputs, gradients = (torch.cat(each) for each in zip(*rows, strict=True))
                layer.inputs = taken_out(inputs, _count(self.activations, ACTIVATIONS, inputs), self.basis)
                layer.gradients = taken_out(gradients, _count(self.gradients, GRADIENTS, gradients), self.basis)
                layer.exhausted = _nothing_left(inputs, layer.inputs) or _nothing_left(gradients, layer.gradients)
                anything = anything or bool(inputs.any() and gradients.any())
        if self._first and anything and all(layer.exhausted for layer in self.layers.values()):
            raise BadInput(
                "cir takes out all that there is: the components of what enters the linear maps or of the gradients are as "
                "many as the forget set has. Use fewer --cir-activations and --cir-gradients, or more text."
            )
        self._first = False

    def state(self) -> dict[str, Any]:
        """The components of every layer, for `restore`."""
        known = {name: layer for name, layer in self.layers.items() if layer.inputs is not None}
        return {
            name: {"inputs": layer.inputs, "gradients": layer.gradients, "exhausted": layer.exhausted}
            for name, layer in known.items()
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the components that `state` had."""
        self._first = False
        for name, stored in state.items():
            layer = self.layers[name]
            device = layer.module.weight.device  # type: ignore[union-attr]
            layer.inputs, layer.gradients = stored["inputs"].to(device), stored["gradients"].to(device)
            layer.exhausted = stored["exhausted"]

    def _telling(self, loss: LossFunction) -> LossFunction:
        """The loss, with every layer told which tokens of the batch count."""

        def told(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | float]:
            kept = inner_tokens(batch["attention_mask"])
            for layer in self.layers.values():
                layer.kept = kept
            return loss(model, batch)

        return told

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Inside, the layers compute their weights' gradients in their own way."""
        with ExitStack() as stack:
            for layer in self.layers.values():
                stack.enter_context(_instead(layer.module, layer.forward))
            yield


def _count(given: int | None, usual: int, rows: Tensor) -> int:
    return published(usual, rows.shape[-1]) if given is None else given


class _Layer:
    """A linear map. rows: pairs (a, g) while they are collected. inputs, gradients: components [K, D] to take out.

    exhausted: these are all there is of a or of g; the rest is rounding, which a step of one length must not follow.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.transposed = isinstance(module, Conv1D)
        self.kept = torch.empty(0)
        self.rows: list[tuple[Tensor, Tensor]] | None = None
        self.inputs: Tensor | None = None
        self.gradients: Tensor | None = None
        self.exhausted = False

    def forward(self, states: Tensor) -> Tensor:
        module: Any = self.module
        output = _Product.apply(states, module.weight, self)
        return output if module.bias is None else output + module.bias

    def matrix(self, weight: Tensor) -> Tensor:
        """[in, out]"""
        return weight if self.transposed else weight.T

    def weight_gradient(self, states: Tensor, gradient: Tensor, kept: Tensor) -> Tensor | None:
        """Filtered, in the shape of the weight; None while a and g are collected."""
        if states.shape[:-1] != kept.shape:
            raise BadInput(
                "cir has to know the tokens that enter a linear map, and this model routes them (a mixture of experts): "
                "leave gradient_filter out."
            )
        dtype = work_dtype(states)
        inputs, gradients = states[kept].to(dtype), gradient[kept].to(dtype)
        if self.rows is not None:
            self.rows.append((inputs, gradients))
            return None
        if self.exhausted:
            return torch.zeros_like(self.module.weight, dtype=dtype)  # type: ignore[arg-type]
        if self.inputs is not None and self.gradients is not None:
            inputs, gradients = project_out(inputs, self.inputs), project_out(gradients, self.gradients)
        return inputs.T @ gradients if self.transposed else gradients.T @ inputs


class _Product(torch.autograd.Function):
    """states @ W, whose W gets the gradient that its layer computes."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, layer: _Layer) -> Tensor:
        ctx.save_for_backward(states, weight)
        ctx.layer, ctx.kept = layer, layer.kept
        return states @ layer.matrix(weight)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = outputs
        states, weight = ctx.saved_tensors
        below = own = None
        if ctx.needs_input_grad[0]:
            below = (gradient @ ctx.layer.matrix(weight).T.to(gradient)).to(states.dtype)
        if ctx.needs_input_grad[1]:
            own = ctx.layer.weight_gradient(states, gradient, ctx.kept)
        return below, own if own is None else own.to(weight.dtype), None


@contextmanager
def _instead(module: Any, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    own = vars(module).get("forward")  # where others have put theirs, accelerate for one
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _nothing_left(rows: Tensor, components: Tensor) -> bool:
    return bool(project_out(rows, components).norm() <= LEFT * rows.norm())


@closed
def taken_out(rows: Tensor, count: int, basis: Basis) -> Tensor:
    """Mean and principal directions of rows [N, D], [K, D] with K <= count: fewer where the rows vary in fewer."""
    center = rows.to(sum_dtype(rows.device)).mean(0)
    if count == 0 or not rows.any():
        return center.new_empty(0, len(center))
    found = torch.cat([center[None], subspace.directions(rows, count - 1, centred=True, fewer=True).to(center)])
    return subspace.span(found) if basis == "orthonormal" else found[found.norm(dim=-1) > 0]
