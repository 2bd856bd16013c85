import math
import os
import zlib
from dataclasses import replace
from statistics import harmonic_mean

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.data.public import VARIABLE, folder
from equipoise.data.records import Record
from equipoise.unlearning import measures
from equipoise.unlearning.measures import (
    auroc,
    forget_quality,
    loss_attack,
    min_k,
    min_k_plus_plus,
    truth_closeness,
    truth_ratio,
    truth_utility,
    vocabulary_moments,
    zlib_attack,
)

# Truth ratio.


def test_truth_ratio_of_both_means_in_closed_form():
    right = torch.tensor([0.5, 0.125], dtype=torch.float64).log()  # means: geometric 0.25, arithmetic 0.3125
    wrong = torch.tensor([0.1, 0.1, 0.8], dtype=torch.float64).log()  # geometric 0.2, arithmetic 1/3
    assert truth_ratio(right, wrong).item() == pytest.approx(0.2 / 0.25)
    assert truth_ratio(right, wrong, "arithmetic").item() == pytest.approx((1 / 3) / 0.3125)


def test_truth_ratio_is_batched_and_does_not_underflow():
    right = torch.tensor([[-2000.0], [-1.0]], dtype=torch.float64)
    wrong = torch.tensor([[-2000.0, -2000.0], [-2.0, -4.0]], dtype=torch.float64)
    expected = torch.tensor([1.0, math.exp(-2)], dtype=torch.float64)
    assert_close(truth_ratio(right, wrong), expected)
    assert_close(truth_ratio(right, wrong, "arithmetic")[0], expected[0])


def test_words_are_closed(model):
    with pytest.raises(BadInput, match=r"mean is 'geometrc'. Did you mean 'geometric'"):
        truth_ratio(torch.zeros(2), torch.zeros(2), "geometrc")
    with pytest.raises(BadInput, match="mean is 'mean'"):
        measures.truth_ratios(model, [], mean="mean")
    with pytest.raises(BadInput, match=r"by is 'letters'. Did you mean 'letter'"):
        measures.multiple_choice_accuracy(model, [], by="letters")


def test_truth_ratio_without_wrong_answers_is_nan():
    for mean in ("geometric", "arithmetic"):
        assert truth_ratio(torch.zeros(2, 1), torch.zeros(2, 0), mean).isnan().all()


def test_summaries_of_truth_ratios():
    ratios = torch.tensor([0.25, 4.0, 1.0], dtype=torch.float64)
    assert truth_utility(ratios) == pytest.approx(0.75 / 3)
    assert truth_closeness(ratios) == pytest.approx((0.25 + 0.25 + 1) / 3)
    assert math.isnan(truth_utility(torch.empty(0))) and math.isnan(truth_closeness(torch.empty(0)))


def test_forget_quality_depends_on_order_only():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(60, generator=generator), torch.rand(50, generator=generator) ** 2
    quality = forget_quality(first, second)
    gaps = [abs((first <= x).double().mean() - (second <= x).double().mean()) for x in torch.cat([first, second])]
    assert quality.statistic == pytest.approx(float(max(gaps)))
    assert forget_quality(1 / first, 1 / second).p_value == pytest.approx(quality.p_value)
    assert quality.log10 == pytest.approx(math.log10(quality.p_value))
    assert forget_quality(first, first).p_value == 1
    for nothing in (forget_quality(first, torch.empty(0)), forget_quality(torch.empty(0), first)):
        assert math.isnan(nothing.p_value) and math.isnan(nothing.statistic)
    assert measures.ForgetQuality(1.0, 0.0).log10 == -math.inf and measures.ForgetQuality(1.0, 0.01).log10 == -2
    with pytest.raises(BadInput, match="every item needs a right and a wrong answer"):
        forget_quality(torch.full((3,), math.nan), first)
    with pytest.raises(BadInput, match="nan"):
        forget_quality(first, torch.full((3,), math.nan))


@pytest.fixture(scope="module")
def tofu_logs():
    if not os.environ.get(VARIABLE):
        pytest.skip(f"{VARIABLE} does not name a folder with tofu-logs/.")
    import pyarrow.parquet

    return pyarrow.parquet.read_table(folder("tofu-logs") / "losses.parquet").to_pylist()


def logged_ratios(rows, mean):
    def ratio(row):
        right = row["answer_loss"] if row["paraphrased_loss"] is None else row["paraphrased_loss"]
        losses = torch.tensor([right, *row["perturbed_loss"]], dtype=torch.float64)
        return truth_ratio(-losses[:1], -losses[1:], mean)

    return torch.stack([ratio(row) for row in rows])


@pytest.mark.parametrize(
    ("model", "statistic", "p_value"), [("phi", 0.346667, 2.1943e-16), ("llama2-7b", 0.396667, 1.8341e-21)]
)
def test_forget_quality_of_tofus_own_logs(tofu_logs, model, statistic, p_value):
    ratios = [
        logged_ratios([row for row in tofu_logs if row["model"] == name and row["split"] == "forget"], "geometric")
        for name in (f"{model}_full", f"{model}_retain90")
    ]
    quality = forget_quality(*ratios)
    assert quality.statistic == pytest.approx(statistic, abs=1e-6) and quality.p_value == pytest.approx(
        p_value, rel=1e-4
    )


@pytest.mark.parametrize(
    ("model", "mean", "utility"),
    [
        ("llama2-7b_full", "arithmetic", 0.5859),
        ("llama2-7b_full", "geometric", 0.6227),
        ("phi_full", "arithmetic", 0.5034),
        ("phi_full", "geometric", 0.5221),
    ],
)
def test_model_utility_of_tofus_own_logs(tofu_logs, model, mean, utility):
    """The harmonic mean of probability, ROUGE and truth over three sets, for which both means are published."""
    numbers = []
    for split in ("retain", "real_authors", "world_facts"):
        rows = [row for row in tofu_logs if (row["model"], row["split"]) == (model, split)]
        right = np.exp([-row["answer_loss"] for row in rows])
        if split != "retain":
            right = right / (right + [np.exp(-np.array(row["perturbed_loss"])).sum() for row in rows])
        numbers += [right.mean(), np.mean([row["rougeL_recall"] for row in rows])]
        numbers.append(truth_utility(logged_ratios(rows, mean)))
    assert harmonic_mean(numbers) == pytest.approx(utility, abs=5e-5)


# Membership.


def test_attacks_in_closed_form():
    values = torch.tensor([-1.0, -5.0, -3.0, -2.0, -4.0])
    assert loss_attack(values) == -3
    assert min_k(values, 0.4) == -4.5 and min_k(values, 0.01) == -5 and min_k(values, 1) == -3
    text = "abc " * 50
    assert zlib_attack(values, text) == pytest.approx(-3 / len(zlib.compress(text.encode())))  # the mean
    assert zlib_attack(values.repeat(2), text) == zlib_attack(values, text)
    mean, deviation = torch.tensor([-1.0, -3.0, -3.0, -1.0, -4.0]), torch.tensor([1.0, 2.0, 0.5, 1.0, 0.0])
    assert min_k_plus_plus(values, mean, deviation, 0.4) == -1.0  # of 0, -1, 0, -1, and 0 where nothing varies
    assert math.isnan(min_k(torch.empty(0))) and math.isnan(loss_attack(torch.empty(0)))
    with pytest.raises(BadInput, match="k is 0"):
        min_k(values, 0)


def test_a_fifth_of_the_tokens_unless_told_otherwise():
    values = -torch.arange(1.0, 11)
    one = torch.ones(10)
    assert min_k(values) == min_k(values, 0.2) == -9.5 == min_k_plus_plus(values, 0 * one, one)
    assert min_k(values[:4]) == -4  # of four tokens one at least
    assert [min_k(values, k) for k in (0.29, 0.3, 1.0)] == [-9.5, -9.0, -5.5]  # rounded down
    for k in (0, -0.1, 1.0001, math.nan):
        with pytest.raises(BadInput, match=rf"^k is {k}, expected a share above 0 and at most 1\.$"):
            min_k(values, k)
    assert math.isnan(zlib_attack(torch.empty(0), "text"))


def test_a_deviation_divides_and_none_counts_as_nothing():
    values, mean = torch.tensor([-3.0, -8.0, -2.0]), torch.tensor([-1.0, -2.0, -4.0])
    assert min_k_plus_plus(values, mean, torch.tensor([4.0, 3.0, 2.0]), 1.0) == pytest.approx((-0.5 - 2 + 1) / 3)
    assert min_k_plus_plus(values, mean, torch.tensor([4.0, 0.0, 2.0]), 1.0) == pytest.approx((-0.5 + 0 + 1) / 3)
    assert math.isnan(min_k_plus_plus(torch.empty(0), torch.empty(0), torch.empty(0)))


def test_vocabulary_moments_by_brute_force():
    logits = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    logits[1, 2] = -math.inf
    for row, mean, deviation in zip(logits, *vocabulary_moments(logits), strict=True):
        p = row.softmax(0).numpy()
        logs = np.log(p, where=p > 0, out=np.zeros(7))
        assert mean.item() == pytest.approx((p * logs).sum())
        assert deviation.item() == pytest.approx(math.sqrt((p * (logs - (p * logs).sum()) ** 2).sum()))
    assert_close(vocabulary_moments(torch.zeros(4))[1], torch.tensor(0.0))


def test_auroc_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    members, others = random.integers(0, 6, 30), random.integers(1, 8, 17)  # with ties
    truth = [1] * 30 + [0] * 17
    assert auroc(members, others) == pytest.approx(metrics.roc_auc_score(truth, [*members, *others]))
    assert auroc([1, 2], [1, 2]) == 0.5 and auroc([3], [1, 2]) == 1 and auroc([1, 4], [2, 3, 5]) == 2 / 6
    for nothing in (([], [1]), ([1], []), ([math.nan, 1], [1]), ([1], [0, math.nan])):
        assert math.isnan(auroc(*nothing))


# With a model.

RECORDS = [
    Record(
        "1",
        "blue",
        "The sky is",
        choices=("red", "blue green"),
        answer=1,
        paraphrases=("it is blue",),
        wrong=("red", "so red"),
    ),
    Record("2", "a very long way home", "It was", choices=("a way", "home"), answer=0, wrong=("short",)),
    Record("3", "Birds sing in the morning."),
]


@pytest.fixture(scope="module")
def model():
    from equipoise.language.tiny import tiny

    texts = [f"{record.prompt} {record.completion} {' '.join(record.choices)}" for record in RECORDS]
    return tiny(texts, seed=3, width=16, layers=1, heads=2, vocabulary=300)


def slow(model, record):
    """Log-probabilities and logits of a record's labelled tokens, one record at a time, without padding."""
    from equipoise.language.encode import IGNORE, encode

    (example,) = encode(model, [record])
    with torch.no_grad():
        logits = model.model(torch.tensor([example.input_ids])).logits[0]
    places = [i for i, label in enumerate(example.labels) if label != IGNORE]
    chosen = logits[[i - 1 for i in places]].double()
    labels = torch.tensor([example.labels[i] for i in places])
    return chosen.log_softmax(-1).gather(-1, labels[:, None])[:, 0], chosen


def test_answer_log_probability_is_that_of_each_record_alone(model):
    answers = measures.answer_log_probability(model, RECORDS, batch_size=2)
    expected = [slow(model, record)[0] for record in RECORDS]
    assert answers.ids == ("1", "2", "3") and answers.tokens.tolist() == [len(values) for values in expected]
    assert len(set(answers.tokens.tolist())) == 3
    assert_close(answers.log_probability, torch.stack([values.sum() for values in expected]), atol=1e-4, rtol=0)
    assert_close(answers.probability, torch.stack([values.mean().exp() for values in expected]), atol=1e-6, rtol=1e-4)


def test_truth_ratios_of_records(model):
    found = measures.truth_ratios(model, [*RECORDS, replace(RECORDS[1], id="4", wrong=("short", "no"))], batch_size=3)

    def mean(index, wording):
        return slow(model, replace(RECORDS[index], completion=wording))[0].mean().item()

    assert found[0].item() == pytest.approx(
        math.exp((mean(0, "red") + mean(0, "so red")) / 2 - mean(0, "it is blue")), rel=1e-4
    )
    assert found[1].item() == pytest.approx(math.exp(mean(1, "short") - mean(1, RECORDS[1].completion)), rel=1e-4)
    assert found[2].isnan()  # no wrong answers
    assert found[3].item() == pytest.approx(
        math.exp((mean(1, "short") + mean(1, "no")) / 2 - mean(1, RECORDS[1].completion)), rel=1e-4
    )
    assert measures.truth_ratios(model, []).shape == (0,)


def test_rouge_recall_of_what_the_model_says(model, monkeypatch):
    said = {"The sky is": "a BLUE sky", "It was": "no way"}
    seen = []

    def generate(language_model, prompts, **options):
        seen.append(options["max_new_tokens"])
        return [said[prompt] for prompt in prompts]

    monkeypatch.setattr("equipoise.language.generate.generate", generate)
    assert_close(
        measures.rouge_recall(model, RECORDS[:2], max_new_tokens=5), torch.tensor([1, 0.2], dtype=torch.float64)
    )
    assert seen == [5]
    with pytest.raises(BadInput, match="'3' has no prompt"):
        measures.rouge_recall(model, RECORDS)


def test_an_answer_has_64_tokens_at_most_and_a_conversation_is_asked_as_one(model, monkeypatch):
    from equipoise.data.records import Message

    turns = (Message("user", "a?"), Message("assistant", "b"), Message("user", "c?"), Message("assistant", "d e"))
    asked = []

    def generate(language_model, prompts, **options):
        asked.append((prompts, options))
        return ["d", "nothing"]

    monkeypatch.setattr("equipoise.language.generate.generate", generate)
    found = measures.rouge_recall(model, [Record("c", "d e", "c?", messages=turns), RECORDS[0]], batch_size=7)
    assert found.tolist() == [0.5, 0.0] and found.dtype == torch.float64
    assert asked == [([turns[:-1], "The sky is"], {"max_new_tokens": 64, "batch_size": 7})]


def test_another_wording_replaces_the_last_turn_of_a_conversation():
    from equipoise.data.records import Message

    turns = (Message("user", "a?"), Message("assistant", "b"), Message("user", "c?"), Message("assistant", "d e"))
    found = measures.reworded(Record("c", "d e", "c?", messages=turns, wrong=("x",)), "f")
    assert (found.completion, found.messages, found.id) == ("f", (*turns[:3], Message("assistant", "f")), "c")
    told = (Message("system", "s"), *turns[2:])
    found = measures.reworded(Record("c", "d e", "c?", messages=told), "f")
    assert found.messages == (*told[:2], Message("assistant", "f"))
    assert measures.reworded(RECORDS[1], "f") == replace(RECORDS[1], completion="f")


def test_texts_are_cut_at_512_tokens_unless_told_otherwise(model, monkeypatch):
    from equipoise.language import encode, score

    lengths, real = [], encode.encode

    def cut(language_model, records, *, max_length):
        lengths.append(max_length)
        return real(language_model, records, max_length=max_length)

    def text_loss(language_model, texts, *, max_length, batch_size):
        lengths.append(max_length)
        return 1.5

    monkeypatch.setattr(encode, "encode", cut)
    monkeypatch.setattr(score, "text_loss", text_loss)
    for how, length in (({}, 512), ({"max_length": 99}, 99)):
        measures.answer_log_probability(model, RECORDS, **how)
        measures.truth_ratios(model, RECORDS, **how)
        measures.membership_scores(model, RECORDS, **how)
        measures.membership(model, RECORDS[:1], RECORDS[1:], **how)
        assert measures.general_loss(model, ["text"], **how) == 1.5
        assert lengths == [length] * 5
        lengths.clear()


def test_membership_is_told_by_a_fifth_of_the_tokens_unless_told_otherwise(model):
    default, fifth, half = ({**how} for how in ({}, {"k": 0.2}, {"k": 0.5}))
    scores = [measures.membership_scores(model, RECORDS, **how)["min-k"].tolist() for how in (default, fifth, half)]
    assert scores[0] == scores[1] != scores[2]
    values = measures.membership_scores(model, RECORDS, k=0.5)
    found = measures.membership(model, RECORDS[1:], RECORDS[:1], k=0.5)
    assert found == {name: auroc(each[1:], each[:1]) for name, each in values.items()}
    assert found != {name: auroc(each[:1], each[1:]) for name, each in values.items()}
    plain = measures.membership_scores(model, RECORDS)
    assert measures.membership(model, RECORDS[1:], RECORDS[:1]) == {
        name: auroc(each[1:], each[:1]) for name, each in plain.items()
    }


def test_greedy_answers_of_a_real_model_are_scored(model):
    assert measures.rouge_recall(model, RECORDS[:2], max_new_tokens=4).shape == (2,)


def test_accuracy_and_general_loss(model):
    asked = RECORDS[:2]
    right = []
    for record in asked:
        # As in `language.multiple_choice`, the end token of a choice is not scored.
        scores = [slow(model, replace(record, completion=choice))[0][:-1].mean() for choice in record.choices]
        right.append(int(torch.stack(scores).argmax()) == record.answer)
    assert measures.multiple_choice_accuracy(model, asked) == sum(right) / 2
    texts = ["Birds sing in the morning.", "The sky is blue"]
    values = torch.cat([slow(model, Record(text, text))[0] for text in texts])
    assert measures.general_loss(model, texts) == pytest.approx(-values.mean().item(), rel=1e-5)
    assert math.isnan(measures.multiple_choice_accuracy(model, [])) and math.isnan(measures.general_loss(model, []))


@pytest.mark.parametrize(
    ("at_once", "batch_size", "passes"),
    [(1, 2, [1, 1, 1]), (2**25, 2, [2, 1]), (0, 3, [1, 2]), ("two", 3, [2, 1]), ("all", 3, [2, 1]), (2**25, 3, [3])],
)
def test_membership_scores_are_those_of_each_record_alone(model, monkeypatch, at_once, batch_size, passes):
    from equipoise.language import score
    from equipoise.language.encode import encode

    # Logits of the labelled tokens of the two longest records, of all three; as many are one too many.
    examples = sorted(encode(model, RECORDS), key=lambda example: -len(example.input_ids))
    counts = [sum(label != -100 for label in example.labels) for example in examples]
    vocabulary = len(model.tokenizer)
    at_once = {
        0: sum(counts[:2]) * vocabulary,
        "two": sum(counts[:2]) * vocabulary + 1,
        "all": sum(counts) * vocabulary,
    }.get(at_once, at_once)
    seen, real = [], score.labelled_logits
    monkeypatch.setattr(
        score, "labelled_logits", lambda its, batch: seen.append(len(batch["labels"])) or real(its, batch)
    )
    monkeypatch.setattr(measures, "_LOGITS_AT_ONCE", at_once)
    scores = measures.membership_scores(model, RECORDS, k=0.5, batch_size=batch_size)
    assert seen == passes
    for index, record in enumerate(RECORDS):
        values, logits = slow(model, record)
        expected = {
            "loss": loss_attack(values),
            "min-k": min_k(values, 0.5),
            "min-k++": min_k_plus_plus(values, *vocabulary_moments(logits), 0.5),
            "zlib": zlib_attack(values, record.completion),
        }
        assert {name: scores[name][index].item() for name in scores} == pytest.approx(expected, rel=1e-3)
    found = measures.membership(model, RECORDS[:1], RECORDS[1:])
    assert set(found) == set(measures.ATTACKS) and all(0 <= value <= 1 for value in found.values())
