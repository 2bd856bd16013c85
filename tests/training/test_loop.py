"""The loop: equal trajectories for every split, resume bit by bit, refusals that leave everything as it was."""

import contextlib
import json
import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.state import load_state, save_state
from equipoise.training import loop, team
from equipoise.training.loop import OneLoss, Optimization, TrainerSettings, fit, mean_gradient
from equipoise.training.order import pairs, spend_pairs, without_replacement


class Net(nn.Module):
    """Tied weights, a frozen part, a part that the loss may not reach, dropout on request."""

    def __init__(self, dropout=0.0, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(7, 4)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Linear(4, 4)
        self.unused = nn.Linear(2, 2)
        self.dropout = nn.Dropout(dropout)
        self.to(dtype)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        self.frozen.requires_grad_(False)

    def forward(self, tokens):
        return self.head(self.dropout(self.frozen(torch.tanh(self.inner(self.embedding(tokens))))))


DATA = [(i % 7, (3 * i + 1) % 7, 1 + i % 3) for i in range(20)]  # token, target, how often it counts


def collate(examples):
    return torch.tensor(examples).T


def loss(model, batch):
    """A sum over unequal weights: what a mean per micro-batch would get wrong."""
    tokens, targets, counts = batch
    each = F.cross_entropy(model(tokens), targets, reduction="none")
    return (each * counts).sum(), counts.sum()


def settings(**changes):
    return TrainerSettings(**{"steps": 6, "learning_rate": 0.05, "batch_size": 8, **changes})


def run(model, chosen, *, order=None, step=None, **options):
    order = order or without_replacement(len(DATA), chosen.batch_size, chosen.seed)
    return fit(
        model, step or OneLoss(loss), lambda index: [DATA[i] for i in order(index)], chosen, collate=collate, **options
    )


def copied(state):
    if isinstance(state, dict):
        return {name: copied(value) for name, value in state.items()}
    return state.clone() if isinstance(state, torch.Tensor) else state


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize(
    ("limit", "betas", "epsilon"), [(0.5, (0.9, 0.999), 1e-8), (None, (0.8, 0.95), 1e-3), (2.0, (0.0, 0.5), 0.1)]
)
def test_adamw_by_hand(limit, betas, epsilon):
    """Three steps of clipped AdamW with its schedule, from the equations, on one parameter."""
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    chosen = TrainerSettings(
        steps=3, learning_rate=0.1, batch_size=2, max_grad_norm=limit, weight_decay=0.01, warmup_ratio=0.3, betas=betas,
        epsilon=epsilon,
    )  # fmt: skip
    data = [(2.0, 3.0), (1.0, -1.0)]

    def squares(model, batch):
        return (model(batch[:, :1])[:, 0] - batch[:, 1]).square().sum(), len(batch)

    seen = []
    fit(
        model,
        OneLoss(squares),
        lambda _: data,
        chosen,
        collate=lambda examples: torch.tensor(examples, dtype=torch.float64),
        callbacks=[lambda moment: seen.append(moment.metrics)],
    )
    w, m, v = 1.0, 0.0, 0.0
    for t, rate in enumerate([0.1, 0.1, 0.05], start=1):  # ceil(0.3 * 3) = 1 step of warm-up, then 2/2 and 1/2
        g = sum(2 * (w * x - y) * x for x, y in data) / 2
        assert seen[t - 1]["gradient_norm"] == pytest.approx(abs(g), rel=1e-12)
        assert seen[t - 1]["loss"] == pytest.approx(sum((w * x - y) ** 2 for x, y in data) / 2, rel=1e-12)
        assert seen[t - 1]["learning_rate"] == pytest.approx(rate)
        g *= 1 if limit is None else min(1, limit / (abs(g) + 1e-6))
        (first, second) = betas
        m, v = first * m + (1 - first) * g, second * v + (1 - second) * g * g
        w *= 1 - rate * 0.01
        w -= rate * (m / (1 - first**t)) / (math.sqrt(v / (1 - second**t)) + epsilon)
    assert model.weight.item() == pytest.approx(w, rel=1e-10)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 8, 100])
def test_micro_batches_give_one_trajectory(micro_batch_size):
    """Unequal weights and a remainder (8 = 3 + 3 + 2); no drift to one side either."""
    whole, split = Net(), Net()
    run(whole, settings())
    run(split, settings(micro_batch_size=micro_batch_size))
    for name, expected in weights(whole).items():
        assert_close(weights(split)[name], expected, rtol=1e-11, atol=1e-13)


def test_only_what_requires_a_gradient_and_is_reached_moves():
    model = Net()
    before = weights(model)
    run(model, settings(weight_decay=0.1))
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == {"embedding.weight", "inner.weight", "inner.bias"}
    assert model.head.weight is model.embedding.weight
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("at", [1, 3, 5])
def test_resume_is_exact(at, tmp_path):
    """Bit by bit, dropout included, through a file, with a log that holds no line twice."""
    chosen = settings(steps=7, micro_batch_size=3)
    whole = Net(dropout=0.3)
    run(whole, chosen, log=tmp_path / "whole.jsonl")

    class Killed(Exception):
        pass

    def kill(moment):
        torch.rand(3)  # whatever a callback draws changes nothing
        if moment.step == at + 1:
            raise Killed

    state, log, first = tmp_path / "state.safetensors", tmp_path / "log.jsonl", Net(dropout=0.3)
    with pytest.raises(Killed):
        run(
            first, chosen, log=log, callbacks=[kill], save_every=1 if at % 2 == 0 else at,
            save=lambda nested: save_state(state, nested),
        )  # fmt: skip
    log.write_bytes(log.read_bytes() + b'{"step": 99, "lo')
    second = Net(dropout=0.3)
    with torch.no_grad():
        second.inner.weight.zero_()  # comes from the state
    torch.manual_seed(12345)
    stored = load_state(state)
    before = copied(stored)
    result = run(second, chosen, log=log, state=stored)
    assert result.steps == 7 and not result.stopped
    for name, expected in weights(whole).items():
        assert torch.equal(weights(second)[name], expected), name
    assert log.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert_close(stored["parameters"], before["parameters"], rtol=0, atol=0)  # the given state is left alone
    assert_close(stored["moments"], before["moments"], rtol=0, atol=0)


def test_every_saved_step_resumes_to_the_same_end(tmp_path):
    chosen, states, whole = settings(), [], Net(dropout=0.2)
    run(whole, chosen, save=lambda nested: states.append(copied(nested)), save_every=2)
    assert [state["step"] for state in states] == [2, 4, 6]
    for state in states:
        model = Net(dropout=0.2)
        assert run(model, chosen, state=state).steps == 6
        assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(model).items())


def test_a_finished_or_stopped_training_is_not_continued():
    states = []
    stopped = run(
        Net(),
        settings(),
        callbacks=[lambda moment: moment.step == 3],
        save=lambda nested: states.append(copied(nested)),
    )
    assert (stopped.steps, stopped.stopped) == (3, True)
    again = run(Net(), settings(), state=states[-1], callbacks=[lambda moment: pytest.fail("went on")])
    assert (again.steps, again.stopped) == (3, True)


def test_every_callback_sees_every_step():
    seen = []
    run(Net(), settings(), callbacks=[lambda moment: moment.step == 2, lambda moment: seen.append(moment.step)])
    assert seen == [1, 2]


def test_state_of_another_training():
    states = []
    run(Net(), settings(), save=lambda nested: states.append(copied(nested)), save_every=2)
    with pytest.raises(BadInput, match=r"learning_rate=0.05, this one learning_rate=0.1"):
        run(Net(), settings(learning_rate=0.1), state=states[0])
    with pytest.raises(BadInput, match=r"weight_decay=0.0, this one weight_decay=0.25"):
        run(Net(), settings(weight_decay=0.25), state=states[0])
    other = Net()
    other.inner = nn.Linear(4, 4, bias=False).double()
    with pytest.raises(BadInput) as caught:
        run(other, settings(), state=states[0])
    assert str(caught.value) == "the stored training is of other parameters (inner.bias and 0 more)."
    other.unused, other.added = nn.Linear(3, 2).double(), nn.Parameter(torch.zeros(1))
    with pytest.raises(BadInput) as caught:
        run(other, settings(), state=states[0])
    assert str(caught.value) == "the stored training is of other parameters (added and 2 more)."
    for width in (1, 3):  # two before
        other = Net()
        other.unused = nn.Linear(width, 2).double()
        with pytest.raises(BadInput) as caught:
            run(other, settings(), state=states[0])
        assert str(caught.value) == "the stored training is of other parameters (unused.weight and 0 more)."
    run(Net(), settings(micro_batch_size=2), state=states[0])  # memory may differ from machine to machine


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nan_stops_before_it_is_applied(what, tmp_path):
    kept = {}

    def breaking(model, batch):
        total, weight = loss(model, batch)
        if counter["steps"] == 4:
            broken = total * math.nan if what == "loss" else (model.inner.weight * 0).sum().sqrt()
            total = total + broken
        return total, weight

    counter = {"steps": 0}
    chosen, states, model = settings(), [], Net()
    order = without_replacement(len(DATA), 8, 0)

    def draw(index):
        counter["steps"] = index + 1
        kept.update(weights(model))
        return [DATA[i] for i in order(index)]

    with pytest.raises(WorkFailed, match="at step 4"):
        fit(
            model, OneLoss(breaking), draw, chosen, collate=collate, log=tmp_path / "log.jsonl",
            save=lambda nested: states.append(copied(nested)), save_every=1,
        )  # fmt: skip
    assert all(torch.equal(value, kept[name]) for name, value in weights(model).items())
    assert [state["step"] for state in states] == [1, 2, 3]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
    assert all(torch.equal(states[-1]["parameters"][name], kept[name]) for name in states[-1]["parameters"])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_batch_without_tokens_says_so():
    with pytest.raises(WorkFailed, match=r"nan at step 1.*without a token"):
        fit(Net(), OneLoss(loss), lambda _: [(1, 1, 0)], settings(), collate=collate)


@pytest.mark.parametrize(
    ("error", "micro_batch_size", "remedy"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 6, r"6 examples at once: use micro_batch_size=3 "),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"),
            None,
            r"8 .*micro_batch_size=4 ",
        ),
        (RuntimeError("MPS backend out of memory"), 1, r"1 examples at once: use shorter"),
    ],
)
def test_out_of_memory_names_the_next_micro_batch(error, micro_batch_size, remedy):
    def failing(model, batch):
        raise error

    with pytest.raises(WorkFailed, match=remedy):
        run(Net(), settings(micro_batch_size=micro_batch_size), step=OneLoss(failing))


def test_other_errors_pass():
    def failing(model, batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(Net(), settings(), step=OneLoss(failing))


def test_leaves_the_callers_world_as_it_was():
    model = Net(dropout=0.5).eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    modes = []
    run(
        model,
        settings(),
        callbacks=[lambda moment: modes.append(moment.model.training), lambda moment: moment.model.eval() and None],
    )
    assert torch.equal(torch.rand(3), expected)
    assert not model.training and all(modes)


def test_every_step_draws_anew():
    drawn = []

    def drawing(model, batch):
        drawn.append(torch.rand(()).item())
        return loss(model, batch)

    for seed in (0, 1):
        run(Net(), settings(seed=seed, micro_batch_size=4), step=OneLoss(drawing))
    assert len(set(drawn)) == len(drawn) == 24


def test_dropout_depends_on_the_seed_alone():
    first, again, other = Net(dropout=0.5), Net(dropout=0.5), Net(dropout=0.5)
    order = without_replacement(len(DATA), 8, 0)
    for model, seed, noise in ((first, 1, 3), (again, 1, 4), (other, 2, 3)):
        torch.manual_seed(noise)
        run(model, settings(seed=seed), order=order)
    assert torch.equal(first.inner.weight, again.inner.weight)
    assert not torch.equal(first.inner.weight, other.inner.weight)


def test_log_is_json_and_new_for_a_new_training(tmp_path):
    log = tmp_path / "log.jsonl"
    for _ in range(2):
        run(Net(), settings(steps=3), log=log)
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2, 3]
        assert set(rows[0]) == {"step", "loss", "gradient_norm", "learning_rate"}


def test_bfloat16_parameters_are_accumulated_in_float32():
    """64 equal gradients of 1 + 2^-7: a sum in bfloat16 would come to a standstill near 256 / 2^-8 ulps."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    batches = [torch.full((1, 1), 1 + 2**-7, dtype=torch.bfloat16)] * 301

    def total(model, batch):
        return model(batch).sum().float(), 1

    accelerator = Accelerator(cpu=True)
    parameters = list(model.parameters())
    _, (gradient,) = mean_gradient(total, model, parameters, batches, accelerator)
    assert gradient.dtype == torch.float32
    assert gradient.item() == pytest.approx(1 + 2**-7, rel=1e-6)
    _, (once,) = mean_gradient(total, model, parameters, batches[:1], accelerator)
    assert (once.dtype, once.item()) == (torch.bfloat16, 1 + 2**-7)  # one batch needs no sum, and so no copy
    assert model.weight.grad is None
    assert not model.weight._post_accumulate_grad_hooks
    settings = TrainerSettings(steps=2, learning_rate=0.1, batch_size=4, micro_batch_size=1)
    fit(model, OneLoss(total), lambda _: range(4), settings, collate=lambda examples: batches[0])


@pytest.mark.parametrize("schedule", ["linear", "constant", "cosine"])
def test_schedules(schedule):
    chosen = settings(steps=20, learning_rate=2.0, warmup_ratio=0.2, schedule=schedule)
    rates = [chosen.learning_rate_at(step) for step in range(20)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    expected = {
        "constant": lambda x: 2.0,
        "linear": lambda x: 2.0 * (1 - x),
        "cosine": lambda x: 1.0 + math.cos(math.pi * x),
    }[schedule]
    assert rates[4:] == pytest.approx([expected(k / 16) for k in range(16)])
    assert min(rates) > 0
    assert [settings(steps=4, warmup_ratio=1.0, schedule=schedule).learning_rate_at(i) for i in range(4)] == [
        0.05 * k / 4 for k in (1, 2, 3, 4)
    ]
    assert settings(steps=5, warmup_ratio=0.0, schedule=schedule).learning_rate_at(0) == 0.05


def test_settings_unless_given():
    assert TrainerSettings(steps=1, learning_rate=1e-5).model_dump() == {
        "steps": 1,
        "optimizer": "adamw",
        "learning_rate": 1e-5,
        "batch_size": 32,
        "micro_batch_size": None,
        "schedule": "linear",
        "warmup_ratio": 0.1,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "betas": (0.9, 0.999),
        "epsilon": 1e-8,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("name", "least", "wrong"),
    [
        ("steps", 1, 0),
        ("learning_rate", 1e-300, 0.0),
        ("step", None, 3),
        ("batch_size", 1, 0),
        ("micro_batch_size", 1, 0),
        ("schedule", "cosine", "cosin"),
        ("warmup_ratio", 0.0, -1e-9),
        ("warmup_ratio", 1.0, 1 + 1e-9),
        ("weight_decay", 0.0, -1e-9),
        ("max_grad_norm", 1e-300, 0.0),
        ("betas", (0.0, 0.0), (-1e-9, 0.5)),
        ("betas", (0.99, 0.5), (1.0, 0.5)),
        ("betas", (0.5, 0.99), (0.5, 1.0)),
        ("betas", (0.5, 0.0), (0.5, -1e-9)),
        ("epsilon", 1e-300, 0.0),
        ("seed", 0, -1),
    ],
)
def test_settings_are_closed(name, least, wrong):
    if least is not None:
        assert getattr(settings(**{name: least}), name) == least
    with pytest.raises(ValidationError, match=name):
        settings(**{name: wrong})
    with pytest.raises(ValidationError, match="frozen"):
        settings().steps = 7


def test_nothing_to_train():
    with pytest.raises(BadInput, match="no parameter"):
        run(Net().requires_grad_(False), settings())


def test_sharded_models_are_refused():
    model = Net()
    model.inner.weight.placements = ("Shard(0)",)
    with pytest.raises(BadInput, match="not by FSDP2"):
        run(model, settings())


def test_order_is_a_function_of_the_step():
    draw = without_replacement(10, 4, seed=3)
    steps = [draw(step) for step in range(5)]
    assert [without_replacement(10, 4, seed=3)(step) for step in (4, 2, 0)] == [steps[4], steps[2], steps[0]]
    flat = [index for step in steps for index in step]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:] != list(range(10))
    assert without_replacement(10, 4, seed=4)(0) != steps[0]
    together = pairs(10, 1000, 4, seed=3)
    assert [[f for f, _ in together(step)] for step in range(5)] == steps
    partners = {r for step in range(200) for _, r in together(step)}
    assert together(7) == pairs(10, 1000, 4, seed=3)(7)
    assert 500 < len(partners) < 600  # 800 uniform draws out of 1000 hit 1000 (1 - e^-0.8) = 551 of them


def test_the_order_of_a_stored_training_stays():
    """A training that was stored by an earlier version goes on with the same examples and the same dropout."""
    draw = without_replacement(5, 3, 7)
    assert [draw(step) for step in range(4)] == [[2, 0, 4], [1, 3, 2], [3, 4, 1], [0, 0, 1]]
    together = pairs(4, 100, 3, 7)
    assert [together(step) for step in range(3)] == [
        [(0, 87), (2, 77), (1, 87)],
        [(3, 6), (0, 74), (2, 12)],
        [(3, 68), (1, 92), (2, 97)],
    ]
    assert loop._seed(1, 2, 0) == 369936037315138467 and loop._seed(1, 2, 1) == 1479504034556577163


def test_what_a_step_gets_and_what_comes_of_its_numbers(tmp_path):
    """Micro-batches in order with the remainder last, the step from 0; all numbers in log, callbacks and result alike."""
    model, seen, moments, told = Net(), [], [], []
    draws = [list(range(8)), list(range(3)), [5]]

    def step(model, window, accelerator, index):
        assert model.training
        seen.append((index, [batch.tolist() for batch in window]))
        numbers = {
            "mean_loss": 0.5 + index,
            "cosine": torch.tensor(math.nan),
            "norm": torch.tensor(3, dtype=torch.int64),
        }
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = [
            torch.full_like(parameter, 0.25) if parameter is model.inner.bias else None for parameter in trained
        ]
        return gradients, numbers

    class Bar:
        def advance(self, amount, **beside):
            told.append((amount, beside))

    @contextlib.contextmanager
    def progress(title, *, total, unit, done):
        told.append((title, total, unit))
        assert done == 0
        yield Bar()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "progress", progress)
        result = fit(
            model, step, lambda index: draws[index], settings(steps=3, micro_batch_size=3, warmup_ratio=0),
            collate=torch.tensor, log=tmp_path / "log.jsonl",
            callbacks=[lambda moment: moments.append((moment.step, moment.model, moment.metrics))],
        )  # fmt: skip
    assert seen == [(0, [[0, 1, 2], [3, 4, 5], [6, 7]]), (1, [[0, 1, 2]]), (2, [[5]])]
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == [
        {"step": i + 1, "mean_loss": 0.5 + i, "cosine": None, "norm": 3.0, "gradient_norm": 0.5,
         "learning_rate": pytest.approx(0.05 * (3 - i) / 3)}
        for i in range(3)
    ]  # fmt: skip
    assert [(number, its) for number, its, _ in moments] == [(i, model) for i in (1, 2, 3)]
    for row, (_, _, metrics) in zip(rows, moments, strict=True):
        assert math.isnan(metrics["cosine"])
        assert {"step": row["step"], **metrics, "cosine": None} == row
    assert result.metrics is moments[-1][2] and (result.steps, result.stopped) == (3, False)
    assert result.moved == 4 / sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert told == [("Training", 3, "steps")] + [(1, {"mean_loss": said}) for said in ("0.5", "1.5", "2.5")]


def test_a_finished_training_says_what_moved_and_no_numbers():
    states = []
    first = run(Net(), settings(), save=lambda nested: states.append(copied(nested)))
    assert [(state["step"], state["stopped"]) for state in states] == [
        (6, False)
    ]  # without save_every at the end alone
    again = run(Net(), settings(), state=states[0])
    assert (again.steps, again.stopped, again.metrics) == (6, False, {})
    assert again.moved == first.moved > 0.5


@pytest.mark.parametrize(
    ("name", "value", "ends"),
    [
        ("loss", math.nan, True),
        ("retain_loss", math.inf, True),
        ("retain_loss", -math.inf, True),
        ("lossy", math.nan, False),
    ],
)
def test_losses_and_norms_must_be_numbers(name, value, ends):
    numbers = {"cosine": math.nan, name: value, "gradient_norm": 1.0}
    if not ends:
        loop._refuse_not_finite(numbers, 6)
        return
    with pytest.raises(WorkFailed) as caught:
        loop._refuse_not_finite(numbers, 6)
    assert str(caught.value) == (
        f"the {name.replace('_', ' ')} is {value} at step 7: nothing of this step was applied, and the last save stands. "
        "Use a smaller learning rate, or a loss that is bounded; a loss of nan at step 1 mostly means a batch "
        "without a token to learn from."
    )


def test_the_next_micro_batch_is_half():
    shorter = "use shorter examples (a smaller max_length) or a smaller model"
    assert [loop._smaller(size) for size in (0, 1)] == [shorter] * 2
    assert [loop._smaller(size) for size in (2, 3)] == [
        "use micro_batch_size=1 (--micro-batch-size 1); the result is the same"
    ] * 2


@pytest.mark.parametrize("where", ["masters", "step"])
def test_out_of_memory_for_the_moments_says_so(where, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(*((loop, "masters", full) if where == "masters" else (torch.optim.AdamW, "step", full)))
    with pytest.raises(WorkFailed) as caught:
        run(Net(), settings())
    assert str(caught.value) == (
        "Out of memory for the optimizer's moments: train fewer parameters, an adapter for example."
    )


@pytest.mark.parametrize(
    ("written", "begin", "kept"),
    [
        (b'{"step": 1}\n{"step": 2}\n{"step": 3}\n', 2, 2),
        (b'{"step": 1}\n{"step": 2}\n{"step": 3}\n', 3, 3),
        (b'{"step": 1}\n{"step": 2}\n{"step": 3}\n', 0, 0),
        (b'{"step": 1}\n{"step": 4}\n{"step": 2}\n', 2, 1),
        (b'{"step": 1}\n{"step": 2}', 5, 1),
        (b'{"step": 1}\n{"st', 5, 1),
        (b'{"step": 1}\n{"epoch": 1}\n{"step": 2}\n', 5, 1),
        (b'{"step": 1}\n[2]\n{"step": 2}\n', 5, 1),
        (b'{"step": 1}\n{"step": null}\n{"step": 2}\n', 5, 1),
        (b"", 5, 0),
    ],
)
def test_a_log_is_cut_back_to_its_last_whole_line(written, begin, kept, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(written)
    with loop.step_log(path, begin) as write:
        write({"step": begin + 1, "loss": math.inf})
        lines = path.read_bytes().splitlines(keepends=True)  # it is there while the training goes on
    assert lines == [*written.splitlines(keepends=True)[:kept], b'{"step": %d, "loss": null}\n' % (begin + 1)]
    with loop.step_log(None, begin) as write:
        assert write({"step": 1}) is None


def test_devices_and_precisions(monkeypatch):
    """On a CPU accelerate is told so; the random state of a GPU is kept beside that of the CPU; fp16 is refused."""
    asked, kept = [], []

    class Asked(Exception):
        pass

    def accelerator(**options):
        asked.append(options)
        raise Asked

    @contextlib.contextmanager
    def fork_rng(devices):
        kept.append(devices)
        yield

    monkeypatch.setattr(team, "Accelerator", accelerator)
    monkeypatch.setattr(team, "is_initialized", lambda: False)
    for model in (Net(), Net().to("meta")):
        with pytest.raises(Asked):
            run(model, settings())
    assert asked == [{"cpu": True}, {"cpu": False}]
    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    for device in (torch.device("cpu"), torch.device("cuda", 1)):
        with loop.random_state_kept(device):
            pass
    assert kept == [[], [torch.device("cuda", 1)]]
    with pytest.raises(BadInput) as caught:
        run(Net(), settings(), accelerator=SimpleNamespace(mixed_precision="fp16"))
    assert str(caught.value) == ("fp16 needs loss scaling, which two gradients of one step do not share: use bf16.")


def test_optimizations_in_turn_are_their_own():
    """Two models, by rates and schedules of their own, one update each in turn: each as `fit` alone, dropout included."""
    chosen = (settings(), settings(learning_rate=0.01, schedule="cosine", batch_size=6, micro_batch_size=4, seed=3))
    expected, found = [], [Net(dropout=0.3), Net(dropout=0.3)]
    for each in chosen:
        model = Net(dropout=0.3)
        run(model, each)
        expected.append(weights(model))
    optimizations = [Optimization(model, each) for model, each in zip(found, chosen, strict=True)]
    orders = [without_replacement(len(DATA), each.batch_size, each.seed) for each in chosen]
    for index in range(6):
        for optimization, order in zip(optimizations, orders, strict=True):
            optimization.update(OneLoss(loss), [DATA[i] for i in order(index)], collate)
    for model, optimization, ended in zip(found, optimizations, expected, strict=True):
        assert all(torch.equal(value, ended[name]) for name, value in weights(model).items())
        assert optimization.done == 6 and 0 < optimization.moved() <= 1
        optimization.release()
        assert all(parameter.grad is None for parameter in model.parameters())


def test_an_optimization_moves_what_required_a_gradient_when_it_was_made():
    """Another one may move the rest; a state is taken back by the like alone, and a step that fails changes nothing."""
    model = Net()
    model.inner.requires_grad_(False)
    rest = Optimization(model, settings())
    model.requires_grad_(False)
    model.inner.requires_grad_(True)
    own = Optimization(model, settings())
    before = weights(model)
    numbers = own.update(OneLoss(loss), DATA[:8], collate)
    assert numbers.keys() == {"loss", "gradient_norm", "learning_rate"}
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == {"inner.weight", "inner.bias"} and not set(rest.parameters) & moved
    with pytest.raises(BadInput, match="the stored training is of other parameters"):
        rest.restore(copied(own.state()))
    with pytest.raises(WorkFailed, match=r"^the loss is nan at step 2"):
        own.update(OneLoss(lambda model, batch: (loss(model, batch)[0] * math.nan, 1.0)), DATA[:8], collate)
    after = weights(model)
    again = Net()
    again.requires_grad_(False)
    again.inner.requires_grad_(True)
    resumed = Optimization(again, settings())
    resumed.restore(copied(own.state()))
    assert resumed.done == own.done == 1 and all(
        torch.equal(value, after[name]) for name, value in weights(again).items()
    )
    own.release()
    assert own.update(OneLoss(loss), DATA[8:16], collate) == resumed.update(OneLoss(loss), DATA[8:16], collate)
    assert all(torch.equal(value, weights(model)[name]) for name, value in weights(again).items())


def test_a_step_on_pairs_is_counted_by_what_it_read():
    """Forget and retain records of 1, 2, 3 and of 10, 20 tokens; refusals of 100, 200, 300."""
    spent = []
    run = SimpleNamespace(spend=lambda **costs: spent.append(costs))

    def of(*lengths):
        return [SimpleNamespace(input_ids=range(length)) for length in lengths]

    drawn = [(0, 1), (2, 0), (2, 1)]
    spend_pairs(run, drawn, of(1, 2, 3), of(10, 20))
    spend_pairs(run, drawn, of(1, 2, 3), of(10, 20), of(100, 200, 300))
    assert spent == [{"optimizer_steps": 1, "trained_tokens": tokens} for tokens in (57, 757)]


def test_each_optimizer_is_made_of_its_settings():
    """SGD by hand: without momentum, decayed by its rate times the weight."""
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(2.0)
    chosen = TrainerSettings(
        steps=2, learning_rate=0.1, optimizer="sgd", schedule="constant", warmup_ratio=0, weight_decay=0.5,
        max_grad_norm=None, batch_size=1,
    )  # fmt: skip

    def tenfold(model, batch):
        return 10 * model.weight.sum(), 1

    fit(model, OneLoss(tenfold), lambda _: [0], chosen, collate=torch.tensor)
    weight = 2.0
    for _ in range(2):
        weight -= 0.1 * (10 + 0.5 * weight)
    assert model.weight.item() == pytest.approx(weight, rel=1e-12)
    adamw = loop._optimizer([nn.Parameter(torch.zeros(1))], settings(weight_decay=0.25))
    assert isinstance(adamw, torch.optim.AdamW) and adamw.defaults["fused"] is True
    assert adamw.defaults["weight_decay"] == 0.25 and adamw.defaults["lr"] == 0.05


def test_a_bar_goes_on_where_the_training_does_and_shows_a_norm_where_no_loss_is(monkeypatch):
    told, states = [], []

    class Bar:
        def advance(self, amount, **beside):
            told.append((amount, beside))

    @contextlib.contextmanager
    def progress(title, *, total, unit, done):
        told.append((title, total, unit, done))
        yield Bar()

    def step(model, window, accelerator, index):
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return [torch.full_like(p, 3.0) if p is model.inner.bias else None for p in trained], {"lossy": 1.0}

    monkeypatch.setattr(loop, "progress", progress)
    chosen = settings(steps=3)
    run(Net(), chosen, step=step, save=lambda nested: states.append(copied(nested)), save_every=2, title="Teaching")
    assert told == [("Teaching", 3, "steps", 0)] + [(1, {"gradient_norm": "6"})] * 3
    told.clear()
    run(Net(), chosen, step=step, state=states[0])
    assert told == [("Training", 3, "steps", 2), (1, {"gradient_norm": "6"})]
