"""What a result and a plan of unlearning say of themselves, whole: lines, sentences, tables, defaults."""

import math
from dataclasses import replace

import pytest

from equipoise.core.serialize import deserialize, serialize
from equipoise.unlearning.page import card
from equipoise.unlearning.recipe import recipe
from equipoise.unlearning.result import AnswerPair, Measure, Unlearned, UnlearnPlan


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        (Measure(0.25, "lower", of=7), "0.250 (2 of 7)"),
        (Measure(0.75, "lower", "", 0.25, 0), "0.750 (0 of 0)"),
        (Measure(-1.23456, "lower", "nats/token"), "-1.235 nats/token"),
        (Measure(0.5, "higher"), "0.500"),
        (Measure(-0.0001, "higher", "nats/token"), "0.000 nats/token"),
        (Measure(-0.0, "higher"), "0.000"),
        (Measure(math.nan, "higher", "nats/token", 0.25, 4), "undefined"),
    ],
)
def test_a_measure_in_words(measure, said):
    assert str(measure) == said


def unlearned(**others):
    words = {
        "recipe": {"combine": "sago"},
        "resolved": {"objective": "npo", "beta": 0.1},
        "before": {
            "forget_accuracy": Measure(1.0, "lower", "", 0.25, 4),
            "retain_log_probability": Measure(-0.2, "higher", "nats/token"),
        },
        "after": {
            "forget_accuracy": Measure(0.25, "lower", "", 0.25, 4),
            "retain_log_probability": Measure(-0.3, "higher", "nats/token"),
        },
        "path": ({"step": 0, "forget_accuracy": 1.0},),
        "answers": tuple(
            AnswerPair(side, f"{side}\n asks?", "so", "so  it is", "x" * count)
            for side, count in (("forget", 100), ("retain", 101), ("general", 3))
        ),
        "steps": 7,
        "stopped": "all 7 steps were made",
        "moved": 0.875,
        "source": "a model",
        "names": {"model": "m", "forget": "f.jsonl", "retain": "r.jsonl"},
    }
    return Unlearned(**(words | others))


def test_the_summary_has_recipe_measures_two_answers_and_the_headline():
    done = "7 optimizer steps on f.jsonl against r.jsonl; all 7 steps were made; 88% of the trained weights moved."
    result = unlearned()
    assert result.warnings() == () and result.headline() == done
    assert list(result.summary()) == [
        "recipe: objective=npo, beta=0.1",
        f"forget_accuracy{' ' * 19}1.000 (4 of 4) -> 0.250 (1 of 4){' ' * 11}(lower is better)",
        f"retain_log_probability{' ' * 9}-0.200 nats/token -> -0.300 nats/token{' ' * 8}(higher is better)",
        "forget: forget asks?",
        f"  before: so it is   after: {'x' * 100}",
        "retain: retain asks?",
        f"  before: so it is   after: {'x' * 97}...",
        done,
    ]
    assert result._repr_html_() == (
        "<table><thead><tr><th></th><th>before</th><th>after</th></tr></thead><tbody>"
        "<tr><td>forget_accuracy</td><td>1.000 (4 of 4)</td><td>0.250 (1 of 4)</td></tr>"
        "<tr><td>retain_log_probability</td><td>-0.200 nats/token</td><td>-0.300 nats/token</td></tr></tbody></table>"
    )


def test_warnings_stand_before_what_was_done():
    result = unlearned(moved=0.0)
    assert len(result.warnings()) == 1
    done = "7 optimizer steps on f.jsonl against r.jsonl; all 7 steps were made; 0% of the trained weights moved."
    assert result.headline() == f"{result.warnings()[0]} {done}" == list(result.summary())[-1]


def test_what_is_not_said_of_a_result_and_that_it_comes_back_from_json():
    assert (Measure(1.0, "lower").unit, Measure(1.0, "lower").chance, Measure(1.0, "lower").of) == ("", None, None)
    result = unlearned(model=object())
    assert replace(result, gap=0.0, model=None) == replace(result, gap=0.0)  # which object it is does not count
    assert math.isnan(result.gap) and result.notes == () and result.folder is None
    plain = serialize(result)
    assert "model" not in plain and plain["gap"] is None
    again = deserialize(Unlearned, plain)
    assert serialize(again) == plain and again.after == result.after and again.answers == result.answers


def plan(**others):
    words = {
        "model": "a tiny model",
        "recipe": {"steps": 3, "objective": "ga"},
        "records": {"forget": 1234, "retain": 2},
        "tokens": {"forget": 56789, "retain": 8},
        "first": {"forget": ({"id": "a", "text": "für"}, {"id": "b"}), "retain": ()},
        "shown": {"forget": "Who? »Ann«", "retain": "»x«"},
        "trained_parameters": 1_234_567,
        "seconds": 119.4,
        "peak_bytes": 1_540_000_000,
    }
    return UnlearnPlan(**(words | others))


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("npo", "`npo` on `f` against `gd` on `r`, combined by `sum`"),
        ("rmu", "`rmu` on `f` against its own retain loss on `r`, combined by `sum`"),
        ("mcu", "`mlp-breaking` on `f` against its own retain loss on `r`, in forget steps of length"),
        ("mlp-breaking", "`mlp-breaking` on `f` against its own retain loss on `r`, in forget steps of length"),
    ],
)
def test_the_card_names_the_loss_that_held_the_retain_set(method, said):
    chosen = recipe(method)
    names = {"model": "m", "forget": "f", "retain": "r"}
    result = unlearned(recipe=chosen.model_dump(), resolved=chosen.resolved(100), names=names)
    assert said in card(result, {})


def test_the_plan_in_lines():
    assert plan().notes == ()
    assert list(plan(notes=("one note", "another")).summary()) == [
        "a tiny model",
        "forget: 1,234 records, 56,789 tokens; the first:",
        '  {"id": "a", "text": "für"}',
        '  {"id": "b"}',
        "  as the model reads it, what is trained between » and «: 'Who? »Ann«'",
        "retain: 2 records, 8 tokens; the first:",
        "  as the model reads it, what is trained between » and «: '»x«'",
        "recipe: steps=3, objective=ga",
        "trained parameters: 1,234,567",
        "one note",
        "another",
        "estimate: 1:59, 1.5 GB at the peak",
    ]


@pytest.mark.parametrize(("seconds", "said"), [(59.4, "59 s"), (60.0, "1:00"), (151.0, "2:31")])
def test_a_minute_and_more_are_a_clock(seconds, said):
    assert list(plan(seconds=seconds).summary())[-1] == f"estimate: {said}, 1.5 GB at the peak"
