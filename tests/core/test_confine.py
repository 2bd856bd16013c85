"""The filter of system calls, run by a small machine of the test, and against the numbers of the kernel's headers."""

import errno
import re
from pathlib import Path

import pytest

from equipoise.core import confine

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
