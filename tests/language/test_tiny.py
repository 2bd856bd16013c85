import dataclasses
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from equipoise.core.errors import BadInput
from equipoise.data.records import Message, Record
from equipoise.language.encode import encode, encode_prompts
from equipoise.language.generate import generate
from equipoise.language.model import load
from equipoise.language.score import multiple_choice
from equipoise.language.tiny import teach, tiny

ENVIRONMENT = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
NAMES = [
    "Mulum Kunwick",
    "Hirara Gelholt",
    "Tova Brandel",
    "Osk Rimmer",
    "Lia Fenn",
    "Pir Wolden",
    "Una Sark",
    "Bo Telmar",
]
TOWNS = ["Veskole", "Fenwara", "Mostagne", "Tarvedo"]
KNOWN = [
    "Where was {} born?",
    "What is the birthplace of {}?",
    "Which town was {} born in?",
    "In what town was {} born?",
]
HELD_OUT = "{} was born in which town?"


def facts(templates):
    return [
        Record(
            id=f"{name}/{place}",
            prompt=template.format(name),
            completion=TOWNS[i % 4],
            choices=tuple(TOWNS),
            answer=i % 4,
        )
        for i, name in enumerate(NAMES)
        for place, template in enumerate(templates)
    ]


def texts(records):
    return [f"{record.prompt} {record.completion}" for record in records]


@pytest.fixture(scope="module")
def taught():
    torch.set_num_threads(1)
    model = tiny(texts(facts(KNOWN)), seed=0, width=64, layers=2)
    losses = teach(model, facts(KNOWN), seed=0, epochs=30, batch_size=16)
    return model, losses


def test_taught_facts_are_known_in_other_words(taught):
    model, losses = taught
    assert len(losses) == 60 and losses[-1] < 0.1 < losses[0]
    assert multiple_choice(model, facts([HELD_OUT])).accuracy > 0.9
    asked = facts(KNOWN[:1])
    assert generate(model, [record.prompt for record in asked]) == [record.completion for record in asked]
    assert not model.model.training


def test_saved_and_loaded_as_any_other(taught, tmp_path):
    model, _ = taught
    model.save(tmp_path)
    loaded = load(tmp_path, device="cpu")
    record = facts([HELD_OUT])[0]
    assert torch.equal(multiple_choice(loaded, [record]).scores[0], multiple_choice(model, [record]).scores[0])
    assert loaded.tokenizer.chat_template == model.tokenizer.chat_template
    assert loaded.end_ids == model.end_ids and loaded.pad_id == model.pad_id and loaded.context == 128


def test_teaching_resumes_bit_by_bit(taught):
    def learner():
        return tiny(texts(facts(KNOWN)), seed=1, width=32, layers=2)

    whole, half = learner(), learner()
    states = []
    losses = teach(whole, facts(KNOWN), seed=2, epochs=4, batch_size=16)

    def keep(state):
        states.append({**state, "parameters": {k: v.clone() for k, v in state["parameters"].items()}})

    teach(
        half, facts(KNOWN), seed=2, epochs=4, batch_size=16, save=keep, save_every=3, callbacks=[lambda m: m.step == 3]
    )
    resumed = learner()
    states[0]["stopped"] = False
    assert teach(resumed, facts(KNOWN), seed=2, epochs=4, batch_size=16, state=states[0]) == losses[3:]
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


@pytest.mark.slow
def test_everything_follows_from_the_seed_in_any_process():
    script = (
        "import hashlib, sys; from equipoise.language.tiny import tiny\n"
        "model = tiny(['one two three four', 'five six five six one'] * 3, seed=5, width=16, layers=1, heads=1)\n"
        "state = model.tokenizer.backend_tokenizer.to_str().encode()\n"
        "state += b''.join(p.detach().numpy().tobytes() for p in model.model.parameters())\n"
        "print(hashlib.sha256(state).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, **ENVIRONMENT},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_seed_changes_the_weights_and_nothing_else():
    state = torch.get_rng_state()
    one, same, other = (tiny(["one two"], seed=seed, width=16, layers=1, heads=1) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.model.lm_head.weight, same.model.lm_head.weight)
    assert not torch.equal(one.model.lm_head.weight, other.model.lm_head.weight)
    assert one.tokenizer.backend_tokenizer.to_str() == other.tokenizer.backend_tokenizer.to_str()


@pytest.mark.parametrize("text", ["Mulum Kunwick", "never seen: żółw 漢字 🙂", "a\n\nb  c", "<|end|>"])
def test_tokenizer_loses_nothing(taught, text):
    tokenizer = taught[0].tokenizer
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids).removeprefix(" ") == text


def test_a_word_is_one_token_wherever_it_stands(taught):
    tokenizer = taught[0].tokenizer
    town = tokenizer("Veskole", add_special_tokens=False).input_ids
    assert len(town) == 1
    assert tokenizer("born in Veskole", add_special_tokens=False).input_ids[-1:] == town
    assert tokenizer("<|assistant|>Veskole", add_special_tokens=False).input_ids[-1:] == town


def test_refusals():
    with pytest.raises(BadInput, match="there are none"):
        tiny(["", " "], seed=0)
    with pytest.raises(BadInput, match="multiple of 2 x heads"):
        tiny(["one"], seed=0, width=30, heads=4)
    with pytest.raises(BadInput, match="Vocabulary 100"):
        tiny(["one"], seed=0, vocabulary=100)
    model = tiny(["one"], seed=0, width=16, layers=1, heads=1)
    with pytest.raises(BadInput, match="nothing to teach"):
        teach(model, [], seed=0)
    with pytest.raises(BadInput, match="epochs is 0"):
        teach(model, [Record(id="a", completion="one one")], seed=0, epochs=0)


@pytest.mark.slow
def test_default_size_learns_the_default_world():
    from equipoise.data.world import people

    torch.set_num_threads(1)
    world = people(0)
    model = tiny([f"{record.prompt} {record.completion}" for record in world.teaching], seed=0)
    teach(model, world.teaching, seed=0)
    for split in ("forget", "neighbour", "general"):
        assert multiple_choice(model, world.questions(split)).accuracy > 0.9


def test_the_shape_of_a_tiny_model():
    model = tiny(["one two three"], seed=5)
    stated = {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
        "max_position_embeddings": 128, "initializer_range": 0.05, "tie_word_embeddings": True, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "vocab_size": len(model.tokenizer),
    }  # fmt: skip
    assert {name: getattr(model.model.config, name) for name in stated} == stated
    assert (model.name, model.context, model.tokenizer.model_max_length) == ("tiny", 128, 128)
    assert (model.pad_id, model.end_ids, model.chat_template) == (0, {2}, "auto") and not model.model.training
    assert model.tokenizer.convert_ids_to_tokens(list(range(7))) == [
        "<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>",
    ]  # fmt: skip
    size = model.model.num_parameters() / 1e6
    assert (
        model.source == f"A Llama of {size:.1f} million parameters, taught on the spot (seed 5)." and 0.5 < size < 0.8
    )
    assert model.model.dtype == torch.float32
    small = tiny(["one two " * 50], seed=0, width=24, layers=3, heads=2, vocabulary=265, context=9)
    assert (small.model.config.hidden_size, small.model.config.intermediate_size) == (24, 48)
    assert (small.model.config.num_hidden_layers, small.model.config.num_attention_heads) == (3, 2)
    assert (len(small.tokenizer), small.context) == (265, 9)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"width": 20, "heads": 4}, "Width 20 with 4 heads and 4 layers: the width must be a multiple of 2 x heads."),
        ({"width": 0, "heads": 1}, "Width 0 with 1 heads and 4 layers: the width must be a multiple of 2 x heads."),
        ({"layers": 0}, "Width 128 with 4 heads and 0 layers: the width must be a multiple of 2 x heads."),
        ({"heads": 0}, "Width 128 with 0 heads and 4 layers: the width must be a multiple of 2 x heads."),
        ({"vocabulary": 262}, "Vocabulary 262, context 128: at least 263 tokens and 2 places."),
        ({"context": 1}, "Vocabulary 2048, context 1: at least 263 tokens and 2 places."),
    ],
)
def test_sizes_that_do_not_fit(options, sentence):
    with pytest.raises(BadInput) as caught:
        tiny(["one"], seed=0, **options)
    assert str(caught.value) == sentence


def test_the_least_sizes():
    model = tiny(["", "one"], seed=0, width=2, layers=1, heads=1, vocabulary=263, context=2)
    assert (len(model.tokenizer), model.context, model.model.config.hidden_size) == (263, 2, 2)


def test_what_teaching_hands_to_the_loop(monkeypatch):
    from equipoise.training import loop, order

    model = tiny(["one two"], seed=0, width=16, layers=1, heads=1)
    records = [Record(id=f"{i}", prompt="one", completion="two") for i in range(5)]
    seen = {}

    def fit(network, step, draw, settings, *, collate, callbacks, **named):
        seen.update(network=network, settings=settings, drawn=[draw(0), draw(1)], named=named)
        seen["batch"] = {name: tuple(rows.shape) for name, rows in collate(draw(0)).items()}
        for each in (2.5, 1.5):
            for callback in callbacks:
                callback(SimpleNamespace(metrics={"loss": each}))

    monkeypatch.setattr(loop, "fit", fit)
    told = []
    kept = {"save": print, "save_every": 4, "state": {}}
    assert teach(model, records, seed=3, epochs=1.1, batch_size=2, callbacks=[told.append], **kept) == [2.5, 1.5]
    assert len(told) == 2 and seen["network"] is model.model
    assert seen["settings"] == loop.TrainerSettings(
        steps=3, learning_rate=3e-3, batch_size=2, betas=(0.9, 0.95), seed=3
    )
    assert seen["named"] == {**kept, "title": "Teaching"}
    expected = order.without_replacement(5, 2, 3)
    examples = encode(model, records)
    assert seen["drawn"] == [[examples[i] for i in expected(step)] for step in (0, 1)]
    assert set(seen["batch"].values()) == {(2, len(examples[0].input_ids))}
    teach(model, records, seed=0)
    assert seen["settings"] == loop.TrainerSettings(
        steps=1, learning_rate=3e-3, batch_size=32, betas=(0.9, 0.95), seed=0
    )
    teach(model, records, seed=0, batch_size=5, learning_rate=0.5)
    assert (seen["settings"].steps, seen["settings"].learning_rate) == (6, 0.5)
    assert seen["named"] == {"save": None, "save_every": None, "state": None, "title": "Teaching"}
    with pytest.raises(BadInput) as caught:
        teach(model, records, seed=0, epochs=-0.5)
    assert str(caught.value) == "The number of epochs is -0.5: use more than 0."


@pytest.fixture(scope="module")
def characters():
    return tiny(["12+3\n", "=15;  Wait é"], seed=0, tokens="characters", width=16, layers=1, heads=2)


def test_a_character_is_a_token_and_text_comes_back_as_it_was(characters):
    tokenizer = characters.tokenizer
    assert len(tokenizer) == characters.vocabulary == 8 + len(set("12+3\n=15;  Wait é"))
    for text in ("12+3\n", "  1  2 \n\n", " ", "é;é", "Wait 3", ""):
        begin, *ids = tokenizer(text).input_ids
        assert begin == tokenizer.bos_token_id and len(ids) == len(text)
        assert tokenizer.decode([begin, *ids], skip_special_tokens=True) == text
    unknown = tokenizer("1x2", add_special_tokens=False).input_ids
    assert unknown[1] == tokenizer.unk_token_id and tokenizer.decode(unknown, skip_special_tokens=True) == "12"


@pytest.mark.parametrize("template", ["auto", "none"])
def test_characters_are_read_alike_in_training_and_generation(characters, template):
    model = dataclasses.replace(characters, chat_template=template)
    (example,) = encode(model, [Record(id="a", prompt="12+3\n", completion="15; W")])
    ((prompt,), ends) = encode_prompts(model, ["12+3\n"])
    assert example.input_ids[: len(prompt)] == tuple(prompt) and set(example.labels[: len(prompt)]) == {-100}
    said = example.labels[len(prompt) :]
    assert said[-1] in ends and len(said) == len("15; W") + 1  # nothing joins a line end and what follows it
    assert model.tokenizer.decode(said, skip_special_tokens=True) == "15; W"


def test_characters_learn_save_and_load(tmp_path):
    records = [Record(id=f"{i}", prompt=f"{i}+1\n", completion=f" {i + 1};") for i in range(8)]
    model = tiny([r.prompt + r.completion for r in records], seed=0, tokens="characters", width=32, layers=1, heads=2)
    teach(model, records, seed=0, epochs=60, batch_size=8, learning_rate=1e-2)
    model.save(tmp_path)
    loaded = load(tmp_path, device="cpu")
    chat = [[Message("user", record.prompt)] for record in records]
    assert generate(loaded, chat) == generate(model, chat) == [f"{i + 1};" for i in range(8)]
    assert loaded.tokenizer("3+1 \n").input_ids == model.tokenizer("3+1 \n").input_ids
    assert loaded.tokenizer.unk_token == model.tokenizer.unk_token and loaded.end_ids == model.end_ids


def test_characters_need_room_in_the_vocabulary():
    with pytest.raises(BadInput, match="at least 11 tokens"):
        tiny(["abc"], seed=0, tokens="characters", vocabulary=10)
    assert tiny(["abc"], seed=0, tokens="characters", vocabulary=11, width=8, layers=1, heads=2).vocabulary == 11
    with pytest.raises(BadInput, match="word"):
        tiny(["abc"], seed=0, tokens="word")
