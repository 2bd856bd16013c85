"""The process between `sandbox.run` and an untrusted command: it gives up everything, then starts the command.

Run by file name with `python -I -S`, so it imports the standard library only, and little of it. Order: new user,
network, mount, process, IPC and host-name namespaces; a new root with the readable places mounted read-only and nothing
else of this machine; no capabilities; Landlock on top where the kernel has it; resource limits; the command. Three
processes: this one outside the process namespace; the namespace's first, whose end is the end of everything inside; the
command.

What happened is written to the descriptor `report` as one JSON object: {"failed": reason} or {"status": wait status} or
{"over": "memory" | "processes"}. The command cannot reach it: it is closed in it, and its owner cannot be traced.
"""

# ruff: noqa: PTH103, PTH110, PTH112, PTH114, PTH115, PTH118, PTH120, PTH123, PTH208, PTH211
# No pathlib here: importing it takes as long as everything else before the command starts.

import ctypes
import json
import os
import re
import resource
import signal
import sys
import time

# From the kernel's headers. System call numbers above 423 are the same on every architecture.
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 0x1, 0x2, 0x4
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
SYS_MOUNT_SETATTR = 442
SYS_LANDLOCK_CREATE, SYS_LANDLOCK_ADD, SYS_LANDLOCK_RESTRICT = 444, 445, 446
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
O_PATH = 0o10000000

# Landlock's file-system rights by the version that brought them, and those that reading and executing need.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_DEVICES = ("null", "zero", "full", "random", "urandom")
_LOOK_EVERY = 0.02  # seconds


def main() -> None:
    size, report = int(sys.argv[1]), int(sys.argv[2])
    plan = json.loads(os.read(0, size))  # a file; what follows the plan in it is the command's standard input
    os.set_inheritable(report, False)
    _die_with_parent()
    try:
        status = _isolated(plan) if plan["isolate"] else _start(plan)
    except OSError as error:
        status = {"failed": _reason(error)}
    os.write(report, json.dumps(status).encode())


def _isolated(plan: dict) -> dict:
    user, group = os.geteuid(), os.getegid()
    _unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS)
    # Never 0 inside: the root of a namespace gets all its capabilities back at exec.
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user or 65534} {user} 1")
    _write("/proc/self/gid_map", f"{group or 65534} {group} 1")
    receive, send = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(receive)
        _die_with_parent()
        try:
            _new_root(plan["root"], plan["readable"], plan["folder"], plan["processes"])
            status = _start(plan)
        except OSError as error:
            status = {"failed": _reason(error)}
        os.write(send, json.dumps(status).encode())
        os._exit(0)
    os.close(send)
    _close_streams()
    _, ended = os.waitpid(first, 0)
    with os.fdopen(receive, "rb") as pipe:
        found = pipe.read()
    return json.loads(found) if found else {"status": ended}


def _start(plan: dict) -> dict:
    """Starts the command, waits for it while watching what all processes here use together, and says how it ended."""
    receive, send = os.pipe()
    if sys.platform == "linux":
        _libc().prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # or the command could reach into this process; exec resets it
    command = os.fork()
    if command == 0:
        os.close(receive)
        try:
            if plan["isolate"]:
                _no_new_privileges()
                _landlock(plan["readable"], plan["folder"])
            os.chdir(plan["folder"])
            for name, value in plan["limits"].items():
                _limit(name, value)
            os.execvpe(plan["command"][0], plan["command"], plan["environment"])
        except OSError as error:
            os.write(send, _reason(error).encode())
            os._exit(127)
    os.close(send)
    _close_streams()
    with os.fdopen(receive, "rb") as pipe:
        failed = pipe.read()
    if failed:
        os.waitpid(command, 0)
        return {"failed": failed.decode()}
    while True:
        # As first process of its namespace this one also reaps the orphans.
        ended, status = os.waitpid(-1 if plan["isolate"] else command, os.WNOHANG)
        if ended == command:
            return {"status": status}
        if ended:
            continue
        if plan["isolate"] and (over := _over(plan)):
            return {"over": over}
        time.sleep(_LOOK_EVERY)


def _over(plan: dict) -> str:
    """The limits that the kernel counts per process, or not at all for root, are counted here over all processes."""
    try:
        processes = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return ""
    if len(processes) - 1 > plan["processes"]:
        return "processes"
    pages = 0
    for name in processes:
        try:
            with open(f"/proc/{name}/statm", "rb") as file:
                _, resident, shared = file.read().split()[:3]
        except (OSError, ValueError):
            continue
        pages += int(resident) - int(shared)
    return "memory" if pages * resource.getpagesize() > plan["memory_bytes"] else ""


# The file system.


def _new_root(root: str, readable: list[str], folder: str, processes: int) -> None:
    """Replaces the root by an empty one with `readable` read-only, `folder` writable, a few devices, and own /proc."""
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in sorted(readable):
        _place(path, root)
    for name in _DEVICES:
        _bind(f"/dev/{name}", root)
    os.makedirs(root + "/proc", exist_ok=True)
    try:
        _mount("proc", root + "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        # RLIMIT_NPROC does not hold for root, so a fork bomb is bounded by its numbers until `_over` ends it (those up
        # to 300 are used once). Before Linux 6.14 this is the whole machine's setting, and root might well change it.
        if tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2]) >= (6, 14):
            _write(root + "/proc/sys/kernel/pid_max", f"{301 + processes}")
    except OSError:
        pass  # containers that hide parts of /proc forbid a new one; most commands do without
    _make(folder, root, is_folder=True)
    _restrict_mount(root, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID)
    _mount(folder, root + folder, "", MS_BIND)
    _restrict_mount(root + folder, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    os.chdir(root)
    _check(_libc().pivot_root(b".", b"."), "pivot_root")
    _check(_libc().umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")


def _place(path: str, root: str) -> None:
    """Makes `path` readable below `root`; a link anywhere on the way (/bin -> usr/bin) stays a link."""
    parts, here = path.strip("/").split("/"), ""
    for index, part in enumerate(parts):
        here = f"{here}/{part}"
        if os.path.islink(here):
            if not os.path.lexists(root + here):
                os.makedirs(os.path.dirname(root + here), exist_ok=True)
                os.symlink(os.readlink(here), root + here)
            target = os.path.join(os.path.realpath(here), *parts[index + 1 :])
            _place(target, root)
            return
    if os.path.exists(path) and not os.path.ismount(root + path):
        _bind(path, root)


def _bind(path: str, root: str) -> None:
    _make(path, root, is_folder=os.path.isdir(path))
    _mount(path, root + path, "", MS_BIND | MS_REC)


def _make(path: str, root: str, *, is_folder: bool) -> None:
    if os.path.exists(root + path):
        return
    os.makedirs(root + (path if is_folder else os.path.dirname(path)), exist_ok=True)
    if not is_folder:
        with open(root + path, "w"):
            pass


def _restrict_mount(path: str, flags: int) -> None:
    """Sets flags on the mount at `path` and on all below it, which remounting would not do."""

    class Attributes(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "namespace")]

    attributes = Attributes(set=flags)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    arguments = (AT_FDCWD, path.encode(), AT_RECURSIVE, ctypes.byref(attributes), size)
    _check(_libc().syscall(SYS_MOUNT_SETATTR, *arguments), "mount_setattr", path)


# Rights.


def _no_new_privileges() -> None:
    """No capability now or after exec, and none to be had from set-user-ID programs."""
    libc = _libc()
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _check(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def landlock_version() -> int:
    """The kernel's Landlock ABI, 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, _libc().syscall(SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))


def _landlock(readable: list[str], folder: str) -> None:
    """A second wall, also against namespaces made inside: reading below `readable`, everything below `folder`."""
    version = landlock_version()
    if not version:
        return
    rights = 0
    for since, added in _FILE_RIGHTS.items():
        rights |= added if version >= since else 0
    network = 0b11 if version >= 4 else 0  # bind and connect of TCP
    scope = 0b11 if version >= 6 else 0  # abstract Unix sockets and signals, to outside
    attributes = (ctypes.c_uint64 * 3)(rights, network, scope)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _libc().syscall(SYS_LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0)
    _check(ruleset, "landlock")
    try:
        reading = _EXECUTE | _READ_FILE | _READ_DIR
        for path in (*readable, "/proc"):
            _allow(ruleset, path, reading)
        for name in _DEVICES:
            _allow(ruleset, f"/dev/{name}", rights & (_READ_FILE | _WRITE_FILE | _TRUNCATE | 1 << 15))
        _allow(ruleset, folder, rights)
        _check(_libc().syscall(SYS_LANDLOCK_RESTRICT, ruleset, 0), "landlock")
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    class Rule(ctypes.Structure):
        _pack_ = 1
        _fields_ = [("rights", ctypes.c_uint64), ("parent", ctypes.c_int32)]

    if not os.path.exists(path):
        return
    if not os.path.isdir(path):
        rights &= _EXECUTE | _READ_FILE | _WRITE_FILE | _TRUNCATE | 1 << 15
    parent = os.open(path, O_PATH | os.O_CLOEXEC)
    try:
        rule = Rule(rights, parent)
        _check(_libc().syscall(SYS_LANDLOCK_ADD, ruleset, 1, ctypes.byref(rule), 0), "landlock", path)
    finally:
        os.close(parent)


def _limit(name: str, value: int) -> None:
    kind = getattr(resource, name)
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    # SIGXCPU at the soft limit tells time from a kill; the hard one a second later cannot be caught.
    last = value + 1 if name == "RLIMIT_CPU" and (hard == resource.RLIM_INFINITY or value < hard) else value
    try:
        resource.setrlimit(kind, (value, last))
    except (OSError, ValueError):
        if sys.platform != "darwin":  # macOS knows an address-space limit and refuses to set it
            raise


# System calls.


def _unshare(flags: int) -> None:
    _check(_libc().unshare(flags), "unshare")


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check(_libc().mount(*arguments), "mount", target)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str, path: str = "") -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}", path or None)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _close_streams() -> None:
    """Only the command holds the caller's pipes, so that they end when it does."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _reason(error: OSError) -> str:
    return f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main()
