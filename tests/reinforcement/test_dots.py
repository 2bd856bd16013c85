"""DOTS: the theorem by enumeration, draws against sequential ones, the predictor against numpy."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.reinforcement import dots, group_baselines
from equipoise.reinforcement.dots import DifficultyPredictor, DifficultySampler, EmbeddingPredictor
from equipoise.reinforcement.rates import RateStore

GROUPS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)), dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# The signal of a group


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.875])
def test_the_theorem_by_enumeration_and_by_simulation(p):
    """E A^2 = p (1 - p) (1 - 1 / G), over all groups of 8 and in 20,000 drawn ones."""
    expected = p * (1 - p) * (1 - 1 / 8)
    weight = (p**GROUPS * (1 - p) ** (1 - GROUPS)).prod(-1)
    squares = group_baselines.dr_grpo(GROUPS).square().mean(-1)
    assert_close((weight * squares).sum().item(), expected)
    drawn = torch.rand(20_000, 8, generator=generator(), dtype=torch.float64) < p
    found = group_baselines.dr_grpo(drawn.double()).square().mean(-1)
    assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(len(drawn))
    standardized = group_baselines.grpo(GROUPS, epsilon=0, population=True).nan_to_num().square().mean(-1)
    assert_close((weight * standardized).sum().item(), 1 - p**8 - (1 - p) ** 8)


def test_groups_of_equal_rewards_have_no_signal():
    equal = torch.stack([torch.zeros(8), torch.ones(8)])
    assert group_baselines.dr_grpo(equal).abs().sum() == group_baselines.grpo(equal).abs().sum() == 0


# Selection


def sequential(weights, count):
    """The probability of every ordered draw without replacement, by enumeration."""
    found = {}
    for order in itertools.permutations(range(len(weights)), count):
        left, chance = sum(weights), 1.0
        for place in order:
            chance *= weights[place] / left
            left -= weights[place]
        found[order] = chance
    return found


def test_draws_are_sequential_softmax_draws():
    """All 20 ordered pairs of 5 questions, in 2,500 draws, by chi-squared with 19 degrees of freedom."""
    difficulty = torch.tensor([0.5, 0.6, 0.35, 1.0, 0.0])
    expected = sequential([math.exp(-abs(d - 0.4) / 0.3) for d in difficulty.tolist()], 2)
    rng, drawn = generator(), []
    for _ in range(2500):
        drawn.append(tuple(dots.select(difficulty, 2, target=0.4, temperature=0.3, generator=rng).tolist()))
    squares = [(drawn.count(pair) - 2500 * chance) ** 2 / (2500 * chance) for pair, chance in expected.items()]
    assert abs(sum(expected.values()) - 1) < 1e-12 and sum(squares) < 43.8  # 0.1 % of the time above


def test_a_low_temperature_does_not_underflow():
    """At 1e-3 a softmax in float32 has nothing beyond 0.1 from the best; what is far is still drawn by distance."""
    difficulty = torch.tensor([0.0, 0.45, 0.9, 0.3, 0.62, 0.97, 0.71])
    assert ((-(difficulty - 0.5).abs() / 1e-3).softmax(-1) > 0).sum() < 4
    assert dots.select(difficulty, 7, generator=generator()).tolist() == [1, 4, 3, 6, 2, 5, 0]
    alone = dots.select(torch.tensor([0.9, 0.1, 0.5, 0.2]), 1, target=0.1, generator=generator())
    assert alone.tolist() == [1]
    assert dots.select(difficulty, 0, generator=generator()).tolist() == []


def test_an_infinite_temperature_is_uniform_whatever_the_difficulty():
    one, two = torch.rand(50, generator=generator()), torch.zeros(50)
    drawn = [dots.select(each, 20, temperature=math.inf, generator=generator(3)).tolist() for each in (one, two)]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 20
    rng = generator()
    counts = torch.zeros(5)
    for _ in range(500):
        counts[dots.select(torch.tensor([0.5, 0.0, 1.0, 0.2, 0.3]), 2, temperature=math.inf, generator=rng)] += 1
    assert (counts - 200).square().sum() / (500 * 0.4 * 0.6 * 5 / 4) < 18.5  # 4 degrees of freedom, 0.1 % above


def test_a_draw_is_the_generators_own():
    state = torch.get_rng_state()
    difficulty = torch.rand(30, generator=generator())
    first, again, other = (
        dots.select(difficulty, 5, temperature=0.3, generator=generator(seed)).tolist() for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)
    assert first[:3] == dots.select(difficulty, 3, temperature=0.3, generator=generator(1)).tolist()


@pytest.mark.parametrize(
    ("difficulty", "count", "temperature", "said"),
    [
        ([0.1, 0.2], 3, 1.0, "3 questions are to be drawn, expected 0 to 2"),
        ([0.1, 0.2], -1, 1.0, "-1 questions"),
        ([0.1, 0.2], 1, 0.0, "temperature is 0.0"),
        ([0.1, 0.2], 1, math.nan, "temperature is nan"),
        ([0.1, math.nan, math.inf], 1, 1.0, r"difficulty\[1\] is nan"),
    ],
)
def test_draws_that_cannot_be(difficulty, count, temperature, said):
    with pytest.raises(BadInput, match=said):
        dots.select(torch.tensor(difficulty), count, temperature=temperature, generator=generator())


# The predictor


def arrays(count=6, references=5, width=7, seed=0):
    """Embeddings of questions and references, and the references' difficulty, in float64."""
    rng = generator(seed)
    embeddings, others = (torch.randn(n, width, generator=rng, dtype=torch.float64) for n in (count, references))
    return embeddings, others, torch.rand(references, generator=rng, dtype=torch.float64)


def made(calibration="divide", width=7, hidden=16, seed=0):
    return DifficultyPredictor(width, seed=seed, hidden=hidden, calibration=calibration).double()


def by_formula(predictor, embeddings, references, difficulty, calibration):
    """The forward pass in numpy, from the formulas: difficulty [B, K]."""
    weights = {name: each.detach().numpy() for name, each in predictor.state_dict().items()}

    def normed(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def adapted(x, name):
        x = normed(x.numpy(), f"{name}.0")
        for layer in (1, 4):
            x = linear(x, f"{name}.{layer}")
            x = x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
        return normed(linear(x, f"{name}.7"), f"{name}.8")

    queries, keys = adapted(embeddings, "query_adapter"), adapted(references, "reference_adapter")
    scores = np.exp(queries @ keys.T / math.sqrt(keys.shape[-1]))
    found = (scores / scores.sum(-1, keepdims=True) * difficulty.numpy()).sum(-1).clip(1e-4, 1 - 1e-4)
    spread = np.stack([difficulty.numpy().mean(-1), difficulty.numpy().std(-1, ddof=1)], -1)
    u1, u2 = linear(np.maximum(linear(spread, "moments.0"), 0), "moments.2").T
    stretch, logit = np.log1p(np.exp(u1)), np.log(found / (1 - found))
    logit = logit / stretch.clip(1e-2, 10) if calibration == "divide" else logit * stretch
    return 1 / (1 + np.exp(-logit - np.tanh(u2)))


@pytest.mark.parametrize("calibration", ["divide", "multiply"])
def test_forward_against_numpy(calibration):
    """With values of each row's own; and `predict` is the same for values that all share."""
    predictor = made(calibration)
    embeddings, references, shared = arrays()
    own = torch.rand(6, 5, generator=generator(1), dtype=torch.float64)
    found = predictor(embeddings, references, own).sigmoid().detach()
    assert_close(found.numpy(), by_formula(predictor, embeddings, references, own, calibration))
    expected = by_formula(predictor, embeddings, references, shared.expand(6, 5), calibration)
    assert_close(predictor.predict(embeddings, references, shared).numpy(), expected)
    assert np.ptp(expected) > 1e-3


def test_constant_references_are_their_value_before_calibration():
    queries, keys, _ = arrays()
    assert_close(dots.attended(queries, keys, torch.full((5,), 0.3, dtype=torch.float64)).tolist(), [0.3] * 6)


def test_a_copy_of_a_reference_with_large_embeddings_has_its_value():
    """As long as all have one length, as an adapter's last layer gives them; two equal copies have the mean of theirs."""
    _, keys, difficulty = arrays()
    large = 1e3 * keys / keys.norm(dim=-1, keepdim=True)
    assert_close(dots.attended(large, large, difficulty), difficulty)
    assert_close(EmbeddingPredictor().predict(large, large, difficulty), difficulty)
    twice = torch.cat([large, large[:1]])
    assert_close(dots.attended(large[:1], twice, torch.tensor([0.2, 0.9, 0.9, 0.9, 0.9, 0.6]).double()).item(), 0.4)


def test_references_in_another_order_change_nothing():
    embeddings, references, difficulty = arrays()
    order = torch.tensor([3, 1, 4, 0, 2])
    for predictor in (made(), EmbeddingPredictor()):
        found = predictor.predict(embeddings, references, difficulty)
        assert_close(predictor.predict(embeddings, references[order], difficulty[order]), found)
        assert not torch.allclose(predictor.predict(embeddings, references[order], difficulty), found)


@pytest.mark.parametrize("calibration", ["divide", "multiply"])
def test_predictions_are_inside_the_open_interval(calibration):
    """Where everything is solved, and nothing, by a calibration as steep and as flat as it can be."""
    for dtype in (torch.float32, torch.float64):
        predictor = made(calibration).to(dtype)
        embeddings, references, _ = (each.to(dtype) for each in arrays())
        for steepness in (-30.0, 0.0, 3000.0):
            predictor.moments[2].bias.data.copy_(torch.tensor([steepness, 0.0]))
            for value in (0.0, 1.0):
                found = predictor.predict(embeddings, references, torch.full((5,), value))
                assert ((found > 0) & (found < 1)).all()
                assert steepness != 0 or ((found > 0.5) == (value == 1)).all()
                if steepness > 0 and calibration == "multiply":  # as near to the ends as the type goes
                    exact = torch.finfo(dtype)
                    assert (found == (1 - exact.eps / 2 if value else exact.tiny)).all()


def test_calibration_by_hand():
    estimate = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64)
    logit = [math.log(p / (1 - p)) for p in (1e-4, 0.2, 0.5, 1 - 1e-4)]
    for u1, u2 in ((0.3, -0.7), (-9.0, 0.2), (50.0, 0.0)):
        scale, shift = (torch.full((4,), each, dtype=torch.float64) for each in (u1, u2))
        stretch = math.log1p(math.exp(u1))
        divided = [each / min(max(stretch, 0.01), 10) + math.tanh(u2) for each in logit]
        assert_close(dots.calibrated(estimate, scale, shift).tolist(), divided)
        multiplied = [each * stretch + math.tanh(u2) for each in logit]
        assert_close(dots.calibrated(estimate, scale, shift, "multiply").tolist(), multiplied)
    with pytest.raises(BadInput, match="form is 'code'"):
        dots.calibrated(estimate, scale, shift, "code")


def world(questions=200, models=6, references=60, width=12):
    """Models that fail a question by how its first number compares with their skill; the others are louder, and noise."""
    rng = np.random.default_rng(2)
    first = rng.normal(size=(questions + references, 1))
    embeddings = np.concatenate([first / 2, rng.normal(size=(questions + references, width - 1))], axis=1)
    difficulty = 1 / (1 + np.exp(-4 * (first.T - rng.uniform(-1, 1, size=(models, 1)))))
    embeddings, difficulty = torch.tensor(embeddings).float(), torch.tensor(difficulty).float()
    return embeddings[:questions], difficulty[:, :questions], embeddings[questions:], difficulty[:, questions:]


KNOWN = 150  # of the questions; the others are new
QUICK = {"references": 40, "hidden": 16, "batch_size": 100, "learning_rate": 2e-2, "epochs": 10}


@pytest.fixture(scope="module")
def taught():
    """A predictor that has seen five of six models."""
    embeddings, difficulty, references, rates = world()
    state = torch.get_rng_state()
    predictor = DifficultyPredictor.fit(
        embeddings[:KNOWN], difficulty[:5, :KNOWN], references, rates[:5], seed=1, **QUICK
    )
    assert torch.equal(torch.get_rng_state(), state) and not predictor.training
    return predictor


def test_learning_finds_what_raw_embeddings_hide(taught):
    """Of a model that it never saw, on questions of the training and on new ones."""
    embeddings, difficulty, references, rates = world()
    found, raw = (each.predict(embeddings, references, rates[5]) for each in (taught, EmbeddingPredictor()))
    for part, least in ((slice(KNOWN), 0.8), (slice(KNOWN, None), 0.65)):
        taught_best, raw_best = (dots.pearson(each[part], difficulty[5, part]) for each in (found, raw))
        assert taught_best > least > 0.6 > raw_best


def test_learning_is_a_function_of_its_arguments():
    embeddings, difficulty, references, rates = world()
    torch.manual_seed(99)
    known = (embeddings[:KNOWN], difficulty[:5, :KNOWN], references, rates[:5])
    few = QUICK | {"epochs": 1}
    one, again, two, three = (
        DifficultyPredictor.fit(*known, **few | changed).predict(embeddings, references, rates[5])
        for changed in ({"seed": 1}, {"seed": 1}, {"seed": 2}, {"seed": 1, "references": 39})
    )
    assert torch.equal(one, again)
    assert not torch.allclose(one, two) and not torch.allclose(one, three)


def test_a_row_reads_its_own_model_and_nothing_that_was_not_measured(monkeypatch):
    """The mini-batches, as the trainer is given them: one draw of references, values by row, no row of nan."""
    from equipoise.training import loop

    seen = []
    monkeypatch.setattr(
        loop,
        "fit",
        lambda model, step, draw, settings, *, collate, title: seen.extend(
            [settings, *(collate(draw(index)) for index in range(settings.steps))]
        ),
    )
    embeddings, references = torch.arange(8.0).view(4, 2), torch.arange(100.0, 112.0).view(6, 2)
    difficulty = torch.tensor([[0.1, math.nan, 0.3, 0.4], [0.5, 0.6, math.nan, 0.8]])
    rates = torch.arange(12.0).view(2, 6) / 20
    DifficultyPredictor.fit(
        embeddings, difficulty, references, rates, seed=0, references=3, hidden=4, batch_size=3, epochs=4
    )
    settings, *batches = seen
    for step, batch in enumerate(batches):  # a stream of its own for each step
        expected = np.random.default_rng(np.random.SeedSequence([0, 8, step])).choice(6, 3, replace=False)
        assert torch.equal(batch["reference_embeddings"], references[torch.from_numpy(expected)])
    assert settings.steps == len(batches) == 8 and settings.warmup_ratio == 0.1 and settings.max_grad_norm is None
    values, drawn = [], []
    for batch in batches:
        chosen = ((batch["reference_embeddings"][:, 0] - 100) / 2).long()
        assert len(set(chosen.tolist())) == 3
        drawn.append(tuple(chosen.tolist()))
        for row in range(3):
            question = int(batch["embeddings"][row, 0] / 2)
            model = int((batch["reference_difficulty"][row, 0] * 20).round() // 6)
            assert batch["difficulty"][row] == difficulty[model, question]
            assert torch.equal(batch["reference_difficulty"][row], rates[model, chosen])
        values += batch["difficulty"].tolist()
    assert len(set(drawn)) > 4
    assert sorted(values) == sorted([*difficulty[~difficulty.isnan()].tolist()] * 4)


def test_the_rate_rises_over_a_tenth_and_at_most_100_steps(monkeypatch):
    """And a last mini-batch that is not full is a step, too."""
    from equipoise.training import loop

    seen = []
    monkeypatch.setattr(loop, "fit", lambda model, step, draw, settings, **others: seen.append(settings))
    embeddings, references, rates = torch.eye(6), torch.eye(6)[:4], torch.rand(2, 4)
    for epochs in (1, 400, 1000):
        DifficultyPredictor.fit(
            embeddings, torch.full((2, 6), 0.5), references, rates, seed=0, references=2, hidden=4, batch_size=5,
            epochs=epochs,
        )  # fmt: skip
    assert [each.steps for each in seen] == [3, 960, 2400]
    assert [each.warmup_ratio for each in seen] == [0.1, 0.1, 100 / 2400]
    assert {each.max_grad_norm for each in seen} == {None}


def test_saved_and_loaded(taught, tmp_path):
    embeddings, _, references, rates = world()
    taught.save(tmp_path / "predictor")
    assert sorted(each.name for each in (tmp_path / "predictor").iterdir()) == [
        "predictor.json",
        "predictor.safetensors",
    ]
    loaded = DifficultyPredictor.load(tmp_path / "predictor")
    found = (each.predict(embeddings, references, rates[5]) for each in (taught, loaded))
    assert_close(*found, rtol=0, atol=0)
    assert json.loads((tmp_path / "predictor" / "predictor.json").read_text())["difficulty_predictor"] == 1
    assert [each.out_features for each in taught.moments if hasattr(each, "out_features")] == [10, 2]
    made("multiply").save(tmp_path / "other")
    assert DifficultyPredictor.load(tmp_path / "other").settings["calibration"] == "multiply"


@pytest.mark.parametrize("damage", ["nothing", "altered", "swapped", "version", "word", "list"])
def test_folders_that_hold_no_predictor(damage, tmp_path):
    made().float().save(tmp_path)
    settings, weights = tmp_path / "predictor.json", tmp_path / "predictor.safetensors"
    stored = json.loads(settings.read_text())
    if damage == "nothing":
        settings.unlink()
    elif damage == "altered":
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    elif damage == "swapped":
        settings.write_text(json.dumps(stored | {"hidden": 17}))
    elif damage == "list":
        settings.write_text("[]")
    else:
        settings.write_text(json.dumps(stored | {"version": 9, "word": 1}))
        if damage == "version":
            settings.write_text(json.dumps(stored | {"difficulty_predictor": 9}))
    with pytest.raises(BadInput, match="holds no difficulty predictor"):
        DifficultyPredictor.load(tmp_path)


def test_many_questions_are_predicted_in_parts(monkeypatch):
    embeddings, references, difficulty = arrays(count=11)
    for predictor in (made(), EmbeddingPredictor()):
        whole = predictor.predict(embeddings, references, difficulty)
        with monkeypatch.context() as patch:
            patch.setattr(dots, "_AT_ONCE", 4)
            assert_close(predictor.predict(embeddings, references, difficulty), whole)
        assert len(whole) == 11 and predictor.predict(embeddings[:0], references, difficulty).shape == (0,)


def test_what_a_predictor_refuses():
    embeddings, references, difficulty = arrays()
    for wrong, said in (
        ((embeddings[:, :6], references, difficulty), r"embeddings are \[[56], [67]\], expected a row of [67] numbers"),
        ((embeddings[0], references, difficulty), r"embeddings are \[7\]"),
        ((embeddings.unsqueeze(0), references, difficulty), r"embeddings are \[1, 6, 7\]"),
        ((embeddings, references * math.nan, difficulty), r"reference_embeddings\[0\] holds"),
        ((embeddings, references[:1], difficulty[:1]), "there are 1 reference questions"),
        ((embeddings, references, difficulty[:4]), r"difficulties of shape \[4\]"),
        ((embeddings, references, difficulty + 1), r"reference_difficulty\[0\] is"),
    ):
        for predictor in (made(), EmbeddingPredictor()):
            with pytest.raises(BadInput, match=said):
                predictor.predict(*wrong)
    known = {"seed": 0, "references": 4}
    models = torch.rand(2, 6), torch.rand(2, 5)
    for wrong, said in (
        ((embeddings, models[0][:, :5], references, models[1]), r"difficulty is \[2, 5\]"),
        ((embeddings, models[0], references, models[1][:1]), r"reference_difficulty \[1, 5\]"),
        ((embeddings, models[0] * math.nan, references, models[1]), "holds no measured value"),
        ((embeddings, models[0] + 1, references, models[1]), r"difficulty\[0, 0\] is"),
        ((embeddings, models[0], references, models[1] * math.nan), r"reference_difficulty\[0\] is nan"),
        ((embeddings, models[0], references, models[1] + torch.tensor([[0.0], [1.0]])), r"difficulty\[1, 0\] is 1"),
        ((embeddings / 0, models[0], references, models[1]), r"embeddings\[0\] holds"),
    ):
        with pytest.raises(BadInput, match=said):
            DifficultyPredictor.fit(*wrong, **known)
    for count in (1, 6):
        with pytest.raises(BadInput, match=f"references is {count}, expected 2 to 5"):
            DifficultyPredictor.fit(embeddings, models[0], references, models[1], seed=0, references=count)
    with pytest.raises(BadInput, match="calibration is 'code'"):
        DifficultyPredictor(7, seed=0, calibration="code")


# What is made of predictions


def test_correlation():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 30))
    found = dots.pearson(torch.tensor(one), torch.tensor(two + one))
    assert_close(found, np.corrcoef(one, two + one)[0, 1].item())
    constant = torch.full((9,), 1 / 3)
    assert all(math.isnan(dots.pearson(*pair)) for pair in ((constant, torch.rand(9)), (torch.rand(9), constant)))


def test_a_line_through_the_references():
    rng = np.random.default_rng(0)
    predicted, measured = rng.uniform(size=(2, 12))
    wanted = rng.uniform(-1, 2, size=20)
    found = dots.refitted(*(torch.tensor(each) for each in (wanted, predicted, measured)))
    assert_close(found.numpy(), np.polyval(np.polyfit(predicted, measured, 1), wanted))
    constant = dots.refitted(torch.tensor(wanted), torch.full((12,), 0.5).double(), torch.tensor(measured))
    assert_close(constant.numpy(), np.full(20, measured.mean()))


def test_a_reference_is_not_predicted_from_itself():
    """Its own value changes nothing in its fold, and everything elsewhere; in each fold they are those of the others."""
    _, references, difficulty = arrays(references=10)
    found = dots.cross_predicted(EmbeddingPredictor(), references, difficulty)
    changed = difficulty.clone()
    changed[6] = 1 - changed[6]
    again = dots.cross_predicted(EmbeddingPredictor(), references, changed)
    assert torch.equal(found == again, torch.arange(10) % 4 == 2)
    own, others = [1, 5, 9], [0, 2, 3, 4, 6, 7, 8]
    assert_close(found[own], dots.attended(references[own], references[others], difficulty[others]))
    with pytest.raises(BadInput, match="there are 7 reference questions, expected at least 8"):
        dots.cross_predicted(EmbeddingPredictor(), references[:7], difficulty[:7])


def test_the_line_of_the_released_code_flatters_itself():
    """Embeddings of noise, so large that each resembles itself alone: in-sample the line is y = x, and nothing is known."""
    noise = torch.randn(300, 64, generator=generator(), dtype=torch.float64)
    noise = 100 * noise / noise.norm(dim=-1, keepdim=True)
    ids, measured = torch.arange(7, 107), torch.rand(100, generator=generator(1), dtype=torch.float64)
    plain, flattered, honest = (
        dots.estimate(EmbeddingPredictor(), noise, ids, measured, refit=refit)
        for refit in ("none", "in-sample", "cross-fitted")
    )
    assert abs(plain.correlation) < 0.3 and plain.correlation == flattered.correlation == honest.correlation
    assert_close(plain.difficulty[ids], measured)
    assert_close(flattered.difficulty, plain.difficulty)
    crossed = dots.cross_predicted(EmbeddingPredictor(), noise[ids], measured)
    assert_close(honest.difficulty, dots.refitted(plain.difficulty, crossed, measured))
    assert honest.difficulty.std() < 0.4 * plain.difficulty.std()


def test_a_refitted_difficulty_is_cut_only_as_a_probability():
    """And still ranks what is beyond."""

    class Timid:
        def predict(self, embeddings, reference_embeddings, reference_difficulty):
            return 0.4 + 0.2 * embeddings[:, 0]

    embeddings = torch.linspace(-1, 2, 31).unsqueeze(-1)
    found = dots.estimate(Timid(), embeddings, torch.arange(10, 21), torch.linspace(0, 1, 11), refit="cross-fitted")
    assert_close(found.difficulty, embeddings[:, 0].double(), rtol=1e-5, atol=1e-6)
    assert_close(found.probabilities, embeddings[:, 0].clamp(0, 1).double(), rtol=1e-5, atol=1e-6)
    with pytest.raises(BadInput, match="refit is 'insample'"):
        dots.estimate(Timid(), embeddings, torch.arange(10), torch.linspace(0, 1, 10), refit="insample")


def test_rates_fade_and_blend():
    """Against a sum over everything that was seen; a question twice in one batch counts twice."""
    seen = [(0, [0, 1, 1], [1.0, 0.25, 0.75], 8), (3, [1, 2], [0.5, 0.0], 4), (5, [0], [0.5], 2)]
    store, predicted = RateStore(4, half_life=2.0), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    for step, ids, difficulty, rollouts in seen:
        store.add(torch.tensor(ids), torch.tensor(difficulty), rollouts, step)
    total, count = 3.0 * predicted.numpy(), np.full(4, 3.0)
    for step, ids, difficulty, rollouts in seen:
        for question, value in zip(ids, difficulty, strict=True):
            total[question] += 0.5 ** ((6 - step) / 2) * rollouts * value
            count[question] += 0.5 ** ((6 - step) / 2) * rollouts
    assert_close(store.blended(predicted, 6, 3.0).numpy(), total / count)
    assert torch.equal(store.blended(predicted, 6, math.inf), predicted)
    with pytest.raises(BadInput, match="half_life is 0"):
        RateStore(4, half_life=0)


# Predictor and sampler together


def test_more_groups_teach_something(taught):
    """The whole of it, on a policy that nobody saw and that gets better: more effective groups than in uniform draws."""
    embeddings, difficulty, _, _ = world()
    each, rng = DifficultySampler(embeddings, taught, seed=0, references=40), generator()
    for step in range(12):
        chance = 1 - difficulty[5] ** (1 + step / 4)

        def tried(ids, chance=chance):
            return (torch.rand(len(ids), 8, generator=rng) < chance[ids].unsqueeze(-1)).float()

        asked = each.references()
        if len(asked):
            each.observe(asked, tried(asked), reference=True)
        ids = each.next(16)
        each.observe(ids, tried(ids))
    found = each.statistics()
    assert found.trained.effective_share > found.references.effective_share + 0.15
    assert found.uniform_blocks == 0 and len(each.steps) == 12 and found.references.rollouts == 6 * 40 * 8
