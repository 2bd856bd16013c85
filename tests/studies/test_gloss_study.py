"""The world of GLOSS's study: parts that share nothing, arms at one rank, measures that a destroyed model shows."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from equipoise.core.errors import BadInput
from equipoise.data.toxic_pairs import ToxicPair
from equipoise.language.tiny import tiny
from equipoise.studies import gloss as study_file
from equipoise.study import registry
from equipoise.unlearning import gloss_world, toxic_vectors, value_matrices
from study_recorder import StudyRecorder

ROWS = [
    {"id": n, "toxic": f"you {rude} {who} of the {where}", "neutral": [f"you {kind} {who} of the {where}", "another"]}
    for n, (rude, kind, who, where) in enumerate(
        (rude, kind, who, where)
        for rude, kind in (("daft", "dear"), ("dull", "good"), ("daft dull", "fine"))
        for who in ("man", "one", "friend", "reader")
        for where in ("town", "house", "river", "sea")
    )
]
SMALL = {"pairs": 12, "prompts": 4, "rank": 2, "candidates": 3, "max_new_tokens": 3}


class Recorder(StudyRecorder):
    seed = 3

    def spend(self, *, phase="query", **amounts):
        super().spend(phase=phase, **amounts)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "paradetox").mkdir()
    (folder / "paradetox" / "paradetox.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "paradetox" / "bad-words-en.txt").write_text("daft\nunheard\n")
    made = tiny([f"{row['toxic']} {row['neutral'][0]}" for row in ROWS], seed=0, width=32, layers=3, heads=2)
    with torch.no_grad():
        for parameter in made.model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    made.save(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUIPOISE_DATA", str(folder))
        yield registry.load("gloss").build(**SMALL, model=str(folder / "model"))


@pytest.fixture(scope="module")
def prepared(study, tmp_path_factory):
    preparation = Recorder(tmp_path_factory.mktemp("prepared"), study=study)
    study_file.read(preparation)
    assert preparation.spent["prompt_tokens"] > 0
    return preparation.folder


def pairs(count):
    return [ToxicPair(str(n), f"bad {n}", f"good {n}") for n in range(count)]


def test_nothing_that_teaches_the_scorer_is_asked_about_or_drawn():
    every = [*pairs(40), ToxicPair("again", "BAD  7", "other")]
    parts = gloss_world.divide(every, 5)
    sides = [
        {" ".join(pair.toxic.split()).casefold() for pair in part} for part in (parts.scorer, parts.asked, parts.pool)
    ]
    assert [len(side) for side in sides] == [20, 5, 15] and len(set.union(*sides)) == 40
    assert parts == gloss_world.divide(every, 5)
    one, other = (gloss_world.drawn(parts.pool, 10, seed) for seed in (1, 2))
    assert one != other and len({pair.id for pair in one}) == 10 and one == gloss_world.drawn(parts.pool, 10, 1)
    with pytest.raises(BadInput, match="16 pairs of 15 that may be drawn"):
        gloss_world.drawn(parts.pool, 16, 0)
    with pytest.raises(BadInput, match="too few to ask about 20"):
        gloss_world.divide(every, 20)


def test_every_arm_takes_out_as_many_directions_of_the_same_layers(study, prepared):
    world = gloss_world.open_world(study.options, 3, prepared)
    before = {name: value.clone() for name, value in world.language_model.model.state_dict().items()}
    residuals = {}
    for arm in study.arms:
        made = world.edit(**arm.settings)
        tensors = made.tensors(1.0)
        assert made.directions == (0 if arm.name == "original" else 2)
        residuals[arm.name] = made.residual
        if arm.name in ("original", "toxic-vectors"):
            continue
        assert set(tensors) == {f"model.layers.{n}.mlp.down_proj.weight" for n in (1, 2)}
        for name, value in tensors.items():
            gone = torch.linalg.matrix_rank(before[name].double() - value.double(), atol=1e-4)
            assert gone == 2, (arm.name, name)
            half = made.tensors(0.5)[name]
            assert torch.allclose(half, (before[name] + value) / 2, atol=1e-6)
    assert residuals["gloss"] > 0.99 and residuals["toxic-vectors"] < 0.95
    vectors = world.edit("toxic-vectors", "residual").tensors(1.0)
    zero = sum(int((value == 0).all(0).sum()) for value in vectors.values())
    assert zero == 10 * 2 * 2  # ten for each direction of each layer
    with pytest.raises(BadInput, match="method is 'glos'"):
        world.edit("glos", "mlp")


def test_an_arm_measures_every_outcome_at_every_strength_and_leaves_the_model(study, prepared, tmp_path):
    run = Recorder(tmp_path / "gloss", study=study, arm="gloss", prepared=prepared)
    study_file.edit(run)
    assert {key.split()[0] for key in run.measured} == {outcome.name for outcome in study.outcomes}
    at = [
        json.loads(key[key.index("{") : key.index("}") + 1])["strength"]
        for key in run.measured
        if key.startswith("toxicity ")
    ]
    assert at == [0.5, 1.0] and run.spent["removed_directions"] == 2
    again = Recorder(tmp_path / "again", study=study, arm="gloss", prepared=prepared)
    study_file.edit(again)
    assert again.measured == run.measured
    original = Recorder(tmp_path / "original", study=study, arm="original", prepared=prepared)
    study_file.edit(original)
    losses = [value for key, value in original.measured.items() if key.startswith("neutral_loss")]
    assert losses != [run.last("neutral_loss")] and len(losses) == 1  # it is the same at every strength
    pooled = Recorder(tmp_path / "pooled", study=study, arm="pooled", prepared=prepared)
    study_file.edit(pooled)
    assert not any(key.startswith("attacked") for key in pooled.measured)


def test_claims_name_what_is_there(study):
    assert {"baseline", "control", "reference"} <= {arm.kind for arm in study.arms}
    assert sum(claim.primary and not claim.untested for claim in study.claims) == 3
    assert toxic_vectors.rebuilding_residual.__doc__


def test_an_edit_is_measured_along_the_strengths_and_attacked_at_the_last(monkeypatch):
    for directions, strengths in ((3, [0.5, 1.0]), (0, [1.0])):
        for arm, attacked in (("gloss", True), ("original", True), ("bias", False)):
            seen, now = [], []

            @contextmanager
            def replaced(model, tensors, now=now):
                now.append(tensors)
                yield
                now.pop()

            world = SimpleNamespace(
                language_model=SimpleNamespace(model="model"),
                edit=lambda directions=directions, **settings: SimpleNamespace(
                    directions=directions, tensors=lambda strength: strength, residual=0.25
                ),
                measure=lambda run, strength, seen=seen, now=now: seen.append(("measured", strength, *now)),
                attack=lambda run, strength, seen=seen, now=now: seen.append(("attacked", strength, *now)),
            )
            monkeypatch.setattr(gloss_world, "open_world", lambda options, seed, prepared, world=world: world)
            monkeypatch.setattr(value_matrices, "replaced", replaced)
            told, spent = [], []
            run = SimpleNamespace(
                options={}, seed=4, prepared="folder", settings={}, arm=arm,
                spend=lambda spent=spent, **amounts: spent.append(amounts),
                measure=lambda *given, told=told, at: told.append((*given, at)),
            )  # fmt: skip
            study_file.edit(run)
            assert seen == [("measured", each, each) for each in strengths] + [("attacked", 1.0, 1.0)] * attacked
            assert spent == [{"removed_directions": directions}]
            assert told == ([("residual", 0.25, {"strength": 1.0})] if directions else [])
