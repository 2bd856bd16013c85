"""What a sampler is asked for: symbols, a target, how it is written, and the wordings of the request. Loads no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.uncertainty.sampling_fidelity import checked_target

FIELDS = ("symbols", "target", "templates", "single_templates", "separator", "renamings")
TEMPLATES = (
    "Draw {count} independent values at random. {target}. Write only the values, separated by commas.",
    "Act as a random number generator. Each value is one of {symbols}, with these chances: {target}. "
    "Output {count} values with commas between them and nothing else.",
    "{target}. These are the probabilities of the values {symbols}. Sample from them {count} times and list the results, "
    "separated by commas, without any other text.",
)
SINGLE = (
    "Draw one value at random. {target}. Write only the value.",
    "Act as a random number generator. The value is one of {symbols}, with these chances: {target}. Output one value and "
    "nothing else.",
    "{target}. These are the probabilities of the values {symbols}. Sample from them once and write the result, without any "
    "other text.",
)


@dataclass(frozen=True, slots=True)
class SamplingTask:
    """Symbols with the shares that are asked for, and how they are asked for.

    templates: requests for a list, with {target}, {symbols} and {count} in them where wanted; single_templates: for one
    value from a fresh context. separator: what stands between two values; "" where each token is one. renamings: other
    symbols, in the same order, that mean the same.
    """

    symbols: tuple[str, ...]
    target: tuple[float, ...]
    templates: tuple[str, ...] = TEMPLATES
    single_templates: tuple[str, ...] = SINGLE
    separator: str = ", "
    renamings: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        """Raises BadInput for a target that is no distribution, and for symbols that could be mistaken for each other."""
        shares = checked_target(list(self.target))
        object.__setattr__(self, "target", tuple(map(float, shares)))
        if sum(share > 0 for share in self.target) < 2:
            raise BadInput(
                "The target asks for one symbol alone: there is nothing to sample. Give two a share above 0."
            )
        mark = self.separator.strip()
        if self.separator and (len(mark) != 1 or mark.isalnum()):
            raise BadInput(
                f"The separator is {self.separator!r}: use one sign, with blanks around it if you like, or '' where each "
                "token is a value."
            )
        for symbols in (self.symbols, *self.renamings):
            _check_symbols(symbols, len(self.target), mark)
        if not self.templates or not self.single_templates:
            raise BadInput("templates and single_templates need a request each: leave them out for the usual ones.")

    @classmethod
    def read(cls, given: str | Path | Mapping[str, Any] | SamplingTask) -> SamplingTask:
        """From a JSON file or an object with symbols and target. Raises BadInput, naming the field, for what is wrong."""
        if isinstance(given, SamplingTask):
            return given
        name = "The target" if isinstance(given, Mapping) else str(given)
        stated = given if isinstance(given, Mapping) else _file(Path(given))
        for field in stated.keys() - set(FIELDS):
            raise BadInput(f"{name}: there is no field {field!r}. {did_you_mean(str(field), FIELDS)}")
        for field in ("symbols", "target"):
            if field not in stated:
                raise BadInput(f"{name}: the field {field!r} is missing: give symbols and target, one number for each.")
        target, values = stated["target"], dict[str, Any]()
        if isinstance(target, str) or not isinstance(target, Sequence) or not all(map(_number, target)):
            raise BadInput(f"{name}: target must be a list of numbers, one for each symbol, that sum to 1.")
        for field in ("symbols", "templates", "single_templates"):
            if field in stated:
                values[field] = _texts(stated[field], f"{name}: {field}")
        if "renamings" in stated:
            if not isinstance(stated["renamings"], list | tuple):
                raise BadInput(f"{name}: renamings must be a list of lists of symbols.")
            values["renamings"] = tuple(_texts(each, f"{name}: a renaming") for each in stated["renamings"])
        if "separator" in stated:
            if not isinstance(stated["separator"], str):
                raise BadInput(f"{name}: separator must be a text, such as ', '.")
            values["separator"] = stated["separator"]
        try:
            return cls(target=tuple(float(share) for share in target), **values)
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from None

    def named(self) -> tuple[SamplingTask, ...]:
        """The task with each of its names for the symbols, its own first."""
        return (self, *(replace(self, symbols=symbols, renamings=()) for symbols in self.renamings))

    def requests(self, count: int) -> list[str]:
        """The wordings of a request for a list of so many values."""
        return [self._filled(template, count) for template in self.templates]

    def single_requests(self) -> list[str]:
        """The wordings of a request for one value."""
        return [self._filled(template, 1) for template in self.single_templates]

    def _filled(self, template: str, count: int) -> str:
        shares = ", ".join(f"{x} with probability {q:g}" for x, q in zip(self.symbols, self.target, strict=True))
        told = {"{target}": shares, "{symbols}": ", ".join(self.symbols), "{count}": str(count)}
        # In one pass, since a symbol may hold braces, and a template others than these.
        return re.sub(r"\{(?:target|symbols|count)\}", lambda place: told[place[0]], template)


def _check_symbols(symbols: Sequence[str], count: int, mark: str) -> None:
    if len(symbols) != count:
        raise BadInput(f"There are {len(symbols)} symbols and {count} shares of the target: give one share for each.")
    for symbol in symbols:
        if not symbol or symbol != symbol.strip() or (mark and mark in symbol) or not symbol.isprintable():
            raise BadInput(
                f"The symbol {symbol!r} cannot be told in a list: no blanks around it, no line end and no separator."
            )
    bare = [bared(symbol) for symbol in symbols]
    if twice := [symbol for symbol, each in zip(symbols, bare, strict=True) if bare.count(each) > 1]:
        raise BadInput(f"The symbols {twice[0]!r} and {twice[1]!r} cannot be told apart: name one of them otherwise.")


def bared(text: str) -> str:
    """A text without white space: what is compared, since tokens may or may not carry the blanks around them."""
    return "".join(text.split())


def _file(path: Path) -> Mapping[str, Any]:
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as JSON ({error}): give an object with symbols and target.") from None
    if not isinstance(stated, Mapping):
        raise BadInput(f"{path} holds a {type(stated).__name__}: give an object with symbols and target.")
    return stated


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise BadInput(f"{name} must be a list of texts.")
    return tuple(value)
