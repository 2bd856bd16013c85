"""What is read of a prompt against transformers' own hidden states; a router saved, loaded, refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit

from chat_models import untaught
from equipoise import routing
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import seal
from equipoise.data.records import Message
from equipoise.language.encode import encode_prompts
from equipoise.routing import prompt_states
from equipoise.routing.logit_scores import entropy, logit_scores, top_variance
from equipoise.routing.router import Router, load, logits_of

TEXTS = ["yes", "Where was Mulum Kunwick born?", "one two three four", "no", "Norway? Oslo"]


@pytest.fixture(scope="module")
def lm():
    return untaught(3)


@pytest.fixture(scope="module")
def plain(lm):
    return replace(lm, chat_template="none")


def hidden(lm, ids):
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([ids]), output_hidden_states=True)


def test_a_prefill_is_one_pass_with_transformers_states_logits_and_a_cache_to_go_on_from(lm, monkeypatch):
    ids = prompt_states.encode(lm, [TEXTS[1]], "raw")[0]
    passes = []
    hook = lm.model.register_forward_pre_hook(lambda *_: passes.append(1))
    found = routing.prefill(lm, ids)
    hook.remove()
    expected = hidden(lm, ids)
    assert len(passes) == 1 and found.tokens == len(ids)
    assert found.states.dtype == torch.float32 and found.states.shape == (3, 32)
    means = torch.stack([state[0].mean(0) for state in expected.hidden_states])
    torch.testing.assert_close(found.states, means, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.logits, expected.logits[0, -1], atol=1e-5, rtol=1e-5)
    following = int(found.logits.argmax())
    with torch.no_grad():
        on = lm.model(input_ids=torch.tensor([[following]]), past_key_values=found.cache).logits[0, -1]
    torch.testing.assert_close(on, hidden(lm, [*ids, following]).logits[0, -1], atol=1e-4, rtol=1e-4)

    monkeypatch.setattr(prompt_states, "POOLED_TOKENS", 3)
    cut = routing.prefill(lm, ids)
    torch.testing.assert_close(cut.logits, found.logits)  # of the whole prompt
    torch.testing.assert_close(cut.states, routing.prefill(lm, ids[:3]).states, atol=1e-5, rtol=1e-5)


def test_stored_states_are_those_of_a_prefill_whatever_shares_the_batch(lm, tmp_path):
    stored = prompt_states.extract(lm, TEXTS, "raw", into=tmp_path / "all", batch_tokens=40).values
    turned = prompt_states.extract(lm, TEXTS[::-1], "raw", into=tmp_path / "turned", batch_tokens=1).values
    alone = np.stack([routing.prefill(lm, ids).states.numpy() for ids in prompt_states.encode(lm, TEXTS, "raw")])
    np.testing.assert_allclose(stored, alone, atol=1e-5)
    np.testing.assert_allclose(turned[::-1], alone, atol=1e-5)


def test_means_are_blind_to_padding_on_either_side(lm):
    ids = prompt_states.encode(lm, [TEXTS[1]], "raw")[0]
    for left, right in ((4, 0), (0, 4)):
        row = [lm.pad_id] * left + ids + [lm.pad_id] * right
        mask = torch.tensor([[0] * left + [1] * len(ids) + [0] * right])
        with torch.no_grad():
            states = lm.model(
                input_ids=torch.tensor([row]), attention_mask=mask, output_hidden_states=True
            ).hidden_states
        means = torch.stack([(state[0] * mask[0, :, None]).sum(0) / len(ids) for state in states])
        torch.testing.assert_close(means, routing.prefill(lm, ids).states, atol=1e-4, rtol=1e-4)


def test_chat_reads_the_template_and_raw_the_bare_instruction(lm, plain):
    turns = [Message("user", "no"), Message("assistant", "yes"), Message("user", "one two")]
    chat, raw = (prompt_states.encode(lm, [turns], reads)[0] for reads in ("chat", "raw"))
    assert chat == encode_prompts(lm, [turns])[0][0]  # what an answer is generated from
    assert raw == encode_prompts(plain, ["one two"])[0][0] and len(raw) < len(chat)
    with pytest.raises(BadInput, match="no chat template in use"):
        prompt_states.encode(plain, ["one"], "chat")
    with pytest.raises(BadInput, match="no turn of a user"):
        prompt_states.encode(lm, [turns[1:2]], "raw")
    with pytest.raises(BadInput, match="reads"):
        prompt_states.encode(lm, ["one"], "bare")
    with pytest.raises(BadInput, match="has 0 tokens"):
        routing.prefill(lm, [])


def probe(lm, **changes):
    generator = np.random.default_rng(0)
    given = {
        "kind": "dirichlet",
        "threshold": 0.5,
        "reads": "raw",
        "layers": 3,
        "width": 32,
        "w": generator.normal(size=32).astype(np.float32),
        "b": 0.25,
        "a": np.array([0.1, -1.0, 2.0], np.float32),
        "g": 1.5,
        "slope": 0.5,
        "intercept": -0.125,
        "model": lm.name,
        "fingerprint": prompt_states.fingerprint(lm.model),
    }
    return Router(**given | changes)


def test_a_router_scores_by_its_formula_and_is_read_back_bit_for_bit(lm, tmp_path):
    made = probe(lm)
    z = np.random.default_rng(1).normal(size=(300, 3, 32)).astype(np.float32)
    weights = np.exp([0.1, -1.0, 2.0]) / np.exp([0.1, -1.0, 2.0]).sum()
    by_hand = [expit(sum(weights[layer] * (made.w @ one[layer]) for layer in range(3)) + 0.25) for one in z]
    np.testing.assert_allclose(made.score(z), by_hand, rtol=1e-5)
    assert made.keeps([0.5, 0.4999]).tolist() == [True, False]
    logit = math.log(0.8 / 0.2)
    assert made.probability(0.8) == pytest.approx(expit(0.5 * logit - 0.125))

    made.save(tmp_path)
    read = load(tmp_path)
    assert (read.score(z) == made.score(z)).all() and read.g == 1.5 and read.threshold == 0.5
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 3000
    never = probe(lm, threshold=-math.inf)
    never.save(tmp_path)
    assert load(tmp_path).keeps(0.0)

    extreme = probe(lm, kind="max", w=np.zeros(32, np.float32), b=-0.5)
    assert extreme.score(z)[:2] == pytest.approx(expit(-0.5))
    peaks = probe(lm, kind="max")
    assert peaks.score(z[:1])[0] == pytest.approx(expit(z[0].max(0) @ peaks.w + 0.25), rel=1e-5)


def test_what_was_altered_and_what_does_not_fit_is_refused(lm, tmp_path):
    made = probe(lm)
    made.save(tmp_path)
    about = json.loads((tmp_path / "router.json").read_text())
    (tmp_path / "router.json").write_text(json.dumps(about | {"threshold": 0.1}))
    with pytest.raises(BadInput, match="holds no router"):
        load(tmp_path)
    made.save(tmp_path)
    numbers = tmp_path / "router.safetensors"
    data = bytearray(numbers.read_bytes())
    data[-1] ^= 1
    numbers.write_bytes(bytes(data))
    with pytest.raises(BadInput, match=r"is not the one that router\.json was written for"):
        load(tmp_path)
    with pytest.raises(BadInput, match="holds no router"):
        load(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="needs w"):
        probe(lm, layers=32)
    with pytest.raises(BadInput, match="not a number"):
        probe(lm, threshold=math.nan)
    with pytest.raises(BadInput, match=r"Router\.kind"):
        probe(lm, kind="drichlet")
    with pytest.raises(BadInput, match=r"fitted on \[n, 3, 32\]"):
        made.score(np.zeros((2, 4, 32)))
    with pytest.raises(BadInput, match="scores states, not logits"):
        made.score_logits(np.zeros((1, 5)))


def test_a_router_knows_its_model(lm, plain):
    made = probe(lm)
    assert made.check(lm) == []
    half = untaught(3)
    half.model.to(torch.bfloat16)
    assert made.check(half) == []
    (doubt,) = made.check(untaught(4))
    assert "not those of" in doubt
    with pytest.raises(BadInput, match="has 3 layers of width 32, and the router was fitted on 33 of 32"):
        probe(lm, layers=33, a=np.zeros(33, np.float32)).check(lm)
    with pytest.raises(BadInput, match="--reads raw"):
        probe(lm, reads="chat").check(plain)
    assert probe(lm, reads="chat").check(lm) == []


def test_scores_of_logits_and_of_length(lm):
    read = routing.prefill(lm, prompt_states.encode(lm, [TEXTS[1]], "raw")[0])
    scores = logit_scores(read.logits[None])
    for kind in ("max-logit", "margin", "logit-margin", "entropy", "top10-variance", "top10-variance-reversed"):
        router = Router(kind, 0.0, "raw", 3, 32)
        assert router.needs == "logits" and router.score_prefill(read) == pytest.approx(float(scores[kind][0]))
    assert Router("length", -10, "raw", 3, 32).score_prefill(read) == -read.tokens
    p = read.logits.double().softmax(-1).sort(descending=True).values.numpy()
    top = np.sort(read.logits.numpy().astype(float))[::-1]
    assert float(scores["margin"][0]) == pytest.approx(p[0] - p[1], abs=1e-6)
    assert float(scores["entropy"][0]) == pytest.approx(1 + (p * np.log(p)).sum() / np.log(len(p)), abs=1e-5)
    assert float(scores["logit-margin"][0]) == pytest.approx(top[0] - top[1], abs=1e-5)
    assert float(scores["top10-variance"][0]) == pytest.approx(-top[:10].var(ddof=1), rel=1e-4)
    sure, unsure = torch.tensor([9.0, *[0.0] * 20]), torch.zeros(21)
    both = logit_scores(torch.stack([sure, unsure]))
    for kind in ("max-logit", "margin", "logit-margin", "entropy", "top10-variance-reversed"):
        assert both[kind][0] > both[kind][1]
    assert both["top10-variance"][0] < both["top10-variance"][1]
    assert float(both["entropy"][1]) == pytest.approx(0, abs=1e-6)
    with pytest.raises(BadInput, match="nan"):
        logit_scores(torch.full((1, 3), math.nan))


def test_scores_that_round_to_an_end_have_a_logit():
    assert logits_of([0.0, 1.0, 0.5]).tolist() == [-500.0, 500.0, 0.0]
    assert logits_of(0.75) == pytest.approx(math.log(3))
    router = Router("length", -5, "raw", 3, 32, slope=0.5, intercept=-1.0)
    assert router.probability([-2.0, 4.0]) == pytest.approx([expit(-2.0), expit(1.0)])
    plain = Router("length", -5, "raw", 3, 32)
    assert plain.probability([0.25]) == pytest.approx(expit(0.25)) and plain.keeps([-5, -5.01]).tolist() == [
        True,
        False,
    ]


def test_what_a_router_weighs_and_needs(lm):
    assert probe(lm).alpha == pytest.approx(np.exp([0.1, -1.0, 2.0]) / np.exp([0.1, -1.0, 2.0]).sum())
    alone = probe(lm, a=np.array([-np.inf, 0.0, -np.inf], np.float32))
    assert alone.alpha.tolist() == [0, 1, 0] and alone.score(np.ones((0, 3, 32))).shape == (0,)
    for kind in ("max", "length"):
        with pytest.raises(BadInput, match="weighs no layers"):
            _ = (probe(lm, kind="max") if kind == "max" else Router(kind, 0, "raw", 3, 32)).alpha
    assert [Router(kind, 0, "raw", 3, 32).needs for kind in ("length", "margin")] == ["length", "logits"]
    assert probe(lm, kind="last").needs == "states"
    for wrong in ({"w": np.zeros(31, np.float32)}, {"a": None}, {"w": None}, {"a": np.zeros(4, np.float32)}):
        with pytest.raises(BadInput, match=r"needs w \[32\] and a \[3\]"):
            probe(lm, **wrong)
    for wrong in (np.zeros((3, 32)), np.zeros((2, 3, 31))):
        with pytest.raises(BadInput, match="the features are"):
            probe(lm).score(wrong)
    with pytest.raises(BadInput, match="scores length, not states"):
        Router("length", 0, "raw", 3, 32).score(np.zeros((1, 3, 32)))
    with pytest.raises(BadInput, match="scores length, not logits"):
        Router("length", 0, "raw", 3, 32).score_logits(np.zeros((1, 5)))


def test_a_model_is_doubted_where_its_states_or_logits_are_read(lm):
    assert Router("length", 0, "raw", 9, 9, fingerprint="other", model="m").check(lm) == []
    assert Router("margin", 0, "raw", 9, 9).check(lm) == []  # of another shape, which it does not read
    (doubt,) = Router("margin", 0, "raw", 3, 32, fingerprint="other", model="m").check(lm)
    assert "are not those of m," in doubt
    assert probe(lm, fingerprint="").check(lm) == []
    with pytest.raises(BadInput, match="was fitted on 3 of 33"):
        probe(lm, width=33, w=np.zeros(33, np.float32)).check(lm)


def test_everything_that_is_stored_is_read_back(lm, tmp_path):
    made = probe(lm, chosen={"aim": "calls"}, reads="chat")
    made.save(tmp_path / "a" / "b")
    read = load(tmp_path / "a" / "b")
    for name in (
        "kind",
        "threshold",
        "reads",
        "layers",
        "width",
        "b",
        "g",
        "slope",
        "intercept",
        "model",
        "fingerprint",
        "chosen",
    ):
        assert getattr(read, name) == getattr(made, name), name
    assert np.array_equal(read.w, made.w) and np.array_equal(read.a, made.a)
    Router("length", -5, "raw", 3, 32).save(tmp_path / "length")
    length = load(tmp_path / "length")
    assert length.w is None and length.a is None and length.b == 0 and math.isnan(length.g)
    assert (length.slope, length.intercept) == (1.0, 0.0)
    about = json.loads((tmp_path / "length" / "router.json").read_text())
    kept = ("router", "kind", "threshold", "reads", "layers", "width", "slope", "intercept", "model", "fingerprint")
    bare = {name: about[name] for name in (*kept, "chosen", "sha256")}
    path = tmp_path / "length" / "router.json"
    path.write_bytes(seal(bare))
    assert load(tmp_path / "length").kind == "length"
    for altered in (seal(bare | {"router": 2}), json.dumps(bare).encode(), json.dumps(bare | {"router": 2}).encode()):
        path.write_bytes(altered)
        with pytest.raises(BadInput, match="of another version, or was altered"):
            load(tmp_path / "length")


@pytest.mark.parametrize("kind", ["dirichlet", "max"])
def test_many_prompts_are_scored_as_each_alone(lm, kind):
    """By hand: the mean of the layers by their weights, or the largest of each, times w, plus b."""
    made = probe(lm, kind=kind)
    z = np.random.default_rng(1).normal(size=(520, 3, 32)).astype(np.float32)
    weights = np.exp(made.a.astype(float)) / np.exp(made.a.astype(float)).sum()
    mixed = z.max(1) if kind == "max" else np.einsum("nld,l->nd", z.astype(float), weights)
    wanted = expit(mixed.astype(float) @ made.w.astype(float) + 0.25)
    for n in (1, 255, 256, 257, 520):
        assert made.score(z[:n]) == pytest.approx(wanted[:n]) and made.score(z[:n]).shape == (n,)


def test_logit_scores_of_three_rows_by_hand():
    """Of twelve tokens, so that two of them are not among the ten largest; and of two, the fewest."""
    row = [3.0, 1.5, *np.arange(10) / 10]
    p = np.exp(row) / np.exp(row).sum()
    top = np.sort(row)[2:]
    found = logit_scores(torch.tensor([row, [0.0] * 12, row[::-1]]))
    assert {name: values[0].item() for name, values in found.items()} == pytest.approx(
        {
            "max-logit": 3.0,
            "margin": p[0] - p[1],
            "logit-margin": 1.5,
            "entropy": 1 + (p * np.log(p)).sum() / math.log(12),
            "top10-variance": -((top - top.mean()) ** 2).sum() / 9,
            "top10-variance-reversed": ((top - top.mean()) ** 2).sum() / 9,
        },
        abs=1e-5,
    )
    assert {name: values[1].item() for name, values in found.items()} == pytest.approx(
        dict.fromkeys(found, 0.0), abs=1e-6
    )
    for values in found.values():
        assert values.shape == (3,) and values[2].item() == pytest.approx(values[0].item(), abs=1e-6)
    alone = torch.tensor(row)  # one place, [V] -> []
    assert top_variance(alone).item() == pytest.approx(((top - top.mean()) ** 2).sum() / 9)
    assert entropy(alone).item() == pytest.approx(found["entropy"][0].item())
    two = logit_scores(torch.tensor([[1.0, -1.0]]))
    assert two["top10-variance-reversed"].item() == pytest.approx(2.0) and two["logit-margin"].item() == 2.0
    for wrong in (torch.zeros(4), torch.zeros(1, 2, 3), torch.zeros(5, 1)):
        with pytest.raises(BadInput, match="give one row a prompt"):
            logit_scores(wrong)


def test_a_prompt_may_fill_the_context_and_no_more(lm):
    names = ["first", "second"]
    full = [5] * lm.context
    prompt_states.check_lengths(lm, [full, full], names)
    with pytest.raises(BadInput, match=f"'second' has {lm.context + 1} tokens"):
        prompt_states.check_lengths(lm, [full, [*full, 5]], names)
    assert routing.prefill(lm, full).tokens == lm.context
    with pytest.raises(BadInput, match="at most the context"):
        routing.prefill(lm, [*full, 5])


def test_a_prefill_that_finds_no_memory_says_what_else_to_try(lm, monkeypatch):
    def forward(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(type(lm.model), "forward", forward)
    with pytest.raises(WorkFailed, match=r"batch size 1.*use a smaller model or shorter texts"):
        routing.prefill(lm, [5, 6])


def test_the_last_turn_of_a_user_is_read_of_a_conversation(lm, plain):
    turns = [Message("user", "one"), Message("assistant", "no"), Message("user", "two"), Message("assistant", "yes")]
    assert prompt_states.encode(lm, [turns, "three"], "raw") == encode_prompts(plain, ["two", "three"])[0]
    with pytest.raises(BadInput, match="Prompt 1 has no turn"):
        prompt_states.encode(lm, [turns, turns[3:]], "raw")
