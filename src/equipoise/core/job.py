"""A job is declared once: a function whose parameters are its settings and whose value is a request.

    @job("certify run", Certification)
    def certify(network: ..., inputs: ..., *, iterations: Annotated[int, Field(ge=1)] = 300) -> Request: ...

    certify(network, inputs)                    the result
    certify(network, inputs, out="certified")   the same, and a folder that the same call resumes or finds done
    certify.plan(network, inputs)               what it would do, after the same checks

The function reads the request and finds it right, or raises BadInput; nothing is written yet. From the one declaration come
the closed checks of its options, run.json, the folder and its resume, the stored result, the page and the command.
"""

import functools
import html
import inspect
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, Protocol, TypeVar, overload

from equipoise.core.errors import BadInput, BudgetReached, WorkFailed, WrongOption
from equipoise.core.files import model_files_digest, read_regular, sha256_file, write_atomic
from equipoise.core.folder import (
    SETTINGS,
    JobFolder,
    check_folder,
    damage,
    job_folder,
    opened,
    unlisted,
    write_manifest,
)
from equipoise.core.options import Options
from equipoise.core.serialize import deserialize, serialize

if TYPE_CHECKING:
    from pydantic import BaseModel

    from equipoise.core.page import Part

RESULT = "result.json"
REPORT = "report.html"
TEMPLATE = "chat_template"  # the option that may name a file whose text decides what a model reads
P = ParamSpec("P")
R = TypeVar("R", bound="Result")


class Result(Protocol):
    """What a job comes to: a frozen dataclass. folder: None when nothing was written."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def folder(self) -> Path | None: ...
    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        ...

    def page(self, folder: Path) -> "Page":
        """What a person sees, from the result and what lies in its folder."""
        ...


@dataclass(frozen=True)
class Page:
    """What a person sees of a result: the sections of its report, to which the frame adds settings, notes and command.

    files: further texts that are drawn from the result, by their names in the folder.
    """

    title: str
    lead: str
    parts: "Sequence[Part]"
    facts: Sequence[tuple[str, str]] = ()
    files: Mapping[str, str] = field(default_factory=dict)


class Processes(Protocol):
    """The processes that do one request together; only the main one writes."""

    @property
    def main(self) -> bool:
        """Whether this is the one that writes."""
        ...

    def wait(self) -> None:
        """Return when all have come here."""


class Alone:
    """One process."""

    main = True

    def wait(self) -> None:
        """Nobody to wait for."""


class Request:
    """A request that was read and found right; nothing is written yet. A job's own subclass does the work.

    inputs: name -> sha256 of what was read. resolved: settings as they are meant, over those that were given.
    """

    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @property
    def processes(self) -> Processes:
        """The processes that work on it together."""
        return Alone()

    def plan(self) -> Any:
        """What `work` would do, as a dataclass with a `summary`; changes nothing."""
        raise NotImplementedError

    def work(self, folder: Path | None) -> Any:
        """Do it, from what the folder already holds; the result."""
        raise NotImplementedError

    def scratch(self) -> tuple[str, ...]:
        """Files of the work that are no part of what it comes to; they go when the folder has its name."""
        return ()

    def partial(self, folder: Path) -> Any:
        """What is known when the work was ended early, stored in the folder; None when that is nothing."""
        return None


class Job(Generic[P, R]):
    """See the module."""

    def __init__(
        self,
        command: str,
        function: Callable[..., Request],
        result: type[R],
        rest: "type[BaseModel] | None" = None,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.command, self.function, self.result = command, function, result
        self.options = Options(function, rest=rest, renamed=renamed)

    @cached_property
    def __signature__(self) -> inspect.Signature:
        keyword = inspect.Parameter.KEYWORD_ONLY
        rest = [
            inspect.Parameter(name, keyword, default=self.options.default(name), annotation=self.options.hints[name])
            for name in self.options.hints
            if name not in self.options.parameters
        ]
        shared = [
            inspect.Parameter("out", keyword, default=None, annotation=str | Path | None),
            inspect.Parameter("fresh", keyword, default=False, annotation=bool),
        ]
        return inspect.Signature([*self.options.parameters.values(), *rest, *shared], return_annotation=self.result)

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, *args: Any, out: str | Path | None, fresh: bool = False, **kwargs: Any) -> R: ...
    def __call__(self, *args: Any, out: str | Path | None = None, fresh: bool = False, **kwargs: Any) -> R:
        """Do the work; with `out`, in a folder that the same call resumes or finds done.

        Raises BadInput for a wrong request, WorkFailed when it could not be done, BudgetReached with the folder resumable.
        """
        values = self._values(args, kwargs)
        request = self.function(**values)
        if out is None:
            return request.work(None)
        settings = self._settings(values, request)
        with self._folder(Path(out), settings, request, values, fresh) as (folder, notes):
            if folder.complete:
                return self.stored(folder.final)
            done = self._do(request, folder, notes)
            request.processes.wait()
            live = {each.name: getattr(done, each.name) for each in fields(done) if each.metadata.get("live")}
            return replace(self.stored(folder.final), **live)

    def plan(self, *args: Any, out: str | Path | None = None, fresh: bool = False, **kwargs: Any) -> Any:
        """What the same call would do: the request is read by the same code and refused in the same words."""
        values = self._values(args, kwargs)
        request = self.function(**values)
        if out is not None and not fresh:
            settings, inputs = self._settings(values, request), self._inputs(values, request)
            check_folder(Path(out), settings, inputs, read=self._understood)
        return request.plan()

    def stored(self, folder: Path) -> R:
        """The result of a finished folder. Raises WorkFailed for one that cannot be read as what was written."""
        path = folder / RESULT
        try:
            result = deserialize(self.result, json.loads(read_regular(path)))
        except (OSError, ValueError, RecursionError) as error:
            raise WorkFailed(f"{path} cannot be read as the result of `equipoise {self.command}`: {error}") from error
        return replace(result, folder=folder)

    def redraw(self, folder: Path) -> None:
        """Draw a finished folder's page again. Raises BadInput for a folder that is damaged, naming the files."""
        if damaged := [name for name, drawn in damage(folder).items() if not drawn]:
            raise BadInput(
                f"{folder} is damaged ({', '.join(damaged)}): the command that made it makes that part again."
            )
        others = unlisted(folder)
        write_manifest(folder, self.command, self.draw(folder), others)

    def draw(self, folder: Path, *, stopped: str = "", final: Path | None = None) -> tuple[str, ...]:
        """Draw what people see of a folder from what it holds; the names of the files.

        stopped: why the work ended early. final: the folder's name when it is done.
        """
        from equipoise.core import page

        result = self.stored(folder)
        settings = self.options.current(json.loads(read_regular(folder / SETTINGS)))
        made = result.page(folder)
        early = [page.Note(f"The work ended early: {stopped}", "Not complete")] if stopped else []
        parts: list[page.Part] = [*early, *made.parts]
        if result.notes:
            parts.append(page.Section("How to read this", (page.Bullets(result.notes),)))
        parts.append(page.Section("Settings", (page.SettingsTable(settings),)))
        command = command_line(self.command, self._typed_options(settings), final or folder)
        page.write_page(folder / REPORT, page.job_page(made.title, made.lead, parts, command, facts=made.facts))
        for name, text in made.files.items():
            write_atomic(folder / name, text)
        return REPORT, *made.files

    def _values(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        names = [name for name, each in self.options.parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
        if len(args) > len(names) or kwargs.keys() & set(names[: len(args)]):
            raise TypeError(f"{self.command}: takes {', '.join(names)} by position, each once")
        read = self.options.read(dict(zip(names, args, strict=False)) | dict(kwargs))
        for name, value in read.items():
            if not _has_usable_numbers(value):
                raise WrongOption(name, f"should be finite and of 64 bits at most, but got {value!r:.80}.")
            if self.options.setting(name).objects and not _may_be(self.options.hints[name], value):
                raise WrongOption(name, f"is {value!r}, which is neither text nor an object that it takes.")
        return read

    def _settings(self, values: Mapping[str, Any], request: Request) -> dict[str, Any]:
        kept = {
            name: value for name, value in {**values, **request.resolved}.items() if self.options.setting(name).stored
        }
        return self.options.to_json(kept)

    def _inputs(self, values: Mapping[str, Any], request: Request) -> dict[str, str]:
        """By name a digest of what was read: where the request has none of its own, of rows in memory and of models here."""
        values = {name: value for name, value in values.items() if name not in request.inputs}
        found = self.options.digests(values)
        for name, value in values.items():
            if not isinstance(value, str | Path) or not self.options.setting(name).stored:
                continue
            place = _place(value)
            if _is_there(place) and (digest := model_files_digest(place)):
                found[name] = digest
        template = values.get(TEMPLATE)
        if isinstance(template, str) and Path(template).expanduser().is_file():
            found[TEMPLATE] = sha256_file(Path(template).expanduser())
        return {**found, **request.inputs}

    def _understood(self, stored: Mapping[str, Any]) -> Mapping[str, Any]:
        """Stored settings in today's form: what was not stored then had its default."""
        stored = self.options.current(stored)
        try:
            read = self.options.read({name: value for name, value in stored.items() if value is not None}, text=True)
        except BadInput:
            return stored
        kept = {name: value for name, value in read.items() if self.options.setting(name).stored}
        return self.options.to_json(kept) | {name: None for name, value in stored.items() if value is None}

    @contextmanager
    def _folder(
        self, out: Path, settings: Mapping[str, Any], request: Request, values: Mapping[str, Any], fresh: bool
    ) -> Iterator[tuple[JobFolder, tuple[str, ...]]]:
        """The folder, which only the main of several processes holds and writes, and what has to be said of it."""
        places = [_place(value) for value in values.values() if isinstance(value, str | Path)]
        needed = [place for place in places if _is_there(place)]
        if not request.processes.main:
            request.processes.wait()
            yield opened(out), ()
            return
        read = self._understood
        with job_folder(out, settings, self._inputs(values, request), fresh=fresh, read=read, needed=needed) as folder:
            found = self._sound(folder) if folder.complete else (folder, ())
            request.processes.wait()
            yield found

    def _sound(self, folder: JobFolder) -> tuple[JobFolder, tuple[str, ...]]:
        """A complete folder when it is whole; else as work to be done again, with a note of what was damaged."""
        damaged = damage(folder.final)
        if not damaged:
            return folder, ()
        folder = folder.reopen(damaged)
        if all(damaged.values()):  # what is only drawn from the rest needs no work
            folder.finish(self.command, self._draw_all(folder))
            return opened(folder.final), ()
        names = ", ".join(damaged)
        return folder, (f"Found missing or altered, kept aside in the folder damaged, and made again: {names}.",)

    def _do(self, request: Request, folder: JobFolder, notes: Sequence[str]) -> R:
        try:
            result = request.work(folder.work)
        except (BudgetReached, WorkFailed) as error:
            if request.processes.main and (known := request.partial(folder.work)) is not None:
                _write(known, folder.work)
                self._draw_all(folder, stopped=str(error))
                raise type(error)(f"{error} What is known so far: {folder.work / REPORT}") from error
            raise
        if request.processes.main:
            _write(replace(result, notes=(*result.notes, *notes)), folder.work)
            folder.finish(self.command, self._draw_all(folder), request.scratch())
        return result

    def _draw_all(self, folder: JobFolder, stopped: str = "") -> tuple[str, ...]:
        return self.draw(folder.work, stopped=stopped, final=folder.final)

    def _typed_options(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What has to be typed of these settings: those that differ from their defaults."""
        defaults = {name: self.options.default(name) for name in self.options.hints if name in settings}
        usual = self.options.to_json({name: default for name, default in defaults.items() if default is not ...})
        return {name: settings[name] for name in defaults if name not in usual or settings[name] != usual[name]}


@overload
def job(
    command: str, result: type[R], *, rest: None = None, renamed: Mapping[str, str] | None = None
) -> Callable[[Callable[P, Request]], Job[P, R]]: ...
@overload
def job(
    command: str, result: type[R], *, rest: "type[BaseModel]", renamed: Mapping[str, str] | None = None
) -> Callable[[Callable[..., Request]], Job[..., R]]: ...
def job(command: str, result: Any, *, rest: Any = None, renamed: Any = None) -> Any:
    """Declare a job: the command that it is, and the class of its result.

    rest: a pydantic model whose fields are options, too; those that are given arrive as **rest. renamed: options of earlier
    versions, each with its name of today, or with the sentence that says what it has become.
    """
    return lambda function: Job(command, function, result, rest, renamed)


def command_line(command: str, options: Mapping[str, Any], out: Path) -> str:
    """What to type for these options (True: a flag; None and False: left out) and this folder."""
    words = ["equipoise", *command.split()]
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(as_text(value))
    return shlex.join([*words, "--out", out.name])


def as_text(value: Any) -> str:
    """A JSON value as an option is typed: lists with commas between where that reads back, all else as JSON."""
    if isinstance(value, str):
        return value
    simple = (
        isinstance(value, list) and value and all(isinstance(each, int | float) or _plain_word(each) for each in value)
    )
    return ",".join(map(str, value)) if simple else json.dumps(value, ensure_ascii=False)


def _write(result: Any, folder: Path) -> None:
    plain = serialize(replace(result, folder=None))
    write_atomic(folder / RESULT, json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False))


def _plain_word(value: Any) -> bool:
    return isinstance(value, str) and value == value.strip() != "" and "," not in value


def _has_usable_numbers(value: Any) -> bool:
    """False for nan and infinities, which no run.json can hold, and for whole numbers that no library takes."""
    if isinstance(value, Mapping):
        return all(map(_has_usable_numbers, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_has_usable_numbers, value))
    if isinstance(value, int):
        return abs(value) <= sys.maxsize
    return not isinstance(value, float) or math.isfinite(value)


def _may_be(hint: Any, value: Any) -> bool:
    """Whether a type takes this None or number; anything else is text that was checked, or an object."""
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(value, bool | int | float | None):
        return True
    try:
        TypeAdapter(hint).validate_python(value)
    except ValidationError:
        return False
    return True


def _place(value: str | Path) -> Path:
    """The path that a value names, below the user's home where it begins there."""
    place = Path(value)
    return place.expanduser() if place.parts[:1] == ("~",) else place


def _is_there(value: str | Path) -> bool:
    try:
        return Path(value).exists()
    except OSError:  # longer than a name may be
        return False


def table_html(head: Iterable[str], rows: Iterable[Iterable[object]], caption: str = "") -> str:
    """A small table, as results show themselves in a notebook."""
    cells = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    told = f"<p>{html.escape(caption)}</p>" if caption else ""
    return f"{told}<table><thead><tr>{names}</tr></thead><tbody>{cells}</tbody></table>"
