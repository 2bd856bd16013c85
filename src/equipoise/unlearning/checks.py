"""Whether a model is fit to be made to forget, and whether noise would have made it forget as well.

The control of a run is the model at its start plus Gaussian noise, scaled in every trained tensor to the norm of what the
training changed there. What it forgets, any change of that size would have made the model forget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.core.errors import BadInput

if TYPE_CHECKING:
    from equipoise.language.encode import Example
    from equipoise.language.model import LanguageModel

ASKED = 16  # records by which a tokenizer is told to be another model's
WORSE = 0.5  # nats per token below guessing: a model that reads its own tokens does not get there


def check_model(language_model: LanguageModel, kept: Sequence[Example]) -> None:
    """`check_finite`, and then `check_reads` on what should be kept."""
    check_finite(language_model)
    check_reads(language_model, kept)


def check_finite(language_model: LanguageModel, *, named: str = "") -> None:
    """Raises BadInput for a checkpoint with a number that is nan or infinite, by the tensor. named: in place of its name."""
    model = language_model.model
    for name, values in (*model.named_parameters(), *model.named_buffers()):
        if not values.is_floating_point():
            continue
        wrong = int((~values.detach().isfinite()).sum())
        if wrong:
            raise BadInput(
                f"{named or language_model.name} is damaged: {wrong:,} of the {values.numel():,} numbers of {name} are nan "
                "or infinite, so nothing can be learnt or measured with it. Take an earlier checkpoint, or write this one "
                "again."
            )


def check_reads(language_model: LanguageModel, kept: Sequence[Example]) -> None:
    """Raises BadInput when the model finds what it should keep less likely than tokens drawn at random.

    That is a tokenizer of another model, whose numbers mean other words here; or weights that are damaged. A tokenizer that
    shares most of its numbers with the model's own is not told this way.
    """
    from equipoise.language.score import log_likelihoods

    sums, counts = log_likelihoods(language_model, kept[:ASKED])
    found, guessing = (sums.sum() / counts.sum()).item(), -math.log(language_model.vocabulary)
    if not found >= guessing - WORSE:
        raise BadInput(
            f"{language_model.name} gives the retain records {found:.1f} nats per token, where guessing among its "
            f"{language_model.vocabulary} tokens gives {guessing:.1f}: its tokenizer is another model's, or its weights are "
            "damaged. Give the tokenizer that the model was saved with."
        )


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters that require gradients, on the CPU."""
    parameters = model.named_parameters()
    return {name: each.detach().to("cpu", copy=True) for name, each in parameters if each.requires_grad}


@contextmanager
@torch.no_grad()
def changed_at_random(model: nn.Module, start: Mapping[str, Tensor], seed: int) -> Iterator[None]:
    """Inside, the model is the control of the change from `start` to what it is; afterwards it is as it was.

    start: by names of parameters, as `trained_weights` has it.
    """
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, 7]).generate_state(1)[0]))
    parameters = {name: each for name, each in model.named_parameters() if name in start}
    kept: dict[str, Tensor] = {}
    try:
        for name, parameter in parameters.items():
            kept[name] = parameter.detach().to("cpu", copy=True)
            size = (kept[name].double() - start[name].double()).norm().item()
            noise = torch.randn(parameter.shape, generator=generator)
            # Of a tensor that did not move, or of none, nothing is left to scale.
            noise *= size / noise.norm().clamp(min=torch.finfo(noise.dtype).tiny)
            parameter.copy_(start[name] + noise)
        yield
    finally:
        for name, end in kept.items():
            parameters[name].copy_(end)
