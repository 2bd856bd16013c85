"""Two jobs: fit a scorer that says which prompts a model will solve, and use it on new ones."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

from pydantic import BaseModel, Field

from equipoise.chat.options import CallBudget, Connections, ModelArguments, ModelPrices, Replay
from equipoise.core.job import Request, job
from equipoise.core.options import Setting
from equipoise.reinforcement.job import ModelLike, Problems, RewardLike, VerifierKind
from equipoise.reinforcement.solvable_result import Solvable, SolvableScores

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class FitSettings(BaseModel, frozen=True, extra="forbid"):
    """How a model is asked, and how the critic learns from what it answered."""

    samples: Count = Field(default=4, description="Responses to each prompt.")
    max_new_tokens: Count = Field(default=256, description="Tokens of a response at most.")
    temperature: Positive = Field(default=1.0, description="At which responses are sampled.")
    rollout_batch_size: Annotated[Count, Setting(stored=False)] = Field(
        default=64, description="Responses that a model here writes at once."
    )
    epochs: Count = Field(default=20, description="Passes of the critic over its prompts at most.")
    patience: Count = Field(
        default=4, description="Passes without a lower loss on other prompts, after which it stops."
    )
    learning_rate: Positive | None = Field(
        default=None, description="Of the critic; when not given, by the number of its parameters."
    )
    batch_size: Count = Field(default=32, description="Prompts of an optimizer step.")
    micro_batch_size: Annotated[Count | None, Setting(stored=False)] = Field(
        default=None, description="Prompts in memory at once."
    )
    warmup_ratio: Share = Field(default=0.1, description="Share of the optimizer steps in which the rate rises.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.01, description="Of AdamW.")
    max_grad_norm: Positive = Field(default=1.0, description="Largest norm of a gradient.")
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Of the division of the prompts, the draws of a model here, and the critic's start."
    )


@job("solvable fit", Solvable, rest=FitSettings)
def fit(
    model: Annotated[ModelLike, Setting(alias=("--model-name-or-path", "-m"), objects=True)],
    *,
    prompts: Annotated[Problems, Setting(alias=("--dataset",), objects=True)],
    verifier: VerifierKind | None = None,
    reward: Annotated[RewardLike | None, Setting(objects=True, typed=bool)] = None,
    critic: str | Path | None = None,
    limit: Count | None = None,
    fields: dict[str, str] | None = None,
    model_url: str | None = None,
    model_args: ModelArguments = None,
    budget: CallBudget = None,
    prices: ModelPrices = None,
    max_connections: Connections = None,
    replay: Replay = None,
    tokenizer: Annotated[Any, Setting(objects=True, python=True, stored=False)] = None,
    save_every: Annotated[int, Field(ge=1), Setting(stored=False)] = 20,
    device: Annotated[str, Setting(stored=False)] = "auto",
    dtype: str = "auto",
    chat_template: str = "auto",
    date: datetime.date | None = None,
    trust_remote_code: Annotated[bool, Setting(typed=bool)] = False,
    unsafe_execution: Annotated[bool, Setting(typed=bool)] = False,
    **settings: Any,
) -> Request:
    """Fit a scorer that says, of a prompt alone, how likely a model is to solve it; calibrated and tested on other prompts.

    Example that runs: `equipoise solvable fit --model tiny --prompts examples/chains.jsonl --verifier number
    --max-new-tokens 40`

    Your own, with a server that answers: `equipoise solvable fit --model openai-api/local/NAME
    --model-url http://localhost:8000/v1 --critic ./small --prompts gsm8k.jsonl --verifier math`

    The folder gets the critic, its calibration, what came of each prompt and a report: how much better it is than the mean
    solve rate and the length of the prompt, and what share is solved when only the surest prompts are answered. The same
    command goes on where it was stopped.

    Parameters
    ----------
    model
        Who answers. Folder, GGUF file, hub id, "smollm2", or "tiny" (taught some arithmetic on the spot); in Python also a
        LanguageModel. With model_url: a model of that server, as Inspect AI names it.
    prompts
        JSONL, CSV or Parquet with a prompt and a gold answer, also GSM8K, MATH, DAPO, MBPP and others as published; in
        Python also problems. Half of them are fitted on, a fifth calibrated, the rest tested; groups stay together.
    verifier
        How an answer is compared with the gold one.
    reward
        FILE:FUNCTION in place of a verifier: a reward function in [0, 1] as TRL takes it, or a rubric of verifiers.
    critic
        What reads the prompts: a model here, mostly a small one, or the folder of a critic that reinforce wrote; not given:
        a copy of the model. A server's model needs one.
    limit
        Only the first so many prompts.
    fields
        The file's own names of fields, where it has others: prompt=ask,gold=reply.
    model_url
        The address of a server that speaks OpenAI's protocol, such as vLLM's.
    model_args
        Arguments of the server's client, as Inspect AI takes them.
    budget
        Of a server: calls=500,tokens=2e6,usd=4,minutes=30.
    prices
        Of a server: dollars per million tokens read and written, NAME=2.5:10.
    max_connections
        Calls of a server at once.
    replay
        A record of calls that alone answers, offline.
    tokenizer
        Of a model that is given as an object of transformers.
    save_every
        Optimizer steps between checkpoints.
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
    from equipoise.reinforcement.solvable_fitting import Fitting

    loading = {
        "device": device,
        "dtype": dtype,
        "chat_template": chat_template,
        "date": date,
        "trust_remote_code": trust_remote_code,
    }
    server = {"model_url": model_url, "model_args": model_args, "budget": budget, "prices": prices}
    return Fitting.read(
        model,
        tokenizer,
        prompts,
        verifier=verifier,
        reward=reward,
        unsafe=unsafe_execution,
        limit=limit,
        fields=fields,
        critic=critic,
        server=SimpleNamespace(**server, max_connections=max_connections, replay=replay),
        loading=loading,
        save_every=save_every,
        settings=FitSettings(**settings),
    )


@job("solvable score", SolvableScores)
def score(
    scorer: Path,
    *,
    prompts: Annotated[Problems, Setting(alias=("--dataset",), objects=True)],
    keep: str | None = None,
    limit: Count | None = None,
    fields: Mapping[str, str] | None = None,
    batch_size: Annotated[Count, Setting(stored=False)] = 64,
    device: Annotated[str, Setting(stored=False)] = "auto",
) -> Request:
    """Say of new prompts how likely the model is to solve them, without asking it; no gold answers are needed.

    Example: `equipoise solvable score equipoise-out/solvable-fit --prompts examples/chains.jsonl --keep 0.2:0.8`

    The folder gets scores.jsonl (id, probability), with keep also kept.jsonl (the rows of those prompts, as they were), and
    a report.

    Parameters
    ----------
    scorer
        A folder that solvable fit finished.
    prompts
        JSONL, CSV or Parquet with a prompt; in Python also problems.
    keep
        LOW:HIGH, such as 0.2:0.8 for a curriculum: the prompts whose predictions lie within are written to kept.jsonl.
    limit
        Only the first so many prompts.
    fields
        The file's own names of fields, where it has others: prompt=ask.
    batch_size
        Prompts that are read at once.
    device
        auto, cpu, cuda, cuda:1, mps.
    """
    from equipoise.reinforcement.solvable_scoring import Scoring

    return Scoring.read(scorer, prompts, keep=keep, limit=limit, fields=fields, batch_size=batch_size, device=device)
