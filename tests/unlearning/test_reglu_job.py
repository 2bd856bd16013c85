"""ReGLU, FILA and VILA in models: what they find and install, and the job, whose adapter is one of the original base."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from equipoise.core.errors import BadInput
from equipoise.data.records import Record
from equipoise.language import adapters
from equipoise.language.encode import collate, encode
from equipoise.language.model import load, wrap
from equipoise.language.tiny import tiny
from equipoise.training.two_gradients import TwoGradients
from equipoise.unlearning import forgetting, gradient_sum, map_spectra, reglu, starts, unlearn
from equipoise.unlearning.recipe import Recipe, recipe
from equipoise.unlearning.training import check_shard, prepare, train

COLOURS = ["red", "blue", "green", "black", "white", "brown"]
FORGET, RETAIN = (
    [
        {"question": f"What colour is the {name} {what}?", "answer": colour}
        for name, colour in zip(names, COLOURS, strict=True)
    ]
    for names, what in (("abcdef", "door"), ("ghijkl", "wall"))
)
TEXTS = [f"{row['question']} {row['answer']}" for row in FORGET + RETAIN]
RECORDS = [Record(str(n), row["answer"], row["question"]) for n, row in enumerate(FORGET + RETAIN)]
WORDS = {"method": "reglu", "lora_rank": 2, "retain_directions": 3, "batch_size": 4, "steps": 4, "learning_rate": 0.01}


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def start():
    """Grouped queries: keys and values are half as wide as queries. Embeddings are tied."""
    made = tiny(TEXTS, seed=0, width=32, layers=1, heads=4)
    with torch.no_grad():
        for parameter in made.model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(parameter.shape[1]))
    return made


@pytest.fixture
def model(start):
    made = copy.copy(start)
    made.model = copy.deepcopy(start.model)
    return made


def logits(model, ids=((1, 40, 50, 60, 70, 5),)):
    with torch.no_grad():
        return model(torch.tensor(ids, device=model.device)).logits.cpu()


def examples(model):
    encoded = encode(model, RECORDS)
    return encoded[:6], encoded[6:]


def test_pooled_outputs_are_the_sums_of_each_map_over_each_text_alone(model):
    forget, _ = examples(model)
    forget = [*forget, *encode(model, [Record("long", "black as a door and more than that", "What?")])]
    name = "model.layers.0.mlp.up_proj"
    expected, seen = [], []
    hook = model.model.get_submodule(name).register_forward_hook(lambda m, i, output: seen.append(output))
    for example in forget:
        model.model(torch.tensor([example.input_ids]))
        expected.append(seen[-1][0].double().sum(0))
    hook.remove()
    found = starts.pooled_outputs(prepare(model, recipe("reglu", lora_rank=2)), forget)
    assert_close(found[name], torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert {values.shape[0] for values in found.values()} == {7} and len(found) == 7
    assert not any("lm_head" in each or "embed" in each for each in found)


@pytest.mark.parametrize("name", ["reglu", "fila", "vila"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_adapter_begins_where_it_should_and_the_model_computes_what_it_did(model, name, dtype):
    model.model.to(dtype)
    forget, retain = examples(model)
    before, weights = logits(model.model), {n: p.detach().clone() for n, p in model.model.named_parameters()}
    words = recipe(name, lora_rank=2)
    adapted = prepare(model, words)
    begun = starts.begin(adapted, words, forget, retain)
    after = logits(adapted.model)
    # In 16 bits, too: the base is not rounded anew, and the two products cancel in float32.
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    maps = adapters.adapted_maps(adapted)
    assert all(adapters.factors(own)[1].abs().max() > 0.01 for own in maps.values())
    assert set(begun.factors) == set(maps) and all(0 <= each.leakage <= 1 for each in begun.spectra)
    trained = {n for n, p in adapted.model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in adapted.model.named_parameters() if ".lora_" in n and ".default." in n}
    restored = starts.Begun.restored(begun.stored())
    assert restored.spectra == begun.spectra and torch.equal(
        restored.factors["model.layers.0.mlp.up_proj"][0], begun.factors["model.layers.0.mlp.up_proj"][0]
    )
    with pytest.raises(BadInput, match="trained already"):
        starts.find(adapted, words, forget, retain)
    with pytest.raises(BadInput, match="begun at a product already"):
        starts.install(adapted, begun)
    bare = adapters.detach(adapted)
    assert all(torch.equal(p, weights[n]) for n, p in bare.model.named_parameters())


def test_what_is_found_is_what_the_parts_say(model):
    forget, retain = examples(model)
    name, words = (
        "model.layers.0.self_attn.k_proj",
        Recipe(parameters="lora", start="reglu", lora_rank=2, orthogonality=1),
    )
    weight = model.model.get_submodule(name).weight.detach().clone()
    adapted = prepare(model, words)
    begun = starts.find(adapted, words, forget, retain)
    kept = [each for index, each in enumerate(retain) if index % 5 != 4]  # one in five is held out
    sides = [starts.pooled_outputs(adapted, side)[name] for side in (forget, kept, retain[4:5])]
    a, b, _ = reglu.initialize(sides[0], sides[1], weight, rank=2, scale=2.0)
    assert_close(begun.factors[name], (a, b), atol=1e-5, rtol=1e-4)
    basis = reglu.retain_basis(sides[1])
    assert_close(begun.bases[name], basis.float())
    (told,) = [each for each in begun.spectra if each.name == name]
    assert told.leakage == pytest.approx(reglu.share_in(sides[2], b), abs=1e-5) and told.width == len(weight)
    assert told.covered == pytest.approx(reglu.share_in(sides[2], basis), abs=1e-5)
    assert told.directions == basis.shape[1]


def test_filas_importance_is_the_mean_square_of_gradients_by_autograd(model):
    forget, _ = examples(model)
    name = "model.layers.0.mlp.down_proj"
    weight = model.model.get_submodule(name).weight
    total, tokens = torch.zeros_like(weight), 0
    for example in forget:
        batch = collate([example], model.pad_id)
        (gradient,) = torch.autograd.grad(model.model(**batch).loss, weight)
        count = int((batch["labels"][:, 1:] != -100).sum())
        total, tokens = total + count * gradient**2, tokens + count
    words = recipe("fila", lora_rank=2)
    adapted = prepare(model, words)
    found = starts._importances(adapted, words, forget)[name]
    assert_close(found, total / tokens, rtol=1e-4, atol=1e-9)
    assert not adapters.adapted_maps(adapted)[name].get_base_layer().weight.requires_grad
    drawn = {n: p.detach().clone() for n, p in adapted.model.named_parameters()}
    assert starts._importances(adapted, recipe("vila", lora_rank=2), forget)[name].shape == weight.shape
    assert all(torch.equal(p, drawn[n]) for n, p in adapted.model.named_parameters())


def test_the_penalty_is_part_of_the_retain_gradient_once_a_step_and_logged_alone(model):
    forget, retain = examples(model)
    words = recipe(**{**WORDS, "orthogonality": 0.5, "retain_weight": 0.25, "method": "reglu"})
    adapted = prepare(model, words)
    begun = starts.begin(adapted, words, forget, retain)
    summed = starts.penalty(adapted, begun)
    maps = adapters.adapted_maps(adapted)
    expected = sum((adapters.factors(own)[1].T @ begun.bases[name]).square().sum() for name, own in maps.items())
    assert_close(summed(), expected)
    parameters = [p for p in adapted.model.parameters() if p.requires_grad]
    alone = torch.autograd.grad(0.5 * summed(), parameters, allow_unused=True)

    def loss(model, batch):
        return sum(p.sum() for p in parameters) * batch, 2.0 * batch

    def step(**how):
        method = TwoGradients(loss, loss, gradient_sum.combine, retain_weight=0.25, conflicts_every=0, **how)
        return method(adapted.model, [(1.0, 1.0), (3.0, 3.0)], Accelerator(cpu=True), 0)

    bare, kept = step(), step(penalty=summed, penalty_weight=0.5 / 0.25)
    for without, whole, own in zip(bare[0], kept[0], alone, strict=True):
        assert_close(whole - without, torch.zeros_like(whole) if own is None else own, atol=1e-6, rtol=1e-5)
    assert kept[1]["retain_loss"] == bare[1]["retain_loss"] and "penalty" not in bare[1]
    assert_close(kept[1]["penalty"], expected.detach())


def test_training_keeps_b_out_of_the_retain_directions(model):
    forget, retain = examples(model)
    ends = {}
    for weight in (0.0, 5.0):
        words = recipe(**{**WORDS, "orthogonality": weight, "start": "default", "steps": 8, "method": "reglu"})
        made = copy.copy(model)
        made.model = copy.deepcopy(model.model)
        adapted = prepare(made, words)
        basis = starts.find(adapted, words.model_copy(update={"orthogonality": 1.0}), forget, retain)
        train(adapted, words, forget, retain)
        maps = adapters.adapted_maps(adapted)
        share = [adapters.factors(own)[1].double() for own in maps.values()]
        inside = [(b.T @ basis.bases[n].double()).square().sum() for n, b in zip(maps, share, strict=True)]
        ends[weight] = (sum(inside) / sum(b.square().sum() for b in share)).item()
    assert ends[5.0] < 0.2 * ends[0.0]


def test_fused_and_transposed_maps_begin_like_others(start):
    torch.manual_seed(0)
    gpt = GPT2LMHeadModel(
        GPT2Config(vocab_size=start.vocabulary, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    ).eval()
    model = wrap(gpt, start.tokenizer)
    before = logits(gpt)
    words = recipe("reglu", lora_rank=2)
    adapted = prepare(model, words)
    begun = starts.begin(adapted, words, *examples(model))
    assert_close(logits(adapted.model), before, atol=1e-5, rtol=0)
    fused = "transformer.h.0.attn.c_attn"
    a, b = begun.factors[fused]
    assert (a.shape, b.shape) == ((2, 16), (48, 2))
    weight = adapters.adapted_maps(adapted)[fused].get_base_layer().weight
    assert_close(a, b.T @ weight.T, atol=1e-5, rtol=1e-4)
    for name in ("fila", "vila"):
        adapted = prepare(adapters.detach(adapted), recipe(name, lora_rank=2))
        starts.begin(adapted, recipe(name, lora_rank=2), *examples(model))
        assert_close(logits(adapted.model), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"lora_rank": 33}, "_proj has .* fewer than lora_rank 33: use at most"),
        ({"lora_rank": 2, "retain_directions": 32}, "retain directions would forbid all of them"),
        ({"parameters": "full"}, "use parameters lora"),
        ({"update": "fixed-length"}, "use adamw"),
        ({"retain_weight": 0.0}, "set it above 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(model, words, why):
    with pytest.raises(BadInput, match=why):
        chosen = recipe("reglu", **words)
        starts.check(prepare(model, chosen), chosen, *examples(model))


@pytest.mark.parametrize(("guidance", "most"), [(0.0, 4), (0.7, 4), (1.0, 0)])
def test_a_rank_above_what_so_many_records_can_tell_is_refused_before_the_model_is_run(model, guidance, most):
    """Four different forget records, one of them twice, beside five retain records in maps of 16 outputs and more."""
    forget, retain = examples(model)
    forget = [*forget[:4], forget[0]]
    adapted = prepare(model, recipe("reglu", lora_rank=5, guidance=guidance))
    with pytest.raises(
        BadInput, match=f"4 different forget records beside 5 retain records tell at most {most} directions"
    ):
        starts.check(adapted, recipe("reglu", lora_rank=5, guidance=guidance), forget, retain)
    if most:
        starts.check(adapted, recipe("reglu", lora_rank=most, guidance=guidance), forget, retain)
    # Records that tell as many directions as a map is wide leave none arbitrary.
    many = [replace(forget[0], input_ids=(*forget[0].input_ids[:-1], n)) for n in range(400)]
    starts.check(adapted, recipe("reglu", lora_rank=5, guidance=guidance), many, [*retain, *many])


@pytest.mark.parametrize("name", ["reglu", "fila", "vila"])
def test_the_memory_of_a_start_is_what_its_tensors_take(model, name):
    forget, retain = examples(model)
    chosen = recipe(name, lora_rank=2, orthogonality=0.5, retain_directions=3)
    adapted = prepare(model, chosen)
    looked, after = starts.peak_bytes(adapted, chosen, len(forget), len(retain))
    outputs = starts.pooled_outputs(adapted, [*forget, *retain])
    weights = [own.get_base_layer().weight for own in adapters.adapted_maps(adapted).values()]
    held = sum(values.nbytes for values in outputs.values())
    held += sum(weight.numel() for weight in weights) * {"reglu": 0, "fila": 4 + 4 + 4, "vila": 4 + 4}[name]
    largest = max(weight.numel() for weight in weights)
    assert held < looked < held + 8 * 6 * largest + 1
    begun = starts.begin(adapted, chosen, forget, retain)
    fixed = [p for n, p in adapted.model.named_parameters() if ".lora_" in n and not p.requires_grad]
    made = [each for pair in begun.factors.values() for each in pair]
    assert after == sum(each.nbytes for each in (*fixed, *made, *begun.bases.values()))
    plain = Recipe(parameters="lora", lora_rank=2)
    assert starts.peak_bytes(adapted, plain, len(forget), len(retain)) == (0, 0)


def test_maps_that_hold_several_are_named():
    several = ["h.0.attn.c_attn", "l.0.query_key_value", "l.0.qkv_proj", "l.0.Wqkv", "l.0.gate_up_proj"]
    for name in several:
        (note,) = map_spectra.fused([name, "l.0.q_proj", "h.0.attn.c_proj", "l.0.up_proj"])
        assert note.startswith(f"1 of 4 maps hold several in one ({name} ")
    assert map_spectra.fused(["l.0.q_proj", "l.0.down_proj", "h.0.mlp.c_fc"]) == ()
    spectra = [map_spectra.MapSpectrum("h.0.attn.c_attn", 6, forget=0.5, leakage=0.1)]
    assert map_spectra.notes(spectra) == map_spectra.fused(["h.0.attn.c_attn"])
    unknown = map_spectra.notes([map_spectra.MapSpectrum("q", 6, forget=0.5)])
    assert len(unknown) == 1 and "fewer than five" in unknown[0]


def test_a_start_that_the_sets_refuse_is_refused_before_anything_is_measured(start, tmp_path, monkeypatch):
    start.save(tmp_path / "base")
    monkeypatch.setattr(forgetting._Scales, "__call__", None)
    # Four of six forget records are also among the seven retain records that are computed with, which weigh more.
    words = WORDS | {"forget": FORGET, "retain": [*RETAIN[:1], *FORGET[:5], *RETAIN[1:4]], "lora_rank": 3}
    plan = unlearn.plan(tmp_path / "base", **words, out=tmp_path / "out")
    assert any("is known when both have been read" in note for note in plan.notes)
    with pytest.raises(BadInput, match="in 2 directions the forget set shows more than the retain set, and rank 3"):
        unlearn(tmp_path / "base", **words, out=tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()
    with pytest.raises(BadInput, match="taught on the spot: use another model"):
        unlearn("tiny", **words)


@pytest.mark.parametrize("file", ["begun.safetensors", "state.safetensors"])
def test_a_model_that_changed_since_the_work_began_is_refused(start, tmp_path, monkeypatch, file):
    start.save(tmp_path / "base")
    words = WORDS | {"forget": FORGET, "retain": RETAIN, "evaluate_every": 1}
    save_state = forgetting.save_state

    def kill(path, state):
        save_state(path, state)
        if path.name == file:
            raise Killed

    monkeypatch.setattr("equipoise.core.job.model_files_digest", lambda path: "")  # as of a name of the hub
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(forgetting, "save_state", kill)
        unlearn(tmp_path / "base", **words, out=tmp_path / "out")
    with pytest.raises(BadInput, match="retain"):  # as many others
        unlearn(tmp_path / "base", **words | {"retain": [*RETAIN[1:], RETAIN[0]]}, out=tmp_path / "out")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["model.norm.weight"] *= 1.01
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match="another one than when this work began"):
        unlearn(tmp_path / "base", **words, out=tmp_path / "out")


def test_split_weights_have_no_start(monkeypatch):
    from equipoise.training import sharding

    monkeypatch.setattr(sharding, "check_processes", lambda: None)
    with pytest.raises(BadInput, match="leave --shard out"):
        check_shard(recipe("reglu"))


def test_the_jobs_adapter_is_one_of_the_original_base_and_a_killed_job_goes_on(start, tmp_path, monkeypatch):
    start.save(tmp_path / "base")
    words = WORDS | {"forget": FORGET, "retain": RETAIN, "evaluate_every": 1}
    quiet = unlearn(tmp_path / "base", **words, out=tmp_path / "quiet")
    saved, save_state = [], forgetting.save_state

    def kill(path, state):
        save_state(path, state)
        saved.append(path.name)
        if saved.count("state.safetensors") == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(forgetting, "save_state", kill)
        unlearn(tmp_path / "base", **words, out=tmp_path / "killed")
    assert saved[0] == "begun.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(starts, "find", None)  # it is not looked for again
        again = unlearn(tmp_path / "base", **words, out=tmp_path / "killed")
    for name in ("adapter_model.safetensors", "adapter_config.json", "metrics.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "quiet" / name).read_bytes(), name
    assert again.path == quiet.path and again.spectra == quiet.spectra and len(quiet.spectra) == 7
    assert not (tmp_path / "quiet" / "begun.safetensors").exists()
    # PEFT's own loader, on the base as it was saved.
    stated = json.loads((tmp_path / "quiet" / "adapter_config.json").read_text())
    assert (stated["r"], stated["lora_alpha"]) == (4, 8)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    untouched = logits(base)
    loaded = PeftModel.from_pretrained(base, tmp_path / "quiet")
    trained = logits(quiet.model.model)
    assert (logits(loaded) - trained).abs().max() < 1e-5
    assert_close(logits(load(tmp_path / "quiet", device="cpu").model), trained, atol=1e-4, rtol=0)
    change = (trained - untouched).abs().max()
    assert change > 0.01
    # What is trained, written alone for that base, is another model.
    quiet.model.model.save_pretrained(tmp_path / "plain", selected_adapters=["default"])
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "plain")
    assert (logits(plain) - trained).abs().max() > change
    rows = [json.loads(line) for line in (tmp_path / "quiet" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["penalty"] > 0 for row in rows)
    page = (tmp_path / "quiet" / "report.html").read_text(encoding="utf-8")
    assert "Where the adapter begins" in page and "model.layers.0.mlp.up_proj" in page
