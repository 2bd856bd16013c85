"""Objectives against plain-Python loops over tokens, finite differences, limits and a hand-computed model."""

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from torch.autograd import gradcheck
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from equipoise.core.errors import BadInput
from equipoise.language.encode import Example, collate
from equipoise.language.score import labelled_logits
from equipoise.training.two_gradients import TwoGradients
from equipoise.unlearning import gradient_sum
from equipoise.unlearning import objectives as o

BETA, GAMMA = 0.7, 0.3


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        pad_token_id=0,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).double().eval()
    for name, module in list(model.named_modules()):
        if isinstance(module, LlamaRMSNorm):  # computes in float32, whatever the model is in: no finite differences
            model.set_submodule(name, torch.nn.RMSNorm(16, module.variance_epsilon, dtype=torch.float64))
    return model


@pytest.fixture(scope="module")
def batch():
    """Unequal lengths, prompts that are not scored, a last token that is not scored, a first one that nothing predicts."""
    rows = [
        ([3, 5, 7, 9, 11, 2], [-100, -100, 7, 9, 11, 2]),
        ([4, 6, 8], [-100, 6, -100]),
        ([9, 1, 1, 5], [9, 1, 1, 5]),
    ]
    return collate([Example(tuple(ids), tuple(labels)) for ids, labels in rows], 0)


def token_log_probabilities(model, batch):
    """log p of each labelled token from separate passes over unpadded rows, as lists of floats."""
    found = []
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        length = int(mask.sum())
        with torch.no_grad():
            logits = model(input_ids=ids[None, :length]).logits[0]
        row = []
        for place in range(1, length):
            if labels[place] != -100:
                scores = logits[place - 1].tolist()
                row.append(scores[labels[place]] - math.log(sum(math.exp(score) for score in scores)))
        found.append(row)
    return found


def value(loss):
    total, weight = loss
    return total.item() / float(weight)


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def test_losses_by_hand(model, batch):
    rows = token_log_probabilities(model, batch)
    tokens = [value for row in rows for value in row]
    reference = [-11.0, -2.0, -9.0]
    whole = {**batch, "reference": torch.tensor(reference, dtype=torch.float64)}
    assert [len(row) for row in rows] == [4, 1, 3]
    assert value(o.gd_loss()(model, batch)) == pytest.approx(-sum(tokens) / 8, rel=1e-12)
    assert value(o.ga_loss()(model, batch)) == pytest.approx(sum(tokens) / 8, rel=1e-12)
    expected = [-2 / BETA * log_sigmoid(BETA * (ref - sum(row))) for ref, row in zip(reference, rows, strict=True)]
    assert value(o.npo_loss(BETA)(model, whole)) == pytest.approx(sum(expected) / 3, rel=1e-12)
    expected = [-2 / BETA * log_sigmoid(-BETA / len(row) * sum(row) - GAMMA) for row in rows]
    assert value(o.simnpo_loss(BETA, GAMMA)(model, batch)) == pytest.approx(sum(expected) / 3, rel=1e-12)
    logits, labels, _ = labelled_logits(model, batch)
    sums, counts = o.sequence_log_likelihoods(logits, labels, batch)
    assert_close(sums.detach(), torch.tensor([sum(row) for row in rows], dtype=torch.float64))
    assert counts.tolist() == [4, 1, 3]


@pytest.mark.parametrize("forget_loss", [o.ga_loss(), o.npo_loss(BETA), o.simnpo_loss(BETA, GAMMA)])
def test_the_sum_of_both_losses_from_one_pass(model, batch, forget_loss):
    """Weighed rows of unequal length on both sides: as from two passes, but for rounding."""
    forget = {**batch, "reference": torch.tensor([-11.0, -2.0, -9.0], dtype=torch.float64)}
    forget["weight"] = torch.tensor([0.2, 1.9, 0.9], dtype=torch.float64)
    kept = [([5, 6, 7, 8, 9, 1, 1], [-100] * 4 + [9, 1, 1]), ([8, 2], [-100, 2])]
    retain = collate([Example(tuple(ids), tuple(labels)) for ids, labels in kept], 0)
    retain["weight"] = torch.tensor([1.7, 0.3], dtype=torch.float64)
    passes = []
    hook = model.register_forward_pre_hook(lambda *_: passes.append(1))
    words = {"forget_weight": 0.7, "retain_weight": 1.3, "conflicts_every": 2}
    both = o.in_one_pass(forget_loss, o.gd_loss())
    try:
        joint = TwoGradients(forget_loss, o.gd_loss(), gradient_sum.combine, both=both, **words)
        apart = TwoGradients(forget_loss, o.gd_loss(), gradient_sum.combine, **words)
        for index, expected in (
            (1, 1),
            (2, 2),
        ):  # every second step logs the conflict, for which two gradients are needed
            passes.clear()
            found, logged = joint(model, [(forget, retain)], Accelerator(cpu=True), index)
            assert len(passes) == expected
            gradients, losses = apart(model, [(forget, retain)], Accelerator(cpu=True), index)
            assert_close(found, gradients, rtol=1e-10, atol=1e-12)
            assert all(logged[name].item() == pytest.approx(losses[name].item(), rel=1e-12) for name in losses)
        passes.clear()
        joint(model, [(forget, retain), (forget, retain)], Accelerator(cpu=True), 1)
        assert len(passes) == 4  # several micro-batches: the means are not known before the last
    finally:
        hook.remove()


def test_one_pass_is_for_small_batches_of_like_length(model, batch):
    both = o.in_one_pass(o.ga_loss(), o.gd_loss())
    wide = {name: values.repeat(60, 1) for name, values in batch.items()}  # 180 rows of 6 tokens
    long = collate([Example(tuple([3] * 20), tuple([-100] * 19 + [3]))], 0)
    assert both(model, batch, batch) is not None
    assert both(model, wide, batch) is None and both(model, batch, long) is None
    assert o.in_one_pass(o.ga_loss(), o.kl_loss(model)) is None


def test_open_unlearning_on_fixed_numbers():
    """Values of locuslab/open-unlearning's formulas (src/trainer/utils.py, unlearn/simnpo.py, unlearn/rmu.py) worked out
    here with torch's own losses on fixed logits of equal lengths, where its RMU has the mean over tokens that it means."""
    generator = torch.Generator().manual_seed(0)
    logits, frozen = torch.randn(2, 3, 5, 11, generator=generator, dtype=torch.float64)
    labels = torch.randint(11, (3, 5), generator=generator)
    nll, ref = (
        torch.nn.CrossEntropyLoss(ignore_index=-100, reduction="none")(x.transpose(-1, -2), labels).sum(-1)
        for x in (logits, frozen)
    )
    theirs = -2 / BETA * torch.nn.functional.logsigmoid(BETA * (0.0 - -(nll - ref))).mean()
    assert_close(o.npo(-nll, -ref, BETA).mean(), theirs)
    delta = 0.4  # their margin, in nats per token: gamma = beta delta
    theirs = -torch.nn.functional.logsigmoid(BETA * (nll / 5 - delta)).mean() * 2 / BETA
    assert_close(o.simnpo(-nll, torch.full((3,), 5), BETA, BETA * delta).mean(), theirs)
    u = torch.rand(11, generator=generator, dtype=torch.float64)
    squared = torch.nn.functional.mse_loss(logits, u.expand_as(logits), reduction="none").mean(2).sum(1)
    assert_close(o.distance(logits, u).mean(), (squared / torch.full((3, 1), 5)).mean())
    theirs = torch.nn.functional.kl_div(
        logits.log_softmax(-1).view(-1, 11), frozen.log_softmax(-1).view(-1, 11), reduction="batchmean", log_target=True
    )
    assert_close(o.kl(frozen, logits).mean(), theirs)


def test_finite_differences():
    """Check 8, of the pure functions."""
    generator = torch.Generator().manual_seed(0)
    sums = (-5 * torch.rand(4, generator=generator, dtype=torch.float64)).requires_grad_()
    reference = -5 * torch.rand(4, generator=generator, dtype=torch.float64)
    counts = torch.tensor([1, 2, 5, 3])
    logits = torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    frozen = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    assert gradcheck(lambda s: o.npo(s, reference, BETA), sums)
    assert gradcheck(lambda s: o.simnpo(s, counts, BETA, GAMMA), sums)
    assert gradcheck(lambda x: o.kl(frozen, x), logits)
    assert gradcheck(lambda x: o.distance(x, frozen), logits)


@pytest.mark.parametrize("name", ["gd", "ga", "npo", "simnpo", "kl", "rmu", "rmu-retain"])
def test_finite_differences_through_the_model(model, batch, name):
    """Check 8, of the losses as they are trained on: the slope along a random direction of all parameters."""
    generator = torch.Generator().manual_seed(1)
    trained = copy.deepcopy(model)
    frozen = o.ReferenceModel(trained)
    with torch.no_grad():
        for parameter in trained.parameters():  # away from the starting model, where KL is flat
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    loss = {
        "gd": o.gd_loss(),
        "ga": o.ga_loss(),
        "npo": o.npo_loss(BETA),
        "simnpo": o.simnpo_loss(BETA, GAMMA),
        "kl": o.kl_loss(frozen),
        "rmu": o.rmu_loss(1, o.steering_vector(16, 3.0, generator)),
        "rmu-retain": o.rmu_retain_loss(2, frozen),
    }[name]
    whole = {**batch, "reference": torch.tensor([-11.0, -2.0, -9.0], dtype=torch.float64)}
    total, weight = loss(trained, whole)
    (total / weight).backward()
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in trained.parameters()]
    slope = sum((p.grad * d).sum() for p, d in zip(trained.parameters(), direction, strict=True) if p.grad is not None)
    sides = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for parameter, d in zip(trained.parameters(), direction, strict=True):
                parameter.add_(step * d)
            sides.append(value(loss(trained, whole)))
    assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(slope.item(), rel=1e-5)


def test_npo_limits():
    """Check 7: weight exactly 1 at the start; beta -> 0 is 2 log 2 / beta - mean(S - S_ref), in the gradient GA on sums."""
    sums = torch.tensor([-3.0, -40.0, -0.5], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(o.npo(sums, sums.detach(), 5.0).sum(), sums)
    assert_close(gradient, torch.ones(3, dtype=torch.float64), rtol=1e-15, atol=0)
    reference = torch.tensor([-5.0, -30.0, -0.7], dtype=torch.float64)
    loss = o.npo(sums, reference, 1e-6)
    assert loss.mean().item() == pytest.approx(2 * math.log(2) / 1e-6 - (reference - sums).mean().item(), abs=1e-4)
    (gradient,) = torch.autograd.grad(loss.sum(), sums)
    assert_close(gradient, torch.ones(3, dtype=torch.float64), rtol=1e-5, atol=0)
    # The card's weight 2 sigmoid(-beta (S - S_ref)) with S = -log p.
    (gradient,) = torch.autograd.grad(o.npo(sums, reference, 0.1).sum(), sums)
    assert_close(gradient, 2 * torch.sigmoid(-0.1 * (reference - sums.detach())))


def test_losses_unless_told_otherwise(model, batch):
    sums, counts = torch.tensor([-3.0, -8.0]), torch.tensor([2, 4])
    assert_close(o.simnpo(sums, counts, BETA), o.simnpo(sums, counts, BETA, 0.0), rtol=0, atol=0)
    assert value(o.simnpo_loss(BETA)(model, batch)) == value(o.simnpo_loss(BETA, 0.0)(model, batch))
    bare = o.Objective(loss=o.npo_loss)
    assert (bare.retain, bare.parameters, bare.settings, bare.retain_weight, bare.reference) == (
        None,
        None,
        (),
        1.0,
        False,
    )
    assert math.isnan(bare.beta) and not bare.refusals and not bare.distills


def test_simnpo_limit():
    """Check 7: gamma = 0, beta -> 0 has the gradient of the mean of S_i / n_i, negated."""
    counts = torch.tensor([1, 4, 10])
    sums = torch.tensor([-3.0, -40.0, -0.5], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(o.simnpo(sums, counts, 1e-7).sum(), sums)
    assert_close(gradient, 1 / counts.double(), rtol=1e-5, atol=0)


def test_bounded_far_away():
    """No overflow where nothing is left to forget (loss 0), and none where everything is."""
    far = torch.tensor([-1e6, 0.0], requires_grad=True)
    loss = o.npo(far, torch.tensor([0.0, -1e6]), 1.0)
    assert_close(loss.detach(), torch.tensor([0.0, 2e6]))
    assert_close(torch.autograd.grad(loss.sum(), far)[0], torch.tensor([0.0, 2.0]))


def test_kl_is_zero_at_the_starting_model(model, batch):
    """Check 8: value and gradient; and only then."""
    trained = copy.deepcopy(model)
    loss = o.kl_loss(o.ReferenceModel(trained))
    total, weight = loss(trained, batch)
    assert weight == 13 == int(batch["attention_mask"].sum())
    assert total.item() == 0
    total.backward()
    assert max(p.grad.abs().max().item() for p in trained.parameters()) < 1e-12
    with torch.no_grad():
        trained.model.norm.weight[0] += 0.5
    assert loss(trained, batch)[0].item() > 1e-3


def test_kl_keeps_nothing_for_a_next_token(model, batch):
    trained, kept = copy.deepcopy(model), []
    trained.register_forward_pre_hook(lambda _, __, given: kept.append(given["use_cache"]), with_kwargs=True)
    o.kl_loss(model)(trained, batch)
    assert kept == [False]


def test_kl_masks_padding(model, batch):
    """Row by row without padding, the mean over real tokens is the same; with padding counted it would not be."""
    trained = copy.deepcopy(model)
    frozen = copy.deepcopy(model)
    with torch.no_grad():
        trained.lm_head.weight.add_(0.1 * torch.randn(trained.lm_head.weight.shape, dtype=torch.float64))
        single = []
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            ids = ids[None, : int(mask.sum())]
            p, q = (m(input_ids=ids).logits[0].log_softmax(-1) for m in (frozen, trained))
            single += (p.exp() * (p - q)).sum(-1).tolist()
    assert value(o.kl_loss(frozen)(trained, batch)) == pytest.approx(sum(single) / 13, rel=1e-10)


def test_padding_and_order_do_not_matter(model, batch):
    wide = {
        name: torch.nn.functional.pad(tensor.flip(0), (0, 4), value=-100 if name == "labels" else 0)
        for name, tensor in batch.items()
    }
    reference = torch.tensor([-11.0, -2.0, -9.0], dtype=torch.float64)
    steering = o.steering_vector(16, 3.0, torch.Generator().manual_seed(0))
    for loss in (
        o.gd_loss(),
        o.npo_loss(BETA),
        o.simnpo_loss(BETA),
        o.rmu_loss(1, steering),
        o.kl_loss(copy.deepcopy(model)),
    ):
        here = value(loss(model, {**batch, "reference": reference}))
        assert value(loss(model, {**wide, "reference": reference.flip(0)})) == pytest.approx(here, rel=1e-11)


def test_masked_rows_do_not_count(model, batch):
    """A row without a labelled token: no nan from 0 / 0, no weight, no gradient."""
    reference = torch.tensor([-11.0, -2.0, -9.0], dtype=torch.float64)
    masked = {**batch, "labels": batch["labels"].clone(), "reference": reference}
    masked["labels"][1] = -100
    for loss in (o.npo_loss(BETA), o.simnpo_loss(BETA, GAMMA), o.gd_loss()):
        rest = {name: tensor[[0, 2]] for name, tensor in masked.items()}
        assert value(loss(model, masked)) == pytest.approx(value(loss(model, rest)), rel=1e-11)
    trained = copy.deepcopy(model)
    o.simnpo_loss(BETA)(trained, masked)[0].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in trained.parameters())


def test_low_precision_is_summed_in_float32(batch, model):
    low = copy.deepcopy(model).to(torch.bfloat16)
    total, _ = o.gd_loss()(low, batch)
    assert total.dtype == torch.float32
    total, _ = o.kl_loss(o.ReferenceModel(low))(low, batch)
    assert total.dtype == torch.float32


def test_rmu(model, batch):
    """Against hidden states from transformers, over tokens that are no padding; block 1 of 4, so not the default place."""
    generator = torch.Generator().manual_seed(3)
    steering = o.steering_vector(16, 6.5, generator)
    assert steering.norm().item() == pytest.approx(6.5)
    assert (steering >= 0).all()
    assert torch.equal(steering, o.steering_vector(16, 6.5, torch.Generator().manual_seed(3)))
    with torch.no_grad():
        states = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
        ).hidden_states[2]
    assert_close(o.block_states(model, 1, batch).detach(), states)
    mask = batch["attention_mask"].bool()
    expected = ((states - steering) ** 2)[mask].mean()
    assert value(o.rmu_loss(1, steering)(model, batch)) == pytest.approx(expected.item(), rel=1e-7)
    assert value(o.rmu_retain_loss(1, o.ReferenceModel(model))(model, batch)) == 0
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.model.embed_tokens.weight[5] += 1.0
        other = moved(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
        ).hidden_states[2]
    expected = ((other - states) ** 2)[mask].mean()
    assert value(o.rmu_retain_loss(1, model)(moved, batch)) == pytest.approx(expected.item(), rel=1e-7)


def test_rmu_computes_no_block_above_and_trains_what_it_says(model, batch):
    trained = copy.deepcopy(model)
    chosen = o.rmu_parameters(trained, 2)
    names = [name for name, p in trained.named_parameters() if any(p is each for each in chosen)]
    assert names == [f"model.layers.{block}.mlp.down_proj.weight" for block in (0, 1, 2)]
    passes = []
    for number, block in enumerate(trained.model.layers):
        block.register_forward_hook(lambda *_, number=number: passes.append(number))
    hooks = [len(block._forward_hooks) for block in trained.model.layers]
    o.rmu_loss(2, torch.zeros(16))(trained, batch)[0].backward()
    assert passes == [0, 1, 2]
    assert [len(block._forward_hooks) for block in trained.model.layers] == hooks
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in chosen)
    assert trained.model.layers[3].mlp.down_proj.weight.grad is None


def test_frozen_keeps_only_what_is_trained(model, batch):
    trained = copy.deepcopy(model)
    for name, parameter in trained.named_parameters():
        parameter.requires_grad_("layers.1." in name)
    frozen = o.ReferenceModel(trained)
    assert all("layers.1." in name for name in frozen._start)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    before = model(**inputs).logits
    with torch.no_grad():
        trained.model.layers[1].mlp.up_proj.weight.mul_(3)
    trained.train()
    assert_close(frozen(**inputs).logits, before, rtol=0, atol=0)
    assert trained.training and not frozen(**inputs).logits.requires_grad
    assert (trained(**inputs).logits - before).abs().max() > 1e-3


def test_npo_without_a_reference(model, batch):
    with pytest.raises(BadInput, match="log_likelihoods"):
        o.npo_loss(0.1)(model, batch)
