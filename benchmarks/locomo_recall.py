"""Evidence recall of every memory over raw text on LoCoMo's ten conversations, without a reader, and what it takes.

    EQUIPOISE_DATA=... python benchmarks/locomo_recall.py            # bm25, rag-turns, chain-of-memory; MiniLM; both cores
    python benchmarks/locomo_recall.py --systems bm25                # needs bm25s alone

A question counts where all turns of its evidence were printed (k 20, no budget); of the 1,540 of categories 1 to 4 those
that name their evidence. Texts are embedded once, in batches, and the seconds of that are told apart; a run with a snapshot
before and after every answer, as LifeDialBench's protocols take it. LoCoMo is CC BY-NC 4.0 and no part of this repository.
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from equipoise.agents.lifedialbench import run
from equipoise.agents.memory import Unread, turn_text
from equipoise.agents.memory_systems import build
from equipoise.data.histories import History
from equipoise.data.locomo import category_of, read_locomo

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--systems", nargs="+", default=["bm25", "rag-turns", "chain-of-memory"])
parser.add_argument("--conversations", type=int, default=10)
parser.add_argument("--threads", type=int, default=2, help="of the embedder")
parser.add_argument("--cache", help="a folder that keeps vectors; what is in it costs nothing")
arguments = parser.parse_args()
data = os.environ.get("EQUIPOISE_DATA")
if data is None:
    sys.exit("EQUIPOISE_DATA does not name the folder that holds locomo/locomo10.json.gz.")
began, used = time.perf_counter(), time.process_time()
histories = read_locomo(Path(data) / "locomo" / "locomo10.json.gz").histories[: arguments.conversations]
vectors: dict[str, np.ndarray] = {}


def embed_all() -> None:
    """Every turn and every question, in batches of texts that are about as long."""
    import torch

    from equipoise.language.embed import embed

    torch.set_num_threads(arguments.threads)
    texts = [turn_text(turn, s.time) for h in histories for s in h.sessions for turn in s.turns]
    texts = list(dict.fromkeys([*texts, *(question.text for h in histories for question in h.questions)]))
    found = embed(texts, "minilm", overflow="cut", cache=arguments.cache)
    vectors.update(zip(texts, found.vectors, strict=True))
    for note in found.notes():
        print(note)


def embedder(texts: Sequence[str]) -> np.ndarray:
    """The vectors that were made before."""
    return np.stack([vectors[text] for text in texts])


def shown(name: str, seconds: float, processor: float) -> None:
    print(f"{name:<40}{seconds:8.1f} s{processor:8.1f} s of CPU")


def measure(name: str) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    found, printed, tokens = [], [], []
    for history in histories:
        asked = [question for question in history.questions if question.evidence and category_of(question) < 5]
        answers = run(build(name, reader=Unread(), embedder=embedder), history, asked, protocol="offline")
        for question, row in zip(answers.questions, answers.rows, strict=True):
            found.append(set(question.evidence) <= set(row.found))
            printed.append(row.printed)
            tokens.append(row.read_tokens)
    shown(f"{name}: {len(found)} questions", time.perf_counter() - start, time.process_time() - cpu)
    print(
        f"    evidence recall {np.mean(found):.3f}, turns printed {np.mean(printed):.1f}, words read {np.mean(tokens):.0f}"
    )


def turns(history: History) -> int:
    return sum(len(session.turns) for session in history.sessions)


shown(f"read: {sum(map(turns, histories))} turns", time.perf_counter() - began, time.process_time() - used)
if set(arguments.systems) & {"rag-turns", "chain-of-memory", "rag-sessions"}:
    start, cpu = time.perf_counter(), time.process_time()
    embed_all()
    shown(f"embedded: {len(vectors)} texts, once", time.perf_counter() - start, time.process_time() - cpu)
for system in arguments.systems:
    measure(system)
shown("all", time.perf_counter() - began, time.process_time() - used)
print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MB")
