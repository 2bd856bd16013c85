"""GUARD: scores against backward passes, closed forms and a step that is really made; weights; losses that take them."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from equipoise.core.errors import BadInput
from equipoise.data.records import Record
from equipoise.language.encode import collate, encode
from equipoise.language.tiny import teach, tiny
from equipoise.unlearning import guard, objectives, unlearn
from equipoise.unlearning.recipe import METHODS, Recipe, recipe
from equipoise.unlearning.training import prepare, train

TEXT = "red blue green black grey what colour is the door wall roof of a house"
FORGET = [Record(f"f{n}", answer, prompt) for n, (prompt, answer) in enumerate([
    ("what is the door", "red"),
    ("what colour is the wall of a house", "blue green"),
    ("the roof", "black"),
    ("is the wall", "grey green red blue"),
    ("door", "the house is red"),
])]  # fmt: skip
RETAIN = [Record(f"r{n}", answer, prompt) for n, (prompt, answer) in enumerate([
    ("what is the house", "blue"),
    ("what colour is the roof of a house", "grey"),
    ("the door", "black red green"),
    ("is a wall", "green"),
    ("what is the door", "red"),
    ("roof", "the wall is grey"),
    ("house", "a door"),
])]  # fmt: skip


@pytest.fixture(scope="module")
def taught():
    made = tiny([TEXT], seed=0, width=16, layers=2, heads=2, vocabulary=320)
    teach(made, [*FORGET, *RETAIN], seed=0, epochs=15, learning_rate=1e-2, batch_size=12)
    return made


@pytest.fixture(scope="module")
def double(taught):
    """The same in float64 throughout: Llama's norms compute in float32, whatever the model is in."""
    model = copy.deepcopy(taught.model).double()
    for name, module in list(model.named_modules()):
        if isinstance(module, LlamaRMSNorm):
            norm = nn.RMSNorm(16, module.variance_epsilon, dtype=torch.float64)
            norm.weight.data.copy_(module.weight.data)
            model.set_submodule(name, norm)
    return replace(taught, model=model)


@pytest.fixture(scope="module")
def sides(taught):
    return encode(taught, FORGET), encode(taught, RETAIN)


def losses(language_model, examples):
    """l_i of each by itself, unpadded, by torch's own mean cross-entropy."""
    batches = [collate([each], language_model.pad_id) for each in examples]
    logits = [language_model.model(input_ids=batch["input_ids"]).logits for batch in batches]
    return [
        nn.functional.cross_entropy(each[0, :-1], batch["labels"][0, 1:])
        for each, batch in zip(logits, batches, strict=True)
    ]


def gradients(language_model, examples):
    """[n, parameters]: one backward pass each."""
    parameters = list(language_model.model.parameters())
    rows = [torch.autograd.grad(loss, parameters) for loss in losses(language_model, examples)]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def apart(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


# Scores.


@pytest.mark.parametrize("way", ["gradient", "forward", "difference"])
@pytest.mark.parametrize(("which", "allowed"), [("taught", 1e-3), ("double", 1e-6)])
def test_the_three_ways_agree_with_backward_passes(request, sides, which, allowed, way):
    """Checks 3 and 8: the dot product of gradients is TracIn's influence at one checkpoint with rate 1."""
    model = request.getfixturevalue(which)
    forget, retain = sides
    each, kept = gradients(model, forget).double(), gradients(model, retain).double().mean(0)
    before = [parameter.detach().clone() for parameter in model.model.parameters()]
    with pytest.warns(UserWarning, match="eager attention") if way == "forward" else _nothing():
        found = guard.scores(model, forget, retain, way=way, batch_size=2)
    assert found.dtype == torch.float64 and apart(found, each @ kept) < allowed
    assert all(torch.equal(old, new) for old, new in zip(before, model.model.parameters(), strict=True))
    assert model.model.config._attn_implementation == "sdpa" and not model.model.training
    if way == "gradient":
        attribution = guard.attribute(model, forget, retain, way=way)
        assert_close(attribution.norms, each.norm(dim=1), rtol=1e-5, atol=0)
        assert attribution.retain_norm == pytest.approx(kept.norm().item(), rel=1e-5) and attribution.retained == 7


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def test_the_scores_of_all_retain_records_sum_to_m_times_the_square_of_their_gradient(double, sides):
    """Check 4."""
    _, retain = sides
    found = guard.attribute(double, retain, retain, way="gradient", batch_size=3)
    assert found.scores.sum().item() == pytest.approx(len(retain) * found.retain_norm**2, rel=1e-9)


def test_a_tiny_step_changes_the_retain_loss_by_what_the_scores_say(double, sides):
    """Check 5: and by no more than with equal weights."""
    forget, retain = sides
    found = guard.scores(double, forget, retain, way="gradient")
    given = guard.weights(found, temperature=guard.absolute_temperature(found, 1.0))
    rows, start = gradients(double, forget), [p.detach().clone() for p in double.model.parameters()]

    def change(weights, rate):
        """Of the mean retain loss, by one step of ascent on the weighed mean of the forget losses."""
        ascent, moved = (weights[:, None] * rows).mean(0), copy.deepcopy(double.model)
        begin = 0
        for parameter, origin in zip(moved.parameters(), start, strict=True):
            parameter.data = origin + rate * ascent[begin : begin + origin.numel()].view_as(origin)
            begin += origin.numel()
        there = replace(double, model=moved)
        return sum(a.item() - b.item() for a, b in zip(losses(there, retain), losses(double, retain), strict=True)) / 7

    predicted = (given * found).mean().item()
    off = [abs(change(given, rate) / (rate * predicted) - 1) for rate in (1e-4, 5e-5)]
    assert off[0] < 0.05 and off[1] == pytest.approx(off[0] / 2, rel=0.1)
    assert change(given, 1e-4) < change(torch.ones_like(given), 1e-4)
    assert predicted < found.mean().item()


def linear(width, classes):
    """What the scores need of a causal model, but linear in one embedding: logits = W x of the token before."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Embedding(6, width, dtype=torch.float64).requires_grad_(False)
            self.head = nn.Linear(width, classes, bias=False, dtype=torch.float64)

        def get_output_embeddings(self):
            return self.head

        def forward(self, input_ids, attention_mask, use_cache):
            from types import SimpleNamespace

            return SimpleNamespace(logits=self.head(self.features(input_ids)))

    return Linear()


@pytest.mark.filterwarnings("ignore:The scores are over")
def test_a_linear_model_has_its_closed_form_and_copies_cost_most(taught):
    """Checks 6 and 7: a_i = sum_k (p_ik - y_ik) x_i . mean_j (p_jk - y_jk) x_j."""
    from equipoise.language.encode import IGNORE, Example

    torch.manual_seed(0)
    model = linear(4, 6)
    with torch.no_grad():
        model.features.weight[3] = torch.tensor([0.0, 0.0, 0.0, 2.0])  # shares no feature with 1 and 2
        model.features.weight[1:3, 3] = 0

    def row(x, y):
        return Example((x, y), (IGNORE, y))

    made = _Given(model)
    forget, retain = [row(1, 4), row(3, 4), row(2, 5)], [row(1, 4), row(2, 0), row(1, 5), row(2, 4)]

    def residual(example):
        x = model.features.weight[example.input_ids[0]]
        p = model.head(x).softmax(-1)
        return torch.outer(p - nn.functional.one_hot(torch.tensor(example.labels[1]), 6), x)

    mean = torch.stack([residual(each) for each in retain]).mean(0)
    wanted = torch.stack([(residual(each) * mean).sum() for each in forget]).detach()
    for way in ("gradient", "difference"):
        found = guard.scores(made, forget, retain, way=way)
        assert_close(found, wanted, rtol=1e-6, atol=1e-12)
        assert_close(guard.scores(made, forget, retain * 2, way=way), found, rtol=1e-6, atol=1e-12)
    assert found[0] > found[1] == 0


class _Given:
    pad_id, device = 0, torch.device("cpu")

    def __init__(self, model):
        self.model = model


def test_a_sample_of_the_retain_set_tells_how_far_its_halves_agree(double, sides):
    forget, retain = sides
    found = guard.attribute(double, forget, retain, way="gradient", retained=4)
    chosen = [retain[index] for index in (0, 1, 3, 5)]  # of 7, evenly
    each = gradients(double, forget)
    assert_close(found.scores, each @ gradients(double, chosen).mean(0), rtol=1e-8, atol=0)
    first, second = (each @ gradients(double, chosen[half::2]).mean(0) for half in (0, 1))
    wanted = torch.corrcoef(torch.stack([first, second]))[0, 1].item()
    assert found.split_half == pytest.approx(wanted, rel=1e-6) and found.retained == 4
    assert found.notes[-1].startswith(f"The retain gradient is over 4 of 7 records; two halves of them give scores that "
                                      f"correlate by {wanted:.2f}")  # fmt: skip
    by_difference = guard.attribute(double, forget, retain, retained=4)
    assert apart(by_difference.scores, found.scores) < 1e-5
    assert by_difference.split_half == pytest.approx(wanted, rel=1e-4)
    assert found.retain_norm == pytest.approx(gradients(double, chosen).mean(0).norm().item(), rel=1e-9)
    pair = guard.attribute(double, forget, retain, way="gradient", retained=2)  # a record each
    of_pair = each @ gradients(double, [retain[0], retain[3]]).T
    assert pair.split_half == pytest.approx(torch.corrcoef(of_pair.T)[0, 1].item(), rel=1e-6)
    assert_close(pair.scores, of_pair.mean(1), rtol=1e-8, atol=0)
    three = guard.attribute(double, forget, retain, way="gradient", retained=3)  # two in one half, one in the other
    assert_close(three.scores, each @ gradients(double, [retain[n] for n in (0, 2, 4)]).mean(0), rtol=1e-8, atol=0)
    whole = guard.attribute(double, forget, retain, way="gradient")
    assert math.isnan(whole.split_half) and whole.notes == ()
    # One retain record has no halves; over two forget records the halves agree or they do not, over one nobody can say.
    alone = guard.attribute(double, forget, retain, way="gradient", retained=1)
    assert_close(alone.scores, each @ gradients(double, retain[:1]).mean(0), rtol=1e-8, atol=0)
    assert math.isnan(alone.split_half) and alone.notes == () and alone.retained == 1
    two = guard.attribute(double, forget[:2], retain, way="gradient", retained=4)
    assert abs(two.split_half) == pytest.approx(1)
    assert math.isnan(guard.attribute(double, forget[:1], retain, way="gradient", retained=4).split_half)


def test_the_loss_of_a_row_is_the_mean_over_its_labelled_tokens_and_0_without_any(double):
    from equipoise.language.encode import Example, collate

    rows = [([5, 6, 7, 8], [-100, 6, 7, 8]), ([5, 9, 7], [-100, -100, -100]), ([3, 9, 7], [-100, 9, -100])]
    batch = collate([Example(tuple(ids), tuple(labels)) for ids, labels in rows], double.pad_id)
    with torch.no_grad():
        found = guard.row_losses(double.model, batch)
        expected = []
        for ids, labels in rows:
            logs = double.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            own = [-logs[place - 1, label].item() for place, label in enumerate(labels) if label != -100]
            expected.append(sum(own) / len(own) if own else 0.0)
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_a_parameter_that_no_record_uses_changes_no_score(double, sides):
    forget, retain = sides
    own = replace(double, model=copy.deepcopy(double.model))
    own.model.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    for way in ("gradient", "difference"):
        found, wanted = (guard.attribute(each, forget, retain, way=way) for each in (own, double))
        assert_close(found.scores, wanted.scores, rtol=1e-6, atol=0)


def test_only_what_is_trained_counts_and_is_said(taught, sides):
    forget, retain = sides
    own = replace(taught, model=copy.deepcopy(taught.model))
    prepare(own, Recipe(train_blocks=1))
    found = guard.attribute(own, forget, retain)
    trained = sum(p.numel() for p in own.model.parameters() if p.requires_grad)
    assert found.notes == (
        f"The scores are over the {trained:,} trained of {own.model.num_parameters():,} parameters only.",
    )
    by_gradient = guard.attribute(own, forget, retain, way="gradient").scores
    assert apart(found.scores, by_gradient) < 1e-3
    assert apart(by_gradient, guard.scores(taught, forget, retain, way="gradient")) > 0.1
    prepare(own, Recipe())
    adapted = prepare(own, Recipe(parameters="lora", lora_rank=2))
    ways = [guard.attribute(adapted, forget, retain, way=way) for way in ("gradient", "difference", "forward")]
    assert max(apart(each.scores, ways[0].scores) for each in ways) < 1e-3 and "parameters only" in ways[0].notes[0]


def test_weights_of_16_bits_are_scored_in_32_and_come_back_as_they_were(taught, sides):
    forget, retain = sides
    narrow = replace(taught, model=copy.deepcopy(taught.model).bfloat16())
    before = [parameter.detach().clone() for parameter in narrow.model.parameters()]
    found = guard.attribute(narrow, forget, retain)
    assert all(
        torch.equal(old, new) and old.dtype == new.dtype
        for old, new in zip(before, narrow.model.parameters(), strict=True)
    )
    wide = replace(taught, model=copy.deepcopy(narrow.model).float())
    assert apart(found.scores, guard.scores(wide, forget, retain, way="gradient")) < 1e-3 and found.notes == ()


def test_steps_that_do_not_agree_are_told(monkeypatch, taught, sides):
    monkeypatch.setattr(guard, "STEPS", {torch.float32: (0.3, 0.3, 1e-9)})
    with pytest.warns(UserWarning, match=r"Two step lengths.* apart .*do not trust them") as told:
        guard.scores(taught, *sides)
    assert told[0].filename == __file__  # who asked for scores


@pytest.mark.parametrize(
    ("slope", "wanted", "least", "steps"),
    [
        # 4 / 3 of the distance from half the step is just good enough, or just not.
        (lambda h: 1 + h**3, 1.05, 1e-3, [0.5]),
        (lambda h: 1 + h**3, 0.95, 1e-3, [0.5, 0.5 * math.sqrt(0.95)]),
        (lambda h: 1 + h**3, 0.25, 1e-3, [0.5, 0.25]),
        (lambda h: 1 + h**3, 0.25, 0.4, [0.5, 0.4]),  # and no shorter one is tried
        (lambda h: 1 + h**3, 0.25, 0.5, [0.5]),
        (lambda h: 1 + h**3 if h > 0.2 else 2.0, 0.25, 1e-3, [0.5, 0.25, 0.5]),  # rounding has taken over: back
        (lambda h: h, 0.25, 1e-3, [0.5, 0.25, 0.5]),  # a shorter one is no better
        (lambda h: 1.0, 0.0, 1e-3, [0.5]),
        (lambda h: 0.0, 0.0, 1e-3, [0.5]),
    ],
)
def test_the_step_of_a_difference_is_as_short_as_it_has_to_be(monkeypatch, slope, wanted, least, steps):
    """Losses are h D(|h|) at a distance h of the weight from where it was, so that a step of h gives D(h)."""
    start, walked, asked = torch.tensor([3.0, 4.0], dtype=torch.float64), [], []
    weight = nn.Parameter(start.clone())

    class Batches:
        model = None

        def values(self, examples, losses):
            asked.append(list(examples))
            return losses(None).expand(len(examples))

    def losses(model, batch):
        h = (weight[0].detach() - 3.0) / 5  # of the weights' length along a direction of length 2
        walked.append(h.item())
        return (h.sign() * h.abs() * 5 / 2 * slope(h.abs().item())).double()

    def gap(h):
        return abs(slope(h) - slope(h / 2)) / slope(h / 2) if slope(h / 2) else 0.0

    monkeypatch.setattr(guard, "row_losses", losses)
    monkeypatch.setattr(guard, "STEPS", {torch.float64: (0.5, least, wanted * 4 / 3 * gap(0.5))})
    examples = list(range(2 * guard.CHECKED + 1))
    direction = [torch.tensor([2.0, 0.0], dtype=torch.float64)]
    found, notes = guard._by_difference(Batches(), examples, [weight], direction)
    used = steps[-1]
    assert found.tolist() == pytest.approx([slope(used)] * len(examples))
    tried = steps[:-1] if steps[-1] in steps[:-1] else steps
    expected = [sign * h for step in tried for h in (step, step / 2) for sign in (1, -1)]
    assert walked == pytest.approx([*expected, used, -used], rel=1e-9)
    checked = [index * len(examples) // guard.CHECKED for index in range(guard.CHECKED)]
    assert asked == [checked] * len(expected) + [examples] * 2
    assert torch.equal(weight, start) and bool(notes) == (gap(used) > guard.APART)
    nothing = guard._by_difference(Batches(), examples, [weight], [0 * direction[0]])
    assert nothing[0].tolist() == [0.0] * len(examples) and nothing[1] == [] and len(asked) == len(walked)


@pytest.mark.parametrize(
    ("dtype", "power", "first", "second", "least"),
    [
        # Losses whose slope is 1 + (h / power)^2: two steps far from straight. The second is the first times
        # sqrt(error wanted / (4/3 of what the first is apart from its half)), the third would be shorter than the least.
        (torch.float32, 1e-6, 1e-3, 1e-3 * math.sqrt(3e-4 / 4), 5e-6),
        (torch.float64, 1e-9, 1e-5, None, 1e-7),
    ],
)
def test_the_steps_of_a_difference_in_either_precision(monkeypatch, dtype, power, first, second, least):
    weight, walked = nn.Parameter(torch.tensor([0.0, 4.0], dtype=dtype)), []

    class Batches:
        model = None

        def values(self, examples, losses):
            return losses(None).expand(len(examples))

    def losses(model, batch):
        h = weight[0].detach().double() / 4  # of the weights' length
        walked.append(abs(h.item()))
        return h * (1 + (h / power) ** 2)

    monkeypatch.setattr(guard, "row_losses", losses)
    _, (note,) = guard._by_difference(Batches(), [0], [weight], [torch.tensor([1.0, 0.0], dtype=dtype)])
    lengths = walked[::2]  # there and back
    tried = [first, least] if second is None else [first, second, least]
    assert lengths == pytest.approx([each for step in tried for each in (step, step / 2)] + [least], rel=1e-5)
    long, short = (1 + (h / power) ** 2 for h in (least, least / 2))
    assert note.startswith(
        f"Two step lengths of the central difference give scores that are {(long - short) / short:.0%}"
    )


@pytest.mark.parametrize(("bend", "told"), [(0.0128, False), (0.0141, True)])
def test_scores_are_not_trusted_from_one_part_in_a_hundred(monkeypatch, bend, told):
    weight = nn.Parameter(torch.tensor([0.0, 1.0], dtype=torch.float64))
    batches = type("Batches", (), {"model": None, "values": lambda _, its, losses: losses(None).expand(len(its))})()
    # Of a slope 1 + bend h^2 a step of 1 is 3/4 bend apart from its half: 0.0096 and 0.0105.
    monkeypatch.setattr(guard, "row_losses", lambda *_: weight[0].detach() * (1 + bend * weight[0].detach() ** 2))
    monkeypatch.setattr(guard, "STEPS", {torch.float64: (1.0, 1.0, 1e-9)})
    _, notes = guard._by_difference(batches, [0], [weight], [torch.tensor([1.0, 0.0], dtype=torch.float64)])
    assert [note[:80] for note in notes] == [
        "Two step lengths of the central difference give scores that are 1% apart (of the"
    ] * told


def test_batches_are_of_like_length_the_longest_first_and_come_back_in_order():
    from equipoise.language.encode import Example

    made = _Given(None)
    examples = [Example(tuple(range(length)), tuple(range(length))) for length in (2, 5, 3, 7, 1)]
    batches = guard._Batches(made, 2)
    walked = [(chosen, batch["input_ids"].shape) for chosen, batch in batches(examples)]
    assert walked == [([3, 1], (2, 7)), ([2, 0], (2, 3)), ([4], (1, 1))]
    assert [chosen for chosen, _ in batches(examples, 4)] == [[3, 1, 2, 0], [4]]
    lengths = batches.values(examples, lambda batch: batch["attention_mask"].sum(-1))
    assert lengths.dtype == torch.float64 and lengths.tolist() == [2, 5, 3, 7, 1]


def test_what_cannot_be_scored_is_refused(taught, sides):
    with pytest.raises(BadInput, match=r"^5 forget and 0 retain records: scores need at least one of each\.$"):
        guard.scores(taught, sides[0], [])
    frozen = replace(taught, model=copy.deepcopy(taught.model).requires_grad_(False))
    with pytest.raises(BadInput, match="no parameter that requires a gradient"):
        guard.scores(frozen, *sides)
    with pytest.raises(BadInput, match="Did you mean 'forward'"):
        guard.scores(taught, *sides, way="foward")


# Weights.

A = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)


def test_weights_are_positive_of_mean_one_and_fall_with_the_score():
    """Check 2; and the softmax by hand."""
    found = guard.weights(A, temperature=0.7)
    raw = [math.exp(-a / 0.7) for a in A.tolist()]
    assert found.tolist() == pytest.approx([4 * each / sum(raw) for each in raw], rel=1e-12)
    assert found.mean().item() == pytest.approx(1.0) and (found > 0).all()
    assert found.argsort().tolist() == A.argsort(descending=True).tolist()
    assert_close(guard.weights(A + 5, temperature=0.7), found)
    assert_close(guard.weights(3 * A, temperature=2.1), found)
    assert guard.weights(A, temperature=math.inf).tolist() == [1.0] * 4
    assert (found * A).mean() < A.mean()
    floored = guard.weights(A, temperature=0.01, floor=0.25)
    assert floored.mean().item() == pytest.approx(1.0) and floored.min().item() >= 0.25
    assert guard.weights(A, temperature=0.7, floor=1.0).tolist() == [1.0] * 4
    for words in (
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": 1.0, "floor": 1.5},
        {"temperature": 1.0, "floor": -0.5},
        {"temperature": math.inf, "floor": 2},
    ):
        with pytest.raises(BadInput, match="need a temperature above 0 and a floor from 0 to 1"):
            guard.weights(A, **words)
    with pytest.raises(BadInput, match="score 1 is no number"):
        guard.weights(torch.tensor([0.0, math.nan]), temperature=1.0)


def test_the_gain_is_the_variance_over_the_temperature():
    """For Gaussian scores exactly; the card's 0.7 and 2 give -0.245. And two deviations keep exp(-1/4) of the sample."""
    many = 0.7 * torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = guard.weights(many, temperature=2.0)
    assert (found * many).mean().item() - many.mean().item() == pytest.approx(-0.245, abs=0.003)
    found = guard.weights(many, temperature=guard.absolute_temperature(many, 2.0))
    assert guard.effective_sample_size(found) / len(many) == pytest.approx(math.exp(-0.25), abs=0.005)


def test_effective_sample_size_and_temperature():
    assert guard.effective_sample_size(torch.tensor([2.0, 2.0, 2.0])) == pytest.approx(3.0)
    assert guard.effective_sample_size(torch.tensor([3.0, 0.0, 1.0])) == pytest.approx(1.6)
    assert guard.absolute_temperature(A, 3.0) == pytest.approx(3 * A.std(correction=0).item())
    assert guard.absolute_temperature(A, math.inf) == math.inf
    alike = torch.full((3,), 0.1) + torch.tensor([0.0, 1e-8, -1e-8])  # rounding, not a difference
    assert guard.absolute_temperature(alike, 2.0) == math.inf
    assert guard.absolute_temperature(alike[:1], 2.0) == guard.absolute_temperature(0 * A, 2.0) == math.inf
    near = torch.tensor([1.0, 1.0 + 3e-5], dtype=torch.float64)  # a spread of 1.5e-5
    assert guard.absolute_temperature(near, 2.0) == pytest.approx(3e-5, rel=1e-9)
    assert guard.absolute_temperature(torch.tensor([1.0, 1.0 + 1.6e-5], dtype=torch.float64), 2.0) == math.inf


def test_variants():
    found = guard.Attribution(A, torch.tensor([1.0, 2.0, 0.0, 4.0], dtype=torch.float64), 2.0, 3)
    assert guard.varied(found, "plain").tolist() == A.tolist()
    assert guard.varied(found, "cosine").tolist() == [0.15, -0.25, 0.0, 0.0]
    assert guard.varied(found, "clipped").tolist() == [0.3, 0.0, 2.0, 0.0]
    assert guard.varied(found, "cosine-clipped").tolist() == [0.15, 0.0, 0.0, 0.0]
    assert guard.varied(found, "flipped").tolist() == (-A).tolist()
    assert guard.varied(found, "norm").tolist() == [1.0, 2.0, 0.0, 4.0]
    drawn = [guard.varied(found, "permuted", seed=seed).tolist() for seed in range(6)]
    assert all(sorted(each) == sorted(A.tolist()) for each in drawn) and len({tuple(each) for each in drawn}) > 1
    with pytest.raises(BadInput, match="variant 'norm' needs each record's own gradient"):
        guard.varied(replace(found, norms=None), "norm")


def test_a_recipe_weighs_and_warns_of_few(taught, sides):
    forget, retain = sides
    plain = guard.weigh(taught, Recipe(weigh="guard", temperature=1.5, floor=0.1), forget, retain)
    assert plain.temperature == pytest.approx(1.5 * plain.scores.std(correction=0).item())
    assert_close(plain.weights, guard.weights(plain.scores, temperature=plain.temperature, floor=0.1))
    flipped = guard.weigh(taught, Recipe(weigh="guard", variant="flipped"), forget, retain)
    assert plain.notes == () and torch.equal(flipped.scores, plain.scores)
    assert_close(flipped.weights, guard.weights(-plain.scores, temperature=2 * plain.scores.std(correction=0).item()))
    few = guard.weigh(taught, Recipe(weigh="guard", temperature=0.05), forget, retain)
    assert few.notes[-1].startswith("The weights leave an effective sample of 1.0 of 5 forget records")
    norm = guard.weigh(taught, Recipe(weigh="guard", variant="norm"), forget, retain)
    norms = gradients(taught, forget).double().norm(dim=1)
    wanted = guard.weights(norms, temperature=guard.absolute_temperature(norms, 2.0))
    assert_close(norm.weights, wanted, rtol=1e-4, atol=0)
    assert apart(norm.scores, plain.scores) < 1e-3
    own, chosen = replace(taught, model=copy.deepcopy(taught.model)), Recipe(weigh="guard", temperature=0.05, steps=1)
    with pytest.warns(UserWarning, match="effective sample of 1.0 of 5"):
        train(own, chosen, forget, retain)


@pytest.mark.parametrize(
    ("given", "effective", "told"),
    [
        ([2.0, 2.0, 0.0, 0.0], 2.0, False),  # a half exactly
        ([3.0, 1.0, 0.0, 0.0], 1.6, True),
        ([2.5, 2.5, 0.0, 0.0, 0.0], 2.0, True),
    ],
)
def test_less_than_half_of_the_records_is_few(monkeypatch, given, effective, told):
    asked = {}

    def attribute(*_, **how):
        asked.update(how)
        return guard.Attribution(torch.arange(float(len(given))), None, 1.0, 3, 0.5, ("said",))

    monkeypatch.setattr(guard, "attribute", attribute)
    monkeypatch.setattr(guard, "weights", lambda *_, **how: torch.tensor(given))
    found = guard.weigh(None, Recipe(weigh="guard", batch_size=9), [], [])
    assert asked == {"way": "difference", "batch_size": 9} and found.split_half == 0.5
    words = f"The weights leave an effective sample of {effective:.1f} of {len(given)} forget records"
    assert found.notes[0] == "said" and [note[: len(words)] for note in found.notes[1:]] == [words] * told
    guard.weigh(None, Recipe(weigh="guard", batch_size=9, micro_batch_size=2), [], [])
    assert asked == {"way": "difference", "batch_size": 2}


def test_a_loss_of_ones_own_takes_the_weights_by_id():
    loss = guard.WeighedLoss(lambda x, *, power: x**power, {"a": 0.5, "b": 1.5, "c": 1.0})
    assert loss(["b", "a"], torch.tensor([2.0, 4.0]), power=2).item() == pytest.approx((1.5 * 4 + 0.5 * 16) / 2)
    with pytest.raises(BadInput, match="record 'd' has no weight"):
        loss(["d"], torch.tensor([2.0]), power=2)
    with pytest.raises(BadInput, match=r"a loss of each record was expected, \[2\], and came as \[\]"):
        guard.WeighedLoss(lambda x: x.mean(), {"a": 1.0, "b": 1.0})(["a", "b"], torch.ones(2))


# Losses and training.


def test_every_forget_loss_takes_the_weights_of_its_rows(double, sides):
    forget, _ = sides
    batch = collate(forget, double.pad_id)
    given = torch.tensor([0.5, 2.0, 0.0, 1.5, 1.0], dtype=torch.float64)
    steering = torch.ones(16, dtype=torch.float64)
    made = [objectives.ga_loss(), objectives.npo_loss(0.3), objectives.simnpo_loss(2.0, 0.1)]
    made += [objectives.rmu_loss(0, steering), objectives.gd_loss()]
    reference = torch.linspace(-9, -1, 5, dtype=torch.float64)
    for loss in made:
        total, divisor = loss(double.model, {**batch, "reference": reference, "weight": given})
        alone = [
            loss(double.model, {**collate([each], double.pad_id), "reference": reference[row : row + 1]})
            for row, each in enumerate(forget)
        ]
        assert total.item() == pytest.approx(sum(w * a.item() for w, (a, _) in zip(given.tolist(), alone, strict=True)))
        assert float(divisor) == sum(float(each) for _, each in alone)


@pytest.mark.filterwarnings("ignore:The scores are over")
def test_all_weights_one_are_the_base_method_bit_for_bit(taught, sides):
    """Check 1; and weights that differ are another training."""
    forget, retain = sides

    def trained(objective, **words):
        own = replace(taught, model=copy.deepcopy(taught.model))
        chosen = Recipe(objective=objective, combine="sum", steps=2, batch_size=4, micro_batch_size=2, **words)
        train(prepare(own, chosen), chosen, forget, retain)
        return torch.cat([parameter.detach().flatten() for parameter in own.model.parameters()])

    for objective in ("ga", "npo", "simnpo", "rmu"):
        assert torch.equal(trained(objective, weigh="guard", temperature=math.inf), trained(objective)), objective
    assert torch.equal(trained("ga", weigh="guard", floor=1.0), trained("ga"))
    assert not torch.equal(trained("ga", weigh="guard"), trained("ga"))


def test_a_batch_carries_the_weights_of_its_records(monkeypatch, taught, sides):
    from equipoise.unlearning import training

    seen = {}
    monkeypatch.setattr(training, "fit", lambda *_, **how: seen.update(how))
    given = torch.tensor([0.2, 0.4, 0.6, 1.8, 2.0], dtype=torch.float64)
    train(taught, Recipe(objective="ga"), *sides, weights=given)
    first, second = seen["collate"]([(3, 0), (1, 4), (3, 2)])
    assert first["weight"].dtype == torch.float32 and "weight" not in second
    assert_close(first["weight"], torch.tensor([1.8, 0.4, 1.8]))
    monkeypatch.setattr(guard, "weigh", lambda *_: pytest.fail("weights were given"))
    train(taught, Recipe(weigh="guard"), *sides, weights=torch.ones(5))
    assert "weight" not in seen["collate"]([(0, 0)])[0]


def test_the_words_of_a_recipe():
    assert METHODS["guard"] == {"objective": "ga", "combine": "sum", "weigh": "guard"}
    chosen = recipe("guard", objective="npo", temperature=3.0)
    assert (chosen.weigh, chosen.objective, chosen.temperature, chosen.floor, chosen.variant) == (
        "guard",
        "npo",
        3.0,
        0.0,
        "plain",
    )
    own = {"weigh", "temperature", "floor", "variant"}
    assert own <= chosen.used() and own & Recipe().used() == {"weigh"}
    assert recipe(weigh="guard", temperature=math.inf).temperature == math.inf
    # Of the job, whose settings are stored as JSON, it is no temperature: what is promised there is weigh="uniform".
    with pytest.raises(BadInput, match="'temperature' should be finite"):
        unlearn._values((), {"model": "m", "forget": "f", "retain": "r", "temperature": math.inf})
    assert "inf" not in str(Recipe.model_fields["temperature"].description)
    alike = recipe("guard", weigh="uniform")
    assert alike.weigh == "uniform" and alike.used() == recipe(objective="ga", combine="sum").used()
    for words, why in (
        ({"floor": 1.1}, "'floor'"),
        ({"temperature": 0}, "'temperature'"),
        ({"variant": "flip"}, "flipped"),
    ):
        with pytest.raises(BadInput, match=why):
            recipe("guard", **words)


def test_the_whole_model_is_scored_before_it_is_split(monkeypatch, taught, sides):
    from equipoise.unlearning import training

    done, seen = [], {}
    given = guard.Weighing(torch.zeros(5), torch.tensor([0.2, 0.4, 0.6, 1.8, 2.0]), 1.0)
    monkeypatch.setattr(guard, "weigh", lambda *_: done.append("scored") or given)
    monkeypatch.setattr(training.sharding, "check_processes", lambda: None)
    monkeypatch.setattr(training.sharding, "outline", lambda model: model)
    monkeypatch.setattr(training.sharding, "shard", lambda *_: done.append("split"))
    monkeypatch.setattr(training.sharding, "gathered", lambda model, _: model)
    monkeypatch.setattr(training, "fit", lambda *_, **how: seen.update(how))
    train(taught, Recipe(objective="ga", weigh="guard"), *sides, shard=True)
    assert done == ["scored", "split"]
    assert_close(seen["collate"]([(4, 0), (0, 1)])[0]["weight"], torch.tensor([2.0, 0.2]))
