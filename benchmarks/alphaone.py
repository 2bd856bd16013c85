"""What steering costs a token: AlphaOne as a logits processor of transformers' generate, beside generate without it.

    python benchmarks/alphaone.py [--model smollm2] [--tokens 128] [--batch 4] [--repeats 3]

Both write the same number of tokens in one process, in turn; the least time of the repeats counts. The phases are timed
apart: before the moment a token costs a look at the last id, after it the probability of the words of transition. The
control never acts (no word is inserted, and no word is replaced), so that both write the same.
"""

import argparse
import time
from typing import Any

import torch

from equipoise.decoding import AlphaOne, Tags
from equipoise.language import load


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    language_model = load(given.model)
    model, tokenizer = language_model.model, language_model.tokenizer
    tags = Tags("<think>", "</think>")
    ids = torch.tensor([tokenizer.encode("Think step by step about the sum of the first ten numbers.")] * given.batch)
    ids = ids.to(language_model.device)

    # Of a CPU the time that this process got, which others on the machine do not lengthen.
    clock = time.process_time if language_model.device.type == "cpu" else time.perf_counter

    def control(moment: float) -> AlphaOne:
        made = AlphaOne(tokenizer, moment=moment, kind="constant", p=0.0, temperature=0, tags=tags)
        _ = made.vocabulary.delimiters  # decoding the vocabulary once is no cost of a token
        made.vocabulary.completing(tags.word, "")
        return made

    def seconds(processors: list[Any]) -> float:
        began = clock()
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=given.tokens,
            max_new_tokens=given.tokens,
            logits_processor=processors,
        )
        assert out.shape[1] == ids.shape[1] + given.tokens
        return clock() - began

    arms = {"plain": None, "before the moment": float(given.tokens + ids.shape[1]), "after the moment": 1.0}
    least = dict.fromkeys(arms, float("inf"))
    seconds([])
    for _ in range(given.repeats):
        for name, moment in arms.items():
            least[name] = min(least[name], seconds([] if moment is None else [control(moment)]))
    tokens = given.tokens * given.batch
    for name, took in least.items():
        extra = (took - least["plain"]) / tokens * 1e6
        print(
            f"{name:20} {took / tokens * 1e3:8.3f} ms a token   {took / least['plain']:.3f} x   {extra:+8.1f} us a token"
        )


if __name__ == "__main__":
    main()
