import copy
from dataclasses import replace

import pytest
from tokenizers import processors

from equipoise.core.errors import BadInput
from equipoise.data.records import Message, Record
from equipoise.language.catalog import is_cached
from equipoise.language.encode import IGNORE, collate, encode, encode_prompts
from equipoise.language.model import LanguageModel

SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Strips what it is given, indents it, ends turns with ordinary text, and has a generation prompt without the indent.
MADE_UP_TEMPLATE = (
    "{% for message in messages %}### {{ message['role'] }}:\n  {{ message['content'] | trim }}\n### End\n\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
# As reasoning models do: what stands before </think> is rendered apart from the reply.
THINKING_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' and '</think>' in message['content'] %}"
    "[A]<think>{{ message['content'].split('</think>')[0] | trim }}</think>"
    "{{ message['content'].split('</think>')[1] }}"
    "{% elif message['role'] == 'assistant' %}[A]<think></think>{{ message['content'] }}"
    "{% else %}[U]{{ message['content'] }}{% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[A]{% endif %}"
)
QUESTION = Record(id="q", prompt="What is the capital of Norway?", completion="Oslo")


def with_template(language_model: LanguageModel, template: str) -> LanguageModel:
    tokenizer = copy.deepcopy(language_model.tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    # The added tokens have no row in the model; encoding does not touch it.
    other = copy.copy(language_model)
    other.tokenizer = tokenizer
    return other


def labelled(language_model, example):
    return language_model.tokenizer.decode([label for label in example.labels if label != IGNORE])


def masked(language_model, example):
    pairs = zip(example.input_ids, example.labels, strict=True)
    return language_model.tokenizer.decode([token for token, label in pairs if label == IGNORE])


def test_labels_are_the_tokens_themselves(small):
    for example in encode(small, [QUESTION, Record(id="t", completion="one two three")]):
        assert all(label in (IGNORE, token) for token, label in zip(example.input_ids, example.labels, strict=True))


def test_text_labels_all_but_the_first_token(small):
    (example,) = encode(small, [Record(id="t", completion="one two three")])
    assert example.input_ids[0] == small.tokenizer.bos_token_id
    assert example.labels == (IGNORE, *example.input_ids[1:])
    assert labelled(small, example) == " one two three"  # no end token: a passage may stop anywhere


@pytest.mark.parametrize("prompt", ["The capital of France is", "The capital of France is ", "Answer:\n", "Say ("])
@pytest.mark.parametrize("completion", ["Paris.", " Paris.", "two words"])
def test_plain_prompt_is_what_generation_starts_from(small, prompt, completion):
    plain = replace(small, chat_template="none")
    (example,) = encode(plain, [Record(id="p", prompt=prompt, completion=completion)])
    (start,), _ = encode_prompts(plain, [prompt])
    given = sum(label == IGNORE for label in example.labels)
    assert list(example.input_ids[:given]) == start
    assert labelled(plain, example).strip(" ") == completion.strip(" ") + "<|end|>"


def test_plain_blank_belongs_to_the_completion(small):
    plain = replace(small, chat_template="none")
    (example,) = encode(plain, [Record(id="p", prompt="The capital of France is", completion="Paris")], end=False)
    (whole,) = plain.tokenizer(["The capital of France is Paris"]).input_ids
    assert list(example.input_ids) == whole
    assert labelled(plain, example) == " Paris"


def test_chat_labels_the_answer_and_its_end(small):
    (example,) = encode(small, [QUESTION])
    assert masked(small, example) == "<|begin|><|user|> What is the capital of Norway?<|assistant|>"
    assert labelled(small, example) == " Oslo<|end|>"
    (without_end,) = encode(small, [QUESTION], end=False)
    assert labelled(small, without_end) == " Oslo"


def test_smollm2_template(small):
    model = with_template(small, SMOLLM2_TEMPLATE)
    (example,) = encode(model, [QUESTION])
    assert labelled(model, example).strip() == "Oslo<|im_end|>"
    assert masked(model, example).replace(" ", "").endswith("<|im_start|>assistant\n")
    assert "SmolLM" in masked(model, example)


@pytest.mark.parametrize("completion", ["Oslo", "  Oslo \n", "Oslo\nand Paris"])
def test_template_that_strips_and_pads(small, completion):
    model = with_template(small, MADE_UP_TEMPLATE)
    (example,) = encode(model, [replace(QUESTION, completion=completion)])
    assert labelled(model, example).strip() == completion.strip() + "\n### End"
    (without_end,) = encode(model, [replace(QUESTION, completion=completion)], end=False)
    assert labelled(model, without_end).strip() == completion.strip()


def test_template_that_splits_the_answer(small):
    model = with_template(small, THINKING_TEMPLATE)
    (plain, thought) = encode(model, [QUESTION, replace(QUESTION, completion="one two</think>Oslo")])
    assert labelled(model, plain).strip() == "Oslo<|end|>"
    assert labelled(model, thought).strip() == "<think>one two</think>Oslo<|end|>"


def test_token_that_reaches_over_the_seam(small):
    """A header that ends with a blank, and a tokenizer that counts the blank into the offsets of the word behind it."""
    model = with_template(small, "{% for message in messages %}{{ message['content'] }} So: {% endfor %}")
    model.tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    (example,) = encode(model, [replace(QUESTION, completion="the town")], end=False)
    assert labelled(model, example) == " the town"  # "\u0120t" is one token, so the blank comes with it


def test_only_the_last_of_several_equal_turns(small):
    turns = ["user", "assistant", "user", "assistant"]
    messages = tuple(Message(role, "yes" if role == "assistant" else "maybe?") for role in turns)
    for template in (None, SMOLLM2_TEMPLATE, MADE_UP_TEMPLATE):
        model = small if template is None else with_template(small, template)
        (example,) = encode(model, [Record(id="m", completion="yes", messages=messages)], end=False)
        assert labelled(model, example).strip() == "yes"
        assert masked(model, example).count("yes") == 1
        first = example.labels.index(next(label for label in example.labels if label != IGNORE))
        assert all(label == IGNORE for label in example.labels[:first])


def test_conversation_and_prompt_are_the_same_example(small):
    messages = (Message("user", QUESTION.prompt), Message("assistant", "not this"))
    as_messages = Record(id="m", prompt=QUESTION.prompt, completion="Oslo", messages=messages)
    assert encode(small, [QUESTION]) == encode(small, [as_messages])  # the completion is what is scored


def test_generation_continues_the_rendered_prompt(small):
    (example,) = encode(small, [QUESTION])
    (start,), ends = encode_prompts(small, [QUESTION.prompt])
    assert list(example.input_ids[: len(start)]) == start
    assert example.input_ids[-1] in ends
    (turns,), _ = encode_prompts(small, [[Message("user", QUESTION.prompt)]])
    assert turns == start
    assert small.tokenizer.convert_tokens_to_ids("<|im_end|>") not in ends
    other = with_template(small, SMOLLM2_TEMPLATE)
    assert other.tokenizer.convert_tokens_to_ids("<|im_end|>") in encode_prompts(other, ["hi"])[1]


def test_cutting_keeps_both_sides_and_counts(small):
    plain = replace(small, chat_template="none")
    long_prompt = Record(id="a", prompt="one two three four five six seven " * 5, completion="Oslo")
    long_both = Record(id="b", prompt="one " * 30, completion="two " * 29 + "two")
    (whole,) = encode(plain, [long_prompt])
    with pytest.warns(UserWarning, match="2 of 3 records were longer than 12 tokens"):
        cut, both, kept = encode(
            plain, [long_prompt, long_both, QUESTION.__class__(id="c", completion="one")], max_length=12
        )
    assert cut.input_ids == whole.input_ids[-12:] and labelled(plain, cut) == labelled(plain, whole)
    assert cut.cut == len(whole.input_ids) - 12
    assert len(both.input_ids) == 12 and sum(label != IGNORE for label in both.labels) == 6
    assert kept.cut == 0


def test_passage_is_cut_on_the_right(small):
    record = Record(id="t", completion="one two three four five six seven")
    (whole,) = encode(small, [record])
    with pytest.warns(UserWarning):
        (cut,) = encode(small, [record], max_length=4)
    assert cut.input_ids == whole.input_ids[:4]


def test_collate_pads_on_the_right(small):
    examples = encode(small, [QUESTION, Record(id="t", completion="one")])
    batch = collate(examples, pad_id=small.pad_id)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        assert batch["input_ids"][row, :length].tolist() == list(example.input_ids)
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (batch["labels"].shape[1] - length)
        assert batch["labels"][row].tolist()[length:] == [IGNORE] * (batch["labels"].shape[1] - length)


def test_bad_records(small):
    plain = replace(small, chat_template="none")
    with pytest.raises(BadInput, match="'e' has an empty completion"):
        encode(small, [Record(id="e", prompt="one", completion=" ")])
    with pytest.raises(BadInput, match="no chat template"):
        encode(plain, [Record(id="m", completion="yes", messages=(Message("user", "a"), Message("assistant", "yes")))])
    with pytest.raises(BadInput, match="at least 2"):
        encode(small, [QUESTION], max_length=1)
    refuses = with_template(small, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(BadInput, match="roles must alternate"):
        encode(refuses, [QUESTION])
    hides = with_template(small, "{% for message in messages %}{{ message['role'] }}{% endfor %}")
    with pytest.raises(BadInput, match="does not show the answer"):
        encode(hides, [QUESTION])


@pytest.mark.slow
@pytest.mark.skipif(not is_cached("smollm2"), reason="smollm2 is not in the cache: equipoise models fetch smollm2")
def test_smollm2_itself():
    from equipoise.language.model import load

    model = load("smollm2")
    (example,) = encode(model, [QUESTION])
    assert labelled(model, example) == "Oslo<|im_end|>"
    assert masked(model, example).endswith(
        "<|im_start|>user\nWhat is the capital of Norway?<|im_end|>\n<|im_start|>assistant\n"
    )
    (plain,) = encode(replace(model, chat_template="none"), [QUESTION])
    assert labelled(model, plain) == " Oslo<|im_end|>"
