"""Files in a folder that an enemy has filled: nothing outside changes or is shown, nothing blocks."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from equipoise.core import beneath
from equipoise.core.errors import BadInput, WorkFailed


@pytest.fixture
def folder(tmp_path):
    """Its neighbour `outside` holds what must stay as it is and unseen."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine").write_text("mine")
    (tmp_path / "folder").mkdir()
    yield tmp_path / "folder"
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["mine"]
    assert (tmp_path / "outside" / "mine").read_text() == "mine"


@pytest.fixture
def traps(folder):
    """By name, everything that can lie where a file is expected."""
    outside = folder.parent / "outside"
    (folder / "link").symlink_to(outside / "mine")
    (folder / "relative").symlink_to("../outside/mine")
    (folder / "dangling").symlink_to(outside / "new")
    (folder / "loop").symlink_to("loop")
    (folder / "hard").hardlink_to(outside / "mine")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path is short
        listener.bind("socket")
        os.chdir(here)
        yield ["link", "relative", "dangling", "loop", "hard", "pipe", "socket"]


def test_writing_replaces_what_lies_there_and_reading_refuses_it(folder, traps):
    for name in traps:
        with pytest.raises(WorkFailed, match=rf"'{name}' below .*(no plain file|second name)"):
            beneath.read(folder, name)
        beneath.write(folder, name, b"new")
        assert (folder / name).read_bytes() == beneath.read(folder, name) == b"new"
        assert not (folder / name).is_symlink() and (folder / name).stat().st_nlink == 1


@pytest.mark.parametrize("name", ["way/mine", "way/deep/mine", "real/way/mine"])
def test_a_link_on_the_way_is_refused(folder, name):
    (folder / "real").mkdir()
    for place in (folder, folder / "real"):
        (place / "way").symlink_to(folder.parent / "outside")
    for act in (lambda: beneath.read(folder, name), lambda: beneath.write(folder, name, b"over")):
        with pytest.raises(WorkFailed, match="a link or a file stands where a folder should be"):
            act()


@pytest.mark.parametrize("name", ["", ".", "..", "/etc/passwd", "a/../../b", "a\0b", "a\ud800"])
def test_names_that_are_none_or_leave_the_folder(folder, name):
    for act in (lambda: beneath.read(folder, name), lambda: beneath.write(folder, name, b"")):
        with pytest.raises(BadInput, match=r"no file name|leaves the working folder"):
            act()
    assert not list(folder.iterdir())


def test_files_that_are_too_long_missing_or_folders(folder):
    beneath.write(folder, "a/b/c", b"12345")
    assert beneath.read(folder, "a/b/c", most=5) == b"12345"
    with pytest.raises(WorkFailed, match="5 bytes, more than 4"):
        beneath.read(folder, "a/b/c", most=4)
    with (folder / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(WorkFailed, match="1,099,511,627,776 bytes"):
        beneath.read(folder, "sparse")
    with pytest.raises(WorkFailed, match="No such file"):
        beneath.read(folder, "none")
    with pytest.raises(WorkFailed, match="no plain file"):
        beneath.read(folder, "a/b")
    with pytest.raises(WorkFailed, match="directory"):
        beneath.write(folder, "a/b", b"")


def test_a_file_that_is_exchanged_while_it_is_looked_at_is_not_followed(folder, monkeypatch):
    beneath.write(folder, "answer", b"answer")
    look = os.stat

    def exchanged(*arguments, **options):
        found = look(*arguments, **options)
        (folder / "answer").unlink()
        (folder / "answer").symlink_to(folder.parent / "outside" / "mine")
        return found

    monkeypatch.setattr(os, "stat", exchanged)
    with pytest.raises(WorkFailed):
        beneath.read(folder, "answer")


def test_any_depth_and_any_rights_are_removed_and_no_link_is_followed(folder, traps):
    here = os.open(folder, os.O_RDONLY)
    for _ in range(1100):  # deeper than recursion and open files reach
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    (folder / "closed" / "inner").mkdir(parents=True)
    (folder / "closed" / "inner" / os.fsdecode(b"\xff\n")).touch()
    (folder / "closed" / "inner" / "way").symlink_to(folder.parent / "outside")
    (folder / "closed" / "inner").chmod(0)
    (folder / "closed").chmod(0)
    folder.chmod(0)
    try:
        beneath.remove(folder)
        assert not folder.exists()
    finally:  # pytest's own clean-up recurses: what a broken `remove` leaves would end every later session
        subprocess.run(["rm", "-rf", str(folder)], check=False)


def test_a_folder_that_is_a_link_is_not_emptied(folder):
    (folder / "base").symlink_to(folder.parent / "outside")
    beneath.remove(folder / "base")
    beneath.remove(folder / "none")
    assert (folder / "base").is_symlink()


def test_rights_are_given_to_the_folder_itself_where_a_link_need_not_be_followed(monkeypatch):
    """As on macOS, whose chmod may stop at a link."""
    asked = []

    def chmod(name, mode, **how):
        asked.append((name, mode, how))

    monkeypatch.setattr(os, "chmod", chmod)
    monkeypatch.setattr(os, "supports_follow_symlinks", {chmod})
    beneath._permit("within", 5)
    assert asked == [("within", 0o700, {"dir_fd": 5, "follow_symlinks": False})]


def test_files_are_for_those_whom_the_umask_lets_and_folders_for_their_owner(folder, monkeypatch):
    before = os.umask(0)
    try:
        beneath.write(folder, "way/new", b"x")
    finally:
        os.umask(before)
    assert (folder / "way" / "new").stat().st_mode & 0o7777 == 0o666
    (folder / "way").chmod(0)
    monkeypatch.setattr(os, "supports_follow_symlinks", set())  # as on Linux before 6.6
    beneath._permit(str(folder / "way"), None)
    assert (folder / "way").stat().st_mode & 0o7777 == 0o700


def test_a_file_that_grows_while_it_is_read_is_refused_after_one_byte_too_many(folder, monkeypatch):
    beneath.write(folder, "log", b"1234567")
    monkeypatch.setattr(beneath, "_plain", lambda status, most: None)  # it was short then
    assert beneath.read(folder, "log", most=7) == b"1234567"
    asked, plain = [], os.fdopen

    class Counting:
        def __init__(self, *how):
            self.file = plain(*how)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def fileno(self):
            return self.file.fileno()

        def read(self, size):
            asked.append(size)
            return self.file.read(size)

    monkeypatch.setattr(os, "fdopen", Counting)
    with pytest.raises(WorkFailed) as caught:
        beneath.read(folder, "log", most=5)
    assert str(caught.value) == f"'log' below {folder}: it grew beyond 5 bytes." and asked == [6]


def test_why_a_file_cannot_be_had_in_full(folder):
    (folder / "a").write_bytes(b"12345")
    for act, name, said in (
        (lambda name: beneath.read(folder, name), "none", "No such file or directory"),
        (lambda name: beneath.read(folder, name, most=4), "a", "it has 5 bytes, more than 4"),
        (lambda name: beneath.write(folder, name, b""), "a/b", "a link or a file stands where a folder should be"),
    ):
        with pytest.raises(WorkFailed) as caught:
            act(name)
        assert str(caught.value) == f"{name!r} below {folder}: {said}."
    with pytest.raises(WorkFailed, match=r"^'x' below y: odd\.$"), beneath._said("y", "x"):
        raise OSError("odd")


def test_what_is_moved_to_be_emptied_gets_a_name_that_nobody_guesses(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(beneath.secrets, "token_hex", lambda size: asked.append(size) or f"{len(asked)}" * size)
    (folder / "a" / "b").mkdir(parents=True)
    beneath.remove(folder)
    assert not folder.exists() and asked == [8, 8]


def test_files_are_opened_so_that_nothing_is_followed_and_nothing_waits(folder, monkeypatch):
    asked, plain = [], os.open

    def noted(name, flags, mode=0o777, **where):
        asked.append((name, flags))
        return plain(name, flags, mode, **where)

    beneath.write(folder, "a/b", b"")
    monkeypatch.setattr(os, "open", noted)
    monkeypatch.setattr(os, "supports_follow_symlinks", set())
    beneath.write(folder, "a/b", b"x")
    beneath.read(folder, "a/b")
    beneath._permit(str(folder), None)
    ours = sum((os.O_DIRECTORY, os.O_CLOEXEC))
    theirs = ours + os.O_NOFOLLOW
    assert asked == [
        (folder, ours), ("a", theirs), ("b", sum((os.O_WRONLY, os.O_CREAT, os.O_EXCL, os.O_NOFOLLOW, os.O_CLOEXEC))),
        (folder, ours), ("a", theirs), ("b", sum((os.O_NOFOLLOW, os.O_NONBLOCK, os.O_NOCTTY, os.O_CLOEXEC))),
        (str(folder), theirs + os.O_PATH),
    ]  # fmt: skip
