"""What scoring finished answers costs: against as many plain passes, and against decoding step by step with the same noise.

    python benchmarks/tokur.py                     # SmolLM2, one thread, some minutes
    python benchmarks/tokur.py --model tiny --repeats 1

One process, one thread. "plain" is `members` ordinary passes over prompt and answer with the entropy of each token of the
answer, and no noise. "parallel" is `uncertainty.tokur.score`. "step by step" reads token by token with a cache, each with
noise and then without, as decoding with scores does; its numbers are compared with the parallel ones. In turn, the minimum
of the repeats, in seconds of CPU.
"""

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import DynamicCache

from equipoise.language.confidence import entropy
from equipoise.language.model import LanguageModel, load
from equipoise.language.tiny import tiny
from equipoise.uncertainty import tokur
from equipoise.uncertainty.perturbed import Perturbed, token_noise

PROMPT = "A train goes 60 miles in an hour and stops twice for ten minutes. How far does it go in three hours, and why?"
ANSWER = (
    "It stops for twenty minutes in all, so that it goes for two hours and forty minutes, and 60 miles in each hour. "
)


def plain(model: LanguageModel, rows: list[tokur.Encoded], members: int) -> None:
    """As many ordinary passes as there are members, with the entropy of the answer's tokens."""
    ids = torch.tensor([[*row.prompt, *row.answer[:-1]] for row in rows])
    begin = len(rows[0].prompt) - 1
    with torch.no_grad():
        for _ in range(members):
            states = model.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, begin:]
            entropy(model.model.get_output_embeddings()(states))


def step_by_step(unsure: Perturbed, rows: list[tokur.Encoded], members: int) -> torch.Tensor:
    """EU [R, T] by a decoder whose cache is clean."""
    model, found = unsure.language_model.model, []
    with torch.no_grad():
        for row in rows:
            shape = (len(row.answer), len(unsure.projections), unsure.rank)
            z = [token_noise(*shape, seed=0, member=m, key=tokur._key(row.prompt)).float() for m in range(members)]
            cache, values = DynamicCache(), []
            model(torch.tensor([row.prompt[:-1]]), past_key_values=cache, use_cache=True)
            for step, token in enumerate((row.prompt[-1], *row.answer[:-1])):
                length, said, ids = cache.get_seq_length(), [], torch.tensor([[token]])
                for member in range(1, members):
                    with unsure.noise(lambda index, _, now=z[member][step]: now[index].expand(1, 1, -1)):
                        said.append(model(ids, past_key_values=cache, use_cache=True).logits[0, 0])
                    cache.crop(length)
                said.append(model(ids, past_key_values=cache, use_cache=True).logits[0, 0])
                values.append(tokur.uncertainties(torch.stack(said)).eu)
            found.append(torch.stack(values))
    return torch.stack(found)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Of CPU, the least of the repeats."""
    taken = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return min(taken)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--answers", type=int, default=4)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.model == "tiny":
        model = tiny([PROMPT, ANSWER], seed=0, context=512)
        model.chat_template = "none"
    else:
        model = load(options.model)
    unsure = tokur.perturb(model)
    rows = [tokur.encoded(model, PROMPT, 2 * ANSWER)] * options.answers
    tokens = len(rows[0].prompt), len(rows[0].answer)

    def parallel() -> tokur.TokenUncertainty:
        return tokur.score_tokens(unsure, rows, members=options.members, seed=0, batch_size=options.answers)

    apart = (parallel().eu - step_by_step(unsure, rows, options.members)).abs().max()
    print(
        f"{model.name}: {options.answers} answers of {tokens[1]} tokens behind {tokens[0]}, {options.members} members"
    )
    print(f"largest difference of EU between parallel and step by step: {apart:.1e} nats")
    ways = {
        "plain": lambda: plain(model, rows, options.members),
        "parallel": parallel,
        "step by step": lambda: step_by_step(unsure, rows, options.members),
    }
    taken = {name: seconds(work, options.repeats) for name, work in ways.items()}
    for name, each in taken.items():
        print(f"{name:14} {each:8.2f} s of CPU, {each / taken['plain']:.2f} of as many plain passes")


if __name__ == "__main__":
    main()
