import numpy as np
import pytest
import torch

from chat_models import untaught
from equipoise.core.errors import BadInput
from equipoise.language.encode import encode_prompts
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


def test_choices_at_their_limits():
    found = select(["4"] * 300 + ["5"] * 300, [*range(600)], keep=1.0)  # a tie, broken by the surest
    assert found.votes == {"5": 300.0, "4": 300.0} and found.answer == 599
    with pytest.raises(BadInput, match="2 answers and 3 scores"):
        select(["a", "b"], [1.0, 2.0, 3.0])
    with pytest.raises(BadInput, match=r"keep is 1\.01"):
        select(["a"], [1.0], keep=1.01)
    assert select(["4"] * 20, range(20)).kept == (19, 18)  # a tenth by default
    assert select(["4"] * 19, range(19)).kept == (18,)
    assert select(["4", "5", "5"], [1.0, 1.0, 1.0], keep=0.7).kept == (
        0,
        1,
    )  # in the order given, where all are as sure
    assert select(["a", "A."], [0.0, 1.0], keep=1.0, read=lambda answer: "").votes == {"(answer 1)": 1, "(answer 0)": 1}


class Steps:
    """A step that writes so many tokens, the first 10 + the number of the row, and ends where it is told."""

    def __init__(self, tokens=1, ends=()):
        self.tokens, self.ends, self.calls = tokens, ends, []

    def __call__(self, model, rows, ends, limit, temperature, separator, drawn):
        before = sum(len(call[0]) for call in self.calls)
        self.calls.append(([list(row) for row in rows], limit, temperature, separator, tuple(drawn.shape)))
        return [
            ([10 + before + place] + [5] * (self.tokens - 1), before + place in self.ends) for place in range(len(rows))
        ]


@pytest.fixture
def filtered(lm, monkeypatch):
    def run(steps, /, **how):
        monkeypatch.setattr("equipoise.uncertainty.selection._step", steps)
        return particle_filter(lm, "yes", seed=how.pop("seed", 4), **how)

    return run


def test_weights_are_a_softmax_of_rewards_over_their_temperature(filtered):
    steps = Steps()
    found = filtered(
        steps, particles=3, steps=1, step_tokens=7, reward=lambda _, a: [0.0, np.log(16), 0.0], reward_temperature=2.0,
        temperature=0.3, separator="|", batch_size=2,
    )  # fmt: skip
    assert found.weights.tolist() == pytest.approx([1 / 6, 4 / 6, 1 / 6]) and found.surest == 1 and found.steps == 1
    assert [len(call[0]) for call in steps.calls] == [2, 1]
    assert [call[1:4] for call in steps.calls] == [(7, 0.3, "|")] * 2
    assert [call[4][:2] for call in steps.calls] == [(2, 7), (1, 7)]
    extreme = filtered(Steps(), particles=2, steps=1, step_tokens=1, reward=lambda _, a: [0.0, 1e6])
    assert extreme.weights.tolist() == [0, 1] and extreme.surest == 1


def test_continued_is_what_was_drawn_by_the_seed(filtered):
    seen, weights = [], [0.5, 0.25, 0.125, 0.125]
    filtered(Steps(), particles=4, steps=3, step_tokens=1, reward=lambda _, a: seen.append(a) or np.log(weights))
    generator = np.random.default_rng(np.random.SeedSequence([4, 1]))
    first = [[10], [11], [12], [13]]
    second = [[*first[place], 14 + row] for row, place in enumerate(generator.choice(4, size=4, p=weights))]
    third = [[*second[place], 18 + row] for row, place in enumerate(generator.choice(4, size=4, p=weights))]
    assert seen == [first, second, third]


def test_answers_that_end_are_not_continued(filtered):
    steps = Steps(ends=(1,))
    filtered(steps, particles=2, steps=4, step_tokens=1, reward=lambda _, a: [0.0, 1e6])
    assert [len(call[0]) for call in steps.calls] == [2]  # only what has ended is drawn
    steps = Steps(ends=(0, 1))
    assert filtered(steps, particles=2, steps=4, step_tokens=1, reward=lambda _, a: [0.0, 0.0]).steps == 1
    steps = Steps(ends=(1,))
    filtered(steps, particles=2, steps=4, step_tokens=1, reward=lambda _, a: [1e6, 0.0])
    assert [len(call[0]) for call in steps.calls] == [2] * 4


def test_an_answer_ends_where_no_further_step_has_room(lm, filtered):
    (context,), _ = encode_prompts(lm, ["yes"])
    room = lm.context - len(context) - 3  # for a step of three tokens behind what is written
    for tokens, made in ((room, 2), (room + 1, 1)):
        found = filtered(Steps(tokens), particles=1, steps=5, step_tokens=3, reward=lambda _, a: [0.0])
        assert found.steps == made


def test_settings_of_particles_at_their_limits(lm, filtered):
    for wrong in (
        {"steps": 0}, {"step_tokens": 0}, {"particles": 0}, {"temperature": float("inf")}, {"reward_temperature": 0.0},
        {"reward_temperature": float("inf")}, {"separator": ""},
    ):  # fmt: skip
        with pytest.raises(BadInput):
            particle_filter(lm, "yes", seed=0, **wrong)
    assert filtered(Steps(), particles=1, steps=1, step_tokens=1, reward=lambda _, a: [0.0]).weights.tolist() == [1.0]


def test_a_step_ends_with_its_separator_or_an_end_token(lm):
    from equipoise.uncertainty import selection

    (context,), _ = encode_prompts(lm, ["yes"])
    drawn = torch.rand(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    free = selection._step(lm, [context, [*context, 9]], frozenset(), 6, 1.0, "\x00", drawn)
    assert [len(tokens) for tokens, _ in free] == [6, 6] and not any(over for _, over in free)
    end = free[0][0][3]
    tokens, over = selection._step(lm, [context], frozenset({end}), 6, 1.0, "\x00", drawn[:1])[0]
    assert over and tokens == free[0][0][: free[0][0].index(end)]
    said = lm.tokenizer.decode(free[1][0][:2], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    mark = said.strip()[-1]
    cut, over = selection._step(lm, [[*context, 9]], frozenset(), 6, 1.0, mark, drawn[1:])[0]
    assert not over and cut == free[1][0][: len(cut)] and 1 <= len(cut) <= 2
