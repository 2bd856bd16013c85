"""What a model was asked, a few prompts at a time, each part on the disk before the next: a kill costs one part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.core.progress import progress
from equipoise.core.rows import Rows
from equipoise.routing.labels import as_row
from equipoise.routing.prompt_states import fingerprint

if TYPE_CHECKING:
    from equipoise.data.problems import Problem
    from equipoise.language.model import LanguageModel

AT_ONCE = 16  # prompts that are asked together and stored as one row


class Kept:
    """path: of the rows, JSON lines; None keeps them in memory. damaged: rows that were altered, and are made anew.

    A part is known by the weights of the model, by what was asked and by the prompts themselves, not by their places: rows
    of other prompts under the same names, or of another model of the same name, are no answers.
    """

    def __init__(self, path: Path | None, language_model: LanguageModel) -> None:
        self._rows = Rows(path)
        self.damaged = tuple(self._rows.damaged)
        self._model = fingerprint(language_model.model)
        self._known = {row["key"]: row["made"] for row in self._rows}

    def parts(
        self,
        title: str,
        problems: Sequence[Problem],
        make: Callable[[int, Sequence[Problem]], Mapping[str, Any]],
        *,
        at_once: int = AT_ONCE,
    ) -> list[Mapping[str, Any]]:
        """make(first, some), JSON values, of each `at_once` problems in order; those that are stored are not made again.

        title: what is asked, which no other call on these rows shares. first: the place of the first of some.
        """
        found = []
        with progress(title, total=len(problems), unit="prompts") as bar:
            for first in range(0, len(problems), at_once):
                some = problems[first : first + at_once]
                what = [self._model, title, first, [[problem.id, as_row(problem)] for problem in some]]
                key = hashlib.sha256(json.dumps(what).encode()).hexdigest()
                if key not in self._known:
                    self._known[key] = dict(make(first, some))
                    self._rows.add({"key": key, "made": self._known[key]})
                found.append(self._known[key])
                bar.advance(len(some))
        return found
