"""The job from end to end on an untaught model: what it stores, resumes, refuses, and counts."""

import json

import pytest

from chat_models import untaught as small
from equipoise.core.errors import BadInput
from equipoise.data.problems import Problem
from equipoise.data.records import Message
from equipoise.decoding import steering, think
from equipoise.decoding.result import rows_of
from equipoise.decoding.thinking import Thought, write_thoughts
from equipoise.decoding.thinking_rivals import Plain
from equipoise.language.model import wrap
from thinking_models import tokenizer_of, untaught

WORDS = {"max_new_tokens": 30, "temperature": 0.8, "mean_thinking": 8.0, "verifier": "number"}


@pytest.fixture(scope="module")
def model():
    return untaught(tokenizer_of())


def rows(n=6):
    return [{"id": f"p{index}", "prompt": f"{index} ab", "answer": str(index)} for index in range(n)]


def test_what_is_stored_is_what_was_thought(model, tmp_path):
    done = think(model, prompts=rows(), out=tmp_path / "done", **WORDS)
    stored = [json.loads(line) for line in (tmp_path / "done" / "thoughts.jsonl").read_text().splitlines()]
    assert [row["id"] for row in stored] == [f"p{index}" for index in range(6)] and done.prompts == 6
    for row in stored:
        assert row["thinking_tokens"] + row["answer_tokens"] == len(row["ids"]) <= 30
        whole = model.tokenizer.decode(row["ids"], skip_special_tokens=True)
        assert whole == row["thinking"].replace("<p>", "") + "</think>" * row["closed"] + row["answer"]
        assert all(each["taken"] == (each["p"] == 1 or each["draw"] < each["p"]) for each in row["trace"])
    assert done.moment == pytest.approx(1.4 * 8) and done.measured_on == 0
    assert done.thinking.value == sum(row["thinking_tokens"] for row in stored) / 6
    assert done.accuracy.value == sum(row["right"] for row in stored) / 6
    inserted = sum(each["taken"] for row in stored for each in row["trace"] if each["what"] == "word")
    assert done.words == inserted / 6 and inserted > 0
    assert done.within[-1][1] <= done.accuracy.value and done.tokens == sum(len(row["ids"]) for row in stored)
    page = (tmp_path / "done" / "report.html").read_text()
    assert "Thinking under alphaone" in page and not (tmp_path / "done" / "written.jsonl").exists()


def test_a_thought_depends_on_its_prompt_alone(model, tmp_path):
    """In other company, in another order, with a limit: the ids stay the same."""

    def ids(name, given, **words):
        think(model, prompts=given, out=tmp_path / name, **WORDS | words)
        lines = (tmp_path / name / "thoughts.jsonl").read_text().splitlines()
        return {row["id"]: row["ids"] for row in map(json.loads, lines)}

    whole = ids("whole", rows(), batch_size=6)
    assert ids("reversed", rows()[::-1], batch_size=2) == whole
    assert ids("limited", rows(), limit=2) == {name: whole[name] for name in ("p0", "p1")}


def test_the_same_call_goes_on_where_it_was_killed(model, tmp_path, monkeypatch):
    whole = think(model, prompts=rows(), batch_size=2, **WORDS | {"mean_thinking": None, "calibrate": 2})
    asked, write = [], steering.write_thoughts

    def dies(language_model, prompts, control, **words):
        asked.extend((control.name, prompt) for prompt in prompts)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return write(language_model, prompts, control, **words)

    monkeypatch.setattr(steering, "write_thoughts", dies)
    words = WORDS | {"mean_thinking": None, "calibrate": 2, "batch_size": 2, "out": tmp_path / "resumed"}
    with pytest.raises(KeyboardInterrupt):
        think(model, prompts=rows(), **words)
    done = think(model, prompts=rows(), **words)
    assert len(asked) == 2 + 6 + 2  # the calibration once, the prompts once, and those that were asked when it died
    assert done.accuracy == whole.accuracy and done.thinking == whole.thinking and done.moment == whole.moment
    assert done.measured_on == 2 and any("gold answers were not looked at" in note for note in done.notes)


@pytest.mark.parametrize("control", ["none", "s1", "cap", "random"])
def test_every_control_thinks(model, control):
    words = {**WORDS, "control": control, "mean_thinking": None, "verifier": None}
    done = think(model, prompts=rows(3), **words | ({"calibration": rows(2)} if control in ("cap", "random") else {}))
    assert done.prompts == 3 and done.accuracy.value != done.accuracy.value and done.within == ()
    assert (done.moment == done.moment) == (control in ("cap", "random"))
    if control == "cap":
        assert done.thinking.value <= done.moment + 2
    if control == "random":
        assert done.expected >= 0


def test_the_moment_is_measured_without_least_and_most_and_whatever_the_limit(model, tmp_path):
    """Hot, so that thoughts end by themselves, at lengths that differ."""
    words = WORDS | {"max_new_tokens": 60, "temperature": 6.0, "mean_thinking": None, "control": "cap", "alpha": 0.5}

    def stored(name, **more):
        done = think(model, prompts=rows(5), out=tmp_path / name, **words | more)
        return done, (tmp_path / name / "thoughts.jsonl").read_text().splitlines()

    plain = Plain(model.tokenizer, temperature=6.0, top_p=0.95)
    keys = [steering.key_of(Problem(row["id"], "", ())) for row in rows(5)]
    asked = [row["prompt"] for row in rows(5)]
    thoughts = write_thoughts(model, asked, plain, max_new_tokens=60, seed=[0, 1], keys=keys)
    lengths = [thought.thinking_tokens for thought in thoughts]
    (whole, all_rows), (one, first_row) = stored("whole"), stored("one", limit=1)
    assert whole.mean_thinking.value == one.mean_thinking.value == sum(lengths) / 5 and len(set(lengths)) > 2
    assert first_row == all_rows[:1] and one.measured_on == 5 and one.prompts == 1
    for more in ({"max_thinking": 4}, {"min_thinking": 40}):
        done, _ = stored(str(more), limit=2, **more)
        assert done.mean_thinking.value == whole.mean_thinking.value
        assert any("no thought reaches" in said for said in done.warnings()) == ("max_thinking" in more)
    assert "with max_new_tokens at 30" in think(model, prompts=rows(2), **WORDS | {"mean_thinking": 22.0}).headline()


def thought_of(tokenizer, *tokens):
    ids = tuple(tokenizer.convert_tokens_to_ids(token) for token in tokens)
    return Thought(ids, "", "", len(ids), 0, True, True, 0, ())


def waits(control, ids, key):
    """That a control inserts into a thought, which stays as it is."""
    state = control.begin(key)
    for token in ids:
        control.wrote(state, token)
        state.count += state.thinking and control.decide(state).insert == control.word
    return state.count


def test_random_inserts_as_many_words_as_are_expected_of_alphaone(model, monkeypatch):
    """Most thoughts end long before the moment, and with it before most times that may be drawn."""
    paragraphs, used = [1, 1, 2, 3, 4, 10, 15], []
    plain = [thought_of(model.tokenizer, *["a", "b", "\n\n"] * count, "</think>") for count in paragraphs]

    def written(language_model, prompts, control, **words):
        used.append(control)
        return plain[: len(prompts)]

    monkeypatch.setattr(steering, "write_thoughts", written)
    done = think(model, prompts=rows(7), control="random", **WORDS | {"mean_thinking": None, "verifier": None})
    moment = 1.4 * sum(3 * count + 1 for count in paragraphs) / 7
    chances = [1 - t / moment for count in paragraphs for t in range(3, 3 * count + 1, 3) if t < int(moment)]
    come = sum(waits(used[-1], thought.ids, key) for key in range(300) for thought in plain) / 300 / 7
    assert come == pytest.approx(sum(chances) / 7, rel=0.06)
    assert done.expected == pytest.approx(sum(chances) / 7) and f"{done.expected:.2f} expected" in str(rows_of(done))


def test_answers_by_a_schema(tmp_path):
    pytest.importorskip("llguidance")
    (tmp_path / "schema.json").write_text('{"enum": [17, 23]}')
    words = {**WORDS, "max_thinking": 5, "max_new_tokens": 40, "opening": "<think>", "closing": "</think>"}
    done = think(small(0), prompts=rows(3), answer_schema=tmp_path / "schema.json", out=tmp_path / "out", **words)
    stored = [json.loads(line) for line in (tmp_path / "out" / "thoughts.jsonl").read_text().splitlines()]
    assert {row["answer"] for row in stored} <= {"17", "23"} and done.unclosed == 0


def test_answers_without_any_thinking_are_told(model, monkeypatch):
    """Of a model that opens its thinking itself, and does so for one prompt of four."""
    answered = Thought((4, 5), "", "ik", 0, 2, True, True, 0, ())
    written = [thought_of(model.tokenizer, "<think>", "a", "</think>"), answered, answered, answered]
    monkeypatch.setattr(steering, "write_thoughts", lambda *_, **__: written)
    done = think(model, prompts=rows(4), preset="qwen3", min_thinking=2, **WORDS)
    assert "75% of the prompts were answered without any thinking" in done.headline() and done.unopened == 0.75
    assert "neither min_thinking nor a schema held" in done.headline()


def test_a_control_that_did_nothing_says_so(model):
    never = wrap(model.model, model.tokenizer, name="untaught", chat_template="none")
    done = think(never, prompts=rows(2), schedule="constant", p=0.0, **WORDS | {"mean_thinking": 1000.0})
    assert "never acted" in done.headline() and done.words == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"max_thinking": 30}, "leave some for the answer"),
        ({"min_thinking": 9, "max_thinking": 5}, "less than min_thinking"),
        ({"opening": "<a>"}, "in pairs"),
        ({"calibration": [{"prompt": "a"}]}, "leave it out"),
        ({"control": "random"}, "leave mean_thinking out"),
        ({"prompts": [{"prompt": "a"}]}, "no gold answer"),
        ({"prompts": [{"prompt": "<think>a</think>", "answer": "1"}]}, "ends with </think> already"),
        ({"closing": "</x>", "opening": "<x>"}, "cannot write"),
        ({"word": "Zo"}, "cannot write the word"),
        ({"word": "</think>"}, "that differ"),
        ({"opening": "</think>", "closing": "</think>"}, "that differ"),
        ({"control": "alpha"}, "control"),
    ],
)
def test_what_cannot_be_done_is_refused(model, words, told):
    with pytest.raises(BadInput, match=told):
        think(model, **{"prompts": rows(2), **WORDS, **words})


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (Problem("a", "7 ik", ("7",)), "problem 2: id 'a' was used before at problem 1; make ids unique"),
        (Problem(7, "7 ik", ("7",)), "problem 2: field 'id': expected text"),  # pyright: ignore[reportArgumentType]
        (Problem("b\ud800", "7 ik", ("7",)), "problem 2: field 'id': expected text, found half of a surrogate pair"),
        (
            Problem("b", "7 ik", ("7", "\ud800")),
            "problem 2: field 'gold': expected text, found half of a surrogate pair",
        ),
        (Problem("b", "7 ik", ("7", 7)), "problem 2: field 'gold': expected text"),  # pyright: ignore[reportArgumentType]
        (Problem("b", "7 ik", "17"), "problem 2: field 'gold': expected a tuple of texts"),  # pyright: ignore[reportArgumentType]
        (Problem("b", "7 \ud800", ("7",)), "problem 2: field 'prompt': expected text, found half of a surrogate pair"),
        (Problem("b", "7 ik", ("7",), (Message("user", "\ud800"),)), "problem 2: field 'messages'"),
        (Problem("b", "7 ik", ()), "problem 2: no gold answer"),
        ({"id": "b", "prompt": "7 ik", "answer": "7"}, "problem 2 is no Problem"),
    ],
)
def test_problems_are_read_as_strictly_as_rows(model, problem, told):
    """Two of one id would get each other's thoughts, and halves of surrogate pairs end a job that has done its work."""
    first, words = Problem("a", "2 ab", ("2",)), WORDS | {"mean_thinking": None, "verifier": "exact"}
    for given in ({"prompts": [first, problem]}, {"prompts": rows(2), "calibration": [first, problem]}):
        if "calibration" in given and "no gold" in told:
            continue
        with pytest.raises(BadInput) as error:
            think.plan(model, **given, **words)
        assert told in str(error.value)


def test_no_interval_leaves_what_can_be():
    """A t interval of three values, one of them far from the others, goes below no tokens and beyond all of them."""
    for low, high in (([0, 0, 9], [9, 9, 0]), ([0, 0, 1], [1, 1, 0])):
        assert steering._mean(low, ["a", "b", "c"]).lower == 0.0
        assert steering._mean(high, ["a", "b", "c"], max(high)).upper == max(high)
    assert steering._mean([1.0], ["a"]).lower != steering._mean([1.0], ["a"]).lower  # of one prompt there is none


def test_a_model_whose_logits_are_not_numbers_is_told(model):
    broken = untaught(tokenizer_of())
    broken.model.model.norm.weight.data[:] = float("nan")
    with pytest.raises(BadInput, match="not numbers"):
        think(broken, prompts=rows(2), **WORDS)


def test_a_model_without_tags_is_refused_by_name_before_it_thinks():
    tokenizer = tokenizer_of(pieces=("Wait", "\n\n"))
    other = untaught(tokenizer)
    tokenizer.name_or_path = "some/model"
    with pytest.raises(BadInput, match="some/model has no tag that ends its thinking"):
        think.plan(other, prompts=rows(2), **WORDS)


def test_a_tag_in_pieces_is_refused_for_s1_before_the_model_reads(monkeypatch):
    other = untaught(tokenizer_of(pieces=("</", "think", ">", "Wait", "\n\n")))
    monkeypatch.setattr(steering, "encode_prompts", lambda *_: pytest.fail("it was read"))
    words = {**WORDS, "control": "s1", "mean_thinking": None, "opening": "<think>", "closing": "</think>"}
    for asked in (think, think.plan):
        with pytest.raises(BadInput, match="makes 3 tokens"):
            asked(other, prompts=rows(2), **words)


def test_the_plan_says_what_the_model_reads(model):
    plan = think.plan(model, prompts=[Problem("x", "2 ab", ("2",))], **WORDS | {"mean_thinking": None})
    assert plan.shown == "2 ab" and "to be measured" in plan.moment and plan.tokens == 2 * 30
    assert any("at most 60 tokens" in line for line in plan.summary())


def test_answers_within_a_budget_are_those_that_had_ended_by_then():
    """By a loop over all budgets: one that was cut off counts as wrong however few tokens it has."""
    thoughts = [
        Thought((), "", "", tokens, 0, True, ended, 0, ())
        for tokens, ended in ((2, True), (3, True), (4, False), (7, True))
    ]
    found = dict(steering._within(thoughts, [1.0, 0.0, 1.0, 0.5]))
    assert sorted(found) == list(range(8))
    assert found == {budget: 0.0 if budget < 2 else 0.25 if budget < 7 else 0.375 for budget in range(8)}
