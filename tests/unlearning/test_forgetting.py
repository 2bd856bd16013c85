"""The request and its measures, piece by piece: what is refused, asked, sampled, shown and said."""

import datetime
import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch

from equipoise.core.errors import BadInput
from equipoise.data.records import Message, Record
from equipoise.language import taught
from equipoise.language.encode import IGNORE, Example
from equipoise.training.team import Team
from equipoise.unlearning import forgetting, sides
from equipoise.unlearning.forgetting import Forgetting, _Scales, _shown, _target
from equipoise.unlearning.measures import rouge_l_recall
from equipoise.unlearning.recipe import Recipe
from equipoise.unlearning.result import AnswerPair, Measure


def record(number, side="f", **others):
    words = {"completion": f"answer {side}{number}", "prompt": f"question {side} {number}?"}
    return Record(id=f"{side}{number}", **(words | others))


FORGET, RETAIN = [record(n) for n in range(5)], [record(n, "r") for n in range(3)]
SIDES = sides.read_sides({"forget": FORGET, "retain": RETAIN}, None)
PLAIN = sides.read_sides({"forget": [Record("t", "some text")], "retain": [Record("u", "other text")]}, None)
LOADING = {"device": "cpu", "dtype": "auto", "chat_template": "auto", "date": None, "trust_remote_code": False}


def request(model="folder/of/a/model", stop_at=None, records=None, **settings):
    return Forgetting.read(
        model,
        None,
        records or {"forget": FORGET, "retain": RETAIN},
        fields=None,
        method=None,
        settings=settings,
        stop_at=stop_at,
        every=10,
        loading=dict(LOADING),
        attention=None,
        shard=False,
    )


# --- the request ----------------------------------------------------------------------------------------------------


def test_what_is_stored_of_a_request():
    """What was given and what follows from defaults that may change; no setting that nobody chose."""
    read = request(steps=5, combine="sum", stop_at=" forget_log_probability = -2.5")
    day = datetime.date(2024, 7, 26)
    assert read.resolved == {"combine": "sum", "date": day, "seed": 0, "steps": 5}
    assert read.loading["date"] == day and read.loading["device"] == "cpu"
    assert read.target == ("forget_log_probability", -2.5)
    assert (
        set(read.inputs) == {"forget", "retain"}
        and read.inputs != request(records={"forget": FORGET[:1], "retain": RETAIN}).inputs
        and read.processes.main is True
        and read.scratch() == ("state.safetensors", "begun.safetensors")
    )
    assert (read._name(), read._writes()) == ("folder/of/a/model", "model")
    assert request(parameters="lora")._writes() == "adapter" and request(parameters="mlp")._writes() == "model"
    assert request(seed=3).resolved["seed"] == 3


def test_an_adapter_of_a_model_that_nobody_has_is_refused():
    with pytest.raises(BadInput) as error:
        request("tiny", parameters="lora")
    assert str(error.value) == (
        "An adapter of 'tiny' would name no base model, since it is taught on the spot: use parameters full, or another "
        "model."
    )
    assert request("tiny").model == "tiny" and request("tiny", parameters="mlp").model == "tiny"
    with pytest.raises(BadInput, match="since it is taught on the spot: use another model"):
        request("tiny", parameters="lora", objective="ihl", combine="sum", start="reglu")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, None),
        ("forget_accuracy=0.3", ("forget_accuracy", 0.3)),
        (" forget_accuracy = 1e-1 ", ("forget_accuracy", 0.1)),
        ("forget_log_probability=-3", ("forget_log_probability", -3.0)),
    ],
)
def test_levels_to_stop_at(text, found):
    assert _target(text, SIDES) == found


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("retain_accuracy=0.3", SIDES, "cannot stop at 'retain_accuracy'. Did you mean 'forget_accuracy'?"),
        (
            "forget_accuracy=0.3",
            PLAIN,
            "cannot stop at 'forget_accuracy' (forget_accuracy needs choices, or four different answers to prompts). Did "
            "you mean 'forget_log_probability'?",
        ),
        ("forget_accuracy", SIDES, "stop_at is 'forget_accuracy', expected NAME=LEVEL such as forget_accuracy=0.3."),
        ("forget_accuracy=nan", SIDES, "stop_at is 'forget_accuracy=nan', expected a finite level."),
        ("forget_accuracy=-inf", SIDES, "stop_at is 'forget_accuracy=-inf', expected a finite level."),
    ],
)
def test_levels_that_cannot_be_meant(text, where, said):
    with pytest.raises(BadInput) as error:
        _target(text, where)
    assert str(error.value) == said


def test_why_it_stopped():
    path = [
        {"step": 0, "forget_accuracy": 0.1},
        {"step": 4, "forget_accuracy": 0.3},
        {"step": 9, "forget_accuracy": 0.25},
    ]
    assert request(steps=9)._stopped(path) == "all 9 steps were made"
    aimed = request(steps=9, stop_at="forget_accuracy=0.25")
    assert aimed._stopped(path) == "forget_accuracy was down to 0.250 at step 9"
    assert aimed._stopped(path[:2]) == "all 9 steps were made; forget_accuracy never came down to 0.25"


@pytest.mark.parametrize(
    ("last", "ends"),
    [
        (-1.04, None),
        (-1.125, None),  # spent to the last
        (-1.25, "general text had lost 0.250 nats per token at step 9, more than the budget of 0.125"),
        (-1.2, "general text had lost 0.200 nats per token at step 9, more than the budget of 0.125"),
        (math.nan, "lost nan"),
    ],
)
def test_a_budget_of_general_text_ends_a_run(last, ends):
    spent = [{"step": 0, "general_log_probability": -1.0}, {"step": 9, "general_log_probability": last}]
    reason = request(steps=9, loss_budget=0.125)._ended(spent)
    assert reason is None if ends is None else ends in reason
    assert request(steps=9)._ended(spent) is None


def test_the_model_is_measured_every_so_often_and_at_the_end():
    asked = request(steps=1003)
    assert [step for step in range(1, 1004) if asked._measured(step)] == [*range(10, 1001, 10), 1003]


def test_general_text_is_held_out_of_the_retain_side_where_none_was_given():
    records = [Record(str(n), f"answer {n}", f"question {n}?") for n in range(30)]
    both = sides.Sides({"forget": records[:5], "retain": records[5:]}, {"forget": "f", "retain": "r"}, {})
    split = sides.with_general(both)
    assert [record.id for record in split.records["general"]] == ["5", "29"] and split.held_out == 2
    assert split.records["retain"] == records[6:29] and split.records["forget"] == records[:5]
    assert any(note.startswith("general: 2 records held out of retain") for note in split.notes())
    assert sides.with_general(split) is split
    with pytest.raises(BadInput, match="give --general"):
        sides.with_general(replace(both, records={"forget": records, "retain": records[:1]}))


# --- the records ----------------------------------------------------------------------------------------------------


def test_a_sample_is_spread_evenly_from_the_first_to_the_last():
    assert sides.subsample("abc", 3) == sides.subsample("abc", 4) == ["a", "b", "c"]
    assert sides.subsample(range(9), 3) == [0, 4, 8] and sides.subsample(range(10), 4) == [0, 3, 6, 9]
    assert sides.subsample(range(401), 5) == [0, 100, 200, 300, 400] and sides.subsample([], 2) == []


def test_records_in_memory_and_their_names(tmp_path):
    found = sides.read_sides({"forget": [{"question": "q?", "answer": "a"}, FORGET[0]], "retain": RETAIN}, None)
    assert found.records["forget"] == [Record("forget-0", "a", "q?"), FORGET[0]]
    assert found.names == {"forget": "2 records", "retain": "3 records"}
    assert (
        found.digests["forget"]
        == sides.read_sides({"forget": found.records["forget"], "retain": RETAIN}, None).digests["forget"]
    )
    assert found.digests["forget"] != sides.read_sides({"forget": FORGET, "retain": RETAIN}, None).digests["forget"]
    assert found.texts() == ["q? a", "question f 0? answer f0", *(f"question r {n}? answer r{n}" for n in range(3))]
    file = tmp_path / "general.jsonl"
    file.write_text('{"text": "some words"}\n')
    found = sides.read_sides({"forget": FORGET, "retain": RETAIN, "general": str(file)}, None)
    assert found.names["general"] == str(file) and list(found.digests) == ["forget", "retain", "general"]
    assert [each.completion for each in found.records["general"]] == ["some words"]
    with pytest.raises(BadInput, match=r"^retain holds no records: at least one is needed\.$"):
        sides.read_sides({"forget": FORGET, "retain": []}, None)
    with pytest.raises(BadInput, match=r"^retain\[1\]: "):
        sides.read_sides({"forget": FORGET, "retain": [{"text": "a"}, {"txt": "b"}]}, None)
    found = sides.read_sides(
        {"forget": [{"ask": "q?", "reply": "a"}], "retain": RETAIN}, {"question": "ask", "answer": "reply"}
    )
    assert found.records["forget"] == [Record("forget-0", "a", "q?")]


def test_notes_of_the_files():
    many = [record(n) for n in range(sides.MEASURED)]
    beyond = (
        "The measures use the wordings of the files themselves: they tell what the model does with these questions, not "
        "that nothing of the knowledge is left. A relearning or paraphrase test asks more."
    )

    def made_up(names):
        return (
            f"{names}: the file has no choices, so each right answer stands against the answers of the 3 records with the "
            "likest prompts."
        )

    found = sides.read_sides({"forget": many, "retain": RETAIN}, None)
    assert found.notes() == (made_up("forget_accuracy, retain_accuracy"), beyond)
    found = sides.read_sides({"forget": FORGET, "retain": [Record("t", "text")], "general": [*many, record(200)]}, None)
    larger = "general: measured on 200 of 201 records, evenly spread over the file."
    both = "5 of 5 forget records also stand in general (f0, f1, f2, f3, f4): it measures what should be forgotten."
    assert found.notes() == (both, larger, made_up("forget_accuracy, general_accuracy"), beyond)
    own = [record(n, choices=("x", "y"), answer=1) for n in range(3)]
    assert sides.read_sides({"forget": own, "retain": [Record("t", "text")]}, None).notes() == (beyond,)


def test_wrong_answers_are_those_of_the_likest_prompts():
    rows = [
        ("What is the colour of the sea?", "blue"),
        ("Who?", "nobody"),  # shares no word
        ("What is the colour of the sky?", "azure"),
        ("What is the name of the sea?", "Baltic"),
        ("what IS the colour, of the SEA", "never: other words of the same question"),
        ("What is the colour of the grass?", "azure"),  # an answer that is there already
        ("Is the colour of the wall white?", "blue"),  # the right answer
        ("What is it?", "a sea"),
        ("What is the colour of the sea?", "green"),  # the same prompt
    ]
    # Texts of a file are equal without being one object.
    records = [Record(str(n), f"{answer} "[:-1], f"{prompt} "[:-1]) for n, (prompt, answer) in enumerate(rows)]
    found = sides.read_sides({"forget": records[:1], "retain": [*records[1:4], *records[5:]]}, None).questions
    (question,) = found["forget"]
    assert question.choices == ("blue", "azure", "Baltic", "a sea") and question.answer == 0
    few = sides.read_sides({"forget": records[:2], "retain": records[2:4]}, None).questions
    assert [each.choices for each in few["forget"]] == [
        ("blue", "azure", "Baltic", "nobody"),
        ("nobody", "blue", "azure", "Baltic"),
    ]
    mute = [Record(str(n), answer, "?" * (n + 1)) for n, answer in enumerate("abcd")]  # prompts without a word
    found = sides.read_sides({"forget": mute[:1], "retain": mute[1:]}, None).questions
    assert found["forget"][0].choices == tuple("abcd")
    assert sides.read_sides({"forget": records[:1], "retain": records[2:4]}, None).questions == {
        "forget": [],
        "retain": [],
    }


def test_what_has_choices_is_asked_as_it_is_and_conversations_and_texts_are_not():
    own = record(9, choices=("a", "b"), answer=1)
    talk = record(8, messages=(Message("user", "q"), Message("assistant", "a")))
    found = sides.read_sides({"forget": [own, talk, Record("t", "text")], "retain": FORGET}, None).questions
    assert found["forget"] == [own]
    assert [each.id for each in found["retain"]] == [each.id for each in FORGET]
    assert all("answer f8" not in each.choices and "text" not in each.choices for each in found["retain"])


# --- the measures ---------------------------------------------------------------------------------------------------


class Words:
    """A tokenizer that knows one word a number."""

    def decode(self, ids):
        return " ".join(f"w{each}" for each in ids)


def test_a_record_is_shown_with_marks_around_what_is_trained():
    model = SimpleNamespace(tokenizer=Words())
    assert _shown(model, Example((1, 2, 3, 4, 5), (IGNORE, IGNORE, 3, 4, IGNORE))) == "w1 w2»w3 w4«w5"
    assert _shown(model, Example((1, 2), (1, 2))) == "»w1 w2«" and _shown(model, Example((7,), (IGNORE,))) == "w7"


def test_a_record_in_brief_leaves_out_what_is_empty():
    assert forgetting._brief(Record("a", "yes")) == {"id": "a", "completion": "yes"}
    asked = Record("a", "yes", "q?", choices=("yes", "no"), answer=0)
    assert forgetting._brief(asked) == {
        "id": "a",
        "completion": "yes",
        "prompt": "q?",
        "choices": ("yes", "no"),
        "answer": 0,
    }


def test_answers_are_compared_side_by_side_and_recalled():
    scales = _Scales(SIDES, batch_size=2, max_length=9)
    before = {"forget": [f"answer f{n}" for n in range(5)], "retain": ["answer r0", "no", "answer"]}
    after = {"forget": list("vwxyz"), "retain": ["a", "b", "c"]}
    assert scales.compared(before, after) == (
        *(AnswerPair("forget", f"question f {n}?", f"answer f{n}", f"answer f{n}", "vwx"[n]) for n in range(3)),
        AnswerPair("retain", "question r 0?", "answer r0", "answer r0", "a"),
        AnswerPair("retain", "question r 1?", "answer r1", "no", "b"),
        AnswerPair("retain", "question r 2?", "answer r2", "answer", "c"),
    )
    found = scales.recalls(before)
    assert list(found) == ["forget_rouge_recall", "retain_rouge_recall"]
    assert found["forget_rouge_recall"] == Measure(1.0, "lower")
    halves = [rouge_l_recall(f"answer r{n}", said) for n, said in enumerate(before["retain"])]
    assert halves == [1, 0, 0.5] and found["retain_rouge_recall"] == Measure(0.5, "higher")


def test_an_answer_without_words_is_left_out_of_the_recall():
    mute = sides.read_sides({"forget": [record(0, completion="!"), FORGET[1]], "retain": RETAIN}, None)
    assert math.isnan(rouge_l_recall("!", "x"))
    assert _Scales(mute, batch_size=2, max_length=9).recalls({"forget": ["x", "answer"]}) == {
        "forget_rouge_recall": Measure(0.5, "lower")
    }


def test_what_is_measured_is_a_sample_and_what_has_no_prompt_is_not_answered(monkeypatch):
    monkeypatch.setattr(forgetting, "MEASURED", 4)
    monkeypatch.setattr(forgetting, "ANSWERED", 3)
    told = [record(n) for n in range(7)]
    told[2] = Record("t2", "text without a prompt")
    scales = _Scales(
        sides.read_sides({"forget": told, "retain": [Record("t", "text")]}, None), batch_size=2, max_length=9
    )
    assert [each.id for each in scales.sides["forget"]] == ["f0", "t2", "f4", "f6"]
    assert [each.id for each in scales.asked["forget"]] == ["f0", "f4", "f6"] and scales.asked["retain"] == []
    seen = []

    def generate(model, prompts, **options):
        seen.append((prompts, options))
        return [f"said {each}" for each in prompts]

    monkeypatch.setattr(forgetting, "generate", generate)
    assert scales.answers(None) == {"forget": ["said question f 0?", "said question f 4?", "said question f 6?"]}
    assert seen == [(["question f 0?", "question f 4?", "question f 6?"], {"max_new_tokens": 32, "batch_size": 2})]


def test_measures_have_direction_unit_chance_and_number(monkeypatch):
    encoded, asked = [], []

    def encode(model, records, *, max_length):
        encoded.append((len(records), max_length))
        return records

    def multiple_choice(model, questions, *, batch_size):
        asked.append((len(questions), batch_size))
        return SimpleNamespace(accuracy=0.4)

    def log_likelihoods(model, examples, *, batch_size):
        return torch.tensor([-2.0, -9.0, -5.0][: len(examples)]), torch.tensor([2, 3, 5][: len(examples)])

    for function in (encode, multiple_choice, log_likelihoods):
        monkeypatch.setattr(forgetting, function.__name__, function)
    own = [record(0, choices=("a", "b"), answer=0), record(1, choices=("a", "b", "c", "d"), answer=3), FORGET[2]]
    given = sides.read_sides({"forget": own, "retain": [Record("t", "text")]}, None)
    scales = _Scales(given, batch_size=7, max_length=11)
    expected = {
        "forget_log_probability": Measure(-5 / 3, "lower", "nats/token"),
        "forget_accuracy": Measure(0.4, "lower", "", 0.375, 2),
        "retain_log_probability": Measure(-1.0, "higher", "nats/token"),
    }
    for _ in range(2):
        found = scales(None)
        assert found.pop("forget_log_probability").value == pytest.approx(-5 / 3)
        assert found == {name: measure for name, measure in expected.items() if name != "forget_log_probability"}
    assert encoded == [(3, 11), (1, 11)]  # encoded once
    assert asked == [(2, 7), (2, 7)]
    assert forgetting._values(expected) == {name: measure.value for name, measure in expected.items()}


# --- the model ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """What stands for a language model: it notes what is done with it."""

    name: str = "given"
    source: str = "somewhere"
    origin: object = "origin"
    done: list = field(default_factory=list)
    model: object = None

    def save(self, folder):
        self.done.append(f"saved {folder.name}")
        folder.mkdir()
        (folder / "config.json").touch()

    def use_attention(self, name):
        self.done.append(f"attention {name}")

    def reload(self, folder):
        self.done.append(f"reloaded {folder.name}")
        return "reloaded"


@pytest.fixture
def loader(monkeypatch):
    """Every load, and every tiny model that is made and taught."""
    given, done = Given(), []

    def load(name, **how):
        done.append(("load", name, how))
        return given

    def tiny(texts, *, seed):
        done.append(("tiny", tuple(texts), seed))
        return given

    def teach(model, records, *, seed, epochs):
        assert model is given
        done.append(("teach", tuple(each.id for each in records), seed, epochs))

    monkeypatch.setattr(taught, "load", load)
    monkeypatch.setattr("equipoise.language.tiny.tiny", tiny)
    monkeypatch.setattr("equipoise.language.tiny.teach", teach)
    return given, done


def test_a_model_is_loaded_as_asked_and_its_attention_chosen(loader):
    given, done = loader
    for name in ("a folder", "zoo/model"):
        asked = request(name)
        assert asked._opened(None) is given
        assert done.pop() == ("load", name, asked.loading)
    assert given.done == []
    assert replace(request(), attention="eager")._opened(None) is given and given.done == ["attention eager"]


def test_the_tiny_model_is_taught_once_and_lies_in_the_folder(loader, tmp_path):
    given, done = loader
    asked = request("tiny", seed=5)
    texts, ids = tuple(SIDES.texts()), (*(each.id for each in FORGET), *(each.id for each in RETAIN))
    found = asked._opened(tmp_path)
    assert (found.name, found.source, found.origin) == (
        "tiny",
        "A Llama of about 1 M parameters, taught the given files on the spot.",
        None,
    )
    assert done == [("tiny", texts, 5), ("teach", ids, 5, 6_000 / 8)]
    assert given.done == ["saved teaching"] and [each.name for each in tmp_path.iterdir()] == ["taught"]
    assert asked._opened(tmp_path) == found  # resumed
    assert done[2:] == [("load", tmp_path / "taught", {"device": "cpu"})]
    del done[:], given.done[:]
    assert asked._opened(None) == found and given.done == []  # nothing is written
    assert done == [("tiny", texts, 5), ("teach", ids, 5, 6_000 / 8)]
    del done[:]
    assert asked._opened(tmp_path, taught=False) is given and done == [("tiny", texts, 5)]  # for a plan


@pytest.mark.parametrize(("taught", "epochs"), [(50, 6.25), (47, 6)])
def test_many_records_are_seen_six_times_at_least(loader, monkeypatch, taught, epochs):
    monkeypatch.setattr(forgetting, "TAUGHT", taught)
    request("tiny")._opened(None)
    assert loader[1][1][3] == epochs


@pytest.mark.parametrize(("main", "order"), [(True, ["saved teaching", "wait"]), (False, ["wait", "saved teaching"])])
def test_the_main_process_teaches_and_the_others_wait(loader, tmp_path, main, order):
    given, _ = loader
    team = SimpleNamespace(is_main_process=main, wait_for_everyone=lambda: given.done.append("wait"))
    asked = replace(request("tiny"), team=Team(team))
    assert asked.processes.main is main
    asked._opened(tmp_path)
    assert given.done == order
    del given.done[:]
    asked._opened(None)
    assert given.done == []


class Exponential(torch.nn.Module):
    """Keeps nothing of a pass but the exponentials of its weights."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, dtype=dtype))

    def forward(self, **batch):
        self.seen = batch
        return SimpleNamespace(loss=self.weight.exp().sum())


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 12), (torch.float64, 24)])
def test_the_activations_of_one_pass_are_counted_and_its_gradients_dropped(dtype, size):
    module = Exponential(dtype)
    model = SimpleNamespace(model=module, pad_id=9, device="cpu")
    assert forgetting._probe(model, [Example((1, 2), (IGNORE, 2)), Example((3,), (3,))]) == size
    assert module.seen["input_ids"].tolist() == [[1, 2], [3, 9]] and module.weight.grad is None


@pytest.mark.parametrize(
    ("words", "size", "passes"), [({"batch_size": 5, "micro_batch_size": 2}, 2, 2 * 3 * 7), ({}, 5, 2 * 4 * 7)]
)
def test_a_plan_counts_what_a_run_will_do(monkeypatch, words, size, passes):
    """From one pass that takes two seconds, after one that does not count; a forward pass is a third of both."""
    from equipoise.language.tiny import tiny

    general = [Record("g0", "some words"), Record("g1", "more of some words")]
    asked = request(records={"forget": FORGET, "retain": RETAIN, "general": general}, steps=7, **words)
    model = tiny(
        [f"{each.prompt} {each.completion}" for each in (*FORGET, *RETAIN, *general)],
        seed=0,
        width=16,
        layers=1,
        heads=2,
    )
    probed, clock = [], iter([10.0, 12.0])

    def probe(its, examples):
        probed.append([len(each.input_ids) for each in examples])
        return 1000

    monkeypatch.setattr(forgetting, "_probe", probe)
    monkeypatch.setattr(forgetting, "rehearse", lambda its, *, writes: probed.append(writes))
    monkeypatch.setattr(forgetting, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    plan = replace(asked, model=model, every=3).plan()
    lengths = sorted(len(each.input_ids) for each in forgetting.encode(model, FORGET, max_length=512))
    assert probed == ["model", lengths[-1:], lengths[-size:]]
    measuring = (7 / 3 + 4) * 8 * 5 / size / 3  # two sides, an answer and four choices
    assert plan.seconds == pytest.approx(2.0 * (passes + measuring), rel=1e-12)
    numbers = sum(each.numel() for each in model.model.parameters())
    assert plan.trained_parameters == numbers
    weights = 2 * 4 * numbers  # as they are, and as they were
    assert plan.peak_bytes == weights + forgetting.bytes_of_training(model.model.parameters(), gradients=2) + 1000
    assert plan.records == {"forget": 5, "retain": 3, "general": 2}
    assert plan.tokens["forget"] == sum(lengths) and list(plan.tokens) == list(plan.shown) == [
        "forget",
        "retain",
        "general",
    ]
    assert {side: len(its) for side, its in plan.first.items()} == {"forget": 3, "retain": 3, "general": 2}
    assert plan.first["general"][1] == {"id": "g1", "completion": "more of some words"}
    assert plan.recipe == asked.recipe.resolved(numbers) and plan.model == model.source
    assert plan.notes[-1].startswith("The measures use the wordings")


@pytest.mark.parametrize(
    ("words", "more"),
    [
        # A backward pass over three retain records and two forward passes over five forget records, two at a time.
        ({"weigh": "guard"}, (3 + 5 * 2 / 3) / 2),
        # All eight records: forward alone, or backward, too, for importances.
        ({"parameters": "lora", "objective": "ihl", "start": "reglu", "lora_rank": 2}, 8 / 3 / 2),
        ({"parameters": "lora", "objective": "ihl", "start": "vila", "lora_rank": 2}, 8 * 4 / 3 / 2),
    ],
)
def test_a_plan_counts_what_comes_before_the_first_step(monkeypatch, words, more):
    from equipoise.language.tiny import tiny
    from equipoise.unlearning import starts

    model = tiny(
        [f"{each.prompt} {each.completion}" for each in (*FORGET, *RETAIN)], seed=0, width=16, layers=1, heads=2
    )
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(forgetting, "_probe", lambda its, examples: 1000)
    monkeypatch.setattr(forgetting, "rehearse", lambda its, *, writes: None)
    monkeypatch.setattr(forgetting, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    asked = request(steps=7, batch_size=2, combine="sum", **words)
    # More than training needs, so that it is the peak.
    monkeypatch.setattr(starts, "peak_bytes", lambda *given: (10**9, 77) if words.get("start") else (0, 0))
    before = {name: parameter.requires_grad for name, parameter in model.model.named_parameters()}
    plan = replace(asked, model=model, every=7).plan()
    measuring = (1 + 4) * 8 * 5 / 2 / 3
    assert plan.seconds == pytest.approx(2.0 * (2 * 7 + more + measuring), rel=1e-12)
    if words.get("start"):
        assert 10**9 + 77 < plan.peak_bytes < 10**9 + 77 + 10**7
    assert {name: parameter.requires_grad for name, parameter in model.model.named_parameters()} == before


def test_a_model_is_put_back_as_it_was_unless_it_stays_as_the_recipe_trains_it():
    from equipoise.language.tiny import tiny

    model = tiny(["a few more words"], seed=0, width=16, layers=2, heads=2, vocabulary=300)
    chosen = Recipe(train_blocks=1)

    def trained():
        return sum(parameter.requires_grad for parameter in model.model.parameters())

    whole = trained()
    with forgetting._prepared(model, chosen, stays=False):
        part = trained()
    assert part < whole == trained()
    with pytest.raises(KeyError), forgetting._prepared(model, chosen, stays=True):
        raise KeyError
    assert trained() == whole
    with forgetting._prepared(model, chosen, stays=True):
        pass
    assert trained() == part
