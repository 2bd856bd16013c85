"""What relearning moves and by how much, against steps written out by hand; the given model stays as it is."""

import copy

import pytest
import torch

from equipoise.core.errors import BadInput
from equipoise.data.records import Record
from equipoise.language.encode import collate, encode
from equipoise.language.states import blocks
from equipoise.language.tiny import tiny
from equipoise.training.order import without_replacement
from equipoise.unlearning.relearning import Relearning, attackable, relearn

RECORDS = [Record(str(n), " ".join(["a", "few", "more", "words", "of", "it"][: n + 1]), "q?") for n in range(5)]


@pytest.fixture(scope="module")
def model():
    return tiny(["a few more words of it q?"], seed=0, width=16, layers=3, heads=2, vocabulary=300)


def weights(language_model):
    return {name: each.detach().clone() for name, each in language_model.model.named_parameters()}


def by_hand(language_model, settings, steps, chosen):
    """The same steps from autograd and the rules themselves, over all records of a batch at once."""
    model = copy.deepcopy(language_model.model).eval()
    order = without_replacement(len(RECORDS), settings.batch_size, settings.seed)
    named = {name: each for name, each in model.named_parameters() if chosen(name)}
    first, second = ({name: torch.zeros_like(each) for name, each in named.items()} for _ in range(2))
    for step in range(1, steps + 1):
        examples = encode(language_model, [RECORDS[index] for index in order(step - 1)])
        batch = collate(examples, language_model.pad_id, "cpu")
        gradients = torch.autograd.grad(model(**batch).loss, list(named.values()))
        with torch.no_grad():
            for (name, each), gradient in zip(named.items(), gradients, strict=True):
                if settings.optimizer == "sgd":
                    each -= settings.learning_rate * gradient
                    continue
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                mean, size = first[name] / (1 - 0.9**step), (second[name] / (1 - 0.999**step)).sqrt()
                each -= settings.learning_rate * mean / (size + 1e-8)
    return {name: each.detach() for name, each in model.named_parameters()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_steps_are_those_of_the_optimizer_and_the_given_model_stays(model, optimizer, micro_batch_size):
    settings = Relearning(
        optimizer=optimizer,
        learning_rate=0.01,
        epochs=3,
        batch_size=3,
        micro_batch_size=micro_batch_size,
        seed=4,
    )
    before = weights(model)
    done = relearn(model, RECORDS, settings)
    assert (done.steps, done.epochs, done.diverged) == (5, 3, False)
    wanted = by_hand(model, settings, 5, lambda name: True)
    for name, each in weights(done.language_model).items():
        torch.testing.assert_close(each, wanted[name], atol=2e-5, rtol=1e-4, msg=name)
    assert all(torch.equal(each, before[name]) for name, each in weights(model).items())


@pytest.mark.parametrize("count", [None, 2])
def test_only_the_mlp_weights_of_the_first_blocks_move(model, count):
    done = relearn(
        model, RECORDS, Relearning(parameters="mlp", blocks=count, learning_rate=1.0, optimizer="sgd", epochs=1)
    )
    start, now = weights(model), weights(done.language_model)
    different = {name for name in start if not torch.equal(start[name], now[name])}
    inside = {name for name in start if ".mlp." in name and int(name.split(".")[2]) < (count or 3)}
    assert different == inside and done.moved > 0.5


def test_an_adapter_is_all_that_moves_of_lora(model):
    settings = Relearning(parameters="lora", lora_rank=2, learning_rate=0.01, epochs=2)
    trained = [each for each in attackable(model, settings).model.parameters() if each.requires_grad]
    assert sum(each.numel() for each in trained) < sum(each.numel() for each in model.model.parameters()) / 2
    done = relearn(model, RECORDS, settings)
    base = {n.replace(".base_layer", ""): e for n, e in done.language_model.model.get_base_model().named_parameters()}
    assert all(torch.equal(each, base[name]) for name, each in weights(model).items())
    assert len(blocks(model.model)) == 3 and not hasattr(model.model, "peft_config")
    assert done.loss < relearn(model, RECORDS, settings, epochs=1).loss


def test_evaluated_after_each_pass_and_cut_short_it_is_the_same(model):
    settings = Relearning(learning_rate=0.01, epochs=4, batch_size=2, seed=1)
    seen = {}
    done = relearn(model, RECORDS, settings, evaluate=lambda now, epoch: seen.update({epoch: weights(now)}))
    assert list(seen) == [1, 2, 3, 4] and [settings.steps_until(e, 5) for e in seen] == [3, 5, 8, 10]
    assert done.steps == settings.steps(5) == 10
    short = relearn(model, RECORDS, settings, epochs=2)
    assert (short.epochs, short.steps) == (2, 5)
    assert all(torch.equal(each, seen[2][name]) for name, each in weights(short.language_model).items())
    other = weights(relearn(model, RECORDS, settings.model_copy(update={"seed": 2}), epochs=2).language_model)
    assert any(not torch.equal(each, other[name]) for name, each in seen[2].items())


def test_steps_too_small_for_16_bits_add_up(model):
    narrow = copy.deepcopy(model)
    narrow.model.to(torch.bfloat16)
    # A weight of 0.05 has its neighbours 2e-4 away, and 60 steps make some 6e-4: alone, each would be rounded away.
    done = relearn(narrow, RECORDS, Relearning(learning_rate=1e-5, epochs=12, batch_size=1))
    assert done.moved > 0.6 and done.language_model.model.dtype == torch.bfloat16


def test_a_rate_that_destroys_ends_the_attack_and_says_so(model):
    done = relearn(model, RECORDS, Relearning(optimizer="sgd", learning_rate=1e30, epochs=9))
    assert done.diverged and done.epochs < 9


def test_wrong_requests_are_refused(model):
    with pytest.raises(BadInput, match="no records"):
        relearn(model, [], Relearning(learning_rate=1e-3))
    with pytest.raises(BadInput, match="blocks is 4, but the model has 3"):
        relearn(model, RECORDS, Relearning(learning_rate=1e-3, parameters="mlp", blocks=4))
    with pytest.raises(BadInput, match="needs parameters='mlp'"):
        relearn(model, RECORDS, Relearning(learning_rate=1e-3, blocks=2))
