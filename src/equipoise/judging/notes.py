"""What a reader of an audit must be told first: whose verdicts on what, and what else could explain or hide the effects.

Loads no numpy, so that a stored result can be read and drawn again at once.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from equipoise.judging.result import JudgeAudit

NEARLY_ALL = 0.9  # of the verdicts, from which on a judge counts as collapsed
MANY = 0.05  # of the verdicts, from which on it is a warning that they could not be read, or are ties


def headline_of(audit: "JudgeAudit") -> str:
    """Which biases hold, by whose verdicts and labels on how many pairs, what could not be read, what to beware of."""
    if not audit.measured:
        return f"No bias of {audit.judge} was measured."
    outcome = f"{len(audit.holding)} of {len(audit.measured)} measured biases hold for {audit.judge}"
    if not audit.complete and not audit.holding:
        outcome = f"{len(audit.measured)} biases of {audit.judge} measured so far, none confirmed yet"
    pairs = f"{audit.position.pairs} test pairs (labels of {Path(audit.pairs).name})"
    unasked = f", {audit.unasked} times a pair could not be put to it" if audit.unasked else ""
    ties = f", {audit.ties} are ties" if audit.ties else ""
    unread = f"{audit.unread} of {audit.verdicts} verdicts could not be read{ties}{unasked}"
    beware = "; ".join(title for title, _ in warnings_of(audit))
    return (
        f"{outcome}: its verdicts on {pairs} in both orders, as they are and rewritten by {audit.teacher}; {unread}."
        + (f" Beware: {beware}." if beware else "")
    )


def warnings_of(audit: "JudgeAudit") -> Iterator[tuple[str, str]]:
    """What else could explain the effects, or hide them: titles and sentences."""
    if audit.unread > MANY * audit.verdicts:
        unread = f"No verdict could be read in {audit.unread} of {audit.verdicts} answers"
        yield "Verdicts that could not be read", f"{unread}; each of them counts as an error."
    if audit.ties > MANY * audit.verdicts:
        ties = (
            f"It found both answers alike in {audit.ties} of {audit.verdicts} verdicts; each of them counts as an error"
        )
        yield "Ties", f"{ties}. A pairwise judge has to choose."
    if audit.unasked:
        unasked = f"{audit.unasked} times, as they are or rewritten; they are left out. The first: {audit.why}."
        yield "Pairs that the judge could not be asked about", unasked
    if audit.position.turns >= NEARLY_ALL:
        turns = f"{100 * audit.position.turns:.0f} % of its verdicts turn round with the order"
        position = "first" if audit.position.first > 0.5 else "second"
        yield (
            "The judge goes by the place",
            f"{turns}: it chooses what is shown {position}, so that hardly anything else can be seen to fool it.",
        )
    if audit.as_is.error >= NEARLY_ALL:
        errs = f"It errs in {100 * audit.as_is.error:.0f} % of its verdicts on the pairs as they are"
        yield (
            "The judge is nearly always wrong",
            f"{errs}, so that hardly more can be seen: is what is labelled so the better answer?",
        )
    if audit.placebo is not None and audit.placebo.lower > 0:
        placebo = f"The same answers in other words, with no bias: {points(audit.placebo.increase)}."
        meaning = "So rewriting by this teacher fools the judge by itself; what exceeds it can be laid to a bias."
        yield "The placebo has an effect", f"{placebo} {meaning}"
    if audit.alike:
        couples = _several(f"{one} and {other}" for one, other in audit.alike)
        alike = f"More than half of the rewrites are the same text for {couples}."
        yield "Same rewrites", f"{alike} These are not different biases: the teacher did not tell them apart."
    if idle := [bias.name for bias in audit.biases if 2 * bias.rewrites.unchanged > bias.rewrites.made]:
        unchanged = f"More than half of the answers came back as they were for {_several(idle)}"
        yield "Rewrites that change nothing", f"{unchanged}: what these biases do is not known."
    if curt := [bias.name for bias in audit.biases if bias.rewrites.distinct == 1 < bias.rewrites.made]:
        yield "One text for all", f"Every answer became the same for {_several(curt)}: the effect is that text's."


def points(share: float) -> str:
    """A difference of errors as people read it."""
    return "an unknown number of points" if math.isnan(share) else f"{100 * share:+.1f} points".replace("-", "−")


def _several(names: Iterable[str]) -> str:
    first = list(names)
    return "; ".join(first[:5]) + (f" and {len(first) - 5} more" if len(first) > 5 else "")
