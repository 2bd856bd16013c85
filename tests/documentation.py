"""The fenced blocks of a Markdown page, and running them as a reader would: in order, in one folder, in one session.

Three comments, which a reader does not see, say what a test does otherwise: `<!-- test: --steps 5 -->` gives options to the
commands of the block below it, `<!-- slow from here -->` leaves the rest of the page to the slow tests, and
`<!-- not run -->` exempts the block below it. A block `text` below a block that ran shows lines of what it printed, cut
where they end with " ..."; numbers may be others.
"""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.cli import main

FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXIT = re.compile(r"#.*\bexit code (\d+)")
NOT_OURS = ("make", "cd", ".", "pip", "git", "inspect", "python", "ray", "torchrun", "accelerate")


@dataclass(frozen=True)
class Block:
    """A fenced block. title: the file that a reader writes it to. extra: options that a test adds. slow, run: see above."""

    page: str
    line: int
    language: str
    title: str
    text: str
    extra: tuple[str, ...] = ()
    slow: bool = False
    run: bool = True

    @property
    def where(self) -> str:
        """Page and line, for messages."""
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> Iterator[tuple[list[str], int]]:
        """The words of each `equipoise` command, and the exit code that a comment behind it announces."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if re.match("equipoise [a-z]", line):  # equipoise JOB stands for any
                expected = EXIT.search(line)
                yield shlex.split(line, comments=True)[1:], int(expected[1]) if expected else 0


def blocks(path: Path) -> list[Block]:
    """The blocks of a page in order."""
    text, found, end = path.read_text(encoding="utf-8"), [], 0
    for match in FENCE.finditer(text):
        comments = re.findall(r"<!-- (.*?) -->", text[end : match.start()])
        extra = [word for comment in comments if comment.startswith("test:") for word in comment[5:].split()]
        slow = (found[-1].slow if found else False) or "slow from here" in comments
        found.append(
            Block(
                path.name,
                text.count("\n", 0, match.start()) + 1,
                match[1],
                match[2] or "",
                match[3],
                tuple(extra),
                slow,
                "not run" not in comments,
            )
        )
        end = match.end()
    return found


def run(page: list[Block]) -> int:
    """Run the blocks in the current folder; the number that ran. Raises AssertionError naming page and line."""
    session: dict[str, Any] = {"__name__": "__main__"}
    said, done = "", 0
    for block in page:
        if block.language == "text":
            _compare(block, said)
        elif not block.run:
            said = ""
        elif block.title:
            Path(block.title).write_text(block.text)
            done += 1
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile("\n" * block.line + block.text, block.page, "exec"), session)
            said, done = out.getvalue(), done + 1
        elif block.language == "sh":
            said, done = _run_commands(block), done + 1
    return done


def _run_commands(block: Block) -> str:
    said = ""
    for words, expected in block.commands:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(_with(words, block.extra))
        said += out.getvalue() + err.getvalue()
        assert code == expected, f"{block.where}: equipoise {shlex.join(words)} ended with {code}\n{said}"
    return said


def _with(words: Sequence[str], extra: Sequence[str]) -> list[str]:
    """The command with options that a test adds, in place of its own."""
    found = list(words)
    for option in (each for each in extra if each.startswith("--") and each in found):
        place = found.index(option)
        del found[place : place + 2]
    return [*found, *extra]


def _compare(block: Block, said: str) -> None:
    printed = [_masked(line) for line in said.splitlines()]
    for line in block.text.splitlines():
        whole, wanted = not line.endswith(" ..."), _masked(line.removesuffix(" ..."))
        there = line == "..." or any(each == wanted if whole else each.startswith(wanted) for each in printed)
        assert there, f"{block.where}: not printed: {line}\n{said}"


def _masked(line: str) -> str:
    """A line without its numbers and its spacing; "9 of 10" and "10 of 10" are the same."""
    return re.sub(r"\d[\d,.]*\d|\d", "#", re.sub(r"[+\-−](?=\d)", "", " ".join(line.split())))
