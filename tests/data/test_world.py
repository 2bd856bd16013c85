import hashlib
import json
import runpy
import sys
from collections import Counter, defaultdict
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.core.errors import BadInput
from equipoise.data import world as world_module
from equipoise.data.records import read_records
from equipoise.data.world import ATTRIBUTES, Person, _Draw, _values, main, people, question_lines

SPLITS = ("forget", "neighbour", "rehearsed", "general")
PARTS = ("validation", "test")


@pytest.fixture(scope="module")
def world():
    return people(0)


def digest(world) -> str:
    records = [*world.teaching, *(r for split in SPLITS for part in PARTS for r in world.questions(split, part))]
    content = [*map(asdict, records), world.texts, world.validation_texts, [r.id for r in world.general]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def test_a_seed_is_one_world_for_ever(world):
    assert digest(world) == digest(people(0)) == "4ba26f8c71eb7a9ca8bfc49bc99a2010c674ee59e6b84e292a411fb6db95aa1c"
    assert digest(people(1)) != digest(world)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (
            {"forget": 13, "neighbours": 9, "general": 9, "attributes": 3, "paraphrases": 5, "texts": 1},
            "c1382d609a425a15",
        ),
        (
            {"forget": 4, "neighbours": 8, "general": 0, "attributes": 2, "paraphrases": 1, "texts": 0},
            "06f2ccfaea1d439d",
        ),
        (
            {"forget": 30, "neighbours": 61, "general": 8, "attributes": 8, "paraphrases": 2, "texts": 3},
            "1afbae6a6eb8e3f3",
        ),
    ],
)
def test_so_is_a_seed_of_other_sizes(sizes, expected):
    world = people(2**63, **sizes)
    assert digest(world)[:16] == expected
    counts = Counter((person.split, person.rehearsed) for person in world.people)
    neighbours, general = sizes["neighbours"], sizes["general"]
    assert counts == Counter(
        {
            ("forget", False): sizes["forget"],
            ("neighbour", True): neighbours // 2,
            ("neighbour", False): neighbours - neighbours // 2,
            ("general", True): general // 2,
            ("general", False): general - general // 2,
        }
    )
    assert [len(each) for each in (world.texts, world.validation_texts)] == [sizes["texts"]] * 2
    assert (world.seed, world.paraphrases, len(world.attributes)) == (2**63, sizes["paraphrases"], sizes["attributes"])
    for index, attribute in enumerate(world.attributes):  # a value for each, and none is drawn for nobody
        given = (index, sizes["attributes"], sizes["forget"], neighbours, general, attribute.values)
        values = _values(_Draw(2**63, 1, index), *given)
        assert values == [person.facts[attribute.name] for person in world.people]


def test_a_world_is_shown_without_its_questions(world):
    assert "_questions" not in repr(world) and "seed=0" in repr(world)
    assert Person("A B", "forget", False, {}).neighbour_of == ""
    with pytest.raises(BadInput, match=r"Person\.split is 'forgot'\. Did you mean 'forget'"):
        Person("A B", "forgot", False, {})


def test_general_records_are_those_of_the_rehearsed_people_then_texts(world):
    ids = [record.id for record in world.general]
    assert ids[150:] == [f"text/{index}" for index in range(100)] and len(ids) == 250
    assert world.general[150:] == [record for record in world.teaching if record.id.startswith("text/")][:100]
    assert all(record.prompt and record.group for record in world.general[:150])


def test_draws_are_balanced_and_those_of_their_key():
    draw = _Draw(5, 1, 2)
    assert draw.order(0) == [] and sorted(draw.order(4)) == [0, 1, 2, 3]
    for size in (0, 1, 3, 4, 7):
        counts = Counter(_Draw(5, 1).balanced("abc", size))
        assert counts.total() == size and max(counts.values(), default=0) <= -(-size // 3)
    assert {_Draw(seed).one("abc") for seed in range(20)} == set("abc")
    assert _Draw(5, 1).shuffled(range(9)) == _Draw(5, 1).shuffled(range(9)) != _Draw(5, 2).shuffled(range(9))
    assert [_Draw(0, 7).bits.random_raw(), _Draw(0).bits.random_raw()] == [5633225198675825446, 11749869230777074271]


def test_questions_are_written_as_they_are_read():
    world = people(0, forget=4, neighbours=8, general=0, texts=1)
    records = [replace(world.forget[0], completion="Zwölf"), world.teaching[-1], world.forget[1]]
    first, second = question_lines(records).splitlines()
    record = world.forget[0]
    assert json.loads(first) == {"id": record.id, "question": record.prompt, "answer": "Zwölf", "group": record.group}
    assert "ö" in first and json.loads(second)["id"] == world.forget[1].id  # a text has no question


def test_the_command_writes_here_unless_told_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    source = Path(world_module.__file__)
    for words, folder in ((["world"], tmp_path), (["world", "there"], tmp_path / "there")):
        monkeypatch.setattr(sys, "argv", words)
        runpy.run_path(str(source), run_name="__main__")
        assert sorted(path.name for path in folder.glob("*.jsonl")) == ["forget.jsonl", "retain.jsonl"]
        if folder == tmp_path:
            assert not list((tmp_path / "there").iterdir())


def test_who_shares_what(world):
    by_name = {person.name: person for person in world.people}
    assert len(by_name) == 45
    to_forget = [person for person in world.people if person.split == "forget"]
    held = {(name, value) for person in to_forget for name, value in person.facts.items()}
    for person in world.people:
        shared = [fact for fact in person.facts.items() if fact in held]
        if person.split == "neighbour":
            assert len(shared) == 2 and set(shared) <= by_name[person.neighbour_of].facts.items()
        if person.split == "general":
            assert not shared
    sharing = Counter(person.neighbour_of for person in world.people if person.split == "neighbour")
    assert set(sharing.values()) == {4}


def test_what_is_taught_rehearsed_and_asked(world):
    names = {
        (split, kept): {person.name for person in world.people if (person.split, person.rehearsed) == (split, kept)}
        for split in ("forget", "neighbour", "general")
        for kept in (True, False)
    }
    assert {record.group for record in world.forget} == names["forget", False] and len(names["forget", False]) == 5
    assert {record.group for record in world.neighbour} == names["neighbour", True]
    assert {record.group for record in world.general} == {"", *names["general", True]}
    assert {record.group for record in world.questions("neighbour")} == names["neighbour", False]
    assert {record.group for record in world.questions("rehearsed")} == names["neighbour", True]
    assert {record.group for record in world.questions("general")} == names["general", False]
    facts = 5 * 3
    assert len(world.forget) == 5 * facts and len(world.neighbour) == 10 * facts
    assert len(world.teaching) == 45 * facts * 2 + 200
    assert {record.group for record in world.teaching} == {"", *(person.name for person in world.people)}
    taught = {record.id for record in world.teaching}
    assert len(taught) == len(world.teaching)
    assert {r.id for r in [*world.forget, *world.neighbour, *world.general, *world.sentences("forget")]} <= taught
    assert all(not r.prompt and r.group in names["forget", False] for r in world.sentences("forget"))


def test_what_is_asked_was_never_taught_in_these_words(world):
    taught = {record.prompt for record in world.teaching} | {record.completion for record in world.teaching}
    parts = [{r.prompt for split in SPLITS for r in world.questions(split, part)} for part in PARTS]
    assert not parts[0] & parts[1] and not (parts[0] | parts[1]) & taught
    for split in SPLITS:
        for record in world.questions(split):
            assert not {*record.paraphrases, *record.wrong} & taught
    texts = [
        {r.completion for r in world.teaching if r.id.startswith("text/")},
        set(world.texts),
        set(world.validation_texts),
    ]
    assert [len(part) for part in texts] == [200, 100, 100] and len(set.union(*texts)) == 400


def test_sentences_are_short_and_name_person_and_value(world):
    facts = {(person.name, value) for person in world.people for value in person.facts.values()}
    for record in world.teaching:
        said = f"{record.prompt} {record.completion}" if record.prompt else record.completion
        assert 4 <= len(said.split()) <= 15, said
        if record.group:
            assert record.group in said and any(name == record.group and value in said for name, value in facts)
        assert said[0].isupper() and "{" not in said


def test_wrong_answers_are_of_the_same_type_and_worded_alike(world):
    kinds = {value: attribute.name for attribute in ATTRIBUTES for value in attribute.values}
    for split in SPLITS:
        for record in world.questions(split):
            assert len({kinds[choice] for choice in record.choices}) == 1
            (right,) = record.paraphrases
            wrong_values = [choice for choice in record.choices if choice != record.completion]
            # Exact replacement also shows that the paraphrase says the right value.
            expected = {right.replace(record.completion, value) for value in wrong_values}
            assert set(record.wrong) == expected and right not in record.wrong


def check_questions(world):
    truth = {(person.name, attribute): value for person in world.people for attribute, value in person.facts.items()}
    for split in SPLITS:
        for part in PARTS:
            questions = world.questions(split, part)
            assert len({record.id for record in questions}) == len(questions)
            positions = Counter(record.answer for record in questions)
            assert max(positions.values(), default=0) - min((positions[i] for i in range(4)), default=0) <= 1
            tally = defaultdict(lambda: [0, 0])
            for record in questions:
                _, attribute, wording = record.id.split("/")
                assert len(set(record.choices)) == 4
                assert record.choices[record.answer] == record.completion == truth[record.group, attribute]
                for choice in record.choices:
                    tally[attribute, wording, choice][choice != record.completion] += 1
            # A value says nothing of whether it is right: among a wording's questions it is right in exactly a quarter.
            assert all(wrong == 3 * right for right, wrong in tally.values())


def test_no_value_and_no_position_gives_an_answer_away(world):
    check_questions(world)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**63),
    forget=st.integers(4, 60),
    neighbours=st.integers(8, 60),
    general=st.sampled_from([0, 8, 9, 30]),
    attributes=st.integers(2, 8),
)
def test_every_size_is_balanced(seed, forget, neighbours, general, attributes):
    sizes = {"forget": forget, "neighbours": neighbours, "general": general, "attributes": attributes}
    world = people(seed, **sizes, paraphrases=1, texts=1)
    assert len({person.name for person in world.people}) == forget + neighbours + general
    check_questions(world)
    held = {value for person in world.people if person.split == "forget" for value in person.facts.values()}
    assert not any(held & {*person.facts.values()} for person in world.people if person.split == "general")
    for rehearsed in (True, False):
        group = [person for person in world.people if person.split == "general" and person.rehearsed == rehearsed]
        for name in group[0].facts if group else ():
            counts = Counter(person.facts[name] for person in group)
            assert max(counts.values()) - min(counts.values()) <= 1


def test_many_people_have_different_names():
    names = [
        person.name for person in people(5, forget=4, neighbours=8, general=3100, attributes=2, paraphrases=1).people
    ]
    assert len(set(names)) == len(names) == 3112


def test_the_examples_are_what_their_command_writes(tmp_path, world):
    main(str(tmp_path))
    examples = Path(__file__).parents[2] / "examples"
    for name, people_in_it in (("forget.jsonl", 5), ("retain.jsonl", 20)):
        assert (examples / name).read_bytes() == (tmp_path / name).read_bytes()
        records = read_records(examples / name)
        assert len(records) == people_in_it * 15 and len({record.group for record in records}) == people_in_it
    assert read_records(examples / "forget.jsonl") == world.forget


def test_attributes_do_not_collide():
    values = [value for attribute in ATTRIBUTES for value in attribute.values]
    assert len(values) == len(set(values)) == 24 * len(ATTRIBUTES)
    for attribute in ATTRIBUTES:
        wordings = (*attribute.questions, *attribute.validation, *attribute.test)
        assert len(set(wordings)) == 9 and len(set(attribute.statements)) == 5
        assert attribute.answer not in attribute.statements
        assert all("{value}" not in wording and "{name}" in wording for wording in wordings)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("forget", 4, 10_000),
        ("neighbours", 8, 100_000),
        ("general", 8, 100_000),
        ("attributes", 2, 8),
        ("paraphrases", 1, 5),
        ("texts", 0, 2000),
    ],
)
def test_sizes_out_of_range_are_refused(name, low, high):
    for value in (low - 1, high + 1, float(low), True, None):
        lowest = 0 if name == "general" and not value else low
        with pytest.raises(BadInput) as caught:
            people(0, **{name: value})
        assert str(caught.value) == f"{name} is {value!r}, expected a whole number from {lowest} to {high}."


def test_negative_seeds_and_unknown_splits_are_refused(world):
    for seed in (-1, 2**63 + 1):
        with pytest.raises(BadInput, match=rf"seed is {seed}, expected a whole number from 0 to {2**63}\."):
            people(seed)
    with pytest.raises(BadInput, match=r"split is 'retain'\. Did you mean 'forget'"):
        world.questions("retain")
    assert people(0, general=0).questions("general") == []


def test_a_world_without_texts():
    world = people(0, forget=4, neighbours=8, general=0, attributes=2, paraphrases=1, texts=0)
    assert len(world.people) == 12 and len(world.questions("forget")) == 16
