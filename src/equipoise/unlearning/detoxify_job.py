"""The job: take a subspace of unwanted directions out of a model, without training."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from equipoise.core.job import Request, job
from equipoise.core.options import Setting
from equipoise.unlearning.detoxified import Detoxified

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from equipoise.data.records import Record
    from equipoise.data.toxic_pairs import ToxicPair
    from equipoise.language.model import LanguageModel

    ModelLike = str | Path | LanguageModel
    Pairs = str | Path | Sequence[ToxicPair | Mapping[str, Any]]
    Records = str | Path | Sequence[Record | Mapping[str, Any]]
else:  # what a command line can give
    ModelLike = str | Path
    Pairs = Path
    Records = Path

Strength = Annotated[float, Field(gt=0, le=1)]


@job("detoxify", Detoxified)
def detoxify(
    model: Annotated[ModelLike, Setting(alias=("--model-name-or-path", "-m"), objects=True)],
    pairs: Annotated[Pairs, Setting(alias=("--dataset",), objects=True)],
    *,
    method: Literal["gloss", "pooled", "profs"] = "gloss",
    site: Literal["mlp", "residual"] | None = None,
    strength: Strength = 1.0,
    layers: str | None = None,
    rank: Annotated[int, Field(ge=1)] | None = None,
    candidates: Annotated[int, Field(ge=1)] = 10,
    tokens: Annotated[int, Field(ge=1)] = 50,
    alpha: float = 0.0,
    words: Path | None = None,
    general: Annotated[Records | None, Setting(objects=True)] = None,
    sweep_strengths: list[Strength] | None = None,
    sweep_layers: list[str] | None = None,
    prompts: Annotated[int, Field(ge=1)] = 40,
    max_new_tokens: Annotated[int, Field(ge=1)] = 20,
    batch_size: Annotated[int, Field(ge=1)] = 16,
    max_length: Annotated[int, Field(ge=2)] = 128,
    device: Annotated[str, Setting(stored=False)] = "auto",
    dtype: str = "auto",
    chat_template: str = "auto",
    date: datetime.date | None = None,
    trust_remote_code: Annotated[bool, Setting(typed=bool)] = False,
    fields: dict[str, str] | None = None,
    seed: Annotated[int, Field(ge=0)] = 0,
) -> Request:
    """Take an unwanted style out of a model, without training; writes a folder that transformers loads as it is.

    Example that runs: `equipoise detoxify --model smollm2 --pairs examples/rude.jsonl`

    Back to the original's bytes: `equipoise detoxify --undo equipoise-out/detoxify`

    Pairs say the same once in the unwanted and once in the wanted way. What tells both apart inside the model is projected
    out of what its feed-forward parts write. A fifth of the pairs is held out, and all numbers are of these. The report
    shows the directions by the words that they make likelier, toxicity beside perplexity, what a random projection of the
    same rank does, and what the model writes before and after. The same command goes on where it was stopped.

    Parameters
    ----------
    model
        Folder, GGUF file, hub id, "smollm2"; in Python also a LanguageModel, which is changed in place: to go
        on with a folder, load it anew.
    pairs
        JSONL, CSV or Parquet with `toxic` and `neutral`, or `rejected` and `chosen`, with or without `prompt`; in Python
        also rows.
    method
        gloss: one subspace for all layers, of the directions whose words are listed. pooled: of all directions. profs: each
        layer its own.
    site
        Where directions are read: mlp, what a feed-forward part adds, or residual, the state behind its layer; not given:
        mlp, for profs residual.
    strength
        The share of the subspace that is taken out.
    layers
        FIRST:END, layers from 0 of which the end is left out; not given: from 45 % of the depth upward.
    rank
        Directions that are taken out; not given: as many as hold 90 % of what was kept, 10 at most; for profs all
        candidates.
    candidates
        Directions that each layer offers.
    tokens
        Tokens by which a direction is ranked.
    alpha
        How strict the ranking is: standard deviations above the mean score.
    words
        A text with a word of the unwanted style on each line, for the ranking; not given: words that in the pairs stand on
        the unwanted side more often than chance has it.
    general
        Texts whose perplexity should stay, as for unlearn; not given: the neutral sides that are held out.
    sweep_strengths
        Further strengths that are measured, not written.
    sweep_layers
        Further ranges of layers that are measured, not written.
    prompts
        Held-out pairs of which the model writes a continuation.
    max_new_tokens
        Of a continuation, at most.
    batch_size
        Texts at once.
    max_length
        Tokens of a text; what is longer is cut.
    device
        auto, cpu, cuda, cuda:1, mps.
    dtype
        auto (float32 on a CPU), float32, bfloat16, float16; weights of a folder keep their own precision.
    chat_template
        auto, none, or a file with a Jinja template: how pairs with a prompt are shown.
    date
        What chat templates write as today's, the same on every day: 2024-07-26 when not given.
    trust_remote_code
        Run code that comes with a model of the hub.
    fields
        The file's own names of fields, where it has others: toxic=rude,neutral=polite.
    seed
        Of the pairs that are held out, and of the random projections.
    """
    from equipoise.unlearning.detoxifying import Detoxifying

    return Detoxifying.read(
        model,
        pairs,
        general,
        words,
        fields=fields,
        layers=layers,
        sweep_layers=sweep_layers or [],
        site=site or ("residual" if method == "profs" else "mlp"),
        method=method,
        strength=strength,
        rank=rank,
        candidates=candidates,
        tokens=tokens,
        alpha=alpha,
        sweep_strengths=tuple(sweep_strengths or ()),
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        max_length=max_length,
        loading={
            "device": device,
            "dtype": dtype,
            "chat_template": chat_template,
            "date": date,
            "trust_remote_code": trust_remote_code,
        },
        seed=seed,
    )
