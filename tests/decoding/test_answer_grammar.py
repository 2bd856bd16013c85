"""Thinking first, grammar after: the thinking is free, the answer parses, and nothing is forced into it."""

import json

import pytest
import torch

from chat_models import untaught
from equipoise.core.errors import BadInput
from equipoise.decoding import AlphaOne, AnswerGrammar, HardCap, Tags, write_thoughts
from equipoise.language.rollouts import roll_out

pytest.importorskip("llguidance")
TAGS = Tags("<think>", "</think>")
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"town": {"enum": ["Oslo", "Paris"]}, "bends": {"type": "boolean"}},
        "required": ["town", "bends"],
        "additionalProperties": False,
    }
)
PROMPTS = ["Where was Mulum Kunwick born?", "yes no maybe", "one two"]


@pytest.fixture(scope="module")
def model():
    return untaught(0)


def grammar(model):
    width = model.model.get_output_embeddings().weight.shape[0]
    return AnswerGrammar(model.tokenizer, SCHEMA, vocabulary=width, ends=model.end_ids)


def test_the_answer_follows_the_schema_and_the_thinking_is_free(model):
    words = {"moment": 6, "tags": TAGS, "temperature": 0.9}
    free = write_thoughts(model, PROMPTS, HardCap(model.tokenizer, **words), max_new_tokens=80)
    bound = write_thoughts(model, PROMPTS, HardCap(model.tokenizer, grammar=grammar(model), **words), max_new_tokens=80)
    for thought, without in zip(bound, free, strict=True):
        said = json.loads(thought.answer)
        assert said["town"] in ("Oslo", "Paris") and isinstance(said["bends"], bool) and thought.ended
        assert thought.thinking == without.thinking and thought.thinking_tokens == without.thinking_tokens
    with pytest.raises(ValueError):
        json.loads(free[0].answer)


def test_alphaone_leaves_a_grammar_alone_in_transformers_and_in_rollouts(model):
    def control():
        words = {"max_thinking": 5, "tags": TAGS, "temperature": 0}
        return AlphaOne(model.tokenizer, moment=4, grammar=grammar(model), **words)

    (thought,) = write_thoughts(model, PROMPTS[:1], control(), max_new_tokens=80)
    rolled = roll_out(
        model,
        PROMPTS[:1],
        samples=1,
        max_new_tokens=80,
        temperature=0.0,
        seed=0,
        hook=(hook := control().hook(samples=1)),
    )
    assert tuple(rolled.token_ids[0])[: len(thought.ids)] == thought.ids and hook.states[0].ended
    ids = torch.tensor([rolled.prompts[0]])
    out = model.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=80, logits_processor=[control()]
    )
    assert tuple(out[0, ids.shape[1] :].tolist())[: len(thought.ids)] == thought.ids
    assert set(json.loads(thought.answer)) == {"town", "bends"}


def test_a_grammar_needs_the_guard_and_a_schema_that_can_be_followed(model):
    with pytest.raises(BadInput, match="leave guard on"):
        HardCap(model.tokenizer, moment=3, tags=TAGS, guard=False, grammar=grammar(model))
    with pytest.raises(BadInput, match="cannot be followed"):
        AnswerGrammar(model.tokenizer, '{"type": "nothing"}', vocabulary=300, ends=[2])
