"""Progress for anything over two seconds: a bar on a terminal, plain lines elsewhere, always on stderr.

Every advance is also a sign of life for whoever watches this process (`watch`): the study engine ends a run that stands
still.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from equipoise.core.terminal import say, shown

PATIENCE = 2.0  # seconds of work before anything is shown
LINE_EVERY = 10.0  # seconds between plain lines

_quiet = False
_watchers: list[Callable[[], None]] = []
_display: Any = None  # the one rich display of this process; bars inside bars share it
_open: list["Bar"] = []  # outermost first


class Bar:
    """One line of progress. `advance` is cheap enough to be called for every step."""

    def __init__(self, title: str, total: float | None, unit: str, done: float) -> None:
        self.title, self.total, self.unit = shown(title), total, unit
        self.done = self._begin = done
        self.shown: dict[str, str] = {}
        self._started = self._last = time.monotonic()
        self._task: Any = None
        self._owner = False
        self._told: float | None = None  # how many were done in the last line

    def advance(self, amount: float = 1, **beside: object) -> None:
        """Count `amount` more units done; keyword arguments are shown beside the bar (`loss="1.23"`)."""
        self.update(self.done + amount, **beside)

    def update(self, done: float, **beside: object) -> None:
        """Set how many units are done."""
        self.done = done
        beat()
        if beside:
            self.shown = {key: shown(value) for key, value in beside.items()}
        now = time.monotonic()
        if _quiet or now - self._started < PATIENCE:
            return
        if sys.stderr.isatty():
            self._draw()
        elif now - self._last >= LINE_EVERY:
            self._last, self._told = now, self.done
            print(self._line(now), file=sys.stderr, flush=True)

    def _draw(self) -> None:
        global _display
        if _display is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[count]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[shown]}", markup=False),
            )
            _display = Progress(*columns, console=Console(stderr=True), transient=True)
            _display.start()
            self._owner = True
        fields = {"count": self._count(), "shown": self._shown()}
        if self._task is None:
            self._task = _display.add_task(self.title, total=self.total, completed=self.done, **fields)
        _display.update(self._task, completed=self.done, **fields)

    def _close(self) -> None:
        global _display
        if self._task is not None and _display is not None:
            _display.remove_task(self._task)
        if self._owner and _display is not None:
            _display.stop()
            _display = None
        elif self._told not in (None, self.done) and not _quiet:
            print(self._line(time.monotonic()), file=sys.stderr, flush=True)

    def _count(self) -> str:
        return f"{self.done:g}" + (f"/{self.total:g}" if self.total is not None else "") + f" {self.unit}".rstrip()

    def _shown(self) -> str:
        return "  ".join(f"{key} {value}" for key, value in self.shown.items())

    def _line(self, now: float) -> str:
        gone = now - self._started
        left = ""
        if self.total and self._begin < self.done < self.total:
            left = f", about {_clock(gone / (self.done - self._begin) * (self.total - self.done))} left"
        return f"{self.title}: {self._count()}, {_clock(gone)}{left}" + (f"  {self._shown()}" if self.shown else "")


def _clock(seconds: float) -> str:
    """12 s, 1:20, 2:05:00."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


@contextmanager
def progress(title: str, total: float | None = None, unit: str = "", done: float = 0) -> Iterator[Bar]:
    """Show progress while the body runs: `with progress("Teaching", total=100, unit="steps") as bar: bar.advance()`.

    done: what an earlier attempt did.
    """
    bar = Bar(title, total, unit, done)
    _open.append(bar)
    beat()
    try:
        yield bar
    finally:
        _open.remove(bar)
        bar._close()


@contextmanager
def quiet(active: bool = True) -> Iterator[None]:
    """No progress is shown inside the body (signs of life still count)."""
    global _quiet
    before, _quiet = _quiet, _quiet or active
    try:
        yield
    finally:
        _quiet = before


def is_quiet() -> bool:
    """Whether no progress is shown."""
    return _quiet


def note(text: str) -> None:
    """A sentence that must be seen, also when quiet: on stderr, above the bar."""
    if _display is None:
        say(text)
    else:
        _display.console.print(shown(text), markup=False, highlight=False, soft_wrap=True)


def share() -> float | None:
    """How much of the outermost bar that has a total is done, in [0, 1]; None where no such bar is open."""
    return next((min(bar.done / bar.total, 1.0) for bar in list(_open) if bar.total), None)


def beat() -> None:
    """Tell whoever watches that work goes on; call it in long loops that show no bar."""
    for watcher in _watchers:
        watcher()


@contextmanager
def watch(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` at every sign of life inside the body; it must be fast and must not raise."""
    _watchers.append(callback)
    try:
        yield
    finally:
        _watchers.remove(callback)
