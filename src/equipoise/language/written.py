"""What a job writes is loaded again and asked again before it is given its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from equipoise.core.errors import WorkFailed
from equipoise.language import adapters
from equipoise.language.encode import Example
from equipoise.language.score import log_likelihoods

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # nats per token; lower precision: 0.05


def write_checked(
    language_model: LanguageModel, folder: Path, compared: Sequence[Example], *, adapter: bool, kept: Path
) -> float:
    """Write a model or its adapter, load it again and score both; the largest gap in nats per token of an example.

    kept: where the trained weights are if it fails. Raises WorkFailed when what was written is another model.
    """
    if adapter:
        adapters.export(language_model, folder)
    else:
        language_model.save(folder)
    ours, counts = log_likelihoods(language_model, compared)
    again = language_model.reload(folder)
    theirs, _ = log_likelihoods(again, compared)
    gap = ((ours - theirs).abs() / counts).max().item()
    allowed = TOLERANCE.get(language_model.model.dtype, 0.05)
    if not gap <= allowed:
        raise WorkFailed(
            f"the written model differs from the trained one by {gap:.2g} nats per token (allowed: {allowed:g}), so it "
            f"was not given its name; the trained weights are in {kept}."
        )
    return gap
