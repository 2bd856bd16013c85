"""Biases of a judge as data: a name, what it is, how it shows; the seven that the search starts from; dealing them out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from equipoise.core.errors import BadInput
from equipoise.core.files import read_regular
from equipoise.data.text import encodable, lone_surrogate, printable, unified


@dataclass(frozen=True, slots=True)
class Bias:
    """What could sway a judge for a reason other than quality. manifestations: how it shows, for seeds only.

    A name is one line of what can be seen, since it is shown in terminals and tables.
    """

    name: str
    definition: str
    manifestations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", printable(self.name))
        object.__setattr__(self, "definition", encodable(self.definition))
        object.__setattr__(self, "manifestations", tuple(map(encodable, self.manifestations)))


PLACEBO = Bias("placebo", "No bias: the answer in other words, to see what rewriting alone does.")


def seed_biases() -> tuple[Bias, ...]:
    """The seven basic biases of BiasScope (arXiv:2602.09383), worded anew."""
    return tuple(_bias(each, "seed_biases.json") for each in json.loads(_data().read_text(encoding="utf-8")))


def read_biases(path: str | Path) -> tuple[Bias, ...]:
    """A library from a JSON list, or JSON lines, of {"name", "definition", "manifestations"}. Raises BadInput."""
    path = Path(path)
    try:
        text = read_regular(path).decode()
        rows = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.split("\n") if line.strip()]
        )
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(
            f"{path} is no library of biases ({error}): expected a JSON list of name and definition."
        ) from error
    if not isinstance(rows, list) or not rows:
        raise BadInput(f"{path} holds no biases: expected a JSON list of objects with name and definition.")
    biases = tuple(_bias(each, str(path)) for each in rows)
    check_names(biases, str(path))
    return biases


def check_names(biases: Sequence[Bias], where: str) -> None:
    """Raises BadInput for a name that is there twice or is the placebo's: rewrites and verdicts are kept by name."""
    names = [key(bias.name) for bias in biases]
    if len(set(names)) < len(names):
        raise BadInput(f"{where} names a bias twice: make names unique.")
    if key(PLACEBO.name) in names:
        raise BadInput(f"{where} names a bias {PLACEBO.name}, as rewriting without one is named: give it another name.")


def key(name: str) -> str:
    """Names that differ only in case, blanks, hyphens, forms of a character and a trailing "bias" are one."""
    words = unified(name).lower().replace("-", " ").replace("_", " ").split()
    return " ".join(words[:-1] if len(words) > 1 and words[-1] == "bias" else words)


def assign(names: Sequence[str], records: int, *, each: int = 1, seed: int = 42) -> list[list[str]]:
    """`each` distinct names for every record, so that how often names are dealt differs by at most one (card, step 1).

    Raises BadInput when a record needs more names than there are.
    """
    if not 1 <= each <= len(names):
        raise BadInput(
            f"{each} biases a record were asked for, and the library has {len(names)}: expected 1 to that many."
        )
    generator = np.random.default_rng(seed)
    order = [names[i] for i in generator.permutation(len(names))]
    # Consecutive places in a repeated order are distinct as long as each <= len(names), and counts differ by at most one.
    hands = [[order[(record * each + index) % len(order)] for index in range(each)] for record in range(records)]
    return [hands[i] for i in generator.permutation(records)]


def _bias(row: object, where: str) -> Bias:
    if not isinstance(row, dict) or not all(
        isinstance(row.get(f), str) and printable(row[f]) for f in ("name", "definition")
    ):
        raise BadInput(f"{where}: {row!r} is no bias: expected an object with texts name and definition.")
    shown = row.get("manifestations")
    shown = () if shown is None else (shown,) if isinstance(shown, str) else shown
    if not isinstance(shown, list | tuple):
        raise BadInput(f"{where}: the manifestations of {row['name']!r} are {shown!r}, expected a list of texts.")
    shown = tuple(map(str, shown))
    for text in (row["name"], row["definition"], *shown):
        if lone_surrogate(text) is not None:
            raise BadInput(f"{where}: {text!r} holds half of a surrogate pair, which no file can hold; leave it out.")
    return Bias(row["name"].strip(), row["definition"].strip(), shown)


def _data():
    return files("equipoise.judging") / "seed_biases.json"
