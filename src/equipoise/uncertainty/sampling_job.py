"""The job `audit sampling`: can a model be used as a sampler of a stated distribution?"""

import datetime
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from equipoise.chat.options import CallBudget, Connections, ModelArguments, ModelPrices, Replay
from equipoise.core.job import Request, job
from equipoise.core.options import Setting
from equipoise.uncertainty.sampling_result import SamplingAudit

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel
    from equipoise.uncertainty.sampling_task import SamplingTask

    ModelLike = str | Path | LanguageModel
    TargetLike = str | Path | Mapping[str, Any] | SamplingTask
else:  # what a command line can give
    ModelLike = str | Path
    TargetLike = Path

Several = Annotated[int, Field(ge=2)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Likeliest = Annotated[int, Field(ge=2, le=20)]
Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Slots = Literal["read", "set"]


@job("audit sampling", SamplingAudit)
def audit_sampling(
    model: Annotated[ModelLike | None, Setting(alias=("--model-name-or-path", "-m"), objects=True)] = None,
    *,
    target: Annotated[TargetLike, Setting(objects=True)],
    values: Several = 50,
    sequences: Whole = 8,
    draws: Whole = 32,
    temperature: Temperature = 1.0,
    slots: Slots = "read",
    seed: Whole = 0,
    served: str | None = None,
    served_url: str | None = None,
    served_args: ModelArguments = None,
    likeliest: Likeliest = 20,
    budget: CallBudget = None,
    prices: ModelPrices = None,
    max_connections: Connections = None,
    replay: Replay = None,
    batch_size: Annotated[Count, Setting(stored=False)] = 8,
    device: Annotated[str, Setting(stored=False)] = "auto",
    dtype: str = "auto",
    chat_template: str = "auto",
    date: datetime.date | None = None,
    trust_remote_code: Annotated[bool, Setting(typed=bool)] = False,
) -> Request:
    """Find out whether a model's next-token probabilities match a distribution that it is asked to sample from.

    Example that runs: `equipoise audit sampling --model smollm2 --target examples/target.json --values 20 --sequences 2`

    The folder gets sequences.jsonl, with the symbols' probabilities at every slot, and a report: how far off, at each slot,
    in the mean and in what is drawn; whether that is the model or the noise of so few draws; whether lists keep a quota or
    copy themselves; which temperature fits best, and whether to draw outside the model. The same command goes on where it
    was stopped.

    Parameters
    ----------
    model
        The sampler, where it runs here: folder, GGUF file, hub id or "smollm2"; in Python also a LanguageModel.
    target
        A JSON file {"symbols": ["1", "2"], "target": [0.3, 0.7]}; may also hold templates and single_templates (requests for
        a list and for one value, with {target}, {symbols} and {count} in them), separator, and renamings, lists of other
        symbols to ask with. In Python also an object of these.
    values
        Values of a list.
    sequences
        Lists of each wording; 0 for none.
    draws
        Single values of each wording, each from a fresh context; 0 for none.
    temperature
        Of the draws; probabilities are the model's own whatever it is.
    slots
        read: values are found in what the model writes freely. set: each is drawn from the symbols alone and the separators
        are put in, for models that do not keep to a list.
    seed
        Of the draws and of the intervals.
    served
        In place of model: a model as Inspect AI names it (openai/gpt-4o, or openai-api/local/NAME with served_url), whose
        server tells the likeliest tokens; measures are then bounds where it leaves something open.
    served_url
        The address of a server that speaks OpenAI's protocol.
    served_args
        Arguments of its client, as Inspect AI takes them.
    likeliest
        How many of the likeliest tokens the server tells.
    budget
        Of calls: calls=500,tokens=2e6,usd=4,minutes=30.
    prices
        Dollars per million tokens read and written, NAME=2.5:10.
    max_connections
        Calls at once.
    replay
        A record of calls that alone answers, offline.
    batch_size
        Sequences that are written at once.
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
    """
    from equipoise.uncertainty.sampling_auditing import Auditing

    return Auditing.read(
        model,
        target,
        server=SimpleNamespace(
            served=served, served_url=served_url, served_args=served_args, budget=budget, prices=prices,
            max_connections=max_connections, replay=replay,
        ),
        likeliest=likeliest,
        values=values,
        sequences=sequences,
        draws=draws,
        temperature=temperature,
        slots=slots,
        seed=seed,
        batch_size=batch_size,
        loading={
            "device": device,
            "dtype": dtype,
            "chat_template": chat_template,
            "date": date,
            "trust_remote_code": trust_remote_code,
        },
    )  # fmt: skip
