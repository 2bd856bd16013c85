"""The world of the study of Bayesian distillation: TREC's questions in six classes, adapters on the upper blocks of a model.

A seed draws its training questions and 100 held-out ones, which fit the temperature, from TREC's training set; tested are
TREC's 500 test questions, the same for every seed. The prompt is the question and " Type:", the classes are " A" to " F".
What enters the upper blocks is read once, so that training and every draw of a teacher go through these alone; of the output
matrix six rows are left. The preparation trains what arms share: the adapter that all begin from, two more for the ensemble,
BLoB, TFB's sigma by both of its rules, and what each teacher predicts of the training questions.

TFB's sigma is the released code's, as in the tables that its paper prints; "tfb-strict" takes the paper's own rule, which
leaves an adapter that has learnt its questions by heart next to no noise: of an NLL of 0.1 it allows a change of 0.0003.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.core.options import closed
from equipoise.core.scores import ece
from equipoise.core.state import load_state, save_state
from equipoise.data.public import folder as public_folder
from equipoise.data.records import read_rows
from equipoise.language import adapters
from equipoise.language.model import evaluating, load
from equipoise.language.score import head_reads, wide
from equipoise.language.states import blocks, recording
from equipoise.training.loop import TrainerSettings
from equipoise.uncertainty import blob, laplace_lora, teachers, tfb
from equipoise.uncertainty.bayes_distill import averaged, distill, divergence, one_hot, targets
from equipoise.uncertainty.calibration_cards import brier_scores, negative_log_likelihoods
from equipoise.uncertainty.class_logits import Prompts, class_logits, in_batches, read_prompts
from equipoise.uncertainty.ensemble import Ensemble
from equipoise.uncertainty.mc_dropout import McDropout
from equipoise.uncertainty.temperature_scaling import temperature

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

TeacherName = Literal["tfb", "tfb-strict", "blob", "blob-mean", "laplace", "ensemble", "mc-dropout"]

KINDS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
CLASSES = (" A", " B", " C", " D", " E", " F")
HELD_OUT = 100
RANK, ALPHA, MAPS = 8, 16.0, ["q_proj", "v_proj", "lm_head"]
DRAWS, ANCHORS, BATCH = 10, 100, 16
SMOOTHING = 0.1
STRICT = 0.0001, 0.02  # where sigma by the paper's rule is looked for
STATES = "states.safetensors"
STUDENT, MEMBERS, BLOB = 1, 2, 5  # of the streams that training is seeded from, apart from the adapter's own, 0


@dataclass(frozen=True)
class Question:
    """kind: the place of its class."""

    id: str
    text: str
    kind: int


@dataclass(frozen=True, eq=False)
class UpperInputs:
    """What enters the upper blocks of each prompt, [T, width]; its classes are all rows of the small output matrix."""

    rows: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        chosen = [self.rows[index] for index in indices]
        lengths = torch.tensor([len(row) for row in chosen])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        embedded = nn.utils.rnn.pad_sequence(list(chosen), batch_first=True)
        return {"inputs_embeds": embedded.to(device), "attention_mask": mask.to(device)}

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"]
        last = torch.zeros_like(mask, dtype=torch.bool)
        last[torch.arange(len(mask), device=mask.device), mask.sum(dim=1) - 1] = True
        with head_reads(model, last):
            output = model(**batch, use_cache=False)
        return wide(output.logits[0])


def questions(seed: int, train: int) -> dict[str, list[Question]]:
    """To train on, held out and to test on. What TREC has in both of its parts is left out of the first."""
    place = public_folder("trec")
    test = _read(place / "test.jsonl.gz")
    tested = {each.text for each in test}
    pool = [each for each in _read(place / "train.jsonl.gz") if each.text not in tested]
    order = np.random.default_rng(np.random.SeedSequence([seed, 51])).permutation(len(pool))
    drawn = [pool[index] for index in order[: train + HELD_OUT]]
    return {
        name: sorted(side, key=lambda each: len(each.text))  # so that what is read together is of a length
        for name, side in (("train", drawn[:train]), ("held-out", drawn[train:]), ("test", test))
    }


def _read(path: Path) -> list[Question]:
    stem = path.name.split(".")[0]
    return [
        Question(f"{stem}-{number}", str(row["text"]), KINDS.index(str(row["label"])))
        for _, number, row in read_rows(path)
    ]


def prompt(question: Question) -> str:
    """As the model reads it."""
    return f"{question.text} Type:"


def lower_states(language_model: LanguageModel, prompts: Prompts, upper: int) -> list[Tensor]:
    """What enters the last `upper` blocks of each prompt, [T, width] in float32."""
    model: Any = language_model.model
    place = f"block.{len(blocks(model)) - upper}.input"
    found = []
    with evaluating(model), recording(model, [place]) as states:
        for first in range(0, len(prompts), 32):
            batch = prompts.batch(range(first, min(first + 32, len(prompts))), language_model.device)
            model.base_model(**batch, use_cache=False)
            for row, length in zip(states[place], batch["attention_mask"].sum(dim=1).tolist(), strict=True):
                found.append(row[:length].float().cpu().clone())
    return found


def upper_model(language_model: LanguageModel, upper: int, class_ids: Sequence[int]) -> LanguageModel:
    """The same model, in place, with its last blocks alone and the class rows of its output matrix."""
    model: Any = language_model.model
    kept: list[Any] = list(blocks(model))[-upper:]
    for number, block in enumerate(kept):
        block.self_attn.layer_idx = number
    model.base_model.layers = nn.ModuleList(kept)
    model.config.num_hidden_layers = upper
    rows = model.get_output_embeddings().weight.detach()[list(class_ids)].clone()
    head = nn.Linear(rows.shape[1], len(rows), bias=False)
    head.weight = nn.Parameter(rows)
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(head)
    model.requires_grad_(False)
    return replace(language_model, model=model.eval())


@dataclass(frozen=True, eq=False)
class World:
    """A seed's questions as the upper blocks read them, and the model that reads them, without an adapter."""

    language_model: LanguageModel
    sides: Mapping[str, list[Question]]
    inputs: Mapping[str, UpperInputs]
    seed: int
    steps: int
    learning_rate: float

    @classmethod
    def made(cls, options: Mapping[str, Any], seed: int, folder: Path) -> World:
        """With the states in the folder, which are read by the lower blocks where they are not there yet."""
        language_model = load(options["model"], chat_template="none")
        sides = questions(seed, options["train"])
        everything = [prompt(each) for side in sides.values() for each in side]
        prompts = read_prompts(language_model, everything, CLASSES)
        if not (folder / STATES).exists():
            save_state(folder / STATES, {"states": lower_states(language_model, prompts, options["blocks"])})
        states, inputs = load_state(folder / STATES)["states"], {}
        for name, side in sides.items():
            inputs[name], states = UpperInputs(states[: len(side)]), states[len(side) :]
        return cls(
            upper_model(language_model, options["blocks"], prompts.class_ids),
            sides,
            inputs,
            seed,
            options["steps"],
            options["learning_rate"],
        )

    def labels(self, side: str) -> Tensor:
        """The class of each question."""
        return torch.tensor([each.kind for each in self.sides[side]])

    def fresh(self, stream: int) -> LanguageModel:
        """The model with an untrained adapter; `adapters.detach` ends it."""
        return adapters.attach(self.language_model, RANK, ALPHA, MAPS, seed=self._seed(stream))

    def with_factors(self, given: teachers.Factors) -> LanguageModel:
        """The model with an adapter of these factors."""
        adapted = self.fresh(0)
        with torch.no_grad():
            for name, own in adapters.adapted_maps(adapted).items():
                for factor, value in zip(adapters.factors(own), given[name], strict=True):
                    factor.copy_(value)
        return adapted

    def settings(self, stream: int) -> TrainerSettings:
        """Of every training alike."""
        return TrainerSettings(
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch_size=BATCH,
            warmup_ratio=0.06,
            epsilon=1e-6,
            seed=self._seed(stream),
        )

    def _seed(self, stream: int) -> int:
        return int(np.random.SeedSequence([self.seed, 52, stream]).generate_state(1)[0])

    def learnt(self, target: Tensor, stream: int, **how: Any) -> LanguageModel:
        """A fresh adapter trained towards targets of the training questions."""
        adapted = self.fresh(stream)
        distill(adapted, self.inputs["train"], target, self.settings(stream), **how)
        return adapted

    @closed
    def teacher(self, name: TeacherName, shared: Mapping[str, Any]) -> tuple[teachers.Teacher, LanguageModel]:
        """The teacher, and the model with the adapter that it is over."""
        if name in ("blob", "blob-mean"):
            adapted = self.with_factors(shared["blob"])
            draws = DRAWS if name == "blob" else 1
            spread = {map_: omega if name == "blob" else 0 * omega for map_, omega in shared["omega"].items()}
            return blob.Blob(spread, draws, self._seed(BLOB)), adapted
        adapted = self.with_factors(shared["mle"])
        if name in ("tfb", "tfb-strict"):
            return tfb.Tfb(shared["sigma" if name == "tfb" else "strict"], DRAWS, self._seed(0)), adapted
        if name == "ensemble":
            return Ensemble([shared["mle"], *shared["members"]]), adapted
        if name == "mc-dropout":
            return McDropout(draws=DRAWS, seed=self._seed(0)), adapted
        made = laplace_lora.laplace(adapted, self.inputs["train"], range(len(CLASSES)), seed=self._seed(0))
        return made, adapted

    def predicted(self, teacher: teachers.Teacher, adapted: LanguageModel, side: str) -> Tensor:
        """What the teacher predicts of a side, [n, C]."""
        drawn = teacher.on(adapted, self.inputs[side])
        return in_batches(adapted, self.inputs[side], lambda indices: averaged(drawn(indices)), 32)


def prepare(preparation: Any) -> None:
    """Read the states, and train what the arms of a seed share; goes on at the part where it was stopped."""
    world = World.made(preparation.options, preparation.seed, preparation.folder)
    shared: dict[str, Any] = preparation.resume() or {}
    train = world.inputs["train"]
    hard = one_hot(world.labels("train"), len(CLASSES))

    def keep(**parts: Any) -> None:
        shared.update(parts)
        preparation.checkpoint(shared)

    def own(adapted: LanguageModel) -> teachers.Factors:
        found = teachers.own_factors(adapted)
        adapters.detach(adapted)
        return found

    if "mle" not in shared:
        keep(mle=own(world.learnt(hard, 0)))
    if "sigma" not in shared:
        adapted = world.with_factors(shared["mle"])
        anchors = range(0, len(train), max(len(train) // ANCHORS, 1))  # of every length
        published = tfb.search(adapted, train, anchors=anchors, draws=DRAWS, compat=True)
        strict = tfb.search(adapted, train, anchors=anchors, draws=DRAWS, low=STRICT[0], high=STRICT[1], steps=8)
        adapters.detach(adapted)
        keep(sigma=published.sigma, strict=strict.sigma)
    for number in range(len(shared.get("members", [])), 2):
        keep(members=[*shared.get("members", []), own(world.learnt(hard, MEMBERS + number))])
    if "omega" not in shared:
        adapted = world.fresh(BLOB)
        made, _ = blob.train(adapted, train, world.labels("train").tolist(), world.settings(BLOB), draws=DRAWS)
        keep(omega=dict(made.omega), blob=own(adapted))
    if "targets" not in shared:
        adapted = world.with_factors(shared["mle"])
        keep(targets={"adapter": class_logits(adapted, train).softmax(-1)}, passes=len(train))
        adapters.detach(adapted)
    for name in get_args(TeacherName):
        if name not in shared["targets"]:
            teacher, adapted = world.teacher(name, shared)
            found = targets(teacher, adapted, train, names=[each.id for each in world.sides["train"]])
            adapters.detach(adapted)
            passes = shared["passes"] + teacher.passes * len(train)
            keep(targets=shared["targets"] | {name: found}, passes=passes)
    save_state(preparation.folder / "shared.safetensors", shared)
    preparation.spend(phase="build", optimizer_steps=4 * world.steps, passes=shared["passes"])


def measure(run: Any) -> None:
    """One arm: what predicts the test questions, trained where it is a student."""
    world = World.made(run.options, run.seed, run.prepared)
    shared = load_state(run.prepared / "shared.safetensors")
    by, of = run.settings["by"], run.settings.get("of", "adapter")
    labels, passes, steps = world.labels("test"), 1, 0
    taught = world.labels("train")
    own = shared["targets"]["adapter"]
    target = one_hot(taught, len(CLASSES), SMOOTHING) if of == "smoothed" else shared["targets"][of]
    if by in ("adapter", "temperature"):
        adapted = world.with_factors(shared["mle"])
        scale = 1.0
        if by == "temperature":
            scale = temperature(class_logits(adapted, world.inputs["held-out"]), world.labels("held-out"))
            target = (own.log() / scale).softmax(-1)
        p = (class_logits(adapted, world.inputs["test"]) / scale).softmax(-1)
    elif by == "teacher":
        teacher, adapted = world.teacher(cast(TeacherName, of), shared)
        passes = teacher.passes
        p = world.predicted(teacher, adapted, "test")
    else:
        adapted = world.learnt(target, STUDENT, save=run.checkpoint, save_every=50, state=run.resume())
        p, steps = class_logits(adapted, world.inputs["test"]).softmax(-1), world.steps
    ids = [each.id for each in world.sides["test"]]
    at = {"step": world.steps}
    correct = (p.argmax(-1) == labels).double()
    for outcome, scores in (
        ("nll", negative_log_likelihoods(p, labels)),
        ("brier", brier_scores(p, labels)),
        ("accuracy", correct),
    ):
        run.items(outcome, ids, scores.tolist(), at=at)
    confidence = p.max(-1).values
    run.measure("ece", float(ece(confidence.clamp(max=1).numpy(), correct.numpy())), at=at)
    run.measure("confidence", confidence.mean().item(), at=at)
    run.measure("target_confidence", target.max(-1).values.mean().item(), at=at)
    run.measure("target_nll", negative_log_likelihoods(target, taught).mean().item(), at=at)
    run.measure("target_distance", divergence(own.log(), target).mean().item(), at=at)
    run.spend(phase="build", optimizer_steps=steps)
    run.spend(phase="query", passes=passes * len(ids))
