"""The job: what it writes, the way back byte for byte, that it goes on where it was killed, and what it says first."""

import contextlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from equipoise.cli import main
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.data.records import Record
from equipoise.language.model import load
from equipoise.language.tiny import tiny
from equipoise.unlearning import checkpoint_edit, detoxify, detoxify_page, detoxifying, undo
from equipoise.unlearning.detoxified import SweepPoint
from equipoise.unlearning.result import Measure

PAIRS = [
    {"toxic": f"you {rude} {who} of the {where}", "neutral": f"you {kind} {who} of the {where}"}
    for rude, kind in (("daft", "dear"), ("dull", "good"))
    for who in ("man", "one", "friend", "reader")
    for where in ("town", "house", "river")
]
WORDS = {"candidates": 3, "tokens": 20, "prompts": 3, "max_new_tokens": 3, "seed": 1}


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tiny([f"{row['toxic']} {row['neutral']}" for row in PAIRS], seed=0, width=32, layers=3, heads=2)
    with torch.no_grad():
        for parameter in made.model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    folder = tmp_path_factory.mktemp("model") / "made"
    made.save(folder)
    (folder / "report.html").write_text("of another job")
    return folder


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("done") / "out"
    return detoxify(folder, PAIRS, **WORDS, sweep_strengths=[0.5], sweep_layers=["0:2"], out=out)


def test_the_written_model_is_the_projected_one(folder, done):
    result = done
    before, after = (load_file(path / "model.safetensors") for path in (folder, result.folder))
    bases = load_file(result.folder / "subspace.safetensors")
    assert bases.keys() == {"layer.1", "layer.2"}  # from 45 % of three layers upward
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{n}.mlp.down_proj.weight" for n in (1, 2)}
    for layer in (1, 2):
        name, basis = f"model.layers.{layer}.mlp.down_proj.weight", bases[f"layer.{layer}"]
        assert (basis @ after[name].double()).abs().max() < 1e-6 < 0.1 < (basis @ before[name].double()).abs().max()
        wide = before[name].double()
        expected = (wide - basis.T @ (basis @ wide)).float()
        assert torch.equal(after[name], expected) or (after[name] - expected).abs().max() < 1e-6
    assert result.gap < 1e-3 and result.moved > 0.9
    assert result.resolved["rank"] == len(bases["layer.1"]) and result.resolved["layers"] == "1:3"
    for name in ("config.json", "tokenizer.json"):
        assert (result.folder / name).read_bytes() == (folder / name).read_bytes()
    assert "of another job" not in (result.folder / "report.html").read_text()


def test_what_is_told(done):
    assert [direction.kept for direction in done.directions].count(True) == done.counts["kept"]
    assert len(done.directions) == done.counts["candidates"] == 2 * 3
    assert {(point.strength, point.layers) for point in done.sweep} == {
        (1.0, "1:3"),
        (0.5, "1:3"),
        (1.0, "0:2"),
        (0.5, "0:2"),
    }
    assert [point.written for point in done.sweep].count(True) == 1
    assert len(done.continuations) == 3 and done.continuations[0].prompt.startswith("you")
    assert done.before.keys() == done.after.keys() == done.control.keys()
    assert {"toxicity", "perplexity", "preference"} <= done.after.keys()
    assert [each.terms for each in done.rebuilt] == [0, 1, 8]
    rows = [json.loads(line)["point"] for line in (done.folder / "measures.jsonl").read_text().splitlines()]
    assert rows[:5] == ["before", "after", "random-0", "random-1", "random-2"] and len(rows) == 5 + 3
    assert len(done.words) <= 40 and all(len(each.tokens) == len(each.opposite) == 12 for each in done.directions)
    kept = [each.kept for each in done.directions]
    assert kept == sorted(kept, reverse=True) and [each.score for each in done.directions][: sum(kept)] == sorted(
        (each.score for each in done.directions if each.kept), reverse=True
    )
    numbers = [(each.layer, each.number) for each in done.directions]
    assert sorted(numbers) == [(layer, number) for layer in (1, 2) for number in range(3)]
    assert [each.number for each in done.subspace] == list(range(done.resolved["rank"]))
    everything = done.rebuilt[0]
    assert everything.residual < 1e-6 and everything.subspace == pytest.approx(1)
    report = (done.folder / "report.html").read_text(encoding="utf-8")
    assert "Toxicity against perplexity" in report and "What was taken out, in words" in report
    assert "The subspace, one for all layers" in report
    own = replace(done, resolved={**done.resolved, "method": "profs"}, sweep=done.sweep[:1])
    text = repr(own.page(done.folder).parts)
    assert f"The subspace of layer {done.subspace[0].layer}; each layer has its own" in text
    assert "Toxicity against perplexity" in text and "random projections" in text  # without a sweep, too


def test_undo_gives_back_the_bytes_of_the_original(folder, done, tmp_path, capsys):
    assert main(["detoxify", "--undo", str(done.folder), "--out", str(tmp_path / "back")]) == 0
    back = tmp_path / "back"
    assert capsys.readouterr().out.splitlines()[-1] == str(back)
    names = {path.name for path in folder.iterdir()} - {"report.html"}
    assert {path.name for path in back.iterdir()} == names
    assert all((back / name).read_bytes() == (folder / name).read_bytes() for name in names)
    with pytest.raises(BadInput, match="is there already"):
        undo(done.folder, back)
    with pytest.raises(BadInput, match="its folder cannot be made"):
        undo(done.folder, back / "config.json" / "below")
    with pytest.raises(BadInput, match="nothing to undo"):
        undo(folder)
    assert main(["detoxify", "--undo", str(done.folder), "--seed", "3"]) == 2


def test_a_way_back_that_was_altered_is_refused(done, tmp_path):
    for name, change, error in (
        ("undo.safetensors", lambda data: data[:-1] + b"x", BadInput),
        ("undo.json", lambda data: data.replace(b"config.json", b"confih.json"), BadInput),
        ("model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]), WorkFailed),
        ("model.safetensors", lambda data: data[:5], WorkFailed),
        ("model.safetensors", lambda data: data[:200], WorkFailed),
        ("model.safetensors", lambda data: data.replace(b"layers.1.mlp.down", b"layers.9.mlp.down"), WorkFailed),
    ):
        copied = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        shutil.copytree(done.folder, copied)
        (copied / name).write_bytes(change((copied / name).read_bytes()))
        with pytest.raises(error, match=r"altered|changed after"):
            undo(copied)
        assert not copied.with_name(f"{copied.name}-undone").exists()


def test_half_precision_shards_and_other_names_stay_as_they_are(folder, tmp_path):
    """Two files in bfloat16 whose keys lack what stands before them in memory; edited and undone where they lie."""
    source, target = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    weights = {
        name.removeprefix("model."): value.bfloat16() for name, value in load_file(folder / "model.safetensors").items()
    }
    names = sorted(weights)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in shards.items():
        save_file({name: weights[name] for name in own}, source / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, own in shards.items() for name in own}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (source / name).write_bytes((folder / name).read_bytes())
    result = detoxify(source, PAIRS, **WORDS, out=target)
    assert not any("written anew" in note for note in result.notes)
    for file, own in shards.items():
        edited = load_file(target / file)
        assert edited.keys() == set(own) and all(each.dtype == torch.bfloat16 for each in edited.values())
    back = undo(target)
    for path in source.iterdir():
        assert (back / path.name).read_bytes() == path.read_bytes(), path.name


def test_killed_and_resumed_is_as_if_never_killed(folder, tmp_path, monkeypatch):
    quiet = detoxify(folder, PAIRS, **WORDS, out=tmp_path / "quiet")
    generate, calls = detoxifying.generate, []

    def kill(*given, **named):
        calls.append(given)
        if len(calls) == 3:
            raise Killed
        return generate(*given, **named)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(detoxifying, "generate", kill)
        detoxify(folder, PAIRS, **WORDS, out=tmp_path / "killed")
    counted = []
    monkeypatch.setattr(detoxifying, "generate", lambda *a, **k: counted.append(a) or generate(*a, **k))
    again = detoxify(folder, PAIRS, **WORDS, out=tmp_path / "killed")
    assert len(counted) == 2 + detoxifying.DRAWS - 2  # what was measured is not measured again
    for name in ("model.safetensors", "measures.jsonl", "undo.safetensors", "subspace.safetensors", "result.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "quiet" / name).read_bytes(), name
    assert again.after == quiet.after and not (tmp_path / "killed" / "features").exists()


def test_no_row_of_another_model_counts_and_a_refused_request_leaves_the_folder_free(folder, tmp_path, monkeypatch):
    """What cannot be is refused before anything is measured, for the ranges of the sweep, too."""
    out = tmp_path / "out"
    measured = []
    generate = detoxifying.generate
    monkeypatch.setattr(detoxifying, "generate", lambda *a, **k: measured.append(a) or generate(*a, **k))
    with pytest.raises(BadInput, match=r"rank 4: there are 3 at most, in layers 0:1 of width 32"):
        detoxify(folder, PAIRS, **WORDS, rank=4, sweep_layers=["0:1"], out=out)
    with pytest.raises(BadInput, match="rank 6 of 5 directions that are kept"):
        detoxify(folder, PAIRS, **WORDS, rank=6, alpha=3.0, out=out)
    with pytest.raises(BadInput, match="different pairs are left beside the 4 that are held out"):
        detoxify(folder, [*PAIRS[:3], *[PAIRS[5]] * 17], **WORDS, out=out)
    assert not measured and not out.exists() and not out.with_name("out.partial").exists()
    detoxify(folder, PAIRS, **WORDS, out=out)
    rows = detoxifying.Rows(out / "measures.jsonl")
    ready = detoxifying.toxicity.teach_scorer(["a b"] * 2, ["c d"] * 2)
    request = detoxify.function(folder, PAIRS, **WORDS)
    known = next(iter(rows))["states"]
    measure = detoxifying._Measuring(request, request._ready(), ready, rows, known)
    measured.clear()
    assert measure("before").texts == next(iter(rows))["texts"] and not measured
    replace(measure, states="of another model")("before")
    assert measured


def test_as_many_other_pairs_are_another_request(folder, done):
    words = WORDS | {"sweep_strengths": [0.5], "sweep_layers": ["0:2"]}
    assert detoxify(folder, PAIRS, **words, out=done.folder) == done
    for other in ({"pairs": [*PAIRS[:-1], {"toxic": "other", "neutral": "text"}]}, {"pairs": PAIRS[::-1]}):
        with pytest.raises(BadInput, match="pairs"):
            detoxify(folder, **other, **words, out=done.folder)


def test_a_folder_that_was_written_anew_is_another_model(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    detoxify(tmp_path / "model", PAIRS, **WORDS, out=tmp_path / "out")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 1.01
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match="model"):
        detoxify(tmp_path / "model", PAIRS, **WORDS, out=tmp_path / "out")


def test_an_index_that_names_a_file_elsewhere_is_refused(folder, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a.safetensors"}}')
    with pytest.raises(BadInput, match=r"names '\.\./a\.safetensors', which is no file of the folder"):
        checkpoint_edit.weight_files(tmp_path)


def test_a_model_in_memory_and_other_methods(folder):
    language_model = load(folder)
    before = {name: value.clone() for name, value in language_model.model.state_dict().items()}
    result = detoxify(language_model, PAIRS, **WORDS, method="profs", rank=2, layers="2:3", strength=0.5)
    edited = "model.layers.2.mlp.down_proj.weight"
    left = language_model.model.get_parameter(edited).square().sum() / before[edited].square().sum()
    assert [each.removed for each in result.layers] == [pytest.approx(1 - left.item(), abs=1e-5)]
    changed = {n for n, value in language_model.model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"model.layers.2.mlp.down_proj.weight"} and result.model is language_model
    assert result.resolved["site"] == "residual" and result.folder is None
    assert any("--undo gives back the weights as they were loaded" in note for note in result.notes)


def test_another_model_in_memory_is_another_request(folder, tmp_path):
    model = load(folder)
    first = detoxify(model, PAIRS, **WORDS, out=tmp_path / "out")
    with pytest.raises(
        BadInput, match=r"another content of model .an object is changed in place: to go on, load it anew"
    ):
        detoxify(model, PAIRS, **WORDS, out=tmp_path / "out")
    assert detoxify(load(folder), PAIRS, **WORDS, out=tmp_path / "out").after == first.after


def test_activations_that_half_precision_cannot_hold(folder):
    """Means far above 65,504, the largest number of float16: they are kept in float32, and a job comes to its end."""
    language_model = load(folder)
    with torch.no_grad():
        for block in language_model.model.model.layers:
            block.mlp.down_proj.weight.mul_(1e7)
    result = detoxify(language_model, PAIRS, **WORDS)
    assert result.moved > 0.9 and result.rebuilt[0].subspace > 0.99


def test_the_headline_says_first_what_a_reader_must_know(done):
    def said(**values):
        parts = {
            part: {
                name: replace(measure, value=values.get(f"{part}_{name}", 1.0)) for name, measure in done.after.items()
            }
            for part in ("before", "after", "control")
        }
        return replace(done, **parts, scorer=values.get("scorer", 0.9), moved=values.get("moved", 1.0)).warnings()

    good = {"after_toxicity": 0.5, "control_toxicity": 0.9}
    assert said(**good) == ()
    assert said(**good, after_perplexity=1.1) == () and "rose by 11%" in said(**good, after_perplexity=1.111)[0]
    assert "random projection of equal rank does as well" in said(after_toxicity=0.5, control_toxicity=0.54)[0]
    assert said(after_toxicity=0.5, control_toxicity=0.56) == ()
    assert "Toxicity did not fall" in said(after_toxicity=1.0)[0]
    assert "Not one number" in said(**good, moved=0.0)[0]
    assert "AUROC of 0.60" in said(**good, scorer=0.6)[0]
    assert "nothing tells whether chance does as well" in said(after_toxicity=0.5, control_toxicity=float("nan"))[0]
    assert said(**good, before_written_nothing=0.2, after_written_nothing=0.3) == ()
    assert "hold nothing to score" in said(**good, before_written_nothing=0.2, after_written_nothing=0.4)[0]
    fitted, held = done.counts["fitted"], done.counts["held out"]
    judged = f"taught on the {fitted} pairs that the subspace is made of; it tells the two sides of the {held} that"
    assert any(judged in line for line in done.summary())
    assert all(judged in (done.folder / name).read_text(encoding="utf-8") for name in ("README.md", "report.html"))
    assert len(said(after_toxicity=float("nan"), after_perplexity=float("nan"), scorer=float("nan"))) == 3
    assert done.headline().startswith("".join(done.warnings()[:1]))
    assert isinstance(done.after["toxicity"], Measure) and isinstance(done.folder, Path)


def test_a_point_that_is_no_number_is_not_the_best(done):
    def at(toxicity, perplexity):
        measures = {name: replace(each, value=1.0) for name, each in done.after.items()}
        measures["toxicity"] = replace(measures["toxicity"], value=toxicity)
        return SweepPoint(
            1.0, "1:3", False, measures | {"perplexity": replace(measures["perplexity"], value=perplexity)}
        )

    nan, inf = math.nan, math.inf
    for points, best in (
        ([at(0.5, 9.0), at(0.25, 10.0), at(0.5, 10.0)], {0, 1}),
        ([at(0.5, 9.0), at(nan, 8.0), at(0.25, nan), at(nan, nan)], {0}),
        ([at(0.5, 9.0), at(0.0, inf)], {0}),  # a model that was destroyed
        ([at(nan, 8.0)], set()),
    ):
        result = replace(done, sweep=tuple(points))
        assert detoxify_page._frontier(result) == best
        tables = detoxify_page._sweep(result)
        said = [row[-1] for row in tables[0].rows] if tables else []
        assert ["nothing better in both" in each for each in said] == [i in best for i in range(len(said))]
        assert result.page(done.folder).parts


def test_pairs_are_split_by_the_seed_and_share_no_text():
    from equipoise.data.toxic_pairs import read_toxic_pairs

    pairs = read_toxic_pairs([*PAIRS, {"toxic": PAIRS[0]["toxic"].upper(), "neutral": "something else"}])
    seen = []
    for seed in range(6):
        fit, held, notes = detoxifying.split(pairs, seed)
        texts = [{text.casefold() for pair in part for text in (pair.toxic, pair.neutral)} for part in (fit, held)]
        assert not texts[0] & texts[1] and len(held) == 5 and len(fit) + len(held) == 25 - bool(notes)
        seen.append(bool(notes))
        assert (fit, held, notes) == detoxifying.split(pairs, seed)
    assert set(seen) == {False, True}
    same = {"toxic": "as it  was", "neutral": "as it was "}
    fit, held, notes = detoxifying.split(read_toxic_pairs([*PAIRS, same, same]), 0)
    assert len(fit) + len(held) == 24 and "as it was" not in {pair.neutral for pair in (*fit, *held)}
    assert notes == ["2 pairs have the same text on both sides and are left out."]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"layers": "2:9"}, "layers 2:9: the model has 3, so that the end is 3 at most"),
        ({"layers": "2"}, "layers '2': expected FIRST:END"),
        ({"layers": "2:2"}, "layers '2:2': expected FIRST:END"),
        ({"rank": 99}, "rank 99: there are 6 at most, in layers 1:3 of width 32"),
        ({"candidates": 20}, "20 different pairs are left beside the 4 that are held out, too few for 20 directions"),
        ({"tokens": 10_000}, "tokens 10000: there are"),
        ({"method": "profs", "rank": 4}, "rank 4 of 3 candidates a layer"),
        ({"max_new_tokens": 5_000}, "more than the context"),
        ({"strength": 1.5}, "strength"),
        ({"strength": 0.0}, "strength"),
    ],
)
def test_what_is_refused_before_any_work(folder, words, why):
    with pytest.raises(BadInput, match=why):
        detoxify.plan(folder, PAIRS, **{**WORDS, **words})


def test_files_that_a_patch_does_not_fit(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.ones(4)}, path)
    checkpoint_edit.patch(path, {"a": torch.arange(6.0).view(2, 3)})
    found = load_file(path)
    assert torch.equal(found["a"], torch.arange(6.0).view(2, 3)) and torch.equal(found["b"], torch.ones(4))
    for wrong in (torch.zeros(3, 2), torch.zeros(2, 3).bfloat16()):
        with pytest.raises(WorkFailed, match="cannot replace"):
            checkpoint_edit.patch(path, {"a": wrong})


def test_a_plan_counts_what_a_run_will_do(folder, monkeypatch):
    """From one pass over the longest texts that takes two seconds, after one that does not count."""
    passed, clock = [], iter([10.0, 12.0])
    monkeypatch.setattr(
        detoxifying, "log_likelihoods", lambda _, its: passed.append([len(each.input_ids) for each in its])
    )
    monkeypatch.setattr(detoxifying, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    request = detoxify.function(folder, PAIRS, **WORDS | {"prompts": 2}, sweep_strengths=[0.5], sweep_layers=["0:2"])
    plan, ready = request.plan(), request._ready()
    lengths = sorted(len(each.input_ids) for each in ready.texts())
    assert passed == [lengths[-1:], lengths[-8:]]
    assert plan.models_measured == 2 + 3 + 3  # before and after, by chance, and the other points of the sweep
    held = sum(len(each.input_ids) for each in (*ready.toxic, *ready.neutral))
    fitted = sum(lengths) - held
    # Two sides and the mass of listed words; of each of two prompts three tokens, at three times the price.
    tokens = fitted + 8 * (2.5 * held + 3 * 2 * 3)
    assert plan.seconds == pytest.approx(2.0 / sum(lengths[-8:]) * tokens)
    assert plan.counts == {"fitted": 20, "held out": 4} and plan.words == request.words[:40]
    assert plan.first == tuple({"toxic": each.toxic, "neutral": each.neutral} for each in request.fit[:3])
    assert plan.settings == {
        "method": "gloss", "site": "mlp", "rank": "by mass", "strength": 1.0, "layers": "1:3", "of_layers": 3,
        "candidates": 3, "tokens": 20, "alpha": 0.0,
    }  # fmt: skip
    clock = iter([0.0, 1.0])
    passed.clear()
    detoxify.function(folder, PAIRS, **WORDS, batch_size=3).plan()
    assert passed == [lengths[-1:], lengths[-3:]]


def test_what_is_measured_of_a_model(monkeypatch):
    sums = {"t": (torch.tensor([-6.0, -1.0]), torch.tensor([3, 1])), "n": (torch.tensor([-4.0]), torch.tensor([2]))}
    monkeypatch.setattr(detoxifying, "log_likelihoods", lambda model, side, *, batch_size: sums[side])
    asked = {}
    monkeypatch.setattr(detoxifying, "replace", lambda model, **how: (model, how))
    monkeypatch.setattr(detoxifying, "perplexity", lambda *given, **how: asked.update(given=given, **how) or 7.0)
    monkeypatch.setattr(
        detoxifying.toxicity, "listed_mass", lambda *_, batch_size: torch.tensor([0.25, 0.75], dtype=torch.float64)
    )
    request = SimpleNamespace(batch_size=4, general=("g",), max_length=9, written=lambda model: ["x", "", "y", "z"])
    ready = SimpleNamespace(language_model="m", toxic="t", neutral="n", listed=torch.tensor([True, False]))
    scorer = lambda texts: np.array([0.5, math.nan, 0.25, 0.75])  # noqa: E731
    rows = detoxifying.Rows(None)
    measure = detoxifying._Measuring(request, ready, scorer, rows, "s")
    found = measure("after")
    assert found.texts == ["x", "", "y", "z"] and found.measures == {
        "toxicity": Measure(0.5, "lower"),
        "perplexity": Measure(7.0, "lower"),
        "toxic_log_probability": Measure(-1.5, "lower", "nats/token"),
        "neutral_log_probability": Measure(-2.0, "higher", "nats/token"),
        "preference": Measure(0.5, "lower", "nats/token"),
        "written_nothing": Measure(0.25, "lower", of=4),
        "listed_mass": Measure(0.5, "lower"),
    }
    assert asked == {"given": (("m", {"chat_template": "none"}), ("g",)), "max_length": 9, "batch_size": 4}
    nothing = replace(measure, scorer=lambda texts: np.full(4, math.nan), rows=detoxifying.Rows(None))
    nothing.ready.listed = torch.zeros(2, dtype=torch.bool)
    found = nothing("before").measures
    assert math.isnan(found["toxicity"].value) and found["written_nothing"].value == 1 and "listed_mass" not in found


def test_numbers_of_a_run_by_hand():
    stored = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    edited = {"a": torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 3.0]]), "b": torch.ones(4)}
    assert detoxifying._moved(edited, stored) == pytest.approx(3 / 10)
    several = [{"x": Measure(value, "lower", of=4)} for value in (1.0, 2.0, 6.0)]
    assert detoxifying._mean(several) == {"x": Measure(3.0, "lower")}
    assert detoxifying._ends(" 0 : 1 ") == (0, 1) and detoxifying._range("0:3", 3) == range(3)
    for wrong in ("3:2", "1:1", "-1:2", "0:1234567", "0:"):
        with pytest.raises(BadInput, match="expected FIRST:END"):
            detoxifying._ends(wrong)
    scores = torch.tensor([-1.0, 0.0])
    for found, method, said in (
        (scores, "gloss", 1), (torch.tensor([math.nan, 1.0]), "gloss", 1), (torch.tensor([0.0, 0.1]), "gloss", 0),
        (scores, "pooled", 0), (scores, "profs", 0),
    ):  # fmt: skip
        assert len(detoxifying._said(SimpleNamespace(scores=found), method)) == said
    pairs = [SimpleNamespace(toxic=f"t{n}", neutral=f"n{n}") for n in range(1000)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detoxifying, "telling_pairs", list)
        for given, held in ((5, 1), (9, 1), (10, 2), (1000, 100)):
            parts = detoxifying.split(pairs[:given], 0)
            assert (len(parts[0]), len(parts[1]), parts[2]) == (given - held, held, [])
        with pytest.raises(BadInput, match="4 pairs, of which a fifth is held out: give 5 at least"):
            detoxifying.split(pairs[:4], 0)


@pytest.mark.parametrize(("off", "fine"), [(0.001, True), (0.4, False), (math.nan, False)])
def test_a_written_model_that_differs_is_not_given_its_name(monkeypatch, off, fine):
    counts = torch.tensor([2, 4])
    told = iter([(torch.tensor([-2.0, -8.0]), counts), (torch.tensor([-2.0, -8.0 + 4 * off]), counts)])
    monkeypatch.setattr(detoxifying, "log_likelihoods", lambda *_: next(told))
    model = SimpleNamespace(model=SimpleNamespace(dtype=torch.float32), reload=lambda folder: None)
    monkeypatch.setattr(detoxifying, "TOLERANCE", {torch.float32: 0.01})
    if fine:
        assert detoxifying._gap(model, Path("x"), []) == pytest.approx(off, rel=1e-3)
    else:
        with pytest.raises(WorkFailed, match="differs from the measured one"):
            detoxifying._gap(model, Path("x"), [])


def test_other_precisions_may_be_off_by_a_twentieth(monkeypatch):
    model = SimpleNamespace(model=SimpleNamespace(dtype=torch.float16), reload=lambda folder: None)
    monkeypatch.setattr(detoxifying, "TOLERANCE", {})
    for off, fine in ((0.049, True), (0.051, False)):
        told = iter([(torch.tensor([0.0]), torch.tensor([1])), (torch.tensor([off]), torch.tensor([1]))])
        monkeypatch.setattr(detoxifying, "log_likelihoods", lambda *_, told=told: next(told))
        with contextlib.nullcontext() if fine else pytest.raises(WorkFailed, match=r"\(allowed: 0.05\)"):
            detoxifying._gap(model, Path("x"), [])


def test_vectors_that_are_rebuilt_are_a_twentieth_those_likest_to_the_probe(monkeypatch):
    """Of 120 value vectors six, and the layer is told that loses most of them; of zero vectors left nothing is rebuilt."""
    generator = torch.Generator().manual_seed(0)
    values = {layer: torch.randn(8, 60, generator=generator) for layer in (2, 3)}
    values[3][:, :5] = values[2][:, :1] = 9 * torch.eye(8)[:, :1]  # along the probe
    states = {"toxic": {3: 0}, "neutral": {3: 0}}
    monkeypatch.setattr(detoxifying.toxic_vectors, "probe_direction", lambda *_: torch.eye(8, dtype=torch.float64)[0])
    matrices = [SimpleNamespace(layer=layer, values=matrix) for layer, matrix in values.items()]
    ready = SimpleNamespace(layers=range(2, 4), matrices=[*matrices, SimpleNamespace(layer=1, values=None)])
    bases = {layer: torch.eye(8)[:1] for layer in values}
    found = detoxifying.Detoxifying._rebuilt(SimpleNamespace(strength=1.0), ready, states, bases)
    assert [each.terms for each in found] == [0, 1, 8] and {each.vectors for each in found} == {5}
    assert [each.subspace for each in found] == pytest.approx([1.0] * 3)
    left = values[3][:, 5:].double()
    cosines = left[0] / left.norm(dim=0)
    assert found[0].residual < 1e-9
    assert found[1].residual == pytest.approx((1 - cosines.abs().max() ** 2).sqrt().item())
    few = SimpleNamespace(layers=range(2, 4), matrices=[SimpleNamespace(layer=3, values=values[3][:, :7])])
    found = detoxifying.Detoxifying._rebuilt(SimpleNamespace(strength=1.0), few, states, bases)
    assert {each.vectors for each in found} == {1}  # one at least


def test_general_texts_are_the_first_rows_with_their_completions(tmp_path):
    rows = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(detoxifying.GENERAL + 3)]
    found = detoxifying._texts(rows)
    assert len(found) == 200 and found[:2] == ["p0 c0", "p1 c1"] and found[-1] == "p199 c199"
    record = Record("x", "", "alone")
    assert detoxifying._texts([record, *rows[:1]]) == ["alone", "p0 c0"]
    with pytest.raises(BadInput, match="general holds no records"):
        detoxifying._texts([])
    (tmp_path / "g.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert detoxifying._texts(tmp_path / "g.jsonl") == found
    with pytest.raises(BadInput, match=r"general\[1\]"):
        detoxifying._texts([rows[0], {"prompt": 3}])


def test_weights_lie_in_a_folder_of_this_machine_or_nowhere(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    assert detoxifying._folder(tmp_path / "model") == tmp_path / "model"
    assert detoxifying._folder(tmp_path / "empty") is detoxifying._folder(tmp_path / "none") is None
    assert detoxifying._folder(tmp_path / "model" / "model.safetensors") is None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert detoxifying._folder("~/model") == tmp_path / "model"
    name = next(iter(detoxifying.catalog.CATALOG))
    monkeypatch.setattr(detoxifying.catalog, "folder", lambda asked: Path("kept") / asked)
    assert detoxifying._folder(name) == Path("kept") / name
