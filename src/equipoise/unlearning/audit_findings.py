"""What the rows of an audit come to: which records were forgotten, and under which attack they are answered again.

An attack along its steps is asked several times. It counts by the highest mean of WINDOW consecutive looks, and is told at
the highest of these: by single looks whoever is looked at most often would be favoured. The same rule for every attack; a
choice among wordings counts by its best, for whoever asks has all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from equipoise.core.agreement import UNDEFINED, share
from equipoise.core.shares import Bounded, Share
from equipoise.core.statistics import auroc, score_interval
from equipoise.core.terminal import one_line
from equipoise.data.records import Record
from equipoise.unlearning.audit_attacks import words
from equipoise.unlearning.audit_questions import Flags, Questions, Scores, answered, thresholds
from equipoise.unlearning.audit_result import (
    BACK,
    CONTROL,
    GONE,
    QUANTISATION,
    RELEARNING,
    STILL,
    UNKNOWN,
    WORDING,
    ComponentSpectrum,
    ForgettingAttack,
    MembershipScore,
    RecordForgetting,
    RecoveryAt,
)
from equipoise.unlearning.relearning import Relearning

WINDOW = 3  # looks, one after the other
NOTHING = Share(0.0, 0, 0, 0.0, math.nan, math.nan)
TEXT = 120  # characters of a record
Row = Mapping[str, Any]


class Findings:
    """The rows of an audit by their units, and how the hold-out and the relearned records were asked."""

    def __init__(self, found: Mapping[str, Row], holdout: Questions, forget: Questions) -> None:
        self.found, self.holdout, self.forget = found, holdout, forget
        self._scores = {
            (name, side): Scores.read(found[name]["scores" if side == "holdout" else "forget"])
            for name in ("before", "after")
            for side in ("holdout", "forget")
        }
        self._levels = {
            side: thresholds(self._scores["before", side], self._scores["after", side])
            for side in ("holdout", "forget")
        }
        self.known, self.kept = self._answers("before", "holdout"), self._answers("after", "holdout")
        self.forgotten = [i for i, pair in enumerate(zip(self.known, self.kept, strict=True)) if pair == (True, False)]
        self.clusters = [record.group or record.id for record in holdout.records]

    def answered(self) -> dict[str, Share]:
        """What each model answers of the hold-out and of the relearned records."""
        shares = {name: self._share(flags) for name, flags in (("before", self.known), ("after", self.kept))}
        groups = [record.group or record.id for record in self.forget.records]
        for name in ("before", "after"):
            shares[f"{name}_relearned"] = share(self._answers(name, "forget"), groups)
        return shares

    def chance(self) -> float:
        """What guessing gets of the hold-out's questions with choices; nan without any."""
        chances = [1 / len(record.choices) for record in self.holdout.chosen.values()]
        return float(np.mean(chances)) if chances else math.nan

    def strongest(self) -> tuple[str, int]:
        """The relearning that brings back most, and its best look; the first where none brings back anything."""
        ranks = {each: self._best(self._path(self.found[each])) for each in self.found["models"]["attacks"]}
        attack = max(ranks, key=lambda each: -math.inf if math.isnan(ranks[each][1]) else ranks[each][1])
        return attack, ranks[attack][0]

    def attacks(self, settings: Callable[[str], Relearning]) -> tuple[ForgettingAttack, ...]:
        """All attacks, the strongest first; of equals a relearning, which this is about, and of those the shortest."""
        made = [self._relearning(each, settings(each)) for each in self.found["models"]["attacks"]]
        for bits, grain in ((8, "each row"), (4, "groups of 128")):
            row = self.found[f"int{bits}"]
            flags = answered(Scores.read(row["scores"]), self._levels["holdout"])
            what = f"its matrices rounded to {bits} bits by {grain}"
            path = [self._at("as it is", 0, flags)]
            made.append(self._attack(f"{bits} bits", QUANTISATION, what, path, spoken=row["spoken"]))

        def order(attack: ForgettingAttack) -> tuple[float, bool, int]:
            return -attack.value if self.forgotten else 0.0, attack.family != RELEARNING, attack.at.step

        return tuple(sorted([*made, *self._wordings()], key=order))

    def controls(
        self, settings: Callable[[str], Relearning], unrelated: int, relearned: int
    ) -> tuple[ForgettingAttack, ...]:
        """The strongest relearning on unrelated text, and on a model that never knew.

        unrelated, relearned: records of the first, and of the attack that it is compared with.
        """
        few = f"{unrelated:,} unrelated records, where the attack had {relearned:,},"
        made = []
        for unit, name, what in (
            (
                "control retain",
                "unrelated text",
                f"relearning {few if unrelated < relearned else 'as many unrelated records'} with {{}}",
            ),
            (
                "control reference",
                "a model that never knew",
                "teaching the forget records to a model that never knew with {}",
            ),
        ):
            if (row := self.found.get(unit)) is None:
                continue
            path = self._path(row) or [self._at("diverged", 0, self.kept)]
            start = row.get("start")
            before = NOTHING
            if start is not None:
                before = self._again(answered(Scores.read(start), self._levels["holdout"]))
            made.append(
                self._attack(
                    name,
                    CONTROL,
                    what.format(words(settings(row["attack"]))),
                    path,
                    spoken=row["spoken"],
                    before=before,
                    row=row,
                )
            )
        return tuple(made)

    def membership(self, members: Sequence[Record], others: Sequence[Record], seed: int) -> tuple[MembershipScore, ...]:
        """Of each attack the AUROC before and after, with its interval over groups; none without others."""
        if not others:
            return ()
        labels = [1] * len(members) + [0] * len(others)
        clusters = [record.group or record.id for record in (*members, *others)]

        def bounded(values: Sequence[float | None]) -> Bounded:
            if any(value is None for value in values):
                return UNDEFINED
            generator = np.random.default_rng(np.random.SeedSequence([seed, 5]))
            found = score_interval(auroc, np.array(values, float), labels, clusters, generator=generator)
            return Bounded.of(found)

        scored = {name: self.found[name]["membership"] for name in ("before", "after")}
        return tuple(
            MembershipScore(attack, bounded(scored["before"][attack]), bounded(scored["after"][attack]))
            for attack in scored["before"]
        )

    def records(self) -> tuple[RecordForgetting, ...]:
        """Each record, those first that are told worst of: still answered, then what came back under most attacks."""
        ways = [look for each in self.found["models"]["attacks"] for look in self._told(each)]
        ways += [answered(Scores.read(self.found[f"int{bits}"]["scores"]), self._levels["holdout"]) for bits in (8, 4)]
        asked_otherwise = self.found["after"]
        ways += [asked_otherwise["reworded"], asked_otherwise["continued"]]
        if leading := asked_otherwise["leading"]:
            ways.append(list(leading.values())[self._leading()[0]])
        attack, look = self.strongest()
        path = self.found[attack]["path"]
        strongest = Scores.read(path[look]["scores"]) if path else None
        made = []
        for side, asked in (("holdout", self.holdout), ("forget", self.forget)):
            before, after = self._scores["before", side], self._scores["after", side]
            known, kept = self._answers("before", side), self._answers("after", side)
            for i, record in enumerate(asked.records):
                back = sum(bool(flags[i]) for flags in ways) if side == "holdout" else 0
                state = UNKNOWN if not known[i] else STILL if kept[i] else BACK if back else GONE
                attacked = strongest.log_probability[i] if strongest is not None and side == "holdout" else math.nan
                made.append(
                    RecordForgetting(
                        record.id,
                        side,
                        one_line(f"{record.prompt} {record.completion}", TEXT),
                        before.log_probability[i],
                        after.log_probability[i],
                        attacked,
                        state,
                        back if state == BACK else 0,
                    )
                )
        order = (STILL, BACK, GONE, UNKNOWN)
        return tuple(sorted(made, key=lambda r: (order.index(r.state), -r.attacks, r.before - r.after)))

    def spectrum(self) -> ComponentSpectrum | None:
        """What moved by component, where it was told."""
        row = self.found["spectrum"]
        if not row.get("change"):
            return None
        return ComponentSpectrum(
            row["block"], row["tokens"], tuple(row["spread"]), tuple(row["change"]), float(row["within"])
        )

    def notes(self) -> tuple[str, ...]:
        """How the strongest is chosen, and which attacks destroyed the model."""
        wild = [each for each in self.found["models"]["attacks"] if self.found[each]["diverged"]]
        return (
            f"A relearning counts by its highest mean of {WINDOW} looks running and is told at the highest of these; a "
            "wording by the best of its forms. The same rule for every attack, whatever comes out.",
            *([f"Ended early, since a loss was no number: {', '.join(wild)}."] if wild else []),
        )

    def _answers(self, name: str, side: str) -> list[bool]:
        return answered(self._scores[name, side], self._levels[side])

    def _share(self, flags: Sequence[bool]) -> Share:
        return share([float(each) for each in flags], self.clusters) if flags else NOTHING

    def _again(self, flags: Flags) -> Share:
        """Of the forgotten records for which there is an answer, those that are answered."""
        chosen = [i for i in self.forgotten if flags[i] is not None]
        return share([float(bool(flags[i])) for i in chosen], [self.clusters[i] for i in chosen]) if chosen else NOTHING

    def _at(self, label: str, step: int, flags: Flags) -> RecoveryAt:
        told = [flag for flag in flags if flag is not None]
        groups = [cluster for cluster, flag in zip(self.clusters, flags, strict=True) if flag is not None]
        return RecoveryAt(label, step, self._again(flags), share([float(f) for f in told], groups) if told else NOTHING)

    def _path(self, row: Row) -> list[RecoveryAt]:
        levels = self._levels["holdout"]
        return [
            self._at(f"after {look['step']:,} steps", look["step"], answered(Scores.read(look["scores"]), levels))
            for look in row["path"]
        ]

    def _told(self, attack: str) -> list[list[bool]]:
        """The answers at the look by which the attack counts; nothing where it has none."""
        path = self._path(self.found[attack])
        if not path:
            return []
        look = self.found[attack]["path"][self._best(path)[0]]
        return [answered(Scores.read(look["scores"]), self._levels["holdout"])]

    def _relearning(self, attack: str, settings: Relearning) -> ForgettingAttack:
        row = self.found[attack]
        path = self._path(row) or [self._at("diverged", 0, self.kept)]
        what = f"relearning the forget records with {words(settings)}"
        return self._attack(attack, RELEARNING, what, path, spoken=row["spoken"], row=row)

    def _wordings(self) -> list[ForgettingAttack]:
        """Other ways of asking the after model, each beside the before model under the same."""
        before, after = self.found["before"], self.found["after"]
        made = []
        for key, name, what in (
            ("reworded", "other wordings", "the right answer in other wordings, against the wrong ones"),
            ("continued", "first words", "the first words of the answer given, the rest said by the model"),
        ):
            if any(after[key][i] is not None for i in self.forgotten):
                path = [self._at("as it is", 0, after[key])]
                made.append(self._attack(name, WORDING, what, path, before=self._again(before[key])))
        if leading := after["leading"]:
            path = [self._at(prefix, 0, flags) for prefix, flags in leading.items()]
            best, value = self._leading()
            same = self._again(before["leading"][path[best].label])
            what = f"asked behind a leading sentence, the best of {len(path)}"
            made.append(ForgettingAttack("leading prompts", WORDING, what, tuple(path), best, value, NOTHING, same))
        return made

    def _leading(self) -> tuple[int, float]:
        """The place of the best leading sentence, and its share of the forgotten."""
        values = [self._best([self._at("", 0, flags)])[1] for flags in self.found["after"]["leading"].values()]
        return max(enumerate(values), key=lambda pair: pair[1])

    def _attack(
        self,
        name: str,
        family: str,
        what: str,
        path: Sequence[RecoveryAt],
        *,
        spoken: Flags | None = None,
        before: Share = NOTHING,
        row: Row | None = None,
    ) -> ForgettingAttack:
        best, value = self._best(path)
        row = row or {"moved": None, "diverged": False, "recovery": []}
        return ForgettingAttack(
            name,
            family,
            what,
            tuple(path),
            best,
            value,
            NOTHING if spoken is None else self._in_words(spoken),
            before,
            math.nan if row["moved"] is None else row["moved"],
            row["diverged"],
            tuple(math.nan if each is None else each for each in row["recovery"]),
        )

    def _in_words(self, spoken: Flags) -> Share:
        """Of the questions that the before model answers in words and the after model does not, those answered now."""
        before, after = self.found["before"]["spoken"], self.found["after"]["spoken"]
        chosen = [i for i, pair in enumerate(zip(before, after, strict=True)) if pair == (True, False)]
        values = [float(bool(spoken[i])) for i in chosen]
        return share(values, [self.clusters[i] for i in chosen]) if chosen else NOTHING

    def _best(self, path: Sequence[RecoveryAt]) -> tuple[int, float]:
        """The highest look of the best window, and the window's mean share of the forgotten; nan where there are none.

        Records that an attack cannot be tried on count as not answered: one that brings back the only record that it is for
        is not the strongest.
        """
        if not path or not self.forgotten:
            return max(len(path) - 1, 0), math.nan
        rates = [each.again.count / len(self.forgotten) for each in path]
        width = min(WINDOW, len(rates))
        means = [float(np.mean(rates[i : i + width])) for i in range(len(rates) - width + 1)]
        first = int(np.argmax(means))
        return first + int(np.argmax(rates[first : first + width])), means[first]
