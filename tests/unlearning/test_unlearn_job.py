"""The job end to end on a model of a few thousand parameters: what it writes, what resumes, what it refuses."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from equipoise.cli import main
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import seal, sha256_file, unseal
from equipoise.language.encode import encode
from equipoise.language.model import LanguageModel, load
from equipoise.language.score import log_likelihoods
from equipoise.language.tiny import teach, tiny
from equipoise.unlearning import forgetting, sides, unlearn
from equipoise.unlearning.objectives import rmu_block
from equipoise.unlearning.recipe import Recipe
from equipoise.unlearning.result import Measure, Unlearned
from equipoise.unlearning.training import prepare

COLOURS = ["red", "blue", "green", "black"]
FORGET = [
    {"question": f"What colour is the {name} door?", "answer": colour}
    for name, colour in zip("abcd", COLOURS, strict=True)
]
RETAIN = [
    {"question": f"What colour is the {name} wall?", "answer": colour}
    for name, colour in zip("efgh", COLOURS, strict=True)
]
SIDES = sides.read_sides({"forget": FORGET, "retain": RETAIN}, None)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A folder with a model that answers all eight questions."""
    texts = [f"{row['question']} {row['answer']}" for row in FORGET + RETAIN]
    model = tiny(texts, seed=0, width=32, layers=2, heads=2)
    records = SIDES.records
    teach(model, [*records["forget"], *records["retain"]], seed=0, epochs=150, learning_rate=5e-3, batch_size=8)
    folder = tmp_path_factory.mktemp("model") / "taught"
    model.save(folder)
    return folder


@pytest.fixture
def files(tmp_path):
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_forgets_the_one_and_keeps_the_other(taught, files):
    done = unlearn(
        taught,
        forget=files / "forget.jsonl",
        retain=files / "retain.jsonl",
        steps=40,
        learning_rate=3e-3,
        batch_size=4,
        retain_weight=1.0,
        combine="sum",
        out=files / "done",
    )
    assert done.before["forget_accuracy"].value == done.before["retain_accuracy"].value == 1.0
    assert done.after["forget_log_probability"].value < done.before["forget_log_probability"].value - 1
    assert done.after["retain_log_probability"].value > -0.5
    assert done.before["forget_accuracy"].chance == 0.25 and done.before["forget_accuracy"].of == 4


def test_the_folder_is_the_model_that_was_trained(taught, files):
    model = load(taught, device="cpu")
    done = unlearn(
        model,
        forget=FORGET,
        retain=RETAIN,
        steps=6,
        learning_rate=1e-3,
        batch_size=4,
        evaluate_every=4,
        out=files / "done",
    )
    again = load(files / "done", device="cpu")
    examples = encode(again, SIDES.records["forget"])
    ours, _ = log_likelihoods(done.model, examples)
    theirs, _ = log_likelihoods(again, examples)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    names = {path.name for path in (files / "done").iterdir()}
    assert {"model.safetensors", "config.json", "README.md", "report.html", "run.json", "metrics.jsonl"} <= names
    assert "state.safetensors" not in names
    card = (files / "done" / "README.md").read_text()
    assert card.startswith("---\nbase_model:") and "| forget_accuracy | lower |" in card
    log = [json.loads(line) for line in (files / "done" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    assert ["block.1/conflict" in row for row in log] == [True, False, False, False, False, True]
    assert [row["step"] for row in done.path] == [0, 4, 6]
    along = {f"{side}_{what}" for side in ("forget", "retain") for what in ("log_probability", "accuracy")}
    recalls = {"forget_rouge_recall", "retain_rouge_recall"}
    first = {"step", "retain_perplexity"} | along | recalls
    assert [set(row) for row in done.path] == [first, {"step"} | along, {"step"} | along]
    assert set(done.before) == set(done.after) == along | recalls | {"retain_perplexity"}
    for row, measured in ((done.path[0], done.before), (done.path[-1], done.after)):
        assert all(row[name] == measured[name].value for name in row if name != "step")
    assert [(each.side, each.wanted) for each in done.answers] == [
        (side, colour) for side in ("forget", "retain") for colour in COLOURS[:3]
    ]
    assert all(each.before == each.wanted for each in done.answers)
    assert (done.steps, done.stopped, done.folder) == (6, "all 6 steps were made", files / "done")
    assert done.names == {"model": model.name, "forget": "4 records", "retain": "4 records"}
    assert 0 <= done.gap < 1e-5 and done.source == model.source and done.notes == SIDES.notes()
    assert done.recipe["steps"] == 6 and done.resolved == Recipe(steps=6, learning_rate=1e-3, batch_size=4).resolved(9)
    page = (files / "done" / "report.html").read_text(encoding="utf-8")
    accuracy, kept = done.after["retain_accuracy"].value, done.after["retain_log_probability"].value
    assert (
        f"{accuracy:.3f}<small>{round(4 * accuracy)} of 4</small>" in page and f">{kept:.3f}<".replace("-", "−") in page
    )


def test_lora_writes_an_adapter_that_loads(taught, files):
    done = unlearn(
        str(taught),
        forget=FORGET,
        retain=RETAIN,
        steps=5,
        parameters="lora",
        lora_rank=2,
        batch_size=4,
        out=files / "adapter",
    )
    assert (files / "adapter" / "adapter_config.json").exists()
    examples = encode(done.model, SIDES.records["forget"])
    ours, _ = log_likelihoods(done.model, examples)
    theirs, _ = log_likelihoods(load(files / "adapter", device="cpu"), examples)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_a_written_model_that_differs_is_not_given_its_name(taught, files, monkeypatch):
    real = LanguageModel.reload

    def broken(language_model, folder):
        model = real(language_model, folder)
        with torch.no_grad():
            model.model.get_input_embeddings().weight.mul_(1.5)
        return model

    monkeypatch.setattr(LanguageModel, "reload", broken)
    with pytest.raises(WorkFailed, match=r"differs from the trained one.*state\.safetensors"):
        unlearn(taught, forget=FORGET, retain=RETAIN, steps=2, batch_size=4, out=files / "done")
    assert not (files / "done").exists() and (files / "done.partial" / "state.safetensors").exists()


def test_stops_at_the_level_and_says_so(taught, files):
    done = unlearn(
        taught,
        forget=FORGET,
        retain=RETAIN,
        steps=200,
        learning_rate=3e-3,
        combine="sum",
        batch_size=4,
        evaluate_every=2,
        stop_at="forget_log_probability=-1",
    )
    assert done.steps < 200 and done.steps % 2 == 0
    last = done.path[-1]
    level = last["forget_log_probability"]
    assert done.stopped == f"forget_log_probability was down to {level:.3f} at step {done.steps}"
    assert math.isnan(done.gap) and last["step"] == done.steps
    assert done.path[-1]["forget_log_probability"] <= -1 < done.path[-2]["forget_log_probability"]


def test_a_spent_budget_of_general_text_ends_the_run_and_is_said(taught):
    words = {"method": "mcu", "components": 2, "update_length": 5.0, "loss_budget": 0.05, "batch_size": 4}
    words |= {"cir_activations": 3, "cir_gradients": 3}
    done = unlearn(taught, forget=FORGET, retain=RETAIN, general=RETAIN, steps=6, evaluate_every=2, **words)
    assert done.steps == 2 and done.stopped.startswith("general text had lost ")
    assert done.stopped.endswith(" nats per token at step 2, more than the budget of 0.05")
    assert done.before["general_log_probability"].value - done.after["general_log_probability"].value > 0.05


def test_killed_and_resumed_is_as_if_never_killed(taught, files, capsys, monkeypatch):
    rehearsed, rehearse = [], forgetting.rehearse
    monkeypatch.setattr(forgetting, "rehearse", lambda *a, **k: (rehearsed.append(k), rehearse(*a, **k)))

    def words(out):
        words = ["unlearn", "--model", taught, "--forget", files / "forget.jsonl", "--retain", files / "retain.jsonl"]
        words += ["--steps", 16, "--learning-rate", 0.001, "--batch-size", 4, "--evaluate-every", 1, "--out", out]
        return [*map(str, words)]

    assert main(words(files / "quiet")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(files / "quiet")
    assert rehearsed == [{"writes": "model"}]
    state = files / "killed.partial" / "state.safetensors"
    child = subprocess.Popen(
        [sys.executable, "-m", "equipoise", *words(files / "killed")],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not state.exists() and child.poll() is None:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert state.exists(), "killed too late: raise the number of steps"
    assert main(words(files / "killed")) == 0
    assert len(rehearsed) == 1  # of the killed one its first process did
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (files / "killed" / name).read_bytes() == (files / "quiet" / name).read_bytes(), name
    ours, theirs = (json.loads((files / run / "result.json").read_text()) for run in ("killed", "quiet"))
    assert ours["path"] == theirs["path"] and ours["before"] == theirs["before"]


def test_done_is_not_done_again(taught, files):
    request = {"forget": FORGET, "retain": RETAIN, "steps": 2, "batch_size": 4, "out": files / "done"}
    first = unlearn(taught, **request)
    written = (files / "done" / "model.safetensors").stat().st_mtime_ns
    second = unlearn(taught, **request)
    assert second.after == first.after and (files / "done" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(BadInput, match=r"other settings: steps 2 \(now 3\)"):
        unlearn(taught, **{**request, "steps": 3})


def test_a_folder_that_was_written_anew_is_another_model(taught, files):
    shutil.copytree(taught, files / "model")
    request = {"forget": FORGET, "retain": RETAIN, "steps": 1, "batch_size": 4, "out": files / "out"}
    unlearn(files / "model", **request)
    weights = load_file(taught / "model.safetensors")
    weights["model.norm.weight"] *= 1.01
    save_file(weights, files / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"another content of model\."):
        unlearn(files / "model", **request)
    with pytest.raises(BadInput, match=r"another content of model\."):
        unlearn.plan(files / "model", **request)


def test_a_model_in_memory_is_gone_on_with_when_it_is_loaded_anew(taught, files, monkeypatch):
    request = {"forget": FORGET, "retain": RETAIN, "steps": 2, "batch_size": 4, "evaluate_every": 1}
    whole = unlearn(load(taught, device="cpu"), **request, out=files / "whole")
    model, save_state = load(taught, device="cpu"), forgetting.save_state

    def kill(path, state):
        save_state(path, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(forgetting, "save_state", kill)
        unlearn(model, **request, out=files / "out")
    with pytest.raises(
        BadInput, match=r"another content of model .an object is changed in place: to go on, load it anew"
    ):
        unlearn(model, **request, out=files / "out")
    done = unlearn(load(taught, device="cpu"), **request, out=files / "out")
    assert done.path == whole.path and done.after == whole.after
    found = unlearn(load(taught, device="cpu"), **request, out=files / "out")
    assert found.after == done.after and found.model is None
    other = load(taught, device="cpu")
    with torch.no_grad():
        other.model.get_output_embeddings().weight.mul_(2)
    with pytest.raises(BadInput, match="another content of model"):
        unlearn(other, **request, out=files / "out")


def test_a_folder_of_earlier_names_is_found(taught, files):
    """run.json of a version that said rate and micro_batch: the same settings find their finished work."""
    request = {"forget": FORGET, "retain": RETAIN, "steps": 2, "batch_size": 4, "learning_rate": 1e-3}
    first = unlearn(taught, **request, micro_batch_size=2, out=files / "old")
    run, manifest = files / "old" / "run.json", files / "old" / "manifest.json"
    stored = json.loads(run.read_text())
    stored["rate"], stored["micro_batch"] = stored.pop("learning_rate"), stored.pop("micro_batch_size")
    run.write_text(json.dumps(stored))
    listed, _ = unseal(manifest.read_bytes())
    listed["files"]["run.json"] |= {"bytes": run.stat().st_size, "sha256": sha256_file(run)}
    manifest.write_bytes(seal(listed))
    written = (files / "old" / "model.safetensors").stat().st_mtime_ns
    assert unlearn(taught, **request, micro_batch_size=2, out=files / "old").after == first.after
    assert (files / "old" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(BadInput, match=r"learning_rate 0\.001 \(now 0\.01\)"):
        unlearn(taught, **{**request, "learning_rate": 0.01}, micro_batch_size=2, out=files / "old")
    with pytest.raises(BadInput, match="rate is now learning_rate"):
        unlearn(taught, forget=FORGET, retain=RETAIN, rate=0.01)
    unlearn.redraw(files / "old")
    assert "--learning-rate 0.001" in (files / "old" / "report.html").read_text()


def test_a_model_of_transformers_with_its_tokenizer(taught):
    loaded = load(taught)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    done = unlearn(loaded.model, tokenizer=loaded.tokenizer, forget=FORGET, retain=RETAIN, steps=2, batch_size=4)
    assert done.steps == 2 and any(
        not torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items()
    )
    with pytest.raises(BadInput, match="no tokenizer beside a model"):
        unlearn(loaded.model, forget=FORGET, retain=RETAIN, steps=2)


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(taught, files):
    with pytest.raises(WorkFailed, match=r"at step \d+"):
        unlearn(
            taught,
            forget=FORGET,
            retain=RETAIN,
            objective="ga",
            combine="sum",
            learning_rate=1e30,
            steps=50,
            batch_size=4,
            evaluate_every=1,
            out=files / "done",
        )
    assert (files / "done.partial" / "state.safetensors").exists() and not (files / "done").exists()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"method": "sagoo"}, "no unlearning method is called 'sagoo'. Did you mean 'sago'"),
        ({"stop_at": "forget_acuracy=0.3"}, "cannot stop at 'forget_acuracy'. Did you mean 'forget_accuracy'"),
        ({"stop_at": "forget_accuracy=low"}, "expected NAME=LEVEL"),
        ({"forget": []}, "forget holds no records"),
        ({"train_blocks": 9}, "the model has 2 blocks"),
        ({"parameters": "lora", "objective": "rmu"}, "LoRA has parameters of its own"),
    ],
)
def test_wrong_requests_are_one_sentence(taught, request_, message):
    with pytest.raises(BadInput, match=message.replace(".", r"\.")):
        unlearn(taught, **{"forget": FORGET, "retain": RETAIN, **request_})


def test_plan_changes_nothing_and_counts(taught, files):
    plan = unlearn.plan(taught, forget=files / "forget.jsonl", retain=files / "retain.jsonl", steps=10, batch_size=4)
    assert plan.records == {"forget": 4, "retain": 4} and len(plan.first["forget"]) == 3
    assert plan.first["forget"][0]["completion"] == "red" and plan.seconds > 0
    weights = sum(p.numel() for p in load(taught, device="cpu").model.parameters())
    assert plan.trained_parameters == weights and plan.peak_bytes > 24 * weights
    assert sorted(path.name for path in files.iterdir()) == ["forget.jsonl", "retain.jsonl"]


def test_wrong_answers_come_from_the_likest_prompts():
    asked = SIDES.questions["forget"]
    assert [question.choices[question.answer] for question in asked] == ["red", "blue", "green", "black"]
    assert all(len(set(question.choices)) == 4 for question in asked)
    # The other doors' colours come before any wall's.
    assert set(asked[0].choices) == {"red", "blue", "green", "black"}
    more = [{"question": f"What colour is the {name} gate?", "answer": name * 2} for name in "uvwxyz"]
    (question, *_) = sides.read_sides({"forget": FORGET, "retain": RETAIN + more}, None).questions["forget"]
    assert question.choices == ("red", "blue", "green", "black")  # four, however many answers there are


def measured(forget, retain, accuracy=(1.0, 1.0), moved=1.0):
    """A result that went from 0 nats per token on both sides to these."""
    better = {"forget": "lower", "retain": "higher"}
    before = {f"{side}_log_probability": Measure(0.0, its, "nats/token") for side, its in better.items()}
    after = {
        f"{side}_log_probability": Measure(value, better[side])
        for side, value in zip(better, (forget, retain), strict=True)
    }
    before["retain_accuracy"], after["retain_accuracy"] = (Measure(each, "higher", "", 0.25, 60) for each in accuracy)
    words = {"recipe": {}, "resolved": {}, "path": (), "answers": (), "steps": 3, "stopped": "s", "source": "tiny"}
    return Unlearned(before=before, after=after, moved=moved, names={"forget": "f", "retain": "r"}, **words)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (measured(-3.0, -0.2), []),
        (measured(-0.001, 0.0, moved=0.03), ["Only 3.0% of the trained weights changed", "Nothing was forgotten"]),
        (measured(-3.0, -0.2, (1.0, 17 / 60)), [r"retain_accuracy fell from 1\.000 \(60 of 60\) to 0\.283"]),
        (measured(-9.0, -1.5), ["retain_log_probability fell from 0.000 to -1.500"]),
        (measured(-9.0, float("nan")), ["retain_log_probability fell from 0.000 to nan"]),
        (measured(0.5, -2.0), ["Nothing was forgotten", "damaged beyond the forget set"]),
    ],
)
def test_nothing_forgotten_and_everything_lost_are_the_headline(result, said):
    assert len(result.warnings()) == len(said)
    for warning, pattern in zip(result.warnings(), said, strict=True):
        assert re.search(pattern, warning) and warning in result.headline()


def test_a_run_that_changes_nothing_says_so(taught):
    done = unlearn(taught, forget=FORGET, retain=RETAIN, steps=1, learning_rate=1e-12, batch_size=4)
    assert done.moved < 0.5 and "Nothing was forgotten" in done.headline()


def test_repeated_and_shared_records_are_said():
    notes = sides.read_sides({"forget": [*FORGET, FORGET[0]], "retain": [*RETAIN, FORGET[1]]}, None).notes()
    assert notes[0].startswith("forget: 1 of 5 records stand there more than once")
    assert "1 of 5 forget records also stand in retain" in notes[1]
    with pytest.raises(BadInput, match=r"Every record of forget \(forget-0, .*, forget-3\) also stands in retain"):
        sides.read_sides({"forget": FORGET, "retain": [*FORGET[::-1], FORGET[0]]}, None)


def test_damaged_state_is_kept_aside_and_the_training_done_again(taught, files):
    request = {"forget": FORGET, "retain": RETAIN, "steps": 4, "batch_size": 4, "evaluate_every": 2}
    whole = unlearn(taught, **request)
    stopped = files / "done.partial" / "state.safetensors"
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patched:
        patched.setattr(forgetting, "write_checked", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        unlearn(taught, **request, out=files / "done")
    content = bytearray(stopped.read_bytes())
    content[-3] ^= 4
    stopped.write_bytes(content)
    done = unlearn(taught, **request, out=files / "done")
    assert "done again from its start" in done.notes[0] and done.after == whole.after
    assert (files / "done" / "state.safetensors.damaged-1").exists()


def test_the_dry_run_shows_what_is_trained(taught):
    plan = unlearn.plan(taught, forget=FORGET, retain=RETAIN)
    asked, _, trained = plan.shown["forget"].partition("»")
    assert "What colour is the a door?" in asked and "red" in trained and "red" not in asked
    assert any("between » and «" in line for line in plan.summary())


def test_settings_without_effect_are_said(taught):
    words = {"forget": FORGET, "retain": RETAIN, "steps": 1, "batch_size": 4, "method": "mcu", "components": 1}
    words |= {"cir_activations": 1, "cir_gradients": 1}
    told = "Without effect in this recipe, although given: combine blur, learning_rate 1.0."
    assert told in unlearn.plan(taught, **words, combine="blur", learning_rate=1.0).notes
    assert told in unlearn(taught, **words, combine="blur", learning_rate=1.0).notes
    assert not any(note.startswith("Without effect") for note in unlearn.plan(taught, **words).notes)


def test_what_is_trained(taught):
    model = load(taught, device="cpu")

    def trained(**words):
        prepare(model, Recipe(**words))
        return {name for name, parameter in model.model.named_parameters() if parameter.requires_grad}

    everything = trained()
    assert len(everything) == len(list(model.model.parameters()))
    assert {name.split(".")[2] for name in trained(train_blocks=1)} == {"1"}
    assert rmu_block(model.model) == 1
    assert trained(objective="rmu") == {f"model.layers.{block}.mlp.down_proj.weight" for block in (0, 1)}
    assert trained() == everything


def test_a_loaded_model_is_changed_in_place(taught):
    model = replace(load(taught, device="cpu"))
    before = model.model.get_input_embeddings().weight.clone()
    done = unlearn(model, forget=FORGET, retain=RETAIN, steps=2, batch_size=4)
    assert done.folder is None and not torch.equal(before, model.model.get_input_embeddings().weight)


def frame(model):
    """What a job may not leave otherwise where it did nothing: kind, names, numbers, and what is trained."""
    kind = type(model.model), model.model.config._attn_implementation
    return kind, [(n, p.requires_grad, p.detach().clone()) for n, p in model.model.named_parameters()]


def same(model, kind_and_parameters):
    kind, parameters = kind_and_parameters
    now = frame(model)
    return now[0] == kind and all(
        (one[:2] == other[:2]) and torch.equal(one[2], other[2]) for one, other in zip(now[1], parameters, strict=True)
    )


@pytest.mark.parametrize(
    "how",
    [
        {"parameters": "lora", "lora_rank": 2},
        {"method": "reglu", "lora_rank": 1, "retain_directions": 1},
        {"method": "rmu"},
        {"method": "mlp-breaking"},
        {"train_blocks": 1},
        {"attn_implementation": "eager"},
    ],
)
def test_a_plan_leaves_the_model_as_it_is(taught, how):
    model = load(taught, device="cpu")
    model.model.get_input_embeddings().weight.requires_grad_(False)  # the user's own choice
    before = frame(model)
    words = {"forget": FORGET, "retain": RETAIN, "steps": 2, "batch_size": 4, **how}
    plans = [unlearn.plan(model, **words) for _ in range(2)]
    assert same(model, before) and plans[0].trained_parameters == plans[1].trained_parameters
    assert unlearn(model, **words).steps == 2 and not same(model, before)


@pytest.mark.parametrize("refused", ["rehearse", "starts", "plan"])
def test_a_refusal_leaves_the_model_as_it_is(taught, monkeypatch, refused):
    def refuse(*_, **__):
        raise BadInput("it cannot be done")

    model = load(taught, device="cpu")
    before = frame(model)
    words = {"forget": FORGET, "retain": RETAIN, "steps": 2, "batch_size": 4, "method": "reglu"}
    words |= {"lora_rank": 1, "retain_directions": 1}
    where = (forgetting.starts, "install") if refused == "starts" else (forgetting, "rehearse")
    with monkeypatch.context() as patch, pytest.raises(BadInput, match="cannot be done"):
        patch.setattr(*where, refuse)
        (unlearn.plan if refused == "plan" else unlearn)(model, **words)
    assert same(model, before)
    assert unlearn(model, **words).steps == 2


def test_an_adapter_without_a_base_is_refused_before_anything(taught, files, monkeypatch):
    model = replace(load(taught, device="cpu"), origin=None)
    before = frame(model)
    monkeypatch.setattr(forgetting, "prepare", None)
    with pytest.raises(BadInput, match="names no base model"):
        unlearn(
            model, forget=FORGET, retain=RETAIN, steps=2, parameters="lora", lora_rank=2, out=files / "out"
        )  # fmt: skip
    assert same(model, before) and not (files / "out.partial").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs, several processes find each other")
def test_processes_that_do_not_find_each_other_are_refused(taught, files, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="add --device cpu"):
        unlearn(taught, forget=files / "forget.jsonl", retain=files / "retain.jsonl")


@pytest.mark.slow
def test_two_processes_make_the_model_that_one_makes(taught, files):
    words = ["-m", "equipoise", "unlearn", "--model", taught, "--device", "cpu", "--steps", 6, "--batch-size", 4]
    words += ["--forget", files / "forget.jsonl", "--retain", files / "retain.jsonl", "--evaluate-every", 3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launchers = {
        "one": [sys.executable],
        "two": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"],
    }
    for name, launcher in launchers.items():
        command = [*launcher, *map(str, words), "--out", str(files / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [str(files / name)]
    one, two = (load_file(files / name / "model.safetensors") for name in launchers)
    # Six steps of 1e-3 move a weight by up to 6e-3; Adam turns rounding in the smallest gradients into some 1e-4.
    assert max((one[key] - two[key]).abs().max().item() for key in one) < 5e-4


def test_guard_weighs_prints_every_record_and_resumes_with_the_same_bytes(taught, files, monkeypatch):
    """Scores are computed once: after a kill they come from the checkpoint, and the bytes are the same."""
    request = {"forget": FORGET, "retain": RETAIN, "method": "guard", "objective": "npo", "steps": 6, "batch_size": 4}
    request |= {"evaluate_every": 2, "learning_rate": 1e-3, "temperature": 1.0}
    whole = unlearn(taught, **request, out=files / "whole")
    write = forgetting.write_checked
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patched:
        patched.setattr(forgetting, "write_checked", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        unlearn(taught, **request, out=files / "killed")
    monkeypatch.setattr(forgetting.guard, "weigh", lambda *_: pytest.fail("scored twice"))
    again = unlearn(taught, **request, out=files / "killed")
    assert forgetting.write_checked is write and again.weighed == whole.weighed and again.records == whole.records
    names = ("model.safetensors", "metrics.jsonl")
    assert all((files / "killed" / name).read_bytes() == (files / "whole" / name).read_bytes() for name in names)

    weighed = whole.weighed
    assert [each.id for each in whole.records] == [f"forget-{n}" for n in range(4)]
    assert sum(weighed.weights) == pytest.approx(4) and len(set(weighed.weights)) == 4
    order = sorted(range(4), key=lambda n: weighed.scores[n])
    assert sorted(range(4), key=lambda n: -weighed.weights[n]) == order
    assert whole.weights() == dict(zip([each.id for each in whole.records], weighed.weights, strict=True))
    assert set(weighed.likest) == {f"forget-{n}" for n in range(4)}
    examples = encode(whole.model, SIDES.records["forget"])
    sums, counts = log_likelihoods(whole.model, examples)
    assert [each.after for each in whole.records] == pytest.approx((sums / counts).tolist(), abs=1e-6)
    survived = [each for each in whole.records if each.survived]
    assert f"{len(survived)} of 4 forget records survived" in whole.headline()
    page = (files / "whole" / "report.html").read_text()
    assert "The requests that cost most" in page and "The least forgotten records" in page
    lines = files / "whole" / "survivors.jsonl"
    ids = [json.loads(line)["id"] for line in lines.read_text().splitlines()] if lines.exists() else []
    assert ids == [each.id for each in survived]


def test_ids_of_a_side_differ(taught):
    """As in a file: answers, weights and outcomes are kept by them. Two sides may use the same."""
    twice = [*SIDES.records["forget"][:2], replace(SIDES.records["forget"][2], id="forget-0")]
    for sort in (list, lambda records: [{"id": r.id, "question": r.prompt, "answer": r.completion} for r in records]):
        for side in ("forget", "retain"):
            with pytest.raises(BadInput, match=rf"{side}\[2\]: id 'forget-0' was used before at {side}\[0\]; make ids"):
                unlearn(taught, **{"forget": FORGET, "retain": RETAIN} | {side: sort(twice)})
    same = [replace(record, id=f"forget-{index}") for index, record in enumerate(SIDES.records["retain"])]
    assert sides.read_sides({"forget": FORGET, "retain": same}, None).records["retain"] == same
