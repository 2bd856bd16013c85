"""The world of sampling fidelity's study: two small models taught samples of the same targets, one drawn, one by quota.

A text is nine weights, one character each in tenths, and then symbols "1" to "9", one token each, without separators.
Targets are drawn afresh for every text: ten tenths over two to nine symbols. Corpus E draws each symbol independently from
the target; corpus D writes at every place the symbol that is furthest behind its share, ties at random. Both kinds of text
have the same frequencies, so that what differs afterwards between the models is how they come by them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equipoise.core.options import closed
from equipoise.language.encode import encode_prompts
from equipoise.language.model import LanguageModel, evaluating, load
from equipoise.language.states import blocks, recording
from equipoise.language.tiny import tiny
from equipoise.training.loop import OneLoss, TrainerSettings, fit
from equipoise.uncertainty import sampling_fidelity as fidelity
from equipoise.uncertainty.sampling_slots import ValueSequence, sample
from equipoise.uncertainty.sampling_task import SamplingTask

Array = NDArray[np.float64]
Corpus = Literal["independent", "quota"]
Stream = Literal["independent", "quota", "uniform", "copying"]
SYMBOLS = "123456789"
WEIGHTS = "abcdefghijk"  # 0 to 10 tenths
LENGTH = 64  # symbols of a text
TARGETS = {"extreme": (1, 7, 1, 1), "flat": (1, 1, 1, 2, 1, 1, 1, 1, 1)}  # in tenths, as in the paper
TASKS = {name: SamplingTask(tuple(SYMBOLS[: len(each)]), tuple(t / 10 for t in each), separator="")
         for name, each in TARGETS.items()}  # fmt: skip
BATCH, WIDTH, LAYERS, HEADS, RATE = 32, 64, 2, 4, 1e-3
SAVE_EVERY = 200  # steps
ITEMS = ("a_token", "a_result", "step", "entropy_ratio", "bias", "dispersion", "e_score", "leak")
OWN, BEST = {"temperature": "own"}, {"temperature": "best"}


def header(tenths: Sequence[int]) -> str:
    """The nine weights of a target, those of the symbols that it leaves out being none."""
    return "".join(WEIGHTS[each] for each in (*tenths, *[0] * (len(SYMBOLS) - len(tenths))))


def random_target(generator: np.random.Generator) -> list[int]:
    """Ten tenths over two to nine of the symbols, at least one each, all such divisions alike, [9]."""
    count = int(generator.integers(2, 10))
    chosen = generator.choice(9, size=count, replace=False)
    cuts = np.sort(generator.choice(np.arange(1, 10), size=count - 1, replace=False))
    tenths = np.zeros(9, dtype=int)
    tenths[chosen] = np.diff([0, *cuts, 10])
    return tenths.tolist()


def quota_probabilities(counts: Array, target: Array) -> Array:
    """[k]: all on the symbol that is furthest behind its share after these counts, ties alike."""
    behind = (counts.sum() + 1) * target - counts
    most = behind > behind.max() - 1e-9
    return most / most.sum()


@closed
def stream(kind: Stream, target: Sequence[float], length: int, generator: np.random.Generator) -> ValueSequence:
    """A sampler whose probabilities are known: its probabilities at every slot, and draws from them.

    independent: the target. quota: see `quota_probabilities`. uniform: all alike. copying: the last symbol again with 0.8,
    else from the target.
    """
    q, noted, draws = np.array(target), list[Array](), list[int]()
    counts = np.zeros(len(q))
    for _ in range(length):
        if kind == "quota":
            p = quota_probabilities(counts, q)
        elif kind == "uniform":
            p = np.full(len(q), 1 / len(q))
        else:
            p = 0.8 * np.eye(len(q))[draws[-1]] + 0.2 * q if kind == "copying" and draws else q
        draws.append(int(generator.choice(len(q), p=p)))
        counts[draws[-1]] += 1
        noted.append(p)
    return ValueSequence(np.array(noted), np.array(draws, dtype=np.intp), np.arange(length), 0, (), "")


@closed
def corpus_texts(kind: Corpus, count: int, generator: np.random.Generator) -> list[str]:
    """So many texts of a corpus, all places of which are drawn together."""
    tenths = np.array([random_target(generator) for _ in range(count)])
    counts, drawn = np.zeros((count, len(SYMBOLS))), np.zeros((count, LENGTH), dtype=int)
    for place in range(LENGTH):
        p = tenths / 10
        if kind == "quota":
            behind = (place + 1) * p - counts
            most = behind > behind.max(axis=1, keepdims=True) - 1e-9
            p = most / most.sum(axis=1, keepdims=True)
        shares = p.cumsum(axis=1)
        drawn[:, place] = (generator.random((count, 1)) * shares[:, -1:] >= shares).sum(axis=1)
        counts[np.arange(count), drawn[:, place]] += 1
    return [header(t) + "".join(SYMBOLS[x] for x in row) for t, row in zip(tenths.tolist(), drawn, strict=True)]


def untaught(seed: int) -> LanguageModel:
    """A decoder of 2 layers and width 64 with a token for each character."""
    made = tiny(
        [SYMBOLS + WEIGHTS],
        seed=seed,
        tokens="characters",
        width=WIDTH,
        layers=LAYERS,
        heads=HEADS,
        context=9 + LENGTH + 2,
    )
    made.chat_template = "none"
    return made


@closed
def teach(language_model: LanguageModel, kind: Corpus, *, seed: int, steps: int, **how: Any) -> None:
    """Teach all symbols behind the weights of fresh texts, in place. how: save, save_every, state of `training.fit`."""
    tokenizer: Any = language_model.tokenizer

    def draw(step: int) -> list[list[int]]:
        generator = np.random.default_rng(np.random.SeedSequence([seed, step, kind == "quota"]))
        return tokenizer(corpus_texts(kind, BATCH, generator))["input_ids"]

    settings = TrainerSettings(
        steps=steps, learning_rate=RATE, batch_size=BATCH, schedule="cosine", warmup_ratio=0.05, seed=seed
    )
    fit(language_model.model, OneLoss(_loss), draw, settings, collate=torch.tensor, title=f"Teaching {kind}", **how)


def _loss(model: nn.Module, ids: Tensor) -> tuple[Tensor, int]:
    begin = ids.shape[1] - LENGTH
    logits, labels = model(input_ids=ids).logits[:, begin - 1 : -1], ids[:, begin:]
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"), labels.numel()


def prepare(preparation: Any) -> None:
    """Teach both models of this seed; goes on where it was stopped."""
    stored = preparation.resume() or {"done": [], "training": None}
    done, training = list(stored["done"]), stored["training"]
    for kind in ("independent", "quota"):
        if kind in done:
            continue
        language_model, steps = untaught(preparation.seed), preparation.options["steps"]
        save = partial(_keep, preparation, done)
        teach(
            language_model, kind, seed=preparation.seed, steps=steps, save=save, save_every=SAVE_EVERY, state=training
        )
        language_model.save(preparation.folder / kind)
        preparation.spend(phase="build", optimizer_steps=steps, trained_tokens=steps * BATCH * LENGTH)
        done, training = [*done, kind], None
        preparation.checkpoint({"done": done, "training": None})


def _keep(preparation: Any, done: list[str], state: dict[str, Any]) -> None:
    preparation.checkpoint({"done": done, "training": state})


def measure(run: Any) -> None:
    """One arm: its sequences for both targets, measured by sequence."""
    by, count = run.settings["by"], run.options["sequences"]
    language_model = None
    if by == "taught":
        language_model = load(run.prepared / run.settings["corpus"], chat_template="none")
    elif by == "language":
        language_model, count = load(run.options["model"]), run.options["model_sequences"]
    found: dict[str, list[ValueSequence]] = {}
    for number, (name, task) in enumerate(TASKS.items()):
        seed = [run.seed, number]
        if by == "taught" and language_model is not None:
            found[name] = sample(
                language_model, header(TARGETS[name]), task, values=LENGTH, sequences=count, seed=seed, batch_size=64
            )
        elif language_model is not None:
            spoken = SamplingTask(task.symbols, task.target)
            request = spoken.requests(LENGTH)[run.seed % len(spoken.templates)]
            found[name] = sample(
                language_model, request, spoken, values=LENGTH, sequences=count, seed=seed, slots="set"
            )
        else:
            generator = np.random.default_rng(np.random.SeedSequence(seed))
            found[name] = [stream(run.settings["stream"], task.target, LENGTH, generator) for _ in range(count)]
        run.spend(generated_tokens=sum(len(each.draws) for each in found[name]))
    record(run, found)
    if by == "taught" and language_model is not None:
        for name, task in TASKS.items():
            distances = lens(language_model, header(TARGETS[name]), task, found[name])
            for layer, distance in enumerate(distances):
                run.measure("lens", distance, at={"layer": layer}, where={"task": name})


def record(run: Any, found: Mapping[str, Sequence[ValueSequence]]) -> None:
    """Each measure by sequence over both targets and by target, at the sampler's own temperature and at the best one."""
    rows: list[tuple[str, str, dict[str, float], dict[str, float]]] = []
    for name, sequences in found.items():
        target = TASKS[name].target
        every = np.concatenate([each.probabilities for each in sequences])
        best = fidelity.best_temperature(every, target)
        for number, each in enumerate(sequences):
            own = asdict(fidelity.measures(each.probabilities, target, each.draws))
            warm = dict.fromkeys(own, math.nan)
            if not math.isnan(best):
                warm = asdict(fidelity.measures(fidelity.tempered(each.probabilities, best), target))
            rows.append((name, f"{name} {number}", own, warm))
        parts = [fidelity.surplus(each.probabilities, target, each.draws) for each in sequences]
        run.measure("slope", fidelity.history_slope(parts), where={"task": name})
    for measure in ITEMS:
        run.items(measure, [row[1] for row in rows], [row[2][measure] for row in rows], where=OWN)
        for name in found:
            mine = [row for row in rows if row[0] == name]
            run.items(measure, [row[1] for row in mine], [row[2][measure] for row in mine], where={**OWN, "task": name})
    for measure in ("a_token", "bias", "dispersion"):
        run.items(measure, [row[1] for row in rows], [row[3][measure] for row in rows], where=BEST)


def lens(
    language_model: LanguageModel, prompt: str, task: SamplingTask, sequences: Sequence[ValueSequence]
) -> list[float]:
    """a_token of what each block's states would say through the last norm and the output matrix, the last block's last."""
    model: Any = language_model.model
    tokenizer: Any = language_model.tokenizer
    columns = tokenizer.convert_tokens_to_ids(list(task.symbols))
    (before,), _ = encode_prompts(language_model, [prompt])
    slots = min(len(each.tokens) for each in sequences)
    places = [f"block.{index}" for index in range(len(blocks(model)))]
    found = []
    with evaluating(model), recording(model, places) as states:
        model(input_ids=torch.tensor([[*before, *each.tokens[:slots]] for each in sequences]))
        for place in places:
            logits = model.lm_head(model.model.norm(states[place][:, len(before) - 1 : -1]))
            p = logits[..., columns].double().softmax(dim=-1).numpy()
            found.append(float(np.mean([fidelity.measures(each, task.target).a_token for each in p])))
    return found
