"""Scoring finished answers on a GPU: `uncertainty.tokur` beside as many plain passes, with a billion random weights.

    python benchmarks/tokur_gpu.py --answers 32 --members 4

A plain pass reads prompt and answer and takes the entropy of each token of the answer. The least of three repeats, after one
that is not counted; the clock is read when the GPU has finished.
"""

import argparse
import random
import time
from collections.abc import Callable

import torch

from equipoise.core.progress import quiet
from equipoise.language.confidence import entropy
from equipoise.language.model import LanguageModel
from equipoise.language.tiny import tiny
from equipoise.uncertainty import tokur
from unlearning import billion

BATCH = 8


def seconds(work: Callable[[], object]) -> float:
    found = []
    for _ in range(4):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found[1:])


def plain(model: LanguageModel, rows: list[tokur.Encoded], members: int) -> None:
    net = model.model
    for first in range(0, len(rows), BATCH):
        some = rows[first : first + BATCH]
        texts = [[*row.prompt, *row.answer[:-1]] for row in some]
        longest = max(map(len, texts))
        ids = torch.tensor([[*text, *[model.pad_id] * (longest - len(text))] for text in texts], device=model.device)
        for _ in range(members):
            states = net.base_model(input_ids=ids, use_cache=False).last_hidden_state
            for row, own in zip(some, states, strict=True):
                begin = len(row.prompt) - 1
                entropy(net.lm_head(own[begin : begin + len(row.answer)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=32)
    parser.add_argument("--members", type=int, default=4)
    given = parser.parse_args()
    torch.manual_seed(0)
    words, draw = [f"w{number}" for number in range(400)], random.Random(0)
    model = billion(tiny([" ".join(words)], seed=0).tokenizer)
    model.model.eval()
    texts = [tuple(" ".join(draw.choices(words, k=size)) for size in (60, 120)) for _ in range(given.answers)]
    rows = [tokur.encoded(model, prompt, answer) for prompt, answer in texts]
    print(
        f"{torch.cuda.get_device_name()}: {len(rows)} answers of {len(rows[0].answer)} tokens, {given.members} members"
    )
    print("\n| precision | plain, ms | ours, ms | ratio |\n|---|---:|---:|---:|")
    for dtype in (torch.float32, torch.bfloat16):
        model.model.to(dtype)
        unsure = tokur.perturb(model, sigma=0.02)
        with quiet(), torch.no_grad():
            theirs = seconds(lambda: plain(model, rows, given.members))
            ours = seconds(
                lambda noisy=unsure: tokur.score_tokens(noisy, rows, members=given.members, seed=0, batch_size=BATCH)
            )
        print(f"| {str(dtype)[6:]} | {1000 * theirs:,.0f} | {1000 * ours:,.0f} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main()
