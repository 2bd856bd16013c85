"""The provider `equipoise/NAME` beside Inspect's own `hf/`, on the same folder: one call alone, and 32 at once.

    python benchmarks/chat.py                         # smollm2, one thread, about three minutes
    OMP_NUM_THREADS=2 python benchmarks/chat.py --calls 64
    python benchmarks/chat.py --device cuda           # without llama.cpp, whose wheel from PyPI runs on the CPU
    python benchmarks/chat.py --lone                  # only what is added to one call, on a model that takes milliseconds

One process, all candidates in turn, the minimum of the repeats. Greedy answers of at most --tokens tokens to short
questions, through `Model.generate` of Inspect. "engine alone" is the same call made to the engine itself (for `hf/`: to
`generate` of transformers), without provider and queue, in turn with the whole call; what that takes beyond it is the
overhead. CPU seconds are those of the calls at once; they say more than the clock's on a busy machine.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch and by the llama.cpp engine

import torch
from inspect_ai.model import GenerateConfig, Model, get_model

from equipoise.chat.batching import GenerationRequest, GenerationSettings
from equipoise.data.records import Message
from equipoise.language import catalog
from equipoise.language.tiny import tiny

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--calls", type=int, default=32, help="how many are made at once")
parser.add_argument("--tokens", type=int, default=8, help="most tokens of an answer")
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--device", default="cpu")
parser.add_argument("--lone", action="store_true")
arguments = parser.parse_args()

QUESTIONS = [f"How much is {first} + {second}?" for first in range(2, 12) for second in range(2, 12)]


@dataclass
class Candidate:
    name: str
    model: Model
    alone: Callable[[str], object]


def ours(name: str, source: str = "smollm2", **options: object) -> Candidate:
    model = get_model(f"equipoise/{source}", memoize=False, **options)
    engine = model.api._loaded.batcher.engine

    def alone(question: str) -> None:
        request = GenerationRequest((Message("user", question),), GenerationSettings(), arguments.tokens)
        engine.run([request], lambda index, answer: None, lambda index: True)

    return Candidate(name, model, alone)


def theirs(name: str, folder: Path) -> Candidate:
    model = get_model("hf/local", memoize=False, model_path=str(folder), do_sample=False, device=arguments.device)
    network, tokenizer = model.api.model, model.api.tokenizer

    def alone(question: str) -> None:
        turns = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        batch = tokenizer([text], return_tensors="pt", padding=True).to(network.device)
        with torch.inference_mode():
            network.generate(**batch, do_sample=False, max_new_tokens=arguments.tokens)

    return Candidate(name, model, alone)


async def timed(what: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Seconds of the clock and of the CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    await what()
    return time.perf_counter() - clock, time.process_time() - cpu


async def measure(candidate: Candidate) -> tuple[float, float, float, float]:
    """Seconds of the engine alone, of one call, of all calls at once, and CPU seconds of these."""
    config = GenerateConfig(max_tokens=arguments.tokens, max_connections=arguments.calls)
    questions = (QUESTIONS * arguments.calls)[: arguments.calls]

    async def engine() -> None:
        await asyncio.to_thread(candidate.alone, QUESTIONS[0])

    async def one() -> None:
        await candidate.model.generate(QUESTIONS[0], config=config)

    async def at_once() -> None:
        await asyncio.gather(*(candidate.model.generate(question, config=config) for question in questions))

    await one()  # the first call pays for what is made once
    pairs = [((await timed(engine))[0], (await timed(one))[0]) for _ in range(5 * arguments.repeats)]
    together = [await timed(at_once) for _ in range(arguments.repeats)]
    return *(min(times) for times in zip(*pairs, strict=True)), *(min(times) for times in zip(*together, strict=True))


async def added(candidate: Candidate, repeats: int) -> tuple[float, float]:
    """Medians of milliseconds: the engine alone, and a whole call, in turn."""
    config = GenerateConfig(max_tokens=arguments.tokens, max_connections=32)
    await candidate.model.generate(QUESTIONS[0], config=config)
    times: tuple[list[float], list[float]] = [], []
    for _ in range(repeats):
        times[0].append((await timed(lambda: asyncio.to_thread(candidate.alone, QUESTIONS[0])))[0])
        times[1].append((await timed(lambda: candidate.model.generate(QUESTIONS[0], config=config)))[0])
    return 1000 * statistics.median(times[0]), 1000 * statistics.median(times[1])


def lone() -> None:
    """What provider, queue and Inspect add to a call of a model of two layers."""
    with tempfile.TemporaryDirectory() as name:
        tiny(QUESTIONS, seed=0, width=64, layers=2).save(name)
        print("| two layers of width 64 | engine alone, ms | one call, ms | added, ms |\n|---|---:|---:|---:|")
        for candidate, repeats in (
            (theirs("Inspect's hf/", Path(name)), 3),
            (ours("equipoise/, transformers", name, engine="transformers", device=arguments.device), 100),
        ):
            alone, whole = asyncio.run(added(candidate, repeats))
            print(f"| {candidate.name} | {alone:.1f} | {whole:.1f} | {whole - alone:.1f} |", flush=True)


def main() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if arguments.lone:
        lone()
        return
    candidates = [
        theirs("Inspect's hf/", catalog.folder("smollm2")),
        ours("equipoise/, transformers, batches of 32", engine="transformers", device=arguments.device, batch_size=32),
        ours("equipoise/, transformers, batches of 8", engine="transformers", device=arguments.device, batch_size=8),
    ]
    if arguments.device == "cpu":
        candidates.append(ours("equipoise/, llama.cpp", engine="llama.cpp"))
    print(
        f"smollm2 on {arguments.device}, {os.environ['OMP_NUM_THREADS']} thread(s), at most {arguments.tokens} tokens\n"
    )
    print(f"| | engine alone, s | one call, s | overhead, ms | {arguments.calls} at once, s | CPU, s | times hf/ |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    rival = None
    for candidate in candidates:
        engine, one, together, cpu = asyncio.run(measure(candidate))
        rival = together if rival is None else rival
        cells = f"{engine:.3f} | {one:.3f} | {1000 * (one - engine):.1f} | {together:.2f} | {cpu:.2f}"
        print(f"| {candidate.name} | {cells} | {rival / together:.1f} |", flush=True)


if __name__ == "__main__":
    main()
