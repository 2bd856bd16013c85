"""What a person sees of memory systems that were compared, and of one that was asked."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from equipoise.agents.memory_result import CEILINGS, CONTROLS, PROTOCOLS
from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.job import Page
from equipoise.core.marks import Marks, marks
from equipoise.core.numbers import number
from equipoise.core.shares import Bounded, Share, shown

if TYPE_CHECKING:
    from equipoise.agents.memory_result import CurvePoint, MemoryComparison, MemoryReply, ProtocolScores, SystemScores
    from equipoise.chat.grading import GraderReport

WHERE = "Look here first"
RIVALS = ("full", "recency", "bm25", "rag-turns", "rag-sessions")
BUILD = ("written_tokens", "embedded_tokens", "calls", "prompt_tokens", "generated_tokens")
TITLES = {"accuracy": "right answers", "recall": "questions whose evidence was all printed"}


def comparison_page(result: "MemoryComparison") -> Page:
    """Who finds and answers what, for how many tokens, and what a later moment changes."""
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    if result.licence:
        sections.append(parts.Note(result.licence, "Licence"))
    looks = marks({name: _kind(name) for name in result.order})
    sections.append(
        parts.Section(
            "What each memory is worth",
            (_scores(result), *_against(result), *_frontier(result, looks)),
            lead=f"Asked {_asked(result.protocols[0])}." if result.order else "",
        )
    )
    if result.order:
        sections.append(parts.Section("What a later moment changes", _protocols(result), lead=_EFFECTS))
        sections.append(parts.Section("What it costs", (_costs(result), *_usage(result))))
        sections.append(parts.Section("Age of evidence, size of the store", _curves(result, looks)))
    if any(first.kinds for _, _, first in _scored(result)):
        sections.append(parts.Section("By type of question", (_kinds(result),)))
    if result.graders:
        sections.append(parts.Section("How far the graders can be trusted", _graders(result), lead=_PLANTED))
    return Page("Memory systems, compared", result.headline(), sections, facts=_facts(result))


def reply_page(result: "MemoryReply") -> Page:
    """The answer, what it rests on, and how that was found."""
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    columns = ("turns", "session", "time", "as it was printed")
    evidence = parts.Table(
        "Items in the order in which they were printed",
        tuple(parts.Column(title) for title in columns),
        tuple((", ".join(each.turns) or each.id, each.session, each.time, each.text) for each in result.evidence),
    )
    answer = (parts.Text(result.answer),) if result.answer else ()
    sections.append(parts.Section("The answer and its evidence", (*answer, evidence)))
    if result.trace:
        sections.append(parts.Section("How it was found", (_trace(result.trace),)))
    costs = {"taking in": result.build, "asking": {"read_tokens": result.read_tokens, **result.query}}
    rows = [(phase, name.replace("_", " "), amount) for phase, each in costs.items() for name, amount in each.items()]
    rows += [("taking in", "seconds", result.seconds["build"]), ("asking", "seconds", result.seconds["read"])]
    columns = (parts.Column("phase"), parts.Column("what"), parts.Column("amount", True))
    table = parts.Table("Costs", columns, tuple((phase, what, number(amount)) for phase, what, amount in rows))
    sections.append(parts.Section("What it cost", (table,)))
    return Page(
        "A memory, asked",
        result.headline(),
        sections,
        facts=(
            ("question", result.question),
            ("asked at", result.now),
            ("history", result.names["history"]),
            ("sessions", f"{result.sessions} of {result.of}"),
            ("system", result.names["system"]),
            ("reader", result.names["reader"] or "none"),
            *((("embedder", result.names["embedder"]),) if result.names["embedder"] else ()),
        ),
    )


_EFFECTS = (
    "Online minus as-of is modification: items were changed before somebody asked about them. As-of minus offline is "
    "contamination: later items stand in the place of those that were meant. Of a memory that only appends, modification is "
    "0, question by question."
)
_PLANTED = (
    "Among the answers stood some that are known to be right and some that are known to be wrong, short and at more length. "
    "They are easy, so that a grader makes at least these errors."
)


def _asked(protocol: str) -> str:
    return {
        "online": "online: each question as soon as it can be asked, of what was said until then",
        "asof": "after the end, as of the moment of each question",
        "offline": "after the end, so that answers may come from what was said later",
    }[protocol]


def _kind(name: str) -> str:
    kinds = {**dict.fromkeys(RIVALS, "baseline"), **dict.fromkeys(CONTROLS, "control")}
    return {**kinds, **dict.fromkeys(CEILINGS, "reference")}.get(name, "method")


def _scored(result: "MemoryComparison") -> "list[tuple[str, SystemScores, ProtocolScores]]":
    """Systems with scores, the best first, each with those under the first protocol."""
    found = [(name, result.systems[name]) for name in result.order]
    return [(name, each, first) for name, each in found if (first := each.first) is not None]


def _cell(value: "Bounded | Share") -> parts.Cell:
    middle = value.rate if isinstance(value, Share) else value.value
    # six places: what differs from 0 by the rounding of a sum alone is 0
    between = "" if math.isnan(value.lower) else f"{number(round(value.lower, 6))} to {number(round(value.upper, 6))}"
    return parts.Cell(number(middle), between)


def _given(share: "Share") -> bool:
    return share.of > 0


def _scores(result: "MemoryComparison") -> parts.Table:
    scored = _scored(result)
    shares: dict[str, Any] = {
        "all evidence": lambda first: first.recall,
        "share of evidence": lambda first: first.evidence,
        "right": lambda first: first.accuracy,
        "choice": lambda first: first.choice,
        "time": lambda first: first.times,
        "time within 10 min": lambda first: first.near_times,
        "F1": lambda first: first.f1,
    }
    used = {title: of for title, of in shares.items() if any(_given(of(first)) for _, _, first in scored)}
    guessed = "choice" in used
    columns = [parts.Column("system"), parts.Column("tokens read", True), parts.Column("items", True)]
    columns += [parts.Column(title, True) for title in used]
    columns += [parts.Column("choice without luck", True)] if guessed else []
    columns += [parts.Column("words answered", True)] if "right" in used else []
    rows = []
    for name, each, first in scored:
        row: list[Any] = [parts.Cell(name, "compulsory rival, added" if each.added else "")]
        row += [round(first.read_tokens), round(first.printed, 1)]
        row += [_cell(of(first)) for of in used.values()]
        row += [_cell(first.corrected)] if guessed else []
        row += [number(first.words)] if "right" in used else []
        rows.append(tuple(row))
    rows += [
        (parts.Cell(name, "no scores"), *([None] * (len(columns) - 1)))
        for name, each in result.systems.items()
        if each.first is None
    ]
    known = " of those with known evidence" if result.measure == "recall" else ""
    limit = "" if result.context_tokens is None else f", and of {result.context_tokens:,} tokens"
    return parts.Table(
        f"{result.questions:,} questions; 95 % intervals over {result.clusters:,} {result.clustered}{known}",
        tuple(columns),
        tuple(rows),
        note=(
            f"At most {result.k} items are found for a question{limit}; full and oracle have no such number, notes prints "
            "the notes that are linked to those as well, and a memory of one's own is told the number; tokens and items are "
            "means. Tokens are words between blanks, counted alike for all; evidence is counted by the ids of turns, for "
            f"{result.with_evidence:,} questions: a session that is named as evidence counts when any of its turns was "
            "printed, and a turn when an item is made of it, whose words may still leave out what was asked for."
        ),
    )


def _against(result: "MemoryComparison") -> list[parts.Part]:
    rivals = list(dict.fromkeys(rival for _, each, _ in _scored(result) for rival in each.against))
    figures = []
    for rival in rivals:
        rows = [
            plots.ChartRow(name, value.value, value.lower, value.upper)
            for name, each, _ in _scored(result)
            if (value := each.against.get(rival)) is not None and not math.isnan(value.value)
        ]
        if rows:
            chart = plots.intervals(
                f"Against {rival}, on the same questions",
                rows,
                x=plots.Axis(f"difference in {TITLES[result.measure]}"),
                uprights=[plots.Upright("no better", 0.0)],
                sides=(rival, "the system"),
            )
            figures.append(parts.Figure(chart))
    return [parts.Grid(tuple(figures))] if len(figures) > 1 else list(figures)


def _frontier(result: "MemoryComparison", looks: tuple[Marks, ...]) -> list[parts.Part]:
    points = [
        plots.Point(name, first.read_tokens, share.rate, y_interval=(share.lower, share.upper))
        for name, _, first in _scored(result)
        if not math.isnan((share := result.measured(name)).rate)
    ]
    if not points:
        return []
    chart = plots.frontier(
        f"{TITLES[result.measure].capitalize()}, by what is read",
        looks,
        points,
        x=plots.Axis("tokens read, a question", better="lower", log=True),
        y=plots.Axis(f"share of {TITLES[result.measure]}", better="higher", share=True),
    )
    return [parts.Figure(chart)]


def _protocols(result: "MemoryComparison") -> tuple[parts.Part, ...]:
    names = result.protocols
    three = len(names) == len(PROTOCOLS)
    offline = "offline" in names
    columns = [parts.Column("system"), *(parts.Column(f"{PROTOCOLS[name]}", True) for name in names)]
    columns += [parts.Column("modification", True), parts.Column("contamination", True)] if three else []
    columns += [parts.Column("late items", True), parts.Column("AUROC of late items", True)] if offline else []
    rows = []
    for name, each, _ in _scored(result):
        row: list[Any] = [name]
        row += [_cell(result.share_of(each.protocols[p])) if p in each.protocols else "not possible" for p in names]
        row += [_signed(each.modification), _signed(each.contamination)] if three else []
        if offline and each.contaminated is not None:
            found = each.contaminated
            within = "" if math.isnan(found.within) else f"{number(found.within)} within quarters"
            row += [number(found.later), parts.Cell(shown(found.overall), within)]
        rows.append(tuple(row))
    table = parts.Table(
        f"{TITLES[result.measure].capitalize()}, by protocol",
        tuple(columns),
        tuple(rows),
        note=(
            "Late items changed after the question was asked. An AUROC below 0.5 says that answers are wrong where there "
            "are more of them; bounds are given from 50 clusters on."
            if offline
            else ""
        ),
    )
    return (table,)


def _signed(value: "Bounded") -> parts.Cell:
    middle, lower, upper = (number(each, signed=each != 0) for each in (value.value, value.lower, value.upper))
    return parts.Cell(middle, "" if math.isnan(value.lower) else f"{lower} to {upper}")


def _costs(result: "MemoryComparison") -> parts.Table:
    scored = _scored(result)
    build = [name for name in BUILD if any(name in each.build for _, each, _ in scored)]
    asked = [name for name in BUILD if any(name in each.query for _, each, _ in scored)]
    columns = [parts.Column("system")]
    columns += [parts.Column(f"built: {_words(name)}", True) for name in build]
    columns += [parts.Column("built: time", True, "s")]
    columns += [
        parts.Column("asked: tokens read", True),
        *(parts.Column(f"asked: {_words(name)}", True) for name in asked),
    ]
    columns += [parts.Column("asked: time", True, "s")]
    rows = [
        (
            name,
            *(each.build.get(amount, 0) for amount in build),
            each.seconds["build"],
            each.query.get("read_tokens", 0),
            *(each.query.get(amount, 0) for amount in asked),
            each.seconds["read"],
        )
        for name, each, _ in scored
    ]
    return parts.Table(
        "Building the memory, once, and asking it all questions",
        tuple(columns),
        tuple(rows),
        note=(
            f"Over {result.sessions:,} sessions, and over {result.questions:,} questions under one protocol. Times are of "
            "this machine, as busy as it was, with the reader's."
        ),
    )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _usage(result: "MemoryComparison") -> list[parts.Part]:
    if not result.usage:
        return []
    rows = [
        (row["model"], row["phase"], row["calls"], row["prompt_tokens"], row["generated_tokens"])
        for row in result.usage
    ]
    columns = (parts.Column("model"), parts.Column("for"))
    columns += tuple(parts.Column(title, True) for title in ("calls", "tokens read", "tokens written"))
    return [parts.Table("Calls of models, of all attempts", columns, tuple(rows))]


def _curves(result: "MemoryComparison", looks: tuple[Marks, ...]) -> tuple[parts.Part, ...]:
    found: list[parts.Part] = []
    axes = {"age": "days since the newest evidence", "store": "turns that the memory had taken in"}
    for curve, title in axes.items():
        points = [
            plots.Point(name, each.at, each.share.rate, y_interval=(each.share.lower, each.share.upper))
            for name, scores, _ in _scored(result)
            for each in _points(scores, curve)
            if not math.isnan(each.share.rate)
        ]
        if len({point.x for point in points}) > 1:
            chart = plots.paths(
                f"By {title}",
                looks,
                points,
                x=plots.Axis(title),
                y=plots.Axis(f"share of {TITLES[result.measure]}", better="higher", share=True),
            )
            found.append(parts.Figure(chart))
    if not found:
        return (parts.Text("All questions are of one age, and of one size of the store: there is no curve."),)
    return tuple(found)


def _points(scores: "SystemScores", curve: str) -> "tuple[CurvePoint, ...]":
    return scores.age if curve == "age" else scores.store


def _kinds(result: "MemoryComparison") -> parts.Table:
    scored = _scored(result)
    kinds = sorted({kind for _, _, first in scored for kind in first.kinds})
    sizes = {
        kind: max((share.of + share.missing) for _, _, first in scored for share in [_of(result, first.kinds[kind])])
        for kind in kinds
    }
    return parts.Table(
        f"{TITLES[result.measure].capitalize()}, by type",
        (parts.Column("system"), *(parts.Column(f"{kind} ({sizes[kind]:,})", True) for kind in kinds)),
        tuple((name, *(_cell(_of(result, first.kinds[kind])) for kind in kinds)) for name, _, first in scored),
    )


def _of(result: "MemoryComparison", scores: Any) -> "Share":
    return scores.accuracy if result.measure == "accuracy" else scores.recall


def _graders(result: "MemoryComparison") -> tuple[parts.Part, ...]:
    columns = [parts.Column("grader"), parts.Column("accepted", True), parts.Column("behind that", True)]
    columns += [parts.Column(f"errors on {kind}", True) for kind in _planted(result.graders)]
    columns += [
        parts.Column("unreadable", True),
        parts.Column("not asked", True),
        parts.Column("goes with length", True),
    ]
    rows = []
    for each in result.graders:
        kinds = {} if each.audit is None else each.audit.kinds
        row = [each.grader, _cell(each.accepted), "" if each.audit is None else _cell(each.audit.corrected)]
        row += [_cell(kinds[kind]) if kind in kinds else "" for kind in _planted(result.graders)]
        rows.append((*row, each.invalid, each.unasked, _cell(each.length)))
    table = parts.Table(
        "Graders over the answers of all systems and protocols, equal answers once",
        tuple(columns),
        tuple(rows),
        note=(
            "The first decides. Behind that: the share that is right, had its errors on planted answers been those on real "
            "ones. Goes with length: correlation of its credit with the logarithm of the number of words."
        ),
    )
    agreed = [
        (" and ".join(each.graders), _cell(each.same), _cell(each.kappa), each.disagreed, _cell(each.longer))
        for each in result.agreement
    ]
    titles = ("graders", "same", "kappa", "differ in", "the first prefers longer")
    pairs = parts.Table(
        "How far they agree", tuple(parts.Column(each, each != "graders") for each in titles), tuple(agreed)
    )
    return (table, pairs) if agreed else (table,)


def _planted(graders: "tuple[GraderReport, ...]") -> list[str]:
    return list(dict.fromkeys(kind for each in graders if each.audit is not None for kind in each.audit.kinds))


def _trace(trace: tuple[Mapping[str, Any], ...]) -> parts.Table:
    names = list(dict.fromkeys(name for step in trace for name in step))
    numeric = {name: all(isinstance(step.get(name), int | float | None) for step in trace) for name in names}
    return parts.Table(
        "Decisions, in their order",
        tuple(parts.Column(_words(name), numeric[name]) for name in names),
        tuple(tuple(_told(step.get(name)) for name in names) for step in trace),
    )


def _told(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value or ""
    return number(value) if isinstance(value, int | float) else str(value)


def _facts(result: "MemoryComparison") -> tuple[tuple[str, str], ...]:
    facts = [
        ("data", result.names["data"]),
        ("histories", f"{result.histories:,}, {result.sessions:,} sessions, {result.turns:,} turns"),
        ("questions", f"{result.questions:,}, {result.with_evidence:,} with known evidence"),
        ("reader", result.names["reader"] or "none: evidence is looked for, and nothing is answered"),
    ]
    facts += [(name, result.names[name]) for name in ("extractor", "graders") if result.names[name]]
    facts += [("embedder", result.names["embedder"]), ("calls", f"{result.calls:,}")]
    return tuple(facts)
