"""Registries: names from the sources, things when they are asked for."""

import subprocess
import sys

import pytest

from equipoise.core.errors import BadInput
from equipoise.core.registry import Registry

RULES = """RULES.register("{name}", "{name} is here")
print("imported {name}")
"""


@pytest.fixture
def rules(tmp_path, monkeypatch):
    package = tmp_path / "kitchen"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "shelf.py").write_text(
        "from equipoise.core.registry import Registry\nRULES = Registry('kitchen', 'RULES')\n"
    )
    for name in ("salt", "pepper"):
        (package / f"{name}.py").write_text(f"from kitchen.shelf import RULES\n{RULES.format(name=name)}")
    (package / "oil.py").write_text(
        'from kitchen.shelf import RULES\n# RULES.register("no")\n@RULES.register(\n    "oil"\n)\ndef pour(): ...\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda: __import__("kitchen.shelf", fromlist=["RULES"]).RULES
    for name in [name for name in sys.modules if name.partition(".")[0] == "kitchen"]:
        del sys.modules[name]


def test_names_are_read_and_modules_are_imported_when_asked_for(rules, capsys):
    found: Registry[str] = rules()
    assert tuple(found) == ("oil", "pepper", "salt") and len(found) == 3 and "salt" in found and "no" not in found
    assert capsys.readouterr().out == ""
    assert found["salt"] == "salt is here" and capsys.readouterr().out == "imported salt\n"
    assert found["oil"].__name__ == "pour"
    with pytest.raises(BadInput, match=r"no 'peper'\. Did you mean 'pepper'"):
        found["peper"]


def test_a_name_stands_for_one_thing_and_ones_own_come_last(rules):
    found = rules()
    assert found.register("mine", "here") == found.register("mine", "here") == "here"
    assert tuple(found) == ("oil", "pepper", "salt", "mine")
    with pytest.raises(ValueError, match="has 'mine' already"):
        found.register("mine", "there")


def test_a_name_that_is_none_and_one_that_was_registered_by_hand(rules):
    found = rules()
    found.register("mine", "here")
    assert "mine" in found and len(found) == 4 and found["mine"] == "here" and found.package == "kitchen"
    assert found.modules == {"oil": "kitchen.oil", "pepper": "kitchen.pepper", "salt": "kitchen.salt"}
    with pytest.raises(BadInput) as caught:
        found["x"]
    assert str(caught.value) == "RULES has no 'x'. Known: mine, oil, pepper, salt."
    found.register("salt", "another")  # before the module was asked for: it goes first, and the module is the second
    assert found["salt"] == "another"


def test_the_words_of_unlearning_need_no_torch():
    code = (
        "import sys; from equipoise.unlearning.recipe import COMBINE, METHODS, OBJECTIVES, Recipe; "
        "names = Recipe.model_json_schema()['properties']; "
        "assert names['combine']['enum'] == list(COMBINE) and 'sago' in COMBINE and 'npo' in OBJECTIVES; "
        "assert 'gru-core' in METHODS and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
