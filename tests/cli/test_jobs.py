"""The command of a job, on a toy: what reaches the job, what is printed where, and what the help says of each option."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
from cyclopts import App, Parameter
from pydantic import BaseModel, Field

from equipoise.cli.jobs import _plain, command, stored_settings
from equipoise.core import progress
from equipoise.core.errors import BadInput, WrongOption
from equipoise.core.job import Page, Request, job
from equipoise.core.options import Setting


class Recipe(BaseModel, extra="forbid"):
    rate: float = Field(default=0.1, gt=0, description="How fast.")
    plain: bool = False


@dataclass(frozen=True)
class Sorted:
    words: tuple[str, ...]
    quiet: bool = False
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def summary(self) -> Sequence[str]:
        return (f"{len(self.words)} words", "größte\x1b")

    def page(self, folder: Path) -> Page:
        return Page("Sorted", "", [])


@dataclass(frozen=True)
class Plan:
    words: int
    largest: str
    quiet: bool

    def summary(self) -> Sequence[str]:
        return (f"would sort {self.words}", "then\x1b stop")


class Sorting(Request):
    inputs: Mapping[str, str] = {}
    resolved: Mapping[str, Any] = {}

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words

    def plan(self) -> Plan:
        return Plan(len(self.words), "größte", progress.is_quiet())

    def work(self, folder: Path | None) -> Sorted:
        TIMES.append(folder)
        return Sorted(tuple(sorted(self.words)), progress.is_quiet())


TIMES: list[Path | None] = []


@job("toy sort", Sorted, rest=Recipe, renamed={"terms": "words", "speed": "--speed N is gone: use --rate N."})
def sort_words(
    words: Annotated[list[str], Setting(alias=("-w",))],
    *,
    order: Literal["up", "down"] = "up",
    ends: Literal["open", "shut"] | None = None,
    loud: Annotated[bool, Setting(alias=("-l",))] = False,
    pair: tuple[float, float] | None = (0.5, 1.0),
    weights: Mapping[str, float] | None = None,
    source: Annotated[Path | None, Setting(objects=True)] = None,
    times: Annotated[int, Field(ge=1)] = 2,
    share: float = 0.25,
    size: int | Literal["auto"] = "auto",
    name: str | None = None,
    code: Annotated[bool, Setting(typed=lambda value: value is True)] = False,
    tools: Annotated[object, Setting(python=True)] = None,
    **rest: Any,
) -> Request:
    """Sort words."""
    return Sorting(words)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    TIMES.clear()
    return tmp_path


def typed(*words: str) -> int:
    app = App(name="toy", result_action="return_value")
    app.default(command(sort_words))
    return app(words, exit_on_error=False, print_error=False)


def test_the_result_goes_to_stderr_and_last_the_folder_to_stdout(here, capsys):
    out = here / "equipoise-out" / "toy-sort"
    assert typed("--words", "b,a") == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n" and said.err == f"2 words\ngrößte\\u001b\nReport: {out}/report.html\n"
    assert json.loads((out / "result.json").read_text())["quiet"] is False
    assert typed("--words", "b,a", "--json") == 0
    said = capsys.readouterr()
    assert said.out == (out / "result.json").read_text() + "\n" and said.err == ""
    assert len(TIMES) == 1  # found done
    assert typed("--words", "b,a", "--fresh", "--quiet") == 0
    assert len(TIMES) == 2 and json.loads((out / "result.json").read_text())["quiet"] is True
    assert (here / "equipoise-out" / "toy-sort.old-1").is_dir()
    capsys.readouterr()
    assert typed("-w", "c", "-o", "there") == typed("-w", "c", "--output", "there") == 0
    assert capsys.readouterr().out == f"{here / 'there'}\n" * 2 and len(TIMES) == 3


def test_a_rehearsal_goes_to_stdout_and_changes_nothing(here, capsys):
    assert typed("--words", "b,a", "--dry-run") == 0
    said = capsys.readouterr()
    assert said.out == "would sort 2\nthen\\u001b stop\n" and said.err == ""
    assert typed("--words", "b,a", "--dry-run", "--json", "--quiet") == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"words": 2, "largest": "größte", "quiet": True} and "größte" in said.out
    assert not TIMES and not list(here.iterdir())
    assert typed("--words", "a", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["quiet"] is False


@pytest.mark.parametrize(("rank", "main"), [("0", True), ("1", False), ("", False)])
def test_only_the_main_process_speaks(here, monkeypatch, capsys, rank, main):
    monkeypatch.setenv("RANK", rank)
    assert typed("--words", "a", "--dry-run", "--json") == 0
    said = capsys.readouterr()
    assert bool(said.out) is main and said.err == ""
    seen = []
    monkeypatch.setattr("equipoise.core.progress.quiet", lambda active: seen.append(active) or progress.watch(print))
    assert typed("--words", "a", "--dry-run") == 0
    assert seen == [not main]


def test_what_is_missing_unknown_or_of_an_earlier_version_is_said(here):
    with pytest.raises(WrongOption, match=r"option 'words' is missing\. Help: equipoise toy sort --help"):
        typed()
    with pytest.raises(BadInput, match=r"terms is now words\."):
        typed("--terms", "a", "--words", "b")
    with pytest.raises(BadInput, match=r"--speed N is gone: use --rate N\."):
        typed("--speed", "3", "--words", "b")
    with pytest.raises(BadInput, match=r"option 'times' should be at least 1, but got '0'\."):
        typed("--words", "b", "--times", "0")
    assert not list(here.iterdir())


def test_what_is_typed_goes_before_what_is_stored(here, capsys):
    config = here / "run.json"
    config.write_text(json.dumps({"terms": ["x", "y"], "times": 3, "rate": 0.5, "code": True}))
    assert stored_settings(sort_words, config, {"code": False, "times": 9}) == {"words": ["x", "y"], "rate": 0.5}
    said = f"--config {config} sets code to True, which can let code run: type --code to allow it."
    with pytest.raises(BadInput) as caught:
        stored_settings(sort_words, config, {})
    assert str(caught.value) == said
    config.write_text(json.dumps({"words": ["x", "y"], "code": False}))
    assert typed("--config", str(config), "--dry-run") == 0
    assert capsys.readouterr().out.startswith("would sort 2\n")
    assert typed("--config", str(config), "--dry-run", "--words", "x,y,z") == 0
    assert capsys.readouterr().out.startswith("would sort 3\n")
    for content in ("[]", "{", "\xff"):
        config.write_text(content, encoding="latin1")
        with pytest.raises(BadInput, match=r"--config .*run\.json: .*; expected the run\.json that a job stored\.$"):
            stored_settings(sort_words, config, {})


def test_a_command_of_another_name_writes_another_folder(here, capsys):
    app = App(name="toy", result_action="return_value")
    app.default(command(sort_words, "sorted"))
    assert app(["--words", "a"], exit_on_error=False, print_error=False) == 0
    assert capsys.readouterr().out == f"{here / 'equipoise-out' / 'sorted'}\n"


def about(parameter: inspect.Parameter) -> tuple[Any, Parameter]:
    kind, (how,) = get_args(parameter.annotation)[0], parameter.annotation.__metadata__
    return kind, how


def test_every_option_stands_in_the_help_as_it_is_declared():
    """Name, its kind in the help, the default that is shown, the choices, the help's group and whether it is shown."""
    run = command(sort_words)
    table = {}
    for name, parameter in inspect.signature(run).parameters.items():
        _, how = about(parameter)
        assert parameter.kind is parameter.KEYWORD_ONLY and how.negative == ()
        groups = [group.name for group in how.group]
        table[name] = (how.metavar, parameter.default, how.choices and tuple(how.choices), *groups, how.show_default)
    assert table == {
        "words": ("A,B,...", None, None, "Needed", False),
        "order": (None, "up", ("up", "down"), "Settings", True),
        "ends": (None, None, ("open", "shut"), "Settings", False),
        "loud": (None, False, None, "Settings", False),
        "pair": ("A,B,...", "0.5,1.0", None, "Settings", True),
        "weights": ("NAME=VALUE,...", None, None, "Settings", False),
        "source": ("PATH", None, None, "Settings", False),
        "times": ("INT", "2", None, "Settings", True),
        "share": ("FLOAT", "0.25", None, "Settings", True),
        "size": ("INT", "auto", None, "Settings", True),
        "name": ("TEXT", None, None, "Settings", False),
        "code": (None, False, None, "Settings", False),
        "rate": ("FLOAT", "0.1", None, "Settings", True),
        "plain": (None, False, None, "Settings", False),
        "terms": (None, None, None, None),
        "speed": (None, None, None, None),
        "out": (None, Path("equipoise-out/toy-sort"), None, "Of every job", True),
        "config": (None, None, None, "Of every job", True),
        "fresh": (None, False, None, "Of every job", False),
        "dry_run": (None, False, None, "Of every job", False),
        "json": (None, False, None, "Of every job", False),
        "quiet": (None, False, None, "Of every job", False),
    }
    parameters = {name: about(parameter) for name, parameter in inspect.signature(run).parameters.items()}
    assert {name for name, (_, how) in parameters.items() if how.show is False} == {"terms", "speed"}
    aliases = {name: list(how.alias) for name, (_, how) in parameters.items() if how.alias}
    assert aliases == {"words": ["-w"], "loud": ["-l"], "out": ["--output", "-o"]}
    assert parameters["rate"][1].help == "How fast." and parameters["plain"][1].help is None
    assert parameters["out"][1].help == "The folder to write; the same settings resume it."
    assert parameters["loud"][0] is bool and parameters["times"][0] == str | None
    assert run.__doc__ == "Sort words." and run.__annotations__["loud"] == parameters_of(run)["loud"].annotation
    orders = [group.sort_key for group in dict.fromkeys(g for _, how in parameters.values() for g in how.group)]
    assert orders == [0, 1, 2]


def parameters_of(run: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(run).parameters


def test_a_value_may_begin_with_a_hyphen(capsys):
    assert typed("--words", "-a,-b", "--share", "-1e-3", "--dry-run") == 0
    assert capsys.readouterr().out.startswith("would sort 2\n")


def test_a_docstring_becomes_a_paragraph_a_line_with_its_code_and_rules_as_they_are():
    text = (
        "First `line`,\ngoes on.\n\nSecond\nparagraph:\n\n    code one\n    code two\nback.\n\nParameters\n----------\n"
    )
    text += "name\n    what\n    it is\nother\n    more"
    assert _plain(text).splitlines() == [
        "First line, goes on.", "", "Second paragraph:", "", "    code one code two", "back.", "",
        "Parameters", "----------", "name", "    what it is", "other", "    more",
    ]  # fmt: skip
    assert _plain("") == ""


def test_led_options_may_be_typed_without_their_names_in_order(here, capsys):
    run = command(sort_words, positional=("times", "words"))
    parameters = list(inspect.signature(run).parameters.values())
    assert [(each.name, each.kind) for each in parameters[:3]] == [
        ("times", inspect.Parameter.POSITIONAL_OR_KEYWORD), ("words", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        ("order", inspect.Parameter.KEYWORD_ONLY),
    ]  # fmt: skip
    assert len(parameters) == len(inspect.signature(command(sort_words)).parameters)
    app = App(name="toy", result_action="return_value")
    app.default(run)
    assert app(["3", "b,a,c", "--dry-run"], exit_on_error=False, print_error=False) == 0
    assert capsys.readouterr().out.startswith("would sort 3\n")
