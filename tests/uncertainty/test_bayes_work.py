"""Parts of both jobs without a model: rows read, adapters told apart, inputs that fit the temperature."""

import hashlib
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.streams import torch_stream
from equipoise.data.records import Renamed
from equipoise.training.loop import TrainerSettings
from equipoise.uncertainty import bayes_work
from equipoise.uncertainty.bayes_job import StudentSettings, TeacherSettings
from equipoise.uncertainty.bayes_result import MLE, TEACHER, TEMPERATURE
from equipoise.uncertainty.calibration_cards import cards
from equipoise.uncertainty.temperature_scaling import temperature

CLASSES = (" one", " two", " three")


def read(rows, classes=CLASSES, needed=True):
    return bayes_work.read_labelled(rows, classes, limit=None, fields=None, needed=needed, renamed=Renamed(None))


def row(name, answer=None):
    return {"id": name, "prompt": f"Say {name}", **({} if answer is None else {"answer": answer})}


def test_labels_are_places_of_classes_but_for_white_space():
    given = [row("a", "two"), row("b", "\nthree "), row("c", " one")]
    found = read(given)
    assert found.labels == [1, 2, 0] and found.ids == ["a", "b", "c"] and found.name == "rows"
    assert found.prompts == ["Say a", "Say b", "Say c"]
    words = json.dumps([["a", "Say a", ["two"]], ["b", "Say b", ["\nthree "]], ["c", "Say c", [" one"]]])
    assert found.digest == hashlib.sha256(words.encode()).hexdigest()
    assert read([row("a"), row("b", "two")], needed=False).labels == [None, 1]
    with pytest.raises(BadInput, match="'four' of 'a' is none of the classes"):
        read([row("a", "four")])
    with pytest.raises(BadInput, match="differ in white space alone"):
        read(given, (" one", "one\n", " two", " three"))


def test_four_labelled_prompts_to_test_on_are_enough():
    def tested(rows):
        return bayes_work.read_tested(rows, CLASSES, None, Renamed(None))

    assert tested(None) is None
    assert tested([row(str(place), "two") for place in range(4)]).labels == [1] * 4
    with pytest.raises(BadInput, match="There are 3 labelled prompts to test on, of which one in 4"):
        tested([row(str(place), "two") for place in range(3)])
    with pytest.raises(BadInput, match="gold"):
        tested([row(str(place)) for place in range(5)])


def test_classes_are_the_labels_that_occur():
    def named(rows):
        return bayes_work.named_classes(rows, limit=None, fields=None, renamed=Renamed(None))

    assert named([row("a", "two"), row("b"), row("c", "one"), row("d", "two")]) == ("one", "two")
    with pytest.raises(BadInput, match="no two different labels"):
        named([row("a", "two"), row("b", "two")])


def adapter(folder, **stated):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **stated}))
    return folder


def test_what_is_no_plain_adapter_is_refused(tmp_path):
    plain = {"use_dora": False, "bias": "none", "modules_to_save": None, "r": 4}
    assert bayes_work.adapter_configuration(adapter(tmp_path / "plain", **plain))["r"] == 4
    assert bayes_work.adapter_configuration(adapter(tmp_path / "few", r=2)) == {"peft_type": "LORA", "r": 2}
    for stated, words in (
        ({"use_dora": True}, "with use_dora True"),
        ({"bias": "all"}, "with bias 'all'"),
        ({"modules_to_save": ["embed"]}, "with modules_to_save"),
        ({"peft_type": "IA3"}, "of the kind IA3, expected LORA"),
    ):
        with pytest.raises(BadInput, match=words):
            bayes_work.adapter_configuration(adapter(tmp_path / words[-4:], **stated))
    broken = adapter(tmp_path / "broken")
    (broken / "adapter_config.json").write_text("[")
    with pytest.raises(BadInput, match="cannot be read"):
        bayes_work.adapter_configuration(broken)
    (broken / "adapter_model.safetensors").unlink()
    with pytest.raises(BadInput, match="safe_serialization"):
        bayes_work.adapter_configuration(broken)


def test_a_base_is_the_same_by_name_or_as_one_folder(tmp_path):
    base, other = tmp_path / "base", tmp_path / "other"
    base.mkdir()
    other.mkdir()
    (tmp_path / "link").symlink_to(base)
    assert bayes_work.same_base(None, "x") and bayes_work.same_base("", "x") and bayes_work.same_base("x", None)
    assert bayes_work.same_base("hub/x", "hub/x") and not bayes_work.same_base("hub/x", "hub/y")
    assert bayes_work.same_base(str(base), tmp_path / "link") and not bayes_work.same_base(str(base), other)
    assert not bayes_work.same_base("hub/x", base)
    with pytest.raises(BadInput, match="is of the base hub/x, not of hub/y"):
        bayes_work.check_base(tmp_path, "hub/x", "hub/y")


def labelled(labels, prompts=()):
    return SimpleNamespace(labels=labels, prompts=prompts, problems=labels)


def test_one_input_in_four_fits_the_temperature_and_the_others_are_tested_on():
    generator = torch.Generator().manual_seed(0)
    n = 43
    labels = torch.randint(0, 3, (n,), generator=generator)
    logits = torch.randn(n, 3, generator=generator, dtype=torch.float64) + 2 * torch.eye(3)[labels]
    teacher = torch.randn(n, 3, generator=generator, dtype=torch.float64).softmax(-1)
    request = SimpleNamespace(test=labelled(labels.tolist()))
    found = bayes_work._Bayes.test_on(request, None, logits, {TEACHER: teacher}, {TEACHER: 7}, 5)
    order = torch.randperm(n, generator=torch_stream(5, 42))
    t = temperature(logits[order[:10]], labels[order[:10]])
    assert found.temperature == t and found.fitted_on == 10
    rest = order[10:]
    every = {MLE: logits.softmax(-1), TEMPERATURE: (logits / t).softmax(-1), TEACHER: teacher}
    due = cards(
        {name: p[rest] for name, p in every.items()}, {MLE: 1, TEMPERATURE: 1, TEACHER: 7}, labels[rest], seed=5
    )
    assert str(found.cards) == str(due) and found.cards[MLE].n == 33
    assert bayes_work._Bayes.test_on(SimpleNamespace(test=None), None, logits, {}, {}, 5) is None


def test_prompts_to_test_on_that_are_among_the_inputs_are_counted():
    def overlap(inputs, tested):
        request = SimpleNamespace(labelled=labelled([], inputs), test=tested and labelled(tested, tested))
        return bayes_work._Bayes.overlap(request)

    assert overlap(["a", "b"], None) == [] == overlap(["a", "b"], ["c"])
    assert overlap(["a", "b"], ["b", "c", "a"]) == [
        "2 of the 3 prompts to test on are among the inputs: leave them out."
    ]
    assert overlap(["a"], ["a"])[0].startswith("1 of the 1 prompts")


def test_anchors_are_drawn_by_the_seed_and_read_in_order():
    def anchors(n, amount, seed=3):
        request = SimpleNamespace(labelled=labelled([0] * n), settings=SimpleNamespace(seed=seed, anchors=amount))
        return bayes_work.Bayesianizing._anchors(request)

    assert anchors(20, 6) == sorted(torch.randperm(20, generator=torch_stream(3, 43))[:6].tolist())
    assert anchors(5, 500) == [0, 1, 2, 3, 4] and anchors(20, 6, seed=4) != anchors(20, 6)


@pytest.mark.parametrize("settings", [TeacherSettings, StudentSettings])
def test_teachers_and_students_are_trained_alike(settings):
    given = settings(steps=7, learning_rate=2e-4, train_batch_size=3, seed=5)
    assert bayes_work._trainer(given) == TrainerSettings(
        steps=7, learning_rate=2e-4, batch_size=3, warmup_ratio=0.06, epsilon=1e-6, seed=5
    )


def test_factors_of_a_member_are_read_by_map(tmp_path):
    from safetensors.torch import save_file

    a, b = torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(4, 2)
    key = "base_model.model.model.layers.0.q_proj.lora_{}.weight"
    save_file({key.format("A"): a, key.format("B"): b}, tmp_path / "adapter_model.safetensors")
    found = bayes_work._factors(tmp_path)
    assert list(found) == ["model.layers.0.q_proj"]
    own_a, own_b = found["model.layers.0.q_proj"]
    assert own_a.dtype == torch.float32
    assert_close(own_a, torch.ones(2, 3))
    assert_close(own_b, b)
    save_file({key.format("A"): a}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(BadInput, match="has no 'B' for one of its maps"):
        bayes_work._factors(tmp_path)


def test_the_confidence_is_the_mean_largest_probability():
    p = torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0]])
    assert bayes_work._confidence(p) == pytest.approx(0.7)


def test_labels_follow_a_blank_where_no_prompt_ends_in_a_line():
    base = SimpleNamespace(uses_chat_template=False)

    def classes(prompts, named=False):
        request = SimpleNamespace(named=named, classes=("a", " b", "\nc"), labelled=labelled([], prompts))
        return bayes_work.Bayesianizing.classes_of(request, base)

    assert classes(["x", "y "]) == (" a", " b", "\nc")
    assert classes(["x\n", "y\t "]) == ("a", " b", "\nc") == classes(["x", "y\n"], named=True)
    base.uses_chat_template = True
    assert classes(["x"]) == ("a", " b", "\nc")
    base.uses_chat_template = False
    with pytest.raises(BadInput, match="Some prompts end in white space"):
        classes(["x", "two words\n"])


@pytest.mark.parametrize("classes", [None, ("two", "one")])
def test_a_request_tells_whether_its_classes_were_named(tmp_path, classes):
    folder = adapter(tmp_path / "adapter", r=4)
    given = [row("a", "two"), row("b", "one")]
    found = bayes_work.Bayesianizing.read(
        folder,
        given,
        model=None,
        teacher="laplace",
        classes=classes,
        test=None,
        members=None,
        limit=None,
        fields=None,
        batch_size=3,
        loading={"date": None},
        settings=TeacherSettings(),
    )
    assert found.named is (classes is not None) and found.classes == (classes or ("one", "two"))
    assert found.labelled.labels == ([0, 1] if classes else [1, 0]) and found.test is None and found.members == ()
    assert found.names == {"adapter": str(folder), "inputs": "rows", "test": "none"}
    assert found.inputs.keys() == {"inputs", "adapter", "adapter's configuration"}
    assert found.resolved["classes"] == list(found.classes) and found.resolved["date"] == found.loading["date"]


@pytest.mark.parametrize(("count", "read"), [(40, 32), (5, 5)])
def test_a_student_that_was_written_is_read_again_on_its_first_inputs(monkeypatch, tmp_path, count, read):
    asked, apart = [], [0.0]
    student = SimpleNamespace(reload=lambda folder: f"of {folder.name}", model=SimpleNamespace(dtype=torch.float32))
    logits = torch.arange(2.0 * count).view(count, 2).double()

    def again(model, inputs, *, batch_size, indices):
        asked.append((model, batch_size, list(indices)))
        found = logits[list(indices)].clone()
        found[-1, 0] -= apart[0]
        return found

    monkeypatch.setattr(bayes_work.adapters, "export", lambda model, folder: asked.append((model, folder)))
    monkeypatch.setattr(bayes_work, "class_logits", again)
    request = SimpleNamespace(batch_size=7)

    def written():
        return bayes_work.Distilling._written(request, student, range(count), logits, tmp_path)

    assert written() == 0.0
    assert asked == [(student, tmp_path), (f"of {tmp_path.name}", 7, list(range(read)))]
    for dtype, most in ((torch.float32, 1e-4), (torch.float64, 1e-6), (torch.bfloat16, 0.05)):
        student.model.dtype = dtype
        apart[0] = 0.9 * most
        assert written() == pytest.approx(0.9 * most, rel=1e-6)
        for apart[0] in (1.1 * most, math.nan):
            with pytest.raises(WorkFailed, match="was not given its name"):
                written()


def test_a_student_has_the_teacher_s_rank_and_scale_unless_told_otherwise(monkeypatch, tmp_path):
    folder, asked = adapter(tmp_path / "adapter", r=4, lora_alpha=12), []
    monkeypatch.setattr(bayes_work.adapters, "adapted_maps", lambda model: {"q": 1, "v": 2})
    monkeypatch.setattr(bayes_work.adapters, "detach", lambda model: "bare")
    monkeypatch.setattr(bayes_work.adapters, "attach", lambda *given, **how: asked.append((*given, how)))
    for rank in (None, 2):
        request = SimpleNamespace(adapter=folder, rank=rank, settings=SimpleNamespace(seed=5))
        bayes_work.Distilling._student(request, "model")
    assert asked == [("bare", 4, 12.0, ["q", "v"], {"seed": 5}), ("bare", 2, 6.0, ["q", "v"], {"seed": 5})]
