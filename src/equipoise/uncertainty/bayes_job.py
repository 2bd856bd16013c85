"""Two jobs: make a LoRA adapter a distribution over adapters, and distil what that predicts into one adapter."""

import datetime
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field

from equipoise.core.job import Request, job
from equipoise.core.options import Setting
from equipoise.uncertainty.bayes_result import Bayesianized, Distilled

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

    ModelLike = str | Path | LanguageModel
    Prompts = str | Path | Iterable[Mapping[str, Any]]
else:  # what a command line can give
    ModelLike = str | Path
    Prompts = Path

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
TeacherKind = Literal["tfb", "blob", "laplace", "ensemble", "mc-dropout"]
DivergenceKind = Literal["forward", "reverse", "js"]


class TeacherSettings(BaseModel, frozen=True, extra="forbid"):
    """How each teacher is found and drawn from."""

    draws: int = Field(default=10, ge=1, description="Of the weights, whose predictions are averaged; not of laplace.")
    sigma_low: float = Field(default=0.001, gt=0, description="tfb: the least sigma.")
    sigma_high: float = Field(default=0.015, gt=0, description="tfb: the largest sigma.")
    tolerance: float = Field(default=0.003, gt=0, description="tfb: relative change of the NLL that is borne.")
    anchors: int = Field(default=500, ge=1, description="tfb: inputs that sigma is looked for on, drawn by the seed.")
    compat: bool = Field(
        default=False, description="tfb: search as the released code does (change divided by the anchors)."
    )
    dropout: float = Field(
        default=0.1, ge=0, lt=1, description="mc-dropout: probability that an input of A is dropped."
    )
    steps: int = Field(default=300, ge=1, description="blob: optimizer steps.")
    learning_rate: float = Field(default=5e-4, gt=0, description="blob: peak rate of AdamW.")
    train_batch_size: int = Field(default=16, ge=1, description="blob: inputs of a step.")
    epsilon: float = Field(default=0.05, gt=0, description="blob: G begins uniform in [epsilon / sqrt 2, epsilon].")
    beta: float = Field(default=0.2, gt=0, description="blob: standard deviation of the prior.")
    gamma: float = Field(default=8.0, gt=0, description="blob: decides the length of a cycle of the KL's weights.")
    kl_learning_rate: float = Field(default=0.01, gt=0, description="blob: peak rate of the SGD steps on the KL.")
    seed: int = Field(default=0, ge=0, description="Of the draws, the anchors, the training and the division of test.")


class StudentSettings(BaseModel, frozen=True, extra="forbid"):
    """How the student learns."""

    steps: int = Field(default=300, ge=1, description="Optimizer steps.")
    learning_rate: float = Field(default=5e-4, gt=0, description="Peak rate of AdamW.")
    train_batch_size: int = Field(default=16, ge=1, description="Inputs of a step.")
    seed: int = Field(default=0, ge=0, description="Of the student's start, the order, and the division of test.")


@job("uncertainty bayesianize", Bayesianized, rest=TeacherSettings)
def bayesianize(
    adapter: Path,
    *,
    inputs: Annotated[Prompts, Setting(alias=("--dataset",), objects=True)],
    model: Annotated[ModelLike | None, Setting(alias=("--model-name-or-path", "-m"), objects=True)] = None,
    teacher: TeacherKind = "tfb",
    classes: tuple[str, ...] | None = None,
    test: Annotated[Prompts | None, Setting(objects=True)] = None,
    members: tuple[Path, ...] | None = None,
    limit: Count | None = None,
    fields: dict[str, str] | None = None,
    batch_size: Annotated[Count, Setting(stored=False)] = 32,
    device: Annotated[str, Setting(stored=False)] = "auto",
    dtype: str = "auto",
    chat_template: str = "auto",
    date: datetime.date | None = None,
    trust_remote_code: Annotated[bool, Setting(typed=bool)] = False,
    **settings: Any,
) -> Request:
    """Make a trained LoRA classifier a distribution over adapters, whose averaged prediction is less sure of itself.

    Your own: `equipoise uncertainty bayesianize --adapter ./lora --inputs train.jsonl --test test.jsonl`

    The folder gets the adapter, posterior.safetensors beside it, and with test a report: reliability diagrams, NLL,
    Brier and ECE of the adapter, of it with a temperature, of the teacher. `uncertainty distill` makes one adapter of it.

    Parameters
    ----------
    adapter
        A folder that PEFT wrote: plain LoRA, in safetensors.
    inputs
        JSONL, CSV or Parquet with a prompt, those the adapter was trained on; in Python also rows. Labels (answer, gold) are
        needed by blob, and for classes that are not given.
    model
        The base, if not the one that the adapter names: folder, hub id or "smollm2"; in Python also a LanguageModel.
    teacher
        tfb: as much noise as the adapter bears, without training; blob: trained on, with labels; laplace: of the output
        matrix's adapter, in closed form; ensemble: with members; mc-dropout.
    classes
        The texts that may follow a prompt, one token each (" A", " B"); not given: the labels of inputs.
    test
        Labelled prompts that nothing was trained on. A quarter of them fits the temperature, the others are tested on.
    members
        ensemble: further adapters of the same base, rank and maps.
    limit
        Only the first so many inputs.
    fields
        The file's own names of fields, where it has others: prompt=ask,gold=label.
    batch_size
        Prompts that are read at once.
    device
        auto, cpu, cuda, cuda:1, mps.
    dtype
        auto (float32 on a CPU), float32, bfloat16, float16.
    chat_template
        auto, none, or a file with a Jinja template: as the adapter was trained.
    date
        What chat templates write as today's, the same on every day: 2024-07-26 when not given.
    trust_remote_code
        Run code that comes with a model of the hub.
    """
    from equipoise.uncertainty.bayes_work import Bayesianizing

    return Bayesianizing.read(
        adapter,
        inputs,
        model=model,
        teacher=teacher,
        classes=classes,
        test=test,
        members=members,
        limit=limit,
        fields=fields,
        batch_size=batch_size,
        loading=_loading(device, dtype, chat_template, date, trust_remote_code),
        settings=TeacherSettings(**settings),
    )


@job("uncertainty distill", Distilled, rest=StudentSettings)
def distill(
    teacher: Path,
    *,
    inputs: Annotated[Prompts, Setting(alias=("--dataset",), objects=True)],
    model: Annotated[ModelLike | None, Setting(alias=("--model-name-or-path", "-m"), objects=True)] = None,
    test: Annotated[Prompts | None, Setting(objects=True)] = None,
    divergence: DivergenceKind = "forward",
    label_weight: Annotated[float, Field(ge=0)] = 0.0,
    rank: Count | None = None,
    limit: Count | None = None,
    fields: dict[str, str] | None = None,
    batch_size: Annotated[Count, Setting(stored=False)] = 32,
    device: Annotated[str, Setting(stored=False)] = "auto",
    dtype: str = "auto",
    chat_template: str = "auto",
    date: datetime.date | None = None,
    trust_remote_code: Annotated[bool, Setting(typed=bool)] = False,
    **settings: Any,
) -> Request:
    """Teach one LoRA adapter what a Bayesian teacher predicts on average: its calibration for a single pass.

    Your own: `equipoise uncertainty distill --teacher ./teacher --inputs train.jsonl --test test.jsonl --out ./student`

    The folder gets an ordinary PEFT adapter, targets.jsonl (what the teacher predicts of each input) and with test a report:
    reliability diagrams, NLL, Brier and ECE of the adapter, of it with a temperature, of teacher and student. The same
    command goes on where it was stopped.

    Parameters
    ----------
    teacher
        A folder that uncertainty bayesianize wrote.
    inputs
        JSONL, CSV or Parquet with a prompt: training inputs, whose labels are not used; in Python also rows.
    model
        The base, if not the one that the teacher's adapter names; in Python also a LanguageModel.
    test
        Labelled prompts that nothing was trained on. A quarter of them fits the temperature, the others are tested on.
    divergence
        forward: KL(teacher || student); reverse: KL(student || teacher); js: Jensen-Shannon.
    label_weight
        Of the cross entropy with the labels, added to the divergence; 0 uses none.
    rank
        Of the student; not given: the teacher's adapter's, on the same maps.
    limit
        Only the first so many inputs.
    fields
        The file's own names of fields, where it has others: prompt=ask,gold=label.
    batch_size
        Prompts that are read at once.
    device
        auto, cpu, cuda, cuda:1, mps.
    dtype
        auto (float32 on a CPU), float32, bfloat16, float16.
    chat_template
        auto, none, or a file with a Jinja template: as the teacher was made.
    date
        What chat templates write as today's, the same on every day: 2024-07-26 when not given.
    trust_remote_code
        Run code that comes with a model of the hub.
    """
    from equipoise.uncertainty.bayes_work import Distilling

    return Distilling.read(
        teacher,
        inputs,
        model=model,
        test=test,
        divergence=divergence,
        label_weight=label_weight,
        rank=rank,
        limit=limit,
        fields=fields,
        batch_size=batch_size,
        loading=_loading(device, dtype, chat_template, date, trust_remote_code),
        settings=StudentSettings(**settings),
    )


def _loading(device: str, dtype: str, chat_template: str, date: datetime.date | None, trust: bool) -> dict[str, Any]:
    return {
        "device": device,
        "dtype": dtype,
        "chat_template": chat_template,
        "date": date,
        "trust_remote_code": trust,
    }
