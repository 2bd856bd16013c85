"""The filter of system calls, run by a small machine of the test, and against the numbers of the kernel's headers."""

import ctypes
import errno
import hashlib
import io
import json
import os
import re
import resource
import signal
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from equipoise.core import confine
from equipoise.core.errors import WorkFailed
from equipoise.core.sandbox import Limits, isolation, python, run

ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
# Numbers of what every program does, written down here and not taken from the code under test.
EVERYDAY = {
    "x86_64": {"read": 0, "write": 1, "close": 3, "mprotect": 10, "brk": 12, "execve": 59, "exit": 60, "wait4": 61,
               "kill": 62, "fork": 57, "vfork": 58, "pipe2": 293, "openat": 257, "futex": 202, "getrandom": 318,
               "clone": 56, "mmap": 9, "socketpair": 53, "ioctl": 16, "fcntl": 72, "setsockopt": 54},
    "aarch64": {"read": 63, "write": 64, "close": 57, "mprotect": 226, "brk": 214, "execve": 221, "exit": 93,
                "wait4": 260, "kill": 129, "pipe2": 59, "openat": 56, "futex": 98, "getrandom": 278,
                "clone": 220, "mmap": 222, "socketpair": 199, "ioctl": 29, "fcntl": 25, "setsockopt": 208},
}  # fmt: skip
AUDIT = {"x86_64": 62 | 0xC0000000, "aarch64": 183 | 0xC0000000, "i386": 3 | 0x40000000, "arm": 40 | 0x40000000}


def decide(machine: str, number: int, *arguments: int, audit: int | None = None) -> int:
    program = confine.filter_program(*confine._ARCHITECTURES[machine])
    words = {0: number, 4: AUDIT[machine] if audit is None else audit}
    for place, argument in enumerate((*arguments, *[0] * (6 - len(arguments)))):
        words[16 + 8 * place], words[20 + 8 * place] = argument & 0xFFFFFFFF, argument >> 32
    register, place = 0, 0
    while True:
        code, if_true, if_false, operand = program[place]
        assert 0 <= if_true < 256 and 0 <= if_false < 256
        place += 1
        match code:
            case 0x20:
                register = words[operand]
            case 0x54:
                register &= operand
            case 0x15:
                place += if_true if register == operand else if_false
            case 0x25:
                place += if_true if register > operand else if_false
            case 0x06:
                return operand


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_what_programs_do_is_allowed_and_the_rest_refused(machine):
    for number in EVERYDAY[machine].values():
        assert decide(machine, number, 1, 1) == ALLOW
    column = confine._ARCHITECTURES[machine][1]
    assert {"socket", "keyctl", "memfd_create", "ptrace", "io_uring_setup", "unshare"} <= set(confine._FORBIDDEN)
    for name in confine._FORBIDDEN:
        if number := confine._CALLS[name][column]:
            assert decide(machine, number) == REFUSE | (errno.ENOSYS if name == "clone3" else errno.EPERM), name
    newer, x32 = 463, 0x40000000 | EVERYDAY["x86_64"]["write"]
    assert decide(machine, newer) == decide(machine, x32) == decide(machine, 0xFFFFFFFF) == REFUSE | errno.ENOSYS
    for other in set(AUDIT) - {machine}:
        assert decide(machine, EVERYDAY[machine]["write"], audit=AUDIT[other]) == KILL


THREAD = 0x3D0F00  # CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | ..., as the C library says it
HIGH = 1 << 40  # bits that the kernel does not look at must not hide those that it does


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize(
    ("call", "arguments", "allowed"),
    [
        ("clone", (THREAD,), True),
        ("clone", (17,), True),
        *[("clone", (flag | 17,), False) for flag in (1 << 25, 1 << 28, 1 << 30, 1 << 17, 1 << 29, 1 << 27, 1 << 26)],
        ("clone", (HIGH | 1 << 28,), False),
        ("mmap", (0, 4096, 3, 0x22), True),  # private and anonymous
        ("mmap", (0, 4096, 3, 0x01), True),  # a file, shared
        ("mmap", (0, 4096, 3, 0x21), False),
        ("mmap", (0, 4096, 3, 0x23), False),
        ("mmap", (0, 4096, 3, 0x8021 | HIGH), False),
        ("mmap", (0, 4096, 3, 0x40022), False),
        ("socketpair", (1, 1), True),
        ("socketpair", (1, 1 | 0x80800), True),  # closed at exec, not blocking
        ("socketpair", (1, 2), False),
        ("socketpair", (1, 2 | 0x80000), False),
        ("socketpair", (1, 5), False),
        ("socketpair", (30, 1), False),
        ("setsockopt", (3, 1, 8), True),
        ("setsockopt", (3, 1, 7), False),
        ("ioctl", (0, 0x5413), True),
        ("ioctl", (0, 0x5412), False),
        ("ioctl", (0, 0x5412 | HIGH), False),
        ("ioctl", (0, 0x541C), False),
        ("fcntl", (3, 6), True),
        ("fcntl", (3, 1024), False),
    ],
)
def test_conditions(machine, call, arguments, allowed):
    assert decide(machine, EVERYDAY[machine][call], *arguments) == (ALLOW if allowed else REFUSE | errno.EPERM)


def test_what_a_socket_holds_is_known_where_the_kernel_hides_it():
    assert confine._socket_bytes("/proc/sys/net/core/none") == 212_992


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_numbers_are_those_of_the_kernel(machine):
    if not HEADERS[machine].exists():
        pytest.skip(f"the kernel's headers are not installed: {HEADERS[machine]}")
    found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)\s*$", HEADERS[machine].read_text(), re.MULTILINE)
    numbers = {name: int(number) for name, number in reversed(found)}
    column = confine._ARCHITECTURES[machine][1]
    assert {name: numbers.get(name, 0) for name in confine._CALLS} == {
        name: columns[column] for name, columns in confine._CALLS.items()
    }
    assert {name: numbers[name] for name in EVERYDAY[machine]} == EVERYDAY[machine]


def test_constants_are_those_of_the_kernels_headers():
    """Small ones, which a slip changes without a sound; from sched.h, mount.h, prctl.h, landlock.h, seccomp.h."""
    named = {
        "CLONE_NEWNS": 1 << 17, "CLONE_NEWUTS": 1 << 26, "CLONE_NEWIPC": 1 << 27, "CLONE_NEWUSER": 1 << 28,
        "CLONE_NEWPID": 1 << 29, "CLONE_NEWNET": 1 << 30, "MS_NOSUID": 2, "MS_NODEV": 4, "MS_NOEXEC": 8,
        "MS_BIND": 4096, "MS_REC": 1 << 14, "MS_PRIVATE": 1 << 18, "MNT_DETACH": 2, "MOUNT_ATTR_RDONLY": 1,
        "MOUNT_ATTR_NOSUID": 2, "MOUNT_ATTR_NODEV": 4, "AT_FDCWD": -100, "AT_RECURSIVE": 0x8000, "SYS_MOUNT_SETATTR": 442,
        "SYS_LANDLOCK_CREATE": 444, "SYS_LANDLOCK_ADD": 445, "SYS_LANDLOCK_RESTRICT": 446, "PR_SET_PDEATHSIG": 1,
        "PR_SET_DUMPABLE": 4, "PR_CAPBSET_DROP": 24, "PR_SET_NO_NEW_PRIVS": 38, "PR_CAP_AMBIENT": 47,
        "PR_CAP_AMBIENT_CLEAR_ALL": 4, "PR_SET_SECCOMP": 22, "SECCOMP_MODE_FILTER": 2, "KEYCTL_JOIN_SESSION_KEYRING": 1,
        "O_PATH": 1 << 21, "_EXECUTE": 1, "_WRITE_FILE": 2, "_READ_FILE": 4, "_READ_DIR": 8, "_TRUNCATE": 1 << 14,
    }  # fmt: skip
    assert {name: getattr(confine, name) for name in named} == named
    # LANDLOCK_ACCESS_FS: thirteen at first, then REFER, TRUNCATE and IOCTL_DEV.
    assert confine._FILE_RIGHTS == {1: 0x1FFF, 2: 0x2000, 3: 0x4000, 5: 0x8000}


@pytest.mark.parametrize(
    ("machine", "digest"),
    [
        ("x86_64", "68250f5a7a0fcb4b"),
        ("aarch64", "0cffcd7484cc1e0c"),
        ("riscv64", "61f3560a9a500a99"),
    ],
)
def test_the_filter_is_this_one(machine, digest):
    """Whoever changes it looks every number up in the kernel's headers again, then notes the new digest."""
    program = b"".join(struct.pack("HBBI", *each) for each in confine.filter_program(*confine._ARCHITECTURES[machine]))
    assert hashlib.sha256(program).hexdigest()[:16] == digest


class Libc:
    """Takes down what is asked of the C library; `answers` gives the result of a name, 0 for all others."""

    def __init__(self, **answers):
        self.asked, self.answers = [], answers

    def __getattr__(self, name):
        def call(*arguments):
            self.asked.append((name, *map(plain, arguments)))
            return self.answers.get(name, 0)

        return call


def plain(argument):
    if isinstance(argument, ctypes.Array):
        return list(argument)
    if isinstance(argument, ctypes._SimpleCData):
        return argument.value
    referred = getattr(argument, "_obj", None)
    if isinstance(referred, ctypes.Structure):
        return tuple(getattr(referred, name) for name, *_ in referred._fields_)
    return argument


@pytest.fixture
def libc(monkeypatch):
    libc = Libc()
    monkeypatch.setattr(confine, "_libc", lambda: libc)
    monkeypatch.setattr(sys, "platform", "linux")
    return libc


def test_a_mount_is_restricted_with_all_below_it(libc):
    confine._restrict_mount("/root/é", 5)
    assert libc.asked == [("syscall", 442, -100, "/root/é".encode(), 0x8000, (5, 0, 0, 0), 32)]


def test_a_mount_and_a_namespace_as_the_c_library_takes_them(libc):
    confine._mount("none", "/a", "tmpfs", 6, "size=1m")
    confine._mount("/x", "/y", "", 4096)
    confine._unshare(3)
    assert libc.asked == [
        ("mount", b"none", b"/a", b"tmpfs", 6, b"size=1m"),
        ("mount", b"/x", b"/y", b"", 4096, b""),
        ("unshare", 3),
    ]
    libc.answers = {"mount": -1}
    ctypes.set_errno(errno.EPERM)
    with pytest.raises(OSError, match=r"mount: Operation not permitted: '/y'") as caught:
        confine._mount("/x", "/y", "", 1)
    assert caught.value.errno == errno.EPERM and caught.value.filename == "/y"


def test_no_privilege_is_left(libc):
    confine._no_new_privileges()
    assert libc.asked == [
        *(("prctl", 24, capability, 0, 0, 0) for capability in range(64)),
        ("prctl", 47, 4, 0, 0, 0),
        ("capset", [0x20080522, 0], [0] * 6),
        ("prctl", 38, 1, 0, 0, 0),
    ]
    for name in ("capset", "prctl"):
        libc.answers = {name: -1}
        with pytest.raises(OSError, match="capset" if name == "capset" else "no_new_privs"):
            confine._no_new_privileges()


def test_a_keyring_of_its_own_where_the_calls_are_known(libc, monkeypatch):
    for machine in ("x86_64", "aarch64", "vax"):
        monkeypatch.setattr(os, "uname", lambda machine=machine: SimpleNamespace(machine=machine))
        confine._own_keyring()
    assert libc.asked == [("syscall", 250, 1, None), ("syscall", 219, 1, None)]
    with pytest.raises(OSError, match="there is no filter of system calls for vax") as caught:
        confine._filter_calls()
    assert caught.value.errno == errno.ENOSYS


def test_the_filter_is_handed_over_whole(libc, monkeypatch):
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="x86_64"))
    confine._filter_calls()
    ((name, what, mode, (length, _), *rest),) = libc.asked
    assert (name, what, mode, *rest) == ("prctl", 22, 2, 0, 0)
    assert length == len(confine.filter_program(*confine._ARCHITECTURES["x86_64"]))
    libc.answers = {"prctl": -1}
    with pytest.raises(OSError, match="seccomp"):
        confine._filter_calls()


@pytest.mark.parametrize(
    ("version", "attributes", "size"),
    [
        (1, [0x1FFF, 0, 0], 8),
        (2, [0x3FFF, 0, 0], 8),
        (3, [0x7FFF, 0, 0], 8),
        (4, [0x7FFF, 3, 0], 16),
        (5, [0xFFFF, 3, 0], 16),
        (6, [0xFFFF, 3, 3], 24),
        (7, [0xFFFF, 3, 3], 24),
    ],
)
def test_landlock_allows_what_its_version_knows(libc, monkeypatch, tmp_path, version, attributes, size):
    libc.answers = {"syscall": os.open(os.devnull, os.O_RDONLY)}
    allowed = []
    monkeypatch.setattr(confine, "landlock_version", lambda: version)
    monkeypatch.setattr(confine, "_allow", lambda ruleset, path, rights: allowed.append((path, rights)))
    confine._landlock(["/usr", "/lib"], str(tmp_path))
    every = attributes[0]
    assert libc.asked[0] == ("syscall", 444, attributes, size, 0)
    assert libc.asked[1] == ("syscall", 446, libc.answers["syscall"], 0) and len(libc.asked) == 2
    devices = [(f"/dev/{name}", every & 0xC006) for name in ("null", "full", "random", "urandom")]
    assert allowed == [("/usr", 13), ("/lib", 13), ("/proc", 13), *devices, (str(tmp_path), every)]
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(libc.answers["syscall"])  # closed


def test_without_landlock_or_with_a_refusal(libc, monkeypatch):
    monkeypatch.setattr(confine, "landlock_version", lambda: 0)
    confine._landlock(["/usr"], "/tmp")
    assert libc.asked == []
    monkeypatch.setattr(confine, "landlock_version", lambda: 1)
    libc.answers = {"syscall": -1}
    with pytest.raises(OSError, match="landlock"):
        confine._landlock(["/usr"], "/tmp")


def test_the_version_of_landlock_is_asked_for(libc, monkeypatch):
    for answer, version in ((-1, 0), (0, 0), (1, 1), (7, 7)):
        libc.answers = {"syscall": answer}
        assert confine.landlock_version() == version
    assert libc.asked == [("syscall", 444, None, 0, 1)] * 4
    monkeypatch.setattr(sys, "platform", "darwin")
    assert confine.landlock_version() == 0 and len(libc.asked) == 4


def test_a_file_is_allowed_less_than_a_folder(libc, tmp_path):
    (tmp_path / "file").touch()
    confine._allow(3, str(tmp_path), 0xFFFF)
    confine._allow(3, str(tmp_path / "file"), 0xFFFF)
    confine._allow(3, str(tmp_path / "none"), 0xFFFF)
    assert [(call[:4], call[4][0], call[5:]) for call in libc.asked] == [
        (("syscall", 445, 3, 1), 0xFFFF, (0,)),
        (("syscall", 445, 3, 1), 0xC007, (0,)),
    ]
    for *_, (_, parent), _ in libc.asked:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(parent)
    libc.answers = {"syscall": -1}
    with pytest.raises(OSError, match="landlock"):
        confine._allow(3, str(tmp_path), 1)


@pytest.mark.parametrize(
    ("name", "hard", "value", "limits"),
    [
        ("RLIMIT_CPU", -1, 7, (7, 8)),
        ("RLIMIT_CPU", 9, 7, (7, 8)),
        ("RLIMIT_CPU", 8, 7, (7, 8)),
        ("RLIMIT_CPU", 7, 7, (7, 7)),
        ("RLIMIT_CPU", 6, 7, (6, 6)),
        ("RLIMIT_AS", -1, 7, (7, 7)),
        ("RLIMIT_AS", 8, 7, (7, 7)),
        ("RLIMIT_AS", 6, 7, (6, 6)),
    ],
)
def test_limits_stay_below_the_hard_one(monkeypatch, name, hard, value, limits):
    kind, found = getattr(resource, name), []
    monkeypatch.setattr(resource, "getrlimit", lambda asked: (1, hard) if asked == kind else (0, 0))
    monkeypatch.setattr(resource, "setrlimit", lambda asked, pair: found.append((asked, pair)))
    confine._limit(name, value)
    assert found == [(kind, limits)]


def test_a_limit_that_is_refused_is_an_error_but_on_macos(monkeypatch):
    def refuse(kind, pair):
        raise ValueError("not allowed")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    with pytest.raises(ValueError, match="not allowed"):
        confine._limit("RLIMIT_AS", 7)
    monkeypatch.setattr(sys, "platform", "darwin")
    confine._limit("RLIMIT_AS", 7)


PROCESSES = {
    "1": "Name:\ta\nRssAnon:\t  10 kB\nVmPTE:\t 2 kB\nVmSwap:\t 3 kB\nThreads:\t1\n",
    "7": "VmRSS:\t 999 kB\nRssAnon:\t 20 kB\nVmPTE:\t 1 kB\nVmSwap:\t 0 kB\nThreads:\t3\n",
    "8": None,  # ended meanwhile
    "self": "RssAnon:\t 9999 kB\n",
    "uptime": "",
}
USED = 1024 * (10 + 2 + 3 + 20 + 1) + 2 * 1000


@pytest.mark.parametrize(
    ("plan", "free", "over"),
    [
        ({}, (5, 5), ""),
        ({"memory_bytes": USED - 1}, (5, 5), "memory"),
        ({"processes": 2}, (5, 5), "processes"),
        ({"processes": 2, "memory_bytes": 0}, (4, 5), "disk"),
        ({}, (5, 4), "disk"),
    ],
)
def test_what_all_processes_use_is_counted_together(monkeypatch, plan, free, over):
    def opened(path, mode):
        if path == "/proc/net/unix":
            return io.BytesIO(b"Num RefCount\n1\n2\n")
        text = PROCESSES[path.removeprefix("/proc/").removesuffix("/status")]
        if text is None:
            raise FileNotFoundError(path)
        return io.BytesIO(text.encode())

    monkeypatch.setattr(confine, "open", opened, raising=False)
    monkeypatch.setattr(confine, "_free", lambda folder: free if folder == "/work" else (0, 0))
    monkeypatch.setattr(os, "listdir", lambda path: list(PROCESSES))
    whole = {"folder": "/work", "processes": 3, "memory_bytes": USED, "socket_bytes": 1000, **plan}
    assert confine._over(whole, [5, 5]) == over
    monkeypatch.setattr(os.path, "isdir", lambda path: path != "/proc/self")
    assert confine._over(whole, [5, 5]) == (over if over == "disk" else "")


def test_what_a_disk_has_left_is_counted_in_bytes_and_files(monkeypatch):
    found = SimpleNamespace(f_bavail=3, f_frsize=7, f_favail=11, f_bfree=100, f_ffree=200, f_bsize=50)
    monkeypatch.setattr(os, "statvfs", lambda folder: found)
    assert confine._free("/x") == (21, 11)


def test_what_a_socket_holds_is_the_kernels_setting(tmp_path):
    (tmp_path / "wmem").write_text("4096\n")
    assert confine._socket_bytes(str(tmp_path / "wmem")) == 4096


@pytest.fixture
def mounts(monkeypatch):
    """Mounting without a kernel: what was mounted and restricted, in order."""
    done = []
    monkeypatch.setattr(confine, "_mount", lambda *given: done.append(given))
    monkeypatch.setattr(confine, "_restrict_mount", lambda path, flags: done.append((path, flags)))
    return done


def test_a_readable_path_keeps_its_links(tmp_path, mounts):
    root, real = str(tmp_path / "root"), tmp_path / "real"
    (real / "deep").mkdir(parents=True)
    (real / "deep" / "file").write_text("x")
    (tmp_path / "link").symlink_to("real")
    path = f"{tmp_path}/link/deep/file"
    confine._place(path, root)
    assert Path(f"{root}{tmp_path}/link").readlink() == Path("real")
    target = f"{real}/deep/file"
    assert mounts == [(target, root + target, "", 0x5000)]
    assert Path(root + target).read_bytes() == b""  # where it is mounted
    confine._place(path, root)  # the link is there already
    confine._place(f"{real}/deep", root)
    confine._place(f"{real}/none", root)
    assert mounts[1:] == [(target, root + target, "", 0x5000), (f"{real}/deep", f"{root}{real}/deep", "", 0x5000)]
    assert not Path(f"{root}{real}/none").exists()


def test_what_is_mounted_already_is_not_mounted_again(tmp_path, mounts, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == f"{tmp_path}/root{tmp_path}/here")
    confine._place(f"{tmp_path}/here", f"{tmp_path}/root")
    assert mounts == []


def test_places_to_mount_on_are_made_once(tmp_path):
    root = str(tmp_path)
    confine._make("/a/b", root, is_folder=True)
    confine._make("/a/c", root, is_folder=False)
    (tmp_path / "a" / "c").write_text("kept")
    confine._make("/a/c", root, is_folder=False)
    assert (tmp_path / "a" / "b").is_dir() and (tmp_path / "a" / "c").read_text() == "kept"


def test_the_new_root_shows_what_is_readable_and_nothing_else(tmp_path, mounts, libc, monkeypatch):
    """In this order: what is mounted on later would hide, and what is restricted later would open, what was before."""
    root, folder = str(tmp_path / "root"), str(tmp_path / "work")
    there = []
    monkeypatch.setattr(confine, "_place", lambda path, root: mounts.append(("place", path)))
    monkeypatch.setattr(confine, "_new_proc", lambda root, processes: mounts.append(("proc", processes)))
    monkeypatch.setattr(os, "chdir", there.append)
    inside = f"{folder}/.venv"
    confine._new_root(root, ["/usr", inside, "/bin"], folder, 9)
    devices = [f"/dev/{name}" for name in ("null", "full", "random", "urandom")]
    assert mounts == [
        ("none", "/", "", 0x44000),
        ("tmpfs", root, "tmpfs", 6, "size=1m,mode=755"),
        *[("place", path) for path in sorted(["/usr", inside, "/bin"])],
        (root, 7),
        *[step for path in devices for step in ((path, root + path, "", 4096), (root + path, 3))],
        ("proc", 9),
        (folder, root + folder, "", 4096),
        (root + folder, 6),
        (inside, root + inside, "", 0x5000),
        (root + inside, 7),
    ]
    assert all(Path(root + path).is_file() for path in devices)
    assert Path(root + folder).is_dir() and Path(root + "/proc").is_dir()
    assert there == [root, "/"] and libc.asked == [("pivot_root", b".", b"."), ("umount2", b".", 2)]
    for name in ("pivot_root", "umount2"):
        libc.answers = {name: -1}
        with pytest.raises(OSError, match=name.rstrip("2")):
            confine._new_root(root, [], folder, 9)


@pytest.mark.parametrize(
    ("release", "bounded"), [("6.13.9-x", False), ("6.14.0", True), ("7.0-rc1", True), ("5.20.1", False)]
)
def test_the_new_proc_hides_the_machine_and_bounds_process_numbers(tmp_path, mounts, monkeypatch, release, bounded):
    root = str(tmp_path)
    (tmp_path / "proc" / "sys" / "kernel").mkdir(parents=True)
    for name in ("kcore", "kmsg", "uptime"):
        (tmp_path / "proc" / name).touch()
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    confine._new_proc(root, 5)
    assert mounts == [
        ("proc", f"{root}/proc", "proc", 14),
        ("/dev/null", f"{root}/proc/kcore", "", 4096),
        ("/dev/null", f"{root}/proc/kmsg", "", 4096),
        (f"{root}/proc", 7),
    ]
    setting = tmp_path / "proc" / "sys" / "kernel" / "pid_max"
    assert (setting.read_text() if setting.exists() else "") == ("306" if bounded else "")


def test_a_forbidden_proc_is_done_without(monkeypatch):
    def forbidden(*_):
        raise PermissionError

    monkeypatch.setattr(confine, "_mount", forbidden)
    confine._new_proc("/nowhere", 5)


def test_whoever_lost_its_parent_ends(libc, monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    receive, send = os.pipe()
    confine._die_with_parent(send)
    assert libc.asked == [("prctl", 1, signal.SIGKILL, 0, 0, 0)] and ended == []
    os.close(receive)
    confine._die_with_parent(send)
    assert ended == [1]
    monkeypatch.setattr(sys, "platform", "darwin")
    confine._die_with_parent(send)
    os.close(send)
    assert ended == [1] and len(libc.asked) == 2


def test_reasons_name_what_and_where():
    assert confine._reason(ValueError("embedded null byte")) == "embedded null byte"
    assert confine._reason(OSError(errno.ENOENT, "No such file", "/x")) == "No such file (/x)"
    assert confine._reason(OSError(errno.ENOENT, "No such file")) == "No such file"
    assert confine._reason(OSError("odd")) == "odd"


@pytest.mark.parametrize("isolate", [True, False])
def test_what_the_caller_ignores_or_blocks_does_not_reach_the_command(tmp_path, monkeypatch, isolate):
    (tmp_path / "plan.json").write_text(json.dumps({"isolate": isolate}))
    receive, send = os.pipe()
    seen = []
    monkeypatch.setattr(sys, "argv", ["confine.py", str(tmp_path / "plan.json"), str(send)])
    monkeypatch.setattr(signal, "signal", lambda number, how: seen.append((number, how)))
    monkeypatch.setattr(signal, "pthread_sigmask", lambda how, numbers: seen.append((how, numbers)))
    monkeypatch.setattr(confine, "_die_with_parent", seen.append)
    monkeypatch.setattr(confine, "_isolated", lambda plan: {"status": 3})
    monkeypatch.setattr(confine, "_start", lambda plan: {"status": 4})
    os.set_inheritable(send, True)
    confine.main()
    assert not os.get_inheritable(send)

    def broken(plan):
        raise OSError(errno.EPERM, "no", "/x")

    assert json.loads(os.read(receive, 100)) == {"status": 3 if isolate else 4}
    monkeypatch.setattr(confine, "_isolated", broken)
    monkeypatch.setattr(confine, "_start", broken)
    confine.main()
    assert json.loads(os.read(receive, 100)) == {"failed": "no (/x)"}
    os.close(send)
    os.close(receive)
    numbers = ("SIGINT", "SIGPIPE", "SIGTERM", "SIGHUP", "SIGQUIT")
    once = [(getattr(signal, name), signal.SIG_DFL) for name in numbers]
    assert seen == [send, (signal.SIG_SETMASK, []), *once] * 2


LOOK = """
import json, os, resource
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
limits = {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in ("CPU", "NOFILE", "CORE", "NPROC")}
print(json.dumps({
    "status": {name: status[name].strip() for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "SigIgn", "SigBlk")},
    "limits": limits, "open": sorted(os.listdir("/proc/self/fd")), "user": os.getuid(), "cwd": os.getcwd(),
    "leads": os.getsid(0) == os.getpid(), "parent": os.getppid(),
    "processes": sorted(filter(str.isdigit, os.listdir("/proc"))),
}))
"""


@pytest.mark.skipif(not isolation().available, reason=f"no isolation here: {isolation().reason}")
def test_the_whole_way(tmp_path):
    """What needs a kernel, as the sandbox runs it: in a process of its own, which no fake of this one reaches."""
    assert confine.landlock_version() >= 0
    finished = python(LOOK, folder=tmp_path, limits=Limits(cpu_seconds=3, open_files=20, processes=7))
    assert (finished.ended, finished.returncode, finished.stderr) == ("exit", 0, "")
    found = json.loads(finished.stdout)
    none = "0" * 16
    status = found["status"]
    assert (status["CapEff"], status["CapBnd"], status["NoNewPrivs"], status["Seccomp"]) == (none, none, "1", "2")
    assert int(status["SigBlk"], 16) == 0 and int(status["SigIgn"], 16) & 1 << signal.SIGTERM - 1 == 0
    assert found["limits"] == {"CPU": [3, 4], "NOFILE": [20, 20], "CORE": [1, 1], "NPROC": [7, 7]}
    assert found["open"] == ["0", "1", "2", "3"]  # the last one lists them
    assert found["user"] == (os.geteuid() or 65534) and found["cwd"] == str(tmp_path) and found["leads"]
    assert found["parent"] == 1 and len(found["processes"]) == 2
    assert python("raise SystemExit(3)").returncode == 3
    with pytest.raises(WorkFailed, match="embedded null byte"):
        run(["/bin/echo", "a\0b"])
    with pytest.raises(WorkFailed, match="No such file or directory"):
        run(["none-such"], unsafe=True)
    assert run(["/bin/sh", "-c", "exit $X"], environment={"X": "4"}, unsafe=True).returncode == 4


class Ended(BaseException):
    """Where a process would end, or become another program."""


class Kernel:
    """What `confine` asks the system for, taken down; what is not answered here is the system's own."""

    def __init__(self, monkeypatch, **answers):
        self.asked = []
        self.answers = {"geteuid": 1000, "getegid": 100, "setsid": 0, "chdir": None} | answers
        receive, send = os.pipe()
        self.report, kept = os.dup(receive), os.dup(send)
        self.pipe = lambda: (receive, send)
        if "said" in answers:  # by the other process, which has ended
            os.write(kept, answers["said"])
        os.close(kept)
        for name in ("_unshare", "_write", "_die_with_parent", "_new_root", "_own_keyring", "_no_new_privileges"):
            monkeypatch.setattr(confine, name, self.noted(name))
        for name in ("_landlock", "_limit", "_filter_calls", "_close_streams"):
            monkeypatch.setattr(confine, name, self.noted(name))
        monkeypatch.setattr(confine, "_socket_bytes", lambda: 77)
        monkeypatch.setattr(confine, "_free", lambda folder: [7, 101] if folder == "/f" else [])
        monkeypatch.setattr(confine.time, "sleep", self.noted("sleep"))
        monkeypatch.setattr(confine, "os", self)

    def noted(self, name):
        def call(*arguments):
            self.asked.append((name, *arguments))
            answer = self.answers.get(name)
            if isinstance(answer, list):
                answer = answer.pop(0)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return call

    def __getattr__(self, name):
        ours = ("fork", "waitpid", "geteuid", "getegid", "setsid", "chdir", "execvpe")
        return self.noted(name) if name in ours else getattr(os, name)

    def _exit(self, code):
        raise Ended(code)

    def said(self):
        with os.fdopen(self.report, "rb") as pipe:
            return pipe.read()


PLAN = {"root": "/r", "readable": ["/usr"], "folder": "/f", "processes": 9, "isolate": True}


@pytest.mark.parametrize("user, inside", [((1000, 100), (1000, 100)), ((0, 0), (65534, 65534))])
def test_a_namespace_is_made_and_its_first_process_starts_the_command(monkeypatch, user, inside):
    kernel = Kernel(monkeypatch, fork=0, geteuid=user[0], getegid=user[1])
    monkeypatch.setattr(confine, "_start", lambda plan: {"status": plan["socket_bytes"]})
    with pytest.raises(Ended, match=r"^0$"):
        confine._isolated(dict(PLAN))
    _, send = kernel.pipe()
    assert kernel.asked == [
        ("geteuid",),
        ("getegid",),
        ("_unshare", 0x7C020000),
        ("_write", "/proc/self/setgroups", "deny"),
        ("_write", "/proc/self/uid_map", f"{inside[0]} {user[0]} 1"),
        ("_write", "/proc/self/gid_map", f"{inside[1]} {user[1]} 1"),
        ("fork",),
        ("_die_with_parent", send),
        ("_new_root", "/r", ["/usr"], "/f", 9),
    ]
    os.close(send)
    assert json.loads(kernel.said()) == {"status": 77}


def test_a_root_that_cannot_be_made_is_reported(monkeypatch):
    kernel = Kernel(monkeypatch, fork=0, _new_root=OSError(errno.EPERM, "no", "/x"))
    monkeypatch.setattr(confine, "_start", lambda plan: pytest.fail("started"))
    with pytest.raises(Ended, match=r"^0$"):
        confine._isolated(dict(PLAN))
    os.close(kernel.pipe()[1])
    assert json.loads(kernel.said()) == {"failed": "no (/x)"}


@pytest.mark.parametrize("said, status", [(b'{"over": "disk"}', {"over": "disk"}), (b"", {"status": 9})])
def test_outside_the_namespace_its_report_is_waited_for(monkeypatch, said, status):
    kernel = Kernel(monkeypatch, fork=4321, waitpid=[(4321, 9)], said=said)
    assert confine._isolated(dict(PLAN)) == status
    assert kernel.asked[-3:] == [("fork",), ("_close_streams",), ("waitpid", 4321, 0)]
    os.close(kernel.report)


STARTED = {"command": ["echo", "a"], "environment": {"A": "b"}, "limits": {"CPU": 3, "CORE": 1}}
CONFINED = [("setsid",), ("_own_keyring",), ("_no_new_privileges",), ("_landlock", ["/usr"], "/f")]
LIMITED = [("chdir", "/f"), ("_limit", "CPU", 3), ("_limit", "CORE", 1)]
BECOMES = ("execvpe", "echo", ["echo", "a"], {"A": "b"})


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_command_gets_its_limits_and_becomes_itself_last(monkeypatch, libc, isolate, platform):
    monkeypatch.setattr(sys, "platform", platform)
    kernel = Kernel(monkeypatch, fork=0, execvpe=Ended("gone"))
    with pytest.raises(Ended, match="gone"):
        confine._start(PLAN | STARTED | {"isolate": isolate})
    confined, filtered = (CONFINED, [("_filter_calls",)]) if isolate else ([], [])
    assert kernel.asked == [("fork",), *confined, *LIMITED, *filtered, BECOMES]
    assert libc.asked == [("prctl", 4, 0, 0, 0, 0)] * (platform == "linux")
    os.close(kernel.pipe()[1])
    assert kernel.said() == b""


@pytest.mark.parametrize(
    "name, error, text",
    [
        ("execvpe", FileNotFoundError(errno.ENOENT, "No such file", "echo"), b"No such file (echo)"),
        ("execvpe", ValueError("embedded null byte \udc80"), b"embedded null byte ?"),
        ("_landlock", OSError(errno.EPERM, "no"), b"no"),
        ("chdir", OSError(errno.ENOTDIR, "no folder", "/f"), b"no folder (/f)"),
    ],
)
def test_a_command_that_cannot_be_started_says_why(monkeypatch, libc, name, error, text):
    kernel = Kernel(monkeypatch, fork=0, **{name: error})
    with pytest.raises(Ended, match=r"^127$"):
        confine._start(PLAN | STARTED)
    assert kernel.asked[-1][0] == name
    os.close(kernel.pipe()[1])
    assert kernel.said() == text


def test_why_a_command_did_not_start_is_told_once_it_is_gone(monkeypatch, libc):
    kernel = Kernel(monkeypatch, fork=4321, waitpid=[(4321, 127 << 8)], said="né".encode())
    assert confine._start(PLAN | STARTED) == {"failed": "né"}
    assert kernel.asked == [("fork",), ("_close_streams",), ("waitpid", 4321, 0)]
    os.close(kernel.report)


@pytest.mark.parametrize("isolate", [True, False])
def test_a_command_is_watched_until_it_ends(monkeypatch, libc, isolate):
    """An orphan that ends is reaped and no end of the command."""
    ended = [(0, 0), (77, 5), (77, 6), (0, 0), (4321, 256)]
    kernel = Kernel(monkeypatch, fork=4321, waitpid=ended, said=b"")
    looks = []
    monkeypatch.setattr(confine, "_over", lambda plan, least: looks.append((plan["folder"], least)))
    assert confine._start(PLAN | STARTED | {"isolate": isolate}) == {"status": 256}
    wait, sleep = ("waitpid", -1 if isolate else 4321, os.WNOHANG), ("sleep", 0.02)
    assert kernel.asked == [("fork",), ("_close_streams",), wait, sleep, wait, wait, wait, sleep, wait]
    assert looks == [("/f", [3, 50])] * (2 if isolate else 0)
    os.close(kernel.report)


def test_what_goes_over_a_limit_is_ended(monkeypatch, libc):
    kernel = Kernel(monkeypatch, fork=4321, waitpid=[(0, 0), (0, 0)], said=b"")
    over = ["", "memory"]
    monkeypatch.setattr(confine, "_over", lambda plan, least: over.pop(0))
    assert confine._start(PLAN | STARTED) == {"over": "memory"}
    assert over == [] and kernel.asked.count(("sleep", 0.02)) == 1
    os.close(kernel.report)


def test_the_callers_pipes_are_let_go(monkeypatch):
    done = []
    monkeypatch.setattr(os, "open", lambda path, flags: done.append((path, flags)) or 50)
    monkeypatch.setattr(os, "dup2", lambda *both: done.append(both))
    monkeypatch.setattr(os, "close", done.append)
    confine._close_streams()
    monkeypatch.undo()
    assert done == [(os.devnull, os.O_RDWR), (50, 0), (50, 1), (50, 2), 50]
