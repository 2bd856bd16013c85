"""The world of the study `tokur`: a small decoder in the middle of learning arithmetic, and every score of its answers.

Per seed a model is taught chains of sums until half of what it writes is sound, answers new chains of two to six operators
greedily, and reads its answers again with noise. A longer chain has a longer answer and is more often wrong, as long answers
are in the paper's benchmarks; within one level nearly all answers have the same length.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.core.files import write_atomic
from equipoise.core.scores import auprc, auroc, risk_coverage
from equipoise.data.arithmetic import problems
from equipoise.language import warm_start
from equipoise.language.generate import generate
from equipoise.uncertainty.measured_answers import auroc_within
from equipoise.uncertainty.perturbed import perturb
from equipoise.uncertainty.tokur import choose_sigma, confidences, encoded, score_tokens

Array = NDArray[np.float64]
STORED = "scores.json"
RANDOM = "random"
CHOOSERS = 20
_LEVELS = warm_start.WORLDS["levels"]


@dataclass(frozen=True)
class AnsweredWorld:
    """N answers. right, lengths: [N]; scores: name -> [N], higher is surer. tokens: that one reading of them takes.

    accuracy: the share of right answers among all that were asked for, empty ones being wrong.
    """

    right: Array
    lengths: Array
    scores: dict[str, Array]
    accuracy: float
    sigma: float
    share: float
    members: int
    tokens: int

    @classmethod
    def open(cls, folder: Path) -> AnsweredWorld:
        """What `prepare` stored."""
        stored = json.loads((folder / STORED).read_text(encoding="utf-8"))
        arrays = {name: np.array(values, float) for name, values in stored.pop("scores").items()}
        return cls(np.array(stored.pop("right"), float), np.array(stored.pop("lengths"), float), arrays, **stored)


def prepare(preparation: Any, *, answers: int, members: int, rank: int) -> None:
    """Teach the seed's model, let it answer, choose sigma on answers to other problems, and score."""
    language_model = warm_start.teach("levels", preparation).language_model
    seed = preparation.seed

    def answered(count: int, part: Any) -> tuple[list[Any], list[str]]:
        asked = problems(count, seed=seed, kind=_LEVELS.kind, levels=_LEVELS.levels, part=part)
        prompts = [problem.prompt for problem in asked]
        return asked, generate(language_model, prompts, max_new_tokens=_LEVELS.max_new_tokens, batch_size=256)

    unsure = perturb(language_model, rank=rank)
    others = [
        encoded(language_model, problem.prompt, text)
        for problem, text in zip(*answered(2 * CHOOSERS, "train"), strict=True)
        if text.strip()
    ]
    sigma = choose_sigma(unsure, others[:CHOOSERS], members=max(members, 2), seed=seed, batch_size=CHOOSERS)
    asked, texts = answered(answers, "test")
    # Luck with the last of some wrong steps does not count.
    right = [_LEVELS.solved(problem, text) for problem, text in zip(asked, texts, strict=True)]
    there = [place for place, text in enumerate(texts) if text.strip()]
    rows = [encoded(language_model, asked[place].prompt, texts[place]) for place in there]
    found = score_tokens(unsure.at(sigma.sigma), rows, members=members, seed=seed, batch_size=64)
    stored = {
        "right": [float(right[place]) for place in there],
        "lengths": found.lengths.tolist(),
        "scores": {name: values.double().tolist() for name, values in confidences(found).items()},
        "accuracy": sum(right) / len(right),
        "sigma": sigma.sigma,
        "share": float(found.eu.sum() / found.tu.sum()),
        "members": members,
        "tokens": sum(len(row.prompt) + len(row.answer) for row in rows),
    }
    write_atomic(preparation.folder / STORED, json.dumps(stored))
    preparation.spend(phase="build", generated_tokens=sum(map(len, texts)))


def measure(run: Any, world: AnsweredWorld) -> None:
    """One arm: how well its score tells right from wrong, over all answers and among those of like length."""
    name = run.settings["score"]
    if name == RANDOM:
        score = np.random.default_rng(np.random.SeedSequence([run.seed, 1])).random(len(world.right))
        run.measure("accuracy", world.accuracy)
        run.measure("epistemic_share", world.share)
    else:
        score = world.scores[name]
    readings = world.members if name[:3] in ("tu_", "au_", "eu_") else 0 if name in (RANDOM, "length") else 1
    run.spend(phase="query", answers=len(world.right), prompt_tokens=readings * world.tokens)
    run.measure("auroc", float(auroc(score, world.right)))
    run.measure("auroc_within", auroc_within(score, world.right, world.lengths))
    run.measure("auprc", float(auprc(score, world.right)))
    _, risk = risk_coverage(score, 1 - world.right)
    run.measure("surest_half", 1 - float(risk[math.ceil(len(risk) / 2) - 1]))
