"""The job: find out what of a forgotten set can be brought back."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from equipoise.core.job import Request, job
from equipoise.core.options import Setting
from equipoise.unlearning.audit_result import ForgettingAudit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from equipoise.data.records import Record
    from equipoise.language.model import LanguageModel

    ModelLike = str | Path | LanguageModel
    Records = str | Path | Sequence[Record | Mapping[str, Any]]
else:  # what a command line can give
    ModelLike = str | Path
    Records = Path


@job("audit forgetting", ForgettingAudit)
def audit_forgetting(
    before: Annotated[ModelLike, Setting(objects=True)],
    after: Annotated[ModelLike, Setting(objects=True)],
    *,
    forget: Annotated[Records, Setting(objects=True)],
    holdout: Annotated[Records, Setting(objects=True)],
    retain: Annotated[Records | None, Setting(objects=True)] = None,
    reference: Annotated[ModelLike | None, Setting(objects=True)] = None,
    attacks: list[str] | None = None,
    epochs: Annotated[int, Field(ge=1)] = 20,
    evaluations: Annotated[int, Field(ge=1)] = 10,
    batch_size: Annotated[int, Field(ge=1)] = 32,
    max_length: Annotated[int, Field(ge=2)] = 512,
    block: Annotated[int, Field(ge=0)] | None = None,
    components: Annotated[int, Field(ge=0)] = 16,
    keep_strongest: bool = False,
    device: Annotated[str, Setting(stored=False)] = "auto",
    dtype: str = "auto",
    chat_template: str = "auto",
    date: datetime.date | None = None,
    trust_remote_code: Annotated[bool, Setting(typed=bool)] = False,
    fields: dict[str, str] | None = None,
    seed: Annotated[int, Field(ge=0)] = 0,
) -> Request:
    """Find out what comes back of what a model was made to forget: for which record, under the strongest attack tried.

    Example, behind that of `equipoise unlearn`: `equipoise audit forgetting --before equipoise-out/unlearn/taught --after
    equipoise-out/unlearn --forget examples/relearn.jsonl --holdout examples/holdout.jsonl --retain examples/retain.jsonl`

    Any two checkpoints, whoever made them: one that knows, and one that was made to forget. An attacker has some of the
    forgotten records (forget) and trains on them; what counts is whether others (holdout), which nobody relearns, are
    answered again. Neither model is changed. The same command goes on where it was stopped.

    Parameters
    ----------
    before
        The model that knows: folder, LoRA adapter, GGUF file, hub id; in Python also a LanguageModel.
    after
        The model that was made to forget, in the same forms.
    forget
        Forgotten records that the attacker has and relearns: JSONL, CSV or Parquet as for unlearn.
    holdout
        Forgotten records that are never relearned, from which it must not be possible to infer the others.
    retain
        Records that have nothing to do with both: relearned as a control, and compared with for membership.
    reference
        A model that never knew the records: relearned as a control, it says what can be inferred from the forget records.
    attacks
        Relearning attacks as PARAMETERS:OPTIMIZER:RATE, such as full:adamw:5e-5, lora:adamw:5e-4, mlp:sgd:1e-2, or
        mlp/13:sgd:1e-5 for the first 13 blocks; not given: five that suit the model's size.
    epochs
        Passes over the relearned records.
    evaluations
        How often the hold-out is asked along an attack.
    batch_size
        Records of a step.
    max_length
        Tokens of a record; what is longer is cut.
    block
        The block, from 0, after which states are decomposed; not given: the middle one.
    components
        Components of the states before that movement is told by; 0: no spectra.
    keep_strongest
        Keep the relearned model of the strongest relearning, in the folder strongest.
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
    fields
        The files' own names of fields, where they have others: answer=reply,question=ask.
    seed
        Of the order in which records are relearned, and of every draw.
    """
    from equipoise.unlearning.audit import ForgettingAuditing

    return ForgettingAuditing.read(
        {"before": before, "after": after} | ({} if reference is None else {"reference": reference}),
        {"forget": forget, "holdout": holdout} | ({} if retain is None else {"retain": retain}),
        fields=fields,
        attacks=attacks,
        epochs=epochs,
        evaluations=evaluations,
        batch_size=batch_size,
        max_length=max_length,
        block=block,
        components=components,
        keep_strongest=keep_strongest,
        loading={
            "device": device,
            "dtype": dtype,
            "chat_template": chat_template,
            "date": date,
            "trust_remote_code": trust_remote_code,
        },
        seed=seed,
    )
