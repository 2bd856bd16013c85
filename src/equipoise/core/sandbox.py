"""Runs code that nobody has read: no network, no writing outside its folder, no secrets, bounded time and memory.

    finished = python("print(6 * 7)")           finished.stdout == "42\\n"
    finished = run(["make", "test"], folder=checkout, limits=Limits(seconds=60))

On Linux the command gets its own user, network, mount, process, IPC and host-name namespaces: no interface is up, not
even loopback; of the file system it sees the system's programs and libraries and this Python, read-only, and its
working folder; other processes do not exist. A filter of system calls forbids what is not needed to compute (sockets
other than a pair within, keys, tracing, further namespaces, io_uring and the like); Landlock is put on top where the
kernel has it. Resource limits always hold.
Where the namespaces or the filter cannot be had (macOS; containers and systems that forbid them; architectures other
than x86_64, aarch64 and riscv64) untrusted code is refused, unless unsafe=True, which leaves the limits, the clean
environment and the end of its process group: no isolation.

What memory counts: private pages, swapped out or not, page tables, and for each socket all that it can hold, together
over all processes. Memory that could be held without a process that shows it is forbidden: memfd, System V and POSIX
queues and segments, anonymous shared mappings, /dev/zero, and there is no /dev/shm. Not counted: the kernel's cache of
files, and pipes, for which it has a limit of its own for each user. A command that has used half of a disk's free space
or free files is ended.

What lies in a kept folder afterwards was written by the command: links, pipes, other files than expected. Read it with
`equipoise.core.beneath.read`, and run nothing that lies there outside a sandbox.

Not guarded against: faults of the kernel; locks on readable files, held until it ends; without Landlock, writing into
pipes that lie in readable places.
"""

import contextlib
import functools
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from equipoise.core import beneath, confine
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.options import check_fields

Ended = Literal["exit", "signal", "wall clock", "cpu", "memory", "processes", "disk"]

_SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/localtime",
)
_SETTINGS = (
    ("/proc/sys/user/max_user_namespaces", "0", "10000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "1"),
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
)
_GRACE = 0.5  # seconds for output still in the pipes when the command has ended
_LOOK_EVERY = 0.1  # seconds between looks at whether it has


@dataclass(frozen=True, slots=True)
class Limits:
    """seconds are of the clock, cpu_seconds of each process; output_bytes of stdout and of stderr, the rest is lost.

    memory_bytes: address space of each process, and with isolation also what all use together; file_bytes: the largest
    file. processes counts threads too, and is enforced with isolation only: without, it would count everything that the
    user runs.
    """

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 2 * 2**30
    file_bytes: int = 64 * 2**20
    processes: int = 32
    open_files: int = 256
    output_bytes: int = 2**20


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended. returncode: as in subprocess, minus the signal's number when a signal ended it.

    ended: "exit" (by itself, also for a MemoryError of its own), "signal", or the limit that it met ("disk": half of
    what was free).
    """

    returncode: int
    ended: Ended
    stdout: str
    stderr: str
    truncated: bool
    seconds: float

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def succeeded(self) -> bool:
        return self.ended == "exit" and self.returncode == 0


@dataclass(frozen=True, slots=True)
class Isolation:
    """What this machine offers. landlock: the kernel's ABI, 0 for none; reason: why it is not available, else "".

    lacking: what is weaker here than it might be, a phrase each.
    """

    available: bool
    landlock: int
    reason: str
    lacking: tuple[str, ...] = ()


@functools.cache
def isolation() -> Isolation:
    """Whether untrusted code can be isolated here, found out by trying once (about 50 ms)."""
    if sys.platform != "linux":
        return Isolation(False, 0, f"{sys.platform} has no namespaces")
    trial = [sys.executable, "-I", "-S", "-c", "import os; print(os.path.isdir('/proc/self'))"]
    lacking = []
    try:
        with _base() as base:
            finished = _run(trial, base, base / "work", b"", (), {}, Limits(), True)
        reason = "" if finished.succeeded else f"a trial ended with {finished.returncode}: {finished.stderr[-200:]}"
        if "False" in finished.stdout:
            lacking.append("a /proc of its own, so memory is limited for each process alone, not together")
    except (OSError, WorkFailed) as error:
        reason = str(error)
    landlock = confine.landlock_version()
    if not landlock:
        lacking.append("Landlock (Linux 5.13), so pipes in readable places can be written")
    return Isolation(not reason, landlock, reason and reason + _forbidding(), tuple(lacking))


def _forbidding() -> str:
    """The setting of this system that forbids namespaces, with what its administrator would type, or ""."""
    for setting, forbidding, allowing in _SETTINGS:
        with contextlib.suppress(OSError):
            if Path(setting).read_text().strip() == forbidding:
                name = setting.removeprefix("/proc/sys/").replace("/", ".")
                return f" {name} is {forbidding}; its administrator allows it by: sysctl -w {name}={allowing}"
    return ""


def python(code: str, *, unsafe: bool = False, **options: Any) -> Finished:
    """Runs a Python program, this interpreter and its packages at hand; options as in `run`."""
    files = {**options.pop("files", {}), "main.py": code}
    return run([sys.executable, "-B", "-E", "-s", "main.py"], files=files, unsafe=unsafe, **options)


def run(
    command: Sequence[str],
    *,
    files: Mapping[str, str | bytes] | None = None,
    folder: str | Path | None = None,
    stdin: str | bytes = b"",
    readable: Sequence[str | Path] = (),
    environment: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    unsafe: bool = False,
) -> Finished:
    """Runs a command in a working folder of its own, which is deleted afterwards, or in `folder`, which is kept.

    files: written there first, by relative path. readable: further places that it may read. environment: all that it
    gets besides PATH, HOME, TMPDIR, LANG and OMP_NUM_THREADS; nothing is inherited. Raises BadInput where isolation
    cannot be had and unsafe is not set, and for places that are none; WorkFailed when a file cannot be written or the
    command not started.
    """
    if not command:
        raise BadInput("there is no command to run.")
    if not unsafe and not isolation().available:
        raise BadInput(
            f"untrusted code is not run without isolation ({isolation().reason}); run it in a virtual machine or "
            "container of your own, or allow it with --unsafe-execution."
        )
    with _base() as base:
        work = Path(folder).resolve() if folder is not None else base / "work"
        if folder is not None and not work.is_dir():
            raise BadInput(f"{folder} is no folder to run a command in.")
        if work == Path(work.anchor):
            raise BadInput("the whole file system is no folder to run a command in.")
        for name, content in (files or {}).items():
            beneath.write(work, name, _encoded(content))
        further = [_readable(path, work) for path in readable]
        return _run(command, base, work, _encoded(stdin), further, environment or {}, limits or Limits(), not unsafe)


def _readable(path: str | Path, folder: Path) -> str:
    """A further place, not reached over a link that an earlier command left in the folder: it could lead anywhere."""
    absolute = Path(path).absolute()
    if not absolute.exists() or absolute == Path(absolute.anchor):
        what = "is the whole file system" if absolute.exists() else "is not there"
        raise BadInput(f"{path} {what}, and cannot be made readable.")
    if any(each.resolve() == folder for each in absolute.parents) and not absolute.resolve().is_relative_to(folder):
        raise BadInput(f"{path} leads out of the working folder.")
    return str(absolute)


def _encoded(text: str | bytes) -> bytes:
    # What a model wrote may hold half a surrogate pair; the command, not its caller, is to meet it.
    return text.encode(errors="surrogatepass") if isinstance(text, str) else text


@contextlib.contextmanager
def _base() -> Iterator[Path]:
    base = Path(tempfile.mkdtemp(prefix="equipoise-")).resolve()
    try:
        (base / "work").mkdir()
        (base / "root").mkdir()
        yield base
    finally:
        beneath.remove(base)


def _run(
    command: Sequence[str],
    base: Path,
    folder: Path,
    stdin: bytes,
    readable: Sequence[str],
    environment: Mapping[str, str],
    limits: Limits,
    isolate: bool,
) -> Finished:
    interpreter = {sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent.parent)}
    paths = {*_SYSTEM, *interpreter, *readable}
    clean = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "OMP_NUM_THREADS": "1",  # libraries that start a thread for each core of a large machine meet `processes`
    }
    kernel_limits = {
        "RLIMIT_CPU": limits.cpu_seconds,
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_MEMLOCK": 0,
        # Linux hands a core to a program of the system's at 0 too, and at 1 neither to that nor to a file.
        "RLIMIT_CORE": 1 if sys.platform == "linux" else 0,
    }
    plan = {
        "command": list(command),
        "environment": {**clean, **environment},
        "folder": str(folder),
        "root": str(base / "root"),
        "readable": sorted(path for path in paths if Path(path).exists()),
        "limits": {**kernel_limits, "RLIMIT_NPROC": limits.processes} if isolate else kernel_limits,
        "processes": limits.processes,
        "memory_bytes": limits.memory_bytes,
        "isolate": isolate,
    }
    (base / "plan.json").write_text(json.dumps(plan))
    receive, send = os.pipe()
    started = time.monotonic()
    with os.fdopen(receive, "rb") as report:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", confine.__file__, str(base / "plan.json"), str(send)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(send,),
                start_new_session=True,
                cwd="/",
                env=clean,
                bufsize=0,
            )
        finally:
            os.close(send)
        assert process.stdin and process.stdout and process.stderr
        with process.stdin as given, process.stdout as out, process.stderr as err:
            try:
                outputs, truncated, in_time = _exchange(
                    process, (given, stdin), (out, err), started + limits.seconds, limits.output_bytes
                )
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        os.set_blocking(receive, False)
        reported = json.loads(report.read() or b"{}")
    stdout, stderr = (output.decode(errors="replace") for output in outputs)
    if "failed" in reported:
        raise WorkFailed(f"{command[0]} could not be started in the sandbox: {reported['failed']}.")
    if in_time and not reported:
        raise WorkFailed(f"the sandbox ended without a report: {stderr[-300:].strip() or process.returncode}.")
    returncode, ended = -signal.SIGKILL, reported.get("over", "wall clock")
    if "status" in reported:
        returncode = os.waitstatus_to_exitcode(reported["status"])
        ended = "exit" if returncode >= 0 else "cpu" if returncode == -signal.SIGXCPU else "signal"
    return Finished(returncode, ended, stdout, stderr, truncated, time.monotonic() - started)


def _exchange(
    process: subprocess.Popen[bytes],
    given: tuple[IO[bytes], bytes],
    streams: Sequence[IO[bytes]],
    deadline: float,
    most: int,
) -> tuple[list[bytearray], bool, bool]:
    """Feeds the input until the process ends or its time does.

    Returns each stream's first `most` bytes, whether more came, whether the process ended.
    """
    outputs = [bytearray() for _ in streams]
    truncated, has_ended = False, False
    stdin, unsent = given[0], memoryview(given[1])
    os.set_blocking(stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stdin, selectors.EVENT_WRITE)
        for stream, output in zip(streams, outputs, strict=True):
            selector.register(stream, selectors.EVENT_READ, output)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            if not has_ended and process.poll() is not None:
                # Without isolation, what left the process group may hold a pipe for ever; that is not waited for.
                has_ended, deadline = True, min(deadline, time.monotonic() + _GRACE)
            for key, _ in selector.select(min(left, _LOOK_EVERY)):
                if key.fileobj is stdin:
                    try:
                        unsent = unsent[os.write(key.fd, unsent[:65536]) :]
                    except BrokenPipeError:  # it does not want to know
                        unsent = unsent[:0]
                    if not unsent:
                        selector.unregister(stdin)
                        stdin.close()
                    continue
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fileobj)
                truncated |= len(key.data) + len(data) > most
                key.data.extend(data[: most - len(key.data)])
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, deadline - time.monotonic()))
    return outputs, truncated, process.returncode is not None
