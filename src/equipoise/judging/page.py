"""What a person sees of an audit: which biases hold and by how much, the flipped examples side by side, what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.core import page, plots
from equipoise.core.job import command_line
from equipoise.core.numbers import interval, number, rate
from equipoise.judging.validation import Effect, by_domain, detectable_increase

if TYPE_CHECKING:
    from equipoise.judging.biasscope import Bench
    from equipoise.judging.job import Found, JudgeAudit, _Task

EXAMPLES = 3  # shown of each bias that holds
CHARACTERS = 2500  # of a text that is shown


def report(
    task: _Task, result: JudgeAudit, settings: Mapping[str, Any], path: Path, final: Path, stopped: str = ""
) -> Path:
    """One self-contained page. stopped: why the audit ended early, "" when it did not."""
    holding = result.holding
    parts: list[page.Part] = []
    if stopped:
        parts.append(
            page.Note(
                f"The audit stopped before its end: {stopped} What was measured is below; nothing counts as confirmed yet.",
                "Not complete",
            )
        )
    parts.append(page.Section("What was found", (_summary(task, result), *_warnings(task, result), *_forest(result))))
    parts.append(page.Section("Every bias that was measured", (_measured(task, result),)))
    parts.append(page.Section("Position", (_position(result),)))
    for each in holding:
        parts.append(_evidence(task, each))
    if rest := _rewrites(task, result):
        parts.append(page.Section("Rewrites to look at", rest))
    parts.append(page.Section("Rounds of discovery", (_rounds(task),)))
    parts.append(page.Section("What to take away", _sets(task)))
    if task.account.rows():
        parts.append(page.Section("Calls and cost", (_cost(task),)))
    parts.append(page.Section("How to read this", (page.Bullets(_notes(task, result)),)))
    parts.append(page.Section("Settings", (page.Settings(settings),)))
    before = task.audit.selection.original() if task.audit.selection.asked else np.zeros((0, 2))
    facts = (
        ("judge", result.judge),
        ("teacher", result.teacher),
        ("pairs", f"{result.sizes[0]} to discover, {result.sizes[1]} to select, {result.sizes[2]} to report"),
        ("error on the selection part as it is", _share(int((before != 1).sum()), before.size)),
    )
    measured = sum(each.selection.pairs > 0 for each in result.biases)
    count = f"{len(holding)} of {measured} measured biases hold" if result.biases else "Nothing measured yet"
    text = page.job_page(
        f"What fools {result.judge}", f"{count}.", parts, command_line("audit judge", settings, final), facts=facts
    )
    return page.write_page(path, text)


def _detectable(task: _Task, result: JudgeAudit) -> float:
    """The increase that passes screening and confirmation four times in five, as often as verdicts turned here; about."""
    pairs = min(size for size in result.sizes[1:] if size)
    spreads = [e.selection.standard_error * math.sqrt(e.selection.pairs) for e in result.biases]
    spreads = [each for each in spreads if not math.isnan(each)]
    # Fewer than five pairs that turn, all one way, cannot pass the exact test at 0.05.
    spread = max(float(np.median(spreads)) if spreads else math.nan, math.sqrt(min(5 / pairs, 1.0)) / 2)
    tests = max(sum(each.report is not None for each in result.biases), 1)
    alpha, each_stage = task.audit.settings.alpha, math.sqrt(0.8)
    return max(detectable_increase(pairs, spread, tests=n, alpha=alpha, power=each_stage) for n in (1, tests))


def _summary(task: _Task, result: JudgeAudit) -> page.Part:
    if not result.complete:
        return page.Text("No bias is confirmed before the audit is complete.")
    if not result.holding:
        return page.Text(
            "No bias raises the judge's error beyond what chance explains. With these pairs an increase of about "
            f"{_points(_detectable(task, result))} would have been found four times in five; smaller ones may be there."
        )
    cards = []
    for each in result.holding:
        effect = each.effect
        _, between = _in_points(effect)
        cards.append(
            page.Card(
                page.Badge("supported", "holds"),
                f"{each.name}: {_points(effect.increase)} more errors",
                f"{between} points at 95 %, {effect.pairs} pairs in both orders"
                + ("" if math.isnan(effect.p_adjusted) else f", p = {number(effect.p_adjusted)} after Holm"),
                (page.Text(each.definition),),
            )
        )
    return page.Grid(tuple(cards))


def _warnings(task: _Task, result: JudgeAudit) -> list[page.Part]:
    """What else could explain the effects: rewriting itself, and rewrites that are the same for several biases."""
    parts: list[page.Part] = []
    placebo = result.placebo
    if placebo is not None:
        _, between = _in_points(placebo)
        told = f"The same answers in other words, with no bias: {_points(placebo.increase)} ({between})."
        if placebo.lower > 0:
            why = " So rewriting by this teacher fools the judge by itself; what exceeds it can be laid to a bias."
            parts.append(page.Note(told + why, "The placebo has an effect"))
        else:
            parts.append(page.Text(told))
    elif result.holding:
        parts.append(
            page.Text("This teacher gives no neutral rewrite, so what rewriting alone does is not known.", quiet=True)
        )
    bench = task.audit.report if task.audit.report.pairs else task.audit.selection
    texts = {each.name: bench.texts(task.audit.candidates[each.name].bias) for each in result.holding}
    names = list(texts)
    alike = [
        f"{one} and {other}"
        for i, one in enumerate(names)
        for other in names[i + 1 :]
        if 2 * sum(a is not None and a == b for a, b in zip(texts[one], texts[other], strict=True)) > len(bench.pairs)
    ]
    if alike:
        told = f"More than half of the rewrites are the same text for {'; '.join(alike[:5])}."
        parts.append(
            page.Note(f"{told} These are not different biases: the teacher did not tell them apart.", "Same rewrites")
        )
    return parts


def _rewrites(task: _Task, result: JudgeAudit) -> tuple[page.Part, ...]:
    """One rewrite of each bias that does not hold, so that the teacher can be judged as well."""
    bench = task.audit.selection
    shown: list[page.Part] = []
    for each in result.biases:
        if each.holds or not each.selection.pairs:
            continue
        texts = bench.texts(task.audit.candidates[each.name].bias)
        i = next(i for i, text in enumerate(texts) if text is not None)
        columns = (page.Column("the worse answer"), page.Column("rewritten"))
        cells = (_shown(bench.pairs[i].rejected), _shown(texts[i] or ""))
        shown.append(page.Details(f"{each.name}: {bench.pairs[i].id}", (page.Table("Answers", columns, (cells,)),)))
    return tuple(shown)


def _forest(result: JudgeAudit) -> list[page.Part]:
    rows = [
        plots.Row(each.name, 100 * each.effect.increase, 100 * each.effect.lower, 100 * each.effect.upper)
        for each in result.biases
        if not math.isnan(each.effect.lower)
    ]
    if not rows:
        return []
    chart = plots.intervals(
        "Increase of the judge's error",
        rows,
        x=plots.Axis("increase of the error, points", better="lower"),
        lines_at={"no effect": 0.0},
        note="Those that hold first. On the report part where a bias was measured there, else on the selection part. "
        "95 % intervals, clustered by question, each for itself.",
    )
    return [page.Figure(chart)]


def _measured(task: _Task, result: JudgeAudit) -> page.Table:
    published = task.audit.settings.rule == "published"
    rows = []
    for each in result.biases:
        if not each.selection.pairs:
            badge = page.Badge("untested", "not rewritten")
        elif each.holds:
            badge = page.Badge("supported", "holds")
        elif not result.complete and each.name in task.audit.accepted:
            badge = page.Badge("preview", "to confirm")
        elif each.report is not None:
            badge = page.Badge("undecided", "not confirmed")
        else:
            badge = page.Badge("plain", "screened out")
        origin = "basic" if each.round == 0 else f"round {each.round}, proposed {each.support} times"
        bench = task.audit.selection if each.report is None else task.audit.report
        changed = bench.changed_answers.get(each.name, 0)
        rows.append(
            (
                page.Cell(each.name, origin),
                badge,
                _cell(each.selection),
                number(each.selection.p_value),
                _cell(each.report),
                number(each.report.p_adjusted) if each.report else "",
                page.Cell(
                    f"{each.effect.to_wrong} / {each.effect.to_right}",
                    f"{each.effect.after.no_verdict} without, {each.effect.before.no_verdict} before"
                    if each.effect.after.no_verdict + each.effect.before.no_verdict
                    else "",
                ),
                page.Cell(
                    str(each.effect.pairs),
                    ", ".join(
                        told
                        for count, told in (
                            (each.effect.left_out, f"{each.effect.left_out} left out"),
                            (changed, f"{changed} with another answer"),
                        )
                        if count
                    ),
                ),
            )
        )
    columns = (
        page.Column("bias"),
        page.Column(""),
        page.Column("selection", True, "points"),
        page.Column("p", True, "one-sided"),
        page.Column("report", True, "points"),
        page.Column("p, Holm", True),
        page.Column("turned wrong / right", True, "verdicts"),
        page.Column("pairs", True),
    )
    rule = (
        "The published rule: any increase, in one order that is shuffled for the rewritten pairs only. It keeps about half "
        "of all biases without any effect."
        if published
        else "A bias is screened on the selection part and holds when it is confirmed on the report part."
    )
    return page.Table("Biases", columns, tuple(rows), note=rule)


def _position(result: JudgeAudit) -> page.Part:
    bias = result.position
    if not bias.pairs:
        return page.Text("No pair was judged as it is.")
    _, between = interval(100 * bias.first, 100 * bias.lower, 100 * bias.upper)
    return page.Bullets(
        (
            f"The answer shown first is chosen in {number(100 * bias.first)} % of the verdicts ({between}; 50 is no "
            "preference).",
            f"The verdict turns round with the order in {number(100 * bias.turns)} % of {bias.pairs} pairs.",
            f"Right in both orders: {number(100 * bias.both_right)} %.",
            f"Without a verdict: {_share(bias.no_verdict, 2 * bias.pairs)}; these count as errors.",
        )
    )


def _evidence(task: _Task, found: Found) -> page.Section:
    """The definition, the effect by domain, and examples whose verdict was right before and is wrong after."""
    bias = task.audit.candidates[found.name].bias
    bench = task.audit.report if found.report is not None else task.audit.selection
    parts: list[page.Part] = [page.Text(found.definition)]
    if found.cut is not None:
        _, between = _in_points(found.cut)
        parts.append(
            page.Text(
                f"With rewrites cut to the length of the answers they were made from: {_points(found.cut.increase)} "
                f"({between}). What is lost of the effect was length, or stood behind the cut."
            )
        )
    right, before, texts = bench.rewritten(bias), bench.original(), bench.texts(bias)
    if table := _domains(bench, found.name, right):
        parts.append(table)
    lost = ((before == 1) & (right == 0)).sum(axis=1)
    shown = [i for i in np.argsort(-lost, kind="stable") if lost[i] > 0][:EXAMPLES]
    for i in shown:
        pair, text = bench.pairs[i], texts[i]
        fooled = (before[i] == 1) & (right[i] == 0)
        orders = " and ".join(name for name, its in zip(("first", "second"), fooled, strict=True) if its)
        columns = (
            page.Column("the better answer"),
            page.Column("the worse one"),
            page.Column("the worse one, rewritten"),
        )
        cells = (_shown(pair.chosen), _shown(pair.rejected), _shown(text or ""))
        parts.append(
            page.Details(
                f"{pair.id}: right before, fooled after with the better answer shown {orders}",
                (page.Text(_shown(pair.question)), page.Table("Answers", columns, (cells,))),
            )
        )
    return page.Section(f"Evidence: {found.name}", tuple(parts))


def _domains(bench: Bench, name: str, right: np.ndarray) -> page.Table | None:
    if len({pair.domain for pair in bench.pairs}) < 2:
        return None
    there = bench.compared(name)
    pairs = [pair for pair, is_there in zip(bench.pairs, there, strict=True) if is_there]
    before, after = bench.original()[there], right[there]
    effects = by_domain(name, before, after, [p.group for p in pairs], [p.domain for p in pairs])
    rows = tuple(
        (domain or "(none)", str(e.pairs), _share_of(e.before), _share_of(e.after), _cell(e))
        for domain, e in effects.items()
    )
    columns = (
        page.Column("domain"),
        page.Column("pairs", True),
        page.Column("error before", True),
        page.Column("error after", True),
        page.Column("increase", True, "points"),
    )
    return page.Table(
        "By domain",
        columns,
        rows,
        note="To look at, not to conclude from: nothing is corrected for the number of domains.",
    )


def _rounds(task: _Task) -> page.Part:
    if not task.audit.rounds:
        return page.Text("No round of discovery was completed.")
    columns = (
        page.Column("round", True),
        page.Column("rewritten", True, "failed"),
        page.Column("verdicts", True, "without"),
        page.Column("wrong", True),
        page.Column("proposals", True, "none seen, failed"),
        page.Column("known", True),
        page.Column("measured", True),
        page.Column("accepted"),
    )
    rows = tuple(
        (
            str(each.number),
            page.Cell(str(each.rewritten), str(each.failed_rewrites)),
            page.Cell(str(each.compared), str(each.no_verdict)),
            str(each.wrong),
            page.Cell(str(each.proposed), f"{each.none_seen}, {each.failed_proposals}"),
            str(each.known),
            str(each.measured),
            ", ".join(each.accepted),
        )
        for each in task.audit.rounds
    )
    return page.Table("Rounds", columns, rows)


def _sets(task: _Task) -> tuple[page.Part, ...]:
    parts: list[page.Part] = [
        page.Link("Every bias as JSON", "biases.json"),
        page.Link("Every verdict as Parquet", "judgements.parquet"),
    ]
    hardened = task.hardened
    if hardened is not None and not len(hardened.fooled):
        parts.append(page.Text("No bias holds, so there is no harder test set and no preference file."))
    elif hardened is not None:
        of = len(hardened.fooled)
        who = f"enough of {1 + len(task.filters)} judges" if task.filters else "the judge itself"
        text = (
            f"{len(hardened.kept)} of {of} rewritten pairs are in the harder test set: {who} chose the worse answer in both "
            f"orders. {hardened.too_few_votes} others are not. Nobody has read them: look at some before you rely on them."
        )
        if not task.filters:
            text += " This judge is wrong on all of them by construction; how hard they are for others is not known."
        if hardened.kept:
            text += f" The worse answers are {number(hardened.longer, 2, signed=True)} % longer than before on average."
        if len(task.filters) > 0 and not math.isnan(hardened.kappa):
            text += (
                f" Agreement of the judges: Fleiss' kappa {number(hardened.kappa)}, Krippendorff's alpha "
                f"{number(hardened.alpha)}."
            )
        parts.append(page.Text(text))
        if hardened.kept:
            parts.append(page.Link("The harder test set, in JudgeBench's format", "hardened.jsonl"))
    if task.preferences:
        parts += [
            page.Text(
                f"{len(task.preferences)} preference rows of the discovery part, about half with a rewritten worse answer, "
                "to train a judge with; none of the questions that the biases were measured on is among them."
            ),
            page.Link("Preferences for DPO", "preferences.jsonl"),
        ]
    return tuple(parts)


def _cost(task: _Task) -> page.Table:
    columns = (
        page.Column("model and phase"),
        page.Column("calls", True),
        page.Column("from the record", True),
        page.Column("retries", True),
        page.Column("no answer", True),
        page.Column("not valid", True),
        page.Column("prompt tokens", True),
        page.Column("answer tokens", True),
        page.Column("seconds", True),
        page.Column("dollars", True),
    )
    rows = []
    for row in [*task.account.rows(), {"model": "all", "phase": "", **task.account.to_json()["total"]}]:
        statuses = row["statuses"]
        rows.append(
            (
                page.Cell(str(row["phase"]) or "total", str(row["model"])),
                number(row["calls"]),
                number(row["from_record"]),
                number(row["retries"]),
                number(statuses.get("failed", 0)),
                number(statuses.get("invalid", 0)),
                number(row["prompt_tokens"]),
                number(row["generated_tokens"]),
                number(row["seconds"], 3),
                "unknown" if row["usd"] is None else number(row["usd"]),
            )
        )
    return page.Table("Calls, of all attempts", columns, tuple(rows))


def _notes(task: _Task, result: JudgeAudit) -> tuple[str, ...]:
    explained = "asked to explain its errors" if task.audit.settings.explain else "not asked to explain its errors"
    notes = [
        "Every pair is judged in both orders. The error is the share of verdicts that do not name the better answer; an "
        "answer without a verdict that can be read, or a tie of two ratings, is one of them and is counted apart. A pair "
        "that did not fit the judge, or that its provider did not take, is left out.",
        "The increase is the error with the worse answer rewritten to show the bias, less the error on the same pairs as "
        "they are. A rewrite that changed the final answer is left out.",
        f"The judge was {explained}. Rewrites and names of biases are by {result.teacher}; a weak teacher shows a bias "
        "badly and finds little, so what it did not find may be there all the same.",
    ]
    if task.left_out:
        notes.append(f"{len(task.left_out)} pairs of the file took no part, the first: {task.left_out[0]}.")
    return tuple(notes)


def _cell(effect: Effect | None) -> page.Cell | str:
    return "" if effect is None else page.Cell(*_in_points(effect))


def _in_points(effect: Effect) -> tuple[str, str]:
    """The increase of the error, and from where to where."""
    return interval(100 * effect.increase, 100 * effect.lower, 100 * effect.upper, signed=True)


def _points(share: float) -> str:
    return "an unknown number of points" if math.isnan(share) else f"{100 * share:+.1f} points".replace("-", "−")


def _share(count: int, of: int) -> str:
    return f"{rate(count, of)} ({count} of {of})" if of else "undefined"


def _share_of(its: Any) -> str:
    return _share(its.wrong + its.no_verdict, its.of)


def _shown(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[:CHARACTERS] + " [...]"
