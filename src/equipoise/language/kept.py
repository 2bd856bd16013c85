"""Rows that a model was asked for, which are no answers of another model that has come under its name since."""

from typing import TYPE_CHECKING

from equipoise.core.errors import BadInput
from equipoise.core.rows import Rows
from equipoise.language.embed import fingerprint

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel


def keep_to(rows: Rows, language_model: "LanguageModel") -> None:
    """Notes the model's weights in a row of their own, {"weights": digest}, before the first of what it says.

    Raises BadInput where they are noted already and are others.
    """
    digest = fingerprint(language_model.model)
    noted = next((row["weights"] for row in rows if "weights" in row), None)
    if noted is None:
        rows.add({"weights": digest})
    elif noted != digest:
        raise BadInput(
            f"{language_model.name} is not the model that this work was begun with: its weights are others now. Give the "
            "same model, or begin anew with --fresh."
        )
