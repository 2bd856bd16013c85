"""`equipoise study`: list, show, run and report the declared comparisons."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.terminal import say, shown

if TYPE_CHECKING:
    from equipoise.study.declare import Declaration, Study
    from equipoise.study.execute import Conducted

Flag = Parameter(negative=())

app = App(
    name="study",
    help="""Weigh a method: declared comparisons, run on equal terms, judged by a stated rule.

    For example:

        equipoise study list
        equipoise study show sago
        equipoise study run sago --seeds 2 --arms sum,pcgrad,sago
        equipoise study report equipoise-out/study/sago
    """,
)


@app.command(name="list")
def list_studies(*, json: Annotated[bool, Flag] = False) -> None:
    """List the studies that are installed: what each trades, and its last published verdicts.

    Example: equipoise study list --json

    Parameters
    ----------
    json
        Print one JSON array.
    """
    from json import dumps

    from equipoise.study import registry
    from equipoise.study.summary_text import published_counts

    rows: list[dict[str, Any]] = []
    for each in registry.found().values():
        if each.declaration is None:
            rows.append({"name": each.name, "origin": each.origin, "problem": str(each.problem)})
            continue
        declared = each.declaration
        entry = _published(declared)
        rows.append(
            {
                "name": each.name,
                "trades": declared.trades,
                "summary": declared.summary,
                "paper": declared.paper,
                "origin": each.origin,
                "verdicts": None if entry is None else published_counts(entry),
            }
        )
    if json:
        print(dumps(rows, indent=1, ensure_ascii=False))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        if "problem" in row:
            print(f"{row['name']:<{width}}  cannot be loaded ({row['origin']}): {row['problem']}")
        else:
            verdicts = ", ".join(f"{count} {state}" for state, count in (row["verdicts"] or {}).items())
            print(f"{row['name']:<{width}}  {row['trades']}; {verdicts or 'not published yet'}")


@app.command
def show(name: str, *, json: Annotated[bool, Flag] = False) -> None:
    """Show a study's arms, outcomes, claims with their sources, and options with defaults.

    Example: equipoise study show sago

    Parameters
    ----------
    name
        A name from `equipoise study list`, or a file: ./mine.py
    json
        Print one JSON object.
    """
    from json import dumps

    from equipoise.study import registry
    from equipoise.study.summary_text import recorded_words

    declaration = registry.load(name)
    study = declaration.build()
    content = _described(declaration, study)
    entry = _published(declaration)
    # What was published before it was counted says nothing about it.
    if entry is not None and "recorded" in entry:
        content["recorded"] = entry["recorded"] | {"options": entry["options"]}
    if json:
        print(dumps(content, indent=1, ensure_ascii=False))
        return
    print(f"{study.name}: {study.summary}\ntrades {study.trades}; {study.paper}\n{study.scale}".rstrip())
    first = f" from {study.first_seed} on" if study.first_seed else ""
    print(f"{study.seeds} seeds{first}, equal {study.budget}")
    if content["select"]:
        print(content["select"])
    if "recorded" in content:
        print(recorded_words(content["recorded"], declaration.options()))
    print("\nArms")
    for arm in content["arms"]:
        settings = ", ".join(f"{key}={value}" for key, value in arm["settings"].items())
        grid = "; ".join(f"{key} of {', '.join(map(str, values))}" for key, values in arm["grid"].items())
        print(f"  {arm['name']} ({arm['kind']})  {settings}{'; ' if settings and grid else ''}{grid}{arm['fixed']}")
    print("\nOutcomes")
    for outcome in study.outcomes:
        chance = "" if outcome.chance is None else f", chance {outcome.chance:g}"
        unit = f" in {outcome.unit}" if outcome.unit else ""
        print(f"  {outcome.name}{unit}, {outcome.better} is better{chance}  {outcome.description}".rstrip())
    print("\nClaims")
    for claim in content["claims"]:
        print(f"  {claim['text']}\n    {claim['source']}; {claim['test']}")
    print("\nOptions")
    for option in content["options"]:
        print(f"  --{option['name'].replace('_', '-')} {option['type']}  default {option['default']}")


@app.command
def run(
    name: str,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    seeds: int | None = None,
    seed_list: str | None = None,
    arms: str | None = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    engine: str = "local",
    workers: int | None = None,
    threads: int = 1,
    stall: float = 600.0,
    budget: str | None = None,
    fail_fast: Annotated[bool, Flag] = False,
    keep_going: Annotated[bool, Flag] = False,
    fresh: Annotated[bool, Flag] = False,
    retry: Annotated[bool, Flag] = False,
    quiet: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
    **options: str,
) -> int:
    """Run what a study still misses in its output folder, judge it, and write its report; the same command resumes.

    Every option of the study (see `equipoise study show NAME`) is a flag here, too. Prints the verdicts and, last, the
    path of the report. Exit code 1 when a run failed, 3 when the budget ended it. Where the first runs fail alike the
    others are not tried.

    Example: equipoise study run sago --steps 50 --seeds 2 --arms sum,pcgrad,sago

    Your own: equipoise study run ./mine.py

    Parameters
    ----------
    name
        A name from `equipoise study list`, or a file: ./mine.py, ./mine.py:NAME where it declares several.
    set_
        An option of the study as NAME=VALUE; may be repeated, and also sets options that share a name with a flag.
    seeds
        Number of test seeds, the study's first; default: its own number. Fewer give a preview.
    seed_list
        The test seeds themselves: 0,3. Verdicts fall on those that the study declares; others are shown only.
    arms
        Only these arms: sum,sago.
    out
        Output folder; default equipoise-out/study/NAME. The same settings resume what it holds.
    engine
        local (processes on this machine), ray (workers of the cluster at RAY_ADDRESS, else on this machine), or inline (one
        after the other in this process, for a debugger).
    workers
        Runs at a time; default: cores / threads.
    threads
        Threads of each run; part of every result, since sums change with it.
    stall
        Seconds without a sign of life after which a run is given up.
    budget
        Stop cleanly at minutes=30,calls=500,tokens=2e6 or any other cost: minutes of this command, others in all.
    fail_fast
        Stop at the first run that fails.
    keep_going
        Try every run, also where the first ones fail alike.
    fresh
        Set what the output folder holds aside under a numbered name and start anew.
    retry
        Also run again what was given up.
    quiet
        No progress; failures are still shown.
    json
        Print verdicts and paths as one JSON object.
    """
    from equipoise.core import progress
    from equipoise.core.budget import Budget
    from equipoise.study import registry
    from equipoise.study.display import Display
    from equipoise.study.execute import run_study

    declaration = registry.load(name)
    given = declaration.options(_given(set_ or [], options), text=True)
    if seeds is not None and seed_list is not None:
        raise BadInput("Give --seeds or --seed-list, not both.")
    if seeds is not None and seeds < 1:
        raise BadInput(f"--seeds is the number of test seeds, at least 1; got {seeds}.")
    chosen = _whole_numbers("--seed-list", seed_list) if seed_list is not None else None
    target = out or Path("equipoise-out/study") / declaration.name
    with progress.quiet(quiet), Display(declaration.name) as display:
        done = run_study(
            declaration,
            given,
            out=target,
            seeds=seeds if chosen is None else chosen,
            arms=None if arms is None else _words(arms),
            engine=engine,
            workers=workers,
            threads=threads,
            stall=stall,
            budget=None if budget is None else Budget.parse(budget),
            fail_fast=fail_fast,
            keep_going=keep_going,
            fresh=fresh,
            retry=retry,
            command=_command(name, declaration, given, seeds, seed_list, arms, threads),
            show=display,
        )
    if done.stopped and not done.complete:
        raise WorkFailed(done.stopped)
    _judge_and_render(done.study, [target], target, json=json, done=done)
    if done.budget:
        say(done.budget)
        return 3
    if done.failed:
        say(done.stopped or f"{len(done.failed)} not done: {', '.join(list(done.failed)[:5])}")
        return 1
    return 0


@app.command
def report(
    *folders: Path,
    publish: Annotated[bool, Flag] = False,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    study: str | None = None,
    json: Annotated[bool, Flag] = False,
) -> None:
    """Judge and render what is stored; several output folders of one study are merged. Nothing is run.

    Example: equipoise study report equipoise-out/study/sago

    Parameters
    ----------
    folders
        Output folders of `equipoise study run`.
    publish
        Also write the verdicts to verdicts.json beside the study's file.
    out
        Where the report goes; default: the first folder.
    study
        The file of a study of your own: ./mine.py. No file is run that is not named here.
    json
        Print verdicts and paths as one JSON object.
    """
    from equipoise.study.store import read_study

    if not folders:
        raise BadInput("Name at least one output folder: equipoise study report equipoise-out/study/NAME")
    settings = [read_study(folder) for folder in folders]
    first = settings[0]
    for folder, each in zip(folders, settings, strict=True):
        for key in ("study", "options"):
            if each.get(key) != first.get(key):
                raise BadInput(
                    f"{folder} and {folders[0]} hold different studies: {key} {each.get(key)} and {first.get(key)}."
                )
    declaration = _declaration(study, folders[0], first)
    built = declaration.build(**first["options"])
    verdicts = _verdicts_file(declaration) if publish else None
    _judge_and_render(built, folders, out or folders[0], json=json, publish=verdicts)


@app.command
def compare(a: Path, b: Path, *, study: str | None = None, json: Annotated[bool, Flag] = False) -> None:
    """Say what changed between two output folders of one study: settings, runs, measurements, verdicts, costs.

    Their options may differ. Each folder is read and judged by itself; runs of different code are compared, not mixed.

    Example: equipoise study compare equipoise-out/study/sago ./sago-of-last-week

    Parameters
    ----------
    a
        An output folder of `equipoise study run`.
    b
        Another one of the same study.
    study
        The file of a study of your own: ./mine.py. No file is run that is not named here.
    json
        Print one JSON object.
    """
    from json import dumps

    from equipoise.study.compare import as_json, lines
    from equipoise.study.compare import compare as compare_folders
    from equipoise.study.store import read_study

    compared = compare_folders(_declaration(study, a, read_study(a)), a, b)
    if json:
        print(shown(dumps(as_json(compared), indent=1, ensure_ascii=False)))
        return
    for line in lines(compared):
        print(shown(line))
    for side in (compared.a, compared.b):
        for note in side.results.notes:
            say(f"{side.folder}: {note}")


@app.command
def index(
    *folders: Path,
    out: Annotated[Path, Parameter(alias="-o")] = Path("equipoise-out/index.html"),
) -> None:
    """Write one page over all installed studies with their published verdicts, linked to the reports in these folders.

    A report belongs to a study by the table beside it. Prints the path of the page.

    Example: equipoise study index docs/results --out docs/results/index.html

    Parameters
    ----------
    folders
        Where reports are, however deep; they are linked, not copied.
    out
        The page.
    """
    from equipoise.study import registry
    from equipoise.study.index_page import entry_of, reports_in
    from equipoise.study.index_page import index as write_index

    reports = reports_in(folders)
    entries = []
    for each in registry.found().values():
        if each.declaration is None:
            say(f"{each.name} is left out: it cannot be loaded ({each.origin}): {each.problem}")
            continue
        own = [report for report in reports if report.study == each.name]
        entries.append(entry_of(each.declaration, _published(each.declaration), own, out.parent))
    print(write_index(entries, out))


def _judge_and_render(
    study: "Study",
    folders: Sequence[Path],
    out: Path,
    *,
    json: bool,
    done: "Conducted | None" = None,
    publish: Path | None = None,
) -> None:
    """Verdicts on stdout and, last, the report's path; with `json` one object."""
    from json import dumps

    from equipoise.study.judging import judge
    from equipoise.study.report import render
    from equipoise.study.results import load
    from equipoise.study.summary_text import counted, published_entry
    from equipoise.study.summary_text import publish as write_verdicts

    results = load(folders, study)
    if done is not None:
        results.notes += done.notes
    judgement = judge(study, results)
    path = render(study, results, judgement, out)
    if publish is not None:
        write_verdicts(publish, study, results, judgement)
    if json:
        states = {run.key: run.state for run in results.runs}
        content = {**published_entry(study, results, judgement), "runs": states, "report": str(path)}
        print(shown(dumps(content, indent=1, ensure_ascii=False)))
        return
    for verdict in judgement.verdicts:
        state = verdict.state if counted(verdict) else "exploratory"
        print(shown(f"{state}: {verdict.claim.text}\n  {verdict.reason}"))
    for note in results.notes:
        say(note)
    print(path)


def _declaration(study: str | None, folder: Path, stored: Mapping[str, Any]) -> "Declaration":
    """The study of a folder: the one that was typed, else the installed one of the stored name."""
    from equipoise.study import registry

    return registry.load(study) if study else registry.declared(stored["study"], folder)


def _given(pairs: Sequence[str], options: Mapping[str, str]) -> dict[str, str]:
    """Options of the study from --set NAME=VALUE and from flags, by the name of the parameter."""
    given = {key.replace("-", "_"): value for key, value in options.items()}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise BadInput(f"--set takes NAME=VALUE, as in --set steps=50; got {pair!r}.")
        given[key.strip().replace("-", "_")] = value
    return given


def _command(
    name: str,
    declaration: "Declaration",
    options: Mapping[str, Any],
    seeds: int | None,
    seed_list: str | None,
    arms: str | None,
    threads: int,
) -> str:
    """The command that makes the same results, whatever was typed.

    An option of the study that is called as a flag of `run`, or whose value begins as a flag does, stands behind --set.
    """
    from inspect import signature
    from json import dumps

    defaults = declaration.options()
    own = {each.strip("_") for each in signature(run).parameters} | {"help", "version", "debug"}
    words = ["equipoise", "study", "run", name]
    for key, value in options.items():
        if value != defaults[key]:
            text = value if isinstance(value, str) else dumps(value)
            set_ = key in own or text.startswith("-")
            words += ["--set", f"{key}={text}"] if set_ else [f"--{key.replace('_', '-')}", text]
    for flag, value in (("--seeds", seeds), ("--seed-list", seed_list), ("--arms", arms)):
        if value is not None:
            words += [flag, str(value)]
    if threads != 1:
        words += ["--threads", str(threads)]
    return shlex.join(words)


def _described(declaration: "Declaration", study: "Study") -> dict[str, Any]:
    select = study.select
    how = ""
    if select is not None:
        how = f"settings chosen on {select.seeds} tuning seeds by {select.outcome} on the {select.split} split"
        how += f" where {select.matched} reaches {select.level}" if select.matched else ""
    return {
        "name": study.name,
        "summary": study.summary,
        "trades": study.trades,
        "paper": study.paper,
        "scale": study.scale,
        "seeds": study.seeds,
        "budget": study.budget,
        "select": how,
        "arms": [
            {
                "name": arm.name,
                "kind": arm.kind,
                "settings": arm.settings,
                "grid": arm.grid,
                "fixed": f"; one setting: {arm.fixed}" if arm.fixed else "",
            }
            for arm in study.arms
        ],
        "outcomes": [
            {"name": each.name, "better": each.better, "chance": each.chance, "unit": each.unit}
            for each in study.outcomes
        ],
        "claims": [
            {
                "text": claim.text,
                "source": claim.source,
                "test": f"untested: {claim.untested}" if claim.test is None else claim.test.describe(),
                "judged": claim.judged,
            }
            for claim in study.claims
        ],
        "options": declaration.parameters.described(),
    }


def _verdicts_file(declaration: "Declaration") -> Path:
    return declaration.source.parent / "verdicts.json"


def _published(declaration: "Declaration") -> dict[str, Any] | None:
    """What stands published of a study; None before the first time."""
    from equipoise.study.summary_text import published

    return published(_verdicts_file(declaration)).get(declaration.name)


def _words(text: str) -> list[str]:
    return [word for word in (each.strip() for each in text.split(",")) if word]


def _whole_numbers(flag: str, text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise BadInput(f"{flag} takes whole numbers with commas between, as in {flag} 0,3; got {text!r}.") from None
