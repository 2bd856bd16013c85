"""The two roles of BiasScope and what passes between them and the loop: the judge under test, and the teacher."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from equipoise.core.options import choice
from equipoise.data.text import encodable
from equipoise.judging.biases import Bias
from equipoise.judging.pairs import Pair


@dataclass(frozen=True, slots=True)
class JudgeComparison:
    """One question to a judge: which of two answers, in this order. pair: for the record only; a judge must not use it."""

    pair: str
    question: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class JudgeVerdict:
    """choice: 1 or 2, None where no verdict could be read or it is a tie. margin: log-odds of the first answer, or by how
    much it is rated higher, where there are such.

    asked: False where there was nothing to judge, since the prompt did not fit or the provider did not take it: no error of
    the judge. why: it was not asked, with the lengths.
    """

    choice: Literal[1, 2] | None
    reasoning: str = ""
    margin: float = math.nan
    asked: bool = True
    why: str = ""

    def __post_init__(self) -> None:
        choice("JudgeVerdict.choice", self.choice, (1, 2, None))
        object.__setattr__(self, "reasoning", encodable(self.reasoning))

    @property
    def tied(self) -> bool:
        """Whether it was read, and prefers neither answer."""
        return self.choice is None and self.margin == 0


@dataclass(frozen=True, slots=True)
class Case:
    """A comparison that the judge got wrong, with what it said for its choice; explanation: asked for afterwards, or ""."""

    comparison: JudgeComparison
    choice: Literal[1, 2]
    reasoning: str
    explanation: str = ""

    def __post_init__(self) -> None:
        choice("Case.choice", self.choice, (1, 2))
        object.__setattr__(self, "explanation", encodable(self.explanation))


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the teacher saw in a case. bias: None where it saw none. failed: the teacher gave no valid answer."""

    bias: Bias | None
    failed: bool = False


class Judge(Protocol):
    """Whoever compares. All methods take many questions at once and answer in order."""

    name: str

    def compare(self, comparisons: Sequence[JudgeComparison], *, phase: str) -> list[JudgeVerdict]:
        """A verdict on each comparison."""
        ...

    def explain(self, cases: Sequence[Case]) -> list[str]:
        """Why each choice was made, at more length (DeeperExplain); "" where no answer came."""
        ...


class Teacher(Protocol):
    """Whoever rewrites answers and names biases."""

    name: str

    def perturb(self, wanted: Sequence[tuple[Pair, Bias]], *, phase: str) -> list[str | None]:
        """The rejected answer rewritten so that it shows the bias; None where no answer came.

        For `biases.PLACEBO` in other words only, or None where the teacher cannot do that.
        """
        ...

    def identify(self, cases: Sequence[Case]) -> list[Proposal]:
        """The bias behind each wrong choice, if any."""
        ...

    def same(self, couples: Sequence[tuple[Bias, Bias]]) -> list[bool | None]:
        """Whether both names mean the same bias (a new one, one of the library); None where no answer came."""
        ...
