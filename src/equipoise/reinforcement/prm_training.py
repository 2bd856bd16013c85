"""The work of `prm train`: a process reward model learns labels in stages, and between them cleans them by its own scores.

    for each stage: learn its labels -> look at problems held out -> score what was learnt -> refresh the labels

Killed at any moment, the same call goes on at the last checkpoint of its stage, to the same bytes.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.core.agreement import UNDEFINED
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import seal, write_atomic
from equipoise.core.job import Alone, Request
from equipoise.core.rows import Rows
from equipoise.core.scores import auroc
from equipoise.core.serialize import deserialize, serialize
from equipoise.core.state import save_state, stored_state
from equipoise.data.steps import WRONG_BELOW, StepwiseSolution
from equipoise.language.model import LanguageModel, wrap
from equipoise.language.rehearsal import rehearse
from equipoise.language.taught import TAUGHT, opened
from equipoise.reinforcement import nait, prm
from equipoise.reinforcement import prm_evaluation_measures as measures
from equipoise.reinforcement.prm_scoring import (
    check_model,
    encoded,
    known,
    name_of,
    read_solutions,
    step_scores,
)
from equipoise.reinforcement.prm_training_result import PrmTrained, PrmTrainingPlan, TrainedStage
from equipoise.reinforcement.reinforcing import tiny_model
from equipoise.training.loop import OneLoss, TrainerSettings, TrainerState, fit
from equipoise.training.order import without_replacement
from equipoise.training.precision import Sample

if TYPE_CHECKING:
    from equipoise.reinforcement.prm_training_job import PrmTraining

STATE, ABOUT, LABELS, METRICS = "state.safetensors", "prm.json", "labels.jsonl", "metrics.jsonl"
LEARNT, HELD_OUT = "to learn from", "held out"
LOOKS = 10  # at the problems held out, a stage
COMPARED = 16  # solutions on which the written model must agree with the trained one
APART = 1e-3  # probabilities of both in float32, at most; in lower precision 0.05
SHOWN = 8  # steps whose label the model doubts most
SURE = 1e-6  # no score is nearer to 0 or 1 in a loss that is computed from scores
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Training(Request):
    """A request to train, read and found right. parts: the solutions to learn from, and those held out."""

    model: str | Path | LanguageModel
    parts: Mapping[str, tuple[StepwiseSolution, ...]]
    settings: "PrmTraining"
    weights: nait.ClassWeights
    scored_at_once: int
    save_every: int
    loading: Mapping[str, Any]
    names: Mapping[str, str]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        model: Any,
        tokenizer: Any,
        labels: Any,
        *,
        which: Any,
        limit: int | None,
        scored_at_once: int,
        save_every: int,
        loading: Mapping[str, Any],
        settings: "PrmTraining",
    ) -> "Training":
        """Raises BadInput for a wrong request; loads no model."""
        if tokenizer is not None or not isinstance(model, str | Path | LanguageModel):
            model = wrap(model, tokenizer)
        check_model(model)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise BadInput("`prm train` works in one process: start it without torchrun or accelerate launch.")
        solutions, named, inputs = read_solutions("labels", labels, which=which, limit=limit)
        parts = divide(solutions, settings.held_out, settings.seed)
        check_both(parts[LEARNT], f"{named}: of the steps to learn from")
        if settings.early_stop != "none":
            if not parts[HELD_OUT]:
                raise BadInput("early_stop looks at problems held out, and held_out is 0: use 0.1, or early_stop none.")
            check_both(parts[HELD_OUT], f"{named}: of the steps held out, by which early_stop decides,")
        targets = torch.tensor([y for each in parts[LEARNT] for y in each.labels or () if y is not None])
        return cls(
            model=model,
            parts=parts,
            settings=settings,
            weights=nait.class_weights(settings.weights, targets),
            scored_at_once=scored_at_once,
            save_every=save_every,
            loading=loading,
            names={"model": name_of(model), "labels": named},
            inputs=inputs,
            resolved=settings.model_dump(),
        )

    def plan(self) -> PrmTrainingPlan:
        language_model, examples = self._opened(None, taught=False)
        language_model = self._prepared(language_model)
        tokenizer: Any = language_model.tokenizer
        labels = learnable(self.parts[LEARNT], examples)
        return PrmTrainingPlan(
            model=language_model.source,
            settings=self._resolved(language_model, examples),
            labelled_by=self._labelled_by(),
            counts=self._counts(),
            positives=int((labels >= WRONG_BELOW).sum()),
            negatives=int((labels < WRONG_BELOW).sum()),
            cut=self._cut(examples),
            tokens=math.ceil(self.settings.epochs * sum(len(each.input_ids) for each in examples)),
            steps=self._training(language_model, examples, 1).steps,
            trained_parameters=count(language_model.model),
            weights=self.weights,
            drift=self._drift(),
            shown=tokenizer.decode(examples[0].input_ids),
        )

    def work(self, folder: Path | None) -> PrmTrained:
        stored, notes = ({}, []) if folder is None else stored_state(folder / STATE)
        language_model, examples = self._opened(folder)
        if not stored:
            rehearse(language_model, generates=False, writes="nothing" if folder is None else "model")
        language_model = self._prepared(language_model)
        source = language_model.source
        learning = Learning.of(stored) if stored else Learning(labels=learnable(self.parts[LEARNT], examples))
        stopped = self._stages(language_model, examples, learning, folder)
        stages = tuple(deserialize(TrainedStage, each) for each in learning.done)
        disputed = ()
        if held := self.parts[HELD_OUT]:
            judged = self._judged(held, step_scores(language_model, held, Rows(None), self.scored_at_once))
            disputed = tuple(measures.misjudged(judged, SHOWN))
        settings, trained = self._resolved(language_model, examples), count(language_model.model)
        language_model, gap = self._written(language_model, stages, folder)
        return PrmTrained(
            names=self.names,
            source=source,
            settings=settings,
            labelled_by=self._labelled_by(),
            counts=self._counts(),
            cut=self._cut(examples),
            weights=self.weights,
            stages=stages,
            stopped=stopped,
            drift=self._drift(),
            disputed=disputed,
            trained_parameters=trained,
            gap=gap,
            notes=tuple(notes),
            model=language_model,
        )

    def scratch(self) -> tuple[str, ...]:
        return (STATE, TAUGHT)

    # --- the model ----------------------------------------------------------------------------------------------------

    def _opened(self, folder: Path | None, *, taught: bool = True) -> tuple[LanguageModel, list[prm.StepExample]]:
        """The model with the tokens of steps, and what it learns from, as it reads it."""
        tiny = partial(tiny_model, folder, self.settings.seed, Alone(), taught=taught)
        language_model = opened(self.model, self.loading, tiny)
        prm.add_tokens(language_model)
        language_model.model.requires_grad_(True)
        solutions = self.parts[LEARNT]
        labels = [each.labels or () for each in solutions]
        examples = encoded(language_model, solutions, labels, max_length=self.settings.max_length)
        if not any(map(teaches, examples)):
            raise BadInput(
                f"No labelled step fits into {min(self.settings.max_length, language_model.context)} tokens: use a larger "
                "max_length, or a model with a longer context."
            )
        return language_model, examples

    def _prepared(self, language_model: LanguageModel) -> LanguageModel:
        """With exactly what is trained requiring gradients."""
        if self.settings.parameters == "full":
            return language_model
        return prm.attach(language_model, self.settings.lora_rank, seed=self.settings.seed)

    def _written(
        self, language_model: LanguageModel, stages: Sequence[TrainedStage], folder: Path | None
    ) -> tuple[LanguageModel, float]:
        """The plain model, and how far its scores are from the trained one's when it was written and loaded again."""
        compared = self.parts[LEARNT][:COMPARED]
        ours = step_scores(language_model, compared, Rows(None), self.scored_at_once)
        if self.settings.parameters == "lora":
            language_model = prm.merge(language_model)
        if folder is None:
            return language_model, math.nan
        language_model.save(folder)
        write_atomic(folder / ABOUT, seal(self._about(language_model, stages), indent=2))
        theirs = step_scores(language_model.reload(folder), compared, Rows(None), self.scored_at_once)
        pairs = [(a, b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)]
        # nan of one alone is a difference, and NumPy's maximum with it is nan, which Python's is only where it comes first.
        gap = float(np.max([0.0 if math.isnan(a) and math.isnan(b) else abs(a - b) for a, b in pairs]))
        allowed = APART if language_model.model.dtype in (torch.float32, torch.float64) else 0.05
        if not gap <= allowed:
            raise WorkFailed(
                f"the written model scores a step {gap:.2g} away from the trained one (allowed: {allowed:g}), so it was not "
                f"given its name; the trained weights are in {folder / STATE}."
            )
        return language_model, gap

    def _about(self, language_model: LanguageModel, stages: Sequence[TrainedStage]) -> dict[str, Any]:
        """What a reader of the folder must know to use it without this library."""
        tokens = prm.step_tokens(language_model)
        return {
            "prm": _FORMAT,
            "text": "problem, then for each step a line end, the step, a blank and [PRM]",
            "read_out": "at each [PRM]: softmax over the logits of [POS] and [NEG], first entry: the step is right",
            "tokens": {
                prm.PLACEHOLDER: tokens.placeholder,
                prm.RIGHT: tokens.right,
                prm.WRONG: tokens.wrong,
            },
            "model": self.names["model"],
            "labelled_by": list(self._labelled_by()),
            "weights": list(self.weights),
            "loss": self.settings.loss,
            "stages": len(stages),
            "threshold": self.settings.threshold,
            "anchor": self.settings.anchor,
            "restart": self.settings.restart,
        }

    # --- learning -----------------------------------------------------------------------------------------------------

    def _training(
        self, language_model: LanguageModel, examples: Sequence[prm.StepExample], stage: int
    ) -> TrainerSettings:
        settings, solutions = self.settings, sum(map(teaches, examples))
        size = min(settings.batch_size, solutions)
        shared = ("micro_batch_size", "warmup_ratio", "weight_decay", "max_grad_norm")
        return TrainerSettings(
            steps=math.ceil(settings.epochs * solutions / size),
            learning_rate=settings.resolved_learning_rate(count(language_model.model)),
            batch_size=size,
            schedule="cosine",
            betas=(0.9, 0.95),
            seed=int(np.random.SeedSequence([settings.seed, 1, stage]).generate_state(1)[0]),
            **{name: getattr(settings, name) for name in shared},
        )

    def _stages(
        self,
        language_model: LanguageModel,
        examples: Sequence[prm.StepExample],
        learning: "Learning",
        folder: Path | None,
    ) -> str:
        """All that are left to do, in place; why they ended early, "" if they did not."""
        settings = self.settings
        sample = Sample([each for each in language_model.model.parameters() if each.requires_grad])
        start = trained_weights(language_model.model) if settings.restart else {}
        initial = learnable(self.parts[LEARNT], examples)
        while True:
            number = learning.stage
            if number > 1 and settings.restart and not learning.training:
                put_back(language_model.model, start)
            steps = self._fit(language_model, examples, learning, folder)
            if learning.done and learning.watched <= learning.before and settings.early_stop != "none":
                put_back(language_model.model, learning.previous)
                self._store(folder, learning, None)
                return f"Stage {number} was no better on problems held out than the one before, whose model was kept."
            stage = self._measured(language_model, learning, steps, sample.moved())
            refreshed = scores = None
            if number < settings.stages:
                found = step_scores(language_model, self.parts[LEARNT], Rows(None), self.scored_at_once, "Refreshing")
                scores = torch.tensor([r for each in found for r in each], dtype=torch.float64)
                refreshed = refresh(
                    learning.labels if settings.anchor == "current" else initial, scores, settings.threshold
                )
                stage = replace(stage, positives_kept=refreshed.positives_kept, negatives_kept=refreshed.negatives_kept)
            learning.done.append(serialize(stage))
            self._store(folder, learning, scores)
            if refreshed is None:
                return ""
            previous = trained_weights(language_model.model) if settings.early_stop != "none" else {}
            learning.next(refreshed.labels, previous)

    def _fit(
        self,
        language_model: LanguageModel,
        examples: Sequence[prm.StepExample],
        learning: "Learning",
        folder: Path | None,
    ) -> int:
        """One stage, to the weights that are kept; its steps."""
        settings, model = self.settings, language_model.model
        training = self._training(language_model, examples, learning.stage)
        labelled = relabelled(examples, [len(each.steps) for each in self.parts[LEARNT]], learning.labels)
        labelled = list(filter(teaches, labelled))
        order = without_replacement(len(labelled), training.batch_size, training.seed)
        every = max(1, training.steps // LOOKS)

        def look(reached: TrainerState) -> bool:
            learning.losses += reached.metrics["loss"]
            if settings.early_stop == "none" or (reached.step % every and reached.step < training.steps):
                return False
            now = self._watched(language_model)
            learning.looks += 1
            if now > learning.watched:
                learning.watched, learning.kept, learning.kept_at = now, trained_weights(model), learning.looks
            return learning.looks - learning.kept_at >= settings.patience

        def save(state: dict[str, Any]) -> None:
            if folder is not None:
                save_state(folder / STATE, {**vars(learning), "training": state})

        log = None
        if folder is not None:
            log = folder / f"stage-{learning.stage}" / METRICS
            log.parent.mkdir(exist_ok=True)
        fitted = fit(
            model,
            OneLoss(prm.step_loss(language_model, weights=self.weights, loss=settings.loss)),
            lambda step: [labelled[place] for place in order(step)],
            training,
            collate=lambda chosen: prm.collate(chosen, language_model.pad_id, language_model.device),
            callbacks=[look],
            log=log,
            save=save,
            save_every=self.save_every,
            state=learning.training or None,
            title=f"Stage {learning.stage} of {settings.stages}",
        )
        put_back(model, learning.kept)
        return fitted.steps

    # --- problems held out --------------------------------------------------------------------------------------------

    def _watched(self, language_model: LanguageModel) -> float:
        """What early_stop looks at, the higher the better."""
        held = self.parts[HELD_OUT]
        scores = step_scores(language_model, held, Rows(None), self.scored_at_once, "Looking")
        if self.settings.early_stop == "loss":
            return -self._loss(scores)
        steps = self._judged(held, scores).steps()
        return float(np.nan_to_num(auroc(steps.scores, steps.right), nan=0.0))

    def _loss(self, scores: Sequence[Sequence[float]]) -> float:
        """That of training, of the problems held out with the labels that were given; nan without any."""
        r = torch.tensor([r for each in scores for r in each], dtype=torch.float64)
        labels = flat(self.parts[HELD_OUT])
        read = ~(r.isnan() | labels.isnan())
        r = r[read].clamp(SURE, 1 - SURE)
        losses = nait.LOSSES[self.settings.loss](torch.stack([r, 1 - r], -1).log(), labels[read], self.weights)
        return losses.mean().item()

    def _judged(self, solutions: Sequence[StepwiseSolution], scores: Sequence[Sequence[float]]) -> measures.Judged:
        half = measures.halves([each.group for each in solutions], self.settings.seed)
        return measures.Judged(solutions, [np.array(each) for each in scores], half, self.settings.seed)

    def _measured(self, language_model: LanguageModel, learning: "Learning", steps: int, moved: float) -> TrainedStage:
        labels = learning.labels[~learning.labels.isnan()]
        apart, gain, loss, right, wrong = UNDEFINED, UNDEFINED, math.nan, math.nan, math.nan
        if held := self.parts[HELD_OUT]:
            scores = step_scores(language_model, held, Rows(None), self.scored_at_once, "Looking")
            judged = self._judged(held, scores)
            told = measures.overall(judged)
            apart, gain, loss = told.model, told.gain, self._loss(scores)
            found = judged.steps()
            right, wrong = (_mean(found.scores[each]) for each in (found.right, ~found.right))
        return TrainedStage(
            number=learning.stage,
            steps=steps,
            positives=int((labels >= WRONG_BELOW).sum()),
            negatives=int((labels < WRONG_BELOW).sum()),
            soft=int(((labels > 0) & (labels < 1)).sum()),
            loss=learning.losses / steps,
            held_out_loss=loss,
            auroc=apart,
            gain=gain,
            right_score=right,
            wrong_score=wrong,
            positives_kept=math.nan,
            negatives_kept=math.nan,
            moved=moved,
        )

    def _store(self, folder: Path | None, learning: "Learning", scores: Tensor | None) -> None:
        """What each solution was learnt as in this stage, and what its model said of it where it was asked."""
        if folder is None:
            return
        solutions = self.parts[LEARNT]
        sizes = [len(each.steps) for each in solutions]
        said = [None] * len(sizes) if scores is None else [known(r.tolist()) for r in scores.split(sizes)]
        rows = [
            {"id": each.id, "labels": known(y.tolist()), "scores": r}
            for each, y, r in zip(solutions, learning.labels.split(sizes), said, strict=True)
        ]
        write_atomic(folder / f"stage-{learning.stage}" / LABELS, b"".join(map(seal, rows)))

    # --- words --------------------------------------------------------------------------------------------------------

    def _resolved(self, language_model: LanguageModel, examples: Sequence[prm.StepExample]) -> dict[str, Any]:
        training = self._training(language_model, examples, 1)
        settings = {
            **self.settings.model_dump(),
            "weights": list(self.weights),
            "learning_rate": training.learning_rate,
            "batch_size": training.batch_size,
        }
        unused = {"micro_batch_size"}
        unused |= {"lora_rank"} if self.settings.parameters == "full" else set()
        unused |= {"patience"} if self.settings.early_stop == "none" else set()
        unused |= {"threshold", "anchor", "restart"} if self.settings.stages == 1 else set()
        return {name: value for name, value in settings.items() if name not in unused}

    def _counts(self) -> dict[str, dict[str, int]]:
        return {
            part: {
                "problems": len({each.group for each in solutions}),
                "solutions": len(solutions),
                "steps": sum(y is not None for each in solutions for y in each.labels or ()),
            }
            for part, solutions in self.parts.items()
        }

    def _labelled_by(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each.labelled_by for each in self.parts[LEARNT]))

    def _cut(self, examples: Sequence[prm.StepExample]) -> int:
        labels = [each.labels or () for each in self.parts[LEARNT]]
        return sum(y is not None for e, ys in zip(examples, labels, strict=True) for y in ys[len(e.places) :])

    def _drift(self) -> str:
        return nait.drift_note(self.weights, threshold=self.settings.threshold) or ""


@dataclass(eq=False)
class Learning:
    """Where the training is: its stage, what that learns, and what is known so far.

    labels: of all steps to learn from, one behind the other, nan where not known or learnt. training: the state of `fit`.
    losses: sum over the steps of this stage. watched, kept, kept_at, looks: the best look at problems held out, the weights
    then, which look it was, and how many there were. before, previous: the best look of the stage before, and the weights it
    left. done: stages that are over.
    """

    labels: Tensor
    stage: int = 1
    training: Mapping[str, Any] = field(default_factory=dict)
    losses: float = 0.0
    watched: float = -math.inf
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    kept_at: int = 0
    looks: int = 0
    before: float = -math.inf
    previous: Mapping[str, Tensor] = field(default_factory=dict)
    done: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Learning":
        """As it was stored."""
        return cls(**stored)

    def next(self, labels: Tensor, previous: Mapping[str, Tensor]) -> None:
        """Go on with a further stage."""
        self.labels, self.stage, self.training, self.losses = labels, self.stage + 1, {}, 0.0
        self.before, self.previous = self.watched, previous
        self.watched, self.kept, self.kept_at, self.looks = -math.inf, {}, 0, 0


def divide(
    solutions: Sequence[StepwiseSolution], held_out: float, seed: int
) -> dict[str, tuple[StepwiseSolution, ...]]:
    """Solutions to learn from and held out, all of a problem in one part. Raises BadInput where a part would be empty."""
    problems = sorted({each.group for each in solutions})
    count = round(held_out * len(problems))
    if (held_out and not count) or count == len(problems):
        left = "none to learn from" if count else "none to hold out"
        raise BadInput(
            f"held_out {held_out:g} of {len(problems)} problems leaves {left}: use more problems, another share, or 0 to "
            "hold none out."
        )
    order = np.random.default_rng(np.random.SeedSequence([seed, 0])).permutation(len(problems))
    chosen = {problems[place] for place in order[:count].tolist()}
    return {
        LEARNT: tuple(each for each in solutions if each.group not in chosen),
        HELD_OUT: tuple(each for each in solutions if each.group in chosen),
    }


def check_both(solutions: Sequence[StepwiseSolution], what: str) -> None:
    """Raises BadInput unless some steps are labelled right and some wrong. what: whose steps, to begin the sentence with."""
    labels = flat(solutions)
    for missing, some in (("wrong (below 0.5)", labels < WRONG_BELOW), ("right (0.5 or more)", labels >= WRONG_BELOW)):
        if not some.any():
            raise BadInput(
                f"{what} none is labelled {missing}, so that there is nothing to tell apart: add solutions with such "
                "steps, or choose another --which."
            )


def flat(solutions: Sequence[StepwiseSolution]) -> Tensor:
    """The labels of all steps, one behind the other, float64; nan where a label is not known."""
    labels = [math.nan if y is None else y for each in solutions for y in each.labels or ()]
    return torch.tensor(labels, dtype=torch.float64)


def learnable(solutions: Sequence[StepwiseSolution], examples: Sequence[prm.StepExample]) -> Tensor:
    """As `flat`, but nan also for steps that do not fit into their examples: nothing is learnt of these."""
    fits = [t < len(e.places) for each, e in zip(solutions, examples, strict=True) for t in range(len(each.steps))]
    return flat(solutions).where(torch.tensor(fits), math.nan)


def refresh(labels: Tensor, scores: Tensor, threshold: float) -> nait.Refreshed:
    """`nait.refresh` of the steps that have both; the others keep what they have."""
    both = ~(labels.isnan() | scores.isnan())
    refreshed = nait.refresh(labels[both], scores[both], threshold=threshold)
    new, kept = labels.clone(), torch.ones_like(both)
    new[both], kept[both] = refreshed.labels, refreshed.kept
    return replace(refreshed, labels=new, kept=kept)


def teaches(example: prm.StepExample) -> bool:
    """Whether a step of it has a label: a batch without any would have no loss."""
    return any(label != prm.IGNORE for label in example.labels)


def relabelled(examples: Sequence[prm.StepExample], sizes: Sequence[int], labels: Tensor) -> list[prm.StepExample]:
    """Examples with other labels [steps of all solutions], nan for a step that is not learnt."""
    return [
        replace(each, labels=tuple(own.nan_to_num(prm.IGNORE).tolist()[: len(each.places)]))
        for each, own in zip(examples, labels.split(list(sizes)), strict=True)
    ]


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what is trained, on the CPU."""
    return {name: each.detach().cpu().clone() for name, each in model.named_parameters() if each.requires_grad}


@torch.no_grad()
def put_back(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Make the parameters that are named what they were."""
    own = dict(model.named_parameters())
    for name, each in weights.items():
        own[name].copy_(each)


def count(model: nn.Module) -> int:
    """Of the trained parameters."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad)


def _mean(values: Any) -> float:
    return float(values.mean()) if values.size else math.nan
