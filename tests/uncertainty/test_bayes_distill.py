"""Targets, divergences and the student: closed forms, gradients, batch mates, resuming, merging."""

import math
import random

import pytest
import torch
from torch.testing import assert_close

from bayes_world import CLASSES, adapted, bare, clone, prompts, read
from chat_models import TEMPLATE
from equipoise.core.errors import BadInput
from equipoise.core.rows import Rows
from equipoise.data.records import Message
from equipoise.language import adapters
from equipoise.training.loop import TrainerSettings
from equipoise.uncertainty.bayes_distill import averaged, distill, divergence, one_hot, targets
from equipoise.uncertainty.class_logits import class_logits, read_prompts
from equipoise.uncertainty.temperature_scaling import temperature
from equipoise.uncertainty.tfb import Tfb


def test_probabilities_are_averaged_not_logits():
    logits = torch.tensor([[[4.0, 0.0]], [[-4.0, 0.0]]], dtype=torch.float64)  # two draws of opposite opinion
    assert_close(averaged(logits), torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    logits[1] = 0.0
    p = 1 / (1 + math.exp(-4.0))
    assert_close(averaged(logits)[0, 0].item(), (p + 0.5) / 2)  # the softmax of averaged logits is sigmoid(2) = 0.88
    with pytest.raises(BadInput, match="no draws"):
        averaged(torch.zeros(0, 3))


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
def test_divergences(kind):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    p, q = logits.detach().softmax(-1), torch.rand(5, 4, generator=generator, dtype=torch.float64).softmax(-1)
    m = (p + q) / 2
    written = {
        "forward": (q * (q / p).log()).sum(-1),
        "reverse": (p * (p / q).log()).sum(-1),
        "js": ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2,
    }
    assert_close(divergence(logits.detach(), q, kind), written[kind])
    assert torch.autograd.gradcheck(lambda x: divergence(x, q, kind), (logits,))
    there = divergence(logits, p, kind)
    assert_close(there, torch.zeros_like(there), atol=1e-12, rtol=0)
    (gradient,) = torch.autograd.grad(there.sum(), logits)
    assert gradient.abs().max() < 1e-12


def test_forward_has_the_gradient_of_soft_labels():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    q = torch.rand(6, 3, generator=generator, dtype=torch.float64).softmax(-1)
    loss = divergence(logits, q).mean()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_close(gradient, (logits.softmax(-1) - q).detach() / 6)
    soft = torch.nn.functional.cross_entropy(logits, q)
    entropy = -(q * q.log()).sum(-1).mean()
    assert_close(loss, soft - entropy)


def test_targets_of_probability_zero():
    logits = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert_close(divergence(logits, target).item(), math.log(2))
    assert torch.isinf(divergence(logits, target, "reverse"))
    js = divergence(logits, target, "js")
    assert_close(js.item(), 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(js.sum(), logits)
    assert torch.isfinite(gradient).all()
    with pytest.raises(BadInput, match="forward"):
        divergence(logits, target, "backward")


def test_smoothed_labels():
    assert_close(
        one_hot([2, 0], 4, 0.1), torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]).double()
    )
    logits = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theirs = torch.nn.functional.cross_entropy(logits, torch.tensor([2, 0]), label_smoothing=0.1)
    ours = divergence(logits, one_hot([2, 0], 4, 0.1)).mean()
    entropy = -(one_hot([2], 4, 0.1) * one_hot([2], 4, 0.1).log()).sum()
    assert_close(ours, theirs - entropy)
    with pytest.raises(BadInput, match="smoothing"):
        one_hot([0], 2, 1.0)


def test_temperature():
    # Two thirds right at logits +-3: the best temperature puts sigmoid(3 / T) at two thirds.
    logits, labels = torch.tensor([[3.0, 0.0]] * 300).double(), torch.tensor([0, 0, 1] * 100)
    assert_close(temperature(logits, labels), 3 / math.log(2), rtol=1e-5, atol=0)
    assert temperature(logits, torch.zeros(300, dtype=torch.long)) == pytest.approx(0.01, rel=1e-3)
    assert math.isnan(temperature(logits[:0], labels[:0]))


# --- classes ----------------------------------------------------------------------------------------------------------


def test_class_logits_are_those_of_the_last_place_whatever_the_padding():
    lm = bare()
    inputs, _ = read(lm, 6)
    found = class_logits(lm, inputs, batch_size=4)
    for place, row in enumerate(inputs.rows):
        with torch.no_grad():
            whole = lm.model(torch.tensor([row])).logits[0, -1, list(inputs.class_ids)]
        assert_close(found[place], whole.double(), atol=1e-5, rtol=1e-5)
    assert [lm.tokenizer.decode([each]) for each in inputs.class_ids] == list(CLASSES)


def test_a_class_of_several_tokens_is_refused_with_the_variants_that_would_do():
    lm = bare()
    texts, _ = prompts(4)
    with pytest.raises(BadInput, match=r"The class '\\none' is not one token .* Give .*' one'"):
        read_prompts(lm, texts, ("\none", " two"))
    with pytest.raises(BadInput, match="No white-space variant"):
        read_prompts(lm, texts, (" one", " zyxwvu"))
    with pytest.raises(BadInput, match="two or more, each once"):
        read_prompts(lm, texts, (" one",))
    with pytest.raises(BadInput, match="context of 128"):
        read_prompts(lm, ["yes " * 200], CLASSES)


def test_blanks_at_the_end_of_a_prompt_belong_to_the_class():
    lm = bare()
    texts, _ = prompts(4)
    blank = read_prompts(lm, [f"{text} " for text in texts], CLASSES)
    assert blank.rows == read_prompts(lm, texts, CLASSES).rows


def test_a_class_follows_the_answer_that_a_conversation_has_begun():
    """Each begins another answer: what one adds to it, another may add otherwise."""
    lm = bare()
    lm.tokenizer.chat_template, lm.chat_template = TEMPLATE, "auto"
    begun = [[Message("user", "yes no"), Message("assistant", text)] for text in ("maybe", "river bends ")]
    found = read_prompts(lm, [*begun, "yes"], (" one", " two"))
    assert [lm.tokenizer.decode([each]) for each in found.class_ids] == [" one", " two"]
    said = lm.tokenizer.decode(found.rows[1])
    assert said.endswith("river bends") and said.count("assistant") == 1
    # Behind " no" the class "ver" is a token, behind " ri" it makes one with what stands before it.
    alone, split = ([Message("user", "yes no"), Message("assistant", text)] for text in (" no", " ri"))
    read_prompts(lm, [alone], ("ver", " two"))
    with pytest.raises(BadInput, match="'ver' is not one token"):
        read_prompts(lm, [alone, split], ("ver", " two"))


# --- targets and student ----------------------------------------------------------------------------------------------


def test_what_an_input_gets_does_not_depend_on_its_company():
    lm = adapted()
    inputs, _ = read(lm, 10)
    teacher = Tfb(0.3, draws=3, seed=5)
    together = targets(teacher, lm, inputs, names=list("abcdefghij"), batch_size=10)
    assert_close(together.sum(-1), torch.ones(10, dtype=torch.float64))
    order = random.Random(0).sample(range(10), 10)
    for place in order[:4]:
        alone = averaged(teacher.on(lm, inputs)([place]).detach().double())
        assert_close(alone[0], together[place], atol=1e-6, rtol=1e-5)


def test_cached_targets_resume(tmp_path, monkeypatch):
    monkeypatch.setattr("equipoise.uncertainty.bayes_distill.AT_ONCE", 4)
    lm = adapted()
    inputs, _ = read(lm, 10)
    names = [str(place) for place in range(10)]
    whole = targets(Tfb(0.3, 2), lm, inputs, names=names)
    path = tmp_path / "targets.jsonl"
    assert targets(Tfb(0.3, 2), lm, inputs, names=names, rows=Rows(path)).equal(whole)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    path.write_bytes(b"".join(lines[:2]) + lines[2][:20])  # killed while the last was written
    asked = []

    class Counted(Tfb):
        def on(self, language_model, inputs):
            drawn = super().on(language_model, inputs)
            return lambda indices: (asked.append(list(indices)), drawn(indices))[1]

    assert targets(Counted(0.3, 2), lm, inputs, names=names, rows=Rows(path)).equal(whole)
    assert asked == [[8, 9]]
    asked.clear()  # rows of other inputs are not taken
    targets(Counted(0.3, 2), lm, inputs, names=[f"other {each}" for each in names], rows=Rows(path))
    assert len(asked) == 3


def settings(steps=60, **more):
    return TrainerSettings(steps=steps, learning_rate=5e-3, batch_size=8, seed=0, **more)


def student(seed=1):
    return adapters.attach(bare(), 4, 8.0, ["q_proj", "v_proj"], seed=seed)


def test_a_student_learns_its_targets_and_merges(tmp_path):
    teacher = adapted(scale=0.5)
    inputs, _ = read(teacher)
    wanted = targets(Tfb(0.5, 4), teacher, inputs, names=[str(each) for each in range(len(inputs))])
    learning = student()
    before = divergence(class_logits(learning, inputs), wanted).mean().item()
    result = distill(learning, inputs, wanted, settings(120))
    logits = class_logits(learning, inputs)
    assert divergence(logits, wanted).mean().item() < 0.1 * before
    assert result.moved == 1
    merged = adapters.merge(learning)
    assert not hasattr(merged.model, "peft_config")
    assert_close(class_logits(merged, inputs), logits, atol=1e-4, rtol=0)


def test_a_teacher_without_noise_makes_self_distillation():
    lm = adapted()
    inputs, _ = read(lm, 6)
    own = class_logits(lm, inputs).softmax(-1)
    assert_close(targets(Tfb(0.0, 1), lm, inputs, names=list("abcdef")), own, atol=1e-6, rtol=1e-5)


def test_labels_may_be_added_and_a_stopped_training_goes_on():
    inputs, labels = read(bare())
    wanted = one_hot(labels, 3, 0.3)
    twice, alone = student(), student()
    distill(twice, inputs, wanted, settings(8), labels=labels, label_weight=1.0)
    distill(alone, inputs, wanted, settings(8))
    assert not class_logits(twice, inputs).equal(class_logits(alone, inputs))
    states = []
    whole = student()
    distill(whole, inputs, wanted, settings(8), kind="js", save=lambda state: states.append(clone(state)), save_every=4)
    again = student()
    distill(again, inputs, wanted, settings(8), kind="js", state=states[0])
    assert class_logits(again, inputs).equal(class_logits(whole, inputs))


def test_targets_that_are_no_distributions_are_refused():
    learning = student()
    inputs, labels = read(learning)
    with pytest.raises(BadInput, match=r"sum to 0\.9, not to 1"):
        distill(learning, inputs, 0.9 * one_hot(labels, 3), settings(1))
    with pytest.raises(BadInput, match="of 24 inputs"):
        distill(learning, inputs, one_hot(labels[1:], 3), settings(1))
    with pytest.raises(BadInput, match="label_weight"):
        distill(learning, inputs, one_hot(labels, 3), settings(1), label_weight=1.0)


class Table:
    """Inputs whose class logits are a table of parameters, one row each."""

    def __init__(self, table):
        self.table = torch.nn.Parameter(table)

    def __len__(self):
        return len(self.table)

    def batch(self, indices, device):
        return {"rows": torch.tensor(list(indices))}

    def logits(self, model, batch):
        return self.table[batch["rows"]]


@pytest.mark.parametrize(("kind", "weight"), [("forward", 0.0), ("forward", 2.0), ("js", 0.5), ("reverse", 0.0)])
def test_the_loss_of_a_batch_by_hand(monkeypatch, kind, weight):
    """The sum over inputs of the divergence and of the weighted cross entropy with the labels."""
    from types import SimpleNamespace

    from equipoise.uncertainty import bayes_distill

    inputs, asked = Table(torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, -1.0], [0.5, 0.5, 0.0]])), {}
    wanted = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [1.0, 0.0, 0.0]]).double()
    if kind == "reverse":
        wanted[2] = torch.tensor([0.5, 0.25, 0.25])

    def fit(model, loss, order, settings, *, collate, **how):
        asked.update(how, loss=loss, collate=collate, order=[order(step) for step in range(2)], settings=settings)

    monkeypatch.setattr(bayes_distill, "fit", fit)
    given = SimpleNamespace(device=torch.device("cpu"), model=None)
    distill(given, inputs, wanted, settings(4), kind=kind, labels=[2, 0, 1], label_weight=weight, save_every=3)
    batch = asked["collate"]([2, 0])
    assert ("gold" in batch) == (weight > 0) and batch["target"].dtype == torch.float32
    total, count = asked["loss"].loss(None, batch) if hasattr(asked["loss"], "loss") else asked["loss"](None, batch)
    logits = inputs.table.detach().double()[[2, 0]]
    due = divergence(logits, wanted[[2, 0]], kind).sum()
    due += weight * torch.nn.functional.cross_entropy(logits, torch.tensor([1, 2]), reduction="sum")
    assert count == 2 and total.item() == pytest.approx(due.item(), rel=1e-5) and asked["save_every"] == 3
    order = bayes_distill.without_replacement(3, 8, 0)
    assert asked["order"] == [order(0), order(1)]


def test_targets_at_the_limit_of_what_sums_to_one():
    inputs = Table(torch.zeros(2, 2))
    with pytest.raises(BadInput, match="of input 1 sum to 1"):
        distill(bare(), inputs, torch.tensor([[0.5, 0.5], [0.5, 0.500002]]).double(), settings(1))
    with pytest.raises(BadInput, match="one of probabilities"):
        distill(bare(), inputs, torch.tensor([[0.5, 0.5], [1.5, -0.5]]).double(), settings(1))
    with pytest.raises(BadInput, match="label_weight is -1"):
        distill(bare(), inputs, torch.full((2, 2), 0.5).double(), settings(1), label_weight=-1.0)
    for wrong in (torch.zeros(3), torch.zeros(0, 2, 3)):
        with pytest.raises(BadInput, match="no draws"):
            averaged(wrong)
    with pytest.raises(BadInput, match="smoothing"):
        one_hot([0], 2, -0.1)
    assert one_hot([1], 2).tolist() == [[0.0, 1.0]]


def test_rows_of_targets_hold_sixty_four_inputs(tmp_path):
    lm = adapted()
    inputs, _ = read(lm, 66)
    rows = Rows(tmp_path / "t.jsonl")
    targets(Tfb(0.3, 1), lm, inputs, names=[str(each) for each in range(66)], rows=rows)
    stored = [(row["first"], len(row["ids"]), len(row["targets"])) for row in Rows(tmp_path / "t.jsonl")]
    assert stored == [(0, 64, 64), (64, 2, 2)]


def test_prompts_up_to_the_context_less_one():
    lm = bare()
    context = lm.context
    one = len(read_prompts(lm, ["yes"], CLASSES).rows[0])
    each = len(read_prompts(lm, ["yes yes"], CLASSES).rows[0]) - one
    longest = (context - 1 - one) // each
    assert len(read_prompts(lm, ["yes" + " yes" * longest], CLASSES).rows[0]) <= context - 1
    with pytest.raises(BadInput, match=f"Prompt 'p' has {one + each * (longest + 1)} tokens"):
        read_prompts(lm, ["yes" + " yes" * (longest + 1)], CLASSES, ["p"])
    with pytest.raises(BadInput, match="two or more, each once"):
        read_prompts(lm, ["yes"], (" one", " one", " two"))
    assert len(read_prompts(lm, ["yes"], (" one", " two")).class_ids) == 2


def test_nothing_is_kept_of_prompts_that_are_read():
    lm, given = bare(), []
    hook = lm.model.register_forward_pre_hook(lambda _, args, named: given.append(named), with_kwargs=True)
    inputs = read_prompts(lm, ["Paris no", "river"], CLASSES)
    class_logits(lm, inputs)
    hook.remove()
    assert [each["use_cache"] for each in given] == [False]
