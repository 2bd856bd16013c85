import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from equipoise.core import confine, sandbox
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.sandbox import Isolation, Limits, isolation, python, run

isolated = pytest.mark.skipif(not isolation().available, reason=f"no isolation here: {isolation().reason}")


def test_isolation_says_why_when_there_is_none():
    found = isolation()
    assert found.available is (found.reason == "")


@isolated
def test_output_status_and_input_come_back():
    finished = python("import sys; print(input().upper()); sys.stderr.write('no'); sys.exit(3)", stdin="yes\n")
    assert (finished.stdout, finished.stderr, finished.returncode, finished.ended) == ("YES\n", "no", 3, "exit")
    assert not finished.succeeded and not finished.truncated


@isolated
@pytest.mark.parametrize("address", ["loopback", "abstract", "path"])
def test_no_listener_of_this_machine_can_be_reached(tmp_path, address):
    """A listener that the test itself can reach, over loopback, an abstract Unix socket, and one with a path."""
    if address == "loopback":
        listener = socket.create_server(("127.0.0.1", 0))
        connect = f"socket.create_connection(('127.0.0.1', {listener.getsockname()[1]}), timeout=2)"
    else:
        listener = socket.socket(socket.AF_UNIX)
        name = f"\0equipoise-{os.getpid()}" if address == "abstract" else str(tmp_path / "s")
        listener.bind(name)
        listener.listen()
        connect = f"socket.socket(socket.AF_UNIX).connect({name!r})"
    with listener:
        code = f"import socket\n{connect}\nprint('connected')"
        outside = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert outside.stdout == "connected\n"
        inside = python(code)
    assert inside.returncode == 1 and "connected" not in inside.stdout
    assert "Error" in inside.stderr


@isolated
def test_no_packet_leaves_by_udp():
    finished = python("import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))")
    assert finished.returncode == 1 and "OSError" in finished.stderr


@pytest.fixture(params=["both", "mounts alone", "landlock alone"])
def walls(request, monkeypatch, tmp_path_factory):
    """Each wall against writing by itself: the other is taken out of a copy of the code."""
    taken_out = {
        "both": "",
        "mounts alone": '_landlock(plan["readable"], plan["folder"])',
        "landlock alone": "_restrict_mount(root, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID)",
    }[request.param]
    if request.param == "landlock alone" and not isolation().landlock:
        pytest.skip("this kernel has no Landlock")
    code = Path(confine.__file__).read_text()
    assert not taken_out or code.count(taken_out) == 1
    copy = tmp_path_factory.mktemp("confine") / "confine.py"
    copy.write_text(code.replace(taken_out, "pass") if taken_out else code)
    monkeypatch.setattr(confine, "__file__", str(copy))


@isolated
def test_nothing_outside_the_folder_can_be_written_or_seen(tmp_path, walls):
    (tmp_path / "mine").write_text("secret")
    code = f"""
import os
from pathlib import Path
open("inside", "w").write("fine")
for path in ({str(tmp_path / "new")!r}, {str(tmp_path / "mine")!r}, "/usr/equipoise", "/etc/equipoise",
             "/equipoise", {str(Path(sandbox.__file__).parent / "x")!r}, {sys.prefix + "/equipoise"!r},
             "/proc/self/oom_adj"):
    try:
        open(path, "w").write("x")
        print("wrote", path)
    except OSError:
        pass
try:
    print(open({str(tmp_path / "mine")!r}).read())
except OSError:
    print("not seen")
"""
    finished = python(code)
    assert finished.stdout == "not seen\n", finished
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"] and (tmp_path / "mine").read_text() == "secret"


@isolated
def test_the_walls_hold_against_a_namespace_made_inside():
    code = """
import ctypes
libc = ctypes.CDLL(None)
libc.unshare(0x10000000 | 0x20000)
print(libc.mount(b"none", b"/usr", b"", 0x20 | 0x1000, b""), libc.umount2(b"/usr", 2))
open("/usr/equipoise", "w")
"""
    finished = python(code)
    assert finished.stdout == "-1 -1\n" and finished.returncode == 1 and "/usr/equipoise" in finished.stderr


@isolated
def test_environment_and_other_processes_are_not_visible(monkeypatch):
    monkeypatch.setenv("EQUIPOISE_TEST_TOKEN", "s3cret-value")
    code = """
import os, pathlib
print(dict(os.environ))
for entry in pathlib.Path("/proc").glob("[0-9]*"):
    for name in ("environ", "cmdline"):
        try:
            print((entry / name).read_bytes())
        except OSError:
            pass
"""
    finished = python(code, environment={"GIVEN": "yes"})
    assert finished.succeeded and "'GIVEN': 'yes'" in finished.stdout
    assert "s3cret-value" not in finished.stdout
    assert "pytest" not in finished.stdout  # the command lines of this very process


@isolated
def test_an_infinite_loop_is_ended_by_the_cpu_limit():
    finished = python("while True: pass", limits=Limits(cpu_seconds=1, seconds=20))
    assert finished.ended == "cpu" and finished.returncode == -24 and finished.seconds < 15


@isolated
def test_sleep_is_ended_by_the_clock_together_with_what_it_started(tmp_path):
    code = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for i in range(60):
            open("alive", "w").write(str(i))
            time.sleep(0.05)
time.sleep(60)
"""
    finished = python(code, folder=tmp_path, limits=Limits(seconds=0.8))
    assert finished.ended == "wall clock" and 0.8 <= finished.seconds < 5
    seen = (tmp_path / "alive").read_text()
    time.sleep(0.3)
    assert (tmp_path / "alive").read_text() == seen, "a process in a session of its own outlived the sandbox"


@isolated
def test_everything_ends_when_the_caller_is_killed(tmp_path):
    inside = "import time\nfor i in range(200):\n  open('alive', 'w').write(str(i)); time.sleep(0.05)"
    outside = f"from equipoise.core.sandbox import python; python({inside!r}, folder={str(tmp_path)!r})"
    source = str(Path(sandbox.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source, "TMPDIR": str(tmp_path)}  # what it cannot delete any more
    caller = subprocess.Popen([sys.executable, "-c", outside], env=environment)
    deadline = time.monotonic() + 20
    while not (tmp_path / "alive").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    caller.kill()
    caller.wait()
    time.sleep(0.3)
    seen = (tmp_path / "alive").read_text()
    time.sleep(0.3)
    assert (tmp_path / "alive").read_text() == seen


@isolated
def test_what_the_command_leaves_running_ends_with_it(tmp_path):
    code = "import os, time\nif os.fork() == 0:\n  os.setsid(); time.sleep(0.6); open('late', 'w')"
    finished = python(code, folder=tmp_path)
    assert finished.succeeded and finished.seconds < 5
    time.sleep(0.8)
    assert not (tmp_path / "late").exists()


@isolated
def test_memory_hogs_are_ended_alone_and_together():
    alone = python("x = bytearray(400 * 2**20)", limits=Limits(memory_bytes=200 * 2**20))
    assert alone.returncode == 1 and "MemoryError" in alone.stderr
    together = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        x = bytearray(os.urandom(1) * (60 * 2**20))
        time.sleep(20)
time.sleep(20)
"""
    finished = python(together, limits=Limits(memory_bytes=200 * 2**20, seconds=15))
    assert finished.ended == "memory" and finished.seconds < 12


@isolated
def test_a_fork_bomb_is_ended():
    finished = python("import os\nwhile True: os.fork()", limits=Limits(processes=16, seconds=10))
    assert finished.ended in ("processes", "exit") and not finished.succeeded and finished.seconds < 9


@isolated
def test_files_and_output_are_capped(tmp_path):
    python("open('big', 'wb').write(b'x' * 5000)", folder=tmp_path, limits=Limits(file_bytes=1000))
    assert (tmp_path / "big").stat().st_size == 1000
    finished = python("print('x' * 50_000)", limits=Limits(output_bytes=1000))
    assert finished.succeeded and finished.truncated and finished.stdout == "x" * 1000


@isolated
def test_files_are_given_and_further_places_can_be_read(tmp_path):
    (tmp_path / "data.txt").write_text("given")
    code = f"import helper; print(helper.X, open({str(tmp_path / 'data.txt')!r}).read())"
    assert python(code, files={"helper.py": "X = 1"}, readable=[tmp_path]).stdout == "1 given\n"
    with pytest.raises(BadInput, match="leaves the working folder"):
        run(["true"], files={"../x": ""})


@isolated
def test_what_cannot_start_is_said():
    with pytest.raises(WorkFailed, match=r"no-such-program could not be started.*No such file"):
        run(["no-such-program"])


def test_without_isolation_untrusted_code_is_refused(monkeypatch):
    monkeypatch.setattr(sandbox, "isolation", lambda: Isolation(False, 0, "macOS has no namespaces"))
    with pytest.raises(BadInput, match=r"macOS has no namespaces.*--unsafe-execution"):
        python("print(1)")


def test_unsafe_still_limits_and_cleans(monkeypatch):
    monkeypatch.setattr(sandbox, "isolation", lambda: Isolation(False, 0, "none"))
    monkeypatch.setenv("EQUIPOISE_TEST_TOKEN", "s3cret-value")
    finished = python("import os; print('EQUIPOISE_TEST_TOKEN' in os.environ)", unsafe=True)
    assert finished.stdout == "False\n"
    finished = python("import time; time.sleep(60)", unsafe=True, limits=Limits(seconds=0.5))
    assert finished.ended == "wall clock" and finished.seconds < 5
    if sys.platform == "linux":
        finished = python("x = bytearray(400 * 2**20)", unsafe=True, limits=Limits(memory_bytes=200 * 2**20))
        assert "MemoryError" in finished.stderr
