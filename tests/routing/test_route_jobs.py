"""The jobs from end to end on a small model: labels of stored answers and of a judge; a router fitted, loaded, measured."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from chat_models import untaught
from equipoise import routing
from equipoise.chat.calls import Reply
from equipoise.chat.grade import Submission, blinded
from equipoise.core.calibration import Calibration
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.scores import auroc
from equipoise.core.shares import Bounded
from equipoise.core.statistics import item_interval, score_interval
from equipoise.data.problems import Problem
from equipoise.routing import evaluating, fitting, kept, labeling, prompt_states, scoring
from equipoise.routing.job import ProbeSettings
from equipoise.routing.labels import FEWEST, divide, read_labels, solved_of
from equipoise.routing.measured import HeldOut, Threshold
from equipoise.routing.router import Router

pytest.importorskip("sklearn")
TURNS = [{"role": "user", "content": "Oslo"}, {"role": "assistant", "content": "one"}]
WORDS = ("one", "two", "three", "four", "five", "six", "seven")


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """Of every bootstrap: what is asked of intervals here is that they are there."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (fitting, scoring):
            patch.setattr(module, "DRAWS", 40)
        yield


@pytest.fixture(scope="module")
def lm():
    return untaught(0, context=512)


def rows(n=240, seed=0, domains=("a", "b")):
    """Weak answers well where "Oslo" stands, in nine of ten prompts; strong in nine of ten, whatever the prompt."""
    generator = np.random.default_rng(seed)
    found = []
    for index in range(n):
        easy = bool(generator.integers(2))
        said = " ".join(generator.choice(WORDS, int(generator.integers(3, 7))))
        found.append(
            {
                "id": f"{seed}-{index}",
                "prompt": f"{'Oslo' if easy else 'Kunwick'} {said} {index}",
                "domain": domains[index % len(domains)],
                "weak": float((generator.random() < 0.9) == easy),
                "strong": float(generator.random() < 0.9),
            }
        )
    return found


@pytest.fixture(scope="module")
def fitted(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("router") / "fit"
    some = rows()
    some[-1]["prompt"] = [*TURNS, {"role": "user", "content": some[-1]["prompt"]}]
    done = routing.fit(lm, labels=some, calls=0.5, epochs=10, learning_rate=0.01, out=folder)
    return done, folder


def test_parts_are_a_function_of_names_and_seed_and_keep_groups_together():
    groups = [f"g{index // 2}" for index in range(200)]
    parts = divide(groups, 1)
    assert parts == divide(groups, 1) != divide(groups, 2)
    assert divide(groups[::-1], 1)[::-1] == parts
    assert all(parts[index] == parts[index + 1] for index in range(0, 200, 2))
    assert [parts.count(part) for part in ("fit", "choose", "test")] == [100, 50, 50]
    with pytest.raises(BadInput, match=f"give at least {FEWEST}"):
        divide(groups[:100], 1)


def test_labels_that_are_none_are_counted_and_wrong_ones_refused():
    some = rows(4)
    read = read_labels([*some, {**some[0], "id": "x", "weak": None}])
    assert len(read.problems) == 4 and read.unjudged == 1 and "1 prompts" in read.notes()[0]
    alone = read_labels([{key: value for key, value in row.items() if key != "strong"} for row in some])
    assert alone.strong == (1.0,) * 4 and "counts as right" in alone.notes()[0]
    with pytest.raises(BadInput, match="has no field 'strong', and others have"):
        read_labels([some[0], {key: value for key, value in some[1].items() if key != "strong"}])
    with pytest.raises(BadInput, match="has no field 'weak'"):
        read_labels([{"prompt": "a"}])
    with pytest.raises(BadInput, match="the weak 'good', expected a number"):
        read_labels([{**some[0], "weak": "good"}])


def test_prompts_that_read_alike_stay_together_and_0_is_a_domain():
    some = rows(4)
    twice = [*some, {**some[0], "id": "again"}, {**some[1], "id": "own", "group": "g"}]
    assert read_labels(twice).groups == ("prompt 0-0", "prompt 0-1", "prompt 0-2", "prompt 0-3", "prompt 0-0", "g")
    talks = [
        {**row, "prompt": [*TURNS, {"role": "user", "content": said}]} for row, said in zip(some, "xyxz", strict=True)
    ]
    assert read_labels(talks).groups == ("prompt 0-0", "prompt 0-1", "prompt 0-0", "prompt 0-3")
    numbered = [{**row, "domain": index or None} for index, row in enumerate(some)]
    assert read_labels(numbered).domains == ("all", "1", "2", "3")
    assert read_labels([{**row, "domain": index} for index, row in enumerate(some)]).domains == ("0", "1", "2", "3")


def test_solved_is_read_or_refused():
    some = rows(3)
    assert solved_of(
        read_labels([{**row, "solved": value} for row, value in zip(some, (1, "0", True), strict=True)])
    ).tolist() == [
        1,
        0,
        1,
    ]
    for wrong in (0.7, None, "yes"):
        with pytest.raises(BadInput, match="solved"):
            solved_of(read_labels([{**row, "solved": value} for row, value in zip(some, (1, 0, wrong), strict=True)]))


def test_what_was_answered_well_does_not_depend_on_the_rows_beside_it():
    """Correctness (20 both wrong, 10 of strong alone, 20 both right) by itself, and joined with open-ended qualities."""
    qualities = [(0, 0)] * 20 + [(0, 1)] * 10 + [(1, 1)] * 20
    mmlu = [
        {"prompt": f"m{index}", "domain": "mmlu", "weak": weak, "strong": strong, "scores": {"mine": float(weak)}}
        for index, (weak, strong) in enumerate(qualities)
    ]
    alpaca = [
        {"prompt": f"a{index}", "domain": "alpaca", "weak": index / 20, "strong": 0.5, "scores": {"mine": 0.5}}
        for index in range(20)
    ]
    for beside in ([], alpaca, alpaca[10:11]):
        joined = [{**row, "id": str(place)} for place, row in enumerate([*mmlu, *beside])]
        labels = solved_of(read_labels(joined))
        assert labels.tolist() == [weak for weak, _ in qualities] + [float(row["weak"] >= 0.5) for row in beside]
        assert solved_of(read_labels(joined[::-1])).tolist() == labels.tolist()[::-1]
        assert routing.evaluate(joined).cards["mmlu"]["mine"].auroc.value == 1


def test_grades_from_1_to_10_leave_who_is_right_undefined_and_say_so(tmp_path):
    """Beside a domain of 0 and 1, whose table stays what it was."""
    right = [{**row, "id": f"r{i}", "scores": {"mine": 0.1 * i}} for i, row in enumerate(rows(40, domains=("mmlu",)))]
    graded = [
        {**row, "id": f"g{i}", "prompt": f"g{i}", "domain": "alpaca", "weak": 1 + i % 7, "strong": 4 + i % 7}
        for i, row in enumerate(right)
    ]
    alone = routing.evaluate(right)
    done = routing.evaluate([*right, *graded], out=tmp_path / "evaluated")
    assert not alone.notes
    for cell in ("both", "only_strong", "only_weak", "neither"):
        assert getattr(done.outcomes["mmlu"], cell) == getattr(alone.outcomes["mmlu"], cell)
        assert math.isnan(getattr(done.outcomes["alpaca"], cell).value)
    assert any("from 0 to 10" in note and "undefined" in note for note in done.notes)
    page = (tmp_path / "evaluated" / "report.html").read_text()
    assert "right from a quality of 0.5" in page and "from 0 to 10" in page
    without = [{name: value for name, value in row.items() if name != "strong"} for row in graded]
    for wrong in (without, [{**row, "weak": -0.5} for row in without]):
        with pytest.raises(BadInput, match="no row has a field 'strong': each would count as right"):
            read_labels(wrong)


def test_a_router_that_is_fitted_ranks_new_prompts_and_holds_its_budget(fitted):
    done, _ = fitted
    assert done.kind in ("mean", "dirichlet") and done.cards[done.kind].auroc.value > 0.8
    assert done.gains[done.kind].lower > 0 and not done.warnings()
    assert abs(done.cards["length"].auroc.value - 0.5) < 0.2
    assert done.held_out.verdict in ("met", "not refuted") and done.threshold.calls.value <= 0.5
    assert done.prompts == {"fit": 120, "choose": 60, "test": 60}
    assert {
        "random",
        "entropy",
        "margin",
        "perplexity",
        "chain-of-embedding",
        "embedding-mlp",
        "last",
    } <= done.cards.keys()
    assert set(done.cross) == {"a", "b"} and done.cross["a"]["b"].value > 0.7
    assert done.outcomes.escalated["only_strong"] > done.outcomes.only_strong.value
    assert sum(done.alpha["dirichlet"]) == pytest.approx(1) and len(done.alpha["dirichlet"]) == 3
    assert 0 < done.bytes < 5000


def test_a_drift_is_said_before_the_numbers(fitted):
    done, _ = fitted
    held = HeldOut(60, Bounded(0.05, 0.0, 0.1), Bounded(0.9, 0.8, 1.0), "drifted")
    assert "The share of calls on the test prompts, 0.050" in replace(done, held_out=held).headline()
    evaluated = routing.evaluate([{**row, "scores": {"mine": row["weak"]}} for row in rows(80)])
    told = replace(evaluated, router="mean", aim="calls", target=0.3, held_out=held).headline()
    assert told.startswith("The share of calls has drifted to 0.050") and "for calls 0.3" in told


def test_what_is_saved_scores_a_prompt_read_alone_as_it_was_fitted(lm, fitted):
    done, folder = fitted
    router = routing.load(folder)
    choosing = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    choosing = [row["scores"][done.kind] for row in choosing if row["part"] == "choose"]
    assert done.threshold.value == routing.threshold(choosing, calls=0.5, confidence=1 - 0.05 / 3).value
    assert router.check(lm) == [] and router.threshold == done.threshold.value and router.chosen["target"] == 0.5
    stored = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert stored[-1]["prompt"][:2] == TURNS and read_labels(folder / "scores.jsonl").problems[-1].messages
    assert "1/3 of the error" in (folder / "report.html").read_text()
    assert len(stored) == 240 and not (folder / "features").exists()
    for row in stored[:4]:
        ids = prompt_states.encode(lm, [row["prompt"]], "chat")[0]
        assert router.score_prefill(routing.prefill(lm, ids)) == pytest.approx(row["scores"][done.kind], abs=1e-4)
    p = router.probability(np.array([row["scores"][done.kind] for row in stored if row["part"] == "test"]))
    solved = np.array([row["solved"] for row in stored if row["part"] == "test"])
    assert done.brier.value == pytest.approx(((p - solved) ** 2).mean()) and done.brier.value < 0.2


def test_stored_scores_are_measured_on_what_was_tested_alone(fitted, tmp_path):
    done, folder = fitted
    again = routing.evaluate(folder / "scores.jsonl", out=tmp_path / "evaluated")
    assert again.prompts == 60 and set(again.cards) == {"a", "b"}
    for name in ("a", "b"):
        assert again.cards[name][done.kind].auroc.value == done.domains[name][done.kind].auroc.value
        assert again.cards[name]["length"].hcr == done.domains[name]["length"].hcr or math.isnan(
            again.cards[name]["length"].hcr.value
        )
    assert again.scenarios["auroc"][0] in (
        "mean",
        "dirichlet",
        "softmax",
        "max",
        "embedding-logistic",
        "embedding-mlp",
        "last",
    )
    assert "AUROC" in (tmp_path / "evaluated" / "report.html").read_text()
    mine = [{**row, "scores": {"mine": row["weak"]}} for row in rows(80)]
    perfect = routing.evaluate(mine)
    assert all(each["mine"].auroc.value == 1 for each in perfect.cards.values())
    with pytest.raises(BadInput, match="has no score 'mine'"):
        routing.evaluate([*mine, {**rows(1, seed=9)[0], "scores": {"yours": 1.0}}])
    with pytest.raises(BadInput, match="a fit has learnt or chosen from"):
        routing.evaluate([{**row, "part": "fit"} for row in mine])
    with pytest.raises(BadInput, match="no row has scores"):
        routing.evaluate(rows(80))


@pytest.mark.slow
def test_a_router_meets_new_prompts_and_other_ones(lm, fitted):
    done, folder = fitted
    new = routing.evaluate(rows(160, seed=5), router=folder, model=lm, ask=True, samples=2, max_new_tokens=2)
    assert new.router == done.kind and new.held_out.verdict in ("met", "not refuted")
    assert min(cards["router"].auroc.value for cards in new.cards.values()) > 0.8
    assert {"verbalised", "semantic-entropy", "length", "entropy"} <= new.cards["a"].keys()
    assert new.outcomes["a"].sent > 0
    drifted = [row for row in rows(400, seed=6) if row["prompt"].startswith("Kunwick")]
    other = routing.evaluate(drifted, router=folder, model=lm)
    assert other.held_out.verdict == "refuted" and "have drifted" in other.headline()
    with pytest.raises(BadInput, match="give router and model"):
        routing.evaluate(rows(80), router=folder)
    doubtful = routing.evaluate(rows(80), router=folder, model=untaught(1, context=512))
    assert any("are not those of" in note for note in doubtful.notes)


@pytest.mark.slow
def test_what_a_model_was_asked_is_not_asked_again(lm, fitted, tmp_path, monkeypatch):
    """Killed in the fourth of its four parts of asking: the same bytes, and one part asked."""
    _, folder = fitted
    given = {"router": folder, "model": lm, "ask": True, "samples": 2, "max_new_tokens": 2}
    some = [row | {"scores": {"length": 1.0}} for row in rows(kept.AT_ONCE + 4, seed=7)]
    whole = routing.evaluate(some, out=tmp_path / "whole", **given)
    real, asked = {name: getattr(evaluating, name) for name in ("verbalised", "semantic_agreement")}, []

    def asking(name, stop):
        def ask(language_model, prompts, **more):
            if len(asked) >= stop:
                raise KeyboardInterrupt
            asked.append((name, len(prompts)))
            return real[name](language_model, prompts, **more)

        monkeypatch.setattr(evaluating, name, ask)

    for name in real:
        asking(name, 3)
    with pytest.raises(KeyboardInterrupt):
        routing.evaluate(some, out=tmp_path / "cut", **given)
    for name in real:
        asking(name, 9)
    again = routing.evaluate(some, out=tmp_path / "cut", **given)
    assert asked == [("verbalised", 16), ("verbalised", 4), ("semantic_agreement", 16), ("semantic_agreement", 4)]
    assert repr(replace(again, folder=None)) == repr(replace(whole, folder=None))
    assert (tmp_path / "cut" / "result.json").read_bytes() == (tmp_path / "whole" / "result.json").read_bytes()
    assert not (tmp_path / "cut" / "asked.jsonl").exists()
    # Each prompt's draws are its own, whatever it was asked with.
    prompts = [row["prompt"] for row in some]
    assert (
        real["semantic_agreement"](lm, prompts[16:], samples=2, max_new_tokens=2, keys=range(16, 20)).score
        == real["semantic_agreement"](lm, prompts, samples=2, max_new_tokens=2).score[16:]
    ).all()
    cards = again.cards["a"]
    assert cards["length (given)"].auroc.value == 0.5 and "length" in cards
    with pytest.raises(BadInput, match="more than the context"):
        routing.evaluate([{**some[0], "prompt": "one " * 500}, *some[1:]], **given)


@pytest.mark.slow
def test_the_file_that_was_fitted_on_is_doubted(lm, tmp_path):
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(120, seed=4)))
    routing.fit(lm, labels=tmp_path / "labels.jsonl", kind="length", epochs=1, out=tmp_path / "fit")
    given = {"router": tmp_path / "fit", "model": lm}
    assert "was fitted on" in routing.evaluate(tmp_path / "labels.jsonl", **given).notes[0]
    assert not routing.evaluate(tmp_path / "fit" / "scores.jsonl", **given).notes


def test_parts_are_known_by_what_was_asked_of_which_model(lm, tmp_path):
    some = read_labels(rows(5)).problems
    made = []

    def make(first, part):
        made.append((first, [problem.id for problem in part]))
        return {"ids": [problem.id for problem in part]}

    def ids(problems, title="Asking", model=lm):
        made.clear()
        parts = kept.Kept(tmp_path / "rows.jsonl", model).parts(title, problems, make, at_once=2)
        return [each for part in parts for each in part["ids"]]

    names = [problem.id for problem in some]
    assert ids(some) == names and [first for first, _ in made] == [0, 2, 4]
    assert ids(some) == names and made == []
    assert ids((*some[:4], replace(some[4], prompt="another"))) == names and made == [(4, names[4:])]
    assert ids(some, title="Sampling") == names and len(made) == 3
    assert ids(some, model=untaught(1, context=512)) == names and len(made) == 3
    content = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(content.replace(names[0].encode(), b"9-9", 1))
    assert ids(some) == names and made == [(0, names[:2])]
    assert len(kept.Kept(tmp_path / "rows.jsonl", lm).damaged) == 0 and (tmp_path / "rows.jsonl").exists()


@pytest.mark.slow
def test_nothing_to_learn_is_said_and_the_length_is_a_router(lm, tmp_path):
    """Labels that follow the length alone: a threshold on it does the same."""
    some = rows(240, seed=3, domains=("all",))
    for row in some:
        row["weak"] = float(len(row["prompt"].split()) < 7)
    done = routing.fit(lm, labels=some, kind="length", calls=0.6, epochs=2, out=tmp_path / "length")
    assert done.kind == "length" and done.warnings() and done.cards["length"].auroc.value > 0.8
    router = routing.load(tmp_path / "length")
    ids = prompt_states.encode(lm, [some[0]["prompt"]], "chat")[0]
    assert router.score_prefill(routing.prefill(lm, ids)) == -len(ids)


@pytest.mark.slow
def test_a_quality_is_a_target_too(lm):
    done = routing.fit(
        lm, labels=rows(400, seed=2), quality=0.7, reads="raw", confidence=0.8, epochs=5, learning_rate=0.01
    )
    assert done.threshold.aim == "quality" and done.held_out.verdict in ("met", "not refuted")
    assert 0 < done.held_out.calls.value < 1
    with pytest.raises(BadInput, match="not shown even when every prompt goes to strong"):
        routing.fit(lm, labels=rows(), quality=0.99)
    with pytest.raises(BadInput, match="one aim"):
        routing.fit(lm, labels=rows(), quality=0.5, calls=0.5)
    with pytest.raises(BadInput, match="have one label"):
        routing.fit(lm, labels=[{**row, "weak": 1.0} for row in rows()])


@pytest.mark.slow
def test_a_fit_goes_on_with_the_states_that_were_read(lm, tmp_path, monkeypatch):
    given = {"labels": rows(120, seed=4), "epochs": 2, "batch_tokens": 64}
    whole = routing.fit(lm, out=tmp_path / "whole", **given)
    real = fitting.Fitting._fitted
    monkeypatch.setattr(fitting.Fitting, "_fitted", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        routing.fit(lm, out=tmp_path / "cut", **given)
    monkeypatch.setattr(fitting.Fitting, "_fitted", real)
    monkeypatch.setattr("equipoise.language.features._pooled", lambda *_: pytest.fail("read twice"))
    again = routing.fit(lm, out=tmp_path / "cut", **given)
    assert repr(replace(again, folder=None)) == repr(replace(whole, folder=None))
    for name in ("router.safetensors", "scores.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_a_model_that_scores_otherwise_alone_is_found_out(lm, monkeypatch):
    real = prompt_states.prefill

    def other(language_model, ids):
        read = real(language_model, ids)
        return replace(read, states=-read.states)

    monkeypatch.setattr(prompt_states, "prefill", other)
    with pytest.raises(WorkFailed, match="as it is served"):
        routing.fit(lm, labels=rows(120, seed=4), kind="mean", epochs=10, learning_rate=0.01)


ASKED = [
    {"id": "1", "prompt": "2 + 2?", "answer": "4", "domain": "sums", "weak_answer": "4", "strong_answer": "It is 4."},
    {"id": "2", "prompt": "2 + 3?", "answer": "5", "domain": "sums", "weak_answer": "6", "strong_answer": "5"},
    {"id": "3", "prompt": "2 * 3?", "answer": "6", "domain": "products", "weak_answer": "dunno", "strong_answer": "7"},
]


def test_stored_answers_are_verified(tmp_path):
    done = routing.label(prompts=ASKED, verifier="number", out=tmp_path / "labels")
    labelled = [json.loads(line) for line in (tmp_path / "labels" / "labels.jsonl").read_text().splitlines()]
    assert [(row["weak"], row["strong"]) for row in labelled] == [(1.0, 1.0), (0.0, 1.0), (0.0, 0.0)]
    assert done.unread == {"weak": 1, "strong": 0} and done.unjudged == 0
    assert (
        done.domains["products"].outcomes.neither.value == 1 and done.domains["sums"].outcomes.only_strong.value == 0.5
    )
    assert "no better than the weak one" in done.headline()
    assert read_labels(tmp_path / "labels" / "labels.jsonl").weak == (1.0, 0.0, 0.0)


def test_half_a_surrogate_pair_in_a_stored_answer_costs_no_other(tmp_path):
    torn = [{**ASKED[0], "weak_answer": "4 \ud800", "strong_answer": "\udc00 4", "domain": "\ud800"}, *ASKED[1:]]
    done = routing.label(prompts=torn, verifier="number", out=tmp_path / "labels")
    read = read_labels(tmp_path / "labels" / "labels.jsonl")
    assert read.weak == (1.0, 0.0, 0.0) and len(done.domains) == 3 and set(read.domains) == set(done.domains)


def test_a_weak_model_answers_here_and_goes_on_where_it_was_stopped(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(labeling, "AT_ONCE", 2)
    given = {"prompts": [{**row, "weak_answer": None} for row in ASKED], "verifier": "number", "max_new_tokens": 3}
    whole = routing.label(lm, out=tmp_path / "whole", **given)
    real, asked = labeling.answer, []

    def answer(language_model, problems, *rest):
        if asked:
            raise KeyboardInterrupt
        asked.append(len(problems))
        return real(language_model, problems, *rest)

    monkeypatch.setattr(labeling, "answer", answer)
    with pytest.raises(KeyboardInterrupt):
        routing.label(lm, out=tmp_path / "cut", **given)
    later = []
    monkeypatch.setattr(labeling, "answer", lambda *given: (later.append(len(given[1])), real(*given))[1])
    again = routing.label(lm, out=tmp_path / "cut", **given)
    assert later == [1] and repr(replace(again, folder=None)) == repr(replace(whole, folder=None))
    assert (tmp_path / "cut" / "labels.jsonl").read_bytes() == (tmp_path / "whole" / "labels.jsonl").read_bytes()
    assert again.tokens > 0


def test_a_judge_grades_answers_without_knowing_whose_they_are(monkeypatch, tmp_path):
    seen = []

    class Judge:
        name = "judge"

        def ask(self, calls, *, title):
            replies = []
            for call in calls:
                text = call.messages[-1].content
                seen.append(text)
                grade = 10 if "5" in text.split("[Answer to rate]")[1] else 1
                replies.append(Reply("{}", "answered", call.schema(reasoning="", grade=grade)))
            return replies

    monkeypatch.setattr("equipoise.chat.roles.Players.chat", lambda self, name: Judge())
    monkeypatch.setattr("equipoise.chat.roles.Chat.open", lambda self: None)
    free = [{key: value for key, value in row.items() if key != "answer"} for row in ASKED]
    done = routing.label(prompts=free, judge="openai/gpt-5")
    assert len(seen) == 6 and not any("weak" in text or "strong" in text for text in seen)
    assert done.domains["sums"].strong.value == 0.5 and done.domains["sums"].weak.value == 0
    assert done.names["judged by"] == "openai/gpt-5, from 1 to 10"


def test_a_router_meets_prompts_with_what_the_model_says_of_itself(lm, tmp_path, monkeypatch):
    """The scores that are measured, what is asked for them a part at a time, and what the threshold comes to."""
    some = [
        {**row, "prompt": " ".join(["Oslo"] * (3 + index % 5)), "scores": {"length": 0.5 * index, "mine": -1.0 * index}}
        for index, row in enumerate(rows(22))
    ]
    chosen = {"aim": "calls", "target": 0.4, "calls": 0.3, "lower": 0.2, "upper": 0.9, "confidence": 0.9, "n": 60}
    lengths = np.array([len(each) for each in prompt_states.encode(lm, [row["prompt"] for row in some], "chat")])
    limit = float(np.sort(-lengths)[8])
    Router("length", limit, "chat", 3, 32, chosen=chosen).save(tmp_path / "router")
    asked, measured, checked = [], [], []

    def verbalised(model, prompts, **_):
        asked.append(("stated", len(prompts)))
        return SimpleNamespace(score=np.arange(len(prompts)) / 100 + len(asked), unread=len(asked))

    def semantic(model, prompts, *, keys, **settings):
        asked.append((list(keys), len(prompts), settings))
        return SimpleNamespace(score=np.array(keys) / 7)

    real, check = evaluating.cards, Threshold.check
    monkeypatch.setattr(evaluating, "verbalised", verbalised)
    monkeypatch.setattr(evaluating, "semantic_agreement", semantic)
    monkeypatch.setattr(evaluating, "cards", lambda scores, *more: measured.append(scores) or real(scores, *more))
    monkeypatch.setattr(Threshold, "check", lambda self, *a, **k: checked.append((self, k)) or check(self, *a, **k))
    done = routing.evaluate(
        some, router=tmp_path / "router", model=lm, ask=True, samples=3, max_new_tokens=2, seed=5, out=tmp_path / "out"
    )
    settings = {"samples": 3, "max_new_tokens": 2, "seed": 5}
    assert asked == [
        ("stated", 16),
        ("stated", 6),
        (list(range(16)), 16, settings),
        (list(range(16, 22)), 6, settings),
    ]
    assert done.unread == 1 + 2
    names = list(measured[0])
    assert names[0] == "router" and names[-2:] == ["length (given)", "mine"] and {"verbalised", "entropy"} <= {*names}
    assert measured[0]["semantic-entropy"].tolist() == [each / 7 for each in range(0, 22, 2)]
    assert measured[1]["verbalised"][[0, -1]].tolist() == pytest.approx([1.01, 2.05])
    for scores, inside in zip(measured, (slice(0, None, 2), slice(1, None, 2)), strict=True):
        assert scores["router"].tolist() == scores["length"].tolist() == (-lengths[inside]).tolist()
    sent = -lengths < limit
    assert 0 < sent.sum() < 22
    for name, inside in (("a", slice(0, None, 2)), ("b", slice(1, None, 2))):
        assert done.outcomes[name].sent == pytest.approx(sent[inside].mean())
    assert done.held_out.calls.value == pytest.approx(sent.mean()) and done.held_out.n == 22
    ((threshold, more),) = checked
    assert (threshold.value, threshold.aim, threshold.target) == (limit, "calls", 0.4)
    assert (threshold.confidence, threshold.n, threshold.calls) == (0.9, 60, Bounded(0.3, 0.2, 0.9))
    assert len(more["clusters"]) == 22 and (done.aim, done.target, done.threshold) == ("calls", 0.4, limit)
    assert not (tmp_path / "out" / "asked.jsonl").exists()


def test_a_threshold_that_nothing_is_known_of():
    found = evaluating._threshold(Router("length", -9.0, "chat", 3, 32))
    assert (found.value, found.aim, found.n) == (-9.0, "calls", 0)
    unknown = (found.target, found.confidence, found.calls.value, found.calls.lower, found.calls.upper)
    assert all(math.isnan(each) for each in unknown)


def test_a_router_by_length_is_calibrated_on_what_chose_it(lm):
    score, solved = -np.arange(40.0), (np.arange(40) < 22) ^ (np.arange(40) % 9 == 0)
    choosing = np.arange(40) % 2 == 1
    self = SimpleNamespace(_of=lambda part: choosing if part == "choose" else None, reads="raw")
    self.labels = SimpleNamespace(digest="d")
    chosen = Threshold(-20.0, "quality", 0.7, 0.9, 20, Bounded(0.3, 0.2, 0.5), Bounded(0.8, 0.7, 0.9))
    made = fitting.Fitting._router(self, lm, "length", {}, score, solved, chosen, (5, 48))
    due = Calibration.of(score[choosing], solved[choosing])
    assert (made.kind, made.threshold, made.reads, made.layers, made.width) == ("length", -20.0, "raw", 5, 48)
    assert (made.slope, made.intercept) == (due.slope, due.intercept) and due.slope > 0
    assert made.fingerprint == prompt_states.fingerprint(lm.model) and made.model == lm.name
    assert made.chosen == {
        "aim": "quality", "target": 0.7, "confidence": 0.9, "n": 20, "labels": "d",
        "calls": 0.3, "lower": 0.2, "upper": 0.5,
    }  # fmt: skip


def test_prompts_that_a_provider_does_not_take_have_no_label(monkeypatch, tmp_path):
    told = []

    def answers(chat, calls, title):
        told.extend(call.messages for call in calls)
        said = [("5", "answered"), ("", "refused"), ("4 \ud800", "cut"), ("", "failed"), ("", "rejected")]
        return [Reply(text, status) for text, status in said]

    monkeypatch.setattr(labeling, "answers", answers)
    monkeypatch.setattr("equipoise.chat.roles.Players.chat", lambda self, name: None)
    monkeypatch.setattr("equipoise.chat.roles.Chat.open", lambda self: None)
    turns = [*TURNS, {"role": "user", "content": "2 + 2?"}]
    some = [
        {"id": f"q{index}", "prompt": turns if index == 2 else f"{index} + 2?", "answer": "4", "weak_answer": "4"}
        | {"domain": ("sums", "lost", "sums", "sums", "lost")[index]}
        for index in range(5)
    ]
    done = routing.label(prompts=some, verifier="number", strong="openai/gpt-5", out=tmp_path / "out")
    assert [[turn.role for turn in each] for each in told] == [["user"]] * 2 + [["user", "assistant", "user"]] + [
        ["user"]
    ] * 2
    assert told[3][0].content == "3 + 2?"
    read = [json.loads(line) for line in (tmp_path / "out" / "labels.jsonl").read_text().splitlines()]
    assert [row["strong"] for row in read] == [0.0, None, 1.0, 0.0, None] and {row["weak"] for row in read} == {1.0}
    assert [row["strong_answer"] is None for row in read] == [False, True, False, False, True]
    assert done.unjudged == 2 and done.unread == {"weak": 0, "strong": 1}
    assert list(done.domains) == ["sums"] and done.domains["sums"].prompts == 3
    assert done.domains["sums"].strong.value == pytest.approx(1 / 3)


@pytest.mark.parametrize(("worth", "refused"), [(0.0, False), (1.0, False), (1.01, True), (-0.01, True)])
def test_rewards_are_shares(worth, refused):
    def reward(completions, **_):
        return [worth if text == "5" else 0.25 for text in completions]

    given = {"prompts": ASKED, "reward": reward}
    if refused:
        with pytest.raises(BadInput, match=f"strong answer to '2' is {worth:g}, expected"):
            routing.label(**given)
    else:
        assert routing.label(**given).domains["sums"].strong.value == pytest.approx((worth + 0.25) / 2)


def test_what_cannot_be_labelled_is_refused(lm):
    with pytest.raises(BadInput, match="nothing says how good"):
        routing.label(prompts=ASKED)
    with pytest.raises(BadInput, match="by a model or by a verifier"):
        routing.label(prompts=ASKED, verifier="number", judge="openai/gpt-5")
    with pytest.raises(BadInput, match="has no text strong_answer"):
        routing.label(
            prompts=[{key: value for key, value in ASKED[0].items() if key != "strong_answer"}], verifier="number"
        )
    with pytest.raises(BadInput, match="context"):
        routing.label(lm, prompts=ASKED, verifier="number", max_new_tokens=600)


def test_problems_in_memory_are_labelled_once_each_or_refused(tmp_path):
    said = {"weak_answer": "4", "strong_answer": "4"}
    made = [Problem("a", "2 + 2 =", ("4",), columns=said), Problem("b", "2 + 3 =", ("5",), columns=said)]
    routing.label(prompts=made, verifier="number", out=tmp_path / "labels")
    assert [problem.id for problem in read_labels(tmp_path / "labels" / "labels.jsonl").problems] == ["a", "b"]
    for wrong, words in (
        ({"id": "a"}, "id 'a' was used before at problem 1"),
        ({"id": "\ud800"}, "half of a surrogate pair"),
        ({"gold": (5,)}, "field 'gold': expected text, found int 5"),
        ({"gold": ()}, "no gold answer"),
    ):
        with pytest.raises(BadInput, match=words):
            routing.label(prompts=[made[0], replace(made[1], **wrong)], verifier="number", out=tmp_path / "wrong")


def test_a_plan_of_a_fit_counts_what_would_be_read(lm, monkeypatch):
    monkeypatch.setattr(prompt_states, "POOLED_TOKENS", 20)
    some = rows(240)
    some[0]["prompt"] = "Oslo " + "one two three four five six seven " * 4
    plan = routing.fit.plan(lm, labels=some, quality=0.4, kind="mean", reads="raw", confidence=0.8)
    encoded = prompt_states.encode(lm, [row["prompt"] for row in some], "raw")
    assert max(map(len, encoded)) > 20
    assert (plan.layers, plan.width, plan.disk) == (3, 32, 4 * 240 * 3 * 32)
    assert plan.tokens == sum(min(len(ids), 20) for ids in encoded)
    assert plan.prompts == {"fit": 120, "choose": 60, "test": 60} and plan.domains == {"a": 120, "b": 120}
    assert plan.solved == pytest.approx(np.mean([row["weak"] >= row["strong"] and row["weak"] > 0 for row in some]))
    assert plan.shown == lm.tokenizer.decode(encoded[0])
    told = {"kind": "mean", "reads": "raw", "quality": 0.4, "confidence": 0.8, "seed": 42, "learning_rate": 1e-3}
    assert {name: plan.settings[name] for name in told} == told and "calls" not in plan.settings
    default = routing.fit.plan(lm, labels=some)
    assert default.settings["calls"] == 0.3 and default.settings["kind"] == "best"


def test_parts_with_one_label_are_refused_and_two_suffice(lm):
    some = rows(240)
    parts = divide(read_labels(some).groups, 42)
    for part in ("fit", "choose", "test"):
        own = [{**row, "weak": 0.0} if parts[at] == part else row for at, row in enumerate(some)]
        with pytest.raises(BadInput, match=f"prompts to {part} have one label, not answered well"):
            routing.fit.plan(lm, labels=own)
        first = parts.index(part)
        own[first] = {**own[first], "weak": 1.0}
        assert routing.fit.plan(lm, labels=own).layers == 3


def test_what_is_told_of_a_fit_is_of_the_prompts_that_were_tested(lm, fitted):
    done, folder = fitted
    stored = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    test = [row for row in stored if row["part"] == "test"]
    solved = np.array([row["solved"] for row in test])
    groups = np.array([row["group"] for row in test])
    score = {name: np.array([row["scores"][name] for row in test]) for name in ("last", "length", done.kind)}

    def stream(number):
        return np.random.default_rng(np.random.SeedSequence([42, number]))

    def ahead(_, labels, counts=None):
        return auroc(score["last"], labels, counts) - auroc(score["length"], labels, counts)

    wanted = score_interval(ahead, score["last"], solved, groups, generator=stream(17), draws=40)
    gain = done.gains["last"]
    assert (gain.value, gain.lower) == pytest.approx((float(wanted.estimate), float(wanted.lower)))
    assert not {"length", "random"} & done.gains.keys()
    router = routing.load(folder)
    errors = (router.probability(score[done.kind]) - solved) ** 2
    brier = item_interval(errors, groups)
    assert (done.brier.value, done.brier.upper) == pytest.approx((errors.mean(), float(brier.upper)))
    choosing = [row for row in stored if row["part"] == "choose"]
    labels = np.array([row["solved"] for row in choosing])
    for name, value in done.chosen_on.items():
        assert value == pytest.approx(float(auroc(np.array([row["scores"][name] for row in choosing]), labels)))
    assert done.kind == max(done.chosen_on, key=done.chosen_on.__getitem__)
    assert done.outcomes.sent == pytest.approx((score[done.kind] < done.threshold.value).mean())
    assert done.bytes == sum((folder / name).stat().st_size for name in ("router.json", "router.safetensors"))
    assert (done.layers, done.width, done.g) == (3, 32, pytest.approx(done.g)) and done.cards["last"].n == 60
    assert list(done.domains) == ["a", "b"] and done.domains["a"].keys() >= {
        done.kind,
        "mean",
        "dirichlet",
        "length",
        "last",
    }
    assert sum(cards["length"].n for cards in done.domains.values()) == 60
    assert (router.slope, router.intercept) == (done.slope, done.intercept)
    assert all(len(done.alpha[name]) == 3 for name in ("dirichlet", "softmax"))


def test_scores_apart_from_what_is_served_are_refused_beyond_the_tolerance(lm, tmp_path, monkeypatch):
    """Of a router by length: served is minus the number of tokens; three prompts are read again."""
    some = rows(5)
    served = prompt_states.encode(lm, [row["prompt"] for row in some], "raw")
    self = SimpleNamespace(labels=read_labels(some))
    router = Router("length", -5.0, "raw", 3, 32)
    lengths = -np.array([float(len(ids)) for ids in served])

    def checked(score, place=tmp_path):
        fitting.Fitting._check(self, router, lm, served, score, place)

    checked(lengths + 0.019)
    checked(lengths - 0.019, None)
    checked(lengths + np.array([0, 0, 0, 1.0, 1.0]))
    for wrong in (0.021, -0.021, math.nan):
        for at in range(3):
            score = lengths.copy()
            score[at] += wrong
            with pytest.raises(WorkFailed, match=f"prompt '0-{at}' scores"):
                checked(score)
    assert (tmp_path / "router.json").exists() and (fitting.APART, fitting.AGAIN, fitting.CALLS) == (0.02, 3, 0.3)
    assert [fitting.candidates(kind) for kind in ("best", "mean", "length")] == [3, 1, 1]


def test_probes_of_each_domain_are_ranked_on_each(lm):
    """A domain without both labels to test on takes no part; one alone says nothing."""
    generator = np.random.default_rng(0)
    n = 240
    domains = np.array(["a", "b", "c"])[np.arange(n) % 3]
    parts = np.where(np.arange(n) < 180, "fit", "test")
    solved = generator.integers(0, 2, n).astype(float)
    solved[(domains == "c")] = 1.0
    z = generator.normal(size=(n, 2, 4)).astype(np.float32)
    z[:, :, 0] += 2 * solved[:, None]
    groups = np.arange(n)
    request = SimpleNamespace(parts=tuple(parts.tolist()), settings=ProbeSettings(epochs=3, seed=5))
    for name in ("_probe", "_ranked"):
        setattr(request, name, getattr(fitting.Fitting, name).__get__(request))
    found = fitting.Fitting._cross(request, "length", z, solved, groups, domains)
    assert list(found) == ["a", "b"] and all(list(row) == ["a", "b"] for row in found.values())
    inside = {name: (domains == name) & (parts == "fit") for name in "ab"}
    other = (domains == "b") & (parts == "test")
    probe = request._probe("mean").fit(z[inside["a"]], solved[inside["a"]])
    assert (probe.epochs, probe.random_state, probe.batch_size, probe.learning_rate) == (3, 5, 32, 1e-3)
    stream = np.random.default_rng(np.random.SeedSequence([5, 19]))
    wanted = score_interval(
        auroc, probe.score_prompts(z[other]), solved[other], groups[other], generator=stream, draws=40
    )
    assert found["a"]["b"].value == pytest.approx(float(wanted.estimate))
    assert found["a"]["b"].upper == pytest.approx(float(wanted.upper), nan_ok=True)
    solved[(domains == "b") & (parts == "test")] = 1.0
    assert fitting.Fitting._cross(request, "mean", z, solved, groups, domains) == {}


def test_scores_are_ordered_by_their_means_over_domains():
    def of(area, lpm):
        return SimpleNamespace(
            auroc=Bounded(area, 0, 1), lpm=Bounded(lpm, 0, 1), mpm=Bounded(math.nan, 0, 1), hcr=Bounded(0.5, 0, 1)
        )

    first = {"c": of(0.9, 0.1), "b": of(0.6, 0.3), "a": of(0.4, math.nan), "alone": of(1.0, 1.0)}
    second = {"c": of(0.5, 0.2), "b": of(0.8, 0.4), "a": of(1.0, 0.9)}
    order = evaluating._order({"x": first, "y": second})
    assert order == {"auroc": ("a", "b", "c"), "lpm": ("b", "c"), "mpm": (), "hcr": ("a", "b", "c")}


def test_a_plan_of_an_evaluation_names_its_scores(lm, tmp_path):
    given = [{**row, "scores": {"mine": 1.0 * at}} for at, row in enumerate(rows(20))]
    alone = routing.evaluate.plan(given)
    assert (alone.prompts, alone.domains, alone.scores) == (20, {"a": 10, "b": 10}, ("mine",))
    assert (alone.reader, alone.tokens) == ("nobody: the rows hold scores", 0)
    Router("length", -9.0, "raw", 3, 32).save(tmp_path / "router")
    with_model = {"router": tmp_path / "router", "model": lm}
    read, asked = (routing.evaluate.plan(given, ask=ask, **with_model) for ask in (False, True))
    assert read.scores == ("mine", "router", "length, logits, chains")
    assert asked.scores == (*read.scores, "verbalised", "semantic-entropy") and asked.reader == lm.source
    assert read.tokens == sum(map(len, prompt_states.encode(lm, [row["prompt"] for row in given], "raw")))
    for name in ("router", "verbalised", "semantic-entropy"):
        taken = [{**row, "scores": {name: 1.0}} for row in rows(20)]
        with pytest.raises(BadInput, match=f"the score '{name}' has a name that is given here"):
            routing.evaluate.plan(taken, **with_model)
        assert routing.evaluate.plan(taken).scores == (name,)
    for wrong in ({"router": tmp_path / "router"}, {"model": lm}):
        with pytest.raises(BadInput, match="give router and model"):
            routing.evaluate(given, **wrong)
    with pytest.raises(BadInput, match="no model to ask"):
        routing.evaluate(given, ask=True)


def test_a_plan_of_labels_counts_calls_and_tokens(lm, monkeypatch):
    monkeypatch.setattr("equipoise.chat.roles.Chat.open", lambda self: None)
    monkeypatch.setattr("equipoise.chat.grade.ChatGrader.check", lambda self, submissions: None)
    some = [{**row, "id": str(at)} for at, row in enumerate(ASKED * 2)]

    def plan(model=None, **how):
        return routing.label.plan(*([model] if model else []), prompts=some, **how)

    stored = plan(verifier="number")
    assert (stored.prompts, stored.domains, stored.calls, stored.tokens) == (6, {"sums": 4, "products": 2}, 0, 0)
    assert (stored.weak, stored.strong) == ("the field weak_answer", "the field strong_answer")
    assert stored.first == tuple({"prompt": row["prompt"], "gold": [row["answer"]]} for row in some[:3])
    served = plan(lm, verifier="number", strong="openai/gpt-5", max_new_tokens=7)
    assert (served.calls, served.tokens, served.strong, served.weak) == (6, 42, "openai/gpt-5", lm.source)
    judged = plan(judge="openai/gpt-5")
    assert (judged.calls, judged.judged_by) == (12, "openai/gpt-5, against gold answers")
    assert plan(judge="openai/a", strong="openai/b").calls == 18


def test_tokens_of_answers_are_counted_without_those_that_a_tokenizer_adds(lm):
    texts = ["one two", "", "Oslo", None]
    wanted = sum(len(lm.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("one two", "Oslo"))
    assert (
        labeling._tokens(lm, texts)
        == wanted
        < sum(len(lm.tokenizer(text)["input_ids"]) for text in ("one two", "Oslo"))
    )


def test_scores_that_learn_nothing_are_of_each_prompt(lm):
    """A prompt of one token has no likelihood, and then nobody has."""
    z = np.random.default_rng(0).normal(size=(3, 3, 4)).astype(np.float32)
    logits = {"max-logit", "margin", "logit-margin", "entropy", "top10-variance", "top10-variance-reversed"}
    chains = {"chain-of-embedding": (), "chain-real": ("real",), "chain-complex": ("complex",)}
    found = scoring.given_scores(lm, [[5, 6, 7], [5, 6], [8, 9, 10, 11]], z, 3, batch_size=2)
    assert found.keys() == logits | chains.keys() | {"length", "random", "perplexity"}
    assert found["length"].tolist() == [-3.0, -2.0, -4.0]
    assert found["random"].tolist() == scoring.Random(random_state=3).score_prompts(np.empty((3, 0))).tolist()
    for name, how in chains.items():
        assert found[name].tolist() == scoring.ChainOfEmbedding(*how).score_prompts(z).tolist()
    assert "perplexity" not in scoring.given_scores(lm, [[5, 6, 7], [5]], z[:2], 3)


def test_directions_are_of_the_last_states_and_of_length_one():
    z = np.zeros((3, 3, 2), np.float32)
    z[0] = [[9.0, 0.0], [7.0, 7.0], [3.0, 4.0]]
    z[1] = [[1.0, 0.0], [0.0, 1.0], [0.06, -0.08]]
    found = scoring.directions(z)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.6, -0.8], [0.0, 0.0]], atol=1e-6)


def test_enough_to_learn_from_are_both_kinds_in_fifty_groups():
    solved = np.array([0.0] * 50 + [1.0] * 50)
    groups = np.arange(100) % 50
    everything = np.ones(100, bool)
    assert scoring.large_enough(everything, solved, groups)
    assert not scoring.large_enough(everything, solved, np.minimum(groups, 48))  # 49 groups
    assert not scoring.large_enough(np.arange(100) < 50, solved, groups)
    assert not scoring.large_enough(np.arange(100) >= 50, solved, groups)


def test_a_score_that_is_not_finite_everywhere_has_no_card():
    generator = np.random.default_rng(0)
    score, weak = generator.normal(size=80), generator.integers(0, 2, 80).astype(float)
    torn = np.where(np.arange(80) == 7, math.inf, score)
    given = (weak, np.ones(80), weak, np.arange(80), scoring.Bands((0.1, 0.4), (0.4, 0.8)), 5)
    assert list(scoring.cards({"a": score, "torn": torn, "b": -score}, *given)) == ["a", "b"]


def test_what_a_judge_compares_and_how_answers_are_blinded(monkeypatch):
    """Against gold where every prompt has one, else from 1 to 10; ten is 1, one is 0, and six accepts."""
    with_gold = [Problem("a", "2 + 2 =", ("4",)), Problem("b", "2 + 3 =", ("5",))]
    lacking = [with_gold[0], replace(with_gold[1], gold=())]
    made = []
    monkeypatch.setattr(
        labeling, "ChatGrader", lambda chat, grades, **how: made.append((chat, grades, how)) or "grader"
    )

    def grader(problems):
        assert labeling.Labeling._grader(SimpleNamespace(problems=problems), "chat") == "grader"
        return made[-1][:2], list(made[-1][2])

    assert grader(with_gold) == (("chat", labeling.BINARY), [])
    assert grader(lacking) == (("chat", labeling.SCALE), ["prompt"])
    assert labeling.SCALE.credits == pytest.approx({str(n): (n - 1) / 9 for n in range(1, 11)})
    assert labeling.SCALE.accept == pytest.approx(5 / 9) and labeling.SCALE.ordered

    shown = []

    def grade(submissions):
        shown.extend(submissions)
        return [SimpleNamespace(credit={"4": 1.0, "?": 0.25}[each.answer]) for each in submissions]

    self = SimpleNamespace(problems=with_gold, _grader=lambda chat: SimpleNamespace(grade=grade))
    self._submissions = lambda said: labeling.Labeling._submissions(self, said)
    players = SimpleNamespace(chat=lambda name: name)
    quality, unread = labeling.Labeling._graded(self, {"weak": ["?", "4"], "strong": ["4", None]}, players)
    assert quality["weak"].tolist() == [0.25, 1.0] and quality["strong"][0] == 1.0 and math.isnan(quality["strong"][1])
    assert unread == {"weak": 0, "strong": 0}
    ids = ["a/weak", "b/weak", "a/strong"]
    assert [each.id for each in shown] == [
        each.id for _, each in blinded([Submission(name, "", "") for name in ids], seed=0)
    ]


def test_what_a_stored_answer_has_to_be():
    said = [Problem(name, "?", (), columns={"weak_answer": text}) for name, text in (("a", "4"), ("b", 5))]
    labeling._check_answers(said[:1], "weak")
    with pytest.raises(BadInput, match="'b' has no text weak_answer: name the model that answers, --model"):
        labeling._check_answers(said, "weak")
    with pytest.raises(BadInput, match="'a' has no text strong_answer: name the model that answers, --strong"):
        labeling._check_answers(said, "strong")
