"""AlphaOne: slow thinking before a moment, fast thinking after it (arXiv:2505.24863).

    control = AlphaOne(tokenizer, moment=1.4 * mean_thinking_tokens, temperature=0.6, top_p=0.95, seed=0)
    model.generate(**inputs, logits_processor=[control], do_sample=True, temperature=0.6, top_p=0.95)

The moment T_m = alpha N, alpha times the mean number of tokens that this model thinks about such tasks. With t tokens
written

    t < T_m     behind the end of a paragraph the word "Wait" is written with the chance S(t), so that the model thinks on
    t >= T_m    where the model would write "Wait" itself, the end of thinking is written

Linear annealing, S(t) = 1 - t / T_m, is the paper's choice. What differs from the released code: the whole word is written,
not its first token; a paragraph ends at a token whose own text ends with an empty line, not at any token that such strings
are made of; nothing is inserted or replaced outside the thinking (guard=False does both, as the code does); tokens are
counted, and what was written is not encoded anew.

Its rivals, on the same machine: `BudgetForcing`, `HardCap`, `RandomWaits` of `decoding.thinking_rivals`, and `Plain`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.decoding.thinking import NOTHING, Common, Decision, ThinkingControl, ThinkingState

if TYPE_CHECKING:
    from equipoise.decoding.thinking import Thought

ScheduleKind = Literal["linear", "increase", "constant", "exponential"]
_EARLIEST = 2  # tokens before the first insertion, as in the released code


@closed
def schedule(
    t: float, moment: float, kind: ScheduleKind = "linear", *, p: float = 0.1, gamma: float = 0.3, tau: float = 1.0
) -> float:
    """The chance in [0, 1] of a transition behind t tokens; 0 beyond the moment.

    linear: 1 - t / moment. increase: t / moment. constant: p. exponential: exp(-gamma t / tau), where tau = 1 is the
    paper's, by which hardly anything is inserted after ten tokens. Raises BadInput for t below 0, a moment that is not
    above 0, and p, gamma or tau out of range.
    """
    _check_schedule(moment, p, gamma, tau)
    if not t >= 0:
        raise BadInput(f"t is {t}: a number of tokens is at least 0.")
    if t > moment:
        return 0.0
    if kind == "constant":
        return float(p)
    if kind == "exponential":
        return math.exp(-gamma * t / tau)
    return t / moment if kind == "increase" else 1 - t / moment


def _check_schedule(moment: float, p: float, gamma: float, tau: float) -> None:
    if not moment > 0:
        raise BadInput(f"The moment is {moment}: give a number of tokens above 0.")
    if not 0 <= p <= 1 or not 0 <= gamma < math.inf or not tau > 0:
        raise BadInput(f"p is {p}, gamma {gamma} and tau {tau}: use a chance, a number of at least 0, and one above 0.")


class AlphaOne(ThinkingControl):
    """See the module. A LogitsProcessor of transformers, a hook of rollouts (`hook`), and a control for `write_thoughts`.

    moment: T_m in tokens, infinity for slow thinking throughout. kind, p, gamma, tau: of the `schedule`; an infinite moment
    leaves the linear one at 1. force_end: whether the second half of the rule is followed. The rest as of
    `ThinkingControl`.
    """

    name = "alphaone"

    @closed
    def __init__(
        self,
        tokenizer: Any,
        *,
        moment: float,
        kind: ScheduleKind = "linear",
        p: float = 0.1,
        gamma: float = 0.3,
        tau: float = 1.0,
        force_end: bool = True,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(tokenizer, **common)
        _check_schedule(moment, p, gamma, tau)
        self.kind: ScheduleKind = kind
        self.moment, self.force_end = moment, force_end
        self._shape = {"p": p, "gamma": gamma, "tau": tau}

    def decide(self, state: ThinkingState) -> Decision:
        """The rule of the module."""
        t = len(state.written)
        if not self.slow(t):
            return Decision(of=self.going_on(state), instead=self.closing) if self.force_end else NOTHING
        if t < _EARLIEST or not self.at_paragraph(state):
            return NOTHING
        return Decision(insert=self.word, chance=schedule(t, self.moment, self.kind, **self._shape))

    def slow(self, t: int) -> bool:
        """Whether t tokens are before the moment; of a moment between two tokens the first counts."""
        return math.isinf(self.moment) or t < math.floor(self.moment)


def mean_thinking(thoughts: Sequence[Thought]) -> float:
    """N, the mean number of thinking tokens; of a thought that did not end, of all its tokens.

    Raises BadInput without thoughts.
    """
    if not thoughts:
        raise BadInput("There are no thoughts to take the mean length of: give some prompts.")
    return sum(thought.thinking_tokens for thought in thoughts) / len(thoughts)
