"""Unlearning steps a second: ours against transformers' Trainer doing GradDiff, on the same batches with the same AdamW.

    python benchmarks/unlearning.py                                # tiny
    python benchmarks/unlearning.py --model smollm2 --steps 4 --repeats 3
    python benchmarks/unlearning.py --model llama-1b --repeats 3   # 1.1 billion random weights, for a GPU

GradDiff: minus the loss of the forget batch plus the loss of the retain batch. The Trainer has it as users write it, in
`compute_loss`, over a data set of pairs whose collator pads each side; it logs, evaluates and saves nothing. Ours is
`unlearning.training.train` with objective ga and combine sum: without a conflict log, with the one of every fifth step that
the job keeps, and with SAGO. All begin with the same weights and make the same steps on the same records in the same order.
A step lasts from the end of the one before. They take turns, repeat by repeat, in one process, and the first of a round
changes; ratios are medians over the rounds, of the clock and of the CPU's time, which a busy machine disturbs less. Where
there is a GPU it is used, the clock is read when it has finished, and its peak memory is printed.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers

from equipoise.core.progress import quiet
from equipoise.language.encode import Example, collate, encode
from equipoise.language.model import LanguageModel, load, wrap
from equipoise.language.tiny import tiny
from equipoise.training.order import pairs
from equipoise.unlearning.fiction import world
from equipoise.unlearning.recipe import Recipe
from equipoise.unlearning.training import prepare, train

RATE = 1e-5
Times = list[tuple[float, float]]  # of the clock and of the CPU, at the end of every step


def stamp() -> tuple[float, float]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


class GradDiff(transformers.Trainer):
    """As a user writes it."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return model(**inputs["retain"]).loss - model(**inputs["forget"]).loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # the order that ours has


class Stamps(transformers.TrainerCallback):
    def __init__(self) -> None:
        self.times: Times = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(stamp())


def theirs(model: LanguageModel, forget: list[Example], retain: list[Example], recipe: Recipe) -> Times:
    draw = pairs(len(forget), len(retain), recipe.batch_size, recipe.seed)
    rows = [(forget[i], retain[j]) for step in range(recipe.steps) for i, j in draw(step)]

    def together(chosen: Sequence[tuple[Example, Example]]) -> dict[str, Any]:
        sides = zip(*chosen, strict=True)
        return {name: collate(side, model.pad_id) for name, side in zip(("forget", "retain"), sides, strict=True)}

    stamps = Stamps()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=recipe.batch_size,
            max_steps=recipe.steps,
            learning_rate=RATE,
            warmup_steps=0.1,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
        )
        GradDiff(
            model=model.model, args=arguments, train_dataset=rows, data_collator=together, callbacks=[stamps]
        ).train()
    return stamps.times


def ours(conflicts_every: int) -> Callable[..., Times]:
    def run(model: LanguageModel, forget: list[Example], retain: list[Example], recipe: Recipe) -> Times:
        times: Times = []
        model = prepare(model, recipe)
        see = [lambda state: times.append(stamp())]
        train(model, recipe, forget, retain, conflicts_every=conflicts_every, layers=True, callbacks=see)
        return times

    return run


def billion(tokenizer: Any) -> LanguageModel:
    """The shape of TinyLlama-1.1B, with random weights and the vocabulary of another."""
    config = transformers.LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=32000,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return wrap(transformers.LlamaForCausalLM(config), tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", choices=["tiny", "smollm2", "llama-1b"])
    parser.add_argument("--steps", type=int, default=30, help="of a repeat; the first is not counted")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    on_gpu = torch.cuda.is_available()
    made = world("tiny" if arguments.model == "llama-1b" else arguments.model, 0)
    sides = made.forget, [*made.neighbour, *made.general]
    texts = [f"{record.prompt} {record.completion}" for side in sides for record in side]
    model = load("smollm2") if arguments.model == "smollm2" else tiny(texts, seed=0)
    if arguments.model == "llama-1b":
        model = billion(model.tokenizer)
    elif on_gpu:
        model.model.to("cuda")
    forget, retain = (encode(model, side) for side in sides)
    lengths = [len(example.input_ids) for side in (forget, retain) for example in side]
    print(
        f"{arguments.model}: {len(forget)} + {len(retain)} records of {min(lengths)} to {max(lengths)} tokens, batches of "
        f"{arguments.batch_size} + {arguments.batch_size}, "
        f"{torch.cuda.get_device_name() if on_gpu else f'{arguments.threads} threads'}, "
        f"transformers {transformers.__version__}, torch {torch.__version__}"
    )
    base = Recipe(
        objective="ga", combine="sum", steps=arguments.steps, batch_size=arguments.batch_size, learning_rate=RATE
    )
    runs: dict[str, tuple[Callable[..., Times], Recipe]] = {
        "transformers' Trainer": (theirs, base),
        "ours": (ours(0), base),
        "ours, conflicts logged": (ours(5), base),
        "ours, SAGO, conflicts logged": (ours(5), base.model_copy(update={"combine": "sago"})),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    peaks: dict[str, float] = {}
    names = list(runs)
    for repeat in range(arguments.repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            run, recipe = runs[name]
            if on_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            with quiet():
                times = run(replace(model, model=copy.deepcopy(model.model)), forget, retain, recipe)
            peaks[name] = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
            steps = len(times) - 1
            found[name].append(tuple((end - start) / steps for start, end in zip(times[0], times[-1], strict=True)))  # type: ignore[arg-type]
    print(f"\n| | ms a step | CPU ms a step | times as quick, clock | CPU |\n|---|{'---:|' * 4}")
    for name, own in found.items():
        least = [1000 * min(column) for column in zip(*own, strict=True)]
        ratios = [
            statistics.median(peer[which] / each[which] for peer, each in zip(found[names[0]], own, strict=True))
            for which in (0, 1)
        ]
        print(f"| {name} | {least[0]:.1f} | {least[1]:.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    if on_gpu:
        print(
            "Peak memory, one model of it not in training: " + ", ".join(f"{n} {p:.1f} GiB" for n, p in peaks.items())
        )


if __name__ == "__main__":
    main()
