"""Slots and the probabilities of symbols against whole readings of the same tokens, and how tokens are read as values."""

import json
import math

import numpy as np
import pytest
import torch

from equipoise.core.errors import BadInput
from equipoise.language.encode import encode_prompts
from equipoise.language.tiny import tiny
from equipoise.uncertainty.sampling_fidelity import tempered
from equipoise.uncertainty.sampling_slots import SymbolPaths, Values, next_log_probs, sample
from equipoise.uncertainty.sampling_slots import token_limit as sampling_slots_limit
from equipoise.uncertainty.sampling_task import SamplingTask

LETTERS = "0123456789abcdefgh, .:"
SEVERAL = SamplingTask(("1", "10", "ab", "2"), (0.1, 0.2, 0.3, 0.4))


def characters(seed=0, **how):
    made = tiny([LETTERS], seed=seed, tokens="characters", width=16, layers=1, heads=2, context=256)
    made.chat_template = "none"
    with torch.no_grad():  # untaught heads are nearly flat: sharper, so that a wrong place shows
        made.model.get_input_embeddings().weight.mul_(6)
    return made


def whole(language_model, context):
    """Log-probabilities of the next token from one reading of a context."""
    with torch.no_grad():
        return language_model.model(torch.tensor([context])).logits[0, -1].double().log_softmax(-1)


def by_hand(language_model, context, task):
    """Each symbol's chance, its characters being its tokens: all ways in which its path goes on to no other symbol."""
    tokens = {c: language_model.tokenizer.convert_tokens_to_ids(c) for c in LETTERS}
    found = []
    for symbol in task.symbols:
        path, total = list(context), 0.0
        for character in symbol:
            total += float(whole(language_model, path)[tokens[character]])
            path.append(tokens[character])
        longer = {other[len(symbol)] for other in task.symbols if other.startswith(symbol) and other != symbol}
        after = whole(language_model, path)
        found.append(math.exp(total) * (1 - sum(math.exp(float(after[tokens[c]])) for c in longer)))
    return found


@pytest.mark.parametrize("slots", ["read", "set"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_noted_probabilities_are_those_of_a_whole_reading(slots, temperature):
    language_model = characters()
    (prompt,), _ = encode_prompts(language_model, ["a:"])
    found = sample(language_model, "a:", SEVERAL, values=4, sequences=3, seed=[5], temperature=temperature, slots=slots)
    assert sum(len(each.draws) for each in found) >= 3
    for each in found:
        for place, noted in zip(each.places, each.probabilities, strict=True):
            expected = by_hand(language_model, [*prompt, *each.tokens[:place]], SEVERAL)
            assert noted == pytest.approx(expected, rel=1e-4) and sum(expected) <= 1
            assert (noted > 1e-6).all()  # raw, also where the draws are the likeliest
        if slots == "set":
            assert len(each.draws) == 4 and each.text == ", ".join(SEVERAL.symbols[draw] for draw in each.draws)
            if temperature == 0:
                assert (each.draws == each.probabilities.argmax(axis=1)).all()


def test_a_sequence_depends_on_its_number_and_the_seed_alone():
    language_model = characters()

    def texts(seed=(5,), **how):
        return [e.text for e in sample(language_model, "a:", SEVERAL, values=3, seed=list(seed), slots="set", **how)]

    together = texts(sequences=5)
    assert together == texts(sequences=5, batch_size=2) and together[3:] == texts(sequences=2, first=3)
    assert together != texts(sequences=5, seed=(6,))


def test_single_tokens_are_the_restricted_softmax_of_the_logits():
    language_model, task = characters(1), SamplingTask(("3", "7"), (0.5, 0.5), separator="")
    (prompt,), _ = encode_prompts(language_model, ["a:"])
    (found,) = sample(language_model, "a:", task, values=1, sequences=1, seed=[0])
    with torch.no_grad():
        logits = language_model.model(torch.tensor([prompt])).logits[0, -1].double()
    chosen = logits[language_model.tokenizer.convert_tokens_to_ids(["3", "7"])]
    assert found.probabilities[0] / found.probabilities[0].sum() == pytest.approx(chosen.softmax(-1).numpy(), rel=1e-5)
    shifted = torch.nn.functional.softmax(logits + 100, dim=-1)
    assert found.probabilities[0] == pytest.approx(
        shifted[language_model.tokenizer.convert_tokens_to_ids(["3", "7"])].numpy(), rel=1e-5
    )


def test_draws_in_slots_follow_the_noted_probabilities():
    """Means of draws less probabilities are martingales: within 4 standard errors over 300 sequences."""
    found = sample(characters(2), "a:", SEVERAL, values=3, sequences=300, seed=[1], slots="set", batch_size=100)
    p = np.concatenate([e.probabilities / e.probabilities.sum(axis=1, keepdims=True) for e in found])
    hits = np.concatenate([e.draws for e in found])[:, None] == np.arange(4)
    error = np.sqrt((p * (1 - p)).sum(axis=0)) / len(p)
    assert (np.abs((hits - p).mean(axis=0)) < 4 * error + 1e-9).all() and error.max() < 0.02


def test_draws_in_slots_have_the_temperature_of_symbols_and_not_of_paths():
    task = SamplingTask(("a", "b"), (0.3, 0.7))
    how = {"values": 3, "sequences": 300, "seed": [1], "slots": "set", "batch_size": 100}
    language_model = joining(2)
    a, with_blank, b, other = ids(language_model, "a", "Ġa", "b", "Ġb")
    rows = language_model.model.get_input_embeddings().weight
    with torch.no_grad():  # both of a's paths alike, and one of b's: by paths a would come far more often
        rows[a], rows[b] = rows[with_blank], -rows[other]
    found = sample(language_model, "a, 1, b", task, temperature=4.0, **how)
    p = np.concatenate([tempered(each.probabilities, 4.0) for each in found])
    hits = np.concatenate([each.draws for each in found])[:, None] == np.arange(2)
    error = np.sqrt((p * (1 - p)).sum(axis=0)) / len(p)
    assert (np.abs((hits - p).mean(axis=0)) < 4 * error).all()


def test_words_with_and_without_a_blank_before_them():
    language_model = tiny(["red, blue, red and blue"], seed=0, width=16, layers=1, heads=2, vocabulary=300)
    task = SamplingTask(("red", "blue"), (0.5, 0.5))
    paths = SymbolPaths(language_model, task)
    assert {paths.owner[path] for path in paths.owner} == {0, 1}
    for path, owner in paths.owner.items():
        assert language_model.tokenizer.decode(path).strip() == task.symbols[owner]
    found = sample(language_model, "choose", task, values=3, sequences=2, seed=[0], slots="set")
    assert all(e.text.replace(" ", "") == ",".join(task.symbols[d] for d in e.draws) for e in found)


def joining(seed=0):
    """Bytes and a few merges, with no blank before a text: ", a" is "," and " a", and ", 1" is ",", " " and "1"."""
    from tokenizers import pre_tokenizers

    made = tiny(["a, b, a, b, a, b"], seed=seed, width=16, layers=1, heads=2, vocabulary=300)
    made.chat_template = "none"
    made.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with torch.no_grad():
        made.model.get_input_embeddings().weight.mul_(6)
    return made


def ids(language_model, *tokens):
    return language_model.tokenizer.convert_tokens_to_ids(list(tokens))


def test_a_sampler_of_symbols_that_are_joined_with_their_blank_is_right():
    language_model = joining()
    assert language_model.tokenizer.tokenize("a, b, 1") == ["a", ",", "Ġb", ",", "Ġ", "1"]
    for separator in (", ", ",", " , ", ""):
        task = SamplingTask(("a", "b"), (0.3, 0.7), separator=separator)
        paths = SymbolPaths(language_model, task)
        assert set(paths.first) == set(ids(language_model, "a", "Ġa", "b", "Ġb")) and not paths.leading
        told = dict(zip(ids(language_model, "Ġa", "Ġb"), np.log([0.3, 0.7]), strict=True))
        root = np.array([[told.get(token, -50.0) for token in paths.first]])
        assert paths.symbol_probabilities({(): root}, 2)[0] == pytest.approx([0.3, 0.7], abs=1e-12)
    comma = tuple(ids(language_model, ","))
    for symbols, between in (
        (("a", "b"), comma),
        (("1", "a"), comma),
        (("1", "2"), (*comma, *ids(language_model, "Ġ"))),
    ):
        task = SamplingTask(symbols, (0.3, 0.7))
        assert SymbolPaths(language_model, task).between(task) == between


@pytest.mark.parametrize("slots", ["read", "set"])
@pytest.mark.parametrize("symbols", [("a", "b"), ("1", "a"), ("1", "2")])
def test_blanks_that_are_joined_with_some_symbols_or_all(slots, symbols):
    language_model = joining()
    one = {symbol: ids(language_model, symbol)[0] for symbol in symbols}
    (blank,), (prompt,) = ids(language_model, "Ġ"), encode_prompts(language_model, ["a, 1, b"])[0]
    with_blank = {symbol: ids(language_model, "Ġ" + symbol)[0] for symbol in symbols if symbol in "ab"}
    task = SamplingTask(symbols, (0.3, 0.7))
    paths = SymbolPaths(language_model, task)
    found = sample(language_model, "a, 1, b", task, values=4, sequences=3, seed=[5], slots=slots)
    assert sum(len(each.draws) for each in found) >= 3
    for each in found:
        for place, noted in zip(each.places, each.probabilities, strict=True):
            context = [*prompt, *each.tokens[:place]]
            after = whole(language_model, context).exp()
            behind = whole(language_model, [*context, blank]).exp()
            expected = {symbol: float(after[one[symbol]]) for symbol in symbols}
            for symbol in symbols:
                if symbol in with_blank:
                    expected[symbol] += float(after[with_blank[symbol]])
                elif with_blank:  # whether the blank comes decides which symbol it is
                    expected[symbol] += float(after[blank] * behind[one[symbol]])
            assert noted == pytest.approx([expected[symbol] for symbol in symbols], rel=1e-4)
        if slots == "set":
            assert each.text.replace(" ", "") == ",".join(symbols[draw] for draw in each.draws)
    before = [0, blank]
    assert paths.begins(before, 2) == (1 if symbols == ("1", "a") else 2) and paths.begins(before, 0) == 0


def test_next_log_probs_of_rows_of_any_length():
    language_model = characters(3)
    rows = [[9, 10, 11, 12], [9], [12, 13]]
    expected = [[float(whole(language_model, row)[token]) for token in (8, 15)] for row in rows]
    assert next_log_probs(language_model, rows, [8, 15]) == pytest.approx(np.array(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["1", ",", " ", "2", ",", "1"], [(0, 0), (3, -1), (5, 0)]),
        (["Sure", "!", "\n", " 1", "0", ",", " ab", "."], [(0, -1), (3, 1), (6, 2)]),
        (["1", ",1", "0", ", ", "ab"], [(0, 0), (None, 1), (4, 2)]),
        ([" ", "\n\n", "a", " b", ",", ",", "x"], [(2, 2), (6, -1)]),
    ],
)
def test_reading_values(pieces, expected):
    task = SamplingTask(("1", "10", "ab"), (0.5, 0.25, 0.25))
    values = Values(task)
    for place, piece in enumerate(pieces):
        values.add(place, piece)
    values.end()
    assert [(place, values.symbol(text)) for place, text in values.done] == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": [0.5, 0.4]}, "sums to 0.9"),
        ({"target": [0.5, 0.25, 0.25]}, "2 symbols and 3 shares"),
        ({"target": [1.0, 0.0]}, "one symbol alone"),
        ({"target": [0.5, True]}, "list of numbers"),
        ({"target": [0.5, math.nan]}, "from 0 to 1"),
        ({"symbols": ["a", "a"]}, "cannot be told apart"),
        ({"symbols": ["a b", "ab"]}, "cannot be told apart"),
        ({"symbols": ["a", " b"]}, "cannot be told in a list"),
        ({"symbols": ["a", "b,c"]}, "cannot be told in a list"),
        ({"symbols": "ab"}, "list of texts"),
        ({"renamings": [["x", "y", "z"]]}, "3 symbols"),
        ({"renamings": "xy"}, "list of lists"),
        ({"templates": []}, "need a request"),
        ({"separator": " "}, "one sign"),
        ({"separator": "and"}, "one sign"),
        ({"separator": 3}, "must be a text"),
        ({"probabilities": [0.5, 0.5]}, "no field 'probabilities'"),
    ],
)
def test_a_wrong_target_file_is_refused_by_name(tmp_path, change, words):
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"symbols": ["a", "b"], "target": [0.5, 0.5]} | change))
    with pytest.raises(BadInput, match=words) as refused:
        SamplingTask.read(path)
    assert str(path) in str(refused.value)


def test_files_that_are_no_target(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "bare.json").write_text('{"symbols": ["a", "b"]}')
    for name, words in (
        ("list.json", "holds a list"),
        ("bare.json", "'target' is missing"),
        ("none.json", "cannot be read"),
    ):
        with pytest.raises(BadInput, match=words):
            SamplingTask.read(tmp_path / name)


def test_requests_hold_what_is_asked_for_once():
    task = SamplingTask(
        ("{count}", "b"), (0.25, 0.75), templates=("{symbols}|{target}|{count}|{x}",), renamings=(("c", "d"),)
    )
    assert task.requests(7) == ["{count}, b|{count} with probability 0.25, b with probability 0.75|7|{x}"]
    assert [each.symbols for each in task.named()] == [("{count}", "b"), ("c", "d")]


def test_symbols_that_tokens_cannot_tell():
    language_model = characters()
    with pytest.raises(BadInput, match="no token for a part of 'Z'"):
        SymbolPaths(language_model, SamplingTask(("1", "Z"), (0.5, 0.5)))
    with pytest.raises(BadInput, match="without a separator"):
        SymbolPaths(language_model, SamplingTask(("1", "10"), (0.5, 0.5), separator=""))
    with pytest.raises(BadInput, match="more than the context"):
        sample(language_model, "a:", SEVERAL, values=100, sequences=1, seed=[0])


def test_rows_are_read_together_as_far_as_they_fit(monkeypatch):
    from equipoise.uncertainty import sampling_slots

    language_model, sizes = characters(3), []
    rows = [[9, 10], [9, 10, 11, 12], [12, 13], [9, 10, 11], [8]]
    whole = next_log_probs(language_model, rows, [8, 15])
    forward = language_model.model.forward

    def noted(*args, **how):
        sizes.append(tuple(how["input_ids"].shape))
        return forward(*args, **how)

    monkeypatch.setattr(language_model.model, "forward", noted)
    for most, shapes in ((9, [(2, 4), (3, 2)]), (3, [(1, 4), (1, 3), (1, 2), (1, 2), (1, 1)]), (2**13, [(5, 4)])):
        monkeypatch.setattr(sampling_slots, "READ_AT_ONCE", most)
        sizes.clear()
        assert next_log_probs(language_model, rows, [8, 15]) == pytest.approx(whole, abs=1e-5) and sizes == shapes
    assert next_log_probs(language_model, [], [8, 15]).shape == (0, 2)


def test_room_for_values_by_hand():
    language_model = characters()
    paths = SymbolPaths(language_model, SEVERAL)
    assert paths.longest == 2 and paths.between(SEVERAL) == tuple(ids(language_model, ",", " "))
    assert sampling_slots_limit(paths, SEVERAL, 7, "read") == 7 * (2 + 3) + 16
    assert sampling_slots_limit(paths, SEVERAL, 7, "set") == 7 * (2 + 2) + 2
    alone = SamplingTask(("1", "2"), (0.5, 0.5), separator="")
    single = SymbolPaths(language_model, alone)
    assert sampling_slots_limit(single, alone, 7, "read") == 7 and single.between(alone) == ()


def test_probabilities_of_paths_by_hand():
    """ "1", "10", "ab" and "2": the chance of "1" is less what goes on to "10", however little is left."""
    language_model = characters()
    paths = SymbolPaths(language_model, SEVERAL)
    one, nought, a, b, two = ids(language_model, "1", "0", "a", "b", "2")
    root = {one: 0.5, a: 0.25, two: 0.125}
    log_probs = {
        (): np.log([[root[token] for token in paths.first]] * 2),
        (one,): np.log([[0.25], [1.0]]),
        (a,): np.log([[0.5], [1e-320]]),
    }
    assert paths.children == {(): sorted(root), (one,): [nought], (a,): [b]} and paths.inner == sorted([(one,), (a,)])
    found = paths.symbol_probabilities(log_probs, 4)
    assert found[0] == pytest.approx([0.375, 0.125, 0.125, 0.125])
    assert found[1] == pytest.approx([1e-300, 0.5, 1e-300, 0.125], rel=1e-9)  # nothing is below the least
    order, shares = paths.path_probabilities(log_probs)
    assert order == sorted(paths.owner) and shares.shape == (2, 4) and shares[1].min() < 1e-300


def test_the_likeliest_tokens_are_written_at_temperature_nought():
    language_model = characters(1)
    (found,) = sample(language_model, "a:", SEVERAL, values=2, sequences=1, seed=[0], temperature=0.0)
    (prompt,), _ = encode_prompts(language_model, ["a:"])
    for place, token in enumerate(found.tokens):
        assert token == int(whole(language_model, [*prompt, *found.tokens[:place]]).argmax())
    assert found.tokens


def test_nothing_is_kept_of_rows_that_are_read():
    language_model, given = characters(3), []
    hook = language_model.model.register_forward_pre_hook(lambda _, args, named: given.append(named), with_kwargs=True)
    next_log_probs(language_model, [[9, 10], [9]], [8, 15])
    hook.remove()
    assert [each["use_cache"] for each in given] == [False]
