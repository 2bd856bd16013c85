import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from transformers import Gemma2Config, Gemma2ForCausalLM

from equipoise.core.errors import BadInput
from equipoise.data.records import Message, Record
from equipoise.language import score as scoring
from equipoise.language.encode import IGNORE, Example, collate, encode
from equipoise.language.score import (
    labelled_logits,
    log_likelihoods,
    multiple_choice,
    perplexity,
    text_loss,
    token_log_likelihoods,
)
from frames import FRAMES, framed

WORDS = ["yes", "no", "Oslo", "Paris.", "In the town of Veskole", "one two three", "seven"]
RECORDS = [
    Record(id=f"r{i}", prompt=" ".join(["one", "two", "three", "four"] * (1 + 3 * i % 5))[: 9 + 7 * i], completion=word)
    for i, word in enumerate(WORDS)
] + [Record(id="text", completion="Where was Mulum Kunwick born? In the town of Veskole, where the river bends twice.")]


def brute_force(model, example: Example) -> torch.Tensor:
    """One example at a time, unpadded, log-softmax over all logits."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([example.input_ids])).logits[0].float()
    places = [place for place, label in enumerate(example.labels) if label != IGNORE]
    return torch.stack([logits[place - 1].log_softmax(-1)[example.labels[place]] for place in places])


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_token_log_likelihoods_against_a_loop(small, batch_size):
    examples = encode(small, RECORDS)
    assert len({len(example.input_ids) for example in examples}) > 3
    found = token_log_likelihoods(small, examples, batch_size=batch_size)
    for example, values in zip(examples, found, strict=True):
        assert_close(values, brute_force(small.model, example), atol=2e-5, rtol=0)
    sums, counts = log_likelihoods(small, examples, batch_size=batch_size)
    assert sums.dtype == torch.float64
    assert_close(sums, torch.stack([values.double().sum() for values in found]), atol=1e-9, rtol=0)
    assert counts.tolist() == [sum(label != IGNORE for label in example.labels) for example in examples]


def test_labels_with_gaps_and_shared_rows(small):
    ids = encode(small, RECORDS[-1:])[0].input_ids
    every_third = Example(ids, tuple(t if i and i % 3 == 0 else IGNORE for i, t in enumerate(ids)))
    # Two that read the same tokens but are asked for different ones at the end, and one that reads less.
    last = [Example((*ids[:8], t), (*[IGNORE] * 8, t)) for t in (5, 7)]
    wrong_label = Example(ids[:6], (IGNORE, IGNORE, 9, IGNORE, IGNORE, 11))
    examples = [every_third, *last, wrong_label]
    for example, values in zip(examples, token_log_likelihoods(small, examples, batch_size=2), strict=True):
        assert_close(values, brute_force(small.model, example), atol=2e-5, rtol=0)


def test_choices_of_one_token_share_their_row(small):
    rows = []
    hook = small.model.model.register_forward_pre_hook(
        lambda _, args, named: rows.append(len(named["input_ids"])), with_kwargs=True
    )
    record = Record(id="q", prompt="Where?", completion="yes", choices=("yes", "no", "Oslo", "seven"), answer=0)
    try:
        multiple_choice(small, [record], by="letter")
        assert rows == [1]
    finally:
        hook.remove()


def test_the_model_is_told_what_is_padding(small):
    """Where attention goes backwards alone it makes no difference; elsewhere it does."""
    given = []
    hook = small.model.register_forward_pre_hook(lambda _, args, named: given.append(named), with_kwargs=True)
    examples = encode(small, RECORDS)
    try:
        log_likelihoods(small, examples, batch_size=len(examples))
    finally:
        hook.remove()
    (batch,) = given
    # The last token of an example predicts nothing and is not read.
    lengths = sorted((len(example.input_ids) - 1 for example in examples), reverse=True)
    assert batch["attention_mask"].tolist() == [[1] * n + [0] * (lengths[0] - n) for n in lengths]
    assert lengths[0] > lengths[-1] and batch["input_ids"][-1, lengths[-1] :].eq(small.pad_id).all()


def test_few_logits_at_once(small, monkeypatch):
    examples = encode(small, RECORDS)
    expected = log_likelihoods(small, examples)[0]
    monkeypatch.setattr("equipoise.language.score._LOGITS_AT_ONCE", 5 * len(small.tokenizer))
    largest, places = [], sum(label != IGNORE for example in examples for label in example.labels)
    hook = small.model.lm_head.register_forward_hook(lambda _, args, output: largest.append(output.shape[1]))
    try:
        assert_close(log_likelihoods(small, examples)[0], expected, atol=1e-4, rtol=0)
        most = max(sum(label != IGNORE for label in example.labels) for example in examples)
        assert max(largest) == most > 5  # one row is never split, two are never joined beyond the limit
        for values, batches in ((places * len(small.tokenizer), 1), (places * len(small.tokenizer) - 1, 2)):
            monkeypatch.setattr("equipoise.language.score._LOGITS_AT_ONCE", values)
            largest.clear()
            log_likelihoods(small, examples)
            assert (len(largest), sum(largest)) == (batches, places)
    finally:
        hook.remove()


def test_only_labelled_places_reach_the_output_matrix(small):
    examples = encode(small, RECORDS[:3])
    batch = collate(examples, small.pad_id)
    logits, labels, rows = labelled_logits(small.model, batch)
    assert logits.shape == (sum(label != IGNORE for e in examples for label in e.labels), len(small.tokenizer))
    assert labels.tolist() == [label for e in examples for label in e.labels if label != IGNORE]
    assert rows.tolist() == [row for row, e in enumerate(examples) for label in e.labels if label != IGNORE]
    assert not small.model.lm_head._forward_pre_hooks


def test_gradient_equals_that_of_full_logits(fresh):
    batch = collate(encode(fresh, RECORDS[:4]), fresh.pad_id)
    logits, labels, _ = labelled_logits(fresh.model, batch)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    found = {name: p.grad.clone() for name, p in fresh.model.named_parameters()}
    fresh.model.zero_grad()
    fresh.model(**batch).loss.backward()  # transformers' own shifted loss
    for name, parameter in fresh.model.named_parameters():
        assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_architecture_that_caps_its_logits(small):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(small.tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.5,
        initializer_range=0.5,
        pad_token_id=0,
        sliding_window=8,
        attn_implementation="eager",
    )
    model = replace(small, model=Gemma2ForCausalLM(config).eval())
    examples = encode(small, RECORDS)
    for example, values in zip(examples, token_log_likelihoods(model, examples), strict=True):
        assert_close(values, brute_force(model.model, example), atol=2e-5, rtol=0)


def test_the_mode_of_each_module_is_restored(fresh):
    fresh.model.train()
    fresh.model.model.layers[0].eval()
    log_likelihoods(fresh, encode(fresh, RECORDS[:1]))
    assert fresh.model.training and fresh.model.model.layers[1].training and not fresh.model.model.layers[0].training


def questions() -> list[Record]:
    choices = ("yes", "In the town of Veskole", "one two three", "no")
    return [
        Record(id=f"q{i}", prompt=f"{word} or what?", completion=choices[i], choices=choices[: 4 - i % 2], answer=i % 3)
        for i, word in enumerate(WORDS[:3])
    ]


@pytest.mark.parametrize("template", ["auto", "none"])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_choice_by_text_is_the_mean_per_token(small, template, batch_size):
    model = replace(small, chat_template=template)
    found = multiple_choice(model, questions(), by="text", batch_size=batch_size)
    for row, record in enumerate(questions()):
        asked = [Record(id="c", prompt=record.prompt, completion=choice) for choice in record.choices]
        expected = torch.stack([brute_force(model.model, e).mean() for e in encode(model, asked, end=False)])
        assert_close(found.scores[row], expected.double(), atol=1e-5, rtol=0)
        assert found.predicted[row] == expected.argmax()
        assert found.correct[row] == (expected.argmax() == record.answer)
    assert found.accuracy == found.correct.double().mean()


def test_choice_by_letter(small):
    model = replace(small, chat_template="none")
    record = questions()[1]
    text = "no or what?\nA. yes\nB. In the town of Veskole\nC. one two three\nAnswer:"
    ids = model.tokenizer(text).input_ids
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    letters = [model.tokenizer(f" {letter}", add_special_tokens=False).input_ids for letter in "ABC"]
    assert all(len(letter) <= 2 for letter in letters)
    found = multiple_choice(model, [record], by="letter")
    asked = [Record(id="l", prompt=text, completion=letter) for letter in "ABC"]
    expected = torch.stack([brute_force(model.model, e).mean() for e in encode(model, asked, end=False)]).double()
    assert_close(found.scores[0], expected, atol=1e-5, rtol=0)
    if all(len(letter) == 1 for letter in letters):
        assert_close(found.scores[0], logits[[letter[0] for letter in letters]].double(), atol=1e-5, rtol=0)


def test_questions_that_are_none(small):
    good = questions()[0]
    with pytest.raises(BadInput, match="'q0' is no multiple-choice"):
        multiple_choice(small, [replace(good, answer=9)])
    with pytest.raises(BadInput, match="no prompt"):
        multiple_choice(small, [replace(good, prompt="")])
    with pytest.raises(BadInput, match="more than letters"):
        multiple_choice(small, [replace(good, choices=tuple("word" for _ in range(27)))], by="letter")
    with pytest.raises(BadInput, match=r"by is 'letters'. Did you mean 'letter'"):
        multiple_choice(small, [good], by="letters")
    assert math.isnan(multiple_choice(small, []).accuracy)


def test_scores_can_be_constants_of_a_loss(fresh):
    examples = encode(fresh, RECORDS[:2])
    (reference, _) = token_log_likelihoods(fresh, examples)
    logits, labels, rows = labelled_logits(fresh.model, collate(examples, fresh.pad_id))
    values = logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)[rows == 0]
    (values * reference).sum().backward()
    assert fresh.model.lm_head.weight.grad is not None


@pytest.mark.parametrize(("before", "after"), FRAMES)
def test_perplexity_predicts_each_token_once(small, before, after):
    """Token by token: each from what begins every text, and from the tokens of its window before it."""
    model = framed(small, before, after)
    texts = ["Where was Mulum Kunwick born? In the town of Veskole, where the river bends twice.", "one two", "yes", ""]
    total, tokens, count = 0.0, 0, len(before)
    for text in texts:
        ids = model.tokenizer(text).input_ids
        begin, ids = ids[:count], ids[count:] if text else []
        for place in range(0 if begin else 1, len(ids)):
            start = max(place - 1, 0) // (7 - count) * (7 - count)  # windows of 8 tokens, the beginning included
            given = [*begin, *ids[start:place]]
            values = brute_force(model.model, Example((*given, ids[place]), (*[IGNORE] * len(given), ids[place])))
            total, tokens = total + values.item(), tokens + 1
    found = perplexity(model, texts, max_length=8, batch_size=3)
    assert found == pytest.approx(math.exp(-total / tokens), rel=1e-5)
    assert perplexity(model, texts, max_length=8, batch_size=1) == pytest.approx(found, rel=1e-6)
    assert text_loss(model, texts, max_length=8) == pytest.approx(math.log(found), rel=1e-6)
    assert math.isnan(perplexity(model, []))
    with pytest.raises(BadInput, match=f"use at least {count + 2}"):
        perplexity(model, texts, max_length=count + 1)


@pytest.mark.parametrize(("before", "after"), FRAMES)
def test_perplexity_is_that_of_the_encoded_passage(small, before, after):
    model = framed(small, before, after)
    (example,) = encode(model, [Record(id="t", completion="one two three four")])
    sums, counts = log_likelihoods(model, [example])
    assert perplexity(model, ["one two three four"]) == pytest.approx(math.exp(-(sums / counts).item()), rel=1e-6)


def test_a_destroyed_model_is_infinitely_perplexed(fresh):
    with torch.no_grad():
        fresh.model.model.norm.weight.mul_(1e5)
    loss = text_loss(fresh, ["one two three four"])
    assert 709 < loss < math.inf and perplexity(fresh, ["one two three four"]) == math.inf


def test_bad_examples_and_sizes(small):
    with pytest.raises(BadInput, match="has no label"):
        token_log_likelihoods(small, [Example((1, 2), (IGNORE, IGNORE))])
    with pytest.raises(BadInput, match="first token"):
        token_log_likelihoods(small, [Example((1, 2), (1, 2))])
    with pytest.raises(BadInput, match="batch size is 0"):
        token_log_likelihoods(small, [], batch_size=0)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"),
        RuntimeError("MPS backend out of memory"),
    ],
)
def test_out_of_memory_names_the_next_size(small, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(small.model, "forward", fail)
    with pytest.raises(Exception, match="try a batch size of 16"):
        log_likelihoods(small, encode(small, RECORDS), batch_size=32)


def test_rows_of_a_batch():
    """Longest first, so many rows or places at most; examples that read the same count their places once."""
    rows = {(1,): [(0, [0])], (1, 2, 3): [(1, [0, 1]), (2, [1, 2])], (4, 5): [(3, [1])], (6, 7): [(4, [0, 1])]}

    def batches(size, most):
        return list(scoring._batches(rows, size, most))

    assert batches(9, 99) == [[(1, 2, 3), (4, 5), (6, 7), (1,)]]
    assert batches(2, 99) == [[(1, 2, 3), (4, 5)], [(6, 7), (1,)]]
    assert batches(3, 99) == [[(1, 2, 3), (4, 5), (6, 7)], [(1,)]]
    assert batches(9, 4) == [[(1, 2, 3), (4, 5)], [(6, 7), (1,)]]  # 3 + 1 places, then 2 + 1
    assert batches(9, 3) == [[(1, 2, 3)], [(4, 5), (6, 7)], [(1,)]]
    assert batches(9, 0) == [[(1, 2, 3)], [(4, 5)], [(6, 7)], [(1,)]]
    assert list(scoring._batches({}, 9, 9)) == []
    assert scoring._LOGITS_AT_ONCE == 67_108_864


def test_choices_and_their_words():
    record = Record(id="q", prompt=" Which? \n", completion="x", choices=("one", "two", "three"), answer=1)
    assert scoring._by_text(record) == [replace(record, completion=word) for word in ("one", "two", "three")]
    text = "Which?\nA. one\nB. two\nC. three\nAnswer:"
    assert scoring._by_letter(record) == [replace(record, prompt=text, completion=letter) for letter in "ABC"]
    assert len(scoring._by_letter(replace(record, choices=("w",) * 26))) == 26
    messages = (Message("user", "a"),)
    for wrong, sentence in (
        ({"choices": ("w",) * 27}, "Record 'q' has 27 choices, more than letters: use by='text'."),
        (
            {"messages": messages},
            "Record 'q' is a conversation, which has no place for lettered choices: use by='text'.",
        ),
    ):
        with pytest.raises(BadInput) as caught:
            scoring._by_letter(replace(record, **wrong))
        assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("choices", "answer"), [(("a",), 0), ((), None), (("a", "b"), None), (("a", "b"), -1), (("a", "b"), 2)]
)
def test_questions_without_an_answer_among_their_choices(small, choices, answer):
    with pytest.raises(BadInput) as caught:
        multiple_choice(small, [Record(id="q", prompt="p", completion="a", choices=choices, answer=answer)])
    assert str(caught.value) == (
        f"Record 'q' is no multiple-choice question: it has {len(choices)} choices and the answer {answer}; at least "
        "2 and an index into them are needed."
    )


def test_means_per_token_and_none_of_equals(small, monkeypatch):
    """By text unless it is said otherwise, without the end token; scores are sums over counts, apart by question."""
    seen = {}

    def encoded(model, records, *, max_length, end):
        seen.update(asked=[(record.prompt, record.completion) for record in records], max_length=max_length, end=end)
        return records

    def likelihoods(model, examples, *, batch_size):
        seen["batch_size"] = batch_size
        sums = torch.tensor([-6.0, -4.0, -2.0, -3.0, -3.0], dtype=torch.float64)
        return sums, torch.tensor([3, 2, 1, 2, 2])

    monkeypatch.setattr(scoring, "encode", encoded)
    monkeypatch.setattr(scoring, "log_likelihoods", likelihoods)
    records = [
        Record(id="a", prompt="p", completion="x", choices=("1", "2", "3"), answer=0),
        Record(id="b", prompt="q", completion="x", choices=("4", "5"), answer=1),
    ]
    found = multiple_choice(small, records)
    assert seen == {
        "asked": [("p", "1"), ("p", "2"), ("p", "3"), ("q", "4"), ("q", "5")], "max_length": 512, "end": False,
        "batch_size": 32,
    }  # fmt: skip
    assert found.ids == ("a", "b") and [scores.tolist() for scores in found.scores] == [
        [-2.0, -2.0, -2.0],
        [-1.5, -1.5],
    ]
    assert found.predicted.tolist() == [-1, -1] and found.correct.tolist() == [False, False]  # the texts are others
    multiple_choice(small, records, max_length=7, batch_size=3)
    assert (seen["max_length"], seen["batch_size"]) == (7, 3)
    conversation = replace(records[0], prompt="", messages=(Message("user", "a"),))
    assert multiple_choice(small, [conversation, records[1]]).ids == ("a", "b")


def test_examples_that_are_none(small):
    good = Example((1, 2), (IGNORE, 2))
    for bad, problem in (
        (Example((1, 2), (IGNORE, IGNORE)), "has no label"),
        (Example((1, 2), (1, 2)), "labels its first token, which nothing predicts"),
    ):
        with pytest.raises(BadInput) as caught:
            token_log_likelihoods(small, [good, bad])
        assert str(caught.value) == f"Example 1 {problem}: make examples with encode()."
    with pytest.raises(BadInput) as caught:
        token_log_likelihoods(small, [good], batch_size=0)
    assert str(caught.value) == "The batch size is 0: use at least 1."
    assert token_log_likelihoods(small, []) == []
    sums, counts = log_likelihoods(small, [])
    assert (sums.tolist(), sums.dtype, counts.tolist(), counts.dtype) == ([], torch.float64, [], torch.int64)


@pytest.mark.parametrize(
    ("begin", "ids", "expected"),
    [
        ([1], [5, 6, 7], [((1, 5, 6), (IGNORE, 5, 6)), ((1, 6, 7), (IGNORE, IGNORE, 7))]),
        ([1], [5], [((1, 5), (IGNORE, 5))]),
        ([1], [], []),
        ([], [5, 6, 7], [((5, 6, 7), (IGNORE, 6, 7))]),
        ([], [5, 6, 7, 8], [((5, 6, 7), (IGNORE, 6, 7)), ((7, 8), (IGNORE, 8))]),
        ([], [5], []),
    ],
)
def test_windows_of_a_text_by_hand(small, monkeypatch, begin, ids, expected):
    seen = []

    def likelihoods(model, examples, *, batch_size):
        seen.extend((each.input_ids, each.labels) for each in examples)
        return torch.tensor([-2.0] * len(examples)), torch.tensor([4] * len(examples))

    monkeypatch.setattr(scoring, "frame", lambda model: (begin, []))
    monkeypatch.setattr(scoring, "passages", lambda model, texts: [ids])
    monkeypatch.setattr(scoring, "log_likelihoods", likelihoods)
    loss = text_loss(small, ["text"], max_length=3)
    assert seen == expected
    assert loss == 0.5 if expected else math.isnan(loss)
    assert perplexity(small, ["text"], max_length=3) == math.exp(0.5) if expected else True
    with pytest.raises(BadInput) as caught:
        text_loss(small, ["text"], max_length=len(begin) + 1)
    assert str(caught.value) == (
        f"max_length is {len(begin) + 1}, but predicting a token takes one before it, and this tokenizer puts "
        f"{len(begin)} before every text: use at least {len(begin) + 2}."
    )


@pytest.mark.parametrize("damage", [0.0, math.nan])
@pytest.mark.parametrize("by", ["text", "letter"])
def test_a_model_that_was_destroyed_answers_nothing(fresh, damage, by):
    """All tokens alike, or no numbers: also the first choice, where a right answer mostly stands, is no likelier."""
    model = replace(fresh, chat_template="none")
    with torch.no_grad():
        model.model.get_output_embeddings().weight.fill_(damage)
    choices = ("yes", "In the town of Veskole", "one two three", "no")
    asked = [Record(id=f"{i}", prompt="where?", completion=choices[i], choices=choices, answer=i) for i in range(4)]
    found = multiple_choice(model, asked, by=by)
    assert found.predicted.tolist() == [-1] * 4 and not found.correct.any() and found.accuracy == 0


@pytest.mark.parametrize("by", ["text", "letter"])
@pytest.mark.parametrize(
    ("likelihoods", "right"), [((-2.0, -1.0, -3.0), True), ((-1.0, -1.0, -3.0), True), ((-2, -2, -1), False)]
)
def test_a_text_that_stands_twice_is_one_answer(small, monkeypatch, by, likelihoods, right):
    given = torch.tensor(likelihoods, dtype=torch.float64), torch.ones(3)
    monkeypatch.setattr(scoring, "log_likelihoods", lambda *_, **__: given)
    record = Record(id="q", prompt="Which?", completion="yes", choices=("yes", "yes", "no"), answer=0)
    found = multiple_choice(replace(small, chat_template="none"), [record], by=by)
    assert found.predicted.tolist() == [likelihoods.index(max(likelihoods))] and found.correct.tolist() == [right]


@pytest.mark.parametrize("count", [1, 3, 7, 49, 500])
def test_means_of_equal_numbers_are_equal(count):
    value = torch.tensor(-5.6629605, dtype=torch.float32).double()
    mean = (
        torch.full((count,), value.item(), dtype=torch.float64).cumsum(0)[-1] / count
    )  # may differ in the last places
    assert not scoring.likelier(mean, value[None]) and not scoring.likelier(value, mean[None])
    assert scoring.likelier(value + 5e-7, mean[None])  # the next number of float32


def test_which_choice_is_likeliest():
    inf, nan = math.inf, math.nan
    for scores, said, place in (
        ([-3.0, -1.0, -2.0], "abc", 1),
        ([-1.0, -1.0, -2.0], "abc", -1),
        ([-2.0, -1.0, -1.0], "abb", 1),  # the same text twice is one answer
        ([-1.0, -1.0, -1.0], "aba", -1),
        ([-1.0, nan, -2.0], "abc", -1),
        ([-1.0, -inf, -2.0], "abc", 0),
        ([-inf, -inf, -inf], "abc", -1),
        ([-1.0, -1.0], "aa", 0),
    ):
        assert scoring._likeliest(torch.tensor(scores, dtype=torch.float64), said) == place, (scores, said)


def test_the_right_text_twice_is_right_wherever_it_stands(small, monkeypatch):
    monkeypatch.setattr(scoring, "encode", lambda model, records, **how: records)
    monkeypatch.setattr(
        scoring,
        "log_likelihoods",
        lambda *_, **how: (torch.tensor([-2.0, -1.0, -1.0], dtype=torch.float64), torch.ones(3)),
    )
    record = Record(id="a", prompt="p", completion="y", choices=("x", "y", "y"), answer=2)
    assert multiple_choice(small, [record]).correct.tolist() == [True]
    assert multiple_choice(small, [record], by="letter").correct.tolist() == [True]


def test_nothing_is_kept_of_what_was_read(small):
    """Keys and values are for writing on; a reading that keeps them takes twice the memory."""
    given, examples = [], encode(small, RECORDS[:2])
    hook = small.model.register_forward_pre_hook(lambda _, args, named: given.append(named), with_kwargs=True)
    try:
        log_likelihoods(small, examples)
        labelled_logits(small.model, collate(examples, small.pad_id))
    finally:
        hook.remove()
    assert [each["use_cache"] for each in given] == [False, False]
