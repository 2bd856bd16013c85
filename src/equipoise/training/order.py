"""The order in which examples are seen, as a pure function of the step: resuming needs no state and skips nothing."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np


def without_replacement(count: int, batch_size: int, seed: int) -> Callable[[int], list[int]]:
    """step (from 0) -> `batch_size` indices below `count`; each pass sees every index once, in an order of its own."""

    @lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng(np.random.SeedSequence([seed, 0, epoch])).permutation(count)

    def draw(step: int) -> list[int]:
        places = range(step * batch_size, (step + 1) * batch_size)
        return [int(order(place // count)[place % count]) for place in places]

    return draw


def pairs(forget: int, retain: int, batch_size: int, seed: int) -> Callable[[int], list[tuple[int, int]]]:
    """step -> `batch_size` pairs: the forget set in passes, each record with a retain record drawn uniformly.

    The pairing of arXiv:2604.14808: the data set's index runs over the forget set, the retain record is drawn afresh.
    """
    forget_order = without_replacement(forget, batch_size, seed)

    def draw(step: int) -> list[tuple[int, int]]:
        partners = np.random.default_rng(np.random.SeedSequence([seed, 1, step])).integers(retain, size=batch_size)
        return list(zip(forget_order(step), partners.tolist(), strict=True))

    return draw


def spend_pairs(
    run: Any,
    drawn: Sequence[tuple[int, int]],
    forget: Sequence[Any],
    retain: Sequence[Any],
    refusals: Sequence[Any] = (),
) -> None:
    """Counts a step on these pairs in the costs of a study's run: one optimizer step, and the tokens that it read.

    refusals: of each forget record, where a method reads them too. All arms count alike, whatever they do with their pairs.
    """
    read = [example for i, j in drawn for example in (forget[i], retain[j], *refusals[i : i + 1])]
    run.spend(optimizer_steps=1, trained_tokens=sum(len(example.input_ids) for example in read))
