"""A judgement in words: sentences, counts, the Markdown for a pull request, and the published verdicts.

One wording for every place that reports: the page, the terminal, `report.md` and `study list` say the same.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from equipoise.core import numbers
from equipoise.core.columns import column
from equipoise.core.cost import total
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import read_regular, write_atomic
from equipoise.core.options import closed
from equipoise.study.claims import Between, Both, Cheaper, Claim, ClaimComparison, Matched, Statistic, Test

if TYPE_CHECKING:
    from equipoise.study.declare import Outcome, Study
    from equipoise.study.judging import ClaimVerdict, Effect, Judgement, Summary
    from equipoise.study.results import Results

State = Literal["supported", "refuted", "undecided", "untested"]
STATES: tuple[State, ...] = get_args(State)
Simple = ClaimComparison | Cheaper | Between | Statistic | Matched


def counts(judgement: "Judgement") -> dict[State, int]:
    """How many claims have each verdict, states without any left out; exploratory claims do not count."""
    by_state = Counter(verdict.state for verdict in judgement.verdicts if counted(verdict))
    return {state: by_state[state] for state in STATES if by_state[state]}


def counted(verdict: "ClaimVerdict") -> bool:
    """Whether a claim takes part in the tally: it has a verdict, or says why it has none."""
    return verdict.claim.judged or verdict.claim.test is None


@closed
def tally(by_state: Mapping[State, int]) -> str:
    """ "1 supported, 2 undecided", or "no claims"."""
    return ", ".join(f"{n} {state}" for state, n in by_state.items()) or "no claims"


def tests(claim: Claim) -> list[Simple]:
    """The simple tests of a claim, those inside `both` one by one; none for an untested claim."""

    def flat(test: Test | None) -> Iterator[Simple]:
        if isinstance(test, Both):
            for part in test.tests:
                yield from flat(part)
        elif test is not None:
            yield test

    return list(flat(claim.test))


def about(study: "Study") -> str:
    """What is weighed, and what the method trades."""
    return " ".join(filter(None, (study.summary, f"What it trades: {study.trades}." if study.trades else "")))


def plural(n: int, word: str) -> str:
    """A count with its noun."""
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def percent(level: float) -> str:
    """A confidence level for a reader: 0.9833 is "98.3 %"."""
    return f"{100 * level:.1f}".rstrip("0").rstrip(".") + "\u00a0%"


def sentence(words: str) -> str:
    """Words as a sentence: a capital first, a full stop last, true minus signs, no percent sign alone on a line.

    A name such as `log_loss` at the start keeps its letter.
    """
    words = re.sub(r"(?<![\w.)\]])-(?=\d)", "−", words.strip().replace(" %", "\u00a0%"))
    first = words.split(" ", 1)[0]
    start = words if "_" in first or not words[:1].isalpha() else words[:1].upper() + words[1:]
    return start if start.endswith((".", "!", "?")) else f"{start}."


def effect_test(effect: "Effect", claim: Claim) -> Simple | None:
    """The simple test of a claim that an effect measures; None where it is of none."""
    return next((test for test in tests(claim) if test == effect.test), None)


def states_effect(verdict: "ClaimVerdict") -> bool:
    """Whether the reason already gives the numbers of the one effect."""
    return len(verdict.effects) == 1 and "[" in verdict.reason


def effect_numbers(effect: "Effect", test: Test | None = None) -> str:
    """Estimate, interval, level, seeds and items of an effect; a cost as a factor."""
    if isinstance(test, Cheaper):
        middle, between = numbers.interval(*(math.exp(v) for v in (effect.estimate, effect.lower, effect.upper)))
        middle, unit = f"{middle} times less", ""
    else:
        middle, between = numbers.interval(effect.estimate, effect.lower, effect.upper, signed=True)
        unit = f" {effect.unit}" if effect.unit else ""
    size = plural(effect.seeds, "seed") + (f", {plural(effect.items, 'item')}" if effect.items else "")
    return f"{middle}{unit} ({percent(effect.level)} interval {between}; {size})"


def margin_sentence(effect: "Effect", test: Test | None) -> str:
    """The margin that the effect is held against, and why it is that one; empty without a margin."""
    reason = getattr(test, "reason", "").rstrip(".")
    if isinstance(test, Cheaper):
        held = f"Held against a factor of {test.by:g}" if test.by > 1 else ""
    else:
        held = f"Margin {effect.margin:g}" if math.isfinite(effect.margin) and effect.margin else ""
    return f"{held}: {reason}." if held and reason else f"{held}." if held else ""


def summary_values(summaries: Sequence["Summary"]) -> list[tuple[str, str, str]]:
    """Value, interval and "k of n" of the arms in one outcome, all to the same place so that a column can be compared.

    The place is that of the arm in the middle: one arm without spread would ask for six. Raises WorkFailed for a rate that
    its n cannot produce.
    """
    wanted = sorted(filter(None, (numbers.decimals(s.lower, s.upper) for s in summaries if s.seeds > 1)))
    places = wanted[len(wanted) // 2] if wanted else None
    values = column([s.estimate for s in summaries])[0] if places is None else None
    rows = []
    for i, s in enumerate(summaries):
        value, between = numbers.interval(s.estimate, s.lower, s.upper, places=places)
        counted_of = ""
        if math.isfinite(s.of) and s.of > 0 and not math.isnan(s.numerator):  # nan of n is undefined
            numbers.rate(s.numerator, s.of, what=f"{s.outcome} of {s.arm}")
            counted_of = f"{s.numerator:,.0f} of {s.of:,.0f}"
        rows.append((values[i] if values else value, _own_interval(s, between), counted_of))
    return rows


def _own_interval(summary: "Summary", between: str) -> str:
    """The interval of an arm's value; that of one seed tells nothing about another, and equal seeds have none."""
    if math.isnan(summary.estimate):
        return "undefined"
    if summary.seeds == 1:
        return "one seed"
    return between if math.isfinite(summary.lower) and math.isfinite(summary.upper) else "no spread"


class Level(NamedTuple):
    """Where the arms are compared at equal level: the outcome that is judged, the one held equal, and at what."""

    judged: str
    matched: str
    at: float

    @property
    def title(self) -> str:
        return f"{self.judged} where {self.matched} reaches {self.at:.4g}"


def reached(rows: Sequence["Summary"], ends: Sequence["Summary"]) -> dict[str, str]:
    """How many seeds each arm's value at a level rests on: "10", or "9 of 10" where others did not come to it."""
    complete = {(s.arm, s.outcome): s.seeds for s in ends}
    all_of = {s.arm: complete.get((s.arm, s.outcome), s.seeds) for s in rows}
    return {s.arm: str(s.seeds) if s.seeds >= all_of[s.arm] else f"{s.seeds} of {all_of[s.arm]}" for s in rows}


def markdown(
    study: "Study",
    results: "Results",
    judgement: "Judgement",
    end: Sequence["Summary"],
    levels: Mapping[Level, Sequence["Summary"]],
) -> str:
    """The report in short, for a pull request: verdicts, outcomes at the end of the path and at equal levels, command."""
    lines = [f"# {_md(study.name)}: {_md(study.trades)}", ""]
    lines += [f"{_md(study.paper)}. {tally(counts(judgement)).capitalize()}.", ""]
    if study.scale:
        lines += [f"**Scale:** {_md(study.scale)}", ""]
    if any(counted(verdict) and verdict.preview for verdict in judgement.verdicts):
        lines += [f"> **Preview:** {preview_sentence(study, results)}", ""]
    if results.other_code:
        lines += ["> **Other code:** the runs are of another version than the claims, which may be younger.", ""]
    lines += ["| verdict | claim | effect | source |", "|---|---|---|---|"]
    for verdict in judgement.verdicts:
        state = verdict.state if counted(verdict) else "exploratory"
        effects = "<br>".join(
            _md(f"{e.label}: {effect_numbers(e, effect_test(e, verdict.claim))}") for e in verdict.effects
        )
        effects = effects or _md(verdict.reason)
        lines.append(f"| **{state}** | {_md(verdict.claim.text)} | {effects} | {_md(verdict.claim.source)} |")
    lines.append("")
    for verdict in judgement.verdicts:
        if verdict.effects:
            lines.append(f"- {_md(verdict.claim.text.rstrip('.'))}: {_md(sentence(verdict.reason))}")
    for outcome in study.outcomes:
        rows = [s for s in end if s.outcome == outcome.name]
        if not rows:
            continue
        places = {place_words(s.at) for s in rows}
        where = f" ({_md(places.pop())})" if len(places) == 1 and places != {""} else ""
        lines += ["", f"**{_md(outcome_title(outcome))}**, end of the path{where}", ""]
        lines += ["| arm | value | 95 % interval | count | missing | seeds |", "|---|---:|---:|---:|---:|---:|"]
        conditions = conditions_of(rows)
        for s, condition, (value, between, of) in zip(rows, conditions, summary_values(rows), strict=True):
            arm = f"{s.arm}, {condition}" if len(set(conditions)) > 1 else s.arm
            lines.append(f"| {_md(arm)} | {value} | {between} | {of or '–'} | {s.missing} | {s.seeds} |")
    for level, rows in levels.items():
        seeds = reached(rows, end)
        lines += ["", f"**{_md(level.title)}**, arms of the claims that hold it equal", ""]
        lines += ["| arm | value | 95 % interval | seeds |", "|---|---:|---:|---:|"]
        for s, (value, between, _) in zip(rows, summary_values(rows), strict=True):
            lines.append(f"| {_md(s.arm)} | {value} | {between} | {seeds[s.arm]} |")
        if any(" of " in count for count in seeds.values()):
            lines += [
                "",
                "Only seeds in which both arms of a claim came to the level: chosen by their fate, they decide nothing.",
            ]
    made = str(results.environment.get("command", ""))
    lines += ["", *([f"Made by `{made.replace('`', '')}`."] if made else []), ""]
    return "\n".join(lines)


def place_words(stored: str) -> str:
    """A place or a condition, canonical JSON, in words, the split left out: network plain, radius 0.6."""
    content = json.loads(stored) if stored else {}
    return words({key: value for key, value in (content or {}).items() if key != "split"})


def conditions_of(rows: Sequence["Summary"]) -> list[str]:
    """What each value was measured under, in words; the split among them where the values are of several splits."""
    wheres = [json.loads(s.where) if s.where else {} for s in rows]
    if all(where.get("split") == wheres[0].get("split") for where in wheres):
        return [place_words(s.where) for s in rows]
    return [words(where) for where in wheres]


def words(conditions: Mapping[str, Any]) -> str:
    """Conditions or a place in words: network plain, radius 0.6."""
    return ", ".join(f"{key} {value}" for key, value in conditions.items())


def preview_sentence(study: "Study", results: "Results") -> str:
    """Which arms have not completed all declared seeds; empty when none lacks one."""
    done = _declared_seeds(study, results, ("complete",))
    short = {arm: len(seeds) for arm, seeds in done.items() if len(seeds) < study.seeds}
    if not short:
        return ""
    if len(short) == len(done) and len(set(short.values())) == 1:
        have = f"{next(iter(short.values()))} of {study.seeds} seeds are complete."
    else:
        have = (
            "Not all seeds are complete: " + ", ".join(f"{arm} {n} of {study.seeds}" for arm, n in short.items()) + "."
        )
    return f"{have} No claim on these arms is decided before all are in."


def _declared_seeds(study: "Study", results: "Results", states: Collection[str]) -> dict[str, set[int]]:
    """Arm -> those of the declared seeds whose run, at the chosen setting, ended in one of these states."""
    seeds: dict[str, set[int]] = {arm.name: set() for arm in study.arms}
    for run in results.runs:
        chosen = run.role == "test" and run.point == results.chosen.get(run.arm, run.point)
        if chosen and run.state in states and run.seed in study.test_seeds():
            seeds.setdefault(run.arm, set()).add(run.seed)
    return seeds


def outcome_title(outcome: "Outcome") -> str:
    """Name, unit, good direction and chance level of an outcome."""
    arrow = {"lower": "lower is better ↓", "higher": "higher is better ↑"}[outcome.better]
    unit = f" ({outcome.unit})" if outcome.unit else ""
    chance = "" if outcome.chance is None else f", chance {outcome.chance:g}"
    return f"{outcome.name}{unit}, {arrow}{chance}"


def _md(text: str) -> str:
    """Text that stays text in Markdown, also inside a table."""
    flat = re.sub(r"[^\S\u00a0]+", " ", str(text)).strip()
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


# Published verdicts


def published_entry(study: "Study", results: "Results", judgement: "Judgement") -> dict[str, Any]:
    """What is published of one study: what it weighed, what recording it took, its claims; JSON, no dates."""
    return {
        "paper": study.paper,
        "trades": study.trades,
        "scale": study.scale,
        "options": study.options,
        "recorded": _recorded(results),
        "claims": published_claims(judgement),
    }


def published_claims(judgement: "Judgement") -> list[dict[str, Any]]:
    """Each claim with its verdict, effects, intervals and seeds, as JSON; undefined is null."""
    return [
        {
            "text": verdict.claim.text,
            "source": verdict.claim.source,
            "verdict": verdict.state if counted(verdict) else "exploratory",
            "preview": verdict.preview,
            "reason": verdict.reason,
            "effects": [
                {
                    "label": effect.label,
                    "unit": effect.unit,
                    "estimate": _json_number(effect.estimate),
                    "lower": _json_number(effect.lower),
                    "upper": _json_number(effect.upper),
                    "level": effect.level,
                    "margin": _json_number(effect.margin),
                    "seeds": effect.seeds,
                    "items": effect.items,
                }
                for effect in verdict.effects
            ],
        }
        for verdict in judgement.verdicts
    ]


def _recorded(results: "Results") -> dict[str, int]:
    """How many runs a study has, and the seconds that they need on one core, attempts that came to nothing left out."""
    roles = Counter(run.role for run in results.runs)
    everything = [*results.runs, *results.preparations]
    seconds = math.fsum(run.threads * total(run.cost.get("work", {})).get("seconds", 0.0) for run in everything)
    return {
        "core_seconds": round(seconds),
        "runs": roles["test"],
        "tuning_runs": roles["tuning"],
        "preparations": len(results.preparations),
    }


def recorded_words(recorded: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """What recording took, and with which options; `defaults`: the study's own."""
    seconds = recorded["core_seconds"] / 2  # of two cores, which is how recorded studies are counted
    time = f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"
    kinds = (("runs", "run"), ("tuning_runs", "tuning run"), ("preparations", "preparation"))
    parts = ", ".join(plural(recorded[name], word) for name, word in kinds if recorded[name])
    changed = {name: value for name, value in recorded["options"].items() if value != defaults.get(name)}
    return f"the recorded study took {time} of two cores: {parts}; {words(changed) or 'default options'}"


def publish(path: Path, study: "Study", results: "Results", judgement: "Judgement") -> Path:
    """Put this study's verdicts into the file at `path` in place of its earlier ones; those of other studies stay.

    Raises WorkFailed when not all declared seeds were run, or a claim lacks one since a run failed, or the runs are of
    another version of the code than the one that judges them; BadInput when `path` is no file of verdicts.
    """
    tried = _declared_seeds(study, results, ("complete", "failed", "gave up"))
    lacking = any(verdict.preview for verdict in judgement.verdicts)
    if lacking or any(len(seeds) < study.seeds for seeds in tried.values()):
        raise WorkFailed(
            f"Study {study.name!r} is a preview: {preview_sentence(study, results)} Only a run of all arms with all "
            f"{study.seeds} seeds is published: equipoise study run {study.name}"
        )
    if results.other_code:
        raise WorkFailed(
            f"The runs of study {study.name!r} were made by another version of the code (the study, equipoise, torch or "
            "transformers), so its claims may be younger than the results. Publish with that version, or make the runs "
            f"anew: equipoise study run {study.name}"
        )
    write_atomic(path, verdicts_json(published(path) | {study.name: published_entry(study, results, judgement)}))
    return path


def verdicts_json(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Published entries as they are stored: the same text for the same entries in any order."""
    return json.dumps(entries, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def gathered(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The entries of several files of verdicts. Raises BadInput for a study that stands in two, or is a preview."""
    entries: dict[str, dict[str, Any]] = {}
    for path in paths:
        for name, entry in published(path).items():
            if name in entries:
                raise BadInput(f"{path} holds verdicts of {name!r}, which another file holds already; keep one.")
            if any(claim.get("preview") for claim in entry["claims"]):
                raise BadInput(
                    f"{path} holds a preview of {name!r}; only verdicts of all declared seeds are published."
                )
            entries[name] = entry
    return entries


def published(path: Path) -> dict[str, dict[str, Any]]:
    """Study name -> what `published_entry` wrote; empty when nothing has been published. Raises BadInput otherwise."""
    try:
        entries = json.loads(read_regular(path).decode())
    except FileNotFoundError:
        return {}
    except (UnicodeDecodeError, ValueError) as error:
        raise BadInput(f"{path} is no file of published verdicts ({error}); restore it or remove it.") from error
    if not isinstance(entries, dict) or not all(isinstance(e, dict) and "claims" in e for e in entries.values()):
        raise BadInput(f"{path} is no file of published verdicts: expected study names with their claims.")
    return entries


def published_counts(entry: Mapping[str, Any]) -> dict[State, int]:
    """How many claims of a published study have each verdict."""
    by_state = Counter(claim["verdict"] for claim in entry["claims"])
    return {state: by_state[state] for state in STATES if by_state[state]}


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None
