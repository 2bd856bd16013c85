"""The checks of MCU: projections, MLP breaking, CIR, SAM, steps of one length, against closed forms and plain loops."""

import copy
import math

import pytest
import torch
import transformers
from accelerate import Accelerator
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.core.streams import torch_stream
from equipoise.data.records import Record
from equipoise.language.encode import collate, encode
from equipoise.language.model import wrap
from equipoise.language.states import recording
from equipoise.language.tiny import tiny
from equipoise.training.loop import mean_gradient
from equipoise.unlearning import cir, mcu, mlp_breaking, objectives, sharpness
from equipoise.unlearning.fixed_length import FixedLength
from equipoise.unlearning.recipe import Recipe, recipe
from equipoise.unlearning.training import losses, prepare, train

TEXTS = ["a few words", "more of a few words of it", "it", "few of more", "words a more it of it a", "of it more words"]
RECORDS = [Record(str(n), text, "q?" if n % 2 else "") for n, text in enumerate(TEXTS) if n != 2]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def start():
    made = tiny(["a few more words of it q?"], seed=0, width=16, layers=4, heads=2, vocabulary=300)
    made.model.double()
    return made


@pytest.fixture
def model(start):
    """A copy, in which a test may train."""
    made = copy.copy(start)
    made.model = copy.deepcopy(start.model)
    return made


@pytest.fixture(scope="module")
def forget(start):
    return encode(start, RECORDS)


@pytest.fixture(scope="module")
def batch(start, forget):
    return collate(forget, start.pad_id)


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


# 1. The projection.


def test_components_are_the_mean_and_the_directions_about_it():
    states = drawn(30, 6) * torch.tensor([4.0, 3, 2, 1, 0.5, 0.2]) + 2.0
    raw = mcu.components(states, 4, basis="sequential")
    assert_close(raw[0], states.mean(0))
    expected = torch.linalg.svd(states - states.mean(0)).Vh[:3]
    assert_close((raw[1:] @ expected.T).abs(), torch.eye(3, dtype=torch.float64))
    found = mcu.components(states, 4)
    assert_close(found @ found.T, torch.eye(4, dtype=torch.float64))
    assert_close(mcu.project_out(raw, found), torch.zeros(4, 6, dtype=torch.float64), atol=1e-12, rtol=0)
    assert_close(mcu.components(states, 3, mean="none"), raw[1:])
    assert_close(mcu.components(states, 1)[0], states.mean(0) / states.mean(0).norm())
    assert mcu.components(states, 0).shape == (0, 6)
    with pytest.raises(BadInput, match="use 0 to 6"):
        mcu.components(states, 7)


def test_orthonormal_components_project_linearly_twice_as_once_and_symmetrically():
    states, found = drawn(20, 7) + 1.0, mcu.components(drawn(20, 7) + 1.0, 3)
    once = mcu.project_out(states, found)
    matrix = mcu.project_out(torch.eye(7, dtype=torch.float64), found)
    assert_close(once, states @ matrix)
    assert_close(matrix, matrix.T)
    assert_close(mcu.project_out(once, found), once)
    assert_close(once @ found.T, torch.zeros(20, 3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.equal(mcu.project_out(states, found[:0]), states)


def test_sequential_removal_is_the_released_loop():
    states, raw = drawn(9, 5, seed=1), drawn(3, 5, seed=2) * torch.tensor([[4.0], [1.0], [0.1]])
    expected = states.clone()
    for direction in raw:
        unit = direction / direction.norm()
        expected = expected - (expected @ unit)[:, None] * unit
    left = mcu.project_out(states, raw)
    assert_close(left, expected)
    assert (left @ raw[0]).abs().min() > 1e-3  # the mean, removed first, came back a little
    assert_close(left @ raw[2], torch.zeros(9, dtype=torch.float64), atol=1e-12, rtol=0)


def test_representations_are_shifted_and_projected_where_something_is_known_of_a_place():
    states, found = drawn(6, 5), mcu.components(drawn(20, 5, seed=3), 2)
    shift = drawn(1, 5, seed=4)[0]
    known = mcu.Representations({}, {"a": found, "b": found}, {"a": shift, "c": shift})
    matrix = torch.eye(5, dtype=torch.float64) - found.T @ found
    assert_close(known.project("a", states), (states - shift) @ matrix)
    assert_close(known.project("b", states), states @ matrix)
    assert_close(known.project("c", states), states - shift)
    assert known.project("d", states) is states
    assert known.project("c", states.float()).dtype == torch.float32


def test_nothing_removed_is_the_base_loss(model, forget, batch):
    plain, projected = (recipe("mlp-breaking", project=project, components=0) for project in ("none", "mcu"))
    both = []
    for words in (plain, projected, recipe("rmu"), recipe("rmu", project="mcu", components=0)):
        prepare(model, words)
        total, weight = losses(model, words, forget=forget)[0](model.model, batch)
        both.append((total / weight).item())
    assert both[0] == both[1] and both[2] == both[3]
    prepare(model, Recipe(objective="rmu", project="mcu", components=1))
    total, weight = losses(model, Recipe(objective="rmu", project="mcu", components=1), forget=forget)[0](
        model.model, batch
    )
    assert (total / weight).item() != both[2]


def test_random_directions_come_beside_the_mean():
    center = drawn(8)
    found = mcu.random_components(center, 3, seed=4)
    assert_close(found @ found.T, torch.eye(3, dtype=torch.float64))
    assert_close(found[0], center / center.norm())
    assert not torch.allclose(found[1:], mcu.random_components(center, 3, seed=5)[1:])


# 2, 3, 4. The losses.


def test_breaking_starts_above_one_and_stops_at_zero():
    originals = drawn(40, 6) * drawn(40, 1, seed=1)
    lengths = originals.norm(dim=-1)
    first = mlp_breaking.breaking(originals, originals).mean()
    assert_close(first, lengths.square().mean() / lengths.mean() ** 2)
    assert first > 1.01
    equal = originals / lengths[:, None] * 3
    assert_close(mlp_breaking.breaking(equal, equal).mean(), torch.tensor(1.0, dtype=torch.float64))
    away = (-originals).requires_grad_()
    mlp_breaking.breaking(away, originals).sum().backward()
    assert torch.equal(away.grad, torch.zeros_like(originals))


def test_mlp_breaking_against_a_loop_over_tokens(model, forget, batch):
    """The value by hand: blocks, tokens, lengths over the whole forget set; the retain loss as a ratio of sums."""
    words = recipe("mcu", components=3, first_block=1, last_block=2)
    prepare(model, words)
    forget_loss, retain_loss = losses(model, words, forget=forget)
    at_first = copy.deepcopy(model.model)
    with torch.no_grad():
        for parameter in (each for each in model.model.parameters() if each.requires_grad):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))

    def states(network, place):
        rows = []
        for example in forget:
            with recording(network, [place]) as found, torch.no_grad():
                network(input_ids=torch.tensor([example.input_ids]))
            rows.append(found[place][0])
        return rows

    expected = 0.0
    for place in ("block.1.mlp", "block.2.mlp"):
        old = torch.cat([row[1:] for row in states(at_first, place)])
        new = torch.cat([row[1:] for row in states(model.model, place)])
        taken = mcu.components(old, 3)
        old, new = mcu.project_out(old, taken), mcu.project_out(new, taken)
        expected += ((old * new).sum(-1).clamp(min=0) / old.norm(dim=-1).mean() ** 2).mean() / 2
    total, weight = forget_loss(model.model, batch)
    assert weight == sum(len(example.input_ids) - 1 for example in forget)
    assert_close(total / weight, expected, rtol=1e-5, atol=1e-7)
    old, new = (torch.cat(states(network, "block.2")) for network in (at_first, model.model))
    total, weight = retain_loss(model.model, batch)
    assert_close(total / weight, (new - old).norm(dim=-1).mean() / old.norm(dim=-1).mean(), rtol=1e-5, atol=1e-7)


def test_gradients_have_no_part_along_what_was_removed():
    originals, found = drawn(5, 6) + 1.0, mcu.components(drawn(20, 6, seed=3) + 1.0, 2)
    old = mcu.project_out(originals, found)

    def loss(states):
        return mlp_breaking.breaking(mcu.project_out(states, found), old, 1.5).sum()

    states = (originals + 0.1 * drawn(5, 6, seed=7)).requires_grad_()
    assert gradcheck(loss, (states,))
    (gradient,) = torch.autograd.grad(loss(states), states)
    assert gradient.norm() > 0.1
    assert_close(gradient @ found.T, torch.zeros(5, 2, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_least_that_projected_rmu_can_reach():
    found, steering = mcu.components(drawn(20, 6) + 1.0, 3), drawn(6, seed=1)
    states = drawn(6, seed=2).requires_grad_()
    optimizer = torch.optim.LBFGS([states], lr=1.0, max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = objectives.distance(mcu.project_out(states, found), steering)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert_close(closure().detach(), (found @ steering).square().sum() / 6, rtol=1e-9, atol=0)
    assert_close(mcu.project_out(states.detach(), found), mcu.project_out(steering, found), rtol=1e-5, atol=1e-6)


# 5. CIR and steps of one length.


def gradient_of(loss, model, batches, accelerator, through=mean_gradient):
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return through(loss, model, parameters, batches, accelerator)


def test_cir_without_components_is_back_propagation_of_the_tokens_that_count(accelerator):
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)).double()
    inputs, target = drawn(3, 6, 4), drawn(3, 6, 3, seed=1)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1, 1, 0, 0, 0, 0]])
    kept = torch.zeros(3, 6, dtype=torch.bool)
    kept[0, 1:5] = kept[1, 1:3] = True
    batch = {"attention_mask": mask}

    def loss(network, given):
        return ((network(inputs) - target).square().sum(-1) * mask).sum(), mask.sum()

    filtered = cir.Cir(model, lambda: [batch], activations=0, gradients=0, every=5)
    mean, found = gradient_of(loss, model, [batch], accelerator, filtered(0))
    hidden = torch.tanh(inputs @ model[0].weight.T)
    errors = 2 * (hidden @ model[2].weight.T - target) * mask[..., None] / mask.sum()
    below = errors @ model[2].weight * (1 - hidden**2)
    assert_close(found[1], errors[kept].T @ hidden[kept])
    assert_close(found[0], below[kept].T @ inputs[kept])
    assert_close(mean.detach(), loss(model, batch)[0].detach() / mask.sum())
    assert "forward" not in vars(model[0])


def test_cir_takes_components_out_of_both_factors(model, forget, batch, accelerator):
    """Against sum_t P(g_t) P(a_t)' from recorded a and g; the same in micro-batches, and after a restore."""
    words = Recipe(objective="npo", parameters="mlp")
    prepare(model, words)
    network, loss = model.model, objectives.gd_loss()
    halves = [collate(forget[:2], model.pad_id), collate(forget[2:], model.pad_id)]
    filtered = cir.Cir(network, lambda: halves, activations=3, gradients=2, every=2)
    _, found = gradient_of(loss, network, [batch], accelerator, filtered(4))
    kept = cir.inner_tokens(batch["attention_mask"])
    with recording(network, ["block.1.mlp.down.input", "block.1.mlp.down"]) as seen:
        total, weight = loss(network, batch)
    entered, left = seen["block.1.mlp.down.input"], seen["block.1.mlp.down"]
    (errors,) = torch.autograd.grad(total / weight, left)
    layer = filtered.layers["model.layers.1.mlp.down_proj"]
    assert layer.inputs.shape == (3, 32) and layer.gradients.shape == (2, 16)
    inputs = mcu.project_out(entered[kept].detach(), mcu.components(entered[kept].detach(), 3))
    assert_close(
        mcu.project_out(layer.gradients, mcu.components(errors[kept], 2)),
        torch.zeros(2, 16).double(),
        atol=1e-4,
        rtol=0,
    )
    outputs = mcu.project_out(errors[kept], layer.gradients)
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    own = names.index("model.layers.1.mlp.down_proj.weight")
    assert_close(found[own], outputs.T @ inputs)
    _, split = gradient_of(loss, network, halves, accelerator, filtered(5))
    assert_close(split[own], found[own])
    other = cir.Cir(network, lambda: pytest.fail("no refresh is due"), every=2)
    other.restore(copy.deepcopy(filtered.state()))
    _, again = gradient_of(loss, network, [batch], accelerator, other(5))
    assert torch.equal(again[own], found[own])


def test_nothing_left_is_refused_at_first_and_moves_nothing_later(model, forget, batch, accelerator):
    """Else the rounding that is left would be stretched to a step of full length."""
    prepare(model, Recipe(objective="ga", parameters="mlp"))
    loss = objectives.gd_loss()
    everything = cir.Cir(model.model, lambda: [batch], activations=3, gradients=32, every=2)
    with pytest.raises(BadInput, match="as many as the forget set has"):
        gradient_of(loss, model.model, [batch], accelerator, everything(0))
    later = cir.Cir(model.model, lambda: [batch], activations=3, gradients=3, every=1)
    gradient_of(loss, model.model, [batch], accelerator, later(0))
    later.gradients = 16
    _, found = gradient_of(loss, model.model, [batch], accelerator, later(1))
    layer = list(later.layers).index("model.layers.3.mlp.down_proj")
    assert torch.equal(found[layer], torch.zeros(16, 32, dtype=torch.float64))


def test_a_loss_of_zero_is_nothing_taken_out(model, forget, batch, accelerator):
    """Neither at the start nor where a run that was killed goes on, which the run itself would not have refused."""
    prepare(model, Recipe(objective="ga", parameters="mlp"))
    some, none = objectives.gd_loss(), lambda net, batch: (0 * objectives.gd_loss()(net, batch)[0], 1.0)
    everything = {"activations": 3, "gradients": 32, "every": 1}
    started = cir.Cir(model.model, lambda: [batch], **everything)
    _, found = gradient_of(none, model.model, [batch], accelerator, started(0))
    assert not any(each.any() for each in found if each is not None)
    for loss, count in ((none, 3), (some, 32)):
        run = cir.Cir(model.model, lambda: [batch], activations=3, gradients=3, every=1)
        gradient_of(some, model.model, [batch], accelerator, run(0))
        resumed = cir.Cir(model.model, lambda: [batch], activations=3, gradients=count, every=1)
        resumed.restore(copy.deepcopy(run.state()))
        run.gradients = count
        _, through = gradient_of(loss, model.model, [batch], accelerator, run(1))
        _, after = gradient_of(loss, model.model, [batch], accelerator, resumed(1))
        assert all(torch.equal(one, other) for one, other in zip(through, after, strict=True) if one is not None)


def test_what_is_taken_out_of_rows_however_short_they_are():
    rows = torch.tensor([[0.25, 0.01], [0.25, -0.01], [0.25, 0.02], [0.25, -0.02]])
    found = cir.taken_out(rows, 2, "sequential")
    assert found.dtype == torch.float64 and found.shape == (2, 2)
    assert_close(found.abs(), torch.tensor([[0.25, 0.0], [0.0, 1.0]], dtype=torch.float64))
    found = cir.taken_out(rows, 1, "orthonormal")
    assert found.dtype == torch.float64
    assert_close(found.abs(), torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    # Without a mean only what they vary in is left; of no rows, or rows of zeros, nothing.
    assert_close(cir.taken_out(rows - rows.mean(0), 2, "sequential").abs(), torch.tensor([[0.0, 1.0]]).double())
    assert cir.taken_out(rows, 0, "sequential").shape == cir.taken_out(0 * rows, 2, "orthonormal").shape == (0, 2)


def test_gpt2_keeps_its_weights_transposed(accelerator):
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(3, 4).double()
    inputs, batch = drawn(2, 5, 4), {"attention_mask": torch.ones(2, 5)}
    filtered = cir.Cir(layer, lambda: [batch], activations=0, gradients=0, every=1)
    _, found = gradient_of(lambda net, _: (net(inputs).pow(3).sum(), 1.0), layer, [batch], accelerator, filtered(0))
    with torch.no_grad():
        errors = 3 * layer(inputs) ** 2
    assert_close(found[0], inputs[:, 1:-1].reshape(-1, 4).T @ errors[:, 1:-1].reshape(-1, 3))
    assert_close(found[1], errors.sum((0, 1)))


def test_a_step_has_its_length_and_the_retain_step_comes_after_it(accelerator):
    model = nn.Linear(3, 2, bias=False).double()
    start, length, rate = model.weight.detach().clone(), 0.3, 0.7
    step = FixedLength(
        lambda net, x: (net(x).square().sum(), 2.0), lambda net, x: (net(x).pow(3).sum(), 1.0), length=length,
        retain_learning_rate=rate,
    )  # fmt: skip
    inputs, others = drawn(4, 3), drawn(2, 3, seed=1)
    (update,), logged = step(model, [(inputs, others)], accelerator, 0)
    assert torch.equal(model.weight, start)
    gradient = (inputs @ start.T).T @ inputs
    moved = start - length * gradient / gradient.norm()
    retain = 3 * ((others @ moved.T) ** 2).T @ others
    assert_close(update, start - moved + rate * retain)
    assert logged["forget_norm"].item() == pytest.approx(gradient.norm().item())
    with torch.no_grad():
        model.weight.zero_()
    (update,), _ = step(model, [(inputs, others)], accelerator, 0)  # a gradient of zero has no direction
    assert torch.equal(update, torch.zeros(2, 3, dtype=torch.float64))


# 6. SAM.


def quadratic(matrix):
    return lambda net, _: (net.weight[0] @ matrix @ net.weight[0] / 2, 1.0)


def test_sam_on_a_quadratic_and_the_weights_afterwards(accelerator):
    model = nn.Linear(4, 1, bias=False).double()
    start = model.weight.detach().clone()
    square = drawn(4, 4)
    matrix, x, rho = square @ square.T, start[0], 0.4
    _, (found,) = gradient_of(quadratic(matrix), model, [None], accelerator, sharpness.sam(rho)(0))
    uphill = matrix @ x / (matrix @ x).norm()
    assert_close(found[0], matrix @ (x + rho * uphill))
    _, (plain,) = gradient_of(quadratic(matrix), model, [None], accelerator, sharpness.sam(0.0)(0))
    assert_close(plain[0], matrix @ x)
    _, (smooth,) = gradient_of(quadratic(matrix), model, [None], accelerator, sharpness.smoothing(rho, 3, draws=400)(0))
    assert_close(smooth[0], matrix @ x, atol=0.25 * (rho * matrix).norm().item(), rtol=0)
    _, (first,) = gradient_of(quadratic(matrix), model, [None], accelerator, sharpness.smoothing(rho, 3)(1))
    _, (again,) = gradient_of(quadratic(matrix), model, [None], accelerator, sharpness.smoothing(rho, 3)(1))
    _, (later,) = gradient_of(quadratic(matrix), model, [None], accelerator, sharpness.smoothing(rho, 3)(2))
    assert torch.equal(first, again) and not torch.allclose(first, later)
    mean, (at_three,) = gradient_of(quadratic(matrix), model, [None], accelerator, sharpness.smoothing(rho, 3)(1))
    places = [x + rho * torch.randn(1, 4, generator=torch_stream(3, 4, 1, draw))[0] for draw in range(3)]
    assert_close(at_three[0], sum(matrix @ each for each in places) / 3, rtol=1e-6, atol=1e-6)
    assert mean.item() == pytest.approx(sum((each @ matrix @ each).item() / 2 for each in places) / 3, rel=1e-6)
    assert torch.equal(model.weight, start)
    with pytest.raises(ZeroDivisionError), sharpness.displaced([model.weight], [torch.ones(1, 4)], math.pi):
        raise ZeroDivisionError
    assert torch.equal(model.weight, start)


# The recipe in the loop.


def test_the_split_of_a_batch_and_of_what_cir_looks_at_changes_nothing(start, forget):
    weights = []
    for size in (None, 2):
        words = Recipe(objective="npo", parameters="mlp", gradient_filter="cir", cir_activations=3, cir_gradients=3)
        words = words.model_copy(update={"steps": 3, "batch_size": 4, "micro_batch_size": size, "robust": "sam"})
        made = copy.copy(start)
        made.model = copy.deepcopy(start.model)
        train(prepare(made, words), words, forget, forget[::-1])
        weights.append(made.model.state_dict())
    for name, value in weights[0].items():
        assert_close(weights[1][name], value, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", ["mcu", "npo-sam", "npo-smoothing"])
def test_a_method_goes_on_where_it_was_stopped_bit_by_bit(start, forget, method):
    words = recipe(method, steps=5, batch_size=3)
    words = words.model_copy(update={"components": 2, "cir_activations": 3, "cir_gradients": 3})

    def run(**how):
        made = copy.copy(start)
        made.model = copy.deepcopy(start.model).float()
        made = prepare(made, words)
        train(made, words, forget, forget[::-1], **how)
        return made.model.state_dict()

    saved = []
    whole = run(save=lambda state: saved.append(copy.deepcopy(state)), save_every=1)
    resumed = run(state=saved[2])
    assert saved[2]["step"] == 3 and any(not torch.equal(whole[k], start.model.state_dict()[k].float()) for k in whole)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("kind", ["GPT2", "GPTNeoX"])
def test_other_architectures(start, forget, kind):
    """Weights that are kept transposed, biases, another name for every part."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=start.vocabulary,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        n_inner=24,
        max_position_embeddings=32,
    )
    name = "GPT2LMHeadModel" if kind == "GPT2" else "GPTNeoXForCausalLM"
    made = wrap(getattr(transformers, name)(config).eval(), start.tokenizer)
    words = recipe("mcu", components=2, steps=2, batch_size=3, cir_activations=3, cir_gradients=3, last_block=1)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    train(prepare(made, words), words, forget, forget[::-1])
    moved = {name for name, value in made.model.state_dict().items() if not torch.equal(value, before[name])}
    assert len(moved) == 4 and all(".mlp." in name and name.endswith(".weight") for name in moved)


def test_what_a_method_trains_and_refuses(model):
    prepare(model, recipe("mcu", first_block=1, last_block=2))
    trained = {name for name, parameter in model.model.named_parameters() if parameter.requires_grad}
    linear = ("gate_proj", "up_proj", "down_proj")
    assert trained == {f"model.layers.{n}.mlp.{part}.weight" for n in range(3) for part in linear}
    prepare(model, Recipe(objective="mlp-breaking", train_blocks=1, last_block=2))
    trained = {name for name, parameter in model.model.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("model.layers.2.") for name in trained)
    for words, why in (
        ({"method": "npo", "project": "mcu"}, "npo looks at none: leave it out, or use objective mlp-breaking or rmu"),
        ({"method": "mcu", "objective": "rmu", "parameters": "lora"}, "which an adapter does not train"),
    ):
        with pytest.raises(BadInput, match=why):
            recipe(**words)
    with pytest.raises(BadInput, match="first_block 3 and last_block 2: the model has 4 blocks"):
        prepare(model, recipe("mcu", first_block=3, last_block=2))
    with pytest.raises(BadInput, match="LoRA has parameters of its own: mlp-breaking has its own"):
        prepare(model, Recipe(objective="mlp-breaking", parameters="lora"))


@pytest.mark.parametrize(
    ("width", "expected"), [(16, (1, 1)), (128, (2, 3)), (576, (9, 14)), (1536, (24, 36)), (14_336, (24, 36))]
)
def test_components_of_the_filter_by_width(width, expected):
    assert tuple(cir.published(count, width) for count in (cir.ACTIVATIONS, cir.GRADIENTS)) == expected


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(1, range(1)), (4, range(4)), (8, range(8)), (9, range(2, 3)), (30, range(6, 11)), (32, range(6, 12))],
)
def test_the_blocks_lie_as_deep_as_published(monkeypatch, depth, expected):
    monkeypatch.setattr(mlp_breaking, "blocks", lambda model: [None] * depth)
    assert mlp_breaking.broken_blocks(Recipe(), None) == expected


def test_the_words_that_count():
    assert {"project", "components", "cir_every", "update_length"} <= recipe("mcu").used()
    assert not {"combine", "learning_rate", "rho", "robust", "beta"} & recipe("mcu").used()
    assert recipe("npo-sam").used() & {"rho", "robust", "project", "update"} == {"rho", "robust"}
    assert recipe("mcu").resolved(2_100_000_000)["update_length"] == pytest.approx(0.2, rel=0.01)
    assert recipe("mcu", update_length=0.1).resolved(7)["update_length"] == 0.1


# 8. Parity with the released functions, on fixed tensors.


def test_the_released_functions_on_fixed_tensors():
    """mlp_confuse, the projection and cb_retain of sustech-nlp/MCU, worked out on one batch without padding."""
    old, new = drawn(2, 5, 6) + 0.5, drawn(2, 5, 6, seed=1)
    taken = mcu.components(old.flatten(0, 1), 3, basis="sequential")
    projected = []
    for states in (new, old):
        for direction in taken:
            unit = direction / direction.norm()
            states = states - (states * unit).sum(-1, keepdim=True) * unit
        projected.append(states)
    dots = (projected[0] * projected[1]).sum(-1)
    theirs = F.relu(dots / projected[1].norm(dim=-1).mean() ** 2).mean()
    ours = mlp_breaking.breaking(mcu.project_out(new, taken), mcu.project_out(old, taken)).mean()
    assert_close(ours, theirs)
