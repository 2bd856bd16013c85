"""What a reader of an audit is told first, from results made by hand."""

import math
from dataclasses import replace
from pathlib import Path

from equipoise.core import page as parts
from equipoise.core.agreement import share
from equipoise.core.shares import Bounded, Share
from equipoise.unlearning.audit_result import (
    BACK,
    CONTROL,
    GONE,
    RELEARNING,
    STILL,
    ComponentSpectrum,
    ForgettingAttack,
    ForgettingAudit,
    MembershipScore,
    RecordForgetting,
    RecoveryAt,
    outcome,
    percent,
    several,
)

NOTHING = Share(0.0, 0, 0, 0.0, math.nan, math.nan)


def of(count, total):
    return share([1.0] * count + [0.0] * (total - count), range(total))


def attack(name, family, counts, total=40, **more):
    path = tuple(RecoveryAt(f"after {10 * i} steps", 10 * i, of(n, total), of(n, 50)) for i, n in enumerate(counts, 1))
    best = max(range(len(path)), key=lambda i: counts[i])
    what = f"relearning by {name}"
    return ForgettingAttack(name, family, what, path, best, counts[best] / total, NOTHING, NOTHING, **more)


def test_what_came_back_is_told_without_a_table():
    said = outcome(attack("strong", RELEARNING, [4, 1200], total=4000))
    assert said.startswith(
        "After 20 steps of relearning by strong, 1,200 of 4,000 held-out records that had been forgotten"
    )
    assert said.endswith("are answered again (30% [29% to 31%]).")
    assert outcome(attack("other text", CONTROL, [2])).startswith("After 10 steps of relearning by other text, 2 of 40")
    words = replace(attack("leading", "wording", [3]), what="the best of 5 sentences")
    assert outcome(words).startswith("The best of 5 sentences: 3 of 40 held-out records")
    assert percent(NOTHING) == "–" and several(NOTHING) == "0 of 0"
    assert percent(Share(1.0, 3, 0, 3.0, math.nan, math.nan)) == "33%"


def made(**how):
    given = {
        "names": {"forget": "f.jsonl", "holdout": "v.jsonl"},
        "sources": {"before": "a model", "after": "the same, later"},
        "counts": {"forget": 20, "holdout": 50},
        "answered": {
            "before": of(48, 50), "after": of(8, 50), "before_relearned": of(20, 20), "after_relearned": of(1, 20)
        },
        "forgotten": 40,
        "chance": 0.25,
        "attacks": (attack("strong", RELEARNING, [4, 30], recovery=(0.5, -0.25)), attack("weak", RELEARNING, [1, 2])),
        "controls": (attack("unrelated text", CONTROL, [2, 3], recovery=(0.125, 0.0)),),
        "membership": (MembershipScore("loss", Bounded(0.5, 0.4, 0.6), Bounded(0.0625, math.nan, math.nan)),),
        "records": tuple(
            RecordForgetting(f"r{i}", "holdout", f"text {i}", -0.5, -4.0, -1.0, state, 1)
            for i, state in enumerate([STILL, BACK, GONE])
        ),
        "spectrum": ComponentSpectrum(2, 100, (0.75, 0.25), (0.5, 0.5), 0.875),
        "untried": ("What nobody tried.",),
    }  # fmt: skip
    return ForgettingAudit(**(given | how))


def texts(part):
    """All strings that a part of a page shows, with what is inside it."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, tuple | list):
        for each in part:
            yield from texts(each)
    elif isinstance(part, parts.Figure):
        yield part.chart.title
    elif hasattr(part, "__dataclass_fields__"):
        for name in part.__dataclass_fields__:
            yield from texts(getattr(part, name))


def test_the_headline_says_what_came_back_after_how_many_steps():
    result = made()
    assert result.warnings() == () and result.strongest is not None and result.strongest.name == "strong"
    assert result.headline().startswith(
        "After 20 steps of relearning by strong, 30 of 40 held-out records that had been forgotten are answered again (75% ["
    )
    none = made(attacks=(attack("strong", RELEARNING, [0, 0]),), controls=())
    assert none.headline().startswith(
        "None of the 1 attacks brought anything back. After 10 steps of relearning by strong, 0 of 40"
    )


def test_what_makes_the_numbers_say_little_is_said_first():
    before, after = of(12, 50), of(10, 50)
    (unknown,) = made(answered=made().answered | {"before": before, "after": after}).warnings()
    assert unknown.startswith("The before model answers 12 of 50 of the hold-out, where guessing gets 0.25")
    kept = made(answered=made().answered | {"after": of(49, 50)}, forgotten=0)
    assert kept.strongest is None and kept.headline().startswith("Nothing was forgotten: ")
    (few,) = made(forgotten=10).warnings()
    assert few.startswith("Only 10 hold-out records were forgotten: one record is 10%")
    (uncovered,) = made(controls=(attack("unrelated text", CONTROL, [29]),)).warnings()
    assert uncovered.startswith("Relearning by unrelated text brings back 29 of 40, about as much as relearning")
    assert made(controls=(attack("unrelated text", CONTROL, [10]),)).warnings() == ()


def of_one_group(count, total):
    return share([1.0] * count + [0.0] * (total - count), ["ann"] * total)


def test_what_is_said_first_is_said_of_a_single_group_too():
    """Which has no interval: an undefined end is no bound that everything holds."""

    def audited(again, control, known=30):
        looked = [RecoveryAt("after 3 steps", 3, of_one_group(n, 25), of_one_group(n, 30)) for n in (again, control)]
        strong, unrelated = (
            ForgettingAttack(name, family, "relearning with X", (look,), 0, 1.0, NOTHING, NOTHING)
            for name, family, look in zip(("a", "b"), (RELEARNING, CONTROL), looked, strict=True)
        )
        answered = made().answered | {"before": of_one_group(known, 30), "after": of_one_group(5, 30)}
        return made(answered=answered, forgotten=25, attacks=(strong,), controls=(unrelated,)).warnings()

    assert math.isnan(of_one_group(30, 30).lower)
    alone, uncovered = audited(25, 25)
    assert alone.startswith("All forgotten records that were asked for are of one group")
    assert uncovered.startswith("Relearning with X brings back 25 of 25, about as much as relearning")
    assert audited(25, 3) == (alone,)  # nothing is said of a control that brings back less, or a model that knows all
    unknown, *_ = audited(25, 3, known=7)
    assert unknown.startswith("The before model answers 7 of 30 of the hold-out, where guessing gets 0.25")
    assert audited(0, 0) == (alone,)


def test_the_page_shows_attacks_records_spectra_and_what_was_not_tried():
    page = made().page(Path())
    assert page.lead == made().headline()
    shown = list(texts(page.parts))
    titles = [part.title for part in page.parts if isinstance(part, parts.Section)]
    assert titles[0] == "What came back" and titles[-1] == "What was not tried"
    assert {"Recovery along the steps of an attack", "Recovery by attack", "Each held-out record"} <= set(shown)
    assert {"What forgetting moved", "What the strongest relearning moved back", "What nobody tried."} <= set(shown)
    (listed,) = [part for part in _tables(page.parts) if part.caption == "The worst records"]
    assert [row[0].text for row in listed.rows] == ["r0", "r1"]  # what stays forgotten is none of the worst
    (ranked,) = [part for part in _tables(page.parts) if part.caption.startswith("Attacks")]
    assert [row[0].text for row in ranked.rows] == ["strong", "weak", "unrelated text"]


def _tables(sections):
    for part in sections:
        if isinstance(part, parts.Table):
            yield part
        yield from _tables(getattr(part, "parts", ()))


def test_the_page_of_a_model_that_forgot_nothing_has_no_recovery():
    nothing = [replace(each, path=tuple(replace(at, again=NOTHING) for at in each.path)) for each in made().attacks]
    result = made(attacks=tuple(nothing), forgotten=0, spectrum=None, membership=(), controls=())
    shown = list(texts(result.page(Path()).parts))
    assert "Recovery by attack" not in shown and "What forgetting moved" not in shown
    assert any(each.startswith("Nothing was forgotten") for each in shown)
