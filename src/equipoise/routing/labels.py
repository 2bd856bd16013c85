"""Labels: prompts with the quality of a weak and of a strong model's answer, as `route label` writes them.

    {"id": "a", "prompt": "12 + 7 =", "domain": "sums", "weak": 1.0, "strong": 1.0, "group": "a", ...}

weak and strong are any numbers, mostly 0 and 1, higher is better. Without `strong` every strong answer counts as right (1),
weak goes from 0 to 1, and what both miss is not seen. A row whose quality is null is left out and counted: an answer that
was not judged is none.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.core.errors import BadInput
from equipoise.core.files import sha256_file
from equipoise.data.problems import Problem, read_problems
from equipoise.data.text import encodable
from equipoise.routing.routerxbench import default_labels

Array = NDArray[np.float64]
Part = Literal["fit", "choose", "test"]
SHARES: Mapping[Part, float] = {"fit": 0.5, "choose": 0.25, "test": 0.25}
VERBALISED = (
    "{question}\n\nDo not answer the question. Say only how likely it is that your answer to it would be right. "
    'Reply with "Confidence:" and a number from 0 to 100, and nothing else.'
)
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
        least, most = min(*self.weak, *self.strong), max(*self.weak, *self.strong)
        if least < 0 or most > 1:
            said.append(
                f"Qualities go from {least:g} to {most:g}. Where they leave 0 to 1 nothing says from which one an answer is "
                "right, so that who is right is undefined there."
            )
        return said


def read_labels(
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    limit: int | None = None,
    fields: Mapping[str, str] | None = None,
) -> Labels:
    """Raises BadInput for what cannot be read, a quality that is no number, strong qualities of some rows alone.

    Also without strong qualities where a weak one lies beyond 0 to 1: there 1 is not the best.
    """
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
    beyond = next(((problem, weak) for problem, weak, _ in kept if assumed and not 0 <= weak <= 1), None)
    if beyond is not None:
        raise BadInput(
            f"{name}: {beyond[0].id!r} has the weak {beyond[1]:g}, and no row has a field 'strong': each would count as "
            "right, which is 1 on a scale from 0 to 1. Give strong, or divide weak by the most that an answer can have."
        )
    found = tuple(problem for problem, _, _ in kept)
    return Labels(
        problems=found,
        weak=tuple(weak for _, weak, _ in kept),
        strong=tuple(strong for _, _, strong in kept),
        domains=tuple(map(domain_of, found)),
        groups=tuple(groups_of(found)),
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


def as_row(problem: Problem) -> Any:
    """The prompt as JSON values, all turns of a conversation, which is read again as it was."""
    return [{"role": turn.role, "content": turn.content} for turn in problem.messages] or problem.prompt


def domain_of(problem: Problem) -> str:
    """The domain of a prompt, "all" where none is named; 0 is a name."""
    name = problem.columns.get("domain")
    return "all" if name is None or name == "" else encodable(str(name))


def groups_of(problems: Sequence[Problem]) -> list[str]:
    """The cluster of each prompt: its group, or the first prompt that reads the same, since a log holds some many times."""
    first: dict[Any, str] = {}
    return [problem.group or f"prompt {first.setdefault(problem.asked, problem.id)}" for problem in problems]


def tested(labels: Labels) -> Labels:
    """Of the scores of a fit the rows that were tested: on the others the fit has seen the labels.

    Raises BadInput where these others are all that there is.
    """
    parts = [problem.columns.get("part") for problem in labels.problems]
    if "test" not in parts:
        if "fit" in parts or "choose" in parts:
            raise BadInput(
                f"{labels.name}: its rows are those that a fit has learnt or chosen from: give those to test."
            )
        return labels
    kept = [place for place, part in enumerate(parts) if part == "test"]

    def some(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values[place] for place in kept)

    return Labels(
        problems=some(labels.problems),
        weak=some(labels.weak),
        strong=some(labels.strong),
        domains=some(labels.domains),
        groups=some(labels.groups),
        unjudged=labels.unjudged,
        assumed=labels.assumed,
        name=labels.name,
        digest=labels.digest,
    )


def scores_of(labels: Labels) -> dict[str, Array]:
    """The scores that every row holds. Raises BadInput for one that is no number, or in some rows alone."""
    found = [problem.columns.get("scores") for problem in labels.problems]
    if all(each is None for each in found):
        return {}
    names: set[str] = set()
    for problem, each in zip(labels.problems, found, strict=True):
        if not isinstance(each, Mapping) or not all(isinstance(value, int | float) for value in each.values()):
            raise BadInput(
                f"{labels.name}: {problem.id!r} has the scores {each!r:.80}, expected an object of numbers by name."
            )
        names |= each.keys()
    table: dict[str, Array] = {}
    for name in sorted(names):
        lacking = next((p.id for p, each in zip(labels.problems, found, strict=True) if name not in (each or {})), None)
        if lacking is not None:
            raise BadInput(f"{labels.name}: {lacking!r} has no score {name!r}, and others have: give all, or none.")
        values = np.array([float((each or {})[name]) for each in found])
        if not np.isfinite(values).all():
            raise BadInput(
                f"{labels.name}: the score {name!r} of {labels.problems[int(np.argmin(np.isfinite(values)))].id!r} "
                "is not finite."
            )
        table[name] = values
    return table


def solved_of(labels: Labels) -> Array:
    """1 where weak answered well, [n]: the rows' own `solved`, else as `routerxbench.default_labels` has it.

    Raises BadInput for a `solved` that is neither 0 nor 1, or in some rows alone.
    """
    given = [problem.columns.get("solved") for problem in labels.problems]
    if all(each is None for each in given):
        return default_labels(np.array(labels.weak), np.array(labels.strong))
    found = np.array([_quality(labels.name, problem, "solved") for problem in labels.problems])
    wrong = np.flatnonzero(~np.isin(found, (0.0, 1.0)))
    if len(wrong):
        raise BadInput(
            f"{labels.name}: {labels.problems[wrong[0]].id!r} has the solved {given[wrong[0]]!r}, expected 0 or 1 in every "
            "row: correct it, or leave the field out."
        )
    return found


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
