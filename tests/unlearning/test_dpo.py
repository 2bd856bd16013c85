"""DPO with refusals: against plain numbers, finite differences, NPO as its limit, and two passes instead of one."""

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from torch.autograd import gradcheck
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.data.records import Message, Record
from equipoise.language.encode import Example, collate, encode
from equipoise.language.score import log_likelihoods
from equipoise.language.tiny import tiny
from equipoise.training.two_gradients import TwoGradients
from equipoise.unlearning import dpo, gradient_sum, objectives, training
from equipoise.unlearning.recipe import METHODS, Recipe
from equipoise.unlearning.training import prepare, train

D = torch.float64
SUMS = {
    "preferred": [-9.0, -3.0, -20.0],
    "preferred_reference": [-12.0, -3.0, -8.0],
    "rejected": [-6.0, -2.0, -0.5],
    "rejected_reference": [-4.0, -2.0, -7.0],
}
RECORDS = [Record(str(n), " ".join(["a", "few", "more", "words", "of", "it"][n:]), f"q {n}?") for n in range(4)]


def test_by_hand():
    found = dpo.dpo(*(torch.tensor(values, dtype=D) for values in SUMS.values()), 0.3)
    gained = [(-9 + 12) - (-6 + 4), 0.0, (-20 + 8) - (-0.5 + 7)]
    assert found.tolist() == pytest.approx([math.log1p(math.exp(-0.3 * h)) for h in gained], rel=1e-14)
    assert found[1].item() == pytest.approx(math.log(2), rel=1e-15)  # nothing has moved


def test_gradients():
    values = [torch.tensor(values, dtype=D) for values in SUMS.values()]
    for index in (0, 2):
        values[index].requires_grad_()
    assert gradcheck(lambda *given: dpo.dpo(*given, 0.3), values)
    gradients = torch.autograd.grad(dpo.dpo(*values, 0.3).sum(), [values[0], values[2]])
    weight = [0.3 / (1 + math.exp(0.3 * h)) for h in (5.0, 0.0, -18.5)]
    assert_close(gradients[0], -torch.tensor(weight, dtype=D))
    assert_close(gradients[1], torch.tensor(weight, dtype=D))
    assert weight[1] == 0.15  # beta / 2 at the start


def test_without_a_refusal_it_is_npo():
    """Where the refusal stays as likely as it was; times 2 / beta."""
    rejected, reference = (torch.tensor(SUMS[name], dtype=D) for name in ("rejected", "rejected_reference"))
    same = torch.tensor([-3.0, -1.0, -7.0], dtype=D)
    assert_close(2 / 0.3 * dpo.dpo(same, same, rejected, reference, 0.3), objectives.npo(rejected, reference, 0.3))


def test_a_refusal_is_the_records_own():
    ids = [f"r-{n}" for n in range(300)]
    drawn = [dpo.refusal(each, 0) for each in ids]
    assert set(drawn) == set(dpo.REFUSALS) and len(set(dpo.REFUSALS)) == len(dpo.REFUSALS) == 12
    records = [Record(each, "answer", "q?") for each in ids]
    assert [r.completion for r in dpo.refused(records[::-1], 0)][::-1] == drawn
    assert [r.completion for r in dpo.refused(records[7:9], 0)] == drawn[7:9]
    assert sum(dpo.refusal(each, 1) != before for each, before in zip(ids, drawn, strict=True)) > 200
    assert dpo.refusal("7", 0) == dpo.refusal("7", 0) != dpo.refusal("7", 2)
    turns = (Message("user", "q?"), Message("assistant", "answer"))
    (said,) = dpo.refused([Record("r-5", "answer", "q?", turns)], 0)
    assert said.completion == said.messages[-1].content == drawn[5] and said.messages[0] == turns[0]
    with pytest.raises(BadInput, match="forget record 'x' has no prompt to refuse: give questions with answers"):
        dpo.refused([records[0], Record("x", "only text")], 0)
    assert repr(drawn[0]) in dpo.note(records, 0) and "12 refusals" in dpo.note(records, 0)


# On batches of a model.

ANSWERS = [([3, 5, 7, 9, 11, 2], [-100, -100, 7, 9, 11, 2]), ([4, 6, 8], [-100, 6, -100]), ([9, 1, 5], [-100, 1, 5])]
REFUSED = [([3, 5, 8, 8], [-100, -100, 8, 8]), ([4, 8, 8, 2, 2], [-100, 8, 8, 2, 2]), ([9, 8, 8], [-100, -100, 8])]
REFERENCE = [-30.0, -4.0, -14.0, -12.0, -30.0, -6.0]


@pytest.fixture(scope="module")
def model():
    made = (
        tiny(["a few more words of it q?"], seed=0, width=16, layers=2, heads=2, vocabulary=300).model.double().eval()
    )
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(30)
    return made


def batch_of(rows, **more):
    batch = collate([Example(tuple(ids), tuple(labels)) for ids, labels in rows], 0)
    return {**batch, **{name: torch.tensor(values, dtype=D) for name, values in more.items()}}


def pairs(**more):
    return batch_of([*ANSWERS, *REFUSED], reference=REFERENCE, **more)


def test_a_batch_is_its_pairs_alone_weighed(model):
    sums = []
    for ids, labels in [*ANSWERS, *REFUSED]:
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        sums.append(sum(log_p[place, label].item() for place, label in enumerate(labels[1:]) if label != -100))
    each = []
    for i in range(3):
        gained = (sums[i + 3] - REFERENCE[i + 3]) - (sums[i] - REFERENCE[i])
        each.append(math.log1p(math.exp(-0.3 * gained)))
    total, weight = dpo.dpo_loss(0.3)(model, pairs())
    assert weight == 3 and total.item() == pytest.approx(sum(each), rel=1e-5)
    given = [0.2, 1.9, 0.9]
    total, weight = dpo.dpo_loss(0.3)(model, pairs(weight=given * 2))
    assert weight == 3 and total.item() == pytest.approx(sum(w * v for w, v in zip(given, each, strict=True)), rel=1e-5)
    masked = pairs()
    masked["labels"][4] = -100  # the refusal of the second
    total, weight = dpo.dpo_loss(0.3)(model, masked)
    assert weight == 2 and total.item() == pytest.approx(each[0] + each[2], rel=1e-5)


def test_a_batch_without_its_other_half_is_refused(model):
    for batch in (batch_of([*ANSWERS, *REFUSED]), batch_of(ANSWERS, reference=REFERENCE[:3])):
        with pytest.raises(BadInput, match=r"^DPO needs batches of answers and, behind them, as many refusals"):
            dpo.dpo_loss(0.3)(model, batch)


def test_one_pass_is_two_passes(model):
    forget = pairs(weight=[0.2, 1.9, 0.9] * 2)
    retain = batch_of([([5, 6, 7, 8, 9, 1], [-100] * 3 + [8, 9, 1]), ([8, 2], [-100, 2])], weight=[1.7, 0.3])
    loss, words = dpo.dpo_loss(0.3), {"forget_weight": 0.7, "retain_weight": 1.3, "conflicts_every": 2}
    both = objectives.in_one_pass(loss, objectives.gd_loss())
    assert both is not None and both(model, forget, retain) is not None
    found = []
    for way in (both, None):
        step = TwoGradients(loss, objectives.gd_loss(), gradient_sum.combine, both=way, **words)
        found.append(step(copy.deepcopy(model), [(forget, retain)], Accelerator(cpu=True), 1)[0])
    assert_close(*found, rtol=1e-4, atol=1e-6)


# As a recipe trains.


@pytest.fixture
def small():
    return tiny(["a few more words of it q?", "q 0? 1? 2? 3?", *dpo.REFUSALS], seed=0, width=16, layers=2, heads=2)


def test_a_batch_has_the_answers_and_behind_them_their_refusals(monkeypatch, small):
    seen = {}
    monkeypatch.setattr(training, "fit", lambda *given, **how: seen.update(how))
    forget, refusals = encode(small, RECORDS), encode(small, dpo.refused(RECORDS, 0))
    weights = torch.tensor([0.4, 1.6, 0.5, 1.5])
    train(small, Recipe(objective="dpo"), forget, forget, refusals=refusals, weights=weights)
    batch, _ = seen["collate"]([(3, 0), (1, 2)])
    rows = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    expected = [forget[3], forget[1], refusals[3], refusals[1]]
    assert rows == [list(example.input_ids) for example in expected]
    assert_close(batch["weight"], torch.tensor([1.5, 1.6, 1.5, 1.6]))
    assert_close(batch["reference"], log_likelihoods(small, expected)[0].float())
    for objective, given in (("dpo", refusals[:3]), ("dpo", ()), ("npo", refusals)):
        with pytest.raises(
            BadInput, match=rf"^{objective} takes .* of the 4 forget examples, and {len(given)} were given"
        ):
            train(small, Recipe(objective=objective), forget, forget, refusals=given)


@pytest.mark.parametrize("parameters", ["full", "lora"])
def test_it_begins_at_log_2_and_comes_to_prefer_refusals(small, parameters):
    words = {"parameters": parameters, "steps": 6, "batch_size": 2, "learning_rate": 1e-2, "retain_weight": 0.0}
    recipe = Recipe(**METHODS["dpo"], **words)
    forget, refusals = encode(small, RECORDS[:2]), encode(small, dpo.refused(RECORDS[:2], 0))
    before = [log_likelihoods(small, examples)[0] for examples in (forget, refusals)]
    trained, seen = prepare(small, recipe), []
    train(
        trained,
        recipe,
        forget,
        encode(small, RECORDS[2:]),
        refusals=refusals,
        callbacks=[lambda state: seen.append(state.metrics)],
    )
    after = [log_likelihoods(trained, examples)[0] for examples in (forget, refusals)]
    assert seen[0]["forget_loss"] == pytest.approx(math.log(2), rel=1e-5) and seen[-1]["forget_loss"] < 0.65
    assert ((after[1] - before[1]) - (after[0] - before[0]) > 1).all()
