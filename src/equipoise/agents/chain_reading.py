"""Chain-of-Memory read by a small model: answers to LoCoMo's questions from what the study's arms print.

Each seed has twenty questions of its own, the same for all arms; prints have at most 120 tokens (words), of turns found by
the embedder `lsa` of `chain_world`. Answers are scored as LoCoMo's are. Nothing that was said or answered is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from equipoise.agents.chain_of_memory import UNDATED, print_blocks
from equipoise.agents.chain_world import (
    WORLD,
    Case,
    arrange,
    asked_of,
    conversations,
    locomo,
    printed,
    printed_turns,
)
from equipoise.agents.memory import MemoryItem
from equipoise.core.state import load_state
from equipoise.data.histories import MemoryQuestion
from equipoise.data.locomo import category_of, f1

EMBEDDER = "lsa"
ALLOWED, QUESTIONS = 120, 20  # tokens of a print; questions of a seed
MOST = 24  # tokens of an answer
PROMPT = "Answer the question in a few words, from what was said below.\n\n{}\n\nQuestion: {}"


def measure(run: Any, *, arm: str, against: str = "", reader: str) -> None:
    """Answers of the reader from what an arm prints, and whether that held all of the evidence.

    arm: of `chain_world.arrange`; "same-tokens", the ranking with the tokens of the arm `against`, turns that fit whole;
    "oracle", the evidence alone; "nothing".
    """
    with run.phase("query"):
        shown = list(reading(run, arm=arm, against=against))
    with run.phase("read"):
        said = answers(reader, [PROMPT.format(text, question.text) for _, question, text, _ in shown])
    run.spend(phase="read", calls=len(shown))
    scores = [
        max(f1(answer.strip().partition("\n")[0], gold, category_of(question)) for gold in question.gold)
        for answer, (_, question, _, _) in zip(said, shown, strict=True)
    ]
    ids, clusters = [case.id for case, *_ in shown], [case.cluster for case, *_ in shown]
    at = {"allowed_tokens": ALLOWED}
    run.items("answer_f1", ids, scores, at=at, clusters=clusters)
    run.items("evidence_recall", ids, [float(held) for *_, held in shown], at=at, clusters=clusters)


def reading(run: Any, *, arm: str, against: str = "") -> Iterator[tuple[Case, MemoryQuestion, str, bool]]:
    """The questions of a seed, each with what an arm prints, and whether all evidence is in it."""
    state, histories = load_state(run.prepared / WORLD), conversations()
    turns, asked = printed_turns(histories), asked_of(histories)
    order = np.random.default_rng(QUESTIONS).permutation(len(asked))
    first = run.seed * QUESTIONS % (len(asked) - QUESTIONS)
    chosen = set(order[first : first + QUESTIONS].tolist())
    for number, case in enumerate(locomo(state, EMBEDDER)):
        if number not in chosen:
            continue
        question, ranking, evidence = asked[number][1], state["ranking"][EMBEDDER][number], state["evidence"][number]
        if arm in ("oracle", "nothing"):
            yield case, question, "\n".join(turns[turn] for turn in evidence if arm == "oracle"), arm == "oracle"
            continue
        arranged = arrange(against or arm, case, np.random.default_rng([run.seed, number]))
        blocks, headers, budget = arranged.blocks, arranged.headers, ALLOWED
        if arm == "same-tokens":
            budget = max(printed(arranged, case.tokens, ALLOWED).tokens, 1)
            blocks, headers = [list(range(len(ranking)))], False
        items = [
            [MemoryItem(str(place), turns[ranking[place]], UNDATED, (str(ranking[place]),)) for place in block]
            for block in blocks
        ]
        kept, text = print_blocks(items, headers=headers, budget=budget)
        held = {source for block in kept for item in block for source in item.sources}
        yield case, question, text, held >= {str(turn) for turn in evidence}


def answers(reader: str, prompts: Sequence[str]) -> list[str]:
    """What a model says, by its likeliest token at each step."""
    from equipoise.language import load
    from equipoise.language.generate import generate

    return generate(load(reader), list(prompts), max_new_tokens=MOST, batch_size=8)
