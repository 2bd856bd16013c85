"""`equipoise unlearn`: make a causal language model forget a file."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from equipoise.unlearning.recipe import Recipe

if TYPE_CHECKING:
    from equipoise.unlearning.job import Plan, Unlearned

app = App(name="unlearn")

FIELDS = ("text", "question", "answer", "prompt", "completion", "messages")


@app.default
def unlearn(
    *,
    model: Annotated[str, Parameter(alias=["--model-name-or-path", "-m"])],
    forget: Path,
    retain: Path,
    general: Path | None = None,
    method: str | None = None,
    recipe: Annotated[Recipe | None, Parameter(name="*")] = None,
    stop_at: str | None = None,
    evaluate_every: int = 10,
    device: str = "auto",
    dtype: str = "auto",
    chat_template: str = "auto",
    trust_remote_code: Annotated[bool, Parameter(negative=())] = False,
    attn_implementation: str | None = None,
    shard: Annotated[bool, Parameter(negative=())] = False,
    text_field: str | None = None,
    question_field: str | None = None,
    answer_field: str | None = None,
    prompt_field: str | None = None,
    completion_field: str | None = None,
    messages_field: str | None = None,
    out: Annotated[Path, Parameter(alias=["--output", "-o"])] = Path("equipoise-out/unlearn"),
    fresh: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
    quiet: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Make a model forget one file while it keeps another; writes a folder that transformers loads as it is.

    Example that runs: `equipoise unlearn --model tiny --forget examples/forget.jsonl --retain examples/retain.jsonl`

    Your own: `equipoise unlearn --model ./model --forget f.jsonl --retain r.jsonl --stop-at forget_accuracy=0.3`

    `--config run.json` takes the stored settings of another run; what is typed beside it wins.

    Parameters
    ----------
    model
        Folder, GGUF file, hub id, "smollm2", or "tiny" (taught both files on the spot).
    forget
        JSONL, CSV or Parquet with `text`, `question`/`answer`, `prompt`/`completion` or `messages`.
    retain
        What must be kept, in the same forms.
    general
        Further records that are only measured.
    method
        A preset of objective, combine and the rest: blur, graddiff, gru, npo, pcgrad, rmu, sago, simnpo.
    recipe
        The words a method is made of.
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
    trust_remote_code
        Run code that comes with a model of the hub.
    attn_implementation
        sdpa, eager, or another that transformers knows; not given: its own choice.
    shard
        Of several processes (torchrun) each holds only a part while training: FSDP2. The result is the same.
    text_field
        The files' own name of the field `text`.
    question_field
        The files' own name of the field `question`.
    answer_field
        The files' own name of the field `answer`.
    prompt_field
        The files' own name of the field `prompt`.
    completion_field
        The files' own name of the field `completion`.
    messages_field
        The files' own name of the field `messages`.
    out
        The folder to write; the same settings resume it.
    fresh
        Set aside what is in the folder and start anew.
    dry_run
        Show three parsed records of each file, token counts, and estimates of time and memory; change nothing.
    json_output
        Print the result as JSON.
    quiet
        No progress.
    """
    from equipoise.core.progress import quiet as silenced
    from equipoise.unlearning.job import plan
    from equipoise.unlearning.job import unlearn as work

    renamed = (text_field, question_field, answer_field, prompt_field, completion_field, messages_field)
    words = {} if recipe is None else {name: getattr(recipe, name) for name in recipe.model_fields_set}
    request: dict[str, Any] = {
        "forget": forget,
        "retain": retain,
        "general": general,
        "method": method,
        "stop_at": stop_at,
        "evaluate_every": evaluate_every,
        "device": device,
        "dtype": dtype,
        "chat_template": chat_template,
        "trust_remote_code": trust_remote_code,
        "attn_implementation": attn_implementation,
        "shard": shard,
        "fields": {ours: theirs for ours, theirs in zip(FIELDS, renamed, strict=True) if theirs is not None},
        **words,
    }
    main_process = os.environ.get("RANK", "0") == "0"  # as torchrun and accelerate launch number them
    with silenced(quiet or not main_process):
        if dry_run:
            _print_plan(plan(model, **request), json_output)
            return 0
        done = work(model, out=out, fresh=fresh, **request)
    if main_process:
        _print_result(done, json_output)
    return 0


def _print_plan(plan: "Plan", as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print(json.dumps(asdict(plan), indent=2))
        return
    print(plan.model)
    for side, records in plan.first.items():
        print(f"{side}: {plan.records[side]:,} records, {plan.tokens[side]:,} tokens; the first:")
        for record in records:
            print(f"  {json.dumps(record, ensure_ascii=False)}")
    print(f"recipe: {_told(plan.recipe)}")
    print(f"trained parameters: {plan.trained_parameters:,}")
    time = f"{plan.seconds:.0f} s" if plan.seconds < 120 else f"{plan.seconds / 60:.0f} minutes"
    print(f"estimate: {time}, {plan.peak_bytes / 1e9:.2g} GB at the peak")


def _told(words: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in words.items())


def _print_result(done: "Unlearned", as_json: bool) -> None:
    if as_json:
        measures = {"before": done.before, "after": done.after}
        plain = {when: {name: measure.value for name, measure in found.items()} for when, found in measures.items()}
        print(json.dumps({**plain, "steps": done.steps, "stopped": done.stopped, "folder": str(done.folder)}, indent=2))
        return
    print(f"recipe: {_told(done.resolved)}", file=sys.stderr)
    width = max(len(name) for name in done.after)
    for name, measure in done.after.items():
        change = f"{done.before[name]!s:>24} -> {measure!s:<24}"
        print(f"{name:<{width}}  {change} ({measure.better} is better)", file=sys.stderr)
    print(f"{done.stopped}. Report: {done.folder}/report.html", file=sys.stderr)
    print(done.folder)
