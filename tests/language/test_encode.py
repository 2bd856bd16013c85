import copy
import importlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tokenizers import processors

from equipoise.core.errors import BadInput
from equipoise.data.records import Message, Record
from equipoise.language.catalog import is_cached
from equipoise.language.encode import IGNORE, Example, collate, encode, encode_prompts, notes, other_beginning
from equipoise.language.generate import generate
from equipoise.language.model import LanguageModel
from equipoise.language.score import perplexity
from equipoise.language.tiny import tiny
from frames import FRAMES, framed

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
# As DeepSeek-R1's: reasoning is taken out of finished turns, and put before new ones.
CUTTING_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}[A]{{ message['content'].split('</think>')[-1] }}"
    "{{ eos_token }}{% else %}[U]{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[A]<think>\n{% endif %}"
)
NO_END_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% if not loop.last %}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ eos_token }}[assistant]{% endif %}"
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
encoding = importlib.import_module("equipoise.language.encode")  # the package shows the function of that name
QUESTION = Record(id="q", prompt="What is the capital of Norway?", completion="Oslo")


def with_template(language_model: LanguageModel, template: str) -> LanguageModel:
    tokenizer = copy.deepcopy(language_model.tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    model = copy.deepcopy(language_model.model)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return replace(language_model, model=model, tokenizer=tokenizer)


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
    assert cut.input_ids == whole.input_ids[:1] + whole.input_ids[-11:] and labelled(plain, cut) == labelled(
        plain, whole
    )
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


@pytest.mark.parametrize(("before", "after"), FRAMES)
@pytest.mark.parametrize("completion", ["Oslo", "one two three four five six seven"])
def test_what_the_tokenizer_puts_around_a_text(small, before, after, completion):
    """Against the tokenizer's own output: passages, pairs and prompts have it, and every other token is labelled."""
    model = framed(small, before, after)
    tokenizer, count = model.tokenizer, len(before)
    prompt = "The capital of Norway is"
    begin, end = tokenizer.convert_tokens_to_ids(list(before)), tokenizer.convert_tokens_to_ids(list(after))

    (passage,) = encode(model, [Record(id="t", completion=f"{prompt} {completion}")])
    assert list(passage.input_ids) == tokenizer(f"{prompt} {completion}").input_ids
    assert passage.labels == (*[IGNORE] * max(count, 1), *passage.input_ids[max(count, 1) :])

    (pair,) = encode(model, [Record(id="p", prompt=prompt, completion=completion)])
    body = tokenizer(f"{prompt} {completion}", add_special_tokens=False).input_ids
    assert list(pair.input_ids) == begin + body + (end or [tokenizer.eos_token_id])
    given = count + len(tokenizer(prompt, add_special_tokens=False).input_ids)
    assert pair.labels == (*[IGNORE] * given, *pair.input_ids[given:])
    (without_end,) = encode(model, [Record(id="p", prompt=prompt, completion=completion)], end=False)
    assert list(without_end.input_ids) == begin + body

    (start,), ends = encode_prompts(model, [prompt])
    assert start == list(pair.input_ids[:given])
    assert pair.input_ids[count + len(body)] in ends  # the first token behind the answer ends it


@pytest.mark.parametrize(("before", "after"), FRAMES)
def test_cutting_leaves_the_beginning(small, before, after):
    model, count = framed(small, before, after), len(before)
    with pytest.warns(UserWarning):
        pair, passage = encode(
            model,
            [Record(id="p", prompt="one two three " * 9, completion="Oslo"), Record(id="t", completion="one two " * 9)],
            max_length=10,
        )
    begin = tuple(model.tokenizer.convert_tokens_to_ids(list(before)))
    for example in (pair, passage):
        assert example.input_ids[:count] == begin and len(example.input_ids) == 10
        assert all(label == IGNORE for label in example.labels[: max(count, 1)])
    assert labelled(model, pair).startswith(" Oslo")
    with pytest.raises(BadInput, match=f"use at least {max(count + 1, 2)}"):
        encode(model, [QUESTION], max_length=max(count, 1))


def test_reasoning_that_the_template_cuts_away_is_told(small):
    thought = replace(QUESTION, id="th", completion="<think>one two</think>Oslo")
    model = with_template(small, CUTTING_TEMPLATE)
    with pytest.warns(
        UserWarning, match="1 of 2 records have a completion of which the chat template leaves a part out"
    ):
        plain, cut = encode(model, [QUESTION, thought])
    assert (plain.hidden, cut.hidden) == (False, True)
    assert labelled(model, cut).strip() == "Oslo<|end|>"
    assert [note.split(" records ")[0] for note in notes([plain, cut])] == ["1 of 2"]
    with pytest.raises(BadInput, match="leaves nothing of the completion"):
        encode(model, [replace(thought, completion="<think>one two</think>")])
    shown = with_template(small, THINKING_TEMPLATE)
    assert not any(example.hidden for example in encode(shown, [QUESTION, thought]))


def test_generation_that_begins_elsewhere_is_told(small):
    assert "with '<think>' and a learnt" in str(other_beginning(with_template(small, CUTTING_TEMPLATE))).replace(
        "\\n", ""
    )
    assert "with '' and a learnt or scored one with '<think></think>'" in str(
        other_beginning(with_template(small, THINKING_TEMPLATE))
    )
    assert other_beginning(small) is None and other_beginning(with_template(small, SMOLLM2_TEMPLATE)) is None
    assert other_beginning(replace(small, chat_template="none")) is None


@pytest.mark.parametrize("template", [NO_END_TEMPLATE, MADE_UP_TEMPLATE])
def test_a_template_without_an_end_token_is_told(small, template):
    model = with_template(small, template)
    with pytest.warns(UserWarning, match="1 of 1 records end without a token at which generation stops") as told:
        (example,) = encode(model, [QUESTION])
    assert {warning.filename for warning in told} == {__file__}  # whoever encodes is pointed at
    assert example.open and "Oslo" in labelled(model, example)
    assert not encode(model, [QUESTION], end=False)[0].open
    no_end = framed(small, ("<|begin|>",), ())
    no_end.tokenizer.eos_token = None
    with pytest.warns(UserWarning, match="end without a token"):
        assert encode(no_end, [QUESTION])[0].open
    assert not any(example.open for example in encode(small, [QUESTION, Record(id="t", completion="one two")]))


def test_the_last_token_behind_an_answer_is_the_one_that_ends_it(small):
    begun = "{% for message in messages %}{% if message['role'] == 'assistant' %}[A]{{ message['content'] }}; done"
    model = with_template(small, begun + "{{ eos_token }}{% else %}[U]{{ message['content'] }}{% endif %}{% endfor %}")
    (example,) = encode(model, [QUESTION])
    assert not example.open and labelled(model, example).endswith(f"; done{model.tokenizer.eos_token}")


@pytest.mark.parametrize("trailing", ["", " ", "  "])
def test_a_header_that_ends_in_a_blank(small, trailing):
    """The blank is part of the first word's token, in what is learnt as in what is generated."""
    header = "[" + "A:" + trailing
    model = with_template(
        small,
        "{% for message in messages %}{% if message['role'] == 'assistant' %}" + header + "{{ message['content'] }}"
        "{{ eos_token }}{% else %}[U]{{ message['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}" + header + "{% endif %}",
    )  # fmt: skip
    (example,) = encode(model, [QUESTION])
    (start,), _ = encode_prompts(model, [QUESTION.prompt])
    given = sum(label == IGNORE for label in example.labels)
    assert list(example.input_ids[:given]) == start
    assert labelled(model, example).strip() == "Oslo<|end|>"


def test_an_answer_that_has_begun_is_continued(small):
    for template in (None, SMOLLM2_TEMPLATE, MADE_UP_TEMPLATE):
        model = small if template is None else with_template(small, template)
        turns = [Message("user", QUESTION.prompt), Message("assistant", "The capital is ")]
        (start,), ends = encode_prompts(model, [turns])
        (fresh,), its_ends = encode_prompts(model, [QUESTION.prompt])
        assert model.tokenizer.decode(start).endswith("The capital is") and ends == its_ends
        (whole,) = encode(model, [replace(QUESTION, completion="The capital is Oslo")], end=False)
        assert whole.input_ids[: len(start)] == tuple(start) and len(start) > len(fresh)
    with pytest.raises(BadInput, match="does not show the answer that has begun"):
        encode_prompts(
            with_template(small, CUTTING_TEMPLATE), [[*turns[:1], Message("assistant", "<think>a</think>b")]]
        )
    with pytest.raises(BadInput, match="Prompt 0 is empty"):
        encode_prompts(small, [[]])


def test_halves_of_surrogate_pairs_are_one_sentence(small):
    half = "one \ud83d two"
    plain = replace(small, chat_template="none")
    for model in (small, plain):
        for record in (
            replace(QUESTION, completion=half),
            replace(QUESTION, prompt=half),
            Record(id="q", completion=half),
        ):
            with pytest.raises(BadInput, match=r"Record 'q' holds half of a surrogate pair, behind '.*one '"):
                encode(model, [record])
        with pytest.raises(BadInput, match="Prompt 1 holds half of a surrogate pair"):
            generate(model, ["one", half])
        with pytest.raises(BadInput, match="Text 0 holds half"):
            perplexity(model, [half])
    with pytest.raises(BadInput, match="Text 1 holds half"):
        tiny(["one", half], seed=0)


def test_tokens_without_an_embedding(small):
    """As Gemma 3 has one: the tokenizer knows one token more than the model. Only a text that holds it is refused."""
    tokenizer = copy.deepcopy(small.tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<picture>"]})
    assert len(tokenizer) == small.vocabulary + 1
    model = LanguageModel(small.model, tokenizer, "gemma", "source")
    plain = replace(model, chat_template="none")
    assert encode(model, [QUESTION]) == encode(small, [QUESTION]) and generate(model, ["one"]) == generate(
        small, ["one"]
    )
    message = (
        rf"Record 'q' holds the token '<picture>', number {small.vocabulary} from 0, but gemma has embeddings for 300"
    )
    for asked in (model, plain):
        with pytest.raises(BadInput, match=message):
            encode(asked, [replace(QUESTION, prompt="what is <picture>?")])
        with pytest.raises(BadInput, match="Prompt 0 holds the token '<picture>'"):
            generate(asked, ["what is <picture>?"])
    with pytest.raises(BadInput, match="Text 0 holds the token '<picture>'"):
        perplexity(model, ["<picture>"])
    tokenizer.eos_token = "<picture>"
    with pytest.raises(BadInput, match="The end of an answer holds the token '<picture>'"):
        encode(plain, [QUESTION])
    with pytest.raises(BadInput, match="Every text holds the token '<picture>'"):
        encode(framed(replace(model, tokenizer=tokenizer), ("<picture>",), ()), [QUESTION])


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


def piece(begin, given, said, end=(), **more):
    return encoding._Piece([*begin], [*given], [*said], [*end], **more)


@pytest.mark.parametrize(
    ("built", "most", "given", "said", "cut"),
    [
        (piece([1], [2, 3], [4, 5], [6]), 6, [1, 2, 3], [4, 5, 6], 0),
        (piece([1], [2, 3], [4, 5], [6]), 5, [1, 3], [4, 5, 6], 1),
        (piece([1], [2, 3], [4, 5], [6]), 4, [1, 3], [4, 5], 2),
        (piece([1], [2, 3, 7], [4, 5, 8], [6]), 4, [1, 7], [4, 5], 4),  # half of the places stay those of the prompt
        (piece([1], [2, 3, 7], [4, 5, 8], [6]), 5, [1, 7], [4, 5, 8], 3),
        (piece([], [2, 3, 7], [4, 5], [6]), 4, [3, 7], [4, 5], 2),
        (piece([1, 9], [2, 3], [4, 5], [6]), 3, [1, 9], [4], 4),  # what begins every text is never cut
        (piece([1], [], [4, 5, 8, 9]), 3, [1], [4, 5], 2),
    ],
)
def test_what_is_cut_where(built, most, given, said, cut):
    labels = (*[IGNORE] * len(given), *said)
    assert encoding._example(built, most) == Example((*given, *said), labels, cut)


def test_an_example_says_what_its_record_lost():
    found = encoding._example(piece([], [], [4, 5, 6], hidden=True, open=True), 2)
    assert found == Example((4, 5), (IGNORE, 5), 1, True, True)  # nothing predicts the first token
    assert Example((1,), (2,)) == Example((1,), (2,), cut=0, hidden=False, open=False)
    assert piece([1], [2], [3]) == encoding._Piece([1], [2], [3], [], False, False)


def test_notes_are_sentences_with_their_counts():
    cut, longer, whole = (Example((0,) * n, (0,) * n, cut) for n, cut in ((5, 2), (7, 1), (9, 0)))
    assert notes([]) == notes([whole]) == []
    assert notes([cut, longer, whole]) == ["2 of 3 records were longer than 7 tokens and were cut; see max_length."]
    hidden, open_ended = replace(whole, hidden=True), replace(whole, open=True)
    assert notes([hidden, open_ended, hidden, whole]) == [
        "2 of 4 records have a completion of which the chat template leaves a part out, mostly reasoning: that part "
        "is neither learnt nor scored. Use a template that shows it, or chat_template none.",
        "1 of 4 records end without a token at which generation stops, since the chat template or the tokenizer puts "
        "none: where an answer ends is not learnt from them.",
    ]


def test_a_batch_by_hand():
    batch = collate([Example((1, 2, 3), (IGNORE, 2, 3)), Example((4,), (IGNORE,))], 9)
    assert {name: rows.tolist() for name, rows in batch.items()} == {
        "input_ids": [[1, 2, 3], [4, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[-100, 2, 3], [-100, -100, -100]],
    }
    assert {str(rows.dtype) for rows in batch.values()} == {"torch.int64"}
    assert all(rows.numel() == 0 for rows in collate([], 9).values())
    assert collate([Example((1,), (1,))], 9, "meta")["labels"].device.type == "meta"


def test_lengths_at_their_edges(small):
    """512 tokens unless it is said otherwise, the model's context at most, and room for a label at least."""
    plain = replace(small, chat_template="none")
    record = Record(id="t", completion="one " * 600)
    with pytest.warns(UserWarning, match="1 of 1 records were longer than 128 tokens"):
        assert len(encode(plain, [record], max_length=9999)[0].input_ids) == plain.context == 128
    wide = replace(plain, model=copy.deepcopy(plain.model))
    wide.model.config.max_position_embeddings = 4096
    with pytest.warns(UserWarning, match="1 of 1 records were longer than 512 tokens"):
        encode(wide, [record])
    with pytest.warns(UserWarning):
        assert encode(plain, [record], max_length=2)[0].labels[0] == IGNORE
    with pytest.raises(BadInput) as caught:
        encode(plain, [record], max_length=1)
    assert str(caught.value) == (
        "max_length is 1, but a label needs a token before it, and tiny puts 1 before every text: use at least 2."
    )
    bare = framed(small, (), ())
    word = max(bare.tokenizer.get_vocab(), key=lambda token: (token.startswith("\u0120"), len(token)))[1:]
    with pytest.raises(BadInput) as caught:
        encode(bare, [Record(id="s", completion=word)])
    assert str(caught.value) == "Record 's' has no token to learn or to score: its text is a single token."
    with pytest.raises(BadInput) as caught:
        encode(bare, [Record(id="s", completion=" \n")])
    assert str(caught.value) == "Record 's' has an empty completion: there is nothing to learn or to score."


def test_a_conversation_without_a_template(small):
    turns = Record(id="m", completion="yes", messages=(Message("user", "a"), Message("assistant", "yes")))
    without = replace(small, tokenizer=copy.deepcopy(small.tokenizer), name="bare")
    without.tokenizer.chat_template = None
    for model, reason in (
        (replace(small, chat_template="none"), "chat_template is 'none'"),
        (without, "its tokenizer has none"),
    ):
        for what, ask in (
            ("Record 'm'", lambda model=model: encode(model, [turns])),
            ("Prompt 1", lambda model=model: encode_prompts(model, ["a", [Message("user", "b")]])),
        ):
            with pytest.raises(BadInput) as caught:
                ask()
            assert str(caught.value) == (
                f"{what} is a conversation, but {model.name} has no chat template ({reason}): give a Jinja file as "
                "chat_template, or records with prompt and completion."
            )


def test_prompts_that_are_empty(small):
    plain = framed(small, (), ())
    for model, prompts, sentence in (
        (small, ["a", ""], "Prompt 1 is empty: give it one word, or one turn."),
        (small, [[]], "Prompt 0 is empty: give it one word, or one turn."),
        (plain, ["a", "  "], "Prompt 1 is empty, and the model has no token that begins a text: give it one word."),
    ):
        with pytest.raises(BadInput) as caught:
            encode_prompts(model, prompts)
        assert str(caught.value) == sentence
    assert encode_prompts(replace(small, chat_template="none"), [""])[0] == [[small.tokenizer.bos_token_id]]
    assert encode_prompts(small, []) == ([], small.end_ids)


def test_texts_and_conversations_come_back_in_order(small):
    """Each with its own tokens; an answer that has begun beside one that has not."""
    asked = ["one", [Message("user", "two"), Message("assistant", "three ")], "four", [Message("user", "five")]]
    together, _ = encode_prompts(small, asked)
    assert together == [encode_prompts(small, [each])[0][0] for each in asked]
    decoded = [small.tokenizer.decode(ids).replace(" ", "") for ids in together]
    assert decoded == [
        "<|begin|><|user|>one<|assistant|>",
        "<|begin|><|user|>two<|assistant|>three",
        "<|begin|><|user|>four<|assistant|>",
        "<|begin|><|user|>five<|assistant|>",
    ]


def test_passages_and_frames(small):
    model = framed(small, ("<|begin|>",), ("<|end|>", "<|tool|>"))
    tokenizer = model.tokenizer
    begin, after = encoding.frame(model)
    assert tokenizer.convert_ids_to_tokens(begin) == ["<|begin|>"]
    assert tokenizer.convert_ids_to_tokens(after) == ["<|end|>", "<|tool|>"]
    words = tokenizer("one two", add_special_tokens=False).input_ids
    assert encoding.passages(model, ["one two", ""]) == [words + after, []]
    assert encoding.passages(model, []) == []
    _, ends = encode_prompts(model, ["one"])
    assert ends == model.end_ids | {after[0]}


@pytest.mark.parametrize(
    ("before", "shown"),
    [("", ""), ("x" * 19, "x" * 19), ("x" * 20, "x" * 20), ("x" * 21, "x" * 20), ("ab" + "y" * 20, "y" * 20)],
)
def test_half_a_character_is_shown_by_what_stands_before_it(before, shown):
    with pytest.raises(BadInput) as caught:
        encoding.check_text("Text 3", before + "\ud83d rest")
    assert str(caught.value) == (
        f"Text 3 holds half of a surrogate pair, behind {shown!r}: it was cut in the middle of a character. Mend the "
        "text, or leave it out."
    )
    assert encoding.check_text("Text 3", before + "\U0001f642") is None


@pytest.mark.parametrize(
    ("span", "completion", "shown"),
    [
        ("a b c", "abc", True),
        ("abxc", "a b\nc", True),
        ("ab", "abc", False),
        ("cba", "abc", False),
        ("aab", "aba", False),
        ("x", " ", True),
    ],
)
def test_whether_all_of_a_completion_is_shown(span, completion, shown):
    assert encoding._shows(span, completion) is shown


@pytest.mark.parametrize(
    ("tail", "end"),
    [
        ("<e>\n", "<e>"),
        (" x<e><eos>y", " x<e>"),
        ("<eos>", "<eos>"),
        ("<eo", "<eo"),
        ("### End \n\n", "### End"),
        (" \n", ""),
        ("<e>s", "<e>s"),  # of two that begin at one place the longer one
        ("a<added>", "a<added>"),
    ],
)
def test_what_ends_a_turn(tail, end):
    tokenizer = SimpleNamespace(all_special_tokens=["<eos>", "<e>", "<e>s", ""], added_tokens_decoder={7: "<added>"})
    assert encoding._end_of_turn(tokenizer, tail) == end


def test_where_a_generated_answer_begins_elsewhere_word_by_word(small):
    def told(learnt, generated):
        return other_beginning(with_template(
            small,
            "{% for message in messages %}{% if message['role'] == 'assistant' %}" + learnt + "{{ message['content'] }}"
            "{% else %}[U]{% endif %}{% endfor %}{% if add_generation_prompt %}" + generated + "{% endif %}",
        ))  # fmt: skip

    for learnt, generated, ends in (
        ("[A] x", "[A] yz", ("yz", "x")),
        ("[A] yzx", "[A] xzy", ("xzy", "yzx")),
        ("[A]", "[A]more", ("more", "")),
        ("[A]more", "[A]", ("", "more")),
    ):
        assert told(learnt, generated) == (
            f"The chat template begins a generated answer with {ends[0]!r} and a learnt or scored one with "
            f"{ends[1]!r}: what is generated after it (reasoning, mostly) was not trained and is not scored."
        )
    assert told("[A]  ", "[A]") is None and told("[A]", "[A] ") is None


def test_tokens_that_a_model_lacks(small):
    encoding._check_known(small, [[], [small.vocabulary - 1]], ["A", "B"])
    with pytest.raises(BadInput) as caught:
        encoding._check_known(small, [[3], [5, small.vocabulary, 999]], ["A", "B"])
    assert str(caught.value) == (
        f"B holds the token None, number {small.vocabulary} from 0, but tiny has embeddings for {small.vocabulary} "
        "tokens: leave the text out, or give the model the tokenizer that it was trained with."
    )


def test_a_tokenizer_without_offsets(small):
    slow = SimpleNamespace(is_fast=False, chat_template="x")
    with pytest.raises(BadInput) as caught:
        encoding._chat_pieces(SimpleNamespace(tokenizer=slow, name="m"), [QUESTION], True)
    assert str(caught.value) == "m has a tokenizer without offsets, which chat templates need: use a fast one."


def test_turns_before_the_answer(small):
    turns = (Message("system", "s"), Message("user", "u"))
    assert encoding._turns(Record(id="a", prompt="p", completion="c")) == [{"role": "user", "content": "p"}]
    expected = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    for messages in (turns, (*turns, Message("assistant", "old"))):
        assert encoding._turns(Record(id="a", completion="c", messages=messages)) == expected


def test_an_answer_that_has_begun_is_the_last_turn_of_many(small):
    language_model = with_template(small, SMOLLM2_TEMPLATE)
    turns = [
        Message("user", "one"),
        Message("assistant", "two"),
        Message("user", "three"),
        Message("assistant", "no one"),
    ]
    (ids,), _ = encode_prompts(language_model, [turns])
    said = language_model.tokenizer.decode(ids)
    assert said.endswith("assistant\nno one") and said.count("two") == 1 and said.count("three") == 1


def test_what_begins_a_conversation_is_never_cut_off(small):
    """The template itself writes the token that begins every text."""
    record = Record(id="long", prompt="What is the capital of Norway? " * 20, completion="Oslo")
    with pytest.warns(UserWarning, match="were cut"):
        (example,) = encode(replace(small, chat_template="auto"), [record], max_length=16)
    assert example.input_ids[0] == small.tokenizer.bos_token_id and len(example.input_ids) == 16 and example.cut
