"""The work of the job: measured before, along the way and after; written, loaded again and scored again.

Killed at any moment, the same call resumes at the last checkpoint. The artifact is only given its name when the model that
the folder gives back answers as the trained one.
"""

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.files import write_atomic
from equipoise.core.job import Processes, Request
from equipoise.core.serialize import deserialize, serialize
from equipoise.core.state import save_state, stored_state
from equipoise.data.records import Record
from equipoise.language import adapters
from equipoise.language.encode import IGNORE, Example, encode, other_beginning
from equipoise.language.encode import notes as encoding_notes
from equipoise.language.features import objects_digests, weights_digest
from equipoise.language.generate import generate
from equipoise.language.model import LanguageModel, wrap
from equipoise.language.rehearsal import Writes, rehearse
from equipoise.language.score import log_likelihoods, multiple_choice, perplexity
from equipoise.language.taught import opened, taught_once
from equipoise.language.templates import DATE
from equipoise.language.written import write_checked
from equipoise.training.precision import bytes_of_training
from equipoise.training.team import Team
from equipoise.unlearning import dpo, guard, starts
from equipoise.unlearning.checks import changed_at_random, check_model, trained_weights
from equipoise.unlearning.measures import rouge_l_recall
from equipoise.unlearning.recipe import OBJECTIVES, Recipe, recipe
from equipoise.unlearning.record_outcomes import COSTLY, RecordOutcome, RecordWeights, brief, likest, survivor_lines
from equipoise.unlearning.result import AnswerPair, Measure, Unlearned, UnlearnPlan
from equipoise.unlearning.sides import CHOICES, MEASURED, Sides, read_sides, subsample, with_general
from equipoise.unlearning.training import prepare, train

ANSWERED = 48  # records of each side whose greedy answers are compared before and after
SHOWN = 3  # of them shown
CONFLICTS = 5  # steps between entries of the conflict log, which costs some passes over both gradients
TAUGHT = 6_000  # records that "tiny" sees before it is made to forget, in as many passes as it takes
COMPARED = 16  # records of each side on which the written model must agree with the trained one
STATE = "state.safetensors"
BEGUN = "begun.safetensors"
SURVIVORS = "survivors.jsonl"


@dataclass(frozen=True, eq=False)
class Forgetting(Request):
    """A request to unlearn, read and found right."""

    model: str | Path | LanguageModel
    sides: Sides
    recipe: Recipe
    target: tuple[str, float] | None
    every: int
    loading: Mapping[str, Any]
    attention: str | None
    shard: bool
    team: Team
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]
    evaluation: str = "none"
    without_effect: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        model: Any,
        tokenizer: Any,
        records: Mapping[str, Any],
        *,
        fields: Mapping[str, str] | None,
        method: str | None,
        settings: Mapping[str, Any],
        stop_at: str | None,
        **how: Any,
    ) -> "Forgetting":
        """Raises BadInput for a wrong request; loads no model."""
        if tokenizer is not None or not isinstance(model, str | Path | LanguageModel):
            loading = how["loading"]
            model = wrap(model, tokenizer, chat_template=loading["chat_template"], date=loading["date"] or DATE)
        team = Team.of(how["loading"]["device"])
        chosen = recipe(method, **settings)
        data = read_sides(records, fields)
        data = data if chosen.loss_budget is None else with_general(data)
        target = _target(stop_at, data)
        if OBJECTIVES[chosen.objective].refusals:
            dpo.refused(data.records["forget"], chosen.seed)
        if chosen.parameters == "lora" and str(model) == "tiny":
            other = "another model" if chosen.begins else "parameters full, or another model"
            raise BadInput(
                f"An adapter of 'tiny' would name no base model, since it is taught on the spot: use {other}."
            )
        resolved = {name: getattr(chosen, name) for name in sorted({*chosen.model_fields_set, "seed"})}
        resolved["date"] = how["loading"]["date"] = how["loading"]["date"] or DATE
        return cls(
            model=model,
            sides=data,
            recipe=chosen,
            target=target,
            team=team,
            inputs=data.digests | objects_digests({"model": model}, changed=True),
            resolved=resolved,
            without_effect=tuple(f"{name} {getattr(chosen, name)}" for name in chosen.without_effect(settings)),
            **how,
        )

    @property
    def processes(self) -> Processes:
        return self.team

    def plan(self) -> UnlearnPlan:
        """From one timed step on the longest records; a model that was given stays as it is."""
        if not isinstance(self.model, LanguageModel) or self.attention is None:
            return self._plan()
        own: Any = self.model.model.config._attn_implementation
        try:
            return self._plan()
        finally:
            self.model.use_attention(own)

    def _plan(self) -> UnlearnPlan:
        recipe, sides = self.recipe, self.sides
        language_model = self._opened(None, taught=False)
        examples = {
            name: encode(language_model, records, max_length=recipe.max_length)
            for name, records in sides.records.items()
        }
        shown = {name: _shown(language_model, encoded[0]) for name, encoded in examples.items()}
        check_model(language_model, examples["retain"])
        with _prepared(language_model, recipe, stays=False) as prepared:
            return self._planned(prepared, examples, shown)

    def _planned(
        self, language_model: LanguageModel, examples: Mapping[str, list[Example]], shown: Mapping[str, str]
    ) -> UnlearnPlan:
        recipe, sides = self.recipe, self.sides
        if recipe.begins:
            starts.check(language_model, recipe, examples["forget"], examples["retain"])
        rehearse(language_model, writes=self._writes())
        trained = [parameter for parameter in language_model.model.parameters() if parameter.requires_grad]
        size = min(recipe.micro_batch_size or recipe.batch_size, len(examples["forget"]))
        longest = sorted(examples["forget"], key=lambda example: len(example.input_ids))[-size:]
        longest += sorted(self._refusals(language_model), key=lambda example: len(example.input_ids))[-size:]
        _probe(language_model, longest[-1:])  # the first pass of a process is slow
        began = time.perf_counter()
        activations = _probe(language_model, longest)
        pass_seconds = time.perf_counter() - began
        passes = 2 * math.ceil(recipe.batch_size / size) * recipe.steps
        if recipe.weigh == "guard":  # a backward pass over retain records, two forward passes over the forget set
            passes += (min(len(examples["retain"]), guard.RETAINED) + len(examples["forget"]) * 2 / 3) / size
        passes += starts.passes(recipe, len(examples["forget"]), len(examples["retain"])) / size
        scored = sum(min(len(sides.records[name]), MEASURED) for name in ("forget", "retain"))
        measuring = (
            (recipe.steps / self.every + 4) * scored * (CHOICES + 1) / size / 3
        )  # a forward pass is a third of both
        numbers = sum(parameter.numel() for parameter in trained)
        held = sum(parameter.numel() * parameter.element_size() for parameter in language_model.model.parameters())
        training = bytes_of_training(trained, gradients=2) + activations + _kept_bytes(trained)
        looked, kept = starts.peak_bytes(language_model, recipe, len(examples["forget"]), len(examples["retain"]))
        return UnlearnPlan(
            model=language_model.source,
            recipe=recipe.resolved(numbers),
            records={name: len(records) for name, records in sides.records.items()},
            tokens={name: sum(len(example.input_ids) for example in encoded) for name, encoded in examples.items()},
            first={name: tuple(map(_brief, records[:3])) for name, records in sides.records.items()},
            shown=shown,
            trained_parameters=numbers,
            seconds=pass_seconds * (passes + measuring),
            peak_bytes=held + kept + max(training, looked),
            notes=(
                *(starts.plan_notes(language_model, recipe) if recipe.begins else ()),
                *self._settings_notes(),
                *self._evaluation_notes(),
                *self._refusal_notes(),
                *self._encoding(language_model, examples.values()),
                *sides.notes(),
            ),
        )

    def work(self, folder: Path | None) -> Unlearned:
        if folder is None and self.evaluation != "none":
            raise BadInput(f"evaluation {self.evaluation} is written to the job's folder: name one with out.")
        language_model = self._opened(folder)
        recipe, sides, source = self.recipe, self.sides, language_model.source
        size = max(recipe.micro_batch_size or recipe.batch_size, 16)
        scales = _Scales(sides, batch_size=size, max_length=recipe.max_length)
        forget = encode(language_model, sides.records["forget"], max_length=recipe.max_length)
        retain = encode(language_model, sides.records["retain"], max_length=recipe.max_length)
        refusals = self._refusals(language_model)
        stored, notes = ({}, []) if folder is None else stored_state(folder / STATE)
        weights = weights_digest(language_model.model)
        _require_same(stored, weights)
        if self._writes() == "adapter" and folder is not None:
            adapters.require_base(language_model)
        if not stored:
            check_model(language_model, retain)
        # What the two sets do not allow is refused before anything is measured.
        begun_at = self._begins(folder, language_model, forget, retain, weights) if recipe.begins else None
        if stored:
            before = {name: deserialize(Measure, plain) for name, plain in stored["before"].items()}
            answers_before = stored["answers"]
        else:
            before, answers_before = scales(language_model), scales.answers(language_model)
            before |= scales.recalls(answers_before) | scales.perplexity(language_model)
        begun = stored.get("begun") or _per_token(language_model, forget, size)
        path: list[dict[str, Any]] = stored.get("path") or [{"step": 0, **_values(before)}]
        weighed = deserialize(RecordWeights, stored["weighed"]) if stored.get("weighed") else None
        with _prepared(language_model, recipe, stays=True) as language_model:
            if not stored:
                rehearse(language_model, writes="nothing" if folder is None else self._writes())
            if begun_at is not None:
                starts.install(language_model, begun_at)
            if recipe.weigh == "guard" and weighed is None:
                weighed = self._weighed(language_model, forget, retain)
        trained = sum(p.numel() for p in language_model.model.parameters() if p.requires_grad)
        start = trained_weights(language_model.model)

        def look(moment: Any) -> bool:
            if not self._measured(moment.step):
                return False
            path.append({"step": moment.step, **_values(scales(language_model))})
            return self._ended(path) is not None

        def save(state: dict[str, Any]) -> None:
            if folder is not None and self.processes.main:
                kept = {"training": state, "path": path, "before": serialize(before), "answers": answers_before}
                kept |= {"begun": begun, "weighed": serialize(weighed), "weights": weights}
                save_state(folder / STATE, kept)

        fitted = train(
            language_model,
            recipe,
            forget,
            retain,
            refusals=refusals,
            weights=None if weighed is None else torch.tensor(weighed.weights, dtype=torch.float64),
            begun=begun_at,
            conflicts_every=CONFLICTS,
            layers=True,
            accelerator=self.team.accelerator,
            callbacks=[look],
            log=None if folder is None else folder / "metrics.jsonl",
            save=save,
            save_every=self.every,
            state=stored.get("training"),
            shard=self.shard,
        )
        answers_after = scales.answers(language_model)
        after = {**scales(language_model), **scales.recalls(answers_after), **scales.perplexity(language_model)}
        ended = _per_token(language_model, forget, size)
        records = tuple(
            RecordOutcome(record.id, brief(record), *values)
            for record, *values in zip(sides.records["forget"], begun, ended, strict=True)
        )
        with changed_at_random(language_model.model, start, recipe.seed):
            control = scales(language_model, ["forget"])
        gap = math.nan
        if folder is not None and self.processes.main:
            if lines := survivor_lines(records, sides.records["forget"]):
                write_atomic(folder / SURVIVORS, lines)
            if self.evaluation == "open-unlearning":
                scales.export(language_model, folder)
            gap = write_checked(
                language_model,
                folder,
                [*subsample(forget, COMPARED), *subsample(retain, COMPARED)],
                adapter=self._writes() == "adapter",
                kept=folder / STATE,
            )
        return Unlearned(
            recipe=recipe.model_dump(),
            resolved=recipe.resolved(trained),
            before=before,
            after=after,
            path=tuple(path),
            answers=scales.compared(answers_before, answers_after),
            steps=fitted.steps,
            stopped=self._stopped(path),
            moved=fitted.moved,
            source=source,
            names={"model": self._name(), **sides.names},
            gap=gap,
            notes=(
                *notes,
                *self._settings_notes(),
                *(weighed.notes if weighed else ()),
                *(starts.notes(begun_at) if begun_at else ()),
                *self._refusal_notes(),
                *self._encoding(language_model, (forget, retain)),
                *sides.notes(),
            ),
            records=records,
            weighed=weighed,
            spectra=begun_at.spectra if begun_at else (),
            control=control,
            model=language_model,
        )

    def _refusals(self, language_model: LanguageModel) -> list[Example]:
        """What the objective prefers to each answer of the forget set; none where it prefers nothing."""
        if not OBJECTIVES[self.recipe.objective].refusals:
            return []
        refused = dpo.refused(self.sides.records["forget"], self.recipe.seed)
        return encode(language_model, refused, max_length=self.recipe.max_length)

    def _settings_notes(self) -> tuple[str, ...]:
        if not self.without_effect:
            return ()
        return (f"Without effect in this recipe, although given: {', '.join(self.without_effect)}.",)

    def _evaluation_notes(self) -> tuple[str, ...]:
        if self.evaluation == "none":
            return ()
        asked = " and ".join(f"{len(self.sides.given(name)):,} {name}" for name in ("forget", "retain"))
        return (
            f"evaluation {self.evaluation}: all {asked} records are scored and answered once more at the end, which is not "
            "in this estimate.",
        )

    def _refusal_notes(self) -> tuple[str, ...]:
        if not OBJECTIVES[self.recipe.objective].refusals:
            return ()
        return (dpo.note(self.sides.records["forget"], self.recipe.seed),)

    def _weighed(
        self, language_model: LanguageModel, forget: Sequence[Example], retain: Sequence[Example]
    ) -> RecordWeights:
        """The weights of the forget records, and which retain records stand nearest to those that cost most."""
        found = guard.weigh(language_model, self.recipe, forget, retain)
        records = self.sides.records
        costly = [records["forget"][index] for index in found.scores.argsort(descending=True)[:COSTLY].tolist()]
        return RecordWeights(
            scores=tuple(found.scores.tolist()),
            weights=tuple(found.weights.tolist()),
            temperature=found.temperature,
            effective_sample_size=guard.effective_sample_size(found.weights),
            split_half=found.split_half,
            likest=likest(costly, records["retain"]),
            notes=found.notes,
        )

    def _begins(
        self,
        folder: Path | None,
        language_model: LanguageModel,
        forget: Sequence[Example],
        retain: Sequence[Example],
        weights: str,
    ) -> starts.Begun:
        """Where an adapter of the bare model will begin: found by an earlier attempt, or now and kept for a later one."""
        stored = {} if folder is None else stored_state(folder / BEGUN, of="start")[0]
        if stored:
            _require_same(stored, weights)
            return starts.Begun.restored(stored)
        adapted = prepare(language_model, self.recipe)
        try:
            begun = starts.find(adapted, self.recipe, forget, retain)
        finally:
            adapters.detach(adapted)
        if folder is not None and self.processes.main:
            save_state(folder / BEGUN, begun.stored() | {"weights": weights})
        return begun

    def scratch(self) -> tuple[str, ...]:
        return (STATE, BEGUN)

    def _writes(self) -> Writes:
        return "adapter" if self.recipe.parameters == "lora" else "model"

    @staticmethod
    def _encoding(language_model: LanguageModel, sides: Iterable[Sequence[Example]]) -> list[str]:
        """What tokenizer and chat template add, cut or leave unlearnt."""
        beginning = other_beginning(language_model)
        notes = [note for examples in sides for note in encoding_notes(examples)]
        return notes if beginning is None else [*notes, beginning]

    def _name(self) -> str:
        return self.model.name if isinstance(self.model, LanguageModel) else str(self.model)

    def _measured(self, step: int) -> bool:
        """Whether the model is measured after so many steps: every so often, and at the end."""
        return not step % self.every or step == self.recipe.steps

    def _ended(self, path: Sequence[Mapping[str, Any]]) -> str | None:
        """Why the last measurement ends the run, or None; also of a checkpoint that had stopped there."""
        last, budget = path[-1], self.recipe.loss_budget
        if self.target is not None and last[self.target[0]] <= self.target[1]:
            return f"{self.target[0]} was down to {last[self.target[0]]:.3f} at step {last['step']}"
        if budget is not None:
            lost = path[0]["general_log_probability"] - last["general_log_probability"]
            if not lost <= budget:  # nan, too
                return (
                    f"general text had lost {lost:.3f} nats per token at step {last['step']}, more than the budget of "
                    f"{budget:g}"
                )
        return None

    def _stopped(self, path: Sequence[Mapping[str, Any]]) -> str:
        if ended := self._ended(path):
            return ended
        made = f"all {self.recipe.steps} steps were made"
        return made if self.target is None else f"{made}; {self.target[0]} never came down to {self.target[1]:g}"

    def _opened(self, folder: Path | None, *, taught: bool = True) -> LanguageModel:
        """The model to change. taught: whether "tiny" is taught the files, which a plan does not need."""
        return opened(self.model, self.loading, lambda: self._tiny(folder, taught), self.attention)

    def _tiny(self, folder: Path | None, taught: bool) -> LanguageModel:
        """A tiny model that knows both files."""
        from equipoise.language.tiny import teach, tiny

        if not taught:
            return tiny(self.sides.texts(), seed=self.recipe.seed)

        def taught_both() -> LanguageModel:
            made = tiny(self.sides.texts(), seed=self.recipe.seed)
            records = [record for side in self.sides.records.values() for record in side]
            teach(made, records, seed=self.recipe.seed, epochs=max(TAUGHT / len(records), 6))
            return made

        language_model = taught_once(folder, self.processes, taught_both)
        source = "A Llama of about 1 M parameters, taught the given files on the spot."
        return replace(language_model, name="tiny", source=source, origin=None)


@contextmanager
def _prepared(language_model: LanguageModel, recipe: Recipe, *, stays: bool) -> Iterator[LanguageModel]:
    """The model as the recipe trains it; afterwards as it was, adapter and trainable parameters, unless it `stays` so.

    When something is refused inside, it never stays so.
    """
    trainable = [(parameter, parameter.requires_grad) for parameter in language_model.model.parameters()]
    prepared, put_back = language_model, True
    try:
        prepared = prepare(language_model, recipe)
        yield prepared
        put_back = not stays
    finally:
        if put_back:
            if prepared is not language_model:
                adapters.detach(prepared)
            for parameter, required in trainable:
                parameter.requires_grad_(required)


def _require_same(stored: Mapping[str, Any], weights: str) -> None:
    """Raises BadInput where an earlier attempt began with another model."""
    if stored.get("weights", weights) != weights:
        raise BadInput(
            "The model is another one than when this work began, or is loaded in another precision: give another --out, or "
            "--fresh to begin anew."
        )


def _target(stop_at: str | None, sides: Sides) -> tuple[str, float] | None:
    if stop_at is None:
        return None
    name, _, level = stop_at.partition("=")
    known = ["forget_log_probability"] + ["forget_accuracy"] * bool(sides.questions["forget"])
    if name.strip() not in known:
        reason = "" if len(known) > 1 else " (forget_accuracy needs choices, or four different answers to prompts)"
        raise BadInput(f"cannot stop at {name.strip()!r}{reason}. {did_you_mean(name.strip(), known)}")
    try:
        value = float(level)
    except ValueError as error:
        raise BadInput(f"stop_at is {stop_at!r}, expected NAME=LEVEL such as forget_accuracy=0.3.") from error
    if not math.isfinite(value):
        raise BadInput(f"stop_at is {stop_at!r}, expected a finite level.")
    return name.strip(), value


class _Scales:
    """Measures a model on a fixed sample of every side; the same sample before, along the way and after."""

    def __init__(self, sides: Sides, batch_size: int, max_length: int) -> None:
        self.sides = {name: subsample(records, MEASURED) for name, records in sides.records.items()}
        self.asked = {name: [r for r in subsample(side, ANSWERED) if r.prompt] for name, side in self.sides.items()}
        self.questions, self.general, self.given = sides.questions, sides.general, sides.given
        self.encoded: dict[str, list[Example]] = {}
        self.batch_size, self.max_length = batch_size, max_length

    def __call__(self, language_model: LanguageModel, names: Sequence[str] | None = None) -> dict[str, Measure]:
        """Measures of the sides of these names, of all by default."""
        measures: dict[str, Measure] = {}
        for name in names or self.sides:
            records, better = self.sides[name], _better(name)
            if name not in self.encoded:
                self.encoded[name] = encode(language_model, records, max_length=self.max_length)
            sums, counts = log_likelihoods(language_model, self.encoded[name], batch_size=self.batch_size)
            measures[f"{name}_log_probability"] = Measure((sums / counts).mean().item(), better, "nats/token")
            if questions := self.questions[name]:
                result = multiple_choice(language_model, questions, batch_size=self.batch_size)
                measures[f"{name}_accuracy"] = Measure(
                    result.accuracy, better, "", float(np.mean([1 / len(q.choices) for q in questions])), len(questions)
                )
        return measures

    def answers(self, language_model: LanguageModel) -> dict[str, list[str]]:
        """The greedy answers to a sample of each side's prompts."""
        return {
            name: generate(
                language_model,
                [record.messages[:-1] or record.prompt for record in asked],
                max_new_tokens=32,
                batch_size=self.batch_size,
            )
            for name, asked in self.asked.items()
            if asked
        }

    def recalls(self, answers: Mapping[str, Sequence[str]]) -> dict[str, Measure]:
        """ROUGE-L recall of such answers."""
        return {
            f"{name}_rouge_recall": Measure(
                float(
                    np.nanmean([rouge_l_recall(r.completion, a) for r, a in zip(self.asked[name], texts, strict=True)])
                ),
                _better(name),
            )
            for name, texts in answers.items()
        }

    def perplexity(self, language_model: LanguageModel) -> dict[str, Measure]:
        """Of the texts that tell of general ability, prompts and answers alike."""
        texts = [
            "\n".join(m.content for m in r.messages) or f"{r.prompt} {r.completion}".strip()
            for r in self.sides[self.general]
        ]
        value = perplexity(language_model, texts, batch_size=self.batch_size)
        return {f"{self.general}_perplexity": Measure(value, "lower")}

    def export(self, language_model: LanguageModel, folder: Path) -> None:
        """What open-unlearning would log of the sides that it has, into the folder: every record by its place there."""
        from equipoise.unlearning import extraction, openunlearning, tofu

        options: dict[str, Any] = {"max_length": self.max_length, "batch_size": self.batch_size}
        sets = {}
        for name in ("forget", "retain"):
            records = self.given(name)
            room = tofu.room(language_model, records)
            sets[name] = tofu.score(language_model, records, generated=room > 0, max_new_tokens=max(room, 1), **options)
        memorized = extraction.memorization(language_model, self.given("forget"), **options)
        openunlearning.write(folder, openunlearning.evaluation(sets, memorized=memorized))

    def compared(
        self, before: Mapping[str, Sequence[str]], after: Mapping[str, Sequence[str]]
    ) -> tuple[AnswerPair, ...]:
        """The first answers of each side, side by side."""
        return tuple(
            AnswerPair(name, record.prompt, record.completion, old, new)
            for name in before
            for record, old, new in list(zip(self.asked[name], before[name], after[name], strict=True))[:SHOWN]
        )


def _per_token(language_model: LanguageModel, examples: Sequence[Example], batch_size: int) -> list[float]:
    """Mean log-probability of each example's labelled tokens."""
    sums, counts = log_likelihoods(language_model, examples, batch_size=batch_size)
    return (sums / counts).tolist()


def _better(side: str) -> str:
    return "lower" if side == "forget" else "higher"


def _values(measures: Mapping[str, Measure]) -> dict[str, float]:
    return {name: measure.value for name, measure in measures.items()}


def _kept_bytes(trained: Iterable[torch.nn.Parameter]) -> int:
    """The trained weights as they were are kept in the processor's memory, which is the device's on a CPU only."""
    return sum(each.numel() * each.element_size() for each in trained if each.device.type == "cpu")


def _brief(record: Record) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if value not in ("", (), None)}


def _shown(language_model: LanguageModel, example: Example) -> str:
    """A record as the model reads it, with what is trained between » and «."""
    tokenizer: Any = language_model.tokenizer
    parts = []
    for trained, group in itertools.groupby(
        zip(example.input_ids, example.labels, strict=True), lambda p: p[1] != IGNORE
    ):
        text = tokenizer.decode([token for token, _ in group])
        parts.append(f"»{text}«" if trained else text)
    return "".join(parts)


def _probe(language_model: LanguageModel, examples: Sequence[Example]) -> int:
    """One forward and backward pass over these examples; returns the bytes that its activations take, roughly."""
    from equipoise.language.encode import collate

    held = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal held
        held += tensor.numel() * tensor.element_size()
        return tensor

    batch = collate(examples, language_model.pad_id, language_model.device)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        language_model.model(**batch).loss.backward()
    language_model.model.zero_grad(set_to_none=True)
    return held
