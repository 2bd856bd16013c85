"""The job: label the steps of solutions by where completions from them end, with repaired mistakes taken out again."""

import datetime
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from equipoise.chat.options import CallBudget, Connections, ModelArguments, ModelPrices, Replay
from equipoise.core.job import Request, job
from equipoise.core.options import Setting
from equipoise.reinforcement.job import ModelLike, Problems, VerifierKind
from equipoise.reinforcement.prm_label_result import StepLabels

Count = Annotated[int, Field(ge=1)]


class LabelSettings(BaseModel, frozen=True, extra="forbid"):
    """How solutions are written, cut and gone on with."""

    samples: Count = Field(default=8, description="Completions from the end of each step, K.")
    solutions: Count = Field(
        default=1, description="Solutions that the model writes of a problem that comes with none."
    )
    max_new_tokens: Count = Field(default=512, description="Tokens of a solution, or of a completion, at most.")
    temperature: Annotated[float, Field(gt=0)] = Field(default=0.8, description="At which both are sampled.")
    separator: str | None = Field(
        default=None,
        description="What parts steps, such as ; or \\n. Not given: empty lines, and where there are none line ends.",
    )
    rollout_batch_size: Annotated[Count, Setting(stored=False)] = Field(
        default=64, description="Completions that a model here writes at once."
    )
    judge_tokens: Count = Field(default=512, description="Tokens of a chat judge's answer at most.")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Of all draws.")


@job("prm label", StepLabels, rest=LabelSettings)
def label(
    model: Annotated[ModelLike, Setting(alias=("--model-name-or-path", "-m"), objects=True)],
    *,
    problems: Annotated[Problems, Setting(alias=("--prompts", "--dataset"), objects=True)],
    verifier: VerifierKind = "number",
    judge: str = "rules",
    engine: Literal["auto", "transformers", "chat"] = "auto",
    go_on: Literal["auto", "prefill", "turn"] = "auto",
    limit: Count | None = None,
    fields: dict[str, str] | None = None,
    model_url: str | None = None,
    model_args: ModelArguments = None,
    judge_url: str | None = None,
    judge_args: ModelArguments = None,
    budget: CallBudget = None,
    prices: ModelPrices = None,
    max_connections: Connections = None,
    replay: Replay = None,
    tokenizer: Annotated[Any, Setting(objects=True, python=True, stored=False)] = None,
    device: Annotated[str, Setting(stored=False)] = "auto",
    dtype: str = "auto",
    chat_template: str = "auto",
    date: datetime.date | None = None,
    trust_remote_code: Annotated[bool, Setting(typed=bool)] = False,
    unsafe_execution: Annotated[bool, Setting(typed=bool)] = False,
    **settings: Any,
) -> Request:
    r"""Label each step of solutions by whether completions from its end reach the gold answer, cleaned of repairs (NAIT).

    Example that runs: `equipoise prm label --model tiny --problems examples/chains.jsonl --separator ";" --samples 4
    --max-new-tokens 40`

    Your own, with a GGUF file and a judge: `equipoise prm label --model ./policy.gguf --problems gsm8k.jsonl
    --judge openai/gpt-4o-mini --budget calls=20000`

    The folder gets labels.jsonl (a solution a line: its steps, the outcome of every completion, the judge's quotes, soft and
    hard labels before and after correction), completions.jsonl with what was written, and a report. The last step's outcome
    is that of the solution's own answer. The same command goes on where it was stopped, and draws and asks nothing twice.

    Parameters
    ----------
    model
        The policy, who goes on with solutions, and writes them where there are none. Folder, hub id, "smollm2", or "tiny"
        (taught some arithmetic on the spot); in Python also a LanguageModel. Asked by chat: a GGUF file, equipoise/NAME for
        any model here, or with model_url one of that server, as Inspect AI names it.
    problems
        JSONL, CSV or Parquet with a prompt and a gold answer, also GSM8K, MATH, DAPO and others as published; a solution to
        label is a list `steps`, or a text `solution`. Of a conversation labels.jsonl and the judge get all turns as one
        text. In Python also problems or rows.
    verifier
        How a final answer is compared with the gold one.
    judge
        Who tells a success by repair: rules, which need no model; the name of a chat model; or none.
    engine
        How the model is asked: transformers (rolled out here), chat, or auto, which goes by the model.
    go_on
        How a chat model gets the beginning of a solution: prefill (its own turn goes on, as models here and those of vllm/
        and sglang/ do), turn (a user's turn asks for it), or auto.
    limit
        Only the first so many problems.
    fields
        The file's own names of fields, where it has others: prompt=ask,gold=reply,solution=response.
    model_url
        The address of the model's server, for providers that take one.
    model_args
        Arguments of the chat model's provider.
    judge_url
        The same as model_url, of a judge.
    judge_args
        The same as model_args, of a judge.
    budget
        Of chat models: calls=500,tokens=2e6,usd=4,minutes=30.
    prices
        Of chat models: dollars per million tokens read and written, NAME=2.5:10.
    max_connections
        Calls of a chat model at once.
    replay
        A record of calls that alone answers, offline.
    tokenizer
        Of a model that is given as an object of transformers.
    device
        auto, cpu, cuda, cuda:1, mps.
    dtype
        auto (float32 on a CPU), float32, bfloat16, float16.
    chat_template
        auto, none (a solution follows the problem as plain text), or a file with a Jinja template.
    date
        What chat templates write as today's, the same on every day: 2024-07-26 when not given.
    trust_remote_code
        Run code that comes with a model of the hub.
    unsafe_execution
        Run generated programs (verifier tests) also where this machine cannot isolate them.
    """
    from equipoise.reinforcement.prm_labeling import Labeling

    asked = {"model_url": model_url, "model_args": model_args, "judge_url": judge_url, "judge_args": judge_args}
    shared = {"budget": budget, "prices": prices, "max_connections": max_connections, "replay": replay}
    return Labeling.read(
        model,
        tokenizer,
        problems,
        limit=limit,
        fields=fields,
        verifier=verifier,
        unsafe=unsafe_execution,
        roles=SimpleNamespace(judge=judge, **asked, **shared),
        engine=engine,
        go_on=go_on,
        loading={
            "device": device,
            "dtype": dtype,
            "chat_template": chat_template,
            "date": date,
            "trust_remote_code": trust_remote_code,
        },
        settings=LabelSettings(**settings),
    )
