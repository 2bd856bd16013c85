"""`equipoise audit`: what is wrong with a model that others rely on. So far: a judge and its biases."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from equipoise.core.errors import BadInput

if TYPE_CHECKING:
    from equipoise.judging.job import JudgeAudit, Plan

app = App(name="audit", help="Find out what is wrong with a model that others rely on.")


@app.command
def judge(
    *,
    judge: Annotated[str, Parameter(alias=["--model", "-m"])],
    teacher: str,
    pairs: Annotated[Path, Parameter(alias="--dataset")],
    test_pairs: Path | None = None,
    judge_kind: Literal["pairwise", "pointwise", "logprob", "logprob-both"] = "pairwise",
    rubric: Path | None = None,
    biases: Path | None = None,
    filters: str | None = None,
    rounds: int = 4,
    candidates: int = 10,
    rule: Literal["paired", "published"] = "paired",
    alpha: float = 0.05,
    without_explanation: Annotated[bool, Parameter(negative=())] = False,
    length_control: Annotated[bool, Parameter(negative=())] = False,
    debias: Annotated[bool, Parameter(negative=())] = False,
    limit: int | None = None,
    cut: int | None = None,
    judge_args: str | None = None,
    teacher_args: str | None = None,
    judge_url: str | None = None,
    teacher_url: str | None = None,
    judge_tokens: int = 1024,
    teacher_tokens: int = 4096,
    seed: int = 42,
    budget: str | None = None,
    prices: str | None = None,
    max_connections: int | None = None,
    replay: Path | None = None,
    out: Annotated[Path, Parameter(alias=["--output", "-o"])] = Path("equipoise-out/audit-judge"),
    fresh: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
    quiet: Annotated[bool, Parameter(negative=())] = False,
) -> int:
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
        equipoise/OWNER/NAME for one of the hub, run here.
    teacher
        The model that rewrites answers and names biases, or "rules", which needs no model and knows seventeen biases.
    pairs
        JSONL, CSV or Parquet with question, response_A, response_B and label; or prompt, chosen and rejected.
    test_pairs
        Measure on these; --pairs is then used for discovery alone. Not given: --pairs is divided.
    judge_kind
        pairwise, pointwise (rates each answer by itself), logprob (a local model, no words generated), or logprob-both
        (the mean over both orders, which cannot prefer a place).
    rubric
        Your judge's own prompt, a file as docs/chat.md shows, with slots question, answer_1 and answer_2; the judge must end
        with "Decision: 1" or "Decision: 2".
    biases
        A JSON list of name and definition to begin with, instead of the seven basic biases.
    filters
        Further judges, between commas; two thirds of all must be fooled by what goes into the harder test set.
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
        Measure what holds once more with rewrites cut to the length of the answers they were made from.
    debias
        Warn a pairwise judge of the library's biases before every question; compare with an audit without.
    limit
        Only the first so many pairs of each file.
    cut
        Words of each text that a logprob judge sees; not given: all.
    judge_args
        Arguments of the judge's provider, such as engine=transformers,batch_size=8; several between commas.
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
        Stop cleanly at calls=500, tokens=2e6, usd=4 or minutes=30; several between commas.
    prices
        Dollars per million tokens read and written, for usd: openai/gpt-4o=2.5:10; several between commas.
    max_connections
        Calls at once; not given: what the provider is used to.
    replay
        Answer from this record of calls alone, offline.
    out
        The folder to write; the same settings resume it.
    fresh
        Set aside what is in the folder and start anew.
    dry_run
        Show three parsed pairs and how many calls it would take; ask nothing.
    json_output
        Print the result as JSON.
    quiet
        No progress.
    """
    from equipoise.chat.account import Budget
    from equipoise.core.progress import quiet as silenced
    from equipoise.judging.job import audit_judge, plan
    from equipoise.judging.judges import pairwise_template

    words: dict[str, Any] = {
        "test_pairs": test_pairs,
        "biases": biases,
        "rounds": rounds,
        "candidates": candidates,
        "rule": rule,
        "alpha": alpha,
        "filters": _list(filters),
        "without_explanation": without_explanation,
        "judge_kind": judge_kind,
        "limit": limit,
        "seed": seed,
    }
    costs, limits = _prices(prices), None if budget is None else Budget.parse(budget)
    arguments = _arguments(judge_args, "--judge-args"), _arguments(teacher_args, "--teacher-args")
    if rubric is not None:
        pairwise_template(rubric)
    if dry_run:
        _print_plan(plan(pairs, judge=judge, teacher=teacher, prices=costs, **words), json_output)
        return 0
    if not quiet:
        asked = plan(pairs, judge=judge, teacher=teacher, prices=costs, **words)
        least, most = (sum(counts[case] for counts in asked.calls.values()) for case in (0, 1))
        if most:
            told = f"{least:,} calls when nothing is found, up to {most:,}"
            print(f"{told}{_cost(asked)}; --budget sets a limit, what is recorded costs nothing.", file=sys.stderr)
    with silenced(quiet):
        done = audit_judge(
            judge,
            teacher,
            pairs,
            rubric=rubric,
            length_control=length_control,
            debias=debias,
            cut=cut,
            judge_args=arguments[0],
            teacher_args=arguments[1],
            judge_url=judge_url,
            teacher_url=teacher_url,
            judge_tokens=judge_tokens,
            teacher_tokens=teacher_tokens,
            budget=limits,
            prices=costs,
            max_connections=max_connections,
            replay=replay,
            out=out,
            fresh=fresh,
            **words,
        )
    _print(done, json_output)
    return 0


def _list(text: str | None) -> list[str]:
    return [each.strip() for each in (text or "").split(",") if each.strip()]


def _arguments(text: str | None, option: str) -> dict[str, Any]:
    """name=value between commas; numbers and true, false as such."""
    found: dict[str, Any] = {}
    for each in _list(text):
        name, equals, value = each.partition("=")
        if not equals:
            raise BadInput(f"{option} has {each!r}, expected name=value, several between commas.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _prices(text: str | None) -> dict[str, tuple[float, float, float]] | None:
    found = {}
    for each in _list(text):
        name, _, amounts = each.rpartition("=")
        try:
            read, written = (float(amount) for amount in amounts.split(":"))
        except ValueError as error:
            raise BadInput(
                f"--prices has {each!r}, expected MODEL=READ:WRITTEN in dollars per million tokens."
            ) from error
        found[name] = (read, read, written)
    return found or None


def _print_plan(plan: "Plan", as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print(json.dumps(asdict(plan), indent=2))
        return
    print("{} pairs to discover, {} to select, {} to report; the first:".format(*plan.sizes))
    for pair in plan.first:
        print(f"  {json.dumps({name: _short(value) for name, value in pair.items()}, ensure_ascii=False)}")
    for left_out in plan.left_out[:3]:
        print(f"left out: {left_out}")
    for role, (least, most) in plan.calls.items():
        print(f"{role}: {least:,} calls when nothing is found, up to {most:,}")
    print(f"about {plan.tokens[0] / 1e6:.2g} to {plan.tokens[1] / 1e6:.2g} million tokens{_cost(plan)}")


def _cost(plan: "Plan") -> str:
    if plan.usd is None:
        return ", cost unknown without --prices of every model"
    return ", {:.2f} to {:.2f} usd".format(*plan.usd) if plan.usd[1] else ", free"


def _short(value: Any) -> Any:
    return value[:80] + "..." if isinstance(value, str) and len(value) > 80 else value


def _print(done: "JudgeAudit", as_json: bool) -> None:
    if as_json:
        print((done.folder / "biases.json").read_text(encoding="utf-8") if done.folder else "{}")
        return
    for each in done.biases:
        effect = each.effect
        word = "holds" if each.holds else "not confirmed" if each.report else "screened out"
        told = f"{100 * effect.increase:+.1f} points [{100 * effect.lower:+.1f}, {100 * effect.upper:+.1f}]"
        if not effect.pairs:
            word, told = "not rewritten", "the teacher gave no rewrite that could be compared"
        print(f"{each.name:<28} {word:<14} {told}{f', {effect.pairs} pairs' if effect.pairs else ''}", file=sys.stderr)
    verdicts = 2 * done.position.pairs
    if done.position.no_verdict:
        print(f"No verdict could be read in {done.position.no_verdict} of {verdicts} answers.", file=sys.stderr)
    if done.placebo is not None and done.placebo.lower > 0:
        told = f"{100 * done.placebo.increase:+.1f} points"
        print(f"Rewriting alone, with no bias, does {told}: see the report.", file=sys.stderr)
    spent = f"{done.calls} calls" if done.calls else "no chat calls"
    print(f"{len(done.holding)} of {len(done.biases)} biases hold, {spent}.", file=sys.stderr)
    print(f"Report: {done.folder}/report.html", file=sys.stderr)
    print(done.folder)
