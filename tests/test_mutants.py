"""The list of mutants that no test could see: read, up to date, and left out of a draw by the texts of its lines."""

from pathlib import Path
from runpy import run_path

import pytest

SCRIPT = run_path(str(Path(__file__).parents[1] / "scripts" / "mutants.py"))
equivalents, Mutant = SCRIPT["equivalents"], SCRIPT["Mutant"]
PATH = "src/equipoise/judging/rules.py"
ENTRY = f"{PATH}\n- NAMED = 2.0  # what it  counts\n+ NAMED = 1.0\n+\nA reason.\n"


@pytest.fixture
def code(monkeypatch, tmp_path):
    """Writes the file that the entries are about."""
    monkeypatch.setitem(equivalents.__globals__, "ROOT", tmp_path)
    (tmp_path / PATH).parent.mkdir(parents=True)
    return (tmp_path / PATH).write_text


def test_every_entry_is_of_a_line_that_is_there():
    assert len(equivalents(SCRIPT["LISTED"].read_text(encoding="utf-8"))) > 9


def test_a_mutant_is_known_by_the_texts_of_its_lines_wherever_they_stand(code):
    code("\tNAMED = 2.0 # what it counts")
    keys = equivalents(f"# A remark.\n\n{ENTRY}")
    assert keys == {(PATH, "NAMED = 2.0 # what it counts", "NAMED = 1.0"), (PATH, "NAMED = 2.0 # what it counts", "")}
    line = "    NAMED = 2.0  # what it counts\n"
    for before, after in (("", "b = 2\n"), ("a = 1\n\n", "")):
        code(before + line + after)
        for mutated, known in (("    NAMED =  1.0\n", True), ("", True), ("    NAMED = 3.0\n", False)):
            mutant = Mutant(PATH, "NumberReplacer", 1, before + mutated + after)
            assert keys.isdisjoint(mutant.keys()) is not known


def test_a_line_that_stands_twice_is_told_by_the_one_before_it(code):
    begin, line, mutated = "    else:\n", "NAMED = 2.0 # what it counts\n", "NAMED = 1.0\n"
    code(begin + line + line)
    keys = equivalents(ENTRY.replace("- ", "  else:\n- "))
    for after, known in ((begin + mutated + line, True), (begin + line + mutated, False)):
        assert keys.isdisjoint(Mutant(PATH, "NumberReplacer", 2, after).keys()) is not known


@pytest.mark.parametrize(
    ("text", "written", "problem"),
    [
        (ENTRY, "NAMED = 2.5\n", f"equivalent_mutants.txt:2: {PATH} has this line 0 times"),
        (f"# A remark.\n\n{ENTRY}", "", f"equivalent_mutants.txt:4: {PATH} has this line 0 times"),
        (ENTRY, "NAMED = 2.0 # what it counts\n" * 2, f"equivalent_mutants.txt:2: {PATH} has this line 2 times"),
        (
            ENTRY.replace("rules", "gone"),
            "",
            "equivalent_mutants.txt:2: src/equipoise/judging/gone.py has this line 0 times",
        ),
        (f"{ENTRY}\n{PATH}\n- a\n+ b\n", "NAMED = 2.0 # what it counts\n", "equivalent_mutants.txt:7: expected a path"),
        (f"{PATH}\n- a\nA reason.\n", "a\n", "equivalent_mutants.txt:1: expected a path"),
    ],
)
def test_a_stale_or_unreadable_entry_is_named_with_its_line(code, text, written, problem):
    code(written)
    with pytest.raises(SystemExit) as caught:
        equivalents(text)
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("x = (a > 0) & ~(b == 1)", "x = (a > 0) * ~(b == 1)", True),
        ("x = (a > 0) & (b < 1) & (c < 1)", "x = ((a > 0) & (b < 1)) * (c < 1)", True),
        ("x = ~((a > 0) & (b < 1))", "x = ~((a > 0) * (b < 1))", True),
        ("x = (a > 0) & (b < 1)", "x = (a > 0) ^ (b < 1)", False),
        ("x = (a > 0) & b", "x = (a > 0) * b", False),
        ("x = a & 1", "x = a * 1", False),
        ("x = (a > 0) * (b < 1)", "x = (a > 0) + (b < 1)", False),
    ],
)
def test_the_product_of_two_comparisons_is_no_other_program(before, after, same):
    behaviour = SCRIPT["_behaviour"]
    assert (behaviour(before) == behaviour(after)) is same
