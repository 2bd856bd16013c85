"""The work of `audit forgetting`: two models are asked, one is attacked, and what came back is told.

Killed at any moment, the same call goes on: attacks.jsonl has a row for each model that was asked and each attack that was
made, and every attack is a function of its own settings and the seed alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from equipoise.core import progress
from equipoise.core.columns import duration
from equipoise.core.errors import BadInput
from equipoise.core.job import Request
from equipoise.core.rows import Rows
from equipoise.data.records import Record
from equipoise.language import adapters
from equipoise.language.encode import encode
from equipoise.language.encode import notes as encoding_notes
from equipoise.language.features import objects_digests
from equipoise.language.model import LanguageModel, load
from equipoise.language.rehearsal import rehearse
from equipoise.language.states import blocks
from equipoise.language.templates import DATE
from equipoise.unlearning import audit_spectra
from equipoise.unlearning.audit_attacks import parsed, suited, words
from equipoise.unlearning.audit_findings import Findings
from equipoise.unlearning.audit_questions import PREFIXES, Questions
from equipoise.unlearning.audit_result import ForgettingAudit, ForgettingAuditPlan
from equipoise.unlearning.checks import check_finite
from equipoise.unlearning.measures import membership_scores
from equipoise.unlearning.notes import record_key
from equipoise.unlearning.quantised import GROUP, quantised
from equipoise.unlearning.relearning import Relearning, attackable, relearn
from equipoise.unlearning.sides import MEASURED, Sides, read_sides, subsample

ROWS, STRONGEST = "attacks.jsonl", "strongest"
LISTED = 10  # ids in a refusal
BITS: Mapping[str, tuple[int, int | None]] = {"int8": (8, None), "int4": (4, GROUP)}
NO_SPECTRUM = (
    "No spectra: nothing moved, the two models differ in depth, width or tokens, or the records have too few different "
    "tokens."
)
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class ForgettingAuditing(Request):
    """A request to audit forgetting, read and found right."""

    models: Mapping[str, str | Path | LanguageModel]
    sides: Sides
    relearnings: tuple[str, ...]
    epochs: int
    looks: tuple[int, ...]
    batch_size: int
    max_length: int
    block: int | None
    components: int
    keep_strongest: bool
    loading: Mapping[str, Any]
    seed: int
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        models: Mapping[str, Any],
        records: Mapping[str, Any],
        *,
        fields: Mapping[str, str] | None,
        attacks: Sequence[str] | None,
        epochs: int,
        evaluations: int,
        loading: Mapping[str, Any],
        **settings: Any,
    ) -> ForgettingAuditing:
        """Raises BadInput for a wrong request; loads no model."""
        for name, model in models.items():
            if not isinstance(model, str | Path | LanguageModel):
                raise BadInput(
                    f"{name} is a {type(model).__name__}: give a folder, a name, or language.wrap(model, tokenizer)."
                )
        for text in attacks or ():
            parsed(text, epochs=epochs)
        sides = read_sides(records, fields)
        _refuse_overlap(sides)
        count = min(evaluations, epochs)
        date = loading["date"] or DATE
        return cls(
            models=models,
            sides=sides,
            relearnings=tuple(dict.fromkeys(attacks or ())),
            epochs=epochs,
            looks=tuple(sorted({round(epochs * (i + 1) / count) for i in range(count)})),
            loading={**loading, "date": date},
            inputs=sides.digests | objects_digests(models),
            resolved={"date": date},
            **settings,
        )

    def plan(self) -> ForgettingAuditPlan:
        """From one timed step and one timed pass over some questions."""
        opened, notes = self._opened()
        attacks, asked = self._attacks(opened["after"]), self._asked()
        steps = sum(self._settings(each).steps(len(self.sides.records["forget"])) for each in attacks)
        return ForgettingAuditPlan(
            sources={name: model.source for name, model in opened.items()},
            counts={name: len(side) for name, side in self.sides.records.items()},
            attacks=tuple(words(self._settings(each)) for each in attacks),
            steps=steps,
            seconds=sum(self._costs(opened["after"], attacks, asked).values()),
            untried=self._untried(),
            notes=(*notes, *self._notes()),
        )

    def work(self, folder: Path | None) -> ForgettingAudit:
        rows = Rows(None if folder is None else folder / ROWS)
        found = self._found(rows)
        findings = self._findings(found)
        kept = self._kept(found, findings, folder) if self.keep_strongest else None
        return ForgettingAudit(
            names={name: _named(model) for name, model in self.models.items()} | self.sides.names,
            sources=found["models"]["sources"],
            counts={name: len(side) for name, side in self.sides.records.items()},
            answered=findings.answered(),
            forgotten=len(findings.forgotten),
            chance=findings.chance(),
            attacks=findings.attacks(self._settings),
            controls=findings.controls(self._settings, self._unrelated(), len(self.sides.records["forget"])),
            membership=findings.membership(*self._membership(), self.seed),
            records=findings.records(),
            spectrum=(spectrum := findings.spectrum()),
            untried=self._untried(),
            notes=(
                *rows.damaged,
                *found["models"]["notes"],
                *self._notes(),
                *findings.notes(),
                *([NO_SPECTRUM] if self.components and spectrum is None else []),
            ),
            model=kept,
        )

    def scratch(self) -> tuple[str, ...]:
        return (ROWS,)

    def _found(self, rows: Rows) -> dict[str, Row]:
        """A row for each unit of the work, from those that are there already."""
        found = {row["unit"]: row for row in rows}
        if "models" in found and not self._left(found):
            return found
        opened, notes = self._opened()
        attacks, asked = self._attacks(opened["after"]), self._asked()

        def add(unit: str, row: Row) -> None:
            found[unit] = {"unit": unit, **row}
            rows.add(found[unit])

        if "models" not in found:
            sources = {name: model.source for name, model in opened.items()}
            add("models", {"attacks": attacks, "sources": sources, "notes": notes})
        costs, left = self._costs(opened["after"], attacks, asked), self._left(found)
        total = sum(costs[unit] for unit in left)
        if not progress.is_quiet():
            progress.note(f"{len(attacks)} relearning attacks and the passes beside them: about {duration(total)}.")
        with progress.progress("Auditing", total=round(total), unit="s by the estimate") as bar:
            spectrum = self._spectrum(opened["before"], opened["after"])
            for number, unit in enumerate(left, start=1):
                if unit not in ("before", "after", "spectrum"):
                    opened.pop("before", None)  # room for a copy of the other
                add(unit, self._unit(unit, opened, asked, spectrum, found))
                bar.update(round(sum(costs[each] for each in left[:number])))
        return found

    def _units(self, attacks: Sequence[str]) -> list[str]:
        """What the work comes in, in this order: the last ones need what the others found."""
        controls = [
            f"control {name}" for name in ("retain", "reference") if name in {**self.sides.records, **self.models}
        ]
        return ["before", "after", "spectrum", *BITS, *attacks, *controls]

    def _left(self, found: Mapping[str, Row]) -> list[str]:
        return [unit for unit in self._units(found["models"]["attacks"]) if unit not in found]

    def _costs(self, after: LanguageModel, attacks: Sequence[str], asked: Mapping[str, Questions]) -> dict[str, float]:
        """Seconds of each unit, from one timed step and one timed pass over some questions."""
        forget = self.sides.records["forget"]
        step, look = _seconds(after, forget, asked["holdout"], self._settings(attacks[0]))
        relearning = {
            each: self._settings(each).steps(len(forget)) * step + (len(self.looks) + 2) * look for each in attacks
        }
        whole = (len(PREFIXES) + 8) * look  # with wordings, answers in words and membership, which are longer
        others = {"before": whole, "after": whole, "spectrum": look, **dict.fromkeys(BITS, 2 * look)}
        return {unit: (relearning | others).get(unit, relearning[attacks[0]]) for unit in self._units(attacks)}

    def _unit(
        self,
        unit: str,
        opened: Mapping[str, LanguageModel],
        asked: Mapping[str, Questions],
        spectrum: _Spectrum | None,
        found: Mapping[str, Row],
    ) -> Row:
        """The row of one unit, a function of the request alone."""
        after, forget, holdout = opened["after"], self.sides.records["forget"], asked["holdout"]
        if unit in ("before", "after"):
            return self._questioned(opened[unit], asked)
        if unit == "spectrum":
            return {} if spectrum is None else spectrum.row()
        if unit in BITS:
            rounded = quantised(after, *BITS[unit])
            return {"scores": holdout.scores(rounded).plain(), "spoken": holdout.spoken(rounded)}
        if not unit.startswith("control "):
            return self._relearned(after, forget, unit, asked, spectrum)
        strongest, _ = self._findings(found).strongest()
        if unit == "control retain":
            others = subsample(self.sides.records["retain"], self._unrelated())
            return {"attack": strongest, **self._relearned(after, others, strongest, asked, spectrum)}
        start = holdout.scores(opened["reference"]).plain()
        made = self._relearned(opened["reference"], forget, strongest, asked, None)
        return {"attack": strongest, "start": start, **made}

    def _opened(self) -> tuple[dict[str, LanguageModel], list[str]]:
        """All models, each found whole, and what has to be said of them. Raises BadInput for models that do not fit."""
        opened = {
            name: model if isinstance(model, LanguageModel) else load(model, **self.loading)
            for name, model in self.models.items()
        }
        for name, model in opened.items():
            check_finite(model, named=f"{name} ({model.name})")
        notes = []
        before = opened["before"]
        for name, model in opened.items():
            if name != "before":
                _check_vocabulary(before, name, model)
        records = [record for side in self.sides.records.values() for record in side]
        read = {name: encode(model, records, max_length=self.max_length) for name, model in opened.items()}
        notes += encoding_notes(read["before"])
        for name, model in opened.items():
            if [each.input_ids for each in read[name]] != [each.input_ids for each in read["before"]]:
                notes.append(
                    f"before and {name} write the same record in other tokens (their chat templates differ): each is asked "
                    "in its own form."
                )
            elif model.vocabulary != before.vocabulary:
                notes.append(
                    f"before has embeddings for {before.vocabulary:,} tokens and {name} for {model.vocabulary:,}; their "
                    "tokenizers are the same."
                )
            if str(self.models[name]).lower().endswith(".gguf"):
                notes.append(f"{name} is a GGUF file: asked and attacked are its weights as they are de-quantised.")
        self._check_block(opened["after"])
        rehearse(before, trains=False, writes="nothing")
        rehearse(attackable(opened["after"], Relearning(learning_rate=1.0)), writes="nothing")
        return opened, notes

    def _check_block(self, after: LanguageModel) -> None:
        depth = len(blocks(after.model))
        if self.block is not None and self.block >= depth:
            raise BadInput(f"block is {self.block}, but the model has {depth}, counted from 0.")
        for text in self.relearnings:
            if (count := parsed(text, epochs=1).blocks or 0) > depth:
                raise BadInput(f"The attack {text!r} needs {count} blocks, but the model has {depth}.")

    def _attacks(self, after: LanguageModel) -> list[str]:
        """The relearning attacks as text: those asked for, else five that suit the size."""
        return list(self.relearnings) or suited(after)

    def _settings(self, attack: str) -> Relearning:
        how = {"batch_size": self.batch_size, "max_length": self.max_length, "seed": self.seed}
        return parsed(attack, epochs=self.epochs, **how)

    def _findings(self, found: Mapping[str, Row]) -> Findings:
        asked = self._asked()
        return Findings(found, asked["holdout"], asked["forget"])

    def _asked(self) -> dict[str, Questions]:
        """The hold-out and the relearned records, each as it is asked; of large sets a part, evenly spread."""
        return {
            name: Questions(
                subsample(self.sides.records[name], MEASURED), self.sides.questions[name], max_length=self.max_length
            )
            for name in ("holdout", "forget")
        }

    def _questioned(self, model: LanguageModel, asked: Mapping[str, Questions]) -> Row:
        """Everything that is asked of a model that nobody attacked."""
        holdout = asked["holdout"]
        row = {
            "scores": holdout.scores(model).plain(),
            "forget": asked["forget"].scores(model).plain(),
            "spoken": holdout.spoken(model),
            "continued": holdout.continued(model),
            "reworded": holdout.reworded(model),
            "leading": holdout.leading(model),
        }
        members, others = self._membership()
        if others:
            scores = membership_scores(model, [*members, *others], max_length=self.max_length)
            row["membership"] = {
                attack: [value if math.isfinite(value) else None for value in values.tolist()]
                for attack, values in scores.items()
            }
        return row

    def _unrelated(self) -> int:
        """How many retain records the control relearns: as many as the attacks, or all of fewer."""
        return min(len(self.sides.records.get("retain", ())), len(self.sides.records["forget"]))

    def _membership(self) -> tuple[list[Record], list[Record]]:
        """Forgotten records, and others; none without retain records."""
        records = self.sides.records
        forgotten = subsample([*records["forget"], *records["holdout"]], MEASURED)
        return forgotten, subsample(records.get("retain", []), MEASURED)

    def _relearned(
        self,
        model: LanguageModel,
        records: Sequence[Record],
        attack: str,
        asked: Mapping[str, Questions],
        spectrum: _Spectrum | None,
    ) -> Row:
        """One relearning, and what its model answers along it and at its end."""
        path: list[Row] = []
        settings = self._settings(attack)

        def look(now: LanguageModel, epoch: int) -> None:
            if epoch in self.looks:
                step = settings.steps_until(epoch, len(records))
                path.append({"epoch": epoch, "step": step, "scores": asked["holdout"].scores(now).plain()})

        done = relearn(model, records, settings, evaluate=look, title=attack)
        now = done.language_model
        return {
            "path": path,
            "spoken": asked["holdout"].spoken(now),
            "moved": done.moved,
            "diverged": done.diverged,
            "recovery": [] if spectrum is None else spectrum.recovery(now),
        }

    def _spectrum(self, before: LanguageModel, after: LanguageModel) -> _Spectrum | None:
        """The states before and after, and the components of those before; None where there is nothing to compare."""
        records = [*self.sides.records["forget"], *self.sides.records["holdout"]]
        block = self.block if self.block is not None else len(blocks(after.model)) // 2
        ours, theirs = (
            (len(blocks(model.model)), [each.input_ids for each in encode(model, records, max_length=self.max_length)])
            for model in (before, after)
        )
        if not self.components or ours != theirs:
            return None
        read = [audit_spectra.states(model, records, block, max_length=self.max_length) for model in (before, after)]
        if read[0].shape != read[1].shape:
            return None
        count = min(self.components, read[0].shape[0] // 2, read[0].shape[1] // 2)
        try:
            vectors = audit_spectra.basis(read[0], count)
        except BadInput:  # too few different tokens to have so many directions
            return None
        return _Spectrum(block, records, read[0], read[1], vectors, self.max_length)

    def _kept(self, found: Mapping[str, Row], findings: Findings, folder: Path | None) -> LanguageModel:
        """The model of the strongest relearning at its best look, made again, in the folder `strongest`."""
        if folder is not None and (folder / STRONGEST / "config.json").exists():
            return load(folder / STRONGEST, **self.loading)
        attack, look = findings.strongest()
        path, records = found[attack]["path"], self.sides.records["forget"]
        epochs = path[look]["epoch"] if path else 1
        opened, _ = self._opened()
        done = relearn(opened["after"], records, self._settings(attack), epochs=epochs, title="Keeping the strongest")
        made = done.language_model
        made = adapters.merge(made) if hasattr(made.model, "peft_config") else made
        if folder is not None:
            made.save(folder / f"{STRONGEST}.new")
            (folder / f"{STRONGEST}.new").rename(folder / STRONGEST)
        return made

    def _notes(self) -> tuple[str, ...]:
        """How the records are asked, and which of them."""
        sides, asked = self.sides, self._asked()["holdout"]
        notes = []
        for name, records in sides.records.items():
            if len(records) > MEASURED and name != "retain":
                notes.append(
                    f"{name}: {MEASURED} of {len(records):,} records are asked for, evenly spread over the file."
                )
        made_up = sum(not record.choices for record in asked.records if record.id in asked.chosen)
        if made_up:
            notes.append(
                f"{made_up} of {len(asked)} hold-out records have no choices of their own: the right answer stands against "
                "the answers of the 3 records with the likest prompts."
            )
        if plain := len(asked) - len(asked.chosen):
            notes.append(
                f"{plain} of {len(asked)} hold-out records are no questions with choices: one counts as answered again when "
                "at least half of the log-probability that it lost is back."
            )
        groups = {record.group for record in sides.records["forget"] if record.group}
        if shared := sum(record.group in groups for record in sides.records["holdout"]):
            notes.append(
                f"{shared} of {len(sides.records['holdout'])} hold-out records are of a group of which relearned records "
                "are, too: what comes back of these may have been inferred. Split by group."
            )
        return tuple(notes)

    def _untried(self) -> tuple[str, ...]:
        """What the audit does not try, with reasons."""
        records, asked = self.sides.records, self._asked()["holdout"]
        left = []
        if "retain" not in records:
            left.append("Relearning of unrelated text as a control, and membership: no retain records were given.")
        if "reference" not in self.models:
            left.append("Relearning a model that never knew the records, as a control: no reference was given.")
        if not asked.chosen:
            left.append("Leading prompts: no hold-out record is a question with choices.")
        if not any(record.paraphrases for record in records["holdout"]):
            left.append("Other wordings of the answers: no hold-out record has paraphrases.")
        return (
            *left,
            "Other relearning: more records, more passes, other rates and other text about the same matter than were given.",
            "Other ways of asking: many examples in the prompt, translations, searched prompts, many sampled answers, "
            "states steered from outside, a probe trained on hidden states.",
            "Other quantisation than rounding to the nearest; pruning and merging of models.",
        )


@dataclass(frozen=True)
class _Spectrum:
    """States before and after [N, D] of the same tokens, and the components of those before [K, D]."""

    block: int
    records: list[Record]
    before: torch.Tensor
    after: torch.Tensor
    vectors: torch.Tensor
    max_length: int

    def row(self) -> Row:
        change, within = audit_spectra.change(self.before, self.after, self.vectors)
        known = math.isfinite(within)
        return {
            "block": self.block,
            "tokens": len(self.before),
            "spread": audit_spectra.spread(self.before, self.vectors),
            "change": change if known else [],
            "within": within if known else None,
        }

    def recovery(self, now: LanguageModel) -> list[float | None]:
        states = audit_spectra.states(now, self.records, self.block, max_length=self.max_length)
        found = audit_spectra.recovery(self.before, self.after, states, self.vectors)
        return [value if math.isfinite(value) else None for value in found]


def _named(model: str | Path | LanguageModel) -> str:
    return model.name if isinstance(model, LanguageModel) else str(model)


def _refuse_overlap(sides: Sides) -> None:
    """Raises BadInput where two sides hold the same records, naming their ids."""
    keys = {name: {record_key(record) for record in records} for name, records in sides.records.items()}
    for name, other, why in (
        ("forget", "holdout", "what was relearned says nothing of what comes back by itself"),
        ("forget", "retain", "the control would be the attack"),
        ("holdout", "retain", "the control would relearn what is asked for"),
    ):
        both = [r.id for r in sides.records.get(name, ()) if record_key(r) in keys.get(other, ())]
        if both:
            more = f" and {len(both) - LISTED} more" if len(both) > LISTED else ""
            raise BadInput(
                f"{len(both)} records of {name} also stand in {other} ({', '.join(both[:LISTED])}{more}): {why}. Take them "
                "out of one of the two."
            )


def _check_vocabulary(before: LanguageModel, name: str, model: LanguageModel) -> None:
    """Raises BadInput where two tokenizers give other numbers to the same text."""
    ours, theirs = before.tokenizer.get_vocab(), model.tokenizer.get_vocab()
    if ours == theirs:
        return
    different = min(ours.items() ^ theirs.items(), key=lambda pair: (pair[1], pair[0]))
    raise BadInput(
        f"before ({before.name}, {len(ours):,} tokens) and {name} ({model.name}, {len(theirs):,} tokens) have different "
        f"vocabularies, first at {different[0]!r}, number {different[1]}: their answers cannot be compared. Audit a model "
        "against the one that it was made from, with its own tokenizer."
    )


def _seconds(
    model: LanguageModel, records: Sequence[Record], questions: Questions, settings: Relearning
) -> tuple[float, float]:
    """Of one optimizer step, and of asking all questions once; the first pass of a process is slow and not counted."""
    batch = sorted(records, key=lambda record: len(record.completion) + len(record.prompt))[-settings.batch_size :]
    kept = subsample(questions.records, 16)
    chosen = [questions.chosen[record.id] for record in kept if record.id in questions.chosen]
    few = Questions(kept, chosen, max_length=settings.max_length)
    once = settings.model_copy(update={"epochs": 2})
    times = []
    few.scores(model)
    relearn(model, batch, once, epochs=1)
    for work in (lambda: relearn(model, batch, once), lambda: few.scores(model)):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times[0] / 2, times[1] * len(questions) / max(len(few), 1)
