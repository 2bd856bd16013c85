"""A command from a job: its options and their texts as declared, those that all jobs share, plan or work, print."""

import inspect
import json as json_module
import os
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import Group, Parameter

from equipoise.core.errors import BadInput, WrongOption
from equipoise.core.files import read_regular
from equipoise.core.job import RESULT, Job, as_text
from equipoise.core.options import allowed
from equipoise.core.terminal import say

HELP_FORMAT = "plaintext"  # of a job's many options: Markdown takes a third of the time until their help is there
UNIONS = (Union, types.UnionType)
NEEDED = Group("Needed", sort_key=0)
SETTINGS = Group("Settings", sort_key=1)
COMMAND = Group("Of every job", sort_key=2)


def command(job: Job[..., Any], out: str | None = None, *, positional: Sequence[str] = ()) -> Callable[..., int]:
    """The function that a command line calls. out: the name of the usual folder, else the command's own words.

    positional: options that may also be typed without their names, in this order.
    """
    options = job.options
    usual = Path("equipoise-out") / (out or job.command.replace(" ", "-"))
    texts: dict[str, str] = {}
    if options.rest is not None:
        texts = {name: (field.description or "").replace("`", "") for name, field in options.rest.model_fields.items()}

    def run(
        *typed: Any,
        out: Path = usual,
        fresh: bool = False,
        dry_run: bool = False,
        config: Path | None = None,
        **given: Any,
    ) -> int:
        from equipoise.core import progress

        given |= dict(zip(positional, typed, strict=False))
        as_json, silent = given.pop("json", False), given.pop("quiet", False)
        values = {**({} if config is None else stored_settings(job, config, given)), **given}
        missing = [name for name in options.hints if options.default(name) is ... and name not in values]
        if missing:
            raise WrongOption(missing[0], f"is missing. Help: equipoise {job.command} --help")
        options.check_names(values)
        read = {name: options.from_text(name, value) for name, value in values.items()}
        main = _main_process()
        with progress.quiet(silent or not main):
            done = job.plan(**read, out=out, fresh=fresh) if dry_run else job(**read, out=out, fresh=fresh)
        if not main:
            return 0
        if as_json:
            print(_json(done, dry_run))
            return 0
        for line in done.summary():
            say(line, file=sys.stdout if dry_run else sys.stderr)
        if not dry_run:
            say(f"Report: {done.folder}/report.html")
            print(done.folder)
        return 0

    shared = [
        _option("out", Path, usual, "The folder to write; the same settings resume it.", COMMAND, ("--output", "-o")),
        _option("config", Path | None, None, "The run.json of another run; what is typed beside it wins.", COMMAND),
        _option("fresh", bool, False, "Set aside what is in the folder and start anew.", COMMAND),
        _option("dry_run", bool, False, "Check the request and show what it would do; change nothing.", COMMAND),
        _option("json", bool, False, "Print the result as JSON.", COMMAND),
        _option("quiet", bool, False, "No progress.", COMMAND),
    ]
    own = [_parameter(job, name, texts.get(name)) for name in options.hints if not options.setting(name).python]
    own += [_renamed(name) for name in options.renamed]
    by_name = {each.name: each for each in own}
    led = [by_name.pop(name).replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in positional]
    own = [*led, *by_name.values()]
    run.__signature__ = inspect.Signature([*own, *shared])  # pyright: ignore[reportFunctionMemberAccess]
    run.__annotations__ = {each.name: each.annotation for each in (*own, *shared)}
    run.__doc__ = _plain(inspect.getdoc(job) or "")
    return run


def _plain(text: str) -> str:
    """A docstring as a terminal shows it: without marks, so that a command can be copied, each paragraph in one line."""
    lines = [""]
    for line in text.replace("`", "").splitlines():
        before, indented = lines[-1], line.startswith("    ")
        rule = {line[:3], before[:3]} & {"---"}
        if line.strip() and before.strip() and indented == before.startswith("    ") and not rule:
            lines[-1] = f"{before} {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines[1:])


def stored_settings(job: Job[..., Any], config: Path, typed: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run.json, for what is not typed.

    Raises BadInput for a file that is none, and for a setting that makes code run: that has to be typed.
    """
    try:
        settings = json_module.loads(read_regular(config))
        if not isinstance(settings, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"--config {config}: {error}; expected the run.json that a job stored.") from error
    options = job.options
    settings = options.current(settings)
    options.check_names(settings)
    known = {name: value for name, value in settings.items() if name not in typed}
    for name, value in known.items():
        if options.setting(name).typed(options.from_text(name, value)):
            flag = f"--{name.replace('_', '-')}"
            raise BadInput(
                f"--config {config} sets {name} to {value!r}, which can let code run: type {flag} to allow it."
            )
    return known


def _parameter(job: Job[..., Any], name: str, text: str | None) -> inspect.Parameter:
    """As cyclopts takes it: a word of text, which the job's own options read, or a flag."""
    options, hint, default = job.options, job.options.hints[name], job.options.default(name)
    bare = _unannotated(hint)
    alias = options.setting(name).alias
    if bare is bool:
        return _option(name, bool, default, text, SETTINGS, alias)
    how: dict[str, Any] = {
        "alias": list(alias) or None,
        "negative": (),
        "group": NEEDED if default is ... else SETTINGS,
        "required": False,
        "show_default": default is not ... and default is not None,
        "choices": [str(each) for each in allowed(bare) if each is not None] or None,
        "metavar": _metavar(bare),
        "allow_leading_hyphen": True,
    }
    how |= {"help": text} if text else {}  # a None would hide what the docstring says
    # Only what is typed reaches the job: the default is text for the help.
    shown = None if default is ... or default is None else as_text(options.to_json({name: default})[name])
    hint = Annotated[str | None, Parameter(**how)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=hint)


def _renamed(name: str) -> inspect.Parameter:
    """An option of an earlier version: taken without a word in the help, and answered with what it has become."""
    hint = Annotated[str | None, Parameter(show=False, negative=())]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)


def _metavar(kind: Any) -> str | None:
    """How the help names the kind of a value; None where it shows the choices."""
    kinds = [each for each in get_args(kind) if each is not type(None)] if get_origin(kind) in UNIONS else [kind]
    origins = [get_origin(each) or each for each in kinds]
    if all(origin is Literal for origin in origins):
        return None
    if any(isinstance(origin, type) and issubclass(origin, Mapping) for origin in origins):
        return "NAME=VALUE,..."
    if any(isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str for origin in origins):
        return "A,B,..."
    names = {int: "INT", float: "FLOAT", Path: "PATH"}
    return next((names[origin] for origin in (_unannotated(each) for each in kinds) if origin in names), "TEXT")


def _unannotated(kind: Any) -> Any:
    return get_args(kind)[0] if hasattr(kind, "__metadata__") else kind


def _option(
    name: str, kind: Any, default: Any, text: str | None, group: Group, alias: tuple[str, ...] = ()
) -> inspect.Parameter:
    how: dict[str, Any] = {"help": text} if text else {}
    how |= {"negative": (), "alias": list(alias) or None, "group": group, "show_default": kind is not bool}
    hint = Annotated[kind, Parameter(**how)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _json(done: Any, planned: bool) -> str:
    from equipoise.core.serialize import serialize

    if planned:
        return json_module.dumps(serialize(done), indent=1, ensure_ascii=False)
    return (done.folder / RESULT).read_text(encoding="utf-8")


def _main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # as torchrun and accelerate launch number them
