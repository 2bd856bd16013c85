"""The job: make a causal language model forget one set of records while it keeps another, and check what came out."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from equipoise.core.job import Request, job
from equipoise.core.options import Setting
from equipoise.unlearning.recipe import RENAMED, Recipe
from equipoise.unlearning.result import Evaluation, Unlearned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from equipoise.data.records import Record
    from equipoise.language.model import LanguageModel

    ModelLike = str | Path | LanguageModel | PreTrainedModel
    Records = str | Path | Sequence[Record | Mapping[str, Any]]
else:  # what a command line can give
    ModelLike = str | Path
    Records = Path


def is_of_the_hub(attention: object) -> bool:
    """Whether an attention is a kernel that somebody published: transformers would fetch it and run it."""
    return isinstance(attention, str) and "/" in attention


FIELDS = ("text", "question", "answer", "prompt", "completion", "messages")
OLD_FIELDS = {f"{name}_field": f"--{name}-field NAME is now --fields {name}=NAME." for name in FIELDS}


@job("unlearn", Unlearned, rest=Recipe, renamed=RENAMED | OLD_FIELDS)
def unlearn(
    model: Annotated[ModelLike, Setting(alias=("--model-name-or-path", "-m"), objects=True)],
    *,
    forget: Annotated[Records, Setting(objects=True)],
    retain: Annotated[Records, Setting(objects=True)],
    general: Annotated[Records | None, Setting(objects=True)] = None,
    tokenizer: Annotated[Any, Setting(objects=True, python=True, stored=False)] = None,
    method: str | None = None,
    stop_at: str | None = None,
    evaluate_every: Annotated[int, Field(ge=1)] = 10,
    device: Annotated[str, Setting(stored=False)] = "auto",
    dtype: str = "auto",
    chat_template: str = "auto",
    date: datetime.date | None = None,
    trust_remote_code: Annotated[bool, Setting(typed=bool)] = False,
    attn_implementation: Annotated[str | None, Setting(typed=is_of_the_hub)] = None,
    shard: Annotated[bool, Setting(stored=False)] = False,
    fields: dict[str, str] | None = None,
    evaluation: Evaluation = "none",
    **settings: Any,
) -> Request:
    """Make a model forget one file while it keeps another; writes a folder that transformers loads as it is.

    Example that runs: `equipoise unlearn --model tiny --forget examples/forget.jsonl --retain examples/retain.jsonl`

    Your own: `equipoise unlearn --model ./model --forget f.jsonl --retain r.jsonl --stop-at forget_accuracy=0.3`

    Parameters
    ----------
    model
        Folder, GGUF file, hub id, "smollm2", or "tiny" (taught both files on the spot); in Python also a LanguageModel, or a
        model of transformers with its tokenizer, which is changed in place: to go on with a folder, load it anew.
    forget
        JSONL, CSV or Parquet with `text`, `question`/`answer`, `prompt`/`completion` or `messages`; in Python also records.
    retain
        What must be kept, in the same forms.
    general
        Further records that are only measured; with loss_budget, what they lose ends the run.
    tokenizer
        Of a model that is given as an object of transformers.
    method
        A preset of objective, combine and the rest; see --objective and --combine for what it fills in.
    stop_at
        End as soon as a measure of the forget set is down to a level: forget_accuracy=0.3.
    evaluate_every
        Steps between measurements and checkpoints.
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
    attn_implementation
        sdpa, eager, or another that transformers knows; not given: its own choice.
    shard
        Of several processes (torchrun) each holds only a part while training: FSDP2. The result is the same.
    fields
        The files' own names of fields, where they have others: answer=reply,question=ask.
    evaluation
        open-unlearning: its TOFU_EVAL.json and TOFU_SUMMARY.json of all records of both files, by their places there, with
        answers of up to 200 tokens.
    """
    from equipoise.unlearning.forgetting import Forgetting

    request = Forgetting.read(
        model,
        tokenizer,
        {"forget": forget, "retain": retain} | ({} if general is None else {"general": general}),
        fields=fields,
        method=method,
        settings=settings,
        stop_at=stop_at,
        every=evaluate_every,
        loading={
            "device": device,
            "dtype": dtype,
            "chat_template": chat_template,
            "date": date,
            "trust_remote_code": trust_remote_code,
        },
        attention=attn_implementation,
        shard=shard,
        evaluation=evaluation,
    )
    if shard:
        from equipoise.unlearning.training import check_shard

        check_shard(request.recipe)
    return request
