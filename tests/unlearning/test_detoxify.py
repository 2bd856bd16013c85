"""The job: what it writes, the way back byte for byte, that it goes on where it was killed, and what it says first."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

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
    assert all(each.terms in (0, 1, 8) for each in done.rebuilt)
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
