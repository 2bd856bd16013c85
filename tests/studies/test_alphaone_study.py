"""AlphaOne's study on a small scale: traces that are what they claim to be, a world that is stored, arms that measure."""

import itertools
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from equipoise.decoding import alphaone_world
from equipoise.decoding.alphaone_traces import ReadStep, lessons, read_steps, right, tasks, trace
from equipoise.decoding.alphaone_world import BUDGET, AlphaOneWorld
from equipoise.decoding.thinking import Intervention, Thought
from equipoise.studies import alphaone as study_file
from equipoise.study import registry
from study_recorder import Stopped, StudyRecorder

SMALL = {"steps": 3, "problems": 6, "calibrate": 4}


class Recorder(StudyRecorder):
    seed = 0

    def measure(self, outcome, value, *, of=1, at=None, where=None):
        super().measure(outcome, value, of=of, at=at or {}, where=where)

    def items(self, outcome, ids, scores, *, at=None, where=None):
        super().items(outcome, ids, scores, at=at or {}, where=where)

    def spend(self, *, phase="query", **amounts):
        super().spend(phase=phase, **amounts)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    study = registry.load("alphaone").build(**SMALL)
    first = Recorder(tmp_path_factory.mktemp("alphaone") / "prepared", study=study)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alphaone_world, "ROUNDS", 2)
        study_file.prepare(first)
    return study, first


def thought(text, closed=True):
    thinking, _, answer = text.partition("</think>")
    return Thought((), thinking, answer, 0, 0, closed, True, 0, ())


def test_traces_have_the_errors_and_the_waits_that_are_stated():
    generator = np.random.default_rng(0)
    first, again, early, whole, solved, waits, going_on = [], [], 0, [], [], [], []
    for task in tasks(2400, 3):
        given, written = trace(task, generator)
        text = given + written
        read = read_steps(task, thought(text))
        assert text.count("</think>") == 1 and "Wait" not in text.partition("</think>")[2]
        assert all(step.in_place for step in read)
        stated = int(re.findall(r"=([0-9])", text)[-1])
        assert text.endswith(f"#{stated}") and right(task, thought(text)) == (stated == task.values[-1])
        first.append(sum(not step.again for step in read))
        early += bool(given)
        assert not given or given.endswith("</think>\n")  # a line end, so that nothing is put between
        whole += [given.endswith("\n\n</think>\n")] if given else []
        solved.append(right(task, thought(text)))
        waits.append(text.count("Wait"))
        for paragraph in text.partition("</think>")[0].split("\n\n")[:-1]:
            steps = re.findall(r"([0-9])([+-])([0-9])=([0-9])", paragraph)
            wrong = [(int(a) + int(f"{sign}{b}")) % 10 != int(c) for a, sign, b, c in steps]
            (again if paragraph.startswith("Wait") else going_on).extend(wrong)
    assert np.mean(going_on) == pytest.approx(0.15, abs=0.012) and np.mean(again) == pytest.approx(0.05, abs=0.015)
    assert min(first) >= 4 and max(waits) == 5 and 0.5 < np.mean(waits) < 0.9
    assert early / 2400 == pytest.approx(0.25, abs=0.03) and 0.5 < np.mean(solved) < 0.65
    # Half of the early ends are behind a paragraph, the others at any token: some of them there, too.
    assert 0.5 < np.mean(whole) < 0.62
    # Writers differ: who waited once waits again.
    some = np.array(waits) > 0
    assert np.mean(np.array(waits)[some] > 1) > 1.3 * np.mean(some)


def test_a_wait_goes_back_as_far_as_the_problem_says_and_an_early_end_is_gone_on_from():
    generator, found = np.random.default_rng(1), {"step": [], "chain": []}
    cut_in_a_wait = cut_in_a_step = 0
    for task in tasks(3000, 4):
        thinking, _, answer = "".join(trace(task, generator)).partition("</think>\n")
        *paragraphs, rest = thinking.split("\n\n")
        for before, text in itertools.pairwise(paragraphs):
            if text.startswith("Wait"):
                letters = re.findall("[abcd]", text.removeprefix("Wait"))
                assert letters[-1] == re.findall("[abcd]", before)[-1]
                found[task.reach].append(letters)
        cut_in_a_wait += rest == "Wait"
        if rest == "Wait":
            assert answer[0] == (re.findall("[abcd]", paragraphs[-1])[-1] if task.reach == "step" else "a")
        if re.fullmatch("[bcd][0-9][+-]?", rest):
            cut_in_a_step += 1
            assert answer.startswith(rest)
    assert cut_in_a_wait and cut_in_a_step > 20
    assert {len(letters) for letters in found["step"]} == {1} and {len(each) for each in found["chain"]} == {1, 2, 3, 4}
    assert all(letters == list("abcd")[: len(letters)] for letters in found["chain"])


def test_steps_are_read_as_they_stand():
    (task, other) = tasks(2, 0)
    assert (
        (task.reach, other.reach) == ("step", "chain") and task.prompt.endswith(":\n") and other.prompt.endswith("?\n")
    )
    steps = ["".join([*task.due(place, task.values[place])[:1], str(task.values[place + 1])]) for place in range(4)]
    assert [step[1:] for step in steps] == list(task.problem.steps)
    plain = "".join(step + "\n\n" for step in steps) + f"</think>#{task.problem.answer}"
    assert right(task, thought(plain)) and not right(task, thought(plain, closed=False))
    assert [(s.again, s.in_place, s.right) for s in read_steps(task, thought(plain))] == [(False, True, True)] * 4
    assert not right(task, thought(plain[:-1] + str((int(plain[-1]) + 1) % 10)))
    assert not right(task, thought(plain.replace("#", "")))
    # A wait mends the first step, whose error the next one would have taken.
    said, value = task.due(0, task.values[0])
    wrong = f"{said}{(value + 1) % 10}"
    text = f"{wrong}\n\nWait{steps[0]}\n\n{steps[1]}</think>{steps[2]};{steps[3]}#{task.problem.answer}"
    read = read_steps(task, thought(text))
    assert [(s.again, s.in_place, s.right) for s in read] == [
        (False, True, False), (True, True, True), (False, True, True), (False, True, True), (False, True, True),
    ]  # fmt: skip
    # Without the wait the true second step takes a value that does not stand.
    read = read_steps(task, thought(f"{wrong}\n\n{steps[1]}\n\n</think>#0"))
    assert [(s.in_place, s.sound, s.right) for s in read] == [(True, False, False), (False, True, True)]
    # A step that is left out, one that cannot be read, and one that the end cuts off.
    read = read_steps(task, thought(f"{steps[0]}\n\n{steps[2]}\n\nxx\n\nd3</think>#0"))
    assert [(s.in_place, s.sound, s.right) for s in read] == [
        (True, True, True), (False, True, True), (False, False, False),
    ]  # fmt: skip
    # What follows soundly from a wrong value is not right.
    read = read_steps(
        task, thought(f"{wrong}\n\n{task.due(1, (value + 1) % 10)[0]}{(task.values[2] + 1) % 10}\n\n</think>#0")
    )
    assert [(s.in_place, s.sound, s.right) for s in read] == [(True, False, False), (True, True, False)]


def test_the_words_are_tokens_and_lessons_are_of_the_training_part():
    tokenizer = alphaone_world.untaught(0).tokenizer
    text = "7a+5?\na7+5=2\n\nWaita7+5=2\n\n</think>\n#2"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == 6 + 6 + 1 + 1 + 6 + 1 + 1 + 3 and tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids
    test = {task.id for task in tasks(400, 0, "test")}
    taught = lessons(300, 0)
    assert not test & {record.group for record in taught} and len({record.completion for record in taught}) > 250


@pytest.mark.parametrize("stop", [2, 4, 5])  # within a round, between two, and within the second
def test_a_preparation_that_was_killed_goes_on_as_if_it_had_not_been(stop, prepared, tmp_path, monkeypatch):
    study, first = prepared
    monkeypatch.setattr(alphaone_world, "CHECKPOINT", 1)
    monkeypatch.setattr(alphaone_world, "ROUNDS", 2)
    with pytest.raises(Stopped):
        study_file.prepare(Recorder(tmp_path / "killed", study=study, stop=stop))
    again = Recorder(tmp_path / "killed", study=study)
    study_file.prepare(again)
    weights = [(each.folder / "model" / "model.safetensors").read_bytes() for each in (first, again)]
    assert weights[0] == weights[1] and again.spent == first.spent
    stored = [json.loads((each.folder / "world.json").read_text()) for each in (first, again)]
    assert stored[0] == stored[1] and 0 < stored[0]["mean_thinking"] <= BUDGET


def test_teaching_ends_with_the_round_that_keeps_its_place(prepared, tmp_path, monkeypatch):
    study, first = prepared
    monkeypatch.setattr(alphaone_world, "taught", lambda steps: True)
    once = Recorder(tmp_path / "once", study=study)
    study_file.prepare(once)
    assert first.spent["taught_characters"] > 1.8 * once.spent["taught_characters"]  # two rounds, as the fixture has it
    taught = [lessons(96, 0, part) for part in range(2)]
    assert once.spent["taught_characters"] == sum(len(each.prompt) + len(each.completion) for each in taught[0])
    assert {each.completion for each in taught[0]} != {each.completion for each in taught[1]}


@pytest.mark.parametrize(
    ("astray", "unsound", "unsound_waits", "expected"),
    [(4, 140, 23, True), (5, 140, 23, False), (4, 145, 23, False), (4, 140, 25, False)],
)
def test_a_model_has_learnt_its_lessons(astray, unsound, unsound_waits, expected):
    """800 steps and 200 of waits: 5 of 1,000 may be astray, 144 and 24 unsound."""
    steps = [ReadStep(False, at >= astray, at >= unsound, True) for at in range(800)]
    steps += [ReadStep(True, at > 0, at >= unsound_waits, True) for at in range(200)]
    assert alphaone_world.taught(steps) is expected
    assert not alphaone_world.taught([step for step in steps if not step.again])  # nothing is known of its waits


@pytest.mark.parametrize("arm", ["alphaone", "base", "s1", "cap", "random", "increase", "fast-only"])
def test_an_arm_measures_what_is_declared(prepared, arm, tmp_path):
    study, first = prepared
    run = Recorder(tmp_path / "run", study=study, arm=arm, prepared=first.folder)
    study_file.think(run)
    measured = {key.split()[0] for key in run.measured}
    assert measured == {outcome.name for outcome in study.outcomes} and run.spent["prompts"] == 6
    assert run.spent["generated_tokens"] == round(run.measured["tokens {} {}"] * 6) <= 6 * BUDGET
    # Both halves of the problems make the whole, and so does the end of the path.
    path = {json.loads(key[9:-3])["within"]: value for key, value in run.measured.items() if "within" in key}
    halves = [run.measured["accuracy {} " + json.dumps({"reach": reach})] for reach in ("step", "chain")]
    assert list(path.values()) == sorted(path.values()) and path[BUDGET] == pytest.approx(np.mean(halves))
    if arm in ("base", "cap", "fast-only"):
        assert run.last("inserted") == 0


def test_arms_are_the_controls_that_they_say(prepared):
    study, first = prepared
    world = AlphaOneWorld.open(0, first.folder, 4)
    made = {arm.name: world.control(**arm.points()[0]) for arm in study.arms}
    moment = 1.4 * world.mean_thinking
    assert made["alphaone"].moment == made["cap"].moment == made["random"].moment == pytest.approx(moment)
    assert (
        made["alpha-2"].moment == pytest.approx(2 * world.mean_thinking) and made["random"].expected == world.expected
    )
    assert [made[name].kind for name in ("alphaone", "increase", "fast-only")] == ["linear", "increase", "constant"]
    assert not made["slow-only"].force_end and made["s1"].times == 2
    assert len({json.dumps(arm.points()[0], sort_keys=True) for arm in study.arms}) == len(study.arms)


def test_what_an_arm_measures_is_counted_from_its_thoughts(tmp_path, monkeypatch):
    """By loops over the thoughts: right within so many tokens, whether it ended, which words are the model's own."""
    study = registry.load("alphaone").build(**SMALL)
    asked, generator = tasks(6, 11), np.random.default_rng(3)
    texts = ["".join(trace(task, generator)) for task in asked]
    texts[1] = texts[1][:-1] + str((int(texts[1][-1]) + 1) % 10)  # another answer than was thought
    waits = [text.count("Wait") for text in texts]
    assert sum(waits) > 1 and len(set(waits)) > 1
    lengths = [30, 41, 60, 61, 120, BUDGET]
    word = Intervention(0, "word", 1.0, 0.5, True)
    thoughts = [
        replace(thought(text), ids=(7,) * (said + 1) + (9,), thinking_tokens=long - 2, answer_tokens=2, trace=(word,))
        for text, said, long in zip(texts, waits, lengths, strict=True)
    ]
    thoughts[4] = replace(thoughts[4], ids=(7, 9, 9), ended=False)
    world = SimpleNamespace(tasks=asked, control=lambda **_: SimpleNamespace(word=(7,), closing=(9,)))
    world.think = lambda control: thoughts
    monkeypatch.setattr(AlphaOneWorld, "open", lambda *_: world)
    run = Recorder(tmp_path, study=study, arm="alphaone", prepared=tmp_path)
    itemised = []
    monkeypatch.setattr(
        run, "items", lambda name, *given, **at: (itemised.append((name, at)), Recorder.items(run, name, *given, **at))
    )
    study_file.think(run)
    solved = [right(task, each) for task, each in zip(asked, thoughts, strict=True)]
    assert 0 < sum(solved) < 6
    for most in (40, 50, 60, 80, 100, 140, 180, BUDGET):
        spent = sum(min(long, most) for long in lengths)
        key = f"accuracy {json.dumps({'within': most, 'generated_tokens': spent})} {{}}"
        in_time = sum(ok and long <= most for ok, long in zip(solved, lengths, strict=True))
        assert run.measured[key] == pytest.approx(in_time / 6)
        at = {"at": {"within": most, "generated_tokens": spent}}
        assert (("accuracy", at) in itemised) is (most == BUDGET)  # items once, where the path ends
    assert run.last("tokens") == pytest.approx(np.mean(lengths[1::2])) and run.last("spent") == pytest.approx(1 / 6)
    assert run.measured["tokens {} {}"] == pytest.approx(np.mean(lengths))
    assert run.last("thinking_tokens") == pytest.approx(np.mean(lengths) - 2) and run.last("inserted") == 1
    own = [each.ids.count(7) - 1 for each in thoughts]
    assert run.last("spontaneous") == pytest.approx(np.mean(own)) and run.last("closed_once") == pytest.approx(5 / 6)
    steps = [step for task, each in zip(asked, thoughts, strict=True) for step in read_steps(task, each)]
    assert run.last("step_right") == pytest.approx(np.mean([step.right for step in steps if not step.again]))
    assert run.last("wait_right") == pytest.approx(np.mean([step.right for step in steps if step.again]))
    assert run.spent == {"prompts": 6, "generated_tokens": sum(lengths)}
