import ast
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from equipoise.studies import sago
from equipoise.study import fingerprint as module
from equipoise.study.fingerprint import code_of, fingerprint, preload

STUDY = '''"""A study."""
from equipoise.study import Run

def train(run: Run):
    """Doc."""
    from equipoise.made_up.method import step  # inside a function
    return step(1)
'''
FILES = {
    "equipoise/__init__.py": "",
    "equipoise/core/__init__.py": "",
    "equipoise/core/progress.py": "import os",
    "equipoise/study/__init__.py": "x = 1",
    "equipoise/made_up/__init__.py": "",
    "equipoise/made_up/method.py": (
        "from ..core.progress import bar\nfrom .deep import helper\ndef step(n):\n    return n + helper"
    ),
    "equipoise/made_up/deep.py": "import torch.nn\nhelper = 1",
    "equipoise/made_up/other.py": "y = 1",
    "equipoise/lazy/__init__.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from equipoise.lazy.one import first\n"
        "    from equipoise.lazy.two import second\ndef __getattr__(name): ..."
    ),
    "equipoise/lazy/one.py": "first = 1",
    "equipoise/lazy/two.py": "second = 2",
}


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A made-up package of that name; returns a function that says what the study reaches, after some changes."""
    monkeypatch.setattr(module, "_root", lambda: tmp_path / "src")

    def code(study=STUDY, **changes):
        for cached in (code_of, module._package_path, module._parse, module._tree_digest):
            cached.cache_clear()
        for name, text in {**FILES, **changes}.items():
            path = tmp_path / "src" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / "mine.py").write_text(study)
        return code_of(tmp_path / "mine" / "mine.py")

    yield code
    for cached in (code_of, module._package_path, module._parse, module._tree_digest):
        cached.cache_clear()


def test_imports_are_followed_also_inside_functions_but_not_into_the_scales(house):
    code = house()
    assert code.modules == (
        "equipoise",
        "equipoise.core",
        "equipoise.made_up",
        "equipoise.made_up.deep",
        "equipoise.made_up.method",
    )
    assert "torch.nn" in code.foreign


@pytest.mark.parametrize(
    "change",
    [
        {"equipoise/made_up/deep.py": '"""Doc."""\n' + FILES["equipoise/made_up/deep.py"]},
        {"study": STUDY + "\n# a comment\n\n"},
        {"study": STUDY.replace("step(1)", "step( 1 )")},
        {"equipoise/made_up/other.py": "y = 2"},
        {"equipoise/core/progress.py": "import sys"},
        {"equipoise/study/__init__.py": "x = 2"},
    ],
)
def test_what_changes_no_measurement_changes_no_fingerprint(house, change):
    assert house().digest == house(**change).digest


@pytest.mark.parametrize(
    "change",
    [
        {"study": STUDY.replace("step(1)", "step(2)")},
        {"study": STUDY.replace('"""Doc."""', '"""Text."""')},  # of a tool, it stands in the prompt
        {"equipoise/made_up/deep.py": FILES["equipoise/made_up/deep.py"].replace("helper = 1", "helper = 2")},
        {"equipoise/made_up/method.py": FILES["equipoise/made_up/method.py"].replace("+", "-")},
        {"equipoise/core/__init__.py": "z = 1"},
    ],
)
def test_what_may_change_a_measurement_changes_it(house, change):
    assert house().digest != house(**change).digest


@pytest.mark.parametrize("ending", ["def __getattr__(name): ...", "else:\n    __getattr__, __all__ = lazy(__name__)"])
def test_of_a_lazy_package_only_what_is_taken_counts(house, ending):
    path = "equipoise/lazy/__init__.py"
    package = {path: FILES[path].replace("def __getattr__(name): ...", ending)}
    study = "def run(r):\n    from equipoise.lazy import first\n"
    assert "equipoise.lazy.one" in house(study, **package).modules
    assert "equipoise.lazy.two" not in house(study, **package).modules
    everything = house("import equipoise.lazy as lazy\nlazy.second", **package)
    assert {"equipoise.lazy.one", "equipoise.lazy.two"} <= set(everything.modules)


@pytest.mark.parametrize("name", ["beside", "study"])
def test_files_beside_the_study_count(house, tmp_path, name):
    study = f"import {name}\n{name}.x"
    (tmp_path / "mine").mkdir()
    contents = "x = 1", "x = 2", '"""Doc."""\nx = 2'
    digests = set()
    for content in contents:
        (tmp_path / "mine" / f"{name}.py").write_text(content)
        digests.add(house(study).digest)
    assert len(digests) == len(contents)


def test_every_part_counts_and_their_order_does_not(house):
    parts = {"code": house().digest, "arm": "a", "settings": {"rate": 1, "beta": 2}, "seed": 0, "threads": 1}
    same = {"code": house().digest, "threads": 1, "seed": 0, "settings": {"beta": 2, "rate": 1}, "arm": "a"}
    assert fingerprint(**parts) == fingerprint(**same)
    assert len({fingerprint(**{**parts, key: 5}) for key in parts} | {fingerprint(**parts)}) == 6


def test_text_that_utf8_cannot_hold_counts_too():
    """A word typed in another encoding arrives so; as valid text it is the plain digest, as ever."""
    assert len({fingerprint(word=word) for word in ("\udc80", "\udc81", r"\udc80")}) == 3
    assert fingerprint(word="ä") == hashlib.sha256('{"word": "ä"}'.encode()).hexdigest()


def test_the_server_imports_what_is_reached(house):
    names = preload(house())
    assert {"torch.nn", "torch:nn", "equipoise.made_up.method"} <= set(names)
    taken = replace(house(), foreign=frozenset({"json.tool", "torch.nn.functional", "torchvision"}), modules=("m",))
    assert preload(taken)[:3] == ["torch.nn.functional", "torch.nn:functional", "m"]
    assert not any("torch" in name for name in preload(house("x = 1")))


def test_every_rule_that_an_arm_may_name_is_reached():
    """Rules are looked up by name in a registry, so no import of their modules stands anywhere."""
    reached = code_of(Path(sago.__file__)).modules
    assert {f"equipoise.unlearning.{name}" for name in ("blur", "gradient_sum", "objectives", "pcgrad", "sago")} <= set(
        reached
    )
    assert "equipoise.unlearning.job" not in reached


def test_where_a_dotted_name_lies_and_what_a_file_is_called(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_root", lambda: tmp_path)
    module._package_path.cache_clear()
    files = ("equipoise/__init__.py", "equipoise/a/__init__.py", "equipoise/a/b.py", "mine/c.py", "mine/d/e.py")
    paths = {name: tmp_path / name for name in files}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    first, package, inner, beside, deep = paths.values()
    try:
        assert module._resolve("equipoise.a.b", tmp_path / "mine") == {
            "equipoise": first,
            "equipoise.a": package,
            "equipoise.a.b": inner,
        }
        assert module._resolve("equipoise.a.b.name", tmp_path)["equipoise.a.b"] == inner
        assert module._resolve("c.x", tmp_path / "mine") == {"c": beside}
        assert module._resolve("d.e", tmp_path / "mine") == {"d.e": deep} and module._resolve("q", tmp_path) == {}
        named = [module._name_in_package(path) for path in paths.values()]
        assert named == ["equipoise", "equipoise.a", "equipoise.a.b", None, None]
    finally:
        module._package_path.cache_clear()


@pytest.mark.parametrize(
    ("line", "package", "absolute"),
    [
        ("from x import y", "a.b.c", "x"),
        ("from . import y", "a.b.c", "a.b.c"),
        ("from .x import y", "a.b.c", "a.b.c.x"),
        ("from ..x.z import y", "a.b.c", "a.b.x.z"),
        ("from ... import y", "a.b.c", "a"),
    ],
)
def test_relative_imports_count_from_their_package(line, package, absolute):
    assert module._absolute(ast.parse(line).body[0], package) == absolute


def test_a_tree_is_told_without_what_is_empty_and_without_docstrings_where_they_do_not_count():
    """So that another version of Python, with other empty fields, tells the same."""

    def told(source, docstrings):
        return module._dump(ast.parse(source), docstrings)

    assert told("x = None", False) == "Module(body=[Assign(targets=[Name(id='x',ctx=Store())],value=Constant())])"
    assert told("f(u'x', 0, '')", False) == (
        "Module(body=[Expr(value=Call(func=Name(id='f',ctx=Load()),"
        "args=[Constant(value='x'),Constant(value=0),Constant(value='')]))])"
    )
    plain, documented = "def f():\n    return 1", 'def f():\n    """Doc."""\n    return 1'
    assert told(plain, False) == told(documented, False) == told(plain, True) != told(documented, True)
    assert told("class A:\n    'Doc.'", False) == "Module(body=[ClassDef(name='A')])"
    assert told("if x:\n    'No doc.'", False) != told("if x:\n    pass", False)
