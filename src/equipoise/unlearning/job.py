"""The job: make a causal language model forget one set of records while it keeps another, and check what came out.

The model is measured before, along the way and after. The artifact is written beside its final place, loaded again and
scored again, and only then moved there. Killed at any moment, the same call resumes at the last checkpoint.
"""

import html
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from equipoise.core.errors import BadInput, WorkFailed, did_you_mean
from equipoise.core.files import sha256_file as digest
from equipoise.core.files import write_atomic
from equipoise.core.folder import JobFolder, job_folder, opened
from equipoise.core.state import load_state, save_state
from equipoise.data.records import Record, read_records, record_from
from equipoise.language import adapters
from equipoise.language.encode import Example, encode
from equipoise.language.model import LanguageModel, load
from equipoise.language.score import log_likelihoods, multiple_choice
from equipoise.unlearning import measures
from equipoise.unlearning.recipe import Recipe, recipe
from equipoise.unlearning.training import prepare, train

CHOICES = 4
MEASURED = 200  # records of each side that are measured, evenly spread over the file
ANSWERED = 48  # records of each side whose greedy answers are compared before and after
CONFLICTS = 5  # steps between entries of the conflict log, which costs some passes over both gradients
TAUGHT = 15_000  # records that "tiny" sees before it is made to forget, in as many passes as it takes
COMPARED = 16  # records of each side on which the written model must agree with the trained one
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # nats per token; lower precision: 0.05

Records = str | Path | Sequence[Record | Mapping[str, Any]]


@dataclass(frozen=True)
class Measure:
    """A measured value with what it takes to read it: good direction, unit, chance level, denominator."""

    value: float
    better: str
    unit: str = ""
    chance: float | None = None
    of: int | None = None

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "undefined"
        if self.of is not None:
            return f"{self.value:.3f} ({round(self.value * self.of)} of {self.of})"
        return f"{self.value + 0.0:.3f} {self.unit}".rstrip().replace("-0.000", "0.000")


@dataclass(frozen=True)
class Plan:
    """What a run would do: the records as parsed, their size, and estimates of time (seconds) and memory (bytes)."""

    model: str
    recipe: dict[str, Any]
    records: dict[str, int]
    tokens: dict[str, int]
    first: dict[str, tuple[dict[str, Any], ...]]
    trained_parameters: int
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Unlearned:
    """A model that was made to forget, with its measures before and after; folder is None when nothing was written."""

    recipe: Recipe
    resolved: dict[str, Any]
    before: dict[str, Measure]
    after: dict[str, Measure]
    path: tuple[dict[str, Any], ...]
    steps: int
    stopped: str
    model: LanguageModel | None = None
    folder: Path | None = None
    notes: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{self.before[name]}</td><td>{self.after[name]}</td></tr>"
            for name in self.after
        )
        return f"<table><thead><tr><th></th><th>before</th><th>after</th></tr></thead><tbody>{rows}</tbody></table>"


def unlearn(
    model: str | Path | LanguageModel,
    *,
    forget: Records,
    retain: Records,
    general: Records | None = None,
    method: str | None = None,
    stop_at: str | None = None,
    evaluate_every: int = 10,
    out: str | Path | None = None,
    fresh: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    chat_template: str = "auto",
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    shard: bool = False,
    fields: Mapping[str, str] | None = None,
    **words: Any,
) -> Unlearned:
    """Make `model` forget `forget` while it keeps `retain`; with `out`, write a folder that transformers loads as it is.

    model: a name, folder, GGUF file or hub id as in `language.load`; "tiny", which is first taught both files; or a loaded
    LanguageModel, which is changed in place. forget, retain, general: files as in `data.read_records`, or records.
    method: a preset of `recipe.METHODS`. words: settings of `Recipe`, over the preset.
    stop_at: "forget_accuracy=0.3" ends the training as soon as that measure of the forget set is down to the level.
    attn_implementation: sdpa or eager, as transformers spells it; None: its own choice. shard: of several processes each
    holds a part of weights, gradients and moments while training (FSDP2), and the whole model before and after.
    Raises BadInput for a wrong request, WorkFailed for a loss that is no number or an artifact that differs.
    """
    accelerator = Accelerator(cpu=device == "cpu")
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and accelerator.num_processes == 1:
        raise BadInput(f"{started} processes were started, but without GPUs each is alone: add --device cpu.")
    chosen = recipe(method, **words)
    if evaluate_every < 1:
        raise BadInput(f"evaluate_every is {evaluate_every}, expected at least 1 step.")
    data = _read(forget, retain, general, fields)
    target = _target(stop_at, data)

    def open_model(folder: Path | None) -> LanguageModel:
        if isinstance(model, LanguageModel):
            return model
        if str(model) == "tiny":
            found = _tiny(data, folder, chosen.seed, accelerator)
        else:
            found = load(
                model, device=device, dtype=dtype, chat_template=chat_template, trust_remote_code=trust_remote_code
            )
        if attn_implementation is not None:
            found.use_attention(attn_implementation)
        return found

    if out is None:
        return _work(open_model(None), chosen, data, target, evaluate_every, None, accelerator, shard)
    settings = {
        "model": model.name if isinstance(model, LanguageModel) else str(model),
        "forget": data.names["forget"],
        "retain": data.names["retain"],
        "general": data.names.get("general"),
        "method": method,
        "stop_at": stop_at,
        "evaluate_every": evaluate_every,
        "dtype": dtype,
        "chat_template": chat_template,
        "attn_implementation": attn_implementation,
        "fields": dict(fields or {}),
        **{name: getattr(chosen, name) for name in sorted({*chosen.model_fields_set, "seed"})},
    }
    with _shared_folder(Path(out), settings, data.digests, fresh, accelerator) as folder:
        if folder.complete:
            return _stored(folder.final)
        return _work(open_model(folder.work), chosen, data, target, evaluate_every, folder, accelerator, shard)


@contextmanager
def _shared_folder(
    out: Path, settings: Mapping[str, Any], digests: Mapping[str, str], fresh: bool, accelerator: Accelerator
) -> Iterator[JobFolder]:
    """The job's folder, which only the main of several processes holds and writes."""
    if accelerator.is_main_process:
        with job_folder(out, settings, digests, fresh=fresh) as folder:
            accelerator.wait_for_everyone()
            yield folder
    else:
        accelerator.wait_for_everyone()
        yield opened(out)


def plan(model: str | Path | LanguageModel, **request: Any) -> Plan:
    """What `unlearn` with the same request would do, from one timed step on the longest records. Changes nothing."""
    accepted = {"device", "dtype", "chat_template", "trust_remote_code"}
    attention = request.pop("attn_implementation", None)
    loading = {name: request.pop(name) for name in accepted & request.keys()}
    data = _read(
        request.pop("forget"), request.pop("retain"), request.pop("general", None), request.pop("fields", None)
    )
    _target(request.pop("stop_at", None), data)
    every = request.pop("evaluate_every", 10)
    for name in ("out", "fresh", "shard"):
        request.pop(name, None)
    chosen = recipe(request.pop("method", None), **request)
    if isinstance(model, LanguageModel):
        language_model = model
    elif str(model) == "tiny":
        from equipoise.language.tiny import tiny

        language_model = tiny(data.texts(), seed=chosen.seed)
    else:
        language_model = load(model, **loading)
    if attention is not None:
        language_model.use_attention(attention)
    sides = {name: encode(language_model, data.sides[name], max_length=chosen.max_length) for name in data.sides}
    language_model = prepare(language_model, chosen)
    trained = [parameter for parameter in language_model.model.parameters() if parameter.requires_grad]
    size = min(chosen.micro_batch or chosen.batch_size, len(sides["forget"]))
    longest = sorted(sides["forget"], key=lambda example: len(example.input_ids))[-size:]
    _probe(language_model, longest[-1:])  # the first pass of a process is slow
    began = time.perf_counter()
    activations = _probe(language_model, longest)
    pass_seconds = time.perf_counter() - began
    passes = 2 * math.ceil(chosen.batch_size / size) * chosen.steps
    scored = min(len(data.sides["forget"]), MEASURED) + min(len(data.sides["retain"]), MEASURED)
    measuring = (chosen.steps / every + 2) * scored * (CHOICES + 1) / size / 3  # a forward pass is a third of both
    numbers = sum(parameter.numel() for parameter in trained)
    held = sum(parameter.numel() * parameter.element_size() for parameter in language_model.model.parameters())
    return Plan(
        model=language_model.source,
        recipe=chosen.resolved(numbers),
        records={name: len(records) for name, records in data.sides.items()},
        tokens={name: sum(len(example.input_ids) for example in examples) for name, examples in sides.items()},
        first={name: tuple(_brief(record) for record in records[:3]) for name, records in data.sides.items()},
        trained_parameters=numbers,
        seconds=pass_seconds * (passes + measuring),
        peak_bytes=held + numbers * 4 * 5 + activations,  # gradient, its copy, two moments, the update
    )


@dataclass(frozen=True)
class _Data:
    sides: dict[str, list[Record]]
    names: dict[str, str]
    digests: dict[str, str]

    @cached_property
    def questions(self) -> dict[str, list[Record]]:
        return _questions(self)

    def texts(self) -> list[str]:
        records = [record for side in self.sides.values() for record in side]
        return [f"{record.prompt} {record.completion}" for record in records]


def _read(forget: Records, retain: Records, general: Records | None, fields: Mapping[str, str] | None) -> _Data:
    given = {"forget": forget, "retain": retain} | ({} if general is None else {"general": general})
    sides, names, digests = {}, {}, {}
    for name, source in given.items():
        if isinstance(source, str | Path):
            sides[name], names[name] = read_records(source, fields=fields), str(source)
            digests[name] = digest(Path(source))
        else:
            sides[name] = [
                record
                if isinstance(record, Record)
                else record_from(dict(record), place=f"{name}[{index}]", default_id=f"{name}-{index}", fields=fields)
                for index, record in enumerate(source)
            ]
            names[name] = f"{len(sides[name])} records"
        if not sides[name]:
            raise BadInput(f"{name} holds no records: at least one is needed.")
    return _Data(sides, names, digests)


def _target(stop_at: str | None, data: _Data) -> tuple[str, float] | None:
    if stop_at is None:
        return None
    name, _, level = stop_at.partition("=")
    known = ["forget_log_probability"] + ["forget_accuracy"] * bool(data.questions["forget"])
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


def _tiny(data: _Data, folder: Path | None, seed: int, accelerator: Accelerator) -> LanguageModel:
    """A tiny model that knows both files; stored in the job's folder, so that a resumed job starts from the same one."""
    from equipoise.language.tiny import teach, tiny

    if folder is not None and not accelerator.is_main_process:
        accelerator.wait_for_everyone()
    if folder is not None and (folder / "taught" / "config.json").exists():
        language_model = load(folder / "taught", device="cpu")
    else:
        language_model = tiny(data.texts(), seed=seed)
        records = [record for side in data.sides.values() for record in side]
        teach(language_model, records, seed=seed, epochs=max(TAUGHT / len(records), 6))
        if folder is not None:
            language_model.save(folder / "teaching")
            (folder / "teaching").rename(folder / "taught")
    if folder is not None and accelerator.is_main_process:
        accelerator.wait_for_everyone()
    return replace(
        language_model, name="tiny", source="A Llama of about 1 M parameters, taught the given files on the spot."
    )


def _questions(data: _Data) -> dict[str, list[Record]]:
    """Multiple-choice records of each side: with their own choices, or with wrong answers from the likest prompts."""
    every = [record for side in data.sides.values() for record in side if record.prompt and not record.messages]
    words = [frozenset(re.findall(r"\w+", record.prompt.casefold())) for record in every]
    questions: dict[str, list[Record]] = {}
    for name, side in data.sides.items():
        questions[name] = []
        for record in _spread(side, MEASURED):
            if record.choices:
                questions[name].append(record)
            elif record.prompt and not record.messages:
                wrong = _wrong_answers(record, every, words)
                if len(wrong) == CHOICES - 1:
                    questions[name].append(replace(record, choices=(record.completion, *wrong), answer=0))
    return questions


def _wrong_answers(record: Record, every: Sequence[Record], words: Sequence[frozenset[str]]) -> list[str]:
    """Other records' answers, those first whose prompts share most words, so that wrong answers are of the same kind."""
    own = frozenset(re.findall(r"\w+", record.prompt.casefold()))
    likeness = np.array([len(own & other) / max(len(own | other), 1) for other in words])
    found: dict[str, None] = {}
    for index in np.argsort(-likeness, kind="stable"):
        answer = every[index].completion
        if answer != record.completion and every[index].prompt != record.prompt:
            found.setdefault(answer)
        if len(found) == CHOICES - 1:
            break
    return list(found)


def _spread(records: Sequence[Any], count: int) -> list[Any]:
    if len(records) <= count:
        return list(records)
    return [records[index] for index in np.linspace(0, len(records) - 1, count).round().astype(int)]


class _Scales:
    """Measures a model on a fixed sample of every side; the same sample before, along the way and after."""

    def __init__(self, data: _Data, batch_size: int, max_length: int) -> None:
        self.sides = {name: _spread(records, MEASURED) for name, records in data.sides.items()}
        self.questions = data.questions
        self.batch_size, self.max_length = batch_size, max_length

    def __call__(self, language_model: LanguageModel, *, answers: bool = False) -> dict[str, Measure]:
        found: dict[str, Measure] = {}
        for name, records in self.sides.items():
            better = "lower" if name == "forget" else "higher"
            examples = encode(language_model, records, max_length=self.max_length)
            sums, counts = log_likelihoods(language_model, examples, batch_size=self.batch_size)
            found[f"{name}_log_probability"] = Measure((sums / counts).mean().item(), better, "nats/token")
            if questions := self.questions[name]:
                result = multiple_choice(language_model, questions, batch_size=self.batch_size)
                found[f"{name}_accuracy"] = Measure(
                    result.accuracy, better, "", float(np.mean([1 / len(q.choices) for q in questions])), len(questions)
                )
            asked = [record for record in _spread(records, ANSWERED) if record.prompt]
            if answers and asked:
                recall = measures.rouge_recall(language_model, asked, max_new_tokens=32, batch_size=self.batch_size)
                found[f"{name}_rouge_recall"] = Measure(recall.nanmean().item(), better)
        return found


def _work(
    language_model: LanguageModel,
    chosen: Recipe,
    data: _Data,
    target: tuple[str, float] | None,
    evaluate_every: int,
    folder: JobFolder | None,
    accelerator: Accelerator,
    shard: bool,
) -> Unlearned:
    scales = _Scales(data, batch_size=max(chosen.micro_batch or chosen.batch_size, 16), max_length=chosen.max_length)
    forget = encode(language_model, data.sides["forget"], max_length=chosen.max_length)
    retain = encode(language_model, data.sides["retain"], max_length=chosen.max_length)
    state_file = None if folder is None else folder.work / "state.safetensors"
    stored = load_state(state_file) if state_file is not None and state_file.exists() else {}
    before = _measures(stored["before"]) if stored else scales(language_model, answers=True)
    path: list[dict[str, Any]] = stored.get("path") or [{"step": 0, **_values(before)}]
    language_model = prepare(language_model, chosen)
    trained = sum(p.numel() for p in language_model.model.parameters() if p.requires_grad)
    reached: list[str] = []

    def look(moment: Any) -> bool:
        if moment.step % evaluate_every and moment.step != chosen.steps:
            return False
        figures = scales(language_model)
        path.append({"step": moment.step, **_values(figures)})
        if target is not None and figures[target[0]].value <= target[1]:
            reached.append(f"{target[0]} was down to {figures[target[0]].value:.3f} at step {moment.step}")
        return bool(reached)

    def save(state: dict[str, Any]) -> None:
        if state_file is not None and accelerator.is_main_process:
            save_state(state_file, {"training": state, "path": path, "before": _plain(before)})

    fitted = train(
        language_model,
        chosen,
        forget,
        retain,
        conflicts_every=CONFLICTS,
        layers=True,
        accelerator=accelerator,
        callbacks=[look],
        log=None if folder is None else folder.work / "metrics.jsonl",
        save=save,
        save_every=evaluate_every,
        state=stored.get("training"),
        shard=shard,
    )
    after = scales(language_model, answers=True)
    stopped = reached[0] if reached else f"all {chosen.steps} steps were made"
    if target is not None and not reached:
        stopped += f"; {target[0]} never came down to {target[1]:g}"
    result = Unlearned(
        recipe=chosen,
        resolved=chosen.resolved(trained),
        before=before,
        after=after,
        path=tuple(path),
        steps=fitted.steps,
        stopped=stopped,
        model=language_model,
        notes=_notes(data, scales),
    )
    if folder is None:
        return result
    if accelerator.is_main_process:
        result = _write(result, folder, [*_spread(forget, COMPARED), *_spread(retain, COMPARED)], data)
    accelerator.wait_for_everyone()
    return replace(result, folder=folder.final)


def _values(found: Mapping[str, Measure]) -> dict[str, float]:
    return {name: measure.value for name, measure in found.items()}


def _plain(found: Mapping[str, Measure]) -> dict[str, dict[str, Any]]:
    return {name: asdict(measure) for name, measure in found.items()}


def _measures(plain: Mapping[str, Mapping[str, Any]]) -> dict[str, Measure]:
    return {name: Measure(**measure) for name, measure in plain.items()}


def _brief(record: Record) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if value not in ("", (), None)}


def _notes(data: _Data, scales: _Scales) -> tuple[str, ...]:
    notes = []
    for name, records in data.sides.items():
        if len(records) > MEASURED:
            notes.append(f"{name}: measured on {MEASURED} of {len(records)} records, evenly spread over the file.")
    made_up = [name for name, asked in scales.questions.items() if asked and not data.sides[name][0].choices]
    if made_up:
        notes.append(
            f"{', '.join(name + '_accuracy' for name in made_up)}: the file has no choices, so each right answer stands "
            f"against the answers of the {CHOICES - 1} records with the likest prompts."
        )
    notes.append(
        "The measures use the wordings of the files themselves: they tell what the model does with these questions, "
        "not that nothing of the knowledge is left. A relearning or paraphrase test asks more."
    )
    return tuple(notes)


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


def _write(result: Unlearned, folder: JobFolder, compared: Sequence[Example], data: _Data) -> Unlearned:
    """Save, load again, score again, and only then give the artifact its name."""
    from equipoise.unlearning.page import card, report

    language_model = result.model
    assert language_model is not None
    if result.recipe.parameters == "lora":
        adapters.export(language_model, folder.work)
    else:
        language_model.save(folder.work)
    gap = _gap(language_model, folder.work, compared)
    allowed = TOLERANCE.get(language_model.model.dtype, 0.05)
    if not gap <= allowed:
        raise WorkFailed(
            f"the written model differs from the trained one by {gap:.2g} nats per token (allowed: {allowed:g}), so it was "
            f"not given its name; the trained weights are in {folder.work / 'state.safetensors'}."
        )
    stored = {
        "before": _plain(result.before),
        "after": _plain(result.after),
        "path": list(result.path),
        "steps": result.steps,
        "stopped": result.stopped,
        "notes": list(result.notes),
        "recipe": result.recipe.model_dump(),
        "resolved": result.resolved,
        "source": language_model.source,
        "reloaded_gap_nats_per_token": gap,
    }
    write_atomic(folder.work / "measures.json", json.dumps(stored, indent=2))
    settings = json.loads((folder.work / "run.json").read_text(encoding="utf-8"))
    write_atomic(folder.work / "README.md", card(result, settings, stored))
    report(result, settings, stored, folder.work / "report.html", folder.final)
    (folder.work / "state.safetensors").unlink(missing_ok=True)
    folder.finish()
    return result


def _gap(language_model: LanguageModel, written: Path, compared: Sequence[Example]) -> float:
    """Largest difference, nats per token, between the model in memory and the one that the folder gives back."""
    ours, counts = log_likelihoods(language_model, compared)
    again = load(written, device=str(language_model.device), dtype=language_model.model.dtype)
    theirs, _ = log_likelihoods(again, compared)
    return ((ours - theirs).abs() / counts).max().item()


def _stored(folder: Path) -> Unlearned:
    stored = json.loads((folder / "measures.json").read_text(encoding="utf-8"))
    return Unlearned(
        recipe=Recipe(**stored["recipe"]),
        resolved=stored["resolved"],
        before=_measures(stored["before"]),
        after=_measures(stored["after"]),
        path=tuple(stored["path"]),
        steps=stored["steps"],
        stopped=stored["stopped"],
        folder=folder,
        notes=tuple(stored["notes"]),
    )
