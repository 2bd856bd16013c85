"""Chains of a batch of questions, beside the method's steps in plain Python and with one numpy product a cosine.

    python benchmarks/chain_of_memory.py             # pools of 20 turns, 384 numbers each; ms a question, ratios

One process, one thread, candidates in turn, the least CPU time of the repeats. All make the same chains, which is checked.
beta is 0: no chain stops, so that every question takes 57 decisions and 570 cosines. What is embedded is no part of it.
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.agents.chain_of_memory import Context, chains

Order = tuple[tuple[int, ...], ...]


def plain_cosine(one: list[float], two: list[float]) -> float:
    product = first = second = 0.0
    for x, y in zip(one, two, strict=True):
        product += x * y
        first += x * x
        second += y * y
    return product / math.sqrt(first * second)


def numpy_cosine(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    return float(one @ two / (np.linalg.norm(one) * np.linalg.norm(two)))


def plain_center(rows: list[list[float]]) -> list[float]:
    return [sum(values) / len(rows) for values in zip(*rows, strict=True)]


def numpy_center(rows: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.mean(rows, axis=0)


def by_steps(
    rows: Any, scores: list[float], context: Context, cosine: Callable[[Any, Any], float], center: Callable[[Any], Any]
) -> Order:
    """The method as it is written: every cosine of every step anew, beta 0."""
    ranked = sorted(range(len(rows)), key=lambda place: -scores[place])
    found = []
    for anchor in ranked[:3]:
        chain, rest = [anchor], [place for place in ranked if place != anchor]
        while rest:
            middle = rows[chain[-1]] if context == "last" else center([rows[place] for place in chain])
            gates = [max(scores[place], 0.0) * max(cosine(rows[place], middle), 0.0) for place in rest]
            chain.append(rest.pop(gates.index(max(gates))))
        found.append(tuple(chain))
    return tuple(found)


def least(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Seconds of CPU, and what came out."""
    seconds, made = [], None
    for _ in range(repeats):
        start = time.process_time()
        made = work()
        seconds.append(time.process_time() - start)
    return min(seconds), made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    generator = np.random.default_rng(0)
    pools = generator.standard_normal((asked.questions, asked.turns, asked.width)) + 0.5
    pools /= np.linalg.norm(pools, axis=2, keepdims=True)
    scores = pools @ pools.mean(axis=(0, 1))
    lists = [pool.tolist() for pool in pools]
    print(f"{'context':<8} {'':<22} {'ms a question':>14} {'times ours':>11}")
    for context in ("mean", "last"):
        own, made = least(
            lambda: [chains(pool, s, beta=0.0, context=context).order for pool, s in zip(pools, scores, strict=True)],  # noqa: B023
            asked.repeats,
        )
        print(f"{context:<8} {'ours':<22} {1000 * own / asked.questions:>14.2f} {1:>11.1f}")
        for name, rows, cosine, center in (
            ("plain loops", lists, plain_cosine, plain_center),
            ("numpy, cosine by cosine", list(pools), numpy_cosine, numpy_center),
        ):
            seconds, other = least(
                lambda: [
                    by_steps(pool, s.tolist(), context, cosine, center)  # noqa: B023
                    for pool, s in zip(rows, scores, strict=True)  # noqa: B023
                ],
                1 if name == "plain loops" else asked.repeats,
            )
            assert other == made, "the chains differ"
            print(f"{context:<8} {name:<22} {1000 * seconds / asked.questions:>14.2f} {seconds / own:>11.1f}")


if __name__ == "__main__":
    main()
