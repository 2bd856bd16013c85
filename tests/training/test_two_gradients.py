"""Both gradients over the whole window, combined once: against autograd on the whole batch."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from equipoise.core.errors import WorkFailed
from equipoise.training.loop import TrainerSettings, fit
from equipoise.training.team import accelerator_for
from equipoise.training.two_gradients import Conflicts, TwoGradients, layer
from equipoise.unlearning import blur, gradient_sum, pcgrad, sago

RULES = {
    "sum": gradient_sum.combine,
    "pcgrad": pcgrad.combine,
    "pcgrad-global": pcgrad.combine_global,
    "sago": sago.combine,
    "prefer": sago.combine_prefer_retain,
    "blur": blur.combine,
}


@pytest.fixture
def accelerator():
    return accelerator_for("cpu")


class Net(nn.Module):
    """Two blocks, tied embedding and head, a low-rank adapter beside a frozen matrix, parts that one loss alone reaches."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.down = nn.Linear(6, 2, bias=False)
        self.up = nn.Linear(2, 6, bias=False)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight
        self.only_forget = nn.Parameter(torch.ones(3))
        self.only_retain = nn.Parameter(torch.ones(4))
        self.neither = nn.Parameter(torch.ones(2))
        self.double()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        self.layers[1].requires_grad_(False)

    def forward(self, tokens):
        hidden = torch.tanh(self.layers[0](self.embedding(tokens)))
        return self.head(torch.tanh(self.layers[1](hidden) + self.up(self.down(hidden))))


def forget_loss(model, batch):
    tokens, targets, counts = batch
    each = F.cross_entropy(model(tokens), targets, reduction="none")
    return -(each * counts).sum() + counts.sum() * model.only_forget.square().sum(), counts.sum()


def retain_loss(model, batch):
    """Another weight (rows), and rows of the embedding that the forget batch does not touch."""
    tokens, targets, _ = batch
    return F.mse_loss(model(tokens), F.one_hot(targets, 9).double(), reduction="sum") + len(
        tokens
    ) * model.only_retain.sum(), len(tokens)


PAIRS = [((i % 5, (2 * i) % 5, 1 + i % 3), (3 + i % 6, (i + 4) % 9, 1)) for i in range(12)]


def collate(chosen):
    return tuple(torch.tensor(side).T for side in zip(*chosen, strict=True))


def expected_gradients(model):
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = []
    for loss, side in zip((forget_loss, retain_loss), collate(PAIRS), strict=True):
        total, weight = loss(model, side)
        found.append(torch.autograd.grad(total / weight, parameters, allow_unused=True))
    return parameters, found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("cuts", [[12], [6, 12], [1, 2, 7, 12]])
def test_gradient_of_the_whole_window(rule, cuts, accelerator):
    """Check 9, the half that is about the step: any split of the window, one combination."""
    model = Net()
    parameters, (f, r) = expected_gradients(model)
    expected = RULES[rule](f, r, forget_weight=0.6, retain_weight=1.3)
    window = [collate(PAIRS[a:b]) for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    step = TwoGradients(forget_loss, retain_loss, RULES[rule], forget_weight=0.6, retain_weight=1.3)
    found, metrics = step(model, window, accelerator, 0)
    assert all(parameter.grad is None for parameter in parameters)
    for gradient, combined in zip(found, expected, strict=True):
        if combined is None:
            assert gradient is None
        else:
            assert_close(gradient, combined, rtol=1e-10, atol=1e-12)
    for name, loss, side in zip(
        ("forget_loss", "retain_loss"), (forget_loss, retain_loss), collate(PAIRS), strict=True
    ):
        total, weight = loss(model, side)
        assert float(metrics[name]) == pytest.approx((total / weight).item(), rel=1e-12)


def test_combining_per_micro_batch_is_something_else(accelerator):
    model = Net()
    windows = [[collate(PAIRS[:6])], [collate(PAIRS[6:])]]
    step = TwoGradients(forget_loss, retain_loss, sago.combine)
    place = [name for name, p in model.named_parameters() if p.requires_grad].index("embedding.weight")
    together = step(model, [*windows[0], *windows[1]], accelerator, 0)[0][place]
    apart = sum(step(model, window, accelerator, 0)[0][place] / 2 for window in windows)
    assert (apart - together).abs().max() > 1e-3


def test_missing_frozen_and_tied(accelerator):
    model = Net()
    assert model.head.weight is model.embedding.weight
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def gradients(rule):
        found, _ = TwoGradients(forget_loss, retain_loss, rule)(model, [collate(PAIRS)], accelerator, 0)
        return dict(zip(names, found, strict=True))

    found = gradients(sago.combine)
    assert "head.weight" not in found and "layers.1.weight" not in found and found["neither"] is None
    assert_close(found["only_forget"], 2 * model.only_forget.detach())
    assert_close(found["only_retain"], torch.zeros(4, dtype=torch.float64))  # f = 0: SAGO gives 0, not alpha r
    assert_close(gradients(pcgrad.combine)["only_retain"], torch.ones(4, dtype=torch.float64))


def test_a_rule_of_ones_own(accelerator):
    """Only the four documented arguments; the conflict log works all the same."""

    def mine(forget, retain, *, forget_weight=1.0, retain_weight=1.0):
        def scaled(gradient, weight):
            return 0.0 if gradient is None else weight * gradient

        return [
            None if f is None and r is None else scaled(f, forget_weight) + scaled(r, retain_weight)
            for f, r in zip(forget, retain, strict=True)
        ]

    found = []
    for rule in (mine, gradient_sum.combine):
        model = Net()
        step = TwoGradients(forget_loss, retain_loss, rule, retain_weight=0.3, groups=True)
        found.append(step(model, [collate(PAIRS)], accelerator, 0))
    assert_close(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    for name, value in found[0][1].items():
        assert float(value) == pytest.approx(float(found[1][1][name]), rel=1e-9, nan_ok=True)


def test_conflict_log(accelerator):
    """Every figure from the whole gradients, in total and layer by layer; nan where a gradient is zero."""
    model = Net()
    parameters, (f, r) = expected_gradients(model)
    combined = sago.combine(f, r)
    step = TwoGradients(forget_loss, retain_loss, sago.combine, groups=True)
    _, metrics = step(model, [collate(PAIRS)], accelerator, 0)

    def check(prefix, chosen):
        parts = [
            [torch.zeros_like(parameters[i]).flatten() if side[i] is None else side[i].flatten() for i in chosen]
            for side in (f, r, combined)
        ]
        x, y, g = (torch.cat(part).double() for part in parts)

        def cosine(a, b):
            return (a.dot(b) / (a.norm() * b.norm())).item()

        expected = {
            "cosine_forget_retain": cosine(x, y),
            "cosine_update_forget": cosine(g, x),
            "cosine_update_retain": cosine(g, y),
            "conflict": (x * y < 0).double().mean().item(),
            "forget_norm": x.norm().item(),
            "retain_norm": y.norm().item(),
            "norm_ratio": (x.norm() / y.norm()).item(),
        }
        for name, value in expected.items():
            assert float(metrics[prefix + name]) == pytest.approx(value, rel=1e-10, nan_ok=True), prefix + name

    names = [name for name, p in model.named_parameters() if p.requires_grad]
    there = [i for i, g in enumerate(combined) if g is not None]
    check("", there)
    groups = {"embedding", "block.0", "down", "up", "only_forget", "only_retain"}
    assert {name.split("/")[0] for name in metrics if "/" in name} == groups
    for group in groups:
        check(f"{group}/", [i for i in there if layer(names[i]) == group])
    assert 0 < float(metrics["conflict"]) < 1
    assert math.isnan(metrics["only_retain/cosine_update_retain"])


def test_conflicts_of_tiny_gradients():
    """1e-30 and -1e-30 conflict, though their float32 product is zero."""
    conflicts = Conflicts(["all"])
    f, r = torch.tensor([1e-30, 1.0, 0.0, 1.0]), torch.tensor([-1e-30, 1.0, -1.0, -2.0])
    conflicts(0, f, r, f)
    assert float(conflicts.summary()["conflict"]) == 0.5


def test_conflicts_are_logged_by_the_number_of_the_step(accelerator, tmp_path):
    """So that a resumed training logs the same steps; nothing that it logs can end the training."""
    step = TwoGradients(forget_loss, retain_loss, sago.combine, conflicts_every=3)
    logged = ["conflict" in step(Net(), [collate(PAIRS)], accelerator, index)[1] for index in range(7)]
    assert logged == [True, False, False, True, False, False, True]
    never = TwoGradients(forget_loss, retain_loss, sago.combine, conflicts_every=0)
    assert set(never(Net(), [collate(PAIRS)], accelerator, 0)[1]) == {"forget_loss", "retain_loss"}


@pytest.mark.parametrize("micro_batch_size", [2, 5, 12])
def test_training_is_the_same_for_every_micro_batch(micro_batch_size):
    ends = []
    for size in (None, micro_batch_size):
        model = Net()
        fit(
            model,
            TwoGradients(forget_loss, retain_loss, sago.combine, forget_weight=0.1),
            lambda index: PAIRS[index % 2 :],
            TrainerSettings(steps=5, learning_rate=0.01, batch_size=12, micro_batch_size=size),
            collate=collate,
        )
        ends.append({name: p.detach() for name, p in model.named_parameters()})
    assert_close(ends[1], ends[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("side", ["forget", "retain"])
def test_a_gradient_that_is_no_number_is_not_hidden_by_the_rule(side):
    """SAGO drops half of the coordinates; a nan among them still ends the training, with finite losses."""

    def broken(model, batch):
        total, weight = (forget_loss if side == "forget" else retain_loss)(model, batch)
        return total + (model.layers[0].weight * 0).sum().sqrt(), weight

    losses = (broken, retain_loss) if side == "forget" else (forget_loss, broken)
    model = Net()
    before = model.layers[0].weight.detach().clone()
    with pytest.raises(WorkFailed, match="gradient norm is nan at step 1"):
        settings = TrainerSettings(steps=2, learning_rate=0.1, batch_size=12)
        fit(model, TwoGradients(*losses, sago.combine), lambda _: PAIRS, settings, collate=collate)
    assert torch.equal(model.layers[0].weight, before)


def test_memory_is_one_gradient_more(accelerator):
    """Counted by the allocator: two gradients at the end of the second backward pass, and no third while combining."""
    from torch.profiler import ProfilerActivity, profile

    size, count = 2**18, 16
    model = nn.ParameterList([nn.Parameter(torch.ones(size)) for _ in range(count)])

    def loss(sign):
        return lambda model, batch: (sum((sign * p).sum() for p in model), 1.0)

    for rule in RULES.values():
        step = TwoGradients(loss(-1.0), loss(2.0), rule)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            gradients, _ = step(model, [(None, None)], accelerator, 0)
        held = peak = 0
        for event in profiler.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        del gradients
        copies = peak / (count * size * 4)
        assert 2.0 <= copies < 2.5, copies  # beside the gradients a tensor of the backward pass, pieces to compute on


def test_what_a_rule_is_given():
    """Weights always, `out` and `observe` together or not at all, `reduce` where it is asked for."""
    given = []

    def noted(names, words):
        given.append({name: words[name] for name in names if name in words})
        return [torch.ones(2)]

    def plain(forget, retain, *, forget_weight, retain_weight):
        return noted(["forget_weight", "retain_weight"], locals())

    def reducing(forget, retain, *, forget_weight, retain_weight, reduce="not given"):
        return noted(["reduce"], locals())

    def half(forget, retain, *, forget_weight, retain_weight, out="not given"):
        return noted(["out"], locals())

    def whole(forget, retain, *, forget_weight, retain_weight, out, observe):
        observe(0, forget[0], retain[0], torch.ones(2))
        return noted(["out", "observe"], locals())

    model = nn.ParameterList([nn.Parameter(torch.tensor([2.0, 3.0]))])
    forward = lambda sign: lambda model, batch: (sign * batch * model[0].sum(), 1.0)  # noqa: E731
    window = [(torch.tensor(5.0), torch.tensor(7.0))]
    for rule in (plain, reducing, half, whole):
        step = TwoGradients(forward(-1.0), forward(1.0), rule)
        for index in (0, 1):  # conflicts are logged at every step unless it is said otherwise
            found, numbers = step(model, window, accelerator_for("cpu"), index)
            assert [each.tolist() for each in found] == [[1.0, 1.0]]
            assert (float(numbers["forget_loss"]), float(numbers["retain_loss"])) == (-25.0, 35.0)
            assert "conflict" in numbers and not any("/" in name for name in numbers)
    assert (
        given[:6]
        == [{"forget_weight": 1.0, "retain_weight": 1.0}] * 2 + [{"reduce": None}] * 2 + [{"out": "not given"}] * 2
    )
    assert [each["out"][0].tolist() for each in given[6:]] == [[-5.0, -5.0]] * 2
    assert all(isinstance(each["observe"], Conflicts) for each in given[6:])
    with pytest.raises(TypeError):
        TwoGradients(forward(1.0), forward(1.0), plain, 0.5)


def test_conflicts_of_whole_lists_by_hand():
    """Each of the three may be missing, all of them too; layers in the order in which they come, one of them twice."""
    conflicts = Conflicts(["b", "a", "b", "none", "late"])
    forget = [torch.tensor([[3.0, -1.0]]), None, torch.tensor([2.0]), None, None]
    retain = [torch.tensor([[1.0, 1.0]]), torch.tensor([2.0, 0.0]), None, None, None]
    combined = [None, torch.tensor([4.0, 3.0], dtype=torch.float64), torch.tensor([-6.0]), None, torch.tensor([1.0])]
    conflicts.all(forget, retain, combined)
    found = {name: float(value) for name, value in conflicts.summary(groups=True).items()}
    sums = {  # f r, f f, r r, g f, g r, g g, conflicts, coordinates
        "": (2, 14, 6, -12, 8, 62, 1, 6),
        "b/": (2, 14, 2, -12, 0, 36, 1, 3),
        "a/": (0, 0, 4, 0, 8, 25, 0, 2),
        "late/": (0, 0, 0, 0, 0, 1, 0, 1),
    }
    expected = {}
    for prefix, (fr, ff, rr, gf, gr, gg, opposed, count) in sums.items():
        f, r, g = math.sqrt(ff), math.sqrt(rr), math.sqrt(gg)
        expected |= {
            f"{prefix}cosine_forget_retain": fr / (f * r) if f * r else math.nan,
            f"{prefix}cosine_update_forget": gf / (g * f) if g * f else math.nan,
            f"{prefix}cosine_update_retain": gr / (g * r) if g * r else math.nan,
            f"{prefix}conflict": opposed / count,
            f"{prefix}forget_norm": f,
            f"{prefix}retain_norm": r,
            f"{prefix}norm_ratio": f / r if r else math.nan,
        }
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert list(conflicts.summary()) == list(expected)[:7]


def test_conflicts_over_several_processes():
    """What another process saw is added before anything is divided, layers that this one has nothing of included."""
    handed = []

    def reduce(sums):
        handed.append(sums.clone())
        return sums + torch.tensor(
            [[2.0, 2, 2, 2, 2, 2, 2, 4], [-4.0, 8, 2, 0, 0, 1, 1, 2], [0.0] * 8], dtype=sums.dtype
        )

    conflicts = Conflicts(["here", "there", "nowhere"], reduce)
    conflicts(0, torch.tensor([1.0, -1.0]), torch.tensor([2.0, 1.0]), torch.tensor([1.0, 1.0]))
    found = conflicts.summary(groups=True)
    assert handed[0].tolist() == [[1.0, 2, 5, 0, 3, 2, 1, 2], [0.0] * 8, [0.0] * 8]
    assert float(found["here/conflict"]) == 3 / 6 and float(found["there/conflict"]) == 1 / 2
    assert float(found["conflict"]) == 4 / 8
    assert float(found["there/cosine_forget_retain"]) == pytest.approx(-4 / 4)
    assert float(found["forget_norm"]) == pytest.approx(math.sqrt(2 + 2 + 8))
    assert not any(name.startswith("nowhere") for name in found)
    assert Conflicts(["a"]).summary(groups=True) == {} == Conflicts([]).summary()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.7.mlp.down_proj.weight", "block.7"),
        ("base_model.model.model.layers.11.self_attn.q_proj.lora_A.default.weight", "block.11"),
        ("transformer.h.0.attn.c_attn.bias", "block.0"),
        ("0.weight", "block.0"),
        ("model.embed_tokens.weight", "embed_tokens"),
        ("lm_head.weight", "lm_head"),
        ("model.norm.weight", "norm"),
        ("base_model.model.score.bias", "score"),
        ("mymodel.model.head", "mymodel.model.head"),
        ("weight.bias", "weight"),
        ("h2.12th.weight", "h2.12th"),
        ("layers.12", "layers.12"),
        ("h.3.experts.10.weight", "block.3"),
    ],
)
def test_layers(name, expected):
    assert layer(name) == expected


class Two(nn.Module):
    """Parameters a (reached by both losses) and b, c (by one each)."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.tensor(value)) for value in (2.0, 3.0, 5.0))


def of_a_and_b(model, batch):
    return batch * model.a * model.b, 2.0


def of_a_and_c(model, batch):
    return batch * model.a + model.c**2, 4.0


@pytest.mark.parametrize(
    ("window", "index", "words", "asked"),
    [
        ([(4.0, 8.0)], 1, {}, 1),
        ([(4.0, 8.0)], 2, {}, 0),  # conflicts are logged
        ([(4.0, 8.0)], 2, {"conflicts_every": 0}, 1),
        ([(4.0, 8.0)], 2, {"conflicts_every": -1}, 1),
        ([(4.0, 8.0)] * 2, 1, {}, 0),
        ([(4.0, 8.0)], 1, {"penalty": lambda: torch.zeros((), requires_grad=True)}, 0),
        ([(4.0, 0.0)], 1, {}, 1),  # where two passes are better
    ],
)
def test_one_pass_of_both_losses_where_a_step_allows_it(window, index, words, asked, accelerator):
    """0.5 a b 4 / 2 + 3 (8 a + c^2) / 4, whichever way."""
    called = []

    def both(model, forget, retain):
        called.append((forget, retain))
        return None if retain == 0 else (of_a_and_b(model, forget), of_a_and_c(model, retain))

    model = Two()
    step = TwoGradients(
        of_a_and_b, of_a_and_c, gradient_sum.combine, forget_weight=0.5, retain_weight=3.0, both=both,
        **{"conflicts_every": 2, **words},
    )  # fmt: skip
    gradients, numbers = step(model, window, accelerator, index)
    retain = window[0][1]
    assert [each.item() for each in gradients] == [3 + 3 * retain / 4, 2.0, 7.5]
    assert (float(numbers["forget_loss"]), float(numbers["retain_loss"])) == (12.0, (2 * retain + 25) / 4)
    assert not numbers["forget_loss"].requires_grad and not numbers["retain_loss"].requires_grad
    assert called == window[:asked] and all(each.grad is None for each in model.parameters())
    assert ("conflict" in numbers) is (index == 2 and words == {})


def test_a_penalty_is_part_of_the_retain_loss_once_a_step(accelerator):
    """7 (a^2 + b), beside two micro-batches; it reaches b, which the retain loss does not, and not c, which that does."""
    model = Two()
    words = {"forget_weight": 0.5, "retain_weight": 3.0, "penalty": lambda: model.a**2 + model.b, "penalty_weight": 7.0}
    step = TwoGradients(of_a_and_b, of_a_and_c, gradient_sum.combine, **words)
    gradients, numbers = step(model, [(4.0, 8.0)] * 2, accelerator, 1)
    assert [each.item() for each in gradients] == [3 + 3 * (2 + 7 * 4), 2 + 3 * 7, 7.5]
    assert (float(numbers["retain_loss"]), float(numbers["penalty"])) == (41 / 4, 7.0)
    assert not numbers["penalty"].requires_grad
    plain = TwoGradients(of_a_and_b, of_a_and_c, gradient_sum.combine, penalty=words["penalty"])
    assert [each.item() for each in plain(model, [(4.0, 8.0)], accelerator, 1)[0]] == [6 + 2 + 4, 4 + 1, 2.5]
