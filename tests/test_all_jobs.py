"""What every job that is declared is held to: its rehearsal, the replay of its run.json, its stored result."""

import functools
import importlib
import itertools
import json
import math
import re
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from pydantic import TypeAdapter, ValidationError

import equipoise
from equipoise.cli import main
from equipoise.cli.jobs import command
from equipoise.cli.report import JOBS
from equipoise.core.errors import EquipoiseError
from equipoise.core.job import Job, _write
from small_jobs import SMALL, Began, small


@functools.cache
def job_named(name: str) -> Job[..., Any]:
    module, _, attribute = JOBS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


@functools.cache
def typed(name: str) -> Callable[..., int]:
    """The job's command, as the parser calls it."""
    return command(job_named(name))


def slow(name: str) -> bool:
    return name in SMALL and SMALL[name].slow


SETTINGS = [(name, setting) for name in JOBS for setting in job_named(name).options.hints]
FINISHED = [pytest.param(name, marks=[pytest.mark.slow] if slow(name) else []) for name in JOBS]
_count = itertools.count()


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """By the name of a job the folder with its inputs, and the settings that it is called with."""

    @functools.cache
    def made(name: str) -> tuple[Path, Mapping[str, Any]]:
        folder = tmp_path_factory.mktemp("inputs")
        return folder, small(name).files(folder)

    return made


def test_the_list_of_jobs_has_every_job_that_is_declared():
    """It is written by hand in `equipoise report`, so that a page is drawn without importing every domain."""
    sources = [path.read_text(encoding="utf-8") for path in Path(equipoise.__file__).parent.rglob("*.py")]
    declared = [name for source in sources for name in re.findall(r'^@job\(\s*"([^"]+)"', source, re.MULTILINE)]
    assert sorted(declared) == sorted(JOBS)
    assert {name: job_named(name).command for name in JOBS} == {name: name for name in JOBS}


@pytest.mark.parametrize("name", JOBS)
def test_every_job_has_small_inputs(name):
    small(name)


# The rehearsal


def _numbers(kind: Mapping[str, Any]) -> Iterator[Any]:
    whole = kind["type"] == "integer"
    yield from (math.inf, "-inf", sys.maxsize + 1 if whole else "1e400")
    if whole or not kind.keys() & {"minimum", "exclusiveMinimum"}:
        yield 1.5
    for bound, beyond in (("minimum", -math.inf), ("maximum", math.inf)):
        if bound in kind:
            next_one = int(kind[bound] + math.copysign(1, beyond)) if whole else math.nextafter(kind[bound], beyond)
            yield from (kind[bound], next_one, str(next_one))
    for bound, within in (("exclusiveMinimum", math.inf), ("exclusiveMaximum", -math.inf)):
        if bound in kind:
            yield from (kind[bound], math.nextafter(kind[bound], within), str(kind[bound]))
    yield from (kind["const"] + 1,) if "const" in kind else ()


def _arrays(kind: Mapping[str, Any]) -> Iterator[Any]:
    if "prefixItems" in kind:
        right = [0.0] * (len(kind["prefixItems"]) - 1) + [1.0]
        yield from (right, right[1:], [*right, 2.0], [math.inf, *right[1:]], ",".join(map(str, right)))
    else:
        yield from ([value] for value in values(kind["items"]))


def _objects(kind: Mapping[str, Any]) -> Iterator[Any]:
    inner = kind["additionalProperties"]
    yield from ({"a": value} for value in (values(inner) if isinstance(inner, Mapping) else ("b", math.inf)))


def _words(kind: Mapping[str, Any]) -> Iterator[Any]:
    words = kind.get("enum", ())
    yield from (*words[-1:], *(f"{word}x" for word in words[:1]))
    yield from {"date": ("2026-02-28", "2026-02-30"), "path": (".",)}.get(kind.get("format", ""), ())
    yield from (True, "maybe") if kind.get("type") == "boolean" else ()


_VALUES = {"integer": _numbers, "number": _numbers, "array": _arrays, "object": _objects}


def values(schema: Mapping[str, Any]) -> Iterator[Any]:
    """Values at each bound that a type declares and just beyond, words that are nearly one of its words, and other types."""
    yield from (None, "", "no-such", math.nan)
    for kind in schema.get("anyOf", [schema]):
        yield from _VALUES.get(kind.get("type"), _words)(kind)


def verdict(act: Callable[[], object]) -> tuple[int, str]:
    """Exit code and sentence; accepted is (0, "")."""
    try:
        act()
    except Began:
        return 0, ""
    except EquipoiseError as error:
        return error.exit_code, str(error)
    return 0, ""


def both(name: str, given: Mapping[str, Any], folder: Path, *, text: bool) -> tuple[tuple[int, str], Path]:
    """What run and rehearsal say of a request, which has to be the same; and the folder that the run began."""
    dry, out = (folder / str(next(_count)) for _ in range(2))
    job, call = job_named(name), typed(name)
    if text:
        planned = verdict(lambda: call(**given, out=dry, dry_run=True, quiet=True))
        done = verdict(lambda: call(**given, out=out, quiet=True))
    else:
        planned, done = verdict(lambda: job.plan(**given, out=dry)), verdict(lambda: job(**given, out=out))
    assert planned == done, f"{given}: rehearsed {planned}, run {done}"
    assert done[0] in (0, 2) and "\n" not in done[1]
    partial = out.with_name(f"{out.name}.partial")
    assert partial.exists() is (done[0] == 0) and not out.exists() and not list(folder.glob(f"{dry.name}*"))
    return done, partial


def replayed(name: str, partial: Path, folder: Path) -> Mapping[str, Any]:
    """The settings of the run.json that was stored, which given back as --config is the same request."""
    stored, job = json.loads((partial / "run.json").read_text()), job_named(name)
    again = folder / str(next(_count))
    allowed = {key: value for key, value in stored.items() if job.options.setting(key).typed(value)}
    assert verdict(lambda: typed(name)(config=partial / "run.json", out=again, quiet=True, **allowed)) == (0, "")
    assert (again.with_name(f"{again.name}.partial") / "run.json").read_bytes() == (partial / "run.json").read_bytes()
    return stored


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_the_dry_run_accepts_what_the_run_accepts(asked, tmp_path, capsys, name, setting):
    options, (_, settings) = job_named(name).options, asked(name)
    hint = TypeAdapter(options.hints[setting])
    with small(name).stopped():
        for value in values(hint.json_schema()):
            text = isinstance(value, str)
            (code, said), partial = both(name, {**settings, setting: value}, tmp_path, text=text)
            given = options.from_text(setting, value)
            if code == 0 and given is not None:
                stored, read = replayed(name, partial, tmp_path), options.read({**settings, setting: given})
                if options.setting(setting).stored:
                    assert stored[setting] == options.to_json(read)[setting]
            try:
                hint.validate_python(given)
            except ValidationError:
                assert code == 2 and setting in said, f"{setting} = {value!r} was accepted"


@pytest.mark.parametrize("name", JOBS)
def test_so_it_does_of_settings_together(asked, tmp_path, capsys, name):
    folder, settings = asked(name)
    codes = set()
    with small(name).stopped():
        for more in small(name).more(folder):
            (code, _), partial = both(name, {**settings, **more}, tmp_path, text=False)
            codes.add(code)
            if code == 0:
                replayed(name, partial, tmp_path)
    assert codes in ({0, 2}, set())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in JOBS if name in SMALL and SMALL[name].quick])
def test_so_it_does_with_nothing_in_the_place_of_slow_parts(asked, tmp_path, name):
    folder, settings = asked(name)
    with small(name).stopped(quick=False):
        for more in small(name).more(folder):
            both(name, {**settings, **more}, tmp_path, text=False)


# The replay


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", FINISHED)
def test_run_json_replays_to_the_same_bytes(asked, tmp_path, monkeypatch, capsys, name):
    """While the clock stands still, which alone may differ: each file is the same, report and manifest among them."""
    folder, settings = asked(name)
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)
    first, again = tmp_path / "one" / "out", tmp_path / "two" / "out"
    done = job_named(name)(**{**settings, **small(name).whole(folder)}, out=first)
    assert main([*name.split(), "--config", str(first / "run.json"), "--out", str(again), "--quiet"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(again)
    one, two = contents(first), contents(again)
    assert [key for key in one | two if one.get(key) != two.get(key)] == []
    strict(first)
    assert repr(job_named(name).stored(first)) == repr(live_left_out(done))


# The result


def strict(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_bytes(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def live_left_out(result: Any) -> Any:
    return replace(result, **{field.name: None for field in fields(result) if field.metadata.get("live")})


def made(hint: Any, number: float, *, full: bool) -> Any:
    """A value of a type. number: for every float; full: something in every collection and optional place."""
    origin, parts = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        kinds = get_type_hints(hint, include_extras=True)
        stored = [field for field in fields(hint) if not field.metadata.get("live") and field.name != "folder"]
        return hint(**{field.name: made(kinds[field.name], number, full=full) for field in stored})
    if origin is Annotated:
        return made(parts[0], number, full=full)
    if origin is Literal:
        return parts[-1]
    if origin in (Union, types.UnionType):
        if type(None) in parts and not full:
            return None
        # Where a number may be missing, null says that it is: nan has no place there.
        held = math.inf if type(None) in parts and math.isnan(number) else number
        return made(next(part for part in parts if part is not type(None)), held, full=full)
    if origin is tuple and ... not in parts:
        return tuple(made(part, number, full=full) for part in parts)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"a": made(parts[1], number, full=full)} if full else {}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return origin(made(parts[0], number, full=full) for _ in range(2 * full))
    return {float: number, int: 3, str: "ä\n", bool: True, Path: Path("p"), Any: [1, {"b": None}]}[hint]


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 0.1])
@pytest.mark.parametrize("name", JOBS)
def test_every_result_is_strict_json_and_reads_back_equal(tmp_path, name, number, full):
    result = made(job_named(name).result, number, full=full)
    _write(result, tmp_path)
    assert strict(tmp_path).keys() == {f.name for f in fields(result) if not f.metadata.get("live")}
    assert repr(job_named(name).stored(tmp_path)) == repr(replace(result, folder=tmp_path))
