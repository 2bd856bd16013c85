"""What a study declares before it has results is compared with a kept table: arms, grids, seeds, claims and margins.

A changed declaration is a line of difference in review. To accept it: python tests/studies/test_declarations.py --write
"""

import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from equipoise.study import registry

TABLE = Path(__file__).with_suffix(".txt").with_stem("declarations")
PROSE = {"text", "description", "reason", "source", "untested", "fixed"}  # for people
# Options by which a study declares something else.
FURTHER: dict[str, list[dict[str, Any]]] = {
    "biasscope": [{"judge": "smollm2"}],
    "chain-of-memory": [{"locomo": False}],
    "dp-2erm": [{"largest": 4000}, {"largest": 3999, "real": False}],
    "sago": [{"model": "folder", "objective": "npo", "train_blocks": 2}],
    "sdp-crown": [{"network": "mnist_mlp"}, {"network": "cifar10_convdeep", "images": 7}],
}


def declared(name: str) -> Iterator[str]:
    """The lines of a study: with the options' defaults, then with those of `FURTHER`."""
    for options in ({}, *FURTHER.get(name, [])):
        built = registry.load(name).build(**options)
        told = ", ".join(f"{option}={value!r}" for option, value in built.options.items())
        yield f"{name}: seeds {built.seeds} from {built.first_seed}, dial {built.dial}, budget {built.budget}; {told}"
        yield f"  scale: {built.scale}"
        for arm in built.arms:
            yield f"  arm {_fields(arm)}"
        if built.select is not None:
            yield f"  select {_fields(built.select)}"
        for outcome in built.outcomes:
            yield f"  outcome {_fields(outcome)}"
        for claim in built.claims:
            kind = "primary" if claim.primary else "further"
            yield f"  {kind} claim {'is not tested' if claim.test is None else _fields(claim.test, named=True)}"


def _fields(instance: Any, *, named: bool = False) -> str:
    told = {each.name: getattr(instance, each.name) for each in fields(instance) if each.name not in PROSE}
    shown = ", ".join(f"{name}={_shown(value)}" for name, value in told.items() if value not in (None, "", {}))
    return f"{type(instance).__name__}({shown})" if named else shown


def _shown(value: Any) -> str:
    if is_dataclass(value):
        return _fields(value, named=True)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_shown, value))}]"
    return value.__name__ if callable(value) else repr(value)


@pytest.mark.parametrize("name", registry.names())
def test_no_declaration_changed_unnoticed(name):
    table = TABLE.read_text(encoding="utf-8").splitlines()
    starts = [place for place, line in enumerate(table) if line.startswith(f"{name}: ")]
    kept = [
        line
        for start in starts
        for line in (table[start], *_indented(table[start + 1 :]))
    ]  # fmt: skip
    assert list(declared(name)) == kept, "if that is meant: python tests/studies/test_declarations.py --write"


def _indented(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith("  "):
            return
        yield line


def test_the_table_has_no_study_that_is_gone():
    table = TABLE.read_text(encoding="utf-8").splitlines()
    named = {line.partition(":")[0] for line in table if not line.startswith("  ")}
    assert named == set(registry.names())


if __name__ == "__main__" and "--write" in sys.argv:
    lines = [line for name in registry.names() for line in declared(name)]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
