"""Names of a package that are imported when they are asked for."""

import sys

import pytest

SOURCE = """
from typing import TYPE_CHECKING
from equipoise.core.lazy import lazy
if TYPE_CHECKING:
    import json
    from larder.shelf import jam as jam, bread as bread
    from larder import drawer as drawer
if not TYPE_CHECKING:
    from os import sep as hidden
__getattr__, __dir__, __all__ = lazy(__name__, __file__)
"""


@pytest.fixture
def larder(tmp_path, monkeypatch):
    folder = tmp_path / "larder"
    folder.mkdir()
    (folder / "__init__.py").write_text(SOURCE)
    (folder / "shelf.py").write_text("jam, bread, honey = 'jam', 'bread', 'honey'")
    (folder / "drawer.py").write_text("fork = 1")
    (folder / "_hidden.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda: __import__("larder")
    for name in [name for name in sys.modules if name.partition(".")[0] == "larder"]:
        del sys.modules[name]


def test_names_are_those_under_type_checking_and_cost_nothing_until_asked_for(larder):
    package = larder()
    assert package.__all__ == package.__dir__() == ["bread", "drawer", "jam"]
    assert "larder.shelf" not in sys.modules
    assert package.jam == "jam" and package.bread == "bread" and "larder.drawer" not in sys.modules
    assert package.drawer.fork == 1


def test_a_module_of_the_package_is_a_name_too_and_nothing_else_is(larder):
    package = larder()
    assert package.shelf.honey == "honey"
    for name in ("honey", "json", "_hidden", "none"):
        with pytest.raises(AttributeError, match=rf"^module 'larder' has no attribute '{name}'$"):
            getattr(package, name)
