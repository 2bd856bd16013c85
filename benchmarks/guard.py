"""GUARD's scores by central difference beside one backward pass a record, on `tiny` and on SmolLM2-135M.

    python benchmarks/guard.py                          # tiny alone
    python benchmarks/guard.py --model smollm2          # and smollm2: equipoise models fetch smollm2

Both score the same forget records against the same retain gradient, which is taken once and left out of the times: the rest
is what grows with the forget set. The peer is what attribution libraries do for one checkpoint (TracIn): a backward pass a
record, and the inner product of all gradients. Times are the least of the rounds, in which both take turns; the scores of
both must agree. Threads are torch's own number; OMP_NUM_THREADS=1 changes it.
"""

import argparse
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", choices=["tiny", "smollm2"], default="tiny")
parser.add_argument("--records", type=int, default=48)
parser.add_argument("--rounds", type=int, default=2)


def main() -> None:
    arguments = parser.parse_args()
    import torch

    from equipoise.data.world import people
    from equipoise.language.encode import encode
    from equipoise.language.model import evaluating, load
    from equipoise.language.tiny import tiny
    from equipoise.unlearning import guard

    world = people(0)
    print(f"threads: {torch.get_num_threads()}\n")
    print("| model | records | difference, s | a backward pass a record, s | ratio | scores apart |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in dict.fromkeys(["tiny", arguments.model]):
        if name == "tiny":
            language_model = tiny([f"{record.prompt} {record.completion}" for record in world.teaching], seed=0)
        else:
            language_model = load(name, chat_template="none")
        forget = encode(language_model, world.forget[: arguments.records])
        retain = encode(language_model, world.neighbour[:16])
        parameters = list(language_model.model.parameters())
        batches = guard._Batches(language_model, 16)
        with evaluating(language_model.model):
            direction = guard._mean_gradient(batches, retain, parameters)
            best = {"difference": float("inf"), "gradient": float("inf")}
            found = {}
            for _ in range(arguments.rounds):
                began = time.perf_counter()
                found["difference"], notes = guard._by_difference(batches, forget, parameters, direction)
                best["difference"] = min(best["difference"], time.perf_counter() - began)
                began = time.perf_counter()
                found["gradient"] = guard._by_gradient(batches, forget, parameters, [direction])[0][:, 0]
                best["gradient"] = min(best["gradient"], time.perf_counter() - began)
        apart = ((found["difference"] - found["gradient"]).norm() / found["gradient"].norm()).item()
        ratio = best["gradient"] / best["difference"]
        print(
            f"| {name} | {len(forget)} | {best['difference']:.2f} | {best['gradient']:.2f} | {ratio:.2f} | {apart:.1e} |"
        )
        for note in notes:
            print(f"\n{note}")


if __name__ == "__main__":
    main()
