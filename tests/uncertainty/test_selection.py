import numpy as np
import pytest
import torch

from chat_models import untaught
from equipoise.core.errors import BadInput
from equipoise.uncertainty.perturbed import perturb
from equipoise.uncertainty.selection import canonical, particle_filter, select

ANSWERS = ["It is 5.", "so 7", "5", "the answer is 5", "no idea", "7"]
SCORES = [0.1, 3.0, 0.2, 0.0, -1.0, 2.9]


def test_all_that_vote_alike_is_self_consistency():
    found = select(ANSWERS, SCORES, keep=1.0)
    assert found.votes == {"5": 3.0, "7": 2.0, "no idea": 1.0} and ANSWERS[found.answer] == "5"
    assert sorted(found.kept) == list(range(6))


def test_the_surest_alone_vote_and_never_fewer_than_one():
    assert select(ANSWERS, SCORES, keep=0.1).kept == (1,)
    assert select(ANSWERS, SCORES, keep=0.5).kept == (1, 5, 2)
    ten = select(["4"] * 10, range(10), keep=0.3)  # 0.3 x 10 is below 3 in floating point
    assert ten.kept == (9, 8, 7)


def test_weights_are_a_softmax_over_the_kept():
    found = select(ANSWERS, SCORES, keep=1.0, vote="weighted")
    share = np.exp(SCORES) / np.exp(SCORES).sum()
    assert found.votes["7"] == pytest.approx(share[1] + share[5]) and found.votes["5"] == pytest.approx(
        share[[0, 2, 3]].sum()
    )
    assert found.answer == 1 and sum(found.votes.values()) == pytest.approx(1)


def test_infinite_scores_have_their_limits():
    inf = float("inf")
    assert select(["4", "5", "6"], [inf, 0.0, inf], keep=1.0, vote="weighted").votes == {"4": 0.5, "6": 0.5, "5": 0.0}
    assert select(["4", "5"], [-inf, -inf], keep=1.0, vote="weighted").votes == {"4": 0.5, "5": 0.5}
    assert select(["4", "5"], [-inf, 0.0], keep=1.0, vote="weighted").votes == {"5": 1.0, "4": 0.0}


def test_a_particle_that_ended_without_a_token_is_not_the_surest(lm, monkeypatch):
    from equipoise.uncertainty import selection

    monkeypatch.setattr(selection, "over_answer", lambda values, mask: torch.tensor([0.5, 0.6, 0.7]))
    reward = selection._unsureness(perturb(lm), "tu", 2, 0, 4)
    found = reward([5], [[], [5], [6], [], [7]])
    scaled = [1.5**0.5, 0.0, -(1.5**0.5)]
    assert found.tolist() == pytest.approx([scaled[2], *scaled[:2], scaled[2], scaled[2]], abs=1e-6)
    assert reward([5], [[], []]).tolist() == [0.0, 0.0]


def test_answers_without_content_agree_with_none():
    assert select(["", "", "5"], [1.0, 1.0, 0.0], keep=1.0).votes == {"(answer 0)": 1, "(answer 1)": 1, "5": 1}
    assert canonical("12 + 3 = 15") == "15" and canonical(" Paris. ") == canonical("paris")


@pytest.fixture(scope="module")
def lm():
    return untaught(0)


def test_a_constant_reward_resamples_all_alike(lm, monkeypatch):
    """Each particle begins with a token of its own: after a draw the mean of its copies is 1, and all weigh the same."""

    def step(model, rows, *_):
        return [([10 + place], False) for place in range(len(rows))]

    seen, copies = [], np.zeros(8)
    monkeypatch.setattr("equipoise.uncertainty.selection._step", step)
    for seed in range(400):
        found = particle_filter(
            lm, "yes", seed=seed, particles=8, steps=2, step_tokens=1, reward=lambda _, a: seen.append(a) or [0.0] * 8
        )
        assert torch.equal(found.weights, torch.full((8,), 1 / 8, dtype=torch.float64))
        copies += np.bincount([answer[0] - 10 for answer in seen[-1]], minlength=8)
    assert copies.sum() == 400 * 8 and np.abs(copies / 400 - 1).max() < 0.15  # three standard deviations
    assert copies.std() > 0


def test_what_is_rewarded_is_continued(lm):
    """A reward that one first token alone gets: from the second step on every particle begins with it."""
    firsts = []

    def reward(prompt, answers):
        firsts.append([answer[0] for answer in answers])
        return [50.0 * (answer[0] == firsts[0][3]) for answer in answers]

    particle_filter(lm, "yes", seed=0, particles=6, steps=3, step_tokens=2, temperature=5.0, reward=reward)
    assert len(set(firsts[0])) > 1 and set(firsts[1]) == set(firsts[2]) == {firsts[0][3]}


def test_by_default_the_surer_prefix_weighs_more(lm):
    found = particle_filter(lm, "yes no", seed=1, particles=4, steps=2, step_tokens=3, temperature=3.0, members=2)
    again = particle_filter(lm, "yes no", seed=1, particles=4, steps=2, step_tokens=3, temperature=3.0, members=2)
    assert found.texts == again.texts and torch.equal(found.weights, again.weights)
    assert float(found.weights.sum()) == pytest.approx(1) and 0 <= found.surest < 4 and 1 <= found.steps <= 2


def test_bad_input(lm):
    for wrong in ({"keep": 0.0}, {"keep": 1.5}, {"vote": "most"}):
        with pytest.raises(BadInput):
            select(ANSWERS, SCORES, **wrong)
    with pytest.raises(BadInput, match="one score each"):
        select([], [])
    with pytest.raises(BadInput, match="answer 1 is nan"):
        select(["a", "b"], [0.0, float("nan")])
    for wrong in ({"particles": 0}, {"temperature": 0.0}, {"separator": ""}):
        with pytest.raises(BadInput):
            particle_filter(lm, "yes", seed=0, **wrong)
