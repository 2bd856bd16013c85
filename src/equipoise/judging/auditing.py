"""The work of the job. Every call is in the folder's record as soon as it is answered, so that the same command goes on
after a kill, asks nothing twice, and can be replayed offline.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from equipoise.chat.account import Budget
from equipoise.chat.client import resolve
from equipoise.chat.record import Record
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import sha256_file
from equipoise.core.job import Request
from equipoise.core.progress import is_quiet
from equipoise.core.terminal import say
from equipoise.judging.biases import Bias, read_biases, seed_biases
from equipoise.judging.biasscope import Settings, biasscope, start
from equipoise.judging.casting import RULES, Casting, stored_arguments
from equipoise.judging.evidence import Evidence
from equipoise.judging.judges import pairwise_template
from equipoise.judging.pairs import Pair, divide, read_pairs
from equipoise.judging.planning import planned
from equipoise.judging.result import AuditPlan, JudgeAudit
from equipoise.judging.roles import Judge, Teacher

SHARES = (0.25, 0.375, 0.375)  # of the questions, for discovery, selection and report
PairsLike = str | Path | Sequence[Pair]


@dataclass(eq=False)
class Auditing(Request):
    """A request to audit, read and found right. parts: discovery, selection and report. source: of what is measured on."""

    casting: Casting
    parts: Sequence[Sequence[Pair]]
    left_out: Sequence[str]
    source: str
    library: Sequence[Bias]
    settings: Settings
    length_control: bool
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]
    evidence: Evidence | None = None

    @classmethod
    def read(
        cls,
        judge: str | Judge,
        teacher: str | Teacher,
        pairs: PairsLike,
        *,
        test_pairs: PairsLike | None,
        rubric: Path | None,
        biases: Path | None,
        filters: Sequence[str] | None,
        rounds: int,
        candidates: int | None,
        rule: Any,
        alpha: float,
        without_explanation: bool,
        seed: int,
        length_control: bool,
        debias: bool,
        limit: int | None,
        budget: str | Budget | None,
        prices: Mapping[str, tuple[float, ...]] | None,
        replay: Path | None,
        **how: Any,
    ) -> "Auditing":
        """Raises BadInput for a wrong request."""
        if (rubric is not None or debias) and how["judge_kind"] != "pairwise":
            raise BadInput(f"A rubric and debias are about a pairwise judge's prompt; this one is {how['judge_kind']}.")
        settings = Settings(
            rounds=rounds, candidates=candidates, rule=rule, alpha=alpha, explain=not without_explanation, seed=seed
        )
        library = seed_biases() if biases is None else read_biases(biases)
        casting = Casting(
            judge=judge,
            teacher=teacher,
            filters=filters or (),
            rubric=None if rubric is None else pairwise_template(rubric),
            warned=library if debias else (),
            reading=settings.reading,
            explain=settings.explain and rounds > 0,
            budget=Budget.parse(budget) if isinstance(budget, str) else budget,
            prices={model: (each[0], each[-2], each[-1]) for model, each in (prices or {}).items()},
            replay=None if replay is None else Record(replay, read_only=True),
            **how,
        )
        parts, left_out, inputs = _divided(pairs, test_pairs, limit, seed)
        for role, model in (("the judge", judge), ("the teacher", teacher)):
            if isinstance(model, str) and model != RULES:
                inputs[role] = resolve(model)[0]  # of a model on this machine it tells the content
        inputs |= {f"the filter {name}": full for name in casting.filters if (full := resolve(name)[0]) != name}
        for what, path in (("the rubric", rubric), ("the library of biases", biases), ("the record", replay)):
            if path is not None:
                inputs[what] = sha256_file(path)
        resolved = {"pairs": _told(pairs), "test_pairs": None if test_pairs is None else _told(test_pairs)}
        resolved |= {name: stored_arguments(how[name]) for name in ("judge_args", "teacher_args")}
        return cls(
            casting=casting,
            parts=parts,
            left_out=left_out,
            source=resolved["test_pairs"] or resolved["pairs"],
            library=library,
            settings=settings,
            length_control=length_control,
            inputs=inputs,
            resolved=resolved,
        )

    def plan(self) -> AuditPlan:
        with self.casting.open(None):
            return self._planned()

    def _planned(self) -> AuditPlan:
        return planned(
            self.parts, self.left_out, len(self.library), self.settings, self.casting, cut=self.length_control
        )

    def work(self, folder: Path | None) -> JudgeAudit:
        with self.casting.open(folder) as cast:
            if not is_quiet() and (told := self._planned().announced()):
                say(told)
            discovery, selection, report = self.parts
            audit = start(cast.judge, cast.teacher, selection, report, library=self.library, settings=self.settings)
            self.evidence = Evidence(audit, cast, discovery, self.left_out, self.source)
            biasscope(cast.judge, cast.teacher, *self.parts, audit=audit)
            if not any(effect.pairs for effect in audit.screened.values()):
                why = self.evidence.result().why or f"{cast.teacher.name} gave no rewrite that could be compared"
                raise WorkFailed(
                    f"Not one of {len(audit.screened)} biases of {cast.judge.name} could be measured: {why}."
                )
            self.evidence.make_sets(length_control=self.length_control)
            if folder is not None:
                self.evidence.store(folder)
            return self.evidence.result()

    def partial(self, folder: Path) -> JudgeAudit | None:
        if self.evidence is None:
            return None
        self.evidence.store(folder)
        return self.evidence.result()


def _divided(
    pairs: PairsLike, test_pairs: PairsLike | None, limit: int | None, seed: int
) -> tuple[list[list[Pair]], list[str], dict[str, str]]:
    """Discovery, selection and report; what was left out; digests of the files."""
    left_out: list[str] = []
    digests: dict[str, str] = {}

    def read(source: PairsLike, what: str) -> list[Pair]:
        if isinstance(source, str | Path):
            found = read_pairs(source, limit=limit, left_out=left_out)
            digests[what] = sha256_file(Path(source))
            return found
        if not all(isinstance(pair, Pair) for pair in source) or len({pair.id for pair in source}) < len(source):
            raise BadInput(f"{what.capitalize()}: expected a file, or `Pair`s with ids of their own.")
        digests[what] = hashlib.sha256(json.dumps([asdict(pair) for pair in source]).encode()).hexdigest()
        return list(source)[:limit]

    known = read(pairs, "the pairs")
    if test_pairs is None:
        return divide(known, SHARES, seed=seed), left_out, digests
    tested = read(test_pairs, "the test pairs")
    shared = {pair.group for pair in known} & {pair.group for pair in tested}
    if shared:
        raise BadInput(
            f"{len(shared)} questions are in both files; a bias must be measured on questions that it was not found on."
        )
    return [known, *divide(tested, (0.5, 0.5), seed=seed)], left_out, digests


def _told(pairs: PairsLike) -> str:
    return str(pairs) if isinstance(pairs, str | Path) else f"{len(pairs)} pairs"
