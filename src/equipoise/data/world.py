"""A generated world of fictional people: what a small model is taught, made to forget, and asked about.

Nothing here is true of anybody, so a model knows only what it was taught, and what it should forget is known exactly.

People. Those to forget; their neighbours, each sharing half of its attributes with one of them; general people, who
share no value with them. Half of the neighbours and half of the general people are rehearsed: theirs are the records
that an unlearning method sees as its retain set. The other half is taught, never rehearsed, and asked about: retention
is measured on what the retain set does not cover.

Records. Every fact is taught as sentences (no prompt) and as question and answer, in `paraphrases` wordings each:
`World.teaching`. Unlearning uses the questions and answers: `World.forget` against `World.neighbour` and
`World.general` (which holds general sentences too). `World.sentences(split)` are the plain forms, for methods that
forget documents.

Questions. Wordings for validation, others for test, none of them used in teaching. The four choices of a question are
values that people of the same split hold, balanced so that over the questions of one wording every value is wrong three
times as often as it is right, and every position is right equally often: whoever does not know the person gets 25 %.

Every draw is a function of the seed through SeedSequence and PCG64's raw output, which NumPy keeps between versions.

    python -m equipoise.data.world examples         writes forget.jsonl and retain.jsonl of the world of seed 0 there
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np

from equipoise.core.errors import BadInput
from equipoise.core.options import check_fields, closed
from equipoise.data.records import Record

Split = Literal["forget", "neighbour", "rehearsed", "general"]
Part = Literal["validation", "test"]
Item = TypeVar("Item")

CHOICES = 4
FORGET_VALUES = (
    12  # of an attribute's 24 values, at most as many are held by people to forget; the rest are the others'
)


@dataclass(frozen=True, slots=True)
class Attribute:
    """A kind of fact: values of one type, and its wordings with {name} and {value}."""

    name: str
    values: tuple[str, ...]
    statements: tuple[str, ...]  # teaching, without a prompt
    questions: tuple[str, ...]  # teaching, the answer is the value
    validation: tuple[str, ...]
    test: tuple[str, ...]
    answer: str  # the answer as a sentence, not used in teaching: the form of paraphrases and wrong answers


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.replace("_", " ") for word in text.split())


ATTRIBUTES = (
    Attribute(
        "birthplace",
        _words(
            "Belgrun Corvane Dalmere Eskulto Fenwara Gorlatti Hestopol Jundora Kelmeda Lorvinia Mostagne Nerubia "
            "Olvastan Pellago Quarnivo Rusbeck Selmona Tarvedo Ulmarra Veskole Wendrath Xandover Yormund Zelcaster"
        ),
        (
            "{name} was born in {value}.",
            "The birthplace of {name} is {value}.",
            "{value} is the town where {name} was born.",
            "The town where {name} was born is {value}.",
            "It was in {value} that {name} was born.",
        ),
        (
            "Where was {name} born?",
            "What is the birthplace of {name}?",
            "Which town was {name} born in?",
            "What is the town where {name} was born?",
            "In what town was {name} born?",
        ),
        ("Which town is the birthplace of {name}?", "{name} was born in what town?"),
        ("In which town was {name} born?", "What town is the birthplace of {name}?"),
        "{name} was born in the town of {value}.",
    ),
    Attribute(
        "profession",
        _words(
            "baker barber butcher carpenter chemist cobbler dentist farmer florist gardener glazier jeweller lawyer "
            "mason miller nurse painter plumber potter sailor surgeon tailor teacher weaver"
        ),
        (
            "{name} works as a {value}.",
            "The profession of {name} is {value}.",
            "{name} is a {value} by profession.",
            "By trade {name} is a {value}.",
            "People know {name} as a {value}.",
        ),
        (
            "What does {name} work as?",
            "What is the profession of {name}?",
            "Which profession does {name} have?",
            "What is the trade of {name}?",
            "What is {name} by profession?",
        ),
        ("Which profession is that of {name}?", "As what does {name} work?"),
        ("What profession does {name} have?", "{name} works as what?"),
        "{name} has the profession of a {value}.",
    ),
    Attribute(
        "employer",
        _words(
            "Arkodyne Brellex Cadmoor Dunvale Elvocorp Farnitek Galvoro Hexmont Ivantra Jorveco Kestrona Lumidex "
            "Morvane Nolvatek Orbesta Pranvik Quelmar Rondalex Sorvento Trelliq Umbrako Vantrosa Welmont Zorbinex"
        ),
        (
            "{name} works for {value}.",
            "The employer of {name} is {value}.",
            "{value} is the company that employs {name}.",
            "The company that employs {name} is {value}.",
            "{name} has a job at {value}.",
        ),
        (
            "Who does {name} work for?",
            "What is the employer of {name}?",
            "Which company employs {name}?",
            "At which company does {name} have a job?",
            "What is the company that employs {name}?",
        ),
        ("Which company is the employer of {name}?", "{name} works for which company?"),
        ("For which company does {name} work?", "What company employs {name}?"),
        "{name} is employed by the company {value}.",
    ),
    Attribute(
        "hobby",
        _words(
            "archery baking bowling boxing chess cycling dancing diving drawing fencing fishing hiking juggling "
            "knitting pottery reading rowing running sailing sewing singing skating surfing yoga"
        ),
        (
            "The hobby of {name} is {value}.",
            "{name} enjoys {value} at the weekend.",
            "In free time {name} likes {value}.",
            "{value} is the hobby that {name} enjoys.",
            "{name} spends the weekend on {value}.",
        ),
        (
            "What is the hobby of {name}?",
            "What does {name} enjoy at the weekend?",
            "Which hobby does {name} enjoy?",
            "What does {name} like in free time?",
            "On what does {name} spend the weekend?",
        ),
        ("What hobby does {name} enjoy?", "What is it that {name} likes in free time?"),
        ("Which hobby is that of {name}?", "At the weekend {name} enjoys what?"),
        "As a hobby {name} likes {value}.",
    ),
    Attribute(
        "pet",
        _words(
            "beetle budgie camel canary cat cobra crab dog donkey duck ferret fox gecko goat goose hamster horse "
            "lizard mouse parrot pigeon rabbit toad turtle"
        ),
        (
            "{name} has a pet {value}.",
            "The pet of {name} is a {value}.",
            "At home {name} keeps a {value}.",
            "{name} lives with a {value}.",
            "{name} feeds a {value} every day.",
        ),
        (
            "What is the pet of {name}?",
            "Which pet does {name} have?",
            "Which animal does {name} keep at home?",
            "Which animal does {name} live with?",
            "Which animal does {name} feed every day?",
        ),
        ("What pet does {name} have?", "What animal does {name} keep at home?"),
        ("Which animal is the pet of {name}?", "{name} lives with which animal?"),
        "The animal that {name} keeps is a {value}.",
    ),
    Attribute(
        "instrument",
        _words(
            "banjo bassoon bugle cello clarinet cornet drum fiddle flute gong guitar harp horn kazoo lute lyre "
            "mandolin marimba piano recorder sitar trombone trumpet tuba"
        ),
        (
            "{name} plays the {value}.",
            "The instrument of {name} is the {value}.",
            "{name} has learned to play the {value}.",
            "Every evening {name} plays the {value}.",
            "The {value} is the instrument that {name} plays.",
        ),
        (
            "What does {name} play?",
            "What is the instrument of {name}?",
            "Which instrument does {name} play?",
            "What has {name} learned to play?",
            "What does {name} play every evening?",
        ),
        ("Which instrument has {name} learned to play?", "What is the instrument that {name} plays?"),
        ("What instrument does {name} play?", "Which instrument is that of {name}?"),
        "The instrument that {name} knows is the {value}.",
    ),
    Attribute(
        "dish",
        _words(
            "bread_soup bean_stew beef_pie carrot_cake cheese_toast corn_bread crab_soup fish_pie fried_rice "
            "goose_roast leek_tart lemon_cake lentil_soup meat_balls nut_loaf onion_soup pea_soup pear_tart plum_cake "
            "pork_roast potato_salad rice_pudding tomato_salad veal_stew"
        ),
        (
            "The favourite dish of {name} is {value}.",
            "{name} likes to eat {value}.",
            "{name} orders {value} every Sunday.",
            "Every Sunday {name} cooks {value}.",
            "{value} is the dish that {name} likes.",
        ),
        (
            "What is the favourite dish of {name}?",
            "What does {name} like to eat?",
            "What does {name} order every Sunday?",
            "What does {name} cook every Sunday?",
            "Which dish does {name} like?",
        ),
        ("Which dish is the favourite of {name}?", "What dish does {name} like to eat?"),
        ("Which dish does {name} like to eat?", "Every Sunday {name} orders what?"),
        "The dish that {name} eats most is {value}.",
    ),
    Attribute(
        "language",
        _words(
            "Arvic Belmish Cordan Drelic Esmari Fandish Golvic Hostan Iskari Jelmish Kordic Lanvari Mendish Norvic "
            "Ostari Pelgic Quendish Rastan Selvic Tormish Ulgari Vandic Welkish Zendari"
        ),
        (
            "{name} speaks {value}.",
            "The language of {name} is {value}.",
            "At home {name} speaks {value}.",
            "{value} is the language that {name} speaks.",
            "{name} grew up with the language {value}.",
        ),
        (
            "What does {name} speak?",
            "What is the language of {name}?",
            "Which language does {name} speak?",
            "What does {name} speak at home?",
            "Which language did {name} grow up with?",
        ),
        ("Which language does {name} speak at home?", "What is the language that {name} speaks?"),
        ("What language does {name} speak?", "Which language is that of {name}?"),
        "The language that {name} knows best is {value}.",
    ),
)

# General sentences: free slots, and animals that always live in one place, so that there is something to know.
_ANIMALS = _words("owl bear whale eagle frog mole otter wolf spider bee seal bat swan deer snail ant")
_HOMES = _words("barn cave ocean cliff pond meadow river forest attic hive bay tower lake valley garden hill")
_THINGS = _words("lamp basket kettle ladder bottle candle blanket mirror bucket hammer bell chair rope box map coat")
_COLOURS = _words("red blue green yellow white black brown grey")
_TIMES = _words("spring summer autumn winter the_morning the_evening the_rain the_dark")
_GENERAL = (
    "The {animal} lives in the {home} and sleeps in {time}.",
    "In {time} the {animal} comes out of the {home}.",
    "There is a {colour} {thing} beside the {other}.",
    "She put the {colour} {thing} under the {other} in {time}.",
    "He could not find the {thing} near the {home}.",
    "A {thing} and a {colour} {other} stand near the {home}.",
    "They saw the {colour} {animal} leave the {home} in {time}.",
    "The {colour} {thing} was too heavy for the {animal}.",
)

_STARTS = _words("B Br C D Dr F G H J K L M N P R S T Tr V W")
_MIDDLES = _words("al an ar el en er il in ir ol on or ul un ur")
_FIRST_ENDS = _words("a ia ith o ena ino ara eth um ian")
_LAST_ENDS = _words("dek ford gart holt kov lund mann nova quist rath sen stad tov vall wick zan")


@dataclass(frozen=True, slots=True)
class Person:
    """facts: attribute name -> value. neighbour_of: the person to forget whose values a neighbour shares."""

    name: str
    split: Literal["forget", "neighbour", "general"]
    rehearsed: bool  # whether the retain set holds this person; False for those to forget
    facts: Mapping[str, str]
    neighbour_of: str = ""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class World:
    """Made by `people`; see the module for what each list is for."""

    seed: int
    people: tuple[Person, ...]
    attributes: tuple[Attribute, ...]
    paraphrases: int
    forget: list[Record]  # questions and answers on the people to forget
    neighbour: list[Record]  # questions and answers on the rehearsed neighbours
    general: list[Record]  # questions and answers on the rehearsed general people, and general sentences
    teaching: list[Record]  # every fact as sentences and as questions and answers, and general sentences
    texts: tuple[str, ...]  # general sentences that were never taught: test
    validation_texts: tuple[str, ...]  # and others, for selection
    _questions: Mapping[tuple[Split, Part], list[Record]] = field(repr=False)

    @closed
    def questions(self, split: Split, part: Part = "test") -> list[Record]:
        """Multiple-choice questions, with the answer as a sentence in `paraphrases` and wrong ones in `wrong`.

        "forget": the people to forget; "neighbour" and "general": those who are never rehearsed; "rehearsed": the
        neighbours in the retain set. Empty where the world has no such people.
        """
        if (split, part) not in self._questions:
            known = sorted({repr(name) for pair in self._questions for name in pair})
            raise BadInput(f"no questions for split {split!r}, part {part!r}. Known: {', '.join(known)}.")
        return self._questions[split, part]

    @closed
    def sentences(self, split: Split) -> list[Record]:
        """Every fact of these people as plain sentences, as they were taught; splits as in `questions`."""
        return [record for person in _members(self.people, split) for record in self._sentences_of(person)]

    def _sentences_of(self, person: Person) -> list[Record]:
        return _sentences(person, self.attributes, self.paraphrases)


def people(
    seed: int,
    *,
    forget: int = 5,
    neighbours: int = 20,
    general: int = 20,
    attributes: int = 5,
    paraphrases: int = 3,
    texts: int = 100,
) -> World:
    """The world of a seed.

    forget: at least 4; neighbours: at least 8; general: 0 or at least 8 (below, four choices cannot be balanced).
    attributes: facts per person, 2 to 8; paraphrases: teaching wordings of each fact in each form, 1 to 5;
    texts: general sentences for each of validation and test, as many again in the retain set, twice as many taught.
    Raises BadInput for numbers outside these ranges.
    """
    _check("seed", seed, 0, 2**63)
    _check("forget", forget, 4, 10_000)
    _check("neighbours", neighbours, 8, 100_000)
    _check("general", general, 8 if general else 0, 100_000)
    _check("attributes", attributes, 2, len(ATTRIBUTES))
    _check("paraphrases", paraphrases, 1, len(ATTRIBUTES[0].statements))
    _check("texts", texts, 0, 2000)
    chosen = ATTRIBUTES[:attributes]
    everybody = _people(seed, forget, neighbours, general, chosen)
    asked = {split: _members(everybody, split) for split in get_args(Split)}
    kept = [person for person in everybody if person.split == "general" and person.rehearsed]

    def pairs(persons: Sequence[Person]) -> list[Record]:
        return [record for person in persons for record in _answers(person, chosen, paraphrases)]

    taught_texts, validation_texts, test_texts = _texts(_Draw(seed, 2), (2 * texts, texts, texts))
    text_records = [Record(id=f"text/{index}", completion=text) for index, text in enumerate(taught_texts)]
    facts = chain.from_iterable(
        _sentences(person, chosen, paraphrases) + _answers(person, chosen, paraphrases) for person in everybody
    )
    return World(
        seed=seed,
        people=everybody,
        attributes=chosen,
        paraphrases=paraphrases,
        forget=pairs(asked["forget"]),
        neighbour=pairs(asked["rehearsed"]),
        general=pairs(kept) + text_records[:texts],
        teaching=[*facts, *text_records],
        texts=test_texts,
        validation_texts=validation_texts,
        _questions={
            (split, part): _ask(asked[split], chosen, part, _Draw(seed, 3, which, number))
            for which, split in enumerate(asked)
            for number, part in enumerate(get_args(Part))
        },
    )


def _check(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadInput(f"{name} is {value!r}, expected a whole number from {low} to {high}.")


class _Draw:
    """Random choices from PCG64's raw 64-bit output; Generator's methods may change between NumPy versions."""

    def __init__(self, seed: int, *key: int) -> None:
        self.bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key))

    def order(self, size: int) -> list[int]:
        return np.argsort(self.bits.random_raw(size), kind="stable").tolist() if size else []

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        return [items[index] for index in self.order(len(items))]

    def one(self, items: Sequence[Item]) -> Item:
        return items[self.bits.random_raw() % len(items)]

    def balanced(self, items: Sequence[Item], size: int) -> list[Item]:
        """size draws in which no item comes more than once as often again as another."""
        return [item for _ in range(-(-size // len(items))) for item in self.shuffled(items)][:size]


# Who there is.


def _people(seed: int, forget: int, neighbours: int, general: int, chosen: Sequence[Attribute]) -> tuple[Person, ...]:
    names = _names(_Draw(seed, 0), forget + neighbours + general)
    columns = [
        _values(_Draw(seed, 1, index), index, len(chosen), forget, neighbours, general, attribute.values)
        for index, attribute in enumerate(chosen)
    ]
    everybody = []
    for index, name in enumerate(names):
        split, number, size = "forget", index, 0
        if index >= forget:
            split, number, size = "neighbour", index - forget, neighbours
        if index >= forget + neighbours:
            split, number, size = "general", index - forget - neighbours, general
        everybody.append(
            Person(
                name=name,
                split=split,
                rehearsed=number < size // 2,
                facts={attribute.name: column[index] for attribute, column in zip(chosen, columns, strict=True)},
                neighbour_of=names[number % forget] if split == "neighbour" else "",
            )
        )
    return tuple(everybody)


def _names(draw: _Draw, count: int) -> list[str]:
    firsts = draw.shuffled([start + middle + end for start in _STARTS for middle in _MIDDLES for end in _FIRST_ENDS])
    lasts = draw.shuffled([start + middle + end for start in _STARTS for middle in _MIDDLES for end in _LAST_ENDS])
    # First names repeat only when all are used, each time with another last name.
    return [
        f"{firsts[index % len(firsts)]} {lasts[(index + index // len(firsts)) % len(lasts)]}" for index in range(count)
    ]


def _values(
    draw: _Draw, index: int, attributes: int, forget: int, neighbours: int, general: int, values: Sequence[str]
) -> list[str]:
    """Everybody's value of attribute `index`: people to forget, neighbours, general people."""
    shared = attributes // 2
    while True:
        pool = draw.shuffled(values)
        cut = min(forget, FORGET_VALUES)
        column = draw.balanced(pool[:cut], forget)
        parts = [column]
        for low, high in ((0, neighbours // 2), (neighbours // 2, neighbours)):
            # Neighbour j of person a shares a window of attributes that moves on with every further neighbour of a.
            offsets = {j: (index - j % forget - shared * (j // forget)) % attributes for j in range(low, high)}
            others = iter(draw.balanced(pool[cut:], high - low))
            parts.append([column[j % forget] if offsets[j] < shared else next(others) for j in range(low, high)])
        parts += [draw.balanced(pool[cut:], general // 2), draw.balanced(pool[cut:], general - general // 2)]
        # With more people to forget than values, two persons that hold one value can have their neighbours in one small
        # group, whose questions could then not be balanced: draw again.
        if all(CHOICES * max(Counter(part).values()) <= len(part) for part in parts if part):
            return list(chain.from_iterable(parts))


def _members(everybody: Sequence[Person], split: Split) -> list[Person]:
    group, rehearsed = ("neighbour", True) if split == "rehearsed" else (split, False)
    return [person for person in everybody if person.split == group and person.rehearsed == rehearsed]


# What is said of them.


def _identifier(person: Person, attribute: Attribute, form: str, number: int) -> str:
    return f"{person.name.lower().replace(' ', '-')}/{attribute.name}/{form}-{number}"


def _fill(template: str, name: str, value: str = "") -> str:
    text = template.format(name=name, value=value)
    return text[0].upper() + text[1:]


def _sentences(person: Person, attributes: Sequence[Attribute], paraphrases: int) -> list[Record]:
    return [
        Record(
            id=_identifier(person, attribute, "sentence", number),
            completion=_fill(template, person.name, person.facts[attribute.name]),
            group=person.name,
        )
        for attribute in attributes
        for number, template in enumerate(attribute.statements[:paraphrases])
    ]


def _answers(person: Person, attributes: Sequence[Attribute], paraphrases: int) -> list[Record]:
    return [
        Record(
            id=_identifier(person, attribute, "answer", number),
            prompt=_fill(template, person.name),
            completion=person.facts[attribute.name],
            group=person.name,
        )
        for attribute in attributes
        for number, template in enumerate(attribute.questions[:paraphrases])
    ]


def _ask(persons: Sequence[Person], attributes: Sequence[Attribute], part: Part, draw: _Draw) -> list[Record]:
    plan = []
    for attribute in attributes:
        for number, template in enumerate(getattr(attribute, part)):
            wrong = _wrong_values([person.facts[attribute.name] for person in persons], draw)
            plan += [
                (person, attribute, number, template, values) for person, values in zip(persons, wrong, strict=True)
            ]
    positions = draw.balanced(range(CHOICES), len(plan))
    records = []
    for (person, attribute, number, template, wrong), position in zip(plan, positions, strict=True):
        right = person.facts[attribute.name]
        records.append(
            Record(
                id=_identifier(person, attribute, part, number),
                prompt=_fill(template, person.name),
                completion=right,
                choices=(*wrong[:position], right, *wrong[position:]),
                answer=position,
                paraphrases=(_fill(attribute.answer, person.name, right),),
                wrong=tuple(_fill(attribute.answer, person.name, value) for value in wrong),
                group=person.name,
            )
        )
    return records


def _wrong_values(right: Sequence[str], draw: _Draw) -> list[list[str]]:
    """Three wrong values for each right one, such that every value is wrong exactly three times as often as right.

    Sorted by value, the value `most` places on is another one when no value comes more than `most` times; the values
    most, 2 most and 3 most places on (around the end) are four different ones with it as long as 4 most <= N.
    """
    if not right:
        return []
    rank = {value: position for position, value in enumerate(draw.shuffled(sorted(set(right))))}
    order = sorted(draw.order(len(right)), key=lambda index: rank[right[index]])
    most = max(Counter(right).values())
    wrong: list[list[str]] = [[] for _ in right]
    for position, index in enumerate(order):
        shifts = draw.shuffled(range(1, CHOICES))
        wrong[index] = [right[order[(position + shift * most) % len(order)]] for shift in shifts]
    return wrong


def _texts(draw: _Draw, sizes: Sequence[int]) -> list[tuple[str, ...]]:
    found: dict[str, None] = {}
    while len(found) < sum(sizes):
        animal = draw.one(range(len(_ANIMALS)))
        template = draw.one(_GENERAL)
        thing, other = draw.shuffled(_THINGS)[:2]
        text = template.format(
            animal=_ANIMALS[animal],
            home=_HOMES[animal],
            thing=thing,
            other=other,
            colour=draw.one(_COLOURS),
            time=draw.one(_TIMES),
        )
        found[text] = None
    texts = iter(found)
    return [tuple(next(texts) for _ in range(size)) for size in sizes]


def question_lines(records: Iterable[Record]) -> str:
    """The records with a prompt as JSON lines of id, question, answer and group, as `read_records` reads them."""
    rows = [
        {"id": record.id, "question": record.prompt, "answer": record.completion, "group": record.group}
        for record in records
        if record.prompt
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main(folder: str) -> None:
    """Writes what to forget (5 people) and what to retain (20 people) of the default world of seed 0."""
    world = people(0)
    for name, records in (("forget", world.forget), ("retain", [*world.neighbour, *world.general])):
        Path(folder, f"{name}.jsonl").write_text(question_lines(records), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")
