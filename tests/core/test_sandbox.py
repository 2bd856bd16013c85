import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
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
def test_no_listener_of_this_machine_can_be_reached(tmp_path):
    """Listeners that the test itself can reach; the folder of those with a path may be read."""
    places = [f"\0equipoise-{os.getpid()}", str(tmp_path / "s")]
    with (
        socket.create_server(("127.0.0.1", 0)) as loopback,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as path,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as letters,
    ):
        for listener, place in zip((abstract, path), places, strict=True):
            listener.bind(place)
            listener.listen()
        letters.bind(str(tmp_path / "d"))
        code = f"""
import socket
unix, letter = socket.AF_UNIX, socket.SOCK_DGRAM
for attempt in (
    lambda: socket.create_connection(("127.0.0.1", {loopback.getsockname()[1]}), timeout=2),
    lambda: socket.socket(unix).connect({places[0]!r}),
    lambda: socket.socket(unix).connect({places[1]!r}),
    lambda: socket.socketpair(unix, letter)[0].sendto(b"x", {str(tmp_path / "d")!r}),
    lambda: socket.socket(type=letter).sendto(b"x", ("127.0.0.1", 9)),
):
    try:
        attempt()
        print("reached")
    except OSError:
        print("not reached")
for family in range(46):
    for kind in range(1, 6):
        try:
            print("family", socket.socket(family, kind).family)
        except OSError:
            pass
"""
        outside = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert outside.stdout.startswith("reached\n" * 5)
        assert python(code, readable=[tmp_path]).stdout == "not reached\n" * 5


@pytest.fixture
def without(monkeypatch, tmp_path_factory):
    """Takes walls out of a copy of the code, so that each of the others is seen to hold by itself."""
    if not isolation().landlock:
        pytest.skip("this kernel has no Landlock to be taken out or to hold alone")

    def take(*walls: str) -> None:
        code = Path(confine.__file__).read_text()
        for wall in walls:
            code, number = re.subn(rf"(?m)^( +){re.escape(wall)}$", r"\1pass", code)
            assert number == 1
        copy = tmp_path_factory.mktemp("confine") / "confine.py"
        copy.write_text(code)
        monkeypatch.setattr(confine, "__file__", str(copy))

    return take


LANDLOCK = '_landlock(plan["readable"], plan["folder"])'
FILTER = "_filter_calls()"
MOUNTS = "_restrict_mount(root, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)"


@isolated
@pytest.mark.parametrize("walls", [(), (LANDLOCK,), (MOUNTS,)], ids=["both", "mounts alone", "landlock alone"])
def test_nothing_outside_the_folder_can_be_written_or_seen(tmp_path, without, walls):
    without(*walls)
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
def test_the_walls_hold_against_a_namespace_made_inside(without):
    without(FILTER)
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
def test_a_stopped_command_is_ended_by_the_clock_together_with_what_it_started(tmp_path):
    code = """
import os, signal, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for i in range(600):
            open("alive", "w").write(str(i))
            time.sleep(0.01)
while not os.path.exists("alive"):
    time.sleep(0.01)
os.kill(0, signal.SIGSTOP)
"""
    finished = python(code, folder=tmp_path, limits=Limits(seconds=0.8))
    assert finished.ended == "wall clock" and finished.returncode == -9 and 0.8 <= finished.seconds < 5
    seen = (tmp_path / "alive").read_text()
    time.sleep(0.1)
    assert (tmp_path / "alive").read_text() == seen, "a process in a session of its own outlived the sandbox"


@isolated
def test_everything_ends_when_the_caller_is_killed(tmp_path):
    inside = "import time\nfor i in range(200):\n  open('alive', 'w').write(str(i)); time.sleep(0.01)"
    outside = f"from equipoise.core.sandbox import python; python({inside!r}, folder={str(tmp_path)!r})"
    source = str(Path(sandbox.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source, "TMPDIR": str(tmp_path)}  # what it cannot delete any more
    caller = subprocess.Popen([sys.executable, "-c", outside], env=environment)
    deadline = time.monotonic() + 20
    while not (tmp_path / "alive").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    caller.kill()
    caller.wait()
    time.sleep(0.1)
    seen = (tmp_path / "alive").read_text()
    time.sleep(0.1)
    assert (tmp_path / "alive").read_text() == seen


@isolated
def test_what_the_command_leaves_running_ends_with_it(tmp_path):
    code = "import os, time\nif os.fork() == 0:\n  os.setsid(); time.sleep(0.3); open('late', 'w')"
    finished = python(code, folder=tmp_path)
    assert finished.succeeded and finished.seconds < 5
    time.sleep(0.4)
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
def test_memory_is_not_held_where_it_is_not_counted():
    code = """
import mmap, os, socket
for hold in (
    lambda: os.memfd_create("x"),
    lambda: mmap.mmap(-1, 4096),
    lambda: os.open("/dev/zero", os.O_RDWR),
    lambda: open("/dev/shm/x", "w"),
    lambda: socket.socketpair()[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20),
):
    try:
        hold()
        print("held")
    except OSError:
        pass
print(len(mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)), flush=True)
pairs = []
while True:
    pairs.append(socket.socketpair())
    for each in pairs[-1]:
        each.setblocking(False)
        each.send(bytes(150_000))
"""
    finished = python(code, limits=Limits(memory_bytes=200 * 2**20, open_files=4096))
    assert finished.stdout == "4096\n" and finished.ended == "memory"


@isolated
def test_forks_and_threads_are_counted():
    finished = python("import os\nwhile True: os.fork()", limits=Limits(processes=16, seconds=10))
    assert finished.ended in ("processes", "exit") and not finished.succeeded and finished.seconds < 9
    code = """
import _thread, time
number = 0
try:
    while number < 100:
        _thread.start_new_thread(time.sleep, (60,))
        number += 1
except RuntimeError:
    pass
print(number, flush=True)
time.sleep(1)
"""
    finished = python(code, limits=Limits(processes=16))
    # The kernel refuses an ordinary user; root is counted by the sandbox.
    assert finished.ended == "processes" or int(finished.stdout) < 16


@isolated
def test_half_of_what_is_free_on_the_disk_is_left(tmp_path):
    assert confine._over({"folder": str(tmp_path)}, [2**80, 0]) == "disk"
    assert confine._over({"folder": str(tmp_path)}, [0, 2**80]) == "disk"


@isolated
def test_keys_of_the_caller_are_neither_listed_nor_read(without):
    libc = ctypes.CDLL(None, use_errno=True)
    machine = os.uname().machine
    add, control = (confine._CALLS[name][confine._ARCHITECTURES[machine][1]] for name in ("add_key", "keyctl"))
    libc.syscall(control, 1, None)  # a session keyring of its own for this process
    key = libc.syscall(add, b"user", b"equipoise-test", b"s3cret-value", 12, -3)
    if key < 0:
        pytest.skip("this system has no keys")
    code = f"""
import ctypes
libc, text = ctypes.CDLL(None), ctypes.create_string_buffer(12)
print(libc.syscall({control}, 11, {key}, text, 12), text.value)
try:
    print(open("/proc/keys").read())
except OSError:
    pass
"""
    outside = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert outside.stdout.startswith("12 b's3cret-value'")
    assert python(code).stdout.strip() == "-1 b''"
    without(FILTER)
    assert python(code).stdout.strip() == "-1 b''"


@isolated
def test_signals_to_its_group_reach_nothing_outside(without):
    without(LANDLOCK)
    assert python("import os; os.kill(0, 9)").ended == "signal"


@isolated
def test_the_command_starts_with_a_clean_slate(tmp_path):
    """No descriptor, ignored or blocked signal, core dump, or input but what was given."""
    code = """
import os, resource, signal, sys
try:
    os.lseek(0, 0, os.SEEK_SET)
except OSError:
    pass
print(len(sys.stdin.buffer.read()), sorted(os.listdir("/proc/self/fd"))[:-1], signal.getsignal(signal.SIGINT).__name__)
print(signal.pthread_sigmask(signal.SIG_BLOCK, []), resource.getrlimit(resource.RLIMIT_CORE))
"""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGXCPU, signal.SIGUSR1})
    try:
        finished = python(code, stdin=b"x" * 3_000_000)
    finally:
        signal.signal(signal.SIGINT, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    assert finished.stdout == "3000000 ['0', '1', '2'] default_int_handler\nset() (1, 1)\n"
    assert python("print(1)", stdin=b"x" * 3_000_000).succeeded  # input that is not wanted


@isolated
def test_what_an_earlier_command_left_does_not_catch_the_caller(tmp_path):
    folder, outside = tmp_path / "kept", tmp_path / "outside"
    for each in (folder, outside):
        each.mkdir()
    (outside / "mine").write_text("mine")
    left = f"""
import os
os.symlink({str(outside / "mine")!r}, "helper.py")
os.symlink({str(outside)!r}, "sub")
os.mkfifo("main.py.new"); os.rename("main.py.new", "main.py")
"""
    assert python(left, folder=folder).succeeded
    finished = python("import helper; print(helper.X)", folder=folder, files={"helper.py": "X = 1"})
    assert finished.stdout == "1\n"
    with pytest.raises(WorkFailed, match=r"'sub/mine' below .*a link or a file stands"):
        python("", folder=folder, files={"sub/mine": "over"})
    for place in (folder / "sub", folder / "sub" / "mine"):
        with pytest.raises(BadInput, match="leads out of the working folder"):
            python("", folder=folder, readable=[place])
    assert (outside / "mine").read_text() == "mine"


@isolated
def test_its_own_folder_is_removed_whatever_is_in_it(tmp_path, monkeypatch):
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else tmp_path) as quick:
        monkeypatch.setattr("tempfile.tempdir", quick)
        # As deep as no recursion and no open files reach.
        finished = python("import os\nfor i in range(1100): os.mkdir('d'); os.chdir('d')\nos.chmod('.', 0)")
        assert finished.succeeded and not list(Path(quick).iterdir())


@isolated
def test_this_python_cannot_be_changed_from_a_folder_around_it(tmp_path):
    """A virtual environment in the checkout that tests run in: read by the command, written by nobody."""
    environment = tmp_path / "venv"
    environment.mkdir()
    (environment / "lib.py").write_text("mine")
    code = "print(open('venv/lib.py').read()); open('result', 'w'); open('venv/lib.py', 'w')"
    finished = python(code, folder=tmp_path, readable=[environment])
    assert finished.stdout == "mine\n" and "Read-only" in finished.stderr and (tmp_path / "result").exists()
    assert (environment / "lib.py").read_text() == "mine"


@isolated
def test_text_that_cannot_be_encoded_is_the_commands_matter(tmp_path):
    finished = python("print('\ud800')")
    assert finished.returncode == 1 and "SyntaxError" in finished.stderr
    assert python("import sys; print(sys.stdin.buffer.read())", stdin="\ud800").stdout == "b'\\xed\\xa0\\x80'\n"
    for command, environment in ((["echo", "a\0b"], {}), (["echo", "\ud800"], {}), (["echo"], {"A=B": "c\0"})):
        with pytest.raises(WorkFailed, match="echo could not be started"):
            run(command, environment=environment)


def test_places_that_are_too_much_or_nothing():
    with pytest.raises(BadInput, match="the whole file system"):
        run(["true"], folder="/", unsafe=True)
    for place, what in (("/", "whole file system"), ("/nowhere", "not there")):
        with pytest.raises(BadInput, match=f"{place} is .*{what}"):
            run(["true"], readable=[place], unsafe=True)


@isolated
def test_without_a_proc_of_its_own_isolation_says_what_is_weaker(without):
    without('_mount("proc", root + "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)')
    code = Path(confine.__file__).read_text()
    Path(confine.__file__).write_text(
        code.replace("    try:\n        pass\n    except OSError:\n        return", "    return")
    )
    found = isolation.__wrapped__()
    assert found.available and "for each process alone" in found.lacking[0]


def test_the_setting_that_forbids_isolation_is_named(tmp_path, monkeypatch):
    (tmp_path / "userns").write_text("0\n")
    monkeypatch.setattr(sandbox, "_SETTINGS", (("/proc/sys/none", "0", "1"), (str(tmp_path / "userns"), "0", "1")))
    monkeypatch.setattr(sandbox, "_run", lambda *_: (_ for _ in ()).throw(WorkFailed("unshare: not permitted.")))
    found = isolation.__wrapped__()
    assert not found.available and re.search(r"not permitted\. .*userns is 0; .*sysctl -w .*userns=1", found.reason)


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
    finished = python("import time; time.sleep(60)", unsafe=True, limits=Limits(seconds=0.2))
    assert finished.ended == "wall clock" and finished.seconds < 5
    if sys.platform == "linux":
        finished = python("x = bytearray(400 * 2**20)", unsafe=True, limits=Limits(memory_bytes=200 * 2**20))
        assert "MemoryError" in finished.stderr


@pytest.fixture
def reported(monkeypatch, tmp_path):
    """A stand-in for the confining process: it says on stdout what it was given and reports what the test wants."""

    def run_with(report: str, then: str = "", **options):
        script = tmp_path / "confine.py"
        script.write_text(
            "import json, os, sys, time\n"
            "said = {'plan': json.load(open(sys.argv[1])), 'environment': dict(os.environ), 'flags': list(sys.flags)}\n"
            "print(json.dumps({**said, 'cwd': os.getcwd()}), flush=True)\n"
            f"os.write(int(sys.argv[2]), {report.encode()!r})\n{then}\n"
        )
        monkeypatch.setattr(confine, "__file__", str(script))
        return run(["make", "all"], folder=tmp_path, unsafe=True, **options)

    return run_with


def test_what_the_confining_process_is_told(reported, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "secret")
    finished = reported(
        '{"status": 0}', environment={"LANG": "C", "X": "1"}, limits=Limits(cpu_seconds=7, open_files=9)
    )
    said = json.loads(finished.stdout)
    clean = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    plan = said["plan"]
    readable = plan.pop("readable")
    assert Path(plan.pop("root")).name == "root"
    assert plan == {
        "command": ["make", "all"],
        "environment": {**clean, "LANG": "C", "X": "1"},
        "folder": str(tmp_path),
        "limits": {
            "RLIMIT_CPU": 7,
            "RLIMIT_AS": 2 * 2**30,
            "RLIMIT_FSIZE": 64 * 2**20,
            "RLIMIT_NOFILE": 9,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_CORE": 1 if sys.platform == "linux" else 0,
        },
        "processes": 32,
        "memory_bytes": 2 * 2**30,
        "isolate": False,
    }
    assert readable == sorted(readable) and {sys.prefix, sys.base_prefix} <= set(readable)
    assert "/usr" in readable and all(Path(path).exists() for path in readable)
    assert said["environment"].items() >= clean.items() and "MY_TOKEN" not in said["environment"] and said["cwd"] == "/"


@pytest.mark.parametrize(
    ("report", "ended", "returncode"),
    [
        ('{"status": 0}', "exit", 0),
        ('{"status": 768}', "exit", 3),
        ('{"status": 9}', "signal", -9),
        ('{"status": 24}', "cpu", -24),
        ('{"over": "memory"}', "memory", -9),
        ('{"over": "disk"}', "disk", -9),
    ],
)
def test_how_a_report_is_understood(reported, report, ended, returncode):
    finished = reported(report)
    assert (finished.ended, finished.returncode) == (ended, returncode)
    assert finished.succeeded is (returncode == 0) and not finished.truncated and 0 < finished.seconds < 10


def test_what_has_no_report_met_the_clock_or_failed(reported):
    finished = reported("", "time.sleep(60)", limits=Limits(seconds=0.3))
    assert (finished.ended, finished.returncode) == ("wall clock", -9) and finished.stdout
    with pytest.raises(WorkFailed) as caught:
        reported("", "sys.stderr.write('a' * 10 + ' why ' + 'b' * 294 + chr(10))")
    assert str(caught.value) == f"the sandbox ended without a report: why {'b' * 294}."
    with pytest.raises(WorkFailed, match=r"^the sandbox ended without a report: 5\.$"):
        reported("", "sys.exit(5)")
    with pytest.raises(WorkFailed, match=r"^make could not be started in the sandbox: it is odd\.$"):
        reported('{"failed": "it is odd"}')


def test_whoever_else_holds_the_report_is_not_waited_for(reported, monkeypatch):
    """A process that another thread forks between the pipe's opening and its closing here inherits its end."""
    held, pipe = [], os.pipe

    def pipe_with_heir():
        ends = pipe()
        if not held:
            held.append(os.dup(ends[1]))
        return ends

    monkeypatch.setattr(os, "pipe", pipe_with_heir)
    heir = threading.Timer(10, lambda: os.close(held[0]))
    heir.start()
    finished = reported('{"status": 768}')
    assert not heir.finished.is_set()
    heir.cancel()
    os.close(held[0])
    assert finished.returncode == 3


def test_the_limits_that_hold_unless_others_are_given():
    assert Limits() == Limits(10.0, 10, 2**31, 2**26, 32, 256, 2**20)
    assert Isolation(True, 7, "").lacking == ()


NO_PROC = "a /proc of its own, so memory is limited for each process alone, not together"
NO_LANDLOCK = "Landlock (Linux 5.13), so pipes in readable places can be written"


@pytest.mark.parametrize(
    ("trial", "landlock", "found"),
    [
        ((0, "True\n", ""), 7, Isolation(True, 7, "", ())),
        ((0, "False\n", ""), 7, Isolation(True, 7, "", (NO_PROC,))),
        ((0, "False\n", ""), 0, Isolation(True, 0, "", (NO_PROC, NO_LANDLOCK))),
        ((3, "True\n", "x" * 201), 1, Isolation(False, 1, f"a trial ended with 3: {'x' * 200} told", ())),
        ((-9, "", "yx" * 100), 1, Isolation(False, 1, f"a trial ended with -9: {'yx' * 100} told", ())),
        (WorkFailed("no."), 1, Isolation(False, 1, "no. told", ())),
        (OSError(1, "never"), 0, Isolation(False, 0, "[Errno 1] never told", (NO_LANDLOCK,))),
    ],
)
def test_what_a_trial_shows(monkeypatch, trial, landlock, found):
    asked = []

    def tried(command, base, folder, stdin, readable, environment, limits, isolate):
        asked.append((command[1:3], folder == base / "work", stdin, readable, environment, limits, isolate))
        if isinstance(trial, Exception):
            raise trial
        code, out, error = trial
        return sandbox.Finished(code, "exit" if code >= 0 else "signal", out, error, False, 0.1)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sandbox, "_run", tried)
    monkeypatch.setattr(sandbox, "_forbidding", lambda: " told")
    monkeypatch.setattr(confine, "landlock_version", lambda: landlock)
    assert isolation.__wrapped__() == found
    assert asked == [(["-I", "-S"], True, b"", (), {}, Limits(), True)]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert isolation.__wrapped__() == Isolation(False, 0, "darwin has no namespaces")


def test_what_still_holds_a_pipe_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(sandbox, "_GRACE", 0.2)
    command = ["sh", "-c", "(sleep 1; echo late) & echo now"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        given, deadline = (process.stdin, b""), time.monotonic() + 20
        (output,), truncated, ended = sandbox._exchange(process, given, [process.stdout], deadline, 100)
    assert (bytes(output), truncated, ended) == (b"now\n", False, True)
