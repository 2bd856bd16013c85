"""The job: weigh a process reward model on solutions whose steps are labelled."""

from typing import Annotated

from pydantic import Field

from equipoise.core.job import Request, job
from equipoise.core.options import Setting
from equipoise.reinforcement.job import ModelLike
from equipoise.reinforcement.prm_evaluation_result import PrmEvaluation
from equipoise.reinforcement.prm_scoring_job import Count, Share, Solutions


@job("prm evaluate", PrmEvaluation)
def evaluate(
    model: Annotated[ModelLike, Setting(alias=("--model-name-or-path", "-m"), objects=True)],
    *,
    data: Annotated[Solutions, Setting(alias=("--dataset",), objects=True)],
    threshold: Share = 0.5,
    limit: Count | None = None,
    batch_size: Annotated[Count, Setting(stored=False)] = 16,
    device: Annotated[str, Setting(stored=False)] = "auto",
    dtype: str = "auto",
    trust_remote_code: Annotated[bool, Setting(typed=bool)] = False,
    seed: Annotated[int, Field(ge=0)] = 0,
) -> Request:
    """Weigh a process reward model on solutions whose steps are labelled, such as ProcessBench and PRMBench.

    Example: `equipoise prm evaluate --model equipoise-out/prm-train --data examples/steps.jsonl`

    The folder gets scores.jsonl and a report: whether right steps are told from wrong ones, whether the first error is found
    (ProcessBench's F1), which classes of errors are seen (PRMBench's score), what choosing the best of several solutions
    brings, each beside a control that knows only which step of its solution a step is. A model without the tokens of steps
    is a floor, reported as one, and nothing is read: all its scores are 0.5. The same command goes on where it was stopped.

    Parameters
    ----------
    model
        A folder that prm train wrote, another model with the tokens [PRM], [POS] and [NEG], or any causal model as a floor;
        in Python also a LanguageModel.
    data
        JSONL, JSON, CSV or Parquet as ProcessBench and PRMBench are published, TRL's stepwise format, or what prm label
        writes; or a folder of such files. Several solutions of a problem with correct (or final_answer_correct) give best of
        N. In Python also rows.
    threshold
        A step whose probability is lower is called wrong. Beside it stands the best one of the other half of the problems.
    limit
        At most so many solutions of each split, drawn at random.
    batch_size
        Solutions that are read at once.
    device
        auto, cpu, cuda, cuda:1, mps.
    dtype
        auto (float32 on a CPU), float32, bfloat16, float16.
    trust_remote_code
        Run code that comes with a model of the hub.
    seed
        Of the halves that thresholds are chosen on, and of the intervals.
    """
    from equipoise.reinforcement.prm_evaluation import Evaluating

    return Evaluating.read(
        model,
        data,
        threshold=threshold,
        limit=limit,
        batch_size=batch_size,
        loading={"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code},
        seed=seed,
    )
