"""The jobs from end to end on a small model, and the measures they report."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from chat_models import TEMPLATE, untaught
from equipoise.core.errors import BadInput
from equipoise.uncertainty import score, scoring, select
from equipoise.uncertainty.answers import read_answers
from equipoise.uncertainty.measured_answers import accept, auroc_within, length_bins
from equipoise.uncertainty.perturbed import perturb
from equipoise.uncertainty.tokur import Sigma, confidences
from equipoise.uncertainty.tokur import score as token_scores

WORDS = ("one", "two", "three", "four", "five", "six")


@pytest.fixture(scope="module")
def lm():
    return untaught(0, context=256)


def rows(n=40, seed=0):
    generator = np.random.default_rng(seed)
    return [
        {
            "id": f"r{i}",
            "prompt": f"What is {i // 2}?",
            "answer": " ".join(generator.choice(WORDS, int(generator.integers(1, 7)))) + f" <{i % 3}>",
            "correct": bool(generator.integers(2)),
        }
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def scored(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored") / "out"
    return score(lm, answers=rows(), members=3, sigma=0.2, rank=4, risk=0.9, certainty=0.6, out=folder), folder


def read(folder, name="scores.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").rstrip("\n").split("\n")]


def test_every_row_has_its_tokens_and_the_scores_of_the_method(lm, scored):
    done, folder = scored
    given, found = rows(), read(folder)
    assert [row["id"] for row in found] == [row["id"] for row in given] and done.answers == 40
    due = token_scores(
        perturb(lm, rank=4, sigma=0.2), [r["prompt"] for r in given], [r["answer"] for r in given], members=3, seed=0
    )
    for place, row in enumerate(found):
        assert "".join(row["answer"][t["begin"] : t["end"]] for t in row["tokens"]) == given[place]["answer"]
        assert [t["eu"] for t in row["tokens"]] == pytest.approx(due.eu[place, : len(row["tokens"])].tolist(), abs=2e-5)
    for name, values in confidences(due).items():
        assert [row["scores"][name] for row in found] == pytest.approx(values.tolist(), abs=1e-4)
    assert done.tokens == int(due.mask.sum()) and done.share == pytest.approx(
        float(due.eu.sum() / due.tu.sum()), abs=1e-4
    )


def test_length_stands_beside_every_score(scored):
    done, _ = scored
    assert {"length", "tu_sum", "tu_mean", "log_prob_sum", "entropy_mean", "deepconf"} <= done.detection.keys()
    assert any(line.startswith("length: AUROC") for line in done.summary()) and "of length alone" in done.headline()
    assert done.curve.keys() == {"tu_sum", "length"}
    assert math.isnan(done.detection["tu_sum"].auroc.lower)  # 20 questions are too few for an interval
    assert "too few for intervals" in done.notes[0]


def test_the_heat_map_has_every_answer_and_no_foreign_markup(scored):
    _, folder = scored
    page = (folder / "heat-map.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 40 and "&lt;" in page and 'class="u9"' in page
    assert not any(f"<{each}" in page for each in "012")


def test_what_was_stored_is_not_done_again(lm, scored, tmp_path, monkeypatch):
    _, folder = scored
    whole, calls = scoring.score_tokens, []

    def counted(unsure, some, **settings):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(some))
        return whole(unsure, some, **settings)

    settings = {"answers": rows(), "members": 3, "sigma": 0.2, "rank": 4, "risk": 0.9, "certainty": 0.6}
    monkeypatch.setattr(scoring, "score_tokens", counted)
    with pytest.raises(KeyboardInterrupt):
        score(lm, **settings, out=tmp_path / "out")
    again = []
    monkeypatch.setattr(scoring, "score_tokens", lambda u, some, **s: again.append(len(some)) or whole(u, some, **s))
    score(lm, **settings, out=tmp_path / "out")
    assert calls == [16, 16] and again == [8]
    assert read(tmp_path / "out") == read(folder)


def test_one_odd_answer_does_not_end_the_others(lm, tmp_path):
    odd = {"id": "odd", "prompt": "a", "answer": "no " * 300}
    done = score(lm, answers=[*rows(4), odd], members=2, sigma=0.1, rank=2, out=tmp_path / "out")
    assert done.answers == 4 and "more than the context" in done.left_out["odd"]
    assert done.warnings()[0].startswith("1 answers were not scored, the first of them odd")
    assert read(tmp_path / "out")[4]["scores"] == {}
    empty = {"id": "empty", "prompt": "a", "answer": ""}
    told = score(lm, answers=[empty, *rows(2)], members=2, sigma=0.1, rank=2, ask=True, by="p_true")
    assert told.answers == 2 and "empty" in told.left_out
    assert select(tmp_path / "out" / "scores.jsonl").notes == ("1 answers have no score and were left out.",)


def test_selection_beside_a_vote_of_all(tmp_path):
    """Of three answers the surest is right where two wrong ones agree."""
    given = [
        {"id": f"{q}-{i}", "prompt": f"q{q}", "answer": answer, "correct": answer == "5", "scores": {"mine": sure}}
        for q in range(60)
        for i, (answer, sure) in enumerate([("4", 0.0), ("4", 1.0), ("5", 2.0 if q < 45 else 0.5)])
    ]
    done = select(given, by="mine", keep=0.34, out=tmp_path / "out")
    assert (done.questions, done.answers, done.labelled) == (60, 180, 60)
    assert (done.chosen.value, done.consistency.value, done.best.value) == (0.75, 0.0, 1.0)
    assert done.average.value == pytest.approx(1 / 3) and done.gain.lower > 0 and not done.warnings()
    lines = read(tmp_path / "out", "selected.jsonl")
    assert lines[0]["answer"] == "5" and lines[0]["kept"] == ["0-2"] and lines[-1]["correct"] is False
    assert select(given, by="mine", keep=1.0).chosen.value == 0.0


def scored_row(name, prompt, answer, sure, **more):
    return {"id": name, "prompt": prompt, "answer": answer, "scores": {"mine": sure}, **more}


def test_a_plain_vote_knows_no_score():
    """Of two answers to each question one is right: a tie is by lot, whatever is surer."""
    for sign in (1, -1):
        given = [
            scored_row(f"{question}-{place}", f"q{question}", str(place), -sign * place, correct=place == 0)
            for question in range(20)
            for place in range(2)
        ]
        found = select([*given, scored_row("more", "q0", "0", 0.0, correct=True)], by="mine", keep=1.0)
        assert found.consistency.value == pytest.approx((19 / 2 + 1) / 20)
        assert found.surest.value == (1.0 if sign > 0 else 0.0)


def test_other_rows_in_the_same_number_are_another_content(lm, tmp_path):
    given = [scored_row(str(place), f"q{place}", "a", 1.0) for place in range(3)]
    select(given, by="mine", out=tmp_path / "chosen")
    with pytest.raises(BadInput, match="another content of scores"):
        select([{**each, "answer": "others"} for each in given], by="mine", out=tmp_path / "chosen")
    answers = {"members": 2, "sigma": 0.1, "out": tmp_path / "scored"}
    score(lm, answers=rows(2), **answers)
    with pytest.raises(BadInput, match="another content of answers"):
        score.plan(lm, answers=rows(2, seed=1), **answers)


def test_auroc_within_strata_is_that_of_pairs_within():
    generator = np.random.default_rng(0)
    s, y, bins = generator.normal(size=60).round(1), generator.integers(2, size=60), generator.integers(4, size=60)
    pairs = [(i, j) for i in range(60) for j in range(60) if y[i] > y[j] and bins[i] == bins[j]]
    due = np.mean([(s[i] > s[j]) + 0.5 * (s[i] == s[j]) for i, j in pairs])
    assert auroc_within(s, y, bins) == pytest.approx(due)
    lengths = generator.integers(1, 40, size=400)
    right = (generator.random(400) < lengths / 40).astype(float)
    assert (
        abs(auroc_within(lengths, right, length_bins(lengths, 40)) - 0.5) < 0.05
    )  # length knows nothing beyond length
    assert math.isnan(auroc_within(s, np.ones(60), bins))


def test_a_threshold_keeps_its_risk():
    """By simulation: the chance that the true share of errors above it is too high is at most 1 - certainty."""
    generator, broken, used = np.random.default_rng(1), 0, 0
    for _ in range(100):
        s = generator.random(400)
        right = (generator.random(400) < 0.5 + 0.5 * s).astype(float)  # errors above v: 0.5 (1 - v) / 2
        found = accept(s, right, risk=0.15, certainty=0.8)
        used += found.accepted > 0
        broken += found.accepted > 0 and 0.25 * (1 - found.value) > 0.15
    assert used > 60 and broken <= 20
    s, right = np.arange(100.0), (np.arange(100) >= 20).astype(float)
    found = accept(s, right, risk=0.1)
    upper = stats.beta.ppf(1 - 0.05 / 20, found.wrong + 1, found.accepted - found.wrong)
    assert found.value == 20.0 and found.accepted == 80 and found.upper == pytest.approx(upper)
    assert accept(s, np.zeros(100), risk=0.1).value == math.inf


def test_labels_are_read_or_made():
    base = {"prompt": "a", "answer": "it is 7"}
    assert read_answers([{**base, "correct": "true"}, base | {"correct": None}]).right[0] == 1.0
    assert read_answers([{**base, "gold": "7"}, {**base, "gold": "8"}], verifier="number").right == (1.0, 0.0)
    asked = {"ask": "a", "reply": "b", "answer": "not this"}
    assert read_answers([asked], fields={"prompt": "ask", "answer": "reply"}).texts == ("b",)
    with pytest.raises(BadInput, match="no row has the field 'right' that was named for correct"):
        read_answers([{**base, "gold": "7"}], verifier="number", fields={"correct": "right"})
    for wrong, sentence in (
        ({**base, "correct": 2}, "expected true, false, 1 or 0"),
        ({**base, "gold": "7"}, "say how answers are compared"),
        ({"prompt": "a"}, "the answer is nothing"),
        ({**base, "answer": "\ud800"}, "surrogate"),
    ):
        with pytest.raises(BadInput, match=sentence):
            read_answers([wrong])


def test_labels_of_one_kind_and_undefined_numbers_are_told(lm):
    alike = [{**row, "correct": True} for row in rows(4)]
    done = score(lm, answers=alike, members=2, sigma=0.2, rank=2)
    assert "All 4 labelled answers are right" in done.headline() and not done.detection
    apart = [{**row, "correct": i % 2, "answer": "one " * (1 + 9 * (i % 2))} for i, row in enumerate(rows(12))]
    told = score(lm, answers=apart, members=2, sigma=0.2, rank=2)
    assert math.isnan(told.detection["tu_sum"].within)
    assert "nan" not in " ".join(told.summary()) and "of like length undefined" in told.headline()


def test_several_answers_to_a_question_are_not_as_many_observations(scored):
    done, _ = scored
    assert done.acceptance.accepted and done.labelled == 40 and done.questions == 20
    assert any("counts 40 answers as independent, but they answer 20" in warning for warning in done.warnings())
    assert "40 labelled answers to 20 questions are too few" in done.notes[0]


def test_a_model_without_finite_numbers_is_told(tmp_path):
    broken = untaught(0)
    broken.model.model.norm.weight.data[:] = math.nan
    with pytest.raises(BadInput, match="of answer 'r0' is nan"):
        score(broken, answers=rows(3), members=2, sigma=0.1, rank=2, out=tmp_path / "out")


def candidate(name, **other):
    return {"id": name, "prompt": "q", "answer": "4", "correct": True, "scores": {"mine": 1.0}, **other}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (candidate("a", answer="\ud800"), "half of a surrogate"),
        (candidate("a", prompt=[{"role": "user", "content": "\ud800"}]), "half of a surrogate"),
        (3, "expected an object"),
        (candidate("b"), "row 2: id 'b' was used before at row 1"),
        (candidate("b", prompt="another"), "used before"),
    ],
)
def test_rows_that_cannot_be_selected_from_are_refused(wrong, sentence, tmp_path):
    with pytest.raises(BadInput, match=sentence):
        select([candidate("b"), wrong], by="mine", out=tmp_path / "out")


def test_semantic_entropy_is_of_what_the_answers_to_a_question_come_to(lm):
    said = {"first": ("it is 4", "so 4", "5"), "second": ("one two", "One two.", "one two"), "third": ("1", "2", "3")}
    given = [
        {"id": f"{name}{i}", "group": name, "prompt": f"{name} {i}?", "answer": answer}
        for name, answers in said.items()
        for i, answer in enumerate(answers)
    ]
    due = [-(2 / 3 * math.log(2 / 3) + math.log(1 / 3) / 3)] * 3 + [0.0] * 3 + [math.log(3)] * 3
    assert scoring.semantic_entropies(read_answers(given)) == pytest.approx(due)
    settings = {"members": 2, "sigma": 0.1, "rank": 2}
    right = [{**row, "correct": place % 3 == 0} for place, row in enumerate(given)]
    assert "semantic_entropy" in score(lm, answers=right, by="semantic_entropy", **settings).detection
    alone = [*right, {"id": "lone", "prompt": "?", "answer": "4", "correct": True}]
    told = score(lm, answers=alone, **settings)
    assert "semantic_entropy" not in told.detection and "1 questions have one answer each" in " ".join(told.notes)
    with pytest.raises(BadInput, match="'lone' is the one answer to its question"):
        score.plan(lm, answers=alone, by="semantic_entropy", **settings)
    with pytest.raises(BadInput, match="of a question"):
        select([candidate("a")], by="semantic_entropy")


def test_p_true_is_asked_of_the_whole_conversation(lm, monkeypatch):
    asked = []
    monkeypatch.setattr(
        scoring,
        "p_true",
        lambda _, questions, answers, **how: asked.extend(questions) or torch.full((len(answers),), 0.5),
    )
    turns = [
        {"role": "system", "content": "count"}, {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"}, {"role": "user", "content": "and then?"},
    ]  # fmt: skip
    alone = [{"role": "user", "content": "one?"}]
    monkeypatch.setattr(lm.tokenizer, "chat_template", TEMPLATE)
    given = [{"id": str(i), "prompt": prompt, "answer": "three"} for i, prompt in enumerate(("one?", alone, turns))]
    score(lm, answers=given, members=2, sigma=0.1, rank=2, ask=True)
    assert asked == ["one?", "one?", "System: count\nUser: one\nAssistant: two\nUser: and then?"]


def test_a_score_that_is_infinite_in_a_file_is_refused(tmp_path):
    (tmp_path / "s.jsonl").write_text(json.dumps(candidate("a")).replace("1.0", "1e999") + "\n")
    with pytest.raises(BadInput, match="is inf, expected a finite number"):
        select(tmp_path / "s.jsonl", by="mine", out=tmp_path / "out")


def test_a_group_may_be_called_nought():
    given = [candidate(f"{group}{prompt}", group=group, prompt=prompt) for group in (0, 1) for prompt in "ab"]
    assert select(given, by="mine").questions == 2


def test_the_headline_says_of_how_many_questions_the_share_is():
    given = [candidate(f"{q}{i}", prompt=f"q{q}", correct=None if q == 0 else True) for q in range(3) for i in range(2)]
    assert "Right of the 2 whose answers are all labelled: 1.000" in select(given, by="mine").headline()


def test_sigma_is_chosen_once_on_the_first_answers_and_kept(lm, tmp_path, monkeypatch):
    asked, answered = [], tmp_path / "out"
    scores = scoring.score_tokens

    def chosen(unsure, some, **settings):
        asked.append((len(some), settings))
        return Sigma(0.25, 0.01, 0.97, reached=len(asked) > 1)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    settings = {"answers": rows(23), "members": 2, "rank": 2, "seed": 3, "batch_size": 5, "out": answered}
    monkeypatch.setattr(scoring, "choose_sigma", chosen)
    monkeypatch.setattr(scoring, "score_tokens", stopped)
    with pytest.raises(KeyboardInterrupt):
        score(lm, **settings)
    monkeypatch.setattr(scoring, "score_tokens", scores)
    done = score(lm, **settings)
    assert asked == [(20, {"members": 2, "seed": 3, "batch_size": 5})]
    assert (done.sigma, done.chosen, done.reached) == (0.25, True, False) and "No sigma reached" in done.headline()
    given = score(lm, **{**settings, "answers": rows(2), "out": None}, sigma=0.25)
    assert (given.sigma, given.chosen, given.reached) == (0.25, False, True) and len(asked) == 1


def test_a_curve_has_two_hundred_points_of_all():
    confidence, right = np.arange(1000.0), np.ones(1000)
    found = scoring._curve(confidence, right)
    assert len(found) == 200 and found[0] == (0.001, 0.0) and found[-1] == (1.0, 0.0)
    assert found[1][0] == pytest.approx(0.006)  # 999 / 199 is some five answers further
    few = scoring._curve(np.array([3.0, 2.0, 1.0]), np.array([1.0, 0.0, 1.0]))
    assert np.array(few) == pytest.approx(np.array([(1 / 3, 0), (2 / 3, 1 / 2), (1, 1 / 3)]))


def test_numbers_are_kept_to_five_places():
    assert scoring._rounded(0.1234567) == 0.12346 and scoring._rounded(math.nan) is None


def test_a_plan_of_scoring_by_hand(lm):
    odd = {"id": "odd", "prompt": "a", "answer": "no " * 300, "correct": True}
    plan = score.plan(lm, answers=[*rows(4), odd], members=3, sigma=0.1, rank=2)
    assert (plan.answers, plan.labelled, plan.passes) == (4, 5, 3) and list(plan.left_out) == ["odd"]
    assert plan.maps == 2 * len(lm.model.model.layers)
    done = score(lm, answers=rows(4), members=3, sigma=0.1, rank=2)
    assert plan.tokens == done.tokens
    with pytest.raises(BadInput, match="members is 1"):
        score.plan(lm, answers=rows(4), members=1)
    assert score.plan(lm, answers=rows(4), members=1, sigma=0.1).passes == 1
    with pytest.raises(BadInput, match="by is p_true"):
        score.plan(lm, answers=rows(4), members=2, sigma=0.1, by="p_true")
    with pytest.raises(BadInput, match="a threshold for a risk needs"):
        score.plan(lm, answers=[{"prompt": "a", "answer": "b"}], members=2, sigma=0.1, risk=0.1)


def test_what_is_said_of_all_answers_together(lm):
    """The share of EU over all tokens, agreement weighted by tokens, and of labelled answers how many are right."""
    given = [{**row, "correct": None if place == 0 else place < 5} for place, row in enumerate(rows(8))]
    done = score(lm, answers=given, members=3, sigma=0.4, rank=4)
    found = token_scores(
        perturb(lm, rank=4, sigma=0.4), [r["prompt"] for r in given], [r["answer"] for r in given], members=3, seed=0
    )
    assert done.share == pytest.approx(float(found.eu.sum() / found.tu.sum()), abs=1e-4)
    assert done.agreement == pytest.approx(float(found.agreement[found.mask].mean()), abs=1e-4)
    assert (done.answers, done.labelled, done.questions) == (8, 7, 4) and done.right.value == pytest.approx(4 / 7)
    assert done.notes[-1] == "7 labelled answers to 4 questions are too few for intervals."
    assert done.acceptance is None and done.curve.keys() == {"tu_sum", "length"}
    plain = score(lm, answers=rows(3), members=1, sigma=0.4, rank=4)
    assert plain.agreement == 1.0 and plain.share == pytest.approx(0, abs=1e-4)
    unknown = [{key: value for key, value in row.items() if key != "correct"} for row in rows(3)]
    assert math.isnan(score(lm, answers=unknown, members=2, sigma=0.1, rank=2).right.value)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (candidate("b", scores=[1.0]), "there is no score 'mine'"),
        (candidate("b", scores={"other": 1.0}), "there is no score 'mine'"),
        (candidate("b", scores={"mine": True}), "expected a finite number"),
        (candidate("b", scores={"mine": "1"}), "expected a finite number"),
        (candidate("b", answer=3), "expected a text as answer"),
        (candidate("b", correct="yes"), "expected a text as answer"),
        ({"id": "b", "prompt": "q", "answer": "4"}, "row 2: no field 'scores'"),
    ],
)
def test_candidates_that_are_none_are_refused(wrong, sentence):
    with pytest.raises(BadInput, match=sentence):
        select([candidate("a"), wrong], by="mine")
    with pytest.raises(BadInput, match="no scored answer"):
        select([candidate("a", scores={})], by="mine")


def test_what_choosing_comes_to_by_hand(tmp_path):
    """Of "4", "4" and "5" the surest is wrong, the vote right: a whole score, one unlabelled question, one left out."""
    given = [
        candidate("a", scores={"mine": 1}, correct=True),
        candidate("b", scores={"mine": 2}, correct=True),
        candidate("c", answer="5", scores={"mine": 3.5}, correct=False),
        candidate("d", prompt="r", scores={"mine": 0.5}, correct=None),
        candidate("e", prompt="r", scores={"mine": 0.25}, correct=True),
        candidate("f", scores={}),
    ]
    done = select(given, by="mine", keep=1.0, out=tmp_path / "out")
    assert (done.questions, done.answers, done.labelled) == (2, 5, 1)
    shares = done.chosen, done.consistency, done.surest, done.average, done.best, done.gain
    assert [each.value for each in shares] == pytest.approx([1, 1, 0, 2 / 3, 1, 0])
    assert done.notes == ("1 answers have no score and were left out.",)
    lines = read(tmp_path / "out", "selected.jsonl")
    assert lines[0] == {
        "id": "b", "prompt": "q", "answer": "4", "score": 2, "correct": True, "votes": {"5": 1.0, "4": 2.0},
        "kept": ["c", "b", "a"], "of": 3,
    }  # fmt: skip
    assert lines[1]["correct"] is None and lines[1]["id"] == "d"
    none = select(given[3:5], by="mine")
    assert none.labelled == 0 and math.isnan(none.chosen.value) and math.isnan(none.gain.value)
    plan = select.plan(given, by="mine")
    assert (plan.questions, plan.answers) == (2, 5)


def told_of(right, questions=None, **values):
    """What is said of answers of 1, 2, 1, 2, .. tokens of which each has a TU of 1 and an EU of 0.25."""
    count = len(right)
    request = SimpleNamespace(
        answers=SimpleNamespace(right=right, questions=questions or [f"q{place}" for place in range(count)]),
        by="tu_sum",
        risk=None,
        certainty=0.6,
        seed=0,
        members=3,
        end=True,
    )
    unsure = SimpleNamespace(language_model=SimpleNamespace(name="m", source="s"))
    token = {"tu": 1.0, "eu": 0.25} | values
    found = {
        place: {
            "scores": {"tu_sum": float(place), "length": -float(1 + place % 2)},
            "agreement": None if place == 0 else 0.5,
            "tokens": [token] * (1 + place % 2),
        }
        for place in range(count)
    }
    sigma = {"sigma": 0.1, "chosen": False, "reached": True}
    return scoring.Scoring._result(request, unsure, sigma, found, {"lost": "why"}, ("before",))


def test_intervals_are_of_fifty_questions():
    many = told_of([float(place % 2) for place in range(50)])
    assert many.notes == ("before",) and many.questions == many.labelled == many.answers == 50
    assert not math.isnan(many.detection["tu_sum"].auroc.lower)
    assert told_of([float(place % 2) for place in range(51)]).notes == ("before",)
    few = told_of([float(place % 2) for place in range(49)])
    assert few.notes == ("before", "49 labelled answers to 49 questions are too few for intervals.")
    assert math.isnan(few.detection["tu_sum"].auroc.lower)
    twice = told_of([float(place % 2) for place in range(50)], [f"q{place // 2}" for place in range(50)])
    assert twice.notes[1] == "50 labelled answers to 25 questions are too few for intervals." and twice.questions == 25


def test_labels_that_are_all_alike_detect_nothing_and_have_no_note():
    for label in (0.0, 1.0):
        found = told_of([label] * 4)
        assert found.notes == ("before",) and found.detection == {} and found.curve == {} and found.right.value == label
    unknown = told_of([math.nan, 1.0, 0.0, math.nan])
    assert unknown.labelled == 2 and unknown.answers == 4 and unknown.detection["tu_sum"].auroc.value == 0.0


def test_shares_over_all_tokens_by_hand():
    found = told_of([1.0, 0.0, 1.0])
    assert found.tokens == 4 and found.share == 0.25 and found.agreement == (1.0 + 2 * 0.5 + 0.5) / 4
    assert (found.sigma, found.chosen, found.reached, found.end, found.members) == (0.1, False, True, True, 3)
    assert found.left_out == {"lost": "why"} and found.acceptance is None
    assert told_of([1.0, 0.0], tu=0.0).share == 0.0 and told_of([1.0, 0.0], tu=0.3125).share == 0.8
