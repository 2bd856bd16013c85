"""The version is that of the installed package, and says so where none is installed."""

import importlib.metadata
import runpy

import pytest

from equipoise.core import version


@pytest.mark.parametrize("installed", [True, False])
def test_a_version_of_what_is_installed_and_of_a_source_tree(installed, monkeypatch):
    def told(name):
        assert name == "equipoise"
        if not installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(importlib.metadata, "version", told)
    found = runpy.run_path(str(version.__file__))["__version__"]
    assert found == ("1.2.3" if installed else "0.0.0+source")
