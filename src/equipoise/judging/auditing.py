"""The work of the job: read, planned, searched, stored.

Every call is in the folder's record as soon as it is answered, so that the same command goes on after a kill, asks nothing
twice, and can be replayed offline.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from equipoise.chat.client import resolve
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import sha256_file
from equipoise.core.job import Request
from equipoise.core.progress import is_quiet
from equipoise.core.terminal import say
from equipoise.judging.biases import read_biases, seed_biases
from equipoise.judging.biasscope import BiasScopeSettings, biasscope, start
from equipoise.judging.casting import RULES, Casting
from equipoise.judging.evidence import Evidence
from equipoise.judging.pairs import Pair, divide, read_pairs
from equipoise.judging.planning import planned
from equipoise.judging.result import AuditPlan, JudgeAudit

SHARES = (0.25, 0.375, 0.375)  # of the questions, for discovery, selection and report


@dataclass(eq=False)
class Auditing(Request):
    """A request to audit, read and found right. parts: discovery, selection and report. source: of what is measured on."""

    casting: Casting
    parts: Sequence[Sequence[Pair]]
    left_out: Sequence[str]
    source: str
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]
    evidence: Evidence | None = None

    @classmethod
    def read(cls, asked: SimpleNamespace) -> "Auditing":
        """asked: the options of the job. Raises BadInput for a wrong request."""
        settings = BiasScopeSettings(
            rounds=asked.rounds,
            candidates=asked.candidates,
            rule=asked.rule,
            alpha=asked.alpha,
            explain=not asked.without_explanation,
            seed=asked.seed,
        )
        library = seed_biases() if asked.biases is None else read_biases(asked.biases)
        casting = Casting(asked, library, settings)
        parts, left_out, inputs = _divided(asked)
        for role, model in (("the judge", asked.judge), ("the teacher", asked.teacher)):
            if isinstance(model, str) and model != RULES:
                inputs[role] = resolve(model)[0]  # of a model on this machine it tells the content
        inputs |= {f"the filter {name}": full for name in casting.filters if (full := resolve(name)[0]) != name}
        read = {"the rubric": asked.rubric, "the library of biases": asked.biases, "the record": asked.replay}
        inputs |= {what: sha256_file(path) for what, path in read.items() if path is not None}
        resolved = {
            name: _as_setting(getattr(asked, name)) for name in ("pairs", "test_pairs", "judge_args", "teacher_args")
        }
        source = str(resolved["test_pairs"] or resolved["pairs"])
        return cls(casting, parts, left_out, source, inputs, resolved)

    def plan(self) -> AuditPlan:
        with self.casting.open(None):
            return self._planned()

    def _planned(self) -> AuditPlan:
        return planned(self.parts, self.left_out, self.casting)

    def work(self, folder: Path | None) -> JudgeAudit:
        with self.casting.open(folder) as cast:
            if not is_quiet() and (announcement := self._planned().announced()):
                say(announcement)
            discovery, selection, report = self.parts
            how = {"library": self.casting.library, "settings": self.casting.settings}
            audit = start(cast.judge, cast.teacher, selection, report, **how)
            self.evidence = evidence = Evidence(audit, cast, discovery, self.left_out, self.source)
            biasscope(cast.judge, cast.teacher, *self.parts, audit=audit)
            if not any(effect.pairs for effect in audit.screened.values()):
                why = evidence.result().why or f"{cast.teacher.name} gave no rewrite that could be compared"
                raise WorkFailed(
                    f"Not one of {len(audit.screened)} biases of {cast.judge.name} could be measured: {why}."
                )
            evidence.make_sets(length_control=self.casting.asked.length_control)
            if folder is not None:
                evidence.store(folder)
            return evidence.result()

    def partial(self, folder: Path) -> JudgeAudit | None:
        if self.evidence is None:
            return None
        self.evidence.store(folder)
        return self.evidence.result()


def _divided(asked: SimpleNamespace) -> tuple[list[list[Pair]], list[str], dict[str, str]]:
    """Discovery, selection and report; what was left out; digests of the files that were read."""
    left_out: list[str] = []
    digests: dict[str, str] = {}

    def read(source: Path | Sequence[Pair], what: str) -> list[Pair]:
        if isinstance(source, Path):
            pairs = read_pairs(source, limit=asked.limit, left_out=left_out)
            digests[what] = sha256_file(source)
            return pairs
        if not all(isinstance(pair, Pair) for pair in source) or len({pair.id for pair in source}) < len(source):
            raise BadInput(f"{what[0].upper()}{what[1:]}: expected a file, or `Pair`s with ids of their own.")
        return list(source)[: asked.limit]

    known = read(asked.pairs, "the pairs")
    if asked.test_pairs is None:
        return divide(known, SHARES, seed=asked.seed), left_out, digests
    tested = read(asked.test_pairs, "the test pairs")
    # Not their groups: of two files that number theirs alike, or of which one has none, these say nothing.
    if shared := {pair.question.strip() for pair in known} & {pair.question.strip() for pair in tested}:
        raise BadInput(
            f"{len(shared)} questions are in both files; a bias must be measured on questions that it was not found on."
        )
    return [known, *divide(tested, (0.5, 0.5), seed=asked.seed)], left_out, digests


def _as_setting(value: Any) -> Any:
    """Pairs and arguments as settings: pairs in memory by their number, arguments that are no JSON values by their type."""
    if value is None or isinstance(value, Path):
        return value
    if not isinstance(value, dict):
        return f"{len(value)} pairs"
    return json.loads(json.dumps(value, default=lambda other: type(other).__name__))
