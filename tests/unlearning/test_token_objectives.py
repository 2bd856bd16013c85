"""WGA, SatImp, UNDIAL and CE-U: against central differences with what is held constant held, closed forms and limits."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from equipoise.data.records import Record
from equipoise.language.encode import Example, collate, encode
from equipoise.language.score import log_likelihoods
from equipoise.language.tiny import tiny
from equipoise.training.team import accelerator_for
from equipoise.training.two_gradients import TwoGradients
from equipoise.unlearning import gradient_sum, objectives
from equipoise.unlearning import token_objectives as t
from equipoise.unlearning.recipe import METHODS, Recipe
from equipoise.unlearning.training import losses, prepare, train

D = torch.float64
LABELS = torch.tensor([4, 0, 2, 5])


@pytest.fixture
def logits():
    """Four tokens over six words: an even one, a likely label, an unlikely label, and between."""
    drawn = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=D)
    return drawn + 4 * torch.nn.functional.one_hot(LABELS, 6) * torch.tensor([0, 1, -1, 0.3], dtype=D)[:, None]


@pytest.fixture
def reference():
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=D)


def loss_of(name, logits, reference):
    log_p = logits.log_softmax(-1)[range(4), LABELS]
    return {
        "wga": lambda: t.wga(log_p, 0.7),
        "satimp": lambda: t.satimp(log_p, 1.5, 0.6),
        "undial": lambda: t.undial(reference, logits, LABELS, 3.0),
        "ce-u": lambda: t.ce_u(logits, LABELS),
    }[name]()


def by_hand(name, z, reference, held):
    """The sum over tokens in plain numbers, with what is held constant taken from the logits `held`."""
    total = 0.0
    for row, before, frozen, label in zip(z.tolist(), held.tolist(), reference.tolist(), LABELS.tolist(), strict=True):
        p, p_before = softmax(row), softmax(before)[label]
        if name == "wga":
            total += p_before**0.7 * math.log(p[label])
        elif name == "satimp":
            total += p_before**1.5 * (1 - p_before) ** 0.6 * math.log(p[label])
        else:
            source = [value - 3 * (v == label) for v, value in enumerate(frozen)] if name == "undial" else before
            kept = [v for v in range(6) if name == "undial" or v != label]
            q = dict(zip(kept, softmax([source[v] for v in kept]), strict=True))
            total -= sum(q[v] * math.log(p[v]) for v in kept)
    return total


def softmax(values):
    exponentials = [math.exp(value) for value in values]
    return [value / sum(exponentials) for value in exponentials]


@pytest.mark.parametrize("name", ["wga", "satimp", "undial", "ce-u"])
def test_values_and_gradients(name, logits, reference):
    z = logits.clone().requires_grad_()
    loss = loss_of(name, z, reference)
    assert loss.shape == (4,)
    assert loss.sum().item() == pytest.approx(by_hand(name, logits, reference, logits), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    slopes = torch.zeros(4, 6, dtype=D)
    for place in [(i, v) for i in range(4) for v in range(6)]:
        step = torch.zeros(4, 6, dtype=D)
        step[place] = 1e-5
        ends = [by_hand(name, logits + sign * step, reference, logits) for sign in (1, -1)]
        slopes[place] = (ends[0] - ends[1]) / 2e-5
    assert_close(gradient, slopes, rtol=1e-6, atol=1e-9)
    p, label = logits.softmax(-1), torch.nn.functional.one_hot(LABELS, 6).to(D)
    own = (p * label).sum(-1, keepdim=True)
    q = (p * (1 - label)) / (1 - own)
    closed = {
        "wga": own**0.7 * (label - p),
        "satimp": own**1.5 * (1 - own) ** 0.6 * (label - p),
        "undial": p - (reference - 3 * label).softmax(-1),
        "ce-u": own * (label - q),
    }[name]
    assert_close(gradient, closed, rtol=1e-10, atol=1e-12)


def test_ascent_without_weights_is_ga(logits):
    log_p = torch.cat([logits.log_softmax(-1)[range(4), LABELS], torch.zeros(1, dtype=D)])
    assert torch.equal(t.wga(log_p, 0.0), log_p) and torch.equal(t.satimp(log_p, 0.0, 0.0), log_p)
    assert_close(t.satimp(log_p, 0.7, 0.0), t.wga(log_p, 0.7), rtol=1e-14, atol=0)
    assert t.satimp(log_p, 0.7, 1.0)[-1] == 0  # a certain token has no importance


def test_satimp_near_certainty_keeps_its_digits():
    """1 - p by subtraction is 0 in float32 from 6e-8 on."""
    assert_close(t.satimp(torch.tensor([-1e-9]), 0.0, 1.0), torch.tensor([-1e-18]), rtol=1e-6, atol=0)
    grid = torch.linspace(1e-4, 1 - 1e-4, 9999, dtype=D)
    weights = t.satimp(grid.log(), 5.0, 1.0) / grid.log()
    assert grid[weights.argmax()].item() == pytest.approx(5 / 6, abs=2e-4)


def test_undial_without_strength_is_at_rest_at_the_start(logits, reference):
    z = logits.clone().requires_grad_()
    loss = t.undial(logits, z, LABELS, 0.0)
    assert_close(loss.detach(), torch.distributions.Categorical(logits=logits).entropy())
    assert torch.autograd.grad(loss.sum(), z)[0].abs().max() < 1e-15
    assert torch.autograd.grad(t.undial(logits, z, LABELS, 0.5).sum(), z)[0][range(4), LABELS].min() > 0
    # Reached where the labelled logit has come down by beta and no other has moved.
    down = logits.scatter_add(-1, LABELS[:, None], torch.full((4, 1), -2.0, dtype=D)).requires_grad_()
    assert torch.autograd.grad(t.undial(logits, down, LABELS, 2.0).sum(), down)[0].abs().max() < 1e-15


def test_ce_u_is_unlikelihood_in_its_gradient(logits, reference):
    z = logits.clone().requires_grad_()
    unlikely = -torch.log1p(-z.softmax(-1)[range(4), LABELS])
    loss = t.ce_u(z, LABELS)
    others = [torch.cat([row[:label], row[label + 1 :]]) for row, label in zip(logits, LABELS.tolist(), strict=True)]
    entropy = torch.stack([torch.distributions.Categorical(logits=row).entropy() for row in others])
    assert_close(loss.detach(), entropy + unlikely.detach())
    assert_close(torch.autograd.grad(loss.sum(), z)[0], torch.autograd.grad(unlikely.sum(), z)[0])
    assert_close(t.undial(logits, logits, LABELS, math.inf), t.ce_u(logits, LABELS))


def test_ce_u_moves_what_is_certain():
    """Where p_y is 1 to all digits, GA's gradient is nothing; CE-U's is 1 on the label. Far away it is 0, GA's 1."""
    z = torch.tensor([[120.0, 0.0, 0.0], [-120.0, 0.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(t.ce_u(z, torch.tensor([0, 0])).sum(), z)
    assert_close(gradient, torch.tensor([[1.0, -0.5, -0.5], [0.0, 0.0, 0.0]]))


def test_logits_of_sixteen_bits_are_widened(logits, reference):
    low, frozen = logits.bfloat16(), reference.bfloat16()
    assert t.ce_u(low, LABELS).dtype == t.undial(frozen, low, LABELS, 1.0).dtype == torch.float32
    assert_close(t.ce_u(low, LABELS), t.ce_u(low.float(), LABELS), rtol=0, atol=0)


# On batches of a model.


@pytest.fixture(scope="module")
def model():
    made = (
        tiny(["a few more words of it q?"], seed=0, width=16, layers=2, heads=2, vocabulary=300).model.double().eval()
    )
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(30)  # likelihoods that differ
    return made


def batch_of(rows, weights):
    batch = collate([Example(tuple(ids), tuple(labels)) for ids, labels in rows], 0)
    return {**batch, "weight": torch.tensor(weights, dtype=D)}


FORGET = [
    ([3, 5, 7, 9, 11, 2], [-100, -100, 7, 9, 11, 2]),
    ([4, 6, 8], [-100, 6, -100]),
    ([9, 1, 1, 5], [-100, 1, 1, 5]),
]
RETAIN = [([5, 6, 7, 8, 9, 1, 1], [-100] * 4 + [9, 1, 1]), ([8, 2], [-100, 2])]
WEIGHTS = [0.2, 1.9, 0.9]


def moved(model):
    """A copy with other weights, so that it is not the frozen model any more."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=D))
    return other


def all_losses(frozen):
    return {
        "wga": t.wga_loss(0.7),
        "satimp": t.satimp_loss(1.5, 0.6),
        "undial": t.undial_loss(3.0, frozen),
        "ce-u": t.ce_u_loss(),
    }


@pytest.mark.parametrize("name", ["wga", "satimp", "undial", "ce-u"])
def test_a_batch_is_its_rows_alone_weighed(model, name):
    """From separate passes over unpadded rows of transformers; only labelled tokens count, each with its row's weight."""
    trained, expected, tokens = moved(model), 0.0, 0
    for (ids, labels), weight in zip(FORGET, WEIGHTS, strict=True):
        with torch.no_grad():
            z, frozen = (m(input_ids=torch.tensor([ids])).logits[0, :-1] for m in (trained, model))
        for place, label in enumerate(labels[1:]):
            if label != -100:
                row, label = z[place : place + 1], torch.tensor([label])
                log_p = row.log_softmax(-1)[:, label[0]]
                value = {
                    "wga": lambda: t.wga(log_p, 0.7),  # noqa: B023
                    "satimp": lambda: t.satimp(log_p, 1.5, 0.6),  # noqa: B023
                    "undial": lambda: t.undial(frozen[place : place + 1], row, label, 3.0),  # noqa: B023
                    "ce-u": lambda: t.ce_u(row, label),  # noqa: B023
                }[name]()
                expected, tokens = expected + weight * value.item(), tokens + 1
    total, count = all_losses(model)[name](trained, batch_of(FORGET, WEIGHTS))
    assert count == tokens == 8
    assert total.item() == pytest.approx(expected, rel=1e-5)  # RMS norms compute in float32


@pytest.mark.parametrize("name", ["wga", "satimp", "undial", "ce-u"])
def test_one_pass_is_two_passes(model, name):
    trained = moved(model)
    forget, retain = batch_of(FORGET, WEIGHTS), batch_of(RETAIN, [1.7, 0.3])
    loss, words = all_losses(model)[name], {"forget_weight": 0.7, "retain_weight": 1.3, "conflicts_every": 2}
    both = objectives.in_one_pass(loss, objectives.gd_loss())
    assert both is not None and both(trained, forget, retain) is not None
    found = []
    for way in (both, None):
        step = TwoGradients(loss, objectives.gd_loss(), gradient_sum.combine, both=way, **words)
        found.append(step(trained, [(forget, retain)], accelerator_for("cpu"), 1)[0])
    assert_close(*found, rtol=1e-4, atol=1e-6)


# As a recipe trains.

RECORDS = [Record(str(n), " ".join(["a", "few", "more", "words", "of", "it"][n:]), f"q {n}?") for n in range(4)]


@pytest.fixture(scope="module")
def half_learnt():
    made = tiny(["a few more words of it q?", "q 0? 1? 2? 3?"], seed=0, width=16, layers=2, heads=2, vocabulary=300)
    batch, optimizer = collate(encode(made, RECORDS), made.pad_id), torch.optim.AdamW(made.model.parameters(), 1e-2)
    for _ in range(25):
        total, tokens = objectives.gd_loss()(made.model, batch)
        (total / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return made


@pytest.fixture
def taught(half_learnt):
    """A model that has half learnt the records."""
    return replace(half_learnt, model=copy.deepcopy(half_learnt.model))


@pytest.mark.parametrize("name", ["wga", "satimp", "undial", "ce-u"])
@pytest.mark.parametrize("parameters", ["full", "lora"])
def test_every_preset_forgets(taught, name, parameters):
    """Without a retain gradient, whose answers share words with those to forget."""
    words = {"steps": 6, "batch_size": 2, "learning_rate": 1e-2, "forget_weight": 1.0, "retain_weight": 0.0}
    recipe = Recipe(**METHODS[name] | words, beta1=0.5, parameters=parameters)
    examples = encode(taught, RECORDS)
    before = log_likelihoods(taught, examples[:2])[0]
    trained = prepare(taught, recipe)
    train(trained, recipe, examples[:2], examples[2:])
    assert (log_likelihoods(trained, examples[:2])[0] < before - 1).all()


def test_undial_distils_the_model_at_its_start(taught):
    """Also where an adapter is trained: of strength 0 the loss is at rest at the start, and not after a change."""
    recipe = Recipe(objective="undial", beta=1e-12, parameters="lora")
    trained = prepare(taught, recipe)
    loss, _ = losses(trained, recipe)
    batch = collate(encode(trained, RECORDS), trained.pad_id)

    def slope():
        trained.model.zero_grad(set_to_none=True)
        total, _ = loss(trained.model, batch)
        total.backward()
        return max(p.grad.abs().max().item() for p in trained.model.parameters() if p.grad is not None)

    assert slope() < 1e-4
    with torch.no_grad():
        for parameter in trained.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3)
    assert slope() > 1e-2


def test_a_recipes_settings_reach_its_loss(taught):
    trained = moved(taught.model.double())
    batch = batch_of(FORGET, WEIGHTS)
    for words, expected in (
        ({"objective": "wga"}, t.wga_loss(1.0)),
        ({"objective": "wga", "beta": 0.4}, t.wga_loss(0.4)),
        ({"objective": "satimp"}, t.satimp_loss(5.0, 1.0)),
        ({"objective": "satimp", "beta1": 0.3, "beta2": 2.0}, t.satimp_loss(0.3, 2.0)),
        ({"objective": "undial"}, t.undial_loss(10.0, taught.model)),
        ({"objective": "undial", "beta": 0.4}, t.undial_loss(0.4, taught.model)),
        ({"objective": "ce-u"}, t.ce_u_loss()),
    ):
        found, _ = losses(taught, Recipe(**words))
        assert found(trained, batch)[0].item() == pytest.approx(expected(trained, batch)[0].item(), rel=1e-6), words
