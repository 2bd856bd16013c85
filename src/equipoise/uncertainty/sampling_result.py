"""What an audit of a sampler comes to. Loads no torch, so that a page can be drawn again from a stored folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from equipoise.core.job import Page, table_html
from equipoise.core.numbers import number
from equipoise.core.shares import Bounded

BATCH, SINGLE = "batch", "independent"
FEW = 300  # slots, below which the page says so
CLOSE = 0.1  # distance of probabilities up to which a temperature counts as a remedy
LEAKS = 0.2  # probability of what is no symbol, up to which it does
SAME = 0.05  # difference of two temperatures' logarithms up to which one is the other
MEANING = {
    "a_token": "distance of each slot's probabilities from the target (TV, 0 is best)",
    "a_mean": "distance of their mean from the target",
    "a_result": "distance of the frequencies of what was drawn, by sequence",
    "step": "distance of probabilities from one slot to the next",
    "entropy_ratio": "entropy over the target's (1 is right)",
    "leak": "probability of what is no symbol",
    "bias": "squared distance of the mean probabilities from the target",
    "dispersion": "variance of the probabilities over slots, 0 where they stay",
    "e_score": "1: each slot is the target; 0: one symbol at a time, in its shares",
}


@dataclass(frozen=True, slots=True)
class SamplingCondition:
    """One way of asking: a protocol, a wording (from 1; 0: all together) and names of the symbols.

    measures: as of `sampling_fidelity.Fidelity`, means over sequences with Student's 95 % interval, which one sequence does
    not have; a_mean, a_result, bias and dispersion of single values are those of all of them together. Where only a part of
    the probabilities is known the value is nan, the bounds hold what it can be. slots: of `asked` values. parsed: share of
    what was written at slots that is a symbol. unread: values without a slot. independent, own: a_result by chance, of draws
    from the target and from what the slots draw from. temperature: which fits best; warm: a_token, bias and the most that
    can leak there (nan where nobody knows), empty where an end of the searched range fits best. drawing, drawing_kind:
    measures and kind at the temperature of the draws, nan where a server tells no more. slope: of probabilities on what was
    drawn too often. autocorrelation, runs: of the draws. place: variance that the place in the list decides. first: distance
    of the mean probabilities at first slots. p: of independent draws from the target having these counts, nan for lists.
    means, counts: of each symbol.
    """

    protocol: str
    wording: int
    symbols: tuple[str, ...]
    sequences: int
    asked: int
    slots: int
    parsed: float
    unread: int
    measures: Mapping[str, Bounded]
    kind: str
    independent: Bounded
    own: Bounded
    temperature: float
    warm: Mapping[str, float]
    drawing: Mapping[str, float]
    drawing_kind: str
    slope: Bounded
    autocorrelation: float
    runs: float
    runs_p: float
    place: float
    first: float
    p: float
    means: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def chance(self) -> str:
        """How the result stands to chance: as good as independent draws, worse, or too good for such."""
        result = self.measures["a_result"].value
        if math.isnan(result) or math.isnan(self.independent.value):
            return "unknown"
        # Both are sums of whole counts' shares: alike but for the last bits, they are the same.
        if result > self.independent.upper + 1e-9:
            return "worse than independent draws"
        return (
            "too good for independent draws"
            if result < self.independent.lower - 1e-9
            else "as good as independent draws"
        )


@dataclass(frozen=True)
class SamplingAudit:
    """Whether a model can be used as a sampler; folder is None without one.

    whole: for each protocol all wordings and names together; conditions: each by itself. temperature: of the draws.
    """

    source: str
    name: str
    target: tuple[float, ...]
    symbols: tuple[str, ...]
    temperature: float
    slots: str
    whole: Mapping[str, SamplingCondition]
    conditions: tuple[SamplingCondition, ...]
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def main(self) -> SamplingCondition:
        """The lists where there are some, else the single values."""
        return self.whole.get(BATCH) or self.whole[SINGLE]

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers: values missing, wordings that differ, few slots."""
        found = []
        for protocol, each in self.whole.items():
            if each.slots < 0.9 * each.asked:
                found.append(
                    f"Of {each.asked:,} values asked for ({protocol}) {each.slots:,} were written: what is said of the "
                    "slots is of those alone. With slots set, separators are put in for the model."
                )
            if each.slots and each.parsed < 0.9:
                found.append(f"Only {each.parsed:.0%} of what stands at slots ({protocol}) is a symbol of the target.")
            if each.unread:
                found.append(
                    f"{each.unread:,} values ({protocol}) share a token with their separator and are left out."
                )
        kinds = dict.fromkeys(each.kind for each in self.conditions if each.protocol == BATCH)
        if len(kinds) > 1:
            found.append(f"Wordings or names differ in kind ({', '.join(kinds)}): one of them alone would mislead.")
        if self.main.slots < FEW:
            read = "read the intervals, or ask" if self.main.sequences > 1 else "one sequence has no intervals, ask"
            found.append(f"There are {self.main.slots:,} slots: {read} for more sequences.")
        return tuple(found)

    def advice(self) -> str:
        """What to do with it, in a sentence."""
        main, distance = self.main, self.measure("a_token")
        kind, near, far = main.kind, distance.value, distance.upper
        if self.temperature != 1:
            kind, near, far = main.drawing_kind, main.drawing["a_token"], main.drawing["a_token"]
        if not main.slots:
            return "No slots were found: nothing is known of its probabilities. Try slots set, or another wording."
        if main.kind == "undefined" and math.isnan(distance.value):
            return "What the server tells leaves its kind open: let it tell more of the likeliest tokens."
        if math.isnan(near) and self.temperature != 1:
            return "What a server draws from at another temperature than 1 is not known: audit it at 1."
        # A fresh context has one slot, and no step from it to another that a kind could be told by.
        alone = main.protocol == SINGLE and kind == "undefined" and near <= CLOSE
        if (kind == "E" or alone) and main.chance != "worse than independent draws":
            return f"{self._there()}t can be used as a sampler of this target."
        if self.temperature != 1 and main.kind == "E":
            return (
                f"At temperature 1 its probabilities are within {number(distance.value)} of the target: audit it there."
            )
        if main.warm.get("a_token", math.nan) <= CLOSE < far and self._leaks_little() and not self._is_here():
            return (
                f"At temperature {number(main.temperature)} its probabilities would be within "
                f"{number(main.warm['a_token'])} of the target: audit it there."
            )
        if kind == "D":
            return (
                "Its lists keep the quota, but a single draw is nearly decided: use whole lists, and draw outside the model "
                "where independent draws are needed."
            )
        return "Draw outside the model: let it write the distribution, or give it values that were drawn."

    def _there(self) -> str:
        return "I" if self.temperature == 1 else f"At temperature {number(self.temperature)} i"

    def _is_here(self) -> bool:
        """Whether the draws have the temperature that fits best."""
        return self.temperature > 0 and abs(math.log(self.main.temperature / self.temperature)) <= SAME

    def _leaks_little(self) -> bool:
        """Whether little is known to leak at the temperature that fits best: nothing where slots are set."""
        if self.slots == "set":
            return self.main.measures["leak"].upper <= LEAKS
        return self.main.warm["leak"] <= LEAKS

    def measure(self, name: str) -> Bounded:
        """A measure of `main`."""
        return self.main.measures[name]

    def headline(self) -> str:
        """Warnings, the kind with its numbers, whether it is chance, what to do."""
        main = self.main
        told = (
            f"Kind: {main.kind}. Probabilities are {shown(self.measure('a_token'))} from the target at a slot, "
            f"{shown(self.measure('a_mean'))} in their mean; they move by {shown(self.measure('step'))} from slot to slot; "
            f"{shown(self.measure('leak'))} leaks. Frequencies are {shown(self.measure('a_result'))} off, where independent "
            f"draws are {shown(main.independent)}: {main.chance}."
        )
        if self.temperature != 1 and main.drawing["a_token"] >= 0:
            told += (
                f" At temperature {number(self.temperature)}, that of the draws, what they are drawn from is "
                f"{number(main.drawing['a_token'])} from the target at a slot: {main.drawing_kind}."
            )
        return " ".join((*self.warnings(), told, self.advice()))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: warnings, a line a condition, the headline."""
        lines = [*self.warnings()]
        for each in self.conditions:
            values = each.measures
            lines.append(
                f"{each.protocol}, wording {each.wording}, {' '.join(each.symbols)}: {each.kind}; a_token "
                f"{shown(values['a_token'])}, step {shown(values['step'])}, e_score {shown(values['e_score'])}, leak "
                f"{shown(values['leak'])}; {each.chance}"
            )
        return (*lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.uncertainty.sampling_page import sampling_page

        return sampling_page(self, folder)

    def _repr_html_(self) -> str:
        rows = [(name, shown(value)) for name, value in self.main.measures.items()]
        return table_html(("measure", self.main.kind), rows, self.headline())


@dataclass(frozen=True)
class SamplingPlan:
    """What an audit would do. tokens: that would be written at most; calls: of a server; paths: the symbols' tokens."""

    source: str
    target: Mapping[str, float]
    requests: tuple[str, ...]
    conditions: int
    sequences: int
    tokens: int
    calls: int
    paths: Mapping[str, str]

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        lines = [f"model: {self.source}"]
        lines.append("target: " + ", ".join(f"{symbol} {share:g}" for symbol, share in self.target.items()))
        lines += [f"{symbol!r} is written {path}" for symbol, path in self.paths.items()]
        lines += ["the first requests:", *(f"  {request}" for request in self.requests[:3])]
        return (
            *lines,
            f"{self.conditions:,} ways of asking, {self.sequences:,} sequences; at most {self.tokens:,} tokens, "
            f"{self.calls:,} calls of a server",
        )


def shown(value: Bounded) -> str:
    """A number with its interval, or the interval alone where no more is known."""
    if math.isnan(value.lower):
        return number(value.value)
    if math.isnan(value.value):
        return f"between {value.lower:.3f} and {value.upper:.3f}"
    return f"{value.value:.3f} [{value.lower:.3f}, {value.upper:.3f}]"
