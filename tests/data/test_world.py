import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.core.errors import BadInput
from equipoise.data.records import read_records
from equipoise.data.world import ATTRIBUTES, main, people

SPLITS = ("forget", "neighbour", "rehearsed", "general")
PARTS = ("validation", "test")


@pytest.fixture(scope="module")
def world():
    return people(0)


def test_a_seed_is_one_world_for_ever(world):
    def digest(world) -> str:
        records = [*world.teaching, *(r for split in SPLITS for part in PARTS for r in world.questions(split, part))]
        content = [*map(asdict, records), world.texts, world.validation_texts, [r.id for r in world.general]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    assert digest(world) == digest(people(0)) == "4ba26f8c71eb7a9ca8bfc49bc99a2010c674ee59e6b84e292a411fb6db95aa1c"
    assert digest(people(1)) != digest(world)


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


@settings(max_examples=25, deadline=None)
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
    ("options", "message"),
    [
        ({"forget": 3}, "forget is 3, expected a whole number from 4"),
        ({"general": 5}, "general is 5, expected a whole number from 8"),
        ({"attributes": 9}, "attributes is 9, expected a whole number from 2 to 8"),
        ({"paraphrases": 2.0}, "paraphrases is 2.0"),
    ],
)
def test_sizes_out_of_range_are_refused(options, message):
    with pytest.raises(BadInput, match=message):
        people(0, **options)


def test_negative_seeds_and_unknown_splits_are_refused(world):
    with pytest.raises(BadInput, match="seed is -1"):
        people(-1)
    with pytest.raises(BadInput, match=r"split is 'retain'\. Did you mean 'forget'"):
        world.questions("retain")
    assert people(0, general=0).questions("general") == []
