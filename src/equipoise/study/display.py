"""What people see of a study at work, on stderr: a live table on a terminal, elsewhere one plain line per event."""

import sys
import time
from typing import TYPE_CHECKING, Any

from equipoise.core.columns import duration
from equipoise.core.progress import is_quiet
from equipoise.core.terminal import say, shown
from equipoise.study.summary_text import place_words

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
        self._took: list[float] = []
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
        guess = f", about {duration(seconds)} of work by what stored runs took" if seconds else ""
        self._say(f"{self.title}: {self.total} to do, {stored} stored{guess}")

    def more(self, waiting: int) -> None:
        """The settings are chosen, so it is known how many tasks wait."""
        self.total = self.ended + len(self._running) + waiting

    def event(self, task: "Task", event: "Event") -> None:
        if event.kind == "started":
            self._running[task.key] = (task, time.monotonic())
            self._slots = max(self._slots, len(self._running))
        elif event.kind == "note":
            self.line(event.text)
        elif event.kind == "beat" and "outcome" in event.data:
            value = event.data["value"]
            shown = value if not isinstance(value, (int, float)) else f"{value:.4g}"
            self._newest[task.key] = f"{event.data['outcome']} {shown} {place_words(event.data['place'])}".rstrip()
        elif event.kind == "ended":
            _, started = self._running.pop(task.key, (task, time.monotonic()))
            took = time.monotonic() - started
            newest = self._newest.pop(task.key, "")
            self.ended += 1
            if event.state == "complete":
                self._took.append(took)
                left = f", {self._left()} left" if self.ended < self.total else ""
                self._say(
                    f"[{self.ended}/{self.total}] {_name(task)}: done in {duration(took)}{left}  {newest}".rstrip()
                )
            else:
                self.failed += 1

    def line(self, text: str) -> None:
        """Always shown, above the table: failures and what was set aside."""
        if self._live is not None:
            self._live.console.print(shown(text), markup=False, highlight=False, soft_wrap=True)
        else:
            say(text)

    def _say(self, text: str) -> None:
        if self._live is None and not is_quiet():
            say(text)

    def _left(self) -> str:
        mean = sum(self._took) / len(self._took) if self._took else 0.0
        return duration(mean * (self.total - self.ended) / self._slots) if self._took else "unknown"

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        failed = f", {self.failed} failed" if self.failed else ""
        done = f"{self.ended} of {self.total} done, {len(self._running)} running"
        title = f"{self.title}: {done}{failed}, {self._left()} left"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
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
