"""The job: find out from logs which calls of tools were of use."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from equipoise.core.job import Request, job
from equipoise.core.options import Setting
from equipoise.reinforcement.job import ModelLike, VerifierKind
from equipoise.reinforcement.tool_audit_result import ToolAudit

if TYPE_CHECKING:
    Traces = str | Path | Sequence[Mapping[str, Any]]
else:  # what a command line can give
    Traces = Path

Against = Literal["previous", "first", "running-minimum"]


@job("audit tools", ToolAudit)
def audit_tools(
    traces: Annotated[Traces, Setting(alias=("--dataset",), objects=True)],
    *,
    model: Annotated[ModelLike | None, Setting(alias=("--model-name-or-path", "-m"), objects=True)] = None,
    vocabulary: Annotated[int, Field(ge=2)] | None = None,
    against: Against = "previous",
    margin: Annotated[float, Field(ge=0)] = 0.0,
    verifier: VerifierKind = "f1",
    right_at: float = 0.5,
    limit: Annotated[int, Field(ge=1)] | None = None,
    device: Annotated[str, Setting(stored=False)] = "auto",
    dtype: str = "auto",
    chat_template: str = "auto",
    trust_remote_code: Annotated[bool, Setting(typed=bool)] = False,
    seed: Annotated[int, Field(ge=0)] = 0,
) -> Request:
    """Find out from logs which calls of tools were of use: after which a model was surer, which repeat, what they cost.

    Example: `equipoise audit tools --traces examples/tool_traces.jsonl`

    The folder gets calls.jsonl, with a row for each call, and a report. A call lowered uncertainty where the mean entropy of
    the tokens that the model wrote after its reply is lower than of those before it. From log-probabilities of the likeliest
    tokens the entropy is known within bounds, and nothing is said where these overlap. Entropy is confidence, not truth: the
    report says whether it went with right answers here. The same command goes on where it was stopped.

    Parameters
    ----------
    traces
        JSON lines with messages as OpenAI has them, with tool_calls and logprobs; with choices beside them, as a proxy logs
        requests and responses; or episodes. In Python also rows.
    model
        Compute entropies with this model instead, at temperature 1, in one pass a trace: a folder, a name, in Python also a
        LanguageModel. Best the one that wrote the traces.
    vocabulary
        How many tokens the model that wrote them knows, for the upper bounds; not given: what a row says, else 300,000,
        which is more than most know and makes the bounds a little wider.
    against
        What the entropy after a call is compared with: that before the call, before the first call, or the lowest so far.
    margin
        By how many nats a token it has to fall.
    verifier
        How an answer is compared with its gold, in traces that have no success, score or reward.
    right_at
        A trace is right from this score on.
    limit
        Only the first so many traces.
    device
        auto, cpu, cuda, cuda:1, mps.
    dtype
        auto (float32 on a CPU), float32, bfloat16, float16.
    chat_template
        auto, none, or a Jinja file: how conversations are shown to the model.
    trust_remote_code
        Run code that comes with a model of the hub.
    seed
        Of the interval of AUROC.
    """
    from equipoise.reinforcement.tool_audit import ToolAuditing

    return ToolAuditing.read(
        traces,
        model,
        vocabulary=vocabulary,
        against=against,
        margin=margin,
        verifier=verifier,
        right_at=right_at,
        limit=limit,
        loading={
            "device": device,
            "dtype": dtype,
            "chat_template": chat_template,
            "trust_remote_code": trust_remote_code,
        },
        seed=seed,
    )
