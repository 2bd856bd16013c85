import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from equipoise.core import files
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import (
    Files,
    append_synced,
    atomic_folder,
    lock,
    model_files_digest,
    open_regular,
    read_regular,
    seal,
    set_aside,
    sha256_file,
    unseal,
    write_atomic,
)


def test_write_atomic_leaves_the_old_content_when_the_write_fails(tmp_path):
    class Full(Files):
        def produce(self, path, writer):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    path = tmp_path / "a.json"
    write_atomic(path, "old")
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new", files=Full())
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_append_adds_at_the_end_and_truncate_cuts(tmp_path):
    path = tmp_path / "lines"
    append_synced(path, "eins\n")
    append_synced(path, "zwölf\n")
    assert path.read_bytes() == "eins\nzwölf\n".encode()
    Files().truncate(path, 5)
    assert path.read_text() == "eins\n"


def test_atomic_folder_replaces_as_a_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "b").write_text("2")
        raise RuntimeError
    assert [each.name for each in target.iterdir()] == ["a"]
    with atomic_folder(target) as folder:
        (folder / "b").write_text("2")
    assert [each.name for each in target.iterdir()] == ["b"]
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_atomic_folder_puts_the_older_one_back_when_it_cannot_be_replaced(tmp_path):
    class Failing(Files):
        def replace(self, source, target):
            if source.name.endswith(".tmp"):
                raise OSError("no")
            super().replace(source, target)

    target = tmp_path / "folder"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(OSError, match="no"), atomic_folder(target, files=Failing()) as folder:
        (folder / "a").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"] and (target / "a").read_text() == "old"


def test_a_lock_ends_with_its_process(tmp_path):
    path = tmp_path / "lock"
    code = "import sys, time\nfrom equipoise.core.files import lock\nfrom pathlib import Path\n"
    code += "with lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(WorkFailed, match="another reader"), lock(path, waiting_for="another reader"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    with lock(path, wait=10):
        pass
    holder.wait()
    holder.stdout.close()


def test_a_lock_whose_file_was_moved_away_guards_nothing(tmp_path):
    """Who waited for the lock of a folder that its holder renamed must not believe to hold the new one."""
    folder, other = tmp_path / "run", tmp_path / "done"
    code = "import sys, time\nfrom equipoise.core.files import lock\nfrom pathlib import Path\nfolder = Path(sys.argv[1])\n"
    code += (
        "with lock(folder / 'lock', wait=20):\n    print(sorted(p.name for p in folder.parent.iterdir()), flush=True)"
    )
    with lock(folder / "lock"):
        waiter = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
        time.sleep(0.5)
        folder.rename(other)
    out, _ = waiter.communicate(timeout=30)
    assert out.strip() == "['done', 'run']"
    assert (folder / "lock").stat().st_ino != (other / "lock").stat().st_ino


@pytest.mark.parametrize("made", ["folder", "pipe", "device"])
def test_what_has_no_end_is_refused_instead_of_read(made, tmp_path):
    path = tmp_path / "input"
    if made == "folder":
        path.mkdir()
    elif made == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    for read in (open_regular, read_regular, sha256_file):
        with pytest.raises(BadInput, match=f"input is a {made}; expected a file"):
            read(path)


def test_a_regular_file_is_read_and_its_digest_is_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("abc")
    assert read_regular(tmp_path / "link") == b"abc"
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none")


def _made(folder):
    return (folder / "made").exists()


def test_a_folder_that_was_made_is_set_aside_under_the_next_free_number(tmp_path):
    for number in (1, 2, 3):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "made").write_text(str(number))
        if number == 2:  # a taken name, even that of a dangling link
            (tmp_path / "out.old-2").symlink_to("nowhere")
        assert set_aside(tmp_path / "out", made_by=_made)
    held = {name: (tmp_path / name / "made").read_text() for name in ("out.old-1", "out.old-3", "out.old-4")}
    assert held == {"out.old-1": "1", "out.old-3": "2", "out.old-4": "3"}
    assert set_aside(tmp_path / "out", made_by=_made) is None


@pytest.mark.parametrize("reason", ["foreign", "link", "file", "working", "input"])
def test_nothing_else_is_ever_set_aside(reason, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / "model").write_text("weights")
    inputs = []
    if reason == "link":
        (out / "made").touch()
        (tmp_path / "link").symlink_to("out")
        out = tmp_path / "link"
    elif reason == "file":
        out = out / "model"
    elif reason != "foreign":
        (out / "made").touch()
    if reason == "working":
        monkeypatch.chdir(out / "deep")
    if reason == "input":
        inputs = [tmp_path / "elsewhere", out / "deep" / ".." / "model"]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput, match="not set aside; give another --out"):
        set_aside(out, made_by=_made, inputs=inputs)
    assert sorted(tmp_path.rglob("*")) == before


ROW = {
    "name": 'zwölf \u2028 \\ "quoted"',
    "value": 0.1,
    "of": None,
    "at": {"step": 3},
    "listed": [1, -2.5e-300, math.inf],
}


def test_a_sealed_line_is_json_and_comes_back_as_it_was():
    line = seal(ROW)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert {name: value for name, value in json.loads(line).items() if name != "seal"} == ROW
    for text in (line, line[:-1], line[:-1] + b"\r\n"):
        assert unseal(text) == (ROW, True)
    assert unseal(json.dumps(ROW).encode()) == (ROW, False)
    assert unseal(seal({"half": "\ud800"})) == ({"half": "\ud800"}, True)


@pytest.mark.parametrize("indent", [None, 2])
def test_no_flipped_bit_of_a_sealed_line_makes_another_row(indent):
    line = seal(ROW, indent=indent)
    for place in range(len(line) - 1):
        for bit in range(8):
            flipped = bytearray(line)
            flipped[place] ^= 1 << bit
            try:
                row, sealed = unseal(bytes(flipped))
            except ValueError:
                continue
            # Lost can be the name of the seal, and spaces before it: the row stands as it was.
            assert {name: row[name] for name in ROW} == ROW
            assert len(row) == len(ROW) + (not sealed)
    for cut in range(len(line.rstrip())):
        with pytest.raises(ValueError, match=r"."):
            unseal(line[:cut])


def test_a_row_is_sealed_once():
    with pytest.raises(ValueError, match="seal"):
        seal({"seal": "x"})
    assert unseal(seal({})) == unseal(seal({}, indent=2)) == ({}, True)


@pytest.mark.parametrize("line", [b"", b"[1]", b"12", b"\xff{}", b"[" * 100_000])
def test_a_line_that_is_no_row_is_refused(line):
    with pytest.raises(ValueError, match=r"."):
        unseal(line)


def test_a_lock_makes_no_file_where_a_link_leads(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="is a link"), lock(tmp_path / "lock"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_model_without_files_of_other_tokenizers_keeps_its_digest(tmp_path):
    """Or every folder of before would be refused."""
    for name in ("a.safetensors", "config.json", "generation_config.json", "tokenizer.json"):
        (tmp_path / name).write_text(name)
    digest = hashlib.sha256()
    for name in ("a.safetensors", "config.json", "generation_config.json", "tokenizer.json"):
        digest.update(f"{name} {len(name)} {name}{name}".encode())  # its parts, and its end
    assert model_files_digest(tmp_path) == digest.hexdigest()


def test_a_model_is_known_by_its_weights_wherever_they_differ(tmp_path):
    """Small files are read whole, of large ones parts from end to end."""
    model = tmp_path / "model"
    model.mkdir()
    assert model_files_digest(model) == "" == model_files_digest(tmp_path / "none")
    (model / "notes.json").write_text("{}")
    assert model_files_digest(model) == ""
    weights = bytearray(3 * 2**20)
    (model / "a.safetensors").write_bytes(weights)
    first = model_files_digest(model)
    (model / "notes.json").write_text('{"seen": true}')
    assert model_files_digest(model) == first
    for place in (0, 2**14, 2**20 + 7, len(weights) - 1):
        weights[place] = 1
        (model / "a.safetensors").write_bytes(weights)
        assert model_files_digest(model) != first
        weights[place] = 0
    (model / "a.safetensors").write_bytes(weights)
    assert model_files_digest(model) == first
    (model / "config.json").write_text("{}")
    assert model_files_digest(model) != first
    seen = {first, model_files_digest(model)}
    (model / "additional_chat_templates").mkdir()
    names = ["tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja", "tool.jinja"]
    for name in (*names, "additional_chat_templates/tool.jinja"):
        for content in ("A", "B"):
            (model / name).write_text(content)
            assert model_files_digest(model) not in seen, name
            seen.add(model_files_digest(model))
    large = tmp_path / "b.gguf"
    large.write_bytes(bytes(30 * 2**20))
    zeros = model_files_digest(large)
    large.write_bytes(b"\x01" * 30 * 2**20)
    assert len({zeros, model_files_digest(large), first}) == 3
    large.write_bytes(bytes(30 * 2**20 - 1) + b"\x01")
    assert model_files_digest(large) != zeros
    (tmp_path / "c.txt").write_text("no model")
    assert model_files_digest(tmp_path / "c.txt") == ""


def test_a_lock_whose_file_is_moved_while_it_is_taken_is_taken_anew(tmp_path, monkeypatch):
    """The same in one process: the folder goes just after the lock was had, as often as it does."""
    folder, places = tmp_path / "folder", [tmp_path / "first", tmp_path / "second"]
    flock = files.fcntl.flock

    def moving(descriptor, how):
        flock(descriptor, how)
        if places:
            folder.rename(places.pop(0))

    monkeypatch.setattr(files.fcntl, "flock", moving)
    with lock(folder / "lock"):
        assert places == [] and (folder / "lock").is_file()
        with pytest.raises(WorkFailed, match="another process that holds"), lock(folder / "lock"):
            pass
        with lock(tmp_path / "first" / "lock"), lock(tmp_path / "second" / "lock"):
            pass  # nobody holds what was moved away
    with lock(folder / "lock"):
        pass


def test_a_lock_is_asked_for_every_fiftieth_of_a_second_until_its_time_is_over(tmp_path, monkeypatch):
    path, now, slept = tmp_path / "held" / "lock", [100.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(files.time, "sleep", sleep)
    with lock(path):
        for wait, times in ((0.0, 0), (0.09, 5)):
            slept.clear()
            with pytest.raises(WorkFailed) as caught, lock(path, wait=wait):
                pass
            assert str(caught.value) == f"Found another process that holds {path}; wait until it ends, or stop it."
            assert slept == [0.02] * times
        slept.clear()
        with pytest.raises(WorkFailed), lock(path):  # who says nothing does not wait
            pass
        assert slept == []


def test_no_link_is_followed_that_comes_between_a_look_and_the_lock(tmp_path, monkeypatch):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(files.Path, "is_symlink", lambda path: False)
    with pytest.raises(OSError, match="symbolic link"), lock(tmp_path / "lock"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_what_is_written_may_be_read_by_others_and_changed_by_its_owner(tmp_path):
    before = os.umask(0)
    try:
        write_atomic(tmp_path / "a", "x")
        append_synced(tmp_path / "b", "x")
        with lock(tmp_path / "c"):
            pass
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o7777 for path in tmp_path.iterdir()} == dict.fromkeys("abc", 0o644)


@pytest.mark.parametrize(
    ("size", "places"),
    [(100, [0, 25, 50, 75, 92]), (103, [0, 25, 50, 75, 100, 95]), (20, [0, 8, 16, 12]), (5, [0, 0]), (0, [0])],
)
def test_parts_of_a_model_from_end_to_end(size, places, tmp_path, monkeypatch):
    """Four parts of eight bytes, or as many as there are of a small file; and its last eight."""
    assert (files.PARTS, files.PART) == (256, 16_384)
    monkeypatch.setattr(files, "PARTS", 4)
    monkeypatch.setattr(files, "PART", 8)
    content = bytes(range(size))
    (tmp_path / "m.GGUF").write_bytes(content)
    told = f"m.GGUF {size} ".encode() + b"".join(content[place : place + 8] for place in places)
    assert model_files_digest(tmp_path / "m.GGUF") == hashlib.sha256(told).hexdigest()


def test_a_seal_is_sixteen_digits_of_a_digest_of_what_stands_before():
    digest = hashlib.sha256(b'{"a": 1').hexdigest()[:16]
    assert seal({"a": 1}) == f'{{"a": 1, "seal": "{digest}"}}\n'.encode()
    assert unseal(seal({"a": "x" * 500})) == ({"a": "x" * 500}, True)


def test_where_caches_are(tmp_path, monkeypatch):
    monkeypatch.setattr(files.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(files.sys, "platform", "linux")
    monkeypatch.delenv("EQUIPOISE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert files.cache_folder() == tmp_path / ".cache" / "equipoise"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(files.cache_folder()) == "/x/equipoise"
    monkeypatch.setattr(files.sys, "platform", "darwin")
    assert files.cache_folder() == tmp_path / "Library" / "Caches" / "equipoise"
    monkeypatch.setenv("EQUIPOISE_CACHE", "/own")
    assert str(files.cache_folder()) == "/own"


def test_files_are_opened_to_be_made_cut_or_added_to(tmp_path, monkeypatch):
    asked, plain, flock = [], os.open, files.fcntl.flock

    def noted(path, flags, *mode):
        asked.append((flags, *mode))
        return plain(path, flags, *mode)

    monkeypatch.setattr(os, "open", noted)
    monkeypatch.setattr(files.fcntl, "flock", lambda descriptor, how: asked.append(how) or flock(descriptor, how))
    write_atomic(tmp_path / "a", "x")
    append_synced(tmp_path / "a", "x")
    read_regular(tmp_path / "a")
    with lock(tmp_path / "lock"):
        pass
    assert asked == [
        (sum((os.O_WRONLY, os.O_CREAT, os.O_TRUNC)), 0o644), (os.O_RDONLY,),
        (sum((os.O_WRONLY, os.O_CREAT, os.O_APPEND)), 0o644), (os.O_RDONLY,),
        (sum((os.O_NONBLOCK, os.O_CLOEXEC)),),
        (sum((os.O_RDWR, os.O_CREAT, os.O_NOFOLLOW)), 0o644), sum((files.fcntl.LOCK_EX, files.fcntl.LOCK_NB)),
    ]  # fmt: skip


def test_all_that_a_folder_holds_is_on_the_disk_before_its_name_and_links_are_not_followed(tmp_path, monkeypatch):
    synced, plain = [], files._sync
    work = tmp_path / "work"
    (work / "deep").mkdir(parents=True)
    (work / "deep" / "a").write_text("x")
    (work / "link").symlink_to("nowhere")
    monkeypatch.setattr(files, "_sync", lambda path: synced.append(path) or plain(path))
    files.publish(work, tmp_path / "done")
    assert synced[0] == work and sorted(synced[1:-1]) == [work / "deep", work / "deep" / "a"] and synced[-1] == tmp_path
    synced.clear()
    with atomic_folder(tmp_path / "done") as folder:
        (folder / "b").write_text("y")
    assert synced == [folder, folder / "b", tmp_path]
    Files().write(tmp_path / "c", b"z")
    Files().append(tmp_path / "c", b"z")
    Files().truncate(tmp_path / "c", 1)
    assert synced[3:] == [tmp_path / "c"] * 3
