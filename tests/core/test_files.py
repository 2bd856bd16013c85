import os
import signal
import subprocess
import sys
import time

import pytest

from equipoise.core.errors import WorkFailed
from equipoise.core.files import Files, append_synced, atomic_folder, lock, write_atomic


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
