"""The frame on a toy: one declaration gives checks, folder, resume, stored result, page, plan and replay."""

import inspect
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from equipoise.core import job as frame
from equipoise.core import page as parts
from equipoise.core.errors import BadInput, BudgetReached, WorkFailed
from equipoise.core.folder import damage
from equipoise.core.job import Page, Request, _has_usable_numbers, _is_there, as_text, command_line, job, table_html
from equipoise.core.options import Setting
from equipoise.core.rows import Rows
from equipoise.core.serialize import LIVE, deserialize, serialize


class Recipe(BaseModel, extra="forbid"):
    rate: float = Field(default=0.1, gt=0, description="How fast.")
    method: Literal["sum", "sago"] = "sum"


@dataclass(frozen=True)
class Piece:
    name: str
    value: float


@dataclass(frozen=True)
class Total:
    total: float
    pieces: tuple[Piece, ...] = ()
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    model: Any = field(default=None, metadata=LIVE)

    def summary(self):
        return (f"total {self.total}",)

    def page(self, folder: Path) -> Page:
        return Page("Total", f"It is {self.total}.", [parts.Note("n", "t")], files={"README.md": f"# {self.total}\n"})


@dataclass(frozen=True)
class Adding(Request):
    words: tuple[str, ...]
    fails_at: int | None
    rest: Mapping[str, Any]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    def plan(self):
        return len(self.words)

    def work(self, folder):
        rows = Rows(None if folder is None else folder / "rows.jsonl")
        if folder is not None and not (folder / "weights").exists():
            (folder / "weights").write_text("w")
        for number in range(len(rows), len(self.words)):
            if number == self.fails_at:
                raise BudgetReached("The budget of calls=2 is reached.")
            CALLS.append(self.words[number])
            rows.add({"word": self.words[number]})
        pieces = tuple(Piece(row["word"], math.nan if row["word"] == "nan" else len(row["word"])) for row in rows)
        return Total(float(sum(len(row["word"]) for row in rows)), pieces, ("A note.",), model=object())

    def partial(self, folder):
        return Total(math.nan)


CALLS: list[str] = []


@job("toy add", Total, rest=Recipe)
def add(
    words: Annotated[list[str], Setting(alias=("-w",))],
    fails_at: Annotated[int | None, Setting(stored=False)] = None,
    *,
    order: Literal["up", "down"] = "up",
    source: Annotated[Path | None, Setting(objects=True)] = None,
    pair: tuple[float, float] | None = None,
    **rest: Any,
) -> Request:
    """Add the lengths of words."""
    if order == "down":
        words = words[::-1]
    return Adding(tuple(words), fails_at, rest, {"words": "d1"}, {})


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = add(["one", "three"], rate=0.5)
    assert done.total == 8 and done.folder is None and done.model is not None and not list(tmp_path.iterdir())


def test_with_one_the_result_is_read_back_equal_and_found_again(tmp_path):
    done = add(["one", "nan"], out=tmp_path / "out", pair=(0, 1))
    assert done.folder == tmp_path / "out" and math.isnan(done.pieces[1].value) and done.pieces[0] == Piece("one", 3.0)
    text = (tmp_path / "out" / "result.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["pieces"][1]["value"] is None
    settings = json.loads((tmp_path / "out" / "run.json").read_text())
    assert settings == {"words": ["one", "nan"], "order": "up", "source": None, "pair": [0.0, 1.0]}
    again = add(["one", "nan"], out=tmp_path / "out", pair=(0, 1), fails_at=0)  # how it is done is no setting
    assert serialize(again) == serialize(done) and CALLS == ["one", "nan"]
    assert (
        "equipoise toy add --words one,nan --pair 0.0,1.0 --out out" in (tmp_path / "out" / "report.html").read_text()
    )


def test_it_stops_with_what_is_known_and_goes_on(tmp_path):
    words = ["a", "bb", "ccc"]
    with pytest.raises(BudgetReached, match=r"What is known so far: .*out\.partial/report\.html"):
        add(words, 2, out=tmp_path / "out")
    assert "ended early" in (tmp_path / "out.partial" / "report.html").read_text()
    assert add(words, out=tmp_path / "out").total == 6 and words == CALLS
    assert "ended early" not in (tmp_path / "out" / "report.html").read_text()


def test_a_page_alone_is_drawn_again_and_work_that_was_damaged_is_done_again(tmp_path):
    out = tmp_path / "out"
    add(["a", "bb"], out=out)
    page = (out / "report.html").read_text()
    (out / "report.html").write_text("scribbled")
    (out / "README.md").unlink()
    add(["a", "bb"], out=out)
    assert (out / "report.html").read_text() == page and (out / "README.md").read_text() == "# 3.0\n"
    assert (out / "damaged" / "1" / "report.html").read_text() == "scribbled" and CALLS == ["a", "bb"]
    (out / "weights").write_text("W")
    (out / "result.json").write_text((out / "result.json").read_text().replace("3.0", "4.0"))
    again = add(["a", "bb"], out=out)
    assert again.total == 3 and "result.json, weights" in again.notes[-1] and CALLS == ["a", "bb"]
    assert (out / "weights").read_text() == "w" and damage(out) == {}
    lines = (out / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (out / "rows.jsonl").write_bytes(lines[0].replace(b"a", b"c", 1) + lines[1])
    assert add(["a", "bb"], out=out).total == 4 and CALLS == ["a", "bb", "bb"]  # the toy asks for the last one missing


def test_the_page_is_drawn_from_the_folder_alone(tmp_path):
    add(["a"], out=tmp_path / "out")
    (tmp_path / "out" / "report.html").unlink()
    add.redraw(tmp_path / "out")
    assert (tmp_path / "out" / "report.html").exists() and damage(tmp_path / "out") == {}
    (tmp_path / "out" / "weights").write_text("W")
    with pytest.raises(BadInput, match=r"is damaged \(weights\)"):
        add.redraw(tmp_path / "out")


def test_files_of_the_users_own_are_no_part_of_a_page_that_is_drawn_again(tmp_path):
    """Edited later, they are no damage, and nothing is done again."""
    out = tmp_path / "out"
    add(["a"], out=out)
    for again in (lambda: add.redraw(out), lambda: [(out / "report.html").unlink(), add(["a"], out=out)]):
        (out / "notes.txt").write_text("mine")
        again()
        (out / "notes.txt").write_text("mine, edited")
        add(["a"], out=out)
        assert (out / "notes.txt").read_text() == "mine, edited" and CALLS == ["a"]
    assert not (out / "damaged" / "1" / "notes.txt").exists()


@pytest.mark.parametrize("content", ["{", '{"total": "much"}', "[]", "[" * 100_000, None])
def test_a_result_that_cannot_be_read_is_named(tmp_path, content):
    add(["a"], out=tmp_path / "out")
    (tmp_path / "out" / "result.json").unlink()
    if content is not None:
        (tmp_path / "out" / "result.json").write_text(content)
    with pytest.raises(WorkFailed, match=r"result\.json cannot be read as the result of `equipoise toy add`"):
        add.stored(tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"order": "pu"}, r"option 'order' is 'pu'\. Did you mean 'up'"),
        ({"fails_at": "x"}, "option 'fails_at' should be a valid integer"),
        ({"rate": 0}, "option 'rate' should be above 0, but got 0"),
        ({"rate": math.inf}, "option 'rate' should be finite and of 64 bits at most, but got inf"),
        ({"pair": (0, math.nan)}, r"option 'pair' should be finite and of 64 bits at most, but got \(0\.0, nan\)"),
        ({"fails_at": 2**63}, "option 'fails_at' should be finite and of 64 bits at most"),
        ({"source": 7}, "option 'source' is 7, which is neither text nor an object that it takes"),
        ({"method": "sgao"}, "option 'method' is 'sgao'. Did you mean 'sago'"),
        ({"pair": "1,2,3"}, "expected 2 values with commas"),
        ({"wrods": []}, "no option 'wrods'. Did you mean 'words'"),
    ],
)
def test_run_and_rehearsal_refuse_alike(tmp_path, given, message):
    words = {"words": ["a"], **given}
    for asked in (lambda: add(**words), lambda: add(**words, out=tmp_path / "out"), lambda: add.plan(**words)):
        with pytest.raises(BadInput, match=message):
            asked()
    assert not list(tmp_path.iterdir())


def test_the_rehearsal_knows_the_folder(tmp_path):
    add(["a"], out=tmp_path / "out")
    assert add.plan(["a"], out=tmp_path / "out") == 1
    with pytest.raises(BadInput, match="holds other settings: words"):
        add.plan(["b"], out=tmp_path / "out")
    assert add.plan(["b"], out=tmp_path / "out", fresh=True) == 1


def test_what_was_left_out_then_had_its_default(tmp_path):
    add(["a"], out=tmp_path / "out")
    stored = tmp_path / "out" / "run.json"
    older = {name: value for name, value in json.loads(stored.read_text()).items() if name != "order"} | {"words": "a"}
    stored.write_text(json.dumps(older))
    (tmp_path / "out").rename(tmp_path / "out.partial")
    assert add(["a"], out=tmp_path / "out").total == 1 and CALLS == ["a"]


def test_what_names_a_place_is_looked_for_whatever_it_is(tmp_path):
    assert _is_there(tmp_path) and _is_there(str(tmp_path)) and not _is_there(tmp_path / "none")
    assert not any(map(_is_there, ("x" * 5000, "a\0b", "a\ud800")))


def test_signature_and_help_are_the_declaration():
    names = list(inspect.signature(add).parameters)
    assert names == ["words", "fails_at", "order", "source", "pair", "rate", "method", "out", "fresh"]
    assert add.__doc__ == "Add the lengths of words." and add.__name__ == "add"


def test_options_from_text():
    read = add.options.read({"words": "a, b", "pair": "1,2", "rate": "0.5", "source": "x.npy"}, text=True)
    assert (
        read["words"] == ["a", "b"]
        and read["pair"] == (1.0, 2.0)
        and read["rate"] == 0.5
        and read["source"] == Path("x.npy")
    )
    assert "method" not in read  # what fills the rest is the job's own matter


@pytest.mark.parametrize("value", [["a", "b"], ["a,b"], [], [1, 2.5], {"k": [1]}, "plain", 3, [[1, 2]]])
def test_a_setting_as_it_is_typed_reads_back(value):
    text = as_text(value)
    hint = {list: list[Any], dict: dict[str, Any], str: str, int: int}[type(value)]

    def function(value: Any) -> None: ...

    function.__annotations__["value"] = hint
    from equipoise.core.options import Options

    read = Options(function).read({"value": text}, text=True)["value"]
    assert read == value or read == list(map(str, value))


def test_command_line_leaves_out_what_is_off():
    line = command_line("toy add", {"words": ["a b"], "fast": True, "slow": False, "none": None}, Path("/x/out"))
    assert line == "equipoise toy add --words 'a b' --fast --out out"


def test_plain_and_back():
    value = Total(math.inf, (Piece("x", math.nan), Piece("y", -math.inf)), ("n",), Path("p"))
    again = deserialize(Total, json.loads(json.dumps(serialize(value), allow_nan=False)))
    assert again.total == math.inf and math.isnan(again.pieces[0].value) and again.pieces[1].value == -math.inf
    assert again.folder == Path("p") and again.notes == ("n",)
    with pytest.raises(WorkFailed, match="cannot be stored"):
        serialize({"a": object()})
    with pytest.raises(ValueError):
        deserialize(Total, {"total": "much"})


def test_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = Rows(path)
    rows.add({"n": 1})
    rows.add({"n": 2})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n": 3, "se')
    assert [row["n"] for row in Rows(path)] == [1, 2] and path.read_bytes() == whole
    for place in range(len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        read = Rows(path)
        assert read.damaged and f"{path}:" in read.damaged[0] and all(row in ({"n": 1}, {"n": 2}) for row in read)
        assert not Rows(path).damaged  # what was whole is there, what was not is kept beside it
    with pytest.raises(WorkFailed, match="cannot be stored"):
        rows.add({"seal": 1})
    memory = Rows(None)
    memory.add({"n": 1})
    assert list(memory) == [{"n": 1}] and len(memory) == 1


def test_a_model_that_was_written_anew_is_another_content(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    done = add(["ab"], source=model, out=tmp_path / "o")
    assert add(["ab"], source=model, out=tmp_path / "o").total == done.total
    (model / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(BadInput, match=r"another content of source\."):
        add(["ab"], source=model, out=tmp_path / "o")
    with pytest.raises(BadInput, match=r"another content of source\."):
        add.plan(["ab"], source=model, out=tmp_path / "o")


def test_what_is_given_by_position_is_given_once():
    assert add(["a"], None).total == 1
    for given, named in ((([], None, "up"), {}), ((["a"],), {"words": ["b"]}), ((["a"], None), {"fails_at": 1})):
        with pytest.raises(TypeError, match="toy add: takes words, fails_at by position, each once"):
            add(*given, **named)


@pytest.mark.parametrize(
    ("value", "usable"),
    [
        (sys.maxsize, True), (-sys.maxsize, True), (sys.maxsize + 1, False), (-sys.maxsize - 1, False), (1e300, True),
        (math.nan, False), ({"a": [1, (2, math.inf)]}, False), ({"a": [1, (2, 3.0)]}, True), ("nan", True), (None, True),
        ([1, math.nan], False), ([math.nan, 1], False), (True, True),
    ],
)  # fmt: skip
def test_numbers_that_a_settings_file_can_hold(value, usable):
    assert _has_usable_numbers(value) is usable


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (["a", 1, 2.5], "a,1,2.5"), ([" a"], '[" a"]'), (["a", ""], '["a", ""]'), (["a", "b,c"], '["a", "b,c"]'),
        ([], "[]"), ([["a"]], '[["a"]]'), ({"k": "ü"}, '{"k": "ü"}'), (None, "null"), (3, "3"), (" x ", " x "),
    ],
)  # fmt: skip
def test_a_setting_as_it_is_typed_in_full(value, text):
    assert as_text(value) == text


def test_no_result_is_stored_that_is_no_json(tmp_path, monkeypatch):
    frame._write(Total(1.0, (Piece("ü", 2.0),)), tmp_path)
    assert '"ü"' in (tmp_path / "result.json").read_text(encoding="utf-8")
    monkeypatch.setattr(frame, "serialize", lambda value: {"total": math.nan})
    with pytest.raises(ValueError):
        frame._write(Total(1.0), tmp_path)


def test_a_model_below_home_is_known_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models" / "own").mkdir(parents=True)
    weights = tmp_path / "models" / "own" / "model.safetensors"
    weights.write_bytes(b"weights")
    add(["ab"], source="~/models/own", out=tmp_path / "o")
    weights.write_bytes(b"weighty")
    with pytest.raises(BadInput, match=r"another content of source\."):
        add(["ab"], source="~/models/own", out=tmp_path / "o")


def test_what_is_read_below_home_is_not_set_aside(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    add(["ab"], out=tmp_path / "first")
    with pytest.raises(BadInput, match="is or holds the input"):
        add(["ab"], source="~/first/weights", out="~/first", fresh=True)
    assert (tmp_path / "first" / "weights").read_text() == "w"


def test_a_small_table():
    assert table_html(("<a>", "b"), [("x&y", 1), (None, "z")], "It's") == (
        "<p>It&#x27;s</p><table><thead><tr><th>&lt;a&gt;</th><th>b</th></tr></thead>"
        "<tbody><tr><td>x&amp;y</td><td>1</td></tr><tr><td>None</td><td>z</td></tr></tbody></table>"
    )
    assert table_html((), ()) == "<table><thead><tr></tr></thead><tbody></tbody></table>"
