"""The world of Bayesian distillation's study: streams, settings and teachers of a seed."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from bayes_world import CLASSES, WORDS, bare, prompts
from equipoise.language import adapters
from equipoise.training.loop import TrainerSettings
from equipoise.uncertainty import bayes_world as world_file
from equipoise.uncertainty import blob, laplace_lora, teachers, tfb
from equipoise.uncertainty.bayes_distill import averaged
from equipoise.uncertainty.class_logits import class_logits, read_prompts
from equipoise.uncertainty.ensemble import Ensemble
from equipoise.uncertainty.mc_dropout import McDropout


@pytest.fixture(scope="module")
def world():
    lm = bare()
    texts, labels = prompts(40)
    read = read_prompts(lm, texts, CLASSES)
    inputs = world_file.UpperInputs(world_file.lower_states(lm, read, 1))
    given = enumerate(zip(texts, labels, strict=True))
    questions = [world_file.Question(str(place), text, label) for place, (text, label) in given]
    upper = world_file.upper_model(lm, 1, read.class_ids)
    return world_file.World(upper, {"train": questions}, {"train": inputs}, 3, 7, 2e-4)


def seed(stream):
    return int(np.random.SeedSequence([3, 52, stream]).generate_state(1)[0])


def test_an_adapter_has_rank_8_and_a_scale_of_2(world):
    adapted = world.fresh(2)
    maps = adapters.adapted_maps(adapted)
    assert sorted(name.rpartition(".")[2] for name in maps) == ["lm_head", "q_proj", "v_proj"]
    assert {len(adapters.factors(own)[0]) for own in maps.values()} == {8}
    assert {own.scaling["default"] for own in maps.values()} == {2.0}
    first = {name: adapters.factors(own)[0].detach().clone() for name, own in maps.items()}
    adapters.detach(adapted)
    again = adapters.attach(world.language_model, 8, 16.0, ["q_proj", "v_proj", "lm_head"], seed=seed(2))
    for name, own in adapters.adapted_maps(again).items():
        assert adapters.factors(own)[0].equal(first[name])
    adapters.detach(again)


def test_trainings_are_alike_but_for_their_streams(world):
    assert world.settings(5) == TrainerSettings(
        steps=7, learning_rate=2e-4, batch_size=16, warmup_ratio=0.06, epsilon=1e-6, seed=seed(5)
    )
    assert (world_file.STUDENT, world_file.MEMBERS, world_file.BLOB) == (1, 2, 5)
    assert world_file.STRICT == (0.0001, 0.02) and world_file.SMOOTHING == 0.1
    assert world.labels("train").tolist() == prompts(40)[1]
    assert world_file.prompt(world.sides["train"][0]) == f"{world.sides['train'][0].text} Type:"


def test_teachers_of_what_was_prepared(world, monkeypatch):
    monkeypatch.setattr(world_file, "CLASSES", CLASSES)
    adapted = world.fresh(0)
    own = {
        name: tuple(each.detach().clone() for each in adapters.factors(one))
        for name, one in adapters.adapted_maps(adapted).items()
    }
    adapters.detach(adapted)
    generator = torch.Generator().manual_seed(0)

    def drawn():
        return {name: (a, 0.1 * torch.randn(b.shape, generator=generator)) for name, (a, b) in own.items()}

    shared = {"mle": drawn(), "blob": drawn(), "members": [drawn(), drawn()], "sigma": 0.25, "strict": 0.125}
    shared["omega"] = {name: torch.full_like(a, 0.5) for name, (a, _) in own.items()}
    found = {}
    for name in ("tfb", "tfb-strict", "blob", "blob-mean", "ensemble", "mc-dropout", "laplace"):
        teacher, over = world.teacher(name, shared)
        base = shared["blob" if "blob" in name else "mle"]
        for place, pair in teachers.own_factors(over).items():
            assert all(now.equal(then) for now, then in zip(pair, base[place], strict=True))
        if name == "tfb":
            p = world.predicted(teacher, over, "train")
            due = averaged(teacher.on(over, world.inputs["train"])([0, 35]).detach().double())
            assert_close(p[[0, 35]], due, atol=1e-6, rtol=1e-5)
        adapters.detach(over)
        found[name] = teacher
    assert found["tfb"] == tfb.Tfb(0.25, 10, seed(0)) and found["tfb-strict"] == tfb.Tfb(0.125, 10, seed(0))
    for name, draws, spread in (("blob", 10, 0.5), ("blob-mean", 1, 0.0)):
        made = found[name]
        assert isinstance(made, blob.Blob) and (made.draws, made.seed) == (draws, seed(5))
        assert all((omega == spread).all() for omega in made.omega.values())
    assert isinstance(found["ensemble"], Ensemble)
    members = zip(found["ensemble"].members, [shared["mle"], *shared["members"]], strict=True)
    assert all(one is other for one, other in members)
    assert found["mc-dropout"] == McDropout(0.1, 10, seed(0))
    assert isinstance(found["laplace"], laplace_lora.LastLayerLaplace) and found["laplace"].seed == seed(0)


def test_states_of_more_than_one_batch_are_each_prompt_s_own():
    lm = bare()
    texts = [" ".join(WORDS[: 1 + place % 5]) for place in range(35)]
    read = read_prompts(lm, texts, CLASSES)
    found = world_file.lower_states(lm, read, 1)
    alone = world_file.lower_states(lm, read_prompts(lm, texts[33:34], CLASSES), 1)
    assert len(found) == 35 and [len(each) for each in found] == [len(row) for row in read.rows]
    assert_close(found[33], alone[0], atol=1e-6, rtol=1e-5)
    whole = class_logits(lm, read)
    upper = world_file.upper_model(lm, 1, read.class_ids)
    assert_close(class_logits(upper, world_file.UpperInputs(found)), whole, atol=1e-5, rtol=1e-5)
    config = upper.model.config
    assert config.num_hidden_layers == 1 and not config.tie_word_embeddings
    assert not any(each.requires_grad for each in upper.model.parameters()) and not upper.model.training
    assert upper.model.get_output_embeddings().bias is None
    assert [block.self_attn.layer_idx for block in upper.model.model.layers] == [0]


class Parts:
    """A world whose parts tell what they were asked for; `asked` holds every training, in order."""

    steps = 7

    def __init__(self, n):
        self.inputs = {"train": range(n)}
        self.sides = {"train": [SimpleNamespace(id=f"q{place}") for place in range(n)]}
        self.asked = []

    def labels(self, side):
        return torch.arange(len(self.inputs[side])) % 6

    def settings(self, stream):
        return ("settings", stream)

    def fresh(self, stream):
        return ("fresh", stream)

    def with_factors(self, given):
        return ("with", given)

    def learnt(self, target, stream):
        assert torch.equal(target, torch.eye(6, dtype=torch.float64)[self.labels("train")])
        self.asked.append(("learnt", stream))
        return ("learnt", stream)

    def teacher(self, name, shared):
        return SimpleNamespace(name=name, passes=len(name)), ("over", name)


def prepared(monkeypatch, tmp_path, n, shared=None):
    """What was asked for and what is shared after a preparation; `shared`: of one that was stopped."""
    parts, stored, spent, detached = Parts(n), {}, [], []
    ask = parts.asked.append

    def search(adapted, train, **how):
        ask(("search", adapted, {**how, "anchors": list(how["anchors"])}))
        return SimpleNamespace(sigma=how.get("low", 0.5))

    def train(adapted, rows, labels, settings, *, draws):
        ask(("blob", adapted, labels, settings, draws))
        return SimpleNamespace(omega={"map": 3}), None

    def targets(teacher, adapted, train, *, names):
        assert adapted == ("over", teacher.name) and names == [f"q{place}" for place in range(n)]
        return f"of {teacher.name}"

    monkeypatch.setattr(world_file, "World", SimpleNamespace(made=lambda *given: ask(given) or parts))
    monkeypatch.setattr(tfb, "search", search)
    monkeypatch.setattr(blob, "train", train)
    monkeypatch.setattr(teachers, "own_factors", lambda adapted: ("factors of", adapted))
    monkeypatch.setattr(adapters, "detach", detached.append)
    monkeypatch.setattr(world_file, "class_logits", lambda adapted, rows: torch.zeros(2, 4))
    monkeypatch.setattr(world_file, "targets", targets)
    monkeypatch.setattr(world_file, "save_state", lambda path, state: stored.update({path.name: dict(state)}))
    checkpoints = []
    preparation = SimpleNamespace(
        options="options",
        seed=3,
        folder=tmp_path,
        resume=lambda: shared,
        checkpoint=lambda state: checkpoints.append(sorted(state)),
        spend=lambda **amounts: spent.append(amounts),
    )
    world_file.prepare(preparation)
    assert parts.asked.pop(0) == ("options", 3, tmp_path)
    return parts.asked, stored["shared.safetensors"], spent, checkpoints, detached


@pytest.mark.parametrize(("n", "every"), [(250, 2), (40, 1)])
def test_what_a_preparation_trains_and_keeps(monkeypatch, tmp_path, n, every):
    asked, shared, spent, checkpoints, detached = prepared(monkeypatch, tmp_path, n)
    mle, anchors = ("factors of", ("learnt", 0)), list(range(0, n, every))
    assert asked == [
        ("learnt", 0),
        ("search", ("with", mle), {"anchors": anchors, "draws": 10, "compat": True}),
        ("search", ("with", mle), {"anchors": anchors, "draws": 10, "low": 0.0001, "high": 0.02, "steps": 8}),
        ("learnt", 2),
        ("learnt", 3),
        ("blob", ("fresh", 5), [place % 6 for place in range(n)], ("settings", 5), 10),
    ]
    names = ("tfb", "tfb-strict", "blob", "blob-mean", "laplace", "ensemble", "mc-dropout")
    passes = n * (1 + sum(map(len, names)))
    of_targets = shared.pop("targets")
    assert shared == {
        "mle": mle, "sigma": 0.5, "strict": 0.0001, "members": [("factors of", ("learnt", one)) for one in (2, 3)],
        "omega": {"map": 3}, "blob": ("factors of", ("fresh", 5)), "passes": passes,
    }  # fmt: skip
    assert of_targets.pop("adapter").unique().tolist() == [0.25]
    assert of_targets == {name: f"of {name}" for name in names}
    assert spent == [{"phase": "build", "optimizer_steps": 28, "passes": passes}]
    assert len(checkpoints) == 6 + len(names) and checkpoints[0] == ["mle"]
    over = [("over", name) for name in names]
    assert detached == [
        ("learnt", 0), ("with", mle), ("learnt", 2), ("learnt", 3), ("fresh", 5), ("with", mle), *over
    ]  # fmt: skip


def test_a_stopped_preparation_trains_what_is_missing(monkeypatch, tmp_path):
    stopped = {"mle": "A", "sigma": 0.1, "strict": 0.2, "members": ["B"]}
    asked, shared, *_ = prepared(monkeypatch, tmp_path, 40, dict(stopped))
    assert [each[:2] for each in asked] == [("learnt", 3), ("blob", ("fresh", 5))]
    assert shared["members"] == ["B", ("factors of", ("learnt", 3))] and shared["sigma"] == 0.1
    begun = {
        **stopped,
        "members": ["B", "C"],
        "omega": {},
        "blob": "D",
        "targets": {"adapter": 0, "tfb": 1},
        "passes": 9,
    }
    asked, shared, spent, *_ = prepared(monkeypatch, tmp_path, 40, begun)
    assert asked == [] and shared["members"] == ["B", "C"] and shared["targets"]["tfb"] == 1
    assert spent[0]["passes"] == 9 + 40 * sum(
        map(len, ("tfb-strict", "blob", "blob-mean", "laplace", "ensemble", "mc-dropout"))
    )


def measured(monkeypatch, tmp_path, settings, p):
    """What an arm tells of three test questions, of the classes 0, 1 and 5, whose probabilities are p."""
    labels = {"test": torch.tensor([0, 1, 5]), "train": torch.tensor([2, 3]), "held-out": torch.tensor([4])}
    asked: list = []
    found: dict = {"spent": []}
    logits = {"test": p.log(), "held-out": torch.zeros(1, 6)}
    world = SimpleNamespace(
        inputs={"test": "test", "held-out": "held-out"},
        labels=labels.__getitem__,
        sides={"test": [SimpleNamespace(id=name) for name in "abc"]},
        steps=7,
        with_factors=lambda given: given,
        teacher=lambda name, shared: (SimpleNamespace(passes=4, name=name), "over"),
        predicted=lambda teacher, adapted, side: (
            p if (teacher.name, adapted, side) == ("tfb", "over", "test") else None
        ),
        learnt=lambda target, stream, **how: asked.append((target, stream, how)),
    )
    own = torch.tensor([[0.5, 0.1, 0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.4, 0.2, 0.1]], dtype=torch.float64)
    tfb_s = torch.tensor([[0.4, 0.2, 0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.3, 0.2, 0.1]], dtype=torch.float64)
    shared = {"mle": "mle", "targets": {"adapter": own, "tfb": tfb_s}}
    monkeypatch.setattr(world_file, "World", SimpleNamespace(made=lambda *given: world))
    monkeypatch.setattr(world_file, "load_state", lambda path: shared)
    monkeypatch.setattr(world_file, "class_logits", lambda adapted, side: logits[side])
    monkeypatch.setattr(world_file, "temperature", lambda read, given: 2.0 if read is logits["held-out"] else None)
    run = SimpleNamespace(
        options={},
        seed=3,
        prepared=tmp_path,
        settings=settings,
        checkpoint="checkpoint",
        resume=lambda: "state",
        items=lambda outcome, ids, scores, *, at: found.update({outcome: (ids, scores, at)}),
        measure=lambda outcome, value, *, at: found.update({outcome: (value, at)}),
        spend=lambda **amounts: found["spent"].append(amounts),
    )
    world_file.measure(run)
    for outcome, given in found.items():
        assert outcome == "spent" or given[-1] == {"step": 7}
    assert all(found[name][0] == ["a", "b", "c"] for name in ("nll", "brier", "accuracy"))
    values = {name: given[-2] for name, given in found.items() if name != "spent"}
    return values, found["spent"], asked, own, tfb_s


P = torch.tensor([[0.75, *[0.05] * 5], [0.5, *[0.1] * 5], [*[0.02] * 5, 0.9]], dtype=torch.float64)


@pytest.mark.parametrize("by", ["adapter", "temperature", "teacher", "student"])
def test_what_an_arm_tells_of_its_questions(monkeypatch, tmp_path, by):
    of = {"teacher": {"of": "tfb"}, "student": {"of": "tfb"}}.get(by, {})
    values, spent, asked, own, tfb_s = measured(monkeypatch, tmp_path, {"by": by, **of}, P)
    p = P.sqrt() / P.sqrt().sum(-1, keepdim=True) if by == "temperature" else P
    target = tfb_s if of else own
    if by == "temperature":
        target = own.sqrt() / own.sqrt().sum(-1, keepdim=True)
    assert values["nll"] == pytest.approx([-math.log(p[row, label]) for row, label in enumerate((0, 1, 5))])
    gold = torch.eye(6).double()[[0, 1, 5]]
    assert values["brier"] == pytest.approx((p - gold).square().sum(-1).tolist())
    assert values["accuracy"] == [1.0, 0.0, 1.0]
    confidence = p.amax(-1)
    assert values["confidence"] == pytest.approx(confidence.mean().item())
    assert values["ece"] == pytest.approx((confidence - torch.tensor([1.0, 0.0, 1.0])).abs().mean().item())
    assert values["target_confidence"] == pytest.approx(target.amax(-1).mean().item())
    assert values["target_nll"] == pytest.approx(-(target[0, 2].log() + target[1, 3].log()).item() / 2)
    assert values["target_distance"] == pytest.approx((target * (target / own).log()).sum().item() / 2, abs=1e-12)
    passes, steps = (12 if by == "teacher" else 3), (7 if by == "student" else 0)
    assert spent == [{"phase": "build", "optimizer_steps": steps}, {"phase": "query", "passes": passes}]
    if by == "student":
        assert asked == [(tfb_s, 1, {"save": "checkpoint", "save_every": 50, "state": "state"})]


def test_what_a_student_of_smoothed_labels_is_taught(monkeypatch, tmp_path):
    _, _, asked, *_ = measured(monkeypatch, tmp_path, {"by": "student", "of": "smoothed"}, P)
    assert_close(asked[0][0], 0.9 * torch.eye(6).double()[[2, 3]] + 0.1 / 6)


def test_a_confidence_that_is_rounded_above_one_is_one(monkeypatch, tmp_path):
    p = torch.zeros(3, 6, dtype=torch.float64)
    p[[0, 1, 2], [0, 1, 4]] = 1 + 1e-9
    values, *_ = measured(monkeypatch, tmp_path, {"by": "teacher", "of": "tfb"}, p)
    assert values["ece"] == pytest.approx(1 / 3, abs=1e-12)


def test_reading_the_lower_blocks_keeps_no_cache():
    lm = bare()
    read, given = read_prompts(lm, ["Paris no", "river"], CLASSES), []
    hook = lm.model.base_model.register_forward_pre_hook(lambda _, args, named: given.append(named), with_kwargs=True)
    world_file.lower_states(lm, read, 1)
    inputs = world_file.UpperInputs(world_file.lower_states(lm, read, 2))
    given.clear()
    found = world_file.lower_states(lm, read, 1)
    assert len(found) == 2 and [each["use_cache"] for each in given] == [False]
    upper = world_file.upper_model(lm, 2, read.class_ids)
    given.clear()
    class_logits(upper, inputs)
    hook.remove()
    assert [each["use_cache"] for each in given] == [False]
