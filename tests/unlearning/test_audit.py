"""The audit of forgetting on models whose state is known: what came back is counted right, under every kind of attack."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chat_models import untaught, write_gguf
from equipoise.core.errors import BadInput
from equipoise.data.records import Record, read_records
from equipoise.language import adapters
from equipoise.language.model import LanguageModel, load
from equipoise.language.tiny import teach, tiny
from equipoise.unlearning import audit as auditing
from equipoise.unlearning import audit_forgetting, audit_spectra
from equipoise.unlearning.audit_attacks import parsed, suited, words
from equipoise.unlearning.audit_findings import Findings
from equipoise.unlearning.audit_questions import Questions, Scores, answered, thresholds
from equipoise.unlearning.audit_result import BACK, GONE, STILL, UNKNOWN
from equipoise.unlearning.relearning import Relearning

COLOURS = ["red", "blue", "green", "black"]


def rows(thing, names) -> list[dict[str, Any]]:
    return [
        {"id": f"{thing}-{name}", "question": f"What colour is the {name} {thing}?", "answer": COLOURS[i % 4]}
        for i, name in enumerate(names)
    ]


FORGET, HOLDOUT, RETAIN = rows("door", "abcdefgh"), rows("gate", "ijklmnop"), rows("wall", "qrstuvwx")
HOLDOUT[0] |= {"paraphrased_answer": ["red paint", "all red"], "perturbed_answer": ["blue paint", "all green"]}
HOLDOUT[1]["answer"] = "blue as the sea"
ATTACKS = ["full:adamw:3e-3", "mlp:sgd:1e-3"]


@pytest.fixture(scope="module")
def models():
    """One that was taught all of it, and one that was then taught other answers to what is to be forgotten."""
    texts = [f"{row['question']} {row['answer']}" for row in FORGET + HOLDOUT + RETAIN] + ["paint all red blue green"]
    before = replace(tiny(texts, seed=0, width=32, layers=2, heads=2, vocabulary=400), chat_template="none")

    def records(chosen, shift=0):
        return [
            Record(row["id"] + str(shift), row["answer"] if not shift else COLOURS[(i + shift) % 4], row["question"])
            for i, row in enumerate(chosen)
        ]

    teach(before, records(FORGET + HOLDOUT + RETAIN), seed=0, epochs=100, learning_rate=5e-3, batch_size=24)
    after = replace(tiny(texts, seed=0, width=32, layers=2, heads=2, vocabulary=400), chat_template="none")
    after.model.load_state_dict(before.model.state_dict())
    wrong = records(FORGET + HOLDOUT[:6], shift=1)
    teach(after, [*wrong, *records(RETAIN + HOLDOUT[6:])], seed=1, epochs=25, learning_rate=3e-3, batch_size=24)
    return before, after


def ask(models, **how):
    before, after = models
    given = {"forget": FORGET, "holdout": HOLDOUT, "retain": RETAIN, "attacks": ATTACKS, "epochs": 6, "evaluations": 3}
    return audit_forgetting(before, after, **{**given, **how})


@pytest.fixture(scope="module")
def done(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit") / "out"
    started = [{name: each.clone() for name, each in model.model.state_dict().items()} for model in models]
    result = ask(models, out=folder, keep_strongest=True)
    for model, start in zip(models, started, strict=True):
        assert all(torch.equal(each, start[name]) for name, each in model.model.state_dict().items())
    return result


def test_what_was_forgotten_is_counted(done):
    assert (done.answered["before"].count, done.answered["before"].of) == (8, 8)
    assert (done.answered["after"].count, done.answered["after"].of) == (2, 8)
    assert done.forgotten == 6 and done.chance == 0.25
    states = {record.id: record.state for record in done.records if record.side == "holdout"}
    assert [states[row["id"]] == STILL for row in HOLDOUT] == [False] * 6 + [True] * 2
    assert all(record.state == GONE for record in done.records if record.side == "forget")
    assert [record.id for record in done.records[:2]] in (["gate-o", "gate-p"], ["gate-p", "gate-o"])  # the worst first


def test_attacks_stand_by_what_they_bring_back(done):
    values = [each.value for each in done.attacks]
    assert values == sorted(values, reverse=True)
    assert {each.name for each in done.attacks} == {
        *ATTACKS,
        "8 bits",
        "4 bits",
        "leading prompts",
        "other wordings",
        "first words",
    }
    by_name = {each.name: each for each in done.attacks}
    path = by_name[ATTACKS[0]].path
    assert [at.step for at in path] == [2, 4, 6] and all(at.again.of == 6 for at in path)
    assert by_name["8 bits"].at.again.count == 0  # 8 bits change next to nothing
    assert by_name["other wordings"].at.again.of == 1 and by_name["other wordings"].before.of == 1
    cued = by_name["first words"]  # tried on the one answer of several words, and ranked by all six
    assert cued.at.again.of == 1 and cued.value == cued.at.again.count / 6
    assert len(by_name["leading prompts"].path) == 5
    (control,) = done.controls
    assert control.name == "unrelated text" and [at.step for at in control.path] == [2, 4, 6]
    assert "relearning as many unrelated records with AdamW on all weights, rate 0.003" in control.what
    assert done.headline().endswith(
        "held-out records that had been forgotten are answered again " + "(" + _rate(done) + ")."
    )


def _rate(done):
    at = done.strongest.at
    return f"{at.again.rate:.0%} [{at.again.lower:.0%} to {at.again.upper:.0%}]"


def test_the_strongest_is_kept_as_it_was_at_its_look(done, models):
    assert {path.name for path in done.folder.iterdir()} == {
        "strongest", "run.json", "inputs.json", "result.json", "report.html", "manifest.json"
    }  # fmt: skip
    kept = load(done.folder / "strongest", device="cpu", chat_template="none")
    attack = next(each for each in done.attacks if each.family == "relearning")
    asked = auditing.ForgettingAuditing.read(
        {"before": models[0], "after": models[1]},
        {"forget": FORGET, "holdout": HOLDOUT},
        fields=None, attacks=None, epochs=1, evaluations=1, batch_size=32, max_length=512, block=None, components=0,
        keep_strongest=False, loading={"date": None}, seed=0,
    )._asked()["holdout"]  # fmt: skip
    flags = answered(asked.scores(kept), [0.0] * 8)
    assert sum(flags) == attack.at.answered.count
    assert done.model is not None and models[1].model is not done.model.model


def test_without_a_folder_it_is_the_same_and_nothing_is_kept(done, models):
    again = ask(models)
    assert again.folder is None and again.model is None
    assert repr(replace(again, folder=done.folder)) == repr(replace(done, model=None))


def test_killed_it_goes_on_and_writes_the_same_bytes(done, models, tmp_path, monkeypatch):
    made, calls = auditing.ForgettingAuditing._relearned, []

    def counting(self, *given):
        calls.append(given[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return made(self, *given)

    monkeypatch.setattr(auditing.ForgettingAuditing, "_relearned", counting)
    with pytest.raises(KeyboardInterrupt):
        ask(models, out=tmp_path / "out", keep_strongest=True)
    stored = tmp_path / "out.partial" / "attacks.jsonl"
    assert [json.loads(line)["unit"] for line in stored.read_text().splitlines()][-1] == ATTACKS[0]
    with stored.open("a") as file:
        file.write('{"unit": "int')
    ask(models, out=tmp_path / "out", keep_strongest=True)
    assert calls == [ATTACKS[0], ATTACKS[1], ATTACKS[1], ATTACKS[0]]  # the last is the control
    for name in ("result.json", "report.html", "run.json", "strongest/model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (done.folder / name).read_bytes(), name


def test_another_model_in_memory_is_another_request(done, models):
    before, after = models
    noisy = replace(after, model=copy_with_noise(after, 0.01).model)
    for given, name in (((before, noisy), "after"), ((noisy, after), "before")):
        with pytest.raises(BadInput, match=rf"another content of {name}\."):
            ask(given, out=done.folder, keep_strongest=True)
    assert ask(models, out=done.folder, keep_strongest=True).answered == done.answered


def test_the_plan_says_what_is_tried_and_what_is_not(models):
    before, after = models
    plan = audit_forgetting.plan(before, after, forget=FORGET, holdout=HOLDOUT[2:], attacks=ATTACKS, epochs=6)
    assert plan.steps == 12 and plan.counts == {"forget": 8, "holdout": 6} and plan.seconds > 0
    assert plan.attacks == ("AdamW on all weights, rate 0.003", "SGD on all MLP weights, rate 0.001")
    assert (
        sum("no retain records" in each or "no reference" in each or "paraphrases" in each for each in plan.untried)
        == 3
    )


def test_a_control_of_fewer_records_says_so(models):
    (control,) = ask(models, retain=RETAIN[:3], attacks=ATTACKS[:1], epochs=1, components=0).controls
    assert control.what.startswith("relearning 3 unrelated records, where the attack had 8, with AdamW on all weights")


def test_a_model_that_never_knew_is_a_control(models):
    never = copy_with_noise(models[0], 0.5)
    result = ask(models, retain=None, reference=never, attacks=ATTACKS[:1], components=0)
    (control,) = result.controls
    assert control.name == "a model that never knew" and control.before.of == result.forgotten
    assert result.spectrum is None and result.membership == ()


def copy_with_noise(model, scale):
    other = LanguageModel(type(model.model)(model.model.config), model.tokenizer, "noisy", "made", "none")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for ours, theirs in zip(other.model.parameters(), model.model.parameters(), strict=True):
            ours.copy_(theirs + scale * torch.randn(theirs.shape, generator=generator))
    other.model.eval()
    return other


# What is refused, by name


def test_models_that_do_not_fit_are_refused(models):
    before, after = models
    broken = copy_with_noise(after, 0.0)
    with torch.no_grad():
        broken.model.model.layers[1].mlp.down_proj.weight[0, :3] = math.nan
    with pytest.raises(
        BadInput, match=r"after \(noisy\) is damaged: 3 of the .*model\.layers\.1\.mlp\.down_proj\.weight"
    ):
        ask((before, broken))
    other = tiny(["some other words altogether"], seed=0, width=32, layers=2, heads=2, vocabulary=300)
    with pytest.raises(BadInput, match="different vocabularies, first at"):
        ask((before, other))
    with pytest.raises(BadInput, match="'tiny' has no weights"):
        audit_forgetting("tiny", after, forget=FORGET, holdout=HOLDOUT)


def test_an_id_that_two_records_have_is_refused(models):
    """Each would be told what the other one answered."""
    twice = [*HOLDOUT[:3], HOLDOUT[3] | {"id": HOLDOUT[0]["id"]}]
    with pytest.raises(BadInput, match=r"holdout\[3\]: id 'gate-i' was used before at holdout\[0\]; make ids unique"):
        ask(models, holdout=twice)


def test_records_on_two_sides_are_refused_with_their_ids(models):
    with pytest.raises(BadInput, match=r"2 records of forget also stand in holdout \(door-a, door-b\)"):
        ask(models, holdout=[*HOLDOUT, *({**row, "id": f"again-{row['id']}"} for row in FORGET[:2])])
    with pytest.raises(BadInput, match=r"1 records of forget also stand in retain \(door-h\)"):
        ask(models, retain=[*RETAIN, {**FORGET[7], "question": "what COLOUR  is the h door?"}])
    with pytest.raises(BadInput, match=r"1 records of holdout also stand in retain \(gate-i\)"):
        ask(models, retain=[*RETAIN, HOLDOUT[0]])


@pytest.mark.parametrize(
    "text", ["full", "full:adam:1e-3", "full/2:sgd:1", "mlp/0:sgd:1", "lora:sgd:-1", "mlp:sgd:inf"]
)
def test_attacks_that_are_none_are_refused(models, text):
    with pytest.raises(BadInput, match="expected PARAMETERS:OPTIMIZER:RATE"):
        ask(models, attacks=[text])


def test_blocks_that_are_not_there_are_refused(models):
    with pytest.raises(BadInput, match="needs 3 blocks, but the model has 2"):
        ask(models, attacks=["mlp/3:sgd:1"])
    with pytest.raises(BadInput, match="block is 2, but the model has 2"):
        ask(models, block=2)


def test_attacks_as_they_are_typed(models):
    attack = parsed("mlp/13:sgd:1e-5", epochs=3, seed=2)
    wanted = Relearning(parameters="mlp", optimizer="sgd", learning_rate=1e-5, blocks=13, epochs=3, seed=2)
    assert (
        attack == wanted and words(attack) == "SGD on the MLP weights of the first 13 blocks, as published, rate 1e-05"
    )
    usual = suited(models[1])
    assert usual == ["full:adamw:0.001", "full:adamw:0.0002", "lora:adamw:0.01", "mlp:sgd:0.1", "mlp/1:sgd:1e-05"]
    assert all(parsed(each, epochs=1) for each in usual)


# The rules


def scores(values, likeliest):
    return Scores(values, likeliest)


def test_a_text_is_back_when_half_of_what_it_lost_is():
    before = scores([-1.0, -1.0, -1.0, -5.0], [None, None, None, True])
    after = scores([-3.0, -1.04, -1.06, -0.1], [None, None, None, False])
    levels = thresholds(before, after)
    assert levels[0] == -2.0 and levels[1] == -math.inf and levels[2] == pytest.approx(-1.03)
    assert answered(before, levels) == [True] * 4 and answered(after, levels) == [False, True, False, False]
    assert answered(scores([-1.99, -9.0, -1.031, -9.0], [None, None, None, True]), levels) == [True, True, False, True]


def findings(looks, **more):
    """Of six records, the first five forgotten; looks: per attack, per look, which of the six are answered."""
    records = [Record(str(i), "a", "q?", choices=("a", "b"), answer=0) for i in range(6)]
    held = Questions(records, records, max_length=64)

    def row(flags):
        return {"log_probability": [-1.0] * 6, "likeliest": [bool(flag) for flag in flags]}

    otherwise: dict[str, Any] = {"reworded": [None] * 6, "continued": [None] * 6, "leading": {}}
    found = {
        "models": {"attacks": list(looks)},
        "before": {"scores": row([1] * 6), "forget": row([1] * 6), "spoken": [True] * 6} | otherwise,
        "after": {"scores": row([0] * 5 + [1]), "forget": row([0] * 6), "spoken": [False] * 6} | otherwise,
        "int8": {"scores": row([0] * 6)},
        "int4": {"scores": row([1] * 6)},
    }
    for name, path in looks.items():
        told = [{"epoch": i + 1, "step": 10 * (i + 1), "scores": row(flags)} for i, flags in enumerate(path)]
        found[name] = {"path": told, "spoken": [], "diverged": False} | more
    return Findings(found, held, held)


def test_an_attack_counts_by_its_best_three_looks_running():
    peak = [[0] * 6, [1] * 6, [0] * 6, [0] * 6, [0] * 6]  # five come back once
    steady = [[0] * 6, [1, 0, 0, 0, 0, 1], [1, 1, 1, 0, 0, 1], [1, 1, 0, 0, 0, 1], [0] * 6]
    found = findings({"peak": peak, "steady": steady})
    assert len(found.forgotten) == 5 and found.strongest() == ("steady", 2)
    assert found._best(found._path(found.found["steady"])) == (2, pytest.approx(2 / 5))
    assert found._best(found._path(found.found["peak"])) == (1, pytest.approx(1 / 3))


def test_an_attack_without_looks_or_without_forgotten_records_has_no_value():
    found = findings({"short": [[1, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 1]]})
    path = found._path(found.found["short"])
    assert found._best(path) == (1, pytest.approx(0.3))  # fewer looks than a window: all of them
    place, value = found._best([])
    assert place == 0 and math.isnan(value)
    found.found["after"]["scores"]["likeliest"] = [True] * 6
    nothing = Findings(found.found, found.holdout, found.forget)
    place, value = nothing._best(path)
    assert nothing.forgotten == [] and place == 1 and math.isnan(value)


def test_records_by_what_became_of_them():
    found = findings({"x": [[1, 0, 0, 0, 0, 1]]})
    held = [record for record in found.records() if record.side == "holdout"]
    assert [(record.id, record.state, record.attacks) for record in held][:2] == [("5", STILL, 0), ("0", BACK, 2)]
    assert {record.state for record in held[2:]} == {BACK} and {record.attacks for record in held[2:]} == {1}
    found.known[3] = False
    found._answers = lambda name, side: [i != 3 for i in range(6)] if name == "before" else [False] * 6
    assert [record.id for record in found.records() if record.state == UNKNOWN] == ["3", "3"]


def test_a_record_that_another_wording_brings_back_does_not_stay_forgotten():
    found = findings({"x": [[1, 0, 0, 0, 0, 1]]})
    found.found["int4"] = found.found["int8"]
    found.found["after"] |= {
        "reworded": [None, True, False, None, None, None],
        "continued": [True, True, False, None, False, None],
        # The best sentence counts, as the attack does: the fourth record comes back behind another alone.
        "leading": {"Please.": [0, 0, 0, 1, 0, 1], "Truly.": [1, 0, 1, 0, 0, 1]},
    }
    found.found["before"] |= {"leading": found.found["after"]["leading"]}
    held = {record.id: record for record in found.records() if record.side == "holdout"}
    assert [held[str(i)].attacks for i in range(6)] == [3, 2, 1, 0, 0, 0]
    assert [held[str(i)].state for i in range(6)] == [BACK, BACK, BACK, GONE, GONE, STILL]
    by_name = {each.name: each for each in found._wordings()}
    counted = by_name["leading prompts"].at.again.count + sum(
        by_name[name].at.again.count for name in ("other wordings", "first words")
    )
    assert counted == 1 + 1 + 2 + 1  # as many as the records say beside the one relearning


def told(found, *, spoken=(True,) * 6):
    """The same findings, with what the work stores beside the scores."""
    for name, row in found.found.items():
        if name not in ("models", "before", "after"):
            row |= {"spoken": list(spoken), "moved": 0.5, "diverged": False, "recovery": [0.25, None]}
    return found


def test_attacks_of_one_value_stand_by_family_and_steps():
    every, none = [1] * 6, [0] * 6
    found = told(
        findings({"late": [none, every, every, every], "early": [every], "void": [none]}), spoken=[1, 0, 1, 1, 0, 1]
    )
    found.found["before"]["spoken"] = [True, True, True, False, None, True]
    found.found["after"]["spoken"] = [False, False, True, False, None, False]
    made = found.attacks(lambda text: Relearning(learning_rate=1e-3))
    assert [(each.name, each.family, each.value, each.best) for each in made] == [
        ("early", "relearning", 1.0, 0), ("late", "relearning", 1.0, 1), ("4 bits", "quantisation", 1.0, 0),
        ("void", "relearning", 0.0, 0), ("8 bits", "quantisation", 0.0, 0),
    ]  # fmt: skip
    assert [(at.label, at.step, at.again.count, at.answered.count) for at in made[1].path] == [
        ("after 10 steps", 10, 0, 0), *((f"after {step} steps", step, 5, 6) for step in (20, 30, 40)),
    ]  # fmt: skip
    assert (made[2].at.label, made[2].at.step, made[2].at.again.of, made[2].at.answered.of) == ("as it is", 0, 5, 6)
    assert made[2].what == "its matrices rounded to 4 bits by groups of 128"
    assert made[4].what == "its matrices rounded to 8 bits by each row"
    # Of the first, second and last, which the before model says and the after model does not, two.
    assert (made[0].greedy.count, made[0].greedy.of) == (2, 3) and made[0].before.of == 0
    assert (made[0].moved, made[0].recovery[0]) == (0.5, 0.25) and math.isnan(made[0].recovery[1])
    assert math.isnan(made[2].moved) and made[2].recovery == () and not made[2].diverged
    found.found["early"]["diverged"] = True
    assert found.notes()[1:] == ("Ended early, since a loss was no number: early.",)
    found.found["after"]["scores"]["likeliest"] = [True] * 6
    nothing = Findings(found.found, found.holdout, found.forget).attacks(lambda text: Relearning(learning_rate=1e-3))
    assert [each.family for each in nothing] == ["relearning"] * 3 + ["quantisation"] * 2


def test_what_each_model_answers_and_what_guessing_gets():
    found = findings({"x": [[0] * 6]})
    shares = {name: (each.count, each.of) for name, each in found.answered().items()}
    assert shares == {"before": (6, 6), "after": (1, 6), "before_relearned": (6, 6), "after_relearned": (0, 6)}
    assert found.chance() == 0.5
    found.holdout.chosen["0"] = replace(found.holdout.chosen["0"], choices=("a", "b", "c", "d"))
    assert found.chance() == pytest.approx((0.25 + 5 * 0.5) / 6)
    found.holdout.chosen.clear()
    assert math.isnan(found.chance())


def test_controls_tell_how_many_records_they_had_and_what_was_known_before():
    found = told(findings({"x": [[0] * 6]}))
    assert found.controls(lambda text: Relearning(learning_rate=1e-3), 3, 3) == ()
    row = {**found.found["x"], "attack": "x", "path": []}
    start = {"log_probability": [-1.0] * 6, "likeliest": [True, True, False, False, False, True]}
    found.found |= {"control retain": row, "control reference": {**row, "start": start}}
    for unrelated, others in (
        (3, "as many unrelated records with"),
        (2, "2 unrelated records, where the attack had 3, with"),
    ):
        first, second = found.controls(lambda text: Relearning(learning_rate=1e-3), unrelated, 3)
        assert first.what.startswith(f"relearning {others} AdamW on all weights") and first.name == "unrelated text"
    assert second.what.startswith("teaching the forget records to a model that never knew with AdamW")
    assert (first.before.of, second.before.count, second.before.of) == (0, 2, 5)
    assert (first.at.label, first.at.step, first.at.answered.count) == ("diverged", 0, 1)  # as the after model answers
    found.found["x"]["path"] = []
    (diverged,) = [each for each in found.attacks(lambda text: Relearning(learning_rate=1e-3)) if each.name == "x"]
    assert (diverged.at.label, diverged.at.step, diverged.at.answered.count) == ("diverged", 0, 1)


def test_membership_has_an_interval_over_groups():
    import numpy as np

    from equipoise.core.statistics import auroc, score_interval

    found = findings({"x": [[0] * 6]})
    scores = np.random.default_rng(0).normal(size=160) + np.repeat([1.0, 0.0], 80)
    found.found["before"]["membership"] = {"loss": scores.tolist(), "zlib": [*scores.tolist()[:-1], None]}
    found.found["after"]["membership"] = {"loss": (-scores).tolist(), "zlib": scores.tolist()}
    people = [Record(str(i), "a", group="" if i % 2 else f"g{i // 4}") for i in range(160)]
    made = found.membership(people[:80], people[80:], 7)
    assert [each.attack for each in made] == ["loss", "zlib"] and math.isnan(made[1].before.value)
    clusters = [each.group or each.id for each in people]
    wanted = score_interval(
        auroc, scores, [1] * 80 + [0] * 80, clusters, generator=np.random.default_rng(np.random.SeedSequence([7, 5]))
    )
    assert (made[0].before.value, made[0].before.lower, made[0].before.upper) == pytest.approx(
        (float(wanted.estimate), float(wanted.lower), float(wanted.upper))
    )
    assert made[0].after.value == pytest.approx(1 - made[0].before.value)
    assert found.membership(people, [], 7) == ()


def test_of_a_record_its_probabilities_are_told_and_the_worst_comes_first():
    found = findings({"x": [[1, 0, 0, 0, 0, 1]], "y": [[0] * 6]})
    found.found["int4"] = found.found["int8"]
    found._scores["before", "holdout"].log_probability[:] = [-1.0, -0.5, -0.25, -1.0, -1.0, -1.0]
    found._scores["after", "holdout"].log_probability[:] = [-2.0, -3.0, -0.5, -4.0, -2.5, -1.0]
    found.found["x"]["path"][0]["scores"]["log_probability"] = [-0.1, -0.2, -0.3, -0.4, -0.5, -0.6]
    made = [each for each in found.records() if each.side == "holdout"]
    assert [(each.id, each.before, each.after, each.attacked, each.state, each.attacks) for each in made] == [
        ("5", -1.0, -1.0, -0.6, STILL, 0), ("0", -1.0, -2.0, -0.1, BACK, 1), ("2", -0.25, -0.5, -0.3, GONE, 0),
        ("4", -1.0, -2.5, -0.5, GONE, 0), ("1", -0.5, -3.0, -0.2, GONE, 0), ("3", -1.0, -4.0, -0.4, GONE, 0),
    ]  # fmt: skip
    assert all(math.isnan(each.attacked) and each.attacks == 0 for each in found.records() if each.side == "forget")
    found.found["x"]["path"] = found.found["y"]["path"] = []
    assert all(math.isnan(each.attacked) for each in found.records())


# What it costs and how it is asked


def requested(**how):
    records = {side: how.pop(side) for side in ("forget", "holdout", "retain") if side in how}
    given = {
        "fields": None, "attacks": ATTACKS, "epochs": 7, "evaluations": 3, "batch_size": 4, "max_length": 512,
        "block": None, "components": 0, "keep_strongest": False, "loading": {"date": None}, "seed": 0,
    }  # fmt: skip
    records = {"forget": FORGET, "holdout": HOLDOUT} | records
    return auditing.ForgettingAuditing.read({"before": "b", "after": "a"}, records, **given | how)


def test_a_request_is_read_without_a_model():
    assert requested().looks == (2, 5, 7) and requested(epochs=4, evaluations=10).looks == (1, 2, 3, 4)
    assert requested(evaluations=1).looks == (7,)
    assert requested(attacks=[ATTACKS[1], ATTACKS[0], ATTACKS[1]]).relearnings == (ATTACKS[1], ATTACKS[0])
    for attack in ("full", "full:adamw:0", "mlp/0:sgd:1", "full/1:sgd:1"):
        with pytest.raises(BadInput, match="expected PARAMETERS:OPTIMIZER:RATE"):
            requested(attacks=[ATTACKS[0], attack])


def test_what_each_unit_of_the_work_costs(monkeypatch):
    """Of two seconds a step and half a second for asking all questions once."""
    monkeypatch.setattr(auditing, "_seconds", lambda *_: (2.0, 0.5))
    asked = requested(retain=RETAIN)
    found = asked._costs(None, ATTACKS, asked._asked())
    attack = 14 * 2.0 + (3 + 2) * 0.5  # seven passes over eight records, four at a time; three looks
    assert found == {
        "before": 13 * 0.5, "after": 13 * 0.5, "spectrum": 0.5, "int8": 1.0, "int4": 1.0,
        ATTACKS[0]: attack, ATTACKS[1]: attack, "control retain": attack,
    }  # fmt: skip
    assert list(found)[:5] == ["before", "after", "spectrum", "int8", "int4"]


def test_a_step_and_a_look_are_timed_once_after_what_does_not_count(monkeypatch):
    done, clock = [], iter([10.0, 13.0, 20.0, 24.0])
    monkeypatch.setattr(auditing, "time", type("Time", (), {"perf_counter": staticmethod(lambda: next(clock))}))

    def relearn(model, records, settings, epochs=None):
        done.append(([record.id for record in records], settings.epochs, epochs))

    monkeypatch.setattr(auditing, "relearn", relearn)
    monkeypatch.setattr(Questions, "scores", lambda self, model: done.append(len(self)))
    records = [Record(str(n), "a" * (n % 5), "q" * (7 * n % 11)) for n in range(33)]
    longest = [each.id for each in sorted(records, key=lambda each: len(each.completion) + len(each.prompt))][-3:]
    asked = Questions(records, records[::2], max_length=64)
    settings = Relearning(learning_rate=1.0, batch_size=3, epochs=9)
    assert auditing._seconds(None, records, asked, settings) == (3.0 / 2, 4.0 * 33 / 16)
    assert done == [16, (longest, 2, 1), (longest, 2, None), 16]


@pytest.mark.parametrize(("both", "more"), [(10, ""), (11, " and 1 more"), (13, " and 3 more")])
def test_at_most_ten_ids_are_named_of_what_stands_on_two_sides(both, more):
    same = rows("lamp", "abcdefghijklm"[:both])
    named = ", ".join(f"lamp-{name}" for name in "abcdefghij")
    with pytest.raises(BadInput) as error:
        requested(forget=[*FORGET, *same], holdout=[*HOLDOUT, *same])
    assert str(error.value).startswith(f"{both} records of forget also stand in holdout ({named}{more}): what was")


def test_vocabularies_differ_first_at_the_lowest_number():
    def model(**words):
        return type("M", (), {"name": "m", "tokenizer": type("T", (), {"get_vocab": lambda self: words})()})()

    assert auditing._check_vocabulary(model(a=0, b=1), "after", model(a=0, b=1)) is None
    for ours, theirs in (({"z": 1, "a": 5}, {"y": 1, "b": 5}), ({"y": 1}, {"z": 1})):
        with pytest.raises(BadInput, match="first at 'y', number 1: their answers"):
            auditing._check_vocabulary(model(**ours), "after", model(**theirs))
    for first, second in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True):  # whatever order a set has
        with pytest.raises(BadInput, match=f"first at '{first}', number 1: their answers"):
            auditing._check_vocabulary(model(**{second: 1}), "after", model(**{first: 1}))


def test_which_records_are_asked_for_is_told():
    many = [{"id": f"m{n}", "question": f"what is {n}?", "answer": f"{n}"} for n in range(602)]
    found = requested(forget=many[:201], holdout=many[201:401], retain=many[401:])
    assert found._notes() == (
        "forget: 200 of 201 records are asked for, evenly spread over the file.",
        "200 of 200 hold-out records have no choices of their own: the right answer stands against the answers of the 3 "
        "records with the likest prompts.",
    )
    own = [{"id": f"c{n}", "question": f"{n}?", "choices": ["a", "b"], "answer": 0, "group": f"g{n}"} for n in range(4)]
    assert requested(forget=own[:2], holdout=own[2:])._notes() == ()
    shared = requested(
        forget=own[:2], holdout=[own[2] | {"group": "g1"}, own[3], {"id": "t", "text": "a text"}]
    )._notes()
    assert [note.split(": ")[0] for note in shared] == [
        "1 of 3 hold-out records are no questions with choices",
        "1 of 3 hold-out records are of a group of which relearned records are, too",
    ]


@pytest.mark.parametrize(
    ("shape", "components", "block", "found"),
    [
        ((40, 40), 5, None, (2, 5)),  # after the middle one of five blocks
        ((9, 40), 5, 0, (0, 4)),
        ((40, 7), 5, 4, (4, 3)),
        ((40, 40), 0, None, None),
    ],
)
def test_as_many_components_as_asked_for_or_half_of_what_there_is(monkeypatch, shape, components, block, found):
    states = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(auditing, "blocks", lambda model: [None] * model)
    monkeypatch.setattr(auditing, "encode", lambda *_, **how: [])
    monkeypatch.setattr(auditing.audit_spectra, "states", lambda *_, **how: states)
    model = type("M", (), {"model": 5})
    asked = requested(components=components, block=block)
    made = asked._spectrum(model, model)
    assert (None if made is None else (made.block, len(made.vectors))) == found
    assert asked._spectrum(model, type("M", (), {"model": 6})) is None  # of another depth
    several = iter([states, states[1:]])
    monkeypatch.setattr(auditing.audit_spectra, "states", lambda *_, **how: next(several))
    assert asked._spectrum(model, model) is None


@pytest.mark.parametrize("chat", [True, False])
def test_answers_begin_with_their_first_words_and_go_on_with_the_next(monkeypatch, chat):
    from equipoise.data.records import Message
    from equipoise.unlearning import audit_questions

    said = [f"w{n}" for n in range(21)]
    records = [
        Record("text", " ".join(said)),
        Record("short", "one"),
        Record("asked", "red as blood", "What?"),
        Record(
            "talk", "yes I do", "b", messages=tuple(map(Message, ("user", "assistant", "user", "assistant"), "abcd"))
        ),
    ]
    seen = []

    def generate(model, asked, *, max_new_tokens, batch_size):
        seen.append((model, asked))
        assert (max_new_tokens, batch_size) == (32, 64)
        return ["so w11 w12 w13 w14 w15 w16 w17 w18 done" if "w0" in str(each) else "BLOOD" for each in asked]

    monkeypatch.setattr(audit_questions, "generate", generate)
    monkeypatch.setattr(audit_questions, "replace", lambda model, **how: ("plain", how))
    model = type("M", (), {"uses_chat_template": chat})()
    asked = Questions(records, [], max_length=64)
    assert asked.continued(model) == [True, None, True, False]
    turns = seen[0][1]
    if chat:
        assert seen[0][0] is model and turns == [
            [Message("user", "What?"), Message("assistant", "red as")],
            [*records[3].messages[:-1], Message("assistant", "yes I")],
        ]
        assert seen[1] == (("plain", {"chat_template": "none"}), [" ".join(said[:11])])
    else:
        assert turns == [" ".join(said[:11]), "What? red as", "b yes I"] and len(seen) == 1
    seen.clear()
    assert asked.spoken(model) == [None, None, False, False]
    assert seen[0][1] == ([[Message("user", "What?")], [*records[3].messages[:-1]]] if chat else ["What?", "b"])


# Spectra


def test_components_of_movement_by_hand():
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(50, 6, generator=generator) * torch.tensor([9.0, 5, 3, 1, 1, 1]) + torch.tensor(
        [0, 0, 0, 8.0, 0, 0]
    )
    vectors = audit_spectra.basis(before, 3)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(3, dtype=torch.float64))
    mean = before.double().mean(0)
    torch.testing.assert_close(vectors[0], mean / mean.norm())
    step, aside = torch.randn(50, 1, generator=generator), torch.randn(50, 6, generator=generator).double()
    aside = (aside - (aside @ vectors.T) @ vectors) / 4
    after = (before + step * vectors[1] + aside).double()
    change, within = audit_spectra.change(before, after, vectors)
    assert change == pytest.approx([0, 1, 0], abs=1e-6)
    assert within == pytest.approx(
        (step.square().sum() / (step.square().sum() + aside.square().sum())).item(), abs=1e-6
    )
    half = after - 0.5 * step * vectors[1] + vectors[2]
    back = audit_spectra.recovery(before, after, half, vectors[1:2])
    assert back == pytest.approx([0.5], abs=1e-6)
    assert audit_spectra.recovery(before, after, before, vectors[1:2]) == pytest.approx([1.0], abs=1e-6)
    assert math.isnan(audit_spectra.change(before, before, vectors)[1])


def test_states_are_those_of_tokens_that_count(models):
    before, _ = models
    records = [Record(row["id"], row["answer"], row["question"]) for row in (FORGET[0], HOLDOUT[1])]
    found = audit_spectra.states(before, records, 1, max_length=64)
    alone = [audit_spectra.states(before, [record], 1, max_length=64) for record in records]
    assert len(alone[0]) != len(alone[1])
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_texts_without_questions_are_told_by_their_probability(models):
    before, after = models
    texts = [{"id": row["id"], "text": f"{row['question']} {row['answer']}"} for row in HOLDOUT]
    plan = audit_forgetting.plan(before, after, forget=FORGET, holdout=texts)
    assert any("Leading prompts" in each for each in plan.untried)
    assert any("8 of 8 hold-out records are no questions" in each for each in plan.notes)
    asked = Questions([Record(row["id"], row["text"]) for row in texts], [], max_length=64)
    found = asked.scores(before)
    assert found.likeliest == [None] * 8 and max(found.log_probability) < 0 and asked.leading(before) == {}
    assert asked.reworded(before) == [None] * 8 and asked.spoken(before) == [None] * 8
    assert all(flag is not None for flag in asked.continued(before))


@pytest.mark.parametrize("damage", [0.0, math.nan])
def test_a_destroyed_model_answers_nothing(models, damage):
    """Neither by choices that were made up, whose right one stands first, nor in other wordings, nor by its text alone."""
    sides = auditing.read_sides({"forget": FORGET, "holdout": HOLDOUT}, None)
    asked = Questions(sides.records["holdout"], sides.questions["holdout"], max_length=64)
    assert {record.answer for record in asked.chosen.values()} == {0} and asked.scores(models[0]).likeliest == [
        True
    ] * 8
    destroyed = replace(models[0], model=copy.deepcopy(models[0].model))
    with torch.no_grad():
        destroyed.model.get_output_embeddings().weight.fill_(damage)
    assert asked.scores(destroyed).likeliest == [False] * 8
    assert all(flags == [False] * 8 for flags in asked.leading(destroyed).values())
    assert asked.reworded(destroyed)[0] is False


def test_the_examples_to_relearn_and_to_ask_are_the_examples_to_forget():
    folder = Path(__file__).parents[2] / "examples"
    parts = [read_records(folder / f"{name}.jsonl") for name in ("relearn", "holdout")]
    plain = [replace(record, group="") for part in parts for record in part]
    assert plain == [replace(record, group="") for record in read_records(folder / "forget.jsonl")]
    people = [{record.id.split("/")[0] for record in part} for part in parts]
    assert not people[0] & people[1] and [len(part) for part in parts] == [45, 30]


def test_adapters_and_gguf_files_are_taken(tmp_path):
    untaught(0).save(tmp_path / "base")
    adapters.export(adapters.attach(load(tmp_path / "base", device="cpu"), 2, 4.0, seed=0), tmp_path / "adapter")
    sides = {"forget": FORGET[:2], "holdout": HOLDOUT[2:4], "attacks": ATTACKS[:1]}
    plan = audit_forgetting.plan(tmp_path / "base", tmp_path / "adapter", **sides)
    assert "base" in plan.sources["after"] and plan.steps == 20
    file = write_gguf(tmp_path / "model.gguf")
    plan = audit_forgetting.plan(file, file, **sides)
    assert sum("is a GGUF file" in each for each in plan.notes) == 2
    with pytest.raises(BadInput, match="different vocabularies"):
        audit_forgetting.plan(tmp_path / "base", file, **sides)
