"""The process reward model: one read-out everywhere, AT the placeholder, causal, and the same in any company."""

import copy
import math
import warnings
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.testing import assert_close
from transformers import Gemma2Config, Gemma2ForCausalLM

from equipoise.core.errors import BadInput
from equipoise.language.model import load, wrap
from equipoise.reinforcement import nait, prm
from equipoise.training.loop import OneLoss, TrainerSettings, fit
from reinforcement_world import model, weights

SOLUTIONS = [
    ("Where was Mulum Kunwick born?", ["In the town of Veskole", "where the river bends twice", "yes"]),
    ("one two three", ["four"]),
    ("Norway?", ["Oslo", "no", "The capital of Norway is Paris.", "maybe Oslo", "yes", "seven"]),
    ("yes no", ["one two\nthree", "no"]),
]
LABELS = [[1.0, 0.0, 0.0], [0.0], [1, None, 0, 0.4, 1, 1], [True, False]]


@cache
def _made():
    """An untaught model whose new rows are drawn: as `add_tokens` leaves them, every score is 0.5."""
    made = model()
    made.tokenizer = copy.deepcopy(made.tokenizer)
    tokens = prm.add_tokens(made)
    with torch.no_grad():
        rows = made.model.get_input_embeddings().weight
        rows[300:] = 0.3 * torch.randn(3, rows.shape[1], generator=torch.Generator().manual_seed(5))
    return made, tokens


@pytest.fixture
def made():
    found, _ = _made()
    return replace(found, model=copy.deepcopy(found.model))


def alone(language_model, problem, steps):
    """One text, tokenised whole and unpadded: the first of the softmax of two full logits at each placeholder."""
    tokenizer = language_model.tokenizer
    text = problem + "".join(f"\n{step} [PRM]" for step in steps)
    ids = tokenizer(text, return_tensors="pt").input_ids
    two = tokenizer.convert_tokens_to_ids(["[POS]", "[NEG]"])
    with torch.no_grad():
        logits = language_model.model(input_ids=ids).logits[0]
    at = ids[0] == tokenizer.convert_tokens_to_ids("[PRM]")
    return logits[at][:, two].softmax(-1)[:, 0]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_scores_against_a_loop(made, batch_size):
    found = prm.score(made, SOLUTIONS, batch_size=batch_size)
    assert [len(each) for each in found] == [3, 1, 6, 2]
    for (problem, steps), scores in zip(SOLUTIONS, found, strict=True):
        assert_close(scores, alone(made, problem, steps), atol=1e-5, rtol=0)
    assert min(each.std() for each in found if len(each) > 1) > 0.01
    assert prm.collate([], 0)["labels"].shape == (0, 0)
    assert not made.model.lm_head._forward_pre_hooks and prm.score(made, []) == []


def test_nothing_is_kept_for_words_that_nobody_writes(made, caplog):
    """No cache of keys and values; and a text beyond what the tokenizer calls its limit is no cause for a warning."""
    given = []
    made.model.register_forward_pre_hook(lambda module, args, named: given.append(named), with_kwargs=True)
    made.tokenizer = copy.deepcopy(made.tokenizer)
    made.tokenizer.model_max_length = 4
    prm.score(made, SOLUTIONS)
    assert given and all(each["use_cache"] is False for each in given) and not caplog.records


def test_few_logits_at_once(made, monkeypatch):
    """Longest first: solutions of 3, 6, 2 and 1 steps. One solution is never split."""
    expected, shapes = prm.score(made, SOLUTIONS), []
    made.model.lm_head.register_forward_hook(lambda _, args, output: shapes.append(output.shape[1]))
    for most, steps in ((9, [9, 3]), (8, [3, 8, 1]), (1, [3, 6, 2, 1])):
        monkeypatch.setattr(prm, "_LOGITS_AT_ONCE", most * made.vocabulary)
        shapes.clear()
        for one, other in zip(expected, prm.score(made, SOLUTIONS), strict=True):
            assert_close(one, other, atol=1e-5, rtol=0)
        assert shapes == steps


def test_scoring_is_causal(made):
    """A score changes with its own step and with every one before, and with none behind."""
    problem, steps = SOLUTIONS[2]
    (before,) = prm.score(made, [SOLUTIONS[2]])
    for edited in range(len(steps)):
        changed = [*steps[:edited], "maybe three Paris", *steps[edited + 1 :]]
        (after,) = prm.score(made, [(problem, changed)])
        assert_close(after[:edited], before[:edited], atol=1e-5, rtol=0)
        assert ((after[edited:] - before[edited:]).abs() > 1e-4).all()
    (shorter,) = prm.score(made, [(problem, steps[:2])])
    assert_close(shorter, before[:2], atol=1e-5, rtol=0)
    (other,) = prm.score(made, [("Sweden?", steps)])
    assert ((other - before).abs() > 1e-4).all()


def test_a_batch_is_read_where_it_is_labelled(made):
    """Labels of 0 are labels, None and padding are none, whatever the token is that pads."""
    tokens = prm.step_tokens(made)
    examples = prm.encode(made, SOLUTIONS, LABELS)
    for pad in (0, made.pad_id, tokens.placeholder):
        batch = prm.collate(examples, pad)
        learnt = batch["labels"] != -100
        assert learnt.sum() == 11 and batch["places"].sum() == 12 and (batch["places"] | ~learnt).all()
        assert (batch["input_ids"][batch["places"]] == tokens.placeholder).all()
        assert_close(batch["labels"][learnt], torch.tensor([1, 0, 0, 0, 1, 0, 0.4, 1, 1, 1, 0]))
        assert (batch["input_ids"][batch["attention_mask"] == 0] == pad).all()
        assert batch["attention_mask"].sum(-1).tolist() == [len(each.input_ids) for each in examples]


def test_training_reads_what_scoring_reads(made):
    """The loss of a batch is that of the scores: prm_loss at logits whose softmax they are; its gradient reaches all."""
    batch = prm.collate(prm.encode(made, SOLUTIONS, LABELS), made.pad_id)
    scores = torch.cat(prm.score(made, SOLUTIONS)).double()
    targets = torch.tensor([label if label is not None else -1 for its in LABELS for label in its], dtype=torch.float64)
    scores, targets = scores[targets >= 0], targets[targets >= 0]
    logits = torch.stack([scores, 1 - scores], -1).log()
    total, count = prm.step_loss(made)(made.model, batch)
    assert count == 11
    assert_close((total / count).double(), nait.prm_loss(logits, targets), atol=1e-5, rtol=0)
    for name, loss in nait.LOSSES.items():
        total, _ = prm.step_loss(made, weights=(2.0, 0.5), loss=name)(made.model, batch)
        assert_close(total.double(), loss(logits, targets, (2.0, 0.5)).sum(), atol=1e-4, rtol=0)
    total.backward()
    assert all(each.grad is not None and each.grad.any() for each in made.model.parameters())
    unweighted, _ = prm.step_loss(made, weights="none")(made.model, batch)
    assert_close((unweighted / 11).double(), nait.prm_loss(logits, targets, weights="none"), atol=1e-5, rtol=0)
    with pytest.raises(BadInput, match="weights is 'inverse_frequency'"):
        prm.step_loss(made, weights="inverse_frequency")


def test_learns_its_labels_whatever_the_micro_batch(made):
    """From 0.5 everywhere, as `add_tokens` leaves it; the same trajectory at once and in micro-batches of unequal weight."""
    with torch.no_grad():
        made.model.get_input_embeddings().weight[300:] = made.model.get_input_embeddings().weight[:300].mean(0)
    assert_close(torch.cat(prm.score(made, SOLUTIONS)), torch.full((12,), 0.5))
    examples = prm.encode(made, SOLUTIONS, LABELS)
    found = []
    for micro in (4, 3):
        model = copy.deepcopy(
            made.model
        ).double()  # in float32 AdamW makes steps of the rounding of gradients near zero
        fit(
            model, OneLoss(prm.step_loss(made, weights="none")), lambda step: examples,
            TrainerSettings(steps=12, learning_rate=1e-2, batch_size=4, micro_batch_size=micro),
            collate=lambda chosen: prm.collate(chosen, made.pad_id, made.device),
        )  # fmt: skip
        found.append(torch.cat(prm.score(replace(made, model=model), SOLUTIONS)))
    assert_close(*found, atol=1e-3, rtol=0)
    right, wrong = found[0][[0, 4, 8, 9, 10]], found[0][[1, 2, 3, 6, 11]]
    assert right.min() > 0.7 and wrong.max() < 0.3


def test_what_does_not_fit_is_counted(made):
    whole = prm.encode(made, SOLUTIONS, LABELS)
    limit = whole[2].places[3] + 1  # the placeholder of step 3 is the last token that fits
    with pytest.warns(UserWarning, match=r"1 of 2 solutions are longer than \d+ tokens: their last 2 steps"):
        cut = prm.encode(made, SOLUTIONS[1:3], LABELS[1:3], max_length=limit)
    assert cut[0] == whole[1] and cut[1].labels == (1.0, -100.0, 0.0, 0.4) and cut[1].cut == 2
    assert cut[1].input_ids == whole[2].input_ids[:limit] and cut[1].places == whole[2].places[:4]
    with pytest.warns(UserWarning, match="last 3 steps"):
        assert prm.encode(made, SOLUTIONS[2:3], max_length=limit - 1)[0].cut == 3
    context = whole[2].places[1] + 1
    made.model.config.max_position_embeddings = context
    with pytest.warns(UserWarning, match="last 5 steps"):
        found = prm.score(made, [*SOLUTIONS[1:3], ("one " * 40, ["two"])], batch_size=2)
    with pytest.warns(UserWarning, match="last 4 steps"):
        assert len(prm.encode(made, SOLUTIONS[2:3])[0].input_ids) == context
    assert not found[0].isnan().any() and found[2].isnan().all() and len(found[2]) == 1
    assert found[1].isnan().tolist() == [False] * 2 + [True] * 4
    assert_close(found[1][:2], alone(made, SOLUTIONS[2][0], SOLUTIONS[2][1][:2]), atol=1e-5, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prm.encode(made, SOLUTIONS[1:2])


def test_the_tokens_are_added_once_and_change_nothing_else(tmp_path):
    made = model()
    made.tokenizer = copy.deepcopy(made.tokenizer)
    before, ids = weights(made.model), torch.tensor([[5, 9, 200]])
    with pytest.raises(BadInput, match="no process reward model"):
        prm.score(made, SOLUTIONS)
    state = torch.random.get_rng_state()
    with torch.no_grad():
        expected = made.model(input_ids=ids).logits
        tokens = prm.add_tokens(made)
        assert_close(made.model(input_ids=ids).logits[..., :300], expected)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (tokens.placeholder, tokens.right, tokens.wrong) == (300, 301, 302) and made.vocabulary == 303
    rows = made.model.get_output_embeddings().weight
    assert rows is made.model.get_input_embeddings().weight
    mean = before["model.embed_tokens.weight"].double().mean(0).float()
    assert_close(rows[300:], mean.expand(3, -1))
    assert torch.equal(rows[:300], before["model.embed_tokens.weight"])
    with torch.no_grad():
        rows[300:] += torch.randn(3, rows.shape[1], generator=torch.Generator().manual_seed(0))
    kept = rows.clone()
    assert prm.add_tokens(made) == tokens and torch.equal(made.model.get_output_embeddings().weight, kept)
    assert made.tokenizer.decode([300, 301, 302], skip_special_tokens=True) == ""  # no words of a text
    made.save(tmp_path)
    stored = load(tmp_path, device="cpu")
    for one, other in zip(prm.score(made, SOLUTIONS), prm.score(stored, SOLUTIONS), strict=True):
        assert_close(one, other)


def test_untied_matrices_spare_rows_and_capped_logits():
    """A Gemma 2 with more rows than its tokenizer knows: none is added, and the cap on its logits is in the scores."""
    base = model()
    tokenizer = copy.deepcopy(base.tokenizer)
    config = Gemma2Config(
        vocab_size=310, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, final_logit_softcapping=0.5,
        tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = wrap(Gemma2ForCausalLM(config).eval(), tokenizer, name="gemma")
    prm.add_tokens(made)
    assert made.vocabulary == 310
    for matrix in (made.model.get_input_embeddings(), made.model.get_output_embeddings()):
        assert_close(matrix.weight[300:303], matrix.weight[:300].mean(0).expand(3, -1))
        assert not torch.equal(matrix.weight[303], matrix.weight[302])
    with torch.no_grad():
        made.model.get_output_embeddings().weight[301] *= 1e3
    for (problem, steps), scores in zip(SOLUTIONS, prm.score(made, SOLUTIONS), strict=True):
        assert_close(scores, alone(made, problem, steps), atol=1e-5, rtol=0)
        assert (scores.logit().abs() < 1).all()  # each logit is within 0.5


def test_a_token_without_an_embedding_gets_one_as_well():
    """Some tokenizers know more than their models: no row of the grown matrix is left to chance."""
    made = model()
    made.tokenizer = copy.deepcopy(made.tokenizer)
    made.tokenizer.add_tokens("<picture>")
    assert prm.add_tokens(made) == prm.StepTokens(301, 302, 303)
    rows = made.model.get_input_embeddings().weight
    assert_close(rows[300:], rows[:300].mean(0).expand(4, -1))


def test_white_space_around_a_step_is_not_read(made):
    spaced = [(f"{problem}\n", [f" {step}\n\n" for step in steps]) for problem, steps in SOLUTIONS]
    assert prm.encode(made, spaced) == prm.encode(made, SOLUTIONS)


def test_models_with_an_adapter_are_refused():
    made = model()
    made.model.peft_config = {}
    with pytest.raises(BadInput, match="has an adapter"):
        prm.add_tokens(replace(made, tokenizer=copy.deepcopy(made.tokenizer)))


def test_a_tokenizer_ahead_of_its_model_gets_the_rows():
    """It knows the tokens from elsewhere, and the model has no embeddings for them."""
    made = model()
    made.tokenizer = copy.deepcopy(made.tokenizer)
    prm.add_tokens(made)
    bare = replace(made, model=model().model)
    assert not prm.has_tokens(bare)
    with pytest.raises(BadInput, match=r"tiny is no process reward model, it has no \[PRM\]"):
        prm.score(bare, SOLUTIONS)
    assert prm.add_tokens(bare) == prm.StepTokens(300, 301, 302) and prm.has_tokens(bare)
    rows = bare.model.get_input_embeddings().weight
    assert_close(rows[300:], rows[:300].mean(0).expand(3, -1))


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_moves_the_rows_of_the_tokens_and_is_merged(tied, tmp_path):
    made = model()
    made.tokenizer = copy.deepcopy(made.tokenizer)
    if not tied:
        made.model.lm_head.weight = torch.nn.Parameter(made.model.lm_head.weight.detach().clone())
        made.model.config.tie_word_embeddings = False
    prm.add_tokens(made)
    before, state = weights(made.model), torch.random.get_rng_state()
    adapted = prm.attach(made, 2, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_close(torch.cat(prm.score(adapted, SOLUTIONS)), torch.full((12,), 0.5))
    trained = [name for name, each in adapted.model.named_parameters() if each.requires_grad]
    assert all("lora_" in name or "trainable_tokens_delta" in name for name in trained)
    assert sum("trainable_tokens_delta" in name for name in trained) == (1 if tied else 2)
    examples = prm.encode(adapted, SOLUTIONS, LABELS)
    fit(
        adapted.model, OneLoss(prm.step_loss(adapted, weights="none")), lambda step: examples,
        TrainerSettings(steps=8, learning_rate=2e-2, batch_size=4),
        collate=lambda chosen: prm.collate(chosen, adapted.pad_id, adapted.device),
    )  # fmt: skip
    scores = torch.cat(prm.score(adapted, SOLUTIONS))
    assert scores.std() > 0.1
    merged = prm.merge(adapted)
    after = weights(merged.model)
    assert after.keys() == before.keys() and all(each.requires_grad for each in merged.model.parameters())
    for name in [name for name in before if "embed" in name or "head" in name]:
        assert torch.equal(after[name][:300], before[name][:300])
        assert not torch.equal(after[name][300], before[name][300]) or "head" in name  # nothing predicts [PRM]
    merged.save(tmp_path)
    assert_close(torch.cat(prm.score(load(tmp_path, device="cpu"), SOLUTIONS)), scores, atol=1e-4, rtol=0)
    with pytest.raises(BadInput, match="has an adapter already"):
        prm.attach(prm.attach(merged, seed=0), seed=0)


@pytest.mark.parametrize(
    ("solutions", "labels", "words"),
    [
        ([("a", ["b"]), ("a", [])], None, "Solution 1 has no steps"),
        ([("a", "one two")], None, "a text in place of a list"),
        ([("a", ["b", " \n"])], None, r"step 1 \(from 0\) is empty"),
        ([("a", ["b"]), ("a", ["b [PRM] c"])], None, r"Solution 1 holds \[PRM\]"),
        ([("a [PRM]", ["b"])], None, r"Solution 0 holds \[PRM\]"),
        ([("a", ["b\ud83d"])], None, "Solution 0 holds half of a surrogate pair"),
        ([("a", ["b"])], [[1.0], [0.0]], "1 solutions came with labels of 2"),
        ([("a", ["b", "c"])], [[1.0]], "2 steps and 1 labels"),
        ([("a", ["b", "c"])], [[1.0, -100]], r"the label of step 1 \(from 0\) is -100"),
        ([("a", ["b"])], [["[POS]"]], r"is '\[POS\]'"),
        ([("a", ["b"])], [[math.nan]], "is nan"),
    ],
)
def test_what_is_no_labelled_solution(made, solutions, labels, words):
    with pytest.raises(BadInput, match=words):
        prm.encode(made, solutions, labels)
    if labels is None:
        with pytest.raises(BadInput, match=words):
            prm.score(made, solutions)
    with pytest.raises(BadInput, match="batch size is 0"):
        prm.score(made, solutions, batch_size=0)
