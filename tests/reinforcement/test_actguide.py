"""ActGuide: lists from logs, hints, the shortest prefix, batches without hints, and the stage that plays with them."""

import json
import math
import random
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.data.environment import open_environment
from equipoise.data.problems import Problem
from equipoise.data.records import Message
from equipoise.language.encode import encode_prompts
from equipoise.language.episodes import play
from equipoise.reinforcement import guiding, replay, stages
from equipoise.reinforcement.actguide import (
    hinted,
    read_actions,
    rebuild,
    shortest_prefix,
    shortest_prefixes,
    without_leaks,
)
from equipoise.reinforcement.guiding import Guided, log_ratios
from equipoise.reinforcement.playing import Playing, no_reward
from equipoise.reinforcement.ppo import rewards_of_tokens
from equipoise.reinforcement.recipe import recipe
from equipoise.reinforcement.training import prepare, train
from reinforcement_world import copied, equal, model, weights


def act(*names):
    return [{"name": name, "arguments": {}} for name in names]


# --- the search


@pytest.mark.parametrize("length", [*range(34), 63, 64, 100])
def test_the_shortest_prefix_is_found_for_every_length(length):
    for shortest in [*range(length + 1), math.inf]:
        asked = []

        def succeeds(k, shortest=shortest, asked=asked):
            asked.append(k)
            return k >= shortest

        assert shortest_prefix(succeeds, length) == min(shortest, length)
        assert len(asked) == len(set(asked)) <= math.ceil(math.log2(length + 1)) and length not in asked


def test_what_is_returned_was_shown_to_succeed_or_is_all():
    for seed in range(300):
        draw, said = random.Random(seed), {}

        def noisy(k, draw=draw, said=said):
            said[k] = draw.random() < 0.4
            return said[k]

        length = draw.randrange(50)
        found = shortest_prefix(noisy, length)
        assert found == length or said[found]


def test_tasks_are_searched_side_by_side():
    lengths, shortest = [0, 5, 31, 32, 7, 12], [0, 3, 31, 0, 99, 11]
    rounds = []

    def succeed(asked):
        rounds.append(asked)
        return [k >= shortest[place] for place, k in asked]

    found = shortest_prefixes(succeed, lengths)
    alone = [
        shortest_prefix(lambda k, least=least: k >= least, length)
        for length, least in zip(lengths, shortest, strict=True)
    ]
    assert found == alone == [0, 3, 31, 0, 7, 11]
    assert len(rounds) == 6 and all(len({place for place, _ in asked}) == len(asked) for asked in rounds)
    with pytest.raises(BadInput, match="-1 actions"):
        shortest_prefix(lambda k: True, -1)


# --- logs


def written(folder, rows):
    path = folder / "actions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_lists_are_read_from_logs_as_they_come(tmp_path):
    call = {"type": "function", "function": {"name": "visit", "arguments": '{"url": "b.org", "goal": "find it"}'}}
    block = '<tool_call>\n{"name": "search", "arguments": {"query": ["c", "d"]}}\n</tool_call><tool_call>{broken</tool_call>'
    log = read_actions(
        written(
            tmp_path,
            [
                {"id": 7, "actions": [{"name": "search", "arguments": {"query": "a"}}, {"name": "stop"}]},
                {"question": "Who?", "messages": [
                    {"role": "user", "content": '<tool_call>{"name": "no"}</tool_call>'},
                    {"role": "assistant", "tool_calls": [call, {"function": {"name": "x", "arguments": "{"}}]},
                    {"role": "tool", "content": "text"},
                    {"role": "assistant", "content": block},
                ]},
                {"id": "bad", "error": "timeout", "actions": []},
                {"id": "7", "actions": [{"name": "visit", "args": {"goal": "g", "url": "u"}}]},
                {"prompt": "Long?", "answer": "Veskole Bridge", "actions": [
                    {"name": "search", "arguments": {"query": "the VESKOLE  bridge, when"}},
                    {"name": "search", "arguments": {"query": "Veskole"}},
                    {"name": "visit", "arguments": {"urls": ["x", {"deep": "veskole bridge"}]}},
                ]},
            ],
        )
    )  # fmt: skip
    assert log.lists == {
        "7": ({"name": "visit", "arguments": {"url": "u"}},),
        "Who?": (
            {"name": "visit", "arguments": {"url": "b.org"}},
            {"name": "search", "arguments": {"query": ["c", "d"]}},
        ),
        "Long?": ({"name": "search", "arguments": {"query": "Veskole"}},),
    }
    assert (log.rows, log.errors, log.repeated, log.unreadable, log.leaks) == (5, 1, 1, 2, 2)
    problems = [
        Problem("7", "p", ("U",)),
        Problem("x", "Who?", ("d c",)),
        Problem("y", "Long?", ()),
        Problem("z", "?", ()),
    ]
    assert log.of(problems) == {"x": log.lists["Who?"], "y": log.lists["Long?"]}
    kept = read_actions(
        written(tmp_path, [{"id": "1", "actions": [{"name": "v", "arguments": {"goal": 1}}]}]), left_out=()
    )
    assert kept.lists["1"][0]["arguments"] == {"goal": 1}


def test_a_task_is_known_by_its_id_and_by_what_was_asked(tmp_path):
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "Where?"}]
    row = {"id": 3, "prompt": talk, "reward_model": {"style": "rule", "ground_truth": "Oslo"}}
    actions = [{"name": "search", "arguments": {"query": query}} for query in ("the rule", "Oslo")]
    log = read_actions(written(tmp_path, [row | {"actions": actions}]))
    assert log.of([Problem("other", "Where?", ()), Problem("3", "?", ())]) == {
        "other": (actions[0],),
        "3": (actions[0],),
    }
    assert (log.repeated, log.leaks) == (0, 1)
    assert set(read_actions(written(tmp_path, [{"id": 0, "actions": actions}])).lists) == {"0"}


def test_what_is_said_in_parts_is_read(tmp_path):
    def parts(*texts):
        return [{"type": "text", "text": text} for text in texts]

    talk = [{"role": "user", "content": parts("Wh", "ere?")}]
    said = parts("I look.", '<tool_call>{"name": "look", "arguments": {}}</tool_call>')
    log = read_actions(written(tmp_path, [{"prompt": talk, "messages": [{"role": "assistant", "content": said}]}]))
    assert log.lists == {"Where?": ({"name": "look", "arguments": {}},)}


def test_only_whole_words_are_leaks():
    actions = [
        {"name": "s", "arguments": {"q": text, "n": 42}} for text in ("Paris", "comparison", "in  PARIS?", "pa ris")
    ]
    assert [each["arguments"]["q"] for each in without_leaks(actions, ["paris"])] == ["comparison", "pa ris"]
    assert without_leaks(actions, ["42"]) == () and len(without_leaks(actions, ["4", ""])) == 4


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"actions": []}, r"actions.jsonl:2: no id"),
        ({"id": "a"}, r":2: neither actions nor messages"),
        ({"id": "a", "actions": "left"}, r":2: actions is text 'left'"),
        ({"id": "a", "actions": [{"name": "x"}, {"arguments": {}}]}, r":2: action 1 is an object"),
        ({"id": "a", "actions": [{"name": "x", "arguments": "["}]}, r":2: action 0"),
        ({"question": ["x"], "actions": []}, r":2: question is a list, expected turns of a conversation"),
        ({"prompt": [{"role": "user", "content": 3}], "actions": []}, r":2: prompt is a list, expected turns"),
        ({"prompt": {"text": "x"}, "actions": []}, r":2: prompt is an object with text, expected a text"),
        *(
            ({"id": "a", "messages": [{"role": "assistant", "tool_calls": calls}]}, rf":2: tool_calls is {said}")
            for calls, said in (
                (5, "int 5"),
                ("x", "text 'x'"),
                ({"function": {"name": "x"}}, "an object with function"),
            )
        ),
    ],
)
def test_rows_of_another_form_are_refused_by_line(tmp_path, row, said):
    with pytest.raises(BadInput, match=said):
        read_actions(written(tmp_path, [{"id": "ok", "actions": act("x")}, row]))


def test_a_log_without_any_list_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no list of actions in its 2 rows, of which 1 say that they failed"):
        read_actions(written(tmp_path, [{"id": "a", "actions": []}, {"id": "b", "error": "x"}]))


# --- hints

SEARCH = [{"name": "search", "arguments": {"query": "Größe"}}, {"name": "stop", "arguments": {}}]


def test_hints_hold_the_prompt_and_the_actions_in_order():
    text = hinted("Who?", SEARCH)
    assert (
        text.startswith("Who?\n\n")
        and '\n1. search: {"query": "Größe"}\n2. stop: {}\n' in text
        and "incomplete" in text
    )
    talk = (Message("system", "s"), Message("user", "u"), Message("assistant", "a"), Message("user", "v"))
    shown = hinted(talk, SEARCH)
    assert shown[:3] == talk[:3] and shown[3].role == "user" and shown[3].content == "v" + text.removeprefix("Who?")
    assert hinted(talk, SEARCH, "prefill")[:4] == talk and hinted(talk, SEARCH, "prefill")[4].role == "assistant"
    assert "2. stop: {}" in hinted(talk, SEARCH, "prefill")[4].content and "stop" in hinted("Who?", SEARCH, "prefill")
    assert hinted("Who?", SEARCH, lambda prompt, actions: f"{len(actions)} {prompt}") == "2 Who?"
    assert hinted("Who?", [], "plan") == "Who?" and hinted(talk, (), "prefill") is talk
    with pytest.raises(BadInput, match="TEMPLATES has no 'plna'"):
        hinted("Who?", SEARCH, "plna")


# --- the batch without hints


class Steps:
    """Two turns, and a reply between them; what is worth what, `shape` says."""

    max_turns = 2

    def reset(self, seed):
        self.turn = 0
        return f"one {'two ' * (seed % 3)}three"

    def step(self, text):
        self.turn += 1
        return "Where was Kunwick born?", 0.0, self.turn == 2, {"success": True}


PROBLEMS = Playing(open_environment(Steps)).problems(range(5))
LISTS = {PROBLEMS[0].id: act("a", "b", "c"), PROBLEMS[2].id: act("a"), PROBLEMS[3].id: act("a", "b", "c", "d", "e")}


def letters(prompt, actions):
    return f"{' '.join(action['name'] for action in actions)} yes {prompt}"


def shown(model, rollouts):
    """Of each group how many actions were shown."""
    texts = [model.tokenizer.decode(prompt, skip_special_tokens=True) for prompt in rollouts.prompts]
    return [len(text.split(" yes ")[0].split()) if " yes " in text else 0 for text in texts]


@pytest.fixture(scope="module")
def small():
    return model()


@pytest.fixture(scope="module")
def double():
    return model(dtype=torch.float64)


def test_a_rebuilt_batch_differs_in_its_prompts_alone(small):
    firsts = [problem.prompt for problem in PROBLEMS[:3]]
    guided = play(
        small, Steps, range(3), samples=2, max_turns=2, max_new_tokens=4, temperature=0.8, seed=1,
        prompts=[letters(first, act("a", "b", "c")[:place]) for place, first in enumerate(firsts)],
    )  # fmt: skip
    plain, _ = encode_prompts(small, firsts)
    rebuilt = rebuild(guided, plain)
    assert rebuilt.prompts == tuple(map(tuple, plain)) and len(guided.prompts[2]) > len(plain[2])
    for name in ("ids", "mask", "log_probs", "owner", "turn"):
        assert torch.equal(getattr(rebuilt, name), getattr(guided, name))
    rows = [4, 0, 5]
    one, other = rebuilt.batch(rows), guided.batch(rows)
    for name in ("response", "mask", "present"):
        assert torch.equal(one[name], other[name])
    assert one["attention_mask"].sum() < other["attention_mask"].sum() and (one["mask"] < one["present"]).any()
    scores = stages.score_responses(small.model, one, temperature=0.8)
    for line, row in enumerate(rows):  # each row alone, from its first real token on
        ids = [*plain[row // 2], *guided.ids[row][guided.present[row]].tolist()]
        with torch.no_grad():
            logits = small.model(torch.tensor([ids])).logits[0, len(plain[row // 2]) - 1 : -1] / 0.8
        expected = (
            logits.log_softmax(-1).gather(-1, torch.tensor(ids[len(plain[row // 2]) :]).unsqueeze(-1)).squeeze(-1)
        )
        mask = guided.mask[row][: len(expected)]
        assert_close(scores.log_probs[line][: len(expected)][mask], expected[mask], rtol=1e-4, atol=1e-4)
        assert (scores.log_probs[line][: len(expected)][~mask] == 0).all()
    with pytest.raises(BadInput, match="2 prompts for 3 groups"):
        rebuild(guided, plain[:2])


# --- the ratio


def test_the_importance_identity_by_enumeration():
    """Three tokens: the gradient expected under the hint is the one without it; neither swapped nor uncorrected it is."""
    plain = torch.tensor([0.3, -0.5, 1.1], dtype=torch.float64, requires_grad=True)
    hinted_log = torch.tensor([2.0, 0.1, -1.0], dtype=torch.float64).log_softmax(-1)
    advantages = torch.tensor([1.0, -0.7, 0.4], dtype=torch.float64)
    mask = torch.ones(3, 1, dtype=torch.bool)

    def gradient(learnt, behavior, weight):
        losses, _ = replay.clipped_tokens(
            learnt.unsqueeze(-1), behavior.unsqueeze(-1), learnt.detach().unsqueeze(-1), advantages, mask,
            clip_low=1 - 1e-12, clip_high=1e9,
        )  # fmt: skip
        (found,) = torch.autograd.grad((weight.unsqueeze(-1) * losses).sum(), plain)
        return found

    log = plain.log_softmax(-1)
    (expected,) = torch.autograd.grad(-(log.exp() * advantages).sum(), plain)  # of the expected advantage itself
    log = plain.log_softmax(-1)
    behavior = hinted_log.exp()
    assert_close(gradient(log, hinted_log, behavior), expected)
    log = plain.log_softmax(-1)
    uncorrected = gradient(log, log.detach(), behavior)
    log = plain.log_softmax(-1)
    swapped = gradient(-log, -hinted_log, behavior)
    assert min((each - expected).abs().max() for each in (uncorrected, swapped)) > 0.05


def batch_loss(language_model, made, step):
    """As the loop makes it, of all rows at once."""
    step = stages.weigh(made, step)
    old = None if made.updates == 1 else step.rollouts.log_probs
    batch = stages.policy_batch(step, range(len(step.rollouts.ids)), old=old)
    total, weight = stages.policy_objective(made, [])(language_model.model, batch)
    return float(total.detach() / weight), step


SETTINGS = {
    "prompts_per_step": 5,
    "num_generations": 4,
    "max_new_tokens": 4,
    "steps": 2,
    "learning_rate": 1e-3,
    "seed": 3,
}


def guidance(**settings):
    """A stage whose rewards are 1 for every other response with at least two actions shown, or to problem 1 and 4."""
    language_model = settings.pop("of")

    def shape(rollouts):
        by_group = []
        for k, first in zip(shown(language_model, rollouts), rollouts.episodes[:: rollouts.samples], strict=True):
            reached = k >= LEAST.get(first.seed, 0)
            by_group.append([float(reached and sample % 2 == 1) for sample in range(rollouts.samples)])
        return torch.tensor(by_group, device=rollouts.ids.device).flatten()

    playing = Playing(open_environment(Steps), shape=shape)
    return Guided(playing, **{"actions": LISTS, "template": letters, **settings})


LEAST = {0: 2, 2: 1, 3: 4}  # actions that the problem takes; 1 and 4 are solved without any


def sampled(language_model, places=range(5), made=None, **settings):
    made = made or recipe("grpo", **SETTINGS)
    stage = guidance(of=language_model, **settings)
    problems = [PROBLEMS[place] for place in places]
    return stage(language_model, made, problems, [10 + place for place in places], no_reward, 0)


@pytest.fixture
def calls(monkeypatch):
    """What was played: the hints of each call, samples, and tokens."""
    noted = []
    played = Playing.play

    def play(self, language_model, problems, **how):
        rollouts = played(self, language_model, problems, **how)
        noted.append((shown(language_model, rollouts), rollouts.samples, int(rollouts.mask.sum())))
        return rollouts

    monkeypatch.setattr(Playing, "play", play)
    return noted


def test_hard_groups_are_searched_and_replaced(small, calls):
    step = sampled(small)
    hints, samples, tokens = zip(*calls, strict=True)
    # lengths 3, 1, 5: rounds of bisection ask 1, 0, 2; then 2 and 4; the group of problem 3 then needs 3 -> asked as well
    assert hints[0] == [0] * 5 and samples == (4, 2, 2, 2, 4)
    assert hints[1:4] == ([1, 0, 2], [2, 4], [3]) and hints[4] == [2, 1, 4]
    assert step.off_policy.tolist() == [True, False, True, True, False]
    plain, _ = encode_prompts(small, [problem.prompt for problem in PROBLEMS])
    assert step.rollouts.prompts == tuple(map(tuple, plain))
    assert step.rewards.tolist() == [[0, 1, 0, 1]] * 5
    notes = {name: each.tolist() for name, each in step.notes.items()}
    assert notes["hard"] == [1, 0, 1, 1, 0] and notes["guided"] == [1, 0, 1, 1, 0]
    nan = float("nan")
    assert notes["hint_length"] == pytest.approx([2, nan, 1, 4, nan], nan_ok=True)
    assert notes["hint_share"] == pytest.approx([2 / 3, nan, 1, 0.8, nan], nan_ok=True)
    assert notes["rescued"] == pytest.approx([1, nan, 1, 1, nan], nan_ok=True)
    assert notes["unguided_reward"] == [0, 0.5, 0, 0, 0.5]
    assert sum(notes["probe_tokens"]) == sum(tokens[1:4])
    assert sum(notes["probe_tokens"]) + sum(notes["replaced_tokens"]) + int(step.rollouts.mask.sum()) == sum(tokens)
    assert min(notes["probe_tokens"][0], notes["replaced_tokens"][3]) > 0 == notes["replaced_tokens"][1]


def test_a_task_yields_the_same_alone_and_in_company(small):
    whole = sampled(small)
    for places in ([3], [4, 0]):
        part = sampled(small, places)
        taken = whole.rollouts.take(places)
        width = min(part.rollouts.ids.shape[1], taken.ids.shape[1])
        assert torch.equal(part.rollouts.ids[:, :width], taken.ids[:, :width])
        assert_close(part.rollouts.log_probs[:, :width], taken.log_probs[:, :width])
        for name, each in part.notes.items():
            assert_close(each, whole.notes[name][places], equal_nan=True, rtol=1e-4, atol=1e-5)


def test_the_loss_divides_by_the_probability_with_the_hint(double):
    """By hand from the model's logits; swapped, or as if there had been no hint, it is another."""
    made = recipe("grpo", **SETTINGS, aggregate="token-mean")
    found, step = batch_loss(double, made, sampled(double, made=made))
    assert step.rollouts.log_probs.dtype == torch.float64

    def by_hand(of_ratio):
        total = count = 0
        rolled, samples = step.rollouts, 4
        for row in range(len(rolled.ids)):
            prompt, ids = list(rolled.prompts[row // samples]), rolled.ids[row][rolled.present[row]]
            with torch.no_grad():
                logits = double.model(torch.tensor([prompt + ids.tolist()])).logits[0, len(prompt) - 1 : -1]
            plain = logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
            advantage = step.advantages[row // samples, row % samples]
            log_ratio = plain - rolled.log_probs[row][: len(ids)]
            ratio = of_ratio(log_ratio).exp() if step.off_policy[row // samples] else torch.ones_like(log_ratio)
            losses = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
            mask = rolled.mask[row][: len(ids)]
            total, count = total + losses[mask].sum(), count + mask.sum()
        return float(total / count)

    assert found == pytest.approx(by_hand(lambda log_ratio: log_ratio), abs=1e-9)
    uncorrected, _ = batch_loss(double, made, sampled(double, made=made, correction="none"))
    assert uncorrected == pytest.approx(by_hand(torch.zeros_like), abs=1e-9)
    swapped = by_hand(lambda log_ratio: -log_ratio)
    assert min(abs(found - swapped), abs(found - uncorrected)) > 1e-3


def test_log_ratios_by_hand():
    log_probs = torch.tensor([[-1.0, -2.0, 9.0], [-1.0, -1.0, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    behavior = torch.tensor([[-2.0, -2.0, 0.0], [-1.0, -0.5, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]]).bool()
    found = log_ratios(log_probs, behavior, torch.tensor([[0.5, -0.5], [0.0, 0.0]]), mask)
    assert_close(found["hint_log_ratio"], torch.tensor([0.5 / 5, 0.0]).double())
    assert_close(found["hint_log_ratio_variance"], torch.tensor([1.25 / 5 - 0.01, 0.0]).double())
    assert_close(found["hint_weight_variance"], torch.tensor([0.75**2, 0.0]).double())  # of 1 and -1/2
    assert_close(found["hint_clipped"], torch.tensor([2 / 5, 0.0]).double())  # e > 1.2, and e^-1/2 < 0.8


def test_an_empty_hint_is_no_hint(small):
    """A template that shows nothing: the ratio is 1 on every token; and k = 0 shows no template at all."""
    step = sampled(small, template=lambda prompt, actions: prompt, always=True, length="full")
    assert step.off_policy.tolist() == [True, False, True, True, False]
    for name in ("hint_log_ratio", "hint_log_ratio_variance", "hint_weight_variance", "hint_clipped"):
        assert_close(step.notes[name].nan_to_num(), torch.zeros(5), rtol=0, atol=1e-4)
    none = sampled(small, length="fixed", fixed=1, k_offset=-1)
    assert none.off_policy.tolist() == [False] * 5 and none.notes["guided"].tolist() == [0] * 5
    assert none.notes["hint_length"].nansum() == 0 and none.notes["hard"].tolist() == [1, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [
        ({"length": "full"}, [3, 1, 5]),
        ({"length": "fixed", "fixed": 2}, [2, 1, 2]),
        ({"length": "ratio", "ratio": 0.5}, [2, 1, 3]),
        ({"length": "ratio", "ratio": 0.2}, [1, 1, 1]),
        ({"length": "search", "k_offset": 1}, [3, 1, 5]),
        ({"length": "search", "k_offset": -1}, [1, 0, 3]),
        ({"always": True, "length": "full"}, [3, 1, 5]),
        ({"always": True, "length": "search"}, [2, 1, 4]),
    ],
)
def test_lengths_of_hints(small, calls, settings, lengths):
    sampled(small, **settings)
    assert calls[-1][0] == lengths
    if settings.get("always"):  # those without a list alone are played without a hint, once
        assert calls[0][:2] == ([0, 0], 4)


def test_the_hint_stays_where_it_is_to_be_kept(small):
    step = sampled(small, correction="kept")
    assert step.off_policy is None and shown(small, step.rollouts) == [2, 0, 1, 4, 0]
    ratio = sampled(small)
    assert torch.equal(step.rollouts.ids, ratio.rollouts.ids)
    assert_close(step.notes["hint_log_ratio"], ratio.notes["hint_log_ratio"], equal_nan=True)
    without = sampled(small, correction="none")
    assert without.off_policy is None and without.rollouts.prompts == ratio.rollouts.prompts
    mean = without.rollouts.log_probs.view(5, -1).sum(-1) - ratio.rollouts.log_probs.view(5, -1).sum(-1)
    tokens = ratio.rollouts.mask.view(5, -1).sum(-1)
    assert_close((mean / tokens)[[0, 2, 3]], ratio.notes["hint_log_ratio"][[0, 2, 3]], rtol=1e-4, atol=1e-4)
    assert mean[[1, 4]].tolist() == [0, 0] and mean[0].abs() > 1e-3


def test_successful_probes_can_fill_the_group(small, calls):
    step = sampled(small, top_up=True)
    # Problems 0 and 3 have a probe that succeeded with their k; problem 2's k is its whole list, which is never probed.
    assert [call[:2] for call in calls[4:]] == [([2, 4], 3), ([1], 4)]
    spent = sum(call[2] for call in calls)
    beside = sum(float(step.notes[name].sum()) for name in ("probe_tokens", "replaced_tokens"))
    assert beside + int(step.rollouts.mask.sum()) == spent and step.off_policy.tolist() == [
        True,
        False,
        True,
        True,
        False,
    ]
    assert step.rollouts.samples == 4 and len(step.rollouts.ids) == 20 and len(step.rollouts.prompts) == 5
    ids = {tuple(row.tolist()) for row in step.rollouts.ids[0:4]}
    plain = sampled(small).rollouts.take([0])
    width = min(plain.ids.shape[1], step.rollouts.ids.shape[1])
    new = {tuple(row[:width].tolist()) for row in plain.ids[:3]}  # the same draws as without probes
    assert len({row[:width] for row in ids} & new) == 3


def test_hints_can_be_left_out_at_random(small):
    stage, made = guidance(of=small, dropout=0.3), recipe("grpo", **SETTINGS)
    offered = [[stage._offered(made, problem, key) for problem in PROBLEMS] for key in range(200)]
    counts = torch.tensor(offered).sum(0)
    assert counts[[1, 4]].tolist() == [0, 0] and (counts[[0, 2, 3]] - 140).abs().max() < 26
    assert sampled(small, [0, 3], dropout=1.0).off_policy.tolist() == [False] * 2


def test_groups_share_no_statistics(small):
    step = stages.weigh(recipe("grpo", **SETTINGS), sampled(small))
    alone = stages.weigh(recipe("grpo", **SETTINGS), sampled(small, [1, 4]))
    assert torch.equal(step.advantages[[1, 4]], alone.advantages)
    equal_rewards = replace(step, rewards=torch.tensor([[0.0] * 4, [0, 1, 0, 1], [1.0] * 4, [0.3] * 4, [1, 0, 0, 0]]))
    found = stages.weigh(recipe("grpo", **SETTINGS), equal_rewards).advantages
    assert (found[[0, 2, 3]] == 0).all() and (found[[1, 4]].abs() > 0.4).all()
    assert_close(found.sum(-1), torch.zeros(5), atol=1e-6, rtol=0)


# --- in the loop


def trained(stage, how=None, **settings):
    language_model = model()
    made = recipe("grpo", **{**SETTINGS, **settings})
    ready, seen = prepare(language_model, made), []
    stage = stage(language_model) if callable(stage) and not isinstance(stage, Playing) else stage
    result = train(
        ready,
        made,
        PROBLEMS,
        no_reward,
        sample=stage,
        **{"callbacks": [lambda state: seen.append(state.metrics)], **(how or {})},
    )
    return weights(ready.model), seen, result


def test_without_lists_it_is_grpo_bit_for_bit():
    batch_size = 8
    plain, logged, _ = trained(lambda language_model: guidance(of=language_model).playing, batch_size=batch_size)
    empty, _, _ = trained(
        lambda language_model: guidance(of=language_model, actions={PROBLEMS[0].id: []}), batch_size=batch_size
    )
    easy, more, _ = trained(
        lambda language_model: guidance(of=language_model, hard_threshold=-1.0), batch_size=batch_size
    )
    assert equal(plain, empty) and equal(plain, easy)
    assert (
        more[0]["hard"] == 0
        and "hard" not in logged[0]
        and more[0]["generated_tokens"] == logged[0]["generated_tokens"]
    )
    guided, _, _ = trained(lambda language_model: guidance(of=language_model), batch_size=batch_size)
    assert not equal(plain, guided)


def test_every_token_is_counted_and_a_run_goes_on_where_it_was(calls, tmp_path):
    saved = []
    whole, logged, result = trained(
        lambda language_model: guidance(of=language_model), how={"save": saved.append, "save_every": 1}
    )
    written = sum(call[2] for call in calls)
    assert result.generated_tokens == written == sum(each["generated_tokens"] for each in logged)
    assert logged[0]["probe_tokens"] > 0 and logged[0]["hint_length"] > 0 and logged[0]["zero_advantage"] + 1 > 0
    language_model = model()
    made = recipe("grpo", **SETTINGS)
    stage = guidance(of=language_model)

    def stop(state):
        return state.done == 1

    first = []
    train(
        prepare(language_model, made),
        made,
        PROBLEMS,
        no_reward,
        sample=stage,
        callbacks=[stop],
        save=first.append,
        save_every=1,
    )
    state = copied(first[-1] | {"stopped": False}, tmp_path)
    again = train(prepare(language_model, made), made, PROBLEMS, no_reward, sample=stage, state=state)
    assert equal(weights(language_model.model), whole) and again.generated_tokens == written


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length": "serach"}, "length"),
        ({"correction": "off"}, "correction"),
        ({"ratio": 0.0}, r"ratio 0.0"),
        ({"probe_rollouts": 0}, "probe_rollouts 0"),
        ({"dropout": 1.5}, "dropout 1.5"),
        ({"top_up": True, "length": "full"}, "top_up uses the probes"),
    ],
)
def test_bad_settings(small, settings, said):
    with pytest.raises(BadInput, match=said):
        guidance(of=small, **settings)


def test_what_cannot_be_guided_is_refused_before_the_first_step(small):
    stage = guidance(of=small)
    for made, said in (
        (recipe("remax", **{**SETTINGS, "num_generations": 1}), "num_generations=1"),
        (recipe("remax", **SETTINGS), "greedy"),
        (recipe("apo", **SETTINGS), "anchored"),
        (recipe("grpo", **SETTINGS, replay=0.4), "replay"),
        (recipe("r2po", **{**SETTINGS, "steps": 30}), "rollout head"),
    ):
        with pytest.raises(BadInput, match=said):
            stage.check(small, made, PROBLEMS)
    stage.check(small, recipe("grpo", **SETTINGS), PROBLEMS)
    long = guidance(of=small, actions={PROBLEMS[3].id: act("a") * 200})
    with pytest.raises(BadInput, match=f"with the hint of '{PROBLEMS[3].id}'"):
        long.check(small, recipe("grpo", **SETTINGS), PROBLEMS)


def test_purposes_of_random_numbers_are_apart():
    assert len({guiding._UNGUIDED, guiding._GUIDED, guiding._PROBES, guiding._DROPPED, 5}) == 5


def test_a_kl_in_the_reward_is_refused_where_the_log_probabilities_are_those_with_the_hint(small):
    """A policy that is its reference would be charged for the hint: the KL of what it learns is 0."""
    made = recipe("reinforce++", **SETTINGS, kl_beta=0.1, kl_in="reward")
    with pytest.raises(BadInput, match=r"guidance does not go together with kl_in='reward'.*use kl_in='loss'"):
        sampled(small, made=made)
    step = sampled(small, made=made, correction="none")  # whose log-probabilities are those without
    plain = stages.score_rollouts(small.model, step.rollouts, temperature=made.temperature).log_probs
    charged = rewards_of_tokens(replace(step, reference_log_probs=plain), made)
    assert_close(charged.sum(dim=-1), step.rewards.flatten(), atol=1e-4, rtol=0)
