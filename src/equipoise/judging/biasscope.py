"""BiasScope (arXiv:2602.09383): search for what fools a judge, measure by how much, and keep what holds.

    repeat up to `rounds` times:
        discover    every pair of a discovery part gets a bias of the library; the teacher rewrites the worse answer so that
                    it shows the bias; the judge compares; where it is wrong it explains itself; the teacher names what it
                    sees
        merge       a proposal that is one of the library in other words is dropped
        validate    the worse answer of EVERY pair of a test part is rewritten with the bias; a bias stays in the library if
                    the judge errs more often than before
    until nothing is added.

Differs from the released code by default (rule="paired"):
- Every comparison is judged in both orders; an error is the mean over both. The released code shuffles the biased run
  only, so a preference for a place leaks into the difference, and discovery uses the order of the file.
- An order without a verdict is an error that is counted apart; the released rates are over what could be parsed.
- The test part is divided. On the selection part a bias is screened by an exact paired test at `alpha`; what passes,
  basic biases included, is measured anew on the report part and confirmed by Holm's correction. A gain reported on the
  pairs that chose the bias is too large, and "any increase" admits about half of all biases without effect.
- A rewrite that changed the final answer is left out: there the worse answer may have become right.
rule="published" is the released acceptance: one order, shuffled for the biased run only, any increase of the parsed error.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.options import check_fields
from equipoise.core.progress import progress
from equipoise.data.text import encodable
from equipoise.judging.answers import same_final_answer
from equipoise.judging.biases import PLACEBO, Bias, assign, check_names, key, seed_biases
from equipoise.judging.measured import BiasEffect, Round
from equipoise.judging.pairs import Pair, shortened, word_count
from equipoise.judging.roles import Case, Judge, JudgeComparison, JudgeVerdict, Teacher
from equipoise.judging.validation import adjusted, effect, published_accepts, published_orders
from equipoise.judging.verdicts import Reading

FEWEST = 0.1  # of the pairs; with fewer in both orders before a judge, nothing was found out about it
Rule = Literal["paired", "published"]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BiasScopeSettings:
    """rounds: at most; 0 measures the library alone. each: biases dealt to a pair. explain: ask the judge for more (step 5).

    alpha: of the screening test, and of the family of confirmed biases. candidates: proposals validated a round, the most
    frequent first; None for all, as published.
    """

    rounds: int = 4
    each: int = 1
    explain: bool = True
    rule: Rule = "paired"
    alpha: float = 0.05
    candidates: int | None = 10
    seed: int = 42

    @property
    def reading(self) -> Reading:
        """How a pairwise judge's decision is read: as the released code does under its rule."""
        return "first" if self.rule == "published" else "last"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.seed < 0:
            raise BadInput(f"seed is {self.seed}, expected at least 0.")
        least = 1 if self.candidates is None else self.candidates
        if self.rounds < 0 or self.each < 1 or not 0 < self.alpha < 1 or least < 1:
            raise BadInput(
                f"rounds is {self.rounds}, each {self.each}, candidates {self.candidates} and alpha {self.alpha}: "
                "expected at least 0, 1, 1, and a number between 0 and 1."
            )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A measured bias. round: 0 for the library it began with. support: cases it was proposed for; case: their first."""

    bias: Bias
    round: int
    support: int = 0
    case: Case | None = None


@dataclass
class Audit:
    """What is known so far; filled while the search runs, so that whoever stops it has what was found.

    screened: effects on the selection part, of every candidate. confirmed: on the report part, of those that passed, with
    p values adjusted by Holm. With rule="published" both are about all test pairs and nothing is adjusted.
    """

    settings: BiasScopeSettings
    selection: "Bench"
    report: "Bench"
    candidates: dict[str, Candidate] = field(default_factory=dict)
    screened: dict[str, BiasEffect] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)
    confirmed: dict[str, BiasEffect] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    complete: bool = False

    @property
    def library(self) -> list[Bias]:
        """The biases to deal from and to merge with: those it began with, and what was accepted since."""
        known = self.candidates.items()
        return [each.bias for name, each in known if each.round == 0 or name in self.accepted]

    @property
    def found(self) -> list[str]:
        """The biases that hold, the strongest first; under the published rule every accepted one."""
        if self.settings.rule == "published":
            names = [name for name in self.accepted if name in self.screened]
            return sorted(names, key=lambda name: (-self.screened[name].increase, name))
        names = [n for n, e in self.confirmed.items() if e.p_adjusted <= self.settings.alpha and e.increase > 0]
        return sorted(names, key=lambda name: (-self.confirmed[name].increase, name))


class Bench:
    """Fixed pairs before one judge: as they are, and with the worse answer rewritten. Everything is asked once and kept."""

    def __init__(self, pairs: Sequence[Pair], judge: Judge, teacher: Teacher, name: str) -> None:
        self.pairs, self.name = list(pairs), name
        self._judge, self._teacher = judge, teacher
        self._original: Array | None = None
        self._readable: NDArray[np.bool_] = np.ones(len(self.pairs), dtype=bool)  # asked in both orders as they are
        self._texts: dict[str, list[str | None]] = {}
        self._right: dict[str, Array] = {}
        self._compared: dict[str, NDArray[np.bool_]] = {}
        self._tied: dict[str, NDArray[np.bool_]] = {}
        self.changed_answers: dict[str, int] = {}
        # By bias, "" for the pairs as they are: why, for each pair that could not be asked in both orders.
        self.unasked: dict[str, tuple[str, ...]] = {}

    def original(self) -> Array:
        """right [N, 2] on the pairs as they are. Raises WorkFailed where the judge could read, or said, next to nothing."""
        if self._original is None:
            self._original, verdicts = judged(self._judge, self.pairs, f"judge/{self.name}")
            self._readable, self.unasked[""] = asked(verdicts), _reasons(verdicts)
            self._tied[""] = _tied(verdicts)
            check_asked(self._judge.name, self.pairs, verdicts)
            _check_format(self._judge.name, [verdict for two in verdicts for verdict in two])
        return self._original

    def texts(self, bias: Bias) -> list[str | None]:
        """The rewritten worse answers; None where the teacher failed or the final answer is another."""
        if bias.name not in self._texts:
            wanted = [(pair, bias) for pair in self.pairs]
            texts = self._teacher.perturb(wanted, phase=f"rewrite/{self.name}")
            kept = guarded(wanted, texts)
            self.changed_answers[bias.name] = sum(
                text is not None and keep is None for text, keep in zip(texts, kept, strict=True)
            )
            self._texts[bias.name] = kept
        return self._texts[bias.name]

    def rewritten(self, bias: Bias) -> Array:
        """right [N, 2] with the worse answers rewritten; nan rows where there is no rewrite (see `texts`)."""
        if bias.name not in self._right:
            texts = self.texts(bias)
            pairs = [replace(p, rejected=t) for p, t in zip(self.pairs, texts, strict=True) if t is not None]
            right = np.full((len(self.pairs), 2), np.nan)
            rewritten = np.array([text is not None for text in texts], dtype=bool)
            right[rewritten], verdicts = judged(self._judge, pairs, f"judge/{self.name}")
            compared = rewritten.copy()
            compared[rewritten] = asked(verdicts)
            self._tied[bias.name] = np.zeros_like(right, dtype=bool)
            self._tied[bias.name][rewritten] = _tied(verdicts)
            self.unasked[bias.name] = _reasons(verdicts)
            self.original()
            self._right[bias.name], self._compared[bias.name] = right, compared & self._readable
        return self._right[bias.name]

    def compared(self, name: str) -> NDArray[np.bool_]:
        """Which pairs were judged in both orders, as they are and with this bias; "": as they are."""
        return self._compared[name] if name else self._readable

    @property
    def ties(self) -> int:
        """How many of the verdicts that were compared are ties."""
        return sum(int(self._tied[name][compared].sum()) for name, _, compared in self.conditions())

    @property
    def asked(self) -> bool:
        """Whether the pairs as they are have been judged."""
        return self._original is not None

    def conditions(self) -> Iterator[tuple[str, Array, NDArray[np.bool_]]]:
        """What was judged so far: the bias ("" for none), right [N, 2], and which pairs were compared."""
        if self._original is not None:
            yield "", self._original, self._readable
        for name, right in self._right.items():
            yield name, right, self._compared[name]

    def effect(self, bias: Bias) -> BiasEffect:
        """How much more the judge errs with this bias, over the pairs that have a rewrite."""
        before, after = self.original(), self.rewritten(bias)
        compared = self.compared(bias.name)
        groups = [pair.group for pair, was_compared in zip(self.pairs, compared, strict=True) if was_compared]
        return effect(bias.name, before[compared], after[compared], groups, left_out=int((~compared).sum()))

    def length_controlled(self, bias: Bias) -> BiasEffect:
        """The effect with every rewrite cut to the number of words of the answer that it was made from (card, baselines).

        Words are those of `pairs.word_count`.
        """
        texts = self.texts(bias)
        cut = [
            None if text is None else shortened(text, word_count(pair.rejected))
            for pair, text in zip(self.pairs, texts, strict=True)
        ]
        rows = [i for i, text in enumerate(cut) if text is not None and self._readable[i]]
        after, verdicts = judged(
            self._judge, [replace(self.pairs[i], rejected=cut[i] or "") for i in rows], f"judge/{self.name}, cut"
        )
        kept = asked(verdicts)
        measured = np.array(rows, dtype=int)[kept]
        groups = [self.pairs[i].group for i in measured]
        return effect(bias.name, self.original()[measured], after[kept], groups, left_out=len(texts) - len(measured))

    def published(self, bias: Bias, seed: int) -> bool:
        """The released rule: one order, the file's before, shuffled after; any increase of the error over parsed outputs."""
        rows = np.arange(len(self.pairs))
        before = self.original()[rows, published_orders(self.pairs, seed=seed, shuffled=False)]
        after = self.rewritten(bias)[rows, published_orders(self.pairs, seed=seed, shuffled=True)]
        compared = self.compared(bias.name)
        return published_accepts(before[compared], after[compared])[0]


def judged(judge: Judge, pairs: Sequence[Pair], phase: str) -> tuple[Array, list[tuple[JudgeVerdict, JudgeVerdict]]]:
    """right [N, 2] (better answer first, second; nan without verdict) and the verdicts, every pair in both orders."""
    comparisons = [comparison for pair in pairs for comparison in orders(pair)]
    verdicts = judge.compare(comparisons, phase=phase) if comparisons else []
    both = list(zip(verdicts[::2], verdicts[1::2], strict=True))
    right = [
        [
            np.nan if verdict.choice is None else float(verdict.choice == better)
            for verdict, better in zip(two, (1, 2), strict=True)
        ]
        for two in both
    ]
    return np.array(right, dtype=float).reshape(-1, 2), both


def asked(verdicts: Sequence[tuple[JudgeVerdict, JudgeVerdict]]) -> NDArray[np.bool_]:
    """[N]: whether the judge was asked in both orders."""
    return np.array([first.asked and second.asked for first, second in verdicts], dtype=bool)


def _tied(verdicts: Sequence[tuple[JudgeVerdict, JudgeVerdict]]) -> NDArray[np.bool_]:
    """[N, 2]: which verdicts are ties."""
    return np.array([[verdict.tied for verdict in two] for two in verdicts], dtype=bool).reshape(-1, 2)


def _reasons(verdicts: Sequence[tuple[JudgeVerdict, JudgeVerdict]]) -> tuple[str, ...]:
    """Why pairs were not asked, in one of the orders; in order."""
    whys = [next((each.why or "no reason given" for each in two if not each.asked), None) for two in verdicts]
    return tuple(why for why in whys if why is not None)


def check_asked(judge: str, pairs: Sequence[Pair], verdicts: Sequence[tuple[JudgeVerdict, JudgeVerdict]]) -> None:
    """Raises WorkFailed when hardly any pair could be put to a judge: then it is not known, rather than unbiased."""
    were_asked = asked(verdicts)
    if were_asked.sum() >= FEWEST * len(pairs):
        return
    whys = iter(_reasons(verdicts))
    unread = [(pair, next(whys)) for pair, was_asked in zip(pairs, were_asked, strict=True) if not was_asked]
    unread.sort(key=lambda each: len(each[0].question) + len(each[0].chosen) + len(each[0].rejected))
    raise WorkFailed(
        f"{judge} could be asked about {were_asked.sum()} of {len(pairs)} pairs, so nothing can be found out about it. The "
        f"shortest of the others: {unread[0][1].rstrip('.')}; the longest: {unread[-1][1].rstrip('.')}. Take shorter pairs, "
        "cut them (--cut, for a logprob judge), or take a judge that reads more."
    )


def guarded(wanted: Sequence[tuple[Pair, Bias]], texts: Sequence[str | None]) -> list[str | None]:
    """Rewrites, None where there is none or the final answer is another: there the worse answer may have become right."""
    return [
        None if text is None or same_final_answer(pair.rejected, text) is False else encodable(text)
        for (pair, _), text in zip(wanted, texts, strict=True)
    ]


def _check_format(name: str, verdicts: Sequence[JudgeVerdict]) -> None:
    """Raises WorkFailed when most answers of a judge hold no verdict: nothing could be found out about such a judge."""
    answers = [verdict for verdict in verdicts if verdict.asked]
    mute = [verdict for verdict in answers if verdict.choice is None]
    if 2 * len(mute) <= len(answers):
        return
    unread = [verdict for verdict in mute if not verdict.tied]
    if 2 * len(unread) <= len(mute):
        raise WorkFailed(
            f"{name} found both answers alike in {len(mute) - len(unread)} of {len(answers)} comparisons, so nothing can be "
            "found out about it: take a pairwise judge, which sees both and has to choose."
        )
    answer = " ".join(unread[0].reasoning.split())
    raise WorkFailed(
        f"{name} gave no verdict in {len(mute)} of {len(answers)} answers, so nothing can be found out about it; a "
        f"pairwise judge must end with 'Decision: 1' or 'Decision: 2'. One answer ended: {answer[-80:]!r}."
    )


def orders(pair: Pair) -> tuple[JudgeComparison, JudgeComparison]:
    """The better answer first, and second."""
    return (
        JudgeComparison(pair.id, pair.question, pair.chosen, pair.rejected),
        JudgeComparison(pair.id, pair.question, pair.rejected, pair.chosen),
    )


def biasscope(
    judge: Judge,
    teacher: Teacher,
    discovery: Sequence[Pair],
    selection: Sequence[Pair],
    report: Sequence[Pair],
    *,
    library: Sequence[Bias] | None = None,
    settings: BiasScopeSettings | None = None,
    audit: Audit | None = None,
) -> Audit:
    """Search for biases of `judge` on discovery, screen them on selection, confirm them on report; see the module.

    library: what to begin with, the seven basic biases by default. audit: an empty one to fill (`start`), for whoever wants
    to see what was found before an exception.
    """
    audit = audit or start(judge, teacher, selection, report, library=library, settings=settings)
    settings = audit.settings
    _measure(audit, [candidate for candidate in audit.candidates.values() if candidate.round == 0])
    for number in range(1, settings.rounds + 1):
        counts, proposals = _discover(judge, teacher, discovery, audit, number)
        new, known = _merge(teacher, proposals, audit, number)
        accepted = _measure(audit, new)
        counts = replace(counts, known=known, measured=len(new), accepted=tuple(accepted))
        audit.rounds.append(counts)
        if not accepted:
            break
    if settings.rule == "paired":
        for name in audit.accepted:
            audit.confirmed[name] = audit.report.effect(audit.candidates[name].bias)
        audit.confirmed = {each.bias: each for each in adjusted(list(audit.confirmed.values()))}
    audit.complete = True
    return audit


def start(
    judge: Judge,
    teacher: Teacher,
    selection: Sequence[Pair],
    report: Sequence[Pair],
    *,
    library: Sequence[Bias] | None = None,
    settings: BiasScopeSettings | None = None,
) -> Audit:
    """An audit that knows its pairs and its library and nothing else yet. Raises BadInput for names that are not unique."""
    settings = settings or BiasScopeSettings()
    library = seed_biases() if library is None else library
    check_names(library, "The library")
    if settings.rule == "published":  # validates and reports on the same pairs
        selection, report = [*selection, *report], []
    audit = Audit(
        settings=settings,
        selection=Bench(selection, judge, teacher, "selection"),
        report=Bench(report, judge, teacher, "report"),
    )
    for bias in library:
        audit.candidates[bias.name] = Candidate(bias, round=0)
    return audit


def _measure(audit: Audit, candidates: Sequence[Candidate]) -> list[str]:
    """Validate candidates on the selection part; the names that were accepted."""
    accepted = []
    with progress("Measuring biases", total=len(candidates), unit="biases") as bar:
        for candidate in candidates:
            bias = candidate.bias
            bar.advance(0, now=bias.name)
            audit.candidates[bias.name] = candidate
            audit.screened[bias.name] = measured = audit.selection.effect(bias)
            if audit.settings.rule == "published":
                passes = audit.selection.published(bias, audit.settings.seed)
            else:
                passes = measured.p_value <= audit.settings.alpha
            if passes:
                accepted.append(bias.name)
                audit.accepted.append(bias.name)
            bar.advance()
    return accepted


def _discover(
    judge: Judge, teacher: Teacher, pairs: Sequence[Pair], audit: Audit, number: int
) -> tuple[Round, list[tuple[Bias, Case]]]:
    """Steps 1 to 6 of a round: what the teacher sees behind the judge's errors on rewritten pairs."""
    settings = audit.settings
    library = {bias.name: bias for bias in audit.library}
    # A small library has fewer names than a pair may ask for.
    hands = assign(list(library), len(pairs), each=min(settings.each, len(library)), seed=settings.seed + number - 1)
    wanted = [(pair, library[name]) for pair, hand in zip(pairs, hands, strict=True) for name in hand]
    texts = guarded(wanted, teacher.perturb(wanted, phase="rewrite/discovery"))
    rewritten = [
        replace(pair, rejected=text) for (pair, _), text in zip(wanted, texts, strict=True) if text is not None
    ]
    right, verdicts = judged(judge, rewritten, "judge/discovery")
    generator = np.random.default_rng([settings.seed, number])
    cases = []
    for pair, correct, two in zip(rewritten, right, verdicts, strict=True):
        wrong = [order for order in (0, 1) if correct[order] == 0]
        if settings.rule == "published":
            wrong = [order for order in wrong if order == (0 if pair.chosen_first else 1)]
        if wrong:
            order = wrong[generator.integers(len(wrong))]
            choice = two[order].choice
            assert choice is not None
            cases.append(Case(orders(pair)[order], choice, two[order].reasoning))
    if settings.explain and cases:
        explanations = judge.explain(cases)
        cases = [replace(case, explanation=explanation) for case, explanation in zip(cases, explanations, strict=True)]
    proposals = teacher.identify(cases) if cases else []
    named = [
        (proposal.bias, case) for proposal, case in zip(proposals, cases, strict=True) if proposal.bias is not None
    ]
    judgements = [verdict for two in verdicts for verdict in two]
    counts = Round(
        number=number,
        rewritten=len(rewritten),
        failed_rewrites=len(wanted) - len(rewritten),
        compared=sum(verdict.asked for verdict in judgements),
        wrong=int((right == 0).sum()),
        no_verdict=sum(verdict.asked and verdict.choice is None for verdict in judgements),
        proposed=len(named),
        none_seen=sum(proposal.bias is None and not proposal.failed for proposal in proposals),
        failed_proposals=sum(proposal.failed for proposal in proposals),
        known=0,
        measured=0,
        accepted=(),
        unasked=sum(not verdict.asked for verdict in judgements),
    )
    return counts, named


def _merge(
    teacher: Teacher, proposals: Sequence[tuple[Bias, Case]], audit: Audit, number: int
) -> tuple[list[Candidate], int]:
    """Step 7: proposals that are new, the most frequent first, and how many were known.

    One batch of questions a proposal, against everything in the library and what was found new before it: the same decisions
    as one by one, without waiting for each. A name that was measured before and not accepted is not measured again.
    """
    by_key: dict[str, Candidate] = {}
    measured = {key(PLACEBO.name), *map(key, audit.candidates)}
    known = 0
    for bias, case in proposals:
        name = key(bias.name)
        if name in measured:
            known += 1
        elif name in by_key:
            by_key[name] = replace(by_key[name], support=by_key[name].support + 1)
        else:
            by_key[name] = Candidate(bias, round=number, support=1, case=case)
    new: list[Candidate] = []
    for candidate in sorted(by_key.values(), key=lambda each: -each.support):
        if audit.settings.candidates is not None and len(new) >= audit.settings.candidates:
            break
        entries = [*audit.library, *(each.bias for each in new)]
        if any(teacher.same([(candidate.bias, entry) for entry in entries])):
            known += candidate.support
        else:
            new.append(candidate)
    return new, known
