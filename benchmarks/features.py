"""Stored features of SmolLM2-135M beside one prompt at a time, and beside the matrix products that they take.

    python benchmarks/features.py                       # needs smollm2: equipoise models fetch smollm2

Texts of mean length 20 and 70 (uniform from half to one and a half of it), the mean of the states of every block. Both read
the same ids with the same model in float32; the loop keeps states in memory, we write a file. A ratio is the median over
rounds in which both take turns. The bound is the time of the products alone: the flops of all linear maps, at the rate that
a product of the feed-forward part's shape reaches here on as many rows as a batch has.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--texts", type=int, default=128)
parser.add_argument("--rounds", type=int, default=3)


def main() -> None:
    arguments = parser.parse_args()
    import numpy as np
    import torch

    from equipoise.core.progress import quiet
    from equipoise.language.encode import Example
    from equipoise.language.features import extract
    from equipoise.language.model import load
    from equipoise.language.states import blocks, recording

    language_model = load("smollm2")
    model = language_model.model.eval()
    places = [f"block.{number}" for number in range(len(blocks(model)))]
    weights = [each.weight for each in blocks(model).modules() if isinstance(each, torch.nn.Linear)]
    widest = max(weights, key=torch.Tensor.numel)
    generator = np.random.default_rng(0)

    def product_rate(rows: int) -> float:
        """Flops a second."""
        given = torch.randn(rows, widest.shape[1])
        times = []
        for _ in range(10):
            began = time.perf_counter()
            given @ widest.T
            times.append(time.perf_counter() - began)
        return 2 * rows * widest.numel() / min(times)

    print(
        "| mean length | ours, texts a second | one at a time | ratio | share of the bound |\n|---|---:|---:|---:|---:|"
    )
    for mean in (20, 70):
        lengths = generator.integers(mean // 2, mean + mean // 2, arguments.texts, endpoint=True).tolist()
        rows = [tuple(generator.integers(100, 40_000, length).tolist()) for length in lengths]
        examples = [Example(row, row) for row in rows]
        ours, theirs = [], []
        for number in range(arguments.rounds + 1):
            with tempfile.TemporaryDirectory() as folder, quiet():
                began = time.perf_counter()
                found = extract(language_model, examples, places, pool="mean", into=Path(folder) / "f", dtype="float32")
                ours.append(time.perf_counter() - began)
                began, kept = time.perf_counter(), []
                with torch.no_grad(), recording(model, places) as states:
                    for row in rows:
                        model.base_model(input_ids=torch.tensor([row]), use_cache=False)
                        kept.append(torch.stack([states[place][0].mean(0) for place in places]))
                theirs.append(time.perf_counter() - began)
                difference = np.abs(found.values - torch.stack(kept).numpy()).max() / np.abs(found.values).max()
                assert difference < 1e-4, difference
            if number == 0:  # the first of a process is slow
                ours.clear(), theirs.clear()
        flops = 2 * sum(lengths) * sum(weight.numel() for weight in weights)
        bound = flops / product_rate(1024)
        median = statistics.median(ours)
        ratio = statistics.median(their / our for our, their in zip(ours, theirs, strict=True))
        print(
            f"| {mean} | {len(rows) / median:.1f} | {len(rows) / statistics.median(theirs):.1f} | {ratio:.2f} "
            f"| {bound / median:.2f} |"
        )


if __name__ == "__main__":
    main()
