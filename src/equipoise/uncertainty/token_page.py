"""What a person sees of scored answers: which score tells right from wrong, and every token in the colour of its doubt."""

import html
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.job import Page

if TYPE_CHECKING:
    from equipoise.core.shares import Bounded
    from equipoise.uncertainty.token_result import Selection, TokenScores

HEAT_MAP = "heat-map.html"
SCORES = "scores.jsonl"
SHOWN = 50  # answers in the heat map, the most doubtful first
WHERE = "Look here first"
_STEPS = 10
_STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.7 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}"
    "article{border-top:1px solid #8886;padding:1rem 0}h2{font-size:1rem;margin:0}p{white-space:pre-wrap;margin:.4rem 0}"
    ".ask{opacity:.7}small{opacity:.7}"
    + "".join(f".u{step}{{background:rgba(214,93,14,{step / 12:.2f})}}" for step in range(1, _STEPS))
)


def scores_page(result: "TokenScores", folder: Path) -> Page:
    """Which score ranks, what a threshold comes to, and the heat map."""
    from equipoise.uncertainty.token_result import number, told

    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    if result.detection:
        table = parts.Table(
            "Every score against the labels; 95 % intervals over questions",
            (
                parts.Column("score, higher is surer"),
                parts.Column("AUROC", True),
                parts.Column("among answers of like length", True),
                parts.Column("AUPRC", True),
                parts.Column("right among the surest half", True),
            ),
            tuple(
                (name, _cell(each.auroc), number(each.within), _cell(each.auprc), f"{each.half:.3f}")
                for name, each in result.detection.items()
            ),
            note="0.5 is chance. A sum over tokens is also a measure of length: the third column compares answers of one "
            "fifth of lengths with each other alone.",
        )
        curve = plots.lines(
            "Errors among the answers that are accepted",
            result.curve,
            x=plots.Axis("share accepted, the surest first", share=True),
            y=plots.Axis("share wrong", better="lower", share=True),
        )
        sections += [
            parts.Section("Does it know what is wrong?", (table,)),
            parts.Section("What is accepted", (parts.Figure(curve),)),
        ]
    if result.acceptance is not None:
        sections.append(parts.Section("The threshold", (parts.Text(told(result.acceptance, result.by) + "."),)))
    drawn = heat_map(folder / SCORES, result.by)
    sections.append(
        parts.Section(
            "Token by token",
            (parts.Link("The answers with every token in the colour of its doubt", HEAT_MAP),),
            f"{SCORES} has the characters of every token with TU, AU, EU and its log-probability.",
        )
    )
    counted = "counted" if result.end else "not counted"
    return Page(
        "How sure a model is of answers",
        result.headline(),
        sections,
        facts=(
            ("model", result.source),
            (
                "answers",
                f"{result.answers:,}, {result.labelled:,} labelled, {result.tokens:,} tokens; end tokens {counted}",
            ),
            (
                "noise",
                f"sigma {result.sigma:g}{', chosen here' if result.chosen else ''}; {result.members} members, one clean",
            ),
            ("EU / TU", f"{result.share:.1%}; {result.agreement:.1%} of the likeliest tokens stay"),
        ),
        files={HEAT_MAP: drawn},
    )


def selection_page(result: "Selection") -> Page:
    """What each way of choosing comes to."""
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    if result.labelled:
        table = parts.Table(
            "Share of questions that are answered right; 95 % intervals over questions",
            (parts.Column("which answer is given"), parts.Column("right", True)),
            tuple((name, _cell(value)) for name, value in result.rows()),
            note="The last line is what no choice can exceed.",
        )
        sections.append(parts.Section("What choosing comes to", (table,)))
    return Page(
        "Answers chosen by how sure they are",
        result.headline(),
        sections,
        facts=(("kept", f"the surest {result.keep:.0%} by {result.by}"), ("vote", result.vote)),
    )


def heat_map(scores: Path, by: str) -> str:
    """A page of its own: the most doubtful answers with each token coloured by TU, AU or EU, whichever `by` is made of."""
    of = by.partition("_")[0] if by.partition("_")[0] in ("tu", "au", "eu") else "tu"
    rows = list(_rows(scores))
    rows.sort(key=lambda row: row["scores"][by])
    rows = rows[:SHOWN]
    most = max((token[of] for row in rows for token in row["tokens"]), default=0.0)
    articles = "".join(_article(row, of, by, most) for row in rows)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Doubt, token by token</title><style>{_STYLE}</style><h1>Doubt, token by token</h1>"
        f"<p>{of.upper()} of each token, from none to {most:.3f} nats, the darker the more doubtful; the most doubtful "
        f"answers by {html.escape(by)} first. A number shows where the pointer rests.</p>{articles}</html>\n"
    )


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n"):
        row = json.loads(line)
        if row["tokens"]:
            yield row


def _article(row: Mapping[str, Any], of: str, by: str, most: float) -> str:
    label = {True: ", right", False: ", wrong"}.get(row["correct"], "")
    words, place = [], 0
    for token in row["tokens"]:
        begin, end = max(token["begin"], place), token["end"]
        if end <= begin:
            continue
        step = round((_STEPS - 1) * max(token[of], 0.0) / most) if most > 0 else 0
        words.append(html.escape(row["answer"][place:begin]))
        words.append(f'<span class="u{step}" title="{token[of]:.4f}">{html.escape(row["answer"][begin:end])}</span>')
        place = end
    words.append(html.escape(row["answer"][place:]))
    asked = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
    return (
        f"<article><h2>{html.escape(row['id'])}{label} <small>{html.escape(by)} {row['scores'][by]:.4f}</small></h2>"
        f'<p class="ask">{html.escape(asked)}</p><p>{"".join(words)}</p></article>'
    )


def _cell(value: "Bounded") -> parts.Cell:
    from equipoise.core.shares import shown

    text, _, interval = shown(value).partition(" ")
    return parts.Cell(text, interval)
