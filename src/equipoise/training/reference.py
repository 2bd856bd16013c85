"""A model as it was at some moment, for losses that hold another near it."""

from typing import Any

import torch
from torch import nn


class ReferenceModel:
    """A model as it is now, whatever is trained later: it shares what is not trained and keeps a copy of what is.

    With an adapter, or a few trained blocks, that is much less than a copy of the model. Called like the model, in
    evaluation mode and without gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **inputs: Any) -> Any:
        training = self._model.training
        self._model.eval()
        try:
            with torch.no_grad():
                return torch.func.functional_call(self._model, self._start, kwargs=inputs)
        finally:
            self._model.train(training)
