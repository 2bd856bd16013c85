"""What scoring finished answers costs: against as many plain passes, and against decoding step by step with the same noise.

    python benchmarks/tokur.py                     # SmolLM2, one thread, some minutes
    python benchmarks/tokur.py --model tiny --repeats 1
    python benchmarks/tokur.py --peer              # also lm-polygraph (pip install --no-deps lm-polygraph)

One process, one thread. "plain" is `members` ordinary passes over prompt and answer with the entropy of each token of the
answer, and no noise. "parallel" is `uncertainty.tokur.score`. "step by step" reads token by token with a cache, each with
noise and then without, as decoding with scores does; its numbers are compared with the parallel ones. In turn, the minimum
of the repeats, in seconds of CPU.

lm-polygraph has entropies of what a model generates and not of a text that is there: with --peer it generates an answer with
its statistics, of which the entropy is one, and `score` with one member reads the same tokens.
"""

import argparse
import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

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


def polygraph() -> Any:
    """Its calculators of statistics, (greedy, entropy), from packages without a beginning, which would import some thirty
    others."""
    found = importlib.util.find_spec("lm_polygraph")
    if found is None or found.origin is None:
        raise SystemExit("lm-polygraph is not installed: pip install --no-deps lm-polygraph")
    for name in ("lm_polygraph", "lm_polygraph.stat_calculators"):
        package = ModuleType(name)
        package.__path__ = [str(Path(found.origin).parent.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    for name, words in {
        "stat_calculators.stat_calculator": {"StatCalculator": object},
        "utils": {},
        "utils.model": {"WhiteboxModel": object},
        "model_adapters": {"WhiteboxModel": object, "WhiteboxModelvLLM": object},
    }.items():
        made: Any = ModuleType(f"lm_polygraph.{name}")
        vars(made).update(words)
        sys.modules[made.__name__] = made
    greedy, entropies = (
        importlib.import_module(f"lm_polygraph.stat_calculators.{n}") for n in ("greedy_probs", "entropy")
    )
    return greedy.GreedyProbsCalculator(output_attentions=False), entropies.EntropyCalculator()


def beside_polygraph(unsure: Perturbed, prompt: tuple[int, ...], tokens: int, repeats: int) -> None:
    """Print what its entropies of a generated answer cost, and ours of the same tokens."""
    model = unsure.language_model
    greedy, entropies = polygraph()
    model.model.generation_config.eos_token_id = None  # as many tokens as are asked for

    def generate(**how: Any) -> Any:
        out: Any = model.model.generate(do_sample=False, pad_token_id=model.pad_id, **how)
        return SimpleNamespace(sequences=out.sequences, scores=[each.log_softmax(dim=-1) for each in out.scores])

    wrapped = SimpleNamespace(
        tokenize=lambda _: {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt)).long()},
        device=lambda: "cpu",
        generate=generate,
        tokenizer=model.tokenizer,
        model_type="CausalLM",
        generation_parameters=SimpleNamespace(allow_newlines=True),
    )

    def theirs() -> Any:
        stats = greedy({}, [""], wrapped, max_new_tokens=tokens)
        return stats | entropies(stats)

    stats = theirs()
    row = tokur.Encoded(prompt, tuple(stats["greedy_tokens"][0]), ())

    def ours() -> tokur.TokenUncertainty:
        return tokur.score_tokens(unsure, [row], members=1, seed=0)

    apart = (ours().entropies[0] - torch.tensor(stats["entropy"][0])).abs().max()
    taken = seconds(theirs, repeats), seconds(ours, repeats)
    print(
        f"an answer of {tokens} tokens, generated with lm-polygraph's statistics {taken[0]:.2f} s, its tokens read by ours "
        f"{taken[1]:.2f} s ({taken[0] / taken[1]:.1f} times); largest difference of an entropy {apart:.1e} nats"
    )


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
    parser.add_argument("--peer", action="store_true")
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
    if options.peer:
        beside_polygraph(unsure, rows[0].prompt, tokens[1], options.repeats)


if __name__ == "__main__":
    main()
