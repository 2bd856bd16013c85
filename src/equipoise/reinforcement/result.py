"""What a reinforcement comes to. Loads no torch, so that a page can be drawn again from a stored folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.core import shares
from equipoise.core.columns import duration
from equipoise.core.job import Page, table_html
from equipoise.core.serialize import LIVE
from equipoise.core.shares import Bounded
from equipoise.core.terminal import one_line
from equipoise.reinforcement.rates import Selected

FEW_MOVED = 0.01  # share of weights: a training that changed fewer was mostly rounded away


@dataclass(frozen=True)
class Answered:
    """What the model says to one problem before and after, likeliest words, with the rewards of both."""

    prompt: str
    gold: str
    before: str
    after: str
    reward_before: float
    reward_after: float


@dataclass(frozen=True)
class Reinforced:
    """A model that was trained on verified rewards, with what it solves before and after; folder is None without one.

    changes: after minus before, paired by problem. path: what was solved along the way. alike: the share of steps whose
    responses all had one reward; within: or those to each prompt, since the method compares these alone. moved: share of
    the trained weights that is another number now. lengths: mean tokens of right and of wrong responses, before and after
    (nan without any). tokens: generated for training and for measuring. critic: whether a critic lies beside the model. gap:
    nats per token between the written model and the trained one. selected: what was learnt from, where prompts were selected
    or responses came again; predictor: of whose difficulty. chance: by the names of measures, what is had without any skill.
    """

    recipe: Mapping[str, Any]
    resolved: Mapping[str, Any]
    method: str
    verifier: str
    before: Mapping[str, Bounded]
    after: Mapping[str, Bounded]
    changes: Mapping[str, Bounded]
    path: tuple[Mapping[str, float], ...]
    answers: tuple[Answered, ...]
    lengths: Mapping[str, float]
    problems: Mapping[str, int]
    steps: int
    alike: float
    moved: float
    tokens: Mapping[str, int]
    source: str
    names: Mapping[str, str]
    critic: bool
    gap: float = math.nan
    selected: Selected | None = None
    predictor: str = ""
    within: bool = False
    chance: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    model: Any = field(default=None, compare=False, metadata=LIVE)

    @property
    def given(self) -> str:
        """The prompts, or the environment, that it was trained on."""
        return self.names.get("prompts") or self.names["environment"]

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers: nothing was learnt, or something was lost."""
        found = []
        if self.alike == 1:
            found.append(all_alike(self.recipe["advantage"], self.within))
        if self.moved < FEW_MOVED:
            found.append(
                f"Only {self.moved:.2%} of the trained weights changed: use a larger learning rate, more steps, or dtype "
                "float32."
            )
        fallen = [name for name, change in self.changes.items() if change.upper < 0]
        if fallen:
            told = (f"{name} from {self.before[name].value:.3f} to {self.after[name].value:.3f}" for name in fallen)
            found.append(f"Fallen by more than chance explains: {', '.join(told)}.")
        if not found and not any(change.lower > 0 for change in self.changes.values()):
            found.append(
                "No measure rose by more than its interval: more steps, or more prompts to measure on, would tell."
            )
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        done = (
            f"{self.steps} steps of {self.method} on {self.given}, {self.tokens['training']:,} generated tokens; "
            f"{self.moved:.0%} of the trained weights moved."
        )
        return " ".join((*self.warnings(), done))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: the recipe, each measure before and after, answers, the headline."""
        recipe = ", ".join(f"{name}={value}" for name, value in self.resolved.items())
        width = max(map(len, self.after))
        lines = [f"recipe: {recipe}"]
        for name, after in self.after.items():
            change = f"{shown(self.before[name])} -> {shown(after)}"
            lines.append(f"{name:<{width}}  {change}  change {signed(self.changes[name])}")
        for answer in self.answers[:2]:
            lines.append(f"prompt: {_short(answer.prompt)} (gold: {_short(answer.gold, 40)})")
            lines.append(f"  before: {_short(answer.before)}   after: {_short(answer.after)}")
        if self.selected is not None:
            lines += self.selected.sentences()
        return (*lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.reinforcement.page import page

        return page(self, folder)

    def _repr_html_(self) -> str:
        rows = [
            (name, shown(self.before[name]), shown(after), signed(self.changes[name]))
            for name, after in self.after.items()
        ]
        return table_html(("", "before", "after", "change"), rows)


@dataclass(frozen=True)
class ReinforcePlan:
    """What a run would do: the problems as read, one as the model reads it, and estimates.

    seconds: at most, were every response as long as it may be. trained_parameters: of the policy; critic_parameters: beside.
    """

    model: str
    recipe: Mapping[str, Any]
    verifier: str
    problems: Mapping[str, int]
    first: tuple[Mapping[str, Any], ...]
    shown: str
    trained_parameters: int
    critic_parameters: int
    generated_tokens: int
    seconds: float
    notes: tuple[str, ...] = ()

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        import json

        lines = [self.model]
        lines += [f"{name}: {count:,} problems" for name, count in self.problems.items()]
        lines += ["the first:", *(f"  {json.dumps(problem, ensure_ascii=False)}" for problem in self.first)]
        lines.append(f"  as the model reads it: {self.shown!r}")
        lines.append(f"verifier: {self.verifier}")
        lines.append("recipe: " + ", ".join(f"{name}={value}" for name, value in self.recipe.items()))
        lines.append(f"trained parameters: {self.trained_parameters:,}, of a critic: {self.critic_parameters:,}")
        lines += self.notes
        most = f"{self.generated_tokens:,} generated tokens, {duration(self.seconds)}"
        return (*lines, f"estimate, at most: {most}")


def all_alike(advantage: str, within: bool) -> str:
    """What to say and to change where the rewards of all responses, or within: of those to each prompt, are one number."""
    return (
        f"All responses{' to a prompt' if within else ''} had the same reward, from which {advantage} learns nothing: use "
        "prompts nearer to what the model can do, more num_generations, a higher temperature, more max_new_tokens, or look "
        "whether the verifier understands the answers."
    )


def shown(value: Bounded) -> str:
    """A share with its interval, where there is one; of nothing "none"."""
    return shares.shown(value, nothing="none")


def signed(value: Bounded) -> str:
    """A difference with its interval; of what was not measured before "none"."""
    return "none" if math.isnan(value.value) else f"{value.value:+.3f} [{value.lower:+.3f}, {value.upper:+.3f}]"


def _short(text: str, width: int = 100) -> str:
    return one_line(text, width, empty="(nothing)")
