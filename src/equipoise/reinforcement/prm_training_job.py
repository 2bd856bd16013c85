"""The job: train a process reward model on labelled steps, and clean the labels by its own scores between stages."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from equipoise.core.job import Request, job
from equipoise.core.options import Setting
from equipoise.data.steps import LabelChoice
from equipoise.reinforcement.job import ModelLike
from equipoise.reinforcement.prm_scoring_job import Count, Share, Solutions
from equipoise.reinforcement.prm_training_result import PrmTrained

Positive = Annotated[float, Field(gt=0)]
LossName = Literal["cross-entropy", "label-smoothing", "bootstrapping", "generalized-cross-entropy"]  # of `nait.LOSSES`


class PrmTraining(BaseModel, frozen=True, extra="forbid"):
    """How a process reward model learns, and how its labels are refreshed."""

    stages: Count = Field(default=3, description="Trainings, each after the first on labels that were refreshed.")
    threshold: Share = Field(
        default=0.25, description="A label gives way to the model's score when they are further apart."
    )
    anchor: Literal["initial", "current"] = Field(
        default="initial",
        description="The labels that a refresh begins with: those given, or those of the stage before.",
    )
    restart: bool = Field(
        default=False, description="Begin each stage with the starting model, not with the last stage's."
    )
    weights: tuple[Positive, Positive] | Literal["none", "inverse_frequency"] = Field(
        default=(1 / 6, 5 / 6), description="Of right and of wrong steps in the loss; none; or inverse_frequency."
    )
    loss: LossName = Field(
        default="cross-entropy", description="Of each step; all but the first are meant for noisy labels."
    )
    held_out: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="Share of the problems that is not learnt from, with all their solutions."
    )
    early_stop: Literal["none", "loss", "auroc"] = Field(
        default="none",
        description="What of the held-out problems says which weights are kept, and that a stage is too many.",
    )
    patience: Count = Field(
        default=3, description="Looks (ten a stage) without a better one, after which a stage ends."
    )
    parameters: Literal["full", "lora"] = Field(
        default="full", description="What is trained; lora: an adapter and the three new embeddings, merged in the end."
    )
    lora_rank: Count = Field(default=16, description="Of the adapter.")
    epochs: Positive = Field(default=1.0, description="Passes over the solutions in each stage.")
    learning_rate: Positive | None = Field(
        default=None, description="Of the peak; when not given, by the number of trained parameters."
    )
    batch_size: Count = Field(default=32, description="Solutions of an optimizer step.")
    micro_batch_size: Annotated[Count | None, Setting(stored=False)] = Field(
        default=None, description="Solutions in memory at once."
    )
    max_length: Count = Field(default=4096, description="Tokens of a solution at most; steps beyond are not learnt.")
    warmup_ratio: Share = Field(default=0.03, description="Share of the optimizer steps in which the rate rises.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="Of AdamW.")
    max_grad_norm: Positive = Field(default=1.0, description="Largest norm of a gradient.")
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Of the problems held out, the order of the solutions, and an adapter's start."
    )

    def resolved_learning_rate(self, trained_parameters: int) -> float:
        """learning_rate as given, else the larger the smaller the trained part is; an orientation, not a tuned value."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.parameters == "lora":
            return 1e-4
        return 1e-6 if trained_parameters > 1e9 else 1e-5 if trained_parameters > 5e7 else 1e-3


@job("prm train", PrmTrained, rest=PrmTraining)
def train(
    model: Annotated[ModelLike, Setting(alias=("--model-name-or-path", "-m"), objects=True)],
    *,
    labels: Annotated[Solutions, Setting(alias=("--dataset",), objects=True)],
    which: LabelChoice | None = None,
    limit: Count | None = None,
    tokenizer: Annotated[Any, Setting(objects=True, python=True, stored=False)] = None,
    score_batch_size: Annotated[Count, Setting(stored=False)] = 16,
    save_every: Annotated[int, Field(ge=1), Setting(stored=False)] = 50,
    device: Annotated[str, Setting(stored=False)] = "auto",
    dtype: str = "auto",
    trust_remote_code: Annotated[bool, Setting(typed=bool)] = False,
    **settings: Any,
) -> Request:
    """Train a process reward model on labelled steps; writes a folder that transformers loads as it is.

    Example that runs: `equipoise prm train --model tiny --labels examples/steps.jsonl --epochs 10 --stages 2`

    Your own: `equipoise prm train --model ./model --labels equipoise-out/prm-label/labels.jsonl --parameters lora`

    The folder gets the model with its three tokens [PRM], [POS] and [NEG], prm.json (how it is read), for each stage the
    labels that it learnt with a log of its steps, and a report: whether right steps are told from wrong ones on problems
    held out, what share of the labels outlived each refresh. The same command goes on where it was stopped.

    Parameters
    ----------
    model
        Folder, GGUF file, hub id, "smollm2", or "tiny" (taught some arithmetic on the spot); in Python also a LanguageModel,
        or a model of transformers with its tokenizer, which is changed in place.
    labels
        JSONL, JSON, CSV or Parquet as prm label writes it, TRL's stepwise format, ProcessBench or PRMBench; or a folder of
        such files. In Python also rows.
    which
        Of the labels that prm label writes; not given: corrected ones before others, hard ones before soft.
    limit
        Only the first so many solutions of each split.
    tokenizer
        Of a model that is given as an object of transformers.
    score_batch_size
        Solutions that are read at once for scores.
    save_every
        Optimizer steps between checkpoints.
    device
        auto, cpu, cuda, cuda:1, mps.
    dtype
        auto (float32 on a CPU), float32, bfloat16, float16.
    trust_remote_code
        Run code that comes with a model of the hub.
    """
    from equipoise.reinforcement.prm_training import Training

    return Training.read(
        model,
        tokenizer,
        labels,
        which=which,
        limit=limit,
        scored_at_once=score_batch_size,
        save_every=save_every,
        loading={"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code},
        settings=PrmTraining(**settings),
    )
