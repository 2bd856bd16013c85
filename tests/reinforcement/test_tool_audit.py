"""The job `audit tools`: what entropy says of calls, by hand and by brute force; repeats, costs; resume; what it refuses."""

import copy
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from equipoise.cli import main
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.data.traces import ToolCall, read_traces
from equipoise.language import rollouts
from equipoise.language.model import wrap
from equipoise.reinforcement import tool_audit, tool_audit_measures, tool_audit_model, tool_audit_result
from equipoise.reinforcement.tool_audit_job import audit_tools
from small_jobs import small_model

VOCABULARY = 100
SURE, UNSURE = (0.9, 0.08), (0.4, 0.3)


def logged(text, probabilities):
    """The same two alternatives at each word of a text."""
    listed = [{"token": "x", "logprob": math.log(p)} for p in probabilities]
    return {
        "content": [
            {"token": f"{word} ", "logprob": listed[0]["logprob"], "top_logprobs": listed} for word in text.split()
        ]
    }


def says(text, probabilities, *calls, **more):
    made = {"role": "assistant", "content": text, **more}
    if probabilities is not None:
        made["logprobs"] = logged(text, probabilities)
    if calls:
        made["tool_calls"] = [
            {"id": f"{k}", "function": {"name": tool, "arguments": json.dumps(given)}}
            for k, (tool, given) in enumerate(calls)
        ]
    return made


def told(number, text, **more):
    return {"role": "tool", "tool_call_id": f"{number}", "content": text, **more}


ASKED = {"role": "user", "content": "Where?"}
SIX = "one two three four five six"


def row(identifier, *messages, **more):
    return {"id": identifier, "messages": [ASKED, *messages], "vocabulary": VOCABULARY, **more}


def bounds(probabilities):
    """Of the entropy, from what is listed: the rest on as few tokens as may have it, or on all others alike."""
    head = -sum(p * math.log(p) for p in probabilities)
    rest, most, others = 1 - sum(probabilities), min(probabilities), VOCABULARY - len(probabilities)
    whole, last = divmod(rest, most)
    lower = head - whole * most * math.log(most) - last * math.log(last)
    return lower, head - rest * math.log(rest / others)


def calls_of(folder):
    lines = [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]
    return {(each["trace"], each["step"], each["tool"]): each for each in lines}


def trace(identifier, *levels, call=("search", {"q": 1}), **more):
    """A text at each of these levels of doubt, with a call and a reply between each two."""
    messages = []
    for number, level in enumerate(levels[:-1]):
        messages += [says(SIX, level, (call[0], {**call[1], "n": number})), told(0, f"reply {number}")]
    return row(identifier, *messages, says(SIX, levels[-1]), **more)


TRACES = [
    trace("fell", UNSURE, SURE, success=True),
    trace("rose", SURE, UNSURE, success=True),
    trace("both", UNSURE, SURE, (0.91, 0.065), UNSURE, success=False),
    trace("near", (0.55, 0.25), (0.5, 0.25), call=("open", {}), score=1),
    row("short", says("too few words", UNSURE, ("search", {})), told(0, "x"), says(SIX, SURE), success=True),
    row("blank", says(SIX, None, ("search", {})), told(0, "x"), says(SIX, None)),
    row("ended", says(SIX, SURE, ("search", {}))),
    row("asked", says(SIX, UNSURE, ("search", {})), told(0, "x"), {"role": "user", "content": "And?"}, says(SIX, SURE)),
    row("none", says(SIX, SURE), success=False),
]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    result = audit_tools(TRACES, out=folder / "audit")
    return SimpleNamespace(result=result, folder=folder / "audit", calls=calls_of(folder / "audit"))


def test_entropies_and_their_bounds_by_hand(done):
    fell = done.calls["fell", 1, "search"]
    before, after = bounds(UNSURE), bounds(SURE)
    assert fell["before"] == pytest.approx(before) and fell["after"] == pytest.approx(after)
    assert fell["change"] == pytest.approx([after[0] - before[1], after[1] - before[0]])
    assert fell["outcome"] == "lowered" and done.calls["rose", 1, "search"]["outcome"] == "not lowered"
    assert [done.calls["both", step, "search"]["outcome"] for step in (1, 2, 3)] == [
        "lowered",
        "bounds overlap",
        "not lowered",
    ]
    near = done.calls["near", 1, "open"]["change"]
    assert near[0] < 0 < near[1] and done.calls["near", 1, "open"]["outcome"] == "bounds overlap"


def test_a_larger_vocabulary_makes_the_bounds_wider(done, tmp_path):
    wide = audit_tools(TRACES[:3], vocabulary=10_000, out=tmp_path / "wide")
    before, after = (calls_of(folder)["fell", 1, "search"]["before"] for folder in (done.folder, tmp_path / "wide"))
    rest = 1 - sum(UNSURE)
    assert after[0] == before[0] and after[1] - before[1] == pytest.approx(rest * math.log(9998 / 98))
    assert wide.overall.lowered.of <= 4


def test_why_nothing_is_said_of_a_step(done):
    why = {name: done.calls[name, 1, "search"]["outcome"] for name in ("short", "blank", "ended", "asked")}
    assert why == {
        "short": "too few words",
        "blank": "no log-probabilities",
        "ended": "nothing after it",
        "asked": "others spoke in between",
    }
    assert all(done.calls[name, 1, "search"]["change"] == [None, None] for name in why)
    assert done.result.undecided == {"bounds overlap": 2, **dict.fromkeys(why.values(), 1)}
    page = (done.folder / "report.html").read_text()
    assert all(text in page for text in why.values())


def test_what_entropy_is_compared_with(tmp_path):
    levels = [UNSURE, SURE, (0.7, 0.2), SURE]
    made = {}
    for against in ("previous", "first", "running-minimum"):
        audit_tools([trace("t", *levels)], against=against, out=tmp_path / against)
        made[against] = [calls_of(tmp_path / against)["t", step, "search"]["change"] for step in (1, 2, 3)]
    known = [bounds(level) for level in levels]
    compared = {"previous": [0, 1, 2], "first": [0, 0, 0], "running-minimum": [0, 1, 1]}
    for against, places in compared.items():
        expected = [
            (known[k + 1][0] - known[place][1], known[k + 1][1] - known[place][0]) for k, place in enumerate(places)
        ]
        np.testing.assert_allclose(made[against], expected)


def test_of_calls_made_without_a_word_none_has_the_credit_or_the_blame_of_all(tmp_path):
    """Rules by hand: a text of fewer than 5 tokens on either side of a call says nothing of it."""
    rng = np.random.default_rng(3)
    traces, lengths = [], []
    for number in range(40):
        own = rng.choice([0, 2, 4, 5, 6], size=5, p=[0.3, 0.1, 0.1, 0.2, 0.3]).tolist()
        levels = [(UNSURE, SURE)[k] for k in rng.integers(0, 2, size=5)]
        texts = [" ".join(["word"] * n) for n in own]
        said = [says(texts[k], levels[k], ("search", {"n": k})) for k in range(4)]
        replies = [told(0, f"reply {k}") for k in range(4)]
        last = says(texts[4], levels[4])
        traces.append(row(f"{number}", *(each for both in zip(said, replies, strict=True) for each in both), last))
        lengths.append(own)
    for against in ("previous", "first", "running-minimum"):
        audit_tools(traces, against=against, out=tmp_path / against)
        calls = calls_of(tmp_path / against)
        for number, own in enumerate(lengths):
            for k in range(4):
                needed = [own[k], own[k + 1], *([own[0]] if against == "first" else [])]
                outcome = calls[f"{number}", k + 1, "search"]["outcome"]
                assert (outcome == "too few words") == (min(needed) < 5), (against, own, k)


def test_a_run_of_calls_leaves_no_call_needless():
    """The texts around three calls tell what all three did, and nothing of any."""
    messages = [says(SIX, SURE, ("a", {})), told(0, "A")]
    messages += [says(None, None, ("b", {})), told(0, "B"), says(None, None, ("c", {})), told(0, "C")]
    result = audit_tools([row("run", *messages, says(SIX, UNSURE), success=True)])
    assert result.undecided == {"too few words": 3} and result.useless_count == 0
    assert "0 of 3 in right traces count as needless" in result.headline()


def test_the_time_that_is_told_is_not_that_of_the_first_pass(monkeypatch):
    """A model that takes 100 s for its first pass and 1 s for each further one."""
    clock, passes, score = [0.0], [], tool_audit_model.score_responses

    def slow_at_first(*given, **named):
        clock[0] += 1 if passes else 100
        passes.append(given)
        return score(*given, **named)

    monkeypatch.setattr(tool_audit_model, "score_responses", slow_at_first)
    monkeypatch.setattr(tool_audit_model.time, "perf_counter", lambda: clock[0])
    read = [tool_audit_model.ReadTrace(tuple(range(1, 9)), ((0, 1, 8),), (), True)] * 3
    assert tool_audit_model.seconds_for(small_model(), read) == pytest.approx(3) and len(passes) == 2


def test_the_margin_has_to_be_exceeded(tmp_path):
    (low, high) = (bounds(SURE)[side] - bounds(UNSURE)[1 - side] for side in (0, 1))
    words = [
        audit_tools(TRACES[:1], margin=margin).overall.lowered for margin in (-high - 0.01, -high + 0.01, -low + 0.01)
    ]
    assert [(each.count, each.of) for each in words] == [(1, 1), (0, 0), (0, 1)]


def test_shares_are_of_steps_and_clustered(done):
    use = {each.tool: each for each in done.result.tools}
    overall = done.result.overall
    assert (overall.calls, overall.steps, overall.lowered.of, overall.lowered.count) == (10, 10, 4, 2)
    assert overall.lowered.missing == 6
    assert [each.tool for each in done.result.tools] == ["search", "open"] and use["open"].lowered.of == 0
    changes = [done.calls[key]["change"] for key in (("fell", 1, "search"), ("rose", 1, "search"))]
    changes += [done.calls["both", step, "search"]["change"] for step in (1, 2, 3)]
    assert use["search"].change.value == pytest.approx(np.mean(changes))
    assert (
        use["search"].change.lower < np.mean(changes, axis=0)[0]
        and use["search"].change.upper > np.mean(changes, axis=0)[1]
    )
    path = {(each.tool, each.number): each for each in done.result.path}
    assert path["search", 1].of == 3 and path["search", 1].change.value == pytest.approx(
        np.mean([changes[i] for i in (0, 1, 2)])
    )
    assert path["search", 3].change.value == pytest.approx(np.mean(changes[4])) and math.isnan(
        path["search", 3].change.lower
    )


def test_calls_of_one_group_are_one_source(tmp_path):
    apart = [trace(f"{k}", *((UNSURE, SURE) if k % 2 else (SURE, UNSURE))) for k in range(12)]
    together = [{**each, "group": f"g{int(each['id']) % 2}"} for each in apart]
    one, two = audit_tools(apart).overall.lowered, audit_tools(together).overall.lowered
    assert one.rate == two.rate == 0.5 and two.upper - two.lower > one.upper - one.lower


def test_auroc_of_the_fall_for_right_against_wrong_traces(tmp_path):
    rng = np.random.default_rng(0)
    levels = [tuple(sorted(rng.dirichlet([6, 2, 1])[:2], reverse=True)) for _ in range(120)]
    rows = [trace(f"{k}", levels[2 * k], levels[2 * k + 1], success=bool(rng.random() < 0.5)) for k in range(60)]
    result = audit_tools(rows, out=tmp_path / "a")
    made = list(calls_of(tmp_path / "a").values())
    labels, falls = [each["right"] for each in made], [-np.mean(each["change"]) for each in made]
    assert result.calibration.value == pytest.approx(roc_auc_score(labels, falls))
    assert result.calibration.lower < result.calibration.value < result.calibration.upper
    assert result.calibrated == {"right": sum(labels), "wrong": 60 - sum(labels)}
    assert "0.5 is chance" in (tmp_path / "a" / "report.html").read_text()


def test_repeats_are_of_the_same_question_only():
    given = [
        ("search", '{"q": "Oslo", "k": 1}'),
        ("search", '{"k":1,"q":"Oslo"}'),
        ("search", '{"q": " oslo? ", "k": 1.0}'),
        ("open", '{"q": "Oslo", "k": 1}'),
        ("calculator", '{"e": "2*3"}'),
        ("calculator", '{"e": "2/3"}'),
        ("calculator", '{"e": "2 3"}'),
        ("run", "make test"),
        ("run", "make  test"),
        ("run", '{"k": true}'),
        ("run", '{"k": 1}'),
    ]
    messages = []
    for number, (tool, arguments) in enumerate(given):
        call = {"id": "c", "function": {"name": tool, "arguments": arguments}}
        reply = {"role": "tool", "tool_call_id": "c", "content": "same" if number < 8 else f"{number}"}
        messages += [{"role": "assistant", "tool_calls": [call]}, reply]
    (read,) = read_traces([{"messages": messages}])
    found = [repeat for (repeat,) in tool_audit_measures.repeats(read)]
    assert [(k + 1, each.kind, each.number, each.replied) for k, each in enumerate(found) if each] == [
        (2, "same", 1, True),
        (3, "alike", 1, True),
        (9, "alike", 8, False),
    ]


def test_calls_at_once_are_one_step_and_share_its_cost(tmp_path):
    messages = [
        says(
            SIX,
            SURE,
            ("a", {"q": 1}),
            ("a", {"q": 1}),
            ("b", {"q": 2}),
            usage={"completion_tokens": 30},
            latency=3,
            price=0.6,
        ),
        told(0, "x" * 40, latency=1),
        told(1, "x" * 40, latency=2),
        told(2, "y" * 8),
        says(SIX, UNSURE),
    ]
    result = audit_tools([row("t", *messages, success=True), trace("u", SURE, SURE, success=False)], out=tmp_path / "a")
    use = {each.tool: each for each in result.tools}
    assert (use["a"].calls, use["a"].steps, use["a"].lowered.of, use["a"].duplicate.count) == (2, 1, 1, 1)
    lines = (tmp_path / "a" / "calls.jsonl").read_text().splitlines()
    first, second, third, other = map(json.loads, lines)
    assert [each["together"] for each in (first, second, third, other)] == [3, 3, 3, 1]
    assert (second["duplicate"], second["duplicate_of"], second["same_reply"]) == ("same", 1, True)
    assert [(each["turn_tokens"], each["reply_tokens"], each["seconds"]) for each in (first, second, third)] == [
        (10, 10, 2.0),
        (10, 10, 3.0),
        (10, 2, 1.0),
    ]
    assert other["turn_tokens"] == 6 + math.ceil(len('search{"q": 1, "n": 0}') / 4) and other["seconds"] is None
    assert result.overall.needless == 3 and result.overall.anyway == 3 and result.overall.needless_tokens == 52
    assert result.overall.needless_price == pytest.approx(0.6) and result.overall.needless_seconds == 6
    assert (use["search"].needless, use["search"].right) == (0, 0)


def test_a_repeat_with_another_reply_is_not_useless():
    def ran(reply):
        return [says(SIX, UNSURE, ("run", {})), told(0, reply)]

    one = audit_tools([row("t", *ran("failed"), *ran("passed"), says(SIX, SURE), success=True)])
    assert one.overall.duplicate.count == 1 and one.overall.needless == 0
    two = audit_tools([row("t", *ran("failed"), *ran("failed"), says(SIX, SURE), success=True)])
    assert two.overall.needless == 1 and two.useless[0].number == 2


def test_useless_calls_are_told_with_what_weighs_most_first(done):
    useless = done.result.useless
    assert [(each.trace, each.number, each.right) for each in useless] == [("rose", 1, True), ("both", 3, False)]
    assert done.result.overall.needless == 1 and done.result.overall.right == 4


def test_what_was_copied_from_replies():
    reply = "Oslo is the capital of Norway and lies in the south"
    copied = "As told, oslo is the capital city of Norway"
    known = [says(SIX, SURE, ("a", {})), told(0, reply), says(copied, SURE)]
    words = re.findall(r"\w+|[^\w\s]", copied)
    assert audit_tools([row("t", *known)]).overall.copied == pytest.approx(4 / len(words))
    fresh = [says(reply, SURE, ("a", {})), told(0, reply), says(SIX, SURE)]
    assert audit_tools([row("t", *fresh)]).overall.copied == 0
    # Of each text its own words alone: 0 of 6, 3 of 4, and 5 of 8 of a reply two steps before.
    third = "the capital of Norway and then some more"
    later = row("t", says(SIX, SURE, ("a", {})), told(0, reply), says("Norway and lies too", SURE, ("a", {})),
                told(0, "no"), says(third, SURE))  # fmt: skip
    rates = tool_audit_measures._copy_rates(read_traces([later]))[0]
    assert rates[:3].tolist() == [0, 0.75, 0.625]
    parts = list(tool_audit_measures._batches([3, 9, 1]))
    assert parts == [[2, 0, 1]] and list(tool_audit_measures._batches([])) == []


def test_traces_of_like_length_are_padded_together(monkeypatch):
    """No more numbers at once than are allowed, the padding among them, but one trace at least."""
    monkeypatch.setattr(tool_audit_measures, "AT_ONCE", 12)
    found = list(tool_audit_measures._batches([4, 6, 4, 20, 4, 6, 1]))
    assert found == [[6, 0, 2], [4, 1], [5], [3]]


def test_answers_are_compared_with_their_gold():
    def ended(text, **more):
        return row(text, says(SIX, SURE, ("a", {})), told(0, "x"), says(text, SURE), **more)

    rows = [
        ended("It seems to be so. <answer>New York</answer>", gold="new york"),
        ended("Many words on the way to it.\nAnswer: Oslo", gold=["Bergen", "Oslo"]),
        ended("Many words on the way to it, and Oslo", gold="Oslo"),
        ended("Nobody says how this ended"),
    ]
    counts = audit_tools(rows).counts
    assert (counts["right"], counts["wrong"], counts["ungraded"]) == (2, 1, 1)
    assert audit_tools(rows, right_at=0.1).counts["right"] == 3
    numbers = [ended("So 1,200 in all", gold=1200), ended("So 12 in all", gold="1200")]
    assert audit_tools(numbers, verifier="number").counts["right"] == 1
    with pytest.raises(BadInput, match=r"row 1: .*is no number.*Choose another --verifier"):
        audit_tools(rows, verifier="number")


def test_a_trace_is_measured_alike_alone_and_in_any_order(done, tmp_path):
    audit_tools(TRACES[::-1], out=tmp_path / "reversed")
    assert calls_of(tmp_path / "reversed") == done.calls
    audit_tools([TRACES[2]], out=tmp_path / "alone")
    assert calls_of(tmp_path / "alone").items() <= done.calls.items()


def test_secrets_stand_nowhere_and_text_is_text(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOP_API_KEY", "abcdefgh12345678")
    given = {
        "url": "https://u:pw123456@host/?token=qwerty99",
        "password": "hunter2hunter2",
        "key": "Oslo",
        "deep": [{"apiKey": "zzz999zz"}],
        "say": "abcdefgh12345678",
        "b": "<b>bold</b>",
    }
    rows = [
        row("t<i>", says(SIX, SURE, ("<tool>", given)), told(0, "x"), says(SIX, UNSURE), success=True),
        row("u", says(SIX, SURE, ("s", {})), told(0, "x"), says(SIX, UNSURE), success=False),
    ]
    rows[1]["messages"][1]["tool_calls"][0]["function"]["arguments"] = "curl -H 'Authorization: Bearer sk-aaaabbbbcccc'"
    audit_tools(rows, out=tmp_path / "a")
    for path in (tmp_path / "a").iterdir():
        text = path.read_text()
        for secret in ("pw123456", "qwerty99", "hunter2", "zzz999zz", "abcdefgh1234", "sk-aaaa"):
            assert secret not in text, (path.name, secret)
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Oslo" in page and "<b>bold" not in page and "<tool>" not in page and "t&lt;i&gt;" in page
    long = ToolCall("s", json.dumps({"q": "w " * 400}))
    assert len(tool_audit_measures.shown_arguments(long, [])) <= 240


def test_the_headline_says_when_little_is_known():
    few = audit_tools(TRACES[4:8])
    assert few.headline().startswith("Only 0 of 4 steps are decided, the others mostly not since") and math.isnan(
        few.calibration.value
    )
    unknown = audit_tools([trace("t", UNSURE, SURE)])
    assert "No trace says how it ended" in unknown.headline()
    rows = [trace(f"{k}", *((SURE, UNSURE) if k % 2 else (UNSURE, SURE)), success=bool(k % 2)) for k in range(60)]
    misled = audit_tools([*rows, trace("x", UNSURE, SURE, success=True)])
    assert misled.calibration.upper < 0.5 and "no better call" in misled.headline()


def test_what_is_refused_before_any_work(monkeypatch):
    loads = []
    monkeypatch.setattr(tool_audit, "load", lambda *given, **how: loads.append(given))
    bare = row("t", says(SIX, None, ("a", {})), told(0, "x"), says(SIX, None))
    with pytest.raises(BadInput, match=r"1 traces: no trace has the log-probabilities.*top_logprobs=20.*--model"):
        audit_tools([bare])
    with pytest.raises(BadInput, match=r"no call of a tool in 1 traces"):
        audit_tools([TRACES[-1]])
    three = trace("t", (0.4, 0.3, 0.2), UNSURE)
    with pytest.raises(BadInput, match=r"row 1: 3 alternatives of a token, but the vocabulary is 2: mend --vocabulary"):
        audit_tools([three], vocabulary=2)
    with pytest.raises(BadInput, match=r"https://here/v1 is a server"):
        audit_tools([bare], model="https://here/v1")
    assert loads == []


def test_the_command_and_its_example(tmp_path, capsys):
    out = tmp_path / "audit"
    assert main(["audit", "tools", "--traces", "examples/tool_traces.jsonl", "--out", str(out), "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == str(out) and "2 of 13 in right traces count as needless" in said.err
    assert "madeup" not in "".join(path.read_text() for path in out.iterdir())


# With a model


def conversation(identifier, words, **more):
    """Nothing is logged but what was said."""
    first, second, third = words
    call = {"id": "c", "function": {"name": "find", "arguments": '{"q": "Oslo"}'}}
    messages = [
        ASKED,
        {"role": "assistant", "content": first, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "Norway yes"},
        {"role": "assistant", "content": second, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "one two"},
        {"role": "assistant", "content": third},
    ]
    return {"id": identifier, "messages": messages, **more}


SPOKEN = [
    conversation(
        "a", ("The capital of France is", "where the river bends twice", "seven six five four three"), success=True
    ),
    conversation("b", ("What is the capital of", "yes no maybe one two", "In the town of Veskole"), success=False),
    conversation("c", ("born born born born born", "yes", "The river bends. Twice."), success=True),
]


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    result = audit_tools(SPOKEN, model=small_model(), out=folder / "audit")
    return SimpleNamespace(result=result, folder=folder / "audit", calls=calls_of(folder / "audit"))


def by_brute_force(language_model, text, part):
    """The mean entropy of the tokens of a part of a text, from all logits of all of it."""
    encoded = language_model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    with torch.no_grad():
        logits = language_model.model(input_ids=torch.tensor([encoded.input_ids])).logits[0].double()
    entropies = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    start = text.index(part)
    places = [k for k, (a, b) in enumerate(encoded.offset_mapping) if a < start + len(part) and b > start]
    return float(entropies[[k - 1 for k in places]].mean())


def test_entropies_are_those_of_all_logits(computed):
    language_model = small_model()
    (read,) = read_traces(SPOKEN[:1])
    text, spans, plain = tool_audit_model._shown(language_model, read)
    assert not plain and [text[a:b] for a, b in spans.values()] == [turn.text for turn in read.turns]
    assert (
        '<tool_call>\n{"name": "find", "arguments": {"q": "Oslo"}}\n</tool_call>' in text
        and "<|tool|><tool_response>" in text
    )
    expected = [by_brute_force(language_model, text, turn.text) for turn in read.turns]
    for step in (1, 2):
        made = computed.calls["a", step, "find"]
        assert made["before"] == pytest.approx([expected[step - 1]] * 2, abs=1e-5)
        assert made["after"] == pytest.approx([expected[step]] * 2, abs=1e-5)
        assert made["outcome"] == ("lowered" if expected[step] < expected[step - 1] else "not lowered")
    assert computed.result.width == 0 and not computed.result.estimated
    ids = language_model.tokenizer("Norway yes", add_special_tokens=False).input_ids
    assert computed.calls["a", 1, "find"]["reply_tokens"] == len(ids)


def test_logits_by_pieces_give_the_same(computed, tmp_path, monkeypatch):
    monkeypatch.setattr(rollouts, "_LOGITS_AT_ONCE", 2 * small_model().vocabulary)
    audit_tools(SPOKEN, model=small_model(), out=tmp_path / "a")
    for key, made in calls_of(tmp_path / "a").items():
        assert made["change"] == pytest.approx(computed.calls[key]["change"], abs=1e-5, nan_ok=True)


def test_killed_it_goes_on_and_writes_the_same_bytes(computed, tmp_path, monkeypatch):
    entropies, calls = tool_audit_model.entropies_of, []

    def counting(language_model, read):
        calls.append(read)
        if len(calls) == 5:  # two are timed
            raise KeyboardInterrupt
        return entropies(language_model, read)

    monkeypatch.setattr(tool_audit_model, "entropies_of", counting)
    with pytest.raises(KeyboardInterrupt):
        audit_tools(SPOKEN, model=small_model(), out=tmp_path / "a")
    stored = tmp_path / "a.partial" / "entropies.jsonl"
    assert len(stored.read_text().splitlines()) == 2
    with stored.open("a") as file:
        file.write('{"trace": "c", "dig')
    calls[:] = [None] * 5
    audit_tools(SPOKEN, model=small_model(), out=tmp_path / "a")
    assert len(calls) == 5 + 3  # two are timed, one was left
    names = {path.name for path in computed.folder.iterdir()}
    assert names == {path.name for path in (tmp_path / "a").iterdir()} and "entropies.jsonl" not in names
    for name in names - {"manifest.json", "report.html"}:
        assert (tmp_path / "a" / name).read_bytes() == (computed.folder / name).read_bytes(), name


def test_the_time_is_told_first_and_it_is_one_pass_a_trace(tmp_path, monkeypatch, capsys):
    told, passes = audit_tools.plan(SPOKEN, model=small_model()), []
    assert told.traces == 3 and told.seconds > 0 and "one pass a trace" in told.summary()[-1]
    score = tool_audit_model.score_responses
    monkeypatch.setattr(
        tool_audit_model,
        "score_responses",
        lambda model, batch, **how: passes.append(batch) or score(model, batch, **how),
    )
    audit_tools(SPOKEN, model=small_model())
    assert [batch["input_ids"].shape[0] for batch in passes] == [1] * 5  # the second is timed
    assert sum(batch["input_ids"].shape[1] for batch in passes[2:]) == told.tokens
    assert "One pass for each of 3 traces: about" in capsys.readouterr().err


TURN = "[{{ m.role }}]{{ m.content }}"
CALLS = "{% for c in m.tool_calls or [] %}({{ c.function.name }}:{{ c.function.arguments.q }}){% endfor %}"
REFUSES = "{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}"
LEFT_OUT = "tool: <tool_response>\nNorway yes\n</tool_response>\n\nassistant: where"


@pytest.mark.parametrize(
    ("template", "shown", "plain"),
    [
        (f"{{% for m in messages %}}{TURN}{CALLS}{{% endfor %}}", "(find:Oslo)[tool]Norway yes", False),
        (f"{{% for m in messages %}}{REFUSES}{TURN}{{% endfor %}}", "[user]<tool_response>\nNorway yes", False),
        ("{% for m in messages[:2] %}{{ m.content }}{% endfor %}", LEFT_OUT, True),
    ],
)
def test_how_a_conversation_is_shown(template, shown, plain):
    made = small_model()
    tokenizer = copy.copy(made.tokenizer)
    tokenizer.chat_template = template
    language_model = wrap(made.model, tokenizer)
    (read,) = read_traces(SPOKEN[:1])
    text, spans, was_plain = tool_audit_model._shown(language_model, read)
    assert shown in text and was_plain is plain
    assert [text[a:b] for a, b in spans.values()] == [turn.text for turn in read.turns]


def test_what_is_behind_the_context_is_not_measured(tmp_path):
    made = small_model()
    model = copy.copy(made.model)
    model.config = copy.deepcopy(made.model.config)
    (whole,) = tool_audit_model.read_traces_with(made, read_traces(SPOKEN[:1]))
    model.config.max_position_embeddings = whole.texts[-1][2] - 1
    result = audit_tools(SPOKEN[:1], model=wrap(model, made.tokenizer), out=tmp_path / "a")
    made_calls = calls_of(tmp_path / "a")
    assert made_calls["a", 2, "find"]["outcome"] == "beyond the context" and result.undecided == {
        "beyond the context": 1
    }
    assert made_calls["a", 1, "find"]["outcome"] in ("lowered", "not lowered")


def test_a_text_that_is_empty_stands_nowhere_and_others_in_their_order():
    def turn(text, *calls, before=()):
        return SimpleNamespace(text=text, calls=calls, before=before)

    asked = SimpleNamespace(tool="find", reply=None)
    answered = SimpleNamespace(tool="find", reply=" it ")

    def spans(shown, *turns):
        return tool_audit_model._spans(SimpleNamespace(turns=turns), shown)

    turns = turn(" ", asked, before=(("user", "go"), ("user", ""))), turn("a", answered), turn("a")
    assert spans("go find a find it a", *turns) == {1: (8, 9), 2: (18, 19)}
    assert spans("go find a find it", *turns) is None
    assert spans("find go a find it a", *turns) is None
    assert tool_audit_model.seconds_for(None, []) == 0


def test_a_summary_names_twelve_tools_and_counts_the_others(monkeypatch):
    monkeypatch.setattr(tool_audit_result, "percent", lambda share: f"{share}%")
    monkeypatch.setattr(tool_audit_result, "between", lambda value: f"{value.value}")
    tools = [SimpleNamespace(tool=f"t{k}", calls=k, lowered=k, duplicate=2 * k, needless=1000 * k) for k in range(14)]

    def summary(count, auroc):
        audit = SimpleNamespace(tools=tools[:count], calibration=SimpleNamespace(value=auroc), headline=lambda: "last")
        return tool_audit_result.ToolAudit.summary(audit)

    lines = summary(14, 0.75)
    assert lines[3] == "t3: 3 calls, lowered uncertainty 3%, repeats 6%, needless 3,000"
    assert lines[11].startswith("t11: ") and lines[12] == "and 2 more tools" and lines[13].endswith("traces: 0.75")
    assert len(lines) == 15 and lines[14] == "last"
    assert len(summary(12, math.nan)) == 13 and len(summary(1, math.nan)) == 2


def test_out_of_memory_with_one_trace_no_smaller_batch_is_advised(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(tool_audit_model, "score_responses", full)
    reader = SimpleNamespace(model=torch.nn.Linear(1, 1), device=torch.device("cpu"))
    read = tool_audit_model.ReadTrace((5, 6, 7), ((0, 1, 3),), (), True)
    with pytest.raises(WorkFailed, match="at batch size 1: use a smaller model or shorter texts"):
        tool_audit_model.entropies_of(reader, read)
