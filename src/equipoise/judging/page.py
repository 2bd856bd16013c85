"""What a person sees of an audit: which biases hold and by how much, the flipped examples side by side, what it cost."""

import json
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.files import read_regular
from equipoise.core.job import Page
from equipoise.core.numbers import interval, number, rate
from equipoise.judging.measured import BiasEffect, Rate
from equipoise.judging.notes import points

if TYPE_CHECKING:
    from equipoise.judging.result import FoundBias, JudgeAudit, JudgedExample

CHARACTERS = 2500  # of a text that is shown
Numeric = partial(parts.Column, numeric=True)
BADGES: dict[str, parts.State] = {
    "holds": "supported",
    "not confirmed": "undecided",
    "to confirm": "preview",
    "screened out": "plain",
    "not rewritten": "untested",
    "not readable": "untested",
}


def page(result: "JudgeAudit", folder: Path) -> Page:
    """What was found, the evidence, and the cost, from a result and the account beside it."""
    warnings = [parts.Note(text, title) for title, text in result.warnings()]
    findings = (*warnings, *_summary(result), *_placebo(result), *_forest(result))
    sections = [
        parts.Section("What was found", findings),
        parts.Section("Every bias that was measured", (_measured(result),)),
        parts.Section("Position", (_position(result),)),
        *(_evidence(each) for each in result.holding),
    ]
    others = [each for each in result.biases if not each.holds]
    if rest := [_example(f"{each.name}: {one.pair}", one) for each in others for one in each.examples]:
        sections.append(parts.Section("Rewrites to look at", tuple(rest)))
    sections.append(parts.Section("Rounds of discovery", (_rounds(result),)))
    sections.append(parts.Section("What to take away", tuple(_sets(result))))
    if cost := _cost(folder / "account.json"):
        sections.append(parts.Section("Calls and cost", (cost,)))
    facts = (
        ("judge", result.judge),
        ("teacher", result.teacher),
        ("pairs", "{} to discover, {} to select, {} to report".format(*result.sizes)),
        ("error on the selection part as it is", _share(result.as_is)),
    )
    return Page(f"What fools {result.judge}", result.headline(), sections, facts)


def _summary(result: "JudgeAudit") -> list[parts.Part]:
    if not result.holding:
        if not result.complete:
            return [parts.Text("No bias is confirmed before the audit is complete.")]
        if math.isnan(result.detectable):
            return [
                parts.Text("No bias holds. These pairs are too few to show even the largest one four times in five.")
            ]
        lead = "No bias raises the judge's error beyond what chance explains"
        least = f"With these pairs an increase of about {points(result.detectable)}"
        return [parts.Text(f"{lead}. {least} would have been found four times in five; smaller ones may be there.")]
    cards = []
    for bias in result.holding:
        effect = bias.effect
        after = "" if math.isnan(effect.p_adjusted) else f", p = {number(effect.p_adjusted)} after Holm"
        cards.append(
            parts.Card(
                parts.Badge("supported", "holds"),
                f"{bias.name}: {points(effect.increase)} more errors",
                f"{_in_points(effect)[1]} points at 95 %, {effect.pairs} pairs in both orders{after}",
                (parts.Text(bias.definition),),
            )
        )
    return [parts.Grid(tuple(cards))]


def _placebo(result: "JudgeAudit") -> list[parts.Part]:
    """What rewriting alone does, where that is no warning."""
    if result.placebo is None:
        unknown = "This teacher gives no neutral rewrite, so what rewriting alone does is not known."
        return [parts.Text(unknown, quiet=True)] if result.holding else []
    if result.placebo.lower > 0:
        return []
    increase = f"{points(result.placebo.increase)} ({_in_points(result.placebo)[1]})"
    return [parts.Text(f"The same answers in other words, with no bias: {increase}.")]


def _forest(result: "JudgeAudit") -> list[parts.Part]:
    rows = [
        plots.ChartRow(each.name, 100 * each.effect.increase, 100 * each.effect.lower, 100 * each.effect.upper)
        for each in result.biases
        if not math.isnan(each.effect.lower)
    ]
    if not rows:
        return []
    chart = plots.intervals(
        "Increase of the judge's error",
        rows,
        x=plots.Axis("increase of the error", unit="points", better="lower"),
        uprights=[plots.Upright("no effect", 0.0)],
        note="Those that hold first. On the report part where a bias was measured there, else on the selection part. "
        "95 % intervals, clustered by question, each for itself.",
    )
    return [parts.Figure(chart)]


def _measured(result: "JudgeAudit") -> parts.Table:
    selected = Numeric("selection", unit="points"), Numeric("p", unit="one-sided")
    reported = Numeric("report", unit="points"), Numeric("p, Holm")
    counted = Numeric("turned wrong / right", unit="verdicts"), Numeric("pairs")
    columns = (parts.Column("bias"), parts.Column(""), *selected, *reported, *counted)
    rule = (
        "The published rule: any increase, in one order that is shuffled for the rewritten pairs only. It keeps about half "
        "of all biases without any effect."
        if result.rule == "published"
        else "A bias is screened on the selection part and holds when it is confirmed on the report part."
    )
    return parts.Table("Biases", columns, tuple(map(_row, result.biases)), note=rule)


def _row(bias: "FoundBias") -> tuple[str | float | parts.Cell | parts.Badge | None, ...]:
    effect, after, before = bias.effect, bias.effect.after.no_verdict, bias.effect.before.no_verdict
    origin = "basic" if bias.round == 0 else f"round {bias.round}, proposed {bias.support} times"
    counts = {
        "left out": effect.left_out,
        "with another answer": bias.rewrites.changed,
        "not put to the judge": bias.rewrites.unasked,
    }
    return (
        parts.Cell(bias.name, origin),
        parts.Badge(BADGES[bias.state], bias.state),
        _cell(bias.selection),
        bias.selection.p_value,
        _cell(bias.report),
        bias.report.p_adjusted if bias.report else None,
        parts.Cell(
            f"{effect.to_wrong} / {effect.to_right}", f"{after} without, {before} before" if after + before else ""
        ),
        parts.Cell(str(effect.pairs), ", ".join(f"{count} {what}" for what, count in counts.items() if count)),
    )


def _position(result: "JudgeAudit") -> parts.Part:
    bias = result.position
    if not bias.pairs:
        return parts.Text("No pair was judged as it is.")
    _, between = interval(100 * bias.first, 100 * bias.lower, 100 * bias.upper)
    return parts.Bullets(
        (
            f"The answer shown first is chosen in {number(100 * bias.first)} % of the verdicts ({between}; 50 is no "
            "preference).",
            f"The verdict turns round with the order in {number(100 * bias.turns)} % of {bias.pairs} pairs.",
            f"Right in both orders: {number(100 * bias.both_right)} %.",
            f"Without a verdict: {_share(Rate(0, bias.no_verdict, 2 * bias.pairs))}; these count as errors.",
        )
    )


def _evidence(bias: "FoundBias") -> parts.Section:
    """The definition, the effect by domain, and examples whose verdict was right before and is wrong after."""
    content: list[parts.Part] = [parts.Text(bias.definition)]
    if bias.cut is not None:
        content.append(
            parts.Text(
                f"With rewrites cut to the length of the answers they were made from: {points(bias.cut.increase)} "
                f"({_in_points(bias.cut)[1]}). What is lost of the effect was length, or stood behind the cut."
            )
        )
    if bias.domains:
        errors = Numeric("error before"), Numeric("error after"), Numeric("increase", unit="points")
        columns = (parts.Column("domain"), Numeric("pairs"), *errors)
        rows = tuple(
            (domain or "(none)", e.pairs, _error(e.before), _error(e.after), _cell(e))
            for domain, e in bias.domains.items()
        )
        note = "To look at, not to conclude from: nothing is corrected for the number of domains."
        content.append(parts.Table("By domain", columns, rows, note=note))
    for one in bias.examples:
        orders = " and ".join(one.fooled)
        content.append(_example(f"{one.pair}: right before, fooled after with the better answer shown {orders}", one))
    return parts.Section(f"Evidence: {bias.name}", tuple(content))


def _example(title: str, one: "JudgedExample") -> parts.Part:
    texts = {"the worse one": one.rejected, "the worse one, rewritten": one.rewritten}
    texts = {"the better answer": one.chosen, **texts} if one.fooled else texts
    cells = tuple(_shown(text) for text in texts.values())
    table = parts.Table("Answers", tuple(parts.Column(name) for name in texts), (cells,))
    return parts.Details(title, (parts.Text(_shown(one.question)), table) if one.fooled else (table,))


def _rounds(result: "JudgeAudit") -> parts.Part:
    if not result.rounds:
        return parts.Text("No round of discovery was completed.")
    asked = Numeric("rewritten", unit="failed"), Numeric("verdicts", unit="without"), Numeric("wrong")
    named = Numeric("proposals", unit="none seen, failed"), Numeric("known"), Numeric("measured")
    columns = (Numeric("round"), *asked, *named, parts.Column("accepted"))
    rows = tuple(
        (
            each.number,
            parts.Cell(str(each.rewritten), str(each.failed_rewrites)),
            parts.Cell(str(each.compared), str(each.no_verdict)),
            each.wrong,
            parts.Cell(str(each.proposed), f"{each.none_seen}, {each.failed_proposals}"),
            each.known,
            each.measured,
            ", ".join(each.accepted),
        )
        for each in result.rounds
    )
    return parts.Table("Rounds", columns, rows)


def _sets(result: "JudgeAudit") -> list[parts.Part]:
    content: list[parts.Part] = [
        parts.Link("Every bias as JSON", "result.json"),
        parts.Link("Every verdict as Parquet", "judgements.parquet"),
    ]
    harder = result.harder
    if harder is not None and not harder.of:
        content.append(parts.Text("No bias holds, so there is no harder test set and no preference file."))
    elif harder is not None:
        who = f"enough of {harder.judges} judges" if harder.judges > 1 else "the judge itself"
        text = (
            f"{harder.kept} of {harder.of} rewritten pairs are in the harder test set: {who} chose the worse answer in both "
            f"orders. {harder.too_few} others are not. Nobody has read them: look at some before you rely on them."
        )
        if harder.judges == 1:
            text += " This judge is wrong on all of them by construction; how hard they are for others is not known."
        if harder.kept:
            text += f" The worse answers are {number(harder.longer, 2, signed=True)} % longer than before on average."
        if not math.isnan(harder.kappa):
            text += (
                f" Agreement of the judges: Fleiss' kappa {number(harder.kappa)}, Krippendorff's alpha "
                f"{number(harder.alpha)}."
            )
        content.append(parts.Text(text))
        if harder.kept:
            content.append(parts.Link("The harder test set, in JudgeBench's format", "hardened.jsonl"))
    if result.preferences:
        content += [
            parts.Text(
                f"{result.preferences} preference rows of the discovery part, about half with a rewritten worse answer, to "
                "train a judge with; none of the questions that the biases were measured on is among them."
            ),
            parts.Link("Preferences for DPO", "preferences.jsonl"),
        ]
    return content


def _cost(account: Path) -> parts.Table | None:
    stored = json.loads(read_regular(account))
    if not stored["parts"]:
        return None
    amounts = (
        "calls",
        "from the record",
        "retries",
        "no answer",
        "not valid",
        "prompt tokens",
        "answer tokens",
    )
    columns = (parts.Column("model and phase"), *map(Numeric, amounts), Numeric("time", unit="s"), Numeric("dollars"))
    rows = tuple(
        (
            parts.Cell(str(row["phase"]) or "total", str(row["model"])),
            *(row[name] for name in ("calls", "from_record", "retries")),
            *(row["statuses"].get(name, 0) for name in ("failed", "invalid")),
            *(row[name] for name in ("prompt_tokens", "generated_tokens", "seconds")),
            "unknown" if row["usd"] is None else row["usd"],
        )
        for row in [*stored["parts"], {"model": "all", "phase": "", **stored["total"]}]
    )
    return parts.Table("Calls, of all attempts", columns, rows)


def _cell(effect: BiasEffect | None) -> parts.Cell | None:
    return None if effect is None else parts.Cell(*_in_points(effect))


def _in_points(effect: BiasEffect) -> tuple[str, str]:
    """The increase of the error, and from where to where."""
    return interval(100 * effect.increase, 100 * effect.lower, 100 * effect.upper, signed=True, places=1)


def _share(verdicts: Rate) -> str:
    count = verdicts.wrong + verdicts.no_verdict
    return f"{rate(count, verdicts.of)} ({count} of {verdicts.of})" if verdicts.of else "undefined"


def _error(verdicts: Rate) -> parts.Cell:
    """A rate to three places whatever its count, so that those of several domains can be compared."""
    if not verdicts.of:
        return parts.Cell("undefined")
    count = verdicts.wrong + verdicts.no_verdict
    return parts.Cell(f"{count / verdicts.of:.3f}", f"{count} of {verdicts.of}")


def _shown(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[:CHARACTERS] + " [...]"
