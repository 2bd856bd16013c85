"""The job: say of every step of solutions how likely it is right."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from equipoise.core.job import Request, job
from equipoise.core.options import Setting
from equipoise.reinforcement.job import ModelLike
from equipoise.reinforcement.prm_scoring_result import StepScores

if TYPE_CHECKING:
    from equipoise.data.steps import StepwiseSolution

    Solutions = str | Path | Sequence[StepwiseSolution | Mapping[str, Any]]
else:  # what a command line can give
    Solutions = Path

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
ScoreFormat = Literal["scores", "trl"]


@job("prm score", StepScores)
def score(
    model: Annotated[ModelLike, Setting(alias=("--model-name-or-path", "-m"), objects=True)],
    *,
    solutions: Annotated[Solutions, Setting(alias=("--dataset",), objects=True)],
    format: ScoreFormat = "scores",
    threshold: Share | None = None,
    limit: Count | None = None,
    batch_size: Annotated[Count, Setting(stored=False)] = 16,
    device: Annotated[str, Setting(stored=False)] = "auto",
    dtype: str = "auto",
    trust_remote_code: Annotated[bool, Setting(typed=bool)] = False,
) -> Request:
    """Say of every step of solutions how likely it is right, by a process reward model.

    Example: `equipoise prm score --model equipoise-out/prm-train --solutions examples/steps.jsonl`

    The folder gets scores.jsonl (id, and a probability for each step), with --format trl also stepwise.jsonl as TRL's
    trainer of process reward models reads it, and a report. The same command goes on where it was stopped.

    Parameters
    ----------
    model
        A folder that prm train wrote, or another model with the tokens [PRM], [POS] and [NEG]; in Python also a
        LanguageModel.
    solutions
        JSONL, CSV or Parquet with problem and steps, TRL's prompt and completions, or ProcessBench's and PRMBench's rows, or
        a folder of such files; labels are not read. In Python also rows.
    format
        scores: the probabilities, in scores.jsonl. trl: also prompt, completions and labels, true or false, in
        stepwise.jsonl.
    threshold
        scores.jsonl names also the first step whose probability is lower, -1 for none. With trl a label says whether it is
        at least so high; not given, 0.5, since TRL takes no probabilities for labels.
    limit
        Only the first so many solutions of each split.
    batch_size
        Solutions that are read at once.
    device
        auto, cpu, cuda, cuda:1, mps.
    dtype
        auto (float32 on a CPU), float32, bfloat16, float16.
    trust_remote_code
        Run code that comes with a model of the hub.
    """
    from equipoise.reinforcement.prm_scoring import Scoring

    return Scoring.read(
        model,
        solutions,
        format=format,
        threshold=threshold,
        limit=limit,
        batch_size=batch_size,
        loading={"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code},
    )
