"""The numbers of the job from thoughts that are given: what is counted, what is measured first, what is asked again."""

import hashlib
import json
import math

import pytest

from equipoise.core.errors import BadInput
from equipoise.data.problems import Problem
from equipoise.decoding import steering, think
from equipoise.decoding.steering import Wanted, key_of
from equipoise.decoding.thinking import Intervention, Thought
from thinking_models import tokenizer_of, untaught

WORDS = {"max_new_tokens": 40, "temperature": 0.8, "mean_thinking": 8.0, "verifier": "number"}
SETTINGS = {
    "control": "alphaone", "alpha": 2.0, "mean_thinking": 3.0, "calibrate": 2, "schedule": "constant", "p": 0.3,
    "gamma": 0.7, "tau": 5.0, "times": 3, "preset": "auto", "opening": None, "closing": None, "word": None,
    "min_thinking": 2, "max_thinking": 20, "guard": True, "max_new_tokens": 21, "temperature": 0.5, "top_p": 0.9,
    "seed": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return untaught(tokenizer_of())


def thought(answer, thinking, said=2, *, closed=True, ended=True, trace=()):
    return Thought(tuple(range(thinking + said)), "t", answer, thinking, said, closed, ended, 0, tuple(trace))


def acted(what, taken):
    return Intervention(0, what, 0.5, 0.25 if taken else 0.75, taken)


THOUGHTS = [
    thought("7", 5, trace=[acted("word", True), acted("word", False), acted("word", True), acted("end", True)]),
    thought("8", 9, 4, ended=False, trace=[acted("end", False), acted("word", True)]),
    thought("9", 30, closed=False, ended=False, trace=[acted("end", True), acted("end", True)]),
    thought("none", 0, 3),
]
ROWS = [{"id": f"q{place}", "prompt": "ab", "answer": str(7 + place)} for place in range(4)]


def test_a_run_is_counted_from_its_thoughts(model, monkeypatch, tmp_path):
    asked = []

    def written(language_model, prompts, control, **given):
        asked.append((len(prompts), given["keys"], given["seed"], given["max_new_tokens"], given["batch_size"]))
        first = sum(each[0] for each in asked[:-1])
        return THOUGHTS[first : first + len(prompts)]

    monkeypatch.setattr(steering, "write_thoughts", written)
    done = think(model, prompts=ROWS, batch_size=3, seed=6, out=tmp_path / "out", **WORDS)
    keys = [int(hashlib.sha256(f"q{place}".encode()).hexdigest()[:12], 16) for place in range(4)]
    assert asked == [(3, keys[:3], [6], 40, 3), (1, keys[3:], [6], 40, 3)]
    assert (done.prompts, done.unread, done.tokens, done.measured_on) == (4, 1, 7 + 13 + 32 + 3, 0)
    assert done.accuracy.value == 0.5  # the third has no end of thinking, the fourth no number
    assert (done.accuracy.lower, done.accuracy.upper) == (0, 1)  # an interval of two and two goes beyond both
    assert (done.thinking.value, done.answering.value) == (11, 2.75)
    assert done.thinking.lower == 0 and done.thinking.upper > 30
    assert (done.words, done.ends, done.unopened, done.unclosed, done.spent) == (0.75, 0.5, 0.25, 0.25, 0.5)
    assert done.moment == pytest.approx(1.4 * 8) and math.isnan(done.expected) and math.isnan(done.mean_thinking.lower)
    rows = [json.loads(line) for line in (tmp_path / "out" / "thoughts.jsonl").read_text().splitlines()]
    assert [row["right"] for row in rows] == [1, 1, 0, 0] and [row["gold"] for row in rows] == [
        [str(7 + n)] for n in range(4)
    ]
    assert rows[0]["ids"] == list(range(7)) and rows[1]["trace"][1]["draw"] == 0.25
    # Of those that had ended: the first is right within 7 tokens.
    assert done.within[0] == (0, 0) and [share for budget, share in done.within if budget in (6, 7, 32)] == [
        0,
        0.25,
        0.25,
    ]
    assert done.within[-1] == (32, 0.25) and len(done.within) == 33
    long = [thought("7", 600), thought("7", 0, 100)]
    assert len(steering._within(long, [1.0, 1.0])) == 60
    assert steering._within(long, [1.0, 0.5])[-1] == (602, 0.75)


def test_the_moment_is_measured_on_the_calibration_with_draws_of_its_own(model, monkeypatch):
    asked = []

    def written(language_model, prompts, control, **given):
        asked.append((control.name, control.min_thinking, control.max_thinking, given["seed"], len(prompts)))
        lengths = [4, 9, 11] if control.name == "none" else [5] * 9
        return [thought("7", length) for length in lengths[: len(prompts)]]

    monkeypatch.setattr(steering, "write_thoughts", written)
    words = {**WORDS, "mean_thinking": None, "seed": 2, "min_thinking": 3, "max_thinking": 30, "alpha": 0.5}
    done = think(model, prompts=ROWS[:1], calibration=ROWS[1:], control="cap", calibrate=9, **words)
    assert asked == [("none", 0, -1, [2, 1], 3), ("cap", 3, 30, [2], 1)]
    assert (done.mean_thinking.value, done.moment, done.measured_on) == (8, 4, 3) and not done.notes
    assert done.mean_thinking.lower < 8 < done.mean_thinking.upper
    monkeypatch.setattr(steering, "write_thoughts", lambda *_, **__: [thought("7", 0)] * 3)
    with pytest.raises(BadInput, match="thinks with no token"):
        think(model, prompts=ROWS[:1], calibration=ROWS[1:], control="cap", **words)


def test_random_counts_the_waits_of_as_much_as_may_be_thought(model, monkeypatch):
    a, end = (model.tokenizer.convert_tokens_to_ids(each) for each in ("a", "\n\n"))
    ids = [a, end, a, end, a, end, a, end]

    def written(language_model, prompts, control, **given):
        return [Thought((*ids, a, end, end), "", "", 8, 3, True, True, 0, ())] * len(prompts)

    monkeypatch.setattr(steering, "write_thoughts", written)
    words = {**WORDS, "mean_thinking": None, "control": "random", "alpha": 1.25, "schedule": "constant", "p": 0.5}
    for most, places in ((-1, 4), (5, 2), (0, 0)):
        done = think(model, prompts=ROWS[:1], calibration=ROWS[1:], max_thinking=most, **words)
        assert done.expected == 0.5 * places and done.moment == 10


def test_settings_at_their_limits():
    Wanted(**SETTINGS).check()
    Wanted(**SETTINGS | {"min_thinking": 20}).check()
    Wanted(**SETTINGS | {"max_thinking": -1, "min_thinking": 20}).check()
    Wanted(**SETTINGS | {"max_thinking": 0, "min_thinking": 0}).check()
    Wanted(**SETTINGS | {"control": "random", "mean_thinking": None}).check()
    Wanted(**SETTINGS | {"alpha": 1.7e308, "mean_thinking": None}).check()
    for change, told in (
        ({"min_thinking": 21, "max_thinking": -1}, "leave some"),
        ({"max_thinking": 21}, "21, of which 21 may"),
        ({"min_thinking": 1, "max_thinking": 0}, "less than min_thinking"),
        ({"opening": "<a>"}, "in pairs"),
        ({"closing": "<a>"}, "in pairs"),
        ({"control": "random"}, "leave mean_thinking out"),
        ({"alpha": 1e308, "mean_thinking": 1e10}, "no moment"),
        ({"alpha": math.inf, "mean_thinking": None, "control": "cap"}, "no moment|nan"),
    ):
        with pytest.raises((BadInput, TypeError), match=told if "inf" not in str(change) else None):
            Wanted(**SETTINGS | change).check()


def test_every_control_gets_its_settings():
    tokenizer = tokenizer_of()

    def made(control, **more):
        return Wanted(**SETTINGS | {"control": control} | more).opened(tokenizer, 0.5, 1.25, None)

    for control in ("alphaone", "s1", "cap", "random", "none"):
        found = made(control)
        assert found.name == control and (found.min_thinking, found.max_thinking, found.guard) == (2, 20, True)
        assert (found.temperature, found.top_p, found.seed, found.grammar) == (0.5, 0.9, 4, None)
        assert Wanted(**SETTINGS | {"control": control}).needs_moment == (control in ("alphaone", "cap", "random"))
    one = made("alphaone", guard=False)
    assert (one.kind, one.moment, one._shape, one.force_end) == (
        "constant",
        0.5,
        {"p": 0.3, "gamma": 0.7, "tau": 5},
        True,
    )
    assert not one.guard and made("s1").times == 3 and made("random").expected == 1.25 and made("random").moment == 0.5
    assert made("cap").moment == 1.0  # a cap leaves one token
    assert Wanted(**SETTINGS | {"control": "cap"}).opened(tokenizer, 7.5, math.nan, None).moment == 7.5
    tags = Wanted(**SETTINGS | {"closing": "</think>", "opening": "<think>", "word": "ab"}).tags(tokenizer)
    assert (tags.opening, tags.closing, tags.word, tags.replaced, tags.opened_by) == (
        "<think>", "</think>", "ab", ("ab",), "template",
    )  # fmt: skip
    own = Wanted(**SETTINGS | {"preset": "qwen3", "word": "ab"}).tags(tokenizer)
    assert (own.replaced, own.opened_by) == (("ab",), "model")


def test_the_plan_counts_every_prompt_that_is_thought_about(model):
    plan = think.plan(model, prompts=ROWS, **WORDS | {"alpha": 200.0})
    assert (plan.tokens, plan.prompts, plan.moment, plan.judged_by) == (4 * 40, 4, "1,600.0 tokens", "number")
    assert plan.tags == "<think> ... </think>, 'Wait' inserted"
    words = {**WORDS, "mean_thinking": None, "verifier": None}
    plan = think.plan(model, prompts=ROWS, limit=1, calibrate=3, **words)
    assert (plan.tokens, plan.judged_by) == (4 * 40, "nobody")
    assert plan.moment == "1.4 times the mean thinking of 3 prompts, to be measured"
    own = untaught(tokenizer_of())
    own.tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    assert think.plan(own, prompts=[{"prompt": "a . b ? c"}], **words).shown == "a . b ? c"
    plan = think.plan(model, prompts=ROWS, control="s1", **words)
    assert (plan.tokens, plan.moment) == (4 * 40, "none")


def test_a_key_is_of_the_id_whatever_it_holds():
    for name in ("p0", "ä", "\ud800"):
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        assert key_of(Problem(name, "", ())) == int(digest[:12], 16)


def test_what_is_written_is_read_again():
    again = steering._thought(json.loads(json.dumps(steering._row(THOUGHTS[0]))))
    assert again == THOUGHTS[0]
    bare = thought("a\ud800", 2, trace=[Intervention(3, "end", 1.0, math.nan, True)])
    row = json.loads(json.dumps(steering._row(bare)))
    assert row["trace"][0]["draw"] is None and math.isnan(steering._thought(row).trace[0].draw)


def test_a_schema_is_an_object_in_a_file(tmp_path):
    for text in ("[1]", "{", "7"):
        (tmp_path / "schema.json").write_text(text)
        with pytest.raises(BadInput, match="cannot be read as a JSON schema"):
            steering._schema(tmp_path / "schema.json")
