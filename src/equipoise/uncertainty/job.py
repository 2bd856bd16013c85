"""Two jobs: score answers that are there already token by token, and choose among scored answers."""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from equipoise.core.job import Request, job
from equipoise.core.options import Setting
from equipoise.uncertainty.token_result import Selection, TokenScores

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

    ModelLike = str | Path | LanguageModel
    AnswerRows = str | Path | Sequence[Mapping[str, Any]]
    ScoreRows = str | Path | Iterable[Mapping[str, Any]]
else:  # what a command line can give
    ModelLike = str | Path
    AnswerRows = ScoreRows = Path

Count = Annotated[int, Field(ge=1)]
Scale = Annotated[float, Field(ge=0)]
Open = Annotated[float, Field(gt=0, lt=1)]
Kept = Annotated[float, Field(gt=0, le=1)]
Certainty = Annotated[float, Field(ge=0.5, lt=1)]
Seed = Annotated[int, Field(ge=0)]
VerifierKind = Literal["exact", "number", "choice", "math"]
Vote = Literal["majority", "weighted"]
Score = Literal[
    "tu_sum", "tu_mean", "tu_max", "au_sum", "au_mean", "au_max", "eu_sum", "eu_mean", "eu_max", "log_prob_sum",
    "log_prob_mean", "entropy_sum", "entropy_mean", "self_certainty", "deepconf", "p_true",
    "semantic_entropy", "length",
]  # fmt: skip


@job("uncertainty score", TokenScores)
def score(
    model: Annotated[ModelLike, Setting(alias=("--model-name-or-path", "-m"), objects=True)],
    *,
    answers: Annotated[AnswerRows, Setting(alias=("--dataset",), objects=True)],
    members: Count = 4,
    sigma: Scale | None = None,
    rank: Count = 8,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    by: Score = "tu_sum",
    risk: Open | None = None,
    certainty: Certainty = 0.95,
    verifier: VerifierKind | None = None,
    ask: bool = False,
    end: bool = False,
    seed: Seed = 0,
    limit: Count | None = None,
    fields: dict[str, str] | None = None,
    batch_size: Annotated[Count, Setting(stored=False)] = 8,
    device: Annotated[str, Setting(stored=False)] = "auto",
    dtype: str = "auto",
    chat_template: str = "auto",
    date: datetime.date | None = None,
    trust_remote_code: Annotated[bool, Setting(typed=bool)] = False,
) -> Request:
    """Say how unsure a model is of each token of answers that are there already, whoever wrote them (TokUR).

    Example that runs: `equipoise uncertainty score --model smollm2 --answers examples/answers.jsonl --verifier number`

    Your own: `equipoise uncertainty score --model ./small --answers a.jsonl --risk 0.1`

    The folder gets scores.jsonl (the characters of every token with TU, AU, EU and log-probability; 16 scores an answer,
    and where each question has several answers the entropy of what they say), a heat map and a report: where answers are
    labelled how well each score tells right from wrong, always beside the length of the answer, and a threshold. The same
    command goes on where it was stopped.

    Parameters
    ----------
    model
        Whose doubt is measured, mostly the model that wrote the answers: folder, GGUF file, hub id or "smollm2"; in Python
        also a LanguageModel. Llama, Mistral, Qwen2, Qwen3, Gemma and GPT-2 architectures.
    answers
        JSONL, CSV or Parquet with prompt and answer, and if known correct (true or false) or gold; in Python also rows.
    members
        Readings of an answer: one without noise, the others with noise of their own. 1 gives the plain model's scores.
    sigma
        Scale of the noise. Not given: the least at which a twentieth of the uncertainty is epistemic on the first 20
        answers.
    rank
        Of the noise.
    targets
        The linear maps that get noise: q_proj, k_proj, v_proj, o_proj and others by the model's own names.
    by
        The score that the threshold, the curve and the heat map are made of.
    risk
        The largest share of wrong answers among those that are accepted; a threshold is chosen for it.
    certainty
        With which the threshold holds on new answers like these.
    verifier
        How an answer is compared with its gold answer, where rows have one and no label.
    ask
        Also ask the model whether each answer is true: one more reading an answer.
    end
        Also count the token that ends an answer.
    seed
        Of the noise and the intervals.
    limit
        Only the first so many answers.
    fields
        The file's own names of fields, where it has others: prompt=ask,answer=reply.
    batch_size
        Answers that are read at once.
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
    from equipoise.uncertainty.scoring import Scoring

    return Scoring.read(
        model,
        answers,
        members=members,
        sigma=sigma,
        rank=rank,
        targets=targets,
        by=by,
        risk=risk,
        certainty=certainty,
        verifier=verifier,
        ask=ask,
        end=end,
        seed=seed,
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


@job("uncertainty select", Selection)
def select(
    scores: Annotated[ScoreRows, Setting(alias=("--dataset",), objects=True)],
    *,
    by: str = "tu_mean",
    keep: Kept = 0.1,
    vote: Vote = "majority",
) -> Request:
    """Choose one of several answers to each question: the surest ones vote.

    Example that runs: `equipoise uncertainty select --scores equipoise-out/uncertainty-score/scores.jsonl --keep 0.5`

    Answers with the same prompt (or group) are candidates of one question. The folder gets selected.jsonl and a report: what
    the choice comes to where answers are labelled, beside a vote of all, the surest alone and an answer at random. No model
    is read.

    Parameters
    ----------
    scores
        The scores.jsonl that uncertainty score wrote, or rows with id, prompt, answer and scores, an object of numbers by
        name, higher being surer; in Python also rows.
    by
        The score that says how sure an answer is.
    keep
        The share of the answers to a question that vote, the surest ones; at least one does.
    vote
        majority: each counts one. weighted: each counts its share of the softmax of the scores.
    """
    from equipoise.uncertainty.selecting import Selecting

    return Selecting.read(scores, by=by, keep=keep, vote=vote)
