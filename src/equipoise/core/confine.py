"""The process between `sandbox.run` and an untrusted command: it gives up everything, then starts the command.

Run by file name with `python -I -S`, so it imports the standard library only, and little of it. Order: new user,
network, mount, process, IPC and host-name namespaces; a new root with the readable places mounted read-only and nothing
else of this machine; a session and a keyring of its own; no capabilities; Landlock on top where the kernel has it;
resource limits; the filter of system calls; the command. Three processes: this one outside the process namespace; the
namespace's first, whose end is the end of everything inside; the command.

What happened is written to the descriptor `report` as one JSON object: {"failed": reason} or {"status": wait status} or
{"over": "memory" | "processes" | "disk"}. The command cannot reach it: it is closed in it, and its owner cannot be
traced.
"""

# ruff: noqa: PTH103, PTH110, PTH112, PTH114, PTH115, PTH118, PTH120, PTH123, PTH208, PTH211
# No pathlib here: importing it takes as long as everything else before the command starts.

import contextlib
import ctypes
import errno
import json
import os
import re
import resource
import select
import signal
import struct
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
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
KEYCTL_JOIN_SESSION_KEYRING = 1
O_PATH = 0o10000000

# What the filter of system calls knows. Architectures: the kernel's audit number, the column of _CALLS.
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1), "riscv64": (0xC00000F3, 1)}
_NEWEST = 462  # mseal, of Linux 6.10
_CALLS = {  # 0: not there
    # Keys.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # Memory that no process shows, or that stays when it is unmapped.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "inotify_init": (253, 0),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    # Names in the file system and virtual machines are reached from every network namespace.
    "socket": (41, 198),
    # Other processes, namespaces, mounts.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    # Where the kernel's holes have been, and its log.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "vmsplice": (278, 75),
    "modify_ldt": (154, 0),
    "syslog": (103, 116),
    # Its flags lie in memory, where a filter cannot look; C libraries then use clone.
    "clone3": (435, 435),
    # Allowed on conditions.
    "clone": (56, 220),
    "socketpair": (53, 199),
    "setsockopt": (54, 208),
    "mmap": (9, 222),
    "ioctl": (16, 29),
    "fcntl": (72, 25),
}
_CONDITIONS = (  # call, argument, mask, whether it must have or must not have the value under the mask, the value
    ("clone", 0, 0x7E020000, True, 0),  # no new namespace
    ("socketpair", 0, 0xFFFFFFFF, True, 1),  # AF_UNIX
    ("socketpair", 1, 0xF, True, 1),  # SOCK_STREAM: a pair of datagrams can be sent elsewhere
    ("setsockopt", 2, 0xFFFFFFFF, False, 7),  # SO_SNDBUF: what a socket holds is counted at its default
    ("mmap", 3, 0x21, False, 0x21),  # shared and anonymous: memory that stays when it is unmapped in part
    ("mmap", 3, 0x40000, False, 0x40000),  # huge pages of the machine's pool
    ("ioctl", 1, 0xFFFFFFFF, False, 0x5412),  # TIOCSTI: typing into a terminal
    ("ioctl", 1, 0xFFFFFFFF, False, 0x541C),  # TIOCLINUX
    ("fcntl", 1, 0xFFFFFFFF, False, 1024),  # F_SETLEASE: on a readable file it would make its writers wait
)
_FORBIDDEN = tuple(name for name in _CALLS if name not in {name for name, *_ in _CONDITIONS})

# Landlock's file-system rights by the version that brought them, and those that reading and executing need.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_DEVICES = ("null", "full", "random", "urandom")  # zero, mapped and shared, would be memory that nobody counts
# What the kernel shows of the whole machine, to the owner root of a file also without any capability.
_MASKED = ("kcore", "keys", "key-users", "kmsg", "sysrq-trigger", "timer_list", "sched_debug")
_LOOK_EVERY = 0.02  # seconds


def main() -> None:
    """Run the plan of the file that is named, confined; report how it ended on a descriptor of the parent."""
    path, report = sys.argv[1], int(sys.argv[2])
    with open(path, "rb") as file:
        plan = json.load(file)
    os.set_inheritable(report, False)
    _die_with_parent(report)
    # Whatever the caller ignores or blocks: the command starts with neither, and signals of its own cannot reach the
    # first process of its namespace unless that one handles them.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    try:
        status = _isolated(plan) if plan["isolate"] else _start(plan)
    except OSError as error:
        status = {"failed": _reason(error)}
    os.write(report, json.dumps(status).encode())


def _isolated(plan: dict) -> dict:
    user, group = os.geteuid(), os.getegid()
    plan["socket_bytes"] = _socket_bytes()
    _unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS)
    # Never 0 inside: the root of a namespace gets all its capabilities back at exec.
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user or 65534} {user} 1")
    _write("/proc/self/gid_map", f"{group or 65534} {group} 1")
    receive, send = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(receive)
        _die_with_parent(send)
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
        report = pipe.read()
    return json.loads(report) if report else {"status": ended}


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
                os.setsid()  # or its kill(0) would reach the process outside
                _own_keyring()
                _no_new_privileges()
                _landlock(plan["readable"], plan["folder"])
            os.chdir(plan["folder"])
            for name, value in plan["limits"].items():
                _limit(name, value)
            if plan["isolate"]:
                _filter_calls()
            os.execvpe(plan["command"][0], plan["command"], plan["environment"])
        except (OSError, ValueError) as error:  # ValueError: a NUL, or what no encoding holds, in a word or a variable
            os.write(send, _reason(error).encode(errors="replace"))
            os._exit(127)
    os.close(send)
    _close_streams()
    with os.fdopen(receive, "rb") as pipe:
        failed = pipe.read()
    if failed:
        os.waitpid(command, 0)
        return {"failed": failed.decode()}
    least = [part // 2 for part in _free(plan["folder"])]
    while True:
        # As first process of its namespace this one also reaps the orphans.
        ended, status = os.waitpid(-1 if plan["isolate"] else command, os.WNOHANG)
        if ended == command:
            return {"status": status}
        if ended:
            continue
        if plan["isolate"] and (over := _over(plan, least)):
            return {"over": over}
        time.sleep(_LOOK_EVERY)


def _over(plan: dict, least: list[int]) -> str:
    """The limits that the kernel counts per process, not at all for root, or nowhere, are counted here over all."""
    if any(free < enough for free, enough in zip(_free(plan["folder"]), least, strict=True)):
        return "disk"
    if not os.path.isdir("/proc/self"):
        return ""
    seen = {b"RssAnon": 0, b"VmPTE": 0, b"VmSwap": 0, b"Threads": 0}
    for name in os.listdir("/proc"):
        try:
            if name.isdigit():
                with open(f"/proc/{name}/status", "rb") as file:
                    for line in file:
                        what, _, amount = line.partition(b":")
                        if what in seen:
                            seen[what] += int(amount.split()[0])
        except OSError:  # it ended
            continue
    if seen[b"Threads"] - 1 > plan["processes"]:
        return "processes"
    with open("/proc/net/unix", "rb") as file:
        sockets = sum(1 for _ in file) - 1
    memory = 1024 * (seen[b"RssAnon"] + seen[b"VmPTE"] + seen[b"VmSwap"]) + sockets * plan["socket_bytes"]
    return "memory" if memory > plan["memory_bytes"] else ""


def _free(folder: str) -> tuple[int, int]:
    """Bytes and files that the disk of `folder` has left."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize, disk.f_favail


def _socket_bytes(setting: str = "/proc/sys/net/core/wmem_default") -> int:
    """What one socket can hold. Many kernels show it in the machine's own network namespace only; then their default."""
    try:
        with open(setting) as file:
            return int(file.read())
    except OSError:
        return 212_992


# The file system.


def _new_root(root: str, readable: list[str], folder: str, processes: int) -> None:
    """Replaces the root by an empty one with `readable` read-only, `folder` writable, a few devices, and own /proc."""
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in sorted(readable):
        _place(path, root)
    devices = [f"/dev/{name}" for name in _DEVICES]
    for path in devices:
        _make(path, root, is_folder=False)
    _make(folder, root, is_folder=True)
    os.makedirs(root + "/proc", exist_ok=True)
    _restrict_mount(root, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    for path in devices:
        _mount(path, root + path, "", MS_BIND)
        _restrict_mount(root + path, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID)
    _new_proc(root, processes)
    _mount(folder, root + folder, "", MS_BIND)
    _restrict_mount(root + folder, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    for path in readable:
        if path.startswith(folder + "/"):  # hidden by the folder: this Python, where its environment lies in a checkout
            _mount(path, root + path, "", MS_BIND | MS_REC)
            _restrict_mount(root + path, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    os.chdir(root)
    _check(_libc().pivot_root(b".", b"."), "pivot_root")
    _check(_libc().umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")


def _new_proc(root: str, processes: int) -> None:
    try:
        _mount("proc", root + "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    except OSError:
        return  # containers that hide parts of /proc forbid a new one; most commands do without
    # RLIMIT_NPROC does not hold for root, so a fork bomb is bounded by its numbers until `_over` ends it (those up to
    # 300 are used once). Before Linux 6.14 this is the whole machine's setting, and root might well change it.
    if tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2]) >= (6, 14):
        with contextlib.suppress(OSError):
            _write(root + "/proc/sys/kernel/pid_max", f"{301 + processes}")
    for name in _MASKED:
        if os.path.exists(f"{root}/proc/{name}"):
            _mount("/dev/null", f"{root}/proc/{name}", "", MS_BIND)
    _restrict_mount(root + "/proc", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)


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


def _own_keyring() -> None:
    """A session keyring of its own; the filter then forbids all calls about keys. Kernels without keys have none."""
    architecture = _ARCHITECTURES.get(os.uname().machine)
    if architecture:
        _libc().syscall(_CALLS["keyctl"][architecture[1]], KEYCTL_JOIN_SESSION_KEYRING, None)


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


def _filter_calls() -> None:
    """No call in `_FORBIDDEN` or against `_CONDITIONS`, none newer than the list, none of another architecture."""
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"there is no filter of system calls for {machine}")
    program = b"".join(struct.pack("HBBI", *each) for each in filter_program(*_ARCHITECTURES[machine]))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]

    filters = Program(len(program) // 8, program)
    _check(_libc().prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filters), 0, 0), "seccomp")


def filter_program(audit: int, column: int) -> list[tuple[int, int, int, int]]:
    """Instructions of the kernel's filter machine: (code, jump if true, jump if false, operand)."""
    load, same, above, both, end = 0x20, 0x15, 0x25, 0x54, 0x06
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000
    number, architecture, arguments = 0, 4, 16  # offsets in struct seccomp_data
    program = [
        (load, 0, 0, architecture),
        (same, 1, 0, audit),
        (end, 0, 0, kill),
        (load, 0, 0, number),
        # Also the x32 calls of x86_64, which have bit 30 set.
        (above, 0, 1, _NEWEST),
        (end, 0, 0, refuse | errno.ENOSYS),
    ]
    for name in _FORBIDDEN:
        if call := _CALLS[name][column]:
            reason = errno.ENOSYS if name == "clone3" else errno.EPERM
            program += [(same, 0, 1, call), (end, 0, 0, refuse | reason)]
    for name, argument, mask, wanted, value in _CONDITIONS:
        # Of each argument the lower half, which is all that the kernel looks at in these.
        program += [
            (same, 0, 5, _CALLS[name][column]),
            (load, 0, 0, arguments + 8 * argument),
            (both, 0, 0, mask),
            (same, 1, 0, value) if wanted else (same, 0, 1, value),
            (end, 0, 0, refuse | errno.EPERM),
            (load, 0, 0, number),
        ]
    return [*program, (end, 0, 0, allow)]


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


def _die_with_parent(pipe: int) -> None:
    """pipe: its writing end; without a reader the parent had ended before the kernel was told."""
    if sys.platform == "linux":
        _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        watched = select.poll()
        watched.register(pipe, 0)
        if watched.poll(0):
            os._exit(1)


def _close_streams() -> None:
    """Only the command holds the caller's pipes, so that they end when it does."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _reason(error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return str(error)
    return f"{error.strerror or error}" + (f" ({os.fsdecode(error.filename)})" if error.filename else "")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main()
