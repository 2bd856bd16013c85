"""The job `think`: let a reasoning model answer prompts while its thinking is steered."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from equipoise.core.job import Request, job
from equipoise.core.options import Setting
from equipoise.decoding.result import ThinkRun

if TYPE_CHECKING:
    from equipoise.data.problems import Problem
    from equipoise.language.model import LanguageModel

    Prompts = str | Path | Sequence[Problem | Mapping[str, Any]]
    ModelLike = str | Path | LanguageModel
else:  # what a command line can give
    Prompts = Path
    ModelLike = str | Path

Count = Annotated[int, Field(ge=1)]
Tokens = Annotated[int, Field(ge=0)]
Limit = Annotated[int, Field(ge=-1)]
Positive = Annotated[float, Field(gt=0)]
Least = Annotated[float, Field(ge=0)]
Chance = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
ControlName = Literal["alphaone", "s1", "cap", "random", "none"]
ScheduleKind = Literal["linear", "increase", "constant", "exponential"]
Preset = Literal["auto", "r1", "qwq", "qwen3"]
VerifierKind = Literal["exact", "number", "choice", "regex", "f1", "math", "tests"]


@job("think", ThinkRun)
def think(
    model: Annotated[ModelLike, Setting(alias=("--model-name-or-path", "-m"), objects=True)],
    *,
    prompts: Annotated[Prompts, Setting(alias=("--dataset",), objects=True)],
    control: ControlName = "alphaone",
    alpha: Positive = 1.4,
    mean_thinking: Positive | None = None,
    calibration: Annotated[Prompts | None, Setting(objects=True)] = None,
    calibrate: Count = 10,
    schedule: ScheduleKind = "linear",
    p: Chance = 0.1,
    gamma: Least = 0.3,
    tau: Positive = 1.0,
    times: Count = 2,
    preset: Preset = "auto",
    opening: str | None = None,
    closing: str | None = None,
    word: str | None = None,
    min_thinking: Tokens = 0,
    max_thinking: Limit = -1,
    guard: bool = True,
    answer_schema: Path | None = None,
    verifier: VerifierKind | None = None,
    max_new_tokens: Count = 8192,
    temperature: Least = 0.6,
    top_p: Share = 0.95,
    seed: Tokens = 0,
    limit: Count | None = None,
    fields: dict[str, str] | None = None,
    batch_size: Annotated[Count, Setting(stored=False)] = 16,
    device: Annotated[str, Setting(stored=False)] = "auto",
    dtype: str = "auto",
    chat_template: str = "auto",
    date: datetime.date | None = None,
    trust_remote_code: Annotated[bool, Setting(typed=bool)] = False,
    unsafe_execution: Annotated[bool, Setting(typed=bool)] = False,
) -> Request:
    """Answer prompts with a reasoning model whose thinking is steered: longer before a moment, over soon after it.

    Example: `equipoise think --model ./r1-distill --prompts prompts.jsonl --control alphaone --alpha 1.4 --verifier math`

    The folder gets thoughts.jsonl (thinking and answer apart, their tokens, every place where something was or could have
    been written in the model's stead with its chance and draw) and a report: tokens, accuracy where there is gold, accuracy
    within any budget of tokens. The same command goes on where it was stopped.

    Parameters
    ----------
    model
        A model that thinks between tags: folder, GGUF file or hub id; in Python also a LanguageModel.
    prompts
        JSONL, CSV or Parquet with a prompt, and a gold answer where a verifier is given; in Python also problems.
    control
        alphaone: words inserted before the moment, the end after it. s1: the end replaced by the word. cap: the end at the
        moment. random: about as many words as alphaone would insert, at random times. none: the model as it is.
    alpha
        The moment is alpha times the mean number of thinking tokens.
    mean_thinking
        That number, where it is known. Not given: it is measured, without any control and without least and most tokens.
    calibration
        Prompts to measure it on; not given: the first of the prompts themselves, also beyond the limit, which leaks a
        little of them.
    calibrate
        On how many prompts it is measured.
    schedule
        The chance of the word behind t tokens, of alphaone: 1 - t/moment, t/moment, p, or exp(-gamma t / tau).
    p
        The chance of the constant schedule.
    gamma
        Of the exponential schedule.
    tau
        The number of tokens that gamma is of; 1 is the paper's, by which hardly anything is inserted.
    times
        How often s1 replaces the end.
    preset
        The tags of a family of models; auto finds those that the tokenizer knows.
    opening
        The tag that begins the thinking, of a model with other tags.
    closing
        The tag that ends it.
    word
        The word of transition that is inserted, and replaced after the moment: Wait.
    min_thinking
        Tokens of thinking at least, tags included.
    max_thinking
        Tokens of thinking at most, tags included, -1 for no limit; the rest of max_new_tokens is then left for the answer.
    guard
        Nothing is done outside the thinking; off: as the released code does.
    answer_schema
        A file with a JSON schema, which the answer follows once the thinking has ended, and not where it never began.
    verifier
        How an answer is compared with the gold one; not given: accuracy is not measured.
    max_new_tokens
        Tokens of thinking and answer at most.
    temperature
        Of sampling; 0: the likeliest answer.
    top_p
        The likeliest tokens that together have this share are sampled from.
    seed
        Of the tokens and of the control's draws.
    limit
        Only the first so many prompts.
    fields
        The file's own names of fields, where it has others: prompt=ask,gold=reply.
    batch_size
        Prompts that are thought about at once.
    device
        auto, cpu, cuda, cuda:1, mps.
    dtype
        auto (float32 on a CPU), float32, bfloat16, float16.
    chat_template
        auto, none, or a file with a Jinja template.
    date
        What chat templates write as today's, the same on every day: 2024-07-26 when not given.
    trust_remote_code
        Run code that comes with a model of the hub.
    unsafe_execution
        Run generated programs (verifier tests) also where this machine cannot isolate them.
    """
    from equipoise.decoding.steering import Steering, Wanted

    wanted = Wanted(
        control=control, alpha=alpha, mean_thinking=mean_thinking, calibrate=calibrate, schedule=schedule, p=p, gamma=gamma,
        tau=tau, times=times, preset=preset, opening=opening, closing=closing, word=word, min_thinking=min_thinking,
        max_thinking=max_thinking, guard=guard, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
        seed=seed,
    )  # fmt: skip
    return Steering.read(
        model,
        prompts,
        wanted,
        calibration=calibration,
        schema=answer_schema,
        verifier=verifier,
        unsafe=unsafe_execution,
        limit=limit,
        fields=fields,
        batch_size=batch_size,
        loading={
            "device": device,
            "dtype": dtype,
            "chat_template": chat_template,
            "date": date,
            "trust_remote_code": trust_remote_code,
        },
    )
