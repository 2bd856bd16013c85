"""What a job refuses of a model, the noise that it is compared with, and the log that it writes for open-unlearning."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.core.errors import BadInput
from equipoise.data.records import Record
from equipoise.language.encode import encode
from equipoise.language.score import log_likelihoods, perplexity
from equipoise.language.tiny import teach, tiny
from equipoise.unlearning import checks, forgetting, openunlearning, sides, unlearn
from equipoise.unlearning.forgetting import Forgetting

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
HOW = {"forget": FORGET, "retain": RETAIN, "batch_size": 4}


@pytest.fixture(scope="module")
def taught():
    model = tiny(SIDES.texts(), seed=0, width=32, layers=2, heads=2)
    records = [record for side in SIDES.records.values() for record in side]
    teach(model, records, seed=0, epochs=60, learning_rate=8e-3, batch_size=8)
    return model


@pytest.fixture
def model(taught):
    return replace(taught, model=copy.deepcopy(taught.model))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_checkpoint_with_a_number_that_is_none_is_refused_by_tensor(model, value, tmp_path):
    with torch.no_grad():
        model.model.model.layers[1].mlp.up_proj.weight[3, 4:6] = value
    parameter = model.model.model.layers[1].mlp.up_proj.weight
    said = f"2 of the {parameter.numel():,} numbers of model.layers.1.mlp.up_proj.weight are nan or infinite"
    for call in (unlearn, unlearn.plan):
        with pytest.raises(BadInput, match=said):
            call(model, **HOW, steps=1)
    model.save(tmp_path / "damaged")
    with pytest.raises(BadInput, match=said):
        unlearn(tmp_path / "damaged", **HOW, steps=1)


def test_only_numbers_that_can_be_wrong_are_looked_at():
    module = torch.nn.Linear(3, 2)
    module.register_buffer("places", torch.arange(4))
    module.register_buffer("scale", torch.ones(2, 2))
    whole = SimpleNamespace(model=module, name="mine")
    checks.check_finite(whole)
    module.scale[1] = float("inf")  # behind a buffer of whole numbers
    with pytest.raises(BadInput, match=r"^mine is damaged: 2 of the 4 numbers of scale"):
        checks.check_finite(whole)
    with pytest.raises(BadInput, match=r"^the after model is damaged"):
        checks.check_finite(whole, named="the after model")
    module.scale[1] = torch.finfo(torch.float32).max
    checks.check_finite(whole)


def test_a_tokenizer_of_another_model_is_refused(model):
    texts = ["Altogether other words stand here, from which other tokens are made."] * 3 + SIDES.texts()[5:]
    other = tiny(texts, seed=0, width=16, layers=1, vocabulary=300)
    for call in (unlearn, unlearn.plan):
        with pytest.raises(BadInput, match=r"where guessing among its \d+ tokens gives -\d.*another model's"):
            call(model.model, tokenizer=other.tokenizer, **HOW, steps=1)


def test_tokens_beyond_the_embedding_are_refused(model):
    more = copy.deepcopy(model.tokenizer)
    more.add_tokens(["wall"])
    assert len(more) > model.vocabulary
    with pytest.raises(BadInput, match="embedding"):
        unlearn(model.model, tokenizer=more, **HOW, steps=1)


def test_a_model_that_knows_nothing_is_no_model_with_another_tokenizer():
    untaught = tiny(SIDES.texts(), seed=0, width=16, layers=1)
    checks.check_reads(untaught, encode(untaught, SIDES.records["retain"]))


def test_noise_has_the_norm_of_the_change_in_every_tensor(model):
    start = checks.trained_weights(model.model)
    before = copy.deepcopy(model.model.state_dict())
    frozen = model.model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if parameter is not frozen:
                parameter += 0.01 * len(name) * torch.randn(parameter.shape)
    after = copy.deepcopy(model.model.state_dict())
    drawn = []
    for seed in (3, 3, 4):
        with checks.changed_at_random(model.model, start, seed):
            drawn.append(copy.deepcopy(model.model.state_dict()))
    for name in start:
        size = (after[name] - before[name]).norm()
        torch.testing.assert_close((drawn[0][name] - before[name]).norm(), size, rtol=1e-4, atol=1e-6)
        assert torch.equal(drawn[0][name], drawn[1][name]) and torch.equal(model.model.state_dict()[name], after[name])
        if size:
            # Its direction has nothing to do with the change's.
            noise, change = (x[name] - before[name] for x in (drawn[0], after))
            cosine = (noise * change).sum() / (noise.norm() * change.norm())
            assert abs(cosine) < 5 / np.sqrt(noise.numel()) and not torch.equal(drawn[0][name], drawn[2][name])
    with pytest.raises(KeyboardInterrupt), checks.changed_at_random(model.model, start, 0):
        raise KeyboardInterrupt
    assert all(torch.equal(model.model.state_dict()[name], after[name]) for name in start)


def test_weights_of_sixteen_bits_are_put_back_bit_for_bit(model):
    model.model.to(torch.bfloat16)
    start = checks.trained_weights(model.model)
    with torch.no_grad():
        model.model.lm_head.weight += 0.5
    after = model.model.lm_head.weight.detach().clone()
    with checks.changed_at_random(model.model, start, 0):
        moved = (model.model.lm_head.weight.float() - start_of(start, model).float()).norm()
    torch.testing.assert_close(moved, (after.float() - start_of(start, model).float()).norm(), rtol=1e-2, atol=0)
    assert torch.equal(model.model.lm_head.weight, after)


def start_of(start, model):
    name = next(n for n, p in model.model.named_parameters() if p is model.model.lm_head.weight)
    return start[name]


def test_a_job_says_what_noise_and_general_texts_tell(model, tmp_path):
    start = copy.deepcopy(model.model)
    done = unlearn(
        model,
        **HOW,
        general=[{"text": "The sky is red and blue."}],
        steps=12,
        learning_rate=3e-3,
        combine="sum",
        evaluation="open-unlearning",
        out=tmp_path / "done",
    )
    assert set(done.control) == {"forget_log_probability", "forget_accuracy"}
    trained = checks.trained_weights(start)
    with checks.changed_at_random(model.model, trained, 0):
        sums, counts = log_likelihoods(model, encode(model, SIDES.records["forget"]))
    assert done.control["forget_log_probability"].value == pytest.approx((sums / counts).mean().item(), abs=1e-6)
    assert done.after["general_perplexity"].value == pytest.approx(perplexity(model, ["The sky is red and blue."]))
    assert "retain_perplexity" not in done.after
    assert f"after a random change of equal size: {done.by_chance()}" in done.summary()
    card = (tmp_path / "done" / "README.md").read_text()
    assert f"- After a random change of equal size: {done.by_chance()}." in card
    assert done.by_chance().replace("-", "−") in (tmp_path / "done" / "report.html").read_text().replace("-", "−")
    log, summary = (json.loads((tmp_path / "done" / name).read_text()) for name in openunlearning.FILES)
    likely = {
        name: np.mean([v["avg_loss"] for v in log[f"{name}_Q_A_Prob"]["value_by_index"].values()])
        for name in HOW
        if name != "batch_size"
    }
    assert likely == pytest.approx({name: -done.after[f"{name}_log_probability"].value for name in likely}, abs=1e-5)
    assert set(summary) == {
        *(f"{side}_Q_A_{what}" for side in ("forget", "retain") for what in ("Prob", "ROUGE")),
        "exact_memorization",
        "extraction_strength",
    }


@pytest.mark.parametrize("budget", [None, 1.0])
def test_the_evaluation_is_of_every_record_by_its_place(model, tmp_path, monkeypatch, budget):
    """However many the job measures, and with those that a loss budget holds out of the retain file."""
    monkeypatch.setattr(sides, "MEASURED", 2)
    monkeypatch.setattr(forgetting, "MEASURED", 2)
    request = Forgetting.read(
        model, None, {"forget": FORGET, "retain": RETAIN}, fields=None, method=None, stop_at=None, every=1,
        settings={} if budget is None else {"loss_budget": budget}, loading={"chat_template": "none", "date": None,
        "device": "cpu"}, attention=None, shard=False, evaluation="open-unlearning",
    )  # fmt: skip
    scales = forgetting._Scales(request.sides, batch_size=4, max_length=64)
    scales.export(model, tmp_path)
    log = json.loads((tmp_path / openunlearning.FILES[0]).read_text())
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        records = [Record(str(i), row["answer"], row["question"]) for i, row in enumerate(rows)]
        sums, counts = log_likelihoods(model, encode(model, records))
        logged = log[f"{name}_Q_A_Prob"]["value_by_index"]
        assert {int(place): item["avg_loss"] for place, item in logged.items()} == pytest.approx(
            dict(enumerate((-sums / counts).tolist())), abs=1e-5
        )
        asked = log[f"{name}_Q_A_ROUGE"]["value_by_index"]
        assert [asked[str(i)]["input"] for i in range(len(rows))] == [row["question"] for row in rows]
    assert len(log["exact_memorization"]["value_by_index"]) == len(FORGET)
    assert any(f"all {len(FORGET)} forget and {len(RETAIN)} retain records" in n for n in request._evaluation_notes())


def test_an_evaluation_without_a_folder_is_refused_before_the_work(model, monkeypatch):
    monkeypatch.setattr(Forgetting, "_opened", None)
    with pytest.raises(BadInput, match="name one with out"):
        unlearn(model, **HOW, steps=1, evaluation="open-unlearning")
    with pytest.raises(BadInput, match="open_unlearning"):
        unlearn(model, **HOW, steps=1, evaluation="open_unlearning")


def test_the_text_of_a_conversation_is_all_that_is_said(model):
    from equipoise.unlearning.forgetting import _Scales

    talk = {"messages": [{"role": "user", "content": "red?"}, {"role": "assistant", "content": "blue"}]}
    given = sides.read_sides({"forget": FORGET, "retain": [talk, {"text": "the wall"}, RETAIN[0]]}, None)
    found = _Scales(given, batch_size=2, max_length=64).perplexity(model)
    texts = ["red?\nblue", "the wall", "What colour is the e wall? red"]
    assert found["retain_perplexity"].value == pytest.approx(perplexity(model, texts))
