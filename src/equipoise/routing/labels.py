"""Labels: prompts with the quality of a weak and of a strong model's answer, as `route label` writes them.

    {"id": "a", "prompt": "12 + 7 =", "domain": "sums", "weak": 1.0, "strong": 1.0, "group": "a", ...}

weak and strong are any numbers, mostly 0 and 1, higher is better. Without `strong` every strong answer counts as right (1),
and what both miss is not seen. A row whose quality is null is left out and counted: an answer that was not judged is none.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from equipoise.core.errors import BadInput
from equipoise.core.files import sha256_file
from equipoise.data.problems import Problem, read_problems

Part = Literal["fit", "choose", "test"]
SHARES: Mapping[Part, float] = {"fit": 0.5, "choose": 0.25, "test": 0.25}
FEWEST = 60  # groups of prompts that can be divided so


@dataclass(frozen=True)
class Labels:
    """problems: the prompts. weak, strong: [n]. domains, groups: of each prompt. unjudged: rows that were left out.

    assumed: whether no strong qualities were known. name, digest: of what was read.
    """

    problems: tuple[Problem, ...]
    weak: tuple[float, ...]
    strong: tuple[float, ...]
    domains: tuple[str, ...]
    groups: tuple[str, ...]
    unjudged: int
    assumed: bool
    name: str
    digest: str

    def notes(self) -> list[str]:
        """What a reader of any result must know: a sentence each."""
        said = []
        if self.unjudged:
            said.append(f"{self.unjudged} prompts have an answer without a judgement, and were left out.")
        if self.assumed:
            said.append(
                "No qualities of strong answers were given: each counts as right, so that escalation never fails."
            )
        return said


def read_labels(
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    limit: int | None = None,
    fields: Mapping[str, str] | None = None,
) -> Labels:
    """Raises BadInput for what cannot be read, a quality that is no number, strong qualities of some rows alone."""
    rows = source if isinstance(source, str | Path) else list(source)
    problems = read_problems(rows, limit=limit, fields=fields, gold_needed=False)
    name = str(source) if isinstance(source, str | Path) else f"{len(problems)} labels"
    given = [problem.columns.get("strong", ...) for problem in problems]
    assumed = all(each is ... for each in given)
    if not assumed and any(each is ... for each in given):
        raise BadInput(f"{name}: {problems[given.index(...)].id!r} has no field 'strong', and others have: label all.")
    kept = []
    for problem in problems:
        weak = _quality(name, problem, "weak")
        strong = 1.0 if assumed else _quality(name, problem, "strong")
        if not math.isnan(weak + strong):
            kept.append((problem, weak, strong))
    if not kept:
        raise BadInput(f"{name}: no row has a quality of both answers: label anew.")
    found = tuple(problem for problem, _, _ in kept)
    return Labels(
        problems=found,
        weak=tuple(weak for _, weak, _ in kept),
        strong=tuple(strong for _, _, strong in kept),
        domains=tuple(str(problem.columns.get("domain") or "all") for problem in found),
        groups=tuple(problem.group or f"prompt {problem.id}" for problem in found),
        unjudged=len(problems) - len(kept),
        assumed=assumed,
        name=name,
        digest=sha256_file(Path(source)) if isinstance(source, str | Path) else "",
    )


def divide(groups: Sequence[str], seed: int) -> list[Part]:
    """The part of each prompt, groups whole, in the shares of SHARES; a function of the names and the seed alone.

    fit: what probes learn from. choose: which is best, its calibration and its threshold. test: what is reported.
    Raises BadInput for fewer than FEWEST groups.
    """
    names = sorted(set(groups), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    if len(names) < FEWEST:
        raise BadInput(
            f"{len(names)} prompts (or groups of them) are too few to fit, choose and test a router on different ones: give "
            f"at least {FEWEST}."
        )
    part_of: dict[str, Part] = {}
    end = 0.0
    first = 0
    for part, share in SHARES.items():
        end += share
        last = round(end * len(names))
        part_of |= dict.fromkeys(names[first:last], part)
        first = last
    return [part_of[group] for group in groups]


def asked(problem: Problem) -> Any:
    """The prompt as a model reads it: its turns, or its text."""
    return problem.messages or problem.prompt


def _quality(name: str, problem: Problem, field: str) -> float:
    if field not in problem.columns:
        raise BadInput(
            f"{name}: {problem.id!r} has no field {field!r} (found: {', '.join(problem.columns)}): label it with `equipoise "
            "route label`."
        )
    value = problem.columns[field]
    if value is None:
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.inf
    if not math.isfinite(number):
        raise BadInput(
            f"{name}: {problem.id!r} has the {field} {value!r}, expected a number, or null for no judgement."
        )
    return number
