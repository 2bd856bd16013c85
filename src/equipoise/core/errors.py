"""Errors that a user can act on: one sentence that names the place and the remedy, and the exit code that goes with it.

Exit codes: 1 the work failed, 2 the request was wrong, 3 stopped at the stated budget, 130 interrupted.
"""

import difflib
from collections.abc import Iterable


class EquipoiseError(Exception):
    """The work failed for a reason that is known and stated; the command line prints it without a traceback."""

    exit_code = 1


class WorkFailed(EquipoiseError):
    """Something that was asked for correctly could not be done (a NaN loss, a full disk, an artifact that differs)."""


class BadInput(EquipoiseError, ValueError):
    """The request was wrong: a file, a field, an option or a value. Raised before the expensive part."""

    exit_code = 2


class WrongOption(BadInput):
    """A value that an option may not have. name: the option's; problem: what is wrong, said of it."""

    def __init__(self, name: str, problem: str, owner: str = "") -> None:
        super().__init__(f"{owner}option {name!r} {problem}")
        self.name, self.problem = name, problem


class MissingExtra(BadInput, ImportError):
    """An optional dependency is not installed; the message is the sentence that installs it."""


class BudgetReached(EquipoiseError):
    """Stopped at the stated budget with everything that was computed stored."""

    exit_code = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence tail that names the nearest known names, or all of them when none is near; never empty-handed."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(repr(n) for n in near)}?"
    return f"Known: {', '.join(names)}." if names else "None are known."
