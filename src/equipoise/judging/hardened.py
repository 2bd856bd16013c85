"""A harder test set from any judge set, made as JudgeBench-Pro was, and preference rows to repair a judge with.

BiasScope (arXiv:2602.09383): the worse answer of every pair is rewritten to show each of several biases; variants that
fool strong judges are kept. Which judges and which vote the paper does not settle; here a variant is kept when `votes` of
the filter judges (two thirds of them by default) choose the worse answer in BOTH orders, and its final answer is still the
original's: a rewrite that repairs the answer makes the label wrong, not the judge.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.core.agreement import fleiss_kappa, krippendorff_alpha
from equipoise.core.errors import BadInput
from equipoise.core.files import write_atomic
from equipoise.data.text import encodable
from equipoise.judging.answers import same_final_answer
from equipoise.judging.biases import key
from equipoise.judging.pairs import Pair


@dataclass(frozen=True, slots=True)
class Variant:
    """A pair whose worse answer was rewritten. rejected: the rewritten text; bias: what it shows."""

    original: Pair
    bias: str
    rejected: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "rejected", encodable(self.rejected))

    @property
    def pair(self) -> Pair:
        """The pair to judge, in the original's group."""
        first = self.original
        identifier = f"{first.id}:{key(self.bias).replace(' ', '-')}"
        return Pair(identifier, first.question, first.chosen, self.rejected, first.domain, first.group, bias=self.bias)

    @property
    def longer(self) -> float:
        """Change of the worse answer's length in characters, in percent."""
        return 100 * (len(self.rejected) / len(self.original.rejected) - 1)


@dataclass(frozen=True, slots=True)
class Hardened:
    """What was kept of the variants, and why the others were not; every variant is counted once.

    fooled: [V] filter judges that chose the worse answer in both orders. by_bias, by_domain: (kept, of). longer: mean
    change in length of the kept worse answers, percent. kappa, alpha: agreement of the filter judges over all verdicts.
    """

    kept: tuple[Variant, ...]
    fooled: NDArray[np.int64]
    answer_changed: int
    too_few_votes: int
    over_limit: int
    by_bias: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    by_domain: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    longer: float = math.nan
    kappa: float = math.nan
    alpha: float = math.nan


def harden(
    variants: Sequence[Variant],
    right: ArrayLike,
    *,
    votes: int | None = None,
    most: int | None = None,
    seed: int = 42,
) -> Hardened:
    """Filter variants by verdicts of the filter judges. right: [judges, V, 2], see `validation`; no verdict is no vote.

    votes: how many judges a variant must fool, by default two thirds of them, rounded up. most: at most so many variants of
    one original, those that fool most judges first, drawn among equals. Raises BadInput for no judges or impossible votes.
    """
    verdicts = np.asarray(right, float)
    if verdicts.ndim != 3 or verdicts.shape[1:] != (len(variants), 2):
        raise ValueError(f"verdicts of shape [judges, {len(variants)}, 2] expected, found {verdicts.shape}.")
    judges = len(verdicts)
    votes = math.ceil(2 * judges / 3) if votes is None else votes
    if not 1 <= votes <= judges:
        raise BadInput(f"{votes} votes of {judges} filter judges were asked for: expected 1 to that many.")
    fooled = (verdicts == 0).all(axis=2).sum(axis=0)
    changed = np.array([same_final_answer(v.original.rejected, v.rejected) is False for v in variants], dtype=bool)
    passed = ~changed & (fooled >= votes)
    chosen = _at_most(variants, passed, fooled, most, seed)
    kept = tuple(variant for variant, keep in zip(variants, chosen, strict=True) if keep)
    return Hardened(
        kept=kept,
        fooled=fooled,
        answer_changed=int(changed.sum()),
        too_few_votes=int((~changed & ~passed).sum()),
        over_limit=int((passed & ~chosen).sum()),
        by_bias=_kept_of([variant.bias for variant in variants], chosen),
        by_domain=_kept_of([variant.original.domain for variant in variants], chosen),
        longer=float(np.mean([variant.longer for variant in kept])) if kept else math.nan,
        kappa=fleiss_kappa(verdicts.reshape(judges, -1).T),
        alpha=krippendorff_alpha(verdicts.reshape(judges, -1).T),
    )


def _at_most(
    variants: Sequence[Variant], passed: NDArray[np.bool_], fooled: NDArray[np.int64], most: int | None, seed: int
) -> NDArray[np.bool_]:
    chosen = passed.copy()
    if most is None:
        return chosen
    taken: Counter[str] = Counter()
    drawn = np.random.default_rng(seed).permutation(len(variants))
    for index in drawn[np.argsort(-fooled[drawn], kind="stable")]:
        if passed[index]:
            taken[variants[index].original.id] += 1
            chosen[index] = taken[variants[index].original.id] <= most
    return chosen


def _kept_of(names: Sequence[str], chosen: NDArray[np.bool_]) -> dict[str, tuple[int, int]]:
    kept = Counter(name for name, keep in zip(names, chosen, strict=True) if keep)
    return {name: (kept[name], of) for name, of in sorted(Counter(names).items())}


# --- files ----------------------------------------------------------------------------------------------------------


def judgebench_rows(variants: Sequence[Variant], *, source: str = "", seed: int = 42) -> list[dict[str, str]]:
    """Rows with JudgeBench's fields and `bias`; the better answer is A in half of them (to within one), seeded.

    original_id is the original pair's id, `group` its cluster. source: where the originals come from. response_model, which
    pairs do not carry, is "".
    """
    better_first = np.random.default_rng(seed).permutation(np.arange(len(variants)) % 2 == 0)
    rows = []
    for variant, first in zip(variants, better_first, strict=True):
        pair = variant.pair
        answers = (pair.chosen, pair.rejected) if first else (pair.rejected, pair.chosen)
        rows.append(
            {
                "pair_id": pair.id,
                "original_id": variant.original.id,
                "source": source,
                "question": pair.question,
                "response_model": "",
                "response_A": answers[0],
                "response_B": answers[1],
                "label": "A>B" if first else "B>A",
                "domain": pair.domain,
                "bias": pair.bias,
                "group": pair.group,
            }
        )
    return rows


def preference_rows(
    pairs: Sequence[Pair], variants: Sequence[Variant], *, share: float = 0.5, seed: int = 42
) -> list[dict[str, str]]:
    """TRL's preference rows {prompt, chosen, rejected} of all pairs, in order, a share of them with a rewritten `rejected`.

    share: of all pairs, rounded; drawn among those with a variant whose final answer is the original's (all of them where
    they are too few), each taking the bias that was taken least. Raises BadInput for a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise BadInput(f"the share of rewritten answers is {share}: expected 0 to 1.")
    usable: dict[str, list[Variant]] = {}
    for variant in variants:
        if same_final_answer(variant.original.rejected, variant.rejected) is not False:
            usable.setdefault(variant.original.id, []).append(variant)
    candidates = [pair.id for pair in pairs if pair.id in usable]
    rejected: dict[str, str] = {}
    taken: Counter[str] = Counter()
    for index in np.random.default_rng(seed).permutation(len(candidates))[: round(share * len(pairs))]:
        variant = min(usable[candidates[index]], key=lambda each: taken[each.bias])
        taken[variant.bias] += 1
        rejected[candidates[index]] = variant.rejected
    return [
        {"prompt": pair.question, "chosen": pair.chosen, "rejected": rejected.get(pair.id, pair.rejected)}
        for pair in pairs
    ]


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    write_atomic(Path(path), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
