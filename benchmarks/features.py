"""Stored features of SmolLM2-135M beside one prompt at a time, and beside the matrix products that they take.

    python benchmarks/features.py                       # needs smollm2: equipoise models fetch smollm2

Texts of mean length 20 and 70 (uniform from half to one and a half of it), the mean of the states of every block. All read
the same ids with the same model in float32; the loops keep means in memory, we write a file. The usual loop calls the model
with `output_hidden_states=True`; the lean one leaves out what that does for nothing, the logits and the cache, and reads the
states as we do, so that its ratio is what batches alone gain. A ratio is the median over rounds in which all take turns. The
bound is the time of the products alone: the flops of all linear maps, at the rate that a product of the feed-forward part's
shape reaches here on 1,024 rows. Threads are torch's own number; OMP_NUM_THREADS=1 changes it.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

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

    def usual(rows: list[tuple[int, ...]]) -> torch.Tensor:
        with torch.no_grad():
            found = [model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states for row in rows]
        return torch.stack([torch.stack([states[0].mean(0) for states in each[1:]]) for each in found])

    def lean(rows: list[tuple[int, ...]]) -> torch.Tensor:
        kept = []
        with torch.no_grad(), recording(model, places) as states:
            for row in rows:
                model.base_model(input_ids=torch.tensor([row]), use_cache=False)
                kept.append(torch.stack([states[place][0].mean(0) for place in places]))
        return torch.stack(kept)

    print(f"threads: {torch.get_num_threads()}\n")
    print("| mean length | ours, texts a second | usual loop | ratio | lean loop | ratio | share of the bound |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for mean in (20, 70):
        lengths = generator.integers(mean // 2, mean + mean // 2, arguments.texts, endpoint=True).tolist()
        rows = [tuple(generator.integers(100, 40_000, length).tolist()) for length in lengths]
        examples = [Example(row, row) for row in rows]
        seconds: dict[str, list[float]] = {"ours": [], "usual": [], "lean": []}
        for number in range(arguments.rounds + 1):
            with tempfile.TemporaryDirectory() as folder, quiet():
                began = time.perf_counter()
                found = extract(language_model, examples, places, pool="mean", into=Path(folder) / "f", dtype="float32")
                took = {"ours": time.perf_counter() - began}
                for name, loop in (("usual", usual), ("lean", lean)):
                    began = time.perf_counter()
                    kept = loop(rows).numpy()
                    took[name] = time.perf_counter() - began
                    # the usual loop's last state has gone through the last norm
                    places_alike = slice(None, -1) if name == "usual" else slice(None)
                    difference = np.abs(found.values - kept)[:, places_alike].max() / np.abs(found.values).max()
                    assert difference < 1e-4, (name, difference)
            if number:  # the first of a process is slow
                for name, value in took.items():
                    seconds[name].append(value)
        flops = 2 * sum(lengths) * sum(weight.numel() for weight in weights)
        bound = flops / product_rate(1024)
        rates = {name: len(rows) / statistics.median(values) for name, values in seconds.items()}
        ratios = {
            name: statistics.median(their / our for our, their in zip(seconds["ours"], seconds[name], strict=True))
            for name in ("usual", "lean")
        }
        print(
            f"| {mean} | {rates['ours']:.1f} | {rates['usual']:.1f} | {ratios['usual']:.2f} | {rates['lean']:.1f} "
            f"| {ratios['lean']:.2f} | {bound / statistics.median(seconds['ours']):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
