"""The work of `uncertainty bayesianize` and `uncertainty distill`.

Killed at any moment, the same call goes on: a teacher that is trained at its last save, targets at their last row, a student
at its last save.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import read_regular, sha256_file, write_atomic
from equipoise.core.job import Request
from equipoise.core.options import check_fields, closed
from equipoise.core.rows import Rows
from equipoise.core.state import save_state, stored_state
from equipoise.core.streams import torch_stream
from equipoise.data.problems import Problem, read_problems
from equipoise.data.records import Renamed
from equipoise.language import adapters
from equipoise.language.embed import fingerprint
from equipoise.language.encode import encode_prompts
from equipoise.language.model import LanguageModel, load
from equipoise.language.templates import DATE
from equipoise.training.loop import TrainerSettings
from equipoise.uncertainty import blob, laplace_lora, teachers, tfb
from equipoise.uncertainty.bayes_distill import Divergence, averaged, distill, divergence, targets
from equipoise.uncertainty.bayes_result import (
    MLE,
    STUDENT,
    TEACHER,
    TEMPERATURE,
    Bayesianized,
    BayesPlan,
    Distilled,
    Tested,
)
from equipoise.uncertainty.calibration_cards import cards
from equipoise.uncertainty.class_logits import Prompts, class_logits, in_batches, read_prompts
from equipoise.uncertainty.ensemble import Ensemble
from equipoise.uncertainty.mc_dropout import McDropout
from equipoise.uncertainty.temperature_scaling import temperature

if TYPE_CHECKING:
    from equipoise.uncertainty.bayes_job import StudentSettings, TeacherSettings

TARGETS, STATE, ABOUT = "targets.jsonl", "state.safetensors", "teacher.json"
WEIGHTS, CONFIGURATION = "adapter_model.safetensors", "adapter_config.json"
FIT_ONE_IN = 4  # of the labelled inputs to test on, those that the temperature is fitted on
APART = {torch.float32: 1e-4, torch.float64: 1e-6}  # a class logit of what was written; lower precision: 0.05
EVERY = 50  # steps between saves


@dataclass(frozen=True, eq=False)
class Labelled:
    """Prompts, and the class of each by its place in `classes`, None where a row has none."""

    problems: Sequence[Problem]
    labels: Sequence[int | None]
    name: str
    digest: str

    @property
    def prompts(self) -> list[Any]:
        return [problem.asked for problem in self.problems]

    @property
    def ids(self) -> list[str]:
        return [problem.id for problem in self.problems]


def read_labelled(
    source: Any,
    classes: Sequence[str],
    *,
    limit: int | None,
    fields: Mapping[str, str] | None,
    needed: bool,
    renamed: Renamed,
) -> Labelled:
    """Rows with a prompt and, where `needed`, a label that is one of the classes but for white space around it."""
    problems = read_problems(source, limit=limit, fields=fields, gold_needed=needed, renamed=renamed)
    places = {text.strip(): place for place, text in enumerate(classes)}
    if len(places) < len(classes):
        raise BadInput(
            f"Of the classes {', '.join(map(repr, classes))} two differ in white space alone, so that a label could be "
            "either: give each once."
        )
    labels: list[int | None] = []
    for problem in problems:
        gold = problem.gold[0].strip() if problem.gold else None
        if gold is not None and gold not in places:
            raise BadInput(
                f"The label {gold!r} of {problem.id!r} is none of the classes {', '.join(map(repr, classes))}: give them "
                "with --classes, or mend the row."
            )
        labels.append(None if gold is None else places[gold])
    named = isinstance(source, str | Path)
    # Of rows, too: an id may stay while its prompt changes, and what is stored of the old one must not be taken for it.
    read = json.dumps([[each.id, str(each.asked), list(each.gold)] for each in problems])
    digest = sha256_file(Path(source)) if named else hashlib.sha256(read.encode()).hexdigest()
    return Labelled(problems, labels, str(source) if named else "rows", digest)


def read_tested(
    source: Any, classes: Sequence[str], fields: Mapping[str, str] | None, renamed: Renamed
) -> Labelled | None:
    """Labelled rows to test on, of which some fit the temperature; None for none."""
    if source is None:
        return None
    found = read_labelled(source, classes, limit=None, fields=fields, needed=True, renamed=renamed)
    if len(found.problems) < FIT_ONE_IN:
        raise BadInput(
            f"There are {len(found.problems)} labelled prompts to test on, of which one in {FIT_ONE_IN} fits the "
            f"temperature: give {FIT_ONE_IN} or more, better some hundreds."
        )
    return found


def named_classes(
    source: Any, *, limit: int | None, fields: Mapping[str, str] | None, renamed: Renamed
) -> tuple[str, ...]:
    """The labels that occur, in order. Raises BadInput where there are fewer than two."""
    problems = read_problems(source, limit=limit, fields=fields, gold_needed=False, renamed=renamed)
    found = tuple(sorted({problem.gold[0] for problem in problems if problem.gold}))
    if len(found) < 2:
        raise BadInput(
            "The inputs have no two different labels to take the classes from: give --classes, the texts that may follow a "
            "prompt."
        )
    return found


def adapter_configuration(folder: Path) -> dict[str, Any]:
    """Of a plain LoRA adapter in safetensors. Raises BadInput for whatever else, with the reason."""
    if not (folder / CONFIGURATION).is_file():
        raise BadInput(f"{folder} holds no {CONFIGURATION}: give the folder of an adapter that PEFT wrote.")
    if not (folder / WEIGHTS).is_file():
        raise BadInput(f"{folder} holds no {WEIGHTS}: save the adapter with safe_serialization=True.")
    try:
        found = json.loads(read_regular(folder / CONFIGURATION))
        kind = found["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / CONFIGURATION} cannot be read ({error}): save the adapter again.") from error
    for name, plain in (("use_dora", False), ("bias", "none"), ("modules_to_save", None)):
        if (found.get(name) or plain) != plain:
            raise BadInput(
                f"{folder} is an adapter with {name} {found[name]!r}, and its weights are not A and B alone."
            )
    if kind != "LORA":
        raise BadInput(f"{folder} is an adapter of the kind {kind}, expected LORA.")
    return found


def same_base(stated: Any, given: Any) -> bool:
    """Whether an adapter's base is this model: by name, or as one folder."""
    if not stated or given is None or str(stated) == str(given):
        return True
    paths = Path(str(stated)).expanduser(), Path(str(given)).expanduser()
    return all(path.exists() for path in paths) and paths[0].resolve() == paths[1].resolve()


def reads(language_model: LanguageModel) -> str:
    """A digest of how a model reads prompts: its template, its date, its tokenizer."""
    tokenizer: Any = language_model.tokenizer
    template = tokenizer.chat_template if language_model.uses_chat_template else None
    rows, _ = encode_prompts(language_model, ["Which?"])
    return hashlib.sha256(json.dumps([template, rows]).encode()).hexdigest()


def check_base(folder: Path, stated: Any, given: Any) -> None:
    """Raises BadInput for an adapter of another base than the one given."""
    if not same_base(stated, given):
        raise BadInput(
            f"The adapter {folder} is of the base {stated}, not of {given}: leave model out, or give that one."
        )


@dataclass(frozen=True, eq=False)
class _Opened:
    """The base with the adapter, its inputs read, and those to test on."""

    language_model: LanguageModel
    base_digest: str
    classes: tuple[str, ...]
    inputs: Prompts
    tested: Prompts | None


@dataclass(frozen=True, eq=False, kw_only=True)
class _Bayes(Request):
    """What both jobs have."""

    adapter: Path
    model: Any
    classes: tuple[str, ...]
    labelled: Labelled
    test: Labelled | None
    batch_size: int
    loading: Mapping[str, Any]
    names: Mapping[str, str]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @contextlib.contextmanager
    def opened(self) -> Iterator[_Opened]:
        """What `open` gives; a model that was given as an object has no adapter again afterwards."""
        found = self.open()
        try:
            yield found
        finally:
            if isinstance(self.model, LanguageModel):
                adapters.detach(found.language_model)

    def open(self) -> _Opened:
        """Raises BadInput for an adapter that does not fit, and classes that are not one token."""
        stated = adapter_configuration(self.adapter)
        base = self.base(stated)
        digest = fingerprint(base.model)
        self.check(digest, base)
        classes = self.classes_of(base)
        inputs = read_prompts(base, self.labelled.prompts, classes, self.labelled.ids)
        tested = None
        if self.test is not None:
            tested = read_prompts(base, self.test.prompts, classes, self.test.ids)
            if list(tested.class_ids) != list(inputs.class_ids):
                raise BadInput(
                    "A class is another token behind the inputs than behind those to test on: end them alike."
                )
        return _Opened(adapters.attach_saved(base, self.adapter), digest, classes, inputs, tested)

    def classes_of(self, base: LanguageModel) -> tuple[str, ...]:
        """The texts that follow a prompt."""
        return self.classes

    def base(self, stated: Mapping[str, Any]) -> LanguageModel:
        name: Any = stated.get("base_model_name_or_path")
        revision = stated.get("revision")
        if isinstance(self.model, LanguageModel):
            if self.model.origin is not None:
                check_base(self.adapter, name, self.model.origin.name)
            return self.model
        if self.model is None and not name:
            raise BadInput(f"The adapter {self.adapter} names no base model: give it with model.")
        return load(self.model or name, revision=revision if self.model is None else None, **self.loading)

    def check(self, digest: str, base: LanguageModel) -> None:
        """What else must hold of the base."""

    def overlap(self) -> list[str]:
        """A note where prompts to test on are among the inputs, which makes every report of them too good."""
        if self.test is None:
            return []
        seen = set(map(str, self.labelled.prompts))
        count = sum(str(each) in seen for each in self.test.prompts)
        if not count:
            return []
        return [
            f"{count:,} of the {len(self.test.problems):,} prompts to test on are among the inputs: leave them out."
        ]

    def test_on(
        self, found: _Opened, logits: Tensor, predictions: Mapping[str, Tensor], passes: Mapping[str, int], seed: int
    ) -> Tested | None:
        """Cards on three of four inputs to test on; the temperature is fitted on the fourth. logits: the adapter's."""
        if self.test is None:
            return None
        labels = torch.tensor([label for label in self.test.labels if label is not None])
        order = torch.randperm(len(labels), generator=torch_stream(seed, 42))
        fitted, kept = order[: len(labels) // FIT_ONE_IN], order[len(labels) // FIT_ONE_IN :]
        t = temperature(logits[fitted], labels[fitted])
        every = {MLE: logits.softmax(-1), TEMPERATURE: (logits / t).softmax(-1), **predictions}
        shown = {name: p[kept] for name, p in every.items()}
        return Tested(cards(shown, {MLE: 1, TEMPERATURE: 1, **passes}, labels[kept], seed=seed), t, len(fitted))


@dataclass(frozen=True, eq=False, kw_only=True)
class Bayesianizing(_Bayes):
    """A request to make an adapter Bayesian, read and found right."""

    teacher: str
    members: tuple[Path, ...]
    named: bool
    settings: TeacherSettings

    @classmethod
    def read(
        cls,
        adapter: Path,
        inputs: Any,
        *,
        model: Any,
        teacher: str,
        classes: tuple[str, ...] | None,
        test: Any,
        members: tuple[Path, ...] | None,
        limit: int | None,
        fields: Mapping[str, str] | None,
        batch_size: int,
        loading: dict[str, Any],
        settings: TeacherSettings,
    ) -> Bayesianizing:
        """Raises BadInput for a wrong request; loads no model."""
        loading["date"] = loading["date"] or DATE
        stated = adapter_configuration(adapter)
        if isinstance(model, str | Path):
            check_base(adapter, stated.get("base_model_name_or_path"), model)
        members = members or ()
        if (teacher == "ensemble") != bool(members):
            raise BadInput("The teacher ensemble takes further adapters with members, and no other teacher does.")
        for member in members:
            other = adapter_configuration(member)
            if not same_base(other.get("base_model_name_or_path"), stated.get("base_model_name_or_path")):
                raise BadInput(
                    f"The adapter {member} is of the base {other['base_model_name_or_path']}, unlike {adapter}."
                )
            for name in ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"):
                if (other.get(name) or None) != (stated.get(name) or None):
                    raise BadInput(f"The adapter {member} has another {name} than {adapter}: train them alike.")
        digests = [sha256_file(each / WEIGHTS) for each in (adapter, *members)]
        if len(set(digests)) < len(digests):
            raise BadInput("Two adapters of the ensemble are one and the same: give such of different seeds.")
        if not settings.sigma_low < settings.sigma_high:
            raise BadInput(f"sigma_low {settings.sigma_low:g} must be below sigma_high {settings.sigma_high:g}.")
        renamed = Renamed(fields)
        found = named_classes(inputs, limit=limit, fields=fields, renamed=renamed) if classes is None else classes
        labelled = read_labelled(inputs, found, limit=limit, fields=fields, needed=teacher == "blob", renamed=renamed)
        tested = read_tested(test, found, fields, renamed)
        renamed.check()
        read = {"inputs": labelled.digest}
        for name, each in {"adapter": adapter, **{f"member {n}": each for n, each in enumerate(members, 2)}}.items():
            read |= {name: sha256_file(each / WEIGHTS), f"{name}'s configuration": sha256_file(each / CONFIGURATION)}
        read |= {} if tested is None else {"test": tested.digest}
        return cls(
            adapter=adapter,
            model=model,
            classes=found,
            labelled=labelled,
            test=tested,
            batch_size=batch_size,
            loading=loading,
            names={"adapter": str(adapter), "inputs": labelled.name, "test": tested.name if tested else "none"},
            inputs={name: digest for name, digest in read.items() if digest},
            resolved={**settings.model_dump(), "date": loading["date"], "classes": list(found)},
            teacher=teacher,
            members=members,
            named=classes is not None,
            settings=settings,
        )

    def classes_of(self, base: LanguageModel) -> tuple[str, ...]:
        """Labels that were not given as classes follow a prompt as completions that are taught here do, after a blank."""
        if self.named or base.uses_chat_template:
            return self.classes
        ends = {str(prompt).rstrip(" ")[-1:].isspace() for prompt in self.labelled.prompts}
        if len(ends) > 1:
            raise BadInput(
                "Some prompts end in white space and others not, so that a label is another token behind each: end them "
                "alike, or give --classes."
            )
        return (
            self.classes
            if ends == {True}
            else tuple(text if text[:1].isspace() else f" {text}" for text in self.classes)
        )

    def plan(self) -> BayesPlan:
        with self.opened() as found:
            return self._planned(found)

    def _planned(self, found: _Opened) -> BayesPlan:
        self._check_adapter(found.language_model)
        n, given = len(self.labelled.problems), self.settings
        searched = min(given.anchors, n) * (given.draws * 12 + 1) if self.teacher == "tfb" else 0
        fitted = n if self.teacher == "laplace" else 0
        each = 1 if self.teacher == "laplace" else len(self.members) + 1 if self.members else given.draws
        tested = 0 if self.test is None else len(self.test.problems)
        tokenizer: Any = found.language_model.tokenizer
        return BayesPlan(
            source=found.language_model.source,
            adapter=str(self.adapter),
            what=f"Teacher: {self.teacher}",
            inputs=n,
            tested=tested,
            classes=found.classes,
            shown=tokenizer.decode(found.inputs.rows[0]),
            passes=searched + fitted + (n + tested) * (each + 1),
            steps=given.steps if self.teacher == "blob" else 0,
        )

    def work(self, folder: Path | None) -> Bayesianized:
        with self.opened() as found:
            return self._worked(found, folder)

    def _worked(self, found: _Opened, folder: Path | None) -> Bayesianized:
        language_model, given = found.language_model, self.settings
        self._check_adapter(language_model)
        if folder is not None:
            adapters.require_base(language_model)
        # Before anything is trained: the adapter as it was given.
        before = class_logits(language_model, found.inputs, batch_size=self.batch_size)
        tested_before = self._tested(found, language_model)
        search: tfb.SigmaSearch | None = None
        notes: list[str] = []
        teacher: teachers.Teacher
        if self.teacher == "tfb":
            search = tfb.search(
                language_model,
                found.inputs,
                anchors=self._anchors(),
                draws=given.draws,
                seed=given.seed,
                batch_size=self.batch_size,
                low=given.sigma_low,
                high=given.sigma_high,
                tolerance=given.tolerance,
                compat=given.compat,
            )
            teacher = tfb.Tfb(search.sigma, given.draws, given.seed)
        elif self.teacher == "laplace":
            teacher = laplace_lora.laplace(
                language_model, found.inputs, found.inputs.class_ids, seed=given.seed, batch_size=self.batch_size
            )
        elif self.teacher == "ensemble":
            teacher = Ensemble([teachers.own_factors(language_model), *map(_factors, self.members)])
        elif self.teacher == "mc-dropout":
            teacher = McDropout(given.dropout, given.draws, given.seed)
        else:
            teacher, notes = self._blob(found, folder)
        under = in_batches(
            language_model, found.inputs, _predicted(teacher, language_model, found.inputs), self.batch_size
        )
        tested = None
        if found.tested is not None and tested_before is not None:
            predicted = _predicted(teacher, language_model, found.tested)
            p = in_batches(language_model, found.tested, predicted, self.batch_size)
            tested = self.test_on(found, tested_before, {TEACHER: p}, {TEACHER: teacher.passes}, given.seed)
        if folder is not None:
            adapters.export(language_model, folder)
            teachers.save(teacher, folder)
            about = {
                "classes": list(found.classes),
                "base": found.base_digest,
                "template": language_model.uses_chat_template,
                "reads": reads(language_model),
            }
            write_atomic(folder / ABOUT, json.dumps(about, indent=2, ensure_ascii=False))
        return Bayesianized(
            kind=self.teacher,
            names=self.names,
            source=language_model.source,
            settings=given.model_dump(),
            classes=found.classes,
            inputs=len(self.labelled.problems),
            passes=teacher.passes,
            confidence={MLE: _confidence(before.softmax(-1)), TEACHER: _confidence(under)},
            sigma=search.sigma if search else float("nan"),
            tried=tuple(sorted(search.tried.items())) if search else (),
            edge=search.edge if search else "",
            precision=getattr(teacher, "precision", float("nan")),
            tested=tested,
            notes=(*self.overlap(), *notes),
        )

    def scratch(self) -> tuple[str, ...]:
        return (STATE,)

    def _check_adapter(self, language_model: LanguageModel) -> None:
        """Raises BadInput for an adapter that this teacher cannot be made of."""
        if self.teacher == "laplace":
            laplace_lora.adapted_head(language_model)
        elif self.teacher != "blob":
            own = teachers.own_factors(language_model)
            if self.members:
                Ensemble([own, *map(_factors, self.members)])

    def _anchors(self) -> list[int]:
        n = len(self.labelled.problems)
        order = torch.randperm(n, generator=torch_stream(self.settings.seed, 43))
        return sorted(order[: self.settings.anchors].tolist())

    def _tested(self, found: _Opened, language_model: LanguageModel) -> Tensor | None:
        if found.tested is None:
            return None
        return class_logits(language_model, found.tested, batch_size=self.batch_size)

    def _blob(self, found: _Opened, folder: Path | None) -> tuple[blob.Blob, list[str]]:
        given = self.settings
        stored, notes = ({}, []) if folder is None else stored_state(folder / STATE)
        if stored and stored.get("base") != found.base_digest:
            raise BadInput(
                f"{found.language_model.name} is not the base that this training was begun on: its weights are others now. "
                "Give the same base, or begin anew with --fresh."
            )
        labels = [label for label in self.labelled.labels if label is not None]
        trained, _ = blob.train(
            found.language_model,
            found.inputs,
            labels,
            _trainer(given),
            blob.BlobSettings(
                epsilon=given.epsilon, beta=given.beta, gamma=given.gamma, kl_learning_rate=given.kl_learning_rate
            ),
            draws=given.draws,
            save=None if folder is None
            else lambda state: save_state(folder / STATE, {"base": found.base_digest, "training": state}),
            save_every=EVERY,
            state=stored.get("training"),
        )  # fmt: skip
        return trained, notes


@dataclass(frozen=True, eq=False, kw_only=True)
class Distilling(_Bayes):
    """A request to distil a teacher, read and found right. about: what bayesianize wrote of it."""

    teacher: teachers.Teacher
    about: Mapping[str, Any]
    divergence: Divergence
    label_weight: float
    rank: int | None
    settings: StudentSettings

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    @closed
    def read(
        cls,
        teacher: Path,
        inputs: Any,
        *,
        model: Any,
        test: Any,
        divergence: Divergence,
        label_weight: float,
        rank: int | None,
        limit: int | None,
        fields: Mapping[str, str] | None,
        batch_size: int,
        loading: dict[str, Any],
        settings: StudentSettings,
    ) -> Distilling:
        """Raises BadInput for a wrong request; loads no model."""
        loading["date"] = loading["date"] or DATE
        stated = adapter_configuration(teacher)
        if isinstance(model, str | Path):
            check_base(teacher, stated.get("base_model_name_or_path"), model)
        posterior = teachers.load(teacher)
        try:
            about = json.loads(read_regular(teacher / ABOUT))
            found = tuple(map(str, about["classes"]))
            for name in ("base", "template", "reads"):
                if name not in about:
                    raise KeyError(name)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{teacher / ABOUT} cannot be read ({error}): make the teacher again.") from error
        renamed = Renamed(fields)
        labelled = read_labelled(inputs, found, limit=limit, fields=fields, needed=label_weight > 0, renamed=renamed)
        tested = read_tested(test, found, fields, renamed)
        renamed.check()
        read = {"adapter": sha256_file(teacher / WEIGHTS), "posterior": sha256_file(teacher / teachers.POSTERIOR)}
        read |= {"configuration": sha256_file(teacher / CONFIGURATION), "classes": sha256_file(teacher / ABOUT)}
        read |= {"inputs": labelled.digest, "test": tested.digest if tested else ""}
        return cls(
            adapter=teacher,
            model=model,
            classes=found,
            labelled=labelled,
            test=tested,
            batch_size=batch_size,
            loading=loading,
            names={"teacher": str(teacher), "inputs": labelled.name, "test": tested.name if tested else "none"},
            inputs={name: digest for name, digest in read.items() if digest},
            resolved={**settings.model_dump(), "date": loading["date"], "rank": rank or stated["r"]},
            teacher=posterior,
            about=about,
            divergence=divergence,
            label_weight=label_weight,
            rank=rank,
            settings=settings,
        )

    def check(self, digest: str, base: LanguageModel) -> None:
        if digest != self.about["base"]:
            raise BadInput(
                f"The teacher {self.adapter} was made on another base than {base.name}: give the one it was made on."
            )
        if base.uses_chat_template != self.about["template"]:
            was = "in" if self.about["template"] else "without"
            raise BadInput(f"The teacher read prompts {was} the chat template: give the same chat_template as then.")
        if reads(base) != self.about["reads"]:
            raise BadInput("The teacher read prompts in another template or with another date: give the same as then.")

    def plan(self) -> BayesPlan:
        with self.opened() as found:
            return self._planned(found)

    def _planned(self, found: _Opened) -> BayesPlan:
        n, tested = len(self.labelled.problems), 0 if self.test is None else len(self.test.problems)
        tokenizer: Any = found.language_model.tokenizer
        return BayesPlan(
            source=found.language_model.source,
            adapter=str(self.adapter),
            what=f"Teacher: {self.teacher.kind}, {self.teacher.passes} passes; student: {self.divergence}",
            inputs=n,
            tested=tested,
            classes=self.classes,
            shown=tokenizer.decode(found.inputs.rows[0]),
            passes=(n + tested) * (self.teacher.passes + 2),
            steps=self.settings.steps,
        )

    def work(self, folder: Path | None) -> Distilled:
        found = self.open()
        carrying = [found.language_model]
        try:
            return self._worked(found, carrying, folder)
        except BaseException:
            if isinstance(self.model, LanguageModel):  # so that the same call with the same object goes on
                adapters.detach(carrying[-1])
            raise

    def _worked(self, found: _Opened, carrying: list[LanguageModel], folder: Path | None) -> Distilled:
        """carrying: gets the student when the teacher's adapter is taken off for it."""
        language_model, given = found.language_model, self.settings
        if folder is not None:
            adapters.require_base(language_model)
        rows = Rows(None if folder is None else folder / TARGETS)
        wanted = targets(
            self.teacher,
            language_model,
            found.inputs,
            names=self.labelled.ids,
            rows=rows,
            batch_size=self.batch_size,
        )
        logits, predictions = None, {}
        if found.tested is not None:
            logits = class_logits(language_model, found.tested, batch_size=self.batch_size)
            under = _predicted(self.teacher, language_model, found.tested)
            predictions[TEACHER] = in_batches(language_model, found.tested, under, self.batch_size)
        student = self._student(language_model)
        carrying.append(student)
        before = class_logits(student, found.inputs, batch_size=self.batch_size)
        stored, notes = ({}, []) if folder is None else stored_state(folder / STATE)
        labels = [label for label in self.labelled.labels if label is not None] if self.label_weight > 0 else None
        fitted = distill(
            student,
            found.inputs,
            wanted,
            _trainer(given),
            kind=self.divergence,
            labels=labels,
            label_weight=self.label_weight,
            log=None if folder is None else folder / "metrics.jsonl",
            save=None if folder is None else lambda state: save_state(folder / STATE, state),
            save_every=EVERY,
            state=stored or None,
        )
        after = class_logits(student, found.inputs, batch_size=self.batch_size)
        tested = None
        if found.tested is not None and logits is not None:
            predictions[STUDENT] = class_logits(student, found.tested, batch_size=self.batch_size).softmax(-1)
            tested = self.test_on(found, logits, predictions, {TEACHER: self.teacher.passes, STUDENT: 1}, given.seed)
        gap = float("nan") if folder is None else self._written(student, found.inputs, after, folder)
        return Distilled(
            names=self.names,
            source=language_model.source,
            settings={**given.model_dump(), "divergence": self.divergence, "label_weight": self.label_weight},
            classes=self.classes,
            inputs=len(self.labelled.problems),
            teacher=self.teacher.kind,
            teacher_passes=self.teacher.passes,
            steps=fitted.steps,
            divergence={
                when: divergence(each, wanted, self.divergence).mean().item()
                for when, each in (("before", before), ("after", after))
            },
            confidence={TEACHER: _confidence(wanted), STUDENT: _confidence(after.softmax(-1))},
            moved=fitted.moved,
            gap=gap,
            tested=tested,
            notes=(*self.overlap(), *rows.damaged, *notes),
            student=student,
        )

    def scratch(self) -> tuple[str, ...]:
        return (STATE,)

    def _student(self, language_model: LanguageModel) -> LanguageModel:
        """The base with a fresh adapter on the maps that the teacher's is on."""
        stated = adapter_configuration(self.adapter)
        maps = list(adapters.adapted_maps(language_model))
        rank = self.rank or stated["r"]
        alpha = stated["lora_alpha"] / stated["r"] * rank
        return adapters.attach(adapters.detach(language_model), rank, alpha, maps, seed=self.settings.seed)

    def _written(self, student: LanguageModel, inputs: Prompts, logits: Tensor, folder: Path) -> float:
        """Writes the student; the largest difference of a class logit when it is read again, merged. Raises WorkFailed."""
        adapters.export(student, folder)
        some = range(min(len(inputs), 32))
        again = class_logits(student.reload(folder), inputs, batch_size=self.batch_size, indices=some)
        gap = (again - logits[: len(some)]).abs().max().item()
        if not gap <= APART.get(student.model.dtype, 0.05):
            raise WorkFailed(
                f"the student that was written differs by {gap:.2g} in a class logit from the trained one, so it was not "
                f"given its name; the trained weights are in {folder / STATE}."
            )
        return gap


def _trainer(given: TeacherSettings | StudentSettings) -> TrainerSettings:
    """The optimizer of teachers and students alike."""
    return TrainerSettings(
        steps=given.steps,
        learning_rate=given.learning_rate,
        batch_size=given.train_batch_size,
        warmup_ratio=0.06,
        epsilon=1e-6,
        seed=given.seed,
    )


def _factors(member: Path) -> teachers.Factors:
    """A and B of each map of an adapter, as PEFT writes them."""
    from safetensors.torch import load_file

    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(member / WEIGHTS).items():
        name, _, factor = key.removeprefix("base_model.model.").rpartition(".lora_")
        found.setdefault(name, {})[factor.removesuffix(".weight")] = tensor.float()
    try:
        return {name: (pair["A"], pair["B"]) for name, pair in found.items()}
    except KeyError as error:
        raise BadInput(f"{member / WEIGHTS} has no {error} for one of its maps: save the adapter again.") from None


def _predicted(teacher: teachers.Teacher, language_model: LanguageModel, inputs: Prompts) -> teachers.Drawn:
    drawn = teacher.on(language_model, inputs)
    return lambda indices: averaged(drawn(indices))


def _confidence(probabilities: Tensor) -> float:
    return probabilities.max(-1).values.mean().item()
