"""Three jobs: label prompts with what both models make of them, fit a router on labels, measure routers."""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field

from equipoise.chat.options import CallBudget, Connections, ModelArguments, ModelPrices, Replay
from equipoise.core.job import Request, job
from equipoise.core.options import Setting
from equipoise.routing.result import RouteEvaluation, RouteFit, RouteLabels

if TYPE_CHECKING:
    from equipoise.data.problems import Problem
    from equipoise.language.model import LanguageModel

    Prompts = str | Path | Sequence[Problem | Mapping[str, Any]]
    LabelRows = str | Path | Iterable[Mapping[str, Any]]
    ModelLike = str | Path | LanguageModel
    RewardLike = str | Any
else:  # what a command line can give
    Prompts = LabelRows = Path
    ModelLike = str | Path
    RewardLike = str

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Confidence = Annotated[float, Field(ge=0.5, lt=1)]
Seed = Annotated[int, Field(ge=0)]
VerifierKind = Literal["exact", "number", "choice", "regex", "f1", "math", "tests"]
Saved = Literal["best", "dirichlet", "softmax", "mean", "last", "max", "length"]
ReadAs = Literal["chat", "raw"]
Band = tuple[Share, Share]


@job("route label", RouteLabels)
def label(
    model: Annotated[ModelLike | None, Setting(alias=("--model-name-or-path", "-m"), objects=True)] = None,
    *,
    prompts: Annotated[Prompts, Setting(alias=("--dataset",), objects=True)],
    strong: str | None = None,
    verifier: VerifierKind | None = None,
    reward: Annotated[RewardLike | None, Setting(objects=True, typed=bool)] = None,
    judge: str | None = None,
    max_new_tokens: Count = 256,
    limit: Count | None = None,
    fields: dict[str, str] | None = None,
    strong_url: str | None = None,
    strong_args: ModelArguments = None,
    judge_url: str | None = None,
    judge_args: ModelArguments = None,
    budget: CallBudget = None,
    prices: ModelPrices = None,
    max_connections: Connections = None,
    replay: Replay = None,
    batch_size: Annotated[Count, Setting(stored=False)] = 32,
    device: Annotated[str, Setting(stored=False)] = "auto",
    dtype: str = "auto",
    chat_template: str = "auto",
    date: datetime.date | None = None,
    trust_remote_code: Annotated[bool, Setting(typed=bool)] = False,
    unsafe_execution: Annotated[bool, Setting(typed=bool)] = False,
) -> Request:
    """Let a weak and a strong model answer prompts, and say how good each answer is: what a router learns from.

    Example that runs: `equipoise route label --prompts examples/routing.jsonl --verifier number`

    Your own: `equipoise route label --model ./small --strong openai/gpt-5 --prompts prompts.jsonl --verifier math`

    The folder gets labels.jsonl (id, prompt, domain, both answers, their qualities) and a report: who solves what, by
    domain, and what both miss. The same command goes on where it was stopped.

    Parameters
    ----------
    model
        The weak model, which answers here: folder, GGUF file, hub id or "smollm2"; in Python also a LanguageModel. Not
        given: the field weak_answer of each prompt.
    prompts
        JSONL, CSV or Parquet with a prompt, mostly a gold answer, and if there is one a domain; in Python also problems.
    strong
        The strong model, as Inspect AI names it (openai/gpt-5, or openai-api/local/NAME with strong_url); equipoise/NAME is
        a model of this machine. Not given: the field strong_answer of each prompt.
    verifier
        How an answer is compared with the gold one; qualities are then shares from 0 to 1, mostly 0 or 1.
    reward
        FILE:FUNCTION in place of a verifier: a reward function in [0, 1] as TRL takes it.
    judge
        A model that grades in place of a verifier: against the gold answers where all prompts have some (0 or 1), else by
        itself from 1 to 10, which becomes 0 to 1.
    max_new_tokens
        Tokens of an answer at most, of either model.
    limit
        Only the first so many prompts.
    fields
        The file's own names of fields, where it has others: prompt=ask,gold=reply.
    strong_url
        The address of a server that speaks OpenAI's protocol.
    strong_args
        Arguments of the strong model's client, as Inspect AI takes them.
    judge_url
        The address of the judge's server.
    judge_args
        Arguments of the judge's client.
    budget
        Of calls: calls=500,tokens=2e6,usd=4,minutes=30.
    prices
        Dollars per million tokens read and written, NAME=2.5:10.
    max_connections
        Calls of a model at once.
    replay
        A record of calls that alone answers, offline.
    batch_size
        Answers that the weak model writes at once.
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
    from equipoise.routing.labeling import Labeling

    return Labeling.read(
        model,
        prompts,
        server=SimpleNamespace(
            strong=strong, strong_url=strong_url, strong_args=strong_args, judge=judge, judge_url=judge_url,
            judge_args=judge_args, budget=budget, prices=prices, max_connections=max_connections, replay=replay,
        ),
        verifier=verifier,
        reward=reward,
        unsafe=unsafe_execution,
        max_new_tokens=max_new_tokens,
        limit=limit,
        fields=fields,
        batch_size=batch_size,
        loading=_loading(device, dtype, chat_template, date, trust_remote_code),
    )  # fmt: skip


class ProbeSettings(BaseModel, frozen=True, extra="forbid"):
    """How the probes learn."""

    learning_rate: Positive = Field(default=1e-3, description="Of Adam.")
    batch_size: Count = Field(default=32, description="Prompts of an optimizer step.")
    epochs: Count = Field(default=50, description="Passes over the prompts at most.")
    seed: Seed = Field(
        default=42, description="Of the division of the prompts, of the order and the noise of training."
    )


@job("route fit", RouteFit, rest=ProbeSettings)
def fit(
    model: Annotated[ModelLike, Setting(alias=("--model-name-or-path", "-m"), objects=True)],
    *,
    labels: Annotated[LabelRows, Setting(alias=("--dataset",), objects=True)],
    kind: Saved = "best",
    reads: ReadAs = "chat",
    calls: Share | None = None,
    quality: float | None = None,
    confidence: Confidence = 0.95,
    budget_band: Band = (0.0, 0.3),
    quality_band: Band = (0.85, 0.95),
    limit: Count | None = None,
    fields: dict[str, str] | None = None,
    batch_tokens: Annotated[Count | None, Setting(stored=False)] = None,
    device: Annotated[str, Setting(stored=False)] = "auto",
    dtype: str = "auto",
    chat_template: str = "auto",
    date: datetime.date | None = None,
    trust_remote_code: Annotated[bool, Setting(typed=bool)] = False,
    **settings: Any,
) -> Request:
    """Fit a router on labels: a probe on the weak model's states of a prompt, with a threshold for a budget or a quality.

    Example that runs: `equipoise route fit --model smollm2 --labels equipoise-out/route-label/labels.jsonl --calls 0.3`

    The folder gets the router (router.json and router.safetensors, a few kB), the scores of every prompt and a report: how
    well each score ranks, against length, chance and what the model says of itself, by domain and across domains; what the
    threshold comes to on prompts that nothing was fitted on. The same command goes on where it was stopped.

    Parameters
    ----------
    model
        The weak model, whose states are read: folder, GGUF file, hub id or "smollm2"; in Python also a LanguageModel.
    labels
        What route label wrote, or rows with prompt, weak and strong (qualities), domain and group; in Python also rows.
        Half of them are fitted on, a quarter chooses, a quarter tests; groups stay together.
    kind
        Which router is saved: best takes of dirichlet, mean and length the one that ranks best where it is chosen.
    reads
        chat: prompts in the model's chat template, so that serving reads them once for the score and for the answer. raw:
        the bare instruction, as RouterXBench does.
    calls
        The largest share of prompts that may go to the strong model. Give this or a quality; 0.3 where neither is given.
    quality
        The least mean quality of what is answered, in the unit of the labels.
    confidence
        With which the threshold holds on new prompts like these.
    budget_band
        Ends of the shares of calls over which LPM is a mean.
    quality_band
        Ends of HCR's band, as shares of the gap between weak and strong.
    limit
        Only the first so many labels.
    fields
        The file's own names of fields, where it has others: prompt=ask.
    batch_tokens
        Tokens that are read at once; when not given 512 on a CPU and 16384 elsewhere.
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
    from equipoise.routing.fitting import Fitting

    return Fitting.read(
        model,
        labels,
        kind=kind,
        reads=reads,
        calls=calls,
        quality=quality,
        confidence=confidence,
        bands=(budget_band, quality_band),
        limit=limit,
        fields=fields,
        batch_tokens=batch_tokens,
        loading=_loading(device, dtype, chat_template, date, trust_remote_code),
        settings=ProbeSettings(**settings),
    )


@job("route evaluate", RouteEvaluation)
def evaluate(
    labels: Annotated[LabelRows, Setting(alias=("--dataset",), objects=True)],
    *,
    router: Path | None = None,
    model: Annotated[ModelLike | None, Setting(alias=("--model-name-or-path", "-m"), objects=True)] = None,
    ask: bool = False,
    samples: Count = 5,
    max_new_tokens: Count = 24,
    budget_band: Band = (0.0, 0.3),
    quality_band: Band = (0.85, 0.95),
    limit: Count | None = None,
    fields: dict[str, str] | None = None,
    seed: Seed = 0,
    batch_tokens: Annotated[Count | None, Setting(stored=False)] = None,
    device: Annotated[str, Setting(stored=False)] = "auto",
    dtype: str = "auto",
    chat_template: str = "auto",
    date: datetime.date | None = None,
    trust_remote_code: Annotated[bool, Setting(typed=bool)] = False,
) -> Request:
    """Measure routers by RouterXBench: ability, budget and quality scenarios by domain, and what escalation buys.

    Example that runs: `equipoise route evaluate --labels equipoise-out/route-fit/scores.jsonl`

    With a router and its model: `equipoise route evaluate --labels new.jsonl --router router --model ./small`

    Rows that hold scores already are measured as they are, without a model and at no cost: your own router's, too. With a
    router its threshold is checked on these prompts, and whether its share of calls has drifted.

    Parameters
    ----------
    labels
        What route label wrote, or the scores.jsonl of route fit (of which the rows that were tested are taken), or rows with
        weak, strong and scores, an object of numbers by name; in Python also rows.
    router
        A folder that route fit wrote.
    model
        The weak model, which reads the prompts: the router's.
    ask
        Also ask the model how sure it is, and sample answers for semantic entropy: many tokens.
    samples
        Answers to each prompt, for semantic entropy.
    max_new_tokens
        Tokens of such an answer at most.
    budget_band
        Ends of the shares of calls over which LPM is a mean.
    quality_band
        Ends of HCR's band, as shares of the gap between weak and strong.
    limit
        Only the first so many labels.
    fields
        The file's own names of fields, where it has others: prompt=ask.
    seed
        Of the random control, the samples and the intervals.
    batch_tokens
        Tokens that are read at once; when not given 512 on a CPU and 16384 elsewhere.
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
    from equipoise.routing.evaluating import Evaluating

    return Evaluating.read(
        labels,
        router=router,
        model=model,
        ask=ask,
        samples=samples,
        max_new_tokens=max_new_tokens,
        bands=(budget_band, quality_band),
        limit=limit,
        fields=fields,
        seed=seed,
        batch_tokens=batch_tokens,
        loading=_loading(device, dtype, chat_template, date, trust_remote_code),
    )


def _loading(device: str, dtype: str, chat_template: str, date: datetime.date | None, trust: bool) -> dict[str, Any]:
    return {
        "device": device,
        "dtype": dtype,
        "chat_template": chat_template,
        "date": date,
        "trust_remote_code": trust,
    }
