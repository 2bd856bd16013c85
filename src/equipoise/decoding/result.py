"""What steered thinking comes to. Loads no torch and no numpy, so that a page can be drawn again."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.core.job import Page, table_html
from equipoise.core.shares import Bounded, shown

NONE = "none"
NO_MOMENT = (NONE, "s1")


@dataclass(frozen=True)
class ThinkRun:
    """Prompts with thoughts and answers, all in thoughts.jsonl of the folder; folder is None without one.

    mean_thinking: N in tokens, with its interval where it was measured; moment: alpha N, nan for a control without one.
    expected: words that alphaone would insert a prompt, as many as random has to; nan for others. accuracy: nan without a
    verifier. unread: answers in which nothing to compare was found. thinking, answering: tokens a prompt. words: inserted a
    prompt; ends: share of prompts whose thinking was ended by the control. unclosed: share whose thinking did not end within
    the tokens; spent: share whose answer did not. within: (tokens, share of all prompts that were right with no more tokens
    than these). unopened: share of prompts that were answered without any thinking.
    """

    names: Mapping[str, str]
    source: str
    settings: Mapping[str, Any]
    prompts: int
    mean_thinking: Bounded
    measured_on: int
    moment: float
    expected: float
    accuracy: Bounded
    unread: int
    thinking: Bounded
    answering: Bounded
    words: float
    ends: float
    unclosed: float
    spent: float
    tokens: int
    within: tuple[tuple[float, float], ...]
    notes: tuple[str, ...] = ()
    unopened: float = 0.0
    folder: Path | None = None

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers: a control that never acted, answers that were never begun."""
        found = []
        if self.settings["control"] != NONE and not self.words and not self.ends:
            found.append(
                f"The control {self.settings['control']} never acted: these are the model's own answers. Is the "
                "moment right, and does this model end its paragraphs with an empty line?"
            )
        name = "max_new_tokens" if self.settings["max_thinking"] < 0 else "max_thinking"
        if self.moment >= self.settings[name]:
            found.append(
                f"The moment is {self.moment:,.1f} tokens, which no thought reaches with {name} at "
                f"{self.settings[name]:,}: nothing is ever done behind it. Use a greater {name} or a smaller alpha."
            )
        if self.unopened:
            found.append(
                f"{self.unopened:.0%} of the prompts were answered without any thinking: nothing was steered there, and "
                "neither min_thinking nor a schema held. With --preset r1 all that comes first is thinking."
            )
        if self.unclosed > 0.1:
            found.append(
                f"{self.unclosed:.0%} of the thoughts did not end within their tokens and have no answer: allow more "
                "tokens, or leave some for the answer with max_thinking."
            )
        if self.prompts and self.unread / self.prompts > 0.1:
            found.append(f"{self.unread} of {self.prompts} answers held nothing to compare: does the verifier fit?")
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        right = "" if math.isnan(self.accuracy.value) else f" {shown(self.accuracy)} of the answers are right."
        done = (
            f"{self.prompts:,} prompts under {self.settings['control']}: {shown(self.thinking, 1)} tokens of thinking, "
            f"{shown(self.answering, 1)} of answer, {self.words:.2f} words inserted a prompt.{right}"
        )
        return " ".join((*self.warnings(), done))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: warnings, the moment, what was done, the headline."""
        lines = [*self.warnings()]
        if not math.isnan(self.moment):
            lines.append(
                f"moment: {self.moment:,.1f} tokens, {self.settings['alpha']:g} times {shown(self.mean_thinking, 1)}"
                + (f" measured on {self.measured_on} prompts" if self.measured_on else "")
            )
        lines.append(
            f"the control ended {self.ends:.1%} of the thoughts; {self.unclosed:.1%} did not end, {self.spent:.1%} "
            "ran out of tokens"
        )
        return (*lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.decoding.page import think_page

        return think_page(self, folder)

    def _repr_html_(self) -> str:
        return table_html(("", "of a prompt"), rows_of(self))


@dataclass(frozen=True)
class ThinkPlan:
    """What thinking would do. moment: in words. tokens: that would be written at most. shown: the first prompt as read."""

    model: str
    control: str
    tags: str
    moment: str
    judged_by: str
    prompts: int
    shown: str
    tokens: int

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        return (
            f"model: {self.model}",
            f"control: {self.control}; {self.tags}",
            f"moment: {self.moment}",
            f"judged by: {self.judged_by}",
            f"the first as the model reads it: {self.shown!r}",
            f"{self.prompts:,} prompts, at most {self.tokens:,} tokens",
        )


def rows_of(result: ThinkRun) -> list[tuple[str, str]]:
    """What there is to say of a prompt, in the order of reading."""
    expected = "" if math.isnan(result.expected) else f", {result.expected:.2f} expected of alphaone"
    return [
        ("right", shown(result.accuracy)),
        ("tokens of thinking", shown(result.thinking, 1)),
        ("tokens of the answer", shown(result.answering, 1)),
        ("words inserted", f"{result.words:.2f}{expected}"),
        ("thinking ended by the control", f"{result.ends:.1%}"),
        ("thinking did not end", f"{result.unclosed:.1%}"),
        ("out of tokens", f"{result.spent:.1%}"),
    ]
