"""The pilot of tool entropy: does a language model's entropy fall more after the paragraph that it lacks?

    found = drops(load("smollm2"), questions(150, seed=0))          of each question, by signal and by what was given

A question of HotpotQA needs two paragraphs. The model is shown one of them, thinks for 40 tokens, is given another text, and
thinks for 40 tokens again: the second paragraph (gold), one of the question's distractors, or the first again (repeat). What
it thinks first is the same for all three. The likeliest tokens are taken; entropies are those at temperature 1.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from equipoise.core.errors import BadInput
from equipoise.data.answers import normalize
from equipoise.data.public import folder
from equipoise.data.records import read_rows
from equipoise.language.episodes import play
from equipoise.reinforcement.entropy_tools import changes, copied, segment_entropy, segmented

if TYPE_CHECKING:
    from torch import Tensor

    from equipoise.language.model import LanguageModel
    from equipoise.language.rollouts import Rollouts

GIVEN = ("gold", "distractor", "repeat")
SIGNALS = ("entropy", "relative", "no-copies", "surprisal", "overlap")
FILES = ("hotpotqa-100.jsonl.gz", "hotpotqa-dev-100.jsonl.gz")
THINK = 40  # tokens
PARAGRAPH = 500  # characters of one at most
CHUNK = 10  # questions at once
PARTS = 3  # of all questions, one for each seed of the study

FIRST = "Question: {question}\n\n{first}\n\nThink aloud about how to answer the question."
THEN = "{text}\n\nGo on thinking about the question: {question}"


@dataclass(frozen=True)
class Evidence:
    """A question, the paragraph that is shown first, and by GIVEN what is given then."""

    id: str
    question: str
    first: str
    texts: Mapping[str, str]


def questions(count: int, *, seed: int, part: int = 0) -> list[Evidence]:
    """Questions with two gold paragraphs and distractors; the seed draws their order, and what is given of each.

    part: of this order, from 0, each of `count`; no two have a question in common. From the folder `multihop-qa` that
    EQUIPOISE_DATA holds. Raises BadInput where there are fewer.
    """
    draw = random.Random(seed)
    rows = [row for name in FILES for _, _, row in read_rows(folder("multihop-qa") / name)]
    found = [each for row in rows if (each := _evidence(row, draw)) is not None]
    if len(found) < (part + 1) * count:
        raise BadInput(
            f"there are {len(found)} questions with two paragraphs and a distractor, and {(part + 1) * count} were asked "
            "for."
        )
    return draw.sample(found, len(found))[part * count : (part + 1) * count]


def _evidence(row: Mapping[str, Any], draw: random.Random) -> Evidence | None:
    titles = {fact["title"] for fact in row["supporting_facts"]}
    texts = {each["title"]: f"{each['title']}: {''.join(each['sentences'])}"[:PARAGRAPH] for each in row["context"]}
    gold, others = sorted(titles & set(texts)), sorted(set(texts) - titles)
    if len(gold) != 2 or not others:
        return None
    draw.shuffle(gold)
    first, second = (texts[title] for title in gold)
    given = {"gold": second, "distractor": texts[draw.choice(others)], "repeat": first}
    return Evidence(str(row["_id"]), row["question"], first, given)


@dataclass
class Reading:
    """The environment: seed 3 q + g is question q with the g-th of GIVEN. Whatever is written is thought."""

    evidence: Sequence[Evidence]

    def reset(self, seed: int) -> str:
        """The question and its first paragraph."""
        self._question, self._given = self.evidence[seed // len(GIVEN)], GIVEN[seed % len(GIVEN)]
        self._read = False
        return FIRST.format(question=self._question.question, first=self._question.first)

    def step(self, text: str) -> tuple[str, float, bool, dict[str, Any]]:
        """What is given, once; then it is over."""
        if self._read:
            return "", 0.0, True, {}
        self._read = True
        told = THEN.format(question=self._question.question, text=self._question.texts[self._given])
        actions = [{"name": "read", "arguments": {"given": self._given}}]
        return told, 0.0, False, {"owner": "tool", "actions": actions, "call_at": len(text)}


def think(language_model: LanguageModel, evidence: Sequence[Evidence], *, tokens: int = THINK) -> Rollouts:
    """An episode for each question and each of GIVEN, in that order."""
    return play(
        language_model,
        partial(Reading, evidence),
        range(len(GIVEN) * len(evidence)),
        samples=1,
        max_turns=2,
        max_new_tokens=tokens,
        temperature=0.0,
        seed=0,
        batch_size=len(GIVEN) * CHUNK,
    )


def drops(
    language_model: LanguageModel, evidence: Sequence[Evidence], *, tokens: int = THINK
) -> dict[str, dict[str, list[float]]]:
    """By SIGNALS and GIVEN: of each question how much lower the signal is in the second thought; nan: one is too short.

    entropy, relative: as of `entropy_tools.changes`. no-copies: of tokens that do not repeat the text given. surprisal: the
    mean of -log p of the tokens written. overlap: without a model, the share of the question's words that the text has and
    the first paragraph has not. And beside the signals, "copied": the share of the second thought that repeats the text.
    """
    rollouts = think(language_model, evidence, tokens=tokens)
    found = segmented(language_model, rollouts)
    copies = copied(rollouts.ids, found.segments, found.observed)

    def drop(values: Tensor, segments: Tensor, *, relative: bool = False) -> list[float]:
        of = segment_entropy(values, segments, count=2)
        return (-changes(of.means, relative=relative)).masked_fill(of.joined[:, 1:], float("nan"))[:, 0].tolist()

    second = found.segments == 1
    signals = {
        "entropy": drop(rollouts.entropies, found.segments),
        "relative": drop(rollouts.entropies, found.segments, relative=True),
        "no-copies": drop(rollouts.entropies, found.segments.masked_fill(copies, -1)),
        "surprisal": drop(-rollouts.log_probs, found.segments),
        "overlap": [_overlap(each, given) for each in evidence for given in GIVEN],
        "copied": ((copies & second).sum(-1) / second.sum(-1)).tolist(),
    }
    return {
        name: {given: values[place :: len(GIVEN)] for place, given in enumerate(GIVEN)}
        for name, values in signals.items()
    }


def _overlap(evidence: Evidence, given: str) -> float:
    asked, first, text = (
        set(normalize(each).split()) for each in (evidence.question, evidence.first, evidence.texts[given])
    )
    return len(asked & text - first) / max(len(asked), 1)


def measure(preparation: Any, *, count: int) -> None:
    """`drops` of so many questions by SmolLM2, stored in the preparation's folder; goes on after the last whole chunk."""
    import json

    from equipoise.language.model import load

    evidence = questions(count, seed=0, part=preparation.seed % PARTS)
    stored = preparation.resume() or {"done": 0, "found": {}}
    found = stored["found"]
    language_model = load("smollm2")
    for begin in range(stored["done"], count, CHUNK):
        part = evidence[begin : begin + CHUNK]
        for signal, of_signal in drops(language_model, part).items():
            for given, values in of_signal.items():
                found.setdefault(signal, {}).setdefault(given, []).extend(values)
        preparation.spend(phase="build", generated_tokens=2 * THINK * len(GIVEN) * len(part))
        preparation.checkpoint({"done": begin + len(part), "found": found})
    written = {"ids": [each.id for each in evidence], "found": found}
    (preparation.folder / "drops.json").write_text(json.dumps(written) + "\n", encoding="utf-8")
