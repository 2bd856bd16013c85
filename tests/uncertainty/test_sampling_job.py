"""The audit of a sampler as a job: what it says of known samplers, and that a kill changes nothing."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from chat_models import untaught
from equipoise.chat.calls import Reply, ToldToken
from equipoise.core.errors import BadInput
from equipoise.core.shares import Bounded, shown
from equipoise.uncertainty import sampling_auditing
from equipoise.uncertainty.sampling_auditing import Observed, Way, summarise
from equipoise.uncertainty.sampling_bounds import bounded_measures, slot_bounds
from equipoise.uncertainty.sampling_fidelity import FOLLOWS_NOT, MEASURES, measures
from equipoise.uncertainty.sampling_job import audit_sampling
from equipoise.uncertainty.sampling_result import BATCH, SINGLE, SamplingAudit
from equipoise.uncertainty.sampling_task import SamplingTask

EXTREME = SamplingTask(("1", "2", "3", "4"), (0.1, 0.7, 0.1, 0.1))


def way(protocol=BATCH, values=40, sequences=12):
    return Way(1, protocol, 1, EXTREME, "", values, sequences)


def streams(peaky, sequences=12, values=40, leak=0.0):
    rng = np.random.default_rng(0)
    made = []
    for _ in range(sequences):
        draws = rng.choice(4, p=EXTREME.target, size=values)
        p = np.eye(4)[draws] if peaky else np.tile(EXTREME.target, (values, 1))
        made.append(Observed((1 - leak) * np.maximum(p, 1e-12) / (1 + 3e-12), draws, 0, ""))
    return made


def test_known_samplers_are_told_apart_by_probabilities_and_not_by_results():
    flat, peaky = (summarise(streams(peaky), way(), np.random.default_rng(1)) for peaky in (False, True))
    assert (flat.kind, peaky.kind) == ("E", "D")
    assert flat.measures["a_token"].value == pytest.approx(0, abs=1e-9)
    missed = 1 - np.array(EXTREME.target)[np.concatenate([each.draws for each in streams(True)])]
    assert peaky.measures["a_token"].value == pytest.approx(missed.mean(), abs=1e-9)
    spread = missed.reshape(12, 40).mean(axis=1).std(ddof=1) / 12**0.5  # over sequences, not over slots
    width = peaky.measures["a_token"].upper - peaky.measures["a_token"].lower
    assert width == pytest.approx(2 * stats.t.ppf(0.975, 11) * spread, rel=1e-6)
    assert flat.measures["a_result"] == peaky.measures["a_result"]
    assert flat.chance == peaky.chance == "as good as independent draws"
    assert flat.independent.value == pytest.approx(flat.own.value, rel=0.05)
    assert flat.slots == flat.asked == 480 and flat.parsed == 1 and sum(flat.counts) == 480
    assert summarise(streams(False, leak=0.3), way(), np.random.default_rng(1)).kind == FOLLOWS_NOT


@pytest.mark.parametrize("sequences", [1, 2, 8])
def test_intervals_of_few_sequences_are_students(sequences):
    rng = np.random.default_rng(3)
    made = [
        Observed(rng.dirichlet(9 * np.array(EXTREME.target), 20), rng.integers(0, 4, 20), 0, "")
        for _ in range(sequences)
    ]
    told = summarise(made, way(values=20, sequences=sequences), rng)
    values = [measures(each.probabilities, EXTREME.target).step for each in made]
    found = told.measures["step"]
    assert found.value == pytest.approx(np.mean(values))
    if sequences == 1:
        assert all(math.isnan(each.lower) and math.isnan(each.upper) for each in told.measures.values())
    else:
        half = stats.t.ppf(0.975, sequences - 1) * np.std(values, ddof=1) / sequences**0.5
        assert (found.lower, found.upper) == pytest.approx((max(found.value - half, 0), min(found.value + half, 1)))
    assert math.isnan(told.slope.lower) and not math.isnan(told.slope.value)
    audit = SamplingAudit("m", "t", EXTREME.target, EXTREME.symbols, 1.0, "read", {BATCH: told}, (told,))
    assert ("no intervals" in audit.headline()) == (sequences == 1)
    assert audit.page(Path()) is not None


def test_slopes_of_enough_sequences_have_an_interval():
    told = summarise(streams(True), way(), np.random.default_rng(1))
    assert told.slope.lower <= told.slope.value <= told.slope.upper


def test_one_sequence_of_a_server_keeps_what_its_measures_can_be():
    open_slots = tuple(slot_bounds({"1": math.log(0.1), "2": math.log(0.6)}, EXTREME.symbols) for _ in range(5))
    told = summarise([Observed(np.zeros((0, 4)), np.ones(5, int), 0, "", open_slots)], way(values=5, sequences=1),
                     np.random.default_rng(0))  # fmt: skip
    lower, upper, leak = (np.array([each[part] for each in open_slots]) for part in range(3))
    least, most = bounded_measures(lower, upper, leak, EXTREME.target)
    for name in ("a_token", "leak", "e_score", "bias"):
        found = told.measures[name]
        assert math.isnan(found.value) and (found.lower, found.upper) == (getattr(least, name), getattr(most, name))


def test_single_values_are_tested_together():
    fair = [Observed(np.array([EXTREME.target]), np.array([d]), 0, "") for d in [1] * 28 + [0, 2, 3] * 4]
    told = summarise(fair, way(SINGLE, 1, 40), np.random.default_rng(2))
    assert told.p > 0.9 and told.counts == (4, 28, 4, 4) and told.measures["a_result"].value == pytest.approx(0)
    assert told.independent.value == pytest.approx(0.5 * math.sqrt(2 / math.pi / 40) * (3 * 0.3 + 0.21**0.5), rel=0.05)
    off = [Observed(np.array([EXTREME.target]), np.array([0]), 0, "")] * 40
    told = summarise(off, way(SINGLE, 1, 40), np.random.default_rng(2))
    assert told.p < 0.001 and told.chance == "worse than independent draws" and math.isnan(told.slope.value)


COIN = SamplingTask(("1", "2"), (0.5, 0.5))


def coins(count):
    p = np.array([[0.98, 0.02], [0.02, 0.98]])
    made = [Observed(p[[i % 2]], np.array([i % 2]), 0, "") for i in range(count)]
    return summarise(made, Way(1, SINGLE, 1, COIN, "", 1, count), np.random.default_rng(2))


def test_single_values_that_differ_are_right_in_their_mean():
    told = coins(200)
    found = {name: each.value for name, each in told.measures.items()}
    assert told.kind == "undefined" and told.means == pytest.approx((0.5, 0.5))
    assert found["a_token"] == pytest.approx(0.48) and found["a_mean"] == pytest.approx(0, abs=1e-12)
    assert found["bias"] == pytest.approx(0, abs=1e-12) and found["dispersion"] == pytest.approx(2 * 0.48**2)
    assert told.measures["a_mean"].upper == pytest.approx(1.96 * 0.48 / 200**0.5, rel=0.1)
    assert told.measures["a_mean"].lower == told.measures["bias"].lower == told.measures["a_result"].lower == 0
    assert told.temperature == 50 and told.warm == {}
    few = coins(6).measures
    assert math.isnan(few["a_mean"].lower) and math.isnan(few["bias"].upper) and math.isnan(few["a_result"].upper)


def test_single_values_of_a_server_are_bounded_together():
    told = [slot_bounds({"1": math.log(a), "2": math.log(b)}, COIN.symbols) for a, b in ((0.9, 0.05), (0.05, 0.9)) * 6]
    made = [Observed(np.zeros((0, 2)), np.array([i % 2]), 0, "", (each,)) for i, each in enumerate(told)]
    found = summarise(made, Way(1, SINGLE, 1, COIN, "", 1, 12), np.random.default_rng(0))
    least, most = bounded_measures(*(np.array([each[part] for each in told]) for part in range(3)), COIN.target)
    for name in ("a_mean", "bias", "dispersion"):
        assert (found.measures[name].lower, found.measures[name].upper) == (getattr(least, name), getattr(most, name))
    assert found.measures["bias"].upper < 0.1 and found.kind == "undefined"


def test_single_values_alone_are_advised_of():
    def advice(share):
        p = np.array([[(1 - share) / 3, share, (1 - share) / 3, (1 - share) / 3]])
        drawn = np.random.default_rng(1).choice(4, p=p[0], size=200)
        each = [Observed(p, np.array([d]), 0, "") for d in drawn]
        found = summarise(each, way(SINGLE, 1, 200), np.random.default_rng(2))
        return SamplingAudit("m", "t", EXTREME.target, EXTREME.symbols, 1.0, "read", {SINGLE: found}, (found,)).advice()

    assert "can be used" in advice(0.7) and "can be used" not in advice(0.97) and "No slots" not in advice(0.97)


BIASED = SamplingTask(("1", "2"), (0.2, 0.8))


def audited(p, drawn_from, *, temperature=1.0, slots="read", task=BIASED, missed=0.0):
    """24 lists of 50 slots that all have these probabilities, and draws from others; a part of them is no symbol."""
    rng = np.random.default_rng(4)
    made = []
    for _ in range(24):
        draws = np.where(rng.random(50) < missed, -1, rng.choice(2, 50, p=drawn_from))
        made.append(Observed(np.tile(p, (50, 1)), draws, 0, ""))
    found = summarise(made, Way(1, BATCH, 1, task, "", 50, 24), np.random.default_rng(1), temperature)
    return SamplingAudit("m", "t", task.target, task.symbols, temperature, slots, {BATCH: found}, (found,))


def test_a_temperature_is_advised_and_confirmed_where_slots_are_set():
    q = np.array(BIASED.target)
    p = q**2 / (q**2).sum()  # at temperature 2 it is the target
    cold = audited(p, p, slots="set")
    assert cold.main.temperature == pytest.approx(2) and "At temperature 2" in cold.advice()
    for slots in ("set", "read"):
        there = audited(p, q, temperature=2.0, slots=slots)
        assert there.main.drawing["a_token"] == pytest.approx(0, abs=1e-9) and there.main.drawing_kind == "E"
        assert there.advice() == "At temperature 2 it can be used as a sampler of this target."
        assert there.main.own.value == pytest.approx(there.main.independent.value, rel=0.1)
        assert there.measure("a_token") == audited(p, p).measure("a_token")  # the model's own, whatever the draws
    for worse in (audited(p, q, temperature=2.0, missed=0.4), audited(p, p, temperature=2.0, slots="set")):
        assert "can be used" not in worse.advice() and "audit it there" not in worse.advice()
    assert "At temperature 1 " in audited(q, np.sqrt(q) / np.sqrt(q).sum(), temperature=2.0).advice()
    assert audited(p, np.array([0.0, 1.0]), temperature=0.0).main.drawing["a_token"] == pytest.approx(0.2)


def test_no_temperature_is_advised_whose_leak_is_unknown():
    logits = np.zeros(49152)
    logits[:2] = 15 + np.log([0.2**2, 0.8**2])
    p = np.exp(logits - np.logaddexp.reduce(logits))[:2]
    found = audited(p, p / p.sum())
    assert found.main.temperature == pytest.approx(2) and found.measure("leak").value < 0.05
    hot = np.exp(logits / 2 - np.logaddexp.reduce(logits / 2))
    assert hot[2:].sum() > 0.9 and math.isnan(found.main.warm["leak"]) and "At temperature" not in found.advice()

    root = np.sqrt(BIASED.target) / np.sqrt(BIASED.target).sum()  # at temperature 0.5 it is the target
    for leak, advised in ((0.1, True), (0.5, False)):
        found = audited((1 - leak) * root, root)
        expected = leak**2 / (leak**2 + (((1 - leak) * root) ** 2).sum())
        assert found.main.warm["leak"] == pytest.approx(expected) and (expected <= 0.2) == advised
        every = np.concatenate([(1 - leak) * root, np.full(7, leak / 7)]) ** 2  # however the rest is divided, no more
        assert every[2:].sum() / every.sum() <= expected
        assert ("At temperature 0.5" in found.advice()) == advised


def test_an_end_of_the_searched_temperatures_is_never_advised():
    found = audited([0.9, 0.1], [0.9, 0.1], slots="set", task=COIN)
    assert found.main.temperature == 50 and found.main.warm == {} and "At temperature" not in found.headline()


@pytest.fixture(scope="module")
def asked():
    """An untaught model, of which little is asked."""
    target = {"symbols": ["yes", "no"], "target": [0.3, 0.7], "templates": ["{target}", "{symbols} {count}"]}
    return {"model": untaught(0, context=512), "target": target, "values": 3, "draws": 2, "slots": "set"}


def test_a_killed_audit_goes_on_to_the_same_result(asked, tmp_path, monkeypatch):
    whole = audit_sampling(**asked, sequences=10, out=tmp_path / "whole")
    assert whole.main.slots == 60 and len(whole.conditions) == 5 and whole.whole[SINGLE].slots == 6
    written, count = sampling_auditing.sample, 0

    def killed(*args, **kwargs):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return written(*args, **kwargs)

    monkeypatch.setattr(sampling_auditing, "sample", killed)
    with pytest.raises(KeyboardInterrupt):
        audit_sampling(**asked, sequences=10, out=tmp_path / "again")
    again = audit_sampling(**asked, sequences=10, out=tmp_path / "again")
    assert count == 2 + 1 + 5  # 2 chunks for each list's wording, 1 for each of the 3 single ones, the killed one twice
    assert (tmp_path / "again" / "sequences.jsonl").read_bytes() == (
        tmp_path / "whole" / "sequences.jsonl"
    ).read_bytes()
    assert dataclasses.replace(again, folder=None) == dataclasses.replace(whole, folder=None)
    row = json.loads((tmp_path / "whole" / "sequences.jsonl").read_text().splitlines()[1])  # behind the model's weights
    assert len(row["sequences"]) == 8 and np.shape(row["sequences"][0]["probabilities"]) == (3, 2)


def test_what_is_stored_is_not_of_another_target(asked, tmp_path, monkeypatch):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sampling_auditing, "summarise", killed)
        with pytest.raises(KeyboardInterrupt):
            audit_sampling(**asked, sequences=2, out=tmp_path / "a")
    other = asked | {"target": asked["target"] | {"target": [0.7, 0.3]}}
    with pytest.raises(BadInput):
        audit_sampling(**other, sequences=2, out=tmp_path / "a")


def test_a_way_of_asking_does_not_depend_on_the_others(asked):
    both = audit_sampling(**asked, sequences=3)
    lists = audit_sampling(**asked | {"draws": 0}, sequences=3)
    told = [(c.means, c.counts, c.slots) for c in both.conditions if c.protocol == BATCH]
    assert told == [(c.means, c.counts, c.slots) for c in lists.conditions]
    assert list(lists.whole) == [BATCH]


def made(**changes):
    measures = {name: Bounded(0.05, 0.04, 0.06) for name in MEASURES} | {"e_score": Bounded(0.9, 0.8, 0.95)}
    nothing = Bounded(math.nan, math.nan, math.nan)
    condition = summarise(streams(False), way(), np.random.default_rng(0))
    condition = dataclasses.replace(condition, measures=measures, independent=Bounded(0.05, 0.04, 0.06), slope=nothing)
    condition = dataclasses.replace(condition, **changes)
    return SamplingAudit("m", "t", EXTREME.target, EXTREME.symbols, 1.0, "read", {BATCH: condition}, (condition,))


def test_what_is_advised_follows_from_what_was_found():
    assert "can be used" in made().headline()
    far = {**made().main.measures, "a_token": Bounded(0.4, 0.35, 0.45)}
    assert "keep the quota" in made(kind="D", measures=far, warm={"a_token": 0.3}).headline()
    warm = {"a_token": 0.05, "bias": 0.0, "leak": 0.1}
    assert "At temperature 0.5" in made(kind="mixed", measures=far, warm=warm, temperature=0.5).headline()
    assert "Draw outside" in made(kind=FOLLOWS_NOT, measures=far, warm={}).headline()
    assert "No slots" in made(kind="undefined", slots=0).headline()
    open_ended = {**made().main.measures, "a_token": Bounded(math.nan, 0.0, 0.6)}
    assert "more of the likeliest" in made(kind="undefined", measures=open_ended).headline()
    assert made(independent=Bounded(0.1, 0.09, 0.12)).main.chance == "too good for independent draws"
    found = made(slots=100, asked=480, parsed=0.5, unread=3).warnings()
    assert len(found) == 4 and "480" in found[0] and "50%" in found[1] and "3 values" in found[2] and "100" in found[3]


class Server:
    """Answers lists of its symbols; at each token tells the same likeliest ones, of which some may be left out."""

    def __init__(self, leave_out=()):
        self.leave_out, self.asked, self.rng = leave_out, [], np.random.default_rng(0)

    def __call__(self, messages, tools, choice, config):
        from inspect_ai.model import Logprob, Logprobs, ModelOutput, ModelUsage, TopLogprob

        self.asked.append((config.logprobs, config.top_logprobs, config.temperature))
        several = 20 if "20 values" in messages[-1].text else 1
        drawn = [EXTREME.symbols[i] for i in self.rng.choice(4, p=EXTREME.target, size=several)]
        pieces = [piece for each in drawn for piece in (each, ", ")][:-1]
        likeliest = [
            TopLogprob(token=symbol, logprob=math.log(0.96 * q))
            for symbol, q in zip(EXTREME.symbols, EXTREME.target, strict=True)
            if symbol not in self.leave_out
        ]
        told = {symbol: math.log(0.96 * q) for symbol, q in zip(EXTREME.symbols, EXTREME.target, strict=True)}
        if not self.leave_out:  # what is less likely than a token that is left out is left out, too
            likeliest.append(TopLogprob(token="x", logprob=math.log(0.04)))
        output = ModelOutput.from_content("mockllm", "".join(pieces))
        output.usage = ModelUsage(input_tokens=9, output_tokens=len(pieces))
        output.choices[0].logprobs = Logprobs(
            content=[
                Logprob(token=piece, logprob=told.get(piece, -5.0), top_logprobs=likeliest if piece != ", " else [])
                for piece in pieces
            ]
        )
        return output


def ask_server(server, **how):
    target = {"symbols": EXTREME.symbols, "target": EXTREME.target, "templates": ["{count} values of {target}"]}
    return audit_sampling(
        served="mockllm/model", served_args={"custom_outputs": server}, target=target, values=20, sequences=20, **how
    )


def test_a_server_that_tells_all_symbols_gives_numbers():
    pytest.importorskip("inspect_ai")
    server = Server()
    result = ask_server(server, draws=2)
    assert set(server.asked) == {(True, 20, 1.0)} and len(server.asked) == 20 + 3 * 2
    assert result.main.kind == "E" and result.main.slots == 400 and result.main.parsed == 1
    assert result.measure("a_token").value == pytest.approx(0, abs=1e-6) and result.measure("a_token").upper < 1e-6
    assert result.measure("leak").value == pytest.approx(0.04) and result.main.chance == "as good as independent draws"
    assert "can be used" in result.headline() and result.whole[SINGLE].slots == 6


def test_a_server_that_leaves_one_out_gives_bounds():
    pytest.importorskip("inspect_ai")
    result = ask_server(Server(leave_out=("4",)), draws=0)
    a_token = result.measure("a_token")
    assert math.isnan(a_token.value) and a_token.lower < 1e-6 < 0.02 < a_token.upper < 0.3
    assert "between" in result.headline() and list(result.whole) == [BATCH]


def test_told_tokens_survive_the_record(tmp_path):
    pytest.importorskip("inspect_ai")
    from equipoise.chat.account import Account
    from equipoise.chat.calls import Call
    from equipoise.chat.client import Chat
    from equipoise.chat.record import Record
    from equipoise.data.records import Message

    path, asked = tmp_path / "calls.jsonl", (Message("user", "20 values"),)
    calls = [Call(asked, "batch", likeliest=5), Call(asked, "batch")]
    arguments = {"custom_outputs": Server()}
    with Record(path) as record, Chat("mockllm/model", record=record, account=Account(), model_args=arguments) as chat:
        told, plain = chat.ask(calls)
    assert len(told.tokens) == 39 and told.tokens[0].likeliest[0] == ("1", math.log(0.96 * 0.1)) and plain.tokens == ()
    lines = path.read_text().splitlines()
    assert ["tokens" in json.loads(line) for line in lines[1:]].count(True) == 1
    with (
        Record(path, read_only=True) as record,
        Chat("mockllm/model", record=record, account=Account(), offline=True) as chat,
    ):
        assert chat.ask(calls) == [told, plain]


def test_a_summary_has_a_line_for_each_condition_between_its_warnings_and_the_headline():
    made = audited(np.array([0.3, 0.7]), np.array([0.3, 0.7]))
    other = dataclasses.replace(made.main, protocol=SINGLE, wording=3, symbols=("heads", "tails"))
    two = dataclasses.replace(made, conditions=(made.main, other))
    lines = two.summary()
    assert lines[: len(two.warnings())] == two.warnings() and lines[-1] == two.headline()
    first, second = lines[len(two.warnings()) : -1]
    measured = made.main.measures
    assert first.startswith(f"{BATCH}, wording 1, 1 2: {made.main.kind}; a_token ")
    assert second.startswith(f"{SINGLE}, wording 3, heads tails: ")
    assert first.split("; ")[-1] == made.main.chance
    at = [first.index(f"{name} {shown(measured[name])}") for name in ("a_token", "step", "e_score", "leak")]
    assert at == sorted(at) and measured["a_token"].value == pytest.approx(0.1)


def value(p, drawn):
    return Observed(np.array([p]), np.array([drawn]), 0, "")


def test_what_single_values_are_together_within_what_resampling_tells():
    """Nine of ten are the first symbol, of which a thousandth is asked for: the share of ten is off by 0.2 at most."""
    task = SamplingTask(("1", "2"), (0.001, 0.999))
    made = [value([1.0, 0.0], 0)] * 9 + [value([0.0, 1.0], 1)]
    found = summarise(made, Way(1, SINGLE, 1, task, "", 1, 10), np.random.default_rng(0)).measures
    for name in ("a_mean", "a_result"):
        assert (found[name].value, found[name].lower, found[name].upper) == pytest.approx((0.899, 0.699, 1.0)), name
    root = 2**0.5 * 0.899
    assert found["bias"].value == pytest.approx(root**2) and found["bias"].upper == 2.0
    assert found["bias"].lower == pytest.approx((root - 2**0.5 * 0.2) ** 2)
    spread = [2 * 0.1**2] * 9 + [2 * 0.9**2]
    half = stats.t.ppf(0.975, 9) * np.std(spread, ddof=1) / 10**0.5
    assert found["dispersion"].value == pytest.approx(0.18) and found["dispersion"].upper == pytest.approx(0.18 + half)
    few = summarise(made[1:], Way(1, SINGLE, 1, task, "", 1, 9), np.random.default_rng(0)).measures
    assert math.isnan(few["a_mean"].upper) and math.isnan(few["a_result"].upper) and math.isnan(few["bias"].lower)
    near = [value([0.002 - 0.0002 * (i % 2), 0.998 + 0.0002 * (i % 2)], 1) for i in range(12)]
    low = summarise(near, Way(1, SINGLE, 1, task, "", 1, 12), np.random.default_rng(0)).measures
    assert 0 < low["a_mean"].lower < low["a_mean"].value < low["a_mean"].upper < 0.002


def test_a_condition_of_three_sequences_by_hand():
    """Two slots each, the last sequence one alone and one value that is no symbol."""
    made = [
        Observed(np.array([[0.4, 0.4], [0.2, 0.6]]), np.array([0, 1]), 1, ""),
        Observed(np.array([[0.1, 0.9], [0.6, 0.2]]), np.array([1, 1]), 0, ""),
        Observed(np.array([[0.3, 0.1]]), np.array([-1]), 2, ""),
    ]
    task = SamplingTask(("1", "2"), (0.5, 0.5))
    told = summarise(made, Way(7, BATCH, 4, task, "", 2, 3), np.random.default_rng(0))
    assert (told.sequences, told.asked, told.slots, told.unread, told.wording) == (3, 6, 5, 3, 4)
    assert told.parsed == pytest.approx(0.8) and told.counts == (1, 3) and math.isnan(told.p)
    shares = np.array([[0.5, 0.5], [0.25, 0.75], [0.1, 0.9], [0.75, 0.25], [0.75, 0.25]])
    assert told.means == pytest.approx(shares.mean(axis=0))
    assert told.first == pytest.approx(abs((0.5 + 0.1 + 0.75) / 3 - 0.5))
    # By place, over the two sequences that have both: the means are (0.3, 0.7) and (0.5, 0.5).
    assert told.place == pytest.approx(2 * 0.1**2)
    assert told.drawing["leak"] == pytest.approx(0.2)
    assert told.measures["leak"].value == pytest.approx(np.mean([0.2, 0.1, 0.6]))
    single = summarise(made[2:], Way(7, SINGLE, 4, task, "", 1, 1), np.random.default_rng(0))
    assert math.isnan(single.place) and math.isnan(single.autocorrelation) and single.parsed == 0
    nothing = Observed(np.zeros((0, 2)), np.zeros(0, int), 1, "")
    none = summarise([nothing], Way(7, BATCH, 4, task, "", 2, 1), np.random.default_rng(0))
    assert none.slots == 0 and math.isnan(none.parsed) and none.means == () and none.counts == (0, 0)


def test_simulations_are_so_many(monkeypatch):
    asked = {}
    fidelity = sampling_auditing.fidelity
    own, resampled = fidelity.own_floor, sampling_auditing._resampled
    monkeypatch.setattr(fidelity, "own_floor", lambda *a, **how: asked.update(own=how) or own(*a, **how))
    monkeypatch.setattr(
        sampling_auditing, "_resampled", lambda *a, **how: asked.update(slope=how) or resampled(*a, **how)
    )
    summarise(streams(True), way(), np.random.default_rng(1))
    assert asked == {"own": {"repeats": 200}, "slope": {"repeats": 400}}
    rng = np.random.default_rng(0)
    drawn = resampled(10, rng)
    assert drawn.shape == (2000, 10) and (drawn.sum(axis=1) == 10).all() and resampled(9, rng).shape == (0, 9)
    assert sampling_auditing._middle([math.nan, *range(101)]) == pytest.approx((2.5, 97.5))
    assert all(map(math.isnan, sampling_auditing._middle([math.nan])))


def test_what_leaks_and_what_is_drawn_at_a_temperature():
    p = np.array([[0.4, 0.4], [0.9, 0.05]])
    assert math.isnan(sampling_auditing._most_leak(p, 1.01))
    assert sampling_auditing._most_leak(p, 1.0) == pytest.approx((0.2 + 0.05) / 2)
    half = [0.04 / (0.16 + 0.16 + 0.04), 0.0025 / (0.81 + 0.0025 + 0.0025)]
    assert sampling_auditing._most_leak(p, 0.5) == pytest.approx(np.mean(half))
    assert sampling_auditing._most_leak(np.array([[0.5, 0.5 + 1e-9]]), 0.5) == 0
    assert sampling_auditing._at(p, 0.0).tolist() == [[1, 0], [1, 0]]
    assert sampling_auditing._at(p, 0.5)[1] == pytest.approx([0.81 / 0.8125, 0.0025 / 0.8125])


def test_intervals_of_sequences_end_where_their_measure_does():
    def over(name, *values):
        given = [dataclasses.replace(sampling_auditing.fidelity.measures([[0.5, 0.5]], [0.5, 0.5]), **{name: each})
                 for each in values]  # fmt: skip
        return sampling_auditing._over_sequences(name, [(each, each) for each in given])

    assert (over("a_token", 0.0, 0.9).lower, over("a_token", 0.1, 1.0).upper) == (0.0, 1.0)
    assert over("bias", 0.0, 1.9).upper == 2.0 and over("bias", 0.0, 1.9).lower == 0.0
    assert over("entropy_ratio", 0.0, 3.0).upper > 3 and over("entropy_ratio", 0.0, 3.0).lower == 0.0
    assert over("e_score", -3.0, 1.0).lower < -3 and over("e_score", -3.0, 1.0).upper == 1.0


def test_ways_are_numbered_whether_they_are_asked_or_not():
    task = SamplingTask(("a", "b"), (0.5, 0.5), ("one", "two"), ("single",), renamings=(("c", "d"),))

    def ways(sequences, draws):
        request = SimpleNamespace(task=task, values=5, sequences=sequences, draws=draws)
        return list(sampling_auditing.Auditing._ways(request))

    found = [(w.number, w.protocol, w.wording, w.task.symbols[0], w.request, w.values, w.sequences) for w in ways(3, 4)]
    assert found == [
        (1, BATCH, 1, "a", "one", 5, 3),
        (2, BATCH, 2, "a", "two", 5, 3),
        (3, SINGLE, 1, "a", "single", 1, 4),
        (4, BATCH, 1, "c", "one", 5, 3),
        (5, BATCH, 2, "c", "two", 5, 3),
        (6, SINGLE, 1, "c", "single", 1, 4),
    ]
    assert [w.number for w in ways(0, 4)] == [3, 6] and [w.number for w in ways(3, 0)] == [1, 2, 4, 5]


def test_a_server_is_asked_for_so_many_tokens_by_samples_of_the_seed(monkeypatch):
    pytest.importorskip("inspect_ai")
    assert sampling_auditing._room(way(values=40)) == 40 * (1 + 3) + 32
    words = Way(1, BATCH, 1, SamplingTask(("no", "heads"), (0.5, 0.5)), "", 2, 1)
    assert sampling_auditing._room(words) == 2 * (5 + 3) + 32
    served = {"served": "mockllm/model", "served_args": {"custom_outputs": Server()}}
    fair = {"symbols": ["a", "b"], "target": [0.5, 0.5]}
    plan = audit_sampling.plan(**served, target=fair, values=4, sequences=2, draws=3)
    assert (plan.conditions, plan.sequences, plan.calls) == (6, 15, 15)
    assert plan.tokens == 3 * 2 * (4 * 4 + 32) + 3 * 3 * (4 + 32)
    asked = []

    def stopped(chat, calls, title):
        asked.extend(calls)
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling_auditing, "answers", stopped)
    with pytest.raises(KeyboardInterrupt):
        ask_server(Server(), draws=1, seed=3, likeliest=7, temperature=0.5)
    assert [call.sample for call in asked] == [*(3_000_000 + n for n in range(20)), 3_000_000, 3_000_000, 3_000_000]
    assert {(call.likeliest, call.temperature) for call in asked} == {(7, 0.5)}
    assert [call.max_tokens for call in asked] == [20 * 4 + 32] * 20 + [4 + 32] * 3


def test_what_a_server_s_tokens_tell_by_hand():
    def token(text, log_prob=-1.0, likeliest=()):
        return ToldToken(text, log_prob, likeliest)

    told = (("1", math.log(0.5)), ("2", math.log(0.25)))
    pieces = [token("1", math.log(0.5), told), token(", "), token("2", math.log(0.25), told), token(",4"), token(", 7")]
    found = sampling_auditing.told_sequence(
        way(values=3), Reply("1, 2,4, 7", "answered", tokens=(*pieces, token(", 1")))
    )
    assert found.draws.tolist() == [0, 1] and found.unread == 1 and found.text == "1, 2,4, 7"
    assert found.probabilities.shape == (0, 4) and len(found.told) == 2
    expected = slot_bounds(dict(told), EXTREME.symbols, "2")
    assert found.told[1].lower == pytest.approx(expected.lower) and found.told[1].leak == expected.leak


def test_an_audit_resamples_by_a_stream_of_its_seed(asked, monkeypatch):
    seen, whole = [], sampling_auditing.summarise

    def noted(sequences, way, generator, temperature):
        seen.append((way.number, way.protocol, generator.bit_generator.state["state"]["state"], len(sequences)))
        return whole(sequences, way, generator, temperature)

    monkeypatch.setattr(sampling_auditing, "summarise", noted)
    audit_sampling(**asked, sequences=3, seed=5)
    fresh = np.random.default_rng(np.random.SeedSequence([5, 1])).bit_generator.state["state"]["state"]
    assert seen[0][2] == fresh
    assert [(number, protocol, count) for number, protocol, _, count in seen[-2:]] == [(0, BATCH, 6), (0, SINGLE, 6)]
