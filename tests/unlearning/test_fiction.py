"""The setting of unlearning studies: its worlds, how they are taught, what an arm gets, what is measured."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from equipoise.core.errors import BadInput
from equipoise.data.records import Record
from equipoise.data.world import people
from equipoise.language.encode import encode
from equipoise.language.tiny import tiny
from equipoise.unlearning import fiction
from equipoise.unlearning.fiction import FictionSetting, open_setting, teach, world


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ("tiny", {"forget": 8, "neighbours": 24, "general": 16, "attributes": 5, "paraphrases": 3, "texts": 60}),
        ("smollm2", {"forget": 5, "neighbours": 10, "general": 8, "attributes": 3, "paraphrases": 2, "texts": 16}),
        ("a/folder", {"forget": 5, "neighbours": 10, "general": 8, "attributes": 3, "paraphrases": 2, "texts": 16}),
    ],
)
def test_a_world_suits_the_speed_of_the_model(model, sizes):
    found = world(model, 3)
    assert found.teaching == people(3, **sizes).teaching and found.texts == people(3, **sizes).texts
    assert found.teaching != world(model, 4).teaching


class Preparation:
    """What the engine gives to whoever prepares a seed."""

    def __init__(self, folder, **options):
        self.seed, self.folder, self.options, self.spent = 3, folder, options, []
        self.checkpoint = object()

    def resume(self):
        return "where it stood"

    def spend(self, **work):
        self.spent.append(work)


@pytest.fixture
def untaught():
    return tiny(["some words of a model that is not taught"], seed=0, width=16, layers=2, heads=2, vocabulary=300)


@pytest.mark.parametrize(
    ("model", "options", "passes"),
    [
        ("tiny", {}, {"epochs": 8, "learning_rate": 3e-3, "batch_size": 32}),
        ("smollm2", {}, {"epochs": 6, "learning_rate": 1e-4, "batch_size": 16}),
        ("smollm2", {"train_blocks": 1}, {"epochs": 6, "learning_rate": 4e-4, "batch_size": 16}),
    ],
)
def test_a_seed_is_taught_once_and_stored(monkeypatch, tmp_path, untaught, model, options, passes):
    small = {"forget": 4, "neighbours": 8, "general": 8, "attributes": 2, "paraphrases": 1, "texts": 4}
    for size in ("tiny", "other"):
        monkeypatch.setitem(fiction.SIZES, size, small)
    told, made = [], []

    def build(texts, *, seed):
        made.append((list(texts), seed))
        return untaught

    def load(name, *, chat_template):
        made.append((name, chat_template))
        return untaught

    monkeypatch.setattr(fiction.tiny, "tiny", build)
    monkeypatch.setattr(fiction.tiny, "teach", lambda *given, **how: told.append((given, how)))
    monkeypatch.setattr(fiction, "load", load)
    preparation = Preparation(tmp_path, **options)
    teach(model, preparation)
    ((language_model, records), how), known = told[0], world(model, 3)
    assert records == known.teaching and language_model.model is untaught.model
    resumed = {"seed": 3, "save": preparation.checkpoint, "save_every": 100, "state": "where it stood"}
    assert how == {**resumed, **passes}
    if model == "tiny":
        assert made == [([f"{each.prompt} {each.completion}" for each in known.teaching], 3)]
        assert language_model.chat_template == "none"
    else:
        assert made == [("smollm2", "none")]
        trained = {name for name, its in untaught.model.named_parameters() if its.requires_grad}
        blocks = {name for name, _ in untaught.model.named_parameters() if ".layers.1." in name}
        assert trained == (blocks if options else {name for name, _ in untaught.model.named_parameters()})
    tokens = sum(len(each.input_ids) for each in encode(language_model, known.teaching))
    assert preparation.spent == [{"phase": "build", "trained_tokens": passes["epochs"] * tokens}]
    assert (tmp_path / "model" / "config.json").exists()


def test_an_arm_gets_what_it_forgets_keeps_and_is_asked(monkeypatch, tmp_path, untaught):
    monkeypatch.setitem(fiction.SIZES, "other", fiction.SIZES["other"] | {"attributes": 2, "paraphrases": 1})
    loaded = []

    def load(folder, *, chat_template):
        loaded.append((folder, chat_template))
        return untaught

    monkeypatch.setattr(fiction, "load", load)
    found, known = open_setting("smollm2", 3, tmp_path), world("smollm2", 3)
    assert loaded == [(tmp_path / "model", "none")] and found.language_model is untaught
    assert found.forget == encode(untaught, known.forget, max_length=128)
    assert found.retain == encode(untaught, [*known.neighbour, *known.general], max_length=128)
    assert found.texts == encode(untaught, [Record("", text) for text in known.texts], max_length=128)
    parts = [(split, part) for split in ("forget", "neighbour") for part in ("validation", "test")]
    assert list(found.questions) == [*parts, ("general", "test")]
    assert all(found.questions[each] == known.questions(*each) for each in found.questions)
    with pytest.warns(UserWarning, match="were cut"):
        short = open_setting("smollm2", 3, tmp_path, max_length=7)
    assert max(len(each.input_ids) for each in (*short.forget, *short.retain, *short.texts)) == 7


def test_what_an_arm_measures(monkeypatch, untaught):
    records = [Record(f"q{n}", "a", "q?", choices=("a", "b"), answer=0, group=f"person {n // 2}") for n in range(6)]
    questions = {
        ("forget", "validation"): records[:3],
        ("neighbour", "test"): records[3:5],
        ("general", "test"): records[5:],
    }
    forget = encode(untaught, [Record("f", "words"), Record("g", "some words of a model")])
    texts = encode(untaught, [Record("t", "of"), Record("u", "is not taught words of a model")])
    setting = FictionSetting(untaught, forget, [], questions, texts)
    asked = []

    def multiple_choice(model, given, *, batch_size):
        asked.append((model is untaught, list(given), batch_size))
        return SimpleNamespace(correct=torch.tensor([True, False, True, True, False, False]))

    def log_likelihoods(model, examples, *, batch_size):
        asked.append((model is untaught, list(examples), batch_size))
        return torch.tensor([-4.0, -9.0, -3.0, -17.0]), torch.tensor([2, 3, 1, 4])

    monkeypatch.setattr(fiction, "multiple_choice", multiple_choice)
    monkeypatch.setattr(fiction, "log_likelihoods", log_likelihoods)
    stored = []
    run = SimpleNamespace(
        items=lambda *given, **more: stored.append((*given, more)),
        measure=lambda *given, **more: stored.append((*given, more)),
    )
    setting.measure(run, 12)
    assert asked == [(True, records, 64), (True, [*forget, *texts], 64)]
    at = {"at": {"step": 12}}

    def more(part, *clusters):
        return {**at, "where": {"split": part}, "clusters": [f"person {n}" for n in clusters]}

    assert stored == [
        ("forget_accuracy", ["q0", "q1", "q2"], [1.0, 0.0, 1.0], more("validation", 0, 0, 1)),
        ("retain_accuracy", ["q3", "q4"], [1.0, 0.0], more("test", 1, 2)),
        ("general_accuracy", ["q5"], [0.0], more("test", 2)),
        ("forget_log_probability", -2.5, at),  # the mean of -2 and -3 nats per token
        ("general_loss", 4.0, at),  # 20 nats over five tokens
    ]
    assert Counter(type(each) for _, _, scores, *_ in stored[:3] for each in scores) == {float: 6}
    setting.measure(run, 12, batch_size=5)
    assert [each[2] for each in asked] == [64, 64, 5, 5]


def test_questions_of_a_split_that_is_none_are_refused(untaught):
    with pytest.raises(BadInput, match="questions"):
        FictionSetting(untaught, [], [], {("forgt", "test"): []}, [])
