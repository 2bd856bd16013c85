"""A judge whose biases are known because they were put there: what a search for biases can be scored against.

    margin(first, second) = base(first, second) + position + sum over k of strength_k (feature_k(first) - feature_k(second))

feature_k: of the rules (`rules`), about 1 for one mark or a text twice as long. base: any judge's margins, such as those of
a model (`LogProbJudge`), or `generated.simulated`. Without strengths and position it is that judge.

It speaks of its largest term, more often when it is asked to explain (`explains`) than when it judges (`says`). How often is
a setting, not a finding: that explanations help a search over this judge is so by construction.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from equipoise.core.files import write_atomic
from equipoise.judging import generated
from equipoise.judging.biases import Bias
from equipoise.judging.biasscope import orders
from equipoise.judging.pairs import Pair
from equipoise.judging.roles import Case, Judge, JudgeComparison, JudgeVerdict, Proposal, Teacher
from equipoise.judging.rules import RULES, RuleTeacher, draw

Base = Callable[[Sequence[JudgeComparison]], Sequence[float]]
_PRAISE = ("is more accurate", "is more helpful", "is clearer", "is more complete", "answers the question better")


class PlantedJudge:
    """strengths: by the name of a rule. position: added to the margin of whatever is shown first. says, explains: in [0, 1].

    A margin of exactly 0, or of nan, is no verdict.
    """

    def __init__(
        self,
        strengths: Mapping[str, float],
        base: Base,
        *,
        position: float = 0.0,
        says: float = 0.3,
        explains: float = 0.9,
        name: str = "planted",
    ) -> None:
        self.name = name
        self._terms = [(rule, RULES[rule].feature, strength) for rule, strength in strengths.items()]
        self._base, self._position, self._says, self._explains = base, position, says, explains

    def terms(self, comparison: JudgeComparison) -> dict[str, float]:
        """What each planted bias adds to the margin of the first answer."""
        first, second = comparison.first, comparison.second
        return {rule: strength * (feature(first) - feature(second)) for rule, feature, strength in self._terms}

    def compare(self, comparisons: Sequence[JudgeComparison], *, phase: str) -> list[JudgeVerdict]:
        verdicts = []
        for each, base in zip(comparisons, self._base(comparisons), strict=True):
            margin = base + self._position + sum(self.terms(each).values())
            if margin > 0 or margin < 0:
                choice = 1 if margin > 0 else 2
                verdicts.append(JudgeVerdict(choice, self._speech(each, choice, "reasoning", self._says), margin))
            else:
                verdicts.append(JudgeVerdict(None, margin=margin))
        return verdicts

    def explain(self, cases: Sequence[Case]) -> list[str]:
        return [self._speech(case.comparison, case.choice, "explanation", self._explains) for case in cases]

    def _speech(self, comparison: JudgeComparison, choice: int, kind: str, openness: float) -> str:
        drawn = (comparison.question, comparison.first, comparison.second, kind)
        sentence = f"Answer {choice} {_PRAISE[int(draw(*drawn, 'praise') * len(_PRAISE))]}."
        for_it = {rule: term if choice == 1 else -term for rule, term in self.terms(comparison).items()}
        largest = max(for_it, key=lambda rule: for_it[rule], default=None)
        if largest is None or for_it[largest] <= 0 or draw(*drawn, "openness") >= openness:
            return sentence
        return f"{sentence} It also {RULES[largest].says}."


class RandomTeacher:
    """Rewrites and merges by rule, and names a bias at random whatever the case shows: a control."""

    def __init__(self, *, seed: int) -> None:
        teacher = RuleTeacher()
        self.name = f"{teacher.name}, random proposals"
        self._names, self._seed = list(RULES), seed
        self.perturb, self.same = teacher.perturb, teacher.same

    def identify(self, cases: Sequence[Case]) -> list[Proposal]:
        drawn = [draw(self._seed, case.comparison.first, case.comparison.second) for case in cases]
        return [Proposal(RULES[self._names[int(each * len(self._names))]].bias) for each in drawn]


class Counted:
    """A judge and a teacher whose questions are counted by phase: what an audit would cost in calls."""

    def __init__(self, judge: Judge, teacher: Teacher) -> None:
        self.name = f"{judge.name} and {teacher.name}"
        self.calls: Counter[str] = Counter()
        self._judge, self._teacher = judge, teacher

    def compare(self, comparisons: Sequence[JudgeComparison], *, phase: str) -> list[JudgeVerdict]:
        self.calls[phase] += len(comparisons)
        return self._judge.compare(comparisons, phase=phase)

    def explain(self, cases: Sequence[Case]) -> list[str]:
        self.calls["explain"] += len(cases)
        return self._judge.explain(cases)

    def perturb(self, wanted: Sequence[tuple[Pair, Bias]], *, phase: str) -> list[str | None]:
        self.calls[phase] += len(wanted)
        return self._teacher.perturb(wanted, phase=phase)

    def identify(self, cases: Sequence[Case]) -> list[Proposal]:
        self.calls["identify"] += len(cases)
        return self._teacher.identify(cases)

    def same(self, couples: Sequence[tuple[Bias, Bias]]) -> list[bool | None]:
        self.calls["merge"] += len(couples)
        return self._teacher.same(couples)


# --- what a study audits --------------------------------------------------------------------------------------------


def prepare(judge: str, count: int, seed: int, folder: Path) -> int:
    """Writes folder/base.json: what is known of the judge's own margins over the world of a seed; returns how many it asked.

    place: the mean margin of both orders, a preference for what stands first. scale: standard deviation over pairs of half
    the difference of both orders, which is free of such a preference. Of a model, every margin that an audit by rules can
    ask for is scored here once, so that all arms share them.
    """
    world = generated.pairs(count, seed=seed)
    asked = [each for pair in world.pairs for each in orders(pair)]
    if judge == "simulated":
        own, stored = generated.simulated(world)(asked), {}
    else:
        rewritten = [
            replace(pair, rejected=rule.rewrite(pair.rejected, f"{pair.id}/{name}"))
            for name, rule in RULES.items()
            for pair in world.pairs
        ]
        asked += [each for pair in rewritten for each in orders(pair)]
        own = _scored(judge, asked, folder)
        stored = {_digest(each): margin for each, margin in zip(asked, own, strict=True)}
    both = np.reshape(own[: 2 * count], (-1, 2))
    known = {"place": float(both.mean()), "scale": float(np.std((both[:, 0] - both[:, 1]) / 2)), "margins": stored}
    write_atomic(folder / "base.json", json.dumps(known))
    return len(asked)


def open_base(judge: str, world: generated.JudgingWorld, folder: Path) -> tuple[Base, float]:
    """The judge's own margins without its preference for a place, and their scale, as `prepare` left them."""
    known = json.loads((folder / "base.json").read_text(encoding="utf-8"))
    if judge == "simulated":
        return generated.simulated(world), known["scale"]
    margins, preference = known["margins"], known["place"]
    return lambda asked: [margins[_digest(comparison)] - preference for comparison in asked], known["scale"]


def _scored(model: str, asked: Sequence[JudgeComparison], folder: Path) -> list[float]:
    from equipoise.judging.judges import LogProbJudge
    from equipoise.language.model import load

    judge = LogProbJudge(load(model), memory=folder / "scores.jsonl")
    return [verdict.margin for verdict in judge.compare(asked, phase="base")]


def _digest(comparison: JudgeComparison) -> str:
    texts = json.dumps([comparison.question, comparison.first, comparison.second])
    return hashlib.sha256(texts.encode()).hexdigest()[:24]
