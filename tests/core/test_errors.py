"""Errors for people: their exit codes, and the tail of a sentence that says what may have been meant."""

import pytest

from equipoise.core.errors import (
    BadInput,
    BudgetReached,
    EquipoiseError,
    MissingExtra,
    WorkFailed,
    WrongOption,
    did_you_mean,
)


def test_every_error_has_its_exit_code_and_is_what_python_expects():
    codes = {
        kind: kind.exit_code
        for kind in (EquipoiseError, WorkFailed, BadInput, WrongOption, MissingExtra, BudgetReached)
    }
    assert codes == {EquipoiseError: 1, WorkFailed: 1, BadInput: 2, WrongOption: 2, MissingExtra: 2, BudgetReached: 3}
    assert issubclass(BadInput, ValueError) and issubclass(MissingExtra, ImportError)
    assert not issubclass(WorkFailed, ValueError)
    error = WrongOption("learning_rate", "should be above 0.")
    assert (str(error), error.name, error.problem) == (
        "option 'learning_rate' should be above 0.",
        "learning_rate",
        "should be above 0.",
    )
    assert str(WrongOption("n", "is missing.", "Study 'x': ")) == "Study 'x': option 'n' is missing."


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("stps", ["steps"], "Did you mean 'steps'?"),
        ("seed", ["seeds", "need", "feed", "weed", "steps"], "Did you mean 'seeds' or 'weed' or 'need'?"),
        ("ab", ["axbx", "cd"], "Did you mean 'axbx'?"),
        ("abcd", ["abxy"], "Did you mean 'abxy'?"),
        ("abcde", ["abxyz"], "Known: abxyz."),
        ("x", ["b", "a"], "Known: a, b."),
        ("x", [], "None are known."),
        ("x", iter(["x1"]), "Did you mean 'x1'?"),
    ],
)
def test_what_may_have_been_meant(name, known, said):
    assert did_you_mean(name, known) == said
