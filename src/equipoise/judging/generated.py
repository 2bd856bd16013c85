"""Pairs of short answers to generated questions, of which it is known which is right and by how much it should win.

Questions are sums in words, facts that the question itself gives, and comparisons of invented people: whoever reads them can
answer. Both answers say how they came to it and end with "The answer is ...". The worse one makes a mistake. Style has
nothing to do with that: each answer carries, by a coin of its own, some marks of the biases in `rules`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from equipoise.judging.pairs import Pair
from equipoise.judging.roles import JudgeComparison
from equipoise.judging.rules import BEYOND, RULES, draw

Telling = Callable[[np.random.Generator], list[str]]  # the sentences before the final answer, in one of their wordings
Question = tuple[str, str, str, Telling, Telling]  # with the right and the wrong final answer, and how to tell both

STYLE = 0.12  # how often an answer carries the marks of a bias, for each bias
AGAIN = 6  # every so many-th pair answers the question of the pair before it in other words
GAPS = (0.5, 1.5)  # how much better the better answer is, in standard deviations of one answer's noise

_NAMES = (
    *("Ansel", "Brida", "Corin", "Della", "Edric", "Fenna", "Gorlo", "Hedda"),
    *("Ilmar", "Jonna", "Korvin", "Lumi", "Marek", "Nelda", "Orsin", "Pella"),
)
_THINGS = ("apples", "marbles", "stamps", "shells", "coins", "books", "pencils", "tickets", "buttons", "candles")
_PLACES = (
    "Belgrun",
    "Corvane",
    "Dalmere",
    "Fenwara",
    "Jundora",
    "Kelmeda",
    "Mostagne",
    "Olvastan",
    "Rusbeck",
    "Selmona",
)
_TRADES = ("baker", "weaver", "potter", "sailor", "mason", "miller", "tailor", "glazier")
_STARTS = (
    "to begin with",
    "in this case",
    "as it happens",
    "at this point",
    "for this question",
    "as far as that goes",
    "taking one thing at a time",
    "that being the way things stand",
    "if we go on from there",
    "when all of this is put together",
)
_HEDGED = ("I think that", "It seems that", "Perhaps")


@dataclass(frozen=True, slots=True)
class JudgingWorld:
    """Pairs, and by question the right final answer and what it is worth."""

    pairs: list[Pair]
    right: dict[str, str]
    worth: dict[str, float]

    def quality(self, question: str, answer: str) -> float:
        """What the answer is worth: that of its question if it ends rightly, else 0."""
        return self.worth[question] * (f"answer is {self.right[question]}." in answer)


def pairs(count: int, *, seed: int = 0) -> JudgingWorld:
    """`count` pairs of a seed. About half show the better answer first; ids and texts are functions of seed and number."""
    generator = np.random.default_rng([seed, 73])
    first = generator.permutation(np.arange(count) % 2 == 0)
    world = JudgingWorld([], {}, {})
    question, right, wrong, domain = "", "", "", ""
    tellings: list[Telling] = []
    for number in range(count):
        if not number or number % AGAIN:
            while True:
                domain, make = _DOMAINS[int(generator.integers(len(_DOMAINS)))]
                question, right, wrong, *tellings = make(generator)
                if question not in world.right:
                    break
        world.right[question] = right
        world.worth.setdefault(question, float(generator.uniform(*GAPS)))
        identifier = f"made-{seed}-{number}"
        answers = [
            _answer(telling(generator), final, f"{identifier}/{side}", generator)
            for side, telling, final in zip(("better", "worse"), tellings, (right, wrong), strict=True)
        ]
        world.pairs.append(
            Pair(
                identifier,
                question,
                *answers,
                domain=domain,
                group=f"question {len(world.right)} of seed {seed}",
                chosen_first=bool(first[number]),
            )
        )
    return world


def simulated(world: JudgingWorld, *, noise: float = 1.0) -> Callable[[Sequence[JudgeComparison]], list[float]]:
    """Margins of a judge that sees quality through noise: normal, a function of question and text, the same at any place."""
    known: dict[tuple[str, str], float] = {}

    def value(question: str, answer: str) -> float:
        if (question, answer) not in known:
            # Half a step in from both ends keeps the quantile finite.
            drawn = NormalDist().inv_cdf((draw(question, answer) * 2**52 + 0.5) / 2**52)
            known[question, answer] = world.quality(question, answer) + noise * drawn
        return known[question, answer]

    def margins(comparisons: Sequence[JudgeComparison]) -> list[float]:
        return [value(each.question, each.first) - value(each.question, each.second) for each in comparisons]

    return margins


def _answer(steps: Sequence[str], final: str, identifier: str, generator: np.random.Generator) -> str:
    sentences = [
        f"{_HEDGED[int(generator.integers(len(_HEDGED)))]} {step}."
        if generator.random() < STYLE
        else f"{_capital(step)}."
        for step in steps
    ]
    text = " ".join([*sentences, f"The answer is {final}."])
    for name in BEYOND:
        if generator.random() < STYLE:
            text = RULES[name].rewrite(text, f"{identifier}/{name}")
    # Empty phrases come last, so that a rewrite finds all of them to spare.
    starts = generator.permutation(len(_STARTS))
    for sentence, step, start in zip(sentences, steps, starts, strict=False):
        if sentence == f"{_capital(step)}.":
            text = text.replace(sentence, f"{_capital(_STARTS[start])}, {step}.")
    return text


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _sum(generator: np.random.Generator) -> Question:
    name, other = (_NAMES[i] for i in generator.choice(len(_NAMES), 2, replace=False))
    thing = _THINGS[int(generator.integers(len(_THINGS)))]
    boxes, each, more = (int(n) for n in generator.integers((3, 4, 2), (13, 25, 31)))
    slip = int(generator.choice([-2, -1, 1, 2])) * (each if generator.random() < 0.5 else 1)
    question = (
        f"{name} has {boxes} boxes with {each} {thing} in each of them, and gets {more} more from {other}. "
        f"How many {thing} does {name} have then?"
    )

    def telling(product: int) -> Telling:
        def tell(generator: np.random.Generator) -> list[str]:
            return [
                _either(
                    generator,
                    f"{boxes} boxes of {each} {thing} make {product} {thing}",
                    f"{name} owns {boxes} times {each} {thing}, which makes {product}",
                ),
                _either(
                    generator,
                    f"the {more} {thing} from {other} are added to these {product}",
                    f"{product} and the {more} that {other} gave make {product + more} together",
                ),
            ]

        return tell

    product = boxes * each
    return question, str(product + more), str(product + slip + more), telling(product), telling(product + slip)


def _fact(generator: np.random.Generator) -> Question:
    people = [_NAMES[i] for i in generator.choice(len(_NAMES), 3, replace=False)]
    places = [_PLACES[i] for i in generator.choice(len(_PLACES), 3, replace=False)]
    trades = [_TRADES[i] for i in generator.choice(len(_TRADES), 3, replace=False)]
    facts = " ".join(f"{p} is a {t} and lives in {q}." for p, t, q in zip(people, trades, places, strict=True))
    asked, other = (int(i) for i in generator.choice(3, 2, replace=False))
    question = f"{facts} In which town does the {trades[asked]} live?"

    def telling(which: int) -> Telling:
        def tell(generator: np.random.Generator) -> list[str]:
            return [
                _either(
                    generator,
                    f"the {trades[asked]} of the three is {people[which]}",
                    f"{people[which]} is the one who works as a {trades[asked]}",
                ),
                _either(
                    generator,
                    f"{people[which]} is said to live in {places[which]}",
                    f"the town given for {people[which]} is {places[which]}",
                ),
            ]

        return tell

    return question, places[asked], places[other], telling(asked), telling(other)


def _order(generator: np.random.Generator) -> Question:
    people = [_NAMES[i] for i in generator.choice(len(_NAMES), 3, replace=False)]
    ages = sorted((int(n) for n in generator.choice(np.arange(21, 80), 3, replace=False)), reverse=True)
    gaps = ages[0] - ages[1], ages[1] - ages[2]
    question = (
        f"{people[1]} is {gaps[0]} years younger than {people[0]}, and {gaps[1]} years older than {people[2]}. "
        f"Who of the three is the oldest, and by how many years is that person older than the youngest?"
    )

    def telling(total: int) -> Telling:
        def tell(generator: np.random.Generator) -> list[str]:
            return [
                _either(
                    generator,
                    f"{people[0]} is older than {people[1]}, who is older than {people[2]}",
                    f"from old to young they are {people[0]}, {people[1]} and {people[2]}",
                ),
                _either(
                    generator,
                    f"the two differences of {gaps[0]} and {gaps[1]} years make {total} years",
                    f"{gaps[0]} years and {gaps[1]} years more come to {total} years",
                ),
            ]

        return tell

    right = sum(gaps)
    wrong = abs(gaps[0] - gaps[1]) or right + 1
    return question, f"{people[0]}, {right} years", f"{people[0]}, {wrong} years", telling(right), telling(wrong)


def _either(generator: np.random.Generator, *ways: str) -> str:
    return ways[int(generator.integers(len(ways)))]


_DOMAINS = (("sums", _sum), ("facts", _fact), ("order", _order))
