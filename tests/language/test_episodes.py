"""Episodes: what a model and an environment say in turns, whose tokens are whose, and what is learnt of which."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.language import episodes
from equipoise.language.encode import encode_prompts, encode_replies
from equipoise.language.episodes import ENVIRONMENT, MODEL, TOOL, Episode, Turn, play
from equipoise.language.rollouts import Rollouts, roll_out, score_responses

ENDS = [2, *range(100, 150)]
REPLIES = ("no", "one two three", "Where was Mulum Kunwick born?")
TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def ending(small):
    model = copy.deepcopy(small.model)
    model.generation_config.eos_token_id = ENDS
    return replace(small, model=model, chat_template="none")


@pytest.fixture(scope="module")
def chatting(ending):
    changed = replace(ending, chat_template="auto")
    changed.tokenizer = type(changed.tokenizer)(tokenizer_object=changed.tokenizer.backend_tokenizer)
    changed.tokenizer.add_special_tokens(ending.tokenizer.special_tokens_map)
    changed.tokenizer.chat_template = TEMPLATE
    return changed


class Counter:
    """Ends after as many turns as its seed says; a reply of another length in each, and a reward of 2 to the turn."""

    replies = REPLIES

    def reset(self, seed):
        self.last, self.turn = seed, 0
        return f"one two {seed}"

    def step(self, text):
        self.turn += 1
        owner = "tool" if self.turn == 2 else "environment"
        done = self.turn == self.last
        return self.replies[self.turn % 3], 2.0**-self.turn, done, {"success": self.last > 1, "owner": owner}


class Wordy(Counter):
    """The same but for what it says, in as many tokens."""

    replies = ("yes", "two one one", "Where was Kunwick Mulum born?")


def played(model, make=Counter, seeds=(1, 3, 2), **changes):
    how = {"samples": 2, "max_turns": 4, "max_new_tokens": 5, "temperature": 1.0, "seed": 7}
    return play(model, make, seeds, **{**how, **changes})


def every(rolled):
    return range(len(rolled.ids))


def test_one_turn_is_a_rollout(ending):
    found = played(ending, seeds=(1, 1), keys=(4, 9))
    expected = roll_out(ending, ["one two 1"] * 2, samples=2, max_new_tokens=5, temperature=1.0, seed=7, keys=(4, 9))
    for name in ("ids", "mask", "log_probs", "entropies"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert [episode.turns[0].text for episode in found.episodes] == list(expected.texts)
    assert found.prompts == expected.prompts and not torch.equal(found.ids[:2], found.ids[2:])


def test_whose_tokens_are_whose(ending):
    rolled = played(ending)
    ends = frozenset(ENDS)
    assert [len(episode.turns) for episode in rolled.episodes] == [1, 1, 3, 3, 2, 2]
    for row, episode in enumerate(rolled.episodes):
        ids, owner, turn = (each[row][rolled.present[row]].tolist() for each in (rolled.ids, rolled.owner, rolled.turn))
        position = 0
        for number, one in enumerate(episode.turns):
            assert one.begin == position and set(owner[one.begin : one.end]) == {MODEL}
            assert set(turn[one.begin : one.stop]) == {number}
            written = ids[one.begin : one.end]
            assert len(written) == 5 or written[-1] in ends
            body = written[:-1] if written[-1] in ends else written
            assert one.text == ending.tokenizer.decode(body, skip_special_tokens=True).removeprefix(" ")
            if number < len(episode.turns) - 1:
                closing = [] if written[-1] in ends else [2]
                reply = ending.tokenizer(one.reply, add_special_tokens=False).input_ids
                assert ids[one.end : one.stop] == closing + reply
                by = TOOL if number == 1 else ENVIRONMENT
                assert owner[one.end : one.stop] == [ENVIRONMENT] * len(closing) + [by] * len(reply)
            position = one.stop
        assert position == len(ids) and (rolled.turn[row][~rolled.present[row]] == -1).all()
    assert torch.equal(rolled.mask, rolled.owner == MODEL) and torch.equal(rolled.lengths, rolled.mask.sum(-1))
    assert [episode.score for episode in rolled.episodes] == [0.5, 0.5, 0.875, 0.875, 0.75, 0.75]
    assert [episode.success for episode in rolled.episodes] == [False, False, True, True, True, True]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_every_token_was_written_in_its_context(ending, temperature):
    """Each turn's log-probabilities and entropies against the row alone, and the trainer's view by both of its ways."""
    rolled = played(ending, temperature=temperature, samples=4)
    for row in every(rolled):
        prompt, ids = list(rolled.prompts[row // 4]), rolled.ids[row][rolled.present[row]]
        with torch.no_grad():
            logits = ending.model(torch.tensor([prompt + ids.tolist()])).logits[0, len(prompt) - 1 : -1] / temperature
        log_probs, mask = logits.log_softmax(-1), rolled.mask[row][: len(ids)]
        expected = log_probs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        assert_close(rolled.log_probs[row][: len(ids)][mask], expected[mask], rtol=1e-4, atol=1e-4)
        entropies = -(log_probs.exp() * log_probs).sum(-1)
        assert_close(rolled.entropies[row][: len(ids)][mask], entropies[mask], rtol=1e-4, atol=1e-4)
        assert (rolled.log_probs[row][: len(ids)][~mask] == 0).all()
    for rows in (list(every(rolled)), [9, 0, 6]):  # prompts read once, and each row whole
        batch = rolled.batch(rows)
        found = score_responses(ending.model, batch, temperature=temperature)
        width = batch["mask"].shape[1]
        assert_close(found.log_probs.detach(), rolled.log_probs[rows, :width], rtol=1e-4, atol=1e-4)


def test_neither_batch_nor_company_matters(ending):
    rolled = played(ending)
    one_by_one = played(ending, batch_size=1)
    assert torch.equal(rolled.ids, one_by_one.ids) and rolled.episodes == one_by_one.episodes
    alone = played(ending, seeds=(3,), keys=(1,))
    width = alone.ids.shape[1]
    assert torch.equal(rolled.ids[2:4, :width], alone.ids) and torch.equal(rolled.owner[2:4, :width], alone.owner)
    whole = Rollouts.joined([played(ending, seeds=(1,), keys=(0,)), alone])
    taken = rolled.take([0, 1])
    assert torch.equal(whole.ids, taken.ids[:, : whole.ids.shape[1]]) and whole.episodes == taken.episodes
    assert torch.equal(whole.present, taken.present[:, : whole.ids.shape[1]])
    assert (whole.turn[~whole.present] == -1).all()


def test_what_others_wrote_carries_no_loss_and_no_gradient(ending):
    """Their tokens reach the model's as context alone: the logits of their places take no part, whatever they are."""
    rolled = played(ending, seeds=(3, 3), samples=1)
    rows = list(every(rolled))
    batch = rolled.batch(rows)
    scores = score_responses(ending.model, batch, entropies=True)
    others = batch["present"] & ~batch["mask"]
    assert others.sum() > 8
    assert (scores.log_probs[others] == 0).all() and (scores.entropies[others] == 0).all()
    seen = []
    model = copy.deepcopy(ending.model)
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1]))
    found = score_responses(model, batch)
    assert max(shape.numel() for shape in seen) == int(batch["mask"].sum())  # no logits of the others are made
    # The last reply of a row has no token of the model behind it, and another one there changes nothing at all.
    cut = played(ending, seeds=(3,), samples=1, max_turns=2)
    assert cut.episodes[0].outcome == "turns" and cut.owner[0][cut.present[0]][-1] == MODEL
    assert_close(found.log_probs, scores.log_probs)


def test_other_words_of_the_environment_change_context_alone(ending):
    """Every model token before the first changed reply keeps its loss and its gradient."""
    one, other = (played(ending, make, seeds=(3,), samples=1, max_new_tokens=3) for make in (Counter, Wordy))
    first = one.episodes[0].turns[0].end
    assert torch.equal(one.ids[0, :first], other.ids[0, :first]) and not torch.equal(one.ids, other.ids)
    gradients = []
    for rolled in (one, other):
        model = copy.deepcopy(ending.model)
        scores = score_responses(model, rolled.batch([0]))
        scores.log_probs[0, :first].sum().backward()
        gradients.append([each.grad for each in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_chat_goes_on_in_the_words_of_its_template(chatting):
    ends = encode_prompts(chatting, ["yes"])[1]
    end, (reply,) = encode_replies(chatting, ["two three"])
    turns = [
        {"role": "user", "content": "yes"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "two three"},
    ]
    whole = chatting.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    before = chatting.tokenizer.apply_chat_template(turns[:2], tokenize=False)
    ids = chatting.tokenizer(whole.rstrip(" "), add_special_tokens=False).input_ids
    assert end == [2] and 2 in ends
    assert ids[-len(end + reply) :] == end + reply
    assert whole.startswith(before.rstrip()) and "two three" in chatting.tokenizer.decode(reply)
    rolled = played(chatting, seeds=(2,), samples=1, max_new_tokens=4)
    (episode,) = rolled.episodes
    last = episode.turns[0]
    between = rolled.ids[0, last.end : last.stop].tolist()
    _, (expected,) = encode_replies(chatting, [last.reply])
    assert between == ([] if int(rolled.ids[0, last.end - 1]) in ends else end) + expected


class Broken(Counter):
    def step(self, text):
        if self.last == 2:
            raise RuntimeError("the shop is closed")
        told = super().step(text)
        return (told[0], float("nan"), *told[2:]) if self.last == 3 and self.turn == 2 else told


def test_an_environment_that_fails_ends_its_episode_alone(ending):
    rolled = played(ending, Broken, samples=1)
    good, nan, raised = rolled.episodes
    assert (good.score, good.outcome) == (0.5, "done")
    assert (nan.score, nan.outcome, len(nan.turns)) == (0.0, "failed", 2) and "the reward is nan" in nan.reason
    assert (raised.score, raised.outcome) == (0.0, "failed")
    assert raised.reason == "step of Broken raised RuntimeError: the shop is closed"
    assert torch.equal(rolled.ended, torch.tensor([True, False, False]))


def test_what_never_ends_is_cut(ending):
    rolled = played(ending, seeds=(99,), samples=1, max_turns=3)
    assert (rolled.episodes[0].outcome, len(rolled.episodes[0].turns)) == ("turns", 3)
    assert rolled.episodes[0].score == 0.875 and not rolled.episodes[0].success
    small = copy.deepcopy(ending.model)
    prompt = len(rolled.prompts[0])
    narrow = replace(ending, model=small)
    small.config.max_position_embeddings = prompt + 12
    cut = played(narrow, seeds=(99,), samples=2, max_turns=50)
    assert {episode.outcome for episode in cut.episodes} == {"room"}
    assert (prompt + cut.present.sum(-1) <= prompt + 12).all()


class Fickle(Counter):
    made = 0

    def reset(self, seed):
        type(self).made += 1
        return f"{super().reset(seed)} {type(self).made}"


class Mute(Counter):
    def reset(self, seed):
        return "  "


class Absent(Counter):
    def reset(self, seed):
        raise KeyError(seed)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"make": Fickle}, r"reset\(1\) told two things"),
        ({"make": Mute}, r"reset\(1\) of Mute gave '  '"),
        ({"make": Absent}, r"reset\(1\) of Absent raised KeyError: 1"),
        ({"max_turns": 0}, "max_turns 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"prompts": ["a"]}, "1 prompts for 3 seeds"),
        ({"keys": [1]}, "1 keys for 3 prompts"),
        ({"max_new_tokens": 9999}, "Prompt of seed 1 has"),
    ],
)
def test_bad_requests(ending, how, said):
    with pytest.raises(BadInput, match=said):
        played(ending, **how)


def test_an_episode_says_what_came_of_it():
    with pytest.raises(BadInput, match="outcome"):
        Episode(0, "a", (), 0.0, "over")


def turned(reward=0.0, **info):
    return Turn("text", "reply", reward, info, 0, 1, 1)


def test_what_an_episode_came_to_by_hand():
    ways = turned(valid=True), turned(valid=False), turned(), turned(valid=False, success=True)
    assert Episode(0, "f", ways, 0.0, "done").valid == 0.5 and Episode(0, "f", (), 0.0, "failed").valid == 0.0
    assert Episode(0, "f", ways, 0.0, "done").success and not Episode(0, "f", ways, 0.0, "turns").success
    tasks = turned(task_done=True, success=True), turned(), turned(task_done=True, success=False), turned(success=True)
    assert not Episode(0, "f", tasks, 0.0, "done").success and Episode(0, "f", tasks[:2], 0.0, "done").success
    assert not Episode(0, "f", (turned(),), 0.0, "done").success
    row = episodes._Row(None, "first", 7, [1], turns=[turned(0.5), turned(-2.0)], outcome="turns")
    assert row.episode() == Episode(7, "first", (turned(0.5), turned(-2.0)), -1.5, "turns")
    row.outcome = "failed"
    assert row.episode().score == 0.0


@pytest.mark.parametrize(
    ("told", "words"),
    [((3, 0.0, False, {}), "the reply is a int"), (("a", float("inf"), False, {}), "the reward is inf"),
     (("a", float("nan"), False, {}), "the reward is nan")],
)  # fmt: skip
def test_what_an_environment_may_not_tell(told, words):
    with pytest.raises((TypeError, ValueError), match=words):
        episodes._checked(told)
    assert episodes._checked(("a", True, 1, None)) == ("a", 1.0, True, {})


@pytest.mark.parametrize(
    ("last", "reply", "ids", "owner"),
    [
        (5, 4, [4, 5, 7, 7, 7, 7], [1, 1, 3, 3, 3, 3]),  # the model has ended its turn itself
        (5, 5, [4, 5], [1, 1]),
        (6, 3, [4, 6, 9, 7, 7, 7], [1, 1, 2, 3, 3, 3]),
        (6, 4, [4, 6], [1, 1]),
    ],
)
def test_a_reply_needs_room_for_a_token_behind_it(monkeypatch, last, reply, ids, owner):
    monkeypatch.setattr(episodes, "encode_replies", lambda model, replies: ([9], [[7] * len(each) for each in replies]))
    row = episodes._Row(None, "f", 0, [1, 2, 3], ids=[4, last], owner=[1, 1], turn=[0, 0], turns=[turned()])
    row.log_probs, row.entropies = [-1.0, -1.0], [1.0, 1.0]
    episodes._answer(SimpleNamespace(context=10), [row], [0], {0: ("x" * reply, TOOL)}, frozenset({5}))
    assert row.ids == ids and row.owner == owner and row.outcome == (None if len(ids) > 2 else "room")
    assert row.turn == [0] * 2 + [0] * (len(ids) - 2) and row.turns[0].stop == (len(ids) if len(ids) > 2 else 1)
    assert row.log_probs[2:] == row.entropies[2:] == [0.0] * (len(ids) - 2)


def test_progress_counts_turns_that_are_not_taken(ending, monkeypatch):
    told = []

    class Bar:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def advance(self, amount=1):
            told.append(amount)

    monkeypatch.setattr(episodes, "progress", lambda title, total, unit: told.append(total) or Bar())
    play(ending, Counter, [1, 3], samples=2, max_turns=4, max_new_tokens=2, temperature=0.0, seed=0)
    assert told[0] == 16 == sum(told[1:])
    for wrong in (
        {"samples": 0},
        {"max_turns": 0},
        {"max_new_tokens": 0},
        {"batch_size": 0},
        {"temperature": float("inf")},
    ):
        given = {"samples": 1, "max_turns": 1, "max_new_tokens": 1, "temperature": 0.0, "seed": 0}
        with pytest.raises(BadInput):
            play(ending, Counter, [1], **{**given, **wrong})
