"""What a study claims was declared before its results: arms, outcomes and tests are compared with a kept table.

A changed setting or margin shows as one line of difference in review: the stored record is then that of another study. To
accept it: python tests/test_declarations.py --write
"""

import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from equipoise.study import registry

TABLE = Path(__file__).parent / "declarations.txt"
PROSE = {"claims", "arms", "outcomes", "run", "prepare", "source", "description", "scale", "summary", "reason"}


def declared(name: str) -> Iterator[str]:
    """One line for the study, and one for each arm, outcome and test of it; without what is said in prose."""
    study = registry.load(name).build()
    yield f"{name}: {_told(study)}"
    for arm in study.arms:
        yield f"{name}: {arm.name}: {arm.kind} {_told(arm.settings)} {_told(arm.grid)}"
    for outcome in study.outcomes:
        yield f"{name}: {_told(outcome)}"
    for claim in study.claims:
        yield f"{name}: {'verdict' if claim.judged else 'no verdict'}: {_told(claim.test)}"


def _told(value: Any) -> str:
    if is_dataclass(value):
        kept = [field.name for field in fields(value) if field.name not in PROSE]
        return f"{type(value).__name__}({', '.join(f'{each}={_told(getattr(value, each))}' for each in kept)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_told(each)}" for key, each in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_told, value)) + "]"
    return getattr(value, "__qualname__", None) or repr(value)


@pytest.mark.parametrize("name", registry.names())
def test_no_declaration_changed_unnoticed(name):
    kept = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith(f"{name}: ")]
    assert list(declared(name)) == kept, "if that is meant: python tests/test_declarations.py --write"


def test_no_study_is_kept_that_is_not_there():
    kept = {line.partition(":")[0] for line in TABLE.read_text(encoding="utf-8").splitlines()}
    assert kept == set(registry.names())


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    lines = [line for name in registry.names() for line in declared(name)]
    TABLE.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
