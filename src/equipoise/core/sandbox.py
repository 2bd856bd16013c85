"""Runs code that nobody has read: no network, no writing outside its folder, no secrets, bounded time and memory.

    finished = python("print(6 * 7)")           finished.stdout == "42\\n"
    finished = run(["make", "test"], folder=checkout, limits=Limits(seconds=60))

On Linux the command gets its own user, network, mount, process, IPC and host-name namespaces: no interface is up, not
even loopback; of the file system it sees the system's programs and libraries and this Python, read-only, and its
working folder; other processes do not exist. Landlock is put on top where the kernel has it. Resource limits always
hold.
Where the namespaces cannot be had (macOS; containers and systems that forbid them) untrusted code is refused, unless
unsafe=True, which leaves the limits, the clean environment and the end of its process group: no isolation.

Not guarded against: faults of the kernel, and many files that together fill the disk.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from equipoise.core import confine
from equipoise.core.errors import BadInput, WorkFailed

Ended = Literal["exit", "signal", "wall clock", "cpu", "memory", "processes"]

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
_GRACE = 0.5  # seconds for output still in the pipes when the command has ended
_LOOK_EVERY = 0.1  # seconds between looks at whether it has


@dataclass(frozen=True, slots=True)
class Limits:
    """seconds are of the clock, cpu_seconds of each process; output_bytes of stdout and of stderr, the rest is lost.

    memory_bytes: address space of each process, and with isolation also what all use together; file_bytes: the largest
    file. processes is enforced with isolation only: without, it would count everything that the user runs.
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

    ended: "exit" (by itself, also for a MemoryError of its own), "signal", or the limit that it met.
    """

    returncode: int
    ended: Ended
    stdout: str
    stderr: str
    truncated: bool
    seconds: float

    @property
    def succeeded(self) -> bool:
        return self.ended == "exit" and self.returncode == 0


@dataclass(frozen=True, slots=True)
class Isolation:
    """What this machine offers. landlock: the kernel's ABI, 0 for none; reason: why it is not available, else ""."""

    available: bool
    landlock: int
    reason: str


@functools.cache
def isolation() -> Isolation:
    """Whether untrusted code can be isolated here, found out by trying once (about 50 ms)."""
    if sys.platform != "linux":
        return Isolation(False, 0, f"{sys.platform} has no namespaces")
    try:
        with tempfile.TemporaryDirectory(prefix="equipoise-") as base:
            finished = _run([sys.executable, "-I", "-S", "-c", ""], Path(base), None, b"", (), {}, Limits(), True)
        reason = "" if finished.succeeded else f"a trial ended with {finished.returncode}: {finished.stderr[-200:]}"
    except (OSError, WorkFailed) as error:
        reason = str(error)
    return Isolation(not reason, confine.landlock_version(), reason)


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
    gets besides PATH, HOME, TMPDIR and LANG; nothing is inherited. Raises BadInput where isolation cannot be had and
    unsafe is not set, WorkFailed when the command cannot be started.
    """
    if not command:
        raise BadInput("there is no command to run.")
    if not unsafe and not isolation().available:
        raise BadInput(
            f"untrusted code is not run without isolation ({isolation().reason}); run it in a virtual machine or "
            "container of your own, or allow it with --unsafe-execution."
        )
    with tempfile.TemporaryDirectory(prefix="equipoise-", ignore_cleanup_errors=True) as base:
        place = Path(folder).resolve() if folder is not None else None
        if place is not None and not place.is_dir():
            raise BadInput(f"{folder} is no folder to run a command in.")
        _write_files(place or Path(base, "work"), files or {})
        content = stdin.encode() if isinstance(stdin, str) else stdin
        further = [str(Path(path).absolute()) for path in readable]
        return _run(command, Path(base), place, content, further, environment or {}, limits or Limits(), not unsafe)


def _write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BadInput(f"the file name {name!r} leaves the working folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _run(
    command: Sequence[str],
    base: Path,
    folder: Path | None,
    stdin: bytes,
    readable: Sequence[str],
    environment: Mapping[str, str],
    limits: Limits,
    isolate: bool,
) -> Finished:
    base = base.resolve()
    folder = folder or base / "work"
    folder.mkdir(exist_ok=True)
    (base / "root").mkdir()
    interpreter = {sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent.parent)}
    paths = {*_SYSTEM, *interpreter, *readable}
    clean = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(folder), "TMPDIR": str(folder)}
    kernel_limits = {
        "RLIMIT_CPU": limits.cpu_seconds,
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CORE": 0,
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
    packed = json.dumps(plan).encode()
    receive, send = os.pipe()
    started = time.monotonic()
    with tempfile.TemporaryFile() as given, os.fdopen(receive, "rb") as report:
        given.write(packed + stdin)
        given.seek(0)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", confine.__file__, str(len(packed)), str(send)],
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(send,),
                start_new_session=True,
                cwd="/",
                env=clean,
            )
        finally:
            os.close(send)
        assert process.stdout and process.stderr
        with process.stdout as out, process.stderr as err:
            try:
                outputs, truncated, in_time = _collect(
                    process, (out, err), started + limits.seconds, limits.output_bytes
                )
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        os.set_blocking(receive, False)
        found = json.loads(report.read() or b"{}")
    stdout, stderr = (output.decode(errors="replace") for output in outputs)
    if "failed" in found:
        raise WorkFailed(f"{command[0]} could not be started in the sandbox: {found['failed']}.")
    if in_time and not found:
        raise WorkFailed(f"the sandbox ended without a report: {stderr[-300:].strip() or process.returncode}.")
    returncode, ended = -signal.SIGKILL, found.get("over", "wall clock")
    if "status" in found:
        returncode = os.waitstatus_to_exitcode(found["status"])
        ended = "exit" if returncode >= 0 else "cpu" if returncode == -signal.SIGXCPU else "signal"
    return Finished(returncode, ended, stdout, stderr, truncated, time.monotonic() - started)


def _collect(
    process: subprocess.Popen[bytes], streams: Sequence[IO[bytes]], deadline: float, most: int
) -> tuple[list[bytearray], bool, bool]:
    """Each stream's first `most` bytes until the process ends or its time does, whether more came, whether it ended."""
    outputs = [bytearray() for _ in streams]
    truncated, has_ended = False, False
    with selectors.DefaultSelector() as selector:
        for stream, output in zip(streams, outputs, strict=True):
            selector.register(stream, selectors.EVENT_READ, output)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            if not has_ended and process.poll() is not None:
                # Without isolation, what left the process group may hold a pipe for ever; that is not waited for.
                has_ended, deadline = True, min(deadline, time.monotonic() + _GRACE)
            for key, _ in selector.select(min(left, _LOOK_EVERY)):
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fileobj)
                truncated |= len(key.data) + len(data) > most
                key.data.extend(data[: most - len(key.data)])
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, deadline - time.monotonic()))
    return outputs, truncated, process.returncode is not None
