"""Relearning attacks as they are typed, PARAMETERS:OPTIMIZER:RATE, and the five that suit a model's size."""

import math
import re
from typing import Any

from equipoise.core.errors import BadInput
from equipoise.language.model import LanguageModel
from equipoise.language.states import blocks
from equipoise.unlearning.recipe import Recipe
from equipoise.unlearning.relearning import Relearning

LORA_RATE, SGD_RATE = 10.0, 100.0  # times AdamW's rate for all weights
PUBLISHED_RATE = 1e-5  # as released for arXiv:2605.11685, in the blocks that its unlearning computed, 13 of 32
PUBLISHED_DEPTH = 13 / 32
_ATTACK = re.compile(r"(full|lora|mlp)(?:/(\d+))?:(adamw|sgd):(\S+)")


def suited(model: LanguageModel) -> list[str]:
    """Two rates of AdamW on all weights, LoRA, SGD on all MLP weights, and what was published."""
    rate = Recipe().resolved_learning_rate(sum(each.numel() for each in model.model.parameters()))
    depth = math.ceil(PUBLISHED_DEPTH * len(blocks(model.model)))
    return [
        f"full:adamw:{rate:g}",
        f"full:adamw:{rate / 5:g}",
        f"lora:adamw:{rate * LORA_RATE:g}",
        f"mlp:sgd:{rate * SGD_RATE:g}",
        f"mlp/{depth}:sgd:{PUBLISHED_RATE:g}",
    ]


def parsed(text: str, *, epochs: int, **how: Any) -> Relearning:
    """An attack as it is typed: PARAMETERS:OPTIMIZER:RATE. Raises BadInput for what is none."""
    match = _ATTACK.fullmatch(text)
    rate = _number(match[4]) if match else math.nan
    if match is None or not 0 < rate < math.inf or (match[2] is not None and (match[1] != "mlp" or int(match[2]) < 1)):
        raise BadInput(
            f"The attack {text!r} is none: expected PARAMETERS:OPTIMIZER:RATE such as full:adamw:5e-5, lora:adamw:5e-4, "
            "mlp:sgd:1e-2, or mlp/13:sgd:1e-5 for the first 13 blocks."
        )
    settings = {"parameters": match[1], "optimizer": match[3], "learning_rate": rate, "epochs": epochs, **how}
    return Relearning(**settings, blocks=None if match[2] is None else int(match[2]))


def words(settings: Relearning) -> str:
    """What moves, by what, how far: "AdamW on all weights, rate 5e-05"."""
    moved = {"full": "all weights", "lora": f"a LoRA adapter of rank {settings.lora_rank}", "mlp": "all MLP weights"}
    what = moved[settings.parameters]
    if settings.blocks is not None:
        published = settings.optimizer == "sgd" and settings.learning_rate == PUBLISHED_RATE
        what = f"the MLP weights of the first {settings.blocks} blocks{', as published' if published else ''}"
    return f"{ {'adamw': 'AdamW', 'sgd': 'SGD'}[settings.optimizer] } on {what}, rate {settings.learning_rate:g}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
