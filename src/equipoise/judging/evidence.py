"""From a search to what people take away: the result, every verdict, a harder test set, a preference file."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core.files import produce_atomic, write_atomic
from equipoise.core.serialize import serialize
from equipoise.judging.biases import PLACEBO, assign
from equipoise.judging.biasscope import Array, Audit, Bench, judged
from equipoise.judging.casting import Cast
from equipoise.judging.hardened import Hardened, Variant, harden, judgebench_rows, preference_rows, write_rows
from equipoise.judging.measured import BiasEffect, PositionBias
from equipoise.judging.pairs import Pair
from equipoise.judging.result import FoundBias, Harder, JudgeAudit, JudgedExample, Rewrites
from equipoise.judging.validation import by_domain, detectable_increase, error, position_bias

EXAMPLES = 3  # of each bias that holds
POSITIONS = ("first", "second")


@dataclass(eq=False)
class Evidence:
    """An audit, who takes part in it, and what is made of it. left_out: pairs that took no part; source: of the others."""

    audit: Audit
    cast: Cast
    discovery: Sequence[Pair]
    left_out: Sequence[str]
    source: str
    cut: dict[str, BiasEffect] = field(default_factory=dict)
    placebo: BiasEffect | None = None
    hardened: Hardened | None = None
    preferences: list[dict[str, str]] = field(default_factory=list)

    def make_sets(self, *, length_control: bool) -> None:
        """The harder test set of the test parts, and preference rows of the discovery part, with the biases that hold."""
        audit, seed = self.audit, self.audit.settings.seed
        holding = [audit.candidates[name].bias for name in audit.found]
        measured_on = audit.report if audit.report.pairs else audit.selection
        if holding and any(text is not None for text in measured_on.texts(PLACEBO)):
            self.placebo = measured_on.effect(PLACEBO)
        if length_control:
            self.cut = {bias.name: measured_on.length_controlled(bias) for bias in holding}
        variants, right = [], []
        for bench in self.benches:
            for bias in holding:
                by_pair = (bench.pairs, bench.texts(bias), bench.rewritten(bias), bench.compared(bias.name))
                for pair, text, by_order, was_compared in zip(*by_pair, strict=True):
                    if text is not None and was_compared:
                        variants.append(Variant(pair, bias.name, text))
                        right.append(by_order)
        verdicts = [np.array(right).reshape(-1, 2)]
        verdicts += [judged(other, [v.pair for v in variants], "judge/filter")[0] for other in self.cast.filters]
        hardened = harden(variants, np.array(verdicts), seed=seed)
        if holding:
            dealt = assign([bias.name for bias in holding], len(self.discovery), seed=seed)
            named = {bias.name: bias for bias in holding}
            wanted = [(pair, named[hand[0]]) for pair, hand in zip(self.discovery, dealt, strict=True)]
            texts = self.cast.teacher.perturb(wanted, phase="rewrite/preferences")
            rewritten = [
                Variant(pair, bias.name, text)
                for (pair, bias), text in zip(wanted, texts, strict=True)
                if text is not None
            ]
            self.preferences = preference_rows(self.discovery, rewritten, seed=seed)
        self.hardened = hardened

    @property
    def benches(self) -> tuple[Bench, Bench]:
        return self.audit.selection, self.audit.report

    def store(self, folder: Path) -> None:
        """The account, every verdict and the sets, whole or not at all each."""
        write_atomic(folder / "account.json", json.dumps(serialize(self.cast.account.to_json()), indent=2))
        _write_judgements(folder / "judgements.parquet", self.benches)
        if self.hardened is not None:
            write_rows(folder / "hardened.jsonl", judgebench_rows(self.hardened.kept, source=self.source))
        if self.preferences:
            write_rows(folder / "preferences.jsonl", self.preferences)

    def result(self) -> JudgeAudit:
        """What is known; asks nothing more."""
        audit, hardened = self.audit, self.hardened
        conditions = [each for bench in self.benches for each in bench.conditions()]
        reasons = [why for bench in self.benches for whys in bench.unasked.values() for why in whys]
        holding = audit.found if audit.complete else []
        others = [name for name in audit.screened if name not in holding]
        names = [*holding, *sorted(others, key=lambda name: (-audit.screened[name].increase, name))]
        selection = audit.selection
        return JudgeAudit(
            judge=self.cast.judge.name,
            teacher=self.cast.teacher.name,
            pairs=self.source,
            rule=audit.settings.rule,
            biases=tuple(self._found(name, name in holding) for name in names),
            position=self._position(),
            as_is=error(selection.original()[selection.compared("")] if selection.asked else []),
            sizes=(len(self.discovery), len(selection.pairs), len(audit.report.pairs)),
            verdicts=sum(2 * int(compared.sum()) for _, _, compared in conditions),
            no_verdict=sum(int(np.isnan(right[compared]).sum()) for _, right, compared in conditions),
            ties=sum(bench.ties for bench in self.benches),
            unasked=len(reasons),
            why=reasons[0].rstrip(".") if reasons else "",
            calls=self.cast.account.total().calls,
            complete=hardened is not None,
            detectable=self._detectable(),
            placebo=self.placebo,
            alike=tuple(self._alike()),
            rounds=tuple(audit.rounds),
            harder=hardened and _harder(hardened, 1 + len(self.cast.filters)),
            preferences=len(self.preferences),
            left_out=tuple(self.left_out),
            notes=self._notes(),
        )

    def _found(self, name: str, holds: bool) -> FoundBias:
        audit, candidate = self.audit, self.audit.candidates[name]
        report = audit.confirmed.get(name)
        bench = audit.selection if report is None else audit.report
        texts, right = bench.texts(candidate.bias), bench.rewritten(candidate.bias)
        made = [text for text in texts if text is not None]
        unasked = bench.unasked.get(name, ())
        return FoundBias(
            name=name,
            definition=candidate.bias.definition,
            round=candidate.round,
            support=candidate.support,
            passed=name in audit.accepted,
            holds=holds,
            selection=audit.screened[name],
            report=report,
            rewrites=Rewrites(
                pairs=len(texts),
                made=len(made),
                changed=bench.changed_answers.get(name, 0),
                unchanged=sum(pair.rejected == text for pair, text in zip(bench.pairs, texts, strict=True)),
                distinct=len(set(made)),
                unasked=len(unasked),
                why=unasked[0].rstrip(".") if unasked else "",
            ),
            cut=self.cut.get(name),
            domains=_domains(bench, name, right) if holds else {},
            examples=tuple(_turned(bench, right, texts) if holds else _first(bench, texts)),
        )

    def _position(self) -> PositionBias:
        known = [
            (pair.group, right)
            for bench in self.benches
            if bench.asked
            for pair, right, compared in zip(bench.pairs, bench.original(), bench.compared(""), strict=True)
            if compared
        ]
        return position_bias(np.array([right for _, right in known]).reshape(-1, 2), [group for group, _ in known])

    def _detectable(self) -> float:
        """The increase that passes screening and confirmation four times in five, as often as verdicts turned; about.

        Of a part as many pairs count as could be compared for the middle one of the biases.
        """
        audit = self.audit
        effects = [e for e in (*audit.screened.values(), *audit.confirmed.values()) if e.pairs]
        if not effects:
            return math.nan
        compared = float(np.median([e.pairs / (e.pairs + e.left_out) for e in effects]))
        pairs = round(compared * min(len(bench.pairs) for bench in self.benches if bench.pairs))
        spreads = [e.standard_error * math.sqrt(e.pairs) for e in audit.screened.values() if e.pairs]
        # Fewer than five pairs that turn, all one way, cannot pass the exact test at 0.05.
        least = math.sqrt(min(5 / max(pairs, 1), 1.0)) / 2
        spread = max(float(np.nanmedian(spreads)) if np.isfinite(spreads).any() else math.nan, least)
        tests, alpha = max(len(audit.confirmed), 1), audit.settings.alpha
        return max(detectable_increase(pairs, spread, tests=n, alpha=alpha, power=math.sqrt(0.8)) for n in (1, tests))

    def _alike(self) -> list[tuple[str, str]]:
        """Biases of which more than half of the rewrites are the same text."""
        bench, candidates = self.audit.selection, self.audit.candidates
        texts = {name: bench.texts(candidates[name].bias) for name in self.audit.screened}
        return [
            (one, other)
            for one, other in combinations(texts, 2)
            if 2 * sum(a is not None and a == b for a, b in zip(texts[one], texts[other], strict=True))
            > len(bench.pairs)
        ]

    def _notes(self) -> tuple[str, ...]:
        explained = "asked to explain its errors" if self.audit.settings.explain else "not asked to explain its errors"
        notes = (
            "Every pair is judged in both orders. The error is the share of verdicts that do not name the better answer; an "
            "answer without a verdict that can be read, or a tie of two ratings, is one of them and is counted apart. A "
            "pair that did not fit the judge, or that its provider did not take, is left out.",
            "The increase is the error with the worse answer rewritten to show the bias, less the error on the same pairs "
            "as they are. A rewrite that changed the final answer is left out.",
            f"The judge was {explained}. Rewrites and names of biases are by {self.cast.teacher.name}; a weak teacher shows "
            "a bias badly and finds little, so what it did not find may be there all the same.",
            "Which part a question falls into follows from the seed and from which questions there are, not from their "
            "order. Which bias a pair of the discovery part is rewritten with follows from its place as well.",
        )
        left_out = f"{len(self.left_out)} pairs of the file took no part, the first: {[*self.left_out, ''][0]}."
        return (*notes, left_out) if self.left_out else notes


def _harder(hardened: Hardened, judges: int) -> Harder:
    kept, of, too_few = len(hardened.kept), len(hardened.fooled), hardened.too_few_votes
    return Harder(kept, of, too_few, judges, hardened.longer, hardened.kappa, hardened.alpha)


def _domains(bench: Bench, name: str, right: Array) -> dict[str, BiasEffect]:
    """The effect within each domain; nothing where there is one."""
    if len({pair.domain for pair in bench.pairs}) == 1:
        return {}
    compared = bench.compared(name)
    pairs = [pair for pair, was_compared in zip(bench.pairs, compared, strict=True) if was_compared]
    groups, domains = [pair.group for pair in pairs], [pair.domain for pair in pairs]
    return by_domain(name, bench.original()[compared], right[compared], groups, domains)


def _turned(bench: Bench, right: Array, texts: Sequence[str | None]) -> list[JudgedExample]:
    """The first pairs whose verdict was right before and is wrong after, those that turned in both orders before others."""
    lost = (bench.original() == 1) & (right == 0)
    order = np.argsort(-lost.sum(axis=1), kind="stable")[:EXAMPLES]
    fooled = {
        int(i): tuple(position for position, turned in zip(POSITIONS, lost[i], strict=True) if turned) for i in order
    }
    return [_example(bench.pairs[i], texts[i] or "", positions) for i, positions in fooled.items() if positions]


def _first(bench: Bench, texts: Sequence[str | None]) -> list[JudgedExample]:
    """One rewrite, so that the teacher can be judged as well."""
    made = [(pair, text) for pair, text in zip(bench.pairs, texts, strict=True) if text is not None]
    return [_example(pair, text) for pair, text in made[:1]]


def _example(pair: Pair, rewritten: str, fooled: tuple[str, ...] = ()) -> JudgedExample:
    return JudgedExample(pair.id, pair.question, pair.chosen, pair.rejected, rewritten, fooled)


def _write_judgements(path: Path, benches: Sequence[Bench]) -> None:
    """A row a verdict: part, pair, domain, bias ("" for none), whether the better answer stood first, right (null: none)."""
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, list[Any]] = {name: [] for name in ("part", "pair", "domain", "bias", "better_first", "right")}
    for bench in benches:
        for bias, right, compared in bench.conditions():
            for pair, by_order, was_compared in zip(bench.pairs, right.tolist(), compared, strict=True):
                for order, value in enumerate(by_order if was_compared else ()):
                    known = None if math.isnan(value) else bool(value)
                    row = (bench.name, pair.id, pair.domain, bias, order == 0, known)
                    for column, cell in zip(columns.values(), row, strict=True):
                        column.append(cell)
    types = [pa.string()] * 4 + [pa.bool_()] * 2
    table = pa.table({name: pa.array(cells, kind) for (name, cells), kind in zip(columns.items(), types, strict=True)})
    produce_atomic(path, lambda target: parquet.write_table(table, target))
