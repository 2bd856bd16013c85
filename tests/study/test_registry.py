import sys
from importlib.metadata import EntryPoint

import pytest

from engine_studies import walk
from equipoise.core.errors import BadInput
from equipoise.study import registry

TINY = """
from equipoise.study import Arm, Outcome, Study, study
def built():
    return Study(arms=[Arm("a")], outcomes=[Outcome("o", better="lower")], claims=[], run=print, budget="calls",
                 without_control="a test")
"""


def one(name):
    return f'@study("{name}", paper="", trades="")\ndef {name}(n: int = 1) -> Study:\n    return built()\n'


@pytest.fixture(autouse=True)
def forget_what_was_found():
    registry.found.cache_clear()
    yield
    registry.found.cache_clear()


def plug_in(monkeypatch, *points):
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint(n, v, group) for n, v in points])


def test_the_package_s_own_studies_are_found_by_name():
    assert "sago" in registry.names()
    assert registry.reference(registry.load("sago")) == "sago"


def test_further_studies_are_of_the_system_of_the_first(monkeypatch, tmp_path):
    def also(name, system):
        return one(name).replace('trades=""', f'trades="", system="{system}"')

    (tmp_path / "more_studies.py").write_text(TINY + also("asago", "sago") + one("zz") + also("aa", "zz"))
    monkeypatch.syspath_prepend(str(tmp_path))
    plug_in(monkeypatch, ("more", "more_studies"))
    systems = registry.systems()
    assert systems["sago"] == ["sago", "asago"] and systems["zz"] == ["zz", "aa"] and "aa" not in systems
    assert sorted(name for studies in systems.values() for name in studies) == registry.names()
    registry.found.cache_clear()
    (tmp_path / "lost_study.py").write_text(TINY + also("lost", "nowhere"))
    plug_in(monkeypatch, ("lost", "lost_study"))
    with pytest.raises(BadInput, match="study 'lost' is of the system 'nowhere', which no study is called"):
        registry.systems()


def test_an_unknown_name_gets_the_nearest(tmp_path):
    with pytest.raises(BadInput, match=r"no study 'sagoo'. Did you mean 'sago'"):
        registry.load("sagoo")
    with pytest.raises(BadInput, match=r"no file .*mine.py"):
        registry.load(str(tmp_path / "mine.py"))


def test_a_file_of_one_s_own_and_its_neighbours(tmp_path):
    (tmp_path / "helper_beside.py").write_text("TRADES = 'x for y'")
    (tmp_path / "mine.py").write_text(
        TINY + "from helper_beside import TRADES\n" + one("mine").replace('trades=""', "trades=TRADES")
    )
    declaration = registry.load(str(tmp_path / "mine.py"))
    assert declaration.trades == "x for y"
    assert registry.load(registry.reference(declaration)) is declaration
    sys.path.remove(str(tmp_path))


def test_a_file_with_several_studies_must_name_one(tmp_path):
    path = tmp_path / "several.py"
    path.write_text(TINY + one("first") + one("second"))
    with pytest.raises(BadInput, match=r"2 studies; name one: .*several\.py:first"):
        registry.load(str(path))
    assert registry.load(f"{path}:second").name == "second"
    with pytest.raises(BadInput, match=r"declares no study 'secnd'. Did you mean 'second'"):
        registry.load(f"{path}:secnd")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nowhere_to_be_found", "cannot be loaded: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("x = = 1", "cannot be loaded: invalid syntax .line 1"),
        ("x = 1", "declares no study"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, source, message):
    (tmp_path / "broken.py").write_text(source)
    with pytest.raises(BadInput, match=message):
        registry.load(str(tmp_path / "broken.py"))


def test_a_broken_plug_in_is_known_and_says_why_when_asked_for(monkeypatch):
    plug_in(monkeypatch, ("theirs", "nowhere_to_be_found.studies:theirs"))
    assert "theirs" not in registry.names()
    assert registry.found()["theirs"].declaration is None
    assert "sago" in registry.names()
    with pytest.raises(BadInput, match=r"'theirs' .entry point .* cannot be loaded: .*nowhere_to_be_found"):
        registry.load("theirs")


def test_plug_ins_are_declarations_or_modules_and_names_are_unique(monkeypatch, tmp_path):
    walk(tmp_path)
    name = "equipoise_study_file_walk_study"
    plug_in(monkeypatch, ("walk", f"{name}:walk"))
    assert registry.load("walk").name == "walk"
    registry.found.cache_clear()
    plug_in(monkeypatch, ("walk", name), ("again", f"{name}:walk"))
    with pytest.raises(BadInput, match=r"Two studies are called 'walk'.*entry point walk.*entry point again"):
        registry.load("walk")


def test_a_stored_result_never_imports_a_file_that_it_names(tmp_path):
    assert registry.declared("sago", tmp_path) is registry.load("sago")
    with pytest.raises(BadInput, match=r"holds results of 'walk', which is no installed study"):
        registry.declared("walk", tmp_path)
