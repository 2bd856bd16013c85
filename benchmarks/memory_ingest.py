"""Taking conversations in: our retrieval over turns beside mem0's, the same embedder, and how memory grows with turns.

    EQUIPOISE_DATA=... python benchmarks/memory_ingest.py                  # one LoCoMo conversation; pip install mem0ai
    python benchmarks/memory_ingest.py --embedder hash --repeats 3         # what the stores take, without a model

mem0 keeps turns as they are (infer=False: no model is asked), in a local qdrant, with telemetry off. Both get the same
texts, session by session. "hash" is an embedder that takes next to nothing: what is left is the stores' own work; with
"minilm" a text is embedded once for both, before the clock begins, and looked up. Then bytes of items and directions at
growing numbers of made-up turns, by tracemalloc: one number a turn if memory is linear.
"""

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

os.environ["MEM0_TELEMETRY"] = "False"

import numpy as np

from equipoise.agents.memory import MemorySystem, Unread, turn_text
from equipoise.agents.memory_adapters import Mem0Memory, local_mem0
from equipoise.agents.memory_systems import build
from equipoise.data.histories import Session, Turn
from equipoise.data.locomo import read_locomo

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--embedder", choices=["hash", "minilm"], default="minilm")
parser.add_argument("--sessions", type=int, help="the first so many; all by default")
parser.add_argument("--repeats", type=int, default=3, help="0: only the growth of memory")
parser.add_argument("--turns", nargs="*", type=int, default=[2000, 4000, 8000, 16000], help="for the growth of memory")
arguments = parser.parse_args()
WIDTH = 384


def hashed(texts: Sequence[str]) -> np.ndarray:
    """Bytes of digests as numbers: [n, 384]."""
    rows = [hashlib.shake_128(text.encode()).digest(WIDTH) for text in texts]
    return np.stack([np.frombuffer(row, np.uint8) for row in rows]).astype(np.float32) - 127.5


def embedder(texts: Sequence[str]) -> Callable[[Sequence[str]], np.ndarray]:
    """Who embeds: these texts and no others, where a model does."""
    if arguments.embedder == "hash":
        return hashed
    from equipoise.language.embed import embed

    known = dict(zip([*texts, "width"], embed([*texts, "width"], "minilm", overflow="cut").vectors, strict=True))
    return lambda wanted: np.stack([known[text] for text in wanted])


def taken(make: Callable[[], MemorySystem], sessions: Sequence[Session]) -> float:
    """Seconds of CPU of all threads; of the clock on a busy machine one could say nothing."""
    system = make()
    before = time.process_time()
    for session in sessions:
        system.ingest(session, session.time)
    return time.process_time() - before


def grown(turns: int) -> int:
    """Bytes that a memory of so many turns of 20 words holds."""
    first = datetime(2024, 1, 1)
    tracemalloc.start()
    system = build("rag-turns", reader=Unread(), embedder=hashed)
    for number in range(turns // 20):
        said = tuple(Turn(f"{number}:{place}", "Li", f"{number} {place} " + "word " * 18) for place in range(20))
        system.ingest(Session(str(number), first + timedelta(hours=number), said), first + timedelta(hours=number))
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return size


def compare() -> None:
    """One conversation, by both in turn."""
    data = os.environ.get("EQUIPOISE_DATA")
    if data is None:
        sys.exit("EQUIPOISE_DATA does not name the folder that holds locomo/locomo10.json.gz.")
    history = read_locomo(Path(data) / "locomo" / "locomo10.json.gz").histories[0]
    sessions = history.sessions[: arguments.sessions]
    texts = [turn_text(turn, session.time) for session in sessions for turn in session.turns]
    vectors = embedder(texts)
    arms: dict[str, list[float]] = {"rag-turns": [], "mem0": []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats):
            store = Path(folder) / str(repeat)
            makers: dict[str, Callable[[], MemorySystem]] = {
                "rag-turns": lambda: build("rag-turns", reader=Unread(), embedder=vectors),
                "mem0": lambda store=store: Mem0Memory(local_mem0(store, vectors), reader=Unread(), infer=False),
            }
            for name, make in makers.items():
                start = time.perf_counter()
                arms[name].append(taken(make, sessions))
                print(f"{name:<12}{arms[name][-1]:8.3f} s of CPU{time.perf_counter() - start:8.1f} s", flush=True)
    ours, theirs = (statistics.median(times) for times in arms.values())
    print(
        f"{len(texts)} turns in {len(sessions)} sessions, {arguments.embedder}: {theirs / ours:.0f} times as much CPU"
    )


if arguments.repeats:
    compare()
for turns in arguments.turns:
    size = grown(turns)
    print(f"{turns:>8} turns{size / 2**20:10.1f} MB{size / turns:10.0f} bytes a turn", flush=True)
