"""What routing adds to a prompt beside one prefill of it, what going on from that prefill saves, and requests a second.

    python benchmarks/routing_serve.py                          # tiny and smollm2, one thread, some minutes
    python benchmarks/routing_serve.py --models tiny --requests 400

One process. "prefill" is one pass of transformers over the prompt with its cache and no more; "routing" is what the served
router does before it knows where a prompt goes: template, tokens, the same pass with means of every layer, score, decision.
Both in turn, medians of the repeats, in seconds of CPU, which say more than the clock's on a busy machine. Then the first
token of a local answer: from what was read, and with the prompt read again. Requests a second are those of --requests
requests at --concurrency over sockets, with none, half and all of them forwarded to a stub in the same process; the same
client asks the stub directly, too, which is what client and stub take.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import httpx
import numpy as np
import torch

from equipoise.data.records import Message
from equipoise.language.encode import encode_prompts
from equipoise.language.model import LanguageModel, load
from equipoise.language.tiny import tiny
from equipoise.routing.controller import Controller
from equipoise.routing.prompt_states import layers, prefill
from equipoise.routing.router import Router
from equipoise.routing.serving import app
from equipoise.routing.serving_local import LocalModel, Sampling
from equipoise.routing.serving_upstream import Upstream
from routing_stubs import Stub, running

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--models", nargs="+", default=["tiny", "smollm2"])
parser.add_argument("--words", nargs="+", type=int, default=[20, 200], help="lengths of the prompts")
parser.add_argument("--repeats", type=int, default=15)
parser.add_argument("--requests", type=int, default=200, help="0: none over sockets")
parser.add_argument("--concurrency", type=int, default=32)
parser.add_argument("--tokens", type=int, default=8, help="most tokens of a local answer")
arguments = parser.parse_args()

TEXT = "What is the capital of Norway, and how far is it from Paris by train? "


def probe(language_model: LanguageModel) -> Router:
    """A Dirichlet router with random weights: what it scores does not matter here."""
    depth, width = len(layers(language_model.model)), language_model.model.config.get_text_config().hidden_size
    generator = np.random.default_rng(0)
    w, a = generator.normal(size=width).astype(np.float32), np.zeros(depth, np.float32)
    return Router("dirichlet", 0.5, "chat", depth, width, w=w, a=a, g=1.0)


def medians(functions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of CPU of each, in turn."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(arguments.repeats + 2):
        for name, function in functions.items():
            begin = time.process_time()
            function()
            if repeat > 1:
                taken[name].append(time.process_time() - begin)
    return {name: statistics.median(times) for name, times in taken.items()}


def added(language_model: LanguageModel, words: int) -> None:
    messages = (Message("user", " ".join((TEXT * 100).split()[:words])),)
    (ids,), _ = encode_prompts(language_model, [messages])
    router = probe(language_model)
    controller = Controller(0.3, router.threshold)
    local = LocalModel(language_model, router)
    batch = torch.tensor([ids], device=language_model.device)

    def plain() -> None:
        with torch.no_grad():
            language_model.model(input_ids=batch, use_cache=True, logits_to_keep=1)

    def routed() -> None:
        read = local._read(messages)
        controller.decide(read.score)

    async def first_token(again: bool) -> None:
        read = await local.read(messages)
        if again:
            read.prefill = None
        async for _ in local.answer(read, Sampling(max_tokens=1)):
            pass

    language_model.model.eval()
    took = medians({"prefill": plain, "with means": lambda: prefill(language_model, ids), "routing": routed})
    first = medians(
        {
            "reused": lambda: asyncio.run(first_token(False)),
            "read again": lambda: asyncio.run(first_token(True)),
        }
    )
    local.close()
    more, means = took["routing"] - took["prefill"], took["with means"] / took["prefill"] - 1
    print(
        f"{language_model.name}, {len(ids)} tokens: prefill {1e3 * took['prefill']:.1f} ms, routing {1e3 * more:.1f} ms "
        f"more, {more / took['prefill']:.0%} of it (means alone {means:.0%}); first token after "
        f"{1e3 * first['reused']:.1f} ms, {1e3 * first['read again']:.1f} ms where the prompt is read again",
        flush=True,
    )


async def asked(url: str) -> tuple[float, float]:
    """Requests a second, and milliseconds of CPU a request, those of the client and of the stub included."""
    gate = asyncio.Semaphore(arguments.concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def one(number: int) -> None:
            async with gate:
                body = {"model": "m", "max_tokens": arguments.tokens, "user": f"u{number}"}
                text = TEXT if number % 2 else f"{TEXT} {number}"
                response = await client.post(
                    "/chat/completions", json={**body, "messages": [{"role": "user", "content": text}]}
                )
                response.raise_for_status()

        clock, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(one(number) for number in range(arguments.requests)))
        cpu_ms = 1e3 * (time.process_time() - cpu) / arguments.requests
        return arguments.requests / (time.perf_counter() - clock), cpu_ms


def served(language_model: LanguageModel) -> None:
    router = probe(language_model)
    with running(Stub().app) as far:
        rates = {"the stub alone": asyncio.run(asked(far.url))}
        for name, budget in (("all local", 0.0), ("half forwarded", 0.5), ("all forwarded", 1.0)):
            controller = Controller(budget, 1.0 if budget else 0.0)
            local = LocalModel(language_model, router)
            with running(app(router, local, Upstream(far.url), controller)) as near:
                rates[name] = asyncio.run(asked(near.url))
    told = ", ".join(f"{name} {rate:.1f} ({cpu_ms:.0f} ms of CPU each)" for name, (rate, cpu_ms) in rates.items())
    print(f"{language_model.name}, {arguments.tokens} tokens, requests a second: {told}", flush=True)


for name in arguments.models:
    model = tiny([TEXT] * 4, seed=0, context=1024) if name == "tiny" else load(name)
    for words in arguments.words:
        added(model, words)
    if arguments.requests:
        served(model)
