"""What people see of a study at work, on stderr: a live table on a terminal, elsewhere one plain line per event."""

import math
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from equipoise.core.columns import duration
from equipoise.core.progress import is_quiet
from equipoise.core.terminal import say, shown
from equipoise.study.summary_text import place_words

FIRST, SILENCE = 10.0, 30.0  # seconds until the first plain line about what is under way, and between two
SOON = 2.0  # seconds of a run before its share of itself says how long it will take

if TYPE_CHECKING:
    from equipoise.study.engine import Event
    from equipoise.study.store import Task


class Display:
    """Used as a context manager around `run_study(show=...)`; shows nothing under `progress.quiet()` but failures."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.total = self.ended = self.failed = 0
        self._running: dict[str, tuple[Task, float]] = {}
        self._newest: dict[str, str] = {}
        # What share of itself a run says that it has done, when it first said so and now; nan once that went back.
        self._shares: dict[str, tuple[float, float]] = {}
        self._took: list[float] = []
        self._said = math.inf  # when the last plain line was
        self._live: Any = None
        self._slots = 1

    def __enter__(self) -> "Display":
        if sys.stderr.isatty() and not is_quiet():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(stderr=True), get_renderable=self._table, refresh_per_second=4, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def plan(self, to_do: int, stored: int, seconds: float | None) -> None:
        self.total = to_do
        self._took = [seconds / to_do] if seconds and to_do else []
        guess = f", about {duration(seconds)} of work by what stored runs took" if seconds else ""
        self._say(f"{self.title}: {self.total} to do, {stored} stored{guess}")
        self._said = time.monotonic() + FIRST - SILENCE

    def more(self, waiting: int) -> None:
        """The settings are chosen, so it is known how many tasks wait."""
        self.total = self.ended + len(self._running) + waiting

    def event(self, task: "Task", event: "Event") -> None:
        if event.kind == "started":
            self._running[task.key] = (task, time.monotonic())
            self._slots = max(self._slots, len(self._running))
        elif event.kind == "note":
            self.line(event.text)
        elif event.kind == "beat":
            self._beat(task.key, event.data)
        elif event.kind == "ended":
            _, started = self._running.pop(task.key, (task, time.monotonic()))
            took = time.monotonic() - started
            newest = self._newest.pop(task.key, "")
            self._shares.pop(task.key, None)
            self.ended += 1
            if event.state == "complete":
                self._took.append(took)
                left = self._left() if self.ended < self.total else ""
                self._say(
                    f"[{self.ended}/{self.total}] {_name(task)}: done in {duration(took)}{left}  {newest}".rstrip()
                )
            else:
                self.failed += 1
        if self._running and time.monotonic() - self._said >= SILENCE:
            self._say(self._title())

    def _beat(self, key: str, data: Mapping[str, Any]) -> None:
        if "outcome" in data:
            value = data["value"]
            number = f"{value:.4g}" if isinstance(value, (int, float)) else value
            self._newest[key] = f"{data['outcome']} {number} {place_words(data['place'])}".rstrip()
        share = data.get("share")
        if share is not None:
            # One that goes back is of another part of the run: how many there will be is not known.
            first, newest = self._shares.get(key, (share, share))
            self._shares[key] = first, share if share >= newest else math.nan

    def line(self, text: str) -> None:
        """Always shown, above the table: failures and what was set aside."""
        if self._live is not None:
            self._live.console.print(shown(text), markup=False, highlight=False, soft_wrap=True)
        else:
            say(text)

    def _say(self, text: str) -> None:
        if self._live is None and not is_quiet():
            self._said = time.monotonic()
            say(text)

    def _left(self) -> str:
        """What a line ends with: time left by how long runs took and how far those at work are, "" before either."""
        now = time.monotonic()
        gone = {key: now - started for key, (_, started) in list(self._running.items())}
        ahead: dict[str, float] = {}
        known = list(self._took)
        for key, seconds in gone.items():
            first, newest = self._shares.get(key, (0.0, 0.0))
            if seconds > SOON and newest > first:
                whole = seconds / (newest - first)
                known.append(whole)
                ahead[key] = whole * (1 - newest)
        if not known:
            return ""
        mean = sum(known) / len(known)
        under_way = sum(ahead.get(key, max(mean - seconds, 0.0)) for key, seconds in gone.items())
        waiting = mean * max(self.total - self.ended - len(gone), 0)
        return f", about {duration((under_way + waiting) / self._slots)} left"

    def _title(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.title}: {self.ended} of {self.total} done, {len(self._running)} running{failed}{self._left()}"

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self._title(), title_justify="left", box=None, pad_edge=False)
        for column in ("run", "for", "newest"):
            table.add_column(column)
        now = time.monotonic()
        for key, (task, started) in list(self._running.items()):
            table.add_row(_name(task), duration(now - started), Text(shown(self._newest.get(key, ""))))
        return table


def _name(task: "Task") -> str:
    if task.role == "preparation":
        return f"preparation seed {task.seed}"
    tuning = f", tuning point {task.point}" if task.role == "tuning" else ""
    return f"{task.arm} seed {task.seed}{tuning}"
