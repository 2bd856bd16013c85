"""The sampler of DOTS call by call: its blocks, when it trusts predictions, what it counts, and that it resumes."""

import json
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.core.state import load_state, save_state
from equipoise.core.streams import torch_stream
from equipoise.reinforcement.dots import DifficultySampler, select
from equipoise.reinforcement.rates import GroupCounts
from equipoise.training.order import without_replacement


class Reader:
    """Predicts the first number of an embedding, or what `wrong` makes of it."""

    def __init__(self, wrong=None):
        self.wrong = wrong

    def predict(self, embeddings, reference_embeddings, reference_difficulty):
        return embeddings[:, 0] if self.wrong is None else self.wrong(embeddings[:, 0])


TRUE = torch.linspace(0, 1, 101)  # the difficulty of 101 questions, by id
POOL = TRUE.unsqueeze(-1)


def sampler(predictor=None, pool=POOL, **changed):
    return DifficultySampler(pool, predictor or Reader(), **{"seed": 0, "references": 16} | changed)


def rewards(ids, true=TRUE, samples=8):
    """0 and 1, as many of each as the difficulty says, rounded."""
    return (torch.arange(samples) >= (true[ids] * samples).round().unsqueeze(-1)).float()


def advance(each, count=8, true=TRUE):
    """What a trainer does in a step; the ids."""
    asked = each.references()
    if len(asked):
        each.observe(asked, rewards(asked, true), reference=True)
    ids = each.next(count)
    each.observe(ids, rewards(ids, true))
    return ids.tolist()


def test_without_a_temperature_it_is_the_trainers_own_order():
    """What GRPO trains on at equal seeds: no reference is asked for, through passes of the pool, in steps of any size."""
    each, order = sampler(temperature=math.inf, seed=5), without_replacement(101, 1, 5)
    found = []
    for count in (64, 8, 64, 70):
        assert len(each.references()) == 0
        found += advance(each, count)
    assert found == [order(place)[0] for place in range(206)]
    assert each.statistics().blocks == 0 and math.isnan(each.statistics().rollouts_saved)


def test_a_block_is_what_is_nearest_to_the_target():
    """Two steps of 8 from one prediction, shuffled; then new references, of which other draws are made."""
    each, asked, blocks = sampler(target=0.3), [], []
    for _ in range(4):
        asked.append(each.references().tolist())
        with pytest.raises(BadInput, match="16 references are to be measured first"):
            each.next(8)
        blocks.append(advance(each) + advance(each))
        assert each.state_dict()["queue"] == []
    assert [len(set(ids)) for ids in asked] == [16] * 4 and asked[0] != asked[1]
    nearest = (TRUE - 0.3).abs().argsort(stable=True)[:16].tolist()
    assert all(len(set(block)) == 16 and len(set(block) & set(nearest)) > 14 for block in blocks)
    assert len({tuple(block) for block in blocks}) == 4
    distances = np.array([[abs(TRUE[i] - 0.3) for i in block] for block in blocks]).mean(0)
    assert distances[:8].mean() > 0.8 * distances[8:].mean()  # sorted, it would be a third
    found = each.statistics()
    assert found.blocks == 4 and found.uniform_blocks == 0 and found.correlations[1][0] == 2
    assert all(0.9 < value < 1 for _, value in found.correlations)


def test_a_block_follows_from_its_references():
    """However they were observed; and at a high temperature it reaches beyond what is nearest."""
    one, two = sampler(temperature=0.2), sampler(temperature=0.2)
    asked = one.references()
    one.observe(asked, rewards(asked), reference=True)
    for part in (asked[:5], asked[5:]):
        two.observe(part.tolist(), rewards(part), reference=True)
        assert len(two.references()) == (11 if len(part) == 5 else 0)
    found = [each.next(12).tolist() + each.next(12).tolist() for each in (one, two)]
    assert found[0] == found[1] and max(abs(TRUE[i] - 0.5) for i in found[0]) > 0.2
    assert sampler(temperature=0.2, seed=1).references().tolist() != asked.tolist()


def test_a_timid_predictor_is_refitted():
    """Without the line, what is hardest is predicted to be half as hard as it is, and passed for the target."""
    found = {}
    for refit in ("none", "cross-fitted"):
        each = sampler(Reader(lambda d: d / 2), refit=refit)
        found[refit] = np.mean([TRUE[i] for i in advance(each) + advance(each)])
    assert found["none"] > 0.9 and abs(found["cross-fitted"] - 0.5) < 0.05


@pytest.mark.parametrize(
    "wrong", [lambda d: 1 - d, lambda d: torch.full_like(d, 0.5), lambda d: (1000 * d).cos()], ids=["no", "one", "any"]
)
def test_untrusted_predictions_draw_uniformly(wrong):
    """Until they can be trusted again; the uniform order goes on where it was left."""
    predictor = Reader(wrong)
    each, order = sampler(predictor), without_replacement(101, 1, 0)
    found = advance(each) + advance(each)
    predictor.wrong = None
    trusted = advance(each) + advance(each)
    predictor.wrong = wrong
    found += advance(each) + advance(each)
    assert found == [order(place)[0] for place in range(32)]
    assert max(abs(TRUE[i] - 0.5) for i in trusted) < 0.12
    assert [block["uniform"] for block in each.blocks] == [True, False, True]
    assert each.statistics().uniform_blocks == 2


def test_references_that_are_all_solved_say_nothing():
    each = sampler()
    advance(each, true=torch.zeros(101))
    ((step, correlation),) = each.statistics().correlations
    assert step == 0 and math.isnan(correlation) and each.statistics().uniform_blocks == 1


def test_the_threshold_is_the_users():
    """The same predictions, trusted and not."""
    noisy = Reader(lambda d: d + 0.8 * (1000 * d).sin())
    first = sampler(noisy, min_correlation=-1)
    advance(first)
    correlation = first.blocks[0]["correlation"]
    for least, uniform in ((correlation, False), (correlation + 1e-9, True)):
        each = sampler(noisy, min_correlation=least)
        advance(each)
        assert each.blocks[0]["uniform"] is uniform
    assert 0.2 < correlation < 0.9 and sampler(references=64).min_correlation == 0.25


def test_what_training_measured_counts_beside_the_predictions():
    """Questions that are predicted at the target and were never failed are passed over, until that is long ago."""
    middle = set((TRUE - 0.5).abs().argsort()[:9].tolist())
    for worth, passed in ((math.inf, False), (8.0, True)):
        each = sampler(prediction_worth=worth, half_life=1.0)
        each.observe(sorted(middle), torch.ones(9, 8))
        blocks = [{*advance(each, 4), *advance(each, 4)} for _ in range(7)]
        assert blocks[0].isdisjoint(middle) is passed and len(blocks[-1] & middle) > 4


def test_statistics_by_hand():
    """Numerators and denominators; what uniform draws would have taken, the references' cost against it."""
    each = sampler(references=8, block=1)
    asked = each.references()
    graded = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1, 1], [1, 1]])
    each.observe(asked, graded, reference=True)
    ids = each.next(4)
    each.observe(ids, torch.tensor([[1.0, 0.0], [0.5, 0.25], [1.0, 1.0], [0.0, 1.0]]))
    found = each.statistics()
    assert (found.trained.groups, found.trained.effective, found.trained.rollouts) == (4, 3, 8)
    assert (found.references.groups, found.references.effective, found.references.rollouts) == (8, 2, 16)
    assert (found.trained.effective_share, found.references.effective_share) == (0.75, 0.25)
    assert found.rollouts_saved == 3 / 0.25 * 2 - 8 - 16
    means = {"difficulty": 0.40625, "distance": 0.15625}
    assert each.steps == [{"step": 1, "groups": 4, "effective": 3, "rollouts": 8, **means}]
    assert math.isnan(GroupCounts().effective_share)
    each.observe([], torch.zeros(0, 8))
    assert each.statistics() == found and len(each.steps) == 1


def test_rates_are_the_same_as_rewards_of_0_and_1():
    one, two = sampler(), sampler()
    for each in (one, two):
        asked = each.references()
        given = rewards(asked)
        if each is one:
            each.observe(asked, given, reference=True)
        else:
            each.observe_rates(asked, given.mean(-1), 8, reference=True)
    assert one.next(8).tolist() == two.next(8).tolist()
    one.observe([0, 50, 100], rewards([0, 50, 100]))
    two.observe_rates([0, 50, 100], rewards([0, 50, 100]).mean(-1), 8)
    assert one.statistics() == two.statistics() and one.statistics().trained.effective == 1
    assert one.steps == two.steps


def test_rewards_of_another_range():
    """-1 and 1 as 0 and 1: the same draws."""
    one, two = sampler(), sampler(reward_range=(-1.0, 1.0))
    asked = one.references()
    one.observe(asked, rewards(asked), reference=True)
    two.observe(asked, 2 * rewards(asked) - 1, reference=True)
    assert one.next(8).tolist() == two.next(8).tolist()
    one.observe([3, 70], rewards([3, 70]))
    two.observe([3, 70], 2 * rewards([3, 70]) - 1)
    assert one.steps == two.steps and torch.equal(one.rates.total, two.rates.total)
    with pytest.raises(BadInput, match=f"question {int(asked[1])} has a reward outside 0 to 1"):
        one.observe(asked[:3], torch.tensor([[0.0, 1.0], [1.0, -1.0], [2.0, 0.0]]))


def test_texts_are_embedded():
    texts = [str(n) for n in range(20)]
    pool = DifficultySampler(
        texts, Reader(), seed=0, references=8, embed=lambda texts: torch.tensor([[float(t)] for t in texts])
    )
    assert pool.embeddings.flatten().tolist() == list(range(20))
    with pytest.raises(BadInput, match="questions are texts: give embed="):
        DifficultySampler(texts, Reader(), seed=0)


def test_a_killed_run_goes_on_to_the_same_draws(tmp_path):
    """From a state after any call, stored and read: predictions trusted or not, within a block and between two."""

    def new():
        return sampler(Reader(lambda d: d + 0.2 * (50 * d).sin()), seed=3, temperature=0.1, prediction_worth=4.0)

    def call(each, pending):
        """The next call of a trainer, which has something to observe or has not; what it has after it."""
        asked = each.references()[:9]
        true = 1 - TRUE if len(each.blocks) % 2 else TRUE
        if pending is not None:
            return each.observe(pending, rewards(pending, true))
        return each.observe(asked, rewards(asked, true), reference=True) if len(asked) else each.next(6)

    whole, found, pending = new(), [], None
    for _ in range(30):
        pending = call(whole, pending)
        found.append((whole.state_dict(), pending))
    assert {block["uniform"] for block in whole.blocks} == {True, False}
    for kill in (0, 2, 3, 4, 11):
        save_state(tmp_path / "state", found[kill][0])
        each, pending = new(), found[kill][1]
        each.load_state_dict(load_state(tmp_path / "state"))
        for _, expected in found[kill + 1 :]:
            pending = call(each, pending)
            assert (pending is None) is (expected is None) and (pending is None or torch.equal(pending, expected))
        assert each.statistics() == whole.statistics() and each.steps == whole.steps
    plain = {name: value for name, value in found[-1][0].items() if name not in ("measured", "ranked", "rates")}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_a_state_is_of_its_questions_and_settings():
    """And a copy: what goes on does not change it."""
    each = sampler()
    state = each.state_dict()
    kept = {name: value.clone() if isinstance(value, torch.Tensor) else str(value) for name, value in state.items()}
    advance(each)
    again = {name: value if isinstance(value, torch.Tensor) else str(value) for name, value in state.items()}
    assert_close(again.pop("measured"), kept.pop("measured"), equal_nan=True)
    assert again == kept
    for other, said in (
        (sampler(seed=1), "seed=0, this one 1"),
        (sampler(temperature=math.inf), "temperature=0.001, this one inf"),
        (sampler(pool=POOL.flip(0)), "stored sampler has questions="),
        (sampler(half_life=3.0), "half_life=10.0, this one 3.0"),
    ):
        with pytest.raises(BadInput, match=said):
            other.load_state_dict(state)


def test_what_a_sampler_refuses():
    for changed, said in (
        ({"references": 7}, "references is 7, expected 8 to 101"),
        ({"references": 102}, "references is 102"),
        ({"block": 0}, "block is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"prediction_worth": 0.0}, "prediction_worth is 0.0"),
        ({"reward_range": (1.0, 1.0)}, "reward_range is"),
        ({"refit": "line"}, "refit is 'line'"),
        ({"pool": POOL * math.nan}, r"questions\[0\] holds"),
    ):
        with pytest.raises(BadInput, match=said):
            sampler(**changed)
    each = sampler()
    asked = each.references()
    other = next(i for i in range(101) if i not in asked.tolist())
    for ids, given, reference, said in (
        ([other], torch.zeros(1, 2), True, "were observed as references and not asked for"),
        ([int(asked[0])] * 2, torch.zeros(2, 2), True, "or twice"),
        ([101], torch.zeros(1, 2), False, "the ids 0 to 100"),
        ([-1], torch.zeros(1, 2), False, "the ids 0 to 100"),
        ([1, 2], torch.zeros(1, 2), False, r"rewards are \[1, 2\], expected a row for each of 2"),
        ([1, 2], torch.zeros(2), False, r"rewards are \[2\]"),
        ([1], torch.zeros(1, 2, 2), False, r"rewards are \[1, 2, 2\]"),
        ([1], torch.zeros(1, 0), False, r"rewards are \[1, 0\]"),
        ([1], torch.tensor([[math.nan]]), False, "question 1 has a reward outside"),
    ):
        with pytest.raises(BadInput, match=said):
            each.observe(ids, given, reference=reference)
    for ids, rates, rollouts, said in (
        ([1, 2], torch.zeros(1), 8, "there are 1 rates of 8 rollouts for 2"),
        ([1], torch.zeros(1), 0, "of 0 rollouts"),
        ([1], torch.tensor([1.5]), 8, r"rates\[0\] is 1.5"),
    ):
        with pytest.raises(BadInput, match=said):
            each.observe_rates(ids, rates, rollouts)
    assert each.statistics().trained.groups == each.statistics().references.groups == 0
    each.observe(asked, rewards(asked), reference=True)
    with pytest.raises(BadInput, match="a block of 102 questions is drawn from 101"):
        each.next(51)
    with pytest.raises(BadInput, match="count is 0"):
        each.next(0)
    each.next(5)
    with pytest.raises(BadInput, match="6 questions are asked for and the block has 5 left"):
        each.next(6)
    assert len(each.next(1)) == 1  # and steps of another size go on with what is left


def test_a_block_may_be_all_of_the_pool():
    each = sampler(block=1)
    assert sorted(advance(each, 101)) == list(range(101))


def test_each_use_of_the_seed_has_a_stream_of_its_own():
    """Of references (6) and of selection (7), each by the number of the block, as the trainer's seeds are numbered."""
    each = sampler(seed=4, temperature=0.5)
    for block in range(2):
        asked = each.references()
        assert torch.equal(asked, torch.randperm(101, generator=torch_stream(4, 6, block))[:16])
        ids = advance(each, 3) + advance(each, 3)
        generator = torch_stream(4, 7, block)
        drawn = select(each.ranked, 6, temperature=0.5, generator=generator)
        assert ids == drawn[torch.randperm(6, generator=generator)].tolist()
