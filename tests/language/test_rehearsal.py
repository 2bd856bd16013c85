"""What is impossible is refused in seconds, by a sentence, and a model that can do all is left as it was."""

import contextlib
import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, LlamaConfig, LlamaForCausalLM

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.language import rehearsal
from equipoise.language.adapters import attach, detach
from equipoise.language.encode import IGNORE, Example
from equipoise.language.model import load
from equipoise.language.rehearsal import rehearse


def test_a_model_that_can_do_all_is_left_as_it_was(fresh):
    fresh.model.model.layers[0].requires_grad_(False)
    fresh.model.train()
    weights, state = copy.deepcopy(fresh.model.state_dict()), torch.get_rng_state()
    rehearse(fresh)
    assert all(torch.equal(value, weights[name]) for name, value in fresh.model.state_dict().items())
    assert all(parameter.grad is None for parameter in fresh.model.parameters())
    assert fresh.model.training and torch.equal(torch.get_rng_state(), state)


def test_a_model_that_sees_what_follows(small):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(small.tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    with pytest.raises(BadInput, match=r"tiny \(BertLMHeadModel\) sees the tokens that it should predict"):
        rehearse(replace(small, model=BertLMHeadModel(config).eval()))


class Larger(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.extra = torch.nn.Linear(3, 3)


class Unregistered(LlamaConfig):
    model_type = "unregistered"


def test_a_model_that_would_be_another_when_it_is_loaded_again(small):
    config = small.model.config
    with pytest.raises(BadInput, match=r"would be another model when .* the parameter extra\.bias"):
        rehearse(replace(small, model=Larger(config).eval()))
    rehearse(replace(small, model=Larger(config).eval()), writes="nothing")
    own = Unregistered(**{**config.to_dict(), "model_type": "unregistered"})
    with pytest.raises(BadInput, match=r"tiny could not be loaded again after it was written .*unregistered"):
        rehearse(replace(small, model=LlamaForCausalLM(own).eval()))


def test_an_adapter_needs_a_base(fresh, tmp_path):
    adapted = attach(fresh, seed=0)
    with pytest.raises(BadInput, match="An adapter of tiny names no base model"):
        rehearse(adapted, writes="adapter")
    detach(adapted).save(tmp_path)
    rehearse(attach(load(tmp_path, device="cpu"), seed=0), writes="adapter")


class NoAnswers(LlamaForCausalLM):
    def forward(self, past_key_values=None, use_cache=False, **words):
        if use_cache:
            raise NotImplementedError("no cache here")
        return super().forward(**words)


class NoGradient(LlamaForCausalLM):
    def forward(self, **words):
        with torch.no_grad():
            return super().forward(**words)


class NoFewer(LlamaForCausalLM):
    """Whose state does not know how rows leave."""

    def forward(self, input_ids, past_key_values=None, use_cache=False, **words):
        if use_cache and len(input_ids) == 3:
            raise NotImplementedError("four rows")
        return super().forward(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache, **words)


def test_rows_that_end_before_others_are_tried(small):
    model = replace(small, model=NoFewer(small.model.config).eval())
    with pytest.raises(BadInput, match=r"tiny cannot answer prompts \(NotImplementedError: four rows\)"):
        rehearse(model, writes="nothing", trains=False)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (NoAnswers, r"tiny cannot answer prompts \(NotImplementedError: no cache here\): use another model"),
        (NoGradient, r"tiny cannot be trained \(RuntimeError: "),
    ],
)
def test_what_an_architecture_cannot_do(small, kind, message):
    model = replace(small, model=kind(small.model.config).eval())
    with pytest.raises(BadInput, match=message):
        rehearse(model, writes="nothing")
    rehearse(model, writes="nothing", trains=kind is NoAnswers, generates=kind is NoGradient)


def test_answers_are_tried_with_padding_and_of_unequal_lengths(small, monkeypatch):
    written = []
    monkeypatch.setattr(
        rehearsal, "write", lambda model, rows, ends, counts, *_, repeats: written.append((rows, counts, repeats)) or []
    )
    rehearse(small, trains=False)
    ((rows, counts, repeats),) = written
    assert len(rows[0]) > len(rows[1]) and repeats == 2 and counts == [3, 1, 2, 3]


def test_nothing_to_train(fresh):
    with pytest.raises(BadInput, match="no parameter that requires a gradient"):
        rehearse(replace(fresh, model=fresh.model.requires_grad_(False)))
    with pytest.raises(BadInput, match=r"writes is 'modle'. Did you mean 'model'"):
        rehearse(fresh, writes="modle")


def test_the_tokens_that_are_tried(small):
    begin, last, other = small.tokenizer.bos_token_id, small.vocabulary - 2, small.vocabulary - 1
    rows = [(begin, last, last, last), (begin, last, other, other), (begin, other, last)]
    assert rehearsal._examples(small) == [Example(row, (IGNORE, *row[1:])) for row in rows]
    few = SimpleNamespace(vocabulary=5, end_ids={4, 2})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rehearsal, "frame", lambda model: ([], []))
        assert [each.input_ids for each in rehearsal._examples(few)] == [(1, 1, 1), (1, 3, 3), (3, 1)]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("odd\n reason\n\nand more"), "ValueError: odd reason"),
        (KeyError(), "KeyError: no reason given"),
        (RuntimeError("x" * 301), f"RuntimeError: {'x' * 300}"),
    ],
)
def test_whatever_is_raised_is_one_sentence(error, told):
    def work():
        raise error

    with pytest.raises(BadInput) as caught:
        rehearsal._try("m cannot do it", work)
    assert str(caught.value) == f"m cannot do it ({told}): use another model."
    assert caught.value.__cause__ is error


def test_sentences_of_the_house_are_left_as_they_are():
    def work():
        raise WorkFailed("Out of memory.")

    with pytest.raises(WorkFailed, match=r"^Out of memory\.$"):
        rehearsal._try("m cannot do it", work)
    rehearsal._try("m cannot do it", lambda: "whatever comes")


def test_what_is_tried_and_what_is_not(small, monkeypatch):
    tried = []
    for name in ("_refuse_sight_of_what_follows", "_gradient", "_loaded_again", "require_base"):
        monkeypatch.setattr(rehearsal, name, lambda *given, name=name: tried.append(name))
    monkeypatch.setattr(rehearsal, "token_log_likelihoods", lambda *given: tried.append("score"))
    monkeypatch.setattr(
        rehearsal, "generate", lambda model, prompts, max_new_tokens: tried.append((prompts, max_new_tokens))
    )
    always, answers = ["score", "_refuse_sight_of_what_follows"], (["a", "a a a"], 2)
    for options, more in (
        ({}, ["_gradient", answers, "_loaded_again"]),
        ({"trains": False}, [answers, "_loaded_again"]),
        ({"generates": False, "writes": "adapter"}, ["_gradient", "require_base"]),
        ({"writes": "nothing"}, ["_gradient", answers]),
    ):
        tried.clear()
        rehearse(small, **options)
        assert tried == [*always, *more]


@pytest.mark.parametrize(("apart", "seen"), [(0.0, False), (0.9e-3, False), (1.1e-3, True)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_how_far_predictions_may_be_apart(small, monkeypatch, apart, seen, scale):
    """In units of the largest logit; of the first two rows, at the one place where both have read the same."""
    asked = []

    def logits(model, batch):
        asked.append(batch["labels"].tolist())
        return torch.tensor([[1.0, -0.5], [1.0, -0.5 - apart]]) * scale, None, None

    monkeypatch.setattr(rehearsal, "labelled_logits", logits)
    examples = rehearsal._examples(small)
    with pytest.raises(BadInput) if seen else contextlib.nullcontext() as caught:
        rehearsal._refuse_sight_of_what_follows(small, examples)
    last = small.vocabulary - 2
    assert asked == [[[IGNORE, last, IGNORE, IGNORE]] * 2]
    if seen:
        assert str(caught.value) == (
            "tiny (LlamaForCausalLM) sees the tokens that it should predict: it is no causal model, so its scores "
            "would mean nothing."
        )


def test_roundings_of_a_narrow_type_are_let_by(small, monkeypatch):
    for apart, seen in ((2**-6, False), (2**-4, True)):
        values = torch.tensor([[1.0], [1.0 - apart]], dtype=torch.bfloat16)
        monkeypatch.setattr(rehearsal, "labelled_logits", lambda *_, values=values: (values, None, None))
        with pytest.raises(BadInput) if seen else contextlib.nullcontext():
            rehearsal._refuse_sight_of_what_follows(small, rehearsal._examples(small))


def test_gradients_that_are_no_numbers(fresh):
    rehearsal._gradient(fresh, rehearsal._examples(fresh))
    with torch.no_grad():
        fresh.model.model.norm.weight[0] = torch.nan
    with pytest.raises(BadInput) as caught:
        rehearsal._gradient(fresh, rehearsal._examples(fresh))
    assert str(caught.value) == "tiny has a gradient that is no number, on three tokens: use float32 or bfloat16."
    fresh.model.requires_grad_(False)
    with pytest.raises(BadInput) as caught:
        rehearsal._gradient(fresh, rehearsal._examples(fresh))
    assert str(caught.value) == "tiny has no parameter that requires a gradient: nothing would be trained."


def test_roundings_that_are_let_by_are_four(small, monkeypatch):
    """Of bfloat16, whose rounding is 2^-7: at 2^-5 two predictions are as far apart as they may be."""
    for apart, seen in ((2**-5, False), (2**-5 + 2**-8, True)):
        values = torch.tensor([[1.0], [1.0 - apart]], dtype=torch.bfloat16)
        monkeypatch.setattr(rehearsal, "labelled_logits", lambda *_, values=values: (values, None, None))
        with pytest.raises(BadInput) if seen else contextlib.nullcontext():
            rehearsal._refuse_sight_of_what_follows(small, rehearsal._examples(small))


def test_a_first_parameter_that_takes_no_part_is_no_fault(fresh):
    extra = torch.nn.Parameter(torch.ones(1))
    fresh.model.register_parameter("extra", extra)
    assert next(fresh.model.parameters()) is extra
    rehearsal._gradient(fresh, rehearsal._examples(fresh))


def test_the_gradient_is_taken_of_the_first_parameter_alone(fresh, monkeypatch):
    asked, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, of, **how: asked.append(of) or grad(loss, of, **how))
    first = next(fresh.model.parameters())
    rehearsal._gradient(fresh, rehearsal._examples(fresh))
    ((only,),) = asked
    assert only is first


def test_answers_that_are_repeated_are_tried_on_unequal_prompts_and_ends(small, monkeypatch):
    asked = []

    def write(language_model, rows, ends, limits, choose, *, repeats):
        logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])
        asked.append((rows, ends, limits, repeats, choose(logits, None, [0, 1], 0).tolist(), small.model.training))
        yield from ()

    monkeypatch.setattr(rehearsal, "write", write)
    examples = rehearsal._examples(small)
    rehearsal._repeated(small, examples)
    rows = [examples[0].input_ids, examples[2].input_ids]
    assert len(rows[0]) == len(rows[1]) + 1
    assert asked == [(rows, frozenset(), [3, 1, 2, 3], 2, [1, 0], False)]
