"""Both jobs from end to end on a small model: teachers written and read, a student that any PEFT loads, what is refused."""

import dataclasses
import json
import shutil

import pytest
import torch
from torch.testing import assert_close

from bayes_world import CLASSES, WORDS, bare, prompts
from equipoise import uncertainty
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.data.records import Record
from equipoise.language import adapters
from equipoise.language.encode import encode
from equipoise.language.model import load
from equipoise.uncertainty import teachers
from equipoise.uncertainty.bayes_result import MLE, STUDENT, TEACHER, TEMPERATURE
from equipoise.uncertainty.calibration_cards import negative_log_likelihoods
from equipoise.uncertainty.class_logits import class_logits, read_prompts
from equipoise.uncertainty.ensemble import Ensemble

PLAIN = {"chat_template": "none"}


def rows(n=24, seed=0):
    texts, labels = prompts(n, seed)
    pairs = zip(texts, labels, strict=True)
    return [{"id": f"{seed}-{i}", "prompt": text, "answer": CLASSES[label]} for i, (text, label) in enumerate(pairs)]


def write_adapter(base, folder, seed=0, scale=0.4, targets=("q_proj", "v_proj")):
    """An adapter whose B is drawn, of the base in that folder."""
    lm = adapters.attach(load(base, **PLAIN), 4, 8.0, list(targets), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for own in adapters.adapted_maps(lm).values():
            b = adapters.factors(own)[1]
            b.copy_(scale * torch.randn(b.shape, generator=generator))
    adapters.export(lm, folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bayes")
    bare().save(folder / "base")
    bare(1).save(folder / "other")
    write_adapter(folder / "base", folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def made(place):
    options = {"test": rows(80, 1), "draws": 3, "sigma_high": 0.1, **PLAIN}
    return uncertainty.bayesianize(place / "adapter", inputs=rows(), **options, out=place / "teacher")


@pytest.fixture(scope="module")
def student(place, made):
    options = {"test": rows(80, 1), "steps": 60, "learning_rate": 5e-3, "rank": 3, **PLAIN}
    return uncertainty.distill(place / "teacher", inputs=rows(), **options, out=place / "student")


def test_a_teacher_is_written_beside_its_adapter(place, made):
    assert made.classes == tuple(sorted(CLASSES)) and made.passes == 3
    assert 0 < made.sigma <= 0.1 and dict(made.tried)[0.1] >= 0
    folder = place / "teacher"
    assert teachers.load(folder).sigma == made.sigma
    assert (folder / "adapter_model.safetensors").is_file() and (folder / "report.html").is_file()
    assert set(made.tested.cards) == {MLE, TEMPERATURE, TEACHER}
    assert made.tested.fitted_on == 20 and made.tested.cards[MLE].n == 60
    seen = {row["prompt"] for row in rows()}
    count = sum(row["prompt"] in seen for row in rows(80, 1))
    assert made.notes == (f"{count} of the 80 prompts to test on are among the inputs: leave them out.",)


def test_a_student_is_an_ordinary_adapter(place, student):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = place / "student"
    inputs = read_prompts(load(place / "base", **PLAIN), [row["prompt"] for row in rows()], sorted(CLASSES))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place / "base"), folder).merge_and_unload()
    merged = load(folder, **PLAIN)
    ours = class_logits(merged, inputs)
    with torch.no_grad():
        ids = torch.tensor([inputs.rows[0]])
        assert_close(theirs(ids).logits[0, -1, list(inputs.class_ids)].double(), ours[0], atol=1e-4, rtol=0)
    assert student.gap <= 1e-4
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 3
    assert student.divergence["after"] < 0.5 * student.divergence["before"]
    lines = [json.loads(line) for line in (folder / "targets.jsonl").read_text().splitlines()]
    assert sum(len(line["targets"]) for line in lines) == 24


def test_the_report_has_every_prediction_with_its_measures(place, student):
    cards = student.tested.cards
    assert list(cards) == [MLE, TEMPERATURE, TEACHER, STUDENT]
    assert [card.passes for card in cards.values()] == [1, 1, 3, 1]
    for card in cards.values():
        assert sum(each.count for each in card.bins) == card.n == 60
        assert 0 <= card.ece.lower <= card.ece.value <= card.ece.upper
        gap = sum(each.count * abs(each.confidence - each.accuracy) for each in card.bins if each.count) / 60
        assert card.ece.value == pytest.approx(gap, abs=1e-9)
    assert cards[TEACHER].to_teacher == 0 and cards[MLE].gains["nll"].value == 0
    difference = cards[MLE].nll.value - cards[STUDENT].nll.value
    assert cards[STUDENT].gains["nll"].value == pytest.approx(difference, abs=1e-9)
    assert cards[TEMPERATURE].accuracy == cards[MLE].accuracy
    page = (place / "student" / "report.html").read_text(encoding="utf-8")
    for word in ("Reliability", "NLL", "BRIER", "ECE", TEMPERATURE):
        assert word in page


def test_a_finished_folder_is_read_again_and_a_stopped_one_goes_on(place, made, tmp_path, monkeypatch):
    from equipoise.uncertainty import bayes_work

    options = {"inputs": rows(), "steps": 8, **PLAIN}
    whole = uncertainty.distill(place / "teacher", **options, out=tmp_path / "whole")
    monkeypatch.setattr(bayes_work, "EVERY", 4)
    kept = bayes_work.save_state

    def stop(path, state):
        kept(path, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(bayes_work, "save_state", stop)
        with pytest.raises(KeyboardInterrupt):
            uncertainty.distill(place / "teacher", **options, out=tmp_path / "again")
    again = uncertainty.distill(place / "teacher", **options, out=tmp_path / "again")
    assert again.divergence == whole.divergence and again.tested is None
    names = ("adapter_model.safetensors", "targets.jsonl", "adapter_config.json")
    assert all((tmp_path / "whole" / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in names)
    assert uncertainty.distill(place / "teacher", **options, out=tmp_path / "again").divergence == whole.divergence


@pytest.mark.parametrize("teacher", ["laplace", "ensemble", "mc-dropout", "blob"])
def test_other_teachers(place, tmp_path, teacher):
    adapter, more = place / "adapter", {}
    if teacher == "laplace":
        adapter = write_adapter(place / "base", tmp_path / "head", targets=("q_proj", "lm_head"))
    if teacher == "ensemble":
        more = {"members": (write_adapter(place / "base", tmp_path / "second", seed=3),)}
    if teacher == "blob":
        more = {"steps": 3}
    done = uncertainty.bayesianize(
        adapter, inputs=rows(), teacher=teacher, draws=2, **more, **PLAIN, out=tmp_path / "t"
    )
    found = teachers.load(tmp_path / "t")
    assert found.kind == teacher == done.kind and found.passes == done.passes == (1 if teacher == "laplace" else 2)
    if isinstance(found, Ensemble):
        second = adapters.attach_saved(load(place / "base", **PLAIN), tmp_path / "second")
        for name, pair in teachers.own_factors(second).items():
            assert all(a.equal(b) for a, b in zip(pair, found.members[1][name], strict=True))
        # Another adapter under the same name is no member of the teacher that is there.
        shutil.rmtree(tmp_path / "second")
        write_adapter(place / "base", tmp_path / "second", seed=4)
        with pytest.raises(BadInput, match="another content of member 2"):
            uncertainty.bayesianize(
                adapter, inputs=rows(), teacher=teacher, draws=2, **more, **PLAIN, out=tmp_path / "t"
            )


def test_what_is_refused(place, made, tmp_path):
    def refused(match, adapter=place / "adapter", inputs=None, **more):
        with pytest.raises(BadInput, match=match):
            uncertainty.bayesianize.plan(adapter, inputs=inputs or rows(), **PLAIN | more)

    refused(r"is of the base .*base, not of .*other", model=place / "other")
    refused("holds no adapter_config.json", adapter=place / "base")
    refused(r"The class '\\none' is not one token", classes=("\none", " two", " three"))
    refused("none of the classes", classes=(" one", " two"))
    refused("give --classes", inputs=[{"prompt": word} for word in WORDS])
    refused("takes further adapters with members", teacher="ensemble")
    refused("no gold answer", inputs=[{"prompt": "yes"}], classes=CLASSES, teacher="blob")
    refused("must be below", sigma_low=0.1)
    with pytest.raises(BadInput, match="lm_head among its target modules"):
        uncertainty.bayesianize(place / "adapter", inputs=rows(), teacher="laplace", **PLAIN)
    with pytest.raises(BadInput, match=r"holds no posterior\.safetensors"):
        uncertainty.distill.plan(place / "adapter", inputs=rows(), **PLAIN)
    with pytest.raises(BadInput, match="without the chat template"):
        uncertainty.distill.plan(place / "teacher", inputs=rows())
    other = load(place / "other", **PLAIN)
    other.origin = None
    with pytest.raises(BadInput, match="made on another base"):
        uncertainty.distill.plan(place / "teacher", inputs=rows(), model=other, **PLAIN)


def test_labels_follow_a_prompt_as_completions_that_are_taught_do(place, tmp_path):
    """A blank between, so that the classes are the tokens that an adapter was taught; a line's end stands for it."""
    bare_labels = [{**row, "answer": row["answer"].strip()} for row in rows()]
    asked = {"draws": 2, "sigma_high": 0.05, **PLAIN}
    plan = uncertainty.bayesianize.plan(place / "adapter", inputs=bare_labels, **asked)
    assert plan.classes == tuple(sorted(CLASSES))
    lm = load(place / "base", **PLAIN)
    taught = encode(lm, [Record("a", bare_labels[0]["prompt"], bare_labels[0]["answer"])], max_length=64)[0]
    classes = read_prompts(lm, [bare_labels[0]["prompt"]], plan.classes).class_ids
    assert classes[plan.classes.index(rows()[0]["answer"])] in taught.input_ids
    with pytest.raises(BadInput, match="Some prompts end in white space"):
        mixed = [{**row, "prompt": row["prompt"] + "\n" * (place % 2)} for place, row in enumerate(bare_labels)]
        uncertainty.bayesianize.plan(place / "adapter", inputs=mixed, **asked)
    folder = uncertainty.bayesianize(place / "adapter", inputs=bare_labels, **asked, out=tmp_path / "teacher").folder
    assert uncertainty.distill.plan(folder, inputs=bare_labels, **PLAIN).classes == plan.classes


def test_a_teacher_is_of_one_template(place, tmp_path):
    templates = {}
    for name, mark in {"one": "Q:", "two": "A:"}.items():
        templates[name] = tmp_path / f"{name}.jinja"
        templates[name].write_text(
            "{% for m in messages %}{% if m['role'] == 'user' %}" + mark + "{% endif %}{{ m['content'] }}{% endfor %}"
        )
    asked = {"inputs": rows(), "classes": CLASSES, "draws": 2, "sigma_high": 0.05}
    one, two = map(str, templates.values())
    folder = uncertainty.bayesianize(place / "adapter", **asked, chat_template=one, out=tmp_path / "teacher").folder
    uncertainty.distill.plan(folder, inputs=rows(), chat_template=one)
    with pytest.raises(BadInput, match="another template"):
        uncertainty.distill.plan(folder, inputs=rows(), chat_template=two)
    templates["one"].write_text(templates["two"].read_text())
    with pytest.raises(BadInput, match="another content of chat_template"):
        uncertainty.bayesianize(place / "adapter", **asked, chat_template=one, out=tmp_path / "teacher")


def test_a_model_that_was_given_has_no_adapter_afterwards(place, made):
    lm = load(place / "base", **PLAIN)
    inputs = read_prompts(lm, [row["prompt"] for row in rows(4)], CLASSES)
    before = class_logits(lm, inputs)
    uncertainty.bayesianize.plan(place / "adapter", inputs=rows(), model=lm)
    uncertainty.bayesianize(place / "adapter", inputs=rows(), model=lm, draws=2)
    uncertainty.distill.plan(place / "teacher", inputs=rows(), model=lm)
    assert not hasattr(lm.model, "peft_config") and class_logits(lm, inputs).equal(before)
    done = uncertainty.distill(place / "teacher", inputs=rows(), model=lm, steps=2)
    assert adapters.detach(done.student) and class_logits(lm, inputs).equal(before)


def stopped(place, folder, monkeypatch, inputs, out):
    """A distillation that is killed when its targets are stored."""
    from equipoise.uncertainty import bayes_work

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(bayes_work, "distill", stop)
        with pytest.raises(KeyboardInterrupt):
            uncertainty.distill(folder, inputs=inputs, steps=2, **PLAIN, out=out)


@pytest.mark.parametrize("changed", ["rows", "adapter_config.json", "teacher.json"])
def test_stored_targets_are_not_those_of_other_inputs_or_of_another_teacher(
    place, made, tmp_path, monkeypatch, changed
):
    folder, inputs = shutil.copytree(place / "teacher", tmp_path / "teacher"), rows()
    stopped(place, folder, monkeypatch, inputs, tmp_path / "student")
    if changed == "rows":
        inputs = [row | {"prompt": other["prompt"]} for row, other in zip(rows(), rows(24, 5), strict=True)]
    else:
        stated = json.loads((folder / changed).read_text())
        other = {"lora_alpha": 80, "classes": stated.get("classes", [])[::-1]}
        (folder / changed).write_text(json.dumps(stated | {name: other[name] for name in other if name in stated}))
    with pytest.raises(BadInput):
        uncertainty.distill(folder, inputs=inputs, steps=2, **PLAIN, out=tmp_path / "student")


def test_training_of_a_teacher_goes_on_with_the_same_base_alone(place, tmp_path, monkeypatch):
    """The folder of the base may hold other weights under the same name by then."""
    from equipoise.uncertainty import bayes_work

    base = shutil.copytree(place / "base", tmp_path / "base")
    options = {"inputs": rows(), "teacher": "blob", "steps": 6, "draws": 2, "model": base, **PLAIN}
    adapter = write_adapter(base, tmp_path / "adapter")
    whole = uncertainty.bayesianize(adapter, **options, out=tmp_path / "whole")
    monkeypatch.setattr(bayes_work, "EVERY", 3)
    monkeypatch.setattr("equipoise.core.job.model_files_digest", lambda path: "")  # as of a name of the hub
    kept = bayes_work.save_state

    def stop(path, state):
        kept(path, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(bayes_work, "save_state", stop)
        for out in ("again", "other"):
            with pytest.raises(KeyboardInterrupt):
                uncertainty.bayesianize(adapter, **options, out=tmp_path / out)
    assert uncertainty.bayesianize(adapter, **options, out=tmp_path / "again").confidence == whole.confidence
    weights = (tmp_path / "whole" / teachers.POSTERIOR).read_bytes()
    assert (tmp_path / "again" / teachers.POSTERIOR).read_bytes() == weights
    shutil.copyfile(place / "other" / "model.safetensors", base / "model.safetensors")
    with pytest.raises(BadInput, match="not the base that this training was begun on"):
        uncertainty.bayesianize(adapter, **options, out=tmp_path / "other")


def refusal(folder, plan=True, **options):
    job = uncertainty.bayesianize.plan if plan else uncertainty.bayesianize
    with pytest.raises((BadInput, WorkFailed)) as told:
        job(folder, **{"inputs": rows(), **PLAIN, **options})
    return str(told.value)


def test_the_plan_refuses_what_the_run_would(place, tmp_path):
    assert "Every B" in refusal(write_adapter(place / "base", tmp_path / "zero", scale=0.0))
    assert "output matrix" in refusal(place / "adapter", teacher="laplace")
    other = write_adapter(place / "base", tmp_path / "other", targets=("q_proj", "k_proj"))
    assert "other maps" in refusal(place / "adapter", teacher="ensemble", members=(other,))
    assert "one and the same" in refusal(place / "adapter", teacher="ensemble", members=(place / "adapter",))
    assert "white space" in refusal(place / "adapter", classes=(" one", "one", " two", " three"))
    assert "4 or more" in refusal(place / "adapter", test=rows(3, 1))


def test_numbers_that_cannot_be_are_refused_and_draws_without_effect_are_told(place, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(place / "adapter", tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    assert "not finite" in refusal(folder, plan=False)
    still = uncertainty.bayesianize(place / "adapter", inputs=rows(), teacher="mc-dropout", dropout=0.0, **PLAIN)
    assert "draws change nothing" in still.headline()


def test_a_temperature_that_nothing_decides_is_told_and_keeps_the_nll_finite(made):
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert negative_log_likelihoods(p, torch.tensor([1, 0])).tolist() == pytest.approx([708.4, 708.4], abs=0.1)
    edge = dataclasses.replace(made, tested=dataclasses.replace(made.tested, temperature=0.01000001))
    assert "end of its range" in edge.headline() and "end of its range" not in made.headline()


@pytest.mark.parametrize("moment", ["targets", "distill"])
def test_a_model_given_as_an_object_is_bare_again_when_the_work_is_stopped(place, made, monkeypatch, moment):
    from equipoise.uncertainty import bayes_work

    def stop(*_, **__):
        raise KeyboardInterrupt

    given = {"inputs": rows(), "model": load(place / "base", **PLAIN), "steps": 2}
    with monkeypatch.context() as patched:
        patched.setattr(bayes_work, moment, stop)
        with pytest.raises(KeyboardInterrupt):
            uncertainty.distill(place / "teacher", **given)
    assert uncertainty.distill(place / "teacher", **given).steps == 2


def test_the_plan_counts_the_passes_of_laplace(place, tmp_path, monkeypatch):
    from equipoise.uncertainty.class_logits import Prompts

    head = write_adapter(place / "base", tmp_path / "head", targets=("q_proj", "lm_head"))
    given = {"inputs": rows(), "test": rows(8, 1), "teacher": "laplace", **PLAIN}
    planned, read, count = uncertainty.bayesianize.plan(head, **given).passes, Prompts.batch, 0

    def counted(self, indices, device):
        nonlocal count
        count += len(indices)
        return read(self, indices, device)

    monkeypatch.setattr(Prompts, "batch", counted)
    uncertainty.bayesianize(head, **given)
    assert count == planned == 24 * 3 + 8 * 2


@pytest.mark.parametrize(
    ("more", "passes", "steps"),
    [
        ({"draws": 3}, 24 * (3 * 12 + 1) + (24 + 8) * 4, 0),
        ({"draws": 3, "anchors": 10}, 10 * (3 * 12 + 1) + (24 + 8) * 4, 0),
        ({"draws": 3, "test": None}, 24 * (3 * 12 + 1) + 24 * 4, 0),
        ({"teacher": "mc-dropout", "draws": 2}, (24 + 8) * 3, 0),
        ({"teacher": "blob", "draws": 2, "steps": 9}, (24 + 8) * 3, 9),
    ],
)
def test_plans_of_teachers_by_hand(place, more, passes, steps):
    given = {"inputs": rows(), "test": rows(8, 1), **PLAIN}
    plan = uncertainty.bayesianize.plan(place / "adapter", **(given | more))
    assert (plan.passes, plan.steps, plan.inputs) == (passes, steps, 24)
    assert plan.tested == (8 if more.get("test", 8) else 0)
    assert plan.shown.endswith(rows()[0]["prompt"])


def test_plans_of_ensembles_and_students_by_hand(place, made, tmp_path):
    members = tuple(write_adapter(place / "base", tmp_path / str(seed), seed=seed) for seed in (3, 4))
    given = {"inputs": rows(), "test": rows(8, 1), **PLAIN}
    plan = uncertainty.bayesianize.plan(place / "adapter", **given, teacher="ensemble", members=members)
    assert plan.passes == (24 + 8) * (3 + 1)
    plan = uncertainty.distill.plan(place / "teacher", **given, steps=70)
    assert (plan.passes, plan.steps, plan.tested) == ((24 + 8) * (3 + 2), 70, 8)
    assert plan.what == "Teacher: tfb, 3 passes; student: forward"


def test_a_student_of_another_rank_has_the_teacher_s_scale(place, student):
    stated = json.loads((place / "student" / "adapter_config.json").read_text())
    assert (stated["r"], stated["lora_alpha"], len(stated["target_modules"])) == (3, 6, 4)
    assert student.steps == 60 and student.teacher_passes == 3 and student.inputs == 24
    assert student.settings["label_weight"] == 0 and student.settings["divergence"] == "forward"
