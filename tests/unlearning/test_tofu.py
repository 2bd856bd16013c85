"""TOFU's and MUSE's measures against numbers that were published or computed by hand, and a model asked record by record."""

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import harmonic_mean
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.data.records import Message, Record
from equipoise.unlearning import muse, tofu
from equipoise.unlearning.measures import forget_quality, truth_ratios
from equipoise.unlearning.tofu import Scored, model_utility, utility_numbers

# TOFU's released evaluation logs (github.com/locuslab/tofu, MIT): log truth ratios of forget10, 300 questions a model.
LOGS = Path(__file__).parent / "tofu_log_ratios.json"
RECORDS = [
    Record("a", "blue", "The sky is", paraphrases=("it is blue", "so blue"), wrong=("red", "so very red")),
    Record("b", "a long way home", "It was", wrong=("short",)),
    Record("c", "Ann", "Who sang?", wrong=("Bob", "Cleo", "Dan and Eve")),
]


@pytest.fixture(scope="module")
def model():
    from equipoise.language.tiny import tiny

    texts = [" ".join((r.prompt, r.completion, *r.paraphrases, *r.wrong)) for r in RECORDS]
    return tiny(texts, seed=3, width=16, layers=1, heads=2, vocabulary=300)


def scored(answer, right, wrong, generated=(), completions=None):
    records = tuple(Record(str(i), c) for i, c in enumerate(completions or ["x"] * len(answer)))
    tensors = [tuple(torch.tensor(row, dtype=torch.float64).log() for row in side) for side in (right, wrong)]
    return Scored(records, torch.tensor(answer, dtype=torch.float64).log(), *tensors, tuple(generated))


@pytest.mark.parametrize(
    ("model", "statistic", "p_value", "log10"),
    [("phi", 0.346667, 2.1943e-16, -15.6587), ("llama2-7b", 0.396667, 1.8341e-21, -20.7366)],
)
def test_forget_quality_of_the_released_logs(model, statistic, p_value, log10):
    logs = json.loads(LOGS.read_text())
    ratios = [torch.tensor(logs[f"{model}_{name}"], dtype=torch.float64).exp() for name in ("full", "retain90")]
    assert [len(each) for each in ratios] == [300, 300]
    quality = forget_quality(*ratios)
    assert quality.statistic == pytest.approx(statistic, abs=1e-6)
    assert quality.p_value == pytest.approx(p_value, rel=1e-4) and quality.log10 == pytest.approx(log10, abs=1e-4)
    assert forget_quality(ratios[0], ratios[0]).log10 == 0  # a model against itself


def test_probabilities_and_ratios_by_hand():
    found = scored([0.5, 0.2], [[0.4, 0.1], [0.2]], [[0.3, 0.1, 0.1], [0.8]])
    assert_close(found.probability, torch.tensor([0.5, 0.2], dtype=torch.float64))
    assert_close(found.probability_among_options, torch.tensor([0.5, 0.2], dtype=torch.float64))
    third = torch.tensor([(0.3 * 0.1 * 0.1) ** (1 / 3) / 0.2, 4.0], dtype=torch.float64)
    assert_close(found.truth_ratios(), third)
    assert_close(found.truth_ratios("arithmetic"), torch.tensor([(0.5 / 3) / 0.25, 4.0], dtype=torch.float64))
    assert found.ids == ("0", "1")
    with pytest.raises(BadInput, match="geometrical"):
        found.truth_ratios("geometrical")
    bare = scored([0.5], [[0.5]], [[]])
    assert bare.probability_among_options.isnan().all() and bare.truth_ratios().isnan().all()


def test_chance_among_options_of_a_model_that_knows_nothing():
    nothing = scored([0.1], [[0.1]], [[0.1] * 3])
    assert nothing.probability_among_options.item() == pytest.approx(0.25) and nothing.truth_ratios().item() == 1


def test_the_nine_numbers_and_their_harmonic_mean():
    words = {"generated": ["a b", "z"], "completions": ["a b c d", "z y"]}
    one = scored([0.5, 0.1], [[0.4], [0.1]], [[0.2, 0.1], [0.3, 0.1]], **words)
    other = scored([0.9, 0.7], [[0.9], [0.7]], [[0.05, 0.2], [0.1, 0.4]], **words)
    kept = {"retain": one, "real_authors": other, "world_facts": one}
    numbers = utility_numbers(kept)
    truths = [(1 - 0.15 / 0.4 + 0) / 2, (2 - 0.125 / 0.9 - 0.25 / 0.7) / 2]
    options = [(0.9 / 1.15 + 0.7 / 1.2) / 2, (0.5 / 0.8 + 0.1 / 0.5) / 2]
    expected = [0.3, 0.5, truths[0], options[0], 0.5, truths[1], options[1], 0.5, truths[0]]
    assert list(numbers) == [f"{s}_{m}" for s in tofu.KEPT for m in ("probability", "rouge", "truth")]
    assert list(numbers.values()) == pytest.approx(expected)
    assert model_utility(numbers) == pytest.approx(harmonic_mean(expected))
    geometric = utility_numbers(kept, "open-unlearning")
    assert geometric["retain_truth"] == pytest.approx((1 - math.sqrt(0.02) / 0.4) / 2)
    assert {name for name in numbers if numbers[name] != geometric[name]} == {f"{s}_truth" for s in tofu.KEPT}
    assert model_utility(numbers | {"retain_rouge": 0.0}) == 0
    assert math.isnan(model_utility({})) and math.isnan(model_utility(numbers | {"retain_rouge": math.nan}))
    with pytest.raises(BadInput, match="'world_facts' is missing or too much"):
        utility_numbers({"retain": one, "real_authors": other})
    with pytest.raises(BadInput, match="open-unlearn"):
        utility_numbers(kept, "open_unlearning")


def test_rouge_is_stemmed_only_when_a_stemmer_is_given():
    found = scored([0.5], [[0.5]], [[0.5]], ["she wrote poem"], ["She writes poems"])
    assert found.rouge_recall().item() == pytest.approx(1 / 3)
    assert found.rouge_recall(lambda word: word.rstrip("s")).item() == pytest.approx(2 / 3)


def test_a_set_is_scored_as_each_record_alone(model):
    found = tofu.score(model, RECORDS, max_new_tokens=3, batch_size=2)
    for index, record in enumerate(RECORDS):
        alone = tofu.score(model, [record], generated=False)
        assert_close(alone.answer[0], found.answer[index], atol=1e-5, rtol=0)
        for ours, theirs in ((found.right, alone.right), (found.wrong, alone.wrong)):
            assert_close(theirs[0], ours[index], atol=1e-5, rtol=0)
    assert [len(each) for each in found.right] == [2, 1, 1] and [len(each) for each in found.wrong] == [2, 1, 3]
    assert found.right[1][0] == found.answer[1]
    assert_close(found.truth_ratios(), truth_ratios(model, RECORDS))
    assert found.generated == tuple(muse_generate(model, [r.prompt for r in RECORDS], 3))
    assert tofu.forget_quality(found, found).p_value == 1
    assert tofu.score(model, [], generated=False).truth_ratios().shape == (0,)
    with pytest.raises(BadInput, match="'d' has no prompt"):
        tofu.score(model, [Record("d", "some text")])


def muse_generate(model, prompts, count):
    from equipoise.language.generate import generate

    return generate(model, prompts, max_new_tokens=count)


# MUSE.


def test_privacy_leakage_by_hand():
    assert muse.privacy_leakage(0.5) == 0 and muse.privacy_leakage(1.0) == -100 and muse.privacy_leakage(0.0) == 100
    assert muse.privacy_leakage(0.8, 0.6) == pytest.approx(-50)  # (0.2 - 0.4) / 0.4
    assert math.isnan(muse.privacy_leakage(0.5, 1.0))


def test_rouge_l_f1_is_that_of_the_rouge_package():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    for reference, answer in (("the cat sat on it", "a cat on the it"), ("one two", "two one two three"), ("a", "b")):
        assert muse.rouge_l_f1(reference, answer) == pytest.approx(scorer.score(reference, answer)["rougeL"].fmeasure)
    assert math.isnan(muse.rouge_l_f1("?!", "a"))


def test_what_muse_asks(model, monkeypatch):
    asked = []

    def generate(language_model, prompts, **options):
        asked.append((list(prompts), options))
        return ["blue it is", "a long"]

    monkeypatch.setattr("equipoise.language.generate.generate", generate)
    found = muse.verbatim_memory(model, RECORDS[:2], batch_size=4)
    assert found.ids == ("a", "b") and found.f1.tolist() == pytest.approx([2 / 4, 2 * 2 / 6])
    assert found.mean == pytest.approx((0.5 + 2 / 3) / 2)
    short = muse.verbatim_memory(model, [replace(RECORDS[1], completion="a long way home " * 40), RECORDS[1]])
    assert short.f1[0] < 2 * 2 / 6  # cut at 128 tokens, which are fewer than the words of the whole
    muse.knowledge_memory(model, RECORDS[:2], RECORDS[2:])
    questions = [f"Question: Who sang?\nAnswer: Ann\n\nQuestion: {r.prompt}\nAnswer:" for r in RECORDS[:2]]
    assert asked[0] == (["The sky is", "It was"], {"max_new_tokens": 128, "batch_size": 4, "stop": ()})
    assert asked[2] == (questions, {"max_new_tokens": 32, "batch_size": 32, "stop": ("\n\n", "\nQuestion")})
    with pytest.raises(BadInput, match="no prompt"):
        muse.verbatim_memory(model, [Record("d", "text")])


def test_room_is_what_the_longest_prompt_leaves(monkeypatch):
    from equipoise.language import encode

    def encoded(language_model, prompts):
        asked.append(prompts)
        return [[0] * len(str(prompt if isinstance(prompt, str) else prompt[-1].content)) for prompt in prompts], None

    asked: list = []
    monkeypatch.setattr(encode, "encode_prompts", encoded)
    short, long = Record("1", "yes", "abc"), Record("2", "no", "a" * 40)
    turns = (
        Message("user", "hello"),
        Message("assistant", "hi"),
        Message("user", "u" * 30),
        Message("assistant", "x" * 99),
    )
    spoken = Record("3", "x" * 99, "u" * 30, messages=turns)
    model = SimpleNamespace(context=100)
    assert tofu.room(model, [short]) == 97 and tofu.room(model, [short, long]) == 60 == tofu.room(model, [long, short])
    assert tofu.room(model, [short, spoken]) == 70 and list(asked[-1][1]) == list(turns[:-1])
    assert tofu.room(model, [long], most=50) == 50 and tofu.room(SimpleNamespace(context=900), [long]) == 200
    assert tofu.room(SimpleNamespace(context=40), [long]) == tofu.room(SimpleNamespace(context=7), [long]) == 0
    assert tofu.room(model, []) == tofu.room(model, [short, Record("4", "a text", "")]) == 0
