"""TokUR against step-by-step decoding with a cache, closed forms, and a model small enough to enumerate."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import transformers
from torch.testing import assert_close
from transformers import DynamicCache

from equipoise.core.errors import BadInput
from equipoise.data.records import Message, Record
from equipoise.language.encode import encode
from equipoise.language.model import LanguageModel
from equipoise.language.score import token_log_likelihoods
from equipoise.language.tiny import tiny
from equipoise.uncertainty import tokur
from equipoise.uncertainty.perturbed import Perturbed, perturb, token_noise

TEXTS = [
    "What is two and three?",
    "It is five, as anybody knows.",
    "Say no.",
    "no",
    "one two three four five six seven",
]
PROMPTS = ["What is two and three?", "Say no.", "one two three"]
ANSWERS = ["It is five, as anybody knows.", "no", "four five\n\nsix seven"]
FAMILIES = ["Llama", "Mistral", "Qwen2", "Qwen3", "GPT2", "Gemma"]


def small(family: str = "Llama", **changes) -> LanguageModel:
    made = tiny(TEXTS, seed=0, width=32, layers=2, heads=2)
    words = {"vocab_size": made.vocabulary, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    }  # fmt: skip
    sizes |= {"sliding_window": 5} if family == "Mistral" else {}
    if family == "GPT2":
        sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "scale_attn_by_inverse_layer_idx": True}
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**words, **sizes, **changes)
    name = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)  # so that what is said depends on what came before
    return replace(made, model=model, chat_template="none")


def step_by_step(unsure: Perturbed, row: tokur.Encoded, members: int, seed: int) -> torch.Tensor:
    """Logits [M, A, V] of a decoder that keeps clean keys and values: noisy readings of a token are cut off again."""
    model = unsure.language_model.model
    cache, said = DynamicCache(), []
    with torch.no_grad():
        if row.prompt[:-1]:
            model(torch.tensor([row.prompt[:-1]]), past_key_values=cache, use_cache=True)
        z = [
            token_noise(
                len(row.answer), len(unsure.projections), unsure.rank, seed=seed, member=m, key=tokur._key(row.prompt)
            )
            for m in range(members)
        ]
        for step, token in enumerate((row.prompt[-1], *row.answer[:-1])):
            length, here = cache.get_seq_length(), []
            for member in range(1, members):
                with unsure.noise(lambda index, _, m=member, t=step: z[m][t, index].expand(1, 1, -1)):
                    here.append(model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[0, 0])
                cache.crop(length)
            clean = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[0, 0]
            said.append(torch.stack([clean, *here]))
    return torch.stack(said, dim=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parallel_scorer_is_step_by_step_decoding_with_a_clean_cache(family: str):
    language_model = small(family)
    unsure = perturb(language_model, rank=3, sigma=0.3, targets=("q_proj", "k_proj", "v_proj"))
    scores = tokur.score(unsure, PROMPTS, ANSWERS, members=3, seed=4, batch_size=2)
    assert scores.eu.max() > 0.03  # the noise does something
    for place, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        row = tokur.encoded(language_model, prompt, answer)
        logits = step_by_step(unsure, row, 3, 4)
        length = len(row.answer)
        assert int(scores.lengths[place]) == length
        due = tokur.uncertainties(logits)
        log_probs = logits.log_softmax(-1).gather(-1, torch.tensor(row.answer).expand(3, -1)[..., None])[..., 0]
        reward = log_probs.exp().mean(0).log() - log_probs.mean(0)
        found = (scores.tu, scores.au, scores.eu, scores.log_probs, scores.reward)
        for values, expected in zip(found, (*due, log_probs[0], reward), strict=True):
            assert_close(values[place, :length], expected, atol=1e-5, rtol=1e-5)
            assert not values[place, length:].any()


def test_perturbed_keys_and_values_of_earlier_tokens_would_be_another_number():
    """What the scorer must not do: noise on the whole stream, history and all."""
    unsure = perturb(small(), rank=3, sigma=0.3)
    row = tokur.encoded(unsure.language_model, PROMPTS[0], ANSWERS[0])
    z = token_noise(len(row.answer), len(unsure.projections), 3, seed=4, member=1, key=tokur._key(row.prompt))
    ids = torch.tensor([[*row.prompt, *row.answer[:-1]]])
    whole = torch.zeros(1, ids.shape[1], *z.shape[1:], dtype=z.dtype)
    whole[0, len(row.prompt) - 1 :] = z
    with torch.no_grad(), unsure.noise(lambda index, _: whole[:, :, index]):
        drifted = unsure.language_model.model(ids).logits[0, len(row.prompt) - 1 :]
    clean_history = step_by_step(unsure, row, 2, 4)[1]
    assert_close(drifted[0], clean_history[0], atol=1e-4, rtol=1e-4)  # the first has no noisy history yet
    assert (drifted - clean_history)[1:].abs().max() > 0.1


def test_company_order_and_what_follows_do_not_matter():
    unsure = perturb(small(), rank=3, sigma=0.3)
    together = tokur.score(unsure, PROMPTS, ANSWERS, seed=0)
    backwards = tokur.score(unsure, PROMPTS[::-1], ANSWERS[::-1], seed=0, batch_size=1)
    shorter = tokur.score(unsure, PROMPTS[:1], ["It is five,"], seed=0)
    for name in ("tu", "au", "eu", "reward", "entropies"):
        assert_close(getattr(together, name), getattr(backwards, name).flip(0), atol=1e-5, rtol=1e-5)
        length = int(shorter.lengths[0])
        assert_close(getattr(together, name)[0, :length], getattr(shorter, name)[0], atol=1e-5, rtol=1e-5)
    assert (tokur.score(unsure, PROMPTS, ANSWERS, seed=1).eu - together.eu).abs().max() > 0.01


def test_the_model_is_as_it_was():
    language_model = small()
    ids = torch.tensor([[1, 5, 9, 12]])
    with torch.no_grad():
        before, implementation = language_model.model(ids).logits, language_model.model.config._attn_implementation
        tokur.score(perturb(language_model, rank=2), PROMPTS, ANSWERS, seed=0)
        assert torch.equal(language_model.model(ids).logits, before)
    assert language_model.model.config._attn_implementation == implementation


def test_without_noise_all_members_are_the_model():
    language_model = small()
    records = [Record(id=str(i), prompt=p, completion=a) for i, (p, a) in enumerate(zip(PROMPTS, ANSWERS, strict=True))]
    due = token_log_likelihoods(language_model, encode(language_model, records, end=False))
    for scores in (
        tokur.score(perturb(language_model, rank=2, sigma=0.0), PROMPTS, ANSWERS, seed=0),
        tokur.score(perturb(language_model, rank=2), PROMPTS, ANSWERS, seed=0, members=1),
    ):
        assert scores.eu.abs().max() < 1e-6
        for values in (scores.tu, scores.au):
            assert_close(values, scores.entropies, atol=1e-5, rtol=0)
        for row, expected in enumerate(due):
            assert_close(scores.log_probs[row, : len(expected)], expected, atol=1e-5, rtol=1e-5)


def test_uncertainties_in_closed_form(monkeypatch: pytest.MonkeyPatch):
    hot = torch.full((4, 4), -math.inf).fill_diagonal_(0.0)
    tu, au, eu = tokur.uncertainties(hot)
    assert_close(torch.stack([tu, au, eu]), torch.tensor([math.log(4), 0.0, math.log(4)]))
    logits = 5 * torch.randn(3, 2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.softmax(-1)
    total, own = -(p.mean(0) * p.mean(0).log()).sum(-1), -(p * p.log()).sum(-1).mean(0)
    for size in (2**15, 7, 1):  # in one slice, in slices that do not divide the vocabulary, and each token alone
        monkeypatch.setattr(tokur, "_VOCABULARY_AT_ONCE", size)
        found = tokur.uncertainties(logits)
        assert_close(torch.stack([*found]), torch.stack([total, own, total - own]))
        narrow = tokur.uncertainties(logits.bfloat16())
        assert narrow.tu.dtype == torch.float32
        assert_close(narrow.tu, tokur.uncertainties(logits.bfloat16().double()).tu.float(), atol=1e-5, rtol=1e-5)
    assert (found.eu >= 0).all() and (found.tu <= math.log(50)).all() and (found.eu <= math.log(3)).all()
    twins = logits[:1].expand(2, -1, -1)
    assert tokur.uncertainties(twins).eu.abs().max() < 1e-12
    with pytest.raises(BadInput, match="members come first"):
        tokur.uncertainties(torch.zeros(5))


def test_sums_over_tokens_are_unbiased_for_the_stepwise_mixture_and_not_for_one_that_shares_weights():
    """All texts of three tokens over three symbols: E_y sum_t TU_t is the entropy of the mixture joint (and AU likewise)."""
    symbols, length, members = 3, 3, 2
    generator = torch.Generator().manual_seed(3)
    table = {
        prefix: 2 * torch.randn(members, symbols, generator=generator, dtype=torch.float64)
        for size in range(length)
        for prefix in itertools.product(range(symbols), repeat=size)
    }
    joint, shared, expected = [], [], torch.zeros(3, dtype=torch.float64)
    for text in itertools.product(range(symbols), repeat=length):
        stepwise, together = torch.tensor(1.0, dtype=torch.float64), torch.ones(members, dtype=torch.float64)
        total = torch.zeros(3, dtype=torch.float64)
        for place, token in enumerate(text):
            logits = table[text[:place]]
            p = logits.softmax(-1)
            total += torch.stack([*tokur.uncertainties(logits)])
            stepwise, together = stepwise * p.mean(0)[token], together * p[:, token]
        joint.append(stepwise)
        shared.append(together.mean())
        expected += stepwise * total
    p = torch.stack(joint)
    assert_close(expected[0], -(p * p.log()).sum())
    # AU by the chain rule: the mean conditional entropy at each prefix, weighted by how likely the mixture comes there.
    due = torch.tensor(0.0, dtype=torch.float64)
    for prefix, logits in table.items():
        reached = torch.tensor(1.0, dtype=torch.float64)
        for place, token in enumerate(prefix):
            reached = reached * table[prefix[:place]].softmax(-1).mean(0)[token]
        q = logits.softmax(-1)
        due = due - reached * (q * q.log()).sum(-1).mean()
    assert_close(expected[1:], torch.stack([due, expected[0] - due]))
    q = torch.stack(shared)
    assert abs(float(expected[0] + (q * q.log()).sum())) > 0.01


def test_offsets_are_the_characters_of_the_answer():
    scores = tokur.score(perturb(small(), rank=2), PROMPTS, ANSWERS, seed=0, end=True)
    for answer, spans, mask in zip(ANSWERS, scores.offsets, scores.mask, strict=True):
        assert len(spans) == int(mask.sum())
        assert spans[-1] == (len(answer), len(answer))  # the end token
        assert "".join(answer[begin:end] for begin, end in spans) == answer
    emoji = "é🙂 no"
    (spans,) = tokur.score(perturb(small(), rank=2), ["Say no."], [emoji], seed=0).offsets
    assert max(end for _, end in spans) == len(emoji) and spans.count((1, 2)) == 4  # four bytes, one character
    chat = replace(small(), chat_template="auto")
    turns = [Message("system", "Be brief."), Message("user", "Say no.")]
    (spans,) = tokur.score(perturb(chat, rank=2), [turns], ["  no one"], seed=0).offsets
    assert "".join("  no one"[begin:end] for begin, end in spans).strip() == "no one"


def test_aggregates():
    scores = tokur.score(perturb(small(), rank=2, sigma=0.3), PROMPTS, ANSWERS, seed=0)
    eu = [row[mask] for row, mask in zip(scores.eu, scores.mask, strict=True)]
    for over, due in (
        ("sum", [v.sum() for v in eu]), ("mean", [v.mean() for v in eu]), ("max", [v.max() for v in eu]),
        ("last", [v[-2:].mean() for v in eu]),
    ):  # fmt: skip
        assert_close(scores.response("eu", over=over, last=2), torch.stack(due))
    steps = scores.steps(ANSWERS, "eu")
    assert [[ANSWERS[row][s.begin : s.end] for s in found] for row, found in enumerate(steps)] == [
        ["It is five, as anybody knows."], ["no"], ["four five\n\n", "six seven"],
    ]  # fmt: skip
    for found, whole in zip(steps, scores.response("eu"), strict=True):
        assert sum(step.value for step in found) == pytest.approx(float(whole), abs=1e-6)
    sure = tokur.confidences(scores)
    assert_close(sure["length"], -scores.lengths.float())
    assert_close(sure["entropy_mean"] * scores.lengths, sure["entropy_sum"])
    assert_close(sure["eu_sum"], -scores.response("eu"))
    with pytest.raises(BadInput):
        scores.response("epistemic")  # type: ignore[arg-type]


def test_sigma_is_raised_until_it_shows_and_not_beyond_agreement():
    language_model = small()
    found = tokur.automatic_sigma(language_model, PROMPTS, ANSWERS, share=0.01, agreement=0.3)
    smaller = tokur.score(perturb(language_model, sigma=found.sigma / 2**0.5), PROMPTS, ANSWERS, seed=0)
    assert found.reached and found.share >= 0.01 > float(smaller.eu.sum() / smaller.tu.sum())
    timid = tokur.automatic_sigma(language_model, PROMPTS, ANSWERS, share=0.9, agreement=0.9)
    assert not timid.reached and (timid.agreement >= 0.9 or timid.sigma == tokur.SIGMAS[0])


def test_bad_input_is_refused_by_name():
    language_model = small()
    with pytest.raises(BadInput, match="empty completion"):
        tokur.score(language_model, ["a"], [" "], seed=0)
    with pytest.raises(BadInput, match="more than the context of 128"):
        tokur.score(language_model, ["no"], ["no one " * 200], seed=0)
    with pytest.raises(BadInput, match="2 prompts for 1 answers"):
        tokur.score(language_model, ["a", "b"], ["no"], seed=0)
    for wrong in ({"members": 0}, {"batch_size": 0}):
        with pytest.raises(BadInput):
            tokur.score(language_model, ["Say no."], ["no"], seed=0, **wrong)
    torch.manual_seed(0)
    neox = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=language_model.vocabulary, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    other = replace(language_model, model=neox)
    with pytest.raises(BadInput, match="'gpt_neox', whose attention cannot be given a clean history"):
        tokur.score(perturb(other, targets=("dense",)), ["Say no."], ["no"], seed=0)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("one\ntwo\n\n\nthree", ["one\ntwo\n\n\n", "three"]),  # blank lines cut where there are some
        ("one\ntwo\nthree\n", ["one\n", "two\n", "three\n"]),
        ("one\ntwo\n\n", ["one\n", "two\n\n"]),  # blank lines at the end alone are none
        ("\n\none\ntwo", ["\n\n", "one\n", "two"]),
        ("one\n\n\n\n\ntwo\n\nthree", ["one\n\n\n\n\n", "two\n\n", "three"]),
        ("one", ["one"]),
        ("", []),
    ],
)
def test_steps_are_cut_behind_their_last_line_end(text, steps):
    spans = tokur.step_spans(text)
    assert [text[begin:end] for begin, end in spans] == steps and "".join(steps) == text


def test_the_scales_of_noise_that_are_tried():
    assert tokur.SIGMAS == (
        0.01, 0.0141, 0.02, 0.0283, 0.04, 0.0566, 0.08, 0.1131, 0.16, 0.2263, 0.32, 0.4525, 0.64
    )  # fmt: skip


class Scored:
    """What scoring finds at each sigma: a total of 8, this much of it epistemic, this share of tokens kept."""

    def __init__(self, *found):
        self.found, self.asked = dict(zip(tokur.SIGMAS, found, strict=False)), []

    def __call__(self, unsure, rows, **how):
        self.asked.append((unsure.sigma, how))
        total, eu, kept = self.found[unsure.sigma]
        row = torch.tensor([[1.0, 0.0]])
        mask = torch.tensor([[True, False]])
        values = {"tu": total * row, "eu": eu * row, "agreement": torch.tensor([[kept, 0.5]]), "mask": mask}
        return type("Found", (), values)


@pytest.mark.parametrize(
    ("found", "due"),
    [
        ([(8.0, 0.25, 1.0), (8.0, 0.5, 0.9375), (8.0, 1.0, 1.0)], (0.0141, 0.0625, 0.9375, True)),
        ([(8.0, 0.5, 0.875), (8.0, 1.0, 0.875)], (0.01, 0.0625, 0.875, False)),  # the first already changes too much
        ([(8.0, 0.25, 1.0), (8.0, 1.0, 0.875)], (0.01, 0.03125, 1.0, False)),
        ([(0.0, 0.0, 1.0)] * 13, (0.64, 0.0, 1.0, False)),
        ([(0.5, 0.25, 1.0)], (0.01, 0.5, 1.0, True)),
        ([(8.0, 0.25, 0.5), (8.0, 0.25, 1.0), (8.0, 0.5, 1.0)], (0.02, 0.0625, 1.0, True)),
    ],
)
def test_the_least_sigma_that_shows_without_changing_what_is_said(monkeypatch, found, due):
    scored = Scored(*found)
    monkeypatch.setattr(tokur, "score_tokens", scored)
    row = tokur.Encoded((1,), (2,), ((0, 1),))
    chosen = tokur.choose_sigma(perturb(small(), rank=2), [row], share=0.0625, agreement=0.9375)
    assert (chosen.sigma, chosen.share, chosen.agreement, chosen.reached) == (*map(pytest.approx, due[:3]), due[3])
    assert {str(how) for _, how in scored.asked} == {str({"members": 4, "seed": 0, "batch_size": 8})}


def test_what_sigma_cannot_be_chosen_by():
    unsure, row = perturb(small(), rank=2), tokur.Encoded((1,), (2,), ((0, 1),))
    for wrong in ({"share": 0.0}, {"share": 1.0}, {"agreement": -0.1}, {"agreement": 1.0}):
        with pytest.raises(BadInput, match="use shares from 0 to 1"):
            tokur.choose_sigma(unsure, [row], **wrong)
    with pytest.raises(BadInput, match="use at least 2"):
        tokur.choose_sigma(unsure, [row], members=1)
    with pytest.raises(BadInput, match="no answer to choose sigma on"):
        tokur.choose_sigma(unsure, [])
    found = tokur.choose_sigma(unsure, [row], share=1e-9, agreement=0.0, members=2)
    assert found.sigma == 0.01 and found.reached
    for wrong in ({"members": 0}, {"batch_size": 0}, {"seed": -1}):
        with pytest.raises(BadInput, match="at least 1, 1 and 0"):
            tokur.score_tokens(unsure, [row], **{"members": 1, "seed": 0, **wrong})
    assert tokur.score_tokens(unsure, [row], members=1, seed=0, batch_size=1).tu.shape == (1, 1)


def test_values_of_tokens_by_hand():
    """Three members, two tokens said, a vocabulary of three."""
    p = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], [[0.25, 0.5, 0.25], [0.1, 0.6, 0.3]],
                      [[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]], dtype=torch.float64)  # fmt: skip
    found = tokur._values(p.log() + 3, torch.tensor([1, 1]))
    assert_close(found["log_probs"], torch.tensor([0.25, 0.8], dtype=torch.float64).log())
    mean = torch.tensor([1.05 / 3, 1.6 / 3], dtype=torch.float64)
    assert_close(found["reward"], mean.log() - p[:, :, 1].log().mean(0))
    assert_close(found["agreement"], torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert_close(found["entropies"], -(p[0] * p[0].log()).sum(-1))
    assert_close(found["tu"], -(p.mean(0) * p.mean(0).log()).sum(-1))
    with pytest.raises(BadInput, match="members come first"):
        tokur.uncertainties(torch.zeros(0, 3))


def test_logits_in_slices_are_those_at_once(monkeypatch):
    unsure, counted = perturb(small(), rank=2, sigma=0.3), []
    done: list[int] = []
    rows = [tokur.encoded(unsure.language_model, *each) for each in zip(PROMPTS, ANSWERS, strict=True)]
    whole = tokur.score_tokens(unsure, rows, members=3, seed=0, batch_size=2, done=done.append)
    values = tokur._values
    monkeypatch.setattr(tokur, "_values", lambda logits, said: counted.append(logits.shape) or values(logits, said))
    monkeypatch.setattr(tokur, "_LOGITS_AT_ONCE", 2 * 3 * unsure.language_model.vocabulary)
    sliced = tokur.score_tokens(unsure, rows, members=3, seed=0, batch_size=2)
    assert done == [2, 1] and {shape[:2] for shape in counted} <= {(3, 2), (3, 1)}
    monkeypatch.setattr(tokur, "_LOGITS_AT_ONCE", 1)
    counted.clear()
    alone = tokur.score_tokens(unsure, rows, members=3, seed=0, batch_size=3)
    assert {shape[:2] for shape in counted} == {(3, 1)} and len(counted) == sum(len(row.answer) for row in rows)
    for name in ("tu", "eu", "reward", "log_probs"):
        assert_close(getattr(sliced, name), getattr(whole, name), atol=1e-6, rtol=1e-5)
        assert_close(getattr(alone, name), getattr(whole, name), atol=1e-5, rtol=1e-5)


def test_noise_is_named_by_the_prompt():
    import hashlib

    digest = hashlib.sha256(b"3,14,15").digest()
    assert tokur._key((3, 14, 15)) == tuple(int.from_bytes(digest[at : at + 4], "little") for at in (0, 4, 8, 12))


def test_every_confidence_is_turned_so_that_higher_is_surer():
    scores = tokur.score(perturb(small(), rank=2, sigma=0.3), PROMPTS, ANSWERS, seed=0)
    sure = tokur.confidences(scores)
    names = ("tu", "au", "eu", "log_probs", "entropies", "self_certainty", "top_confidence")
    kept = [{name: getattr(scores, name)[row][scores.mask[row]] for name in names} for row in range(3)]
    due = {}
    for of in ("tu", "au", "eu"):
        for over in ("sum", "mean", "max"):
            due[f"{of}_{over}"] = [-getattr(each[of], over)() for each in kept]
    for over in ("sum", "mean"):
        due[f"log_prob_{over}"] = [getattr(each["log_probs"], over)() for each in kept]
        due[f"entropy_{over}"] = [-getattr(each["entropies"], over)() for each in kept]
    due["self_certainty"] = [each["self_certainty"].mean() for each in kept]
    due["deepconf"] = [each["top_confidence"].mean() for each in kept]
    due["length"] = [-torch.tensor(float(len(each["tu"]))) for each in kept]
    assert sure.keys() == due.keys()
    for name, values in due.items():
        assert_close(sure[name], torch.stack(values), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["Llama", "Mistral"])
def test_attention_in_slices_is_that_at_once(monkeypatch, family):
    from equipoise.uncertainty import clean_history

    unsure = perturb(small(family), rank=2, sigma=0.3)
    whole = tokur.score(unsure, PROMPTS, ANSWERS, members=2, seed=0)
    for size in (1, 200):
        monkeypatch.setattr(clean_history, "_SCORES_AT_ONCE", size)
        sliced = tokur.score(unsure, PROMPTS, ANSWERS, members=2, seed=0)
        assert_close(sliced.eu, whole.eu, atol=1e-5, rtol=1e-4)


def test_a_clean_reading_by_hand():
    from equipoise.uncertainty.clean_history import read

    found = read(small(), [(5, 6, 7), (8,)], [(9, 10, 11), (12, 13)])
    assert found.ids[found.real].tolist() == [7, 9, 10, 8, 12]
    assert found.places[found.real].tolist() == [2, 3, 4, 0, 1]
    assert found.real.tolist() == [[True, True, True], [True, True, False]]
    assert found.states.shape[:2] == (2, 3) and found.cache.get_seq_length() == 5


def test_what_is_computed_at_once_fits_into_so_many_megabytes():
    """In float32, as is stated beside it."""
    from equipoise.uncertainty import clean_history, sampling_slots

    assert tokur._LOGITS_AT_ONCE * 4 == 64 * 2**20 and clean_history._SCORES_AT_ONCE * 4 == 128 * 2**20
    assert tokur._VOCABULARY_AT_ONCE == 32_768 and sampling_slots.READ_AT_ONCE == 8_192


def test_the_noisy_reading_keeps_nothing_and_the_clean_one_all():
    unsure, given = perturb(small(), rank=2, sigma=0.3), []
    body = unsure.language_model.model.base_model
    hook = body.register_forward_pre_hook(lambda _, args, named: given.append(named["use_cache"]), with_kwargs=True)
    tokur.score(unsure, PROMPTS[:1], ANSWERS[:1], members=3, seed=0)
    hook.remove()
    assert given == [True, False, False]


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize(("size", "cuts"), [(112, [2, 2, 1]), (111, [1] * 5), (280, [5]), (1, [1] * 5)])
def test_attention_by_hand_in_as_many_pieces_as_it_takes(monkeypatch, window, size, cuts):
    """A scored token needs 2 rows x 4 heads x 7 places = 56 scores; it sees clean keys before it, and its own noisy one."""
    from types import SimpleNamespace

    from equipoise.uncertainty import clean_history

    generator = torch.Generator().manual_seed(0)
    query, key, value, keys, values = (
        torch.randn(2, *shape, generator=generator).double()
        for shape in ((4, 5, 3), (2, 5, 3), (2, 5, 3), (2, 7, 3), (2, 7, 3))
    )
    places = torch.tensor([[2, 3, 4, 5, 6], [0, 1, 2, 3, 3]])
    cache = SimpleNamespace(layers=[None, SimpleNamespace(keys=keys, values=values)])
    cat, made = torch.cat, []

    def noted(parts, dim=0):
        found = cat(parts, dim=dim)
        if dim == -1:
            made.append(found.shape[-2])
        return found

    monkeypatch.setattr(clean_history, "_SCORES_AT_ONCE", size)
    monkeypatch.setattr(clean_history.torch, "cat", noted)
    found, none = clean_history._attend(
        SimpleNamespace(layer_idx=1), query, key, value, None, scaling=0.5, sliding_window=window,
        clean_history=SimpleNamespace(cache=cache, places=places),
    )  # fmt: skip
    monkeypatch.undo()
    assert made == cuts and none is None and found.shape == (2, 5, 4, 3)
    for row in range(2):
        for head in range(4):
            for token in range(5):
                q, place = query[row, head, token], int(places[row, token])
                seen = range(max(place - window + 1, 0) if window else 0, place)
                some = [*(keys[row, head // 2, j] for j in seen), key[row, head // 2, token]]
                said = [*(values[row, head // 2, j] for j in seen), value[row, head // 2, token]]
                share = (0.5 * torch.stack(some) @ q).softmax(-1)
                assert_close(found[row, token, head], share @ torch.stack(said))
