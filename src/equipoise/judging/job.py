"""The job: which biases fool this judge, by how much, with the evidence; a harder test set and a preference file."""

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from equipoise.chat.options import CallBudget, Connections, ModelArguments, ModelPrices, Replay
from equipoise.core.job import Request, job
from equipoise.core.options import Setting
from equipoise.judging.result import JudgeAudit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from equipoise.judging.pairs import Pair
    from equipoise.judging.roles import Judge, Teacher

    JudgeLike = str | Judge
    TeacherLike = str | Teacher
    Pairs = str | Path | Sequence[Pair]
else:  # what a command line can give
    JudgeLike = TeacherLike = str
    Pairs = Path

Count = Annotated[int, Field(ge=1)]


@job("audit judge", JudgeAudit)
def audit_judge(
    judge: Annotated[JudgeLike, Setting(alias=("--model", "-m"), objects=True)],
    teacher: Annotated[TeacherLike, Setting(objects=True)],
    pairs: Annotated[Pairs, Setting(alias=("--dataset",), objects=True)],
    *,
    test_pairs: Annotated[Pairs | None, Setting(objects=True)] = None,
    judge_kind: Literal["pairwise", "pointwise", "logprob", "logprob-both"] = "pairwise",
    rubric: Path | None = None,
    biases: Path | None = None,
    filters: list[str] | None = None,
    rounds: Annotated[int, Field(ge=0)] = 4,
    candidates: Count | None = 10,
    rule: Literal["paired", "published"] = "paired",
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05,
    without_explanation: bool = False,
    length_control: bool = False,
    debias: bool = False,
    limit: Count | None = None,
    cut: Count | None = None,
    judge_args: ModelArguments = None,
    teacher_args: ModelArguments = None,
    judge_url: str | None = None,
    teacher_url: str | None = None,
    judge_tokens: Count = 1024,
    teacher_tokens: Count = 4096,
    seed: Annotated[int, Field(ge=0)] = 42,
    budget: CallBudget = None,
    prices: ModelPrices = None,
    max_connections: Connections = None,
    replay: Replay = None,
) -> Request:
    """Find what fools a language model that judges answers (BiasScope), by how much, and with which evidence.

    Example that runs: `equipoise audit judge --judge smollm2 --judge-kind logprob --teacher rules
    --pairs examples/pairs.jsonl`

    Your own: `equipoise audit judge --judge openai/gpt-4o-mini --teacher openai/gpt-4o --pairs p.jsonl --budget calls=5000`

    The folder gets the biases as JSON, every verdict as Parquet, a harder test set, preference rows for DPO, the record of
    all calls, and a report. The same command goes on where it was stopped.

    Parameters
    ----------
    judge
        The model under test: as Inspect AI names it (openai/gpt-4o), a folder, a GGUF file, "smollm2", or
        equipoise/OWNER/NAME for one of the hub, run here; in Python also an object with the methods of `roles.Judge`.
    teacher
        The model that rewrites answers and names biases, or "rules", which needs no model and knows seventeen biases; in
        Python also an object.
    pairs
        JSONL, CSV or Parquet with question, response_A, response_B and label; or prompt, chosen and rejected. Divided into
        discovery, selection and report.
    test_pairs
        Measure on these; --pairs is then used for discovery alone. Questions that are in both are refused.
    judge_kind
        pairwise, pointwise (rates each answer by itself), logprob (a local model, no words generated), or logprob-both
        (the mean over both orders, which cannot prefer a place).
    rubric
        Your judge's own prompt, a file as docs/chat.md shows, with slots question, answer_1 and answer_2; the judge must end
        with "Decision: 1" or "Decision: 2".
    biases
        A JSON list of name and definition to begin with, instead of the seven basic biases.
    filters
        Further judges; two thirds of all must be fooled by what goes into the harder test set.
    rounds
        Of discovery, at most; 0 measures the library alone.
    candidates
        New biases measured a round, at most.
    rule
        paired, or published: the released acceptance, which keeps about half of all biases without effect.
    alpha
        Of the screening test and of the family of confirmed biases.
    without_explanation
        Do not ask the judge to explain its errors.
    length_control
        Measure what holds once more with rewrites cut to the length of the answers they were made from, in words; in scripts
        without blanks between words, such as Chinese and Thai, in characters.
    debias
        Warn a pairwise judge of the library's biases before every question; compare with an audit without.
    limit
        Only the first so many pairs of each file.
    cut
        Words of each text that a logprob judge sees, counted as for --length-control; not given: all.
    judge_args
        Arguments of the judge's provider, such as engine=transformers,batch_size=8.
    teacher_args
        The same for the teacher.
    judge_url
        Address of the judge's server, for providers that take one.
    teacher_url
        The same for the teacher.
    judge_tokens
        Of an answer of the judge, at most; a model that reasons at length needs more.
    teacher_tokens
        Of a rewrite, at most.
    seed
        Of the division, of what is dealt, and of placements.
    budget
        Stop cleanly at calls=500, tokens=2e6, usd=4 or minutes=30, over all attempts; several between commas.
    prices
        Dollars per million tokens read and written, for usd: openai/gpt-4o=2.5:10; with three, the second is of cached ones.
    max_connections
        Calls at once; not given: what the provider is used to.
    replay
        Answer from this record of calls alone, offline.
    """
    asked = SimpleNamespace(**locals())
    from equipoise.judging.auditing import Auditing

    return Auditing.read(asked)
