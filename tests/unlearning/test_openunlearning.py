"""Extraction, questions, membership by record and open-unlearning's log, against their formulas written anew in numpy."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.data.public import VARIABLE
from equipoise.data.records import Record
from equipoise.unlearning import extraction, measures, openunlearning, questions, tofu
from equipoise.unlearning.extraction import exact_memorization, extraction_strength

RECORDS = [
    Record("a", "blue and wide", "The sky is", paraphrases=("it is blue",), wrong=("red", "so very red")),
    Record("b", "a long way home", "It was", paraphrases=("far",), wrong=("short", "near by")),
    Record("c", "Ann", "Who sang?", paraphrases=("it was Ann",), wrong=("Bob", "Dan and Eve")),
]
OTHERS = [Record("x", "green and flat", "The field is"), Record("y", "a walk", "It was")]


@pytest.fixture(scope="module")
def model():
    from equipoise.language.tiny import tiny

    texts = [" ".join((r.prompt, r.completion, *r.paraphrases, *r.wrong)) for r in [*RECORDS, *OTHERS]]
    letters = " ".join(f"Answer: {letter}" for letter in "ABCD")
    return tiny([*texts, letters], seed=4, width=16, layers=1, heads=2, vocabulary=400)


# Extraction.


@pytest.mark.parametrize(
    ("predicted", "labels", "exact", "strength", "floored"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 1.0, 1.0, 1.0),
        ([9, 2, 3, 4], [1, 2, 3, 4], 0.75, 0.75, 0.75),
        ([1, 9, 3, 4], [1, 2, 3, 4], 0.75, 0.5, 0.5),
        ([9, 2, 9, 4], [1, 2, 3, 4], 0.5, 0.25, 0.25),  # the last mistake counts
        ([1, 2, 3, 9], [1, 2, 3, 4], 0.75, 0.0, 0.25),  # nothing behind the last mistake
        ([9], [1], 0.0, 0.0, 1.0),  # as released: all of a single wrong token was extracted
    ],
)
def test_extraction_by_hand(predicted, labels, exact, strength, floored):
    words = torch.tensor(predicted), torch.tensor(labels)
    assert exact_memorization(*words) == exact
    assert extraction_strength(*words) == strength and extraction_strength(*words, floor=True) == floored
    nothing = torch.empty(0)
    assert math.isnan(exact_memorization(nothing, nothing)) and math.isnan(extraction_strength(nothing, nothing))


def test_memorization_is_that_of_greedy_writing(model):
    """What is left of the answer after each prefix, generated: the shortest prefix after which it comes out whole."""
    from equipoise.language.encode import IGNORE, encode

    teach(model)
    found = extraction.memorization(model, RECORDS, batch_size=2)
    assert found.ids == ("a", "b", "c")
    strengths = []
    for index, record in enumerate(RECORDS):
        (example,) = encode(model, [record], end=False)
        first = next(i for i, label in enumerate(example.labels) if label != IGNORE)
        count = len(example.input_ids) - first
        assert found.tokens[index] == count
        given = next(k for k in range(count + 1) if written(model, example.input_ids, first + k))
        strengths.append(1 - given / count)
    assert found.strength.tolist() == pytest.approx(strengths)
    assert 0 < sum(strengths) < 3 and (found.exact >= found.strength).all()  # neither all nor nothing was learnt


def teach(model):
    from equipoise.language.tiny import teach as teach_records

    teach_records(model, RECORDS[:2], seed=0, epochs=40, learning_rate=1e-2, batch_size=2)


def written(model, ids, start):
    """Whether greedy decoding from the first `start` tokens gives the rest."""
    tokens = list(ids[:start])
    with torch.no_grad():
        while len(tokens) < len(ids):
            tokens.append(int(model.model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens == list(ids)


# Questions.


def test_the_right_choice_of_a_uniform_model_has_a_quarter():
    flat = [torch.full((4,), -7.0), torch.full((2,), -1.0)]
    assert questions.right_probability(flat, [3, 0]).tolist() == [0.25, 0.5]
    sure = torch.tensor([0.7, 0.1, 0.1, 0.05]).log()
    assert questions.right_probability([sure], [0]).item() == pytest.approx(0.7 / 0.95)
    assert questions.right_probability([], []).shape == (0,)


QUESTIONS = [
    Record("q1", "red", "The sky is?", choices=("blue", "red", "wide", "near"), answer=0),
    Record("q2", "b", " Who sang? ", choices=("Ann", "Bob"), answer=1),
]


def test_questions_are_asked_as_the_harness_writes_them(model):
    from equipoise.language.encode import encode

    shot = Record("s", "x", "It was? ", choices=("far", "near"), answer=1)
    first, second = questions.asked(QUESTIONS, subject="college_biology", shots=[shot])
    head = "The following are multiple choice questions (with answers) about college biology.\n\n"
    assert first.prompt == f"{head}It was?\nA. far\nB. near\nAnswer: B\n\nThe sky is?"
    assert (first.choices, first.answer, first.id) == (QUESTIONS[0].choices, 0, "q1")
    assert second.prompt.endswith("Answer: B\n\nWho sang?")
    assert questions.asked(QUESTIONS)[1].prompt == "Who sang?"
    with pytest.raises(BadInput, match="'x' is shown"):
        questions.asked(QUESTIONS, shots=[OTHERS[0]])
    found = questions.answered(model, QUESTIONS)
    assert found.chance.tolist() == [0.25, 0.5] and found.ids == ("q1", "q2")
    for index, record in enumerate(QUESTIONS):
        letters = "ABCD"[: len(record.choices)]
        lines = "".join(f"\n{a}. {c}" for a, c in zip(letters, record.choices, strict=True))
        mass = []
        for letter in letters:
            (example,) = encode(model, [Record("l", letter, f"{record.prompt.strip()}{lines}\nAnswer:")], end=False)
            with torch.no_grad():
                logits = model.model(torch.tensor([example.input_ids])).logits[0]
            count = sum(label != -100 for label in example.labels)
            assert count == 1  # one token, as in the harness
            mass.append(logits[-2].softmax(-1)[example.input_ids[-1]].item())
        assert found.right[index].item() == pytest.approx(mass[record.answer] / sum(mass), rel=1e-4)
        assert bool(found.correct[index]) == (int(np.argmax(mass)) == record.answer)


def test_mmlu_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "mmlu").mkdir()
    rows = [{"question": f"{n}?", "choices": ["a", "b"], "answer": n % 2, "subject": s} for n, s in enumerate("xxy")]
    (tmp_path / "mmlu" / "test-sample.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [r.group for r in questions.mmlu()] == ["x", "x", "y"]
    assert [r.prompt for r in questions.mmlu(subject="y")] == ["2?"] and len(questions.mmlu(limit=2)) == 2
    with pytest.raises(BadInput, match="has no dev questions"):
        questions.mmlu("dev")
    with pytest.raises(BadInput, match="no subject 'z'"):
        questions.mmlu(subject="z")
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "mmlu" / "all").mkdir()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows[:1]), tmp_path / "mmlu" / "all" / "dev-00000-of-00001.parquet"
    )
    assert [r.answer for r in questions.mmlu("dev")] == [0]


# Membership by record.


def test_membership_has_each_records_score_and_an_interval(model, monkeypatch):
    found = measures.membership_by_record(model, RECORDS, OTHERS)
    scores = measures.membership_scores(model, [*RECORDS, *OTHERS])
    plain = measures.membership(model, RECORDS, OTHERS)
    for name, each in found.items():
        assert each.member_ids == ("a", "b", "c") and each.other_ids == ("x", "y")
        assert_close(torch.cat([each.members, each.others]), scores[name])
        assert each.auroc == pytest.approx(plain[name])
        assert math.isnan(each.lower) and math.isnan(each.upper)  # five records are too few
    random = np.random.default_rng(0)
    drawn = {name: torch.tensor(random.normal(size=160)) for name in measures.ATTACKS}
    drawn["loss"][:60] += 1
    monkeypatch.setattr(measures, "membership_scores", lambda *a, **k: drawn)
    many = [replace(RECORDS[0], id=str(n)) for n in range(160)]
    loss = measures.membership_by_record(model, many[:60], many[60:])["loss"]
    # Hanley and McNeil's closed form of the standard error, within a quarter.
    a, n, m = loss.auroc, 60, 100
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = math.sqrt((a * (1 - a) + (n - 1) * (q1 - a * a) + (m - 1) * (q2 - a * a)) / (n * m))
    assert (loss.upper - loss.lower) / 2 == pytest.approx(1.96 * error, rel=0.25)
    assert loss.lower < a < loss.upper
    assert measures.membership_by_record(model, many[:60], many[60:])["loss"].lower == loss.lower
    assert measures.membership_by_record(model, many[:60], many[60:], seed=1)["loss"].lower != loss.lower


# The log.


def log_of(model, **others):
    sets = {name: tofu.score(model, RECORDS, max_new_tokens=3) for name in openunlearning.SETS}
    memorized = extraction.memorization(model, RECORDS)
    membership = measures.membership_by_record(model, RECORDS, OTHERS)
    return sets, openunlearning.evaluation(sets, memorized=memorized, membership=membership, **others)


def losses(model, records):
    found = measures.answer_log_probability(model, records)
    return -(found.log_probability / found.tokens).numpy()


def test_the_log_of_open_unlearning_written_anew(model, tmp_path):
    sets, log = log_of(model)
    answer = losses(model, RECORDS)
    right = losses(model, [measures.reworded(r, r.paraphrases[0]) for r in RECORDS])
    wrong = losses(model, [measures.reworded(r, w) for r in RECORDS for w in r.wrong]).reshape(3, 2)
    assert log["forget_Q_A_Prob"]["agg_value"] == pytest.approx(np.exp(-answer).mean())
    assert log["forget_Q_A_Prob"]["value_by_index"]["1"] == pytest.approx(
        {"prob": np.exp(-answer[1]), "avg_loss": answer[1]}
    )
    assert log["retain_Q_A_PERT_Prob"]["value_by_index"]["2"]["avg_loss"] == pytest.approx(wrong[2].tolist())
    assert log["retain_Q_A_PERT_Prob"]["agg_value"] == pytest.approx(np.exp(-wrong).mean())
    assert log["forget_Q_A_PARA_Prob"]["value_by_index"]["0"]["prob"] == pytest.approx(np.exp(-right[0]))
    ratios = np.exp(-wrong.mean(1)) / (np.exp(-right) + 1e-10)
    assert log["forget_truth_ratio"]["agg_value"] == pytest.approx(np.minimum(ratios, 1 / (ratios + 1e-10)).mean())
    assert log["ra_Truth_Ratio"]["agg_value"] == pytest.approx(np.maximum(0, 1 - ratios).mean())
    assert log["wf_Truth_Ratio"]["value_by_index"]["2"]["score"] == pytest.approx(ratios[2])
    shares = np.exp(-answer) / (np.exp(-answer) + np.exp(-wrong).sum(1) + 1e-10)
    assert log["wf_Q_A_Prob_normalised"]["agg_value"] == pytest.approx(shares.mean())
    assert log["model_utility"]["agg_value"] == pytest.approx(
        stats.hmean([log[name]["agg_value"] for name in openunlearning.UTILITY])
    )
    item = log["retain_Q_A_ROUGE"]["value_by_index"]["1"]
    assert list(item) == ["rouge1_recall", "rougeL_f1", "rougeL_recall", "input", "ground_truth", "generation"]
    assert (item["input"], item["ground_truth"], item["generation"]) == (
        RECORDS[1].prompt,
        RECORDS[1].completion,
        sets["retain"].generated[1],
    )
    mean = np.mean([each["rougeL_recall"] for each in log["retain_Q_A_ROUGE"]["value_by_index"].values()])
    assert log["retain_Q_A_ROUGE"]["agg_value"] == pytest.approx(mean)
    floor = extraction.memorization(model, RECORDS, floor=True).strength
    assert log["extraction_strength"]["agg_value"] == pytest.approx(floor.mean().item())
    mia = log["mia_loss"]
    assert (
        mia["auc"] == mia["agg_value"] == np.mean([[a < b for b in losses(model, OTHERS)] for a in answer])
    )  # a holdout's loss is above a member's
    assert mia["forget"]["value_by_index"]["1"]["score"] == pytest.approx(answer[1], rel=1e-4)
    assert mia["holdout"]["value_by_index"]["0"]["score"] == pytest.approx(losses(model, OTHERS)[0], rel=1e-4)
    auc = log["mia_min_k"]["agg_value"]
    assert log["privleak"]["agg_value"] == pytest.approx(((1 - auc) - 0.5) / (0.5 + 1e-10) * 100)
    assert "forget_quality" not in log

    openunlearning.write(tmp_path, log)
    stored, summary = (json.loads((tmp_path / name).read_text()) for name in openunlearning.FILES)
    assert list(stored) == sorted(log) == list(summary)
    assert stored["forget_truth_ratio"] == log["forget_truth_ratio"]
    assert summary == {name: each["agg_value"] for name, each in log.items()}
    reference = openunlearning.read(tmp_path / "TOFU_EVAL.json")
    _, compared = log_of(model, reference=reference)
    assert compared["forget_quality"]["agg_value"] == 1  # a model against itself
    assert compared["privleak"]["agg_value"] == 0


def test_what_is_not_there_is_not_logged(model, tmp_path):
    plain = [replace(record, paraphrases=(), wrong=()) for record in RECORDS]
    log = openunlearning.evaluation({"forget": tofu.score(model, plain, generated=False)})
    assert list(log) == ["forget_Q_A_Prob"]
    whole = {"forget": tofu.score(model, RECORDS, generated=False)}
    with pytest.raises(BadInput, match=r"no forget_truth_ratio \(found: forget_Q_A_Prob\)"):
        openunlearning.evaluation(whole, reference=log)
    with pytest.raises(BadInput, match="no set 'ra'"):
        openunlearning.evaluation({"ra": tofu.score(model, plain, generated=False)})
    for content in ("[1]", "{", '{"a": 1}'):
        (tmp_path / "log.json").write_text(content)
        with pytest.raises(BadInput, match="TOFU_EVAL"):
            openunlearning.read(tmp_path / "log.json")


def test_rouge_one_counts_words_as_often_as_they_stand(model):
    item = openunlearning._rouge("p", "to be or not to be", "be to to to", None)
    assert item["rouge1_recall"] == pytest.approx(3 / 6)
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    theirs = scorer.score("to be or not to be", "be to to to")
    assert item["rouge1_recall"] == theirs["rouge1"].recall and item["rougeL_f1"] == theirs["rougeL"].fmeasure
